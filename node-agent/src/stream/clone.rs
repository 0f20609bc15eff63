//! Sharing of extents between files, with a bounded copy where the kernel won't share. For `apply` alone.
//!
//! A clone that was one at the sender need not be one here: of the two files one may be NOCOW and the other not, or one of them longer than
//! at the sender, whose own cut comes later in the stream.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, fstat, ftruncate, seek};
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
        // Same bytes, not shared.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::TXTBSY) => {
            Copy { dst, src, from, to, len }.run().map_err(|errno| ("copy_file_range", errno))
        }
        result => result.map_err(|errno| ("FICLONERANGE", errno)),
    }
}

/// Makes `[start, end)` of a file a hole, and the file as long as that at least.
pub(super) fn make_hole(fd: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
    let size = size(fd)?;
    let inside = end.min(size).saturating_sub(start);
    if inside > 0 {
        fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, inside)?;
    }
    if end > size { ftruncate(fd, end) } else { Ok(()) }
}

fn size(fd: &OwnedFd) -> Result<u64, Errno> {
    fstat(fd).map(|stat| u64::try_from(stat.st_size).unwrap_or(0))
}

/// A copy of what is data, holes as holes: the work is bounded by what lies on the disk, and not by a length in the stream; the memory by the
/// kernel's pipe.
struct Copy<'a> {
    dst: &'a OwnedFd,
    src: &'a OwnedFd,
    from: u64,
    to: u64,
    len: u64,
}

impl Copy<'_> {
    fn run(&self) -> Result<(), Errno> {
        let end = self.from.checked_add(self.len).ok_or(Errno::OVERFLOW)?;
        let overlaps = std::ptr::eq(self.dst, self.src) && self.from.abs_diff(self.to) < self.len;
        if end > size(self.src)? || overlaps {
            return Err(Errno::INVAL);
        }
        let mut at = self.from;
        while at < end {
            let data = match seek(self.src, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                Err(Errno::NXIO) => end,
                Err(errno) => return Err(errno),
            };
            if data > at {
                make_hole(self.dst, self.there(at), self.there(data))?;
            }
            if data == end {
                break;
            }
            at = seek(self.src, SeekFrom::Hole(data))?.min(end);
            self.bytes(data, at)?;
        }
        Ok(())
    }

    /// Where an offset in the source belongs.
    fn there(&self, at: u64) -> u64 {
        self.to + (at - self.from)
    }

    fn bytes(&self, mut at: u64, end: u64) -> Result<(), Errno> {
        while at < end {
            let (mut read, mut write) = (at, self.there(at));
            let chunk = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::io::retry_on_intr(|| copy_file_range(self.src, Some(&mut read), self.dst, Some(&mut write), chunk))? {
                0 => return Err(Errno::IO),
                copied => at += copied as u64,
            }
        }
        Ok(())
    }
}

/// The same bytes of `from`, all of them, in `to`, which is empty.
pub(super) fn copy_all(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    Copy { dst: to, src: from, from: 0, to: 0, len: size(from)? }.run()
}
