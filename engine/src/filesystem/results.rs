//! What a task that has ended gives, by what was asked for: the one place where a task and its result are held against each other. Behind it each
//! part gets the result of its own tasks and nothing else, so none has to say what to do with an unexpected one. A result of another kind is a
//! defect of the shell; it counts as a failure of that task, which is tried again.

use super::event::{Found, Handoff, Task, TaskDone};
use super::head::Won;
use super::outbox::JobEnd;
use super::record::Base;
use super::tasks::{Slot, Taken};
use crate::authority::Read;
use crate::ids::{CommitId, Epoch, FsId};
use crate::model::{Commit, Problem, Reason, Versions};
use crate::run::SendOutcome;
use crate::words::{JobKey, MountWhat, Nested, ReqId};

/// A task of the copy's life went well.
#[derive(Debug)]
pub(super) enum LifeEnd {
    Inspected(Box<Found>),
    Qgroup(u64),
    /// The flag: it is in phase `New`.
    Opened(Won, bool),
    OriginPinned,
    Prepared(Box<Base>),
    /// Bytes that a clone shares with its origin.
    HeadCreated(Option<u64>),
    HeadDropped,
    MetaWritten(Box<Base>),
    /// Before anything is deleted: what authority says.
    AbsenceChecked(Option<Box<Read>>),
    /// What the pools with copies have seen.
    EpochsAsked(Epoch),
    HeadlessChecked(bool),
    Destroyed,
    OriginUnpinned,
}

/// How a task ended, with what it was about.
#[derive(Debug)]
pub(super) enum Ended {
    Life(LifeEnd),
    LifeFailed(Task, Problem),
    Committed(Box<Commit>, Result<(Option<u64>, Option<Nested>), Problem>),
    Looked(Result<(), Problem>),
    Froze(Result<(), Problem>),
    Fenced(Box<Commit>, Result<(u64, Option<Nested>), Problem>),
    Thawed(Result<(), Problem>),
    Removed(CommitId, Result<(), Problem>),
    ClonesAsked(Result<Vec<FsId>, Problem>),
    Received(ReqId, CommitId, Result<Box<Commit>, Problem>),
    Discarded(CommitId, Result<(), Problem>),
    /// For which newest commit, whether files were to be measured, and what was found.
    Usage(Option<CommitId>, bool, Result<super::usage::Found, Problem>),
    Swapped(Result<Box<Read>, Problem>),
    Exported(Box<Handoff>, Result<(), Problem>),
    Mounted(ReqId, MountWhat, String, Result<(), Problem>),
    Unmounted(ReqId, String, Result<(), Problem>),
    Job(JobKey, u64, JobEnd),
    /// What the copy that lacks a commit has.
    LendListed(Result<Box<Versions>, Problem>),
    /// It has it.
    Lent(Result<(), Problem>),
    /// It ran where no such task does: nothing of ours starts one so.
    Stray,
}

/// Whether its slot sleeps before the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// "No" is an answer, but asking again has to get rarer.
    Refused,
    /// We wanted it to end.
    Cancelled,
    Failed,
}

/// The result that fits, or a failure.
fn fit<T>(result: Result<TaskDone, Problem>, pick: impl FnOnce(TaskDone) -> Option<T>) -> Result<T, Problem> {
    result.and_then(|done| pick(done).ok_or_else(|| Problem::new(Reason::Internal, "a task ended with the result of another kind of task")))
}

fn plain(result: Result<TaskDone, Problem>) -> Result<(), Problem> {
    fit(result, |done| (done == TaskDone::Ok).then_some(()))
}

