//! A job across runs, commits, specs and restarts (README §2, replication.md §5 and §6 test 6).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod run_support;

use dotgraft_engine::format::{FormatError, Kind};
use dotgraft_engine::ids::{CommitId, JobUid, Now, Timestamp};
use dotgraft_engine::model::{Reason, Versions, VersionsRole};
use dotgraft_engine::run::{
    CancelReason, Initial, Job, JobRow, JobSpec, Outcome, Retry, Run, RunEffect, RunEffectKind, RunEvent, RunParams, RunSeed, RunSpec,
    State,
};
use dotgraft_engine::schedule::Schedule;
use run_support::*;
use uuid::Uuid;

fn one_shot(generation: i64) -> JobSpec {
    let RunSpec { peer, initial, intermediate, retry, on_conflict, .. } = spec();
    let params = RunParams { peer, initial, intermediate, retry, on_conflict, also: None };
    JobSpec { uid: job_uid(), generation, suspend: false, trigger: None, on_commit: false, schedule: None, params }
}

fn on_commit(generation: i64) -> JobSpec {
    JobSpec { on_commit: true, ..one_shot(generation) }
}

fn triggered(generation: i64, trigger: &str) -> JobSpec {
    JobSpec { trigger: Some(trigger.to_owned()), ..one_shot(generation) }
}

/// At the beginning of every hour.
fn hourly(generation: i64) -> JobSpec {
    JobSpec { schedule: Some(Schedule::cron("@hourly", None).unwrap()), ..one_shot(generation) }
}

fn each(seconds: u32) -> JobSpec {
    JobSpec { schedule: Some(Schedule::interval(seconds).unwrap()), ..one_shot(1) }
}

/// A job, both sides' commits and a receiver that does as it is told.
struct World {
    job: Job,
    ours: Vec<u64>,
    theirs: Vec<CommitId>,
    now: Now,
    runs: u32,
    out: Vec<RunEffect>,
    /// Rows as they were "journaled" with each call.
    journal: JobRow,
}

impl World {
    fn new(ours: &[u64]) -> Self {
        let row = JobRow::new(job_uid());
        Self {
            job: Job::restore(row.clone()),
            ours: ours.to_vec(),
            theirs: Vec::new(),
            now: at(1_000),
            runs: 0,
            out: Vec::new(),
            journal: row,
        }
    }

    fn seed() -> RunSeed {
        RunSeed { run_id: Uuid::from_u128(5), jitter_seed: 3 }
    }

    fn newest(&self) -> Option<CommitId> {
        self.ours.last().map(|n| id(*n))
    }

    fn call(&mut self, f: impl FnOnce(&mut Job, Now, &mut Vec<RunEffect>)) {
        f(&mut self.job, self.now, &mut self.out);
        self.journal = self.job.row().clone();
    }

    fn spec(&mut self, spec: JobSpec) {
        let newest = self.newest();
        self.call(|job, now, out| job.on_spec(spec, newest, now, Self::seed(), out));
    }

    fn commit(&mut self, n: u64) {
        self.ours.push(n);
        self.call(|job, now, out| job.on_commit_made(id(n), false, now, Self::seed(), out));
    }

    fn give(&mut self, event: RunEvent) {
        self.call(|job, now, out| job.handle(event, now, Self::seed(), out));
    }

    fn peer(&self) -> Versions {
        let commits = self.theirs.iter().map(|c| dotgraft_engine::model::Commit { id: *c, ..commit(1) }).collect();
        Versions { commits, ..versions(VersionsRole::Replica, &[]) }
    }

