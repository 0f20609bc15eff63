//! Birth, recovery, opening and death of a copy.
//!
//! - Owner, new: `AllocateQgroup` → *create-intent* → `Open` (R0; only phase `New` may be created empty) → *auth-open* →
//!   `PinOrigin` → `Prepare` → `CreateHead` → *created* → `WriteMeta`; of a Dot → `UnpinOrigin`
//! - Replica, new: `AllocateQgroup` → *create-intent* → `Prepare` → *created*
//! - Owner, known: `Open` once per boot → `WriteMeta` → *auth-open*
//! - Reset: *reset-begun* → `DropHead` → `CreateHead` → *reset-done* ([`super::reset`])
//! - Headless: `CheckHeadless` → *headless* → `WriteMeta` → `DropHead` → *head-dropped* ([`super::headless`])
//! - Deletion: (`CheckDeleting`) → *delete-intent* → cancel and await all → `WriteMeta` → `Destroy` → *deleted* → `UnpinOrigin` →
//!   *forget*

use super::event::{Ctx, Desired, Found, Intent, Note, Out, Present, Role, Task, TaskDone};
use super::record::{Base, Life, Opened, Record};
use super::{Filesystem, Opening, Slot};
use crate::ids::{BootTime, Epoch};
use crate::model::{FORMAT_VERSION, Origin, Problem, Reason};

/// The CAS of R0 was won.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Won {
    epoch: Epoch,
    attempt: u64,
    sent: BootTime,
}

impl Filesystem {
    pub(super) fn on_desired(&mut self, desired: Desired, out: &mut Out) {
        let changed = self.desired.as_ref() != Some(&desired);
        self.managed = true;
        self.vanished = false;
        if !changed {
            return;
        }
        let wish = |d: &Desired| match &d.intent {
            Intent::Present(p) => p.move_to.clone(),
            Intent::Absent { .. } => None,
        };
        if self.desired.as_ref().and_then(wish) != wish(&desired) {
            self.backoff.remove(&Slot::MoveBegin);
        }
        self.absent_confirmed = false;
        self.clear("StaleIntent"); // of an intent that was taken back
        self.desired = Some(desired);
        self.recheck_sender(out);
        self.specs_applied = false;
        for slot in [Slot::Life, Slot::Head, Slot::Move] {
            self.wake(slot);
        }
        self.adopt_limits(out);
    }

    pub(super) fn on_vanished(&mut self, out: &mut Out) {
        self.managed = false;
        self.vanished = true;
        self.desired = None;
        self.absent_confirmed = false;
        if self.life() == Some(Life::Gone) && self.inspected && self.unpin.is_none() {
            out.records.push(Record::Forget);
            self.base = None;
        }
    }

    /// The object is gone and nothing is here: the actor ends, once nothing runs any more.
    pub(super) fn finish_if_over(&mut self, out: &mut Out) {
        if self.vanished && self.inspected && self.running.is_empty() {
            match self.life() {
                Some(Life::Gone) if self.unpin.is_none() => {
                    out.records.push(Record::Forget);
                    self.base = None;
                    out.finished = true;
                }
                None => out.finished = true,
                _ => {}
            }
        }
    }

    /// New limits and words of the spec go to the base row at once, to disk by the next `WriteMeta`.
    fn adopt_limits(&mut self, out: &mut Out) {
        let Some(p) = self.present().cloned() else {
            return;
        };
        let Some(b) = self.base.as_ref() else { return };
        if b.life != Life::Active {
            return;
        }
        let claim = p.claim.clone().or_else(|| b.claim.clone());
        let same = b.capacity == p.capacity
            && b.history_limit == p.history_limit
            && b.fencing == p.fencing
            && b.reclaim_policy == p.reclaim_policy
            && b.claim == claim;
        if !same {
            self.save_base(
                "spec",
                |b| {
                    b.capacity = p.capacity;
                    b.history_limit = p.history_limit;
                    b.fencing = p.fencing;
                    b.reclaim_policy = p.reclaim_policy;
                    b.claim = claim;
                },
                out,
            );
            self.meta_dirty = true;
        }
    }

    pub(super) fn advance_life(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.is_ready(Slot::Life, ctx.boot) {
            return;
        }
        if !self.inspected {
            self.start(Slot::Life, Task::Inspect, out);
            return;
        }
        if let Some(epoch) = self.absent_wanted() {
            self.advance_deletion(epoch, out);
            return;
        }
        match self.life() {
            Some(Life::Gone) => self.advance_gone(out),
            // A recorded intent goes through even if the object was restored to an earlier time meanwhile.
            Some(Life::Deleting) => self.advance_destroy(out),
            Some(Life::Creating) => self.advance_creation(out),
            Some(Life::Active) => self.advance_active(out),
            None => {
                if self.present().is_some() {
                    self.start(Slot::Life, Task::AllocateQgroup, out);
                }
            }
        }
    }

