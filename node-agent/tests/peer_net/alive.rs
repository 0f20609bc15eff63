//! Signs of life: of a sender whose kernel is silent, of a receiver that works without a word; and what a peer gains by nothing else.

use std::time::{Duration, Instant};

use dotgraft_agent::peer::client::{ClientSettings, PeerClient};
use dotgraft_agent::peer::progress::Expectation;
use dotgraft_agent::peer::server::ServerSettings;
use dotgraft_agent::peer::status::problem_of;
use dotgraft_agent::peer::transfer::Ears;
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_hostile::request;
use dotgraft_proto::agent::v1 as wire;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use wire::receive_request::Message;

use crate::hostile::{good_offer, still_serves, victim};
use crate::raw;
use crate::streams::open;
use crate::support::*;

const SILENCE: Duration = Duration::from_millis(400);

/// A machine that is busy makes nobody silent: where only the kernel's bound is to end a stream, 3 s.
fn patient() -> ServerSettings {
    ServerSettings { expectation: Expectation { silence: 5 * SECOND, window: 10 * SECOND, ..quick().expectation }, ..quick() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_sender_that_says_it_reads_is_kept_and_its_stream_is_whole() {
    // Thrice the usual, so that a machine that is busy breaks no promise.
    let slow = Expectation { silence: 3 * SILENCE, window: 3 * SILENCE, kernel: Some(10 * SECOND), ..quick().expectation };
    let (a, b) = pair(&Ca::new("ca"), ServerSettings { expectation: slow, ..quick() }).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    transfer.data(bytes(10)).await.unwrap();
    let every = transfer.alive_every().expect("the receiver asks for it");
    assert_eq!(every, SILENCE, "a third of its patience");
    let start = Instant::now();
    // Longer than silence and window together.
    while start.elapsed() < 3 * SECOND {
        tokio::time::sleep(every).await;
        transfer.alive().await.unwrap();
    }
    transfer.data(bytes(10)).await.unwrap();
    soon(transfer.finish(20, [0; 32])).await.unwrap();
    let seen = actor.seen();
    assert!(seen.alive >= 5 && seen.frames == 2 && seen.bytes == 20, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_know_the_word_is_not_told() {
    let old = ServerSettings { expectation: Expectation { kernel: None, ..quick().expectation }, ..quick() };
    let (a, b) = pair(&Ca::new("ca"), old).await;
    let actor = actor(&b, Act::Store);
    let mut transfer = open(&a.client(), &b, actor.fs).await.unwrap();
    assert_eq!(transfer.alive_every(), None);
    let start = Instant::now();
    let problem = soon(async {
        while start.elapsed() < 10 * SECOND {
            if let Err(problem) = transfer.alive().await {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            if start.elapsed() > SILENCE {
                return transfer.ended().await;
            }
        }
        panic!("never cut");
    })
    .await;
    assert_eq!((problem.reason, problem.message.as_str()), (Reason::Timeout, "no frame came in time"), "as ever");
    assert_eq!(actor.saw(|s| s.abandoned).await.alive, 0);
}

/// Offers, then says nothing but `Alive` every so often; the problem that ends it, and after how long.
async fn only_alive(to: &Node, identity: &(String, String), every: Option<Duration>) -> (Problem, Duration) {
    let actor = actor(to, Act::Store);
    let mut stub = raw::stub(to, identity).await;
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    tx.try_send(request(Message::Offer(good_offer(actor.fs)))).unwrap();
    let start = Instant::now();
    let talk = tokio::spawn(async move {
        while tx.send(request(Message::Alive(wire::Alive {}))).await.is_ok() {
            if let Some(every) = every {
                tokio::time::sleep(every).await;
            }
        }
    });
    let result = soon(async {
        let mut answers = stub.receive(ReceiverStream::new(rx)).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    })
    .await;
    talk.abort();
    assert!(actor.saw(|s| s.abandoned).await.bytes == 0);
    (problem_of(&result.expect_err("the stream ended well")), start.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_else_is_cut_at_the_bound_with_the_reason() {
    let (b, identity, a) = victim(patient()).await;
    for every in [Some(Duration::from_millis(100)), None] {
        let (problem, took) = only_alive(&b, &identity, every).await;
        // One that floods may lose its connection before that: h2 bounds small frames that wait (`too_many_data_frames`).
        if every.is_none() && problem.reason == Reason::Unreachable {
            assert!(took < 8 * SECOND, "after {took:?}");
            continue;
        }
        assert_eq!(problem.reason, Reason::Timeout, "{problem}");
        assert!(problem.message.contains("says that it reads"), "{problem}");
        assert!(took >= 3 * SECOND && took < 8 * SECOND, "{every:?}: after {took:?}");
    }
    still_serves(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_before_the_answer_to_an_offer_or_in_its_place_do_no_harm() {
    let (b, identity, a) = victim(quick()).await;
    let actor = actor(&b, Act::Slow(SECOND));
    let mut stub = raw::stub(&b, &identity).await;
    let alive = || request(Message::Alive(wire::Alive {}));
    let first = soon(stub.receive(futures::stream::iter([alive()]))).await.expect_err("a stream starts with an offer");
    assert_eq!(problem_of(&first).reason, Reason::Invalid);
    let end = request(Message::End(wire::End { bytes: 0, digest: vec![0; 32] }));
    let messages = vec![request(Message::Offer(good_offer(actor.fs))), alive(), alive(), end];
    let mut answers = soon(stub.receive(futures::stream::iter(messages))).await.unwrap().into_inner();
    let mut last = None;
    while let Some(answer) = soon(answers.message()).await.unwrap() {
        last = answer.message;
    }
    assert!(matches!(last, Some(wire::receive_response::Message::Stored(_))), "{last:?}");
    still_serves(&a, &b).await;
}

/// Waits until the peer was heard so many times more, while that goes on.
async fn heard_during<T>(ears: &Ears, times: usize, goes_on: &tokio::task::JoinHandle<T>) {
    for _ in 0..times {
        let last = ears.last_heard();
        soon(async {
            while ears.last_heard() == last {
                assert!(!goes_on.is_finished(), "it is over");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_opens_for_long_cuts_no_sender_that_waits_for_it() {
    // Patient with a sender on a machine that is busy; what is tried here goes by what the receiver says, however long that takes.
    let expectation = Expectation { silence: 3 * SECOND, window: 9 * SECOND, ..quick().expectation };
    let (a, b) = pair(&Ca::new("ca"), ServerSettings { expectation, ..quick() }).await;
    let (go_on, told) = watch::channel(false);
    let actor = actor(&b, Act::Until(told));
    let settings = ClientSettings { progress_timeout: 10 * SECOND, ..quick_client() };
    let mut transfer = open(&PeerClient::new(a.context.clone(), settings), &b, actor.fs).await.unwrap();
    let ears = transfer.ears();
    // More than anyone buffers: the last of it waits for the actor.
    let sending = tokio::spawn(async move { transfer.data(bytes(48 << 20)).await.map(|()| transfer) });
    // It says that it lives only while its actor is what it waits for, and thrice in its silence: by its own clock that is over now.
    heard_during(&ears, 5, &sending).await;
    go_on.send(true).unwrap();
    soon(soon(sending).await.unwrap().unwrap().finish(48 << 20, [0; 32])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_a_receiver_that_flushes_as_long_as_that_says_so() {
    let (a, b) = pair(&Ca::new("ca"), quick()).await;
    let actor = actor(&b, Act::Slow(SECOND + SECOND / 2));
    // Of the two bounds only the signs of life keep the first one.
    let settings = ClientSettings { progress_timeout: 2 * SECOND, verify_timeout: SECOND, ..quick_client() };
    let transfer = open(&PeerClient::new(a.context.clone(), settings), &b, actor.fs).await.unwrap();
    soon(transfer.finish(0, [0; 32])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_only_says_that_it_lives_is_given_up() {
    let (a, b) = pair(&Ca::new("ca"), quick()).await;
    let actor = actor(&b, Act::Hang);
    let settings = ClientSettings { progress_timeout: 2 * SILENCE, verify_timeout: 2 * SECOND, ..quick_client() };
    let mut transfer = open(&PeerClient::new(a.context.clone(), settings), &b, actor.fs).await.unwrap();
    let start = Instant::now();
    let problem = until_refused(&mut transfer).await;
    assert_eq!((problem.reason, problem.message.as_str()), (Reason::Timeout, "the peer takes no more bytes"));
    assert!(start.elapsed() >= 2 * SECOND && start.elapsed() < 15 * SECOND, "after {:?}", start.elapsed());
}
