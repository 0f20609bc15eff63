//! The controller against a scripted API server.

use dotgraft_api::{Authority, CopyRole, Dot, Filesystem, FilesystemPhase, Place, Replica};
use serde_json::{Value, json};

use super::*;
use crate::pools::tests::pool_id;
use crate::testing::scenario::{call, list, play};
use crate::testing::{self, FS, dot, filesystem, with_pools};

fn authority() -> Authority {
    Authority { owner: Place { node: "n1".into(), pool: pool_id("n1") }, epoch: 1, ..Authority::default() }
}
fn owner_replica(fs: &Filesystem) -> Replica {
    let view = View {
        fs: fs.clone(),
        claim: Some(crate::claim::ClaimObject::view(&dot(), None)),
        pools: vec![crate::pools::tests::pool("n1", 9)],
        ..View::default()
    };
    let plan = plan::plan(&view);
    let Some(Write::Create(spec, _)) = plan.writes.first() else { panic!("{plan:?}") };
    testing::replica(*spec.clone(), Marks::default(), CopyRole::Owner)
}
fn fill(fs: Filesystem, replicas: Vec<Replica>) -> impl FnOnce(&Ctx) {
    move |ctx| {
        with_pools(ctx, &["n1"]);
        ctx.caches.dots.fill([dot()]);
        ctx.caches.filesystems.fill([fs]);
        ctx.caches.replicas.fill(replicas);
    }
}
fn reads(fs: &Filesystem, dot: &Dot, replicas: &[Replica]) -> Vec<scenario::Call> {
    vec![
        call("GET", format!("/filesystems/{FS}"), fs),
        call("GET", "/namespaces/team/dots/db", dot),
        call("GET", format!("/replicas?&fieldSelector=spec.fsId%3D{FS}"), list(replicas, "Replica")),
    ]
}
use crate::testing::scenario;

#[tokio::test]
async fn steady_state_is_radio_silence() {
    let fs = filesystem(Some(FilesystemPhase::Active), Some(authority()));
    let replica = owner_replica(&fs);
    play(fill(fs.clone(), vec![replica]), vec![], |ctx| reconcile(Arc::new(fs), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_new_filesystem_is_decided_on_live_reads_authority_before_replica() {
    let new = filesystem(Some(FilesystemPhase::New), None);
    let owned = filesystem(Some(FilesystemPhase::New), Some(authority()));
    let mut script = reads(&new, &dot(), &[]);
    script.push(call("PUT", format!("/filesystems/{FS}/status"), &owned).with(|b: &Value| {
        assert_eq!(b["metadata"]["resourceVersion"], "1", "compare-and-swap");
        assert_eq!(b["status"]["authority"]["epoch"], 1);
    }));
    script.extend(reads(&owned, &dot(), &[]));
    let replica = owner_replica(&owned);
    script.push(call("PATCH", format!("/replicas/{FS}.{}?&force=true&fieldManager=dotgraft-operator", pool_id("n1")), &replica).with(
        |b| {
            assert_eq!(b["metadata"]["finalizers"], json!(["dotgraft.dev/replica"]));
            assert_eq!(b["spec"]["desired"]["role"], "Owner");
            assert_eq!(b["spec"]["desired"]["capacity"], 1 << 30);
        },
    ));
    let mut waiting = replica;
    waiting.status = None;
    script.extend(reads(&owned, &dot(), &[waiting]));
    play(fill(new.clone(), vec![]), script, |ctx| reconcile(Arc::new(new), ctx)).await.unwrap();
}

#[tokio::test]
async fn what_the_cache_calls_new_is_not_given_an_owner_when_it_is_being_deleted() {
    let stale = filesystem(Some(FilesystemPhase::New), None);
    let mut now = filesystem(Some(FilesystemPhase::Deleting), None);
    now.metadata.deletion_timestamp = Some(dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    let mut script = reads(&now, &dot(), &[]);
    // No copy exists: the only thing to do is to end it.
    script.push(call("DELETE", format!("/filesystems/{FS}"), &now));
    script.push(call("GET", format!("/filesystems/{FS}"), &now));
    script.push(call("PATCH", format!("/filesystems/{FS}"), &now).with(|b| {
        assert_eq!(b["metadata"]["finalizers"], json!([]));
        assert_eq!(b["metadata"]["resourceVersion"], "1");
    }));
    script.push(scenario::missing("GET", format!("/filesystems/{FS}")));
    play(fill(stale.clone(), vec![]), script, |ctx| reconcile(Arc::new(stale), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_changed_capacity_is_applied_to_the_version_that_was_planned_with() {
    let fs = filesystem(Some(FilesystemPhase::Active), Some(authority()));
    let replica = owner_replica(&fs);
    let mut bigger = dot();
    bigger.spec.capacity = "2Gi".into();
    let script = vec![call("PATCH", format!("/replicas/{FS}."), &replica).with(|b| {
        assert_eq!(b["metadata"]["resourceVersion"], "1");
        assert_eq!(b["spec"]["desired"]["capacity"], 2_u64 << 30);
    })];
    let fill = |ctx: &Ctx| {
        fill(fs.clone(), vec![replica.clone()])(ctx);
        ctx.caches.dots.fill([bigger]);
    };
    play(fill, script, |ctx| reconcile(Arc::new(fs.clone()), ctx)).await.unwrap();
}

#[tokio::test]
async fn a_finalizer_that_the_agent_took_off_is_not_put_back() {
    let fs = filesystem(Some(FilesystemPhase::Active), Some(authority()));
    let mut replica = owner_replica(&fs);
    replica.metadata.finalizers = None;
    let spec = replica.spec.clone();
    let script = vec![call("PATCH", format!("/replicas/{FS}."), &replica).with(|b| assert!(b["metadata"].get("finalizers").is_none()))];
    play(
        |_| {},
        script,
        |ctx| async move { apply_replica(&spec, Marks { unmanaged: true, ..Marks::default() }, Some(&replica), &ctx).await },
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_pool_that_only_the_cache_calls_gone_is_waited_for() {
    let fs = filesystem(Some(FilesystemPhase::Deleting), Some(authority()));
    let mut copy = owner_replica(&filesystem(Some(FilesystemPhase::Active), Some(authority())));
    copy.spec.desired = dotgraft_api::Desired { state: dotgraft_api::DesiredState::Absent, epoch: 1, ..dotgraft_api::Desired::default() };
    let (pool, node) = testing::node_pool("n1");
    let mut script = reads(&fs, &dot(), &[copy.clone()]);
    script.push(call("GET", "/nodepools/n1", pool));
    script.push(call("GET", "/api/v1/nodes/n1", node));
    let fill = |ctx: &Ctx| {
        fill(fs.clone(), vec![copy])(ctx);
        with_pools(ctx, &[]);
    };
    play(fill, script, |ctx| reconcile(Arc::new(fs.clone()), ctx)).await.unwrap();
}
