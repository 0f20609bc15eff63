//! The last word of an owner (`Export` of agent.proto) ↔ the engine's [`Handoff`]. Agents of 0.1 say and hear it as JSON: both forms are
//! sent, and the JSON is read only where the message is absent. Everything is parsed here, before an actor sees it.

use dotgraft_engine::filesystem::{Handoff, RequestRow, RequestState};
use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::{Epoch, FsId, Timestamp};
use dotgraft_engine::model::{AttemptReport, Conflict, Origin, Place, Problem, Reason, RunReport, StepReport};
use dotgraft_engine::run::{Fired, JobRow, LastRun, Outcome};
use dotgraft_proto::agent::v1 as wire;
use dotgraft_proto::bounded::MAX_STRUCTURED;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::commit_request::State;

use super::convert::{invalid, parse, parse_optional};
use super::status::{MAX_TEXT, cut};

/// What names a document of a handoff in an error.
const JOB: &str = "a job that a handoff brings";
const REQUEST: &str = "a commit request that a handoff brings";

/// The request by which `handoff` is told, in both forms. Where both together are more than a receiver takes, the one that every agent
/// reads is sent alone; where that is too large too, the message, which is smaller.
///
/// # Errors
/// `Internal` if it can't be written as JSON: a defect.
pub fn request_of(fs: FsId, handoff: &Handoff) -> Result<wire::ExportRequest, Problem> {
    let json = serde_json::to_vec(handoff).map_err(|e| Problem::new(Reason::Internal, e.to_string()))?;
    let mut request = wire::ExportRequest { fs_id: fs.to_string(), handoff: json, leaves: Some(to_wire(handoff)) };
    if request.encoded_len() > MAX_STRUCTURED {
        let leaves = request.leaves.take();
        if request.encoded_len() > MAX_STRUCTURED {
            (request.handoff, request.leaves) = (Vec::new(), leaves);
        }
    }
    Ok(request)
}

/// What a request says that leaves with authority.
///
/// # Errors
/// `Invalid` if it is malformed, `FormatNewer` if it, or a record in it, is of a newer version than this agent knows.
pub fn of_request(request: wire::ExportRequest) -> Result<Handoff, Problem> {
    let handoff = match request.leaves {
        Some(leaves) => from_wire(leaves)?,
        None => serde_json::from_slice(&request.handoff).map_err(|e| invalid(format_args!("handoff: {e}")))?,
    };
    let versions = handoff.jobs.iter().map(|j| (Kind::Job, JOB, j.version));
    for (kind, name, version) in versions.chain(handoff.requests.iter().map(|r| (Kind::Request, REQUEST, r.version))) {
        kind.check(name, version).map_err(|e| e.problem())?;
    }
    Ok(handoff)
}

fn to_wire(h: &Handoff) -> wire::Handoff {
    wire::Handoff {
        format: Kind::Handoff.newest(),
        migration: h.mig.to_string(),
        attempt: h.attempt,
        epoch: h.epoch.0,
        from: Some(place_to_wire(&h.from)),
        final_commit: h.final_commit.to_string(),
        jobs: h.jobs.iter().map(job_to_wire).collect(),
        requests: h.requests.iter().map(request_to_wire).collect(),
    }
}

fn from_wire(h: wire::Handoff) -> Result<Handoff, Problem> {
    Kind::Handoff.check("the handoff", h.format).map_err(|e| e.problem())?;
    Ok(Handoff {
        mig: parse(&h.migration)?,
        attempt: h.attempt,
        epoch: Epoch(h.epoch),
        from: place_from_wire(&h.from.ok_or_else(|| invalid("a handoff without its giver"))?)?,
        final_commit: parse(&h.final_commit)?,
        jobs: h.jobs.into_iter().map(job_from_wire).collect::<Result<_, _>>()?,
        requests: h.requests.into_iter().map(request_from_wire).collect::<Result<_, _>>()?,
    })
}

