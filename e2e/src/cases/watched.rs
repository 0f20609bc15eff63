//! What people watch: every metric of operator and agents moves, and every alert of the chart fires on the trouble that it names and clears with
//! it, as a real Prometheus sees a rig on which these troubles are made.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dotgraft_proto::csi::v1::volume_capability::access_mode::Mode;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::process::ENDS;
use crate::rig::wait::eventually;
use crate::rig::{Options, PodWebhook};
use crate::steps::cli::dot;
use crate::steps::csi::capability;
use crate::steps::disk::{Unwritable, fill, filler};
use crate::steps::left::noise;
use crate::steps::mount::Pod;
use crate::steps::owner::{owned_by, place};
use crate::steps::sidecar::Sidecar;
use crate::steps::stray::make_stray;
use crate::steps::watched::{PATIENCE, Watched};

/// Seconds in deletion after which an object counts as stuck in this rig.
const STUCK: &str = "2";
/// Volumes with figures of their own in this rig: some of its volumes are left out.
const FIGURES: &str = "5";
/// Who want one volume at once.
const CROWD: usize = 64;
/// What is watched of n1.
const N1: Option<(&str, &str)> = Some(("node", "n1"));
/// The pool's size is what was asked for when it was made.
const CONSTANT: [&str; 1] = ["dotgraft_pool_bytes"];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let title = "a real Prometheus, by the chart's monitors and rules: every metric moves, every alert fires and clears, every panel shows something";
    let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let env = [own("DOTGRAFT_STUCK_AFTER", STUCK), own("DOTGRAFT_VOLUME_METRICS", FIGURES)].into();
    let options =
        Options { pool_size: "1Gi".into(), webhook: PodWebhook::Served, env: [("operator".to_owned(), env)].into(), ..Options::default() };
    vec![Case::new("watched", title, watched).own(options).within(Duration::from_secs(900))]
}

async fn watched(t: Arc<Test>) -> Result<()> {
    let w = Watched::start(t.clone()).await?;
    volumes(&w).await?;
    full(&w).await.context("a volume that is full")?;
    pods_and_certificates(&w).await?;
    replica_away(&w).await.context("while n2 is away")?;
    orphan(&w).await.context("an orphan")?;
    stray(&w).await.context("a subvolume outside of its quota")?;
    left_behind(&w).await.context("what a volume leaves in a clone")?;
    superseded(&w).await.context("a superseded copy")?;
    stuck(&w).await.context("a deletion that hangs")?;
    crowd(&w).await.context("a volume that many want")?;
    journal(&w).await.context("a journal that can't be written")?;
    api_away(&w).await.context("without an API server")?;
    w.calm().await?;
    w.every_alert_has_fired().await?;
    w.every_family_has_moved(&CONSTANT).await?;
    w.every_panel_shows_something().await?;
    t.rig.stop_prometheus()
}

async fn written(t: &Test, fs_id: &str, name: &str, len: usize) -> Result<()> {
    let head = t.mount("n1", fs_id).await?;
    std::fs::write(head.join(name), noise(len))?;
    t.unmount(&head).await
}

/// A Dot on n1 whose first commit is on n2, too.
async fn copied(t: &Test, name: &str, more: Value) -> Result<String> {
    let mut spec = json!({"capacity": "128Mi", "placement": {"node": "n1"}});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    let fs_id = t.dot_of(name, &spec).await?;
    written(t, &fs_id, "a", 1 << 20).await?;
    let commit = t.commit(&format!("{name}-1"), name).await?;
    if spec["placement"].get("replicas").is_none() {
        t.push(&format!("{name}-push"), name, "n2").await?;
    }
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    Ok(fs_id)
}

/// Commits, a push, a move, and what kubelet and sidecars ask for.
async fn volumes(w: &Watched) -> Result<()> {
    let t = &w.t;
    copied(t, "d", json!({})).await?;
    place(t, "d", "n2").await?;
    owned_by(t, "d", "n2").await?;
    let csi = Sidecar::new(t).await?;
    let volume = csi.volume(&csi.request("claim", "n1")).await?.volume_id;
    let pod = Pod::new(t, "n1", "p")?;
    pod.start(&volume).await?;
    std::fs::write(pod.target().join("a"), "a")?;
    pod.end(&volume).await?;
    let group = capability(Mode::SingleNodeMultiWriter, "4242");
    pod.stage(&volume, group.clone()).await??;
    pod.publish(&volume, group, false).await??;
    pod.end(&volume).await
}

/// Files take all the room of a volume, until it gets more.
async fn full(w: &Watched) -> Result<()> {
    let t = &w.t;
    // The first by name, so that it has figures of its own.
    let fs_id = t.dot_of("a", &json!({"capacity": "64Mi", "historyLimit": "16Mi", "placement": {"node": "n1"}})).await?;
    let head = t.mount("n1", &fs_id).await?;
    t.commit("a-1", "a").await?; // from then on it is looked at every twenty seconds
    let too_much = std::fs::write(head.join("fill"), noise(96 << 20));
    ensure!(too_much.is_err(), "96 MiB fit into 80");
    rustix::fs::syncfs(std::fs::File::open(&head)?)?;
    w.fires("DotgraftVolumeFull", Some(("name", "a"))).await?;
    t.kube().patch("Dot", &t.namespace, "a", "", &json!({"spec": {"capacity": "128Mi"}})).await?;
    w.clears("DotgraftVolumeFull").await?;
    t.unmount(&head).await
}

