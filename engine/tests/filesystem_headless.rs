//! A volume whose claim is deleted while snapshots of it are kept: its head goes, once nothing needs it, and its commits stay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // its helpers too are tests

mod support;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dotgraft_engine::filesystem::{About, CopyState, Event, MountMode, MountWhat, RequestState, Task, Trouble, WantedCommit, Why};
use dotgraft_engine::ids::{CommitId, RequestUid};
use support::Sim;
use support::user::{pair, status, wanted};
use support::{api::Phase, sim::Asked};

/// Seeds that found something once.
const SAVED: &[u64] = &[387, 401, 14963];

#[test]
fn one_node_keeps_its_promises_when_the_head_goes() {
    let heads = AtomicU64::new(0);
    support::run_seeds("headless", 60, SAVED, |seed, trace| {
        heads.fetch_add(support::user::alone_until(seed, Some(seed * 7 % 100), trace).1, Relaxed);
    });
    assert!(heads.into_inner() > 15, "heads went");
}

#[test]
fn two_nodes_keep_their_promises_when_the_head_goes() {
    let heads = AtomicU64::new(0);
    support::run_seeds("headless together", 40, SAVED, |seed, trace| {
        heads.fetch_add(support::user::together_until(seed, Some(seed * 7 % 120), trace).1.beheaded, Relaxed);
    });
    assert!(heads.into_inner() > 10, "heads went");
}

fn id(sim: &Sim, uid: RequestUid) -> CommitId {
    *sim.ledger.ids.get(&uid).expect("it was made")
}

fn says(sim: &Sim, condition: Trouble) -> Option<String> {
    status(sim, 0).conditions.into_iter().find(|c| c.r#type == condition.into()).map(|c| c.message)
}

fn mount(sim: &mut Sim, what: MountWhat, target: &str) {
    let (req, target) = (sim.req(0, Asked::Mount(what)), target.to_owned());
    sim.handle(0, Event::Mount(req, what, target, MountMode::WRITE));
    sim.run_for(1_000);
}

#[test]
fn the_head_goes_and_the_commits_stay_to_be_mounted_and_removed() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(2, &mut trace);
    sim.behead();
    sim.run_for(5_000);
    assert!(sim.nodes[0].disk.head.is_none() && sim.nodes[0].disk.commits.len() == 2);
    let ready = status(&sim, 0).conditions.into_iter().next().expect("Ready");
    assert!(ready.status && ready.reason == Why::State(CopyState::Headless), "{ready:?}");
    mount(&mut sim, MountWhat::Head, "/pods/head");
    let commit = id(&sim, uids[0]);
    mount(&mut sim, MountWhat::Commit(commit), "/pods/commit");
    assert_eq!(sim.nodes[0].disk.mounts.keys().collect::<Vec<_>>(), ["/pods/commit"], "what can be mounted");
    for lose in [false, true] {
        if lose {
            sim.lose_journal(0);
        } else {
            sim.crash(0, true);
        }
        sim.run_for(20_000);
        assert!(status(&sim, 0).conditions.iter().all(|c| c.r#type == About::Ready && c.status), "{:?}", status(&sim, 0).conditions);
    }
    let (want, uid) = (WantedCommit { id: Some(commit), remove: true, ..wanted(uids[0]) }, uids[0]);
    sim.ledger.removals.insert(uid);
    sim.edit(0, |p| p.commits = vec![want, wanted(uids[1])]);
    sim.run_for(5_000);
    let removed = status(&sim, 0).requests.into_iter().find(|r| r.uid == uid).expect("it is shown");
    assert!(removed.state == Some(RequestState::Removed) && sim.nodes[0].disk.commits.len() == 1, "{removed:?}");
}

#[test]
fn what_nobody_confirms_costs_no_head() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    sim.edit(0, |p| p.headless = true); // a restored backup: the Filesystem is Active
    sim.run_for(120_000);
    assert!(sim.nodes[0].disk.head.is_some() && says(&sim, Trouble::StaleIntent).is_some(), "{:?}", status(&sim, 0).conditions);
    sim.edit(0, |p| p.headless = false);
    sim.run_for(5_000);
    assert!(says(&sim, Trouble::StaleIntent).is_none() && status(&sim, 0).conditions[0].status);
}

#[test]
fn it_waits_for_who_has_the_head_mounted_and_for_a_commit_that_was_asked_for() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    mount(&mut sim, MountWhat::Head, "/pods/0");
    let last = sim.wish();
    sim.behead();
    sim.run_for(60_000);
    mount(&mut sim, MountWhat::Head, "/pods/1");
    assert_eq!(sim.nodes[0].disk.mounts.len(), 1, "nobody new gets what goes");
    assert!(sim.nodes[0].disk.commits.contains_key(&id(&sim, last)), "the last commit is made");
    assert!(sim.nodes[0].disk.head.is_some() && says(&sim, Trouble::StaleHead).is_some(), "{:?}", status(&sim, 0).conditions);
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::Unmount(req, "/pods/0".into()));
    sim.run_for(5_000);
    assert!(sim.nodes[0].disk.head.is_none() && says(&sim, Trouble::StaleHead).is_none());
}

