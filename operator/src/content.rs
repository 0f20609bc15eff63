//! What administrators say of snapshots: `VolumeSnapshotContent`s, which are cluster-scoped, so no role of a namespace writes them (ADR 31).
//!
//! One that says `Retain` keeps its snapshot whatever becomes of the namespace; one that is bound to a `VolumeSnapshot` is the grant that this one's
//! namespace may start from it. Who installs no snapshot CRDs has none.

use std::borrow::Cow;
use std::sync::Arc;

use dotgraft_api::Commit;
use dotgraft_api::common::{ANNOTATION_CSI_NAME, DRIVER_NAME};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::ObjectMeta;
use kube::core::{ApiResource, ClusterResourceScope, DynamicObject, GroupVersionKind};
use kube::{Api, Resource, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::context::Ctx;
use crate::error::Error;
use crate::handle;

const GROUP: &str = "snapshot.storage.k8s.io";
const VERSION: &str = "v1";

/// Of `snapshot.storage.k8s.io/v1`, what matters here.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VolumeSnapshotContent {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Spec,
    /// What the driver has answered.
    #[serde(default)]
    pub status: Option<Handle>,
}

/// `spec`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Whose snapshot it is.
    pub driver: String,
    /// `Delete` or `Retain`.
    pub deletion_policy: String,
    /// The snapshot, where an administrator names it.
    pub source: Handle,
    /// Which `VolumeSnapshot` may have it; with its UID once that is bound.
    pub volume_snapshot_ref: ObjectReference,
}

/// A snapshot, by the id that the driver gave it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Handle {
    /// `<fsId>@<commit>`.
    pub snapshot_handle: Option<String>,
}

impl Resource for VolumeSnapshotContent {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "VolumeSnapshotContent".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "volumesnapshotcontents".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl VolumeSnapshotContent {
    /// The snapshot of ours that it is of, once that is known.
    pub fn snapshot(&self) -> Option<&str> {
        let answered = self.status.as_ref().and_then(|s| s.snapshot_handle.as_deref());
        answered.or(self.spec.source.snapshot_handle.as_deref()).filter(|_| self.spec.driver == DRIVER_NAME)
    }

    /// The Filesystem of that.
    pub fn filesystem(&self) -> Option<&str> {
        self.snapshot()?.split_once('@').map(|(fs, _)| fs)
    }

    /// Whether it keeps that snapshot. What is being deleted keeps nothing: with `Delete` the snapshot goes first.
    fn keeps(&self, snapshot: &str) -> bool {
        self.snapshot() == Some(snapshot) && self.spec.deletion_policy == "Retain" && self.metadata.deletion_timestamp.is_none()
    }

