//! Moving authority to another node, the simple form (migration.md §1–4; ADR 5). What gives away is the *exporter*, what takes the
//! *importer*.
//!
//! - Exporter: *mig-begin* → run (precopy) → fence, once nothing has the head mounted → *mig-frozen* → `Pend` → *mig-pending* →
//!   run (final commit) → `Export` → *mig-export* → `Commit` → *mig-committed*, a replica from then on
//! - Importer: *import-start* → asks until authority has decided → *import-finish* → head from the final commit → `Open` (R0)
//!
//! Before `pending` is set any trouble cancels and thaws. After it only a *won* Abort thaws, never a timeout or a read (R2); each swap
//! ends with what authority says then, and `judge` is the one place that says what follows from it.
//!
//! Here: the exporter. `judge`: decisions; `importer`: the other side; `report`: how it is kept and told of.

mod importer;
mod judge;
mod report;

use super::event::{Ctx, Handoff, Note, Out, Role, Swap, Task, TaskDone};
use super::fence::FenceRequest;
use super::jobs::WantedJob;
use super::record::{MigrationPhase, MigrationRow, RequestState};
use super::status::MigrationStatus;
use super::{Backoff, Filesystem, Slot};
use crate::ids::{CommitId, JobUid, MigId, Timestamp};
use crate::model::{FORMAT_VERSION, Place, Problem, Reason};
use crate::run::{Initial, Intermediate, JobSpec, OnConflict, Outcome, Retry, RunParams};

/// How often a head that something has mounted is tried again.
const FENCE_RETRY_MS: u64 = 1_000;
/// An importer that can't be reached for so long while the head is frozen is given up: Abort.
const STALLED_MS: u64 = 60_000;
/// Object and authority disagree: until they are looked at again, if the object doesn't change before.
const LOOK_AGAIN_MS: u64 = 5_000;
/// How long an importer waits between two looks at authority.
const ASK_MS: u64 = 500;
/// Transient commits are kept so long as a base for the way back (migration.md §1).
const TRANSIENT_MS: u64 = 3_600_000;

/// What is not durable of a handoff.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools)] // independent facts, each of its own doc line
pub(super) struct MoveState {
    /// This incarnation has begun it; after a restart it is ended, not gone on with.
    live: bool,
    /// The fence that it asked for is there.
    fenced: Option<CommitId>,
    /// The importer has answered since this incarnation began.
    acked: bool,
    /// Authority has been read since this incarnation began, and had not decided.
    looked: bool,
    /// It is to be given up, for this reason.
    give_up: Option<Problem>,
    /// Who has the head mounted, for people.
    waits: Option<String>,
    /// Since the run of the frozen head first failed without a byte after it.
    stalled: Option<Timestamp>,
    /// Bytes that it had sent when it last brought any.
    brought: u64,
    /// Since the importer first didn't answer an `Export`.
    unheard: Option<Timestamp>,
    /// Bytes that were sent before the fence.
    precopied: u64,
    /// The last one that ended.
    pub(super) last: Option<MigrationStatus>,
    /// The API said that somebody else owns it: to be looked at.
    pub(super) doubt: bool,
}

fn job_of(mig: MigId) -> JobUid {
    JobUid::from_uuid(mig.uuid())
}

/// Two runs: what is committed already, and the final commit.
const PRECOPY: i64 = 1;
const FINAL: i64 = 2;

impl Filesystem {
    fn move_wish(&self) -> Option<Place> {
        self.present().and_then(|p| p.move_to.clone()).filter(|to| to.node != self.here.place.node)
    }

    /// The job that a handoff runs by; jobs.rs treats it like any other.
    pub(super) fn move_job(&self) -> Option<WantedJob> {
        let row = self.migration.as_ref().filter(|_| self.moving.live)?;
        let generation = match row.phase {
            MigrationPhase::Begun if self.has_precopy() => PRECOPY,
            MigrationPhase::Pending => FINAL,
            _ => return None,
        };
        let params = RunParams {
            peer: row.peer.clone(),
            initial: Initial::All,
            intermediate: Intermediate::All,
            retry: Retry::default(),
            on_conflict: OnConflict::Fail,
            // What was begun for a copy close behind comes over before the fence, and is a base for the rest.
            also: row.final_commit.or_else(|| self.precopied()),
        };
        let trigger = Some(if generation == FINAL { "final" } else { "precopy" }.to_owned());
        let spec = JobSpec { uid: job_of(row.mig), generation, suspend: false, trigger, on_commit: true, params };
        Some(WantedJob { spec, bandwidth: None })
    }

