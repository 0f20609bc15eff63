//! Brings actors to life: one for every Filesystem that is in the journal, on the disk, or wanted by a Replica object; and
//! gives the node's own account (NodePool.status: room, orphans, condition). It decides nothing about data.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::quantity::human;
use dotgraft_api::{ConditionType, Replica};
use dotgraft_engine::filesystem::Desired;
use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::Problem;
use kube::ResourceExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::account;
use crate::actor::{self, Node, Order, Orders, translate};
use crate::cluster::pools::{Fact, OwnPool, PoolFacts};
use crate::cluster::replicas::ReplicaEvent;
use crate::cluster::watch::Freshness;
use crate::csi::kubelet::Kubelet;
use crate::driver::Space;
use crate::kernel;
use crate::probe::Probe;
use crate::strays;

/// How often the node's own account is looked at (written only on change).
const ACCOUNT_EVERY: Duration = Duration::from_secs(2);

/// See the module's documentation.
pub struct Supervisor {
    node: Arc<Node>,
    own: OwnPool,
    probe: Probe,
    kubelet: Kubelet,
    /// Of every watch.
    fresh: Vec<Freshness>,
    /// Actors that live, with the slot's generation.
    actors: BTreeMap<FsId, (Orders, u64)>,
    /// What is wanted, for an actor that ends just then.
    wanted: BTreeMap<FsId, Desired>,
    ended: (mpsc::UnboundedSender<FsId>, mpsc::UnboundedReceiver<FsId>),
    synced: bool,
}

impl Supervisor {
    /// For a node with nobody on it; `kubelet` is looked at by someone else.
    pub fn new(node: Arc<Node>, own: OwnPool, kubelet: Kubelet) -> Self {
        Self {
            node,
            own,
            probe: Probe::default(),
            kubelet,
            fresh: Vec::new(),
            actors: BTreeMap::new(),
            wanted: BTreeMap::new(),
            ended: mpsc::unbounded_channel(),
            synced: false,
        }
    }

    /// Starts an actor for everything that is here already.
    ///
    /// # Errors
    /// If journal or pool can't be listed.
    pub async fn wake_all(&mut self) -> Result<(), Problem> {
        let mut here = self.node.journal.filesystems().await.map_err(|e| e.problem())?;
        let driver = self.node.driver.clone();
        let on_disk = tokio::task::spawn_blocking(move || driver.list())
            .await
            .map_err(|e| Problem::new(dotgraft_engine::model::Reason::Internal, e.to_string()))?
            .map_err(|e| e.problem())?;
        here.extend(on_disk);
        here.sort_unstable();
        here.dedup();
        info!(filesystems = here.len(), "waking");
        for fs in here {
            self.ensure(fs);
        }
        self.node.all_awake();
        Ok(())
    }

