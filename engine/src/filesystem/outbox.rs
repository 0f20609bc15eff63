//! Sending: the jobs whose sender this Filesystem is. `run` decides; here its effects become tasks, its results events,
//! and its durable part records.

use std::collections::BTreeMap;

use super::event::{Ctx, Out, Task};
use super::history::History;
use super::record::Record;
use super::standing::Standing;
use super::status::JobStatus;
use super::tasks::{Desk, JobLane, Slot, Tasks};
use crate::ids::{BootTime, CommitId, FsId, JobUid, MigId, NodeName, Now, OpId};
use crate::model::{Commit, Problem, Reason, RunReport, Versions};
use crate::run::{CancelReason, Job, JobRow, NoteReason, RunEffect, RunEffectKind, RunEvent, RunSeed, SendOutcome, SendStep};
use crate::words::{JobKey, WantedJob};

/// Cursor and row of a job that is gone are kept so long (replication.md §3): the object may come back from a backup.
const KEEP_GONE_MS: u64 = 24 * 3_600_000;

/// A job, and what the embedding needs to know beside it.
#[derive(Debug, Clone)]
struct JobState {
    job: Job,
    bandwidth: Option<u64>,
    /// Not wanted since then.
    gone_since: Option<BootTime>,
    /// As last journaled.
    saved: Option<JobRow>,
}

impl JobState {
    fn recovered(row: JobRow) -> Self {
        Self { saved: Some(row.clone()), job: Job::restore(row), bandwidth: None, gone_since: None }
    }

    fn new(uid: JobUid) -> Self {
        Self { saved: None, job: Job::restore(JobRow::new(uid)), bandwidth: None, gone_since: None }
    }

    fn next_wake(&self) -> Option<BootTime> {
        let gone = self.gone_since.map(|at| at.plus_ms(KEEP_GONE_MS));
        self.job.next_wake().into_iter().chain(gone).min()
    }

    /// Whether it needs the commit: as what is on its target, or on the way there.
    ///
    /// The cursor protects the base on both sides: the operator has a commit removed at its owner first, then at the replicas.
    /// A job that is gone keeps its cursor for a day, but no longer stands in anyone's way.
    fn pins(&self, id: CommitId) -> bool {
        (self.gone_since.is_none() || !self.job.is_idle()) && self.job.pins().contains(&id)
    }
}

/// How a task for a run ended.
#[derive(Debug)]
pub(super) enum JobEnd {
    /// The peer's versions; and what is here, read after them.
    Listed(Result<Box<Versions>, Problem>, Box<Versions>),
    /// Bytes of a step, if they could be told.
    Estimated(usize, Option<u64>),
    /// A send.
    Sent(Result<SendOutcome, Problem>),
}

/// What jobs send from, to be read.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) history: &'a History,
    pub(super) standing: &'a Standing,
}

