//! What wakes the controller of operations.

use std::sync::Arc;

use dotgraft_api::{Commit, DotOperation};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::context::Ctx;
use crate::names::OPERATION_ANNOTATION;
use crate::triggers::{Triggers, on};

/// A reset waits for the Commit that keeps what was there.
pub fn of_operations(ctx: &Arc<Ctx>) -> Triggers<DotOperation> {
    vec![on(&ctx.caches.commits, ctx, |c: &Commit, _| {
        let name = c.annotations().get(OPERATION_ANNOTATION);
        name.map(|n| ObjectRef::new(n).within(&c.namespace().unwrap_or_default())).into_iter().collect()
    })]
}
