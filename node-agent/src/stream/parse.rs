//! The bytes of a btrfs send stream, protocol 1 and 2: header, commands, attributes. Pure: no I/O, nothing is kept.
//!
//! `apply` cuts what it is fed with [`stream_header`] and [`command_len`] and gets a [`Command`] that borrows from the
//! bytes. Facts are those of the kernel's `fs/btrfs/send.c` and the btrfs documentation, "Send stream format":
//! little-endian; a command is length (4), type (2), CRC (4) and attributes; the CRC is CRC-32C started with 0 and not
//! inverted, over the command with its CRC field zero; an attribute is type (2), length (2), value, but `DATA` of
//! protocol 2 has no length and takes the rest of its command.
//!
//! Bounds: protocol 1 sends at most 64 KiB in a command, protocol 2 at most 16 KiB of attributes plus 128 KiB of data (an
//! extent's largest compressed size), rounded up to a page: 192 KiB with the largest pages. [`MAX_COMMAND`] leaves room
//! for a kernel with larger extents, and bounds what a partial command can make us keep.

use super::error::Cause;
use super::path::{MAX_NAME, StreamPath};

/// Bytes of the stream header: magic and version.
pub const STREAM_HEADER: usize = MAGIC.len() + 4;
/// Bytes of a command's header: length, type, CRC.
pub const COMMAND_HEADER: usize = 10;
/// Largest command, header and attributes, that is taken (see the module's text).
pub const MAX_COMMAND: usize = 1 << 20;
/// Largest amount of data that one encoded write may hold or stand for: `BTRFS_MAX_COMPRESSED`, `BTRFS_MAX_UNCOMPRESSED`.
pub const MAX_ENCODED: u64 = 128 << 10;

const MAGIC: &[u8; 13] = b"btrfs-stream\0";
/// File offsets are signed in the kernel.
const MAX_OFFSET: u64 = i64::MAX as u64;
/// `XATTR_SIZE_MAX`.
const MAX_XATTR: usize = 64 << 10;
/// A symlink's target is at most a path; btrfs keeps it in a leaf.
const MAX_TARGET: usize = super::path::MAX_PATH;

/// Version of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// Linux 3.6 and later.
    V1,
    /// Linux 6.0 and later: large writes, encoded writes.
    V2,
}

/// Type of a command, as numbered by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum CommandKind {
    Subvol = 1,
    Snapshot = 2,
    Mkfile = 3,
    Mkdir = 4,
    Mknod = 5,
    Mkfifo = 6,
    Mksock = 7,
    Symlink = 8,
    Rename = 9,
    Link = 10,
    Unlink = 11,
    Rmdir = 12,
    SetXattr = 13,
    RemoveXattr = 14,
    Write = 15,
    Clone = 16,
    Truncate = 17,
    Chmod = 18,
    Chown = 19,
    Utimes = 20,
    End = 21,
    UpdateExtent = 22,
    Fallocate = 23,
    Fileattr = 24,
    EncodedWrite = 25,
    EnableVerity = 26,
}

/// All kinds, in the order of their numbers from 1.
const KINDS: [CommandKind; 26] = {
    use CommandKind as K;
    [
        K::Subvol,
        K::Snapshot,
        K::Mkfile,
        K::Mkdir,
        K::Mknod,
        K::Mkfifo,
        K::Mksock,
        K::Symlink,
        K::Rename,
        K::Link,
        K::Unlink,
        K::Rmdir,
        K::SetXattr,
        K::RemoveXattr,
        K::Write,
        K::Clone,
        K::Truncate,
        K::Chmod,
        K::Chown,
        K::Utimes,
        K::End,
        K::UpdateExtent,
        K::Fallocate,
        K::Fileattr,
        K::EncodedWrite,
        K::EnableVerity,
    ]
};

