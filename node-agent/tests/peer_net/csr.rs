//! Getting a certificate from an API server and an operator that may be slow, unwilling or away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dotgraft_agent::peer::csr::{CsrError, RenewSettings, Renewer};
use dotgraft_agent::peer::identity::IdentityStore;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus};
use tokio_util::sync::CancellationToken;

use crate::support::*;

/// What the operator does.
#[derive(Clone, Copy, PartialEq)]
enum Operator {
    Signs { seconds: i64 },
    SignsForAnotherNode,
    Denies,
    Away,
}

struct Cluster {
    ca: Ca,
    operator: Mutex<Operator>,
    up: Mutex<bool>,
    requests: Mutex<BTreeMap<String, CertificateSigningRequest>>,
}

impl Cluster {
    fn new(operator: Operator) -> Arc<Self> {
        Arc::new(Self { ca: Ca::new("ca"), operator: operator.into(), up: true.into(), requests: Mutex::default() })
    }

    fn set(&self, operator: Operator) {
        *self.operator.lock().unwrap() = operator;
    }

    fn names(&self) -> Vec<String> {
        self.requests.lock().unwrap().keys().cloned().collect()
    }

    /// A client of an API server that knows nothing else.
    fn client(self: &Arc<Self>) -> kube::Client {
        let this = Arc::clone(self);
        let service = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
            let this = Arc::clone(&this);
            async move {
                if !*this.up.lock().unwrap() {
                    return Err(std::io::Error::other("connection refused"));
                }
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                Ok(this.answer(head.method.as_str(), head.uri.path(), &body))
            }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, method: &str, path: &str, body: &[u8]) -> hyper::Response<kube::client::Body> {
        const BASE: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        let mut requests = self.requests.lock().unwrap();
        let found = match method {
            "POST" => {
                assert_eq!(path, BASE);
                let csr: CertificateSigningRequest = serde_json::from_slice(body).unwrap();
                let name = csr.metadata.name.clone().unwrap();
                requests.insert(name.clone(), csr.clone());
                Some(csr)
            }
            _ => requests.get_mut(path.strip_prefix(BASE).unwrap().trim_start_matches('/')).map(|csr| {
                self.decide(csr);
                csr.clone()
            }),
        };
        let (code, json) = match found {
            Some(csr) => (200, serde_json::to_vec(&csr).unwrap()),
            None => (404, br#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#.to_vec()),
        };
        hyper::Response::builder().status(code).body(json.into()).unwrap()
    }

    fn decide(&self, csr: &mut CertificateSigningRequest) {
        if csr.status.is_some() {
            return;
        }
        let pem = String::from_utf8(csr.spec.request.0.clone()).unwrap();
        let asked = rcgen::CertificateSigningRequestParams::from_pem(&pem).unwrap();
        let sign = |leaf: Leaf| Some(ByteString(self.ca.sign(&leaf, &asked.public_key).into_bytes()));
        let (certificate, verdict) = match *self.operator.lock().unwrap() {
            Operator::Away => return,
            Operator::Denies => (None, "Denied"),
            Operator::Signs { seconds } => (sign(Leaf { from: now(), to: now() + seconds, ..Leaf::of("a") }), "Approved"),
            Operator::SignsForAnotherNode => (sign(Leaf::of("b")), "Approved"),
        };
        let condition = CertificateSigningRequestCondition {
            type_: verdict.into(),
            status: "True".into(),
            message: Some("because".into()),
            ..CertificateSigningRequestCondition::default()
        };
        csr.status = Some(CertificateSigningRequestStatus { certificate, conditions: Some(vec![condition]) });
    }
}

fn settings() -> RenewSettings {
    let ms = Duration::from_millis;
    RenewSettings {
        poll_min: ms(5),
        poll_max: ms(20),
        patience: ms(200),
        backoff_min: ms(10),
        backoff_max: ms(50),
        clock_check: ms(100),
        call_timeout: SECOND,
    }
}

struct Agent {
    tmp: tempfile::TempDir,
    cluster: Arc<Cluster>,
    store: IdentityStore,
}

impl Agent {
    fn new(operator: Operator) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let store = IdentityStore::open(tmp.path(), node("a")).unwrap();
        Self { cluster: Cluster::new(operator), store, tmp }
    }
    fn renewer(&self) -> Renewer {
        Renewer::new(self.cluster.client(), self.store.clone(), "127.0.0.1:7443".parse().unwrap(), settings()).unwrap()
    }
    /// The same agent after a restart.
    fn restarted(self) -> Self {
        let store = IdentityStore::open(self.tmp.path(), node("a")).unwrap();
        Self { store, ..self }
    }
}

#[tokio::test]
async fn a_certificate_is_requested_as_the_contract_says_and_installed() {
    let agent = Agent::new(Operator::Signs { seconds: 600 });
    soon(agent.renewer().obtain()).await.unwrap();
    let identity = agent.store.current().unwrap();
    assert_eq!(identity.leaf.node, node("a"));
    assert!(agent.store.pending().unwrap().is_none());

    let names = agent.cluster.names();
    assert!(names[0].starts_with("dotgraft-agent-a-"), "{names:?}");
    let csr = agent.cluster.requests.lock().unwrap()[&names[0]].clone();
    assert_eq!(csr.spec.signer_name, "dotgraft.dev/agent");
    assert_eq!(csr.spec.usages.unwrap(), ["digital signature", "server auth", "client auth"]);
    assert_eq!(csr.metadata.annotations.unwrap()["dotgraft.dev/peer-port"], "7443");
    let pem = String::from_utf8(csr.spec.request.0).unwrap();
    let asked = rcgen::CertificateSigningRequestParams::from_pem(&pem).unwrap();
    let cn = asked.params.distinguished_name.get(&rcgen::DnType::CommonName);
    assert_eq!(cn, Some(&rcgen::DnValue::Utf8String("dotgraft-agent:a".into())));
    let sans = [rcgen::SanType::DnsName("a".try_into().unwrap()), rcgen::SanType::IpAddress([127, 0, 0, 1].into())];
    assert_eq!(asked.params.subject_alt_names, sans);
}

