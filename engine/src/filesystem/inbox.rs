//! Taking a commit from a peer: one transfer at a time, its checkpoints, and the leftovers of earlier ones. The bytes never come through here.
//! What may be taken at all is decided in [`super::receive`].
//!
//! *receive-intent* → stream, with *receive-checkpoint*s → `snapshot -r` → *received* (the commit, and the end of the
//! receive, in one transaction) → ack. A crash in between: what is complete on disk is taken in, else the last
//! checkpoint is where it goes on.

use std::collections::BTreeSet;

use super::event::{Out, Task};
use super::record::{CheckpointRow, PartialRow, Record};
use super::standing::Standing;
use super::tasks::{Desk, Slot, Tasks};
use crate::format::Kind;
use crate::ids::CommitId;
use crate::model::{Problem, Reason, ResumeToken};
use crate::words::{Offer, ReqId};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Inbox {
    partial: Option<PartialRow>,
    checkpoint: Option<CheckpointRow>,
    discard: BTreeSet<CommitId>,
}

impl Inbox {
    pub(super) const fn recovered(partial: Option<PartialRow>, checkpoint: Option<CheckpointRow>) -> Self {
        Self { partial, checkpoint, discard: BTreeSet::new() }
    }

    // ---- views ----

    /// What is coming, or has stopped half-way, and how many bytes of its stream are safe.
    pub(super) fn coming(&self) -> Option<(CommitId, u64)> {
        self.partial.as_ref().map(|p| (p.target.id, self.checkpoint.as_ref().map_or(0, |c| c.token.offset)))
    }

    /// The base of that.
    pub(super) fn base(&self) -> Option<CommitId> {
        self.partial.as_ref().and_then(|p| p.base)
    }

    /// Where a sender can go on.
    pub(super) fn resume(&self) -> Option<ResumeToken> {
        self.checkpoint.as_ref().map(|c| c.token.clone())
    }

    /// Whether the leftovers of earlier transfers allow this one.
    pub(super) fn checked(&self, offer: &Offer) -> Result<(), Problem> {
        if self.discard.contains(&offer.target.id) {
            return Err(Problem::new(Reason::Busy, "an older partial transfer is being cleared away"));
        }
        Ok(())
    }

    /// A sender that goes on from an older point of this very transfer listed versions before the last checkpoint: it has to list again, as
    /// starting anew would send all of it twice.
    pub(super) fn checked_resume(&self, offer: &Offer) -> Result<(), Problem> {
        match (&self.checkpoint, &offer.resume) {
            (Some(here), Some(asked)) if here.token != *asked && here.token.target == offer.target.id && here.token.base == offer.base => {
                Err(Problem::new(
                    Reason::BaseGone,
                    format!("this replica is at byte {} of it, not at {}; list versions and plan again", here.token.offset, asked.offset),
                ))
            }
            _ => Ok(()),
        }
    }

    // ---- one transfer ----

    /// It may come.
    pub(super) fn admit(&mut self, req: ReqId, offer: Offer, qgroup: u64, desk: &mut Desk<'_>) {
        let partial = PartialRow { version: Kind::Partial.newest(), target: offer.target.clone(), base: offer.base };
        let here = self.checkpoint.as_ref().map(|c| &c.token);
        let goes_on = here.is_some_and(|t| offer.resume.as_ref() == Some(t) && t.target == offer.target.id && t.base == offer.base);
        let checkpoint = if goes_on { self.checkpoint.clone().map(Box::new) } else { None };
        if self.partial.as_ref() != Some(&partial) || !goes_on {
            if let Some(old) = self.partial.take()
                && old.target.id != partial.target.id
            {
                self.discard.insert(old.target.id);
            }
            self.checkpoint = None;
            desk.out.records.push(Record::PartialGone);
            desk.out.records.push(Record::Partial(Box::new(partial.clone())));
            self.partial = Some(partial);
        }
        desk.start(Slot::Receive, Task::Receive { req, qgroup, offer: Box::new(offer), checkpoint });
    }

    /// It has got that far, durably.
    pub(super) fn on_checkpoint(&mut self, row: CheckpointRow, out: &mut Out) {
        out.records.push(Record::Checkpoint(Box::new(row.clone())));
        self.checkpoint = Some(row);
    }

    /// It is there, and recorded by who keeps commits.
    pub(super) fn on_received(&mut self, target: CommitId, out: &mut Out) {
        self.end(target, out);
    }

    /// It is not. What is wrong with the bytes can't be mended by going on from them.
    pub(super) fn on_failed(&mut self, target: CommitId, reason: Reason, out: &mut Out) {
        if matches!(reason, Reason::CorruptStream | Reason::DigestMismatch | Reason::Unsupported) {
            self.end(target, out);
        }
    }

    /// What arrives of a commit that is to be removed is given up; true while it may still arrive.
    pub(super) fn stops(&mut self, id: CommitId, tasks: &mut Tasks, out: &mut Out) -> bool {
        if self.partial.as_ref().is_none_or(|p| p.target.id != id) {
            return false;
        }
        if tasks.is_running(Slot::Receive) {
            tasks.cancel(Slot::Receive, out);
            return true;
        }
        self.end(id, out);
        false
    }

    /// This copy takes nothing more: it is an owner's now.
    pub(super) fn close(&mut self, out: &mut Out) {
        if let Some(id) = self.partial.as_ref().map(|p| p.target.id) {
            self.end(id, out);
        }
    }

    fn end(&mut self, target: CommitId, out: &mut Out) {
        self.partial = None;
        self.checkpoint = None;
        self.discard.insert(target);
        out.records.push(Record::PartialGone);
    }

    /// All of it is off the disk.
    pub(super) fn clear(&mut self) {
        *self = Self::recovered(None, None);
    }

    // ---- leftovers ----

    pub(super) fn advance_discard(&self, standing: &Standing, desk: &mut Desk<'_>) {
        if standing.is_deleting() || !standing.is_inspected() || !desk.is_ready(Slot::Discard) {
            return;
        }
        let receiving = self.partial.as_ref().map(|p| p.target.id).filter(|_| desk.tasks.is_running(Slot::Receive));
        if let Some(target) = self.discard.iter().copied().find(|t| Some(*t) != receiving) {
            desk.start(Slot::Discard, Task::Discard(target));
        }
    }

    pub(super) fn on_discarded(&mut self, target: CommitId) {
        self.discard.remove(&target);
    }

    /// After a restart: partials that the journal does not know, or whose checkpoint is not on disk, are cleared away.
    pub(super) fn reconcile(
        &mut self,
        is_here: impl Fn(CommitId) -> bool,
        checkpoints: &[(CommitId, u64)],
        incoming: &[CommitId],
        out: &mut Out,
    ) {
        let arrived = self.partial.as_ref().is_some_and(|p| is_here(p.target.id));
        let lost = self.checkpoint.as_ref().is_some_and(|c| !checkpoints.contains(&(c.token.target, c.token.offset)));
        if arrived || (self.partial.is_some() && (lost || self.checkpoint.is_none())) {
            self.partial = None;
            self.checkpoint = None;
            out.records.push(Record::PartialGone);
        }
        let keep = self.partial.as_ref().map(|p| p.target.id);
        let strays = incoming.iter().copied().chain(checkpoints.iter().map(|(t, _)| *t)).filter(|t| Some(*t) != keep);
        self.discard.extend(strays);
    }
}
