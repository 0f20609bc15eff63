//! Deletion (rows 1 to 4 of the table of failures): it always ends, it waits by name, and nothing stays.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::{eventually, throughout};
use crate::steps::left::{btrfs, forge, noise, nothing_left, on_disk};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("1-create", "a Dot deleted while it is being created goes", during_create),
        Case::new("1-commit", "a Dot deleted during a commit goes", during_commit),
        Case::new("1-push", "a Dot deleted while its owner sends goes, on both nodes", |t| during_push(t, "n1")),
        Case::new("1-receive", "a Dot deleted while a paused node receives goes, once that node is back", |t| during_push(t, "n2")),
        Case::new("1-undeleted", "a subvolume whose deletion a power cut undid is deleted again at start", undeleted),
        Case::new("2-failing", "a Dot whose push fails goes", failing),
        Case::new("2-diverged", "a diverged Dot goes, every pool deletes its own copy", diverged),
        Case::new("2-no-space", "a Dot that is out of space goes", no_space),
        Case::new("2-fenced", "a fenced Dot goes", fenced),
        Case::new("2-node-gone", "with a node gone its Replica stays as tombstone until the agent is back", node_gone),
        Case::new("3-commit-mounted", "deletion of a commit that is mounted waits and names the mount", commit_mounted),
        Case::new("3-pinned", "a Commit that a Branch has pinned waits: Pinned, by whom", pinned),
        Case::new(
            "3-pinned-lost",
            "a Branch goes and its word to its origin gets lost: the Commit it began with goes all the same",
            pin_lost,
        ),
        Case::new("4-receive", "a push of the same name right after a delete is another Filesystem", same_name_pushed),
        Case::new("3-mounted", "deletion waits for a mount and names it", mounted),
        Case::new("3-other-namespace", "a mount in another mount namespace is seen", other_namespace),
        Case::new("3-branch-delete", "under Delete a Dot with Branches waits: BranchesExist", |t| branches(t, "Delete")),
        Case::new("3-branch-cascade", "under Cascade the deletion goes to each Branch", |t| branches(t, "Cascade")),
        Case::new("4-create", "a Dot of the same name right after a delete is another Filesystem", same_name),
    ]
}

async fn during_create(t: Arc<Test>) -> Result<()> {
    for i in 0..5 {
        let name = format!("d{i}");
        t.create("Dot", &name, &json!({"capacity": "128Mi", "placement": {"node": "n1"}})).await?;
        tokio::time::sleep(Duration::from_millis(60 * i)).await;
        t.kube().delete("Dot", &t.namespace, &name).await?;
    }
    for i in 0..5 {
        t.kube().gone("Dot", &t.namespace, &format!("d{i}"), STEP).await?;
    }
    let ours = |o: &Value| o.pointer("/spec/claimRef/namespace").is_some_and(|n| *n == *t.namespace);
    eventually("their Filesystems to be gone", STEP, || async {
        let left = t.kube().names("Filesystem", "", ours).await?;
        ensure!(left.is_empty(), "{left:?} are there");
        Ok(())
    })
    .await
}

async fn during_commit(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), vec![1u8; 64 << 20])?;
    t.unmount(&head).await?;
    t.create("Commit", "c", &json!({"source": {"kind": "Dot", "name": "d"}})).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    t.kube().delete("Commit", &t.namespace, "c").await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    t.kube().gone("Commit", &t.namespace, "c", STEP).await?;
    nothing_left(&t, &fs_id).await
}

/// A push that would take a minute, of which `paused` is stopped in the middle when the deletion comes.
async fn during_push(t: Arc<Test>, paused: &'static str) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), noise(40 << 20))?;
    t.unmount(&head).await?;
    t.commit("c", "d").await?;
    let job = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "limits": {"bandwidth": "1Mi"}});
    t.create("ReplicationJob", "j", &job).await?;
    t.kube()
        .until("the push to be under way", ("ReplicationJob", &t.namespace, "j"), STEP, |job| {
            let sent = job.pointer("/status/progress/replicatedBytes").and_then(Value::as_u64).unwrap_or(0);
            ensure!(sent > 0, "{} bytes sent, state {}", sent, job["status"]["state"]);
            Ok(())
        })
        .await?;
    t.rig.pause(paused)?;
    for (kind, name) in [("Dot", "d"), ("ReplicationJob", "j"), ("Commit", "c")] {
        t.kube().delete(kind, &t.namespace, name).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    t.rig.resume(paused)?;
    for (kind, name) in [("Dot", "d"), ("ReplicationJob", "j"), ("Commit", "c")] {
        t.kube().gone(kind, &t.namespace, name, STEP).await?;
    }
    nothing_left(&t, &fs_id).await
}

/// The text of the conditions names the mount, and the Dot stays.
async fn waits_for_mount(t: &Test, target: &Path) -> Result<()> {
    let target = target.to_string_lossy().into_owned();
    eventually("a condition that names the mount", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        let text = dot.pointer("/status/conditions").map(Value::to_string).unwrap_or_default();
        ensure!(text.contains(&target), "{text}");
        Ok(())
    })
    .await
}

