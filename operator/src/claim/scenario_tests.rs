//! The controller of Dots against a scripted API server.

use dotgraft_api::{Authority, CopyRole, Place};
use serde_json::Value;

use super::*;
use crate::filesystem::spare::Marks;
use crate::pools::tests::pool_id;
use crate::testing::scenario::{call, event, list, missing, play};
use crate::testing::{self, FS, dot, filesystem, namespace, with_pools};

fn active() -> Filesystem {
    let owner = Place { node: "n1".into(), pool: pool_id("n1") };
    filesystem(Some(FilesystemPhase::Active), Some(Authority { owner, epoch: 1, ..Authority::default() }))
}
fn owner_copy() -> dotgraft_api::Replica {
    let desired = dotgraft_api::Desired {
        role: Some(dotgraft_api::DesiredRole::Owner),
        epoch: 1,
        capacity: 1 << 30,
        history_limit: 1 << 30,
        ..Default::default()
    };
    let spec = dotgraft_api::ReplicaSpec { fs_id: FS.into(), node: "n1".into(), pool: pool_id("n1"), desired };
    testing::replica(spec, Marks::default(), CopyRole::Owner)
}
fn fill(dot: Dot, fs: Option<Filesystem>) -> impl FnOnce(&Ctx) {
    move |ctx| {
        with_pools(ctx, &["n1"]);
        ctx.caches.dots.fill([dot]);
        ctx.caches.filesystems.fill(fs);
        ctx.caches.replicas.fill([owner_copy()]);
    }
}

