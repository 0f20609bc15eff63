//! Commit: a commit that someone asked for and wants kept (design §2). Deleting the object deletes that commit everywhere.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::ClaimKind;
use crate::schema::{self, rules};

/// What to commit. Nothing of it can change.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "Commit",
    namespaced,
    status = "CommitStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Commit asks for a commit of a Dot or Branch and keeps it: the commit goes, on every node, when this object is deleted.",
    shortname = "dcommit",
    category = "dotgraft",
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.source.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Id", type_ = "string", json_path = ".status.id"),
    printcolumn(name = "Message", type_ = "string", json_path = ".spec.message"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1),
    printcolumn(name = "Copies", type_ = "string", json_path = ".status.copies", description = "nodes that hold it", priority = 1),
    printcolumn(name = "Changed", type_ = "string", json_path = ".status.changed", description = "newer than its parent", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[("self == oldSelf", "a Commit can't change: make another one")])))]
pub struct CommitSpec {
    /// What is committed.
    pub source: CommitSource,
    /// Text for people, at most 4096 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(schema_with = "schema::message")]
    pub message: String,
    /// At most 64 pairs kept with the commit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::metadata")]
    pub metadata: BTreeMap<String, String>,
}

/// A Dot or Branch in the same namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitSource {
    /// Dot or Branch.
    #[serde(default)]
    pub kind: ClaimKind,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
}

/// The commit that was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitStatus {
    /// metadata.generation that this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Its id, the same on every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub id: Option<String>,
    /// The Filesystem it was made in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: Option<String>,
    /// The commit before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub parent: Option<String>,
    /// When the owner took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub time: Option<Time>,
    /// Bytes in extents newer than the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_bytes: Option<u64>,
    /// The same for people, such as 12Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub changed: Option<String>,
    /// Nodes whose copies are known to hold it, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub copies: Vec<String>,
    /// Ready, Pinned, `AtRisk`; `NoCopyLeft` while no copy holds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
