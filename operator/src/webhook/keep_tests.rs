//! Who writes the Secret and the configuration, and in which order.

use super::*;
use crate::testing::scenario::{Call, call, conflict, missing, play};

const NAME: &str = "dotgraft-operator.dotgraft-system.svc";

fn kit(life: u64) -> Kit {
    Kit::make(&[NAME.to_owned()], Duration::from_secs(life), SystemTime::now(), None).unwrap()
}
fn secret(kit: &Kit) -> Secret {
    let metadata = ObjectMeta { name: Some(SECRET.into()), resource_version: Some("7".into()), ..ObjectMeta::default() };
    Secret { metadata, data: Some(kit.data().clone()), ..Secret::default() }
}
fn installed(bundle: Option<&str>) -> serde_json::Value {
    let mut client = json!({ "service": { "namespace": "dotgraft-system", "name": "dotgraft-operator", "path": "/pods", "port": 443 } });
    if let Some(bundle) = bundle {
        client["caBundle"] = json!(STANDARD.encode(bundle));
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": CONFIGURATION, "resourceVersion": "3" },
        "webhooks": [{ "name": "pods.dotgraft.dev", "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"] }],
    })
}
async fn look_at(leads: bool, script: Vec<Call>) -> Result<Option<Kit>, KeepError> {
    let names = names("dotgraft-operator", "dotgraft-system");
    assert_eq!(names, [NAME]);
    play(|_| {}, script, |ctx| async move { look(&names, leads, &ctx).await }).await
}

#[tokio::test]
async fn one_that_does_not_lead_only_reads() {
    assert!(look_at(false, vec![missing("GET", "/secrets/dotgraft-webhook")]).await.unwrap().is_none());
    let old = kit(1);
    let read = look_at(false, vec![call("GET", "/secrets/dotgraft-webhook", secret(&old))]).await.unwrap();
    assert_eq!(read.unwrap().bundle, old.bundle);
}

#[tokio::test]
async fn the_api_server_is_told_before_anyone_can_serve_with_it() {
    let script = vec![
        missing("GET", "/secrets/dotgraft-webhook"),
        call("GET", "/mutatingwebhookconfigurations/dotgraft-pods", installed(None)),
        call("PATCH", "/mutatingwebhookconfigurations/dotgraft-pods", installed(None)).with(|b| {
            assert_eq!(b[0], json!({ "op": "test", "path": "/metadata/resourceVersion", "value": "3" }));
            assert_eq!(b[1]["path"], "/webhooks/0/clientConfig/caBundle");
            assert!(b[1]["value"].as_str().unwrap().len() > 400);
        }),
        call("POST", "/secrets", secret(&kit(1))).with(|b| assert_eq!(b["data"].as_object().unwrap().len(), 3)),
    ];
    assert!(look_at(true, script).await.unwrap().is_some());
}

#[tokio::test]
async fn in_steady_state_nothing_is_written() {
    let good = kit(3600);
    let script = vec![
        call("GET", "/secrets/dotgraft-webhook", secret(&good)),
        call("GET", "/mutatingwebhookconfigurations/dotgraft-pods", installed(Some(&good.bundle))),
    ];
    look_at(true, script).await.unwrap();
}

#[tokio::test]
async fn a_bundle_that_somebody_took_away_comes_back() {
    let good = kit(3600);
    let script = vec![
        call("GET", "/secrets/dotgraft-webhook", secret(&good)),
        call("GET", "/mutatingwebhookconfigurations/dotgraft-pods", installed(None)),
        call("PATCH", "/mutatingwebhookconfigurations/dotgraft-pods", installed(None)),
    ];
    look_at(true, script).await.unwrap();
}

#[tokio::test]
async fn what_is_due_or_damaged_is_replaced_in_the_version_that_was_read() {
    let names = vec!["other".to_owned()];
    let other = Kit::make(&names, Duration::from_secs(3600), SystemTime::now(), None).unwrap();
    let trusted = other.bundle.clone();
    let mut broken = secret(&other);
    broken.data = None;
    for (old, known) in [(secret(&other), 2), (broken, 1)] {
        let trusted = trusted.clone();
        let script = vec![
            call("GET", "/secrets/dotgraft-webhook", &old),
            call("GET", "/mutatingwebhookconfigurations/dotgraft-pods", installed(Some(&trusted))),
            call("PATCH", "/mutatingwebhookconfigurations/dotgraft-pods", installed(None)).with(move |b| {
                let bundle = STANDARD.decode(b[1]["value"].as_str().unwrap()).unwrap();
                let bundle = String::from_utf8(bundle).unwrap();
                assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), known);
                assert_eq!(bundle.ends_with(&trusted), known == 2, "the one before stays");
            }),
            call("PUT", "/secrets/dotgraft-webhook", &old).with(|b| assert_eq!(b["metadata"]["resourceVersion"], "7")),
        ];
        look_at(true, script).await.unwrap();
    }
}

#[tokio::test]
async fn who_loses_the_race_serves_what_the_other_made() {
    let script = vec![
        missing("GET", "/secrets/dotgraft-webhook"),
        missing("GET", "/mutatingwebhookconfigurations/dotgraft-pods"),
        conflict("POST", "/secrets"),
    ];
    assert!(look_at(true, script).await.is_err(), "and reads it at the next look");
}
