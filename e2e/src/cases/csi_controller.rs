//! CSI's Controller service (csi.md §1): what the sidecars ask of the operator, by its socket. No sidecar and no kubelet is needed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1 as csi;
use dotgraft_proto::csi::v1::volume_capability::access_mode::Mode;
use dotgraft_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use serde_json::Value;
use tonic::Code;

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::csi::{refused, with_options};
use crate::steps::left::{nothing_left, on_disk};
use crate::steps::owner::owned_by;
use crate::steps::pod as csi_pvc;
use crate::steps::pods::read_only_volume;
use crate::steps::sidecar::{SIZE, Sidecar, read, write};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("csi-create", "a volume is made once per name, is published to its node, grows and goes", create),
        Case::new(
            "csi-too-large",
            "a volume that no pool could hold is refused, when it is made and when it is to grow; the volume goes on",
            too_large,
        ),
        Case::new("csi-name-taken", "a volume never takes a Dot that a user made, and DeleteVolume never deletes one", name_taken),
        Case::new("csi-snapshot", "a snapshot outlives its volume, is restored, and its end is the Filesystem's", snapshot),
        Case::new("csi-snapshot-copies", "a snapshot is ready once it is on as many nodes as its class asks for", snapshot_copies),
        Case::new("csi-clone", "a clone has a life of its own, and its source goes first", clone),
        Case::new("csi-lists", "lists come in pages, with published nodes, capacity and condition", lists),
        Case::new("csi-publish-moves", "publishing to another node brings the volume there with its data", publish_moves),
        Case::new("csi-dot", "a PVC gets the Dot that it names, alone, and never takes it along; a bound PVC holds the Dot", pvc_of_dot),
        Case::new("csi-commit", "a PVC that names a Commit gets a volume of its own", pvc_of_commit),
        Case::new("csi-dot-pod", "a pod writes into a Dot that a user made, by a PVC that the provisioner leaves alone", dot_in_pod)
            .kubelets(),
        Case::new("9-csi/again", "a call repeated after the operator died between request and reply finds what it made", operator_dies),
    ]
}

async fn create(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let request = csi.request("data", "n2");
    let volume = csi.volume(&request).await?;
    ensure!(volume.capacity_bytes == SIZE, "{} bytes", volume.capacity_bytes);
    let segments: Vec<_> = volume.accessible_topology.iter().flat_map(|t| t.segments.iter()).collect();
    ensure!(segments == [(&"topology.dotgraft.dev/pool".to_owned(), &"default".to_owned())], "only the group: {segments:?}");
    let dot = t.ready("Dot", "data").await?;
    ensure!(dot["status"]["owner"] == "n2", "it must begin where its pod goes: {}", dot["status"]["owner"]);
    ensure!(dot["spec"]["fsId"] == volume.volume_id, "the handle is the id");
    ensure!(csi.volume(&request).await?.volume_id == volume.volume_id, "made once");
    let mut larger = request.clone();
    larger.capacity_range = Some(csi::CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 });
    refused(csi.create(&larger).await, Code::AlreadyExists, "bytes")?;
    let mut odd = csi.request("odd", "n1");
    odd.volume_capabilities = vec![with_options(Mode::SingleNodeWriter, &["nosuid", "discard"])];
    refused(csi.create(&odd).await, Code::InvalidArgument, "`discard`")?;
    let mut other = request.clone();
    other.parameters.insert("dotgraft.dev/fencing".into(), "Manual".into());
    refused(csi.create(&other).await, Code::AlreadyExists, "parameters")?;

    let id = volume.volume_id.as_str();
    refused(csi.publish(id, "n9", false).await, Code::NotFound, "n9")?;
    for _ in 0..2 {
        csi.publish(id, "n2", false).await?;
    }
    refused(csi.publish(id, "n2", true).await, Code::AlreadyExists, "n2")?;
    refused(csi.publish(id, "n1", false).await, Code::FailedPrecondition, "n2")?;
    let deletion = csi::DeleteVolumeRequest { volume_id: id.into(), ..csi::DeleteVolumeRequest::default() };
    refused(csi.client.clone().delete_volume(deletion).await, Code::FailedPrecondition, "n2")?;
    let expansion = csi::ControllerExpandVolumeRequest {
        volume_id: id.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 }),
        ..csi::ControllerExpandVolumeRequest::default()
    };
    let grown = csi.client.clone().controller_expand_volume(expansion).await?.into_inner();
    ensure!(grown.capacity_bytes == 2 * SIZE && !grown.node_expansion_required, "the agent had not raised its limit: {grown:?}");
    eventually("the agent to be told", STEP, || async {
        let replica = t.replica(id, "n2").await?;
        ensure!(replica["spec"]["desired"]["capacity"] == 2 * SIZE, "{}", replica["spec"]["desired"]["capacity"]);
        Ok(())
    })
    .await?;
    for _ in 0..2 {
        csi.unpublish(id, "n2").await?;
    }
    for _ in 0..2 {
        csi.delete(id).await?;
    }
    refused(csi.publish(id, "n2", false).await, Code::NotFound, id)?;
    csi.unpublish(id, "n2").await?;
    nothing_left(&t, id).await
}

