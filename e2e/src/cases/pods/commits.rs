//! A commit that pods read (failures.md row 7): what would take it away from them waits and names them, or works around them.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::{eventually, throughout};
use crate::steps::pod as csi_pvc;
use crate::steps::pods::{STEP, claim, clear, fs_id, left, node_of, read_only, ready};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "7-commit",
            "a commit that a pod has mounted: its deletion and that of its volume wait, by name; a move leaves it to the pod",
            commit,
        )
        .kubelets(),
    ]
}

async fn reads(t: &Test, pod: &str) -> Result<()> {
    let word = t.kubectl(&["exec", pod, "--", "cat", "/data/word"]).await?;
    ensure!(word.trim() == "first", "it reads {word:?}");
    Ok(())
}

/// The object stays, and its conditions hold all these words.
async fn waits(t: &Test, (kind, name): (&str, &str), words: &[&str]) -> Result<()> {
    eventually(&format!("{kind} {name} to say why it stays"), STEP, || async {
        let object = t.object(kind, name).await?;
        let said = conditions(&object);
        ensure!(words.iter().all(|w| said.contains(w)), "{said}");
        Ok(())
    })
    .await
}

async fn commit(t: Arc<Test>) -> Result<()> {
    claim(&t, "data", "64Mi").await?;
    csi_pvc::pod(&t, "writer", "data", "n1", "echo first > /data/word; sync; sleep 1000").await?;
    csi_pvc::says(&t, "writer", "/data/word", "first").await?;
    let id = fs_id(&t, "data").await?;
    let commit = t.commit("c", "data").await?;
    t.kubectl(&["exec", "writer", "--", "sh", "-c", "echo second > /data/word; sync"]).await?;
    read_only(&t, "reader", &format!("ro/{id}@{commit}")).await?;
    csi_pvc::pod(&t, "reader", "reader", "n1", "sleep 1000").await?;
    ready(&t, "reader", "").await?;
    reads(&t, "reader").await?;
    let path = "/var/lib/kubelet/pods/";

    t.kube().delete("Commit", &t.namespace, "c").await?;
    waits(&t, ("Commit", "c"), &["Pinned", path]).await?;
    reads(&t, "reader").await?;

    // The volume goes to another node with its writer; the reader stays where it is and reads on, though the owner's copy is elsewhere.
    t.kubectl(&["delete", "pod", "writer", "--timeout=180s"]).await?;
    csi_pvc::pod(&t, "writer", "data", "n3", "sleep 1000").await?;
    ready(&t, "writer", "").await?;
    let word = t.kubectl(&["exec", "writer", "--", "cat", "/data/word"]).await?;
    ensure!(word.trim() == "second" && node_of(&t, "writer").await? == "n3", "the writer moved, and reads {word:?}");
    reads(&t, "reader").await?;
    waits(&t, ("Commit", "c"), &["Pinned"]).await?;

    // The volume is deleted: that waits for the reader's claim, by name.
    t.kubectl(&["delete", "pod", "writer", "--timeout=180s"]).await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    waits(&t, ("Dot", "data"), &["ClaimBound", "/reader"]).await?;
    throughout("the deletion that waits", std::time::Duration::from_secs(1), || reads(&t, "reader")).await?;
    let filesystem = t.kube().get("Filesystem", "", &id).await?;
    ensure!(filesystem.as_ref().map(|f| &f["metadata"]["name"]).is_some_and(Value::is_string), "the Filesystem is gone under its reader");
    t.kubectl(&["delete", "pod", "reader", "--timeout=180s"]).await.context("the reader can't go")?;
    t.kubectl(&["delete", "pvc", "reader", "--timeout=180s"]).await?;
    crate::steps::pods::nothing(&t, &id).await?;
    t.kube().gone("Commit", &t.namespace, "c", STEP).await?;
    left(&t, &id).await?;
    clear(&t, &[]).await?;
    let volume = format!("{}-reader", t.namespace);
    t.kube().kubectl(&["delete", "pv", &volume, "--timeout=180s"]).await?;
    Ok(())
}
