//! The journal's file: how it is made, recognised, bound to a pool and brought up to date.
//!
//! Format 1: `application_id` "DGJL", `user_version` 1, a table `meta` with the pool, a table `record`. A newer format is
//! refused, not guessed; `tests/journal_golden_v1.sql` is what format 1 looks like for ever.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use dotgraft_engine::ids::PoolId;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::JournalError;

/// "DGJL": tells our files from other people's.
const APPLICATION_ID: i64 = 0x4447_4a4c;
/// The format that this program writes, and the newest that it reads.
const VERSION: i64 = 1;
/// How long an old agent may take to let go of the file.
const BUSY: Duration = Duration::from_secs(1);

const TABLES: &str = "
CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE record (scope TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (scope, key)) STRICT, WITHOUT ROWID;
";

/// What the file says it is.
enum Found {
    Empty,
    Ours { pool: PoolId },
}

/// Opens or makes the journal of `pool`, and checks that it isn't damaged.
pub(super) fn open(path: &Path, pool: PoolId) -> Result<Connection, JournalError> {
    let conn = reopen(path, pool)?;
    let sound: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if sound != "ok" {
        return Err(JournalError::Storage {
            message: format!("it is damaged ({sound}): move it away; the Filesystems can be adopted again from the pool"),
        });
    }
    Ok(conn)
}

/// The same without the check, which takes time on a large journal.
pub(super) fn reopen(path: &Path, pool: PoolId) -> Result<Connection, JournalError> {
    let is_new = create_file(path)?;
    let mut conn = connect(path)?;
    match inspect(&conn)? {
        Found::Empty => create(&mut conn, pool)?,
        Found::Ours { pool: bound } if bound != pool => {
            return Err(JournalError::OtherPool { bound, asked: pool });
        }
        Found::Ours { .. } => {}
    }
    settle(&conn)?;
    if is_new {
        sync_parent(path)?;
    }
    Ok(conn)
}

/// Which pool the journal at `path` is bound to; `None` if there is no journal yet. Binds and makes nothing.
///
/// # Errors
/// As [`super::Journal::open`]: a file that can't be read is not the same as no file.
pub fn pool_of(path: &Path) -> Result<Option<PoolId>, JournalError> {
    match std::fs::metadata(path) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path, &e)),
    }
    match inspect(&connect(path)?)? {
        Found::Empty => Ok(None),
        Found::Ours { pool } => Ok(Some(pool)),
    }
}

fn connect(path: &Path) -> Result<Connection, JournalError> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY)?;
    // Before the first access: then WAL keeps its index on the heap and there is no mapped -shm file, whose pages
    // could raise SIGBUS on a full disk (storage.md §1).
    conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    Ok(conn)
}

fn inspect(conn: &Connection) -> Result<Found, JournalError> {
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    let application: i64 = conn.pragma_query_value(None, "application_id", |r| r.get(0))?;
    let version: i64 = conn.pragma_query_value(None, "user_version", |r| r.get(0))?;
    if tables == 0 && application == 0 && version == 0 {
        return Ok(Found::Empty);
    }
    if application != APPLICATION_ID {
        return Err(JournalError::NotAJournal { message: format!("application id {application:#x}, {tables} tables") });
    }
    if version > VERSION {
        return Err(JournalError::TooNew { found: version, known: VERSION });
    }
    if version < VERSION {
        return Err(JournalError::NotAJournal { message: format!("format {version} was never released") });
    }
    let pool: Option<String> = conn.query_row("SELECT value FROM meta WHERE key = 'pool'", [], |r| r.get(0)).optional()?;
    let pool = pool.ok_or_else(|| JournalError::NotAJournal { message: "it names no pool".into() })?;
    let pool = pool.parse().map_err(|e| JournalError::NotAJournal { message: format!("{e}") })?;
    Ok(Found::Ours { pool })
}

/// One transaction: after a crash the file is empty or whole.
fn create(conn: &mut Connection, pool: PoolId) -> Result<(), JournalError> {
    wal(conn)?;
    let tx = conn.transaction()?;
    tx.execute_batch(TABLES)?;
    tx.execute("INSERT INTO meta (key, value) VALUES ('pool', ?1)", params![pool.to_string()])?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()?;
    Ok(())
}

/// What holds for every connection that writes.
fn settle(conn: &Connection) -> Result<(), JournalError> {
    wal(conn)?;
    conn.pragma_update(None, "journal_size_limit", 8 << 20)?;
    Ok(())
}

/// WAL with a sync at each commit: that is what "durable" means here.
fn wal(conn: &Connection) -> Result<(), JournalError> {
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |r| r.get(0))?;
    if mode != "wal" {
        return Err(JournalError::Storage { message: format!("SQLite gave journal mode `{mode}` instead of WAL") });
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    Ok(())
}

/// Makes an empty file that only root reads; the write-ahead log takes over its mode.
fn create_file(path: &Path) -> Result<bool, JournalError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(io(path, &e)),
    }
}

fn sync_parent(path: &Path) -> Result<(), JournalError> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|d| d.sync_all()).map_err(|e| io(parent, &e))
}

fn io(path: &Path, e: &std::io::Error) -> JournalError {
    if e.kind() == std::io::ErrorKind::StorageFull {
        return JournalError::Full;
    }
    JournalError::Storage { message: format!("{}: {e}", path.display()) }
}
