//! Reads a whole tree and says what is in it: names (any bytes), types, modes, owners, modification times, extended
//! attributes, link targets, hard-link groups, devices, content (holes are zeros). Two trees are equal if these are.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// What a tree holds: one line for each path, relative to its root, which is `.`.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<PathBuf, String>,
    /// Bytes of content read.
    pub bytes: u64,
}

/// Reads the tree at `root`. Doesn't leave its file system: another mount inside is an error.
pub fn tree(root: &Path) -> Result<Tree> {
    let device = fs::symlink_metadata(root).with_context(|| format!("reading {}", root.display()))?.dev();
    let mut walk = Walk { root, device, links: HashMap::new(), tree: Tree { entries: BTreeMap::new(), bytes: 0 } };
    walk.visit(root)?;
    Ok(walk.tree)
}

/// BLAKE3 over [`tree`], in hex.
pub fn tree_digest(root: &Path) -> Result<String> {
    Ok(tree(root)?.digest())
}

/// An error that lists the differences unless both trees hold the same.
pub fn same_trees(left: &Path, right: &Path) -> Result<Tree> {
    let (a, b) = (tree(left)?, tree(right)?);
    let differences = a.differences(&b);
    if !differences.is_empty() {
        let shown = differences.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
        bail!("{} and {} differ in {} entries:\n{shown}", left.display(), right.display(), differences.len());
    }
    Ok(a)
}

impl Tree {
    /// BLAKE3 over all entries, in hex.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (path, line) in &self.entries {
            let name = path.as_os_str().as_bytes();
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
            hasher.update(&(line.len() as u64).to_le_bytes()).update(line.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The number of files, directories and all else, the root included.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// What differs, one line each: `- path line` only here, `+ path line` only there.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, line) in &self.entries {
            match other.entries.get(path) {
                Some(there) if there == line => {}
                Some(there) => lines.push(format!("! {}\n    here  {line}\n    there {there}", path.display())),
                None => lines.push(format!("- {} {line}", path.display())),
            }
        }
        let only_there = other.entries.iter().filter(|(path, _)| !self.entries.contains_key(*path));
        lines.extend(only_there.map(|(path, line)| format!("+ {} {line}", path.display())));
        lines
    }
}

struct Walk<'a> {
    root: &'a Path,
    device: u64,
    /// Inode → the first path that named it.
    links: HashMap<u64, PathBuf>,
    tree: Tree,
}

impl Walk<'_> {
    fn visit(&mut self, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(path).with_context(|| format!("reading {}", path.display()))?;
        if meta.dev() != self.device {
            bail!("{} is on another file system or subvolume", path.display());
        }
        let relative = match path.strip_prefix(self.root)? {
            empty if empty.as_os_str().is_empty() => PathBuf::from("."),
            relative => relative.to_path_buf(),
        };
        let line = self.describe(path, &relative, &meta)?;
        self.tree.entries.insert(relative, line);
        if meta.is_dir() {
            let mut children = fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
            children.sort(); // so that the first path of a hard-link group is the same everywhere
            for child in children {
                self.visit(&child)?;
            }
        }
        Ok(())
    }

    fn describe(&mut self, path: &Path, relative: &Path, meta: &Metadata) -> Result<String> {
        let mut line = format!(
            "{} mode={:04o} owner={}:{} mtime={}.{:09}",
            type_name(meta),
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
        );
        for (name, value) in xattrs(path)? {
            write!(line, " xattr:{}={}", String::from_utf8_lossy(&name), hex(&value))?;
        }
        let kind = meta.file_type();
        if kind.is_block_device() || kind.is_char_device() {
            write!(line, " device={}", meta.rdev())?;
        }
        if kind.is_symlink() {
            write!(line, " to={}", hex(fs::read_link(path)?.as_os_str().as_bytes()))?;
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            let first = self.links.entry(meta.ino()).or_insert_with(|| relative.to_path_buf()).clone();
            write!(line, " links={} first={}", meta.nlink(), hex(first.as_os_str().as_bytes()))?;
            if first != relative {
                return Ok(line); // its content is with the first
            }
        }
        if kind.is_file() {
            let (size, digest) = self.content(path)?;
            write!(line, " size={size} blake3={digest}")?;
        }
        Ok(line)
    }

    fn content(&mut self, path: &Path) -> Result<(u64, String)> {
        let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0u8; 256 << 10];
        let mut size = 0u64;
        loop {
            let n = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
            let Some(read) = buffer.get(..n).filter(|read| !read.is_empty()) else { break };
            hasher.update(read);
            size += n as u64;
        }
        self.tree.bytes += size;
        Ok((size, hasher.finalize().to_hex().to_string()))
    }
}

