//! Where authority should be, and what the operator does about it: it asks the owner to hand over, and takes authority from an owner that
//! is proven lost, if that is needed. By which rules stands in [`super::authority`]. Pure.

use std::sync::Arc;

use dotgraft_api::{
    Authority, ConditionType, CopyRole, Fencing, Filesystem, FilesystemPhase, Migration, MovePhase, Place, Reason, Replica, Word, is_true,
};

use super::authority;
use super::plan::View;
use crate::claim::ClaimView;
use crate::conditions::Block;
use crate::pools::PoolView;

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
    let refuse = |why: String| Some(Err(Block::new(ConditionType::PlacementRefused, format!("it can't move to node `{node}`: {why}"))));
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The owner's phase; `Waiting` while none is in hand.
    pub phase: Reason,
    /// Bytes sent by the one in hand.
    pub bytes: u64,
    /// What it waits for, what keeps it from beginning, or what ended the last try.
    pub detail: String,
}

/// How a move to that node stands.
pub fn standing(replicas: &[Arc<Replica>], node: &str) -> Standing {
    let told = newest_report(replicas).filter(|m| m.to == node);
    if let Some(m) = told.as_ref().filter(|m| m.finished_at.is_none()) {
        return Standing { phase: phase(m), bytes: m.bytes, detail: m.message.clone() };
    }
    let ended = told.filter(|m| m.phase == MovePhase::Cancelled.as_str() && !m.message.is_empty());
    let detail = match replicas.iter().find(|r| r.spec.node == node && is_superseded(r)) {
        Some(r) => format!(
            "what that node wrote before another became owner is only in its own copy, which is kept: take what you need of it, then \
             `kubectl dot drop {} --node {node} --yes`",
            r.spec.fs_id
        ),
        None => ended.map(|m| format!("the last try was given up: {}", m.message)).unwrap_or_default(),
    };
    Standing { phase: MovePhase::Waiting.into(), bytes: 0, detail }
}

/// One that only a newer agent knows is said as running.
fn phase(m: &Migration) -> Reason {
    m.phase.parse().map_or_else(|_| Word::Running.into(), |phase: MovePhase| phase.into())
}

/// The newest handoff that any copy tells of: it is the exporter's, whoever owns it now. Of two in one second (all that a time in the API
/// tells apart) the id decides, a UUIDv7.
pub fn newest_report(replicas: &[Arc<Replica>]) -> Option<Migration> {
    let told = replicas.iter().filter_map(|r| r.status.as_ref()?.migration.as_ref());
    told.max_by_key(|m| (m.started_at.as_ref().map(|t| t.0), m.id.as_str())).cloned()
}

fn is_superseded(replica: &Replica) -> bool {
    let list = replica.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    is_true(list, ConditionType::Superseded).is_some()
}

/// Authority after it was taken from an owner that is proven lost, or given back to the one that handed it over to that owner.
///
/// It is given back whenever it is wanted there again before the new owner has opened: nothing is lost by that, so it needs no proof. Under
/// `Manual` only a person takes it from an owner; and while nobody needs it elsewhere, the owner may come back.
///
/// # Errors
///
/// `None`: nothing to take. Else why nobody takes it, which is worth a condition if there is somebody to wait for.
pub fn steal(view: &View, phase: FilesystemPhase, authority: &Authority) -> Result<Authority, Option<Block>> {
    let wanted = wanted_node(&view.fs, view.claim.as_ref());
    if let Some(back) = wanted.and_then(|node| authority::give_back(view, node).ok()) {
        return Ok(back);
    }
    let fencing = view.claim.as_ref().map(|c| c.fencing);
    let elsewhere = wanted.is_some_and(|n| n != authority.owner.node);
    if fencing != Some(Fencing::Proof) || phase != FilesystemPhase::Active || !elsewhere {
        return Err(None);
    }
    authority::steal(view).map_err(|stays| authority::block(&stays))
}

#[cfg(test)]
#[path = "moving_tests.rs"]
pub mod tests;
