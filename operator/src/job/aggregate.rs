//! Status of a ReplicationJob from the reports of its Filesystems' owners (replication.md §5): pure.
//!
//! A job's state is derived from its runs, worst first, and never stored separately. Once a run that isn't repeated
//! has ended, the report doesn't change any more.

use std::collections::BTreeSet;
use std::time::Duration;

use dotgraft_api::quantity::human;
use dotgraft_api::run_report::RunState;
use dotgraft_api::{ConditionType, FilesystemCounts, JobReport, Progress, Reason, ReplicationJob, ReplicationJobStatus, Time, Word};
use k8s_openapi::jiff::Timestamp;

use super::item::{Item, Judged, Stage, coarse, judge, spell, time};
use super::resolve;
use crate::conditions::{self, Wanted, of_problem, wanted};

/// Most items of a report.
const MAX_ITEMS: usize = 50;
/// So long a newer commit may take to its target before a job of each commit isn't ready.
const PROMPT: Duration = Duration::from_secs(10);
/// Most conditions beyond the base ones.
const MAX_TYPED: usize = 8;

/// The status to be.
pub fn status(job: &ReplicationJob, items: Vec<Item>, now: &Time) -> ReplicationJobStatus {
    let old = job.status.clone().unwrap_or_default();
    if resolve::is_over(job) {
        return frozen(job, old, &items, now);
    }
    let mut judged: Vec<Judged> = items.into_iter().map(|i| judge(i, job)).collect();
    judged.sort_by(|a, b| a.stage.cmp(&b.stage).then_with(|| a.item.name.cmp(&b.item.name)));
    let mut new = summary(job, &judged, &old);
    (new.lag, new.behind_since) = lag(judged.iter().map(|j| &j.item), now);
    new.conditions = conditions::merge(&old.conditions, &verdicts(job, &judged, &new, now), job.metadata.generation, now);
    new
}

/// Only how old the copy is by now goes on.
fn frozen(job: &ReplicationJob, mut old: ReplicationJobStatus, items: &[Item], now: &Time) -> ReplicationJobStatus {
    (old.lag, old.behind_since) = lag(items.iter(), now);
    let mut list: Vec<Wanted> =
        old.conditions.iter().filter(|c| c.type_ != ConditionType::Suspended.as_str()).map(conditions::same).collect();
    list.push(suspended(job));
    old.conditions = conditions::merge(&old.conditions, &list, job.metadata.generation, now);
    old.observed_generation = job.metadata.generation;
    old
}

fn state(judged: &[Judged]) -> Option<String> {
    let rank = |j: &Judged| match (j.ended(), j.state) {
        (false, RunState::PlanningError) => 0,
        (false, RunState::WorkingWait) => 1,
        (false, RunState::Planning) => 2,
        (false, _) => 3,
        (true, RunState::ContextDone) => 4,
        (true, _) => 5,
    };
    judged.iter().min_by_key(|j| rank(j)).map(|j| j.state.as_str().to_owned())
}

fn counts(judged: &[Judged]) -> FilesystemCounts {
    let count = |stages: &[Stage]| u32::try_from(judged.iter().filter(|j| stages.contains(&j.stage)).count()).unwrap_or(u32::MAX);
    FilesystemCounts {
        total: u32::try_from(judged.len()).unwrap_or(u32::MAX),
        completed: count(&[Stage::Completed]),
        failed: count(&[Stage::Failed]),
        active: count(&[Stage::Active, Stage::RetryWait, Stage::Planning]),
        pending: count(&[Stage::Pending]),
    }
}

fn summary(job: &ReplicationJob, judged: &[Judged], old: &ReplicationJobStatus) -> ReplicationJobStatus {
    let reports = || judged.iter().filter_map(|j| j.report.as_ref());
    let ended = !judged.is_empty() && judged.iter().all(Judged::ended);
    let agents = || judged.iter().filter_map(|j| j.item.job.as_ref());
    let successes: Vec<&Time> = agents().filter_map(|j| j.last_successful_time.as_ref()).collect();
    let all_succeeded = !judged.is_empty() && successes.len() == judged.len();
    let last_successful_time = successes.iter().min().filter(|_| all_succeeded).map(|t| (*t).clone());
    let (last_duration, last_bytes) = last_run(judged).unwrap_or((old.last_duration.clone(), old.last_bytes));
    ReplicationJobStatus {
        observed_generation: job.metadata.generation,
        observed_trigger: if reports().next().is_some() { job.spec.trigger.clone() } else { old.observed_trigger.clone() },
        state: state(judged),
        problem: judged.iter().find_map(|j| j.problem.clone()),
        sleep_until: judged
            .iter()
            .filter(|j| j.stage == Stage::RetryWait)
            .filter_map(|j| j.report.as_ref()?.sleep_until)
            .min()
            .and_then(time),
        attempt: reports().map(|r| r.attempt).max(),
        started_at: reports().map(|r| r.started_at).min().and_then(time),
        finished_at: reports().filter_map(|r| r.finished_at).max().filter(|_| ended).and_then(time),
        report: Some(JobReport {
            attempts: judged.iter().map(Judged::attempts).find(|a| !a.is_empty()).unwrap_or_default(),
            filesystems: Some(counts(judged)),
            items: judged.iter().take(MAX_ITEMS).map(Judged::line).collect(),
        }),
        progress: progress(judged),
        next_schedule_time: agents().filter_map(|j| j.next_schedule_time.clone()).min(),
        last_successful_time: last_successful_time.or_else(|| old.last_successful_time.clone()),
        last_duration,
        last_bytes,
        lag: None,
        behind_since: None,
        consecutive_failures: judged.iter().map(Judged::failures).max().unwrap_or(0),
        conditions: Vec::new(),
    }
}

