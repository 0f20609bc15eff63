//! Plain HTTP for probes and metrics: GET, answers that are made from memory, nothing secret.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::{Door, Guest, Limits};

/// Of a port that others reach.
pub const METRICS: Limits = Limits { total: 64, per_address: 8, unserved: HEADER };
/// Of a port that only the machine itself reaches.
pub const PROBES: Limits = Limits { total: 32, per_address: 32, unserved: HEADER };
/// Longest that the head of a request may take.
const HEADER: Duration = Duration::from_secs(5);
/// A connection ends after so long, whatever it does.
const LIFE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its status.
    pub status: StatusCode,
    /// What is in it.
    pub body: String,
    kind: &'static str,
}

impl Page {
    /// Of plain text.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, body: body.into(), kind: "text/plain; charset=utf-8" }
    }

    /// Whether it is ready: an answer without reasons why not, one a line.
    pub fn ready(reasons: &[String]) -> Self {
        if reasons.is_empty() {
            Self::text(StatusCode::OK, "ok\n")
        } else {
            Self::text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
        }
    }

    /// Of metrics.
    pub fn metrics(body: String) -> Self {
        Self { status: StatusCode::OK, body, kind: "application/openmetrics-text; version=1.0.0; charset=utf-8" }
    }
}

/// What is at a path; `None`: nothing.
pub type Pages = Arc<dyn Fn(&str) -> Option<Page> + Send + Sync>;

/// The three that our programs have: `/healthz`, `/readyz`, `/metrics`. `ready` gives the reasons why not, empty when it is.
pub fn usual(ready: impl Fn() -> Vec<String> + Send + Sync + 'static, metrics: impl Fn() -> String + Send + Sync + 'static) -> Pages {
    Arc::new(move |path| match path {
        "/healthz" => Some(Page::text(StatusCode::OK, "ok\n")),
        "/readyz" => Some(Page::ready(&ready())),
        "/metrics" => Some(Page::metrics(metrics())),
        _ => None,
    })
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, limits: Limits, pages: Pages) {
    let door = Door::new(limits);
    loop {
        let (stream, _, guest) = door.next(&listener).await;
        tokio::spawn(connection(stream, guest, Arc::clone(&pages)));
    }
}

async fn connection(stream: TcpStream, guest: Guest, pages: Pages) {
    let mark = guest.mark();
    let service = service_fn(|request| {
        let response = answer(&request, &pages);
        mark.served();
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(16 << 10);
    let _ = tokio::time::timeout(LIFE, guest.serve(http.serve_connection(TokioIo::new(stream), service))).await;
}

fn answer<B>(request: &Request<B>, pages: &Pages) -> Response<Full<Bytes>> {
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    let page = if is_read { pages(request.uri().path()) } else { Some(Page::text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n")) };
    let page = page.unwrap_or_else(|| Page::text(StatusCode::NOT_FOUND, "there is /healthz, /readyz and /metrics\n"));
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = page.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.kind));
    if !is_read {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn served(limits: Limits, reasons: Arc<Mutex<Vec<String>>>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = usual(move || reasons.lock().unwrap().clone(), || "dotgraft_actors 0\n".into());
        (address, tokio::spawn(serve(listener, limits, pages)))
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// One request of several on a connection.
    async fn asks_again(stream: &mut TcpStream) -> bool {
        let mut answer = [0; 1024];
        let sent = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let n = stream.read(&mut answer).await.unwrap_or_default();
        sent.is_ok() && answer[..n].ends_with(b"ok\n")
    }

    #[tokio::test]
    async fn probes_answer_and_say_why_not() {
        let reasons = Arc::new(Mutex::new(vec!["pool: not mounted".to_owned(), "Replicas: not listed yet".to_owned()]));
        let (address, server) = served(PROBES, Arc::clone(&reasons)).await;
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

    #[tokio::test]
    async fn silent_connections_keep_no_probe_out() {
        for limits in [METRICS, PROBES] {
            let (address, server) = served(limits, Arc::default()).await;
            let mut kept = TcpStream::connect(address).await.unwrap();
            assert!(asks_again(&mut kept).await, "the first is answered, and the connection stays");
            let mut silent = Vec::new();
            for _ in 0..limits.total * 3 {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let answer = tokio::time::timeout(Duration::from_secs(3), ask(address, "GET /healthz")).await;
            assert!(answer.is_ok_and(|a| a.starts_with("HTTP/1.1 200")), "a probe has given up by then, and they have not");
            assert!(asks_again(&mut kept).await, "silent ones go before one that was served");
            drop(silent);
            server.abort();
        }
    }

    #[tokio::test]
    async fn a_head_that_trickles_is_cut() {
        let (address, server) = served(METRICS, Arc::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(asks_again(&mut stream).await, "the first is answered, and the connection stays");
        let (mut read, mut write) = stream.into_split();
        let trickle = tokio::spawn(async move {
            while write.write_all(b"G").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let mut left = Vec::new();
        let _ = tokio::time::timeout(LIFE / 2, read.read_to_end(&mut left)).await.expect("it is cut");
        trickle.abort();
        server.abort();
    }
}
