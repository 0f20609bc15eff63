//! What is compared: a push between two agents, `btrfs send | btrfs receive`, and `rsync -a`; on the same two pools, each until
//! the data is durable on the target.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dotgraft_rig::harness::test::Test;
use dotgraft_rig::rig::Rig;
use dotgraft_rig::rig::programs::http_get;
use dotgraft_rig::rig::wait::eventually_quiet;
use serde_json::{Value, json};

use crate::report::median;
use crate::sets::Set;

/// Longest that any one step may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Two pools and the way to both.
pub struct Bench<'a> {
    rig: &'a Rig,
    test: &'a Test,
    from: PathBuf,
    to: PathBuf,
    count: AtomicUsize,
}

/// A Dot of one round.
struct Volume {
    name: String,
    fs_id: String,
    head: PathBuf,
    commits: Vec<String>,
}

impl<'a> Bench<'a> {
    /// On a running rig.
    pub fn new(rig: &'a Rig, test: &'a Test) -> Result<Self> {
        let pool = |node: &str| rig.node(node).map(|n| n.files.state.join("pool"));
        Ok(Self { rig, test, from: pool("n1")?, to: pool("n2")?, count: AtomicUsize::new(0) })
    }

    /// Every contender once, in an order that changes from round to round.
    pub async fn round(&self, set: Set, scale: u64, round: usize, cold: bool) -> Result<Vec<(&'static str, f64)>> {
        let mut volume = self.volume(set, scale).await?;
        if set.incremental() {
            self.push(&volume, "base").await?;
            self.receive_base(&volume)?;
            self.rsync(&self.commit_path(&volume, 0))?;
            set.change(&volume.head, scale)?;
            self.commit(&mut volume).await?;
        }
        let mut order = [0, 1, 2];
        order.rotate_left(round % 3);
        let mut times = Vec::new();
        for contender in order {
            self.settle(cold, &volume)?;
            times.push(match contender {
                0 => ("dotgraft", self.push(&volume, "measured").await?),
                1 => ("btrfs send | receive", self.send_receive(&volume)?),
                _ => ("rsync -a", self.rsync(&self.commit_path(&volume, volume.commits.len() - 1))?),
            });
        }
        self.clean(&volume).await?;
        Ok(times)
    }

    async fn volume(&self, set: Set, scale: u64) -> Result<Volume> {
        let name = format!("v{}", self.count.fetch_add(1, Ordering::Relaxed));
        let spec = json!({"capacity": "6Gi", "historyLimit": "6Gi", "placement": {"node": "n1"}});
        let fs_id = self.test.dot_of(&name, &spec).await?;
        let head = self.test.mount("n1", &fs_id).await?;
        let mut volume = Volume { name, fs_id, head, commits: Vec::new() };
        set.base(&volume.head, scale)?;
        self.commit(&mut volume).await?;
        Ok(volume)
    }

    async fn commit(&self, volume: &mut Volume) -> Result<()> {
        let name = format!("{}-{}", volume.name, volume.commits.len());
        volume.commits.push(self.test.commit(&name, &volume.name).await?);
        Ok(())
    }

    fn commit_path(&self, volume: &Volume, index: usize) -> PathBuf {
        let id = volume.commits.get(index).map(String::as_str).unwrap_or_default();
        self.from.join("fs").join(&volume.fs_id).join("commits").join(id)
    }

    /// Starts a run and waits; its time is that of the agent's own report.
    async fn push(&self, volume: &Volume, trigger: &str) -> Result<f64> {
        let job = format!("{}-to-n2", volume.name);
        if self.test.kube().get("ReplicationJob", &self.test.namespace, &job).await?.is_none() {
            let spec = json!({"direction": "Push", "source": {"names": [volume.name]}, "target": {"node": "n2"}, "trigger": trigger});
            self.test.create("ReplicationJob", &job, &spec).await?;
        } else {
            self.test.trigger(&job, trigger).await?;
        }
        let report = self.report(volume, trigger).await?;
        let at = |field: &str| report.get(field).and_then(Value::as_i64).with_context(|| format!("no {field} in the report"));
        let planning = waited(&report);
        #[allow(clippy::cast_precision_loss)] // milliseconds of one run
        Ok((at("finishedAt")? - at("startedAt")? - planning) as f64 / 1000.0)
    }

    async fn report(&self, volume: &Volume, trigger: &str) -> Result<Value> {
        let local = self.test.local("n1")?;
        eventually_quiet("the run", PATIENCE, || async {
            let status = local.status(&volume.fs_id).await?;
            let job = status.pointer("/jobs/0").cloned().unwrap_or_default();
            let done = job.pointer("/row/observedTrigger").and_then(Value::as_str) == Some(trigger)
                && job.pointer("/report/state").and_then(Value::as_str) == Some("Completed")
                && job.pointer("/row/owed").and_then(Value::as_bool) == Some(false);
            ensure!(done, "runs");
            if let Some(problem) = job.pointer("/report/problem").filter(|p| !p.is_null()) {
                bail!("the run failed: {problem}");
            }
            Ok(job.pointer("/report").cloned().unwrap_or_default())
        })
        .await
    }

