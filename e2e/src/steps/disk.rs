//! Disks that are full, or fail.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::json;

use crate::harness::Test;
use crate::rig::command::run;

/// A file that can't be written, by anybody, not even through an open descriptor: a loop device above it fails every write. It can again when
/// this is dropped.
pub struct Unwritable<'a>(&'a Path);

impl<'a> Unwritable<'a> {
    /// From now on.
    ///
    /// # Errors
    ///
    /// The file system doesn't know immutable files.
    pub fn new(file: &'a Path) -> Result<Self> {
        run("chattr", &["+i", &file.to_string_lossy()]).context("the rig must lie on a file system that knows immutable files (ext4)")?;
        Ok(Self(file))
    }
}

impl Drop for Unwritable<'_> {
    fn drop(&mut self) {
        let _ = run("chattr", &["-i", &self.0.to_string_lossy()]);
    }
}

/// A Dot `filler` that may hold a whole pool of 1 GiB, with its head mounted.
///
/// # Errors
///
/// It can't be made or mounted.
pub async fn filler(t: &Test, node: &str) -> Result<PathBuf> {
    let spec = json!({"capacity": "1Gi", "historyLimit": "64Mi", "placement": {"node": node}});
    let fs_id = t.dot_of("filler", &spec).await?;
    t.mount(node, &fs_id).await
}

/// Takes all that a pool has left for data, by a file `fill`.
///
/// # Errors
///
/// There was hardly any, or it can't be taken.
pub fn fill(head: &Path) -> Result<()> {
    let file = File::create(head.join("fill"))?;
    let mut size = 0;
    for step in [128u64 << 20, 16 << 20, 1 << 20] {
        for _ in 0..64 {
            match fallocate(&file, FallocateFlags::empty(), size, step) {
                Ok(()) => size += step,
                Err(rustix::io::Errno::NOSPC) => break,
                Err(e) => bail!("fallocate: {e}"),
            }
        }
    }
    file.sync_all()?;
    ensure!(size > 256 << 20, "only {} MiB were left", size >> 20);
    Ok(())
}
