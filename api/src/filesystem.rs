//! Filesystem: what a Dot or Branch is, and who may write it (design §2, migration.md §2). Cluster-scoped, named by its id.
//!
//! The operator writes `spec` and `status.phase`; agents change `status.authority` where the admission policies let them, always
//! by `update` with `resourceVersion`, never by apply. The schema of authority is complete from its first version.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{ClaimRef, Origin, Place, ReclaimPolicy};
use crate::schema::{self, rules};

/// What a Filesystem belongs to and came from.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "Filesystem",
    status = "FilesystemStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Filesystem is the data of a Dot or Branch, the same in every cluster and on every disk, and the authority over it. Made by the operator.",
    shortname = "dfs",
    category = "dotgraft",
    validation = Rule::new("self.metadata.name.matches('^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')").message("a Filesystem is named by its id, a lower-case UUID"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.authority) || (has(self.status) && has(self.status.authority))").message("authority can't be taken away, only changed"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.claimRef.namespace"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.claimRef.kind"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".spec.claimRef.name"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".status.authority.owner.node"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.authority.epoch"),
    printcolumn(name = "Pending", type_ = "string", json_path = ".status.authority.pending.to.node", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("has(self.origin) == has(oldSelf.origin) && (!has(self.origin) || self.origin == oldSelf.origin)", "origin can't change"),
    ("!has(oldSelf.acceptEpoch) || (has(self.acceptEpoch) && self.acceptEpoch >= oldSelf.acceptEpoch)", "acceptEpoch only grows"),
])))]
pub struct FilesystemSpec {
    /// The Dot or Branch that holds it.
    pub claim_ref: ClaimRef,
    /// The commit of another Filesystem that it started from. Can't change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What happens to the data when the claim is gone.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
    /// A person accepts this epoch, or one more than any pool has seen, after authority was lost (`kubectl dot accept`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_epoch: Option<u64>,
    /// Nodes that Kubernetes has attached it to (`ControllerPublish`); the first that may write is where authority should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub published_to: Vec<Publication>,
}

/// A node that Kubernetes has attached a Filesystem to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Publication {
    /// The node.
    #[schemars(schema_with = "schema::name")]
    pub node: String,
    /// Only to read a commit, from a copy there; moves nothing.
    #[serde(default)]
    pub read_only: bool,
}

/// Phase and authority; nothing else, so that nothing gets in the way of a compare-and-swap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemStatus {
    /// Written by the operator only. Required: a default would make a restored status without it `New`, and only what is `New` may be
    /// created empty.
    pub phase: FilesystemPhase,
    /// Who may write; absent before there is an owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<Authority>,
}

/// Life of a Filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilesystemPhase {
    /// No data yet.
    #[default]
    New,
    /// In use.
    Active,
    /// The claim is gone, the data kept.
    Released,
    /// The head is gone, pinned commits remain.
    Headless,
    /// Going, everywhere.
    Deleting,
}

/// Who may write a Filesystem (migration.md §2). The epoch only grows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.epoch >= oldSelf.epoch", "epoch only grows"),
    ("self.attempt >= oldSelf.attempt", "attempt only grows"),
    ("self.owner == oldSelf.owner || self.epoch > oldSelf.epoch", "another owner needs a higher epoch"),
    ("!has(self.opened) || self.opened.epoch <= self.epoch", "opened can't be ahead of the epoch"),
    ("!has(self.pending) || self.pending.attempt == self.attempt", "pending must carry the current attempt"),
    ("!has(self.pending) || self.pending.to.node != self.owner.node", "pending must name another node than the owner"),
])))]
pub struct Authority {
    /// The one copy that may be written.
    pub owner: Place,
    /// Grows with each change of owner; the first is 1.
    #[schemars(range(min = 1))]
    pub epoch: u64,
    /// Grows with each abort; kept here so that it survives one.
    #[serde(default)]
    pub attempt: u64,
    /// The owner has opened it for writing; counts only if its epoch is the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Opened>,
    /// A handoff under way; only a won Abort or Commit ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Where histories parted when authority was taken without the owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub fork_points: Vec<ForkPoint>,
}

/// An opening, good for one epoch and one boot (rule R0).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Opened {
    /// The epoch that was opened.
    pub epoch: u64,
    /// Boot of the owner's machine then.
    #[schemars(schema_with = "schema::uuid")]
    pub boot_id: String,
}

/// A handoff that waits for Commit or Abort.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Id of the migration.
    #[schemars(schema_with = "schema::uuid")]
    pub mig: String,
    /// The attempt it belongs to.
    pub attempt: u64,
    /// Who is to be owner.
    pub to: Place,
    /// The commit that has all of the old owner's data.
    #[schemars(schema_with = "schema::uuid")]
    pub final_commit: String,
}

/// The last commit that an owner shared before authority was taken from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForkPoint {
    /// Who lost authority.
    pub from: Place,
    /// Its epoch.
    pub from_epoch: u64,
    /// The newest commit known to be common; absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub commit: Option<String>,
}
