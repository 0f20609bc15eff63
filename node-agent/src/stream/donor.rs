//! The subvolume of the same pool that a stream without data was made of: its files are found by inode, as such a stream names files by
//! where they are in the tree that it builds, which is not yet where the sender has them. For `apply`; made by `btrfs::fold`.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, Result};

use crate::btrfs::ioctl;

/// See the module's documentation. Nothing may write in that subvolume while a stream of it is applied.
#[derive(Debug)]
pub struct Donor {
    subvolume: OwnedFd,
    tree: u64,
    /// The file that the stream is about: it tells everything about one inode in a row.
    inode: Option<u64>,
}

impl Donor {
    /// The subvolume whose root is open as `subvolume` and whose tree is `tree`.
    pub fn new(subvolume: OwnedFd, tree: u64) -> Self {
        Self { subvolume, tree, inode: None }
    }

    /// What follows is about this inode.
    pub(super) fn next(&mut self, inode: u64) {
        self.inode = Some(inode);
    }

    /// The file that the stream is about; `NOENT` if no inode was named or there is none such.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        ioctl::open_inode(&self.subvolume, self.tree, self.inode.ok_or(Errno::NOENT)?)
    }
}
