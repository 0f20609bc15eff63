//! The hostile peer of `dotgraft-hostile`, to a [`Node`] of these tests and with the identities that their CA issues.

use std::io;

use dotgraft_hostile::Identity;
use dotgraft_proto::agent::v1::peer_client::PeerClient as Stub;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;

use crate::support::*;

fn of((key, chain): &(String, String)) -> Identity {
    Identity::of_pem(format!("{key}{chain}"))
}

/// Connects with that certificate, or none, by that version of TLS.
pub async fn tls(
    to: &Node,
    identity: Option<&(String, String)>,
    version: &'static rustls::SupportedProtocolVersion,
) -> io::Result<TlsStream<TcpStream>> {
    dotgraft_hostile::dial(to.address, identity.map(of).as_ref(), version).await
}

/// Whether the server lets that certificate in.
pub async fn let_in(to: &Node, identity: Option<&(String, String)>) -> bool {
    soon(dotgraft_hostile::let_in(to.address, identity.map(of).as_ref())).await.is_ok()
}

pub async fn channel(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Channel {
    dotgraft_hostile::channel(io).await.unwrap()
}

/// A stub at `to` with a good certificate and none of our client's manners.
pub async fn stub(to: &Node, identity: &(String, String)) -> Stub<Channel> {
    dotgraft_hostile::stub(channel(tls(to, Some(identity), &rustls::version::TLS13).await.unwrap()).await)
}
