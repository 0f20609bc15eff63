//! What operator and sidecars may not do with their own tokens (ADR 34): each request is also sent by one who may, so that a refusal is one of
//! rights and not of a wrong request.

use std::sync::Arc;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use serde_json::{Value, json};

use super::{Verb, core_objects, refused, send};
use crate::harness::{Case, Test};
use crate::rig::programs::OPERATOR;
use crate::rig::sidecars::SIDECARS;
use crate::rig::tokens::SYSTEM;

/// Where Secrets of our programs are.
const SECRETS: &str = "/api/v1/namespaces/dotgraft-system/secrets";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// The case.
pub fn case() -> Case {
    let title =
        "operator and sidecars reach no other driver's volumes, no Secret but the operator's two, no webhook, and not each other's rights";
    Case::new("rights/power", title, power).api()
}

/// A volume that nobody will use.
fn volume(name: &str, driver: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "none",
        "csi": {"driver": driver, "volumeHandle": name}}})
}

fn secret(name: &str, kind: &str) -> Value {
    let annotations = json!({"kubernetes.io/service-account.name": "dotgraft-agent"});
    json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {"name": name, "annotations": annotations}})
}

struct As {
    name: &'static str,
    client: Client,
    admin: Client,
}

impl As {
    async fn program(t: &Test, name: &'static str) -> Result<Self> {
        Ok(Self { name, client: t.rig.kube_as(name).await?.client(), admin: t.kube().client() })
    }

    async fn may(&self, verb: Verb, path: &str) -> Result<()> {
        let (code, message) = send(&self.client, &verb, path, &self.admin, true).await?;
        if code >= 400 {
            bail!("{} {path} with the token of {} was refused, {code}: {message}", verb.name(), self.name);
        }
        Ok(())
    }

    /// It may not, by a rule that says so in these words; an administrator may.
    async fn may_not(&self, verb: Verb, path: &str, why: &str) -> Result<()> {
        let (code, message) = send(&self.admin, &verb, path, &self.admin, true).await?;
        if code >= 400 {
            bail!("the request is no good: {} {path} of an administrator got {code}: {message}", verb.name());
        }
        let answer = send(&self.client, &verb, path, &self.admin, true).await?;
        if !refused(&answer) || !answer.1.contains(why) {
            bail!("{} {path} with the token of {} was answered {}: {}", verb.name(), self.name, answer.0, answer.1);
        }
        Ok(())
    }
}

async fn power(t: Arc<Test>) -> Result<()> {
    core_objects(&t).await?;
    let (theirs, ours) = (format!("{}-theirs", t.namespace), format!("{}-ours", t.namespace));
    t.apply(&volume(&theirs, "other.example.com").to_string()).await?;
    t.apply(&volume(&ours, "csi.dotgraft.dev").to_string()).await?;
    let tested = volumes_and_secrets(&t, &format!("{VOLUMES}/{theirs}"), &format!("{VOLUMES}/{ours}")).await;
    for name in [&theirs, &ours] {
        t.kubectl(&["delete", "persistentvolume", name]).await?;
    }
    tested
}

async fn volumes_and_secrets(t: &Test, theirs: &str, ours: &str) -> Result<()> {
    let (operator, sidecars) = (As::program(t, OPERATOR).await?, As::program(t, SIDECARS).await?);
    let label = || Verb::Patch(json!({"metadata": {"labels": {"a": "b"}}}));
    for who in [&operator, &sidecars] {
        who.may(Verb::Create(volume("new", "csi.dotgraft.dev")), VOLUMES).await?;
        who.may_not(Verb::Create(volume("new", "other.example.com")), VOLUMES, "csi.dotgraft.dev only").await?;
        who.may(Verb::Delete, ours).await?;
        who.may_not(Verb::Delete, theirs, "another driver's").await?;
    }
    sidecars.may(label(), ours).await?;
    sidecars.may_not(label(), theirs, "another driver's").await?;

    let ca = format!("{SECRETS}/dotgraft-ca");
    operator.may(Verb::Get, &ca).await?;
    operator.may(Verb::Patch(json!({"data": {"a": "Yg=="}})), &ca).await?;
    operator.may_not(Verb::Create(secret("other", "Opaque")), SECRETS, "dotgraft-ca and dotgraft-webhook only").await?;
    // The API server would put a token of the agents into it.
    t.kubectl(&["--namespace", SYSTEM, "delete", "secret", "dotgraft-webhook"]).await?;
    let token = Verb::Create(secret("dotgraft-webhook", "kubernetes.io/service-account-token"));
    let filled = operator.may_not(token, SECRETS, "dotgraft-ca and dotgraft-webhook only").await;
    core_objects(t).await?;
    filled?;
    operator.may_not(Verb::List, SECRETS, "").await?;
    operator.may_not(Verb::List, "/api/v1/secrets", "").await?;
    let accounts = "/api/v1/namespaces/dotgraft-system/serviceaccounts";
    let request = || Verb::Create(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}));
    operator.may(request(), &format!("{accounts}/dotgraft-csi/token")).await?;
    operator.may_not(request(), &format!("{accounts}/dotgraft-agent/token"), "").await?;
    // What its sidecars may, the operator may not.
    operator.may_not(Verb::List, "/apis/storage.k8s.io/v1/volumeattachments", "").await?;

    let dots = format!("/apis/dotgraft.dev/v1alpha1/namespaces/{}/dots", t.namespace);
    for path in [&ca, &dots, "/apis/dotgraft.dev/v1alpha1/filesystems", "/apis/dotgraft.dev/v1alpha1/replicas", "/api/v1/pods"] {
        let verb = if *path == ca { Verb::Get } else { Verb::List };
        sidecars.may_not(verb, path, "").await?;
    }
    sidecars.may_not(request(), &format!("{accounts}/dotgraft-csi/token"), "").await?;
    webhook(t, &operator).await?;
    crds(&operator).await
}

