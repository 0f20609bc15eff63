//! How this copy stands: its base row, which `fs.json` repeats, and whether the disk has been looked at. Each change is a step with a record of its
//! own; nobody writes a field of the row otherwise.

use super::event::Out;
use super::head::Won;
use super::record::{Base, Life, Opened, Record};
use crate::authority::{Authority, Seen};
use crate::format::Kind;
use crate::ids::{BootId, CommitId, Epoch, FsId};
use crate::model::{Origin, Problem, Reason};
use crate::words::{Present, Role};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Standing {
    id: FsId,
    /// The disk has been looked at.
    inspected: bool,
    /// Why the disk can't be looked at: a newer program wrote there.
    newer: Option<Problem>,
    /// Durable facts; `None`: nothing here.
    base: Option<Base>,
    /// `fs.json` or the limit is behind the base row.
    dirty: bool,
}

impl Standing {
    pub(super) const fn recovered(id: FsId, base: Option<Base>) -> Self {
        Self { id, inspected: false, newer: None, base, dirty: true }
    }

    // ---- views ----

    pub(super) const fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    pub(super) const fn is_inspected(&self) -> bool {
        self.inspected
    }

    /// `fs.json` or the limit has to be written.
    pub(super) const fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn life(&self) -> Option<Life> {
        self.base.as_ref().map(|b| b.life)
    }

    /// On disk and in use, as owner or replica.
    pub(super) fn is_active(&self) -> bool {
        self.inspected && self.life() == Some(Life::Active)
    }

    pub(super) fn is_deleting(&self) -> bool {
        matches!(self.life(), Some(Life::Deleting | Life::Gone))
    }

    pub(super) fn role(&self) -> Option<Role> {
        self.base.as_ref().map(|b| b.role)
    }

    pub(super) fn is_owner(&self) -> bool {
        self.role() == Some(Role::Owner)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.base.as_ref().map_or(Epoch(0), |b| b.epoch)
    }

    /// The newest that this copy has seen of authority.
    pub(super) fn seen(&self) -> Seen {
        Seen { epoch: self.epoch(), version: self.base.as_ref().and_then(|b| b.seen_version) }
    }

    pub(super) fn qgroup(&self) -> u64 {
        self.base.as_ref().map_or(0, |b| b.qgroup)
    }

    pub(super) fn origin(&self) -> Option<Origin> {
        self.base.as_ref().and_then(|b| b.origin)
    }

    /// The head is fenced with this final commit.
    pub(super) fn frozen(&self) -> Option<CommitId> {
        self.base.as_ref().and_then(|b| b.frozen)
    }

    /// The head is to be made from this commit.
    pub(super) fn head_from(&self) -> Option<CommitId> {
        self.base.as_ref().and_then(|b| b.head_from)
    }

    /// The head is to be replaced by this commit.
    pub(super) fn reset_to(&self) -> Option<Origin> {
        self.base.as_ref().and_then(|b| b.reset_to)
    }

    /// A reset has begun, and the new head is not recorded yet.
    pub(super) fn is_resetting(&self) -> bool {
        self.reset_to().is_some()
    }

    /// Authority went elsewhere without this copy's doing.
    pub(super) fn is_superseded(&self) -> bool {
        self.base.as_ref().is_some_and(|b| b.superseded)
    }

    /// The journal that knew of this owner was lost, and authority was not asked since (R8).
    pub(super) fn is_unsure(&self) -> bool {
        self.base.as_ref().is_some_and(|b| b.unsure)
    }

    /// Only its commits are kept: the head goes, or has gone.
    pub(super) fn is_headless(&self) -> bool {
        self.base.as_ref().is_some_and(|b| b.headless)
    }

    /// Jobs run where the Filesystem is owned and in use.
    pub(super) fn may_send(&self) -> bool {
        self.is_active() && self.is_owner() && !self.is_superseded()
    }

    /// Why nothing can be had of it here.
    pub(super) fn not_here(&self) -> Problem {
        if self.is_deleting() {
            return Problem::new(Reason::Deleting, "this Filesystem is being deleted here");
        }
        if let Some(why) = &self.newer {
            return why.clone();
        }
        Problem::new(Reason::NotPlaced, "no copy of this Filesystem is ready here yet; it follows its Replica object")
    }

    // ---- the disk ----

    pub(super) fn inspected(&mut self) {
        (self.inspected, self.newer) = (true, None);
    }

    /// It can't be looked at before this agent is upgraded: that is what requesters are told.
    pub(super) fn is_newer(&mut self, why: Problem) {
        self.newer = Some(why);
    }

    /// `fs.json` was written with that. What changed meanwhile is written next.
    pub(super) fn written(&mut self, written: &Base) {
        let same = |b: &Base| Base { frozen: written.frozen, opened: written.opened, seen_version: written.seen_version, ..b.clone() };
        let differs = |b: &Base| same(b) != *written;
        self.dirty = self.base.as_ref().is_some_and(differs);
    }

