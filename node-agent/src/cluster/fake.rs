//! A stand-in for the API server in tests: a function from request to answer behind a real `kube::Client`.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A request, read whole.
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

/// What comes back.
pub(crate) enum Answer {
    /// JSON with a status code.
    Json(u16, Value),
    /// Lines of a watch, which then ends.
    Lines(Vec<Value>),
    /// The connection breaks.
    Broken,
    /// Nothing, ever.
    Silence,
}

impl Answer {
    /// An error as the API server words it.
    pub(crate) fn error(code: u16, reason: &str) -> Self {
        Self::Json(
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code}),
        )
    }
}

/// A client whose every request is answered by `server`.
pub(crate) fn client(server: impl Fn(Asked) -> Answer + Send + Sync + 'static) -> Client {
    let server = Arc::new(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&server);
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.map_err(|e| std::io::Error::other(e.to_string()))?.to_bytes();
            let asked = Asked {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            };
            let (code, text) = match server(asked) {
                Answer::Json(code, value) => (code, value.to_string()),
                Answer::Lines(lines) => (200, lines.iter().map(|l| l.to_string() + "\n").collect()),
                Answer::Broken => return Err(std::io::Error::other("connection reset")),
                Answer::Silence => std::future::pending().await,
            };
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = hyper::StatusCode::from_u16(code).expect("a code");
            Ok::<_, std::io::Error>(response)
        }
    });
    Client::new(service, "default")
}
