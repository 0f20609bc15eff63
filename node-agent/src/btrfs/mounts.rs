//! Mount tables: who has a Filesystem mounted in any mount namespace of the node (storage.md §3), and the bind mounts we make.
//!
//! Reads `/proc/<pid>/mountinfo` of one task per mount namespace, so it needs the host's pid namespace. A namespace that no task is in (kept
//! only by a bind mount of its file) is not seen; the fence does not depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use dotgraft_engine::ids::FsId;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::fsx::{Context, fail};
use super::{layout, swap};
use crate::driver::{DriverError, Holder, MountMode, MountWhat};

/// One line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// Number of the mount, unique on the node.
    pub id: u64,
    /// Device number of the superblock, as `major:minor`.
    pub dev: String,
    /// Path inside the filesystem that is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// What may be done through the mount (not the superblock).
    pub mode: MountMode,
    /// `btrfs`, …
    pub fs_type: String,
}

impl MountLine {
    /// The Filesystem that it shows something of, in the pool that mount tables call `pool_dev`.
    pub fn filesystem(&self, pool_dev: &str) -> Option<FsId> {
        (self.dev == pool_dev).then(|| layout::fs_of(&self.root))?
    }

    /// What it shows, if that is the head or a commit of a Filesystem of that pool.
    pub fn what_is(&self, pool_dev: &str) -> Option<(FsId, MountWhat)> {
        (self.dev == pool_dev).then(|| layout::what_is(&self.root))?
    }
}

/// `\ooo` of a mount table back to bytes.
pub(super) fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (*first, tail) {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let dev = String::from_utf8(fields.nth(1)?.to_vec()).ok()?;
    let (root, mount_point) = (unescape(fields.next()?), unescape(fields.next()?));
    let options: Vec<&[u8]> = fields.next()?.split(|b| *b == b',').collect();
    let has = |option: &str| options.contains(&option.as_bytes());
    let mode = MountMode { read_only: has("ro"), nosuid: has("nosuid"), nodev: has("nodev"), noexec: has("noexec") };
    let fs_type = String::from_utf8(fields.skip_while(|f| *f != b"-").nth(1)?.to_vec()).ok()?;
    Some(MountLine { id, dev, root, mount_point, mode, fs_type })
}

/// Parses a whole mount table; lines that are not understood are left out.
pub fn parse(table: &[u8]) -> Vec<MountLine> {
    table.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// The mount table of this process.
pub fn own() -> Result<Vec<MountLine>, DriverError> {
    fs::read("/proc/self/mountinfo").map(|t| parse(&t)).doing(|| "read the mount table".to_owned())
}

/// The topmost mount at a path, by the mount table of this process.
pub fn at(mount_point: &Path) -> Result<Option<MountLine>, DriverError> {
    Ok(topmost(own()?, mount_point))
}

/// Of mounts that are stacked at one point, that on top comes last in the table (`proc_pid_mountinfo(5)`).
fn topmost(table: Vec<MountLine>, mount_point: &Path) -> Option<MountLine> {
    table.into_iter().rfind(|m| m.mount_point == mount_point)
}

/// A task that died while it was looked at.
fn vanished(e: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::SRCH, Errno::INVAL];
    e.raw_os_error().is_some_and(|raw| gone.contains(&Errno::from_raw_os_error(raw)))
}

/// Numbers among the names of a directory; none if it is gone.
fn numbers_in(dir: &str) -> Result<Vec<i32>, DriverError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if vanished(&e) => return Ok(Vec::new()),
        other => other.doing(|| format!("list {dir}"))?,
    };
    let mut found: Vec<i32> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

/// A process may have capabilities that we lack; then the kernel hides its namespace, though not its mount table.
fn hidden(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied
}

