//! What wakes the controller of Commits.

use std::collections::BTreeSet;
use std::sync::Arc;

use dotgraft_api::{Branch, ClaimKind, Commit, Dot, Filesystem, NodePool, Replica};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::decide;
use crate::caches::{claim_term, fs_term};
use crate::claim::{ClaimObject, ClaimView, own};
use crate::content::VolumeSnapshotContent;
use crate::context::Ctx;
use crate::filesystem::kept;
use crate::handle;
use crate::pools;
use crate::triggers::{Triggers, on, refs};

/// Commits of a claim that aren't at rest.
fn restless(kind: ClaimKind, namespace: &str, name: &str, ctx: &Ctx) -> Vec<ObjectRef<Commit>> {
    let mut list = ctx.caches.commits.with(&claim_term(kind.as_str(), namespace, name));
    list.retain(|c| c.metadata.deletion_timestamp.is_some() || !super::is_recorded(c));
    refs(&list)
}

/// Commits of a Filesystem that are being deleted: a content or a view may have kept them.
fn going(fs_id: &str, ctx: &Ctx) -> Vec<ObjectRef<Commit>> {
    let mut list = ctx.caches.commits.with(&fs_term(fs_id));
    list.retain(|c| c.metadata.deletion_timestamp.is_some());
    refs(&list)
}

/// Commits of a Filesystem whose copies have changed, and those that go.
fn outdated(fs_id: &str, ctx: &Ctx) -> Vec<ObjectRef<Commit>> {
    let (mut list, replicas) = (ctx.caches.commits.with(&fs_term(fs_id)), ctx.caches.replicas.with(fs_id));
    if list.is_empty() || replicas.is_empty() {
        return Vec::new();
    }
    let bound = ctx.caches.filesystems.get(fs_id).and_then(|fs| own::holder(&fs, ctx));
    let all = kept::copies_of(&replicas, &pools::all(&ctx.caches));
    list.retain(|c| c.metadata.deletion_timestamp.is_some() || decide::is_outdated(c, bound.as_ref(), &all));
    refs(&list)
}

/// The same of the Filesystem of a claim.
fn of_claim(claim: &ClaimView, ctx: &Ctx) -> Vec<ObjectRef<Commit>> {
    own::filesystem(claim, ctx).map(|fs| outdated(&fs.name_any(), ctx)).unwrap_or_default()
}

/// The same of every Filesystem that has a copy on a node: its pool, or the node, may have gone or come back.
fn outdated_on(node: &str, ctx: &Ctx) -> Vec<ObjectRef<Commit>> {
    let replicas = ctx.caches.replicas.all();
    let there: BTreeSet<&str> = replicas.iter().filter(|r| r.spec.node == node).map(|r| r.spec.fs_id.as_str()).collect();
    there.into_iter().flat_map(|id| outdated(id, ctx)).collect()
}

/// Commits to be looked at again.
pub fn of_commits(ctx: &Arc<Ctx>) -> Triggers<Commit> {
    let c = &ctx.caches;
    vec![
        on(&c.replicas, ctx, |r: &Replica, ctx| {
            let claim = r.spec.desired.claim.as_ref();
            let mut all = claim.map(|c| restless(c.kind, &c.namespace, &c.name, ctx)).unwrap_or_default();
            all.extend(outdated(&r.spec.fs_id, ctx));
            all
        }),
        on(&c.contents, ctx, |v: &VolumeSnapshotContent, ctx| v.filesystem().map(|id| going(id, ctx)).unwrap_or_default()),
        on(&c.volumes, ctx, |v: &PersistentVolume, ctx| {
            let of = handle::filesystem_of(v).filter(|_| handle::is_view(v));
            of.map(|id| going(&id, ctx)).unwrap_or_default()
        }),
        on(&c.pools, ctx, |p: &NodePool, ctx| outdated_on(&p.spec.node, ctx)),
        on(&c.nodes, ctx, |n: &Node, ctx| outdated_on(&n.name_any(), ctx)),
        on(&c.dots, ctx, |d: &Dot, ctx| of_claim(&d.view(None), ctx)),
        on(&c.branches, ctx, |b: &Branch, ctx| of_claim(&b.view(None), ctx)),
        on(&c.filesystems, ctx, |f: &Filesystem, ctx| {
            let c = &f.spec.claim_ref;
            restless(c.kind, &c.namespace, &c.name, ctx)
        }),
        on(&c.dots, ctx, |d: &Dot, ctx| restless(Dot::KIND, &d.namespace().unwrap_or_default(), &d.name_any(), ctx)),
        on(&c.branches, ctx, |b: &Branch, ctx| restless(Branch::KIND, &b.namespace().unwrap_or_default(), &b.name_any(), ctx)),
    ]
}
