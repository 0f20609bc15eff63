//! Objects as tests need them: small, valid, one line each.

pub mod scenario;

use std::collections::BTreeMap;

use dotgraft_api::{
    Authority, ClaimKind, ClaimRef, Commit, CommitSource, CommitSpec, ConditionType, CopyRole, DesiredState, Filesystem, FilesystemPhase,
    FilesystemSpec, FilesystemStatus, JobSource, JobTarget, Replica, ReplicaSpec, ReplicaStatus, ReplicationJob, ReplicationJobSpec, Time,
};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume};
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;

use crate::claim::{ClaimObject, ClaimView};
use crate::filesystem::spare::Marks;
use crate::names;

/// A Filesystem id.
pub const FS: &str = "0198c2a5-7f00-7000-8000-000000000001";
/// UID of the claim.
pub const CLAIM_UID: &str = "0198c2a5-7f00-7000-8000-0000000000aa";

/// UID of namespace `team`.
pub const NAMESPACE_UID: &str = "0198c2a5-7f00-7000-8000-0000000000ab";

fn uid(name: &str) -> String {
    let hex = names::sha256_hex(name.as_bytes());
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}

/// Metadata in namespace `team`.
pub fn meta(name: &str, created: i64, finalizer: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some("team".into()),
        uid: Some(uid(name)),
        generation: Some(1),
        resource_version: Some("1".into()),
        creation_timestamp: Some(Time(Timestamp::from_second(created).unwrap())),
        finalizers: Some(vec![finalizer.into()]),
        ..ObjectMeta::default()
    }
}

/// A held, active one-shot job of Dot `db` to a node.
pub fn job(name: &str, node: &str, created: i64) -> ReplicationJob {
    ReplicationJob {
        metadata: meta(name, created, names::JOB_FINALIZER),
        spec: ReplicationJobSpec {
            source: JobSource { names: vec!["db".into()], selector: None },
            target: JobTarget { node: node.into() },
            ..ReplicationJobSpec::default()
        },
        status: None,
    }
}

/// A held Commit of Dot `db`.
pub fn commit(name: &str, created: i64) -> Commit {
    Commit {
        metadata: meta(name, created, names::COMMIT_FINALIZER),
        spec: CommitSpec { source: CommitSource { kind: ClaimKind::Dot, name: "db".into() }, message: "m".into(), ..CommitSpec::default() },
        status: None,
    }
}
/// The same with its result.
pub fn recorded(mut c: Commit) -> Commit {
    c.status.get_or_insert_default().id = Some(FS.into());
    c
}
/// The same in deletion.
pub fn deleted(mut c: Commit) -> Commit {
    c.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    c
}

/// The Filesystem [`FS`] of Dot `db`.
pub fn filesystem(phase: Option<FilesystemPhase>, authority: Option<Authority>) -> Filesystem {
    let mut metadata = meta(FS, 1, names::FILESYSTEM_FINALIZER);
    metadata.namespace = None;
    Filesystem {
        metadata,
        spec: FilesystemSpec {
            claim_ref: ClaimRef {
                kind: ClaimKind::Dot,
                namespace: "team".into(),
                name: "db".into(),
                uid: Some(CLAIM_UID.into()),
                namespace_uid: Some(NAMESPACE_UID.into()),
            },
            ..FilesystemSpec::default()
        },
        status: phase.map(|phase| FilesystemStatus { phase, authority }),
    }
}

/// The view of Dot `db`, bound to [`FS`].
pub fn claim() -> ClaimView {
    let mut view = dot().view(None);
    view.had_filesystem = true;
    view
}

/// Namespace `team`.
pub fn namespace() -> Namespace {
    let metadata = ObjectMeta { name: Some("team".into()), uid: Some(NAMESPACE_UID.into()), ..ObjectMeta::default() };
    Namespace { metadata, ..Namespace::default() }
}

