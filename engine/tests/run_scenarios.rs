//! One run, event by event: the list of replication.md §6 and every wait's end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod run_support;

use dotgraft_engine::ids::Timestamp;
use dotgraft_engine::model::Reason;
use dotgraft_engine::run::{
    CancelReason, DENIED_ATTEMPTS, ESTIMATE_WAIT_MS, ESTIMATES_AT_ONCE, Initial, ItemState, NoteReason, Outcome, PROGRESS_MS, Retry,
    RunEffectKind, RunEvent, RunSpec, SILENT_MS, STOP_MS, State, StepState, VERIFY_MS,
};
use run_support::*;

fn retry(max_attempts: Option<u32>, deadline_ms: Option<u64>) -> RunSpec {
    RunSpec { retry: Retry { max_attempts, deadline_ms }, ..spec() }
}

/// A run that is sending commit 2 onto 1; returns the send's seq.
fn sending(spec: RunSpec) -> (Rig, u64) {
    let mut rig = Rig::start(RunSpec { cursor: Some(id(1)), ..spec });
    rig.listed(&sender(&[1, 2]), &receiver(&[1]));
    let (seq, step) = rig.sending();
    assert_eq!((step.from, step.to), (Some(id(1)), id(2)));
    (rig, seq)
}

// ---- the happy path ----

#[test]
fn a_first_copy_and_its_increments_reach_the_receiver_and_the_cursor() {
    let mut rig = Rig::start(RunSpec { initial: Initial::All, ..spec() });
    assert_eq!(rig.run.state(), State::Planning);
    rig.listed(&sender(&[1, 2, 3]), &receiver(&[]));
    assert_eq!(rig.run.pins(), [id(1), id(2), id(3)].into());
    let mut froms = Vec::new();
    for n in 1..=3_u32 {
        assert_eq!(rig.report().steps_done, n - 1);
        froms.push(rig.do_step(10).from);
    }
    assert_eq!(froms, [None, Some(id(1)), Some(id(2))]);
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(3), bytes: 30, steps: 3 });
    assert!(rig.run.pins().is_empty());
    assert!(rig.run.next_wake().is_none());
    rig.effects();
    assert_eq!(rig.moves, [(State::Planning, State::Working), (State::Working, State::Completed)]);
}

#[test]
fn up_to_date_is_a_success_with_zero_steps_and_no_transfer() {
    let mut rig = Rig::start(RunSpec { cursor: Some(id(2)), ..spec() });
    rig.listed(&sender(&[1, 2]), &receiver(&[1, 2]));
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(2), bytes: 0, steps: 0 });
    assert_eq!(rig.effects(), vec![]);
    let report = rig.report();
    assert_eq!((report.steps_total, report.expected_bytes, report.imprecise), (0, Some(0), false));
}

#[test]
fn done_steps_give_their_pins_back_one_by_one() {
    let mut rig = Rig::start(RunSpec { cursor: Some(id(1)), ..spec() });
    rig.listed(&sender(&[1, 2, 3]), &receiver(&[1]));
    assert_eq!(rig.run.pins(), [id(1), id(2), id(3)].into());
    rig.do_step(1);
    assert_eq!(rig.run.pins(), [id(2), id(3)].into());
    rig.do_step(1);
    assert!(rig.run.pins().is_empty());
}

// ---- §6, the list ----

#[test]
fn test_1_a_step_that_times_out_is_transferred_by_attempt_2() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Timeout)) });
    assert_eq!(rig.run.state(), State::WorkingWait);
    assert!(rig.run.pins().contains(&id(2)), "a sleeping run keeps its plan's commits");
    rig.effects();
    rig.sleep();
    assert_eq!(rig.run.state(), State::Planning);
    rig.listed(&sender(&[1, 2]), &receiver(&[1]));
    assert_eq!(rig.do_step(7).to, id(2));
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(2), bytes: 7, steps: 1 });
    assert_eq!(rig.report().attempt, 2);
}

