//! Rows and files that this agent can't read close their Filesystem; nothing of it is lost.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_engine::filesystem::{Base, Desired, FilesystemStatus, Intent, Life, Record, RoleStatus, Row, Trouble};
use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::{Epoch, Timestamp};
use dotgraft_engine::model::Reason;

use super::super::fakes::{World, fs_id, target, world};
use super::super::fs_actor::{Started, start};
use super::super::orders::Order;
use crate::account;
use crate::driver::{MountMode, MountWhat};
use crate::metrics::Metrics;

/// Rows as 0.1 wrote them.
const FIRST: &str = include_str!("../../../engine/tests/format_golden/0.1.rows");

fn first(kind: &str) -> String {
    FIRST.lines().find_map(|l| l.strip_prefix(&format!("{kind} "))).unwrap().to_owned()
}

/// An owner, in use.
fn base() -> String {
    let base: Base = serde_json::from_str(&first("base")).unwrap();
    let base = Base { fs_id: fs_id(), life: Life::Active, frozen: None, head_from: None, reset_to: None, headless: false, ..base };
    match Record::Base("test", Box::new(base)).rows().remove(0) {
        Row::Put(_, body) => String::from_utf8(body).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// As a program of two versions ahead would have written it.
fn newer(row: &str) -> String {
    row.replacen("\"version\":1", "\"version\":3", 1)
}

fn put(world: &World, key: &str, body: &str) {
    world.journal.rows.lock().unwrap().insert(key.to_owned(), body.as_bytes().to_vec());
}

fn begin(world: &World) -> Started {
    start(fs_id(), world.node.clone(), || {})
}

fn absent(generation: i64) -> Order {
    Order::Desired(Desired { generation, intent: Intent::Absent { epoch: Epoch(99) } })
}

/// Waits for a status of which `check` is true.
async fn status_where(actor: &Started, check: impl Fn(&FilesystemStatus) -> bool) -> Arc<FilesystemStatus> {
    for _ in 0..3_000 {
        let now = actor.handle.current();
        if check(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never came: {:#?}", actor.handle.current().conditions);
}

fn says(s: &FilesystemStatus, trouble: Trouble) -> bool {
    s.conditions.iter().any(|c| c.r#type == trouble.into() && c.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_row_closes_its_filesystem_and_an_order_to_delete_deletes_nothing() {
    let world = world();
    put(&world, "base", &newer(&base()));
    world.driver.disk().head = true;
    world.driver.disk().mounts.insert("/pod/x".into());
    let actor = begin(&world);
    let status = status_where(&actor, |s| says(s, Trouble::FormatNewer)).await;
    assert!(status.conditions[1].message.contains("`base` has format version 3"), "{:?}", status.conditions);

    actor.orders.give(absent(2));
    assert_eq!(actor.handle.versions("n2".parse().unwrap()).await.unwrap_err().reason, Reason::FormatNewer);
    let mount = actor.handle.mount(MountWhat::Head, target("/pod/y"), MountMode::WRITE).await;
    assert_eq!(mount.unwrap_err().reason, Reason::FormatNewer);
    assert_eq!(actor.handle.fence(true).await.unwrap_err().reason, Reason::FormatNewer);
    assert!(!world.driver.disk().fenced, "this node owns it");
    actor.handle.unmount(target("/pod/x")).await.unwrap();

    assert!(world.driver.disk().mounts.is_empty(), "a pod that ends must be able to");
    assert!(world.driver.disk().head && world.driver.disk().changes == 0, "{:?}", world.driver.disk());
    assert_eq!(world.journal.rows.lock().unwrap().get("base").unwrap(), newer(&base()).as_bytes());
    assert_eq!((world.journal.made(), *world.api.published.lock().unwrap()), (0, 0));
    assert!(*world.api.closed.lock().unwrap() >= 2, "told again to an object that came later");
}

/// Authority was taken while a newer program's rows keep it closed: the pods here must not go on writing beside the new owner's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_owner_is_frozen_once_another_node_owns_it() {
    let world = world();
    put(&world, "base", &newer(&base()));
    world.driver.disk().head = true;
    world.driver.disk().mounts.insert("/pod/x".into());
    let actor = begin(&world);
    status_where(&actor, |s| says(s, Trouble::FormatNewer)).await;
    // An API server restored to an earlier time says nothing of who may write.
    *world.api.elsewhere.lock().unwrap() = Some(Epoch(0));
    assert_eq!(actor.handle.fence(true).await.unwrap_err().reason, Reason::FormatNewer);
    assert!(!world.driver.disk().fenced);

    *world.api.elsewhere.lock().unwrap() = Some(Epoch(99));
    actor.orders.give(Order::Desired(Desired { generation: 7, intent: Intent::Absent { epoch: Epoch(0) } }));
    for _ in 0..250 {
        if world.driver.disk().fenced {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(world.driver.disk().fenced, "5 s after the object had changed");
    let told = status_where(&actor, |s| says(s, Trouble::Superseded)).await;
    assert!(says(&told, Trouble::FormatNewer) && told.conditions[2].message.contains("frozen and kept"), "{:?}", told.conditions);
    assert_eq!(actor.handle.fence(true).await.unwrap_err().reason, Reason::FormatNewer, "no proof without a row");
    assert!(world.driver.disk().commits.is_empty() && world.driver.disk().head, "it is kept as it is");
    assert_eq!((world.driver.disk().changes, world.journal.made()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_actor_stops_when_it_is_told_to() {
    let world = world();
    put(&world, "base", &newer(&base()));
    let (tx, ended) = tokio::sync::oneshot::channel();
    let actor = start(fs_id(), world.node.clone(), move || {
        let _ = tx.send(());
    });
    status_where(&actor, |s| says(s, Trouble::FormatNewer)).await;
    actor.orders.give(Order::Stop);
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it hangs").unwrap();
}

/// Copies with `JournalUnreadable`, as a scrape shows it.
fn unreadable(all: &[Arc<FilesystemStatus>]) -> u64 {
    let metrics = Metrics::default();
    account::tell(&metrics, all, &account::Counts::default(), Timestamp(0));
    let text = metrics.encode();
    let line = text.lines().find_map(|l| l.strip_prefix("dotgraft_condition{condition=\"JournalUnreadable\"} ")).unwrap().to_owned();
    line.parse().unwrap()
}

/// What can be read again, after a disk has recovered, opens, and what was wanted meanwhile is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_closes_until_it_can_be_read() {
    let world = world();
    put(&world, "base", "{");
    let actor = begin(&world);
    let closed = status_where(&actor, |s| says(s, Trouble::JournalUnreadable)).await;
    assert_eq!(unreadable(&[closed]), 1, "what the alert looks at");
    actor.orders.give(Order::Desired(Desired { generation: 4, intent: Intent::Absent { epoch: Epoch(0) } }));
    assert!(actor.handle.thaw().await.is_err(), "heard after the order");
    world.driver.disk().head = true;
    put(&world, "base", &base());
    let status = status_where(&actor, |s| s.observed_generation == 4).await;
    assert_eq!(status.role, RoleStatus::Owner, "{status:#?}");
    assert_eq!(unreadable(&[status]), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_a_newer_receiver_closes_too() {
    let world = world();
    let state = format!("{{\\\"version\\\":{}}}", Kind::ReceiveState.newest() + 1);
    let checkpoint = first("checkpoint").replace("{\\\"version\\\":1}", &state);
    assert_ne!(checkpoint, first("checkpoint"));
    put(&world, "partial", &first("partial"));
    put(&world, "checkpoint", &checkpoint);
    let actor = begin(&world);
    let status = status_where(&actor, |s| says(s, Trouble::FormatNewer)).await;
    assert!(status.conditions[1].message.contains("checkpoint"), "{:?}", status.conditions);
    assert_eq!(world.journal.rows.lock().unwrap().len(), 2);
}

/// The rows are this program's, a file in the pool is not: half an upgrade, or a rollback after the journal was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_file_in_the_pool_closes_too() {
    let world = world();
    put(&world, "base", &base());
    world.driver.disk().newer = true;
    *world.api.deleting.lock().unwrap() = true;
    let actor = begin(&world);
    actor.orders.give(absent(4));
    status_where(&actor, |s| says(s, Trouble::FormatNewer) && s.observed_generation == 4).await;
    let mount = actor.handle.mount(MountWhat::Head, target("/pod/y"), MountMode::WRITE).await;
    assert_eq!(mount.unwrap_err().reason, Reason::FormatNewer);
    assert_eq!(world.driver.disk().changes, 0);
    assert_eq!(world.journal.made(), 0);
}
