//! The agent replaced under a pod that writes (failures.md row 28): the pod sees nothing of it.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::data::synced::{self, BLOCK};
use crate::harness::{Case, Test};
use crate::rig::command;
use crate::rig::process::ENDS;
use crate::steps::pods::writer::Writer;
use crate::steps::pods::{STEP, claim, clear, fs_id};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "28-upgraded",
            "an agent upgraded a dozen times under a writing pod: no error, same superblock, loop and mounts",
            upgraded,
        )
        .kubelets(),
    ]
}

/// How often the agent is replaced; in turn by SIGTERM and by `kill -9`.
const ROUNDS: u32 = 12;

/// What must stay: the pod's own mount, all mounts of the volume on the node, and the loop devices of the pool.
async fn mounts(t: &Test, writer: &Writer, id: &str) -> Result<(String, Vec<String>, String)> {
    let machine = t.rig.machine(&writer.node)?;
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", machine.init()?.as_raw_nonzero()))?;
    let of_node = table.lines().filter(|line| line.contains(id)).map(str::to_owned).collect();
    let loops = command::output(Command::new("losetup").arg("-j").arg(&t.rig.node(&writer.node)?.files.pool_file), "losetup")?;
    Ok((writer.mount(t).await?, of_node, loops))
}

/// Blocks per second that are acknowledged in two seconds in which nothing happens.
async fn rate(t: &Test, writer: &Writer) -> Result<f64> {
    let (start, before) = (Instant::now(), writer.noted(t)?.newest);
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(per_second(writer.noted(t)?.newest - before, start))
}

#[allow(clippy::cast_precision_loss)] // some thousands
fn per_second(blocks: u64, since: Instant) -> f64 {
    blocks as f64 / since.elapsed().as_secs_f64()
}

async fn upgraded(t: Arc<Test>) -> Result<()> {
    claim(&t, "data", "1Gi").await?;
    let writer = Writer::start(&t, "w", "data", "n2").await?;
    let id = fs_id(&t, "data").await?;
    let before = mounts(&t, &writer, &id).await?;
    ensure!(!before.1.is_empty() && before.2.lines().count() == 1, "the test's own setup: {before:?}");
    let undisturbed = rate(&t, &writer).await?;
    let (start, first) = (Instant::now(), writer.noted(&t)?.newest);
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            let status = t.rig.processes.end("n2", Signal::TERM, ENDS)?;
            ensure!(status.success(), "the agent was asked to end and said {status}");
        } else {
            t.rig.kill9("n2")?;
        }
        writer.goes_on(&t, 20).await?;
        t.rig.start("n2")?;
        t.rig.ready(STEP).await?;
        let now = mounts(&t, &writer, &id).await?;
        ensure!(now == before, "after {} replacements:\n{now:?}\nbefore:\n{before:?}", round + 1);
    }
    let noted = writer.noted(&t)?;
    println!(
        "        {ROUNDS} agents in {:.1} s under {:.0} fsyncs of {BLOCK} bytes a second ({undisturbed:.0} undisturbed); the longest took {} ms",
        start.elapsed().as_secs_f64(),
        per_second(noted.newest - first, start),
        noted.longest.as_millis()
    );
    let found = synced::check(&writer.file(&t).await?, noted.newest)?;
    ensure!(found >= noted.newest, "{found}");
    clear(&t, &["data"]).await
}
