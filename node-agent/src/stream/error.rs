//! What can go wrong while a stream is applied, and which [`Reason`] that is for conditions, metrics and gRPC codes.
//!
//! `parse`, `confine` and `apply` return a [`Cause`]; `apply` adds where in the stream it happened. The peer service hands
//! the resulting [`StreamError`] to the actor.

use dotgraft_engine::model::{Problem, Reason};
use rustix::io::Errno;

use super::parse::CommandKind;

/// A stream that could not be applied: where and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stream offset {offset}{}: {cause}", describe(*.command))]
pub struct StreamError {
    /// Offset of the first byte of the command (or header) that failed.
    pub offset: u64,
    /// The command, when it was known by then.
    pub command: Option<CommandKind>,
    /// What is wrong.
    pub cause: Cause,
}

fn describe(command: Option<CommandKind>) -> String {
    command.map_or_else(String::new, |command| format!(", command {command:?}"))
}

/// What is wrong with a stream, or with the tree it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The bytes are no send stream, or an attribute is missing, doubled or of the wrong size.
    #[error("malformed: {0}; send it again, and check the sender if it happens twice")]
    Malformed(&'static str),
    /// The checksum of a command does not match its bytes.
    #[error("the checksum of the command does not match; send it again")]
    Checksum,
    /// A length is above its bound.
    #[error("{what} of {length} bytes, at most {max} are taken")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// How long it says it is.
        length: u64,
        /// The bound.
        max: u64,
    },
    /// A path or name that could lead out of the subvolume, or is too long.
    #[error("forbidden path: {0}")]
    Path(&'static str),
    /// A command where it may not be.
    #[error("out of order: {0}")]
    Sequence(&'static str),
    /// A clone source that is neither the subvolume itself nor the base.
    #[error("clone from a subvolume that is neither the stream's own nor its base")]
    ForeignClone,
    /// Target and base are named by one UUID: a clone from the base can't be told from one within the target.
    #[error("target and base have one UUID; something in the volume has set a received UUID: take a new commit, and send that")]
    OneUuid,
    /// A feature that this receiver does not have.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// Content that the class of this stream does not allow.
    #[error("not allowed in a stream from a remote: {0}")]
    Forbidden(&'static str),
    /// A path leads across a mount or into another subvolume.
    #[error("{path:?} is on another filesystem or subvolume")]
    Crossing {
        /// The path, lossily as text.
        path: String,
    },
    /// The kernel refused a call.
    #[error("{call} of {path:?}: {errno}")]
    System {
        /// The call.
        call: &'static str,
        /// What it was for, lossily as text.
        path: String,
        /// Its answer.
        errno: Errno,
    },
    /// An earlier command failed: the tree is no prefix of the stream any more.
    #[error("an earlier command of this stream failed; go on from the last checkpoint")]
    Failed,
    /// A saved state that does not fit.
    #[error("the saved state can't be used: {0}; start from the beginning")]
    State(&'static str),
}

impl Cause {
    /// A refusal of the kernel.
    pub(crate) fn system(call: &'static str, path: &[u8], errno: Errno) -> Self {
        Self::System { call, path: String::from_utf8_lossy(path).into_owned(), errno }
    }

    /// The closed kind of it.
    pub fn kind(&self) -> Reason {
        match self {
            Self::Malformed(_)
            | Self::Checksum
            | Self::TooLong { .. }
            | Self::Path(_)
            | Self::Sequence(_)
            | Self::ForeignClone
            | Self::OneUuid
            | Self::Crossing { .. }
            // The receiver drops what it has and the checkpoint with it, as for bytes that can't be used.
            | Self::State(_) => Reason::CorruptStream,
            Self::Unsupported(_) => Reason::Unsupported,
            Self::Forbidden(_) => Reason::Denied,
            Self::System { errno, .. } => kind_of_errno(*errno),
            Self::Failed => Reason::Internal,
        }
    }
}

impl StreamError {
    /// The closed kind of it.
    pub fn kind(&self) -> Reason {
        self.cause.kind()
    }

    /// As the problem that conditions and peers are told.
    pub fn problem(&self) -> Problem {
        Problem::new(self.kind(), self.to_string())
    }
}

/// What an answer of the kernel means for a stream that is applied to a tree nobody else writes to.
fn kind_of_errno(errno: Errno) -> Reason {
    match errno {
        Errno::NOSPC | Errno::DQUOT => Reason::NoSpace,
        Errno::ROFS | Errno::IO | Errno::NODEV | Errno::NXIO => Reason::PoolFailed,
        Errno::UCLEAN | Errno::BADMSG | Errno::ILSEQ => Reason::CorruptDisk,
        Errno::PERM | Errno::ACCESS => Reason::Denied,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY => Reason::Unsupported,
        // The tree is not as the stream says it is: names that are there or not, of another type, loops, limits.
        Errno::NOENT
        | Errno::EXIST
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::NOTEMPTY
        | Errno::LOOP
        | Errno::XDEV
        | Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::FBIG
        | Errno::OVERFLOW
        | Errno::MLINK
        | Errno::TXTBSY
        | Errno::TOOBIG
        | Errno::RANGE
        | Errno::NODATA => Reason::CorruptStream,
        _ => Reason::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_offset_and_command() {
        let error =
            StreamError { offset: 4711, command: Some(CommandKind::Rename), cause: Cause::system("renameat2", b"a/\xff", Errno::NOENT) };
        let text = error.to_string();
        assert!(text.contains("4711") && text.contains("Rename") && text.contains("renameat2"), "{text}");
        assert_eq!(error.kind(), Reason::CorruptStream);
    }

    #[test]
    fn a_full_pool_and_a_failed_pool_are_no_faults_of_the_stream() {
        assert_eq!(Cause::system("pwrite", b"f", Errno::DQUOT).kind(), Reason::NoSpace);
        assert_eq!(Cause::system("pwrite", b"f", Errno::NOSPC).kind(), Reason::NoSpace);
        assert_eq!(Cause::system("pwrite", b"f", Errno::ROFS).kind(), Reason::PoolFailed);
    }
}