/// Mounts of the superblock `dev` in every mount namespace whose root passes `wanted`, each once. An error if a table can't be read:
/// "nobody" must be true.
pub fn holders(dev: &str, wanted: impl Fn(&Path) -> bool) -> Result<Vec<Holder>, DriverError> {
    let (mut seen, mut found) = (BTreeSet::new(), BTreeMap::new());
    for pid in numbers_in("/proc")? {
        for task in numbers_in(&format!("/proc/{pid}/task"))? {
            let base = format!("/proc/{pid}/task/{task}");
            let namespace = match fs::read_link(format!("{base}/ns/mnt")) {
                Err(e) if vanished(&e) => continue,
                Err(e) if hidden(&e) => None,
                other => Some(other.doing(|| format!("mount namespace of process {pid}"))?),
            };
            if namespace.as_ref().is_some_and(|n| seen.contains(n)) {
                continue;
            }
            let table = match fs::read(format!("{base}/mountinfo")) {
                Err(e) if vanished(&e) => continue, // another task of that namespace may come
                other => other.doing(|| format!("mount table of process {pid}"))?,
            };
            seen.extend(namespace);
            for line in parse(&table).into_iter().filter(|m| m.dev == dev && wanted(&m.root)) {
                let command = || fs::read_to_string(format!("{base}/comm")).map_or_else(|_| "?".to_owned(), |c| c.trim_end().to_owned());
                found.entry(line.id).or_insert_with(|| Holder { pid, command: command(), mount_point: line.mount_point });
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Bind-mounts the directory `source` (whose path in the superblock `dev` is `root`) at `target`.
pub fn bind(source: impl AsFd, dev: &str, root: &Path, target: &Path, mode: MountMode) -> Result<(), DriverError> {
    let shown = target.display();
    let target = fs::canonicalize(target).doing(|| format!("mount at {shown}"))?;
    match at(&target)? {
        None => {
            let source = format!("/proc/self/fd/{}", source.as_fd().as_raw_fd());
            rustix::mount::mount_bind(source.as_str(), &target).doing(|| format!("bind mount at {shown}"))?;
        }
        Some(there) if there.dev != dev || there.root != root => {
            return Err(DriverError::Mounted(format!("{shown} has {} ({}) mounted", there.root.display(), there.fs_type)));
        }
        Some(there) if there.mode == mode => return Ok(()),
        Some(there) if there.mode.read_only && !mode.read_only => {
            return Err(DriverError::Mounted(format!("{shown} has it mounted read-only")));
        }
        Some(_) => {} // a crash between bind and remount: finish it below
    }
    rustix::mount::mount_remount(&target, MountFlags::BIND | flags(mode), c"").doing(|| format!("set what may be done through {shown}"))
}

/// The kernel's flags of a bind mount. Those of the pool's mount are repeated, because a remount replaces all of them.
fn flags(mode: MountMode) -> MountFlags {
    let all = [
        (mode.read_only, MountFlags::RDONLY),
        (mode.nosuid, MountFlags::NOSUID),
        (mode.nodev, MountFlags::NODEV),
        (mode.noexec, MountFlags::NOEXEC),
    ];
    all.into_iter().filter(|(set, _)| *set).fold(MountFlags::NOATIME, |flags, (_, flag)| flags | flag)
}

/// Unmounts everything stacked at `target`; nothing there, or no such path, is success.
pub fn unmount(target: &Path) -> Result<(), DriverError> {
    for _ in 0..64 {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(Errno::BUSY) => return Err(DriverError::Mounted(in_use(target))),
            Err(e) => return Err(fail(format!("unmount {}", target.display()), e)),
        }
    }
    Err(DriverError::Mounted(format!("{} has more than 64 mounts on top of each other", target.display())))
}

/// Says who uses what is mounted at `target`: three processes at most, as far as `/proc` shows them under that path.
fn in_use(target: &Path) -> String {
    let users = users(target);
    let mut text: Vec<String> = users.iter().take(3).map(|(pid, command)| format!("{command} (pid {pid})")).collect();
    match users.len() {
        0 => text.push(swap::below(target).map_or_else(|| "a process".into(), |file| format!("the swap file {}", file.display()))),
        1..=3 => {}
        more => text.push(format!("{} more", more - 3)),
    }
    format!("{}, which uses {}", text.join(", "), target.display())
}

/// Processes that have a file open below `target`, or their directory or root there. Those that can't be looked into are left out.
fn users(target: &Path) -> Vec<(i32, String)> {
    let below = |link: &str| fs::read_link(link).is_ok_and(|path| path.starts_with(target));
    let uses = |pid: &i32| {
        let base = format!("/proc/{pid}");
        let open = || numbers_in(&format!("{base}/fd")).unwrap_or_default().iter().any(|fd| below(&format!("{base}/fd/{fd}")));
        below(&format!("{base}/cwd")) || below(&format!("{base}/root")) || open()
    };
    let command = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |c| c.trim_end().to_owned());
    numbers_in("/proc").unwrap_or_default().into_iter().filter(uses).map(|pid| (pid, command(pid))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_its_escapes_and_optional_fields() {
        let table = b"36 35 0:42 /fs/a/head /mnt/with\\040space rw,noatime shared:1 master:2 - btrfs /dev/loop0 rw\n\
                      37 35 0:42 / /pool ro,noatime - btrfs /dev/loop0 rw\nnonsense\n";
        let lines = parse(table);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].root, Path::new("/fs/a/head"));
        assert_eq!(lines[0].mount_point, Path::new("/mnt/with space"));
        assert!(!lines[0].mode.read_only);
        assert_eq!(lines[1].fs_type, "btrfs");
        assert!(lines[1].mode.read_only);
    }

    #[test]
    fn what_is_mounted_on_top_counts_and_is_ours_only_in_our_pool() {
        let id = "0198c2a5-7f00-7000-8000-000000000001";
        let table = format!(
            "20 1 0:19 / /proc rw - proc proc rw\n\
             21 1 0:40 / /mnt rw - tmpfs x rw\n\
             22 21 0:41 /fs/{id}/head /mnt rw shared:1 - btrfs /dev/loop0 rw\n\
             23 1 0:42 /fs/{id}/head /other rw - btrfs /dev/loop1 rw\n"
        );
        let at = |point: &str| topmost(parse(table.as_bytes()), Path::new(point));
        let of = |point: &str| at(point).and_then(|line| line.what_is("0:41"));
        let fs = id.parse().unwrap();
        assert_eq!(of("/mnt"), Some((fs, MountWhat::Head)));
        assert_eq!(at("/mnt").and_then(|line| line.filesystem("0:41")), Some(fs));
        assert_eq!(of("/other"), None, "another pool has a Filesystem of that id");
        assert_eq!(at("/other").and_then(|line| line.filesystem("0:41")), None);
        assert_eq!(of("/proc"), None);
        assert_eq!(at("/nowhere"), None);
    }

    #[test]
    fn who_has_a_file_open_below_a_directory_is_named() {
        let dir = std::env::temp_dir().join(format!("in-use-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let me = format!("(pid {})", std::process::id());
        assert_eq!(in_use(&dir), format!("a process, which uses {}", dir.display()));
        let open = fs::File::create(dir.join("file")).unwrap();
        assert!(in_use(&dir).contains(&me), "{}", in_use(&dir));
        drop(open);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_broken_escape_is_kept_as_it_is() {
        assert_eq!(unescape(b"a\\9b\\"), Path::new("a\\9b\\"));
    }

    #[test]
    fn the_own_root_is_found() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
