//! Links that are slow: between sites, or when much else uses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::pod::{claim, filesystem, pod, started};

/// Longest that one step may take.
const STEP: Duration = Duration::from_secs(180);
/// Seconds that the link needs at least for what is pushed: longer than a connection lives whose pings are not answered.
const NEEDS: u64 = 32;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("push-slow", "a push over a link of 60 KB/s is done by one connection, and says meanwhile how far it is", slow)
            .kubelets()
            .within(STEP * 3),
    ]
}

async fn slow(t: Arc<Test>) -> Result<()> {
    claim(&t, "d").await?;
    let script = "dd if=/dev/urandom of=/data/f bs=1M count=2; sync; touch /data/ready; sleep 1000";
    pod(&t, "w", "d", "n1", script).await?;
    started(&t, "w").await?;
    eventually("it to have written", STEP, || t.kubectl(&["exec", "w", "--", "ls", "/data/ready"])).await?;
    let fs_id = filesystem(&t, "d").await?;
    let commit = t.commit("c", "d").await?;
    t.rig.machine("n1")?.limit(Some("480kbit"))?;
    let result = pushed(&t, &fs_id, &commit).await;
    t.rig.machine("n1")?.limit(None)?;
    result?;
    t.kubectl(&["delete", "pod,pvc", "--all", "--timeout=180s"]).await.map(drop)
}

async fn pushed(t: &Test, fs_id: &str, commit: &str) -> Result<()> {
    let start = Instant::now();
    t.push("j", "d", "n2").await?;
    let told = AtomicBool::new(false);
    let status = eventually("the job to be done", STEP, || async {
        let status = t.object("ReplicationJob", "j").await?["status"].clone();
        let is_done = status["finishedAt"].is_string();
        if !is_done && status["progress"]["bytesPerSecond"].as_u64() > Some(0) {
            told.store(true, Ordering::Relaxed);
        }
        ensure!(is_done, "{status}");
        Ok(status)
    })
    .await?;
    let took = start.elapsed();
    t.arrived(fs_id, commit, "n2", STEP).await?;
    println!("        2 MiB at 60 KB/s: {:.0} s", took.as_secs_f64());
    ensure!(took.as_secs() >= NEEDS, "the link was fast: {took:?}");
    ensure!(told.load(Ordering::Relaxed), "it never said how far it was");
    for error in status["report"]["attempts"].as_array().into_iter().flatten().map(|a| &a["error"]) {
        ensure!(error.is_null() || error["reason"] == "NotPlaced", "{status}");
    }
    Ok(())
}