#[test]
fn test_2_a_timeout_while_planning_is_retried() {
    let mut rig = Rig::start(spec());
    let stale = rig.list_seq();
    let slept = rig.sleep();
    assert_eq!(slept, PROGRESS_MS);
    assert_eq!(rig.run.state(), State::PlanningError);
    let report = rig.report();
    assert_eq!(report.problem.as_ref().map(|p| p.reason), Some(Reason::Timeout));
    let due = rig.run.next_wake().expect("it sleeps");
    assert_eq!(report.sleep_until, Some(not_before(rig.now, due).wall), "both are shown");
    rig.sleep();
    rig.give(RunEvent::Listed { seq: stale, local: sender(&[9]), peer: Ok(receiver(&[])) });
    assert_eq!(rig.run.state(), State::Planning, "the late answer is not taken for the new one");
    rig.listed(&sender(&[1]), &receiver(&[]));
    rig.do_step(1);
    assert!(matches!(rig.outcome(), Outcome::Completed { .. }));
}

#[test]
fn test_3_a_sender_without_commits_ends_typed_whatever_initial_says() {
    for initial in [Initial::MostRecent, Initial::All, Initial::Fail] {
        let mut rig = Rig::start(RunSpec { initial, ..spec() });
        rig.listed(&sender(&[]), &receiver(&[]));
        assert_eq!(rig.failed_with(), Reason::NoCommits, "{initial:?}");
        assert_eq!(rig.run.state(), State::Completed);
        assert_eq!(rig.run.item_state(), ItemState::PermanentError);
    }
}

#[test]
fn test_4_a_partial_receive_whose_target_vanished_is_dropped_with_an_event() {
    let mut rig = Rig::start(spec());
    let mut peer = receiver(&[1]);
    peer.resume = Some(token(2, Some(1), 64 * MIB));
    rig.listed(&sender(&[1, 3]), &peer);
    assert!(rig.noted(NoteReason::PartialDiscarded));
    let (seq, to) = rig.moving();
    assert_eq!(to, id(1), "the cursor catches up");
    rig.give(RunEvent::CursorMoved { seq });
    let step = rig.do_step(5);
    assert_eq!((step.from, step.to, step.resume), (Some(id(1)), id(3), None));
    assert!(matches!(rig.outcome(), Outcome::Completed { .. }));
}

#[test]
fn test_5_max_attempts_mean_what_they_say() {
    // (maxAttempts, attempts made)
    for (max, want) in [(Some(0), 1), (Some(1), 1), (Some(2), 2), (Some(5), 5), (None, 200)] {
        let mut rig = Rig::start(retry(max, None));
        let mut made = 0;
        while rig.run.is_finished().is_none() && made < 200 {
            rig.listing_failed(Reason::Unreachable);
            made += 1;
            if rig.run.is_finished().is_none() {
                assert_eq!(rig.run.state(), State::PlanningError);
                rig.sleep();
            }
        }
        assert_eq!(made, want, "maxAttempts {max:?}");
        assert_eq!(rig.run.is_finished().is_some(), max.is_some(), "maxAttempts {max:?}");
        if max.is_some() {
            assert_eq!(rig.failed_with(), Reason::Unreachable);
            assert_eq!(rig.run.state(), State::Completed);
        }
        assert!(rig.report().attempts.len() <= 3);
    }
}

#[test]
fn test_5_max_attempts_count_failed_steps_too() {
    let (mut rig, seq) = sending(retry(Some(2), None));
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Busy)) });
    rig.sleep();
    let (seq, _) = rig.sending();
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Busy)) });
    assert_eq!(rig.failed_with(), Reason::Busy);
}

#[test]
fn test_8_the_receivers_error_ends_the_send_at_once_and_is_the_one_reported() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Progress { seq, bytes: 5, resumed_from: 0 });
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::CorruptStream)) });
    assert_eq!(rig.failed_with(), Reason::CorruptStream);
    let report = rig.report();
    assert_eq!(report.problem.map(|p| p.reason), Some(Reason::CorruptStream));
    assert_eq!(report.replicated_bytes, 5);
    assert!(!rig.effects().iter().any(|e| e.kind == RunEffectKind::CancelSend), "it has ended already");
}

#[test]
fn test_9_after_a_lost_ack_the_next_run_only_moves_the_cursor() {
    let mut rig = Rig::start(RunSpec { cursor: Some(id(1)), ..spec() });
    rig.listed(&sender(&[1, 2]), &receiver(&[1, 2]));
    let (seq, to) = rig.moving();
    assert_eq!(to, id(2));
    assert_eq!(rig.run.state(), State::Working);
    rig.give(RunEvent::CursorMoved { seq });
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(2), bytes: 0, steps: 0 });
}

