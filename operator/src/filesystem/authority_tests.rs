//! That the objects say to the engine's rules what they mean, and that a refusal reaches people.
#![allow(clippy::missing_panics_doc)] // tests

use std::sync::Arc;

use dotgraft_api::{Authority, CopyRole, DesiredState, FilesystemPhase, ImportStart, Pending, Replica};

use super::*;
use crate::filesystem::moving::tests::{authority, copy, place, publish, view};
use crate::filesystem::plan::{Write, plan};
use crate::pools::tests::pool_id;
use crate::testing::FS;

/// n1 is proven lost, and the volume is needed on n3.
fn lost() -> View {
    let mut v = view();
    publish(&mut v, "n3", false);
    v.pools[0].out_of_service = true;
    v
}
fn with(v: &mut View, authority: Authority) {
    v.fs.status.as_mut().unwrap().authority = Some(authority);
}
fn changed(replica: &Arc<Replica>, change: impl FnOnce(&mut Replica)) -> Arc<Replica> {
    let mut replica = Replica::clone(replica);
    change(&mut replica);
    Arc::new(replica)
}
/// A handoff to n2 is pending.
fn pending() -> Authority {
    let pending = Pending { mig: FS.into(), attempt: 2, to: place("n2"), final_commit: FS.into() };
    Authority { pending: Some(pending), ..authority() }
}
fn start(attempt: u64) -> ImportStart {
    ImportStart { mig: FS.into(), attempt, final_commit: FS.into() }
}
fn importer(attempt: u64) -> Arc<Replica> {
    changed(&copy("n2", CopyRole::Replica, 5), |r| r.status.as_mut().unwrap().import_start = Some(start(attempt)))
}
fn testing_time(seconds: i64) -> dotgraft_api::Time {
    dotgraft_api::Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap())
}
fn stolen(v: &View) -> Result<String, Stays> {
    steal(v).map(|a| a.owner.node)
}

#[test]
fn the_newest_copy_takes_over_and_one_that_has_all_before_it() {
    let mut v = lost();
    v.replicas.extend([copy("n2", CopyRole::Replica, 5), copy("n3", CopyRole::Receiving, 7)]);
    assert_eq!(stolen(&v).unwrap(), "n3");
    assert_eq!(promote(&v, Some("n2"), true).unwrap().owner, place("n2"));
    with(&mut v, pending());
    v.replicas[1] = importer(1);
    assert_eq!(stolen(&v).unwrap(), "n3", "a stale EImportStart counts for nothing");
    v.replicas[1] = importer(2);
    let taken = steal(&v).unwrap();
    assert_eq!((taken.owner, taken.fork_points.len(), taken.pending, taken.epoch), (place("n2"), 0, None, 4));
}

#[test]
fn what_a_copy_is_complete_to_decides_and_its_clock_does_not() {
    // n3's clock was an hour ahead when it owned the volume, and n2 has what was written after that.
    let to = |seq| dotgraft_api::CompleteTo { epoch: 3, seq, time: testing_time(9), commit: FS.into() };
    let complete = |node: &str, seconds: i64, seq| {
        changed(&copy(node, CopyRole::Replica, seconds), |r| r.status.as_mut().unwrap().complete_to = Some(to(seq)))
    };
    let mut v = lost();
    v.replicas.extend([complete("n2", 5, 8), complete("n3", 3_605, 7)]);
    assert_eq!(stolen(&v).unwrap(), "n2", "although the volume is needed on n3");
    assert_eq!(promote(&v, None, true).unwrap().owner, place("n2"));
    v.replicas[2] = complete("n3", 3_605, 8);
    assert_eq!(stolen(&v).unwrap(), "n3", "between equals that decides");
    v.replicas[1] = complete("n2", 5, 0);
    assert_eq!(stolen(&v).unwrap(), "n3", "a commit of a version before 0.2 has no number: then its time decides");
    v.replicas[1] = complete("n2", 3_700, 0);
    assert_eq!(stolen(&v).unwrap(), "n2", "which is later now");
}

