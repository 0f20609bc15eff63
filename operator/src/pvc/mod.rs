//! PVCs whose `dataSourceRef` names a Dot, a Branch or a Commit (csi.md §1): the operator makes the PV itself, bound to the PVC.
//!
//! A Dot or Branch is used as it is: one PVC at a time may write it, and no PVC's end deletes it. A Commit becomes a volume of the
//! PVC's own, as a snapshot would. The provisioner leaves both alone, for it knows these kinds not.

pub mod decide;
mod hand_over;
pub mod triggers;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::common::DRIVER_NAME;
use dotgraft_api::{Commit, ConditionType, FilesystemPhase, Reason, Word};
use dotgraft_engine::filesystem::MountMode;
use dotgraft_engine::handle::VolumeHandle;
use dotgraft_proto::csi::v1 as wire;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};

use self::decide::{Access, Source, Volume};
use crate::caches::fs_term;
use crate::claim::own;
use crate::conditions::Block;
use crate::context::Ctx;
use crate::csi;
use crate::error::Error;
use crate::handle;
use crate::names;
use crate::note::Note;
use crate::write;

const BLOCKED: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(1);

/// What became of a PVC.
enum Outcome {
    /// Nothing of ours, or done.
    Done,
    /// It waits, and says why.
    Blocked(Block),
}

/// Gives one PVC the volume that it names.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile(pvc: Arc<PersistentVolumeClaim>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    let block = match decide::source(&pvc) {
        None => return Ok(Action::await_change()),
        Some(Err(block)) => block,
        Some(Ok(source)) => match provide(&pvc, &source, &ctx).await? {
            Outcome::Done => return Ok(Action::await_change()),
            Outcome::Blocked(block) => block,
        },
    };
    let again = if block.reason == Word::Provisioning.into() { SOON } else { BLOCKED };
    if ctx.too_soon(&format!("pvc/{}", pvc.uid().unwrap_or_default()), BLOCKED).is_none() {
        ctx.wrote(&format!("pvc/{}", pvc.uid().unwrap_or_default()));
        let note = Note { warning: block.reason != Word::Provisioning.into(), reason: block.reason.to_string(), message: block.message };
        ctx.notes(&pvc.object_ref(&()), "Provision", vec![note]).await;
    }
    Ok(Action::requeue(again))
}

// Every caller returns it as it is.
#[allow(clippy::unnecessary_wraps)]
fn blocked(reason: impl Into<Reason>, message: impl Into<String>) -> Result<Outcome, Error> {
    Ok(Outcome::Blocked(Block::new(reason, message)))
}

async fn provide(pvc: &PersistentVolumeClaim, source: &Source, ctx: &Ctx) -> Result<Outcome, Error> {
    let Some(class) = class(pvc, ctx).await? else { return Ok(Outcome::Done) };
    let access = match decide::access(pvc) {
        Ok(access) => access,
        Err(block) => return Ok(Outcome::Blocked(block)),
    };
    let options = class.mount_options.clone().unwrap_or_default();
    if let Err(unknown) = MountMode::WRITE.with_options(&options) {
        return blocked(ConditionType::Unsupported, format!("StorageClass `{}`: {unknown}", class.name_any()));
    }
    match source {
        Source::Claim(kind, name) => use_claim(pvc, *kind, name, (&access, &options), ctx).await,
        Source::Commit(name) => restore(pvc, name, &access, &class, ctx).await,
    }
}

/// The PVC's class, if that is one of ours.
async fn class(pvc: &PersistentVolumeClaim, ctx: &Ctx) -> Result<Option<StorageClass>, Error> {
    let name = pvc.spec.as_ref().and_then(|s| s.storage_class_name.clone()).unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let class = Api::<StorageClass>::all(ctx.client.clone()).get_opt(&name).await?;
    Ok(class.filter(|c| c.provisioner == DRIVER_NAME))
}

