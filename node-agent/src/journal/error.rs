//! Why the journal could not do it. `kind()` is what conditions, metrics and gRPC codes are made from.

use dotgraft_engine::ids::PoolId;
use dotgraft_engine::model::{Problem, Reason};
use rusqlite::ErrorCode;

/// Errors of opening and of requests. Cheap to clone: one failed transaction answers several requests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The file belongs to another disk.
    #[error(
        "this journal is bound to pool {bound}, but the pool here is {asked}: attach the old pool again, or give the new one a state directory of its own; nothing was changed"
    )]
    OtherPool {
        /// The pool it was made for.
        bound: PoolId,
        /// The pool that is here.
        asked: PoolId,
    },
    /// A newer agent wrote it.
    #[error("the journal has format {found}, this agent knows up to {known}: run the newer agent again")]
    TooNew {
        /// Its `user_version`.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Some other SQLite file, or no SQLite file at all.
    #[error("the file is not a journal of this agent ({message}): move it away or correct --state-dir")]
    NotAJournal {
        /// What it looks like.
        message: String,
    },
    /// Another process has it.
    #[error("another process has the journal open: is a second agent running on this node?")]
    InUse,
    /// No space, and the ballast didn't help. Nothing of the batch is there.
    #[error("the disk of the state directory is full: free some space there")]
    Full,
    /// Out of bounds or otherwise refused; nothing of the batch is there.
    #[error("{message}")]
    Invalid {
        /// Which bound.
        message: String,
    },
    /// I/O error, corruption, and what else a disk can do. Whether the batch is there, only a new `load` tells.
    #[error("the journal's storage failed: {message}")]
    Storage {
        /// In SQLite's words.
        message: String,
    },
    /// The journal was closed.
    #[error("the journal is closed")]
    Stopped,
}

impl JournalError {
    /// The closed kind.
    pub const fn kind(&self) -> Reason {
        match self {
            Self::Full => Reason::NoSpace,
            Self::Invalid { .. } => Reason::Invalid,
            Self::InUse => Reason::Busy,
            Self::OtherPool { .. } => Reason::PoolFailed,
            Self::TooNew { .. } => Reason::Unsupported,
            Self::NotAJournal { .. } | Self::Storage { .. } | Self::Stopped => Reason::Internal,
        }
    }

    /// As the problem that requesters get.
    pub fn problem(&self) -> Problem {
        Problem::new(self.kind(), self.to_string())
    }
}

impl From<rusqlite::Error> for JournalError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse,
            Some(ErrorCode::NotADatabase) => Self::NotAJournal { message: e.to_string() },
            Some(ErrorCode::TooBig | ErrorCode::ConstraintViolation) => Self::Invalid { message: e.to_string() },
            _ => Self::Storage { message: e.to_string() },
        }
    }
}
