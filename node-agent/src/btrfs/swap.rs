//! Swap files in a volume: while one is in use (`swapon`) btrfs takes no snapshot of the subvolume (`ETXTBSY`) and doesn't delete it (`EPERM`), and
//! its mount stays busy without a process that has it open.

use std::fs;
use std::path::{Path, PathBuf};

use super::mounts::unescape;

/// Files in use as swap, as `/proc/swaps` shows them; empty if it can't be read.
fn files() -> Vec<PathBuf> {
    fs::read("/proc/swaps").map(|table| listed(&table)).unwrap_or_default()
}

/// A header, then `path type size used priority`, the path with octal escapes.
fn listed(table: &[u8]) -> Vec<PathBuf> {
    let file = |line: &[u8]| {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
        let path = fields.next()?;
        (fields.next()? == b"file").then(|| unescape(path))
    };
    table.split(|b| *b == b'\n').skip(1).filter_map(file).collect()
}

/// Whether any file of the node is in use as swap. Whose it is the table doesn't say once its mount is gone.
pub fn is_any() -> bool {
    !files().is_empty()
}

/// The swap file in use below a directory.
pub fn below(dir: &Path) -> Option<PathBuf> {
    files().into_iter().find(|file| file.starts_with(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_from_devices_and_paths_are_read_with_their_escapes() {
        let table = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                      /a\\040b/swap                            file\t\t4092\t\t0\t\t-2\n\
                      /dev/vda2                               partition\t4092\t\t0\t\t-3\n";
        assert_eq!(listed(table), [PathBuf::from("/a b/swap")]);
        assert_eq!(listed(b"Filename\tType\n"), Vec::<PathBuf>::new());
        assert_eq!(listed(b""), Vec::<PathBuf>::new());
    }
}
