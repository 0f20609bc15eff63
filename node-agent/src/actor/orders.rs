//! What the supervisor tells an actor. Each order is a state, not a message: a later one takes the place of an earlier one about the
//! same thing, so that however many come, what waits is bounded by what there is to say (one Replica object, peers, Filesystems that
//! start from a commit here or in which this one starts).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dotgraft_engine::filesystem::Desired;
use dotgraft_engine::ids::{CommitId, FsId, NodeName};
use dotgraft_engine::model::Origin;
use tokio::sync::Notify;

use super::fs_actor::{Plain, YesNo};

/// One order.
#[derive(Debug)]
pub enum Order {
    /// The Replica object as it is now.
    Desired(Desired),
    /// The Replica object is gone.
    Vanished,
    /// That node can be reached again.
    PeerBack(NodeName),
    /// A Filesystem of this node starts from a commit here.
    PinOrigin(FsId, CommitId, Plain),
    /// It needs it no more, or is gone.
    UnpinOrigin(FsId),
    /// The Filesystem that this one may start from asks whether it does, from that commit, and needs it still.
    StartsFrom(Origin, YesNo),
    /// Stop: the actor ends. Mounts stay as they are.
    Stop,
}

/// The last word of the Replica object.
#[derive(Debug)]
enum Wanted {
    Is(Desired),
    Gone,
}

/// What a Filesystem that starts from a commit here last said of it.
#[derive(Debug)]
enum Pin {
    Set(CommitId, Plain),
    Gone,
}

#[derive(Debug, Default)]
struct Waiting {
    stop: bool,
    wanted: Option<Wanted>,
    pins: BTreeMap<FsId, Pin>,
    asked: BTreeMap<FsId, (CommitId, YesNo)>,
    back: BTreeSet<NodeName>,
    closed: bool,
}

/// The way to an actor for the supervisor and for other actors. A cheap clone.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    inner: Arc<(Mutex<Waiting>, Notify)>,
}

impl Orders {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order; `false`: the actor has ended.
    pub fn give(&self, order: Order) -> bool {
        let mut waiting = self.waiting();
        if waiting.closed {
            return false;
        }
        match order {
            Order::Desired(desired) => waiting.wanted = Some(Wanted::Is(desired)),
            Order::Vanished => waiting.wanted = Some(Wanted::Gone),
            Order::PeerBack(node) => drop(waiting.back.insert(node)),
            // Whoever asked before hears that its question was dropped, and asks again.
            Order::PinOrigin(by, commit, answer) => drop(waiting.pins.insert(by, Pin::Set(commit, answer))),
            Order::UnpinOrigin(by) => drop(waiting.pins.insert(by, Pin::Gone)),
            Order::StartsFrom(origin, answer) => drop(waiting.asked.insert(origin.fs_id, (origin.commit, answer))),
            Order::Stop => waiting.stop = true,
        }
        drop(waiting);
        self.inner.1.notify_one();
        true
    }

    /// The next order, once there is one: to stop first, then what is wanted.
    pub async fn next(&self) -> Order {
        loop {
            if let Some(order) = self.waiting().take() {
                return order;
            }
            self.inner.1.notified().await;
        }
    }

    /// The actor ends: nothing is taken any more, and who waits for an answer hears that.
    pub fn close(&self) {
        let mut waiting = self.waiting();
        *waiting = Waiting { closed: true, ..Waiting::default() };
    }

    /// How many orders wait.
    pub fn len(&self) -> usize {
        let w = self.waiting();
        usize::from(w.stop) + usize::from(w.wanted.is_some()) + w.pins.len() + w.asked.len() + w.back.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Order> {
        if std::mem::take(&mut self.stop) {
            return Some(Order::Stop);
        }
        if let Some(wanted) = self.wanted.take() {
            return Some(match wanted {
                Wanted::Is(desired) => Order::Desired(desired),
                Wanted::Gone => Order::Vanished,
            });
        }
        if let Some((by, pin)) = self.pins.pop_first() {
            return Some(match pin {
                Pin::Set(commit, answer) => Order::PinOrigin(by, commit, answer),
                Pin::Gone => Order::UnpinOrigin(by),
            });
        }
        if let Some((fs_id, (commit, answer))) = self.asked.pop_first() {
            return Some(Order::StartsFrom(Origin { fs_id, commit }, answer));
        }
        self.back.pop_first().map(Order::PeerBack)
    }
}
