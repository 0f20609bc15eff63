//! Authority moves between two nodes, or three, by seeds: either crashes or reboots, the wire is cut, swaps and acks are lost, pods and foreign
//! mounts hold the head, the goal changes on the way (migration.md §4, §5: scenarios 1, 2, 6-16, 18, 22); and it is taken from owners that
//! are lost or not (19 of failures.md, as far as the simple form goes). `DOTGRAFT_SIM_SEEDS` runs more.

#![allow(clippy::expect_used)] // its helper too is a test

mod support;

use dotgraft_engine::filesystem::{About, CopyState, Role, Trouble, Why};
use dotgraft_engine::ids::Epoch;
use support::{Sim, Two, user};

/// Seeds that found something once, in the engine or in what is asserted here.
const SAVED: &[u64] = &[49, 74, 1653, 2221];
const SAVED_THREE: &[u64] = &[2028];
const SAVED_TAKEN: &[u64] = &[131, 177, 580, 696, 883];

#[test]
fn one_writes_and_nothing_acknowledged_is_lost() {
    support::run_seeds("moving", 60, SAVED, |seed, trace| {
        support::moves::moving(seed, Two::WithReplica, false, trace);
    });
}

#[test]
fn what_authority_was_taken_from_is_fenced_and_kept_until_it_is_dropped() {
    support::run_seeds("taken", 60, SAVED_TAKEN, |seed, trace| {
        support::moves::moving(seed, Two::WithReplica, true, trace);
    });
}

#[test]
fn a_move_a_replica_and_a_promotion_meet_on_three_nodes() {
    support::run_seeds("three", 40, SAVED_THREE, |seed, trace| {
        support::moves::moving(seed, Two::Three, seed % 2 == 1, trace);
    });
}

#[test]
fn the_simulation_really_moves_aborts_takes_and_resets() {
    let all: Vec<_> = (0..40).map(|seed| support::moves::moving(seed, Two::WithReplica, seed % 2 == 1, &mut Vec::new())).collect();
    let sum = |of: fn(&support::moves::Did) -> u64| all.iter().map(of).sum::<u64>();
    let (moves, aborts, writes) = (sum(|d| d.moves), sum(|d| d.aborts), sum(|d| d.writes));
    let (steals, resets) = (sum(|d| d.steals), sum(|d| d.resets));
    assert!(sum(|d| d.precopies) > 12, "too few copies are kept close behind: {}", sum(|d| d.precopies));
    assert!(
        moves > 20 && aborts > 2 && writes > 20 && steals > 2 && resets > 10,
        "too tame: {moves} moves, {aborts} aborts, {writes} writes, {steals} taken, {resets} resets"
    );
}

/// What a node says of having lost authority.
fn said(sim: &Sim, n: usize) -> Option<String> {
    let all = user::status(sim, n).conditions;
    let ready = all.iter().find(|c| c.r#type == About::Ready).expect("always there").clone();
    let said = all.into_iter().find(|c| c.r#type == Trouble::Superseded.into() && c.status)?;
    assert_eq!((ready.status, ready.reason, &ready.message), (false, Why::State(CopyState::Superseded), &said.message));
    Some(said.message)
}

#[test]
fn what_is_superseded_says_so_as_long_as_it_is_and_says_fenced_once_that_is_so() {
    let mut trace = Vec::new();
    let (mut sim, _) = user::pair(1, &mut trace);
    assert_eq!(said(&sim, 0), None);
    let owner = sim.nodes[1].place.clone();
    (sim.api.owner, sim.api.epoch, sim.api.opened) = (1, Epoch(2), None);
    sim.api.attempt += 1;
    sim.lost.insert(0);
    sim.failing = Some("Freeze");
    for (n, role) in [(0, Role::Replica), (1, Role::Owner)] {
        sim.edit(n, |p| (p.role, p.epoch, p.owner) = (role, Epoch(2), Some(owner.clone())));
    }
    sim.run_for(20_000);
    let text = said(&sim, 0).expect("it lost authority");
    assert!(text.contains(&owner.node.to_string()) && text.contains("is being fenced"), "{text}");
    sim.failing = None;
    sim.run_for(60_000);
    let fenced = said(&sim, 0).expect("still");
    assert!(fenced.contains("is fenced and kept"), "{fenced}");
    sim.crash(0, false);
    sim.run_for(20_000);
    assert_eq!(said(&sim, 0), Some(fenced), "after a restart too");
    assert_eq!(said(&sim, 1), None);
}
