//! One simulated node, by seeds: crashes between any two steps, a journal and a disk that fail, requests and deletions at
//! any time (design §4; failures.md rows 1-6, 11, 20). `DOTGRAFT_SIM_SEEDS` runs more.

mod support;

/// Seeds that found something once.
const SAVED: &[u64] = &[4, 5, 9, 149, 252, 717, 1251, 46778];

#[test]
fn one_node_keeps_its_promises_whatever_happens() {
    support::run_seeds("alone", 120, SAVED, |seed, trace| {
        support::user::alone(seed, trace);
    });
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..5 {
        let run = || {
            let mut trace = Vec::new();
            support::user::alone(seed, &mut trace);
            trace
        };
        let (first, second) = (run(), run());
        assert!(first.len() > 100, "something happens");
        assert!(first == second, "seed {seed} ran differently the second time");
    }
}
