//! `--evict` with real pods: who has the volume is made to leave, their successors wait for the reset, and a disruption budget is
//! respected and named (ADR 9).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::harness::test::text;
use crate::harness::{Case, Test};
use crate::rig::wait::{eventually, throughout};
use crate::steps::cli::dot;
use crate::steps::pod as csi_pvc;
use crate::steps::pods::{STEP, clear, node_of, ready, took, uid};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "reset-evict",
            "reset --evict: a PodDisruptionBudget is named and nothing changes; without it the set's next pod has the commit; deleted, it holds nobody",
            reset,
        )
        .kubelets(),
        Case::new(
            "reset-evict-successor",
            "reset --evict: a Deployment's next pod is there before the old one has left, and waits for the reset all the same",
            successor,
        )
        .kubelets(),
        Case::new("move-evict", "move --evict: the set's pod leaves, and its volume and it go where they are to", moved).kubelets(),
    ]
}

/// A controller with one pod that has the PVC `data`, ends after `grace` seconds, and writes a word where there is none.
async fn controller(t: &Test, kind: &str, grace: u8, node: &str) -> Result<()> {
    crate::steps::pods::claim(t, "data", "64Mi").await?;
    let set = if kind == "StatefulSet" { "  serviceName: w\n" } else { "" };
    let node = if node.is_empty() { String::new() } else { format!("      nodeSelector: {{kubernetes.io/hostname: {node}}}\n") };
    // It ends late on purpose: a shell that is the first process ignores SIGTERM.
    t.apply(&format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: w, namespace: NAMESPACE}}\nspec:\n  replicas: 1\n{set}  \
         selector: {{matchLabels: {{app: w}}}}\n  template:\n    metadata: {{labels: {{app: w}}}}\n    spec:\n{node}      \
         terminationGracePeriodSeconds: {grace}\n      containers:\n      - name: c\n        image: busybox:1\n        \
         imagePullPolicy: Never\n        command: [sh, -c, '[ -e /data/word ] || echo first > /data/word; sync; while :; do sleep 1; done']\n        \
         volumeMounts: [{{name: data, mountPath: /data}}]\n      volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]\n"
    ))
    .await
}

/// The controller's newest pod that isn't leaving and runs, other than `old`: its name and uid.
async fn runs(t: &Test, old: &str) -> Result<(String, String)> {
    eventually("a pod to run", STEP, || async {
        let pods = crate::steps::pods::pods(t).list(&kube::api::ListParams::default().labels("app=w")).await?.items;
        let pod = pods.into_iter().find(|p| p.metadata.deletion_timestamp.is_none() && p.metadata.uid.as_deref() != Some(old));
        let pod = pod.context("there is none")?;
        let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        ensure!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"), "it is not ready");
        Ok((pod.metadata.name.unwrap_or_default(), pod.metadata.uid.unwrap_or_default()))
    })
    .await
}

async fn word(t: &Test, pod: &str) -> Result<String> {
    Ok(t.kubectl(&["exec", pod, "--", "cat", "/data/word"]).await?.trim().to_owned())
}

async fn write(t: &Test, pod: &str, word: &str) -> Result<()> {
    t.kubectl(&["exec", pod, "--", "sh", "-c", &format!("echo {word} > /data/word; sync")]).await.map(drop)
}

/// Resets with `--evict`, and waits until the next pod reads that word; prints how long both took.
async fn evicting(t: &Test, old: &str, to: &str, want: &str) -> Result<(String, String)> {
    let start = Instant::now();
    let said = dot(t, &["reset", "data", "--to", to, "--evict"]).await?;
    took("reset --evict until it is done", start);
    ensure!(said.contains("commit/before-reset-data-"), "{said}");
    let (pod, id) = runs(t, old).await?;
    took("reset --evict until the next pod is ready", start);
    let is = word(t, &pod).await?;
    ensure!(is == want, "the next pod reads {is:?}, not {want:?}");
    Ok((pod, id))
}

/// The only operation that waits.
async fn waiting(t: &Test) -> Result<serde_json::Value> {
    let all = t.kube().list("DotOperation", &t.namespace).await?;
    all.into_iter().find(|o| o["status"].get("phase").is_none()).context("no operation waits")
}

