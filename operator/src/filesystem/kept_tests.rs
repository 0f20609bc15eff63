//! No last copy of a kept commit goes: by the collector, by a person's drop, or two at once because of each other.
#![allow(clippy::missing_panics_doc)] // tests

use std::sync::Arc;

use dotgraft_api::{ConditionType, Opened, ReplicaCommit, Time};
use k8s_openapi::jiff::Timestamp;

use super::super::moving::tests::{copy, view};
use super::super::plan::{Write, plan};
use super::*;
use crate::names;
use crate::pools::tests::pool_id;
use crate::testing;

/// A snapshot that n2 alone has.
pub const S2: &str = "0198c2a5-7f00-7000-8000-0000000000c2";
/// The newest.
pub const LATER: &str = "0198c2a5-7f00-7000-8000-0000000000c3";

fn listed(id: &str) -> ReplicaCommit {
    let time = Time(Timestamp::from_second(5).unwrap());
    ReplicaCommit { id: id.into(), parent: None, time, message: String::new(), epoch: 3, deleted: false }
}
/// A Commit that is made.
pub fn object(name: &str, id: &str) -> Arc<Commit> {
    let mut c = testing::commit(name, 1);
    c.status.get_or_insert_default().id = Some(id.into());
    Arc::new(c)
}
/// Changes a node's Replica.
pub fn edit(v: &mut View, node: &str, change: impl FnOnce(&mut Replica)) {
    let i = v.replicas.iter().position(|r| r.spec.node == node).unwrap();
    change(Arc::make_mut(&mut v.replicas[i]));
}
/// What a node's copy has, newest first, as an agent of before 0.2 says it.
pub fn holds(v: &mut View, node: &str, ids: &[&str]) {
    edit(v, node, |r| {
        let s = r.status.as_mut().unwrap();
        (s.commit_count, s.head) = (ids.len() as u64, ids.first().map(|id| (*id).to_owned()));
        s.recent_commits = ids.iter().map(|id| listed(id)).collect();
    });
}
/// Issue 11, fault 0: n2 had it, with snapshot s2 and a Commit; a push brought the newest only to n1, which owns it now; n2's copy is spare
/// for long enough.
pub fn drained() -> View {
    let mut v = view();
    v.replicas.push(copy("n2", CopyRole::Replica, 5));
    v.commits = vec![object("s2", S2), object("later", LATER)];
    holds(&mut v, "n1", &[LATER]);
    holds(&mut v, "n2", &[LATER, S2]);
    let a = v.fs.status.as_mut().unwrap().authority.as_mut().unwrap();
    a.opened = Some(Opened { epoch: a.epoch, boot_id: "0198c2a5-7f00-7000-8000-0000000000b0".into() });
    let epoch = a.epoch;
    edit(&mut v, "n1", |r| r.status.as_mut().unwrap().epoch = epoch);
    edit(&mut v, "n2", |r| {
        r.metadata.labels.get_or_insert_default().insert(names::OURS_LABEL.into(), "true".into());
        r.metadata.annotations = Some([(names::SPARE_ANNOTATION.to_owned(), "1970-01-01T00:16:40Z".to_owned())].into());
    });
    for node in ["n1", "n2"] {
        edit(&mut v, node, |r| r.status.as_mut().unwrap().observed_generation = r.metadata.generation);
    }
    (v.now, v.spare_after) = (1_000_000, Some(60));
    v
}
fn leaves(v: &View) -> Vec<String> {
    let gone = |w: Write| match w {
        Write::Update(spec, _) if spec.desired.state == DesiredState::Absent => Some(spec.node.clone()),
        _ => None,
    };
    plan(v).writes.into_iter().filter_map(gone).collect()
}

#[test]
fn the_collector_leaves_the_last_copy_of_a_snapshot_and_says_why() {
    let mut v = drained();
    assert_eq!(leaves(&v), [""; 0]);
    let stays = plan(&v).stays;
    assert_eq!((stays.len(), stays[0].at.node.as_str(), stays[0].why.contains("`s2`")), (1, "n2", true), "{stays:?}");
    assert!(!stays[0].why.contains("`later`"), "the owner has that: {stays:?}");
    holds(&mut v, "n1", &[LATER, S2]);
    assert_eq!((leaves(&v), plan(&v).stays.len()), (vec!["n2".to_owned()], 0), "once the owner has it, too");
}

#[test]
fn a_drop_does_not_take_it_either_until_its_commit_is_deleted() {
    let mut v = drained();
    v.spare_after = None;
    v.dropped.insert(pool_id("n2"));
    assert_eq!((leaves(&v), plan(&v).stays.len()), (vec![], 1));
    let mut going = testing::deleted(Commit::clone(&object("s2", S2)));
    v.commits[0] = Arc::new(going.clone());
    assert_eq!(leaves(&v), ["n2"], "nobody wants it any more");
    let pinned = crate::conditions::wanted(ConditionType::Pinned, true, ConditionType::Pinned, "Branch b");
    going.status.as_mut().unwrap().conditions = crate::conditions::merge(&[], &[pinned], None, &Time(Timestamp::UNIX_EPOCH));
    v.commits[0] = Arc::new(going);
    assert_eq!(leaves(&v), [""; 0], "a Branch needs it");
    v.commits.remove(0);
    assert_eq!(leaves(&v), ["n2"]);
}

#[test]
fn what_only_the_agent_calls_kept_stays_from_the_collector_and_not_from_a_person() {
    let mut v = drained();
    v.commits.clear();
    assert_eq!(leaves(&v), [""; 0]);
    v.dropped.insert(pool_id("n2"));
    assert_eq!(leaves(&v), ["n2"]);
}

