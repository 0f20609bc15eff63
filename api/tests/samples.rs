//! The samples in `deploy/samples/` are what the types read, and mean what people expect of them.

// A helper outside of a test function may unwrap too: this whole file is tests.
#![allow(clippy::unwrap_used)]

use dotgraft_api::{Branch, Commit, DeletionPolicy, Direction, Dot, Fencing, Initial, ReplicationJob, parse_quantity};
use serde::de::DeserializeOwned;

fn sample<T: DeserializeOwned>(file: &str) -> T {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples").join(file);
    serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_dot_reads_with_its_placement() {
    let dot: Dot = sample("dot.yaml");
    assert_eq!(parse_quantity(&dot.spec.capacity), Ok(1 << 30));
    assert_eq!(dot.spec.placement.unwrap().replicas, 1);
    assert_eq!(dot.spec.fencing, Fencing::Proof);
}

#[test]
fn a_branch_reads_with_its_start_and_defaults() {
    let branch: Branch = sample("branch.yaml");
    assert_eq!(branch.spec.from.unwrap().commit.as_deref(), Some("orders-before-upgrade"));
    assert_eq!((branch.spec.deletion_policy, branch.spec.capacity), (DeletionPolicy::Delete, None));
}

#[test]
fn a_commit_reads_with_its_message() {
    let commit: Commit = sample("commit.yaml");
    assert_eq!(commit.spec.message, "before the upgrade to 2.0");
}

#[test]
fn jobs_read_with_the_defaults_of_the_api_server() {
    let once: ReplicationJob = sample("replicationjob-once.yaml");
    assert_eq!((once.spec.direction, once.spec.initial, once.spec.suspend), (Direction::Push, Initial::MostRecent, false));
    assert_eq!(once.spec.source.names, ["orders"]);
    let on_commit: ReplicationJob = sample("replicationjob-on-commit.yaml");
    assert!(on_commit.spec.schedule.unwrap().on_commit);
    let nightly: ReplicationJob = sample("replicationjob-schedule.yaml");
    let schedule = nightly.spec.schedule.unwrap();
    assert_eq!(
        (schedule.cron.as_deref(), schedule.time_zone.as_deref(), schedule.on_commit),
        (Some("30 2 * * *"), Some("Europe/Berlin"), false)
    );
    assert_eq!(on_commit.spec.retry.unwrap().max_attempts, None, "absent is without limit");
}