impl CommandKind {
    /// The kind with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        KINDS.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// A point in time: seconds since 1970 and nanoseconds below 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// A 16-byte subvolume UUID.
pub type Uuid = [u8; 16];

/// One command. Everything in it is within its bounds; paths are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are the kernel's attributes of the same names")]
pub enum Command<'a> {
    /// Start of a full stream.
    Subvol {
        uuid: Uuid,
        ctransid: u64,
    },
    /// Start of an increment.
    Snapshot {
        uuid: Uuid,
        ctransid: u64,
        parent: Uuid,
        parent_ctransid: u64,
    },
    Mkfile {
        path: StreamPath<'a>,
    },
    Mkdir {
        path: StreamPath<'a>,
    },
    /// `mode` with its type bits, `rdev` as the kernel encodes it in 32 bits.
    Mknod {
        path: StreamPath<'a>,
        mode: u32,
        rdev: u32,
    },
    Mkfifo {
        path: StreamPath<'a>,
        mode: Option<u32>,
    },
    Mksock {
        path: StreamPath<'a>,
        mode: Option<u32>,
    },
    Symlink {
        path: StreamPath<'a>,
        target: &'a [u8],
    },
    Rename {
        path: StreamPath<'a>,
        to: StreamPath<'a>,
    },
    /// `path` becomes another name of `existing`.
    Link {
        path: StreamPath<'a>,
        existing: StreamPath<'a>,
    },
    Unlink {
        path: StreamPath<'a>,
    },
    Rmdir {
        path: StreamPath<'a>,
    },
    SetXattr {
        path: StreamPath<'a>,
        name: &'a [u8],
        value: &'a [u8],
    },
    RemoveXattr {
        path: StreamPath<'a>,
        name: &'a [u8],
    },
    /// `offset + data.len()` is a valid file offset.
    Write {
        path: StreamPath<'a>,
        offset: u64,
        data: &'a [u8],
    },
    Clone {
        path: StreamPath<'a>,
        offset: u64,
        len: u64,
        uuid: Uuid,
        source: StreamPath<'a>,
        source_offset: u64,
    },
    Truncate {
        path: StreamPath<'a>,
        size: u64,
    },
    /// Permission bits only, at most `07777`.
    Chmod {
        path: StreamPath<'a>,
        mode: u32,
    },
    Chown {
        path: StreamPath<'a>,
        uid: u32,
        gid: u32,
    },
    Utimes {
        path: StreamPath<'a>,
        atime: Time,
        mtime: Time,
    },
    End,
    /// Of a stream without data.
    UpdateExtent,
    Fallocate {
        path: StreamPath<'a>,
        mode: u32,
        offset: u64,
        len: u64,
    },
    /// `BTRFS_INODE_*` bits.
    Fileattr {
        path: StreamPath<'a>,
        flags: u64,
    },
    EncodedWrite {
        path: StreamPath<'a>,
        write: Encoded<'a>,
    },
    EnableVerity,
}

impl<'a> Command<'a> {
    /// The paths in the work subvolume that it changes something at, at most two.
    pub(super) fn paths(&self) -> [Option<StreamPath<'a>>; 2] {
        match *self {
            Self::Subvol { .. } | Self::Snapshot { .. } | Self::End | Self::UpdateExtent | Self::EnableVerity => [None; 2],
            Self::Mkfile { path }
            | Self::Mkdir { path }
            | Self::Mknod { path, .. }
            | Self::Mkfifo { path, .. }
            | Self::Mksock { path, .. }
            | Self::Symlink { path, .. }
            | Self::Unlink { path }
            | Self::Rmdir { path }
            | Self::SetXattr { path, .. }
            | Self::RemoveXattr { path, .. }
            | Self::Write { path, .. }
            | Self::Clone { path, .. }
            | Self::Truncate { path, .. }
            | Self::Chmod { path, .. }
            | Self::Chown { path, .. }
            | Self::Utimes { path, .. }
            | Self::Fallocate { path, .. }
            | Self::Fileattr { path, .. }
            | Self::EncodedWrite { path, .. } => [Some(path), None],
            Self::Rename { path, to } => [Some(path), Some(to)],
            Self::Link { path, existing } => [Some(path), Some(existing)],
        }
    }
}

/// An extent as it lies compressed on the sender's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded<'a> {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes of the file that it covers.
    pub file_len: u64,
    /// Bytes when decompressed, at most [`MAX_ENCODED`].
    pub unencoded_len: u64,
    /// Where in those the file's bytes start.
    pub unencoded_offset: u64,
    /// `BTRFS_ENCODED_IO_COMPRESSION_*`, not 0.
    pub compression: u32,
    /// The compressed bytes.
    pub data: &'a [u8],
}

