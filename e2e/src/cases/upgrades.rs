//! The programs of the release before and these, together, in every order of an upgrade: pushes, moves both ways, commits and deletions work
//! at each step, and each program takes over what the older one has left on its node.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use crate::data::digest::{same_trees, tree_digest};
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::Options;
use crate::rig::programs::Age;
use crate::steps::left::{noise, nothing_left};
use crate::steps::owner::{filled, holds, owned_by, place};

/// Every order in which the three programs of a rig can be upgraded.
const ORDERS: [[&str; 3]; 6] = [
    ["operator", "n1", "n2"],
    ["operator", "n2", "n1"],
    ["n1", "operator", "n2"],
    ["n1", "n2", "operator"],
    ["n2", "operator", "n1"],
    ["n2", "n1", "operator"],
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let in_order = |(n, order): (usize, [&'static str; 3])| {
        let title = format!("programs of the release before and these work together while {} are upgraded", order.join(", then "));
        Case::new(format!("upgrade-order/{n}"), title, move |t| upgraded(t, order)).own(Options::default()).older().within(STEP * 8)
    };
    (1..).zip(ORDERS).map(in_order).collect()
}

async fn upgraded(t: Arc<Test>, order: [&'static str; 3]) -> Result<()> {
    for name in order {
        t.rig.restart_as(name, Age::Older).await?;
    }
    let (fs_id, digest) = filled(&t, "old").await?;
    let first = t.commit("first", "old").await?;
    round(&t, 0, &fs_id, &digest).await.context("with the programs of the release before")?;
    for (n, name) in (1..).zip(order) {
        t.rig.restart_as(name, Age::Newer).await?;
        round(&t, n, &fs_id, &digest).await.with_context(|| format!("after {name} of {order:?} was upgraded"))?;
    }
    // What the older programs kept is there still.
    let kept = t.mount_commit("n1", &fs_id, &first).await?;
    ensure!(tree_digest(&kept)? == digest, "the first commit is not what was written");
    t.unmount(&kept).await
}

/// There and back with all that it has, and a Dot of its own that is made, pushed and deleted.
async fn round(t: &Test, n: usize, fs_id: &str, digest: &str) -> Result<()> {
    for node in ["n2", "n1"] {
        place(t, "old", node).await?;
        owned_by(t, "old", node).await?;
        holds(t, node, fs_id, digest).await?;
        t.commit(&format!("c{n}-{node}"), "old").await?;
    }
    let name = format!("new{n}");
    let new = t.dot(&name, "n2").await?;
    let head = t.mount("n2", &new).await?;
    std::fs::write(head.join("a"), noise(8 << 20))?;
    t.unmount(&head).await?;
    let mut commit = t.commit(&format!("{name}-0"), &name).await?;
    t.push(&format!("{name}-push"), &name, "n1").await?;
    t.arrived(&new, &commit, "n1", STEP).await?;
    let head = t.mount("n2", &new).await?;
    std::fs::write(head.join("b"), noise(1 << 20))?;
    t.unmount(&head).await?;
    commit = t.commit(&format!("{name}-1"), &name).await?;
    t.push(&format!("{name}-again"), &name, "n1").await?;
    t.arrived(&new, &commit, "n1", STEP).await?;
    let (sent, got) = (t.mount_commit("n2", &new, &commit).await?, t.mount_commit("n1", &new, &commit).await?);
    same_trees(&sent, &got)?;
    t.unmount(&sent).await?;
    t.unmount(&got).await?;
    for kind in ["ReplicationJob", "Commit", "Dot"] {
        for object in t.kube().names(kind, &t.namespace, |o| o["metadata"]["name"].as_str().is_some_and(|n| n.starts_with(&name))).await? {
            t.kube().delete(kind, &t.namespace, &object).await?;
        }
    }
    nothing_left(t, &new).await
}
