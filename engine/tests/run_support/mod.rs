//! Small words for the tests of `engine::run`: commits by number, versions, and a run with its effects.
#![allow(dead_code, missing_docs, clippy::unnecessary_wraps)] // each test file uses a part; `sent` is an event's result

use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::{BootTime, CommitId, Epoch, FsId, JobUid, Now, PoolId, Timestamp};
use dotgraft_engine::model::{Commit, Place, Problem, Reason, ResumeToken, RunReport, Versions, VersionsRole};
use dotgraft_engine::run::{
    Initial, Intermediate, NoteReason, OnConflict, Outcome, Retry, Run, RunEffect, RunEffectKind, RunEvent, RunSpec, SendOutcome, SendStep,
    State,
};
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;

pub fn id(n: u64) -> CommitId {
    CommitId::from_uuid(Uuid::from_u128(0x0198_c2a5_7f00_7000_8000_0000_0000_0000 + u128::from(n)))
}

pub fn commit(n: u64) -> Commit {
    Commit {
        version: Kind::Commit.newest(),
        id: id(n),
        fs_id: FsId::from_uuid(Uuid::from_u128(7)),
        parent: (n > 1).then(|| id(n - 1)),
        time: Timestamp(1_000 * i64::try_from(n).unwrap()),
        epoch: Epoch(1),
        seq: 0,
        message: String::new(),
        metadata: std::collections::BTreeMap::new(),
        kept: None,
        transient: false,
        reset_to: None,
    }
}

pub fn transient(n: u64) -> Commit {
    Commit { transient: true, ..commit(n) }
}

pub fn versions(role: VersionsRole, commits: &[u64]) -> Versions {
    Versions {
        role,
        epoch: Epoch(1),
        commits: commits.iter().map(|n| commit(*n)).collect(),
        resume: None,
        free_bytes: None,
        stream_version: 2,
        takes_older: true,
    }
}

pub fn sender(commits: &[u64]) -> Versions {
    versions(VersionsRole::Owner, commits)
}

pub fn receiver(commits: &[u64]) -> Versions {
    versions(VersionsRole::Replica, commits)
}

pub fn token(target: u64, base: Option<u64>, offset: u64) -> ResumeToken {
    ResumeToken {
        target: id(target),
        base: base.map(id),
        offset,
        prefix_digest: [7; 32],
        stream_version: 2,
        kernel_release: "6.18.0".to_owned(),
    }
}

pub fn place() -> Place {
    Place { node: "n2".parse().unwrap(), pool: PoolId::from_uuid(Uuid::from_u128(2)) }
}

pub fn job_uid() -> JobUid {
    JobUid::from_uuid(Uuid::from_u128(9))
}

pub fn spec() -> RunSpec {
    RunSpec {
        job: job_uid(),
        run_id: Uuid::from_u128(11),
        peer: place(),
        initial: Initial::MostRecent,
        intermediate: Intermediate::All,
        retry: Retry::default(),
        on_conflict: OnConflict::Fail,
        cursor: None,
        also: None,
        first_seq: 1,
    }
}

pub fn problem(reason: Reason) -> Problem {
    Problem::new(reason, "as the test wants it")
}

pub fn sent(bytes_sent: u64) -> Result<SendOutcome, Problem> {
    Ok(SendOutcome { bytes_sent, already: false })
}

/// That time by the wall clock, on a node that booted at 500.
pub fn at(ms: i64) -> Now {
    Now { wall: Timestamp(ms), boot: BootTime(u64::try_from(ms - 500).unwrap()) }
}

/// `now`, or when that is due.
pub fn not_before(now: Now, due: BootTime) -> Now {
    now.plus_ms(due.since_ms(now.boot))
}

/// A run with its clock and all effects that were not looked at yet.
pub struct Rig {
    pub run: Run,
    pub now: Now,
    pub out: Vec<RunEffect>,
    pub notes: Vec<(NoteReason, String)>,
    pub moves: Vec<(State, State)>,
}

impl Rig {
    pub fn start(spec: RunSpec) -> Self {
        let mut out = Vec::new();
        let now = at(1_000_000);
        let run = Run::start(spec, now, 42, &mut out);
        Self { run, now, out, notes: Vec::new(), moves: Vec::new() }
    }

