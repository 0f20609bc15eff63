//! `ControllerPublish` and `ControllerUnpublish`: what Kubernetes has attached, written to `Filesystem.spec.publishedTo`. That is all
//! that is held of a call; authority is moved by the Filesystem's controller and the agents (csi.md §1).

use std::time::Duration;

use dotgraft_api::{CopyRole, Filesystem, MovePhase, NodePool, Publication, Reason, ReplicaStatus};
use dotgraft_proto::csi::v1 as wire;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::capability::{self, Use};
use super::error::CsiError;
use super::find::{self, TRIES, until};
use super::ids::{self, VolumeHandle, required};
use crate::claim::forsaken;
use crate::context::Ctx;
use crate::error::{Error, Kind};
use crate::filesystem::moving;
use crate::pools;
use crate::troubles;
use crate::write;

/// Longest wait for authority to arrive, then `ABORTED` with progress: a move goes on without us. Under the attacher's `--timeout=60s`, and
/// long, because each `ABORTED` doubles the pause of kube-controller-manager's own next try, up to two minutes (ADR 6).
const PATIENCE: Duration = Duration::from_secs(45);
/// Most nodes in `publishedTo` (the CRD's bound).
const MOST: usize = 64;

/// How a node is to have the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The head, writable: authority goes there.
    Write,
    /// The head, to read: where authority is.
    Read,
    /// A commit, from the copy on that node.
    Copy,
}

fn way(handle: &VolumeHandle, usage: Use, readonly: bool) -> Result<Way, CsiError> {
    match (handle.is_read_only(), usage) {
        (true, Use::Write) if !readonly => Err(CsiError::Invalid("this handle is read-only: publish it read-only".into())),
        (true, _) => Ok(Way::Copy),
        (false, Use::ReadMany) => {
            Err(CsiError::Invalid(format!("to read on several nodes, use the handle `{}`", VolumeHandle::Newest(handle.fs()))))
        }
        (false, Use::Read) => Ok(Way::Read),
        (false, Use::Write) => Ok(if readonly { Way::Read } else { Way::Write }),
    }
}

/// The list with that node in it. `None`: it is there already.
fn with(list: &[Publication], node: &str, way: Way) -> Result<Option<Vec<Publication>>, CsiError> {
    let read_only = way != Way::Write;
    let mut next = list.to_vec();
    if let Some(known) = next.iter_mut().find(|p| p.node == node) {
        return match (known.read_only, way) {
            (false, Way::Read) => Err(CsiError::Exists(format!("it is published to node `{node}` to be written, not to be read only"))),
            // A commit is being read there; now the head as well.
            (true, Way::Write) => {
                known.read_only = false;
                Ok(Some(next))
            }
            _ => Ok(None),
        };
    }
    if let Some(other) = list.iter().find(|p| way == Way::Write && !p.read_only) {
        return Err(CsiError::InUse(format!("the volume is published to node `{}`: unpublish it there first", other.node)));
    }
    if list.len() >= MOST {
        return Err(CsiError::Exhausted(format!("the volume is published to {MOST} nodes, the most there can be")));
    }
    next.push(Publication { node: node.to_owned(), read_only });
    Ok(Some(next))
}

/// The list without that node, or without any. `None`: nothing to take away. What a node writes isn't let go by a read-only handle.
fn without(list: &[Publication], node: Option<&str>, copy_only: bool) -> Option<Vec<Publication>> {
    let goes = |p: &&Publication| node.is_none_or(|n| p.node == n) && (p.read_only || !copy_only);
    list.iter().any(|p| goes(&p)).then(|| list.iter().filter(|p| !goes(p)).cloned().collect())
}

/// Publishes, and waits for authority to be there.
///
/// # Errors
///
/// `NOT_FOUND` without volume or node, `RESOURCE_EXHAUSTED` over `limit`, `FAILED_PRECONDITION` if it is published elsewhere or can't move
/// there, `ABORTED` with the progress of a move.
pub async fn publish(request: &wire::ControllerPublishVolumeRequest, limit: usize, ctx: &Ctx) -> Result<(), CsiError> {
    required("volume_id", &request.volume_id)?;
    let node = required_node(&request.node_id)?;
    let capability = request.volume_capability.as_ref().ok_or_else(|| CsiError::Invalid("volume_capability is missing".into()))?;
    let usage = capability::check(capability)?;
    let handle = ids::volume(&request.volume_id)?;
    let way = way(&handle, usage, request.readonly)?;
    let mut volume = find::published(&handle, ctx).await?;
    let pool = Api::<NodePool>::all(ctx.client.clone()).get_opt(node).await?;
    let pool = pool.ok_or_else(|| CsiError::NotFound(format!("there is no node `{node}` with a pool")))?;
    check_group(&volume.fs, &pool, ctx)?;
    match way {
        Way::Copy if !has_copy(&handle, node, ctx) => check_placement(&handle, &volume, node, ctx)?,
        Way::Read if !is_for(&volume, node) => return Err(elsewhere(handle, node)),
        _ => {}
    }
    if let Some(claim) = &volume.claim {
        forsaken::is_published(claim, ctx).await?;
    }
    for _ in 0..TRIES {
        let Some(next) = with(&volume.fs.spec.published_to, node, way)? else {
            return arrived(&handle, node, way, ctx).await;
        };
        if !volume.fs.spec.published_to.iter().any(|p| p.node == node) {
            check_limit(node, limit, ctx)?;
        }
        match write_list(&volume.fs, &next, ctx).await {
            Ok(()) => return arrived(&handle, node, way, ctx).await,
            Err(e) if e.kind() == Kind::Conflict => volume = find::published(&handle, ctx).await?,
            Err(e) => return Err(e.into()),
        }
    }
    Err(CsiError::InProgress("others are writing the Filesystem; again".into()))
}