#[test]
fn test_9_after_a_lost_ack_the_same_run_finds_the_commit_too() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Progress { seq, bytes: 100, resumed_from: 0 });
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Unreachable)) });
    rig.effects();
    rig.sleep();
    rig.listed(&sender(&[1, 2]), &receiver(&[1, 2]));
    let (seq, to) = rig.moving();
    assert_eq!(to, id(2));
    rig.give(RunEvent::CursorMoved { seq });
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(2), bytes: 100, steps: 0 });
}

#[test]
fn test_12_a_foreign_token_is_never_sent_on() {
    for foreign in [token(77, Some(1), 9), token(2, Some(77), 9), token(2, None, 9)] {
        let mut rig = Rig::start(RunSpec { cursor: Some(id(1)), ..spec() });
        let mut peer = receiver(&[1]);
        peer.resume = Some(foreign);
        rig.listed(&sender(&[1, 2]), &peer);
        let (_, step) = rig.sending();
        assert_eq!((step.from, step.to, step.resume), (Some(id(1)), id(2), None));
        assert!(rig.noted(NoteReason::PartialDiscarded));
    }
}

// ---- resume, targets, retries ----

#[test]
fn a_retry_resumes_from_the_receivers_checkpoint() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Progress { seq, bytes: 200 * MIB, resumed_from: 0 });
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Unreachable)) });
    assert_eq!(rig.report().current.map(|c| (c.state, c.replicated)), Some((StepState::Retry, 200 * MIB)));
    rig.effects();
    rig.give(RunEvent::Wake);
    let mut peer = receiver(&[1]);
    peer.resume = Some(token(2, Some(1), 192 * MIB));
    rig.listed(&sender(&[1, 2]), &peer);
    let (seq, step) = rig.sending();
    assert_eq!(step.resume.map(|r| r.offset), Some(192 * MIB));
    rig.give(RunEvent::Progress { seq, bytes: 300 * MIB, resumed_from: 192 * MIB });
    let report = rig.report();
    assert_eq!(report.replicated_bytes, 308 * MIB, "all attempts, without the prefix");
    let current = report.current.expect("a step is in hand");
    assert!(current.resumed);
    assert_eq!(current.replicated, 300 * MIB);
    rig.give(RunEvent::SendDone { seq, result: sent(108 * MIB) });
    let (seq, _) = rig.moving();
    assert_eq!(rig.report().replicated_bytes, 308 * MIB);
    rig.give(RunEvent::CursorMoved { seq });
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(2), bytes: 308 * MIB, steps: 1 });
}

#[test]
fn a_retry_still_ends_at_the_same_target() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Unreachable)) });
    rig.effects();
    rig.sleep();
    rig.listed(&sender(&[1, 2, 3, 4]), &receiver(&[1]));
    assert_eq!(rig.do_step(1).to, id(2));
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(2), bytes: 1, steps: 1 });
}

#[test]
fn a_target_that_is_gone_is_replaced_by_the_newest_with_an_event() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::BaseGone)) });
    assert_eq!(rig.run.state(), State::WorkingWait, "base gone: plan anew, not the end");
    rig.effects();
    rig.sleep();
    rig.listed(&sender(&[1, 3]), &receiver(&[1]));
    assert!(rig.noted(NoteReason::TargetGone));
    assert_eq!(rig.do_step(1).to, id(3));
    assert!(matches!(rig.outcome(), Outcome::Completed { replicated, .. } if *replicated == id(3)));
}

#[test]
fn a_busy_receiver_is_asked_again_without_a_new_plan() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Busy)) });
    rig.effects();
    rig.sleep();
    assert_eq!(rig.run.state(), State::Working);
    let (_, step) = rig.sending();
    assert_eq!(step.to, id(2));
    assert_eq!(rig.moves.last(), Some(&(State::WorkingWait, State::Working)));
}

#[test]
fn a_receiver_that_turns_busy_after_bytes_may_have_a_checkpoint_so_both_are_listed_anew() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Progress { seq, bytes: 1, resumed_from: 0 });
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Busy)) });
    rig.effects();
    rig.sleep();
    assert_eq!(rig.run.state(), State::Planning);
}

