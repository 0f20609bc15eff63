//! Attempts of a run: how one fails, sleeps and is tried again; timers, wake-ups and cancelling; the end.

use super::machine::{Out, Phase, Run, Stop};
use super::{
    ATTEMPTS_KEPT, CancelReason, DENIED_ATTEMPTS, NoteReason, Outcome, PLACING_ATTEMPTS, RunEffect, RunEffectKind, STOP_MS, State,
};
use crate::ids::Now;
use crate::model::{AttemptReport, Problem, Reason};

impl Run {
    pub(super) fn on_wake(&mut self, now: Now, out: Out) {
        if matches!(self.phase, Phase::PlanningSleep { .. } | Phase::Sleeping { .. }) {
            self.retry(now, out);
        }
    }

    pub(super) fn on_timer(&mut self, now: Now, out: Out) {
        if self.give_up_at.is_some_and(|at| at <= now.boot) {
            // Clears `give_up_at`, in whatever phase.
            self.on_cancel(CancelReason::DeadlinePassed, now, out);
        }
        if self.wake_at.is_none_or(|at| at > now.boot) {
            return;
        }
        match self.phase.clone() {
            Phase::PlanningSleep { .. } | Phase::Sleeping { .. } => self.retry(now, out),
            Phase::Estimating => self.begin_work(now, out),
            Phase::Listing { .. } => {
                self.fail_attempt(silence("listing both sides"), false, now, out);
            }
            Phase::MovingCursor { .. } => {
                self.fail_attempt(silence("moving the cursor"), true, now, out);
            }
            Phase::Sending { seq, verifying } => {
                let what = if verifying { "verifying" } else { "sending" };
                self.stop_send(seq, Stop::Timeout(silence(what)), now, out);
            }
            Phase::Stopping { why, .. } => self.on_send_stuck(why, now, out),
            Phase::Ended(_) => {}
        }
    }

    pub(super) fn on_send_stuck(&mut self, why: Stop, now: Now, out: Out) {
        let message = format!("a cancelled send did not stop within {} s", STOP_MS / 1_000);
        self.note(NoteReason::SendStuck, message, out);
        match why {
            Stop::Timeout(problem) => self.fail_attempt(problem, true, now, out),
            Stop::Cancel(reason) => {
                self.close_send_bytes();
                self.end(Outcome::ContextDone(reason), now, out);
            }
        }
    }

    pub(super) fn on_cancel(&mut self, reason: CancelReason, now: Now, out: Out) {
        match self.phase.clone() {
            Phase::Ended(_) => {}
            Phase::Sending { seq, .. } => self.stop_send(seq, Stop::Cancel(reason), now, out),
            Phase::Stopping { seq, why } => {
                let reason = match why {
                    Stop::Cancel(first) => first.max(reason),
                    Stop::Timeout(_) => reason,
                };
                self.phase = Phase::Stopping { seq, why: Stop::Cancel(reason) };
                self.give_up_at = None;
            }
            Phase::Listing { .. }
            | Phase::Estimating
            | Phase::PlanningSleep { .. }
            | Phase::MovingCursor { .. }
            | Phase::Sleeping { .. } => {
                self.end(Outcome::ContextDone(reason), now, out);
            }
        }
    }

    pub(super) fn stop_send(&mut self, seq: u64, why: Stop, now: Now, out: Out) {
        out.push(RunEffect { seq, kind: RunEffectKind::CancelSend });
        if matches!(why, Stop::Cancel(_)) {
            self.give_up_at = None;
        }
        self.enter(Phase::Stopping { seq, why }, Some(STOP_MS), now, out);
    }

    pub(super) fn open_attempt(&mut self, now: Now) {
        let state = State::Planning;
        self.attempts.push(AttemptReport { state, started_at: now.wall, finished_at: None, error: None });
        if self.attempts.len() > ATTEMPTS_KEPT {
            self.attempts.remove(0);
        }
    }

    pub(super) fn close_attempt(&mut self, state: State, error: Option<&Problem>, now: Now) {
        if let Some(attempt) = self.attempts.last_mut().filter(|a| a.finished_at.is_none()) {
            attempt.state = state;
            attempt.finished_at = Some(now.wall);
            attempt.error = error.cloned();
        }
    }

