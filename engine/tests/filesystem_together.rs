//! An owner and a replica, by seeds: either crashes, the wire is cut, acks are lost, space runs out, the Filesystem is
//! deleted on the way (replication.md §3; failures.md rows 1-3, 6, 9, 11). `DOTGRAFT_SIM_SEEDS` runs more.

mod support;

/// Seeds that found something once.
const SAVED: &[u64] = &[22, 30, 10481];

#[test]
fn the_replica_gets_there_or_all_of_it_goes() {
    support::run_seeds("together", 150, SAVED, |seed, trace| {
        support::user::together(seed, trace);
    });
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..5 {
        let run = || {
            let mut trace = Vec::new();
            support::user::together(seed, &mut trace);
            trace
        };
        let (first, second) = (run(), run());
        assert!(first.len() > 100 && first == second, "seed {seed} ran differently the second time");
    }
}

#[test]
fn interrupted_transfers_go_on_from_checkpoints() {
    let resumed: u64 = (0..40).map(|seed| support::user::together(seed, &mut Vec::new()).1).sum();
    assert!(resumed > 20, "the simulation exercises resumption: {resumed}");
}
