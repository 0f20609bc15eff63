//! What wakes the controller of Filesystems.

use std::sync::Arc;

use dotgraft_api::{Branch, Commit, Dot, DotOperation, Filesystem, FilesystemPhase, NodePool, Replica, ReplicationJob};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::moving;
use crate::claim::{self, ClaimObject, ClaimView, own};
use crate::content::VolumeSnapshotContent;
use crate::context::Ctx;
use crate::handle;
use crate::triggers::{Triggers, on, refs};
use crate::{commit, job};

fn bound_to(claim: Option<ClaimView>) -> Vec<ObjectRef<Filesystem>> {
    claim.into_iter().filter_map(|c| own::named(&c)).collect()
}

/// Filesystems to be looked at again.
pub fn of_filesystems(ctx: &Arc<Ctx>) -> Triggers<Filesystem> {
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
        on(&c.contents, ctx, |v: &VolumeSnapshotContent, _| v.filesystem().map(ObjectRef::new).into_iter().collect()),
        on(&c.volumes, ctx, |v: &PersistentVolume, _| {
            handle::filesystem_of(v).filter(|_| handle::is_view(v)).map(|id| ObjectRef::new(&id)).into_iter().collect()
        }),
        on(&c.jobs, ctx, |j: &ReplicationJob, ctx| job::claims_of(j, ctx).into_iter().flat_map(|c| bound_to(Some(c))).collect()),
        on(&c.operations, ctx, |o: &DotOperation, ctx| {
            let t = &o.spec.target;
            bound_to(claim::cached(ctx, t.kind, &o.namespace().unwrap_or_default(), &t.name))
        }),
        on(&c.pools, ctx, |p: &NodePool, ctx| restless_filesystems(&p.spec.node, ctx)),
        on(&c.nodes, ctx, |n: &Node, ctx| deleting_filesystems(&n.name_any(), ctx)),
        on(&c.namespaces, ctx, |n: &Namespace, ctx| {
            let mut list = ctx.caches.filesystems.all();
            list.retain(|f| f.spec.claim_ref.namespace == n.name_any());
            refs(&list)
        }),
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
    moving::wanted_node(fs, own::holder(fs, ctx).as_ref()) == Some(node) && owner_of(fs) != Some(node)
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
