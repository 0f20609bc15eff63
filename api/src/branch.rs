//! Branch: another line of history of a Dot, started from one of its commits (design §2). Its status is a Dot's.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{DeletionPolicy, Fencing, Placement};
use crate::dot::FS_ID_RULE;
use crate::schema::{self, rules};

pub use crate::dot::DotStatus as BranchStatus;

/// What a user wants of a Branch.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "Branch",
    plural = "branches",
    namespaced,
    status = "BranchStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Branch is another line of history of a Dot: a writable volume that starts from one of the Dot's commits.",
    shortname = "dbranch",
    category = "dotgraft",
    printcolumn(name = "Dot", type_ = "string", json_path = ".spec.dot"),
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
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.dot == oldSelf.dot", "dot can't change: make another Branch"),
    ("has(self.from) == has(oldSelf.from) && (!has(self.from) || self.from == oldSelf.from)", "from can't change: make another Branch"),
    FS_ID_RULE,
])))]
pub struct BranchSpec {
    /// The Dot in this namespace. Can't change.
    #[schemars(schema_with = "schema::name")]
    pub dot: String,
    /// What it starts from; the newest commit of the Dot's `main` if absent. Can't change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<BranchFrom>,
    /// Most that the files may take; the Dot's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::size")]
    pub capacity: Option<String>,
    /// Most that commits may take beyond the files; capacity if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::size")]
    pub history_limit: Option<String>,
    /// The Filesystem that this is; set by the operator, or on restore. Can't change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: Option<String>,
    /// Where the copies should be; the node must have a copy of the commit it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What happens to the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// When authority may leave a lost owner.
    #[serde(default)]
    pub fencing: Fencing,
}

/// Start of a Branch: at most one of both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("!(has(self.branch) && has(self.commit))", "from takes a branch or a commit, not both"),
])))]
pub struct BranchFrom {
    /// The newest commit of this Branch of the same Dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub branch: Option<String>,
    /// This commit: its id, or the name of a Commit object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::commit_ref")]
    pub commit: Option<String>,
}
