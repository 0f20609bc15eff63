//! All state of one Filesystem on one node, as a pure state machine (design §4). The actor in `node-agent` feeds it events,
//! makes its records durable, then starts its tasks and gives its answers.
//!
//! Shape: [`Filesystem::handle`] takes the event in (`on_*`), then `advance` looks at *everything* that is
//! wanted and starts what should run and does not. So an intent (deletion above all) is looked at in every state, and a
//! retry is nothing special. At most one task runs per slot; what ends of a stale operation is dropped.
//!
//! The state lies in parts (ADR 16). Each has a file, keeps its fields to itself, and is changed by its own steps only; where a step is
//! durable, it pushes its record. A rule that concerns several parts is a method of [`Filesystem`]: it reads them all, and asks each for
//! its step.
//!
//! | Part | Keeps | Rules |
//! |---|---|---|
//! | `standing` | the base row: role, epoch, limits, how far the copy's life is | `life`, `death` |
//! | `wish` | the Replica object | |
//! | `head` | on disk, open, fenced | `fence`, `reset`, `headless` |
//! | `history` | commits, requests, removals, pins of Branches | `commits`, `origins` |
//! | `inbox` | the transfer that comes | `receive`, `senders` |
//! | `outbox` | jobs and their runs | `precopy` |
//! | `lend` | the kept commit that is brought to a copy that lacks it | |
//! | `handoff` | authority on its way | `handoff/{exporter,importer,judge}` |
//! | `mounts`, `usage` | what is mounted, what room it takes | |
//! | `tasks` | what runs and what sleeps | `results`: what a task gave |
//! | `trouble` | what stands in its way, and the words for it | |
//!
//! `event` and `record` are the words in, out and on disk; `status` is what people see, `holding` what others decide by.

mod commits;
mod death;
mod event;
mod fence;
mod handoff;
mod head;
mod headless;
mod history;
mod holding;
mod inbox;
mod lend;
mod life;
mod mounts;
mod origins;
mod outbox;
mod precopy;
mod receive;
mod record;
mod reset;
mod results;
mod senders;
mod standing;
mod status;
mod tasks;
mod trouble;
mod usage;
mod wish;

pub use event::{Answer, Ctx, Event, Found, Handoff, Here, Note, Out, Swap, Task, TaskDone};
pub use holding::Holding;
pub use record::{
    Base, Began, CheckpointRow, Life, MigrationPhase, MigrationRow, Opened, OriginPinRow, PartialRow, PartyRow, Record, Recovered,
    RequestRow, RequestState, Row, limit,
};
pub use status::{CommitStatus, Condition, FilesystemStatus, JobStatus, MigrationStatus, RequestStatus, RoleStatus};
pub use trouble::{About, CopyState, MovePhase, Trouble, Why};

pub use crate::words::{
    Desired, Intent, MountMode, MountWhat, Nested, Offer, Present, ReqId, Role, Transfer, UnknownOption, WantedCommit, WantedJob,
};

use results::{Ended, Verdict};
use tasks::{Slot, Tasks, desk};
use trouble::Troubles;

use crate::ids::{BootTime, CommitId, FsId, Now, OpId};
use crate::model::{Commit, Place, Problem};
use crate::run::{Initial, Intermediate, OnConflict, Retry, RunEvent, RunParams};
use crate::words::JobKey;

/// See the module's documentation.
#[derive(Debug)]
pub struct Filesystem {
    id: FsId,
    here: Here,
    /// When the last event was handled.
    clock: Now,
    tasks: Tasks,
    troubles: Troubles,
    wish: wish::Wish,
    standing: standing::Standing,
    life: life::LifeState,
    head: head::Head,
    resets: reset::Resets,
    history: history::History,
    inbox: inbox::Inbox,
    outbox: outbox::Outbox,
    lending: lend::Lending,
    precopy: precopy::Precopy,
    handoff: handoff::Handoff,
    mounts: mounts::Mounts,
    usage: usage::Usage,
}

/// What jobs send from, beside the outbox itself.
macro_rules! source {
    ($fs:expr) => {
        $crate::filesystem::outbox::Source { history: &$fs.history, standing: &$fs.standing }
    };
}
use source;

/// How the Filesystem's own jobs send: all that is missing, older kept commits too if `initial` says so, and that commit.
fn transfer(peer: Place, initial: Initial, also: Option<CommitId>) -> RunParams {
    let (intermediate, on_conflict) = (Intermediate::All, OnConflict::Fail);
    RunParams { peer, initial, intermediate, retry: Retry::default(), on_conflict, also }
}

