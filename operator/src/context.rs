//! What every reconcile gets: the client, the caches, metrics, events, and a little memory between runs. Ground: it knows no controller.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dotgraft_api::common::event_note;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::Instant;

use crate::ca::{MAX_LIFE, SHORTEST_LIFE};
use crate::caches::Caches;
use crate::metrics::Metrics;
use crate::names;
use crate::note::Note;

/// What a claim in a namespace with a limit was last granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its namespace.
    pub namespace: String,
    /// Bytes, with all copies.
    pub bytes: u64,
    /// The caches have had the claim since.
    pub seen: bool,
    /// When that was.
    pub at: Instant,
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
    /// Most volumes with figures of their own.
    pub volume_metrics: usize,
    /// Seconds for which a volume that CSI made waits for its PV while its PVC is gone.
    pub forsaken_after: u32,
    recorder: Recorder,
    failures: Mutex<HashMap<String, u32>>,
    written: Mutex<HashMap<String, Instant>>,
    grants: Mutex<BTreeMap<String, Grant>>,
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
            certificate_life: MAX_LIFE,
            spare_after: None,
            volume_metrics: 1000,
            forsaken_after: 900,
            failures: Mutex::default(),
            written: Mutex::default(),
            grants: Mutex::default(),
        }
    }

    /// Copies of ours that nothing needs go after so many seconds.
    #[must_use]
    pub fn with_spare_after(mut self, seconds: Option<u64>) -> Self {
        self.spare_after = seconds;
        self
    }

    /// So many volumes have figures of their own.
    #[must_use]
    pub const fn with_volume_metrics(mut self, most: usize) -> Self {
        self.volume_metrics = most;
        self
    }

    /// A volume that nobody came back for goes after so many seconds.
    #[must_use]
    pub const fn with_forsaken_after(mut self, seconds: u32) -> Self {
        self.forsaken_after = seconds;
        self
    }

    /// Signs certificates for at most that long, between [`SHORTEST_LIFE`] and [`MAX_LIFE`].
    #[must_use]
    pub fn with_certificate_life(mut self, life: Duration) -> Self {
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

    /// What each claim in a namespace with a limit was last granted, by UID ([`crate::claim::limit`]).
    pub fn grants(&self) -> MutexGuard<'_, BTreeMap<String, Grant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes events; one that can't be published is logged, never a failure of the work.
    pub async fn notes(&self, about: &ObjectReference, action: &str, notes: Vec<Note>) {
        for note in notes {
            let event = Event {
                type_: if note.warning { EventType::Warning } else { EventType::Normal },
                reason: note.reason,
                note: Some(event_note(&note.message).to_owned()),
                action: action.to_owned(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, about).await {
                tracing::debug!(%error, reason = event.reason, "publishing an event");
            }
        }
    }
}
