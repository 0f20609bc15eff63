//! Authority over a Filesystem: who may write it, in which epoch, and every transition that is allowed (migration.md §2, rules R0–R9).
//!
//! This is the one place where these rules stand. The agent's compare-and-swap, the operator and the simulator call it with what a
//! quorum read showed, and write what it returns under the read's version; the admission policies are tested against
//! [`may_agent_write`]. Each function is pure: the state as read, who asks and what for; then the new state, or a [`Refusal`] that says why.
//!
//! - here: the owner's and the importer's transitions: [`open`], [`pend`], [`commit`], [`abort`], [`disown`]
//! - [`take`]: what the operator alone may do: steal, give back, promote, accept
//! - [`verdict`]: what follows for a copy from authority as it stands

pub mod take;
pub mod verdict;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, CommitId, Epoch, MigId, NodeName};
use crate::model::{Place, Problem, Reason};

/// Life of a Filesystem, as far as authority depends on it: `Filesystem.status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Phase {
    /// No data yet: the only phase in which an owner may be created empty.
    New,
    /// In use.
    #[default]
    Active,
    /// Its claim is gone, the data is kept.
    Released,
    /// The head is gone, commits remain.
    Headless,
    /// Going, everywhere. Nothing is opened any more, and it changes owners no more (R3).
    Deleting,
}

/// Who may write a Filesystem: `Filesystem.status.authority`. The epoch only grows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// The one copy that may be written.
    pub owner: Place,
    /// Grows with each change of owner; the first is 1.
    pub epoch: Epoch,
    /// Grows with each abort. It lives here because inside [`Pending`] it would be lost by an abort, and an importer's old record would
    /// pass for the next attempt's.
    pub attempt: u64,
    /// The owner's opening; it counts only if its epoch is the current one ([`Authority::is_opened`]).
    pub opened: Option<Opened>,
    /// A handoff under way: only a won Commit, a won Abort or the operator ends it.
    pub pending: Option<Pending>,
    /// Where histories parted when authority was taken without the owner, oldest first, at most [`FORK_POINTS`].
    pub fork_points: Vec<ForkPoint>,
}

/// An opening for writing, good for one epoch and one boot of the owner's machine (R0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Opened {
    /// The epoch that was opened.
    pub epoch: Epoch,
    /// The boot in which it was opened.
    pub boot: BootId,
}

/// A handoff that waits for Commit or Abort.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The migration.
    pub mig: MigId,
    /// Its attempt.
    pub attempt: u64,
    /// Who is to own it.
    pub to: Place,
    /// The commit that has all of the old owner's head.
    pub final_commit: CommitId,
}

/// The last commit that an owner is known to have shared before authority was taken from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForkPoint {
    /// Who lost authority.
    pub from: Place,
    /// Its epoch.
    pub from_epoch: Epoch,
    /// The newest commit known to be common; `None`: none is.
    pub commit: Option<CommitId>,
}

/// Fork points that are kept: the newest.
pub const FORK_POINTS: usize = 64;

impl Authority {
    /// The first owner of a new Filesystem.
    pub fn first(owner: Place) -> Self {
        Self { owner, epoch: Epoch(1), attempt: 0, opened: None, pending: None, fork_points: Vec::new() }
    }

    /// Whether the present owner has opened it in the present epoch: from then on it may have written.
    pub fn is_opened(&self) -> bool {
        self.opened.is_some_and(|o| o.epoch == self.epoch)
    }

    /// `pending`, if it is exactly this handoff in this epoch: the common guard of Commit and Abort (R3).
    fn exactly(&self, of: Attempt) -> Result<&Pending, Refusal> {
        if self.epoch != of.epoch {
            return Err(Refusal::OtherEpoch { epoch: self.epoch });
        }
        let pending = self.pending.as_ref().ok_or(Refusal::NothingPending { attempt: self.attempt })?;
        if (pending.mig, pending.attempt) == (of.mig, of.attempt) { Ok(pending) } else { Err(Refusal::pending(pending)) }
    }

    /// The same without a handoff and with another owner, one epoch on. An opening never outlives its epoch (R3).
    fn passed_to(&self, owner: Place) -> Self {
        Self { owner, epoch: Epoch(self.epoch.0.saturating_add(1)), opened: None, pending: None, ..self.clone() }
    }
}

