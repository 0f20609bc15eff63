//! Any value of every record that is kept or sent: strategies for round trips, here and in the agent's tests of files and messages.

#![allow(dead_code, reason = "each test takes the records that it is about")]

use dotgraft_engine::filesystem::{
    Base, CheckpointRow, Handoff, Life, MigrationPhase, MigrationRow, Opened, OriginPinRow, PartialRow, PartyRow, RequestRow, RequestState,
    Role,
};
use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::{Epoch, NodeName, Timestamp};
use dotgraft_engine::model::{AttemptReport, Claim, Commit, Conflict, Origin, Place, Problem, Reason, ResumeToken, RunReport, StepReport};
use dotgraft_engine::run::{CancelReason, Fired, JobRow, LastRun, Outcome, State, StepState};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

/// Any id of a kind: UUIDs but the nil one.
pub fn id<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    (1..u128::MAX).prop_map(|n| uuid::Uuid::from_u128(n).to_string().parse().expect("a UUID"))
}

fn uuid() -> impl Strategy<Value = uuid::Uuid> {
    (1..u128::MAX).prop_map(uuid::Uuid::from_u128)
}

/// Text for people: anything, also what JSON escapes.
pub fn text() -> impl Strategy<Value = String> {
    "[\\PC\n\"\\\\]{0,24}"
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn node() -> impl Strategy<Value = NodeName> {
    "[a-z0-9]{1,12}(\\.[a-z0-9]{1,8})?".prop_map(|n| n.parse().expect("a node name"))
}

pub fn place() -> impl Strategy<Value = Place> {
    (node(), id()).prop_map(|(node, pool)| Place { node, pool })
}

pub fn origin() -> impl Strategy<Value = Origin> {
    (id(), id()).prop_map(|(fs_id, commit)| Origin { fs_id, commit })
}

pub fn claim() -> impl Strategy<Value = Claim> {
    (prop_oneof!["Dot", "Branch"], text(), text(), option::of(text())).prop_map(|(kind, namespace, name, csi_name)| Claim {
        kind,
        namespace,
        name,
        csi_name,
    })
}

pub fn problem() -> impl Strategy<Value = Problem> {
    let reason =
        prop_oneof![Just(Reason::Busy), Just(Reason::NoSpace), Just(Reason::Diverged), Just(Reason::FormatNewer), Just(Reason::Internal)];
    (reason, text()).prop_map(|(reason, message)| Problem { reason, message })
}

pub fn commit() -> impl Strategy<Value = Commit> {
    let what = (id(), id(), option::of(id()), time(), epoch(), any::<u64>());
    let said = (text(), btree_map(text(), text(), 0..4), option::of(id()), any::<bool>(), option::of(id()));
    (what, said).prop_map(|((id, fs_id, parent, time, epoch, seq), (message, metadata, kept, transient, reset_to))| Commit {
        id,
        fs_id,
        parent,
        time,
        epoch,
        seq,
        message,
        metadata,
        kept,
        transient,
        reset_to,
        version: Kind::Commit.newest(),
    })
}

pub fn base() -> impl Strategy<Value = Base> {
    let role = prop_oneof![Just(Role::Owner), Just(Role::Replica)];
    let life = prop_oneof![Just(Life::Creating), Just(Life::Active), Just(Life::Deleting), Just(Life::Gone)];
    let opened = (epoch(), id(), any::<bool>()).prop_map(|(epoch, boot, used)| Opened { epoch, boot, used });
    let who = (id(), role, life, any::<u64>(), option::of(claim()), option::of(origin()));
    let words = (any::<u64>(), any::<u64>(), text(), text());
    let authority = (epoch(), any::<u64>(), option::of(opened));
    let head = (option::of(id()), option::of(id()), option::of(origin()), any::<bool>(), any::<bool>());
    let known = (option::of(any::<u64>()), any::<bool>());
    (who, words, authority, head, known).prop_map(|(who, words, authority, head, known)| Base {
        version: Kind::Base.newest(),
        fs_id: who.0,
        role: who.1,
        life: who.2,
        qgroup: who.3,
        claim: who.4,
        origin: who.5,
        capacity: words.0,
        history_limit: words.1,
        origin_bytes: 0,
        shares_origin: false,
        fencing: words.2,
        reclaim_policy: words.3,
        epoch: authority.0,
        attempt: authority.1,
        opened: authority.2,
        frozen: head.0,
        head_from: head.1,
        reset_to: head.2,
        seen_version: known.0,
        superseded: head.3,
        unsure: known.1,
        headless: head.4,
    })
}

pub fn request() -> impl Strategy<Value = RequestRow> {
    let state =
        prop_oneof![Just(RequestState::Pending), Just(RequestState::Done), Just(RequestState::Removing), Just(RequestState::Removed)];
    let rest = (option::of(any::<u64>()), option::of(problem()), option::of(origin()));
    (id(), id(), state, option::of(id()), time(), rest).prop_map(|(uid, id, state, parent, time, rest)| RequestRow {
        version: Kind::Request.newest(),
        uid,
        id,
        state,
        parent,
        time,
        changed_bytes: rest.0,
        problem: rest.1,
        reset_to: rest.2,
    })
}

pub fn partial() -> impl Strategy<Value = PartialRow> {
    (commit(), option::of(id())).prop_map(|(target, base)| PartialRow { version: Kind::Partial.newest(), target, base })
}

pub fn token() -> impl Strategy<Value = ResumeToken> {
    (id(), option::of(id()), any::<u64>(), any::<[u8; 32]>(), any::<u32>(), "[ -~]{0,24}".prop_map(|k| k.replace(' ', "-"))).prop_map(
        |(target, base, offset, prefix_digest, stream_version, kernel_release)| ResumeToken {
            target,
            base,
            offset,
            prefix_digest,
            stream_version,
            kernel_release,
        },
    )
}

pub fn checkpoint() -> impl Strategy<Value = CheckpointRow> {
    (token(), text()).prop_map(|(token, state)| CheckpointRow { version: Kind::Checkpoint.newest(), token, state })
}

pub fn pin() -> impl Strategy<Value = OriginPinRow> {
    (id(), id()).prop_map(|(by, commit)| OriginPinRow { version: Kind::OriginPin.newest(), by, commit })
}

fn state() -> impl Strategy<Value = State> {
    proptest::sample::select(State::ALL.to_vec())
}

fn step_state() -> impl Strategy<Value = StepState> {
    use StepState::{Done, Failed, MovingCursor, Ready, Retry, Sending, Verifying};
    proptest::sample::select(vec![Ready, Sending, Verifying, MovingCursor, Done, Retry, Failed])
}

fn step() -> impl Strategy<Value = StepReport> {
    (option::of(id()), id(), step_state(), any::<bool>(), option::of(any::<u64>()), any::<u64>(), option::of(any::<u64>())).prop_map(
        |(from, to, state, resumed, expected, replicated, silent_seconds)| StepReport {
            from,
            to,
            state,
            resumed,
            expected,
            replicated,
            silent_seconds,
        },
    )
}

fn attempt() -> impl Strategy<Value = AttemptReport> {
    (state(), time(), option::of(time()), option::of(problem())).prop_map(|(state, started_at, finished_at, error)| AttemptReport {
        state,
        started_at,
        finished_at,
        error,
    })
}

fn conflict() -> impl Strategy<Value = Conflict> {
    (option::of(id()), vec(id(), 0..3), vec(id(), 0..3)).prop_map(|(base, sender_only, receiver_only)| Conflict {
        base,
        sender_only,
        receiver_only,
    })
}

pub fn report() -> impl Strategy<Value = RunReport> {
    let times = (state(), any::<u32>(), time(), option::of(time()), option::of(time()));
    let words = (option::of(problem()), option::of(text()), any::<u32>(), any::<u32>(), option::of(step()));
    let bytes = (option::of(any::<u64>()), any::<u64>(), option::of(any::<u64>()), any::<bool>());
    let ends = (option::of(conflict()), vec(attempt(), 0..3), option::of(id()));
    (times, words, bytes, ends).prop_map(|(times, words, bytes, ends)| RunReport {
        state: times.0,
        attempt: times.1,
        started_at: times.2,
        finished_at: times.3,
        sleep_until: times.4,
        problem: words.0,
        resolution: words.1,
        steps_done: words.2,
        steps_total: words.3,
        current: words.4,
        expected_bytes: bytes.0,
        replicated_bytes: bytes.1,
        bytes_per_second: bytes.2,
        imprecise: bytes.3,
        conflict: ends.0,
        attempts: ends.1,
        replicated: ends.2,
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let why = prop_oneof![
        Just(CancelReason::DeadlinePassed),
        Just(CancelReason::Suspended),
        Just(CancelReason::Superseded),
        Just(CancelReason::NotOwner),
        Just(CancelReason::Deleted)
    ];
    prop_oneof![
        (id(), any::<u64>(), any::<u32>()).prop_map(|(replicated, bytes, steps)| Outcome::Completed { replicated, bytes, steps }),
        problem().prop_map(Outcome::Failed),
        why.prop_map(Outcome::ContextDone),
    ]
}

pub fn job() -> impl Strategy<Value = JobRow> {
    let last = (uuid(), any::<i64>(), outcome(), report()).prop_map(|(run_id, generation, outcome, report)| LastRun {
        run_id,
        generation,
        outcome,
        report,
    });
    let who = (id(), option::of(place()), any::<i64>(), option::of(text()));
    let at = (any::<bool>(), any::<bool>(), option::of(id()), option::of(id()));
    let fired = (text(), time()).prop_map(|(by, at)| Fired { by, at });
    (who, at, option::of(fired), option::of(last), option::of(time()), any::<u32>()).prop_map(
        |(who, at, fired, last, last_successful_time, n)| JobRow {
            version: Kind::Job.newest(),
            uid: who.0,
            peer: who.1,
            observed_generation: who.2,
            observed_trigger: who.3,
            done_once: at.0,
            owed: at.1,
            cursor: at.2,
            sending: at.3,
            fired,
            last,
            last_successful_time,
            consecutive_failures: n,
        },
    )
}

pub fn migration() -> impl Strategy<Value = MigrationRow> {
    let phase = prop_oneof![
        Just(MigrationPhase::Begun),
        Just(MigrationPhase::Frozen),
        Just(MigrationPhase::Pending),
        Just(MigrationPhase::Aborted),
        Just(MigrationPhase::Exported),
        Just(MigrationPhase::ImportStart),
        Just(MigrationPhase::Committed)
    ];
    let who = (phase, id(), any::<u64>(), epoch(), place());
    let party = option::of(any::<u64>()).prop_map(|holds| PartyRow { holds });
    let parties = btree_map(node(), party, 0..3);
    let what = (option::of(id()), time(), option::of(time()), vec(job(), 0..2), vec(request(), 0..2), id(), parties);
    (who, what).prop_map(|(who, what)| MigrationRow {
        version: Kind::Migration.newest(),
        phase: who.0,
        mig: who.1,
        attempt: who.2,
        epoch: who.3,
        peer: who.4,
        final_commit: what.0.or((who.0 != MigrationPhase::Begun).then_some(what.5)),
        started: what.1,
        frozen: what.2,
        jobs: what.3,
        requests: what.4,
        parties: what.6,
    })
}

pub fn handoff() -> impl Strategy<Value = Handoff> {
    (id(), any::<u64>(), epoch(), place(), id(), vec(job(), 0..3), vec(request(), 0..3)).prop_map(
        |(mig, attempt, epoch, from, final_commit, jobs, requests)| Handoff { mig, attempt, epoch, from, final_commit, jobs, requests },
    )
}