#[test]
fn two_copies_do_not_go_because_of_each_other() {
    let mut v = drained();
    v.replicas.push(copy("n3", CopyRole::Replica, 5));
    holds(&mut v, "n3", &[LATER, S2]);
    v.dropped = [pool_id("n2"), pool_id("n3")].into();
    assert_eq!(leaves(&v).len(), 1);
    assert_eq!(plan(&v).stays.len(), 1);
    edit(&mut v, "n2", |r| r.spec.desired.state = DesiredState::Absent);
    assert_eq!(leaves(&v), [""; 0], "n2 is on its way out already");
}

#[test]
fn a_report_that_was_cut_and_a_node_that_is_away_excuse_nobody() {
    let mut v = drained();
    holds(&mut v, "n1", &[LATER, S2]);
    v.pools[0].ready = false;
    v.dropped.insert(pool_id("n2"));
    assert_eq!(leaves(&v), [""; 0], "n1 is away");
    let mut v = drained();
    v.replicas.push(copy("n3", CopyRole::Replica, 5));
    holds(&mut v, "n3", &[LATER, S2]);
    v.dropped.insert(pool_id("n2"));
    assert_eq!(leaves(&v), ["n2"]);
    v.pools.iter_mut().find(|p| p.node == "n3").unwrap().out_of_service = true;
    assert_eq!(leaves(&v), [""; 0], "n3 is about to go");
    let mut v = drained();
    edit(&mut v, "n1", |r| r.status.as_mut().unwrap().commit_count = 40);
    assert_eq!(leaves(&v), [""; 0], "n1 may have it, and may not");
    holds(&mut v, "n1", &[LATER, S2]);
    edit(&mut v, "n2", |r| r.status.as_mut().unwrap().commit_count = 40);
    assert_eq!(leaves(&v), ["n2"], "all that is wanted is elsewhere");
    v.commits.push(object("old", "0198c2a5-7f00-7000-8000-0000000000c1"));
    assert_eq!(leaves(&v), [""; 0], "n2 may be the one that has the old one");
    assert!(plan(&v).stays[0].why.contains("doesn't report"), "{:?}", plan(&v).stays);
}

#[test]
fn the_owners_copy_stays_whoever_drops_it_and_counts_for_the_others() {
    let mut v = drained();
    holds(&mut v, "n1", &[LATER, S2]);
    v.dropped = [pool_id("n1"), pool_id("n2")].into();
    assert_eq!(leaves(&v), ["n2"]);
}

#[test]
fn a_copy_whose_disk_is_gone_for_good_holds_nothing() {
    let mut v = drained();
    v.dropped.insert(pool_id("n2"));
    v.pools.retain(|p| p.node != "n2");
    assert_eq!((leaves(&v), plan(&v).stays.len()), (vec!["n2".to_owned()], 0));
}

#[test]
fn a_commit_that_was_made_in_another_filesystem_is_not_looked_for_here() {
    let mut v = drained();
    let mut other = Commit::clone(&object("s2", S2));
    other.status.as_mut().unwrap().fs_id = Some("0198c2a5-7f00-7000-8000-000000000009".into());
    v.commits[0] = Arc::new(other);
    v.dropped.insert(pool_id("n2"));
    assert_eq!(leaves(&v), ["n2"]);
}

#[test]
fn what_an_agent_reports_counts_beyond_its_newest_commits() {
    let mut v = drained();
    let told = |v: &mut View, node: &str, kept: &[&str], complete: bool| {
        edit(v, node, |r| {
            let s = r.status.as_mut().unwrap();
            s.kept = kept.iter().map(|id| (*id).to_owned()).collect();
            (s.kept_complete, s.commit_count) = (complete, 900);
        });
    };
    told(&mut v, "n1", &[LATER], true);
    told(&mut v, "n2", &[LATER, S2], true);
    assert_eq!(leaves(&v), [""; 0]);
    told(&mut v, "n1", &[LATER, S2], true);
    assert_eq!(leaves(&v), ["n2"]);
    told(&mut v, "n2", &[LATER], false);
    edit(&mut v, "n2", |r| r.status.as_mut().unwrap().recent_commits.truncate(1));
    v.commits.push(object("old", "0198c2a5-7f00-7000-8000-0000000000c1"));
    assert_eq!(leaves(&v), [""; 0], "its report was cut");
}

#[test]
fn a_copy_that_has_not_looked_at_its_disk_may_hold_all_that_is_wanted() {
    let mut v = drained();
    holds(&mut v, "n1", &[LATER, S2]);
    assert_eq!(leaves(&v), ["n2"]);
    holds(&mut v, "n1", &[LATER]);
    edit(&mut v, "n2", |r| r.status = Some(dotgraft_api::ReplicaStatus { role: CopyRole::Absent, ..Default::default() }));
    v.dropped.insert(pool_id("n2"));
    assert_eq!(leaves(&v), [""; 0], "its journal was lost, or it has just started");
    edit(&mut v, "n2", |r| r.status.as_mut().unwrap().kept_complete = true);
    assert_eq!(leaves(&v), ["n2"], "it has looked");
    let mut v = drained();
    holds(&mut v, "n2", &[LATER]);
    v.dropped.insert(pool_id("n2"));
    assert_eq!(leaves(&v), ["n2"], "an agent of before 0.2 lists all that it has");
    let to = dotgraft_api::CompleteTo { epoch: 3, seq: 9, time: listed(LATER).time, commit: LATER.into() };
    edit(&mut v, "n2", |r| r.status.as_mut().unwrap().complete_to = Some(to));
    assert_eq!(leaves(&v), [""; 0], "a newer one would say so");
}
