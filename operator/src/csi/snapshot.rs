//! Snapshots: a snapshot is a Commit object with the name of the call in an annotation. It has no owner reference to its Dot, so it
//! outlives it: the Filesystem stays, `Headless`, until the last snapshot of it goes (csi.md §1).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dotgraft_api::common::ANNOTATION_CSI_NAME;
use dotgraft_api::{Commit, CommitSource, CommitSpec, ConditionType, DesiredState, Filesystem, FilesystemPhase, condition, is_true};
use dotgraft_proto::csi::v1 as wire;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};

use super::error::CsiError;
use super::find::{self, PATIENCE, Volume, csi_name, until};
use super::ids::{self, SnapshotId, required};
use crate::caches::{csi_term, fs_term};
use crate::claim::own;
use crate::commit::copies_named;
use crate::context::Ctx;
use crate::names::{self, FS_LABEL, SNAPSHOT_COPIES_ANNOTATION, TRANSIENT_LABEL, sha256_hex};
use crate::write;

/// On Commits that CSI made: size of the volume then, in bytes.
const ANNOTATION_SIZE: &str = "dotgraft.dev/csi-size";
/// On how many nodes a snapshot must be durable to be ready ([`SNAPSHOT_COPIES_ANNOTATION`]): 1 (usual) to 8, the owner's among them.
const PARAMETER_COPIES: &str = "dotgraft.dev/snapshot-copies";
const SIDECARS: &str = "csi.storage.k8s.io/";

/// A snapshot's objects.
pub struct Found {
    /// Its Commit.
    pub commit: Commit,
    /// The Filesystem it is in; perhaps without a head.
    pub fs: Filesystem,
}

fn id_of(commit: &Commit) -> Option<SnapshotId> {
    let status = commit.status.as_ref()?;
    SnapshotId::parse(&format!("{}@{}", status.fs_id.as_ref()?, status.id.as_ref()?))
}

/// The same, if the Filesystem may well be that of the Commit: its status alone proves nothing.
fn proven_id(commit: &Commit, ctx: &Ctx) -> Option<SnapshotId> {
    let id = id_of(commit)?;
    let fs = ctx.caches.filesystems.get(&id.fs.to_string())?;
    own::may_keep(&fs, &commit.namespace().unwrap_or_default(), ctx).then_some(id)
}

/// Size of the volume that the snapshot is of, then; of what it is now where that was not recorded.
pub fn size(commit: &Commit, ctx: &Ctx) -> u64 {
    let recorded = commit.annotations().get(ANNOTATION_SIZE).and_then(|s| s.parse().ok());
    recorded.unwrap_or_else(|| {
        let (source, namespace) = (&commit.spec.source, commit.namespace().unwrap_or_default());
        crate::claim::cached(ctx, source.kind, &namespace, &source.name).and_then(|c| c.capacity.ok()).unwrap_or_default()
    })
}

/// The snapshot on the wire, once it is made.
fn on_wire(commit: &Commit, ctx: &Ctx) -> Option<wire::Snapshot> {
    let (id, status) = (id_of(commit)?, commit.status.as_ref()?);
    let time = status.time.as_ref().map(|t| prost_types::Timestamp { seconds: t.0.as_second(), nanos: t.0.subsec_nanosecond() });
    Some(wire::Snapshot {
        size_bytes: i64::try_from(size(commit, ctx)).unwrap_or(i64::MAX),
        snapshot_id: id.to_string(),
        source_volume_id: id.fs.to_string(),
        creation_time: time,
        ready_to_use: is_ready(commit, &id, ctx),
        ..wire::Snapshot::default()
    })
}

/// Durable on as many nodes as its class asks for; the owner's is one of them. What no copy holds any more isn't.
fn is_ready(commit: &Commit, id: &SnapshotId, ctx: &Ctx) -> bool {
    let wanted = copies_named(commit);
    if commit.status.as_ref().is_some_and(|s| is_true(&s.conditions, ConditionType::NoCopyLeft).is_some()) {
        return false;
    }
    let commit = id.commit.to_string();
    let copies = || ctx.caches.replicas.with(&id.fs.to_string()).into_iter().filter(|r| r.spec.desired.state == DesiredState::Present);
    wanted <= 1 || copies().filter(|r| r.status.as_ref().is_some_and(|s| find::holds(s, &commit))).count() >= wanted
}

