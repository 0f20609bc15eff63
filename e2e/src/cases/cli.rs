//! The real `kubectl-dot` at work, and what a job says that can't run.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::eventually;
use crate::steps::cli::dot;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("cli-commit-log", "kubectl dot commit takes a commit, and log lists it first", commit_log),
        Case::new("cli-branch-push-status", "kubectl dot branch, push and status do and say what is", branch_push_status),
        Case::new("cli-status-age", "status says what of a volume is on one node only: commits, and what was written since", status_age),
        Case::new("cli-move-promote", "kubectl dot move and promote do and say what is", move_promote),
        Case::new("volume-full", "a full volume says which of the two is used up, files or history, and what to do", full),
        Case::new("job-no-node", "a job whose target node does not exist says so by a typed reason", no_node),
        Case::new("6-two-jobs", "two jobs to one target: one at a time, both complete", two_jobs),
    ]
}

async fn dot_json(t: &Test, args: &[&str]) -> Result<Value> {
    let mut all = args.to_vec();
    all.extend(["-o", "json"]);
    let out = dot(t, &all).await?;
    serde_json::from_str(&out).with_context(|| format!("kubectl dot {} printed {out:?}", all.join(" ")))
}

async fn commit_log(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let mut ids = Vec::new();
    for message in ["first", "second"] {
        dot(&t, &["commit", "d", "-m", message]).await?;
        ids.push(text(&t.replica(&fs_id, "n1").await?, "/status/head")?);
    }
    ensure!(ids.first() != ids.last(), "two commits, one id");
    let log = dot_json(&t, &["log", "d"]).await?.to_string();
    let at = |needle: &str| log.find(needle).with_context(|| format!("{needle} is not in {log}"));
    ensure!(at("second")? < at("first")?, "the newest must come first: {log}");
    for id in &ids {
        at(id)?;
    }
    let unknown = dot(&t, &["commit", "nothing-of-that-name"]).await;
    ensure!(unknown.is_err_and(|e| e.to_string().contains("there is no Dot or Branch")), "an unknown name must be an error");
    // As `log` prints it, and what nobody has.
    let first = ids.first().context("two")?;
    dot(&t, &["branch", "d", "b", "--commit", &first[..18]]).await?;
    ensure!(t.object("Branch", "b").await?["spec"]["from"]["commit"] == **first, "it starts from that commit");
    for command in [&["branch", "d", "typo", "--commit", "ffff"][..], &["reset", "d", "--to", "no-such-commit"][..]] {
        let refused = dot(&t, command).await;
        ensure!(refused.is_err_and(|e| e.to_string().contains("kubectl dot log")), "{command:?} must say at once that there is none");
    }
    ensure!(t.kube().names("Branch", &t.namespace, |_| true).await? == ["b"], "a typo leaves a Branch behind");
    ensure!(t.kube().names("DotOperation", &t.namespace, |_| true).await?.is_empty(), "a typo leaves an operation behind");
    Ok(())
}

