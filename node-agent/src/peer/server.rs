//! The Peer service (agent.proto): who calls is in the certificate, what is asked goes to the Filesystem's actor. Nothing
//! is decided here but who may speak and how much at once.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_engine::ids::{FsId, NodeName};
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_engine::run::VERIFY_MS;
use dotgraft_proto::agent::v1 as wire;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use wire::peer_server::{Peer, PeerServer};

use super::accept::{AcceptSettings, ConnectedPeer, accept};
use super::limits::{Gate, Pass};
use super::progress::{Expectation, Progress};
use super::receive::{Ends, Pump};
use super::status::{cut, status_of};
use super::tls::{PeerIdentity, TlsContext};
use super::{H2_FRAME, KEEPALIVE, KEEPALIVE_TIMEOUT, WINDOW, convert, handoff, unix_now};
use crate::actor::handle::FsHandle;
use crate::actor::registry::Registry;

/// Frames between the network and an actor: 2 MiB of [`super::FRAME`] per stream, and 16 MiB of the largest ([`convert::MAX_FRAME`]), beside
/// the HTTP/2 window.
const FRAMES: usize = 16;
/// Answers between an actor and the network.
const REPLIES: usize = 16;

/// How long a kernel that sends may give no byte, on either side, unless the agent is told otherwise (`--kernel-silence`).
pub const KERNEL_SILENCE: Duration = Duration::from_secs(30 * 60);

/// Bounds of the Peer service.
#[derive(Debug, Clone, Copy)]
pub struct ServerSettings {
    /// Handshakes and connections.
    pub accept: AcceptSettings,
    /// Silence and trickle of a sending peer. A sender with a bandwidth limit sends small frames rather than late ones.
    pub expectation: Expectation,
    /// An actor that takes no frame and says nothing for that long ends the stream: as long as the sender's engine waits for a flush.
    pub actor_patience: Duration,
    /// A listing takes at most that long.
    pub versions_timeout: Duration,
    /// Streams (and listings) at once, of one node.
    pub streams_per_node: usize,
    /// Streams (and listings) at once.
    pub streams: usize,
}

impl ServerSettings {
    /// The usual bounds, for peers that may say nothing for `silence`, and must send 16 KiB in twice that time, not counted up to
    /// `kernel` in which they say that their kernel reads.
    pub fn with_silence(silence: Duration, kernel: Duration) -> Self {
        let expectation = Expectation { silence, window: silence * 2, min_bytes: 16 << 10, kernel: Some(kernel) };
        Self {
            accept: AcceptSettings::default(),
            expectation,
            actor_patience: Duration::from_millis(VERIFY_MS),
            versions_timeout: Duration::from_secs(30),
            streams_per_node: 16,
            streams: 64,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self::with_silence(Duration::from_secs(30), KERNEL_SILENCE)
    }
}

/// Serves peers on `listener` until cancelled; open streams then end with `Unreachable`, and the peers come back.
///
/// # Errors
///
/// [`ServeError`]: there is no TLS configuration, or the transport fails for good.
pub async fn serve(
    listener: TcpListener,
    context: TlsContext,
    registry: Registry,
    settings: ServerSettings,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    let tls = TlsAcceptor::from(context.server_config().map_err(ServeError::Tls)?);
    let incoming = ReceiverStream::new(accept(listener, tls, settings.accept, cancel.clone()));
    let streams = Gate::new(settings.streams_per_node, settings.streams);
    let service = Service { context, registry, settings, streams, cancel: cancel.clone() };
    let service =
        PeerServer::new(service).max_decoding_message_size(convert::MAX_FRAME + 1024).max_encoding_message_size(convert::MAX_LISTING_WIRE);
    tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(H2_FRAME)
        .max_concurrent_streams(u32::try_from(settings.streams_per_node * 2).unwrap_or(u32::MAX))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(16 << 10)
        .serve_with_incoming_shutdown(service, incoming, cancel.cancelled_owned())
        .await
        .map_err(ServeError::Transport)
}

/// Why the Peer service ended or never started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TLS configuration is impossible: a defect.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// The transport gave up.
    #[error("serving peers: {0}")]
    Transport(tonic::transport::Error),
}

struct Service {
    context: TlsContext,
    registry: Registry,
    settings: ServerSettings,
    streams: Gate<NodeName>,
    cancel: CancellationToken,
}

impl Service {
    /// Who calls, checked again for every stream, and a place for it.
    fn admit<T>(&self, request: &Request<T>) -> Result<(Arc<PeerIdentity>, Pass<NodeName>), Problem> {
        let Some(ConnectedPeer(peer)) = request.extensions().get::<ConnectedPeer>().cloned() else {
            return Err(Problem::new(Reason::Denied, "no certificate"));
        };
        if !self.context.still_good(&peer, unix_now()) {
            return Err(denied(&peer));
        }
        let busy = || Problem::new(Reason::Busy, "too many streams to this agent; try again in a moment");
        let pass = self.streams.enter(peer.leaf.node.clone()).ok_or_else(busy)?;
        Ok((peer, pass))
    }

