//! `ReadOnlyMany` from a snapshot (ADR 37): a view of its commit, which takes no byte and holds the commit alone. What backup programs read.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1 as csi;
use dotgraft_proto::csi::v1::volume_capability::access_mode::Mode;
use dotgraft_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use serde_json::json;
use tonic::Code;

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::csi::{capability, refused};
use crate::steps::left::nothing_left;
use crate::steps::mount::Pod;
use crate::steps::sidecar::{SIZE, Sidecar, write};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "csi-view",
            "ReadOnlyMany from a snapshot is a view of it without a copy; it holds the snapshot and not the volume",
            view,
        ),
        Case::new(
            "csi-view-refusals",
            "a view is of a snapshot of its namespace, doesn't grow, and changes nothing of the volume",
            refusals,
        ),
    ]
}

fn reader() -> csi::VolumeCapability {
    capability(Mode::MultiNodeReaderOnly, "")
}

/// What the provisioner sends for a `ReadOnlyMany` PVC from that snapshot.
fn request(csi: &Sidecar, pvc: &str, snapshot: &str) -> csi::CreateVolumeRequest {
    let source = SnapshotSource { snapshot_id: snapshot.into() };
    csi::CreateVolumeRequest {
        volume_capabilities: vec![reader()],
        volume_content_source: Some(csi::VolumeContentSource { r#type: Some(Source::Snapshot(source)) }),
        ..csi.request(pvc, "n1")
    }
}

/// The `PersistentVolume` that the provisioner makes of the answer, and its PVC; the PVC is in `namespace`.
async fn bound(t: &Test, namespace: &str, name: &str, handle: &str) -> Result<String> {
    let volume = format!("{}-{name}", t.namespace);
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": {
            "capacity": {"storage": "256Mi"}, "accessModes": ["ReadOnlyMany"], "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": name},
            "csi": {"driver": "csi.dotgraft.dev", "volumeHandle": handle, "readOnly": true},
        }},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace}, "spec": {
            "storageClassName": "", "volumeName": volume, "accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "256Mi"}},
        }},
    ]});
    t.apply(&objects.to_string()).await?;
    let claim = ["wait", "--for=jsonpath={.status.phase}=Bound", "pvc", name, "-n", namespace, "--timeout=60s"];
    t.kube().kubectl(&claim).await?;
    Ok(volume)
}

/// One try of `DeleteSnapshot`, which waits for what holds it.
async fn held(csi: &Sidecar, snapshot: &str, words: &str) -> Result<()> {
    let request = csi::DeleteSnapshotRequest { snapshot_id: snapshot.into(), ..csi::DeleteSnapshotRequest::default() };
    refused(csi.client.clone().delete_snapshot(request).await, Code::FailedPrecondition, words)
}

async fn view(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let volume = csi.volume(&csi.request("source", "n1")).await?.volume_id;
    write(&t, "n1", &volume, "a", "before").await?;
    let shot = csi.snapshot("s", &volume).await?;
    write(&t, "n1", &volume, "a", "after").await?;

    let made = csi.volume(&request(&csi, "one", &shot.snapshot_id)).await?;
    ensure!(made.capacity_bytes == SIZE && made.content_source.is_some(), "{made:?}");
    let (one, two) = (made.volume_id, csi.volume(&request(&csi, "two", &shot.snapshot_id)).await?.volume_id);
    ensure!(one.starts_with(&format!("ro/{}/", shot.snapshot_id)), "{one}");
    ensure!(one != two, "Kubernetes takes two volumes of one handle for one");
    ensure!(csi.volume(&request(&csi, "one", &shot.snapshot_id)).await?.volume_id == one, "made once");
    let dots = t.kube().names("Dot", &t.namespace, |_| true).await?;
    ensure!(dots == ["source"], "a view is no volume of its own: {dots:?}");

    // The volume goes, and what is read stays.
    let pv = bound(&t, &t.namespace, "one", &one).await?;
    csi.delete(&volume).await?;
    ensure!(t.object("Filesystem", &volume).await?["status"]["phase"] == "Headless", "a view holds the volume");
    eventually("the operator to know the view", STEP, || held(&csi, &shot.snapshot_id, "PVC one has a view of it")).await?;
    publish(&csi, &one, "n1").await?;
    refused(csi.publish(&one, "n2", true).await, Code::FailedPrecondition, "n1 has the snapshot")?;
    let pod = Pod::new(&t, "n1", "p")?;
    pod.stage(&one, reader()).await??;
    pod.publish(&one, reader(), true).await??;
    ensure!(std::fs::read_to_string(pod.target().join("a"))? == "before", "not what the snapshot had");
    ensure!(std::fs::write(pod.target().join("a"), "x").is_err(), "it can be written");
    let listed = csi.client.clone().list_volumes(csi::ListVolumesRequest::default()).await?.into_inner().entries;
    let of_it = listed.iter().find(|e| e.volume.as_ref().is_some_and(|v| v.volume_id == one)).context("it isn't listed")?;
    let nodes = of_it.status.clone().unwrap_or_default().published_node_ids;
    ensure!(nodes == ["n1"], "the attacher takes it for detached: {nodes:?}");

    // The pod and its PVC end; the snapshot, which was deleted meanwhile, goes with them, and so does all the rest.
    pod.end(&one).await?;
    csi.unpublish(&one, "n1").await?;
    t.kubectl(&["delete", "pvc", "one"]).await?;
    csi.delete(&one).await?;
    csi.delete_snapshot(&shot.snapshot_id).await?;
    t.kubectl(&["delete", "pv", &pv]).await?;
    nothing_left(&t, &volume).await
}

