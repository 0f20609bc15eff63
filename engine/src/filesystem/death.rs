//! The end of a copy: a recorded intent, then nothing of it is left on disk, in the journal or in the API.
//!
//! `CheckDeleting` → *delete-intent* → cancel and await all → `WriteMeta` → `Destroy` → *deleted* → `UnpinOrigin` → *forget*

use super::Filesystem;
use super::event::{Answer, Out, Task};
use super::record::{Life, Record};
use super::tasks::Slot;
use super::trouble::Trouble;
use crate::authority::verdict::{self, Leaving};
use crate::authority::{Read, Refusal};
use crate::ids::Epoch;
use crate::model::{Problem, Reason};
use crate::words::Role;

impl Filesystem {
    pub(super) fn on_vanished(&mut self, out: &mut Out) {
        self.wish.vanish();
        if self.is_tombstone() && self.standing.is_inspected() {
            self.standing.forget(out);
        }
    }

    /// Deleted, and whoever had to hear of it has.
    fn is_tombstone(&self) -> bool {
        self.standing.life() == Some(Life::Gone) && self.life.unpin().is_none()
    }

    /// The object is gone and nothing is here: the actor ends, once nothing runs any more.
    pub(super) fn finish_if_over(&mut self, out: &mut Out) {
        if !self.wish.has_vanished() || !self.standing.is_inspected() || !self.tasks.is_idle() {
            return;
        }
        if self.is_tombstone() {
            self.standing.forget(out);
        }
        out.finished = self.standing.base().is_none();
    }

    pub(super) fn advance_deletion(&mut self, epoch: Epoch, out: &mut Out) {
        let Some(base) = self.standing.base() else {
            // Nothing was ever here: only the tombstone is written, so that a late create can't begin.
            return self.standing.gone(epoch, None, out);
        };
        match base.life {
            Life::Gone => self.advance_gone(out),
            Life::Deleting => self.advance_destroy(out),
            Life::Creating | Life::Active => {
                // Always: who told it may have known an older time, or not of a handoff.
                if !self.wish.is_absence_confirmed() {
                    return self.tasks.start(Slot::Life, Task::CheckDeleting, out);
                }
                self.troubles.clear(Trouble::StaleIntent);
                self.standing.delete(out);
                self.advance_destroy(out);
            }
        }
    }

    /// Cancels all that runs, waits for it, then destroys. Mounts make `Destroy` itself refuse; it is tried again.
    pub(super) fn advance_destroy(&mut self, out: &mut Out) {
        let problem = self.standing.not_here();
        self.mounts.refuse_all(&problem, out);
        self.head.answer_all(&Answer::Fenced(Err(problem)), out);
        let nothing_runs = self.tasks.cancel_all(out);
        self.outbox.clear();
        if !nothing_runs {
            return;
        }
        let task = match self.standing.base() {
            Some(base) if !self.life.is_deletion_on_disk() => Task::WriteMeta(Box::new(base.clone())),
            _ => Task::Destroy { qgroup: self.standing.qgroup() },
        };
        self.tasks.start(Slot::Life, task, out);
    }

    pub(super) fn advance_gone(&mut self, out: &mut Out) {
        if let Some(origin) = self.life.unpin() {
            self.tasks.start(Slot::Life, Task::UnpinOrigin(origin), out);
        } else if self.wish.present().is_some() {
            // Wanted again before the object went. A replica is copied anew; an owner is made only in phase `New`, as ever.
            self.tasks.start(Slot::Life, Task::AllocateQgroup, out);
        }
    }

    pub(super) fn on_destroyed(&mut self, out: &mut Out) {
        let (origin, epoch) = (self.standing.origin(), self.standing.epoch());
        self.life.gone(origin);
        out.records.push(Record::Forget);
        self.standing.gone(epoch, origin, out);
        self.head.clear();
        self.history.clear();
        self.inbox.clear();
        self.outbox.clear();
        self.handoff.clear();
        self.mounts.clear();
        self.troubles.clear_all();
        self.usage.clear();
        out.note("Deleted", "all of it is off this node's pool");
    }

    /// Whether this copy, which is told to go, may delete what it has, by what authority says.
    pub(super) fn may_go(&self, read: Option<&Read>) -> Result<(), Refusal> {
        let Some((base, told)) = self.standing.base().zip(self.wish.absent()) else { return Ok(()) };
        let leaving = Leaving {
            owner: base.role == Role::Owner && !base.superseded,
            importing: self.handoff.import_start().is_some(),
            handed_over: self.handoff.handed_over(),
            epoch: base.epoch,
            told,
        };
        verdict::may_go(read, &self.here.place, leaving)
    }

    pub(super) fn on_absence_checked(&mut self, read: Option<&Read>, out: &mut Out) {
        match self.may_go(read) {
            Ok(()) => {
                self.wish.confirm_absence();
                self.troubles.clear(Trouble::StaleIntent);
            }
            Err(refusal) => {
                let text = format!("the Replica object says Absent, and the Filesystem is not being deleted: {refusal}");
                self.troubles.raise(Trouble::StaleIntent, Problem::new(Reason::Invalid, text), out);
            }
        }
    }
}
