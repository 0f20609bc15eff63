//! Where authority should be, and what the operator does about it: it asks the owner to hand over, and takes authority from an owner that
//! is proven lost (migration.md §2, R5, R6). Pure.

use std::sync::Arc;

use dotgraft_api::{Authority, CopyRole, DesiredState, Fencing, Filesystem, FilesystemPhase, ForkPoint, Migration, Place, Replica};

use super::plan::View;
use crate::claim::ClaimView;
use crate::conditions::Block;
use crate::pools::{self, PoolView};

/// The node where it should be: the first that Kubernetes has attached it to for writing, else `placement.node`.
pub fn wanted_node<'a>(fs: &'a Filesystem, claim: Option<&'a ClaimView>) -> Option<&'a str> {
    let published = fs.spec.published_to.iter().find(|p| !p.read_only).map(|p| p.node.as_str());
    published.or_else(|| claim.and_then(|c| c.placement.node.as_deref()))
}

/// Where authority is to go, if it is not there; a node that can't take it is named, with the reason.
pub fn goal(view: &View, authority: &Authority) -> Option<Result<Place, Block>> {
    goal_of(wanted_node(&view.fs, view.claim.as_ref()), authority, &view.pools)
}

/// The same from its parts.
pub fn goal_of(node: Option<&str>, authority: &Authority, pools: &[PoolView]) -> Option<Result<Place, Block>> {
    let node = node.filter(|n| *n != authority.owner.node)?;
    let refuse = |why: String| Some(Err(Block::new("PlacementRefused", format!("it can't move to node `{node}`: {why}"))));
    let Some(pool) = pools.iter().find(|p| p.node == node) else { return refuse("no agent runs there".into()) };
    let group = pools.iter().find(|p| p.node == authority.owner.node).map(|p| p.group.as_str());
    if group.is_some_and(|g| g != pool.group) {
        return refuse(format!("its pool is of group `{}`, the volume's of another", pool.group));
    }
    match pool.place() {
        Some(place) if pool.ready && pool.node_exists => Some(Ok(place)),
        _ => refuse(format!("its pool is not ready: {}", pool.problem)),
    }
}

/// Whether a copy there can take over: the owner is asked only then.
pub fn can_take(replicas: &[Arc<Replica>], place: &Place) -> bool {
    let ready = |r: &Replica| r.status.as_ref().is_some_and(|s| matches!(s.role, CopyRole::Replica | CopyRole::Receiving));
    replicas.iter().any(|r| r.spec.pool == place.pool && r.spec.node == place.node && ready(r))
}

/// How a move that is wanted stands, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The owner's phase; `Waiting` while none is in hand.
    pub phase: String,
    /// Bytes sent by the one in hand.
    pub bytes: u64,
    /// What it waits for, what keeps it from beginning, or what ended the last try.
    pub detail: String,
}

/// How a move to that node stands.
pub fn standing(replicas: &[Arc<Replica>], node: &str) -> Standing {
    let told = newest_report(replicas).filter(|m| m.to == node);
    if let Some(m) = told.as_ref().filter(|m| m.finished_at.is_none()) {
        return Standing { phase: m.phase.clone(), bytes: m.bytes, detail: m.message.clone() };
    }
    let ended = told.filter(|m| m.phase == "Cancelled" && !m.message.is_empty());
    let detail = match replicas.iter().find(|r| r.spec.node == node && is_superseded(r)) {
        Some(r) => format!(
            "what that node wrote before another became owner is only in its own copy, which is kept: take what you need of it, then \
             `kubectl dot drop {} --node {node} --yes`",
            r.spec.fs_id
        ),
        None => ended.map(|m| format!("the last try was given up: {}", m.message)).unwrap_or_default(),
    };
    Standing { phase: "Waiting".into(), bytes: 0, detail }
}

/// The newest handoff that any copy tells of: it is the exporter's, whoever owns it now. Of two in one second (all that a time in the API
/// tells apart) the id decides, a UUIDv7.
pub fn newest_report(replicas: &[Arc<Replica>]) -> Option<Migration> {
    let told = replicas.iter().filter_map(|r| r.status.as_ref()?.migration.as_ref());
    told.max_by_key(|m| (m.started_at.as_ref().map(|t| t.0), m.id.as_str())).cloned()
}