/// On how many nodes it is to be.
fn copies(parameters: &HashMap<String, String>) -> Result<u32, CsiError> {
    if let Some(key) = parameters.keys().find(|k| !k.starts_with(SIDECARS) && *k != PARAMETER_COPIES) {
        return Err(CsiError::Invalid(format!("there is no snapshot parameter {key}")));
    }
    let Some(text) = parameters.get(PARAMETER_COPIES) else { return Ok(1) };
    let number = text.parse().ok().filter(|n| (1..=8).contains(n));
    number.ok_or_else(|| CsiError::Invalid(format!("{PARAMETER_COPIES} is `{text}`: a number from 1 to 8")))
}

/// More copies than the volume keeps would be waited for in vain.
fn check_copies(copies: u32, volume: &Volume) -> Result<(), CsiError> {
    let kept = volume.claim.placement.replicas.saturating_add(1);
    if copies <= kept {
        return Ok(());
    }
    Err(CsiError::Invalid(format!(
        "{PARAMETER_COPIES} is {copies}, but the volume is kept on {kept} node(s): raise its placement.replicas, or use another VolumeSnapshotClass"
    )))
}

/// `CreateSnapshot`: makes the Commit, or finds the one that a call of that name has made, and waits until it is durable.
///
/// # Errors
///
/// `NOT_FOUND` without its volume, `ALREADY_EXISTS` if another has the name, `INVALID_ARGUMENT` for more copies than
/// the volume keeps, `ABORTED` until it is durable.
pub async fn create(request: &wire::CreateSnapshotRequest, ctx: &Ctx) -> Result<wire::Snapshot, CsiError> {
    let name = required("name", &request.name)?;
    required("source_volume_id", &request.source_volume_id)?;
    let copies = copies(&request.parameters)?;
    let handle = ids::volume(&request.source_volume_id)?;
    if handle.is_read_only() {
        return Err(CsiError::Invalid("a read-only volume is a commit already".into()));
    }
    let fs_id = handle.fs().to_string();
    for known in ctx.caches.commits.with(&csi_term(name)) {
        match proven_id(&known, ctx) {
            Some(id) if id.fs == handle.fs() => {}
            Some(_) => return Err(CsiError::Exists(format!("there is a snapshot `{name}` of another volume"))),
            None => continue,
        }
        if let Some(snapshot) = on_wire(&known, ctx).filter(|_| known.metadata.deletion_timestamp.is_none()) {
            return Ok(snapshot);
        }
    }
    let volume = find::volume(&handle, ctx).await?;
    check_copies(copies, &volume)?;
    let namespaced = request.parameters.get("csi.storage.k8s.io/volumesnapshot/namespace");
    let named = request.parameters.get("csi.storage.k8s.io/volumesnapshot/name");
    let message = match (namespaced, named) {
        (Some(namespace), Some(name)) => format!("VolumeSnapshot {namespace}/{name}"),
        _ => format!("snapshot {name}"),
    };
    let marks = Marks { transient: false, copies };
    let commit = make(&object_name("snapshot", name), name, &message, &marks, &volume, ctx).await?;
    let source = commit.spec.source.name != volume.claim.name || commit.spec.source.kind != volume.claim.kind;
    if source || csi_name(&commit) != Some(name) {
        return Err(CsiError::Exists(format!("there is a snapshot `{name}` of something else than volume `{fs_id}`")));
    }
    let made = settle(&commit, &volume, ctx).await?;
    on_wire(&made, ctx).ok_or_else(|| CsiError::InProgress("the snapshot is being made".into()))
}

fn object_name(prefix: &str, name: &str) -> String {
    let mut hash = sha256_hex(name.as_bytes());
    hash.truncate(16);
    format!("{prefix}-{hash}")
}

