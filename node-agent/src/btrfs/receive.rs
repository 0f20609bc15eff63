//! Where a stream is applied to: `incoming/<target>`, its checkpoints, and the commit it becomes (storage.md §2).

use dotgraft_engine::ids::{CommitId, FsId};
use dotgraft_engine::model::Commit;

use super::fsx::{self, Context};
use super::{BtrfsPool, commit, ioctl, layout, quota, subvol};
use crate::driver::{DriverError, Incoming};

impl BtrfsPool {
    /// See [`crate::driver::Driver::receive_start`]. What is deleted here may come back with a crash; then the next start deletes it again.
    pub(super) fn start_receive(
        &self,
        fs: FsId,
        qgroup: u64,
        target: CommitId,
        base: Option<CommitId>,
        checkpoint: Option<u64>,
    ) -> Result<Incoming, DriverError> {
        self.space_now()?.checked()?;
        let base = base.map(|base| self.commit_subvol(fs, base)).transpose()?;
        let incoming = self.fs_sub(fs, layout::INCOMING)?;
        let (name, group) = (target.to_string(), quota::level1(qgroup));
        let from = if let Some(offset) = checkpoint {
            Some(subvol::open(&self.fs_sub(fs, layout::CHECKPOINTS)?, &layout::checkpoint(target, offset))?.fd)
        } else {
            self.drop_checkpoints(fs, target, &[])?;
            base.as_ref().map(|b| b.fd.try_clone()).transpose().doing(|| "duplicate a descriptor".to_owned())?
        };
        subvol::remove(self, &incoming, &name)?;
        match from {
            Some(source) => ioctl::snapshot(&incoming, &name, source, false, group),
            None => ioctl::subvol_create(&incoming, &name, group),
        }
        .doing(|| format!("create the work subvolume of {target}"))?;
        let root = subvol::open(&incoming, &name)?.fd;
        Ok(Incoming { root, base: base.map(|b| b.fd) })
    }

    /// See [`crate::driver::Driver::receive_checkpoint`].
    pub(super) fn checkpoint(&self, fs: FsId, qgroup: u64, target: CommitId, offset: u64) -> Result<(), DriverError> {
        let incoming = subvol::open(self.fs_sub(fs, layout::INCOMING)?, &target.to_string())?;
        let checkpoints = self.fs_sub(fs, layout::CHECKPOINTS)?;
        let name = layout::checkpoint(target, offset);
        let there = subvol::find(&checkpoints, &name)?;
        let same = there.as_ref().is_some_and(|c| c.info.parent_uuid == incoming.info.uuid && c.info.created >= incoming.info.generation);
        if !same {
            // One of this name that was taken of an older partial, or before more was written, is not this one.
            subvol::remove(self, &checkpoints, &name)?;
            ioctl::snapshot(&checkpoints, &name, &incoming.fd, true, quota::level1(qgroup)).doing(|| format!("checkpoint of {target}"))?;
        }
        // The journal may still name the one before. One further on is of an attempt that the journal does not know.
        let before = self.checkpoints_of(fs, target)?.into_iter().filter(|o| *o < offset).max();
        self.drop_checkpoints(fs, target, &[offset, before.unwrap_or(offset)])
    }

    fn checkpoints_of(&self, fs: FsId, target: CommitId) -> Result<Vec<u64>, DriverError> {
        let names = self.names_in(fs, layout::CHECKPOINTS)?;
        Ok(names.iter().filter_map(|n| layout::parse_checkpoint(n)).filter(|(of, _)| *of == target).map(|(_, offset)| offset).collect())
    }

    /// Removes the checkpoints of a target but those at the offsets in `keep`.
    fn drop_checkpoints(&self, fs: FsId, target: CommitId, keep: &[u64]) -> Result<(), DriverError> {
        let Some(checkpoints) = fsx::maybe(self.fs_sub(fs, layout::CHECKPOINTS))? else { return Ok(()) };
        for offset in self.checkpoints_of(fs, target)?.into_iter().filter(|o| !keep.contains(o)) {
            subvol::remove(self, &checkpoints, &layout::checkpoint(target, offset))?;
        }
        Ok(())
    }

    /// See [`crate::driver::Driver::receive_finish`].
    pub(super) fn finish_receive(&self, qgroup: u64, commit: &Commit) -> Result<(), DriverError> {
        let commits = self.fs_sub(commit.fs_id, layout::COMMITS)?;
        if commit::existing(&commits, commit)?.is_some() {
            return Ok(());
        }
        let incoming = subvol::open(self.fs_sub(commit.fs_id, layout::INCOMING)?, &commit.id.to_string())?;
        commit::snapshot_commit(&commits, &incoming, qgroup, commit)
    }

    /// See [`crate::driver::Driver::receive_discard`].
    pub(super) fn discard_receive(&self, fs: FsId, target: CommitId) -> Result<(), DriverError> {
        let Some(incoming) = fsx::maybe(self.fs_sub(fs, layout::INCOMING))? else { return Ok(()) };
        subvol::remove(self, &incoming, &target.to_string())?;
        self.drop_checkpoints(fs, target, &[])?;
        // Sets the kernel's cleaner to work: a partial that filled the volume must not keep the next transfer out for half a minute.
        ioctl::commit_transaction(&self.root).doing(|| "commit the transaction".to_owned())?;
        fsx::sync_dir(incoming)?;
        fsx::sync_dir(self.fs_sub(fs, layout::CHECKPOINTS)?)
    }
}
