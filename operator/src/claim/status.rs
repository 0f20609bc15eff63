//! Status of a Dot or Branch: a mirror for people; nothing decides on it. Written only when it changes.

use std::sync::Arc;

use dotgraft_api::quantity::human;
use dotgraft_api::{
    Authority, Condition, ConditionType, CopyRole, DesiredState, DotStatus, FilesystemPhase, Place, Reason, RecentCommit, Replica,
    ReplicaSummary, Time, Word, condition, is_true, says,
};
use kube::ResourceExt;

use super::decide::View;
use super::{ClaimObject, full, gather, limit};
use crate::conditions::{self, Block, Wanted, same, wanted};
use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem::{self, kept::Stay};
use crate::lag;
use crate::pools::{self, PoolView};
use crate::pvc;
use crate::troubles::{self, Trouble};
use crate::write;

/// Troubles of the owner's copy by which the claim isn't `Ready`, whatever else its agent says. That is all that this list decides: each
/// trouble of each copy is shown ([`troubles`]).
const CLOSING: [ConditionType; 8] = [
    ConditionType::FormatNewer,
    ConditionType::JournalUnreadable,
    ConditionType::AuthorityUnknown,
    ConditionType::EpochRegression,
    ConditionType::PendingLost,
    ConditionType::HeadMissing,
    ConditionType::StaleIntent,
    ConditionType::DataMissing,
];

/// Most conditions that the API takes.
const MOST: usize = 16;

/// What the status is made from.
struct Input<'a> {
    view: &'a View,
    block: Option<&'a Block>,
    authority: Option<&'a Authority>,
    replicas: &'a [Arc<Replica>],
    pools: &'a [PoolView],
    claims: Vec<String>,
    /// Copies that stay although nothing needs them, and why.
    stays: Vec<Stay>,
    /// It asks for more than the namespace's limit leaves: it stays at what it has.
    limited: Option<Block>,
}

impl Input<'_> {
    fn phase(&self) -> Option<FilesystemPhase> {
        self.view.fs.as_ref().and_then(|f| f.status.as_ref()).map(|s| s.phase)
    }
    fn owner(&self) -> Option<&Replica> {
        let owner = &self.authority?.owner;
        self.replicas.iter().find(|r| r.spec.pool == owner.pool).map(AsRef::as_ref)
    }
    fn troubles(&self) -> Vec<Trouble<'_>> {
        troubles::of(self.replicas, self.authority.map(|a| &a.owner))
    }
}

/// Computes the status and writes it if it changed, with events. Says whether something stands in the way.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn write<K: ClaimObject>(object: &K, view: &View, block: Option<Block>, now: &Time, ctx: &Ctx) -> Result<bool, Error> {
    let old = object.status();
    let replicas = gather::replicas_of(view, ctx);
    let (blocked, stays) = view.fs.as_ref().filter(|_| !view.claim.deleting).map(|fs| filesystem::told(fs, ctx)).unwrap_or_default();
    let block = block.or(blocked);
    let pools = pools::all(&ctx.caches);
    let authority = view.fs.as_ref().and_then(|f| f.status.as_ref()).and_then(|s| s.authority.as_ref());
    let fs_id = view.fs.as_ref().map(ResourceExt::name_any);
    let claims = fs_id.map(|id| pvc::writing_claims(&id, &view.claim.namespace, ctx)).unwrap_or_default();
    let limited = view.fs.as_ref().filter(|_| !view.claim.deleting).and_then(|_| limit::check(&view.claim, ctx).err());
    let again = block.is_some() || limited.is_some();
    let input = Input { view, block: block.as_ref(), authority, replicas: &replicas, pools: &pools, claims, stays, limited };
    let new = compute(&input, &old, now);
    if new != old {
        let notes = conditions::transitions(&old.conditions, &new.conditions);
        write::status(&write::namespaced::<K>(&ctx.client, object), object, &new).await?;
        ctx.notes(&object.object_ref(&()), "Reconcile", notes).await;
    }
    Ok(again)
}

