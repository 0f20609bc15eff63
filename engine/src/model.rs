//! The nouns that both state machines (`Filesystem` and `Run`) speak of: commits, versions, refusals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{CommitId, Epoch, FsId, NodeName, PoolId, RequestUid, Timestamp};
use crate::run::{State, StepState};

/// An immutable snapshot, as it stands in `commits/<id>.json` (storage.md §1) and in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// Version of [`crate::format::Kind::Commit`].
    pub version: u32,
    /// Its name, the same everywhere.
    pub id: CommitId,
    /// The Filesystem it was made in.
    pub fs_id: FsId,
    /// The commit before it in that Filesystem, or the origin's commit for the first of a Branch.
    pub parent: Option<CommitId>,
    /// When the owner took it.
    pub time: Timestamp,
    /// The owner's epoch then.
    pub epoch: Epoch,
    /// Its number among those that the owner took in that epoch, from 1; 0: taken by a version before 0.2.
    #[serde(default, skip_serializing_if = "is_unnumbered")]
    pub seq: u64,
    /// At most 4 KiB of text for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// At most 64 pairs, keys ≤ 253 bytes, values ≤ 1 KiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The Commit object that wants it, if any: a commit that someone asked for and wants kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<RequestUid>,
    /// Made for a migration: not in `log`, seen by no job. With `kept`: let go ([`Commit::is_let_go`]).
    #[serde(default)]
    pub transient: bool,
    /// It only keeps what a reset took away: the head was made anew from this commit, and a head that is made of a history which ends here is
    /// made from it too (ADR 7). Absent in what a version before 0.2 has taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_to: Option<CommitId>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
const fn is_unnumbered(seq: &u64) -> bool {
    *seq == 0
}

/// Where a commit stands in its Filesystem's history: the only comparison of commits. Epoch and number are given by the owner when the
/// commit is intended; time and id tell apart only what a version before 0.2 has taken, whose clock gave later times to later commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Order {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The number in it.
    pub seq: u64,
    /// When it was taken.
    pub time: Timestamp,
    /// Its id.
    pub id: CommitId,
}

impl Commit {
    /// Where it stands in the history.
    pub const fn order(&self) -> Order {
        Order { epoch: self.epoch, seq: self.seq, time: self.time, id: self.id }
    }

    /// A history that ends here is one whose head holds something else than its newest commit. `commits`: oldest first.
    pub fn set_aside_last<'a>(commits: impl DoubleEndedIterator<Item = &'a Self>) -> Option<&'a Self> {
        commits.rev().find(|c| !c.transient || c.is_let_go()).filter(|c| c.reset_to.is_some())
    }

    /// Nobody wants it any more, but the next increment starts from it: people see it no longer, and it goes once there is a newer one (ADR 11).
    pub const fn is_let_go(&self) -> bool {
        self.transient && self.kept.is_some()
    }
}

/// Where a copy is: a node and the pool on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The node.
    pub node: NodeName,
    /// Its pool.
    pub pool: PoolId,
}

/// A commit of another Filesystem that a Branch or clone started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The Filesystem branched from.
    pub fs_id: FsId,
    /// The commit branched from; pinned there while the Branch exists.
    pub commit: CommitId,
}

/// The object that a Filesystem belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// `Dot` or `Branch`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The name in the CSI call that made it: without it nothing may delete the object with its PVC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csi_name: Option<String>,
}

/// A durable point inside a stream from which a receive can go on (replication.md §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResumeToken {
    /// The commit being received.
    pub target: CommitId,
    /// Its base; `None` for a full stream.
    pub base: Option<CommitId>,
    /// Stream bytes that are durable on the receiver.
    pub offset: u64,
    /// BLAKE3 of exactly those bytes.
    pub prefix_digest: [u8; 32],
    /// btrfs send stream version.
    pub stream_version: u32,
    /// `uname -r` of the sender: another kernel may cut the stream differently.
    pub kernel_release: String,
}

/// Why a request is refused or an effect failed: a closed set, used for conditions, metrics and gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The mailbox is full or another transfer runs; try again.
    Busy,
    /// No Replica of this Filesystem is wanted here (yet).
    NotPlaced,
    /// This copy is being deleted.
    Deleting,
    /// The receiver's copy is an owner's, not a replica's.
    ReceiverIsOwner,
    /// The message carries an epoch older than the one known here.
    StaleEpoch,
    /// The base of an increment is not here any more; plan anew.
    BaseGone,
    /// Both sides have commits that the other lacks.
    Diverged,
    /// No commit in common, and the receiver is not empty.
    NoCommonAncestor,
    /// The sender has nothing to send.
    NoCommits,
    /// `initial: Fail` and the receiver is empty.
    InitialRefused,
    /// Pool or quota is too full for it.
    NoSpace,
    /// A nested subvolume is in the way (the message has its path).
    NestedSubvolume,
    /// A swap file in the volume is in use.
    SwapFile,
    /// The stream is malformed, oversized or forbidden.
    CorruptStream,
    /// What arrived is not what was sent.
    DigestMismatch,
    /// Certificate, token or grant does not allow it. It may do so in a moment (a certificate that is not listed yet), so a run
    /// tries again, but not for ever.
    Denied,
    /// The peer could not be reached, or went away.
    Unreachable,
    /// No byte and no message for too long.
    Timeout,
    /// A feature that the operation needs is missing here.
    Unsupported,
    /// A row, file or message was written by a newer program; it is left alone until this one is upgraded.
    FormatNewer,
    /// The request itself is malformed.
    Invalid,
    /// Someone has it mounted; the message names who.
    Mounted,
    /// A pin holds it; the message names whose.
    Pinned,
    /// Not found here.
    NotFound,
    /// A reset keeps new mounts back until it is done, or gives up; the message names it.
    Held,
    /// This node does not own it, or has not opened it.
    NotOwner,
    /// The API says nothing of an owner; a person accepts or adopts.
    AuthorityUnknown,
    /// The API shows an older epoch than was seen here: it was restored; a person accepts.
    EpochRegression,
    /// The pool failed: forced read-only, I/O error.
    PoolFailed,
    /// A checksum error of the disk.
    CorruptDisk,
    /// The operation was cancelled.
    Cancelled,
    /// Anything else; the message says what.
    Internal,
}

