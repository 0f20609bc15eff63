//! Two ioctls that `stream` needs and rustix has no safe form of: clone a range, write an extent that is already compressed.
//!
//! Beside `ioctl.rs`, and like it the only kind of place where `unsafe` is allowed: `stream::apply` calls these.

#![allow(unsafe_code, reason = "ioctls; each block says why it holds")]

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Result;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// `BTRFS_IOCTL_MAGIC`, which `FICLONERANGE` shares.
const MAGIC: u8 = 0x94;
const FICLONERANGE: Opcode = opcode::write::<CloneRange>(MAGIC, 13);
const ENCODED_WRITE: Opcode = opcode::write::<EncodedArgs>(MAGIC, 64);

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// `struct btrfs_ioctl_encoded_io_args` of `linux/btrfs.h`.
#[repr(C)]
struct EncodedArgs<'a> {
    iov: *const IoSlice<'a>,
    iovcnt: usize,
    offset: i64,
    flags: u64,
    len: u64,
    unencoded_len: u64,
    unencoded_offset: u64,
    compression: u32,
    encryption: u32,
    reserved: [u8; 64],
}

/// Where an encoded write goes and what its bytes stand for; the fields are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedExtent {
    /// Offset in the file; a multiple of the sector size.
    pub offset: i64,
    /// Bytes of the file that are written.
    pub len: u64,
    /// Bytes when decompressed, at most 128 KiB.
    pub unencoded_len: u64,
    /// Where in those the file's bytes start.
    pub unencoded_offset: u64,
    /// `BTRFS_ENCODED_IO_COMPRESSION_*`, not 0.
    pub compression: u32,
}

/// Makes `len` bytes of `dst` at `dst_offset` share the extents of `src` at `src_offset`. A `len` of 0 means "to the end".
///
/// # Errors
/// As `ioctl_ficlonerange(2)`: `EINVAL` for ranges that are not aligned or not there, `EXDEV`, `ENOSPC`.
pub fn clone_range(dst: impl AsFd, src: impl AsFd, src_offset: u64, len: u64, dst_offset: u64) -> Result<()> {
    let src_fd = i64::from(src.as_fd().as_raw_fd());
    let range = CloneRange { src_fd, src_offset, src_length: len, dest_offset: dst_offset };
    // SAFETY: FICLONERANGE reads one `struct file_clone_range`, whose layout `CloneRange` has; `src` outlives the call.
    unsafe { ioctl(dst, Setter::<FICLONERANGE, _>::new(range)) }
}

/// Writes `data`, already compressed, as one extent of `fd`. The kernel does not look into the data.
///
/// # Errors
/// As the kernel gives them: `EINVAL` for lengths that don't fit or are not aligned, `EPERM` without `CAP_SYS_ADMIN`,
/// `ENOTTY` on kernels before 5.18 and other filesystems.
pub fn encoded_write(fd: impl AsFd, extent: &EncodedExtent, data: &[u8]) -> Result<()> {
    let slices = [IoSlice::new(data)];
    let args = EncodedArgs {
        iov: slices.as_ptr(),
        iovcnt: slices.len(),
        offset: extent.offset,
        flags: 0,
        len: extent.len,
        unencoded_len: extent.unencoded_len,
        unencoded_offset: extent.unencoded_offset,
        compression: extent.compression,
        encryption: 0,
        reserved: [0; 64],
    };
    // SAFETY: the ioctl reads one `struct btrfs_ioctl_encoded_io_args`, whose layout `EncodedArgs` has, and the bytes its
    // iovec names; `IoSlice` is ABI-compatible with `struct iovec`, and `slices` and `data` outlive the call.
    unsafe { ioctl(fd, Setter::<ENCODED_WRITE, _>::new(args)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<CloneRange>(), 32);
        assert_eq!(size_of::<EncodedArgs<'_>>(), 128);
    }
}