#[test]
fn a_handoff_comes_to_its_end_first() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    let to = sim.nodes[1].place.clone();
    sim.edit(0, |p| p.move_to = Some(to));
    while sim.api.pending.is_none() {
        sim.run_for(5);
    }
    sim.behead();
    sim.edit(0, |p| p.move_to = None);
    sim.run_for(60_000);
    assert_eq!((sim.api.owner, &sim.api.pending), (0, &None), "it is taken back");
    assert!(
        sim.nodes[0].disk.head.is_none() && status(&sim, 0).conditions[0].reason == Why::State(CopyState::Headless),
        "{:?}",
        status(&sim, 0).conditions
    );
}

#[test]
fn nothing_fences_or_thaws_a_head_that_has_gone() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    sim.failing = Some("Freeze"); // half of one is there
    let req = sim.req(0, Asked::Fence);
    sim.handle(0, Event::Fence(req, true));
    sim.run_for(20);
    sim.failing = Some("Thaw");
    sim.run_for(5_000);
    sim.behead();
    sim.run_for(60_000);
    assert!(sim.nodes[0].disk.head.is_none());
    let thaws = |sim: &Sim| sim.trace.iter().filter(|line| line.contains("-> ") && line.ends_with(" Thaw")).count();
    let before = thaws(&sim);
    assert!(before > 0, "the half fence was never undone: nothing is tried here");
    let (fence, thaw) = (sim.req(0, Asked::Fence), sim.req(0, Asked::Plain));
    sim.handle(0, Event::Fence(fence, true));
    sim.handle(0, Event::Thaw(thaw));
    sim.run_for(120_000);
    assert_eq!(thaws(&sim), before, "it is thawed");
    assert!(status(&sim, 0).conditions[0].reason == Why::State(CopyState::Headless) && sim.nodes[0].disk.commits.len() == 1);
}

#[test]
fn a_fence_that_has_begun_ends_first_and_is_refused() {
    for ms in 0..60 {
        let mut trace = Vec::new();
        let (mut sim, _) = pair(1, &mut trace);
        sim.behead();
        while !sim.nodes[0].tasks.values().any(|d| matches!(d.task, Task::CheckHeadless)) {
            sim.run_for(1);
        }
        sim.run_for(ms);
        let req = sim.req(0, Asked::Fence);
        sim.slow = Some("Freeze");
        sim.handle(0, Event::Fence(req, true));
        sim.run_for(60_000);
        assert!(sim.nodes[0].disk.head.is_none(), "{ms}: the head stays");
        assert!(sim.nodes[0].waiting().is_empty(), "{ms}: never answered");
    }
}

#[test]
fn a_mount_that_is_being_made_comes_first() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    sim.behead();
    while !sim.nodes[0].tasks.values().any(|d| matches!(d.task, Task::CheckHeadless)) {
        sim.run_for(1);
    }
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.slow = Some("Mount");
    sim.handle(0, Event::Mount(req, MountWhat::Head, "/pods/0".into(), MountMode::WRITE));
    sim.run_for(30_000);
    assert!(sim.nodes[0].disk.is_mounted(MountWhat::Head) == sim.nodes[0].disk.head.is_some(), "what is mounted has no head");
}

#[test]
fn nothing_is_made_up_in_the_place_of_a_head_that_was_let_go() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    sim.behead();
    sim.run_for(5_000);
    sim.api.phase = Phase::Active; // etcd from before
    sim.edit(0, |p| p.headless = false);
    sim.run_for(60_000);
    assert!(sim.nodes[0].disk.head.is_none(), "a head out of nothing");
    assert!(
        says(&sim, Trouble::HeadMissing).is_some_and(|m| m.contains("make a new volume from one of them")),
        "{:?}",
        says(&sim, Trouble::HeadMissing)
    );
    assert!(!status(&sim, 0).conditions[0].status);
}

#[test]
fn what_was_let_go_for_increments_goes_too() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(2, &mut trace);
    let (uid, commit) = (uids[1], id(&sim, uids[1]));
    sim.ledger.removals.insert(uid);
    for n in 0..2 {
        sim.edit(n, |p| {
            p.commits.retain(|c| c.uid != uid);
            p.commits.push(WantedCommit { id: Some(commit), remove: true, ..wanted(uid) });
        });
        sim.run_for(5_000);
        assert!(sim.nodes[n].disk.commits.contains_key(&commit), "node {n} keeps what increments start from");
    }
    sim.behead();
    sim.run_for(30_000);
    for n in 0..2 {
        assert_eq!(sim.nodes[n].disk.commits.len(), 1, "node {n} keeps it, and no increment will ever start from it");
    }
}