/// Duration and bytes of the last run, when it brought everything over for all.
fn last_run(judged: &[Judged]) -> Option<(Option<String>, Option<u64>)> {
    let runs: Vec<_> = judged.iter().map(|j| j.item.job.as_ref()?.last.as_ref().filter(|l| l.success)).collect::<Option<_>>()?;
    let start = runs.iter().map(|l| l.started_at.0).min()?;
    let end = runs.iter().map(|l| l.finished_at.0).max()?;
    Some((Some(spell(seconds(start, end))), Some(runs.iter().map(|l| l.bytes).sum())))
}

fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_second().saturating_sub(from.as_second())).unwrap_or(0)
}

fn progress(judged: &[Judged]) -> Option<Progress> {
    let reports: Vec<_> = judged.iter().filter_map(|j| j.report.as_ref().map(|r| (j.ended(), r))).collect();
    if reports.is_empty() {
        return None;
    }
    let known: Vec<u64> = reports.iter().filter_map(|(_, r)| r.expected_bytes).collect();
    let expected = (!known.is_empty()).then(|| known.iter().fold(0_u64, |a, b| a.saturating_add(*b)));
    let replicated = reports.iter().fold(0_u64, |a, (_, r)| a.saturating_add(r.replicated_bytes));
    let rates: Vec<u64> = reports.iter().filter(|(ended, _)| !ended).filter_map(|(_, r)| r.bytes_per_second).collect();
    let rate = (!rates.is_empty()).then(|| rates.iter().fold(0_u64, |a, b| a.saturating_add(*b)));
    let left = expected.map(|e| e.saturating_sub(replicated)).filter(|l| *l > 0);
    let eta = match (left, rate) {
        (Some(left), Some(rate)) if rate > 0 => Some(spell(left.div_ceil(rate))),
        _ => None,
    };
    let unknown = known.len() < reports.len() && reports.iter().any(|(ended, _)| !ended);
    Some(Progress {
        expected_bytes: expected,
        replicated_bytes: replicated,
        sent: expected.map_or_else(|| human(replicated), |e| format!("{} of {}", human(replicated), human(e))),
        bytes_per_second: rate,
        eta,
        imprecise: unknown || reports.iter().any(|(_, r)| r.imprecise),
    })
}

/// Of the target that is farthest behind: for how long, in words, and since when.
fn lag<'a>(items: impl Iterator<Item = &'a Item>, now: &Time) -> (Option<String>, Option<Time>) {
    let known: Vec<_> = items.filter_map(|i| i.behind).collect();
    let since = known.iter().filter_map(|b| b.since).min();
    let text = since.map_or_else(|| "0s".to_owned(), |at| spell(coarse(seconds(at, now.0))));
    (Some(text).filter(|_| !known.is_empty()), since.map(Time))
}

/// For how long a target lacks something; `None`: none does.
pub fn behind_for(status: &ReplicationJobStatus, now: &Time) -> Option<Duration> {
    status.behind_since.as_ref().map(|at| Duration::from_secs(seconds(at.0, now.0)))
}

/// A target that lacks commits for longer than a copy of little takes.
fn falls_behind(judged: &[Judged], now: &Time) -> Option<Wanted> {
    let missing = judged.iter().filter_map(|j| Some((j, j.missing()?)));
    let (j, (since, what)) = missing.min_by_key(|(_, (since, _))| *since)?;
    let late = seconds(since, now.0) >= PROMPT.as_secs();
    let message = format!("{}: the target lacks {what}, since {since:.0}", j.item.name);
    late.then(|| wanted(ConditionType::Ready, false, Word::Behind, message))
}

fn suspended(job: &ReplicationJob) -> Wanted {
    if job.spec.suspend {
        wanted(ConditionType::Suspended, true, ConditionType::Suspended, "spec.suspend is set")
    } else {
        wanted(ConditionType::Suspended, false, Word::NotSuspended, "")
    }
}