/// One attempt of one handoff in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// The migration.
    pub mig: MigId,
    /// Its attempt.
    pub attempt: u64,
    /// The epoch that ends with it.
    pub epoch: Epoch,
}

/// What one quorum read shows of a Filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Read {
    /// Its phase.
    pub phase: Phase,
    /// Who may write; `None`: not given yet, or lost.
    pub authority: Option<Authority>,
    /// Version of the object; `None` if the server's isn't a number.
    pub version: Option<u64>,
}

impl Read {
    /// Being deleted.
    pub fn is_deleting(&self) -> bool {
        self.phase == Phase::Deleting
    }

    fn known(&self) -> Result<&Authority, Refusal> {
        self.authority.as_ref().ok_or(Refusal::NoAuthority)
    }

    /// Authority, if `me` owns it.
    fn owned_by(&self, me: &Place) -> Result<&Authority, Refusal> {
        let authority = self.known()?;
        if authority.owner == *me { Ok(authority) } else { Err(Refusal::not_owner(authority)) }
    }
}

/// The newest that a node has seen of a Filesystem: an API server that shows less was restored to an older time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// The highest epoch, of this pool or of any that was asked.
    pub epoch: Epoch,
    /// The highest version of the object; `None`: not known.
    pub version: Option<u64>,
}

impl Seen {
    /// Whether what was read is older than this. A version counts only if both are known, and within an epoch: in a restored API a person
    /// goes on with a later epoch, in which versions begin anew.
    fn is_newer_than(self, read: Self) -> bool {
        let is_older = || matches!((self.version, read.version), (Some(seen), Some(read)) if read < seen);
        read.epoch < self.epoch || read.epoch == self.epoch && is_older()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.epoch)?;
        self.version.map_or(Ok(()), |v| write!(f, " (version {v})"))
    }
}

/// Why a transition is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The object says nothing of authority. A restored API can't be told from one that never gave any.
    #[error("the API says nothing of an owner; `kubectl dot accept` sets one")]
    NoAuthority,
    /// The API shows an older time than was seen: it was restored.
    #[error("{seen} was seen, the API shows {api}; was the API restored? `kubectl dot accept` goes on")]
    Regressed {
        /// What was seen.
        seen: Seen,
        /// What the API shows.
        api: Seen,
    },
    /// It is being deleted: nothing is opened, and it changes owners no more.
    #[error("the Filesystem is being deleted")]
    Deleting,
    /// It is not in use, so that it changes owners by no wish.
    #[error("the Filesystem is {0:?}: only an Active one changes owners")]
    NotActive(Phase),
    /// Somebody else owns it.
    #[error("node {} (pool {}) is the owner, in epoch {epoch}: this copy stays closed", owner.node, owner.pool)]
    NotOwner {
        /// Who.
        owner: Place,
        /// In which epoch.
        epoch: Epoch,
    },
    /// Neither owner nor `pending.to` (R6).
    #[error("this node is neither owner nor the one that is to be")]
    NoParty,
    /// A handoff is under way: what is asked for waits, or is about another one (R2).
    #[error("a handoff to node {} is under way: this copy stays closed until it ends", to.node)]
    Pending {
        /// Whose.
        mig: MigId,
        /// Which attempt.
        attempt: u64,
        /// To whom.
        to: Place,
    },
    /// No handoff is under way.
    #[error("no handoff is under way (attempt {attempt})")]
    NothingPending {
        /// The attempt that is next.
        attempt: u64,
    },
    /// It is about another epoch than the present one.
    #[error("it is epoch {epoch} now")]
    OtherEpoch {
        /// The present one.
        epoch: Epoch,
    },
    /// A handoff is to another node; pools of one node don't hand over to each other.
    #[error("node {} owns it already", .0.node)]
    SameNode(Place),
    /// The owner has opened it, so giving it back might lose what was written.
    #[error("node {} has opened it in epoch {epoch}: what it wrote may be there only", owner.node)]
    AlreadyOpened {
        /// Who.
        owner: Place,
        /// In which epoch.
        epoch: Epoch,
    },
    /// Nothing proves that the owner is lost.
    #[error("nothing proves that node {} is lost", .0.node)]
    NotLost(Place),
    /// There is no copy that could take over.
    #[error("no copy that holds a commit is ready to take over")]
    NoCopy,
    /// A copy that has all of it is not ready, and may be in a moment (fault of passing it over: acknowledged writes are lost).
    #[error("node {} holds all of it and isn't ready: authority waits for it, as every other copy has less", .0.node)]
    WaitsFor(Place),
    /// What the owner has beyond that copy may be lost, and nobody has accepted that.
    #[error("what node {} has beyond the copy on node {} may be lost", from.node, to.node)]
    MayLose {
        /// The owner.
        from: Place,
        /// The copy.
        to: Place,
    },
    /// Two copies claim it with equal right: a person chooses.
    #[error("nodes `{}` and `{}` both say they own it, with the same epoch and the same commits: keep one, `kubectl dot drop` the other", .0.node, .1.node)]
    EqualClaims(Place, Place),
    /// The copy is needed, so it may not go.
    #[error("nothing is deleted: {why}")]
    Needed {
        /// For what.
        why: &'static str,
    },
    /// That epoch was accepted already.
    #[error("epoch {0} was accepted already")]
    Accepted(Epoch),
}