impl Source<'_> {
    /// The newest that people see; what a job brings over is up to it.
    fn newest(self) -> Option<CommitId> {
        self.history.newest_visible().map(|c| c.id)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Outbox {
    fs: FsId,
    jobs: BTreeMap<JobKey, JobState>,
    /// Sends that could not be started; told to their runs in the same call.
    refused: Vec<(JobKey, u64)>,
    /// The jobs of the present spec were taken.
    applied: bool,
}

fn seed(ctx: &Ctx) -> RunSeed {
    RunSeed { run_id: ctx.fresh.uuid(), jitter_seed: ctx.jitter }
}

impl Outbox {
    pub(super) fn recovered(fs: FsId, rows: Vec<JobRow>, handoff: Option<MigId>) -> Self {
        let jobs = rows.into_iter().map(|row| (JobKey::of_row(row.uid, fs, handoff), JobState::recovered(row))).collect();
        Self { fs, jobs, refused: Vec::new(), applied: false }
    }

    // ---- views ----

    /// How the jobs of objects stand. `history`: every commit here, oldest first.
    pub(super) fn statuses(&self, history: &[&Commit], now: Now) -> Vec<JobStatus> {
        let of_objects = self.jobs.iter().filter_map(|(key, s)| match key {
            JobKey::Object(uid) => Some((*uid, &s.job)),
            _ => None,
        });
        let status = |(uid, job): (JobUid, &Job)| JobStatus {
            uid,
            row: job.row().clone(),
            report: job.report(now),
            behind_since: job.behind_since(history.iter().copied()),
            next_firing: job.next_firing(),
        };
        of_objects.map(status).collect()
    }

    pub(super) fn row(&self, key: JobKey) -> Option<&JobRow> {
        self.jobs.get(&key).map(|s| s.job.row())
    }

    pub(super) fn report(&self, key: JobKey, now: Now) -> Option<RunReport> {
        self.jobs.get(&key).and_then(|s| s.job.report(now))
    }

    /// It is wanted, and a run of it is under way or owed.
    pub(super) fn is_busy(&self, key: JobKey) -> bool {
        self.jobs.get(&key).is_some_and(|s| s.gone_since.is_none() && (s.job.row().owed || !s.job.is_idle()))
    }

    /// Some job needs the commit.
    pub(super) fn pins(&self, id: CommitId) -> bool {
        self.jobs.values().any(|s| s.pins(id))
    }

    /// As they go along with authority: what was being sent is sent anew. Of the last run only its outcome goes, not its lists: a handoff
    /// with as many jobs as there can be has to fit into one message.
    pub(super) fn for_export(&self) -> Vec<JobRow> {
        let rows = self.jobs.iter().filter(|(key, _)| !matches!(key, JobKey::Handoff(_))).map(|(_, s)| s.job.row());
        rows.map(|row| {
            let mut row = JobRow { sending: None, ..row.clone() };
            if let Some(last) = &mut row.last {
                last.report.attempts.clear();
                last.report.conflict = None;
            }
            row
        })
        .collect()
    }

    pub(super) fn next_wake(&self) -> Option<BootTime> {
        self.jobs.values().filter_map(JobState::next_wake).min()
    }

    /// The present spec has still to be taken.
    pub(super) const fn is_stale(&self) -> bool {
        !self.applied
    }

    // ---- what is wanted ----

    /// What is wanted may be something else now.
    pub(super) const fn stale(&mut self) {
        self.applied = false;
    }

    /// The Replica's jobs, and those of the Filesystem's own.
    pub(super) fn apply(&mut self, wanted: &[(JobKey, WantedJob)], source: Source<'_>, desk: &mut Desk<'_>) {
        self.applied = true;
        let (newest, fs) = (source.newest(), self.fs);
        for (key, want) in wanted {
            let state = self.jobs.entry(*key).or_insert_with(|| JobState::new(key.uid(fs)));
            state.bandwidth = want.bandwidth;
            state.gone_since = None;
            let mut effects = Vec::new();
            state.job.on_spec(want.spec.clone(), newest, desk.ctx.clock(), seed(desk.ctx), &mut effects);
            self.carry_out(*key, effects, source, desk);
        }
        // That of a handoff goes with the handoff.
        let kept = self.jobs.iter().filter(|(key, s)| !matches!(key, JobKey::Handoff(_)) && s.gone_since.is_none());
        let gone: Vec<JobKey> = kept.map(|(key, _)| *key).filter(|key| !wanted.iter().any(|(w, _)| w == key)).collect();
        for key in gone {
            let Some(state) = self.jobs.get_mut(&key) else { continue };
            state.gone_since = Some(desk.ctx.boot);
            let mut effects = Vec::new();
            state.job.on_stop(CancelReason::Deleted, desk.ctx.clock(), seed(desk.ctx), &mut effects);
            self.carry_out(key, effects, source, desk);
        }
    }

    pub(super) fn advance(&mut self, source: Source<'_>, desk: &mut Desk<'_>) {
        if !source.standing.may_send() {
            return;
        }
        let now = desk.ctx.boot;
        let due: Vec<JobKey> =
            self.jobs.iter().filter(|(_, s)| s.job.next_wake().is_some_and(|at| at <= now)).map(|(key, _)| *key).collect();
        for key in due {
            self.tell(key, RunEvent::Timer, source, desk);
        }
        let is_old = |s: &JobState| s.job.is_idle() && s.gone_since.is_some_and(|at| now.since_ms(at) >= KEEP_GONE_MS);
        let expired: Vec<JobKey> = self.jobs.iter().filter(|(_, s)| is_old(s)).map(|(key, _)| *key).collect();
        for key in expired {
            self.jobs.remove(&key);
            desk.out.records.push(Record::JobGone(key.uid(self.fs)));
        }
    }

    /// A commit is there: `onCommit` jobs start, sleeping ones wake.
    pub(super) fn on_new_commit(&mut self, source: Source<'_>, desk: &mut Desk<'_>) {
        let Some(newest) = source.newest() else { return };
        for key in self.jobs.keys().copied().collect::<Vec<_>>() {
            let Some(state) = self.jobs.get_mut(&key) else { continue };
            let mut effects = Vec::new();
            state.job.on_commit_made(newest, false, desk.ctx.clock(), seed(desk.ctx), &mut effects);
            self.carry_out(key, effects, source, desk);
        }
    }

    pub(super) fn on_peer_back(&mut self, node: &NodeName, source: Source<'_>, desk: &mut Desk<'_>) {
        let is_there = |s: &JobState| s.job.row().peer.as_ref().is_some_and(|p| p.node == *node);
        for key in self.jobs.iter().filter(|(_, s)| is_there(s)).map(|(key, _)| *key).collect::<Vec<_>>() {
            self.tell(key, RunEvent::Wake, source, desk);
        }
    }

    // ---- what its tasks say ----

    /// Something of a send that runs; `event` gets the number that its run knows it by.
    pub(super) fn on_said(&mut self, op: OpId, event: impl FnOnce(u64) -> RunEvent, source: Source<'_>, desk: &mut Desk<'_>) {
        if let Some((key, seq)) = desk.tasks.run_of(op) {
            self.tell(key, event(seq), source, desk);
        }
    }

    /// A task of that run has ended.
    pub(super) fn on_ended(&mut self, (key, seq): (JobKey, u64), end: JobEnd, source: Source<'_>, desk: &mut Desk<'_>) {
        let event = match end {
            JobEnd::Listed(peer, local) => RunEvent::Listed { seq, local: *local, peer: peer.map(|v| *v) },
            JobEnd::Estimated(step, bytes) => RunEvent::Estimated { seq, step, bytes },
            JobEnd::Sent(result) => RunEvent::SendDone { seq, result },
        };
        self.tell(key, event, source, desk);
    }

    /// The commit of some send went between plan and send: the run's progress deadline is not waited for.
    pub(super) fn settle_refused(&mut self, source: Source<'_>, desk: &mut Desk<'_>) {
        for (key, seq) in std::mem::take(&mut self.refused) {
            let result = Err(Problem::new(Reason::BaseGone, "the commit is no longer here"));
            self.tell(key, RunEvent::SendDone { seq, result }, source, desk);
        }
    }

    // ---- runs ----

    fn tell(&mut self, key: JobKey, event: RunEvent, source: Source<'_>, desk: &mut Desk<'_>) {
        let Some(state) = self.jobs.get_mut(&key) else { return };
        let mut effects = Vec::new();
        state.job.handle(event, desk.ctx.clock(), seed(desk.ctx), &mut effects);
        self.carry_out(key, effects, source, desk);
    }

    /// Effects of a run become tasks and notes; its durable part goes to the journal with them, in one transaction.
    fn carry_out(&mut self, key: JobKey, effects: Vec<RunEffect>, source: Source<'_>, desk: &mut Desk<'_>) {
        let mut moved = Vec::new();
        for effect in effects {
            if let RunEffectKind::MoveCursor { .. } = effect.kind {
                moved.push(effect.seq);
            }
            self.carry_out_one(key, effect, source, desk);
        }
        self.save(key, desk.out);
        // Durable together with this batch: the run may go on as if it were (nothing it asks for starts before that).
        for seq in moved {
            self.tell(key, RunEvent::CursorMoved { seq }, source, desk);
        }
    }

    fn carry_out_one(&mut self, key: JobKey, effect: RunEffect, source: Source<'_>, desk: &mut Desk<'_>) {
        let Some(peer) = self.jobs.get(&key).and_then(|s| s.job.row().peer.clone()) else { return };
        let main = Slot::Job(key, JobLane::Main);
        match effect.kind {
            RunEffectKind::List => {
                desk.tasks.cancel(main, desk.out); // of a run that this one supersedes
                let task = Task::PeerVersions { job: key.uid(self.fs), peer };
                desk.tasks.start_for_run(main, task, effect.seq, desk.out);
            }
            RunEffectKind::Estimate { step, from, to } => {
                let lane = Slot::Job(key, JobLane::Estimate);
                desk.tasks.start_for_run(lane, Task::Estimate { step, from, to }, effect.seq, desk.out);
            }
            RunEffectKind::Send(step) => {
                if let Some(task) = self.send(key, step, source) {
                    desk.tasks.start_for_run(main, task, effect.seq, desk.out);
                } else {
                    self.refused.push((key, effect.seq));
                    desk.out.warn("ReplicationBaseGone", "a planned commit is gone; planning anew");
                }
            }
            RunEffectKind::CancelSend => desk.tasks.cancel(main, desk.out),
            RunEffectKind::MoveCursor { .. } | RunEffectKind::Moved { .. } => {}
            RunEffectKind::Note { reason, message } => {
                let warning = !matches!(reason, NoteReason::Planned | NoteReason::Completed | NoteReason::Cancelled);
                let reason = format!("Replication{reason:?}");
                if warning { desk.out.warn(reason, message) } else { desk.out.note(reason, message) }
            }
        }
    }

    fn send(&self, key: JobKey, step: SendStep, source: Source<'_>) -> Option<Task> {
        let state = self.jobs.get(&key)?;
        Some(Task::Send {
            job: key.uid(self.fs),
            run_id: state.job.run()?.spec().run_id,
            peer: state.job.row().peer.clone()?,
            epoch: source.standing.epoch(),
            from: step.from,
            to: Box::new(source.history.get(step.to)?.clone()),
            resume: step.resume.map(Box::new),
            expected: step.expected,
            bandwidth: state.bandwidth,
        })
    }

    fn save(&mut self, key: JobKey, out: &mut Out) {
        let Some(state) = self.jobs.get_mut(&key) else { return };
        if state.saved.as_ref() != Some(state.job.row()) {
            state.saved = Some(state.job.row().clone());
            out.records.push(Record::Job(Box::new(state.job.row().clone())));
        }
    }

    // ---- coming and going of authority ----

    /// A job that came along with authority.
    pub(super) fn adopt(&mut self, row: JobRow, out: &mut Out) {
        out.records.push(Record::Job(Box::new(row.clone())));
        self.jobs.insert(JobKey::of_row(row.uid, self.fs, None), JobState::recovered(row));
    }

    /// A job that leaves has brought more to its peer than the others there know of: they start from that, and it stays pinned. Else the owner may
    /// forget what both sides have, and the next transfer is of everything.
    pub(super) fn hand_on(&mut self, key: JobKey, history: &History, out: &mut Out) {
        let Some(JobRow { peer: Some(peer), cursor: Some(cursor), .. }) = self.row(key).cloned() else { return };
        let Some(order) = history.get(cursor).map(Commit::order) else { return };
        let is_behind = |row: &JobRow| {
            row.peer.as_ref() == Some(&peer) && row.cursor.and_then(|c| history.get(c)).is_none_or(|known| known.order() < order)
        };
        let others = self.jobs.iter().filter(|(other, s)| **other != key && s.gone_since.is_none() && is_behind(s.job.row()));
        for other in others.map(|(other, _)| *other).collect::<Vec<_>>() {
            if let Some(state) = self.jobs.get_mut(&other) {
                state.job.on_brought(cursor);
            }
            self.save(other, out);
        }
    }

    /// A job leaves with all it has here.
    pub(super) fn drop_job(&mut self, key: JobKey, tasks: &mut Tasks, out: &mut Out) {
        for lane in [JobLane::Main, JobLane::Estimate] {
            tasks.cancel(Slot::Job(key, lane), out);
        }
        if self.jobs.remove(&key).is_some() {
            out.records.push(Record::JobGone(key.uid(self.fs)));
        }
    }

    /// All of them: they are the new owner's.
    pub(super) fn drop_all(&mut self, tasks: &mut Tasks, out: &mut Out) {
        for key in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.drop_job(key, tasks, out);
        }
    }

    /// The Filesystem goes: every run ends without another word; its tasks were cancelled already, its rows go with all others.
    pub(super) fn clear(&mut self) {
        self.jobs.clear();
    }
}
