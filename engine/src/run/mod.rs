//! Replication of one Filesystem by one job, as pure state machines (replication.md §1–3, §5, §6).
//!
//! - [`Job`]: what survives runs: spec, trigger, cursor, results; decides when a run starts.
//! - [`Run`]: one execution: list, plan, send step by step, move the cursor, retry, report.
//! - [`plan`]: the path, a pure function of both sides' versions.
//!
//! `engine::filesystem::Filesystem` embeds them: it executes each [`RunEffect`] and brings its result back as
//! the [`RunEvent`] with the same `seq`. Only the sending side decides; a receiver needs nothing from here.

mod attempt;
mod backoff;
mod behind;
mod job;
mod machine;
pub mod plan;
mod planning;
mod rate;
mod report;
mod state;
mod working;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{CommitId, JobUid};
use crate::model::{Place, Problem, ResumeToken, Versions};

pub use backoff::{BASE_MS as BACKOFF_BASE_MS, CAP_MS as BACKOFF_CAP_MS};
pub use job::{Fired, Job, JobRow, JobSpec, LastRun, RunParams, RunSeed};
pub use machine::Run;
pub use plan::{Plan, PlanStep, Refused, plan};
pub use state::{ItemState, State, StepState};

/// No byte and no message for that long while listing, sending or moving the cursor is a `Timeout`.
pub const PROGRESS_MS: u64 = 60_000;
/// A stream that gives no byte for less than that is not worth a word in the report.
pub const SILENT_MS: u64 = 10_000;
/// The same while the receiver verifies and makes a commit durable: a full disk flush can take minutes.
pub const VERIFY_MS: u64 = 300_000;
/// The first step waits that long for its estimate, then goes without.
pub const ESTIMATE_WAIT_MS: u64 = 2_000;
/// Estimates asked for at once.
pub const ESTIMATES_AT_ONCE: usize = 4;
/// A cancelled send has that long to confirm that it stopped.
pub const STOP_MS: u64 = 30_000;
/// A run ends when so many attempts in a row were denied: with the sleeps between them after two to four minutes. A certificate that is
/// not listed yet, or was cut off as it expired, heals in less; one that is revoked doesn't.
pub const DENIED_ATTEMPTS: u32 = 10;
/// So many attempts may find no copy at the receiver before that is a trouble: it is made when its object is seen there, some two seconds
/// at most.
pub const PLACING_ATTEMPTS: u32 = 3;
/// Attempts that a report keeps.
pub const ATTEMPTS_KEPT: usize = 3;

/// What a first copy brings, while the receiver is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Initial {
    /// The newest commit only, in one full step.
    #[default]
    MostRecent,
    /// The oldest in full, then increments.
    All,
    /// None: refuse with `InitialRefused`.
    Fail,
}

/// Which commits between base and target are brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Intermediate {
    /// Each.
    #[default]
    All,
    /// None: one increment to the newest. What `Initial` asks for is not affected.
    LatestOnly,
}

/// What to do about histories that don't fit. Other policies come with a later issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnConflict {
    /// End the run with the conflict as its problem; touch nothing.
    #[default]
    Fail,
}

/// When a run gives up on temporary errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Attempts in all; `None`: unlimited; 0 means "never retry" and so, like 1, one attempt.
    pub max_attempts: Option<u32>,
    /// Milliseconds from the run's start until it is cancelled as `DeadlinePassed`; `None`: never.
    pub deadline_ms: Option<u64>,
}

/// What a run is to do; fixed while it lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSpec {
    /// The job it belongs to, and so whose cursor it moves.
    pub job: JobUid,
    /// Its own name, in offers and logs.
    pub run_id: Uuid,
    /// The receiver.
    pub peer: Place,
    /// Policy for a first copy.
    pub initial: Initial,
    /// Policy for commits in between.
    pub intermediate: Intermediate,
    /// When to give up.
    pub retry: Retry,
    /// Policy for conflicts.
    pub on_conflict: OnConflict,
    /// Where the job's cursor is: a run that finds the receiver further on moves it (§6, test 9).
    pub cursor: Option<CommitId>,
    /// A transient commit to bring over: the last of a handoff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also: Option<CommitId>,
    /// The first `seq` of its effects: above all that the job's earlier runs used, so that their late results
    /// are recognised.
    pub first_seq: u64,
}

/// Something to be done outside, or to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEffect {
    /// Names it; its result carries the same. A `CancelSend` carries that of the send it is about.
    pub seq: u64,
    /// What.
    pub kind: RunEffectKind,
}

