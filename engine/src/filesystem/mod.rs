//! All state of one Filesystem on one node, as a pure state machine (design §4). The actor in `node-agent` feeds it events,
//! makes its records durable, then starts its tasks and gives its answers.
//!
//! Shape: [`Filesystem::handle`] changes the state by the event (`on_*`), then `advance` looks at *everything* that is
//! wanted and starts what should run and does not. So an intent (deletion above all) is looked at in every state, and a
//! retry is nothing special. At most one task runs per [`Slot`]; a `Done` of a stale operation is dropped.
//!
//! - `event`, `record`: the words in, out, and on disk
//! - `life`: create, recover, open, delete         - `commits`: take and remove commits, fence, thaw
//! - `receive`: taking a peer's commit             - `jobs`: sending, by `run`
//! - `moving`: handing authority over and taking it  - `precopy`: a copy close behind, before that
//! - `senders`: whose word counts for a copy
//! - `mounts`: mounts and origins                  - `status`: what people see
//! - `fence`: fence and thaw
//! - `reset`: replacing the head                   - `headless`: only commits are kept

mod commits;
mod event;
mod fence;
mod headless;
mod jobs;
mod life;
mod mounts;
mod moving;
mod precopy;
mod receive;
mod record;
mod reset;
mod senders;
mod status;

use std::collections::{BTreeMap, BTreeSet};

pub use event::{
    Answer, AuthorityView, Ctx, Desired, Event, Found, Handoff, Here, Intent, MountWhat, Note, Out, Present, ReceiveOffer, ReqId, Role,
    Swap, Task, TaskDone, WantedCommit,
};
pub use jobs::WantedJob;
pub use record::{
    Base, CheckpointRow, Life, MigrationPhase, MigrationRow, Opened, OriginPinRow, PartialRow, Record, Recovered, RequestRow, RequestState,
    Row, RowError,
};
pub use status::{CommitStatus, Condition, FilesystemStatus, JobStatus, MigrationStatus, RequestStatus, RoleStatus};

use crate::ids::{BootTime, CommitId, FsId, JobUid, Now, OpId, RequestUid};
use crate::model::{Commit, Origin, Problem, Reason};

/// Things that run one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    /// Create, recover, open, delete.
    Life,
    /// What touches the head: commit, fence, thaw.
    Head,
    /// Removing a commit; one that can't go (mounted somewhere) holds up no commit and no fence.
    Removal,
    /// Taking a stream.
    Receive,
    /// Removing partials.
    Discard,
    /// Reading the qgroup.
    Usage,
    /// A job's listing, estimate or send.
    Job(JobUid, JobLane),
    /// Reading and changing authority, and the last word to an importer.
    Move,
    /// Only a sleep: until a head that was mounted is tried again.
    MoveFence,
    /// Only a sleep: until a handoff that was given up is begun anew.
    MoveBegin,
    /// A mount request.
    Mount(ReqId),
}

/// A job's two lanes: estimates run beside a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum JobLane {
    /// List and send.
    Main,
    /// Estimates.
    Estimate,
}

/// A task in flight.
#[derive(Debug, Clone)]
struct Running {
    slot: Slot,
    task: Task,
    cancelled: bool,
    /// The run's own sequence number, for jobs.
    run_seq: u64,
}

/// When a slot may try again.
#[derive(Debug, Clone, Copy)]
struct Backoff {
    failures: u32,
    not_before: BootTime,
}

/// Backoff between tries of one slot: 200 ms doubling to 30 s, each with up to a quarter of jitter.
const BACKOFF_FIRST_MS: u64 = 200;
const BACKOFF_LAST_MS: u64 = 30_000;
/// How old an unused opening may be before the first mount must renew it (R0).
const OPENING_FRESH_MS: u64 = 5_000;
/// How often the qgroup is read when nothing else asks for it.
const USAGE_EVERY_MS: u64 = 60_000;
/// And while nine tenths of the limit are used, or a partial transfer was cleared away: room that comes back is soon seen.
const USAGE_SOON_MS: u64 = 2_000;
/// Bounds of what one Filesystem keeps for people.
const RECENT_COMMITS: usize = 16;