#[test]
fn results_with_another_number_are_dropped() {
    let (mut rig, seq) = sending(spec());
    let before = rig.run.clone();
    for wrong in [0, seq - 1, seq + 1] {
        rig.give(RunEvent::SendDone { seq: wrong, result: sent(1) });
        rig.give(RunEvent::Progress { seq: wrong, bytes: 7, resumed_from: 0 });
        rig.give(RunEvent::Verifying { seq: wrong });
        rig.give(RunEvent::Estimated { seq: wrong, step: 0, bytes: Some(9) });
        rig.give(RunEvent::CursorMoved { seq: wrong });
    }
    assert_eq!(rig.run, before);
    rig.give(RunEvent::SendDone { seq, result: sent(1) });
    let (seq, _) = rig.moving();
    let before = rig.run.clone();
    rig.give(RunEvent::CursorMoved { seq: seq + 1 });
    assert_eq!(rig.run, before);
}

#[test]
fn errors_that_mean_a_stale_plan_are_followed_by_a_new_one() {
    for reason in [Reason::BaseGone, Reason::StaleEpoch, Reason::Pinned, Reason::NotFound, Reason::DigestMismatch] {
        let (mut rig, seq) = sending(spec());
        rig.give(RunEvent::SendDone { seq, result: Err(problem(reason)) });
        rig.effects();
        rig.sleep();
        assert_eq!(rig.run.state(), State::Planning, "{reason:?}");
    }
}

#[test]
fn a_peer_that_shuts_down_says_cancelled_and_that_is_temporary() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Cancelled)) });
    assert_eq!(rig.run.state(), State::WorkingWait);
}

#[test]
fn sleeps_grow_while_nothing_is_done_and_start_small_after_a_step() {
    let mut rig = Rig::start(RunSpec { initial: Initial::All, ..spec() });
    let mut sleeps = Vec::new();
    for _ in 0..9 {
        rig.listing_failed(Reason::Unreachable);
        sleeps.push(rig.sleep());
    }
    assert!(sleeps[0] <= 500 && sleeps[4] >= 4_000 && sleeps[8] >= 30_000, "{sleeps:?}");
    assert!(sleeps.iter().all(|s| *s <= 60_000));
    rig.listed(&sender(&[1, 2]), &receiver(&[]));
    rig.do_step(1);
    let (seq, _) = rig.sending();
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Unreachable)) });
    assert!(rig.sleep() <= 500);
}

#[test]
fn a_wake_ends_a_sleep_at_once_and_nothing_else() {
    let mut rig = Rig::start(spec());
    rig.give(RunEvent::Wake);
    assert_eq!(rig.run.state(), State::Planning);
    rig.listing_failed(Reason::NotPlaced);
    rig.give(RunEvent::Wake);
    assert_eq!(rig.run.state(), State::Planning);
    assert_eq!(rig.report().attempt, 2);
    rig.listed(&sender(&[1]), &receiver(&[]));
    let (seq, _) = rig.sending();
    rig.give(RunEvent::Wake);
    assert!(rig.effects().is_empty(), "a send under way is left alone");
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Busy)) });
    rig.effects();
    rig.give(RunEvent::Wake);
    assert_eq!(rig.run.state(), State::Working);
}

// ---- every wait ends ----

#[test]
fn a_silent_send_is_stopped_and_retried() {
    let (mut rig, seq) = sending(spec());
    rig.pass(PROGRESS_MS - 1);
    rig.give(RunEvent::Progress { seq, bytes: 0, resumed_from: 0 });
    assert_eq!(rig.sleep(), PROGRESS_MS, "a message without a byte counts too");
    let effects = rig.effects();
    assert!(effects.iter().any(|e| e.seq == seq && e.kind == RunEffectKind::CancelSend));
    assert_eq!(rig.run.state(), State::Working, "until the send has confirmed");
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Cancelled)) });
    assert_eq!(rig.run.state(), State::WorkingWait);
    assert_eq!(rig.report().problem.map(|p| p.reason), Some(Reason::Timeout));
}