/// Reads the stream header from the first [`STREAM_HEADER`] bytes.
///
/// # Errors
/// `Malformed` if it is none, `Unsupported` for a version that is not 1 or 2.
pub fn stream_header(bytes: &[u8]) -> Result<Version, Cause> {
    let version = bytes
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.first_chunk::<4>())
        .map(|version| u32::from_le_bytes(*version))
        .ok_or(Cause::Malformed("this is no btrfs send stream"))?;
    match version {
        1 => Ok(Version::V1),
        2 => Ok(Version::V2),
        _ => Err(Cause::Unsupported("send stream versions other than 1 and 2")),
    }
}

/// Whole length, header included, of the command that `bytes` start with; `None` while its header is incomplete.
///
/// # Errors
/// `TooLong` above `max`: nothing has been kept for it by then.
pub fn command_len(bytes: &[u8], max: usize) -> Result<Option<usize>, Cause> {
    let Some(header) = bytes.first_chunk::<COMMAND_HEADER>() else { return Ok(None) };
    let [a, b, c, d, ..] = *header;
    let len = u64::from(u32::from_le_bytes([a, b, c, d])) + COMMAND_HEADER as u64;
    match usize::try_from(len) {
        Ok(len) if len <= max => Ok(Some(len)),
        _ => Err(Cause::TooLong { what: "command", length: len, max: max as u64 }),
    }
}

/// The kind of the command in `bytes`, if it has a header and a known number; for error messages.
pub fn kind_of(bytes: &[u8]) -> Option<CommandKind> {
    let [_, _, _, _, a, b, ..] = *bytes.first_chunk::<COMMAND_HEADER>()?;
    CommandKind::from_number(u16::from_le_bytes([a, b]))
}

/// CRC-32C as btrfs uses it, of one whole command whose CRC field counts as zero.
pub fn checksum(command: &[u8]) -> u32 {
    // The crate inverts before and after, the kernel does neither: undo both.
    let (head, rest) = command.split_at(command.len().min(6));
    let rest = rest.get(4..).unwrap_or_default();
    let crc = crc32c::crc32c_append(u32::MAX, head);
    !crc32c::crc32c_append(crc32c::crc32c_append(crc, &[0; 4]), rest)
}

/// Reads one whole command, as long as [`command_len`] said.
///
/// # Errors
/// Everything that is not exactly right in it.
pub fn command(bytes: &[u8], version: Version) -> Result<Command<'_>, Cause> {
    let (header, payload) = bytes.split_first_chunk::<COMMAND_HEADER>().ok_or(Cause::Malformed("a command ends in its header"))?;
    let [_, _, _, _, k0, k1, c0, c1, c2, c3] = *header;
    if checksum(bytes) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(Cause::Checksum);
    }
    let kind = CommandKind::from_number(u16::from_le_bytes([k0, k1])).ok_or(Cause::Malformed("unknown command"))?;
    if version == Version::V1 && kind as u16 > CommandKind::UpdateExtent as u16 {
        return Err(Cause::Malformed("a command of protocol 2 in a stream of protocol 1"));
    }
    decode(kind, &Attributes::read(payload, version)?)
}

/// Numbers of the attributes.
mod attribute {
    pub const UUID: usize = 1;
    pub const CTRANSID: usize = 2;
    pub const SIZE: usize = 4;
    pub const MODE: usize = 5;
    pub const UID: usize = 6;
    pub const GID: usize = 7;
    pub const RDEV: usize = 8;
    pub const MTIME: usize = 10;
    pub const ATIME: usize = 11;
    pub const XATTR_NAME: usize = 13;
    pub const XATTR_DATA: usize = 14;
    pub const PATH: usize = 15;
    pub const PATH_TO: usize = 16;
    pub const PATH_LINK: usize = 17;
    pub const FILE_OFFSET: usize = 18;
    pub const DATA: usize = 19;
    pub const CLONE_UUID: usize = 20;
    pub const CLONE_CTRANSID: usize = 21;
    pub const CLONE_PATH: usize = 22;
    pub const CLONE_OFFSET: usize = 23;
    pub const CLONE_LEN: usize = 24;
    pub const FALLOCATE_MODE: usize = 25;
    pub const FILEATTR: usize = 26;
    pub const UNENCODED_FILE_LEN: usize = 27;
    pub const UNENCODED_LEN: usize = 28;
    pub const UNENCODED_OFFSET: usize = 29;
    pub const COMPRESSION: usize = 30;
    pub const ENCRYPTION: usize = 31;
    /// One more than the highest number of protocol 3, whose attributes are known but of no use.
    pub const COUNT: usize = 36;
}

