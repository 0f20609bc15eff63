//! What wakes the controller of Commits.

use std::sync::Arc;

use dotgraft_api::{Branch, ClaimKind, Commit, Dot, Filesystem, Replica};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::caches::claim_term;
use crate::claim::ClaimObject;
use crate::context::Ctx;
use crate::triggers::{Triggers, on, refs};

/// Commits of a claim that aren't at rest.
fn restless(kind: ClaimKind, namespace: &str, name: &str, ctx: &Ctx) -> Vec<ObjectRef<Commit>> {
    let mut list = ctx.caches.commits.with(&claim_term(kind.as_str(), namespace, name));
    list.retain(|c| c.metadata.deletion_timestamp.is_some() || !super::is_recorded(c));
    refs(&list)
}

/// Commits to be looked at again.
pub fn of_commits(ctx: &Arc<Ctx>) -> Triggers<Commit> {
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
