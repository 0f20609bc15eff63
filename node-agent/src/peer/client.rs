//! Calls to other agents: one connection per peer, made when it is needed, to exactly the node that is meant. Used by the
//! actors' run tasks (`versions`) and sender tasks (`open`, see `transfer`).
//!
//! A connection is one TLS session to one certificate; it is never re-made behind our back. It is left for a new one when
//! the peer's address, its listed certificate or our own certificate changes; streams that run stay on the old one for as
//! long as both certificates are good.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dotgraft_engine::filesystem::{Handoff, Offer};
use dotgraft_engine::ids::{FsId, JobUid, NodeName};
use dotgraft_engine::model::{Problem, Reason, Versions};
use dotgraft_engine::run::{PROGRESS_MS, VERIFY_MS};
use dotgraft_proto::agent::v1 as wire;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use wire::peer_client::PeerClient as Stub;

use super::carried::Carried;
use super::directory::Fingerprint;
use super::server::KERNEL_SILENCE;
use super::status::problem_of;
use super::tls::{PeerIdentity, TlsContext, is_denial};
use super::transfer::{Opened, Patience, start};
use super::{H2_FRAME, KEEPALIVE, KEEPALIVE_TIMEOUT, WINDOW, convert, handoff, unix_now};

/// Deadlines of a client.
#[derive(Debug, Clone, Copy)]
pub struct ClientSettings {
    /// TCP, TLS and the peer's first bytes.
    pub connect_timeout: Duration,
    /// A listing.
    pub versions_timeout: Duration,
    /// A transfer: no byte and no message for that long is an error (replication.md §3).
    pub progress_timeout: Duration,
    /// After the end of a transfer, until the peer says that it is stored; also how long a peer that works may take no byte.
    pub verify_timeout: Duration,
    /// Our kernel may give no byte of a stream for that long.
    pub kernel_silence: Duration,
    /// A certificate that is not listed (yet) is tried again that often …
    pub denied_retries: u32,
    /// … after a change of the directory, at the latest after that long: both sides' views of a renewal lag a little.
    pub denied_pause: Duration,
    /// A connection without use is closed after that long.
    pub idle: Duration,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            versions_timeout: Duration::from_secs(30),
            progress_timeout: Duration::from_millis(PROGRESS_MS),
            verify_timeout: Duration::from_millis(VERIFY_MS),
            kernel_silence: KERNEL_SILENCE,
            denied_retries: 2,
            denied_pause: Duration::from_secs(2),
            idle: Duration::from_secs(120),
        }
    }
}

/// The pool. A cheap clone.
#[derive(Debug, Clone)]
pub struct PeerClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: TlsContext,
    settings: ClientSettings,
    slots: Mutex<HashMap<NodeName, Arc<Slot>>>,
}

type Slot = tokio::sync::Mutex<Option<Arc<Connection>>>;

/// A live connection.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Channel,
    address: SocketAddr,
    pub(super) peer: PeerIdentity,
    /// The certificate that we showed.
    ours: Fingerprint,
    /// Cleared when its socket is closed.
    alive: Arc<AtomicBool>,
}

impl PeerClient {
    /// A pool without connections.
    pub fn new(context: TlsContext, settings: ClientSettings) -> Self {
        Self { inner: Arc::new(Inner { context, settings, slots: Mutex::default() }) }
    }

    /// How long our kernel may give no byte of a stream.
    pub fn kernel_silence(&self) -> Duration {
        self.inner.settings.kernel_silence
    }

    /// Where `node` listens, if the directory knows it.
    pub fn address(&self, node: &NodeName) -> Option<SocketAddr> {
        self.inner.context.directory.get(node).map(|p| p.address)
    }

    /// What `node` holds of `fs`, for a job. A connection that turns out to be dead is replaced once.
    ///
    /// # Errors
    ///
    /// `Unreachable` or `Timeout` if no answer comes, `Denied` or `NotOwner` as the peer says.
    pub async fn versions(&self, node: &NodeName, fs: FsId, job: JobUid) -> Result<Versions, Problem> {
        let (connection, reused) = self.connection(node).await?;
        let first = self.versions_on(&connection, fs, job).await;
        match first {
            Err(problem) if reused && problem.reason == Reason::Unreachable => {
                let (connection, _) = self.fresh(node, &connection).await?;
                self.versions_on(&connection, fs, job).await
            }
            other => other,
        }
    }

