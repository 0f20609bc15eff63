//! Real pods with volumes: what is noted outside the volume, and what is left of them.

pub mod postgres;
pub mod timeline;
pub mod writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::json;

use super::left::left_of;
use crate::harness::Test;
use crate::harness::test::text;
use crate::rig::wait::{eventually, eventually_quiet};

/// Longest that one step with a pod may take.
pub const STEP: Duration = Duration::from_secs(180);

/// A line of the case's output: what took how long.
pub fn took(what: &str, since: Instant) {
    println!("        {what}: {:.1} s", since.elapsed().as_secs_f64());
}

/// The file in which the pod `pod` notes on `node` what was acknowledged; in the pod it is `/notes/<namespace>-<pod>`, and
/// `/notes` the node's `/var/tmp/notes`, which outlives the node's power.
pub fn notes(t: &Test, node: &str, pod: &str) -> Result<PathBuf> {
    Ok(t.rig.machine(node)?.place.dir.join("var/tmp/notes").join(format!("{}-{pod}", t.namespace)))
}

/// Makes the directory of notes on every node, for pods of any user.
pub fn make_notes(t: &Test) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for machine in &t.rig.machines {
        let dir = machine.place.dir.join("var/tmp/notes");
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777))?;
    }
    Ok(())
}

/// The pods of the test.
pub fn pods(t: &Test) -> Api<Pod> {
    Api::namespaced(t.kube().client(), &t.namespace)
}

/// The uid of a pod.
pub async fn uid(t: &Test, name: &str) -> Result<String> {
    pods(t).get(name).await?.metadata.uid.context("a pod without uid")
}

/// The node of a pod.
pub async fn node_of(t: &Test, name: &str) -> Result<String> {
    t.kubectl(&["get", "pod", name, "-o", "jsonpath={.spec.nodeName}"]).await
}

/// Waits until a pod of that name, other than `old`, is ready; returns its node.
pub async fn ready(t: &Test, name: &str, old: &str) -> Result<String> {
    let what = format!("{name} to be ready");
    let ready = eventually_quiet(&what, STEP, || async {
        let pod = pods(t).get(name).await?;
        ensure!(pod.metadata.uid.as_deref() != Some(old), "the old pod is still there");
        let node = pod.spec.and_then(|s| s.node_name).context("it has no node")?;
        let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        ensure!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"), "it is on {node}, and not ready");
        Ok(node)
    });
    match ready.await {
        Ok(node) => Ok(node),
        Err(e) => {
            let events = t.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).await?;
            Err(e.context(events))
        }
    }
}

/// A PVC of the shipped `StorageClass`.
pub async fn claim(t: &Test, name: &str, size: &str) -> Result<()> {
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "NAMESPACE"},
        "spec": {"storageClassName": "dotgraft", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    });
    t.apply(&claim.to_string()).await
}

/// The Filesystem behind a claim.
pub async fn fs_id(t: &Test, claim: &str) -> Result<String> {
    text(&t.object("Dot", claim).await?, "/status/fsId")
}

/// Deletes what a case made by `kubectl`, and waits until no node has anything of these claims: no object, no subvolume, no mount.
pub async fn clear(t: &Test, claims: &[&str]) -> Result<()> {
    let start = Instant::now();
    let mut all = Vec::new();
    for claim in claims {
        all.push(fs_id(t, claim).await?);
    }
    let kinds = "statefulset,pod,volumesnapshot,pvc";
    t.kubectl(&["delete", kinds, "--all", "--timeout=180s"]).await?;
    for id in &all {
        nothing(t, id).await?;
    }
    took("all deleted, nothing left", start);
    Ok(())
}

/// Waits until nothing of a Filesystem is anywhere: no object, no subvolume, no mount, no directory of a kubelet.
pub async fn nothing(t: &Test, id: &str) -> Result<()> {
    eventually(&format!("nothing to be left of {id}"), STEP, || async {
        left_of(t, id).await?;
        used(t, id)
    })
    .await
}

/// Waits until no node uses a Filesystem: no mount, no directory of a kubelet.
pub async fn left(t: &Test, id: &str) -> Result<()> {
    eventually(&format!("no node to use {id}"), STEP, || async { used(t, id) }).await
}

/// An error if a node's first process sees a mount of the Filesystem, or its kubelet has a directory of a volume or of one of the
/// test's pods.
pub fn used(t: &Test, id: &str) -> Result<()> {
    for machine in t.rig.machines.iter().filter(|m| m.is_on()) {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", machine.init()?.as_raw_nonzero()))?;
        if let Some(line) = table.lines().find(|line| line.contains(id)) {
            bail!("mounted on {}: {line}", machine.name());
        }
        let kubelet = machine.outside(Path::new("/var/lib/kubelet"))?;
        let staging = kubelet.join("plugins/kubernetes.io/csi/csi.dotgraft.dev");
        for entry in std::fs::read_dir(staging).into_iter().flatten().flatten() {
            let about = std::fs::read_to_string(entry.path().join("vol_data.json")).unwrap_or_default();
            ensure!(!about.contains(id), "{} of {} is left", entry.path().display(), machine.name());
        }
    }
    Ok(())
}

/// A `PersistentVolume` for any number of readers: a commit on the nodes that have it. Its name.
pub async fn read_only_volume(t: &Test, name: &str, handle: &str) -> Result<String> {
    let volume = format!("{}-{name}", t.namespace);
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
        "spec": {
            "capacity": {"storage": "64Mi"}, "accessModes": ["ReadOnlyMany"], "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": "csi.dotgraft.dev", "volumeHandle": handle, "readOnly": true},
        },
    });
    t.apply(&object.to_string()).await?;
    Ok(volume)
}

/// The same, and a claim that gets it.
pub async fn read_only(t: &Test, name: &str, handle: &str) -> Result<()> {
    let volume = read_only_volume(t, name, handle).await?;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "NAMESPACE"},
        "spec": {"storageClassName": "", "volumeName": volume, "accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "64Mi"}}},
    });
    t.apply(&claim.to_string()).await
}
