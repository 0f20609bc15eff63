//! btrfs send streams: the kernel's own of a commit, and hand-made ones that no kernel would send. Format: the kernel's
//! `fs/btrfs/send.h`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const SUBVOL: u16 = 1;
const SNAPSHOT: u16 = 2;
const MKFILE: u16 = 3;
const WRITE: u16 = 15;
const CTRANSID: u16 = 2;
const UUID: u16 = 1;
const INO: u16 = 3;
const PATH: u16 = 15;
const FILE_OFFSET: u16 = 18;
const DATA: u16 = 19;
const CLONE_UUID: u16 = 20;
const CLONE_CTRANSID: u16 = 21;

/// The stream (version 1) of a read-only subvolume, as `btrfs send` makes it.
pub fn kernel(base: Option<&Path>, subvolume: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new("btrfs");
    command.args(["-q", "send", "--proto", "1"]);
    if let Some(base) = base {
        command.arg("-p").arg(base);
    }
    let output = command.arg(subvolume).output().context("running btrfs send")?;
    ensure!(output.status.success(), "btrfs send: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// The beginning of a stream that makes one empty file, `f`.
pub fn opening(increment: bool) -> Vec<u8> {
    let mut out = b"btrfs-stream\0".to_vec();
    out.extend(1u32.to_le_bytes());
    let one = 1u64.to_le_bytes();
    let own: [(u16, &[u8]); 3] = [(PATH, b"s"), (UUID, &[1; 16]), (CTRANSID, &one)];
    let base: [(u16, &[u8]); 2] = [(CLONE_UUID, &[2; 16]), (CLONE_CTRANSID, &one)];
    out.extend(if increment { command(SNAPSHOT, &[&own[..], &base[..]].concat()) } else { command(SUBVOL, &own) });
    out.extend(command(MKFILE, &[(PATH, b"f"), (INO, &257u64.to_le_bytes())]));
    out
}

/// A write into that file.
pub fn write(offset: u64, data: &[u8]) -> Vec<u8> {
    command(WRITE, &[(PATH, b"f"), (FILE_OFFSET, &offset.to_le_bytes()), (DATA, data)])
}

fn command(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (number, value) in attributes {
        payload.extend(number.to_le_bytes());
        payload.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        payload.extend(*value);
    }
    let mut out = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    out.extend(payload);
    // The kernel's CRC-32C is inverted neither before nor after; the crate's is both.
    let crc = !crc32c::crc32c_append(u32::MAX, &out);
    if let Some(field) = out.get_mut(6..10) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    out
}