/// A Replica whose agent has done what is desired.
pub fn replica(spec: ReplicaSpec, marks: Marks, role: CopyRole) -> Replica {
    let mut metadata = meta(&names::replica_name(&spec.fs_id, &spec.pool), 1, names::REPLICA_FINALIZER);
    metadata.namespace = None;
    let labels = [(names::UNMANAGED_LABEL, marks.unmanaged), (names::OURS_LABEL, marks.ours)];
    metadata.labels = Some(labels.into_iter().filter(|(_, on)| *on).map(|(name, _)| (name.to_owned(), "true".to_owned())).collect());
    let since = marks.spare_since.map(|s| (names::SPARE_ANNOTATION.to_owned(), Timestamp::from_second(s).expect("a second").to_string()));
    metadata.annotations = since.map(|s| [s].into());
    let role = if spec.desired.state == DesiredState::Absent { CopyRole::Deleting } else { role };
    let status = ReplicaStatus { observed_generation: Some(1), role, epoch: spec.desired.epoch, ..ReplicaStatus::default() };
    Replica { metadata, spec, status: Some(status) }
}

/// The same, gone from its pool.
pub fn confirmed(replica: &Replica) -> Replica {
    let mut r = replica.clone();
    let s = r.status.get_or_insert_default();
    s.role = CopyRole::Absent;
    s.observed_generation = r.metadata.generation;
    r
}

/// Dot `db`, bound to [`FS`].
pub fn dot() -> dotgraft_api::Dot {
    let mut metadata = meta("db", 1, names::CLAIM_FINALIZER);
    metadata.uid = Some(CLAIM_UID.into());
    metadata.annotations = Some(BTreeMap::from([(names::ALLOCATED_ANNOTATION.to_owned(), CLAIM_UID.to_owned())]));
    let spec = dotgraft_api::DotSpec { capacity: "1Gi".into(), fs_id: Some(FS.into()), ..dotgraft_api::DotSpec::default() };
    dotgraft_api::Dot { metadata, spec, status: None }
}

/// A `PersistentVolume` of a driver.
pub fn pv(name: &str, driver: &str, handle: &str) -> PersistentVolume {
    serde_json::from_value(
        serde_json::json!({ "metadata": { "name": name }, "spec": { "csi": { "driver": driver, "volumeHandle": handle } } }),
    )
    .unwrap()
}

/// A ready pool of `n<i>` and its Node.
pub fn node_pool(node: &str) -> (dotgraft_api::NodePool, k8s_openapi::api::core::v1::Node) {
    let metadata = ObjectMeta { name: Some(node.into()), ..ObjectMeta::default() };
    let ready = crate::conditions::merge(
        &[],
        &[crate::conditions::wanted(ConditionType::Ready, true, ConditionType::Ready, "")],
        Some(1),
        &Time(Timestamp::UNIX_EPOCH),
    );
    let status = dotgraft_api::NodePoolStatus {
        pool: Some(crate::pools::tests::pool_id(node)),
        capacity_bytes: 10 << 30,
        available_bytes: 9 << 30,
        conditions: ready,
        ..dotgraft_api::NodePoolStatus::default()
    };
    let spec = dotgraft_api::NodePoolSpec { node: node.into(), pool_group: "default".into(), ..dotgraft_api::NodePoolSpec::default() };
    let pool = dotgraft_api::NodePool { metadata: metadata.clone(), spec, status: Some(status) };
    (pool, k8s_openapi::api::core::v1::Node { metadata, ..k8s_openapi::api::core::v1::Node::default() })
}

/// Fills the caches for pools of these nodes.
pub fn with_pools(ctx: &crate::context::Ctx, nodes: &[&str]) {
    let (pools, objects): (Vec<_>, Vec<_>) = nodes.iter().map(|n| node_pool(n)).unzip();
    ctx.caches.pools.fill(pools);
    ctx.caches.nodes.fill(objects);
}
