//! What goes into a [`Filesystem`](super::Filesystem) and what comes out: events, tasks, answers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::authority::{self, Attempt, Authority, Read, Refusal, Seen};
use crate::ids::{BootId, BootTime, CommitId, Epoch, Fresh, FsId, JobUid, MigId, NodeName, Now, OpId, Timestamp};
use crate::model::{Commit, Origin, Place, Problem, ResumeToken, Versions};
use crate::run::JobRow;

use super::record::{Base, CheckpointRow, Record, RequestRow};
use crate::words::{Desired, MountMode, MountWhat, Nested, Offer, ReqId};

/// What the world looks like while an event is handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ctx {
    /// Wall clock: for people, and the time of a commit.
    pub now: Timestamp,
    /// This node's boot clock: for deadlines, backoff and freshness.
    pub boot: BootTime,
    /// New ids, as many as are asked for.
    pub fresh: Fresh,
    /// Fresh randomness for jitter.
    pub jitter: u64,
}

impl Ctx {
    /// Both clocks.
    pub const fn clock(&self) -> Now {
        Now { wall: self.now, boot: self.boot }
    }
}

/// What an importer is told: everything that leaves with authority (migration.md §1, `Export`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handoff {
    /// The migration.
    pub mig: MigId,
    /// Its attempt.
    pub attempt: u64,
    /// The epoch that ends with it.
    pub epoch: Epoch,
    /// Who gives.
    pub from: Place,
    /// The commit that has all of the head.
    pub final_commit: CommitId,
    /// Cursors of the jobs that go along.
    pub jobs: Vec<JobRow>,
    /// Commits that were intended and not made: they are made there, under the ids they have.
    pub requests: Vec<RequestRow>,
}

/// A compare-and-swap on authority that only a party of the handoff makes (R3, R6). Each ends with what authority says *then*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// None: a quorum read.
    Ask,
    /// Sets `pending`, if we own this epoch with nothing pending.
    Pend {
        /// The migration.
        mig: MigId,
        /// Our epoch.
        epoch: Epoch,
        /// To whom.
        to: Place,
        /// The commit that has all of the head.
        final_commit: CommitId,
    },
    /// owner := `pending.to`, epoch + 1, if `pending` is exactly this.
    Commit {
        /// The migration.
        mig: MigId,
        /// Its attempt.
        attempt: u64,
        /// The epoch that ends.
        epoch: Epoch,
    },
    /// pending := none, attempt + 1, if we own it and what is pending is not the handoff that is known here (R8); else a quorum read.
    Disown {
        /// The handoff that this copy has a record of.
        known: Option<MigId>,
    },
    /// pending := none, attempt + 1, if `pending` is exactly this.
    Abort {
        /// The migration.
        mig: MigId,
        /// Its attempt.
        attempt: u64,
        /// The epoch that goes on.
        epoch: Epoch,
    },
}

impl Swap {
    /// What it makes of authority as read, by the rules; `None`: it only asks.
    ///
    /// # Errors
    ///
    /// [`Refusal`], if its guard doesn't hold: nothing is written then, and what was read is the answer.
    pub fn of(&self, read: &Read, me: &Place) -> Result<Option<Authority>, Refusal> {
        match self {
            Self::Ask => Ok(None),
            Self::Pend { mig, epoch, to, final_commit } => authority::pend(read, me, (*mig, *epoch), to, *final_commit).map(Some),
            Self::Commit { mig, attempt, epoch } => {
                authority::commit(read, me, Attempt { mig: *mig, attempt: *attempt, epoch: *epoch }).map(Some)
            }
            Self::Abort { mig, attempt, epoch } => {
                authority::abort(read, me, Attempt { mig: *mig, attempt: *attempt, epoch: *epoch }).map(Some)
            }
            Self::Disown { known } => authority::disown(read, me, *known).map(Some),
        }
    }
}

/// Everything that can happen to a Filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The actor has started: inspect the disk.
    Start,
    /// The Replica object changed (or was seen for the first time).
    Desired(Desired),
    /// The Replica object is gone. Never an intent to delete data.
    Vanished,
    /// That node lists versions.
    Versions(ReqId, NodeName),
    /// A peer offers a commit.
    Offer(ReqId, Box<Offer>),
    /// Bind-mount.
    Mount(ReqId, MountWhat, String, MountMode),
    /// Unmount.
    Unmount(ReqId, String),
    /// Fence the head; the flag forces it while mounted.
    Fence(ReqId, bool),
    /// Undo a fence.
    Thaw(ReqId),
    /// An owner hands authority over: is all of it here? (`Export`, migration.md §1)
    Export(ReqId, Box<Handoff>),
    /// A Filesystem of this node wants to start from this commit.
    PinOrigin(ReqId, FsId, CommitId),
    /// It needs it no more, or is gone. Nothing depends on hearing this.
    UnpinOrigin(FsId),
    /// Another Filesystem of this node asks whether this one starts from a commit of it, and needs that still.
    StartsFrom(ReqId, Origin),
    /// Bytes of a running send: the absolute offset, and where it went on from.
    Progress(OpId, u64, u64),
    /// A running send has no byte to show, but lives: for so many milliseconds the kernel's stream gave none
    /// ([`crate::run::RunEvent::Alive`]).
    Alive(OpId, u64),
    /// The sender waits for the receiver's verdict.
    Verifying(OpId),
    /// A receive has made a checkpoint, durable on disk; the task waits for [`Answer::Checkpointed`].
    Checkpoint(OpId, ReqId, Box<CheckpointRow>),
    /// A task ended.
    Done(OpId, Box<Result<TaskDone, Problem>>),
    /// The time of `next_wake` has come.
    Timer,
    /// A peer can be reached again: sleeps end.
    PeerBack(NodeName),
}

