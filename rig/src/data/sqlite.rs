//! A database under load. [`SqliteWriter`] is a process of its own that writes transactions to an SQLite database in
//! WAL mode and notes each acknowledged one in a file elsewhere; [`check`] says whether a copy holds them all.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rusqlite::Connection;

use crate::rig::wait::eventually;

/// Rows of one transaction.
const ROWS: i64 = 4;

/// A running writer. Dropping it kills it.
pub struct SqliteWriter {
    child: Child,
    notes: PathBuf,
}

impl SqliteWriter {
    /// Starts a writer on `database` that notes acknowledged transactions in `notes`; waits for the first.
    pub async fn start(database: &Path, notes: &Path) -> Result<Self> {
        let errors = File::create(notes.with_extension("errors"))?;
        let child = Command::new("/proc/self/exe")
            .arg("sqlite-writer")
            .args([database, notes])
            .stdin(Stdio::null())
            .stderr(errors)
            .spawn()
            .context("starting the SQLite writer")?;
        let mut writer = Self { child, notes: notes.into() };
        eventually("the SQLite writer's first transaction", Duration::from_secs(90), || {
            let result = writer.progress();
            async move {
                match result? {
                    0 => bail!("none yet"),
                    _ => Ok(()),
                }
            }
        })
        .await?;
        Ok(writer)
    }

    /// The newest acknowledged transaction. An error if the writer has ended: writing failed.
    pub fn progress(&mut self) -> Result<i64> {
        if let Some(status) = self.child.try_wait()? {
            let errors = fs::read_to_string(self.notes.with_extension("errors")).unwrap_or_default();
            bail!("the SQLite writer has ended ({status}): {errors}");
        }
        acknowledged(&self.notes)
    }

    /// Kills it, as a crash would, and returns the newest acknowledged transaction.
    pub fn kill(mut self) -> Result<i64> {
        self.child.kill()?;
        self.child.wait()?;
        acknowledged(&self.notes)
    }

    /// Ends it after the transaction it is in; an error if writing has failed before.
    pub fn stop(mut self) -> Result<i64> {
        self.progress()?;
        fs::write(self.notes.with_extension("stop"), b"")?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the SQLite writer failed: {}", fs::read_to_string(self.notes.with_extension("errors")).unwrap_or_default());
        }
        acknowledged(&self.notes)
    }
}

impl Drop for SqliteWriter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The newest transaction noted in a file of notes; 0 if none.
pub fn acknowledged(notes: &Path) -> Result<i64> {
    let text = match fs::read_to_string(notes) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    Ok(text.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0))
}

/// The writer's process: `dotgraft-e2e sqlite-writer DATABASE NOTES`.
pub fn writer_main(database: &Path, notes: &Path) -> Result<()> {
    let mut db = Connection::open(database)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=200;
         CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, tx INTEGER NOT NULL, payload BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY CHECK (one = 1), rows INTEGER NOT NULL);
         INSERT OR IGNORE INTO total VALUES (1, 0);",
    )?;
    let mut notes_file = File::options().create(true).append(true).open(notes)?;
    let stop = notes.with_extension("stop");
    let mut number: i64 = db.query_row("SELECT coalesce(max(tx), 0) FROM log", [], |row| row.get(0))?;
    while !stop.exists() {
        number += 1;
        let tx = db.transaction()?;
        for _ in 0..ROWS {
            tx.execute("INSERT INTO log (tx, payload) VALUES (?1, randomblob(700))", [number])?;
        }
        tx.execute("UPDATE total SET rows = rows + ?1", [ROWS])?;
        tx.commit()?;
        writeln!(notes_file, "{number}")?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Copies `database` (with its WAL) from what may be a read-only tree to `scratch`, checks its integrity and that
/// no transaction is missing or half there; returns the newest. It must be at least `at_least`.
pub fn check(database: &Path, scratch: &Path, at_least: i64) -> Result<i64> {
    fs::create_dir_all(scratch)?;
    let copy = scratch.join("copy.db");
    for suffix in ["", "-wal"] {
        let from = PathBuf::from(format!("{}{suffix}", database.display()));
        let to = PathBuf::from(format!("{}{suffix}", copy.display()));
        let _ = fs::remove_file(&to);
        if from.exists() {
            fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
    }
    let _ = fs::remove_file(format!("{}-shm", copy.display()));
    let db = Connection::open(&copy)?;
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if verdict != "ok" {
        bail!("PRAGMA integrity_check of {}: {verdict}", database.display());
    }
    let (rows, newest): (i64, i64) = db.query_row("SELECT count(*), coalesce(max(tx), 0) FROM log", [], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let total: i64 = db.query_row("SELECT rows FROM total", [], |row| row.get(0))?;
    if rows != newest * ROWS || total != rows {
        bail!("{}: {rows} rows, {total} counted, {newest} transactions of {ROWS}: some are missing", database.display());
    }
    if newest < at_least {
        bail!("{}: transaction {at_least} was acknowledged, the newest is {newest}", database.display());
    }
    Ok(newest)
}
