//! Runs the controllers while this process leads: how failures back off, what is counted. All state that matters is in the API server; a leader that steps down drops the rest.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_api::{ConditionType, Word};
use futures::stream::select_all;
use futures::{FutureExt, StreamExt};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::runtime::{Config, applier};
use kube::{Api, Resource, ResourceExt};

use crate::cache::{Cache, Kind};
use crate::context::Ctx;
use crate::error::{Error, Kind as ErrorKind};
use crate::triggers::Triggers;
use crate::{claim, commit, filesystem, job, nodepool, operation, pvc, replica, signer, volumes};

/// Reconciles of one controller at a time.
const CONCURRENCY: u16 = 8;
/// Somebody wrote between our read and our write: nearly at once again.
const CONFLICT: Duration = Duration::from_millis(100);

/// How often a new leader looks whether its caches are filled.
const SYNC_POLL: Duration = Duration::from_millis(50);

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
        c.namespaces.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.claims.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.volumes.clone().run(Api::all(client.clone()), all(), m.clone()),
        c.contents.clone().run(Api::all(client.clone()), all(), m.clone()),
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
        run("dot", &c.dots, claim::triggers::of_dots(&ctx), claim::reconcile_dot, &ctx),
        run("branch", &c.branches, claim::triggers::of_branches(&ctx), claim::reconcile_branch, &ctx),
        run("commit", &c.commits, commit::triggers::of_commits(&ctx), commit::reconcile, &ctx),
        run("replicationjob", &c.jobs, job::triggers::of_jobs(&ctx), job::reconcile, &ctx),
        run("dotoperation", &c.operations, operation::triggers::of_operations(&ctx), operation::reconcile, &ctx),
        run("filesystem", &c.filesystems, filesystem::triggers::of_filesystems(&ctx), filesystem::reconcile, &ctx),
        run("replica", &c.replicas, replica::triggers::of_replicas(&ctx), replica::reconcile, &ctx),
        run("nodepool", &c.pools, nodepool::triggers::of_pools(&ctx), nodepool::reconcile, &ctx),
        run("persistentvolumeclaim", &c.claims, pvc::triggers::of_claims(&ctx), pvc::reconcile, &ctx),
        run("persistentvolume", &c.volumes, pvc::triggers::of_volumes(&ctx), pvc::reconcile_volume, &ctx),
        nodepool::heartbeat::watch(ctx.clone()),
        Box::pin(volumes::watch(ctx.clone())),
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

/// Longest time between two counts of what hangs in deletion or is at risk.
const COUNT_STUCK_EVERY: Duration = Duration::from_secs(60);

/// Counts objects that have been in deletion for longer than `after`, and Commits that have too few copies, once a minute, or as often as that time passes. Runs for ever.
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
        m.at_risk(commit::say(&c.commits, Word::OneCopy), commit::say(&c.commits, ConditionType::NoCopyLeft));
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
    use dotgraft_api::FilesystemPhase;

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
