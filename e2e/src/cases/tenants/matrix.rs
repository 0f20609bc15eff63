//! Every kind, verb and way of naming something, from the namespace of one tenant to what is another's: one cell each (security.md, "Tenants").

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::tokens::SYSTEM;
use crate::steps::tenant::Tenant;

/// In the message of a commit of a's.
const SECRET: &str = "what-a-alone-knows";
/// What tenants make.
const OURS: [&str; 5] = ["dots", "branches", "commits", "replicationjobs", "dotoperations"];
/// What administrators and our programs have: no tenant reads it, so nobody learns there what others have.
const CLUSTER: [&str; 3] = ["filesystems", "replicas", "nodepools"];
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
/// Verbs that policies ask for on a Filesystem, or on another's Dot.
const RIGHTS: [(&str, &str); 3] = [("filesystems", "claim"), ("filesystems", "resize"), ("dots", "accept-loss")];

/// What a tenant may be asked whether it may.
struct Cell {
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verb: &'static str,
    /// Empty: in all of them, or a kind without.
    namespace: String,
}

impl Cell {
    fn new(group: &'static str, resource: &'static str, verb: &'static str, namespace: &str) -> Self {
        Self { group, resource, subresource: "", verb, namespace: namespace.to_owned() }
    }

    fn status(resource: &'static str, verb: &'static str, namespace: &str) -> Self {
        Self { subresource: "status", ..Self::new("dotgraft.dev", resource, verb, namespace) }
    }

    /// What the API server answers.
    async fn is_allowed(&self, b: &Tenant) -> Result<bool> {
        let given = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        let attributes = ResourceAttributes {
            group: Some(self.group.to_owned()),
            resource: Some(self.resource.to_owned()),
            subresource: given(self.subresource),
            verb: Some(self.verb.to_owned()),
            namespace: given(&self.namespace),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
        let api: Api<SelfSubjectAccessReview> = Api::all(b.kube.client());
        let answer = api.create(&PostParams::default(), &SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }).await?;
        Ok(answer.status.context("no answer")?.allowed)
    }

    fn says(&self) -> String {
        format!("{} {}/{}{} in {:?}", self.verb, self.group, self.resource, self.subresource, self.namespace)
    }
}

/// What reaches another's, or what our programs alone write.
fn forbidden(a: &str, b: &str) -> Vec<Cell> {
    let mut cells = Vec::new();
    for verb in READ.into_iter().chain(WRITE) {
        for resource in OURS {
            cells.push(Cell::new("dotgraft.dev", resource, verb, a));
            cells.push(Cell::new("dotgraft.dev", resource, verb, ""));
        }
        for resource in CLUSTER {
            cells.push(Cell::new("dotgraft.dev", resource, verb, ""));
        }
        for (group, resource) in [("", "secrets"), ("coordination.k8s.io", "leases"), ("", "pods")] {
            cells.push(Cell::new(group, resource, verb, SYSTEM));
        }
        cells.push(Cell::new("", "persistentvolumes", verb, ""));
        cells.push(Cell::new("", "persistentvolumeclaims", verb, a));
        cells.push(Cell::new("events.k8s.io", "events", verb, a));
        cells.push(Cell::new("snapshot.storage.k8s.io", "volumesnapshotcontents", verb, ""));
        cells.push(Cell::new("storage.k8s.io", "volumeattachments", verb, ""));
    }
    // What is decided by stands in statuses that tenants don't write.
    for resource in OURS {
        for verb in ["update", "patch"] {
            cells.push(Cell::status(resource, verb, b));
            cells.push(Cell::status(resource, verb, a));
        }
    }
    for (resource, verb) in RIGHTS {
        cells.push(Cell::new("dotgraft.dev", resource, verb, b));
        cells.push(Cell::new("dotgraft.dev", resource, verb, ""));
    }
    cells
}

/// `tenants-matrix`.
pub async fn matrix(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("payroll", "n1").await?;
    t.create("Commit", "c1", &json!({"source": {"kind": "Dot", "name": "payroll"}, "message": SECRET})).await?;
    let made = t.ready("Commit", "c1").await?;
    let commit = made["status"]["id"].as_str().context("no id")?.to_owned();
    let b = Tenant::come(&t, "b").await?;
    rights(&t, &b).await?;
    names(&t, &b, &fs_id, &commit).await?;
    b.leave(&t).await
}

