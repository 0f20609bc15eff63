//! `/healthz`, `/readyz` and `/metrics` on a port of their own (csi.md §2). GET only; says nothing about any Filesystem.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// A connection ends after so long, whatever it does.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);

/// Why the agent isn't ready: one sentence each, empty when it is.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, metrics: Metrics, ready: Readiness) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!(error = %e, "the probe port can't accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (metrics, ready) = (metrics.clone(), Arc::clone(&ready));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &metrics, &ready);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10)).max_buf_size(16 << 10);
            let _ = tokio::time::timeout(CONNECTION_LIFE, http.serve_connection(TokioIo::new(stream), service)).await;
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, ready: &Readiness) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => {
            let reasons = ready();
            if reasons.is_empty() {
                text(StatusCode::OK, "ok\n".into())
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
            }
        }
        "/metrics" => {
            let mut response = text(StatusCode::OK, metrics.encode());
            let openmetrics = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, openmetrics);
            response
        }
        _ => text(StatusCode::NOT_FOUND, "there is /healthz, /readyz and /metrics\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_answer_and_say_why_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reasons = Arc::new(Mutex::new(vec!["pool: not mounted".to_owned(), "Replicas: not listed yet".to_owned()]));
        let told = Arc::clone(&reasons);
        let server = tokio::spawn(serve(listener, Metrics::new(), Arc::new(move || told.lock().unwrap().clone())));

        let answer = ask(address, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("pool: not mounted\nReplicas: not listed yet\n"), "{answer}");
        assert!(ask(address, "GET /healthz").await.starts_with("HTTP/1.1 200"), "alive though not ready");
        reasons.lock().unwrap().clear();
        assert!(ask(address, "GET /readyz").await.ends_with("ok\n"));
        let metrics = ask(address, "GET /metrics").await;
        assert!(metrics.contains("openmetrics-text") && metrics.contains("dotgraft_actors 0"), "{metrics}");
        assert!(ask(address, "POST /healthz").await.starts_with("HTTP/1.1 405"));
        assert!(ask(address, "GET /else").await.starts_with("HTTP/1.1 404"));
        server.abort();
    }
}
