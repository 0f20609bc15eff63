//! The commands of a btrfs send stream, protocol 1 and 2, as values whose every part is within its bounds. Pure.
//!
//! `apply` gets a [`Command`] that borrows from the bytes it was fed; `frame` cut them. Lengths, numbers and paths are
//! checked here, before anything is done with them.

use super::error::Cause;
use super::frame::{Attributes, COMMAND_HEADER, MAX_OFFSET, attribute, bounded, checksum};
pub use super::frame::{Time, Version};
use super::path::StreamPath;

/// Largest amount of data that one encoded write may hold or stand for: `BTRFS_MAX_COMPRESSED`, `BTRFS_MAX_UNCOMPRESSED`.
pub const MAX_ENCODED: u64 = 128 << 10;

/// `XATTR_SIZE_MAX`.
const MAX_XATTR: usize = 64 << 10;
/// A symlink's target is at most a path; btrfs keeps it in a leaf.
const MAX_TARGET: usize = super::path::MAX_PATH;

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
    /// `inode` is its number at the sender.
    Mkfile {
        path: StreamPath<'a>,
        inode: Option<u64>,
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
    /// Of a stream without data: this range is to be had from the sender's file.
    UpdateExtent {
        path: StreamPath<'a>,
        offset: u64,
        len: u64,
    },
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
            Self::Subvol { .. } | Self::Snapshot { .. } | Self::End | Self::EnableVerity => [None; 2],
            Self::Mkfile { path, .. }
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
            | Self::UpdateExtent { path, .. }
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

/// The kind of the command in `bytes`, if it has a header and a known number; for error messages.
pub fn kind_of(bytes: &[u8]) -> Option<CommandKind> {
    let [_, _, _, _, a, b, ..] = *bytes.first_chunk::<COMMAND_HEADER>()?;
    CommandKind::from_number(u16::from_le_bytes([a, b]))
}

/// Reads one whole command, as long as [`super::frame::command_len`] said.
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
        CommandKind::Mkfile => {
            Command::Mkfile { path: path()?, inode: attributes.get(a::INODE).map(|_| attributes.u64(a::INODE)).transpose()? }
        }
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
        CommandKind::UpdateExtent => decode_update_extent(path()?, attributes)?,
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

fn decode_update_extent<'a>(path: StreamPath<'a>, attributes: &Attributes<'a>) -> Result<Command<'a>, Cause> {
    let offset = attributes.offset(attribute::FILE_OFFSET)?;
    let len = attributes.offset(attribute::SIZE)?;
    check_range(offset, len)?;
    Ok(Command::UpdateExtent { path, offset, len })
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
}