fn required_node(node: &str) -> Result<&str, CsiError> {
    // Names of nodes may be longer than the spec's 128 bytes for other strings; 253 is Kubernetes' bound.
    match node.len() {
        0 => Err(CsiError::Invalid("node_id is missing".into())),
        1..=253 => Ok(node),
        _ => Err(CsiError::Invalid("node_id is longer than 253 bytes".into())),
    }
}

async fn write_list(fs: &Filesystem, list: &[Publication], ctx: &Ctx) -> Result<(), Error> {
    let api: Api<Filesystem> = Api::all(ctx.client.clone());
    write::guarded(&api, fs, json!({ "spec": { "publishedTo": list } })).await.map(|_| ())
}

/// A volume moves within its pool group only.
fn check_group(fs: &Filesystem, pool: &NodePool, ctx: &Ctx) -> Result<(), CsiError> {
    let owner = fs.status.as_ref().and_then(|s| s.authority.as_ref()).and_then(|a| ctx.caches.pools.get(&a.owner.node));
    match owner.filter(|o| o.spec.pool_group != pool.spec.pool_group) {
        Some(o) => Err(CsiError::InUse(format!(
            "the volume is in pool group `{}`, node `{}` in `{}`: a volume moves within its group only",
            o.spec.pool_group, pool.spec.node, pool.spec.pool_group
        ))),
        None => Ok(()),
    }
}

/// The node owns the volume, or is to own it.
fn is_for(volume: &find::Published, node: &str) -> bool {
    let owner = volume.fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| a.owner.node.as_str());
    owner == Some(node) || moving::wanted_node(&volume.fs, volume.claim.as_ref()) == Some(node)
}

fn elsewhere(handle: VolumeHandle, node: &str) -> CsiError {
    CsiError::InUse(format!(
        "node `{node}` doesn't own the volume, and to read it moves nothing: use `{}`",
        VolumeHandle::Newest(handle.fs())
    ))
}

/// A copy for pods that read is made only where placement allows one, and while there is a volume that keeps it.
fn check_placement(handle: &VolumeHandle, volume: &find::Published, node: &str, ctx: &Ctx) -> Result<(), CsiError> {
    let Some(claim) = &volume.claim else {
        let commit = handle.commit().map(|c| c.to_string()).unwrap_or_default();
        let nodes = find::holders(&handle.fs().to_string(), &commit, ctx);
        let where_it_is = if nodes.is_empty() { "no node that answers".to_owned() } else { nodes.join(", ") };
        let text = format!(
            "the volume of the snapshot is gone, so no copy is made on node `{node}`: {where_it_is} has the snapshot, pods read it there"
        );
        return Err(CsiError::InUse(text));
    };
    let (pools, owner) = (pools::all(&ctx.caches), volume.fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| &a.owner.node));
    let Some((pool, owner)) = pools.iter().find(|p| p.node == node).zip(owner) else { return Ok(()) };
    pools::may_hold(&pools, pool, owner, &claim.placement)
        .map_err(|why| CsiError::InUse(format!("node `{node}` has no copy of the volume, and none is made there: {why}")))
}

fn check_limit(node: &str, limit: usize, ctx: &Ctx) -> Result<(), CsiError> {
    let attached = ctx.caches.filesystems.all().iter().filter(|f| f.spec.published_to.iter().any(|p| p.node == node)).count();
    if attached >= limit {
        return Err(CsiError::Exhausted(format!("node `{node}` has {attached} volumes, the most there can be")));
    }
    Ok(())
}

/// Waits until the node can have the volume staged.
async fn arrived(handle: &VolumeHandle, node: &str, way: Way, ctx: &Ctx) -> Result<(), CsiError> {
    let id = &handle.fs().to_string();
    let there = || {
        let fs = ctx.caches.filesystems.get(id)?;
        let published = fs.spec.published_to.iter().any(|p| p.node == node);
        let ready = match way {
            Way::Copy => has_copy(handle, node, ctx),
            Way::Read | Way::Write => {
                let a = fs.status.as_ref()?.authority.as_ref()?;
                a.owner.node == node && a.pending.is_none()
            }
        };
        (published && ready).then_some(())
    };
    if until(PATIENCE, there).await.is_some() {
        return Ok(());
    }
    match way {
        Way::Write => Err(CsiError::InProgress(progress(id, node, ctx))),
        Way::Read => Err(elsewhere(*handle, node)),
        Way::Copy => Err(CsiError::InProgress(copying(handle, node, ctx))),
    }
}