    /// The limit on disk may differ from what is wanted.
    pub(super) const fn soil(&mut self) {
        self.dirty = true;
    }

    // ---- steps, each with its record ----

    fn save(&mut self, name: &'static str, change: impl FnOnce(&mut Base), out: &mut Out) {
        if let Some(base) = &mut self.base {
            change(base);
            out.records.push(Record::Base(name, Box::new(base.clone())));
        }
    }

    fn replace(&mut self, name: &'static str, base: Base, out: &mut Out) {
        out.records.push(Record::Base(name, Box::new(base.clone())));
        self.base = Some(base);
    }

    /// Only the disk knows it (the journal was lost): an orphan until a Replica object says what it is for.
    pub(super) fn adopt(&mut self, on_disk: Base, out: &mut Out) {
        // Only the journal knew whether a handoff was under way.
        let unsure = on_disk.role == Role::Owner && on_disk.life == Life::Active;
        let on_disk = Base { unsure, ..on_disk };
        self.replace(if on_disk.life == Life::Deleting { "delete-intent" } else { "adopted" }, on_disk, out);
        self.dirty = false;
    }

    /// A copy is to be made, with that qgroup.
    pub(super) fn create(&mut self, qgroup: u64, p: &Present, out: &mut Out) {
        let base = Base { qgroup, epoch: p.epoch.max(self.epoch()), ..from_present(self.id, p) };
        self.replace("create-intent", base, out);
    }

    /// The copy is on disk; a clone with that many bytes that it shares with its origin.
    pub(super) fn created(&mut self, origin_bytes: Option<u64>, out: &mut Out) {
        let change = |b: &mut Base| {
            b.life = Life::Active;
            if let Some(bytes) = origin_bytes {
                (b.origin_bytes, b.shares_origin) = (bytes, true);
            }
        };
        self.save("created", change, out);
    }

    /// New limits and words of the spec go to the row at once, to disk by the next `WriteMeta`.
    pub(super) fn adopt_limits(&mut self, p: &Present, out: &mut Out) {
        let Some(b) = self.base.as_ref().filter(|b| b.life == Life::Active) else { return };
        let claim = p.claim.clone().or_else(|| b.claim.clone());
        let (fencing, reclaim_policy) = (p.fencing.clone(), p.reclaim_policy.clone());
        // Who measured it knows it best; others are told.
        let origin_bytes = if b.shares_origin || p.origin_bytes == 0 { b.origin_bytes } else { p.origin_bytes };
        let (capacity, history_limit) = (p.capacity, p.history_limit);
        let next = Base { claim, capacity, history_limit, origin_bytes, fencing, reclaim_policy, ..b.clone() };
        if next != *b {
            self.replace("spec", next, out);
            self.dirty = true;
        }
    }

    /// A read-only copy keeps the newest epoch that it was told of.
    pub(super) fn see_epoch(&mut self, epoch: Epoch, out: &mut Out) {
        if self.epoch() < epoch {
            self.save("epoch-seen", |b| b.epoch = epoch, out);
            self.dirty = true;
        }
    }

    /// `AuthOpen`: won for this epoch, in this boot.
    pub(super) fn opened(&mut self, won: Won, boot: BootId, used: bool, out: &mut Out) {
        let change = |b: &mut Base| {
            // Versions are compared within an epoch.
            let before = b.seen_version.filter(|_| b.epoch == won.epoch);
            b.seen_version = before.max(won.version);
            b.epoch = b.epoch.max(won.epoch);
            b.attempt = won.attempt;
            b.opened = Some(Opened { epoch: won.epoch, boot, used });
        };
        self.save("auth-open", change, out);
    }

    /// Something is mounted under the opening: a restart in this boot may mount more without winning it anew.
    pub(super) fn used(&mut self, out: &mut Out) {
        self.save("auth-used", |b| b.opened = b.opened.map(|o| Opened { used: true, ..o }), out);
    }

    /// A restart in this boot must not take the opening up again.
    pub(super) fn closed(&mut self, out: &mut Out) {
        if self.base.as_ref().is_some_and(|b| b.opened.is_some()) {
            self.save("auth-closed", |b| b.opened = None, out);
        }
    }

    /// The head is fenced, and what it holds is that commit; with `reset_to` it is to be replaced.
    pub(super) fn fenced(&mut self, record: &'static str, id: CommitId, reset_to: Option<Origin>, out: &mut Out) {
        self.save(record, |b| (b.frozen, b.opened, b.reset_to) = (Some(id), None, reset_to), out);
    }