async fn mounted(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"kept")?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    waits_for_mount(&t, &head).await?;
    ensure!(std::fs::read(head.join("a"))? == b"kept", "what is mounted must stay whole");
    std::fs::write(head.join("b"), b"and writable")?;
    t.unmount(&head).await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}

async fn other_namespace(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    // A process with a mount namespace of its own keeps the mount that its parent gives up.
    let mut holder =
        tokio::process::Command::new("unshare").args(["--mount", "--propagation", "private", "sleep", "300"]).kill_on_drop(true).spawn()?;
    let holds = holder.id().context("the holder has ended")?;
    let mounts = format!("/proc/{holds}/mounts");
    eventually("the holder to have a namespace and to sleep", STEP, || async {
        let name = std::fs::read_to_string(format!("/proc/{holds}/comm"))?;
        ensure!(name.trim() == "sleep", "it is {name:?}");
        Ok(())
    })
    .await?;
    t.unmount(&head).await?;
    let held = std::fs::read_to_string(&mounts)?.contains(&*head.to_string_lossy());
    ensure!(held, "the test's own setup: the holder has no mount");
    t.kube().delete("Dot", &t.namespace, "d").await?;
    waits_for_mount(&t, &head).await?;
    holder.kill().await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}

async fn branches(t: Arc<Test>, policy: &'static str) -> Result<()> {
    let spec = json!({"capacity": "256Mi", "placement": {"node": "n1"}, "deletionPolicy": policy});
    let fs_id = t.dot_of("d", &spec).await?;
    t.commit("c", "d").await?;
    t.create("Branch", "b", &json!({"dot": "d", "from": {"commit": "c"}})).await?;
    t.ready("Branch", "b").await?;
    t.kube().delete("Commit", &t.namespace, "c").await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    if policy == "Delete" {
        eventually("BranchesExist", STEP, || async {
            let dot = t.object("Dot", "d").await?;
            let text = dot.pointer("/status/conditions").map(Value::to_string).unwrap_or_default();
            ensure!(text.contains("BranchesExist"), "{text}");
            Ok(())
        })
        .await?;
        t.object("Branch", "b").await.context("the Branch must stay")?;
        t.kube().delete("Branch", &t.namespace, "b").await?;
    }
    for (kind, name) in [("Branch", "b"), ("Dot", "d"), ("Commit", "c")] {
        t.kube().gone(kind, &t.namespace, name, STEP).await?;
    }
    nothing_left(&t, &fs_id).await
}

async fn same_name(t: Arc<Test>) -> Result<()> {
    let first = t.dot("d", "n1").await?;
    let head = t.mount("n1", &first).await?;
    std::fs::write(head.join("old"), b"old")?;
    t.unmount(&head).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    let second = t.dot("d", "n1").await?;
    ensure!(first != second, "ids must never be used again");
    let head = t.mount("n1", &second).await?;
    ensure!(!head.join("old").exists(), "the new Dot must be empty");
    nothing_left(&t, &first).await?;
    std::fs::write(head.join("new"), b"new")?;
    ensure!(std::fs::read(head.join("new"))? == b"new", "the new Dot must be there");
    Ok(())
}

async fn undeleted(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let pool = t.rig.node("n1")?.files.state.join("pool");
    let (dir, aside) = (pool.join("fs").join(&fs_id), pool.join("undeleted"));
    btrfs(&["snapshot".as_ref(), dir.join("head").as_os_str(), aside.as_os_str()])?;
    let meta = std::fs::read(dir.join("fs.json"))?;
    t.rig.restart_with_env("n1", "DOTGRAFT_FAILPOINT", Some("after:deleted")).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    eventually("the agent to have deleted it", STEP, || async { t.rig.processes.exited("n1")?.context("it runs").map(|_| ()) }).await?;
    ensure!(!dir.exists(), "it must be gone from the disk before the journal says so");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("fs.json"), meta)?;
    btrfs(&["snapshot".as_ref(), aside.as_os_str(), dir.join("head").as_os_str()])?;
    btrfs(&["delete".as_ref(), aside.as_os_str()])?;
    t.rig.restart_with_env("n1", "DOTGRAFT_FAILPOINT", None).await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}

async fn failing(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    t.commit("c", "d").await?;
    t.push("j", "d", "nowhere").await?;
    t.condition("ReplicationJob", "j", "Ready", "False", None).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}

/// The copy gets a commit that its owner never had, as a failover would leave it.
async fn diverged(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    forge(&t, &fs_id, &commit).await?;
    t.commit("e", "d").await?;
    t.trigger("j", "again").await?;
    t.condition("ReplicationJob", "j", "Diverged", "True", None).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}

async fn no_space(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot_of("d", &json!({"capacity": "64Mi", "placement": {"node": "n1"}})).await?;
    let head = t.mount("n1", &fs_id).await?;
    let written = std::fs::write(head.join("a"), noise(256 << 20)).and_then(|()| std::fs::File::open(head.join("a"))?.sync_all());
    ensure!(written.is_err(), "the test's own setup: there was space");
    t.unmount(&head).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}

