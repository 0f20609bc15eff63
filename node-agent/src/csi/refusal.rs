//! Why a CSI call is refused, and the one place that says which gRPC code a [`Reason`] of the engine has for CSI.
//!
//! The codes are CSI's ("Error Scheme" of the specification): `ABORTED` is "an operation is in progress, ask again", `NOT_FOUND` "no such
//! volume here". The kubelet takes every code but `ABORTED`, `CANCELLED`, `DEADLINE_EXCEEDED` and `UNAVAILABLE` as "nothing was mounted".

use dotgraft_engine::model::{Problem, Reason};
use tonic::{Code, Status};

/// A call's error: a code for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct Refusal {
    /// See the module's documentation.
    pub code: Code,
    /// What is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
    /// No such volume here.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }
    /// Something has to be done or undone first.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }
    /// It is there, but not so.
    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }
    /// Ask again.
    pub fn aborted(message: impl Into<String>) -> Self {
        Self::new(Code::Aborted, message)
    }
}

/// The code of a reason in answers to CSI.
pub const fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::NotFound | Reason::NotPlaced => Code::NotFound,
        Reason::Busy | Reason::Held | Reason::StaleEpoch | Reason::BaseGone | Reason::DigestMismatch | Reason::Cancelled => Code::Aborted,
        Reason::Deleting
        | Reason::NotOwner
        | Reason::AuthorityUnknown
        | Reason::EpochRegression
        | Reason::FormatNewer
        | Reason::Mounted
        | Reason::Pinned
        | Reason::NestedSubvolume
        | Reason::SwapFile
        | Reason::ReceiverIsOwner
        | Reason::Diverged
        | Reason::NoCommonAncestor
        | Reason::NoCommits
        | Reason::InitialRefused
        | Reason::Unsupported => Code::FailedPrecondition,
        Reason::NoSpace => Code::ResourceExhausted,
        Reason::Invalid | Reason::CorruptStream => Code::InvalidArgument,
        Reason::Denied => Code::PermissionDenied,
        Reason::Unreachable | Reason::PoolFailed => Code::Unavailable,
        Reason::Timeout => Code::DeadlineExceeded,
        Reason::CorruptDisk => Code::DataLoss,
        Reason::Internal => Code::Internal,
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { code: code_of(problem.reason), message: format!("{:?}: {}", problem.reason, problem.message) }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        // A header has no room for more, and no newline.
        let message: String = refusal.message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1024).collect();
        Status::new(refusal.code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_aborted_and_what_a_person_must_mend_is_not() {
        for (reason, code) in [
            (Reason::Busy, Code::Aborted),
            (Reason::Held, Code::Aborted),
            (Reason::StaleEpoch, Code::Aborted),
            (Reason::NotFound, Code::NotFound),
            (Reason::NotOwner, Code::FailedPrecondition),
            (Reason::AuthorityUnknown, Code::FailedPrecondition),
            (Reason::Deleting, Code::FailedPrecondition),
            (Reason::Mounted, Code::FailedPrecondition),
            (Reason::NoSpace, Code::ResourceExhausted),
            (Reason::Invalid, Code::InvalidArgument),
            (Reason::PoolFailed, Code::Unavailable),
            (Reason::Internal, Code::Internal),
        ] {
            let status = Status::from(Refusal::from(Problem::new(reason, "said\nso")));
            assert_eq!(status.code(), code, "{reason:?}");
            assert_eq!(status.message(), format!("{reason:?}: said so"));
        }
    }
}
