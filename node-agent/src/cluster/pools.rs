//! Every `NodePool`: everybody's, as the list of peers; our own, whose status this agent writes and whose `orphanActions` it obeys.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::common::{MANAGER_AGENT, Time};
use dotgraft_api::condition::{ConditionUpdate, set_condition};
use dotgraft_api::quantity::human;
use dotgraft_api::{NodePool, NodePoolStatus, Orphan, Orphans};
use dotgraft_engine::ids::{NodeName, PoolId};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::watch::{Change, Freshness, Watch};
use super::{ClusterError, backoff, timed};
use crate::peer::directory::{Fingerprint, PeerDirectory, PeerInfo};

/// Our own status is written at most so often.
const SPACING: Duration = Duration::from_secs(1);
/// Orphans that are listed by name; the rest is only counted.
const MAX_ORPHANS: usize = 100;

/// What this agent has to say about its pool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolFacts {
    /// The pool that is mounted.
    pub pool: Option<PoolId>,
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes that new copies could use; shown in steps of 1 % of `capacity`.
    pub available: u64,
    /// What the pool can do.
    pub features: Vec<String>,
    /// `uname -r`.
    pub kernel_release: String,
    /// Copies that nothing in the API asks for, all of them.
    pub orphans: Vec<Orphan>,
    /// All conditions; what isn't here goes away.
    pub conditions: Vec<Fact>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// `Ready`, `PoolMissing` …
    pub kind: String,
    /// `None`: unknown.
    pub status: Option<bool>,
    /// CamelCase word.
    pub reason: String,
    /// Sentence.
    pub message: String,
}

/// Our own NodePool. A cheap clone.
#[derive(Debug, Clone)]
pub struct OwnPool {
    facts: Arc<watch::Sender<Option<PoolFacts>>>,
    object: watch::Receiver<Option<Arc<NodePool>>>,
}

impl OwnPool {
    /// The newest facts. Never waits; written when they differ from what the API has.
    pub fn set(&self, facts: PoolFacts) {
        self.facts.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&facts);
            *old = Some(facts);
            changed
        });
    }

    /// The object as the watch shows it, for `spec.orphanActions`; `None` until the operator has made it.
    pub fn object(&self) -> watch::Receiver<Option<Arc<NodePool>>> {
        self.object.clone()
    }

    /// Waits until the operator has made the object.
    pub async fn exists(&self) -> Option<Arc<NodePool>> {
        let mut object = self.object.clone();
        object.wait_for(Option::is_some).await.ok().and_then(|o| o.clone())
    }
}

/// Starts watching every `NodePool`: peers into `directory`, ours into the answer.
pub fn start(client: Client, node: NodeName, directory: PeerDirectory) -> (OwnPool, Freshness) {
    let (out, events) = mpsc::channel(64);
    let (watch, fresh) = Watch::new(client.clone(), "NodePools", None, out);
    let (object, own) = watch::channel(None);
    let (facts, wanted) = watch::channel(None);
    tokio::spawn(watch.run());
    tokio::spawn(distribute(events, node.clone(), directory, object));
    tokio::spawn(write_status(Api::all(client), node, own.clone(), wanted));
    (OwnPool { facts: Arc::new(facts), object: own }, fresh)
}

async fn distribute(
    mut events: mpsc::Receiver<Change<NodePool>>,
    me: NodeName,
    directory: PeerDirectory,
    own: watch::Sender<Option<Arc<NodePool>>>,
) {
    while let Some(event) = events.recv().await {
        match event {
            Change::Synced => {}
            Change::Changed(pool) => {
                let name = pool.name_any();
                if name == me.as_str() {
                    own.send_replace(Some(Arc::clone(&pool)));
                }
                let Ok(node) = name.parse::<NodeName>() else { continue };
                match peer(&pool) {
                    Some(info) => directory.update(node, info),
                    // Revoked, or not yet signed: nobody.
                    None => directory.remove(&node),
                }
            }
            Change::Gone(name) => {
                if name == me.as_str() {
                    own.send_replace(None);
                }
                if let Ok(node) = name.parse() {
                    directory.remove(&node);
                }
            }
        }
    }
}

/// Address and certificates, if both make sense. A fingerprint that doesn't is left out.
fn peer(pool: &NodePool) -> Option<PeerInfo> {
    let address = pool.spec.address.parse().ok()?;
    let fingerprints: Vec<Fingerprint> = pool.spec.fingerprints.iter().filter_map(|f| f.parse().ok()).collect();
    (!fingerprints.is_empty()).then_some(PeerInfo { address, fingerprints })
}

