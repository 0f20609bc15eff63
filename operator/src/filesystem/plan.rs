//! What is to be written for one Filesystem: pure, total, the same answer for the same view.
//!
//! Everything about one Filesystem is decided here: its authority, its phase, every Replica, its end
//! (design §2 and §4, migration.md §2). The claims' controllers only record intents: phase `Deleting` or `Released`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dotgraft_api::{
    Authority, Claim, Commit, ConditionType, CopyRole, Desired, DesiredRole, DesiredState, Filesystem, FilesystemPhase, Place, Replica,
    ReplicaSpec, ReplicationJob,
};
use dotgraft_engine::authority::Refusal;
use kube::ResourceExt;

use super::authority::{self, Stays};
use super::began;
use super::bring::{self, Transfers};
use super::cordon;
use super::kept::{self, Stay};
use super::moving;
use super::spare::{self, Marks, Needs};
use super::wishes::{self, Asked, ResetWish};
use crate::claim::ClaimView;
use crate::conditions::Block;
use crate::names;
use crate::pools::{self, PoolView};

/// Everything that the decision needs, dereferenced.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The Filesystem itself.
    pub fs: Filesystem,
    /// Its claim, if that is live and bound to it.
    pub claim: Option<ClaimView>,
    /// All its Replicas.
    pub replicas: Vec<Arc<Replica>>,
    /// All pools.
    pub pools: Vec<PoolView>,
    /// Where the origin's owner is, for a Filesystem that starts from another.
    pub origin_owner: Option<Place>,
    /// Bytes that its origin may have, while that is there.
    pub origin_most: Option<u64>,
    /// Commit objects of the claim.
    pub commits: Vec<Arc<Commit>>,
    /// Resets in hand: the Commit that keeps what was there, and what the volume is to become.
    pub resets: BTreeMap<String, ResetWish>,
    /// Live jobs that select the claim.
    pub jobs: Vec<Arc<ReplicationJob>>,
    /// Pools whose copies a person gave up (`kubectl dot drop`).
    pub dropped: BTreeSet<String>,
    /// Snapshots in it that outlive its claim.
    pub snapshots: usize,
    /// Unix seconds.
    pub now: i64,
    /// The claim asks for more than its namespace's limit leaves: it stays at what it has.
    pub limited: bool,
    /// Seconds after which copies of ours that nothing needs go; `None`: they stay.
    pub spare_after: Option<u64>,
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Set `status` (phase and authority) by compare-and-swap.
    Status(FilesystemPhase, Option<Box<Authority>>),
    /// Make this Replica.
    Create(Box<ReplicaSpec>, Marks),
    /// Change what is desired of it.
    Update(Box<ReplicaSpec>, Marks),
    /// Nothing is left: finalizer off, object away.
    Finish,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In this order.
    pub writes: Vec<Write>,
    /// Why there is no owner (yet).
    pub blocked: Option<Block>,
    /// Copies that were to go, and stay as they are the last that hold a kept commit.
    pub stays: Vec<Stay>,
}

impl Plan {
    /// Some write takes a copy away from a Filesystem that goes on.
    pub fn takes_a_copy(&self, view: &View) -> bool {
        let ends = view.fs.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Deleting);
        !ends && self.writes.iter().any(|w| matches!(w, Write::Update(spec, _) if spec.desired.state == DesiredState::Absent))
    }

    /// Some write decides about data: it is planned again with what the API server says *now*.
    pub fn is_critical(&self, view: &View) -> bool {
        // An owner that isn't asked about its pins any more, because its pool is gone.
        let owner = view.fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| &a.owner);
        let unasked = !self.writes.is_empty() && owner.is_some_and(|o| pools::is_gone(&view.pools, o));
        unasked
            || self.writes.iter().any(|w| match w {
                Write::Update(spec, _) => {
                    let name = names::replica_name(&spec.fs_id, &spec.pool);
                    let changes = |old: &Desired| old.state != spec.desired.state || old.headless != spec.desired.headless;
                    view.replicas.iter().any(|r| r.name_any() == name && changes(&r.spec.desired))
                }
                _ => true,
            })
    }
}

