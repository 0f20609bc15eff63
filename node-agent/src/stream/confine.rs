//! Everything by which a stream reaches the disk: one subvolume, opened so that no path in a stream can leave it.
//!
//! The rules are storage.md §5, "Confinement". A directory on the way is opened from the root's descriptor by `openat2`
//! with `BENEATH`, `NO_SYMLINKS`, `NO_MAGICLINKS` and `NO_XDEV`, *and* its `st_dev` is compared, because `NO_XDEV` does not stop at a
//! nested subvolume. The last component is one checked name, used by `*at` calls that don't follow. Nothing is opened for
//! reading or writing before it is known to be a regular file or a directory: opening a device has effects of its own.
//!
//! `apply` owns one [`Tree`] for the work subvolume and one for the base. Nobody else writes to either meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat};
use rustix::io::Errno;

use super::error::Cause;
use super::path::{StreamPath, is_within};

/// Directory descriptors kept open. Streams stay in few directories at a time.
const CACHED_DIRS: usize = 32;

/// A subvolume that paths are resolved in.
#[derive(Debug)]
pub struct Tree {
    root: Arc<OwnedFd>,
    dev: u64,
    /// Most recently used first.
    dirs: Vec<(Vec<u8>, Arc<OwnedFd>)>,
}

/// A name in an open directory, or the root itself: what `*at` calls take.
#[derive(Debug, Clone)]
pub struct Place {
    dir: Arc<OwnedFd>,
    /// Empty for the root.
    name: Vec<u8>,
    dev: u64,
}

impl Tree {
    /// The tree below `root`, a descriptor of a directory.
    ///
    /// # Errors
    /// When it can't be opened as a directory.
    pub fn new(root: &OwnedFd) -> Result<Self, Cause> {
        let opened =
            open_in(root.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY).map_err(|errno| Cause::system("openat2", b".", errno))?;
        let dev = fstat(&opened).map_err(|errno| Cause::system("fstat", b".", errno))?.st_dev;
        Ok(Self { root: Arc::new(opened), dev, dirs: Vec::with_capacity(CACHED_DIRS) })
    }

    /// The root's descriptor.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where `path` is: its directory opened, its last component as a name.
    ///
    /// # Errors
    /// The directory is not there, is not one, or is on another filesystem or subvolume.
    pub fn place(&mut self, path: StreamPath<'_>) -> Result<Place, Cause> {
        let Some((dir, name)) = path.split() else {
            return Ok(Place { dir: Arc::clone(&self.root), name: Vec::new(), dev: self.dev });
        };
        Ok(Place { dir: self.directory(dir)?, name: name.to_vec(), dev: self.dev })
    }

    /// Drops descriptors of `path` and of what is below, because it is about to move or go.
    pub fn forget(&mut self, path: StreamPath<'_>) {
        self.dirs.retain(|(dir, _)| !is_within(dir, path.bytes()));
    }

    fn directory(&mut self, path: StreamPath<'_>) -> Result<Arc<OwnedFd>, Cause> {
        if path.is_root() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(at) = self.dirs.iter().position(|(dir, _)| dir == path.bytes()) {
            let found = self.dirs.remove(at);
            let fd = Arc::clone(&found.1);
            self.dirs.insert(0, found);
            return Ok(fd);
        }
        let opened = open_in(self.root.as_fd(), path.bytes(), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|errno| crossing_or("openat2", path.bytes(), errno))?;
        check_dev(&opened, self.dev, path.bytes())?;
        let opened = Arc::new(opened);
        self.dirs.truncate(CACHED_DIRS - 1);
        self.dirs.insert(0, (path.bytes().to_vec(), Arc::clone(&opened)));
        Ok(opened)
    }
}

impl Place {
    /// The directory's descriptor; the root's own for the root.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Whether it is the root of the tree.
    pub fn is_root(&self) -> bool {
        self.name.is_empty()
    }

    /// What is there, not followed.
    ///
    /// # Errors
    /// Nothing is, or it is another subvolume's root or a mount.
    pub fn stat(&self) -> Result<Stat, Cause> {
        let stat = if self.is_root() {
            fstat(&self.dir).map_err(|errno| self.system("fstat", errno))?
        } else {
            statat(&self.dir, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.system("fstatat", errno))?
        };
        if stat.st_dev != self.dev {
            return Err(self.crossing());
        }
        Ok(stat)
    }

    /// Opens the regular file that is there.
    ///
    /// # Errors
    /// It is not a regular file, or not there.
    pub fn open_file(&self, access: OFlags) -> Result<OwnedFd, Cause> {
        if FileType::from_raw_mode(self.stat()?.st_mode) != FileType::RegularFile {
            return Err(Cause::Sequence("data for something that is no regular file"));
        }
        self.open_as(FileType::RegularFile, access)
    }

    /// Opens the directory that is there, for reading.
    ///
    /// # Errors
    /// It is not a directory, or not there.
    pub fn open_dir(&self) -> Result<OwnedFd, Cause> {
        self.open_as(FileType::Directory, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens whatever is there as a mere handle (`O_PATH`), which has no effect on devices, pipes and sockets.
    ///
    /// # Errors
    /// It is not there, or on another subvolume.
    pub fn open_handle(&self) -> Result<OwnedFd, Cause> {
        let opened = open_in(self.dir(), self.component(), OFlags::PATH).map_err(|errno| self.refused("openat2", errno))?;
        check_dev(&opened, self.dev, &self.name)?;
        Ok(opened)
    }

    /// Confirms that a file just made here is in the tree, and says what it is.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn stat_of(&self, fd: &OwnedFd) -> Result<Stat, Cause> {
        let stat = fstat(fd).map_err(|errno| self.system("fstat", errno))?;
        if stat.st_dev != self.dev {
            return Err(self.crossing());
        }
        Ok(stat)
    }

    /// The kernel's answer to `call` about this place.
    pub fn system(&self, call: &'static str, errno: Errno) -> Cause {
        Cause::system(call, &self.name, errno)
    }

    /// Only for what [`Self::stat`] has shown to be of type `wanted`; checked again on the descriptor.
    fn open_as(&self, wanted: FileType, access: OFlags) -> Result<OwnedFd, Cause> {
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = open_in(self.dir(), self.component(), flags).map_err(|errno| self.refused("openat2", errno))?;
        if FileType::from_raw_mode(self.stat_of(&opened)?.st_mode) != wanted {
            return Err(Cause::Sequence("a file of another type than before"));
        }
        Ok(opened)
    }

    fn component(&self) -> &[u8] {
        if self.is_root() { b"." } else { &self.name }
    }

    fn refused(&self, call: &'static str, errno: Errno) -> Cause {
        crossing_or(call, &self.name, errno)
    }

    fn crossing(&self) -> Cause {
        Cause::Crossing { path: String::from_utf8_lossy(&self.name).into_owned() }
    }
}

fn crossing_or(call: &'static str, path: &[u8], errno: Errno) -> Cause {
    if errno == Errno::XDEV {
        return Cause::Crossing { path: String::from_utf8_lossy(path).into_owned() };
    }
    Cause::system(call, path, errno)
}

fn check_dev(fd: &OwnedFd, dev: u64, path: &[u8]) -> Result<(), Cause> {
    let stat = fstat(fd).map_err(|errno| Cause::system("fstat", path, errno))?;
    if stat.st_dev != dev {
        return Err(Cause::Crossing { path: String::from_utf8_lossy(path).into_owned() });
    }
    Ok(())
}

/// `openat2` with everything that keeps it beneath `dir`. Never creates.
fn open_in(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| openat2(dir, path, flags, Mode::empty(), resolve))
}
