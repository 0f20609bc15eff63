//! The agent's side of the API on a real API server with our CRDs.
//!
//! Ignored by default: needs `DOTGRAFT_TEST_KUBECONFIG` (an administrator's, of a throw-away server) and, for the restart,
//! `DOTGRAFT_TEST_RESTART` (a command that kills that server and starts it again). They fail without.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

use std::path::PathBuf;
use std::time::Duration;

use dotgraft_agent::cluster::authority::{AuthorityClient, OpenOutcome, Seen};
use dotgraft_agent::cluster::events::Events;
use dotgraft_agent::cluster::pools::{self, Fact, PoolFacts};
use dotgraft_agent::cluster::replicas::{self, ReplicaEvent};
use dotgraft_agent::cluster::status::StatusWriter;
use dotgraft_agent::cluster::{self, lease};
use dotgraft_agent::peer::directory::PeerDirectory;
use dotgraft_api::{CopyRole, Filesystem, NodePool, Replica, ReplicaJobStatus, ReplicaStatus};
use dotgraft_engine::ids::{Epoch, FsId, NodeName};
use dotgraft_engine::model::Place;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use uuid::Uuid;

const POOL: &str = "0198c2a5-7f00-4000-8000-0000000000aa";
const BOOT: &str = "0198c2a5-7f00-4000-8000-0000000000b0";

async fn client() -> Client {
    let file = std::env::var("DOTGRAFT_TEST_KUBECONFIG").expect("DOTGRAFT_TEST_KUBECONFIG names no kubeconfig");
    cluster::client(&PathBuf::from(file)).await.unwrap()
}

fn fresh_fs() -> FsId {
    FsId::from_uuid(Uuid::now_v7())
}

/// A node name of this test alone, so that tests don't meet.
fn fresh_node() -> NodeName {
    format!("n-{}", &Uuid::new_v4().simple().to_string()[..8]).parse().unwrap()
}

