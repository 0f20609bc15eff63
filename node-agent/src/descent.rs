//! Where a walk through a directory tree is, with one descriptor and no recursion, however deep the tree is. Used by the group of a pod
//! (`csi::fsgroup`) and by the digest of a tree.
//!
//! The way back up is `..`, and that it leads to the directory that the walk came from is proven by device and inode: who writes in the tree
//! meanwhile may have moved what the walk is in. Then the way is gone again from the root, by names and through no link.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest path that an error names, characters.
const SHOWN: usize = 256;

/// Device and inode.
type Identity = (u64, u64);

/// A place in a tree.
#[derive(Debug)]
pub struct Descent {
    root: OwnedFd,
    here: OwnedFd,
    /// Each directory from the root, left out, to the present one: its name, and what it is in.
    path: Vec<(CString, Identity)>,
}

impl Descent {
    /// At the root.
    ///
    /// # Errors
    ///
    /// There are no descriptors.
    pub fn new(root: BorrowedFd<'_>) -> Result<Self, Errno> {
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(root, 0);
        Ok(Self { root: duplicate()?, here: duplicate()?, path: Vec::new() })
    }

    /// The present directory.
    pub fn here(&self) -> BorrowedFd<'_> {
        self.here.as_fd()
    }

    /// Goes into a directory of the present one, which the caller has opened.
    ///
    /// # Errors
    ///
    /// The present directory can't be looked at.
    pub fn enter(&mut self, name: CString, dir: OwnedFd) -> Result<(), Errno> {
        self.path.push((name, identity(self.here.as_fd())?));
        self.here = dir;
        Ok(())
    }

    /// Goes back up. At the root it stays there.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the directory above is no longer where it was: it counts as left, and the next call goes on from there.
    pub fn leave(&mut self) -> Result<(), Errno> {
        let Some((_, above)) = self.path.pop() else { return Ok(()) };
        let up = rustix::fs::openat(&self.here, c"..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        self.here = if identity(up.as_fd())? == above { up } else { self.again(above)? };
        Ok(())
    }

    /// The present directory, from the root.
    fn again(&self, wanted: Identity) -> Result<OwnedFd, Errno> {
        #[cfg(test)]
        comb::AGAIN.with(|n| n.set(n.get() + 1));
        let mut dir = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
        for (name, _) in &self.path {
            dir = open_beneath(dir.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?;
        }
        if identity(dir.as_fd())? == wanted { Ok(dir) } else { Err(Errno::NOENT) }
    }

    /// The beginning of the present path, for an error; empty for the root.
    pub fn shown(&self) -> String {
        let mut text = String::new();
        for (name, _) in &self.path {
            if text.len() >= SHOWN {
                break;
            }
            text += if text.is_empty() { "" } else { "/" };
            text += &name.to_string_lossy();
        }
        text.chars().take(SHOWN).collect()
    }
}

fn identity(dir: BorrowedFd<'_>) -> Result<Identity, Errno> {
    rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// One name beneath a directory, through no link and into no mount.
///
/// # Errors
///
/// The kernel's: `ENOENT`, `ENOTDIR`, `ELOOP`, `EXDEV` for what isn't such a name.
pub fn open_beneath(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve))
}

/// Trees for tests that are deeper than a stack, and than there are descriptors.
#[cfg(test)]
pub mod comb {
    use std::cell::Cell;

    use rustix::fs::AtFlags;

    use super::{AsFd, Descent, Mode, OFlags, OwnedFd, open_beneath};

    thread_local! {
        /// How often a walk of this thread has gone its way again from the root: what makes its time a square.
        pub static AGAIN: Cell<usize> = const { Cell::new(0) };
    }

    /// At each level a directory to go on in, and one beside it. It goes when it is dropped.
    #[derive(Debug)]
    pub struct Comb {
        /// Where it is.
        pub dir: tempfile::TempDir,
        levels: usize,
    }

    impl Comb {
        /// Has so many levels, and two directories at each.
        pub fn new(levels: usize) -> Self {
            let comb = Self { dir: tempfile::tempdir().unwrap(), levels };
            let mut at = comb.root();
            for _ in 0..levels {
                for side in [c"d", c"side"] {
                    rustix::fs::mkdirat(&at, side, Mode::RWXU).unwrap();
                }
                at = open_beneath(at.as_fd(), c"d", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
            }
            comb
        }

        /// Its root.
        pub fn root(&self) -> OwnedFd {
            std::fs::File::open(self.dir.path()).unwrap().into()
        }
    }

    impl Drop for Comb {
        fn drop(&mut self) {
            let mut at = Descent::new(self.root().as_fd()).unwrap();
            while let Ok(dir) = open_beneath(at.here(), c"d", OFlags::RDONLY | OFlags::DIRECTORY) {
                at.enter(c"d".to_owned(), dir).unwrap();
            }
            for _ in 0..self.levels {
                at.leave().unwrap();
                for side in [c"d", c"side"] {
                    rustix::fs::unlinkat(at.here(), side, AtFlags::REMOVEDIR).unwrap();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_way_back_leads_where_it_came_from_also_if_that_was_moved() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir_all(tmp.path().join("a/b/c")).unwrap();
        fs::create_dir(tmp.path().join("elsewhere")).unwrap();
        let root = OwnedFd::from(fs::File::open(tmp.path()).unwrap());
        let mut at = Descent::new(root.as_fd()).unwrap();
        for name in [c"a", c"b", c"c"] {
            let dir = open_beneath(at.here(), name, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
            at.enter(name.to_owned(), dir).unwrap();
        }
        assert_eq!(at.shown(), "a/b/c");
        fs::rename(tmp.path().join("a/b/c"), tmp.path().join("elsewhere/c")).unwrap();
        at.leave().unwrap();
        let is = |at: &Descent, path: &str| {
            let there = fs::File::open(tmp.path().join(path)).unwrap();
            identity(at.here()).unwrap() == identity(there.as_fd()).unwrap()
        };
        assert!(is(&at, "a/b") && at.shown() == "a/b", "by names, from the root");
        fs::rename(tmp.path().join("a/b"), tmp.path().join("elsewhere/b")).unwrap();
        fs::rename(tmp.path().join("a"), tmp.path().join("elsewhere/a")).unwrap();
        assert_eq!(at.leave(), Err(Errno::NOENT), "it is not where it was");
        at.leave().unwrap();
        assert!(is(&at, ".") && at.shown().is_empty());
        at.leave().unwrap();
        assert!(is(&at, "."));
    }
}
