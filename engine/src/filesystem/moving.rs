//! Moving authority to another node, the simple form (migration.md §1–4; ADR 5). What gives away is the *exporter*, what takes the
//! *importer*.
//!
//! - Exporter: *mig-begin* → run (precopy) → fence, once nothing has the head mounted → *mig-frozen* → `Pend` → *mig-pending* →
//!   run (final commit) → `Export` → *mig-export* → `Commit` → *mig-committed*, a replica from then on
//! - Importer: *import-start* → asks until authority has decided → *import-finish* → head from the final commit → `Open` (R0)
//!
//! Before `pending` is set any trouble cancels and thaws. After it only a *won* Abort thaws, never a timeout or a read (R2); each swap
//! ends with what authority says then, and [`Filesystem::judge`] is the one place that says what follows from it.

use super::commits::FenceRequest;
use super::event::{Answer, AuthorityView, Ctx, Handoff, Note, Out, ReqId, Role, Swap, Task, TaskDone};
use super::jobs::{JobState, WantedJob};
use super::record::{MigrationPhase, MigrationRow, Record, RequestRow, RequestState};
use super::status::MigrationStatus;
use super::{Backoff, Filesystem, Opening, Slot};
use crate::ids::{CommitId, Epoch, JobUid, MigId, Timestamp};
use crate::model::{FORMAT_VERSION, Place, Problem, Reason};
use crate::run::{Initial, Intermediate, JobRow, JobSpec, OnConflict, Outcome, Retry, RunParams};

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
    /// What it waits for, for people.
    waits: Option<String>,
    /// The importer could not be reached since.
    stalled: Option<Timestamp>,
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
            MigrationPhase::Begun if self.newest_for_jobs().is_some() => PRECOPY,
            MigrationPhase::Pending => FINAL,
            _ => return None,
        };
        let params = RunParams {
            peer: row.peer.clone(),
            initial: Initial::All,
            intermediate: Intermediate::All,
            retry: Retry::default(),
            on_conflict: OnConflict::Fail,
            also: row.final_commit,
        };
        let trigger = Some(if generation == FINAL { "final" } else { "precopy" }.to_owned());
        let spec = JobSpec { uid: job_of(row.mig), generation, suspend: false, trigger, on_commit: true, params };
        Some(WantedJob { spec, bandwidth: None })
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
        } else if let Some(to) = self.move_wish().filter(|_| self.may_write() && self.is_ready(Slot::Move, ctx.now)) {
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
    }

    fn advance_begun(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone() else { return };
        if self.moving.fenced.is_some() {
            let row = MigrationRow { phase: MigrationPhase::Frozen, final_commit: self.moving.fenced, frozen: Some(ctx.now), ..row };
            self.save_move("mig-frozen", row, out);
            return self.advance_frozen(ctx, out);
        }
        let asked = self.fences.iter().any(FenceRequest::is_of_move);
        if !self.moving.live || !self.may_write() || self.move_wish().as_ref() != Some(&row.peer) {
            if asked && self.is_running(Slot::Head) {
                return; // first the fence ends, one way or the other
            }
            self.fences.retain(|f| !f.is_of_move());
            return self.end_move("mig-cancelled", "Cancelled", "it is not wanted any more, or can't be had now", ctx, out);
        }
        match self.run_ended(&row, PRECOPY) {
            Some(Err(problem)) => return self.cancel_for(&problem, ctx, out),
            None if self.newest_for_jobs().is_some() => return,
            _ => {}
        }
        // A commit that is intended may be on disk already, unknown: it goes first, or it would come after the final one.
        if let Some(owed) = self.owed_commit() {
            self.moving.waits = Some(owed);
        } else if !asked && self.is_ready(Slot::MoveFence, ctx.now) {
            self.fences.push(FenceRequest::of_move());
        }
    }

    fn owed_commit(&self) -> Option<String> {
        let wanted = |uid| self.present().is_some_and(|p| p.commits.iter().any(|c| c.uid == uid && !c.remove));
        let row = self.requests.values().find(|r| r.state == RequestState::Pending && wanted(r.uid))?;
        let why = row.problem.as_ref().map(|p| format!(": {}", p.message)).unwrap_or_default();
        Some(format!("commit {} is made first{why}", row.id))
    }

    /// Before the fence nothing has to be undone.
    fn cancel_for(&mut self, problem: &Problem, ctx: &Ctx, out: &mut Out) {
        self.trouble("MoveBlocked", problem.clone(), out);
        self.back_off(Slot::Move, ctx);
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
                let waits = report.is_some_and(|r| matches!(r.state.as_str(), "WorkingWait" | "PlanningError"));
                self.watch_stall(waits, ctx, out);
            }
        }
    }

    fn give_up(&mut self, problem: Problem, ctx: &Ctx, out: &mut Out) {
        self.trouble("MoveBlocked", problem.clone(), out);
        self.moving.give_up = Some(problem);
        self.advance_pending(ctx, out);
    }

    /// A frozen head doesn't wait for ever for an importer that is gone.
    fn watch_stall(&mut self, waits: bool, ctx: &Ctx, out: &mut Out) {
        if !waits {
            self.moving.stalled = None;
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
        self.back_off(Slot::Move, ctx);
        let why = self.moving.give_up.as_ref().map_or_else(|| "the handoff was taken back".to_owned(), |p| p.message.clone());
        self.end_move("mig-end", "Cancelled", &why, ctx, out);
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
                self.moving.stalled = None;
                if row.phase == MigrationPhase::Pending && self.is_move_wanted(&row) {
                    self.save_move("mig-export", MigrationRow { phase: MigrationPhase::Exported, ..row }, out);
                }
            }
            Err(problem) if problem.reason.is_permanent() => self.give_up_exported(problem, out),
            Err(problem) => {
                let since = *self.moving.stalled.get_or_insert(ctx.now);
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

    // ---- what authority says ----

    /// What follows from authority as it stands. The only place where a handoff is decided, on either side.
    fn judge(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone() else { return self.judge_unmoved(view, ctx, out) };
        let mine = view.owner == self.here.place;
        match row.phase {
            MigrationPhase::Begun | MigrationPhase::Aborted => {}
            MigrationPhase::ImportStart => self.judge_import(&row, view, ctx, out),
            _ if view.epoch < row.epoch => self.hold_regressed(view.epoch, ctx, out),
            // A person accepted, for this copy.
            _ if mine && view.epoch > row.epoch => self.abort_here(row, out),
            _ if mine => self.judge_ours(row, view, ctx, out),
            MigrationPhase::Exported if view.owner == row.peer => self.hand_over(view, ctx, out),
            _ => self.supersede_owner(view, ctx, out),
        }
    }

    fn judge_ours(&mut self, row: MigrationRow, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        match view.pending {
            Some((mig, attempt)) if mig == row.mig => {
                self.moving.looked = true;
                if row.phase == MigrationPhase::Frozen {
                    self.save_move("mig-pending", MigrationRow { phase: MigrationPhase::Pending, attempt, ..row }, out);
                    self.apply_job_specs(ctx, out);
                }
            }
            Some(_) => self.hold("PendingLost", Reason::Internal, "another handoff of this Filesystem is pending", ctx, out),
            None if row.phase == MigrationPhase::Frozen && (view.deleting || !self.is_move_wanted(&row)) => self.abort_here(row, out),
            None if row.phase == MigrationPhase::Frozen => self.look_again(ctx),
            None if view.attempt > row.attempt => self.abort_here(row, out),
            None => {
                let text = "the API has lost the handoff that this head is fenced for (was it restored?): it stays fenced until `kubectl dot accept`";
                self.hold("PendingLost", Reason::EpochRegression, text, ctx, out);
            }
        }
    }

    fn hold(&mut self, condition: &'static str, reason: Reason, text: &str, ctx: &Ctx, out: &mut Out) {
        self.trouble(condition, Problem::new(reason, text), out);
        self.look_again(ctx);
    }

    fn look_again(&mut self, ctx: &Ctx) {
        self.backoff.insert(Slot::Move, Backoff { failures: 0, not_before: ctx.now.plus_ms(LOOK_AGAIN_MS) });
    }

    fn hold_regressed(&mut self, epoch: Epoch, ctx: &Ctx, out: &mut Out) {
        let text = format!("the API shows epoch {epoch}, this node has seen {}: `kubectl dot accept` goes on", self.epoch());
        self.hold("EpochRegression", Reason::EpochRegression, &text, ctx, out);
    }

    fn abort_here(&mut self, row: MigrationRow, out: &mut Out) {
        self.clear("PendingLost");
        self.clear("EpochRegression");
        self.save_move("mig-abort", MigrationRow { phase: MigrationPhase::Aborted, ..row }, out);
    }

    /// The Commit was won, by us or by whoever finished it: this copy is a replica now.
    fn hand_over(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let (epoch, attempt) = (view.epoch, view.attempt);
        self.save_base(
            "mig-committed",
            |b| {
                b.role = Role::Replica;
                b.epoch = b.epoch.max(epoch);
                b.attempt = attempt;
                b.opened = None;
            },
            out,
        );
        self.opening = Opening::Closed;
        self.meta_dirty = true;
        self.forget_sending(out);
        self.end_move("mig-end", "Done", "", ctx, out);
    }

    /// Jobs and wanted commits are the new owner's. A commit that was only intended here is made there.
    fn forget_sending(&mut self, out: &mut Out) {
        for uid in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.drop_job(uid, out);
        }
        let open: Vec<_> = self.requests.values().filter(|r| r.state == RequestState::Pending).map(|r| r.uid).collect();
        for uid in open {
            self.requests.remove(&uid);
            out.records.push(Record::RequestGone(uid));
        }
    }

    /// Authority went elsewhere without us. What is here may hold what nobody else has: it is fenced and kept.
    fn supersede_owner(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let epoch = view.epoch;
        self.save_base(
            "superseded",
            |b| {
                b.superseded = true;
                b.epoch = b.epoch.max(epoch);
                b.opened = None;
            },
            out,
        );
        self.opening = Opening::Closed;
        self.won = None;
        self.meta_dirty = true;
        self.moving.doubt = false;
        self.forget_sending(out);
        let text = format!(
            "node {} owns it since epoch {epoch}; what this copy has beyond it is fenced and kept: take what you need, then `kubectl dot drop`",
            view.owner.node
        );
        self.trouble("Superseded", Problem::new(Reason::NotOwner, text), out);
        if self.migration.is_some() {
            self.end_move("mig-superseded", "Cancelled", "authority was taken by another node", ctx, out);
        }
    }

    fn judge_unmoved(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let Some(base) = self.base.clone() else { return };
        let mine = view.owner == self.here.place;
        match base.role {
            _ if view.epoch < base.epoch => self.hold_regressed(view.epoch, ctx, out),
            Role::Owner if mine => {
                self.moving.doubt = false;
                if base.superseded && view.epoch > base.epoch {
                    self.clear("Superseded");
                    self.undo_fence = self.is_fenced();
                    self.save_base("reinstated", |b| b.superseded = false, out);
                } else {
                    self.look_again(ctx); // the object is behind
                }
            }
            Role::Owner if view.epoch > base.epoch => self.supersede_owner(view, ctx, out),
            Role::Replica if mine && self.present().is_some_and(|p| p.role == Role::Owner) => match self.newest().map(|c| c.id) {
                Some(id) => self.take_over(id, view, (Vec::new(), Vec::new()), out),
                None => self.hold("HeadMissing", Reason::NoCommits, "this copy is to be the owner's, but holds no commit", ctx, out),
            },
            _ => self.look_again(ctx),
        }
    }

    // ---- the importer ----

    pub(super) fn handle_export(&mut self, req: ReqId, handoff: Handoff, ctx: &Ctx, out: &mut Out) {
        let answer = self.checked_handoff(&handoff);
        if answer == Ok(true) {
            let row = MigrationRow {
                version: FORMAT_VERSION,
                phase: MigrationPhase::ImportStart,
                mig: handoff.mig,
                attempt: handoff.attempt,
                epoch: handoff.epoch,
                peer: handoff.from,
                final_commit: Some(handoff.final_commit),
                started: ctx.now,
                frozen: None,
                jobs: handoff.jobs,
                requests: handoff.requests,
            };
            let epoch = handoff.epoch;
            self.save_base("epoch-seen", |b| b.epoch = b.epoch.max(epoch), out);
            self.meta_dirty = true;
            self.moving = MoveState { last: self.moving.last.take(), ..MoveState::default() };
            self.save_move("import-start", row, out);
            self.backoff.insert(Slot::Move, Backoff { failures: 0, not_before: ctx.now.plus_ms(ASK_MS / 4) });
        }
        out.answers.push((req, Answer::Plain(answer.map(|_| ()))));
    }

    /// `Ok(false)`: it was said before.
    fn checked_handoff(&self, handoff: &Handoff) -> Result<bool, Problem> {
        if !self.is_active() {
            return Err(self.not_here());
        }
        if self.role() != Some(Role::Replica) {
            return Err(Problem::new(Reason::ReceiverIsOwner, "this copy is an owner's already"));
        }
        if handoff.epoch < self.epoch() {
            let text = format!("epoch {} is older than {}, known here", handoff.epoch, self.epoch());
            return Err(Problem::new(Reason::StaleEpoch, text));
        }
        if let Some(row) = &self.migration {
            return if (row.mig, row.attempt, row.final_commit) == (handoff.mig, handoff.attempt, Some(handoff.final_commit)) {
                Ok(false)
            } else {
                Err(Problem::new(Reason::Busy, "an earlier handoff to this node is not decided yet"))
            };
        }
        if !self.commits.contains_key(&handoff.final_commit) {
            return Err(Problem::new(Reason::NotFound, format!("the final commit {} is not here", handoff.final_commit)));
        }
        if self.head {
            return Err(Problem::new(Reason::Busy, "the head of an earlier ownership is still here, as something has it mounted"));
        }
        Ok(true)
    }

    fn judge_import(&mut self, row: &MigrationRow, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let Some(final_commit) = row.final_commit else { return };
        let undecided = view.owner == row.peer && view.epoch == row.epoch && view.pending == Some((row.mig, row.attempt));
        if undecided || view.epoch < row.epoch {
            self.backoff.insert(Slot::Move, Backoff { failures: 0, not_before: ctx.now.plus_ms(ASK_MS) });
        } else if view.owner == self.here.place && view.epoch > row.epoch {
            self.take_over(final_commit, view, (row.jobs.clone(), row.requests.clone()), out);
        } else {
            out.records.push(Record::MigrationGone("import-abort"));
            self.migration = None;
        }
    }

    /// `EImportFinish(true)`: the owner from now on; writable once the head is made and authority opened (R4).
    fn take_over(&mut self, from: CommitId, view: &AuthorityView, (jobs, requests): (Vec<JobRow>, Vec<RequestRow>), out: &mut Out) {
        self.cancel(Slot::Receive, out);
        if let Some(partial) = self.partial.take() {
            self.checkpoint = None;
            self.discard.insert(partial.target.id);
            out.records.push(Record::PartialGone);
        }
        let (epoch, attempt) = (view.epoch, view.attempt);
        self.save_base(
            "import-finish",
            |b| {
                b.role = Role::Owner;
                b.epoch = epoch;
                b.attempt = attempt;
                b.opened = None;
                b.frozen = None;
                b.head_from = Some(from);
            },
            out,
        );
        for row in jobs {
            out.records.push(Record::Job(Box::new(row.clone())));
            self.jobs.insert(row.uid, JobState::recovered(row));
        }
        for row in requests {
            if !self.requests.contains_key(&row.uid) {
                self.put_request("commit-intent", row, out);
            }
        }
        if self.migration.take().is_some() {
            out.records.push(Record::MigrationGone("import-over"));
        }
        self.opening = Opening::Closed;
        self.meta_dirty = true;
        self.specs_applied = false;
        self.wake(Slot::Life);
        let message = format!("this node owns it in epoch {epoch}, from commit {from}");
        out.notes.push(Note { warning: false, reason: "TookOver".into(), message });
    }

    // ---- tools ----

    fn epoch(&self) -> Epoch {
        self.base.as_ref().map_or(Epoch(0), |b| b.epoch)
    }

    fn save_move(&mut self, name: &'static str, row: MigrationRow, out: &mut Out) {
        out.records.push(Record::Migration(name, Box::new(row.clone())));
        self.migration = Some(row);
        self.specs_applied = false;
    }

    /// It is over, either way: row and job go, the report stays.
    fn end_move(&mut self, name: &'static str, result: &str, message: &str, ctx: &Ctx, out: &mut Out) {
        let Some(mut report) = self.migration_status(ctx.now) else { return };
        let Some(row) = self.migration.take() else { return };
        report.phase = result.to_owned();
        report.finished_at = Some(ctx.now);
        message.clone_into(&mut report.message);
        out.records.push(Record::MigrationGone(name));
        self.drop_job(job_of(row.mig), out);
        let warning = result != "Done";
        let reason = if warning { "MoveCancelled" } else { "Moved" };
        let text = if warning { format!("to node {}: {message}", row.peer.node) } else { format!("node {} owns it now", row.peer.node) };
        out.notes.push(Note { warning, reason: reason.into(), message: text });
        if !warning {
            self.clear("MoveBlocked");
        }
        self.moving = MoveState { last: Some(report), doubt: self.moving.doubt, ..MoveState::default() };
        self.specs_applied = false;
    }

    /// A job that leaves with all it has here.
    fn drop_job(&mut self, uid: JobUid, out: &mut Out) {
        for lane in [super::JobLane::Main, super::JobLane::Estimate] {
            self.cancel(Slot::Job(uid, lane), out);
        }
        if self.jobs.remove(&uid).is_some() {
            out.records.push(Record::JobGone(uid));
        }
    }

    /// Transient commits go when a newer one is there, or after an hour; nothing that is in use.
    pub(super) fn expire_transients(&mut self, ctx: &Ctx, out: &mut Out) {
        let newest = self.commits.values().filter(|c| c.transient).max_by_key(|c| (c.time, c.id)).map(|c| c.id);
        let old: Vec<CommitId> = self
            .commits
            .values()
            .filter(|c| c.transient && (Some(c.id) != newest || ctx.now.since_ms(c.time) >= TRANSIENT_MS))
            .map(|c| c.id)
            .filter(|id| self.pinned_by(*id).is_none())
            .collect();
        for id in old {
            self.commits.remove(&id);
            self.removing.insert(id);
            out.records.push(Record::CommitRemoving(id));
            out.records.push(Record::CommitGone(id));
        }
    }

    /// When the next transient commit is old enough.
    pub(super) fn transient_due(&self) -> Option<Timestamp> {
        let due = self.commits.values().filter(|c| c.transient).map(|c| c.time.plus_ms(TRANSIENT_MS)).min();
        due.filter(|at| *at > self.clock)
    }

    /// The handoff in hand, or the last one.
    pub(super) fn migration_status(&self, now: Timestamp) -> Option<MigrationStatus> {
        let Some(row) = self.migration.as_ref().filter(|r| r.phase != MigrationPhase::ImportStart) else {
            return self.moving.last.clone();
        };
        let report = self.jobs.get(&job_of(row.mig)).and_then(|j| j.report(now));
        let phase = match row.phase {
            MigrationPhase::Begun if self.moving.waits.is_some() => "WaitingForPods",
            MigrationPhase::Begun if self.fences.iter().any(FenceRequest::is_of_move) => "Freezing",
            MigrationPhase::Begun => "Copying",
            MigrationPhase::Frozen => "Freezing",
            MigrationPhase::Pending => "Exporting",
            MigrationPhase::Exported => "Committing",
            MigrationPhase::Aborted | MigrationPhase::ImportStart => "Aborting",
        };
        let problem = report.as_ref().and_then(|r| r.problem.as_ref()).map(|p| p.message.clone());
        Some(MigrationStatus {
            id: row.mig,
            from: self.here.place.node.clone(),
            to: row.peer.node.clone(),
            attempt: row.attempt,
            phase: phase.to_owned(),
            started_at: row.started,
            finished_at: None,
            frozen_ms: row.frozen.map_or(0, |at| now.since_ms(at)),
            bytes: report.map_or(0, |r| r.replicated_bytes),
            message: self.moving.waits.clone().or(problem).unwrap_or_default(),
        })
    }
}