/// How far the copy is that pods on that node are to read.
fn copying(handle: &VolumeHandle, node: &str, ctx: &Ctx) -> String {
    let id = &handle.fs().to_string();
    let replicas = ctx.caches.replicas.with(id);
    let owner = replicas.iter().filter_map(|r| r.status.as_ref()).find(|s| s.role == CopyRole::Owner);
    if owner.is_some_and(|s| s.commit_count == 0) {
        return "there is no commit yet that could be read: make one, by a Commit object or `kubectl dot commit`".into();
    }
    match (replicas.iter().find(|r| r.spec.node == node).and_then(|r| r.status.as_ref()), handle.commit()) {
        (Some(s), Some(commit)) if s.role == CopyRole::Replica && s.commit_count > 0 => format!(
            "the copy on node `{node}` has other commits, but not {commit}, perhaps as it began after that: a copy of all of them is made by a \
             ReplicationJob with `initial: All` where there is none yet"
        ),
        (Some(s), _) => with_troubles(format!("a copy is being made on node `{node}`: {} bytes are there", s.bytes), id, node, ctx),
        (None, _) => with_troubles(format!("a copy is about to be made on node `{node}`"), id, node, ctx),
    }
}

/// That node has a commit, or the one that the handle names.
fn has_copy(handle: &VolumeHandle, node: &str, ctx: &Ctx) -> bool {
    let holds = |s: &ReplicaStatus| handle.commit().is_none_or(|c| find::holds(s, &c.to_string()));
    ctx.caches.replicas.with(&handle.fs().to_string()).iter().any(|r| {
        let ready = |s: &ReplicaStatus| matches!(s.role, CopyRole::Owner | CopyRole::Replica) && s.head.is_some() && holds(s);
        r.spec.node == node && r.status.as_ref().is_some_and(ready)
    })
}

/// How far the move to that node is, for the events of the pod that waits for it.
fn progress(id: &str, node: &str, ctx: &Ctx) -> String {
    let owner = ctx.caches.filesystems.get(id).and_then(|f| f.status.clone()?.authority).map(|a| a.owner);
    let Some(owner) = owner else { return "the volume has no owner yet".into() };
    let now = moving::standing(&ctx.caches.replicas.with(id), node);
    let text = match now.phase {
        Reason::Move(MovePhase::Waiting) => {
            format!("waiting for node `{}` to begin to move the volume to `{node}`", owner.node)
        }
        phase => format!("moving from node `{}` to `{node}`: {phase}, {} bytes sent", owner.node, now.bytes),
    };
    if now.detail.is_empty() { with_troubles(text, id, node, ctx) } else { format!("{text}: {}", now.detail) }
}

/// And what the owner's copy and that node's say stands in their way.
fn with_troubles(text: String, id: &str, node: &str, ctx: &Ctx) -> String {
    let owner = ctx.caches.filesystems.get(id).and_then(|f| f.status.clone()?.authority).map(|a| a.owner);
    let replicas = ctx.caches.replicas.with(id);
    match troubles::line(&troubles::of(&replicas, owner.as_ref()), node) {
        Some(told) => format!("{text}: {told}"),
        None => text,
    }
}

/// Records that Kubernetes let go: of one node, or of all. Says nothing about the node, and waits for nothing.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn unpublish(request: &wire::ControllerUnpublishVolumeRequest, ctx: &Ctx) -> Result<(), CsiError> {
    let Ok(handle) = required("volume_id", &request.volume_id)?.parse::<VolumeHandle>() else { return Ok(()) };
    let node = (!request.node_id.is_empty()).then_some(request.node_id.as_str());
    for _ in 0..TRIES {
        let Some(fs) = find::filesystem(&handle.fs().to_string(), ctx).await? else { return Ok(()) };
        let Some(next) = without(&fs.spec.published_to, node, handle.is_read_only()) else { return Ok(()) };
        match write_list(&fs, &next, ctx).await {
            Ok(()) => {
                // So that this program's own lists say the same from now on.
                let name = fs.name_any();
                let seen = || {
                    ctx.caches.filesystems.get(&name).is_none_or(|f| without(&f.spec.published_to, node, handle.is_read_only()).is_none())
                };
                until(Duration::from_secs(2), || seen().then_some(())).await;
                return Ok(());
            }
            Err(e) if e.kind() == Kind::Conflict => {}
            Err(Error::Api(e)) if Error::is_not_found(&e) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    Err(CsiError::InProgress("others are writing the Filesystem; again".into()))
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
