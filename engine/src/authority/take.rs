//! What only the operator may do with authority (R6): take it from an owner that is lost, give it back to the one that handed it over,
//! promote a copy at a person's word, and accept after it was lost.
//!
//! Which copy is best is decided by what each holds, a fact ([`CompleteTo`], R7), never by a clock.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::{Authority, Epoch, FORK_POINTS, ForkPoint, Pending, Phase, Read, Refusal};
use crate::ids::{CommitId, MigId, NodeName, Timestamp};
use crate::model::Place;

/// A copy holds every commit, transient ones too, up to and with this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompleteTo {
    /// Epoch of its newest commit.
    pub epoch: Epoch,
    /// That commit's number within the epoch.
    pub seq: u64,
}

/// `EImportStart` as a copy has reported it: it holds all of exactly this handoff, durably (R5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImportStart {
    /// The migration.
    pub mig: MigId,
    /// Its attempt.
    pub attempt: u64,
    /// Its final commit.
    pub final_commit: CommitId,
}

/// What a copy says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum CopyRole {
    /// Nothing that could be opened: absent, being made, or going.
    #[default]
    None,
    /// A read-only copy.
    Replica,
    /// It was an owner's, and authority was taken without it: it is fenced and kept.
    Superseded,
    /// It claims to be the owner's.
    Owner,
}

/// The newest commit that a copy shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Newest {
    /// Its id.
    pub id: CommitId,
    /// Its epoch.
    pub epoch: Epoch,
    /// When it was taken. Decides only between copies whose agents, of release 0.1, don't say what they are complete to.
    pub time: Timestamp,
}

/// A copy, as its agent has reported it and its pool stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::struct_excessive_bools)] // independent facts, each of its own doc line
pub struct Copy {
    /// Where it is.
    pub place: Place,
    /// What it says it is.
    pub role: CopyRole,
    /// The highest epoch that it has seen.
    pub epoch: Epoch,
    /// What it is complete to; `None`: its agent doesn't say.
    pub complete_to: Option<CompleteTo>,
    /// Its newest commit; `None`: it holds none.
    pub newest: Option<Newest>,
    /// All of a handoff is here.
    pub import_start: Option<ImportStart>,
    /// The epoch that its own Commit made, while it keeps the final commit because the new owner has not been seen to open.
    pub handed_over: Option<Epoch>,
    /// It is wanted: nobody has said that it is to go.
    pub wanted: bool,
    /// Its pool can be used now.
    pub ready: bool,
    /// Its node is proven lost (out-of-service taint, or no Node object).
    pub lost: bool,
}

impl Copy {
    /// Nothing that was acknowledged is lost if it takes over: it holds the final commit of exactly what is pending, under which the owner
    /// is frozen (R5, R2), or of the handoff that made this epoch, in which nobody has opened yet (R4).
    pub fn has_all(&self, authority: &Authority) -> bool {
        let exactly = |p: &Pending| {
            let start = ImportStart { mig: p.mig, attempt: p.attempt, final_commit: p.final_commit };
            p.to == self.place && self.import_start == Some(start)
        };
        authority.pending.as_ref().is_some_and(exactly) || self.handed_over == Some(authority.epoch) && !authority.is_opened()
    }

    /// It could be the owner's, once its pool is ready.
    fn can_own(&self, authority: &Authority) -> bool {
        let holds = self.role == CopyRole::Replica && self.newest.is_some();
        self.wanted && !self.lost && self.place != authority.owner && (holds || self.has_all(authority))
    }

    /// The epoch of its newest commit.
    fn reaches(&self) -> Option<Epoch> {
        self.complete_to.map(|to| to.epoch).max(self.newest.map(|n| n.epoch))
    }

    /// What it is complete to is known: its agent says it, or it holds no commit.
    const fn says(&self) -> bool {
        self.complete_to.is_some() || self.newest.is_none()
    }

    /// What it holds. While some copy of that epoch doesn't say what it is complete to, all are compared by their newest commits, as release
    /// 0.1 did: a number says nothing beside a commit that has none.
    fn holds(&self, all_say: bool) -> (Option<CompleteTo>, Option<Timestamp>) {
        if all_say {
            return (self.complete_to, None);
        }
        (self.newest.map(|n| CompleteTo { epoch: n.epoch, seq: 0 }), self.newest.map(|n| n.time))
    }
}

/// Authority as it shall be after it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The new state.
    pub authority: Authority,
    /// Nothing that was acknowledged is given up; else there is a new fork point.
    pub without_loss: bool,
}

