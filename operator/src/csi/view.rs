//! `CreateVolume` for `ReadOnlyMany`: a view of a commit (ADR 37), which is no object and no byte. All there is of it is its handle, which names the
//! commit and which of its views it is; so nothing is left behind by a call that nobody came back for, and `DeleteVolume` has nothing to do.

use dotgraft_engine::handle::{ViewId, VolumeHandle};
use dotgraft_proto::csi::v1 as wire;
use wire::volume_content_source::Type as Source;

use super::create::{self, Start, Wanted};
use super::error::CsiError;
use super::{find, topology};
use crate::context::Ctx;
use crate::names::sha256_hex;
use crate::pools;

/// The view that a call of that name gets: always the same one.
fn of_call(name: &str) -> ViewId {
    let digits = sha256_hex(name.as_bytes());
    ViewId(digits.get(..16).and_then(|d| u64::from_str_radix(d, 16).ok()).unwrap_or_default())
}

/// The view, if its snapshot is there for the namespace.
///
/// # Errors
///
/// `INVALID_ARGUMENT` for what is no snapshot, `NOT_FOUND` without it, `OUT_OF_RANGE` or `RESOURCE_EXHAUSTED` for what can't be.
pub async fn create(wanted: &Wanted<'_>, ctx: &Ctx) -> Result<wire::Volume, CsiError> {
    if !matches!(wanted.source, Some(Source::Snapshot(_))) {
        return Err(CsiError::Invalid(
            "ReadOnlyMany is a view of a commit: name a VolumeSnapshot in the claim's dataSource, or a Dot, Branch or Commit in its dataSourceRef".into(),
        ));
    }
    let Some(start) = create::start(wanted, ctx).await? else { return Err(CsiError::Invalid("volume_content_source is missing".into())) };
    let missing = || CsiError::NotFound(format!("there is no commit `{}`", start.origin.commit));
    let (fs, commit) = (start.origin.fs_id.parse().map_err(|_| missing())?, start.origin.commit.parse().map_err(|_| missing())?);
    if wanted.sizes.limit.is_some_and(|limit| limit < start.size) {
        return Err(CsiError::OutOfRange(format!("the commit is of {} bytes, more than is asked for", start.size)));
    }
    // More bytes than the commit has cost nothing: there is nothing to put into them.
    let capacity = start.size.max(wanted.sizes.required);
    Ok(wire::Volume {
        capacity_bytes: i64::try_from(capacity).unwrap_or(i64::MAX),
        volume_id: VolumeHandle::View(fs, commit, of_call(wanted.name)).to_string(),
        accessible_topology: reachable(&start, wanted, ctx)?,
        ..wire::Volume::default()
    })
}

/// Where pods may read it: in all of the pool group, as a copy is made where there is none; once the volume is gone, and only the snapshot is left,
/// none is made any more, and they go where one is.
fn reachable(start: &Start, wanted: &Wanted<'_>, ctx: &Ctx) -> Result<Vec<wire::Topology>, CsiError> {
    let pools = pools::all(&ctx.caches);
    let source = start.pool(wanted, &pools)?;
    let held = ctx.caches.filesystems.get(&start.origin.fs_id).is_some_and(|fs| find::is_claimed(&fs, ctx));
    if held {
        return Ok(source.map(|p| topology::of_group(&p.group)).into_iter().collect());
    }
    let nodes: Vec<String> = find::holders(&start.origin.fs_id, &start.origin.commit, ctx);
    Ok(pools.iter().filter(|p| nodes.contains(&p.node)).map(topology::of_node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_has_a_view_of_its_own_and_the_same_one_again() {
        assert_eq!(of_call("pvc-1"), of_call("pvc-1"));
        assert_ne!(of_call("pvc-1"), of_call("pvc-2"));
    }
}
