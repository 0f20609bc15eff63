//! The faults of authority that the simulator found (their table is in docs/testing.md), each as a schedule with seeds: none comes back.
#![allow(clippy::expect_used)] // its helpers too are tests

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use support::schedules as s;

struct Fault {
    /// Its number in the table.
    number: &'static str,
    name: &'static str,
    run: fn(u64, &mut Vec<String>),
}

const SEEDS: u64 = 8;

const FAULTS: &[Fault] = &[
    Fault { number: "1", name: "nested_and_superseded", run: s::nested_and_superseded },
    Fault { number: "2", name: "importer_is_dropped", run: s::importer_is_dropped },
    Fault { number: "3", name: "importer_never_opens", run: s::importer_never_opens },
    Fault { number: "4", name: "restored_before_a_promotion", run: s::restored_before_a_promotion },
    Fault { number: "5", name: "opening_in_the_socket", run: s::opening_in_the_socket },
    Fault { number: "5", name: "opening_after_a_restart", run: s::opening_after_a_restart },
    Fault { number: "5", name: "first_mount_takes_long", run: s::first_mount_takes_long },
    Fault { number: "1", name: "lost_behind_a_slow_commit", run: s::lost_behind_a_slow_commit },
    Fault { number: "6", name: "pending_comes_late", run: s::pending_comes_late },
    Fault { number: "6", name: "journal_lost_while_pending", run: s::journal_lost_while_pending },
    Fault { number: "8", name: "mount_during_a_fence", run: s::mount_during_a_fence },
    Fault { number: "9", name: "reset_and_promoted", run: s::reset_and_promoted },
    Fault { number: "9", name: "reset_deleted_and_promoted", run: s::reset_deleted_and_promoted },
    Fault { number: "10", name: "importer_clock_ahead", run: s::importer_clock_ahead },
    Fault { number: "10", name: "clock_set_back_in_backoff", run: s::clock_set_back_in_backoff },
];

/// `None`: it went well.
fn found(fault: &Fault, seed: u64) -> Option<(String, Vec<String>)> {
    let mut trace = Vec::new();
    let panic = catch_unwind(AssertUnwindSafe(|| (fault.run)(seed, &mut trace))).err()?;
    let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    Some((text.expect("a panic with a message"), trace))
}

#[test]
fn what_is_mended_holds_with_every_seed() {
    for fault in FAULTS {
        for seed in 0..support::seeds(SEEDS) {
            if let Some((text, trace)) = found(fault, seed) {
                trace.iter().rev().take(90).rev().for_each(|line| eprintln!("{line}"));
                unreachable!("fault {} is back ({}, seed {seed}): {text}", fault.number, fault.name);
            }
        }
    }
}