    /// Answers one effect as a healthy world does; false if there is none.
    fn step(&mut self) -> bool {
        if self.out.is_empty() {
            return false;
        }
        let effect = self.out.remove(0);
        let seq = effect.seq;
        match effect.kind {
            RunEffectKind::List => {
                self.runs += 1;
                let (local, peer) = (sender(&self.ours), Ok(self.peer()));
                self.give(RunEvent::Listed { seq, local, peer });
            }
            RunEffectKind::Estimate { step, .. } => self.give(RunEvent::Estimated { seq, step, bytes: Some(1) }),
            RunEffectKind::Send(step) => {
                self.theirs.push(step.to);
                self.give(RunEvent::SendDone { seq, result: sent(1) });
            }
            RunEffectKind::CancelSend => {
                self.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Cancelled)) });
            }
            RunEffectKind::MoveCursor { .. } => self.give(RunEvent::CursorMoved { seq }),
            RunEffectKind::Moved { .. } | RunEffectKind::Note { .. } => {}
        }
        true
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Steps until the next effect is of that kind; it stays in front.
    fn until(&mut self, wanted: impl Fn(&RunEffectKind) -> bool) -> u64 {
        for _ in 0..10_000 {
            if let Some(first) = self.out.first().filter(|e| wanted(&e.kind)) {
                return first.seq;
            }
            assert!(self.step(), "it came to rest before");
        }
        panic!("it never comes there");
    }

    /// Kills the agent and starts it again with what was journaled.
    fn restart(&mut self) {
        let text = serde_json::to_string(&self.journal).unwrap();
        self.out.clear();
        self.job = Job::restore(serde_json::from_str(&text).unwrap());
    }
}

fn is_list(kind: &RunEffectKind) -> bool {
    *kind == RunEffectKind::List
}

fn is_send(kind: &RunEffectKind) -> bool {
    matches!(kind, RunEffectKind::Send(_))
}

#[test]
fn a_one_shot_job_runs_once_also_after_a_restart_and_a_changed_spec() {
    let mut w = World::new(&[1, 2]);
    w.spec(one_shot(1));
    w.settle();
    assert_eq!((w.runs, w.theirs.clone()), (1, vec![id(2)]));
    assert_eq!(w.job.row().cursor, Some(id(2)));
    w.spec(one_shot(1));
    w.commit(3);
    w.settle();
    w.restart();
    w.spec(one_shot(1));
    w.settle();
    w.spec(one_shot(2));
    w.settle();
    assert_eq!(w.runs, 1);
    assert_eq!(w.job.report(w.now).map(|r| r.state), Some(State::Completed), "the report outlives a restart");
}

#[test]
fn a_one_shot_job_that_was_cut_off_is_redone_wherever_it_was() {
    for cut in 0..12 {
        let mut w = World::new(&[1, 2]);
        w.spec(JobSpec { params: RunParams { initial: Initial::All, ..one_shot(1).params }, ..one_shot(1) });
        for _ in 0..cut {
            w.step();
        }
        w.restart();
        assert!(w.job.is_idle(), "nothing starts before the spec is read");
        w.spec(JobSpec { params: RunParams { initial: Initial::All, ..one_shot(1).params }, ..one_shot(1) });
        w.settle();
        assert_eq!(w.theirs, [id(1), id(2)], "cut after {cut}");
        assert_eq!(w.job.row().cursor, Some(id(2)), "cut after {cut}");
        assert!(w.job.row().done_once && !w.job.row().owed, "cut after {cut}");
    }
}

#[test]
fn a_new_trigger_runs_and_the_same_does_not() {
    let mut w = World::new(&[1]);
    w.spec(triggered(1, "a"));
    w.settle();
    w.spec(triggered(1, "a"));
    w.restart();
    w.spec(triggered(1, "a"));
    w.settle();
    assert_eq!(w.runs, 1);
    w.ours.push(2);
    w.spec(triggered(2, "b"));
    w.settle();
    assert_eq!((w.runs, w.theirs.len()), (2, 2));
    assert_eq!(w.job.row().observed_trigger.as_deref(), Some("b"));
    w.spec(JobSpec { trigger: None, ..triggered(3, "b") });
    w.settle();
    assert_eq!(w.runs, 2, "taking the trigger away asks for nothing");
}

#[test]
fn a_trigger_during_a_run_starts_another_as_soon_as_it_ends_also_across_a_crash() {
    for crash in [false, true] {
        let mut w = World::new(&[1]);
        w.spec(triggered(1, "a"));
        w.until(is_send);
        w.ours.push(2);
        w.spec(triggered(2, "b"));
        if crash {
            w.restart();
            w.spec(triggered(2, "b"));
        }
        w.settle();
        assert_eq!(w.theirs.last(), Some(&id(2)), "crash {crash}");
        assert_eq!(w.runs, 2, "crash {crash}");
    }
}