impl Reason {
    /// Whether trying again unchanged can't help (replication.md §3, "temporary or permanent").
    pub const fn is_permanent(self) -> bool {
        match self {
            Self::ReceiverIsOwner
            | Self::Diverged
            | Self::NoCommonAncestor
            | Self::NoCommits
            | Self::InitialRefused
            | Self::CorruptStream
            | Self::Unsupported
            | Self::Invalid
            | Self::Deleting
            | Self::CorruptDisk
            | Self::Cancelled => true,
            Self::Busy
            | Self::NotPlaced
            | Self::StaleEpoch
            | Self::BaseGone
            | Self::NoSpace
            | Self::NestedSubvolume
            | Self::SwapFile
            | Self::DigestMismatch
            | Self::Denied
            | Self::Unreachable
            | Self::Timeout
            | Self::Mounted
            | Self::Pinned
            | Self::NotFound
            | Self::Held
            | Self::NotOwner
            | Self::AuthorityUnknown
            | Self::EpochRegression
            | Self::PoolFailed
            | Self::FormatNewer
            | Self::Internal => false,
        }
    }
}

/// A refusal or failure with its reason and a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason:?}: {message}")]
pub struct Problem {
    /// The closed kind.
    pub reason: Reason,
    /// For people: what is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// A problem with its message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What one side holds of a Filesystem, as a plan is made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// What the copy is.
    pub role: VersionsRole,
    /// The highest epoch seen there.
    pub epoch: Epoch,
    /// Its commits, oldest first. Transient ones are left out by the lister.
    pub commits: Vec<Commit>,
    /// A partial receive that can go on.
    pub resume: Option<ResumeToken>,
    /// Bytes a receive may still use, when known.
    pub free_bytes: Option<u64>,
    /// Highest send stream version it takes.
    pub stream_version: u32,
    /// It takes kept commits that are older than its newest, on any base that is there; programs before 0.2 don't.
    #[serde(default)]
    pub takes_older: bool,
}

/// Role of the copy that was listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionsRole {
    /// Nothing there yet, but wanted.
    Absent,
    /// A read-only copy.
    Replica,
    /// The owner's.
    Owner,
    /// On its way out.
    Deleting,
}

/// The report of a run, as replication.md §5 has it for one Filesystem. Serialised into `Replica.status.jobs[].report`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunReport {
    /// How far it is.
    pub state: State,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// When the run started.
    pub started_at: Timestamp,
    /// When it ended, if it has.
    pub finished_at: Option<Timestamp>,
    /// It sleeps until then.
    pub sleep_until: Option<Timestamp>,
    /// What stands in the way now, or what ended it.
    pub problem: Option<Problem>,
    /// How a conflict or first copy was resolved, for people ("start at most recent commit X").
    pub resolution: Option<String>,
    /// Steps done so far, of `steps_total`.
    pub steps_done: u32,
    /// Steps of the plan.
    pub steps_total: u32,
    /// The step in hand.
    pub current: Option<StepReport>,
    /// Sum of what the plan expects to send; `None` while unknown.
    pub expected_bytes: Option<u64>,
    /// Sent by all attempts.
    pub replicated_bytes: u64,
    /// Over the last seconds, while working.
    pub bytes_per_second: Option<u64>,
    /// Whether `expected_bytes` leaves an unknown estimate out.
    pub imprecise: bool,
    /// Commits the peer lacks and we lack, when diverged: ids, at most 16 each.
    pub conflict: Option<Conflict>,
    /// The last attempts, at most 3, newest last.
    pub attempts: Vec<AttemptReport>,
    /// The newest commit known to be on the receiver.
    pub replicated: Option<CommitId>,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// Base; `None` is a full copy.
    pub from: Option<CommitId>,
    /// Target.
    pub to: CommitId,
    /// How far it is.
    pub state: StepState,
    /// Whether it goes on from a checkpoint.
    pub resumed: bool,
    /// Estimate, if there is one.
    pub expected: Option<u64>,
    /// Bytes of it so far.
    pub replicated: u64,
    /// The sender's kernel reads and has given no byte for so long, seconds; `None`: bytes flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<u64>,
}

/// One attempt of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptReport {
    /// How it ended or stands.
    pub state: State,
    /// Its start.
    pub started_at: Timestamp,
    /// Its end.
    pub finished_at: Option<Timestamp>,
    /// What ended it.
    pub error: Option<Problem>,
}

/// Two histories that don't fit, by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// Newest commit both have.
    pub base: Option<CommitId>,
    /// On the sender only, oldest first.
    pub sender_only: Vec<CommitId>,
    /// On the receiver only, oldest first.
    pub receiver_only: Vec<CommitId>,
}