/// What a Commit of CSI's carries besides.
struct Marks {
    transient: bool,
    copies: u32,
}

/// The Commit of that name; made if it isn't there.
async fn make(object: &str, name: &str, message: &str, marks: &Marks, volume: &Volume, ctx: &Ctx) -> Result<Commit, CsiError> {
    let api: Api<Commit> = Api::namespaced(ctx.client.clone(), &volume.claim.namespace);
    if let Some(commit) = api.get_opt(object).await? {
        return match commit.metadata.deletion_timestamp {
            Some(_) => Err(CsiError::InProgress(format!("Commit `{object}` of before is being deleted"))),
            None => Ok(commit),
        };
    }
    let size = volume.claim.capacity.clone().unwrap_or_default();
    let mut labels = BTreeMap::from([(FS_LABEL.to_owned(), volume.fs.name_any())]);
    let mut annotations =
        BTreeMap::from([(ANNOTATION_CSI_NAME.to_owned(), name.to_owned()), (ANNOTATION_SIZE.to_owned(), size.to_string())]);
    if marks.copies > 1 {
        annotations.insert(SNAPSHOT_COPIES_ANNOTATION.to_owned(), marks.copies.to_string());
    }
    if marks.transient {
        labels.insert(TRANSIENT_LABEL.to_owned(), "true".to_owned());
    }
    let commit = Commit {
        metadata: ObjectMeta {
            name: Some(object.to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: CommitSpec {
            source: CommitSource { kind: volume.claim.kind, name: volume.claim.name.clone() },
            message: message.to_owned(),
            ..CommitSpec::default()
        },
        status: None,
    };
    let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    Ok(api.create(&params, &commit).await?)
}

/// Waits until the commit is made and recorded, as one of that volume.
async fn settle(commit: &Commit, volume: &Volume, ctx: &Ctx) -> Result<Arc<Commit>, CsiError> {
    let of_it = |c: &Commit| id_of(c).is_some_and(|id| id.fs.to_string() == volume.fs.name_any());
    let (namespace, name) = (commit.namespace().unwrap_or_default(), commit.name_any());
    let cached = || ctx.caches.commits.get_in(&namespace, &name).filter(|c| c.uid() == commit.uid());
    if let Some(made) = until(PATIENCE, || cached().filter(|c| of_it(c))).await {
        return Ok(made);
    }
    let ready = cached()
        .and_then(|c| condition(&c.status.as_ref()?.conditions, ConditionType::Ready).map(|r| format!("{}: {}", r.reason, r.message)));
    let why = ready.unwrap_or_else(|| "the operator has not looked at it yet".into());
    Err(CsiError::InProgress(format!("Commit {namespace}/{name} is not made yet: {why}")))
}

/// A commit of `volume` to clone from, for the call `name`; its id.
///
/// # Errors
///
/// `ABORTED` until it is durable; as [`create`].
pub async fn transient(name: &str, volume: &Volume, ctx: &Ctx) -> Result<String, CsiError> {
    let marks = Marks { transient: true, copies: 1 };
    let commit = make(&object_name("clone", name), name, &format!("to clone for {name}"), &marks, volume, ctx).await?;
    let made = settle(&commit, volume, ctx).await?;
    id_of(&made).map(|id| id.commit.to_string()).ok_or_else(|| CsiError::InProgress("the commit to clone is being made".into()))
}

/// The clone is there: the commit it began from isn't needed any more.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn drop_transient(name: &str, namespace: &str, ctx: &Ctx) -> Result<(), CsiError> {
    let object = object_name("clone", name);
    // Seldom there; a cache that lags leaves it to the Commit's controller, which ends those that were left behind.
    let Some(commit) = ctx.caches.commits.get_in(namespace, &object) else { return Ok(()) };
    let ours = commit.labels().contains_key(TRANSIENT_LABEL) && csi_name(commit.as_ref()) == Some(name);
    if ours && commit.metadata.deletion_timestamp.is_none() {
        write::delete(&Api::<Commit>::namespaced(ctx.client.clone(), namespace), commit.as_ref()).await?;
    }
    Ok(())
}

/// The objects of a snapshot, from the API server. Also of a Commit that a user made: that may be restored from, too.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn find(id: &SnapshotId, ctx: &Ctx) -> Result<Option<Found>, CsiError> {
    let fs_id = id.fs.to_string();
    let Some(fs) = find::filesystem(&fs_id, ctx).await? else { return Ok(None) };
    if fs.status.as_ref().is_some_and(|s| s.phase == FilesystemPhase::Deleting) {
        return Ok(None);
    }
    let wanted = |c: &Commit| id_of(c) == Some(*id) && c.metadata.deletion_timestamp.is_none();
    let namespaces = own::live_namespaces(&fs, ctx).await?;
    for known in ctx.caches.commits.with(&fs_term(&fs_id)).iter().filter(|c| wanted(c)) {
        let namespace = known.namespace().unwrap_or_default();
        if !namespaces.contains(&namespace.as_str()) {
            continue;
        }
        let api: Api<Commit> = Api::namespaced(ctx.client.clone(), &namespace);
        if let Some(commit) = api.get_opt(&known.name_any()).await?.filter(wanted) {
            return Ok(Some(Found { commit, fs }));
        }
    }
    // The watch may lag behind another operator's work.
    for namespace in namespaces {
        let list = Api::<Commit>::namespaced(ctx.client.clone(), namespace).list(&ListParams::default()).await?;
        if let Some(commit) = list.items.into_iter().find(wanted) {
            return Ok(Some(Found { commit, fs }));
        }
    }
    Ok(None)
}

