//! One watch per kind for the whole program: a store, a small index, and a feed of what changed.
//!
//! Controllers read here what they *plan* with; what decides about data is read again from the API server
//! (failures.md row 10). A watch that ends is opened and listed again; what vanished meanwhile is announced too.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::reflector::{self, Lookup, ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Changes that a slow controller may lag behind before it looks at everything again.
const FEED: usize = 1024;
/// Pauses before a watch is opened again: from the first to the longest. Short, because a cluster has two operators, and until every watch
/// is open again nothing is decided and no CSI call served.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// A watch whose last word was an error, that recently, counts as broken: the longest pause and a try that isn't answered
/// (`connect_timeout`, 5 s) fit in. A watch that was opened again says nothing until something changes.
const BROKEN_FOR: Duration = Duration::from_secs(10);

/// Doubles up to its bound; starts anew once a watch has told something.
struct Pauses(Duration);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.0;
        self.0 = (now * 2).min(PAUSES.1);
        Some(now)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = PAUSES.0;
    }
}

/// What the controllers need of a kind.
pub trait Kind: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K> Kind for K where K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}

#[derive(Clone)]
enum Seen<K> {
    One(Arc<K>),
    All,
}

type Key = (String, String);

struct Index<K> {
    of: fn(&K) -> Vec<String>,
    by: HashMap<String, BTreeMap<Key, Arc<K>>>,
    terms: HashMap<Key, Vec<String>>,
}

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl<K: Kind> Index<K> {
    fn remove(&mut self, key: &Key) {
        for term in self.terms.remove(key).unwrap_or_default() {
            if let Some(list) = self.by.get_mut(&term) {
                list.remove(key);
                if list.is_empty() {
                    self.by.remove(&term);
                }
            }
        }
    }
    fn put(&mut self, object: &Arc<K>) {
        let key = key(object.as_ref());
        self.remove(&key);
        let terms = (self.of)(object);
        for term in &terms {
            self.by.entry(term.clone()).or_default().insert(key.clone(), object.clone());
        }
        self.terms.insert(key, terms);
    }
}

/// The API server doesn't know the kind. Our own CRDs are there before any watch is opened ([`crate::crds`]).
fn is_unknown(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(s)) if s.code == 404)
}

/// All objects of one kind, as last seen.
pub struct Cache<K: Kind>
where
    <K as Resource>::DynamicType: Hash + Eq,
{
    name: &'static str,
    store: Store<K>,
    writer: RwLock<Option<reflector::store::Writer<K>>>,
    index: RwLock<Index<K>>,
    feed: broadcast::Sender<Seen<K>>,
    state: RwLock<WatchState>,
}

#[derive(Default)]
struct WatchState {
    listed: bool,
    error: Option<Instant>,
}

impl<K: Kind> Cache<K> {
    /// An empty cache; `index` names the terms under which [`Cache::with`] finds an object.
    pub fn new(name: &'static str, index: fn(&K) -> Vec<String>) -> Arc<Self> {
        let (store, writer) = reflector::store();
        Arc::new(Self {
            name,
            store,
            writer: RwLock::new(Some(writer)),
            index: RwLock::new(Index { of: index, by: HashMap::new(), terms: HashMap::new() }),
            feed: broadcast::channel(FEED).0,
            state: RwLock::default(),
        })
    }

