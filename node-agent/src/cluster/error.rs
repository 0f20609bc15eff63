//! What can go wrong with a request to the API server, in the few kinds that callers tell apart.

use dotgraft_engine::model::{Problem, Reason};

/// Errors of requests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// No answer, or one that says nothing (5xx, throttled). A write may have happened.
    #[error("the API server can't be reached: {message}")]
    Unreachable {
        /// What was seen.
        message: String,
    },
    /// 404.
    #[error("the API server has no such object")]
    Missing,
    /// 409: somebody else wrote first.
    #[error("the object was changed by somebody else in the meantime")]
    Conflict,
    /// 401, 403: token, RBAC or an admission policy.
    #[error("the API server refuses it: {message}")]
    Denied {
        /// In its words.
        message: String,
    },
    /// Anything else that trying again won't change.
    #[error("the request failed: {message}")]
    Refused {
        /// In the server's words, or ours.
        message: String,
    },
    /// The object is there but doesn't make sense to this program.
    #[error("the object can't be understood: {message}")]
    Malformed {
        /// Which part.
        message: String,
    },
}

impl ClusterError {
    /// The closed kind.
    pub const fn kind(&self) -> Reason {
        match self {
            Self::Unreachable { .. } => Reason::Unreachable,
            Self::Missing => Reason::NotFound,
            Self::Conflict => Reason::Busy,
            Self::Denied { .. } => Reason::Denied,
            Self::Refused { .. } => Reason::Internal,
            Self::Malformed { .. } => Reason::Invalid,
        }
    }

    /// As the problem that requesters get.
    pub fn problem(&self) -> Problem {
        Problem::new(self.kind(), self.to_string())
    }
}

impl From<kube::Error> for ClusterError {
    fn from(e: kube::Error) -> Self {
        match e {
            kube::Error::Api(status) => {
                let message: String = status.message.chars().take(1024).collect();
                match status.code {
                    404 => Self::Missing,
                    409 => Self::Conflict,
                    401 | 403 => Self::Denied { message },
                    429 | 500..=599 => Self::Unreachable { message: format!("HTTP {}: {message}", status.code) },
                    code => Self::Refused { message: format!("HTTP {code}: {message}") },
                }
            }
            kube::Error::SerdeError(e) => Self::Malformed { message: e.to_string() },
            kube::Error::BuildRequest(e) => Self::Refused { message: e.to_string() },
            other => Self::Unreachable { message: chain(&other) },
        }
    }
}

/// An error with what caused it: "client error (Connect): connection refused" instead of "client error".
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text.chars().take(1024).collect()
}
