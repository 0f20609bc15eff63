//! Replica: one copy of a Filesystem in one pool, and the mailbox between operator and agent (design §2). Cluster-scoped, named
//! `<fsId>.<pool UUID>`. The operator writes `spec`, the agent of `spec.node` writes `status`. It is its own tombstone.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Claim, Fencing, Initial, Intermediate, Origin, Place, ReclaimPolicy};
use crate::replication_job::Schedule;
use crate::run_report::AgentReport;
use crate::schema::{self, rules};

/// Which copy, and what is wanted of it.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "Replica",
    status = "ReplicaStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Replica is one copy of a Filesystem in one pool: what the operator wants of it, and what the agent there says. Made by the operator.",
    shortname = "dreplica",
    category = "dotgraft",
    selectable = ".spec.node",
    selectable = ".spec.fsId",
    validation = Rule::new("self.metadata.name == self.spec.fsId + '.' + self.spec.pool").message("a Replica is named <fsId>.<pool>"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".spec.desired.claim.name"),
    printcolumn(name = "Desired", type_ = "string", json_path = ".spec.desired.state"),
    printcolumn(name = "Role", type_ = "string", json_path = ".status.role"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Head", type_ = "string", json_path = ".status.head", description = "newest commit", priority = 1),
    printcolumn(name = "Commits", type_ = "integer", json_path = ".status.commitCount", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.fsId == oldSelf.fsId", "fsId can't change"),
    ("self.node == oldSelf.node", "node can't change"),
    ("self.pool == oldSelf.pool", "pool can't change"),
])))]
pub struct ReplicaSpec {
    /// The Filesystem. Can't change.
    #[schemars(schema_with = "schema::uuid")]
    pub fs_id: String,
    /// The node. Can't change.
    #[schemars(schema_with = "schema::name")]
    pub node: String,
    /// UUID of the pool on it. Can't change.
    #[schemars(schema_with = "schema::uuid")]
    pub pool: String,
    /// What is wanted.
    pub desired: Desired,
}

// serde's signature
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What the operator wants of a copy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.state != 'Present' || has(self.role)", "a Present copy needs a role"),
    ("self.state != 'Present' || self.capacity > 0", "a Present copy needs a capacity"),
    ("!has(self.owner) || has(self.role) && self.role == 'Replica'", "only a Present copy that is no owner's has an owner"),
    ("self.state != 'Absent' || !(has(self.role) || has(self.jobs) || has(self.commits))", "an Absent copy has no role, jobs or commits"),
])))]
pub struct Desired {
    /// Present, or Absent: a recorded intent to delete.
    pub state: DesiredState,
    /// What a Present copy is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<DesiredRole>,
    /// Epoch of authority that the operator knew when it wrote this; for Absent the epoch of the intent.
    pub epoch: u64,
    /// The object that the Filesystem belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// What happens to the data when the claim is gone.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
    /// When authority may leave a lost owner.
    #[serde(default)]
    pub fencing: Fencing,
    /// The commit of another Filesystem that it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Most that the files may take, in bytes.
    #[serde(default)]
    pub capacity: u64,
    /// Most that commits may take beyond the files, in bytes.
    #[serde(default)]
    pub history_limit: u64,
    /// Bytes that a clone began with, as its first owner measured them: on top of both. 0: no clone, or not measured.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub origin_bytes: u64,
    /// Who owns the Filesystem, on every other copy: only that node may send to this one. Absent, as an older operator leaves it: any
    /// node may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Place>,
    /// The other copies; their nodes may list the commits of this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub peers: Vec<Place>,
    /// Hand authority to this copy, as soon as nothing has the head mounted; only on the owner's Replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_to: Option<Place>,
    /// Keep this copy close behind, as the owner's node is about to be left; only on the owner's Replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precopy_to: Option<Place>,
    /// The claim is deleted, and only commits are kept (phase `Headless`): the head goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
    /// Jobs that this copy sends for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"]))]
    pub jobs: Vec<JobWish>,
    /// Commits that objects ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"]))]
    pub commits: Vec<CommitWish>,
    /// Kept commits that this copy lacks and takes from another copy that has them, also if it is the owner's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub fetch: Vec<CommitTransfer>,
    /// Kept commits that this copy sends to another copy, which fetches them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub lend: Vec<CommitTransfer>,
}

/// One kept commit that is brought from one copy to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitTransfer {
    /// Id of the commit.
    #[schemars(schema_with = "schema::uuid")]
    pub commit: String,
    /// The other side: of `fetch` who sends it, of `lend` who gets it.
    pub with: Place,
}

