//! Takes the snapshot that a commit is. In it a nested subvolume is a plain directory with the same content (ADR 14).
//!
//! A snapshot of the head alone shows each nested subvolume as an empty directory, and a send leaves even that out. So each is
//! snapshotted too, and made again inside a writable snapshot of the head, which becomes the commit when all is there: by the kernel's own
//! send, without data, into our receiver, while the files made share their extents with the nested ones. What a commit holds thereby is
//! what a copy of it on another node would hold.
//!
//! Also so made is the commit of a head that has a received UUID, which whoever owns its root directory may set: a read-only snapshot would
//! inherit it, and a stream name two commits by one UUID; a writable one does not (kernel: `create_pending_snapshot`).
//!
//! Where the head is not frozen, each nested subvolume is of a moment of its own, just after the head's. They are listed before and after;
//! where that differs, it is done again.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use dotgraft_engine::model::Commit;
use rustix::fs::{AtFlags, IFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::fsx::{self, Context, fail};
use super::search::Child;
use super::subvol::{self, Subvol, children};
use super::{BtrfsPool, commit, ioctl, layout, long, meta, quota, send};
use crate::driver::{DriverError, Nested};
use crate::stream::{Applier, Donor, StreamError};

/// A commit of a head whose users make and remove subvolumes all the time is tried so often in a row.
const TRIES: usize = 8;
/// Inode of what is left of a nested subvolume in a snapshot: an empty directory.
const LEFT_OF_NESTED: u64 = 2;
/// Piece in which a stream is read.
const PIECE: usize = 1 << 20;

/// Takes the commit, or finds it; says what was nested.
///
/// # Errors
/// `NestedSubvolume` where a nested one can't be made again as a directory, or they change all the time; the kernel's refusals.
pub fn take(pool: &BtrfsPool, commits: &OwnedFd, head: &Subvol, qgroup: u64, commit: &Commit) -> Result<Option<Nested>, DriverError> {
    let mut marked = false;
    for _ in 0..TRIES {
        let nested = children(pool.root(), head.info.id)?;
        let taken = if nested.is_empty() && !marked {
            commit::snapshot_commit(commits, head, qgroup, commit)
        } else {
            let folded = Folding { pool, commits, qgroup, commit }.run(head, &nested);
            sweep(pool, commits)?;
            folded
        };
        if taken.is_ok() && !marked && subvol::open(commits, &commit.id.to_string())?.info.is_received() {
            marked = true;
            pool.remove_commit(commit.fs_id, commit.id)?;
            continue;
        }
        let same = children(pool.root(), head.info.id)? == nested;
        match taken {
            Ok(()) if same => return Ok(nested.first().map(|first| folded(head, first, nested.len()))),
            Ok(()) => pool.remove_commit(commit.fs_id, commit.id)?, // one made between list and snapshot is an empty directory in it
            Err(DriverError::NotFound(_)) => {}                     // one went meanwhile
            Err(e) => return Err(e),
        }
    }
    Err(DriverError::NestedSubvolume("subvolumes in this volume come and go all the time".to_owned()))
}

/// The same of a frozen head, where nothing changes. A full volume gets the room that the directories of the nested ones need.
///
/// # Errors
/// As [`take`].
pub fn take_frozen(
    pool: &BtrfsPool,
    commits: &OwnedFd,
    head: &Subvol,
    qgroup: u64,
    commit: &Commit,
) -> Result<Option<Nested>, DriverError> {
    let nested = children(pool.root(), head.info.id)?;
    let folded = nested.first().map(|first| folded(head, first, nested.len()));
    if commit::existing(commits, commit)?.is_some() {
        return Ok(folded);
    }
    if nested.is_empty() {
        return take(pool, commits, head, qgroup, commit);
    }
    let limit = quota::usage(pool.root(), pool.info.id, qgroup)?.limit;
    quota::set_limit(&pool.root, qgroup, 0)?;
    let taken = take(pool, commits, head, qgroup, commit);
    quota::set_limit(&pool.root, qgroup, limit)?;
    taken
}

/// Removes what an interrupted attempt has left.
///
/// # Errors
/// The kernel's refusals.
pub fn sweep(pool: &BtrfsPool, commits: &OwnedFd) -> Result<(), DriverError> {
    for name in fsx::names(commits)?.iter().filter(|name| layout::is_work(name)) {
        subvol::remove(pool, commits, name)?;
    }
    Ok(())
}

fn folded(head: &Subvol, first: &Child, count: usize) -> Nested {
    let mut path = ioctl::ino_path(&head.fd, head.info.id, first.dir).unwrap_or_default();
    path.extend_from_slice(&first.name);
    Nested { count, first: String::from_utf8_lossy(&path).into_owned() }
}

/// One nested subvolume and the directory in which it is made again.
struct Place {
    /// Path of the directory that it is in, in the work; empty for the work itself. Not a descriptor: there may be more places than those.
    dir: Vec<u8>,
    child: Child,
}

struct Folding<'a> {
    pool: &'a BtrfsPool,
    commits: &'a OwnedFd,
    qgroup: u64,
    commit: &'a Commit,
}