/// A pod that the API server shows to the webhook, and a stranger who wants an agent's certificate.
async fn pods_and_certificates(w: &Watched) -> Result<()> {
    let t = &w.t;
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {generateName: p-, namespace: NAMESPACE}\nspec:\n  \
               containers: [{name: c, image: none}]\n  volumes: [{name: v, persistentVolumeClaim: {claimName: none}}]\n";
    let file = t.dir.join("pod.yaml");
    std::fs::write(&file, pod.replace("NAMESPACE", &t.namespace))?;
    // The controller manager makes a new namespace's ServiceAccount in its own time; a webhook that is slow once isn't waited for.
    eventually("the webhook to be shown a pod", PATIENCE, || async {
        t.kubectl(&["create", "-f", &file.to_string_lossy()]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(!w.ask("dotgraft_operator_webhook_requests_total > 0").await?.is_empty(), "it wasn't");
        Ok(())
    })
    .await?;
    let key = rcgen::KeyPair::generate()?;
    let request = STANDARD.encode(rcgen::CertificateParams::default().serialize_request(&key)?.pem()?);
    t.apply(&format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: a-stranger}}\nspec:\n  \
         signerName: dotgraft.dev/agent\n  usages: [client auth]\n  request: {request}\n"
    ))
    .await?;
    w.moves("dotgraft_operator_certificate_requests_total{result=\"denied\"} > 0").await
}

/// The only replica's agent is dead: what is committed meanwhile is on one node only, the replica lags, and runs fail.
async fn replica_away(w: &Watched) -> Result<()> {
    let t = &w.t;
    let kept = copied(t, "kept", json!({"placement": {"node": "n1", "replicas": 1}})).await?;
    copied(t, "failing", json!({})).await?;
    t.rig.kill9("n2")?;
    let commit = t.commit("kept-2", "kept").await?;
    let to_n2 = json!({"direction": "Push", "source": {"names": ["failing"]}, "target": {"node": "n2"}});
    let with = |more: Value| {
        let mut spec = to_n2.clone();
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        spec
    };
    t.commit("failing-2", "failing").await?;
    t.create("ReplicationJob", "cancelled", &to_n2).await?;
    t.create("ReplicationJob", "gives-up", &with(json!({"trigger": "0", "retry": {"maxAttempts": 1}}))).await?;
    eventually("the run to be under way", STEP, || async {
        let job = t.object("ReplicationJob", "cancelled").await?;
        ensure!(job.pointer("/status/startedAt").is_some(), "{}", job["status"]);
        Ok(())
    })
    .await?;
    t.kube().delete("ReplicationJob", &t.namespace, "cancelled").await?;
    let mut round = 0;
    eventually("DotgraftRunsFailing to fire", PATIENCE, || {
        round += 1;
        let trigger = round.to_string();
        async move {
            t.trigger("gives-up", &trigger).await?;
            tokio::time::sleep(Duration::from_millis(750)).await;
            w.is_firing("DotgraftRunsFailing", N1).await
        }
    })
    .await?;
    w.fires("DotgraftAgentDown", Some(("node", "n2"))).await?;
    w.fires("DotgraftReplicationLag", N1).await?;
    w.fires("DotgraftCommitAtRisk", Some(("copies", "one"))).await?;
    t.rig.restart("n2").await?;
    t.arrived(&kept, &commit, "n2", STEP).await?;
    for alert in ["DotgraftAgentDown", "DotgraftReplicationLag", "DotgraftCommitAtRisk", "DotgraftRunsFailing"] {
        w.clears(alert).await?;
    }
    w.moves("dotgraft_runs_total{result=\"cancelled\"} > 0").await
}

/// The objects of a Dot are lost while no operator runs.
async fn orphan(w: &Watched) -> Result<()> {
    let t = &w.t;
    let fs_id = t.dot("lost", "n1").await?;
    // Politely: it gives its Lease back, so that the next one leads at once.
    t.rig.processes.end("operator", Signal::TERM, ENDS)?;
    let replica = text(&t.replica(&fs_id, "n1").await?, "/metadata/name")?;
    for (kind, name) in [("Dot", "lost"), ("Filesystem", fs_id.as_str()), ("Replica", replica.as_str())] {
        t.kube().patch(kind, &t.namespace, name, "", &json!({"metadata": {"finalizers": null}})).await?;
        t.kube().delete(kind, &t.namespace, name).await?;
    }
    w.fires("DotgraftOrphans", N1).await?;
    w.fires("DotgraftNoLeader", None).await?;
    t.rig.restart("operator").await?;
    w.clears("DotgraftNoLeader").await?;
    let drop = ["drop", &fs_id, "--yes"];
    eventually("the orphan to be dropped", STEP, || dot(t, &drop)).await?;
    w.clears("DotgraftOrphans").await
}

