//! Sending: the jobs whose sender this Filesystem is. `run` decides; here its effects become tasks, its results events,
//! and its durable part records.

use super::event::{Ctx, Note, Out, Task, TaskDone};
use super::record::Record;
use super::{Filesystem, JobLane, Role, Running, Slot};
use crate::ids::{CommitId, JobUid, NodeName, OpId, Timestamp};
use crate::model::{Problem, Reason, RunReport};
use crate::run::{CancelReason, Fresh, Job, JobRow, JobSpec, RunEffect, RunEffectKind, RunEvent, SendOutcome};

/// Cursor and row of a job that is gone are kept so long (replication.md §3): the object may come back from a backup.
const KEEP_GONE_MS: u64 = 24 * 3_600_000;

/// A job as the owner's Replica has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedJob {
    /// For the engine.
    pub spec: JobSpec,
    /// Bytes per second, shared by its steps.
    pub bandwidth: Option<u64>,
}

/// A job, and what the embedding needs to know beside it.
#[derive(Debug, Clone)]
pub(super) struct JobState {
    job: Job,
    bandwidth: Option<u64>,
    /// Not wanted since then.
    gone_since: Option<Timestamp>,
    /// As last journaled.
    saved: Option<JobRow>,
}

impl JobState {
    pub(super) fn recovered(row: JobRow) -> Self {
        Self { saved: Some(row.clone()), job: Job::restore(row), bandwidth: None, gone_since: None }
    }
    fn new(uid: JobUid) -> Self {
        Self { saved: None, job: Job::restore(JobRow::new(uid)), bandwidth: None, gone_since: None }
    }
    pub(super) fn row(&self) -> JobRow {
        self.job.row().clone()
    }
    /// As it goes along with authority: what was being sent is sent anew. Of the last run only its outcome goes, not its lists: a handoff
    /// with as many jobs as there can be has to fit into one message.
    pub(super) fn row_for_export(&self) -> JobRow {
        let mut row = JobRow { sending: None, ..self.row() };
        if let Some(last) = &mut row.last {
            last.report.attempts.clear();
            last.report.conflict = None;
        }
        row
    }
    pub(super) fn report(&self, now: Timestamp) -> Option<RunReport> {
        self.job.report(now)
    }
    pub(super) fn is_gone(&self) -> bool {
        self.gone_since.is_some()
    }
    pub(super) const fn is_idle(&self) -> bool {
        self.job.is_idle()
    }
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        let gone = self.gone_since.map(|at| at.plus_ms(KEEP_GONE_MS));
        self.job.next_wake().into_iter().chain(gone).min()
    }
    /// Whether it needs the commit: as what is on its target, or on the way there.
    ///
    /// The cursor protects the base on both sides: the operator has a commit removed at its owner first, then at the replicas.
    /// A job that is gone keeps its cursor for a day, but no longer stands in anyone's way.
    pub(super) fn pins(&self, id: CommitId) -> bool {
        (self.gone_since.is_none() || !self.job.is_idle()) && self.job.pins().contains(&id)
    }
}

fn fresh(ctx: &Ctx) -> Fresh {
    Fresh { run_id: ctx.fresh, jitter_seed: ctx.jitter }
}

impl Filesystem {
    pub(super) fn newest_for_jobs(&self) -> Option<CommitId> {
        self.newest_visible().map(|c| c.id)
    }

    /// Jobs run where the Filesystem is owned and in use.
    fn may_send(&self) -> bool {
        self.is_active() && self.role() == Some(Role::Owner) && !self.is_superseded()
    }

    /// The Replica's jobs changed, or the copy became able to send.
    pub(super) fn apply_job_specs(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.specs_applied || !self.may_send() {
            return;
        }
        let Some(mut wanted) = self.present().map(|p| p.jobs.clone()) else {
            return;
        };
        wanted.extend(self.move_job());
        wanted.extend(self.precopy_job());
        self.specs_applied = true;
        let newest = self.newest_for_jobs();
        for want in &wanted {
            let state = self.jobs.entry(want.spec.uid).or_insert_with(|| JobState::new(want.spec.uid));
            state.bandwidth = want.bandwidth;
            state.gone_since = None;
            let mut effects = Vec::new();
            state.job.on_spec(want.spec.clone(), newest, ctx.now, fresh(ctx), &mut effects);
            self.carry_out(want.spec.uid, effects, ctx, out);
        }
        let kept = self.jobs.keys().filter(|uid| !self.is_move_job(**uid));
        let gone: Vec<JobUid> = kept.filter(|uid| !wanted.iter().any(|w| w.spec.uid == **uid)).copied().collect();
        for uid in gone {
            if let Some(state) = self.jobs.get_mut(&uid)
                && state.gone_since.is_none()
            {
                state.gone_since = Some(ctx.now);
                self.stop_job(uid, CancelReason::Deleted, ctx, out);
            }
        }
    }

