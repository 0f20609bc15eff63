//! `Job`: what a ReplicationJob is for one Filesystem on the sender, across runs and restarts: when a run
//! starts, what it starts with, what it left behind (README §2, replication.md §5–6).
//!
//! The [`JobRow`] is the durable part. It changes in the same call as the effects that follow from it, so the
//! embedder journals both in one transaction and only then executes the effects.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CancelReason, Initial, Intermediate, OnConflict, Outcome, Retry, Run, RunEffect, RunEffectKind, RunEvent, RunSpec};
use crate::format::Kind;
use crate::ids::{BootTime, CommitId, JobUid, Now, Timestamp};
use crate::model::{Place, RunReport};
use crate::schedule::Schedule;

/// At least so often a schedule is compared with the wall clock, which anybody may set.
const LOOK_MS: u64 = 60_000;

/// What each run of a job gets from its spec. A change supersedes the run in hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunParams {
    /// The receiver. Another one means another cursor.
    pub peer: Place,
    /// Policy for a first copy.
    pub initial: Initial,
    /// Policy for commits in between.
    pub intermediate: Intermediate,
    /// When a run gives up.
    pub retry: Retry,
    /// Policy for conflicts.
    pub on_conflict: OnConflict,
    /// A transient commit to bring over: the last of a handoff. Only jobs that the Filesystem makes for itself have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also: Option<CommitId>,
}

/// The job as `Replica.spec.jobs[]` has it. Without `trigger`, `on_commit` and `schedule` it is one-shot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// The object's UID.
    pub uid: JobUid,
    /// The object's generation.
    pub generation: i64,
    /// Stop what runs, start nothing; what is owed is kept.
    pub suspend: bool,
    /// A new value starts a run.
    pub trigger: Option<String>,
    /// Each commit starts a run.
    pub on_commit: bool,
    /// Each of its firings starts a run. Those that were missed, or came while a run was under way or suspended, are made up for by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// For the runs.
    pub params: RunParams,
}

/// What the caller draws for a run that a call may start; unused otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSeed {
    /// The run's name.
    pub run_id: Uuid,
    /// Seed of its jitter.
    pub jitter_seed: u64,
}

/// The durable part of a [`Job`], one row of the journal per (job, Filesystem).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobRow {
    /// Version of [`Kind::Job`].
    pub version: u32,
    /// The job.
    pub uid: JobUid,
    /// Whose cursor it is.
    pub peer: Option<Place>,
    /// The last spec that was taken.
    pub observed_generation: i64,
    /// The last trigger that was taken.
    pub observed_trigger: Option<String>,
    /// A run has come to its own end: a one-shot job is not run again.
    pub done_once: bool,
    /// A run is due or has not come to its own end: it is (re)done after a restart.
    pub owed: bool,
    /// The newest commit known to be on the peer by this job's doing; pinned.
    pub cursor: Option<CommitId>,
    /// A send of it was begun and its end is not known: it may be on the peer. Pinned, or a lost ack and a removal here would leave
    /// the two sides without a common commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sending: Option<CommitId>,
    /// The last firing of its schedule that was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fired: Option<Fired>,
    /// The last run that ended.
    pub last: Option<LastRun>,
    /// When a run last ended with its target on the receiver.
    pub last_successful_time: Option<Timestamp>,
    /// Runs since then that did not.
    pub consecutive_failures: u32,
}

/// A firing of a schedule that was taken: it goes along with authority, so that no node takes it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fired {
    /// The schedule, as text: another one begins anew.
    pub by: String,
    /// Its time, without jitter; of the first one, when the schedule was first seen.
    pub at: Timestamp,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastRun {
    /// Its name.
    pub run_id: Uuid,
    /// The job's generation when it ended: a failed one is redone when that changes.
    pub generation: i64,
    /// How it ended.
    pub outcome: Outcome,
    /// Its last report; doesn't change any more.
    pub report: RunReport,
}

impl JobRow {
    /// Of a job that was never seen before.
    pub const fn new(uid: JobUid) -> Self {
        Self {
            version: Kind::Job.newest(),
            uid,
            peer: None,
            observed_generation: 0,
            observed_trigger: None,
            done_once: false,
            owed: false,
            cursor: None,
            sending: None,
            fired: None,
            last: None,
            last_successful_time: None,
            consecutive_failures: 0,
        }
    }
}

/// Reasons, met while a run was under way, for the next one to start as soon as it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Again {
    trigger: bool,
    commit: bool,
}

/// A ReplicationJob's life for one Filesystem, on its owner's node.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    row: JobRow,
    /// `None` after a restart until [`Job::on_spec`]: nothing starts before.
    spec: Option<JobSpec>,
    run: Option<Run>,
    newest: Option<CommitId>,
    again: Again,
    /// Set by [`Job::on_stop`]; while it is, nothing starts.
    stopped: Option<CancelReason>,
    next_seq: u64,
    /// When the schedule is to be looked at again.
    look: Option<BootTime>,
}

