//! What the simulation found, told step by step: fences and thaws that are cut, removals and commits that fail beside
//! others, deletions that are undone or wait (failures.md rows 1-3, 5, 20).
#![allow(clippy::unwrap_used, clippy::expect_used)] // its helpers too are tests

mod support;

use dotgraft_engine::filesystem::{Event, Intent, MountMode, MountWhat, RequestState, Role, RoleStatus, Trouble, WantedCommit};
use dotgraft_engine::ids::{CommitId, FsId, RequestUid};
use dotgraft_engine::model::{Claim, Origin, Reason};
use support::sim::Asked;
use support::{Sim, Two};

/// An owner with one commit and the head mounted, without faults.
fn owner(trace: &mut Vec<String>) -> (Sim<'_>, CommitId) {
    let mut sim = Sim::new(1, Two::Alone, trace);
    sim.faults = false;
    sim.want(0, Some(Intent::Present(Box::new(support::user::present(Role::Owner)))));
    sim.run_for(2_000);
    let uid = sim.wish();
    sim.run_for(1_000);
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.handle(0, Event::Mount(req, MountWhat::Head, "/pods/a".into(), MountMode::WRITE));
    sim.run_for(1_000);
    let id = sim.ledger.ids[&uid];
    assert!(sim.nodes[0].disk.commits.contains_key(&id) && sim.nodes[0].disk.is_mounted(MountWhat::Head));
    (sim, id)
}

fn status(sim: &Sim) -> dotgraft_engine::filesystem::FilesystemStatus {
    sim.nodes[0].fs.as_ref().expect("an actor").status()
}

fn fence(sim: &mut Sim) {
    let req = sim.req(0, Asked::Fence);
    sim.handle(0, Event::Fence(req, true));
}

fn has_condition(sim: &Sim, kind: Trouble) -> bool {
    status(sim).conditions.iter().any(|c| c.r#type == kind.into() && c.status)
}

#[test]
fn a_commit_that_fails_holds_up_no_fence() {
    let mut trace = Vec::new();
    let (mut sim, _) = owner(&mut trace);
    sim.failing = Some("Commit");
    sim.wish();
    sim.run_for(20_000);
    assert!(has_condition(&sim, Trouble::CommitBlocked));
    fence(&mut sim);
    sim.run_for(60_000);
    assert_eq!(sim.ledger.fences, 1);
    assert!(status(&sim).frozen.is_some());
}

#[test]
fn two_who_ask_for_a_fence_get_the_same_one() {
    let mut trace = Vec::new();
    let (mut sim, _) = owner(&mut trace);
    fence(&mut sim);
    fence(&mut sim);
    sim.run_for(2_000);
    assert!(sim.nodes[0].waiting().is_empty(), "both are answered");
    assert_eq!(sim.ledger.fences, 2);
    assert_eq!(sim.nodes[0].disk.commits.len(), 2, "one final commit");
}

#[test]
fn a_crash_in_the_middle_of_a_fence_leaves_the_volume_served() {
    let mut trace = Vec::new();
    let (mut sim, id) = owner(&mut trace);
    // The head was written since its last commit: taking that for the final one would lose writes.
    sim.nodes[0].disk.head.as_mut().unwrap().content = 9;
    sim.crash(0, false);
    sim.nodes[0].disk.head.as_mut().unwrap().fenced = true;
    sim.run_for(10_000);
    assert_eq!(status(&sim).frozen, None, "not fenced at {id}");
    assert!(!sim.nodes[0].disk.head.as_ref().unwrap().fenced);
    assert!(status(&sim).conditions[0].status, "open again");
}

#[test]
fn a_thaw_that_failed_is_no_fence_any_more() {
    let mut trace = Vec::new();
    let (mut sim, _) = owner(&mut trace);
    fence(&mut sim);
    sim.run_for(1_000);
    sim.failing = Some("Thaw");
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::Thaw(req));
    sim.run_for(2_000);
    assert_eq!(status(&sim).frozen, None, "what its commit holds is not proven");
    sim.failing = None;
    sim.run_for(60_000);
    assert!(status(&sim).conditions[0].status, "the thaw is gone through with");
}

#[test]
fn a_removal_that_waits_for_a_mount_holds_up_no_commit() {
    let mut trace = Vec::new();
    let (mut sim, id) = owner(&mut trace);
    // Mounted behind the agent's back: only the task sees it.
    sim.nodes[0].disk.mounts.insert("/foreign".into(), MountWhat::Commit(id));
    sim.ledger.removals.extend(sim.ledger.ids.keys().copied().collect::<Vec<_>>());
    sim.edit(0, |p| p.commits[0].remove = true);
    sim.run_for(5_000);
    let next = sim.wish();
    sim.run_for(5_000);
    let made = status(&sim).requests.iter().any(|r| r.uid == next && r.state == Some(RequestState::Done));
    assert!(made && sim.nodes[0].disk.commits.contains_key(&id));
    sim.nodes[0].disk.mounts.remove("/foreign");
    sim.run_for(60_000);
    assert!(!sim.nodes[0].disk.commits.contains_key(&id));
}

