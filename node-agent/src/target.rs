//! Where something is to be mounted, in the one form in which the CSI service and the local socket give it to an actor.

use std::path::{Component, Path, PathBuf};

use dotgraft_engine::model::{Problem, Reason};

/// Longest path that the kernel takes, bytes (`PATH_MAX` without its end).
const MAX_PATH: usize = 4095;

/// An absolute path other than `/`, in UTF-8, without `.` and `..`, of a length that the kernel takes.
///
/// UTF-8, because the engine keeps it as text: another path would be mounted, or be told apart from what the kernel's table shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MountTarget(String);

impl MountTarget {
    /// Of a path as a request spells it; slashes too many are left out.
    ///
    /// # Errors
    ///
    /// `Invalid`, with what it must be: whoever asked has to ask for another.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        Self::of(&Path::new(text).components().collect::<PathBuf>())
    }

    /// Of a path that was found on this node.
    ///
    /// # Errors
    ///
    /// `Invalid`, as [`MountTarget::parse`]; also where it is no UTF-8, which a symbolic link may lead to.
    pub fn of(path: &Path) -> Result<Self, Problem> {
        let invalid = |why: &str| Err(Problem::new(Reason::Invalid, format!("the mount target must be {why}")));
        let Some(text) = path.to_str() else { return invalid("UTF-8, also where symbolic links lead") };
        if text.len() > MAX_PATH || text.contains('\0') {
            return invalid("a path of at most 4095 bytes");
        }
        if !path.is_absolute() {
            return invalid("absolute");
        }
        if path.components().any(|c| c == Component::ParentDir) || path.parent().is_none() {
            return invalid("a directory under `/`, written without `..`");
        }
        Ok(Self(text.to_owned()))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// As the engine keeps it.
    pub fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_target_is_absolute_and_has_no_way_up() {
        assert_eq!(MountTarget::parse("/mnt/a//b/").unwrap().as_path(), Path::new("/mnt/a/b"));
        assert_eq!(MountTarget::parse("/mnt/./a").unwrap().into_text(), "/mnt/a");
        for bad in ["", "mnt", "./x", "/", "/a/../b", "/a\0b", &format!("/{}", "x".repeat(MAX_PATH))] {
            assert_eq!(MountTarget::parse(bad).unwrap_err().reason, Reason::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn a_target_that_is_no_text_is_refused_not_changed() {
        let path = Path::new(OsStr::from_bytes(b"/mnt/\xff"));
        assert_eq!(MountTarget::of(path).unwrap_err().reason, Reason::Invalid);
    }
}
