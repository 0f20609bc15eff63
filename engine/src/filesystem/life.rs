//! Birth, recovery, opening and death of a copy.
//!
//! - Owner, new: `AllocateQgroup` → *create-intent* → `Open` (R0; only phase `New` may be created empty) → *auth-open* →
//!   `PinOrigin` → `Prepare` → `CreateHead` → *created* → `WriteMeta`; of a Dot → `UnpinOrigin`
//! - Replica, new: `AllocateQgroup` → *create-intent* → `Prepare` → *created*
//! - Owner, known: `Open` once per boot → `WriteMeta` → *auth-open*
//! - Reset: *reset-begun* → `DropHead` → `CreateHead` → *reset-done* ([`super::reset`])
//! - Headless: `CheckHeadless` → *headless* → `WriteMeta` → `DropHead` → *head-dropped* ([`super::headless`])
//! - Deletion: [`super::death`]

use super::Filesystem;
use super::event::{Ctx, Found, Out, Task};
use super::head::Won;
use super::record::{Base, Life, Opened};
use super::results::LifeEnd;
use super::tasks::Slot;
use super::trouble::Trouble;
use crate::authority::Seen;
use crate::ids::Epoch;
use crate::model::{Origin, Problem, Reason};
use crate::words::{Desired, Role};

/// What is known in this life of the copy, and not journaled: it is asked anew after a restart.
#[derive(Debug, Default)]
pub(super) struct LifeState {
    /// The origin's owner holds our origin commit.
    origin_pinned: bool,
    /// The origin's owner was told, since this start, whether this Filesystem needs its origin still.
    origin_settled: bool,
    /// `fs.json` says `Deleting`.
    deletion_on_disk: bool,
    /// It is deleted, and the origin's owner has still to hear of it.
    unpin: Option<Origin>,
    /// The highest epoch that the pools with copies have seen, asked before the first opening. A peer's word keeps this copy closed; it is
    /// never recorded, and opens nothing.
    peers_saw: Option<Epoch>,
}

impl LifeState {
    pub(super) fn recovered(base: Option<&Base>) -> Self {
        let unpin = base.filter(|b| b.life == Life::Gone).and_then(|b| b.origin);
        Self { unpin, ..Self::default() }
    }

    pub(super) const fn is_origin_pinned(&self) -> bool {
        self.origin_pinned
    }

    /// The origin's owner was told.
    pub(super) const fn is_origin_settled(&self) -> bool {
        self.origin_settled
    }

    /// Whom a deleted copy has still to tell.
    pub(super) const fn unpin(&self) -> Option<Origin> {
        self.unpin
    }

    pub(super) const fn is_deletion_on_disk(&self) -> bool {
        self.deletion_on_disk
    }

    /// It was pinned once more, for a reset: to be let go again.
    pub(super) const fn pin_origin_anew(&mut self) {
        self.origin_settled = false;
    }

    /// `fs.json` says that it goes, or has no place any more.
    pub(super) const fn deletion_written(&mut self) {
        self.deletion_on_disk = true;
    }

    /// The pin may go: before a reset it is asked for anew.
    pub(super) const fn origin_let_go(&mut self) {
        self.origin_pinned = false;
    }

    /// All of it is off the disk.
    pub(super) const fn gone(&mut self, origin: Option<Origin>) {
        self.unpin = origin;
    }
}

impl Filesystem {
    pub(super) fn on_desired(&mut self, desired: Desired, out: &mut Out) {
        let Some(changed) = self.wish.take(desired) else { return };
        if changed.destination {
            self.tasks.rest(Slot::MoveBegin);
        }
        self.troubles.clear(Trouble::StaleIntent); // of an intent that was taken back
        self.recheck_sender(out);
        self.outbox.stale();
        for slot in [Slot::Life, Slot::Head, Slot::Look, Slot::Move] {
            self.tasks.wake(slot);
        }
        if let Some(p) = self.wish.present() {
            self.standing.adopt_limits(p, out);
        }
    }

