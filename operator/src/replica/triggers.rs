//! What wakes the controller of Replicas.

use std::sync::Arc;

use dotgraft_api::{NodePool, Replica};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::context::Ctx;
use crate::triggers::{Triggers, on, refs};

/// Replicas to be looked at again.
pub fn of_replicas(ctx: &Arc<Ctx>) -> Triggers<Replica> {
    let c = &ctx.caches;
    let given_up = |node: &str, ctx: &Ctx| {
        let mut list = ctx.caches.replicas.all();
        list.retain(|r| r.spec.node == node && r.metadata.deletion_timestamp.is_some());
        refs(&list)
    };
    vec![
        on(&c.pools, ctx, move |p: &NodePool, ctx| given_up(&p.spec.node, ctx)),
        on(
            &c.nodes,
            ctx,
            move |n: &Node, ctx| {
                if ctx.caches.nodes.get(&n.name_any()).is_some() { Vec::new() } else { given_up(&n.name_any(), ctx) }
            },
        ),
    ]
}
