//! Completes a kernel's stream on its way out, with commands that are the kernel's own (ADR 28):
//!
//! - The flags of a new inode, of which the kernel says nothing: `FILEATTR` right after the command that makes it, so before its first byte.
//! - Holes and preallocated ranges of an increment, which the kernel writes out as zeros: `FALLOCATE`, a hole, in place of a run of such
//!   writes, and its last byte, so that a file ends where it did for receivers that know nothing of this.
//!
//! The digest is that of the completed stream. What comes out depends on what goes in alone, never on how it is cut, so a prefix is a sound
//! resume token. A stream of protocol 1, which has neither command, passes as it is. Pure, but for the question what flags an inode has.
//! Memory: 2 MiB, and one command.

use std::io::{self, Read};

use super::flags::SAID;
use super::frame::{Attributes, COMMAND_HEADER, MAX_COMMAND, STREAM_HEADER, Version, attribute, checksum, command_len, stream_header};
use super::parse::{CommandKind, kind_of};
use super::zeros::is_zero;

/// Kept of the stream: one command and what is read at once.
const BUFFER: usize = 2 * MAX_COMMAND;
/// With less room than that what is kept is moved to the front.
const ROOM: usize = 256 << 10;
/// Zeros of fewer bytes stay as they are: two commands would be longer.
const SHORT: u64 = 8 << 10;
/// Inode of a subvolume's root.
const ROOT: u64 = 256;
/// `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE`.
const PUNCH: u32 = 3;

/// Who knows the flags of inodes.
pub trait FlagsOf {
    /// The `BTRFS_INODE_*` bits of an inode of the subvolume that is sent.
    ///
    /// # Errors
    /// It can't be read.
    fn flags_of(&mut self, inode: u64) -> io::Result<u64>;
}

/// A stream, completed.
#[derive(Debug)]
pub struct Completed<R, F> {
    stream: R,
    flags: F,
    state: State,
    /// `[at, end)` of it was read and not yet looked at.
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    over: bool,
    /// So many bytes of that go out as they are.
    pass: usize,
    /// What goes out before that, from `put_at` on.
    put: Vec<u8>,
    put_at: usize,
    zeros: Option<Zeros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    /// Of protocol 2.
    Commands,
    /// Nothing is looked at any more.
    Plain,
}

/// Writes of nothing but zeros, one after the other.
#[derive(Debug)]
struct Zeros {
    path: Vec<u8>,
    start: u64,
    end: u64,
    /// The first write, while there is no other.
    only: Vec<u8>,
}

/// What a command means here.
enum Meaning {
    Made { path: Vec<u8>, inode: u64 },
    Zeros { path: Vec<u8>, start: u64, end: u64 },
    Other,
}

impl<R: Read, F: FlagsOf> Completed<R, F> {
    /// Completes `stream`.
    pub fn new(stream: R, flags: F) -> Self {
        let (buffer, put) = (vec![0; BUFFER], Vec::new());
        Self { stream, flags, state: State::Header, buffer, at: 0, end: 0, over: false, pass: 0, put, put_at: 0, zeros: None }
    }

    /// The stream that it completes.
    pub fn inner(&self) -> &R {
        &self.stream
    }

    /// Has `len` bytes ready to be looked at, or all that there are. At most [`MAX_COMMAND`].
    fn fill(&mut self, len: usize) -> io::Result<&[u8]> {
        while self.end - self.at < len && !self.over {
            if self.at == self.end || BUFFER - self.end < ROOM || BUFFER - self.at < len {
                self.buffer.copy_within(self.at..self.end, 0);
                self.end -= self.at;
                self.at = 0;
            }
            let got = self.stream.read(self.buffer.get_mut(self.end..).unwrap_or_default())?;
            self.end += got;
            self.over = got == 0;
        }
        Ok(self.ready())
    }

    fn ready(&self) -> &[u8] {
        self.buffer.get(self.at..self.end).unwrap_or_default()
    }

    /// Decides about what comes next. Afterwards something may go out, or the stream is over.
    fn step(&mut self) -> io::Result<()> {
        self.put.clear();
        self.put_at = 0;
        match self.state {
            State::Plain => self.pass = self.fill(1)?.len(),
            State::Header => {
                let header = self.fill(STREAM_HEADER)?;
                let v2 = header.get(..STREAM_HEADER).is_some_and(|header| stream_header(header) == Ok(Version::V2));
                self.pass = header.len().min(STREAM_HEADER);
                self.state = if v2 { State::Commands } else { State::Plain };
            }
            State::Commands => self.command()?,
        }
        Ok(())
    }

    fn command(&mut self) -> io::Result<()> {
        let len = match command_len(self.fill(COMMAND_HEADER)?, MAX_COMMAND) {
            Ok(Some(len)) if self.fill(len)?.len() >= len => len,
            // The end, or no command of a kernel that we know: the rest goes to the receiver as it is.
            _ => {
                self.put_zeros();
                self.state = State::Plain;
                return Ok(());
            }
        };
        match meaning(self.ready().get(..len).unwrap_or_default()) {
            Meaning::Zeros { path, start, end } => {
                match &mut self.zeros {
                    Some(run) if run.path == path && run.end == start => {
                        run.end = end;
                        run.only = Vec::new();
                    }
                    _ => {
                        let only = self.ready().get(..len).unwrap_or_default().to_vec();
                        self.put_zeros();
                        self.zeros = Some(Zeros { path, start, end, only });
                    }
                }
                self.at += len;
            }
            Meaning::Made { path, inode } => {
                self.put_zeros();
                self.put_made(len, &path, inode)?;
            }
            Meaning::Other => {
                self.put_zeros();
                self.pass = len;
            }
        }
        Ok(())
    }

