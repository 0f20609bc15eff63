//! What the simulator found, and is held against: each fault of authority that it can tell of (their table is in docs/testing.md), as a schedule with seeds.
//!
//! A fault that is not mended yet must still be *found*: else the schedule would test nothing by the time it is. So whoever mends one
//! sets `mended` here, and adds its hazard to `Hazards::MENDED`, so that the random runs are in that world too.
#![allow(clippy::expect_used)] // its helpers too are tests

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use support::schedules as s;

struct Fault {
    /// Its number in the table.
    number: &'static str,
    name: &'static str,
    run: fn(u64, &mut Vec<String>),
    /// What the simulator says of it, one of these.
    says: &'static [&'static str],
    mended: bool,
}

const SEEDS: u64 = 8;

const FAULTS: &[Fault] = &[
    Fault {
        number: "1",
        name: "nested_and_superseded",
        run: s::nested_and_superseded,
        says: &["a pod can still write on n0"],
        mended: true,
    },
    Fault {
        number: "2",
        name: "importer_is_dropped",
        run: s::importer_is_dropped,
        says: &["what was acknowledged is not there"],
        mended: true,
    },
    Fault {
        number: "3",
        name: "importer_never_opens",
        run: s::importer_never_opens,
        says: &["has let go of what it handed over"],
        mended: true,
    },
    Fault {
        number: "4",
        name: "restored_before_a_promotion",
        run: s::restored_before_a_promotion,
        says: &["both nodes can write"],
        mended: true,
    },
    Fault {
        number: "5",
        name: "opening_in_the_socket",
        run: s::opening_in_the_socket,
        says: &["the first mount of an opening begins"],
        mended: true,
    },
    Fault {
        number: "5",
        name: "opening_after_a_restart",
        run: s::opening_after_a_restart,
        says: &["the first mount of an opening begins"],
        mended: true,
    },
    Fault {
        number: "5",
        name: "first_mount_takes_long",
        run: s::first_mount_takes_long,
        says: &["serves what it was promoted away from"],
        mended: true,
    },
    Fault {
        number: "1",
        name: "lost_behind_a_slow_commit",
        run: s::lost_behind_a_slow_commit,
        says: &["a pod can still write on n0"],
        mended: true,
    },
    Fault {
        number: "6",
        name: "pending_comes_late",
        run: s::pending_comes_late,
        says: &["a pending that nobody owns up to"],
        mended: true,
    },
    Fault {
        number: "6",
        name: "journal_lost_while_pending",
        run: s::journal_lost_while_pending,
        says: &["thaws while a handoff is pending", "a pending that nobody owns up to"],
        mended: true,
    },
    Fault {
        number: "8",
        name: "mount_during_a_fence",
        run: s::mount_during_a_fence,
        says: &["a mount of the head is admitted while it is being fenced", "holds a frozen head"],
        mended: true,
    },
    Fault { number: "9", name: "reset_and_promoted", run: s::reset_and_promoted, says: &["what was reset away is back"], mended: true },
    Fault {
        number: "9",
        name: "reset_deleted_and_promoted",
        run: s::reset_deleted_and_promoted,
        says: &["what was reset away is back"],
        mended: true,
    },
    Fault {
        number: "10",
        name: "importer_clock_ahead",
        run: s::importer_clock_ahead,
        says: &["no attempt of the move succeeds"],
        mended: true,
    },
    Fault {
        number: "10",
        name: "clock_set_back_in_backoff",
        run: s::clock_set_back_in_backoff,
        says: &["the owner still sleeps"],
        mended: true,
    },
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
    for fault in FAULTS.iter().filter(|f| f.mended) {
        for seed in 0..support::seeds(SEEDS) {
            if let Some((text, trace)) = found(fault, seed) {
                trace.iter().rev().take(90).rev().for_each(|line| eprintln!("{line}"));
                unreachable!("fault {} is back ({}, seed {seed}): {text}", fault.number, fault.name);
            }
        }
    }
}

#[test]
fn what_is_not_mended_yet_is_found() {
    for fault in FAULTS.iter().filter(|f| !f.mended) {
        let texts: Vec<String> = (0..SEEDS).filter_map(|seed| found(fault, seed)).map(|(text, _)| text).collect();
        let told = texts.iter().filter(|text| fault.says.iter().any(|says| text.contains(says))).count();
        eprintln!("fault {} ({}): found with {told} of {SEEDS} seeds", fault.number, fault.name);
        assert!(
            told > 0 && told == texts.len(),
            "fault {} ({}) is found with {told} of {SEEDS} seeds: set `mended` if it is, or mend the schedule; it said: {texts:?}",
            fault.number,
            fault.name
        );
    }
}
