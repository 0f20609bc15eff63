//! Runs the controllers while this process leads: which change makes which object be looked at again, how failures
//! back off, what is counted. All state that matters is in the API server; a leader that steps down drops the rest.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_api::{Branch, Commit, Dot, DotOperation, Filesystem, FilesystemPhase, NodePool, Replica, ReplicationJob};
use futures::stream::{BoxStream, select_all};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::runtime::{Config, applier};
use kube::{Api, Resource, ResourceExt};

use crate::cache::{Cache, Kind};
use crate::claim::{ClaimObject, ClaimView};
use crate::context::{Ctx, claim_term};
use crate::error::{Error, Kind as ErrorKind};
use crate::{claim, commit, filesystem, job, nodepool, operation, pvc, replica, signer};

/// Reconciles of one controller at a time.
const CONCURRENCY: u16 = 8;
/// Somebody wrote between our read and our write: nearly at once again.
const CONFLICT: Duration = Duration::from_millis(100);

/// How often a new leader looks whether its caches are filled.
const SYNC_POLL: Duration = Duration::from_millis(50);

type Triggers<K> = Vec<BoxStream<'static, ObjectRef<K>>>;

/// Opens every watch; runs for ever.
pub async fn watch(ctx: Arc<Ctx>) {
    let (c, client, m) = (&ctx.caches, &ctx.client, &ctx.metrics);
    let all = watcher::Config::default;
    let ours = watcher::Config::default().fields(&format!("spec.signerName={}", crate::names::SIGNER));
    tokio::join!(
        c.dots.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.branches.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.commits.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.jobs.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.operations.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.filesystems.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.replicas.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.pools.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.nodes.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.claims.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.volumes.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.requests.clone().run(Api::all(client.clone()), ours, m.clone()),
    );
}

/// Runs every controller; dropped when the lease is lost. None begins before *every* cache has been listed: one that is
/// still empty would make every pool look gone and every claim missing.
pub async fn control(ctx: Arc<Ctx>) {
    while !ctx.caches.fresh() {
        tokio::time::sleep(SYNC_POLL).await;
    }
    let c = &ctx.caches;
    tokio::join!(
        run("csr", &c.requests, vec![], signer::reconcile, &ctx),
        run("dot", &c.dots, dot_triggers(&ctx), claim::reconcile_dot, &ctx),
        run("branch", &c.branches, branch_triggers(&ctx), claim::reconcile_branch, &ctx),
        run("commit", &c.commits, commit_triggers(&ctx), commit::reconcile, &ctx),
        run("replicationjob", &c.jobs, job_triggers(&ctx), job::reconcile, &ctx),
        run("dotoperation", &c.operations, operation_triggers(&ctx), operation::reconcile, &ctx),
        run("filesystem", &c.filesystems, filesystem_triggers(&ctx), filesystem::reconcile, &ctx),
        run("replica", &c.replicas, replica_triggers(&ctx), replica::reconcile, &ctx),
        run("nodepool", &c.pools, pool_triggers(&ctx), nodepool::reconcile, &ctx),
        run("persistentvolumeclaim", &c.claims, claim_triggers(&ctx), pvc::reconcile, &ctx),
        run("persistentvolume", &c.volumes, volume_triggers(&ctx), pvc::reconcile_volume, &ctx),
    );
}