    /// A command that makes something, and the flags of what it makes.
    fn put_made(&mut self, len: usize, path: &[u8], inode: u64) -> io::Result<()> {
        let flags = self.flags.flags_of(inode)? & SAID;
        if flags == 0 {
            self.pass = len;
            return Ok(());
        }
        self.put.extend_from_slice(self.buffer.get(self.at..self.at + len).unwrap_or_default());
        self.at += len;
        put(&mut self.put, CommandKind::Fileattr, &[(attribute::PATH, path), (attribute::FILEATTR, &flags.to_le_bytes())]);
        Ok(())
    }

    /// Ends a run of zeros.
    fn put_zeros(&mut self) {
        let Some(run) = self.zeros.take() else { return };
        let len = run.end - run.start;
        if len < SHORT && !run.only.is_empty() {
            self.put.extend_from_slice(&run.only);
            return;
        }
        let hole = [
            (attribute::PATH, run.path.as_slice()),
            (attribute::FALLOCATE_MODE, &PUNCH.to_le_bytes()),
            (attribute::FILE_OFFSET, &run.start.to_le_bytes()),
            (attribute::SIZE, &len.to_le_bytes()),
        ];
        put(&mut self.put, CommandKind::Fallocate, &hole);
        let last = (run.end - 1).to_le_bytes();
        put(&mut self.put, CommandKind::Write, &[(attribute::PATH, &run.path), (attribute::FILE_OFFSET, &last), (attribute::DATA, &[0])]);
    }
}

/// What a whole command means here. One that can't be read is the receiver's to refuse.
fn meaning(command: &[u8]) -> Meaning {
    let kind = kind_of(command);
    if kind == Some(CommandKind::Subvol) {
        return Meaning::Made { path: Vec::new(), inode: ROOT };
    }
    if !matches!(kind, Some(CommandKind::Write | CommandKind::Mkfile | CommandKind::Mkdir)) {
        return Meaning::Other;
    }
    let Some(attributes) = command.get(COMMAND_HEADER..).and_then(|payload| Attributes::read(payload, Version::V2).ok()) else {
        return Meaning::Other;
    };
    if kind == Some(CommandKind::Write) {
        return match zeros(&attributes) {
            Some((path, start, end)) => Meaning::Zeros { path: path.to_vec(), start, end },
            None => Meaning::Other,
        };
    }
    match (attributes.bytes(attribute::PATH), attributes.u64(attribute::INODE)) {
        (Ok(path), Ok(inode)) => Meaning::Made { path: path.to_vec(), inode },
        _ => Meaning::Other,
    }
}

/// Path and range of a write of zeros alone.
fn zeros<'a>(write: &Attributes<'a>) -> Option<(&'a [u8], u64, u64)> {
    let (path, start, data) =
        (write.bytes(attribute::PATH).ok()?, write.offset(attribute::FILE_OFFSET).ok()?, write.bytes(attribute::DATA).ok()?);
    let end = start.checked_add(data.len() as u64)?;
    (!data.is_empty() && is_zero(data)).then_some((path, start, end))
}

/// Adds a command of protocol 2, whose data has no length.
fn put(out: &mut Vec<u8>, kind: CommandKind, attributes: &[(usize, &[u8])]) {
    let start = out.len();
    out.extend_from_slice(&[0; COMMAND_HEADER]);
    for &(number, value) in attributes {
        // Numbers are below 36, values here no longer than a path.
        out.extend_from_slice(&u16::try_from(number).unwrap_or(0).to_le_bytes());
        if number != attribute::DATA {
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        }
        out.extend_from_slice(value);
    }
    let Some(command) = out.get_mut(start..) else { return };
    let len = u32::try_from(command.len() - COMMAND_HEADER).unwrap_or(0);
    for (to, from) in command.iter_mut().zip(len.to_le_bytes().into_iter().chain((kind as u16).to_le_bytes())) {
        *to = from;
    }
    let sum = checksum(command).to_le_bytes();
    for (to, from) in command.iter_mut().skip(6).zip(sum) {
        *to = from;
    }
}

impl<R: Read, F: FlagsOf> Read for Completed<R, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(from) = self.put.get(self.put_at..).filter(|put| !put.is_empty()) {
                let n = copy(from, buf);
                self.put_at += n;
                return Ok(n);
            }
            if self.pass > 0 {
                let n = copy(self.ready().get(..self.pass).unwrap_or_default(), buf);
                self.at += n;
                self.pass -= n;
                return Ok(n);
            }
            if self.over && self.at == self.end && self.zeros.is_none() {
                return Ok(0);
            }
            self.step()?;
        }
    }
}

/// As much of `from` as there is room for.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let n = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..n), from.get(..n)) {
        to.copy_from_slice(from);
    }
    n
}

#[cfg(test)]
#[path = "complete_tests.rs"]
mod tests;
