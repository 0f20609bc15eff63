//! ReplicationJob: brings the commits of Dots and Branches to another node (design §2), and its report (replication.md §5).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Initial, Intermediate, Problem};
use crate::schema::{self, rules};

/// What is replicated, where to and when. No schedule and no trigger: runs once, like a Job.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dotgraft.dev",
    version = "v1alpha1",
    kind = "ReplicationJob",
    namespaced,
    status = "ReplicationJobStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "ReplicationJob brings the commits of Dots to another node: once, when triggered, or on every commit.",
    shortname = "rjob",
    category = "dotgraft",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.node"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(
        name = "Next",
        type_ = "string",
        json_path = ".status.nextScheduleTime",
        description = "when the schedule fires next",
        priority = 1
    ),
    printcolumn(name = "Last Success", type_ = "date", json_path = ".status.lastSuccessfulTime"),
    printcolumn(name = "Lag", type_ = "date", json_path = ".status.behindSince", description = "for how long a target lacks something"),
    printcolumn(name = "Sent", type_ = "string", json_path = ".status.progress.sent", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.direction == 'Push'", "direction Pull is not in this version: make a Push job to the node that is to have the copy"),
    ("self.direction == oldSelf.direction", "direction can't change: make another ReplicationJob"),
    ("self.source == oldSelf.source", "source can't change: make another ReplicationJob"),
    ("self.target == oldSelf.target", "target can't change: make another ReplicationJob"),
    // Here and not at the type, which Replicas have too.
    ("!has(self.schedule) || [self.schedule.onCommit, has(self.schedule.cron), has(self.schedule.intervalSeconds)].filter(x, x).size() <= 1",
        "schedule takes one of onCommit, cron and intervalSeconds"),
    ("!has(self.schedule) || !has(self.schedule.timeZone) || has(self.schedule.cron)", "timeZone says what the hours of cron are: set cron, too"),
])))]
pub struct ReplicationJobSpec {
    /// Who drives a run: Push is the sender. Can't change.
    #[serde(default)]
    pub direction: Direction,
    /// What is replicated. Can't change.
    pub source: JobSource,
    /// Where to. Can't change.
    pub target: JobTarget,
    /// When it runs by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// A new value, any text, starts a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub trigger: Option<String>,
    /// Stops the run in hand and starts none.
    #[serde(default)]
    pub suspend: bool,
    /// What the first copy is.
    #[serde(default)]
    pub initial: Initial,
    /// Which commits are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commits: Option<CommitsPolicy>,
    /// What to do where histories don't fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_conflict: Option<OnConflict>,
    /// How fast it may go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How often it tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// The side that drives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Direction {
    /// The sender plans and drives.
    #[default]
    Push,
    /// The receiver does; not in this version.
    Pull,
}

/// Dots and Branches of the same namespace, by name or by label: exactly one of both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("has(self.names) != has(self.selector)", "source takes exactly one of names and selector"),
])))]
pub struct JobSource {
    /// Names of Dots, at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 253), regex(pattern = schema::NAME_PATTERN)),
        extend("x-kubernetes-list-type" = "set"))]
    pub names: Vec<String>,
    /// Dots with these labels; an empty selector takes all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

/// A label selector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// All of these labels, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub match_labels: BTreeMap<String, String>,
}

/// Where the copies go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobTarget {
    /// A node of this cluster.
    #[schemars(schema_with = "schema::name")]
    pub node: String,
}

/// When a job runs by itself: on every commit, by cron, or at an interval. The agent of a source's owner sees to it, also while the API server is
/// down. Runs of one source never overlap; what was missed is made up for by one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// On every commit of a source.
    #[serde(default)]
    pub on_commit: bool,
    /// By the calendar: the five fields of cron (minute, hour, day of month, month, day of week), or a name such as @daily. Each source runs up to a
    /// minute later, by the job's UID, so that not all begin at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub cron: Option<String>,
    /// Whose hours those are: a name of the IANA database, such as Europe/Berlin. UTC if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub time_zone: Option<String>,
    /// At once, and then so many seconds apart; 10 to 31536000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 31_536_000))]
    pub interval_seconds: Option<u32>,
}

/// Which commits a job sends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitsPolicy {
    /// Those between the newest common one and the newest.
    #[serde(default)]
    pub intermediate: Intermediate,
}

/// What to do where histories don't fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnConflict {
    /// Both sides have commits that the other lacks.
    #[serde(default)]
    pub diverged: ConflictFail,
    /// No commit in common.
    #[serde(default)]
    pub no_common_ancestor: ConflictFail,
}

