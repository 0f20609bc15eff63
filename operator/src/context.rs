//! What every reconcile gets: the client, the caches, metrics, events, and a little memory between runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dotgraft_api::common::{ANNOTATION_CSI_NAME, GROUP};
use dotgraft_api::{Branch, Commit, Dot, DotOperation, Filesystem, NodePool, Replica, ReplicationJob};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::names;
use crate::pvc;

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
    /// PVCs, by the claim term of what their `dataSourceRef` names.
    pub claims: Arc<Cache<PersistentVolumeClaim>>,
    /// PVs, by [`fs_term`] if they are of this driver, and by the claim term of their PVC.
    pub volumes: Arc<Cache<PersistentVolume>>,
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
            claims: Cache::new("persistentvolumeclaim", |p| {
                let from = p.spec.as_ref().and_then(|s| s.data_source_ref.as_ref());
                let ours = from.filter(|r| r.api_group.as_deref() == Some(GROUP));
                ours.map(|r| claim_term(&r.kind, &p.namespace().unwrap_or_default(), &r.name)).into_iter().collect()
            }),
            volumes: Cache::new("persistentvolume", |v| {
                let mut terms: Vec<String> = pvc::decide::filesystem_of(v).map(|id| fs_term(&id)).into_iter().collect();
                let claim = v.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).filter(|_| !terms.is_empty());
                let name = claim.and_then(|c| Some(claim_term("PersistentVolumeClaim", c.namespace.as_ref()?, c.name.as_ref()?)));
                terms.extend(name);
                terms
            }),
            requests: Cache::new("certificatesigningrequest", |_| Vec::new()),
        }
    }
}

impl Caches {
    /// Whether each has been listed and none is failing.
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
            && self.claims.fresh()
            && self.volumes.fresh()
            && self.requests.fresh()
    }
}

/// Shared by all reconciles.
pub struct Ctx {
    /// Client with the operator's own token.
    pub client: Client,
    /// Namespace of our programs: CA, Lease, `ServiceAccount`s.
    pub namespace: String,
    /// What the watches saw.
    pub caches: Caches,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Longest life of an agent's certificate.
    pub certificate_life: Duration,
    /// Seconds after which copies of ours that nothing needs go; `None`: they stay.
    pub spare_after: Option<u64>,
    recorder: Recorder,
    failures: Mutex<HashMap<String, u32>>,
    written: Mutex<HashMap<String, Instant>>,
}

/// A change that people should read about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whether something is wrong.
    pub warning: bool,
    /// `CamelCase` word.
    pub reason: String,
    /// Sentence.
    pub message: String,
}

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Bound of the small memories; beyond it they are cleared, which costs a few early writes.
const MEMORY: usize = 100_000;

impl Ctx {
    /// A context with empty caches.
    pub fn new(client: Client, namespace: String, identity: String, metrics: Arc<Metrics>) -> Self {
        let reporter = Reporter { controller: names::FIELD_MANAGER.into(), instance: Some(identity) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            namespace,
            caches: Caches::default(),
            metrics,
            certificate_life: crate::signer::check::MAX_LIFE,
            spare_after: None,
            failures: Mutex::default(),
            written: Mutex::default(),
        }
    }

    /// Copies of ours that nothing needs go after so many seconds.
    #[must_use]
    pub fn with_spare_after(mut self, seconds: Option<u64>) -> Self {
        self.spare_after = seconds;
        self
    }

    /// Signs certificates for at most that long, between [`crate::signer::check::SHORTEST_LIFE`] and seven days.
    #[must_use]
    pub fn with_certificate_life(mut self, life: Duration) -> Self {
        use crate::signer::check::{MAX_LIFE, SHORTEST_LIFE};
        self.certificate_life = life.clamp(SHORTEST_LIFE, MAX_LIFE);
        self
    }

    /// How long to wait after one more failure in a row: doubles from half a second to a minute.
    pub fn backoff(&self, what: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() > MEMORY {
            failures.clear();
        }
        let count = failures.entry(what.to_owned()).or_insert(0);
        let wait = BACKOFF_FIRST.saturating_mul(1 << (*count).min(10)).min(BACKOFF_MAX);
        *count = count.saturating_add(1);
        wait
    }
    /// It went well: the next failure starts from the shortest wait.
    pub fn succeeded(&self, what: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(what);
    }

    /// Remaining time before `what` may be written again, if it was written less than `gap` ago.
    pub fn too_soon(&self, what: &str, gap: Duration) -> Option<Duration> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(what).and_then(|at| gap.checked_sub(at.elapsed())).filter(|left| !left.is_zero())
    }
    /// `what` was written just now.
    pub fn wrote(&self, what: &str) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.len() > MEMORY {
            written.clear();
        }
        written.insert(what.to_owned(), Instant::now());
    }

    /// Publishes events; one that can't be published is logged, never a failure of the work.
    pub async fn notes(&self, about: &ObjectReference, action: &str, notes: Vec<Note>) {
        for note in notes {
            let event = Event {
                type_: if note.warning { EventType::Warning } else { EventType::Normal },
                reason: note.reason,
                note: Some(note.message.chars().take(1000).collect()),
                action: action.to_owned(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, about).await {
                tracing::debug!(%error, reason = event.reason, "publishing an event");
            }
        }
    }
}