fn type_name(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "dir",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "link",
        () if kind.is_block_device() => "block",
        () if kind.is_char_device() => "char",
        () if kind.is_fifo() => "fifo",
        () => "socket",
    }
}

/// All extended attributes by name; `security.selinux` is the machine's, not the tree's.
fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut all = BTreeMap::new();
    let size = rustix::fs::llistxattr_query(path).unwrap_or(0);
    let mut list = vec![0u8; size];
    let size = if size == 0 { 0 } else { rustix::fs::llistxattr(path, list.as_mut_slice())? };
    list.truncate(size);
    for name in list.split(|b| *b == 0).filter(|n| !n.is_empty() && *n != b"security.selinux") {
        let key = OsStr::from_bytes(name);
        let mut value = vec![0u8; rustix::fs::lgetxattr_query(path, key)?];
        if !value.is_empty() {
            let n = rustix::fs::lgetxattr(path, key, value.as_mut_slice())?;
            value.truncate(n);
        }
        all.insert(name.to_vec(), value);
    }
    Ok(all)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn sample(dir: &Path) {
        fs::create_dir_all(dir.join("d")).unwrap();
        fs::write(dir.join("d/a"), b"one").unwrap();
        fs::hard_link(dir.join("d/a"), dir.join("b")).unwrap();
        symlink("d/a", dir.join("c")).unwrap();
        File::create(dir.join("sparse")).unwrap().set_len(1 << 20).unwrap();
    }

    fn copy(name: &str, change: impl Fn(&Path)) -> (PathBuf, PathBuf) {
        let base = std::env::temp_dir().join(format!("dotgraft-digest-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let (left, right) = (base.join("l"), base.join("r"));
        fs::create_dir_all(&left).unwrap();
        sample(&left);
        let status = std::process::Command::new("cp").arg("-a").arg(&left).arg(&right).status().unwrap();
        assert!(status.success());
        change(&right);
        (left, right)
    }

    fn differs(name: &str, change: impl Fn(&Path)) {
        let (left, right) = copy(name, change);
        let error = same_trees(&left, &right).unwrap_err().to_string();
        let digests = (tree_digest(&left).unwrap(), tree_digest(&right).unwrap());
        fs::remove_dir_all(left.parent().unwrap()).unwrap();
        assert!(error.contains("differ"), "{error}");
        assert_ne!(digests.0, digests.1);
    }

    #[test]
    fn a_faithful_copy_has_the_same_digest() {
        let (left, right) = copy("same", |_| {});
        let result = (same_trees(&left, &right), tree_digest(&left).unwrap() == tree_digest(&right).unwrap());
        fs::remove_dir_all(left.parent().unwrap()).unwrap();
        assert_eq!(result.0.unwrap().count(), 6);
        assert!(result.1);
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let keep_time = |path: &Path, f: &dyn Fn()| {
            let time = fs::symlink_metadata(path).unwrap().modified().unwrap();
            f();
            File::open(path).unwrap().set_modified(time).unwrap();
        };
        differs("content", |r| keep_time(&r.join("d/a"), &|| fs::write(r.join("d/a"), b"two").unwrap()));
        differs("mode", |r| fs::set_permissions(r.join("d"), fs::Permissions::from_mode(0o711)).unwrap());
        differs("time", |r| File::open(r.join("d/a")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap());
        differs("size", |r| {
            keep_time(&r.join("sparse"), &|| File::options().write(true).open(r.join("sparse")).unwrap().set_len(5).unwrap());
        });
        differs("target", |r| {
            fs::remove_file(r.join("c")).unwrap();
            symlink("d/b", r.join("c")).unwrap();
        });
        differs("hard link", |r| {
            let (time, root) = (fs::metadata(r.join("b")).unwrap().modified().unwrap(), fs::metadata(r).unwrap().modified().unwrap());
            fs::remove_file(r.join("b")).unwrap();
            fs::write(r.join("b"), b"one").unwrap();
            File::open(r.join("b")).unwrap().set_modified(time).unwrap();
            File::open(r).unwrap().set_modified(root).unwrap();
        });
        differs("added", |r| keep_time(r, &|| fs::write(r.join("new"), b"").unwrap()));
        differs("xattr", |r| {
            rustix::fs::lsetxattr(r.join("d/a"), "trusted.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        });
    }
}
