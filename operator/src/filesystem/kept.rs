//! Which commits are to be kept, which copies say that they hold them, and so which copies may go: the operator's side of
//! [`dotgraft_engine::copies`]. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dotgraft_api::{Commit, ConditionType, CopyRole, DesiredState, Place, Replica, ReplicaStatus, is_true};
use dotgraft_engine::copies::{Copies, Copy, Held, LastCopy, Standing};
use dotgraft_engine::ids::CommitId;
use kube::ResourceExt;

use super::plan::View;
use crate::pools::{self, PoolView};

/// Most Commits that a message names.
const NAMED: usize = 4;

/// A copy that is to go, and may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    /// Where it is.
    pub at: Place,
    /// Why: what would be lost.
    pub why: String,
}

/// Commits that objects want, with the names of the objects: those that are made, unless they are being deleted and nothing pins them.
pub fn wanted(view: &View) -> BTreeMap<CommitId, String> {
    let fs_id = view.fs.name_any();
    let of_this = |c: &Commit| c.status.as_ref().is_some_and(|s| s.fs_id.as_ref().is_none_or(|id| *id == fs_id));
    view.commits
        .iter()
        .filter(|c| of_this(c) && (c.metadata.deletion_timestamp.is_none() || is_pinned(c)))
        .filter_map(|c| Some((c.status.as_ref()?.id.as_ref()?.parse().ok()?, c.name_any())))
        .collect()
}

fn is_pinned(commit: &Commit) -> bool {
    let list = commit.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    is_true(list, ConditionType::Pinned).is_some()
}

/// What a copy says that it holds: `kept`, of an agent that reports it. An older one lists its newest commits, which are all only while there
/// are no more than it lists.
pub fn held(status: Option<&ReplicaStatus>) -> Held {
    let Some(status) = status else { return Held::default() };
    let listed = status.recent_commits.iter().filter(|c| !c.deleted).map(|c| &c.id);
    let commits = status.kept.iter().chain(listed).filter_map(|id| id.parse().ok()).collect();
    let is_older = !status.kept_complete && status.complete_to.is_none();
    // An agent that has not looked at its disk yet shows nothing, too.
    let lists_all =
        is_older && status.role != CopyRole::Absent && u64::try_from(status.recent_commits.len()).is_ok_and(|n| status.commit_count <= n);
    let reports = !matches!(status.role, CopyRole::Creating | CopyRole::Deleting);
    Held { commits, complete: reports && (status.kept_complete || lists_all) }
}

/// Every copy of the view's Filesystem, as its Replica and its pool tell.
pub fn copies(view: &View) -> Copies<Place> {
    copies_of(&view.replicas, &view.pools)
}

/// The same from its parts.
pub fn copies_of(replicas: &[Arc<Replica>], pools: &[PoolView]) -> Copies<Place> {
    let standing = |r: &Replica, at: &Place| {
        let pool = pools.iter().find(|p| p.place().as_ref() == Some(at));
        match () {
            () if pools::is_gone(pools, at) => Standing::Lost,
            () if r.spec.desired.state != DesiredState::Present => Standing::Doubtful,
            () if pool.is_some_and(|p| p.ready && !p.out_of_service) => Standing::Stays,
            () => Standing::Doubtful,
        }
    };
    let copy = |r: &Replica| {
        let at = Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() };
        Copy { standing: standing(r, &at), held: held(r.status.as_ref()), at }
    };
    Copies::new(replicas.iter().map(|r| copy(r)).collect())
}

/// Pools whose copies go, of those that a person has given up (`dropped`) and those that are `spare`; and the copies that stay although they
/// were to go, as they are the last that hold a kept commit. The owner's copy is never among them.
///
/// A person's drop is measured by what objects want; what goes by itself also takes no commit along that its agent calls kept.
pub fn leaving(view: &View, owner: &Place, spare: &BTreeSet<String>) -> (BTreeSet<String>, Vec<Stay>) {
    let names = wanted(view);
    let objects: BTreeSet<CommitId> = names.keys().copied().collect();
    let (mut all, mut stays) = (copies(view), Vec::new());
    let mut leaving: BTreeSet<String> = view.dropped.union(spare).cloned().collect();
    let mut going: Vec<&Replica> = view
        .replicas
        .iter()
        .filter(|r| leaving.contains(&r.spec.pool) && r.spec.pool != owner.pool && r.spec.desired.state == DesiredState::Present)
        .map(AsRef::as_ref)
        .collect();
    going.sort_by_key(|r| (!view.dropped.contains(&r.spec.pool), r.spec.node.clone()));
    for replica in going {
        let at = Place { node: replica.spec.node.clone(), pool: replica.spec.pool.clone() };
        let mut wanted = objects.clone();
        if !view.dropped.contains(&at.pool) {
            wanted.extend(held(replica.status.as_ref()).commits);
        }
        if let Err(last) = all.leave(&at, &wanted) {
            leaving.remove(&at.pool);
            stays.push(Stay { why: sentence(&last, &names), at });
        }
    }
    (leaving, stays)
}

fn sentence(last: &LastCopy, names: &BTreeMap<CommitId, String>) -> String {
    let name = |id: &CommitId| names.get(id).map_or_else(|| id.to_string(), |n| format!("`{n}`"));
    let list = |ids: &[CommitId]| {
        let more = ids.len().saturating_sub(NAMED);
        let named = ids.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
        if more > 0 { format!("{named} and {more} more") } else { named }
    };
    let here = (!last.here.is_empty()).then(|| format!("no other copy is known to hold {}", list(&last.here)));
    let perhaps = (!last.perhaps.is_empty())
        .then(|| format!("it may be the last that holds {}: its agent doesn't report all that it has", list(&last.perhaps)));
    here.into_iter().chain(perhaps).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "kept_tests.rs"]
pub mod tests;
