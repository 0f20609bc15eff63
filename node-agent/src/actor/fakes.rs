//! A world for tests of actors: a journal that fails when it is told to, a pool in memory, an API server, peers that never answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dotgraft_api::Replica;
use dotgraft_engine::authority::{self, Authority, Phase};
use dotgraft_engine::filesystem::{Desired, FilesystemStatus, Handoff, Here, Intent, Note, Offer, Present, Role, Swap, TaskDone};
use dotgraft_engine::filesystem::{WantedCommit, WantedJob};
use dotgraft_engine::ids::{BootId, CommitId, Epoch, FsId, JobUid, NodeName, PoolId, RequestUid, Timestamp};
use dotgraft_engine::model::{Commit, Origin, Place, Problem, Reason, Versions};
use dotgraft_engine::run::{Initial, Intermediate, JobSpec, OnConflict, Retry, RunParams};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use super::ports::{ApiPort, JournalPort, PeersPort, Rows};
use super::{Node, Registry};
use crate::clock::boot_clock;
use crate::driver::{
    CommitDone, Driver, DriverError, Fenced, Found, FsMeta, Holder, Incoming, MountMode, MountWhat, PoolInfo, Space, Stray, Tidied, Usage,
};
use crate::journal::{Entry, JournalError, Op, Scope};
use crate::metrics::Metrics;
use crate::peer::Opened;
use crate::target::MountTarget;

fn uuid(n: u64) -> Uuid {
    Uuid::from_u128(0x0198_c2a5_7f00_7000_8000_0000_0000_0000 + u128::from(n))
}

pub fn target(text: &str) -> MountTarget {
    MountTarget::parse(text).unwrap()
}

pub fn fs_id() -> FsId {
    FsId::from_uuid(uuid(1))
}

fn place() -> Place {
    Place { node: "n1".parse().unwrap(), pool: PoolId::from_uuid(uuid(100)) }
}

pub fn request(n: u64) -> RequestUid {
    RequestUid::from_uuid(uuid(1_000 + n))
}

/// A gate that tests close and open.
pub struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::channel(true).0)
    }
}

impl Gate {
    pub fn set_open(&self, open: bool) {
        self.0.send_replace(open);
    }
    async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
    /// For a thread of its own.
    fn pass_blocking(&self) {
        while !*self.0.borrow() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The journal: which commits fail, counted from 1.
#[derive(Default)]
pub struct FakeJournal {
    pub rows: Mutex<BTreeMap<String, Vec<u8>>>,
    pub commits: Mutex<u64>,
    pub fail: Mutex<BTreeSet<u64>>,
    /// Names of the records of each commit that went well.
    pub names: Mutex<Vec<&'static str>>,
    pub gate: Gate,
}

impl FakeJournal {
    /// How many commits it was asked for.
    pub fn made(&self) -> u64 {
        *self.commits.lock().unwrap()
    }
}

impl JournalPort for FakeJournal {
    fn commit(&self, _: Scope, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), JournalError>> {
        async move {
            self.gate.pass().await;
            let nth = {
                let mut commits = self.commits.lock().unwrap();
                *commits += 1;
                *commits
            };
            if self.fail.lock().unwrap().contains(&nth) {
                return Err(JournalError::Full);
            }
            let mut rows = self.rows.lock().unwrap();
            for entry in entries {
                self.names.lock().unwrap().push(entry.name);
                match entry.op {
                    Op::Put { key, value } => drop(rows.insert(key, value)),
                    Op::Delete { key } => drop(rows.remove(&key)),
                    Op::DeleteAll => rows.clear(),
                }
            }
            Ok(())
        }
        .boxed()
    }
    fn load(&self, _: Scope) -> BoxFuture<'_, Result<Rows, JournalError>> {
        let rows = self.rows.lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        async move { Ok(rows) }.boxed()
    }
    fn filesystems(&self) -> BoxFuture<'_, Result<Vec<FsId>, JournalError>> {
        async { Ok(vec![fs_id()]) }.boxed()
    }
}

/// The API server: this node owns it.
#[derive(Default)]
pub struct FakeApi {
    pub deleting: Mutex<bool>,
    /// Owned by us, not created yet.
    pub is_new: Mutex<bool>,
    pub published: Mutex<u64>,
    pub closed: Mutex<u64>,
    /// Another node owns it, in that epoch.
    pub elsewhere: Mutex<Option<Epoch>>,
}

