//! A Filesystem whose claim is deleted while snapshots of it are kept (phase `Headless`, csi.md §1): its head goes, its commits stay.
//!
//! (`CheckHeadless`) → *headless* → `WriteMeta` → `DropHead` → *head-dropped*. From *headless* on nothing mounts, fences or commits the head,
//! and a recorded intent goes through, as that of a deletion does. What runs on the head then ends by itself first.

use super::event::{Note, Out, Role, Task};
use super::record::{Base, RequestState};
use super::{Filesystem, Opening, Slot};
use crate::model::{Problem, Reason};

/// What there is, for people.
pub(super) const GONE: &str = "only snapshots are kept of this Filesystem: its files went with its Dot, the space with them";

impl Filesystem {
    /// The head goes, or has gone.
    pub(super) fn is_headless(&self) -> bool {
        self.base.as_ref().is_some_and(|b| b.headless)
    }

    /// And it was meant to.
    pub(super) fn has_only_commits(&self) -> bool {
        self.is_headless() && !self.head && !self.troubles.contains_key("HeadMissing")
    }

    /// The object says so, on any copy.
    pub(super) fn wants_no_head(&self) -> bool {
        self.present().is_some_and(|p| p.headless)
    }

    /// `true`: something of it runs or is waited for, and nothing else of the copy's life begins.
    pub(super) fn advance_headless(&mut self, base: &Base, out: &mut Out) -> bool {
        if base.role != Role::Owner || base.superseded {
            return false;
        }
        if base.headless {
            self.settle_head_missing(out);
            // fs.json says so first: who loses the journal finds why there is no head.
            if !self.head || self.meta_dirty {
                return false;
            }
            if !self.is_head_used() {
                self.start(Slot::Life, Task::DropHead, out);
            }
            return true;
        }
        let begins = self.may_lose_head();
        if begins {
            self.start(Slot::Life, Task::CheckHeadless, out);
        }
        begins
    }

    /// It is wanted, and neither a handoff, nor a reset, nor a commit that was asked for before has still to be done.
    fn may_lose_head(&self) -> bool {
        let Some(p) = self.present().filter(|p| p.headless && p.role == Role::Owner && p.move_to.is_none()) else { return false };
        let made = |uid| self.requests.get(&uid).is_some_and(|r| r.state != RequestState::Pending);
        let owed = p.commits.iter().any(|w| !w.remove && w.id.is_none() && !made(w.uid));
        !owed && self.migration.is_none() && !self.is_resetting()
    }

    fn is_head_used(&self) -> bool {
        let uses = |slot| matches!(slot, Slot::Head | Slot::Move | Slot::Mount(_));
        self.running.values().any(|r| uses(r.slot))
    }

    pub(super) fn on_headless_checked(&mut self, yes: bool, out: &mut Out) {
        if !yes {
            let text = "the Replica object says that only snapshots are kept, but the Filesystem is not in phase Headless: the head stays";
            return self.trouble("StaleIntent", Problem::new(Reason::Invalid, text), out);
        }
        self.clear("StaleIntent");
        self.clear("DeletionBlocked");
        if !self.may_lose_head() {
            return; // looked at again
        }
        self.save_base("headless", |b| (b.headless, b.opened) = (true, None), out);
        self.opening = Opening::Closed;
        self.won = None;
        self.meta_dirty = true;
    }

    /// The head is gone from disk.
    pub(super) fn on_head_let_go(&mut self, out: &mut Out) {
        (self.half_fenced, self.undo_fence) = (false, false);
        self.meta_dirty = true; // the limit may have gone for what was nested in it
        out.notes.push(Note { warning: false, reason: "Headless".into(), message: GONE.into() });
    }

    /// The object came back from a backup of before: nothing is made up in the place of what was deleted.
    fn settle_head_missing(&mut self, out: &mut Out) {
        match self.present().map(|p| p.headless) {
            Some(false) if !self.head => {
                let text = "its files were deleted with its Dot, and only its snapshots were kept: make a new volume from one of them";
                self.trouble("HeadMissing", Problem::new(Reason::NotFound, text), out);
            }
            _ => self.clear("HeadMissing"),
        }
    }
}
