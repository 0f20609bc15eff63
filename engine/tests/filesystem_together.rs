//! An owner and a replica, by seeds: either crashes, the wire is cut, acks are lost, space runs out, the Filesystem is
//! deleted on the way (replication.md §3; failures.md rows 1-3, 6, 9, 11). `DOTGRAFT_SIM_SEEDS` runs more.

mod support;

/// Seeds that found something once.
const SAVED: &[u64] = &[22, 30, 2060, 5584, 10481];

#[test]
fn the_replica_gets_there_or_all_of_it_goes() {
    support::run_seeds("together", 50, SAVED, |seed, trace| {
        support::user::together(seed, trace);
    });
}

#[test]
fn commits_are_let_go_and_go() {
    let mut counted = (0, 0, 0);
    for seed in 0..60 {
        let mut trace = Vec::new();
        support::user::together(seed, &mut trace);
        let count = |what: &str| trace.iter().filter(|line| line.contains(what)).count();
        counted = (
            counted.0 + count("n0    record commit-let-go"),
            counted.1 + count("n1    record commit-let-go"),
            counted.2 + count("record removed"),
        );
    }
    assert!(counted.0 > 20 && counted.1 > 5, "the simulation exercises it: {counted:?}");
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