/// How the right to write stands on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// Not opened in this boot.
    Closed,
    /// Opened; `used` once something was mounted or committed under it.
    Open {
        /// When the swap that won it was sent: authority can't have been older (R0).
        sent: BootTime,
        /// Whether a mount has been made under it.
        used: bool,
    },
}

/// See the module's documentation.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // independent facts, each of its own doc line
pub struct Filesystem {
    id: FsId,
    here: Here,
    generation: u64,
    seq: u64,

    /// The disk has been looked at.
    inspected: bool,
    /// Durable facts; `None`: nothing here.
    base: Option<Base>,
    opening: Opening,
    /// The head is on disk.
    head: bool,
    commits: BTreeMap<CommitId, Commit>,
    removing: BTreeSet<CommitId>,
    requests: BTreeMap<RequestUid, RequestRow>,
    partial: Option<PartialRow>,
    checkpoint: Option<CheckpointRow>,
    discard: BTreeSet<CommitId>,
    jobs: BTreeMap<JobUid, jobs::JobState>,
    origin_pins: BTreeMap<FsId, CommitId>,
    unpin: Option<Origin>,
    /// A handoff in hand, and what is not durable of it.
    migration: Option<MigrationRow>,
    moving: moving::MoveState,
    /// Commits for a copy close behind in which nothing was new, in a row.
    precopy_idle: u32,
    /// When the last of them was made, or first seen after a start.
    precopied_at: Option<BootTime>,
    /// An opening that was won and is on its way to disk.
    won: Option<life::Won>,
    /// `fs.json` says `Deleting`.
    deletion_on_disk: bool,
    /// The origin's owner holds our origin commit.
    origin_pinned: bool,
    /// The origin's owner was told that this clone needs its origin no more.
    origin_let_go: bool,
    /// `fs.json` or the limit is behind the base row.
    meta_dirty: bool,

    /// Sends that could not be started; told to their runs in the same call.
    refused_sends: Vec<(JobUid, u64)>,
    /// The jobs of the present spec were taken.
    specs_applied: bool,

    desired: Option<Desired>,
    /// A Replica object exists; `false` makes this copy an orphan.
    managed: bool,
    /// The Replica object was seen to go.
    vanished: bool,
    /// `Absent` was checked against the API and may be obeyed.
    absent_confirmed: bool,

    running: BTreeMap<OpId, Running>,
    /// When the last event was handled.
    clock: Now,
    backoff: BTreeMap<Slot, Backoff>,
    mounts: BTreeSet<(String, MountWhat)>,
    waiting_mounts: Vec<mounts::WaitingMount>,
    fences: Vec<fence::FenceRequest>,
    thaw_for: Option<ReqId>,
    /// The disk has a fence that the journal does not know: `Fence` has to end what was begun, as what its commit holds is not proven.
    half_fenced: bool,
    /// A fence or thaw that nobody was told has worked: the head is to be writable again.
    undo_fence: bool,
    /// Resets that can't begin, and why.
    blocked_resets: BTreeMap<RequestUid, Problem>,
    /// Resets that keep new mounts of the head back, and since when.
    holds: BTreeMap<RequestUid, BootTime>,
    /// The removal tried last, so that the next one gets its turn.
    last_removal: Option<CommitId>,
    /// Standing troubles, by condition type.
    troubles: BTreeMap<&'static str, Problem>,
    usage: (u64, u64),
    usage_due: BootTime,
}

