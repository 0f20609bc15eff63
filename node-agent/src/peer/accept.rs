//! Accepting peers: TCP, TLS handshake, and the connection that carries the peer's name into every request. What does not
//! get through the handshake never reaches HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dotgraft_door::{Door, Guest, Limits, Quiet};
use dotgraft_engine::ids::NodeName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::carried::Carried;
use super::limits::{Gate, Pass};
use super::tls::{PeerIdentity, is_denial};

/// How much an unauthenticated or too busy peer may take.
#[derive(Debug, Clone, Copy)]
pub struct AcceptSettings {
    /// Handshakes at once, in all and from one address, and how long one may take.
    pub handshakes: Limits,
    /// Connections of one node.
    pub connections_per_node: usize,
    /// Connections.
    pub connections: usize,
}

impl Default for AcceptSettings {
    fn default() -> Self {
        Self {
            handshakes: Limits { total: 64, per_address: 8, unserved: Duration::from_secs(10) },
            connections_per_node: 8,
            connections: 512,
        }
    }
}

/// A connection whose peer is known.
pub type PeerConnection = Carried<TlsStream<TcpStream>, Admitted>;

/// Whose a connection is, and its place among the connections, which it gives back with its end.
#[derive(Debug)]
pub struct Admitted {
    peer: Arc<PeerIdentity>,
    _pass: Pass<NodeName>,
}

/// What requests of a connection carry: whose it is.
#[derive(Debug, Clone)]
pub struct ConnectedPeer(pub Arc<PeerIdentity>);

impl Connected for PeerConnection {
    type ConnectInfo = ConnectedPeer;
    fn connect_info(&self) -> ConnectedPeer {
        ConnectedPeer(Arc::clone(&self.with().peer))
    }
}

/// Accepts until cancelled; finished handshakes come out of the channel. Never an error: a bad peer is no reason to end.
pub fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    settings: AcceptSettings,
    cancel: CancellationToken,
) -> mpsc::Receiver<Result<PeerConnection, Infallible>> {
    let (ready, incoming) = mpsc::channel(16);
    let acceptor = Acceptor {
        tls,
        ready,
        handshakes: Door::new(settings.handshakes),
        connections: Gate::new(settings.connections_per_node, settings.connections),
        refused: Arc::default(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = acceptor.run(listener) => {}
        }
    });
    incoming
}

#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    ready: mpsc::Sender<Result<PeerConnection, Infallible>>,
    handshakes: Door,
    connections: Gate<NodeName>,
    refused: Arc<Refused>,
}

/// Each peer that comes again and again is one line in ten seconds.
#[derive(Debug, Default)]
struct Refused {
    certificates: Quiet,
    connections: Quiet,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let (tcp, from, guest) = self.handshakes.next(&listener).await;
            let this = self.clone();
            tokio::spawn(async move {
                if let Some(connection) = this.handshake(tcp, from, guest).await {
                    // Full only while the server is ending or very busy; the peer's own deadlines run.
                    let _ = this.ready.send(Ok(connection)).await;
                }
            });
        }
    }

    async fn handshake(&self, tcp: TcpStream, from: SocketAddr, guest: Guest) -> Option<PeerConnection> {
        super::tune(&tcp);
        let io = match guest.serve(self.tls.accept(tcp)).await {
            Some(Ok(io)) => io,
            Some(Err(error)) => {
                let denied = error.get_ref().and_then(|e| e.downcast_ref()).is_some_and(is_denial);
                if let Some(unsaid) = denied.then(|| self.refused.certificates.says()).flatten() {
                    tracing::warn!(%from, %error, unsaid, "a peer's certificate was refused");
                } else {
                    tracing::debug!(%from, %error, "handshake failed");
                }
                return None;
            }
            None => {
                tracing::debug!(%from, "handshake took too long");
                return None;
            }
        };
        let peer = Arc::new(PeerIdentity::of_handshake(io.get_ref().1.peer_certificates())?);
        let Some(pass) = self.connections.enter(peer.leaf.node.clone()) else {
            if let Some(unsaid) = self.refused.connections.says() {
                tracing::warn!(%from, node = %peer.leaf.node, unsaid, "too many connections of this node");
            }
            return None;
        };
        Some(Carried::new(io, Admitted { peer, _pass: pass }))
    }
}
