//! Commits here that other Filesystems of this node start from, and the commit that this one starts from.
//!
//! A pin is what an origin remembers of a clone's need; the need itself is a fact of the clone. So nothing depends on a clone's word
//! that it needs its origin no more, which may be lost with either agent, or never be said at all: once a removal waits for pins, their
//! clones are asked (`AskClones`), again and again, and a pin that no clone owns up to goes. A clone pins before it makes its head, and
//! a Branch once more after each start, for pins get lost with a journal (ADR 23).

use std::collections::BTreeMap;

use super::Filesystem;
use super::event::{Answer, Ctx, Out, Task};
use super::record::{Base, Life, RequestState};
use super::tasks::Slot;
use crate::ids::{CommitId, FsId};
use crate::model::{Origin, Problem, Reason};
use crate::words::{ReqId, Role};

impl Filesystem {
    // ---- the origin ----

    pub(super) fn handle_pin_origin(&mut self, req: ReqId, by: FsId, commit: CommitId, out: &mut Out) {
        let answer = if !self.standing.is_active() {
            Err(self.standing.not_here())
        } else if self.history.has_for_use(commit) {
            self.history.pin_origin(by, commit, out);
            Ok(())
        } else {
            Err(Problem::new(Reason::NotFound, format!("commit {commit} of Filesystem {} is not on this node", self.id)))
        };
        out.answers.push((req, Answer::Plain(answer)));
    }

    /// The clone says so by itself: what waits for it goes on at once.
    pub(super) fn on_unpin_origin(&mut self, by: FsId, out: &mut Out) {
        self.history.unpin_origin(by, out);
    }

    /// Pins that a removal waits for are held against what their clones say.
    pub(super) fn advance_pins(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.tasks.is_ready(Slot::Pins, ctx.boot) {
            return;
        }
        let waits = |c: CommitId| self.history.requests().any(|r| r.id == c && r.state == RequestState::Removing);
        let pins: BTreeMap<FsId, CommitId> = self.history.origin_pins().filter(|(_, c)| waits(*c)).collect();
        if !pins.is_empty() {
            self.history.ask_about_pins();
            self.tasks.start(Slot::Pins, Task::AskClones(pins), out);
        }
    }

    /// `unneeded`: clones that don't start from here, or are no more. What one has pinned since it was asked stays.
    pub(super) fn on_clones_asked(&mut self, unneeded: Vec<FsId>, out: &mut Out) {
        for by in unneeded {
            if !self.history.is_pinned_anew(by) {
                self.history.unpin_origin(by, out);
            }
        }
    }

    // ---- the clone ----

    /// Whether this Filesystem starts from that commit, and needs it still.
    pub(super) fn handle_starts_from(&mut self, req: ReqId, origin: Origin, out: &mut Out) {
        let answer = if self.standing.is_inspected() {
            let needed = self.starts_from(origin);
            if !needed {
                self.life.origin_let_go(); // the pin may go now
            }
            Ok(needed)
        } else {
            Err(Problem::new(Reason::Busy, "the disk hasn't been looked at yet"))
        };
        out.answers.push((req, Answer::StartsFrom(answer)));
    }

    fn starts_from(&self, origin: Origin) -> bool {
        let Some(base) = self.standing.base().filter(|b| b.origin == Some(origin)) else { return false };
        match base.life {
            Life::Creating | Life::Deleting => true,
            Life::Active => !is_clone(base) || !self.life.is_origin_settled() || self.is_reset_to(origin),
            Life::Gone => false,
        }
    }

    /// A reset to it is wanted or in hand.
    fn is_reset_to(&self, origin: Origin) -> bool {
        let wanted = self.wish.commits().iter().any(|w| !w.remove && w.reset_to == Some(origin));
        wanted || self.standing.reset_to() == Some(origin) || self.history.pending().any(|r| r.reset_to == Some(origin))
    }

    /// Once per start, when there is nothing else to do: a Dot lets its origin go, a Branch pins it. `None`: that is done.
    pub(super) fn origin_task(&self, base: &Base) -> Option<Task> {
        let origin = base.origin.filter(|_| base.role == Role::Owner && !self.life.is_origin_settled())?;
        Some(if is_clone(base) { Task::UnpinOrigin(origin) } else { Task::PinOrigin(origin) })
    }
}

/// A Dot that started from a commit has a life of its own: once its head is there it needs that commit no more. A Branch keeps it, to
/// be merged back.
fn is_clone(base: &Base) -> bool {
    base.claim.as_ref().is_some_and(|c| c.kind == "Dot")
}
