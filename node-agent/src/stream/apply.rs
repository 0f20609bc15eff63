//! Applies a send stream to a work subvolume, command by command, as its bytes arrive.
//!
//! The peer service feeds an [`Applier`] from a blocking thread; the actor takes checkpoints between feeds ([`Applier::flush`],
//! a snapshot, [`Applier::state`]) and turns the finished subvolume into a commit. `parse` reads the bytes; `make` (names),
//! `data` (content), `object` (attributes) and `flags` do the work; `confine` keeps all of it inside. The subvolume itself was made by the caller: empty for a full
//! stream, a writable snapshot of the base for an increment.
//!
//! Memory: one partial command (at most [`Limits::max_command`]), 1,024 directory times, 33 descriptors; nothing grows with
//! the stream.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::confine::Tree;
use super::error::{Cause, StreamError};
use super::flags::{COMPRESSION, OWED};
use super::frame;
use super::object::Object;
use super::parse::{self, Command, CommandKind, Time, Version};
use super::path::StreamPath;
use super::state::{ApplierState, New, PathBytes, Pending, StreamIds, Target};
use super::times::{DirTimes, Times};
use super::{ContentClass, Donor, Limits, Position, Skipped};
use crate::digest::ResumableHasher;

/// `S_IFMT` and the permission bits.
const MODE_BITS: u32 = 0o17_7777;
/// setuid and setgid.
const SET_ID: u32 = 0o6000;
/// A stream on its way into a subvolume.
#[derive(Debug)]
pub struct Applier {
    pub(super) work: Tree,
    pub(super) base: Option<Tree>,
    class: ContentClass,
    limits: Limits,
    protocol: Option<Version>,
    pub(super) ids: Option<StreamIds>,
    ended: bool,
    failed: bool,
    /// The beginning of a command whose rest has not arrived.
    partial: Vec<u8>,
    hasher: ResumableHasher,
    pub(super) object: Option<Object>,
    pub(super) pending: Option<Pending>,
    dir_times: DirTimes,
    /// Times of the root, set again at each flush: temporary names touch it, and a stream in which it did not change does
    /// not say so.
    root_times: Times,
    pub(super) skipped: Skipped,
    /// Permission bits that the last new file and directory got: the next probably gets them too.
    pub(super) usual_mode: [u32; 2],
    /// Where the content comes from, of a stream without data.
    pub(super) donor: Option<Donor>,
    /// Some inode may be owed flags (`flags`).
    pub(super) owes: bool,
}

impl Applier {
    /// Starts a stream into the subvolume whose root is `root`, with `base` as the root of the base commit for an
    /// increment and `None` for a full stream.
    ///
    /// # Errors
    /// When a root can't be opened as a directory.
    #[allow(clippy::needless_pass_by_value, reason = "the subvolumes are the applier's from here on, and opened anew")]
    pub fn new(root: OwnedFd, base: Option<OwnedFd>, class: ContentClass, limits: Limits) -> Result<Self, StreamError> {
        let trees = || {
            let mut work = Tree::new(&root)?;
            let root_times = times_of(&work.place(StreamPath::ROOT)?.stat()?);
            Ok((work, root_times, base.as_ref().map(Tree::new).transpose()?))
        };
        let (work, root_times, base) = trees().map_err(|cause| StreamError { offset: 0, command: None, cause })?;
        Ok(Self {
            work,
            base,
            class,
            limits,
            protocol: None,
            ids: None,
            ended: false,
            failed: false,
            partial: Vec::new(),
            hasher: ResumableHasher::new(),
            object: None,
            pending: None,
            dir_times: DirTimes::default(),
            root_times,
            skipped: Skipped::default(),
            usual_mode: [0o600, 0o700],
            donor: None,
            owes: false,
        })
    }