    pub(super) fn advance_life(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.tasks.is_ready(Slot::Life, ctx.boot) {
            return;
        }
        if !self.standing.is_inspected() {
            return self.tasks.start(Slot::Life, Task::Inspect, out);
        }
        if let Some(epoch) = self.wish.absent() {
            return self.advance_deletion(epoch, out);
        }
        match self.standing.life() {
            Some(Life::Gone) => self.advance_gone(out),
            // A recorded intent goes through even if the object was restored to an earlier time meanwhile.
            Some(Life::Deleting) => self.advance_destroy(out),
            Some(Life::Creating) => self.advance_creation(out),
            Some(Life::Active) => self.advance_active(out),
            None if self.wish.present().is_some() => self.tasks.start(Slot::Life, Task::AllocateQgroup, out),
            None => {}
        }
    }

    fn advance_creation(&mut self, out: &mut Out) {
        let (Some(wanted), Some(base)) = (self.wish.role(), self.standing.base()) else { return };
        if base.role != wanted {
            return self.refuse_role_change(base.role, wanted, out);
        }
        let task = match (wanted, base.origin) {
            (Role::Owner, _) if !self.head.is_open() => Task::Open { seen: self.standing.seen() },
            (Role::Owner, Some(origin)) if !self.life.origin_pinned => Task::PinOrigin(origin),
            _ => Task::Prepare(Box::new(base.clone())),
        };
        self.tasks.start(Slot::Life, task, out);
    }

    fn advance_active(&mut self, out: &mut Out) {
        let Some(base) = self.standing.base().cloned() else { return };
        let wanted_epoch = self.wish.present().map_or(Epoch(0), |p| p.epoch);
        let seen = base.epoch.max(wanted_epoch);
        let head = self.head.is_there();
        if let Some(won) = self.head.won() {
            let opened = Some(Opened { epoch: won.epoch, boot: self.here.boot, used: false });
            let base = Base { epoch: won.epoch, attempt: won.attempt, opened, ..base };
            return self.tasks.start(Slot::Life, Task::WriteMeta(Box::new(base)), out);
        }
        if let Some(commit) = base.head_from.filter(|_| base.role == Role::Owner && !head) {
            let from = Some(Origin { fs_id: self.id, commit });
            return self.tasks.start(Slot::Life, Task::CreateHead { qgroup: base.qgroup, from }, out);
        }
        if let Some(to) = base.reset_to.filter(|_| base.role == Role::Owner && !base.superseded) {
            return self.advance_reset(to, base.qgroup, out);
        }
        if base.role == Role::Replica && head {
            // The fenced head of an earlier ownership.
            return self.tasks.start(Slot::Life, Task::DropHead, out);
        }
        if self.advance_headless(&base, out) {
            return;
        }
        // A wish of an earlier epoch says nothing: this copy won authority after it, and needs no operator to serve.
        let wanted_elsewhere = self.wish.present().is_some_and(|p| p.role == Role::Replica && p.epoch >= base.epoch);
        let asked = !base.unsure && !self.handoff.is_stray(); // R8
        let may_open =
            base.role == Role::Owner && asked && !self.is_fenced() && !base.superseded && !base.headless && head && !wanted_elsewhere;
        if may_open && (!self.head.is_open() || seen > base.epoch) && self.wish.is_managed() {
            self.open_after_asking(seen, out);
        } else if self.standing.is_dirty() {
            self.tasks.start(Slot::Life, Task::WriteMeta(Box::new(base)), out);
        } else if let Some(task) = self.origin_task(&base) {
            self.tasks.start(Slot::Life, task, out);
        }
    }

    /// An API server that was restored to an older time may name this node although another has written since: the pools with copies know
    /// (migration.md §2, "Restored API server"). Asked once per start, before the first opening.
    fn open_after_asking(&mut self, seen: Epoch, out: &mut Out) {
        let known = self.standing.seen();
        let peers = self.wish.present().map(|p| p.peers.clone()).unwrap_or_default();
        let task = match self.life.peers_saw {
            None if !self.head.is_open() && !peers.is_empty() => Task::AskEpochs(peers),
            saw => Task::Open { seen: Seen { epoch: seen.max(saw.unwrap_or_default()), ..known } },
        };
        self.tasks.start(Slot::Life, task, out);
    }

    fn refuse_role_change(&mut self, is: Role, wanted: Role, out: &mut Out) {
        let text = format!("this copy is being made as {is:?} and the Replica object wants {wanted:?}: that is looked at once it is there");
        self.troubles.raise(Trouble::RoleMismatch, Problem::new(Reason::Unsupported, text), out);
    }

