//! A node's CSI service, as one volume of one pod sees it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use dotgraft_proto::csi::v1::node_client::NodeClient;
use dotgraft_proto::csi::v1::{self as csi, VolumeCapability};
use tonic::Status;
use tonic::transport::Channel;

use super::csi::{channel, text, writer};
use crate::harness::Test;
use crate::rig::unmount_below;

/// A node's driver, as one volume of one pod sees it. Its mounts go with it, whatever happens.
pub struct Pod {
    /// The socket of its node's driver.
    pub socket: PathBuf,
    /// Where all of its mounts are.
    pub dir: PathBuf,
}

impl Drop for Pod {
    fn drop(&mut self) {
        unmount_below(&self.dir);
    }
}

impl Pod {
    /// A pod of the test on a node: a directory of its own below the kubelet's.
    pub fn new(t: &Test, node: &str, name: &str) -> Result<Self> {
        let node = t.rig.node(node)?;
        let dir = node.kubelet_dir().join("pods").join(&t.namespace).join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(Self { socket: node.csi_socket(), dir })
    }

    /// Where the kubelet stages the volume, once per node.
    pub fn staging(&self) -> PathBuf {
        self.dir.join("globalmount")
    }

    /// Where it publishes the volume, once per pod.
    pub fn target(&self) -> PathBuf {
        self.dir.join("mount")
    }

    /// A client of the driver.
    pub async fn node(&self) -> Result<NodeClient<Channel>> {
        Ok(NodeClient::new(channel(&self.socket).await?))
    }

    /// `NodeStageVolume`, once.
    pub async fn stage(&self, volume: &str, capability: VolumeCapability) -> Result<Result<(), Status>> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: text(&self.staging()),
            volume_capability: Some(capability),
            ..csi::NodeStageVolumeRequest::default()
        };
        Ok(self.node().await?.node_stage_volume(request).await.map(|_| ()))
    }

    /// `NodePublishVolume`, once, at another path than the kubelet's.
    pub async fn publish_at(
        &self,
        volume: &str,
        target: &Path,
        capability: VolumeCapability,
        readonly: bool,
    ) -> Result<Result<(), Status>> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: text(&self.staging()),
            target_path: text(target),
            volume_capability: Some(capability),
            readonly,
            ..csi::NodePublishVolumeRequest::default()
        };
        Ok(self.node().await?.node_publish_volume(request).await.map(|_| ()))
    }

    /// `NodePublishVolume`, once.
    pub async fn publish(&self, volume: &str, capability: VolumeCapability, readonly: bool) -> Result<Result<(), Status>> {
        self.publish_at(volume, &self.target(), capability, readonly).await
    }

    /// `NodeUnpublishVolume`, once, at another path than the kubelet's.
    pub async fn unpublish_at(&self, volume: &str, target: &Path) -> Result<Result<(), Status>> {
        let request = csi::NodeUnpublishVolumeRequest { volume_id: volume.into(), target_path: text(target) };
        Ok(self.node().await?.node_unpublish_volume(request).await.map(|_| ()))
    }

    /// `NodeUnpublishVolume`, once.
    pub async fn unpublish(&self, volume: &str) -> Result<Result<(), Status>> {
        self.unpublish_at(volume, &self.target()).await
    }

    /// `NodeUnstageVolume`, once.
    pub async fn unstage(&self, volume: &str) -> Result<Result<(), Status>> {
        let request = csi::NodeUnstageVolumeRequest { volume_id: volume.into(), staging_target_path: text(&self.staging()) };
        Ok(self.node().await?.node_unstage_volume(request).await.map(|_| ()))
    }

    /// `NodeGetVolumeStats` of a path.
    pub async fn stats(&self, volume: &str, path: &Path) -> Result<Result<csi::NodeGetVolumeStatsResponse, Status>> {
        let request =
            csi::NodeGetVolumeStatsRequest { volume_id: volume.into(), volume_path: text(path), staging_target_path: String::new() };
        Ok(self.node().await?.node_get_volume_stats(request).await.map(tonic::Response::into_inner))
    }

    /// `NodeExpandVolume` to at least that many bytes; the capacity that it answers.
    pub async fn expand(&self, volume: &str, bytes: i64) -> Result<Result<i64, Status>> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: volume.into(),
            volume_path: text(&self.target()),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            ..csi::NodeExpandVolumeRequest::default()
        };
        Ok(self.node().await?.node_expand_volume(request).await.map(|r| r.into_inner().capacity_bytes))
    }

    /// As a pod starts: staged and published, writable.
    pub async fn start(&self, volume: &str) -> Result<()> {
        self.stage(volume, writer()).await??;
        Ok(self.publish(volume, writer(), false).await??)
    }

    /// As a pod ends.
    pub async fn end(&self, volume: &str) -> Result<()> {
        self.unpublish(volume).await??;
        Ok(self.unstage(volume).await??)
    }
}