impl Folding<'_> {
    fn run(&self, head: &Subvol, nested: &[Child]) -> Result<(), DriverError> {
        sweep(self.pool, self.commits)?;
        let name = layout::work(self.commit.id);
        let work = self.snapshot(head, &name, false)?;
        let mut todo = places(&work, nested, b"")?;
        while let Some(next) = todo.pop() {
            todo.extend(self.fold(&work, &next)?);
        }
        self.publish(&work, &name)
    }

    fn snapshot(&self, of: &Subvol, name: &str, read_only: bool) -> Result<Subvol, DriverError> {
        ioctl::snapshot(self.commits, name, &of.fd, read_only, quota::level1(self.qgroup)).doing(|| "snapshot for a commit".to_owned())?;
        subvol::open(self.commits, name)
    }

    /// Makes one again as a directory, without what is nested in it: that is returned.
    fn fold(&self, work: &Subvol, nested: &Place) -> Result<Vec<Place>, DriverError> {
        let live = subvol::open_id(self.pool.root(), nested.child.id)?;
        let inside = children(self.pool.root(), nested.child.id)?;
        let name = layout::part(self.commit.id);
        let part = self.snapshot(&live, &name, true)?;
        if children(self.pool.root(), nested.child.id)? != inside {
            return Err(DriverError::NotFound("a nested subvolume as it was a moment ago".to_owned())); // again from the start
        }
        let made = make_directory(&work.fd, nested)?;
        let below = places(&part, &inside, &[&nested.dir, nested.child.name.as_slice(), b"/"].concat())?;
        fill(made, part, &nested.child, self.pool.info.stream_version)?;
        subvol::remove(self.pool, self.commits, &name)?;
        Ok(below)
    }

    /// The work becomes the commit, durably: its metadata first, then all data, then its name.
    fn publish(&self, work: &Subvol, name: &str) -> Result<(), DriverError> {
        meta::write_commit(self.commits, self.commit)?;
        ioctl::set_read_only(&work.fd, true).doing(|| "make a commit read-only".to_owned())?;
        ioctl::sync(&self.pool.root).doing(|| "write the pool back".to_owned())?;
        let id = self.commit.id.to_string();
        rustix::fs::renameat_with(self.commits, name, self.commits, &id, RenameFlags::NOREPLACE).doing(|| format!("name commit {id}"))?;
        fsx::sync_dir(self.commits)
    }
}

