//! What an administrator keeps of a tenant's, and gives to another: contents of snapshots, `PersistentVolumes` with `Retain`, bound again elsewhere.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps;
use crate::steps::left::nothing_left;
use crate::steps::pod::{claim_from, pod, says, started, stop};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "csi-retained",
            "a PV with Retain keeps its data when its namespace goes; nobody inherits it, not by all the same names, until an administrator binds the \
             PV again: then its Dot is in that namespace, twice, and the namespaces of before go",
            retained,
        )
        .kubelets(),
        Case::new(
            "csi-snapshot-given",
            "a snapshot is restored in another namespace by a content that an administrator made; under Retain also once its own namespace is gone, \
             until that says Delete",
            given,
        )
        .kubelets(),
    ]
}

/// A PVC `data` of a class; of that very volume, if one is named.
async fn claim(t: &Test, class: &str, volume: &str) -> Result<()> {
    t.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data, namespace: NAMESPACE}}\nspec:\n  \
         storageClassName: {class}\n  accessModes: [ReadWriteOnce]\n  volumeName: \"{volume}\"\n  resources: {{requests: {{storage: 64Mi}}}}\n"
    ))
    .await
}

async fn json(t: &Test, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&t.kubectl(&[&["get"], args, &["-o", "json"]].concat()).await?)?)
}

/// The step of the runbook: the PV is for that PVC. Its UID, which the binder puts in, too, spares it ten seconds.
async fn give(t: &Test, volume: &str, uid: Option<String>) -> Result<()> {
    let to = json!({"spec": {"claimRef": {"namespace": t.namespace, "name": "data", "uid": uid, "resourceVersion": null}}}).to_string();
    t.kubectl(&["patch", "pv", volume, "--type=merge", "-p", &to]).await?;
    Ok(())
}

