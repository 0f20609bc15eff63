//! What wakes the controller of `NodePools`.

use std::sync::Arc;

use dotgraft_api::{Filesystem, NodePool, Replica};
use kube::ResourceExt;

use crate::context::Ctx;
use crate::triggers::{Triggers, on, refs};

/// Pools with decisions of a person that may be waiting for one of these objects.
pub fn of_pools(ctx: &Arc<Ctx>) -> Triggers<NodePool> {
    let c = &ctx.caches;
    let named = |fs_id: &str, ctx: &Ctx| {
        let mut list = ctx.caches.pools.all();
        list.retain(|p| p.spec.orphan_actions.iter().any(|a| a.fs_id == fs_id));
        refs(&list)
    };
    vec![
        on(&c.replicas, ctx, move |r: &Replica, ctx| named(&r.spec.fs_id, ctx)),
        on(&c.filesystems, ctx, move |f: &Filesystem, ctx| named(&f.name_any(), ctx)),
    ]
}
