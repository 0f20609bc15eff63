//! The actor itself, in a world that fails on purpose: its journal at each of its commits, once or twice in a row; a full mailbox; a flood
//! of orders; cancelled and awaited tasks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_engine::filesystem::{Desired, Intent};
use dotgraft_engine::ids::Epoch;
use dotgraft_engine::model::Reason;
use tokio::sync::oneshot;

use super::super::fakes::{World, fs_id, owner, request, sender, target, world};
use super::super::orders::Order;
use super::{MAILBOX, Started, start};
use crate::driver::{MountMode, MountWhat};

const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the actor; the channel says when it has ended.
fn started(world: &World) -> (Started, oneshot::Receiver<()>) {
    let (tx, ended) = oneshot::channel();
    let started = start(fs_id(), world.node.clone(), move || {
        let _ = tx.send(());
    });
    (started, ended)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// As the kubelet does: asked again until it works.
async fn mounted(actor: &Started, at: &str) {
    let began = Instant::now();
    while actor.handle.mount(MountWhat::Head, target(at), MountMode::WRITE).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "never mounted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A whole life: created, committed, mounted, unmounted, deleted. Returns how many commits of the journal it took.
async fn life(fail: BTreeSet<u64>) -> u64 {
    let text = format!("journal commits that fail: {fail:?}");
    let world = world();
    *world.journal.fail.lock().unwrap() = fail;
    let (actor, ended) = started(&world);
    actor.orders.give(Order::Desired(owner(1, &[1])));
    until(&format!("the commit is made; {text}"), || {
        let done = |s: &dotgraft_engine::filesystem::RequestStatus| s.state == Some(dotgraft_engine::filesystem::RequestState::Done);
        actor.handle.current().requests.iter().any(done)
    })
    .await;
    *world.api.is_new.lock().unwrap() = false;
    mounted(&actor, "/pods/a").await;
    assert!(world.driver.disk().mounts.len() == 1, "{text}");
    while actor.handle.unmount(target("/pods/a")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    *world.api.deleting.lock().unwrap() = true;
    actor.orders.give(Order::Desired(Desired { generation: 2, intent: Intent::Absent { epoch: Epoch(1) } }));
    until(&format!("all of it is gone; {text}"), || {
        let disk = world.driver.disk();
        disk.meta.is_none() && !disk.head && disk.commits.is_empty() && world.journal.rows.lock().unwrap().len() == 1
    })
    .await;
    actor.orders.give(Order::Vanished);
    tokio::time::timeout(PATIENCE, ended).await.expect("the actor ends").expect("and says so");
    assert!(world.journal.rows.lock().unwrap().is_empty(), "rows are left: {text}");
    let taken = world.driver.disk().taken.clone();
    assert_eq!(taken[&request(1)].len(), 1, "one wish, more than one commit: {text}");
    world.journal.made()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_fails_once_or_twice_at_any_commit_costs_nothing_but_time() {
    let commits = life(BTreeSet::new()).await;
    assert!(commits >= 6, "too few to mean anything: {commits}");
    let fails = (1..=commits).flat_map(|nth| [BTreeSet::from([nth]), BTreeSet::from([nth, nth + 1])]);
    let lives: Vec<_> = fails.map(|fail| tokio::spawn(life(fail))).collect();
    for one in lives {
        one.await.expect("a life as any other");
    }
}

#[tokio::test]
async fn nothing_of_a_failed_batch_is_seen_and_who_waits_is_told() {
    let world = world();
    let (actor, _ended) = started(&world);
    actor.orders.give(Order::Desired(owner(1, &[])));
    until("it is open", || actor.handle.current().opened_epoch.is_some()).await;
    let next = world.journal.made() + 1;
    world.journal.fail.lock().unwrap().insert(next);
    let before = world.journal.rows.lock().unwrap().clone();
    let (tx, answer) = oneshot::channel();
    let pin = dotgraft_engine::ids::CommitId::from_uuid(request(9).uuid());
    world.journal.gate.set_open(false);
    actor.orders.give(Order::Desired(owner(2, &[1]))); // its intent is what fails
    until("the journal is asked", || actor.orders.is_empty()).await;
    actor.orders.give(Order::PinOrigin(fs_id(), pin, tx));
    world.journal.gate.set_open(true);
    let refused = tokio::time::timeout(PATIENCE, answer).await.expect("an answer").expect("not dropped");
    assert_eq!(refused.unwrap_err().reason, Reason::NotPlaced, "asked after the journal was read again, and before the disk was");
    assert!(before.iter().all(|(k, _)| world.journal.rows.lock().unwrap().contains_key(k)));
    until("the wish is not forgotten", || world.driver.disk().taken.contains_key(&request(1))).await;
}

#[tokio::test]
async fn a_full_mailbox_says_busy_and_loses_nothing() {
    let world = world();
    let (actor, _ended) = started(&world);
    actor.orders.give(Order::Desired(owner(1, &[])));
    until("it is open", || actor.handle.current().opened_epoch.is_some()).await;
    world.journal.gate.set_open(false);
    actor.orders.give(Order::Desired(owner(2, &[1])));
    until("the actor waits for its journal", || actor.orders.is_empty()).await;
    let asked: Vec<_> = (0..MAILBOX + 40)
        .map(|n| {
            let handle = actor.handle.clone();
            tokio::spawn(async move { handle.unmount(target(&format!("/pods/{n}"))).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.journal.gate.set_open(true);
    let mut busy = 0;
    for one in asked {
        match one.await.expect("no panic") {
            Ok(()) => {}
            Err(problem) => {
                assert_eq!(problem.reason, Reason::Busy);
                busy += 1;
            }
        }
    }
    assert_eq!(busy, 40, "as many as there was no room for");
}

#[tokio::test]
async fn a_flood_of_orders_stays_bounded_and_the_last_word_counts() {
    let world = world();
    let (actor, _ended) = started(&world);
    actor.orders.give(Order::Desired(owner(1, &[])));
    until("it is open", || actor.handle.current().opened_epoch.is_some()).await;
    world.journal.gate.set_open(false);
    actor.orders.give(Order::Desired(owner(2, &[1])));
    until("the actor waits for its journal", || actor.orders.is_empty()).await;
    let peer: dotgraft_engine::ids::NodeName = "n2".parse().unwrap();
    for n in 0..20_000 {
        actor.orders.give(Order::Vanished);
        actor.orders.give(Order::Desired(owner(3 + n, &[1, 2])));
        actor.orders.give(Order::PeerBack(peer.clone()));
        actor.orders.give(Order::UnpinOrigin(fs_id()));
    }
    assert!(actor.orders.len() <= 3, "{} orders wait", actor.orders.len());
    world.journal.gate.set_open(true);
    until("the last object is obeyed", || actor.handle.current().observed_generation == 20_002).await;
    until("and its commit made", || world.driver.disk().taken.contains_key(&request(2))).await;
}

#[tokio::test]
async fn a_later_word_about_an_origin_takes_the_place_of_an_earlier_one() {
    let orders = super::super::orders::Orders::default();
    let pin = dotgraft_engine::ids::CommitId::from_uuid(request(9).uuid());
    let (first, first_answer) = oneshot::channel();
    let (second, _second_answer) = oneshot::channel();
    orders.give(Order::PinOrigin(fs_id(), pin, first));
    orders.give(Order::UnpinOrigin(fs_id()));
    assert!(first_answer.await.is_err(), "who asked before hears that it has to ask again");
    orders.give(Order::PinOrigin(fs_id(), pin, second));
    assert!(matches!(orders.next().await, Order::PinOrigin(..)), "unpinned and pinned anew is pinned");
    assert!(orders.is_empty());
    orders.close();
    assert!(!orders.give(Order::Vanished), "an actor that has ended takes none");
}

#[tokio::test]
async fn a_pin_of_what_is_not_on_this_node_goes_and_not_while_actors_are_only_being_started_or_stopped() {
    let world = world();
    let (actor, _ended) = started(&world);
    actor.orders.give(Order::Desired(owner(1, &[1])));
    until("the commit is made", || actor.handle.current().commits == 1).await;
    let id = *world.driver.disk().commits.keys().next().expect("a commit");
    let (tx, pinned) = oneshot::channel();
    let branch = dotgraft_engine::ids::FsId::from_uuid(request(8).uuid());
    actor.orders.give(Order::PinOrigin(branch, id, tx));
    pinned.await.expect("an answer").expect("pinned");
    let mut going = owner(2, &[1]);
    if let Intent::Present(p) = &mut going.intent {
        (p.commits[0].remove, p.commits[0].id) = (true, Some(id));
    }
    actor.orders.give(Order::Desired(going));
    until("it waits", || actor.handle.current().requests.iter().any(|r| r.problem.is_some())).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(world.driver.disk().commits.len(), 1, "its Branch may be about to start");
    world.node.all_awake();
    until("nobody starts from it", || world.driver.disk().commits.is_empty()).await;
    assert!(world.node.is_without(branch) && !world.node.is_without(fs_id()));
    world.node.stop_all();
    assert!(!world.node.is_without(branch), "it may have ended just now");
}

#[tokio::test]
async fn to_stop_waits_for_what_runs_and_leaves_mounts() {
    let world = world();
    let (actor, mut ended) = started(&world);
    actor.orders.give(Order::Desired(owner(1, &[])));
    until("it is open", || actor.handle.current().opened_epoch.is_some()).await;
    *world.api.is_new.lock().unwrap() = false;
    mounted(&actor, "/pods/a").await;
    world.driver.gate.set_open(false);
    actor.orders.give(Order::Desired(owner(2, &[1])));
    until("the commit is intended", || world.journal.names.lock().unwrap().contains(&"commit-intent")).await;
    actor.orders.give(Order::Stop);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut ended).await.is_err(), "it ended beside a commit that runs");
    world.driver.gate.set_open(true);
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends").expect("and says so");
    assert_eq!(world.driver.disk().mounts.len(), 1);
    assert_eq!(world.driver.disk().commits.len(), 1, "what ran has ended");
    assert!(!world.journal.names.lock().unwrap().contains(&"committed"), "and nothing was recorded after it");
    assert!(actor.handle.unmount(target("/pods/a")).await.is_err(), "it is gone");
}

#[tokio::test]
async fn a_deletion_cancels_a_question_that_no_peer_answers() {
    let world = world();
    let (actor, _ended) = started(&world);
    actor.orders.give(Order::Desired(sender(1, &[1])));
    until("the peer is asked", || *world.peers.asked.lock().unwrap() > 0).await;
    *world.api.is_new.lock().unwrap() = false;
    *world.api.deleting.lock().unwrap() = true;
    actor.orders.give(Order::Desired(Desired { generation: 2, intent: Intent::Absent { epoch: Epoch(1) } }));
    until("all of it is gone", || world.driver.disk().meta.is_none() && world.driver.disk().commits.is_empty()).await;
    let (asked, dropped) = (*world.peers.asked.lock().unwrap(), *world.peers.dropped.lock().unwrap());
    assert!(dropped > 0 && dropped == asked, "{asked} questions, {dropped} cancelled");
    assert!(Arc::strong_count(&world.node) > 0);
}