/// Takes authority from an owner that is proven lost (`owner_lost`, fencing `Proof`), or gives it back to the one that handed it over to
/// that owner: to the copy that has all of it, else to the most complete one, what the lost owner has beyond it being fenced and kept
/// when it returns. `wanted` decides between equals.
///
/// # Errors
///
/// [`Refusal`]: no proof, not active, no copy; or [`Refusal::WaitsFor`]: the copy that has all of it isn't ready, and isn't lost either.
pub fn steal(read: &Read, copies: &[Copy], owner_lost: bool, wanted: Option<&NodeName>) -> Result<Taken, Refusal> {
    let authority = active(read)?;
    if !owner_lost {
        return Err(Refusal::NotLost(authority.owner.clone()));
    }
    let best = best(authority, copies, wanted).ok_or(Refusal::NoCopy);
    let whole = copies.iter().find(|c| c.has_all(authority) && c.can_own(authority) && !c.ready);
    match (best, whole) {
        (Ok(best), _) if best.has_all(authority) => Ok(taken(authority, best)),
        (_, Some(whole)) => Err(Refusal::WaitsFor(whole.place.clone())),
        (best, None) => best.map(|best| taken(authority, best)),
    }
}

/// R4: gives authority back to the copy on `to`, which handed it over, while the new owner has not opened it. Nothing is lost by it,
/// whatever the new owner does: its opening is a swap of the same object.
///
/// # Errors
///
/// [`Refusal`]: not active; the new owner has opened; or that copy isn't the one that handed over in this epoch, or isn't ready.
pub fn give_back(read: &Read, copies: &[Copy], to: &NodeName) -> Result<Taken, Refusal> {
    let authority = active(read)?;
    if authority.is_opened() {
        return Err(Refusal::AlreadyOpened { owner: authority.owner.clone(), epoch: authority.epoch });
    }
    let giver = |c: &&Copy| c.place.node == *to && c.handed_over == Some(authority.epoch) && c.can_own(authority) && c.ready;
    copies.iter().find(giver).map(|c| taken(authority, c)).ok_or(Refusal::NoCopy)
}

/// The owner's pool came back under another node's name, and a person says that it is the same: its copy goes on owning, one epoch on. Nothing is given
/// up, as it is the very data that has authority; a handoff that was pending can't be committed any more, and what it had frozen is thawed under the new
/// opening. `gone`: nobody holds that pool under its old name any more.
///
/// # Errors
///
/// [`Refusal`]: nothing is recorded or it is being deleted; that copy's pool isn't the owner's, or it doesn't claim to be the owner's in this epoch; or the
/// old name isn't proven gone.
pub fn rehome(read: &Read, copy: &Copy, gone: bool) -> Result<Authority, Refusal> {
    let authority = read.known()?;
    if read.phase == Phase::Deleting {
        return Err(Refusal::Deleting);
    }
    if !gone {
        return Err(Refusal::NotLost(authority.owner.clone()));
    }
    let same = copy.place.pool == authority.owner.pool && copy.place.node != authority.owner.node;
    if !(same && copy.role == CopyRole::Owner && copy.epoch == authority.epoch) {
        return Err(Refusal::NotOwner { owner: authority.owner.clone(), epoch: authority.epoch });
    }
    Ok(Authority { attempt: authority.attempt.saturating_add(1), ..authority.passed_to(copy.place.clone()) })
}

/// A person promotes the best copy, or the one on `node`. Without `accept_loss` only a copy takes over that has all of it.
///
/// # Errors
///
/// [`Refusal`]: not active, that node owns it, no copy is ready (there), or [`Refusal::MayLose`].
pub fn promote(
    read: &Read,
    copies: &[Copy],
    node: Option<&NodeName>,
    accept_loss: bool,
    wanted: Option<&NodeName>,
) -> Result<Taken, Refusal> {
    let authority = active(read)?;
    if node == Some(&authority.owner.node) {
        return Err(Refusal::SameNode(authority.owner.clone()));
    }
    let there: Vec<Copy> = copies.iter().filter(|c| node.is_none_or(|n| *n == c.place.node)).cloned().collect();
    let best = best(authority, &there, wanted).ok_or(Refusal::NoCopy)?;
    if !accept_loss && !best.has_all(authority) {
        return Err(Refusal::MayLose { from: authority.owner.clone(), to: best.place.clone() });
    }
    Ok(taken(authority, best))
}

