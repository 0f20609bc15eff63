//! What the volumes of a namespace share.

use std::collections::BTreeMap;

use dotgraft_api::common::ANNOTATION_CAPACITY_LIMIT;
use dotgraft_api::{Authority, CopyRole, Desired, Dot, FilesystemPhase, QuantityError, Replica, ReplicaSpec};
use k8s_openapi::api::core::v1::Namespace;
use proptest::prelude::*;

use super::*;
use crate::pools::tests::pool_id;
use crate::testing::scenario::play;
use crate::testing::{self, dot, filesystem, job, namespace, with_pools};

const GI: u64 = 1 << 30;

fn demand(of: &str, wanted: u64, has: u64) -> Demand {
    Demand { of: of.into(), wanted, has }
}

#[test]
fn who_grows_gets_it_if_it_fits_beside_what_others_have() {
    let both = [demand("a", 6, 0), demand("b", 6, 3)];
    assert_eq!(share(9, &both, "a"), (true, 3));
    assert_eq!(share(9, &both, "b"), (false, 6), "a comes first");
    assert_eq!(share(12, &both, "b"), (true, 6));
    let huge = [demand("a", u64::MAX, 0), demand("b", 6, 3)];
    assert_eq!((share(9, &huge, "a").0, share(9, &huge, "b").0), (false, true), "who doesn't fit holds nobody up");
    assert_eq!(share(1, &[demand("a", 6, 6)], "a"), (true, 6), "what is there stays");
    assert_eq!(share(6, &[demand("a", 2, 6), demand("b", 1, 0)], "b"), (false, 6), "room that is given up is there once it is free");
}

proptest! {
    /// Whatever is asked for, in whatever order the answers are carried out.
    #[test]
    fn what_is_granted_never_passes_the_limit(limit in 0..100_u64, asked in prop::collection::vec((0..60_u64, 0..30_u64), 1..8), rounds in prop::collection::vec(0..8_usize, 1..30)) {
        let mut list: Vec<Demand> = asked.iter().enumerate().map(|(n, (wanted, has))| demand(&n.to_string(), *wanted, *has)).collect();
        let most = limit.max(list.iter().map(|d| d.has).sum());
        for n in rounds {
            let n = n % list.len();
            let of = list[n].of.clone();
            if share(limit, &list, &of).0 {
                list[n].has = list[n].wanted;
            }
            prop_assert!(list.iter().map(|d| d.has).sum::<u64>() <= most);
        }
    }
}

fn limited(to: &str) -> Namespace {
    let mut namespace = namespace();
    namespace.metadata.annotations = Some(BTreeMap::from([(ANNOTATION_CAPACITY_LIMIT.to_owned(), to.to_owned())]));
    namespace
}

fn new_dot(name: &str, capacity: &str) -> Dot {
    let mut d = dot();
    (d.metadata.name, d.metadata.uid) = (Some(name.into()), Some(format!("uid-of-{name}")));
    (d.spec.fs_id, d.spec.capacity, d.spec.history_limit) = (None, capacity.into(), Some("1Gi".into()));
    d
}

async fn asked(limit: Option<&str>, claims: Vec<ClaimView>, fill: impl FnOnce(&Ctx) + Send + 'static) -> Vec<Result<(), Block>> {
    let namespace = limit.map_or_else(namespace, limited);
    let fill = move |ctx: &Ctx| {
        ctx.caches.namespaces.fill([namespace]);
        fill(ctx);
    };
    play(fill, vec![], |ctx| async move { claims.iter().map(|c| check(c, &ctx)).collect() }).await
}

#[tokio::test]
async fn many_who_ask_at_once_share_one_room() {
    let claims: Vec<_> = (0..4).map(|n| new_dot(&format!("d{n}"), "1Gi").view(None)).collect();
    let none = asked(None, claims.clone(), |_| {}).await;
    assert!(none.iter().all(Result::is_ok), "without the annotation there is no limit");
    let got: Vec<bool> = asked(Some("4Gi"), claims.clone(), |_| {}).await.iter().map(Result::is_ok).collect();
    assert_eq!(got, [true, true, false, false], "the caches have none of them yet");
    let seen = |ctx: &Ctx| ctx.caches.dots.fill((0..4).map(|n| new_dot(&format!("d{n}"), "1Gi")));
    let got: Vec<bool> = asked(Some("4Gi"), claims, seen).await.iter().map(Result::is_ok).collect();
    assert_eq!(got, [true, true, false, false], "two of 2Gi each");
    let wrong = asked(Some("lots"), vec![new_dot("d", "1Gi").view(None)], |_| {}).await.remove(0).unwrap_err();
    assert!(wrong.reason.as_str() == "CapacityLimit" && wrong.message.contains("can't be read"), "{}", wrong.message);
}

