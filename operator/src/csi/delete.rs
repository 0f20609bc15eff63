//! `DeleteVolume`: deletes the Dot that a CSI call has made, and nothing else.

use dotgraft_api::{ClaimKind, Dot, Filesystem, FilesystemPhase, ReclaimPolicy};
use kube::{Api, ResourceExt};

use super::error::CsiError;
use super::find::{self, PATIENCE, csi_name, until};
use super::ids::{VolumeHandle, required};
use crate::claim::{ClaimObject, own};
use crate::context::Ctx;
use crate::pvc;
use crate::write;

/// Conditions of a Dot in deletion that name something that must be let go first.
const HELD: [&str; 3] = ["Mounted", "BranchesExist", "ClaimBound"];

/// Deletes. Success as well for what isn't there, what is only a way to read, and a user's Dot, which stays.
///
/// # Errors
///
/// `FAILED_PRECONDITION` if it is published or something needs it, `ABORTED` while it goes.
pub async fn delete(volume_id: &str, ctx: &Ctx) -> Result<(), CsiError> {
    let Some(handle) = required("volume_id", volume_id)?.parse::<VolumeHandle>().ok().filter(|h| !h.is_read_only()) else { return Ok(()) };
    let id = handle.fs().to_string();
    let Some(fs) = find::filesystem(&id, ctx).await? else { return Ok(()) };
    let claim = &fs.spec.claim_ref;
    if claim.kind != ClaimKind::Dot {
        return Ok(());
    }
    let api: Api<Dot> = Api::namespaced(ctx.client.clone(), &claim.namespace);
    let Some(dot) = api.get_opt(&claim.name).await?.filter(|d| own::is_bound(&d.view(None), &fs)) else {
        return released(&fs, ctx).await;
    };
    if csi_name(&dot).is_none() {
        return Ok(());
    }
    // Who reads, and perhaps by a handle of its own, holds the Dot by its claim or its mounts: those it names.
    let writers = fs.spec.published_to.iter().filter(|p| !p.read_only);
    let nodes: Vec<&str> = writers.map(|p| p.node.as_str()).filter(|n| ctx.caches.nodes.get(n).is_some()).collect();
    if !nodes.is_empty() {
        return Err(CsiError::InUse(format!("the volume is published to {}: unpublish it first", nodes.join(", "))));
    }
    if dot.metadata.deletion_timestamp.is_none() {
        write::delete(&api, &dot).await?;
    }
    gone(&dot, ctx).await
}

/// What only a PV has kept goes once that says `Delete`: deleting the object of released data is the intent. Under `Retain` of the Dot it stays.
async fn released(fs: &Filesystem, ctx: &Ctx) -> Result<(), CsiError> {
    let is_released = fs.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Released);
    if is_released && fs.spec.reclaim_policy == ReclaimPolicy::Delete && !pvc::live_is_kept(&fs.name_any(), None, ctx).await? {
        write::delete(&Api::<Filesystem>::all(ctx.client.clone()), fs).await?;
    }
    Ok(())
}

async fn gone(dot: &Dot, ctx: &Ctx) -> Result<(), CsiError> {
    let (namespace, name) = (dot.namespace().unwrap_or_default(), dot.name_any());
    let left = || ctx.caches.dots.get_in(&namespace, &name).filter(|d| d.uid() == dot.uid());
    if until(PATIENCE, || left().is_none().then_some(())).await.is_some() {
        return Ok(());
    }
    let why = left().and_then(|d| find::trouble(d.as_ref())).unwrap_or_else(|| "the operator has not looked at it yet".into());
    let text = format!("Dot {namespace}/{name} is being deleted: {why}");
    if HELD.iter().any(|h| why.starts_with(h)) { Err(CsiError::InUse(text)) } else { Err(CsiError::InProgress(text)) }
}
