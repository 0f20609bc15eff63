//! What wakes the controller of replication jobs.

use std::collections::BTreeSet;
use std::sync::Arc;

use dotgraft_api::{Branch, Dot, Filesystem, NodePool, Replica, ReplicationJob};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::{jobs_meaning, resolve};
use crate::claim::{self, ClaimView};
use crate::context::Ctx;
use crate::triggers::{Triggers, on, refs};

/// Jobs of the same namespace to the same node, which may be waiting for this one.
fn rivals(job: &ReplicationJob, ctx: &Ctx) -> Vec<ObjectRef<ReplicationJob>> {
    let mut list = ctx.caches.jobs.with(&job.namespace().unwrap_or_default());
    list.retain(|j| j.spec.target.node == job.spec.target.node && j.uid() != job.uid());
    refs(&list)
}

/// Jobs to be looked at again.
pub fn of_jobs(ctx: &Arc<Ctx>) -> Triggers<ReplicationJob> {
    let c = &ctx.caches;
    let to = |node: &str, ctx: &Ctx| {
        let mut list = ctx.caches.jobs.all();
        list.retain(|j| j.spec.target.node == node);
        refs(&list)
    };
    vec![
        on(&c.jobs, ctx, rivals),
        on(&c.dots, ctx, |d: &Dot, ctx| refs(&jobs_meaning(d, ctx))),
        on(&c.branches, ctx, |b: &Branch, ctx| refs(&jobs_meaning(b, ctx))),
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
        on(&c.pools, ctx, |p: &NodePool, ctx| from(&p.spec.node, ctx)),
    ]
}

/// Jobs that a copy on that node is ordered to carry out: its Filesystem's owner, as a rule.
fn from(node: &str, ctx: &Ctx) -> Vec<ObjectRef<ReplicationJob>> {
    let replicas = ctx.caches.replicas.all();
    let there = replicas.iter().filter(|r| r.spec.node == node);
    let uids: BTreeSet<&str> = there.flat_map(|r| r.spec.desired.jobs.iter()).map(|j| j.uid.as_str()).collect();
    let mut list = ctx.caches.jobs.all();
    list.retain(|j| j.uid().is_some_and(|uid| uids.contains(uid.as_str())));
    refs(&list)
}

fn all_jobs(claim: &ClaimView, ctx: &Ctx) -> Vec<Arc<ReplicationJob>> {
    let mut jobs = ctx.caches.jobs.with(&claim.namespace);
    jobs.retain(|j| resolve::selects(j, claim.kind, &claim.name, &claim.labels));
    jobs
}
