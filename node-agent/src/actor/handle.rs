//! The way to a Filesystem's owner: a cheap clone that everyone else holds. Requests go through a bounded mailbox;
//! status comes back through a `watch` channel.

use std::sync::Arc;

use bytes::Bytes;
use dotgraft_engine::filesystem::{FilesystemStatus, Handoff, Offer};
use dotgraft_engine::ids::{CommitId, FsId, NodeName};
use dotgraft_engine::model::{Problem, Reason, Versions};
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::{MountMode, MountWhat};
use crate::target::MountTarget;

/// How many requests wait for one actor before it answers `Busy`.
pub const MAILBOX: usize = 256;

/// What comes down a transfer after it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Stream bytes.
    Data(Bytes),
    /// None yet, but the sender's kernel reads.
    Alive,
    /// The end: length and BLAKE3 of the whole stream, prefix included.
    End {
        /// Bytes in all.
        bytes: u64,
        /// Their digest.
        digest: [u8; 32],
    },
}

/// What goes back up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Go on at this offset.
    Accepted {
        /// Stream bytes to skip.
        offset: u64,
    },
    /// That much survives a crash.
    Durable {
        /// Stream bytes.
        offset: u64,
    },
    /// The commit is durable and journaled.
    Stored {
        /// Which.
        commit: CommitId,
        /// It was here before.
        already: bool,
    },
    /// Refused or failed; the transfer is over.
    Refused(Problem),
}

/// A message to an actor from the outside.
#[derive(Debug)]
pub enum Request {
    /// List versions for a peer.
    Versions {
        /// Its node, from its certificate.
        from: NodeName,
        /// The answer.
        reply: oneshot::Sender<Result<Versions, Problem>>,
    },
    /// Receive a commit. Frames and replies bypass the mailbox.
    Receive {
        /// What is offered.
        offer: Box<Offer>,
        /// The bytes. Closed without `End`: the peer went away.
        frames: mpsc::Receiver<Frame>,
        /// The answers; ends with `Stored` or `Refused`.
        replies: mpsc::Sender<Reply>,
    },
    /// Bind-mount.
    Mount {
        /// Head or commit.
        what: MountWhat,
        /// Where.
        target: MountTarget,
        /// What may be done through it; a commit is never written.
        mode: MountMode,
        /// The answer.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Unmount.
    Unmount {
        /// Where.
        target: MountTarget,
        /// The answer.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Fence the head; `force` even while it is mounted.
    Fence {
        /// Even while mounted.
        force: bool,
        /// The final commit and the generation.
        reply: oneshot::Sender<Result<(CommitId, u64), Problem>>,
    },
    /// An owner hands authority over to this node.
    Export {
        /// What leaves with it.
        handoff: Box<Handoff>,
        /// Answered once it is recorded durably.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Undo a fence.
    Thaw {
        /// The answer.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
}

impl Request {
    /// Answers that it can't be done. A requester that has gone away needs no answer.
    pub fn refuse(self, problem: Problem) {
        match self {
            Self::Versions { reply, .. } => drop(reply.send(Err(problem))),
            Self::Fence { reply, .. } => drop(reply.send(Err(problem))),
            Self::Receive { replies, .. } => drop(replies.try_send(Reply::Refused(problem))),
            Self::Mount { reply, .. } | Self::Unmount { reply, .. } | Self::Export { reply, .. } | Self::Thaw { reply } => {
                drop(reply.send(Err(problem)));
            }
        }
    }
}

/// Read-only view for people and tests: JSON of the engine's status.
pub type StatusJson = Arc<serde_json::Value>;

/// A cheap clone; the actor lives as long as the registry says.
#[derive(Debug, Clone)]
pub struct FsHandle {
    fs: FsId,
    mailbox: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<FilesystemStatus>>,
}

impl FsHandle {
    /// A handle to the actor behind `mailbox`.
    pub fn new(fs: FsId, mailbox: mpsc::Sender<Request>, status: watch::Receiver<Arc<FilesystemStatus>>) -> Self {
        Self { fs, mailbox, status }
    }
    /// Whose.
    pub fn fs_id(&self) -> FsId {
        self.fs
    }
    /// Requests that its owner hasn't looked at yet.
    pub fn waiting(&self) -> usize {
        self.mailbox.max_capacity() - self.mailbox.capacity()
    }
    /// The last status.
    pub fn current(&self) -> Arc<FilesystemStatus> {
        self.status.borrow().clone()
    }
    /// The last status as JSON, for people and tests.
    pub fn status(&self) -> StatusJson {
        Arc::new(serde_json::to_value(self.current().as_ref()).unwrap_or_default())
    }

    fn post(&self, request: Request) -> Result<(), Problem> {
        self.mailbox.try_send(request).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                Problem::new(Reason::Busy, "the mailbox of this Filesystem is full; try again in a moment")
            }
            mpsc::error::TrySendError::Closed(_) => Problem::new(Reason::NotFound, "this Filesystem is gone from this node"),
        })
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<Result<T, Problem>>) -> Request) -> Result<T, Problem> {
        let (tx, rx) = oneshot::channel();
        self.post(make(tx))?;
        rx.await.unwrap_or_else(|_| Err(Problem::new(Reason::Busy, "the Filesystem's owner restarted; try again")))
    }