/// The attributes of one command, by number. Each may be there once.
struct Attributes<'a>([Option<&'a [u8]>; attribute::COUNT]);

impl<'a> Attributes<'a> {
    fn read(mut rest: &'a [u8], version: Version) -> Result<Self, Cause> {
        let mut found = [None; attribute::COUNT];
        while !rest.is_empty() {
            let (number, after) = rest.split_first_chunk::<2>().ok_or(Cause::Malformed("an attribute ends in its header"))?;
            let number = usize::from(u16::from_le_bytes(*number));
            let value;
            if number == attribute::DATA && version == Version::V2 {
                (value, rest) = (after, &[][..]);
            } else {
                let (len, after) = after.split_first_chunk::<2>().ok_or(Cause::Malformed("an attribute ends in its header"))?;
                (value, rest) = after
                    .split_at_checked(usize::from(u16::from_le_bytes(*len)))
                    .ok_or(Cause::Malformed("an attribute is longer than its command"))?;
            }
            match found.get_mut(number) {
                Some(slot @ None) if number != 0 => *slot = Some(value),
                Some(Some(_)) => return Err(Cause::Malformed("an attribute is there twice")),
                _ => return Err(Cause::Malformed("unknown attribute")),
            }
        }
        Ok(Self(found))
    }

    fn get(&self, number: usize) -> Option<&'a [u8]> {
        self.0.get(number).copied().flatten()
    }

    fn bytes(&self, number: usize) -> Result<&'a [u8], Cause> {
        self.get(number).ok_or(Cause::Malformed("an attribute is missing"))
    }

    fn fixed<const N: usize>(&self, number: usize) -> Result<[u8; N], Cause> {
        self.bytes(number)?.try_into().map_err(|_| Cause::Malformed("an attribute has the wrong size"))
    }

    fn u64(&self, number: usize) -> Result<u64, Cause> {
        self.fixed(number).map(u64::from_le_bytes)
    }

    fn u32(&self, number: usize) -> Result<u32, Cause> {
        self.fixed(number).map(u32::from_le_bytes)
    }

    /// A 64-bit attribute whose value must fit 32 bits.
    fn narrow(&self, number: usize) -> Result<u32, Cause> {
        u32::try_from(self.u64(number)?).map_err(|_| Cause::Malformed("a value does not fit 32 bits"))
    }

    /// Owner or group. The highest value means "leave it" to the kernel and is no owner.
    fn owner(&self, number: usize) -> Result<u32, Cause> {
        match self.narrow(number)? {
            u32::MAX => Err(Cause::Malformed("owner 2^32-1")),
            id => Ok(id),
        }
    }

    fn offset(&self, number: usize) -> Result<u64, Cause> {
        match self.u64(number)? {
            offset if offset <= MAX_OFFSET => Ok(offset),
            _ => Err(Cause::Malformed("a file offset or size of 2^63 or more")),
        }
    }

    fn time(&self, number: usize) -> Result<Time, Cause> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = self.fixed::<12>(number)?;
        let seconds = i64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        match u32::from_le_bytes([n0, n1, n2, n3]) {
            // Values above have a meaning of their own in utimensat.
            nanoseconds @ 0..=999_999_999 => Ok(Time { seconds, nanoseconds }),
            _ => Err(Cause::Malformed("a time with 10^9 nanoseconds or more")),
        }
    }

    /// A path that may be the root.
    fn any_path(&self, number: usize) -> Result<StreamPath<'a>, Cause> {
        StreamPath::new(self.bytes(number)?)
    }

    /// A path that names something in the root or below.
    fn path(&self, number: usize) -> Result<StreamPath<'a>, Cause> {
        match self.any_path(number)? {
            path if path.is_root() => Err(Cause::Path("this command can't be about the root")),
            path => Ok(path),
        }
    }

    fn xattr_name(&self) -> Result<&'a [u8], Cause> {
        let name = bounded("xattr name", self.bytes(attribute::XATTR_NAME)?, MAX_NAME)?;
        if name.is_empty() || name.contains(&0) {
            return Err(Cause::Malformed("an xattr name is empty or holds a NUL"));
        }
        Ok(name)
    }

    fn optional_mode(&self) -> Result<Option<u32>, Cause> {
        self.get(attribute::MODE).map(|_| self.narrow(attribute::MODE)).transpose()
    }
}