impl ApiPort for FakeApi {
    fn open(&self, _: FsId, seen: authority::Seen) -> BoxFuture<'_, Result<TaskDone, Problem>> {
        let (epoch, new) = (seen.epoch.max(Epoch(1)), *self.is_new.lock().unwrap());
        async move { Ok(TaskDone::Opened { epoch, attempt: 1, new, sent: boot_clock(), version: None }) }.boxed()
    }
    fn swap<'a>(&'a self, _: FsId, _: &'a Swap) -> BoxFuture<'a, Result<authority::Read, Problem>> {
        async { Err(Problem::new(Reason::Unreachable, "no swaps in this world")) }.boxed()
    }
    fn look(&self, _: FsId) -> BoxFuture<'_, Result<Option<authority::Read>, Problem>> {
        let phase = if *self.deleting.lock().unwrap() { Phase::Deleting } else { Phase::Active };
        let mut authority = Authority::first(place());
        if let Some(epoch) = *self.elsewhere.lock().unwrap() {
            let owner = Place { node: "n2".parse().unwrap(), pool: PoolId::from_uuid(uuid(101)) };
            authority = Authority { owner, epoch, ..authority };
        }
        let read = authority::Read { phase, authority: Some(authority), version: None };
        async move { Ok(Some(read)) }.boxed()
    }
    fn is_headless(&self, _: FsId) -> BoxFuture<'_, Result<bool, Problem>> {
        async { Ok(false) }.boxed()
    }
    fn attach(&self, _: FsId, _: &Replica) {}
    fn detach(&self, _: FsId) {}
    fn publish(&self, _: &FilesystemStatus, _: Timestamp) {
        *self.published.lock().unwrap() += 1;
    }
    fn publish_closed(&self, _: &FilesystemStatus, _: Timestamp) {
        *self.closed.lock().unwrap() += 1;
    }
    fn tell(&self, _: FsId, _: &Note) {}
    fn behind(&self) -> usize {
        0
    }
}

/// Peers that are asked and never answer.
#[derive(Default)]
pub struct FakePeers {
    pub asked: Mutex<u64>,
    /// Questions that were dropped: cancelled.
    pub dropped: Arc<Mutex<u64>>,
}

struct Dropped(Arc<Mutex<u64>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        *self.0.lock().unwrap() += 1;
    }
}

impl PeersPort for FakePeers {
    fn versions<'a>(&'a self, _: &'a NodeName, _: FsId, _: JobUid) -> BoxFuture<'a, Result<Versions, Problem>> {
        *self.asked.lock().unwrap() += 1;
        let dropped = Dropped(self.dropped.clone());
        async move {
            let _dropped = dropped;
            std::future::pending().await
        }
        .boxed()
    }
    fn export<'a>(&'a self, _: &'a NodeName, _: FsId, _: &'a Handoff) -> BoxFuture<'a, Result<(), Problem>> {
        std::future::pending().boxed()
    }
    fn open<'a>(&'a self, _: &'a NodeName, _: FsId, _: Offer) -> BoxFuture<'a, Result<Opened, Problem>> {
        std::future::pending().boxed()
    }
    fn kernel_silence(&self) -> Duration {
        Duration::from_secs(60)
    }
    fn address(&self, _: &NodeName) -> Option<SocketAddr> {
        None
    }
}

/// What is in the pool.
#[derive(Debug, Default)]
pub struct Disk {
    pub meta: Option<FsMeta>,
    pub head: bool,
    pub fenced: bool,
    pub commits: BTreeMap<CommitId, Commit>,
    pub mounts: BTreeSet<PathBuf>,
    /// A newer program wrote fs.json.
    pub newer: bool,
    /// Calls that changed something, or tried to.
    pub changes: u64,
    /// How often each commit was taken.
    pub taken: BTreeMap<RequestUid, BTreeSet<CommitId>>,
}

pub struct FakeDriver {
    info: PoolInfo,
    pub disk: Mutex<Disk>,
    /// Commits wait here.
    pub gate: Gate,
}

impl FakeDriver {
    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }
}

fn none() -> DriverError {
    DriverError::Unsupported("not in this world".into())
}

