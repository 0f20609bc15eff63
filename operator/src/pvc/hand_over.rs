//! A volume follows its PV: where an administrator has bound that to a PVC of another namespace, there is its Dot (csi.md §1,
//! ADR 30).
//!
//! The word of an administrator is the PV itself, which no role of a namespace writes: its `claimRef` names the PVC by UID. A Filesystem is taken
//! from a Dot that a PVC had, which was never more than that PVC's volume, and from nobody (phase `Released`). A Dot or Branch that somebody made
//! keeps what it has for as long as it is there.

use std::collections::BTreeMap;

use dotgraft_api::common::ANNOTATION_CSI_NAME;
use dotgraft_api::{ClaimKind, Dot, DotSpec, Filesystem, FilesystemPhase, Placement, parse_quantity};
use dotgraft_engine::handle::VolumeHandle;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::claim::{ClaimView, own};
use crate::context::Ctx;
use crate::csi;
use crate::error::Error;
use crate::handle::handle_of;
use crate::names;
use crate::write;

/// The PVC that a PV is bound to, by the PV.
struct To {
    namespace: String,
    name: String,
    uid: String,
}

fn bound_to(pv: &PersistentVolume) -> Option<To> {
    let bound = pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let c = pv.spec.as_ref()?.claim_ref.clone().filter(|_| bound && pv.metadata.deletion_timestamp.is_none())?;
    Some(To { namespace: c.namespace?, name: c.name?, uid: c.uid? })
}

/// Whether the Filesystem goes to the namespace of the PVC. `holder`: the Dot or Branch that it is bound to, if that is there.
fn follows(fs: &Filesystem, holder: Option<&ClaimView>, namespace: &str) -> bool {
    match (fs.status.as_ref().map(|s| s.phase), holder) {
        (Some(FilesystemPhase::Active | FilesystemPhase::Released), Some(holder)) => {
            holder.namespace != namespace && holder.csi_name.is_some() && holder.kind == ClaimKind::Dot
        }
        (Some(FilesystemPhase::Released), None) => true,
        _ => false,
    }
}

/// Gives what the PV writes to the namespace of the PVC that it is bound to, if it isn't there.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn follow(pv: &PersistentVolume, ctx: &Ctx) -> Result<(), Error> {
    let Some(VolumeHandle::Head(id)) = handle_of(pv) else { return Ok(()) };
    let (id, Some(to)) = (id.to_string(), bound_to(pv)) else { return Ok(()) };
    let seen = ctx.caches.filesystems.get(&id);
    if seen.as_ref().is_some_and(|fs| follows(fs, own::holder(fs, ctx).as_ref(), &to.namespace)) {
        take(pv, &id, &to, ctx).await?;
    }
    leave(pv, &id, &to, ctx).await
}

/// By what the API server says now, each step safe to repeat: first the Dot, then the Filesystem is its.
async fn take(pv: &PersistentVolume, id: &str, to: &To, ctx: &Ctx) -> Result<(), Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(ctx.client.clone(), &to.namespace);
    let is_its = |pvc: &PersistentVolumeClaim| {
        let volume = pvc.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        pvc.uid().as_ref() == Some(&to.uid) && volume == Some(&pv.name_any()) && pvc.metadata.deletion_timestamp.is_none()
    };
    if !claims.get_opt(&to.name).await?.is_some_and(|pvc| is_its(&pvc)) {
        return Ok(());
    }
    let filesystems: Api<Filesystem> = Api::all(ctx.client.clone());
    let Some(fs) = filesystems.get_opt(id).await? else { return Ok(()) };
    let holder = own::live_holder(&fs, ctx).await?;
    let namespace = own::live_namespace_uid(&to.namespace, ctx).await?;
    if !follows(&fs, holder.as_ref(), &to.namespace) || namespace.is_none() {
        return Ok(());
    }
    let Some(dot) = dot(pv, id, to, &had(id, holder.as_ref(), ctx), ctx).await? else { return Ok(()) };
    let patch = json!({
        "metadata": { "labels": { names::CLAIM_LABEL: names::claim_hash("Dot", &to.namespace, &dot.name_any()) } },
        "spec": { "claimRef": {
            "kind": "Dot", "namespace": to.namespace, "name": dot.name_any(), "uid": dot.uid(), "namespaceUid": namespace,
        } },
    });
    let fs = write::guarded(&filesystems, &fs, patch).await?;
    tracing::info!(fs = id, pv = pv.name_any(), namespace = to.namespace, "a Filesystem follows its PersistentVolume");
    match fs.status.clone() {
        Some(s) if s.phase == FilesystemPhase::Released => write::phase(&ctx.client, &fs, FilesystemPhase::Active, s.authority).await,
        _ => Ok(()),
    }
}

