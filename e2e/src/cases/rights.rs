//! What an agent may not do (security.md, "Policies"): one case per verb and resource, with a real token of node `n2`
//! against what belongs to `n1`. Each case also sends the same request with an identity that may, so that a refusal is
//! one of rights and not of a wrong request.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use serde_json::{Value, json};

use crate::harness::{Case, Test};
use crate::rig::programs::OPERATOR;
use crate::rig::tokens::SYSTEM;

/// A pool UUID per node: `n1`'s and `n2`'s.
const POOL_1: &str = "11111111-1111-4111-8111-111111111111";
const POOL_2: &str = "22222222-2222-4222-8222-222222222222";
const BOOT: &str = "00000000-0000-4000-8000-0000000000b0";
const MIG: &str = "00000000-0000-4000-8000-0000000000aa";
const COMMIT: &str = "00000000-0000-4000-8000-0000000000cc";

/// Who sends a request that must succeed, to show that it is a good one.
#[derive(Clone, Copy)]
enum Allowed {
    /// The agent of `n1`.
    Agent1,
    /// The operator.
    Operator,
    /// The administrator.
    Admin,
}

/// The request's method and, for writes, how the body comes about.
#[derive(Clone)]
enum Verb {
    Get,
    List,
    Watch,
    /// POST of this object.
    Create(Value),
    /// GET by the administrator, this merge patch applied, PUT.
    Update(Value),
    /// PATCH (merge).
    Patch(Value),
    Delete,
}

impl Verb {
    fn name(&self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create(_) => "create",
            Self::Update(_) => "update",
            Self::Patch(_) => "patch",
            Self::Delete => "delete",
        }
    }
}

/// The objects a case works on: a Filesystem that `n1` owns with a Replica on each node, and what else there is.
struct World {
    fs_id: String,
    namespace: String,
}

impl World {
    async fn make(t: &Test) -> Result<Self> {
        let fs_id = uuid::Uuid::now_v7().to_string();
        let kube = t.kube();
        let claim = json!({"kind": "Dot", "namespace": t.namespace, "name": "d"});
        let filesystem = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem", "metadata": {"name": fs_id},
            "spec": {"claimRef": claim, "reclaimPolicy": "Delete"}});
        kube.create("", &filesystem).await?;
        let authority = json!({"owner": {"node": "n1", "pool": POOL_1}, "epoch": 1, "attempt": 0});
        kube.patch("Filesystem", "", &fs_id, "status", &json!({"status": {"phase": "Active", "authority": authority}})).await?;
        for (node, pool) in [("n1", POOL_1), ("n2", POOL_2)] {
            kube.create("", &replica(&fs_id, node, pool)).await?;
            let pool = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "NodePool", "metadata": {"name": node},
                "spec": {"node": node, "poolGroup": "default", "address": "127.0.0.1:1"}});
            if kube.get("NodePool", "", node).await?.is_none() {
                kube.create("", &pool).await?;
            }
        }
        for node in ["n1", "n2"] {
            let lease = format!(
                "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {{name: dotgraft-agent-{node}, namespace: {SYSTEM}}}\nspec: {{holderIdentity: {node}}}\n"
            );
            kube.apply(&lease).await?;
        }
        kube.apply(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: dotgraft-ca, namespace: {SYSTEM}}}\nstringData: {{ca: x}}\n"))
            .await?;
        t.create("Dot", "d", &json!({"capacity": "1Gi"})).await?;
        t.create("Branch", "b", &json!({"dot": "d"})).await?;
        t.create("Commit", "c", &json!({"source": {"kind": "Dot", "name": "d"}})).await?;
        let job = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}});
        t.create("ReplicationJob", "j", &job).await?;
        Ok(Self { fs_id, namespace: t.namespace.clone() })
    }

    /// Fills in what only this world knows.
    fn fill(&self, text: &str) -> String {
        text.replace("FSID", &self.fs_id).replace("NAMESPACE", &self.namespace)
    }

    fn fill_json(&self, value: &Value) -> Result<Value> {
        Ok(serde_json::from_str(&self.fill(&value.to_string()))?)
    }
}

fn replica(fs_id: &str, node: &str, pool: &str) -> Value {
    let role = if node == "n1" { "Owner" } else { "Replica" };
    json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica", "metadata": {"name": format!("{fs_id}.{pool}")},
        "spec": {"fsId": fs_id, "node": node, "pool": pool,
            "desired": {"state": "Present", "role": role, "epoch": 1, "capacity": 1 << 30, "historyLimit": 1 << 30}}})
}