async fn run<K, F, Fut>(name: &'static str, cache: &Arc<Cache<K>>, mut triggers: Triggers<K>, reconcile: F, ctx: &Arc<Ctx>)
where
    K: Kind + Resource<DynamicType = ()> + Debug,
    F: Fn(Arc<K>, Arc<Ctx>) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, Error>> + Send + 'static,
{
    triggers.push(cache.changes().map(|o| ObjectRef::from_obj(o.as_ref())).boxed());
    let queue = select_all(triggers).map(Ok::<_, std::convert::Infallible>);
    let timed = move |object: Arc<K>, ctx: Arc<Ctx>| {
        async move {
            let what = format!("{name}/{}/{}", object.namespace().unwrap_or_default(), object.name_any());
            let start = Instant::now();
            let result = reconcile(object, ctx.clone()).await;
            let label = result.as_ref().map_or_else(|e| e.kind().as_str(), |_| "ok");
            ctx.metrics.reconciled(name, label, start.elapsed());
            if result.is_ok() {
                ctx.succeeded(&what);
            }
            result
        }
        .boxed()
    };
    let on_error = move |object: Arc<K>, error: &Error, ctx: Arc<Ctx>| {
        let what = format!("{name}/{}/{}", object.namespace().unwrap_or_default(), object.name_any());
        let wait = ctx.backoff(&what);
        if error.kind() == ErrorKind::Conflict {
            tracing::debug!(what, %error, "somebody wrote first; again");
            return Action::requeue(CONFLICT.max(wait.min(Duration::from_secs(5)) / 5));
        }
        tracing::warn!(what, %error, kind = error.kind().as_str(), retry_s = wait.as_secs_f32(), "reconcile failed");
        Action::requeue(wait)
    };
    let config = Config::default().concurrency(CONCURRENCY);
    applier(timed, on_error, ctx.clone(), cache.store(), queue, config).for_each(|_| std::future::ready(())).await;
}

/// Objects that a change of `cache` concerns.
fn on<T: Kind, K: Kind>(
    cache: &Arc<Cache<T>>,
    ctx: &Arc<Ctx>,
    map: impl Fn(&T, &Ctx) -> Vec<ObjectRef<K>> + Send + 'static,
) -> BoxStream<'static, ObjectRef<K>> {
    let ctx = ctx.clone();
    cache.changes().flat_map(move |object| futures::stream::iter(map(&object, &ctx))).boxed()
}

fn refs<K: Kind>(list: &[Arc<K>]) -> Vec<ObjectRef<K>> {
    list.iter().map(|o| ObjectRef::from_obj(o.as_ref())).collect()
}

fn claim_ref<K: ClaimObject + Kind>(kind: dotgraft_api::ClaimKind, namespace: &str, name: &str) -> Vec<ObjectRef<K>> {
    if kind == K::KIND { vec![ObjectRef::new(name).within(namespace)] } else { Vec::new() }
}

fn of_filesystem<K: ClaimObject + Kind>(fs: &Filesystem, _: &Ctx) -> Vec<ObjectRef<K>> {
    let c = &fs.spec.claim_ref;
    claim_ref(c.kind, &c.namespace, &c.name)
}
/// The claim whose deletion a bound PVC holds up.
fn of_volume<K: ClaimObject + Kind>(pv: &PersistentVolume, ctx: &Ctx) -> Vec<ObjectRef<K>> {
    let fs = pvc::decide::filesystem_of(pv).and_then(|id| ctx.caches.filesystems.get(&id));
    fs.map(|f| of_filesystem(&f, ctx)).unwrap_or_default()
}
fn of_replica<K: ClaimObject + Kind>(r: &Replica, ctx: &Ctx) -> Vec<ObjectRef<K>> {
    match (ctx.caches.filesystems.get(&r.spec.fs_id), &r.spec.desired.claim) {
        (Some(fs), _) => of_filesystem(&fs, ctx),
        (None, Some(c)) => claim_ref(c.kind, &c.namespace, &c.name),
        (None, None) => Vec::new(),
    }
}
fn owner_of_job<K: ClaimObject + Kind>(job: &ReplicationJob, _: &Ctx) -> Vec<ObjectRef<K>> {
    let namespace = job.namespace().unwrap_or_default();
    let kind = K::KIND.as_str();
    let owners = job.owner_references().iter().filter(|o| o.controller == Some(true) && o.kind == kind);
    owners.map(|o| ObjectRef::new(&o.name).within(&namespace)).collect()
}
/// Claims whose condition or copies depend on this pool.
fn claims_on_pool<K: ClaimObject + Kind>(pool: &str, all: &[Arc<K>]) -> Vec<ObjectRef<K>> {
    let concerns = |o: &&Arc<K>| {
        let (view, status) = (o.view(None), o.status());
        status.owner.is_none() || status.owner.as_deref() == Some(pool) || view.placement.replicas > 0
    };
    all.iter().filter(concerns).map(|o| ObjectRef::from_obj(o.as_ref())).collect()
}

