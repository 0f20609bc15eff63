//! An agent killed at every journal record of an operation.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::left::on_disk;
use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::kube::{condition_of, conditions};
use crate::rig::wait::eventually;

/// What the agent is killed in.
pub trait Operation: Send + Sync + 'static {
    /// Whose agent is killed.
    fn node(&self) -> &'static str;
    /// Records that it must have; others are found by themselves.
    fn has(&self) -> &'static [&'static str];
    /// Makes what the `n`-th operation is done to, undisturbed.
    fn prepare(&self, t: &Test, n: usize) -> impl Future<Output = Result<()>> + Send;
    /// Asks for it.
    fn begin(&self, t: &Test, n: usize) -> impl Future<Output = Result<()>> + Send;
    /// An error until it is done. Returns the `FsId` to compare by, if anything is left to compare.
    fn ended(&self, t: &Test, n: usize) -> impl Future<Output = Result<Option<String>>> + Send;
    /// Every second, the `k`-th time: spares a peer's growing sleeps; that they end by themselves is tested elsewhere.
    fn nudge(&self, _: &Test, _: usize, _: u64) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
    /// What must be true of it after all, with every program well.
    fn check(&self, t: &Test, n: usize) -> impl Future<Output = Result<()>> + Send;
}

/// The variable that names the record before or after which an agent of a debug build kills itself.
pub const FAILPOINT: &str = "DOTGRAFT_FAILPOINT";

/// What an operation writes after its end is visible, it has mostly written by then.
pub const AFTERMATH: Duration = Duration::from_millis(400);

/// Longest that a record may come after the end where it must come.
pub const LATE: Duration = Duration::from_secs(60);

