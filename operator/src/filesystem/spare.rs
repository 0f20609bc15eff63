//! Copies that Dotgraft has made for itself, for a move, for pods that read, for `placement.replicas`, and that nothing needs any more: they
//! are marked, and go after a while (ADR 10). Copies that somebody's own ReplicationJob made stay until somebody drops them. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{
    Authority, ConditionType, CopyRole, DesiredRole, DesiredState, FilesystemPhase, Place, Replica, ReplicaCommit, ReplicaSpec,
    ReplicaStatus, ReplicationJob, says,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::plan::View;
use crate::names;
use crate::note::Note;

/// Labels and annotations of a Replica that follow from the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// No job keeps this copy up to date.
    pub unmanaged: bool,
    /// Dotgraft made it for itself, and no job of a user's has had it since.
    pub ours: bool,
    /// Unix seconds since when it is ours and nothing needs it.
    pub spare_since: Option<i64>,
}

impl Marks {
    /// As the Replica has them.
    pub fn of(replica: &Replica) -> Self {
        let since = replica.annotations().get(names::SPARE_ANNOTATION).and_then(|t| t.parse::<Timestamp>().ok());
        Self {
            unmanaged: replica.labels().contains_key(names::UNMANAGED_LABEL),
            ours: replica.labels().contains_key(names::OURS_LABEL),
            spare_since: since.map(Timestamp::as_second),
        }
    }
}

/// Who needs copies, besides the pods that write.
#[derive(Debug)]
pub struct Needs<'a> {
    /// Jobs, and where each brings it.
    pub jobs: &'a [(Arc<ReplicationJob>, Place)],
    /// Where it is to move, and which copy is kept close behind.
    pub moves: [Option<&'a Place>; 2],
}

/// A job that keeps copies for its claim (`placement.replicas`, readers), not one that a user made.
fn is_ours(job: &ReplicationJob) -> bool {
    job.labels().contains_key(names::OWNED_BY_LABEL)
}

/// How the copy at `place`, not the owner's, is to be marked.
pub fn marks(view: &View, needs: &Needs<'_>, place: &Place, old: Option<&Replica>) -> Marks {
    let jobs = || needs.jobs.iter().filter(|(_, p)| p == place);
    let was_owner = |r: &Replica| r.spec.desired.role == Some(DesiredRole::Owner);
    let known = old.is_none_or(|r| Marks::of(r).ours || was_owner(r));
    let ours = known && !jobs().any(|(j, _)| !is_ours(j));
    let pending = view.fs.status.as_ref().and_then(|s| s.authority.as_ref()?.pending.as_ref()).is_some_and(|p| p.to == *place);
    let reads = view.fs.spec.published_to.iter().any(|p| p.node == place.node);
    let needed = pending || reads || jobs().next().is_some() || needs.moves.contains(&Some(place));
    let since = old.and_then(|r| Marks::of(r).spare_since).unwrap_or(view.now);
    Marks { unmanaged: jobs().next().is_none(), ours, spare_since: (ours && !needed).then_some(since) }
}

/// Pools whose copies have been spare for long enough, while all that is wanted is there without them. Whether they may go is for
/// [`super::kept`] to say.
pub fn over(view: &View, phase: FilesystemPhase, authority: &Authority, needs: &Needs<'_>) -> BTreeSet<String> {
    let go = |r: &&Arc<Replica>| has_waited(view, needs, r) && is_quiet(r);
    if !is_settled(view, phase, authority) || !has_copies(view, needs) {
        return BTreeSet::new();
    }
    view.replicas.iter().filter(|r| place_of(r) != authority.owner).filter(go).map(|r| r.spec.pool.clone()).collect()
}

fn place_of(r: &Replica) -> Place {
    Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() }
}

fn owners<'a>(view: &'a View, authority: &Authority) -> Option<&'a Replica> {
    view.replicas.iter().find(|r| place_of(r) == authority.owner).map(AsRef::as_ref)
}

