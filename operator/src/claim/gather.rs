//! Collects what one Dot or Branch needs: from the caches to plan with, from the API server to decide with.

use std::sync::Arc;

use dotgraft_api::{Branch, ClaimKind, ConditionType, CopyRole, DesiredState, Filesystem, FilesystemPhase, Replica, is_true};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::decide::{Child, View};
use super::{ClaimObject, ClaimView, limit, origin, own};
use crate::caches::claim_term;
use crate::commit;
use crate::context::Ctx;
use crate::error::Error;
use crate::live;
use crate::names;
use crate::pools::{self, PoolView};
use crate::pvc;

/// With what the watches saw. The origin of a Branch and namesakes are looked up live only.
pub fn cached<K: ClaimObject>(object: &K, branch: Option<&Branch>, ctx: &Ctx) -> View {
    let claim = view_of(object, branch, ctx);
    let namespace = own::namespace_uid(&claim.namespace, ctx);
    let named = claim.fs_id.as_ref().and_then(|id| ctx.caches.filesystems.get(id)).map(|f| Filesystem::clone(&f));
    let mut view = View { namespace, ..View::of(claim) };
    view.look_at(named);
    let Some(id) = view.fs.as_ref().map(ResourceExt::name_any) else { return view };
    let (replicas, pools) = (ctx.caches.replicas.with(&id), pools::all(&ctx.caches));
    View {
        children: children(&view, &ctx.caches.branches.with(&dot_term(&view.claim)), ctx),
        mounts: mounts(&replicas, &pools),
        unconfirmed: unconfirmed(&replicas, &pools, seconds_since_deletion(object)),
        snapshots: view.fs.as_ref().map_or(0, |fs| commit::snapshots(fs, ctx)),
        bound: pvc::bound_claims(&id, ctx),
        kept: pvc::is_kept(&id, ctx),
        ..view
    }
}

/// With what the API server says now. `None`: the object is gone.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live<K: ClaimObject>(name: &str, namespace: &str, ctx: &Ctx) -> Result<Option<(K, View)>, Error> {
    let api: Api<K> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(object) = api.get_opt(name).await? else { return Ok(None) };
    let branches: Api<Branch> = Api::namespaced(ctx.client.clone(), namespace);
    let branch = if K::KIND == ClaimKind::Branch { branches.get_opt(name).await? } else { None };
    let filesystems: Api<Filesystem> = Api::all(ctx.client.clone());
    let mut view = View::of(view_of(&object, branch.as_ref(), ctx));
    let named = match &view.claim.fs_id {
        Some(id) => filesystems.get_opt(id).await?,
        None => None,
    };
    if !named.as_ref().is_some_and(|fs| own::is_bound(&view.claim, fs)) {
        view.namespace = own::live_namespace_uid(namespace, ctx).await?;
    }
    view.look_at(named);
    if view.claim.fs_id.is_none() {
        (view.namesakes, view.strangers) = namesakes(&view, &filesystems).await?;
    }
    if view.claim.deleting {
        let list: Vec<_> = branches.list(&ListParams::default()).await?.items.into_iter().map(Arc::new).collect();
        view.children = children(&view, &list, ctx);
        if let Some(fs) = &view.fs {
            let id = &fs.name_any();
            let replicas = live::replicas(id, ctx).await?;
            let pools = pools::confirmed(ctx, &replicas).await?;
            view.mounts = mounts(&replicas, &pools);
            view.unconfirmed = unconfirmed(&replicas, &pools, seconds_since_deletion(&object));
            view.snapshots = commit::live_snapshots(fs, ctx).await?;
            // A PVC that was bound this very moment has no pod yet; what a pod has mounted is looked at below the claim, by the agents.
            view.bound = pvc::bound_claims(id, ctx);
            view.kept = pvc::live_is_kept(id, view.claim.csi_name.as_deref(), ctx).await?;
        }
    } else if view.fs.is_none() && !view.foreign {
        let uid = view.namespace.as_deref();
        view.origin = match (&branch, &view.claim.origin) {
            (Some(branch), _) => Some(origin::resolve(branch, uid, ctx).await?),
            (None, Some(origin)) => Some(origin::of_dot(origin, namespace, uid, ctx).await?),
            (None, None) => None,
        };
        let waits = matches!(view.origin, Some(Err(_))) || !view.namesakes.is_empty() || view.strangers;
        if view.claim.fs_id.is_none() && !waits {
            view.over = limit::check(&view.claim, ctx).err();
        }
    }
    Ok(Some((object, view)))
}

fn view_of<K: ClaimObject>(object: &K, branch: Option<&Branch>, ctx: &Ctx) -> ClaimView {
    let namespace = object.namespace().unwrap_or_default();
    let dot = branch.and_then(|b| ctx.caches.dots.get_in(&namespace, &b.spec.dot));
    object.view(dot.as_deref())
}

/// Filesystems that carry the claim's name: ids of those of its namespace, and whether there are others, which are none of its business.
async fn namesakes(view: &View, filesystems: &Api<Filesystem>) -> Result<(Vec<String>, bool), Error> {
    let claim = &view.claim;
    let hash = names::claim_hash(claim.kind.as_str(), &claim.namespace, &claim.name);
    let list = filesystems.list(&ListParams::default().labels(&format!("{}={hash}", names::CLAIM_LABEL))).await?;
    // One without a head has only snapshots, which nobody reaches by this name.
    let alive =
        |f: &Filesystem| f.status.as_ref().is_none_or(|s| !matches!(s.phase, FilesystemPhase::Deleting | FilesystemPhase::Headless));
    let of_here = |f: &Filesystem| own::is_of_namespace(f, &claim.namespace, view.namespace.as_deref());
    let (ours, others): (Vec<_>, Vec<_>) = list.items.into_iter().filter(alive).partition(of_here);
    Ok((ours.iter().map(ResourceExt::name_any).collect(), !others.is_empty()))
}