#[test]
fn a_send_whose_kernel_reads_without_a_byte_goes_on_and_says_so() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Progress { seq, bytes: 7, resumed_from: 0 });
    for n in 1..=30_u64 {
        rig.pass(PROGRESS_MS - 1);
        rig.give(RunEvent::Alive { seq, silent_ms: n * (PROGRESS_MS - 1) });
    }
    assert!(rig.effects().is_empty(), "half an hour without a byte, but not without a word");
    let current = rig.report().current.unwrap();
    assert_eq!((current.silent_seconds, current.replicated), (Some(30 * (PROGRESS_MS - 1) / 1_000), 7));
    rig.give(RunEvent::Progress { seq, bytes: 8, resumed_from: 0 });
    assert_eq!(rig.report().current.unwrap().silent_seconds, None, "bytes flow again");
    rig.give(RunEvent::Alive { seq, silent_ms: SILENT_MS - 1 });
    assert_eq!(rig.report().current.unwrap().silent_seconds, None, "not worth a word");
    assert_eq!(rig.sleep(), PROGRESS_MS, "and without a word it is stopped as ever");
    assert!(rig.effects().iter().any(|e| e.seq == seq && e.kind == RunEffectKind::CancelSend));
    rig.give(RunEvent::Alive { seq, silent_ms: 99_000 });
    assert_eq!(rig.sleep(), STOP_MS, "what is told to stop does not live on by saying that it lives");
    assert_eq!(rig.report().current.unwrap().silent_seconds, None);
}

#[test]
fn a_word_of_life_of_another_send_or_while_verifying_puts_nothing_off() {
    let (mut rig, seq) = sending(spec());
    rig.pass(PROGRESS_MS - 1);
    rig.give(RunEvent::Alive { seq: seq + 1, silent_ms: 20_000 });
    assert_eq!(rig.report().current.unwrap().silent_seconds, None);
    rig.give(RunEvent::Verifying { seq });
    rig.pass(VERIFY_MS - 1);
    rig.give(RunEvent::Alive { seq, silent_ms: 20_000 });
    assert_eq!(rig.sleep(), 1);
    assert!(rig.effects().iter().any(|e| e.kind == RunEffectKind::CancelSend));
}

#[test]
fn a_send_that_does_not_even_stop_is_given_up_with_an_event() {
    let (mut rig, _) = sending(spec());
    rig.sleep();
    assert_eq!(rig.sleep(), STOP_MS);
    assert!(rig.noted(NoteReason::SendStuck));
    assert_eq!(rig.run.state(), State::WorkingWait);
}

#[test]
fn a_send_that_succeeds_while_it_is_stopped_for_silence_counts() {
    let (mut rig, seq) = sending(spec());
    rig.sleep();
    rig.effects();
    rig.give(RunEvent::SendDone { seq, result: sent(3) });
    let (seq, to) = rig.moving();
    assert_eq!(to, id(2));
    rig.give(RunEvent::CursorMoved { seq });
    assert!(matches!(rig.outcome(), Outcome::Completed { .. }));
}

#[test]
fn verifying_may_take_longer_but_not_for_ever() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Verifying { seq });
    assert_eq!(rig.report().current.map(|c| c.state), Some(StepState::Verifying));
    assert_eq!(rig.sleep(), VERIFY_MS);
    assert!(rig.effects().iter().any(|e| e.kind == RunEffectKind::CancelSend));
}

#[test]
fn a_cursor_that_does_not_move_is_an_error_and_found_by_the_next_attempt() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: sent(3) });
    let (late, _) = rig.moving();
    assert_eq!(rig.sleep(), PROGRESS_MS);
    assert_eq!(rig.run.state(), State::WorkingWait);
    rig.give(RunEvent::CursorMoved { seq: late });
    assert_eq!(rig.run.state(), State::WorkingWait, "stale");
    rig.sleep();
    rig.listed(&sender(&[1, 2]), &receiver(&[1, 2]));
    let (seq, to) = rig.moving();
    assert_eq!(to, id(2));
    rig.give(RunEvent::CursorMoved { seq });
    assert!(matches!(rig.outcome(), Outcome::Completed { .. }));
}

#[test]
fn a_missing_estimate_delays_the_first_send_by_a_bounded_time_only() {
    let mut rig = Rig::start(spec());
    rig.listed(&sender(&[1]), &receiver(&[]));
    assert_eq!(rig.run.state(), State::Planning);
    let asked = rig.effects();
    assert!(asked.iter().all(|e| matches!(e.kind, RunEffectKind::Estimate { .. })));
    assert_eq!(rig.sleep(), ESTIMATE_WAIT_MS);
    let effects: Vec<_> = rig.effects().into_iter().map(|e| e.kind).collect();
    let RunEffectKind::Send(step) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(step.expected, None);
    assert!(rig.report().imprecise);
    rig.give(RunEvent::Estimated { seq: asked[0].seq, step: 0, bytes: Some(500) });
    assert_eq!(rig.report().expected_bytes, Some(500), "a late one is still of use");
    assert!(!rig.report().imprecise);
}