fn verdicts(job: &ReplicationJob, judged: &[Judged], new: &ReplicationJobStatus, now: &Time) -> Vec<Wanted> {
    let counts = counts(judged);
    let moving = judged.iter().any(|j| matches!(j.stage, Stage::Active | Stage::Planning));
    let mut list = vec![readiness(job, judged, new, &counts, now)];
    list.push(wanted(
        ConditionType::Progressing,
        moving,
        if moving { Word::Running } else { Word::NotRunning },
        progress_line(new, moving),
    ));
    let trouble = judged.iter().find(|j| j.problem.is_some() && j.stage != Stage::Pending);
    list.push(match trouble.and_then(|j| j.problem.as_ref()) {
        Some(p) => of_problem(Some(ConditionType::Degraded), true, p),
        None => wanted(ConditionType::Degraded, false, Word::AsExpected, ""),
    });
    let apart = judged
        .iter()
        .filter_map(|j| Some((j, j.problem.as_ref()?)))
        .find(|(_, p)| matches!(p.reason.parse(), Ok(ConditionType::Diverged | ConditionType::NoCommonAncestor)));
    list.push(match apart {
        Some((j, p)) => of_problem(Some(ConditionType::Diverged), true, p).saying(format!("{}: {}", j.item.name, p.message)),
        None => wanted(ConditionType::Diverged, false, Word::AsExpected, ""),
    });
    list.push(suspended(job));
    let mut typed = BTreeSet::new();
    for (j, p) in judged.iter().filter_map(|j| Some((j, j.problem.as_ref()?))) {
        if p.reason != ConditionType::Diverged.as_str() && typed.len() < MAX_TYPED && typed.insert(p.reason.as_str()) {
            list.push(of_problem(None, true, p).saying(format!("{}: {}", j.item.name, p.message)));
        }
    }
    list
}

fn progress_line(new: &ReplicationJobStatus, moving: bool) -> String {
    // Numbers stand in `progress`; in a message they would make every status a new one.
    match (&new.report, moving) {
        (Some(r), true) => r.filesystems.as_ref().map_or_else(String::new, |f| format!("{} of {} done", f.completed, f.total)),
        _ => String::new(),
    }
}

fn readiness(job: &ReplicationJob, judged: &[Judged], new: &ReplicationJobStatus, counts: &FilesystemCounts, now: &Time) -> Wanted {
    let no = |reason: Reason, message: String| wanted(ConditionType::Ready, false, reason, message);
    if judged.is_empty() {
        return no(Word::NoSources.into(), "no Dot of this namespace matches spec.source".into());
    }
    // An agent's last word may be older than the newest commit.
    let late = falls_behind(judged, now).filter(|_| resolve::on_commit(job));
    if counts.completed == counts.total {
        if let Some(late) = late {
            return late;
        }
        let reason = if resolve::on_commit(job) { Word::UpToDate } else { Word::Completed };
        return wanted(ConditionType::Ready, true, reason, format!("{} of {} are up to date", counts.completed, counts.total));
    }
    if let Some((j, p)) = judged.iter().find_map(|j| Some((j, j.problem.as_ref()?))) {
        return of_problem(Some(ConditionType::Ready), false, p).saying(format!("{}: {}", j.item.name, p.message));
    }
    if job.spec.suspend {
        return no(ConditionType::Suspended.into(), "spec.suspend is set".into());
    }
    if let Some(late) = late {
        return late;
    }
    if resolve::goes_on(job) && new.last_successful_time.is_some() {
        return wanted(ConditionType::Ready, true, Word::Running, "bringing newer commits over");
    }
    if let Some(at) = new.next_schedule_time.as_ref().filter(|_| judged.iter().all(|j| j.report.is_none())) {
        return no(Word::Scheduled.into(), format!("the first run is at {:.0}", at.0));
    }
    no(
        if counts.active > 0 { Word::Running } else { Word::Pending }.into(),
        format!("{} of {} are up to date", counts.completed, counts.total),
    )
}

/// Whether two statuses differ in more than numbers that move by themselves: then it is written at once.
pub fn differs_much(old: &ReplicationJobStatus, new: &ReplicationJobStatus) -> bool {
    let core = |s: &ReplicationJobStatus| {
        let mut s = s.clone();
        s.progress = None;
        s.lag = None;
        s.sleep_until = None;
        for item in s.report.iter_mut().flat_map(|r| r.items.iter_mut()) {
            item.current = None;
            item.steps = None;
            item.next_retry = None;
        }
        s
    };
    core(old) != core(new)
}

#[cfg(test)]
#[path = "aggregate_tests.rs"]
mod tests;
