//! A CA, nodes with certificates and servers, and an actor that does what a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dotgraft_agent::actor::handle::{Frame, FsHandle, MAILBOX, Reply, Request};
use dotgraft_agent::actor::registry::Registry;
use dotgraft_agent::peer::Transfer;
use dotgraft_agent::peer::client::{ClientSettings, PeerClient};
use dotgraft_agent::peer::directory::{Fingerprint, PeerDirectory, PeerInfo};
use dotgraft_agent::peer::identity::IdentityStore;
use dotgraft_agent::peer::progress::Expectation;
use dotgraft_agent::peer::server::{self, ServerSettings};
use dotgraft_agent::peer::tls::TlsContext;
use dotgraft_engine::filesystem::{Filesystem, FilesystemStatus, Here, Offer, Recovered};
use dotgraft_engine::ids::{BootId, CommitId, Epoch, FsId, JobUid, NodeName, PoolId, Timestamp};
use dotgraft_engine::model::{Commit, Place, Problem, Reason, Versions, VersionsRole};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub const SECOND: Duration = Duration::from_secs(1);

pub fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// Unix seconds.
pub fn now() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

/// Ends a test that hangs.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(60 * SECOND, what).await.expect("the test hangs")
}

/// Sends bytes until it is told to stop.
pub async fn until_refused(transfer: &mut Transfer) -> Problem {
    soon(async {
        loop {
            if let Err(problem) = transfer.data(bytes(1 << 20)).await {
                return problem;
            }
        }
    })
    .await
}

pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says; the default is a good one.
pub struct Leaf {
    pub cn: String,
    pub dns: Vec<String>,
    pub from: i64,
    pub to: i64,
}

impl Leaf {
    pub fn of(name: &str) -> Self {
        Self { cn: format!("dotgraft-agent:{name}"), dns: vec![name.to_owned()], from: now() - 60, to: now() + 3600 }
    }
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Key and chain, PEM.
    pub fn issue(&self, leaf: &Leaf) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let chain = self.sign(leaf, &key);
        (key.serialize_pem(), chain)
    }

    pub fn sign(&self, leaf: &Leaf, key: &impl rcgen::PublicKeyData) -> String {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, leaf.cn.as_str());
        params.subject_alt_names = leaf.dns.iter().map(|d| SanType::DnsName(d.as_str().try_into().unwrap())).collect();
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params.not_before = epoch + Duration::from_secs(leaf.from.try_into().unwrap());
        params.not_after = epoch + Duration::from_secs(leaf.to.try_into().unwrap());
        let cert = params.signed_by(key, &self.0).unwrap();
        format!("{}{}", cert.pem(), self.pem())
    }
}