/// Decides.
pub fn plan(view: &View) -> Plan {
    let Some(status) = &view.fs.status else {
        // Made a moment ago, and its maker records phase New next; or restored without status: a person accepts.
        return accept(view).unwrap_or_else(unknown);
    };
    let terminating = view.fs.metadata.deletion_timestamp.is_some();
    match status.phase {
        FilesystemPhase::Deleting => tear_down(view),
        // Someone deleted the object of released data: that is an intent. Of claimed data: the claim protects it.
        FilesystemPhase::Released if terminating => {
            Plan { writes: vec![Write::Status(FilesystemPhase::Deleting, status.authority.clone().map(Box::new))], ..Plan::default() }
        }
        // The last snapshot went, and so did the head's claim before.
        FilesystemPhase::Headless if view.claim.is_none() && view.snapshots == 0 => {
            Plan { writes: vec![Write::Status(FilesystemPhase::Deleting, status.authority.clone().map(Box::new))], ..Plan::default() }
        }
        phase => {
            if let Some(plan) = accept(view) {
                return plan;
            }
            match &status.authority {
                Some(authority) => keep(view, phase, authority),
                None if phase == FilesystemPhase::New && !terminating => begin(view),
                None => unknown(),
            }
        }
    }
}

fn unknown() -> Plan {
    let why = "it is not recorded who may write this Filesystem; nothing is opened until a person decides: `kubectl dot accept`";
    Plan { blocked: Some(Block::new(ConditionType::AuthorityUnknown, why)), ..Plan::default() }
}

/// First owner of a new Filesystem, epoch 1.
fn begin(view: &View) -> Plan {
    let blocked = |b: Block| Plan { blocked: Some(b), ..Plan::default() };
    let id = view.fs.name_any();
    let Some(claim) = &view.claim else { return Plan::default() };
    let capacity = match (&claim.capacity, &claim.history_limit) {
        (Ok(c), Ok(_)) => *c,
        (Err(e), _) | (_, Err(e)) => return blocked(Block::new(ConditionType::InvalidCapacity, e.to_string())),
    };
    let known = view.replicas.iter().any(|r| r.status.as_ref().is_some_and(|s| s.role != CopyRole::Absent));
    if known || view.pools.iter().any(|p| p.orphans.contains(&id)) {
        let why = "a pool already has data of this Filesystem although it is new: `kubectl dot adopt` or `kubectl dot accept`";
        return blocked(Block::new(ConditionType::AuthorityUnknown, why));
    }
    let place = if view.fs.spec.origin.is_some() {
        match branch_place(view, claim) {
            Ok(place) => place,
            Err(block) => return blocked(block),
        }
    } else {
        match pools::choose(&view.pools, &claim.placement, claim.initial_node.as_deref(), capacity) {
            Ok(place) => place,
            Err(block) => return blocked(block),
        }
    };
    let authority = Authority { owner: place, epoch: 1, ..Authority::default() };
    Plan { writes: vec![Write::Status(FilesystemPhase::New, Some(Box::new(authority)))], ..Plan::default() }
}

/// A Branch starts where the commit is that it starts from.
fn branch_place(view: &View, claim: &ClaimView) -> Result<Place, Block> {
    let Some(place) = view.origin_owner.clone() else {
        return Err(Block::new(ConditionType::SourceNotReady, "the Filesystem that this starts from has no owner"));
    };
    match &claim.placement.node {
        Some(node) if *node != place.node => Err(Block::new(
            ConditionType::PlacementUnavailable,
            format!(
                "placement.node is `{node}`, but the commit it starts from is on `{}`: a Branch starts on its source's node",
                place.node
            ),
        )),
        _ => Ok(place),
    }
}

