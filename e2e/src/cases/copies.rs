//! Copies that come and go by themselves: those that pods read, and those that nothing needs any more (ADR 10).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1 as csi;
use dotgraft_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source};
use serde_json::json;

use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::Options;
use crate::rig::wait::{eventually, throughout};
use crate::steps::cli::dot;
use crate::steps::csi::refused;
use crate::steps::left::on_disk;
use crate::steps::owner::{owned_by, place};
use crate::steps::pods::read_only;
use crate::steps::sidecar::{Sidecar, read, write};
use crate::steps::{owner, pod as csi_pvc, pods};

/// Seconds that a spare copy stays in the rigs of these cases.
const SPARE: u64 = 3;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("copies-spare", "a copy that a move has left goes by itself; one that a user's job made stays", spare).own(soon()),
        Case::new(
            "copies-last",
            "a move to a copy with the newest commit only brings all; no snapshot is lost with what it leaves behind",
            last,
        )
        .own(soon()),
        Case::new(
            "copies-brought",
            "a Commit and a snapshot that only a superseded copy has are brought to the owner, branched and restored there",
            brought,
        ),
        Case::new("copies-none", "a Commit whose only disk is gone says NoCopyLeft, and its snapshot is ready no more", none_left)
            .own(Options::default()),
        Case::new("copies-readers", "a node on which a commit is read gets a copy, and loses it afterwards", readers).own(soon()),
        Case::new("csi-readers", "pods read a commit, and the newest, on nodes without a copy; a restart shows newer ones", pods_read)
            .kubelets(),
    ]
}

fn soon() -> Options {
    let env = [("DOTGRAFT_SPARE_COPY_SECONDS".to_owned(), SPARE.to_string())].into();
    Options { env: [("operator".to_owned(), env)].into(), ..Options::default() }
}

/// Waits until neither the API nor the disk of a node has a copy.
async fn gone(t: &Test, fs_id: &str, node: &str) -> Result<()> {
    eventually(&format!("the copy on {node} to go"), STEP, || async {
        let left = t.kube().names("Replica", "", |r| r["spec"]["fsId"] == *fs_id && r["spec"]["node"] == *node).await?;
        ensure!(left.is_empty(), "{:#}", t.replica(fs_id, node).await?["metadata"]);
        ensure!(on_disk(t, node, fs_id)?.is_none(), "it is on disk");
        Ok(())
    })
    .await
}

async fn has(t: &Test, fs_id: &str, node: &str, commit: &str) -> Result<()> {
    eventually(&format!("{node} to have commit {commit}"), STEP, || async {
        let replica = t.replica(fs_id, node).await?;
        ensure!(replica["status"]["head"] == *commit, "{}", replica["status"]);
        Ok(())
    })
    .await
}

async fn spare(t: Arc<Test>) -> Result<()> {
    let (fs_id, digest) = owner::filled(&t, "d").await?;
    let commit = t.commit("c1", "d").await?;
    place(&t, "d", "n2").await?;
    owned_by(&t, "d", "n2").await?;
    gone(&t, &fs_id, "n1").await?;
    eventually("people to be told, and the Dot to say so", STEP, || async {
        let events = t.kubectl(&["get", "events", "-o", "yaml"]).await?;
        ensure!(events.contains("SpareCopyDeleted") && events.contains("the copy on node n1 is deleted"), "nobody was told: {events}");
        let dot = t.object("Dot", "d").await?;
        ensure!(dot["status"]["replicas"].as_array().is_some_and(|r| r.len() == 1), "{}", dot["status"]["replicas"]);
        Ok(())
    })
    .await?;
    let head = t.mount("n2", &fs_id).await?;
    ensure!(crate::data::digest::tree_digest(&head)? == digest, "the volume has changed");
    t.unmount(&head).await?;

    // A user's job has made this one: it stays when the job goes.
    t.push("j", "d", "n1").await?;
    t.arrived(&fs_id, &commit, "n1", STEP).await?;
    t.kube().delete("ReplicationJob", &t.namespace, "j").await?;
    t.kube().gone("ReplicationJob", &t.namespace, "j", STEP).await?;
    throughout("the user's copy", Duration::from_secs(2 * SPARE), || async {
        ensure!(t.replica(&fs_id, "n1").await?["spec"]["desired"]["state"] == "Present", "it is deleted");
        Ok(())
    })
    .await?;

    // And a replica that is not wanted any more is ours again to delete, if we made it.
    let e = t.dot_of("e", &json!({"capacity": "64Mi", "placement": {"node": "n1", "replicas": 1}})).await?;
    let commit = t.commit("c2", "e").await?;
    t.arrived(&e, &commit, "n2", STEP).await?;
    t.kube().patch("Dot", &t.namespace, "e", "", &json!({"spec": {"placement": {"replicas": 0}}})).await?;
    gone(&t, &e, "n2").await
}

