//! Content of files: the part of [`Applier`] that writes, clones, cuts and allocates.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, ftruncate};
use rustix::io::{Errno, pwrite};

use super::ContentClass;
use super::apply::Applier;
use super::clone::{Source, clone_data, make_hole};
use super::error::Cause;
use super::parse::{Encoded, Uuid};
use super::path::StreamPath;
use super::zeros::is_zero;
use crate::btrfs::encoded::{EncodedExtent, encoded_write};

/// Write-back of a file starts each time this many bytes of it are behind.
const WRITE_BACK: u64 = 4 << 20;

/// Starts write-back of what lies behind `end`, when a write from `start` to there went over a border of [`WRITE_BACK`]: else all
/// of it would wait for the next checkpoint, whose snapshot then stands still for the disk. `DONTNEED` writes dirty pages out without
/// waiting, and lets go of clean ones, which nobody here reads again. Only advice: a refusal changes nothing.
fn write_back(fd: &OwnedFd, start: u64, end: u64) {
    let border = end - end % WRITE_BACK;
    if start < border {
        let _ =
            fadvise(fd, start.saturating_sub(start % WRITE_BACK).min(border - WRITE_BACK), NonZeroU64::new(WRITE_BACK), Advice::DontNeed);
    }
}

impl Applier {
    pub(super) fn write(&mut self, path: StreamPath<'_>, mut offset: u64, mut data: &[u8]) -> Result<(), Cause> {
        let fd = self.object(path)?.file()?;
        let start = offset;
        if is_zero(data) {
            // As kernels send holes and preallocated ranges of an increment.
            return make_hole(fd, start, start + data.len() as u64).map_err(|errno| Cause::system("fallocate", path.bytes(), errno));
        }
        while !data.is_empty() {
            let written =
                rustix::io::retry_on_intr(|| pwrite(fd, data, offset)).map_err(|errno| Cause::system("pwrite", path.bytes(), errno))?;
            if written == 0 {
                return Err(Cause::system("pwrite", path.bytes(), Errno::IO));
            }
            data = data.get(written..).unwrap_or_default();
            offset += written as u64;
        }
        write_back(fd, start, offset);
        Ok(())
    }

    /// A range of a stream without data: shared with the donor's file.
    pub(super) fn share(&mut self, path: StreamPath<'_>, offset: u64, len: u64) -> Result<(), Cause> {
        let donor = self.donor.as_ref().ok_or(Cause::Unsupported("a stream without data"))?;
        let source = Source::Other(donor.open().map_err(|errno| Cause::system("open_by_handle_at", path.bytes(), errno))?);
        let fd = self.object(path)?.file()?;
        clone_data(fd, &source, offset, len, offset).map_err(|(call, errno)| Cause::system(call, path.bytes(), errno))
    }

    pub(super) fn truncate(&mut self, path: StreamPath<'_>, size: u64) -> Result<(), Cause> {
        let fd = self.object(path)?.file()?;
        ftruncate(fd, size).map_err(|errno| Cause::system("ftruncate", path.bytes(), errno))
    }

    pub(super) fn fallocate(&mut self, path: StreamPath<'_>, mode: u32, offset: u64, len: u64) -> Result<(), Cause> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let flags = FallocateFlags::from_bits(mode)
            .filter(|flags| *flags == punch || flags.difference(FallocateFlags::KEEP_SIZE).is_empty())
            .ok_or(Cause::Unsupported("a mode of fallocate"))?;
        if len == 0 {
            return Ok(());
        }
        let fd = self.object(path)?.file()?;
        fallocate(fd, flags, offset, len).map_err(|errno| Cause::system("fallocate", path.bytes(), errno))
    }

    pub(super) fn encoded_write(&mut self, path: StreamPath<'_>, write: &Encoded<'_>) -> Result<(), Cause> {
        if self.class() == ContentClass::Restricted {
            // The kernel does not look into compressed data when it is written: it would come back as read errors.
            return Err(Cause::Forbidden("compressed extents"));
        }
        let extent = EncodedExtent {
            offset: i64::try_from(write.offset).map_err(|_| Cause::Malformed("offset"))?,
            len: write.file_len,
            unencoded_len: write.unencoded_len,
            unencoded_offset: write.unencoded_offset,
            compression: write.compression,
        };
        let fd = self.object(path)?.file()?;
        encoded_write(fd, &extent, write.data).map_err(|errno| Cause::system("encoded write", path.bytes(), errno))
    }

    pub(super) fn clone_from(
        &mut self,
        path: StreamPath<'_>,
        (offset, len): (u64, u64),
        uuid: Uuid,
        (source, source_offset): (StreamPath<'_>, u64),
    ) -> Result<(), Cause> {
        let ids = self.ids.ok_or(Cause::Sequence("a clone before the first command"))?;
        if len == 0 {
            // To the kernel 0 means "to the end", which is not what the stream says.
            return Ok(());
        }
        let source = if uuid == ids.uuid {
            if source == path { Source::Same } else { Source::Other(self.work.place(source)?.open_file(OFlags::RDONLY)?) }
        } else if ids.parent.is_some_and(|(parent, _)| parent == uuid) {
            let base = self.base.as_mut().ok_or(Cause::ForeignClone)?;
            Source::Other(base.place(source)?.open_file(OFlags::RDONLY)?)
        } else {
            return Err(Cause::ForeignClone);
        };
        let fd = self.object(path)?.file()?;
        clone_data(fd, &source, source_offset, len, offset).map_err(|(call, errno)| Cause::system(call, path.bytes(), errno))
    }
}
