//! Nobody but the handoff thaws the head that it has frozen: given up after a minute without a byte if the importer is gone, however often it
//! was tried; and never ended beside a fence that is still under way.
#![allow(clippy::unwrap_used, clippy::expect_used)] // its helpers too are tests

mod support;

use dotgraft_engine::filesystem::{Event, Intent, Role};
use support::{Sim, Two};

const MINUTE: i64 = 60_000;

/// Owned by n0, which is asked to hand over to n1 and is cut off from it as soon as its head is frozen.
fn frozen(trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = Sim::new(1, Two::WithReplica, trace);
    sim.faults = false;
    for (n, role) in [(0, Role::Owner), (1, Role::Replica)] {
        sim.want(n, Some(Intent::Present(Box::new(support::user::present(role)))));
    }
    sim.run_for(3_000);
    sim.nodes[0].disk.head.as_mut().unwrap().content += 1;
    let to = sim.nodes[1].place.clone();
    sim.edit(0, |p| p.move_to = Some(to));
    for _ in 0..1_000 {
        if sim.api.pending.is_some() && is_frozen(&sim) {
            sim.partition = true;
            return sim;
        }
        sim.run_for(5);
    }
    unreachable!("without a commit to send first, the head should be frozen at once");
}

/// Runs while things happen in between that concern nobody.
fn busy(sim: &mut Sim, ms: i64) {
    for _ in 0..ms / 20 {
        sim.run_for(20);
        sim.handle(0, Event::Timer);
    }
}

fn is_frozen(sim: &Sim) -> bool {
    sim.nodes[0].disk.head.as_ref().unwrap().fenced
}

#[test]
fn a_head_does_not_stand_frozen_for_ever_for_an_importer_that_is_gone() {
    let mut trace = Vec::new();
    let mut sim = frozen(&mut trace);
    busy(&mut sim, MINUTE / 2);
    assert!(is_frozen(&sim), "a short cut is no reason to give up");
    busy(&mut sim, 3 * MINUTE);
    assert!(!is_frozen(&sim), "still frozen after three minutes");
    assert_eq!((sim.api.owner, sim.api.pending.is_some()), (0, false));
    sim.partition = false;
    sim.run_for(5 * MINUTE);
    assert_eq!(sim.api.owner, 1, "back again, it gets what it was to have");
}

#[test]
fn a_cut_of_less_than_a_minute_ends_no_handoff() {
    let mut trace = Vec::new();
    let mut sim = frozen(&mut trace);
    let attempt = sim.api.attempt;
    busy(&mut sim, MINUTE * 2 / 3);
    sim.partition = false;
    busy(&mut sim, 2 * MINUTE);
    assert_eq!((sim.api.owner, sim.api.attempt), (1, attempt));
}

#[test]
fn a_run_that_fails_beside_the_fence_leaves_no_head_frozen() {
    // The only commit goes at some moment of the first run: then there is nothing to send first, and the run has nothing to send at all.
    for delay in (0..400).step_by(4) {
        let mut trace = Vec::new();
        let mut sim = Sim::new(1, Two::WithReplica, &mut trace);
        sim.faults = false;
        for (n, role) in [(0, Role::Owner), (1, Role::Replica)] {
            sim.want(n, Some(Intent::Present(Box::new(support::user::present(role)))));
        }
        sim.run_for(3_000);
        let uid = sim.wish();
        sim.run_for(3_000);
        sim.no_space = true;
        let to = sim.nodes[1].place.clone();
        sim.edit(0, |p| p.move_to = Some(to));
        sim.run_for(delay);
        sim.ledger.removals.insert(uid);
        sim.edit(0, |p| p.commits[0].remove = true);
        sim.run_for(2_000);
        sim.no_space = false;
        busy(&mut sim, 3 * MINUTE);
        assert!(sim.api.owner == 1 || !is_frozen(&sim), "frozen for good, {delay} ms after the beginning");
    }
}
