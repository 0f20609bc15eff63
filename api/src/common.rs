//! What several kinds share: names of finalizers, labels and field managers, small value types, and conditions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The API group.
pub const GROUP: &str = "dotgraft.dev";
/// Its only version.
pub const VERSION: &str = "v1alpha1";
/// Namespace of our programs.
pub const SYSTEM_NAMESPACE: &str = "dotgraft-system";

/// Finalizer on Dot and Branch.
pub const FINALIZER_CLAIM: &str = "dotgraft.dev/claim";
/// Finalizer on Filesystem.
pub const FINALIZER_FILESYSTEM: &str = "dotgraft.dev/filesystem";
/// Finalizer on Replica; the agent takes it off when nothing is left in its pool.
pub const FINALIZER_REPLICA: &str = "dotgraft.dev/replica";
/// Finalizer on Commit.
pub const FINALIZER_COMMIT: &str = "dotgraft.dev/commit";
/// Finalizer on ReplicationJob.
pub const FINALIZER_JOB: &str = "dotgraft.dev/job";

/// Field manager of the operator.
pub const MANAGER_OPERATOR: &str = "dotgraft-operator";
/// Field manager of the agents.
pub const MANAGER_AGENT: &str = "dotgraft-agent";

/// Name of the agents' `ServiceAccount`.
pub const SERVICE_ACCOUNT_AGENT: &str = "dotgraft-agent";
/// Where the API server puts the node that a token is bound to (`userInfo.extra`, CSR `spec.extra`).
pub const EXTRA_NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Signer of the agents' certificates.
pub const SIGNER_NAME: &str = "dotgraft.dev/agent";
/// Secret of the CA, in [`SYSTEM_NAMESPACE`].
pub const CA_SECRET: &str = "dotgraft-ca";
/// The API server refuses an event whose `note` has more than 1,024 bytes (events.k8s.io/v1), whatever it says.
const EVENT_NOTE_BYTES: usize = 1000;

/// As much of a text as the `note` of an event can have, cut at a character.
pub fn event_note(text: &str) -> &str {
    let most = text.len().min(EVENT_NOTE_BYTES);
    let end = (0..=most).rfind(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// Lease of the operators.
pub const LEASE_OPERATOR: &str = "dotgraft-operator";
/// Prefix of the agents' heartbeat Leases, followed by the node name.
pub const LEASE_AGENT_PREFIX: &str = "dotgraft-agent-";
/// Annotation on a CSR: the port of the agent's peer service.
pub const ANNOTATION_PEER_PORT: &str = "dotgraft.dev/peer-port";
/// Label on Nodes: the pool group; absent means [`DEFAULT_POOL_GROUP`].
pub const LABEL_POOL_GROUP: &str = "dotgraft.dev/pool-group";
/// Pool group of nodes without the label.
pub const DEFAULT_POOL_GROUP: &str = "default";
/// Label on Nodes: what taints of the node mean for new volumes and copies ([`crate::node::repelling_taint`]).
pub const LABEL_TAINTS: &str = "dotgraft.dev/taints";
/// Value of [`LABEL_TAINTS`]: those that people set mean nothing, as whoever uses volumes tolerates them.
pub const TAINTS_IGNORE: &str = "ignore";
/// Label on Replicas: the Filesystem they are a copy of.
pub const LABEL_FS_ID: &str = "dotgraft.dev/fs-id";
/// Label on Replicas: the node they are on, if the name fits a label.
pub const LABEL_NODE: &str = "dotgraft.dev/node";
/// Label on `ReplicationJobs` that the operator made for `placement.replicas`: UID of the claim.
pub const LABEL_OWNED_BY: &str = "dotgraft.dev/owned-by";
/// Name of the CSI driver.
pub const DRIVER_NAME: &str = "csi.dotgraft.dev";
/// Topology key: the pool group.
pub const TOPOLOGY_POOL: &str = "topology.dotgraft.dev/pool";
/// Topology key: the node, so that `CreateVolume` learns which one was chosen.
pub const TOPOLOGY_NODE: &str = "topology.dotgraft.dev/node";
/// Annotation on Dots and Commits that a CSI call made: the name in the call, for idempotency.
pub const ANNOTATION_CSI_NAME: &str = "dotgraft.dev/csi-name";
/// Annotation on Namespaces: most that the volumes in it may take together, with `historyLimit` and all copies (ADR 25).
pub const ANNOTATION_CAPACITY_LIMIT: &str = "dotgraft.dev/capacity-limit";
/// Annotation on Dots: the node to begin on, if it fits. Unlike `placement.node` it asks for nothing later.
pub const ANNOTATION_INITIAL_NODE: &str = "dotgraft.dev/initial-node";

/// What happens to the data when a Dot or Branch is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Goes with it; waits while Branches of it exist.
    #[default]
    Delete,
    /// Goes with it, and its Branches too.
    Cascade,
    /// Stays; the Filesystem becomes `Released`.
    Retain,
}

/// What happens to a Filesystem's data when its claim is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// Deleted everywhere.
    #[default]
    Delete,
    /// Kept until someone claims or drops it.
    Retain,
}

