//! What a run tells people while it works and after (replication.md §5). Pure: reads, never changes.

use super::machine::{Phase, Run, Stop};
use super::{ItemState, Outcome, State, StepState};
use crate::ids::{Now, Timestamp};
use crate::model::{RunReport, StepReport};

impl Run {
    /// The report as of `now`. After the end it is the same for ever.
    pub fn report(&self, now: Now) -> RunReport {
        let steps = self.plan.as_ref().map_or(0, |p| p.steps.len());
        let (expected_bytes, imprecise) = self.expected();
        RunReport {
            state: self.state(),
            attempt: self.attempt,
            started_at: self.started_at,
            finished_at: self.finished_at,
            sleep_until: self.sleep_until(),
            problem: self.problem.clone(),
            resolution: self.plan.as_ref().and_then(|p| p.resolution.clone()),
            steps_done: clamp(self.done_before + self.done),
            steps_total: clamp(self.done_before + steps),
            current: self.current(),
            expected_bytes,
            replicated_bytes: self.sent_so_far(),
            bytes_per_second: (self.state() == State::Working).then(|| self.rate.per_second(now.boot)),
            imprecise,
            conflict: self.conflict.clone(),
            attempts: self.attempts.clone(),
            replicated: self.replicated,
        }
    }

    /// State of the run's one Filesystem, for the list of the job's items.
    pub fn item_state(&self) -> ItemState {
        match &self.phase {
            Phase::Listing { .. } => ItemState::Planning,
            Phase::Estimating | Phase::Ended(Outcome::ContextDone(_)) => ItemState::Ready,
            Phase::Sending { .. } | Phase::Stopping { .. } | Phase::MovingCursor { .. } => ItemState::Active,
            Phase::PlanningSleep { .. } | Phase::Sleeping { .. } => ItemState::RetryWait,
            Phase::Ended(Outcome::Completed { .. }) => ItemState::Completed,
            Phase::Ended(Outcome::Failed(_)) => ItemState::PermanentError,
        }
    }

    /// When the sleep in hand is over, by the wall clock as it was when that began.
    const fn sleep_until(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::PlanningSleep { until } | Phase::Sleeping { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Bytes on the wire, of all attempts.
    fn sent_so_far(&self) -> u64 {
        self.sent.saturating_add(self.step_bytes.sent())
    }

    /// What all attempts will have sent when the plan is done, and whether an unknown step is left out of it.
    fn expected(&self) -> (Option<u64>, bool) {
        let Some(plan) = &self.plan else {
            return (None, false);
        };
        let mut sum = self.sent_before;
        let (mut known, mut unknown) = (plan.steps.is_empty(), false);
        for (number, step) in plan.steps.iter().enumerate() {
            if let Some(actual) = self.step_actual.get(number) {
                sum = sum.saturating_add(*actual);
                known = true;
                continue;
            }
            match self.estimate(step) {
                Some(bytes) => {
                    let prefix = step.resume.as_ref().map_or(0, |r| r.offset);
                    sum = sum.saturating_add(bytes.saturating_sub(prefix));
                    known = true;
                }
                None => unknown = true,
            }
        }
        (known.then(|| sum.max(self.sent_so_far())), unknown)
    }

    fn current(&self) -> Option<StepReport> {
        if matches!(self.phase, Phase::Listing { .. } | Phase::PlanningSleep { .. }) {
            return None;
        }
        let step = self.step(self.done)?;
        Some(StepReport {
            from: step.from,
            to: step.to,
            state: self.current_state(),
            resumed: self.step_bytes.prefix() > 0,
            expected: self.estimate(step),
            replicated: self.step_bytes.replicated,
            silent_seconds: self.step_bytes.silent_ms.filter(|_| matches!(self.phase, Phase::Sending { .. })).map(|ms| ms / 1_000),
        })
    }

    const fn current_state(&self) -> StepState {
        match &self.phase {
            Phase::Sending { verifying: false, .. } => StepState::Sending,
            Phase::Sending { verifying: true, .. } => StepState::Verifying,
            Phase::MovingCursor { catch_up: false, .. } => StepState::MovingCursor,
            Phase::Stopping { why: Stop::Timeout(_), .. } | Phase::Sleeping { .. } => StepState::Retry,
            Phase::Stopping { why: Stop::Cancel(_), .. } | Phase::Ended(_) => StepState::Failed,
            Phase::Listing { .. } | Phase::Estimating | Phase::PlanningSleep { .. } | Phase::MovingCursor { catch_up: true, .. } => {
                StepState::Ready
            }
        }
    }
}

fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
