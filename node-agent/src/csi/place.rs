//! Target paths: checked, confined to the kubelet's directory after all symbolic links, made and removed one directory at a time.
//!
//! A [`Place`] is a descriptor of the parent directory and one name in it. The directory is opened beneath the kubelet's by `openat2`
//! without symbolic links, once they are resolved, so that a link put there meanwhile leads nowhere (storage.md §5). Nothing here ever
//! removes more than one empty directory (failures.md, row 17).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use dotgraft_engine::model::Problem;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::refusal::Refusal;
use crate::target::MountTarget;

/// A name in an open directory.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    name: std::ffi::OsString,
    target: MountTarget,
}

/// What is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory, or what is mounted on it.
    Directory,
    /// Anything else; a symbolic link is not followed.
    Other,
}

/// Where a target is; `None` if not even its parent directory is there. `field` is the request's, for messages.
///
/// # Errors
///
/// `INVALID_ARGUMENT` for a path that is not absolute, or, after all symbolic links, not below the kubelet's directory.
pub fn find(kubelet_dir: Option<&Path>, field: &str, text: &str) -> Result<Option<Place>, Refusal> {
    if text.is_empty() {
        return Err(Refusal::invalid(format!("{field} is missing")));
    }
    let refused = |p: Problem| Refusal::invalid(format!("{field}: {}", p.message));
    let target = MountTarget::parse(text).map_err(refused)?;
    let target = target.as_path();
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(Refusal::invalid(format!("{field} must name a directory")));
    };
    let parent = match fs::canonicalize(parent) {
        Ok(parent) => parent,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(field, target, &e)),
    };
    let root = match kubelet_dir {
        None => PathBuf::from("/"),
        Some(dir) => fs::canonicalize(dir).map_err(|e| failed("--kubelet-dir", dir, &e))?,
    };
    let Ok(below) = parent.strip_prefix(&root) else {
        return Err(Refusal::invalid(format!(
            "{field}: {} is not below {}, the kubelet's directory as kubeletDir of the chart has it",
            target.display(),
            root.display()
        )));
    };
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let dir = open_beneath(&root, below).map_err(|e| failed(field, target, &e.into()))?;
    Ok(Some(Place { dir, name: name.to_owned(), target: MountTarget::of(&parent.join(name)).map_err(refused)? }))
}

fn open_beneath(root: &Path, below: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::io::retry_on_intr(|| rustix::fs::openat2(&root, below, flags, Mode::empty(), resolve))
}

impl Place {
    /// Its path without symbolic links.
    pub fn path(&self) -> &Path {
        self.target.as_path()
    }

    /// The same, to be mounted at.
    pub fn target(&self) -> &MountTarget {
        &self.target
    }

    /// What is there.
    ///
    /// # Errors
    ///
    /// It can't be looked at.
    pub fn look(&self) -> Result<Found, Refusal> {
        match rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(Found::Directory),
            Ok(_) => Ok(Found::Other),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(e) => Err(failed("looking at", self.path(), &e.into())),
        }
    }

    /// Makes the directory (0750) if nothing is there; true if it was made.
    ///
    /// # Errors
    ///
    /// It can't be made; something that is no directory is in its place.
    pub fn make(&self) -> Result<bool, Refusal> {
        match rustix::fs::mkdirat(&self.dir, &self.name, Mode::RWXU | Mode::RGRP | Mode::XGRP) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(failed("making", self.path(), &e.into())),
        }
        match self.look()? {
            Found::Directory => Ok(false),
            _ => Err(Refusal::invalid(format!("{} is there and is no directory", self.path().display()))),
        }
    }

    /// Removes the directory if it is there and empty; one that is not stays, with what is in it.
    ///
    /// # Errors
    ///
    /// It is not empty, or can't be removed.
    pub fn remove(&self) -> Result<(), Refusal> {
        match rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Err(Refusal::precondition(format!(
                "nothing is mounted at {} any more, but there are files in the directory itself: they are left alone; move them away",
                self.path().display()
            ))),
            Err(Errno::BUSY) => Err(Refusal::precondition(format!("{} is a mount point still", self.path().display()))),
            Err(Errno::NOTDIR) => Err(Refusal::invalid(format!("{} is no directory", self.path().display()))),
            Err(e) => Err(failed("removing", self.path(), &e.into())),
        }
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Refusal {
    Refusal::new(tonic::Code::Internal, format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tonic::Code;

    use super::*;

    fn code(dir: &Path, text: &Path) -> Result<bool, Code> {
        find(Some(dir), "target_path", text.to_str().unwrap()).map(|p| p.is_some()).map_err(|r| r.code)
    }

    #[test]
    fn only_what_is_below_the_kubelets_directory_after_all_links_is_a_place() {
        let tmp = tempfile::tempdir().unwrap();
        let (kubelet, outside) = (tmp.path().join("kubelet"), tmp.path().join("outside"));
        fs::create_dir_all(kubelet.join("pods/a")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink(&outside, kubelet.join("pods/out")).unwrap();
        symlink(kubelet.join("pods"), kubelet.join("in")).unwrap();
        symlink(&kubelet, tmp.path().join("link")).unwrap();
        assert_eq!(code(&kubelet, &kubelet.join("pods/a/mount")), Ok(true));
        assert_eq!(code(&kubelet, &kubelet.join("in/a/mount")), Ok(true), "a link that stays inside");
        assert_eq!(code(&tmp.path().join("link"), &kubelet.join("pods/a/mount")), Ok(true));
        assert_eq!(code(&kubelet, &tmp.path().join("link/pods/a/mount")), Ok(true));
        assert_eq!(code(&kubelet, &kubelet.join("pods/none/mount")), Ok(false));
        for bad in [
            outside.join("x"),
            kubelet.join("pods/out/x"),
            kubelet.clone(),
            PathBuf::from("/etc"),
            kubelet.join("../outside/x"),
            "pods/x".into(),
            "".into(),
        ] {
            assert_eq!(code(&kubelet, &bad), Err(Code::InvalidArgument), "{}", bad.display());
        }
        assert!(find(None, "target_path", outside.join("x").to_str().unwrap()).unwrap().is_some(), "without the flag anywhere");
    }

    #[test]
    fn a_directory_is_made_once_and_goes_only_if_empty() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| find(None, "target_path", tmp.path().join(name).to_str().unwrap()).unwrap().unwrap();
        let place = at("t");
        assert_eq!(place.look().unwrap(), Found::Nothing);
        assert!(place.make().unwrap() && !place.make().unwrap());
        assert_eq!(place.look().unwrap(), Found::Directory);
        fs::write(place.path().join("f"), "data").unwrap();
        assert_eq!(place.remove().unwrap_err().code, Code::FailedPrecondition);
        assert_eq!(fs::read_to_string(place.path().join("f")).unwrap(), "data");
        fs::remove_file(place.path().join("f")).unwrap();
        place.remove().unwrap();
        place.remove().unwrap();
        symlink("/etc", tmp.path().join("l")).unwrap();
        assert_eq!(at("l").look().unwrap(), Found::Other);
        assert_eq!(at("l").make().unwrap_err().code, Code::InvalidArgument);
        assert_eq!(at("l").remove().unwrap_err().code, Code::InvalidArgument);
    }
}