fn dot_triggers(ctx: &Arc<Ctx>) -> Triggers<Dot> {
    let c = &ctx.caches;
    vec![
        on(&c.filesystems, ctx, of_filesystem),
        on(&c.replicas, ctx, of_replica),
        on(&c.jobs, ctx, owner_of_job),
        on(&c.branches, ctx, |b: &Branch, _| vec![ObjectRef::new(&b.spec.dot).within(&b.namespace().unwrap_or_default())]),
        on(&c.pools, ctx, |p: &NodePool, ctx| claims_on_pool(&p.spec.node, &ctx.caches.dots.all())),
        on(&c.volumes, ctx, of_volume),
    ]
}

fn branch_triggers(ctx: &Arc<Ctx>) -> Triggers<Branch> {
    let c = &ctx.caches;
    let waiting = |namespace: &str, dot: &str, ctx: &Ctx| {
        let mut list = ctx.caches.branches.with(&claim_term("Dot", namespace, dot));
        list.retain(|b| b.spec.fs_id.is_none() || b.metadata.deletion_timestamp.is_some());
        refs(&list)
    };
    vec![
        on(&c.filesystems, ctx, of_filesystem),
        on(&c.replicas, ctx, of_replica),
        on(&c.jobs, ctx, owner_of_job),
        on(&c.pools, ctx, |p: &NodePool, ctx| claims_on_pool(&p.spec.node, &ctx.caches.branches.all())),
        on(&c.volumes, ctx, of_volume),
        // What a Branch waits for: its Dot, another Branch, a Commit, the first commit of its source.
        on(&c.dots, ctx, move |d: &Dot, ctx| waiting(&d.namespace().unwrap_or_default(), &d.name_any(), ctx)),
        on(&c.branches, ctx, move |b: &Branch, ctx| waiting(&b.namespace().unwrap_or_default(), &b.spec.dot, ctx)),
        on(&c.commits, ctx, move |o: &Commit, ctx| {
            let namespace = o.namespace().unwrap_or_default();
            let dot = dot_of(&namespace, o.spec.source.kind, &o.spec.source.name, ctx);
            dot.map(|d| waiting(&namespace, &d, ctx)).unwrap_or_default()
        }),
        on(&c.replicas, ctx, move |r: &Replica, ctx| {
            let Some(claim) = &r.spec.desired.claim else { return Vec::new() };
            let dot = dot_of(&claim.namespace, claim.kind, &claim.name, ctx);
            dot.map(|d| waiting(&claim.namespace, &d, ctx)).unwrap_or_default()
        }),
    ]
}

fn dot_of(namespace: &str, kind: dotgraft_api::ClaimKind, name: &str, ctx: &Ctx) -> Option<String> {
    match kind {
        dotgraft_api::ClaimKind::Dot => Some(name.to_owned()),
        dotgraft_api::ClaimKind::Branch => ctx.caches.branches.get_in(namespace, name).map(|b| b.spec.dot.clone()),
    }
}

/// Commits of a claim that aren't at rest.
fn restless(kind: dotgraft_api::ClaimKind, namespace: &str, name: &str, ctx: &Ctx) -> Vec<ObjectRef<Commit>> {
    let mut list = ctx.caches.commits.with(&claim_term(kind.as_str(), namespace, name));
    list.retain(|c| c.metadata.deletion_timestamp.is_some() || !filesystem::is_recorded(c));
    refs(&list)
}

fn commit_triggers(ctx: &Arc<Ctx>) -> Triggers<Commit> {
    let c = &ctx.caches;
    vec![
        on(&c.replicas, ctx, |r: &Replica, ctx| {
            let claim = r.spec.desired.claim.as_ref();
            claim.map(|c| restless(c.kind, &c.namespace, &c.name, ctx)).unwrap_or_default()
        }),
        on(&c.filesystems, ctx, |f: &Filesystem, ctx| {
            let c = &f.spec.claim_ref;
            restless(c.kind, &c.namespace, &c.name, ctx)
        }),
        on(&c.dots, ctx, |d: &Dot, ctx| restless(Dot::KIND, &d.namespace().unwrap_or_default(), &d.name_any(), ctx)),
        on(&c.branches, ctx, |b: &Branch, ctx| restless(Branch::KIND, &b.namespace().unwrap_or_default(), &b.name_any(), ctx)),
    ]
}

/// Jobs of the same namespace to the same node, which may be waiting for this one.
fn rivals(job: &ReplicationJob, ctx: &Ctx) -> Vec<ObjectRef<ReplicationJob>> {
    let mut list = ctx.caches.jobs.with(&job.namespace().unwrap_or_default());
    list.retain(|j| j.spec.target.node == job.spec.target.node && j.uid() != job.uid());
    refs(&list)
}