    fn absent_wanted(&self) -> Option<Epoch> {
        match self.desired.as_ref().map(|d| &d.intent) {
            Some(Intent::Absent { epoch }) => Some(*epoch),
            _ => None,
        }
    }

    fn advance_creation(&mut self, out: &mut Out) {
        let Some(p) = self.present().cloned() else {
            return;
        };
        let Some(base) = self.base.clone() else {
            return;
        };
        if base.role != p.role {
            self.refuse_role_change(base.role, p.role, out);
            return;
        }
        match (p.role, self.opening) {
            (Role::Owner, Opening::Closed) => {
                self.start(Slot::Life, Task::Open { seen: base.epoch }, out);
            }
            (Role::Owner, Opening::Open { .. }) => match base.origin {
                Some(origin) if !self.origin_pinned => {
                    self.start(Slot::Life, Task::PinOrigin(origin), out);
                }
                _ => {
                    self.start(Slot::Life, Task::Prepare(Box::new(base)), out);
                }
            },
            (Role::Replica, _) => {
                self.start(Slot::Life, Task::Prepare(Box::new(base)), out);
            }
        }
    }

    fn advance_active(&mut self, out: &mut Out) {
        let Some(base) = self.base.clone() else {
            return;
        };
        let wanted_epoch = self.present().map_or(Epoch(0), |p| p.epoch);
        let seen = base.epoch.max(wanted_epoch);
        if let Some(won) = self.won {
            let boot = self.here.boot;
            let opened = Base { epoch: won.epoch, attempt: won.attempt, opened: Some(Opened { epoch: won.epoch, boot }), ..base };
            self.start(Slot::Life, Task::WriteMeta(Box::new(opened)), out);
            return;
        }
        if base.role == Role::Owner
            && !self.head
            && let Some(commit) = base.head_from
        {
            let from = Some(Origin { fs_id: self.id, commit });
            self.start(Slot::Life, Task::CreateHead { qgroup: base.qgroup, from }, out);
            return;
        }
        if let Some(to) = base.reset_to.filter(|_| base.role == Role::Owner && !base.superseded) {
            self.advance_reset(to, base.qgroup, out);
            return;
        }
        if base.role == Role::Replica && self.head {
            // The fenced head of an earlier ownership.
            self.start(Slot::Life, Task::DropHead, out);
            return;
        }
        if self.advance_headless(&base, out) {
            return;
        }
        // A wish of an earlier epoch says nothing: this copy won authority after it, and needs no operator to serve.
        let wanted_elsewhere = self.present().is_some_and(|p| p.role == Role::Replica && p.epoch >= base.epoch);
        let must_open = base.role == Role::Owner
            && !self.is_fenced()
            && !base.superseded
            && !base.headless
            && self.head
            && !wanted_elsewhere
            && (self.opening == Opening::Closed || seen > base.epoch);
        if must_open && self.managed {
            self.start(Slot::Life, Task::Open { seen }, out);
        } else if self.meta_dirty {
            self.start(Slot::Life, Task::WriteMeta(Box::new(base)), out);
        } else if let Some(origin) = base.origin.filter(|_| !self.origin_let_go && is_clone(&base)) {
            self.start(Slot::Life, Task::UnpinOrigin(origin), out);
        }
    }

    fn refuse_role_change(&mut self, is: Role, wanted: Role, out: &mut Out) {
        let text = format!("this copy is being made as {is:?} and the Replica object wants {wanted:?}: that is looked at once it is there");
        self.trouble("RoleMismatch", Problem::new(Reason::Unsupported, text), out);
    }

    // ---- deletion ----

    fn advance_deletion(&mut self, epoch: Epoch, out: &mut Out) {
        match (&self.base, self.life()) {
            (_, Some(Life::Gone)) => self.advance_gone(out),
            (None, _) => self.record_gone(epoch, out),
            (Some(_), Some(Life::Deleting)) => self.advance_destroy(out),
            (Some(base), _) => {
                // A superseded owner's epoch is that of the owner after it: a person who dropped this copy knew of both.
                let may_be_newer = base.role == Role::Owner && !base.superseded || base.epoch > epoch;
                if may_be_newer && !self.absent_confirmed {
                    self.start(Slot::Life, Task::CheckDeleting, out);
                } else {
                    self.clear("StaleIntent");
                    self.save_base("delete-intent", |b| b.life = Life::Deleting, out);
                    self.advance_destroy(out);
                }
            }
        }
    }