#[test]
fn test_6_a_commit_made_during_a_run_starts_the_next_as_soon_as_it_ends() {
    let mut w = World::new(&[1]);
    w.spec(on_commit(1));
    w.until(is_send);
    w.commit(2);
    w.settle();
    assert_eq!(w.runs, 2);
    assert_eq!(w.theirs, [id(1), id(2)]);
}

#[test]
fn a_commit_that_the_run_has_listed_already_starts_no_other() {
    let mut w = World::new(&[1]);
    w.spec(on_commit(1));
    w.until(is_list);
    w.commit(2);
    w.settle();
    assert_eq!((w.runs, w.theirs.clone()), (1, vec![id(2)]));
}

#[test]
fn an_on_commit_job_waits_for_the_first_commit_and_ignores_transient_ones() {
    let mut w = World::new(&[]);
    w.spec(on_commit(1));
    w.call(|job, now, out| job.on_commit_made(id(50), true, now, World::seed(), out));
    w.settle();
    assert_eq!(w.runs, 0);
    w.commit(1);
    w.settle();
    assert_eq!((w.runs, w.theirs.clone()), (1, vec![id(1)]));
    assert_eq!(w.job.row().last_successful_time, Some(w.now.wall));
}

#[test]
fn an_on_commit_job_catches_up_after_a_restart_only_if_it_is_behind() {
    let mut w = World::new(&[1]);
    w.spec(on_commit(1));
    w.settle();
    w.restart();
    w.spec(on_commit(1));
    w.settle();
    assert_eq!(w.runs, 1, "it is not behind");
    w.restart();
    w.ours.push(2); // made by the agent before, or after, while the job was not known
    w.spec(on_commit(1));
    w.settle();
    assert_eq!((w.runs, w.theirs.len()), (2, 2));
}

#[test]
fn a_commit_ends_a_sleep_at_once() {
    let mut w = World::new(&[1]);
    w.spec(on_commit(1));
    let seq = w.until(is_list);
    w.out.clear();
    let peer = Err(problem(Reason::Unreachable));
    w.give(RunEvent::Listed { seq, local: sender(&[1]), peer });
    assert_eq!(w.job.run().map(Run::state), Some(State::PlanningError));
    w.commit(2);
    assert_eq!(w.job.run().map(Run::state), Some(State::Planning));
    w.settle();
    assert_eq!(w.theirs, [id(2)]);
}

#[test]
fn suspending_stops_the_run_and_keeps_what_is_owed() {
    let mut w = World::new(&[1]);
    w.spec(one_shot(1));
    w.until(is_send);
    w.out.clear(); // the send is under way and does not end by itself
    w.spec(JobSpec { suspend: true, ..one_shot(2) });
    w.settle();
    assert!(w.job.is_idle());
    assert_eq!(w.job.report(w.now).map(|r| r.state), Some(State::ContextDone));
    assert!(w.job.row().owed && !w.job.row().done_once);
    w.restart();
    w.spec(JobSpec { suspend: true, ..one_shot(2) });
    w.settle();
    assert_eq!(w.theirs, []);
    w.spec(one_shot(3));
    w.settle();
    assert_eq!(w.theirs, [id(1)]);
}

#[test]
fn changed_run_parameters_supersede_the_run_in_hand() {
    let mut w = World::new(&[1, 2]);
    w.spec(one_shot(1));
    w.until(is_send);
    w.out.clear();
    let mut changed = one_shot(2);
    changed.params.initial = Initial::All;
    w.spec(changed);
    w.settle();
    assert_eq!(w.theirs, [id(1), id(2)], "the second run obeyed the new spec");
    assert_eq!(w.runs, 2);
}

#[test]
fn a_new_peer_has_a_cursor_of_its_own_and_is_served_once() {
    let mut w = World::new(&[1, 2]);
    w.spec(one_shot(1));
    w.settle();
    let mut elsewhere = one_shot(2);
    elsewhere.params.peer.node = "n3".parse().unwrap();
    w.theirs.clear();
    w.spec(elsewhere);
    assert_eq!(w.job.row().cursor, None);
    w.settle();
    assert_eq!((w.runs, w.theirs.clone()), (2, vec![id(2)]));
}