    /// Everything written, and for a cold run nothing of it in memory.
    fn settle(&self, cold: bool, volume: &Volume) -> Result<()> {
        for pool in [&self.from, &self.to] {
            run(Command::new("btrfs").args(["filesystem", "sync"]).arg(pool))?;
        }
        if cold {
            std::fs::write("/proc/sys/vm/drop_caches", "3")?;
        } else {
            let last = self.commit_path(volume, volume.commits.len() - 1);
            run(Command::new("sh").arg("-c").arg("find \"$0\" -type f -exec cat {} + >/dev/null").arg(last))?;
        }
        Ok(())
    }

    fn target(&self) -> PathBuf {
        self.to.join("bench")
    }

    fn receive_base(&self, volume: &Volume) -> Result<()> {
        self.pipe(None, &self.commit_path(volume, 0))
    }

    fn send_receive(&self, volume: &Volume) -> Result<f64> {
        let last = volume.commits.len() - 1;
        let parent = (last > 0).then(|| self.commit_path(volume, last - 1));
        let start = Instant::now();
        self.pipe(parent.as_deref(), &self.commit_path(volume, last))?;
        self.durable()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn pipe(&self, parent: Option<&Path>, commit: &Path) -> Result<()> {
        let target = self.target().join("received");
        std::fs::create_dir_all(&target)?;
        let script = "set -o pipefail; btrfs send -q --proto 2 ${1:+-p \"$1\"} \"$2\" | btrfs receive -q \"$3\"";
        let parent = parent.unwrap_or_else(|| Path::new(""));
        run(Command::new("bash").args(["-c", script, "pipe"]).arg(parent).arg(commit).arg(target))
    }

    fn rsync(&self, commit: &Path) -> Result<f64> {
        let target = self.target().join("rsync");
        std::fs::create_dir_all(&target)?;
        let start = Instant::now();
        run(Command::new("rsync").args(["-a", "--delete"]).arg(format!("{}/", commit.display())).arg(&target))?;
        self.durable()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn durable(&self) -> Result<()> {
        run(Command::new("sync").arg("-f").arg(&self.to))
    }

    async fn clean(&self, volume: &Volume) -> Result<()> {
        self.test.unmount(&volume.head).await?;
        let received = self.target().join("received");
        for entry in std::fs::read_dir(&received)? {
            run(Command::new("btrfs").args(["-q", "subvolume", "delete"]).arg(entry?.path()))?;
        }
        std::fs::remove_dir_all(self.target().join("rsync"))?;
        let namespace = &self.test.namespace;
        self.test.kube().kubectl(&["delete", "replicationjob,commit,dot", "--all", "-n", namespace, "--timeout=120s"]).await?;
        for pool in [&self.from, &self.to] {
            run(Command::new("btrfs").args(["subvolume", "sync"]).arg(pool))?;
        }
        Ok(())
    }

    /// Set D and the small figures: a run with nothing to do, commits, an agent's cold start.
    pub async fn idle_and_commits(&self) -> Result<String> {
        let mut volume = self.volume(Set::B, 20).await?;
        self.push(&volume, "first").await?;
        let mut agents = Vec::new();
        let mut whole = Vec::new();
        for i in 0..10 {
            let start = Instant::now();
            agents.push(self.push(&volume, &format!("idle{i}")).await?);
            whole.push(start.elapsed().as_secs_f64());
        }
        let before = self.commit_seconds().await?;
        for i in 0..20u8 {
            std::fs::write(volume.head.join("dirty"), vec![i; 4 << 20])?;
            self.commit(&mut volume).await?;
        }
        let after = self.commit_seconds().await?;
        let each = (after.0 - before.0) / (after.1 - before.1).max(1.0);
        let start = self.cold_start().await?;
        self.test.unmount(&volume.head).await?;
        Ok(format!(
            "D, nothing to do: {:.0} ms in the agents (median of {}), {:.0} ms with its objects\n\
             commit with 4 MiB dirty: {:.1} ms in the driver (mean of {:.0})\n\
             agent, from start to ready: {start:.2} s",
            median(&agents) * 1000.0,
            agents.len(),
            median(&whole) * 1000.0,
            each * 1000.0,
            after.1 - before.1,
        ))
    }

    /// Sum and count of the agent's histogram.
    async fn commit_seconds(&self) -> Result<(f64, f64)> {
        let (_, text) = http_get(&self.rig.node("n1")?.http, "/metrics").await?;
        let value = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).with_context(|| format!("no {name}"))?;
            line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).with_context(|| format!("{name} is no number"))
        };
        Ok((value("dotgraft_commit_seconds_sum")?, value("dotgraft_commit_seconds_count")?))
    }

    async fn cold_start(&self) -> Result<f64> {
        self.rig.kill9("n1")?;
        let start = Instant::now();
        self.rig.start("n1")?;
        self.rig.ready(PATIENCE).await?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Milliseconds that the run slept because the receiver's object was not there yet: its first attempt's, before the second began.
fn waited(report: &Value) -> i64 {
    let attempts = report.get("attempts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let first = attempts.first().and_then(|a| a.get("startedAt")).and_then(Value::as_i64);
    let last = attempts.last().and_then(|a| a.get("startedAt")).and_then(Value::as_i64);
    first.zip(last).map_or(0, |(first, last)| last - first)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{:?}: {}", command.get_args().collect::<Vec<_>>(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
