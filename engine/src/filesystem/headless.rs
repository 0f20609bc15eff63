//! A Filesystem whose claim is deleted while snapshots of it are kept (phase `Headless`, csi.md §1): its head goes, its commits stay.
//!
//! (`CheckHeadless`) → *headless* → `WriteMeta` → `DropHead` → *head-dropped*. From *headless* on nothing mounts, fences or commits the head,
//! and a recorded intent goes through, as that of a deletion does. What runs on the head then ends by itself first.

use super::Filesystem;
use super::event::{Out, Task};
use super::record::Base;
use super::tasks::Slot;
use super::trouble::Trouble;
use crate::model::{Problem, Reason};
use crate::words::Role;

/// What there is, for people.
pub(super) const GONE: &str = "only snapshots are kept of this Filesystem: its files went with its Dot, the space with them";

impl Filesystem {
    /// The head has gone, and was meant to.
    pub(super) fn has_only_commits(&self) -> bool {
        self.standing.is_headless() && !self.head.is_there() && self.troubles.get(Trouble::HeadMissing).is_none()
    }

    /// `true`: something of it runs or is waited for, and nothing else of the copy's life begins.
    pub(super) fn advance_headless(&mut self, base: &Base, out: &mut Out) -> bool {
        if base.role != Role::Owner || base.superseded {
            return false;
        }
        if base.headless {
            self.settle_head_missing(out);
            // fs.json says so first: who loses the journal finds why there is no head.
            if !self.head.is_there() || self.standing.is_dirty() {
                return false;
            }
            if !self.is_head_used() {
                self.tasks.start(Slot::Life, Task::DropHead, out);
            }
            return true;
        }
        let begins = self.may_lose_head();
        if begins {
            self.tasks.start(Slot::Life, Task::CheckHeadless, out);
        }
        begins
    }

    /// It is wanted, and neither a handoff, nor a reset, nor a commit that was asked for before has still to be done.
    fn may_lose_head(&self) -> bool {
        let wanted = self.wish.present().filter(|p| p.headless && p.role == Role::Owner && p.move_to.is_none());
        let Some(p) = wanted else { return false };
        let owed = p.commits.iter().any(|w| !w.remove && w.id.is_none() && self.history.is_open(w.uid));
        !owed && !self.handoff.is_in_hand() && !self.standing.is_resetting()
    }

    fn is_head_used(&self) -> bool {
        self.tasks.runs(|slot, _| matches!(slot, Slot::Head | Slot::Look | Slot::Freeze | Slot::Move | Slot::Mount(_)))
    }

    pub(super) fn on_headless_checked(&mut self, yes: bool, out: &mut Out) {
        if !yes {
            let text = "the Replica object says that only snapshots are kept, but the Filesystem is not in phase Headless: the head stays";
            return self.troubles.raise(Trouble::StaleIntent, Problem::new(Reason::Invalid, text), out);
        }
        self.troubles.clear(Trouble::StaleIntent);
        self.troubles.clear(Trouble::DeletionBlocked);
        if !self.may_lose_head() {
            return; // looked at again
        }
        self.standing.behead(out);
        self.head.close();
    }

    /// The head is gone from disk.
    pub(super) fn on_head_let_go(&mut self, out: &mut Out) {
        self.head.settle();
        self.standing.soil(); // the limit may have gone for what was nested in it
        out.note("Headless", GONE);
    }

    /// The object came back from a backup of before: nothing is made up in the place of what was deleted.
    fn settle_head_missing(&mut self, out: &mut Out) {
        match self.wish.present().map(|p| p.headless) {
            Some(false) if !self.head.is_there() => {
                let text = "its files were deleted with its Dot, and only its snapshots were kept: make a new volume from one of them";
                self.troubles.raise(Trouble::HeadMissing, Problem::new(Reason::NotFound, text), out);
            }
            _ => self.troubles.clear(Trouble::HeadMissing),
        }
    }
}
