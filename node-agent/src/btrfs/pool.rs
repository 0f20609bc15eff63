//! Opens the pool: finds it by identity, formats it once, mounts it once, turns quotas on (storage.md §1). Called at the agent's start.
//!
//! Everything here can be repeated after a crash at any step, and a second agent on the same pool is refused by `flock`. A restart finds
//! the loop device and the superblock that pods still use, and takes them over.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use dotgraft_engine::ids::PoolId;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use uuid::Uuid;

use super::{ioctl, loopdev, mounts};
use crate::driver::DriverError;

/// Label of a filesystem that we formatted: only such a one is taken over when no pool is recorded yet.
pub const LABEL: &str = "dotgraft-pool";

/// Where the pool's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolSource {
    /// A file that is made with this size (bytes) if it is not there, fallocated, and used through a loop device.
    File {
        /// Its path.
        path: PathBuf,
        /// Its size when it is made; an existing one keeps its own.
        size_bytes: u64,
    },
    /// A block device.
    Device(PathBuf),
}

impl PoolSource {
    fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } | Self::Device(path) => path,
        }
    }
}

/// Why a pool can't be opened. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Another process holds its lock.
    #[error("{0} is in use by another agent: end that one first (two on one pool would destroy it)")]
    InUse(PathBuf),
    /// Not the pool that is recorded for this node.
    #[error(
        "pool {expected} is recorded for this node, but {path} has {found}: attach the disk of that pool, or, if it is lost for good, delete \
         the NodePool object so that a new pool may be made"
    )]
    Missing {
        /// The recorded one.
        expected: PoolId,
        /// Where it was looked for.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Two loop devices on one file.
    #[error(
        "{path} is behind more than one loop device ({devices}): unmount and detach all but the one in use, run `btrfs check`, and start again"
    )]
    TwoLoops {
        /// The pool file.
        path: PathBuf,
        /// The loop devices.
        devices: String,
    },
    /// Something there is not ours or not usable.
    #[error("{0}")]
    Refused(String),
    /// A system error.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The pool is mounted, but not usable.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

fn at<T>(result: io::Result<T>, what: impl FnOnce() -> String) -> Result<T, PoolError> {
    result.map_err(|source| PoolError::Io { what: what(), source })
}

/// A pool that is locked and mounted.
#[derive(Debug)]
pub struct Mounted {
    /// Held with `flock` as long as the pool is open.
    pub lock: File,
    /// The pool's root directory.
    pub root: OwnedFd,
    /// UUID of the filesystem.
    pub id: PoolId,
    /// Device number of the superblock as mount tables show it.
    pub dev: String,
    /// It was formatted just now.
    pub formatted: bool,
    /// An earlier life's mount was taken over.
    pub reused: bool,
}

/// Locks, attaches, formats if allowed, and mounts.
///
/// # Errors
///
/// [`PoolError::Missing`] if another pool or none is there, [`PoolError::Refused`] for what is not to be formatted or not to be used; I/O
/// errors.
pub fn mount(source: &PoolSource, mount_point: &Path, expected: Option<PoolId>) -> Result<Mounted, PoolError> {
    let lock = lock(source, expected)?;
    let (device, _hold) = device_of(source, &lock)?;
    let mut formatted = false;
    refuse_several(&device)?;
    let id = match (superblock(&device)?, expected) {
        (Some(sb), Some(expected)) if sb.id == expected => sb.id,
        (Some(sb), None) if sb.label == LABEL => sb.id,
        (Some(sb), None) => {
            return Err(PoolError::Refused(format!(
                "{} has a btrfs filesystem ({}, label `{}`) that Dotgraft did not make: wipe it (wipefs -a), or give it the label {LABEL} to hand it over",
                device.display(),
                sb.id,
                sb.label
            )));
        }
        (found, Some(expected)) => {
            let found = found.map_or_else(|| "no btrfs filesystem".to_owned(), |sb| format!("pool {}", sb.id));
            return Err(PoolError::Missing { expected, path: source.path().to_owned(), found });
        }
        (None, None) => {
            format(&device)?;
            formatted = true;
            superblock(&device)?.ok_or_else(|| PoolError::Refused(format!("mkfs.btrfs left no filesystem on {}", device.display())))?.id
        }
    };
    refuse_other_device(id, &device)?;
    let (mount_point, reused) = mount_once(source, &device, mount_point)?;
    let root = at(File::open(&mount_point), || format!("open {}", mount_point.display()))?;
    let (fsid, _, _) = at(ioctl::fs_info(&root).map_err(Into::into), || format!("{} is not our pool", mount_point.display()))?;
    if Uuid::from_bytes(fsid) != id.uuid() {
        return Err(PoolError::Refused(format!("{} has another filesystem mounted than {}", mount_point.display(), device.display())));
    }
    refuse_other_device(id, &device)?;
    let line = mounts::at(&mount_point)?.ok_or_else(|| PoolError::Refused(format!("{} is not mounted", mount_point.display())))?;
    if line.root != Path::new("/") {
        return Err(PoolError::Refused(format!("{} shows only {} of the pool: unmount it", mount_point.display(), line.root.display())));
    }
    Ok(Mounted { lock, root: root.into(), id, dev: line.dev, formatted, reused })
}

