//! Loop devices, found by the identity of their backing file (storage.md §1), never by its path: two loop devices on one file would be two
//! superblocks that destroy each other. Called by `pool` only, under its lock.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::ioctl::{self, LO_READ_ONLY, LoopStatus};
use super::pool::PoolError;

/// A loop device with our file behind it; the descriptor keeps it (autoclear) until something else does.
#[derive(Debug)]
pub struct Loop {
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// Kept open until the mount holds it.
    pub device: OwnedFd,
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

fn io_error(what: String, errno: Errno) -> PoolError {
    PoolError::Io { what, source: errno.into() }
}

/// Every loop device that has a file, with what is behind it.
fn all() -> Result<Vec<(PathBuf, OwnedFd, LoopStatus)>, PoolError> {
    let entries = std::fs::read_dir("/sys/block").map_err(|source| PoolError::Io { what: "list /sys/block".to_owned(), source })?;
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| PoolError::Io { what: "list /sys/block".to_owned(), source })?.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with("loop")) else { continue };
        let path = Path::new("/dev").join(name);
        // Without a file it has no `loop` directory; with one it must be looked at, or we can't know.
        if !Path::new("/sys/block").join(name).join("loop").exists() {
            continue;
        }
        let device = open(&path, OFlags::RDONLY).map_err(|e| io_error(format!("open {}", path.display()), e))?;
        match ioctl::loop_status(&device) {
            Ok(status) => found.push((path, device, status)),
            Err(Errno::NXIO) => {} // let go of its file meanwhile
            Err(e) => return Err(io_error(format!("status of {}", path.display()), e)),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Whether a status speaks of this file.
fn is_of(status: &LoopStatus, file: &std::fs::Metadata) -> bool {
    status.inode == file.ino()
        && rustix::fs::major(status.device) == rustix::fs::major(file.dev())
        && rustix::fs::minor(status.device) == rustix::fs::minor(file.dev())
}

/// The loop device that has this file, if one has; an error if several have, or it shows only a part, or is read-only.
///
/// # Errors
///
/// [`PoolError::Refused`] as said; or sysfs can't be read.
pub fn find(file: &File, path: &Path) -> Result<Option<Loop>, PoolError> {
    let meta = file.metadata().map_err(|source| PoolError::Io { what: format!("stat {}", path.display()), source })?;
    let mut ours: Vec<_> = all()?.into_iter().filter(|(_, _, status)| is_of(status, &meta)).collect();
    if ours.len() > 1 {
        let devices = ours.iter().map(|(p, _, _)| p.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(PoolError::TwoLoops { path: path.to_owned(), devices });
    }
    let Some((device_path, device, status)) = ours.pop() else { return Ok(None) };
    if status.offset != 0 || status.size_limit != 0 || status.flags & LO_READ_ONLY != 0 {
        return Err(PoolError::Refused(format!(
            "{} shows only a part of {} or is read-only: detach it (losetup -d) and start again",
            device_path.display(),
            path.display()
        )));
    }
    Ok(Some(Loop { path: device_path, device }))
}

/// Puts the file behind a free loop device. The file is opened anew for it: the loop device keeps that open file description, and a
/// lock on it would outlive this process.
///
/// # Errors
///
/// No free device is to be had, or the kernel refuses the file.
pub fn attach(path: &Path) -> Result<Loop, PoolError> {
    let backing = open(path, OFlags::RDWR).map_err(|e| io_error(format!("open {}", path.display()), e))?;
    let control = open(Path::new("/dev/loop-control"), OFlags::RDWR).map_err(|e| io_error("open /dev/loop-control".to_owned(), e))?;
    for _ in 0..64 {
        let number = ioctl::loop_free(&control).map_err(|e| io_error("get a free loop device".to_owned(), e))?;
        let device_path = PathBuf::from(format!("/dev/loop{number}"));
        let device = match open_new(&device_path) {
            Ok(device) => device,
            Err(Errno::BUSY | Errno::NXIO) => continue,
            Err(e) => return Err(io_error(format!("open {}", device_path.display()), e)),
        };
        match ioctl::loop_configure(&device, backing.as_fd()) {
            Ok(()) => return Ok(Loop { path: device_path, device }),
            Err(Errno::BUSY) => {} // someone else was faster
            Err(e) => return Err(io_error(format!("attach {} to {}", path.display(), device_path.display()), e)),
        }
    }
    Err(PoolError::Io { what: "get a free loop device".to_owned(), source: io::Error::from(Errno::BUSY) })
}

/// A loop device just made by the kernel may get its node a moment later.
fn open_new(path: &Path) -> rustix::io::Result<OwnedFd> {
    for _ in 0..50 {
        match open(path, OFlags::RDWR) {
            Err(Errno::NOENT) => std::thread::sleep(std::time::Duration::from_millis(10)),
            other => return other,
        }
    }
    open(path, OFlags::RDWR)
}
