//! The operator killed in `CreateVolume` and in `ControllerPublish`, each time right after one of the writes that stand behind the call: the call comes
//! again, as from a sidecar, and finds what the first one made (failures.md row 9).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use dotgraft_proto::csi::v1 as csi_v1;
use serde_json::Value;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::tokens::SYSTEM;
use crate::rig::wait::{eventually, throughout};
use crate::steps;
use crate::steps::left::nothing_left;
use crate::steps::sidecar::{Sidecar, read, write};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("9-csi/create", "the operator killed between the writes of CreateVolume: one volume, whole, once it is back", in_create),
        Case::new(
            "9-csi/publish",
            "the operator killed in ControllerPublish, at each step of the move: it moves once, with its data",
            in_publish,
        ),
        Case::new(
            "9-csi/forsaken",
            "what was made for a PVC that is deleted before the provisioner comes back goes; what anybody has had stays",
            forsaken,
        ),
    ]
}

/// A PVC that nobody serves, as there is no provisioner: its UID, as the provisioner names a call.
async fn pending(t: &Test, name: &str) -> Result<String> {
    steps::pod::claim(t, name).await?;
    Ok(format!("pvc-{}", t.kubectl(&["get", "pvc", name, "-o", "jsonpath={.metadata.uid}"]).await?))
}

/// An operator that waits so many seconds for sidecars that don't come back.
async fn waits(t: &Test, seconds: Option<&str>) -> Result<()> {
    t.rig.kill9("operator")?;
    t.kube().kubectl(&["delete", "lease", "dotgraft-operator", "-n", SYSTEM]).await?;
    t.rig.restart_with_env("operator", "DOTGRAFT_FORSAKEN_AFTER", seconds).await?;
    t.rig.ready(STEP).await
}

async fn forsaken(t: Arc<Test>) -> Result<()> {
    waits(&t, Some("2")).await?;
    let csi = Sidecar::new(&t).await?;
    let mut made = Vec::new();
    // Of one the PVC goes, one is still wanted, one has been published, and of one there is a PV.
    for name in ["gone", "wanted", "used", "bound"] {
        let request = csi_v1::CreateVolumeRequest { name: pending(&t, name).await?, ..csi.request(name, "n1") };
        made.push((request.name.clone(), csi.volume(&request).await?.volume_id));
    }
    csi.publish(&made[2].1, "n1", false).await?;
    csi.unpublish(&made[2].1, "n1").await?;
    t.apply(
        &serde_json::json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": made[3].0}, "spec": {
            "capacity": {"storage": "256Mi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": "csi.dotgraft.dev", "volumeHandle": made[3].1},
        }})
        .to_string(),
    )
    .await?;
    t.kubectl(&["delete", "pvc", "gone", "used", "bound"]).await?;
    nothing_left(&t, &made[0].1).await?;
    // Also when its PV goes and leaves the data, as Retain says.
    t.kubectl(&["delete", "pv", &made[3].0]).await?;
    throughout("what is wanted, or was had, to stay", Duration::from_secs(4), || async {
        let mut dots = t.kube().names("Dot", &t.namespace, |d| d["metadata"]["deletionTimestamp"].is_null()).await?;
        dots.sort();
        ensure!(dots == ["bound", "used", "wanted"], "{dots:?}");
        Ok(())
    })
    .await?;
    waits(&t, None).await?;
    let csi = Sidecar::new(&t).await?;
    t.kubectl(&["delete", "pvc", "wanted"]).await?;
    for (_, id) in &made[1..] {
        csi.delete(id).await?;
    }
    Ok(())
}

/// What is there of a volume by the API: each is the next write behind the call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// The Dot.
    Dot,
    /// Its Filesystem.
    Filesystem,
    /// Its owner is chosen.
    Authority,
    /// The owner's agent is asked.
    Replica,
    /// What is published stands.
    Published,
    /// The target's agent is asked for a copy.
    Target,
    /// The owner is asked to hand over.
    Asked,
    /// The handoff is pending.
    Pending,
    /// The target owns it.
    Moved,
}

