//! A list and watch that knows how fresh it is: the base of `replicas.rs` and `pools.rs`.
//!
//! Differs from a general reflector in three ways that matter here. Each answer of the server, bookmarks and the orderly end of a
//! watch included, counts as proof of freshness, so silence becomes visible ([`Freshness`]). An object that can't be parsed is
//! skipped, loudly, and hides no other. After a re-list only real differences are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::core::ApiResource;
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{ClusterError, backoff, timed};

/// Without proof for longer than this, what was heard counts as stale and the agent isn't ready (failures.md row 10).
pub const STALE: Duration = Duration::from_secs(60);
/// A watch ends in good order after so many seconds; that end is a proof of freshness.
const WATCH_SECONDS: u32 = 40;
/// Silence of a watch beyond its own end: the connection is dead.
const GRACE: Duration = Duration::from_secs(5);
/// Objects per page of a list.
const PAGE: u32 = 500;

/// What the watch says of objects of one kind.
#[derive(Debug, Clone)]
pub enum Change<K> {
    /// Everything that existed at one moment has been told. Comes once, after the first complete list.
    Synced,
    /// A new object or new content. The same content is not told twice in a row.
    Changed(Arc<K>),
    /// There is no object of that name any more. Never an intent to delete anything (design §4).
    Gone(String),
}

/// How fresh a watch is. A cheap clone.
#[derive(Debug, Clone)]
pub struct Freshness(Arc<State>);

#[derive(Debug)]
struct State {
    what: &'static str,
    started: Instant,
    synced: AtomicBool,
    /// Milliseconds after `started` of the last proof.
    proof: AtomicU64,
    unreadable: AtomicU64,
}

impl Freshness {
    fn new(what: &'static str) -> Self {
        let state = State {
            what,
            started: Instant::now(),
            synced: AtomicBool::new(false),
            proof: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
        };
        Self(Arc::new(state))
    }

    fn proven(&self) {
        let now = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.proof.store(now, Ordering::Relaxed);
    }

    /// Whether a complete list was received once.
    pub fn synced(&self) -> bool {
        self.0.synced.load(Ordering::Relaxed)
    }

    /// Time since the API server last proved that nothing was missed.
    pub fn age(&self) -> Duration {
        self.0.started.elapsed().saturating_sub(Duration::from_millis(self.0.proof.load(Ordering::Relaxed)))
    }

    /// Objects of the last list or since that this program couldn't read.
    pub fn unreadable(&self) -> u64 {
        self.0.unreadable.load(Ordering::Relaxed)
    }

    /// `None` if all is well, else a sentence for `/readyz`.
    pub fn trouble(&self) -> Option<String> {
        let what = self.0.what;
        if !self.synced() {
            return Some(format!("{what}: not listed yet"));
        }
        let age = self.age();
        (age > STALE).then(|| format!("{what}: nothing heard from the API server for {} s", age.as_secs()))
    }
}

/// Watches all objects of kind `K` (those that match `fields`), until the receiver is dropped.
pub struct Watch<K> {
    api: Api<DynamicObject>,
    fields: Option<String>,
    /// Name → resourceVersion of what was told.
    known: BTreeMap<String, String>,
    fresh: Freshness,
    out: mpsc::Sender<Change<K>>,
}