fn bounded<'a>(what: &'static str, bytes: &'a [u8], max: usize) -> Result<&'a [u8], Cause> {
    if bytes.len() > max {
        return Err(Cause::TooLong { what, length: bytes.len() as u64, max: max as u64 });
    }
    Ok(bytes)
}

/// Refuses a range that ends beyond the last file offset.
fn check_range(offset: u64, len: u64) -> Result<(), Cause> {
    match offset.checked_add(len) {
        Some(end) if end <= MAX_OFFSET => Ok(()),
        _ => Err(Cause::Malformed("a range ends beyond 2^63")),
    }
}

fn decode<'a>(kind: CommandKind, attributes: &Attributes<'a>) -> Result<Command<'a>, Cause> {
    use attribute as a;
    let path = || attributes.path(a::PATH);
    Ok(match kind {
        CommandKind::Subvol => Command::Subvol { uuid: attributes.fixed(a::UUID)?, ctransid: attributes.u64(a::CTRANSID)? },
        CommandKind::Snapshot => Command::Snapshot {
            uuid: attributes.fixed(a::UUID)?,
            ctransid: attributes.u64(a::CTRANSID)?,
            parent: attributes.fixed(a::CLONE_UUID)?,
            parent_ctransid: attributes.u64(a::CLONE_CTRANSID)?,
        },
        CommandKind::Mkfile => Command::Mkfile { path: path()? },
        CommandKind::Mkdir => Command::Mkdir { path: path()? },
        CommandKind::Mknod => Command::Mknod { path: path()?, mode: attributes.narrow(a::MODE)?, rdev: attributes.narrow(a::RDEV)? },
        CommandKind::Mkfifo => Command::Mkfifo { path: path()?, mode: attributes.optional_mode()? },
        CommandKind::Mksock => Command::Mksock { path: path()?, mode: attributes.optional_mode()? },
        CommandKind::Symlink => decode_symlink(path()?, attributes)?,
        CommandKind::Rename => Command::Rename { path: path()?, to: attributes.path(a::PATH_TO)? },
        CommandKind::Link => Command::Link { path: path()?, existing: attributes.path(a::PATH_LINK)? },
        CommandKind::Unlink => Command::Unlink { path: path()? },
        CommandKind::Rmdir => Command::Rmdir { path: path()? },
        CommandKind::SetXattr => Command::SetXattr {
            path: attributes.any_path(a::PATH)?,
            name: attributes.xattr_name()?,
            value: bounded("xattr value", attributes.bytes(a::XATTR_DATA)?, MAX_XATTR)?,
        },
        CommandKind::RemoveXattr => Command::RemoveXattr { path: attributes.any_path(a::PATH)?, name: attributes.xattr_name()? },
        CommandKind::Write => decode_write(path()?, attributes)?,
        CommandKind::Clone => decode_clone(path()?, attributes)?,
        CommandKind::Truncate => Command::Truncate { path: path()?, size: attributes.offset(a::SIZE)? },
        CommandKind::Chmod => match attributes.u64(a::MODE)? {
            mode if mode <= 0o7777 => Command::Chmod { path: attributes.any_path(a::PATH)?, mode: attributes.narrow(a::MODE)? },
            _ => return Err(Cause::Malformed("a mode above 07777")),
        },
        CommandKind::Chown => {
            Command::Chown { path: attributes.any_path(a::PATH)?, uid: attributes.owner(a::UID)?, gid: attributes.owner(a::GID)? }
        }
        CommandKind::Utimes => {
            Command::Utimes { path: attributes.any_path(a::PATH)?, atime: attributes.time(a::ATIME)?, mtime: attributes.time(a::MTIME)? }
        }
        CommandKind::End => Command::End,
        CommandKind::UpdateExtent => Command::UpdateExtent,
        CommandKind::Fallocate => decode_fallocate(path()?, attributes)?,
        CommandKind::Fileattr => Command::Fileattr { path: attributes.any_path(a::PATH)?, flags: attributes.u64(a::FILEATTR)? },
        CommandKind::EncodedWrite => Command::EncodedWrite { path: path()?, write: decode_encoded(attributes)? },
        CommandKind::EnableVerity => Command::EnableVerity,
    })
}

