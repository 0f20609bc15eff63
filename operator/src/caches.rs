//! What the watches have seen: one cache per kind that decisions are planned with, and the terms under which objects are found in it.

use std::sync::Arc;

use dotgraft_api::common::{ANNOTATION_CSI_NAME, GROUP};
use dotgraft_api::{Branch, Commit, Dot, DotOperation, Filesystem, NodePool, Replica, ReplicationJob};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use crate::cache::Cache;
use crate::content::{VolumeSnapshotContent, snapshot_term};
use crate::handle;

/// Term under which objects that belong to a claim are indexed.
pub fn claim_term(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

/// Term under which Commits are indexed by the Filesystem that they were made in.
pub fn fs_term(fs_id: &str) -> String {
    format!("fs/{fs_id}")
}

/// Term under which Commits are indexed by the CSI call that made them.
pub fn csi_term(name: &str) -> String {
    format!("csi/{name}")
}

/// Every kind that decisions are planned with.
#[derive(Clone)]
pub struct Caches {
    /// Dots, by `spec.fsId`.
    pub dots: Arc<Cache<Dot>>,
    /// Branches, by the claim term of their Dot.
    pub branches: Arc<Cache<Branch>>,
    /// Commits, by the claim term of their source, [`fs_term`] and [`csi_term`].
    pub commits: Arc<Cache<Commit>>,
    /// Jobs, by namespace.
    pub jobs: Arc<Cache<ReplicationJob>>,
    /// Operations, by the claim term of their target.
    pub operations: Arc<Cache<DotOperation>>,
    /// Filesystems, by the claim term of their claim.
    pub filesystems: Arc<Cache<Filesystem>>,
    /// Replicas, by `FsId`.
    pub replicas: Arc<Cache<Replica>>,
    /// Pools of agents.
    pub pools: Arc<Cache<NodePool>>,
    /// Nodes.
    pub nodes: Arc<Cache<Node>>,
    /// Namespaces: which of that name it is.
    pub namespaces: Arc<Cache<Namespace>>,
    /// PVCs, by the claim term of what their `dataSourceRef` names.
    pub claims: Arc<Cache<PersistentVolumeClaim>>,
    /// PVs, by [`fs_term`] if they are of this driver, and by the claim term of their PVC.
    pub volumes: Arc<Cache<PersistentVolume>>,
    /// Contents of snapshots, by [`snapshot_term`] if they are of this driver.
    pub contents: Arc<Cache<VolumeSnapshotContent>>,
    /// Certificate requests to our signer.
    pub requests: Arc<Cache<CertificateSigningRequest>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            dots: Cache::new("dot", |d| d.spec.fs_id.iter().cloned().collect()),
            branches: Cache::new("branch", |b| vec![claim_term("Dot", &b.namespace().unwrap_or_default(), &b.spec.dot)]),
            commits: Cache::new("commit", |c| {
                let s = &c.spec.source;
                let mut terms = vec![claim_term(s.kind.as_str(), &c.namespace().unwrap_or_default(), &s.name)];
                terms.extend(c.status.iter().filter_map(|s| s.fs_id.as_deref()).map(fs_term));
                terms.extend(c.annotations().get(ANNOTATION_CSI_NAME).map(|n| csi_term(n)));
                terms
            }),
            jobs: Cache::new("replicationjob", |j| vec![j.namespace().unwrap_or_default()]),
            operations: Cache::new("dotoperation", |o| {
                let t = &o.spec.target;
                vec![claim_term(t.kind.as_str(), &o.namespace().unwrap_or_default(), &t.name)]
            }),
            filesystems: Cache::new("filesystem", |f| {
                let c = &f.spec.claim_ref;
                vec![claim_term(c.kind.as_str(), &c.namespace, &c.name)]
            }),
            replicas: Cache::new("replica", |r| vec![r.spec.fs_id.clone()]),
            pools: Cache::new("nodepool", |_| Vec::new()),
            nodes: Cache::new("node", |_| Vec::new()),
            namespaces: Cache::new("namespace", |_| Vec::new()),
            claims: Cache::new("persistentvolumeclaim", |p| {
                let from = p.spec.as_ref().and_then(|s| s.data_source_ref.as_ref());
                let ours = from.filter(|r| r.api_group.as_deref() == Some(GROUP));
                ours.map(|r| claim_term(&r.kind, &p.namespace().unwrap_or_default(), &r.name)).into_iter().collect()
            }),
            volumes: Cache::new("persistentvolume", |v| {
                let mut terms: Vec<String> = handle::filesystem_of(v).map(|id| fs_term(&id)).into_iter().collect();
                let claim = v.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).filter(|_| !terms.is_empty());
                let name = claim.and_then(|c| Some(claim_term("PersistentVolumeClaim", c.namespace.as_ref()?, c.name.as_ref()?)));
                terms.extend(name);
                terms
            }),
            contents: Cache::new("volumesnapshotcontent", |c| c.snapshot().map(snapshot_term).into_iter().collect()),
            requests: Cache::new("certificatesigningrequest", |_| Vec::new()),
        }
    }
}

impl Caches {
    /// Whether each has been listed and none is failing. Contents of snapshots aren't waited for: what is decided by them asks for itself.
    pub fn fresh(&self) -> bool {
        self.dots.fresh()
            && self.branches.fresh()
            && self.commits.fresh()
            && self.jobs.fresh()
            && self.operations.fresh()
            && self.filesystems.fresh()
            && self.replicas.fresh()
            && self.pools.fresh()
            && self.nodes.fresh()
            && self.namespaces.fresh()
            && self.claims.fresh()
            && self.volumes.fresh()
            && self.requests.fresh()
    }
}
