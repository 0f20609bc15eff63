//! Small file-system steps below a descriptor of the pool's root, with typed errors. No path of ours goes through the mount point: what
//! is mounted there later, or no more, can't lead a write astray.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use super::search::FIRST_INODE;
use crate::driver::DriverError;

/// Largest metadata file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Gives a system error its kind.
pub fn fail(what: impl Into<String>, errno: Errno) -> DriverError {
    let what = what.into();
    match errno {
        Errno::NOENT => DriverError::NotFound(what),
        Errno::NOSPC | Errno::DQUOT => DriverError::NoSpace(format!("{what}: {errno}")),
        Errno::ROFS => DriverError::PoolFailed(format!("{what}: the pool is read-only")),
        Errno::UCLEAN => DriverError::CorruptDisk(format!("{what}: {errno}")),
        Errno::IO => DriverError::PoolFailed(format!("{what}: {errno}")),
        Errno::TXTBSY => DriverError::SwapFile(what),
        Errno::NOTTY | Errno::OPNOTSUPP => DriverError::Unsupported(format!("{what}: {errno}")),
        _ => DriverError::Io { what, source: errno.into() },
    }
}

/// `fail` for a result.
pub trait Context<T> {
    /// Names what was being done.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, DriverError>;
}
impl<T> Context<T> for rustix::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, DriverError> {
        self.map_err(|e| fail(what(), e))
    }
}
impl<T> Context<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, DriverError> {
        self.map_err(|e| match e.raw_os_error() {
            Some(raw) => fail(what(), Errno::from_raw_os_error(raw)),
            None => DriverError::Io { what: what(), source: e },
        })
    }
}

/// What is gone already counts as removed.
///
/// # Errors
///
/// That of `result`, unless it is [`DriverError::NotFound`].
pub fn gone_is_fine(result: Result<(), DriverError>) -> Result<(), DriverError> {
    match result {
        Err(DriverError::NotFound(_)) => Ok(()),
        other => other,
    }
}

/// What is missing is `None`.
///
/// # Errors
///
/// That of `result`, unless it is [`DriverError::NotFound`].
pub fn maybe<T>(result: Result<T, DriverError>) -> Result<Option<T>, DriverError> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(DriverError::NotFound(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a directory below `at`; no symbolic link is followed anywhere in `path`.
///
/// # Errors
///
/// [`DriverError::NotFound`] if it is not there; an I/O error if a part of the path is a symbolic link or no directory.
pub fn open_dir(at: impl AsFd, path: &str) -> Result<OwnedFd, DriverError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat2(at, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)
        .doing(|| format!("open {path}"))
}

/// Makes a directory (mode 0700) if it is not there; true if it was made.
///
/// # Errors
///
/// It can't be made, for want of space, say.
pub fn make_dir(at: impl AsFd, name: &str) -> Result<bool, DriverError> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(fail(format!("make directory {name}"), e)),
    }
}

/// `fsync` of a directory: creations, renames and deletions in it are durable afterwards (storage.md §2).
///
/// # Errors
///
/// The disk refuses: nothing is known about what is durable then.
pub fn sync_dir(dir: impl AsFd) -> Result<(), DriverError> {
    rustix::fs::fsync(dir).doing(|| "fsync of a directory".to_owned())
}

/// Reads a small file of ours; `NotFound` if it is not there, `BadMetadata` if it is over 1 MiB.
///
/// # Errors
///
/// [`DriverError::NotFound`], [`DriverError::BadMetadata`] as said, or the read fails.
pub fn read_file(dir: impl AsFd, name: &str) -> Result<Vec<u8>, DriverError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).doing(|| format!("open {name}"))?;
    let mut bytes = Vec::new();
    match std::fs::File::from(fd).take(MAX_FILE + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > MAX_FILE => Err(DriverError::BadMetadata(format!("{name} is over {MAX_FILE} bytes"))),
        Ok(_) => Ok(bytes),
        Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => Err(DriverError::CorruptDisk(format!("read {name}: {e}"))),
        Err(e) => Err(e).doing(|| format!("read {name}")),
    }
}

/// Replaces a file of ours whole: write beside it, fsync, rename. Its contents are durable with its name; the name is durable after
/// [`sync_dir`] or the next commit of a transaction.
///
/// # Errors
///
/// A step fails; the old file is then still there, whole.
pub fn replace_file(dir: impl AsFd, name: &str, bytes: &[u8]) -> Result<(), DriverError> {
    let temp = format!("{name}.tmp");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(&dir, temp.as_str(), flags, Mode::RUSR | Mode::WUSR).doing(|| format!("create {temp}"))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).doing(|| format!("write {temp}"))?;
    file.sync_all().doing(|| format!("fsync {temp}"))?;
    rustix::fs::renameat(&dir, temp.as_str(), &dir, name).doing(|| format!("rename {temp}"))
}

/// Unlinks a file; gone already is success.
///
/// # Errors
///
/// It can't be unlinked, for another reason than that it is gone.
pub fn remove_file(dir: impl AsFd, name: &str) -> Result<(), DriverError> {
    gone_is_fine(rustix::fs::unlinkat(dir, name, AtFlags::empty()).doing(|| format!("unlink {name}")))
}

/// Removes an empty directory; gone already is success.
///
/// # Errors
///
/// It is not empty, or can't be removed for another reason than that it is gone.
pub fn remove_dir(dir: impl AsFd, name: &str) -> Result<(), DriverError> {
    gone_is_fine(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).doing(|| format!("rmdir {name}")))
}

/// Names in a directory that are UTF-8 (all of ours are), `.` and `..` left out, sorted.
///
/// # Errors
///
/// The directory can't be read.
pub fn names(dir: impl AsFd) -> Result<Vec<String>, DriverError> {
    // A descriptor of its own, so that the position of the caller's is not moved.
    let own =
        rustix::fs::openat(dir, ".", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| "list".to_owned())?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(own, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.doing(|| "list a directory".to_owned())?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            found.push(name.to_owned());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What a name in a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Root of a subvolume.
    Subvolume,
    /// A plain directory.
    Directory,
    /// Anything else.
    Other,
}

/// What a name is; `None` if it is not there.
///
/// # Errors
///
/// Its metadata can't be read.
pub fn what(dir: impl AsFd, name: &str) -> Result<Option<What>, DriverError> {
    let Some(stat) = maybe(rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).doing(|| format!("stat {name}")))? else {
        return Ok(None);
    };
    let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    let found = match (is_dir, stat.st_ino == FIRST_INODE) {
        (true, true) => What::Subvolume,
        (true, false) => What::Directory,
        _ => What::Other,
    };
    Ok(Some(found))
}
