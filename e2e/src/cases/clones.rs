//! What a clone takes (ADR 39): it begins with what its origin pays for, and wherever it goes it has to fit.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::data::digest::tree_digest;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::programs::http_get;
use crate::rig::wait::eventually;
use crate::steps::left::noise;
use crate::steps::owner::{holds, owned_by, place};

const MIB: usize = 1 << 20;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "move-clone",
        "a clone that outlives its origin moves to another node with all that it shares, and back; what nobody owns any more is counted, and goes",
        clone_moves,
    )]
}

/// 50 MiB in a volume of 32 MiB and as much for history, a clone of it with 50 MiB of its own: 100 MiB on any other node.
async fn clone_moves(t: Arc<Test>) -> Result<()> {
    let origin = t.dot_of("d", &json!({"capacity": "32Mi", "placement": {"node": "n1"}, "deletionPolicy": "Cascade"})).await?;
    let head = t.mount("n1", &origin).await?;
    std::fs::write(head.join("shared"), noise(50 * MIB))?;
    t.unmount(&head).await?;
    let commit = t.commit("c", "d").await?;
    // A Dot and no Branch: it outlives what it was restored from.
    let from = json!({"fsId": origin, "commit": commit});
    let clone = t.dot_of("clone", &json!({"capacity": "32Mi", "origin": from})).await?;
    let head = t.mount("n1", &clone).await?;
    std::fs::write(head.join("own"), noise(50 * MIB))?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    t.kube().delete("Commit", &t.namespace, "c").await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    for node in ["n2", "n1"] {
        place(&t, "clone", node).await?;
        owned_by(&t, "clone", node).await?;
        holds(&t, node, &clone, &digest).await?;
    }
    left_on(&t, "n1", 50).await?;
    // Wherever it is, it may write what it could have written at home.
    let limit = t.replica(&clone, "n1").await?["status"]["limit"].as_u64().context("no limit")?;
    ensure!((112..130).contains(&(limit >> 20)), "the limit is {} MiB", limit >> 20);
    t.kube().delete("Dot", &t.namespace, "clone").await?;
    t.kube().gone("Dot", &t.namespace, "clone", STEP).await?;
    left_on(&t, "n1", 0).await
}

/// What that node counts as left by deleted volumes, in MiB.
async fn left_on(t: &Test, node: &str, mib: u64) -> Result<()> {
    eventually("what is left of deleted volumes to be counted", STEP, || async {
        let (_, metrics) = http_get(&t.rig.node(node)?.http, "/metrics").await?;
        let line = metrics.lines().find_map(|l| l.strip_prefix("dotgraft_pool_left_bytes ")).context("no such figure")?;
        let left = line.parse::<u64>()? >> 20;
        ensure!(left.abs_diff(mib) < 3, "it says {left} MiB, not {mib}");
        Ok(())
    })
    .await
}