    /// There is something to send before the fence.
    fn has_precopy(&self) -> bool {
        self.newest_for_jobs().is_some() || self.precopied().is_some()
    }

    pub(super) fn is_move_job(&self, uid: JobUid) -> bool {
        self.migration.as_ref().is_some_and(|m| job_of(m.mig) == uid)
    }

    /// Commits that a handoff needs.
    pub(super) fn pinned_by_move(&self, id: CommitId) -> bool {
        self.migration.as_ref().is_some_and(|m| m.final_commit == Some(id)) || self.base.as_ref().is_some_and(|b| b.head_from == Some(id))
    }

    /// The head is fenced for a handoff: nobody else thaws it (R2).
    pub(super) fn is_moving_fenced(&self) -> bool {
        self.migration.as_ref().is_some_and(|m| !matches!(m.phase, MigrationPhase::Begun | MigrationPhase::ImportStart))
    }

    pub(super) fn advance_move(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.is_active() || self.absent_confirmed {
            return;
        }
        match self.migration.as_ref().map(|m| m.phase) {
            None => self.advance_unmoved(ctx, out),
            Some(MigrationPhase::Begun) => self.advance_begun(ctx, out),
            Some(MigrationPhase::Frozen) => self.advance_frozen(ctx, out),
            Some(MigrationPhase::Pending) => self.advance_pending(ctx, out),
            Some(MigrationPhase::Exported) => self.advance_exported(ctx, out),
            Some(MigrationPhase::Aborted) => self.advance_aborted(ctx, out),
            Some(MigrationPhase::ImportStart) => self.swap_when_ready(Swap::Ask, ctx, out),
        }
    }

    /// No handoff in hand: begin one, or find out who owns it where object and journal disagree.
    fn advance_unmoved(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(base) = &self.base else { return };
        let wanted = self.present().map(|p| p.role);
        let (role, superseded) = (base.role, base.superseded);
        let unsure = match (role, wanted) {
            (Role::Owner, Some(Role::Owner)) => superseded || self.moving.doubt,
            (Role::Owner, Some(Role::Replica)) => !superseded,
            (Role::Owner, None) => self.moving.doubt && !superseded,
            (Role::Replica, Some(Role::Owner)) => !self.head,
            (Role::Replica, _) => false,
        };
        if unsure {
            self.swap_when_ready(Swap::Ask, ctx, out);
        } else if let Some(to) =
            self.move_wish().filter(|_| self.may_write() && self.is_ready(Slot::Move, ctx.now) && self.is_ready(Slot::MoveBegin, ctx.now))
        {
            self.begin_move(to, ctx, out);
        }
    }

    fn begin_move(&mut self, to: Place, ctx: &Ctx, out: &mut Out) {
        let row = MigrationRow {
            version: FORMAT_VERSION,
            phase: MigrationPhase::Begun,
            mig: MigId::from_uuid(ctx.fresh),
            attempt: 0,
            epoch: self.epoch(),
            peer: to,
            final_commit: None,
            started: ctx.now,
            frozen: None,
            jobs: Vec::new(),
            requests: Vec::new(),
        };
        out.notes.push(Note { warning: false, reason: "MoveStarted".into(), message: format!("to node {}", row.peer.node) });
        self.moving = MoveState { live: true, last: self.moving.last.take(), ..MoveState::default() };
        self.save_move("mig-begin", row, out);
        self.apply_job_specs(ctx, out);
        self.advance_begun(ctx, out); // without a commit to send first nothing else would call, until some event comes by
    }

    fn advance_begun(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone() else { return };
        if self.moving.fenced.is_some() {
            self.moving.precopied = self.move_bytes(&row, ctx.now);
            let row = MigrationRow { phase: MigrationPhase::Frozen, final_commit: self.moving.fenced, frozen: Some(ctx.now), ..row };
            self.save_move("mig-frozen", row, out);
            return self.advance_frozen(ctx, out);
        }
        let asked = self.fences.iter().any(FenceRequest::is_of_move);
        if asked && self.is_running(Slot::Head) {
            return; // first the fence ends, one way or the other: what is cancelled meanwhile, nobody would thaw
        }
        if !self.moving.live || !self.may_write() || self.move_wish().as_ref() != Some(&row.peer) {
            return self.end_move("mig-cancelled", "Cancelled", "it is not wanted any more, or can't be had now", ctx, out);
        }
        match self.run_ended(&row, PRECOPY) {
            Some(Err(problem)) => return self.cancel_for(&problem, ctx, out),
            None if self.has_precopy() => return,
            _ => {}
        }
        // A commit that is intended may be on disk already, unknown: it goes first, or it would come after the final one.
        if self.owed_commit().is_none() && !asked && self.is_ready(Slot::MoveFence, ctx.now) {
            self.fences.push(FenceRequest::of_move());
        }
    }