async fn too_large(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let range = Some(csi::CapacityRange { required_bytes: 1 << 40, limit_bytes: 0 });
    // As of an Immediate PVC: no node is chosen.
    let anywhere = csi::CreateVolumeRequest { capacity_range: range, accessibility_requirements: None, ..csi.request("large", "n1") };
    csi.room(None).await?;
    refused(csi.create(&anywhere).await.map(|_| ()), Code::ResourceExhausted, "more than a pool has")?;
    let dots = t.kube().names("Dot", &t.namespace, |_| true).await?;
    ensure!(dots.is_empty(), "{dots:?} is left of it");
    let id = csi.volume(&csi.request("small", "n1")).await?.volume_id;
    let expansion = csi::ControllerExpandVolumeRequest { volume_id: id.clone(), capacity_range: range, ..Default::default() };
    let grown = csi.client.clone().controller_expand_volume(expansion).await;
    refused(grown.map(|_| ()), Code::ResourceExhausted, "more than a pool has")?;
    let dot = t.object("Dot", "small").await?;
    ensure!(dot["spec"]["capacity"] == "256Mi", "it has grown to {}", dot["spec"]["capacity"]);
    write(&t, "n1", &id, "a", "goes on").await?;
    csi.delete(&id).await?;
    nothing_left(&t, &id).await
}

async fn name_taken(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let users = t.dot("mine", "n1").await?;
    refused(csi.create(&csi.request("mine", "n1")).await, Code::AlreadyExists, "dataSourceRef")?;
    csi.delete(&users).await?;
    let dot = t.object("Dot", "mine").await?;
    ensure!(dot["metadata"].get("deletionTimestamp").is_none(), "a user's Dot is not CSI's to delete");
    // A claim made anew under a name whose volume of before is still there gets a Dot of its own.
    let first = csi.volume(&csi.request("again", "n1")).await?;
    let mut request = csi.request("again", "n1");
    request.name.push_str("-2");
    let second = csi.volume(&request).await?;
    ensure!(first.volume_id != second.volume_id, "two volumes");
    for id in [&first.volume_id, &second.volume_id] {
        csi.delete(id).await?;
    }
    Ok(())
}

/// No object and no disk has it any more; what began with it still says so.
async fn gone(t: &Test, volume: &str) -> Result<()> {
    eventually("the source to be gone", STEP, || async {
        ensure!(t.kube().get("Filesystem", "", volume).await?.is_none(), "its object is there");
        for node in &t.rig.nodes {
            let disk = on_disk(t, &node.name, volume)?;
            ensure!(disk.is_none(), "on the disk of {}: {disk:?}", node.name);
        }
        Ok(())
    })
    .await
}