impl Refusal {
    fn not_owner(authority: &Authority) -> Self {
        Self::NotOwner { owner: authority.owner.clone(), epoch: authority.epoch }
    }
    fn pending(pending: &Pending) -> Self {
        Self::Pending { mig: pending.mig, attempt: pending.attempt, to: pending.to.clone() }
    }

    /// The closed kind, for conditions and answers.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoAuthority | Self::EqualClaims(..) => Reason::AuthorityUnknown,
            Self::Regressed { .. } => Reason::EpochRegression,
            Self::Deleting => Reason::Deleting,
            Self::NotOwner { .. } | Self::NoParty => Reason::NotOwner,
            Self::Pending { .. } | Self::WaitsFor(_) | Self::Needed { .. } => Reason::Busy,
            Self::OtherEpoch { .. } => Reason::StaleEpoch,
            Self::NoCopy => Reason::NotFound,
            Self::NotActive(_)
            | Self::NothingPending { .. }
            | Self::SameNode(_)
            | Self::AlreadyOpened { .. }
            | Self::NotLost(_)
            | Self::MayLose { .. }
            | Self::Accepted(_) => Reason::Invalid,
        }
    }

    /// As an answer to a request.
    pub fn problem(&self) -> Problem {
        Problem::new(self.reason(), self.to_string())
    }
}

/// R0: the owner opens it for writing in this `boot`. Nothing may be pending, and the API must not show less than was `seen`.
///
/// It is a swap also if this boot has it open already: an answered swap is the proof that nobody moved it in between, a read is not. The
/// first mount turns writable within five seconds of `CLOCK_BOOTTIME` from when the swap was sent, or the swap is made again.
///
/// # Errors
///
/// [`Refusal`]: not the owner, pending, deleting, older than what was seen, or no authority at all. Without authority a deleting
/// Filesystem is told as such.
pub fn open(read: &Read, me: &Place, boot: BootId, seen: Seen) -> Result<Authority, Refusal> {
    let Some(authority) = &read.authority else {
        return Err(if read.is_deleting() { Refusal::Deleting } else { Refusal::NoAuthority });
    };
    let api = Seen { epoch: authority.epoch, version: read.version };
    if seen.is_newer_than(api) {
        return Err(Refusal::Regressed { seen, api });
    }
    if read.is_deleting() {
        return Err(Refusal::Deleting);
    }
    let authority = read.owned_by(me)?;
    match &authority.pending {
        Some(pending) => Err(Refusal::pending(pending)),
        None => Ok(Authority { opened: Some(Opened { epoch: authority.epoch, boot }), ..authority.clone() }),
    }
}