impl Filesystem {
    /// Rebuilds the state from the journal. `generation` must differ from that of every earlier incarnation in this process.
    pub fn recover(id: FsId, here: Here, generation: u64, rows: Recovered) -> Self {
        let opening = match rows.base.as_ref().and_then(|b| b.opened) {
            // A restart of the agent in the same boot keeps the opening (R0); `used`, as mounts may be there.
            Some(o) if o.boot == here.boot && rows.base.as_ref().is_some_and(|b| b.epoch == o.epoch) => {
                Opening::Open { sent: BootTime(0), used: true }
            }
            _ => Opening::Closed,
        };
        let unpin = rows.base.as_ref().filter(|b| b.life == Life::Gone).and_then(|b| b.origin);
        Self {
            id,
            here,
            generation,
            seq: 0,
            inspected: false,
            opening,
            head: false,
            base: rows.base,
            commits: rows.commits.into_iter().map(|c| (c.id, c)).collect(),
            removing: rows.removing.into_iter().collect(),
            requests: rows.requests.into_iter().map(|r| (r.uid, r)).collect(),
            partial: rows.partial,
            checkpoint: rows.checkpoint,
            discard: BTreeSet::new(),
            jobs: rows.jobs.into_iter().map(|row| (row.uid, jobs::JobState::recovered(row))).collect(),
            origin_pins: rows.pins.into_iter().map(|p| (p.by, p.commit)).collect(),
            unpin,
            migration: rows.migration,
            moving: moving::MoveState::default(),
            precopy_idle: 0,
            precopied_at: None,
            won: None,
            deletion_on_disk: false,
            origin_pinned: false,
            origin_let_go: false,
            meta_dirty: true,
            refused_sends: Vec::new(),
            specs_applied: false,
            desired: None,
            managed: false,
            vanished: false,
            absent_confirmed: false,
            running: BTreeMap::new(),
            clock: Now::default(),
            backoff: BTreeMap::new(),
            mounts: BTreeSet::new(),
            waiting_mounts: Vec::new(),
            fences: Vec::new(),
            thaw_for: None,
            half_fenced: false,
            undo_fence: false,
            blocked_resets: BTreeMap::new(),
            holds: BTreeMap::new(),
            last_removal: None,
            troubles: BTreeMap::new(),
            usage: (0, 0),
            usage_due: BootTime(0),
        }
    }

    /// Whose state this is.
    pub fn id(&self) -> FsId {
        self.id
    }

    /// Handles one event. Total: every event is answered in every state; stale ones are dropped.
    pub fn handle(&mut self, event: Event, ctx: &Ctx, out: &mut Out) {
        match event {
            Event::Start | Event::Timer => {}
            Event::Desired(desired) => self.on_desired(desired, out),
            Event::Vanished => self.on_vanished(out),
            Event::Versions(req, from) => self.handle_versions(req, &from, out),
            Event::Offer(req, offer) => self.handle_offer(req, *offer, out),
            Event::Mount(req, what, target, read_only) => self.handle_mount(req, what, target, read_only, out),
            Event::Unmount(req, target) => self.handle_unmount(req, target, out),
            Event::Fence(req, force) => self.handle_fence(req, force, out),
            Event::Thaw(req) => self.handle_thaw(req, out),
            Event::Export(req, handoff) => self.handle_export(req, *handoff, ctx, out),
            Event::PinOrigin(req, by, commit) => self.handle_pin_origin(req, by, commit, out),
            Event::UnpinOrigin(by) => self.on_unpin_origin(by, out),
            Event::Progress(op, bytes, from) => self.on_progress(op, bytes, from, ctx, out),
            Event::Alive(op, silent_ms) => self.on_alive(op, silent_ms, ctx, out),
            Event::Verifying(op) => self.on_verifying(op, ctx, out),
            Event::Checkpoint(op, req, row) => self.on_checkpoint(op, req, *row, out),
            Event::Done(op, result) => self.on_done(op, *result, ctx, out),
            Event::PeerBack(node) => self.on_peer_back(&node, ctx, out),
        }
        self.advance(ctx, out);
        self.finish_if_over(out);
        self.clock = ctx.clock();
    }

    /// When `Timer` must be delivered at the latest, if at all, by this node's boot clock. A sleep that was over at the last event counts no more: what
    /// wanted to go on has gone on then.
    pub fn next_wake(&self) -> Option<BootTime> {
        let now = self.clock.boot;
        let backoff = self.backoff.iter().filter(|(slot, b)| !self.is_running(**slot) && b.not_before > now).map(|(_, b)| b.not_before);
        let jobs = self.jobs.values().filter_map(jobs::JobState::next_wake);
        let usage = (self.is_active() && self.is_ready(Slot::Usage, now)).then_some(self.usage_due);
        let precopy = self.precopy_due().filter(|at| *at > now);
        let hold = self.hold_ends().filter(|at| *at > now);
        backoff.chain(jobs).chain(usage).chain(self.transient_due()).chain(precopy).chain(hold).min()
    }