/// Refuses a pool whose agent runs, before anything is said in this node's name: a second agent that got as far as a certificate would
/// have sent the peers of the first one to itself. A pool that isn't there (yet) is nobody's.
///
/// # Errors
///
/// [`PoolError::Refused`] if it is locked by another agent.
pub fn refuse_if_in_use(source: &PoolSource) -> Result<(), PoolError> {
    let path = source.path();
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => at(other, || format!("open {}", path.display()))?,
    };
    try_lock(&file, path)
}

fn try_lock(file: &File, path: &Path) -> Result<(), PoolError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(PoolError::InUse(path.to_owned())),
        Err(e) => Err(PoolError::Io { what: format!("lock {}", path.display()), source: e.into() }),
    }
}

/// Opens the file or device and takes the lock that makes us the only agent on it; a new file gets its full size.
fn lock(source: &PoolSource, expected: Option<PoolId>) -> Result<File, PoolError> {
    let path = source.path();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if let (PoolSource::File { .. }, None) = (source, expected) {
        options.create(true).mode(0o600);
    }
    let file = match (options.open(path), expected) {
        (Err(e), Some(expected)) if e.kind() == io::ErrorKind::NotFound => {
            return Err(PoolError::Missing { expected, path: path.to_owned(), found: "nothing".to_owned() });
        }
        (other, _) => at(other, || format!("open {}", path.display()))?,
    };
    try_lock(&file, path)?;
    if let PoolSource::File { size_bytes, .. } = source {
        allocate(&file, path, *size_bytes, expected)?;
    }
    Ok(file)
}

/// No holes in a pool file: on a full disk a sparse one made the whole pool read-only after writes that had returned success (storage.md §1).
fn allocate(file: &File, path: &Path, size: u64, expected: Option<PoolId>) -> Result<(), PoolError> {
    let meta = at(file.metadata(), || format!("stat {}", path.display()))?;
    if !meta.is_file() {
        return Err(PoolError::Refused(format!("{} is not a regular file: use --pool-device for a device", path.display())));
    }
    let found = superblock_of(file, path)?.map(|sb| sb.id);
    if expected.is_some() && found != expected {
        return Ok(()); // not our pool: it is refused as it is, and takes no more space than it does
    }
    // A size of less than asked means a first start that was interrupted, or another configured size: only the first may grow.
    let fresh = expected.is_none() && meta.len() < size && found.is_none();
    let want = if fresh { size } else { meta.len() };
    if meta.len() == want && meta.blocks().saturating_mul(512) >= want {
        return Ok(());
    }
    let grown = rustix::fs::fallocate(file, FallocateFlags::empty(), 0, want).map_err(io::Error::from);
    at(grown, || format!("reserve {want} bytes for {} (the pool must not be sparse)", path.display()))?;
    at(file.sync_all(), || format!("fsync {}", path.display()))?;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        at(File::open(parent).and_then(|d| d.sync_all()), || format!("fsync {}", parent.display()))?;
    }
    Ok(())
}

/// The size that is asked for, where an existing file has another: it keeps its own.
pub fn other_size(source: &PoolSource, file: &File) -> Option<u64> {
    let PoolSource::File { size_bytes, .. } = source else { return None };
    file.metadata().ok().filter(|m| m.len() != *size_bytes).map(|_| *size_bytes)
}

/// The block device, with what keeps it until it is mounted.
fn device_of(source: &PoolSource, file: &File) -> Result<(PathBuf, Option<OwnedFd>), PoolError> {
    match source {
        PoolSource::Device(path) => Ok((at(std::fs::canonicalize(path), || format!("resolve {}", path.display()))?, None)),
        PoolSource::File { path, .. } => {
            let found = match loopdev::find(file, path)? {
                Some(found) => found,
                None => loopdev::attach(path)?,
            };
            Ok((found.path, Some(found.device)))
        }
    }
}

/// What a btrfs superblock tells before it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Superblock {
    id: PoolId,
    label: String,
    /// Devices that the filesystem is on.
    devices: u64,
}

fn superblock(device: &Path) -> Result<Option<Superblock>, PoolError> {
    let file = at(File::open(device), || format!("open {}", device.display()))?;
    superblock_of(&file, device)
}

/// Where the first superblock and its copies are, bytes.
const SUPERBLOCKS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

/// Reads the first superblock. If only a copy of it is there, the pool is damaged, and nothing is formatted.
fn superblock_of(file: &File, path: &Path) -> Result<Option<Superblock>, PoolError> {
    for at_byte in SUPERBLOCKS {
        let mut block = [0_u8; 4096];
        match file.read_exact_at(&mut block, at_byte) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            other => at(other, || format!("read {}", path.display()))?,
        }
        if block.get(0x40..0x48) != Some(b"_BHRfS_M") {
            continue;
        }
        if at_byte != SUPERBLOCKS[0] {
            return Err(PoolError::Refused(format!(
                "the first superblock of {} is damaged, a copy is there: try `btrfs rescue super-recover`",
                path.display()
            )));
        }
        let id = block.get(0x20..0x30).and_then(|b| b.try_into().ok()).map(Uuid::from_bytes);
        let label = block.get(0x12b..0x22b).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
        let label = String::from_utf8_lossy(label).into_owned();
        let devices = block.get(0x88..0x90).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        return Ok(id.map(|id| Superblock { id: PoolId::from_uuid(id), label, devices }));
    }
    Ok(None)
}

