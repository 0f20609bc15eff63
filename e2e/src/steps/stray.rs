//! A subvolume that somebody without a privilege makes in a volume, in no quota group.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// `SUBVOL_CREATE_V2` with an empty `btrfs_qgroup_inherit`, in the directory and with the name that the arguments say.
const MAKE: &str = r"
import ctypes, fcntl, os, struct, sys
os.chown(sys.argv[1], 1000, 1000)
fd = os.open(sys.argv[1], os.O_RDONLY)
os.setgid(1000); os.setuid(1000)
inherit = ctypes.create_string_buffer(72)
head = struct.pack('qQQQQQQ', -1, 0, 1 << 2, 72, ctypes.addressof(inherit), 0, 0)
fcntl.ioctl(fd, 0x50009418, bytearray(head + sys.argv[2].encode().ljust(4040, b'\0')))
";

/// Makes it.
///
/// # Errors
///
/// It can't be made.
pub fn make_stray(dir: &Path, name: &str) -> Result<()> {
    let output = Command::new("python3").args(["-c", MAKE]).arg(dir).arg(name).output().context("running python3")?;
    ensure!(output.status.success(), "python3: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