/// Work for the shell: runs outside, ends with [`Event::Done`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Look at the disk.
    Inspect,
    /// A number for the level-1 qgroup.
    AllocateQgroup,
    /// R0 (migration.md §2): CAS `opened`; refused unless this place owns `epoch` or higher with nothing pending.
    Open {
        /// The newest that was seen, here or by those who were asked.
        seen: Seen,
    },
    /// Quorum GET, before anything is deleted here: what does authority say?
    CheckDeleting,
    /// Ask the pools with copies of it for the highest epoch that they have seen; who doesn't answer in five seconds is not waited for.
    AskEpochs(BTreeSet<NodeName>),
    /// Quorum GET: is the Filesystem `Headless`?
    CheckHeadless,
    /// Ask the origin's owner on this node to pin the commit.
    PinOrigin(Origin),
    /// Tell it that we need it no more.
    UnpinOrigin(Origin),
    /// Ask these Filesystems of this node whether they start from those commits of ours, and need them still.
    AskClones(BTreeMap<FsId, CommitId>),
    /// Directories, qgroup, fs.json.
    Prepare(Box<Base>),
    /// The head: empty or from the origin.
    CreateHead {
        /// Level-1 qgroup.
        qgroup: u64,
        /// Snapshot of this.
        from: Option<Origin>,
    },
    /// Replace fs.json (and the limit).
    WriteMeta(Box<Base>),
    /// Take a commit.
    Commit {
        /// Level-1 qgroup.
        qgroup: u64,
        /// What.
        commit: Box<Commit>,
    },
    /// Remove a commit.
    DeleteCommit(CommitId),
    /// Read the mount tables of all namespaces: `Mounted`, by name, if something has the head.
    LookForMounts,
    /// Make the head unwritable, and what is nested in it; waits for nothing, whoever has it mounted.
    Freeze,
    /// The final commit of a frozen head: write-back, snapshot, proof.
    FinalCommit {
        /// Level-1 qgroup.
        qgroup: u64,
        /// The final commit.
        commit: Box<Commit>,
    },
    /// Undo a freeze.
    Thaw,
    /// Read or change authority.
    Swap(Swap),
    /// Tell the importer that all of it is there, and hear that it has recorded so.
    Export {
        /// Who.
        peer: Place,
        /// What leaves.
        handoff: Box<Handoff>,
    },
    /// Remove the head of what this node doesn't own any more, or that a reset replaces, or that only keeps its commits; refused while
    /// something has it mounted.
    DropHead,
    /// Look for holders in all mount namespaces, then remove everything.
    Destroy {
        /// Level-1 qgroup.
        qgroup: u64,
    },
    /// Bytes and limit, and whether the head was written after that commit.
    Usage {
        /// Level-1 qgroup.
        qgroup: u64,
        /// An owner's newest commit.
        newest: Option<CommitId>,
        /// Measure the head's files, too.
        files: bool,
    },
    /// Bind-mount.
    Mount(MountWhat, String, MountMode),
    /// Unmount.
    Unmount(String),
    /// Take the stream that came with request `req`.
    Receive {
        /// The offer's request: its frames and replies wait in the shell under this name.
        req: ReqId,
        /// Level-1 qgroup.
        qgroup: u64,
        /// What is offered.
        offer: Box<Offer>,
        /// Go on from here.
        checkpoint: Option<Box<CheckpointRow>>,
    },
    /// Remove partial and checkpoints of a target.
    Discard(CommitId),
    /// Ask a peer for its versions.
    PeerVersions {
        /// For this job.
        job: JobUid,
        /// Whom.
        peer: Place,
    },
    /// Estimate a step.
    Estimate {
        /// Number of the step in the run's plan.
        step: usize,
        /// Base.
        from: Option<CommitId>,
        /// Target.
        to: CommitId,
    },
    /// Send a step.
    Send {
        /// For this job.
        job: JobUid,
        /// The run.
        run_id: uuid::Uuid,
        /// To whom.
        peer: Place,
        /// Our epoch.
        epoch: Epoch,
        /// Base.
        from: Option<CommitId>,
        /// Target, with its metadata.
        to: Box<Commit>,
        /// Go on from here, after proving the prefix.
        resume: Option<Box<ResumeToken>>,
        /// Estimate.
        expected: Option<u64>,
        /// Bytes per second, if limited.
        bandwidth: Option<u64>,
    },
}

