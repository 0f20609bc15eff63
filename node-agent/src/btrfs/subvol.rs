//! Subvolumes: what they are, their children, and their removal. Called by everything here that creates or deletes one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::IFlags;
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
///
/// # Errors
///
/// As said; or it can't be opened.
pub fn open_root(at: impl AsFd, path: &str) -> Result<OwnedFd, DriverError> {
    let fd = fsx::open_dir(at, path)?;
    let stat = rustix::fs::fstat(&fd).doing(|| format!("stat {path}"))?;
    if stat.st_ino != search::FIRST_INODE {
        return Err(DriverError::BadMetadata(format!("{path} is a directory where a subvolume should be")));
    }
    Ok(fd)
}

/// Opens a subvolume with what the kernel says of it; errors as [`open_root`].
///
/// # Errors
///
/// As [`open_root`]; or the kernel can't say what it is.
pub fn open(at: impl AsFd, path: &str) -> Result<Subvol, DriverError> {
    let fd = open_root(at, path)?;
    let info = ioctl::subvol_info(&fd).doing(|| format!("subvolume info of {path}"))?;
    Ok(Subvol { fd, info })
}

/// The same; `None` if it is not there.
///
/// # Errors
///
/// As [`open`], but for [`DriverError::NotFound`].
pub fn find(at: impl AsFd, path: &str) -> Result<Option<Subvol>, DriverError> {
    fsx::maybe(open(at, path))
}

/// Opens a subvolume by the id of its tree, wherever in the pool it is and whatever its users do with its name; `NotFound` if it is gone.
pub fn open_id(root: BorrowedFd<'_>, id: u64) -> Result<Subvol, DriverError> {
    let what = || format!("open the subvolume with id {id}");
    let fd = ioctl::open_inode(root, id, search::FIRST_INODE).doing(what)?;
    let info = ioctl::subvol_info(&fd).doing(what)?;
    Ok(Subvol { fd, info })
}

/// The subvolumes directly inside one.
pub fn children(root: BorrowedFd<'_>, id: u64) -> Result<Vec<Child>, DriverError> {
    search::children(root, id).doing(|| "look for nested subvolumes".to_owned())
}

/// Ids of the subvolumes in the one with this id, at any depth, each after the one that it is in.
pub fn descendants(root: BorrowedFd<'_>, id: u64) -> Result<Vec<u64>, DriverError> {
    let mut found = Vec::new();
    let mut next = vec![id];
    while let Some(parent) = next.pop() {
        for child in children(root, parent)? {
            found.push(child.id);
            next.push(child.id);
        }
    }
    Ok(found)
}

/// Removes the subvolume `name` in `dir` with all that is nested in it, depth-first; false if it was not there. Durable after `fsync` of
/// `dir`. The caller has checked that nobody has it mounted, and lifted the limits where something may be nested.
///
/// # Errors
///
/// The first step that fails; what was removed before stays removed.
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

/// Deepest first, and by id: users may have given them any name.
fn remove_nested(root: BorrowedFd<'_>, subvol: &Subvol) -> Result<(), DriverError> {
    let nested = descendants(root, subvol.info.id)?;
    if nested.is_empty() {
        return Ok(());
    }
    let what = || "make writable to delete what is nested".to_owned();
    for parent in std::iter::once(&subvol.info.id).chain(&nested) {
        if let Some(parent) = fsx::maybe(open_id(root, *parent))?.filter(|p| p.info.read_only) {
            ioctl::set_read_only(&parent.fd, false).doing(what)?;
        }
    }
    for id in nested.iter().rev() {
        match ioctl::subvol_destroy_id(root, *id) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(fail(format!("delete the nested subvolume with id {id}"), e)),
        }
    }
    Ok(())
}