    // ---- results ----

    pub(super) fn on_life_ended(&mut self, end: LifeEnd, out: &mut Out) {
        match end {
            LifeEnd::Inspected(found) => self.on_inspected(*found, out),
            LifeEnd::Qgroup(n) => self.on_qgroup(n, out),
            LifeEnd::Opened(won, new) => self.on_opened(won, new, out),
            LifeEnd::OriginPinned => {
                self.life.origin_pinned = true;
                self.life.origin_settled |= self.standing.is_active();
                self.troubles.clear(Trouble::OriginMissing);
            }
            LifeEnd::Prepared(base) => match base.role {
                Role::Owner => self.tasks.start(Slot::Life, Task::CreateHead { qgroup: base.qgroup, from: base.origin }, out),
                Role::Replica => self.on_created(None, out),
            },
            LifeEnd::HeadCreated(origin_bytes) => self.on_head_created(origin_bytes, out),
            LifeEnd::HeadDropped => self.on_head_dropped(out),
            LifeEnd::MetaWritten(written) => self.on_meta_written(&written, out),
            LifeEnd::AbsenceChecked(read) => self.on_absence_checked(read.as_deref(), out),
            LifeEnd::EpochsAsked(epoch) => self.life.peers_saw = Some(epoch),
            LifeEnd::HeadlessChecked(yes) => self.on_headless_checked(yes, out),
            LifeEnd::Destroyed => self.on_destroyed(out),
            LifeEnd::OriginUnpinned if self.life.unpin.take().is_some() => self.standing.origin_unpinned(out),
            LifeEnd::OriginUnpinned => {
                self.life.origin_settled = true;
                self.life.origin_let_go();
            }
        }
    }

    pub(super) fn on_life_failed(&mut self, task: &Task, problem: Problem, out: &mut Out) {
        let trouble = match task {
            // Nothing of it is touched before it has been read.
            Task::Inspect if problem.reason == Reason::FormatNewer => {
                self.standing.is_newer(problem.clone());
                Trouble::FormatNewer
            }
            Task::Open { .. } => match problem.reason {
                Reason::AuthorityUnknown => Trouble::AuthorityUnknown,
                Reason::EpochRegression => Trouble::EpochRegression,
                _ => Trouble::Opened,
            },
            // It went while nothing held it here, or with its copy: what started from it needs it no more to live.
            Task::PinOrigin(_) if self.standing.is_active() && problem.reason == Reason::NotFound => {
                return self.life.origin_settled = true;
            }
            Task::PinOrigin(_) => Trouble::OriginMissing,
            Task::DropHead => Trouble::StaleHead,
            Task::Destroy { .. } if problem.reason == Reason::Mounted => Trouble::Mounted,
            Task::Destroy { .. } | Task::CheckDeleting | Task::CheckHeadless => Trouble::DeletionBlocked,
            _ => Trouble::Degraded,
        };
        // A directory that is half gone may have no place for fs.json any more: the journal has the intent.
        if matches!(task, Task::WriteMeta(_)) && self.standing.life() == Some(Life::Deleting) {
            self.life.deletion_written();
        }
        if matches!(task, Task::Open { .. }) && problem.reason == Reason::NotOwner {
            self.head.close();
            self.handoff.doubt();
            self.standing.closed(out);
        }
        if matches!(task, Task::Open { .. }) && problem.reason == Reason::Busy && !self.handoff.is_in_hand() {
            self.handoff.stray(true); // a handoff that this copy knows nothing of: it is looked at, and aborted (R8)
        }
        if matches!(task, Task::Open { .. }) && problem.reason == Reason::EpochRegression {
            self.life.peers_saw = None; // asked again: the one who knew more may have been dropped
        }
        if matches!(task, Task::AskEpochs(_)) {
            self.life.peers_saw = Some(Epoch(0)); // nobody knows better
            return;
        }
        self.troubles.raise(trouble, problem, out);
    }

    fn on_qgroup(&mut self, n: u64, out: &mut Out) {
        let Some(p) = self.wish.present() else { return };
        self.standing.create(n, p, out);
        self.life.origin_pinned = false;
    }

    fn on_created(&mut self, origin_bytes: Option<u64>, out: &mut Out) {
        self.standing.created(origin_bytes, out);
        self.troubles.clear(Trouble::Degraded);
        out.note("Created", "the copy is on this node's pool");
    }

