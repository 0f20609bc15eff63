//! Subvolumes: what they are, their children, and their removal. Called by everything here that creates or deletes one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::IFlags;
use rustix::io::Errno;

use super::fsx::{self, Context, What, fail};
use super::ioctl::{self, SubvolInfo};
use super::search::{self, Child};
use super::{BtrfsPool, quota, swap};
use crate::driver::DriverError;

/// A nested subvolume that is locked or renamed again and again is tried so often.
const TRIES: usize = 8;

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
    remove_nested(pool, &subvol)?;
    let result = match ioctl::subvol_destroy(&dir, name) {
        Err(Errno::PERM | Errno::ACCESS) => unlock(pool, &subvol)?.and_then(|()| ioctl::subvol_destroy(&dir, name)),
        other => other,
    };
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::PERM) if swap::is_any() => Err(DriverError::SwapFile(format!("delete subvolume {name}"))),
        Err(Errno::PERM) => Err(DriverError::Mounted(format!("a send of {name} that still runs"))),
        Err(e) => Err(fail(format!("delete subvolume {name}"), e)),
    }
}

/// A root directory made immutable or append-only from inside can't be deleted: takes that off, with the fence that is on the head.
fn unlock(pool: &BtrfsPool, subvol: &Subvol) -> Result<rustix::io::Result<()>, DriverError> {
    ioctl::qgroup_limit(pool.root(), subvol.info.id, None).doing(|| "lift a limit".to_owned())?;
    with_room_for(pool, subvol.info.id, || {
        ioctl::set_read_only(&subvol.fd, false)?;
        unlock_inode(subvol.fd.as_fd())
    })
}

/// Takes the flags off that keep an inode as it is.
fn unlock_inode(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    let flags = rustix::fs::ioctl_getflags(fd)?;
    if flags.intersects(locks) { rustix::fs::ioctl_setflags(fd, flags - locks) } else { Ok(()) }
}

/// Runs a step that needs a little metadata in the subvolume with this id, whichever groups it is in.
fn with_room_for<T>(pool: &BtrfsPool, id: u64, step: impl Fn() -> rustix::io::Result<T>) -> Result<rustix::io::Result<T>, DriverError> {
    let groups = quota::groups_of(pool.root(), id)?;
    quota::with_room(pool.root(), pool.info.id, &groups, step)
}

/// Deepest first, each through a handle of the directory that it is in: users may have given it any name, and put it below a path longer
/// than the kernel takes, which it makes of an id. One descriptor at a time, however many are nested in each other.
fn remove_nested(pool: &BtrfsPool, subvol: &Subvol) -> Result<(), DriverError> {
    let nested = descendants(pool.root(), subvol.info.id)?;
    if nested.is_empty() {
        return Ok(());
    }
    for id in std::iter::once(&subvol.info.id).chain(&nested) {
        make_writable(pool, *id)?;
    }
    nested.iter().rev().try_for_each(|id| remove_placed(pool, *id))
}

/// Whatever limit its maker has given it.
fn make_writable(pool: &BtrfsPool, id: u64) -> Result<(), DriverError> {
    quota::set_own_limit(pool.root(), id, None)?;
    if let Some(locked) = fsx::maybe(open_id(pool.root(), id))?.filter(|s| s.info.read_only) {
        with_room_for(pool, id, || ioctl::set_read_only(&locked.fd, false))?
            .doing(|| "make writable to delete what is nested".to_owned())?;
    }
    Ok(())
}

/// Removes the subvolume with this id, wherever it is; gone already is success. It, or the directory that it is in, may be immutable or
/// append-only.
fn remove_placed(pool: &BtrfsPool, id: u64) -> Result<(), DriverError> {
    let what = || format!("delete the nested subvolume with id {id}");
    let mut refused = Errno::AGAIN;
    for _ in 0..TRIES {
        let Some(at) = search::placed(pool.root(), (id, id), 1).doing(what)?.pop() else { return Ok(()) };
        let Some(dir) = fsx::maybe(ioctl::open_inode(pool.root(), at.parent, at.child.dir).doing(what))? else { continue };
        match with_room_for(pool, at.parent, || ioctl::subvol_destroy(&dir, &at.child.name))? {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT) => {} // it was renamed just now
            Err(e @ (Errno::PERM | Errno::ACCESS)) => {
                refused = e;
                with_room_for(pool, at.parent, || unlock_inode(dir.as_fd()))?.doing(what)?;
                if let Some(own) = fsx::maybe(open_id(pool.root(), id))? {
                    with_room_for(pool, id, || unlock_inode(own.fd.as_fd()))?.doing(what)?;
                }
            }
            Err(e) => return Err(fail(what(), e)),
        }
    }
    Err(fail(what(), refused))
}
