//! The planner: from what both sides hold to the steps that bring the receiver up to date, or to the reason
//! why not. A pure function of two listings and two policies (replication.md §2); `Run` calls it after each listing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Initial, Intermediate};
use crate::ids::CommitId;
use crate::model::{Commit, Conflict, Problem, Reason, ResumeToken, Versions, VersionsRole};

/// Most ids that one list of a [`Conflict`] carries (the report is kept in an object's status).
pub const CONFLICT_LIST_MAX: usize = 16;

/// What a run has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The newest commit that both sides have; `None` if the receiver is empty.
    pub base: Option<CommitId>,
    /// Each one's `from` is on the receiver once those before it are done. First what brings it up to date, oldest first; then older kept
    /// commits that it lacks.
    pub steps: Vec<PlanStep>,
    /// The commit that must be on the receiver before the run may say `Completed`.
    pub target: CommitId,
    /// What was decided where there was a choice, for people.
    pub resolution: Option<String>,
    /// Why the receiver's partial receive is of no use, if it has one and it is not.
    pub discarded: Option<String>,
}

/// One transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanStep {
    /// Base; `None` is a full copy.
    pub from: Option<CommitId>,
    /// Target.
    pub to: CommitId,
    /// Go on from here; only ever on the first step.
    pub resume: Option<ResumeToken>,
    /// A kept commit that is older than what the receiver has, or will have: brought for its own sake, it moves no cursor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub older: bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Refused {
    /// The typed reason; [`Reason::is_permanent`] says whether waiting can help.
    pub problem: Problem,
    /// Both histories, where they don't fit.
    pub conflict: Option<Box<Conflict>>,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem, conflict: None }
    }
}

/// Plans up to the sender's newest commit.
///
/// # Errors
/// Every row of the table in replication.md §2 that has no path, as a typed [`Refused`].
pub fn plan(local: &Versions, peer: &Versions, initial: Initial, intermediate: Intermediate) -> Result<Plan, Refused> {
    plan_to(local, peer, initial, intermediate, None, None)
}

/// Plans up to `target`, so that a retry ends where the first attempt would have. A `target` that the sender
/// no longer has counts as none: its newest commit is the target then. `also` names a transient commit to bring over, the last of a
/// handoff; other transient commits are of use only as a base that both sides have.
///
/// # Errors
/// As [`plan`].
pub fn plan_to(
    local: &Versions,
    peer: &Versions,
    initial: Initial,
    intermediate: Intermediate,
    target: Option<CommitId>,
    also: Option<CommitId>,
) -> Result<Plan, Refused> {
    check_sides(local, peer)?;
    let sides = Sides::new(local, peer, also);
    if sides.sender.is_empty() {
        return Err(Problem::new(Reason::NoCommits, "there are no commits on the sender: make one, then start the job again").into());
    }
    let base = sides.base()?;
    let newest = sides.sender.iter().rposition(|c| !c.transient || Some(c.id) == also || Some(c.id) == sides.set_aside);
    let target = target.and_then(|t| sides.position.get(&t)).copied().or(newest);
    // What both have may be newer than what is still to be brought over: its commit was deleted, the base stays (ADR 11).
    let has_later = base.and_then(|id| sides.position.get(&id)).copied().filter(|at| target.is_none_or(|t| t < *at && !sides.has(t)));
    let Some((target, target_id)) = has_later.or(target).and_then(|at| Some((at, sides.sender.get(at)?.id))) else {
        return Err(Problem::new(Reason::Internal, "the plan's target is outside of the history").into());
    };
    let mut plan = Plan { base, steps: Vec::new(), target: target_id, resolution: None, discarded: None };
    let candidates = sides.candidates(base, target);
    // Who wants all has also the kept commits that the receiver was never sent, or has lost; an older receiver takes none.
    let brings_all = initial == Initial::All && intermediate == Intermediate::All && peer.takes_older;
    let begins_with = sides.begins_with(target);
    let is_wanted = |token: &&ResumeToken| brings_all || peer.takes_older && begins_with == Some(token.target);
    let older = peer.resume.as_ref().filter(is_wanted).and_then(|token| sides.older_step(token, target, begins_with));
    let resume = match &peer.resume {
        _ if older.is_some() => None,
        None => None,
        Some(token) => match sides.check_token(token, base, &candidates) {
            Ok(()) => Some(token),
            Err(why) => {
                plan.discarded = Some(why);
                None
            }
        },
    };
    lay_steps(&mut plan, &candidates, resume, initial, intermediate, begins_with)?;
    plan.steps.splice(0..0, older);
    if brings_all {
        sides.add_older(&mut plan, target);
    }
    if let Some(to) = begins_with.filter(|to| peer.takes_older && !plan.steps.iter().any(|s| s.to == *to)) {
        plan.steps.push(PlanStep { from: Some(target_id), to, resume: None, older: true });
    }
    Ok(plan)
}