/// Sends one request; the answer's status code and message.
async fn send(client: &Client, verb: &Verb, path: &str, admin: &Client, dry: bool) -> Result<(u16, String)> {
    let dry = if dry { "?dryRun=All" } else { "" };
    let (method, url, body, mime) = match verb {
        Verb::Get | Verb::List => ("GET", path.to_owned(), Value::Null, "application/json"),
        Verb::Watch => ("GET", format!("{path}?watch=true&timeoutSeconds=1"), Value::Null, "application/json"),
        Verb::Create(object) => ("POST", format!("{path}{dry}"), object.clone(), "application/json"),
        Verb::Patch(patch) => ("PATCH", format!("{path}{dry}"), patch.clone(), "application/merge-patch+json"),
        Verb::Delete => ("DELETE", format!("{path}{dry}"), Value::Null, "application/json"),
        Verb::Update(patch) => {
            let mut object: Value = admin.request(http::Request::get(path).body(Vec::new())?).await?;
            merge(&mut object, patch);
            ("PUT", format!("{path}{dry}"), object, "application/json")
        }
    };
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body)? };
    let request = http::Request::builder().method(method).uri(url).header("Content-Type", mime).body(bytes)?;
    match client.request_text(request).await {
        Ok(_) => Ok((200, String::new())),
        Err(kube::Error::Api(status)) => Ok((status.code, status.message.clone())),
        Err(other) => Err(other.into()),
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Refused for want of rights: by RBAC (403) or by an admission policy (403 or 422, and it says so).
fn refused((code, message): &(u16, String)) -> bool {
    *code == 403 || (*code == 422 && message.contains("ValidatingAdmissionPolicy"))
}

async fn denied(t: Arc<Test>, verb: Verb, path: String, allowed: Allowed) -> Result<()> {
    let world = World::make(&t).await?;
    let path = world.fill(&path);
    let verb = match verb {
        Verb::Create(body) => Verb::Create(world.fill_json(&body)?),
        Verb::Update(body) => Verb::Update(world.fill_json(&body)?),
        Verb::Patch(body) => Verb::Patch(world.fill_json(&body)?),
        other => other,
    };
    let admin = t.kube().client();
    let good = match allowed {
        Allowed::Agent1 => t.rig.kube_as("n1").await?.client(),
        Allowed::Operator => t.rig.kube_as(OPERATOR).await?.client(),
        Allowed::Admin => admin.clone(),
    };
    let bad = t.rig.kube_as("n2").await?.client();
    let (code, message) = send(&good, &verb, &path, &admin, true).await?;
    if code >= 400 {
        bail!("the request is no good: who may send it got {code}: {message}");
    }
    let answer = send(&bad, &verb, &path, &admin, false).await?;
    if !refused(&answer) {
        bail!("{} {path} with n2's token was answered {}: {}", verb.name(), answer.0, answer.1);
    }
    Ok(())
}

/// What an agent needs to live must work with the same token.
async fn granted(t: Arc<Test>, node: &'static str, verb: Verb, path: String) -> Result<()> {
    let world = World::make(&t).await?;
    let verb = match verb {
        Verb::Create(body) => Verb::Create(world.fill_json(&body)?),
        Verb::Update(body) => Verb::Update(world.fill_json(&body)?),
        Verb::Patch(body) => Verb::Patch(world.fill_json(&body)?),
        other => other,
    };
    let client = t.rig.kube_as(node).await?.client();
    let path = world.fill(&path);
    let (code, message) = send(&client, &verb, &path, &t.kube().client(), false).await.context(path.clone())?;
    if code >= 400 {
        bail!("{} {path} with {node}'s token was refused, {code}: {message}", verb.name());
    }
    Ok(())
}

const OURS: &str = "/apis/dotgraft.dev/v1alpha1";

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut list: Vec<(String, Verb, String, Allowed)> = Vec::new();
    let mut add = |resource: &str, verb: Verb, path: &str, allowed: Allowed| {
        list.push((format!("rights/{}-{resource}", verb.name()), verb, path.to_owned(), allowed));
    };
    cluster_objects(&mut add);
    authority(&mut add);
    users_objects(&mut add);
    core_objects(&mut add);
    let denied = list.into_iter().map(|(id, verb, path, allowed)| {
        let title = format!("n2's agent may not {}", id.trim_start_matches("rights/").replacen('-', " ", 1));
        Case::new(id, title, move |t| denied(t, verb.clone(), path.clone(), allowed)).api()
    });
    denied.chain(own_rights()).collect()
}