/// What [`newest_only`] has made.
struct Made {
    fs_id: String,
    /// Id of the CSI snapshot; its commit is on n2 alone.
    shot: String,
    /// Commit `older`; on n2 alone.
    older: String,
    /// Commit `newest`; on n1, too.
    newest: String,
}

impl Made {
    /// The snapshot's commit.
    fn of_shot(&self) -> Result<&str> {
        Ok(self.shot.rsplit_once('@').context("no commit in the snapshot's id")?.1)
    }
}

/// Volume `d` on n2, with a snapshot and two Commits; a push has brought the newest only to n1, and its job is gone.
async fn newest_only(t: &Test, csi: &Sidecar) -> Result<Made> {
    let fs_id = csi.volume(&csi.request("d", "n2")).await?.volume_id;
    write(t, "n2", &fs_id, "word", "kept").await?;
    let shot = csi.snapshot("s2", &fs_id).await?.snapshot_id;
    let older = t.commit("older", "d").await?;
    write(t, "n2", &fs_id, "word", "later").await?;
    let newest = t.commit("newest", "d").await?;
    t.push("j", "d", "n1").await?;
    t.arrived(&fs_id, &newest, "n1", STEP).await?;
    t.kube().delete("ReplicationJob", &t.namespace, "j").await?;
    t.kube().gone("ReplicationJob", &t.namespace, "j", STEP).await?;
    Ok(Made { fs_id, shot, older, newest })
}

/// Authority goes to n1 by a person's word, without a move.
async fn promote(t: &Test) -> Result<()> {
    let wish = json!({"target": {"name": "d"}, "promote": {"node": "n1", "acceptLoss": true}});
    t.create("DotOperation", "now", &wish).await?;
    owned_by(t, "d", "n1").await.map(drop)
}

/// Which nodes the Commit says hold it.
async fn copies_of(t: &Test, commit: &str, nodes: &[&str]) -> Result<()> {
    eventually(&format!("Commit {commit} to be on {nodes:?}"), STEP, || async {
        let object = t.object("Commit", commit).await?;
        ensure!(object["status"]["copies"] == json!(nodes), "{}", object["status"]);
        Ok(())
    })
    .await
}

