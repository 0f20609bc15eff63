//! Sharing of extents between files, with a bounded copy where sharing is impossible. For `apply` alone.

use std::os::fd::OwnedFd;

use rustix::fs::{SeekFrom, copy_file_range, fstat, seek};
use rustix::io::Errno;

use crate::btrfs::encoded::clone_range;

/// Where a clone comes from.
pub(super) enum Source {
    /// The file that is written.
    Same,
    /// Another one, opened for reading.
    Other(OwnedFd),
}

/// Makes `dst` share `len` bytes at `from` of `source`, at `to`. On failure says which call it was.
pub(super) fn clone_data(dst: &OwnedFd, source: &Source, from: u64, len: u64, to: u64) -> Result<(), (&'static str, Errno)> {
    let src = match source {
        Source::Same => dst,
        Source::Other(fd) => fd,
    };
    match clone_range(dst, src, from, len, to) {
        // One of them is NOCOW and the other is not, or the sender's sectors are smaller: same bytes, not shared.
        Err(Errno::INVAL) => copy(dst, src, from, len, to).map_err(|errno| ("copy_file_range", errno)),
        result => result.map_err(|errno| ("FICLONERANGE", errno)),
    }
}

/// Copies what is data, so that the work is bounded by what lies on the disk and not by a length in the stream. Only for
/// ranges that are there, and, for holes, only where nothing is in `dst`.
fn copy(dst: &OwnedFd, src: &OwnedFd, from: u64, len: u64, to: u64) -> Result<(), Errno> {
    let size = |fd| fstat(fd).map(|stat| u64::try_from(stat.st_size).unwrap_or(0));
    let end = from.checked_add(len).ok_or(Errno::OVERFLOW)?;
    if end > size(src)? || to < size(dst)? || std::ptr::eq(dst, src) {
        return Err(Errno::INVAL);
    }
    let mut at = from;
    while at < end {
        let data = match seek(src, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let hole = seek(src, SeekFrom::Hole(data))?.min(end);
        at = data;
        while at < hole {
            let (mut read, mut write) = (at, to + (at - from));
            let chunk = usize::try_from(hole - at).unwrap_or(usize::MAX).min(1 << 30);
            match copy_file_range(src, Some(&mut read), dst, Some(&mut write), chunk)? {
                0 => return Err(Errno::IO),
                copied => at += copied as u64,
            }
        }
    }
    let target = to + len;
    if size(dst)? < target {
        rustix::fs::ftruncate(dst, target)?;
    }
    Ok(())
}