    /// The head is, or may be, writable again: the fence's commit says nothing of it any more.
    pub(super) fn thawed(&mut self, record: &'static str, out: &mut Out) {
        self.save(record, |b| b.frozen = None, out);
    }

    /// The new head is there.
    pub(super) fn reset_done(&mut self, out: &mut Out) {
        self.save("reset-done", |b| (b.reset_to, b.frozen) = (None, None), out);
    }

    /// The head was made from the commit that it was to be made from.
    pub(super) fn head_made(&mut self, out: &mut Out) {
        self.save("head-made", |b| b.head_from = None, out);
    }

    /// The head is gone from disk.
    pub(super) fn head_dropped(&mut self, out: &mut Out) {
        self.save("head-dropped", |b| b.frozen = None, out);
    }

    /// Only commits are kept from now on.
    pub(super) fn behead(&mut self, out: &mut Out) {
        self.save("headless", |b| (b.headless, b.opened) = (true, None), out);
        self.dirty = true;
    }

    /// `EImportFinish(true)`: the owner from now on, with a head to be made from that commit.
    pub(super) fn take_over(&mut self, from: CommitId, now: &Authority, out: &mut Out) {
        let change = |b: &mut Base| {
            b.role = Role::Owner;
            (b.epoch, b.attempt) = (now.epoch, now.attempt);
            (b.opened, b.frozen) = (None, None);
            b.shares_origin = false; // what was written anew elsewhere has come back as its own
            b.head_from = Some(from);
        };
        self.save("import-finish", change, out);
        self.dirty = true;
    }

    /// Handed over: a replica from now on.
    pub(super) fn hand_over(&mut self, now: &Authority, out: &mut Out) {
        let change = |b: &mut Base| {
            b.role = Role::Replica;
            b.epoch = b.epoch.max(now.epoch);
            b.attempt = now.attempt;
            b.opened = None;
        };
        self.save("mig-committed", change, out);
        self.dirty = true;
    }

    /// Authority went elsewhere without us.
    pub(super) fn supersede(&mut self, epoch: Epoch, out: &mut Out) {
        let change = |b: &mut Base| {
            (b.superseded, b.unsure) = (true, false);
            (b.epoch, b.opened) = (b.epoch.max(epoch), None);
        };
        self.save("superseded", change, out);
        self.dirty = true;
    }

    /// Authority was asked since the journal was lost.
    pub(super) fn sure(&mut self, out: &mut Out) {
        self.save("sure", |b| b.unsure = false, out);
    }

    /// It came back, by a person's word.
    pub(super) fn reinstate(&mut self, out: &mut Out) {
        self.save("reinstated", |b| b.superseded = false, out);
    }

    /// It goes.
    pub(super) fn delete(&mut self, out: &mut Out) {
        self.save("delete-intent", |b| b.life = Life::Deleting, out);
    }

    /// What the journal says is deleted came back with a power cut: it is deleted again (storage.md §2).
    pub(super) fn delete_again(&mut self, qgroup: u64, out: &mut Out) {
        self.save("delete-intent", |b| (b.life, b.qgroup) = (Life::Deleting, qgroup), out);
    }

    /// Nothing of it is on disk; `origin`: whom to tell still.
    pub(super) fn gone(&mut self, epoch: Epoch, origin: Option<Origin>, out: &mut Out) {
        self.replace("deleted", Base { life: Life::Gone, epoch, origin, ..blank(self.id, Role::Replica) }, out);
    }

    /// The origin's owner was told.
    pub(super) fn origin_unpinned(&mut self, out: &mut Out) {
        self.save("origin-unpinned", |b| b.origin = None, out);
    }

    /// The tombstone goes too.
    pub(super) fn forget(&mut self, out: &mut Out) {
        out.records.push(Record::Forget);
        self.base = None;
    }
}

/// A base row with nothing in it.
fn blank(id: FsId, role: Role) -> Base {
    Base {
        version: Kind::Base.newest(),
        fs_id: id,
        role,
        life: Life::Creating,
        qgroup: 0,
        claim: None,
        origin: None,
        capacity: 0,
        history_limit: 0,
        origin_bytes: 0,
        shares_origin: false,
        fencing: "Proof".into(),
        reclaim_policy: "Delete".into(),
        epoch: Epoch(0),
        attempt: 0,
        opened: None,
        frozen: None,
        head_from: None,
        reset_to: None,
        seen_version: None,
        superseded: false,
        unsure: false,
        headless: false,
    }
}

fn from_present(id: FsId, p: &Present) -> Base {
    Base {
        claim: p.claim.clone(),
        origin: p.origin,
        capacity: p.capacity,
        history_limit: p.history_limit,
        origin_bytes: p.origin_bytes,
        fencing: p.fencing.clone(),
        reclaim_policy: p.reclaim_policy.clone(),
        epoch: p.epoch,
        ..blank(id, p.role)
    }
}