    /// Cancels all that runs, waits for it, then destroys. Mounts make `Destroy` itself refuse; it is tried again.
    fn advance_destroy(&mut self, out: &mut Out) {
        self.answer_waiting_with_deleting(out);
        let others = self.running.values().filter(|r| r.slot != Slot::Life);
        let (slots, awaited): (Vec<Slot>, Vec<bool>) = others.map(|r| (r.slot, matches!(r.task, Task::Unmount(_)))).unzip();
        for (slot, awaited) in slots.iter().zip(awaited) {
            if !awaited {
                self.cancel(*slot, out);
            }
        }
        self.cancel_all_runs();
        if !slots.is_empty() {
            return;
        }
        match self.base.clone() {
            Some(base) if !self.deletion_on_disk => {
                self.start(Slot::Life, Task::WriteMeta(Box::new(base)), out);
            }
            _ => {
                let qgroup = self.qgroup();
                self.start(Slot::Life, Task::Destroy { qgroup }, out);
            }
        }
    }

    /// Nothing was ever here: only the tombstone is written, so that a late create can't begin.
    fn record_gone(&mut self, epoch: Epoch, out: &mut Out) {
        let base = Base { life: Life::Gone, epoch, ..blank(self.id, Role::Replica) };
        out.records.push(Record::Base("deleted", Box::new(base.clone())));
        self.base = Some(base);
    }

    fn advance_gone(&mut self, out: &mut Out) {
        if let Some(origin) = self.unpin {
            self.start(Slot::Life, Task::UnpinOrigin(origin), out);
        } else if self.present().is_some() {
            // Wanted again before the object went. A replica is copied anew; an owner is made only in phase `New`, as ever.
            self.start(Slot::Life, Task::AllocateQgroup, out);
        }
    }

    fn on_destroyed(&mut self, out: &mut Out) {
        self.unpin = self.base.as_ref().and_then(|b| b.origin);
        let epoch = self.base.as_ref().map_or(Epoch(0), |b| b.epoch);
        let origin = self.unpin;
        out.records.push(Record::Forget);
        let base = Base { life: Life::Gone, epoch, origin, ..blank(self.id, Role::Replica) };
        out.records.push(Record::Base("deleted", Box::new(base.clone())));
        self.base = Some(base);
        self.opening = Opening::Closed;
        self.head = false;
        self.commits.clear();
        self.removing.clear();
        self.requests.clear();
        self.partial = None;
        self.checkpoint = None;
        self.discard.clear();
        self.jobs.clear();
        self.origin_pins.clear();
        self.migration = None;
        self.mounts.clear();
        self.troubles.clear();
        self.usage = (0, 0);
        out.notes.push(Note { warning: false, reason: "Deleted".into(), message: "all of it is off this node's pool".into() });
    }

    // ---- results ----

    pub(super) fn on_life_done(&mut self, task: Task, result: Result<TaskDone, Problem>, out: &mut Out) {
        match (task, result) {
            (Task::Inspect, Ok(TaskDone::Inspected(found))) => self.on_inspected(*found, out),
            (Task::AllocateQgroup, Ok(TaskDone::Qgroup(n))) => self.on_qgroup(n, out),
            (Task::Open { .. }, Ok(TaskDone::Opened { epoch, attempt, new, sent })) => {
                self.on_opened(Won { epoch, attempt, sent }, new, out)
            }
            (Task::PinOrigin(_), Ok(_)) => {
                self.origin_pinned = true;
                self.clear("OriginMissing");
            }
            (Task::Prepare(base), Ok(_)) => match base.role {
                Role::Owner => {
                    self.start(Slot::Life, Task::CreateHead { qgroup: base.qgroup, from: base.origin }, out);
                }
                Role::Replica => self.on_created(out),
            },
            (Task::CreateHead { .. }, Ok(_)) => {
                self.head = true;
                self.meta_dirty = true;
                if self.is_resetting() {
                    self.end_reset(out);
                } else if self.base.as_ref().is_some_and(|b| b.head_from.is_some()) {
                    self.save_base("head-made", |b| b.head_from = None, out);
                } else {
                    self.on_created(out);
                }
            }
            (Task::DropHead, Ok(_)) => {
                self.head = false;
                self.clear("StaleHead");
                if !self.is_resetting() {
                    self.save_base("head-dropped", |b| b.frozen = None, out);
                }
                if self.is_headless() {
                    self.on_head_let_go(out);
                }
                self.usage_due = BootTime(0);
            }
            (Task::WriteMeta(written), Ok(_)) => self.on_meta_written(&written, out),
            (Task::CheckDeleting, Ok(TaskDone::Deleting(yes))) => self.on_deleting_checked(yes, out),
            (Task::CheckHeadless, Ok(TaskDone::Headless(yes))) => self.on_headless_checked(yes, out),
            (Task::Destroy { .. }, Ok(_)) => self.on_destroyed(out),
            (Task::UnpinOrigin(_), Ok(_)) if self.unpin.take().is_some() => {
                self.save_base("origin-unpinned", |b| b.origin = None, out);
            }
            (Task::UnpinOrigin(_), Ok(_)) => self.origin_let_go = true,
            (task, Err(problem)) => self.on_life_failed(&task, problem, out),
            (_, Ok(_)) => {}
        }
    }

