//! Properties of a run: against a model of both sides that fails, crashes and loses acks by dice
//! (replication.md §6, last line), and against arbitrary events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod run_support;

use std::collections::BTreeSet;

use dotgraft_engine::ids::{BootTime, CommitId, Epoch, Now, Timestamp};
use dotgraft_engine::model::{Reason, ResumeToken, Versions, VersionsRole};
use dotgraft_engine::run::{
    CancelReason, Initial, Intermediate, NoteReason, Outcome, Retry, Run, RunEffect, RunEffectKind, RunEvent, RunSpec, SendOutcome,
    SendStep, State,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use run_support::*;

/// `PROPTEST_CASES` in the environment wins over `cases`.
fn config(cases: u32) -> ProptestConfig {
    let saved = FileFailurePersistence::WithSource("regressions");
    let default = ProptestConfig::default();
    let cases = std::env::var_os("PROPTEST_CASES").map_or(cases, |_| default.cases);
    ProptestConfig { cases, failure_persistence: Some(Box::new(saved)), ..default }
}

/// Luck that runs out: each throw takes one die; without dice all goes well.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    /// 0 to `sides` - 1 while there are dice, then `sides` - 1, which stands for "well".
    fn throw(&mut self, sides: u8) -> u8 {
        self.0.next().map_or(sides - 1, |d| d % sides)
    }
}

/// What is watched at every call, whatever the events were.
struct Watch {
    state: State,
    sent: u64,
}

impl Watch {
    fn new() -> Self {
        Self { state: State::Planning, sent: 0 }
    }

    fn check(&mut self, run: &Run, new: &[RunEffect], now: Now, timer: bool) {
        for effect in new {
            match &effect.kind {
                RunEffectKind::Moved { from, to, .. } => {
                    assert_eq!(*from, self.state);
                    assert!(from.may_become(*to), "{from} became {to}");
                    self.state = *to;
                }
                RunEffectKind::Note { reason, message } => {
                    assert_ne!(*reason, NoteReason::InvariantBroken, "{message}");
                }
                _ => {}
            }
            let text = serde_json::to_string(effect).unwrap();
            assert_eq!(serde_json::from_str::<RunEffect>(&text).unwrap(), *effect);
        }
        assert_eq!(run.state(), self.state);
        assert_eq!(run.is_finished().is_some(), self.state.is_end());
        if timer && let Some(at) = run.next_wake() {
            assert!(at > now.boot, "the timer would spin");
        }
        assert!(run.next_wake().is_some() || self.state.is_end(), "a wait without an end");
        let report = run.report(now);
        assert_eq!(report.state, self.state);
        assert!(report.steps_done <= report.steps_total);
        assert!(report.replicated_bytes >= self.sent, "bytes that were sent are not forgotten");
        assert!(report.expected_bytes.is_none_or(|e| e >= report.replicated_bytes));
        assert!(report.attempts.len() <= 3);
        assert_eq!(report.sleep_until.is_some(), matches!(self.state, State::PlanningError | State::WorkingWait));
        self.sent = report.replicated_bytes;
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<dotgraft_engine::model::RunReport>(&text).unwrap(), report);
    }
}

/// Both sides, the wire between them and the run.
struct World {
    spec: RunSpec,
    run: Run,
    watch: Watch,
    now: Now,
    queue: Vec<RunEffect>,
    dice: Dice,
    /// Every commit that the sender ever made, oldest first, and those that it still has.
    history: Vec<CommitId>,
    local: Vec<CommitId>,
    next_commit: u64,
    receiver: Vec<CommitId>,
    partial: Option<ResumeToken>,
    cursor: Option<CommitId>,
    /// Where the run must end: the sender's newest when the first plan was made.
    target: Option<CommitId>,
    /// A send that answers nothing until it is cancelled.
    silent: Option<(u64, SendStep)>,
    /// What it answers then; `None`: never.
    last_word: Option<Result<SendOutcome, Reason>>,
}

impl World {
    fn new(spec: RunSpec, local: &[u64], receiver: &[u64], dice: Vec<u8>) -> Self {
        let now = at(1_000_000);
        let mut queue = Vec::new();
        let run = Run::start(spec.clone(), now, 1, &mut queue);
        let ids = |ns: &[u64]| ns.iter().map(|n| id(*n)).collect::<Vec<_>>();
        let mut watch = Watch::new();
        watch.check(&run, &queue, now, false);
        Self {
            run,
            watch,
            now,
            queue,
            dice: Dice(dice.into_iter()),
            history: ids(local),
            local: ids(local),
            next_commit: 10_000,
            receiver: ids(receiver),
            partial: None,
            cursor: spec.cursor,
            target: None,
            silent: None,
            last_word: None,
            spec,
        }
    }