#[test]
fn deleting_the_job_stops_all_until_its_spec_is_there_again() {
    let mut w = World::new(&[1]);
    w.spec(on_commit(1));
    w.until(is_send);
    w.out.clear();
    w.call(|job, now, out| job.on_stop(CancelReason::Deleted, now, World::seed(), out));
    assert!(!w.job.is_idle(), "until the send has confirmed");
    w.settle();
    assert!(w.job.is_idle());
    w.commit(2);
    w.settle();
    assert!(w.job.is_idle());
    assert_eq!(w.theirs, []);
    w.spec(on_commit(1));
    w.settle();
    assert_eq!(w.theirs, [id(2)], "an API server restored from a backup brings it back under its UID");
}

#[test]
fn a_node_that_is_owner_again_goes_on() {
    let mut w = World::new(&[1]);
    w.spec(one_shot(1));
    w.until(is_send);
    w.out.clear();
    w.call(|job, now, out| job.on_stop(CancelReason::NotOwner, now, World::seed(), out));
    w.settle();
    assert!(w.job.is_idle());
    w.call(|job, now, out| job.on_resume(now, World::seed(), out));
    w.settle();
    assert_eq!(w.theirs, [id(1)]);
}

#[test]
fn a_failed_run_waits_for_a_named_change() {
    let mut w = World::new(&[]);
    w.spec(one_shot(1));
    w.settle();
    assert!(matches!(w.job.row().last.as_ref().map(|l| &l.outcome), Some(Outcome::Failed(_))));
    assert_eq!(w.job.row().consecutive_failures, 1);
    w.restart();
    w.spec(one_shot(1));
    w.settle();
    assert_eq!(w.runs, 1, "unchanged, it fails again");
    w.ours.push(1);
    w.spec(one_shot(2));
    w.settle();
    assert_eq!((w.runs, w.theirs.clone()), (2, vec![id(1)]));
    assert_eq!(w.job.row().consecutive_failures, 0);
}

#[test]
fn a_commit_during_a_run_that_fails_starts_the_next_too() {
    let mut w = World::new(&[1]);
    w.spec(on_commit(1));
    let seq = w.until(is_send);
    w.out.clear();
    w.commit(2);
    w.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Invalid)) });
    w.settle();
    assert_eq!((w.runs, w.theirs.clone()), (2, vec![id(2)]));
}

