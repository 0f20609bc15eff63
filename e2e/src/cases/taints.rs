//! Nodes that pods are kept off: nothing is put there that nobody asked for (`dotgraft_api::node`).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1 as csi;
use serde_json::json;

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::{eventually, throughout};
use crate::steps::sidecar::Sidecar;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "placement-taints",
        "a node with a taint gets no volume and no copy, be it Immediate or the one with most room, until somebody asks for it",
        taints,
    )]
}

const TAINT: &str = "dotgraft.dev/test=gpu:NoSchedule";

async fn node(t: &Test, verb: &str, node: &str, what: &str) -> Result<()> {
    t.kube().kubectl(&[verb, "node", node, what, "--overwrite"]).await.map(drop)
}

/// The owner of a Dot that names no node.
async fn owner(t: &Test, name: &str) -> Result<String> {
    t.create("Dot", name, &json!({"capacity": "256Mi"})).await?;
    let dot = t.ready("Dot", name).await?;
    Ok(dot["status"]["owner"].as_str().context("no owner")?.to_owned())
}

/// Once with each of the two nodes, so that one of them has most room.
async fn taints(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    for (tainted, open) in [("n1", "n2"), ("n2", "n1")] {
        node(&t, "taint", tainted, TAINT).await?;
        let tested = unasked(&t, &csi, tainted, open).await;
        node(&t, "taint", tainted, &format!("{TAINT}-")).await?;
        node(&t, "label", tainted, "dotgraft.dev/taints-").await?;
        tested.with_context(|| format!("with a taint on {tainted}"))?;
    }
    Ok(())
}

async fn unasked(t: &Test, csi: &Sidecar, tainted: &str, open: &str) -> Result<()> {
    // The operator has heard of it: with the other node cordoned nothing is left, and the Dot says why.
    t.kube().kubectl(&["cordon", open]).await?;
    let nowhere = format!("nowhere-{tainted}");
    t.create("Dot", &nowhere, &json!({"capacity": "256Mi"})).await?;
    let dot = t.condition("Dot", &nowhere, "NoPool", "True", None).await;
    t.kube().kubectl(&["uncordon", open]).await?;
    let dot = dot?.to_string();
    ensure!(dot.contains(&format!("{tainted} ({TAINT})")) && dot.contains("dotgraft.dev/taints=ignore"), "{dot}");
    t.kube().delete("Dot", &t.namespace, &nowhere).await?;

    let name = format!("to-{open}");
    csi.room(Some(&at(open))).await?;
    let at_owner = owner(t, &name).await?;
    ensure!(at_owner == open, "a Dot begins on {at_owner}");
    // As of an Immediate PVC: every node, and the one with the taint first.
    let both = vec![at(tainted), at(open)];
    let anywhere = Some(csi::TopologyRequirement { requisite: both.clone(), preferred: both });
    let pvc = format!("immediate-{open}");
    let immediate = csi::CreateVolumeRequest { accessibility_requirements: anywhere, ..csi.request(&pvc, open) };
    let id = csi.volume(&immediate).await?.volume_id;
    let begun = t.object("Dot", &pvc).await?["status"]["owner"].clone();
    ensure!(begun == open, "an Immediate volume begins on {begun}");
    csi.delete(&id).await?;
    // As of a pod that tolerates it.
    let there = Some(csi::TopologyRequirement { requisite: vec![at(tainted)], preferred: vec![at(tainted)] });
    let pvc = format!("scheduled-{tainted}");
    let id = csi.volume(&csi::CreateVolumeRequest { accessibility_requirements: there, ..csi.request(&pvc, tainted) }).await?.volume_id;
    ensure!(t.object("Dot", &pvc).await?["status"]["owner"] == tainted, "a pod was scheduled there");
    csi.delete(&id).await?;

    t.kube().patch("Dot", &t.namespace, &name, "", &json!({"spec": {"placement": {"replicas": 1}}})).await?;
    let jobs = || async {
        let mut jobs = t.kube().names("ReplicationJob", &t.namespace, |_| true).await?;
        jobs.retain(|job| job.starts_with(&name));
        ensure!(jobs.is_empty(), "a copy is made: {jobs:?}");
        Ok(())
    };
    throughout("no copy on the node with a taint", Duration::from_secs(2), jobs).await?;
    node(t, "label", tainted, "dotgraft.dev/taints=ignore").await?;
    let copied = eventually("a copy where the label lets it", Duration::from_secs(20), || async {
        let dot = t.object("Dot", &name).await?;
        ensure!(dot["status"]["replicas"].to_string().contains(tainted), "{}", dot["status"]["replicas"]);
        Ok(())
    });
    copied.await?;
    t.kube().delete("Dot", &t.namespace, &name).await?;
    t.kube().gone("Dot", &t.namespace, &name, STEP).await?;
    node(t, "label", tainted, "dotgraft.dev/taints-").await?;
    // Whoever names the node gets it.
    let asked = format!("asked-{tainted}");
    t.create("Dot", &asked, &json!({"capacity": "256Mi", "placement": {"node": tainted}})).await?;
    let dot = t.ready("Dot", &asked).await?;
    ensure!(dot["status"]["owner"] == tainted, "{}", dot["status"]["owner"]);
    Ok(())
}

fn at(node: &str) -> csi::Topology {
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    csi::Topology { segments: [pair("topology.dotgraft.dev/node", node), pair("topology.dotgraft.dev/pool", "default")].into() }
}
