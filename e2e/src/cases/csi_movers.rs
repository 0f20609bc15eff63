//! What backup programs do, by hand and with the real sidecars and kubelets, as their own programs can't be had here: Velero's data mover (a snapshot that
//! is given to another namespace by a static content, a `ReadOnlyMany` PVC of it, its order of deletion) and that of `VolSync` (one pod with the
//! volumes of two nodes). And restores that nobody waits for any more.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::left::nothing_left;
use crate::steps::pod::{claim, claim_from, filesystem, pod, registered, says, started, stop};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "csi-movers",
            "a data mover reads a snapshot in another namespace without a copy and cleans up; one pod has the volumes of two nodes",
            movers,
        )
        .kubelets(),
        Case::new(
            "csi-restore-given-up",
            "restores that wait, for a pod and for room, go with their claim and their namespace, and so does the snapshot",
            given_up,
        )
        .kubelets(),
    ]
}

const SNAPSHOT: &str = "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: s, namespace: NAMESPACE}\nspec:\n";
const OF_SNAPSHOT: &str = "apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: s";

async fn field(t: &Test, what: &[&str], path: &str) -> Result<String> {
    t.kubectl(&[&["get"], what, &["-o", &format!("jsonpath={{{path}}}")]].concat()).await
}

/// `VolumeSnapshot` `s`, ready; its content.
async fn snapshot(t: &Test, source: &str) -> Result<String> {
    let class = format!("{}-shot", t.namespace);
    let source = if source.contains("volumeSnapshotContentName") {
        source.to_owned()
    } else {
        format!("volumeSnapshotClassName: {class}\n  {source}")
    };
    t.apply(&format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: {class}}}\ndriver: csi.dotgraft.dev\n\
         deletionPolicy: Delete\n---\n{SNAPSHOT}  {source}\n"
    ))
    .await?;
    t.kubectl(&["wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot", "s", "--timeout=180s"]).await?;
    field(t, &["volumesnapshot", "s"], ".status.boundVolumeSnapshotContentName").await
}

/// A pod that has these claims at `/data/<claim>`.
async fn mover(t: &Test, claims: &[&str], read_only: bool) -> Result<()> {
    let volume = |c: &&str| json!({"name": c, "persistentVolumeClaim": {"claimName": c, "readOnly": read_only}});
    let mount = |c: &&str| json!({"name": c, "mountPath": format!("/data/{c}"), "readOnly": read_only});
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mover", "namespace": "NAMESPACE"}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "c", "image": "busybox:1", "imagePullPolicy": "Never", "command": ["sleep", "1000"],
            "volumeMounts": claims.iter().map(mount).collect::<Vec<_>>(),
        }],
        "volumes": claims.iter().map(volume).collect::<Vec<_>>(),
    }});
    let object = object.to_string();
    eventually("the pod to be taken", STEP, || t.apply(&object)).await?;
    started(t, "mover").await
}

async fn filesystems(t: &Test) -> Result<usize> {
    let of_it = |f: &Value| f["spec"]["claimRef"]["namespace"].as_str().is_some_and(|n| n.starts_with(&t.namespace));
    Ok(t.kube().names("Filesystem", "", of_it).await?.len())
}

