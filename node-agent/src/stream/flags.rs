//! Inode flags: the part of [`Applier`] that sets them, and takes off for a while those that are in the way.
//!
//! Immutable and append-only would stop the stream itself, and synchronous writes make it slow, so they are *owed*: what an inode is to get, or had before something in it was
//! changed, stands in an xattr of ours on that inode, and so in each checkpoint, whatever it is called meanwhile. [`Applier::settle`] gives it
//! at the end. Whether anything is owed is part of the saved state.
//!
//! NOCOW counts only for an empty file. Our senders say it before the first byte ([`super::complete`]); the kernel, where it has been set since
//! the base, after the last: then the file is laid down again.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    FileType, IFlags, Mode, OFlags, XattrFlags, fgetxattr, fremovexattr, fsetxattr, fstat, ftruncate, ioctl_getflags, ioctl_setflags,
    openat,
};
use rustix::io::Errno;

use super::apply::Applier;
use super::clone::copy_all;
use super::confine::Place;
use super::error::Cause;
use super::parse::Command;
use super::path::StreamPath;
use crate::btrfs::ioctl;
use crate::btrfs::search::owed_inodes;

/// The xattr that says what an inode is owed. Never taken from a stream.
pub(crate) const OWED: &str = "trusted.dotgraft.owed-flags";
/// `FS_NOCOMP_FL`.
const NOCOMPRESS: IFlags = IFlags::from_bits_retain(0x400);
/// Set or taken off as soon as the stream says so.
const AT_ONCE: [(u64, IFlags); 4] = [(1 << 1, IFlags::NOCOW), (1 << 3, NOCOMPRESS), (1 << 8, IFlags::NODUMP), (1 << 9, IFlags::NOATIME)];
/// Owed until the end.
const LATE: [(u64, IFlags); 4] =
    [(1 << 5, IFlags::SYNC), (1 << 6, IFlags::IMMUTABLE), (1 << 7, IFlags::APPEND), (1 << 10, IFlags::DIRSYNC)];
/// Flags that new inodes inherit. Ours don't: the stream says what each has.
const INHERITED: IFlags = IFlags::NOCOW.union(IFlags::COMPRESSED).union(NOCOMPRESS);
/// How a file is to be compressed.
pub(super) const COMPRESSION: &str = "btrfs.compression";
/// Longest value of it that is put back, bytes: `zstd:15` and room.
const MAX_COMPRESSION: usize = 64;

/// `BTRFS_INODE_*` bits that a stream of ours says of a new inode. Compression travels as an xattr.
pub const SAID: u64 = {
    let mut bits = 0;
    let mut at = 0;
    while at < AT_ONCE.len() {
        bits |= AT_ONCE[at].0 | LATE[at].0;
        at += 1;
    }
    bits
};

/// What keeps an inode from being changed.
const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
/// All that can be owed.
const OWABLE: IFlags = LOCKS.union(IFlags::SYNC).union(IFlags::DIRSYNC);

/// Takes from a new inode what it has inherited of the directory that it is made in.
pub(super) fn drop_inherited(place: &Place, fd: &OwnedFd) -> Result<(), Cause> {
    let now = match ioctl_getflags(fd) {
        Ok(now) => now,
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(place.system("FS_IOC_GETFLAGS", errno)),
    };
    if !now.intersects(INHERITED) {
        return Ok(());
    }
    // The kernel takes the xattr of the compression off with the flag.
    ioctl_setflags(fd, now - INHERITED).map_err(|errno| place.system("FS_IOC_SETFLAGS", errno))
}

/// Sets flags, and leaves what is said of compression as it was: the kernel would make its own choice of method.
fn set(fd: &OwnedFd, flags: IFlags) -> Result<(), Errno> {
    let mut value = [0; MAX_COMPRESSION];
    let compression = match fgetxattr(fd, COMPRESSION, &mut value[..]) {
        Ok(len) => value.get(..len),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
        Err(errno) => return Err(errno),
    };
    let (now, compressing) = (ioctl_getflags(fd)?, IFlags::COMPRESSED | NOCOMPRESS);
    let crosses = |a: IFlags, b: IFlags| a.contains(IFlags::NOCOW) && b.intersects(compressing);
    if crosses(now, flags) || crosses(flags, now) {
        // The kernel doesn't go from one to the other in one step.
        ioctl_setflags(fd, now - INHERITED)?;
    }
    ioctl_setflags(fd, flags)?;
    match compression {
        Some(value) if !flags.intersects(LOCKS | IFlags::NOCOW) => fsetxattr(fd, COMPRESSION, value, XattrFlags::empty()),
        _ => Ok(()),
    }
}