    /// Whether it grants that snapshot to a namespace; to which `VolumeSnapshot` of it, by name and UID.
    fn grants(&self, snapshot: &str, namespace: &str) -> Option<(&str, &str)> {
        let to = &self.spec.volume_snapshot_ref;
        let granted = self.snapshot() == Some(snapshot) && to.namespace.as_deref() == Some(namespace);
        Some((to.name.as_deref()?, to.uid.as_deref()?)).filter(|_| granted && self.metadata.deletion_timestamp.is_none())
    }
}

/// Term under which they are indexed by their snapshot.
pub fn snapshot_term(snapshot: &str) -> String {
    format!("snapshot/{snapshot}")
}

/// The snapshot that a Commit is, once it is made.
fn snapshot_of(commit: &Commit) -> Option<String> {
    let status = commit.status.as_ref()?;
    Some(format!("{}@{}", status.fs_id.as_ref()?, status.id.as_ref()?))
}

/// Name of the content for which the snapshotter made the snapshot: it is there before the snapshot is, and names it later.
fn made_for(commit: &Commit) -> Option<String> {
    commit.annotations().get(ANNOTATION_CSI_NAME)?.strip_prefix("snapshot-").map(|uid| format!("snapcontent-{uid}"))
}

/// Nothing if it isn't there, or its kind isn't installed: that answer has no reason in it, so `get_opt` takes it for a failure.
fn there<T>(answer: Result<T, kube::Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether a content keeps the Commit's snapshot, by what the watches saw; while they see nothing it may.
pub fn may_keep(commit: &Commit, ctx: &Ctx) -> bool {
    let Some(snapshot) = snapshot_of(commit).filter(|_| commit.namespace().as_ref() != Some(&ctx.namespace)) else { return false };
    let contents = &ctx.caches.contents;
    let known = contents.with(&snapshot_term(&snapshot));
    !contents.fresh() || known.iter().any(|c| c.keeps(&snapshot))
}

/// The same, as the API server says now.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn keeps(commit: &Commit, ctx: &Ctx) -> Result<bool, Error> {
    let Some(snapshot) = snapshot_of(commit).filter(|_| commit.namespace().as_ref() != Some(&ctx.namespace)) else { return Ok(false) };
    let mut names: Vec<String> = ctx.caches.contents.with(&snapshot_term(&snapshot)).iter().map(|c| c.name_any()).collect();
    names.extend(made_for(commit).filter(|name| !names.contains(name)));
    let api: Api<VolumeSnapshotContent> = Api::all(ctx.client.clone());
    for name in names {
        if there(api.get(&name).await)?.is_some_and(|c| c.keeps(&snapshot)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an administrator has given that snapshot to a namespace: by a content that is bound to a `VolumeSnapshot` which is there now. A UID is
/// never given twice, so a namespace that was made anew gets nothing.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn grants(snapshot: &str, namespace: &str, ctx: &Ctx) -> Result<bool, Error> {
    let api: Api<VolumeSnapshotContent> = Api::all(ctx.client.clone());
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, VERSION, "VolumeSnapshot"));
    let snapshots: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), namespace, &kind);
    for known in ctx.caches.contents.with(&snapshot_term(snapshot)).iter().filter(|c| c.grants(snapshot, namespace).is_some()) {
        let Some(content) = there(api.get(&known.name_any()).await)? else { continue };
        let Some((name, uid)) = content.grants(snapshot, namespace) else { continue };
        if there(snapshots.get(name).await)?.is_some_and(|s| s.metadata.uid.as_deref() == Some(uid)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Commits as they count for data: one that is being deleted and whose snapshot is kept isn't, until it is where nothing takes it along; nor is one
/// of which somebody has a view.
pub fn as_kept(commits: Vec<Arc<Commit>>, ctx: &Ctx) -> Vec<Arc<Commit>> {
    let stays = |mut commit: Arc<Commit>| {
        if commit.metadata.deletion_timestamp.is_some() && (may_keep(&commit, ctx) || !handle::readers(&commit, ctx).is_empty()) {
            Arc::make_mut(&mut commit).metadata.deletion_timestamp = None;
        }
        commit
    };
    commits.into_iter().map(stays).collect()
}

#[cfg(test)]
#[allow(missing_docs, clippy::missing_panics_doc)] // Only tests see it.
pub mod tests {
    use super::*;
    use crate::testing::scenario::{Call, call, missing, not_installed, play};
    use crate::testing::{FS, commit, deleted, recorded};
    use serde_json::json;

    /// The snapshot that [`recorded`] is.
    pub fn snapshot() -> String {
        format!("{FS}@{FS}")
    }
    /// A content of it, for `VolumeSnapshot` `s` of namespace `other`.
    pub fn content(policy: &str, uid: Option<&str>) -> VolumeSnapshotContent {
        serde_json::from_value(json!({
            "metadata": { "name": "snapcontent-1" },
            "spec": {
                "driver": DRIVER_NAME, "deletionPolicy": policy, "source": { "snapshotHandle": snapshot() },
                "volumeSnapshotRef": { "namespace": "other", "name": "s", "uid": uid },
            },
        }))
        .unwrap()
    }
    /// A snapshot's Commit.
    pub fn made() -> Commit {
        let mut c = recorded(commit("c", 1));
        c.status.get_or_insert_default().fs_id = Some(FS.into());
        c.metadata.annotations.get_or_insert_default().insert(ANNOTATION_CSI_NAME.into(), "snapshot-1".into());
        c
    }
    fn its(content: &VolumeSnapshotContent) -> Call {
        call("GET", "/volumesnapshotcontents/snapcontent-1", content)
    }
    fn going(mut content: VolumeSnapshotContent) -> VolumeSnapshotContent {
        content.metadata.deletion_timestamp = Some(dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        content
    }

    #[tokio::test]
    async fn a_content_that_says_so_keeps_its_snapshot() {
        let kept = |seen: Vec<VolumeSnapshotContent>, commit: Commit| {
            play(
                |ctx| ctx.caches.contents.fill(seen),
                vec![],
                |ctx| async move { as_kept(vec![Arc::new(deleted(commit))], &ctx)[0].metadata.deletion_timestamp.is_none() },
            )
        };
        assert!(kept(vec![content("Retain", None)], made()).await);
        assert!(!kept(vec![content("Delete", None)], made()).await);
        assert!(!kept(vec![going(content("Retain", None))], made()).await);
        let mut foreign = content("Retain", None);
        foreign.spec.driver = "x".into();
        assert!(!kept(vec![foreign], made()).await);
        let mut other = content("Retain", None);
        other.spec.source.snapshot_handle = Some(format!("{FS}@x"));
        assert!(!kept(vec![other], made()).await);
        let mut safe = made();
        safe.metadata.namespace = Some("dotgraft-system".into());
        assert!(!kept(vec![content("Retain", None)], safe).await, "there it goes by its own deletion only");
        let nothing_seen = play(|_| {}, vec![], |ctx| async move { may_keep(&made(), &ctx) });
        assert!(nothing_seen.await, "nobody knows");
    }

    #[tokio::test]
    async fn what_the_watches_saw_is_not_enough_to_keep_or_to_let_go() {
        let live = |seen: Vec<VolumeSnapshotContent>, answer: Call| {
            play(|ctx| ctx.caches.contents.fill(seen), vec![answer], |ctx| async move { keeps(&made(), &ctx).await.unwrap() })
        };
        assert!(live(vec![], its(&content("Retain", None))).await, "the one that it was made for");
        assert!(!live(vec![content("Retain", None)], its(&content("Delete", None))).await);
        assert!(!live(vec![content("Retain", None)], missing("GET", "/volumesnapshotcontents/snapcontent-1")).await);
        assert!(!live(vec![], not_installed("GET", "/volumesnapshotcontents/snapcontent-1")).await);
    }

    #[tokio::test]
    async fn a_bound_content_gives_its_snapshot_to_that_namespace_and_to_no_other() {
        let granted = |content: VolumeSnapshotContent, namespace: &'static str, there: Option<&'static str>| {
            let seen = content.clone();
            let mut script = Vec::new();
            if content.grants(&snapshot(), namespace).is_some() {
                script.push(its(&content));
                let path = "/namespaces/other/volumesnapshots/s";
                let object = |uid| json!({ "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": { "name": "s", "uid": uid } });
                script.push(there.map_or_else(|| missing("GET", path), |uid| call("GET", path, object(uid))));
            }
            play(
                |ctx| ctx.caches.contents.fill([seen]),
                script,
                move |ctx| async move { grants(&snapshot(), namespace, &ctx).await.unwrap() },
            )
        };
        assert!(granted(content("Delete", Some("u1")), "other", Some("u1")).await);
        assert!(!granted(content("Delete", Some("u1")), "other", Some("u2")).await, "of a namespace that was made anew");
        assert!(!granted(content("Delete", Some("u1")), "other", None).await);
        assert!(!granted(content("Delete", None), "other", Some("u1")).await, "not bound yet");
        assert!(!granted(content("Delete", Some("u1")), "third", Some("u1")).await);
        assert!(!granted(going(content("Delete", Some("u1"))), "other", Some("u1")).await);
    }
}
