//! Collects all that concerns one Filesystem: from the caches to plan with, from the API server to decide with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dotgraft_api::{Commit, Filesystem, FilesystemPhase, OrphanActionKind, Place, Replica};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::began;
use super::plan::View;
use super::wishes::ResetWish;
use crate::caches::claim_term;
use crate::claim::{ClaimView, limit, own};
use crate::commit;
use crate::content;
use crate::context::Ctx;
use crate::error::Error;
use crate::job::resolve;
use crate::live;
use crate::pools;

/// With what the watches saw.
pub fn cached(fs: &Filesystem, ctx: &Ctx) -> View {
    let claim = own::holder(fs, ctx);
    let replicas = ctx.caches.replicas.with(&fs.name_any());
    let origin = fs.spec.origin.as_ref().and_then(|o| ctx.caches.filesystems.get(&o.fs_id));
    assemble(fs.clone(), claim, replicas, origin.as_deref(), ctx)
}

/// With what the API server says now. `None`: the Filesystem is gone.
///
/// # Errors
///
/// The API server refuses one of the reads or doesn't answer: nothing is known then, and nothing may be decided.
pub async fn live(name: &str, ctx: &Ctx) -> Result<Option<View>, Error> {
    let filesystems: Api<Filesystem> = Api::all(ctx.client.clone());
    let Some(fs) = filesystems.get_opt(name).await? else { return Ok(None) };
    let claim = own::live_holder(&fs, ctx).await?;
    let replicas = live::replicas(name, ctx).await?;
    let origin = match &fs.spec.origin {
        Some(o) => filesystems.get_opt(&o.fs_id).await?,
        None => None,
    };
    let pools = pools::confirmed(ctx, &replicas).await?;
    let headless = fs.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Headless);
    let snapshots = if headless { commit::live_snapshots(&fs, ctx).await? } else { 0 };
    Ok(Some(View { pools, snapshots, ..assemble(fs, claim, replicas, origin.as_ref(), ctx) }))
}

/// The Commit objects of a view, as the API server has them now: a copy goes only by those.
///
/// # Errors
///
/// The API server refuses the list or doesn't answer: then no copy may go.
pub async fn live_commits(view: &View, ctx: &Ctx) -> Result<Vec<Arc<Commit>>, Error> {
    let c = &view.fs.spec.claim_ref;
    let id = view.fs.name_any();
    let made_in = |o: &Commit| o.status.as_ref().and_then(|s| s.fs_id.as_ref()).map(|f| *f == id);
    let of_claim = |o: &Commit, namespace: &str| {
        view.claim.is_some() && namespace == c.namespace && o.spec.source.kind == c.kind && o.spec.source.name == c.name
    };
    let mut all = Vec::new();
    for namespace in own::live_namespaces(&view.fs, ctx).await? {
        let list = Api::<Commit>::namespaced(ctx.client.clone(), namespace).list(&ListParams::default()).await?;
        all.extend(list.items.into_iter().filter(|o| made_in(o).unwrap_or_else(|| of_claim(o, namespace))).map(Arc::new));
    }
    Ok(content::as_kept(all, ctx))
}

fn assemble(fs: Filesystem, claim: Option<ClaimView>, replicas: Vec<Arc<Replica>>, origin: Option<&Filesystem>, ctx: &Ctx) -> View {
    let id = fs.name_any();
    let made = commit::made_in(&fs, ctx);
    let (commits, jobs) = match &claim {
        Some(v) => {
            let mut commits = ctx.caches.commits.with(&claim_term(v.kind.as_str(), &v.namespace, &v.name));
            let more: Vec<_> = made.into_iter().filter(|m| !commits.iter().any(|c| c.uid() == m.uid())).collect();
            commits.extend(more);
            (commits, jobs_of(v, ctx))
        }
        // Snapshots are deleted one by one also after their claim is gone.
        None => (made, Vec::new()),
    };
    let commits = content::as_kept(commits, ctx);
    let origin_owner: Option<Place> = origin.and_then(|o| o.status.as_ref()).and_then(|s| s.authority.as_ref()).map(|a| a.owner.clone());
    let origin_most = origin.and_then(|o| began::most(&ctx.caches.replicas.with(&o.name_any())));
    let dropped = dropped(&id, ctx);
    let resets = claim.as_ref().map(|c| resets_of(c, &fs, ctx)).unwrap_or_default();
    let snapshots = commit::snapshots(&fs, ctx);
    let (pools, now, spare_after) = (pools::all(&ctx.caches), Timestamp::now().as_second(), ctx.spare_after);
    let limited = claim.as_ref().is_some_and(|c| limit::check(c, ctx).is_err());
    View { fs, claim, replicas, pools, origin_owner, origin_most, commits, resets, jobs, dropped, snapshots, now, limited, spare_after }
}

/// Live jobs that select a claim.
pub fn jobs_of(claim: &ClaimView, ctx: &Ctx) -> Vec<Arc<dotgraft_api::ReplicationJob>> {
    let mut jobs = ctx.caches.jobs.with(&claim.namespace);
    jobs.retain(|j| resolve::is_live(j) && resolve::selects(j, claim.kind, &claim.name, &claim.labels));
    jobs
}

fn resets_of(claim: &ClaimView, fs: &Filesystem, ctx: &Ctx) -> BTreeMap<String, ResetWish> {
    let now = Timestamp::now();
    let mut list = ctx.caches.operations.with(&claim_term(claim.kind.as_str(), &claim.namespace, &claim.name));
    list.retain(|o| o.metadata.deletion_timestamp.is_none() && o.spec.reset.is_some());
    let plans = list.iter().filter_map(|o| o.status.as_ref()).filter(|s| s.phase.is_none()).filter_map(|s| s.reset.clone());
    let ours = plans.filter(|p| p.to.fs_id == fs.name_any() || fs.spec.origin.as_ref() == Some(&p.to));
    ours.map(|p| (p.kept, ResetWish { to: p.to, hold: p.hold_until.is_some_and(|until| now < until.0) })).collect()
}

fn dropped(id: &str, ctx: &Ctx) -> BTreeSet<String> {
    let wanted = |p: &dotgraft_api::NodePool| p.spec.orphan_actions.iter().any(|a| a.fs_id == id && a.action == OrphanActionKind::Drop);
    let pools = ctx.caches.pools.all();
    pools.iter().filter(|p| wanted(p)).filter_map(|p| p.status.as_ref()?.pool.clone()).collect()
}