impl Driver for FakeDriver {
    fn pool(&self) -> &PoolInfo {
        &self.info
    }
    fn space(&self) -> Result<Space, DriverError> {
        Ok(Space { total: 1 << 40, available: 1 << 40, metadata_free: 1 << 40, read_only: false })
    }
    fn list(&self) -> Result<Vec<FsId>, DriverError> {
        Ok(Vec::new())
    }
    fn inspect(&self, _: FsId) -> Result<Found, DriverError> {
        let disk = self.disk();
        if disk.newer {
            return Err(DriverError::FormatNewer("`fs.json` has format version 3".into()));
        }
        Ok(Found { meta: disk.meta.clone(), head: disk.head, commits: disk.commits.values().cloned().collect(), ..Found::default() })
    }
    fn allocate_qgroup(&self) -> Result<u64, DriverError> {
        Ok(1)
    }
    fn prepare(&self, meta: &FsMeta) -> Result<(), DriverError> {
        self.write_meta(meta)
    }
    fn write_meta(&self, meta: &FsMeta) -> Result<(), DriverError> {
        self.disk().changes += 1;
        self.disk().meta = Some(meta.clone());
        Ok(())
    }
    fn create_head(&self, _: FsId, _: u64, _: Option<Origin>) -> Result<(), DriverError> {
        self.disk().head = true;
        Ok(())
    }
    fn commit(&self, _: u64, commit: &Commit) -> Result<CommitDone, DriverError> {
        self.gate.pass_blocking();
        let mut disk = self.disk();
        disk.commits.insert(commit.id, commit.clone());
        if let Some(uid) = commit.kept {
            disk.taken.entry(uid).or_default().insert(commit.id);
        }
        Ok(CommitDone::default())
    }
    fn write_commit_meta(&self, _: &Commit) -> Result<(), DriverError> {
        Ok(())
    }
    fn delete_commit(&self, _: FsId, commit: CommitId) -> Result<(), DriverError> {
        self.disk().commits.remove(&commit);
        Ok(())
    }
    fn drop_head(&self, _: FsId) -> Result<(), DriverError> {
        self.disk().head = false;
        Ok(())
    }
    fn destroy(&self, _: FsId, _: u64) -> Result<(), DriverError> {
        let mut disk = self.disk();
        disk.changes += 1;
        if !disk.mounts.is_empty() {
            return Err(DriverError::Mounted("a pod".into()));
        }
        *disk = Disk { taken: std::mem::take(&mut disk.taken), ..Disk::default() };
        Ok(())
    }
    fn set_limit(&self, _: u64, _: u64) -> Result<(), DriverError> {
        Ok(())
    }
    fn usage(&self, _: u64) -> Result<Usage, DriverError> {
        Ok(Usage::default())
    }
    fn strays(&self) -> Result<Vec<Stray>, DriverError> {
        Ok(Vec::new())
    }
    fn head_changed_since(&self, _: FsId, _: CommitId) -> Result<bool, DriverError> {
        Ok(false)
    }
    fn file_bytes(&self, _: FsId) -> Result<Option<u64>, DriverError> {
        Ok(None)
    }
    fn began_with(&self, _: FsId, _: Origin) -> Result<u64, DriverError> {
        Ok(0)
    }
    fn tidy_groups(&self) -> Result<Tidied, DriverError> {
        Ok(Tidied::default())
    }
    fn head_written_since(&self, _: FsId, _: CommitId) -> Result<bool, DriverError> {
        Ok(false)
    }
    fn holders(&self, _: FsId) -> Result<Vec<Holder>, DriverError> {
        let mounts = self.disk().mounts.clone();
        Ok(mounts.into_iter().map(|mount_point| Holder { pid: 1, command: "pod".into(), mount_point }).collect())
    }
    fn head_holders(&self, fs: FsId) -> Result<Vec<Holder>, DriverError> {
        self.holders(fs)
    }
    fn mount(&self, _: FsId, _: MountWhat, target: &Path, _: MountMode) -> Result<(), DriverError> {
        self.disk().mounts.insert(target.to_owned());
        Ok(())
    }
    fn unmount(&self, target: &Path) -> Result<(), DriverError> {
        self.disk().mounts.remove(target);
        Ok(())
    }
    fn freeze(&self, _: FsId) -> Result<(), DriverError> {
        self.disk().fenced = true;
        Ok(())
    }
    fn final_commit(&self, _: u64, commit: &Commit) -> Result<Fenced, DriverError> {
        let mut disk = self.disk();
        if !disk.fenced {
            return Err(DriverError::FenceRaced("not frozen".into()));
        }
        disk.commits.insert(commit.id, commit.clone());
        Ok(Fenced { generation: 1, folded: None })
    }
    fn thaw(&self, _: FsId) -> Result<(), DriverError> {
        self.disk().fenced = false;
        Ok(())
    }
    fn is_fenced(&self, _: FsId) -> Result<bool, DriverError> {
        Ok(self.disk().fenced)
    }
    fn send(&self, _: FsId, _: Option<CommitId>, _: CommitId, _: u32) -> Result<Box<dyn Read + Send>, DriverError> {
        Err(none())
    }
    fn estimate(&self, _: FsId, _: Option<CommitId>, _: CommitId) -> Result<Option<u64>, DriverError> {
        Ok(None)
    }
    fn receive_start(&self, _: FsId, _: u64, _: CommitId, _: Option<CommitId>, _: Option<u64>) -> Result<Incoming, DriverError> {
        Err(none())
    }
    fn receive_checkpoint(&self, _: FsId, _: u64, _: CommitId, _: u64) -> Result<(), DriverError> {
        Err(none())
    }
    fn receive_finish(&self, _: u64, _: &Commit) -> Result<(), DriverError> {
        Err(none())
    }
    fn receive_discard(&self, _: FsId, _: CommitId) -> Result<(), DriverError> {
        Ok(())
    }
}