#[test]
fn a_copy_that_has_all_and_is_not_ready_is_waited_for_and_people_are_told() {
    let mut v = lost();
    with(&mut v, pending());
    v.replicas.extend([importer(2), copy("n3", CopyRole::Replica, 7)]);
    v.pools[1].ready = false;
    assert!(matches!(stolen(&v), Err(Stays::Refused(Refusal::WaitsFor(_)))));
    let waits = plan(&v);
    assert!(!waits.writes.iter().any(|w| matches!(w, Write::Status(..))), "nobody takes over: {waits:?}");
    let block = waits.blocked.expect("it says so");
    assert!(
        block.reason.as_str() == "WaitsForCopy" && block.message.contains("n2") && block.message.contains("--accept-loss"),
        "{block:?}"
    );
    assert_eq!(promote(&v, Some("n3"), true).unwrap().owner, place("n3"), "a person gives it up");
    v.pools[1].ready = true;
    assert_eq!(stolen(&v).unwrap(), "n2");
}

#[test]
fn nobody_takes_over_without_a_copy_that_holds_anything() {
    let mut v = lost();
    assert!(matches!(stolen(&v), Err(Stays::Refused(Refusal::NoCopy))));
    v.replicas.push(changed(&copy("n2", CopyRole::Replica, 5), |r| r.status.as_mut().unwrap().commit_count = 0));
    assert!(matches!(stolen(&v), Err(Stays::Refused(Refusal::NoCopy))));
    v.replicas.push(copy("n3", CopyRole::Replica, 5));
    v.dropped.insert(pool_id("n3"));
    assert!(matches!(stolen(&v), Err(Stays::Refused(Refusal::NoCopy))), "a person has given that one up");
}

#[test]
fn a_copy_that_authority_may_need_is_not_dropped_and_people_are_told() {
    let leaves = |v: &View, node: &str| {
        let plan = plan(v);
        let goes = |w: &Write| matches!(w, Write::Update(s, _) if s.node == node && s.desired.state == DesiredState::Absent);
        (plan.writes.iter().any(goes), plan.blocked.map(|b| b.reason.as_str()))
    };
    let mut v = view();
    v.replicas.push(copy("n2", CopyRole::Replica, 5));
    v.dropped.insert(pool_id("n2"));
    assert_eq!(leaves(&v, "n2"), (true, None));
    with(&mut v, pending());
    assert_eq!(leaves(&v, "n2"), (false, Some("CopyNeeded")), "authority is about to go there");
}

#[test]
fn accept_takes_the_highest_claim_not_the_one_on_record() {
    let claims = |node: &str, epoch: u64| changed(&copy(node, CopyRole::Owner, 9), |r| r.status.as_mut().unwrap().epoch = epoch);
    let mut v = view();
    v.fs.spec.accept_epoch = Some(4);
    v.replicas = vec![claims("n1", 3), claims("n2", 4)];
    let accepted = plan(&v).writes;
    assert!(
        matches!(accepted.as_slice(), [Write::Status(FilesystemPhase::Active, Some(a))] if a.owner == place("n2") && a.epoch == 5),
        "{accepted:?}"
    );
    // The old owner moved it on in an API of an older time: two of one epoch.
    with(&mut v, Authority { owner: place("n3"), epoch: 4, ..authority() });
    v.replicas = vec![claims("n2", 4), claims("n3", 4)];
    let tie = plan(&v);
    assert_eq!((tie.writes.len(), tie.blocked.map(|b| b.reason.as_str())), (0, Some("EqualOwners")), "a person chooses");
    v.dropped.insert(pool_id("n3"));
    assert!(matches!(plan(&v).writes.as_slice(), [Write::Status(_, Some(a))] if a.owner == place("n2")), "by giving the other up");
}
