//! The one thread that owns the journal's connection: group commit, savepoints, and what to do when the disk is full.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use dotgraft_engine::ids::{FsId, PoolId};
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::ballast::{self, Ballast};
use super::failpoint::Failpoints;
use super::{Entry, JournalError, Observation, Op, Options, Scope, schema};

/// Requests that share one transaction at most.
const MAX_BATCH: usize = 256;
/// How often a released ballast is tried again.
const BALLAST_RETRY: Duration = Duration::from_secs(5);
/// While the ballast is out, a batch that puts more than this many bytes is refused once free space is under half the
/// ballast: what is left is for deletes and other small records.
const LOW_SPACE_PUT: usize = 4 << 10;

type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

/// A batch of one requester.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) scope: Scope,
    pub(super) entries: Vec<Entry>,
    pub(super) reply: Reply<()>,
}

/// What the thread is asked.
#[derive(Debug)]
pub(super) enum Job {
    Commit(Commit),
    Load { scope: Scope, reply: Reply<Vec<(String, Vec<u8>)>> },
    Filesystems { reply: Reply<Vec<FsId>> },
}

/// Owner of the connection.
pub(super) struct Writer {
    /// `None` after an error whose outcome is unknown: opened again before the next use.
    conn: Option<Connection>,
    path: PathBuf,
    pool: PoolId,
    ballast: Ballast,
    ballast_bytes: u64,
    low: Arc<AtomicBool>,
    points: Failpoints,
    observer: Option<super::Observer>,
}

impl Writer {
    pub(super) fn open(path: &Path, pool: PoolId, options: Options, low: Arc<AtomicBool>) -> Result<Self, JournalError> {
        let mut ballast = Ballast::beside(path, options.ballast);
        let conn = match schema::open(path, pool) {
            Err(JournalError::Full) if ballast.release() => schema::open(path, pool)?,
            other => other?,
        };
        low.store(!ballast.restore(), Ordering::Relaxed);
        Ok(Self {
            conn: Some(conn),
            path: path.to_owned(),
            pool,
            ballast,
            ballast_bytes: options.ballast,
            low,
            points: Failpoints::from_env(),
            observer: options.observer,
        })
    }

