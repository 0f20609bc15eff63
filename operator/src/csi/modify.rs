//! `ControllerExpandVolume` and `ControllerModifyVolume`: fields of the Dot's or Branch's spec. The agents do the rest, online.

use std::collections::HashMap;
use std::fmt::Debug;

use dotgraft_api::{Branch, ClaimKind, Dot};
use dotgraft_proto::csi::v1 as wire;
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::CsiError;
use super::find::{self, PATIENCE, TRIES, amount, until};
use super::ids;
use super::params::{Mutable, Sizes};
use super::topology;
use crate::claim::{ClaimView, limit};
use crate::context::Ctx;
use crate::error::Kind;
use crate::names;
use crate::pools;
use crate::write;

/// What became of an expansion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expanded {
    /// The size that is wanted now, in bytes.
    pub bytes: i64,
    /// The owner's agent has raised its limit: the node has nothing left to do, and the pod has its space at once, not only when the
    /// kubelet looks at the pod the next time (up to a minute).
    pub done: bool,
}

/// Grows the volume; it never shrinks.
///
/// # Errors
///
/// `NOT_FOUND`, `OUT_OF_RANGE` for a size that can't be, `RESOURCE_EXHAUSTED` for more than the owner's pool or the namespace has, `ABORTED` while the owner has not raised the limit.
pub async fn expand(request: &wire::ControllerExpandVolumeRequest, ctx: &Ctx) -> Result<Expanded, CsiError> {
    ids::required("volume_id", &request.volume_id)?;
    let Some(range) = &request.capacity_range else { return Err(CsiError::Invalid("capacity_range is missing".into())) };
    let sizes = Sizes::read(Some(range))?;
    let handle = ids::volume(&request.volume_id)?;
    if handle.is_read_only() {
        return Err(CsiError::Invalid("a read-only volume has the size of its commit".into()));
    }
    let volume = find::volume(&handle, ctx).await?;
    let now = volume.claim.capacity.clone().unwrap_or_default();
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let next = grown(now, sizes)?;
    if let Some(next) = next {
        let mut larger = volume.claim.clone();
        if larger.history_limit == larger.capacity {
            larger.history_limit = Ok(next); // as it is where it isn't said
        }
        larger.capacity = Ok(next);
        let owner = volume.fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| a.owner.node.as_str());
        if let Some(pool) = pools::all(&ctx.caches).iter().find(|p| Some(p.node.as_str()) == owner) {
            topology::check_size(std::iter::once(pool), next)?;
        }
        limit::check(&larger, ctx).map_err(|block| CsiError::Exhausted(block.message))?;
        patch(&volume.claim, json!({ "spec": { "capacity": amount(next) } }), ctx).await?;
    }
    let wanted = next.unwrap_or(now);
    let done = until(PATIENCE, || has_room(&volume.fs.name_any(), wanted, ctx).then_some(())).await.is_some();
    Ok(Expanded { bytes: bytes(wanted), done })
}

/// The owner's agent says that files and history may take what is wanted by now.
fn has_room(id: &str, capacity: u64, ctx: &Ctx) -> bool {
    let owner = ctx.caches.filesystems.get(id).and_then(|f| f.status.clone()?.authority).map(|a| a.owner);
    let replica = owner.and_then(|o| ctx.caches.replicas.get(&names::replica_name(id, &o.pool)));
    replica.is_some_and(|r| {
        let wanted = &r.spec.desired;
        let limit = r.status.as_ref().map_or(0, |s| s.limit);
        wanted.capacity >= capacity && limit >= wanted.capacity.saturating_add(wanted.history_limit)
    })
}

/// The new size; `None`: large enough as it is.
fn grown(now: u64, sizes: Sizes) -> Result<Option<u64>, CsiError> {
    if sizes.limit.is_some_and(|limit| now > limit) {
        return Err(CsiError::OutOfRange(format!("the volume has {now} bytes already, and doesn't shrink")));
    }
    Ok((sizes.required > now).then(|| sizes.choose(now)))
}

/// Changes what can be changed of a volume.
///
/// # Errors
///
/// `NOT_FOUND`, `INVALID_ARGUMENT` for what can't be changed.
pub async fn modify(volume_id: &str, mutable: &HashMap<String, String>, ctx: &Ctx) -> Result<(), CsiError> {
    ids::required("volume_id", volume_id)?;
    let mutable = Mutable::read(mutable);
    let handle = ids::volume(volume_id)?;
    if handle.is_read_only() {
        // Its reader may be of another namespace: what the volume takes is its owner's.
        return Err(CsiError::Invalid("a read-only volume is a commit of another one: change that".into()));
    }
    let volume = find::volume(&handle, ctx).await?;
    let change = change(&volume.claim, &mutable?);
    if change != json!({}) {
        patch(&volume.claim, json!({ "spec": change }), ctx).await?;
    }
    Ok(())
}

fn change(claim: &ClaimView, mutable: &Mutable) -> Value {
    let mut spec = json!({});
    if let Some(replicas) = mutable.replicas.filter(|r| *r != claim.placement.replicas) {
        spec["placement"] = json!({ "replicas": replicas });
    }
    if let Some(limit) = &mutable.history_limit
        && dotgraft_api::parse_quantity(limit) != claim.history_limit
    {
        spec["historyLimit"] = json!(limit);
    }
    spec
}

/// Guarded by the version that is there now: what someone else just wrote is not undone. A write in between, such as that of a status, is
/// no reason to make the caller ask again.
async fn patch(claim: &ClaimView, patch: Value, ctx: &Ctx) -> Result<(), CsiError> {
    match claim.kind {
        ClaimKind::Dot => patch_latest::<Dot>(claim, &patch, ctx).await,
        ClaimKind::Branch => patch_latest::<Branch>(claim, &patch, ctx).await,
    }
}

async fn patch_latest<K>(claim: &ClaimView, patch: &Value, ctx: &Ctx) -> Result<(), CsiError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &claim.namespace);
    for _ in 0..TRIES {
        let object = api.get_opt(&claim.name).await?.filter(|o| o.uid().as_ref() == Some(&claim.uid));
        let object = object.ok_or_else(|| ids::no_volume(&claim.name))?;
        match write::guarded(&api, &object, patch.clone()).await {
            Err(e) if e.kind() == Kind::Conflict => {}
            done => return done.map(|_| ()).map_err(CsiError::from),
        }
    }
    Err(CsiError::InProgress(format!("others are writing {}; again", claim.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::claim;

    #[test]
    fn a_volume_grows_and_never_shrinks() {
        let sizes = |required, limit| Sizes { required, limit };
        assert_eq!(grown(1 << 30, sizes(2 << 30, None)).unwrap(), Some(2 << 30));
        assert_eq!(grown(2 << 30, sizes(2 << 30, None)).unwrap(), None);
        assert_eq!(grown(3 << 30, sizes(2 << 30, None)).unwrap(), None);
        assert!(matches!(grown(3 << 30, sizes(1 << 30, Some(2 << 30))), Err(CsiError::OutOfRange(_))));
    }

    #[test]
    fn only_what_differs_is_written() {
        let same = Mutable { replicas: Some(0), history_limit: Some("1024Mi".into()) };
        assert_eq!(change(&claim(), &same), json!({}));
        let other = Mutable { replicas: Some(2), history_limit: Some("2Gi".into()) };
        assert_eq!(change(&claim(), &other), json!({ "placement": { "replicas": 2 }, "historyLimit": "2Gi" }));
    }
}
