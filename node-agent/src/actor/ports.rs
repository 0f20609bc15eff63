//! What an actor and its tasks have of the world outside: journal, peers and API server as traits (the disk is one already,
//! [`crate::driver::Driver`]), so that actors can be tested in a world that fails on purpose (`fakes`).

use std::net::SocketAddr;
use std::time::Duration;

use dotgraft_api::Replica;
use dotgraft_engine::authority::{Read, Seen};
use dotgraft_engine::filesystem::{FilesystemStatus, Handoff, Note, Offer, Swap, TaskDone};
use dotgraft_engine::ids::{FsId, JobUid, NodeName, Timestamp};
use dotgraft_engine::model::{Problem, Versions};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::api::ClusterApi;
use crate::journal::{Entry, Journal, JournalError, Scope};
use crate::peer::{Opened, PeerClient};

/// Keys and values of a scope.
pub type Rows = Vec<(String, Vec<u8>)>;

/// Memory that survives.
pub trait JournalPort: Send + Sync + 'static {
    /// Makes all entries durable, or none.
    fn commit(&self, scope: Scope, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), JournalError>>;
    /// The records of a scope, by key.
    fn load(&self, scope: Scope) -> BoxFuture<'_, Result<Rows, JournalError>>;
    /// Every Filesystem that has records.
    fn filesystems(&self) -> BoxFuture<'_, Result<Vec<FsId>, JournalError>>;
}

/// Other agents.
pub trait PeersPort: Send + Sync + 'static {
    /// What `node` holds of `fs`, for a job.
    fn versions<'a>(&'a self, node: &'a NodeName, fs: FsId, job: JobUid) -> BoxFuture<'a, Result<Versions, Problem>>;
    /// Tells `node` that authority over `fs` goes to it; returns once that is recorded there.
    fn export<'a>(&'a self, node: &'a NodeName, fs: FsId, handoff: &'a Handoff) -> BoxFuture<'a, Result<(), Problem>>;
    /// Offers a commit of `fs` to `node`.
    fn open<'a>(&'a self, node: &'a NodeName, fs: FsId, offer: Offer) -> BoxFuture<'a, Result<Opened, Problem>>;
    /// How long our kernel may give no byte of a stream.
    fn kernel_silence(&self) -> Duration;
    /// Where `node` listens, if that is known.
    fn address(&self, node: &NodeName) -> Option<SocketAddr>;
}

/// The API server.
pub trait ApiPort: Send + Sync + 'static {
    /// Rule R0 (migration.md §2): opens `fs` for writing here.
    fn open(&self, fs: FsId, seen: Seen) -> BoxFuture<'_, Result<TaskDone, Problem>>;
    /// A swap of authority, or a read; what authority says after it.
    fn swap<'a>(&'a self, fs: FsId, swap: &'a Swap) -> BoxFuture<'a, Result<Read, Problem>>;
    /// What a quorum read shows of it; `None`: there is no such object.
    fn look(&self, fs: FsId) -> BoxFuture<'_, Result<Option<Read>, Problem>>;
    /// Whether a quorum shows it `Headless`.
    fn is_headless(&self, fs: FsId) -> BoxFuture<'_, Result<bool, Problem>>;
    /// A Replica object is there.
    fn attach(&self, fs: FsId, replica: &Replica);
    /// It is gone.
    fn detach(&self, fs: FsId);
    /// A copy's status, to its Replica object, if there is one.
    fn publish(&self, status: &FilesystemStatus, now: Timestamp);
    /// A copy is closed ([`ClusterApi::publish_closed`]).
    fn publish_closed(&self, closed: &FilesystemStatus, now: Timestamp);
    /// An event about a copy.
    fn tell(&self, fs: FsId, note: &Note);
    /// Statuses that are newer than what the API server has.
    fn behind(&self) -> usize;
}

impl JournalPort for Journal {
    fn commit(&self, scope: Scope, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), JournalError>> {
        Self::commit(self, scope, entries).boxed()
    }
    fn load(&self, scope: Scope) -> BoxFuture<'_, Result<Rows, JournalError>> {
        Self::load(self, scope).boxed()
    }
    fn filesystems(&self) -> BoxFuture<'_, Result<Vec<FsId>, JournalError>> {
        Self::filesystems(self).boxed()
    }
}

impl PeersPort for PeerClient {
    fn versions<'a>(&'a self, node: &'a NodeName, fs: FsId, job: JobUid) -> BoxFuture<'a, Result<Versions, Problem>> {
        Self::versions(self, node, fs, job).boxed()
    }
    fn export<'a>(&'a self, node: &'a NodeName, fs: FsId, handoff: &'a Handoff) -> BoxFuture<'a, Result<(), Problem>> {
        Self::export(self, node, fs, handoff).boxed()
    }
    fn open<'a>(&'a self, node: &'a NodeName, fs: FsId, offer: Offer) -> BoxFuture<'a, Result<Opened, Problem>> {
        Self::open(self, node, fs, offer).boxed()
    }
    fn kernel_silence(&self) -> Duration {
        Self::kernel_silence(self)
    }
    fn address(&self, node: &NodeName) -> Option<SocketAddr> {
        Self::address(self, node)
    }
}

impl ApiPort for ClusterApi {
    fn open(&self, fs: FsId, seen: Seen) -> BoxFuture<'_, Result<TaskDone, Problem>> {
        Self::open(self, fs, seen).boxed()
    }
    fn swap<'a>(&'a self, fs: FsId, swap: &'a Swap) -> BoxFuture<'a, Result<Read, Problem>> {
        Self::swap(self, fs, swap).boxed()
    }
    fn look(&self, fs: FsId) -> BoxFuture<'_, Result<Option<Read>, Problem>> {
        Self::look(self, fs).boxed()
    }
    fn is_headless(&self, fs: FsId) -> BoxFuture<'_, Result<bool, Problem>> {
        Self::is_headless(self, fs).boxed()
    }
    fn attach(&self, fs: FsId, replica: &Replica) {
        Self::attach(self, fs, replica);
    }
    fn detach(&self, fs: FsId) {
        Self::detach(self, fs);
    }
    fn publish(&self, status: &FilesystemStatus, now: Timestamp) {
        Self::publish(self, status, now);
    }
    fn publish_closed(&self, closed: &FilesystemStatus, now: Timestamp) {
        Self::publish_closed(self, closed, now);
    }
    fn tell(&self, fs: FsId, note: &Note) {
        Self::tell(self, fs, note);
    }
    fn behind(&self) -> usize {
        Self::behind(self)
    }
}
