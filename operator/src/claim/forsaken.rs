//! Volumes that `CreateVolume` has made and nobody came back for: the provisioner was killed before it made the PV, and the PVC was deleted meanwhile,
//! so no sidecar knows of the volume any more (failures.md row 9). The Dot goes once that is sure.
//!
//! A Dot that CSI makes has a mark, which goes as soon as anybody has or uses the volume: a PV, a publication, a mount, a Branch, a Commit. So a Dot
//! that still has it holds nothing but what it began with. One without the mark is never taken, whatever became of its PVC: a PV that said `Retain`
//! and was deleted leaves such a Dot, with data.

use std::time::Duration;

use dotgraft_api::{Dot, Filesystem};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{ClaimObject, ClaimView, View};
use crate::caches::{claim_term, fs_term};
use crate::context::Ctx;
use crate::error::Error;
use crate::names::{self, AWAITED_ANNOTATION, TRANSIENT_LABEL};
use crate::note::Note;
use crate::write;

/// Before the UID of the PVC in the name of a call and of its PV, as the provisioner makes them.
const PREFIX: &str = "pvc-";
/// How often it is looked again while the PVC is there.
const AGAIN: Duration = Duration::from_secs(600);

/// UID of the PVC for which the call was made, if its name says so.
fn made_for(claim: &ClaimView) -> Option<uuid::Uuid> {
    claim.csi_name.as_deref()?.strip_prefix(PREFIX)?.parse().ok()
}

/// The Dot that may have been made for a PVC, if it still has the mark: to be looked at when the PVC goes. By either of its names ([`names`]).
pub fn of_claim(pvc: &PersistentVolumeClaim, ctx: &Ctx) -> Vec<ObjectRef<Dot>> {
    let (namespace, name) = (pvc.namespace().unwrap_or_default(), pvc.name_any());
    let own = names::dot_of_call(&name, &format!("{PREFIX}{}", pvc.uid().unwrap_or_default()));
    let marked = |name: &String| ctx.caches.dots.get_in(&namespace, name).filter(|d| d.annotations().contains_key(AWAITED_ANNOTATION));
    [name, own].iter().filter_map(marked).map(|d| ObjectRef::from_obj(d.as_ref())).collect()
}

/// Takes the mark off, as the volume is somebody's. Nothing if it has none.
///
/// # Errors
///
/// A conflict if another object has the name by now; the API server refuses or doesn't answer.
pub async fn is_had<K: ClaimObject>(object: &K, ctx: &Ctx) -> Result<(), Error> {
    if !object.annotations().contains_key(AWAITED_ANNOTATION) {
        return Ok(());
    }
    take_off(&write::namespaced::<K>(&ctx.client, object), &object.name_any(), &object.uid().unwrap_or_default()).await
}

/// Of exactly that object; whatever else is written to it at the same time. One that is gone has none.
async fn take_off<K: ClaimObject>(api: &Api<K>, name: &str, uid: &str) -> Result<(), Error> {
    let patch = json!({ "metadata": { "uid": uid, "annotations": { AWAITED_ANNOTATION: null } } });
    let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
    match api.patch(name, &params, &Patch::Merge(&patch)).await {
        Err(e) if !Error::is_not_found(&e) => Err(e.into()),
        _ => Ok(()),
    }
}

/// Looks at a claim with the mark: takes it off, or deletes the claim. When to look again.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn look<K: ClaimObject>(object: &K, view: &View, ctx: &Ctx) -> Result<Option<Duration>, Error> {
    let claim = &view.claim;
    if !object.annotations().contains_key(AWAITED_ANNOTATION) || claim.deleting {
        return Ok(None);
    }
    if is_used(view, ctx) {
        return is_had(object, ctx).await.map(|()| None);
    }
    let Some(uid) = made_for(claim) else { return Ok(None) };
    if let Some(left) = left(object, ctx) {
        return Ok(Some(left));
    }
    if is_awaited(&uid.to_string(), claim, ctx).await? {
        return Ok(Some(AGAIN));
    }
    let message = format!("the PVC with UID {uid}, for which this volume was made, was deleted before it had it: the volume goes");
    tracing::info!(dot = claim.name, namespace = claim.namespace, "{message}");
    ctx.notes(&object.object_ref(&()), "Delete", vec![Note { warning: false, reason: "Forsaken".into(), message }]).await;
    // Not if somebody takes the mark off this very moment.
    let preconditions = Preconditions { uid: object.uid(), resource_version: object.resource_version() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match write::namespaced::<K>(&ctx.client, object).delete(&object.name_any(), &params).await {
        Err(e) if !Error::is_not_found(&e) => Err(e.into()),
        _ => Ok(None),
    }
}

/// Somebody has it or did something with it, as the watches saw.
fn is_used(view: &View, ctx: &Ctx) -> bool {
    let claim = &view.claim;
    let commits = ctx.caches.commits.with(&claim_term(claim.kind.as_str(), &claim.namespace, &claim.name));
    let branches = ctx.caches.branches.with(&claim_term(claim.kind.as_str(), &claim.namespace, &claim.name));
    let of_people = commits.iter().any(|c| !c.labels().contains_key(TRANSIENT_LABEL)) || !branches.is_empty();
    let of_nodes = |fs: &Filesystem| {
        let id = fs.name_any();
        let mounted = ctx.caches.replicas.with(&id).iter().any(|r| r.status.as_ref().is_some_and(|s| !s.mounts.is_empty()));
        mounted || !fs.spec.published_to.is_empty() || !ctx.caches.volumes.with(&fs_term(&id)).is_empty()
    };
    of_people || view.fs.as_ref().is_some_and(of_nodes)
}

