//! Working: one step after the other: send, then move the cursor (replication.md §3).

use super::attempt::is_final;
use super::machine::{Out, Phase, Run, StepBytes, Stop};
use super::plan::PlanStep;
use super::{Outcome, PROGRESS_MS, RunEffectKind, SILENT_MS, SendOutcome, SendStep, VERIFY_MS};
use crate::ids::Now;
use crate::model::{Problem, Reason};

impl Run {
    pub(super) fn step(&self, number: usize) -> Option<&PlanStep> {
        self.plan.as_ref().and_then(|p| p.steps.get(number))
    }

    /// Bytes of the step's whole stream, if they could be told.
    pub(super) fn estimate(&self, step: &PlanStep) -> Option<u64> {
        self.estimates.get(&(step.from, step.to)).copied().flatten()
    }

    /// With a fresh plan: first the cursor to its base, if a lost ack left it behind, then the steps.
    pub(super) fn begin_work(&mut self, now: Now, out: Out) {
        let base = self.plan.as_ref().and_then(|p| p.base);
        match base {
            Some(to) if self.cursor != base => {
                let seq = self.emit(RunEffectKind::MoveCursor { to, bytes: 0 }, out);
                self.enter(Phase::MovingCursor { seq, catch_up: true }, Some(PROGRESS_MS), now, out);
            }
            _ => self.next_step(now, out),
        }
    }

    pub(super) fn next_step(&mut self, now: Now, out: Out) {
        let Some(step) = self.step(self.done) else {
            return self.complete(now, out);
        };
        match self.lacks_space(step) {
            Some(problem) => self.fail_attempt(problem, true, now, out),
            None => self.send_step(now, out),
        }
    }

    pub(super) fn send_step(&mut self, now: Now, out: Out) {
        let Some(step) = self.step(self.done).cloned() else {
            return;
        };
        self.step_bytes = StepBytes::default();
        let expected = self.estimate(&step);
        let send = SendStep { from: step.from, to: step.to, resume: step.resume, expected };
        let seq = self.emit(RunEffectKind::Send(send), out);
        self.enter(Phase::Sending { seq, verifying: false }, Some(PROGRESS_MS), now, out);
    }

    /// "No space" is said before bytes are sent (replication.md §2), from what was free when listed.
    pub(super) fn lacks_space(&self, step: &PlanStep) -> Option<Problem> {
        let free = self.peer_free?.saturating_sub(self.sent.saturating_sub(self.sent_before));
        let needed = self.estimate(step)?.saturating_sub(step.resume.as_ref().map_or(0, |r| r.offset));
        (needed > free).then(|| {
            let message = format!("the step to {} needs {needed} bytes, the receiver has {free} left", step.to);
            Problem::new(Reason::NoSpace, message)
        })
    }

    pub(super) fn on_progress(&mut self, seq: u64, bytes: u64, resumed_from: u64, now: Now) {
        let stopping = match self.phase {
            Phase::Sending { seq: s, .. } if s == seq => false,
            Phase::Stopping { seq: s, .. } if s == seq => true,
            _ => return,
        };
        let before = self.step_bytes.sent();
        self.step_bytes.resumed_from.get_or_insert(resumed_from.min(bytes));
        self.step_bytes.replicated = self.step_bytes.replicated.max(bytes);
        if self.step_bytes.sent() > before {
            self.step_bytes.silent_ms = None;
        }
        self.rate.add(self.step_bytes.sent().saturating_sub(before), now.boot);
        if !stopping {
            self.put_off(now);
        }
    }

    /// A send that is told to stop stays so, and one that is verified has its own bound: there is no more to read.
    pub(super) fn on_alive(&mut self, seq: u64, silent_ms: u64, now: Now) {
        if matches!(self.phase, Phase::Sending { seq: s, verifying: false } if s == seq) {
            self.step_bytes.silent_ms = Some(silent_ms).filter(|ms| *ms >= SILENT_MS);
            self.put_off(now);
        }
    }

