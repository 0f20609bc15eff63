//! The rows of a journal whose agent doesn't run: read and written as another program would have written them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, OptionalExtension as _, params};

/// The row `key` of a Filesystem in the journal below a state directory; `None`: there is none.
///
/// # Errors
///
/// The journal can't be opened (its agent runs), or the row is no text.
pub fn row(state: &Path, fs_id: &str, key: &str) -> Result<Option<String>> {
    let select = "SELECT value FROM record WHERE scope = ?1 AND key = ?2";
    let value: Option<Vec<u8>> = open(state)?.query_row(select, params![fs_id, key], |row| row.get(0)).optional()?;
    value.map(String::from_utf8).transpose().context("the row is no text")
}

/// Writes the row, or takes it away.
///
/// # Errors
///
/// The journal can't be opened (its agent runs), or there is no row to take away.
pub fn set_row(state: &Path, fs_id: &str, key: &str, value: Option<&str>) -> Result<()> {
    let journal = open(state)?;
    let done = match value {
        Some(value) => journal.execute("INSERT OR REPLACE INTO record VALUES (?1, ?2, ?3)", params![fs_id, key, value.as_bytes()])?,
        None => journal.execute("DELETE FROM record WHERE scope = ?1 AND key = ?2", params![fs_id, key])?,
    };
    ensure!(done == 1, "{done} rows `{key}` of {fs_id}");
    Ok(())
}

fn open(state: &Path) -> Result<Connection> {
    let path = state.join("journal.db");
    ensure!(path.exists(), "no journal at {}", path.display());
    Ok(Connection::open(path)?)
}
