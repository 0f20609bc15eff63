//! The hostile peer of `dotgraft-hostile` on a rig: with a node's own key, to its agents, and in the place of one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dotgraft_proto::agent::v1 as wire;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wire::peer_client::PeerClient;
use wire::receive_request::Message;

pub use dotgraft_hostile::{Identity, framed, request};

use super::Rig;

/// Nothing here waits longer for an answer than that.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the agent of `node` shows its peers now.
///
/// # Errors
///
/// There is no such node, or its agent has no certificate yet.
pub fn stolen_from(rig: &Rig, node: &str) -> Result<Identity> {
    let file = rig.node(node)?.files.state.join("tls/agent.pem");
    Ok(Identity::of_pem(std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?))
}

/// `Ok` if the agent at `address` lets that certificate in: its first bytes come. Else its alert is the error.
pub async fn let_in(address: &str, identity: &Identity) -> Result<()> {
    let first = dotgraft_hostile::let_in(address.parse()?, Some(identity));
    Ok(tokio::time::timeout(PATIENCE, first).await.context("neither let in nor refused")??)
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
        let stream = dotgraft_hostile::dial(address.parse()?, Some(identity), &rustls::version::TLS13).await?;
        Ok(Self(dotgraft_hostile::channel(stream).await?))
    }

    fn stub(&self) -> PeerClient<Channel> {
        dotgraft_hostile::stub(self.0.clone())
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
        let call = dotgraft_hostile::receive_raw(self.0.clone(), rx);
        let end = tokio::spawn(async move { Ok(dotgraft_hostile::refusal(&call.await.context("no gRPC status")?)) });
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

/// A refusal as an error.
fn refusal(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!(dotgraft_hostile::refusal(status))
}
