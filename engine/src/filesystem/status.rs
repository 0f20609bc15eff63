//! What people and the operator see of a copy: an immutable picture, made after every event.

use serde::Serialize;

use super::event::{Desired, Intent, MountWhat, Role};
use super::record::{Base, Life, MigrationPhase, RequestState};
use super::{Filesystem, Opening, RECENT_COMMITS, Slot};
use crate::ids::{CommitId, Epoch, FsId, JobUid, MigId, NodeName, RequestUid, Timestamp};
use crate::model::{Commit, Problem, RunReport};
use crate::run::JobRow;

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
    /// Its type.
    pub r#type: String,
    /// `True` or `False`.
    pub status: bool,
    /// CamelCase.
    pub reason: String,
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
    /// `Copying`, `WaitingForPods`, `Freezing`, `Exporting`, `Committing`, `Aborting`, `Done` or `Cancelled`.
    pub phase: String,
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
    /// Conditions, `Ready` first.
    pub conditions: Vec<Condition>,
    /// What fs.json says: enough to adopt it.
    pub base: Option<Base>,
}

impl Filesystem {
    /// The picture as of the last event.
    pub fn status(&self) -> FilesystemStatus {
        let now = self.clock;
        let history = self.history();
        // What was let go is still what a copy has, and what it would begin with as the owner.
        let copy = self.role() == Some(Role::Replica);
        let shows = || history.iter().filter(|c| !c.transient || copy && c.is_let_go());
        FilesystemStatus {
            fs_id: self.id,
            observed_generation: self.desired.as_ref().map_or(0, |d| d.generation),
            role: self.role_status(),
            managed: self.managed,
            epoch: self.base.as_ref().map_or(Epoch(0), |b| b.epoch),
            opened_epoch: self.base.as_ref().filter(|_| self.opening != Opening::Closed).and_then(|b| b.opened).map(|o| o.epoch),
            head: shows().next_back().map(|c| c.id),
            commits: shows().count(),
            recent_commits: shows().rev().take(RECENT_COMMITS).map(|c| shown(c)).collect(),
            bytes: self.usage.0,
            limit: self.usage.1,
            receiving: self.partial.as_ref().map(|p| (p.target.id, self.checkpoint.as_ref().map_or(0, |c| c.token.offset))),
            migration: self.migration_status(now),
            import_start: self
                .migration
                .as_ref()
                .filter(|m| m.phase == MigrationPhase::ImportStart)
                .and_then(|m| Some((m.mig, m.attempt, m.final_commit?))),
            jobs: self
                .jobs
                .iter()
                .filter(|(uid, _)| !self.is_move_job(**uid) && !self.is_precopy_job(**uid))
                .map(|(uid, job)| JobStatus { uid: *uid, row: job.row(), report: job.report(now) })
                .collect(),
            requests: self.request_statuses(),
            mounts: self.mounts.iter().map(|(t, w)| if *w == MountWhat::Head { t.clone() } else { format!("{t} (commit)") }).collect(),
            frozen: self.base.as_ref().and_then(|b| b.frozen),
            conditions: self.conditions(),
            base: self.base.clone().filter(|b| b.life != Life::Gone),
        }
    }

    fn role_status(&self) -> RoleStatus {
        match (self.life(), self.role()) {
            (None | Some(Life::Gone), _) | (_, None) => RoleStatus::Absent,
            (Some(Life::Creating), _) => RoleStatus::Creating,
            (Some(Life::Deleting), _) => RoleStatus::Deleting,
            (Some(Life::Active), Some(Role::Owner)) => RoleStatus::Owner,
            (Some(Life::Active), Some(Role::Replica)) if self.is_running(Slot::Receive) => RoleStatus::Receiving,
            (Some(Life::Active), Some(Role::Replica)) => RoleStatus::Replica,
        }
    }