    /// The versions held here, for a peer that may see them.
    ///
    /// # Errors
    ///
    /// `Busy` if the mailbox is full or the owner restarted, `NotFound` if the Filesystem is gone from this node; the owner's refusal:
    /// `NotPlaced` without a copy, `NotOwner` to a node that may not list this one.
    pub async fn versions(&self, from: NodeName) -> Result<Versions, Problem> {
        self.ask(|reply| Request::Versions { from, reply }).await
    }
    /// Hands a transfer to the owner; everything more comes by `replies`.
    ///
    /// # Errors
    ///
    /// `Busy` if the mailbox is full, `NotFound` if the Filesystem is gone from this node. Everything later is a [`Reply::Refused`].
    pub fn receive(&self, offer: Offer, frames: mpsc::Receiver<Frame>, replies: mpsc::Sender<Reply>) -> Result<(), Problem> {
        self.post(Request::Receive { offer: Box::new(offer), frames, replies })
    }
    /// Mounts head or commit at an existing directory.
    ///
    /// # Errors
    ///
    /// As [`FsHandle::versions`]; `NotOwner` for the head of a copy, or before authority is open, `Busy` while it is fenced or reset, `Held`
    /// while a reset keeps it for itself, `NotFound` without the commit; that of [`Driver::mount`](crate::driver::Driver::mount).
    pub async fn mount(&self, what: MountWhat, target: MountTarget, mode: MountMode) -> Result<(), Problem> {
        self.ask(|reply| Request::Mount { what, target, mode, reply }).await
    }
    /// Unmounts.
    ///
    /// # Errors
    ///
    /// As [`FsHandle::versions`]; that of [`Driver::unmount`](crate::driver::Driver::unmount).
    pub async fn unmount(&self, target: MountTarget) -> Result<(), Problem> {
        self.ask(|reply| Request::Unmount { target, reply }).await
    }
    /// Fences.
    ///
    /// # Errors
    ///
    /// As [`FsHandle::versions`]; `Mounted` without `force` while a pod has it, `NotOwner` of a replica, `Busy` while it is being thawed or reset;
    /// that of [`Driver::freeze`](crate::driver::Driver::freeze) and of [`Driver::final_commit`](crate::driver::Driver::final_commit).
    pub async fn fence(&self, force: bool) -> Result<(CommitId, u64), Problem> {
        self.ask(|reply| Request::Fence { force, reply }).await
    }
    /// Takes note that an owner hands authority over to this node.
    ///
    /// # Errors
    ///
    /// As [`FsHandle::versions`]; the refusal of a copy that can't take authority now, such as one that lacks the final commit. The handoff
    /// is not recorded then, and the exporter must not commit.
    pub async fn export(&self, handoff: Handoff) -> Result<(), Problem> {
        self.ask(|reply| Request::Export { handoff: Box::new(handoff), reply }).await
    }
    /// Thaws.
    ///
    /// # Errors
    ///
    /// As [`FsHandle::versions`]; `Busy` while authority is moving or has moved, as only the end of that thaws; `NotOwner` of a replica.
    pub async fn thaw(&self) -> Result<(), Problem> {
        self.ask(|reply| Request::Thaw { reply }).await
    }
}
