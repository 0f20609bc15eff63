//! Deleting a commit that increments start from, step by step (ADR 11): it is gone for whoever deleted it, at once, on the owner and on the
//! copy; what the two have in common stays until they have something newer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // its helpers too are tests

mod support;

use dotgraft_engine::filesystem::{Desired, Event, Intent, MountMode, MountWhat, RequestState, WantedCommit};
use dotgraft_engine::ids::{CommitId, FsId, RequestUid};
use dotgraft_engine::model::Reason;
use support::Sim;
use support::sim::Asked;
use support::user::{is_send, made, on_disk, pair, status, wanted};

/// The object is deleted, and one node told.
fn remove_on(sim: &mut Sim, n: usize, uid: RequestUid) {
    sim.ledger.removals.insert(uid);
    let id = sim.ledger.ids.get(&uid).copied();
    let want = WantedCommit { id, remove: true, ..wanted(uid) };
    sim.edit(n, |p| {
        p.commits.retain(|c| c.uid != uid);
        p.commits.push(want);
    });
    sim.run_for(5_000);
}

/// As the operator has it: the owner first, then the copy; then the object is gone.
fn delete(sim: &mut Sim, uid: RequestUid) {
    for n in 0..2 {
        remove_on(sim, n, uid);
        let shown = status(sim, n).requests.into_iter().find(|r| r.uid == uid).expect("the wish is shown");
        assert_eq!((shown.state, shown.problem), (Some(RequestState::Removed), None), "node {n}");
    }
    for n in 0..2 {
        sim.edit(n, |p| p.commits.retain(|c| c.uid != uid));
    }
    sim.run_for(5_000);
}

fn sends(sim: &Sim) -> Vec<String> {
    sim.trace.iter().filter(|line| line.contains("-> ") && line.contains(" Send {")).cloned().collect()
}

#[test]
fn the_newest_commit_is_gone_for_people_and_the_next_increment_starts_from_it() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(1, &mut trace);
    delete(&mut sim, uids[0]);
    assert!(on_disk(&sim, 0, uids[0]) && on_disk(&sim, 1, uids[0]), "what they have in common goes");
    assert_eq!((status(&sim, 0).commits, status(&sim, 0).head), (0, None), "the owner shows it");
    assert_eq!(status(&sim, 1).head, sim.ledger.ids.get(&uids[0]).copied(), "what the copy has is not told");
    let before = sends(&sim).len();
    made(&mut sim);
    let sends = sends(&sim);
    assert!(sends.len() == before + 1 && sends[before].contains("from: Some("), "all of it was sent anew: {sends:?}");
    assert!(!on_disk(&sim, 0, uids[0]) && !on_disk(&sim, 1, uids[0]), "nobody needs it any more");
}

#[test]
fn an_older_commit_goes_at_once() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(2, &mut trace);
    delete(&mut sim, uids[0]);
    assert!(!on_disk(&sim, 0, uids[0]) && !on_disk(&sim, 1, uids[0]));
    assert!(on_disk(&sim, 0, uids[1]) && on_disk(&sim, 1, uids[1]));
}

#[test]
fn all_that_there_is_may_be_deleted_newest_first() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(3, &mut trace);
    for uid in uids.iter().rev() {
        delete(&mut sim, *uid);
    }
    for n in 0..2 {
        assert_eq!(sim.nodes[n].disk.commits.len(), 1, "one base is enough");
        assert!(on_disk(&sim, n, uids[2]));
    }
    // An empty run has nothing to complain of.
    sim.edit(0, |p| p.jobs[0].spec.trigger = Some("again".into()));
    sim.run_for(10_000);
    let job = status(&sim, 0).jobs.remove(0);
    assert!(job.row.consecutive_failures == 0 && job.row.cursor == sim.ledger.ids.get(&uids[2]).copied(), "{job:?}");
    made(&mut sim);
    assert!((0..2).all(|n| sim.nodes[n].disk.commits.len() == 1 && !on_disk(&sim, n, uids[2])));
}

/// A handoff brings the newest commit, and is called off; then all that there is is deleted.
#[test]
fn what_only_a_move_that_was_called_off_has_brought_is_a_base_too() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(1, &mut trace);
    sim.edit(0, |p| (p.jobs[0].spec.suspend, p.jobs[0].spec.generation) = (true, 2));
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.handle(0, Event::Mount(req, MountWhat::Head, "/pods/a".into(), MountMode::WRITE));
    let second = sim.wish();
    sim.run_for(5_000);
    assert!(on_disk(&sim, 0, second) && !on_disk(&sim, 1, second));
    sim.move_to(Some(1));
    sim.run_for(20_000);
    assert!(on_disk(&sim, 1, second), "the handoff has brought it, and waits for the pod");
    sim.move_to(None);
    sim.run_for(5_000);
    delete(&mut sim, second);
    delete(&mut sim, uids[0]);
    assert!(on_disk(&sim, 0, second) && on_disk(&sim, 1, second), "the two have nothing in common any more");
    let before = sends(&sim).len();
    sim.edit(0, |p| (p.jobs[0].spec.suspend, p.jobs[0].spec.generation) = (false, 3));
    made(&mut sim);
    let sends = sends(&sim);
    assert!(sends[before..].iter().all(|s| s.contains("from: Some(")) && sends.len() > before, "all of it was sent anew: {sends:?}");
}

