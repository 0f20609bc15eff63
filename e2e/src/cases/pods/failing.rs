//! A node's disk that takes no more writes (failures.md row 25), under pods: theirs fail, can be read and go; all others go on; and when the
//! disk is back, so is everything that was acknowledged.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::data::synced;
use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::eventually;
use crate::steps::disk::Unwritable;
use crate::steps::pod as csi_pvc;
use crate::steps::pods::writer::Writer;
use crate::steps::pods::{STEP, claim, clear, fs_id, took};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new("25-pods", "a disk that fails every write makes its pool read-only: only the pods on it feel it", failing).kubelets()]
}

async fn failing(t: Arc<Test>) -> Result<()> {
    for name in ["hit", "read", "other"] {
        claim(&t, name, "256Mi").await?;
    }
    let hit = Writer::start(&t, "hit", "hit", "n2").await?;
    let other = Writer::start(&t, "other", "other", "n1").await?;
    csi_pvc::pod(&t, "read", "read", "n2", "echo precious > /data/word; sync; sleep 1000").await?;
    csi_pvc::says(&t, "read", "/data/word", "precious").await?;
    t.commit("kept", "read").await?;
    let agent = t.rig.processes.pid("n2")?;
    let file = t.rig.node("n2")?.files.pool_file.clone();
    let disk = Unwritable::new(&file)?;
    let start = Instant::now();
    eventually("the writer on the failing disk to fail", STEP, || async { hit.noted_whatever(&t)?.error.context("it writes") }).await?;
    took("a failing disk, to the first error in its pod", start);
    let acknowledged = hit.noted_whatever(&t)?.newest;
    while_failing(&t, &other).await.context("while the disk fails")?;
    ensure!(t.rig.processes.pid("n2")? == agent, "the agent was restarted");
    // Somebody mends the disk and starts the node anew.
    t.rig.power_off("n2")?;
    drop(disk);
    let start = Instant::now();
    t.rig.boot("n2").await?;
    t.rig.ready(STEP).await?;
    eventually("the writer to go on", STEP, || async {
        let newest = hit.noted_whatever(&t)?.newest;
        ensure!(newest > acknowledged, "{newest} blocks");
        Ok(())
    })
    .await?;
    took("the disk mended and the node booted, to a pod that writes again", start);
    let found = synced::check(&hit.file(&t).await?, acknowledged)?;
    ensure!(found > acknowledged, "{found} of {acknowledged}");
    let noted = other.noted(&t)?;
    println!(
        "        the pod on the other node wrote {} blocks meanwhile; the longest took {} ms",
        noted.newest,
        noted.longest.as_millis()
    );
    clear(&t, &["hit", "read", "other"]).await
}

async fn while_failing(t: &Test, other: &Writer) -> Result<()> {
    eventually("PoolFailed", STEP, || async {
        let pool = t.object("NodePool", "n2").await?;
        let said = conditions(&pool);
        ensure!(said.contains("Ready=False PoolFailed") && said.contains("PoolFailed=True"), "{said}");
        Ok(())
    })
    .await?;
    let read = t.kubectl(&["exec", "read", "--", "cat", "/data/word"]).await?;
    ensure!(read.trim() == "precious", "a pod on the failing disk reads {read:?}");
    other.goes_on(t, 50).await?;
    // Its last pod can be deleted, and another starts: it reads, and is told that it can't write.
    t.kubectl(&["delete", "pod", "read", "--timeout=180s"]).await.context("a pod on the failing disk can't go")?;
    crate::steps::pods::left(t, &fs_id(t, "read").await?).await?;
    csi_pvc::pod(t, "again", "read", "n2", "sleep 1000").await?;
    crate::steps::pods::ready(t, "again", "").await?;
    let said = t.kubectl(&["exec", "again", "--", "sh", "-c", "(cat /data/word; echo more > /data/more) 2>&1 || true"]).await?;
    ensure!(said.starts_with("precious") && said.contains("Read-only file system"), "it is told {said:?}");
    t.kubectl(&["delete", "pod", "again", "--timeout=180s"]).await?;
    other.goes_on(t, 50).await
}
