//! The fence (storage.md §3): after it nothing writes the head, whoever has it open or mapped, in whatever mount namespace.
//!
//! It is two things. *Freeze* makes the head, and whatever subvolume is nested in it, read-only and then limits each to a byte: ioctls
//! only, so it waits for no mount table and for no write-back, and it never refuses because of what is inside. *Final commit* writes back,
//! takes the snapshot and proves that it holds all there is.
//!
//! Read-only alone stops no open descriptor, and who owns the root directory of a subvolume may make it writable again; the limit stops
//! both. A limit first would make the change to read-only fail.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use dotgraft_engine::ids::{FsId, PoolId};
use dotgraft_engine::model::Commit;
use uuid::Uuid;

use super::fsx::{self, Context, fail};
use super::subvol::{Subvol, children, descendants};
use super::{BtrfsPool, fold, ioctl, layout, quota, subvol};
use crate::driver::{DriverError, Fenced};

/// Limit, in bytes, of what a freeze made read-only.
const FROZEN: u64 = 1;
/// Limit of what is nested and was read-only before: a thaw leaves it so.
const FROZEN_AS_IT_WAS: u64 = 2;
/// Limit that binds nothing. It says, while the flag is being changed, that the subvolume was writable and is to be writable again.
const WAS_WRITABLE: u64 = 1 << 62;
/// Whoever owns the root directory of a subvolume can make it writable between our two steps. Tried so often; the limit stays in any case.
const TRIES: usize = 32;
/// Rounds over all that is nested, until one finds nothing new.
const ROUNDS: usize = 1000;

/// Freezes the head of `fs` in the pool whose root directory is open as `root`, and all that is nested in it. Also what was made between
/// the listing and the freezing: nothing is made in a parent that is frozen, and each is listed after it is.
///
/// Waits for nothing but the kernel's own transactions, refuses for nobody who has it mounted or open, and can be repeated, by any process
/// with `CAP_SYS_ADMIN`. Durable with the next transaction of the pool, within 30 s; over a power cut a Filesystem is opened anew anyway.
///
/// # Errors
/// `NotFound` without a head. The kernel's own refusals; then all else is frozen, and it should be tried again at once.
pub fn freeze(root: impl AsFd, fs: FsId) -> Result<(), DriverError> {
    let root = root.as_fd();
    freeze_all(root, &subvol::open(root, &layout::head(fs))?)
}

fn freeze_all(root: BorrowedFd<'_>, head: &Subvol) -> Result<(), DriverError> {
    let mut result = freeze_one(root, head, true);
    let mut frozen = BTreeSet::from([head.info.id]);
    for _ in 0..ROUNDS {
        let before = frozen.len();
        let mut parents = vec![head.info.id];
        while let Some(parent) = parents.pop() {
            for child in children(root, parent)? {
                parents.push(child.id);
                if frozen.insert(child.id) {
                    let one = fsx::maybe(subvol::open_id(root, child.id)).and_then(|s| s.map_or(Ok(()), |s| freeze_one(root, &s, false)));
                    result = result.and(one);
                }
            }
        }
        if frozen.len() == before {
            return result;
        }
    }
    result.and(Err(DriverError::FenceRaced("subvolumes are made in it faster than they can be frozen".to_owned())))
}

/// Read-only, then the limit.
fn freeze_one(root: BorrowedFd<'_>, subvol: &Subvol, is_head: bool) -> Result<(), DriverError> {
    let id = subvol.info.id;
    for _ in 0..TRIES {
        let (read_only, limit) = (is_read_only(subvol)?, quota::own_limit(root, id)?);
        if read_only && matches!(limit, Some(FROZEN | FROZEN_AS_IT_WAS)) {
            return Ok(());
        }
        let as_it_was = read_only && !is_head && limit != Some(WAS_WRITABLE);
        let mut flagged = Ok(());
        if !read_only {
            quota::set_own_limit(root, id, Some(WAS_WRITABLE))?;
            flagged = set_flag(root, subvol, true);
        }
        quota::set_own_limit(root, id, Some(if as_it_was { FROZEN_AS_IT_WAS } else { FROZEN }))?;
        flagged?;
        if is_read_only(subvol)? {
            return Ok(());
        }
    }
    Err(DriverError::FenceRaced("someone makes it writable again and again".to_owned()))
}

