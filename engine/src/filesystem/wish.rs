//! What is wanted of this copy: the Replica object as it was last seen, and whether there is one. Nothing here is ever an intent to delete by
//! being absent.

use super::event::Here;
use crate::ids::{Epoch, RequestUid};
use crate::model::Place;
use crate::words::{Desired, Intent, Present, Role, WantedCommit};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Wish {
    desired: Option<Desired>,
    /// A Replica object exists; `false` makes this copy an orphan.
    managed: bool,
    /// The Replica object was seen to go.
    vanished: bool,
    /// `Absent` was checked against the API and may be obeyed.
    absent_confirmed: bool,
}

/// What is new about a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changed {
    /// It should move elsewhere than before, or nowhere any more.
    pub(super) destination: bool,
}

impl Wish {
    // ---- views ----

    pub(super) fn present(&self) -> Option<&Present> {
        match self.desired.as_ref().map(|d| &d.intent) {
            Some(Intent::Present(p)) => Some(p),
            _ => None,
        }
    }

    /// The epoch in which the operator wanted it gone.
    pub(super) fn absent(&self) -> Option<Epoch> {
        match self.desired.as_ref().map(|d| &d.intent) {
            Some(Intent::Absent { epoch }) => Some(*epoch),
            _ => None,
        }
    }

    /// `metadata.generation` of the Replica; 0: none seen.
    pub(super) fn generation(&self) -> i64 {
        self.desired.as_ref().map_or(0, |d| d.generation)
    }

    /// Something is known of what is wanted.
    pub(super) const fn is_known(&self) -> bool {
        self.desired.is_some()
    }

    pub(super) const fn is_managed(&self) -> bool {
        self.managed
    }

    pub(super) const fn has_vanished(&self) -> bool {
        self.vanished
    }

    pub(super) const fn is_absence_confirmed(&self) -> bool {
        self.absent_confirmed
    }

    pub(super) fn role(&self) -> Option<Role> {
        self.present().map(|p| p.role)
    }

    pub(super) fn commits(&self) -> &[WantedCommit] {
        self.present().map(|p| p.commits.as_slice()).unwrap_or_default()
    }

    /// An object asks for that commit still.
    pub(super) fn wants(&self, uid: RequestUid) -> bool {
        self.commits().iter().any(|c| c.uid == uid && !c.remove)
    }

    /// Who is to be owner instead.
    pub(super) fn move_to(&self, here: &Here) -> Option<&Place> {
        self.present().and_then(|p| p.move_to.as_ref()).filter(|to| to.node != here.place.node)
    }

    /// The copy to keep close behind.
    pub(super) fn precopy_to(&self, here: &Here) -> Option<&Place> {
        self.present().and_then(|p| p.precopy_to.as_ref()).filter(|to| to.node != here.place.node)
    }

    /// Its claim is deleted, and only its commits are kept.
    pub(super) fn is_headless(&self) -> bool {
        self.present().is_some_and(|p| p.headless)
    }

    // ---- changes ----

    /// The object as it is now; `None`: it says what it said before.
    pub(super) fn take(&mut self, desired: Desired) -> Option<Changed> {
        (self.managed, self.vanished) = (true, false);
        if self.desired.as_ref() == Some(&desired) {
            return None;
        }
        let destination = |d: &Desired| match &d.intent {
            Intent::Present(p) => p.move_to.clone(),
            Intent::Absent { .. } => None,
        };
        let changed = Changed { destination: self.desired.as_ref().and_then(destination) != destination(&desired) };
        self.absent_confirmed = false;
        self.desired = Some(desired);
        Some(changed)
    }

    /// The object is gone.
    pub(super) fn vanish(&mut self) {
        *self = Self { vanished: true, ..Self::default() };
    }

    /// `Absent` may be obeyed.
    pub(super) const fn confirm_absence(&mut self) {
        self.absent_confirmed = true;
    }
}
