//! The ground of what wakes a controller: a change of one kind, and the objects of another that it concerns. What wakes which stands beside
//! each controller, in its `triggers.rs`.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::runtime::reflector::ObjectRef;

use crate::cache::{Cache, Kind};
use crate::context::Ctx;

/// Objects of a kind to be looked at again, as they come.
pub type Triggers<K> = Vec<BoxStream<'static, ObjectRef<K>>>;

/// Objects that a change of `cache` concerns.
pub fn on<T: Kind, K: Kind>(
    cache: &Arc<Cache<T>>,
    ctx: &Arc<Ctx>,
    map: impl Fn(&T, &Ctx) -> Vec<ObjectRef<K>> + Send + 'static,
) -> BoxStream<'static, ObjectRef<K>> {
    let ctx = ctx.clone();
    cache.changes().flat_map(move |object| futures::stream::iter(map(&object, &ctx))).boxed()
}

/// References to all of a list.
pub fn refs<K: Kind>(list: &[Arc<K>]) -> Vec<ObjectRef<K>> {
    list.iter().map(|o| ObjectRef::from_obj(o.as_ref())).collect()
}
