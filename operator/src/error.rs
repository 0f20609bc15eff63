//! What a reconcile can fail with, and the closed set of kinds that metrics and backoff use.

use crate::ca::CaError;

/// Why a reconcile ended early; it is always tried again with backoff.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The CA can't be read or used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// An object lacks what the API server always sets.
    #[error("{0} has no {1}")]
    Incomplete(String, &'static str),
    /// An object of ours can't be written as JSON.
    #[error("serialising: {0}")]
    Json(#[from] serde_json::Error),
}

/// Label of an error in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody else wrote first; at once again, with fresh data.
    Conflict,
    /// Rights or policies forbid it.
    Forbidden,
    /// The API server refuses the content.
    Invalid,
    /// The API server is down, slow or overloaded.
    Unavailable,
    /// Ours.
    Internal,
}

impl Kind {
    /// As metrics spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Forbidden => "forbidden",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
            Self::Internal => "error",
        }
    }
}

impl Error {
    /// The closed kind.
    pub fn kind(&self) -> Kind {
        let (Self::Api(api) | Self::Ca(CaError::Api(api))) = self else { return Kind::Internal };
        match api {
            kube::Error::Api(s) if s.is_conflict() || s.is_already_exists() => Kind::Conflict,
            kube::Error::Api(s) if s.is_forbidden() || s.code == 401 => Kind::Forbidden,
            kube::Error::Api(s) if s.is_invalid() || s.code == 400 => Kind::Invalid,
            kube::Error::Api(s) if s.code < 500 && s.code != 429 => Kind::Internal,
            _ => Kind::Unavailable,
        }
    }

    /// Whether the object is not there (any more).
    pub fn is_not_found(error: &kube::Error) -> bool {
        matches!(error, kube::Error::Api(s) if s.is_not_found())
    }
}