#[test]
fn estimates_are_asked_for_a_few_at_a_time_and_once_only() {
    let mut rig = Rig::start(RunSpec { initial: Initial::All, ..spec() });
    let all: Vec<u64> = (1..=20).collect();
    rig.listed(&sender(&all), &receiver(&[]));
    let first = rig.effects();
    assert_eq!(first.len(), ESTIMATES_AT_ONCE);
    for e in first {
        let RunEffectKind::Estimate { step, .. } = e.kind else { panic!("{e:?}") };
        rig.give(RunEvent::Estimated { seq: e.seq, step, bytes: Some(10) });
    }
    let rest = rig.estimate_all(Some(10));
    assert_eq!(rig.report().expected_bytes, Some(200));
    let send = rest.iter().find(|e| matches!(e.kind, RunEffectKind::Send(_))).expect("sending meanwhile");
    rig.give(RunEvent::SendDone { seq: send.seq, result: Err(problem(Reason::Unreachable)) });
    rig.effects();
    rig.sleep();
    rig.listed(&sender(&all), &receiver(&[]));
    assert!(rig.effects().iter().all(|e| !matches!(e.kind, RunEffectKind::Estimate { .. })), "known sizes are kept");
}

#[test]
fn too_little_space_is_said_before_a_byte_is_sent_and_looked_at_anew() {
    let mut rig = Rig::start(spec());
    let mut peer = receiver(&[]);
    peer.free_bytes = Some(99);
    rig.listed(&sender(&[1]), &peer);
    let rest = rig.estimate_all(Some(100));
    assert!(rest.is_empty(), "nothing is sent: {rest:?}");
    assert_eq!(rig.report().problem.map(|p| p.reason), Some(Reason::NoSpace));
    rig.sleep();
    peer.free_bytes = Some(100);
    rig.listed(&sender(&[1]), &peer);
    assert_eq!(rig.do_step(100).expected, Some(100));
    assert!(matches!(rig.outcome(), Outcome::Completed { .. }));
}

#[test]
fn the_deadline_ends_the_run_in_every_state() {
    // sleeping
    let mut rig = Rig::start(retry(None, Some(120_000)));
    while rig.run.is_finished().is_none() {
        if rig.run.state() == State::Planning {
            rig.listing_failed(Reason::Unreachable);
        }
        rig.sleep();
    }
    assert_eq!(*rig.outcome(), Outcome::ContextDone(CancelReason::DeadlinePassed));
    assert_eq!(rig.now, at(1_000_000 + 120_000), "not a moment later");
    // sending: the send is stopped first
    let (mut rig, seq) = sending(retry(None, Some(10_000)));
    rig.sleep();
    assert!(rig.effects().iter().any(|e| e.kind == RunEffectKind::CancelSend));
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Cancelled)) });
    assert_eq!(*rig.outcome(), Outcome::ContextDone(CancelReason::DeadlinePassed));
    // at once
    let mut rig = Rig::start(retry(None, Some(0)));
    rig.give(RunEvent::Timer);
    assert_eq!(*rig.outcome(), Outcome::ContextDone(CancelReason::DeadlinePassed));
    let told = rig.run.report(rig.now).problem.expect("why it ended");
    assert_eq!(told.reason, Reason::Timeout, "Cancelled is who was stopped, and is owed still");
}

#[test]
fn cancelling_is_looked_at_in_every_state() {
    let by_state: Vec<(&str, Rig)> = vec![
        ("listing", Rig::start(spec())),
        ("planning error", {
            let mut rig = Rig::start(spec());
            rig.listing_failed(Reason::Unreachable);
            rig
        }),
        ("estimating", {
            let mut rig = Rig::start(spec());
            rig.listed(&sender(&[1]), &receiver(&[]));
            rig
        }),
        ("moving the cursor", {
            let (mut rig, seq) = sending(spec());
            rig.give(RunEvent::SendDone { seq, result: sent(1) });
            rig
        }),
        ("working wait", {
            let (mut rig, seq) = sending(spec());
            rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Busy)) });
            rig
        }),
    ];
    for (what, mut rig) in by_state {
        rig.give(RunEvent::Cancel(CancelReason::Suspended));
        assert_eq!(*rig.outcome(), Outcome::ContextDone(CancelReason::Suspended), "{what}");
        assert_eq!(rig.run.state(), State::ContextDone, "{what}");
        assert!(rig.run.pins().is_empty(), "{what}");
    }
}