/// Makes the filesystem. `mkfs.btrfs` without `-f` refuses where it knows any other filesystem or partition table. `-K`: no discard, which
/// would punch the file full of holes.
fn format(device: &Path) -> Result<(), PoolError> {
    let output = at(Command::new("mkfs.btrfs").args(["-q", "-K", "-L", LABEL]).arg(device).output(), || "run mkfs.btrfs".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(PoolError::Refused(format!("mkfs.btrfs refused {}: {}", device.display(), said.trim())))
}

/// A pool is on one device (ADR 40).
fn refuse_several(device: &Path) -> Result<(), PoolError> {
    match superblock(device)? {
        Some(Superblock { id, devices, .. }) if devices != 1 => Err(PoolError::Refused(format!(
            "filesystem {id} on {} is spread over {devices} devices, and a pool is on one: make one block device of several below it (LVM, mdraid), or take \
             the others out (`btrfs device remove`)",
            device.display()
        ))),
        _ => Ok(()),
    }
}

/// The kernel lists the devices of every mounted btrfs; it must be ours alone.
fn refuse_other_device(id: PoolId, device: &Path) -> Result<(), PoolError> {
    let entries = match std::fs::read_dir(format!("/sys/fs/btrfs/{id}/devices")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => at(other, || format!("list the devices of {id}"))?,
    };
    for entry in entries {
        let name = at(entry, || format!("list the devices of {id}"))?.file_name();
        if Some(name.as_os_str()) != device.file_name() {
            return Err(PoolError::Refused(format!(
                "pool {id} is already mounted from /dev/{}, not from {}: unmount that one first (two superblocks on one pool destroy it)",
                name.display(),
                device.display()
            )));
        }
    }
    Ok(())
}

/// Mounts at `mount_point`, or takes over what an earlier life mounted there. Returns the resolved path and whether it was there.
///
/// Options: `noatime` (reading must not write, and so unshare metadata), no `user_subvol_rm_allowed` (a pod must not delete subvolumes), a
/// transaction every 30 s as the kernel has it. For files `nodiscard`: a discard would punch holes into the fallocated file. Nothing is to be run
/// or opened as a device through it: whatever tenants and other nodes put into volumes, it gives no rights here (ADR 29).
fn mount_once(source: &PoolSource, device: &Path, mount_point: &Path) -> Result<(PathBuf, bool), PoolError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(mount_point);
    at(made, || format!("make {}", mount_point.display()))?;
    let mount_point = at(std::fs::canonicalize(mount_point), || format!("resolve {}", mount_point.display()))?;
    if let Some(line) = mounts::at(&mount_point)? {
        if line.fs_type == "btrfs" {
            disarm(&mount_point)?; // one of a life before may lack the flags
            return Ok((mount_point, true)); // whether it is ours is checked by its UUID
        }
        return Err(PoolError::Refused(format!("{} has a {} mounted: unmount it", mount_point.display(), line.fs_type)));
    }
    let options = match source {
        PoolSource::File { .. } => c"nodiscard",
        PoolSource::Device(_) => c"",
    };
    let mounted = rustix::mount::mount(device, &mount_point, "btrfs", MountFlags::NOATIME, options).map_err(io::Error::from);
    at(mounted, || format!("mount {} at {}", device.display(), mount_point.display()))?;
    let private = rustix::mount::mount_change(&mount_point, MountPropagationFlags::PRIVATE).map_err(io::Error::from);
    at(private, || format!("make {} private", mount_point.display()))?;
    disarm(&mount_point)?;
    Ok((mount_point, false))
}

/// Takes from a mount what its content could give rights by. Mounts of volumes are of this one, and say for themselves what they allow.
fn disarm(mount_point: &Path) -> Result<(), PoolError> {
    let flags = MountFlags::BIND | MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let done = rustix::mount::mount_remount(mount_point, flags, c"").map_err(io::Error::from);
    at(done, || format!("set what may be done through {}", mount_point.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_whose_agent_runs_is_refused_and_one_that_is_not_there_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.img");
        let source = PoolSource::File { path: path.clone(), size_bytes: 1 << 20 };
        refuse_if_in_use(&source).unwrap();
        assert!(!path.exists(), "a look makes nothing");
        let first = File::create(&path).unwrap();
        refuse_if_in_use(&source).unwrap();
        rustix::fs::flock(&first, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(matches!(refuse_if_in_use(&source), Err(PoolError::InUse(p)) if p == path));
        drop(first);
        refuse_if_in_use(&source).unwrap();
    }
}
