//! What all actors of a node share: disk, journal, peers, API server, metrics; and the way from one actor to another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dotgraft_engine::filesystem::{FilesystemStatus, Here, Note};
use dotgraft_engine::ids::{BootTime, FsId, NodeName, Timestamp};
use dotgraft_engine::model::Place;

use super::orders::{Order, Orders};
use super::ports::{ApiPort, JournalPort, PeersPort};
use super::registry::Registry;
use crate::clock::{boot_clock, wall_clock};
use crate::driver::Driver;
use crate::metrics::Metrics;
use crate::peer::Limits;

/// The runtime's timers stand still while the node is suspended, the boot clock doesn't: it is looked at again so often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Shared by all actors.
pub struct Node {
    /// Place, boot, kernel.
    pub here: Here,
    /// The disk.
    pub driver: Arc<dyn Driver>,
    /// Memory that survives.
    pub journal: Arc<dyn JournalPort>,
    /// Other agents.
    pub peers: Arc<dyn PeersPort>,
    /// The API server.
    pub api: Arc<dyn ApiPort>,
    /// Figures.
    pub metrics: Metrics,
    /// Who lives here.
    pub registry: Registry,
    /// How fast its jobs may send.
    pub limits: Limits,
    orders: Mutex<BTreeMap<FsId, Orders>>,
    /// `orders` has whatever is on this node.
    complete: AtomicBool,
    generation: AtomicU64,
}

impl Node {
    /// A node with nobody on it.
    pub fn new(
        here: Here,
        driver: Arc<dyn Driver>,
        journal: Arc<dyn JournalPort>,
        peers: Arc<dyn PeersPort>,
        api: Arc<dyn ApiPort>,
        metrics: Metrics,
        registry: Registry,
    ) -> Self {
        Self {
            here,
            driver,
            journal,
            peers,
            api,
            metrics,
            registry,
            limits: Limits::default(),
            orders: Mutex::default(),
            complete: AtomicBool::new(false),
            generation: AtomicU64::new(0),
        }
    }

    /// Node and pool.
    pub fn place(&self) -> &Place {
        &self.here.place
    }

    /// Wall clock.
    #[allow(clippy::unused_self)] // the clock belongs to the node; tests of actors may give it one of their own
    pub fn now(&self) -> Timestamp {
        wall_clock()
    }

    /// Boot clock.
    #[allow(clippy::unused_self)] // as `now`
    pub fn boot_time(&self) -> BootTime {
        boot_clock()
    }

    /// Sleeps until the boot clock says `due`, and at least a millisecond, so that nobody spins.
    pub async fn sleep_until(&self, due: BootTime) {
        loop {
            let left = Duration::from_millis(due.since_ms(self.boot_time()).max(1));
            tokio::time::sleep(left.min(LOOK_AGAIN)).await;
            if self.boot_time() >= due {
                return;
            }
        }
    }

    /// A number that no incarnation of any Filesystem in this process had before.
    pub fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts a (re)build from the journal.
    pub fn count_recovery(&self) {
        self.metrics.recovered();
    }

    /// Registers the way to an actor.
    pub fn enrol(&self, fs: FsId, orders: Orders) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).insert(fs, orders);
    }

    /// An actor lives for each Filesystem that is on this node.
    pub fn all_awake(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Nothing of that Filesystem is on this node, for sure: not while its actors are only being started, or stopped.
    pub fn is_without(&self, fs: FsId) -> bool {
        let complete = self.complete.load(Ordering::Acquire); // before the look at the list
        complete && !self.orders.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&fs)
    }

    /// Forgets it.
    pub fn discharge(&self, fs: FsId) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).remove(&fs);
    }

    /// Gives an order to the owner of `fs`; `false`: it does not live here.
    pub fn order(&self, fs: FsId, order: Order) -> bool {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner).get(&fs).cloned();
        orders.is_some_and(|orders| orders.give(order))
    }

    /// That peer can be reached again: whoever waits for it goes on.
    pub fn peer_back(&self, node: &NodeName) {
        for orders in self.orders.lock().unwrap_or_else(PoisonError::into_inner).values() {
            orders.give(Order::PeerBack(node.clone()));
        }
    }

    /// Every actor ends: from now on nothing follows from one that isn't there.
    pub fn stop_all(&self) {
        self.complete.store(false, Ordering::Release);
        for orders in self.orders.lock().unwrap_or_else(PoisonError::into_inner).values() {
            orders.give(Order::Stop);
        }
    }

    /// The status of a Filesystem changed; everything in it is durable.
    pub fn publish(&self, status: &Arc<FilesystemStatus>) {
        self.api.publish(status, self.now());
    }

    /// A Filesystem is closed: only that is told, what the object says of it otherwise stays.
    pub fn publish_closed(&self, status: &FilesystemStatus) {
        self.api.publish_closed(status, self.now());
    }

    /// An event for people.
    pub fn tell(&self, fs: FsId, note: &Note) {
        self.api.tell(fs, note);
    }
}
