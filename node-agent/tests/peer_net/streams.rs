//! What a good peer can do, and what ends a stream.

use std::time::{Duration, Instant};

use dotgraft_agent::peer::client::{ClientSettings, PeerClient};
use dotgraft_agent::peer::server::ServerSettings;
use dotgraft_agent::peer::transfer::{Opened, Stored, Transfer};
use dotgraft_agent::peer::{Bandwidth, FRAME};
use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::{Problem, Reason};

use crate::support::*;

pub async fn open(client: &PeerClient, to: &Node, fs: FsId) -> Result<Transfer, Problem> {
    match soon(client.open(&to.name, fs, offer(fs, 3))).await? {
        Opened::Accepted(transfer) => Ok(transfer),
        Opened::Stored(stored) => panic!("stored at once: {stored:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_goes_from_one_node_to_another() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let client = a.client();
    assert_eq!(soon(client.versions(&b.name, actor.fs, job())).await.unwrap(), versions(actor.fs));
    let mut transfer = open(&client, &b, actor.fs).await.unwrap();
    assert_eq!(transfer.offset, 0);
    soon(transfer.data(bytes(5_000_000))).await.unwrap();
    // Of the words that more is durable a busy machine may lose all but the first; `Stored` is what counts.
    soon(async {
        while transfer.durable() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let stored = soon(transfer.finish(5_000_000, [1; 32])).await.unwrap();
    assert_eq!(stored, Stored { commit: commit_id(3), already: false });
    let seen = actor.seen();
    let frames = 5_000_000_usize.div_ceil(FRAME);
    assert_eq!((seen.from, seen.bytes, seen.frames, seen.ended), (Some(node("a")), 5_000_000, frames as u64, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_stream_skips_what_is_there_and_a_stored_commit_sends_nothing() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let resumed = actor(&b, Act::Resume(1000));
    let mut transfer = open(&a.client(), &b, resumed.fs).await.unwrap();
    assert_eq!((transfer.offset, transfer.durable()), (1000, 1000));
    transfer.data(bytes(10)).await.unwrap();
    soon(transfer.finish(1010, [0; 32])).await.unwrap();

    let already = actor(&b, Act::Already);
    let opened = soon(a.client().open(&b.name, already.fs, offer(already.fs, 4))).await.unwrap();
    assert!(matches!(opened, Opened::Stored(Stored { already: true, .. })), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_is_neither_silent_nor_a_trickle() {
    // At 50 kB/s one frame of 64 KiB takes longer than the receiver's patience for silence.
    let (a, b) = pair(&Ca::new("ca"), quick()).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    let start = Instant::now();
    soon(transfer.data_at(bytes(100_000), &Bandwidth::new(Some(50_000)))).await.unwrap();
    assert!(start.elapsed() > SECOND, "the limit was not kept");
    soon(transfer.finish(100_000, [0; 32])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_that_is_not_placed_is_refused_by_name() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let fs = FsId::from_uuid(uuid::Uuid::now_v7());
    let problem = soon(a.client().versions(&b.name, fs, job())).await.unwrap_err();
    assert_eq!(problem.reason, Reason::NotPlaced);
    assert!(problem.message.contains(&fs.to_string()), "{problem}");
    assert_eq!(open(&a.client(), &b, fs).await.unwrap_err().reason, Reason::NotPlaced);
}

/// replication.md §6.8. Many times, because the answer races with the reset of the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_in_the_middle_ends_the_sender_at_once_and_is_the_error_reported() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let refusal = Problem::new(Reason::NoSpace, "the quota of 1 GiB is used up");
    let actor = actor(&b, Act::RefuseAfter(3 << 20, refusal.clone()));
    let client = a.client();
    for round in 0..50 {
        actor.seen.lock().unwrap().bytes = 0;
        let mut transfer = open(&client, &b, actor.fs).await.unwrap();
        let start = Instant::now();
        let problem = until_refused(&mut transfer).await;
        assert_eq!(problem, refusal, "round {round}");
        assert!(start.elapsed() < 15 * SECOND, "round {round} took {:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_the_end_is_reported_by_finish() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    let problem = soon(transfer.finish(1, [0; 32])).await.unwrap_err();
    assert_eq!(problem.reason, Reason::DigestMismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_transfer_is_no_good_end_for_the_actor() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
    drop(transfer);
    let seen = actor.saw(|s| s.abandoned).await;
    assert!(!seen.ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_sender_is_cut_and_the_actor_is_free() {
    let (a, b) = pair(&Ca::new("ca"), quick()).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
    actor.saw(|s| s.abandoned).await;
    let problem = soon(async {
        loop {
            if let Err(problem) = transfer.data(bytes(10)).await {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(problem.reason, Reason::Timeout, "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickling_sender_is_cut_although_it_is_never_silent() {
    let (a, b) = pair(&Ca::new("ca"), quick()).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    let start = Instant::now();
    let problem = soon(async {
        loop {
            if let Err(problem) = transfer.data(bytes(1)).await {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(problem.reason, Reason::Timeout, "{problem}");
    assert!(start.elapsed() >= SECOND, "silence would have ended it earlier: {:?}", start.elapsed());
    actor.saw(|s| s.abandoned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_that_takes_no_frames_stops_the_sender_by_backpressure_then_by_time() {
    let settings = ServerSettings { actor_patience: Duration::from_millis(300), ..ServerSettings::default() };
    let (a, b) = pair(&Ca::new("ca"), settings).await;
    let actor = actor(&b, Act::Hang);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    let mut sent = 0_u64;
    let problem = soon(async {
        loop {
            if let Err(problem) = transfer.data(bytes(1 << 20)).await {
                return problem;
            }
            sent += 1;
        }
    })
    .await;
    assert_eq!(problem.reason, Reason::Timeout, "{problem}");
    assert!(sent < 64, "{sent} MiB were buffered for an actor that takes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_is_busy_at_once() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = deaf_actor(&b, 1);
    let waiting = tokio::spawn({
        let (client, name, fs) = (a.client(), b.name.clone(), actor.fs);
        async move { client.versions(&name, fs, job()).await }
    });
    let client = a.client();
    let problem = soon(async {
        loop {
            let problem = open(&client, &b, actor.fs).await.unwrap_err();
            if problem.message.contains("mailbox") {
                return problem;
            }
        }
    })
    .await;
    assert_eq!(problem.reason, Reason::Busy);
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_can_not_take_all_the_streams() {
    let settings = ServerSettings { streams_per_node: 2, streams: 3, ..ServerSettings::default() };
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, settings).await;
    let c = Node::start("c", ca.issue(&Leaf::of("c")), settings).await;
    b.learn(&c);
    c.learn(&b);
    let actor = actor(&b, Act::Store);
    let first = open(&a.client(), &b, actor.fs).await.unwrap();
    let _second = open(&a.client(), &b, actor.fs).await.unwrap();
    assert_eq!(open(&a.client(), &b, actor.fs).await.unwrap_err().reason, Reason::Busy);
    let _third = open(&c.client(), &b, actor.fs).await.unwrap();
    assert_eq!(open(&c.client(), &b, actor.fs).await.unwrap_err().reason, Reason::Busy, "three in all");
    soon(first.finish(0, [0; 32])).await.unwrap();
    open(&a.client(), &b, actor.fs).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_is_found_again_and_a_dead_one_is_unreachable() {
    let ca = Ca::new("ca");
    let (a, mut b) = pair(&ca, ServerSettings::default()).await;
    let client = PeerClient::new(a.context.clone(), ClientSettings { connect_timeout: SECOND, ..quick_client() });
    let fs = actor(&b, Act::Store).fs;
    soon(client.versions(&b.name, fs, job())).await.unwrap();

    b.cancel.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let problem = soon(client.versions(&b.name, fs, job())).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Unreachable, "{problem}");

    b = Node::start("b", ca.issue(&Leaf::of("b")), ServerSettings::default()).await;
    a.learn(&b);
    b.learn(&a);
    let fs = actor(&b, Act::Store).fs;
    soon(client.versions(&b.name, fs, job())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_cuts_its_streams() {
    let (a, b) = pair(&Ca::new("ca"), ServerSettings::default()).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
    b.cancel.cancel();
    actor.saw(|s| s.abandoned).await;
    let problem = soon(transfer.finish(10, [0; 32])).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Unreachable, "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_nobody_answers_for_is_unreachable_within_the_connect_timeout() {
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, ServerSettings::default()).await;
    // Accepts TCP and says nothing.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut info = b.info();
    info.address = mute.local_addr().unwrap();
    a.context.directory.update(b.name.clone(), info);
    let start = Instant::now();
    let problem = soon(a.client().versions(&b.name, actor(&b, Act::Store).fs, job())).await.unwrap_err();
    assert_eq!(problem.reason, Reason::Unreachable, "{problem}");
    assert!(start.elapsed() < 15 * SECOND);
    let unknown = soon(a.client().versions(&node("nobody"), FsId::from_uuid(uuid::Uuid::now_v7()), job())).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::Unreachable, "{unknown}");
}