impl Filesystem {
    /// Rebuilds the state from the journal. `generation` must differ from that of every earlier incarnation in this process.
    pub fn recover(id: FsId, here: Here, generation: u64, mut rows: Recovered) -> Self {
        let mig = rows.migration.as_ref().map(|m| m.mig);
        Self {
            id,
            clock: Now::default(),
            tasks: Tasks::new(generation),
            troubles: Troubles::default(),
            wish: wish::Wish::default(),
            life: life::LifeState::recovered(rows.base.as_ref()),
            head: head::Head::recovered(rows.base.as_ref(), &here),
            resets: reset::Resets::default(),
            history: history::History::recovered(&mut rows),
            inbox: inbox::Inbox::recovered(rows.partial, rows.checkpoint),
            outbox: outbox::Outbox::recovered(id, rows.jobs, mig),
            lending: lend::Lending::default(),
            precopy: precopy::Precopy::default(),
            handoff: handoff::Handoff::recovered(rows.migration),
            mounts: mounts::Mounts::default(),
            usage: usage::Usage::default(),
            standing: standing::Standing::recovered(id, rows.base),
            here,
        }
    }

    /// Whose state this is.
    pub const fn id(&self) -> FsId {
        self.id
    }

    /// Handles one event. Total: every event is answered in every state; stale ones are dropped.
    pub fn handle(&mut self, event: Event, ctx: &Ctx, out: &mut Out) {
        match event {
            Event::Start | Event::Timer => {}
            Event::Desired(desired) => self.on_desired(desired, out),
            Event::Vanished => self.on_vanished(out),
            Event::Versions(req, from) => self.handle_versions(req, &from, out),
            Event::Offer(req, offer) => self.handle_offer(req, *offer, ctx, out),
            Event::Mount(req, what, target, mode) => self.handle_mount(req, what, target, mode, out),
            Event::Unmount(req, target) => self.handle_unmount(req, target, out),
            Event::Fence(req, force) => self.handle_fence(req, force, out),
            Event::Thaw(req) => self.handle_thaw(req, out),
            Event::Export(req, handoff) => self.handle_export(req, *handoff, ctx, out),
            Event::PinOrigin(req, by, commit) => self.handle_pin_origin(req, by, commit, out),
            Event::UnpinOrigin(by) => self.on_unpin_origin(by, out),
            Event::StartsFrom(req, origin) => self.handle_starts_from(req, origin, out),
            Event::Progress(op, bytes, resumed_from) => self.on_said(op, |seq| RunEvent::Progress { seq, bytes, resumed_from }, ctx, out),
            Event::Alive(op, silent_ms) => self.on_said(op, |seq| RunEvent::Alive { seq, silent_ms }, ctx, out),
            Event::Verifying(op) => self.on_said(op, |seq| RunEvent::Verifying { seq }, ctx, out),
            Event::Checkpoint(op, req, row) => self.on_checkpoint(op, req, *row, out),
            Event::Done(op, result) => self.on_done(op, *result, ctx, out),
            Event::PeerBack(node) => self.outbox.on_peer_back(&node, source!(self), &mut desk!(self, ctx, out)),
        }
        self.advance(ctx, out);
        self.finish_if_over(out);
        self.clock = ctx.clock();
    }

    /// When `Timer` must be delivered at the latest, if at all, by this node's boot clock. A sleep that was over at the last event counts no
    /// more: what wanted to go on has gone on then.
    pub fn next_wake(&self) -> Option<BootTime> {
        let now = self.clock.boot;
        let usage = (self.standing.is_active() && self.tasks.is_ready(Slot::Usage, now)).then_some(self.usage.due());
        let precopy = self.precopy_due().filter(|at| *at > now);
        let outbox = self.standing.may_send().then(|| self.outbox.next_wake()).flatten();
        let wakes = [self.tasks.next_wake(now), outbox, usage, self.cache_due(), precopy, self.resets.hold_ends(now)];
        wakes.into_iter().flatten().min()
    }

    /// Starts what should run and does not. The order is that of importance: what stops a second writer, then life and death.
    fn advance(&mut self, ctx: &Ctx, out: &mut Out) {
        self.advance_fences(ctx, out);
        self.advance_epoch(out);
        self.advance_life(ctx, out);
        // What jobs pin has to be known before anything is removed.
        self.apply_job_specs(ctx, out);
        self.advance_handoff(ctx, out);
        self.settle_holds(ctx);
        self.advance_head(ctx, out);
        self.advance_precopy(ctx, out);
        self.advance_removals(ctx, out);
        self.advance_pins(ctx, out);
        self.inbox.advance_discard(&self.standing, &mut desk!(self, ctx, out));
        self.advance_mounts(ctx, out);
        self.outbox.advance(source!(self), &mut desk!(self, ctx, out));
        self.advance_lend(ctx, out);
        self.outbox.settle_refused(source!(self), &mut desk!(self, ctx, out));
        self.usage.advance(source!(self), &mut desk!(self, ctx, out));
    }

