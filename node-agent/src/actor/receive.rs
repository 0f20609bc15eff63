//! The task that takes a peer's stream: frames in, work subvolume, checkpoints, digest, `snapshot -r`. What it has made
//! durable is told to the actor, and acknowledged to the peer only once the actor has journaled it.

use std::time::Duration;

use dotgraft_engine::filesystem::{CheckpointRow, Offer, TaskDone};
use dotgraft_engine::format::{FormatError, Kind};
use dotgraft_engine::model::{Commit, Problem, Reason, ResumeToken};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::fs_actor::{Said, cancelled};
use super::handle::{Frame, Reply};
use super::tasks::TaskCtx;
use crate::driver::{Driver, DriverError, Space};
use crate::stream::{Applier, ApplierState, ContentClass, Limits, StreamError};

/// A checkpoint at the latest after so many bytes: an interrupted transfer re-sends less than 64 MiB (design §7).
const CHECKPOINT_EVERY: u64 = 48 << 20;
/// No frame, not even [`Frame::Alive`], for so long ends the transfer; what has come is kept as a checkpoint. The pump ends it earlier
/// (`peer::progress`); this is for a pump that does not.
const FRAME_DEADLINE: Duration = Duration::from_secs(60);

/// Runs a receive to its end. The verdict goes to the peer by the actor, once it is journaled.
pub async fn run(
    ctx: &TaskCtx,
    qgroup: u64,
    offer: Offer,
    checkpoint: Option<Box<CheckpointRow>>,
    frames: mpsc::Receiver<Frame>,
    replies: mpsc::Sender<Reply>,
) -> Result<TaskDone, Problem> {
    let task = ctx.clone();
    let handle = Handle::current();
    let blocking = tokio::task::spawn_blocking(move || {
        let mut receive = Receive { ctx: task, handle, qgroup, offer, frames, up: replies, last: 0 };
        receive.run(checkpoint)
    });
    match blocking.await {
        Ok(result) => result.map(|commit| TaskDone::Received { commit: Box::new(commit) }),
        Err(e) => Err(Problem::new(Reason::Internal, format!("the receiver died: {e}"))),
    }
}

/// Lives on a blocking thread.
struct Receive {
    ctx: TaskCtx,
    handle: Handle,
    qgroup: u64,
    offer: Offer,
    frames: mpsc::Receiver<Frame>,
    up: mpsc::Sender<Reply>,
    /// Offset of the last checkpoint.
    last: u64,
}

enum Next {
    Frame(Frame),
    Gone,
    Cancelled,
}

impl Receive {
    fn driver(&self) -> std::sync::Arc<dyn Driver> {
        self.ctx.node.driver.clone()
    }

    fn run(&mut self, checkpoint: Option<Box<CheckpointRow>>) -> Result<Commit, Problem> {
        self.check_room()?;
        let mut applier = self.open(checkpoint)?;
        self.last = applier.position().offset;
        self.say(Reply::Accepted { offset: self.last });
        loop {
            match self.next() {
                Next::Frame(Frame::Data(bytes)) => {
                    self.ctx.node.metrics.received(bytes.len());
                    if let Err(e) = applier.feed(&bytes) {
                        return Err(self.stream_problem(&e));
                    }
                    if applier.position().offset.saturating_sub(self.last) >= CHECKPOINT_EVERY {
                        self.checkpoint(&mut applier)?;
                    }
                }
                Next::Frame(Frame::Alive) => {}
                Next::Frame(Frame::End { bytes, digest }) => return self.finish(applier, bytes, digest),
                Next::Gone => {
                    // A mere disconnect: what is here is worth keeping to the last command.
                    self.checkpoint(&mut applier)?;
                    return Err(Problem::new(
                        Reason::Unreachable,
                        "the sender went away in the middle; it goes on from here when it is back",
                    ));
                }
                Next::Cancelled => return Err(cancelled()),
            }
        }
    }

