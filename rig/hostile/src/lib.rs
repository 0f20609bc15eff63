//! A peer that doesn't keep the rules: it dials an agent with any key or none, believes every server, and sends what its caller likes. What
//! a node that was broken into could do; the agents' own clients are too polite for it. Used by the agent's tests of its Peer service and, on
//! whole agents, by the rig.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use dotgraft_proto::agent::v1::peer_client::PeerClient;
use dotgraft_proto::agent::v1::receive_request::Message;
use dotgraft_proto::agent::v1::{ReceiveRequest, Refusal};
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::ServiceExt as _;

/// A key with its chain.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity(String);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)") // it holds a private key
    }
}

impl Identity {
    /// Of PEM: the key and the chain, its leaf first, in any order of the two.
    pub fn of_pem(pem: impl Into<String>) -> Self {
        Self(pem.into())
    }

    /// The chain, its leaf first.
    ///
    /// # Errors
    ///
    /// A certificate that is no PEM.
    pub fn chain(&self) -> io::Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.0.as_bytes()).collect::<Result<_, _>>().map_err(io::Error::other)
    }

    /// The key.
    ///
    /// # Errors
    ///
    /// There is none, or it is no PEM.
    pub fn key(&self) -> io::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.0.as_bytes()).map_err(io::Error::other)
    }
}

/// Believes every server.
#[derive(Debug)]
struct Gullible(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Connects with that identity, or none, by that version of TLS.
///
/// # Errors
///
/// Nobody listens, or the server ends the handshake: under TLS 1.2 that is how it refuses a certificate. Under TLS 1.3 it does so
/// afterwards, see [`let_in`].
pub async fn dial(
    to: SocketAddr,
    identity: Option<&Identity>,
    version: &'static SupportedProtocolVersion,
) -> io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_auth_cert(identity.chain()?, identity.key()?).map_err(io::Error::other)?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(to).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(to.ip().into()), tcp).await
}

/// Whether the server lets that identity in: its first bytes come, rather than an alert or the end.
///
/// # Errors
///
/// The server's alert; that it closed the connection, or nobody listens.
pub async fn let_in(to: SocketAddr, identity: Option<&Identity>) -> io::Result<()> {
    let mut stream = dial(to, identity, &rustls::version::TLS13).await?;
    stream.read_exact(&mut [0; 1]).await.map(drop)
}

/// A gRPC channel over one connection; it is never made again.
///
/// # Errors
///
/// The other side doesn't begin to speak HTTP/2.
pub async fn channel(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Channel, tonic::transport::Error> {
    let mut once = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_: Uri| std::future::ready(once.take().ok_or_else(|| io::Error::other("closed"))));
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// The Peer service behind a channel, to which messages of any size may be sent.
pub fn stub(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_encoding_message_size(usize::MAX)
}

/// A message of a `Receive` stream.
pub fn request(message: Message) -> ReceiveRequest {
    ReceiveRequest { message: Some(message) }
}

/// A gRPC message with its prefix.
pub fn framed(message: &ReceiveRequest) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    let _ = message.encode(&mut out); // a BytesMut grows
    out.freeze()
}

/// Calls `Receive` with a body of raw bytes, half a message if the caller likes, and gives the status that ends the call; `None` if the
/// connection broke, or none came.
pub async fn receive_raw(channel: Channel, body: mpsc::Receiver<Bytes>) -> Option<Status> {
    let frames = ReceiverStream::new(body).map(|bytes| Ok::<_, Status>(hyper::body::Frame::data(bytes)));
    let call = hyper::Request::post("/dotgraft.agent.v1.Peer/Receive")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(http_body_util::StreamBody::new(frames)))
        .ok()?;
    let answer = channel.oneshot(call).await.ok()?;
    let body = answer.into_body().collect().await.ok()?;
    Status::from_header_map(body.trailers()?)
}

/// `Reason: message` of a refusal, else gRPC's own words.
pub fn refusal(status: &Status) -> String {
    match Refusal::decode(status.details()) {
        Ok(refusal) if !refusal.reason.is_empty() => format!("{}: {}", refusal.reason, refusal.message),
        _ => format!("{:?}: {}", status.code(), status.message()),
    }
}