async fn fenced(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    t.local("n1")?.fence(&fs_id, false).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}

async fn node_gone(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    t.rig.kill9("n2")?;
    for (kind, name) in [("Dot", "d"), ("ReplicationJob", "j"), ("Commit", "c")] {
        t.kube().delete(kind, &t.namespace, name).await?;
    }
    eventually("the owner's copy to be gone", STEP, || async {
        ensure!(on_disk(&t, "n1", &fs_id)?.is_none(), "it is on the disk");
        Ok(())
    })
    .await?;
    let tombstone = || async {
        let replica = t.replica(&fs_id, "n2").await?;
        ensure!(replica["spec"]["desired"]["state"] == "Absent", "{}", replica["spec"]["desired"]);
        Ok(())
    };
    eventually("the other one to be wanted Absent", STEP, tombstone).await?;
    throughout("the node's absence", Duration::from_secs(1), tombstone).await?;
    ensure!(on_disk(&t, "n2", &fs_id)?.is_some(), "the test's own setup: nothing was on the dead node");
    t.rig.restart("n2").await?;
    for (kind, name) in [("Dot", "d"), ("ReplicationJob", "j"), ("Commit", "c")] {
        t.kube().gone(kind, &t.namespace, name, STEP).await?;
    }
    nothing_left(&t, &fs_id).await
}

/// The text of the Commit's conditions names what holds it.
async fn commit_waits(t: &Test, words: &[&str]) -> Result<()> {
    eventually("a condition of the Commit that says why it stays", STEP, || async {
        let text = t.object("Commit", "c").await?.pointer("/status/conditions").map(Value::to_string).unwrap_or_default();
        ensure!(words.iter().all(|w| text.contains(w)), "{text}");
        Ok(())
    })
    .await
}

async fn commit_mounted(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    let path = t.mount_commit("n1", &fs_id, &commit).await?;
    t.kube().delete("Commit", &t.namespace, "c").await?;
    commit_waits(&t, &["Pinned", &path.to_string_lossy()]).await?;
    t.unmount(&path).await?;
    t.kube().gone("Commit", &t.namespace, "c", STEP).await
}

async fn pinned(t: Arc<Test>) -> Result<()> {
    t.dot("d", "n1").await?;
    t.commit("c", "d").await?;
    t.create("Branch", "b", &json!({"dot": "d", "from": {"commit": "c"}})).await?;
    let branch = crate::harness::test::text(&t.ready("Branch", "b").await?, "/status/fsId")?;
    t.kube().delete("Commit", &t.namespace, "c").await?;
    commit_waits(&t, &["Pinned", &branch]).await?;
    t.kube().delete("Branch", &t.namespace, "b").await?;
    t.kube().gone("Commit", &t.namespace, "c", STEP).await
}

/// The origin's first try to record that the pin is gone fails, and with it is forgotten that it was to go.
async fn pin_lost(t: Arc<Test>) -> Result<()> {
    t.rig.restart_with_env("n1", "DOTGRAFT_FAILPOINT", Some("error:origin-unpin")).await?;
    t.dot("d", "n1").await?;
    t.commit("c", "d").await?;
    t.create("Branch", "b", &json!({"dot": "d", "from": {"commit": "c"}})).await?;
    t.ready("Branch", "b").await?;
    t.kube().delete("Branch", &t.namespace, "b").await?;
    t.kube().gone("Branch", &t.namespace, "b", STEP).await?;
    let log = std::fs::read_to_string(t.rig.processes.log("n1"))?;
    ensure!(log.contains("rebuilding from the journal"), "the journal never failed");
    t.kube().delete("Commit", &t.namespace, "c").await?;
    t.kube().gone("Commit", &t.namespace, "c", STEP).await
}

async fn same_name_pushed(t: Arc<Test>) -> Result<()> {
    let mut before: Option<String> = None;
    for name in ["one", "two"] {
        let fs_id = t.dot("d", "n1").await?;
        ensure!(before.as_ref() != Some(&fs_id), "ids must never be used again");
        let head = t.mount("n1", &fs_id).await?;
        std::fs::write(head.join(name), name)?;
        t.unmount(&head).await?;
        let commit = t.commit(name, "d").await?;
        t.push(name, "d", "n2").await?;
        t.arrived(&fs_id, &commit, "n2", STEP).await?;
        let there = t.mount_commit("n2", &fs_id, &commit).await?;
        ensure!(std::fs::read_dir(&there)?.count() == 1 && there.join(name).exists(), "the copy must hold {name} alone");
        t.unmount(&there).await?;
        if let Some(old) = before.replace(fs_id) {
            return nothing_left(&t, &old).await;
        }
        for (kind, name) in [("ReplicationJob", name), ("Commit", name), ("Dot", "d")] {
            t.kube().delete(kind, &t.namespace, name).await?;
        }
        t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    }
    Ok(())
}