/// A node in that world.
pub struct World {
    pub node: Arc<Node>,
    pub journal: Arc<FakeJournal>,
    pub driver: Arc<FakeDriver>,
    pub api: Arc<FakeApi>,
    pub peers: Arc<FakePeers>,
}

pub fn world() -> World {
    let place = place();
    let here = Here { place: place.clone(), boot: BootId::from_uuid(uuid(200)), stream_version: 2, kernel_release: "6.18".into() };
    let info = PoolInfo { id: place.pool, stream_version: 2, kernel_release: "6.18".into(), features: Vec::new(), asked_size: None };
    let journal = Arc::new(FakeJournal::default());
    let driver = Arc::new(FakeDriver { info, disk: Mutex::default(), gate: Gate::default() });
    let (api, peers) = (Arc::new(FakeApi::default()), Arc::new(FakePeers::default()));
    *api.is_new.lock().unwrap() = true;
    let node = Node::new(here, driver.clone(), journal.clone(), peers.clone(), api.clone(), Metrics::default(), Registry::default());
    World { node: Arc::new(node), journal, driver, api, peers }
}

/// The owner's object, with those commits wanted.
pub fn owner(generation: i64, commits: &[u64]) -> Desired {
    let wanted = |n: &u64| WantedCommit {
        uid: request(*n),
        message: "m".into(),
        metadata: BTreeMap::new(),
        id: None,
        remove: false,
        reset_to: None,
        hold: false,
    };
    let present = Present {
        role: Role::Owner,
        epoch: Epoch(1),
        owner: None,
        peers: BTreeSet::new(),
        claim: None,
        origin: None,
        capacity: 100,
        history_limit: 100,
        origin_bytes: 0,
        fencing: "Proof".into(),
        reclaim_policy: "Delete".into(),
        commits: commits.iter().map(wanted).collect(),
        jobs: Vec::new(),
        move_to: None,
        precopy_to: None,
        headless: false,
        fetch: BTreeSet::new(),
        lend: BTreeSet::new(),
    };
    Desired { generation, intent: Intent::Present(Box::new(present)) }
}

/// The same with a job that sends to a peer.
pub fn sender(generation: i64, commits: &[u64]) -> Desired {
    let mut desired = owner(generation, commits);
    if let Intent::Present(present) = &mut desired.intent {
        let params = RunParams {
            peer: Place { node: "n2".parse().unwrap(), pool: PoolId::from_uuid(uuid(101)) },
            initial: Initial::All,
            intermediate: Intermediate::All,
            retry: Retry::default(),
            on_conflict: OnConflict::Fail,
            also: None,
        };
        let spec = JobSpec {
            uid: JobUid::from_uuid(uuid(50)),
            generation: 1,
            suspend: false,
            trigger: None,
            on_commit: true,
            schedule: None,
            params,
        };
        present.jobs.push(WantedJob { spec, bandwidth: None });
    }
    desired
}