    fn give(&mut self, event: RunEvent) {
        let before = self.queue.len();
        let timer = event == RunEvent::Timer;
        self.run.handle(event, self.now, &mut self.queue);
        self.watch.check(&self.run, &self.queue[before..], self.now, timer);
        for pin in self.run.pins() {
            assert!(self.local.contains(&pin), "it pins what is not there");
        }
        let note = |e: &RunEffect| matches!(e.kind, RunEffectKind::Moved { .. } | RunEffectKind::Note { .. });
        self.queue.retain(|e| !note(e));
    }

    fn list(commits: &[CommitId], role: VersionsRole) -> Versions {
        let commits = commits.iter().map(|c| dotgraft_engine::model::Commit { id: *c, ..commit(1) }).collect();
        Versions { commits, ..versions(role, &[]) }
    }

    /// The agent of the sender dies and comes back with what its journal has.
    fn crash(&mut self) {
        self.queue.clear();
        self.silent = None;
        self.target = None;
        self.spec.cursor = self.cursor;
        self.run = Run::start(self.spec.clone(), self.now, 2, &mut self.queue);
        self.watch = Watch::new();
    }

    /// Things that happen by themselves.
    fn weather(&mut self) {
        match self.dice.throw(12) {
            0 => {
                let new = id(self.next_commit);
                self.next_commit += 1;
                self.history.push(new);
                self.local.push(new);
                self.give(RunEvent::Wake);
            }
            1 => {
                let pins: BTreeSet<CommitId> = self.run.pins().into_iter().chain(self.cursor).collect();
                if let Some(at) = self.local.iter().position(|c| !pins.contains(c))
                    && at + 1 < self.local.len()
                {
                    self.local.remove(at);
                }
            }
            2 => self.crash(),
            3 => self.give(RunEvent::Wake),
            4 => self.give(RunEvent::SendDone { seq: 0, result: sent(1) }),
            5 => self.partial = None,
            _ => {}
        }
    }

    fn step(&mut self) {
        self.weather();
        if self.queue.is_empty() {
            if let Some(due) = self.run.next_wake() {
                self.now = not_before(self.now, due);
                self.give(RunEvent::Timer);
            }
            return;
        }
        let RunEffect { seq, kind } = self.queue.remove(0);
        match kind {
            RunEffectKind::List => self.on_list(seq),
            RunEffectKind::Estimate { step, .. } => match self.dice.throw(4) {
                0 => {}
                1 => self.give(RunEvent::Estimated { seq, step, bytes: None }),
                _ => self.give(RunEvent::Estimated { seq, step, bytes: Some(100) }),
            },
            RunEffectKind::Send(step) => self.on_send(seq, &step),
            RunEffectKind::CancelSend => self.on_cancel_send(seq),
            RunEffectKind::MoveCursor { to, .. } => self.on_move_cursor(seq, to),
            RunEffectKind::Moved { .. } | RunEffectKind::Note { .. } => {}
        }
    }

    fn on_list(&mut self, seq: u64) {
        let peer = match self.dice.throw(6) {
            0 => Err(problem(Reason::Unreachable)),
            1 => return,
            _ => Ok(Versions { resume: self.partial.clone(), ..Self::list(&self.receiver, VersionsRole::Replica) }),
        };
        let well = peer.is_ok();
        let listed = RunEvent::Listed { seq, local: Self::list(&self.local, VersionsRole::Owner), peer };
        self.give(listed.clone());
        self.give(listed); // twice does no harm
        if well && self.target.is_none() && !matches!(self.run.is_finished(), Some(Outcome::Failed(_))) {
            self.target = self.local.last().copied();
        }
    }