    pub(super) fn owed_commit(&self) -> Option<String> {
        let wanted = |uid| self.present().is_some_and(|p| p.commits.iter().any(|c| c.uid == uid && !c.remove));
        let row = self.requests.values().find(|r| r.state == RequestState::Pending && r.reset_to.is_none() && wanted(r.uid))?;
        let why = row.problem.as_ref().map(|p| format!(": {}", p.message)).unwrap_or_default();
        Some(format!("commit {} is made first{why}", row.id))
    }

    /// Before the fence nothing has to be undone.
    fn cancel_for(&mut self, problem: &Problem, ctx: &Ctx, out: &mut Out) {
        self.trouble("MoveBlocked", problem.clone(), out);
        self.back_off(Slot::MoveBegin, ctx);
        self.end_move("mig-cancelled", "Cancelled", &problem.message.clone(), ctx, out);
    }

    /// `pending` may be set or not: it is found out, by setting it or by asking.
    fn advance_frozen(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone() else { return };
        let Some(final_commit) = row.final_commit else { return };
        if self.is_move_wanted(&row) {
            self.swap_when_ready(Swap::Pend { mig: row.mig, epoch: row.epoch, to: row.peer, final_commit }, ctx, out);
        } else {
            self.swap_when_ready(Swap::Ask, ctx, out);
        }
    }

    fn is_move_wanted(&self, row: &MigrationRow) -> bool {
        self.moving.live && self.moving.give_up.is_none() && self.move_wish().as_ref() == Some(&row.peer)
    }

    fn advance_pending(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone() else { return };
        if !self.is_move_wanted(&row) {
            return self.swap_when_ready(Swap::Abort { mig: row.mig, attempt: row.attempt, epoch: row.epoch }, ctx, out);
        }
        match self.run_ended(&row, FINAL) {
            Some(Ok(())) => self.export(&row, ctx, out),
            Some(Err(problem)) => self.give_up(problem, ctx, out),
            None => {
                let report = self.jobs.get(&job_of(row.mig)).and_then(|j| j.report(ctx.now));
                let bytes = report.as_ref().map_or(0, |r| r.replicated_bytes);
                let waits = report.filter(|r| matches!(r.state.as_str(), "WorkingWait" | "PlanningError"));
                // A target that is full doesn't get less so while the head stands frozen.
                match waits.as_ref().and_then(|r| r.problem.clone()).filter(|p| p.reason == Reason::NoSpace) {
                    Some(full) => self.give_up(full, ctx, out),
                    None => self.watch_stall(waits.is_some(), bytes, ctx, out),
                }
            }
        }
    }

    fn give_up(&mut self, problem: Problem, ctx: &Ctx, out: &mut Out) {
        self.trouble("MoveBlocked", problem.clone(), out);
        self.moving.give_up = Some(problem);
        self.advance_pending(ctx, out);
    }

    /// A frozen head doesn't wait for ever for an importer that is gone. Only bytes are progress: each attempt looks alive at first.
    fn watch_stall(&mut self, waits: bool, bytes: u64, ctx: &Ctx, out: &mut Out) {
        if bytes != self.moving.brought {
            self.moving.brought = bytes;
            self.moving.stalled = None;
        }
        if !waits {
            return;
        }
        let since = *self.moving.stalled.get_or_insert(ctx.now);
        if ctx.now.since_ms(since) >= STALLED_MS {
            self.give_up(
                Problem::new(Reason::Unreachable, "the new owner could not be reached for a minute: the volume stays here"),
                ctx,
                out,
            );
        }
    }

    fn export(&mut self, row: &MigrationRow, ctx: &Ctx, out: &mut Out) {
        let Some(final_commit) = row.final_commit.filter(|_| self.is_ready(Slot::Move, ctx.now)) else { return };
        let own = job_of(row.mig);
        let handoff = Handoff {
            mig: row.mig,
            attempt: row.attempt,
            epoch: row.epoch,
            from: self.here.place.clone(),
            final_commit,
            jobs: self.jobs.iter().filter(|(uid, _)| **uid != own).map(|(_, j)| j.row_for_export()).collect(),
            requests: self.requests.values().filter(|r| r.state == RequestState::Pending).cloned().collect(),
        };
        self.start(Slot::Move, Task::Export { peer: row.peer.clone(), handoff: Box::new(handoff) }, out);
    }

