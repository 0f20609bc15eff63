//! A scripted API server: each call must be the next of the script, in order; any other call fails the test, and so
//! does one that is missing. An empty script is radio silence.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

use crate::context::Ctx;
use crate::metrics::Metrics;

type Handle = mock::Handle<Request<Body>, Response<Body>>;
type Check = Box<dyn Fn(&Value) + Send>;

/// One expected call.
pub struct Call {
    method: &'static str,
    path: String,
    status: u16,
    reply: Value,
    check: Check,
}

/// Expects `method` on a path that contains `path`, and answers 200 with `reply`.
pub fn call(method: &'static str, path: impl Into<String>, reply: impl serde::Serialize) -> Call {
    Call { method, path: path.into(), status: 200, reply: serde_json::to_value(reply).unwrap(), check: Box::new(|_| {}) }
}
/// The same, answered 404.
pub fn missing(method: &'static str, path: impl Into<String>) -> Call {
    let reply = json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found" });
    Call { status: 404, ..call(method, path, reply) }
}
/// The same, answered as for a kind that isn't installed.
pub fn not_installed(method: &'static str, path: impl Into<String>) -> Call {
    Call { status: 404, ..call(method, path, "404 page not found") }
}
/// The same, answered 409: somebody else wrote first.
pub fn conflict(method: &'static str, path: impl Into<String>) -> Call {
    let reply = json!({ "kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409, "message": "changed" });
    Call { status: 409, ..call(method, path, reply) }
}
/// An event; its content is not looked at.
pub fn event() -> Call {
    call("POST", "/apis/events.k8s.io/", json!({ "metadata": { "name": "e", "namespace": "team" }, "eventTime": null }))
}
/// A list with these items.
pub fn list<T: serde::Serialize>(items: &[T], kind: &str) -> Value {
    json!({ "apiVersion": "dotgraft.dev/v1alpha1", "kind": format!("{kind}List"), "metadata": {}, "items": items })
}

impl Call {
    /// Looks at the request's body.
    pub fn with(mut self, check: impl Fn(&Value) + Send + 'static) -> Self {
        self.check = Box::new(check);
        self
    }
}

async fn answer(mut handle: Handle, mut script: VecDeque<Call>) {
    while let Some((request, reply)) = handle.next_request().await {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let at = format!("{} {}", parts.method, parts.uri);
        let Some(call) = script.pop_front() else { panic!("unexpected call: {at}\n{body:#}") };
        assert!(
            parts.method.as_str() == call.method && parts.uri.to_string().contains(&call.path),
            "expected {} {}, got {at}\n{body:#}",
            call.method,
            call.path
        );
        (call.check)(&body);
        let response = Response::builder().status(call.status).body(Body::from(serde_json::to_vec(&call.reply).unwrap())).unwrap();
        reply.send_response(response);
    }
    let left: Vec<String> = script.iter().map(|c| format!("{} {}", c.method, c.path)).collect();
    assert!(left.is_empty(), "calls that never came: {left:?}");
}

/// Runs `work` against the script. Caches are filled by `fill` first.
pub async fn play<F, Fut, T>(fill: impl FnOnce(&Ctx), script: Vec<Call>, work: F) -> T
where
    F: FnOnce(Arc<Ctx>) -> Fut,
    Fut: Future<Output = T>,
{
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let ctx = Ctx::new(client, "dotgraft-system".into(), "test".into(), Arc::new(Metrics::default()));
    fill(&ctx);
    let server = tokio::spawn(answer(handle, script.into()));
    let done = tokio::time::timeout(std::time::Duration::from_secs(60), Box::pin(work(Arc::new(ctx)))).await;
    // The script is over when the client is dropped; a panic of the server is the better message.
    let served = tokio::time::timeout(std::time::Duration::from_secs(10), server).await;
    if let Err(e) = served.expect("the client is still held") {
        std::panic::resume_unwind(e.into_panic());
    }
    done.expect("the work hangs")
}

async fn read_node(ctx: Arc<Ctx>) {
    let _ = kube::Api::<k8s_openapi::api::core::v1::Node>::all(ctx.client.clone()).get_opt("n1").await;
}

#[tokio::test]
#[should_panic(expected = "unexpected call: GET")]
async fn a_call_that_is_not_in_the_script_fails_the_test() {
    play(|_| {}, vec![], read_node).await;
}

#[tokio::test]
#[should_panic(expected = "calls that never came")]
async fn a_call_that_never_comes_fails_the_test() {
    play(|_| {}, vec![missing("GET", "/nodes/n1"), missing("GET", "/nodes/n1")], read_node).await;
}

#[tokio::test]
#[should_panic(expected = "expected PATCH")]
async fn another_call_than_the_next_fails_the_test() {
    play(|_| {}, vec![call("PATCH", "/nodes/n1", json!({}))], read_node).await;
}
