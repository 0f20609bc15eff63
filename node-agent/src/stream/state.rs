//! What of an [`super::apply::Applier`] survives a restart: a small, versioned document for the journal.
//!
//! The actor stores it with a checkpoint (a snapshot of the work subvolume taken at the same moment) and hands it back to
//! go on (replication.md §3, "Resume").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dotgraft_engine::format::{FormatError, Kind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::parse::{Uuid, Version};
use super::times::Times;
use crate::digest::ResumableHasher;

/// Which subvolume a stream is about, by its first command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamIds {
    /// UUID of the subvolume that was sent.
    pub uuid: Uuid,
    /// Its transaction.
    pub ctransid: u64,
    /// UUID of the base's original and its transaction, for an increment.
    pub parent: Option<(Uuid, u64)>,
}

impl StreamIds {
    /// Target and base are named by one UUID, so that a clone from the base can't be told from one within the target.
    pub fn names_one(&self) -> bool {
        self.parent.is_some_and(|(parent, _)| parent == self.uuid)
    }
}

/// A point in a stream to go on from. About 4 KiB as JSON after a flush; never more than about 250 KiB.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplierState {
    /// Version of [`Kind::ReceiveState`].
    pub version: u32,
    /// Bytes of complete commands applied, header included; the stream goes on there.
    pub offset: u64,
    /// Protocol, once the header was seen.
    pub protocol: Option<Version>,
    /// Subvolume, once the first command was seen.
    pub ids: Option<StreamIds>,
    /// Whether END was seen.
    pub ended: bool,
    /// Hash of the bytes before `offset`.
    pub(crate) hasher: ResumableHasher,
    /// Made by the stream but not in the tree yet.
    pub(crate) pending: Option<Pending>,
    /// Times that the root must have in the end.
    pub(crate) root_times: Times,
    /// Inodes in the tree are owed flags. Who doesn't know the word must not finish it: such a state is of version 2.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) owes: bool,
    /// Times of directories not set yet.
    pub(crate) dir_times: Vec<(PathBytes, Times)>,
}

impl ApplierState {
    /// The oldest version that says it all: receivers of before go on from a state in which nothing is owed.
    pub(crate) fn version_for(owes: bool) -> u32 {
        if owes { Kind::ReceiveState.newest() } else { 1 }
    }

    /// Reads what a checkpoint row holds.
    ///
    /// # Errors
    /// `Newer` if a newer agent made the checkpoint: it can go on from it, this one can't. `Damaged` if it is no such document.
    pub fn read(text: &str) -> Result<Self, FormatError> {
        Kind::ReceiveState.read("the state in the checkpoint of a receive", text.as_bytes())
    }
}

/// Something the stream has made under a temporary name, held back because its real name usually comes next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub path: PathBytes,
    pub what: New,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum New {
    File,
    Directory,
    Symlink(Target),
    /// A device, pipe or socket: mode with type bits, and device number as the kernel encodes it.
    Node {
        mode: u32,
        rdev: u32,
    },
}

/// A path of any bytes; base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathBytes(pub Vec<u8>);

impl Serialize for PathBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for PathBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(serde::de::Error::custom)?;
        // What comes from a file is checked as what comes from a stream.
        super::path::StreamPath::new(&bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// A symlink's target: any bytes without NUL; base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target(pub Vec<u8>);

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BASE64.decode(String::deserialize(deserializer)?).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
