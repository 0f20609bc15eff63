//! Nodes whose clocks are an hour apart: what comes after what, which copy has more, and what a snapshot waits for goes by epochs and numbers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1 as csi;
use serde_json::json;

use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::wait::{eventually, throughout};
use crate::steps::owner::{owned_by, place};
use crate::steps::sidecar::{Sidecar, read, write};

/// Commits before the first move.
const MANY: usize = 20;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "clocks-apart",
        "20 commits move to a node an hour behind, back, and to one an hour ahead; the newest is the newest, the oldest is found, a snapshot waits for its copies",
        apart,
    )]
}

async fn apart(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let mut request = csi.request("source", "n1");
    request.parameters.insert("dotgraft.dev/replicas".into(), "1".into());
    let fs_id = csi.volume(&request).await?.volume_id;
    let dot = t.kube().names("Dot", &t.namespace, |d| d["spec"]["fsId"] == *fs_id).await?.pop().context("no Dot")?;
    let source = json!({"source": {"kind": "Dot", "name": dot}});
    write(&t, "n1", &fs_id, "n", "0").await?;
    for n in 0..MANY {
        t.create("Commit", &format!("c{n}"), &source).await?;
    }
    let mut first = Vec::new();
    for n in 0..MANY {
        first.push(text(&t.ready("Commit", &format!("c{n}")).await?, "/status/id")?);
    }
    for (n, (node, ahead)) in (1..).zip([("n2", "-3600"), ("n1", "0"), ("n2", "3600"), ("n1", "0")]) {
        t.rig.restart_with_env(node, "DOTGRAFT_CLOCK_AHEAD", Some(ahead)).await?;
        t.rig.ready(STEP).await?;
        place(&t, &dot, node).await?;
        owned_by(&t, &dot, node).await?;
        ensure!(read(&t, node, &fs_id, "n").await? == (n - 1).to_string(), "{node} has an older state of it");
        write(&t, node, &fs_id, "n", &n.to_string()).await?;
        let newest = t.commit(&format!("on-{node}-{n}"), &dot).await?;
        eventually(&format!("{newest} to be the newest of all"), STEP, || async {
            let log = t.object("Dot", &dot).await?["status"]["recentCommits"].clone();
            ensure!(log[0]["id"] == *newest, "the newest of the Dot is {}", log[0]);
            for node in ["n1", "n2"] {
                let copy = t.replica(&fs_id, node).await?["status"].clone();
                ensure!(copy["head"] == *newest && copy["completeTo"]["commit"] == *newest, "{node} has {}", copy["completeTo"]);
            }
            Ok(())
        })
        .await?;
    }
    ensure!(t.replica(&fs_id, "n2").await?["status"]["commitCount"] == MANY + 4, "commits were lost");
    snapshot_with_the_link_cut(&t, &csi, &fs_id).await?;
    // The oldest, of before all moves, where it is asked for.
    let oldest = format!("ro/{fs_id}@{}", first.first().context("no commit")?);
    eventually("the oldest to be published", STEP, || async { Ok(csi.publish(&oldest, "n2", true).await?) }).await?;
    let path = t.mount_commit("n2", &fs_id, first.first().context("no commit")?).await?;
    ensure!(std::fs::read_to_string(path.join("n"))? == "0", "not what the oldest has");
    t.unmount(&path).await?;
    csi.unpublish(&oldest, "n2").await?;
    for node in ["n1", "n2"] {
        t.rig.restart_with_env(node, "DOTGRAFT_CLOCK_AHEAD", None).await?;
    }
    Ok(())
}

/// The other node's agent is there for the API server's part and hears nothing, as with a cut link.
async fn snapshot_with_the_link_cut(t: &Test, csi: &Sidecar, fs_id: &str) -> Result<()> {
    let ask = || csi::CreateSnapshotRequest {
        name: format!("snapshot-{}", t.namespace),
        source_volume_id: fs_id.to_owned(),
        parameters: [("dotgraft.dev/snapshot-copies".to_owned(), "2".to_owned())].into(),
        ..csi::CreateSnapshotRequest::default()
    };
    let make = async || anyhow::Ok(csi.client.clone().create_snapshot(ask()).await?.into_inner().snapshot.context("no snapshot")?);
    t.rig.pause("n2")?;
    let made = eventually("the snapshot to be made", STEP, || async { make().await }).await;
    let waits = throughout("a snapshot on one node", Duration::from_secs(5), || async {
        ensure!(!make().await?.ready_to_use, "ready, and on one node only");
        Ok(())
    })
    .await;
    t.rig.resume("n2")?;
    made?;
    waits?;
    eventually("the snapshot on both nodes", STEP, || async {
        ensure!(make().await?.ready_to_use, "it is on one node only");
        Ok(())
    })
    .await
}