async fn use_claim(
    pvc: &PersistentVolumeClaim,
    kind: dotgraft_api::ClaimKind,
    name: &str,
    (access, options): (&Access, &[String]),
    ctx: &Ctx,
) -> Result<Outcome, Error> {
    let namespace = pvc.namespace().unwrap_or_default();
    let what = format!("{} `{name}`", kind.as_str());
    // By what the API server says now: a volume is for ever, and the watches may not have seen yet that the namespace is another one.
    let Some(claim) = own::live_claim(kind, &namespace, name, ctx).await? else {
        return blocked(ConditionType::SourceNotFound, format!("there is no {what} in this namespace"));
    };
    if claim.deleting {
        return blocked(ConditionType::SourceDeleting, format!("{what} is being deleted"));
    }
    let fs = own::live_filesystem(&claim, ctx).await?;
    let active = fs.filter(|f| f.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Active));
    let owner = active.as_ref().and_then(|f| f.status.as_ref()?.authority.as_ref().map(|a| a.owner.node.clone()));
    let id = active.and_then(|f| f.name_any().parse().ok());
    let Some((fs, pool)) = id.zip(owner.and_then(|o| ctx.caches.pools.get(&o))) else {
        return blocked(ConditionType::SourceNotReady, format!("{what} isn't ready yet"));
    };
    let capacity = claim.capacity.clone().unwrap_or_default();
    if decide::requested(pvc) > capacity {
        return blocked(Word::TooSmall, format!("{what} has {capacity} bytes, fewer than the claim asks for: make it larger first"));
    }
    let name = decide::volume_name(fs, access.read_only);
    let handle = if access.read_only { VolumeHandle::Newest(fs) } else { VolumeHandle::Head(fs) };
    let volume = Volume { name, handle, access, capacity, group: &pool.spec.pool_group, reclaim: "Retain", options };
    bind(pvc, &volume, &what, ctx).await
}

/// A volume of its own from a Commit, as `CreateVolume` makes one from a snapshot, or a view of it; it goes with the PVC as the class says.
async fn restore(pvc: &PersistentVolumeClaim, name: &str, access: &Access, class: &StorageClass, ctx: &Ctx) -> Result<Outcome, Error> {
    let namespace = pvc.namespace().unwrap_or_default();
    let Some(commit) = Api::<Commit>::namespaced(ctx.client.clone(), &namespace).get_opt(name).await? else {
        return blocked(ConditionType::SourceNotFound, format!("there is no Commit `{name}` in this namespace"));
    };
    let Some(id) = commit.status.as_ref().and_then(|s| Some(format!("{}@{}", s.fs_id.as_ref()?, s.id.as_ref()?))) else {
        return blocked(Word::Provisioning, format!("Commit `{name}` is not made yet"));
    };
    let mut parameters: std::collections::HashMap<String, String> = class.parameters.clone().unwrap_or_default().into_iter().collect();
    parameters.insert("csi.storage.k8s.io/pvc/name".into(), pvc.name_any());
    parameters.insert("csi.storage.k8s.io/pvc/namespace".into(), namespace);
    let request = wire::CreateVolumeRequest {
        name: own_name(pvc),
        parameters,
        capacity_range: i64::try_from(decide::requested(pvc)).ok().map(|n| wire::CapacityRange { required_bytes: n, limit_bytes: 0 }),
        ..csi::restore_request(id, access.read_only)
    };
    let made = match csi::create_volume(&request, ctx).await {
        Ok(made) => made,
        Err(status) if status.code() == tonic::Code::Aborted => return blocked(Word::Provisioning, status.message()),
        Err(status) => return blocked(Word::ProvisioningFailed, status.message()),
    };
    let group = made.accessible_topology.first().and_then(|t| t.segments.values().next().cloned()).unwrap_or_default();
    let options = class.mount_options.as_deref().unwrap_or_default();
    let reclaim = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into());
    let capacity = u64::try_from(made.capacity_bytes).unwrap_or_default();
    let Ok(handle) = made.volume_id.parse::<VolumeHandle>() else {
        return blocked(Word::ProvisioningFailed, format!("`{}` is no volume", made.volume_id));
    };
    let volume = Volume { name: own_name(pvc), handle, access, capacity, group: &group, reclaim: &reclaim, options };
    bind(pvc, &volume, &format!("Commit `{name}`"), ctx).await
}

/// Name of a volume that is made for a PVC, and of its PV, as the provisioner would give it.
fn own_name(pvc: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", pvc.uid().unwrap_or_default())
}