    /// Starts what should run and does not. The order is that of importance: life and death first.
    fn advance(&mut self, ctx: &Ctx, out: &mut Out) {
        self.advance_epoch(out);
        self.advance_life(ctx, out);
        // What jobs pin has to be known before anything is removed.
        self.apply_job_specs(ctx, out);
        self.advance_move(ctx, out);
        self.settle_holds(ctx);
        self.advance_head(ctx, out);
        self.advance_precopy(ctx, out);
        self.advance_removals(ctx, out);
        self.advance_discard(ctx, out);
        self.advance_mounts(ctx, out);
        self.advance_jobs(ctx, out);
        self.settle_refused_sends(ctx, out);
        self.advance_usage(ctx, out);
    }

    fn on_done(&mut self, op: OpId, result: Result<TaskDone, Problem>, ctx: &Ctx, out: &mut Out) {
        // Not ours any more: a late completion of an operation that an earlier incarnation started.
        let Some(running) = self.running.remove(&op) else {
            return;
        };
        match &result {
            // "No" is an answer, but asking again has to get rarer.
            Ok(done) if self.is_refusal(done) => self.back_off(running.slot, ctx),
            Ok(_) => {
                self.backoff.remove(&running.slot);
            }
            Err(p) if p.reason == Reason::Cancelled => {}
            Err(_) => self.back_off(running.slot, ctx),
        }
        match running.slot {
            Slot::Life => self.on_life_done(running.task, result, out),
            Slot::Head | Slot::Removal => self.on_head_done(running.task, result, ctx, out),
            Slot::Receive => self.on_receive_done(running.task, result, out),
            Slot::Discard => {
                if let (Task::Discard(target), Ok(_)) = (&running.task, &result) {
                    self.discard.remove(target);
                    self.usage_due = self.usage_due.min(ctx.boot.plus_ms(USAGE_SOON_MS));
                }
            }
            Slot::Move => self.on_move_done(&running.task, result, ctx, out),
            Slot::MoveFence | Slot::MoveBegin => {}
            Slot::Usage => self.on_usage_done(&result, ctx),
            Slot::Job(uid, _) => self.on_job_done(uid, running, result, ctx, out),
            Slot::Mount(req) => self.on_mount_done(req, running.task, result, out),
        }
    }

    // ---- tools for the other files ----

    fn is_running(&self, slot: Slot) -> bool {
        self.running.values().any(|r| r.slot == slot)
    }

    /// Free, and not sleeping after a failure.
    fn is_ready(&self, slot: Slot, now: BootTime) -> bool {
        !self.is_running(slot) && self.backoff.get(&slot).is_none_or(|b| b.not_before <= now)
    }

    fn start(&mut self, slot: Slot, task: Task, out: &mut Out) -> OpId {
        self.start_for_run(slot, task, 0, out)
    }

    fn start_for_run(&mut self, slot: Slot, task: Task, run_seq: u64, out: &mut Out) -> OpId {
        self.seq += 1;
        let op = OpId { generation: self.generation, seq: self.seq };
        self.running.insert(op, Running { slot, task: task.clone(), cancelled: false, run_seq });
        out.tasks.push((op, task));
        op
    }

    fn cancel(&mut self, slot: Slot, out: &mut Out) {
        // What this very event has asked for is not started at all.
        out.tasks.retain(|(op, _)| self.running.get(op).is_none_or(|r| r.slot != slot) || self.running.remove(op).is_none());
        for (op, running) in &mut self.running {
            if running.slot == slot && !running.cancelled {
                running.cancelled = true;
                out.cancels.push(*op);
            }
        }
    }

    fn back_off(&mut self, slot: Slot, ctx: &Ctx) {
        let failures = self.backoff.get(&slot).map_or(0, |b| b.failures).saturating_add(1);
        let wait = (BACKOFF_FIRST_MS << (failures - 1).min(16)).min(BACKOFF_LAST_MS);
        let jitter = ctx.jitter % (wait / 4 + 1);
        self.backoff.insert(slot, Backoff { failures, not_before: ctx.boot.plus_ms(wait + jitter) });
    }