/// Polls as fast as it can until that write is there, then kills the operator. `false`: the call was quicker, which shows nothing.
async fn kill_at<T>(t: &Test, dot: &str, at: Seen, call: JoinHandle<Result<T, Status>>) -> Result<bool> {
    let until = tokio::time::Instant::now() + STEP;
    while !is(t, dot, at).await? {
        ensure!(tokio::time::Instant::now() < until, "{at:?} did not come");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    t.rig.kill9("operator")?;
    Ok(call.await?.is_err())
}

/// How often it is tried to be quicker than a call.
const TRIES: usize = 8;

async fn is(t: &Test, dot: &str, at: Seen) -> Result<bool> {
    let there = t.kube().get("Dot", &t.namespace, dot).await?;
    if at == Seen::Dot {
        return Ok(there.is_some());
    }
    let claimed =
        |f: &Value| f.pointer("/spec/claimRef/namespace").is_some_and(|n| *n == *t.namespace) && f["spec"]["claimRef"]["name"] == *dot;
    let Some(fs) = t.kube().list("Filesystem", "").await?.into_iter().find(claimed) else { return Ok(false) };
    let authority = &fs["status"]["authority"];
    let replica = async |node: &str| -> Result<Option<Value>> {
        let of_it = |r: &Value| r["spec"]["fsId"] == fs["metadata"]["name"] && r["spec"]["node"] == *node;
        Ok(t.kube().list("Replica", "").await?.into_iter().find(of_it))
    };
    Ok(match at {
        Seen::Dot | Seen::Filesystem => true,
        Seen::Authority => !authority.is_null(),
        Seen::Replica => replica("n1").await?.is_some(),
        Seen::Published => fs["spec"]["publishedTo"].to_string().contains("\"n2\""),
        Seen::Target => replica("n2").await?.is_some(),
        Seen::Asked => replica("n1").await?.is_some_and(|r| !r["spec"]["desired"]["moveTo"].is_null()),
        Seen::Pending => !authority["pending"].is_null() || authority["owner"]["node"] == "n2",
        Seen::Moved => authority["owner"]["node"] == "n2",
    })
}

/// The operator starts again and leads at once: the lease of the dead one, which it would wait 15 s for, is taken away.
async fn back(t: &Test) -> Result<()> {
    t.kube().kubectl(&["delete", "lease", "dotgraft-operator", "-n", SYSTEM]).await?;
    t.rig.restart("operator").await
}

async fn in_create(t: Arc<Test>) -> Result<()> {
    for (n, at) in [Seen::Dot, Seen::Filesystem, Seen::Authority, Seen::Replica].into_iter().enumerate() {
        let mut cut = false;
        for i in 0..TRIES {
            cut = create_cut(&t, &format!("v{n}-{i}"), at).await?;
            if cut {
                break;
            }
        }
        ensure!(cut, "{TRIES} calls were answered before the operator could be killed at {at:?}");
    }
    Ok(())
}

/// Whether the call was cut.
async fn create_cut(t: &Test, name: &str, at: Seen) -> Result<bool> {
    let csi = Sidecar::new(t).await?;
    let request = csi.request(name, "n1");
    let call = tokio::spawn({
        let request = request.clone();
        async move { csi.create(&request).await }
    });
    let cut = kill_at(t, name, at, call).await?;
    back(t).await?;
    let csi = Sidecar::new(t).await?;
    let volume = csi.volume(&request).await?.volume_id;
    ensure!(csi.volume(&request).await?.volume_id == volume, "made once");
    let of_it = |f: &Value| f["spec"]["claimRef"]["name"] == *name && f["spec"]["claimRef"]["namespace"] == *t.namespace;
    let made = t.kube().names("Filesystem", "", of_it).await?;
    ensure!(made == [volume.as_str()], "killed at {at:?}: {made:?} were made for one volume");
    let dots = t.kube().names("Dot", &t.namespace, |_| true).await?;
    ensure!(dots == [name], "killed at {at:?}: {dots:?}");
    csi.publish(&volume, "n1", false).await?;
    write(t, "n1", &volume, "a", "one").await?;
    csi.unpublish(&volume, "n1").await?;
    csi.delete(&volume).await?;
    nothing_left(t, &volume).await?;
    Ok(cut)
}

async fn in_publish(t: Arc<Test>) -> Result<()> {
    for (n, at) in [Seen::Published, Seen::Target, Seen::Asked, Seen::Pending, Seen::Moved].into_iter().enumerate() {
        let mut cut = false;
        for i in 0..TRIES {
            // The last write is what the call waits for: it may be answered.
            cut = publish_cut(&t, &format!("v{n}-{i}"), at).await? || at == Seen::Moved;
            if cut {
                break;
            }
        }
        ensure!(cut, "{TRIES} calls were answered before the operator could be killed at {at:?}");
    }
    Ok(())
}

/// Whether the call was cut.
async fn publish_cut(t: &Test, name: &str, at: Seen) -> Result<bool> {
    let csi = Sidecar::new(t).await?;
    let volume = csi.volume(&csi.request(name, "n1")).await?.volume_id;
    let content = format!("of {name}");
    write(t, "n1", &volume, "a", &content).await?;
    let call = tokio::spawn({
        let volume = volume.clone();
        async move { csi.publish(&volume, "n2", false).await }
    });
    let cut = kill_at(t, name, at, call).await?;
    // What agents have in hand they bring to its end without an operator; the rest begins when it is back.
    back(t).await?;
    let csi = Sidecar::new(t).await?;
    eventually("the volume to be published", STEP, || async { Ok(csi.publish(&volume, "n2", false).await?) }).await?;
    let fs = t.object("Filesystem", &volume).await?;
    let (a, published) = (&fs["status"]["authority"], &fs["spec"]["publishedTo"]);
    ensure!(a["owner"]["node"] == "n2" && a["epoch"] == 2 && a["pending"].is_null(), "killed at {at:?}, it did not move once: {a}");
    ensure!(published.as_array().is_some_and(|p| p.len() == 1), "killed at {at:?}: published to {published}");
    ensure!(read(t, "n2", &volume, "a").await? == content, "with its data");
    csi.unpublish(&volume, "n2").await?;
    csi.delete(&volume).await?;
    nothing_left(t, &volume).await?;
    Ok(cut)
}
