//! What a Replica's status says of a picture made by hand.

use dotgraft_engine::filesystem::{Filesystem, Here, Holding, Recovered};
use dotgraft_engine::ids::{CommitId, JobUid, RequestUid};
use dotgraft_engine::model::{AttemptReport, Place, Problem, Reason, RunReport};
use dotgraft_engine::run::{JobRow, State};

use super::*;

fn copy() -> FilesystemStatus {
    let place = Place { node: "n1".parse().unwrap(), pool: "0198c2a5-7f00-4000-8000-0000000000aa".parse().unwrap() };
    let here = Here { place, boot: "0198c2a5-7f00-4000-8000-0000000000ab".parse().unwrap(), stream_version: 2, kernel_release: "6".into() };
    Filesystem::recover("0198c2a5-7f00-7000-8000-000000000001".parse().unwrap(), here, 1, Recovered::default()).status()
}

fn id(n: u128) -> CommitId {
    CommitId::from_uuid(uuid::Uuid::from_u128(n))
}

fn said(s: &FilesystemStatus) -> ReplicaStatus {
    status_of(s, None, Timestamp(1))
}

#[test]
fn what_a_copy_holds_is_said_as_it_is() {
    let before = copy();
    assert!(!before.holding.complete && !said(&before).kept_complete, "the disk was not looked at");
    let holding = Holding { kept: vec![id(2), id(1)], complete: true, complete_to: None };
    let status = said(&FilesystemStatus { holding, ..before });
    assert_eq!(status.kept, [id(2).to_string(), id(1).to_string()], "also those that are not among the newest");
    assert!(status.kept_complete);
}

/// A run whose sixteen attempts failed, each with many words.
fn failed(text: &str) -> RunReport {
    let problem = || Some(Problem::new(Reason::Unreachable, text));
    let attempt = || AttemptReport { state: State::PlanningError, started_at: Timestamp(1), finished_at: None, error: problem() };
    RunReport {
        state: State::PlanningError,
        attempt: 16,
        started_at: Timestamp(1),
        finished_at: None,
        sleep_until: None,
        problem: problem(),
        resolution: Some(text.into()),
        steps_done: 0,
        steps_total: 1,
        current: None,
        expected_bytes: None,
        replicated_bytes: 0,
        bytes_per_second: None,
        imprecise: false,
        conflict: None,
        attempts: std::iter::repeat_with(attempt).take(16).collect(),
        replicated: None,
    }
}

#[test]
fn a_status_with_too_many_words_says_all_of_it_in_fewer() {
    let text = "\u{2603}".repeat(5000);
    let request = |n: u128| RequestStatus {
        uid: RequestUid::from_uuid(uuid::Uuid::from_u128(n)),
        id: Some(id(n)),
        parent: None,
        time: None,
        changed_bytes: None,
        state: None,
        problem: Some(Problem::new(Reason::Busy, text.as_str())),
        holding: false,
    };
    let job = |n: u128| {
        let uid = JobUid::from_uuid(uuid::Uuid::from_u128(n));
        JobStatus { uid, row: JobRow::new(uid), report: Some(failed(&text)), behind_since: None, next_firing: None }
    };
    let holding = Holding { kept: (0..1024).map(id).collect(), complete: true, complete_to: None };
    let few = FilesystemStatus { requests: vec![request(1)], holding, ..copy() };
    assert_eq!(said(&few).commits[0].message.as_ref().map(|m| m.chars().count()), Some(4096), "there is room for it");
    let many = FilesystemStatus { requests: (0..256).map(request).collect(), jobs: (0..32).map(job).collect(), ..few };
    let status = said(&many);
    let bytes = serde_json::to_vec(&status).unwrap().len();
    assert!(bytes <= STATUS_MAX, "{bytes} bytes");
    assert_eq!((status.commits.len(), status.jobs.len(), status.kept.len()), (256, 32, 1024), "all are there");
    assert!(status.commits[255].message.as_ref().is_some_and(|m| m.len() > 100), "each with some words");
}
