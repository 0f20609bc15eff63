//! Paths and names as a stream may carry them, checked before anything is opened (storage.md §5, "Confinement").
//!
//! `parse` makes them, `confine` resolves them. A path that got here has no way out of the tree by its own text: it is
//! relative, and none of its components is empty, `.`, `..` or holds a NUL. Symlinks on the way are `confine`'s matter.

use super::error::Cause;

/// Longest path in bytes: `PATH_MAX` of Linux without its NUL.
pub const MAX_PATH: usize = 4095;
/// Longest component in bytes: `NAME_MAX`, which is btrfs' own limit too.
pub const MAX_NAME: usize = 255;

/// A checked path below the root of the subvolume; empty means the root itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamPath<'a>(&'a [u8]);

impl<'a> StreamPath<'a> {
    /// The root of the subvolume.
    pub const ROOT: StreamPath<'static> = StreamPath(b"");

    /// Checks `bytes`; an empty one is the root.
    ///
    /// # Errors
    /// [`Cause::Path`] with what is wrong.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Cause> {
        if bytes.len() > MAX_PATH {
            return Err(Cause::Path("a path is longer than 4095 bytes"));
        }
        if !bytes.is_empty() {
            for component in bytes.split(|&byte| byte == b'/') {
                check_component(component)?;
            }
        }
        Ok(Self(bytes))
    }

    /// The path again from bytes that were a `StreamPath` before.
    pub(crate) fn trusted(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it is the root of the subvolume.
    pub fn is_root(self) -> bool {
        self.0.is_empty()
    }

    /// The directory it is in, and its last component; `None` for the root.
    pub fn split(self) -> Option<(StreamPath<'a>, &'a [u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(at) => Some((Self(self.0.get(..at)?), self.0.get(at + 1..)?)),
            None => Some((Self::ROOT, self.0)),
        }
    }
}

/// Whether `path` is `dir` or lies below it. The root is above everything.
pub fn is_within(path: &[u8], dir: &[u8]) -> bool {
    match path.strip_prefix(dir) {
        Some(rest) => rest.is_empty() || dir.is_empty() || rest.first() == Some(&b'/'),
        None => false,
    }
}

fn check_component(name: &[u8]) -> Result<(), Cause> {
    if name.is_empty() {
        return Err(Cause::Path("a path is absolute or has an empty component"));
    }
    if name == b"." || name == b".." {
        return Err(Cause::Path("a path has a component . or .."));
    }
    if name.len() > MAX_NAME {
        return Err(Cause::Path("a name is longer than 255 bytes"));
    }
    if name.contains(&0) {
        return Err(Cause::Path("a path holds a NUL"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_lead_outside_is_refused() {
        let long_name = [b'n'; MAX_NAME + 1];
        let long_path = [b"d/".repeat(MAX_PATH / 2).as_slice(), b"e/"].concat();
        let hostile: [&[u8]; 12] =
            [b"/", b"/etc", b"..", ".".as_bytes(), b"a/..", b"../a", b"a/./b", b"a//b", b"a/", b"a\0b", &long_name, &long_path];
        for path in hostile {
            assert!(matches!(StreamPath::new(path), Err(Cause::Path(_))), "{path:?}");
        }
    }

    #[test]
    fn names_of_any_other_bytes_are_carried() {
        let name = [0xffu8; MAX_NAME];
        let good: [&[u8]; 6] = [b"a", b"...", b"..a/b..", b"a b\nc", b"\xff\xfe/x", &name];
        for path in good {
            assert_eq!(StreamPath::new(path).unwrap().bytes(), path);
        }
    }

    #[test]
    fn split_gives_directory_and_last_component() {
        let path = StreamPath::new(b"a/b/c").unwrap();
        assert_eq!(path.split(), Some((StreamPath(b"a/b"), b"c".as_slice())));
        assert_eq!(StreamPath::new(b"a").unwrap().split(), Some((StreamPath::ROOT, b"a".as_slice())));
        assert_eq!(StreamPath::ROOT.split(), None);
    }

    #[test]
    fn within_compares_whole_components() {
        assert!(is_within(b"a/b", b"a") && is_within(b"a", b"a") && is_within(b"x", b""));
        assert!(!is_within(b"ab", b"a") && !is_within(b"a", b"a/b"));
    }
}
