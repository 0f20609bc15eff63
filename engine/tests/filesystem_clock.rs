//! What is waited for goes by the node's boot clock: a wall clock that jumps lengthens no backoff, no hold and no opening (R0).
#![allow(clippy::unwrap_used, clippy::expect_used)] // its helpers too are tests

mod support;

use dotgraft_engine::filesystem::{Event, Intent, MountMode, MountWhat, RequestState, Role, Task, TaskDone};
use dotgraft_engine::ids::{BootTime, JobUid};
use support::sim::Asked;
use support::{Sim, Two};

const HOUR: i64 = 3_600_000;

fn owner(trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = Sim::new(1, Two::Alone, trace);
    sim.faults = false;
    sim.want(0, Some(Intent::Present(Box::new(support::user::present(Role::Owner)))));
    sim.run_for(2_000);
    sim
}

fn opens(sim: &Sim) -> usize {
    sim.trace.iter().filter(|line| line.contains(" Open { ")).count()
}

#[test]
fn a_clock_that_is_set_back_an_hour_lengthens_no_backoff() {
    let mut trace = Vec::new();
    let mut sim = owner(&mut trace);
    sim.failing = Some("Commit");
    let uid = sim.wish();
    sim.run_for(120_000);
    sim.set_clock(0, -HOUR);
    sim.failing = None;
    sim.run_for(60_000);
    let made = support::user::status(&sim, 0).requests.iter().any(|r| r.uid == uid && r.state == Some(RequestState::Done));
    assert!(made, "what was to be tried again within 30 s sleeps an hour longer");
}

#[test]
fn a_clock_that_jumps_ahead_ends_no_hold() {
    let mut trace = Vec::new();
    let mut sim = owner(&mut trace);
    sim.wish();
    sim.run_for(2_000);
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.handle(0, Event::Mount(req, MountWhat::Head, "/pods/a".into(), MountMode::WRITE));
    sim.run_for(1_000);
    sim.wish_reset();
    sim.edit(0, |p| p.commits.iter_mut().filter(|c| c.reset_to.is_some()).for_each(|c| c.hold = true));
    sim.run_for(5_000);
    sim.set_clock(0, HOUR);
    sim.run_for(5_000);
    assert!(support::user::status(&sim, 0).requests.iter().any(|r| r.holding));
}

#[test]
fn an_opening_counts_from_when_its_swap_was_sent() {
    let mut trace = Vec::new();
    let mut sim = owner(&mut trace);
    sim.run_for(10_000); // it was opened and not used: too old now
    let req = sim.req(0, Asked::Mount(MountWhat::Head));
    sim.handle(0, Event::Mount(req, MountWhat::Head, "/pods/a".into(), MountMode::WRITE));
    let op = *sim.nodes[0].tasks.iter().find(|(_, doing)| matches!(doing.task, Task::Open { .. })).expect("it opens anew").0;
    let (before, epoch, attempt) = (opens(&sim), sim.api.epoch, sim.api.attempt);
    // The answer lay about for six seconds before anyone took it, and authority may be elsewhere by now.
    let sent = BootTime(sim.boot_time(0).0 - 6_000);
    sim.handle(0, Event::Done(op, Box::new(Ok(TaskDone::Opened { epoch, attempt, new: false, sent, version: None }))));
    sim.run_for(2_000);
    assert!(opens(&sim) > before, "a mount under an opening that is six seconds old");
    assert!(sim.nodes[0].disk.is_mounted(MountWhat::Head), "and then it is mounted");
}

#[test]
fn one_event_gives_each_run_that_it_starts_a_name_of_its_own() {
    let mut trace = Vec::new();
    let mut sim = Sim::new(1, Two::WithReplica, &mut trace);
    sim.faults = false;
    for (n, role) in [(0, Role::Owner), (1, Role::Replica)] {
        sim.want(n, Some(Intent::Present(Box::new(support::user::present(role)))));
    }
    sim.run_for(3_000);
    sim.wish();
    sim.run_for(3_000);
    let first = sim.job();
    let mut second = first.clone();
    second.spec.uid = JobUid::from_uuid(support::sim::uuid(51));
    sim.edit(0, |p| p.jobs = vec![first, second]);
    sim.run_for(30_000);
    let status = support::user::status(&sim, 0);
    let names: Vec<_> = status.jobs.iter().filter_map(|j| j.row.last.as_ref()).map(|l| l.run_id).collect();
    assert!(names.len() == 2 && names[0] != names[1], "{names:?}");
}
