//! Trees of tens of thousands of files to copy: the machine's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// What a copy brought.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Files, directories and links.
    pub entries: usize,
}

/// The machine's tree with the most entries, counted up to `limit`: `/usr/share`, the Go module cache or cargo's sources.
pub fn source(limit: usize) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let candidates = [home.join(".cargo/registry/src"), home.join("go/pkg/mod"), "/usr/share".into()];
    let found = candidates.into_iter().filter(|p| p.is_dir()).max_by_key(|p| count(p, limit).unwrap_or(0));
    found.context("no big tree on this machine to copy")
}

fn count(dir: &Path, limit: usize) -> Result<usize> {
    let mut entries = 1;
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        entries += if entry.file_type()?.is_dir() { count(&entry.path(), limit)? } else { 1 };
        if entries > limit {
            break; // enough to know
        }
    }
    Ok(entries)
}

/// `cp -a` of whole subdirectories of `from` into `to`, in order of their names, as long as it stays below `limit` entries.
pub fn copy(from: &Path, to: &Path, limit: usize) -> Result<Copied> {
    std::fs::create_dir_all(to)?;
    let mut parts: Vec<PathBuf> = std::fs::read_dir(from)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    parts.sort();
    let (mut total, mut chosen) = (0, Vec::new());
    for part in parts {
        let entries = if part.is_dir() && !part.is_symlink() { count(&part, limit)? } else { 1 };
        if total + entries <= limit {
            total += entries;
            chosen.push(part);
        }
    }
    if chosen.is_empty() {
        bail!("no part of {} has less than {limit} entries", from.display());
    }
    let output = Command::new("cp").arg("-a").args(&chosen).arg(to).output().context("running cp")?;
    if !output.status.success() {
        bail!("cp -a to {}: {}", to.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(Copied { entries: total })
}