async fn branch_push_status(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    dot(&t, &["branch", "d", "b"]).await?;
    t.ready("Branch", "b").await?;
    for (node, says) in [("n9", "TargetNotFound"), ("n1", "TargetIsOwner")] {
        let refused = dot(&t, &["push", "d", "--to", node]).await;
        ensure!(refused.is_err_and(|e| e.to_string().contains(says)), "a push to {node} must say at once that it can't be");
    }
    eventually("the jobs of pushes that can't be to go", STEP, || async {
        let left = t.kube().names("ReplicationJob", &t.namespace, |_| true).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    dot(&t, &["push", "d", "--to", "n2"]).await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    eventually("status to say all that", STEP, || async {
        let status = dot_json(&t, &["status"]).await?;
        let volumes = status["volumes"].as_array().cloned().unwrap_or_default();
        let dot = volumes.iter().find(|v| v["name"].as_str().is_some_and(|n| n.ends_with('d'))).context("the Dot is not listed")?;
        ensure!(dot["owner"] == "n1" && dot["head"] == *commit && dot["ready"] == true, "{status}");
        ensure!(volumes.len() == 2, "{status}");
        ensure!(status["jobs"].as_array().is_some_and(|j| j.len() == 1), "{status}");
        Ok(())
    })
    .await
}

/// After a push that is over: newer commits and newer writes are missing on the target, and everything says so.
async fn status_age(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let first = t.commit("c1", "d").await?;
    dot(&t, &["push", "d", "--to", "n2"]).await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    let copy_on_n2 = |dot: &Value| {
        let copies = dot.pointer("/status/replicas").and_then(Value::as_array).cloned().unwrap_or_default();
        copies.into_iter().find(|c| c["node"] == "n2").context("no copy on n2")
    };
    eventually("the copy to lack nothing", STEP, || async {
        let copy = copy_on_n2(&t.object("Dot", "d").await?)?;
        ensure!(copy["commit"] == *first && copy["missing"].is_null() && copy["behindSince"].is_null(), "{copy}");
        ensure!(dot(&t, &["status", "d"]).await?.contains("yes: all of it is on n2"), "status doesn't say that it is safe");
        Ok(())
    })
    .await?;
    t.commit("c2", "d").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("newer"), "than any commit")?;
    rustix::fs::syncfs(std::fs::File::open(&head)?)?;
    t.unmount(&head).await?;
    let mut job = t.kube().names("ReplicationJob", &t.namespace, |_| true).await?;
    let job = job.pop().context("the push made a job")?;
    eventually("all to say what is missing", STEP, || async {
        let object = t.object("Dot", "d").await?;
        let copy = copy_on_n2(&object)?;
        ensure!(copy["missing"] == 1 && copy["behindSince"].is_string() && copy["commitTime"].is_string(), "{copy}");
        ensure!(object["status"]["writtenSince"].is_string(), "nobody has seen the write");
        let of_job = t.object("ReplicationJob", &job).await?;
        ensure!(
            of_job["status"]["behindSince"] == copy["behindSince"],
            "the copy lacks it since {copy}, the job says {}",
            of_job["status"]
        );
        let said = dot(&t, &["status", "d"]).await?;
        ensure!(said.contains("1 commit, and what was written in the last") && said.contains("but for the last"), "{said}");
        Ok(())
    })
    .await
}

/// Writes that much under that name, as far as it fits.
async fn written(t: &Test, fs_id: &str, name: &str, mib: usize) -> Result<()> {
    let head = t.mount("n1", fs_id).await?;
    let _ = std::fs::write(head.join(name), crate::steps::left::noise(mib << 20)); // "disk quota exceeded" is what is wanted
    rustix::fs::syncfs(std::fs::File::open(&head)?)?;
    t.unmount(&head).await
}

async fn full(t: Arc<Test>) -> Result<()> {
    let of = |capacity: &str, history: &str| json!({"capacity": capacity, "historyLimit": history, "placement": {"node": "n1"}});
    let files = t.dot_of("files", &of("32Mi", "32Mi")).await?;
    let history = t.dot_of("history", &of("48Mi", "16Mi")).await?;
    t.commit("files-1", "files").await?; // it is looked at soon after
    written(&t, &files, "a", 80).await?;
    for (n, name) in ["history-1", "history-2", "history-3"].iter().enumerate() {
        written(&t, &history, "a", 24).await.with_context(|| format!("the write {n}"))?;
        t.create("Commit", name, &json!({"source": {"kind": "Dot", "name": "history"}})).await?;
        if n < 2 {
            t.ready("Commit", name).await?;
        }
    }
    for (name, reason, advice) in [("files", "FilesFull", "raise capacity"), ("history", "HistoryFull", "delete Commits")] {
        let dot = t.condition("Dot", name, "Full", "True", Some(reason)).await?;
        ensure!(conditions(&dot).contains(advice), "{}", conditions(&dot));
    }
    let said = dot(&t, &["status", "files"]).await?;
    ensure!(said.contains("FilesFull") && said.contains("runbook.md#filesfull"), "{said}");
    // Room is seen to come back.
    let head = t.mount("n1", &files).await?;
    std::fs::remove_file(head.join("a"))?;
    rustix::fs::syncfs(std::fs::File::open(&head)?)?; // the kernel gives it back with its next transaction
    t.unmount(&head).await?;
    eventually("it to have room again", STEP, || async {
        let dot = t.object("Dot", "files").await?;
        ensure!(!conditions(&dot).contains("Full"), "{}", conditions(&dot));
        Ok(())
    })
    .await
}

async fn move_promote(t: Arc<Test>) -> Result<()> {
    t.dot("d", "n1").await?;
    t.commit("c", "d").await?;
    let moved = dot(&t, &["move", "d", "--to", "n2"]).await?;
    ensure!(moved.contains("dot/d") && moved.contains("n1") && moved.contains("ms"), "{moved}");
    ensure!(t.object("Dot", "d").await?["status"]["owner"] == "n2");
    let nowhere = dot(&t, &["move", "d", "--to", "n9"]).await;
    ensure!(nowhere.is_err_and(|e| e.to_string().contains("no agent runs there")), "a node without agent must be an error");
    dot(&t, &["move", "d", "--to", "n2"]).await?;
    let careful = dot(&t, &["promote", "d", "--to", "n1"]).await;
    ensure!(careful.is_err_and(|e| e.to_string().contains("acceptLoss")), "a promotion that may lose something must be an error");
    let promoted = dot(&t, &["promote", "d", "--to", "n1", "--accept-loss"]).await?;
    ensure!(promoted.contains("n2") && promoted.contains("n1"), "{promoted}");
    Ok(())
}

async fn no_node(t: Arc<Test>) -> Result<()> {
    t.dot("d", "n1").await?;
    t.commit("c", "d").await?;
    t.push("j", "d", "no-such-node").await?;
    eventually("the job to name what is missing", STEP, || async {
        let job = t.object("ReplicationJob", "j").await?;
        let list = job.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        let says = |c: &Value| {
            c["status"] == "False" && c["reason"] != "Pending" && c["message"].as_str().is_some_and(|m| m.contains("no-such-node"))
        };
        ensure!(list.iter().any(says), "{}", conditions(&job));
        Ok(())
    })
    .await
}

/// Row 6: the receiver takes one transfer of a Filesystem at a time; the other waits and then finds nothing to do.
async fn two_jobs(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    let mut bytes = vec![0u8; 6 << 20];
    blake3::Hasher::new_derive_key("dotgraft e2e two jobs").finalize_xof().fill(&mut bytes);
    std::fs::write(head.join("a"), &bytes)?;
    let commit = t.commit("c", "d").await?;
    for name in ["j1", "j2"] {
        let spec = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "limits": {"bandwidth": "2Mi"}});
        t.create("ReplicationJob", name, &spec).await?;
    }
    for name in ["j1", "j2"] {
        t.condition("ReplicationJob", name, "Ready", "True", Some("Completed")).await?;
    }
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let mut sent = 0;
    for name in ["j1", "j2"] {
        let job = t.object("ReplicationJob", name).await?;
        sent += job.pointer("/status/progress/replicatedBytes").and_then(Value::as_u64).unwrap_or(0);
    }
    ensure!(sent < 2 * (6 << 20), "the commit was sent twice: {sent} bytes");
    let there = t.mount_commit("n2", &fs_id, &commit).await?;
    ensure!(std::fs::read(there.join("a"))? == bytes, "the copy differs");
    Ok(())
}