/// Roles and epochs, before any commit is looked at.
fn check_sides(local: &Versions, peer: &Versions) -> Result<(), Problem> {
    let problem = |reason, message: String| Err(Problem::new(reason, message));
    match local.role {
        VersionsRole::Deleting => {
            return problem(Reason::Deleting, "the sender's copy is being deleted".to_owned());
        }
        VersionsRole::Absent => {
            return problem(Reason::NotFound, "the sender has no copy of this Filesystem".to_owned());
        }
        VersionsRole::Replica => {
            return problem(Reason::NotOwner, "this node holds a replica only; the owner's node runs the job".to_owned());
        }
        VersionsRole::Owner => {}
    }
    if peer.epoch > local.epoch {
        return problem(
            Reason::StaleEpoch,
            format!("the receiver has seen epoch {}, we are at {}: authority has moved away from this node", peer.epoch, local.epoch),
        );
    }
    match peer.role {
        VersionsRole::Owner => {
            problem(Reason::ReceiverIsOwner, "the receiver's copy is an owner's, not a replica's: it is not overwritten".to_owned())
        }
        VersionsRole::Deleting => problem(Reason::Deleting, "the receiver's copy is being deleted".to_owned()),
        VersionsRole::Absent | VersionsRole::Replica => Ok(()),
    }
}

/// Both histories, without what no job may see, and the sender's indexed by id.
struct Sides<'a> {
    sender: Vec<&'a Commit>,
    receiver: Vec<&'a Commit>,
    position: BTreeMap<CommitId, usize>,
    received: BTreeSet<CommitId>,
    /// The last of the sender's, if that only keeps what a reset took away.
    set_aside: Option<CommitId>,
}