/// The kinds of [`RunEffect`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunEffectKind {
    /// List both sides; answered by [`RunEvent::Listed`].
    List,
    /// Estimate the stream's bytes; answered by [`RunEvent::Estimated`]. Never delays a send by more than
    /// [`ESTIMATE_WAIT_MS`].
    Estimate {
        /// Number of the step in the present plan.
        step: usize,
        /// Its base.
        from: Option<CommitId>,
        /// Its target.
        to: CommitId,
    },
    /// Send; answered by any number of `Progress` and `Alive`, at most one `Verifying`, and one [`RunEvent::SendDone`].
    Send(SendStep),
    /// Stop the send of this `seq`; it still answers `SendDone`, within [`STOP_MS`].
    CancelSend,
    /// One transaction: cursor := to, pin(to), unpin(what the cursor was at); answered by `CursorMoved`.
    MoveCursor {
        /// Now on the receiver.
        to: CommitId,
        /// Stream bytes that brought it there; 0 if it was there already.
        bytes: u64,
    },
    /// The run changed its state: for logs and metrics; no answer.
    Moved {
        /// Before.
        from: State,
        /// Now.
        to: State,
        /// Milliseconds spent in `from`.
        after_ms: u64,
    },
    /// An event for people; no answer.
    Note {
        /// The closed kind, the event's `reason`.
        reason: NoteReason,
        /// The sentence.
        message: String,
    },
}

/// Why an event for people is emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NoteReason {
    /// There is a plan with steps.
    Planned,
    /// The receiver's partial receive is of no use and will be dropped.
    PartialDiscarded,
    /// The commit that the run was to end at is no longer on the sender.
    TargetGone,
    /// An attempt failed with another reason than the one before; it will be retried.
    AttemptFailed,
    /// The end: the target is on the receiver.
    Completed,
    /// The end: with a problem.
    Failed,
    /// The end: cancelled.
    Cancelled,
    /// A cancelled send did not confirm in time.
    SendStuck,
    /// A defect of ours: a transition that the table does not have.
    InvariantBroken,
}

/// One transfer to execute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendStep {
    /// Base, which is on both sides; `None` is a full copy.
    pub from: Option<CommitId>,
    /// Target.
    pub to: CommitId,
    /// Where the receiver can go on; prove the prefix first, else start anew.
    pub resume: Option<ResumeToken>,
    /// Estimated bytes of the whole stream, if known.
    pub expected: Option<u64>,
}

/// How a send ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendOutcome {
    /// Stream bytes that this send put on the wire, without a resumed prefix.
    pub bytes_sent: u64,
    /// The commit was on the receiver before.
    pub already: bool,
}

/// What a run is told.
#[allow(clippy::large_enum_variant)] // handed over once, never stored in numbers
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEvent {
    /// Result of `List`.
    Listed {
        /// Of the effect.
        seq: u64,
        /// Our side, read after the peer's.
        local: Versions,
        /// The receiver's.
        peer: Result<Versions, Problem>,
    },
    /// Result of `Estimate`.
    Estimated {
        /// Of the effect.
        seq: u64,
        /// Of the effect.
        step: usize,
        /// Bytes of the whole stream; `None`: could not be told.
        bytes: Option<u64>,
    },
    /// Bytes flow.
    Progress {
        /// Of the send.
        seq: u64,
        /// Of this step so far, a resumed prefix included; never less than before.
        bytes: u64,
        /// Length of the resumed prefix; 0 if the step started at its beginning.
        resumed_from: u64,
    },
    /// No byte, but proof of life: the sender's kernel reads on, or the receiver says that it works. Counts as progress for the
    /// deadline and for nothing else; whoever tells it bounds how long it is told.
    Alive {
        /// Of the send.
        seq: u64,
        /// Milliseconds since the kernel's stream last gave a byte; 0: it is not the stream that is waited for.
        silent_ms: u64,
    },
    /// All bytes are on the receiver, which verifies them.
    Verifying {
        /// Of the send.
        seq: u64,
    },
    /// Result of `Send`: its task has ended.
    SendDone {
        /// Of the send.
        seq: u64,
        /// `Ok` only after the receiver's `Stored`.
        result: Result<SendOutcome, Problem>,
    },
    /// Result of `MoveCursor`: it is durable.
    CursorMoved {
        /// Of the effect.
        seq: u64,
    },
    /// The peer is back, a trigger, a changed spec, a new commit: a sleep ends at once.
    Wake,
    /// [`Run::next_wake`] has come.
    Timer,
    /// Stop.
    Cancel(CancelReason),
}

/// Why a run was stopped. When several come, the greatest is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CancelReason {
    /// `retry.deadline`.
    DeadlinePassed,
    /// `spec.suspend`.
    Suspended,
    /// The job's spec changed in a way that needs a new run.
    Superseded,
    /// This node is no longer the owner.
    NotOwner,
    /// The job or its Filesystem is being deleted.
    Deleted,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The target is on the receiver.
    Completed {
        /// The newest commit of ours there.
        replicated: CommitId,
        /// Sent by all attempts.
        bytes: u64,
        /// Steps done; 0 when it was up to date.
        steps: u32,
    },
    /// A permanent error, or the last attempt's.
    Failed(Problem),
    /// Cancelled.
    ContextDone(CancelReason),
}
