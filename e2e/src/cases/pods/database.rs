//! A `StatefulSet` of three `PostgreSQL` databases on volumes of ours, under load: copied, expanded, and moved in every way there is.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::harness::test::text;
use crate::harness::{Case, Test};
use crate::rig::kube::condition_of;
use crate::rig::programs::http_get;
use crate::rig::wait::eventually;
use crate::steps::pods::postgres::{acknowledged, check, goes_on, newest};
use crate::steps::pods::timeline::Timeline;
use crate::steps::pods::{STEP, clear, fs_id, make_notes, node_of, notes, postgres, ready, took, uid};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "pods-database",
            "PostgreSQL under load: snapshot, restore, clone, expansion, drain, cordon, node death; nothing acknowledged is missing",
            database,
        )
        .kubelets()
        .within(STEP * 5),
    ]
}

/// The database under full load, and its claim.
const POD: &str = "db-0";
const CLAIM: &str = "data-db-0";

async fn database(t: Arc<Test>) -> Result<()> {
    let start = Instant::now();
    postgres::image(&t).await?;
    took("image imported", start);
    make_notes(&t)?;
    started(&t).await?;
    copies(&t).await?;
    grown(&t).await?;
    drained(&t).await?;
    cordoned(&t).await?;
    died(&t).await?;
    clear(&t, &["data-db-0", "data-db-1", "data-db-2", "restored", "cloned"]).await
}

/// Seconds that the operator has spent in a CSI method, and the agents in all of theirs.
async fn ours(t: &Test, method: &str) -> Result<(f64, f64)> {
    let sum = |text: &str, metric: &str| -> f64 {
        text.lines().filter_map(|l| l.strip_prefix(metric)?.split_whitespace().last()?.parse::<f64>().ok()).sum()
    };
    let operator = http_get(&t.rig.operator_http, "/metrics").await?.1;
    let operator = sum(&operator, &format!("dotgraft_operator_csi_seconds_sum{{method=\"{method}\"}}"));
    let mut agents = 0.0;
    for node in &t.rig.nodes {
        agents += sum(&http_get(&node.http, "/metrics").await?.1, "dotgraft_csi_call_seconds_sum");
    }
    Ok((operator, agents))
}

async fn started(t: &Test) -> Result<()> {
    let timeline = Timeline::start(t);
    let before = (ours(t, "CreateVolume").await?.0, ours(t, "ControllerPublishVolume").await?);
    postgres::stateful_set(t).await?;
    for i in 0..3 {
        ready(t, &format!("db-{i}"), "").await?;
    }
    let after = (ours(t, "CreateVolume").await?.0, ours(t, "ControllerPublishVolume").await?);
    let (mut bound, mut started) = (0.0f64, 0.0f64);
    for i in 0..3 {
        let (pvc, pod) = (format!("pvc/data-db-{i}"), format!("pod/db-{i}"));
        // It looks by itself, so it may see a moment later what we have seen.
        let seen = || async {
            anyhow::Ok((timeline.between((&pvc, "made"), (&pvc, "bound"))?, timeline.between((&pod, "scheduled"), (&pod, "started"))?))
        };
        let seen = eventually("the timeline to have seen all", STEP, seen).await?;
        (bound, started) = (bound.max(seen.0), started.max(seen.1));
    }
    println!(
        "        three PVCs made to bound: {bound:.2} s at most (CreateVolume {:.2} s each); scheduled to container started: {started:.2} s at \
         most (ControllerPublish {:.2} s, node calls {:.2} s each)",
        (after.0 - before.0) / 3.0,
        (after.1.0 - before.1.0) / 3.0,
        (after.1.1 - before.1.1) / 3.0
    );
    goes_on(t, POD, 200).await?;
    // A copy for the day on which the node dies.
    t.kube().patch("Dot", &t.namespace, CLAIM, "", &json!({"spec": {"placement": {"replicas": 1}}})).await
}

async fn claim_from(t: &Test, name: &str, source: serde_json::Value) -> Result<()> {
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "NAMESPACE"},
        "spec": {
            "storageClassName": "dotgraft", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "256Mi"}},
            "dataSource": source,
        },
    });
    t.apply(&claim.to_string()).await
}

/// A snapshot restored and a claim cloned, both under load: each is a sound database with all that was acknowledged before.
async fn copies(t: &Test) -> Result<()> {
    let class = format!("{}-class", t.namespace);
    let driver = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": {"name": class},
        "driver": "csi.dotgraft.dev", "deletionPolicy": "Delete",
    });
    let snapshot = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "s", "namespace": "NAMESPACE"},
        "spec": {"volumeSnapshotClassName": class, "source": {"persistentVolumeClaimName": CLAIM}},
    });
    t.apply(&driver.to_string()).await?;
    let acked = acknowledged(t, POD)?;
    let start = Instant::now();
    t.apply(&snapshot.to_string()).await?;
    t.kubectl(&["wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot", "s", "--timeout=180s"]).await?;
    took("VolumeSnapshot under load, to readyToUse", start);
    let at_most = newest(t, POD).await?;
    let (start, cloned_from) = (Instant::now(), acknowledged(t, POD)?);
    claim_from(t, "restored", json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"})).await?;
    claim_from(t, "cloned", json!({"kind": "PersistentVolumeClaim", "name": CLAIM})).await?;
    for name in ["restored", "cloned"] {
        postgres::pod(t, name, name).await?;
    }
    for (name, at_least) in [("restored", acked), ("cloned", cloned_from)] {
        let node = ready(t, name, "").await?;
        let found = check(t, name, at_least).await?;
        println!("        {name}: on {node} {found} rows, {at_least} had been acknowledged");
        ensure!(name != "restored" || found <= at_most, "the snapshot holds {found}; when it was ready the database had {at_most}");
    }
    took("snapshot and clone, to two databases that have recovered", start);
    t.kubectl(&["delete", "pod", "restored", "cloned", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "volumesnapshot", "s", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "volumesnapshotclass", &class]).await?;
    Ok(())
}