#[tokio::test]
async fn the_status_is_written_once_and_then_there_is_radio_silence() {
    use std::sync::Mutex;
    let written = Arc::new(Mutex::new(Value::Null));
    let keep = written.clone();
    let script = vec![call("PATCH", "/dots/db/status", dot()).with(move |b| *keep.lock().unwrap() = b["status"].clone()), event()];
    play(fill(dot(), Some(active())), script, |ctx| reconcile_dot(Arc::new(dot()), ctx)).await.unwrap();
    let mut settled = dot();
    settled.status = Some(serde_json::from_value(written.lock().unwrap().clone()).unwrap());
    let ready = dotgraft_api::condition(&settled.status.as_ref().unwrap().conditions, "Ready").unwrap().status.clone();
    assert_eq!(ready, "True");
    play(fill(settled.clone(), Some(active())), vec![], |ctx| reconcile_dot(Arc::new(settled), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_new_dot_is_held_before_its_filesystem_is_made() {
    let mut new = dot();
    (new.metadata.finalizers, new.metadata.annotations, new.spec.fs_id) = (None, None, None);
    let fs = filesystem(None, None);
    let started = filesystem(Some(FilesystemPhase::New), None);
    let script = vec![
        call("GET", "/namespaces/team/dots/db", &new),
        call("GET", "/api/v1/namespaces/team", namespace()),
        call("GET", "/filesystems?&labelSelector=dotgraft.dev%2Fclaim%3D", list::<Filesystem>(&[], "Filesystem")),
        call("PATCH", "/namespaces/team/dots/db", dot()).with(|b| {
            assert_eq!(b["metadata"]["resourceVersion"], "1");
            assert_eq!(b["metadata"]["finalizers"][0], names::CLAIM_FINALIZER);
            assert_eq!(b["metadata"]["annotations"][names::ALLOCATED_ANNOTATION], testing::CLAIM_UID);
            assert_eq!(b["spec"]["fsId"].as_str().unwrap().as_bytes()[14], b'7', "a UUIDv7");
        }),
        call("GET", "/namespaces/team/dots/db", dot()),
        missing("GET", format!("/filesystems/{FS}")),
        call("GET", "/api/v1/namespaces/team", namespace()),
        call("POST", "/filesystems?", &fs).with(|b| {
            assert_eq!(b["metadata"]["name"], FS);
            assert_eq!(b["metadata"]["finalizers"][0], names::FILESYSTEM_FINALIZER);
            assert_eq!(b["spec"]["claimRef"]["uid"], testing::CLAIM_UID);
            assert_eq!(b["spec"]["claimRef"]["namespaceUid"], testing::NAMESPACE_UID);
        }),
        call("GET", "/namespaces/team/dots/db", dot()),
        call("GET", format!("/filesystems/{FS}"), &fs),
        call("PUT", format!("/filesystems/{FS}/status"), &started).with(|b| assert_eq!(b["status"]["phase"], "New")),
        call("GET", "/namespaces/team/dots/db", dot()),
        call("GET", format!("/filesystems/{FS}"), &started),
        call("PATCH", "/dots/db/status", dot()).with(|b| assert_eq!(b["status"]["fsId"], FS)),
        event(),
    ];
    play(fill(new.clone(), None), script, |ctx| reconcile_dot(Arc::new(new), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_name_with_data_makes_nothing() {
    let mut new = dot();
    (new.metadata.finalizers, new.metadata.annotations, new.spec.fs_id) = (None, None, None);
    let script = vec![
        call("GET", "/namespaces/team/dots/db", &new),
        call("GET", "/api/v1/namespaces/team", namespace()),
        call("GET", "/filesystems?&labelSelector=", list(&[active()], "Filesystem")),
        call("PATCH", "/dots/db/status", &new).with(|b| {
            assert!(b["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "NameHasData" && c["status"] == "True"));
        }),
        event(),
    ];
    play(fill(new.clone(), None), script, |ctx| reconcile_dot(Arc::new(new), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_deletion_is_recorded_on_live_reads_before_the_dot_goes() {
    let mut going = dot();
    going.metadata.deletion_timestamp = Some(dotgraft_api::Time(Timestamp::UNIX_EPOCH));
    let deleting = filesystem(Some(FilesystemPhase::Deleting), active().status.unwrap().authority);
    let reads = |fs: &Filesystem| {
        vec![
            call("GET", "/namespaces/team/dots/db", &going),
            call("GET", format!("/filesystems/{FS}"), fs),
            call("GET", "/namespaces/team/branches?", list::<Branch>(&[], "Branch")),
            call("GET", "/replicas?&fieldSelector=", list(&[owner_copy()], "Replica")),
            call("GET", "/api/v1/namespaces/team", namespace()),
            call("GET", "/namespaces/team/commits?&labelSelector=dotgraft.dev%2Ffs-id%3D", list::<dotgraft_api::Commit>(&[], "Commit")),
            call("GET", "/namespaces/dotgraft-system/commits?&labelSelector=", list::<dotgraft_api::Commit>(&[], "Commit")),
        ]
    };
    let mut script = reads(&active());
    script.push(call("PUT", format!("/filesystems/{FS}/status"), &deleting).with(|b| {
        assert_eq!((&b["status"]["phase"], &b["status"]["authority"]["epoch"]), (&json!("Deleting"), &json!(1)));
    }));
    script.extend(reads(&deleting));
    script.push(call("PATCH", "/namespaces/team/dots/db", &going).with(|b| assert_eq!(b["metadata"]["finalizers"], json!([]))));
    play(fill(going.clone(), Some(active())), script, |ctx| reconcile_dot(Arc::new(going.clone()), ctx)).await.unwrap();
}

/// Dot `db` of namespace `other` with the id of `db` of `team`.
fn foreign() -> Dot {
    let mut dot = dot();
    dot.metadata.namespace = Some("other".into());
    dot.metadata.uid = Some("0198c2a5-7f00-7000-8000-0000000000ee".into());
    dot
}

#[tokio::test]
async fn who_names_another_tenants_filesystem_gets_and_learns_nothing() {
    let script = vec![
        call("GET", "/namespaces/other/dots/db", foreign()),
        call("GET", format!("/filesystems/{FS}"), active()),
        call("GET", "/api/v1/namespaces/other", namespace()),
        call("PATCH", "/namespaces/other/dots/db/status", foreign()).with(|b| {
            let told: Vec<&String> = b["status"].as_object().unwrap().keys().collect();
            assert_eq!(told, ["conditions", "observedGeneration"], "nothing of what another has");
            assert!(!b.to_string().contains("team"), "{b}");
            assert!(b["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "ClaimMismatch" && c["status"] == "True"));
        }),
        event(),
    ];
    play(fill(foreign(), Some(active())), script, |ctx| reconcile_dot(Arc::new(foreign()), ctx)).await.unwrap();
}

#[tokio::test]
async fn it_goes_at_once_and_leaves_the_filesystem_alone() {
    let mut going = foreign();
    going.metadata.deletion_timestamp = Some(dotgraft_api::Time(Timestamp::UNIX_EPOCH));
    let script = vec![
        call("GET", "/namespaces/other/dots/db", &going),
        call("GET", format!("/filesystems/{FS}"), active()),
        call("GET", "/api/v1/namespaces/other", namespace()),
        call("GET", "/namespaces/other/branches?", list::<Branch>(&[], "Branch")),
        call("PATCH", "/namespaces/other/dots/db", &going).with(|b| assert_eq!(b["metadata"]["finalizers"], json!([]))),
    ];
    play(fill(going.clone(), Some(active())), script, |ctx| reconcile_dot(Arc::new(going), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_name_that_an_earlier_namespace_filled_says_so_without_the_id() {
    let mut new = dot();
    (new.metadata.finalizers, new.metadata.annotations, new.spec.fs_id) = (None, None, None);
    let mut anew = namespace();
    anew.metadata.uid = Some("0198c2a5-7f00-7000-8000-0000000000ee".into());
    let script = vec![
        call("GET", "/namespaces/team/dots/db", &new),
        call("GET", "/api/v1/namespaces/team", anew),
        call("GET", "/filesystems?&labelSelector=", list(&[active()], "Filesystem")),
        call("PATCH", "/dots/db/status", &new).with(|b| {
            assert!(b.to_string().contains("NameHasData") && !b.to_string().contains(FS), "{b}");
        }),
        event(),
    ];
    play(fill(new.clone(), None), script, |ctx| reconcile_dot(Arc::new(new), ctx)).await.unwrap();
}