type Out<'a> = &'a mut Vec<RunEffect>;

impl Job {
    /// A new job, or one from the journal.
    pub const fn restore(row: JobRow) -> Self {
        let again = Again { trigger: false, commit: false };
        Self { row, spec: None, run: None, newest: None, again, stopped: None, next_seq: 1, look: None }
    }

    /// Whether [`Job::on_stop`] was the last word: nothing starts.
    pub const fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The durable part, to be journaled with the effects of the same call.
    pub const fn row(&self) -> &JobRow {
        &self.row
    }

    /// The last spec taken since the start of this program.
    pub const fn spec(&self) -> Option<&JobSpec> {
        self.spec.as_ref()
    }

    /// The run in hand.
    pub const fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// Whether no run is in hand: after [`Job::on_stop`], whether it may be dropped.
    pub const fn is_idle(&self) -> bool {
        self.run.is_none()
    }

    /// The run in hand's report, or the last one's.
    pub fn report(&self, now: Now) -> Option<RunReport> {
        match &self.run {
            Some(run) => Some(run.report(now)),
            None => self.row.last.as_ref().map(|last| last.report.clone()),
        }
    }

    /// When `handle(Timer)` is due.
    pub fn next_wake(&self) -> Option<BootTime> {
        self.run.as_ref().and_then(Run::next_wake).into_iter().chain(self.look).min()
    }

    /// Commits that must be kept for this job now: its cursor's and its run's.
    pub fn pins(&self) -> BTreeSet<CommitId> {
        let run = self.run.as_ref().map(Run::pins).unwrap_or_default();
        run.into_iter().chain(self.row.cursor).chain(self.row.sending).collect()
    }

    /// The spec was read, for the first time, again or changed. `newest` is the Filesystem's newest commit that
    /// is not transient. A spec of another job is ignored.
    pub fn on_spec(&mut self, spec: JobSpec, newest: Option<CommitId>, now: Now, seed: RunSeed, out: &mut Vec<RunEffect>) {
        if spec.uid != self.row.uid {
            return;
        }
        if self.stopped == Some(CancelReason::Deleted) {
            self.stopped = None;
        }
        let first = self.spec.is_none();
        let changed = self.spec.as_ref() != Some(&spec);
        self.newest = newest;
        if self.row.peer.as_ref() != Some(&spec.params.peer) {
            self.row.peer = Some(spec.params.peer.clone());
            self.row.cursor = None;
            self.row.sending = None;
            self.row.done_once = false;
        }
        self.owe(&spec, first, changed);
        self.row.observed_generation = spec.generation;
        self.spec = Some(spec);
        if changed && self.why_not().is_none() {
            self.tell_run(RunEvent::Wake, now, out);
        }
        self.settle(now, seed, out);
    }

    /// Whether the spec asks for a run that was not made yet.
    fn owe(&mut self, spec: &JobSpec, first: bool, changed: bool) {
        let row = &mut self.row;
        let triggered = spec.trigger.is_some() && spec.trigger != row.observed_trigger;
        if triggered {
            row.observed_trigger.clone_from(&spec.trigger);
            self.again.trigger = self.run.is_some();
        }
        let once = spec.trigger.is_none() && !spec.on_commit && spec.schedule.is_none() && !row.done_once;
        let behind = spec.on_commit && self.newest.is_some() && self.newest != row.cursor;
        let failed = row.last.as_ref().is_some_and(|l| !matches!(l.outcome, Outcome::Completed { .. }) && l.generation != spec.generation);
        row.owed |= triggered || once || (behind && (first || changed)) || failed;
    }

    /// Another job has brought that commit to the same peer, which is newer than what this one knows to be there.
    pub const fn on_brought(&mut self, commit: CommitId) {
        self.row.cursor = Some(commit);
    }

    /// A commit was made in the Filesystem.
    pub fn on_commit_made(&mut self, commit: CommitId, transient: bool, now: Now, seed: RunSeed, out: &mut Vec<RunEffect>) {
        if transient {
            return;
        }
        self.newest = Some(commit);
        if self.spec.as_ref().is_some_and(|s| s.on_commit) {
            self.row.owed = true;
            self.again.commit = self.run.is_some();
        }
        self.tell_run(RunEvent::Wake, now, out);
        self.settle(now, seed, out);
    }

    /// A result, timer or wake-up for the run in hand; ignored if there is none.
    pub fn handle(&mut self, event: RunEvent, now: Now, seed: RunSeed, out: &mut Vec<RunEffect>) {
        self.tell_run(event, now, out);
        self.settle(now, seed, out);
    }

    /// The job or its Filesystem goes, or this node stops being the owner: ends the run; none starts until
    /// [`Job::on_resume`]. A deleted job whose spec is there again (the API was restored) needs only [`Job::on_spec`].
    pub fn on_stop(&mut self, reason: CancelReason, now: Now, seed: RunSeed, out: &mut Vec<RunEffect>) {
        self.stopped = self.stopped.max(Some(reason));
        self.settle(now, seed, out);
    }

