//! Heads and commits: create, take, describe, delete (storage.md §1, §2, §5).

use std::os::fd::AsFd;
use std::time::Duration;

use dotgraft_engine::ids::{CommitId, FsId};
use dotgraft_engine::model::{Commit, Origin};
use rustix::io::Errno;

use super::fsx::{self, Context, What, fail};
use super::subvol::Subvol;
use super::{BtrfsPool, estimate, fold, ioctl, layout, locked, meta, mounts, quota, subvol};
use crate::driver::{CommitDone, DriverError, FsMeta, held_by_nobody};

/// The measuring of a commit's size may take this long.
const MEASURE: Duration = Duration::from_millis(3);

/// A commit that is there already; its metadata is put beside it if that is missing or damaged. A newer program's is left as it is.
pub fn existing(commits: impl AsFd, commit: &Commit) -> Result<Option<Subvol>, DriverError> {
    let Some(there) = subvol::find(&commits, &commit.id.to_string())? else { return Ok(None) };
    match meta::read_commit(&commits, commit.id) {
        Ok(_) => {}
        Err(DriverError::NotFound(_) | DriverError::BadMetadata(_)) => {
            meta::write_commit(&commits, commit)?;
            fsx::sync_dir(&commits)?;
        }
        Err(e) => return Err(e),
    }
    Ok(Some(there))
}

/// Metadata first, fsynced, then `snapshot -r`, whose transaction makes the name of the metadata durable as well.
pub fn snapshot_commit(commits: impl AsFd, source: &Subvol, qgroup: u64, commit: &Commit) -> Result<(), DriverError> {
    meta::write_commit(&commits, commit)?;
    match ioctl::snapshot(&commits, &commit.id.to_string(), &source.fd, true, quota::level1(qgroup)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => {
            let _ = fsx::remove_file(&commits, &layout::commit_json(commit.id)); // best effort: `inspect` calls it broken otherwise
            Err(fail(format!("snapshot of {}", commit.fs_id), e))
        }
    }
}

impl BtrfsPool {
    /// See [`crate::driver::Driver::prepare`].
    pub(super) fn prepare_fs(&self, meta: &FsMeta) -> Result<(), DriverError> {
        let all = fsx::open_dir(&self.root, layout::FS)?;
        let name = meta.fs_id.to_string();
        fsx::make_dir(&all, &name)?;
        let dir = fsx::open_dir(&all, &name)?;
        for sub in [layout::COMMITS, layout::INCOMING, layout::CHECKPOINTS] {
            fsx::make_dir(&dir, sub)?;
        }
        // Known to be in use before it is there, and no `fs.json` says so yet.
        locked(&self.allocated).insert(meta.qgroup);
        quota::ensure(&self.root, meta.qgroup)?;
        quota::set_limit(&self.root, meta.qgroup, meta.limit())?;
        meta::write_fs(&dir, meta)?;
        fsx::sync_dir(all)?;
        // The qgroup and the directories are of this transaction, or of one before.
        ioctl::commit_transaction(&self.root).doing(|| "commit the transaction".to_owned())
    }

    /// See [`crate::driver::Driver::create_head`].
    pub(super) fn make_head(&self, fs: FsId, qgroup: u64, from: Option<Origin>) -> Result<(), DriverError> {
        let dir = self.fs_dir(fs)?;
        match fsx::what(&dir, layout::HEAD)? {
            Some(What::Subvolume) => return fsx::sync_dir(dir), // it may have been made just before a crash of the agent
            Some(_) => return Err(DriverError::BadMetadata(format!("the head of {fs} is not a subvolume"))),
            None => {}
        }
        self.space_now()?.checked()?;
        let group = quota::level1(qgroup);
        let made = match from {
            None => ioctl::subvol_create(&dir, layout::HEAD, group),
            Some(origin) => {
                let source = self.commit_subvol(origin.fs_id, origin.commit)?;
                ioctl::snapshot(&dir, layout::HEAD, source.fd, false, group)
            }
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => fsx::sync_dir(dir),
            Err(e) => Err(fail(format!("create the head of {fs}"), e)),
        }
    }

    /// See [`crate::driver::Driver::commit`].
    pub(super) fn take_commit(&self, qgroup: u64, commit: &Commit) -> Result<CommitDone, DriverError> {
        let commits = self.fs_sub(commit.fs_id, layout::COMMITS)?;
        if let Some(there) = existing(&commits, commit)? {
            return Ok(CommitDone { changed_bytes: self.measure(commit, &there), folded: None });
        }
        self.space_now()?.checked()?;
        let folded = fold::take(self, &commits, &self.head(commit.fs_id)?, qgroup, commit)?;
        let taken = subvol::open(&commits, &commit.id.to_string())?;
        Ok(CommitDone { changed_bytes: self.measure(commit, &taken), folded })
    }

    fn measure(&self, commit: &Commit, taken: &Subvol) -> Option<u64> {
        let parent = self.commit_subvol(commit.fs_id, commit.parent?).ok()?;
        estimate::data_newer_than(self.root(), taken.info.id, parent.info.created, MEASURE).ok().flatten()
    }

    /// See [`crate::driver::Driver::write_commit_meta`].
    pub(super) fn replace_commit_meta(&self, commit: &Commit) -> Result<(), DriverError> {
        let commits = self.fs_sub(commit.fs_id, layout::COMMITS)?;
        subvol::open(&commits, &commit.id.to_string())?;
        meta::write_commit(&commits, commit)?;
        fsx::sync_dir(commits)
    }

    /// See [`crate::driver::Driver::delete_commit`]. The subvolume goes first: metadata alone is easily seen as half of a deletion.
    pub(super) fn remove_commit(&self, fs: FsId, commit: CommitId) -> Result<(), DriverError> {
        let Some(commits) = fsx::maybe(self.fs_sub(fs, layout::COMMITS))? else { return Ok(()) };
        let name = commit.to_string();
        let root = layout::as_mounted(&layout::commit(fs, commit));
        held_by_nobody(&mounts::holders(&self.dev, |r| r.starts_with(&root))?)?;
        subvol::remove(self, &commits, &name)?;
        fsx::remove_file(&commits, &layout::commit_json(commit))?;
        // A transaction of its own accord sets the kernel's cleaner to work, an fsync does not: else the space comes back 30 s later.
        ioctl::commit_transaction(&self.root).doing(|| "commit the transaction".to_owned())?;
        fsx::sync_dir(commits)
    }

    /// See [`crate::driver::Driver::head_changed_since`].
    ///
    /// Generations of the *committed* trees: if the head's is newer already, nothing has to be written back to know it; else it is, once.
    /// The commit's own generation is no measure: snapshots taken *of* it make it newer. Its creation is.
    pub(super) fn changed_since(&self, fs: FsId, commit: CommitId) -> Result<bool, DriverError> {
        if self.written_since(fs, commit)? {
            return Ok(true);
        }
        ioctl::sync(&self.root).doing(|| "write the pool back".to_owned())?;
        self.written_since(fs, commit)
    }

    /// See [`crate::driver::Driver::head_written_since`].
    pub(super) fn written_since(&self, fs: FsId, commit: CommitId) -> Result<bool, DriverError> {
        let (taken, head) = (self.commit_subvol(fs, commit)?.info, self.head(fs)?.info);
        Ok(if taken.parent_uuid == head.uuid {
            head.generation > taken.created // the commit was taken of this head
        } else if head.parent_uuid == taken.uuid {
            head.generation > head.created // this head was made from the commit
        } else {
            true // neither: no generations to compare
        })
    }
}
