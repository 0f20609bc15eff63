//! Whose word counts for a copy: who may send to it, hand authority over to it, and list it. What it goes by is the Replica object,
//! which only the operator writes. Nothing that a peer says raises the epoch or changes who is heard: a node that was broken into
//! can't write other nodes' copies (security.md: "identity and grant checked on every stream and again when a grant changes").
//!
//! A node that isn't the owner's is refused for now, not for good: a new owner may be known here a moment later.

use super::Filesystem;
use super::event::{Out, Task};
use super::tasks::Slot;
use crate::ids::{Epoch, NodeName};
use crate::model::{Problem, Reason};
use crate::words::{Present, Role};

impl Present {
    /// Whether that node may send here; an object without `owner`, of an older operator, allows any.
    fn may_send(&self, from: &NodeName) -> bool {
        self.owner.as_ref().is_none_or(|owner| owner.node == *from)
    }

    /// Whether `from` may send in `epoch`. `known` is the newest epoch that the object has named.
    fn checked_sender(&self, from: &NodeName, epoch: Epoch, known: Epoch) -> Result<(), Problem> {
        let Some(owner) = &self.owner else { return Ok(()) };
        if owner.node != *from {
            let text = format!(
                "node {from} may not send to this copy: its Replica says that node {} owns the Filesystem, in epoch {}; if that has \
                 just changed, this node hears of it soon",
                owner.node, self.epoch
            );
            return Err(Problem::new(Reason::NotOwner, text));
        }
        if epoch > known {
            let text = format!("epoch {epoch} is not known here: the Replica of this copy says {known}; it follows soon, if there is one");
            return Err(Problem::new(Reason::NotOwner, text));
        }
        Ok(())
    }

    /// Whether `from` may see which commits are here: the owner, and nodes with a copy of their own.
    fn checked_lister(&self, from: &NodeName) -> Result<(), Problem> {
        let any = self.role == Role::Replica && self.owner.is_none();
        if any || self.peers.contains(from) || self.owner.as_ref().is_some_and(|o| o.node == *from) {
            return Ok(());
        }
        let text = format!("node {from} has no copy of this Filesystem, as far as the Replica here says");
        Err(Problem::new(Reason::NotOwner, text))
    }
}

impl Filesystem {
    /// Without an object nobody is known that could send. What an owner's copy says to a sender is said elsewhere.
    pub(super) fn checked_sender(&self, from: &NodeName, epoch: Epoch) -> Result<(), Problem> {
        let present = self.wish.present().ok_or_else(|| self.standing.not_here())?;
        present.checked_sender(from, epoch, self.standing.epoch())
    }

    /// Whether `from` may hand authority over. What is to be the owner's already waits for what authority says, and takes no handoff
    /// from anyone: it would choose the commit to start from.
    pub(super) fn checked_giver(&self, from: &NodeName, epoch: Epoch) -> Result<(), Problem> {
        if self.wish.role() == Some(Role::Owner) {
            return Err(Problem::new(Reason::Busy, "this copy is to be the owner's already, without a handoff"));
        }
        self.checked_sender(from, epoch)
    }

    /// Whether `from` may see what is here.
    pub(super) fn checked_lister(&self, from: &NodeName) -> Result<(), Problem> {
        self.wish.present().ok_or_else(|| self.standing.not_here())?.checked_lister(from)
    }

    /// The object has changed: a transfer of a node that is no owner any more ends.
    pub(super) fn recheck_sender(&mut self, out: &mut Out) {
        let Some(p) = self.wish.present() else { return };
        // An owner's own object names no owner: what it fetches from a copy goes on.
        if self.tasks.runs(|_, task| matches!(task, Task::Receive { offer, .. } if !p.may_send(&offer.from))) {
            self.tasks.cancel(Slot::Receive, out);
        }
    }

    /// A read-only copy learns of epochs by its object. It keeps the newest, so that after an API server was restored to an earlier
    /// time it takes nothing of an owner before.
    pub(super) fn advance_epoch(&mut self, out: &mut Out) {
        let named = self.wish.present().filter(|p| p.role == Role::Replica).map_or(Epoch(0), |p| p.epoch);
        if self.standing.is_active() && self.standing.role() == Some(Role::Replica) {
            self.standing.see_epoch(named, out);
        }
    }
}
