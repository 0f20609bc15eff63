//! Receiver of btrfs send streams, of our own: confined, bounded in memory, resumable, digested as it goes.
//!
//! `peer` feeds what arrives into an [`Applier`] on a blocking thread; the actor owns checkpoints and the commit.
//! [`treedigest`] says whether two trees are the same, for `verify` and tests. Design: storage.md §5, replication.md §3,
//! platform.md §4.

mod apply;
mod clone;
pub mod complete;
mod confine;
mod data;
mod donor;
mod error;
mod flags;
pub mod frame;
mod make;
mod object;
pub mod parse;
pub mod path;
mod state;
mod times;
pub mod treedigest;
mod zeros;

pub use apply::Applier;
pub use donor::Donor;
pub use error::{Cause, StreamError};
pub use state::{ApplierState, StreamIds};

/// What a stream may bring with it (storage.md §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentClass {
    /// Between our own pools: everything, exactly.
    Trusted,
    /// From a remote: device nodes and compressed extents are refused; setuid and setgid bits and `trusted.` and
    /// `security.` xattrs are left out and counted in [`Skipped`].
    Restricted,
}

/// Bounds of what is kept for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest command in bytes; [`frame::MAX_COMMAND`] by default.
    pub max_command: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_command: frame::MAX_COMMAND }
    }
}

/// How far a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Bytes of complete commands applied, stream header included.
    pub offset: u64,
    /// BLAKE3 of exactly those bytes.
    pub digest: [u8; 32],
}

/// What was left out of a stream, by count of commands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// `trusted.` and `security.` xattrs of a restricted stream.
    pub xattrs: u64,
    /// setuid and setgid bits of a restricted stream.
    pub set_id_bits: u64,
    /// Inode flags that nobody sets.
    pub inode_flags: u64,
}