/// Of the configuration that is installed, `caBundle` and nothing else, however it is written.
async fn webhook(t: &Test, operator: &As) -> Result<()> {
    let ours = format!("{WEBHOOKS}/dotgraft-pods");
    let request = http::Request::get(&ours).body(Vec::new())?;
    let installed: Value = t.kube().client().request(request).await?;
    let webhooks = installed.pointer("/webhooks").cloned().unwrap_or_default();
    let with = |path: &str, value: Value| -> Result<Verb> {
        let mut webhooks = webhooks.clone();
        let (parent, field) = path.rsplit_once('/').unwrap_or_default();
        let Some(Value::Object(parent)) = webhooks.pointer_mut(parent) else { bail!("no {path} in {webhooks}") };
        parent.insert(field.into(), value);
        Ok(Verb::Patch(json!({ "webhooks": webhooks })))
    };
    let bundle = json!(STANDARD.encode("what the API server is to trust"));
    operator.may(with("/0/clientConfig/caBundle", bundle.clone())?, &ours).await?;

    let only = "the operator changes caBundle only of its webhooks";
    let elsewhere = json!({"url": "https://elsewhere.example/pods", "caBundle": bundle});
    operator.may_not(with("/0/clientConfig", elsewhere)?, &ours, only).await?;
    let denied = [
        ("/0/clientConfig/service/namespace", json!("default")),
        ("/0/clientConfig/service/port", json!(444)),
        ("/0/clientConfig/service/path", json!("/others")),
        ("/0/rules/0/resources", json!(["secrets"])),
        ("/0/rules/0/operations", json!(["CREATE", "UPDATE"])),
        ("/0/failurePolicy", json!("Fail")),
        ("/0/matchPolicy", json!("Exact")),
        ("/0/timeoutSeconds", json!(30)),
        ("/0/reinvocationPolicy", json!("IfNeeded")),
        ("/0/namespaceSelector", json!({})),
        ("/0/objectSelector", json!({})),
        ("/0/matchConditions", json!([])),
        ("/0/sideEffects", json!("NoneOnDryRun")),
        ("/0/name", json!("others.dotgraft.dev")),
    ];
    for (path, value) in denied {
        operator.may_not(with(path, value)?, &ours, only).await?;
    }
    let mut another = webhooks.clone();
    if let Some(list) = another.as_array_mut() {
        list.extend(webhooks.as_array().cloned().unwrap_or_default());
    }
    if let Some(Value::Object(second)) = another.pointer_mut("/1") {
        second.insert("name".into(), json!("second.dotgraft.dev"));
    }
    operator.may_not(Verb::Patch(json!({ "webhooks": another })), &ours, only).await?;
    operator.may_not(Verb::Patch(json!({ "webhooks": [] })), &ours, only).await?;
    let metadata = "nothing of its metadata";
    operator.may_not(Verb::Patch(json!({"metadata": {"labels": {"a": "b"}}})), &ours, metadata).await?;
    operator.may_not(Verb::Patch(json!({"metadata": {"annotations": {"a": "b"}}})), &ours, metadata).await?;
    operator.may_not(Verb::Patch(json!({"metadata": {"labels": null}})), &ours, metadata).await?;

    let name = format!("{}-others", t.namespace);
    let kind = "MutatingWebhookConfiguration";
    let others = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": []});
    t.apply(&others.to_string()).await?;
    let path = format!("{WEBHOOKS}/{name}");
    let refused = operator.may_not(Verb::Patch(json!({"metadata": {"labels": {"a": "b"}}})), &path, "").await;
    t.kubectl(&["delete", "mutatingwebhookconfiguration", &name]).await?;
    refused?;
    operator.may_not(Verb::Delete, &ours, "").await
}

/// It brings its own CRDs forward; none gets a server that objects are sent to.
async fn crds(operator: &As) -> Result<()> {
    let ours = format!("{CRDS}/dots.dotgraft.dev");
    operator.may(Verb::Patch(json!({"metadata": {"annotations": {"a": "b"}}})), &ours).await?;
    let client = json!({"url": "https://elsewhere.example/convert"});
    let webhook = json!({"clientConfig": client, "conversionReviewVersions": ["v1"]});
    let conversion = json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": webhook}}});
    operator.may_not(Verb::Patch(conversion), &ours, "no CRD a conversion webhook").await
}
