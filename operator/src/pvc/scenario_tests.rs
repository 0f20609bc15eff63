//! PVCs against a scripted API server.

use dotgraft_api::{Authority, Filesystem, Place};
use serde_json::json;

use super::decide::tests::pvc;
use super::*;
use crate::pools::tests::pool_id;
use crate::testing::scenario::{Call, call, event, missing, play};
use crate::testing::{FS, dot, filesystem, with_pools};

fn active() -> Filesystem {
    let owner = Place { node: "n1".into(), pool: pool_id("n1") };
    filesystem(Some(FilesystemPhase::Active), Some(Authority { owner, epoch: 1, ..Authority::default() }))
}
fn fill(volumes: Vec<PersistentVolume>) -> impl FnOnce(&Ctx) {
    move |ctx| {
        with_pools(ctx, &["n1"]);
        ctx.caches.dots.fill([dot()]);
        ctx.caches.filesystems.fill([active()]);
        ctx.caches.volumes.fill(volumes);
    }
}
fn our_class() -> Call {
    call("GET", "/storageclasses/dotgraft", json!({ "metadata": { "name": "dotgraft" }, "provisioner": DRIVER_NAME }))
}
fn pv(name: &str, uid: &str) -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": { "name": name, "uid": "v1" },
        "spec": {
            "csi": { "driver": DRIVER_NAME, "volumeHandle": FS }, "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": { "namespace": "team", "name": "data", "uid": uid },
        },
    }))
    .unwrap()
}
fn the_dot() -> Call {
    call("GET", "/namespaces/team/dots/db", dot())
}
fn the_filesystem(fs: Filesystem) -> Call {
    call("GET", format!("/filesystems/{FS}"), fs)
}
async fn give(claim: PersistentVolumeClaim, volumes: Vec<PersistentVolume>, script: Vec<Call>) {
    play(fill(volumes), script, |ctx| reconcile(Arc::new(claim), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_claim_gets_the_dot_that_it_names() {
    let ours = pv(&format!("dotgraft-{FS}"), "u1");
    let script = vec![
        our_class(),
        the_dot(),
        the_filesystem(active()),
        call("POST", "/persistentvolumes", &ours).with(|b| {
            assert_eq!(b["metadata"]["name"], format!("dotgraft-{FS}"));
            assert_eq!(b["spec"]["claimRef"]["uid"], "u1");
            assert_eq!(b["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        }),
    ];
    give(pvc("Dot", &["ReadWriteOnce"]), vec![], script).await;
}

#[tokio::test]
async fn a_claim_of_another_class_or_kind_is_left_alone() {
    let other = call("GET", "/storageclasses/dotgraft", json!({ "metadata": { "name": "dotgraft" }, "provisioner": "x" }));
    give(pvc("Dot", &["ReadWriteOnce"]), vec![], vec![other]).await;
    let mut plain = pvc("Dot", &["ReadWriteOnce"]);
    plain.spec.as_mut().unwrap().data_source_ref = None;
    give(plain, vec![], vec![]).await;
}

#[tokio::test]
async fn a_second_claim_gets_an_event_and_no_volume() {
    let said = || {
        call("POST", "/apis/events.k8s.io/", json!({ "metadata": { "name": "e", "namespace": "team" }, "eventTime": null }))
            .with(|b| assert_eq!(b["reason"], "AlreadyClaimed", "{b}"))
    };
    give(pvc("Dot", &["ReadWriteOnce"]), vec![pv("by-provisioner", "u0")], vec![our_class(), the_dot(), the_filesystem(active()), said()])
        .await;
}

#[tokio::test]
async fn what_is_missing_or_too_small_is_said() {
    let mut large = pvc("Dot", &["ReadWriteOnce"]);
    let requests = large.spec.as_mut().unwrap().resources.as_mut().unwrap().requests.as_mut().unwrap();
    requests.insert("storage".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("2Gi".into()));
    give(large, vec![], vec![our_class(), the_dot(), the_filesystem(active()), event()]).await;
    let no_branch = missing("GET", "/namespaces/team/branches/db");
    give(pvc("Branch", &["ReadWriteOnce"]), vec![], vec![our_class(), no_branch, event()]).await;
    give(pvc("Dot", &["ReadWriteMany"]), vec![], vec![our_class(), event()]).await;
}

#[tokio::test]
async fn a_dot_that_names_another_tenants_filesystem_gives_no_volume_whatever_the_watches_saw() {
    let mut theirs = active();
    theirs.spec.claim_ref.namespace = "other".into();
    theirs.spec.claim_ref.uid = Some("0198c2a5-7f00-7000-8000-0000000000ee".into());
    for mode in ["ReadWriteOnce", "ReadOnlyMany"] {
        give(pvc("Dot", &[mode]), vec![], vec![our_class(), the_dot(), the_filesystem(theirs.clone()), event()]).await;
    }
}

#[tokio::test]
async fn a_volume_goes_with_its_claim_and_no_other_does() {
    let ours = pv(&format!("dotgraft-{FS}"), "u1");
    let go = |pv: &PersistentVolume, script| {
        let pv = Arc::new(pv.clone());
        play(|_| {}, script, |ctx| reconcile_volume(pv, ctx))
    };
    let gone = missing("GET", "/namespaces/team/persistentvolumeclaims/data");
    go(&ours, vec![gone, call("DELETE", format!("/persistentvolumes/dotgraft-{FS}"), &ours)]).await.unwrap();
    let there = call("GET", "/namespaces/team/persistentvolumeclaims/data", pvc("Dot", &[]));
    go(&ours, vec![there]).await.unwrap();
    go(&pv("by-hand", "u1"), vec![]).await.unwrap();
}