    fn on_send(&mut self, seq: u64, step: &SendStep) {
        assert!(self.local.contains(&step.to), "a pinned target is on the sender");
        assert!(step.from.is_none_or(|b| self.local.contains(&b)), "a pinned base is on the sender");
        if let Some(resume) = &step.resume {
            assert_eq!((resume.target, resume.base), (step.to, step.from));
        }
        let fail = |reason| RunEvent::SendDone { seq, result: Err(problem(reason)) };
        let offset = step.resume.as_ref().filter(|_| self.partial == step.resume).map_or(0, |r| r.offset);
        match self.dice.throw(11) {
            0 => self.give(fail(Reason::Unreachable)),
            1 => self.give(fail(Reason::Busy)),
            2 => {
                self.give(RunEvent::Progress { seq, bytes: offset + 10, resumed_from: offset });
                self.partial = Some(ResumeToken { target: step.to, base: step.from, offset: offset + 10, ..token(1, None, 0) });
                self.give(fail(Reason::Unreachable));
            }
            3 => {
                self.store(step);
                self.give(fail(Reason::Unreachable)); // the ack is lost
            }
            4 => (self.silent, self.last_word) = (Some((seq, step.clone())), Some(Err(Reason::Cancelled))),
            5 => (self.silent, self.last_word) = (Some((seq, step.clone())), Some(sent(5).map_err(|p| p.reason))),
            6 => (self.silent, self.last_word) = (Some((seq, step.clone())), None),
            7 => self.give(fail(Reason::BaseGone)),
            8 => self.give(fail(Reason::DigestMismatch)),
            9 => {
                self.give(RunEvent::Progress { seq, bytes: offset + 50, resumed_from: offset });
                self.silent = Some((seq, step.clone()));
                self.last_word = Some(Err(Reason::Timeout));
            }
            _ => {
                self.give(RunEvent::Progress { seq, bytes: offset + 50, resumed_from: offset });
                self.give(RunEvent::Verifying { seq });
                let already = self.store(step);
                let bytes_sent = if already { 0 } else { 100_u64.saturating_sub(offset).max(50) };
                self.give(RunEvent::SendDone { seq, result: Ok(SendOutcome { bytes_sent, already }) });
            }
        }
    }

    fn on_cancel_send(&mut self, seq: u64) {
        let Some((sending, step)) = self.silent.take() else { return };
        assert_eq!(sending, seq);
        match self.last_word.take() {
            Some(Ok(outcome)) => {
                self.store(&step);
                self.give(RunEvent::SendDone { seq, result: Ok(outcome) });
            }
            Some(Err(reason)) => self.give(RunEvent::SendDone { seq, result: Err(problem(reason)) }),
            None => {}
        }
    }

    /// The receiver's part; whether it had the commit before.
    fn store(&mut self, step: &SendStep) -> bool {
        if self.receiver.contains(&step.to) {
            return true;
        }
        assert_eq!(self.receiver.last().copied(), step.from, "an increment goes on its newest, a full one on none");
        self.receiver.push(step.to);
        self.partial = None;
        false
    }

    fn on_move_cursor(&mut self, seq: u64, to: CommitId) {
        assert!(self.receiver.contains(&to), "a cursor points at what is there");
        match self.dice.throw(5) {
            0 => {} // the journal did not get to it
            1 => {
                self.cursor = Some(to);
                self.give(RunEvent::CursorMoved { seq });
                self.give(RunEvent::CursorMoved { seq });
            }
            _ => {
                self.cursor = Some(to);
                self.give(RunEvent::CursorMoved { seq });
            }
        }
    }

    /// To the end, whatever the dice say.
    fn finish(&mut self) -> Outcome {
        for _ in 0..20_000 {
            if let Some(outcome) = self.run.is_finished() {
                return outcome.clone();
            }
            self.step();
        }
        panic!("it never ends: {:?}", self.run);
    }
}

fn histories() -> impl Strategy<Value = (Vec<u64>, Vec<u64>)> {
    // Each commit of one line is on the sender, the receiver, both or none; some tails are the receiver's own.
    (prop::collection::vec(0..4_u8, 0..12), prop::collection::vec(500..600_u64, 0..2), any::<bool>()).prop_map(
        |(line, foreign, related)| {
            let numbered = || line.iter().enumerate().map(|(n, has)| (n as u64 + 1, *has));
            let local: Vec<u64> = numbered().filter(|(_, has)| has & 1 != 0).map(|(n, _)| n).collect();
            // The receiver's is a prefix of the line: it was brought there by earlier runs.
            let cut = line.len() / 2;
            let mut receiver: Vec<u64> = numbered().take(cut).filter(|(_, has)| has & 2 != 0).map(|(n, _)| n).collect();
            if !related {
                receiver.extend(foreign);
            }
            (local, receiver)
        },
    )
}

fn policies() -> impl Strategy<Value = (Initial, Intermediate)> {
    (
        prop_oneof![Just(Initial::MostRecent), Just(Initial::All), Just(Initial::Fail)],
        prop_oneof![Just(Intermediate::All), Just(Intermediate::LatestOnly)],
    )
}

