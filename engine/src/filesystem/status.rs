//! What people and the operator see of a copy: an immutable picture, made after every event.

use serde::Serialize;

use super::Filesystem;
use super::record::{Base, Life, RequestState};
use super::tasks::Slot;
use super::trouble::{About, CopyState, MovePhase, Trouble, Why};
use crate::ids::{CommitId, Epoch, FsId, JobUid, MigId, NodeName, RequestUid, Timestamp};
use crate::model::{Commit, Problem, RunReport};
use crate::run::JobRow;
use crate::words::Role;

/// Bounds of what one Filesystem keeps for people.
const RECENT_COMMITS: usize = 16;

/// The role that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum RoleStatus {
    /// Nothing here.
    Absent,
    /// On its way in.
    Creating,
    /// The owner's copy.
    Owner,
    /// A read-only copy.
    Replica,
    /// A read-only copy that a commit is coming to.
    Receiving,
    /// On its way out.
    Deleting,
}

/// `metav1.Condition` without its times: the shell adds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What it is about.
    pub r#type: About,
    /// `True` or `False`.
    pub status: bool,
    /// In a word.
    pub reason: Why,
    /// A sentence.
    pub message: String,
}

/// A commit, for a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitStatus {
    /// Its id.
    pub id: CommitId,
    /// Its parent.
    pub parent: Option<CommitId>,
    /// When.
    pub time: Timestamp,
    /// In which epoch.
    pub epoch: Epoch,
    /// What for.
    pub message: String,
    /// Nobody wants it any more; it is what the next increment starts from.
    pub let_go: bool,
}

/// How a wanted commit stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// Of which object.
    pub uid: RequestUid,
    /// The id it has or will have.
    pub id: Option<CommitId>,
    /// Its parent.
    pub parent: Option<CommitId>,
    /// When it was taken.
    pub time: Option<Timestamp>,
    /// Bytes newer than its parent, if measured.
    pub changed_bytes: Option<u64>,
    /// How far; `None`: not begun.
    pub state: Option<RequestState>,
    /// What stands in the way.
    pub problem: Option<Problem>,
    /// It keeps new mounts of the head back.
    pub holding: bool,
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// Of which object.
    pub uid: JobUid,
    /// Its durable part.
    pub row: JobRow,
    /// The report of the present or last run.
    pub report: Option<RunReport>,
    /// When the oldest commit was taken that its receiver should have and lacks; `None`: it lacks none.
    pub behind_since: Option<Timestamp>,
    /// The next firing of its schedule, without jitter.
    pub next_firing: Option<Timestamp>,
}

/// How a handoff goes, or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStatus {
    /// Its id.
    pub id: MigId,
    /// Who gives.
    pub from: NodeName,
    /// Who takes.
    pub to: NodeName,
    /// Its attempt.
    pub attempt: u64,
    /// How far it is.
    pub phase: MovePhase,
    /// Its begin.
    pub started_at: Timestamp,
    /// Its end.
    pub finished_at: Option<Timestamp>,
    /// How long nothing could write, milliseconds.
    pub frozen_ms: u64,
    /// Bytes sent by the run in hand or the last one.
    pub bytes: u64,
    /// What it waits for, or what ended it.
    pub message: String,
}

/// Everything that is shown of one copy.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemStatus {
    /// Whose.
    pub fs_id: FsId,
    /// `metadata.generation` of the Replica that this is about; 0: none seen.
    pub observed_generation: i64,
    /// Present role.
    pub role: RoleStatus,
    /// A Replica object exists; without one, data here is an orphan.
    pub managed: bool,
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// The epoch that is open for writing here.
    pub opened_epoch: Option<Epoch>,
    /// Newest commit.
    pub head: Option<CommitId>,
    /// Number of commits.
    pub commits: usize,
    /// The newest, newest first.
    pub recent_commits: Vec<CommitStatus>,
    /// Used bytes of head and commits together.
    pub bytes: u64,
    /// Their limit.
    pub limit: u64,
    /// Since when its files differ from its newest commit, of an owner; `None`: they don't, as far as is known.
    pub written_since: Option<Timestamp>,
    /// Bytes of an owner's files alone, about; while nine tenths of the limit are used.
    pub file_bytes: Option<u64>,
    /// What it says that it holds.
    pub holding: super::Holding,
    /// Stream bytes of a receive that are safe, if one is under way or interrupted.
    pub receiving: Option<(CommitId, u64)>,
    /// Jobs that send from here.
    pub jobs: Vec<JobStatus>,
    /// Wanted commits.
    pub requests: Vec<RequestStatus>,
    /// `target` or `target (commit)`, as mounted through this agent.
    pub mounts: Vec<String>,
    /// The head is fenced with this commit.
    pub frozen: Option<CommitId>,
    /// The handoff in hand, or the last one, on the exporter.
    pub migration: Option<MigrationStatus>,
    /// `EImportStart`, on the importer: all is here, and authority has not decided.
    pub import_start: Option<(MigId, u64, CommitId)>,
    /// The epoch that this copy's own Commit made, while it keeps the final commit (R4).
    pub handed_over: Option<Epoch>,
    /// Conditions, `Ready` first.
    pub conditions: Vec<Condition>,
    /// What fs.json says: enough to adopt it.
    pub base: Option<Base>,
}

