//! What a handoff remembers, and what is asked before anything can't be undone: after a restart, after a restore, and while the new owner has not
//! opened (migration.md R3, R4; ADR 20).

mod support;

use dotgraft_engine::filesystem::{MigrationPhase, Task, Trouble};
use dotgraft_engine::ids::Epoch;
use support::Sim;
use support::hazards::Hazards;
use support::schedules::{MINUTE, SECOND, pair};
use support::user::{on_disk, status};

const SEEDS: u64 = 8;

/// With each of a few seeds; they decide about the delays.
fn with_seeds(run: impl Fn(u64, &mut Vec<String>) + std::panic::RefUnwindSafe) {
    support::run_seeds("handoff", SEEDS, &[], run);
}

/// n0 has written 77, and is to hand over to n1.
fn moving(seed: u64, hazards: Hazards, trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = pair(seed, hazards, trace);
    sim.start_pod(0);
    sim.run_for(SECOND);
    sim.write(0, 77);
    sim.stop_pod(0);
    sim.run_for(SECOND);
    sim.move_to(Some(1));
    sim
}

fn phase(sim: &Sim, n: usize) -> Option<MigrationPhase> {
    sim.nodes[n].journal.load().migration.map(|row| row.phase)
}

fn head(sim: &Sim, n: usize) -> Option<u64> {
    sim.nodes[n].disk.head.as_ref().map(|head| head.content)
}

#[test]
fn what_was_handed_over_comes_back_and_is_begun_with() {
    with_seeds(|seed, trace| {
        let mut sim = moving(seed, Hazards::NONE, trace);
        sim.run_until("authority is n1's", |sim| sim.api.owner == 1);
        sim.pause(1, 60 * MINUTE);
        sim.follow_authority();
        sim.run_until("n0 keeps what it handed over", |sim| status(sim, 0).handed_over == Some(sim.api.epoch));
        sim.run_for(20 * SECOND);
        assert_eq!(head(&sim, 0), None, "a replica has no head");
        // The operator gives it back (R4), as it is wanted there again.
        (sim.api.owner, sim.api.epoch, sim.api.opened) = (0, Epoch(sim.api.epoch.0 + 1), None);
        sim.api.attempt += 1;
        sim.follow_authority();
        sim.run_until("n0 has opened again", |sim| sim.is_open(0));
        assert_eq!((head(&sim, 0), phase(&sim, 0)), (Some(77), None), "it begins with what it handed over");
    });
}

#[test]
fn what_was_handed_over_is_let_go_once_the_new_owner_has_opened() {
    with_seeds(|seed, trace| {
        let mut sim = moving(seed, Hazards::NONE, trace);
        sim.run_until("authority is n1's", |sim| sim.api.owner == 1);
        sim.follow_authority();
        sim.run_until("n1 has opened", |sim| sim.is_open(1));
        sim.run_for(20 * SECOND);
        assert_eq!((phase(&sim, 0), status(&sim, 0).handed_over), (None, None));
        assert_eq!(head(&sim, 1), Some(77));
    });
}

/// An agent of a newer version had closed it, froze it as another node owned it by then, and gave way to this one.
#[test]
fn a_freeze_that_the_journal_does_not_know_is_undone_only_where_authority_still_is() {
    with_seeds(|seed, trace| {
        let mut sim = pair(seed, Hazards::NONE, trace);
        sim.start_pod(0);
        sim.run_for(SECOND);
        sim.crash(0, false);
        sim.nodes[0].disk.head.as_mut().expect("a head").fenced = true;
        sim.promote(1, false);
        for _ in 0..600 {
            sim.run_for(50);
            assert!(sim.nodes[0].disk.head.as_ref().is_some_and(|h| h.fenced), "it can be written beside the new owner's");
        }
    });
}

#[test]
fn after_a_restart_the_importer_is_asked_again_before_authority_goes() {
    with_seeds(|seed, trace| {
        let mut sim = moving(seed, Hazards::NONE, trace);
        sim.run_until("n0 has seen its pending", |sim| phase(sim, 0) == Some(MigrationPhase::Pending));
        sim.nodes[0].cut_off = true; // the Commit has to wait
        sim.run_until("n1 has said that it holds all", |sim| phase(sim, 0) == Some(MigrationPhase::Exported));
        let parties = sim.nodes[0].journal.load().migration.map(|row| row.parties).unwrap_or_default();
        assert_eq!(parties.values().map(|p| p.holds).collect::<Vec<_>>(), [Some(sim.api.attempt)], "who has said what is in the record");
        sim.crash(0, false);
        sim.partition = true;
        sim.nodes[0].cut_off = false;
        sim.run_for(30 * SECOND);
        assert_eq!(sim.api.owner, 0, "authority goes on an answer of an earlier life");
        assert!(sim.api.pending.is_some(), "and is not taken back as long as the importer may answer");
        sim.partition = false;
        sim.run_until("it goes on", |sim| sim.api.owner == 1);
        sim.follow_authority();
        sim.run_until("n1 has opened", |sim| sim.is_open(1));
        assert_eq!(head(&sim, 1), Some(77));
    });
}