/// Up to where a copy has its Filesystem's history: its newest commit, which is there whole, also one that people don't see. Commits are ordered
/// by these fields, in this order; a clock decides only between commits that a version before 0.2 has taken, which have no number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CompleteTo {
    /// The owner's epoch when it took the commit.
    pub epoch: u64,
    /// Its number in that epoch, from 1; 0: taken by a version before 0.2.
    #[serde(default)]
    pub seq: u64,
    /// When the owner took it.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
    /// Its id.
    #[schemars(schema_with = "schema::uuid")]
    pub commit: String,
}

/// Whether a copy is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DesiredState {
    /// It is.
    #[default]
    Present,
    /// It is to go; the Replica stays until the agent of that pool confirms.
    Absent,
}

/// What a copy is to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DesiredRole {
    /// Writable, if authority says so.
    Owner,
    /// A read-only copy.
    #[default]
    Replica,
}

/// A job that a copy sends for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobWish {
    /// UID of the ReplicationJob.
    #[schemars(schema_with = "schema::uuid")]
    pub uid: String,
    /// Its namespace.
    #[schemars(schema_with = "schema::namespace")]
    pub namespace: String,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// Its generation.
    pub generation: i64,
    /// The receiver.
    pub peer: Place,
    /// What the first copy is.
    #[serde(default)]
    pub initial: Initial,
    /// Which commits are sent.
    #[serde(default)]
    pub intermediate: Intermediate,
    /// Runs on every commit.
    #[serde(default)]
    pub on_commit: bool,
    /// Runs by itself: by cron, or at an interval. What it says of commits stands in `onCommit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// A new value starts a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub trigger: Option<String>,
    /// Stops the run in hand and starts none.
    #[serde(default)]
    pub suspend: bool,
    /// Bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub bandwidth: Option<u64>,
    /// How often it tries again.
    #[serde(default)]
    pub retry: ReplicaRetry,
}

/// Retries of a job, as the agent gets them.
pub type ReplicaRetry = crate::replication_job::Retry;

/// A commit that a Commit object asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitWish {
    /// UID of the Commit object: the commit is made once for it.
    #[schemars(schema_with = "schema::uuid")]
    pub uid: String,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
    /// Text for people, at most 4096 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Pairs kept with the commit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::metadata_copy")]
    pub metadata: BTreeMap<String, String>,
    /// Its id, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub id: Option<String>,
    /// The object is being deleted: the commit is to go.
    #[serde(default)]
    pub remove: bool,
    /// A reset: once nothing has the head mounted, this commit keeps what it holds, and the head becomes that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_to: Option<Origin>,
    /// While that reset waits, nothing new mounts the head, for five minutes at most.
    #[serde(default)]
    pub hold: bool,
}

/// What the agent says of its copy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// metadata.generation that this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the copy is now.
    #[serde(default)]
    pub role: CopyRole,
    /// Highest epoch that it has seen.
    #[serde(default)]
    pub epoch: u64,
    /// What it does now, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub phase: String,
    /// Its newest commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub head: Option<String>,
    /// Bytes used.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes that may be used; 0 while unknown.
    #[serde(default)]
    pub limit: u64,
    /// Bytes of the files alone, about; told while nine tenths of the limit are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Bytes that it began with, of a clone; 0: no clone, or not known here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub origin_bytes: u64,
    /// Commits that it has.
    #[serde(default)]
    pub commit_count: u64,
    /// The newest of them, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub recent_commits: Vec<ReplicaCommit>,
    /// Commits that objects want kept, and that it holds, whole and durable; the newest 1024.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 36)), extend("x-kubernetes-list-type" = "atomic"))]
    pub kept: Vec<String>,
    /// `kept` has all of them. `false`: there are more, the disk has not been looked at yet, or the agent is of a version before 0.2.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept_complete: bool,
    /// Up to where it has the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_to: Option<CompleteTo>,
    /// Since when the files of an owner's copy differ from its newest commit; absent: they don't, or that is not known. What is written is seen
    /// here within a minute and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub written_since: Option<Time>,
    /// The handoff in hand, or the last one, as the exporter tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// It holds all data of a handoff and waits for the outcome (rule R5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import_start: Option<ImportStart>,
    /// Its own Commit made this epoch, and it keeps what it handed over, as the new owner has not opened yet (rule R4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_over: Option<u64>,
    /// Epoch that it has opened for writing in this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_epoch: Option<u64>,
    /// Its jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"]))]
    pub jobs: Vec<ReplicaJobStatus>,
    /// The commits that objects ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"]))]
    pub commits: Vec<ReplicaCommitStatus>,
    /// Who has it mounted, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "atomic"))]
    pub mounts: Vec<String>,
    /// Ready, Degraded, Diverged, `AuthorityUnknown`, `EpochRegression`, `PendingLost`, `HeadMissing`, `StaleIntent`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