/// Keeps Replicas as the claim, its jobs and its commits want them, and moves New to Active.
fn keep(view: &View, phase: FilesystemPhase, authority: &Authority) -> Plan {
    let mut plan = match moving::steal(view, phase, authority) {
        Ok(next) => return Plan { writes: vec![Write::Status(phase, Some(Box::new(next)))], ..Plan::default() },
        Err(blocked) => Plan { blocked, ..Plan::default() },
    };
    let goal = moving::goal(view, authority).and_then(Result::ok).filter(|_| phase == FilesystemPhase::Active);
    let owner = &authority.owner;
    let placed: Vec<(Arc<ReplicationJob>, Place)> = view
        .jobs
        .iter()
        .filter_map(|j| {
            let copy = |p: &Place| has_copy(&view.replicas, p);
            let place = crate::job::resolve::resolve(j, Some(owner), &view.pools, &view.jobs, copy).ok()?;
            (!view.limited || has_copy(&view.replicas, &place)).then(|| (j.clone(), place))
        })
        .collect();
    let Some(base) = base(view, authority) else { return plan };
    let precopy_to = cordon::precopy_to(view, phase, authority);
    let needs = Needs { jobs: &placed, moves: [goal.as_ref(), precopy_to.as_ref()] };
    let (mut leaving, stays) = kept::leaving(view, owner, &spare::over(view, phase, authority, &needs));
    plan.stays = stays;
    for replica in view.replicas.iter().filter(|r| r.spec.desired.state == DesiredState::Present) {
        if leaving.contains(&replica.spec.pool)
            && let Some(block) = authority::needs(authority, replica)
        {
            leaving.remove(&replica.spec.pool);
            plan.blocked.get_or_insert(block);
        }
    }
    let mut places: BTreeSet<Place> = view
        .replicas
        .iter()
        .filter(|r| r.spec.desired.state == DesiredState::Present && !leaving.contains(&r.spec.pool))
        .map(|r| place_of(r))
        .collect();
    places.insert(owner.clone());
    // The owner is made first; copies follow when there is something to copy from.
    if phase != FilesystemPhase::New {
        places.extend(placed.iter().map(|(_, p)| p.clone()).filter(|p| !leaving.contains(&p.pool)));
    }
    places.extend(goal.iter().filter(|g| !leaving.contains(&g.pool)).cloned());
    let move_to = goal.clone().filter(|g| moving::can_take(&view.replicas, g));
    let base = Desired { move_to, precopy_to: precopy_to.clone(), ..base };
    let transfers = bring::transfers(view, owner);
    for place in &places {
        plan.writes.extend(replica_write(view, &base, &places, place, &needs, (owner, &transfers)));
    }
    for replica in &view.replicas {
        let at = place_of(replica);
        if leaving.contains(&at.pool) && at != *owner && replica.spec.desired.state == DesiredState::Present {
            plan.writes.push(absent(replica, authority.epoch));
        }
    }
    let is_owner = |r: &Arc<Replica>| {
        let s = r.status.as_ref();
        place_of(r) == *owner && s.is_some_and(|s| s.role == CopyRole::Owner && s.epoch >= authority.epoch)
    };
    if phase == FilesystemPhase::New && view.replicas.iter().any(is_owner) {
        plan.writes.push(Write::Status(FilesystemPhase::Active, Some(Box::new(authority.clone()))));
    }
    plan
}

fn place_of(replica: &Replica) -> Place {
    Place { node: replica.spec.node.clone(), pool: replica.spec.pool.clone() }
}

fn has_copy(replicas: &[Arc<Replica>], place: &Place) -> bool {
    replicas.iter().any(|r| r.spec.pool == place.pool && r.spec.desired.state == DesiredState::Present)
}

/// What every copy shares: from the claim, or, while it is gone, from what the owner's Replica has had.
fn base(view: &View, authority: &Authority) -> Option<Desired> {
    let old = view
        .replicas
        .iter()
        .filter(|r| r.spec.desired.capacity > 0)
        .min_by_key(|r| place_of(r) != authority.owner)
        .map(|r| r.spec.desired.clone());
    let sizes = view.claim.as_ref().and_then(|c| Some((*c.capacity.as_ref().ok()?, *c.history_limit.as_ref().ok()?)));
    let sizes = match &old {
        Some(old) if view.limited => sizes.map(|(c, h)| (c.min(old.capacity), h.min(old.history_limit))),
        _ => sizes,
    };
    let (capacity, history_limit) = sizes.or_else(|| old.as_ref().map(|o| (o.capacity, o.history_limit)))?;
    // Kept while the claim is gone: it may be adopted again.
    let csi_name = match &view.claim {
        Some(claim) => claim.csi_name.clone(),
        None => old.as_ref().and_then(|o| o.claim.as_ref()?.csi_name.clone()),
    };
    let fencing = view.claim.as_ref().map(|c| c.fencing).or(old.map(|o| o.fencing)).unwrap_or_default();
    Some(Desired {
        state: DesiredState::Present,
        epoch: authority.epoch,
        claim: Some(Claim { csi_name, ..view.fs.spec.claim_ref.claim() }),
        reclaim_policy: view.fs.spec.reclaim_policy,
        fencing,
        origin: view.fs.spec.origin.clone(),
        capacity,
        history_limit,
        origin_bytes: began::origin_bytes(&view.replicas, view.origin_most.unwrap_or(capacity.saturating_add(history_limit))),
        headless: view.claim.is_none() && view.fs.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Headless),
        ..Desired::default()
    })
}

