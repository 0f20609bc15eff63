//! The pump of one `Receive` stream: frames from the peer to the actor, answers back, and everything that ends it early:
//! a refusal, a peer that stalls or trickles, a certificate that is revoked or expires, an actor that hangs
//! (replication.md §3; failures.md rows 6, 9, 13, 14). Started by `server`; owns the stream until its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_engine::model::{Problem, Reason};
use dotgraft_proto::agent::v1 as wire;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::directory::DirectoryChanges;
use super::progress::{Progress, Stall};
use super::server::{bad_inbound, denied};
use super::status::status_of;
use super::tls::{PeerIdentity, TlsContext};
use super::{convert, unix_now};
use crate::actor::handle::{Frame, Reply};

/// How long the last word to a peer may take that doesn't read.
const LAST_WORD: Duration = Duration::from_secs(5);

/// The three channels of a stream.
pub(super) struct Ends {
    /// To the actor.
    pub frames: mpsc::Sender<Frame>,
    /// From the actor.
    pub replies: mpsc::Receiver<Reply>,
    /// To the peer.
    pub out: mpsc::Sender<Result<wire::ReceiveResponse, Status>>,
}

pub(super) struct Pump {
    context: TlsContext,
    peer: Arc<PeerIdentity>,
    /// To the actor; closed after `End`.
    frames: Option<mpsc::Sender<Frame>>,
    replies: mpsc::Receiver<Reply>,
    out: mpsc::Sender<Result<wire::ReceiveResponse, Status>>,
    progress: Progress,
    changes: DirectoryChanges,
    actor_patience: Duration,
    /// A frame that the actor has no room for yet.
    held: Option<Frame>,
    /// The last time the actor took a frame or said something.
    actor_seen: Instant,
}

/// What the pump woke up for.
#[allow(clippy::large_enum_variant)] // there is one at a time, and it is taken apart at once
enum Wake {
    Shutdown,
    PeerGone,
    Recheck,
    Reply(Option<Reply>),
    /// The actor took the held frame; whether that was `End`.
    Room(Result<bool, ()>),
    Inbound(Result<Option<wire::ReceiveRequest>, Box<Status>>),
    Timer,
}

/// Whether to go on.
enum Flow {
    On,
    /// The actor said its last word, and it was passed on.
    Stored(wire::ReceiveResponse),
    /// Nobody is left to tell.
    Gone,
}

impl Pump {
    pub(super) fn new(
        context: TlsContext,
        peer: Arc<PeerIdentity>,
        ends: Ends,
        progress: Progress,
        changes: DirectoryChanges,
        actor_patience: Duration,
    ) -> Self {
        let Ends { frames, replies, out } = ends;
        let (frames, held, actor_seen) = (Some(frames), None, Instant::now());
        Self { context, peer, frames, replies, out, progress, changes, actor_patience, held, actor_seen }
    }

    /// Runs to the end. Dropping the frame channel without `End` is how the actor learns that it was no good end.
    pub(super) async fn run(mut self, mut inbound: Streaming<wire::ReceiveRequest>, cancel: CancellationToken) {
        let last = loop {
            let wake = self.select(&mut inbound, &cancel).await;
            match self.apply(wake) {
                Ok(Flow::On) => {}
                Ok(Flow::Stored(message)) => break Some(Ok(message)),
                Ok(Flow::Gone) => break None,
                Err(problem) => break Some(Err(problem)),
            }
        };
        self.frames = None;
        if let Some(last) = last {
            if let Err(problem) = &last {
                tracing::info!(node = %self.peer.leaf.node, %problem, "a receive ended early");
            }
            let last = last.map_err(|p| status_of(&p));
            // A peer that does not read learns from the closed stream.
            let _ = tokio::time::timeout(LAST_WORD, self.out.send(last)).await;
        }
    }

