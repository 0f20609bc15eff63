//! Who owns a Dot, and what follows from that.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::tree_digest;
use crate::data::tree as source;
use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::kube::{condition_of, conditions};
use crate::rig::wait::eventually;

/// Says where a Dot should be.
pub async fn place(t: &Test, dot: &str, node: &str) -> Result<()> {
    t.kube().patch("Dot", &t.namespace, dot, "", &json!({"spec": {"placement": {"node": node}}})).await
}

/// Waits until `node` owns the Dot and may write it.
pub async fn owned_by(t: &Test, dot: &str, node: &str) -> Result<Value> {
    eventually(&format!("{node} to own {dot}"), STEP * 2, || is_owned_by(t, dot, node)).await
}

/// An error unless `node` owns the Dot and may write it.
pub async fn is_owned_by(t: &Test, dot: &str, node: &str) -> Result<Value> {
    let object = t.object("Dot", dot).await?;
    let ready = condition_of(&object, "Ready").is_some_and(|c| c["status"] == "True");
    ensure!(object["status"]["owner"] == *node && ready, "owner {}, {}", object["status"]["owner"], conditions(&object));
    Ok(object)
}

/// Who may write it, as the API server says.
pub async fn authority(t: &Test, fs_id: &str) -> Result<Value> {
    let object = t.kube().get("Filesystem", "", fs_id).await?.context("no Filesystem")?;
    Ok(object["status"]["authority"].clone())
}

/// A Dot on n1 with some files, and their digest.
pub async fn filled(t: &Test, name: &str) -> Result<(String, String)> {
    let fs_id = t.dot_of(name, &json!({"capacity": "256Mi", "placement": {"node": "n1"}})).await?;
    let head = t.mount("n1", &fs_id).await?;
    source::copy(&source::source(400)?, &head.join("tree"), 400)?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    Ok((fs_id, digest))
}

/// The head on its owner's node is what was written.
pub async fn holds(t: &Test, node: &str, fs_id: &str, digest: &str) -> Result<()> {
    let head = t.mount(node, fs_id).await?;
    ensure!(tree_digest(&head)? == digest, "the head on {node} is not what was written");
    t.unmount(&head).await
}

/// A node's copy says that it is superseded, and that what only it has is fenced.
pub async fn says_fenced(t: &Test, fs_id: &str, node: &str) -> Result<()> {
    eventually("the old owner's copy to say that it is superseded and fenced", STEP, || async {
        let replica = t.replica(fs_id, node).await?;
        let said = condition_of(&replica, "Superseded").filter(|c| c["status"] == "True");
        let fenced = said.is_some_and(|c| c["message"].as_str().is_some_and(|m| m.contains("is fenced and kept")));
        ensure!(fenced, "{}", conditions(&replica));
        Ok(())
    })
    .await
}

/// The out-of-service taint, on or off.
pub async fn taint(t: &Test, node: &str, on: bool) -> Result<()> {
    let taints = if on {
        json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}])
    } else {
        json!(null)
    };
    let patch = json!({"spec": {"taints": taints}}).to_string();
    t.kube().kubectl(&["patch", "node", node, "--type=merge", "-p", &patch]).await.map(|_| ())
}