impl Ended {
    /// `local`: what is here, for a plan.
    pub(super) fn of(taken: Taken, result: Result<TaskDone, Problem>, local: impl FnOnce() -> Versions) -> Self {
        let Taken { slot, task, run_seq } = taken;
        match (slot, task) {
            (Slot::Life, task) => match life(&task, result) {
                Ok(end) => Self::Life(end),
                Err(problem) => Self::LifeFailed(task, problem),
            },
            (Slot::Job(key, _), task) => Self::Job(key, run_seq, job(&task, result, local)),
            (Slot::Lend, Task::PeerVersions { .. }) => Self::LendListed(versions(result)),
            (Slot::Lend, Task::Send { .. }) => Self::Lent(fit(result, |done| matches!(done, TaskDone::Sent { .. }).then_some(()))),
            (Slot::Mount(req), Task::Mount(what, target, _)) => Self::Mounted(req, what, target, plain(result)),
            (Slot::Mount(req), Task::Unmount(target)) => Self::Unmounted(req, target, plain(result)),
            (_, Task::Commit { commit, .. }) => Self::Committed(
                commit,
                fit(result, |done| match done {
                    TaskDone::Committed { changed_bytes, nested } => Some((changed_bytes, nested)),
                    _ => None,
                }),
            ),
            (_, Task::LookForMounts) => Self::Looked(plain(result)),
            (_, Task::Freeze) => Self::Froze(plain(result)),
            (_, Task::FinalCommit { commit, .. }) => Self::Fenced(
                commit,
                fit(result, |done| match done {
                    TaskDone::Fenced { generation, nested } => Some((generation, nested)),
                    _ => None,
                }),
            ),
            (_, Task::Thaw) => Self::Thawed(plain(result)),
            (_, Task::DeleteCommit(id)) => Self::Removed(id, plain(result)),
            (_, Task::AskClones(_)) => Self::ClonesAsked(fit(result, |done| match done {
                TaskDone::Unneeded(unneeded) => Some(unneeded),
                _ => None,
            })),
            (_, Task::Discard(target)) => Self::Discarded(target, plain(result)),
            (_, Task::Receive { req, offer, .. }) => Self::Received(
                req,
                offer.target.id,
                fit(result, |done| match done {
                    TaskDone::Received { commit } => Some(commit),
                    _ => None,
                }),
            ),
            (_, Task::Usage { newest, files, .. }) => Self::Usage(
                newest,
                files,
                fit(result, |done| match done {
                    TaskDone::Usage { bytes, limit, written, files } => Some(super::usage::Found { bytes, limit, written, files }),
                    _ => None,
                }),
            ),
            (_, Task::Swap(_)) => Self::Swapped(fit(result, |done| match done {
                TaskDone::Authority(view) => Some(view),
                _ => None,
            })),
            (_, Task::Export { handoff, .. }) => Self::Exported(handoff, plain(result)),
            _ => Self::Stray,
        }
    }

    /// Of tasks whose asker comes again by itself, nothing is held back.
    /// `may_go`: the copy may go by what authority says, if that was asked.
    pub(super) fn verdict(&self, is_creating: bool, may_go: bool) -> Verdict {
        let problem = match self {
            Self::Life(LifeEnd::AbsenceChecked(_)) if !may_go => return Verdict::Refused,
            // However many pins go, those that stay are asked about again, and rarer each time.
            Self::Life(LifeEnd::HeadlessChecked(false)) | Self::ClonesAsked(Ok(_)) => return Verdict::Refused,
            Self::Life(LifeEnd::Opened(_, false)) if is_creating => return Verdict::Refused,
            Self::LifeFailed(_, problem) | Self::ClonesAsked(Err(problem)) => Some(problem),
            Self::Committed(_, result) => result.as_ref().err(),
            Self::Fenced(_, result) => result.as_ref().err(),
            Self::Looked(result)
            | Self::Froze(result)
            | Self::Thawed(result)
            | Self::Removed(_, result)
            | Self::Discarded(_, result)
            | Self::Exported(_, result)
            | Self::Lent(result) => result.as_ref().err(),
            Self::LendListed(result) => result.as_ref().err(),
            Self::Usage(_, _, result) => result.as_ref().err(),
            Self::Swapped(result) => result.as_ref().err(),
            Self::Life(_) | Self::Received(..) | Self::Mounted(..) | Self::Unmounted(..) | Self::Job(..) | Self::Stray => None,
        };
        match problem {
            None => Verdict::Good,
            Some(p) if p.reason == Reason::Cancelled => Verdict::Cancelled,
            Some(_) => Verdict::Failed,
        }
    }
}

