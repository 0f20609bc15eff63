//! `DotOperation`: one imperative act on a Dot or Branch, run once and kept as a record of what was done (design §2).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{ClaimKind, Origin};
use crate::schema::{self, rules};

/// What is to be done to what.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "DotOperation",
    namespaced,
    status = "DotOperationStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "DotOperation is one act on a Dot or Branch, such as making another copy its owner: run once, kept as a record of what was done.",
    shortname = "dotop",
    category = "dotgraft",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.target.kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.conditions[?(@.type=='Complete')].reason"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.from"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.to"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self == oldSelf", "a DotOperation can't change: make another one"),
    ("has(self.promote) != has(self.reset)", "a DotOperation does one thing: promote or reset"),
])))]
pub struct DotOperationSpec {
    /// The Dot or Branch in this namespace.
    pub target: OperationTarget,
    /// Make another copy the owner, without the present owner's doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote: Option<Promote>,
    /// Make the volume what it was in a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Reset>,
}

/// A Dot or Branch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationTarget {
    /// Dot or Branch.
    #[serde(default)]
    pub kind: ClaimKind,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
}

/// Taking authority from an owner that is lost, by a person's word (migration.md §2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Promote {
    /// The node of the copy that takes over; the one with the newest commit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub node: Option<String>,
    /// What the present owner has beyond that copy may be lost; needs the verb `accept-loss` on the Dot or Branch. If the old owner
    /// returns, what it has is fenced and kept until someone drops it.
    #[serde(default)]
    pub accept_loss: bool,
}

/// Replacing what the volume holds by what it held in a commit, once nothing has it mounted (design §4). What it held until then is
/// kept by a Commit that is made for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reset {
    /// A commit's id, or the name of a Commit in this namespace; the newest that no reset made if absent, or where a Branch without any began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::commit_ref")]
    pub commit: Option<String>,
    /// While it waits, no new pod gets the volume, for five minutes at most: so pods that are made to leave don't come back before it.
    #[serde(default)]
    pub hold: bool,
}

/// What a reset goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResetPlan {
    /// What the volume becomes.
    pub to: Origin,
    /// The Commit object that keeps what it held before.
    #[schemars(schema_with = "schema::name")]
    pub kept: String,
    /// With `hold`: until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub hold_until: Option<Time>,
    /// The owner keeps new mounts back now: who leaves the volume now doesn't get it again before it is done.
    #[serde(default)]
    pub holding: bool,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DotOperationStatus {
    /// `Done`, `Refused`; absent while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<OperationPhase>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub finished_at: Option<Time>,
    /// The owner before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub from: Option<String>,
    /// The owner after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub to: Option<String>,
    /// Epoch of authority after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Of a reset: decided once, before anything is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<ResetPlan>,
    /// What was done, or why it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Complete: it will not be looked at again. Its reason is `Pending` while it waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationPhase {
    /// It was done.
    Done,
    /// It can't be done; make another one once that has changed.
    Refused,
}
