//! What follows for a copy from authority as a quorum read shows it (migration.md §4, `ask`): the same words for owner, exporter, importer,
//! and for a copy that is told to go.

use super::{Attempt, Authority, Epoch, Read, Refusal};
use crate::model::Place;

/// How an owner stands that has no handoff in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerStanding {
    /// It is the owner, in the epoch that it knows or a later one (a person accepted, or authority came back).
    Mine,
    /// Another one owns it. In a later epoch: authority was taken. In the *same* epoch: two were made of one, by an API server that was
    /// restored; neither may guess which counts, so this one fences too.
    Elsewhere,
    /// The API shows an earlier epoch than this copy knows: it was restored, and nothing is decided by it.
    Regressed,
}

/// How the owner of epoch `known` at `me` stands.
pub fn of_owner(authority: &Authority, me: &Place, known: Epoch) -> OwnerStanding {
    if authority.epoch < known {
        OwnerStanding::Regressed
    } else if authority.owner == *me {
        OwnerStanding::Mine
    } else {
        OwnerStanding::Elsewhere
    }
}

/// How an exporter stands whose head is fenced for a handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExportStanding {
    /// The API shows an earlier epoch: hold.
    Regressed,
    /// Still the owner in a later epoch: a person accepted for this copy. It thaws.
    Reinstated,
    /// `pending` is this handoff's, in this attempt: hold, go on.
    Pending(u64),
    /// `pending` is another handoff's: hold (R8 aborts it before anything is opened).
    OtherPending,
    /// Nothing is pending and the attempt has grown: this one was aborted. It thaws.
    Aborted,
    /// Nothing is pending and the attempt is the same: `pending` was not set yet, or the API has lost it.
    Unset,
    /// The peer owns it in a later epoch. If it has said that it holds all (`EExport`), the handoff is over, whoever made the swap.
    HandedOver {
        /// Whether the peer has opened it in its epoch, so that the final commit is needed here no more (R4).
        opened: bool,
    },
    /// Somebody else owns it: authority was taken.
    Elsewhere,
}

/// How the exporter at `me` stands. `of.attempt` is the attempt that `pending` was seen with, or authority's when the handoff began.
pub fn of_export(authority: &Authority, me: &Place, peer: &Place, of: Attempt) -> ExportStanding {
    let mine = authority.owner == *me;
    match &authority.pending {
        _ if authority.epoch < of.epoch => ExportStanding::Regressed,
        _ if mine && authority.epoch > of.epoch => ExportStanding::Reinstated,
        Some(p) if mine && p.mig == of.mig => ExportStanding::Pending(p.attempt),
        Some(_) if mine => ExportStanding::OtherPending,
        None if mine && authority.attempt > of.attempt => ExportStanding::Aborted,
        None if mine => ExportStanding::Unset,
        _ if authority.owner == *peer && authority.epoch > of.epoch => ExportStanding::HandedOver { opened: authority.is_opened() },
        _ => ExportStanding::Elsewhere,
    }
}

/// How an exporter stands whose Commit was won, and that keeps what it handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeptStanding {
    /// The API shows an earlier epoch than its Commit made: hold.
    Regressed,
    /// The new owner has not opened, or authority was taken from it before it had: what was handed over may be nowhere else.
    Needed,
    /// Authority came back, straight from the new owner (R4): it begins with what it handed over.
    Back,
    /// The new owner has opened, or others went on after it: nothing is waited for any more.
    Over,
}

/// How the copy at `me` stands whose Commit passed authority to `peer` in the epoch `made`.
pub fn of_kept(authority: &Authority, me: &Place, peer: &Place, made: Epoch) -> KeptStanding {
    let since = authority.epoch.0.checked_sub(made.0);
    // Taken from the new owner with a loss, before it had opened as far as anyone knows.
    let forced = || authority.fork_points.iter().any(|f| f.from == *peer && f.from_epoch == made);
    match since {
        None => KeptStanding::Regressed,
        Some(0) if authority.is_opened() => KeptStanding::Over,
        Some(0) => KeptStanding::Needed,
        Some(1) if authority.owner == *me => KeptStanding::Back,
        Some(_) if authority.owner != *me && forced() => KeptStanding::Needed,
        Some(_) => KeptStanding::Over,
    }
}

