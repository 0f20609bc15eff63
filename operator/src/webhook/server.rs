//! TLS and HTTP of the webhook: `POST /pods`. Bounded in bytes, connections and time; a request is answered from memory.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dotgraft_door::{Door, Guest, Limits, Mark};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{prefer, review};
use crate::context::Ctx;

/// Where pods are sent.
pub const PATH: &str = "/pods";
/// Largest request, in bytes: the API server takes objects of up to 3 MiB.
const REQUEST_MAX: usize = 4 << 20;
/// Longest wait for the next request's head: the API server keeps idle connections for 90 s.
const IDLE: Duration = Duration::from_secs(120);
/// Longest wait for a body.
const BODY: Duration = Duration::from_secs(5);
/// All requests of an API server come from one address, and it keeps connections for the next ones. A first request has to be whole after
/// five seconds, its handshake included; the API server gives up after one.
const LIMITS: Limits = Limits { total: 256, per_address: 192, unserved: Duration::from_secs(5) };

/// What is presented to whoever connects; nothing before there is a certificate.
#[derive(Debug, Default)]
pub struct Served(RwLock<Option<Arc<CertifiedKey>>>);

impl Served {
    /// For every handshake from now on.
    pub fn set(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a request ended, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The pod got preferences.
    Patched,
    /// Nothing to add: no volume of ours that is somewhere.
    Unchanged,
    /// Not looked at: a cache isn't filled, or it is no pod that we can read.
    Skipped,
}

impl Outcome {
    /// As metrics spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Patched => "patched",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
        }
    }
}

/// The answer to a body, in JSON; `None` where there is nobody to answer to.
pub fn decide(body: &[u8], ctx: &Ctx) -> (Outcome, Option<Vec<u8>>) {
    let Some(asked) = review::read(body) else { return (Outcome::Skipped, None) };
    let (outcome, patch) = match asked.pod {
        Some(pod) if ctx.caches.fresh() => {
            let terms = if pod.placed { Vec::new() } else { prefer::terms(&pod, ctx) };
            let patch = review::patch(pod.affinity.as_ref(), &terms);
            (if patch.is_some() { Outcome::Patched } else { Outcome::Unchanged }, patch)
        }
        _ => (Outcome::Skipped, None),
    };
    (outcome, Some(review::answer(&asked.uid, patch.as_ref()).to_string().into_bytes()))
}

async fn respond<B>(request: Request<B>, ctx: &Ctx, mark: &Mark) -> Response<Full<Bytes>>
where
    B: Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != PATH || request.method() != Method::POST {
        return plain(StatusCode::NOT_FOUND, "POST an AdmissionReview to /pods\n");
    }
    let start = Instant::now();
    let body = match timeout(BODY, Limited::new(request.into_body(), REQUEST_MAX).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return plain(StatusCode::PAYLOAD_TOO_LARGE, "no request of up to 4 MiB\n"),
        Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "the body did not come\n"),
    };
    let (outcome, answer) = decide(&body, ctx);
    ctx.metrics.webhook(outcome.as_str(), start.elapsed());
    let Some(answer) = answer else { return plain(StatusCode::BAD_REQUEST, "not an AdmissionReview admission.k8s.io/v1\n") };
    mark.served();
    let mut response = Response::new(Full::new(Bytes::from(answer)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn tls(served: Arc<Served>) -> Result<TlsAcceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(served);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves for ever. Binding errors are the caller's to report.
///
/// # Errors
///
/// The address can't be bound.
pub async fn serve(listen: SocketAddr, served: Arc<Served>, ctx: Arc<Ctx>) -> std::io::Result<()> {
    let tls = tls(served).map_err(std::io::Error::other)?;
    let listener = TcpListener::bind(listen).await?;
    tracing::info!(%listen, "serving the pod webhook");
    accept(listener, tls, ctx).await;
    Ok(())
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, ctx: Arc<Ctx>) {
    let door = Door::new(LIMITS);
    loop {
        let (stream, _, guest) = door.next(&listener).await;
        tokio::spawn(connection(stream, guest, tls.clone(), ctx.clone()));
    }
}

async fn connection(stream: TcpStream, guest: Guest, tls: TlsAcceptor, ctx: Arc<Ctx>) {
    let mark = guest.mark();
    let service = service_fn(|request| {
        let (ctx, mark) = (ctx.clone(), mark.clone());
        async move { Ok::<_, Infallible>(respond(request, &ctx, &mark).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(IDLE);
    let served = guest.serve(async {
        let stream = match tls.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "a handshake with the pod webhook"),
        };
        if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!(%error, "serving the pod webhook");
        }
    });
    if served.await.is_none() {
        tracing::debug!("a connection to the pod webhook was cut: nothing came, or others did");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
