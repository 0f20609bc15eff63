//! Making, renaming, linking and removing names: the part of [`Applier`] that changes directories.
//!
//! A kernel stream makes everything under a temporary name in the root and renames it at once. [`Applier::hold`] keeps the
//! first half back, so that usually one call makes it where it belongs (platform.md §4).

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, linkat, makedev, mkdirat, mknodat, openat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::apply::{Applier, node_mode};
use super::confine::Place;
use super::error::Cause;
use super::object::Object;
use super::path::{StreamPath, is_within};
use super::state::{New, PathBytes, Pending};

impl Applier {
    /// Holds back the making of `what` until its name is known.
    pub(super) fn hold(&mut self, path: StreamPath<'_>, what: New) {
        self.object = None;
        self.pending = Some(Pending { path: PathBytes(path.bytes().to_vec()), what });
    }

    /// A device, pipe or socket; `mode` has the type.
    pub(super) fn mknod(&mut self, path: StreamPath<'_>, mode: u32, rdev: u32) -> Result<(), Cause> {
        let allowed = node_mode(mode, self.class())?;
        if allowed != mode {
            self.skipped.set_id_bits += 1;
        }
        self.hold(path, New::Node { mode: allowed, rdev });
        Ok(())
    }

    /// A pipe or socket, whose command may leave the mode out.
    pub(super) fn mknod_as(&mut self, path: StreamPath<'_>, kind: FileType, mode: Option<u32>) -> Result<(), Cause> {
        let permissions = mode.unwrap_or(0o600) & 0o7777;
        self.mknod(path, kind.as_raw_mode() | permissions, 0)
    }

    /// Makes what is held back, under the name it has.
    pub(super) fn make_pending(&mut self) -> Result<(), Cause> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let made = self.make(StreamPath::trusted(&pending.path.0), &pending.what);
        if made.is_err() {
            self.pending = Some(pending);
        }
        made
    }

    /// Renames, never over something that is there.
    pub(super) fn rename(&mut self, path: StreamPath<'_>, to: StreamPath<'_>) -> Result<(), Cause> {
        if let Some(pending) = self.pending.take_if(|pending| pending.path.0 == path.bytes()) {
            let made = self.make(to, &pending.what);
            if made.is_err() {
                self.pending = Some(pending);
            }
            return made;
        }
        self.make_pending()?;
        let (old, new) = (self.work.place(path)?, self.work.place(to)?);
        // The kernel would rename another subvolume's root as well.
        old.stat()?;
        renameat_with(old.dir(), old.name(), new.dir(), new.name(), RenameFlags::NOREPLACE)
            .map_err(|errno| Cause::system("renameat2", path.bytes(), errno))?;
        self.forget(path, Some(to));
        match &mut self.object {
            Some(object) if object.path() == path.bytes() => object.renamed(to, new),
            Some(object) if is_within(object.path(), path.bytes()) => self.object = None,
            _ => {}
        }
        Ok(())
    }

    /// Gives `existing` the further name `path`.
    pub(super) fn link(&mut self, path: StreamPath<'_>, existing: StreamPath<'_>) -> Result<(), Cause> {
        let (old, new) = (self.work.place(existing)?, self.work.place(path)?);
        // Not another subvolume's: `linkat` itself stops at those, this names it.
        old.stat()?;
        linkat(old.dir(), old.name(), new.dir(), new.name(), AtFlags::empty()).map_err(|errno| Cause::system("linkat", path.bytes(), errno))
    }

    /// Removes a name, or an empty directory.
    pub(super) fn remove(&mut self, path: StreamPath<'_>, directory: bool) -> Result<(), Cause> {
        let place = self.work.place(path)?;
        // Removing an empty subvolume with `rmdir` is possible, and not for a stream to do.
        place.stat()?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(place.dir(), place.name(), flags).map_err(|errno| Cause::system("unlinkat", path.bytes(), errno))?;
        self.forget(path, None);
        self.object.take_if(|object| object.path() == path.bytes());
        Ok(())
    }

    fn make(&mut self, path: StreamPath<'_>, what: &New) -> Result<(), Cause> {
        let place = self.work.place(path)?;
        let object = match what {
            New::File => return self.make_file(path, place),
            New::Directory => {
                let mode = Mode::from_raw_mode(self.usual_mode[1]);
                mkdirat(place.dir(), place.name(), mode).map_err(|errno| make_error("mkdirat", path, errno))?;
                Object::made_other(path, place)?
            }
            New::Symlink(target) => {
                symlinkat(target.0.as_slice(), place.dir(), place.name()).map_err(|errno| make_error("symlinkat", path, errno))?;
                Object::made_other(path, place)?
            }
            New::Node { mode, rdev } => {
                // The kernel's 32-bit encoding: minor 0–7, major 8–19, rest of minor 20–31.
                let device = makedev((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00));
                let (kind, mode) = (FileType::from_raw_mode(*mode), Mode::from_raw_mode(*mode & 0o7777));
                mknodat(place.dir(), place.name(), kind, mode, device).map_err(|errno| make_error("mknodat", path, errno))?;
                Object::made_other(path, place)?
            }
        };
        self.object = Some(object);
        Ok(())
    }

    fn make_file(&mut self, path: StreamPath<'_>, place: Place) -> Result<(), Cause> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(place.dir(), place.name(), flags, Mode::from_raw_mode(self.usual_mode[0]))
            .map_err(|errno| make_error("openat", path, errno))?;
        self.object = Some(Object::made_file(path, place, fd)?);
        Ok(())
    }
}

fn make_error(call: &'static str, path: StreamPath<'_>, errno: Errno) -> Cause {
    Cause::system(call, path.bytes(), errno)
}
