//! A peer that doesn't keep the rules: speaks to an agent with any node's key, believes every server, and sends what it likes.
//! What a node that was broken into could do; the agents' own clients are too polite for it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use dotgraft_proto::agent::v1 as wire;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use wire::peer_client::PeerClient;
use wire::receive_request::Message;

use super::Rig;

/// Nothing here waits longer for an answer than that.
const PATIENCE: Duration = Duration::from_secs(60);

/// A key with its chain, as an agent keeps them.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity(String);

impl Identity {
    /// What the agent of `node` shows its peers now.
    pub fn stolen_from(rig: &Rig, node: &str) -> Result<Self> {
        let file = rig.node(node)?.files.state.join("tls/agent.pem");
        Ok(Self(std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        Ok(CertificateDer::pem_slice_iter(self.0.as_bytes()).collect::<Result<_, _>>()?)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        Ok(PrivateKeyDer::from_pem_slice(self.0.as_bytes())?)
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

async fn dial(address: &str, identity: &Identity) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)))
        .with_client_auth_cert(identity.chain()?, identity.key()?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address: SocketAddr = address.parse()?;
    let tcp = TcpStream::connect(address).await?;
    Ok(TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(address.ip().into()), tcp).await?)
}

/// `Ok` if the agent at `address` lets that certificate in: its first bytes come. Else its alert is the error.
pub async fn let_in(address: &str, identity: &Identity) -> Result<()> {
    let first = async {
        let mut stream = dial(address, identity).await?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await?;
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, first).await.context("neither let in nor refused")?
}

/// Listens in the place of an agent, by a certificate of the caller's choice, until it is dropped.
pub struct Impostor {
    task: tokio::task::JoinHandle<()>,
    seen: Arc<Callers>,
}

/// What became of those who called.
#[derive(Default)]
struct Callers {
    left: AtomicUsize,
    spoke: AtomicUsize,
}

impl Impostor {
    /// At `address`, which must be free.
    pub async fn start(address: &str, identity: &Identity) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(identity.chain()?, identity.key()?)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let seen = Arc::<Callers>::default();
        let count = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                match acceptor.accept(tcp).await {
                    // Who believes us goes on to wait for our first bytes; who doesn't sends an alert or hangs up.
                    Ok(mut stream) => {
                        let closed = tokio::time::timeout(Duration::from_secs(1), stream.read_exact(&mut [0; 1])).await;
                        let field = if matches!(closed, Ok(Err(_))) { &count.left } else { &count.spoke };
                        field.fetch_add(1, Ordering::Relaxed);
                    }
                    // A mere look whether someone listens (the agents' probe) is no caller.
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(_) => drop(count.left.fetch_add(1, Ordering::Relaxed)),
                }
            }
        });
        Ok(Self { task, seen })
    }

    /// How many went away when they saw the certificate, and how many believed it.
    pub fn callers(&self) -> (usize, usize) {
        (self.seen.left.load(Ordering::Relaxed), self.seen.spoke.load(Ordering::Relaxed))
    }

    /// Gives the address free.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection to an agent's Peer service.
pub struct Peer(Channel);

impl Peer {
    /// Connects with that key.
    pub async fn connect(address: &str, identity: &Identity) -> Result<Self> {
        let mut once = Some(TokioIo::new(dial(address, identity).await?));
        let connector = tower::service_fn(move |_: Uri| std::future::ready(once.take().ok_or_else(|| io::Error::other("closed"))));
        Ok(Self(Endpoint::from_static("http://agent").connect_with_connector(connector).await?))
    }

    fn stub(&self) -> PeerClient<Channel> {
        PeerClient::new(self.0.clone()).max_encoding_message_size(usize::MAX)
    }

    /// The listing of a Filesystem.
    pub async fn versions(&self, fs_id: &str, job: &str) -> Result<wire::VersionsResponse> {
        let request = wire::VersionsRequest { fs_id: fs_id.into(), job_uid: job.into() };
        Ok(self.stub().versions(request).await?.into_inner())
    }