async fn rights(t: &Test, b: &Tenant) -> Result<()> {
    let mut open = Vec::new();
    for cell in forbidden(&t.namespace, &b.namespace) {
        if cell.is_allowed(b).await? {
            open.push(cell.says());
        }
    }
    ensure!(open.is_empty(), "a tenant may: {}", open.join("; "));
    // What it is to have it has, so the answers above mean something.
    for verb in READ.into_iter().chain(["create", "update", "patch", "delete"]) {
        for resource in OURS {
            let cell = Cell::new("dotgraft.dev", resource, verb, &b.namespace);
            ensure!(cell.is_allowed(b).await?, "a tenant may not {}", cell.says());
        }
    }
    Ok(())
}

/// Objects of b that name what a has, by its name, with its namespace before it, and by its ids.
async fn names(t: &Test, b: &Tenant, fs_id: &str, commit: &str) -> Result<()> {
    // No kind of ours has a field for another namespace, and a name can't hold one.
    let elsewhere = format!("{}/payroll", t.namespace);
    for (kind, spec) in of_dot(&elsewhere) {
        let answer = b.create(kind, "elsewhere", &spec).await.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(answer.contains("nvalid"), "{kind} of {elsewhere}: {answer:?}");
    }
    b.create("Dot", "own", &json!({"capacity": "64Mi", "placement": {"node": "n1"}})).await?;
    b.kube.until_condition(("Dot", b.namespace.as_str(), "own"), ("Ready", "True", None), STEP).await?;
    for (kind, spec) in of_dot("payroll") {
        b.create(kind, "by-name", &spec).await?;
    }
    b.claim("by-name", "ReadWriteOnce", "Dot", "payroll").await?;
    let origin = json!({"capacity": "64Mi", "origin": {"fsId": fs_id, "commit": commit}});
    b.create("Dot", "by-id", &origin).await?;
    b.create("Branch", "by-id", &json!({"dot": "own", "from": {"commit": commit}})).await?;
    b.create("DotOperation", "by-id", &json!({"target": {"name": "own"}, "reset": {"commit": commit}})).await?;
    for (kind, name) in [("Branch", "by-name"), ("Commit", "by-name"), ("Dot", "by-id"), ("Branch", "by-id")] {
        b.kube.until_condition((kind, b.namespace.as_str(), name), ("Ready", "False", None), STEP).await?;
    }
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let mut had = Vec::new();
    for (kind, name) in [("Branch", "by-name"), ("Commit", "by-name"), ("Dot", "by-id"), ("Branch", "by-id")] {
        let status = b.kube.get(kind, &b.namespace, name).await?.context("it is gone")?["status"].clone();
        let ready = status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
        if ready || !status["head"].is_null() || !status["id"].is_null() {
            had.push(format!("{kind} {name}: {status}"));
        }
    }
    for name in ["by-name", "by-id"] {
        let status = b.kube.get("DotOperation", &b.namespace, name).await?.context("it is gone")?["status"].clone();
        if status["phase"] == "Done" {
            had.push(format!("DotOperation {name}: {status}"));
        }
    }
    let volumes = t.kube().kubectl(&["get", "pv", "-o", "json"]).await?;
    if volumes.contains(&format!("\"namespace\": \"{}\"", b.namespace)) {
        had.push("a PersistentVolume".to_owned());
    }
    // What b has written itself is no answer: the ids, and the name.
    let sees = b.sees().await?;
    for word in [SECRET, &format!("\"{}\"", t.namespace), &format!(" {} ", t.namespace)] {
        if sees.contains(word) {
            had.push(format!("the words {word:?}"));
        }
    }
    ensure!(had.is_empty(), "b has had: {}", had.join("; "));
    let kept = t.replica(fs_id, "n1").await?["spec"]["desired"].clone();
    ensure!(kept["jobs"].as_array().is_none_or(Vec::is_empty), "a job of b's: {kept}");
    Ok(())
}

/// All kinds that name a Dot.
fn of_dot(name: &str) -> [(&'static str, Value); 4] {
    let of = json!({"kind": "Dot", "name": name});
    [
        ("Branch", json!({"dot": name})),
        ("Commit", json!({"source": of})),
        ("ReplicationJob", json!({"direction": "Push", "source": {"names": [name]}, "target": {"node": "n2"}})),
        ("DotOperation", json!({"target": of, "reset": {}})),
    ]
}
