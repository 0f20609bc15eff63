//! The file, directory or other thing that a stream is about at the moment, and what is done to it in place.
//!
//! `apply` keeps one [`Object`] from command to command, because a stream tells everything about one inode in a row: its
//! descriptor stays open, and what is known of it makes most chowns and chmods of a new file unnecessary.
//!
//! A chown drops setuid bits and `security.capability`. A stream says so only where its sender's did too, and an increment
//! in which nothing but the owner differs says nothing about the mode; so [`Object::chown`] puts both back.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, fchmod, fchown, fgetxattr, fremovexattr,
    fsetxattr, futimens, removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::confine::Place;
use super::error::Cause;
use super::flags::drop_inherited;
use super::path::StreamPath;
use super::times::Times;

/// The access list of a file.
const ACL_ACCESS: &str = "system.posix_acl_access";
/// What new files in a directory get as theirs.
const ACL_DEFAULT: &str = "system.posix_acl_default";
/// File capabilities; dropped by chown and by writes.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
/// setuid and setgid.
const SET_ID: u32 = 0o6000;
/// Largest `security.capability` value of any revision, with room.
const MAX_CAPABILITY: usize = 64;

/// Owner and permission bits, as they are on disk now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// One thing in the work subvolume.
#[derive(Debug)]
pub(crate) struct Object {
    path: Vec<u8>,
    place: Place,
    file_type: FileType,
    fd: Option<OwnedFd>,
    writable: bool,
    /// `None` after something that may have changed it behind our back.
    known: Option<Known>,
    /// Made by us in this run, and no xattr set since: no capability to lose.
    plain: bool,
}

impl Object {
    /// What is at `place` now.
    pub fn find(path: StreamPath<'_>, place: Place) -> Result<Self, Cause> {
        let stat = place.stat()?;
        let known = Known { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
        Ok(Self {
            path: path.bytes().to_vec(),
            place,
            file_type: FileType::from_raw_mode(stat.st_mode),
            fd: None,
            writable: false,
            known: Some(known),
            plain: false,
        })
    }

    /// A file just made at `place` and opened as `fd`, without what it may have inherited.
    pub fn made_file(path: StreamPath<'_>, place: Place, fd: OwnedFd) -> Result<Self, Cause> {
        drop_xattr(&place, &fd, ACL_ACCESS)?;
        drop_inherited(&place, &fd)?;
        let stat = place.stat_of(&fd)?;
        Ok(Self {
            path: path.bytes().to_vec(),
            place,
            file_type: FileType::RegularFile,
            fd: Some(fd),
            writable: true,
            known: Some(Known { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }),
            plain: true,
        })
    }

    /// Something else just made at `place`, without what it may have inherited.
    pub fn made_other(path: StreamPath<'_>, place: Place) -> Result<Self, Cause> {
        let mut made = Self::find(path, place)?;
        match made.file_type {
            FileType::Directory => {
                let fd = made.place.open_dir()?;
                drop_xattr(&made.place, &fd, ACL_ACCESS)?;
                drop_xattr(&made.place, &fd, ACL_DEFAULT)?;
                drop_inherited(&made.place, &fd)?;
                made.fd = Some(fd);
            }
            FileType::Symlink => {}
            _ => match removexattr(proc_path(&made.place.open_handle()?), ACL_ACCESS) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(made.place.system("removexattr", errno)),
            },
        }
        made.plain = true;
        Ok(made)
    }

    pub fn path(&self) -> &[u8] {
        &self.path
    }

    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// It has another name now.
    pub fn renamed(&mut self, path: StreamPath<'_>, place: Place) {
        self.path = path.bytes().to_vec();
        self.place = place;
    }

    /// The regular file, open for reading and writing.
    pub fn file(&mut self) -> Result<&OwnedFd, Cause> {
        if !self.writable {
            self.fd = Some(self.place.open_file(OFlags::RDWR)?);
            self.writable = true;
        }
        self.fd.as_ref().ok_or(Cause::Sequence("data for something that is no regular file"))
    }

    /// Any descriptor of a regular file or directory; `None` for other types.
    pub fn any_fd(&mut self) -> Result<Option<&OwnedFd>, Cause> {
        if self.fd.is_none() {
            match self.file_type {
                FileType::RegularFile => return self.file().map(Some),
                FileType::Directory => self.fd = Some(self.place.open_dir()?),
                _ => return Ok(None),
            }
        }
        Ok(self.fd.as_ref())
    }