/// A person accepts an epoch after authority was lost or the API restored: one above every epoch that any pool has seen, to the highest
/// claim: the epoch in which a copy says it is the owner's, then what it is complete to. The owner on record claims the recorded epoch.
/// An owner that knows that it was superseded comes after every other; a copy that is to go claims nothing, unless nobody else does.
/// Where two claim the same epoch and one doesn't say what it is complete to, though it holds commits, only a person can tell.
///
/// # Errors
///
/// [`Refusal`]: an epoch above `accepted` is on record already, nobody claims it, or two claims are equal.
pub fn accept(read: &Read, accepted: Epoch, copies: &[Copy]) -> Result<Authority, Refusal> {
    let recorded = read.authority.as_ref();
    if let Some(authority) = recorded.filter(|a| a.epoch > accepted) {
        return Err(Refusal::Accepted(authority.epoch));
    }
    let seen = copies.iter().map(|c| c.epoch).chain(recorded.map(|a| a.epoch)).chain([accepted]).max().unwrap_or_default();
    let owner = claimant(recorded, copies)?;
    let old = recorded.cloned().unwrap_or_else(|| Authority::first(owner.clone()));
    Ok(Authority { epoch: seen, attempt: old.attempt.saturating_add(1), ..old }.passed_to(owner))
}

fn claimant(recorded: Option<&Authority>, copies: &[Copy]) -> Result<Place, Refusal> {
    let is_recorded = |c: &Copy| recorded.is_some_and(|a| a.owner == c.place);
    let claim = |c: &Copy| {
        let on_record = recorded.filter(|a| a.owner == c.place).map(|a| a.epoch);
        let own = (c.role >= CopyRole::Superseded).then_some(c.epoch);
        (c.wanted, c.role != CopyRole::Superseded, on_record.max(own))
    };
    let mut claims: Vec<_> = copies.iter().filter(|c| c.role >= CopyRole::Superseded || is_recorded(c)).map(|c| (claim(c), c)).collect();
    claims.sort_by_key(|(claim, c)| Reverse((*claim, c.complete_to)));
    let highest = claims.first().map(|(claim, _)| *claim);
    let all_say = claims.iter().filter(|(claim, _)| Some(*claim) == highest).all(|(_, c)| c.says());
    match (claims.as_slice(), recorded) {
        ([(one, a), (other, b), ..], _) if one == other && (!all_say || a.complete_to == b.complete_to) => {
            Err(Refusal::EqualClaims(a.place.clone(), b.place.clone()))
        }
        ([(_, best), ..], _) => Ok(best.place.clone()),
        // Its pool says nothing: the record is all there is.
        ([], Some(authority)) => Ok(authority.owner.clone()),
        ([], None) => Err(Refusal::NoAuthority),
    }
}

fn active(read: &Read) -> Result<&Authority, Refusal> {
    let authority = read.known()?;
    match read.phase {
        Phase::Active => Ok(authority),
        Phase::Deleting => Err(Refusal::Deleting),
        phase => Err(Refusal::NotActive(phase)),
    }
}

/// The copy that has all of it, else the most complete one; then the one on the `wanted` node, then by name.
fn best<'a>(authority: &Authority, copies: &'a [Copy], wanted: Option<&NodeName>) -> Option<&'a Copy> {
    let usable: Vec<&Copy> = copies.iter().filter(|c| c.ready && c.can_own(authority)).collect();
    let latest = usable.iter().map(|c| c.reaches()).max();
    let all_say = usable.iter().all(|c| c.complete_to.is_some() || Some(c.reaches()) < latest);
    let rank = |c: &Copy| (c.has_all(authority), c.holds(all_say));
    usable.into_iter().max_by_key(|c| (rank(c), wanted == Some(&c.place.node), Reverse(c.place.node.clone())))
}

/// The one transition of all of them.
fn taken(authority: &Authority, to: &Copy) -> Taken {
    let without_loss = to.has_all(authority);
    let mut next = authority.passed_to(to.place.clone());
    next.attempt = authority.attempt.saturating_add(1);
    if !without_loss {
        let commit = to.newest.map(|n| n.id);
        next.fork_points.push(ForkPoint { from: authority.owner.clone(), from_epoch: authority.epoch, commit });
        let old = next.fork_points.len().saturating_sub(FORK_POINTS);
        next.fork_points.drain(..old);
    }
    Taken { authority: next, without_loss }
}