/// How an importer stands that has recorded `EImportStart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImportStanding {
    /// Undecided, or the API shows an earlier time: hold, read-only.
    Undecided,
    /// It is the owner's now: `EImportFinish(true)`.
    Mine,
    /// It went another way: `EImportFinish(false)`, the final commit may go (R5).
    NotMine,
}

/// How the importer at `me` stands, to which `from` hands over.
pub fn of_import(authority: &Authority, me: &Place, from: &Place, of: Attempt) -> ImportStanding {
    let pending = authority.pending.as_ref().is_some_and(|p| (p.mig, p.attempt) == (of.mig, of.attempt) && p.to == *me);
    if authority.owner == *from && (authority.epoch < of.epoch || authority.epoch == of.epoch && pending) {
        ImportStanding::Undecided
    } else if authority.owner == *me && authority.epoch > of.epoch {
        ImportStanding::Mine
    } else {
        ImportStanding::NotMine
    }
}

/// What a copy knows of itself when it is told to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaving {
    /// It is an owner's, and not known to be superseded.
    pub owner: bool,
    /// It has recorded `EImportStart`, and authority hasn't decided.
    pub importing: bool,
    /// The epoch that its own Commit made, while it keeps the final commit.
    pub handed_over: Option<Epoch>,
    /// The highest epoch that it has seen.
    pub epoch: Epoch,
    /// The epoch in which it was told to go.
    pub told: Epoch,
}

impl Leaving {
    /// Nothing that this copy knows of itself speaks against it.
    fn is_spare(self) -> bool {
        !self.owner && !self.importing && self.handed_over.is_none() && self.epoch <= self.told
    }
}

/// Whether the copy at `me` that is told to go may delete what it has. It always asks first, by a quorum read: who told it may have known
/// an older time. A deleting Filesystem goes, whatever it is; else nothing goes that authority may still need. A Filesystem that is gone
/// was deleted: its tombstones are obeyed by whoever isn't sure to hold what nobody else does.
///
/// # Errors
///
/// [`Refusal`]: the API knows no Filesystem, or no owner; this is the owner's copy, or newer than the word; authority is to come here, or
/// may have to come back here.
pub fn may_go(read: Option<&Read>, me: &Place, leaving: Leaving) -> Result<(), Refusal> {
    let Some(read) = read else { return if leaving.is_spare() { Ok(()) } else { Err(Refusal::NoAuthority) } };
    if read.is_deleting() {
        return Ok(());
    }
    let authority = read.known()?;
    if authority.owner == *me || leaving.owner || leaving.epoch > leaving.told {
        return Err(Refusal::Needed { why: "this copy is the owner's, or newer than the word that it is to go" });
    }
    may_be_dropped(authority, me, leaving.handed_over)?;
    if leaving.importing {
        return Err(Refusal::Needed { why: "a handoff to this copy is not decided" });
    }
    Ok(())
}

/// Whether a copy that isn't the owner's may be told to go: authority must neither be about to come to it, nor have to come back to it.
/// Operator and agents ask this; so a person's word is refused before anything is written, and obeyed by nobody if it is written.
///
/// # Errors
///
/// [`Refusal::Needed`] says why.
pub fn may_be_dropped(authority: &Authority, place: &Place, handed_over: Option<Epoch>) -> Result<(), Refusal> {
    if authority.pending.as_ref().is_some_and(|p| p.to == *place) {
        return Err(Refusal::Needed { why: "authority is about to go to this copy: wait until the handoff has ended" });
    }
    if handed_over == Some(authority.epoch) && !authority.is_opened() {
        return Err(Refusal::Needed {
            why: "this copy handed over, and the new owner has not opened yet: authority may have to come back",
        });
    }
    Ok(())
}