fn life(task: &Task, result: Result<TaskDone, Problem>) -> Result<LifeEnd, Problem> {
    fit(result, |done| match (task, done) {
        (Task::Inspect, TaskDone::Inspected(found)) => Some(LifeEnd::Inspected(found)),
        (Task::AllocateQgroup, TaskDone::Qgroup(n)) => Some(LifeEnd::Qgroup(n)),
        (Task::Open { .. }, TaskDone::Opened { epoch, attempt, new, sent, version }) => {
            Some(LifeEnd::Opened(Won { epoch, attempt, sent, version }, new))
        }
        (Task::PinOrigin(_), TaskDone::Ok) => Some(LifeEnd::OriginPinned),
        (Task::Prepare(base), TaskDone::Ok) => Some(LifeEnd::Prepared(base.clone())),
        (Task::CreateHead { .. }, TaskDone::Ok) => Some(LifeEnd::HeadCreated(None)),
        (Task::CreateHead { .. }, TaskDone::Cloned(bytes)) => Some(LifeEnd::HeadCreated(Some(bytes))),
        (Task::DropHead, TaskDone::Ok) => Some(LifeEnd::HeadDropped),
        (Task::WriteMeta(base), TaskDone::Ok) => Some(LifeEnd::MetaWritten(base.clone())),
        (Task::CheckDeleting, TaskDone::Looked(read)) => Some(LifeEnd::AbsenceChecked(read)),
        (Task::AskEpochs(_), TaskDone::HighestEpoch(epoch)) => Some(LifeEnd::EpochsAsked(epoch)),
        (Task::CheckHeadless, TaskDone::Headless(yes)) => Some(LifeEnd::HeadlessChecked(yes)),
        (Task::Destroy { .. }, TaskDone::Ok) => Some(LifeEnd::Destroyed),
        (Task::UnpinOrigin(_), TaskDone::Ok) => Some(LifeEnd::OriginUnpinned),
        _ => None,
    })
}

fn versions(result: Result<TaskDone, Problem>) -> Result<Box<Versions>, Problem> {
    fit(result, |done| match done {
        TaskDone::Versions(versions) => Some(versions),
        _ => None,
    })
}

fn job(task: &Task, result: Result<TaskDone, Problem>, local: impl FnOnce() -> Versions) -> JobEnd {
    match task {
        Task::PeerVersions { .. } => JobEnd::Listed(versions(result), Box::new(local())),
        Task::Estimate { step, .. } => JobEnd::Estimated(
            *step,
            match result {
                Ok(TaskDone::Estimated(bytes)) => bytes,
                _ => None, // it goes without
            },
        ),
        _ => JobEnd::Sent(fit(result, |done| match done {
            TaskDone::Sent { bytes, already } => Some(SendOutcome { bytes_sent: bytes, already }),
            _ => None,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none_here() -> Versions {
        unreachable!("nobody plans here")
    }

    #[test]
    fn a_result_of_another_kind_is_a_failure_of_what_was_asked_for() {
        let taken = Taken { slot: Slot::Life, task: Task::Inspect, run_seq: 0 };
        let ended = Ended::of(taken, Ok(TaskDone::Qgroup(7)), none_here);
        assert!(matches!(&ended, Ended::LifeFailed(Task::Inspect, p) if p.reason == Reason::Internal));
        assert_eq!(ended.verdict(false, true), Verdict::Failed, "and not asked for again at once");
        let taken = Taken { slot: Slot::Usage, task: Task::Usage { qgroup: 1, newest: None, files: false }, run_seq: 0 };
        assert!(matches!(Ended::of(taken, Ok(TaskDone::Ok), none_here), Ended::Usage(_, _, Err(_))));
    }

    #[test]
    fn a_no_makes_asking_rarer_and_what_we_cancelled_does_not() {
        let asked = |done| Ended::of(Taken { slot: Slot::Life, task: Task::CheckDeleting, run_seq: 0 }, done, none_here);
        assert_eq!(asked(Ok(TaskDone::Looked(None))).verdict(false, false), Verdict::Refused);
        assert_eq!(asked(Ok(TaskDone::Looked(None))).verdict(false, true), Verdict::Good);
        assert_eq!(asked(Err(Problem::new(Reason::Cancelled, "by us"))).verdict(false, true), Verdict::Cancelled);
    }
}
