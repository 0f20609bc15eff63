//! A peer that sends garbage, stops in mid-frame, floods or sends a bomb (failures.md row 13).

use std::time::{Duration, Instant};

use bytes::Bytes;
use dotgraft_agent::peer::accept::AcceptSettings;
use dotgraft_agent::peer::convert::MAX_FRAME;
use dotgraft_agent::peer::server::ServerSettings;
use dotgraft_agent::peer::status::problem_of;
use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_hostile::{framed, request};
use dotgraft_proto::agent::v1 as wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use wire::receive_request::Message;

use crate::raw;
use crate::support::*;

/// Node b that lists a certificate of node a, which the test holds.
pub async fn victim(settings: ServerSettings) -> (Node, (String, String), Node) {
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, settings).await;
    let identity = ca.issue(&Leaf::of("a"));
    let spy = Node::start("a", identity.clone(), settings).await;
    let info = dotgraft_agent::peer::PeerInfo { fingerprints: vec![a.fingerprint(), spy.fingerprint()], ..a.info() };
    b.context.directory.update(node("a"), info);
    (b, identity, a)
}

pub async fn still_serves(from: &Node, to: &Node) {
    let fs = actor(to, Act::Store).fs;
    soon(from.client().versions(&to.name, fs, job())).await.unwrap();
}

pub fn good_offer(fs: FsId) -> wire::Offer {
    dotgraft_agent::peer::convert::offer_to_wire(fs, &offer(fs, 3))
}

