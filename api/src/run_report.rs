//! The report of one run of a job for one Filesystem, as the sender's agent gives it in `Replica.status.jobs[].report`
//! (replication.md §5). The operator makes a ReplicationJob's report from those of its Filesystems.
//!
//! What can't be read isn't dropped: [`AgentReport`] holds it as it came, and the operator says so by the condition `ReportUnreadable`.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::condition::{ConditionType, UnknownWord};
use crate::schema;

/// A report, or what stands in its place and is none that this version can read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AgentReport {
    /// As this version writes and reads it.
    Known(Box<RunReport>),
    /// Of another version.
    Unreadable(Value),
}

impl AgentReport {
    /// The report, if it can be read.
    pub fn known(&self) -> Option<&RunReport> {
        match self {
            Self::Known(report) => Some(report),
            Self::Unreadable(_) => None,
        }
    }

    /// Why it can't be read; `None`: it can.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Known(_) => None,
            Self::Unreadable(value) => serde_json::from_value::<RunReport>(value.clone()).err().map(|e| e.to_string()),
        }
    }
}

impl From<RunReport> for AgentReport {
    fn from(report: RunReport) -> Self {
        Self::Known(Box::new(report))
    }
}

impl JsonSchema for AgentReport {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        RunReport::schema_name()
    }
    /// The API server holds every writer to the newest version's form; what is [`Self::Unreadable`] to an older reader has fields or words that
    /// came later.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        RunReport::json_schema(generator)
    }
}

/// Unix time in milliseconds, by the clock of the sender's node.
pub type UnixMillis = i64;

/// How a run goes, or went. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunReport {
    /// How far it is.
    pub state: RunState,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// When the run started.
    pub started_at: UnixMillis,
    /// When it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<UnixMillis>,
    /// It sleeps until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_until: Option<UnixMillis>,
    /// What stands in the way now, or what ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<RunProblem>,
    /// How a conflict or a first copy was resolved, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub resolution: Option<String>,
    /// Steps done so far, of `stepsTotal`.
    pub steps_done: u32,
    /// Steps of the plan.
    pub steps_total: u32,
    /// The step in hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<RunStep>,
    /// Bytes that the plan expects to send; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_bytes: Option<u64>,
    /// Bytes sent by all attempts.
    pub replicated_bytes: u64,
    /// Bytes per second over the last seconds, while it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// `expectedBytes` leaves an unknown estimate out.
    pub imprecise: bool,
    /// The commits that don't fit, when both sides have some that the other lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<RunConflict>,
    /// The last attempts, newest last.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub attempts: Vec<RunAttempt>,
    /// The newest commit that is known to be on the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub replicated: Option<String>,
}

/// State of a run (replication.md §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RunState {
    /// Lists both sides, finds the path, estimates.
    Planning,
    /// Planning failed for now; sleeps.
    PlanningError,
    /// Takes steps.
    Working,
    /// A step failed for now; sleeps.
    WorkingWait,
    /// The end, with the target on the receiver or with a problem.
    Completed,
    /// The end: someone cancelled it, or its deadline passed.
    ContextDone,
}

impl RunState {
    /// Whether nothing follows.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::ContextDone)
    }

    /// As objects spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planning => "Planning",
            Self::PlanningError => "PlanningError",
            Self::Working => "Working",
            Self::WorkingWait => "WorkingWait",
            Self::Completed => "Completed",
            Self::ContextDone => "ContextDone",
        }
    }
}

impl std::str::FromStr for RunState {
    type Err = UnknownWord;
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        serde_json::from_value(word.into()).map_err(|_| UnknownWord(word.chars().take(64).collect()))
    }
}

/// State of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunStepState {
    /// Not begun.
    Ready,
    /// Bytes flow.
    Sending,
    /// All bytes are there; the receiver compares digests and makes it durable.
    Verifying,
    /// On the receiver; the sender's cursor follows.
    MovingCursor,
    /// Done.
    Done,
    /// Failed for now.
    Retry,
    /// Failed for good, or given up.
    Failed,
}

/// What stands in a run's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunProblem {
    /// Which of the closed set.
    #[schemars(with = "String", length(max = 64))]
    pub reason: ConditionType,
    /// What is wrong and what to do.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunStep {
    /// The base; absent: a full copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub from: Option<String>,
    /// The target.
    #[schemars(schema_with = "schema::uuid")]
    pub to: String,
    /// How far it is.
    pub state: RunStepState,
    /// It goes on from a checkpoint.
    pub resumed: bool,
    /// The estimate in bytes, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// Bytes of it so far.
    pub replicated: u64,
    /// The sender's kernel reads and has given no byte for so many seconds; absent: bytes flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<u64>,
}

/// One attempt of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunAttempt {
    /// How it ended or stands.
    pub state: RunState,
    /// Its start.
    pub started_at: UnixMillis,
    /// Its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<UnixMillis>,
    /// What ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunProblem>,
}

/// Two histories that don't fit, by ids of commits, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunConflict {
    /// The newest commit that both have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uuid")]
    pub base: Option<String>,
    /// On the sender only.
    #[schemars(length(max = 64), inner(length(max = 36)), extend("x-kubernetes-list-type" = "atomic"))]
    pub sender_only: Vec<String>,
    /// On the receiver only.
    #[schemars(length(max = 64), inner(length(max = 36)), extend("x-kubernetes-list-type" = "atomic"))]
    pub receiver_only: Vec<String>,
}