#[tokio::test]
async fn an_unanswered_request_is_waited_for_also_after_a_restart() {
    let agent = Agent::new(Operator::Away);
    assert!(matches!(soon(agent.renewer().obtain()).await, Err(CsrError::Unanswered { .. })));
    let agent = agent.restarted();
    assert!(matches!(soon(agent.renewer().obtain()).await, Err(CsrError::Unanswered { .. })));
    agent.cluster.set(Operator::Signs { seconds: 600 });
    soon(agent.renewer().obtain()).await.unwrap();
    assert_eq!(agent.cluster.names().len(), 1, "one request, however often it was asked for");
    assert!(agent.store.current().is_some());
}

#[tokio::test]
async fn a_request_that_is_gone_from_the_server_is_made_anew() {
    let agent = Agent::new(Operator::Away);
    assert!(soon(agent.renewer().obtain()).await.is_err());
    let first = agent.cluster.names();
    agent.cluster.requests.lock().unwrap().clear();
    agent.cluster.set(Operator::Signs { seconds: 600 });
    soon(agent.renewer().obtain()).await.unwrap();
    assert_ne!(agent.cluster.names(), first);
}

#[tokio::test]
async fn a_denial_says_why_and_the_next_attempt_asks_anew() {
    let agent = Agent::new(Operator::Denies);
    let error = soon(agent.renewer().obtain()).await.unwrap_err();
    assert!(matches!(&error, CsrError::Refused { message, .. } if message == "because"), "{error}");
    agent.cluster.set(Operator::Signs { seconds: 600 });
    soon(agent.renewer().obtain()).await.unwrap();
    assert_eq!(agent.cluster.names().len(), 2);
}

#[tokio::test]
async fn a_certificate_that_is_not_ours_is_not_installed() {
    let agent = Agent::new(Operator::Signs { seconds: 600 });
    soon(agent.renewer().obtain()).await.unwrap();
    let before = agent.store.current().unwrap().leaf.fingerprint;
    for bad in [Operator::SignsForAnotherNode, Operator::Signs { seconds: -10 }] {
        agent.cluster.set(bad);
        let error = soon(agent.renewer().obtain()).await.unwrap_err();
        assert!(matches!(error, CsrError::BadCertificate { .. }), "{error}");
    }
    assert_eq!(agent.store.current().unwrap().leaf.fingerprint, before);
    assert!(agent.store.pending().unwrap().is_none());
}

#[tokio::test]
async fn an_unreachable_api_server_is_an_error_and_the_request_survives_it() {
    let agent = Agent::new(Operator::Signs { seconds: 600 });
    *agent.cluster.up.lock().unwrap() = false;
    assert!(matches!(soon(agent.renewer().obtain()).await, Err(CsrError::Api { .. })));
    *agent.cluster.up.lock().unwrap() = true;
    soon(agent.renewer().obtain()).await.unwrap();
}

#[test]
fn a_certificate_is_due_at_two_thirds_or_when_it_is_not_for_this_address() {
    let agent = Agent::new(Operator::Away);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let renewer = agent.renewer();
    assert_eq!(renewer.due_in(now()), Duration::ZERO, "none");
    let start = now();
    let (key, chain) = agent.cluster.ca.issue(&Leaf { from: start, to: start + 300, ..Leaf::of("a") });
    agent.store.install(&key, &chain).unwrap();
    assert_eq!(renewer.due_in(start), Duration::from_secs(200));
    assert_eq!(renewer.due_in(start + 199), Duration::from_secs(1));
    assert_eq!(renewer.due_in(start + 200), Duration::ZERO);
    assert_eq!(renewer.due_in(start - 1000), Duration::ZERO, "not valid yet: the clock went back");
    let moved = Renewer::new(agent.cluster.client(), agent.store.clone(), "127.0.0.2:1".parse().unwrap(), settings()).unwrap();
    assert_eq!(moved.due_in(start), Duration::ZERO);
    let nowhere = Renewer::new(agent.cluster.client(), agent.store.clone(), "0.0.0.0:1".parse().unwrap(), settings());
    assert!(matches!(nowhere, Err(CsrError::Unspecified(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_renewer_renews_in_time_and_outlives_an_absent_operator() {
    let agent = Agent::new(Operator::Signs { seconds: 3 });
    let cancel = CancellationToken::new();
    let run = tokio::spawn({
        let (renewer, cancel) = (agent.renewer(), cancel.clone());
        async move { renewer.run(|| false, cancel).await }
    });
    let mut seen = std::collections::BTreeSet::new();
    soon(async {
        while seen.len() < 2 {
            if let Some(identity) = agent.store.current() {
                assert!(identity.leaf.valid_at(now()), "it expired before it was renewed");
                seen.insert(identity.leaf.fingerprint);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    agent.cluster.set(Operator::Away);
    tokio::time::sleep(4 * SECOND).await;
    assert!(!agent.store.current().unwrap().leaf.valid_at(now()), "nobody signed, so this one is expired");
    agent.cluster.set(Operator::Signs { seconds: 600 });
    soon(async {
        while !agent.store.current().unwrap().leaf.valid_at(now()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    cancel.cancel();
    soon(run).await.unwrap();
}