fn text<T: ToString>(id: Option<T>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

const fn ms(time: Timestamp) -> i64 {
    time.0
}

/// The name of a unit variant, as JSON has it.
fn named(variant: &impl Serialize) -> String {
    serde_json::to_value(variant).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The unit variant of that name, if this program knows it.
fn variant<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// How far a run or a step is.
fn state<T: DeserializeOwned>(name: &str) -> Result<T, Problem> {
    variant(name).ok_or_else(|| invalid("a report with a state that is not known here"))
}

fn place_to_wire(p: &Place) -> wire::Place {
    wire::Place { node: p.node.to_string(), pool: p.pool.to_string() }
}

fn place_from_wire(p: &wire::Place) -> Result<Place, Problem> {
    Ok(Place { node: parse(&p.node)?, pool: parse(&p.pool)? })
}

fn trouble_to_wire(p: &Problem) -> wire::Trouble {
    wire::Trouble { reason: named(&p.reason), message: cut(&p.message, MAX_TEXT).to_owned() }
}

fn trouble_from_wire(t: wire::Trouble) -> Problem {
    Problem::new(variant(&t.reason).unwrap_or(Reason::Internal), t.message)
}

fn job_to_wire(j: &JobRow) -> wire::JobCursor {
    wire::JobCursor {
        format: j.version,
        uid: j.uid.to_string(),
        peer: j.peer.as_ref().map(place_to_wire),
        observed_generation: j.observed_generation,
        observed_trigger: j.observed_trigger.clone(),
        done_once: j.done_once,
        owed: j.owed,
        cursor: text(j.cursor),
        sending: text(j.sending),
        last: j.last.as_ref().map(last_to_wire),
        last_successful_time_ms: j.last_successful_time.map(ms),
        consecutive_failures: j.consecutive_failures,
        fired: j.fired.as_ref().map(|f| wire::Fired { by: f.by.clone(), at_ms: ms(f.at) }),
    }
}

fn job_from_wire(j: wire::JobCursor) -> Result<JobRow, Problem> {
    Ok(JobRow {
        version: j.format.max(1),
        uid: parse(&j.uid)?,
        peer: j.peer.as_ref().map(place_from_wire).transpose()?,
        observed_generation: j.observed_generation,
        observed_trigger: j.observed_trigger,
        done_once: j.done_once,
        owed: j.owed,
        cursor: parse_optional(&j.cursor)?,
        sending: parse_optional(&j.sending)?,
        last: j.last.map(last_from_wire).transpose()?,
        last_successful_time: j.last_successful_time_ms.map(Timestamp),
        consecutive_failures: j.consecutive_failures,
        fired: j.fired.map(|f| Fired { by: f.by, at: Timestamp(f.at_ms) }),
    })
}

fn last_to_wire(l: &LastRun) -> wire::LastRun {
    use wire::last_run::Outcome as O;
    let outcome = match &l.outcome {
        Outcome::Completed { replicated, bytes, steps } => {
            O::Completed(wire::Completed { replicated: replicated.to_string(), bytes: *bytes, steps: *steps })
        }
        Outcome::Failed(problem) => O::Failed(trouble_to_wire(problem)),
        Outcome::ContextDone(why) => O::Stopped(named(why)),
    };
    wire::LastRun {
        run_id: l.run_id.to_string(),
        generation: l.generation,
        outcome: Some(outcome),
        report: Some(report_to_wire(&l.report)),
    }
}

fn last_from_wire(l: wire::LastRun) -> Result<LastRun, Problem> {
    use wire::last_run::Outcome as O;
    let outcome = match l.outcome.ok_or_else(|| invalid("a last run without its outcome"))? {
        O::Completed(c) => Outcome::Completed { replicated: parse(&c.replicated)?, bytes: c.bytes, steps: c.steps },
        O::Failed(problem) => Outcome::Failed(trouble_from_wire(problem)),
        O::Stopped(why) => Outcome::ContextDone(variant(&why).ok_or_else(|| invalid("a last run that was stopped for an unknown reason"))?),
    };
    Ok(LastRun {
        run_id: uuid::Uuid::try_parse(&l.run_id).map_err(|_| invalid("the run id is not a UUID"))?,
        generation: l.generation,
        outcome,
        report: report_from_wire(l.report.ok_or_else(|| invalid("a last run without its report"))?)?,
    })
}

fn report_to_wire(r: &RunReport) -> wire::Report {
    wire::Report {
        state: named(&r.state),
        attempt: r.attempt,
        started_at_ms: ms(r.started_at),
        finished_at_ms: r.finished_at.map(ms),
        sleep_until_ms: r.sleep_until.map(ms),
        problem: r.problem.as_ref().map(trouble_to_wire),
        resolution: r.resolution.clone(),
        steps_done: r.steps_done,
        steps_total: r.steps_total,
        current: r.current.as_ref().map(|s| wire::Step {
            from: text(s.from),
            to: s.to.to_string(),
            state: named(&s.state),
            resumed: s.resumed,
            expected: s.expected,
            replicated: s.replicated,
            silent_seconds: s.silent_seconds,
        }),
        expected_bytes: r.expected_bytes,
        replicated_bytes: r.replicated_bytes,
        bytes_per_second: r.bytes_per_second,
        imprecise: r.imprecise,
        conflict: r.conflict.as_ref().map(|c| wire::Conflict {
            base: text(c.base),
            sender_only: c.sender_only.iter().map(ToString::to_string).collect(),
            receiver_only: c.receiver_only.iter().map(ToString::to_string).collect(),
        }),
        attempts: r
            .attempts
            .iter()
            .map(|a| wire::Attempt {
                state: named(&a.state),
                started_at_ms: ms(a.started_at),
                finished_at_ms: a.finished_at.map(ms),
                error: a.error.as_ref().map(trouble_to_wire),
            })
            .collect(),
        replicated: text(r.replicated),
    }
}

fn report_from_wire(r: wire::Report) -> Result<RunReport, Problem> {
    let ids = |all: Vec<String>| all.iter().map(|id| parse(id)).collect::<Result<Vec<_>, _>>();
    let step = |s: wire::Step| {
        Ok::<_, Problem>(StepReport {
            from: parse_optional(&s.from)?,
            to: parse(&s.to)?,
            state: state(&s.state)?,
            resumed: s.resumed,
            expected: s.expected,
            replicated: s.replicated,
            silent_seconds: s.silent_seconds,
        })
    };
    let conflict = |c: wire::Conflict| {
        Ok::<_, Problem>(Conflict {
            base: parse_optional(&c.base)?,
            sender_only: ids(c.sender_only)?,
            receiver_only: ids(c.receiver_only)?,
        })
    };
    Ok(RunReport {
        state: state(&r.state)?,
        attempt: r.attempt,
        started_at: Timestamp(r.started_at_ms),
        finished_at: r.finished_at_ms.map(Timestamp),
        sleep_until: r.sleep_until_ms.map(Timestamp),
        problem: r.problem.map(trouble_from_wire),
        resolution: r.resolution,
        steps_done: r.steps_done,
        steps_total: r.steps_total,
        current: r.current.map(step).transpose()?,
        expected_bytes: r.expected_bytes,
        replicated_bytes: r.replicated_bytes,
        bytes_per_second: r.bytes_per_second,
        imprecise: r.imprecise,
        conflict: r.conflict.map(conflict).transpose()?,
        attempts: r
            .attempts
            .into_iter()
            .map(|a| {
                Ok::<_, Problem>(AttemptReport {
                    state: state(&a.state)?,
                    started_at: Timestamp(a.started_at_ms),
                    finished_at: a.finished_at_ms.map(Timestamp),
                    error: a.error.map(trouble_from_wire),
                })
            })
            .collect::<Result<_, _>>()?,
        replicated: parse_optional(&r.replicated)?,
    })
}

fn request_to_wire(r: &RequestRow) -> wire::CommitRequest {
    let state = match r.state {
        RequestState::Pending => State::Pending,
        RequestState::Done => State::Done,
        RequestState::Removing => State::Removing,
        RequestState::Removed => State::Removed,
    };
    wire::CommitRequest {
        format: r.version,
        uid: r.uid.to_string(),
        id: r.id.to_string(),
        state: state.into(),
        parent: text(r.parent),
        time_ms: r.time.0,
        changed_bytes: r.changed_bytes,
        problem: r.problem.as_ref().map(trouble_to_wire),
        reset_to: r.reset_to.map(|o| wire::Origin { fs_id: o.fs_id.to_string(), commit: o.commit.to_string() }),
    }
}

fn request_from_wire(r: wire::CommitRequest) -> Result<RequestRow, Problem> {
    let state = match r.state() {
        State::Pending => RequestState::Pending,
        State::Done => RequestState::Done,
        State::Removing => RequestState::Removing,
        State::Removed => RequestState::Removed,
        State::Unspecified => return Err(invalid("a commit request without a state that is known here")),
    };
    Ok(RequestRow {
        version: r.format.max(1),
        uid: parse(&r.uid)?,
        id: parse(&r.id)?,
        state,
        parent: parse_optional(&r.parent)?,
        time: Timestamp(r.time_ms),
        changed_bytes: r.changed_bytes,
        problem: r.problem.map(trouble_from_wire),
        reset_to: r.reset_to.map(|o| Ok::<_, Problem>(Origin { fs_id: parse(&o.fs_id)?, commit: parse(&o.commit)? })).transpose()?,
    })
}

#[cfg(test)]
#[path = "handoff_tests.rs"]
mod tests;