/// What the volume has beyond its class: a `VolumeAttributesClass` may have changed it since, and the PV still names that one.
#[derive(Debug, Default)]
struct Had {
    history_limit: Option<u64>,
    replicas: Option<u32>,
}

/// From its Dot; of one that is gone, what its copies were told last.
fn had(id: &str, holder: Option<&ClaimView>, ctx: &Ctx) -> Had {
    let told = || ctx.caches.replicas.with(id).iter().map(|r| r.spec.desired.history_limit).max().filter(|bytes| *bytes > 0);
    Had {
        history_limit: holder.and_then(|h| h.history_limit.as_ref().ok().copied()).or_else(told),
        replicas: holder.map(|h| h.placement.replicas),
    }
}

/// The Dot to be: there from an earlier try, or made. Named as the PVC where that name is free, as `CreateVolume` does.
async fn dot(pv: &PersistentVolume, id: &str, to: &To, had: &Had, ctx: &Ctx) -> Result<Option<Dot>, Error> {
    let api: Api<Dot> = Api::namespaced(ctx.client.clone(), &to.namespace);
    let class = pv.spec.as_ref().and_then(|s| s.storage_class_name.clone()).filter(|c| !c.is_empty());
    let class = match class {
        Some(name) => Api::<StorageClass>::all(ctx.client.clone()).get_opt(&name).await?,
        None => None,
    };
    let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    for name in [to.name.clone(), names::dot_of_call(&to.name, &pv.name_any())] {
        match api.create(&params, &new_dot(pv, id, (&to.namespace, &name), class.as_ref(), had)).await {
            Ok(dot) => return Ok(Some(dot)),
            Err(kube::Error::Api(s)) if s.is_already_exists() => {}
            Err(e) => return Err(e.into()),
        }
        let ours = |d: &Dot| is_of(d, pv) && d.spec.fs_id.as_deref() == Some(id) && d.metadata.deletion_timestamp.is_none();
        if let Some(dot) = api.get_opt(&name).await?.filter(ours) {
            return Ok(Some(dot));
        }
    }
    tracing::warn!(fs = id, pv = pv.name_any(), namespace = to.namespace, "both names for the Dot of this volume are taken");
    Ok(None)
}

/// What the class says, of the size that the PV has, with what the volume had.
fn new_dot(pv: &PersistentVolume, id: &str, (namespace, name): (&str, &str), class: Option<&StorageClass>, had: &Had) -> Dot {
    let size = pv.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage")).map(|q| q.0.clone());
    let spec = DotSpec { capacity: size.filter(|q| parse_quantity(q).is_ok()).unwrap_or_else(|| "1Gi".into()), ..csi::class_spec(class) };
    let spec = DotSpec { history_limit: had.history_limit.map(|bytes| bytes.to_string()).or(spec.history_limit.clone()), ..spec };
    let placement = had.replicas.map(|replicas| Placement { replicas, ..spec.placement.clone().unwrap_or_default() });
    let spec = DotSpec { placement: placement.or(spec.placement.clone()), ..spec };
    Dot {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(BTreeMap::from([(ANNOTATION_CSI_NAME.to_owned(), pv.name_any())])),
            ..ObjectMeta::default()
        },
        spec: DotSpec { fs_id: Some(id.to_owned()), ..spec },
        status: None,
    }
}

fn is_of(dot: &Dot, pv: &PersistentVolume) -> bool {
    csi::find::csi_name(dot) == Some(&pv.name_any())
}

