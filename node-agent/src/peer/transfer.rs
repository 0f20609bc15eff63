//! The sending end of one `Receive` stream. The sender task pushes bytes; a task of ours listens to the answers, so that a
//! refusal in the middle ends the sender at once and is the error that is reported (replication.md §6.8).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dotgraft_engine::filesystem::Offer;
use dotgraft_engine::ids::{CommitId, FsId};
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_proto::agent::v1 as wire;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::bandwidth::Bandwidth;
use super::client::Connection;
use super::directory::DirectoryChanges;
use super::tls::TlsContext;
use super::{FRAME, convert, unix_now};
use crate::actor::handle::Reply;

/// Frames between the sender and HTTP/2.
const QUEUE: usize = 4;
/// After the stream broke under the sender: how long the answer that broke it may take to be read.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What came of an offer.
#[derive(Debug)]
pub enum Opened {
    /// Send from `Transfer::offset` on.
    Accepted(Transfer),
    /// The peer has it; nothing is to be sent.
    Stored(Stored),
}

/// The peer's acknowledgement: the commit is durable and journaled there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Which; always the one that was offered.
    pub commit: CommitId,
    /// It was there before; nothing was written.
    pub already: bool,
}

/// How long a peer is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// No word for that long is an error.
    pub progress: Duration,
    /// The peer may take no byte for that long although it says that it lives; and say nothing once it has all bytes.
    pub verify: Duration,
}

/// What the listener has heard so far.
#[derive(Debug, Clone)]
struct Heard {
    accepted: Option<u64>,
    alive: Option<Duration>,
    durable: u64,
    outcome: Option<Result<Stored, Problem>>,
    /// When something was heard.
    at: Instant,
}

/// An accepted transfer. Dropping it without `finish` tells the peer that the stream is abandoned; what is durable there
/// can be resumed.
#[derive(Debug)]
pub struct Transfer {
    /// Stream bytes that the peer has already and that must not be sent again.
    pub offset: u64,
    requests: Option<mpsc::Sender<wire::ReceiveRequest>>,
    heard: watch::Receiver<Heard>,
    /// How often the peer wants to hear that we live; `None`: never.
    alive: Option<Duration>,
    patience: Patience,
    listener: JoinHandle<()>,
    connection: Arc<Connection>,
    context: TlsContext,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Offers, and waits for the answer.
pub(super) async fn start(
    connection: Arc<Connection>,
    context: TlsContext,
    patience: Patience,
    fs: FsId,
    offer: &Offer,
) -> Result<Opened, Problem> {
    let target = offer.target.id;
    let (requests, outgoing) = mpsc::channel(QUEUE);
    let first = wire::receive_request::Message::Offer(convert::offer_to_wire(fs, offer));
    let sent = requests.try_send(wire::ReceiveRequest { message: Some(first) });
    sent.map_err(|_| Problem::new(Reason::Internal, "a new queue is full"))?;
    let changes = context.directory.changed();
    let mut stub = connection.stub();
    let answers = tokio::time::timeout(patience.progress, stub.receive(ReceiverStream::new(outgoing)))
        .await
        .map_err(|_| timed_out("no answer to the offer"))?
        .map_err(|status| connection.problem(&status))?
        .into_inner();
    let (tell, heard) = watch::channel(Heard { accepted: None, alive: None, durable: 0, outcome: None, at: Instant::now() });
    let ears = Listener { connection: Arc::clone(&connection), context: context.clone(), changes, target, tell };
    let listener = tokio::spawn(ears.run(answers));
    let transfer = Transfer { offset: 0, requests: Some(requests), heard, alive: None, patience, listener, connection, context };
    transfer.accepted().await
}

impl Transfer {
    async fn accepted(mut self) -> Result<Opened, Problem> {
        let answer = self.heard.wait_for(|h| h.accepted.is_some() || h.outcome.is_some());
        let heard = match tokio::time::timeout(self.patience.progress, answer).await {
            Ok(Ok(heard)) => heard.clone(),
            Ok(Err(_)) => return Err(listener_gone()),
            Err(_) => return Err(timed_out("the offer was neither accepted nor refused")),
        };
        match (heard.outcome, heard.accepted) {
            (Some(outcome), _) => outcome.map(Opened::Stored),
            (None, Some(offset)) => {
                self.offset = offset;
                self.alive = heard.alive;
                Ok(Opened::Accepted(self))
            }
            (None, None) => Err(listener_gone()),
        }
    }