    fn stop_job(&mut self, uid: JobUid, reason: CancelReason, ctx: &Ctx, out: &mut Out) {
        let Some(state) = self.jobs.get_mut(&uid) else {
            return;
        };
        let mut effects = Vec::new();
        state.job.on_stop(reason, ctx.now, fresh(ctx), &mut effects);
        self.carry_out(uid, effects, ctx, out);
    }

    pub(super) fn advance_jobs(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.may_send() {
            return;
        }
        let due: Vec<JobUid> =
            self.jobs.iter().filter(|(_, s)| s.job.next_wake().is_some_and(|at| at <= ctx.now)).map(|(uid, _)| *uid).collect();
        for uid in due {
            self.tell(uid, RunEvent::Timer, ctx, out);
        }
        let expired: Vec<JobUid> = self
            .jobs
            .iter()
            .filter(|(_, s)| s.job.is_idle() && s.gone_since.is_some_and(|at| ctx.now.since_ms(at) >= KEEP_GONE_MS))
            .map(|(uid, _)| *uid)
            .collect();
        for uid in expired {
            self.jobs.remove(&uid);
            out.records.push(Record::JobGone(uid));
        }
    }

    /// A commit is there: `onCommit` jobs start, sleeping ones wake.
    pub(super) fn on_new_commit_for_jobs(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(newest) = self.newest_for_jobs() else {
            return;
        };
        for uid in self.jobs.keys().copied().collect::<Vec<_>>() {
            let Some(state) = self.jobs.get_mut(&uid) else {
                continue;
            };
            let mut effects = Vec::new();
            state.job.on_commit_made(newest, false, ctx.now, fresh(ctx), &mut effects);
            self.carry_out(uid, effects, ctx, out);
        }
    }

    /// The Filesystem goes: every run ends without another word; its tasks were cancelled already.
    pub(super) fn cancel_all_runs(&mut self) {
        self.jobs.clear();
    }

    pub(super) fn on_peer_back(&mut self, node: &NodeName, ctx: &Ctx, out: &mut Out) {
        let uids: Vec<JobUid> =
            self.jobs.iter().filter(|(_, s)| s.job.row().peer.as_ref().is_some_and(|p| p.node == *node)).map(|(uid, _)| *uid).collect();
        for uid in uids {
            self.tell(uid, RunEvent::Wake, ctx, out);
        }
    }

    fn run_seq(&self, op: OpId) -> Option<(JobUid, u64)> {
        match self.running.get(&op) {
            Some(Running { slot: Slot::Job(uid, _), run_seq, .. }) => Some((*uid, *run_seq)),
            _ => None,
        }
    }

    pub(super) fn on_progress(&mut self, op: OpId, bytes: u64, resumed_from: u64, ctx: &Ctx, out: &mut Out) {
        if let Some((uid, seq)) = self.run_seq(op) {
            self.tell(uid, RunEvent::Progress { seq, bytes, resumed_from }, ctx, out);
        }
    }

    pub(super) fn on_alive(&mut self, op: OpId, silent_ms: u64, ctx: &Ctx, out: &mut Out) {
        if let Some((uid, seq)) = self.run_seq(op) {
            self.tell(uid, RunEvent::Alive { seq, silent_ms }, ctx, out);
        }
    }

    pub(super) fn on_verifying(&mut self, op: OpId, ctx: &Ctx, out: &mut Out) {
        if let Some((uid, seq)) = self.run_seq(op) {
            self.tell(uid, RunEvent::Verifying { seq }, ctx, out);
        }
    }

    pub(super) fn on_job_done(&mut self, uid: JobUid, running: Running, result: Result<TaskDone, Problem>, ctx: &Ctx, out: &mut Out) {
        self.backoff.remove(&running.slot); // the run has its own
        let seq = running.run_seq;
        let event = match (running.task, result) {
            (Task::PeerVersions { .. }, result) => {
                let local = self.versions();
                let peer = result.and_then(|done| match done {
                    TaskDone::Versions(v) => Ok(*v),
                    _ => Err(Problem::new(Reason::Internal, "unexpected result of a listing")),
                });
                RunEvent::Listed { seq, local, peer }
            }
            (Task::Estimate { step, .. }, result) => {
                let bytes = match result {
                    Ok(TaskDone::Estimated(bytes)) => bytes,
                    _ => None,
                };
                RunEvent::Estimated { seq, step, bytes }
            }
            (Task::Send { .. }, result) => {
                let result = result.and_then(|done| match done {
                    TaskDone::Sent { bytes, already } => Ok(SendOutcome { bytes_sent: bytes, already }),
                    _ => Err(Problem::new(Reason::Internal, "unexpected result of a send")),
                });
                RunEvent::SendDone { seq, result }
            }
            _ => return,
        };
        self.tell(uid, event, ctx, out);
    }