async fn reset(t: Arc<Test>) -> Result<()> {
    controller(&t, "StatefulSet", 1, "").await?;
    let (pod, first) = runs(&t, "").await?;
    let node = node_of(&t, &pod).await?;
    csi_pvc::says(&t, &pod, "/data/word", "first").await?;
    t.commit("c1", "data").await?;
    write(&t, &pod, "second").await?;
    eventually("its claim to be shown", STEP, || async {
        let claims = t.object("Dot", "data").await?["status"]["claims"].clone();
        ensure!(claims[0] == "data", "{claims}");
        Ok(())
    })
    .await?;

    t.apply(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: keep, namespace: NAMESPACE}\n\
         spec: {minAvailable: 1, selector: {matchLabels: {app: w}}}\n",
    )
    .await?;
    eventually("the budget to count", STEP, || async {
        let healthy = t.kubectl(&["get", "pdb", "keep", "-o", "jsonpath={.status.currentHealthy}"]).await?;
        ensure!(healthy == "1", "{healthy:?}");
        Ok(())
    })
    .await?;
    let said = dot(&t, &["reset", "data", "--evict", "--timeout", "15"]).await.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(said.contains("disruption budget keep") && said.contains("taken back"), "{said}");
    ensure!(uid(&t, &pod).await? == first && word(&t, &pod).await? == "second", "something changed");

    // One that nobody takes back waits, and says that it holds; a new pod on the node waits for it, until it is deleted.
    t.create("DotOperation", "reset-data-by-hand", &json!({"target": {"name": "data"}, "reset": {"hold": true}})).await?;
    let operation = eventually("it to say that it holds", STEP, || async {
        let operation = waiting(&t).await?;
        let message = text(&operation, "/status/message")?;
        ensure!(message.contains("Mounted") && message.contains("no new pod gets the volume"), "{message}");
        Ok(operation)
    })
    .await?;
    csi_pvc::pod(&t, "other", "data", &node, "sleep 1000").await?;
    eventually("the new pod to say for what it waits", STEP, || async {
        let events = t.kubectl(&["get", "events", "--field-selector=involvedObject.name=other", "-o", "json"]).await?;
        ensure!(events.contains("a reset keeps new mounts back") && events.contains("DotOperation reset-data-"), "{events}");
        Ok(())
    })
    .await?;
    throughout("the new pod that waits", Duration::from_secs(2), || async {
        let phase = t.kubectl(&["get", "pod", "other", "-o", "jsonpath={.status.phase}"]).await?;
        ensure!(phase == "Pending", "it is {phase}");
        Ok(())
    })
    .await?;
    t.kube().delete("DotOperation", &t.namespace, &text(&operation, "/metadata/name")?).await?;
    let start = Instant::now();
    ready(&t, "other", "").await?;
    took("the operation deleted until the pod that waited is ready", start);
    ensure!(word(&t, "other").await? == "second" && uid(&t, &pod).await? == first, "something changed");
    t.kubectl(&["delete", "pod", "other", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "pdb", "keep"]).await?;

    let (pod, next) = evicting(&t, &first, "c1", "first").await?;
    let done = t.kube().list("DotOperation", &t.namespace).await?;
    let kept = done.iter().find_map(|o| o.pointer("/status/reset/kept")?.as_str().map(str::to_owned)).context("nothing is kept")?;
    write(&t, &pod, "third").await?;
    // What was there is kept: by its Commit it comes back.
    evicting(&t, &next, &kept, "second").await?;
    clear(&t, &["data"]).await
}

async fn successor(t: Arc<Test>) -> Result<()> {
    controller(&t, "Deployment", 6, "n2").await?;
    let (pod, first) = runs(&t, "").await?;
    csi_pvc::says(&t, &pod, "/data/word", "first").await?;
    t.commit("c1", "data").await?;
    write(&t, &pod, "second").await?;
    let (pod, next) = evicting(&t, &first, "c1", "first").await?;
    // The staging mount was taken away for that; now it is there again, and the volume can be used as ever.
    write(&t, &pod, "third").await?;
    t.kubectl(&["delete", "pod", &pod, "--timeout=180s"]).await?;
    let (pod, _) = runs(&t, &next).await?;
    ensure!(word(&t, &pod).await? == "third", "what was written after the reset is lost");
    t.kubectl(&["delete", "deployment", "w", "--timeout=180s"]).await?;
    clear(&t, &["data"]).await
}

async fn moved(t: Arc<Test>) -> Result<()> {
    controller(&t, "StatefulSet", 1, "").await?;
    let (pod, first) = runs(&t, "").await?;
    let from = node_of(&t, &pod).await?;
    let to = if from == "n2" { "n3" } else { "n2" };
    csi_pvc::says(&t, &pod, "/data/word", "first").await?; // or it would come after what is written next
    write(&t, &pod, "taken along").await?;
    let waits = dot(&t, &["move", "data", "--to", to, "--timeout", "3"]).await;
    ensure!(waits.is_err_and(|e| e.to_string().contains(&format!("pod {pod}"))), "it must name the pod that has it mounted");
    let start = Instant::now();
    dot(&t, &["move", "data", "--to", to, "--evict"]).await?;
    took("move --evict until the volume is there", start);
    let (pod, _) = runs(&t, &first).await?;
    took("move --evict until the next pod is ready", start);
    ensure!(node_of(&t, &pod).await? == to && word(&t, &pod).await? == "taken along", "it is elsewhere");
    clear(&t, &["data"]).await
}