    /// Serves until every requester is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let first = if self.ballast.in_place() {
                jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                jobs.recv_timeout(BALLAST_RETRY)
            };
            match first {
                Ok(job) => self.serve(job, jobs),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !self.ballast.in_place() {
                let restored = self.ballast.restore();
                self.low.store(!restored, Ordering::Relaxed);
                if restored {
                    tracing::info!("the journal's ballast is back in place");
                }
            }
        }
    }

    /// Takes all that waits, in order. Reads see the commits before them.
    fn serve(&mut self, first: Job, jobs: &Receiver<Job>) {
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Commit(commit) => {
                    batch.push(commit);
                    if batch.len() >= MAX_BATCH {
                        self.commit_all(std::mem::take(&mut batch));
                    }
                }
                Job::Load { scope, reply } => {
                    self.commit_all(std::mem::take(&mut batch));
                    let _ = reply.send(self.read(|c| load(c, scope)));
                }
                Job::Filesystems { reply } => {
                    self.commit_all(std::mem::take(&mut batch));
                    let _ = reply.send(self.read(filesystems));
                }
            }
            next = jobs.try_recv().ok();
        }
        self.commit_all(batch);
    }

    fn commit_all(&mut self, batch: Vec<Commit>) {
        if batch.is_empty() {
            return;
        }
        let requests: Vec<&Commit> = batch.iter().collect();
        let results = match self.transaction(&requests) {
            Ok(results) => results,
            Err(JournalError::Full) => self.one_by_one(&requests),
            Err(e) => requests.iter().map(|_| Err(e.clone())).collect(),
        };
        for (commit, result) in batch.into_iter().zip(results) {
            let _ = commit.reply.send(result);
        }
    }

    /// The disk is full: with the ballast's space, each request on its own, so that the small ones get through.
    fn one_by_one(&mut self, requests: &[&Commit]) -> Vec<Result<(), JournalError>> {
        if self.ballast.release() {
            tracing::error!("the disk of the state directory is full: the journal's ballast is released, new work will be refused");
        }
        self.low.store(true, Ordering::Relaxed);
        let alone = |request: &&Commit| self.transaction(&[request])?.pop().unwrap_or(Err(JournalError::Stopped));
        requests.iter().map(alone).collect()
    }

    /// All of `requests` in one transaction. `Err`: nothing of it is there (`Full`), or nobody knows (`Storage`).
    fn transaction(&mut self, requests: &[&Commit]) -> Result<Vec<Result<(), JournalError>>, JournalError> {
        let started = Instant::now();
        let result = self.try_transaction(requests);
        if result.is_err() {
            // Frames of a commit that failed may lie in the log. Opening again settles whether they count, before
            // anyone can read, so that `load` and a later crash agree.
            self.conn = None;
        }
        if let Some(observer) = &self.observer {
            observer(Observation { took: started.elapsed(), requests: requests.len(), ok: result.is_ok() });
        }
        if let Err(e) = &result {
            tracing::error!(error = %e, requests = requests.len(), "a journal transaction failed");
        }
        result
    }

    fn try_transaction(&mut self, requests: &[&Commit]) -> Result<Vec<Result<(), JournalError>>, JournalError> {
        let refused: Vec<bool> = requests.iter().map(|r| self.too_big_for_low_space(&r.entries)).collect();
        self.connection()?;
        let Self { conn: Some(conn), points, .. } = self else {
            return Err(JournalError::Stopped);
        };
        let mut tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut results = Vec::with_capacity(requests.len());
        for (request, refused) in requests.iter().zip(refused) {
            results.push(if refused || points.error(&request.entries) { Err(JournalError::Full) } else { apply(&mut tx, request)? });
        }
        let done = || requests.iter().zip(&results).filter(|(_, r)| r.is_ok()).map(|(q, _)| &q.entries);
        done().for_each(|e| points.before(e));
        tx.commit()?;
        done().for_each(|e| points.after(e));
        done().flatten().for_each(|e| tracing::debug!(record = e.name, "durable"));
        Ok(results)
    }

    fn too_big_for_low_space(&self, entries: &[Entry]) -> bool {
        if self.ballast.in_place() {
            return false;
        }
        let put = |e: &Entry| match &e.op {
            Op::Put { key, value } => key.len().saturating_add(value.len()),
            Op::Delete { .. } | Op::DeleteAll => 0,
        };
        entries.iter().map(put).sum::<usize>() > LOW_SPACE_PUT && ballast::free_bytes(&self.path) < self.ballast_bytes / 2
    }

    fn read<T>(&mut self, query: impl FnOnce(&Connection) -> Result<T, JournalError>) -> Result<T, JournalError> {
        let result = self.connection().and_then(|c| query(c));
        if matches!(result, Err(JournalError::Storage { .. })) {
            self.conn = None;
        }
        result
    }

    fn connection(&mut self) -> Result<&mut Connection, JournalError> {
        if self.conn.is_none() {
            self.conn = Some(schema::reopen(&self.path, self.pool)?);
        }
        self.conn.as_mut().ok_or(JournalError::Stopped)
    }
}

/// One request under its savepoint. The outer error loses the whole transaction, the inner one this request only.
fn apply(tx: &mut rusqlite::Transaction<'_>, request: &Commit) -> Result<Result<(), JournalError>, JournalError> {
    let savepoint = tx.savepoint()?;
    match write(&savepoint, request) {
        Ok(()) => {
            savepoint.commit()?;
            Ok(Ok(()))
        }
        Err(e @ JournalError::Invalid { .. }) => {
            savepoint.finish()?; // rolls back
            Ok(Err(e))
        }
        Err(e) => Err(e),
    }
}

