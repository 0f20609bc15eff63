//! What a CSI call can fail with: the one place that maps errors to gRPC codes (CSI spec, "Error Scheme" of each call).

use tonic::{Code, Status};

use crate::error::{Error, Kind};

/// Why a CSI call failed. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// The request is wrong, and will be however often it is sent.
    #[error("{0}")]
    Invalid(String),
    /// A volume, snapshot or node that isn't there.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken by something else.
    #[error("{0}")]
    Exists(String),
    /// It goes on; or the page token is no good any more. Call again.
    #[error("{0}")]
    InProgress(String),
    /// Something must be let go first.
    #[error("{0}")]
    InUse(String),
    /// No room, or no place that is allowed.
    #[error("{0}")]
    Exhausted(String),
    /// A size that can't be had.
    #[error("{0}")]
    OutOfRange(String),
    /// The watches aren't filled, or the API server is away.
    #[error("{0}")]
    Unavailable(String),
    /// The API server said no.
    #[error("{0}")]
    Api(#[from] Error),
}

impl From<kube::Error> for CsiError {
    fn from(e: kube::Error) -> Self {
        Self::Api(Error::Api(e))
    }
}

impl CsiError {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::InProgress(_) => Code::Aborted,
            Self::InUse(_) => Code::FailedPrecondition,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Api(e) => match e.kind() {
                Kind::Conflict => Code::Aborted,
                Kind::Invalid => Code::InvalidArgument,
                Kind::Unavailable => Code::Unavailable,
                Kind::Forbidden | Kind::Internal => Code::Internal,
            },
        }
    }
}

impl From<CsiError> for Status {
    fn from(e: CsiError) -> Self {
        let text: String = e.to_string().chars().take(MESSAGE_MAX).collect();
        Self::new(e.code(), text)
    }
}

/// Longest message, in characters: it stands in events and in statuses of other objects.
const MESSAGE_MAX: usize = 1024;

/// A code as metrics spell it: a closed set.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::Aborted => "ABORTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unavailable => "UNAVAILABLE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, reason: &str) -> CsiError {
        let status = kube::core::Status { code, reason: reason.into(), ..kube::core::Status::default() };
        CsiError::from(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn what_can_be_tried_again_is_told_from_what_can_not() {
        assert_eq!(api(409, "Conflict").code(), Code::Aborted);
        assert_eq!(api(422, "Invalid").code(), Code::InvalidArgument);
        assert_eq!(api(503, "ServiceUnavailable").code(), Code::Unavailable);
        assert_eq!(api(403, "Forbidden").code(), Code::Internal);
    }

    #[test]
    fn a_message_is_bounded() {
        let status = Status::from(CsiError::Invalid("x".repeat(10_000)));
        assert_eq!(status.message().len(), MESSAGE_MAX);
    }
}
