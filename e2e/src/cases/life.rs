//! The life of a Dot when nothing goes wrong: the smallest cases, which the others build on.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::data::digest::{same_trees, tree_digest};
use crate::data::sqlite::{self, SqliteWriter};
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::kube::condition_of;
use crate::rig::programs::http_get;
use crate::rig::wait::eventually;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("life/commit-push", "a commit arrives on another node as it was, and so does an increment", commit_push),
        Case::new("life/database", "a database under load is whole in every commit, here and there", database),
        Case::new("life/branch", "a branch starts as its commit, and neither sees what is written to the other", branch),
        Case::new("life/on-commit", "a job with onCommit sends every commit by itself", on_commit),
        Case::new("life/schedule", "a job with a schedule runs at its times, also while the API server is down", schedule),
        Case::new("life/deleted-base", "the newest commit goes at once, and the next one is sent as an increment to it", deleted_base),
        Case::new("life/replicas", "placement.replicas keeps a copy on another node", replicas),
    ]
}

async fn commit_push(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), vec![7u8; 3 << 20])?;
    std::os::unix::fs::symlink("a", head.join("link"))?;
    let first = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    std::fs::hard_link(head.join("a"), head.join("b"))?;
    std::fs::remove_file(head.join("link"))?;
    let second = t.commit("c2", "d").await?;
    t.trigger("j", "again").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await?;
    for commit in [&first, &second] {
        let (here, there) = (t.mount_commit("n1", &fs_id, commit).await?, t.mount_commit("n2", &fs_id, commit).await?);
        same_trees(&here, &there)?;
    }
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    Ok(())
}

async fn database(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    let mut writer = SqliteWriter::start(&head.join("x.db"), &t.dir.join("notes")).await?;
    t.push("j", "d", "n2").await?;
    for name in ["c1", "c2", "c3"] {
        let acknowledged = writer.progress()?;
        let commit = t.commit(name, "d").await?;
        t.trigger("j", name).await?;
        t.arrived(&fs_id, &commit, "n2", STEP).await?;
        let there = t.mount_commit("n2", &fs_id, &commit).await?;
        sqlite::check(&there.join("x.db"), &t.dir.join("check"), acknowledged)?;
    }
    writer.stop()?;
    Ok(())
}

async fn branch(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"one")?;
    let id = t.commit("c1", "d").await?;
    t.create("Branch", "b", &json!({"dot": "d", "from": {"commit": "c1"}})).await?;
    let branch = crate::harness::test::text(&t.ready("Branch", "b").await?, "/status/fsId")?;
    ensure!(branch != fs_id, "a branch must be a Filesystem of its own");
    let branch_head = t.mount("n1", &branch).await?;
    let commit = t.mount_commit("n1", &fs_id, &id).await?;
    same_trees(&branch_head, &commit)?;
    let before = (tree_digest(&commit)?, tree_digest(&head)?);
    std::fs::write(branch_head.join("a"), b"two")?;
    ensure!(before == (tree_digest(&commit)?, tree_digest(&head)?), "a write to the branch is seen elsewhere");
    std::fs::write(head.join("a"), b"three")?;
    ensure!(std::fs::read(branch_head.join("a"))? == b"two", "a write to the Dot is seen in the branch");
    t.commit_of("cb", "Branch", "b").await?;
    Ok(())
}

async fn on_commit(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let spec = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "schedule": {"onCommit": true}});
    t.create("ReplicationJob", "j", &spec).await?;
    for name in ["c1", "c2"] {
        let commit = t.commit(name, "d").await?;
        t.arrived(&fs_id, &commit, "n2", STEP).await?;
    }
    Ok(())
}

/// Runs from n1 that brought everything over.
async fn runs(t: &Test) -> Result<u64> {
    let (_, text) = http_get(&t.rig.node("n1")?.http, "/metrics").await?;
    let count = text.lines().find_map(|line| line.strip_prefix("dotgraft_runs_total{result=\"success\"} "));
    Ok(count.context("the metric isn't there")?.parse()?)
}

