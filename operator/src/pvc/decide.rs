//! What a PVC asks for by `dataSourceRef`, whether it can have it, and the PV that it gets: pure.

use dotgraft_api::common::{DRIVER_NAME, GROUP, TOPOLOGY_POOL};
use dotgraft_api::{ClaimKind, ConditionType, Word, parse_quantity};
use dotgraft_engine::handle::VolumeHandle;
use dotgraft_engine::ids::FsId;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::conditions::Block;
use crate::handle::handle_of;
use crate::names::FS_LABEL;

/// What a PVC's `dataSourceRef` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// That very Dot or Branch.
    Claim(ClaimKind, String),
    /// A volume of its own that begins with that Commit.
    Commit(String),
}

/// What the PVC means, if it is one that we have to give a volume: of ours, without a volume, not going.
///
/// # Errors
///
/// The inner error: the [`Block`] that says what is wrong with it.
pub fn source(pvc: &PersistentVolumeClaim) -> Option<Result<Source, Block>> {
    let spec = pvc.spec.as_ref()?;
    let given = spec.volume_name.as_ref().is_some_and(|v| !v.is_empty());
    let from = spec.data_source_ref.as_ref().filter(|r| r.api_group.as_deref() == Some(GROUP))?;
    if given || pvc.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if from.namespace.as_ref().is_some_and(|n| *n != pvc.namespace().unwrap_or_default()) {
        let why = "a volume of another namespace can't be used: make the PVC in the namespace of what it names";
        return Some(Err(Block::new(Word::OtherNamespace, why)));
    }
    Some(match from.kind.as_str() {
        "Dot" => Ok(Source::Claim(ClaimKind::Dot, from.name.clone())),
        "Branch" => Ok(Source::Claim(ClaimKind::Branch, from.name.clone())),
        "Commit" => Ok(Source::Commit(from.name.clone())),
        other => Err(Block::new(Word::UnknownSource, format!("a volume can't be made from a {other}: name a Dot, a Branch or a Commit"))),
    })
}

/// Bytes that the PVC asks for.
pub fn requested(pvc: &PersistentVolumeClaim) -> u64 {
    let requests = pvc.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("storage")).and_then(|q| parse_quantity(&q.0).ok()).unwrap_or_default()
}

/// A way in which a volume is used, with what Kubernetes calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Only to read, from a commit.
    pub read_only: bool,
    /// As the PVC has them.
    pub modes: Vec<String>,
}

/// How the PVC wants to use the volume; a directory, written from one node or read from many.
///
/// # Errors
///
/// The [`Block`] that says what no volume of ours can.
pub fn access(pvc: &PersistentVolumeClaim) -> Result<Access, Block> {
    let spec = pvc.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Block::new(ConditionType::Unsupported, "block volumes are not supported: use volumeMode Filesystem"));
    }
    let modes = spec.access_modes.unwrap_or_default();
    let all = |of: &[&str]| !modes.is_empty() && modes.iter().all(|m| of.contains(&m.as_str()));
    if all(&["ReadWriteOnce", "ReadWriteOncePod"]) {
        Ok(Access { read_only: false, modes })
    } else if all(&["ReadOnlyMany"]) {
        Ok(Access { read_only: true, modes })
    } else {
        let why = "a volume is written from one node at a time: use ReadWriteOnce or ReadWriteOncePod, or ReadOnlyMany alone";
        Err(Block::new(ConditionType::Unsupported, why))
    }
}

/// Name of the PV for a Filesystem: one that writes and one that reads, so that the API server itself refuses a second.
pub fn volume_name(fs: FsId, read_only: bool) -> String {
    if read_only { format!("dotgraft-ro-{fs}") } else { format!("dotgraft-{fs}") }
}

/// What a PV is made of.
#[derive(Debug, Clone)]
pub struct Volume<'a> {
    /// Its name: [`volume_name`] for a Dot or Branch that somebody has; the PVC's own for what is made for it.
    pub name: String,
    /// What it is.
    pub handle: VolumeHandle,
    /// How it is used.
    pub access: &'a Access,
    /// Its size in bytes.
    pub capacity: u64,
    /// Its pool group.
    pub group: &'a str,
    /// What becomes of the volume when the claim goes: `Retain` for what a user made.
    pub reclaim: &'a str,
    /// `mountOptions` of the class.
    pub options: &'a [String],
}