async fn write_status(
    api: Api<NodePool>,
    me: NodeName,
    mut own: watch::Receiver<Option<Arc<NodePool>>>,
    mut wanted: watch::Receiver<Option<PoolFacts>>,
) {
    // Our last write, until the watch shows something as new.
    let mut written: Option<NodePool> = None;
    let mut failures = 0;
    loop {
        let now = newest(own.borrow_and_update().as_deref(), written.as_ref());
        let facts = wanted.borrow_and_update().clone();
        let next = now.zip(facts).and_then(|(now, facts)| {
            let next = status(&facts, &now, Timestamp::now());
            (now.status.as_ref() != Some(&next)).then_some(next)
        });
        let Some(next) = next else {
            tokio::select! {
                r = own.changed() => if r.is_err() { return },
                r = wanted.changed() => if r.is_err() { return },
            }
            continue;
        };
        match write(&api, &me, &next).await {
            Ok(pool) => {
                written = Some(pool);
                failures = 0;
                tokio::time::sleep(SPACING).await;
            }
            Err(e) => {
                tracing::warn!(error = %e, failures, "NodePool status not written, trying again");
                tokio::time::sleep(backoff(Duration::from_millis(500), Duration::from_secs(30), failures)).await;
                failures += 1;
            }
        }
    }
}

async fn write(api: &Api<NodePool>, me: &NodeName, status: &NodePoolStatus) -> Result<NodePool, ClusterError> {
    let body = json!({
        "apiVersion": NodePool::api_version(&()),
        "kind": NodePool::kind(&()),
        "metadata": { "name": me },
        "status": status,
    });
    timed(api.patch_status(me.as_str(), &PatchParams::apply(MANAGER_AGENT).force(), &Patch::Apply(&body))).await
}

/// The newer of what the watch shows and what our write was answered with; nothing if the object isn't there.
fn newest(watched: Option<&NodePool>, written: Option<&NodePool>) -> Option<NodePool> {
    let watched = watched?;
    let version = |p: &NodePool| p.resource_version().and_then(|v| v.parse::<u64>().ok());
    let same_object = written.filter(|w| w.uid() == watched.uid());
    Some(same_object.filter(|w| version(w) > version(watched)).unwrap_or(watched).clone())
}

/// The status that `facts` make, with what needn't change kept from `now`.
fn status(facts: &PoolFacts, now: &NodePool, at: Timestamp) -> NodePoolStatus {
    let old = now.status.clone().unwrap_or_default();
    let mut conditions = old.conditions;
    conditions.retain(|c| facts.conditions.iter().any(|f| f.kind == c.type_));
    for fact in &facts.conditions {
        let update = ConditionUpdate {
            type_: &fact.kind,
            status: fact.status,
            reason: &fact.reason,
            message: &fact.message,
            observed_generation: now.metadata.generation,
        };
        set_condition(&mut conditions, &update, &Time(whole_second(at)));
    }
    let old_available = (old.capacity_bytes == facts.capacity).then_some(old.available_bytes);
    let mut orphans = facts.orphans.clone();
    orphans.sort_by(|a, b| a.fs_id.cmp(&b.fs_id));
    orphans.truncate(MAX_ORPHANS);
    let available = quantise(facts.available, facts.capacity, old_available);
    NodePoolStatus {
        observed_generation: now.metadata.generation,
        pool: facts.pool.map(|p| p.to_string()),
        capacity_bytes: facts.capacity,
        available_bytes: available,
        capacity: human(facts.capacity),
        available: human(available),
        features: facts.features.clone(),
        kernel_release: facts.kernel_release.clone(),
        orphans: Orphans { count: u32::try_from(facts.orphans.len()).unwrap_or(u32::MAX), items: orphans },
        conditions,
    }
}

/// As the API server keeps times, so that our own write doesn't look like a change.
fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Rounds down to 1 % of `capacity`. A value within one step of the `shown` one keeps it: no writing back and forth at an edge.
fn quantise(available: u64, capacity: u64, shown: Option<u64>) -> u64 {
    let step = (capacity / 100).max(1);
    match shown {
        Some(shown) if shown % step == 0 && available.abs_diff(shown.saturating_add(step / 2)) <= step => shown,
        _ => available / step * step,
    }
}

#[cfg(test)]
#[path = "pools_tests.rs"]
mod tests;