fn job_triggers(ctx: &Arc<Ctx>) -> Triggers<ReplicationJob> {
    let c = &ctx.caches;
    let to = |node: &str, ctx: &Ctx| {
        let mut list = ctx.caches.jobs.all();
        list.retain(|j| j.spec.target.node == node);
        refs(&list)
    };
    vec![
        on(&c.jobs, ctx, rivals),
        on(&c.dots, ctx, |d: &Dot, ctx| refs(&job::jobs_meaning(d, ctx))),
        on(&c.branches, ctx, |b: &Branch, ctx| refs(&job::jobs_meaning(b, ctx))),
        on(&c.replicas, ctx, |r: &Replica, ctx| {
            let Some(c) = &r.spec.desired.claim else { return Vec::new() };
            let mut uids: Vec<&str> = r.spec.desired.jobs.iter().map(|j| j.uid.as_str()).collect();
            uids.extend(r.status.iter().flat_map(|s| s.jobs.iter()).map(|j| j.uid.as_str()));
            let mut list = ctx.caches.jobs.with(&c.namespace);
            // Also those in deletion: they wait for their order to be withdrawn.
            list.retain(|j| j.metadata.deletion_timestamp.is_some() || j.uid().is_some_and(|u| uids.contains(&u.as_str())));
            refs(&list)
        }),
        on(&c.filesystems, ctx, |f: &Filesystem, ctx| {
            let c = &f.spec.claim_ref;
            refs(&claim::cached(ctx, c.kind, &c.namespace, &c.name).map(|v| all_jobs(&v, ctx)).unwrap_or_default())
        }),
        on(&c.pools, ctx, move |p: &NodePool, ctx| to(&p.spec.node, ctx)),
    ]
}

fn all_jobs(claim: &ClaimView, ctx: &Ctx) -> Vec<Arc<ReplicationJob>> {
    let mut jobs = ctx.caches.jobs.with(&claim.namespace);
    jobs.retain(|j| job::resolve::selects(j, claim.kind, &claim.name, &claim.labels));
    jobs
}

fn bound_to(claim: Option<ClaimView>) -> Vec<ObjectRef<Filesystem>> {
    claim.and_then(|c| c.fs_id).map(|id| ObjectRef::new(&id)).into_iter().collect()
}

fn filesystem_triggers(ctx: &Arc<Ctx>) -> Triggers<Filesystem> {
    let c = &ctx.caches;
    vec![
        on(&c.replicas, ctx, |r: &Replica, _| vec![ObjectRef::new(&r.spec.fs_id)]),
        on(&c.dots, ctx, |d: &Dot, _| bound_to(Some(d.view(None)))),
        on(&c.branches, ctx, |b: &Branch, _| bound_to(Some(b.view(None)))),
        on(&c.commits, ctx, |o: &Commit, ctx| {
            let s = &o.spec.source;
            let mut all = bound_to(claim::cached(ctx, s.kind, &o.namespace().unwrap_or_default(), &s.name));
            all.extend(commit::recorded_in(o).map(ObjectRef::new));
            all
        }),
        on(&c.jobs, ctx, |j: &ReplicationJob, ctx| job::claims_of(j, ctx).into_iter().flat_map(|c| bound_to(Some(c))).collect()),
        on(&c.operations, ctx, |o: &DotOperation, ctx| {
            let t = &o.spec.target;
            bound_to(claim::cached(ctx, t.kind, &o.namespace().unwrap_or_default(), &t.name))
        }),
        on(&c.pools, ctx, |p: &NodePool, ctx| restless_filesystems(&p.spec.node, ctx)),
        on(&c.nodes, ctx, |n: &Node, ctx| deleting_filesystems(&n.name_any(), ctx)),
        on(&c.nodes, ctx, owned_by_lost),
        on(&c.nodes, ctx, concerned_by_cordon),
    ]
}

/// What a node owns that is said to be out of service, or is gone: it may be needed elsewhere.
fn owned_by_lost(node: &Node, ctx: &Ctx) -> Vec<ObjectRef<Filesystem>> {
    let name = node.name_any();
    if ctx.caches.nodes.get(&name).is_some_and(|n| !crate::pools::is_out_of_service(&n)) {
        return Vec::new();
    }
    let mut list = ctx.caches.filesystems.all();
    list.retain(|f| owner_of(f) == Some(name.as_str()));
    refs(&list)
}