/// Undoes [`freeze_all`], the head first; what was read-only before stays so.
fn thaw_all(root: BorrowedFd<'_>, head: &Subvol) -> Result<(), DriverError> {
    thaw_one(root, head)?;
    for id in descendants(root, head.info.id)? {
        let Some(nested) = fsx::maybe(subvol::open_id(root, id))? else { continue };
        match quota::own_limit(root, id)? {
            Some(FROZEN | WAS_WRITABLE) => thaw_one(root, &nested)?,
            Some(FROZEN_AS_IT_WAS) => quota::set_own_limit(root, id, None)?,
            _ => {}
        }
    }
    Ok(())
}

/// The limit goes first: with it the change to writable fails. A crash in between leaves what says that it was writable.
fn thaw_one(root: BorrowedFd<'_>, subvol: &Subvol) -> Result<(), DriverError> {
    quota::set_own_limit(root, subvol.info.id, Some(WAS_WRITABLE))?;
    set_flag(root, subvol, false)?;
    quota::set_own_limit(root, subvol.info.id, None)
}

fn is_read_only(subvol: &Subvol) -> Result<bool, DriverError> {
    ioctl::is_read_only(&subvol.fd).doing(|| "read the flags of a head".to_owned())
}

/// Changing the flag reserves metadata in the volume itself: a full one gets a little room for it.
fn set_flag(root: BorrowedFd<'_>, subvol: &Subvol, read_only: bool) -> Result<(), DriverError> {
    let (id, _, _) = ioctl::fs_info(root).doing(|| "read pool info".to_owned())?;
    let groups = quota::groups_of(root, subvol.info.id)?;
    let set = || ioctl::set_read_only(&subvol.fd, read_only);
    quota::with_room(root, PoolId::from_uuid(Uuid::from_bytes(id)), &groups, set)?
        .map_err(|e| fail("change the read-only flag of a head", e))
}

/// Whether head and all that is nested in it are frozen.
fn is_frozen(root: BorrowedFd<'_>, head: &Subvol) -> Result<bool, DriverError> {
    for id in std::iter::once(head.info.id).chain(descendants(root, head.info.id)?) {
        let Some(subvol) = fsx::maybe(subvol::open_id(root, id))? else { continue };
        let limited = matches!(quota::own_limit(root, id)?, Some(FROZEN | FROZEN_AS_IT_WAS));
        if !limited || !is_read_only(&subvol)? {
            return Ok(false);
        }
    }
    Ok(true)
}

impl BtrfsPool {
    /// See [`crate::driver::Driver::final_commit`]. Exactly this order: write-back, then a look at the freeze (what was under way when it
    /// came has ended by then), snapshot, proof.
    pub(super) fn commit_frozen(&self, qgroup: u64, commit: &Commit) -> Result<Fenced, DriverError> {
        let fs = commit.fs_id;
        let commits = self.fs_sub(fs, layout::COMMITS)?;
        let head = self.head(fs)?;
        ioctl::sync(&self.root).doing(|| "write the pool back".to_owned())?;
        if !is_frozen(self.root(), &head)? {
            return Err(DriverError::FenceRaced(
                "the head is not frozen, or something was made in it meanwhile: freeze it again".to_owned(),
            ));
        }
        let folded = fold::take_frozen(self, &commits, &head, qgroup, commit)?;
        let name = commit.id.to_string();
        let (now, taken) = (self.head(fs)?.info, subvol::open(&commits, &name)?.info);
        if taken.parent_uuid != now.uuid || now.generation != taken.created {
            return Err(DriverError::FenceRaced(format!(
                "head at generation {}, snapshot {name} at {}: fence again with a new commit",
                now.generation, taken.created
            )));
        }
        Ok(Fenced { generation: now.generation, folded })
    }

    /// Freezes what is open already.
    pub(super) fn freeze(&self, head: &Subvol) -> Result<(), DriverError> {
        freeze_all(self.root(), head)
    }

    /// Thaws what is open already.
    pub(super) fn unfreeze(&self, head: &Subvol) -> Result<(), DriverError> {
        thaw_all(self.root(), head)
    }

    /// See [`crate::driver::Driver::thaw`].
    pub(super) fn thaw_head(&self, fs: FsId) -> Result<(), DriverError> {
        self.unfreeze(&self.head(fs)?)
    }
}