#[test]
fn a_volume_that_was_full_is_soon_known_to_have_room_again() {
    let mut trace = Vec::new();
    let (mut sim, _) = owner(&mut trace);
    sim.usage = (95, 100);
    sim.run_for(61_000);
    assert_eq!(status(&sim).bytes, 95, "it is read once a minute");
    sim.usage = (10, 100);
    sim.run_for(3_000);
    assert_eq!(status(&sim).bytes, 10, "a full one is looked at every two seconds");
    sim.usage = (11, 100);
    sim.run_for(10_000);
    assert_eq!(status(&sim).bytes, 10, "others are not");
}

#[test]
fn a_deletion_waits_for_a_mount_and_goes_on_at_once() {
    let mut trace = Vec::new();
    let (mut sim, _) = owner(&mut trace);
    sim.delete();
    sim.run_for(120_000);
    assert!(has_condition(&sim, Trouble::Mounted), "{:?}", status(&sim).conditions);
    assert_eq!(status(&sim).role, RoleStatus::Deleting);
    assert!(sim.nodes[0].disk.head.is_some());
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::Unmount(req, "/pods/a".into()));
    sim.run_for(500);
    assert!(sim.nodes[0].disk.is_empty(), "half a second after the unmount, not at the end of a sleep");
    sim.watch_end();
}

#[test]
fn what_a_power_cut_brings_back_is_deleted_again() {
    let mut trace = Vec::new();
    let (mut sim, _) = owner(&mut trace);
    sim.nodes[0].disk.mounts.clear();
    let before = sim.nodes[0].disk.clone();
    sim.delete();
    sim.run_for(5_000);
    assert!(sim.nodes[0].disk.is_empty());
    sim.crash(0, true);
    sim.nodes[0].disk = before;
    sim.run_for(10_000);
    assert!(sim.nodes[0].disk.is_empty(), "deleted again");
    sim.watch_end();
}

#[test]
fn an_intent_that_only_the_disk_remembers_goes_through() {
    let mut trace = Vec::new();
    let (mut sim, _) = owner(&mut trace);
    sim.delete();
    sim.run_for(5_000); // waits for the mount; fs.json says `Deleting`
    sim.lose_journal(0);
    sim.run_for(10_000);
    assert!(sim.nodes[0].disk.is_empty());
    sim.watch_end();
}

#[test]
fn a_lost_journal_gives_the_same_commits() {
    let mut trace = Vec::new();
    let (mut sim, id) = owner(&mut trace);
    let before = sim.nodes[0].journal.load().commits;
    sim.lose_journal(0);
    sim.run_for(10_000);
    assert_eq!(sim.nodes[0].journal.load().commits, before);
    assert_eq!(status(&sim).head, Some(id));
    assert!(status(&sim).conditions[0].status);
}

#[test]
fn a_vanished_object_makes_an_orphan_and_deletes_nothing() {
    let mut trace = Vec::new();
    let (mut sim, id) = owner(&mut trace);
    sim.want(0, None);
    sim.run_for(600_000);
    assert!(!status(&sim).managed);
    assert!(sim.nodes[0].disk.head.is_some() && sim.nodes[0].disk.commits.contains_key(&id));
    assert!(status(&sim).base.is_some(), "enough to adopt it");
}

#[test]
fn a_copy_that_is_wanted_again_before_its_tombstone_went_is_made_anew() {
    let mut trace = Vec::new();
    let mut sim = Sim::new(1, Two::WithReplica, &mut trace);
    sim.faults = false;
    let replica = || Some(Intent::Present(Box::new(support::user::present(Role::Replica))));
    sim.want(1, replica());
    sim.run_for(1_000);
    sim.nodes[1].may_delete = true;
    sim.want(1, Some(Intent::Absent { epoch: sim.api.epoch }));
    sim.run_for(1_000);
    assert!(sim.nodes[1].disk.is_empty());
    sim.want(1, replica());
    sim.run_for(1_000);
    assert!(sim.nodes[1].disk.meta.is_some());
}

fn started_at() -> Origin {
    let uuid = support::sim::uuid;
    Origin { fs_id: FsId::from_uuid(uuid(3)), commit: CommitId::from_uuid(uuid(4)) }
}