fn compute(input: &Input<'_>, old: &DotStatus, now: &Time) -> DotStatus {
    let claim = &input.view.claim;
    let owner = input.owner();
    let reported = owner.and_then(|r| r.status.as_ref());
    DotStatus {
        observed_generation: claim.generation,
        // Once there was a Filesystem this stays, so that nobody ever makes an empty one in its place.
        fs_id: input.view.fs.as_ref().and(claim.fs_id.clone()).or_else(|| old.fs_id.clone()),
        owner: input.authority.map(|a| a.owner.node.clone()),
        pool: input.authority.map(|a| a.owner.pool.clone()),
        epoch: input.authority.map(|a| a.epoch),
        head: reported.and_then(|s| s.head.clone()),
        bytes: reported.map(|s| s.bytes),
        used: reported.filter(|s| s.limit > 0).map(|s| format!("{} of {}", human(s.bytes), human(s.limit))).unwrap_or_default(),
        limit: reported.filter(|s| s.limit > 0).map(|s| s.limit),
        file_bytes: reported.and_then(|s| s.file_bytes),
        written_since: reported.and_then(|s| s.written_since.clone()),
        claims: input.claims.clone(),
        replicas: summaries(input),
        migration: filesystem::moving::newest_report(input.replicas),
        recent_commits: reported.map(recent).unwrap_or_default(),
        conditions: conditions::merge(&old.conditions, &verdicts(input, &old.conditions), claim.generation, now),
    }
}

fn recent(status: &dotgraft_api::ReplicaStatus) -> Vec<RecentCommit> {
    let cut = |m: &str| m.chars().take(256).collect();
    status
        .recent_commits
        .iter()
        .take(16)
        .map(|c| RecentCommit { id: c.id.clone(), time: c.time.clone(), message: cut(&c.message) })
        .collect()
}

/// One line per node: the owner first, then by node. A tombstone hides behind the copy of the node's new pool.
fn summaries(input: &Input<'_>) -> Vec<ReplicaSummary> {
    let owner = input.authority.map(|a| a.owner.pool.as_str());
    let reported = input.owner().and_then(|r| r.status.as_ref());
    let mut list: Vec<&Arc<Replica>> = input.replicas.iter().collect();
    list.sort_by_key(|r| (Some(r.spec.pool.as_str()) != owner, r.spec.node.clone(), r.spec.desired.state == DesiredState::Absent));
    let mut out: Vec<ReplicaSummary> = Vec::new();
    for r in list {
        if out.len() < 16 && !out.iter().any(|s| s.node == r.spec.node) {
            let status = r.status.clone().unwrap_or_default();
            let state = format!("{:?}", status.role);
            let lag = lag::of(reported, Some(&status)).filter(|_| Some(r.spec.pool.as_str()) != owner);
            out.push(ReplicaSummary {
                node: r.spec.node.clone(),
                state,
                commit_time: status.recent_commits.first().map(|c| c.time.clone()),
                commit: status.head,
                missing: lag.map_or(0, |b| u32::try_from(b.commits).unwrap_or(u32::MAX)),
                behind_since: lag.and_then(|b| b.since).map(Time),
            });
        }
    }
    out
}

fn verdicts(input: &Input<'_>, old: &[Condition]) -> Vec<Wanted> {
    let ready = readiness(input);
    let working = ready.reason().filter(|r| matches!(r, Reason::Word(Word::Creating) | Reason::Of(ConditionType::Deleting)));
    let progressing = match working {
        Some(reason) => wanted(ConditionType::Progressing, true, reason, ready.message()),
        None => wanted(ConditionType::Progressing, false, Word::AsExpected, ""),
    };
    let mut list = vec![ready, progressing];
    list.push(degraded(input));
    list.push(diverged(input));
    if let Some(Block { reason: Reason::Of(type_), message }) = input.block {
        list.push(wanted(*type_, true, *type_, message));
    }
    list.extend(input.limited.as_ref().map(|b| wanted(ConditionType::CapacityLimit, true, b.reason, &b.message)));
    list.extend(moving(input));
    list.extend(staying(&input.stays));
    list.extend(input.owner().and_then(|r| full::full(r, old)));
    for told in troubles::conditions(&input.troubles()) {
        if list.len() < MOST && !list.iter().any(|w| w.type_() == told.type_()) {
            list.push(told);
        }
    }
    list
}

fn closing<'a>(input: &'a Input<'_>) -> Option<(ConditionType, &'a Condition)> {
    let status = input.owner().and_then(|r| r.status.as_ref())?;
    CLOSING.iter().find_map(|t| Some((*t, is_true(&status.conditions, *t)?)))
}

