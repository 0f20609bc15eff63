//! Space kept back beside the journal, so that on a full disk deletes and unpublishes can still be recorded (storage.md §1).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// 16 MiB: a write-ahead log at its checkpoint size four times over.
pub const BALLAST_BYTES: u64 = 16 << 20;

/// Owned by the writer thread.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    bytes: u64,
    in_place: bool,
}

impl Ballast {
    /// Beside `journal`, `bytes` large; not made yet.
    pub(super) fn beside(journal: &Path, bytes: u64) -> Self {
        Self { path: journal.with_extension("ballast"), bytes, in_place: false }
    }

    /// Whether there is any to release.
    pub(super) fn in_place(&self) -> bool {
        self.in_place
    }

    /// Frees the space. Answers whether there was any.
    pub(super) fn release(&mut self) -> bool {
        let had = std::mem::replace(&mut self.in_place, false);
        // Also when we think that there is none: a former process may have left it.
        let removed = std::fs::remove_file(&self.path).is_ok();
        had || removed
    }

    /// Makes it if it is missing and the disk would keep as much again free. Answers whether it is there.
    pub(super) fn restore(&mut self) -> bool {
        if self.in_place || self.bytes == 0 {
            self.in_place = true;
            return true;
        }
        let there = std::fs::metadata(&self.path).is_ok_and(|m| {
            use std::os::unix::fs::MetadataExt;
            m.len() == self.bytes && m.blocks().saturating_mul(512) >= self.bytes
        });
        if there {
            self.in_place = true;
            return true;
        }
        if free_bytes(&self.path) < self.bytes.saturating_mul(2) {
            return false;
        }
        match self.make() {
            Ok(()) => self.in_place = true,
            Err(e) => {
                let _ = std::fs::remove_file(&self.path);
                tracing::debug!(error = %e, "no space for the journal's ballast yet");
            }
        }
        self.in_place
    }

    fn make(&self) -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeroes(&mut file, self.bytes)?,
            Err(e) => return Err(e.into()),
        }
        file.sync_all()
    }
}

fn write_zeroes(file: &mut File, bytes: u64) -> std::io::Result<()> {
    let block = vec![0u8; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(block.len()).min(block.len());
        file.write_all(block.get(..n).unwrap_or(&block))?;
        left = left.saturating_sub(n as u64);
    }
    Ok(())
}

/// Free bytes of the disk that `path`'s directory is on; 0 if it can't be asked.
pub(super) fn free_bytes(path: &Path) -> u64 {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(dir).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}