/// Where the children of the tree that `within` is a snapshot of belong in the work, where `within` is at the path `at`. Inodes are the same
/// in both.
fn places(within: &Subvol, nested: &[Child], at: &[u8]) -> Result<Vec<Place>, DriverError> {
    let place = |child: &Child| match ioctl::ino_path(&within.fd, within.info.id, child.dir) {
        Ok(dir) if at.len() + dir.len() <= long::LONGEST => Ok(Place { dir: [at, &dir].concat(), child: child.clone() }),
        Ok(_) | Err(Errno::NAMETOOLONG) => Err(DriverError::NestedSubvolume(long::told(&format!("the path of {}", child.shown())))),
        Err(e) => Err(fail("find a nested subvolume", e)),
    };
    nested.iter().map(place).collect()
}

/// An empty directory in place of what the snapshot shows; the directory that it is in keeps its times.
fn make_directory(work: &OwnedFd, nested: &Place) -> Result<OwnedFd, DriverError> {
    let what = || format!("make a directory of the nested subvolume {}", nested.child.shown());
    let parent = open_beneath(work, &nested.dir).doing(what)?;
    let name = nested.child.name.as_slice();
    let before = rustix::fs::fstat(&parent).doing(what)?;
    let flags = rustix::fs::ioctl_getflags(&parent).doing(what)?;
    let locks = flags & (IFlags::IMMUTABLE | IFlags::APPEND);
    if !locks.is_empty() {
        rustix::fs::ioctl_setflags(&parent, flags - locks).doing(what)?;
    }
    match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(left) if left.st_ino == LEFT_OF_NESTED => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).doing(what)?,
        Ok(_) => return Err(DriverError::NotFound(what())), // it was renamed between list and snapshot
        Err(Errno::NOENT) => {}                             // a send leaves it out
        Err(e) => return Err(fail(what(), e)),
    }
    rustix::fs::mkdirat(&parent, name, Mode::RWXU).doing(what)?;
    let made = open_beneath(&parent, name).doing(what)?;
    if !locks.is_empty() {
        rustix::fs::ioctl_setflags(&parent, flags).doing(what)?;
    }
    let time = |sec, nsec| rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = rustix::fs::Timestamps {
        last_access: time(before.st_atime, i64::try_from(before.st_atime_nsec).unwrap_or(0)),
        last_modification: time(before.st_mtime, i64::try_from(before.st_mtime_nsec).unwrap_or(0)),
    };
    rustix::fs::futimens(&parent, &times).doing(what)?;
    Ok(made)
}

/// Everything that is in `part`, into the directory `made`.
fn fill(made: OwnedFd, part: Subvol, child: &Child, version: u32) -> Result<(), DriverError> {
    let donor = Donor::new(part.fd.try_clone().doing(|| "duplicate a descriptor".to_owned())?, part.info.id);
    let mut applier = Applier::sharing(made, donor).map_err(|e| refused(child, &e))?;
    let mut stream = send::without_data(part, version)?;
    let mut piece = vec![0_u8; PIECE];
    loop {
        let read = stream.read(&mut piece).map_err(|e| match DriverError::of_read(&e) {
            Some(DriverError::CorruptDisk(text)) => DriverError::CorruptDisk(text.clone()),
            _ => DriverError::NestedSubvolume(format!("{}: {e}", child.shown())),
        })?;
        if read == 0 {
            return applier.finish().map(drop).map_err(|e| refused(child, &e));
        }
        applier.feed(piece.get(..read).unwrap_or_default()).map_err(|e| refused(child, &e))?;
    }
}

/// Opens a directory below `root`; the empty path is `root` itself. Nothing leads out of it.
fn open_beneath(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat2(
        root.as_fd(),
        path,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn refused(child: &Child, error: &StreamError) -> DriverError {
    let text = format!("the nested subvolume {}: {error}", child.shown());
    match error.problem().reason {
        dotgraft_engine::model::Reason::NoSpace => DriverError::NoSpace(text),
        dotgraft_engine::model::Reason::CorruptDisk => DriverError::CorruptDisk(text),
        _ => DriverError::NestedSubvolume(text),
    }
}
