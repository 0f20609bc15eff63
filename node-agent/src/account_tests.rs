//! The node's figures from pictures of its copies, made by hand.

use dotgraft_engine::filesystem::{Condition, Filesystem, Here, JobStatus, Recovered, Trouble, Why};
use dotgraft_engine::ids::{CommitId, FsId, JobUid};
use dotgraft_engine::model::{Place, Problem, Reason, RunReport};
use dotgraft_engine::run::{JobRow, State};

use super::*;

fn copy() -> FilesystemStatus {
    let place = Place { node: "n1".parse().unwrap(), pool: "0198c2a5-7f00-4000-8000-0000000000aa".parse().unwrap() };
    let here = Here { place, boot: "0198c2a5-7f00-4000-8000-0000000000ab".parse().unwrap(), stream_version: 2, kernel_release: "6".into() };
    let fs: FsId = "0198c2a5-7f00-7000-8000-000000000001".parse().unwrap();
    Filesystem::recover(fs, here, 1, Recovered::default()).status()
}

fn report(started: i64, finished: Option<i64>) -> RunReport {
    RunReport {
        state: State::Working,
        attempt: 1,
        started_at: Timestamp(started),
        finished_at: finished.map(Timestamp),
        sleep_until: None,
        problem: None,
        resolution: None,
        steps_done: 0,
        steps_total: 1,
        current: None,
        expected_bytes: None,
        replicated_bytes: 0,
        bytes_per_second: None,
        imprecise: false,
        conflict: None,
        attempts: Vec::new(),
        replicated: None,
    }
}

fn done(run: u128, outcome: Outcome) -> LastRun {
    LastRun { run_id: uuid::Uuid::from_u128(run), generation: 1, outcome, report: report(1_000, Some(3_500)) }
}

fn completed() -> Outcome {
    let replicated: CommitId = "0198c2a5-7f00-7000-8000-00000000000c".parse().unwrap();
    Outcome::Completed { replicated, bytes: 7, steps: 1 }
}

/// A job whose last run was that, and that runs if `report` isn't at its end.
fn job(last: Option<LastRun>, report: Option<RunReport>) -> JobStatus {
    let uid: JobUid = "0198c2a5-7f00-7000-8000-0000000000bb".parse().unwrap();
    JobStatus { uid, row: JobRow { last, ..JobRow::new(uid) }, report, behind_since: None, next_firing: None }
}

fn with(jobs: Vec<JobStatus>) -> FilesystemStatus {
    FilesystemStatus { jobs, ..copy() }
}

fn seen(before: &FilesystemStatus, after: &FilesystemStatus) -> Vec<(RunResult, u64)> {
    let mut all = Vec::new();
    runs_ended(before, after, |result, took| all.push((result, took.as_secs() * 1000 + u64::from(took.subsec_millis()))));
    all
}

#[test]
fn a_run_is_counted_once_where_it_ended() {
    let running = with(vec![job(None, Some(report(1_000, None)))]);
    let over = with(vec![job(Some(done(1, completed())), Some(report(1_000, Some(3_500))))]);
    assert_eq!(seen(&running, &over), [(RunResult::Success, 2_500)]);
    assert_eq!(seen(&over, &over), [], "it ended before");
    let next = with(vec![job(Some(done(2, Outcome::Failed(Problem::new(Reason::Diverged, "")))), None)]);
    assert_eq!(seen(&over, &next), [(RunResult::Failure, 2_500)]);
    assert_eq!(seen(&copy(), &over), [], "from the journal, or from another node");
}

#[test]
fn what_somebody_ended_has_neither_succeeded_nor_failed() {
    let before = with(vec![job(None, Some(report(1_000, None)))]);
    for (reason, wanted) in [
        (CancelReason::DeadlinePassed, RunResult::Failure),
        (CancelReason::Suspended, RunResult::Cancelled),
        (CancelReason::Superseded, RunResult::Cancelled),
        (CancelReason::NotOwner, RunResult::Cancelled),
        (CancelReason::Deleted, RunResult::Cancelled),
    ] {
        let after = with(vec![job(Some(done(1, Outcome::ContextDone(reason))), None)]);
        assert_eq!(seen(&before, &after), [(wanted, 2_500)], "{reason:?}");
    }
}

#[test]
fn every_figure_of_the_node_is_set() {
    let trouble = |trouble: Trouble, status| Condition {
        r#type: trouble.into(),
        status,
        reason: Why::Problem(Reason::Internal),
        message: String::new(),
    };
    let mut behind = job(None, Some(report(1_000, None)));
    behind.behind_since = Some(Timestamp(10_000));
    let mut succeeded = job(None, Some(report(1_000, Some(2_000))));
    succeeded.row.last_successful_time = Some(Timestamp(2_500));
    let mut one = FilesystemStatus { bytes: 5, limit: 50, ..with(vec![behind]) };
    one.conditions = vec![trouble(Trouble::HeadMissing, true), trouble(Trouble::Opened, false), trouble(Trouble::StaleIntent, false)];
    let two = FilesystemStatus { bytes: 6, limit: 60, ..with(vec![succeeded]) };
    let counts = Counts {
        space: Space { total: 100, available: 40, ..Space::default() },
        orphans: 1,
        waiting: 2,
        statuses_behind: 3,
        api_silence: Duration::from_secs(4),
    };
    let metrics = Metrics::new();
    tell(&metrics, &[Arc::new(one), Arc::new(two)], &counts, Timestamp(70_000));
    let text = metrics.encode();
    for line in [
        "dotgraft_pool_bytes 100",
        "dotgraft_pool_available_bytes 40",
        "dotgraft_quota_used_bytes 11",
        "dotgraft_quota_limit_bytes 110",
        "dotgraft_orphans 1",
        "dotgraft_mailbox_depth 2",
        "dotgraft_statuses_behind 3",
        "dotgraft_api_silence_seconds 4.0",
        "dotgraft_condition{condition=\"HeadMissing\"} 1",
        "dotgraft_condition{condition=\"StaleIntent\"} 0",
        "dotgraft_condition{condition=\"OriginMissing\"} 0",
        "dotgraft_runs_in_progress 1",
        "dotgraft_run_last_success_timestamp_seconds 2.5",
        "dotgraft_replication_lag_max_seconds 60.0",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }
}
