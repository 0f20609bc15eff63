//! Kept commits get to where they are missing (ADR 13): to who is to have all, with the next run, whatever it had been sent first;
//! and what a copy holds is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // its helpers too are tests

mod support;

use dotgraft_engine::filesystem::{Intent, Role};
use dotgraft_engine::ids::{CommitId, Epoch, RequestUid};
use dotgraft_engine::run::{Initial, Intermediate};
use support::Sim;
use support::sim::Two;
use support::user::{on_disk, present, status};

/// An owner with three kept commits, and a copy that was sent the newest only.
fn newest_only(trace: &mut Vec<String>) -> (Sim<'_>, Vec<RequestUid>) {
    let mut sim = Sim::new(1, Two::WithReplica, trace);
    sim.faults = false;
    sim.want(0, Some(Intent::Present(Box::new(present(Role::Owner)))));
    sim.want(1, Some(Intent::Present(Box::new(present(Role::Replica)))));
    sim.run_for(2_000);
    let uids: Vec<RequestUid> = (0..3)
        .map(|_| {
            let uid = sim.wish();
            sim.run_for(5_000);
            uid
        })
        .collect();
    let mut job = sim.job();
    (job.spec.params.initial, job.spec.params.intermediate) = (Initial::MostRecent, Intermediate::All);
    sim.edit(0, |p| p.jobs = vec![job]);
    sim.run_for(10_000);
    assert_eq!(uids.iter().map(|u| on_disk(&sim, 1, *u)).collect::<Vec<_>>(), [false, false, true], "the newest, and nothing else");
    (sim, uids)
}

fn id(sim: &Sim, uid: RequestUid) -> CommitId {
    sim.ledger.ids[&uid]
}

#[test]
fn a_copy_says_which_kept_commits_it_holds_and_up_to_where_it_has_the_history() {
    let mut trace = Vec::new();
    let (sim, uids) = newest_only(&mut trace);
    let (owner, copy) = (status(&sim, 0).holding, status(&sim, 1).holding);
    assert_eq!(owner.kept, uids.iter().rev().map(|u| id(&sim, *u)).collect::<Vec<_>>(), "newest first");
    assert_eq!(copy.kept, [id(&sim, uids[2])]);
    assert!(owner.complete && copy.complete);
    assert_eq!(owner.complete_to, copy.complete_to, "the older ones don't count for that");
    assert_eq!(copy.complete_to.map(|o| (o.epoch, o.seq)), Some((Epoch(1), 3)), "numbered by the owner");
}

#[test]
fn who_is_to_have_all_gets_what_it_was_never_sent() {
    let mut trace = Vec::new();
    let (mut sim, uids) = newest_only(&mut trace);
    sim.edit(0, |p| {
        let spec = &mut p.jobs[0].spec;
        spec.params.initial = Initial::All;
        (spec.generation, spec.trigger) = (spec.generation + 1, Some("all".into()));
    });
    sim.run_for(10_000);
    assert!(uids.iter().all(|u| on_disk(&sim, 1, *u)), "{:?}", status(&sim, 1).holding);
    assert_eq!(status(&sim, 0).holding, status(&sim, 1).holding);
    let row = status(&sim, 0).jobs.remove(0).row;
    assert_eq!((row.cursor, row.consecutive_failures), (Some(id(&sim, uids[2])), 0), "the cursor stays at the newest");
}

#[test]
fn commits_are_numbered_by_their_owner() {
    let mut trace = Vec::new();
    let (sim, uids) = newest_only(&mut trace);
    let orders: Vec<_> = uids.iter().map(|u| sim.nodes[0].disk.commits[&id(&sim, *u)].0.order()).collect();
    assert_eq!(orders.iter().map(|o| (o.epoch, o.seq)).collect::<Vec<_>>(), [(Epoch(1), 1), (Epoch(1), 2), (Epoch(1), 3)]);
    assert_eq!(sim.nodes[1].disk.commits[&id(&sim, uids[2])].0.order(), orders[2], "as it was sent");
}
