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
mod loopdev;
mod meta;
pub(crate) mod mounts;
mod pause;
mod pool;
mod quota;
mod readahead;
mod receive;
mod search;
mod send;
mod space;
mod startup;
mod subvol;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use dotgraft_engine::ids::{CommitId, FsId};

pub use fence::freeze;
pub use pool::{LABEL, PoolError, PoolSource, refuse_if_in_use};
pub use send::SendOptions;
pub use space::metadata_floor;
pub use startup::{OpenReport, Stray};

use crate::driver::{DriverError, PoolInfo};

/// Names inside the directory of a Filesystem (storage.md §1).
mod layout {
    pub const FS: &str = "fs";
    pub const HEAD: &str = "head";
    pub const COMMITS: &str = "commits";
    pub const INCOMING: &str = "incoming";
    pub const CHECKPOINTS: &str = "checkpoints";

    /// Beside the commits: one that is being put together. No commit's id looks like it.
    pub fn work(commit: &str) -> String {
        format!("{commit}.work")
    }
    /// Beside the commits: what is being brought into it.
    pub fn part(commit: &str) -> String {
        format!("{commit}.part")
    }
    /// One of these two: of an attempt that was interrupted, if none is under way.
    pub fn is_work(name: &str) -> bool {
        [".work", ".part"].iter().any(|end| name.ends_with(end))
    }
}

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
    _lock: File,
}

impl BtrfsPool {
    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
    /// The directory of a Filesystem.
    fn fs_dir(&self, fs: FsId) -> Result<OwnedFd, DriverError> {
        fsx::open_dir(&self.root, &format!("{}/{fs}", layout::FS))
    }
    /// A directory in it.
    fn fs_sub(&self, fs: FsId, name: &str) -> Result<OwnedFd, DriverError> {
        fsx::open_dir(&self.root, &format!("{}/{fs}/{name}", layout::FS))
    }
    fn head(&self, fs: FsId) -> Result<subvol::Subvol, DriverError> {
        subvol::open(&self.root, &format!("{}/{fs}/{}", layout::FS, layout::HEAD))
    }
    fn commit_subvol(&self, fs: FsId, commit: CommitId) -> Result<subvol::Subvol, DriverError> {
        subvol::open(&self.root, &format!("{}/{fs}/{}/{commit}", layout::FS, layout::COMMITS))
    }
}

/// A lock whose holder panicked still guards a plain set: go on with it.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