async fn retained(t: Arc<Test>) -> Result<()> {
    let class = format!("{}-retain", t.namespace);
    t.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {class}}}\nprovisioner: csi.dotgraft.dev\n\
         volumeBindingMode: WaitForFirstConsumer\nreclaimPolicy: Retain\n"
    ))
    .await?;
    let first = t.beside("a").await?;
    claim(&first, &class, "").await?;
    pod(&first, "p", "data", "n1", "echo of the first > /data/word; sync; sleep 1000").await?;
    started(&first, "p").await?;
    says(&first, "p", "/data/word", "of the first").await?;
    let volume = first.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}"]).await?;
    let handle = json(&t, &["pv", &volume]).await?;
    let id = handle.pointer("/spec/csi/volumeHandle").and_then(Value::as_str).context("no handle")?.to_owned();
    stop(&first, "p").await?;
    first.leave().await?;
    let kept = t.kube().get("Filesystem", "", &id).await?.context("the data went with the namespace")?;
    ensure!(kept["status"]["phase"] == "Released", "{}", kept["status"]);
    let phase = t.kubectl(&["get", "pv", &volume, "-o", "jsonpath={.status.phase}"]).await?;
    ensure!(phase == "Released", "the PV is {phase}");

    // The same names are another tenant.
    let anew = t.beside("a").await?;
    claim(&anew, &class, "").await?;
    pod(&anew, "p", "data", "n1", "ls -A /data > /tmp/there; sleep 1000").await?;
    started(&anew, "p").await?;
    says(&anew, "p", "/tmp/there", "").await?;
    let other = anew.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}"]).await?;
    ensure!(other != volume, "it has inherited the volume");

    let second = t.beside("b").await?;
    claim(&second, &class, &volume).await?;
    give(&second, &volume, None).await?;
    pod(&second, "p", "data", "n2", "cat /data/word > /data/before; echo of the second > /data/word; sync; sleep 1000").await?;
    started(&second, "p").await?;
    says(&second, "p", "/data/before", "of the first").await?;
    let dot = second.ready("Dot", "data").await?;
    ensure!(dot["status"]["fsId"] == *id, "its Dot is there, as of any PVC: {}", dot["status"]);

    // Again, while the Dot of the one before is still there.
    stop(&second, "p").await?;
    second.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    let third = t.beside("c").await?;
    claim(&third, &class, &volume).await?;
    let uid = third.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.metadata.uid}"]).await?;
    give(&third, &volume, Some(uid)).await?;
    pod(&third, "p", "data", "n2", "sleep 1000").await?;
    started(&third, "p").await?;
    says(&third, "p", "/data/word", "of the second").await?;
    third.ready("Dot", "data").await?;
    t.kube().gone("Dot", &second.namespace, "data", STEP).await?;
    second.leave().await?;
    third.kubectl(&["exec", "p", "--", "sh", "-c", "echo more > /data/word; sync"]).await?;

    // What is to go goes: both PVs say so now.
    for pv in [&volume, &other] {
        t.kubectl(&["patch", "pv", pv, "-p", r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#]).await?;
    }
    tokio::try_join!(stop(&third, "p"), stop(&anew, "p"))?;
    for of in [&third, &anew] {
        of.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
        of.drop_namespace().await?;
    }
    eventually("both PVs to be gone", STEP * 2, || async {
        let left = t.kubectl(&["get", "pv", "-o", "name"]).await?;
        ensure!(!left.contains(&volume) && !left.contains(&other), "{left}");
        Ok(())
    })
    .await?;
    t.kubectl(&["delete", "storageclass", &class]).await?;
    nothing_left(&t, &id).await
}

const SNAPSHOT: &str = "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: s, namespace: NAMESPACE}\nspec:\n";

/// Waits until `VolumeSnapshot` `s` can be restored; its content.
async fn snapshot(t: &Test) -> Result<String> {
    t.kubectl(&["wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot", "s", "--timeout=180s"]).await?;
    t.kubectl(&["get", "volumesnapshot", "s", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}"]).await
}

/// What an administrator, or Velero, does to give a snapshot to a namespace; a pod there that has restored it.
async fn restored(t: &Test, handle: &str) -> Result<()> {
    t.apply(&format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\nmetadata: {{name: NAMESPACE}}\nspec:\n  driver: csi.dotgraft.dev\n  \
         deletionPolicy: Retain\n  source: {{snapshotHandle: {handle}}}\n  volumeSnapshotRef: {{name: s, namespace: NAMESPACE}}\n---\n\
         {SNAPSHOT}  source: {{volumeSnapshotContentName: NAMESPACE}}\n"
    ))
    .await?;
    snapshot(t).await?;
    claim_from(t, "data", "apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: s").await?;
    pod(t, "p", "data", "n1", "sleep 1000").await?;
    started(t, "p").await?;
    says(t, "p", "/data/word", "of the first").await
}

async fn given(t: Arc<Test>) -> Result<()> {
    let class = format!("{}-retain", t.namespace);
    t.apply(&format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: {class}}}\ndriver: csi.dotgraft.dev\n\
         deletionPolicy: Retain\n"
    ))
    .await?;
    let first = t.beside("a").await?;
    steps::pod::claim(&first, "data").await?;
    pod(&first, "p", "data", "n1", "echo of the first > /data/word; sync; sleep 1000").await?;
    started(&first, "p").await?;
    says(&first, "p", "/data/word", "of the first").await?;
    first.apply(&format!("{SNAPSHOT}  volumeSnapshotClassName: {class}\n  source: {{persistentVolumeClaimName: data}}\n")).await?;
    let content = snapshot(&first).await?;
    let handle = t.kubectl(&["get", "volumesnapshotcontent", &content, "-o", "jsonpath={.status.snapshotHandle}"]).await?;
    let (id, commit) = handle.split_once('@').context("no snapshot's id")?;

    // Without that content it is nobody else's.
    let second = t.beside("b").await?;
    second.create("Dot", "thief", &json!({"capacity": "256Mi", "origin": {"fsId": id, "commit": commit}})).await?;
    second.condition("Dot", "thief", "Ready", "False", Some("SourceNotFound")).await?;
    t.kube().delete("Dot", &second.namespace, "thief").await?;
    restored(&second, &handle).await?;

    stop(&first, "p").await?;
    first.leave().await?;
    let kept = t.kube().get("Filesystem", "", id).await?.context("the snapshot went with its namespace")?;
    ensure!(kept["status"]["phase"] == "Headless", "only the snapshot is left: {}", kept["status"]);
    let third = t.beside("c").await?;
    restored(&third, &handle).await?;

    // What is to go goes, last the snapshot, as its own content says so now.
    for of in [&second, &third] {
        stop(of, "p").await?;
        of.kubectl(&["delete", "pvc,volumesnapshot", "--all", "--timeout=180s"]).await?;
        t.kubectl(&["delete", "volumesnapshotcontent", &of.namespace, "--timeout=180s"]).await?;
        t.kube().gone("Dot", &of.namespace, "data", STEP).await?;
        of.drop_namespace().await?;
    }
    ensure!(t.kube().get("Filesystem", "", id).await?.is_some(), "its own content keeps it");
    t.kubectl(&["patch", "volumesnapshotcontent", &content, "--type=merge", "-p", r#"{"spec":{"deletionPolicy":"Delete"}}"#]).await?;
    t.kubectl(&["delete", "volumesnapshotcontent", &content, "--timeout=180s"]).await?;
    t.kubectl(&["delete", "volumesnapshotclass", &class]).await?;
    nothing_left(&t, id).await
}