#[test]
fn a_commit_that_was_intended_is_made_before_the_head_is_fenced_for_a_move() {
    with_seeds(|seed, trace| {
        let mut sim = pair(seed, Hazards::NONE, trace);
        sim.failing = Some("Commit");
        let uid = sim.wish();
        sim.run_for(5 * SECOND);
        sim.move_to(Some(1));
        for _ in 0..60 {
            sim.run_for(500);
            assert!(!sim.runs(0, |t| matches!(t, Task::Freeze | Task::LookForMounts)), "it is fenced before what was intended is made");
        }
        let waits = status(&sim, 0).migration.map(|m| m.message).unwrap_or_default();
        assert!(waits.contains("is made first"), "and people don't hear what it waits for: {waits}");
        sim.failing = None;
        sim.run_until("authority is n1's", |sim| sim.api.owner == 1);
        assert!(on_disk(&sim, 0, uid) && on_disk(&sim, 1, uid));
    });
}

#[test]
fn what_an_opening_has_seen_of_the_api_outlives_the_agent() {
    with_seeds(|seed, trace| {
        let mut sim = pair(seed, Hazards::RESTORES, trace);
        let backup = sim.api.clone();
        sim.crash(0, true);
        sim.run_for(30 * SECOND);
        assert!(sim.is_open(0), "in its new boot");
        sim.api.restore(&backup);
        sim.crash(0, true);
        sim.run_for(30 * SECOND);
        assert!(!sim.is_open(0), "it opens in an API of an older time");
        assert!(status(&sim, 0).conditions.iter().any(|c| c.r#type == Trouble::EpochRegression.into()), "{:?}", status(&sim, 0).conditions);
        // A person accepts: versions begin anew with the epoch.
        sim.api.epoch = Epoch(sim.api.epoch.0 + 1);
        sim.follow_authority();
        sim.run_until("n0 has opened", |sim| sim.is_open(0));
    });
}

#[test]
fn an_owner_whose_journal_was_lost_opens_once_it_has_asked_what_is_pending() {
    with_seeds(|seed, trace| {
        let mut sim = unsure(seed, trace);
        sim.run_until("n0 has opened", |sim| sim.is_open(0));
        assert!(!sim.nodes[0].journal.load().base.is_some_and(|b| b.unsure), "it is sure again");
    });
}

/// n0's journal is lost, and the API server can't be reached.
fn unsure(seed: u64, trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = pair(seed, Hazards::LOST_JOURNALS, trace);
    sim.nodes[0].cut_off = true;
    sim.lose_journal(0);
    sim.run_for(10 * SECOND);
    assert!(sim.nodes[0].journal.load().base.is_some_and(|b| b.unsure), "nothing is taken for granted");
    sim.crash(0, false);
    sim.run_for(10 * SECOND);
    assert!(status(&sim, 0).base.is_some_and(|b| b.unsure), "nor after the next start");
    sim.nodes[0].cut_off = false;
    sim
}

/// The second start finds a journal that is whole, and knows no more than the first: authority may have gone under that fence.
#[test]
fn a_fence_that_only_a_lost_journal_knew_is_not_undone_before_authority_was_asked() {
    with_seeds(|seed, trace| {
        let mut sim = pair(seed, Hazards::LOST_JOURNALS, trace);
        sim.move_to(Some(1));
        sim.run_until("pending is set", |sim| sim.api.pending.is_some());
        (sim.partition, sim.nodes[0].cut_off) = (true, true);
        sim.move_to(None);
        sim.lose_journal(0);
        sim.run_for(10 * SECOND);
        sim.crash(0, false);
        for _ in 0..40 {
            sim.run_for(500);
            assert!(!sim.runs(0, |t| *t == Task::Thaw), "it is thawed while it may be pending");
        }
        assert!(sim.nodes[0].disk.head.as_ref().is_some_and(|head| head.fenced), "the fence stands");
        (sim.partition, sim.nodes[0].cut_off) = (false, false);
        sim.run_until("n0 has asked, and serves it again", |sim| sim.is_open(0));
    });
}
