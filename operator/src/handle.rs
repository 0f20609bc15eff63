//! Which PVs are ours, and what their volume handles name ([`VolumeHandle`]).
//!
//! A view (ADR 37) is a PV that reads one commit, and needs that and nothing else: who has one holds the commit, not the Dot or Branch.

use dotgraft_api::Commit;
use dotgraft_api::common::DRIVER_NAME;
use dotgraft_engine::handle::VolumeHandle;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;

use crate::caches::fs_term;
use crate::context::Ctx;

/// Most readers that a message names.
const MOST_NAMED: usize = 4;

/// The handle of a PV of this driver.
pub fn handle_of(pv: &PersistentVolume) -> Option<VolumeHandle> {
    let csi = pv.spec.as_ref()?.csi.as_ref().filter(|c| c.driver == DRIVER_NAME)?;
    csi.volume_handle.parse().ok()
}

/// The Filesystem of a PV of this driver.
pub fn filesystem_of(pv: &PersistentVolume) -> Option<String> {
    handle_of(pv).map(|h| h.fs().to_string())
}

/// Of this driver, and with a handle that is only to read commits.
pub fn is_read_only(pv: &PersistentVolume) -> bool {
    handle_of(pv).is_some_and(VolumeHandle::is_read_only)
}

/// Of this driver, and a view of a commit.
pub fn is_view(pv: &PersistentVolume) -> bool {
    handle_of(pv).is_some_and(|h| h.view().is_some())
}

/// Whether somebody has the view or is about to: one whose PVC has gone is nobody's, whatever its reclaim policy.
fn is_had(pv: &PersistentVolume) -> bool {
    let phase = pv.status.as_ref().and_then(|s| s.phase.as_deref());
    pv.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Released" | "Failed"))
}

/// Who has a view of that Commit, as the watches saw, in words for those who may see its namespace: of others it names the PV alone.
pub fn readers(commit: &Commit, ctx: &Ctx) -> Vec<String> {
    let Some((fs, id)) = commit.status.as_ref().and_then(|s| s.fs_id.as_ref().zip(s.id.as_ref())) else { return Vec::new() };
    let volumes = ctx.caches.volumes.with(&fs_term(fs));
    let of_it =
        |pv: &PersistentVolume| handle_of(pv).is_some_and(|h| h.view().is_some() && h.commit().is_some_and(|c| c.to_string() == *id));
    let mut all: Vec<String> =
        volumes.iter().filter(|pv| of_it(pv) && is_had(pv)).map(|pv| reader(pv, commit.namespace().as_deref())).collect();
    all.sort();
    all.truncate(MOST_NAMED);
    all
}

fn reader(pv: &PersistentVolume, namespace: Option<&str>) -> String {
    let claim = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).filter(|c| c.namespace.as_deref() == namespace);
    match claim.and_then(|c| c.name.as_ref()) {
        Some(name) => format!("PVC {name}"),
        None => format!("PersistentVolume {} of another namespace", pv.name_any()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scenario::play;
    use crate::testing::{FS, commit, pv, recorded};

    fn view(namespace: &str, phase: &str) -> PersistentVolume {
        let mut pv = pv("pvc-1", DRIVER_NAME, &format!("ro/{FS}@{FS}/000000000000000a"));
        let claim = serde_json::json!({ "namespace": namespace, "name": "data" });
        pv.spec.as_mut().unwrap().claim_ref = serde_json::from_value(claim).unwrap();
        pv.status.get_or_insert_default().phase = Some(phase.into());
        pv
    }
    async fn told(volumes: Vec<PersistentVolume>) -> Vec<String> {
        let mut made = recorded(commit("c", 1));
        made.status.get_or_insert_default().fs_id = Some(FS.into());
        play(|ctx| ctx.caches.volumes.fill(volumes), vec![], |ctx| async move { readers(&made, &ctx) }).await
    }

    #[tokio::test]
    async fn who_has_a_view_is_named_to_its_own_namespace_alone() {
        assert_eq!(told(vec![view("team", "Bound")]).await, ["PVC data"]);
        assert_eq!(told(vec![view("team", "Pending")]).await, ["PVC data"], "it is about to be bound");
        assert_eq!(told(vec![view("other", "Bound")]).await, ["PersistentVolume pvc-1 of another namespace"]);
        assert_eq!(told(vec![view("team", "Released")]).await, Vec::<String>::new(), "its PVC is gone");
        let mut going = view("team", "Bound");
        going.metadata.deletion_timestamp = Some(dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(told(vec![going]).await, Vec::<String>::new());
        for handle in
            [FS.to_owned(), format!("ro/{FS}"), format!("ro/{FS}@{FS}"), format!("ro/{FS}@{}/000000000000000a", crate::testing::CLAIM_UID)]
        {
            assert_eq!(told(vec![pv("pvc-1", DRIVER_NAME, &handle)]).await, Vec::<String>::new(), "{handle} is no view of it");
        }
    }
}