async fn publish(csi: &Sidecar, id: &str, node: &str) -> Result<()> {
    eventually("the view to be published", STEP, || async { Ok(csi.publish(id, node, true).await?) }).await
}

async fn refusals(t: Arc<Test>) -> Result<()> {
    let csi = Sidecar::new(&t).await?;
    let volume = csi.volume(&csi.request("source", "n1")).await?.volume_id;
    write(&t, "n1", &volume, "a", "before").await?;
    let shot = csi.snapshot("s", &volume).await?.snapshot_id;
    let with = |edit: &dyn Fn(&mut csi::CreateVolumeRequest)| {
        let mut r = request(&csi, "view", &shot);
        edit(&mut r);
        r
    };
    let of_volume = Some(csi::VolumeContentSource { r#type: Some(Source::Volume(VolumeSource { volume_id: volume.clone() })) });
    refused(csi.create(&with(&|r| r.volume_content_source.clone_from(&of_volume))).await, Code::InvalidArgument, "VolumeSnapshot")?;
    refused(csi.create(&with(&|r| r.volume_content_source = None)).await, Code::InvalidArgument, "VolumeSnapshot")?;
    refused(
        csi.create(&with(&|r| r.volume_capabilities.push(capability(Mode::SingleNodeWriter, "")))).await,
        Code::InvalidArgument,
        "alone",
    )?;
    let foreign = with(&|r| {
        r.parameters.insert("csi.storage.k8s.io/pvc/namespace".into(), "default".into());
    });
    refused(csi.create(&foreign).await, Code::NotFound, &shot)?;
    let small = csi::CapacityRange { required_bytes: 0, limit_bytes: SIZE / 2 };
    refused(csi.create(&with(&|r| r.capacity_range = Some(small))).await, Code::OutOfRange, "more")?;

    let view = csi.volume(&request(&csi, "view", &shot)).await?.volume_id;
    let range = Some(csi::CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 });
    let expand = csi::ControllerExpandVolumeRequest { volume_id: view.clone(), capacity_range: range, ..Default::default() };
    refused(csi.client.clone().controller_expand_volume(expand).await, Code::InvalidArgument, "size of its commit")?;
    let mutable_parameters = [("dotgraft.dev/replicas".to_owned(), "1".to_owned())].into();
    let modify = csi::ControllerModifyVolumeRequest { volume_id: view.clone(), mutable_parameters, ..Default::default() };
    refused(csi.client.clone().controller_modify_volume(modify).await, Code::InvalidArgument, "read-only")?;
    let dot = t.object("Dot", "source").await?;
    ensure!(dot["spec"]["placement"]["replicas"].as_u64().unwrap_or(0) == 0, "a reader has changed the volume: {}", dot["spec"]);
    // What reads of another namespace isn't named to this one.
    let beside = t.beside("b").await?;
    let pv = bound(&t, &beside.namespace, "hidden", &view).await?;
    let words = format!("{pv} of another namespace");
    eventually("the operator to know the view", STEP, || held(&csi, &shot, &words)).await?;
    let commit = serde_json::to_string(&t.kube().list("Commit", &t.namespace).await?)?;
    ensure!(!commit.contains("PVC hidden"), "another namespace's PVC is named: {commit}");
    t.kube().kubectl(&["delete", "pvc", "hidden", "-n", &beside.namespace]).await?;
    t.kubectl(&["delete", "pv", &pv]).await?;
    beside.drop_namespace().await?;

    // A Commit that somebody made is read in the same way.
    t.commit("c", "source").await?;
    t.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: of-commit, namespace: NAMESPACE}\nspec:\n  storageClassName: dotgraft\n  \
         accessModes: [ReadOnlyMany]\n  resources: {requests: {storage: 256Mi}}\n  \
         dataSourceRef: {apiGroup: dotgraft.dev, kind: Commit, name: c}\n",
    )
    .await?;
    t.kubectl(&["wait", "--for=jsonpath={.status.phase}=Bound", "pvc", "of-commit", "--timeout=60s"]).await?;
    let own = t.kubectl(&["get", "pvc", "of-commit", "-o", "jsonpath={.spec.volumeName}"]).await?;
    let handle = t.kubectl(&["get", "pv", &own, "-o", "jsonpath={.spec.csi.volumeHandle}"]).await?;
    ensure!(handle.starts_with(&format!("ro/{volume}@")) && handle.matches('/').count() == 2, "{handle}");
    t.kubectl(&["delete", "pvc", "of-commit"]).await?;
    t.kubectl(&["delete", "pv", &own]).await?;
    t.kubectl(&["delete", "commit", "c"]).await?;
    csi.delete_snapshot(&shot).await?;
    csi.delete(&volume).await?;
    nothing_left(&t, &volume).await
}