    fn next(&mut self) -> Next {
        let (frames, cancel) = (&mut self.frames, &self.ctx.cancel);
        self.handle.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Next::Cancelled,
                frame = tokio::time::timeout(FRAME_DEADLINE, frames.recv()) => match frame {
                    Ok(Some(frame)) => Next::Frame(frame),
                    Ok(None) | Err(_) => Next::Gone,
                },
            }
        })
    }

    fn say(&self, reply: Reply) {
        // A peer that no longer listens is noticed by its frames ending.
        let _ = self.handle.block_on(self.up.send(reply));
    }

    /// Typed, before bytes are sent (replication.md §2).
    fn check_room(&self) -> Result<(), Problem> {
        let driver = self.driver();
        let space = driver.space().and_then(Space::checked).map_err(|e| e.problem())?;
        let Some(expected) = self.offer.expected else { return Ok(()) };
        if expected > space.available {
            let text = format!(
                "about {} MiB are to come and the pool of node {} has {} MiB left: delete commits or Dots there, or enlarge the pool",
                expected >> 20,
                self.ctx.node.here.place.node,
                space.available >> 20
            );
            return Err(Problem::new(Reason::NoSpace, text));
        }
        let usage = driver.usage(self.qgroup).map_err(|e| e.problem())?;
        if usage.limit > 0 && usage.bytes.saturating_add(expected) > usage.limit {
            let text = format!(
                "about {} MiB are to come, {} of {} MiB of this Filesystem's limit are used: raise capacity or historyLimit, or delete commits",
                expected >> 20,
                usage.bytes >> 20,
                usage.limit >> 20
            );
            return Err(Problem::new(Reason::NoSpace, text));
        }
        Ok(())
    }

    fn open(&self, checkpoint: Option<Box<CheckpointRow>>) -> Result<Applier, Problem> {
        let target = self.offer.target.id;
        let at = checkpoint.as_ref().map(|c| c.token.offset);
        let start = |at| self.driver().receive_start(self.ctx.fs, self.qgroup, target, self.offer.base, at);
        let incoming = match start(at) {
            // The checkpoint is not there after all: from the beginning.
            Err(DriverError::NotFound(_)) if at.is_some() => return self.open(None),
            other => other.map_err(|e| e.problem())?,
        };
        let (class, limits) = (ContentClass::Trusted, Limits::default());
        let opened = match checkpoint {
            Some(row) => {
                let state = ApplierState::read(&row.state).map_err(|e| match e {
                    FormatError::Damaged { .. } => Problem::new(Reason::CorruptStream, format!("{e}; the receive starts again")),
                    newer => newer.problem(),
                })?;
                Applier::resume(incoming.root, incoming.base, class, limits, state)
            }
            None => Applier::new(incoming.root, incoming.base, class, limits),
        };
        opened.map_err(|e| self.stream_problem(&e))
    }

    fn checkpoint(&mut self, applier: &mut Applier) -> Result<(), Problem> {
        applier.flush().map_err(|e| self.stream_problem(&e))?;
        let position = applier.position();
        if position.offset == self.last || position.offset == 0 {
            return Ok(());
        }
        let target = self.offer.target.id;
        self.driver().receive_checkpoint(self.ctx.fs, self.qgroup, target, position.offset).map_err(|e| e.problem())?;
        let state = serde_json::to_string(&applier.state()).map_err(|e| Problem::new(Reason::Internal, e.to_string()))?;
        let token = ResumeToken {
            target,
            base: self.offer.base,
            offset: position.offset,
            prefix_digest: position.digest,
            stream_version: self.offer.stream_version,
            kernel_release: self.offer.kernel_release.clone(),
        };
        let row = CheckpointRow { version: Kind::Checkpoint.newest(), token, state };
        let (ack, journaled) = oneshot::channel();
        let said = Said::Checkpoint(self.ctx.op, Box::new(row), ack);
        let durable = self.handle.block_on(async { self.ctx.said.send(said).await.is_ok() && journaled.await.is_ok() });
        if !durable {
            return Err(cancelled());
        }
        self.last = position.offset;
        self.say(Reply::Durable { offset: position.offset });
        Ok(())
    }

    fn finish(&mut self, mut applier: Applier, bytes: u64, digest: [u8; 32]) -> Result<Commit, Problem> {
        applier.flush().map_err(|e| self.stream_problem(&e))?;
        let position = applier.finish().map_err(|e| self.stream_problem(&e))?;
        if position.offset != bytes || position.digest != digest {
            let text = format!(
                "{} of {bytes} bytes arrived and their BLAKE3 differs from the sender's: the copy is dropped and sent again",
                position.offset
            );
            return Err(Problem::new(Reason::DigestMismatch, text));
        }
        let commit = self.offer.target.clone();
        self.driver().receive_finish(self.qgroup, &commit).map_err(|e| e.problem())?;
        Ok(commit)
    }

    fn stream_problem(&self, e: &StreamError) -> Problem {
        let problem = e.problem();
        tracing::warn!(op = %self.ctx.op, from = %self.offer.from, "receive failed: {problem}");
        problem
    }
}
