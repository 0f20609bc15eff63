//! What the node's figures say of all its copies together. The supervisor calls [`tell`] every two seconds with the pictures that the
//! actors publish, and an actor calls [`runs_ended`] with its pictures before and after an event. Each figure is fed here and nowhere else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::ConditionType;
use dotgraft_engine::filesystem::FilesystemStatus;
use dotgraft_engine::ids::Timestamp;
use dotgraft_engine::run::{CancelReason, LastRun, Outcome};

use crate::actor::words;
use crate::driver::Space;
use crate::metrics::{Metrics, RunResult};

/// What no picture of a copy says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Of the pool.
    pub space: Space,
    /// Copies that no object asks for.
    pub orphans: usize,
    /// Requests that wait in the actors' mailboxes.
    pub waiting: usize,
    /// Statuses that the API server doesn't have yet.
    pub statuses_behind: usize,
    /// The longest time since a watch of the API server was proven whole.
    pub api_silence: Duration,
}

/// Sets every gauge that speaks of the whole node.
pub fn tell(metrics: &Metrics, all: &[Arc<FilesystemStatus>], counts: &Counts, now: Timestamp) {
    metrics.pool(counts.space.total, counts.space.available);
    metrics.quota(all.iter().map(|s| s.bytes).sum(), all.iter().map(|s| s.limit).sum());
    metrics.orphans(counts.orphans);
    metrics.mailbox_depth(counts.waiting);
    metrics.statuses_behind(counts.statuses_behind);
    metrics.api_silence(counts.api_silence);
    for (type_, n) in troubles(all) {
        metrics.condition(type_, n);
    }
    let jobs = || all.iter().flat_map(|s| &s.jobs);
    metrics.runs_in_progress(jobs().filter(|j| j.report.as_ref().is_some_and(|r| r.finished_at.is_none())).count());
    metrics.run_last_success(jobs().filter_map(|j| j.row.last_successful_time).max().map_or(0.0, unix_seconds));
    let behind = jobs().filter_map(|j| j.behind_since).min();
    metrics.replication_lag(behind.map_or(Duration::ZERO, |since| Duration::from_millis(now.since_ms(since))));
}

/// How many copies have each trouble.
fn troubles(all: &[Arc<FilesystemStatus>]) -> BTreeMap<ConditionType, usize> {
    let mut counts: BTreeMap<ConditionType, usize> = ConditionType::OF_COPIES.iter().map(|t| (*t, 0)).collect();
    for condition in all.iter().flat_map(|s| &s.conditions).filter(|c| c.status) {
        if let Some(n) = counts.get_mut(&words::about(condition.r#type)) {
            *n += 1;
        }
    }
    counts
}

/// Tells `ended` of each run that ended between two pictures of a copy. A job that the first one doesn't have is as it came from the journal, or
/// with authority from another node: its last run was counted where it ended.
pub fn runs_ended(before: &FilesystemStatus, after: &FilesystemStatus, mut ended: impl FnMut(RunResult, Duration)) {
    for job in &after.jobs {
        let Some(known) = before.jobs.iter().find(|j| j.uid == job.uid) else { continue };
        let last = job.row.last.as_ref().filter(|l| known.row.last.as_ref().is_none_or(|k| k.run_id != l.run_id));
        if let Some(last) = last {
            ended(result_of(&last.outcome), took(last));
        }
    }
}

fn took(run: &LastRun) -> Duration {
    Duration::from_millis(run.report.finished_at.map_or(0, |end| end.since_ms(run.report.started_at)))
}

const fn result_of(outcome: &Outcome) -> RunResult {
    match outcome {
        Outcome::Completed { .. } => RunResult::Success,
        Outcome::Failed(_) | Outcome::ContextDone(CancelReason::DeadlinePassed) => RunResult::Failure,
        Outcome::ContextDone(CancelReason::Suspended | CancelReason::Superseded | CancelReason::NotOwner | CancelReason::Deleted) => {
            RunResult::Cancelled
        }
    }
}

#[allow(clippy::cast_precision_loss)] // milliseconds of this century are whole in an f64
fn unix_seconds(at: Timestamp) -> f64 {
    at.0 as f64 / 1000.0
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