async fn snapshot_copies(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let mut request = csi.request("source", "n1");
    request.parameters.insert("dotgraft.dev/replicas".into(), "1".into());
    let volume = csi.volume(&request).await?.volume_id;
    write(&t, "n1", &volume, "a", "word").await?;
    let ask = |name: &str, copies: &str| csi::CreateSnapshotRequest {
        name: format!("snapshot-{}-{name}", t.namespace),
        source_volume_id: volume.clone(),
        parameters: [("dotgraft.dev/snapshot-copies".to_owned(), copies.to_owned())].into(),
        ..csi::CreateSnapshotRequest::default()
    };
    let make = async |name: &str, copies: &str| csi.client.clone().create_snapshot(ask(name, copies)).await;
    refused(make("s", "3").await, Code::InvalidArgument, "placement.replicas")?;
    refused(make("s", "many").await, Code::InvalidArgument, "1 to 8")?;
    let ready = eventually("a snapshot on both nodes", STEP, || async {
        let shot = make("s", "2").await?.into_inner().snapshot.context("no snapshot")?;
        ensure!(shot.ready_to_use, "it is on one node only");
        Ok(shot)
    })
    .await?;
    let commit = ready.snapshot_id.rsplit('@').next().context("no commit in the id")?;
    ensure!(t.replica(&volume, "n2").await?["status"]["head"] == *commit, "n2 doesn't have it");
    // With the other node's agent stopped it is made, and isn't ready until that is back.
    t.rig.kill9("n2")?;
    let shot = eventually("the snapshot to be made", STEP, || async { Ok(make("t", "2").await?) }).await?;
    ensure!(!shot.into_inner().snapshot.context("no snapshot")?.ready_to_use, "ready, and on one node only");
    let listed = csi::ListSnapshotsRequest { source_volume_id: volume.clone(), ..csi::ListSnapshotsRequest::default() };
    let entries = csi.client.clone().list_snapshots(listed).await?.into_inner().entries;
    let told: Vec<bool> = entries.iter().filter_map(|e| e.snapshot.as_ref()).map(|s| s.ready_to_use).collect();
    ensure!(told.iter().filter(|ready| **ready).count() == 1 && told.len() == 2, "in the list: {told:?}");
    t.rig.start("n2")?;
    eventually("the second snapshot on both nodes", STEP, || async {
        ensure!(make("t", "2").await?.into_inner().snapshot.is_some_and(|s| s.ready_to_use), "it is on one node only");
        Ok(())
    })
    .await?;
    // Also the newest, while its replication goes on.
    for entry in entries.iter().filter_map(|e| e.snapshot.as_ref()) {
        csi.delete_snapshot(&entry.snapshot_id).await?;
    }
    csi.delete(&volume).await?;
    nothing_left(&t, &volume).await
}