#[tokio::test]
async fn copies_count_those_of_jobs_and_of_placement_and_history_counts_too() {
    let wanted = |replicas: u32, limit: &'static str, job_to: Option<&'static str>| async move {
        let mut d = dot();
        d.spec.placement.get_or_insert_default().replicas = replicas;
        d.spec.history_limit = Some("3Gi".into());
        let claim = d.view(None);
        let fill = move |ctx: &Ctx| {
            with_pools(ctx, &["n1", "n2", "n3"]);
            ctx.caches.dots.fill([d]);
            ctx.caches.filesystems.fill([filesystem(Some(FilesystemPhase::Active), None)]);
            ctx.caches.jobs.fill(job_to.map(|node| job("j", node, 1)));
        };
        asked(Some(limit), vec![claim], fill).await.remove(0).is_ok()
    };
    assert!(wanted(0, "4Gi", None).await && !wanted(0, "4095Mi", None).await);
    assert!(wanted(2, "12Gi", None).await && !wanted(2, "11Gi", None).await, "three copies");
    assert!(wanted(0, "8Gi", Some("n2")).await && !wanted(0, "7Gi", Some("n2")).await, "the job's copy");
    assert!(wanted(0, "4Gi", Some("n9")).await, "there is no such node");
}

/// A copy on `node` of the Filesystem `of`, of 1Gi and as much for history, that began with so much.
fn copy_of(of: &str, node: &str, began_with: u64) -> Replica {
    let desired = Desired { capacity: GI, history_limit: GI, origin_bytes: began_with, ..Desired::default() };
    let spec = ReplicaSpec { fs_id: of.into(), node: node.into(), pool: pool_id(node), desired };
    testing::replica(spec, Marks::default(), CopyRole::Owner)
}

#[tokio::test]
async fn a_clone_counts_with_what_it_began_with() {
    let origin = "0198c2a5-7f00-7000-8000-00000000000f";
    // One that is asked for, with all that its origin may have: 1Gi and 1Gi of its own, 5Gi that the origin began with, 2Gi of the origin's.
    let asks = |limit: &'static str| async move {
        let mut d = new_dot("d", "1Gi");
        d.spec.origin = Some(dotgraft_api::Origin { fs_id: origin.into(), commit: origin.into() });
        let fill = move |ctx: &Ctx| ctx.caches.replicas.fill([copy_of(origin, "n1", 5 * GI)]);
        asked(Some(limit), vec![d.view(None)], fill).await.remove(0).is_ok()
    };
    assert!(asks("9Gi").await && !asks("8Gi").await);
    // One that is there, with what was measured, on each node.
    let has = |limit: &'static str, replicas: u32| async move {
        let mut d = dot();
        d.spec.history_limit = Some("1Gi".into());
        d.spec.placement.get_or_insert_default().replicas = replicas;
        let claim = d.view(None);
        let authority = Authority { owner: Place { node: "n1".into(), pool: pool_id("n1") }, epoch: 1, ..Authority::default() };
        let fill = move |ctx: &Ctx| {
            with_pools(ctx, &["n1", "n2", "n3"]);
            ctx.caches.dots.fill([d]);
            ctx.caches.filesystems.fill([filesystem(Some(FilesystemPhase::Active), Some(authority))]);
            ctx.caches.replicas.fill([copy_of(testing::FS, "n1", 3 * GI)]);
        };
        asked(Some(limit), vec![claim], fill).await.remove(0).is_ok()
    };
    assert!(has("5Gi", 0).await && has("1Gi", 0).await, "what it has is never refused");
    assert!(has("10Gi", 1).await && !has("9Gi", 1).await, "its second copy has no base to share");
}

#[tokio::test]
async fn what_cannot_be_read_as_a_size_asks_for_nothing_here() {
    let bad = ClaimView { capacity: Err(QuantityError::Malformed("x".into())), ..new_dot("d", "1Gi").view(None) };
    assert!(asked(Some("1Gi"), vec![bad], |_| {}).await.remove(0).is_ok(), "another condition says so");
    assert_eq!(size(&new_dot("d", "2Gi").view(None)), 3 * GI);
}