async fn movers(t: Arc<Test>) -> Result<()> {
    registered(t.clone()).await?;
    let source = t.beside("a").await?;
    for (name, node) in [("one", "n1"), ("two", "n2")] {
        claim(&source, name).await?;
        pod(&source, name, name, node, &format!("echo of {name} > /data/word; sync; sleep 1000")).await?;
    }
    for name in ["one", "two"] {
        started(&source, name).await?;
        says(&source, name, "/data/word", &format!("of {name}")).await?;
    }

    // Velero: what it snapshots it gives to its own namespace, and takes away where it was.
    let content = snapshot(&source, "source: {persistentVolumeClaimName: one}").await?;
    let handle = field(&t, &["volumesnapshotcontent", &content], ".status.snapshotHandle").await?;
    t.kubectl(&["patch", "volumesnapshotcontent", &content, "--type=merge", "-p", r#"{"spec":{"deletionPolicy":"Retain"}}"#]).await?;
    let velero = t.beside("b").await?;
    let own = &velero.namespace;
    velero
        .apply(&format!(
            "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\nmetadata: {{name: {own}}}\nspec:\n  driver: csi.dotgraft.dev\n  \
             deletionPolicy: Delete\n  source: {{snapshotHandle: {handle}}}\n  volumeSnapshotRef: {{name: s, namespace: {own}}}\n"
        ))
        .await?;
    source.kubectl(&["delete", "volumesnapshot", "s", "--timeout=60s"]).await?;
    t.kubectl(&["delete", "volumesnapshotcontent", &content, "--timeout=60s"]).await?;
    source.kubectl(&["exec", "one", "--", "sh", "-c", "echo later > /data/word; sync"]).await?;
    snapshot(&velero, &format!("source: {{volumeSnapshotContentName: {own}}}")).await?;
    velero
        .apply(&format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: backup, namespace: NAMESPACE}}\nspec:\n  storageClassName: dotgraft\n  \
             accessModes: [ReadOnlyMany]\n  resources: {{requests: {{storage: 256Mi}}}}\n  dataSource: {{{OF_SNAPSHOT}}}\n"
        ))
        .await?;
    let before = filesystems(&t).await?;
    mover(&velero, &["backup"], true).await?;
    says(&velero, "mover", "/data/backup/word", "of one").await?;
    ensure!(filesystems(&t).await? == before && before == 2, "it was copied: {} Filesystems, {before} before", filesystems(&t).await?);
    // Its order: pod, claim, snapshot; nothing waits for another.
    velero.kubectl(&["delete", "pod", "mover", "--wait=false"]).await?;
    velero.kubectl(&["delete", "pvc", "backup", "--wait=false"]).await?;
    velero.kubectl(&["delete", "volumesnapshot", "s", "--timeout=180s"]).await?;
    t.kubectl(&["wait", "--for=delete", &format!("volumesnapshotcontent/{own}"), "--timeout=180s"]).await?;
    eventually("the snapshot to be gone with what was made of it", STEP, || async {
        let commits = t.kube().names("Commit", &source.namespace, |_| true).await?;
        let claims = velero.kubectl(&["get", "pvc", "-o", "name"]).await?;
        ensure!(commits.is_empty() && claims.is_empty(), "{commits:?} {claims}");
        Ok(())
    })
    .await?;
    velero.leave().await?;

    // VolSync's mover: two volumes, each on a node of its own, and one pod.
    tokio::try_join!(stop(&source, "one"), stop(&source, "two"))?;
    let ids = [filesystem(&source, "one").await?, filesystem(&source, "two").await?];
    mover(&source, &["one", "two"], false).await?;
    says(&source, "mover", "/data/one/word", "later").await?;
    says(&source, "mover", "/data/two/word", "of two").await?;
    stop(&source, "mover").await?;
    source.leave().await?;
    t.kubectl(&["delete", "volumesnapshotclass", &format!("{}-shot", source.namespace), &format!("{own}-shot")]).await?;
    for id in &ids {
        nothing_left(&t, id).await?;
    }
    Ok(())
}

async fn given_up(t: Arc<Test>) -> Result<()> {
    registered(t.clone()).await?;
    let class = format!("{}-now", t.namespace);
    t.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {class}}}\nprovisioner: csi.dotgraft.dev\n\
         volumeBindingMode: Immediate\n"
    ))
    .await?;
    let of = t.beside("a").await?;
    t.kubectl(&["annotate", "namespace", &of.namespace, "dotgraft.dev/capacity-limit=768Mi"]).await?;
    claim(&of, "data").await?;
    pod(&of, "p", "data", "n1", "echo word > /data/word; sync; sleep 1000").await?;
    started(&of, "p").await?;
    let id = filesystem(&of, "data").await?;
    snapshot(&of, "source: {persistentVolumeClaimName: data}").await?;
    // One waits for a pod, the others for room that the namespace hasn't.
    claim_from(&of, "unscheduled", OF_SNAPSHOT).await?;
    for name in ["over", "over-too"] {
        of.apply(&format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  storageClassName: {class}\n  \
             accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 256Mi}}}}\n  dataSource: {{{OF_SNAPSHOT}}}\n"
        ))
        .await?;
        of.condition("Dot", name, "CapacityLimit", "True", None).await?;
    }
    of.kubectl(&["delete", "pvc", "over", "--wait=false"]).await?;
    of.kubectl(&["delete", "volumesnapshot", "s", "--wait=false"]).await?;
    of.leave().await.context("the namespace doesn't go")?;
    nothing_left(&t, &id).await?;
    let left = t.kube().kubectl(&["get", "volumesnapshotcontent,pv", "-o", "json"]).await?;
    ensure!(!left.contains(&of.namespace), "{left}");
    t.kubectl(&["delete", "storageclass", &class]).await?;
    t.kubectl(&["delete", "volumesnapshotclass", &format!("{}-shot", of.namespace)]).await?;
    Ok(())
}