impl Filesystem {
    /// The picture as of the last event.
    pub fn status(&self) -> FilesystemStatus {
        let history = self.history.in_order();
        // What was let go is still what a copy has, and what it would begin with as the owner.
        let copy = self.standing.role() == Some(Role::Replica);
        let shows = || history.iter().filter(|c| !c.transient || copy && c.is_let_go());
        let base = self.standing.base();
        let (bytes, limit) = self.usage.figures();
        FilesystemStatus {
            fs_id: self.id,
            observed_generation: self.wish.generation(),
            role: self.role_status(),
            managed: self.wish.is_managed(),
            epoch: self.standing.epoch(),
            opened_epoch: base.filter(|_| self.head.is_open()).and_then(|b| b.opened).map(|o| o.epoch),
            head: shows().next_back().map(|c| c.id),
            commits: shows().count(),
            recent_commits: shows().rev().take(RECENT_COMMITS).map(|c| shown(c)).collect(),
            bytes,
            limit,
            written_since: self.usage.written_since(self.history.newest().map(|c| c.id)),
            file_bytes: self.usage.files(),
            holding: self.holding(),
            receiving: self.inbox.coming(),
            migration: self.migration_status(),
            handed_over: self.handoff.handed_over(),
            import_start: self.handoff.import_start(),
            jobs: self.outbox.statuses(&history, self.clock),
            requests: self.request_statuses(),
            mounts: self.mounts.shown(),
            frozen: self.standing.frozen(),
            conditions: self.conditions(),
            base: base.filter(|b| b.life != Life::Gone).cloned(),
        }
    }

    fn role_status(&self) -> RoleStatus {
        match (self.standing.life(), self.standing.role()) {
            (None | Some(Life::Gone), _) | (_, None) => RoleStatus::Absent,
            (Some(Life::Creating), _) => RoleStatus::Creating,
            (Some(Life::Deleting), _) => RoleStatus::Deleting,
            (Some(Life::Active), Some(Role::Owner)) => RoleStatus::Owner,
            (Some(Life::Active), Some(Role::Replica)) if self.tasks.is_running(Slot::Receive) => RoleStatus::Receiving,
            (Some(Life::Active), Some(Role::Replica)) => RoleStatus::Replica,
        }
    }

    fn request_statuses(&self) -> Vec<RequestStatus> {
        let told = |uid: RequestUid| {
            let row = self.history.request(uid);
            RequestStatus {
                uid,
                id: row.map(|r| r.id),
                parent: row.and_then(|r| r.parent),
                time: row.map(|r| r.time).filter(|t| t.0 > 0),
                changed_bytes: row.and_then(|r| r.changed_bytes),
                state: row.map(|r| r.state),
                problem: self.resets.blocked(uid).or(row.and_then(|r| r.problem.as_ref())).cloned(),
                holding: self.resets.is_holding(uid, self.clock.boot),
            }
        };
        self.wish.commits().iter().map(|w| told(w.uid)).collect()
    }

    fn conditions(&self) -> Vec<Condition> {
        let mut all = vec![self.ready_condition()];
        let superseded = self.superseded();
        let troubles = self.troubles.all().chain(superseded.as_ref().map(|p| (Trouble::Superseded, p)));
        all.extend(troubles.map(|(trouble, p)| Condition {
            r#type: trouble.into(),
            // `Opened` is a good thing that is missing; all others name a trouble that is there.
            status: trouble != Trouble::Opened,
            reason: Why::Problem(p.reason),
            message: p.message.clone(),
        }));
        all
    }

    fn ready_condition(&self) -> Condition {
        let first_trouble = |or: &str| self.troubles.all().next().map_or_else(|| or.to_owned(), |(_, p)| p.message.clone());
        let (status, reason, message) = match (self.standing.life(), self.standing.role()) {
            (Some(Life::Active), Some(Role::Owner)) if self.may_write() => {
                (true, CopyState::Open, "this node owns the Filesystem and may write it".to_owned())
            }
            (Some(Life::Active), Some(Role::Owner)) if self.has_only_commits() => {
                (true, CopyState::Headless, super::headless::GONE.to_owned())
            }
            (Some(Life::Active), Some(Role::Owner)) => (false, self.why_closed(), self.closed_by()),
            (Some(Life::Active), _) => (true, CopyState::InSync, format!("{} commits", self.history.count())),
            (Some(Life::Creating), _) => (false, CopyState::Creating, first_trouble("being created")),
            (Some(Life::Deleting), _) => (false, CopyState::Deleting, first_trouble("being deleted")),
            (Some(Life::Gone), _) => (false, CopyState::Deleted, "nothing of it is left here".into()),
            (None, _) => (false, CopyState::Absent, "nothing of it is here".into()),
        };
        Condition { r#type: About::Ready, status, reason: Why::State(reason), message }
    }

    /// Why an owner can't write, in a word.
    fn why_closed(&self) -> CopyState {
        match () {
            () if self.standing.is_superseded() => CopyState::Superseded,
            () if self.standing.is_headless() => CopyState::Headless,
            () if self.handoff.is_fenced() => CopyState::Migrating,
            () if self.is_fenced() => CopyState::Fenced,
            () => CopyState::Closed,
        }
    }

    /// And in a sentence.
    fn closed_by(&self) -> String {
        let trouble = [Trouble::HeadMissing, Trouble::StaleHead, Trouble::AuthorityUnknown, Trouble::EpochRegression, Trouble::PendingLost];
        let trouble = trouble.iter().find_map(|trouble| self.troubles.get(*trouble)).cloned();
        let problem = trouble.or_else(|| self.superseded()).or_else(|| self.troubles.get(Trouble::Opened).cloned());
        problem.unwrap_or_else(|| self.write_refusal()).message
    }
}

fn shown(c: &Commit) -> CommitStatus {
    CommitStatus { id: c.id, parent: c.parent, time: c.time, epoch: c.epoch, message: c.message.clone(), let_go: c.is_let_go() }
}
