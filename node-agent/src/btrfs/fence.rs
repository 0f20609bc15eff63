//! The fence (storage.md §3): after it nothing writes the head, whoever has it open or mapped, in whatever mount namespace.

use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::Commit;

use super::fsx::{Context, fail};
use super::subvol::Subvol;
use super::{BtrfsPool, commit, ioctl, layout, quota, subvol};
use crate::driver::{DriverError, Fenced};

impl BtrfsPool {
    /// See [`crate::driver::Driver::fence`]. Exactly this order: read-only, limit, write-back, snapshot, check. A limit first would make
    /// the change to read-only fail.
    pub(super) fn fence_head(&self, qgroup: u64, commit: &Commit) -> Result<Fenced, DriverError> {
        let fs = commit.fs_id;
        let commits = self.fs_sub(fs, layout::COMMITS)?;
        let head = self.head(fs)?;
        self.refuse_nested(&head)?;
        self.freeze(&head)?;
        ioctl::sync(&self.root).doing(|| "write the pool back".to_owned())?;
        if commit::existing(&commits, commit)?.is_none() {
            commit::snapshot_commit(&commits, &head, qgroup, commit)?;
        }
        let name = commit.id.to_string();
        let (now, taken) = (self.head(fs)?.info, subvol::open(&commits, &name)?.info);
        if taken.parent_uuid != now.uuid || now.generation != taken.created {
            return Err(DriverError::FenceRaced(format!(
                "head at generation {}, snapshot {name} at {}: fence again with a new commit",
                now.generation, taken.created
            )));
        }
        Ok(Fenced { generation: now.generation })
    }

    /// Read-only, then a limit of one byte on the head's own qgroup, through the pool's top level.
    pub(super) fn freeze(&self, head: &Subvol) -> Result<(), DriverError> {
        self.set_head_flag(head, true)?;
        ioctl::qgroup_limit(&self.root, head.info.id, Some(1)).doing(|| "limit the head".to_owned())
    }

    /// The limit goes first: with it the change to writable fails.
    pub(super) fn unfreeze(&self, head: &Subvol) -> Result<(), DriverError> {
        ioctl::qgroup_limit(&self.root, head.info.id, None).doing(|| "lift the limit of the head".to_owned())?;
        self.set_head_flag(head, false)
    }

    /// Changing the flag reserves metadata in the volume itself: a full one gets a little room for it.
    fn set_head_flag(&self, head: &Subvol, read_only: bool) -> Result<(), DriverError> {
        let groups = quota::groups_of(self.root(), head.info.id)?;
        let set = || ioctl::set_read_only(&head.fd, read_only);
        quota::with_room(self.root(), self.info.id, &groups, set)?.map_err(|e| fail("change the read-only flag of the head", e))
    }

    /// See [`crate::driver::Driver::thaw`].
    pub(super) fn thaw_head(&self, fs: FsId) -> Result<(), DriverError> {
        self.unfreeze(&self.head(fs)?)
    }
}
