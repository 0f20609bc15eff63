//! Removes all of a Filesystem (storage.md §1, §3, §5).

use std::os::fd::OwnedFd;

use dotgraft_engine::ids::FsId;
use rustix::fs::AtFlags;

use super::fsx::{self, Context, What};
use super::subvol::Subvol;
use super::{BtrfsPool, ioctl, layout, locked, meta, mounts, quota, subvol};
use crate::driver::{DriverError, Holder, held_by_nobody};

impl BtrfsPool {
    /// See [`crate::driver::Driver::holders`].
    pub(super) fn holders_of(&self, fs: FsId) -> Result<Vec<Holder>, DriverError> {
        let root = layout::as_mounted(&layout::dir(fs));
        mounts::holders(&self.dev, |r| r.starts_with(&root))
    }

    /// See [`crate::driver::Driver::head_holders`].
    pub(super) fn holders_of_head(&self, fs: FsId) -> Result<Vec<Holder>, DriverError> {
        let root = layout::as_mounted(&layout::head(fs));
        mounts::holders(&self.dev, |r| r.starts_with(&root)) // by whole components
    }

    /// See [`crate::driver::Driver::destroy`].
    ///
    /// The limits go, because deleting what is nested writes in the volume.
    pub(super) fn destroy_fs(&self, fs: FsId, qgroup: u64) -> Result<(), DriverError> {
        if let Some(dir) = fsx::maybe(self.fs_dir(fs))? {
            meta::refuse_newer_fs(&dir)?;
            match subvol::find(&dir, layout::HEAD)? {
                Some(head) => {
                    self.freeze_unless_held(&head, || self.holders_of(fs))?;
                    self.open_to_nested(&head, &[qgroup])?;
                }
                None => held_by_nobody(&self.holders_of(fs)?)?,
            }
            self.remove_subvolumes(&dir)?;
            self.remove_rest(fs, &dir)?;
        }
        fsx::sync_dir(fsx::open_dir(&self.root, layout::FS)?)?;
        self.remove_qgroups(qgroup)
    }

    /// Freezes a head that is to be deleted, unless something has it mounted.
    ///
    /// btrfs itself deletes what a pod has mounted without a word, so it is looked for twice: before the fence, so that a running pod is
    /// not killed for nothing, and under it, right before the deletion. A head that is not deleted after all is left as it was found: one
    /// that was fenced, such as a superseded one, must not become writable.
    fn freeze_unless_held(&self, head: &Subvol, holders: impl Fn() -> Result<Vec<Holder>, DriverError>) -> Result<(), DriverError> {
        held_by_nobody(&holders()?)?;
        let was_fenced = ioctl::is_read_only(&head.fd).doing(|| "read flags of the head".to_owned())?;
        self.freeze(head)?;
        let unheld = holders().and_then(|found| held_by_nobody(&found));
        if unheld.is_err() && !was_fenced {
            self.unfreeze(head)?;
        }
        unheld
    }

    /// Deleting what is nested writes in the head: its fence and the limits go.
    fn open_to_nested(&self, head: &Subvol, groups: &[u64]) -> Result<(), DriverError> {
        if !subvol::children(self.root(), head.info.id)?.is_empty() {
            for group in groups {
                fsx::gone_is_fine(quota::set_limit(&self.root, *group, 0))?;
            }
            self.unfreeze(head)?;
        }
        Ok(())
    }

    /// See [`crate::driver::Driver::drop_head`] (storage.md §3).
    pub(super) fn drop_head_of(&self, fs: FsId) -> Result<(), DriverError> {
        let Some(dir) = fsx::maybe(self.fs_dir(fs))? else { return Ok(()) };
        let Some(head) = subvol::find(&dir, layout::HEAD)? else { return Ok(()) };
        self.freeze_unless_held(&head, || self.holders_of_head(fs))?;
        self.open_to_nested(&head, &quota::groups_of(self.root(), head.info.id)?)?;
        drop(head);
        subvol::remove(self, &dir, layout::HEAD)?;
        ioctl::commit_transaction(&self.root).doing(|| "commit the transaction".to_owned())?;
        fsx::sync_dir(&dir)
    }

    /// All subvolumes, then one transaction (which also sets the kernel's cleaner to work) and `fsync` of each directory they were in:
    /// from then on they stay deleted.
    fn remove_subvolumes(&self, dir: &OwnedFd) -> Result<(), DriverError> {
        let mut parents = Vec::new();
        for name in fsx::names(dir)? {
            match fsx::what(dir, &name)? {
                Some(What::Subvolume) => drop(subvol::remove(self, dir, &name)?),
                Some(What::Directory) => {
                    let sub = fsx::open_dir(dir, &name)?;
                    for inner in fsx::names(&sub)? {
                        if fsx::what(&sub, &inner)? == Some(What::Subvolume) {
                            subvol::remove(self, &sub, &inner)?;
                        }
                    }
                    parents.push(sub);
                }
                _ => {}
            }
        }
        ioctl::commit_transaction(&self.root).doing(|| "commit the transaction".to_owned())?;
        parents.iter().try_for_each(fsx::sync_dir)?;
        fsx::sync_dir(dir)
    }

    /// Plain files and directories; `fs.json` last, so that an interrupted deletion still says whose it is.
    fn remove_rest(&self, fs: FsId, dir: &OwnedFd) -> Result<(), DriverError> {
        for name in fsx::names(dir)?.into_iter().filter(|n| n != layout::FS_JSON) {
            if fsx::what(dir, &name)? == Some(What::Directory) {
                let sub = fsx::open_dir(dir, &name)?;
                for inner in fsx::names(&sub)? {
                    fsx::remove_file(&sub, &inner)?;
                }
                fsx::remove_dir(dir, &name)?;
            } else {
                fsx::remove_file(dir, &name)?;
            }
        }
        fsx::remove_file(dir, layout::FS_JSON)?;
        let all = fsx::open_dir(&self.root, layout::FS)?;
        let removed = rustix::fs::unlinkat(&all, fs.to_string(), AtFlags::REMOVEDIR);
        fsx::gone_is_fine(removed.doing(|| format!("rmdir {fs}")))?;
        fsx::sync_dir(all)
    }

    /// The kernel keeps a qgroup while its cleaner works through the deleted subvolumes: what it refuses now is tried again with the
    /// next deletion and at the next start.
    fn remove_qgroups(&self, qgroup: u64) -> Result<(), DriverError> {
        let mut doomed = locked(&self.doomed);
        doomed.insert(qgroup);
        for n in doomed.clone() {
            if quota::remove(&self.root, n)? {
                doomed.remove(&n);
            }
        }
        Ok(())
    }
}