/// Deletes the Dot that a PVC of before had: nothing is its any more, and nobody else would.
async fn leave(pv: &PersistentVolume, id: &str, to: &To, ctx: &Ctx) -> Result<(), Error> {
    let gone = |d: &Dot| is_of(d, pv) && d.namespace().as_ref() != Some(&to.namespace) && d.metadata.deletion_timestamp.is_none();
    for known in ctx.caches.dots.with(id).iter().filter(|d| gone(d)) {
        let filesystems: Api<Filesystem> = Api::all(ctx.client.clone());
        let Some(fs) = filesystems.get_opt(id).await? else { return Ok(()) };
        let here = own::live_holder(&fs, ctx).await?.is_some_and(|h| h.namespace == to.namespace);
        if here {
            write::delete(&write::namespaced::<Dot>(&ctx.client, known.as_ref()), known.as_ref()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scenario::{Call, call, missing, play};
    use crate::testing::{CLAIM_UID, FS, claim, dot as a_dot, filesystem, pv as a_pv};
    use dotgraft_api::common::DRIVER_NAME;
    use k8s_openapi::api::core::v1::Namespace;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    const UID: &str = "0198c2a5-7f00-7000-8000-0000000000b0";

    /// The PV of the Dot `db` of `team`, bound to PVC `data` of `other`.
    fn pv() -> PersistentVolume {
        let mut pv = a_pv("pvc-1", DRIVER_NAME, FS);
        let spec = pv.spec.as_mut().unwrap();
        spec.claim_ref = serde_json::from_value(json!({ "namespace": "other", "name": "data", "uid": "u1" })).unwrap();
        spec.capacity = Some([("storage".to_owned(), Quantity("64Mi".into()))].into());
        spec.persistent_volume_reclaim_policy = Some("Retain".into());
        pv.status.get_or_insert_default().phase = Some("Bound".into());
        pv
    }
    fn pvc(uid: &str) -> Call {
        let pvc = json!({ "metadata": { "name": "data", "namespace": "other", "uid": uid }, "spec": { "volumeName": "pvc-1" } });
        call("GET", "/namespaces/other/persistentvolumeclaims/data", pvc)
    }
    /// Dot `db`, as a PVC had it.
    fn of_pvc() -> Dot {
        let mut d = a_dot();
        d.metadata.annotations.get_or_insert_default().insert(ANNOTATION_CSI_NAME.into(), "pvc-1".into());
        d
    }
    fn new() -> Dot {
        let mut d = of_pvc();
        (d.metadata.name, d.metadata.namespace, d.metadata.uid) = (Some("data".into()), Some("other".into()), Some(UID.into()));
        d
    }
    fn held(dot: Option<Dot>) -> Call {
        dot.map_or_else(|| missing("GET", "/namespaces/team/dots/db"), |d| call("GET", "/namespaces/team/dots/db", d))
    }
    fn other() -> Call {
        let mut namespace = Namespace::default();
        (namespace.metadata.name, namespace.metadata.uid) = (Some("other".into()), Some("n2".into()));
        call("GET", "/api/v1/namespaces/other", namespace)
    }
    async fn run(fs: Filesystem, dots: Vec<Dot>, pv: PersistentVolume, script: Vec<Call>) {
        let fill = move |ctx: &Ctx| {
            ctx.caches.filesystems.fill([fs]);
            ctx.caches.dots.fill(dots);
        };
        play(fill, script, |ctx| async move { follow(&pv, &ctx).await }).await.unwrap();
    }

    #[test]
    fn what_a_pvc_had_or_nobody_has_follows_and_what_somebody_made_stays() {
        use FilesystemPhase::{Active, Deleting, Headless, New, Released};
        let at = |phase| filesystem(Some(phase), None);
        let mut of_pvc = claim();
        of_pvc.csi_name = Some("pvc-1".into());
        assert!(follows(&at(Active), Some(&of_pvc), "other") && !follows(&at(Active), Some(&of_pvc), "team"));
        assert!(!follows(&at(Active), Some(&claim()), "other"), "somebody's Dot");
        assert!(!follows(&at(Active), None, "other"), "an object that was lost is for `adopt`");
        assert!(follows(&at(Released), None, "other") && follows(&at(Released), None, "team"));
        for phase in [New, Deleting, Headless] {
            assert!(!follows(&at(phase), None, "other") && !follows(&at(phase), Some(&of_pvc), "other"), "{phase:?}");
        }
    }

    #[tokio::test]
    async fn a_released_filesystem_gets_a_dot_where_its_volume_is_bound() {
        let released = filesystem(Some(FilesystemPhase::Released), None);
        let script = vec![
            pvc("u1"),
            call("GET", format!("/filesystems/{FS}"), released.clone()),
            held(None),
            other(),
            call("POST", "/namespaces/other/dots", new()).with(|b| {
                assert_eq!(
                    (&b["metadata"]["name"], &b["spec"]["fsId"], &b["spec"]["capacity"]),
                    (&json!("data"), &json!(FS), &json!("64Mi"))
                );
                assert_eq!(b["metadata"]["annotations"][ANNOTATION_CSI_NAME], "pvc-1");
            }),
            call("PATCH", format!("/filesystems/{FS}"), released.clone()).with(|b| {
                let want = json!({ "kind": "Dot", "namespace": "other", "name": "data", "uid": UID, "namespaceUid": "n2" });
                assert_eq!(b["spec"]["claimRef"], want);
                assert_eq!(b["metadata"]["resourceVersion"], "1", "guarded");
            }),
            call("PUT", format!("/filesystems/{FS}/status"), released.clone()).with(|b| assert_eq!(b["status"]["phase"], "Active")),
        ];
        run(released, vec![], pv(), script).await;
    }

    #[tokio::test]
    async fn what_a_volume_attributes_class_has_changed_stays_changed() {
        let mut of_dot = claim();
        (of_dot.history_limit, of_dot.placement.replicas) = (Ok(7 << 20), 2);
        let told = |ctx: &Ctx| {
            let desired = dotgraft_api::Desired { history_limit: 5 << 20, ..Default::default() };
            let spec = dotgraft_api::ReplicaSpec { fs_id: FS.into(), node: "n1".into(), pool: FS.into(), desired };
            let role = dotgraft_api::CopyRole::Owner;
            ctx.caches.replicas.fill([crate::testing::replica(spec, crate::filesystem::spare::Marks::default(), role)]);
        };
        play(told, vec![], |ctx| async move {
            let made = |had: &Had| new_dot(&pv(), FS, ("other", "data"), None, had).spec;
            let handed = made(&had(FS, Some(&of_dot), &ctx));
            assert_eq!((handed.history_limit, handed.placement.unwrap().replicas), (Some((7 << 20).to_string()), 2));
            let released = made(&had(FS, None, &ctx));
            assert_eq!(released.history_limit, Some((5 << 20).to_string()), "as its copies were told last");
            assert_eq!(made(&Had::default()).history_limit, csi::class_spec(None).history_limit);
        })
        .await;
    }

    #[tokio::test]
    async fn a_pv_that_names_another_claim_than_the_one_that_is_there_gives_nothing() {
        let released = filesystem(Some(FilesystemPhase::Released), None);
        run(released.clone(), vec![], pv(), vec![pvc("another")]).await;
        let mut unbound = pv();
        unbound.status.get_or_insert_default().phase = Some("Released".into());
        run(released.clone(), vec![], unbound, vec![]).await;
        let mut reads = pv();
        reads.spec.as_mut().unwrap().csi.as_mut().unwrap().volume_handle = format!("ro/{FS}");
        run(released, vec![], reads, vec![]).await;
    }

    #[tokio::test]
    async fn what_the_watches_saw_is_not_enough_to_take_it() {
        let active = filesystem(Some(FilesystemPhase::Active), None);
        let users = call("GET", "/namespaces/team/dots/db", a_dot());
        let script = vec![pvc("u1"), call("GET", format!("/filesystems/{FS}"), active.clone()), users, other()];
        let mut seen = of_pvc();
        seen.spec.fs_id = Some(FS.into());
        let fill = move |ctx: &Ctx| {
            ctx.caches.filesystems.fill([filesystem(Some(FilesystemPhase::Active), None)]);
            ctx.caches.dots.fill([seen]);
        };
        let take = |ctx: std::sync::Arc<Ctx>| async move {
            let (pv, fs) = (pv(), ctx.caches.filesystems.get(FS).unwrap());
            assert!(follows(&fs, own::holder(&fs, &ctx).as_ref(), "other"));
            take(&pv, FS, &bound_to(&pv).unwrap(), &ctx).await
        };
        play(fill, script, take).await.unwrap();
    }

    #[tokio::test]
    async fn the_dot_of_before_goes_once_the_other_one_has_all() {
        let mut moved = filesystem(Some(FilesystemPhase::Active), None);
        let r = &mut moved.spec.claim_ref;
        (r.namespace, r.name, r.uid) = ("other".into(), "data".into(), Some(UID.into()));
        let there = |fs: &Filesystem| call("GET", format!("/filesystems/{FS}"), fs.clone());
        let script = vec![
            there(&moved),
            call("GET", "/namespaces/other/dots/data", new()),
            call("DELETE", "/namespaces/team/dots/db", of_pvc()).with(|b| assert_eq!(b["preconditions"]["uid"], CLAIM_UID)),
        ];
        run(moved.clone(), vec![of_pvc(), new()], pv(), script).await;
        let users = a_dot();
        run(moved.clone(), vec![users, new()], pv(), vec![]).await;
        // A handover that isn't done yet takes nothing away.
        run(moved.clone(), vec![of_pvc()], pv(), vec![there(&moved), missing("GET", "/namespaces/other/dots/data")]).await;
    }
}