fn cluster_objects(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let (theirs, own) = (format!("{OURS}/replicas/FSID.{POOL_1}"), format!("{OURS}/replicas/FSID.{POOL_2}"));
    let status = json!({"status": {"role": "Owner", "epoch": 9}});
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let spec = json!({"spec": {"desired": {"capacity": 5}}});
    let finalizer = json!({"metadata": {"finalizers": ["dotgraft.dev/replica"]}});
    let other = "33333333-3333-4333-8333-333333333333";
    add("replica", Verb::Create(replica("FSID", "n2", other)), &format!("{OURS}/replicas"), Allowed::Operator);
    add("replica-of-n1", Verb::Update(label.clone()), &theirs, Allowed::Operator);
    add("replica-of-n1", Verb::Patch(spec.clone()), &theirs, Allowed::Operator);
    add("replica-of-n1", Verb::Delete, &theirs, Allowed::Operator);
    add("replica-of-n1-finalizers", Verb::Patch(finalizer.clone()), &theirs, Allowed::Operator);
    add("replica-of-n1-status", Verb::Update(status.clone()), &format!("{theirs}/status"), Allowed::Agent1);
    add("replica-of-n1-status", Verb::Patch(status.clone()), &format!("{theirs}/status"), Allowed::Agent1);
    add("own-replica-spec", Verb::Update(spec.clone()), &own, Allowed::Operator);
    add("own-replica-spec", Verb::Patch(spec), &own, Allowed::Operator);
    add("own-replica-labels", Verb::Patch(label.clone()), &own, Allowed::Operator);
    add("own-replica", Verb::Delete, &own, Allowed::Operator);

    let (theirs, own) = (format!("{OURS}/nodepools/n1"), format!("{OURS}/nodepools/n2"));
    let status = json!({"status": {"capacityBytes": 1}});
    let spec = json!({"spec": {"address": "127.0.0.1:9"}});
    let prints = json!({"spec": {"fingerprints": ["0".repeat(64)]}});
    let pool = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "NodePool", "metadata": {"name": "n3"},
        "spec": {"node": "n3", "poolGroup": "default", "address": "127.0.0.1:1"}});
    add("nodepool", Verb::Create(pool), &format!("{OURS}/nodepools"), Allowed::Operator);
    add("nodepool-of-n1", Verb::Update(spec.clone()), &theirs, Allowed::Operator);
    add("nodepool-of-n1", Verb::Patch(spec), &theirs, Allowed::Operator);
    add("nodepool-of-n1", Verb::Delete, &theirs, Allowed::Operator);
    add("nodepool-of-n1-status", Verb::Update(status.clone()), &format!("{theirs}/status"), Allowed::Agent1);
    add("nodepool-of-n1-status", Verb::Patch(status), &format!("{theirs}/status"), Allowed::Agent1);
    add("own-nodepool-fingerprints", Verb::Update(prints.clone()), &own, Allowed::Operator);
    add("own-nodepool-fingerprints", Verb::Patch(prints), &own, Allowed::Operator);
    add("own-nodepool", Verb::Delete, &own, Allowed::Operator);
}

fn authority(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let path = format!("{OURS}/filesystems/FSID");
    let status = format!("{path}/status");
    let spec = json!({"spec": {"reclaimPolicy": "Retain"}});
    let new = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem", "metadata": {"name": "01890000-0000-7000-8000-000000000001"},
        "spec": {"claimRef": {"kind": "Dot", "namespace": "NAMESPACE", "name": "x"}, "reclaimPolicy": "Delete"}});
    add("filesystem", Verb::Create(new), &format!("{OURS}/filesystems"), Allowed::Operator);
    add("filesystem", Verb::Update(spec.clone()), &path, Allowed::Operator);
    add("filesystem", Verb::Patch(spec), &path, Allowed::Operator);
    add("filesystem", Verb::Delete, &path, Allowed::Operator);
    let opened = json!({"status": {"authority": {"opened": {"epoch": 1, "bootId": BOOT}}}});
    let pending = json!({"status": {"authority": {"pending":
        {"mig": MIG, "attempt": 0, "to": {"node": "n2", "pool": POOL_2}, "finalCommit": COMMIT}}}});
    add("authority-of-n1-opened", Verb::Update(opened.clone()), &status, Allowed::Agent1);
    add("authority-of-n1-opened", Verb::Patch(opened), &status, Allowed::Agent1);
    add("authority-of-n1-pending", Verb::Update(pending), &status, Allowed::Agent1);
    let steal = json!({"status": {"authority": {"owner": {"node": "n2", "pool": POOL_2}, "epoch": 2}}});
    add("authority-of-n1-steal", Verb::Update(steal.clone()), &status, Allowed::Operator);
    add("authority-of-n1-steal", Verb::Patch(steal), &status, Allowed::Operator);
    let phase = json!({"status": {"phase": "Deleting"}});
    add("filesystem-phase", Verb::Update(phase.clone()), &status, Allowed::Operator);
    add("filesystem-phase", Verb::Patch(phase), &status, Allowed::Operator);
}