async fn snapshot(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let volume = csi.volume(&csi.request("source", "n1")).await?.volume_id;
    write(&t, "n1", &volume, "a", "before").await?;
    let shot = csi.snapshot("s", &volume).await?;
    ensure!(shot.ready_to_use && shot.size_bytes == SIZE && shot.source_volume_id == volume, "{shot:?}");
    ensure!(csi.snapshot("s", &volume).await?.snapshot_id == shot.snapshot_id, "made once");
    write(&t, "n1", &volume, "a", "after").await?;
    let path = t.mount("n1", &volume).await?;
    std::fs::write(path.join("big"), crate::steps::left::noise(32 << 20))?;
    t.unmount(&path).await?;
    csi.delete(&volume).await?;
    let phase = || async { anyhow::Ok(t.object("Filesystem", &volume).await?["status"]["phase"].clone()) };
    ensure!(phase().await? == "Headless", "without a head: {}", phase().await?);
    eventually("the head's space to come back", STEP, || async {
        crate::steps::kill::headless(&t, &volume).await?;
        let bytes = t.replica(&volume, "n1").await?["status"]["bytes"].as_u64();
        ensure!(bytes.is_some_and(|b| b < 16 << 20), "{bytes:?} bytes are in use");
        Ok(())
    })
    .await?;
    refused(csi.publish(&volume, "n1", false).await, Code::NotFound, &volume)?;

    // A volume of the same name is another one, restored from what the first one was.
    let mut request = csi.request("source", "n1");
    request.name.push_str("-restored");
    let source = SnapshotSource { snapshot_id: shot.snapshot_id.clone() };
    request.volume_content_source = Some(csi::VolumeContentSource { r#type: Some(Source::Snapshot(source)) });
    let restored = csi.volume(&request).await?;
    ensure!(restored.content_source == request.volume_content_source, "it must say what it is from");
    ensure!(read(&t, "n1", &restored.volume_id, "a").await? == "before", "what the snapshot had");
    let mut small = csi.request("small", "n1");
    small.volume_content_source.clone_from(&request.volume_content_source);
    small.capacity_range = Some(csi::CapacityRange { required_bytes: 0, limit_bytes: SIZE / 2 });
    refused(csi.create(&small).await, Code::OutOfRange, "less")?;

    csi.delete_snapshot(&shot.snapshot_id).await?;
    csi.delete_snapshot(&shot.snapshot_id).await?;
    gone(&t, &volume).await?;
    ensure!(read(&t, "n1", &restored.volume_id, "a").await? == "before", "a restored volume needs its snapshot no more");
    csi.delete(&restored.volume_id).await?;
    nothing_left(&t, &restored.volume_id).await
}

async fn clone(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let volume = csi.volume(&csi.request("source", "n2")).await?.volume_id;
    write(&t, "n2", &volume, "a", "one").await?;
    let mut request = csi.request("copy", "n1");
    let source = VolumeSource { volume_id: volume.clone() };
    request.volume_content_source = Some(csi::VolumeContentSource { r#type: Some(Source::Volume(source)) });
    let copy = csi.volume(&request).await?.volume_id;
    ensure!(csi.volume(&request).await?.volume_id == copy, "made once");
    write(&t, "n2", &volume, "a", "two").await?;
    ensure!(read(&t, "n2", &copy, "a").await? == "one", "it begins where its source was");
    eventually("the commit that it was cloned from to go", STEP, || async {
        let left = t.kube().names("Commit", &t.namespace, |_| true).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    csi.delete(&volume).await?;
    gone(&t, &volume).await?;
    ensure!(read(&t, "n2", &copy, "a").await? == "one", "its source is gone");
    let missing = VolumeSource { volume_id: volume.clone() };
    let mut again = csi.request("late", "n1");
    again.volume_content_source = Some(csi::VolumeContentSource { r#type: Some(Source::Volume(missing)) });
    refused(csi.create(&again).await, Code::NotFound, &volume)?;
    csi.delete(&copy).await?;
    nothing_left(&t, &copy).await
}

async fn pages_of_two(csi: &Sidecar) -> Result<Vec<csi::list_volumes_response::Entry>> {
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let request = csi::ListVolumesRequest { max_entries: 2, starting_token: token };
        let page = csi.client.clone().list_volumes(request).await?.into_inner();
        ensure!(page.entries.len() <= 2, "{} entries", page.entries.len());
        seen.extend(page.entries);
        token = page.next_token;
        if token.is_empty() {
            return Ok(seen);
        }
    }
}

async fn lists(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(csi.volume(&csi.request(name, "n1")).await?.volume_id);
    }
    csi.publish(&ids[1], "n1", false).await?;
    let reading = format!("ro/{}", ids[1]);
    let volume = read_only_volume(&t, "reader", &reading).await?;
    ids.push(reading.clone());
    let listed = |e: &csi::list_volumes_response::Entry, id: &str| e.volume.as_ref().is_some_and(|v| v.volume_id == id);
    let seen = eventually("the operator to know the read-only handle", STEP, || async {
        let seen = pages_of_two(&csi).await?;
        ensure!(seen.iter().any(|e| listed(e, &reading)), "{reading} isn't in {seen:?}");
        Ok(seen)
    })
    .await?;
    let published = ids[1].clone();
    for id in &ids {
        let found: Vec<_> = seen.iter().filter(|e| listed(e, id)).collect();
        ensure!(found.len() == 1, "{id} is there {} times", found.len());
        let nodes = found[0].status.as_ref().map(|s| s.published_node_ids.clone()).unwrap_or_default();
        ensure!(nodes == if id.ends_with(&published) { vec!["n1".to_owned()] } else { vec![] }, "{id} on {nodes:?}");
    }
    let bad = csi::ListVolumesRequest { max_entries: 0, starting_token: "bad".into() };
    refused(csi.client.clone().list_volumes(bad).await, Code::Aborted, "token")?;
    let status = csi.get(&ids[0]).await?.status.context("no status")?;
    ensure!(status.volume_condition.is_some_and(|c| !c.abnormal), "it is well");
    let capacity =
        |segments| csi::GetCapacityRequest { accessible_topology: Some(csi::Topology { segments }), ..csi::GetCapacityRequest::default() };
    let of = |k: &str, v: &str| capacity([(k.to_owned(), v.to_owned())].into());
    let n1 = csi.client.clone().get_capacity(of("topology.dotgraft.dev/node", "n1")).await?.into_inner().available_capacity;
    let all = csi.client.clone().get_capacity(of("topology.dotgraft.dev/pool", "default")).await?.into_inner().available_capacity;
    let none = csi.client.clone().get_capacity(of("topology.dotgraft.dev/node", "n9")).await?.into_inner().available_capacity;
    ensure!(n1 > 0 && all > n1 && none == 0, "n1 {n1}, group {all}, n9 {none}");
    t.kubectl(&["delete", "pv", &volume]).await?;
    csi.unpublish(&ids[1], "").await?;
    for id in &ids {
        csi.delete(id).await?;
    }
    refused(csi.get(&ids[0]).await, Code::NotFound, &ids[0])
}

async fn operator_dies(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let request = csi.request("data", "n1");
    for pause in [10, 60, 250] {
        let call = tokio::spawn({
            let (client, request) = (csi.client.clone(), request.clone());
            async move { client.clone().create_volume(request).await.map(|_| ()) }
        });
        tokio::time::sleep(Duration::from_millis(pause)).await;
        t.rig.restart("operator").await?;
        let _ = call.await?;
    }
    let csi = Sidecar::new(&t).await?;
    let volume = csi.volume(&request).await?.volume_id;
    let dots = t.kube().names("Dot", &t.namespace, |_| true).await?;
    ensure!(dots == ["data"], "{dots:?}");
    csi.publish(&volume, "n1", false).await?;
    t.rig.restart("operator").await?;
    let csi = Sidecar::new(&t).await?;
    let nodes = csi.get(&volume).await?.status.context("no status")?.published_node_ids;
    ensure!(nodes == ["n1"], "what is published stands in the API: {nodes:?}");
    csi.unpublish(&volume, "n1").await?;
    csi.delete(&volume).await?;
    nothing_left(&t, &volume).await
}

async fn publish_moves(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let volume = csi.volume(&csi.request("data", "n1")).await?.volume_id;
    write(&t, "n1", &volume, "a", "one").await?;
    for (from, to) in [("n1", "n2"), ("n2", "n1")] {
        csi.publish(&volume, from, false).await?;
        refused(csi.publish(&volume, to, false).await, Code::FailedPrecondition, from)?;
        csi.unpublish(&volume, from).await?;
        let moved = || async { Ok(csi.publish(&volume, to, false).await?) };
        eventually(&format!("the volume to be published to {to}"), STEP, moved).await?;
        ensure!(read(&t, to, &volume, "a").await? == "one", "with its data on {to}");
        ensure!(t.object("Filesystem", &volume).await?["status"]["authority"]["owner"]["node"] == to, "owned by {to}");
        csi.unpublish(&volume, to).await?;
    }
    csi.delete(&volume).await?;
    nothing_left(&t, &volume).await
}

/// A PVC of the `StorageClass` whose `dataSourceRef` names an object of ours.
async fn claim(t: &Test, name: &str, kind: &str, source: &str) -> Result<()> {
    t.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  \
         storageClassName: dotgraft\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 256Mi}}}}\n  \
         dataSourceRef: {{apiGroup: dotgraft.dev, kind: {kind}, name: {source}}}\n"
    ))
    .await
}

