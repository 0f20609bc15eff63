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
    /// What was last said to be durable; `None`: the actor has not accepted the offer yet, and the peer rightly waits.
    durable: Option<u64>,
    /// The last time the peer was told something.
    said: Instant,
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
        let (frames, held, now) = (Some(frames), None, Instant::now());
        let (actor_seen, said, durable) = (now, now, None);
        Self { context, peer, frames, replies, out, progress, changes, actor_patience, held, actor_seen, durable, said }
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
        let life = self.life_due().unwrap_or(minute);
        minute.min(actor).min(peer.unwrap_or(minute)).min(expires).min(life)
    }

    /// Whether the actor owes something: the answer to the offer, room for a frame, or the answer after `End`.
    fn actor_owes(&self) -> bool {
        self.durable.is_none() || self.held.is_some() || self.frames.is_none()
    }

    fn actor_deadline(&self) -> Option<Instant> {
        self.actor_owes().then(|| self.actor_seen + self.actor_patience)
    }

    /// When the peer is to hear that we live although nothing moves: while our actor works, which may be a flush of minutes.
    fn life_due(&self) -> Option<Instant> {
        (self.actor_owes() && self.durable.is_some()).then(|| self.said + self.progress.alive_every())
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
        let accepted = matches!(reply, Reply::Accepted { .. });
        if let Reply::Accepted { offset } | Reply::Durable { offset } = &reply {
            self.durable = Some(*offset);
        }
        let mut message = convert::reply_to_wire(reply)?;
        if last {
            return Ok(Flow::Stored(message));
        }
        if accepted {
            if self.progress.takes_alive() {
                convert::want_alive(&mut message, self.progress.alive_every());
            }
            if self.held.is_none() {
                self.progress.on_wait(self.actor_seen);
            }
        }
        self.say(message);
        Ok(Flow::On)
    }

    /// A peer that does not read loses a `Durable`; the next one says more. `Accepted` is the first and finds room.
    fn say(&mut self, message: wire::ReceiveResponse) {
        self.said = Instant::now();
        let _ = self.out.try_send(Ok(message));
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
        if let (Frame::Alive, Some(frames)) = (&frame, &self.frames) {
            self.progress.on_alive(now);
            let _ = frames.try_send(frame); // an actor without room for it has frames enough
            return self.on_stall(now);
        }
        self.actor_seen = now;
        self.progress.on_frame(now, if let Frame::Data(data) = &frame { data.len() } else { 0 });
        self.held = Some(frame);
        Ok(Flow::On)
    }

    fn on_timer(&mut self) -> Result<Flow, Problem> {
        self.on_recheck()?;
        let now = Instant::now();
        if let (Some(offset), true) = (self.durable, self.life_due().is_some_and(|at| now >= at)) {
            self.say(convert::reply_to_wire(Reply::Durable { offset })?);
        }
        if self.actor_deadline().is_some_and(|at| now >= at) {
            return Err(Problem::new(Reason::Timeout, "the receiver's owner or disk made no progress"));
        }
        if self.frames.is_some() { self.on_stall(now) } else { Ok(Flow::On) }
    }

    fn on_stall(&self, now: Instant) -> Result<Flow, Problem> {
        let timeout = |what: String| Err(Problem::new(Reason::Timeout, what));
        match self.progress.check(now) {
            None => Ok(Flow::On),
            Some(Stall::Silent) => timeout("no frame came in time".into()),
            Some(Stall::Trickle) => timeout("the sender is too slow to ever end".into()),
            Some(Stall::Kernel(took)) => timeout(format!(
                "the sender says that it reads, but brought next to nothing in {} s (--kernel-silence here)",
                took.as_secs()
            )),
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