/// What a cordoned node owns; and after the cordon what still has a copy kept close behind for it. Also what is kept close behind *on* it.
fn concerned_by_cordon(node: &Node, ctx: &Ctx) -> Vec<ObjectRef<Filesystem>> {
    let name = node.name_any();
    let mut replicas = ctx.caches.replicas.all();
    replicas.retain(|r| {
        let to = r.spec.desired.precopy_to.as_ref();
        to.is_some_and(|t| t.node == name || r.spec.node == name)
    });
    let mut all: Vec<_> = replicas.iter().map(|r| ObjectRef::new(&r.spec.fs_id)).collect();
    if ctx.caches.nodes.get(&name).is_some_and(|n| n.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true))) {
        let mut list = ctx.caches.filesystems.all();
        list.retain(|f| owner_of(f) == Some(name.as_str()));
        all.extend(refs(&list));
    }
    all
}

fn owner_of(fs: &Filesystem) -> Option<&str> {
    fs.status.as_ref()?.authority.as_ref().map(|a| a.owner.node.as_str())
}

/// Wanted on this node, and owned elsewhere.
fn is_to_move_to(fs: &Filesystem, node: &str, ctx: &Ctx) -> bool {
    let c = &fs.spec.claim_ref;
    let claim = claim::cached(ctx, c.kind, &c.namespace, &c.name);
    filesystem::moving::wanted_node(fs, claim.as_ref()) == Some(node) && owner_of(fs) != Some(node)
}

/// Those that may be waiting for a pool: without owner, in deletion, on the way to it, named in its actions, or with a job to it.
fn restless_filesystems(node: &str, ctx: &Ctx) -> Vec<ObjectRef<Filesystem>> {
    let status = |f: &Filesystem| f.status.clone().unwrap_or_default();
    let mut list = ctx.caches.filesystems.all();
    list.retain(|f| {
        let s = status(f);
        s.authority.is_none() || s.phase == FilesystemPhase::Deleting || is_to_move_to(f, node, ctx)
    });
    let mut all = refs(&list);
    if let Some(pool) = ctx.caches.pools.get(node) {
        all.extend(pool.spec.orphan_actions.iter().map(|a| ObjectRef::new(&a.fs_id)));
    }
    let mut jobs = ctx.caches.jobs.all();
    jobs.retain(|j| j.spec.target.node == node);
    all.extend(jobs.iter().flat_map(|j| job::claims_of(j, ctx)).flat_map(|c| bound_to(Some(c))));
    all
}

/// A Node that went may have made a copy of a Filesystem in deletion a tombstone.
fn deleting_filesystems(node: &str, ctx: &Ctx) -> Vec<ObjectRef<Filesystem>> {
    if ctx.caches.nodes.get(node).is_some() {
        return Vec::new();
    }
    let mut list = ctx.caches.filesystems.all();
    list.retain(|f| f.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Deleting));
    refs(&list)
}

/// A reset waits for the Commit that keeps what was there.
fn operation_triggers(ctx: &Arc<Ctx>) -> Triggers<DotOperation> {
    vec![on(&ctx.caches.commits, ctx, |c: &Commit, _| {
        let name = c.annotations().get(crate::names::OPERATION_ANNOTATION);
        name.map(|n| ObjectRef::new(n).within(&c.namespace().unwrap_or_default())).into_iter().collect()
    })]
}

fn replica_triggers(ctx: &Arc<Ctx>) -> Triggers<Replica> {
    let c = &ctx.caches;
    let given_up = |node: &str, ctx: &Ctx| {
        let mut list = ctx.caches.replicas.all();
        list.retain(|r| r.spec.node == node && r.metadata.deletion_timestamp.is_some());
        refs(&list)
    };
    vec![
        on(&c.pools, ctx, move |p: &NodePool, ctx| given_up(&p.spec.node, ctx)),
        on(
            &c.nodes,
            ctx,
            move |n: &Node, ctx| {
                if ctx.caches.nodes.get(&n.name_any()).is_some() { Vec::new() } else { given_up(&n.name_any(), ctx) }
            },
        ),
    ]
}

