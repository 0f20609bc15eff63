//! The versions of everything that outlives a process: one number for each [`Kind`] of document, and the one place that reads it.
//!
//! The journal's rows, `fs.json`, `commits/<id>.json`, a receive's saved state and the last word of a handoff all carry a version.
//! A document of a newer version is never guessed at: it closes its Filesystem on this node, with the condition `FormatNewer`, and
//! stays as it is until an agent that knows it runs again ([ADR 21](../../docs/adr/0021-formats.md)).
//!
//! A field may be added without a new version if a program that doesn't know it may drop it when it writes the document again. It must
//! then have a default that is true of documents without it. Everything else is a new version of that kind: of that kind alone.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::model::{Problem, Reason};

/// A kind of document that has a version of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Journal row `base`: what a copy is.
    Base,
    /// Journal rows `commit/<id>`, the files `commits/<id>.json`, and a commit in a message.
    Commit,
    /// Journal rows `removing/<id>`.
    Removing,
    /// Journal rows `request/<uid>`, also those that a handoff brings.
    Request,
    /// Journal row `partial`.
    Partial,
    /// Journal row `checkpoint`, without the receiver's own state in it.
    Checkpoint,
    /// Journal rows `job/<uid>`, also those that a handoff brings.
    Job,
    /// Journal rows `pin/<fsId>`.
    OriginPin,
    /// Journal row `migration`.
    Migration,
    /// The file `fs.json` beside a head.
    FsFile,
    /// The receiver's own state in a checkpoint row.
    ReceiveState,
    /// The message by which an owner hands authority over.
    Handoff,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Base,
        Self::Commit,
        Self::Removing,
        Self::Request,
        Self::Partial,
        Self::Checkpoint,
        Self::Job,
        Self::OriginPin,
        Self::Migration,
        Self::FsFile,
        Self::ReceiveState,
        Self::Handoff,
    ];

    /// The version that this program writes, and the newest that it reads. It reads every older one, down to 1.
    pub const fn newest(self) -> u32 {
        match self {
            Self::Base
            | Self::Commit
            | Self::Removing
            | Self::Request
            | Self::Partial
            | Self::Checkpoint
            | Self::Job
            | Self::OriginPin
            | Self::Migration
            | Self::FsFile
            | Self::Handoff => 1,
            // 2: inodes of the partial are owed flags; written only where some are.
            Self::ReceiveState => 2,
        }
    }

    /// Refuses a version that this program doesn't know. `name` is what people know the document by: a row's key or a file's name.
    ///
    /// # Errors
    /// [`FormatError::Newer`] above [`Kind::newest`]; [`FormatError::Damaged`] for 0, which was never written.
    pub fn check(self, name: &str, version: u32) -> Result<(), FormatError> {
        match version {
            0 => Err(FormatError::Damaged { name: name.to_owned(), why: "it has version 0".to_owned() }),
            v if v > self.newest() => Err(FormatError::Newer { name: name.to_owned(), version, known: self.newest() }),
            _ => Ok(()),
        }
    }

    /// Reads a JSON document with a `version`: the version first, so that a newer one is called newer and not damaged.
    ///
    /// # Errors
    /// As [`Kind::check`]; [`FormatError::Damaged`] for what is no JSON, or not of the kind's shape.
    pub fn read<T: DeserializeOwned>(self, name: &str, body: &[u8]) -> Result<T, FormatError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let damaged = |e: serde_json::Error| FormatError::Damaged { name: name.to_owned(), why: e.to_string() };
        let head: Head = serde_json::from_slice(body).map_err(damaged)?;
        self.check(name, head.version)?;
        serde_json::from_slice(body).map_err(damaged)
    }
}

/// A document that this program can't read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A newer program wrote it.
    #[error(
        "`{name}` has format version {version}, newer than this agent knows ({known}): upgrade the agent of this node; nothing of it is changed until then"
    )]
    Newer {
        /// The row's key or the file's name.
        name: String,
        /// The version it has.
        version: u32,
        /// The newest that this program reads.
        known: u32,
    },
    /// A kind of row that this program has never heard of: a newer one wrote it.
    #[error("`{name}` is of a kind that this agent doesn't know: upgrade the agent of this node; nothing of it is changed until then")]
    Unknown {
        /// The row's key.
        name: String,
    },
    /// Not what any version looks like.
    #[error("`{name}` is damaged: {why}")]
    Damaged {
        /// The row's key or the file's name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl FormatError {
    /// The closed kind, for conditions, metrics and answers.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Newer { .. } | Self::Unknown { .. } => Reason::FormatNewer,
            Self::Damaged { .. } => Reason::Internal,
        }
    }

    /// As conditions and requesters are told.
    pub fn problem(&self) -> Problem {
        Problem::new(self.reason(), self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Doc {
        version: u32,
        name: String,
    }

    #[test]
    fn a_newer_document_is_newer_even_if_it_would_parse_or_would_not() {
        for kind in Kind::ALL {
            for body in [r#"{"version":9,"name":"x"}"#, r#"{"version":9,"called":{}}"#] {
                let error = kind.read::<Doc>("row", body.as_bytes()).unwrap_err();
                assert_eq!(error, FormatError::Newer { name: "row".into(), version: 9, known: kind.newest() });
                assert_eq!(error.reason(), Reason::FormatNewer);
            }
        }
    }

    #[test]
    fn every_version_up_to_the_newest_is_read() {
        for kind in Kind::ALL {
            for version in 1..=kind.newest() {
                let body = format!(r#"{{"version":{version},"name":"x"}}"#);
                assert_eq!(kind.read::<Doc>("row", body.as_bytes()).unwrap(), Doc { version, name: "x".into() });
            }
        }
    }

    #[test]
    fn what_no_version_looks_like_is_damaged() {
        for bad in ["", "{", "{}", "null", r#"{"version":-1}"#, r#"{"version":0,"name":"x"}"#, r#"{"version":1}"#, "\0\0\0"] {
            let error = Kind::Base.read::<Doc>("base", bad.as_bytes()).unwrap_err();
            assert!(matches!(error, FormatError::Damaged { .. }), "{bad:?}: {error}");
        }
    }
}