fn users_objects(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let kinds = [("dot", "dots", "d"), ("branch", "branches", "b"), ("commit", "commits", "c"), ("job", "replicationjobs", "j")];
    for (word, plural, name) in kinds {
        let list = format!("{OURS}/namespaces/NAMESPACE/{plural}");
        let path = format!("{list}/{name}");
        let label = json!({"metadata": {"labels": {"x": "y"}}});
        let status = json!({"status": {"observedGeneration": 1}});
        add(word, Verb::Get, &path, Allowed::Operator);
        add(word, Verb::List, &list, Allowed::Operator);
        add(word, Verb::Watch, &list, Allowed::Operator);
        add(word, Verb::Update(label.clone()), &path, Allowed::Admin);
        add(word, Verb::Patch(label), &path, Allowed::Admin);
        add(word, Verb::Delete, &path, Allowed::Admin);
        add(&format!("{word}-status"), Verb::Patch(status), &format!("{path}/status"), Allowed::Operator);
    }
    let dot = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Dot", "metadata": {"name": "new"}, "spec": {"capacity": "1Gi"}});
    add("dot", Verb::Create(dot), &format!("{OURS}/namespaces/NAMESPACE/dots"), Allowed::Admin);
}

fn core_objects(add: &mut impl FnMut(&str, Verb, &str, Allowed)) {
    let secrets = format!("/api/v1/namespaces/{SYSTEM}/secrets");
    let secret = format!("{secrets}/dotgraft-ca");
    let data = json!({"stringData": {"ca": "y"}});
    let new = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "new"}});
    add("secret", Verb::Get, &secret, Allowed::Operator);
    add("secret", Verb::List, &secrets, Allowed::Admin);
    add("secret", Verb::Watch, &secrets, Allowed::Admin);
    add("secret", Verb::Create(new), &secrets, Allowed::Admin);
    add("secret", Verb::Update(data.clone()), &secret, Allowed::Operator);
    add("secret", Verb::Patch(data), &secret, Allowed::Admin);
    add("secret", Verb::Delete, &secret, Allowed::Admin);
    add("secret-of-others", Verb::List, "/api/v1/secrets", Allowed::Admin);
    add("pod", Verb::List, "/api/v1/pods", Allowed::Admin);
    let label = json!({"metadata": {"labels": {"dotgraft.dev/pool-group": "mine"}}});
    add("node", Verb::Patch(label), "/api/v1/nodes/n2", Allowed::Admin);
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases");
    let holder = json!({"spec": {"holderIdentity": "n2"}});
    add("lease-of-n1", Verb::Update(holder.clone()), &format!("{leases}/dotgraft-agent-n1"), Allowed::Agent1);
    add("lease-of-n1", Verb::Patch(holder), &format!("{leases}/dotgraft-agent-n1"), Allowed::Admin);
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/dotgraft-operator/token");
    add("token-of-operator", Verb::Create(token), &path, Allowed::Admin);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mine"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "dotgraft-agent", "namespace": SYSTEM}]});
    add("clusterrolebinding", Verb::Create(binding), "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", Allowed::Admin);
}

/// The other side: what the shipped rights give, so that "no" isn't the answer to everything.
fn own_rights() -> Vec<Case> {
    let own = format!("{OURS}/replicas/FSID.{POOL_1}");
    let opened = json!({"status": {"authority": {"opened": {"epoch": 1, "bootId": BOOT}}}});
    let rows: Vec<(&str, Verb, String)> = vec![
        ("replicas", Verb::List, format!("{OURS}/replicas")),
        ("replicas", Verb::Watch, format!("{OURS}/replicas")),
        ("nodepools", Verb::List, format!("{OURS}/nodepools")),
        ("nodepools", Verb::Watch, format!("{OURS}/nodepools")),
        ("filesystem", Verb::Get, format!("{OURS}/filesystems/FSID")),
        ("own-replica-status", Verb::Patch(json!({"status": {"role": "Owner", "epoch": 1}})), format!("{own}/status")),
        ("own-replica-finalizer", Verb::Patch(json!({"metadata": {"finalizers": ["dotgraft.dev/replica"]}})), own),
        ("own-nodepool-status", Verb::Patch(json!({"status": {"capacityBytes": 1}})), format!("{OURS}/nodepools/n1/status")),
        ("own-authority-opened", Verb::Update(opened), format!("{OURS}/filesystems/FSID/status")),
    ];
    rows.into_iter()
        .map(|(what, verb, path)| {
            let id = format!("rights/may-{}-{what}", verb.name());
            let title = format!("n1's agent may {} {}", verb.name(), what.replace('-', " "));
            Case::new(id, title, move |t| granted(t, "n1", verb.clone(), path.clone())).api()
        })
        .collect()
}
