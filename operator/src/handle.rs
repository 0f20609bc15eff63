//! The volume handle: `<fsId>` is the writable head; `ro/<fsId>`, `ro/<fsId>@<commitId>` are read-only, from a copy on any node. And which
//! PVs have one.

use std::fmt;

use dotgraft_api::common::DRIVER_NAME;
use dotgraft_engine::ids::{CommitId, FsId};
use k8s_openapi::api::core::v1::PersistentVolume;

/// Before the id in a read-only handle.
const READ_ONLY: &str = "ro/";

/// A volume handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle {
    /// The Filesystem.
    pub fs: FsId,
    /// Only to read.
    pub read_only: bool,
    /// That commit, not the newest; read-only handles only.
    pub commit: Option<CommitId>,
}

impl Handle {
    /// `None`: not a handle that we ever gave out.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(rest) = text.strip_prefix(READ_ONLY) else {
            return text.parse().ok().map(Self::head);
        };
        let (fs, commit) = match rest.split_once('@') {
            Some((fs, commit)) => (fs, Some(commit.parse().ok()?)),
            None => (rest, None),
        };
        Some(Self { fs: fs.parse().ok()?, read_only: true, commit })
    }

    /// The writable head of a Filesystem.
    pub const fn head(fs: FsId) -> Self {
        Self { fs, read_only: false, commit: None }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.read_only { READ_ONLY } else { "" }, self.fs)?;
        self.commit.map_or(Ok(()), |commit| write!(f, "@{commit}"))
    }
}

/// The handle of a PV of this driver.
pub fn handle_of(pv: &PersistentVolume) -> Option<Handle> {
    let csi = pv.spec.as_ref()?.csi.as_ref().filter(|c| c.driver == DRIVER_NAME)?;
    Handle::parse(&csi.volume_handle)
}

/// The Filesystem of a PV of this driver.
pub fn filesystem_of(pv: &PersistentVolume) -> Option<String> {
    handle_of(pv).map(|h| h.fs.to_string())
}

/// Of this driver, and with a handle that is only to read commits.
pub fn is_read_only(pv: &PersistentVolume) -> bool {
    handle_of(pv).is_some_and(|h| h.read_only)
}