/// What is left of the time in which a sidecar may still come back.
fn left<K: ClaimObject>(object: &K, ctx: &Ctx) -> Option<Duration> {
    let age = object.creation_timestamp().map_or(0, |t| jiff::Timestamp::now().as_second().saturating_sub(t.0.as_second()));
    let left = i64::from(ctx.forsaken_after).saturating_sub(age);
    u64::try_from(left).ok().filter(|s| *s > 0).map(Duration::from_secs)
}

/// The PVC is there, or a PV of the call's name is, as the API server says now.
async fn is_awaited(uid: &str, claim: &ClaimView, ctx: &Ctx) -> Result<bool, Error> {
    let claims = Api::<PersistentVolumeClaim>::namespaced(ctx.client.clone(), &claim.namespace);
    if claims.list(&ListParams::default()).await?.items.iter().any(|c| c.metadata.uid.as_deref() == Some(uid)) {
        return Ok(true);
    }
    let volumes = Api::<PersistentVolume>::all(ctx.client.clone());
    Ok(volumes.get_opt(&format!("{PREFIX}{uid}")).await?.is_some())
}

/// Takes the mark off the Dot of a volume that is about to be published, before the call is answered.
///
/// # Errors
///
/// A conflict if another object has the name by now; the API server refuses or doesn't answer.
pub async fn is_published(claim: &ClaimView, ctx: &Ctx) -> Result<(), Error> {
    if !claim.awaited {
        return Ok(());
    }
    take_off(&Api::<Dot>::namespaced(ctx.client.clone(), &claim.namespace), &claim.name, &claim.uid).await
}

#[cfg(test)]
mod tests {
    use dotgraft_api::common::ANNOTATION_CSI_NAME;
    use dotgraft_api::{FilesystemPhase, Publication};

    use super::*;
    use crate::testing::scenario::{Call, call, event, list, missing, play};
    use crate::testing::{FS, dot, filesystem, pv};

    const UID: &str = "0f5e4d1c-1111-4222-8333-444455556666";

    fn made(name: &str) -> Dot {
        let mut d = dot();
        let notes = d.metadata.annotations.get_or_insert_default();
        notes.insert(ANNOTATION_CSI_NAME.into(), name.into());
        notes.insert(AWAITED_ANNOTATION.into(), "true".into());
        d
    }
    fn pvc(uid: &str) -> serde_json::Value {
        json!({ "metadata": { "name": "db", "namespace": "team", "uid": uid }, "spec": {} })
    }
    async fn looked(dot: Dot, fill: impl FnOnce(&Ctx), fs: Filesystem, script: Vec<Call>) {
        let mut view = View::of(dot.view(None));
        view.fs = Some(fs);
        play(fill, script, |ctx| async move { look(&dot, &view, &ctx).await }).await.unwrap();
    }
    fn active() -> Filesystem {
        filesystem(Some(FilesystemPhase::Active), None)
    }
    fn asked(there: &str) -> Vec<Call> {
        vec![call("GET", "/namespaces/team/persistentvolumeclaims", list(&[pvc(there)], "PersistentVolumeClaim"))]
    }

    #[tokio::test]
    async fn a_volume_that_nobody_came_back_for_goes_once_its_claim_is_gone() {
        let name = format!("{PREFIX}{UID}");
        let mut script = asked("another");
        script.push(missing("GET", format!("/persistentvolumes/{name}")));
        script.push(event());
        script
            .push(call("DELETE", "/namespaces/team/dots/db", made(&name)).with(|b| assert_eq!(b["preconditions"]["resourceVersion"], "1")));
        looked(made(&name), |_| {}, active(), script).await;
        // Each of these is a reason to leave it.
        looked(made(&name), |_| {}, active(), asked(UID)).await;
        let mut script = asked("another");
        script.push(call("GET", format!("/persistentvolumes/{name}"), pv(&name, "x", FS)));
        looked(made(&name), |_| {}, active(), script).await;
        looked(made("pvc-of-a-test"), |_| {}, active(), vec![]).await;
        let mut young = made(&name);
        young.metadata.creation_timestamp = Some(dotgraft_api::Time(jiff::Timestamp::now()));
        looked(young, |_| {}, active(), vec![]).await;
        let mut known = made(&name);
        known.metadata.annotations.get_or_insert_default().remove(AWAITED_ANNOTATION);
        looked(known, |_| {}, active(), vec![]).await;
    }

    #[tokio::test]
    async fn what_somebody_has_or_has_used_is_marked_so_for_good() {
        let name = format!("{PREFIX}{UID}");
        let marked = || {
            let off = |b: &serde_json::Value| assert!(b["metadata"]["annotations"][AWAITED_ANNOTATION].is_null(), "{b}");
            vec![call("PATCH", "/namespaces/team/dots/db", made("x")).with(off)]
        };
        looked(made(&name), |ctx| ctx.caches.volumes.fill([pv("a", dotgraft_api::common::DRIVER_NAME, FS)]), active(), marked()).await;
        looked(made(&name), |ctx| ctx.caches.commits.fill([crate::testing::commit("c", 1)]), active(), marked()).await;
        let mut published = active();
        published.spec.published_to = vec![Publication { node: "n1".into(), read_only: false }];
        looked(made(&name), |_| {}, published, marked()).await;
        let claim = made(&name).view(None);
        play(|_| {}, marked(), |ctx| async move { is_published(&claim, &ctx).await }).await.unwrap();
    }
}