fn dot_term(claim: &ClaimView) -> String {
    claim_term("Dot", &claim.namespace, claim.dot.as_deref().unwrap_or(&claim.name))
}

/// Branches that start from this claim: by name, or by the origin of their Filesystem.
fn children(view: &View, branches: &[Arc<Branch>], ctx: &Ctx) -> Vec<Child> {
    let claim = &view.claim;
    let id = view.fs.as_ref().map(ResourceExt::name_any);
    let starts_here = |b: &Branch| {
        if b.namespace().as_deref() != Some(&claim.namespace) {
            return false;
        }
        if claim.kind == ClaimKind::Dot {
            return b.spec.dot == claim.name;
        }
        let fs = own::filesystem(&b.view(None), ctx);
        let origin = fs.as_ref().and_then(|f| f.spec.origin.as_ref()).map(|o| o.fs_id.as_str());
        let by_name = b.spec.from.as_ref().and_then(|f| f.branch.as_ref()) == Some(&claim.name);
        b.name_any() != claim.name && Some(&b.spec.dot) == claim.dot.as_ref() && (by_name || (origin.is_some() && origin == id.as_deref()))
    };
    let mut list: Vec<Child> = branches
        .iter()
        .filter(|b| starts_here(b))
        .map(|b| Child { name: b.name_any(), deleting: b.metadata.deletion_timestamp.is_some() })
        .collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

/// A copy whose agent has not even seen the intent for so long sits on a node that can't be reached.
const SILENCE: i64 = 60;

fn reachable(pools: &[PoolView]) -> impl Fn(&&Arc<Replica>) -> bool {
    |r| !pools::is_gone(pools, &dotgraft_api::Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() })
}

/// Mounts on nodes that exist; what a node that is gone had mounted holds nothing up. Those made through the agent, and
/// those of other mount namespaces that it found when it was to delete.
fn mounts(replicas: &[Arc<Replica>], pools: &[PoolView]) -> Vec<String> {
    let of = |r: &Arc<Replica>| {
        let status = r.status.clone().unwrap_or_default();
        let found = is_true(&status.conditions, ConditionType::Mounted).map(|c| c.message.clone());
        let all = if found.is_some() { found.into_iter().collect() } else { status.mounts };
        all.into_iter().map(|m| format!("{m} on node {}", r.spec.node)).collect::<Vec<_>>()
    };
    replicas.iter().filter(reachable(pools)).flat_map(of).take(16).collect()
}

/// Nodes that may still have it mounted: the agent works on the intent, or has had no time to see it yet.
fn unconfirmed(replicas: &[Arc<Replica>], pools: &[PoolView], seconds_since: i64) -> Vec<String> {
    let open = |r: &&Arc<Replica>| {
        let status = r.status.clone().unwrap_or_default();
        let seen = r.spec.desired.state == DesiredState::Absent && status.observed_generation == r.metadata.generation;
        if seen { status.role != CopyRole::Absent } else { seconds_since < SILENCE }
    };
    replicas.iter().filter(reachable(pools)).filter(open).map(|r| r.spec.node.clone()).collect()
}

fn seconds_since_deletion<K: ClaimObject>(object: &K) -> i64 {
    let at = object.meta().deletion_timestamp.as_ref().map(|t| t.0.as_second());
    at.map_or(0, |at| jiff::Timestamp::now().as_second().saturating_sub(at))
}

/// Owner's Replica and all others, for the status.
pub fn replicas_of(view: &View, ctx: &Ctx) -> Vec<Arc<Replica>> {
    view.fs.as_ref().map(|fs| ctx.caches.replicas.with(&fs.name_any())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(generation: i64, observed: i64, state: DesiredState, role: CopyRole) -> Vec<Arc<Replica>> {
        let mut r = Replica::default();
        r.metadata.generation = Some(generation);
        r.spec.node = "n1".into();
        r.spec.pool = pools::tests::pool_id("n1");
        r.spec.desired.state = state;
        r.status = Some(dotgraft_api::ReplicaStatus { observed_generation: Some(observed), role, ..Default::default() });
        vec![Arc::new(r)]
    }

    #[test]
    fn a_claim_waits_for_agents_that_answer_and_a_minute_for_those_that_do_not() {
        let waits = |r: &[Arc<Replica>], s| !unconfirmed(r, &[pools::tests::pool("n1", 1)], s).is_empty();
        assert!(waits(&copy(2, 2, DesiredState::Absent, CopyRole::Deleting), 3600), "it is at work");
        assert!(!waits(&copy(2, 2, DesiredState::Absent, CopyRole::Absent), 0), "it has confirmed");
        assert!(waits(&copy(2, 1, DesiredState::Absent, CopyRole::Owner), 5), "it may see it yet");
        assert!(waits(&copy(2, 2, DesiredState::Present, CopyRole::Owner), 5), "it is not told yet");
        assert!(!waits(&copy(2, 1, DesiredState::Absent, CopyRole::Owner), SILENCE), "its node can't be reached");
    }
}