fn write(conn: &Connection, request: &Commit) -> Result<(), JournalError> {
    let scope = scope_text(request.scope);
    let mut put = conn.prepare_cached(
        "INSERT INTO record (scope, key, value) VALUES (?1, ?2, ?3) ON CONFLICT (scope, key) DO UPDATE SET value = excluded.value",
    )?;
    let mut delete = conn.prepare_cached("DELETE FROM record WHERE scope = ?1 AND key = ?2")?;
    let mut delete_all = conn.prepare_cached("DELETE FROM record WHERE scope = ?1")?;
    for entry in &request.entries {
        match &entry.op {
            Op::Put { key, value } => put.execute(params![scope, key, value])?,
            Op::Delete { key } => delete.execute(params![scope, key])?,
            Op::DeleteAll => delete_all.execute(params![scope])?,
        };
    }
    Ok(())
}

fn load(conn: &Connection, scope: Scope) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
    let mut query = conn.prepare_cached("SELECT key, value FROM record WHERE scope = ?1 ORDER BY key")?;
    let rows = query.query_map(params![scope_text(scope)], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Skips from scope to scope by the primary key instead of reading every row.
fn filesystems(conn: &Connection) -> Result<Vec<FsId>, JournalError> {
    let mut query = conn.prepare_cached("SELECT min(scope) FROM record WHERE scope > ?1")?;
    let mut found = Vec::new();
    let mut last = String::new();
    while let Some(scope) = query.query_row(params![last], |r| r.get::<_, Option<String>>(0))? {
        if scope != NODE {
            found.push(scope.parse().map_err(|e| JournalError::Storage { message: format!("a record of no Filesystem: {e}") })?);
        }
        last = scope;
    }
    Ok(found)
}

/// Scope of the node's own records; no UUID looks like it.
const NODE: &str = "node";

fn scope_text(scope: Scope) -> String {
    match scope {
        Scope::Node => NODE.to_owned(),
        Scope::Fs(fs) => fs.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(dir: &Path) -> Writer {
        let pool = "0198c2a5-7f00-4000-8000-0000000000aa".parse().unwrap();
        Writer::open(&dir.join("journal.db"), pool, Options { ballast: 0, observer: None }, Arc::default()).unwrap()
    }

    fn request(keys: &[&str]) -> (Commit, oneshot::Receiver<Result<(), JournalError>>) {
        let (reply, answer) = oneshot::channel();
        let entries = keys.iter().map(|k| Entry::put("Test", *k, *b"v")).collect();
        (Commit { scope: Scope::Node, entries, reply }, answer)
    }

    #[test]
    fn one_bad_batch_does_not_spoil_the_others_of_its_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        let trigger = "CREATE TRIGGER t BEFORE INSERT ON record WHEN new.key = 'bad' BEGIN SELECT RAISE(ABORT, 'bad key'); END";
        writer.conn.as_ref().unwrap().execute_batch(trigger).unwrap();

        let ((a, mut ra), (b, mut rb), (c, mut rc)) = (request(&["a1", "a2"]), request(&["b1", "bad", "b2"]), request(&["c"]));
        writer.commit_all(vec![a, b, c]);

        assert_eq!(ra.try_recv().unwrap(), Ok(()));
        assert!(matches!(rb.try_recv().unwrap(), Err(JournalError::Invalid { .. })));
        assert_eq!(rc.try_recv().unwrap(), Ok(()));
        let keys: Vec<_> = writer.read(|c| load(c, Scope::Node)).unwrap().into_iter().map(|(k, _)| k).collect();
        assert_eq!(keys, ["a1", "a2", "c"]);
    }

    #[test]
    fn after_a_lost_connection_the_next_request_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        writer.conn.as_ref().unwrap().execute_batch("DROP TABLE record").unwrap();
        let (a, mut ra) = request(&["a"]);
        writer.commit_all(vec![a]);
        assert!(matches!(ra.try_recv().unwrap(), Err(JournalError::Storage { .. })));
        assert!(writer.conn.is_none(), "a failed transaction must not be trusted further");
        writer.connection().unwrap().execute_batch("CREATE TABLE record (scope, key, value, PRIMARY KEY (scope, key))").unwrap();
        let (b, mut rb) = request(&["b"]);
        writer.commit_all(vec![b]);
        assert_eq!(rb.try_recv().unwrap(), Ok(()));
    }
}
