//! When what was seen: watches claims, pods and attachments of a test and notes the moment of each step by the test's own clock, as
//! Kubernetes' own times have whole seconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// A claim's moments.
#[derive(Clone, Debug)]
pub struct ClaimTimes {
    /// First seen.
    pub made: Instant,
    /// First seen `Bound`.
    pub bound: Option<Instant>,
}

/// A pod's moments; a pod made anew under the same name is another one.
#[derive(Clone, Debug)]
pub struct PodTimes {
    /// Its name.
    pub name: String,
    /// Where it was scheduled to.
    pub node: Option<String>,
    /// First seen.
    pub made: Instant,
    /// First seen with a node.
    pub scheduled: Option<Instant>,
    /// First seen with all containers running.
    pub started: Option<Instant>,
    /// First seen with a deletion time.
    pub ending: Option<Instant>,
    /// Its object went.
    pub gone: Option<Instant>,
}

/// An attachment's moments.
#[derive(Clone, Debug)]
pub struct AttachmentTimes {
    /// To which node.
    pub node: String,
    /// First seen.
    pub made: Instant,
    /// First seen attached: `ControllerPublish` has answered.
    pub attached: Option<Instant>,
}

#[derive(Default)]
struct Seen {
    claims: BTreeMap<String, ClaimTimes>,
    attachments: BTreeMap<String, AttachmentTimes>,
    pods: BTreeMap<String, PodTimes>,
}

/// Watches from when it is made until it is dropped.
pub struct Timeline {
    seen: Arc<Mutex<Seen>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Timeline {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Timeline {
    /// Of the claims and pods of a namespace, and of all attachments.
    pub fn of(client: &Client, namespace: &str) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let claims = watch(Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace), seen.clone(), on_claim);
        let pods = watch(Api::<Pod>::namespaced(client.clone(), namespace), seen.clone(), on_pod);
        let attachments = watch(Api::<VolumeAttachment>::all(client.clone()), seen.clone(), on_attachment);
        Self { seen, tasks: vec![claims, pods, attachments] }
    }

    /// Seconds from made to bound of every claim that is bound.
    pub fn bound(&self) -> Vec<f64> {
        let claims = &lock(&self.seen).claims;
        claims.values().filter_map(|c| Some(c.bound?.duration_since(c.made).as_secs_f64())).collect()
    }

    /// Seconds from scheduled to started of every pod that has started.
    pub fn started(&self) -> Vec<f64> {
        self.pods().iter().filter_map(|p| Some(p.started?.saturating_duration_since(p.scheduled?).as_secs_f64())).collect()
    }

    /// The attachments to a node, as seen.
    pub fn attachments(&self, node: &str) -> Vec<AttachmentTimes> {
        lock(&self.seen).attachments.values().filter(|a| a.node == node).cloned().collect()
    }

    /// All pods that were seen, the first made first.
    pub fn pods(&self) -> Vec<PodTimes> {
        let mut all: Vec<PodTimes> = lock(&self.seen).pods.values().cloned().collect();
        all.sort_by_key(|p| p.made);
        all
    }
}

fn watch<K>(api: Api<K>, seen: Arc<Mutex<Seen>>, on: fn(&mut Seen, &K, bool)) -> JoinHandle<()>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let mut events = watcher(api, watcher::Config::default()).boxed();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) => on(&mut lock(&seen), &object, false),
                Ok(Event::Delete(object)) => on(&mut lock(&seen), &object, true),
                Ok(Event::Init | Event::InitDone) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await, // the API server may be away: that is a test's business
            }
        }
    })
}

fn on_claim(seen: &mut Seen, claim: &PersistentVolumeClaim, _gone: bool) {
    let now = Instant::now();
    let times = seen.claims.entry(claim.name_any()).or_insert(ClaimTimes { made: now, bound: None });
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") {
        times.bound.get_or_insert(now);
    }
}

fn on_attachment(seen: &mut Seen, attachment: &VolumeAttachment, _gone: bool) {
    let now = Instant::now();
    let new = AttachmentTimes { node: attachment.spec.node_name.clone(), made: now, attached: None };
    let times = seen.attachments.entry(attachment.uid().unwrap_or_default()).or_insert(new);
    if attachment.status.as_ref().is_some_and(|s| s.attached) {
        times.attached.get_or_insert(now);
    }
}

fn on_pod(seen: &mut Seen, pod: &Pod, gone: bool) {
    let now = Instant::now();
    let new = PodTimes { name: pod.name_any(), node: None, made: now, scheduled: None, started: None, ending: None, gone: None };
    let times = seen.pods.entry(pod.uid().unwrap_or_default()).or_insert(new);
    if let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone()) {
        times.node = Some(node);
        times.scheduled.get_or_insert(now);
    }
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    if !containers.is_empty() && containers.iter().all(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())) {
        times.started.get_or_insert(now);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        times.ending.get_or_insert(now);
    }
    if gone {
        times.gone.get_or_insert(now);
    }
}
