//! Problems on the wire: [`Problem`] ↔ gRPC status. One function says which code a [`Reason`] has; the reason itself and
//! its sentence ride in the details as a `Refusal` (agent.proto), so nothing is lost on the way.

use dotgraft_engine::model::{Problem, Reason};
use dotgraft_proto::agent::v1::Refusal;
use prost::Message;
use tonic::{Code, Status};

/// A message is cut to that many bytes: it travels in an HTTP/2 header, base64-coded, beside others.
pub const MAX_TEXT: usize = 1024;

/// The gRPC code of a reason, everywhere.
pub const fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::NotPlaced | Reason::NotFound => Code::NotFound,
        Reason::Busy | Reason::NoSpace => Code::ResourceExhausted,
        Reason::Deleting
        | Reason::ReceiverIsOwner
        | Reason::Diverged
        | Reason::NoCommonAncestor
        | Reason::NoCommits
        | Reason::InitialRefused
        | Reason::NestedSubvolume
        | Reason::SwapFile
        | Reason::Mounted
        | Reason::Pinned
        | Reason::Held
        | Reason::NotOwner
        | Reason::AuthorityUnknown
        | Reason::EpochRegression
        | Reason::FormatNewer => Code::FailedPrecondition,
        Reason::StaleEpoch | Reason::BaseGone | Reason::DigestMismatch => Code::Aborted,
        Reason::CorruptStream | Reason::Invalid => Code::InvalidArgument,
        Reason::Denied => Code::PermissionDenied,
        Reason::Unreachable | Reason::PoolFailed => Code::Unavailable,
        Reason::Timeout => Code::DeadlineExceeded,
        Reason::Unsupported => Code::Unimplemented,
        Reason::CorruptDisk => Code::DataLoss,
        Reason::Cancelled => Code::Cancelled,
        Reason::Internal => Code::Internal,
    }
}

/// A problem as status with its `Refusal`.
pub fn status_of(problem: &Problem) -> Status {
    let message = cut(&problem.message, MAX_TEXT);
    let refusal = Refusal {
        reason: format!("{:?}", problem.reason),
        message: message.to_owned(),
        permanent: problem.reason.is_permanent(),
        epoch: 0,
    };
    Status::with_details(code_of(problem.reason), message, refusal.encode_to_vec().into())
}

/// What a peer's status means here. A `Refusal` that this program understands wins over the code; a reason of a newer
/// program falls back to the code.
pub fn problem_of(status: &Status) -> Problem {
    let refusal = Some(status.details()).filter(|d| !d.is_empty() && d.len() <= 4 * MAX_TEXT).and_then(|d| Refusal::decode(d).ok());
    if let Some(refusal) = refusal {
        let reason = reason_named(&refusal.reason).unwrap_or_else(|| reason_of(status.code()));
        return Problem::new(reason, cut(&refusal.message, MAX_TEXT));
    }
    Problem::new(reason_of(status.code()), cut(status.message(), MAX_TEXT))
}

/// The reason with that CamelCase name, if this program knows it.
fn reason_named(name: &str) -> Option<Reason> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// What a bare code, most often made by the transport, means.
const fn reason_of(code: Code) -> Reason {
    match code {
        Code::DeadlineExceeded => Reason::Timeout,
        Code::PermissionDenied | Code::Unauthenticated => Reason::Denied,
        Code::InvalidArgument | Code::OutOfRange => Reason::Invalid,
        Code::NotFound => Reason::NotFound,
        Code::ResourceExhausted => Reason::Busy,
        Code::Unimplemented => Reason::Unsupported,
        Code::DataLoss => Reason::CorruptStream,
        // A connection that breaks shows as one of these: by the transport's own code, a reset stream or an I/O error.
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal | Code::Aborted => Reason::Unreachable,
        Code::Ok | Code::AlreadyExists | Code::FailedPrecondition => Reason::Internal,
    }
}

/// The longest prefix of at most `max` bytes that ends between characters.
pub(super) fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Reason; 31] = [
        Reason::Busy,
        Reason::NotPlaced,
        Reason::Deleting,
        Reason::ReceiverIsOwner,
        Reason::StaleEpoch,
        Reason::BaseGone,
        Reason::Diverged,
        Reason::NoCommonAncestor,
        Reason::NoCommits,
        Reason::InitialRefused,
        Reason::NoSpace,
        Reason::NestedSubvolume,
        Reason::SwapFile,
        Reason::CorruptStream,
        Reason::DigestMismatch,
        Reason::Denied,
        Reason::Unreachable,
        Reason::Timeout,
        Reason::Unsupported,
        Reason::FormatNewer,
        Reason::Invalid,
        Reason::Mounted,
        Reason::Pinned,
        Reason::NotFound,
        Reason::NotOwner,
        Reason::AuthorityUnknown,
        Reason::EpochRegression,
        Reason::PoolFailed,
        Reason::CorruptDisk,
        Reason::Cancelled,
        Reason::Internal,
    ];

    #[test]
    fn every_reason_survives_the_wire_and_none_is_success() {
        for reason in ALL {
            let problem = Problem::new(reason, format!("because of {reason:?}"));
            let status = status_of(&problem);
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(problem_of(&status), problem);
        }
    }

    #[test]
    fn a_reason_of_a_newer_program_falls_back_to_its_code() {
        let refusal = Refusal { reason: "FromTheFuture".into(), message: "m".into(), permanent: true, epoch: 0 };
        let status = Status::with_details(Code::PermissionDenied, "m", refusal.encode_to_vec().into());
        assert_eq!(problem_of(&status), Problem::new(Reason::Denied, "m"));
    }

    #[test]
    fn garbage_in_the_details_is_no_refusal() {
        let status = Status::with_details(Code::Unavailable, "m", vec![0xff; 9].into());
        assert_eq!(problem_of(&status), Problem::new(Reason::Unreachable, "m"));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let problem = Problem::new(Reason::Internal, "ä".repeat(MAX_TEXT));
        let back = problem_of(&status_of(&problem));
        assert_eq!(back.message.len(), MAX_TEXT);
        assert_eq!(cut("aä", 2), "a");
    }
}
