//! `Run`: one execution of a job for one Filesystem, from the first listing to its report's last word.
//! Total: every event is handled in every phase; a result whose `seq` is not awaited is dropped.

use std::collections::{BTreeMap, BTreeSet};

use super::backoff::Jitter;
use super::plan::Plan;
use super::rate::Rate;
use super::{CancelReason, NoteReason, Outcome, RunEffect, RunEffectKind, RunEvent, RunSpec, State};
use crate::ids::{BootTime, CommitId, Now, Timestamp};
use crate::model::{AttemptReport, Conflict, Problem};

/// What the run waits for. Its [`State`] is derived from it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    /// Planning: for `Listed`.
    Listing { seq: u64 },
    /// Planning: for the first step's `Estimated`.
    Estimating,
    /// `PlanningError`: for `wake_at`, which people see as `until`.
    PlanningSleep { until: Timestamp },
    /// Working: for `SendDone`.
    Sending { seq: u64, verifying: bool },
    /// Working: for the `SendDone` of a send that was told to stop.
    Stopping { seq: u64, why: Stop },
    /// Working: for `CursorMoved`. `catch_up`: to the plan's base, before its first step.
    MovingCursor { seq: u64, catch_up: bool },
    /// `WorkingWait`: for `wake_at`; then the plan goes on, or is made anew.
    Sleeping { plan_anew: bool, until: Timestamp },
    /// Nothing.
    Ended(Outcome),
}

/// Why a send was told to stop.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stop {
    Timeout(Problem),
    Cancel(CancelReason),
}

impl Phase {
    pub(super) const fn state(&self) -> State {
        match self {
            Self::Listing { .. } | Self::Estimating => State::Planning,
            Self::PlanningSleep { .. } => State::PlanningError,
            Self::Sending { .. } | Self::Stopping { .. } | Self::MovingCursor { .. } => State::Working,
            Self::Sleeping { .. } => State::WorkingWait,
            Self::Ended(Outcome::ContextDone(_)) => State::ContextDone,
            Self::Ended(_) => State::Completed,
        }
    }
}

/// Bytes of the step in hand.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct StepBytes {
    /// Of the step, prefix included.
    pub(super) replicated: u64,
    /// Its resumed prefix, as the first progress of this send said.
    pub(super) resumed_from: Option<u64>,
    /// The send has ended: what it put on the wire is part of `Run::sent`.
    pub(super) closed: bool,
    /// How long the kernel's stream had given no byte when that was last said; `None`: bytes flow.
    pub(super) silent_ms: Option<u64>,
}

impl StepBytes {
    /// Bytes that were there before this send.
    pub(super) fn prefix(&self) -> u64 {
        self.resumed_from.unwrap_or(0)
    }

    /// What a send under way has put on the wire so far.
    pub(super) fn sent(&self) -> u64 {
        if self.closed { 0 } else { self.replicated.saturating_sub(self.prefix()) }
    }
}

/// One execution of a ReplicationJob for one Filesystem (replication.md §1).
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub(super) spec: RunSpec,
    pub(super) phase: Phase,
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Option<Timestamp>,
    /// When the state (not the phase) began.
    pub(super) entered_at: BootTime,
    /// The phase's own deadline, or the end of a sleep.
    pub(super) wake_at: Option<BootTime>,
    pub(super) give_up_at: Option<BootTime>,
    pub(super) jitter: Jitter,
    pub(super) next_seq: u64,

    pub(super) plan: Option<Plan>,
    /// Steps of `plan` that are done.
    pub(super) done: usize,
    /// Steps that earlier plans of this run had done.
    pub(super) done_before: usize,
    /// Bytes that were sent when `plan` was made.
    pub(super) sent_before: u64,
    /// Bytes that the steps done of `plan` took.
    pub(super) step_actual: Vec<u64>,
    pub(super) step_bytes: StepBytes,
    /// Known sizes by (from, to); they outlive a plan. `None`: asked, could not be told.
    pub(super) estimates: BTreeMap<(Option<CommitId>, CommitId), Option<u64>>,
    pub(super) estimates_asked: BTreeMap<u64, usize>,
    pub(super) peer_free: Option<u64>,
    /// Where the run ends, from its first plan on.
    pub(super) target: Option<CommitId>,
    pub(super) cursor: Option<CommitId>,
    pub(super) replicated: Option<CommitId>,
    pub(super) pinned: BTreeSet<CommitId>,

    pub(super) attempt: u32,
    /// Failures since a step was last done.
    pub(super) failures: u32,
    /// Attempts in a row that were denied.
    pub(super) denied: u32,
    pub(super) attempts: Vec<AttemptReport>,
    pub(super) problem: Option<Problem>,
    pub(super) conflict: Option<Conflict>,
    /// Bytes of sends that have ended, in all attempts.
    pub(super) sent: u64,
    pub(super) rate: Rate,
}