#[test]
fn no_number_of_an_effect_is_used_twice_in_a_jobs_life() {
    let mut w = World::new(&[1]);
    let mut seen = Vec::new();
    w.spec(on_commit(1));
    for n in 2..6 {
        loop {
            seen.extend(w.out.first().filter(|e| e.kind != RunEffectKind::CancelSend).map(|e| e.seq));
            if !w.step() {
                break;
            }
        }
        w.commit(n);
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((w.runs, seen.len()), (4, all));
}

#[test]
fn a_deadline_counts_as_a_failure_and_does_not_start_over() {
    let mut w = World::new(&[1]);
    let mut spec = one_shot(1);
    spec.params.retry = Retry { max_attempts: None, deadline_ms: Some(5_000) };
    w.spec(spec);
    w.out.clear(); // the listing never comes
    w.now = not_before(w.now, w.job.next_wake().unwrap());
    w.give(RunEvent::Timer);
    w.settle();
    assert!(w.job.is_idle());
    assert_eq!((w.runs, w.job.row().consecutive_failures), (0, 1));
    assert!(w.job.row().done_once);
}

#[test]
fn the_cursor_is_in_the_row_of_the_same_call_that_asks_to_move_it() {
    let mut w = World::new(&[1]);
    w.spec(one_shot(1));
    w.until(|k| matches!(k, RunEffectKind::MoveCursor { .. }));
    assert_eq!(w.journal.cursor, Some(id(1)));
    assert!(w.job.pins().contains(&id(1)));
}

#[test]
fn late_results_of_an_earlier_run_are_not_taken_for_the_next_ones() {
    let mut w = World::new(&[1]);
    w.spec(triggered(1, "a"));
    let late = w.until(is_send);
    w.settle();
    w.ours.push(2);
    w.spec(triggered(2, "b"));
    let seq = w.until(is_send);
    assert!(seq > late);
    w.out.clear();
    w.give(RunEvent::SendDone { seq: late, result: sent(1) });
    assert_eq!(w.job.row().cursor, Some(id(1)));
    assert_eq!(w.job.run().map(Run::state), Some(State::Working));
}

#[test]
fn the_spec_of_another_job_is_ignored() {
    let mut w = World::new(&[1]);
    let other = JobSpec { uid: JobUid::from_uuid(Uuid::from_u128(99)), ..one_shot(1) };
    w.spec(other);
    w.settle();
    assert_eq!(w.runs, 0);
    assert_eq!(*w.job.row(), JobRow::new(job_uid()));
}

// ---- the row on disk ----

fn full_row() -> JobRow {
    let mut w = World::new(&[1, 2]);
    w.spec(triggered(4, "now"));
    w.settle();
    w.job.row().clone()
}

#[test]
fn the_row_on_disk_is_the_golden_file() {
    let golden = include_str!("run_golden/job_row_v1.json");
    let row: JobRow = serde_json::from_str(golden).unwrap();
    assert_eq!(row, full_row());
    let ours: serde_json::Value = serde_json::to_value(&row).unwrap();
    assert_eq!(ours, serde_json::from_str::<serde_json::Value>(golden).unwrap());
}

#[test]
fn a_row_of_a_newer_program_is_refused() {
    let mut row = serde_json::to_value(full_row()).unwrap();
    row["version"] = 2.into();
    let read = |row: &serde_json::Value| Kind::Job.read::<JobRow>("job/1", row.to_string().as_bytes());
    assert!(matches!(read(&row), Err(FormatError::Newer { version: 2, .. })), "{:?}", read(&row));
    row["version"] = 0.into();
    assert!(matches!(read(&row), Err(FormatError::Damaged { .. })));
}

// ---- schedules ----

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

impl World {
    /// Both clocks go on, with a timer whenever one is asked for, and the runs that follow.
    fn wait(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while let Some(due) = self.job.next_wake().filter(|due| *due <= end.boot) {
            self.now = not_before(self.now, due);
            self.give(RunEvent::Timer);
            self.settle();
            assert!(self.job.next_wake().is_none_or(|next| next > self.now.boot), "a timer that was handled leaves nothing due");
        }
        self.now = end;
    }

    /// The wall clock alone.
    fn set_clock(&mut self, ms: i64) {
        self.now.wall = Timestamp(self.now.wall.0 + ms);
    }
}

#[test]
fn a_schedule_runs_at_its_times_and_at_no_other() {
    let mut w = World::new(&[1]);
    w.spec(hourly(1));
    w.settle();
    assert_eq!((w.runs, w.job.next_firing()), (0, Some(Timestamp(3_600_000))), "it waits for its time");
    w.wait(HOUR - 10_000);
    assert_eq!(w.runs, 0);
    w.wait(2 * MINUTE);
    assert_eq!((w.runs, w.theirs.clone()), (1, vec![id(1)]));
    for hours in 2..30 {
        w.ours.push(hours);
        w.wait(HOUR);
        assert_eq!((w.runs, w.theirs.len()), (u32::try_from(hours).unwrap(), usize::try_from(hours).unwrap()));
    }
}

#[test]
fn an_interval_begins_at_once() {
    let mut w = World::new(&[1]);
    w.spec(each(600));
    w.settle();
    assert_eq!(w.runs, 1);
    w.spec(each(600));
    w.wait(9 * MINUTE);
    assert_eq!(w.runs, 1);
    w.wait(2 * MINUTE);
    assert_eq!(w.runs, 2);
}

#[test]
fn what_was_missed_while_the_agent_was_away_is_made_up_for_once() {
    let mut w = World::new(&[1]);
    w.spec(hourly(1));
    w.wait(90 * MINUTE);
    w.restart();
    w.now = w.now.plus_ms(50 * HOUR);
    w.spec(hourly(1));
    w.settle();
    assert_eq!(w.runs, 2);
    w.restart();
    w.spec(hourly(1));
    w.settle();
    assert_eq!(w.runs, 2, "not again after another restart");
    w.wait(HOUR);
    assert_eq!(w.runs, 3);
}

#[test]
fn a_firing_during_a_run_starts_another_as_soon_as_it_ends() {
    let mut w = World::new(&[1]);
    w.spec(each(600));
    w.until(is_send);
    w.now = w.now.plus_ms(35 * MINUTE);
    w.ours.push(2);
    w.call(|job, now, out| job.handle(RunEvent::Wake, now, World::seed(), out));
    assert_eq!(w.runs, 1, "runs never overlap");
    w.settle();
    assert_eq!((w.runs, w.theirs.last()), (2, Some(&id(2))), "three firings, one run");
}

#[test]
fn what_fires_while_it_is_suspended_is_made_up_for_by_one_run_afterwards() {
    let mut w = World::new(&[1]);
    w.spec(JobSpec { suspend: true, ..hourly(1) });
    w.wait(30 * HOUR);
    assert_eq!((w.runs, w.job.next_firing()), (0, None));
    w.spec(hourly(2));
    w.settle();
    assert_eq!(w.runs, 1);
}

#[test]
fn a_clock_that_is_set_back_fires_nothing_twice_and_one_that_is_set_ahead_fires_once() {
    let mut w = World::new(&[1]);
    w.now = at(1_800_000_000_000);
    w.spec(hourly(1));
    w.wait(90 * MINUTE);
    assert_eq!(w.runs, 1 + u32::from(w.job.row().fired.as_ref().unwrap().at.0 - 1_800_000_000_000 > 3_600_000));
    let before = w.runs;
    w.set_clock(-3_600_000);
    w.wait(HOUR - MINUTE);
    assert_eq!(w.runs, before, "that hour has been");
    w.set_clock(5 * 3_600_000);
    w.wait(2 * MINUTE);
    assert_eq!(w.runs, before + 1, "noticed within a minute");
    w.set_clock(400 * 24 * 3_600_000);
    w.wait(2 * MINUTE);
    w.set_clock(-400 * 24 * 3_600_000);
    let wrong = w.runs;
    w.wait(2 * HOUR);
    assert!(w.runs > wrong, "a year that was none is not waited for");
}

#[test]
fn a_clock_that_goes_wrong_by_two_nodes_fires_nothing_twice() {
    // The row goes along with authority to a node whose clock is an hour behind, and comes back.
    let mut w = World::new(&[1]);
    w.now = at(1_800_000_000_000);
    w.spec(hourly(1));
    w.wait(61 * MINUTE);
    let runs = w.runs;
    for hours in [-1, 1] {
        w.restart();
        w.set_clock(hours * 3_600_000);
        w.spec(hourly(1));
        w.settle();
        w.wait(MINUTE / 2);
        assert_eq!(w.runs, runs, "{hours} h");
    }
}

#[test]
fn another_schedule_begins_anew() {
    let mut w = World::new(&[1]);
    w.spec(hourly(1));
    w.wait(20 * HOUR);
    let runs = w.runs;
    let monthly = JobSpec { schedule: Some(Schedule::cron("@monthly", None).unwrap()), ..hourly(2) };
    w.spec(monthly);
    w.settle();
    w.spec(hourly(3));
    w.settle();
    assert_eq!(w.runs, runs, "what another one would have fired in the past was not missed");
    w.wait(HOUR + MINUTE);
    assert_eq!(w.runs, runs + 1);
}

#[test]
fn a_job_that_is_stopped_takes_no_firing() {
    let mut w = World::new(&[1]);
    w.spec(hourly(1));
    w.wait(30 * MINUTE);
    w.call(|job, now, out| job.on_stop(CancelReason::Deleted, now, World::seed(), out));
    let fired = w.job.row().fired.clone();
    assert_eq!(w.job.next_wake(), None);
    w.wait(5 * HOUR);
    w.give(RunEvent::Timer);
    assert_eq!((w.runs, w.job.row().fired.clone()), (0, fired), "it is the next owner's");
    w.call(|job, now, out| job.on_resume(now, World::seed(), out));
    w.settle();
    assert_eq!(w.runs, 1);
}
