//! A copy that is kept close behind while its owner's node is about to be left: how often, what stays, and what a move then sends.
//! (`filesystem_moving.rs` wants it on and off while everything fails.)
#![allow(clippy::unwrap_used, clippy::expect_used)] // its helpers too are tests

mod support;

use std::collections::BTreeSet;

use dotgraft_engine::filesystem::{Event, FilesystemStatus, Intent, MountMode, MountWhat, MovePhase, Role, Trouble};
use dotgraft_engine::ids::CommitId;
use dotgraft_engine::model::Commit;
use support::sim::Asked;
use support::{Sim, Two};

const MINUTE: i64 = 60_000;

/// Owned by n0, with an empty copy on n1, a pod on the head, and no faults.
fn with_copy(trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = Sim::new(1, Two::WithReplica, trace);
    sim.faults = false;
    for (n, role) in [(0, Role::Owner), (1, Role::Replica)] {
        sim.want(n, Some(Intent::Present(Box::new(support::user::present(role)))));
    }
    sim.run_for(2_000);
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.handle(0, Event::Mount(req, MountWhat::Head, "/pods/a".into(), MountMode::WRITE));
    sim.run_for(1_000);
    assert!(sim.nodes[0].disk.is_mounted(MountWhat::Head));
    sim
}

fn write(sim: &mut Sim) {
    sim.nodes[0].disk.head.as_mut().unwrap().content += 1;
}

fn leave(sim: &mut Sim, leave: bool) {
    let to = leave.then(|| sim.nodes[1].place.clone());
    sim.edit(0, |p| p.precopy_to = to);
}

fn commits(sim: &Sim, n: usize) -> Vec<(Commit, u64)> {
    let mut all: Vec<_> = sim.nodes[n].disk.commits.values().cloned().collect();
    all.sort_by_key(|(c, _)| c.time);
    all
}

fn status(sim: &Sim, n: usize) -> FilesystemStatus {
    sim.nodes[n].fs.as_ref().expect("an actor").status()
}

/// Runs, and returns each transfer that there was: base and target.
fn transfers(sim: &mut Sim, ms: i64) -> BTreeSet<(Option<CommitId>, CommitId)> {
    let mut seen = BTreeSet::new();
    let before: BTreeSet<u64> = sim.sessions.keys().copied().collect();
    for _ in 0..ms / 5 {
        sim.run_for(5);
        seen.extend(sim.sessions.iter().filter(|(id, _)| !before.contains(id)).map(|(_, s)| (s.base, s.target.id)));
    }
    seen
}

#[test]
fn the_copy_has_what_was_written_up_to_a_minute_ago_and_people_see_nothing_of_it() {
    let mut trace = Vec::new();
    let mut sim = with_copy(&mut trace);
    write(&mut sim);
    leave(&mut sim, true);
    sim.run_for(3_000);
    assert_eq!(commits(&sim, 1).last().map(|(_, content)| *content), Some(1), "at once");
    let mut made = BTreeSet::new();
    for _ in 0..10 {
        write(&mut sim);
        sim.run_for(MINUTE);
        made.extend(commits(&sim, 0).iter().map(|(c, _)| c.id));
        for n in [0, 1] {
            assert!(commits(&sim, n).len() <= 2, "a pile of commits on n{n}");
        }
    }
    let head = sim.nodes[0].disk.head.as_ref().unwrap().content;
    assert!(commits(&sim, 1).last().is_some_and(|(_, content)| head - content <= 1));
    assert!((9..=11).contains(&made.len()), "{} in ten minutes", made.len());
    for n in [0, 1] {
        let s = status(&sim, n);
        assert!((s.head, s.commits, s.recent_commits.len(), s.jobs.len(), s.requests.len()) == (None, 0, 0, 0, 0));
    }
}

#[test]
fn it_gets_rarer_while_nothing_is_written_and_ends_when_it_is_not_wanted() {
    let mut trace = Vec::new();
    let mut sim = with_copy(&mut trace);
    leave(&mut sim, true);
    let mut made = BTreeSet::new();
    for _ in 0..60 {
        sim.run_for(MINUTE);
        made.extend(commits(&sim, 0).iter().map(|(c, _)| c.id));
    }
    assert!((5..=8).contains(&made.len()), "{} in an hour", made.len());
    leave(&mut sim, false);
    write(&mut sim);
    sim.run_for(50 * MINUTE);
    assert!(!commits(&sim, 0).is_empty(), "a move back would start from it");
    sim.run_for(20 * MINUTE);
    assert!(commits(&sim, 0).is_empty(), "the owner's last goes after an hour in which nobody waited for it");
    assert_eq!(commits(&sim, 1).len(), 1, "the copy's stays: it is what that is complete to");
    let job = sim.job_to(sim.nodes[1].place.clone());
    sim.edit(0, |p| p.jobs = vec![job]);
    sim.wish();
    sim.run_for(MINUTE);
    let left = commits(&sim, 1);
    assert!(left.len() == 1 && !left[0].0.transient, "until there is a newer one: {left:?}");
}