    fn handle(&self, fs: FsId) -> Result<FsHandle, Problem> {
        self.registry.get(fs).ok_or_else(|| Problem::new(Reason::NotPlaced, format!("Filesystem {fs} has no Replica on this node (yet)")))
    }

    async fn list(&self, request: Request<wire::VersionsRequest>) -> Result<wire::VersionsResponse, Problem> {
        let (peer, _pass) = self.admit(&request)?;
        let request = request.into_inner();
        let fs = convert::fs_id(&request.fs_id)?;
        convert::job_uid(&request.job_uid)?;
        let versions = tokio::time::timeout(self.settings.versions_timeout, self.handle(fs)?.versions(peer.leaf.node.clone()))
            .await
            .map_err(|_| Problem::new(Reason::Timeout, "the Filesystem's owner did not answer in time"))??;
        Ok(convert::versions_to_wire(&versions))
    }

    /// The certificate says who hands over; nobody speaks for another node.
    async fn take_over(&self, request: Request<wire::ExportRequest>) -> Result<(), Problem> {
        let (peer, _pass) = self.admit(&request)?;
        let request = request.into_inner();
        let fs = convert::fs_id(&request.fs_id)?;
        let handoff = handoff::of_request(request)?;
        if handoff.from.node != peer.leaf.node {
            return Err(Problem::new(Reason::Denied, format!("node {} can't hand over for {}", peer.leaf.node, handoff.from.node)));
        }
        tokio::time::timeout(self.settings.versions_timeout, self.handle(fs)?.export(handoff))
            .await
            .map_err(|_| Problem::new(Reason::Timeout, "the Filesystem's owner did not answer in time"))?
    }

    async fn start(&self, request: Request<Streaming<wire::ReceiveRequest>>) -> Result<Responses, Problem> {
        let (peer, pass) = self.admit(&request)?;
        let mut inbound = request.into_inner();
        let silence = self.settings.expectation.silence;
        let first = tokio::time::timeout(silence, inbound.message())
            .await
            .map_err(|_| Problem::new(Reason::Timeout, "no offer came"))?
            .map_err(|status| bad_inbound(&status))?
            .ok_or_else(|| Problem::new(Reason::Invalid, "the stream ended before an offer"))?;
        let (fs, offer) = convert::first_from_wire(first, peer.leaf.node.clone())?;
        let handle = self.handle(fs)?;
        let (frames, actor_frames) = mpsc::channel(FRAMES);
        let (actor_replies, replies) = mpsc::channel(REPLIES);
        let (out, responses) = mpsc::channel(REPLIES);
        let ends = Ends { frames, replies, out };
        let progress = Progress::new(self.settings.expectation);
        let changes = self.context.directory.changed();
        let pump = Pump::new(self.context.clone(), peer, ends, progress, changes, self.settings.actor_patience);
        handle.receive(offer, actor_frames, actor_replies)?;
        let cancel = self.cancel.clone();
        tokio::spawn(async move {
            let _pass = pass;
            pump.run(inbound, cancel).await;
        });
        Ok(ReceiverStream::new(responses))
    }
}

type Responses = ReceiverStream<Result<wire::ReceiveResponse, Status>>;

#[tonic::async_trait]
impl Peer for Service {
    type ReceiveStream = Responses;

    async fn versions(&self, request: Request<wire::VersionsRequest>) -> Result<Response<wire::VersionsResponse>, Status> {
        self.list(request).await.map(Response::new).map_err(|p| status_of(&p))
    }

    async fn export(&self, request: Request<wire::ExportRequest>) -> Result<Response<wire::ExportResponse>, Status> {
        self.take_over(request).await.map(|()| Response::new(wire::ExportResponse {})).map_err(|p| status_of(&p))
    }

    async fn receive(&self, request: Request<Streaming<wire::ReceiveRequest>>) -> Result<Response<Responses>, Status> {
        self.start(request).await.map(Response::new).map_err(|p| status_of(&p))
    }
}

/// What a peer hears whose certificate is not good any more.
pub(super) fn denied(peer: &PeerIdentity) -> Problem {
    let leaf = &peer.leaf;
    let what = format!("the certificate {} of node {} is expired or not listed in its NodePool", leaf.fingerprint, leaf.node);
    Problem::new(Reason::Denied, what)
}

/// What an error of the inbound stream means: a message that can't be decoded or is too big, or a peer that is gone.
pub(super) fn bad_inbound(status: &Status) -> Problem {
    let reason = match status.code() {
        tonic::Code::OutOfRange | tonic::Code::Internal | tonic::Code::InvalidArgument | tonic::Code::Unimplemented => Reason::Invalid,
        _ => Reason::Unreachable,
    };
    Problem::new(reason, cut(status.message(), 200))
}
