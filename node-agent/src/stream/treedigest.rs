//! One digest for a whole tree, the same for two trees that a user could not tell apart (replication.md §3).
//!
//! `verify` and tests compare trees with it. In it: names, types, modes, owners, times of last change, xattrs (with ACLs
//! and capabilities), symlink targets, which names are links to one file, device numbers, sizes and content. Not in it:
//! `security.selinux`, other times, inode numbers, link counts, order of directories, holes (a hole is zeros).
//!
//! Version 1. The digest of a *thing* is BLAKE3 over its fields; that of an *entry* is over its thing and the sorted
//! digests of all its paths. Entries are summed up in 1,024 lanes of 16 bits (`LtHash`), so their order does not matter, no
//! directory has to be sorted, and memory does not grow with the tree, but for 32 bytes a name of files with several
//! names. Content is hashed in blocks of 64 KiB with their numbers, zero blocks left out: a sparse file costs what it holds.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, getxattr, listxattr, major, minor, openat, readlinkat,
    seek, statat,
};
use rustix::io::{Errno, pread};

use super::zeros::is_zero;
use crate::descent::Descent;

/// Version of the digest that is computed.
pub const TREE_DIGEST_VERSION: u32 = 1;

/// Lanes of the sum.
const LANES: usize = 1024;
/// Bytes of a content block.
const BLOCK: usize = 64 << 10;
/// Bytes read at a time.
const READ: usize = 16 * BLOCK;
/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`.
const MAX_XATTR: usize = 64 << 10;

/// The digest of a tree, and how much there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeDigest {
    /// The digest; compares equal only within [`TREE_DIGEST_VERSION`].
    pub digest: [u8; 32],
    /// Names, the root included.
    pub names: u64,
    /// Bytes of content that were read, holes left out.
    pub bytes: u64,
}

impl fmt::Display for TreeDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{TREE_DIGEST_VERSION}:{}", blake3::Hash::from(self.digest).to_hex())
    }
}

/// A tree that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeDigestError {
    /// The kernel refused a call.
    #[error("{call} of {path:?}: {errno}")]
    System {
        /// The call.
        call: &'static str,
        /// The path of the directory that it was in, lossily as text.
        path: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Another filesystem or subvolume is in the tree.
    #[error("{0:?} is on another filesystem or subvolume")]
    Crossing(String),
}

/// The digest of the tree below `root`, which must not change meanwhile. A few descriptors are open at a time, however deep the tree is.
///
/// # Errors
/// What can't be read; another subvolume in it.
pub fn tree_digest(root: &OwnedFd) -> Result<TreeDigest, TreeDigestError> {
    let at_root = |call: &'static str| move |errno| TreeDigestError::System { call, path: String::new(), errno };
    let stat = rustix::fs::fstat(root).map_err(at_root("fstat"))?;
    let at = Descent::new(root.as_fd()).map_err(at_root("dup"))?;
    let mut walk = Walk::new(at, stat.st_dev);
    walk.run(&stat)?;
    Ok(walk.finish())
}

/// Names of one file, as far as they were seen.
struct Links {
    thing: [u8; 32],
    expected: u64,
    paths: Vec<[u8; 32]>,
}

/// A directory on the present path.
struct Level {
    /// Directories in it that are still to be entered: name, and digest of the path.
    below: Vec<(CString, [u8; 32])>,
}

struct Walk {
    dev: u64,
    things: blake3::Hasher,
    names: blake3::Hasher,
    entries: blake3::Hasher,
    lanes: Vec<u16>,
    links: HashMap<u64, Links>,
    total: TreeDigest,
    /// Where it is.
    at: Descent,
    /// The directories from the root to the present one.
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl Walk {
    fn new(at: Descent, dev: u64) -> Self {
        Self {
            dev,
            things: blake3::Hasher::new_derive_key("dotgraft.dev tree digest v1 thing"),
            names: blake3::Hasher::new_derive_key("dotgraft.dev tree digest v1 path"),
            entries: blake3::Hasher::new_derive_key("dotgraft.dev tree digest v1 entry"),
            lanes: vec![0; LANES],
            links: HashMap::new(),
            total: TreeDigest { digest: [0; 32], names: 0, bytes: 0 },
            at,
            levels: Vec::new(),
            buffer: vec![0; READ],
        }
    }

    /// The root and all below it. No recursion: a tree may be deeper than a stack.
    fn run(&mut self, stat: &Stat) -> Result<(), TreeDigestError> {
        let path: [u8; 32] = self.names.clone().update(b"").finalize().into();
        self.directory(stat, path)?;
        while let Some(present) = self.levels.last_mut() {
            let Some((name, path)) = present.below.pop() else {
                self.levels.pop();
                self.at.leave().map_err(|errno| self.system("openat", errno))?;
                continue;
            };
            let stat = statat(self.at.here(), &name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.system("fstatat", errno))?;
            let dir = self.open(self.at.here(), name.to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.at.enter(name, dir).map_err(|errno| self.system("fstat", errno))?;
            self.directory(&stat, path)?;
        }
        Ok(())
    }

    /// The present directory and what is in it, but for directories: those are put down to be entered.
    fn directory(&mut self, stat: &Stat, path: [u8; 32]) -> Result<(), TreeDigestError> {
        let mut hasher = self.fields(b'd', stat);
        let here = self.at.here().try_clone_to_owned().map_err(|_| self.system("dup", Errno::MFILE))?;
        self.xattrs(&mut hasher, &Xattrs::Of(here.as_fd()))?;
        self.entry(stat, hasher.finalize().into(), path);
        let mut below = Vec::new();
        let mut dir = Dir::read_from(&here).map_err(|errno| self.system("openat", errno))?;
        while let Some(item) = dir.read() {
            let item = item.map_err(|errno| self.system("getdents64", errno))?;
            let name = item.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let child = self.names.clone().update(&path).update(name.to_bytes()).finalize();
            if self.child(here.as_fd(), name.to_bytes(), child.as_bytes())? {
                below.push((name.to_owned(), child.into()));
            }
        }
        self.levels.push(Level { below });
        Ok(())
    }

    /// Takes in what has this name; true for a directory, which is only looked at.
    fn child(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8; 32]) -> Result<bool, TreeDigestError> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.system("fstatat", errno))?;
        if stat.st_dev != self.dev {
            return Err(TreeDigestError::Crossing(self.text(name)));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return Ok(true);
        }
        if stat.st_nlink > 1
            && let Some(links) = self.links.get_mut(&stat.st_ino)
        {
            links.paths.push(*path);
            if links.paths.len() as u64 == links.expected
                && let Some(links) = self.links.remove(&stat.st_ino)
            {
                self.add(&links.thing, links.paths);
            }
            return Ok(false);
        }
        let thing = self.thing(dir, name, kind, &stat)?;
        self.entry(&stat, thing, *path);
        Ok(false)
    }

    fn thing(&mut self, dir: BorrowedFd<'_>, name: &[u8], kind: FileType, stat: &Stat) -> Result<[u8; 32], TreeDigestError> {
        if kind == FileType::RegularFile {
            let fd = self.open(dir, name, OFlags::RDONLY)?;
            let mut hasher = self.fields(b'f', stat);
            self.xattrs(&mut hasher, &Xattrs::Of(fd.as_fd()))?;
            hasher.update(&stat.st_size.to_le_bytes());
            self.content(&mut hasher, &fd, u64::try_from(stat.st_size).unwrap_or(0))?;
            return Ok(hasher.finalize().into());
        }
        let letter = match kind {
            FileType::Symlink => b'l',
            FileType::Fifo => b'p',
            FileType::Socket => b's',
            FileType::CharacterDevice => b'c',
            _ => b'b',
        };
        let handle = self.open(dir, name, OFlags::PATH)?;
        let mut hasher = self.fields(letter, stat);
        self.xattrs(&mut hasher, &Xattrs::By(format!("/proc/self/fd/{}", handle.as_raw_fd())))?;
        match kind {
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(|errno| self.system("readlinkat", errno))?;
                hasher.update(target.as_bytes());
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                hasher.update(&major(stat.st_rdev).to_le_bytes());
                hasher.update(&minor(stat.st_rdev).to_le_bytes());
            }
            _ => {}
        }
        Ok(hasher.finalize().into())
    }

    /// Type, mode, owner, group, time of last change: of fixed size.
    fn fields(&self, letter: u8, stat: &Stat) -> blake3::Hasher {
        let mut hasher = self.things.clone();
        hasher.update(&[letter]);
        hasher.update(&(stat.st_mode & 0o7777).to_le_bytes());
        hasher.update(&stat.st_uid.to_le_bytes());
        hasher.update(&stat.st_gid.to_le_bytes());
        hasher.update(&stat.st_mtime.to_le_bytes());
        hasher.update(&stat.st_mtime_nsec.to_le_bytes());
        hasher
    }

    fn xattrs(&mut self, hasher: &mut blake3::Hasher, of: &Xattrs<'_>) -> Result<(), TreeDigestError> {
        let buffer = self.buffer.get_mut(..MAX_XATTR).unwrap_or_default();
        let len = match of.list(buffer) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(errno) => return Err(self.system("flistxattr", errno)),
        };
        let list = self.buffer.get(..len).unwrap_or_default().to_vec();
        let mut names: Vec<&[u8]> = list.split(|&byte| byte == 0).filter(|name| !name.is_empty() && *name != b"security.selinux").collect();
        names.sort_unstable();
        hasher.update(&(names.len() as u64).to_le_bytes());
        for name in names {
            let buffer = self.buffer.get_mut(..MAX_XATTR).unwrap_or_default();
            let len = of.get(name, buffer).map_err(|errno| self.system("fgetxattr", errno))?;
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
            hasher.update(&(len as u64).to_le_bytes()).update(self.buffer.get(..len).unwrap_or_default());
        }
        Ok(())
    }

    /// Number and digest of each block that is not all zeros.
    fn content(&mut self, hasher: &mut blake3::Hasher, fd: &OwnedFd, size: u64) -> Result<(), TreeDigestError> {
        let mut at = 0;
        // Small files have no holes worth asking for.
        let mut data_end = if size <= READ as u64 { size } else { 0 };
        while at < size {
            if at >= data_end {
                let data = match seek(fd, SeekFrom::Data(at)) {
                    Ok(data) => data,
                    Err(Errno::NXIO) => return Ok(()),
                    Err(errno) => return Err(self.system("lseek", errno)),
                };
                data_end = seek(fd, SeekFrom::Hole(data)).map_err(|errno| self.system("lseek", errno))?.min(size);
                at = at.max(data - data % BLOCK as u64);
            }
            let wanted = usize::try_from(size - at).unwrap_or(READ).min(READ);
            let mut filled = 0;
            while filled < wanted {
                let room = self.buffer.get_mut(filled..wanted).unwrap_or_default();
                match pread(fd, room, at + filled as u64).map_err(|errno| self.system("pread", errno))? {
                    0 => break,
                    read => filled += read,
                }
            }
            if filled == 0 {
                return Ok(());
            }
            self.total.bytes += filled as u64;
            for block in self.buffer.get(..filled).unwrap_or_default().chunks(BLOCK) {
                if !is_zero(block) {
                    hasher.update(&(at / BLOCK as u64).to_le_bytes());
                    hasher.update(blake3::hash(block).as_bytes());
                }
                at += block.len() as u64;
            }
        }
        Ok(())
    }

    /// Adds one name of a thing; those with several names wait for all of them.
    fn entry(&mut self, stat: &Stat, thing: [u8; 32], path: [u8; 32]) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if directory || stat.st_nlink <= 1 {
            self.add(&thing, vec![path]);
        } else {
            self.links.insert(stat.st_ino, Links { thing, expected: stat.st_nlink, paths: vec![path] });
        }
    }

    fn add(&mut self, thing: &[u8; 32], mut paths: Vec<[u8; 32]>) {
        paths.sort_unstable();
        let mut hasher = self.entries.clone();
        hasher.update(thing);
        hasher.update(&(paths.len() as u64).to_le_bytes());
        for path in &paths {
            hasher.update(path);
        }
        let mut lanes = [0u8; LANES * 2];
        hasher.finalize_xof().fill(&mut lanes);
        let (pairs, _) = lanes.as_chunks::<2>();
        for (sum, pair) in self.lanes.iter_mut().zip(pairs) {
            *sum = sum.wrapping_add(u16::from_le_bytes(*pair));
        }
        self.total.names += paths.len() as u64;
    }

    fn finish(mut self) -> TreeDigest {
        // Names outside the tree: none in a subvolume, some in a plain directory.
        for links in std::mem::take(&mut self.links).into_values() {
            self.add(&links.thing, links.paths);
        }
        let mut hasher = blake3::Hasher::new_derive_key("dotgraft.dev tree digest v1 tree");
        hasher.update(&self.total.names.to_le_bytes());
        for lane in &self.lanes {
            hasher.update(&lane.to_le_bytes());
        }
        TreeDigest { digest: hasher.finalize().into(), ..self.total }
    }

    fn open(&self, dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, TreeDigestError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Reading must not touch last access; only root and owners may say so.
        let quiet = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NOATIME };
        openat(dir, name, quiet, Mode::empty()).map_err(|errno| self.system("openat", errno))
    }

    fn system(&self, call: &'static str, errno: Errno) -> TreeDigestError {
        TreeDigestError::System { call, path: self.at.shown(), errno }
    }

    /// A name in the present directory.
    fn text(&self, name: &[u8]) -> String {
        let dir = self.at.shown();
        format!("{dir}{}{}", if dir.is_empty() { "" } else { "/" }, String::from_utf8_lossy(name))
    }
}

/// How the xattrs of something are reached.
enum Xattrs<'fd> {
    Of(BorrowedFd<'fd>),
    By(String),
}

impl Xattrs<'_> {
    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Of(fd) => flistxattr(fd, buffer),
            Self::By(path) => listxattr(path, buffer),
        }
    }

    fn get(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Of(fd) => fgetxattr(fd, name, buffer),
            Self::By(path) => getxattr(path, name, buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, symlink};
    use std::path::Path;

    use rustix::fs::{CWD, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat};

    use super::*;

    fn digest(path: &Path) -> TreeDigest {
        tree_digest(&File::open(path).unwrap().into()).unwrap()
    }

    /// Sets one time on everything.
    fn settle(root: &Path) {
        let time = Timespec { tv_sec: 1_700_000_000, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        for entry in fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                settle(&path);
            } else {
                utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
        }
        utimensat(CWD, root, &times, AtFlags::empty()).unwrap();
    }

    fn mode(path: &Path, bits: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
    }

    /// One of each, in a directory that may live on any filesystem with `trusted.` xattrs.
    fn build(root: &Path) {
        mode(root, 0o755);
        fs::create_dir(root.join("dir")).unwrap();
        mode(&root.join("dir"), 0o2750);
        for name in ["file", "dir/linked", "alone"] {
            fs::write(root.join(name), format!("content of {name}")).unwrap();
            mode(&root.join(name), 0o640);
        }
        fs::hard_link(root.join("dir/linked"), root.join("link")).unwrap();
        chown(root.join("file"), Some(12), Some(34)).unwrap();
        symlink("dir/linked", root.join("symlink")).unwrap();
        let device = |name: &str, kind, number: (u32, u32)| {
            mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o600), makedev(number.0, number.1)).unwrap();
            mode(&root.join(name), 0o600);
        };
        device("null", FileType::CharacterDevice, (1, 3));
        device("disk", FileType::BlockDevice, (7, 300));
        device("pipe", FileType::Fifo, (0, 0));
        device("socket", FileType::Socket, (0, 0));
        let sparse = File::create(root.join("sparse")).unwrap();
        mode(&root.join("sparse"), 0o600);
        sparse.write_all_at(b"data", 200_000).unwrap();
        sparse.set_len(5 << 20).unwrap();
        for name in ["file", "symlink", "pipe"] {
            lsetxattr(root.join(name), "trusted.golden", b"\0value", XattrFlags::empty()).unwrap();
        }
        settle(root);
    }

    #[test]
    fn the_digest_of_version_1_is_golden() {
        let dir = tempfile::tempdir().unwrap();
        build(dir.path());
        let found = digest(dir.path());
        assert_eq!(found.names, 12);
        assert_eq!(found.to_string(), "v1:d53ba2d3452851f7eb3bdb79673b0feb522299e763fead5db1f3e6d47d6ac045");
        let empty = tempfile::tempdir().unwrap();
        mode(empty.path(), 0o755);
        settle(empty.path());
        assert_eq!(digest(empty.path()).to_string(), "v1:a4b41c9b52cca03a58cdef76001b46b93abc2dc1a5f59460023b785292bb681c");
    }

    #[test]
    fn order_of_making_inodes_and_holes_are_not_in_it() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (root, names) in [(one.path(), ["a", "b", "c"]), (two.path(), ["c", "a", "b"])] {
            for name in names {
                fs::write(root.join(name), name).unwrap();
            }
            mode(root, 0o700);
        }
        File::create(one.path().join("zeros")).unwrap().set_len(3 << 20).unwrap();
        fs::write(two.path().join("zeros"), vec![0; 3 << 20]).unwrap();
        settle(one.path());
        settle(two.path());
        assert_eq!(digest(one.path()).digest, digest(two.path()).digest);
    }

    #[test]
    fn every_single_difference_changes_it() {
        type Change = fn(&Path);
        let changes: [Change; 16] = [
            |root| fs::write(root.join("file"), "content of filf").unwrap(),
            |root| fs::rename(root.join("alone"), root.join("alone2")).unwrap(),
            |root| fs::rename(root.join("alone"), root.join("dir/alone")).unwrap(),
            |root| mode(&root.join("file"), 0o641),
            |root| mode(&root.join("dir"), 0o750),
            |root| chown(root.join("file"), Some(13), None).unwrap(),
            |root| chown(root.join("file"), None, Some(35)).unwrap(),
            |root| lsetxattr(root.join("file"), "trusted.golden", b"\0valuf", XattrFlags::empty()).unwrap(),
            |root| lsetxattr(root.join("alone"), "trusted.more", b"", XattrFlags::empty()).unwrap(),
            |root| lsetxattr(root, "trusted.more", b"", XattrFlags::empty()).unwrap(),
            |root| {
                // The same bytes at both names, but two files.
                fs::remove_file(root.join("link")).unwrap();
                fs::copy(root.join("dir/linked"), root.join("link")).unwrap();
            },
            |root| {
                fs::remove_file(root.join("symlink")).unwrap();
                symlink("dir/linkee", root.join("symlink")).unwrap();
                lsetxattr(root.join("symlink"), "trusted.golden", b"\0value", XattrFlags::empty()).unwrap();
            },
            |root| {
                fs::remove_file(root.join("null")).unwrap();
                mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 5)).unwrap();
            },
            |root| {
                fs::remove_file(root.join("socket")).unwrap();
                mknodat(CWD, root.join("socket"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            },
            |root| File::options().write(true).open(root.join("sparse")).unwrap().set_len((5 << 20) + 1).unwrap(),
            |root| fs::create_dir(root.join("dir/empty")).unwrap(),
        ];
        let mut seen = Vec::new();
        for change in std::iter::once((|_| ()) as Change).chain(changes) {
            let dir = tempfile::tempdir().unwrap();
            build(dir.path());
            change(dir.path());
            settle(dir.path());
            let found = digest(dir.path()).digest;
            assert!(!seen.contains(&found), "change {}", seen.len());
            seen.push(found);
        }
        // And times.
        let dir = tempfile::tempdir().unwrap();
        build(dir.path());
        let time = Timespec { tv_sec: 1_700_000_000, tv_nsec: 123_456_790 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, dir.path().join("symlink"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert!(!seen.contains(&digest(dir.path()).digest));
    }

    #[test]
    fn a_huge_sparse_file_costs_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("huge")).unwrap();
        file.write_all_at(b"x", 3 << 40).unwrap();
        file.set_len(4 << 40).unwrap();
        assert!(digest(dir.path()).bytes <= 4 << 20);
    }
    #[test]
    fn a_tree_of_twenty_thousand_levels_needs_little_stack_and_few_descriptors() {
        let comb = crate::descent::comb::Comb::new(20_000);
        let root = comb.root();
        let walk = std::thread::Builder::new().stack_size(256 << 10).spawn(move || tree_digest(&root)).unwrap();
        assert_eq!(walk.join().unwrap().unwrap().names, 40_001);
    }
}
