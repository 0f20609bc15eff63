//! Authority moves between two nodes, by seeds: either crashes or reboots, the wire is cut, swaps and acks are lost, pods and foreign
//! mounts hold the head, the goal changes on the way (migration.md §4, §5: scenarios 1, 2, 6-16, 18, 22); and it is taken from owners that
//! are lost or not (19 of failures.md, as far as the simple form goes). `DOTGRAFT_SIM_SEEDS` runs more.

mod support;

/// Seeds that found something once, in the engine or in what is asserted here.
const SAVED: &[u64] = &[49, 74, 1653, 2221];
const SAVED_TAKEN: &[u64] = &[131, 177, 580, 696, 883];

#[test]
fn one_writes_and_nothing_acknowledged_is_lost() {
    support::run_seeds("moving", 200, SAVED, |seed, trace| {
        support::moves::moving(seed, false, trace);
    });
}

#[test]
fn what_authority_was_taken_from_is_fenced_and_kept_until_it_is_dropped() {
    support::run_seeds("taken", 200, SAVED_TAKEN, |seed, trace| {
        support::moves::moving(seed, true, trace);
    });
}

#[test]
fn the_simulation_really_moves_aborts_takes_and_resets() {
    let all: Vec<_> = (0..80).map(|seed| support::moves::moving(seed, seed % 2 == 1, &mut Vec::new())).collect();
    let sum = |of: fn(&support::moves::Did) -> u64| all.iter().map(of).sum::<u64>();
    let (moves, aborts, writes) = (sum(|d| d.moves), sum(|d| d.aborts), sum(|d| d.writes));
    let (steals, resets) = (sum(|d| d.steals), sum(|d| d.resets));
    assert!(sum(|d| d.precopies) > 40, "too few copies are kept close behind");
    assert!(
        moves > 40 && aborts > 5 && writes > 40 && steals > 5 && resets > 20,
        "too tame: {moves} moves, {aborts} aborts, {writes} writes, {steals} taken, {resets} resets"
    );
}