/// An agent's network half.
pub struct Node {
    pub name: NodeName,
    pub context: TlsContext,
    pub registry: Registry,
    pub address: SocketAddr,
    pub cancel: CancellationToken,
    pub tls_dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Short deadlines, so that tests end.
pub fn quick() -> ServerSettings {
    let kernel = Some(3 * SECOND);
    let expectation = Expectation { silence: Duration::from_millis(400), window: Duration::from_millis(1200), min_bytes: 1000, kernel };
    ServerSettings { expectation, ..ServerSettings::default() }
}

pub fn quick_client() -> ClientSettings {
    let pause = Duration::from_millis(50);
    ClientSettings { denied_pause: pause, progress_timeout: 5 * SECOND, connect_timeout: 2 * SECOND, ..ClientSettings::default() }
}

impl Node {
    /// A node with that certificate, serving on loopback. Nobody knows it yet.
    pub async fn start(name: &str, (key, chain): (String, String), settings: ServerSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::open(&dir.path().join("tls"), node(name)).unwrap();
        store.install(&key, &chain).unwrap();
        let context = TlsContext::new(store, PeerDirectory::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (registry, cancel) = (Registry::default(), CancellationToken::new());
        tokio::spawn(server::serve(listener, context.clone(), registry.clone(), settings, cancel.clone()));
        Self { name: node(name), context, registry, address, cancel, tls_dir: dir }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.context.identity.current().unwrap().leaf.fingerprint
    }

    pub fn info(&self) -> PeerInfo {
        PeerInfo { address: self.address, fingerprints: vec![self.fingerprint()] }
    }

    /// Puts another node in this one's directory.
    pub fn learn(&self, other: &Node) {
        self.context.directory.update(other.name.clone(), other.info());
    }

    pub fn client(&self) -> PeerClient {
        PeerClient::new(self.context.clone(), quick_client())
    }
}

/// Two nodes of one CA that know each other and themselves: `a` sends, `b` receives.
pub async fn pair(ca: &Ca, settings: ServerSettings) -> (Node, Node) {
    let a = Node::start("a", ca.issue(&Leaf::of("a")), settings).await;
    let b = Node::start("b", ca.issue(&Leaf::of("b")), settings).await;
    for one in [&a, &b] {
        one.learn(&a);
        one.learn(&b);
    }
    (a, b)
}

/// What an actor does with a receive.
#[derive(Clone)]
pub enum Act {
    /// Takes everything; `Durable` after each frame, `Stored` at the end.
    Store,
    /// Accepts, then refuses after that many bytes.
    RefuseAfter(u64, Problem),
    /// Has it already.
    Already,
    /// Accepts and never takes a frame.
    Hang,
    /// Accepts at an offset.
    Resume(u64),
    /// Like `Store`, but works that long on each thing: the offer, the first frame, the end.
    Slow(Duration),
    /// Like `Store`, but does nothing with the first frame, nor takes another, before it is told to.
    Until(watch::Receiver<bool>),
}

/// What an actor saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub from: Option<NodeName>,
    pub bytes: u64,
    pub frames: u64,
    /// Words that the sender's kernel reads.
    pub alive: u64,
    pub ended: bool,
    /// The frame channel was closed without End.
    pub abandoned: bool,
}

pub struct FakeActor {
    pub fs: FsId,
    pub seen: Arc<Mutex<Seen>>,
    /// Keeps a mailbox that nobody reads.
    _mailbox: Option<mpsc::Receiver<Request>>,
}

impl FakeActor {
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until the actor saw what it should.
    pub async fn saw(&self, what: impl Fn(&Seen) -> bool) -> Seen {
        soon(async {
            loop {
                let seen = self.seen();
                if what(&seen) {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

fn handle(fs: FsId, mailbox: usize) -> (FsHandle, mpsc::Receiver<Request>) {
    let (tx, rx) = mpsc::channel(mailbox);
    let (_keep, watch) = watch::channel(Arc::new(status(fs)));
    (FsHandle::new(fs, tx, watch), rx)
}

/// The status of a copy of which nothing is known.
fn status(fs: FsId) -> FilesystemStatus {
    Filesystem::recover(fs, here(here_place()), 1, Recovered::default()).status()
}

pub fn here_place() -> Place {
    Place { node: node("b"), pool: PoolId::from_uuid(uuid::Uuid::from_bytes([5; 16])) }
}

pub fn here(place: Place) -> Here {
    let boot = BootId::from_uuid(uuid::Uuid::from_bytes([6; 16]));
    Here { place, boot, stream_version: 2, kernel_release: "6.18.0".into() }
}

/// An actor at `node` whose requests are answered by that function.
pub fn answered_by(node: &Node, fs: FsId, mut answer: impl FnMut(Request) + Send + 'static) {
    let (handle, mut mailbox) = handle(fs, MAILBOX);
    node.registry.insert(handle);
    tokio::spawn(async move {
        while let Some(request) = mailbox.recv().await {
            answer(request);
        }
    });
}

/// An actor at `node` that acts.
pub fn actor(node: &Node, act: Act) -> FakeActor {
    let fs = FsId::from_uuid(uuid::Uuid::now_v7());
    let (handle, mut mailbox) = handle(fs, MAILBOX);
    node.registry.insert(handle);
    let seen = Arc::<Mutex<Seen>>::default();
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Some(request) = mailbox.recv().await {
            answer(request, &act, &shared, fs);
        }
    });
    FakeActor { fs, seen, _mailbox: None }
}

/// An actor that is too busy to read its mailbox, which has room for `mailbox` requests.
pub fn deaf_actor(node: &Node, mailbox: usize) -> FakeActor {
    let fs = FsId::from_uuid(uuid::Uuid::now_v7());
    let (handle, receiver) = handle(fs, mailbox);
    node.registry.insert(handle);
    FakeActor { fs, seen: Arc::default(), _mailbox: Some(receiver) }
}

fn answer(request: Request, act: &Act, seen: &Arc<Mutex<Seen>>, fs: FsId) {
    match request {
        Request::Versions { reply, .. } => drop(reply.send(Ok(versions(fs)))),
        Request::Receive { offer, frames, replies } => {
            drop(tokio::spawn(receive(*offer, frames, replies, act.clone(), Arc::clone(seen))));
        }
        Request::Mount { reply, .. } | Request::Unmount { reply, .. } | Request::Thaw { reply } => drop(reply.send(Ok(()))),
        Request::Fence { force: false, reply } => drop(reply.send(Err(Problem::new(Reason::Mounted, "mounted by pid 1")))),
        Request::Fence { reply, .. } => drop(reply.send(Ok((commit_id(9), 77)))),
        Request::Export { .. } => {}
    }
}

async fn receive(offer: Offer, mut frames: mpsc::Receiver<Frame>, replies: mpsc::Sender<Reply>, act: Act, seen: Arc<Mutex<Seen>>) {
    seen.lock().unwrap().from = Some(offer.from.clone());
    let offset = match &act {
        Act::Already => {
            let _ = replies.send(Reply::Stored { commit: offer.target.id, already: true }).await;
            return;
        }
        Act::Resume(offset) => *offset,
        _ => 0,
    };
    let work = if let Act::Slow(work) = act { work } else { Duration::ZERO };
    tokio::time::sleep(work).await;
    if replies.send(Reply::Accepted { offset }).await.is_err() {
        seen.lock().unwrap().abandoned = true; // the peer went before it heard that
        return;
    }
    if matches!(act, Act::Hang) {
        replies.closed().await;
        return;
    }
    while let Some(frame) = frames.recv().await {
        match frame {
            Frame::Alive => seen.lock().unwrap().alive += 1,
            Frame::Data(data) => {
                let first = seen.lock().unwrap().frames == 0;
                if first && !work.is_zero() {
                    tokio::time::sleep(work).await; // not at all else: a sleep of nothing takes a millisecond
                }
                if let (true, Act::Until(told)) = (first, &act) {
                    let _ = told.clone().wait_for(|go_on| *go_on).await;
                }
                let total = {
                    let mut seen = seen.lock().unwrap();
                    seen.bytes += data.len() as u64;
                    seen.frames += 1;
                    seen.bytes
                };
                if let Act::RefuseAfter(limit, problem) = &act
                    && total > *limit
                {
                    let _ = replies.send(Reply::Refused(problem.clone())).await;
                    return;
                }
                let _ = replies.send(Reply::Durable { offset: offset + total }).await;
            }
            Frame::End { bytes, .. } => {
                tokio::time::sleep(work).await;
                let total = {
                    let mut seen = seen.lock().unwrap();
                    seen.ended = true;
                    seen.bytes + offset
                };
                let reply = if bytes == total {
                    Reply::Stored { commit: offer.target.id, already: false }
                } else {
                    Reply::Refused(Problem::new(Reason::DigestMismatch, "length"))
                };
                let _ = replies.send(reply).await;
                return;
            }
        }
    }
    seen.lock().unwrap().abandoned = true;
}

pub fn commit_id(n: u8) -> CommitId {
    CommitId::from_uuid(uuid::Uuid::from_bytes([n; 16]))
}

pub fn commit(fs: FsId, n: u8) -> Commit {
    Commit {
        version: 1,
        id: commit_id(n),
        fs_id: fs,
        parent: None,
        time: Timestamp(1_700_000_000_000),
        epoch: Epoch(1),
        seq: 7,
        message: "a message: ä".into(),
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        kept: None,
        transient: false,
        reset_to: None,
    }
}

pub fn versions(fs: FsId) -> Versions {
    Versions {
        role: VersionsRole::Replica,
        epoch: Epoch(3),
        commits: vec![commit(fs, 1), commit(fs, 2)],
        resume: None,
        free_bytes: Some(0),
        stream_version: 2,
        takes_older: true,
    }
}

pub fn job() -> JobUid {
    JobUid::from_uuid(uuid::Uuid::from_bytes([7; 16]))
}

pub fn offer(fs: FsId, n: u8) -> Offer {
    Offer {
        target: commit(fs, n),
        base: None,
        job: job(),
        run_id: uuid::Uuid::from_bytes([8; 16]),
        epoch: Epoch(1),
        expected: None,
        stream_version: 2,
        kernel_release: "6.18.0".into(),
        resume: None,
        from: node("a"),
    }
}

pub fn bytes(n: usize) -> Bytes {
    Bytes::from(vec![0x5a; n])
}
