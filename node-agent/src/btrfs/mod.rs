//! The btrfs driver: pools, subvolumes, commits, fences, quotas, send and receive by the measured rules of storage.md. Called through
//! [`crate::driver::Driver`] by a Filesystem's actor and its tasks; `BtrfsPool::open` by the agent's start.
//!
//! One file per subject; each adds its part to [`BtrfsPool`]. Everything goes through one descriptor of the pool's root.

mod commit;
mod destroy;
mod driver;
pub mod encoded;
mod estimate;
mod fence;
mod fold;
mod fsx;
mod inspect;
pub mod ioctl;
pub mod layout;
mod left;
mod long;
mod loopdev;
mod meta;
pub(crate) mod mounts;
mod pause;
mod pool;
mod quota;
mod readahead;
mod receive;
pub(crate) mod search;
mod send;
mod space;
mod startup;
mod strays;
mod subvol;
mod swap;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use dotgraft_engine::ids::{CommitId, FsId};

pub use fence::freeze;
pub use pool::{LABEL, PoolError, PoolSource, refuse_if_in_use};
pub use send::SendOptions;
pub use startup::OpenReport;

use crate::driver::{DriverError, PoolInfo};

/// An open pool. The lock on it goes with this value; the mount stays for pods and for the agent's next life.
#[derive(Debug)]
pub struct BtrfsPool {
    root: OwnedFd,
    info: PoolInfo,
    /// Device number of the superblock, as mount tables show it.
    dev: String,
    /// Numbers of qgroups handed out in this life.
    allocated: Mutex<BTreeSet<u64>>,
    /// Qgroups of destroyed Filesystems that the kernel still counts in.
    doomed: Mutex<BTreeSet<u64>>,
    /// How far the look for strays is.
    looked: Mutex<strays::Looked>,
    /// How far the look for who uses what a stray has left is.
    traced: Mutex<left::Traced>,
    _lock: File,
}

impl BtrfsPool {
    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
    /// The directory of a Filesystem.
    fn fs_dir(&self, fs: FsId) -> Result<OwnedFd, DriverError> {
        fsx::open_dir(&self.root, &layout::dir(fs))
    }
    /// A directory in it.
    fn fs_sub(&self, fs: FsId, name: &str) -> Result<OwnedFd, DriverError> {
        fsx::open_dir(&self.root, &layout::within(fs, name))
    }
    fn head(&self, fs: FsId) -> Result<subvol::Subvol, DriverError> {
        subvol::open(&self.root, &layout::head(fs))
    }
    fn commit_subvol(&self, fs: FsId, commit: CommitId) -> Result<subvol::Subvol, DriverError> {
        subvol::open(&self.root, &layout::commit(fs, commit))
    }
}

/// A lock whose holder panicked still guards a plain set: go on with it.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
