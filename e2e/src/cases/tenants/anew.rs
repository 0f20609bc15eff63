//! A namespace that is deleted and made again under its name is another tenant.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::harness::test::{STEP, text};
use crate::steps::left::nothing_left;
use crate::steps::tenant::Tenant;

async fn says(t: &Test, who: &Tenant, reason: &str) -> Result<Value> {
    t.kube().until_condition(("Dot", &who.namespace, "data"), ("Ready", "False", Some(reason)), STEP).await
}

/// `tenants-namespace-anew`.
pub async fn namespace(t: Arc<Test>) -> Result<()> {
    let first = Tenant::come(&t, "x").await?;
    let wanted = json!({"capacity": "64Mi", "placement": {"node": "n1"}, "deletionPolicy": "Retain"});
    first.create("Dot", "data", &wanted).await?;
    let made = t.kube().until_condition(("Dot", &first.namespace, "data"), ("Ready", "True", None), STEP).await?;
    let fs_id = text(&made, "/status/fsId")?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("word"), b"of the first")?;
    t.unmount(&head).await?;
    first.create("Commit", "c", &json!({"source": {"kind": "Dot", "name": "data"}})).await?;
    let commit = t.kube().until_condition(("Commit", &first.namespace, "c"), ("Ready", "True", None), STEP).await?;
    let commit = text(&commit, "/status/id")?;
    first.leave(&t).await?;
    let kept = t.kube().get("Filesystem", "", &fs_id).await?.context("the data is gone")?;
    ensure!(kept["status"]["phase"] == "Released", "{}", kept["status"]);

    let second = Tenant::come(&t, "x").await?;
    // By its name, by its id that an administrator restores, and as a clone of a commit: nothing.
    second.create("Dot", "data", &wanted).await?;
    says(&t, &second, "NameHasData").await?;
    ensure!(!second.sees().await?.contains(&fs_id), "it learns which Filesystem that is");
    second.create("Dot", "clone", &json!({"capacity": "64Mi", "origin": {"fsId": fs_id, "commit": commit}})).await?;
    let clone = ("Dot", second.namespace.as_str(), "clone");
    t.kube().until_condition(clone, ("Ready", "False", Some("SourceNotFound")), STEP).await?;
    second.kubectl(&["delete", "dot", "clone", "--timeout=60s"]).await?;
    second.kubectl(&["delete", "dot", "data", "--timeout=60s"]).await?;
    let mut restored = wanted.clone();
    restored["fsId"] = json!(fs_id);
    t.kube().create(&second.namespace, &second.object("Dot", "data", &restored)).await?;
    let mismatch = says(&t, &second, "ClaimMismatch").await?;
    ensure!(mismatch["status"]["owner"].is_null() && mismatch["status"]["recentCommits"].is_null(), "{}", mismatch["status"]);

    // The step of the runbook: an administrator says that it is the same tenant.
    let uid = t.kube().kubectl(&["get", "namespace", &second.namespace, "-o", "jsonpath={.metadata.uid}"]).await?;
    let handed = json!({"spec": {"claimRef": {"namespaceUid": uid.trim()}}}).to_string();
    t.kube().kubectl(&["patch", "filesystem", &fs_id, "--type=merge", "-p", &handed]).await?;
    t.kube().until_condition(("Dot", &second.namespace, "data"), ("Ready", "True", None), STEP * 2).await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(std::fs::read(head.join("word"))? == b"of the first", "all is there");
    t.unmount(&head).await?;
    second.kubectl(&["patch", "dot", "data", "--type=merge", "-p", r#"{"spec":{"deletionPolicy":"Delete"}}"#]).await?;
    second.leave(&t).await?;
    nothing_left(&t, &fs_id).await
}