    /// Runs until the watch ends or `stop` is cancelled; then stops all actors. Mounts stay. `fresh`: how long each watch of the API server
    /// has been silent, for the node's figures.
    pub async fn run(mut self, mut replicas: mpsc::Receiver<ReplicaEvent>, fresh: Vec<Freshness>, stop: CancellationToken) {
        self.fresh = fresh;
        let looking = tokio::spawn(strays::watch(self.node.clone()));
        let mut account = tokio::time::interval(ACCOUNT_EVERY);
        account.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(fs) = self.ended.1.recv() => self.on_ended(fs),
                event = replicas.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => break,
                },
                _ = account.tick() => self.account().await,
            }
        }
        looking.abort();
        self.node.stop_all();
    }

    fn on_event(&mut self, event: ReplicaEvent) {
        match event {
            ReplicaEvent::Synced => self.on_synced(),
            ReplicaEvent::Changed(replica) => self.on_replica(&replica),
            ReplicaEvent::Gone(name) => self.on_gone(&name),
        }
    }

    /// The whole list was seen: what it does not name has no object, also if that went while the agent was down.
    fn on_synced(&mut self) {
        self.synced = true;
        for (fs, (orders, _)) in &self.actors {
            if !self.wanted.contains_key(fs) {
                orders.give(Order::Vanished);
            }
        }
    }

    fn on_replica(&mut self, replica: &Replica) {
        let pool = self.node.place().pool.to_string();
        if replica.spec.pool != pool {
            // Another disk under the same node name: nothing of it is here, and nothing is made here in its place.
            warn!(replica = replica.name_any(), wanted = replica.spec.pool, here = pool, "a Replica of another pool is left alone");
            return;
        }
        match translate::desired_of(replica) {
            Ok((fs, desired)) => {
                self.node.api.attach(fs, replica);
                self.wanted.insert(fs, desired.clone());
                self.ensure(fs);
                self.node.order(fs, Order::Desired(desired));
            }
            Err(e) => warn!("ignored: {e}"),
        }
    }

    fn on_gone(&mut self, name: &str) {
        let Some(fs) = name.split_once('.').and_then(|(fs, _)| fs.parse::<FsId>().ok()) else { return };
        self.wanted.remove(&fs);
        self.node.api.detach(fs);
        self.node.order(fs, Order::Vanished);
    }

    fn ensure(&mut self, fs: FsId) {
        if self.actors.contains_key(&fs) {
            return;
        }
        let ended = self.ended.0.clone();
        let started = actor::start(fs, self.node.clone(), move || {
            let _ = ended.send(fs);
        });
        let generation = self.node.registry.insert(started.handle);
        self.actors.insert(fs, (started.orders, generation));
        self.node.metrics.actors(self.actors.len());
    }

    fn on_ended(&mut self, fs: FsId) {
        if let Some((_, generation)) = self.actors.remove(&fs) {
            self.node.registry.remove(fs, generation);
            self.node.discharge(fs);
            self.node.metrics.actors(self.actors.len());
        }
        // It ended while the object came back: an order of that moment may be lost with it.
        if let Some(desired) = self.wanted.get(&fs).cloned() {
            self.ensure(fs);
            self.node.order(fs, Order::Desired(desired));
        }
    }

    /// The node's own account. Orphans count only once the whole list of objects was seen.
    async fn account(&self) {
        let driver = self.node.driver.clone();
        let space = tokio::task::spawn_blocking(move || driver.space()).await;
        let (space, ready) = match space {
            Ok(Ok(space)) if space.read_only => (space, fact(false, "PoolFailed", READ_ONLY)),
            Ok(Ok(space)) => (space, fact(true, "Mounted", "the pool is mounted and takes writes")),
            Ok(Err(e)) => (Space::default(), fact(false, "PoolFailed", &e.to_string())),
            Err(e) => (Space::default(), fact(false, "PoolFailed", &e.to_string())),
        };
        let all: Vec<_> = self.node.registry.all().iter().map(actor::FsHandle::current).collect();
        self.probe.look(&self.node, &all);
        let orphans: Vec<_> =
            if self.synced { all.iter().filter(|s| !s.managed).filter_map(|s| translate::orphan_of(s)).collect() } else { Vec::new() };
        let counts = account::Counts {
            space,
            orphans: orphans.len(),
            waiting: self.node.registry.waiting(),
            statuses_behind: self.node.api.behind(),
            api_silence: self.fresh.iter().map(Freshness::age).max().unwrap_or_default(),
        };
        account::tell(&self.node.metrics, &all, &counts, self.node.now());
        let pool = self.node.driver.pool();
        let failed = ready.status == Some(false);
        let mut conditions = vec![ready];
        if failed {
            let trouble = conditions.first().cloned();
            conditions.extend(trouble.map(|t| Fact { kind: "PoolFailed".into(), status: Some(true), ..t }));
        }
        conditions.extend(size_differs(pool.asked_size, space.total));
        conditions.extend(kernel::fact(&pool.kernel_release));
        conditions.extend(self.kubelet.fact());
        self.own.set(PoolFacts {
            pool: Some(pool.id),
            capacity: space.total,
            available: space.available,
            features: pool.features.clone(),
            kernel_release: pool.kernel_release.clone(),
            orphans,
            conditions,
        });
    }
}

/// Nothing follows from a size that is changed later: people are told.
fn size_differs(asked: Option<u64>, is: u64) -> Option<Fact> {
    let message = format!(
        "the pool's file has {}, and {} are asked for (pool.file.size): an existing file keeps its size. Set it back, or replace the file: see \
         \"Replace a disk\" in the runbook",
        human(is),
        human(asked?)
    );
    let word = ConditionType::SizeDiffers.to_string();
    Some(Fact { kind: word.clone(), status: Some(true), reason: word, message })
}

const READ_ONLY: &str = "the kernel has made the pool read-only: see the node's kernel log; reads go on, replicas on other nodes are whole";

fn fact(status: bool, reason: &str, message: &str) -> Fact {
    Fact { kind: "Ready".into(), status: Some(status), reason: reason.into(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_is_asked_for_in_vain_is_said() {
        assert!(size_differs(None, 1 << 30).is_none());
        let told = size_differs(Some(2 << 30), 1 << 30).unwrap();
        assert!(told.kind == "SizeDiffers" && told.message.contains("has 1Gi, and 2Gi are asked for"), "{told:?}");
    }
}