/// The PV: bound to exactly this PVC by its UID (bound within 0.1 s; without UID the binder takes 12 s).
pub fn volume(pvc: &PersistentVolumeClaim, v: &Volume<'_>) -> Value {
    let fs_id = v.handle.fs().to_string();
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": v.name,
            "labels": { FS_LABEL: fs_id },
            // Without it a PV that is to be deleted stays `Released` for ever.
            "annotations": { "pv.kubernetes.io/provisioned-by": DRIVER_NAME },
        },
        "spec": {
            "accessModes": v.access.modes,
            "capacity": { "storage": v.capacity.to_string() },
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": pvc.namespace(), "name": pvc.name_any(), "uid": pvc.uid(),
            },
            "csi": { "driver": DRIVER_NAME, "volumeHandle": v.handle.to_string(), "readOnly": v.access.read_only },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": TOPOLOGY_POOL, "operator": "In", "values": [v.group] }] },
            ] } },
            "mountOptions": v.options,
            "persistentVolumeReclaimPolicy": v.reclaim,
            "storageClassName": pvc.spec.as_ref().and_then(|s| s.storage_class_name.clone()),
            "volumeMode": "Filesystem",
        },
    })
}

/// Made here, to be taken away here when its claim is gone: nobody else takes a `Retain` PV away, and the data is not its own.
pub fn is_ours_to_drop(pv: &PersistentVolume) -> bool {
    let spec = pv.spec.clone().unwrap_or_default();
    let named = handle_of(pv).is_some_and(|h| [true, false].iter().any(|ro| volume_name(h.fs(), *ro) == pv.name_any()));
    named && spec.persistent_volume_reclaim_policy.as_deref() == Some("Retain") && pv.metadata.deletion_timestamp.is_none()
}

/// Whether what a volume holds is kept as long as this PV is there: it writes the head and says `Retain`. Only administrators, and programs of
/// theirs, write PVs. Those that are made here for a Dot or Branch that somebody has keep nothing: they go with their PVC.
pub fn keeps_data(pv: &PersistentVolume) -> bool {
    let retains = pv.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Retain");
    let writes = handle_of(pv).is_some_and(|h| !h.is_read_only());
    retains && writes && pv.metadata.deletion_timestamp.is_none() && !is_ours_to_drop(pv)
}

