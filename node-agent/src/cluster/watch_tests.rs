//! The watch against a scripted server: re-lists, expired versions, broken connections, rubbish.

use std::collections::VecDeque;
use std::sync::Mutex;

use dotgraft_api::Replica;
use serde_json::{Value, json};

use super::super::fake::{self, Answer};
use super::*;

fn name(n: u32) -> String {
    format!("0198c2a5-7f00-7000-8000-{n:012}.0198c2a5-7f00-4000-8000-0000000000aa")
}

fn replica(n: u32, version: u64) -> Value {
    json!({
        "apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica",
        "metadata": {"name": name(n), "resourceVersion": version.to_string()},
        "spec": {"fsId": &name(n)[..36], "node": "n1", "pool": &name(n)[37..], "desired": {"state": "Present", "role": "Owner", "epoch": 1}},
    })
}

fn list(version: u64, items: &[Value], next: Option<&str>) -> Answer {
    Answer::Json(
        200,
        json!({"kind": "ReplicaList", "apiVersion": "dotgraft.dev/v1alpha1", "metadata": {"resourceVersion": version.to_string(), "continue": next}, "items": items}),
    )
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(version: u64) -> Value {
    event(
        "BOOKMARK",
        &json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica", "metadata": {"resourceVersion": version.to_string()}}),
    )
}

/// Runs the script; (`list`|`watch@VERSION`, answer) must be asked for in this order, then nothing is answered any more.
async fn follow(script: Vec<(&'static str, Answer)>, count: usize) -> (Vec<String>, Freshness) {
    let script = Mutex::new(VecDeque::from(script));
    let client = fake::client(move |asked| {
        assert!(asked.query.contains("fieldSelector=spec.node%3Dn1"), "{}", asked.query);
        let param = |key: &str| asked.query.split('&').find_map(|p| p.strip_prefix(key).map(str::to_owned)).unwrap_or_default();
        let what = if asked.query.contains("watch=true") {
            format!("watch@{}", param("resourceVersion="))
        } else {
            format!("list{}", param("continue="))
        };
        let Some((expected, answer)) = script.lock().unwrap().pop_front() else { return Answer::Silence };
        assert_eq!(what, expected);
        answer
    });
    let (out, mut events) = mpsc::channel(64);
    let (watch, fresh) = Watch::<Replica>::new(client, "Replicas", Some("spec.node=n1".into()), out);
    let task = tokio::spawn(watch.run());
    let mut told = Vec::new();
    while told.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time").expect("the watch died");
        told.push(match event {
            Change::Synced => "synced".into(),
            Change::Changed(r) => format!("{}@{}", r.name_any()[34..36].trim_start_matches('0'), r.resource_version().unwrap()),
            Change::Gone(n) => format!("-{}", n[34..36].trim_start_matches('0')),
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(events.try_recv().is_err(), "nothing more is told");
    drop(events);
    task.abort();
    (told, fresh)
}

#[tokio::test]
async fn pages_are_listed_and_the_watch_goes_on_from_there() {
    let (told, fresh) = follow(
        vec![
            ("list", list(10, &[replica(1, 5)], Some("abc"))),
            ("listabc", list(10, &[replica(2, 6)], None)),
            (
                "watch@10",
                Answer::Lines(vec![
                    event("MODIFIED", &replica(1, 11)),
                    bookmark(20),
                    event("DELETED", &replica(2, 21)),
                    event("ADDED", &replica(3, 22)),
                ]),
            ),
            ("watch@22", Answer::Lines(vec![bookmark(30)])),
            ("watch@30", Answer::Silence),
        ],
        6,
    )
    .await;
    assert_eq!(told, ["1@5", "2@6", "synced", "1@11", "-2", "3@22"]);
    assert!(fresh.synced() && fresh.trouble().is_none());
}

#[tokio::test]
async fn after_an_expired_version_only_differences_are_told() {
    let expired = event(
        "ERROR",
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}),
    );
    let (told, _) = follow(
        vec![
            ("list", list(10, &[replica(1, 5), replica(2, 6), replica(3, 7)], None)),
            ("watch@10", Answer::Lines(vec![expired])),
            ("list", list(40, &[replica(1, 5), replica(2, 33), replica(4, 34)], None)),
            ("watch@40", Answer::Silence),
        ],
        7,
    )
    .await;
    assert_eq!(told, ["1@5", "2@6", "3@7", "synced", "2@33", "4@34", "-3"]);
}

#[tokio::test]
async fn one_object_that_nobody_understands_hides_no_other() {
    let mut rubbish = replica(1, 5);
    rubbish["spec"]["desired"]["state"] = json!("FromTheFuture");
    let (told, fresh) = follow(vec![("list", list(10, &[rubbish, replica(2, 6)], None)), ("watch@10", Answer::Silence)], 2).await;
    assert_eq!(told, ["2@6", "synced"]);
    assert_eq!(fresh.unreadable(), 1);
}

#[tokio::test]
async fn failures_are_retried_from_the_last_version_and_nothing_is_gone_by_them() {
    let (told, _) = follow(
        vec![
            ("list", Answer::Broken),
            ("list", Answer::error(500, "InternalError")),
            ("list", list(10, &[replica(1, 5)], None)),
            ("watch@10", Answer::Broken),
            ("watch@10", Answer::Lines(vec![event("MODIFIED", &replica(1, 11)), json!({"type": "MODIFIED"})])),
            ("watch@11", Answer::Silence),
        ],
        3,
    )
    .await;
    assert_eq!(told, ["1@5", "synced", "1@11"]);
}

#[tokio::test]
async fn silence_is_noticed() {
    let fresh = Freshness::new("Replicas");
    assert_eq!(fresh.trouble().unwrap(), "Replicas: not listed yet");
    fresh.0.synced.store(true, Ordering::Relaxed);
    fresh.proven();
    assert!(fresh.trouble().is_none());
    let old = State {
        started: Instant::now().checked_sub(STALE * 2).unwrap(),
        synced: AtomicBool::new(true),
        what: "Replicas",
        proof: AtomicU64::new(0),
        unreadable: AtomicU64::new(0),
    };
    assert!(Freshness(Arc::new(old)).trouble().unwrap().contains("nothing heard"));
}