#[test]
fn a_cancelled_send_is_waited_for_and_the_strongest_reason_is_reported() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Cancel(CancelReason::Suspended));
    let stops = rig.effects().into_iter().filter(|e| e.kind == RunEffectKind::CancelSend).count();
    assert_eq!(stops, 1);
    assert!(rig.run.is_finished().is_none());
    assert!(rig.run.pins().contains(&id(1)), "pinned while the send still reads them");
    rig.give(RunEvent::Cancel(CancelReason::Deleted));
    rig.give(RunEvent::Cancel(CancelReason::Suspended));
    assert!(rig.effects().is_empty(), "it is told once");
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Cancelled)) });
    assert_eq!(*rig.outcome(), Outcome::ContextDone(CancelReason::Deleted));
}

#[test]
fn a_cancelled_send_that_never_confirms_ends_bounded() {
    let (mut rig, _) = sending(spec());
    rig.give(RunEvent::Cancel(CancelReason::Deleted));
    assert_eq!(rig.sleep(), STOP_MS);
    assert_eq!(*rig.outcome(), Outcome::ContextDone(CancelReason::Deleted));
    assert!(rig.noted(NoteReason::SendStuck));
}

#[test]
fn what_arrived_before_the_cancel_stays_in_the_report() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::Cancel(CancelReason::Suspended));
    rig.give(RunEvent::SendDone { seq, result: sent(9) });
    assert_eq!(*rig.outcome(), Outcome::ContextDone(CancelReason::Suspended));
    assert_eq!(rig.report().replicated, Some(id(2)));
    assert_eq!(rig.report().replicated_bytes, 9);
}

#[test]
fn a_clock_that_goes_back_an_hour_does_not_lengthen_a_sleep() {
    let mut rig = Rig::start(spec());
    rig.listing_failed(Reason::Unreachable);
    rig.now.wall = Timestamp(rig.now.wall.0 - 3_600_000);
    rig.give(RunEvent::Timer);
    assert!(rig.sleep() <= 500);
    assert_eq!(rig.run.state(), State::Planning);
}

// ---- the report ----

#[test]
fn a_report_after_the_end_does_not_change() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Invalid)) });
    let report = rig.report();
    rig.pass(3_600_000);
    for event in [
        RunEvent::Wake,
        RunEvent::Timer,
        RunEvent::Cancel(CancelReason::Deleted),
        RunEvent::Progress { seq, bytes: 99, resumed_from: 0 },
        RunEvent::SendDone { seq, result: sent(1) },
    ] {
        rig.give(event);
    }
    assert_eq!(rig.report(), report);
    assert_eq!(report.state, State::Completed);
    assert_eq!(report.problem.map(|p| p.reason), Some(Reason::Invalid));
}

#[test]
fn a_diverged_receiver_is_reported_with_both_tails() {
    let mut rig = Rig::start(spec());
    rig.listed(&sender(&[1, 2]), &receiver(&[1, 8]));
    assert_eq!(rig.failed_with(), Reason::Diverged);
    let conflict = rig.report().conflict.expect("typed");
    assert_eq!((conflict.base, conflict.sender_only, conflict.receiver_only), (Some(id(1)), vec![id(2)], vec![id(8)]));
}

#[test]
fn an_error_is_cleared_on_success_but_the_attempt_keeps_it() {
    let mut rig = Rig::start(spec());
    rig.listing_failed(Reason::Unreachable);
    rig.sleep();
    assert_eq!(rig.report().problem, None);
    rig.listed(&sender(&[1]), &receiver(&[]));
    rig.do_step(1);
    let report = rig.report();
    assert_eq!(report.problem, None);
    assert_eq!(report.resolution.as_deref(), Some(format!("start at most recent commit {}", id(1)).as_str()));
    let attempts: Vec<_> = report.attempts.iter().map(|a| (a.state, a.error.is_some())).collect();
    assert_eq!(attempts, [(State::PlanningError, true), (State::Completed, false)]);
}

