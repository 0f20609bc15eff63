//! The controller's CSI service, as a sidecar calls it.

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1 as csi;
use dotgraft_proto::csi::v1::controller_client::ControllerClient;
use tonic::Status;
use tonic::transport::Channel;

use super::csi::{channel, writer};
use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::wait::eventually;

/// What the volumes of [`Sidecar::request`] are to hold, in bytes.
pub const SIZE: i64 = 256 << 20;

/// The operator's Controller service, as one sidecar sees it.
pub struct Sidecar {
    /// Cheap to clone.
    pub client: ControllerClient<Channel>,
    namespace: String,
}

impl Sidecar {
    /// Of the test's namespace.
    pub async fn new(t: &Test) -> Result<Self> {
        let client = ControllerClient::new(channel(&t.rig.csi_socket()).await?);
        Ok(Self { client, namespace: t.namespace.clone() })
    }

    /// What the provisioner sends for a PVC of the test's namespace that was scheduled to a node.
    pub fn request(&self, pvc: &str, node: &str) -> csi::CreateVolumeRequest {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let at = |segments| csi::Topology { segments };
        let preferred = at([pair("topology.dotgraft.dev/node", node), pair("topology.dotgraft.dev/pool", "default")].into());
        let requisite = at([pair("topology.dotgraft.dev/pool", "default")].into());
        csi::CreateVolumeRequest {
            name: format!("pvc-{}-{pvc}", self.namespace),
            capacity_range: Some(csi::CapacityRange { required_bytes: SIZE, limit_bytes: 0 }),
            volume_capabilities: vec![writer()],
            parameters: [
                pair("csi.storage.k8s.io/pvc/name", pvc),
                pair("csi.storage.k8s.io/pvc/namespace", &self.namespace),
                pair("csi.storage.k8s.io/pv/name", "pv"),
            ]
            .into(),
            accessibility_requirements: Some(csi::TopologyRequirement { requisite: vec![requisite], preferred: vec![preferred] }),
            ..csi::CreateVolumeRequest::default()
        }
    }

    /// `CreateVolume`, once.
    pub async fn create(&self, request: &csi::CreateVolumeRequest) -> Result<csi::Volume, Status> {
        let answer = self.client.clone().create_volume(request.clone()).await?.into_inner();
        answer.volume.ok_or_else(|| Status::internal("no volume in the answer"))
    }

    /// As a sidecar does: again while it is on its way. A preferred node is only that: where the operator doesn't know of a ready pool on it
    /// (yet), the volume begins elsewhere. So the operator has to know of one.
    pub async fn volume(&self, request: &csi::CreateVolumeRequest) -> Result<csi::Volume> {
        let preferred = request.accessibility_requirements.iter().flat_map(|r| &r.preferred);
        for topology in preferred {
            self.room(Some(topology)).await?;
        }
        eventually("the volume to be made", STEP, || async { Ok(self.create(request).await?) }).await
    }

    /// Waits until the operator has heard of a pool with room, in that topology if one is named. It hears of pools a while after the agents
    /// are ready.
    pub async fn room(&self, topology: Option<&csi::Topology>) -> Result<()> {
        let request = csi::GetCapacityRequest { accessible_topology: topology.cloned(), ..csi::GetCapacityRequest::default() };
        eventually("room for volumes", STEP, || async {
            let answer = self.client.clone().get_capacity(request.clone()).await?.into_inner();
            ensure!(answer.available_capacity > 0, "the operator knows of no pool that is ready in {topology:?}");
            Ok(())
        })
        .await
    }

    /// `DeleteVolume`, again until it is done.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let request = csi::DeleteVolumeRequest { volume_id: id.into(), ..csi::DeleteVolumeRequest::default() };
        let delete = || async { Ok(self.client.clone().delete_volume(request.clone()).await.map(|_| ())?) };
        eventually("the volume to be deleted", STEP, delete).await
    }

    /// `ControllerPublish`, once.
    pub async fn publish(&self, id: &str, node: &str, readonly: bool) -> Result<(), Status> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: id.into(),
            node_id: node.into(),
            volume_capability: Some(writer()),
            readonly,
            ..csi::ControllerPublishVolumeRequest::default()
        };
        self.client.clone().controller_publish_volume(request).await.map(|_| ())
    }

    /// `ControllerUnpublish`, once.
    pub async fn unpublish(&self, id: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: id.into(),
            node_id: node.into(),
            ..csi::ControllerUnpublishVolumeRequest::default()
        };
        self.client.clone().controller_unpublish_volume(request).await.map(|_| ())
    }

    /// `CreateSnapshot`, once.
    pub async fn try_snapshot(&self, name: &str, volume: &str) -> Result<csi::Snapshot, Status> {
        let name = format!("snapshot-{}-{name}", self.namespace);
        let request = csi::CreateSnapshotRequest { name, source_volume_id: volume.into(), ..csi::CreateSnapshotRequest::default() };
        let answer = self.client.clone().create_snapshot(request).await?.into_inner();
        answer.snapshot.ok_or_else(|| Status::internal("no snapshot in the answer"))
    }

    /// `CreateSnapshot`, again until it is made.
    pub async fn snapshot(&self, name: &str, volume: &str) -> Result<csi::Snapshot> {
        eventually("the snapshot to be made", STEP, || async { Ok(self.try_snapshot(name, volume).await?) }).await
    }

    /// What `ListSnapshots` says of one.
    ///
    /// # Errors
    ///
    /// It is refused, or has no such snapshot.
    pub async fn listed(&self, id: &str) -> Result<csi::Snapshot> {
        let request = csi::ListSnapshotsRequest { snapshot_id: id.into(), ..csi::ListSnapshotsRequest::default() };
        let entries = self.client.clone().list_snapshots(request).await?.into_inner().entries;
        entries.into_iter().find_map(|e| e.snapshot).context("it isn't listed")
    }

    /// `DeleteSnapshot`, again until it is done.
    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id.into(), ..csi::DeleteSnapshotRequest::default() };
        let delete = || async { Ok(self.client.clone().delete_snapshot(request.clone()).await.map(|_| ())?) };
        eventually("the snapshot to be deleted", STEP, delete).await
    }

    /// `ControllerGetVolume`, once.
    pub async fn get(&self, id: &str) -> Result<csi::ControllerGetVolumeResponse, Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.into() };
        Ok(self.client.clone().controller_get_volume(request).await?.into_inner())
    }
}

/// What a file of a volume says, read through the agent of its owner.
pub async fn read(t: &Test, node: &str, volume: &str, file: &str) -> Result<String> {
    let path = t.mount(node, volume).await?;
    let text = std::fs::read_to_string(path.join(file));
    t.unmount(&path).await?;
    Ok(text?)
}

/// Writes a file of a volume.
pub async fn write(t: &Test, node: &str, volume: &str, file: &str, content: &str) -> Result<()> {
    let path = t.mount(node, volume).await?;
    let written = std::fs::write(path.join(file), content);
    t.unmount(&path).await?;
    Ok(written?)
}
