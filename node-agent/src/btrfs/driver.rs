//! [`BtrfsPool`] as the agent's [`Driver`]: only hands each call to the file that owns its subject.

use std::io::Read;
use std::path::Path;

use dotgraft_engine::ids::{CommitId, FsId};
use dotgraft_engine::model::{Commit, Origin};

use super::fsx::Context;
use super::{BtrfsPool, SendOptions, ioctl, layout, meta, mounts, quota, subvol};
use crate::driver::{
    CommitDone, Driver, DriverError, Fenced, Found, FsMeta, Holder, Incoming, MountMode, MountWhat, PoolInfo, Space, Stray, Tidied, Usage,
};

impl Driver for BtrfsPool {
    fn pool(&self) -> &PoolInfo {
        &self.info
    }
    fn space(&self) -> Result<Space, DriverError> {
        self.space_now()
    }
    fn list(&self) -> Result<Vec<FsId>, DriverError> {
        self.list_all()
    }
    fn inspect(&self, fs: FsId) -> Result<Found, DriverError> {
        self.look(fs)
    }
    fn allocate_qgroup(&self) -> Result<u64, DriverError> {
        self.new_qgroup()
    }

    fn prepare(&self, meta: &FsMeta) -> Result<(), DriverError> {
        self.prepare_fs(meta)
    }
    fn write_meta(&self, meta: &FsMeta) -> Result<(), DriverError> {
        meta::write_fs(self.fs_dir(meta.fs_id)?, meta)
    }
    fn create_head(&self, fs: FsId, qgroup: u64, from: Option<Origin>) -> Result<(), DriverError> {
        self.make_head(fs, qgroup, from)
    }
    fn commit(&self, qgroup: u64, commit: &Commit) -> Result<CommitDone, DriverError> {
        self.take_commit(qgroup, commit)
    }
    fn write_commit_meta(&self, commit: &Commit) -> Result<(), DriverError> {
        self.replace_commit_meta(commit)
    }
    fn delete_commit(&self, fs: FsId, commit: CommitId) -> Result<(), DriverError> {
        self.remove_commit(fs, commit)
    }
    fn drop_head(&self, fs: FsId) -> Result<(), DriverError> {
        self.drop_head_of(fs)
    }

    fn destroy(&self, fs: FsId, qgroup: u64) -> Result<(), DriverError> {
        self.destroy_fs(fs, qgroup)
    }

    fn set_limit(&self, qgroup: u64, bytes: u64) -> Result<(), DriverError> {
        quota::set_limit(&self.root, qgroup, bytes)
    }
    fn usage(&self, qgroup: u64) -> Result<Usage, DriverError> {
        quota::usage(self.root(), self.info.id, qgroup)
    }
    fn strays(&self) -> Result<Vec<Stray>, DriverError> {
        self.look_for_strays()
    }
    fn head_changed_since(&self, fs: FsId, commit: CommitId) -> Result<bool, DriverError> {
        self.changed_since(fs, commit)
    }
    fn file_bytes(&self, fs: FsId) -> Result<Option<u64>, DriverError> {
        self.size_of_files(fs)
    }
    fn began_with(&self, fs: FsId, origin: Origin) -> Result<u64, DriverError> {
        self.size_at_birth(fs, origin)
    }
    fn tidy_groups(&self) -> Result<Tidied, DriverError> {
        self.tidy_quota()
    }
    fn head_written_since(&self, fs: FsId, commit: CommitId) -> Result<bool, DriverError> {
        self.written_since(fs, commit)
    }

    fn holders(&self, fs: FsId) -> Result<Vec<Holder>, DriverError> {
        self.holders_of(fs)
    }
    fn head_holders(&self, fs: FsId) -> Result<Vec<Holder>, DriverError> {
        self.holders_of_head(fs)
    }
    fn mount(&self, fs: FsId, what: MountWhat, target: &Path, mode: MountMode) -> Result<(), DriverError> {
        let path = layout::subvolume(fs, what);
        let mode = MountMode { read_only: mode.read_only || matches!(what, MountWhat::Commit(_)), ..mode };
        let source = subvol::open_root(&self.root, &path)?;
        mounts::bind(source, &self.dev, &layout::as_mounted(&path), target, mode)
    }
    fn unmount(&self, target: &Path) -> Result<(), DriverError> {
        mounts::unmount(target)
    }
    fn freeze(&self, fs: FsId) -> Result<(), DriverError> {
        super::freeze(&self.root, fs)
    }
    fn final_commit(&self, qgroup: u64, commit: &Commit) -> Result<Fenced, DriverError> {
        self.commit_frozen(qgroup, commit)
    }
    fn thaw(&self, fs: FsId) -> Result<(), DriverError> {
        self.thaw_head(fs)
    }
    fn is_fenced(&self, fs: FsId) -> Result<bool, DriverError> {
        let head = subvol::open_root(&self.root, &layout::head(fs))?;
        ioctl::is_read_only(head).doing(|| format!("flags of the head of {fs}"))
    }

    fn send(&self, fs: FsId, base: Option<CommitId>, target: CommitId, version: u32) -> Result<Box<dyn Read + Send>, DriverError> {
        let options = SendOptions { version, compressed: false, read_ahead: true };
        Ok(Box::new(self.send_with(fs, base, target, options)?))
    }
    fn estimate(&self, fs: FsId, base: Option<CommitId>, target: CommitId) -> Result<Option<u64>, DriverError> {
        self.estimate_send(fs, base, target)
    }

    fn receive_start(
        &self,
        fs: FsId,
        qgroup: u64,
        target: CommitId,
        base: Option<CommitId>,
        checkpoint: Option<u64>,
    ) -> Result<Incoming, DriverError> {
        self.start_receive(fs, qgroup, target, base, checkpoint)
    }
    fn receive_checkpoint(&self, fs: FsId, qgroup: u64, target: CommitId, offset: u64) -> Result<(), DriverError> {
        self.checkpoint(fs, qgroup, target, offset)
    }
    fn receive_finish(&self, qgroup: u64, commit: &Commit) -> Result<(), DriverError> {
        self.finish_receive(qgroup, commit)
    }
    fn receive_discard(&self, fs: FsId, target: CommitId) -> Result<(), DriverError> {
        self.discard_receive(fs, target)
    }
}