#[test]
fn what_is_let_go_is_of_no_use_to_anyone_else() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(1, &mut trace);
    delete(&mut sim, uids[0]);
    let id: CommitId = sim.ledger.ids[&uids[0]];
    for n in 0..2 {
        let req = sim.req(n, Asked::Plain);
        sim.handle(n, Event::Mount(req, MountWhat::Commit(id), "/pods/a".into(), MountMode::READ));
        let req = sim.req(n, Asked::Plain);
        sim.handle(n, Event::PinOrigin(req, FsId::from_uuid(support::sim::uuid(2)), id));
    }
    sim.run_for(1_000);
    assert!((0..2).all(|n| sim.nodes[n].disk.mounts.is_empty()), "it was mounted");
    let refused = sim.trace.iter().filter(|line| line.contains("answer") && line.contains("NotFound")).count();
    assert_eq!(refused, 4);
}

#[test]
fn a_mount_keeps_it_as_before() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(1, &mut trace);
    let id = sim.ledger.ids[&uids[0]];
    let req = sim.req(1, Asked::Mount(MountWhat::Commit(id)));
    sim.handle(1, Event::Mount(req, MountWhat::Commit(id), "/pods/a".into(), MountMode::READ));
    sim.run_for(1_000);
    remove_on(&mut sim, 0, uids[0]);
    remove_on(&mut sim, 1, uids[0]);
    let shown = status(&sim, 1).requests.remove(0);
    assert_eq!(shown.problem.map(|p| p.reason), Some(Reason::Pinned));
    assert_eq!(shown.state, Some(RequestState::Removing));
}

#[test]
fn a_send_that_runs_keeps_it_until_it_ends() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    let uid = sim.wish();
    for _ in 0..400 {
        if sim.nodes[0].tasks.values().any(|d| is_send(&d.task)) {
            break;
        }
        sim.run_for(2);
    }
    let id = sim.ledger.ids[&uid];
    sim.ledger.removals.insert(uid);
    let want = WantedCommit { id: Some(id), remove: true, ..wanted(uid) };
    let Some(Intent::Present(mut p)) = sim.nodes[0].wanted.clone() else { panic!("no Replica") };
    p.commits = vec![want];
    sim.nodes[0].wanted = Some(Intent::Present(p.clone()));
    sim.nodes[0].generation += 1;
    let generation = sim.nodes[0].generation;
    sim.handle(0, Event::Desired(Desired { generation, intent: Intent::Present(p) }));
    let shown = status(&sim, 0).requests.remove(0);
    assert!(shown.problem.is_some_and(|p| p.reason == Reason::Pinned && p.message.contains("sending it")));
    sim.run_for(10_000);
    assert_eq!(status(&sim, 0).requests[0].state, Some(RequestState::Removed));
    assert!(on_disk(&sim, 0, uid) && on_disk(&sim, 1, uid), "it has arrived, and is what they have in common");
}

#[test]
fn it_goes_with_the_last_job() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(1, &mut trace);
    delete(&mut sim, uids[0]);
    sim.edit(0, |p| p.jobs.clear());
    sim.run_for(5_000);
    assert!(!on_disk(&sim, 0, uids[0]), "nothing is to be sent any more");
    assert!(on_disk(&sim, 1, uids[0]), "a copy keeps the newest that it has");
}

