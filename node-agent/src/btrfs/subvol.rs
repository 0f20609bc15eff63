//! Subvolumes: what they are, their children, and their removal. Called by everything here that creates or deletes one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::fsx::{self, Context, What, fail};
use super::ioctl::{self, SubvolInfo};
use super::search::{self, Child};
use super::{BtrfsPool, quota};
use crate::driver::DriverError;

/// A subvolume that is open, with what the kernel says of it.
#[derive(Debug)]
pub struct Subvol {
    /// Its root directory.
    pub fd: OwnedFd,
    /// Ids, generations, flags.
    pub info: SubvolInfo,
}

/// Opens the root of a subvolume; `NotFound` if it is not there, `BadMetadata` if a plain directory is in its place. Works in a pool that
/// failed, too, where [`open`] gets I/O errors: reading goes on there.
pub fn open_root(at: impl AsFd, path: &str) -> Result<OwnedFd, DriverError> {
    let fd = fsx::open_dir(at, path)?;
    let stat = rustix::fs::fstat(&fd).doing(|| format!("stat {path}"))?;
    if stat.st_ino != search::FIRST_INODE {
        return Err(DriverError::BadMetadata(format!("{path} is a directory where a subvolume should be")));
    }
    Ok(fd)
}

/// Opens a subvolume with what the kernel says of it; errors as [`open_root`].
pub fn open(at: impl AsFd, path: &str) -> Result<Subvol, DriverError> {
    let fd = open_root(at, path)?;
    let info = ioctl::subvol_info(&fd).doing(|| format!("subvolume info of {path}"))?;
    Ok(Subvol { fd, info })
}

/// The same; `None` if it is not there.
pub fn find(at: impl AsFd, path: &str) -> Result<Option<Subvol>, DriverError> {
    fsx::maybe(open(at, path))
}

/// Path, relative to the subvolume, of its first nested subvolume (by tree id), if it has any.
pub fn first_nested(root: BorrowedFd<'_>, subvol: &Subvol) -> Result<Option<String>, DriverError> {
    let children = search::children(root, subvol.info.id).doing(|| "look for nested subvolumes".to_owned())?;
    let Some(child) = children.first() else { return Ok(None) };
    let mut path = ioctl::ino_path(&subvol.fd, subvol.info.id, child.dir).unwrap_or_default();
    path.extend_from_slice(&child.name);
    Ok(Some(String::from_utf8_lossy(&path).into_owned()))
}

/// Removes the subvolume `name` in `dir` with all that is nested in it, depth-first; false if it was not there. Durable after `fsync` of
/// `dir`. The caller has checked that nobody has it mounted, and lifted the limits where something may be nested.
pub fn remove(pool: &BtrfsPool, dir: impl AsFd, name: &str) -> Result<bool, DriverError> {
    match fsx::what(&dir, name)? {
        None => return Ok(false),
        Some(What::Subvolume) => {}
        Some(_) => return Err(DriverError::BadMetadata(format!("{name} is not a subvolume"))),
    }
    let subvol = open(&dir, name)?;
    remove_nested(pool.root(), &subvol)?;
    let result = match ioctl::subvol_destroy(&dir, name) {
        Err(Errno::PERM | Errno::ACCESS) => unlock(pool, &subvol)?.and_then(|()| ioctl::subvol_destroy(&dir, name)),
        other => other,
    };
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::PERM) => Err(DriverError::Mounted(format!("a send of {name} that still runs"))),
        Err(e) => Err(fail(format!("delete subvolume {name}"), e)),
    }
}

/// A root directory made immutable or append-only from inside can't be deleted: takes that off, with the fence that is on the head.
fn unlock(pool: &BtrfsPool, subvol: &Subvol) -> Result<rustix::io::Result<()>, DriverError> {
    ioctl::qgroup_limit(pool.root(), subvol.info.id, None).doing(|| "lift a limit".to_owned())?;
    let groups = quota::groups_of(pool.root(), subvol.info.id)?;
    quota::with_room(pool.root(), pool.info.id, &groups, || {
        ioctl::set_read_only(&subvol.fd, false)?;
        let flags = rustix::fs::ioctl_getflags(&subvol.fd)?;
        rustix::fs::ioctl_setflags(&subvol.fd, flags - (IFlags::IMMUTABLE | IFlags::APPEND))
    })
}

fn remove_nested(root: BorrowedFd<'_>, subvol: &Subvol) -> Result<(), DriverError> {
    let children = search::children(root, subvol.info.id).doing(|| "look for nested subvolumes".to_owned())?;
    if !children.is_empty() && ioctl::is_read_only(&subvol.fd).doing(|| "read flags".to_owned())? {
        ioctl::set_read_only(&subvol.fd, false).doing(|| "make writable to delete what is nested".to_owned())?;
    }
    for child in children {
        let below = search::children(root, child.id).doing(|| "look for nested subvolumes".to_owned())?;
        if !below.is_empty() {
            remove_nested(root, &open_child(subvol, &child)?)?;
        }
        match ioctl::subvol_destroy_id(root, child.id) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(fail(format!("delete nested subvolume {}", String::from_utf8_lossy(&child.name)), e)),
        }
    }
    Ok(())
}

/// Opens a nested subvolume by the path that the kernel gives for it; a user's symbolic links are not followed.
fn open_child(parent: &Subvol, child: &Child) -> Result<Subvol, DriverError> {
    let what = || "open a nested subvolume".to_owned();
    let mut path = ioctl::ino_path(&parent.fd, parent.info.id, child.dir).doing(what)?;
    path.extend_from_slice(&child.name);
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(&parent.fd, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS).doing(what)?;
    let info = ioctl::subvol_info(&fd).doing(what)?;
    if info.id != child.id {
        return Err(DriverError::FenceRaced("a nested subvolume was moved while it was being deleted".to_owned()));
    }
    Ok(Subvol { fd, info })
}