    async fn versions_on(&self, connection: &Connection, fs: FsId, job: JobUid) -> Result<Versions, Problem> {
        let request = wire::VersionsRequest { fs_id: fs.to_string(), job_uid: job.to_string() };
        let mut stub = connection.stub();
        let answer = tokio::time::timeout(self.inner.settings.versions_timeout, stub.versions(request))
            .await
            .map_err(|_| Problem::new(Reason::Timeout, format!("node {} did not list its versions in time", connection.peer.leaf.node)))?
            .map_err(|status| connection.problem(&status))?;
        convert::versions_from_wire(fs, answer.into_inner())
    }

    /// Tells `node` that all of `fs` is there and authority goes to it; returns once that is recorded there (`EImportStart`).
    ///
    /// # Errors
    ///
    /// `Unreachable` or `Timeout` if no answer comes: then it may be recorded there all the same. Else the peer's refusal.
    pub async fn export(&self, node: &NodeName, fs: FsId, handoff: &Handoff) -> Result<(), Problem> {
        let request = handoff::request_of(fs, handoff)?;
        let (connection, reused) = self.connection(node).await?;
        match self.export_on(&connection, request.clone()).await {
            Err(problem) if reused && problem.reason == Reason::Unreachable => {
                let (connection, _) = self.fresh(node, &connection).await?;
                self.export_on(&connection, request).await
            }
            other => other,
        }
    }

    async fn export_on(&self, connection: &Connection, request: wire::ExportRequest) -> Result<(), Problem> {
        let mut stub = connection.stub();
        tokio::time::timeout(self.inner.settings.versions_timeout, stub.export(request))
            .await
            .map_err(|_| Problem::new(Reason::Timeout, format!("node {} did not answer in time", connection.peer.leaf.node)))?
            .map_err(|status| connection.problem(&status))?;
        Ok(())
    }

    /// Offers a commit of `fs` to `node`; returns when the peer has accepted it, has it already, or refused. `offer.from` is
    /// not sent: the certificate says it.
    ///
    /// # Errors
    ///
    /// `Unreachable` or `Timeout` if no answer comes. A refusal of the peer is no error: [`Opened`] says it.
    pub async fn open(&self, node: &NodeName, fs: FsId, offer: Offer) -> Result<Opened, Problem> {
        let (connection, reused) = self.connection(node).await?;
        match self.open_on(&connection, fs, &offer).await {
            // Nothing was accepted, so nothing was begun that a second offer would not find.
            Err(problem) if reused && problem.reason == Reason::Unreachable => {
                let (connection, _) = self.fresh(node, &connection).await?;
                self.open_on(&connection, fs, &offer).await
            }
            other => other,
        }
    }

    async fn open_on(&self, connection: &Arc<Connection>, fs: FsId, offer: &Offer) -> Result<Opened, Problem> {
        let ClientSettings { progress_timeout: progress, verify_timeout: verify, .. } = self.inner.settings;
        start(Arc::clone(connection), self.inner.context.clone(), Patience { progress, verify }, fs, offer).await
    }

    /// The pooled connection, if it is still good, else a new one; whether it was there before.
    async fn connection(&self, node: &NodeName) -> Result<(Arc<Connection>, bool), Problem> {
        let slot = self.slot(node);
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| self.inner.usable(node, c)) {
            return Ok((Arc::clone(connection), true));
        }
        *slot = None;
        let connection = Box::pin(self.connect(node)).await?; // a large future: TLS
        *slot = Some(Arc::clone(&connection));
        Ok((connection, false))
    }

    /// A connection other than `dead`.
    async fn fresh(&self, node: &NodeName, dead: &Arc<Connection>) -> Result<(Arc<Connection>, bool), Problem> {
        {
            let slot = self.slot(node);
            let mut slot = slot.lock().await;
            if slot.as_ref().is_some_and(|c| Arc::ptr_eq(c, dead)) {
                *slot = None;
            }
        }
        self.connection(node).await
    }

    fn slot(&self, node: &NodeName) -> Arc<Slot> {
        let mut slots = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(node.clone()).or_default())
    }

    async fn connect(&self, node: &NodeName) -> Result<Arc<Connection>, Problem> {
        let settings = &self.inner.settings;
        let mut changes = self.inner.context.directory.changed();
        let mut tries = 0;
        loop {
            let attempt = tokio::time::timeout(settings.connect_timeout, self.inner.dial(node)).await;
            let problem = match attempt {
                Ok(Ok(connection)) => {
                    let connection = Arc::new(connection);
                    self.close_when_idle(node.clone(), &connection);
                    return Ok(connection);
                }
                Ok(Err(problem)) => problem,
                Err(_) => Problem::new(Reason::Unreachable, format!("node {node} did not answer within {:?}", settings.connect_timeout)),
            };
            if problem.reason != Reason::Denied || tries >= settings.denied_retries {
                return Err(problem);
            }
            tries += 1;
            let _ = tokio::time::timeout(settings.denied_pause, changes.next()).await;
        }
    }

    /// Drops the pool's hold of a connection that nobody used for a while; agents that idle cost nothing.
    fn close_when_idle(&self, node: NodeName, connection: &Arc<Connection>) {
        let (weak, idle) = (Arc::downgrade(connection), self.inner.settings.idle);
        let client = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(idle).await;
                let slot = client.slot(&node);
                let mut slot = slot.lock().await;
                let Some(connection) = weak.upgrade() else { return };
                let pooled = slot.as_ref().is_some_and(|c| Arc::ptr_eq(c, &connection));
                if !pooled {
                    return;
                }
                // Held by the slot and by us only: no transfer runs on it.
                if Arc::strong_count(&connection) <= 2 {
                    *slot = None;
                    return;
                }
            }
        });
    }
}

