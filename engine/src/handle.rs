//! The volume handle, by which CSI knows a volume: one type, one spelling, for all who give out or read one.

use std::fmt;
use std::str::FromStr;

use crate::ids::{CommitId, FsId, IdError};

/// Before the id in a handle that is only to read.
const READ_ONLY: &str = "ro/";
/// Digits of [`ViewId`].
const VIEW_DIGITS: usize = 16;

/// Which of several views of one commit: Kubernetes takes two volumes of one handle for one volume, and a pod with both waits for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewId(pub u64);

impl FromStr for ViewId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.len() == VIEW_DIGITS && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        u64::from_str_radix(text, 16).ok().filter(|_| digits).map(Self).ok_or(())
    }
}

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0VIEW_DIGITS$x}", self.0)
    }
}

/// A volume handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeHandle {
    /// `<fsId>`: the writable head.
    Head(FsId),
    /// `ro/<fsId>`: the newest commit when it is staged, read-only, from a copy on any node.
    Newest(FsId),
    /// `ro/<fsId>@<commitId>`: that commit, read-only.
    Commit(FsId, CommitId),
    /// `ro/<fsId>@<commitId>/<viewId>`: the same for one PVC, which needs the commit and not the volume that it is of (ADR 37).
    View(FsId, CommitId, ViewId),
}

/// Why a text is no volume handle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// It names no Filesystem.
    #[error("it names no Filesystem: {0}")]
    Filesystem(IdError),
    /// What is behind `@` is no commit id.
    #[error("what is behind @ is no commit: {0}")]
    Commit(IdError),
    /// What is behind the commit is no view.
    #[error("what is behind the commit is no view of it: 16 digits")]
    View,
}

impl VolumeHandle {
    /// Whose data it is.
    pub const fn fs(self) -> FsId {
        match self {
            Self::Head(fs) | Self::Newest(fs) | Self::Commit(fs, _) | Self::View(fs, ..) => fs,
        }
    }

    /// The commit that it names.
    pub const fn commit(self) -> Option<CommitId> {
        match self {
            Self::Head(_) | Self::Newest(_) => None,
            Self::Commit(_, commit) | Self::View(_, commit, _) => Some(commit),
        }
    }

    /// It is one of the views of its commit.
    pub const fn view(self) -> Option<ViewId> {
        match self {
            Self::View(.., view) => Some(view),
            Self::Head(_) | Self::Newest(_) | Self::Commit(..) => None,
        }
    }

    /// Nothing can be written through it.
    pub const fn is_read_only(self) -> bool {
        !matches!(self, Self::Head(_))
    }
}

impl FromStr for VolumeHandle {
    type Err = HandleError;
    /// Accepts what [`fmt::Display`] writes, and nothing else.
    fn from_str(text: &str) -> Result<Self, HandleError> {
        let Some(rest) = text.strip_prefix(READ_ONLY) else {
            return text.parse().map(Self::Head).map_err(HandleError::Filesystem);
        };
        let Some((fs, commit)) = rest.split_once('@') else {
            return rest.parse().map(Self::Newest).map_err(HandleError::Filesystem);
        };
        let fs = fs.parse().map_err(HandleError::Filesystem)?;
        let (commit, view) = commit.split_once('/').map_or((commit, None), |(commit, view)| (commit, Some(view)));
        let commit = commit.parse().map_err(HandleError::Commit)?;
        match view {
            None => Ok(Self::Commit(fs, commit)),
            Some(view) => Ok(Self::View(fs, commit, view.parse().map_err(|()| HandleError::View)?)),
        }
    }
}

impl fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(fs) => write!(f, "{fs}"),
            Self::Newest(fs) => write!(f, "{READ_ONLY}{fs}"),
            Self::Commit(fs, commit) => write!(f, "{READ_ONLY}{fs}@{commit}"),
            Self::View(fs, commit, view) => write!(f, "{READ_ONLY}{fs}@{commit}/{view}"),
        }
    }
}

/// By Filesystem, then the head, the newest, and each commit: the order of the pages that list them.
impl Ord for VolumeHandle {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |h: &Self| (h.fs(), h.is_read_only(), h.commit(), h.view());
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for VolumeHandle {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const FS: &str = "0198c2a5-7f00-7000-8000-000000000001";

    /// Of one of so many Filesystems.
    fn any_handle(filesystems: u128) -> impl Strategy<Value = VolumeHandle> {
        (1..=filesystems, 1..=u128::MAX, 0..4_u8).prop_map(|(fs, commit, kind)| {
            let (fs, commit) = (FsId::from_uuid(Uuid::from_u128(fs)), CommitId::from_uuid(Uuid::from_u128(commit)));
            match kind {
                0 => VolumeHandle::Head(fs),
                1 => VolumeHandle::Newest(fs),
                2 => VolumeHandle::Commit(fs, commit),
                _ => VolumeHandle::View(fs, commit, ViewId(u64::from_ne_bytes([kind; 8]))),
            }
        })
    }

    #[test]
    fn the_spellings_are_those_that_persistent_volumes_have() {
        let (fs, commit) = (FS.parse().unwrap(), FS.parse().unwrap());
        let spelt = [
            (VolumeHandle::Head(fs), FS.to_owned(), false),
            (VolumeHandle::Newest(fs), format!("ro/{FS}"), true),
            (VolumeHandle::Commit(fs, commit), format!("ro/{FS}@{FS}"), true),
            (VolumeHandle::View(fs, commit, ViewId(10)), format!("ro/{FS}@{FS}/000000000000000a"), true),
        ];
        for (handle, text, read_only) in spelt {
            assert_eq!((handle.to_string(), text.parse(), handle.is_read_only()), (text, Ok(handle), read_only));
        }
    }

    #[test]
    fn what_was_never_given_out_is_no_handle_and_says_why() {
        let id = |text: &str| text.parse::<VolumeHandle>().unwrap_err();
        for text in ["", "x", "../..", "ro/", "ro/x", "rw/x", &format!("{FS}@{FS}"), &FS.to_uppercase(), &format!("ro/ro/{FS}"), "ro/x@"] {
            assert!(matches!(id(text), HandleError::Filesystem(_)), "{text}");
        }
        for text in [format!("ro/{FS}@"), format!("ro/{FS}@{FS}@"), format!("ro/{FS}@x")] {
            assert!(matches!(id(&text), HandleError::Commit(_)), "{text}");
        }
        for view in ["", "a", "000000000000000A", "00000000000000000a", "+00000000000000a", "000000000000000a/"] {
            assert_eq!(id(&format!("ro/{FS}@{FS}/{view}")), HandleError::View, "{view}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(handle in any_handle(u128::MAX)) {
            prop_assert_eq!(handle.to_string().parse(), Ok(handle));
        }

        #[test]
        fn each_handle_has_one_spelling(text in "(ro/)?[0-9a-fA-F-]{0,36}(@.{0,40})?") {
            if let Ok(handle) = text.parse::<VolumeHandle>() {
                prop_assert_eq!(handle.to_string(), text);
            }
        }

        #[test]
        fn pages_are_by_filesystem_then_head_then_newest_then_commits(mut list in prop::collection::vec(any_handle(3), 0..20)) {
            list.sort();
            for pair in list.windows(2) {
                let rank = |h: VolumeHandle| (h.fs(), h.is_read_only(), h.commit().is_some(), h.commit());
                prop_assert!(rank(pair[0]) <= rank(pair[1]));
            }
        }
    }
}
