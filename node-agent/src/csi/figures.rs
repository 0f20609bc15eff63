//! What a node and its volumes are like: `NodeGetInfo`, stats and condition, expansion.
//!
//! `df` in a pod shows the whole pool, so the numbers are those of the Filesystem's quota group: head and commits together, against
//! capacity and history limit together (storage.md §4). btrfs has no number of inodes to run out of, so none is given.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_api::common::{TOPOLOGY_NODE, TOPOLOGY_POOL};
use dotgraft_engine::filesystem::{FilesystemStatus, RoleStatus};
use dotgraft_engine::handle::VolumeHandle;
use dotgraft_proto::csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    Topology, VolumeCondition, VolumeUsage, volume_usage,
};
use tonic::Code;

use super::Csi;
use super::mounting::required;
use super::refusal::Refusal;
use super::volume::{self, Access};
use crate::actor::words;

/// How long an expansion waits for the operator's word to arrive.
const PATIENCE: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Csi {
    /// `NodeGetInfo`.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE` until the operator has made this node's NodePool.
    pub fn info(&self) -> Result<NodeGetInfoResponse, Refusal> {
        let object = self.own.object().borrow().clone();
        let Some(object) = object else {
            return Err(Refusal::new(Code::Unavailable, "the operator has not made this node's NodePool object yet"));
        };
        let node = self.node.place().node.to_string();
        let keys = [(TOPOLOGY_POOL, object.spec.pool_group.clone()), (TOPOLOGY_NODE, node.clone())];
        Ok(NodeGetInfoResponse {
            node_id: node,
            max_volumes_per_node: self.settings.max_volumes,
            accessible_topology: Some(Topology { segments: keys.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<HashMap<_, _>>() }),
        })
    }

    /// `NodeGetVolumeStats`.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` if it is not mounted there; the disk can't be read.
    pub async fn stats(self: &Arc<Self>, r: NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, Refusal> {
        required("volume_id", &r.volume_id)?;
        required("volume_path", &r.volume_path)?;
        let volume = volume::parse(&r.volume_id)?;
        let handle = self.handle(volume.fs())?;
        self.must_be_mounted(volume, r.volume_path).await?;
        let status = handle.current();
        let usage = match status.base.as_ref().map(|b| b.qgroup) {
            Some(qgroup) => self.blocking(move |look| look.node.driver.usage(qgroup)).await?,
            None => return Err(Refusal::not_found(format!("no copy of volume {volume} is on this node"))),
        };
        let figure = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let bytes = VolumeUsage {
            available: figure(usage.limit.saturating_sub(usage.bytes)),
            total: figure(usage.limit),
            used: figure(usage.bytes),
            unit: volume_usage::Unit::Bytes.into(),
        };
        Ok(NodeGetVolumeStatsResponse { usage: vec![bytes], volume_condition: Some(condition(&status)) })
    }

    /// `NodeExpandVolume`: the operator sets the limit, by the Replica; here it is only waited for.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` if it is not mounted there, `INVALID_ARGUMENT` for a range that makes no sense, `ABORTED` while the limit is not raised yet.
    pub async fn expand(self: &Arc<Self>, r: NodeExpandVolumeRequest) -> Result<NodeExpandVolumeResponse, Refusal> {
        required("volume_id", &r.volume_id)?;
        required("volume_path", &r.volume_path)?;
        let range = r.capacity_range.unwrap_or_default();
        if range.required_bytes < 0 || range.limit_bytes < 0 || range.limit_bytes > 0 && range.limit_bytes < range.required_bytes {
            return Err(Refusal::invalid("capacity_range makes no sense: limit_bytes is below required_bytes, or one is negative"));
        }
        let volume = volume::parse(&r.volume_id)?;
        if r.volume_capability.is_some() {
            Access::check(volume, r.volume_capability.as_ref())?;
        }
        self.handle(volume.fs())?;
        self.must_be_mounted(volume, r.volume_path).await?;
        let wanted = u64::try_from(range.required_bytes).unwrap_or(0);
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.handle(volume.fs())?.current();
            let base = status.base.as_ref().ok_or_else(|| Refusal::not_found(format!("no copy of volume {volume} is on this node")))?;
            let (qgroup, capacity, limit) = (base.qgroup, base.capacity, base.limit());
            if capacity >= wanted {
                let usage = self.blocking(move |look| look.node.driver.usage(qgroup)).await?;
                if usage.limit == 0 || usage.limit >= limit {
                    return Ok(NodeExpandVolumeResponse { capacity_bytes: i64::try_from(capacity).unwrap_or(i64::MAX) });
                }
            }
            if Instant::now() >= until {
                return Err(Refusal::aborted(format!(
                    "the volume has {capacity} bytes here, {wanted} are on their way from the operator; ask again"
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn must_be_mounted(self: &Arc<Self>, volume: VolumeHandle, path: String) -> Result<(), Refusal> {
        // Nothing is published at a path that is none: that too is "not there" (CSI spec, NodeGetVolumeStats errors).
        let place = if path.starts_with('/') { self.place("volume_path", path).await? } else { None };
        let line = match place {
            Some(place) => self.mounted(place.path()).await?,
            None => None,
        };
        match line.and_then(|line| line.filesystem(&self.pool_dev)) {
            Some(fs) if fs == volume.fs() => Ok(()),
            _ => Err(Refusal::not_found(format!("volume {volume} is not mounted at volume_path"))),
        }
    }
}

/// The Filesystem's conditions in one sentence.
fn condition(status: &FilesystemStatus) -> VolumeCondition {
    let troubles: Vec<String> = status
        .conditions
        .iter()
        .filter(|c| words::about(c.r#type).is_trouble(c.status))
        .map(|c| format!("{}: {}", c.reason, c.message))
        .collect();
    if !troubles.is_empty() {
        return VolumeCondition { abnormal: true, message: troubles.join("; ").chars().take(1024).collect() };
    }
    let message = match status.role {
        RoleStatus::Owner => format!("open for writing on this node, epoch {}", status.epoch.0),
        _ => format!("a read-only copy with {} commits", status.commits),
    };
    VolumeCondition { abnormal: false, message }
}