impl Replica {
    /// The agent has heard of the last wish: what the status says, it says knowing that one.
    pub fn has_heard(&self) -> bool {
        let heard = self.status.as_ref().and_then(|s| s.observed_generation);
        heard.is_some() && heard == self.metadata.generation
    }
}

impl ReplicaStatus {
    /// Up to where the copy has the history, as (epoch, number, time, id), to be compared with another copy's; of an agent before 0.2 its
    /// newest commit that people see, without a number. `None`: it has none.
    pub fn reach(&self) -> Option<(u64, u64, Time, String)> {
        let listed = || self.recent_commits.first().map(|c| (c.epoch, 0, c.time.clone(), c.id.clone()));
        self.complete_to.as_ref().map(|c| (c.epoch, c.seq, c.time.clone(), c.commit.clone())).or_else(listed)
    }
}

/// What a copy is, as the agent sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CopyRole {
    /// Nothing of it is in the pool.
    #[default]
    Absent,
    /// Being made.
    Creating,
    /// The owner's.
    Owner,
    /// A read-only copy.
    Replica,
    /// A read-only copy that is being received.
    Receiving,
    /// On its way out.
    Deleting,
}

/// A commit of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaCommit {
    /// Its id.
    #[schemars(schema_with = "schema::uuid")]
    pub id: String,
    /// The one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub parent: Option<String>,
    /// When the owner took it.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
    /// Its message, cut at 256 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
    /// The owner's epoch then.
    #[serde(default)]
    pub epoch: u64,
    /// Its Commit is deleted; this copy keeps it until it has a newer one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// How a handoff of authority goes (migration.md §1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// Its id.
    #[schemars(schema_with = "schema::uuid")]
    pub id: String,
    /// The node that gives authority away.
    #[schemars(schema_with = "schema::name")]
    pub from: String,
    /// The node that takes it.
    #[schemars(schema_with = "schema::name")]
    pub to: String,
    /// Grows with each abort.
    #[serde(default)]
    pub attempt: u64,
    /// `Copying`, `WaitingForPods`, `Freezing`, `Exporting`, `Committing`, `Aborting`, `Done` or `Cancelled`.
    #[schemars(length(max = 32))]
    pub phase: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub finished_at: Option<Time>,
    /// How long nothing could write, in milliseconds.
    #[serde(default)]
    pub frozen_ms: u64,
    /// Bytes sent.
    #[serde(default)]
    pub bytes: u64,
    /// What stands in the way, or ended it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// `EImportStart`, as the importer reports it (migration.md R5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportStart {
    /// Id of the migration.
    #[schemars(schema_with = "schema::uuid")]
    pub mig: String,
    /// Its attempt.
    pub attempt: u64,
    /// The commit that has all of the old owner's data.
    #[schemars(schema_with = "schema::uuid")]
    pub final_commit: String,
}

/// How a job of a copy stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaJobStatus {
    /// UID of the ReplicationJob.
    #[schemars(schema_with = "schema::uuid")]
    pub uid: String,
    /// The trigger that the last run was started by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub observed_trigger: Option<String>,
    /// The generation of the job that the agent works by.
    #[serde(default)]
    pub observed_generation: i64,
    /// The run in hand, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<AgentReport>,
    /// The last run that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastRun>,
    /// End of the last run that brought everything over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub last_successful_time: Option<Time>,
    /// Runs that failed since.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// When its schedule fires next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub next_schedule_time: Option<Time>,
}

/// A run that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastRun {
    /// Its end.
    #[schemars(schema_with = "schema::time")]
    pub finished_at: Time,
    /// Its start.
    #[schemars(schema_with = "schema::time")]
    pub started_at: Time,
    /// Bytes that it sent.
    #[serde(default)]
    pub bytes: u64,
    /// The newest commit on the receiver then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub commit: Option<String>,
    /// Whether it brought everything over.
    #[serde(default)]
    pub success: bool,
}

/// How a wanted commit stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaCommitStatus {
    /// UID of the Commit object.
    #[schemars(schema_with = "schema::uuid")]
    pub uid: String,
    /// Id of the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub id: Option<String>,
    /// The one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub parent: Option<String>,
    /// When it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub time: Option<Time>,
    /// Bytes in extents newer than the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_bytes: Option<u64>,
    /// How far it is.
    #[serde(default)]
    pub state: CommitState,
    /// Why it is not further; who pins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// Of a reset: it keeps new mounts of the head back.
    #[serde(default)]
    pub holding: bool,
}

/// How far a wanted commit is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CommitState {
    /// Not yet made.
    #[default]
    Pending,
    /// Made and durable.
    Done,
    /// Deleted here, as asked.
    Removed,
    /// Can't be made; the message says why.
    Refused,
    /// Can't be deleted yet; the message says who holds it.
    Pinned,
}