/// What only the old owner's copy has is brought to the new owner, by itself, and so is there to be branched and restored.
async fn brought(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let made = newest_only(&t, &csi).await?;
    copies_of(&t, "older", &["n2"]).await?;
    copies_of(&t, "newest", &["n1", "n2"]).await?;
    promote(&t).await?;
    t.create("Branch", "b", &json!({"dot": "d", "from": {"commit": "older"}})).await?;
    let branch = text(&t.ready("Branch", "b").await?, "/status/fsId")?;
    ensure!(read(&t, "n1", &branch, "word").await? == "kept", "the Branch has something else");
    let mut request = csi.request("restored", "n1");
    let source = SnapshotSource { snapshot_id: made.shot.clone() };
    request.volume_content_source = Some(csi::VolumeContentSource { r#type: Some(Source::Snapshot(source)) });
    let restored = csi.volume(&request).await?.volume_id;
    ensure!(read(&t, "n1", &restored, "word").await? == "kept", "what is restored is something else");
    copies_of(&t, "older", &["n1", "n2"]).await?;
    let log = dot(&t, &["log", "d"]).await?;
    ensure!(log.lines().filter(|l| l.contains("n1,n2")).count() == 3, "{log}");
    let replica = t.replica(&made.fs_id, "n1").await?;
    ensure!(replica["status"]["head"] == made.newest, "an older commit is its newest now: {}", replica["status"]);
    eventually("nothing to be asked for any more", STEP, || async {
        let desired = t.replica(&made.fs_id, "n1").await?["spec"]["desired"].clone();
        ensure!(desired.get("fetch").is_none(), "{desired}");
        Ok(())
    })
    .await?;
    csi.delete(&restored).await?;
    t.kube().delete("Branch", &t.namespace, "b").await?;
    t.kube().gone("Branch", &t.namespace, "b", STEP).await?;
    csi.delete_snapshot(&made.shot).await
}

/// The node with the only copy of two commits is taken out of the cluster for good.
async fn none_left(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let made = newest_only(&t, &csi).await?;
    ensure!(csi.listed(&made.shot).await?.ready_to_use, "it is there");
    t.rig.kill9("n2")?;
    t.kube().kubectl(&["delete", "node", "n2"]).await?;
    promote(&t).await?;
    t.condition("Commit", "older", "NoCopyLeft", "True", Some("NoCopyLeft")).await?;
    t.condition("Commit", "older", "Ready", "False", Some("NoCopyLeft")).await?;
    t.condition("Commit", "older", "AtRisk", "True", Some("NoCopyLeft")).await?;
    eventually("the snapshot to be ready no more", STEP, || async {
        ensure!(!csi.listed(&made.shot).await?.ready_to_use, "a snapshot that no disk holds is ready");
        Ok(())
    })
    .await?;
    t.condition("Commit", "newest", "Ready", "True", None).await?;
    copies_of(&t, "newest", &["n1"]).await?;
    let log = dot(&t, &["log", "d"]).await?;
    ensure!(log.lines().any(|l| l.contains("older") && !l.contains("n2")), "{log}");
    csi.delete_snapshot(&made.shot).await?;
    t.kube().delete("Commit", &t.namespace, "older").await?;
    t.kube().gone("Commit", &t.namespace, "older", STEP).await
}

/// A push that brings the newest commit only makes a copy; its node becomes the owner; the older ones are on the old node alone.
async fn last(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let made = newest_only(&t, &csi).await?;
    let fs_id = made.fs_id.clone();
    place(&t, "d", "n1").await?;
    owned_by(&t, "d", "n1").await?;
    // The move has brought the older ones along, so what it left behind may go; they are all on n1.
    gone(&t, &fs_id, "n2").await?;
    for id in [made.of_shot()?, made.older.as_str(), made.newest.as_str()] {
        let path = t.mount_commit("n1", &fs_id, id).await?;
        let wanted = if id == made.newest { "later" } else { "kept" };
        ensure!(std::fs::read_to_string(path.join("word"))? == wanted, "commit {id} is not what it was");
        t.unmount(&path).await?;
    }
    csi.delete_snapshot(&made.shot).await
}

async fn readers(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("word"), "first")?;
    let handle = format!("ro/{fs_id}");
    let commit = t.commit("c1", "d").await?;
    std::fs::write(head.join("word"), "second")?;
    let newest = t.commit("c2", "d").await?;
    t.unmount(&head).await?;

    t.kube().patch("Dot", &t.namespace, "d", "", &json!({"spec": {"placement": {"nodeSelector": {"disk": "none-has-it"}}}})).await?;
    let why = tonic::Code::FailedPrecondition;
    eventually("placement to forbid it", STEP, || async { refused(csi.publish(&handle, "n2", true).await, why, "nodeSelector") }).await?;
    t.kube().patch("Dot", &t.namespace, "d", "", &json!({"spec": {"placement": {"nodeSelector": null}}})).await?;

    // The older commit is read by its handle, so the copy has both.
    let at = format!("{handle}@{commit}");
    eventually("it to be published", STEP, || async { Ok(csi.publish(&at, "n2", true).await?) }).await?;
    has(&t, &fs_id, "n2", &newest).await?;
    let old = t.mount_commit("n2", &fs_id, &commit).await?;
    ensure!(std::fs::read_to_string(old.join("word"))? == "first", "not what the commit has");
    let third = t.commit("c3", "d").await?;
    has(&t, &fs_id, "n2", &third).await?;
    csi.unpublish(&at, "n2").await?;
    throughout("a copy that is mounted", Duration::from_secs(2 * SPARE), || async {
        ensure!(std::fs::read_to_string(old.join("word"))? == "first", "it went under its reader");
        Ok(())
    })
    .await?;
    t.unmount(&old).await?;
    gone(&t, &fs_id, "n2").await?;
    ensure!(read(&t, "n1", &fs_id, "word").await? == "second", "the volume itself has changed");
    // To read the head itself where it isn't: at once, and no copy is made for it.
    refused(csi.publish(&fs_id, "n2", true).await, why, "ro/")?;
    eventually("no job to be left", STEP, || async {
        let jobs = t.kube().names("ReplicationJob", &t.namespace, |_| true).await?;
        ensure!(jobs.is_empty(), "{jobs:?}");
        Ok(())
    })
    .await
}

async fn word(t: &Test, pod: &str) -> Result<String> {
    Ok(t.kubectl(&["exec", pod, "--", "cat", "/data/word"]).await?.trim().to_owned())
}

async fn pods_read(t: Arc<Test>) -> Result<()> {
    pods::claim(&t, "data", "64Mi").await?;
    csi_pvc::pod(&t, "writer", "data", "n1", "echo first > /data/word; sync; sleep 1000").await?;
    csi_pvc::started(&t, "writer").await?;
    csi_pvc::says(&t, "writer", "/data/word", "first").await?;
    let id = pods::fs_id(&t, "data").await?;
    let commit = t.commit("c1", "data").await?;
    read_only(&t, "old", &format!("ro/{id}@{commit}")).await?;
    read_only(&t, "new", &format!("ro/{id}")).await?;
    csi_pvc::pod(&t, "old", "old", "n2", "sleep 1000").await?;
    csi_pvc::pod(&t, "new", "new", "n3", "sleep 1000").await?;
    for pod in ["old", "new"] {
        csi_pvc::started(&t, pod).await?;
        ensure!(word(&t, pod).await? == "first", "{pod} reads something else");
    }
    t.kubectl(&["exec", "writer", "--", "sh", "-c", "echo second > /data/word; sync"]).await?;
    let newest = t.commit("c2", "data").await?;
    has(&t, &id, "n3", &newest).await?;
    ensure!(word(&t, "new").await? == "first", "a pod's files change under it");
    csi_pvc::stop(&t, "new").await?;
    csi_pvc::pod(&t, "new", "new", "n3", "sleep 1000").await?;
    csi_pvc::started(&t, "new").await?;
    ensure!(word(&t, "new").await? == "second" && word(&t, "old").await? == "first", "a restart shows the newest, and only there");
    let dot = t.object("Dot", "data").await?;
    ensure!(dot["status"]["owner"] == "n1", "a reader moved the volume");
    for pod in ["old", "new", "writer"] {
        csi_pvc::stop(&t, pod).await?;
    }
    t.kubectl(&["delete", "pvc", "old", "new", "--timeout=180s"]).await?;
    for name in ["old", "new"] {
        t.kube().kubectl(&["delete", "pv", &format!("{}-{name}", t.namespace), "--timeout=180s"]).await?;
    }
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    pods::nothing(&t, &id).await
}
