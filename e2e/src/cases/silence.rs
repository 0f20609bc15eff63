//! A kernel that reads for minutes before it has a byte to send, as when it compares large trees: nobody cuts the stream, the job says
//! what it waits for, and it has a bound.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::same_trees;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::left::noise;

/// `BYTES:SECONDS` of a kernel that goes silent, once in each send.
const PAUSE: &str = "DOTGRAFT_SEND_PAUSE";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let goes = "a kernel that gives no byte for five times the receiver's patience: pushed at the first attempt, and the job says so";
    let ends = "a kernel that gives no byte for longer than its bound: a Timeout that says so, and once it gives some the push completes";
    vec![Case::new("job-silent-kernel", goes, silent_kernel), Case::new("job-kernel-bound", ends, kernel_bound)]
}

/// A Dot on n1 with a copy of its first commit on n2, and job `j` that brings each next one.
async fn copied(t: &Arc<Test>) -> Result<(String, String)> {
    let fs_id = t.dot("d", "n1").await?;
    let first = written(t, &fs_id, "a").await?;
    let spec = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "schedule": {"onCommit": true}});
    t.create("ReplicationJob", "j", &spec).await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("UpToDate")).await?;
    Ok((fs_id, first))
}

/// A commit named like the file of 2 MiB that is new in it.
async fn written(t: &Test, fs_id: &str, name: &str) -> Result<String> {
    let head = t.mount("n1", fs_id).await?;
    std::fs::write(head.join(name), noise(2 << 20))?;
    t.unmount(&head).await?;
    t.commit(name, "d").await
}

async fn restart_with(t: &Test, node: &str, more: &[&str], pause: Option<&str>) -> Result<()> {
    let mut args = t.rig.processes.args(node)?;
    args.extend(more.iter().map(ToString::to_string));
    t.rig.processes.set_args(node, args)?;
    t.rig.restart_with_env(node, PAUSE, pause).await
}

async fn silent_kernel(t: Arc<Test>) -> Result<()> {
    restart_with(&t, "n2", &["--peer-silence", "4"], None).await?;
    let (fs_id, _) = copied(&t).await?;
    // In the middle of a frame, so that a part of it waits with the sender.
    restart_with(&t, "n1", &[], Some("1500000:20")).await?;
    let second = written(&t, &fs_id, "b").await?;
    eventually("the job to say that the kernel reads", STEP, || async {
        let job = t.object("ReplicationJob", "j").await?;
        let waits = job.pointer("/status/report/items/0/blockedOn").and_then(Value::as_str).context("it waits for nothing")?;
        ensure!(waits.contains("no bytes for"), "it waits for {waits}");
        ensure!(job.pointer("/status/problem").is_none_or(Value::is_null), "{}", job["status"]["problem"]);
        Ok(())
    })
    .await?;
    let behind = t.condition("ReplicationJob", "j", "Ready", "False", Some("Behind")).await?;
    ensure!(behind["status"]["behindSince"].is_string(), "{}", behind["status"]);
    t.arrived(&fs_id, &second, "n2", STEP).await?;
    let job = t.condition("ReplicationJob", "j", "Ready", "True", Some("UpToDate")).await?;
    ensure!(job["status"]["attempt"] == 1, "attempt {}: {}", job["status"]["attempt"], job["status"]["attempts"]);
    let (here, there) = (t.mount_commit("n1", &fs_id, &second).await?, t.mount_commit("n2", &fs_id, &second).await?);
    same_trees(&here, &there)?;
    t.unmount(&here).await?;
    t.unmount(&there).await
}

async fn kernel_bound(t: Arc<Test>) -> Result<()> {
    let (fs_id, _) = copied(&t).await?;
    restart_with(&t, "n1", &["--kernel-silence", "3"], Some("0:12")).await?;
    let second = written(&t, &fs_id, "b").await?;
    let job = t.condition("ReplicationJob", "j", "Degraded", "True", Some("Timeout")).await?;
    let said = job.pointer("/status/problem/message").and_then(Value::as_str).unwrap_or_default();
    ensure!(said.contains("gave no byte for") && said.contains("--kernel-silence"), "it says {said:?}");
    t.rig.restart_with_env("n1", PAUSE, None).await?;
    t.arrived(&fs_id, &second, "n2", STEP).await?;
    eventually("the job to be out of trouble", STEP, || async {
        let job = t.object("ReplicationJob", "j").await?;
        ensure!(job.pointer("/status/problem").is_none_or(Value::is_null), "{}", job["status"]["problem"]);
        Ok(())
    })
    .await
}
