//! `Replica.status` on its way to the API server: one task, the latest value per Replica, on change only (design §2).
//!
//! Actors never wait: [`StatusWriter::put`] replaces what is still to be written. What is a transition goes out at once, mere
//! progress (bytes, rates) at most every 5 s. A write that fails is tried again with backoff, by then with the newest value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dotgraft_api::common::MANAGER_AGENT;
use dotgraft_api::{AgentReport, Replica, ReplicaStatus};
use dotgraft_engine::ids::FsId;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{ClusterError, backoff, timed};

/// Progress of one Replica is written at most so often.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Even transitions of one Replica keep this distance.
const SPACING: Duration = Duration::from_millis(200);
/// Writes under way at once.
const PARALLEL: usize = 8;

/// Where actors leave their status. A cheap clone.
#[derive(Debug, Clone)]
pub struct StatusWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    wake: Notify,
}

/// Everything that is to be written or was. No I/O: the clock comes in as `now`.
#[derive(Debug, Default)]
struct Book {
    slots: BTreeMap<FsId, Slot>,
    /// Slots whose newest value isn't known to be in the API.
    dirty: BTreeSet<FsId>,
}

/// Which Replica object. What was written to one says nothing of a new one of the same name, which the UID tells apart here; the
/// API server itself ignores a UID when a status is applied (tried on 1.36).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Object {
    name: String,
    uid: String,
}

#[derive(Debug, Default)]
struct Slot {
    object: Object,
    latest: Option<Arc<ReplicaStatus>>,
    /// What the API has, as far as known.
    written: Option<Arc<ReplicaStatus>>,
    /// Version of the object after our last write; older observations are stale.
    version: Option<u64>,
    writing: bool,
    /// What the watch showed during a write: perhaps newer than that, as one that was given up may still arrive.
    seen: Option<(Option<u64>, Option<ReplicaStatus>)>,
    last_write: Option<Instant>,
    due: Option<Instant>,
    failures: u32,
}

impl Slot {
    fn is_dirty(&self) -> bool {
        self.latest.is_some() && self.latest != self.written
    }
    fn after_last_write(&self, pause: Duration, now: Instant) -> Instant {
        self.last_write.map_or(now, |at| (at + pause).max(now))
    }
}

impl Book {
    /// The slot of `fs`. What was said of another object is forgotten: its status isn't the new one's.
    fn slot(&mut self, fs: FsId, object: &Object) -> &mut Slot {
        let slot = self.slots.entry(fs).or_default();
        if slot.object != *object {
            *slot = Slot { object: object.clone(), ..Slot::default() };
        }
        slot
    }

    fn put(&mut self, fs: FsId, object: &Object, status: ReplicaStatus, now: Instant) {
        let slot = self.slot(fs, object);
        let transition = slot.written.as_ref().is_none_or(|old| !only_progress(old, &status));
        slot.latest = Some(Arc::new(status));
        let at = slot.after_last_write(if transition { SPACING } else { PROGRESS_EVERY }, now);
        if slot.failures == 0 {
            slot.due = Some(slot.due.map_or(at, |due| due.min(at)));
        }
        self.file(fs);
    }

    /// What a watch shows. Corrects what somebody else changed, at the pace of progress.
    fn observe(&mut self, fs: FsId, object: &Object, version: Option<u64>, status: Option<&ReplicaStatus>, now: Instant) {
        let slot = self.slot(fs, object);
        if slot.writing {
            slot.seen = Some((version, status.cloned()));
            return;
        }
        if matches!((version, slot.version), (Some(seen), Some(ours)) if seen < ours) {
            return;
        }
        slot.written = match (&slot.latest, status) {
            (Some(latest), Some(status)) if **latest == *status => Some(Arc::clone(latest)),
            (_, status) => status.cloned().map(Arc::new),
        };
        if slot.is_dirty() && slot.due.is_none() {
            slot.due = Some(slot.after_last_write(PROGRESS_EVERY, now));
        }
        self.file(fs);
    }

    /// Sorts a slot in or out of the dirty ones.
    fn file(&mut self, fs: FsId) {
        match self.slots.get_mut(&fs) {
            Some(slot) if slot.is_dirty() => {
                self.dirty.insert(fs);
            }
            Some(slot) => {
                // Also when a write that failed had arrived after all: the next one doesn't wait for a try that will not come.
                (slot.due, slot.failures) = (None, 0);
                self.dirty.remove(&fs);
            }
            None => {
                self.dirty.remove(&fs);
            }
        }
    }

    fn forget(&mut self, fs: FsId) {
        self.slots.remove(&fs);
        self.dirty.remove(&fs);
    }

    /// Takes a slot whose time has come; else says when to look again.
    fn take(&mut self, now: Instant) -> Result<Write, Option<Instant>> {
        let mut next: Option<Instant> = None;
        for fs in &self.dirty {
            let Some(slot) = self.slots.get_mut(fs).filter(|s| !s.writing) else { continue };
            let (Some(due), Some(latest)) = (slot.due, slot.latest.clone()) else { continue };
            if due <= now {
                slot.writing = true;
                slot.due = None;
                slot.last_write = Some(now);
                return Ok(Write { fs: *fs, object: slot.object.clone(), status: latest });
            }
            next = Some(next.map_or(due, |n| n.min(due)));
        }
        Err(next)
    }

