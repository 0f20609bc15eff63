//! Volumes as users have them: PVCs of the `StorageClass` in pods, through the real kubelet, scheduler and sidecars.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::harness::Case;
use crate::harness::test::Test;
use crate::rig::wait::eventually;
use crate::steps::owner::owned_by;
use crate::steps::pod::{claim, claim_from, pod, registered, says, started, stop};

/// Longest that one step with a pod may take.
const STEP: Duration = Duration::from_secs(180);

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("csi-registered", "every kubelet knows the driver, with topology and limit; capacity is published", registered)
            .kubelets(),
        Case::new("csi-pvc", "a pod writes into its PVC and goes; another pod on the node reads it; the PVC is a Dot", same_node)
            .kubelets(),
        Case::new("csi-move", "a pod rescheduled to another node finds its data there, and writes on", moved).kubelets(),
        Case::new("csi-copies", "a snapshot is restored, a PVC cloned, and a PVC grows while a pod uses it", copies).kubelets(),
        Case::new("csi-killed", "agent and kubelet killed while a pod writes: no error, the same mount, and new pods start", killed)
            .kubelets(),
        Case::new("csi-reboot", "a node without power comes back, and a pod there finds what it had written", reboot).kubelets(),
    ]
}

async fn read(t: &Test, pod: &str) -> Result<String> {
    Ok(t.kubectl(&["exec", pod, "--", "cat", "/data/word"]).await?.trim().to_owned())
}

async fn same_node(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    pod(&t, "first", "data", "n2", "echo written > /data/word; sync; sleep 1000").await?;
    started(&t, "first").await?;
    says(&t, "first", "/data/word", "written").await?;
    let dot = t.ready("Dot", "data").await?;
    ensure!(dot.pointer("/status/owner").and_then(Value::as_str) == Some("n2"), "the Dot is on the pod's node: {}", dot["status"]);
    stop(&t, "first").await?;
    pod(&t, "second", "data", "n2", "sleep 1000").await?;
    started(&t, "second").await?;
    ensure!(read(&t, "second").await? == "written", "what the first pod wrote");
    stop(&t, "second").await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    t.kube().gone("Dot", &t.namespace, "data", STEP).await
}

async fn moved(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    pod(&t, "first", "data", "n1", "echo written > /data/word; sync; sleep 1000").await?;
    started(&t, "first").await?;
    says(&t, "first", "/data/word", "written").await?;
    for (name, node) in [("second", "n3"), ("third", "n1")] {
        let before = if name == "second" { "written" } else { "second" };
        t.kubectl(&["delete", "pod", "--all", "--timeout=180s"]).await?;
        pod(&t, name, "data", node, &format!("cp /data/word /data/before; echo {name} > /data/word; sync; sleep 1000")).await?;
        started(&t, name).await?;
        says(&t, name, "/data/word", name).await?;
        says(&t, name, "/data/before", before).await?;
        owned_by(&t, "data", node).await?;
    }
    t.kubectl(&["delete", "pod", "--all", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    t.kube().gone("Dot", &t.namespace, "data", STEP).await
}

async fn copies(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    pod(&t, "first", "data", "n1", "echo written > /data/word; sync; sleep 1000").await?;
    started(&t, "first").await?;
    says(&t, "first", "/data/word", "written").await?;
    let class = format!("{}-class", t.namespace);
    t.apply(&format!(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {{name: {class}}}\ndriver: csi.dotgraft.dev\n\
         deletionPolicy: Delete\n---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: s, namespace: NAMESPACE}}\n\
         spec: {{volumeSnapshotClassName: {class}, source: {{persistentVolumeClaimName: data}}}}\n"
    ))
    .await?;
    t.kubectl(&["wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot", "s", "--timeout=180s"]).await?;
    t.kubectl(&["exec", "first", "--", "sh", "-c", "echo later > /data/word; sync"]).await?;
    claim_from(&t, "restored", "apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: s").await?;
    claim_from(&t, "cloned", "kind: PersistentVolumeClaim, name: data").await?;
    for (name, word) in [("restored", "written"), ("cloned", "later")] {
        pod(&t, name, name, "n1", "sleep 1000").await?;
        started(&t, name).await?;
        ensure!(read(&t, name).await? == word, "what the {name} PVC holds");
    }
    t.kubectl(&["patch", "pvc", "data", "-p", r#"{"spec":{"resources":{"requests":{"storage":"512Mi"}}}}"#]).await?;
    eventually("the PVC to have grown", STEP, || async {
        let size = t.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.status.capacity.storage}"]).await?;
        ensure!(size == "512Mi", "it has {size}");
        Ok(())
    })
    .await?;
    t.kubectl(&["exec", "first", "--", "dd", "if=/dev/urandom", "of=/data/big", "bs=1M", "count=300"]).await?;
    t.kubectl(&["delete", "pod", "--all", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "volumesnapshot", "s", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "pvc", "--all", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "volumesnapshotclass", &class]).await?;
    for name in ["data", "restored", "cloned"] {
        t.kube().gone("Dot", &t.namespace, name, STEP).await?;
    }
    Ok(())
}

async fn killed(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    claim(&t, "other").await?;
    let write = "while echo line >> /data/log && sync; do usleep 10000; done; echo failed; sleep 1000";
    pod(&t, "p", "data", "n2", write).await?;
    started(&t, "p").await?;
    let lines = async || anyhow::Ok(t.kubectl(&["exec", "p", "--", "sh", "-c", "wc -l < /data/log"]).await?.trim().parse::<u64>()?);
    let mount = ["exec", "p", "--", "sh", "-c", "grep \" /data \" /proc/self/mountinfo"];
    let before = t.kubectl(&mount).await?;
    for program in ["n2", "n2-kubelet"] {
        t.rig.kill9(program)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        t.rig.start(program)?;
        t.rig.ready(STEP).await?;
        let now = eventually("exec to work again", STEP, &lines).await?;
        eventually("the pod to write on", STEP, || async {
            let later = lines().await?;
            ensure!(later > now, "{later} lines");
            Ok(())
        })
        .await?;
    }
    ensure!(t.kubectl(&mount).await? == before, "the mount is another one");
    ensure!(t.kubectl(&["logs", "p"]).await?.trim().is_empty(), "a write failed");
    pod(&t, "second", "other", "n2", "sleep 1000").await?;
    started(&t, "second").await?;
    t.kubectl(&["delete", "pod", "--all", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "pvc", "--all", "--timeout=180s"]).await?;
    t.kube().gone("Dot", &t.namespace, "data", STEP).await
}

async fn reboot(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    pod(&t, "p", "data", "n3", "[ -e /data/word ] || echo written > /data/word; sync; sleep 1000").await?;
    started(&t, "p").await?;
    says(&t, "p", "/data/word", "written").await?;
    t.rig.power_off("n3")?;
    t.rig.node_lost("n3", STEP).await?;
    let start = Instant::now();
    t.rig.boot("n3").await?;
    t.rig.ready(STEP).await?;
    eventually("the pod to have started again", STEP, || async {
        let starts = t.kubectl(&["get", "pod", "p", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]).await?;
        ensure!(starts.trim() != "0", "it has not been started again");
        ensure!(read(&t, "p").await? == "written", "not what it had written");
        Ok(())
    })
    .await?;
    println!("        boot to the pod with its data: {:.1} s", start.elapsed().as_secs_f64());
    stop(&t, "p").await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    t.kube().gone("Dot", &t.namespace, "data", STEP).await
}
