//! Collects what one Dot or Branch needs: from the caches to plan with, from the API server to decide with.

use std::sync::Arc;

use dotgraft_api::{Branch, ClaimKind, Filesystem, FilesystemPhase, Replica};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::decide::{Child, View};
use super::{ClaimObject, ClaimView, origin};
use crate::context::{Ctx, claim_term};
use crate::error::Error;
use crate::names;
use crate::pools::{self, PoolView};

/// With what the watches saw. The origin of a Branch and namesakes are looked up live only.
pub fn cached<K: ClaimObject>(object: &K, branch: Option<&Branch>, ctx: &Ctx) -> View {
    let claim = view_of(object, branch, ctx);
    let fs = claim.fs_id.as_ref().and_then(|id| ctx.caches.filesystems.get(id)).map(|f| Filesystem::clone(&f));
    let branches = ctx.caches.branches.with(&dot_term(&claim));
    let replicas = claim.fs_id.as_ref().map(|id| ctx.caches.replicas.with(id)).unwrap_or_default();
    View {
        children: children(&claim, &branches, ctx),
        mounts: mounts(&replicas, &pools::all(&ctx.caches)),
        origin: None,
        namesakes: Vec::new(),
        fs,
        claim,
    }
}

/// With what the API server says now. `None`: the object is gone.
pub async fn live<K: ClaimObject>(name: &str, namespace: &str, ctx: &Ctx) -> Result<Option<(K, View)>, Error> {
    let api: Api<K> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(object) = api.get_opt(name).await? else { return Ok(None) };
    let branches: Api<Branch> = Api::namespaced(ctx.client.clone(), namespace);
    let branch = if K::KIND == ClaimKind::Branch { branches.get_opt(name).await? } else { None };
    let claim = view_of(&object, branch.as_ref(), ctx);
    let filesystems: Api<Filesystem> = Api::all(ctx.client.clone());
    let mut view = View { fs: None, namesakes: Vec::new(), origin: None, children: Vec::new(), mounts: Vec::new(), claim };
    match &view.claim.fs_id {
        Some(id) => view.fs = filesystems.get_opt(id).await?,
        None => view.namesakes = namesakes(&view.claim, &filesystems).await?,
    }
    if view.claim.deleting {
        let list: Vec<_> = branches.list(&ListParams::default()).await?.items.into_iter().map(Arc::new).collect();
        view.children = children(&view.claim, &list, ctx);
        if let Some(id) = &view.claim.fs_id {
            let replicas = crate::filesystem::live_replicas(id, ctx).await?;
            view.mounts = mounts(&replicas, &pools::confirmed(ctx, &replicas).await?);
        }
    } else if view.fs.is_none()
        && let Some(branch) = &branch
    {
        view.origin = Some(origin::resolve(branch, ctx).await?);
    }
    Ok(Some((object, view)))
}

fn view_of<K: ClaimObject>(object: &K, branch: Option<&Branch>, ctx: &Ctx) -> ClaimView {
    let namespace = object.namespace().unwrap_or_default();
    let dot = branch.and_then(|b| ctx.caches.dots.get_in(&namespace, &b.spec.dot));
    object.view(dot.as_deref())
}

async fn namesakes(claim: &ClaimView, filesystems: &Api<Filesystem>) -> Result<Vec<String>, Error> {
    let hash = names::claim_hash(claim.kind.as_str(), &claim.namespace, &claim.name);
    let list = filesystems.list(&ListParams::default().labels(&format!("{}={hash}", names::CLAIM_LABEL))).await?;
    let alive = |f: &Filesystem| f.status.as_ref().is_none_or(|s| s.phase != FilesystemPhase::Deleting);
    Ok(list.items.into_iter().filter(alive).map(|f| f.name_any()).collect())
}

fn dot_term(claim: &ClaimView) -> String {
    claim_term("Dot", &claim.namespace, claim.dot.as_deref().unwrap_or(&claim.name))
}

/// Branches that start from this claim: by name, or by the origin of their Filesystem.
fn children(claim: &ClaimView, branches: &[Arc<Branch>], ctx: &Ctx) -> Vec<Child> {
    let starts_here = |b: &Branch| {
        if b.namespace().as_deref() != Some(&claim.namespace) {
            return false;
        }
        if claim.kind == ClaimKind::Dot {
            return b.spec.dot == claim.name;
        }
        let fs = b.spec.fs_id.as_ref().and_then(|id| ctx.caches.filesystems.get(id));
        let origin = fs.as_ref().and_then(|f| f.spec.origin.as_ref()).map(|o| o.fs_id.as_str());
        let by_name = b.spec.from.as_ref().and_then(|f| f.branch.as_ref()) == Some(&claim.name);
        b.name_any() != claim.name
            && Some(&b.spec.dot) == claim.dot.as_ref()
            && (by_name || (origin.is_some() && origin == claim.fs_id.as_deref()))
    };
    let mut list: Vec<Child> = branches
        .iter()
        .filter(|b| starts_here(b))
        .map(|b| Child { name: b.name_any(), deleting: b.metadata.deletion_timestamp.is_some() })
        .collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

/// Mounts on nodes that exist; what a node that is gone had mounted holds nothing up.
fn mounts(replicas: &[Arc<Replica>], pools: &[PoolView]) -> Vec<String> {
    let reachable = |r: &Replica| {
        let place = dotgraft_api::Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() };
        !pools::is_gone(pools, &place)
    };
    replicas
        .iter()
        .filter(|r| reachable(r))
        .flat_map(|r| {
            let node = r.spec.node.clone();
            r.status.iter().flat_map(|s| s.mounts.iter()).map(move |m| format!("{m} on node {node}")).collect::<Vec<_>>()
        })
        .take(16)
        .collect()
}

/// Owner's Replica and all others, for the status.
pub fn replicas_of(claim: &ClaimView, ctx: &Ctx) -> Vec<Arc<Replica>> {
    claim.fs_id.as_ref().map(|id| ctx.caches.replicas.with(id)).unwrap_or_default()
}
