//! The framing of a send stream: header, lengths, checksums, attributes. Pure, and nothing is kept.
//!
//! `apply` cuts what it is fed with [`stream_header`] and [`command_len`]; `parse` reads commands from the attributes.
//! Facts are those of the kernel's `fs/btrfs/send.c` and the btrfs documentation, "Send stream format": little-endian; a
//! command is length (4), type (2), CRC (4) and attributes; the CRC is CRC-32C started with 0 and not inverted, over the
//! command with its CRC field zero; an attribute is type (2), length (2), value, but `DATA` of protocol 2 has no length and
//! takes the rest of its command.
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
const MAGIC: &[u8; 13] = b"btrfs-stream\0";
/// File offsets are signed in the kernel.
pub(super) const MAX_OFFSET: u64 = i64::MAX as u64;
/// Version of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// Linux 3.6 and later.
    V1,
    /// Linux 6.0 and later: large writes, encoded writes.
    V2,
}

/// A point in time: seconds since 1970 and nanoseconds below 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanoseconds: u32,
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

/// CRC-32C as btrfs uses it, of one whole command whose CRC field counts as zero.
pub fn checksum(command: &[u8]) -> u32 {
    // The crate inverts before and after, the kernel does neither: undo both.
    let (head, rest) = command.split_at(command.len().min(6));
    let rest = rest.get(4..).unwrap_or_default();
    let crc = crc32c::crc32c_append(u32::MAX, head);
    !crc32c::crc32c_append(crc32c::crc32c_append(crc, &[0; 4]), rest)
}

/// Numbers of the attributes.
pub(super) mod attribute {
    pub const UUID: usize = 1;
    pub const CTRANSID: usize = 2;
    pub const INODE: usize = 3;
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
pub(super) struct Attributes<'a>([Option<&'a [u8]>; attribute::COUNT]);

impl<'a> Attributes<'a> {
    pub fn read(mut rest: &'a [u8], version: Version) -> Result<Self, Cause> {
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

    pub fn get(&self, number: usize) -> Option<&'a [u8]> {
        self.0.get(number).copied().flatten()
    }

    pub fn bytes(&self, number: usize) -> Result<&'a [u8], Cause> {
        self.get(number).ok_or(Cause::Malformed("an attribute is missing"))
    }

    pub fn fixed<const N: usize>(&self, number: usize) -> Result<[u8; N], Cause> {
        self.bytes(number)?.try_into().map_err(|_| Cause::Malformed("an attribute has the wrong size"))
    }

    pub fn u64(&self, number: usize) -> Result<u64, Cause> {
        self.fixed(number).map(u64::from_le_bytes)
    }

    pub fn u32(&self, number: usize) -> Result<u32, Cause> {
        self.fixed(number).map(u32::from_le_bytes)
    }

    /// A 64-bit attribute whose value must fit 32 bits.
    pub fn narrow(&self, number: usize) -> Result<u32, Cause> {
        u32::try_from(self.u64(number)?).map_err(|_| Cause::Malformed("a value does not fit 32 bits"))
    }

    /// Owner or group. The highest value means "leave it" to the kernel and is no owner.
    pub fn owner(&self, number: usize) -> Result<u32, Cause> {
        match self.narrow(number)? {
            u32::MAX => Err(Cause::Malformed("owner 2^32-1")),
            id => Ok(id),
        }
    }

    pub fn offset(&self, number: usize) -> Result<u64, Cause> {
        match self.u64(number)? {
            offset if offset <= MAX_OFFSET => Ok(offset),
            _ => Err(Cause::Malformed("a file offset or size of 2^63 or more")),
        }
    }

    pub fn time(&self, number: usize) -> Result<Time, Cause> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = self.fixed::<12>(number)?;
        let seconds = i64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        match u32::from_le_bytes([n0, n1, n2, n3]) {
            // Values above have a meaning of their own in utimensat.
            nanoseconds @ 0..=999_999_999 => Ok(Time { seconds, nanoseconds }),
            _ => Err(Cause::Malformed("a time with 10^9 nanoseconds or more")),
        }
    }

    /// A path that may be the root.
    pub fn any_path(&self, number: usize) -> Result<StreamPath<'a>, Cause> {
        StreamPath::new(self.bytes(number)?)
    }

    /// A path that names something in the root or below.
    pub fn path(&self, number: usize) -> Result<StreamPath<'a>, Cause> {
        match self.any_path(number)? {
            path if path.is_root() => Err(Cause::Path("this command can't be about the root")),
            path => Ok(path),
        }
    }

    pub fn xattr_name(&self) -> Result<&'a [u8], Cause> {
        let name = bounded("xattr name", self.bytes(attribute::XATTR_NAME)?, MAX_NAME)?;
        if name.is_empty() || name.contains(&0) {
            return Err(Cause::Malformed("an xattr name is empty or holds a NUL"));
        }
        Ok(name)
    }

    pub fn optional_mode(&self) -> Result<Option<u32>, Cause> {
        self.get(attribute::MODE).map(|_| self.narrow(attribute::MODE)).transpose()
    }
}

pub(super) fn bounded<'a>(what: &'static str, bytes: &'a [u8], max: usize) -> Result<&'a [u8], Cause> {
    if bytes.len() > max {
        return Err(Cause::TooLong { what, length: bytes.len() as u64, max: max as u64 });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked_before_anything_is_kept() {
        let mut huge = u32::MAX.to_le_bytes().to_vec();
        huge.extend([0; 6]);
        assert!(matches!(command_len(&huge, MAX_COMMAND), Err(Cause::TooLong { .. })));
        assert_eq!(command_len(&huge[..9], MAX_COMMAND), Ok(None));
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