/// The PVC that a PV is bound to, as `namespace/name`.
pub fn bound_claim(pv: &PersistentVolume) -> Option<String> {
    let bound = pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let claim = pv.spec.as_ref()?.claim_ref.as_ref().filter(|_| bound)?;
    Some(format!("{}/{}", claim.namespace.as_deref()?, claim.name.as_deref()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::handle::filesystem_of;
    use crate::testing::FS;

    /// A PVC `data` of namespace `team` that names `kind`/`db`.
    pub fn pvc(kind: &str, modes: &[&str]) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": { "name": "data", "namespace": "team", "uid": "u1" },
            "spec": {
                "accessModes": modes, "storageClassName": "dotgraft",
                "resources": { "requests": { "storage": "1Gi" } },
                "dataSourceRef": { "apiGroup": "dotgraft.dev", "kind": kind, "name": "db" },
            },
        }))
        .unwrap()
    }
    fn made(access: &Access) -> PersistentVolume {
        let fs = FS.parse().unwrap();
        let v = Volume {
            name: volume_name(fs, access.read_only),
            handle: if access.read_only { VolumeHandle::Newest(fs) } else { VolumeHandle::Head(fs) },
            access,
            capacity: 1 << 30,
            group: "default",
            reclaim: "Retain",
            options: &["noexec".to_owned()],
        };
        serde_json::from_value(volume(&pvc("Dot", &["ReadWriteOnce"]), &v)).unwrap()
    }

    #[test]
    fn a_reference_of_ours_is_read_and_any_other_left_alone() {
        assert_eq!(source(&pvc("Branch", &[])), Some(Ok(Source::Claim(ClaimKind::Branch, "db".into()))));
        assert_eq!(source(&pvc("Commit", &[])), Some(Ok(Source::Commit("db".into()))));
        assert_eq!(source(&pvc("Remote", &[])).unwrap().unwrap_err().reason.as_str(), "UnknownSource");
        let edit = |f: &dyn Fn(&mut PersistentVolumeClaim)| {
            let mut p = pvc("Dot", &[]);
            f(&mut p);
            source(&p)
        };
        assert_eq!(edit(&|p| p.spec.as_mut().unwrap().volume_name = Some("pv".into())), None, "it has a volume");
        assert_eq!(edit(&|p| p.spec.as_mut().unwrap().data_source_ref = None), None);
        let other = edit(&|p| p.spec.as_mut().unwrap().data_source_ref.as_mut().unwrap().namespace = Some("x".into()));
        assert_eq!(other.unwrap().unwrap_err().reason.as_str(), "OtherNamespace");
    }

    #[test]
    fn one_node_writes_or_many_read() {
        assert!(!access(&pvc("Dot", &["ReadWriteOnce"])).unwrap().read_only);
        assert!(access(&pvc("Dot", &["ReadOnlyMany"])).unwrap().read_only);
        for modes in [&["ReadWriteMany"][..], &["ReadWriteOnce", "ReadOnlyMany"], &[]] {
            assert_eq!(access(&pvc("Dot", modes)).unwrap_err().reason.as_str(), "Unsupported", "{modes:?}");
        }
        assert_eq!(requested(&pvc("Dot", &[])), 1 << 30);
    }

    #[test]
    fn the_pv_is_this_claims_alone_and_keeps_the_data() {
        let write = Access { read_only: false, modes: vec!["ReadWriteOnce".into()] };
        let pv = made(&write);
        let spec = pv.spec.clone().unwrap();
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("u1"));
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(spec.mount_options.as_deref(), Some(&["noexec".to_owned()][..]), "those of the class");
        assert_eq!(spec.csi.unwrap().volume_handle, FS);
        assert_eq!(filesystem_of(&pv).as_deref(), Some(FS));
        assert!(is_ours_to_drop(&pv) && bound_claim(&pv).is_none());
        let mut users = pv.clone();
        users.metadata.name = Some("by-hand".into());
        assert!(!is_ours_to_drop(&users), "what an administrator made stays");
        let read = made(&Access { read_only: true, modes: vec!["ReadOnlyMany".into()] });
        assert_ne!(read.name_any(), pv.name_any());
        assert_eq!(filesystem_of(&read).as_deref(), Some(FS));
        assert!(crate::handle::is_read_only(&read) && !crate::handle::is_read_only(&pv), "its pods have no head");
    }

    #[test]
    fn a_volume_that_says_so_keeps_what_it_holds() {
        let pv = |name: &str, handle: &str, reclaim: &str| {
            let mut pv = crate::testing::pv(name, DRIVER_NAME, handle);
            pv.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some(reclaim.into());
            pv
        };
        assert!(keeps_data(&pv("pvc-1", FS, "Retain")));
        assert!(!keeps_data(&pv("pvc-1", FS, "Delete")));
        assert!(!keeps_data(&pv("pvc-1", &format!("ro/{FS}"), "Retain")), "it only reads");
        assert!(!keeps_data(&pv(&format!("dotgraft-{FS}"), FS, "Retain")), "a user's Dot: it goes with its PVC");
        let mut going = pv("pvc-1", FS, "Retain");
        going.metadata.deletion_timestamp = Some(dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert!(!keeps_data(&going));
        let mut foreign = pv("pvc-1", FS, "Retain");
        foreign.spec.as_mut().unwrap().csi.as_mut().unwrap().driver = "x".into();
        assert!(!keeps_data(&foreign));
    }

    #[test]
    fn a_bound_volume_names_its_claim() {
        let mut pv = made(&Access { read_only: false, modes: vec![] });
        pv.status.get_or_insert_default().phase = Some("Bound".into());
        assert_eq!(bound_claim(&pv).as_deref(), Some("team/data"));
        pv.status.get_or_insert_default().phase = Some("Released".into());
        assert_eq!(bound_claim(&pv), None);
    }
}