    /// `EExport` is durable: not thawed without the result of a swap. The importer must have answered, also after a restart.
    fn advance_exported(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone() else { return };
        if self.moving.give_up.is_some() {
            self.swap_when_ready(Swap::Abort { mig: row.mig, attempt: row.attempt, epoch: row.epoch }, ctx, out);
        } else if self.moving.acked {
            self.swap_when_ready(Swap::Commit { mig: row.mig, attempt: row.attempt, epoch: row.epoch }, ctx, out);
        } else if self.moving.live || self.moving.looked {
            self.export(&row, ctx, out);
        } else {
            self.swap_when_ready(Swap::Ask, ctx, out);
        }
    }

    /// The Abort was won, or `pending` never was: the head is thawed, then it is over.
    fn advance_aborted(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.is_fenced() {
            self.undo_fence = true; // advance_head does it, and tries again
            return;
        }
        self.undo_fence = false;
        self.back_off(Slot::MoveBegin, ctx);
        let why = self.moving.give_up.as_ref().map_or_else(|| "the handoff was taken back".to_owned(), |p| p.message.clone());
        self.end_move("mig-end", "Cancelled", &why, ctx, out);
    }

    /// Bytes that its present run has sent, or its last one.
    fn move_bytes(&self, row: &MigrationRow, now: Timestamp) -> u64 {
        self.jobs.get(&job_of(row.mig)).and_then(|j| j.report(now)).map_or(0, |r| r.replicated_bytes)
    }

    /// `None`: the run is under way.
    fn run_ended(&self, row: &MigrationRow, generation: i64) -> Option<Result<(), Problem>> {
        let job = self.jobs.get(&job_of(row.mig))?.row();
        let last = job.last.filter(|l| l.generation == generation && !job.owed)?;
        match last.outcome {
            Outcome::Completed { replicated, .. } if generation == PRECOPY || row.final_commit == Some(replicated) => Some(Ok(())),
            Outcome::Completed { .. } => Some(Err(Problem::new(Reason::Internal, "the run ended before the final commit was over"))),
            Outcome::Failed(problem) => Some(Err(problem)),
            Outcome::ContextDone(_) => None,
        }
    }

    fn swap_when_ready(&mut self, swap: Swap, ctx: &Ctx, out: &mut Out) {
        if self.is_ready(Slot::Move, ctx.now) {
            self.start(Slot::Move, Task::Swap(swap), out);
        }
    }

    /// A fence that the handoff asked for has ended.
    pub(super) fn on_move_fenced(&mut self, result: &Result<(CommitId, u64), Problem>, ctx: &Ctx) {
        match result {
            Ok((id, _)) => {
                self.moving.fenced = Some(*id);
                self.moving.waits = None;
            }
            Err(problem) => {
                self.moving.waits = Some(problem.message.clone());
                self.backoff.insert(Slot::MoveFence, Backoff { failures: 0, not_before: ctx.now.plus_ms(FENCE_RETRY_MS) });
            }
        }
    }

    pub(super) fn on_move_done(&mut self, task: &Task, result: Result<TaskDone, Problem>, ctx: &Ctx, out: &mut Out) {
        match (task, result) {
            (Task::Swap(_), Ok(TaskDone::Authority(view))) => {
                self.clear("AuthorityUnreachable");
                self.judge(&view, ctx, out);
            }
            (Task::Swap(_), Err(problem)) => self.trouble("AuthorityUnreachable", problem, out),
            (Task::Export { handoff, .. }, result) => self.on_exported(handoff, result, ctx, out),
            _ => {}
        }
    }

    fn on_exported(&mut self, handoff: &Handoff, result: Result<TaskDone, Problem>, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone().filter(|r| (r.mig, r.attempt) == (handoff.mig, handoff.attempt)) else { return };
        match result {
            Ok(_) => {
                self.moving.acked = true;
                self.moving.unheard = None;
                if row.phase == MigrationPhase::Pending && self.is_move_wanted(&row) {
                    self.save_move("mig-export", MigrationRow { phase: MigrationPhase::Exported, ..row }, out);
                }
            }
            Err(problem) if problem.reason.is_permanent() => self.give_up_exported(problem, out),
            Err(problem) => {
                let since = *self.moving.unheard.get_or_insert(ctx.now);
                if ctx.now.since_ms(since) >= STALLED_MS {
                    self.give_up_exported(problem, out);
                }
            }
        }
    }

    fn give_up_exported(&mut self, problem: Problem, out: &mut Out) {
        self.trouble("MoveBlocked", problem.clone(), out);
        self.moving.give_up = Some(problem);
    }
}
