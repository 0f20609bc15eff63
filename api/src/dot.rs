//! Dot: a named, versioned volume in a namespace, made by a user; its default branch is `main` (design §1, §2).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{DeletionPolicy, Fencing, Origin, Place, Placement};
use crate::schema::{self, rules};

/// Rule of Dot and Branch: the binding to a Filesystem is for ever.
pub(crate) const FS_ID_RULE: (&str, &str) = (
    "!has(oldSelf.fsId) || (has(self.fsId) && self.fsId == oldSelf.fsId)",
    "fsId binds the object to its data and can't change once it is set",
);
/// Rule of Dot: what it started from is for ever.
const ORIGIN_RULE: (&str, &str) =
    ("has(self.origin) == has(oldSelf.origin) && (!has(self.origin) || self.origin == oldSelf.origin)", "origin can't change");

/// What a user wants of a Dot.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "Dot",
    namespaced,
    status = "DotStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Dot is a named, versioned volume on local disks: it has commits and branches, and read-only copies on other nodes.",
    shortname = "dot",
    category = "dotgraft",
    printcolumn(name = "Capacity", type_ = "string", json_path = ".spec.capacity"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".status.owner", description = "node that may write it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(
        name = "Uncommitted",
        type_ = "date",
        json_path = ".status.writtenSince",
        description = "for how long the files differ from the newest commit"
    ),
    printcolumn(name = "Head", type_ = "string", json_path = ".status.head", description = "newest commit", priority = 1),
    printcolumn(name = "Fs", type_ = "string", json_path = ".status.fsId", priority = 1),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used", description = "by files and history"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[FS_ID_RULE, ORIGIN_RULE])))]
pub struct DotSpec {
    /// Most that the files may take, from 1Mi to 1Ei, such as 10Gi.
    #[schemars(schema_with = "schema::size")]
    pub capacity: String,
    /// Most that commits may take beyond the files; capacity if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::size")]
    pub history_limit: Option<String>,
    /// The Filesystem that this is; set by the operator, or on restore. Can't change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: Option<String>,
    /// A commit that it starts from: a clone with a life of its own. Can't change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Where the copies should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What happens to the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// When authority may leave a lost owner.
    #[serde(default)]
    pub fencing: Fencing,
}

/// What is known of a Dot or Branch: a mirror for people; nothing decides on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DotStatus {
    /// metadata.generation that this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The Filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: Option<String>,
    /// The node that may write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub owner: Option<String>,
    /// The pool on that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub pool: Option<String>,
    /// Epoch of authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The newest commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub head: Option<String>,
    /// Bytes used, files and history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The same two for people, such as 1.2Gi of 20Gi.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub used: String,
    /// Bytes that may be used, files and history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Bytes of the files alone, about; told while nine tenths of the limit are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Since when its files differ from the newest commit: what was written since is on the owner's node only. Absent: they don't, as far as is known;
    /// what is written is seen here within a minute and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub written_since: Option<Time>,
    /// PVCs of its namespace that are bound to it for writing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub claims: Vec<String>,
    /// Every copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub replicas: Vec<ReplicaSummary>,
    /// The move in hand, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<crate::replica::Migration>,
    /// The newest commits, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub recent_commits: Vec<RecentCommit>,
    /// Ready, Progressing, Degraded, Diverged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

impl DotStatus {
    /// The owner with its pool, if both are known.
    pub fn place(&self) -> Option<Place> {
        Some(Place { node: self.owner.clone()?, pool: self.pool.clone()? })
    }
}

/// One copy of a Dot or Branch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSummary {
    /// The node.
    #[schemars(schema_with = "schema::name")]
    pub node: String,
    /// Owner, Replica, Receiving, Creating, Deleting or Absent.
    #[schemars(length(max = 64))]
    pub state: String,
    /// Its newest commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub commit: Option<String>,
    /// When the owner took that: the copy is as old as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub commit_time: Option<Time>,
    /// Commits that the owner has and this copy lacks; at most 16 are counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u32,
    /// Since when it lacks something: the oldest such commit, else what was written after the newest. Absent: it lacks nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub behind_since: Option<Time>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
const fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A commit, as lists for people show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecentCommit {
    /// Its id.
    #[schemars(schema_with = "schema::uuid")]
    pub id: String,
    /// When the owner took it.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
    /// Its message, cut at 256 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
}