    async fn select(&mut self, inbound: &mut Streaming<wire::ReceiveRequest>, cancel: &CancellationToken) -> Wake {
        let timer = self.next_timer();
        let reading = self.held.is_none() && self.frames.is_some();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Wake::Shutdown,
            () = self.changes.next() => Wake::Recheck,
            reply = self.replies.recv() => Wake::Reply(reply),
            () = self.out.closed() => Wake::PeerGone,
            () = sleep_until(timer.into()) => Wake::Timer,
            room = hand_over(self.frames.as_ref(), &mut self.held) => Wake::Room(room),
            message = inbound.message(), if reading => Wake::Inbound(message.map_err(Box::new)),
        }
    }

    /// When to look at the clocks again, at the latest in a minute: certificates expire by the wall clock.
    fn next_timer(&self) -> Instant {
        let minute = Instant::now() + Duration::from_secs(60);
        let actor = self.actor_deadline().unwrap_or(minute);
        let peer = if self.frames.is_some() { self.progress.deadline() } else { None };
        let expires = u64::try_from(self.peer.leaf.not_after.saturating_sub(unix_now()).saturating_add(1)).unwrap_or(0).min(60);
        let expires = Instant::now() + Duration::from_secs(expires);
        minute.min(actor).min(peer.unwrap_or(minute)).min(expires)
    }

    /// Only while the actor owes something: room for a frame, or the answer after `End`.
    fn actor_deadline(&self) -> Option<Instant> {
        (self.held.is_some() || self.frames.is_none()).then(|| self.actor_seen + self.actor_patience)
    }

    fn apply(&mut self, wake: Wake) -> Result<Flow, Problem> {
        match wake {
            Wake::Shutdown => Err(Problem::new(Reason::Unreachable, "the agent is shutting down")),
            Wake::PeerGone => Ok(Flow::Gone),
            Wake::Recheck => self.on_recheck(),
            Wake::Reply(reply) => self.on_reply(reply),
            Wake::Room(Ok(end)) => Ok(self.on_room(end)),
            // The actor gave up; its last word is on the way or was said by dropping the other channel.
            Wake::Room(Err(())) => {
                self.frames = None;
                self.held = None;
                Ok(Flow::On)
            }
            Wake::Inbound(message) => self.on_inbound(message),
            Wake::Timer => self.on_timer(),
        }
    }

    fn on_recheck(&self) -> Result<Flow, Problem> {
        if self.context.still_good(&self.peer, unix_now()) { Ok(Flow::On) } else { Err(denied(&self.peer)) }
    }

    fn on_reply(&mut self, reply: Option<Reply>) -> Result<Flow, Problem> {
        self.actor_seen = Instant::now();
        let Some(reply) = reply else {
            return Err(Problem::new(Reason::Busy, "the Filesystem's owner restarted; try again"));
        };
        let last = matches!(reply, Reply::Stored { .. });
        let message = convert::reply_to_wire(reply)?;
        if last {
            return Ok(Flow::Stored(message));
        }
        // A peer that does not read loses a `Durable`; the next one says more. `Accepted` is the first and finds room.
        let _ = self.out.try_send(Ok(message));
        Ok(Flow::On)
    }

    fn on_room(&mut self, end: bool) -> Flow {
        let now = Instant::now();
        self.actor_seen = now;
        if end {
            self.frames = None; // whatever comes after End is not read
        } else {
            self.progress.on_wait(now);
        }
        Flow::On
    }

    fn on_inbound(&mut self, message: Result<Option<wire::ReceiveRequest>, Box<Status>>) -> Result<Flow, Problem> {
        let message = message.map_err(|status| bad_inbound(&status))?;
        let message = message.ok_or_else(|| Problem::new(Reason::Invalid, "the stream ended without End"))?;
        let frame = convert::frame_from_wire(message)?;
        let now = Instant::now();
        self.actor_seen = now;
        self.progress.on_frame(now, if let Frame::Data(data) = &frame { data.len() } else { 0 });
        self.held = Some(frame);
        Ok(Flow::On)
    }

    fn on_timer(&self) -> Result<Flow, Problem> {
        self.on_recheck()?;
        let now = Instant::now();
        if self.actor_deadline().is_some_and(|at| now >= at) {
            return Err(Problem::new(Reason::Timeout, "the receiver's owner or disk made no progress"));
        }
        match self.progress.check(now) {
            Some(Stall::Silent) if self.frames.is_some() => Err(Problem::new(Reason::Timeout, "no frame came in time")),
            Some(Stall::Trickle) if self.frames.is_some() => Err(Problem::new(Reason::Timeout, "the sender is too slow to ever end")),
            _ => Ok(Flow::On),
        }
    }
}

/// Gives the held frame to the actor as soon as it has room; never, if nothing is held.
async fn hand_over(frames: Option<&mpsc::Sender<Frame>>, held: &mut Option<Frame>) -> Result<bool, ()> {
    let (Some(frames), true) = (frames, held.is_some()) else {
        return std::future::pending().await;
    };
    let room = frames.reserve().await.map_err(drop)?;
    let Some(frame) = held.take() else {
        return Ok(false);
    };
    let end = matches!(frame, Frame::End { .. });
    room.send(frame);
    Ok(end)
}
