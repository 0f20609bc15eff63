//! The engine's report of a run in the API's words. Pure.

use dotgraft_api::run_report::{RunAttempt, RunConflict, RunProblem, RunReport, RunState, RunStep, RunStepState};
use dotgraft_engine::model::{self, Problem};
use dotgraft_engine::run::{State, StepState};

use super::words;

/// As `Replica.status.jobs[].report` has it; `chars`: the longest message or resolution, 4096 at most.
pub fn of(r: &model::RunReport, chars: usize) -> RunReport {
    RunReport {
        state: state(r.state),
        attempt: r.attempt,
        started_at: r.started_at.0,
        finished_at: r.finished_at.map(|t| t.0),
        sleep_until: r.sleep_until.map(|t| t.0),
        problem: r.problem.as_ref().map(|p| problem(p, chars)),
        resolution: r.resolution.as_deref().map(|t| cut(t, chars)),
        steps_done: r.steps_done,
        steps_total: r.steps_total,
        current: r.current.as_ref().map(step),
        expected_bytes: r.expected_bytes,
        replicated_bytes: r.replicated_bytes,
        bytes_per_second: r.bytes_per_second,
        imprecise: r.imprecise,
        conflict: r.conflict.as_ref().map(conflict),
        attempts: r.attempts.iter().map(|a| attempt(a, chars)).collect(),
        replicated: r.replicated.map(|c| c.to_string()),
    }
}

/// The beginning of a text.
pub fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

const fn state(s: State) -> RunState {
    match s {
        State::Planning => RunState::Planning,
        State::PlanningError => RunState::PlanningError,
        State::Working => RunState::Working,
        State::WorkingWait => RunState::WorkingWait,
        State::Completed => RunState::Completed,
        State::ContextDone => RunState::ContextDone,
    }
}

fn step(s: &model::StepReport) -> RunStep {
    RunStep {
        from: s.from.map(|c| c.to_string()),
        to: s.to.to_string(),
        state: match s.state {
            StepState::Ready => RunStepState::Ready,
            StepState::Sending => RunStepState::Sending,
            StepState::Verifying => RunStepState::Verifying,
            StepState::MovingCursor => RunStepState::MovingCursor,
            StepState::Done => RunStepState::Done,
            StepState::Retry => RunStepState::Retry,
            StepState::Failed => RunStepState::Failed,
        },
        resumed: s.resumed,
        expected: s.expected,
        replicated: s.replicated,
        silent_seconds: s.silent_seconds,
    }
}

fn attempt(a: &model::AttemptReport, chars: usize) -> RunAttempt {
    RunAttempt {
        state: state(a.state),
        started_at: a.started_at.0,
        finished_at: a.finished_at.map(|t| t.0),
        error: a.error.as_ref().map(|p| problem(p, chars)),
    }
}

fn conflict(c: &model::Conflict) -> RunConflict {
    let ids = |list: &[dotgraft_engine::ids::CommitId]| list.iter().map(ToString::to_string).collect();
    RunConflict { base: c.base.map(|b| b.to_string()), sender_only: ids(&c.sender_only), receiver_only: ids(&c.receiver_only) }
}

fn problem(p: &Problem, chars: usize) -> RunProblem {
    RunProblem { reason: words::problem(p.reason), message: cut(&p.message, chars) }
}

#[cfg(test)]
mod tests {
    use dotgraft_api::AgentReport;
    use dotgraft_engine::ids::{CommitId, Timestamp};
    use dotgraft_engine::model::{AttemptReport, Conflict, Reason, StepReport};
    use serde_json::{Value, json};

    use super::*;

    fn full() -> model::RunReport {
        let id = |n: u8| -> CommitId { format!("0198c2a5-7f00-7000-8000-0000000000{n:02x}").parse().unwrap() };
        let problem = Problem::new(Reason::Diverged, "both sides have commits");
        let error = Some(Problem::new(Reason::Unreachable, "no answer"));
        let attempts =
            vec![AttemptReport { state: State::PlanningError, started_at: Timestamp(1), finished_at: Some(Timestamp(2)), error }];
        model::RunReport {
            state: State::WorkingWait,
            attempt: 2,
            started_at: Timestamp(1),
            finished_at: None,
            sleep_until: Some(Timestamp(9)),
            problem: Some(problem),
            resolution: Some("start at most recent commit".into()),
            steps_done: 1,
            steps_total: 3,
            current: Some(StepReport {
                from: Some(id(1)),
                to: id(2),
                state: StepState::MovingCursor,
                resumed: true,
                expected: None,
                replicated: 7,
                silent_seconds: Some(20),
            }),
            expected_bytes: Some(100),
            replicated_bytes: 50,
            bytes_per_second: None,
            imprecise: true,
            conflict: Some(Conflict { base: None, sender_only: vec![id(3)], receiver_only: vec![id(4)] }),
            attempts,
            replicated: Some(id(1)),
        }
    }

    /// What release 0.1 writes: the engine's own JSON, without its nulls.
    fn as_0_1_writes_it(report: &model::RunReport) -> Value {
        fn strip(value: &mut Value) {
            match value {
                Value::Object(map) => {
                    map.retain(|_, v| !v.is_null());
                    map.values_mut().for_each(strip);
                }
                Value::Array(items) => items.iter_mut().for_each(strip),
                _ => {}
            }
        }
        let mut value = serde_json::to_value(report).unwrap();
        strip(&mut value);
        value
    }

    #[test]
    fn it_is_written_as_before_and_read_on_both_sides_of_an_upgrade() {
        let old = as_0_1_writes_it(&full());
        assert_eq!(serde_json::to_value(of(&full(), 4096)).unwrap(), old, "an old operator reads what this agent writes");
        let read: AgentReport = serde_json::from_value(old).unwrap();
        assert_eq!(read.known(), Some(&of(&full(), 4096)), "and this operator what an old agent wrote");
    }

    #[test]
    fn what_cannot_be_read_is_kept_and_told() {
        let mut newer = as_0_1_writes_it(&full());
        newer["state"] = json!("Verifying");
        let read: AgentReport = serde_json::from_value(newer.clone()).unwrap();
        assert!(read.known().is_none() && read.trouble().unwrap().contains("Verifying"));
        assert_eq!(serde_json::to_value(&read).unwrap(), newer);
    }
}