/// When authority may leave a lost owner (migration.md §2). `Automatic` is not in this version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Fencing {
    /// On proof that the owner can't write any more.
    #[default]
    Proof,
    /// By a person only.
    Manual,
}

/// The first copy to an empty receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Initial {
    /// The newest commit, in one full step.
    #[default]
    MostRecent,
    /// The oldest in full, then every increment.
    All,
    /// None: refuse, so that somebody looks.
    Fail,
}

/// Which of the commits between two points are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Intermediate {
    /// Every one.
    #[default]
    All,
    /// The newest, skipping those between.
    LatestOnly,
}

/// Kinds that claim a Filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ClaimKind {
    /// A Dot: its `main`.
    #[default]
    Dot,
    /// A Branch.
    Branch,
}

impl ClaimKind {
    /// The kind as the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dot => "Dot",
            Self::Branch => "Branch",
        }
    }
}

/// The object that a Filesystem belongs to, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Dot or Branch.
    pub kind: ClaimKind,
    /// Its namespace.
    #[schemars(schema_with = "schema::namespace")]
    pub namespace: String,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// Its annotation `dotgraft.dev/csi-name`, so that an adopted volume is still deleted with its PVC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub csi_name: Option<String>,
}

/// The claim that holds a Filesystem; `uid` names the live object, if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRef {
    /// Dot or Branch.
    pub kind: ClaimKind,
    /// Its namespace.
    #[schemars(schema_with = "schema::namespace")]
    pub namespace: String,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// UID of the live object; absent while the claim is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub uid: Option<String>,
    /// UID of the namespace: one of that name that is made later is another tenant's. Absent: nobody new gets the data, until the operator has
    /// found which namespace it was, or an administrator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub namespace_uid: Option<String>,
}

impl ClaimRef {
    /// The claim without its UID.
    pub fn claim(&self) -> Claim {
        Claim { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone(), csi_name: None }
    }
}

/// Where a copy is: a node and the pool on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The node.
    #[schemars(schema_with = "schema::name")]
    pub node: String,
    /// UUID of its pool.
    #[schemars(schema_with = "schema::uuid")]
    pub pool: String,
}

/// The commit of another Filesystem that this one started from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The other Filesystem.
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: String,
    /// The commit, pinned there while this one exists.
    #[schemars(schema_with = "schema::uuid")]
    pub commit: String,
}

/// Where the copies of a Dot or Branch should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Node of the writable copy; chosen by the operator if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub node: Option<String>,
    /// Read-only copies on other nodes, updated on every commit.
    #[serde(default)]
    #[schemars(range(min = 0, max = 7))]
    pub replicas: u32,
    /// Only nodes with these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: BTreeMap<String, String>,
}

/// What stands in the way: a word for programs, a sentence for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// One of a closed set, such as `NoSpace`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What is wrong and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::event_note;

    #[test]
    fn a_note_is_cut_at_a_character_in_any_language() {
        assert_eq!(event_note("short, ü"), "short, ü");
        assert_eq!(event_note(&"ü".repeat(900)), "ü".repeat(500));
        assert_eq!(event_note(&"語".repeat(900)), "語".repeat(333));
        assert_eq!(event_note(&"x".repeat(2000)).len(), 1000);
    }
}
