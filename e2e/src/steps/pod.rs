//! PVCs and pods of busybox, and what they write.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::wait::eventually;

/// Waits until pods with volumes can be scheduled to every node.
pub async fn registered(t: Arc<Test>) -> Result<()> {
    for node in ["n1", "n2", "n3"] {
        eventually(&format!("CSINode {node} to name the driver"), STEP, || async {
            let object: Value = serde_json::from_str(&t.kubectl(&["get", "csinode", node, "-o", "json"]).await?)?;
            let drivers = object.pointer("/spec/drivers").and_then(Value::as_array).cloned().unwrap_or_default();
            let ours = drivers.iter().find(|d| d["name"] == "csi.dotgraft.dev");
            let keys = ours.map(|d| d["topologyKeys"].to_string()).unwrap_or_default();
            ensure!(keys.contains("topology.dotgraft.dev/pool") && keys.contains("topology.dotgraft.dev/node"), "drivers: {drivers:?}");
            ensure!(ours.is_some_and(|d| d["allocatable"]["count"].as_u64().is_some_and(|n| n > 0)), "no attach limit: {drivers:?}");
            Ok(())
        })
        .await?;
    }
    eventually("a capacity object for each node", STEP, || async {
        let list = t.kube().kubectl(&["get", "csistoragecapacities", "-A", "-o", "json"]).await?;
        for node in ["n1", "n2", "n3"] {
            ensure!(list.contains(&format!("\"topology.dotgraft.dev/node\": \"{node}\"")), "none for {node}");
        }
        Ok(())
    })
    .await
}

/// A PVC of the `StorageClass`.
pub async fn claim(t: &Test, name: &str) -> Result<()> {
    claim_from(t, name, "").await
}

/// A PVC with the content of `source`, the inside of a `dataSource`; an empty one without.
pub async fn claim_from(t: &Test, name: &str, source: &str) -> Result<()> {
    let source = if source.is_empty() { String::new() } else { format!("  dataSource: {{{source}}}\n") };
    t.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  \
         storageClassName: dotgraft\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 256Mi}}}}\n{source}"
    ))
    .await
}

/// A pod that has the PVC at `/data` and runs a script; scheduled to `node`.
pub async fn pod(t: &Test, name: &str, claim: &str, node: &str, script: &str) -> Result<()> {
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  restartPolicy: Always\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - name: c\n    image: busybox:1\n    imagePullPolicy: Never\n    command: [sh, -c, '{script}']\n    \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  - name: data\n    \
         persistentVolumeClaim: {{claimName: {claim}}}\n"
    );
    // The controller manager makes a new namespace's ServiceAccount in its own time.
    eventually("the pod to be taken", STEP, || t.apply(&yaml)).await
}

/// Waits until a pod is ready; says what its events say if it isn't.
pub async fn started(t: &Test, name: &str) -> Result<()> {
    let start = Instant::now();
    if let Err(e) = t.kubectl(&["wait", "--for=condition=Ready", "pod", name, "--timeout=180s"]).await {
        let events = t.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).await?;
        return Err(e.context(events));
    }
    println!("        {name} started after {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Waits until a file in a pod says that: a pod is ready before its script has written anything.
pub async fn says(t: &Test, pod: &str, file: &str, want: &str) -> Result<()> {
    eventually(&format!("{pod} to have written {want:?}"), STEP, || async {
        let said = t.kubectl(&["exec", pod, "--", "cat", file]).await?;
        ensure!(said.trim() == want, "{file} says {said:?}");
        Ok(())
    })
    .await
}

/// Deletes a pod and waits until it is gone.
pub async fn stop(t: &Test, name: &str) -> Result<()> {
    t.kubectl(&["delete", "pod", name, "--timeout=180s"]).await?;
    Ok(())
}

/// Writes a line after the other, each to the disk; says so if one fails.
pub const WRITER: &str = "n=0; while n=$((n+1)); echo line $n >> /data/log && sync; do usleep 20000; done; echo failed; sleep 1000";

/// What a pod has written into a file of its volume, as the machine of `node` sees it, whether or not the API server is there.
pub fn written(t: &Test, node: &str, fs_id: &str, file: &str) -> Result<String> {
    let head = t.rig.node(node)?.files.state.join("pool/fs").join(fs_id).join("head").join(file);
    let path = t.rig.machine(node)?.outside(&head)?;
    std::fs::read_to_string(&path).with_context(|| format!("reading {file} of {fs_id} on {node}"))
}

/// How many lines there are; each must be the one after the line before.
pub fn lines(log: &str) -> Result<usize> {
    for (at, line) in (1usize..).zip(log.split_inclusive('\n').filter(|l| l.ends_with('\n'))) {
        ensure!(line == format!("line {at}\n"), "line {at} is {line:?}");
    }
    Ok(log.matches('\n').count())
}

/// The Filesystem of a claim.
pub async fn filesystem(t: &Test, claim: &str) -> Result<String> {
    let dot = t.ready("Dot", claim).await?;
    Ok(dot.pointer("/status/fsId").and_then(Value::as_str).context("no fsId")?.to_owned())
}

/// Waits until a file that a pod writes has grown by some lines, as its machine sees it; how many there are. A pod runs before it has made its file.
pub async fn grows(t: &Test, node: &str, fs_id: &str, file: &str) -> Result<usize> {
    let what = format!("the pod on {node} to write");
    let first = eventually(&what, STEP, || async { lines(&written(t, node, fs_id, file)?) }).await?;
    eventually(&what, STEP, || async {
        let now = lines(&written(t, node, fs_id, file)?)?;
        ensure!(now > first + 5, "it stands at line {now}");
        Ok(now)
    })
    .await
}