/// A pod makes a subvolume in no quota group.
async fn stray(w: &Watched) -> Result<()> {
    let t = &w.t;
    let fs_id = t.dot("stray", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    make_stray(&head, "mine")?;
    w.moves("dotgraft_strays_total > 0").await?;
    t.unmount(&head).await
}

/// A volume goes, and one that was restored from it has its bytes still.
async fn left_behind(w: &Watched) -> Result<()> {
    let t = &w.t;
    let fs_id = t.dot_of("origin", &json!({"capacity": "64Mi", "placement": {"node": "n1"}, "deletionPolicy": "Cascade"})).await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("shared"), vec![1; 4 << 20])?;
    t.unmount(&head).await?;
    let commit = t.commit("origins", "origin").await?;
    t.dot_of("heir", &json!({"capacity": "64Mi", "origin": {"fsId": fs_id, "commit": commit}})).await?;
    for (kind, name) in [("Commit", "origins"), ("Dot", "origin")] {
        t.kube().delete(kind, &t.namespace, name).await?;
    }
    w.moves("dotgraft_pool_left_bytes > 0").await
}

/// A person promotes a copy and accepts the loss of what only the owner has.
async fn superseded(w: &Watched) -> Result<()> {
    let t = &w.t;
    let fs_id = copied(t, "left", json!({"fencing": "Manual"})).await?;
    t.create("DotOperation", "promote", &json!({"target": {"name": "left"}, "promote": {"node": "n2", "acceptLoss": true}})).await?;
    owned_by(t, "left", "n2").await?;
    w.fires("DotgraftCondition", Some(("condition", "Superseded"))).await?;
    dot(t, &["drop", &fs_id, "--node", "n1", "--yes"]).await?;
    w.clears("DotgraftCondition").await
}

/// A Dot is deleted while somebody has it mounted.
async fn stuck(w: &Watched) -> Result<()> {
    let t = &w.t;
    let fs_id = t.dot("mounted", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    t.kube().delete("Dot", &t.namespace, "mounted").await?;
    w.fires("DotgraftStuckDeletion", Some(("controller", "dot"))).await?;
    t.unmount(&head).await?;
    t.kube().gone("Dot", &t.namespace, "mounted", STEP).await?;
    w.clears("DotgraftStuckDeletion").await
}

/// So many want the same volume at once that some wait for its owner.
async fn crowd(w: &Watched) -> Result<()> {
    let t = &w.t;
    let (fs_id, local) = (t.dot("wanted", "n1").await?, t.local("n1")?);
    let one = |n: usize| {
        let (local, fs_id, target) = (local.clone(), fs_id.clone(), t.dir.join(format!("crowd{n}")));
        async move {
            loop {
                local.mount(&fs_id, &target, None).await?;
                local.unmount(&target).await?;
            }
        }
    };
    let all = futures::future::try_join_all((0..CROWD).map(one));
    tokio::select! {
        seen = w.moves("dotgraft_mailbox_depth > 0") => seen,
        ended = all => ended.map(|_: Vec<()>| ()),
    }
}

/// The disk of the state directory takes no writes: nothing is committed.
async fn journal(w: &Watched) -> Result<()> {
    let t = &w.t;
    t.dot("journaled", "n1").await?;
    let state = t.rig.node("n1")?.files.state.clone();
    let (database, log) = (state.join("journal.db"), state.join("journal.db-wal"));
    let failing = (Unwritable::new(&database)?, Unwritable::new(&log)?);
    t.create("Commit", "journaled", &json!({"source": {"kind": "Dot", "name": "journaled"}})).await?;
    w.fires("DotgraftJournalErrors", N1).await?;
    drop(failing);
    t.ready("Commit", "journaled").await?;
    w.clears("DotgraftJournalErrors").await
}

/// Nobody hears from the API server for a minute. A pod fills its node's pool meanwhile.
async fn api_away(w: &Watched) -> Result<()> {
    let t = &w.t;
    let head = filler(t, "n1").await?;
    t.rig.kill9("apiserver")?;
    fill(&head)?;
    for alert in ["DotgraftPoolFilling", "DotgraftPoolFull", "DotgraftStatusesBehind"] {
        w.fires(alert, N1).await?;
    }
    w.fires("DotgraftNoLeader", None).await?;
    w.fires("DotgraftApiSilent", N1).await?;
    std::fs::remove_file(head.join("fill"))?;
    t.rig.restart("apiserver").await?;
    for alert in ["DotgraftPoolFilling", "DotgraftPoolFull", "DotgraftStatusesBehind", "DotgraftNoLeader", "DotgraftApiSilent"] {
        w.clears(alert).await?;
    }
    t.unmount(&head).await?;
    t.kube().delete("Dot", &t.namespace, "filler").await?;
    t.kube().gone("Dot", &t.namespace, "filler", STEP).await
}