fn is_superseded(replica: &Replica) -> bool {
    let list = replica.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    list.iter().any(|c| c.type_ == "Superseded" && c.status == "True")
}

/// Authority after it was taken from an owner that is proven lost; `None`: nothing to take, or nobody to take it.
///
/// Proof is the out-of-service taint or a Node object that is gone (under `Manual` only a person promotes). A copy that has reported
/// `EImportStart` for exactly the handoff that is pending takes over without loss; else the copy with the newest commit, and what the lost
/// owner has beyond it is fenced and kept when it returns.
pub fn steal(view: &View, phase: FilesystemPhase, authority: &Authority) -> Option<Authority> {
    let fencing = view.claim.as_ref().map(|c| c.fencing)?;
    if fencing != Fencing::Proof || phase != FilesystemPhase::Active || !is_proven_lost(view, &authority.owner) {
        return None;
    }
    wanted_node(&view.fs, view.claim.as_ref()).filter(|n| *n != authority.owner.node)?; // else nobody needs it elsewhere: the owner may come back
    taken(view, authority, None)
}

fn is_proven_lost(view: &View, owner: &Place) -> bool {
    let node = view.pools.iter().find(|p| p.node == owner.node);
    pools::is_gone(&view.pools, owner) || node.is_some_and(|p| p.out_of_service)
}

/// Authority for the best copy, or the one on `node`.
pub fn taken(view: &View, authority: &Authority, node: Option<&str>) -> Option<Authority> {
    let usable = |r: &&Arc<Replica>| {
        let place = Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() };
        let holds = r.status.as_ref().is_some_and(|s| matches!(s.role, CopyRole::Replica | CopyRole::Receiving) && s.commit_count > 0);
        let pool = view.pools.iter().any(|p| p.place().as_ref() == Some(&place) && p.ready && !p.out_of_service);
        r.spec.desired.state == DesiredState::Present
            && place != authority.owner
            && pool
            && node.is_none_or(|n| n == place.node)
            && (holds || has_all(r, authority))
    };
    let wanted = wanted_node(&view.fs, view.claim.as_ref());
    let newest = |r: &Arc<Replica>| {
        let status = r.status.as_ref();
        let commit = status.and_then(|s| s.recent_commits.first()).map(|c| (c.epoch, c.time.0));
        (has_all(r, authority), commit, Some(r.spec.node.as_str()) == wanted, std::cmp::Reverse(r.spec.node.clone()))
    };
    let best = view.replicas.iter().filter(usable).max_by_key(|r| newest(r))?;
    let owner = Place { node: best.spec.node.clone(), pool: best.spec.pool.clone() };
    let mut fork_points = authority.fork_points.clone();
    if !has_all(best, authority) {
        let commit = best.status.as_ref().and_then(|s| s.head.clone());
        fork_points.push(ForkPoint { from: authority.owner.clone(), from_epoch: authority.epoch, commit });
        let old = fork_points.len().saturating_sub(64);
        fork_points.drain(..old);
    }
    Some(Authority {
        owner,
        epoch: authority.epoch.saturating_add(1),
        attempt: authority.attempt.saturating_add(1),
        opened: None,
        pending: None,
        fork_points,
    })
}

/// Whether the copy there has reported to hold all of the handoff that is pending: nothing is lost if it takes over.
pub fn holds_all(view: &View, authority: &Authority, place: &Place) -> bool {
    view.replicas.iter().any(|r| r.spec.pool == place.pool && has_all(r, authority))
}

/// R5: everything of the handoff that is pending is there.
fn has_all(replica: &Replica, authority: &Authority) -> bool {
    let (Some(pending), Some(start)) = (&authority.pending, replica.status.as_ref().and_then(|s| s.import_start.as_ref())) else {
        return false;
    };
    let to = Place { node: replica.spec.node.clone(), pool: replica.spec.pool.clone() };
    pending.to == to && (start.mig == pending.mig && start.attempt == pending.attempt && start.final_commit == pending.final_commit)
}

#[cfg(test)]
#[path = "moving_tests.rs"]
pub mod tests;