/// An owner that started from a commit, as `kind` of claim.
fn started_from_a_commit<'a>(kind: &str, trace: &'a mut Vec<String>) -> Sim<'a> {
    let mut sim = Sim::new(1, Two::Alone, trace);
    sim.faults = false;
    let mut p = support::user::present(Role::Owner);
    p.origin = Some(started_at());
    p.claim = Some(Claim { kind: kind.into(), namespace: "team".into(), name: "x".into(), csi_name: None });
    sim.want(0, Some(Intent::Present(Box::new(p))));
    sim.run_for(10_000);
    assert!(sim.nodes[0].disk.head.is_some());
    sim
}

#[test]
fn a_clone_lets_its_origin_go_and_a_branch_keeps_it() {
    let mut trace = Vec::new();
    assert!(!started_from_a_commit("Dot", &mut trace).origin_pinned, "it has a life of its own");
    assert!(started_from_a_commit("Branch", &mut trace).origin_pinned, "it may be merged back");
}

#[test]
fn a_clone_that_crashed_before_it_let_go_does_so_after() {
    let mut trace = Vec::new();
    let mut sim = started_from_a_commit("Dot", &mut trace);
    sim.origin_pinned = true;
    sim.crash(0, false);
    sim.run_for(10_000);
    assert!(!sim.origin_pinned);
    sim.delete();
    sim.run_for(60_000);
    assert!(sim.nodes[0].disk.head.is_none(), "and goes like any other");
}

/// What it says when the owner of that commit asks.
fn says_it_starts_from(sim: &mut Sim, n: u64) -> bool {
    let commit = CommitId::from_uuid(support::sim::uuid(n));
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::StartsFrom(req, Origin { fs_id: FsId::from_uuid(support::sim::uuid(3)), commit }));
    sim.trace.iter().rev().find(|line| line.contains("StartsFrom(Ok")).expect("an answer").contains("true")
}

#[test]
fn a_branch_says_that_it_starts_from_its_origin_and_a_clone_only_until_it_has_its_head() {
    let mut trace = Vec::new();
    let mut sim = started_from_a_commit("Branch", &mut trace);
    assert!(says_it_starts_from(&mut sim, 4) && !says_it_starts_from(&mut sim, 5), "of its own origin only");
    sim.delete();
    sim.run_for(60_000);
    assert!(!says_it_starts_from(&mut sim, 4), "it is no more");
    let mut trace = Vec::new();
    let mut sim = started_from_a_commit("Dot", &mut trace);
    assert!(!says_it_starts_from(&mut sim, 4), "it has a life of its own");
    let reset = WantedCommit { reset_to: Some(started_at()), ..support::user::wanted(RequestUid::from_uuid(support::sim::uuid(60))) };
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.handle(0, Event::Mount(req, MountWhat::Head, "/pods/a".into(), MountMode::WRITE));
    sim.run_for(1_000);
    sim.edit(0, |p| p.commits.push(reset));
    sim.run_for(1_000);
    assert!(sim.origin_pinned && says_it_starts_from(&mut sim, 4), "a reset to it waits for a pod");
}

#[test]
fn a_branch_pins_its_origin_again_once_the_journal_was_lost() {
    let mut trace = Vec::new();
    let mut sim = started_from_a_commit("Branch", &mut trace);
    sim.origin_pinned = false;
    sim.crash(0, true);
    sim.nodes[0].journal.0.clear();
    sim.run_for(10_000);
    assert!(sim.origin_pinned, "pins are rows of the same journal");
}

#[test]
fn a_reset_that_is_taken_back_while_it_waits_pins_nothing_and_does_nothing() {
    let mut trace = Vec::new();
    let (mut sim, target) = owner(&mut trace);
    sim.wish_reset();
    sim.run_for(5_000);
    let waits = status(&sim).requests.iter().filter(|r| r.problem.as_ref().is_some_and(|p| p.reason == Reason::Mounted)).count();
    assert_eq!(waits, 1, "it waits for who has the head mounted");
    sim.edit(0, |p| p.commits.retain(|c| c.reset_to.is_none()));
    let uid = *sim.ledger.ids.iter().find(|(_, id)| **id == target).expect("its object").0;
    sim.ledger.removals.insert(uid);
    sim.edit(0, |p| p.commits.iter_mut().for_each(|c| c.remove = true));
    sim.run_for(5_000);
    assert!(!sim.nodes[0].disk.commits.contains_key(&target), "the target is still pinned");
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::Unmount(req, "/pods/a".into()));
    sim.run_for(60_000);
    assert_eq!(sim.ledger.heads_replaced, 0);
}

