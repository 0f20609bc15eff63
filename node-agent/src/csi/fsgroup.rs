//! The group of a pod (`fsGroup`, `VOLUME_MOUNT_GROUP`): every file gets the group and what the group needs, and only what differs is touched.
//!
//! The kubelet's own walk changes every inode at every start, which made an increment of 1.4 MB for 20,000 unchanged files (storage.md §5).
//! This one looks at every inode each time, as no driver is told of `fsGroupChangePolicy` (ADR 38): what has another group gets the pod's, with the
//! rights that go with it. What has the group already keeps its mode once a walk has come to its end, which the root's setgid bit tells, set last:
//! programs give modes of their own, and `PostgreSQL` doesn't start where its group may write.
//!
//! The volume belongs to pods that may be hostile and may run meanwhile: each entry is opened beneath the root as a mere handle, looked at
//! through that handle, and changed through it. Links are not followed, devices are left alone, other subvolumes and mounts not entered.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat, XattrFlags};
use rustix::io::Errno;

use super::refusal::Refusal;
use crate::descent::{Descent, open_beneath};

const SETUID: RawMode = 0o4000;
const SETGID: RawMode = 0o2000;
const GROUP_EXEC: RawMode = 0o010;
const ANY_EXEC: RawMode = 0o111;
/// What a directory needs for its group, setgid included.
const DIR_NEEDS: RawMode = SETGID | 0o070;
const FILE_NEEDS: RawMode = 0o060;
const CAPABILITY: &CStr = c"security.capability";

/// What a walk did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Walked {
    /// Entries looked at, below the root.
    pub seen: u64,
    /// Inodes changed.
    pub changed: u64,
    /// Inodes that can't be changed (immutable): left as they are.
    pub refused: u64,
}

/// Why a walk stopped. What it has changed stays; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The agent ends.
    #[error("the agent is ending; the group is set at the next try")]
    Stopped,
    /// The kernel's answer.
    #[error("setting the group of the volume's files, at `{path}`: {errno}")]
    System {
        /// Below the volume's root.
        path: String,
        /// Which.
        errno: Errno,
    },
}