/// `DeleteSnapshot`: deletes the Commit that `CreateSnapshot` has made; success for what isn't there or isn't ours.
///
/// # Errors
///
/// `FAILED_PRECONDITION` while a Branch or a mount needs it, `ABORTED` while it goes.
pub async fn delete(snapshot_id: &str, ctx: &Ctx) -> Result<(), CsiError> {
    let Some(id) = SnapshotId::parse(required("snapshot_id", snapshot_id)?) else { return Ok(()) };
    let known = ctx.caches.commits.with(&fs_term(&id.fs.to_string())).into_iter().find(|c| id_of(c) == Some(id));
    let commit = match find(&id, ctx).await? {
        Some(found) => Arc::new(found.commit),
        None => match known {
            Some(going) => going,
            None => return Ok(()),
        },
    };
    if csi_name(commit.as_ref()).is_none() {
        return Ok(());
    }
    if commit.metadata.deletion_timestamp.is_none() {
        write::delete(&write::namespaced::<Commit>(&ctx.client, commit.as_ref()), commit.as_ref()).await?;
    }
    let (namespace, name) = (commit.namespace().unwrap_or_default(), commit.name_any());
    let left = || ctx.caches.commits.get_in(&namespace, &name).filter(|c| c.uid() == commit.uid());
    // Whoever needs it is no business of a second.
    let needed = |c: &Commit| c.status.as_ref().is_some_and(|s| is_true(&s.conditions, ConditionType::Pinned).is_some());
    until(PATIENCE, || left().is_none_or(|c| needed(&c)).then_some(())).await;
    if left().is_none() {
        return Ok(());
    }
    let conditions = left().and_then(|c| c.status.clone()).unwrap_or_default().conditions;
    let pinned = is_true(&conditions, ConditionType::Pinned);
    let waits = condition(&conditions, ConditionType::Ready).map(|c| c.message.clone()).unwrap_or_default();
    match pinned {
        Some(by) => Err(CsiError::InUse(format!("the snapshot is needed: {}", by.message))),
        None => Err(CsiError::InProgress(format!("the snapshot is being deleted: {waits}"))),
    }
}