async fn schedule(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let first = t.commit("c1", "d").await?;
    let job = |schedule| json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "schedule": schedule});
    t.create("ReplicationJob", "j", &job(json!({"intervalSeconds": 10}))).await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    let second = t.commit("c2", "d").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await?;

    let shown = t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    ensure!(shown["status"]["nextScheduleTime"].is_string(), "it doesn't say when it runs next: {}", shown["status"]);
    t.rig.pause("apiserver")?;
    let alone = async {
        let before = runs(&t).await?;
        eventually("a run while the API server is down", STEP, || async {
            let now = runs(&t).await?;
            ensure!(now > before, "{before} runs before, {now} now");
            Ok(())
        })
        .await
    };
    let result = alone.await;
    t.rig.resume("apiserver")?;
    result?;
    t.rig.ready(STEP).await?;
    t.kube().delete("ReplicationJob", &t.namespace, "j").await?;

    t.create("ReplicationJob", "k", &job(json!({"cron": "61 * * * *"}))).await?;
    let refused = t.condition("ReplicationJob", "k", "Ready", "False", Some("InvalidSchedule")).await?;
    let said = condition_of(&refused, "Ready").map(|c| c["message"].to_string()).unwrap_or_default();
    ensure!(said.contains("61 * * * *") && said.contains("take five fields"), "{said}");
    t.kube().patch("ReplicationJob", &t.namespace, "k", "", &json!({"spec": {"schedule": {"cron": "@yearly"}}})).await?;
    let waits = t.condition("ReplicationJob", "k", "Ready", "False", Some("Scheduled")).await?;
    ensure!(waits["status"]["nextScheduleTime"].as_str().is_some_and(|at| at.contains("-01-01T00:00:00")), "{}", waits["status"]);
    Ok(())
}

async fn deleted_base(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), crate::steps::left::noise(8 << 20))?;
    let spec = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "schedule": {"onCommit": true}});
    t.create("ReplicationJob", "j", &spec).await?;
    let first = t.commit("c1", "d").await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    t.kube().delete("Commit", &t.namespace, "c1").await?;
    t.kube().gone("Commit", &t.namespace, "c1", STEP).await?;
    // Replicas are written after the object has gone.
    eventually("the owner not to show it, and the copy to say what it has", STEP, || async {
        let (owner, copy) = (t.replica(&fs_id, "n1").await?, t.replica(&fs_id, "n2").await?);
        ensure!(owner["status"]["commitCount"] == 0, "the owner shows it: {}", owner["status"]);
        let there = &copy["status"]["recentCommits"][0];
        ensure!(there["id"] == *first && there["deleted"] == true, "what the copy has is not told: {there}");
        Ok(())
    })
    .await?;
    let log = crate::steps::cli::dot(&t, &["log", "d"]).await?;
    ensure!(log.contains("(deleted; the next increment starts from it)"), "{log}");
    let refused = t.local("n1")?.mount(&fs_id, &t.dir.join("deleted"), Some(&first)).await;
    let said = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(said.contains("not on this node"), "it can be mounted: {said}");

    std::fs::write(head.join("b"), b"two")?;
    let second = t.commit("c2", "d").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await?;
    // Until its run has ended the job tells the bytes of the run before, which sent all.
    eventually("the job to have sent only what differs", STEP, || async {
        let job = t.condition("ReplicationJob", "j", "Ready", "True", None).await?;
        let sent = job["status"]["lastBytes"].as_u64();
        ensure!(sent.is_some_and(|sent| sent < 1 << 20), "it sent {sent:?} bytes: {}", job["status"]["report"]);
        Ok(())
    })
    .await?;
    let (here, there) = (t.mount_commit("n1", &fs_id, &second).await?, t.mount_commit("n2", &fs_id, &second).await?);
    same_trees(&here, &there)?;
    eventually("the first one to be gone everywhere", STEP, || async {
        for node in ["n1", "n2"] {
            let status = &t.replica(&fs_id, node).await?["status"];
            ensure!(status["commitCount"] == 1, "{node}: {}", status["recentCommits"]);
        }
        Ok(())
    })
    .await
}

async fn replicas(t: Arc<Test>) -> Result<()> {
    let spec = json!({"capacity": "512Mi", "placement": {"node": "n1", "replicas": 1}});
    let fs_id = t.dot_of("d", &spec).await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"one")?;
    let commit = t.commit("c1", "d").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let there = t.mount_commit("n2", &fs_id, &commit).await?;
    ensure!(std::fs::read(there.join("a"))? == b"one", "the copy must hold what was committed");
    Ok(())
}