proptest! {
    #![proptest_config(config(1_500))]

    #[test]
    fn any_two_histories_end_prefix_consistent_and_completed_only_with_the_target_there(
        (local, receiver) in histories(),
        (initial, intermediate) in policies(),
        cursor in any::<bool>(),
        dice in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let common = receiver.last().filter(|n| local.contains(n)).map(|n| id(*n));
        let spec = RunSpec { initial, intermediate, cursor: common.filter(|_| cursor), ..spec() };
        let mut world = World::new(spec, &local, &receiver, dice);
        let before = world.receiver.clone();
        match world.finish() {
            Outcome::Completed { replicated, .. } => {
                prop_assert_eq!(Some(replicated), world.target, "it ends where it said");
                prop_assert!(world.receiver.contains(&replicated));
                prop_assert_eq!(world.cursor, Some(replicated));
                prop_assert!(world.receiver.starts_with(&before), "nothing there was touched");
                let brought: Vec<_> = world.receiver[before.len()..].to_vec();
                let at = |c: &CommitId| world.history.iter().position(|h| h == c).expect("one of the sender's");
                let order: Vec<usize> = brought.iter().map(at).collect();
                prop_assert!(order.windows(2).all(|w| w[0] < w[1]), "in the sender's order: {:?}", order);
                if intermediate == Intermediate::All
                    && let (Some(first), Some(last)) = (brought.first(), brought.last())
                {
                    let here: Vec<_> = world.local.iter().filter(|c| at(first) <= at(c) && at(c) <= at(last)).collect();
                    prop_assert!(here.iter().all(|c| brought.contains(c)), "none is left out");
                }
            }
            Outcome::Failed(problem) => match problem.reason {
                Reason::NoCommits => prop_assert!(world.local.is_empty()),
                Reason::InitialRefused => {
                    prop_assert!(initial == Initial::Fail && world.receiver.is_empty());
                }
                Reason::Diverged | Reason::NoCommonAncestor => {
                    let newest = world.receiver.last().expect("not empty");
                    prop_assert!(!world.local.contains(newest), "there was a path");
                }
                other => prop_assert!(false, "{:?} is not an end here", other),
            },
            Outcome::ContextDone(reason) => prop_assert!(false, "nobody cancelled: {:?}", reason),
        }
    }

    #[test]
    fn a_cancel_at_any_moment_ends_the_run_within_the_stop_time(
        (local, receiver) in histories(),
        dice in prop::collection::vec(any::<u8>(), 0..60),
        moment in 0..60_usize,
    ) {
        let mut world = World::new(RunSpec { initial: Initial::All, ..spec() }, &local, &receiver, dice);
        for _ in 0..moment {
            world.step();
        }
        if world.run.is_finished().is_none() {
            let asked = world.now;
            world.give(RunEvent::Cancel(CancelReason::Deleted));
            // From here on nobody answers at all.
            while let Some(due) = world.run.next_wake() {
                world.now = not_before(world.now, due);
                world.give(RunEvent::Timer);
            }
            prop_assert_eq!(world.run.is_finished(), Some(&Outcome::ContextDone(CancelReason::Deleted)));
            prop_assert!(world.now.boot.since_ms(asked.boot) <= dotgraft_engine::run::STOP_MS);
            prop_assert!(world.run.pins().is_empty());
        }
    }
}

// ---- arbitrary events ----

/// An event by numbers: `pick` chooses among the effects seen, so that many hit and many are stale.
#[derive(Debug, Clone)]
struct Op {
    kind: u8,
    pick: usize,
    number: u64,
    pass_ms: i64,
    ours: Vec<u64>,
    theirs: Vec<u64>,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let number = prop_oneof![0..200_u64, Just(u64::MAX), any::<u64>()];
    let pass = prop_oneof![0..5_000_i64, Just(61_000), Just(400_000), Just(-3_600_000), Just(i64::MAX / 4)];
    let commits = || prop::collection::vec(1..6_u64, 0..5);
    let op = (0..16_u8, 0..4_usize, number, pass, commits(), commits()).prop_map(|(kind, pick, number, pass_ms, ours, theirs)| Op {
        kind,
        pick,
        number,
        pass_ms,
        ours,
        theirs,
    });
    prop::collection::vec(op, 0..80)
}