    fn done(&mut self, sent: &Write, result: Result<Option<u64>, ClusterError>, now: Instant) {
        // Forgotten meanwhile, or about another object by now: says nothing of this one.
        let Some(slot) = self.slots.get_mut(&sent.fs).filter(|s| s.object == sent.object) else { return };
        slot.writing = false;
        let seen = slot.seen.take();
        match result {
            Ok(version) => {
                slot.failures = 0;
                slot.version = version;
                slot.written = Some(Arc::clone(&sent.status));
                if let Some(latest) = slot.latest.as_ref().filter(|l| **l != sent.status) {
                    let pause = if only_progress(&sent.status, latest) { PROGRESS_EVERY } else { SPACING };
                    slot.due = Some(slot.after_last_write(pause, now));
                }
            }
            // The object is gone: there is nobody to tell. If it comes again, the actor will say so anew.
            Err(ClusterError::Missing) => return self.forget(sent.fs),
            Err(e) => {
                let most = if matches!(e, ClusterError::Unreachable { .. } | ClusterError::Conflict) { 30 } else { 300 };
                slot.written = None; // it may have arrived, and may still
                slot.due = Some(now + backoff(Duration::from_millis(500), Duration::from_secs(most), slot.failures));
                if slot.failures == 0 {
                    tracing::warn!(replica = sent.object.name, error = %e, "status not written, trying again");
                }
                slot.failures = slot.failures.saturating_add(1);
            }
        }
        self.file(sent.fs);
        if let Some((version, status)) = seen {
            self.observe(sent.fs, &sent.object, version, status.as_ref(), now);
        }
    }
}

/// One write on its way.
#[derive(Debug)]
struct Write {
    fs: FsId,
    object: Object,
    status: Arc<ReplicaStatus>,
}

impl StatusWriter {
    /// Starts the task. It runs for ever.
    pub fn start(client: Client) -> Self {
        let shared = Arc::new(Shared::default());
        tokio::spawn(run(Api::all(client), Arc::clone(&shared)));
        Self(shared)
    }

    /// The newest status of `fs`, for the Replica object of that name and UID. Never waits.
    pub fn put(&self, fs: FsId, name: &str, uid: &str, status: ReplicaStatus) {
        let object = Object { name: name.to_owned(), uid: uid.to_owned() };
        self.0.lock().put(fs, &object, normal(status), Instant::now());
        self.0.wake.notify_one();
    }

    /// What the watch shows: whoever changed a status gets it corrected.
    pub fn observe(&self, fs: FsId, replica: &Replica) {
        let object = Object { name: replica.name_any(), uid: replica.uid().unwrap_or_default() };
        let version = replica.resource_version().and_then(|v| v.parse().ok());
        let status = replica.status.clone().map(normal);
        self.0.lock().observe(fs, &object, version, status.as_ref(), Instant::now());
        self.0.wake.notify_one();
    }

    /// The object is gone.
    pub fn forget(&self, fs: FsId) {
        self.0.lock().forget(fs);
    }

    /// How many Replicas have a newer status than the API.
    pub fn behind(&self) -> usize {
        self.0.lock().dirty.len()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(api: Api<Replica>, shared: Arc<Shared>) {
    let mut writes = FuturesUnordered::new();
    loop {
        let mut next = None;
        while writes.len() < PARALLEL {
            // Not in the `match` itself: the lock must be gone before anything waits.
            let taken = shared.lock().take(Instant::now());
            match taken {
                Ok(next) => writes.push(write(&api, next)),
                Err(at) => {
                    next = at;
                    break;
                }
            }
        }
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((sent, result)) = writes.next() => shared.lock().done(&sent, result, Instant::now()),
            () = shared.wake.notified() => {}
            () = timer => {}
        }
    }
}

async fn write(api: &Api<Replica>, write: Write) -> (Write, Result<Option<u64>, ClusterError>) {
    let name = &write.object.name;
    let body = json!({
        "apiVersion": Replica::api_version(&()),
        "kind": Replica::kind(&()),
        "metadata": { "name": name },
        "status": *write.status,
    });
    let params = PatchParams::apply(MANAGER_AGENT).force();
    let result = timed(api.patch_status(name, &params, &Patch::Apply(&body))).await;
    let version = result.map(|r| r.resource_version().and_then(|v| v.parse().ok()));
    (write, version)
}

/// The form in which a status comes back from the API server: times in whole seconds.
fn normal(status: ReplicaStatus) -> ReplicaStatus {
    let round_trip = serde_json::to_value(&status).and_then(serde_json::from_value);
    round_trip.unwrap_or(status)
}

/// Whether the two differ at most in numbers that run.
fn only_progress(old: &ReplicaStatus, new: &ReplicaStatus) -> bool {
    still(old) == still(new)
}

/// The status without what moves all the time.
fn still(status: &ReplicaStatus) -> ReplicaStatus {
    let mut still = ReplicaStatus { bytes: 0, file_bytes: None, written_since: None, ..status.clone() };
    if let Some(migration) = &mut still.migration {
        (migration.bytes, migration.frozen_ms) = (0, 0);
    }
    for report in still.jobs.iter_mut().filter_map(|j| j.report.as_mut()) {
        let AgentReport::Known(report) = report else { continue };
        (report.replicated_bytes, report.bytes_per_second, report.expected_bytes, report.imprecise) = (0, None, None, false);
        if let Some(step) = &mut report.current {
            (step.replicated, step.expected) = (0, None);
        }
    }
    still
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