    /// Offers a commit and waits until that is accepted. An error is the refusal, by its reason.
    pub async fn offer(&self, offer: wire::Offer) -> Result<Transfer> {
        let (tx, rx) = mpsc::channel(8);
        tx.send(request(Message::Offer(offer))).await?;
        let mut stub = self.stub();
        let opened = async {
            let mut answers = stub.receive(ReceiverStream::new(rx)).await.map_err(|s| refusal(&s))?.into_inner();
            match answers.message().await.map_err(|s| refusal(&s))?.and_then(|a| a.message) {
                Some(wire::receive_response::Message::Accepted(_)) => Ok(Transfer { frames: tx, answers }),
                other => bail!("not accepted: {other:?}"),
            }
        };
        tokio::time::timeout(PATIENCE, opened).await.context("the offer was not answered")?
    }

    /// Offers a commit and sends what follows as raw bytes of HTTP/2 DATA: half a message, if the caller likes. Answers the end of
    /// the call: its gRPC status and the refusal, if there is one.
    pub fn offer_raw(&self, offer: wire::Offer) -> (mpsc::Sender<Bytes>, tokio::task::JoinHandle<Result<String>>) {
        let (tx, rx) = mpsc::channel::<Bytes>(16);
        let first = framed(&request(Message::Offer(offer)));
        let _ = tx.try_send(first); // there is room
        let channel = self.0.clone();
        let end = tokio::spawn(async move {
            use futures::StreamExt as _;
            use http_body_util::BodyExt as _;
            use tower::ServiceExt as _;
            let frames = ReceiverStream::new(rx).map(|b| Ok::<_, tonic::Status>(hyper::body::Frame::data(b)));
            let call = hyper::Request::post("/dotgraft.agent.v1.Peer/Receive")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(tonic::body::Body::new(http_body_util::StreamBody::new(frames)))?;
            let answer = channel.oneshot(call).await?;
            let body = answer.into_body().collect().await.map_err(|s| anyhow::anyhow!("{s}"))?;
            let trailers = body.trailers().context("no trailers")?;
            let status = tonic::Status::from_header_map(trailers).context("no gRPC status")?;
            Ok(format!("{:#}", refusal(&status)))
        });
        (tx, end)
    }
}

/// A transfer that was accepted.
pub struct Transfer {
    frames: mpsc::Sender<wire::ReceiveRequest>,
    answers: tonic::Streaming<wire::ReceiveResponse>,
}

impl Transfer {
    /// Sends stream bytes; an error if the other side has ended it.
    pub async fn data(&self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(1 << 20) {
            let sent = self.frames.send(request(Message::Data(chunk.to_vec().into())));
            tokio::time::timeout(PATIENCE, sent).await.context("no room for a frame")?.context("the stream is closed")?;
        }
        Ok(())
    }

    /// Sends one Data message of any size.
    pub async fn message(&self, bytes: Vec<u8>) -> Result<()> {
        Ok(self.frames.send(request(Message::Data(bytes.into()))).await?)
    }

    /// Says that our kernel reads and has nothing yet; an error if the other side has ended it.
    pub async fn alive(&self) -> Result<()> {
        Ok(self.frames.send(request(Message::Alive(wire::Alive {}))).await?)
    }

    /// Says that the stream is complete.
    pub async fn end(&self, stream: &[u8]) -> Result<()> {
        let end = wire::End { bytes: stream.len() as u64, digest: blake3::hash(stream).as_bytes().to_vec() };
        Ok(self.frames.send(request(Message::End(end))).await?)
    }

    /// Waits for the verdict: `Ok` is `Stored`; an error is the refusal, by its reason.
    pub async fn verdict(&mut self) -> Result<wire::Stored> {
        let verdict = async {
            while let Some(answer) = self.answers.message().await.map_err(|s| refusal(&s))? {
                if let Some(wire::receive_response::Message::Stored(stored)) = answer.message {
                    return Ok(stored);
                }
            }
            bail!("the stream ended without a verdict")
        };
        tokio::time::timeout(PATIENCE, verdict).await.context("no verdict")?
    }
}

/// A gRPC message with its prefix.
pub fn framed(message: &wire::ReceiveRequest) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    let _ = message.encode(&mut out); // a BytesMut grows
    out.freeze()
}

/// A message of a stream.
pub fn request(message: Message) -> wire::ReceiveRequest {
    wire::ReceiveRequest { message: Some(message) }
}

/// `Reason: message` of a refusal, else gRPC's own words.
fn refusal(status: &tonic::Status) -> anyhow::Error {
    match wire::Refusal::decode(status.details()) {
        Ok(refusal) if !refusal.reason.is_empty() => anyhow::anyhow!("{}: {}", refusal.reason, refusal.message),
        _ => anyhow::anyhow!("{:?}: {}", status.code(), status.message()),
    }
}