fn decode_symlink<'a>(path: StreamPath<'a>, attributes: &Attributes<'a>) -> Result<Command<'a>, Cause> {
    let target = bounded("symlink target", attributes.bytes(attribute::PATH_LINK)?, MAX_TARGET)?;
    if target.is_empty() || target.contains(&0) {
        return Err(Cause::Malformed("a symlink target is empty or holds a NUL"));
    }
    Ok(Command::Symlink { path, target })
}

fn decode_write<'a>(path: StreamPath<'a>, attributes: &Attributes<'a>) -> Result<Command<'a>, Cause> {
    let offset = attributes.offset(attribute::FILE_OFFSET)?;
    let data = attributes.bytes(attribute::DATA)?;
    check_range(offset, data.len() as u64)?;
    Ok(Command::Write { path, offset, data })
}

fn decode_clone<'a>(path: StreamPath<'a>, attributes: &Attributes<'a>) -> Result<Command<'a>, Cause> {
    let offset = attributes.offset(attribute::FILE_OFFSET)?;
    let source_offset = attributes.offset(attribute::CLONE_OFFSET)?;
    let len = attributes.offset(attribute::CLONE_LEN)?;
    check_range(offset, len)?;
    check_range(source_offset, len)?;
    Ok(Command::Clone {
        path,
        offset,
        len,
        uuid: attributes.fixed(attribute::CLONE_UUID)?,
        source: attributes.path(attribute::CLONE_PATH)?,
        source_offset,
    })
}

fn decode_fallocate<'a>(path: StreamPath<'a>, attributes: &Attributes<'a>) -> Result<Command<'a>, Cause> {
    let offset = attributes.offset(attribute::FILE_OFFSET)?;
    let len = attributes.offset(attribute::SIZE)?;
    check_range(offset, len)?;
    Ok(Command::Fallocate { path, mode: attributes.u32(attribute::FALLOCATE_MODE)?, offset, len })
}