#[test]
fn it_is_known_after_a_crash_and_what_arrives_meanwhile_is_given_up() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(1, &mut trace);
    delete(&mut sim, uids[0]);
    for n in 0..2 {
        sim.crash(n, true);
    }
    sim.run_for(20_000);
    assert_eq!(status(&sim, 0).commits, 0, "it is shown again");
    // The copy is cut off in the middle of the next one, which is deleted then.
    let second = sim.wish();
    let partial = |sim: &Sim| sim.nodes[1].journal.0.contains_key("partial");
    for _ in 0..200 {
        if partial(&sim) {
            break;
        }
        sim.run_for(5);
    }
    sim.partition = true;
    sim.run_for(200_000);
    assert!(partial(&sim) && !on_disk(&sim, 1, second), "it is not in the middle of it");
    remove_on(&mut sim, 0, second);
    remove_on(&mut sim, 1, second);
    let states: Vec<_> = (0..2).map(|n| status(&sim, n).requests.iter().find(|r| r.uid == second).and_then(|r| r.state)).collect();
    assert_eq!(states, [Some(RequestState::Removed); 2]);
    assert!(!partial(&sim), "it still waits for the rest");
    sim.partition = false;
    let third = made(&mut sim);
    sim.run_for(60_000);
    assert!((0..2).all(|n| sim.nodes[n].disk.commits.len() == 1 && on_disk(&sim, n, third)), "something is left");
    assert!(sim.nodes[1].disk.incoming.is_empty());
}

/// A Branch starts from the owner's commit; the object of that is deleted.
fn pinned(trace: &mut Vec<String>) -> (Sim<'_>, RequestUid) {
    let (mut sim, uids) = pair(2, trace);
    let id = sim.ledger.ids[&uids[0]];
    sim.branch = true;
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::PinOrigin(req, FsId::from_uuid(support::sim::uuid(2)), id));
    remove_on(&mut sim, 0, uids[0]);
    let shown = status(&sim, 0).requests.into_iter().find(|r| r.uid == uids[0]).expect("the wish is shown");
    assert_eq!(shown.problem.map(|p| p.reason), Some(Reason::Pinned));
    (sim, uids[0])
}

#[test]
fn a_pin_goes_without_a_word_of_its_branch_and_never_while_that_needs_it() {
    let mut trace = Vec::new();
    let (mut sim, uid) = pinned(&mut trace);
    sim.run_for(300_000);
    sim.crash(0, false);
    sim.run_for(300_000);
    assert!(on_disk(&sim, 0, uid), "the Branch needs it");
    let asked = |sim: &Sim| sim.trace.iter().filter(|line| line.contains(" AskClones")).count();
    assert!((4..40).contains(&asked(&sim)), "asked {} times in ten minutes", asked(&sim));
    sim.branch = false;
    sim.run_for(40_000);
    assert!(!on_disk(&sim, 0, uid), "nobody needs it, and nobody says so");
    let before = asked(&sim);
    sim.run_for(300_000);
    assert_eq!(asked(&sim), before, "nobody asks for nothing");
}

#[test]
fn what_a_branch_pins_again_is_not_given_up_by_an_answer_from_before() {
    let mut trace = Vec::new();
    let (mut sim, uid) = pinned(&mut trace);
    let id = sim.ledger.ids[&uid];
    sim.branch = false;
    let mut waited = 0;
    while !sim.nodes[0].tasks.values().any(|d| matches!(d.task, dotgraft_engine::filesystem::Task::AskClones(_))) {
        sim.run_for(5);
        waited += 1;
        assert!(waited < 10_000, "never asked");
    }
    let (op, _) = sim.nodes[0].tasks.iter().find(|(_, d)| matches!(d.task, dotgraft_engine::filesystem::Task::AskClones(_))).unwrap();
    let (op, by) = (*op, FsId::from_uuid(support::sim::uuid(2)));
    sim.branch = true;
    let req = sim.req(0, Asked::Plain);
    sim.handle(0, Event::PinOrigin(req, by, id));
    sim.handle(0, Event::Done(op, Box::new(Ok(dotgraft_engine::filesystem::TaskDone::Unneeded(vec![by])))));
    sim.run_for(60_000);
    assert!(on_disk(&sim, 0, uid), "the answer was older than the pin");
}

#[test]
fn what_a_reset_kept_stays_unseen_until_the_next_commit_as_it_says_what_the_head_holds() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(2, &mut trace);
    sim.edit(0, |p| p.jobs.clear());
    sim.want(1, None);
    let target = sim.ledger.ids[&uids[0]];
    let uid = sim.fresh_request();
    sim.ledger.resets.insert(uid);
    let reset_to = Some(dotgraft_engine::model::Origin { fs_id: sim.id, commit: target });
    sim.edit(0, |p| p.commits.push(WantedCommit { reset_to, ..wanted(uid) }));
    sim.run_for(60_000);
    remove_on(&mut sim, 0, uid);
    let shown = status(&sim, 0).requests.into_iter().find(|r| r.uid == uid).expect("the wish is shown");
    assert_eq!((shown.state, shown.problem), (Some(RequestState::Removed), None), "gone for people");
    sim.run_for(7_200_000);
    assert!(on_disk(&sim, 0, uid), "and known to the next replica");
    sim.wish();
    sim.run_for(60_000);
    assert!(!on_disk(&sim, 0, uid), "the new one says it");
}