/// The owner has opened in this epoch, on a node that isn't about to go.
fn is_settled(view: &View, phase: FilesystemPhase, authority: &Authority) -> bool {
    let opened = authority.opened.as_ref().is_some_and(|o| o.epoch == authority.epoch) && authority.pending.is_none();
    let owner = owners(view, authority).and_then(|r| r.status.as_ref());
    let owns = owner.is_some_and(|s| s.role == CopyRole::Owner && s.epoch == authority.epoch);
    let pool = view.pools.iter().any(|p| p.place().as_ref() == Some(&authority.owner) && p.usable() && !p.out_of_service);
    let claimed = view.claim.as_ref().is_some_and(|c| !c.deleting);
    phase == FilesystemPhase::Active && opened && owns && pool && claimed
}

/// As many copies as are wanted are kept by jobs, and each has what the owner had committed last, or nearly: its newest is one of the
/// owner's recent ones.
fn has_copies(view: &View, needs: &Needs<'_>) -> bool {
    let Some(wanted) = view.claim.as_ref().map(|c| c.placement.replicas) else { return false };
    let kept: BTreeSet<&Place> = needs.jobs.iter().map(|(_, p)| p).collect();
    let owner = view.fs.status.as_ref().and_then(|s| s.authority.as_ref()).and_then(|a| owners(view, a)).and_then(|r| r.status.as_ref());
    let recent = owner.map(|s| s.recent_commits.as_slice()).unwrap_or_default();
    let holds = |place: &&Place| {
        let copy = view.replicas.iter().find(|r| place_of(r) == **place).and_then(|r| r.status.as_ref());
        let listed = |s: &ReplicaStatus| newest_kept(s).is_some_and(|newest| recent.iter().any(|c| c.id == newest.id));
        copy.is_some_and(|s| s.role == CopyRole::Replica && (recent.is_empty() || listed(s)))
    };
    kept.iter().filter(|p| holds(p)).count() >= usize::try_from(wanted).unwrap_or(usize::MAX)
}

fn has_waited(view: &View, needs: &Needs<'_>, replica: &Replica) -> bool {
    let since = marks(view, needs, &place_of(replica), Some(replica)).spare_since;
    let limit = view.spare_after.and_then(|s| i64::try_from(s).ok());
    replica.spec.desired.state == DesiredState::Present
        && limit.zip(since).is_some_and(|(limit, since)| view.now.saturating_sub(since) >= limit)
}

/// Nothing uses it, and nothing is wrong with it that a person should see.
fn is_quiet(replica: &Replica) -> bool {
    let Some(status) = &replica.status else { return false };
    let trouble = |c: &dotgraft_api::Condition| match c.type_.parse::<ConditionType>() {
        Ok(ConditionType::Ready) => says(c) != Some(true),
        _ => says(c) == Some(true),
    };
    let used = !status.mounts.is_empty() || status.import_start.is_some() || status.handed_over.is_some();
    status.role == CopyRole::Replica && replica.has_heard() && !used && !status.conditions.iter().any(trouble)
}

/// The newest commit that a Commit object may still want.
fn newest_kept(copy: &ReplicaStatus) -> Option<&ReplicaCommit> {
    copy.recent_commits.iter().find(|c| !c.deleted)
}

/// When the first of them will have waited long enough, if that is still to come.
pub fn due(view: &View) -> Option<Duration> {
    let limit = view.spare_after.and_then(|s| i64::try_from(s).ok())?;
    let left = |r: &Arc<Replica>| Marks::of(r).spare_since.map(|since| since.saturating_add(limit).saturating_sub(view.now));
    let first = view.replicas.iter().filter_map(left).filter(|s| *s > 0).min()?;
    u64::try_from(first).ok().map(Duration::from_secs)
}

/// What people are told when one goes.
pub fn note(view: &View, old: Option<&Replica>, new: &ReplicaSpec) -> Option<Note> {
    let old = old.filter(|o| o.spec.desired.state == DesiredState::Present && new.desired.state == DesiredState::Absent)?;
    let since = Marks::of(old).spare_since.filter(|_| !view.dropped.contains(&new.pool))?;
    let minutes = view.now.saturating_sub(since) / 60;
    let message = format!("the copy on node {} is deleted: for {minutes} minutes nothing has needed it", new.node);
    Some(Note { warning: false, reason: "SpareCopyDeleted".into(), message })
}

#[cfg(test)]
#[path = "spare_tests.rs"]
mod tests;