    fn tell(&mut self, uid: JobUid, event: RunEvent, ctx: &Ctx, out: &mut Out) {
        let Some(state) = self.jobs.get_mut(&uid) else {
            return;
        };
        let mut effects = Vec::new();
        state.job.handle(event, ctx.now, fresh(ctx), &mut effects);
        self.carry_out(uid, effects, ctx, out);
    }

    /// Effects of a run become tasks and notes; its durable part goes to the journal with them, in one transaction.
    fn carry_out(&mut self, uid: JobUid, effects: Vec<RunEffect>, ctx: &Ctx, out: &mut Out) {
        let mut moved = Vec::new();
        for effect in effects {
            if let RunEffectKind::MoveCursor { .. } = effect.kind {
                moved.push(effect.seq);
            }
            self.carry_out_one(uid, effect, out);
        }
        self.save_job(uid, out);
        // Durable together with this batch: the run may go on as if it were (nothing it asks for starts before that).
        for seq in moved {
            self.tell(uid, RunEvent::CursorMoved { seq }, ctx, out);
        }
    }

    fn carry_out_one(&mut self, uid: JobUid, effect: RunEffect, out: &mut Out) {
        let Some(state) = self.jobs.get(&uid) else {
            return;
        };
        let (bandwidth, run_id) = (state.bandwidth, state.job.run().map(|r| r.spec().run_id));
        let Some(peer) = state.job.row().peer.clone() else {
            return;
        };
        let main = Slot::Job(uid, JobLane::Main);
        match effect.kind {
            RunEffectKind::List => {
                self.cancel(main, out); // of a run that this one supersedes
                self.start_for_run(main, Task::PeerVersions { job: uid, peer }, effect.seq, out);
            }
            RunEffectKind::Estimate { step, from, to } => {
                self.start_for_run(Slot::Job(uid, JobLane::Estimate), Task::Estimate { step, from, to }, effect.seq, out);
            }
            RunEffectKind::Send(step) => {
                let epoch = self.base.as_ref().map_or(crate::ids::Epoch(0), |b| b.epoch);
                let (Some(to), Some(run_id)) = (self.commits.get(&step.to).cloned(), run_id) else {
                    return self.refuse_send(uid, effect.seq, out);
                };
                let task = Task::Send {
                    job: uid,
                    run_id,
                    peer,
                    epoch,
                    from: step.from,
                    to: Box::new(to),
                    resume: step.resume.map(Box::new),
                    expected: step.expected,
                    bandwidth,
                };
                self.start_for_run(main, task, effect.seq, out);
            }
            RunEffectKind::CancelSend => self.cancel(main, out),
            RunEffectKind::MoveCursor { .. } | RunEffectKind::Moved { .. } => {}
            RunEffectKind::Note { reason, message } => {
                use crate::run::NoteReason as N;
                let warning = !matches!(reason, N::Planned | N::Completed | N::Cancelled);
                out.notes.push(Note { warning, reason: format!("Replication{reason:?}"), message });
            }
        }
    }

    /// The commit went between plan and send: the run's progress deadline is not waited for.
    fn refuse_send(&mut self, uid: JobUid, seq: u64, out: &mut Out) {
        self.refused_sends.push((uid, seq));
        out.notes.push(Note {
            warning: true,
            reason: "ReplicationBaseGone".into(),
            message: "a planned commit is gone; planning anew".into(),
        });
    }

    pub(super) fn settle_refused_sends(&mut self, ctx: &Ctx, out: &mut Out) {
        for (uid, seq) in std::mem::take(&mut self.refused_sends) {
            let result = Err(Problem::new(Reason::BaseGone, "the commit is no longer here"));
            self.tell(uid, RunEvent::SendDone { seq, result }, ctx, out);
        }
    }

    fn save_job(&mut self, uid: JobUid, out: &mut Out) {
        let Some(state) = self.jobs.get_mut(&uid) else {
            return;
        };
        if state.saved.as_ref() != Some(state.job.row()) {
            state.saved = Some(state.job.row().clone());
            out.records.push(Record::Job(Box::new(state.job.row().clone())));
        }
    }
}