    /// The store that the controller runtime reads.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }
    /// A cluster-scoped object.
    pub fn get(&self, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name))
    }
    /// A namespaced object.
    pub fn get_in(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }
    /// Every object.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }
    /// The objects indexed under a term, ordered by namespace and name.
    pub fn with(&self, term: &str) -> Vec<Arc<K>> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.by.get(term).map(|m| m.values().cloned().collect()).unwrap_or_default()
    }
    /// Listed at least once, and its watch isn't failing right now.
    pub fn fresh(&self) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.listed && state.error.is_none_or(|at| at.elapsed() > BROKEN_FOR)
    }

    /// Takes one event of the watch; also the way tests fill a cache.
    fn on_event(&self, writer: &mut reflector::store::Writer<K>, event: &watcher::Event<K>) {
        let before = matches!(event, watcher::Event::InitDone).then(|| self.store.state());
        writer.apply_watcher_event(event);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut news = Vec::new();
        match event {
            watcher::Event::Apply(o) => {
                let o = Arc::new(o.clone());
                index.put(&o);
                news.push(Seen::One(o));
            }
            watcher::Event::Delete(o) => {
                index.remove(&key(o));
                news.push(Seen::One(Arc::new(o.clone())));
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
            watcher::Event::InitDone => {
                index.by.clear();
                index.terms.clear();
                for object in self.store.state() {
                    index.put(&object);
                }
                let gone = before.unwrap_or_default().into_iter().filter(|o| !index.terms.contains_key(&key(o.as_ref())));
                news.extend(gone.map(Seen::One));
                news.push(Seen::All);
            }
        }
        drop(index);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.listed |= matches!(event, watcher::Event::InitDone);
        state.error = None;
        drop(state);
        for one in news {
            // No receiver: this process doesn't lead.
            let _ = self.feed.send(one);
        }
    }

    /// Fills the cache for ever. A second call returns at once.
    pub async fn run(self: Arc<Self>, api: Api<K>, config: watcher::Config, metrics: Arc<Metrics>) {
        let Some(mut writer) = self.writer.write().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let mut events = std::pin::pin!(watcher(api, config).backoff(Pauses(PAUSES.0)));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.on_event(&mut writer, &event),
                // A kind that isn't installed has no objects.
                Err(error) if is_unknown(&error) => {
                    tracing::debug!(kind = self.name, "this kind isn't installed");
                    self.on_event(&mut writer, &watcher::Event::Init);
                    self.on_event(&mut writer, &watcher::Event::InitDone);
                }
                Err(error) => {
                    tracing::warn!(kind = self.name, %error, "watch ended; opening it again");
                    metrics.watch_error(self.name);
                    self.state.write().unwrap_or_else(PoisonError::into_inner).error = Some(Instant::now());
                }
            }
        }
    }

    /// Everything that is there, then everything that changes, appears or goes.
    pub fn changes(self: &Arc<Self>) -> impl Stream<Item = Arc<K>> + Send + use<K> {
        let me = self.clone();
        let feed = self.feed.subscribe();
        let first = me.all();
        futures::stream::unfold((me, feed, first), |(me, mut feed, mut queue)| async move {
            loop {
                if let Some(object) = queue.pop() {
                    return Some((object, (me, feed, queue)));
                }
                match feed.recv().await {
                    Ok(Seen::One(object)) => return Some((object, (me, feed, queue))),
                    Ok(Seen::All) | Err(broadcast::error::RecvError::Lagged(_)) => queue = me.all(),
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
    }

    /// Fills a cache without a watch.
    ///
    /// # Panics
    /// If the cache is being watched.
    #[cfg(test)]
    pub fn fill(&self, objects: impl IntoIterator<Item = K>) {
        let mut guard = self.writer.write().unwrap();
        let writer = guard.as_mut().unwrap();
        self.on_event(writer, &watcher::Event::Init);
        for object in objects {
            self.on_event(writer, &watcher::Event::InitApply(object));
        }
        self.on_event(writer, &watcher::Event::InitDone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use kube::api::ObjectMeta;

    fn node(name: &str, group: &str) -> Node {
        let labels = BTreeMap::from([("g".to_owned(), group.to_owned())]);
        Node { metadata: ObjectMeta { name: Some(name.into()), labels: Some(labels), ..ObjectMeta::default() }, ..Node::default() }
    }
    fn cache() -> Arc<Cache<Node>> {
        Cache::new("node", |n| n.labels().values().cloned().collect())
    }

    #[tokio::test]
    async fn what_vanished_while_the_watch_was_down_is_announced() {
        let cache = cache();
        cache.fill([node("a", "x"), node("b", "x")]);
        let mut changes = Box::pin(cache.changes());
        for _ in 0..2 {
            changes.next().await.unwrap();
        }
        cache.fill([node("a", "x")]);
        assert_eq!(changes.next().await.unwrap().name_any(), "b");
        assert_eq!(changes.next().await.unwrap().name_any(), "a");
        assert!(cache.fresh());
    }

    #[tokio::test]
    async fn an_object_is_found_under_its_terms_only() {
        let cache = cache();
        cache.fill([node("a", "x")]);
        assert_eq!(cache.with("x").len(), 1);
        let mut guard = cache.writer.write().unwrap();
        cache.on_event(guard.as_mut().unwrap(), &watcher::Event::Apply(node("a", "y")));
        assert!(cache.with("x").is_empty());
        assert_eq!(cache.with("y").len(), 1);
        cache.on_event(guard.as_mut().unwrap(), &watcher::Event::Delete(node("a", "y")));
        assert!(cache.with("y").is_empty() && cache.get("a").is_none());
    }

    #[test]
    fn a_watch_that_failed_is_tried_again_soon_however_long_it_has_failed() {
        let mut pauses = Pauses(PAUSES.0);
        let longest = pauses.by_ref().take(100).max().unwrap();
        assert_eq!(longest, PAUSES.1);
        assert!(BROKEN_FOR > longest + Duration::from_secs(5), "it would count as mended while it is tried again");
        pauses.reset();
        assert_eq!(pauses.next(), Some(PAUSES.0));
    }

    #[test]
    fn an_empty_cache_is_not_fresh() {
        assert!(!cache().fresh());
    }
}