/// Asks for a mount of the head; whether it is there afterwards.
fn mounts(sim: &mut Sim, target: &str) -> bool {
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.handle(0, Event::Mount(req, MountWhat::Head, target.into(), MountMode::WRITE));
    sim.run_for(1_000);
    sim.nodes[0].disk.mounts.contains_key(target)
}

fn unmount(sim: &mut Sim, target: &str) {
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::Unmount(req, target.into()));
}

/// An owner whose reset to its commit waits for who has the head mounted.
fn held(trace: &mut Vec<String>, hold: bool) -> (Sim<'_>, CommitId) {
    let (mut sim, target) = owner(trace);
    sim.wish_reset();
    sim.edit(0, |p| p.commits.iter_mut().filter(|c| c.reset_to.is_some()).for_each(|c| c.hold = hold));
    sim.run_for(5_000);
    (sim, target)
}

fn is_holding(sim: &Sim) -> bool {
    status(sim).requests.iter().any(|r| r.holding)
}

#[test]
fn a_reset_that_holds_is_done_before_anyone_mounts_the_head_again() {
    let mut trace = Vec::new();
    let (mut sim, target) = held(&mut trace, true);
    assert!(is_holding(&sim));
    assert!(!mounts(&mut sim, "/pods/b"), "a new pod has the old head");
    let req = sim.req(0, Asked::Mount(MountWhat::Commit(target)));
    sim.handle(0, Event::Mount(req, MountWhat::Commit(target), "/pods/ro".into(), MountMode::READ));
    assert!(mounts(&mut sim, "/pods/a"), "what is mounted already may be asked for again");
    assert!(sim.nodes[0].disk.mounts.contains_key("/pods/ro"), "a commit is nobody's hindrance");
    unmount(&mut sim, "/pods/ro"); // the simulated disk doesn't tell it from the head
    unmount(&mut sim, "/pods/a");
    sim.run_for(2_000);
    assert_eq!(sim.ledger.heads_replaced, 1);
    assert!(!is_holding(&sim) && mounts(&mut sim, "/pods/b"), "pods go on with the new one");
}

/// Its time is that of what it holds, not of when somebody asked for it.
#[test]
fn what_a_reset_keeps_is_as_old_as_the_last_write_that_it_can_have() {
    let mut trace = Vec::new();
    let (mut sim, _) = held(&mut trace, false);
    let asked = status(&sim).requests.iter().filter_map(|r| r.time).max().expect("it is recorded");
    sim.run_for(60_000);
    unmount(&mut sim, "/pods/a");
    sim.run_for(60_000);
    assert_eq!(sim.ledger.heads_replaced, 1);
    let kept = status(&sim);
    let (commit, request) = (kept.recent_commits[0].time, kept.requests.iter().filter_map(|r| r.time).max().expect("it is done"));
    assert!(commit.0 - asked.0 >= 60_000 && request == commit, "asked for at {asked:?}, kept as of {commit:?}, told as {request:?}");
}

#[test]
fn a_reset_without_hold_keeps_nobody_from_mounting() {
    let mut trace = Vec::new();
    let (mut sim, _) = held(&mut trace, false);
    assert!(!is_holding(&sim) && mounts(&mut sim, "/pods/b"));
}

#[test]
fn a_hold_ends_after_five_minutes_also_without_operator_and_does_not_come_back() {
    let mut trace = Vec::new();
    let (mut sim, _) = held(&mut trace, true);
    sim.run_for(290_000);
    assert!(is_holding(&sim) && !mounts(&mut sim, "/pods/b"));
    sim.run_for(10_000);
    assert!(!is_holding(&sim) && mounts(&mut sim, "/pods/b"), "pods are kept from starting for ever");
    sim.edit(0, |p| p.capacity = 101);
    sim.run_for(1_000);
    assert!(!is_holding(&sim));
}

#[test]
fn a_reset_that_can_not_be_done_or_was_taken_back_holds_nobody_up() {
    let mut trace = Vec::new();
    let (mut sim, _) = held(&mut trace, true);
    let nowhere = CommitId::from_uuid(support::sim::uuid(77));
    let id = sim.id;
    sim.edit(0, |p| {
        let to = Some(Origin { fs_id: id, commit: nowhere });
        p.commits.iter_mut().filter(|c| c.hold).for_each(|c| c.reset_to = to);
    });
    sim.run_for(1_000);
    assert!(!is_holding(&sim) && mounts(&mut sim, "/pods/b"), "it waits for a commit that is not here");
    let (mut sim, _) = held(&mut trace, true);
    sim.edit(0, |p| p.commits.retain(|c| !c.hold));
    sim.run_for(1_000);
    assert!(mounts(&mut sim, "/pods/b"), "it is not wanted any more");
}