async fn bound(t: &Test, name: &str) -> Result<Value> {
    eventually(&format!("PVC {name} to be bound"), STEP, || async {
        let pvc: Value = serde_json::from_str(&t.kubectl(&["get", "pvc", name, "-o", "json"]).await?)?;
        ensure!(pvc["status"]["phase"] == "Bound", "{} {}", pvc["status"], t.kubectl(&["get", "events"]).await?);
        let pv = pvc["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
        Ok(serde_json::from_str::<Value>(&t.kube().kubectl(&["get", "pv", &pv, "-o", "json"]).await?)?)
    })
    .await
}

async fn pvc_of_dot(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    claim(&t, "one", "Dot", "d").await?;
    let pv = bound(&t, "one").await?;
    ensure!(pv["spec"]["csi"]["volumeHandle"] == *fs_id, "that very Filesystem: {}", pv["spec"]["csi"]);
    ensure!(pv["spec"]["persistentVolumeReclaimPolicy"] == "Retain", "{}", pv["spec"]["persistentVolumeReclaimPolicy"]);
    claim(&t, "two", "Dot", "d").await?;
    eventually("an event that says who has it", STEP, || async {
        let events = t.kubectl(&["get", "events", "--field-selector=reason=AlreadyClaimed"]).await?;
        ensure!(events.contains(&format!("{}/one", t.namespace)), "{events}");
        Ok(())
    })
    .await?;
    t.kubectl(&["delete", "pvc", "two"]).await?;
    t.kubectl(&["delete", "pvc", "one"]).await?;
    let pv_gone = || async {
        let left = t.kube().kubectl(&["get", "pv", "-o", "name"]).await?;
        ensure!(!left.contains(&fs_id), "{left}");
        Ok(())
    };
    eventually("the PersistentVolume to go", STEP, pv_gone).await?;
    ensure!(t.object("Dot", "d").await?["metadata"].get("deletionTimestamp").is_none(), "the Dot stays");

    claim(&t, "again", "Dot", "d").await?;
    bound(&t, "again").await?;
    t.kubectl(&["delete", "dot", "d", "--wait=false"]).await?;
    t.condition("Dot", "d", "Ready", "False", Some("ClaimBound")).await?;
    t.kubectl(&["delete", "pvc", "again"]).await?;
    nothing_left(&t, &fs_id).await?;
    eventually("the PersistentVolume to go", STEP, pv_gone).await
}

async fn dot_in_pod(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    claim(&t, "data", "Dot", "d").await?;
    let pv = bound(&t, "data").await?;
    ensure!(pv["spec"]["csi"]["volumeHandle"] == *fs_id, "that very Filesystem: {}", pv["spec"]["csi"]);
    csi_pvc::pod(&t, "p", "data", "n2", "echo written > /data/word; sync; sleep 1000").await?;
    csi_pvc::started(&t, "p").await?;
    csi_pvc::says(&t, "p", "/data/word", "written").await?;
    owned_by(&t, "d", "n2").await.context("it has followed its pod")?;
    csi_pvc::stop(&t, "p").await?;
    csi_pvc::pod(&t, "next", "data", "n3", "sleep 1000").await?;
    csi_pvc::started(&t, "next").await?;
    ensure!(t.kubectl(&["exec", "next", "--", "cat", "/data/word"]).await? == "written\n", "what the first pod wrote");
    csi_pvc::stop(&t, "next").await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    eventually("the PersistentVolume to go", STEP, || async {
        let left = t.kube().kubectl(&["get", "pv", "-o", "name"]).await?;
        ensure!(!left.contains(&fs_id), "{left}");
        Ok(())
    })
    .await?;
    let dots = t.kube().names("Dot", &t.namespace, |_| true).await?;
    ensure!(dots == ["d"], "no other volume was made: {dots:?}");
    Ok(())
}

async fn pvc_of_commit(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    write(&t, "n1", &fs_id, "a", "before").await?;
    t.commit("c", "d").await?;
    write(&t, "n1", &fs_id, "a", "after").await?;
    t.kubectl(&["patch", "dot", "d", "--type=merge", "-p", r#"{"spec":{"capacity":"256Mi"}}"#]).await?;
    claim(&t, "copy", "Commit", "c").await?;
    let pv = bound(&t, "copy").await?;
    let own = pv["spec"]["csi"]["volumeHandle"].as_str().context("no handle")?.to_owned();
    ensure!(own != fs_id, "a Filesystem of its own");
    ensure!(read(&t, "n1", &own, "a").await? == "before", "what the Commit had");
    t.kubectl(&["delete", "pvc", "copy"]).await?;
    // What the provisioner does with a PersistentVolume that is to be deleted.
    Sidecar::new(&t).await?.delete(&own).await?;
    let name = pv["metadata"]["name"].as_str().context("no name")?;
    t.kube().kubectl(&["delete", "pv", name]).await?;
    nothing_left(&t, &own).await?;
    ensure!(t.object("Dot", "d").await?["metadata"].get("deletionTimestamp").is_none(), "its source stays");
    Ok(())
}
