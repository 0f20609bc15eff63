//! A node that goes by another name, or by its own once more (failures.md rows 18, 24): the disk is what counts, and nobody writes twice.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::eventually;
use crate::rig::{Options, unmount_below};
use crate::steps::cli;
use crate::steps::owner::owned_by;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let three = || Options { agents: 3, pool_size: "1Gi".into(), ..Options::default() };
    vec![
        Case::new(
            "pool-renamed",
            "a pool's disk in a machine of another name: adopted there once its old node is given up, owners own on and copies stay copies",
            renamed,
        )
        .own(three()),
        Case::new("node-rejoined", "a Node that is deleted and joins again under a live owner takes nothing from it", rejoined),
    ]
}

async fn read(t: &Test, node: &str, fs_id: &str, name: &str) -> Result<Vec<u8>> {
    let head = t.mount(node, fs_id).await?;
    let content = std::fs::read(head.join(name))?;
    t.unmount(&head).await?;
    Ok(content)
}

async fn write(t: &Test, node: &str, fs_id: &str, name: &str, content: &[u8]) -> Result<()> {
    let head = t.mount(node, fs_id).await?;
    std::fs::write(head.join(name), content)?;
    t.unmount(&head).await
}

async fn renamed(t: Arc<Test>) -> Result<()> {
    let of = |node: &str| json!({"capacity": "64Mi", "placement": {"node": node}});
    let (own, copied) = (t.dot_of("own", &of("n1")).await?, t.dot_of("copied", &of("n2")).await?);
    write(&t, "n1", &own, "a", b"precious").await?;
    let commit = t.commit("c", "copied").await?;
    t.push("j", "copied", "n1").await?;
    t.arrived(&copied, &commit, "n1", STEP).await?;
    write(&t, "n1", &own, "b", b"after its last commit").await?;
    disk_of_n1_in_n3(&t).await?;
    let pool = t.replica(&own, "n1").await?["spec"]["pool"].as_str().context("no pool")?.to_owned();
    eventually("n3 to report what the disk holds", STEP, || async {
        let orphans = t.object("NodePool", "n3").await?["status"]["orphans"].clone();
        ensure!(orphans["count"] == 2, "orphans: {orphans}");
        Ok(())
    })
    .await?;
    // A machine n1 may come back with that disk, or a copy of it: a person has to say that it doesn't.
    cli::dot(&t, &["adopt", "--all"]).await?;
    eventually("the old name to stand in the way", STEP, || async {
        let events = t.kubectl(&["get", "events", "-A", "-o", "json"]).await?;
        ensure!(events.contains("PoolOfAnotherNode") && events.contains("kubectl delete nodepool n1"), "no such event");
        Ok(())
    })
    .await?;
    ensure!(t.object("Filesystem", &own).await?["status"]["authority"]["owner"]["node"] == "n1", "it was taken");
    t.kube().kubectl(&["delete", "node", "n1"]).await?;
    t.kube().kubectl(&["delete", "nodepool", "n1"]).await?;
    let dot = owned_by(&t, "own", "n3").await?;
    ensure!(dot["status"]["epoch"] == 2, "epoch {}", dot["status"]["epoch"]);
    ensure!(
        read(&t, "n3", &own, "a").await? == b"precious" && read(&t, "n3", &own, "b").await? == b"after its last commit",
        "not what it was"
    );
    write(&t, "n3", &own, "c", b"goes on").await?;
    let next = t.commit("next", "own").await?;
    // The copy of what n2 owns is one still, under its new name.
    eventually("the copy to be one of n3", STEP, || async {
        let replica = t.replica(&copied, "n3").await?;
        ensure!(replica["spec"]["pool"] == *pool && replica["status"]["role"] == "Replica", "{replica}");
        Ok(())
    })
    .await?;
    let copy = t.mount_commit("n3", &copied, &commit).await?;
    t.unmount(&copy).await?;
    let old = t.kube().list("Replica", "").await?;
    let of_n1: Vec<&Value> = old.iter().filter(|r| r["spec"]["node"] == "n1").map(|r| &r["metadata"]["name"]).collect();
    ensure!(of_n1.is_empty(), "left of n1: {of_n1:?}");
    // It is a place like any other: volumes move away from it.
    t.push("away", "own", "n2").await?;
    t.arrived(&own, &next, "n2", STEP).await?;
    // A machine called n1 may come again, with nothing.
    std::fs::remove_dir_all(&t.rig.node("n1")?.files.state)?;
    Ok(())
}

/// Both machines go; what was n1's disk is in n3, whose own is lost with all that n3 was.
async fn disk_of_n1_in_n3(t: &Test) -> Result<()> {
    let (n1, n3) = (t.rig.node("n1")?.files.clone(), t.rig.node("n3")?.files.clone());
    for node in ["n1", "n3"] {
        t.rig.kill9(node)?;
    }
    unmount_below(&n1.state);
    unmount_below(&n3.state);
    std::fs::remove_dir_all(&n3.state)?;
    t.kube().kubectl(&["delete", "nodepool", "n3"]).await?;
    std::fs::rename(&n1.pool_file, &n3.pool_file)?;
    t.rig.start("n3")
}

/// The token of its agent goes with the Node, so the agent starts anew; the pod's mount stays.
async fn rejoined(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"before")?;
    t.kube().kubectl(&["delete", "node", "n1"]).await?;
    std::fs::write(head.join("b"), b"without a Node")?;
    eventually("the Dot to say that its owner's Node is gone", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        ensure!(dot["status"]["owner"] == "n1" && dot["status"]["epoch"] == 1, "{}", conditions(&dot));
        Ok(())
    })
    .await?;
    t.rig.heal().await?;
    let dot = owned_by(&t, "d", "n1").await?;
    ensure!(dot["status"]["epoch"] == 1, "epoch {}: it was taken from a live owner", dot["status"]["epoch"]);
    std::fs::write(head.join("c"), b"after")?;
    t.commit("c", "d").await?;
    ensure!(std::fs::read(head.join("b"))? == b"without a Node");
    t.unmount(&head).await
}
