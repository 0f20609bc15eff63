//! Requests as they come over HTTP, and what is answered without looking at anything.

use hyper::body::Frame;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::scenario::play;

fn review(pod: &Value) -> Vec<u8> {
    let request = json!({ "uid": "u", "namespace": "team", "object": pod });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request }).to_string().into_bytes()
}
fn pod() -> Value {
    json!({ "spec": { "volumes": [{ "name": "a", "persistentVolumeClaim": { "claimName": "data" } }] } })
}
fn filled(ctx: &Ctx) {
    let c = &ctx.caches;
    c.dots.fill([]);
    c.branches.fill([]);
    c.commits.fill([]);
    c.jobs.fill([]);
    c.operations.fill([]);
    c.filesystems.fill([]);
    c.replicas.fill([]);
    c.pools.fill([]);
    c.nodes.fill([]);
    c.namespaces.fill([]);
    c.claims.fill(Vec::<PersistentVolumeClaim>::new());
    c.volumes.fill([]);
    c.requests.fill([]);
}
async fn decided(fill: impl FnOnce(&Ctx), body: Vec<u8>) -> (Outcome, Option<Value>) {
    let (outcome, answer) = play(fill, vec![], |ctx| async move { decide(&body, &ctx) }).await;
    (outcome, answer.map(|a| serde_json::from_slice(&a).unwrap()))
}

#[tokio::test]
async fn a_pod_is_let_in_unchanged_while_a_cache_is_empty_or_it_is_odd() {
    for (fill, body, outcome) in [
        (None, review(&pod()), Outcome::Skipped),
        (Some(()), review(&pod()), Outcome::Unchanged),
        (Some(()), review(&json!({ "spec": "?" })), Outcome::Skipped),
    ] {
        let fill = move |ctx: &Ctx| {
            if fill.is_some() {
                filled(ctx);
            }
        };
        let (was, answer) = decided(fill, body).await;
        let response = &answer.unwrap()["response"];
        assert_eq!((was, &response["allowed"], response.get("patch")), (outcome, &json!(true), None));
    }
    assert_eq!(decided(filled, b"?".to_vec()).await, (Outcome::Skipped, None));
}

fn mark() -> Mark {
    Door::new(LIMITS).enter([127, 0, 0, 1].into()).mark()
}

async fn status(method: Method, path: &str, body: Full<Bytes>) -> StatusCode {
    let request = Request::builder().method(method).uri(path).body(body).unwrap();
    play(|_| {}, vec![], |ctx| async move { respond(request, &ctx, &mark()).await.status() }).await
}

#[tokio::test]
async fn only_a_bounded_post_to_pods_is_looked_at() {
    let body = || Full::new(Bytes::from(review(&pod())));
    assert_eq!(status(Method::POST, PATH, body()).await, StatusCode::OK);
    assert_eq!(status(Method::GET, PATH, body()).await, StatusCode::NOT_FOUND);
    assert_eq!(status(Method::POST, "/", body()).await, StatusCode::NOT_FOUND);
    assert_eq!(status(Method::POST, PATH, Full::new(Bytes::from_static(b"?"))).await, StatusCode::BAD_REQUEST);
    let large = Full::new(Bytes::from(vec![b' '; REQUEST_MAX + 1]));
    assert_eq!(status(Method::POST, PATH, large).await, StatusCode::PAYLOAD_TOO_LARGE);
}

/// A body that never comes.
struct Silent;
impl Body for Silent {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_not_waited_for() {
    let request = Request::builder().method(Method::POST).uri(PATH).body(Silent).unwrap();
    let answered = play(|_| {}, vec![], |ctx| async move { respond(request, &ctx, &mark()).await.status() }).await;
    assert_eq!(answered, StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_kept_once_a_review_was_answered_and_for_nothing_less() {
    for (body, kept) in [(review(&pod()), true), (b"?".to_vec(), false)] {
        let guest = Door::new(LIMITS).enter([127, 0, 0, 1].into());
        let mark = guest.mark();
        let request = Request::builder().method(Method::POST).uri(PATH).body(Full::new(Bytes::from(body))).unwrap();
        play(|_| {}, vec![], |ctx| async move { respond(request, &ctx, &mark).await }).await;
        assert_eq!(guest.serve(tokio::time::sleep(LIMITS.unserved * 2)).await.is_some(), kept);
    }
}

#[tokio::test]
async fn silent_connections_keep_no_pod_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    play(
        |_| {},
        vec![],
        |ctx| async move {
            let server = tokio::spawn(accept(listener, tls(Arc::default()).unwrap(), ctx));
            let mut silent = Vec::new();
            for _ in 0..LIMITS.total * 2 {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let mut talks = TcpStream::connect(address).await.unwrap();
            talks.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap(); // no TLS: it is answered so, at once
            let mut answer = Vec::new();
            let answered = timeout(Duration::from_secs(3), talks.read_to_end(&mut answer)).await;
            assert!(answered.is_ok() && !answer.is_empty(), "the API server has given up by then, and they have not");
            server.abort();
        },
    )
    .await;
}
