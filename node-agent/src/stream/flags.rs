//! Inode flags: the part of [`Applier`] that sets those that can be carried, and lifts those in the way.
//!
//! Kernel streams say nothing of the flags of new files, only of changes to old ones. So immutable, append-only and NOCOW
//! are never set (a next increment could not be applied), and are lifted where a base that was an owner's before has them.

use rustix::fs::{FileType, IFlags, OFlags, ioctl_getflags, ioctl_setflags};

use super::apply::Applier;
use super::error::Cause;
use super::parse::Command;
use super::path::StreamPath;

/// `BTRFS_INODE_*` bits that are carried, with the flags that the ioctl calls them.
const CARRIED_FLAGS: [(u64, IFlags); 4] =
    [(1 << 5, IFlags::SYNC), (1 << 8, IFlags::NODUMP), (1 << 9, IFlags::NOATIME), (1 << 10, IFlags::DIRSYNC)];

impl Applier {
    /// Sets the inode flags that are carried, and counts what is not.
    pub(super) fn fileattr(&mut self, path: StreamPath<'_>, flags: u64) -> Result<(), Cause> {
        let carried = CARRIED_FLAGS.iter().fold(0, |bits, (bit, _)| bits | bit);
        if flags & !carried != 0 {
            self.skipped.inode_flags += 1;
        }
        let Some(fd) = self.object(path)?.any_fd()? else { return Ok(()) };
        let system = |call| move |errno| Cause::system(call, path.bytes(), errno);
        let now = ioctl_getflags(fd).map_err(system("FS_IOC_GETFLAGS"))?;
        let wanted = CARRIED_FLAGS.iter().fold(now, |mut wanted, &(bit, flag)| {
            wanted.set(flag, flags & bit != 0);
            wanted
        });
        if wanted == now {
            return Ok(());
        }
        ioctl_setflags(fd, wanted).map_err(system("FS_IOC_SETFLAGS"))
    }

    /// Takes immutable and append-only from what `command` is about and from the directories it is in. Whether any was.
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

    fn lift_flags_of(&mut self, path: StreamPath<'_>) -> bool {
        let mut lift = || -> Option<bool> {
            let place = self.work.place(path).ok()?;
            let fd = match FileType::from_raw_mode(place.stat().ok()?.st_mode) {
                FileType::Directory => place.open_dir().ok()?,
                FileType::RegularFile => place.open_file(OFlags::RDONLY).ok()?,
                _ => return None,
            };
            let now = ioctl_getflags(&fd).ok()?;
            let wanted = now.difference(IFlags::IMMUTABLE | IFlags::APPEND);
            Some(wanted != now && ioctl_setflags(&fd, wanted).is_ok())
        };
        lift().unwrap_or(false)
    }
}