    /// The same for a whole subvolume of this pool that comes as a stream without data: the files made share their extents with the
    /// files of `donor`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn sharing(root: OwnedFd, donor: Donor) -> Result<Self, StreamError> {
        Ok(Self { donor: Some(donor), ..Self::new(root, None, ContentClass::Trusted, Limits::default())? })
    }

    /// Goes on from `state` in a subvolume that is as it was when [`Self::state`] gave it.
    ///
    /// # Errors
    /// As [`Self::new`], and for a state whose parts contradict each other or that is of another kind of stream.
    pub fn resume(
        root: OwnedFd,
        base: Option<OwnedFd>,
        class: ContentClass,
        limits: Limits,
        state: ApplierState,
    ) -> Result<Self, StreamError> {
        let refused = |what| StreamError { offset: state.offset, command: None, cause: Cause::State(what) };
        if state.hasher.offset() != state.offset || (state.protocol.is_none() && state.offset != 0) {
            return Err(refused("its parts contradict each other"));
        }
        if state.ids.is_some_and(|ids| ids.parent.is_some() != base.is_some()) {
            return Err(refused("it is of an increment without its base, or of a full stream with one"));
        }
        if state.ids.is_some_and(|ids| ids.names_one()) {
            return Err(refused("its target and its base have one UUID"));
        }
        let mut applier = Self::new(root, base, class, limits)?;
        applier.protocol = state.protocol;
        applier.ids = state.ids;
        applier.ended = state.ended;
        applier.hasher = state.hasher;
        applier.pending = state.pending;
        applier.root_times = state.root_times;
        applier.owes = state.owes;
        for (PathBytes(path), times) in state.dir_times {
            applier.dir_times.insert(&path, times);
        }
        Ok(applier)
    }

    /// Applies the next bytes of the stream, in pieces of any size; large ones (1 MiB) are fastest.
    ///
    /// # Errors
    /// The first thing that is wrong. After an error nothing more is taken; the tree holds part of the failed command, so
    /// the way on is the last checkpoint.
    pub fn feed(&mut self, input: &[u8]) -> Result<(), StreamError> {
        if self.failed {
            return Err(self.error(None, Cause::Failed));
        }
        let result = self.feed_all(input);
        self.failed = result.is_err();
        result
    }

    /// Bytes of complete commands applied so far, and their BLAKE3 digest.
    pub fn position(&self) -> Position {
        Position { offset: self.hasher.offset(), digest: self.hasher.finalize() }
    }

    /// The subvolumes that the stream is about, once its first command was seen.
    pub fn ids(&self) -> Option<StreamIds> {
        self.ids
    }

    /// What was left out, by the class of content or because kernel streams carry it only in part.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// Brings everything held back into the tree, so that a snapshot taken now holds all of [`Self::position`].
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub fn flush(&mut self) -> Result<(), StreamError> {
        if self.failed {
            return Err(self.error(None, Cause::Failed));
        }
        let result = self.make_pending().and_then(|()| self.set_dir_times());
        self.failed = result.is_err();
        result.map_err(|cause| self.error(None, cause))
    }

    /// The point to go on from. It is small after [`Self::flush`]; without, it also holds what is held back.
    pub fn state(&self) -> ApplierState {
        ApplierState {
            version: ApplierState::version_for(self.owes),
            offset: self.hasher.offset(),
            protocol: self.protocol,
            ids: self.ids,
            ended: self.ended,
            hasher: self.hasher.clone(),
            pending: self.pending.clone(),
            root_times: self.root_times,
            owes: self.owes,
            dir_times: self.dir_times.iter().map(|(path, times)| (PathBytes(path.clone()), *times)).collect(),
        }
    }

    /// Ends the stream: everything is in the tree, and the position is that of the whole stream.
    ///
    /// # Errors
    /// When the stream has not ended, or as [`Self::feed`].
    pub fn finish(mut self) -> Result<Position, StreamError> {
        if !self.ended && !self.failed {
            return Err(self.error(None, Cause::Sequence("the stream stops before its end")));
        }
        self.flush()?;
        self.settle().map_err(|cause| self.error(None, cause))?;
        Ok(self.position())
    }

    fn error(&self, command: Option<CommandKind>, cause: Cause) -> StreamError {
        StreamError { offset: self.hasher.offset(), command, cause }
    }

    fn feed_all(&mut self, mut input: &[u8]) -> Result<(), StreamError> {
        while !self.partial.is_empty() {
            let wanted = self.unit_len(&self.partial).map_err(|cause| self.error(parse::kind_of(&self.partial), cause))?;
            let missing = wanted.saturating_sub(self.partial.len()).min(input.len());
            let (head, rest) = input.split_at(missing);
            self.partial.extend_from_slice(head);
            input = rest;
            if self.partial.len() < wanted {
                return Ok(());
            }
            let whole = self.unit_len(&self.partial).map_err(|cause| self.error(parse::kind_of(&self.partial), cause))?;
            if whole > wanted {
                // That was only the header.
                continue;
            }
            let mut whole = std::mem::take(&mut self.partial);
            let result = self.feed_whole(&whole);
            whole.clear();
            self.partial = whole;
            result?;
        }
        let used = self.feed_direct(input)?;
        self.partial.extend_from_slice(input.get(used..).unwrap_or_default());
        Ok(())
    }

    /// Applies all whole commands that `input` starts with, straight from it, and says how many bytes they were.
    fn feed_direct(&mut self, input: &[u8]) -> Result<usize, StreamError> {
        let start = self.hasher.offset();
        let mut used = 0;
        let result = loop {
            let rest = input.get(used..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            let whole = match self.unit_len(rest) {
                Ok(len) => match rest.get(..len) {
                    Some(whole) => whole,
                    None => break Ok(()),
                },
                Err(cause) => break Err((parse::kind_of(rest), cause)),
            };
            match self.apply_unit(whole) {
                Ok(()) => used += whole.len(),
                Err(failure) => break Err(failure),
            }
        };
        // Hashed in one go: large pieces are what makes the hash fast.
        self.hasher.update(input.get(..used).unwrap_or_default());
        debug_assert_eq!(self.hasher.offset(), start + used as u64);
        result.map(|()| used).map_err(|(command, cause)| self.error(command, cause))
    }

    fn feed_whole(&mut self, whole: &[u8]) -> Result<(), StreamError> {
        self.apply_unit(whole).map_err(|(command, cause)| self.error(command, cause))?;
        self.hasher.update(whole);
        Ok(())
    }

    /// How many bytes are needed before anything can be done with what starts here: the stream header, a command's
    /// header, or the whole command if its header is there.
    fn unit_len(&self, bytes: &[u8]) -> Result<usize, Cause> {
        if self.protocol.is_none() {
            return Ok(frame::STREAM_HEADER);
        }
        if self.ended {
            return Err(Cause::Sequence("bytes after the end of the stream"));
        }
        Ok(frame::command_len(bytes, self.limits.max_command)?.unwrap_or(frame::COMMAND_HEADER))
    }

    fn apply_unit(&mut self, whole: &[u8]) -> Result<(), (Option<CommandKind>, Cause)> {
        let Some(protocol) = self.protocol else {
            self.protocol = Some(frame::stream_header(whole).map_err(|cause| (None, cause))?);
            return Ok(());
        };
        let result = parse::command(whole, protocol).and_then(|command| match self.apply(&command) {
            Err(Cause::System { errno: Errno::PERM, .. }) if self.lift_flags(&command) => self.apply(&command),
            result => result,
        });
        result.map_err(|cause| (parse::kind_of(whole), cause))
    }

    fn apply(&mut self, command: &Command<'_>) -> Result<(), Cause> {
        if self.ids.is_none() {
            return self.begin(command);
        }
        if let Command::Rename { path, to } = *command {
            return self.rename(path, to);
        }
        self.make_pending()?;
        match *command {
            Command::Subvol { .. } | Command::Snapshot { .. } => Err(Cause::Sequence("a second subvolume in one stream")),
            Command::Mkfile { path, inode } => {
                self.hold(path, New::File);
                if let (Some(donor), Some(inode)) = (&mut self.donor, inode) {
                    donor.next(inode);
                }
                Ok(())
            }
            Command::Mkdir { path } => {
                self.hold(path, New::Directory);
                Ok(())
            }
            Command::Mknod { path, mode, rdev } => self.mknod(path, mode, rdev),
            Command::Mkfifo { path, mode } => self.mknod_as(path, FileType::Fifo, mode),
            Command::Mksock { path, mode } => self.mknod_as(path, FileType::Socket, mode),
            Command::Symlink { path, target } => {
                self.hold(path, New::Symlink(Target(target.to_vec())));
                Ok(())
            }
            Command::Rename { path, to } => self.rename(path, to),
            Command::Link { path, existing } => self.link(path, existing),
            Command::Unlink { path } => self.remove(path, false),
            Command::Rmdir { path } => self.remove(path, true),
            Command::SetXattr { path, name, value } => self.set_xattr(path, name, value),
            Command::RemoveXattr { path, name } => self.remove_xattr(path, name),
            Command::Write { path, offset, data } => self.write(path, offset, data),
            Command::Clone { path, offset, len, uuid, source, source_offset } => {
                self.clone_from(path, (offset, len), uuid, (source, source_offset))
            }
            Command::Truncate { path, size } => self.truncate(path, size),
            Command::Chmod { path, mode } => self.chmod(path, mode),
            Command::Chown { path, uid, gid } => self.object(path)?.chown(uid, gid),
            Command::Utimes { path, atime, mtime } => self.utimes(path, Times { atime, mtime }),
            Command::End => {
                self.ended = true;
                self.object = None;
                Ok(())
            }
            Command::UpdateExtent { path, offset, len } => self.share(path, offset, len),
            Command::Fallocate { path, mode, offset, len } => self.fallocate(path, mode, offset, len),
            Command::Fileattr { path, flags } => self.fileattr(path, flags),
            Command::EncodedWrite { path, write } => self.encoded_write(path, &write),
            Command::EnableVerity => Err(Cause::Unsupported("fs-verity")),
        }
    }

    /// The first command says what the stream is; the subvolume for it is there already.
    fn begin(&mut self, command: &Command<'_>) -> Result<(), Cause> {
        let ids = match *command {
            Command::Subvol { uuid, ctransid } => StreamIds { uuid, ctransid, parent: None },
            Command::Snapshot { uuid, ctransid, parent, parent_ctransid } => {
                StreamIds { uuid, ctransid, parent: Some((parent, parent_ctransid)) }
            }
            _ => return Err(Cause::Sequence("the first command is neither SUBVOL nor SNAPSHOT")),
        };
        match (ids.parent, &self.base) {
            _ if ids.names_one() => Err(Cause::OneUuid),
            (Some(_), None) => Err(Cause::Sequence("an increment where a full stream is expected")),
            (None, Some(_)) => Err(Cause::Sequence("a full stream where an increment is expected")),
            _ => {
                self.ids = Some(ids);
                Ok(())
            }
        }
    }

    /// The object at `path`; the one before it is let go.
    pub(super) fn object(&mut self, path: StreamPath<'_>) -> Result<&mut Object, Cause> {
        let found = match self.object.take() {
            Some(object) if object.path() == path.bytes() => object,
            _ => Object::find(path, self.work.place(path)?)?,
        };
        Ok(self.object.insert(found))
    }

    fn set_xattr(&mut self, path: StreamPath<'_>, name: &[u8], value: &[u8]) -> Result<(), Cause> {
        if self.skips_xattr(name)? {
            return Ok(());
        }
        match self.object(path)?.set_xattr(name, value) {
            Err(Cause::System { errno: Errno::INVAL, .. }) if name == COMPRESSION.as_bytes() && self.make_cow(path)? => {
                self.object(path)?.set_xattr(name, value)
            }
            done => done,
        }
    }

    fn remove_xattr(&mut self, path: StreamPath<'_>, name: &[u8]) -> Result<(), Cause> {
        if self.skips_xattr(name)? {
            return Ok(());
        }
        self.object(path)?.remove_xattr(name)
    }

    /// Whether an xattr is left out: security labels of the sender and our own always, privileged ones from a remote.
    fn skips_xattr(&mut self, name: &[u8]) -> Result<bool, Cause> {
        if name == b"security.selinux" || name == OWED.as_bytes() {
            return Ok(true);
        }
        let privileged = name.starts_with(b"security.") || name.starts_with(b"trusted.");
        let ordinary = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"btrfs.compression";
        match self.class {
            _ if ordinary => Ok(false),
            ContentClass::Trusted if privileged => Ok(false),
            ContentClass::Restricted if privileged => {
                self.skipped.xattrs += 1;
                Ok(true)
            }
            _ => Err(Cause::Unsupported("an xattr of an unknown namespace")),
        }
    }

    fn chmod(&mut self, path: StreamPath<'_>, mut mode: u32) -> Result<(), Cause> {
        if self.class == ContentClass::Restricted && mode & SET_ID != 0 {
            self.skipped.set_id_bits += 1;
            mode &= !SET_ID;
        }
        let object = self.object(path)?;
        object.chmod(mode)?;
        match object.file_type() {
            FileType::RegularFile => self.usual_mode[0] = mode & 0o777,
            FileType::Directory => self.usual_mode[1] = mode & 0o777,
            _ => {}
        }
        Ok(())
    }

    fn utimes(&mut self, path: StreamPath<'_>, times: Times) -> Result<(), Cause> {
        let bytes = path.bytes();
        if path.is_root() {
            self.root_times = times;
            return Ok(());
        }
        if !self.dir_times.contains(bytes) {
            // A directory's times may come between the commands of a file, which stays open.
            let other;
            let object = match &self.object {
                Some(object) if object.path() == bytes => object,
                _ => {
                    other = Object::find(path, self.work.place(path)?)?;
                    &other
                }
            };
            if object.file_type() != FileType::Directory {
                return object.utimes(times);
            }
            if self.dir_times.is_full(bytes.len()) {
                self.set_dir_times()?;
            }
        }
        self.dir_times.insert(bytes, times);
        Ok(())
    }

    fn set_dir_times(&mut self) -> Result<(), Cause> {
        while let Some((path, times)) = self.dir_times.pop() {
            self.set_times_of(StreamPath::trusted(&path), times)?;
        }
        self.set_times_of(StreamPath::ROOT, self.root_times)
    }

    /// Sets the times of a directory, which may be locked: then nothing is done to one that has them.
    fn set_times_of(&mut self, path: StreamPath<'_>, times: Times) -> Result<(), Cause> {
        let place = self.work.place(path)?;
        if times_of(&place.stat()?) == times {
            return Ok(());
        }
        match Object::find(path, place)?.utimes(times) {
            Err(Cause::System { errno: Errno::PERM, .. }) if self.lift_flags_of(path) => {
                Object::find(path, self.work.place(path)?)?.utimes(times)
            }
            done => done,
        }
    }

    /// Keeps descriptors and times right when `path` moves to `to`, or goes.
    pub(super) fn forget(&mut self, path: StreamPath<'_>, to: Option<StreamPath<'_>>) {
        self.work.forget(path);
        match to {
            Some(to) => self.dir_times.moved(path.bytes(), to.bytes()),
            None => self.dir_times.remove(path.bytes()),
        }
    }

    pub(super) fn class(&self) -> ContentClass {
        self.class
    }
}

fn times_of(stat: &Stat) -> Times {
    // Nanoseconds that the kernel reports are below 10^9.
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
    Times { atime: time(stat.st_atime, stat.st_atime_nsec), mtime: time(stat.st_mtime, stat.st_mtime_nsec) }
}

/// Type and permission bits of a node, as the class of content allows them.
pub(super) fn node_mode(mode: u32, class: ContentClass) -> Result<u32, Cause> {
    let device = match FileType::from_raw_mode(mode) {
        FileType::CharacterDevice | FileType::BlockDevice => true,
        FileType::Fifo | FileType::Socket => false,
        _ => return Err(Cause::Malformed("a node of an unknown type")),
    };
    if mode & !MODE_BITS != 0 {
        return Err(Cause::Malformed("a mode with unknown bits"));
    }
    match class {
        ContentClass::Restricted if device => Err(Cause::Forbidden("device nodes")),
        ContentClass::Restricted => Ok(mode & !SET_ID),
        ContentClass::Trusted => Ok(mode),
    }
}