impl<'a> Sides<'a> {
    fn new(local: &'a Versions, peer: &'a Versions, also: Option<CommitId>) -> Self {
        let theirs: &'a [Commit] = match peer.role {
            VersionsRole::Absent => &[],
            _ => &peer.commits,
        };
        let has = |commits: &[Commit], id| commits.iter().any(|c| c.id == id);
        // Also if its object was deleted: without it the receiver would take the commit before it for what the head holds.
        let set_aside = Commit::set_aside_last(local.commits.iter()).map(|c| c.id);
        let also_sent = |id| Some(id) == also || Some(id) == set_aside;
        let sender: Vec<&Commit> = local.commits.iter().filter(|c| !c.transient || also_sent(c.id) || has(theirs, c.id)).collect();
        let receiver: Vec<&Commit> = theirs.iter().filter(|c| !c.transient || has(&local.commits, c.id)).collect();
        let position = sender.iter().enumerate().map(|(at, c)| (c.id, at)).collect();
        let received = receiver.iter().map(|c| c.id).collect();
        Self { sender, receiver, position, received, set_aside }
    }

    /// What the head began with, if the target only keeps what a reset took away, and the receiver lacks it: then that is what counts as newest.
    fn begins_with(&self, target: usize) -> Option<CommitId> {
        let to = self.sender.get(target)?.reset_to?;
        let at = *self.position.get(&to)?;
        (!self.has(at)).then_some(to)
    }

    /// Whether the receiver has the sender's commit number `at`.
    fn has(&self, at: usize) -> bool {
        self.sender.get(at).is_some_and(|c| self.received.contains(&c.id))
    }

    /// The newest commit of the receiver, which the sender must have too.
    fn base(&self) -> Result<Option<CommitId>, Refused> {
        let Some(newest) = self.receiver.last() else {
            return Ok(None);
        };
        let base = self.receiver.iter().rposition(|c| self.position.contains_key(&c.id));
        match base {
            Some(at) if at + 1 == self.receiver.len() => Ok(Some(newest.id)),
            Some(at) => Err(self.conflict(Reason::Diverged, Some(at))),
            None => Err(self.conflict(Reason::NoCommonAncestor, None)),
        }
    }

    /// Both tails after the receiver's commit number `base_at`.
    fn conflict(&self, reason: Reason, base_at: Option<usize>) -> Refused {
        let base = base_at.and_then(|at| self.receiver.get(at)).map(|c| c.id);
        let receiver_from = base_at.map_or(0, |at| at + 1);
        let sender_from = base.and_then(|id| self.position.get(&id)).map_or(0, |at| at + 1);
        let ids = |commits: &[&Commit], from: usize, other: &dyn Fn(CommitId) -> bool| -> Vec<CommitId> {
            commits.iter().skip(from).map(|c| c.id).filter(|id| !other(*id)).collect()
        };
        let sender_only = ids(&self.sender, sender_from, &|id| self.received.contains(&id));
        let receiver_only = ids(&self.receiver, receiver_from, &|id| self.position.contains_key(&id));
        let message = match base {
            Some(base) => format!(
                "after {base} the sender has {} commit(s) of its own and the receiver {}; nothing is overwritten",
                sender_only.len(),
                receiver_only.len()
            ),
            None => format!(
                "the sender's {} commit(s) and the receiver's {} have none in common; nothing is overwritten",
                sender_only.len(),
                receiver_only.len()
            ),
        };
        let cut = |mut ids: Vec<CommitId>| {
            ids.truncate(CONFLICT_LIST_MAX);
            ids
        };
        Refused {
            problem: Problem::new(reason, message),
            conflict: Some(Box::new(Conflict { base, sender_only: cut(sender_only), receiver_only: cut(receiver_only) })),
        }
    }

    /// What of the sender's history, after the base and up to the target, the receiver lacks.
    fn candidates(&self, base: Option<CommitId>, target: usize) -> Vec<CommitId> {
        let from = base.and_then(|id| self.position.get(&id)).map_or(0, |at| at + 1);
        self.sender.iter().take(target + 1).skip(from).map(|c| c.id).filter(|id| !self.received.contains(id)).collect()
    }

    /// Whether it is a kept commit that the receiver lacks, at a place before `target`.
    fn is_missing(&self, at: usize, target: usize) -> bool {
        at < target && !self.has(at) && self.sender.get(at).is_some_and(|c| c.kept.is_some() && !c.transient)
    }

    /// The receiver's partial, if it is of an older kept commit, or of the one that the head began with: it goes on at once, whatever else is
    /// to be sent.
    fn older_step(&self, token: &ResumeToken, target: usize, begins_with: Option<CommitId>) -> Option<PlanStep> {
        let at = *self.position.get(&token.target)?;
        let base = token.base.filter(|b| self.received.contains(b)).and_then(|b| self.position.get(&b))?;
        let newest = self.base().ok().flatten().and_then(|id| self.position.get(&id)).copied()?;
        let lacks = self.is_missing(at, target) || begins_with == Some(token.target);
        let older = at < newest && lacks && *base != at;
        older.then(|| PlanStep { from: token.base, to: token.target, resume: Some(token.clone()), older: true })
    }

    /// Adds each kept commit before the target that the receiver lacks and no step brings, from the nearest one that both sides will have
    /// then: an increment can start from a newer one as well. What is newest comes first, as that is what a loss would cost.
    fn add_older(&self, plan: &mut Plan, target: usize) {
        let lasts = |at: &usize| self.sender.get(*at).is_some_and(|c| !c.transient);
        let there = self.received.iter().filter_map(|id| self.position.get(id)).copied().filter(lasts);
        let brought = plan.steps.iter().filter_map(|s| self.position.get(&s.to)).copied();
        let known = plan.base.iter().filter_map(|id| self.position.get(id)).copied();
        let mut bases: BTreeSet<usize> = there.chain(brought).chain(known).collect();
        for at in 0..target {
            if !self.is_missing(at, target) || bases.contains(&at) {
                continue;
            }
            let before = bases.range(..at).next_back();
            let after = bases.range(at..).next();
            let near = [before, after].into_iter().flatten().min_by_key(|b| b.abs_diff(at));
            let (Some(from), Some(to)) = (near.and_then(|b| self.sender.get(*b)), self.sender.get(at)) else { continue };
            plan.steps.push(PlanStep { from: Some(from.id), to: to.id, resume: None, older: true });
            bases.insert(at);
        }
    }

    /// Whether the receiver's partial is one of *our* path. The token comes from the peer: one that names a
    /// commit we don't know, or another base, can't make us send anything (§6, test 12).
    fn check_token(&self, token: &ResumeToken, base: Option<CommitId>, candidates: &[CommitId]) -> Result<(), String> {
        if !self.position.contains_key(&token.target) {
            return Err(format!("its target {} is not on the sender (any more)", token.target));
        }
        if self.received.contains(&token.target) {
            return Err(format!("its target {} is complete on the receiver", token.target));
        }
        if !candidates.contains(&token.target) {
            return Err(format!("its target {} is not on the way of this run", token.target));
        }
        if token.base != base {
            let name = |id: Option<CommitId>| id.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
            return Err(format!("it starts from {}, the path from {}", name(token.base), name(base)));
        }
        Ok(())
    }
}