/// Sends messages and keeps the stream open; the problem that ends it.
async fn problem_after(to: &Node, identity: &(String, String), messages: Vec<wire::ReceiveRequest>) -> Problem {
    let mut stub = raw::stub(to, identity).await;
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    for message in messages {
        tx.try_send(message).unwrap();
    }
    let result = soon(async {
        let mut answers = stub.receive(ReceiverStream::new(rx)).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    })
    .await;
    drop(tx);
    problem_of(&result.expect_err("the stream ended well"))
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_plaintext_end_at_the_handshake() {
    let (b, _, a) = victim(ServerSettings::default()).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let mut record = vec![0x16, 3, 3, 0xff, 0xff];
    record.extend([0; 4096]);
    for garbage in [preface, b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 100_000], vec![0xff; 100_000], record] {
        let mut tcp = TcpStream::connect(b.address).await.unwrap();
        let _ = tcp.write_all(&garbage).await;
        let _ = tcp.shutdown().await;
        let mut answer = Vec::new();
        let _ = soon(tcp.read_to_end(&mut answer)).await;
        assert!(answer.len() < 100, "{} bytes of answer to garbage", answer.len());
    }
    still_serves(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_behind_the_handshake_ends_the_connection() {
    let (b, identity, a) = victim(ServerSettings::default()).await;
    for garbage in [vec![0; 100_000], vec![0xff; 100_000], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut stream = raw::tls(&b, Some(&identity), &rustls::version::TLS13).await.unwrap();
        let _ = stream.write_all(&garbage).await;
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        assert!(answer.len() < 1000);
    }
    still_serves(&a, &b).await;
}

/// A connection from another address of this machine that says nothing.
async fn mute(from: [u8; 4], to: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_shake_hands_keep_nobody_out_and_are_cut() {
    let settings = ServerSettings::default();
    let limits = settings.accept.handshakes;
    assert!(limits.unserved > Duration::from_secs(5), "they would have gone by themselves");
    let (b, _, a) = victim(settings).await;
    let mut silent = Vec::new();
    for _ in 0..limits.per_address * 3 {
        silent.push(mute([127, 0, 0, 1], b.address).await);
    }
    still_serves(&a, &b).await;
    let (b, _, a) = victim(ServerSettings::default()).await;
    for n in 0..limits.total * 2 {
        silent.push(mute([127, 0, 1, u8::try_from(n % 200).unwrap()], b.address).await);
    }
    still_serves(&a, &b).await;
    let mut end = Vec::new();
    assert!(soon(silent[0].read_to_end(&mut end)).await.is_ok(), "the first is still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_go_on_is_cut() {
    let mut accept = AcceptSettings::default();
    accept.handshakes.unserved = Duration::from_millis(300);
    let (b, _, _) = victim(ServerSettings { accept, ..ServerSettings::default() }).await;
    let mut tcp = TcpStream::connect(b.address).await.unwrap();
    tcp.write_all(&[0x16, 3, 3, 2, 0]).await.unwrap(); // the head of a record that never comes
    let mut end = Vec::new();
    assert!(tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut end)).await.is_ok(), "it is still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_node_are_bounded() {
    let accept = AcceptSettings { connections_per_node: 2, ..AcceptSettings::default() };
    let (b, identity, _) = victim(ServerSettings { accept, ..ServerSettings::default() }).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = raw::tls(&b, Some(&identity), &rustls::version::TLS13).await.unwrap();
        assert!(soon(stream.read_u8()).await.is_ok());
        open.push(stream);
    }
    assert!(!raw::let_in(&b, Some(&identity)).await, "a third connection");
    drop(open);
    soon(async {
        while !raw::let_in(&b, Some(&identity)).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_breaks_a_bound_is_invalid_and_ends_the_stream() {
    let (b, identity, a) = victim(ServerSettings::default()).await;
    let fs = actor(&b, Act::Store).fs;
    let good = || request(Message::Offer(good_offer(fs)));
    let end = |digest: Vec<u8>| request(Message::End(wire::End { bytes: 0, digest }));
    let changed = |change: fn(&mut wire::Offer, &mut wire::Version)| {
        let mut offer = good_offer(fs);
        let mut target = offer.target.take().unwrap();
        change(&mut offer, &mut target);
        offer.target = Some(target);
        vec![request(Message::Offer(offer))]
    };
    let many = |n: usize| -> std::collections::HashMap<_, _> { (0..n).map(|i| (i.to_string(), String::new())).collect() };
    let bomb = {
        let mut offer = good_offer(fs);
        offer.target.as_mut().unwrap().metadata = many(300_000);
        vec![request(Message::Offer(offer))]
    };
    let cases: Vec<(&str, Vec<wire::ReceiveRequest>)> = vec![
        ("data first", vec![request(Message::Data(bytes(1)))]),
        ("nothing first", vec![wire::ReceiveRequest { message: None }]),
        ("a second offer", vec![good(), good()]),
        ("an empty frame", vec![good(), request(Message::Data(Bytes::new()))]),
        ("a frame over 1 MiB", vec![good(), request(Message::Data(bytes(MAX_FRAME + 1)))]),
        ("a frame of 40 MiB", vec![good(), request(Message::Data(bytes(40 << 20)))]),
        ("a digest of 31 bytes", vec![good(), end(vec![0; 31])]),
        ("no id", changed(|_, t| t.id.clear())),
        ("an id with a path", changed(|_, t| t.id = "../../etc/passwd".into())),
        ("upper-case id", changed(|o, _| o.fs_id = o.fs_id.to_uppercase())),
        ("a bad base", changed(|o, _| o.base = "x".into())),
        ("its own base", changed(|o, t| o.base = t.id.clone())),
        ("a bad job", changed(|o, _| o.job_uid.clear())),
        ("a bad run", changed(|o, _| o.run_id = "1".into())),
        ("a long message", changed(|_, t| t.message = "x".repeat(4097))),
        ("65 metadata", changed(|_, t| t.metadata = (0..65).map(|i| (i.to_string(), String::new())).collect())),
        ("a long key", changed(|_, t| t.metadata = [("k".repeat(254), String::new())].into())),
        ("a long value", changed(|_, t| t.metadata = [("k".into(), "v".repeat(1025))].into())),
        ("a kernel release with a newline", changed(|o, _| o.kernel_release = "6\n".into())),
        (
            "a resume token with a short digest",
            changed(|o, t| {
                o.resume = Some(wire::Resume { target: t.id.clone(), prefix_digest: vec![1], ..wire::Resume::default() });
            }),
        ),
        ("a bomb of metadata", bomb),
    ];
    for (what, messages) in cases {
        let problem = problem_after(&b, &identity, messages).await;
        assert_eq!(problem.reason, Reason::Invalid, "{what}: {problem}");
    }
    let newer = changed(|_, t| t.format = 2);
    assert_eq!(problem_after(&b, &identity, newer).await.reason, Reason::FormatNewer);
    still_serves(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_offer_of_the_raw_peer_is_accepted() {
    // Else the cases above would prove nothing.
    let (b, identity, _) = victim(ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let messages = vec![
        request(Message::Offer(good_offer(actor.fs))),
        request(Message::Data(bytes(MAX_FRAME))),
        request(Message::End(wire::End { bytes: MAX_FRAME as u64, digest: vec![0; 32] })),
    ];
    let mut stub = raw::stub(&b, &identity).await;
    let mut answers = soon(stub.receive(futures::stream::iter(messages))).await.unwrap().into_inner();
    let mut last = None;
    while let Some(answer) = soon(answers.message()).await.unwrap() {
        last = answer.message;
    }
    assert!(matches!(last, Some(wire::receive_response::Message::Stored(_))), "{last:?}");
}

/// Sends a good offer and half a frame, then what the caller sends.
async fn half_a_frame(
    to: &Node,
    identity: &(String, String),
    fs: FsId,
) -> (tokio::sync::mpsc::Sender<Bytes>, tokio::task::JoinHandle<Option<tonic::Status>>) {
    let stream = raw::tls(to, Some(identity), &rustls::version::TLS13).await.unwrap();
    let channel = raw::channel(stream).await;
    let (tx, rx) = tokio::sync::mpsc::channel::<Bytes>(16);
    tx.try_send(framed(&request(Message::Offer(good_offer(fs))))).unwrap();
    let frame = framed(&request(Message::Data(bytes(1 << 20))));
    tx.try_send(frame.slice(..1000)).unwrap();
    let call = tokio::spawn(dotgraft_hostile::receive_raw(channel, rx));
    (tx, call)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_in_mid_frame_is_timed_out() {
    let (b, identity, a) = victim(quick()).await;
    let actor = actor(&b, Act::Store);
    let start = Instant::now();
    let (tx, call) = half_a_frame(&b, &identity, actor.fs).await;
    assert_eq!(soon(call).await.unwrap().map(|s| s.code()), Some(Code::DeadlineExceeded));
    assert!(start.elapsed() >= quick().expectation.silence);
    let seen = actor.saw(|s| s.abandoned).await;
    assert_eq!(seen.frames, 0, "half a frame reached the actor");
    drop(tx);
    still_serves(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_away_in_mid_frame_frees_the_actor_at_once() {
    let (b, identity, _) = victim(ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let (tx, call) = half_a_frame(&b, &identity, actor.fs).await;
    actor.saw(|s| s.from.is_some()).await;
    call.abort();
    drop(tx);
    assert_eq!(actor.saw(|s| s.abandoned).await.frames, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_away_before_it_is_accepted_frees_the_actor_too() {
    let (b, identity, _) = victim(ServerSettings::default()).await;
    let actor = actor(&b, Act::Slow(Duration::from_millis(300)));
    let (tx, call) = half_a_frame(&b, &identity, actor.fs).await;
    actor.saw(|s| s.from.is_some()).await;
    call.abort();
    drop(tx);
    assert_eq!(actor.saw(|s| s.abandoned).await.frames, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_comes_byte_by_byte_is_timed_out_too() {
    let (b, identity, _) = victim(quick()).await;
    let actor = actor(&b, Act::Store);
    let (tx, call) = half_a_frame(&b, &identity, actor.fs).await;
    let drip = tokio::spawn(async move {
        while tx.send(bytes(1)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(soon(call).await.unwrap().map(|s| s.code()), Some(Code::DeadlineExceeded));
    actor.saw(|s| s.abandoned).await;
    drip.abort();
}