/// Why the loop goes round.
enum Stop {
    /// Nobody listens any more.
    Unwanted,
    /// The version is too old: list anew, at once.
    Expired,
    /// List or watch failed: wait, then go on from the last version.
    Failed(ClusterError),
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
{
    /// A watch of `what` (for people) that tells `out`. [`Watch::run`] does the work.
    pub fn new(client: Client, what: &'static str, fields: Option<String>, out: mpsc::Sender<Change<K>>) -> (Self, Freshness) {
        let fresh = Freshness::new(what);
        let api = Api::all_with(client, &ApiResource::erase::<K>(&()));
        (Self { api, fields, known: BTreeMap::new(), fresh: fresh.clone(), out }, fresh)
    }

    /// Runs until the receiver is dropped. Errors are logged and retried for ever.
    pub async fn run(mut self) {
        let mut version: Option<String> = None;
        let mut failures = 0u32;
        loop {
            let round = match &version {
                None => self.list().await,
                Some(v) => self.watch(v.clone()).await,
            };
            match round {
                Ok(v) => {
                    version = Some(v);
                    failures = 0;
                }
                Err(Stop::Unwanted) => return,
                Err(Stop::Expired) => {
                    tracing::info!(watch = self.fresh.0.what, "the API server has forgotten where this watch was: listing anew");
                    version = None;
                }
                Err(Stop::Failed(e)) => {
                    tracing::warn!(watch = self.fresh.0.what, error = %e, failures, "watch failed, trying again");
                    tokio::time::sleep(backoff(Duration::from_millis(200), Duration::from_secs(10), failures)).await;
                    failures = failures.saturating_add(1);
                    // A watch that keeps failing may do so because of its version.
                    if failures.is_multiple_of(4) {
                        version = None;
                    }
                }
            }
        }
    }

    /// A consistent list (no resourceVersion: from a quorum), told as differences. Answers the version to watch from.
    async fn list(&mut self) -> Result<String, Stop> {
        let mut params = ListParams { field_selector: self.fields.clone(), limit: Some(PAGE), ..ListParams::default() };
        let mut listed = BTreeMap::new();
        self.fresh.0.unreadable.store(0, Ordering::Relaxed);
        let version = loop {
            let page = timed(self.api.list(&params)).await.map_err(|e| expired_or(e, params.continue_token.is_some()))?;
            for object in page.items {
                let name = object.name_any();
                let version = object.resource_version().unwrap_or_default();
                if self.known.get(&name) != Some(&version) {
                    self.tell(object).await?;
                }
                listed.insert(name, version);
            }
            match page.metadata.continue_.filter(|t| !t.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        let gone: Vec<String> = self.known.keys().filter(|n| !listed.contains_key(*n)).cloned().collect();
        self.known = listed;
        for name in gone {
            self.send(Change::Gone(name)).await?;
        }
        self.fresh.proven();
        if !self.fresh.0.synced.swap(true, Ordering::Relaxed) {
            self.send(Change::Synced).await?;
        }
        Ok(version)
    }

    /// One watch from `version` until it ends. Answers the version to go on from.
    async fn watch(&mut self, mut version: String) -> Result<String, Stop> {
        let params =
            WatchParams { field_selector: self.fields.clone(), timeout: Some(WATCH_SECONDS), bookmarks: true, ..WatchParams::default() };
        let stream = timed(self.api.watch(&params, &version)).await.map_err(Stop::Failed)?;
        self.fresh.proven();
        pin_mut!(stream);
        let silence = Duration::from_secs(WATCH_SECONDS.into()) + GRACE;
        loop {
            let event = tokio::select! {
                event = tokio::time::timeout(silence, stream.next()) => event,
                () = self.out.closed() => return Err(Stop::Unwanted),
            };
            let event = match event {
                Err(_) => return Err(Stop::Failed(ClusterError::Unreachable { message: "the watch fell silent".into() })),
                Ok(None) => {
                    self.fresh.proven();
                    return Ok(version);
                }
                Ok(Some(Err(e))) => return Err(Stop::Failed(e.into())),
                Ok(Some(Ok(event))) => event,
            };
            self.fresh.proven();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    version = object.resource_version().unwrap_or(version);
                    self.known.insert(object.name_any(), version.clone());
                    self.tell(object).await?;
                }
                WatchEvent::Deleted(object) => {
                    version = object.resource_version().unwrap_or(version);
                    let name = object.name_any();
                    self.known.remove(&name);
                    self.send(Change::Gone(name)).await?;
                }
                WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) if status.code == 410 => return Err(Stop::Expired),
                WatchEvent::Error(status) => return Err(Stop::Failed(kube::Error::Api(status).into())),
            }
        }
    }

    async fn tell(&self, object: DynamicObject) -> Result<(), Stop> {
        let name = object.name_any();
        match object.try_parse::<K>() {
            Ok(parsed) => self.send(Change::Changed(Arc::new(parsed))).await,
            Err(e) => {
                self.fresh.0.unreadable.fetch_add(1, Ordering::Relaxed);
                tracing::error!(watch = self.fresh.0.what, object = name, error = %e, "this object can't be understood and is ignored");
                Ok(())
            }
        }
    }

    async fn send(&self, change: Change<K>) -> Result<(), Stop> {
        self.out.send(change).await.map_err(|_| Stop::Unwanted)
    }
}

/// A list whose continue token expired (410) starts again.
fn expired_or(e: ClusterError, continued: bool) -> Stop {
    match e {
        ClusterError::Refused { message } if continued && message.starts_with("HTTP 410") => Stop::Expired,
        e => Stop::Failed(e),
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