pub(super) type Out<'a> = &'a mut Vec<RunEffect>;

impl Run {
    /// Starts: asks for the listing. `jitter_seed` is drawn by the caller; the same one makes the same run.
    pub fn start(spec: RunSpec, now: Now, jitter_seed: u64, out: &mut Vec<RunEffect>) -> Self {
        let mut run = Self {
            phase: Phase::Listing { seq: spec.first_seq },
            started_at: now.wall,
            finished_at: None,
            entered_at: now.boot,
            wake_at: None,
            give_up_at: spec.retry.deadline_ms.map(|ms| now.boot.plus_ms(ms)),
            jitter: Jitter::new(jitter_seed),
            next_seq: spec.first_seq,
            plan: None,
            done: 0,
            done_before: 0,
            sent_before: 0,
            step_actual: Vec::new(),
            step_bytes: StepBytes::default(),
            estimates: BTreeMap::new(),
            estimates_asked: BTreeMap::new(),
            peer_free: None,
            target: None,
            cursor: spec.cursor,
            replicated: None,
            pinned: BTreeSet::new(),
            attempt: 1,
            failures: 0,
            denied: 0,
            attempts: Vec::new(),
            problem: None,
            conflict: None,
            sent: 0,
            rate: Rate::new(now.boot),
            spec,
        };
        run.open_attempt(now);
        run.list(now, out);
        run
    }

    /// Takes one event. Any event is allowed at any time; stale ones change nothing.
    pub fn handle(&mut self, event: RunEvent, now: Now, out: &mut Vec<RunEffect>) {
        if self.is_finished().is_some() {
            return;
        }
        match event {
            RunEvent::Listed { seq, local, peer } => self.on_listed(seq, &local, peer, now, out),
            RunEvent::Estimated { seq, step, bytes } => {
                self.on_estimated(seq, step, bytes, now, out);
            }
            RunEvent::Progress { seq, bytes, resumed_from } => self.on_progress(seq, bytes, resumed_from, now),
            RunEvent::Alive { seq, silent_ms } => self.on_alive(seq, silent_ms, now),
            RunEvent::Verifying { seq } => self.on_verifying(seq, now, out),
            RunEvent::SendDone { seq, result } => self.on_send_done(seq, result, now, out),
            RunEvent::CursorMoved { seq } => self.on_cursor_moved(seq, now, out),
            RunEvent::Wake => self.on_wake(now, out),
            RunEvent::Timer => self.on_timer(now, out),
            RunEvent::Cancel(reason) => self.on_cancel(reason, now, out),
        }
    }

    /// When [`RunEvent::Timer`] must be delivered. A `Timer` that was handled leaves nothing due, so a caller
    /// that sleeps until here never spins.
    pub fn next_wake(&self) -> Option<BootTime> {
        [self.wake_at, self.give_up_at].into_iter().flatten().min()
    }

    /// How it ended, once it has.
    pub const fn is_finished(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Its state.
    pub const fn state(&self) -> State {
        self.phase.state()
    }

    /// What it was started with.
    pub const fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// Commits that the sender must keep pinned now: base and targets of the plan, until the run ends. What the
    /// cursor is at is pinned by the cursor.
    pub fn pins(&self) -> BTreeSet<CommitId> {
        self.pinned.clone()
    }

    /// A `seq` that none of its effects has used.
    pub const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The only place where the phase changes its state: checked against the table, logged with its duration.
    pub(super) fn enter(&mut self, phase: Phase, wake_in: Option<u64>, now: Now, out: Out) {
        let (from, to) = (self.phase.state(), phase.state());
        if from != to {
            if !from.may_become(to) {
                self.note(NoteReason::InvariantBroken, format!("{from} may not become {to}"), out);
            }
            let after_ms = now.boot.since_ms(self.entered_at);
            out.push(RunEffect { seq: self.next_seq, kind: RunEffectKind::Moved { from, to, after_ms } });
            self.next_seq = self.next_seq.wrapping_add(1);
            self.entered_at = now.boot;
            if to == State::Working {
                self.rate = Rate::new(now.boot);
            }
        }
        if let Some(open) = self.attempts.last_mut().filter(|a| a.finished_at.is_none()) {
            open.state = to;
        }
        self.phase = phase;
        self.wake_at = wake_in.map(|ms| now.boot.plus_ms(ms));
    }

    pub(super) fn emit(&mut self, kind: RunEffectKind, out: Out) -> u64 {
        let seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(1);
        out.push(RunEffect { seq, kind });
        seq
    }

    pub(super) fn note(&mut self, reason: NoteReason, message: String, out: Out) {
        self.emit(RunEffectKind::Note { reason, message }, out);
    }
}