fn decode_encoded<'a>(attributes: &Attributes<'a>) -> Result<Encoded<'a>, Cause> {
    let write = Encoded {
        offset: attributes.offset(attribute::FILE_OFFSET)?,
        file_len: attributes.u64(attribute::UNENCODED_FILE_LEN)?,
        unencoded_len: attributes.u64(attribute::UNENCODED_LEN)?,
        unencoded_offset: attributes.u64(attribute::UNENCODED_OFFSET)?,
        compression: attributes.get(attribute::COMPRESSION).map_or(Ok(0), |_| attributes.u32(attribute::COMPRESSION))?,
        data: attributes.bytes(attribute::DATA)?,
    };
    let encryption = attributes.get(attribute::ENCRYPTION).map_or(Ok(0), |_| attributes.u32(attribute::ENCRYPTION))?;
    if encryption != 0 {
        return Err(Cause::Unsupported("encrypted extents"));
    }
    if !(1..=7).contains(&write.compression) {
        return Err(Cause::Unsupported("an encoded write of an unknown compression"));
    }
    let fits = write.unencoded_len <= MAX_ENCODED
        && write.data.len() as u64 <= MAX_ENCODED
        && !write.data.is_empty()
        && write.unencoded_offset.checked_add(write.file_len).is_some_and(|end| end <= write.unencoded_len)
        && write.file_len > 0;
    if !fits {
        return Err(Cause::Malformed("the lengths of an encoded write do not fit each other"));
    }
    check_range(write.offset, write.file_len)?;
    Ok(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(number: usize, value: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(number).unwrap().to_le_bytes().to_vec();
        out.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
        out.extend(value);
        out
    }

    fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
        out.extend(kind.to_le_bytes());
        out.extend([0; 4]);
        out.extend(payload);
        let crc = checksum(&out);
        out[6..10].copy_from_slice(&crc.to_le_bytes());
        out
    }

    #[test]
    fn the_checksum_is_the_kernels() {
        // END as Linux 6.18 sends it: no payload, type 21.
        let end = [0, 0, 0, 0, 21, 0, 0x50, 0x6c, 0xc9, 0x9d];
        assert_eq!(command(&end, Version::V1), Ok(Command::End));
    }

    #[test]
    fn numbers_and_kinds_agree() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, at + 1);
        }
        assert_eq!(CommandKind::from_number(0), None);
        assert_eq!(CommandKind::from_number(27), None);
    }

    #[test]
    fn data_of_protocol_2_takes_the_rest_without_a_length() {
        let mut payload = [tlv(15, b"f"), tlv(18, &7u64.to_le_bytes())].concat();
        let v1 = [payload.clone(), tlv(19, b"data")].concat();
        payload.extend(19u16.to_le_bytes());
        payload.extend(b"data");
        let path = StreamPath::new(b"f").unwrap();
        let expected = Command::Write { path, offset: 7, data: b"data" };
        assert_eq!(command(&framed(15, &v1), Version::V1).unwrap(), expected);
        assert_eq!(command(&framed(15, &payload), Version::V2).unwrap(), expected);
    }

    #[test]
    fn a_flipped_bit_is_a_checksum_error() {
        let good = framed(20, &tlv(15, b"f"));
        for at in 4..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(command(&bad, Version::V1), Err(Cause::Checksum), "byte {at}");
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_kept() {
        let mut huge = u32::MAX.to_le_bytes().to_vec();
        huge.extend([0; 6]);
        assert!(matches!(command_len(&huge, MAX_COMMAND), Err(Cause::TooLong { .. })));
        assert_eq!(command_len(&huge[..9], MAX_COMMAND), Ok(None));
    }

    #[test]
    fn attributes_that_are_missing_doubled_cut_or_unknown_are_refused() {
        let cut = [15u16.to_le_bytes().as_slice(), &9u16.to_le_bytes(), b"f"].concat();
        for payload in [vec![], [tlv(15, b"f"), tlv(15, b"f")].concat(), cut, tlv(99, b""), tlv(0, b""), vec![15]] {
            assert!(matches!(command(&framed(3, &payload), Version::V1), Err(Cause::Malformed(_))), "{payload:?}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let f = tlv(15, b"f");
        let max = u64::MAX.to_le_bytes();
        let chown = [f.clone(), tlv(6, &u64::from(u32::MAX).to_le_bytes()), tlv(7, &0u64.to_le_bytes())].concat();
        let chmod = [f.clone(), tlv(5, &0o10_000u64.to_le_bytes())].concat();
        let truncate = [f.clone(), tlv(4, &max)].concat();
        let omit = [7u64.to_le_bytes().as_slice(), &((1u32 << 30) - 2).to_le_bytes()].concat();
        let utimes = [f.clone(), tlv(10, &omit), tlv(11, &omit)].concat();
        let write = [f, tlv(18, &(i64::MAX as u64).to_le_bytes()), tlv(19, b"x")].concat();
        for (kind, payload) in [(19, chown), (18, chmod), (17, truncate), (20, utimes), (15, write)] {
            assert!(matches!(command(&framed(kind, &payload), Version::V1), Err(Cause::Malformed(_))), "{kind}");
        }
    }

    #[test]
    fn versions_other_than_1_and_2_are_unsupported() {
        for version in [0u32, 3, u32::MAX] {
            let header = [MAGIC.as_slice(), &version.to_le_bytes()].concat();
            assert!(matches!(stream_header(&header), Err(Cause::Unsupported(_))));
        }
        assert!(matches!(stream_header(&[0; STREAM_HEADER]), Err(Cause::Malformed(_))));
    }
}