impl Inner {
    fn usable(&self, node: &NodeName, connection: &Connection) -> bool {
        connection.alive.load(Ordering::Acquire)
            && self.context.directory.get(node).is_some_and(|p| p.address == connection.address)
            && self.context.still_good(&connection.peer, unix_now())
            && self.context.presented().is_some_and(|i| i.leaf.fingerprint == connection.ours)
    }

    async fn dial(&self, node: &NodeName) -> Result<Connection, Problem> {
        let unreachable = |what: String| Problem::new(Reason::Unreachable, what);
        let peer = self.context.directory.get(node).ok_or_else(|| unreachable(format!("node {node} has no NodePool with an address")))?;
        let ours = self.context.presented().ok_or_else(|| unreachable("this agent has no certificate yet".into()))?;
        let address = peer.address;
        let config = self.context.client_config(node).map_err(|e| Problem::new(Reason::Internal, e.to_string()))?;
        let failed = |e: io::Error| connect_problem(node, address, &e);
        let tcp = TcpStream::connect(address).await.map_err(failed)?;
        super::tune(&tcp);
        let tls = TlsConnector::from(config).connect(ServerName::IpAddress(address.ip().into()), tcp).await.map_err(failed)?;
        let peer = PeerIdentity::of_handshake(tls.get_ref().1.peer_certificates()).ok_or_else(|| unreachable("no certificate".into()))?;
        // In TLS 1.3 a server refuses our certificate after our handshake is over; its first bytes tell. HTTP/2 servers
        // speak first (SETTINGS), so this waits for nothing more than one round trip.
        let mut io = BufReader::with_capacity(16 << 10, tls);
        if io.fill_buf().await.map_err(failed)?.is_empty() {
            return Err(unreachable(format!("node {node} at {address} closed the connection: too many of them, or it is ending")));
        }
        let alive = Arc::new(AtomicBool::new(true));
        let channel = channel_over(Carried::new(io, Lifeline(Arc::clone(&alive)))).await.map_err(|e| unreachable(e.to_string()))?;
        Ok(Connection { channel, address, peer, ours: ours.leaf.fingerprint, alive })
    }
}

impl Connection {
    /// A gRPC client on it.
    pub(super) fn stub(&self) -> Stub<Channel> {
        Stub::new(self.channel.clone()).max_decoding_message_size(convert::MAX_LISTING_WIRE)
    }

    /// What a failed call means; a transport's own error says little, so it is given the peer's name.
    pub(super) fn problem(&self, status: &Status) -> Problem {
        let problem = problem_of(status);
        if status.details().is_empty() && problem.reason == Reason::Unreachable {
            return Problem::new(Reason::Unreachable, format!("the connection to node {} broke: {}", self.peer.leaf.node, problem.message));
        }
        problem
    }
}

fn connect_problem(node: &NodeName, address: SocketAddr, error: &io::Error) -> Problem {
    let denied = error.get_ref().and_then(|e| e.downcast_ref()).is_some_and(is_denial);
    let reason = if denied { Reason::Denied } else { Reason::Unreachable };
    Problem::new(reason, format!("node {node} at {address}: {error}"))
}

async fn channel_over(io: Carried<BufReader<TlsStream<TcpStream>>, Lifeline>) -> Result<Channel, tonic::transport::Error> {
    let mut once = Some(io);
    let connector = tower::service_fn(move |_: Uri| {
        let io = once.take().map(TokioIo::new).ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is closed"));
        std::future::ready(io)
    });
    Endpoint::from_static("http://dotgraft-agent")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(H2_FRAME)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(false)
        .connect_with_connector(connector)
        .await
}

/// Says with its end that the connection has gone.
struct Lifeline(Arc<AtomicBool>);

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
