//! Caches that are old (failures.md row 10): a watch that ends, hangs or is too far behind. An agent lists anew, says that it isn't
//! ready until it has, and decides nothing about data by what it does not know.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::programs::http_get;
use crate::rig::wait::{eventually, throughout};
use crate::steps::etcd::etcd;
use crate::steps::left::nothing_left;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new("10-stale", "an agent that can't list is not ready, and decides nothing about data", stale)]
}

async fn stale(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"precious")?;
    t.unmount(&head).await?;
    let first = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    left_behind(&t, &fs_id).await?;
    can_not_list(&t, &fs_id).await?;
    // And all goes on.
    let second = t.commit("c2", "d").await?;
    t.trigger("j", "again").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await
}

/// n2 sleeps while a Dot of its goes and another of the same name comes, and while the API server forgets what it was at.
async fn left_behind(t: &Test, fs_id: &str) -> Result<()> {
    let old = t.dot("twice", "n1").await?;
    let commit = t.commit("of-old", "twice").await?;
    t.push("k", "twice", "n2").await?;
    t.arrived(&old, &commit, "n2", STEP).await?;
    let before = relists(t, "n2")?;
    t.rig.pause("n2")?;
    for (kind, name) in [("ReplicationJob", "k"), ("Commit", "of-old"), ("Dot", "twice")] {
        t.kube().delete(kind, &t.namespace, name).await?;
    }
    // Its watches end: the server goes, and what they had seen is compacted away before it is back.
    t.rig.kill9("apiserver")?;
    compact(t).await?;
    t.rig.start("apiserver")?;
    eventually("the API server", STEP, || t.kube().api_ready()).await?;
    t.rig.resume("n2")?;
    t.rig.ready(STEP).await?;
    for (kind, name) in [("ReplicationJob", "k"), ("Commit", "of-old"), ("Dot", "twice")] {
        t.kube().gone(kind, &t.namespace, name, STEP).await?;
    }
    nothing_left(t, &old).await?;
    let new = t.dot("twice", "n1").await?;
    ensure!(new != old, "the same Filesystem again");
    let now = relists(t, "n2")?;
    ensure!(now > before, "n2 never listed anew");
    ensure!(pool_has(t, "n2", fs_id)?, "the copy that nobody deleted is gone");
    Ok(())
}

/// How often the agent was told that its watch is too far behind, as it logs.
fn relists(t: &Test, node: &str) -> Result<usize> {
    Ok(std::fs::read_to_string(t.rig.processes.log(node))?.matches("listing anew").count())
}

fn pool_has(t: &Test, node: &str, fs_id: &str) -> Result<bool> {
    Ok(t.rig.node(node)?.files.state.join("pool/fs").join(fs_id).is_dir())
}

/// Makes etcd forget all but the newest revision.
async fn compact(t: &Test) -> Result<()> {
    let answer = etcd(t, "/v3/kv/range", &json!({"key": "AA=="})).await?;
    let revision = answer.pointer("/header/revision").and_then(Value::as_str).context("no revision")?.to_owned();
    etcd(t, "/v3/kv/compaction", &json!({"revision": revision, "physical": true})).await.map(drop)
}

/// The API server accepts connections and answers nothing: an agent that starts then knows its disk and its journal only.
async fn can_not_list(t: &Test, fs_id: &str) -> Result<()> {
    t.rig.kill9("n1")?;
    t.rig.pause("apiserver")?;
    t.rig.start("n1")?;
    let http = t.rig.node("n1")?.http.clone();
    let blind = async {
        eventually("n1 to wake what is on its disk", STEP, || async { t.local("n1")?.status(fs_id).await }).await?;
        throughout("n1 without a list", Duration::from_secs(3), || async {
            let (status, says) = http_get(&http, "/readyz").await?;
            ensure!(status == 503 && says.contains("not listed yet"), "/readyz says {status}: {says}");
            let dir = t.rig.node("n1")?.files.state.join("pool/fs").join(fs_id);
            ensure!(std::fs::read(dir.join("head/a"))? == b"precious", "the head has changed");
            ensure!(std::fs::read_dir(dir.join("commits"))?.count() >= 2, "a commit is gone");
            Ok(())
        })
        .await?;
        let (status, _) = http_get(&http, "/healthz").await?;
        ensure!(status == 200, "it is alive all the same: killing it would mend nothing");
        anyhow::Ok(())
    };
    let result = blind.await;
    t.rig.resume("apiserver")?;
    result?;
    t.rig.ready(STEP).await
}
