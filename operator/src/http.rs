//! `/healthz`, `/readyz` and `/metrics` on a port of their own; reads only, no secrets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// Longest that a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the probes say.
#[derive(Debug)]
pub struct Health {
    trouble: Mutex<Option<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self { trouble: Mutex::new(Some("starting".into())) }
    }
}

impl Health {
    /// Why it isn't ready, a sentence; `None`: it is. Ready means: the CRDs are new enough, all caches have been filled at least
    /// once, and no watch is broken for long.
    pub fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(path: &str, health: &Health, metrics: &Metrics) -> (StatusCode, String) {
    match path {
        "/healthz" => (StatusCode::OK, "ok\n".into()),
        "/readyz" => match health.trouble() {
            None => (StatusCode::OK, "ok\n".into()),
            Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, trouble + "\n"),
        },
        "/metrics" => (StatusCode::OK, metrics.render()),
        _ => (StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".into()),
    }
}

fn respond(request: &Request<Incoming>, health: &Health, metrics: &Metrics) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let (status, body) = answer(path, health, metrics);
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = if path == "/metrics" { "application/openmetrics-text; version=1.0.0" } else { "text/plain" };
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
}

/// Serves until the listener fails for good. Binding errors are the caller's to report.
///
/// # Errors
///
/// The address can't be bound, or the listener fails.
pub async fn serve(address: SocketAddr, health: Arc<Health>, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(%address, "serving probes and metrics");
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (health, metrics) = (health.clone(), metrics.clone());
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = respond(&request, &health, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "serving a probe");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_ready_until_nothing_stands_in_the_way_and_says_what_does() {
        let (health, metrics) = (Health::default(), Metrics::default());
        assert_eq!(answer("/healthz", &health, &metrics).0, StatusCode::OK);
        assert_eq!(answer("/readyz", &health, &metrics).0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_trouble(Some("the CRD dots.dotgraft.dev is missing".into()));
        assert!(answer("/readyz", &health, &metrics).1.contains("dots.dotgraft.dev"));
        health.set_trouble(None);
        assert_eq!(answer("/readyz", &health, &metrics).0, StatusCode::OK);
        assert_eq!(answer("/secret", &health, &metrics).0, StatusCode::NOT_FOUND);
    }
}