async fn make<K>(client: &Client, object: Value) -> K
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
    K: kube::Resource<Scope = kube::core::ClusterResourceScope>,
{
    let status = object.get("status").cloned();
    let api: Api<K> = Api::all(client.clone());
    let made = api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    match status {
        None => made,
        Some(status) => {
            let patch = json!({ "status": status });
            api.patch_status(&made.meta().name.clone().unwrap(), &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap()
        }
    }
}

async fn make_replica(client: &Client, fs: FsId, node: &NodeName) -> Replica {
    let object = json!({
        "apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica", "metadata": {"name": format!("{fs}.{POOL}")},
        "spec": {"fsId": fs, "node": node, "pool": POOL, "desired": {"state": "Present", "role": "Owner", "epoch": 1, "capacity": 1 << 30, "historyLimit": 1 << 30}},
    });
    make(client, object).await
}

async fn until<T>(what: &str, seconds: u64, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..seconds * 10 {
        if let Some(found) = probe().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: not within {seconds} s");
}

#[tokio::test]
#[ignore = "needs an API server, see the head of this file"]
async fn authority_is_opened_once_and_an_opened_one_is_confirmed_without_a_new_version() {
    let client = client().await;
    let (fs, node) = (fresh_fs(), fresh_node());
    let me = Place { node: node.clone(), pool: POOL.parse().unwrap() };
    let filesystem = json!({
        "apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem", "metadata": {"name": fs},
        "spec": {"claimRef": {"kind": "Dot", "namespace": "default", "name": "data"}},
    });
    let made: Filesystem = make(&client, filesystem).await;
    let authority = AuthorityClient::new(client.clone());
    assert_eq!(authority.open(fs, &me, BOOT.parse().unwrap(), Seen::default()).await, OpenOutcome::NoAuthority);

    let status = json!({"status": {"phase": "New", "authority": {"owner": {"node": node, "pool": POOL}, "epoch": 3, "attempt": 1}}});
    let api: Api<Filesystem> = Api::all(client.clone());
    api.patch_status(&made.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();

    let seen = Seen { epoch: Epoch(3), resource_version: None };
    let first = authority.open(fs, &me, BOOT.parse().unwrap(), seen).await.into_result().unwrap();
    assert!(first.new && first.epoch == Epoch(3) && first.attempt == 1);
    let now = api.get(&fs.to_string()).await.unwrap();
    assert_eq!(now.status.unwrap().authority.unwrap().opened.unwrap().boot_id, BOOT);
    assert!(now.metadata.managed_fields.unwrap().iter().any(|f| f.manager.as_deref() == Some("dotgraft-agent")));

    let seen = Seen { epoch: Epoch(3), resource_version: first.resource_version };
    let second = authority.open(fs, &me, BOOT.parse().unwrap(), seen).await.into_result().unwrap();
    assert_eq!(second.resource_version, first.resource_version, "confirmed by a swap that changed nothing");

    let future = Seen { epoch: Epoch(4), resource_version: None };
    assert!(matches!(authority.open(fs, &me, BOOT.parse().unwrap(), future).await, OpenOutcome::EpochRegression { .. }));
    assert!(!authority.is_deleting(fs).await.unwrap() && !authority.is_deleting(fresh_fs()).await.unwrap());
    let view = authority.get(fs).await.unwrap().unwrap();
    assert_eq!((view.claim.kind.as_str(), view.claim.name.as_str()), ("Dot", "data"));
    api.delete(&fs.to_string(), &DeleteParams::default()).await.unwrap();
    assert_eq!(authority.open(fs, &me, BOOT.parse().unwrap(), seen).await, OpenOutcome::Missing);
}

/// Two agents (a split brain of the same node) race a thief; each round somebody wins, and an opening never survives a theft.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an API server, see the head of this file"]
async fn an_opening_and_a_theft_never_both_win() {
    let client = client().await;
    let node = fresh_node();
    let me = Place { node: node.clone(), pool: POOL.parse().unwrap() };
    let api: Api<Filesystem> = Api::all(client.clone());
    for _ in 0..20 {
        let fs = fresh_fs();
        let filesystem = json!({
            "apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem", "metadata": {"name": fs},
            "spec": {"claimRef": {"kind": "Dot", "namespace": "default", "name": "data"}},
            "status": {"phase": "Active", "authority": {"owner": {"node": node, "pool": POOL}, "epoch": 1, "attempt": 0}},
        });
        let read: Filesystem = make(&client, filesystem).await;
        // The thief acts on what it read: not opened.
        let thief = async {
            let mut stolen = read.clone();
            let authority = stolen.status.as_mut().unwrap().authority.as_mut().unwrap();
            authority.owner.node = "thief".into();
            authority.epoch = 2;
            api.replace_status(&fs.to_string(), &PostParams::default(), &stolen).await.is_ok()
        };
        let agent = AuthorityClient::new(client.clone());
        let (stolen, opened) = tokio::join!(thief, agent.open(fs, &me, BOOT.parse().unwrap(), Seen::default()));
        assert_eq!(stolen, !matches!(opened, OpenOutcome::Opened(_)), "{opened:?}");
        api.delete(&fs.to_string(), &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an API server, see the head of this file"]
async fn statuses_arrive_and_an_idle_one_is_never_written_again() {
    let client = client().await;
    let (fs, node) = (fresh_fs(), fresh_node());
    let replica = make_replica(&client, fs, &node).await;
    let api: Api<Replica> = Api::all(client.clone());
    let (name, uid) = (replica.name_any(), replica.uid().unwrap());
    let writer = StatusWriter::start(client.clone());

    // As the supervisor does: every event is shown to the writer.
    let (mut events, _, _) = replicas::watch(client.clone(), &node);
    let observer = writer.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let ReplicaEvent::Changed(replica) = event {
                observer.observe(fs, &replica);
            }
        }
    });

    let report = json!({"state": "Completed", "finishedAt": null, "attempts": [], "problem": null, "attempt": 1});
    let time = serde_json::from_value(json!("2026-01-02T03:04:05.678Z")).unwrap();
    let job = ReplicaJobStatus {
        uid: Uuid::new_v4().to_string(),
        report: Some(report),
        last_successful_time: Some(time),
        ..ReplicaJobStatus::default()
    };
    let full = ReplicaStatus { role: CopyRole::Owner, epoch: 1, jobs: vec![job], phase: "fine".into(), ..ReplicaStatus::default() };
    writer.put(fs, &name, &uid, full.clone());
    until("written", 5, async || (api.get(&name).await.unwrap().status?.role == CopyRole::Owner).then_some(())).await;
    let version = api.get(&name).await.unwrap().resource_version();
    writer.put(fs, &name, &uid, full.clone());
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(writer.behind(), 0);
    assert_eq!(api.get(&name).await.unwrap().resource_version(), version, "idle");

    // What is left out goes away; what somebody else wrote is corrected.
    writer.put(fs, &name, &uid, ReplicaStatus { role: CopyRole::Replica, ..ReplicaStatus::default() });
    until("jobs gone", 5, async || api.get(&name).await.unwrap().status?.jobs.is_empty().then_some(())).await;
    let meddle = json!({"status": {"role": "Absent"}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&meddle)).await.unwrap();
    until("corrected", 10, async || (api.get(&name).await.unwrap().status?.role == CopyRole::Replica).then_some(())).await;

    // A new object of the same name has no status until its actor says something of it.
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    let again = make_replica(&client, fs, &node).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(api.get(&name).await.unwrap().status.is_none());
    writer.put(fs, &name, &again.uid().unwrap(), full.clone());
    until("written to the new one", 5, async || api.get(&name).await.unwrap().status.map(drop)).await;

    // What is said of an object that is gone is dropped.
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    writer.put(fs, &name, &again.uid().unwrap(), ReplicaStatus::default());
    until("dropped", 5, async || (writer.behind() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an API server, see the head of this file"]
async fn only_replicas_of_this_node_are_told_and_a_restart_of_the_server_loses_none() {
    let restart = std::env::var("DOTGRAFT_TEST_RESTART").expect("DOTGRAFT_TEST_RESTART names no command");
    let client = client().await;
    let (mine, other) = (fresh_node(), fresh_node());
    let first = make_replica(&client, fresh_fs(), &mine).await;
    make_replica(&client, fresh_fs(), &other).await;
    let (mut events, fresh, _) = replicas::watch(client.clone(), &mine);
    let mut next = async || tokio::time::timeout(Duration::from_secs(60), events.recv()).await.expect("an event").unwrap();

    assert!(matches!(next().await, ReplicaEvent::Changed(r) if r.name_any() == first.name_any()));
    assert!(matches!(next().await, ReplicaEvent::Synced));
    assert!(fresh.trouble().is_none());

    let out = std::process::Command::new("sh").args(["-c", &restart]).status().unwrap();
    assert!(out.success());
    let api: Api<Replica> = Api::all(client.clone());
    let second = until("the server is back", 60, async || {
        let object =
            json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica", "metadata": {"name": format!("{}.{POOL}", fresh_fs())}});
        let mut object = object;
        let fs = object["metadata"]["name"].as_str().unwrap()[..36].to_owned();
        object["spec"] =
            json!({"fsId": fs, "node": mine, "pool": POOL, "desired": {"state": "Present", "role": "Replica", "epoch": 1, "capacity": 1}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.ok()
    })
    .await;
    api.delete(&first.name_any(), &DeleteParams::default()).await.unwrap();
    let (mut told_second, mut told_gone) = (false, false);
    while !(told_second && told_gone) {
        match next().await {
            ReplicaEvent::Changed(r) if r.name_any() == second.name_any() => told_second = true,
            ReplicaEvent::Gone(name) if name == first.name_any() => told_gone = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(fresh.age() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an API server, see the head of this file"]
async fn a_pool_waits_for_its_object_then_speaks_on_change_only() {
    let client = client().await;
    let (node, peer) = (fresh_node(), fresh_node());
    let directory = PeerDirectory::default();
    let (own, fresh) = pools::start(client.clone(), node.clone(), directory.clone());
    let ready = Fact { kind: "Ready".into(), status: Some(true), reason: "Mounted".into(), message: "fine".into() };
    let facts = |available| PoolFacts {
        pool: Some(POOL.parse().unwrap()),
        capacity: 100 << 30,
        available,
        features: vec!["simple-quotas".into()],
        kernel_release: "6.18".into(),
        orphans: vec![],
        conditions: vec![ready.clone()],
    };
    own.set(facts(50 << 30));
    until("listed", 5, async || fresh.synced().then_some(())).await;
    let pool = |node: &NodeName| {
        json!({
            "apiVersion": "dotgraft.dev/v1alpha1", "kind": "NodePool", "metadata": {"name": node},
            "spec": {"node": node, "poolGroup": "default", "address": "10.0.0.1:7000", "fingerprints": ["ab".repeat(32)]},
        })
    };
    make::<NodePool>(&client, pool(&node)).await;
    make::<NodePool>(&client, pool(&peer)).await;
    tokio::time::timeout(Duration::from_secs(5), own.exists()).await.unwrap().unwrap();
    until("peer known", 5, async || directory.get(&peer)).await;

    let api: Api<NodePool> = Api::all(client.clone());
    until("status", 5, async || (api.get(node.as_str()).await.unwrap().status?.available_bytes == 50 << 30).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let version = api.get(node.as_str()).await.unwrap().resource_version();
    own.set(facts((50 << 30) + 5000));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(api.get(node.as_str()).await.unwrap().resource_version(), version, "a few bytes are no news");
    own.set(facts(40 << 30));
    until("new step", 5, async || (api.get(node.as_str()).await.unwrap().status?.available_bytes == 40 << 30).then_some(())).await;

    let actions = json!({"spec": {"orphanActions": [{"fsId": fresh_fs(), "action": "Drop"}]}});
    api.patch(node.as_str(), &PatchParams::default(), &Patch::Merge(&actions)).await.unwrap();
    let mut object = own.object();
    let told = object.wait_for(|o| o.as_ref().is_some_and(|p| p.spec.orphan_actions.len() == 1));
    tokio::time::timeout(Duration::from_secs(5), told).await.unwrap().unwrap();
    api.delete(peer.as_str(), &DeleteParams::default()).await.unwrap();
    until("peer forgotten", 5, async || directory.get(&peer).is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an API server, see the head of this file"]
async fn heartbeats_and_events_arrive() {
    let client = client().await;
    let node = fresh_node();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "dotgraft-system"}})).unwrap();
    let _ = namespaces.create(&PostParams::default(), &namespace).await;
    let beating = tokio::spawn(lease::beat(client.clone(), "dotgraft-system".into(), node.clone()));
    let leases: Api<Lease> = Api::namespaced(client.clone(), "dotgraft-system");
    let renewed = async || leases.get_opt(&lease::name(&node)).await.unwrap()?.spec?.renew_time;
    let first = until("a heartbeat", 5, renewed).await;
    until("the next one", 15, async || renewed().await.filter(|t| *t > first)).await;
    beating.abort();

    let replica = make_replica(&client, fresh_fs(), &node).await;
    let events = Events::start(client.clone(), &node);
    for _ in 0..5 {
        events.say(&replica, true, "NoSpace", "the pool is full");
    }
    events.say(&replica, false, "Created", "the copy is on this node's pool");
    let api: Api<Event> = Api::namespaced(client.clone(), "default");
    let mine = async || {
        let all = api.list(&ListParams::default()).await.unwrap().items;
        let mine: Vec<Event> =
            all.into_iter().filter(|e| e.regarding.as_ref().and_then(|r| r.name.clone()) == Some(replica.name_any())).collect();
        (mine.len() == 2).then_some(mine)
    };
    let said = until("two events", 5, mine).await;
    assert!(said.iter().any(|e| e.reason.as_deref() == Some("NoSpace") && e.type_.as_deref() == Some("Warning") && e.series.is_none()));
}