    fn on_head_created(&mut self, origin_bytes: Option<u64>, out: &mut Out) {
        self.head.made();
        self.standing.soil();
        if self.standing.is_resetting() {
            self.end_reset(out);
        } else if self.standing.head_from().is_some() {
            self.standing.head_made(out);
        } else {
            self.on_created(origin_bytes, out);
        }
    }

    fn on_head_dropped(&mut self, out: &mut Out) {
        self.head.dropped();
        self.troubles.clear(Trouble::StaleHead);
        if !self.standing.is_resetting() {
            self.standing.head_dropped(out);
        }
        if self.standing.is_headless() {
            self.on_head_let_go(out);
        }
        self.usage.look();
    }

    fn on_opened(&mut self, won: Won, new: bool, out: &mut Out) {
        for trouble in [Trouble::Opened, Trouble::AuthorityUnknown, Trouble::EpochRegression] {
            self.troubles.clear(trouble);
        }
        let creating = self.standing.life() == Some(Life::Creating);
        if creating && !new {
            let text = format!(
                "the Filesystem is past phase New, but its data is not in this node's pool ({}): bring the disk back, or drop the Filesystem",
                self.here.place.pool
            );
            return self.troubles.raise(Trouble::DataMissing, Problem::new(Reason::NotFound, text), out);
        }
        self.troubles.clear(Trouble::DataMissing);
        if self.is_fenced() {
            return; // fenced meanwhile: that ended every opening, this one too
        }
        self.head.win(won);
        if creating {
            // `Prepare` writes it to fs.json, before there is a head that could be written.
            self.record_opening(out);
        }
    }

    /// fs.json is written before *auth-open* and before deletion (storage.md §1).
    fn on_meta_written(&mut self, written: &Base, out: &mut Out) {
        if written.life == Life::Deleting {
            return self.life.deletion_written();
        }
        self.usage.look();
        self.troubles.clear(Trouble::Degraded);
        if self.head.won().is_some_and(|w| written.opened.is_some_and(|o| o.epoch == w.epoch)) {
            self.record_opening(out);
        }
        self.standing.written(written);
    }

    fn record_opening(&mut self, out: &mut Out) {
        let Some(won) = self.head.take_won() else { return };
        if !self.is_fenced() {
            self.head.open(won);
            self.standing.opened(won, self.here.boot, self.head.is_used(), out);
        }
    }

    /// What the journal says and what the disk shows become one (design §4, `recover`).
    fn on_inspected(&mut self, found: Found, out: &mut Out) {
        self.standing.inspected();
        self.troubles.clear(Trouble::FormatNewer);
        self.head.seen(found.head);
        if self.standing.life() == Some(Life::Gone) && (found.head || found.base.is_some() || !found.commits.is_empty()) {
            self.standing.delete_again(found.base.as_ref().map_or(0, |b| b.qgroup), out);
        }
        let journal_lost = self.standing.base().is_none();
        match found.base {
            Some(on_disk) if journal_lost => self.standing.adopt(on_disk, out),
            None if journal_lost => return,
            _ => {}
        }
        if self.standing.is_deleting() {
            return;
        }
        self.reconcile_commits(&found.commits, journal_lost, out);
        let history = &self.history;
        self.inbox.reconcile(|id| history.has(id), &found.checkpoints, &found.incoming, out);
        self.reconcile_fence(found.fenced, journal_lost, out);
        if !found.broken.is_empty() {
            let text = format!("unreadable entries beside the commits: {}", found.broken.join(", "));
            self.troubles.raise(Trouble::Degraded, Problem::new(Reason::CorruptDisk, text), out);
        }
        let head = self.head.is_there();
        if head && self.standing.head_from().is_some() {
            self.standing.head_made(out); // it was made, and not recorded
        }
        let made_anew = self.standing.is_resetting() || self.standing.head_from().is_some() || self.standing.is_headless();
        if self.standing.is_active() && self.standing.is_owner() && !head && !made_anew {
            let text =
                "the journal names a head that is not in the pool: nothing is created in its place; restore the disk or accept the loss";
            self.troubles.raise(Trouble::HeadMissing, Problem::new(Reason::NotFound, text), out);
        }
    }
}