async fn grown(t: &Test) -> Result<()> {
    let start = Instant::now();
    t.kubectl(&["patch", "pvc", CLAIM, "-p", r#"{"spec":{"resources":{"requests":{"storage":"384Mi"}}}}"#]).await?;
    eventually("the PVC to have grown", STEP, || async {
        let size = t.kubectl(&["get", "pvc", CLAIM, "-o", "jsonpath={.status.capacity.storage}"]).await?;
        ensure!(size == "384Mi", "it has {size}");
        Ok(())
    })
    .await?;
    took("expanded under load", start);
    goes_on(t, POD, 50).await
}

/// The database is back on another node with all that was acknowledged, and goes on. Returns its node.
async fn arrived(t: &Test, how: &str, (old, from): (&str, &str), start: Instant) -> Result<String> {
    let node = ready(t, POD, old).await?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(node != from, "it is on {from} again");
    let acked = acknowledged(t, POD)?;
    check(t, POD, acked).await?;
    let migration = eventually("the move to be told of", STEP, || async {
        let migration = t.object("Dot", CLAIM).await?["status"]["migration"].clone();
        ensure!(migration["to"] == *node && migration["phase"] == "Done", "the last move was {migration}");
        Ok(migration)
    })
    .await?;
    let (frozen, sent) = (&migration["frozenMs"], migration["bytes"].as_u64().unwrap_or_default() >> 10);
    println!("        {how}: {from} → {node}, to a database that answers: {seconds:.1} s; frozen {frozen} ms, {sent} KiB sent");
    goes_on(t, POD, 50).await?;
    Ok(node)
}

async fn drained(t: &Test) -> Result<()> {
    let (old, from) = (uid(t, POD).await?, node_of(t, POD).await?);
    let start = Instant::now();
    t.kube().kubectl(&["drain", &from, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s"]).await?;
    arrived(t, "kubectl drain", (&old, &from), start).await?;
    t.kube().kubectl(&["uncordon", &from]).await?;
    Ok(())
}

async fn cordoned(t: &Test) -> Result<()> {
    let (old, from) = (uid(t, POD).await?, node_of(t, POD).await?);
    t.kube().kubectl(&["cordon", &from]).await?;
    let start = Instant::now();
    t.kubectl(&["delete", "pod", POD, "--wait=false"]).await?;
    arrived(t, "cordon and delete", (&old, &from), start).await?;
    t.kube().kubectl(&["uncordon", &from]).await?;
    Ok(())
}

/// Waits until a node other than the owner has a commit; returns that node.
async fn copied(t: &Test, id: &str, commit: &str, owner: &str) -> Result<String> {
    eventually("the commit to be on another node", STEP, || async {
        let replicas = t.kube().list("Replica", "").await?;
        let has = |r: &&serde_json::Value| r["spec"]["fsId"] == *id && r["spec"]["node"] != *owner && r["status"]["head"] == *commit;
        let copy = replicas.iter().find(has).context("no Replica says so")?;
        text(copy, "/spec/node")
    })
    .await
}

/// The machine loses its power for good, as somebody says by the taint. What the copy has is kept; what only the dead node has is
/// gone from the volume, and still there when the node is back.
async fn died(t: &Test) -> Result<()> {
    let (old, from, id) = (uid(t, POD).await?, node_of(t, POD).await?, fs_id(t, CLAIM).await?);
    let safe = acknowledged(t, POD)?;
    let commit = t.commit("last", CLAIM).await?;
    let copy = copied(t, &id, &commit, &from).await?;
    goes_on(t, POD, 50).await?;
    t.rig.power_off(&from)?;
    let (start, acked) = (Instant::now(), acknowledged(t, POD)?);
    t.rig.node_lost(&from, STEP).await?;
    took("power off to NotReady", start);
    t.kube().kubectl(&["taint", "node", &from, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"]).await?;
    let node = ready(t, POD, &old).await?;
    let seconds = start.elapsed().as_secs_f64();
    let found = check(t, POD, safe).await?;
    println!(
        "        node death: {from} → {node} (the copy was on {copy}): {seconds:.1} s; {found} rows, the commit had {safe}, {acked} were acknowledged"
    );
    std::fs::remove_file(notes(t, &from, POD)?)?;
    goes_on(t, POD, 50).await?;
    t.rig.boot(&from).await?;
    t.rig.ready(STEP).await?;
    t.kube().kubectl(&["taint", "node", &from, "node.kubernetes.io/out-of-service-"]).await?;
    eventually("the dead node's copy to be kept, and closed", STEP, || async {
        let replica = t.replica(&id, &from).await?;
        let said = condition_of(&replica, "Superseded").is_some_and(|c| c["status"] == "True");
        ensure!(said, "{}", crate::rig::kube::conditions(&replica));
        Ok(())
    })
    .await?;
    goes_on(t, POD, 50).await
}