/// Snapshots that a call of `ListSnapshots` may show, oldest first.
pub fn all(request: &wire::ListSnapshotsRequest, ctx: &Ctx) -> Vec<(SnapshotId, Arc<Commit>)> {
    let commits = match (SnapshotId::parse(&request.snapshot_id), request.source_volume_id.as_str()) {
        (Some(id), _) => ctx.caches.commits.with(&fs_term(&id.fs.to_string())),
        (None, "") if request.snapshot_id.is_empty() => ctx.caches.commits.all(),
        (None, _) if !request.snapshot_id.is_empty() => Vec::new(),
        (None, source) => ctx.caches.commits.with(&fs_term(source)),
    };
    let mut list: Vec<(SnapshotId, Arc<Commit>)> = commits
        .into_iter()
        .filter(|c| csi_name(c.as_ref()).is_some() && c.metadata.deletion_timestamp.is_none() && !c.labels().contains_key(TRANSIENT_LABEL))
        .filter_map(|c| Some((proven_id(&c, ctx)?, c)))
        .filter(|(id, _)| request.snapshot_id.is_empty() || id.to_string() == request.snapshot_id)
        .filter(|(id, _)| request.source_volume_id.is_empty() || id.fs.to_string() == request.source_volume_id)
        .collect();
    list.sort_by_key(|(id, _)| *id);
    list
}

/// One of [`all`] on the wire.
pub fn entry(commit: &Commit, ctx: &Ctx) -> Option<wire::Snapshot> {
    on_wire(commit, ctx)
}

/// `GetSnapshot`.
///
/// # Errors
///
/// `NOT_FOUND` if there is none.
pub async fn get(snapshot_id: &str, ctx: &Ctx) -> Result<wire::Snapshot, CsiError> {
    let missing = || CsiError::NotFound(format!("there is no snapshot `{snapshot_id}`"));
    let id = SnapshotId::parse(required("snapshot_id", snapshot_id)?).ok_or_else(missing)?;
    let found = find(&id, ctx).await?.filter(|f| csi_name(&f.commit).is_some()).ok_or_else(missing)?;
    on_wire(&found.commit, ctx).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use dotgraft_api::{CopyRole, Replica, ReplicaSpec};

    use super::*;
    use crate::filesystem::spare::Marks;
    use crate::pools::tests::pool_id;
    use crate::testing;
    use crate::testing::scenario::play;

    /// A copy that holds the snapshot.
    fn holding(node: &str, state: DesiredState) -> Replica {
        let mut spec = ReplicaSpec { fs_id: testing::FS.into(), node: node.into(), pool: pool_id(node), ..ReplicaSpec::default() };
        spec.desired.state = state;
        let mut r = testing::replica(spec, Marks::default(), CopyRole::Replica);
        let status = r.status.get_or_insert_default();
        (status.role, status.kept, status.kept_complete) = (CopyRole::Replica, vec![testing::FS.into()], true);
        r
    }

    #[tokio::test]
    async fn a_snapshot_is_ready_on_as_many_copies_that_stay_as_its_class_asks_for() {
        let ready = async |copies: &str, lost: bool, replicas: Vec<Replica>| {
            let mut commit = testing::recorded(testing::commit("s", 1));
            commit.metadata.annotations = Some([(SNAPSHOT_COPIES_ANNOTATION.to_owned(), copies.to_owned())].into());
            let status = commit.status.get_or_insert_default();
            status.fs_id = Some(testing::FS.into());
            let none = crate::conditions::wanted(ConditionType::NoCopyLeft, true, ConditionType::NoCopyLeft, "gone");
            let now = dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
            status.conditions = if lost { crate::conditions::merge(&[], &[none], None, &now) } else { Vec::new() };
            let id = id_of(&commit).unwrap();
            play(|ctx| ctx.caches.replicas.fill(replicas), vec![], |ctx| async move { is_ready(&commit, &id, &ctx) }).await
        };
        let (stays, goes) = (DesiredState::Present, DesiredState::Absent);
        assert!(ready("1", false, vec![]).await, "its owner's is one of them");
        assert!(!ready("1", true, vec![]).await, "no copy holds it any more");
        assert!(ready("2", false, vec![holding("n1", stays), holding("n2", stays)]).await);
        assert!(!ready("2", false, vec![holding("n1", stays), holding("n2", goes)]).await, "that copy is going");
        assert!(!ready("2", false, vec![holding("n1", stays)]).await);
    }
}