    /// The attempt is over: sleep and try again, or end if that can't help or may not be.
    pub(super) fn fail_attempt(&mut self, problem: Problem, plan_anew: bool, now: Now, out: Out) {
        self.close_send_bytes();
        let last = self.spec.retry.max_attempts.is_some_and(|max| self.attempt >= max.max(1));
        self.denied = if problem.reason == Reason::Denied { self.denied.saturating_add(1) } else { 0 };
        if is_final(problem.reason) || last || self.denied >= DENIED_ATTEMPTS {
            return self.end(Outcome::Failed(problem), now, out);
        }
        self.failures = self.failures.saturating_add(1);
        let delay = self.jitter.delay_ms(self.failures);
        let until = now.wall.plus_ms(delay);
        let phase = match self.phase.state() {
            State::Planning => Phase::PlanningSleep { until },
            _ => Phase::Sleeping { plan_anew, until },
        };
        if self.is_news(problem.reason) {
            let message = format!("attempt {} failed, the next in {delay} ms: {problem}", self.attempt);
            self.note(NoteReason::AttemptFailed, message, out);
        }
        self.close_attempt(phase.state(), Some(&problem), now);
        self.problem = Some(problem);
        self.enter(phase, Some(delay), now, out);
    }

    /// Whether people hear of this failure: once of the same again and again. A receiver that has no copy yet is making it, which is no
    /// trouble before it takes long.
    fn is_news(&self, reason: Reason) -> bool {
        let previous = self.attempts.iter().rev().nth(1).and_then(|a| a.error.as_ref()).map(|p| p.reason);
        let again = previous == Some(reason);
        match reason {
            Reason::NotPlaced => self.failures == PLACING_ATTEMPTS + 1 || (self.failures > PLACING_ATTEMPTS && !again),
            _ => !again,
        }
    }

    /// A sleep is over.
    pub(super) fn retry(&mut self, now: Now, out: Out) {
        self.attempt = self.attempt.saturating_add(1);
        self.open_attempt(now);
        self.problem = None;
        match self.phase {
            Phase::Sleeping { plan_anew: false, .. } => self.send_step(now, out),
            _ => self.list(now, out),
        }
    }

    /// No step is left: `Completed`, provided the target is where it should be.
    pub(super) fn complete(&mut self, now: Now, out: Out) {
        let Some(plan) = &self.plan else { return };
        let reached = plan.steps.iter().rfind(|s| !s.older).map_or(plan.base, |last| Some(last.to));
        let outcome = match self.replicated {
            Some(replicated) if self.replicated == reached => {
                Outcome::Completed { replicated, bytes: self.sent, steps: u32::try_from(self.done_before + self.done).unwrap_or(u32::MAX) }
            }
            _ => Outcome::Failed(Problem::new(Reason::Internal, "no step is left, but the target is not there")),
        };
        self.end(outcome, now, out);
    }

    pub(super) fn end(&mut self, outcome: Outcome, now: Now, out: Out) {
        let (reason, message) = match &outcome {
            Outcome::Completed { replicated, bytes, steps } => {
                (NoteReason::Completed, format!("{replicated} is on the receiver: {steps} step(s), {bytes} bytes"))
            }
            Outcome::Failed(problem) => (NoteReason::Failed, problem.to_string()),
            Outcome::ContextDone(reason) => (NoteReason::Cancelled, format!("the run was stopped: {reason:?}")),
        };
        self.note(reason, message, out);
        let error = match &outcome {
            Outcome::Completed { .. } => None,
            Outcome::Failed(problem) => Some(problem.clone()),
            Outcome::ContextDone(CancelReason::DeadlinePassed) => Some(Problem::new(Reason::Timeout, "the run's deadline has passed")),
            // Not its own end: who reads the reason knows that what was owed still is.
            Outcome::ContextDone(reason) => Some(Problem::new(Reason::Cancelled, format!("the run was stopped: {reason:?}"))),
        };
        let ended = Phase::Ended(outcome);
        self.close_attempt(ended.state(), error.as_ref(), now);
        self.problem = error;
        self.finished_at = Some(now.wall);
        self.give_up_at = None;
        self.pinned.clear();
        self.estimates_asked.clear();
        self.enter(ended, None, now, out);
    }
}

/// Errors that another attempt can't cure. `Cancelled` that we did not ask for is a peer shutting down.
pub(super) const fn is_final(reason: Reason) -> bool {
    reason.is_permanent() && !matches!(reason, Reason::Cancelled)
}

fn silence(doing: &str) -> Problem {
    Problem::new(Reason::Timeout, format!("no byte and no message for too long while {doing}"))
}