    /// Sets owner and group, unless it has them; mode and capability stay.
    pub fn chown(&mut self, uid: u32, gid: u32) -> Result<(), Cause> {
        let known = self.known()?;
        if (known.uid, known.gid) == (uid, gid) {
            return Ok(());
        }
        let capability = self.capability()?;
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match &self.fd {
            Some(fd) => fchown(fd, owner, group),
            None if self.place.is_root() => fchown(self.place.dir(), owner, group),
            None => chownat(self.place.dir(), self.place.name(), owner, group, AtFlags::SYMLINK_NOFOLLOW),
        }
        .map_err(|errno| self.place.system("fchownat", errno))?;
        self.known = Some(Known { mode: known.mode, uid, gid });
        if known.mode & SET_ID != 0 && self.file_type != FileType::Symlink {
            self.chmod_always(known.mode)?;
        }
        match capability {
            Some(value) => self.put_xattr(CAPABILITY, &value),
            None => Ok(()),
        }
    }

    /// Sets the permission bits, unless it has them.
    pub fn chmod(&mut self, mode: u32) -> Result<(), Cause> {
        if self.file_type == FileType::Symlink {
            return Err(Cause::Sequence("chmod of a symlink"));
        }
        if self.known()?.mode == mode {
            return Ok(());
        }
        self.chmod_always(mode)
    }

    /// Sets last access and last change.
    pub fn utimes(&self, times: Times) -> Result<(), Cause> {
        let stamp = |time: super::parse::Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
        let times = Timestamps { last_access: stamp(times.atime), last_modification: stamp(times.mtime) };
        match &self.fd {
            Some(fd) => futimens(fd, &times),
            None if self.place.is_root() => futimens(self.place.dir(), &times),
            None => utimensat(self.place.dir(), self.place.name(), &times, AtFlags::SYMLINK_NOFOLLOW),
        }
        .map_err(|errno| self.place.system("utimensat", errno))
    }

    /// Sets an xattr.
    pub fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Cause> {
        self.plain = false;
        if name.starts_with(b"system.posix_acl") {
            // An access list contains the mode.
            self.known = None;
        }
        self.put_xattr(name, value)
    }

    /// Removes an xattr; one that is not there is no error (a capability goes by itself with a chown or write).
    pub fn remove_xattr(&mut self, name: &[u8]) -> Result<(), Cause> {
        let gone = match self.any_fd()? {
            Some(fd) => fremovexattr(fd, name),
            None => removexattr(proc_path(&self.place.open_handle()?), name),
        };
        match gone {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(self.place.system("removexattr", errno)),
        }
    }

    fn put_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Cause> {
        let flags = XattrFlags::empty();
        match self.any_fd()? {
            Some(fd) => fsetxattr(fd, name, value, flags),
            None => setxattr(proc_path(&self.place.open_handle()?), name, value, flags),
        }
        .map_err(|errno| self.place.system("setxattr", errno))
    }

    fn chmod_always(&mut self, mode: u32) -> Result<(), Cause> {
        let bits = Mode::from_raw_mode(mode);
        match self.any_fd()? {
            Some(fd) => fchmod(fd, bits),
            // Pipes, sockets, devices: a handle and its link in /proc reach them without opening them.
            None => chmod(proc_path(&self.place.open_handle()?), bits),
        }
        .map_err(|errno| self.place.system("fchmod", errno))?;
        if let Some(known) = &mut self.known {
            known.mode = mode;
        }
        Ok(())
    }

    fn known(&mut self) -> Result<Known, Cause> {
        if let Some(known) = self.known {
            return Ok(known);
        }
        let stat = self.place.stat()?;
        let known = Known { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
        self.known = Some(known);
        Ok(known)
    }

    fn capability(&mut self) -> Result<Option<Vec<u8>>, Cause> {
        if self.plain || self.file_type != FileType::RegularFile {
            return Ok(None);
        }
        let Some(fd) = self.any_fd()? else { return Ok(None) };
        let mut value = vec![0; MAX_CAPABILITY];
        match fgetxattr(fd, CAPABILITY, value.as_mut_slice()) {
            Ok(len) => {
                value.truncate(len);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(self.place.system("fgetxattr", errno)),
        }
    }
}

/// The link by which calls without a descriptor form reach what a handle stands for.
fn proc_path(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())
}

/// Removes what a new file inherited.
fn drop_xattr(place: &Place, fd: &OwnedFd, name: &str) -> Result<(), Cause> {
    // Asking first: almost always there is none, and the kernel knows that without looking at the disk.
    let mut none = [0u8; 0];
    match fgetxattr(fd, name, &mut none[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Ok(_) => fremovexattr(fd, name).map_err(|errno| place.system("fremovexattr", errno)),
        Err(errno) => Err(place.system("fgetxattr", errno)),
    }
}