    /// Stream bytes that survive a crash of the peer.
    pub fn durable(&self) -> u64 {
        self.heard.borrow().durable.max(self.offset)
    }

    /// How often the peer wants to hear that we live while we have nothing to send; `None`: it does not know the word.
    pub fn alive_every(&self) -> Option<Duration> {
        self.alive
    }

    /// Tells the peer that what it waits for is our kernel. Nothing is said to one that does not know the word.
    ///
    /// # Errors
    ///
    /// The peer's refusal, or that the stream has broken.
    pub async fn alive(&mut self) -> Result<(), Problem> {
        match self.alive {
            Some(_) => self.push(convert::alive_to_wire()).await,
            None => Ok(()),
        }
    }

    /// Waits for the peer to end the transfer early; why. For a sender that has nothing to send meanwhile.
    pub async fn ended(&self) -> Problem {
        let mut heard = self.heard.clone();
        match heard.wait_for(|h| h.outcome.is_some()).await {
            Ok(heard) => heard.outcome.clone().map_or_else(listener_gone, early),
            Err(_) => listener_gone(),
        }
    }

    /// Tells when the peer was last heard, also while the transfer is busy.
    pub fn ears(&self) -> Ears {
        Ears(self.heard.clone())
    }

    /// Sends payload, in frames of at most [`FRAME`] bytes; returns when the last is on its way. The peer's refusal comes
    /// out here, whatever was being sent.
    ///
    /// # Errors
    ///
    /// The peer's refusal, that the stream has broken, or `Timeout` if the peer takes nothing.
    pub async fn data(&mut self, mut bytes: Bytes) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let frame = bytes.split_to(bytes.len().min(FRAME));
            self.push(convert::data_to_wire(frame)).await?;
        }
        Ok(())
    }

    /// The same at a limited rate: waits for the bucket before each piece, and keeps pieces small where the rate is low.
    ///
    /// # Errors
    ///
    /// As [`Transfer::data`].
    pub async fn data_at(&mut self, mut bytes: Bytes, limit: &Bandwidth) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(limit.piece(FRAME)));
            limit.take(piece.len()).await;
            self.push(convert::data_to_wire(piece)).await?;
        }
        Ok(())
    }

    /// Ends the stream with length and BLAKE3 of *all* its bytes, prefix included, and waits for the peer to store it.
    ///
    /// # Errors
    ///
    /// The peer's refusal, such as `DigestMismatch`; that the stream has broken, or `Timeout`: then it may be stored all the same.
    pub async fn finish(mut self, bytes: u64, digest: [u8; 32]) -> Result<Stored, Problem> {
        let end = wire::receive_request::Message::End(wire::End { bytes, digest: digest.to_vec() });
        self.push(wire::ReceiveRequest { message: Some(end) }).await?;
        self.requests = None;
        let mut since = Instant::now();
        loop {
            let heard = self.heard.borrow_and_update().clone();
            if let Some(outcome) = heard.outcome {
                return outcome;
            }
            since = since.max(heard.at);
            tokio::select! {
                changed = self.heard.changed() => changed.map_err(|_| listener_gone())?,
                () = tokio::time::sleep_until(since + self.patience.verify) => return Err(timed_out("the peer has all bytes but does not say that they are stored")),
            }
        }
    }

    async fn push(&mut self, request: wire::ReceiveRequest) -> Result<(), Problem> {
        let start = Instant::now();
        let mut since = start;
        loop {
            // Also here, not only by the listener: no byte goes out after a revocation was seen.
            still_good(&self.context, &self.connection)?;
            let heard = self.heard.borrow_and_update().clone();
            if let Some(outcome) = heard.outcome {
                return Err(early(outcome));
            }
            since = since.max(heard.at);
            let Some(requests) = &self.requests else { return Err(listener_gone()) };
            let room = tokio::select! {
                biased;
                changed = self.heard.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Err(listener_gone()),
                },
                room = requests.reserve() => room.ok(),
                () = tokio::time::sleep_until((since + self.patience.progress).min(start + self.patience.verify)) => {
                    return Err(timed_out("the peer takes no more bytes"));
                }
            };
            if let Some(room) = room {
                room.send(request);
                return Ok(());
            }
            break;
        }
        Err(self.broken().await)
    }

    /// HTTP/2 dropped our end; why, the listener is about to hear.
    async fn broken(&mut self) -> Problem {
        let outcome = tokio::time::timeout(LAST_WORD, self.heard.wait_for(|h| h.outcome.is_some())).await;
        match outcome {
            Ok(Ok(heard)) => heard.outcome.clone().map_or_else(listener_gone, early),
            _ => listener_gone(),
        }
    }
}

