//! NodePool: the agent of a node and its pool (design §2). Cluster-scoped, named as the node. The operator writes `spec` as signer
//! of the agent's certificates; the agent writes `status`, on change only.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Claim, Origin};
use crate::schema::{self, rules};

/// Who the agent is, and what is to be done with what it doesn't know.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "NodePool",
    status = "NodePoolStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "NodePool is the agent of a node: its address and certificates, and the pool that holds its copies. Made by the operator.",
    shortname = "dpool",
    category = "dotgraft",
    validation = Rule::new("self.metadata.name == self.spec.node").message("a NodePool is named as its node"),
    printcolumn(name = "Group", type_ = "string", json_path = ".spec.poolGroup"),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".status.capacity"),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.available", description = "in steps of 1 %"),
    printcolumn(name = "Orphans", type_ = "integer", json_path = ".status.orphans.count"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".status.pool", priority = 1),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address", priority = 1),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernelRelease", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[("self.node == oldSelf.node", "node can't change")])))]
pub struct NodePoolSpec {
    /// The node. Can't change.
    #[schemars(schema_with = "schema::name")]
    pub node: String,
    /// The nodes among which a volume may move.
    #[serde(default = "default_pool_group")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"))]
    pub pool_group: String,
    /// `ip:port` of its peer service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9a-f:.]+\]):[0-9]{1,5}$"))]
    pub address: String,
    /// SHA-256 of the certificates it may show, lower-case hex, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 64), regex(pattern = "^[0-9a-f]{64}$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub fingerprints: Vec<String>,
    /// What a person decided about orphans (`kubectl dot adopt`, `drop`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["fsId"]))]
    pub orphan_actions: Vec<OrphanAction>,
}

fn default_pool_group() -> String {
    crate::common::DEFAULT_POOL_GROUP.to_owned()
}

/// A decision about an orphan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrphanAction {
    /// The Filesystem.
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: String,
    /// What to do with this node's copy.
    pub action: OrphanActionKind,
}

/// What to do with an orphan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OrphanActionKind {
    /// Make its objects anew.
    #[default]
    Adopt,
    /// Delete its data here.
    Drop,
}

/// What the agent says of its pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePoolStatus {
    /// metadata.generation that this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// UUID of the pool; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub pool: Option<String>,
    /// Size of the pool in bytes.
    #[serde(default)]
    pub capacity_bytes: u64,
    /// Free bytes, in steps of 1 % of the size.
    #[serde(default)]
    pub available_bytes: u64,
    /// The size for people, such as 100Gi.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 16))]
    pub capacity: String,
    /// What is free for people, such as 42Gi.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 16))]
    pub available: String,
    /// What the pool and kernel can do: simple-quotas, send-v2, compressed, …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 64)), extend("x-kubernetes-list-type" = "atomic"))]
    pub features: Vec<String>,
    /// `uname -r`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub kernel_release: String,
    /// Copies in the pool that no object asks for; kept until a person decides.
    #[serde(default)]
    pub orphans: Orphans,
    /// Ready, `PoolMissing`, `PoolFailed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Copies that no object asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Orphans {
    /// How many there are.
    #[serde(default)]
    pub count: u32,
    /// The first 100, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["fsId"]))]
    pub items: Vec<Orphan>,
}

/// What an orphan's own files say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// The Filesystem.
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: String,
    /// Owner or Replica.
    #[serde(default)]
    pub role: crate::replica::CopyRole,
    /// Highest epoch that it has seen.
    #[serde(default)]
    pub epoch: u64,
    /// Highest attempt that it has seen.
    #[serde(default)]
    pub attempt: u64,
    /// The object that it belonged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// The commit of another Filesystem that it started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Most that the files may take, in bytes.
    #[serde(default)]
    pub capacity: u64,
    /// Most that commits may take beyond the files, in bytes.
    #[serde(default)]
    pub history_limit: u64,
    /// Its newest commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub head: Option<String>,
    /// Up to where it has the history; absent with commits: the agent is of a version before 0.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_to: Option<crate::replica::CompleteTo>,
    /// Commits that it has.
    #[serde(default)]
    pub commits: u64,
    /// Bytes used.
    #[serde(default)]
    pub bytes: u64,
    /// A deletion of it was under way.
    #[serde(default)]
    pub deleting: bool,
}