/// Fills in the steps: a partial receive first, then a first copy by policy, then increments; `begins_with` on the way, wherever it is.
fn lay_steps(
    plan: &mut Plan,
    candidates: &[CommitId],
    resume: Option<&ResumeToken>,
    initial: Initial,
    intermediate: Intermediate,
    begins_with: Option<CommitId>,
) -> Result<(), Problem> {
    let (Some(&oldest), Some(&newest)) = (candidates.first(), candidates.last()) else {
        return Ok(()); // up to date
    };
    let mut rest = candidates;
    let mut from = plan.base;
    let after = |id: CommitId| {
        let at = candidates.iter().position(|c| *c == id).map_or(candidates.len(), |at| at + 1);
        candidates.get(at..).unwrap_or_default()
    };
    let mut first = |to: CommitId, resume: Option<ResumeToken>| {
        plan.steps.push(PlanStep { from, to, resume, older: false });
        from = Some(to);
        rest = after(to);
    };
    if let Some(token) = resume {
        first(token.target, Some(token.clone()));
        plan.resolution = Some(format!("go on with {} at byte {}", token.target, token.offset));
    } else if plan.base.is_none() {
        match initial {
            Initial::MostRecent => {
                let newest = begins_with.filter(|id| candidates.contains(id)).unwrap_or(newest);
                first(newest, None);
                plan.resolution = Some(format!("start at most recent commit {newest}"));
            }
            Initial::All => {
                first(oldest, None);
                plan.resolution = Some(format!("start at oldest commit {oldest}"));
            }
            Initial::Fail => {
                return Err(Problem::new(Reason::InitialRefused, "the receiver is empty and `initial: Fail` forbids a first copy"));
            }
        }
    }
    let is_wanted = |to: CommitId| intermediate == Intermediate::All || to == newest || Some(to) == begins_with;
    for &to in rest.iter().filter(|to| is_wanted(**to)) {
        plan.steps.push(PlanStep { from, to, resume: None, older: false });
        from = Some(to);
    }
    Ok(())
}