    /// The Replica's jobs changed, or those of our own, or the copy became able to send.
    fn apply_job_specs(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.outbox.is_stale() || !self.standing.may_send() {
            return;
        }
        let Some(p) = self.wish.present() else { return };
        let mut wanted: Vec<(JobKey, WantedJob)> = p.jobs.iter().map(|job| (JobKey::Object(job.spec.uid), job.clone())).collect();
        wanted.extend(self.handoff_job());
        wanted.extend(self.precopy_job());
        self.outbox.apply(&wanted, source!(self), &mut desk!(self, ctx, out));
    }

    fn on_said(&mut self, op: OpId, event: impl FnOnce(u64) -> RunEvent, ctx: &Ctx, out: &mut Out) {
        self.outbox.on_said(op, event, source!(self), &mut desk!(self, ctx, out));
    }

    fn on_done(&mut self, op: OpId, result: Result<TaskDone, Problem>, ctx: &Ctx, out: &mut Out) {
        // Not ours any more: a late completion of an operation that an earlier incarnation started.
        let Some(taken) = self.tasks.take(op) else { return };
        let slot = taken.slot;
        let ended = Ended::of(taken, result, || self.versions());
        let may_go = match &ended {
            Ended::Life(results::LifeEnd::AbsenceChecked(read)) => self.may_go(read.as_deref()).is_ok(),
            _ => true,
        };
        match ended.verdict(self.standing.life() == Some(Life::Creating), may_go) {
            Verdict::Good => self.tasks.rest(slot),
            // "No" is an answer, but asking again has to get rarer.
            Verdict::Refused | Verdict::Failed => self.tasks.back_off(slot, ctx),
            Verdict::Cancelled => {}
        }
        match ended {
            Ended::Life(end) => self.on_life_ended(end, out),
            Ended::LifeFailed(task, problem) => self.on_life_failed(&task, problem, out),
            Ended::Committed(commit, result) => {
                let changed = result.map(|(changed, nested)| {
                    tell(&commit, nested, out);
                    changed
                });
                self.on_commit_ended(*commit, changed, ctx, out);
            }
            Ended::Looked(result) => self.on_looked(result, ctx, out),
            Ended::Froze(result) => self.on_froze(result, ctx, out),
            Ended::Fenced(commit, result) => {
                let generation = result.map(|(generation, nested)| {
                    tell(&commit, nested, out);
                    generation
                });
                self.on_fenced(*commit, generation, ctx, out);
            }
            Ended::Thawed(result) => self.on_thawed(result, out),
            Ended::ClonesAsked(result) => self.on_clones_asked(result.unwrap_or_default(), out),
            Ended::Removed(id, result) => self.on_removed(id, result, out),
            Ended::Received(req, target, result) => self.on_receive_ended(req, target, result.map(|c| *c), out),
            Ended::Discarded(target, result) => {
                if result.is_ok() {
                    self.inbox.on_discarded(target);
                    self.usage.look_soon(ctx.boot);
                }
            }
            Ended::Usage(newest, measured, found) => {
                let about = newest.and_then(|id| self.history.get(id));
                self.usage.on_read(about, measured, found.ok(), ctx.clock());
            }
            Ended::Swapped(result) => self.on_swapped(result, ctx, out),
            Ended::Exported(handoff, result) => self.on_exported(&handoff, result, ctx, out),
            Ended::Mounted(req, what, target, result) => self.on_mounted(req, (what, target), result, ctx, out),
            Ended::Unmounted(req, target, result) => self.on_unmounted(req, &target, result, out),
            Ended::Job(key, seq, end) => self.outbox.on_ended((key, seq), end, source!(self), &mut desk!(self, ctx, out)),
            Ended::LendListed(result) => self.on_lend_listed(result, ctx, out),
            Ended::Lent(result) => self.on_lent(result, out),
            Ended::Stray => {}
        }
    }
}

/// People hear what a commit has as directories, and is a subvolume in the head.
fn tell(commit: &Commit, nested: Option<Nested>, out: &mut Out) {
    let Some(Nested { count, first }) = nested else { return };
    let text = format!(
        "commit {} has {count} subvolumes, such as `{first}`, as plain directories; it took longer for each file in them",
        commit.id
    );
    out.warn("NestedSubvolumes", text);
}
