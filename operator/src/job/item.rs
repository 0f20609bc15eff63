//! One Filesystem of a job: what its owner's agent reports, in the words of replication.md §1 and §5. Pure.

use dotgraft_api::replication_job::{AttemptError, CurrentStep};
use dotgraft_api::run_report::{AgentReport, RunAttempt, RunProblem, RunReport, RunState, UnixMillis};
use dotgraft_api::{AttemptReport, ConditionType, ItemReport, Place, Problem, Reason, ReplicaJobStatus, ReplicationJob, StepCounts, Time};
use dotgraft_engine::behind::Behind;
use dotgraft_engine::model;
use dotgraft_engine::run::PLACING_ATTEMPTS;
use k8s_openapi::jiff::Timestamp;

use crate::conditions::Block;

/// What is known of one source of a job.
#[derive(Debug, Clone)]
pub struct Item {
    /// Name of the Dot or Branch.
    pub name: String,
    /// Where it goes, or why it can't.
    pub target: Result<Place, Block>,
    /// What the owner's agent says of this job.
    pub job: Option<ReplicaJobStatus>,
    /// What the target lacks; `None`: not known.
    pub behind: Option<Behind<Timestamp>>,
    /// Why what the owner's agent says is old: its pool isn't ready.
    pub away: Option<String>,
}

/// How far an item is; order is the order in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It ended with an error, or can't begin before something changes.
    Failed,
    /// Between two tries.
    RetryWait,
    /// Bytes are moving.
    Active,
    /// Both sides are being listed.
    Planning,
    /// Not begun.
    Pending,
    /// Up to date.
    Completed,
}

/// An [`Item`] with what follows from it.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The item.
    pub item: Item,
    /// The run's report, if it is one of the run that is wanted.
    pub report: Option<RunReport>,
    /// How far it is.
    pub stage: Stage,
    /// State of the run.
    pub state: RunState,
    /// What stands in the way.
    pub problem: Option<Problem>,
}

/// The API's time of a report's.
pub fn time(at: UnixMillis) -> Option<Time> {
    Timestamp::from_millisecond(at).ok().map(Time)
}

/// `90` → `1m30s`: two units, as kubectl shows ages.
pub(super) fn spell(seconds: u64) -> String {
    let two = |big: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86400 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => two(seconds / 86400, "d", seconds % 86400 / 3600, "h"),
    }
}

/// Fewer digits as it grows, so that a lag that only ages isn't written again and again.
pub(super) fn coarse(seconds: u64) -> u64 {
    match seconds {
        0..60 => seconds - seconds % 5,
        60..3600 => seconds - seconds % 60,
        _ => seconds - seconds % 3600,
    }
}

fn problem(p: &RunProblem) -> Problem {
    Problem { reason: p.reason.to_string(), message: p.message.chars().take(4096).collect() }
}

/// Looks at one item. What an agent that is away has said last is shown, and doesn't count as the state of things.
pub fn judge(item: Item, job: &ReplicationJob) -> Judged {
    let mut judged = judge_said(item, job);
    if let Some(why) = judged.item.away.as_ref().filter(|_| judged.stage != Stage::Failed) {
        judged.problem = Some(Problem { reason: ConditionType::OwnerNotReady.to_string(), message: why.clone() });
        judged.stage = Stage::Pending;
    }
    judged
}

/// Looks at one item as its owner's agent has it.
fn judge_said(item: Item, job: &ReplicationJob) -> Judged {
    let current = item.job.as_ref().filter(|j| j.observed_trigger == job.spec.trigger).and_then(|j| j.report.as_ref());
    let report = current.and_then(AgentReport::known).cloned();
    if let Err(block) = &item.target {
        use ConditionType::{InvalidSchedule, SourceNotFound, TargetIsOwner, TargetNotFound, TargetRefused};
        let final_ = matches!(block.reason, Reason::Of(InvalidSchedule | TargetIsOwner | TargetNotFound | TargetRefused | SourceNotFound));
        let problem = Some(Problem { reason: block.reason.to_string(), message: block.message.clone() });
        let stage = if final_ { Stage::Failed } else { Stage::Pending };
        return Judged { item, report: None, stage, state: RunState::Planning, problem };
    }
    let Some(report) = report else {
        let problem = current.and_then(AgentReport::trouble).map(|why| unreadable(&why));
        return Judged { item, report: None, stage: Stage::Pending, state: RunState::Planning, problem };
    };
    if was_stopped(&report) {
        return Judged { item, state: report.state, report: Some(report), stage: Stage::Pending, problem: None };
    }
    let is_placing = report.problem.as_ref().is_some_and(|p| is_being_placed(&report, p));
    let stage = match (report.state, &report.problem) {
        _ if is_placing => Stage::Planning,
        (RunState::Completed | RunState::ContextDone, Some(_)) => Stage::Failed,
        (RunState::Completed, None) => Stage::Completed,
        (RunState::ContextDone, None) => Stage::Pending,
        (RunState::Working, _) => Stage::Active,
        (RunState::WorkingWait | RunState::PlanningError, _) => Stage::RetryWait,
        (RunState::Planning, _) => Stage::Planning,
    };
    let problem = report.problem.as_ref().filter(|_| !is_placing).map(problem);
    // An error that is none: people wait for the copy.
    let state = if is_placing { RunState::Planning } else { report.state };
    Judged { item, state, report: Some(report), stage, problem }
}