/// When a peer was last heard.
#[derive(Debug)]
pub struct Ears(watch::Receiver<Heard>);

impl Ears {
    /// That.
    pub fn last_heard(&self) -> Instant {
        self.0.borrow().at
    }
}

/// An outcome before the end was sent can only be an error.
fn early(outcome: Result<Stored, Problem>) -> Problem {
    outcome.err().unwrap_or_else(|| Problem::new(Reason::Internal, "the peer says it stored a stream that was not sent to its end"))
}

fn timed_out(what: &str) -> Problem {
    Problem::new(Reason::Timeout, what)
}

fn listener_gone() -> Problem {
    Problem::new(Reason::Unreachable, "the stream to the peer broke")
}

/// The peer's certificate may have been revoked, or have expired, under the stream.
fn still_good(context: &TlsContext, connection: &Connection) -> Result<(), Problem> {
    if context.still_good(&connection.peer, unix_now()) {
        return Ok(());
    }
    let leaf = &connection.peer.leaf;
    Err(Problem::new(
        Reason::Denied,
        format!("the certificate {} of node {} is expired or not listed any more", leaf.fingerprint, leaf.node),
    ))
}

/// Hears the answers to their end.
struct Listener {
    connection: Arc<Connection>,
    context: TlsContext,
    changes: DirectoryChanges,
    target: CommitId,
    tell: watch::Sender<Heard>,
}

impl Listener {
    async fn run(mut self, mut answers: Streaming<wire::ReceiveResponse>) {
        let outcome = loop {
            match self.next(&mut answers).await {
                Ok(None) => {}
                Ok(Some(stored)) => break Ok(stored),
                Err(problem) => break Err(problem),
            }
        };
        self.tell.send_modify(|h| {
            h.at = Instant::now();
            h.outcome = Some(outcome);
        });
    }

    async fn next(&mut self, answers: &mut Streaming<wire::ReceiveResponse>) -> Result<Option<Stored>, Problem> {
        let minute = Duration::from_secs(60);
        tokio::select! {
            message = answers.message() => {
                let message = message.map_err(|status| self.connection.problem(&status))?;
                self.hear(message.ok_or_else(|| Problem::new(Reason::Unreachable, "the peer ended the stream without an answer"))?)
            }
            () = self.changes.next() => still_good(&self.context, &self.connection).map(|()| None),
            () = tokio::time::sleep(minute) => still_good(&self.context, &self.connection).map(|()| None),
        }
    }

    fn hear(&self, message: wire::ReceiveResponse) -> Result<Option<Stored>, Problem> {
        let alive = convert::alive_wanted(&message);
        match convert::reply_from_wire(message)? {
            Reply::Accepted { offset } => self.tell.send_modify(|h| {
                h.at = Instant::now();
                h.alive = h.alive.or(alive);
                h.accepted = Some(h.accepted.unwrap_or(offset));
            }),
            Reply::Durable { offset } => self.tell.send_modify(|h| {
                h.at = Instant::now();
                h.durable = h.durable.max(offset);
            }),
            Reply::Stored { commit, .. } if commit != self.target => {
                return Err(Problem::new(Reason::Internal, format!("the peer acknowledged commit {commit}, offered was {}", self.target)));
            }
            Reply::Stored { commit, already } => return Ok(Some(Stored { commit, already })),
            Reply::Refused(problem) => return Err(problem),
        }
        Ok(None)
    }
}