impl Applier {
    /// The flags that something has, by a command of the stream.
    pub(super) fn fileattr(&mut self, path: StreamPath<'_>, bits: u64) -> Result<(), Cause> {
        if bits & !SAID != 0 {
            self.skipped.inode_flags += 1;
        }
        let Some(fd) = self.object(path)?.any_fd()? else { return Ok(()) };
        let fd = fd.try_clone().map_err(|_| Cause::system("dup", path.bytes(), Errno::MFILE))?;
        let system = |call| move |errno| Cause::system(call, path.bytes(), errno);
        let now = ioctl_getflags(&fd).map_err(system("FS_IOC_GETFLAGS"))?;
        let mut wanted = AT_ONCE.iter().fold(now - OWABLE, |mut wanted, &(bit, flag)| {
            wanted.set(flag, bits & bit != 0);
            wanted
        });
        if wanted.contains(IFlags::NOCOW) {
            wanted = wanted - IFlags::COMPRESSED - NOCOMPRESS;
        } else if wanted.intersects(IFlags::COMPRESSED) || has(&fd, COMPRESSION).map_err(system("fgetxattr"))? {
            // Of a file that is to be compressed the kernel decides anew whether it is worth it.
            wanted = (wanted - NOCOMPRESS) | (now & NOCOMPRESS);
        }
        self.turn(&fd, now, wanted).map_err(system("FS_IOC_SETFLAGS"))?;
        let owed = LATE.iter().filter(|(bit, _)| bits & bit != 0).fold(IFlags::empty(), |owed, &(_, flag)| owed | flag);
        self.owe(&fd, owed).map_err(system("fsetxattr"))
    }

    /// Makes flags that are `now` those that are `wanted`.
    fn turn(&mut self, fd: &OwnedFd, now: IFlags, wanted: IFlags) -> Result<(), Errno> {
        match wanted {
            _ if wanted == now => Ok(()),
            _ if (wanted ^ now).contains(IFlags::NOCOW) && is_filled(fd)? => self.lay_anew(fd, wanted),
            _ => set(fd, wanted),
        }
    }

    /// Takes NOCOW off, as something is to be compressed that is NOCOW here: the kernel tells of flags after xattrs. Whether it was.
    pub(super) fn make_cow(&mut self, path: StreamPath<'_>) -> Result<bool, Cause> {
        let system = |call| move |errno| Cause::system(call, path.bytes(), errno);
        let Some(fd) = self.object(path)?.any_fd()? else { return Ok(false) };
        let fd = fd.try_clone().map_err(|_| Cause::system("dup", path.bytes(), Errno::MFILE))?;
        let now = ioctl_getflags(&fd).map_err(system("FS_IOC_GETFLAGS"))?;
        self.turn(&fd, now, now - IFlags::NOCOW).map_err(system("FS_IOC_SETFLAGS"))?;
        Ok(now.contains(IFlags::NOCOW))
    }

    /// Notes what the inode is to have in the end, in place of what was noted before.
    fn owe(&mut self, fd: &OwnedFd, flags: IFlags) -> Result<(), Errno> {
        if !flags.is_empty() {
            self.owes = true;
            return fsetxattr(fd, OWED, &flags.bits().to_le_bytes(), XattrFlags::empty());
        }
        if !self.owes {
            return Ok(());
        }
        match fremovexattr(fd, OWED) {
            Err(Errno::NODATA) => Ok(()),
            done => done,
        }
    }

    /// The same content in a file that was made with other flags: NOCOW is only taken by an empty one. The inode stays, so its names do.
    fn lay_anew(&mut self, fd: &OwnedFd, flags: IFlags) -> Result<(), Errno> {
        let before = fstat(fd)?;
        let nameless = |applier: &Self| openat(applier.work.root(), ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR);
        let aside = match nameless(self) {
            Err(Errno::PERM) if self.lift_flags_of(StreamPath::ROOT) => nameless(self)?,
            made => made?,
        };
        set(&aside, ioctl_getflags(fd)? & IFlags::NOCOW)?;
        rustix::fs::ioctl_ficlone(&aside, fd)?;
        ftruncate(fd, 0)?;
        set(fd, flags)?;
        copy_all(&aside, fd)?;
        rustix::fs::futimens(fd, &times_of(&before))
    }