    /// This node is the owner again.
    pub fn on_resume(&mut self, now: Now, seed: RunSeed, out: &mut Vec<RunEffect>) {
        self.stopped = None;
        self.settle(now, seed, out);
    }

    fn tell_run(&mut self, event: RunEvent, now: Now, out: Out) {
        let Some(run) = &mut self.run else { return };
        let before = out.len();
        run.handle(event, now, out);
        for effect in out.iter().skip(before) {
            match &effect.kind {
                RunEffectKind::Send(step) => self.row.sending = Some(step.to),
                RunEffectKind::MoveCursor { to, .. } => {
                    self.row.cursor = Some(*to);
                    self.row.sending.take_if(|s| s == to);
                }
                _ => {}
            }
        }
        self.next_seq = run.next_seq();
        if run.is_finished().is_some() {
            self.on_run_finished(now);
        }
    }

    fn on_run_finished(&mut self, now: Now) {
        let Some(run) = self.run.take() else { return };
        let Some(outcome) = run.is_finished().cloned() else {
            return;
        };
        let again = std::mem::take(&mut self.again);
        let row = &mut self.row;
        match &outcome {
            Outcome::Completed { replicated, .. } => {
                row.consecutive_failures = 0;
                row.last_successful_time = Some(now.wall);
                row.done_once = true;
                row.owed = again.trigger || (again.commit && self.newest != Some(*replicated));
            }
            Outcome::Failed(_) | Outcome::ContextDone(CancelReason::DeadlinePassed) => {
                row.consecutive_failures = row.consecutive_failures.saturating_add(1);
                row.done_once = true;
                row.owed = again.trigger || again.commit;
            }
            // Not its own end: what was owed still is.
            Outcome::ContextDone(_) => {}
        }
        row.last = Some(LastRun { run_id: run.spec().run_id, generation: row.observed_generation, outcome, report: run.report(now) });
    }

    /// Takes what is due of the schedule: a run is owed. Not where nothing starts: it is the new owner's to take.
    fn fire(&mut self, now: Now) {
        self.look = None;
        let Some(schedule) = self.spec.as_ref().and_then(|s| s.schedule.as_ref()).filter(|_| self.stopped.is_none()) else { return };
        let (row, by) = (&mut self.row, schedule.to_string());
        let last = match &row.fired {
            Some(fired) if fired.by == by => Schedule::counted(fired.at, now.wall),
            _ => {
                row.owed |= schedule.begins_at_once();
                now.wall
            }
        };
        let due = schedule.due(last, now.wall, row.uid);
        if due.is_some() {
            row.owed = true;
            self.again.trigger = self.run.is_some();
        }
        let at = due.unwrap_or(last);
        row.fired = Some(Fired { by, at });
        self.look = schedule.next_due(at, row.uid).map(|next| now.boot.plus_ms(next.since_ms(now.wall).clamp(1, LOOK_MS)));
    }

    /// The next firing of its schedule, without jitter; `None` without one, and while it is suspended or stopped.
    pub fn next_firing(&self) -> Option<Timestamp> {
        let spec = self.spec.as_ref().filter(|s| !s.suspend && self.stopped.is_none())?;
        spec.schedule.as_ref()?.after(self.row.fired.as_ref()?.at)
    }

    /// Brings the run in hand in line with what is wanted: cancels it, or starts one.
    fn settle(&mut self, now: Now, seed: RunSeed, out: Out) {
        self.fire(now);
        if let Some(reason) = self.why_not() {
            self.tell_run(RunEvent::Cancel(reason), now, out);
        }
        if self.run.is_some() || !self.row.owed || self.stopped.is_some() {
            return;
        }
        let Some(spec) = self.spec.as_ref().filter(|s| !s.suspend) else {
            return;
        };
        let params = &spec.params;
        let run_spec = RunSpec {
            job: spec.uid,
            run_id: seed.run_id,
            peer: params.peer.clone(),
            initial: params.initial,
            intermediate: params.intermediate,
            retry: params.retry,
            on_conflict: params.on_conflict,
            cursor: self.row.cursor,
            also: params.also,
            first_seq: self.next_seq,
        };
        let run = Run::start(run_spec, now, seed.jitter_seed, out);
        self.next_seq = run.next_seq();
        self.run = Some(run);
        self.again = Again::default();
    }

    /// Why the run in hand must end, if it must.
    fn why_not(&self) -> Option<CancelReason> {
        let (run, spec) = (self.run.as_ref()?.spec(), self.spec.as_ref());
        if self.stopped.is_some() {
            return self.stopped;
        }
        let spec = spec?;
        if spec.suspend {
            return Some(CancelReason::Suspended);
        }
        let same = RunParams {
            peer: run.peer.clone(),
            initial: run.initial,
            intermediate: run.intermediate,
            retry: run.retry,
            on_conflict: run.on_conflict,
            also: run.also,
        } == spec.params;
        (!same).then_some(CancelReason::Superseded)
    }
}
