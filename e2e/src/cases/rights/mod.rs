//! What an agent may not do (security.md, "Policies"): one case per verb and resource, with a real token of node `n2`
//! against what belongs to `n1`. Each case also sends the same request with an identity that may, so that a refusal is
//! one of rights and not of a wrong request.

mod authority;
mod power;
mod table;
mod verdicts;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
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
    /// An Active Filesystem of a Dot `d`, owned by n1; returns its id.
    async fn filesystem(t: &Test) -> Result<String> {
        let fs_id = uuid::Uuid::now_v7().to_string();
        let kube = t.kube();
        let claim = json!({"kind": "Dot", "namespace": t.namespace, "name": "d"});
        let filesystem = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem", "metadata": {"name": fs_id},
            "spec": {"claimRef": claim, "reclaimPolicy": "Delete"}});
        kube.create("", &filesystem).await?;
        let authority = json!({"owner": {"node": "n1", "pool": POOL_1}, "epoch": 1, "attempt": 0});
        kube.patch("Filesystem", "", &fs_id, "status", &json!({"status": {"phase": "Active", "authority": authority}})).await?;
        Ok(fs_id)
    }

    async fn make(t: &Test) -> Result<Self> {
        let fs_id = Self::filesystem(t).await?;
        let kube = t.kube();
        for (node, pool) in [("n1", POOL_1), ("n2", POOL_2)] {
            kube.create("", &replica(&fs_id, node, pool)).await?;
            let pool = json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "NodePool", "metadata": {"name": node},
                "spec": {"node": node, "poolGroup": "default", "address": "127.0.0.1:1"}});
            if kube.get("NodePool", "", node).await?.is_none() {
                kube.create("", &pool).await?;
            }
        }
        core_objects(t).await?;
        t.create("Dot", "d", &json!({"capacity": "1Gi"})).await?;
        t.create("Branch", "b", &json!({"dot": "d"})).await?;
        t.create("Commit", "c", &json!({"source": {"kind": "Dot", "name": "d"}})).await?;
        let job = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}});
        t.create("ReplicationJob", "j", &job).await?;
        Ok(Self { fs_id, namespace: t.namespace.clone() })
    }

    /// Fills in what only this world knows.
    fn fill(&self, text: &str) -> String {
        let random = self.fs_id.get(24..).unwrap_or_default();
        text.replace("FSID", &self.fs_id).replace("NAMESPACE", &self.namespace).replace("RANDOM", random)
    }

    fn fill_json(&self, value: &Value) -> Result<Value> {
        Ok(serde_json::from_str(&self.fill(&value.to_string()))?)
    }
}

/// The Secrets of the operator and a Lease of each agent; one set for all cases of a rig.
async fn core_objects(t: &Test) -> Result<()> {
    let client = t.kube().client();
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM);
    let secrets: Api<Secret> = Api::namespaced(client, SYSTEM);
    for name in ["dotgraft-ca", "dotgraft-webhook"] {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        ensure(&secrets, name, &Secret { metadata, ..Secret::default() }).await?;
    }
    for node in ["n1", "n2"] {
        let name = format!("dotgraft-agent-{node}");
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        ensure(&leases, &name, &Lease { metadata, ..Lease::default() }).await?;
    }
    Ok(())
}

async fn ensure<K>(api: &Api<K>, name: &str, object: &K) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    if api.get_opt(name).await?.is_none() {
        api.create(&PostParams::default(), object).await?;
    }
    Ok(())
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
    let denied = table::denied().into_iter().map(|(what, verb, path, allowed)| {
        let id = format!("rights/{}-{what}", verb.name());
        let title = format!("n2's agent may not {} {}", verb.name(), what.replace('-', " "));
        Case::new(id, title, move |t| denied(t, verb.clone(), path.clone(), allowed)).api()
    });
    let granted = table::granted().into_iter().map(|(what, verb, path)| {
        let id = format!("rights/may-{}-{what}", verb.name());
        let title = format!("n1's agent may {} {}", verb.name(), what.replace('-', " "));
        Case::new(id, title, move |t| granted(t, "n1", verb.clone(), path.clone())).api()
    });
    denied.chain(granted).chain(authority::cases()).chain([verdicts::case(), power::case()]).collect()
}