/// The only policy of this version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConflictFail {
    /// Stop and say so; change nothing.
    #[default]
    Fail,
}

/// How fast a job may go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Bytes per second of payload over all its steps, such as 50Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bandwidth")]
    pub bandwidth: Option<String>,
}

/// How often a run tries again after a temporary error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Attempts in all; 0 (never retry) and 1 both mean one, absent is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_attempts: Option<u32>,
    /// A run ends this long after its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_seconds: Option<u32>,
}

/// How the job stands: derived from its runs, worst first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationJobStatus {
    /// metadata.generation that this was found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The trigger that the last run was started by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub observed_trigger: Option<String>,
    /// Planning, `PlanningError`, Working, `WorkingWait`, Completed or `ContextDone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub state: Option<String>,
    /// What stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// It sleeps until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub sleep_until: Option<Time>,
    /// The attempt in hand; 1 is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// When the run started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub finished_at: Option<Time>,
    /// The run in hand, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<JobReport>,
    /// Bytes of all its Filesystems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// When the schedule fires next, of the source that is next; runs begin up to a minute later. Absent: nothing is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub next_schedule_time: Option<Time>,
    /// End of the last run that brought everything over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub last_successful_time: Option<Time>,
    /// How long that run took, such as 1m30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub last_duration: Option<String>,
    /// Bytes that it sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_bytes: Option<u64>,
    /// The age of `behindSince` when this status was written, such as 5m; `0s`: nothing is missing. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub lag: Option<String>,
    /// Since when a target lacks something of its source: the oldest commit that isn't there, else what was written after the newest. Absent: none
    /// lacks anything, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub behind_since: Option<Time>,
    /// Runs that have failed since the last success, and failed attempts of the run in hand.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// Ready, Progressing, Degraded, Diverged, Suspended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The report of a job's runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobReport {
    /// The last attempts, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "atomic"))]
    pub attempts: Vec<AttemptReport>,
    /// How many Filesystems stand where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystems: Option<FilesystemCounts>,
    /// Each Filesystem, failed and active first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "atomic"))]
    pub items: Vec<ItemReport>,
}

/// One attempt of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptReport {
    /// How it ended or stands.
    #[schemars(length(max = 64))]
    pub state: String,
    /// Its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub started_at: Option<Time>,
    /// Its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub finished_at: Option<Time>,
    /// What ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AttemptError>,
}

/// Why an attempt ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptError {
    /// Temporary or Permanent.
    #[schemars(length(max = 16))]
    pub class: String,
    /// One of a closed set, such as `NoSpace`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What is wrong and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// How many Filesystems stand where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemCounts {
    /// All that the job selects.
    #[serde(default)]
    pub total: u32,
    /// Up to date.
    #[serde(default)]
    pub completed: u32,
    /// Ended with an error.
    #[serde(default)]
    pub failed: u32,
    /// In work, or between two tries.
    #[serde(default)]
    pub active: u32,
    /// Not begun.
    #[serde(default)]
    pub pending: u32,
}

/// One Filesystem of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemReport {
    /// Name of the Dot or Branch.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Planning, Ready, Active, `RetryWait`, `PermanentError` or Completed.
    #[schemars(length(max = 64))]
    pub state: String,
    /// How a conflict or first copy was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub resolution: Option<String>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub blocked_on: Option<String>,
    /// Steps of its plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepCounts>,
    /// The step in hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<CurrentStep>,
    /// What stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    /// When it tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub next_retry: Option<Time>,
}

/// Steps of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepCounts {
    /// Done.
    #[serde(default)]
    pub done: u32,
    /// Of this many.
    #[serde(default)]
    pub total: u32,
}

/// A step in hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurrentStep {
    /// Base commit; absent is a full copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub from: Option<String>,
    /// Commit that it brings over.
    #[schemars(schema_with = "schema::uuid")]
    pub to: String,
    /// Whether it goes on from a checkpoint.
    #[serde(default)]
    pub resumed: bool,
    /// Bytes expected, if there is an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// Bytes of it so far.
    #[serde(default)]
    pub replicated: u64,
}

/// Bytes of all Filesystems of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Expected in all, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_bytes: Option<u64>,
    /// Sent by all attempts.
    #[serde(default)]
    pub replicated_bytes: u64,
    /// The two for people, such as 12Mi of 200Mi.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub sent: String,
    /// Over the last seconds, while working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Time left, such as 2m10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub eta: Option<String>,
    /// An estimate is missing, so more may come.
    #[serde(default)]
    pub imprecise: bool,
}