    pub fn give(&mut self, event: RunEvent) {
        self.run.handle(event, self.now, &mut self.out);
    }

    /// Lets time pass until the run wants its timer, and delivers it.
    pub fn sleep(&mut self) -> u64 {
        let due = self.run.next_wake().expect("it waits for something");
        let slept = due.since_ms(self.now.boot);
        self.now = not_before(self.now, due);
        self.give(RunEvent::Timer);
        slept
    }

    pub fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    /// Takes the effects out, sorting notes and moves aside.
    pub fn effects(&mut self) -> Vec<RunEffect> {
        let mut rest = Vec::new();
        for effect in self.out.drain(..) {
            match effect.kind {
                RunEffectKind::Note { reason, message } => self.notes.push((reason, message)),
                RunEffectKind::Moved { from, to, .. } => self.moves.push((from, to)),
                _ => rest.push(effect),
            }
        }
        rest
    }

    pub fn list_seq(&mut self) -> u64 {
        self.effects().into_iter().find(|e| e.kind == RunEffectKind::List).map(|e| e.seq).expect("a listing was asked for")
    }

    pub fn listed(&mut self, local: &Versions, peer: &Versions) {
        let seq = self.list_seq();
        self.give(RunEvent::Listed { seq, local: local.clone(), peer: Ok(peer.clone()) });
    }

    pub fn listing_failed(&mut self, reason: Reason) {
        let seq = self.list_seq();
        self.give(RunEvent::Listed { seq, local: sender(&[1]), peer: Err(problem(reason)) });
    }

    /// Answers all estimates with `bytes` until none comes, and hands back what else was asked for.
    pub fn estimate_all(&mut self, bytes: Option<u64>) -> Vec<RunEffect> {
        let mut rest = Vec::new();
        loop {
            let (estimates, others): (Vec<_>, Vec<_>) =
                self.effects().into_iter().partition(|e| matches!(e.kind, RunEffectKind::Estimate { .. }));
            rest.extend(others);
            if estimates.is_empty() {
                return rest;
            }
            for e in estimates {
                let RunEffectKind::Estimate { step, .. } = e.kind else {
                    continue;
                };
                self.give(RunEvent::Estimated { seq: e.seq, step, bytes });
            }
        }
    }

    /// The send that was just asked for; all estimates are answered as unknown.
    pub fn sending(&mut self) -> (u64, SendStep) {
        let effects = self.estimate_all(None);
        effects
            .into_iter()
            .find_map(|e| match e.kind {
                RunEffectKind::Send(step) => Some((e.seq, step)),
                _ => None,
            })
            .expect("a send was asked for")
    }

    /// The cursor move that was just asked for: (seq, to).
    pub fn moving(&mut self) -> (u64, CommitId) {
        let effects = self.estimate_all(None);
        effects
            .into_iter()
            .find_map(|e| match e.kind {
                RunEffectKind::MoveCursor { to, .. } => Some((e.seq, to)),
                _ => None,
            })
            .expect("a cursor move was asked for")
    }

    /// Sends the next step and moves the cursor; returns it.
    pub fn do_step(&mut self, bytes: u64) -> SendStep {
        let (seq, step) = self.sending();
        self.give(RunEvent::SendDone { seq, result: sent(bytes) });
        let (seq, to) = self.moving();
        assert_eq!(to, step.to);
        self.give(RunEvent::CursorMoved { seq });
        step
    }

    pub fn outcome(&self) -> &Outcome {
        self.run.is_finished().expect("it has ended")
    }

    pub fn failed_with(&self) -> Reason {
        match self.outcome() {
            Outcome::Failed(problem) => problem.reason,
            other => panic!("{other:?} is not a failure"),
        }
    }

    pub fn report(&self) -> RunReport {
        self.run.report(self.now)
    }

    pub fn noted(&mut self, reason: NoteReason) -> bool {
        let rest = self.effects();
        self.out = rest;
        self.notes.iter().any(|(r, _)| *r == reason)
    }
}
