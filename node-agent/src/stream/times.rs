//! Times of directories, held back: everything made in a directory changes them again, so each is set once, late.
//!
//! `apply` keeps one [`DirTimes`]. It is bounded: a full one is set in one go and starts again, which costs calls but
//! never correctness, because a stream sends a directory's times again after it has changed something in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::parse::Time;
use super::path::is_within;

/// Directories held back at most.
const MAX_ENTRIES: usize = 1024;
/// Bytes of paths held back at most.
const MAX_BYTES: usize = 64 << 10;

/// Last access and last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
}

/// The latest times of directories, by path.
#[derive(Debug, Default)]
pub struct DirTimes {
    entries: BTreeMap<Vec<u8>, Times>,
    bytes: usize,
}

impl DirTimes {
    /// Whether `path` is held, and so is a directory.
    pub fn contains(&self, path: &[u8]) -> bool {
        self.entries.contains_key(path)
    }

    /// Whether there is no room for another of `len` bytes.
    pub fn is_full(&self, len: usize) -> bool {
        self.entries.len() >= MAX_ENTRIES || self.bytes + len > MAX_BYTES
    }

    /// Holds `times` for `path`, in place of earlier ones.
    pub fn insert(&mut self, path: &[u8], times: Times) {
        if self.entries.insert(path.to_vec(), times).is_none() {
            self.bytes += path.len();
        }
    }

    /// `path` is gone.
    pub fn remove(&mut self, path: &[u8]) {
        if self.entries.remove(path).is_some() {
            self.bytes -= path.len();
        }
    }

    /// `from` and what is below is at `to` now.
    pub fn moved(&mut self, from: &[u8], to: &[u8]) {
        let below: Vec<Vec<u8>> =
            self.entries.range(from.to_vec()..).map(|(path, _)| path).take_while(|path| path.starts_with(from)).cloned().collect();
        for path in below.into_iter().filter(|path| is_within(path, from)) {
            if let Some(times) = self.entries.remove(&path) {
                self.bytes -= path.len();
                let moved = [to, path.get(from.len()..).unwrap_or_default()].concat();
                self.insert(&moved, times);
            }
        }
    }

    /// One of them, the last in order of paths.
    pub fn pop(&mut self) -> Option<(Vec<u8>, Times)> {
        let (path, times) = self.entries.pop_last()?;
        self.bytes -= path.len();
        Some((path, times))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Times)> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Times {
        let time = Time { seconds, nanoseconds: 0 };
        Times { atime: time, mtime: time }
    }

    #[test]
    fn a_moved_directory_takes_its_children_along_but_not_its_namesakes() {
        let mut times = DirTimes::default();
        for (path, seconds) in [("a", 1), ("a/b", 2), ("ab", 3), ("a-", 4)] {
            times.insert(path.as_bytes(), at(seconds));
        }
        times.moved(b"a", b"x/y");
        let all: Vec<_> = times.iter().map(|(path, times)| (path.as_slice(), times.mtime.seconds)).collect();
        assert_eq!(all, [(b"a-".as_slice(), 4), (b"ab", 3), (b"x/y", 1), (b"x/y/b", 2)]);
    }

    #[test]
    fn the_latest_wins_and_room_is_counted() {
        let mut times = DirTimes::default();
        times.insert(b"d", at(1));
        times.insert(b"d", at(2));
        assert_eq!(times.bytes, 1);
        assert!(times.is_full(MAX_BYTES));
        assert_eq!(times.pop(), Some((b"d".to_vec(), at(2))));
        assert_eq!(times.bytes, 0);
        for n in 0..MAX_ENTRIES {
            times.insert(n.to_string().as_bytes(), at(0));
        }
        assert!(times.is_full(1));
    }
}