    fn on_life_failed(&mut self, task: &Task, problem: Problem, out: &mut Out) {
        let condition = match task {
            Task::Open { .. } => match problem.reason {
                Reason::AuthorityUnknown => "AuthorityUnknown",
                Reason::EpochRegression => "EpochRegression",
                _ => "Opened",
            },
            Task::PinOrigin(_) => "OriginMissing",
            Task::DropHead => "StaleHead",
            Task::Destroy { .. } if problem.reason == Reason::Mounted => "Mounted",
            Task::Destroy { .. } | Task::CheckDeleting | Task::CheckHeadless => "DeletionBlocked",
            _ => "Degraded",
        };
        // A directory that is half gone may have no place for fs.json any more: the journal has the intent.
        if matches!(task, Task::WriteMeta(_)) && self.life() == Some(Life::Deleting) {
            self.deletion_on_disk = true;
        }
        if matches!(task, Task::Open { .. }) && problem.reason == Reason::NotOwner {
            self.opening = Opening::Closed;
            self.moving.doubt = true;
            if self.base.as_ref().is_some_and(|b| b.opened.is_some()) {
                // A restart in this boot must not take it up again.
                self.save_base("auth-closed", |b| b.opened = None, out);
            }
        }
        self.trouble(condition, problem, out);
    }

    fn on_deleting_checked(&mut self, yes: bool, out: &mut Out) {
        if yes {
            self.absent_confirmed = true;
            self.clear("StaleIntent");
        } else {
            let text = "the Replica object says Absent, but the Filesystem is not being deleted and this copy is an owner's or newer: nothing is deleted";
            self.trouble("StaleIntent", Problem::new(Reason::Invalid, text), out);
        }
    }

    fn on_qgroup(&mut self, n: u64, out: &mut Out) {
        let Some(p) = self.present().cloned() else {
            return;
        };
        let seen = self.base.as_ref().map_or(Epoch(0), |b| b.epoch);
        let base = Base { qgroup: n, life: Life::Creating, epoch: p.epoch.max(seen), ..from_present(self.id, &p) };
        out.records.push(Record::Base("create-intent", Box::new(base.clone())));
        self.base = Some(base);
        self.origin_pinned = false;
    }

    fn on_created(&mut self, out: &mut Out) {
        self.save_base("created", |b| b.life = Life::Active, out);
        self.clear("Degraded");
        out.notes.push(Note { warning: false, reason: "Created".into(), message: "the copy is on this node's pool".into() });
    }

    fn on_opened(&mut self, won: Won, new: bool, out: &mut Out) {
        for condition in ["Opened", "AuthorityUnknown", "EpochRegression"] {
            self.clear(condition);
        }
        if self.life() == Some(Life::Creating) && !new {
            let text = format!(
                "the Filesystem is past phase New, but its data is not in this node's pool ({}): bring the disk back, or drop the Filesystem",
                self.here.place.pool
            );
            self.trouble("DataMissing", Problem::new(Reason::NotFound, text), out);
            return;
        }
        self.clear("DataMissing");
        if self.is_fenced() {
            return; // fenced meanwhile: that ended every opening, this one too
        }
        self.won = Some(won);
        if self.life() == Some(Life::Creating) {
            // `Prepare` writes it to fs.json, before there is a head that could be written.
            self.record_opening(out);
        }
    }

