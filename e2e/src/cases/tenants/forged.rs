//! A tenant with every right in its own namespace writes another's ids into the status and annotations of its Commits.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::wait::{eventually, throughout};
use crate::steps::left::nothing_left;
use crate::steps::tenant::Tenant;

/// How long a forged Commit has to reach something.
const SPAN: Duration = Duration::from_secs(10);

/// A Commit of b's Dot that says it is that commit of that Filesystem, and a snapshot.
async fn forge(b: &Tenant, name: &str, fs_id: &str, commit: &str) -> Result<()> {
    let mut object = b.object("Commit", name, &json!({"source": {"kind": "Dot", "name": "own"}}));
    object["metadata"]["annotations"] = json!({"dotgraft.dev/csi-name": name});
    object["metadata"]["labels"] = json!({"dotgraft.dev/fs-id": fs_id});
    b.kube.create(&b.namespace, &object).await?;
    b.kube.until_condition(("Commit", &b.namespace, name), ("Ready", "True", None), STEP).await?;
    let status = json!({"status": {"fsId": fs_id, "id": commit}});
    b.kube.patch("Commit", &b.namespace, name, "status", &status).await
}

/// `tenants-forged-status`.
pub async fn status(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("payroll", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("word"), b"theirs")?;
    t.unmount(&head).await?;
    let commit = t.commit("c1", "payroll").await?;
    let b = Tenant::come(&t, "b").await?;
    b.may_do_everything(&t).await?;
    b.create("Dot", "own", &json!({"capacity": "64Mi"})).await?;
    b.kube.until_condition(("Dot", &b.namespace, "own"), ("Ready", "True", None), STEP).await?;
    forge(&b, "stays", &fs_id, &commit).await?;
    forge(&b, "goes", &fs_id, &commit).await?;

    // Nothing starts from it,
    b.create("Branch", "branch", &json!({"dot": "own", "from": {"commit": "stays"}})).await?;
    b.claim("restored", "ReadWriteOnce", "Commit", "stays").await?;
    let nothing = throughout("nothing to start from a forged Commit", SPAN, || async {
        let branch = b.kube.get("Branch", &b.namespace, "branch").await?.context("no Branch")?;
        ensure!(branch["spec"]["fsId"].is_null(), "the Branch is {}", branch["spec"]["fsId"]);
        let pvc: Value = serde_json::from_str(&b.kubectl(&["get", "pvc", "restored", "-o", "json"]).await?)?;
        ensure!(pvc["spec"]["volumeName"].is_null(), "the PVC has {}", pvc["spec"]["volumeName"]);
        let sources = t.kube().list("Filesystem", "").await?;
        let theirs = sources.iter().filter(|f| f["spec"]["claimRef"]["namespace"] == *b.namespace);
        let from: Vec<&Value> = theirs.map(|f| &f["spec"]["origin"]["fsId"]).filter(|o| **o == *fs_id).collect();
        ensure!(from.is_empty(), "a Filesystem of b's starts from a's");
        Ok(())
    });
    nothing.await?;
    // nothing of a's goes with it,
    b.kubectl(&["delete", "dcommit", "goes", "--timeout=60s"]).await?;
    eventually("a's commit to be read", STEP, || async {
        let there = t.mount_commit("n1", &fs_id, &commit).await?;
        let word = std::fs::read(there.join("word"))?;
        t.unmount(&there).await?;
        ensure!(word == b"theirs", "{word:?}");
        Ok(())
    })
    .await?;
    // and nothing of a's is kept for it.
    t.kubectl(&["delete", "dot", "payroll", "--timeout=60s"]).await?;
    nothing_left(&t, &fs_id).await?;
    b.leave(&t).await
}
