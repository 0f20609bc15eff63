//! Controller of ReplicationJob: gather → judge → status, at most every five seconds while only numbers move.
//! The agents get their orders with the Filesystem's plan; both ask [`resolve`] what a job means.

mod aggregate;
mod item;
pub mod resolve;
pub mod triggers;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{ClaimKind, ConditionType, DesiredState, ReplicationJob, Time};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use self::item::Item;
use crate::claim::{self, ClaimObject, ClaimView};
use crate::conditions::{self, Block};
use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem::jobs_of;
use crate::lag;
use crate::names::JOB_FINALIZER;
use crate::pools::{self, PoolView};
use crate::write;

/// Least time between two writes that differ in numbers only (design §2).
const THROTTLE: Duration = Duration::from_secs(5);
/// While something isn't there yet its lag ages.
const AGEING: Duration = Duration::from_secs(60);
const RESYNC: Duration = Duration::from_secs(600);

/// Names of the claims that a job means, at most 100, whether they exist or not.
fn sources(job: &ReplicationJob, ctx: &Ctx) -> Vec<String> {
    if job.spec.source.selector.is_none() {
        return job.spec.source.names.clone();
    }
    let namespace = job.namespace();
    let dots = ctx.caches.dots.all();
    let matches = |d: &dotgraft_api::Dot| d.namespace() == namespace && resolve::selects(job, ClaimKind::Dot, &d.name_any(), d.labels());
    let mut names: Vec<String> = dots.iter().filter(|d| matches(d)).map(|d| d.name_any()).collect();
    names.sort();
    names.truncate(100);
    names
}

fn gather(job: &ReplicationJob, ctx: &Ctx) -> Vec<Item> {
    let namespace = job.namespace().unwrap_or_default();
    let kind = resolve::source_kind(job);
    let pools = pools::all(&ctx.caches);
    sources(job, ctx).into_iter().map(|name| gather_item(job, kind, &namespace, name, &pools, ctx)).collect()
}

fn gather_item(job: &ReplicationJob, kind: ClaimKind, namespace: &str, name: String, pools: &[PoolView], ctx: &Ctx) -> Item {
    let none = |name: String, b: Block| Item { name, target: Err(b), job: None, behind: None, away: None };
    let Some((claim, fs)) = claim::bound(ctx, kind, namespace, &name) else {
        let message = format!("there is no {} `{name}` in this namespace", kind.as_str());
        return none(name, Block::new(ConditionType::SourceNotFound, message));
    };
    let Some(fs) = fs else { return none(name, Block::new(ConditionType::SourceNotReady, "the source has no Filesystem yet")) };
    let owner = fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| &a.owner);
    let replicas = ctx.caches.replicas.with(&fs.name_any());
    let has_copy =
        |p: &dotgraft_api::Place| replicas.iter().any(|r| r.spec.pool == p.pool && r.spec.desired.state == DesiredState::Present);
    let target = resolve::resolve(job, owner, pools, &jobs_of(&claim, ctx), has_copy);
    let target = target.and_then(|place| if has_copy(&place) { Ok(place) } else { claim::limit::check(&claim, ctx).map(|()| place) });
    let status_in = |pool: &str| replicas.iter().find(|r| r.spec.pool == pool).and_then(|r| r.status.as_ref());
    let status = owner.and_then(|o| status_in(&o.pool));
    let uid = job.uid().unwrap_or_default();
    let reported = status.and_then(|s| s.jobs.iter().find(|j| j.uid == uid)).cloned();
    let behind = target.as_ref().ok().and_then(|place| lag::of(status, status_in(&place.pool)));
    let pool = owner.and_then(|o| pools.iter().find(|p| p.node == o.node && !p.ready));
    let away = pool.map(|p| format!("the pool of the owner's node `{}` is not ready: {}", p.node, p.problem));
    Item { name, target, job: reported, behind, away }
}

/// Brings the job's status up to date; on deletion lets it go when no agent has an order of it any more.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile(job: Arc<ReplicationJob>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    let api: Api<ReplicationJob> = write::namespaced(&ctx.client, job.as_ref());
    let held = write::has_finalizer(job.as_ref(), JOB_FINALIZER);
    if job.metadata.deletion_timestamp.is_some() {
        let uid = job.uid().unwrap_or_default();
        let ordered = ctx.caches.replicas.all().iter().any(|r| r.spec.desired.jobs.iter().any(|j| j.uid == uid));
        if held && !ordered {
            write::let_go(&api, job.as_ref(), JOB_FINALIZER).await?;
        }
        return Ok(Action::requeue(THROTTLE));
    }
    if !held {
        let patch = json!({ "metadata": { "finalizers": write::finalizers(job.as_ref(), JOB_FINALIZER, true) } });
        write::guarded(&api, job.as_ref(), patch).await?;
        return Ok(Action::requeue(RESYNC));
    }
    show(&api, &job, &ctx).await
}

async fn show(api: &Api<ReplicationJob>, job: &ReplicationJob, ctx: &Ctx) -> Result<Action, Error> {
    let old = job.status.clone().unwrap_or_default();
    let now = Time(Timestamp::now());
    let new = aggregate::status(job, gather(job, ctx), &now);
    let next = Action::requeue(match aggregate::behind_for(&new, &now) {
        None => RESYNC,
        Some(young) if young < AGEING => THROTTLE,
        Some(_) => AGEING,
    });
    if new == old {
        return Ok(next);
    }
    let key = job.uid().unwrap_or_default();
    if !aggregate::differs_much(&old, &new)
        && let Some(left) = ctx.too_soon(&key, THROTTLE)
    {
        return Ok(Action::requeue(left));
    }
    let notes = conditions::transitions(&old.conditions, &new.conditions);
    write::status(api, job, &new).await?;
    ctx.wrote(&key);
    ctx.notes(&job.object_ref(&()), "Replicate", notes).await;
    Ok(next)
}

/// Claims that a job means, for those who must look again when it changes.
pub fn claims_of(job: &ReplicationJob, ctx: &Ctx) -> Vec<ClaimView> {
    let namespace = job.namespace().unwrap_or_default();
    let kind = resolve::source_kind(job);
    sources(job, ctx).iter().filter_map(|n| claim::cached(ctx, kind, &namespace, n)).collect()
}

/// Jobs that mean a claim.
pub fn jobs_meaning<K: ClaimObject>(object: &K, ctx: &Ctx) -> Vec<Arc<ReplicationJob>> {
    let mut jobs = ctx.caches.jobs.with(&object.namespace().unwrap_or_default());
    jobs.retain(|j| resolve::selects(j, K::KIND, &object.name_any(), object.labels()));
    jobs
}
