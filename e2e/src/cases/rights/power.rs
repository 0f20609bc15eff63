//! What operator and sidecars may not do with their own tokens (ADR 34): each request is also sent by one who may, so that a refusal is one of
//! rights and not of a wrong request.

use std::sync::Arc;

use anyhow::{Result, bail};
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

/// The case.
pub fn case() -> Case {
    let title = "operator and sidecars reach no other driver's volumes, no Secret but the operator's two, and not each other's rights";
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
    sidecars.may_not(request(), &format!("{accounts}/dotgraft-csi/token"), "").await
}