/// How a task ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskDone {
    /// Nothing more to say.
    Ok,
    /// For `Inspect`.
    Inspected(Box<Found>),
    /// For `AllocateQgroup`.
    Qgroup(u64),
    /// For `CreateHead` of a clone: bytes that it shares with its origin.
    Cloned(u64),
    /// For `Open`: won.
    Opened {
        /// The epoch that was opened.
        epoch: Epoch,
        /// Attempt counter of authority.
        attempt: u64,
        /// The Filesystem is in phase `New`: it may be created empty.
        new: bool,
        /// When the swap was sent, by this node's boot clock: what it says was true no earlier than that (R0).
        sent: BootTime,
        /// Version of the object after the swap, if it is a number.
        version: Option<u64>,
    },
    /// For `CheckDeleting`: what a quorum read shows; `None`: there is no such object.
    Looked(Option<Box<Read>>),
    /// For `AskEpochs`: the highest of those who answered.
    HighestEpoch(Epoch),
    /// For `CheckHeadless`.
    Headless(bool),
    /// For `AskClones`: who of them doesn't, or is not on this node at all. Whoever doesn't answer needs it.
    Unneeded(Vec<FsId>),
    /// For `Swap`: what authority says now.
    Authority(Box<Read>),
    /// For `Commit`.
    Committed {
        /// Data bytes newer than the parent, if measured.
        changed_bytes: Option<u64>,
        /// What was nested in the head, if anything.
        nested: Option<Nested>,
    },
    /// For `FinalCommit`.
    Fenced {
        /// Generation of head and snapshot.
        generation: u64,
        /// What is nested in the head, if anything.
        nested: Option<Nested>,
    },
    /// For `Usage`.
    Usage {
        /// Bytes.
        bytes: u64,
        /// Limit.
        limit: u64,
        /// The head was written after the commit that was named; `None`: not known.
        written: Option<bool>,
        /// Bytes of the head's files, if they could be measured in time.
        files: Option<u64>,
    },
    /// For `Receive`: the commit is on disk, complete.
    Received {
        /// What was stored.
        commit: Box<Commit>,
    },
    /// For `PeerVersions`.
    Versions(Box<Versions>),
    /// For `Estimate`.
    Estimated(Option<u64>),
    /// For `Send`: the receiver has it durably.
    Sent {
        /// Payload bytes of this step.
        bytes: u64,
        /// It was there before.
        already: bool,
    },
}

/// What `Inspect` found on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// From fs.json.
    pub base: Option<Base>,
    /// There is a head.
    pub head: bool,
    /// It is read-only: fenced.
    pub fenced: bool,
    /// Complete commits.
    pub commits: Vec<Commit>,
    /// Checkpoints: (target, offset).
    pub checkpoints: Vec<(CommitId, u64)>,
    /// Targets with a partial receive.
    pub incoming: Vec<CommitId>,
    /// Names under `commits/` that make no sense.
    pub broken: Vec<String>,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done, or refused.
    Plain(Result<(), Problem>),
    /// Versions.
    Versions(Result<Box<Versions>, Problem>),
    /// A transfer is refused, or unnecessary (`Ok(commit)`: it is here). An accepted one is answered by its task.
    Receive(Result<CommitId, Problem>),
    /// Whether it starts from that commit, and needs it still.
    StartsFrom(Result<bool, Problem>),
    /// A fence.
    Fenced(Result<(CommitId, u64), Problem>),
    /// The checkpoint is journaled.
    Checkpointed,
}

/// Something to tell people: becomes an event object and a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// CamelCase.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// What handling an event asks for. Records first, durably; only then the rest may be seen by anyone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Out {
    /// To the journal, all or nothing.
    pub records: Vec<Record>,
    /// To start.
    pub tasks: Vec<(OpId, Task)>,
    /// To cancel; their `Done` still comes.
    pub cancels: Vec<OpId>,
    /// To answer.
    pub answers: Vec<(ReqId, Answer)>,
    /// To tell.
    pub notes: Vec<Note>,
    /// Nothing of it is left here and nothing is wanted: the actor may end.
    pub finished: bool,
}

impl Out {
    /// Tells people that something is as it should be.
    pub(super) fn note(&mut self, reason: impl Into<String>, message: impl Into<String>) {
        self.notes.push(Note { warning: false, reason: reason.into(), message: message.into() });
    }

    /// Tells people that something is not.
    pub(super) fn warn(&mut self, reason: impl Into<String>, message: impl Into<String>) {
        self.notes.push(Note { warning: true, reason: reason.into(), message: message.into() });
    }
}

/// Where and in which boot this copy lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Node and pool.
    pub place: Place,
    /// This boot.
    pub boot: BootId,
    /// Highest send stream version here.
    pub stream_version: u32,
    /// `uname -r`.
    pub kernel_release: String,
}
