//! Names that come from outside: volume handles, snapshot ids, names of calls. Parsed once, then typed.
//!
//! | | |
//! |---|---|
//! | volume | [`VolumeHandle`] |
//! | snapshot | `<fsId>@<commitId>` |

use std::fmt;

pub use dotgraft_engine::handle::VolumeHandle;
use dotgraft_engine::ids::{CommitId, FsId};

use super::error::CsiError;

/// Longest name or id in a CSI call, in bytes (CSI spec, "Size Limits").
pub const NAME_MAX: usize = 128;
/// A snapshot id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The commit; ids grow with time, so this orders snapshots.
    pub commit: CommitId,
    /// The Filesystem it was made in.
    pub fs: FsId,
}

impl SnapshotId {
    /// `None`: not an id that we ever gave out.
    pub fn parse(text: &str) -> Option<Self> {
        let (fs, commit) = text.split_once('@')?;
        Some(Self { fs: fs.parse().ok()?, commit: commit.parse().ok()? })
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.fs, self.commit)
    }
}

/// A field that must be there, within the spec's bound.
///
/// # Errors
///
/// `INVALID_ARGUMENT` if it is empty or longer than 128 bytes.
pub fn required<'a>(what: &str, value: &'a str) -> Result<&'a str, CsiError> {
    if value.is_empty() {
        return Err(CsiError::Invalid(format!("{what} is missing")));
    }
    if value.len() > NAME_MAX {
        return Err(CsiError::Invalid(format!("{what} is longer than {NAME_MAX} bytes")));
    }
    Ok(value)
}

/// The handle of an existing volume; one that we never gave out is of no volume.
///
/// # Errors
///
/// `INVALID_ARGUMENT` if it is empty, `NOT_FOUND` if it can't be ours.
pub fn volume(text: &str) -> Result<VolumeHandle, CsiError> {
    required("volume_id", text)?.parse().map_err(|_| no_volume(text))
}

/// The answer for a volume that isn't there.
pub fn no_volume(id: &str) -> CsiError {
    CsiError::NotFound(format!("there is no volume `{id}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FS;
    use proptest::prelude::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        assert_eq!(volume(FS).unwrap(), VolumeHandle::Head(FS.parse().unwrap()));
        let snapshot = format!("{FS}@{FS}");
        assert_eq!(SnapshotId::parse(&snapshot).unwrap().to_string(), snapshot);
    }

    #[test]
    fn what_we_never_gave_out_names_nothing() {
        assert!(matches!(volume(""), Err(CsiError::Invalid(_))));
        assert!(matches!(volume("ro/x"), Err(CsiError::NotFound(_))));
        for text in ["", "@", FS, &format!("{FS}@"), &format!("{FS}@{FS}@{FS}"), &format!("ro/{FS}@{FS}")] {
            assert_eq!(SnapshotId::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(ro/)?.{0,80}") {
            let _ = (volume(&text).is_ok(), SnapshotId::parse(&text), required("x", &text).is_ok());
        }
    }
}
