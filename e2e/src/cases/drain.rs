//! A node is emptied for good (failures.md row 27): what can move moves, and what can't is listed, with the reason.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::tree_digest;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::cli::dot;
use crate::steps::owner::owned_by;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![Case::new("27-drain", "a drained node's volumes move with their data, and what can't is listed with the reason", drained)]
}

async fn filled(t: &Test, name: &str, more: &Value) -> Result<(String, String)> {
    let mut spec = json!({"capacity": "256Mi", "placement": {"node": "n1"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let fs_id = t.dot_of(name, &spec).await?;
    // Bound to no node by a person: where it was made is where it is.
    t.kube().patch("Dot", &t.namespace, name, "", &json!({"spec": {"placement": {"node": null}}})).await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("name"), name)?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    Ok((fs_id, digest))
}

async fn drained(t: Arc<Test>) -> Result<()> {
    let (plain, plain_digest) = filled(&t, "plain", &json!({})).await?;
    let (copied, copied_digest) = filled(&t, "copied", &json!({})).await?;
    let (used, _) = filled(&t, "used", &json!({})).await?;
    let (kept, _) = filled(&t, "kept", &json!({"deletionPolicy": "Retain"})).await?;
    let commit = t.commit("c", "copied").await?;
    t.push("j", "copied", "n2").await?;
    t.arrived(&copied, &commit, "n2", STEP).await?;
    let head = t.mount("n1", &used).await?;
    t.kube().delete("Dot", &t.namespace, "kept").await?;
    eventually("its Filesystem to be Released", STEP, || async {
        let fs = t.kube().get("Filesystem", "", &kept).await?.unwrap_or_default();
        ensure!(fs["status"]["phase"] == "Released", "{}", fs["status"]);
        Ok(())
    })
    .await?;
    let asked = dot(&t, &["node", "drain", "n1", "--dry-run"]).await?;
    ensure!(asked.contains("would move") && asked.contains("its Dot is gone"), "{asked}");
    // On a machine that does much else its time may be up before all that can has moved: then it is said of fewer, once more.
    eventually("all but two to have moved", STEP * 2, || async {
        let left = dot(&t, &["node", "drain", "n1", "--timeout", "8"]).await.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(left.contains("2 of ") && left.contains("volumes are still on node n1"), "{left}");
        Ok(())
    })
    .await?;
    for (name, fs_id, digest) in [("plain", &plain, &plain_digest), ("copied", &copied, &copied_digest)] {
        let object = owned_by(&t, name, "n2").await?;
        ensure!(object.pointer("/spec/placement/node").is_none(), "{name} is bound to a node now: {}", object["spec"]);
        let head = t.mount("n2", fs_id).await?;
        ensure!(tree_digest(&head)? == *digest, "{name} came with other data");
        t.unmount(&head).await?;
    }
    let owner = t.object("Dot", "used").await?;
    ensure!(owner["status"]["owner"] == "n1" && owner.pointer("/spec/placement/node").is_none(), "{owner}");
    std::fs::write(head.join("still"), b"writable")?;
    t.unmount(&head).await?;
    eventually("all but one to have moved, as the user is gone", STEP * 2, || async {
        let rest = dot(&t, &["node", "drain", "n1", "--timeout", "8"]).await.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(rest.contains("1 of ") && rest.contains("volumes are still on node n1"), "{rest}");
        Ok(())
    })
    .await?;
    t.kube().delete("Filesystem", "", &kept).await?;
    eventually("the node to own nothing", STEP, || async {
        let said = dot(&t, &["node", "drain", "n1"]).await?;
        ensure!(said.contains("owns nothing"), "{said}");
        Ok(())
    })
    .await
}
