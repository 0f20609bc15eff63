//! How much changed between two commits, by a walk over extents (platform.md §4, "tree search"): for estimates and a commit's size.

use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use dotgraft_engine::ids::{CommitId, FsId};
use dotgraft_engine::model::Origin;

use super::fsx::Context;
use super::ioctl::SearchKey;
use super::search::{self, FIRST_INODE, LAST_FREE, kind};
use super::{BtrfsPool, meta, quota};
use crate::driver::DriverError;

/// An estimate may take this long.
const BUDGET: Duration = Duration::from_millis(250);
/// Stream bytes for an inode that changed: its commands and attributes.
const PER_INODE: u64 = 250;

/// What an inode takes in the trees of another pool, with its names and references: generously.
const METADATA_PER_INODE: u64 = 1 << 10;

/// Bounds that cover all inodes of a tree.
pub fn all_inodes(tree: u64, newer_than: u64) -> SearchKey {
    SearchKey {
        tree,
        min: (FIRST_INODE, kind::INODE, 0),
        max: (LAST_FREE, 255, u64::MAX),
        min_transid: if newer_than == 0 { 0 } else { newer_than.saturating_add(1) },
    }
}

/// Data bytes of extents made after the transaction `newer_than` that `counts` takes, and the number of inodes changed after it; `None` if the walk would
/// take longer than `budget`.
fn walk(
    root: BorrowedFd<'_>,
    tree: u64,
    newer_than: u64,
    budget: Duration,
    counts: impl Fn(&search::Extent) -> bool,
) -> Result<Option<(u64, u64)>, DriverError> {
    let started = Instant::now();
    let (mut bytes, mut inodes, mut late, mut seen) = (0_u64, 0_u64, false, 0_u32);
    search::for_each(root, all_inodes(tree, newer_than), 64 << 10, |item| {
        seen = seen.wrapping_add(1);
        if seen % 256 == 0 && started.elapsed() > budget {
            late = true;
            return ControlFlow::Break(());
        }
        if item.kind == kind::INODE && item.u64_at(8).is_some_and(|transid| transid > newer_than) {
            inodes += 1;
        } else if let Some(extent) = search::extent(&item).filter(|e| e.generation > newer_than && counts(e)) {
            bytes = bytes.saturating_add(extent.len);
        }
        ControlFlow::Continue(())
    })
    .doing(|| "walk a tree".to_owned())?;
    Ok((!late).then_some((bytes, inodes)))
}

/// Data bytes of extents made after a transaction; `None` if it takes longer than `budget` to know.
///
/// # Errors
///
/// The search of the extent tree fails.
pub fn data_newer_than(root: BorrowedFd<'_>, tree: u64, newer_than: u64, budget: Duration) -> Result<Option<u64>, DriverError> {
    Ok(walk(root, tree, newer_than, budget, |_| true)?.map(|(bytes, _)| bytes))
}

impl BtrfsPool {
    /// See [`crate::driver::Driver::file_bytes`].
    pub(super) fn size_of_files(&self, fs: FsId) -> Result<Option<u64>, DriverError> {
        data_newer_than(self.root(), self.head(fs)?.info.id, 0, BUDGET)
    }

    /// See [`crate::driver::Driver::began_with`]. Where a quarter of a second isn't enough to know it, all that its origin has.
    pub(super) fn size_at_birth(&self, fs: FsId, origin: Origin) -> Result<u64, DriverError> {
        let head = self.head(fs)?.info;
        let at_birth = |e: &search::Extent| e.generation <= head.created;
        if let Some((bytes, inodes)) = walk(self.root(), head.id, 0, BUDGET, at_birth)? {
            return Ok(bytes.saturating_add(inodes.saturating_mul(METADATA_PER_INODE)));
        }
        let meta = meta::read_fs(self.fs_dir(origin.fs_id)?, self.info.id)?;
        let bytes = quota::usage(self.root(), self.info.id, meta.qgroup)?.bytes;
        Ok(bytes.saturating_add(meta.origin_bytes))
    }

    /// See [`crate::driver::Driver::estimate`]. Deletions and renames are left out; clones count as data.
    pub(super) fn estimate_send(&self, fs: FsId, base: Option<CommitId>, target: CommitId) -> Result<Option<u64>, DriverError> {
        let target = self.commit_subvol(fs, target)?.info;
        let base = base.map(|b| self.commit_subvol(fs, b)).transpose()?;
        let newer_than = base.map_or(0, |b| b.info.created);
        let found = walk(self.root(), target.id, newer_than, BUDGET, |_| true)?;
        Ok(found.map(|(bytes, inodes)| bytes.saturating_add(inodes.saturating_mul(PER_INODE))))
    }
}
