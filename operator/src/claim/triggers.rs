//! What wakes the controllers of Dots and Branches.

use std::sync::Arc;

use dotgraft_api::{Branch, ClaimKind, Commit, Dot, Filesystem, NodePool, Replica, ReplicationJob};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::{ClaimObject, forsaken};
use crate::cache::Kind;
use crate::caches::claim_term;
use crate::context::Ctx;
use crate::handle;
use crate::triggers::{Triggers, on, refs};

fn claim_ref<K: ClaimObject + Kind>(kind: ClaimKind, namespace: &str, name: &str) -> Vec<ObjectRef<K>> {
    if kind == K::KIND { vec![ObjectRef::new(name).within(namespace)] } else { Vec::new() }
}

fn of_filesystem<K: ClaimObject + Kind>(fs: &Filesystem, _: &Ctx) -> Vec<ObjectRef<K>> {
    let c = &fs.spec.claim_ref;
    claim_ref(c.kind, &c.namespace, &c.name)
}
/// The claim whose deletion a bound PVC holds up.
fn of_volume<K: ClaimObject + Kind>(pv: &PersistentVolume, ctx: &Ctx) -> Vec<ObjectRef<K>> {
    let fs = handle::filesystem_of(pv).and_then(|id| ctx.caches.filesystems.get(&id));
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

/// Claims with fewer copies than they ask for: a taint or a cordon may have gone. Nodes change often, so those that lack nothing aren't woken.
fn short_of_copies<K: ClaimObject + Kind>(all: &[Arc<K>], ctx: &Ctx) -> Vec<ObjectRef<K>> {
    let lacks = |o: &&Arc<K>| {
        let view = o.view(None);
        let jobs = || u32::try_from(super::copies::owned(&view, ctx).len()).unwrap_or(u32::MAX);
        view.placement.replicas > 0 && jobs() < view.placement.replicas
    };
    all.iter().filter(lacks).map(|o| ObjectRef::from_obj(o.as_ref())).collect()
}

/// Dots to be looked at again.
pub fn of_dots(ctx: &Arc<Ctx>) -> Triggers<Dot> {
    let c = &ctx.caches;
    vec![
        on(&c.filesystems, ctx, of_filesystem),
        on(&c.replicas, ctx, of_replica),
        on(&c.jobs, ctx, owner_of_job),
        on(&c.branches, ctx, |b: &Branch, _| vec![ObjectRef::new(&b.spec.dot).within(&b.namespace().unwrap_or_default())]),
        on(&c.pools, ctx, |p: &NodePool, ctx| claims_on_pool(&p.spec.node, &ctx.caches.dots.all())),
        on(&c.nodes, ctx, |_: &Node, ctx| short_of_copies(&ctx.caches.dots.all(), ctx)),
        on(&c.volumes, ctx, of_volume),
        on(&c.claims, ctx, |p: &PersistentVolumeClaim, ctx| forsaken::of_claim(p, ctx)),
        on(&c.namespaces, ctx, |n: &Namespace, ctx| of_namespace(n, &ctx.caches.dots.all())),
    ]
}

/// The limit of their namespace may be another one.
fn of_namespace<K: ClaimObject>(namespace: &Namespace, all: &[Arc<K>]) -> Vec<ObjectRef<K>> {
    let name = namespace.name_any();
    all.iter().filter(|o| o.namespace().as_ref() == Some(&name)).map(|o| ObjectRef::from_obj(o.as_ref())).collect()
}

/// Branches to be looked at again.
pub fn of_branches(ctx: &Arc<Ctx>) -> Triggers<Branch> {
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
        on(&c.nodes, ctx, |_: &Node, ctx| short_of_copies(&ctx.caches.branches.all(), ctx)),
        on(&c.namespaces, ctx, |n: &Namespace, ctx| of_namespace(n, &ctx.caches.branches.all())),
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

fn dot_of(namespace: &str, kind: ClaimKind, name: &str, ctx: &Ctx) -> Option<String> {
    match kind {
        ClaimKind::Dot => Some(name.to_owned()),
        ClaimKind::Branch => ctx.caches.branches.get_in(namespace, name).map(|b| b.spec.dot.clone()),
    }
}