fn event(op: &Op, seen: &[RunEffect]) -> RunEvent {
    let last = seen.len().saturating_sub(1).saturating_sub(op.pick);
    let effect = seen.get(last);
    let seq = effect.map_or(op.number, |e| e.seq);
    let roles = [VersionsRole::Owner, VersionsRole::Replica, VersionsRole::Absent, VersionsRole::Deleting];
    let reasons = [Reason::Busy, Reason::Unreachable, Reason::Denied, Reason::Cancelled, Reason::BaseGone];
    let reason = reasons[(op.number % 5) as usize];
    match op.kind {
        0..=4 => {
            let ours_role = if op.number % 11 == 3 { roles[(op.number % 4) as usize] } else { VersionsRole::Owner };
            let role = if op.number % 7 == 3 { roles[(op.number % 4) as usize] } else { VersionsRole::Replica };
            let mut peer = versions(role, &op.theirs);
            peer.resume = (op.number.is_multiple_of(3)).then(|| token(op.number % 6, op.theirs.last().copied(), op.number));
            peer.free_bytes = (op.number.is_multiple_of(5)).then_some(op.number);
            peer.epoch = Epoch(op.number % 13 / 12 * 9);
            let peer = if op.kind == 4 { Err(problem(reason)) } else { Ok(peer) };
            RunEvent::Listed { seq, local: versions(ours_role, &op.ours), peer }
        }
        5 => RunEvent::Estimated { seq, step: op.pick, bytes: (op.number.is_multiple_of(2)).then_some(op.number) },
        6 => RunEvent::Progress { seq, bytes: op.number, resumed_from: op.number / 2 },
        7 if op.number.is_multiple_of(3) => RunEvent::Alive { seq, silent_ms: op.number },
        7 => RunEvent::Verifying { seq },
        8 => RunEvent::SendDone { seq, result: Err(problem(reason)) },
        9 | 10 => RunEvent::SendDone { seq, result: Ok(SendOutcome { bytes_sent: op.number, already: op.number.is_multiple_of(2) }) },
        11 | 12 => RunEvent::CursorMoved { seq },
        13 => RunEvent::Wake,
        14 => RunEvent::Timer,
        _ if op.number.is_multiple_of(4) => RunEvent::Cancel(CancelReason::Suspended),
        _ => RunEvent::Timer,
    }
}

/// Plays the operations; the run, all its effects and its report after each event.
fn play(spec: &RunSpec, ops: &[Op], seed: u64) -> (Run, Vec<RunEffect>, Vec<String>) {
    let mut now = at(10_000_000);
    let mut out = Vec::new();
    let mut run = Run::start(spec.clone(), now, seed, &mut out);
    let mut watch = Watch::new();
    watch.check(&run, &out, now, false);
    let mut reports = Vec::new();
    for op in ops {
        // The wall clock may go either way, the boot clock goes on.
        let wall = Timestamp(now.wall.0.saturating_add(op.pass_ms).min(i64::MAX / 2));
        let boot = now.boot.plus_ms(u64::try_from(op.pass_ms).unwrap_or(0)).min(BootTime(u64::MAX / 2));
        now = Now { wall, boot };
        let asked: Vec<RunEffect> =
            out.iter().filter(|e| !matches!(e.kind, RunEffectKind::Moved { .. } | RunEffectKind::Note { .. })).cloned().collect();
        let event = event(op, &asked);
        let timer = event == RunEvent::Timer;
        let before = out.len();
        run.handle(event, now, &mut out);
        watch.check(&run, &out[before..], now, timer);
        reports.push(serde_json::to_string(&run.report(now)).unwrap());
    }
    (run, out, reports)
}

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn any_events_in_any_order_keep_to_the_table_and_never_panic(
        ops in ops(),
        (initial, intermediate) in policies(),
        max_attempts in prop::option::of(0..4_u32),
        deadline_ms in prop::option::of(0..1_000_000_u64),
    ) {
        let spec = RunSpec { initial, intermediate, retry: Retry { max_attempts, deadline_ms }, ..spec() };
        let text = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(&serde_json::from_str::<RunSpec>(&text).unwrap(), &spec);
        let (run, _, _) = play(&spec, &ops, 1);
        if let Some(outcome) = run.is_finished() {
            let text = serde_json::to_string(outcome).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
        }
        if let Some(max) = max_attempts {
            prop_assert!(run.report(at(500)).attempt <= max.max(1));
        }
    }

    #[test]
    fn the_same_events_and_seed_make_the_same_effects_and_the_same_report_to_the_byte(
        ops in ops(),
        seed in any::<u64>(),
    ) {
        let spec = spec();
        let (first, effects, reports) = play(&spec, &ops, seed);
        let (second, effects_again, reports_again) = play(&spec, &ops, seed);
        prop_assert_eq!(first, second);
        prop_assert_eq!(serde_json::to_string(&effects).unwrap(), serde_json::to_string(&effects_again).unwrap());
        prop_assert_eq!(reports, reports_again);
    }
}