/// R2, R3: the owner, whose head is fenced with `final_commit`, announces that it hands over to `to`.
///
/// # Errors
///
/// [`Refusal`]: not the owner in that epoch, another handoff is pending, deleting, or `to` is on the owner's own node.
pub fn pend(read: &Read, me: &Place, (mig, epoch): (MigId, Epoch), to: &Place, final_commit: CommitId) -> Result<Authority, Refusal> {
    let authority = read.owned_by(me)?;
    if authority.epoch != epoch {
        return Err(Refusal::OtherEpoch { epoch: authority.epoch });
    }
    if let Some(pending) = &authority.pending {
        return Err(Refusal::pending(pending));
    }
    if read.is_deleting() {
        return Err(Refusal::Deleting);
    }
    if to.node == me.node {
        return Err(Refusal::SameNode(me.clone()));
    }
    let pending = Pending { mig, attempt: authority.attempt, to: to.clone(), final_commit };
    Ok(Authority { pending: Some(pending), ..authority.clone() })
}

/// R3: the owner passes authority to `pending.to`, one epoch on. The guard is the same as [`abort`]'s, so that one of them wins.
///
/// # Errors
///
/// [`Refusal`]: not the owner (R6), `pending` isn't exactly this, or deleting.
pub fn commit(read: &Read, me: &Place, of: Attempt) -> Result<Authority, Refusal> {
    let pending = read.known()?.exactly(of)?;
    let authority = read.owned_by(me)?;
    if read.is_deleting() {
        return Err(Refusal::Deleting);
    }
    Ok(authority.passed_to(pending.to.clone()))
}

/// R3: the owner, or the one that was to be (R6), ends this attempt of the handoff. Also while it is being deleted.
///
/// # Errors
///
/// [`Refusal`]: no party of it, or `pending` isn't exactly this.
pub fn abort(read: &Read, me: &Place, of: Attempt) -> Result<Authority, Refusal> {
    let authority = read.known()?;
    let pending = authority.exactly(of)?;
    if authority.owner != *me && pending.to != *me {
        return Err(Refusal::NoParty);
    }
    Ok(Authority { pending: None, attempt: authority.attempt.saturating_add(1), ..authority.clone() })
}

/// R8: the owner ends a handoff that it has no record of: the write that set it came late, or the journal that knew it is lost. `known` is
/// the handoff that it has a record of.
///
/// # Errors
///
/// [`Refusal`]: not the owner, nothing pending, or what is pending is the known one.
pub fn disown(read: &Read, me: &Place, known: Option<MigId>) -> Result<Authority, Refusal> {
    let authority = read.owned_by(me)?;
    let Some(pending) = &authority.pending else { return Err(Refusal::NothingPending { attempt: authority.attempt }) };
    if known == Some(pending.mig) {
        return Err(Refusal::pending(pending));
    }
    let of = Attempt { mig: pending.mig, attempt: pending.attempt, epoch: authority.epoch };
    abort(read, me, of)
}

/// Whether the admission policies let the agent of `node` write `new` where `old` stands: the same, or exactly one of [`open`],
/// [`pend`], [`commit`] and [`abort`] (R6). An agent's token names its node, not its pool, so that much the policies can't see.
pub fn may_agent_write(old: &Read, new: &Read, node: &NodeName) -> bool {
    let (Some(before), Some(after)) = (&old.authority, &new.authority) else { return false };
    let target = before.pending.as_ref().map(|p| &p.to);
    // The swap's own guards ask for a place: that of the party which the node could be.
    let parties = [Some(&before.owner), target].into_iter().flatten().filter(|p| p.node == *node);
    let mut parties = parties.peekable();
    if parties.peek().is_none() || old.phase != new.phase {
        return false;
    }
    before == after || parties.any(|me| transitions(old, after, me).into_iter().flatten().any(|made| made == *after))
}

/// What `me` may make of `old`, with the free choices taken from `after`.
fn transitions(old: &Read, after: &Authority, me: &Place) -> [Option<Authority>; 4] {
    let epoch = after.epoch;
    let of = old.authority.as_ref().and_then(|a| a.pending.as_ref().map(|p| Attempt { mig: p.mig, attempt: p.attempt, epoch: a.epoch }));
    [
        after.opened.and_then(|o| open(old, me, o.boot, Seen::default()).ok()),
        after.pending.as_ref().and_then(|p| pend(old, me, (p.mig, epoch), &p.to, p.final_commit).ok()),
        of.and_then(|of| commit(old, me, of).ok()),
        of.and_then(|of| abort(old, me, of).ok()),
    ]
}

#[cfg(test)]
#[path = "authority/tests.rs"]
mod tests;