/// PVCs that may be waiting for what they name, or for it to be free.
fn claim_triggers(ctx: &Arc<Ctx>) -> Triggers<PersistentVolumeClaim> {
    let c = &ctx.caches;
    let naming = |kind: &str, namespace: Option<String>, name: &str, ctx: &Ctx| {
        let mut list = ctx.caches.claims.with(&claim_term(kind, &namespace.unwrap_or_default(), name));
        list.retain(|p| pvc::decide::source(p).is_some());
        refs(&list)
    };
    vec![
        on(&c.dots, ctx, move |d: &Dot, ctx| naming("Dot", d.namespace(), &d.name_any(), ctx)),
        on(&c.branches, ctx, move |b: &Branch, ctx| naming("Branch", b.namespace(), &b.name_any(), ctx)),
        on(&c.commits, ctx, move |o: &Commit, ctx| naming("Commit", o.namespace(), &o.name_any(), ctx)),
        on(&c.volumes, ctx, move |v: &PersistentVolume, ctx| {
            let fs = pvc::decide::filesystem_of(v).and_then(|id| ctx.caches.filesystems.get(&id));
            fs.map(|f| f.spec.claim_ref.claim()).map(|c| naming(c.kind.as_str(), Some(c.namespace), &c.name, ctx)).unwrap_or_default()
        }),
    ]
}

/// The PV of a PVC, which may be gone.
fn volume_triggers(ctx: &Arc<Ctx>) -> Triggers<PersistentVolume> {
    vec![on(&ctx.caches.claims, ctx, |p: &PersistentVolumeClaim, ctx| {
        let term = claim_term("PersistentVolumeClaim", &p.namespace().unwrap_or_default(), &p.name_any());
        refs(&ctx.caches.volumes.with(&term))
    })]
}

/// Pools with decisions of a person that may be waiting for one of these objects.
fn pool_triggers(ctx: &Arc<Ctx>) -> Triggers<NodePool> {
    let c = &ctx.caches;
    let named = |fs_id: &str, ctx: &Ctx| {
        let mut list = ctx.caches.pools.all();
        list.retain(|p| p.spec.orphan_actions.iter().any(|a| a.fs_id == fs_id));
        refs(&list)
    };
    vec![
        on(&c.replicas, ctx, move |r: &Replica, ctx| named(&r.spec.fs_id, ctx)),
        on(&c.filesystems, ctx, move |f: &Filesystem, ctx| named(&f.name_any(), ctx)),
    ]
}

/// Longest time between two counts of what hangs in deletion.
const COUNT_STUCK_EVERY: Duration = Duration::from_secs(60);

/// Counts objects that have been in deletion for longer than `after`, once a minute, or as often as that time passes. Runs for ever.
pub async fn count_stuck(ctx: Arc<Ctx>, after: Duration) {
    loop {
        let since = k8s_openapi::jiff::Timestamp::now().as_second() - i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
        let (c, m) = (&ctx.caches, &ctx.metrics);
        m.stuck("dot", stuck(&c.dots, since));
        m.stuck("branch", stuck(&c.branches, since));
        m.stuck("commit", stuck(&c.commits, since));
        m.stuck("replicationjob", stuck(&c.jobs, since));
        m.stuck("filesystem", stuck(&c.filesystems, since));
        m.stuck("replica", stuck(&c.replicas, since));
        tokio::time::sleep(after.min(COUNT_STUCK_EVERY)).await;
    }
}

/// Objects in deletion since before that Unix time.
fn stuck<K: Kind>(cache: &Cache<K>, since: i64) -> usize {
    let hangs = |o: &&Arc<K>| o.meta().deletion_timestamp.as_ref().is_some_and(|t| t.0.as_second() < since);
    cache.all().iter().filter(hangs).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scenario::play;
    use crate::testing::{dot, filesystem, with_pools};

    #[tokio::test]
    async fn a_leader_whose_caches_are_not_all_filled_does_nothing() {
        let fill = |ctx: &Ctx| {
            with_pools(ctx, &["n1"]);
            ctx.caches.dots.fill([dot()]);
            ctx.caches.filesystems.fill([filesystem(Some(FilesystemPhase::Deleting), None)]);
        };
        let controlled = |ctx| async move { tokio::time::timeout(Duration::from_millis(300), control(ctx)).await };
        assert!(play(fill, vec![], controlled).await.is_err(), "still waiting");
    }
}