fn readiness(input: &Input<'_>) -> Wanted {
    let no = |reason: Reason, message: &str| wanted(ConditionType::Ready, false, reason, message);
    if let Some(b) = input.block {
        return no(b.reason, &b.message);
    }
    if input.view.claim.deleting {
        let all = input.troubles();
        let why = all.first().map(|t| format!("; {}", t.sentence())).unwrap_or_default();
        return no(ConditionType::Deleting.into(), &format!("the data is being deleted{why}"));
    }
    if let Some((type_, c)) = closing(input) {
        return no(type_.into(), &c.message);
    }
    let making = |message: &str| no(Word::Creating.into(), message);
    let Some(authority) = input.authority else { return making("choosing a node") };
    let node = &authority.owner.node;
    if pools::is_gone(input.pools, &authority.owner) {
        return no(ConditionType::OwnerLost.into(), &format!("node `{node}`, or the pool on it that owns this, is gone"));
    }
    if let Some(pool) = input.pools.iter().find(|p| p.node == *node && !p.ready) {
        return no(ConditionType::OwnerNotReady.into(), &format!("the pool of node `{node}` is not ready: {}", pool.problem));
    }
    let Some(status) = input.owner().and_then(|r| r.status.as_ref()) else {
        return making(&format!("waiting for the agent of node `{node}`"));
    };
    match condition(&status.conditions, ConditionType::Ready) {
        Some(c) if says(c) == Some(false) => same(c),
        _ if status.role == CopyRole::Owner && input.phase() == Some(FilesystemPhase::Active) => {
            wanted(ConditionType::Ready, true, ConditionType::Ready, format!("node `{node}` owns it"))
        }
        _ => making(&format!("node `{node}` is making it")),
    }
}

fn degraded(input: &Input<'_>) -> Wanted {
    let copies = input.replicas.iter().filter(|r| {
        let copy = r.status.as_ref().is_some_and(|s| s.role == CopyRole::Replica && s.head.is_some());
        let place = Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() };
        copy && r.spec.desired.state == DesiredState::Present && input.pools.iter().any(|p| p.ready && p.place().as_ref() == Some(&place))
    });
    let (have, want) = (copies.count(), usize::try_from(input.view.claim.placement.replicas).unwrap_or(0));
    if have < want && !input.view.claim.deleting {
        return wanted(
            ConditionType::Degraded,
            true,
            Word::CopiesMissing,
            format!("{have} of {want} copies have data and are on a node whose pool is ready{}", unsent(input)),
        );
    }
    let told = troubles::conditions(&input.troubles());
    match told.into_iter().find(|w| w.type_() == ConditionType::Degraded.as_str()) {
        Some(told) => told,
        None => wanted(ConditionType::Degraded, false, Word::AsExpected, ""),
    }
}

/// What stands in the way of the owner's jobs that feed copies.
fn unsent(input: &Input<'_>) -> String {
    let Some(owner) = input.owner() else { return String::new() };
    let jobs = owner.status.iter().flat_map(|s| s.jobs.iter());
    let stuck = jobs.filter_map(|j| {
        let wish = owner.spec.desired.jobs.iter().find(|w| w.uid == j.uid)?;
        let problem = j.report.as_ref()?.known()?.problem.as_ref()?;
        Some(format!("; to node `{}`: {} ({})", wish.peer.node, problem.message, problem.reason))
    });
    stuck.take(3).collect()
}

fn diverged(input: &Input<'_>) -> Wanted {
    let own = input.owner().and_then(|r| r.status.as_ref());
    let reports = own.iter().flat_map(|s| s.jobs.iter()).filter_map(|j| j.report.as_ref()?.known());
    let apart =
        reports.filter_map(|r| r.problem.as_ref()).find(|p| matches!(p.reason, ConditionType::Diverged | ConditionType::NoCommonAncestor));
    match apart {
        Some(p) => wanted(ConditionType::Diverged, true, p.reason, p.message.clone()),
        None => wanted(ConditionType::Diverged, false, Word::AsExpected, ""),
    }
}

/// A copy that was to go stays, as it is the last that holds a kept commit.
fn staying(stays: &[Stay]) -> Option<Wanted> {
    let (first, more) = stays.split_first()?;
    let others = if more.is_empty() { String::new() } else { format!("; so do {} more", more.len()) };
    Some(wanted(
        ConditionType::CopyStays,
        true,
        Word::LastCopyOfCommit,
        format!("the copy on node `{}` stays: {}{others}", first.at.node, first.why),
    ))
}

/// It is wanted on another node than its owner's: how that goes, or why it can't.
fn moving(input: &Input<'_>) -> Option<Wanted> {
    let (fs, authority) = (input.view.fs.as_ref()?, input.authority?);
    let node = filesystem::moving::wanted_node(fs, Some(&input.view.claim));
    match filesystem::moving::goal_of(node, authority, input.pools)? {
        Err(block) => Some(wanted(ConditionType::PlacementRefused, true, Word::NodeCantTakeIt, block.message)),
        Ok(to) => {
            let now = filesystem::moving::standing(input.replicas, &to.node);
            let colon = if now.detail.is_empty() { "" } else { ": " };
            let text = format!("from node `{}` to `{}`{colon}{}", authority.owner.node, to.node, now.detail);
            Some(wanted(ConditionType::Migrating, true, now.phase, text))
        }
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