    fn request_statuses(&self) -> Vec<RequestStatus> {
        let wanted = match self.desired.as_ref() {
            Some(Desired { intent: Intent::Present(p), .. }) => p.commits.as_slice(),
            _ => &[],
        };
        wanted
            .iter()
            .map(|w| match self.requests.get(&w.uid) {
                Some(r) => RequestStatus {
                    uid: w.uid,
                    id: Some(r.id),
                    parent: r.parent,
                    time: (r.time.0 > 0).then_some(r.time),
                    changed_bytes: r.changed_bytes,
                    state: Some(r.state),
                    problem: self.blocked_resets.get(&w.uid).or(r.problem.as_ref()).cloned(),
                    holding: self.is_holding(w.uid, self.clock.boot),
                },
                None => RequestStatus {
                    uid: w.uid,
                    id: None,
                    parent: None,
                    time: None,
                    changed_bytes: None,
                    state: None,
                    problem: self.blocked_resets.get(&w.uid).cloned(),
                    holding: self.is_holding(w.uid, self.clock.boot),
                },
            })
            .collect()
    }

    fn conditions(&self) -> Vec<Condition> {
        let mut all = vec![self.ready_condition()];
        let superseded = self.superseded();
        let troubles = self.troubles.iter().map(|(kind, p)| (*kind, p)).chain(superseded.as_ref().map(|p| ("Superseded", p)));
        all.extend(troubles.map(|(kind, p)| Condition {
            r#type: kind.to_owned(),
            // `Opened` is a good thing that is missing; all others name a trouble that is there.
            status: kind != "Opened",
            reason: format!("{:?}", p.reason),
            message: p.message.clone(),
        }));
        all
    }

    fn ready_condition(&self) -> Condition {
        let (status, reason, message) = match (self.life(), self.role()) {
            (Some(Life::Active), Some(Role::Owner)) if self.may_write() => {
                (true, "Open", "this node owns the Filesystem and may write it".to_owned())
            }
            (Some(Life::Active), Some(Role::Owner)) if self.has_only_commits() => (true, "Headless", super::headless::GONE.to_owned()),
            (Some(Life::Active), Some(Role::Owner)) => {
                let why = self
                    .troubles
                    .get("HeadMissing")
                    .or_else(|| self.troubles.get("StaleHead"))
                    .or_else(|| self.troubles.get("AuthorityUnknown"))
                    .or_else(|| self.troubles.get("EpochRegression"))
                    .or_else(|| self.troubles.get("PendingLost"))
                    .map(|p| p.message.clone())
                    .or_else(|| self.superseded().map(|p| p.message))
                    .or_else(|| self.troubles.get("Opened").map(|p| p.message.clone()))
                    .unwrap_or_else(|| self.write_refusal().message);
                let reason = match () {
                    () if self.is_superseded() => "Superseded",
                    () if self.is_headless() => "Headless",
                    () if self.is_moving_fenced() => "Migrating",
                    () if self.is_fenced() => "Fenced",
                    () => "Closed",
                };
                (false, reason, why)
            }
            (Some(Life::Active), _) => (true, "InSync", format!("{} commits", self.commits.len())),
            (Some(Life::Creating), _) => {
                (false, "Creating", self.troubles.values().next().map_or_else(|| "being created".into(), |p| p.message.clone()))
            }
            (Some(Life::Deleting), _) => {
                (false, "Deleting", self.troubles.values().next().map_or_else(|| "being deleted".into(), |p| p.message.clone()))
            }
            (Some(Life::Gone), _) => (false, "Deleted", "nothing of it is left here".into()),
            (None, _) => (false, "Absent", "nothing of it is here".into()),
        };
        Condition { r#type: "Ready".into(), status, reason: reason.into(), message }
    }
}

fn shown(c: &Commit) -> CommitStatus {
    CommitStatus { id: c.id, parent: c.parent, time: c.time, epoch: c.epoch, message: c.message.clone(), let_go: c.is_let_go() }
}
