//! Authority moves between two nodes, by seeds: either crashes or reboots, the wire is cut, swaps and acks are lost, pods and foreign
//! mounts hold the head, the goal changes on the way (migration.md §4, §5: scenarios 1, 2, 6-16, 18, 22). `DOTGRAFT_SIM_SEEDS` runs more.

mod support;

/// Seeds that found something once.
const SAVED: &[u64] = &[];

#[test]
fn one_writes_and_nothing_acknowledged_is_lost() {
    support::run_seeds("moving", 200, SAVED, |seed, trace| {
        support::moves::moving(seed, trace);
    });
}

#[test]
fn the_simulation_really_moves_and_aborts() {
    let all: Vec<_> = (0..80).map(|seed| support::moves::moving(seed, &mut Vec::new())).collect();
    let sum = |of: fn(&support::moves::Did) -> u64| all.iter().map(of).sum::<u64>();
    assert!(
        sum(|d| d.moves) > 40 && sum(|d| d.aborts) > 5 && sum(|d| d.writes) > 40,
        "too tame: {} moves, {} aborts, {} writes",
        sum(|d| d.moves),
        sum(|d| d.aborts),
        sum(|d| d.writes)
    );
}
