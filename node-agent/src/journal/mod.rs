//! The journal: what this node must remember across a crash, as keyed records in SQLite on the state directory (storage.md §1).
//!
//! Actors talk to it through [`Journal`], a cheap clone. One writer thread owns the file (`writer.rs`): requests that wait
//! together share one transaction, each under a savepoint of its own, and none is answered before the COMMIT is durable.
//! The file is bound to the UUID of one pool, so the records of a disk never get applied to another one.

mod ballast;
mod error;
mod failpoint;
mod schema;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use dotgraft_engine::ids::{FsId, PoolId};
use tokio::sync::{Semaphore, oneshot};

pub use ballast::BALLAST_BYTES;
pub use error::JournalError;
pub use schema::pool_of;

use writer::{Job, Writer};

/// Requests that wait in the journal's queue before `commit` itself waits.
const QUEUE: usize = 1024;
/// Longest key, in bytes.
pub const MAX_KEY: usize = 512;
/// Largest value, in bytes. An API object is at most 1.5 MiB, so a record made from one fits.
pub const MAX_VALUE: usize = 4 << 20;
/// Most bytes (keys and values) of one `commit`.
pub const MAX_COMMIT: usize = 32 << 20;

/// One record of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name of the record, for fail points and metrics: `AuthOpen`, `Frozen` …
    pub name: &'static str,
    /// What happens to it.
    pub op: Op,
}

/// A change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets it.
    Put {
        /// 1 to [`MAX_KEY`] bytes, unique within its scope.
        key: String,
        /// At most [`MAX_VALUE`] bytes.
        value: Vec<u8>,
    },
    /// Removes it; nothing happens if it isn't there.
    Delete {
        /// As in `Put`.
        key: String,
    },
    /// Removes every record of the scope: the end of a Filesystem.
    DeleteAll,
}

impl Entry {
    /// Sets `key` to `value`.
    pub fn put(name: &'static str, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { name, op: Op::Put { key: key.into(), value: value.into() } }
    }
    /// Removes `key`.
    pub fn delete(name: &'static str, key: impl Into<String>) -> Self {
        Self { name, op: Op::Delete { key: key.into() } }
    }
}

/// Whose records: the node's own or one Filesystem's. A commit touches one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The agent's own.
    Node,
    /// One Filesystem's.
    Fs(FsId),
}

/// What one transaction was like, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// From BEGIN until COMMIT was durable or had failed.
    pub took: Duration,
    /// Requests in it.
    pub requests: usize,
    /// Whether it became durable.
    pub ok: bool,
}

/// Called by the writer thread after each transaction; must not block.
pub type Observer = Arc<dyn Fn(Observation) + Send + Sync>;

/// Settings that only tests and metrics need.
#[derive(Clone)]
pub struct Options {
    /// Bytes kept back for a full disk; 0 for none.
    pub ballast: u64,
    /// Told of every transaction.
    pub observer: Option<Observer>,
}

impl Default for Options {
    fn default() -> Self {
        Self { ballast: BALLAST_BYTES, observer: None }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("ballast", &self.ballast).finish_non_exhaustive()
    }
}

/// A cheap clone. The file is closed when the last clone is dropped, which waits for the writer thread.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    jobs: Option<mpsc::Sender<Job>>,
    queue: Arc<Semaphore>,
    low: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs = None; // the writer ends when nobody can ask any more
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Journal {
    /// Opens the journal at `path`, or makes it, bound to `pool`.
    ///
    /// # Errors
    /// `OtherPool` if it is bound to another pool, `TooNew` if a newer agent wrote it, `InUse` if another process has it open.
    pub fn open(path: &Path, pool: PoolId) -> Result<Self, JournalError> {
        Self::open_with(path, pool, Options::default())
    }

    /// [`Journal::open`] with settings.
    ///
    /// # Errors
    ///
    /// [`JournalError`]: another process has it open, it is bound to another pool, is of a newer format or no journal; or the disk fails.
    pub fn open_with(path: &Path, pool: PoolId, options: Options) -> Result<Self, JournalError> {
        let low = Arc::new(AtomicBool::new(false));
        let writer = Writer::open(path, pool, options, Arc::clone(&low))?;
        let (tx, rx) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(&rx))
            .map_err(|e| JournalError::Storage { message: format!("cannot start the journal's thread: {e}") })?;
        Ok(Self(Arc::new(Inner { jobs: Some(tx), queue: Arc::new(Semaphore::new(QUEUE)), low, thread: Some(thread) })))
    }

    /// Applies `entries` in order, all or none; durable when it returns `Ok`. An empty batch does nothing.
    ///
    /// Dropping the future doesn't take the request back. After an error the caller must assume nothing and
    /// [`Journal::load`] again: with `Storage` the batch may or may not be there (design §4, "rebuilds").
    ///
    /// # Errors
    ///
    /// [`JournalError::Full`] without room; [`JournalError::Storage`], after which the batch may be there or not; that it is closed.
    pub async fn commit(&self, scope: Scope, entries: Vec<Entry>) -> Result<(), JournalError> {
        if entries.is_empty() {
            return Ok(());
        }
        check(&entries)?;
        self.ask(|reply| Job::Commit(writer::Commit { scope, entries, reply })).await
    }

    /// All records of a scope, sorted by key (bytewise). Sees every commit that was answered before.
    ///
    /// # Errors
    ///
    /// The file can't be read; it is closed.
    pub async fn load(&self, scope: Scope) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        self.ask(|reply| Job::Load { scope, reply }).await
    }

    /// The Filesystems that have records, sorted.
    ///
    /// # Errors
    ///
    /// The file can't be read; it is closed.
    pub async fn filesystems(&self) -> Result<Vec<FsId>, JournalError> {
        self.ask(|reply| Job::Filesystems { reply }).await
    }

    /// Whether the ballast is released: the state directory is (nearly) full. New work should be refused with `NoSpace`.
    pub fn low_on_space(&self) -> bool {
        self.0.low.load(Ordering::Relaxed)
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Job) -> Result<T, JournalError> {
        let _slot = self.0.queue.acquire().await.map_err(|_| JournalError::Stopped)?;
        let (tx, rx) = oneshot::channel();
        let jobs = self.0.jobs.as_ref().ok_or(JournalError::Stopped)?;
        jobs.send(job(tx)).map_err(|_| JournalError::Stopped)?;
        rx.await.map_err(|_| JournalError::Stopped)?
    }
}

/// Bounds of a batch, checked before it can sit in the queue.
fn check(entries: &[Entry]) -> Result<(), JournalError> {
    let mut total = 0usize;
    for entry in entries {
        let (key, value) = match &entry.op {
            Op::Put { key, value } => (key, value.len()),
            Op::Delete { key } => (key, 0),
            Op::DeleteAll => continue,
        };
        if key.is_empty() || key.len() > MAX_KEY || key.contains('\0') {
            return Err(JournalError::Invalid {
                message: format!("record {}: the key must have 1 to {MAX_KEY} bytes and no NUL", entry.name),
            });
        }
        if value > MAX_VALUE {
            return Err(JournalError::Invalid {
                message: format!("record {}: {value} bytes, at most {MAX_VALUE} are allowed", entry.name),
            });
        }
        total = total.saturating_add(key.len()).saturating_add(value);
    }
    if total > MAX_COMMIT {
        return Err(JournalError::Invalid { message: format!("a batch of {total} bytes, at most {MAX_COMMIT} are allowed") });
    }
    Ok(())
}