    /// A change of what is wanted ends a sleep.
    fn wake(&mut self, slot: Slot) {
        if let Some(b) = self.backoff.get_mut(&slot) {
            b.not_before = BootTime(0);
        }
    }

    fn trouble(&mut self, condition: &'static str, problem: Problem, out: &mut Out) {
        if self.troubles.get(condition) != Some(&problem) {
            out.notes.push(Note { warning: true, reason: format!("{:?}", problem.reason), message: problem.message.clone() });
            self.troubles.insert(condition, problem);
        }
    }

    fn clear(&mut self, condition: &'static str) {
        self.troubles.remove(condition);
    }

    fn present(&self) -> Option<&Present> {
        match self.desired.as_ref().map(|d| &d.intent) {
            Some(Intent::Present(p)) => Some(p),
            _ => None,
        }
    }

    fn life(&self) -> Option<Life> {
        self.base.as_ref().map(|b| b.life)
    }

    /// On disk and in use, as owner or replica.
    fn is_active(&self) -> bool {
        self.inspected && self.life() == Some(Life::Active)
    }

    fn is_deleting(&self) -> bool {
        matches!(self.life(), Some(Life::Deleting | Life::Gone))
    }

    fn role(&self) -> Option<Role> {
        self.base.as_ref().map(|b| b.role)
    }

    /// May write: owner, opened in this boot, not fenced, not deleting.
    fn may_write(&self) -> bool {
        self.is_active()
            && self.role() == Some(Role::Owner)
            && self.opening != Opening::Closed
            && self.head
            && !self.is_fenced()
            && !self.is_superseded()
    }

    /// The head is, or may be, read-only on disk.
    fn is_fenced(&self) -> bool {
        self.half_fenced || self.base.as_ref().is_some_and(|b| b.frozen.is_some())
    }

    /// Another node took authority without this copy's doing.
    fn is_superseded(&self) -> bool {
        self.base.as_ref().is_some_and(|b| b.superseded)
    }

    fn is_refusal(&self, done: &TaskDone) -> bool {
        match done {
            TaskDone::Deleting(yes) | TaskDone::Headless(yes) => !yes,
            TaskDone::Opened { new, .. } => !new && self.life() == Some(Life::Creating),
            _ => false,
        }
    }

    fn qgroup(&self) -> u64 {
        self.base.as_ref().map_or(0, |b| b.qgroup)
    }

    /// Commits oldest first: the owner gives each a later time than its parent, so time orders a history.
    fn history(&self) -> Vec<&Commit> {
        let mut all: Vec<&Commit> = self.commits.values().collect();
        all.sort_by_key(|c| (c.time, c.id));
        all
    }

    fn newest(&self) -> Option<&Commit> {
        self.commits.values().max_by_key(|c| (c.time, c.id))
    }

    /// It is here, and not only as the base of the next increment.
    fn has_for_use(&self, id: CommitId) -> bool {
        self.commits.get(&id).is_some_and(|c| !c.is_let_go())
    }

    /// The newest that people see: transient ones are left out.
    fn newest_visible(&self) -> Option<&Commit> {
        self.commits.values().filter(|c| !c.transient).max_by_key(|c| (c.time, c.id))
    }

    /// The newest, but for those that the Filesystem made for itself.
    fn newest_lasting(&self) -> Option<CommitId> {
        self.commits.values().filter(|c| !c.transient || c.is_let_go()).max_by_key(|c| (c.time, c.id)).map(|c| c.id)
    }

    fn save_base(&mut self, name: &'static str, change: impl FnOnce(&mut Base), out: &mut Out) {
        if let Some(base) = &mut self.base {
            change(base);
            out.records.push(Record::Base(name, Box::new(base.clone())));
        }
    }

    fn not_here(&self) -> Problem {
        match self.life() {
            Some(Life::Deleting | Life::Gone) => Problem::new(Reason::Deleting, "this Filesystem is being deleted here"),
            _ => Problem::new(Reason::NotPlaced, "no copy of this Filesystem is ready here yet; it follows its Replica object"),
        }
    }
}