    /// fs.json is written before *auth-open* and before deletion (storage.md §1).
    fn on_meta_written(&mut self, written: &Base, out: &mut Out) {
        if written.life == Life::Deleting {
            self.deletion_on_disk = true;
            return;
        }
        self.usage_due = BootTime(0);
        self.clear("Degraded");
        if self.won.is_some_and(|w| written.opened.is_some_and(|o| o.epoch == w.epoch)) {
            self.record_opening(out);
        }
        // What changed while it was being written is written next.
        let frozen = written.frozen;
        self.meta_dirty = self.base.as_ref().is_some_and(|b| Base { frozen, opened: written.opened, ..b.clone() } != *written);
    }

    fn record_opening(&mut self, out: &mut Out) {
        let Some(won) = self.won.take() else { return };
        if self.is_fenced() {
            return;
        }
        let boot = self.here.boot;
        self.save_base(
            "auth-open",
            |b| {
                b.epoch = b.epoch.max(won.epoch);
                b.attempt = won.attempt;
                b.opened = Some(Opened { epoch: won.epoch, boot });
            },
            out,
        );
        let used = matches!(self.opening, Opening::Open { used: true, .. });
        self.opening = Opening::Open { sent: won.sent, used };
    }

    /// What the journal says and what the disk shows become one (design §4, `recover`).
    fn on_inspected(&mut self, found: Found, out: &mut Out) {
        self.inspected = true;
        self.head = found.head;
        if self.life() == Some(Life::Gone) && (found.head || found.base.is_some() || !found.commits.is_empty()) {
            // What the journal says is deleted came back with a power cut: it is deleted again (storage.md §2).
            let qgroup = found.base.as_ref().map_or(0, |b| b.qgroup);
            self.save_base("delete-intent", |b| (b.life, b.qgroup) = (Life::Deleting, qgroup), out);
        }
        let journal_lost = self.base.is_none();
        match (&self.base, found.base) {
            // Only the disk knows it (the journal was lost): an orphan until a Replica object says what it is for.
            (None, Some(on_disk)) => {
                let name = if on_disk.life == Life::Deleting { "delete-intent" } else { "adopted" };
                out.records.push(Record::Base(name, Box::new(on_disk.clone())));
                self.base = Some(on_disk);
                self.meta_dirty = false;
            }
            (None, None) => return,
            (Some(_), _) => {}
        }
        if self.is_deleting() {
            return;
        }
        self.reconcile_commits(&found.commits, journal_lost, out);
        self.reconcile_partial(&found.checkpoints, &found.incoming, out);
        self.reconcile_fence(found.fenced, journal_lost, out);
        if !found.broken.is_empty() {
            let text = format!("unreadable entries beside the commits: {}", found.broken.join(", "));
            self.trouble("Degraded", Problem::new(Reason::CorruptDisk, text), out);
        }
        if self.head && self.base.as_ref().is_some_and(|b| b.head_from.is_some()) {
            self.save_base("head-made", |b| b.head_from = None, out); // it was made, and not recorded
        }
        let made_anew = self.is_resetting() || self.base.as_ref().is_some_and(|b| b.head_from.is_some() || b.headless);
        if self.life() == Some(Life::Active) && self.role() == Some(Role::Owner) && !self.head && !made_anew {
            let text =
                "the journal names a head that is not in the pool: nothing is created in its place; restore the disk or accept the loss";
            self.trouble("HeadMissing", Problem::new(Reason::NotFound, text), out);
        }
    }
}

/// A Dot that started from a commit has a life of its own: once its head is there it needs that commit no more. A Branch keeps it, to
/// be merged back. Asked once per start of the actor, for a crash may have come between; asking twice does no harm.
fn is_clone(base: &Base) -> bool {
    base.role == Role::Owner && base.claim.as_ref().is_some_and(|c| c.kind == "Dot")
}

/// A base row with nothing in it.
pub(super) fn blank(id: crate::ids::FsId, role: Role) -> Base {
    Base {
        version: FORMAT_VERSION,
        fs_id: id,
        role,
        life: Life::Creating,
        qgroup: 0,
        claim: None,
        origin: None,
        capacity: 0,
        history_limit: 0,
        fencing: "Proof".into(),
        reclaim_policy: "Delete".into(),
        epoch: Epoch(0),
        attempt: 0,
        opened: None,
        frozen: None,
        head_from: None,
        reset_to: None,
        superseded: false,
        headless: false,
    }
}

fn from_present(id: crate::ids::FsId, p: &Present) -> Base {
    Base {
        claim: p.claim.clone(),
        origin: p.origin,
        capacity: p.capacity,
        history_limit: p.history_limit,
        fencing: p.fencing.clone(),
        reclaim_policy: p.reclaim_policy.clone(),
        epoch: p.epoch,
        ..blank(id, p.role)
    }
}