/// The agent's report is there, and says nothing to this version: of a newer agent, as in the middle of an upgrade.
fn unreadable(why: &str) -> Problem {
    let message = format!("the report of the owner's agent can't be read ({why}): its version is newer than this operator's");
    Problem { reason: ConditionType::ReportUnreadable.to_string(), message: message.chars().take(4096).collect() }
}

/// Stopped from outside, before its own end: suspended, without its order for a while, or its owner moved. The agent still owes it.
fn was_stopped(report: &RunReport) -> bool {
    report.state == RunState::ContextDone && report.problem.as_ref().is_some_and(|p| p.reason == ConditionType::Cancelled)
}

/// A send that brings no byte and is none the worse for it. Coarse: a new text is a new status.
fn silent(seconds: u64) -> String {
    format!("the kernel of the owner's node: it reads what may have changed, no bytes for {}", spell(coarse(seconds)))
}

/// The target's agent makes the copy when it sees its object: the first attempts of a first push may come before that.
fn is_being_placed(report: &RunReport, problem: &RunProblem) -> bool {
    problem.reason == ConditionType::NotPlaced && report.attempt <= PLACING_ATTEMPTS && report.finished_at.is_none()
}

impl Judged {
    /// Whether its run has come to its end.
    pub fn ended(&self) -> bool {
        self.report.as_ref().is_some_and(|r| r.state.is_end() && !was_stopped(r))
    }

    /// When its schedule fires next.
    fn next_firing(&self) -> Option<&Time> {
        self.item.job.as_ref()?.next_schedule_time.as_ref()
    }

    /// Its line in the report.
    pub fn line(&self) -> ItemReport {
        let state = match self.stage {
            Stage::Failed => "PermanentError",
            Stage::RetryWait => "RetryWait",
            Stage::Active => "Active",
            Stage::Planning => "Planning",
            Stage::Pending => "Ready",
            Stage::Completed => "Completed",
        };
        let clip = |s: &str, n: usize| s.chars().take(n).collect::<String>();
        let report = self.report.as_ref();
        let blocked_on = match (&self.item.target, report) {
            (Err(b), _) => Some(clip(&b.message, 1024)),
            (Ok(_), _) if self.item.away.is_some() => self.item.away.as_deref().map(|why| clip(why, 1024)),
            (Ok(_), None) if self.next_firing().is_some() => Some("its schedule".to_owned()),
            (Ok(_), None) => Some("the agent of the owner".to_owned()),
            (Ok(_), Some(r)) if r.problem.as_ref().is_some_and(|p| is_being_placed(r, p)) => {
                Some("the copy that the target's agent makes".to_owned())
            }
            (Ok(_), Some(r)) => r.current.as_ref().filter(|_| !self.ended()).and_then(|c| c.silent_seconds).map(silent),
        };
        ItemReport {
            name: clip(&self.item.name, 253),
            state: state.into(),
            resolution: report.and_then(|r| r.resolution.as_deref()).map(|r| clip(r, 1024)),
            blocked_on,
            steps: report.filter(|r| r.steps_total > 0).map(|r| StepCounts { done: r.steps_done, total: r.steps_total }),
            current: report.filter(|_| !self.ended()).and_then(|r| r.current.as_ref()).map(|c| CurrentStep {
                from: c.from.clone(),
                to: c.to.clone(),
                resumed: c.resumed,
                expected: c.expected,
                replicated: c.replicated,
            }),
            error: self.problem.clone(),
            next_retry: report.filter(|_| self.stage == Stage::RetryWait).and_then(|r| r.sleep_until).and_then(time),
        }
    }

    /// What has failed since the last success: runs, and attempts of the one in hand.
    pub fn failures(&self) -> u32 {
        let runs = self.item.job.as_ref().map_or(0, |j| j.consecutive_failures);
        let in_hand = self.report.as_ref().filter(|_| !self.ended() && self.problem.is_some());
        let attempts = in_hand.map_or(0, |r| r.attempts.iter().filter(|a| a.error.is_some()).count());
        // The list has the newest only; the number of the attempt tells of all.
        let all =
            in_hand.filter(|_| attempts > 0).map_or(0, |r| r.attempt.saturating_sub(1).max(u32::try_from(attempts).unwrap_or(u32::MAX)));
        runs.saturating_add(all)
    }

    /// The last attempts of its run.
    pub fn attempts(&self) -> Vec<AttemptReport> {
        let Some(report) = &self.report else { return Vec::new() };
        let skip = report.attempts.len().saturating_sub(3);
        report.attempts.iter().skip(skip).map(attempt).collect()
    }

    /// Since when a commit is missing on the target, and how many are.
    pub fn missing(&self) -> Option<(Timestamp, String)> {
        let b = self.item.behind.filter(|b| b.commits > 0)?;
        let more = if b.or_more { " or more" } else { "" };
        let s = if b.commits == 1 { "" } else { "s" };
        Some((b.since?, format!("{} commit{s}{more}", b.commits)))
    }
}

fn attempt(a: &RunAttempt) -> AttemptReport {
    AttemptReport {
        state: a.state.as_str().into(),
        started_at: time(a.started_at),
        finished_at: a.finished_at.and_then(time),
        error: a.error.as_ref().map(|e| AttemptError {
            class: if is_permanent(e.reason) { "Permanent" } else { "Temporary" }.into(),
            reason: e.reason.to_string(),
            message: e.message.chars().take(4096).collect(),
        }),
    }
}

/// Whether trying again unchanged can't help, as the engine has it. What isn't one of its reasons ends no run.
fn is_permanent(reason: ConditionType) -> bool {
    serde_json::from_value::<model::Reason>(reason.as_str().into()).is_ok_and(model::Reason::is_permanent)
}
