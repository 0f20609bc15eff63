//! `ListVolumes`, `ControllerGetVolume`, `ListSnapshots`: from the watches' caches, in pages. A page token names the last id or
//! handle that was shown; ids grow with time, so what is made between two pages comes later, and what goes disturbs nothing. A read-only
//! handle that comes meanwhile may be missed until the next listing.

use std::collections::BTreeSet;

use dotgraft_api::Filesystem;
use dotgraft_engine::ids::FsId;
use dotgraft_proto::csi::v1 as wire;
use kube::ResourceExt;

use super::error::CsiError;
use super::find::{self, Published, is_usable};
use super::ids::{self, SnapshotId, VolumeHandle};
use super::{snapshot, topology};
use crate::caches::fs_term;
use crate::claim::{ClaimView, own};
use crate::context::Ctx;
use crate::handle;

/// Most entries of a page, so that an answer stays far below gRPC's 4 MiB.
const PAGE: usize = 2_000;

/// The length of a page and the id after which it begins.
fn page<T>(max_entries: i32, token: &str, parse: impl Fn(&str) -> Option<T>) -> Result<(usize, Option<T>), CsiError> {
    let most = usize::try_from(max_entries).map_err(|_| CsiError::Invalid("max_entries is negative".into()))?;
    let most = if most == 0 { PAGE } else { most.min(PAGE) };
    if token.is_empty() {
        return Ok((most, None));
    }
    let after = parse(token).ok_or_else(|| CsiError::InProgress("starting_token isn't one that was given out: begin anew".into()))?;
    Ok((most, Some(after)))
}

/// `ListVolumes`: every Filesystem with a head that a Dot or Branch holds, by each handle it is known by; of any other the views that there are.
///
/// # Errors
///
/// `INVALID_ARGUMENT` for a negative number of entries, `ABORTED` for a token that was not given out.
pub fn volumes(request: &wire::ListVolumesRequest, ctx: &Ctx) -> Result<wire::ListVolumesResponse, CsiError> {
    let (most, after) = page(request.max_entries, &request.starting_token, |text| text.parse::<VolumeHandle>().ok())?;
    let mut list = Vec::new();
    for fs in ctx.caches.filesystems.all() {
        let Ok(id) = fs.name_any().parse::<FsId>() else { continue };
        let claim = own::holder(&fs, ctx).filter(|claim| is_usable(&fs, claim));
        let handles = handles(id, ctx).into_iter().filter(|handle| claim.is_some() || handle.view().is_some());
        list.extend(handles.map(|handle| (handle, (handle, fs.clone(), claim.clone()))));
    }
    list.sort_by_key(|(handle, _)| *handle);
    let (entries, next_token) = cut_page(list, most, after.as_ref());
    let entries = entries.into_iter().map(|(handle, fs, claim)| {
        let volume = on_wire(&handle, &fs, claim.as_ref(), ctx);
        let status = wire::list_volumes_response::VolumeStatus {
            published_node_ids: nodes(&fs),
            volume_condition: Some(condition(claim.as_ref().and_then(|claim| cached_trouble(claim, ctx)))),
        };
        wire::list_volumes_response::Entry { volume: Some(volume), status: Some(status) }
    });
    Ok(wire::ListVolumesResponse { entries: entries.collect(), next_token })
}

/// The handles of a Filesystem: its head's, and the read-only ones that `PersistentVolumes` name. What is attached and not found here
/// the attacher publishes again each minute (`--reconcile-sync`).
fn handles(id: FsId, ctx: &Ctx) -> BTreeSet<VolumeHandle> {
    let volumes = ctx.caches.volumes.with(&fs_term(&id.to_string()));
    let read_only = volumes.iter().filter_map(|pv| handle::handle_of(pv)).filter(|h| h.is_read_only());
    read_only.chain([VolumeHandle::Head(id)]).collect()
}

/// A page, and the token of the next one; empty if this is the last.
type Page<V> = (Vec<V>, String);

/// Cuts a sorted list to a page.
fn cut_page<T: Ord + ToString, V>(list: Vec<(T, V)>, most: usize, after: Option<&T>) -> Page<V> {
    let mut list: Vec<(T, V)> = list.into_iter().skip_while(|(id, _)| after.is_some_and(|a| id <= a)).collect();
    let more = list.len() > most;
    list.truncate(most);
    let token = list.last().filter(|_| more).map(|(id, _)| id.to_string()).unwrap_or_default();
    (list.into_iter().map(|(_, v)| v).collect(), token)
}