    /// The deadline of a send counts anew from `now`.
    fn put_off(&mut self, now: Now) {
        let verifying = matches!(self.phase, Phase::Sending { verifying: true, .. });
        self.wake_at = Some(now.boot.plus_ms(if verifying { VERIFY_MS } else { PROGRESS_MS }));
    }

    pub(super) fn on_verifying(&mut self, seq: u64, now: Now, out: Out) {
        if matches!(self.phase, Phase::Sending { seq: s, .. } if s == seq) {
            self.step_bytes.silent_ms = None;
            self.enter(Phase::Sending { seq, verifying: true }, Some(VERIFY_MS), now, out);
        }
    }

    pub(super) fn on_send_done(&mut self, seq: u64, result: Result<SendOutcome, Problem>, now: Now, out: Out) {
        let stop = match &self.phase {
            Phase::Sending { seq: s, .. } if *s == seq => None,
            Phase::Stopping { seq: s, why } if *s == seq => Some(why.clone()),
            _ => return,
        };
        match (stop, result) {
            (Some(Stop::Cancel(reason)), result) => {
                match result {
                    Ok(outcome) => self.on_stored(outcome),
                    Err(_) => self.close_send_bytes(),
                }
                self.end(Outcome::ContextDone(reason), now, out);
            }
            (_, Ok(outcome)) => {
                self.on_stored(outcome);
                let Some(to) = self.replicated else { return };
                let bytes = self.step_actual.last().copied().unwrap_or(0);
                let seq = self.emit(RunEffectKind::MoveCursor { to, bytes }, out);
                self.enter(Phase::MovingCursor { seq, catch_up: false }, Some(PROGRESS_MS), now, out);
            }
            // A send that was stopped for silence ends as `Cancelled` or the like; a verdict counts more.
            (Some(Stop::Timeout(timeout)), Err(problem)) => {
                let problem = if is_final(problem.reason) { problem } else { timeout };
                self.fail_attempt(problem, true, now, out);
            }
            (None, Err(problem)) => {
                let plan_anew = !survives(problem.reason) || self.step_bytes.replicated > 0;
                self.fail_attempt(problem, plan_anew, now, out);
            }
        }
    }

    /// The step in hand is on the receiver.
    pub(super) fn on_stored(&mut self, outcome: SendOutcome) {
        if let Some(to) = self.step(self.done).filter(|s| !s.older).map(|s| s.to) {
            self.replicated = Some(to);
        }
        let said = if outcome.already { 0 } else { outcome.bytes_sent };
        let bytes = said.max(self.step_bytes.sent());
        self.sent = self.sent.saturating_add(bytes);
        self.step_actual.push(bytes);
        self.step_bytes.replicated = self.step_bytes.prefix().saturating_add(bytes);
        self.step_bytes.closed = true;
    }

    /// The send in hand, if there is one, has ended without success: its bytes count all the same.
    pub(super) fn close_send_bytes(&mut self) {
        self.sent = self.sent.saturating_add(self.step_bytes.sent());
        self.step_bytes.closed = true;
    }

    pub(super) fn on_cursor_moved(&mut self, seq: u64, now: Now, out: Out) {
        let Phase::MovingCursor { seq: awaited, catch_up } = self.phase else {
            return;
        };
        if awaited != seq {
            return;
        }
        self.cursor = self.replicated;
        self.failures = 0;
        if !catch_up {
            self.unpin_base();
            self.done += 1;
        }
        self.next_step(now, out);
    }
}

impl Run {
    /// The base of the step that is done is needed no more, unless a later step starts from it, or the cursor stands there.
    fn unpin_base(&mut self) {
        let Some(from) = self.step(self.done).and_then(|s| s.from) else { return };
        let later = self.plan.iter().flat_map(|p| p.steps.iter().skip(self.done + 1)).any(|s| s.from == Some(from));
        if !later && self.replicated != Some(from) {
            self.pinned.remove(&from);
        }
    }
}

/// Errors after which a plan still holds if no byte was sent; after others both sides are listed anew.
const fn survives(reason: Reason) -> bool {
    matches!(reason, Reason::Busy)
}