#[test]
fn bytes_per_second_are_of_the_last_seconds() {
    let (mut rig, seq) = sending(spec());
    for n in 1..=20 {
        rig.pass(1_000);
        rig.give(RunEvent::Progress { seq, bytes: n * 3 * MIB, resumed_from: 0 });
    }
    assert_eq!(rig.report().bytes_per_second, Some(3 * MIB));
    rig.pass(20_000);
    assert_eq!(rig.report().bytes_per_second, Some(0));
}

#[test]
fn the_same_error_again_and_again_is_one_event_for_people() {
    let mut rig = Rig::start(spec());
    for _ in 0..10 {
        rig.listing_failed(Reason::Unreachable);
        rig.sleep();
    }
    rig.listing_failed(Reason::NotPlaced);
    rig.effects();
    let failed: Vec<_> = rig.notes.iter().filter(|(r, _)| *r == NoteReason::AttemptFailed).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
}

#[test]
fn a_copy_that_is_being_made_is_no_news_and_one_that_never_comes_is() {
    let mut rig = Rig::start(spec());
    for told in [0, 0, 0, 1, 1, 1] {
        rig.listing_failed(Reason::NotPlaced);
        rig.effects();
        let failed = rig.notes.iter().filter(|(r, _)| *r == NoteReason::AttemptFailed).count();
        assert_eq!(failed, told);
        rig.sleep();
    }
}

#[test]
fn a_denial_is_tried_again_but_not_for_ever() {
    // An operator that lists a first certificate late must not end a one-shot run for good; a revoked peer must.
    let mut rig = Rig::start(spec());
    for _ in 1..DENIED_ATTEMPTS {
        rig.listing_failed(Reason::Denied);
        rig.sleep();
    }
    rig.listing_failed(Reason::Unreachable);
    rig.sleep();
    let mut slept = 0;
    for _ in 1..DENIED_ATTEMPTS {
        rig.listing_failed(Reason::Denied);
        slept += rig.sleep();
    }
    assert!(slept >= 60_000, "it gave up after {slept} ms");
    rig.listing_failed(Reason::Denied);
    assert_eq!(rig.failed_with(), Reason::Denied);
}

#[test]
fn a_denial_that_is_over_leaves_a_complete_run() {
    let mut rig = Rig::start(spec());
    rig.listing_failed(Reason::Denied);
    rig.sleep();
    rig.listed(&sender(&[1]), &receiver(&[]));
    rig.do_step(1);
    assert!(matches!(rig.outcome(), Outcome::Completed { .. }));
}

#[test]
fn a_finished_run_asks_for_nothing() {
    let (mut rig, seq) = sending(spec());
    rig.give(RunEvent::SendDone { seq, result: Err(problem(Reason::Invalid)) });
    let kinds: Vec<_> = rig.effects().into_iter().map(|e| e.kind).collect();
    assert!(kinds.is_empty(), "{kinds:?}");
    assert_eq!(rig.run.next_wake(), None);
}

#[test]
fn older_commits_are_brought_and_move_no_cursor() {
    use dotgraft_engine::ids::RequestUid;
    use dotgraft_engine::model::Commit;
    let kept = |v: dotgraft_engine::model::Versions| {
        let commits = v.commits.into_iter().map(|c| Commit { kept: Some(RequestUid::from_uuid(c.id.uuid())), ..c }).collect();
        dotgraft_engine::model::Versions { commits, ..v }
    };
    let mut rig = Rig::start(RunSpec { initial: Initial::All, cursor: Some(id(3)), ..spec() });
    rig.listed(&kept(sender(&[1, 2, 3])), &kept(receiver(&[3])));
    for _ in 0..2 {
        let (seq, step) = rig.sending();
        assert!(rig.run.pins().contains(&step.to) && rig.run.pins().contains(&step.from.unwrap()));
        rig.give(RunEvent::SendDone { seq, result: sent(1) });
        let (seq, to) = rig.moving();
        assert_eq!(to, id(3), "the cursor stays at the newest");
        rig.give(RunEvent::CursorMoved { seq });
    }
    assert_eq!(*rig.outcome(), Outcome::Completed { replicated: id(3), bytes: 2, steps: 2 });
}