/// Runs it undisturbed, then kills the agent at each record that it had, before and after.
pub async fn everywhere(t: Arc<Test>, operation: impl Operation) -> Result<()> {
    let node = operation.node();
    let mut points = records(&t, &operation).await?;
    let (mut number, mut done) = (0, vec![operation.ended(&t, 0).await?]);
    while !points.is_empty() {
        number += 1;
        let before = points.len();
        operation.prepare(&t, number).await?;
        arm(&t, node, points.front()).await?;
        operation.begin(&t, number).await?;
        done.push(until_ended(&t, &operation, number, &mut points).await?);
        ensure!(points.len() < before, "{:?} was never met: the records differ from those of the first operation", points.front());
        t.rig.restart_with_env(node, FAILPOINT, None).await?;
    }
    for (number, fs_id) in done.iter().enumerate() {
        operation.check(&t, number).await.with_context(|| format!("of number {number}"))?;
        let (Some(fs_id), Some(Some(first))) = (fs_id, done.first()) else { continue };
        eventually(&format!("number {number} to look as the undisturbed one"), STEP, || async {
            let (found, wanted) = (shape(&t, node, fs_id).await?, shape(&t, node, first).await?);
            ensure!(found == wanted, "it is\n{found}\nand the undisturbed one\n{wanted}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Restarts a node's agent so that it dies at that record, or nowhere.
pub async fn arm(t: &Test, node: &str, point: Option<&String>) -> Result<()> {
    t.rig.restart_with_env(node, FAILPOINT, point.map(String::as_str)).await
}

/// Waits for the operation's end; whenever the agent dies of a point, it is started again with the next one.
pub async fn until_ended(t: &Test, operation: &impl Operation, n: usize, points: &mut VecDeque<String>) -> Result<Option<String>> {
    let node = operation.node();
    let (mut since, mut ended) = (Instant::now(), None);
    let (start, mut nudges, all) = (Instant::now(), 0, points.len());
    loop {
        if start.elapsed().as_secs() > nudges {
            nudges += 1;
            operation.nudge(t, n, nudges).await?;
        }
        if t.rig.processes.exited(node)?.is_some() {
            points.pop_front().context("it died with no point armed")?;
            arm(t, node, points.front()).await?;
            (since, ended) = (Instant::now(), None);
        }
        // The first point is of a record that every operation has.
        let aftermath = if points.len() == all { LATE } else { AFTERMATH };
        match operation.ended(t, n).await {
            Ok(fs_id) if ended.get_or_insert_with(Instant::now).elapsed() > aftermath => return Ok(fs_id),
            Err(e) if since.elapsed() > STEP => return Err(e).context(format!("not done after {STEP:?}, armed: {:?}", points.front())),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Number 0, with no point armed: `before` and `after` of each record that its log shows.
pub async fn records(t: &Test, operation: &impl Operation) -> Result<VecDeque<String>> {
    let node = operation.node();
    t.rig.restart_with_env(node, "RUST_LOG", Some("info,dotgraft_agent::journal=debug")).await?;
    t.rig.ready(STEP).await?;
    operation.prepare(t, 0).await?;
    let from = std::fs::metadata(t.rig.processes.log(node))?.len();
    operation.begin(t, 0).await?;
    eventually("the undisturbed operation", STEP, || operation.ended(t, 0)).await?;
    let all = || async {
        let names = logged(t, node, from)?;
        for must in operation.has() {
            ensure!(names.iter().any(|n| n == must), "no record {must} among {names:?}");
        }
        Ok(())
    };
    eventually("all of its records", LATE, all).await?;
    tokio::time::sleep(AFTERMATH).await;
    let names = logged(t, node, from)?;
    println!("        before and after {}", names.join(", "));
    t.rig.processes.set_env(node, "RUST_LOG", None)?;
    Ok(names.iter().flat_map(|name| [format!("before:{name}"), format!("after:{name}")]).collect())
}

/// The records in an agent's log from that byte on, each once.
pub fn logged(t: &Test, node: &str, from: u64) -> Result<Vec<String>> {
    let log = std::fs::read(t.rig.processes.log(node))?;
    let log = String::from_utf8_lossy(log.get(usize::try_from(from)?..).unwrap_or_default()).into_owned();
    let mut names: Vec<String> = Vec::new();
    for line in log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()) {
        let name = line.pointer("/record").or_else(|| line.pointer("/fields/record")).and_then(Value::as_str);
        if let Some(name) = name.filter(|n| !names.iter().any(|known| known == n)) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// How a copy looks to its agent and on disk, without what differs from one to the next.
pub async fn shape(t: &Test, node: &str, fs_id: &str) -> Result<String> {
    let all = t.local(node)?.status(fs_id).await?;
    let s = all.as_array().and_then(|list| list.first()).cloned().unwrap_or(all);
    let conditions: Vec<Value> = s["conditions"]
        .as_array()
        .with_context(|| format!("no conditions in {s}"))?
        .iter()
        .map(|c| json!([c["type"], c["status"], c["reason"]]))
        .collect();
    let requests: Vec<&Value> = s["requests"].as_array().into_iter().flatten().map(|r| &r["state"]).collect();
    let disk = on_disk(t, node, fs_id)?.context("nothing is on its disk")?;
    let of = |key: &str| s[key].clone();
    let known = json!({
        "role": of("role"), "managed": of("managed"), "epoch": of("epoch"), "opened": of("openedEpoch"), "commits": of("commits"),
        "receiving": of("receiving"), "frozen": of("frozen"), "life": s["base"]["life"], "conditions": conditions, "requests": requests,
    });
    Ok(format!("{known}\n{}", disk.join(" ")))
}

/// The owner, n1, keeps only commits, and says so.
pub async fn headless(t: &Test, fs_id: &str) -> Result<()> {
    let disk = on_disk(t, "n1", fs_id)?.context("nothing is on its disk")?;
    ensure!(!disk.iter().any(|d| d == "head") && disk.iter().any(|d| d == "commits/*"), "{disk:?}");
    let replica = t.replica(fs_id, "n1").await?;
    let ready = condition_of(&replica, "Ready").cloned().unwrap_or_default();
    ensure!(ready["status"] == "True" && ready["reason"] == "Headless", "{}", conditions(&replica));
    Ok(())
}