    /// Takes immutable and append-only from what `command` is about and from the directories it is in, and owes them. Whether any was.
    pub(super) fn lift_flags(&mut self, command: &Command<'_>) -> bool {
        let mut lifted = false;
        let pending = self.pending.as_ref().map(|pending| pending.path.0.clone());
        let pending = pending.as_deref().map(StreamPath::trusted);
        for path in command.paths().into_iter().chain([pending]).flatten() {
            lifted |= self.lift_flags_of(path);
            if let Some((dir, _)) = path.split() {
                lifted |= self.lift_flags_of(dir);
            }
        }
        lifted
    }

    /// The same of one path.
    pub(super) fn lift_flags_of(&mut self, path: StreamPath<'_>) -> bool {
        let mut opened = || -> Option<OwnedFd> {
            let place = self.work.place(path).ok()?;
            match FileType::from_raw_mode(place.stat().ok()?.st_mode) {
                FileType::Directory => place.open_dir().ok(),
                FileType::RegularFile => place.open_file(OFlags::RDONLY).ok(),
                _ => None,
            }
        };
        let Some(fd) = opened() else { return false };
        let Ok(now) = ioctl_getflags(&fd) else { return false };
        let had = now & LOCKS;
        !had.is_empty() && set(&fd, now - LOCKS).is_ok() && self.owe(&fd, had).is_ok()
    }

    /// Gives every inode what it is owed. The last thing that is done in the tree: times are set before.
    pub(super) fn settle(&mut self) -> Result<(), Cause> {
        if !self.owes {
            return Ok(());
        }
        let root = self.work.root();
        let at_root = |call| move |errno| Cause::system(call, b"", errno);
        let tree = ioctl::subvol_info(root).map_err(at_root("GET_SUBVOL_INFO"))?.id;
        // What the stream has touched is in leaves newer than the base.
        let since = match &self.base {
            Some(base) => ioctl::subvol_info(base.root()).map_err(at_root("GET_SUBVOL_INFO"))?.created,
            None => 0,
        };
        let mut failed = None;
        owed_inodes(root.as_fd(), since, OWED.as_bytes(), |inode| match give(root, tree, inode) {
            Ok(()) => ControlFlow::Continue(()),
            Err(errno) => {
                failed = Some(errno);
                ControlFlow::Break(())
            }
        })
        .map_err(at_root("TREE_SEARCH_V2"))?;
        if let Some(errno) = failed {
            return Err(at_root("FS_IOC_SETFLAGS")(errno));
        }
        self.owes = false;
        Ok(())
    }
}

/// What the xattr of one inode says.
fn give(root: std::os::fd::BorrowedFd<'_>, tree: u64, inode: u64) -> Result<(), Errno> {
    let fd = match ioctl::open_inode(root, tree, inode) {
        // Without a name; or a device or link, on which we note nothing.
        Err(Errno::NOENT | Errno::ACCESS | Errno::NXIO | Errno::LOOP) => return Ok(()),
        opened => opened?,
    };
    let mut value = [0; 4];
    match fgetxattr(&fd, OWED, &mut value[..]) {
        Ok(4) => {}
        Ok(_) | Err(Errno::NODATA) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    let owed = IFlags::from_bits_truncate(u32::from_le_bytes(value)) & OWABLE;
    fremovexattr(&fd, OWED)?;
    let now = ioctl_getflags(&fd)?;
    ioctl_setflags(&fd, now | owed)
}

fn has(fd: &OwnedFd, name: &str) -> Result<bool, Errno> {
    let mut none = [0u8; 0];
    match fgetxattr(fd, name, &mut none[..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether it is a regular file that holds something.
fn is_filled(fd: &OwnedFd) -> Result<bool, Errno> {
    fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size > 0)
}

fn times_of(stat: &rustix::fs::Stat) -> rustix::fs::Timestamps {
    let time = |tv_sec, nsec| rustix::fs::Timespec { tv_sec, tv_nsec: i64::try_from(nsec).unwrap_or(0) };
    rustix::fs::Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_are_the_kernels() {
        // NODATACOW, NOCOMPRESS, SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME, DIRSYNC of `struct btrfs_inode_item`.
        assert_eq!(SAID, 0b111_1110_1010);
    }
}