impl From<WalkError> for Refusal {
    fn from(error: WalkError) -> Self {
        let code = match &error {
            WalkError::Stopped => tonic::Code::Aborted,
            WalkError::System { errno: Errno::NOSPC | Errno::DQUOT, .. } => tonic::Code::ResourceExhausted,
            WalkError::System { errno: Errno::ROFS, .. } => tonic::Code::Unavailable,
            WalkError::System { .. } => tonic::Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// Gives the tree below `root` (a readable directory) to `group`. `stopped` is asked once per directory.
///
/// # Errors
///
/// [`WalkError`]: an object can't be read or changed, or `stopped` said so.
pub fn apply(root: &OwnedFd, group: u32, stopped: &dyn Fn() -> bool) -> Result<Walked, WalkError> {
    let at_root = |errno| WalkError::System { path: ".".into(), errno };
    let stat = rustix::fs::fstat(root).map_err(at_root)?;
    let at = Descent::new(root.as_fd()).map_err(at_root)?;
    let was_done = stat.st_gid == group && stat.st_mode & DIR_NEEDS == DIR_NEEDS;
    let mut walk = Walk { at, dev: stat.st_dev, group, was_done, walked: Walked::default(), below: Vec::new() };
    walk.run(stopped)?;
    walk.fix(root.as_fd(), &stat, true).map_err(at_root)?;
    Ok(walk.walked)
}

struct Walk {
    /// Where it is.
    at: Descent,
    dev: u64,
    group: u32,
    /// A walk for this group has come to its end before.
    was_done: bool,
    walked: Walked,
    /// Directories that are still to be entered, in each one from the root to the present one.
    below: Vec<Vec<CString>>,
}

impl Walk {
    fn run(&mut self, stopped: &dyn Fn() -> bool) -> Result<(), WalkError> {
        let at_root = self.entries().map_err(|errno| self.failed(errno))?;
        self.below.push(at_root);
        while let Some(present) = self.below.last_mut() {
            if stopped() {
                return Err(WalkError::Stopped);
            }
            match present.pop() {
                Some(name) => self.enter(name)?,
                None => self.leave()?,
            }
        }
        Ok(())
    }

    fn enter(&mut self, name: CString) -> Result<(), WalkError> {
        let opened = open_beneath(self.at.here(), &name, OFlags::RDONLY | OFlags::DIRECTORY);
        let entered = opened.and_then(|dir| {
            let stat = rustix::fs::fstat(&dir)?;
            if stat.st_dev == self.dev {
                self.fix(dir.as_fd(), &stat, true)?;
            }
            self.at.enter(name, dir)?;
            // Another subvolume is not ours to change.
            let listed = if stat.st_dev == self.dev { self.entries() } else { Ok(Vec::new()) };
            self.below.push(match listed {
                Err(errno) if is_gone(errno) => Vec::new(),
                other => other?,
            });
            Ok(())
        });
        match entered {
            Err(errno) if !is_gone(errno) => Err(self.failed(errno)),
            _ => Ok(()),
        }
    }

    /// Back up. Where the directory above was moved away meanwhile, what is left of it is passed over.
    fn leave(&mut self) -> Result<(), WalkError> {
        self.below.pop();
        match self.at.leave() {
            Err(errno) if is_gone(errno) => {
                if let Some(gone) = self.below.last_mut() {
                    gone.clear();
                }
                Ok(())
            }
            other => other.map_err(|errno| self.failed(errno)),
        }
    }

    /// Sees to everything in the present directory but directories, whose names it returns.
    fn entries(&mut self) -> Result<Vec<CString>, Errno> {
        let mut below = Vec::new();
        for entry in Dir::read_from(self.at.here())? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(self.at.here(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(errno) if is_gone(errno) => continue,
                other => other?,
            };
            self.walked.seen += 1;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if stat.st_dev == self.dev => below.push(name.to_owned()),
                FileType::RegularFile | FileType::Fifo | FileType::Socket if self.differs(&stat, false) => self.fix_file(name)?,
                _ => {}
            }
        }
        Ok(below)
    }

    fn fix_file(&mut self, name: &CStr) -> Result<(), Errno> {
        let handle = match open_beneath(self.at.here(), name, OFlags::PATH) {
            Err(errno) if is_gone(errno) => return Ok(()),
            other => other?,
        };
        // What was looked at by name may have been replaced since.
        let stat = rustix::fs::fstat(&handle)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if stat.st_dev != self.dev || !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Ok(());
        }
        self.fix(handle.as_fd(), &stat, false)
    }

    fn differs(&self, stat: &Stat, is_dir: bool) -> bool {
        stat.st_gid != self.group || !self.was_done && wanted_mode(stat, is_dir, false) != stat.st_mode & 0o7777
    }

    /// Changes what differs, by a handle. An inode that can't be changed is left.
    fn fix(&mut self, handle: BorrowedFd<'_>, stat: &Stat, is_dir: bool) -> Result<(), Errno> {
        if !self.differs(stat, is_dir) {
            return Ok(());
        }
        match change(handle, stat, is_dir, self.group) {
            Ok(()) => self.walked.changed += 1,
            Err(Errno::PERM) => self.walked.refused += 1,
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn failed(&self, errno: Errno) -> WalkError {
        let path = self.at.shown();
        WalkError::System { path: if path.is_empty() { ".".into() } else { path }, errno }
    }
}

fn change(handle: BorrowedFd<'_>, stat: &Stat, is_dir: bool, group: u32) -> Result<(), Errno> {
    let regroup = stat.st_gid != group;
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    if regroup {
        // The kernel takes file capabilities and the setuid bit away from what changes its group.
        let mut capability = [0; 64];
        let executable = !is_dir && stat.st_mode & ANY_EXEC != 0;
        let held = if executable { rustix::fs::getxattr(&path, CAPABILITY, &mut capability).unwrap_or(0) } else { 0 };
        rustix::fs::chownat(handle, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
        if let Some(value) = capability.get(..held).filter(|v| !v.is_empty()) {
            rustix::fs::setxattr(&path, CAPABILITY, value, XattrFlags::empty())?;
        }
    }
    let mode = wanted_mode(stat, is_dir, regroup);
    if mode != stat.st_mode & 0o7777 || regroup && stat.st_mode & (SETUID | SETGID) != 0 {
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// Owner and others keep what they have. A program that runs as its group (setgid and executable) does not become one of the new group.
fn wanted_mode(stat: &Stat, is_dir: bool, regroup: bool) -> RawMode {
    let mode = stat.st_mode & 0o7777;
    if is_dir {
        return mode | DIR_NEEDS;
    }
    let kept = if regroup && mode & GROUP_EXEC != 0 { mode & !SETGID } else { mode };
    kept | FILE_NEEDS | if mode & ANY_EXEC != 0 { GROUP_EXEC } else { 0 }
}

/// It went, or became something else, while we looked.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::descent::comb::{AGAIN, Comb};

    const GROUP: u32 = 4242;

    fn walk(root: &Path) -> Walked {
        let root = OwnedFd::from(fs::File::open(root).unwrap());
        apply(&root, GROUP, &|| false).unwrap()
    }

    fn made(path: &Path, mode: u32) {
        fs::write(path, "data").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Says so from the nth time on that it is asked.
    fn stop_after(n: u32) -> impl Fn() -> bool {
        let asked = std::cell::Cell::new(0);
        move || asked.replace(asked.get() + 1) >= n
    }

    /// Group, mode and the time of the last change of an inode.
    fn look(path: &Path) -> (u32, u32, (i64, i64)) {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.gid(), meta.mode() & 0o7777, (meta.ctime(), meta.ctime_nsec()))
    }

    fn tree(root: &Path) {
        fs::create_dir_all(root.join("a/b")).unwrap();
        made(&root.join("plain"), 0o600);
        made(&root.join("a/program"), 0o700);
        made(&root.join("a/b/setuid"), 0o4755);
        made(&root.join("a/b/setgid"), 0o2755);
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }

    #[test]
    fn the_group_gets_what_it_needs_and_owner_and_others_keep_theirs() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        tree(root);
        let walked = walk(root);
        assert_eq!((walked.seen, walked.changed, walked.refused), (7, 8, 0));
        let rows = [("plain", 0o660), ("a/program", 0o770), ("a/b/setuid", 0o4775), ("a/b/setgid", 0o775), ("pipe", 0o660)];
        for (name, mode) in rows {
            assert_eq!((look(&root.join(name)).0, look(&root.join(name)).1), (GROUP, mode), "{name}");
        }
        for dir in [root.to_owned(), root.join("a"), root.join("a/b")] {
            assert_eq!((look(&dir).0, look(&dir).1 & DIR_NEEDS), (GROUP, DIR_NEEDS), "{}", dir.display());
        }
    }

    #[test]
    fn a_second_walk_changes_nothing_and_one_after_a_crash_only_what_differs() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        tree(root);
        walk(root);
        let all = ["", "plain", "a", "a/program", "a/b", "a/b/setuid"].map(|n| root.join(n));
        let before: Vec<_> = all.iter().map(|p| look(p)).collect();
        assert_eq!(walk(root), Walked { seen: 7, ..Walked::default() });
        assert_eq!(before, all.iter().map(|p| look(p)).collect::<Vec<_>>());
        // As a crash leaves it, or a pod without the group: the root is done, one file is not.
        fs::remove_file(root.join("plain")).unwrap();
        made(&root.join("plain"), 0o600);
        rustix::fs::chown(root.join("plain"), None, Some(Gid::from_raw(0))).unwrap();
        assert_eq!(walk(root).changed, 1);
        assert_eq!((look(&root.join("plain")).0, look(&root.join("plain")).1), (GROUP, 0o660));
        assert_eq!(before[2..], all[2..].iter().map(|p| look(p)).collect::<Vec<_>>());
    }

    #[test]
    fn a_mode_that_a_program_has_given_since_stays() {
        let tmp = tempfile::tempdir().unwrap();
        tree(tmp.path());
        walk(tmp.path());
        for (name, mode) in [("a/b", 0o700), ("plain", 0o600)] {
            fs::set_permissions(tmp.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(walk(tmp.path()).changed, 0, "{name}");
            assert_eq!(look(&tmp.path().join(name)).1, mode);
        }
        fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(walk(tmp.path()).changed, 3, "no walk has come to its end: all get what the group needs");
    }

    #[test]
    fn an_interrupted_walk_is_gone_on_with_by_whoever_comes_next() {
        let tmp = tempfile::tempdir().unwrap();
        tree(tmp.path());
        walk(tmp.path());
        let root = OwnedFd::from(fs::File::open(tmp.path()).unwrap());
        assert!(matches!(apply(&root, GROUP + 1, &|| true), Err(WalkError::Stopped)));
        assert!(matches!(apply(&root, GROUP + 1, &stop_after(2)), Err(WalkError::Stopped)));
        assert!(walk(tmp.path()).changed > 0, "files have the other group by now");
        assert_eq!(look(&tmp.path().join("plain")).0, GROUP);
    }

    #[test]
    fn links_lead_nowhere_and_devices_stay() {
        let tmp = tempfile::tempdir().unwrap();
        let (root, outside) = (tmp.path().join("v"), tmp.path().join("outside"));
        fs::create_dir_all(root.join("d")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        made(&outside.join("secret"), 0o600);
        symlink(outside.join("secret"), root.join("d/link")).unwrap();
        symlink(&outside, root.join("dir")).unwrap();
        symlink("..", root.join("d/up")).unwrap();
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(rustix::fs::CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), device).unwrap();
        let before = [look(&outside), look(&outside.join("secret")), look(&root.join("null")), look(&root.join("d/link"))];
        assert_eq!(walk(&root).changed, 2);
        assert_eq!(before, [look(&outside), look(&outside.join("secret")), look(&root.join("null")), look(&root.join("d/link"))]);
    }

    #[test]
    fn entries_that_are_swapped_for_links_meanwhile_change_nothing_outside() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let tmp = tempfile::tempdir().unwrap();
        let (root, outside) = (tmp.path().join("v"), tmp.path().join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(outside.join("x")).unwrap();
        made(&outside.join("x/secret"), 0o600);
        let before = [look(&outside), look(&outside.join("x")), look(&outside.join("x/secret"))];
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = fs::create_dir(root.join("x"));
                    let _ = fs::write(root.join("x/secret"), "mine");
                    let _ = fs::remove_file(root.join("x/secret"));
                    let _ = symlink(outside.join("x/secret"), root.join("x/secret"));
                    let _ = fs::remove_dir_all(root.join("x"));
                    let _ = symlink(outside.join("x"), root.join("x"));
                    let _ = fs::remove_file(root.join("x"));
                }
            });
            for _ in 0..300 {
                fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
                walk(&root);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(before, [look(&outside), look(&outside.join("x")), look(&outside.join("x/secret"))]);
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_walked_with_few_descriptors() {
        let tmp = tempfile::tempdir().unwrap();
        let name = CString::new("d".repeat(200)).unwrap();
        let mut dir = OwnedFd::from(fs::File::open(tmp.path()).unwrap());
        for _ in 0..300 {
            for side in [name.as_c_str(), c"side"] {
                rustix::fs::mkdirat(&dir, side, Mode::RWXU).unwrap();
            }
            dir = open_beneath(dir.as_fd(), &name, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        }
        assert_eq!(walk(tmp.path()).changed, 601);
        assert_eq!(rustix::fs::fstat(&dir).unwrap().st_gid, GROUP);
    }
    #[test]
    fn a_deep_comb_takes_time_by_its_size_and_not_by_its_square() {
        let comb = Comb::new(5_000);
        assert_eq!(walk(comb.dir.path()).changed, 10_001);
        assert_eq!(AGAIN.get(), 0, "ways back that began at the root");
    }
}