/// Makes the PV. That of a Dot or Branch has the Filesystem's name, so of two PVCs one gets it, whoever looks.
async fn bind(pvc: &PersistentVolumeClaim, volume: &Volume<'_>, what: &str, ctx: &Ctx) -> Result<Outcome, Error> {
    let rivals = ctx.caches.volumes.with(&fs_term(&volume.handle.fs().to_string()));
    let name = volume.name.clone();
    // Of views there are as many as one likes.
    let alike = |pv: &PersistentVolume| handle::is_read_only(pv) == volume.access.read_only && !handle::is_view(pv);
    let is_rival = |pv: &PersistentVolume| volume.handle.view().is_none() && pv.name_any() != name && alike(pv);
    if let Some(other) = rivals.iter().find(|pv| is_rival(pv)) {
        return blocked(Word::AlreadyClaimed, already(what, other));
    }
    let api: Api<PersistentVolume> = Api::all(ctx.client.clone());
    let pv: PersistentVolume = serde_json::from_value(decide::volume(pvc, volume))?;
    let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    match api.create(&params, &pv).await {
        Ok(_) => {
            tracing::info!(pv = name, pvc = pvc.name_any(), "made a PersistentVolume for a claim");
            return Ok(Outcome::Done);
        }
        Err(kube::Error::Api(s)) if s.is_already_exists() => {}
        Err(e) => return Err(e.into()),
    }
    let Some(there) = api.get_opt(&name).await? else { return blocked(Word::Provisioning, "its PersistentVolume just went; again") };
    let holder = there.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|c| c.uid.clone());
    if holder == pvc.uid() { Ok(Outcome::Done) } else { blocked(Word::AlreadyClaimed, already(what, &there)) }
}

fn already(what: &str, pv: &PersistentVolume) -> String {
    let claim = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let claim = claim.map(|c| format!("{}/{}", c.namespace.clone().unwrap_or_default(), c.name.clone().unwrap_or_default()));
    let by = claim.map_or_else(String::new, |c| format!(" for PVC `{c}`"));
    format!("{what} has the PersistentVolume `{}`{by} already: one PVC at a time uses it", pv.name_any())
}

/// Takes a PV away whose claim is gone; the Dot or Branch stays. What any other PV writes follows it to the namespace of its PVC.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile_volume(pv: Arc<PersistentVolume>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    if !decide::is_ours_to_drop(&pv) {
        hand_over::follow(&pv, &ctx).await?;
        return Ok(Action::await_change());
    }
    let Some(claim) = pv.spec.as_ref().and_then(|s| s.claim_ref.clone()) else { return Ok(Action::await_change()) };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(ctx.client.clone(), &claim.namespace.clone().unwrap_or_default());
    if claims.get_opt(&claim.name.unwrap_or_default()).await?.is_some_and(|c| c.uid() == claim.uid) {
        return Ok(Action::await_change());
    }
    write::delete(&Api::<PersistentVolume>::all(ctx.client.clone()), pv.as_ref()).await?;
    Ok(Action::await_change())
}

/// PVCs that are bound to a Filesystem, as `namespace/name`: its Dot or Branch doesn't go while there are any. Views hold their commit instead.
pub fn bound_claims(fs_id: &str, ctx: &Ctx) -> Vec<String> {
    let volumes = ctx.caches.volumes.with(&fs_term(fs_id));
    let bound = volumes.iter().filter(|pv| !handle::is_view(pv)).filter_map(|pv| decide::bound_claim(pv));
    let mut list: Vec<String> = bound.take(16).collect();
    list.sort();
    list
}

/// PVCs of a namespace that are bound to a Filesystem for writing: their pods have its head.
pub fn writing_claims(fs_id: &str, namespace: &str, ctx: &Ctx) -> Vec<String> {
    let volumes = ctx.caches.volumes.with(&fs_term(fs_id));
    let claims = volumes.iter().filter(|pv| !handle::is_read_only(pv)).filter_map(|pv| decide::bound_claim(pv));
    let mut list: Vec<String> = claims.filter_map(|c| Some(c.strip_prefix(namespace)?.strip_prefix('/')?.to_owned())).collect();
    list.sort();
    list.truncate(16);
    list
}

/// Whether a PV says that the data of a Filesystem is to be kept, as the watches saw.
pub fn is_kept(fs_id: &str, ctx: &Ctx) -> bool {
    ctx.caches.volumes.with(&fs_term(fs_id)).iter().any(|pv| decide::keeps_data(pv))
}

/// The same, as the API server says now. `made`: the name of the call that made the volume, which its PV has; the watches may not have seen
/// that one yet.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_is_kept(fs_id: &str, made: Option<&str>, ctx: &Ctx) -> Result<bool, Error> {
    let mut names: std::collections::BTreeSet<String> =
        ctx.caches.volumes.with(&fs_term(fs_id)).iter().filter(|pv| !decide::is_ours_to_drop(pv)).map(|pv| pv.name_any()).collect();
    names.extend(made.map(ToOwned::to_owned));
    let api: Api<PersistentVolume> = Api::all(ctx.client.clone());
    for name in names {
        let pv = api.get_opt(&name).await?;
        if pv.is_some_and(|pv| handle::filesystem_of(&pv).as_deref() == Some(fs_id) && decide::keeps_data(&pv)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod scenario_tests;
