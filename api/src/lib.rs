//! The custom resources of group `dotgraft.dev/v1alpha1` (design §2): what people, the operator, the agents and the CLI say
//! to each other. Types, schema and CEL rules only: no client, no decisions.
//!
//! The CRDs come from [`all_crds`] and from nowhere else: `T::crd()` lacks the refinements that are made there.

// The lint takes the repeated keys of kube's `printcolumn(...)` for repeated attributes.
#![allow(clippy::duplicated_attributes)]

#[cfg(feature = "engine")]
pub mod authority;
pub mod branch;
#[cfg(feature = "cases")]
pub mod cases;
pub mod commit;
pub mod common;
pub mod condition;
pub mod crds;
pub mod dot;
pub mod dot_operation;
pub mod filesystem;
pub mod node;
pub mod node_pool;
pub mod quantity;
pub mod replica;
pub mod replication_job;
pub mod run_report;
pub mod schema;

pub use branch::{Branch, BranchFrom, BranchSpec, BranchStatus};
pub use commit::{Commit, CommitSource, CommitSpec, CommitStatus};
pub use common::{
    Claim, ClaimKind, ClaimRef, Condition, DeletionPolicy, Fencing, Initial, Intermediate, Origin, Place, Placement, Problem,
    ReclaimPolicy, Time,
};
pub use condition::{ConditionType, ConditionUpdate, MovePhase, Reason, Word, condition, is_true, plain, says, set_condition};
pub use crds::all_crds;
pub use dot::{Dot, DotSpec, DotStatus, RecentCommit, ReplicaSummary};
pub use dot_operation::{DotOperation, DotOperationSpec, DotOperationStatus, OperationPhase, OperationTarget, Promote, Reset, ResetPlan};
pub use filesystem::{Authority, Filesystem, FilesystemPhase, FilesystemSpec, FilesystemStatus, ForkPoint, Opened, Pending, Publication};
pub use node_pool::{NodePool, NodePoolSpec, NodePoolStatus, Orphan, OrphanAction, OrphanActionKind, Orphans};
pub use quantity::{QuantityError, parse_quantity};
pub use replica::{
    CommitState, CommitTransfer, CommitWish, CompleteTo, CopyRole, Desired, DesiredRole, DesiredState, ImportStart, JobWish, LastRun,
    Migration, Replica, ReplicaCommit, ReplicaCommitStatus, ReplicaJobStatus, ReplicaRetry, ReplicaSpec, ReplicaStatus,
};
pub use replication_job::{
    AttemptError, AttemptReport, CommitsPolicy, ConflictFail, CurrentStep, Direction, FilesystemCounts, ItemReport, JobReport, JobSource,
    JobTarget, Limits, OnConflict, Progress, ReplicationJob, ReplicationJobSpec, ReplicationJobStatus, Retry, Schedule, Selector,
    StepCounts,
};
pub use run_report::{AgentReport, RunProblem, RunReport, RunState};