/// Clocks an hour apart, either way: nothing that is waited for goes by one.
#[test]
fn no_clock_ends_what_a_move_waits_for() {
    for ahead in [-61 * MINUTE, 61 * MINUTE] {
        for n in 0..2 {
            let mut trace = Vec::new();
            let mut sim = with_copy(&mut trace);
            sim.set_clock(n, ahead);
            write(&mut sim);
            leave(&mut sim, true);
            sim.run_for(3_000);
            let before = commits(&sim, 1).last().expect("it came, and stays").0.id;
            sim.partition = true;
            sim.run_for(3 * 60 * MINUTE);
            assert!(commits(&sim, 1).iter().any(|(c, _)| c.id == before), "the copy lost what it was complete to");
            assert!(commits(&sim, 0).iter().any(|(c, _)| c.id == before), "the owner lost what the next would start from");
            sim.partition = false;
            let req = sim.req(0, Asked::Plain);
            sim.handle(0, Event::Unmount(req, "/pods/a".into()));
            let to = sim.nodes[1].place.clone();
            sim.edit(0, |p| p.move_to = Some(to));
            sim.run_for(10 * MINUTE);
            assert_eq!(sim.api.owner, 1, "it has moved, with n{n}'s clock at {ahead}");
        }
    }
}

#[test]
fn a_move_sends_only_what_came_after() {
    let mut trace = Vec::new();
    let mut sim = with_copy(&mut trace);
    write(&mut sim);
    leave(&mut sim, true);
    sim.run_for(3_000);
    let before = commits(&sim, 1).last().unwrap().0.id;
    write(&mut sim);
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::Unmount(req, "/pods/a".into()));
    let to = sim.nodes[1].place.clone();
    sim.edit(0, |p| p.move_to = Some(to));
    let sent = transfers(&mut sim, 5_000);
    assert_eq!(sim.api.owner, 1, "it has moved");
    assert_eq!(sent.len(), 1, "only the final commit: {sent:?}");
    assert!(sent.iter().all(|(base, _)| *base == Some(before)), "on top of what was there: {sent:?}");
}

#[test]
fn what_a_move_cuts_short_comes_over_before_the_fence() {
    let mut trace = Vec::new();
    let mut sim = with_copy(&mut trace);
    write(&mut sim);
    sim.partition = true;
    leave(&mut sim, true);
    sim.run_for(3_000);
    let begun = commits(&sim, 0).last().unwrap().0.id;
    let to = sim.nodes[1].place.clone();
    sim.edit(0, |p| p.move_to = Some(to));
    sim.run_for(2_000);
    sim.partition = false;
    let sent = transfers(&mut sim, 60_000);
    assert!(sent.contains(&(None, begun)), "{sent:?}");
    assert_eq!(sim.api.owner, 0, "the pod is still there");
    assert_eq!(commits(&sim, 1).last().map(|(c, _)| c.id), Some(begun));
}

#[test]
fn one_that_can_not_be_made_is_told_of_and_tried_again() {
    let mut trace = Vec::new();
    let mut sim = with_copy(&mut trace);
    sim.failing = Some("Commit");
    leave(&mut sim, true);
    sim.run_for(5_000);
    assert!(status(&sim, 0).conditions.iter().any(|c| c.r#type == Trouble::PrecopyBlocked.into() && c.status));
    sim.failing = None;
    sim.run_for(MINUTE);
    assert!(!commits(&sim, 1).is_empty());
    assert!(status(&sim, 0).conditions.iter().all(|c| c.r#type != Trouble::PrecopyBlocked.into()));
}

#[test]
fn commits_of_people_are_sent_in_their_place_and_stay() {
    let mut trace = Vec::new();
    let mut sim = with_copy(&mut trace);
    leave(&mut sim, true);
    sim.run_for(3_000);
    write(&mut sim);
    let uid = sim.wish();
    sim.run_for(3 * MINUTE);
    let theirs = sim.ledger.ids[&uid];
    let on_copy = commits(&sim, 1);
    assert!(on_copy.iter().any(|(c, _)| c.id == theirs), "sent along");
    assert_eq!(status(&sim, 1).head, Some(theirs));
    leave(&mut sim, false);
    sim.run_for(90 * MINUTE);
    assert_eq!(commits(&sim, 0).iter().map(|(c, _)| c.id).collect::<Vec<_>>(), [theirs]);
    let left = commits(&sim, 1);
    assert_eq!(left.iter().filter(|(c, _)| !c.transient).map(|(c, _)| c.id).collect::<Vec<_>>(), [theirs]);
    assert!(left.len() <= 2, "and the newest that came, while there is nothing newer: {left:?}");
}

#[test]
fn a_move_says_what_it_has_sent_before_and_after_the_fence() {
    let mut trace = Vec::new();
    let mut sim = with_copy(&mut trace);
    write(&mut sim);
    let uid = sim.wish();
    sim.run_for(2_000);
    let theirs = sim.ledger.ids[&uid];
    let to = sim.nodes[1].place.clone();
    sim.edit(0, |p| p.move_to = Some(to));
    sim.run_for(5_000);
    write(&mut sim);
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::Unmount(req, "/pods/a".into()));
    let sent = transfers(&mut sim, 10_000);
    assert_eq!(sim.api.owner, 1, "it has moved");
    let (base, last) = *sent.first().expect("the final commit");
    assert_eq!((sent.len(), base), (1, Some(theirs)));
    let told = status(&sim, 0).migration.expect("a report");
    let bytes = support::wire::size_of(None, theirs) + support::wire::size_of(base, last);
    assert_eq!((told.phase, told.bytes), (MovePhase::Done, bytes));
}