/// The owner's pins protect a commit on every copy, so it is asked first; without an owner to ask, nobody pins.
fn asked_of<'a>(view: &'a View, owner: &Place, is_owner: bool) -> Asked<'a> {
    let owners = view.replicas.iter().find(|r| r.spec.pool == owner.pool);
    match owners.filter(|_| !pools::is_gone(&view.pools, owner)) {
        _ if is_owner => Asked::Owner,
        Some(owner) => Asked::AfterOwner(owner),
        None => Asked::WithoutOwner,
    }
}

fn replica_write(
    view: &View,
    base: &Desired,
    places: &BTreeSet<Place>,
    place: &Place,
    needs: &Needs<'_>,
    (owner, transfers): (&Place, &Transfers),
) -> Option<Write> {
    let is_owner = place == owner;
    let mut desired = base.clone();
    desired.role = Some(if is_owner { DesiredRole::Owner } else { DesiredRole::Replica });
    desired.owner = (!is_owner).then(|| owner.clone());
    desired.peers = places.iter().filter(|p| *p != place).take(32).cloned().collect();
    desired.commits = wishes::commits(&view.commits, &view.resets, &asked_of(view, owner, is_owner));
    (desired.fetch, desired.lend) = (transfers.fetch(place), transfers.lend(place));
    if is_owner {
        desired.jobs = wishes::jobs(needs.jobs);
    } else {
        (desired.move_to, desired.precopy_to) = (None, None);
    }
    let old = view.replicas.iter().find(|r| r.spec.pool == place.pool);
    let marks = if is_owner { Marks::default() } else { spare::marks(view, needs, place, old.map(AsRef::as_ref)) };
    let spec = ReplicaSpec { fs_id: view.fs.name_any(), node: place.node.clone(), pool: place.pool.clone(), desired };
    match old {
        None => Some(Write::Create(Box::new(spec), marks)),
        // On its way out by a person's word: first it goes, then a job may ask for a new copy.
        Some(old) if old.spec.desired.state == DesiredState::Absent && !is_owner => None,
        Some(old) if old.spec == spec && Marks::of(old) == marks => None,
        Some(_) => Some(Write::Update(Box::new(spec), marks)),
    }
}

fn absent(replica: &Replica, epoch: u64) -> Write {
    let old = &replica.spec.desired;
    let desired = Desired {
        state: DesiredState::Absent,
        epoch: epoch.max(old.epoch),
        claim: old.claim.clone(),
        reclaim_policy: old.reclaim_policy,
        fencing: old.fencing,
        origin: old.origin.clone(),
        capacity: old.capacity,
        history_limit: old.history_limit,
        ..Desired::default()
    };
    let spec = ReplicaSpec { desired, ..replica.spec.clone() };
    Write::Update(Box::new(spec), Marks::of(replica))
}

/// The agent of that very pool says that nothing is left, about this very wish.
pub fn is_confirmed(replica: &Replica) -> bool {
    let gone = replica.status.as_ref().is_some_and(|s| s.role == CopyRole::Absent);
    replica.spec.desired.state == DesiredState::Absent && gone && replica.has_heard()
}

/// Deletion: every copy is to go; the Filesystem goes when each has confirmed or is a tombstone of a pool that is gone.
fn tear_down(view: &View) -> Plan {
    let epoch = view.fs.status.as_ref().and_then(|s| s.authority.as_ref()).map_or(0, |a| a.epoch);
    let mut plan = Plan::default();
    for replica in &view.replicas {
        if replica.spec.desired.state == DesiredState::Present {
            plan.writes.push(absent(replica, epoch));
        }
    }
    let waiting = view
        .replicas
        .iter()
        .any(|r| r.spec.desired.state == DesiredState::Present || !(is_confirmed(r) || pools::is_gone(&view.pools, &place_of(r))));
    if !waiting {
        plan.writes.push(Write::Finish);
    }
    plan
}

/// A person accepts: an epoch above all that any pool has seen, to the highest claim. `None`: nothing to accept.
fn accept(view: &View) -> Option<Plan> {
    let accepted = view.fs.spec.accept_epoch?;
    let next = match authority::accept(view, accepted) {
        Ok(next) => next,
        Err(Stays::Refused(Refusal::Accepted(_))) => return None,
        Err(stays) => return Some(Plan { blocked: authority::block(&stays), ..Plan::default() }),
    };
    let phase = view.fs.status.as_ref().map_or(FilesystemPhase::Active, |s| s.phase);
    Some(Plan { writes: vec![Write::Status(phase, Some(Box::new(next)))], ..Plan::default() })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