fn cached_trouble(claim: &ClaimView, ctx: &Ctx) -> Option<String> {
    match claim.kind {
        dotgraft_api::ClaimKind::Dot => ctx.caches.dots.get_in(&claim.namespace, &claim.name).and_then(|d| find::trouble(d.as_ref())),
        dotgraft_api::ClaimKind::Branch => {
            ctx.caches.branches.get_in(&claim.namespace, &claim.name).and_then(|b| find::trouble(b.as_ref()))
        }
    }
}

fn nodes(fs: &Filesystem) -> Vec<String> {
    fs.spec.published_to.iter().map(|p| p.node.clone()).collect()
}

fn condition(trouble: Option<String>) -> wire::VolumeCondition {
    wire::VolumeCondition { abnormal: trouble.is_some(), message: trouble.unwrap_or_else(|| "Ready".into()) }
}

/// Without a claim nobody says how large it is, and nobody needs to know: 0, as the specification has it.
fn on_wire(handle: &VolumeHandle, fs: &Filesystem, claim: Option<&ClaimView>, ctx: &Ctx) -> wire::Volume {
    let owner = fs.status.as_ref().and_then(|s| s.authority.as_ref()).and_then(|a| ctx.caches.pools.get(&a.owner.node));
    wire::Volume {
        capacity_bytes: i64::try_from(claim.and_then(|c| c.capacity.clone().ok()).unwrap_or_default()).unwrap_or(i64::MAX),
        volume_id: handle.to_string(),
        accessible_topology: owner.iter().map(|p| topology::of_group(&p.spec.pool_group)).collect(),
        ..wire::Volume::default()
    }
}

/// `ControllerGetVolume`.
///
/// # Errors
///
/// `NOT_FOUND` if there is none.
pub async fn volume(volume_id: &str, ctx: &Ctx) -> Result<wire::ControllerGetVolumeResponse, CsiError> {
    let handle = ids::volume(volume_id)?;
    let Published { fs, claim, trouble } = find::published(&handle, ctx).await?;
    let on_wire = on_wire(&handle, &fs, claim.as_ref(), ctx);
    let status =
        wire::controller_get_volume_response::VolumeStatus { published_node_ids: nodes(&fs), volume_condition: Some(condition(trouble)) };
    Ok(wire::ControllerGetVolumeResponse { volume: Some(on_wire), status: Some(status) })
}

/// `ListSnapshots`.
///
/// # Errors
///
/// `INVALID_ARGUMENT` for a negative number of entries, `ABORTED` for a token that was not given out.
pub fn snapshots(request: &wire::ListSnapshotsRequest, ctx: &Ctx) -> Result<wire::ListSnapshotsResponse, CsiError> {
    let (most, after) = page(request.max_entries, &request.starting_token, SnapshotId::parse)?;
    let (commits, next_token) = cut_page(snapshot::all(request, ctx), most, after.as_ref());
    let entries = commits.iter().filter_map(|c| snapshot::entry(c, ctx));
    let entries = entries.map(|s| wire::list_snapshots_response::Entry { snapshot: Some(s) }).collect();
    Ok(wire::ListSnapshotsResponse { entries, next_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(list: &[u32], most: usize) -> Vec<Vec<u32>> {
        let (mut after, mut pages) = (None, Vec::new());
        loop {
            let (shown, token) = cut_page(list.iter().map(|n| (*n, *n)).collect(), most, after.as_ref());
            pages.push(shown);
            match token.parse() {
                Ok(next) => after = Some(next),
                Err(_) => return pages,
            }
        }
    }

    #[test]
    fn pages_show_everything_once_and_the_last_has_no_token() {
        assert_eq!(all(&[1, 2, 3, 4, 5], 2), [vec![1, 2], vec![3, 4], vec![5]]);
        assert_eq!(all(&[1, 2], 2), [vec![1, 2]]);
        assert_eq!(all(&[], 2), [Vec::<u32>::new()]);
    }

    #[test]
    fn what_goes_or_comes_between_two_pages_disturbs_nothing() {
        let (shown, token) = cut_page(vec![(1, 1), (2, 2), (3, 3)], 2, None);
        assert_eq!((shown, token.as_str()), (vec![1, 2], "2"));
        let (shown, token) = cut_page(vec![(1, 1), (3, 3), (4, 4)], 2, Some(&2));
        assert_eq!((shown, token.as_str()), (vec![3, 4], ""));
    }

    #[test]
    fn a_token_that_was_never_given_out_is_aborted_and_a_negative_length_is_wrong() {
        let parse = |t: &str| t.parse::<u32>().ok();
        assert_eq!(page(0, "", parse).unwrap(), (PAGE, None));
        assert_eq!(page(7, "3", parse).unwrap(), (7, Some(3)));
        assert_eq!(page(i32::MAX, "", parse).unwrap().0, PAGE);
        assert_eq!(page(0, "x", parse).unwrap_err().code(), tonic::Code::Aborted);
        assert_eq!(page(-1, "", parse).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
