//! Fence and thaw: the head is made read-only with a final commit of what it holds, and writable again. A fence is what disk and journal
//! say together; half of one is undone, or made whole.
//!
//! Fence → *fence-commit*, *frozen*; Thaw → *thawed*, and authority is opened anew (R0).

use super::event::{Answer, Ctx, Out, ReqId, Role, Task, TaskDone};
use super::record::Record;
use super::{Filesystem, Opening, Slot, headless};
use crate::ids::CommitId;
use crate::model::{Commit, Origin, Problem, Reason};

/// Someone waits for a fence.
#[derive(Debug, Clone, Copy)]
pub(super) struct FenceRequest {
    /// `None`: the Filesystem itself, to hand authority over, or because it lost it.
    req: Option<ReqId>,
    force: bool,
    started: bool,
}

impl FenceRequest {
    pub(super) fn req(&self) -> Option<ReqId> {
        self.req
    }
    /// For a handoff: never while something has the head mounted.
    pub(super) fn of_move() -> Self {
        Self { req: None, force: false, started: false }
    }
    /// Authority is elsewhere: at once, whoever has the head mounted.
    pub(super) fn of_loss() -> Self {
        Self { req: None, force: true, started: false }
    }
    pub(super) fn is_of_move(&self) -> bool {
        self.req.is_none() && !self.force
    }
}

impl Filesystem {
    /// Authority is elsewhere, and the head can be written: that ends at once, whoever has it mounted.
    pub(super) fn must_fence(&self) -> bool {
        self.is_superseded() && self.head && self.base.as_ref().is_some_and(|b| b.frozen.is_none())
    }

    pub(super) fn handle_fence(&mut self, req: ReqId, force: bool, out: &mut Out) {
        if self.running.values().any(|r| r.task == Task::Thaw) {
            let problem = Problem::new(Reason::Busy, "the head is being thawed; fence it after that");
            out.answers.push((req, Answer::Fenced(Err(problem))));
        } else if self.is_resetting() || self.is_headless() {
            out.answers.push((req, Answer::Fenced(Err(self.not_owner()))));
        } else if let Some(id) = self.base.as_ref().and_then(|b| b.frozen).filter(|_| self.is_active()) {
            out.answers.push((req, Answer::Fenced(Ok((id, 0)))));
        } else if self.may_write() || self.half_fenced && self.is_active() && self.role() == Some(Role::Owner) {
            self.fences.push(FenceRequest { req: Some(req), force, started: false });
        } else {
            out.answers.push((req, Answer::Fenced(Err(self.not_owner()))));
        }
    }

    /// Whoever waits for a fence and can't get one any more is told so; who waits for one that is there has it.
    pub(super) fn settle_fences(&mut self, out: &mut Out) {
        if self.fences.is_empty()
            || self.is_resetting()
            || self.is_running(Slot::Head)
            || self.may_write()
            || self.half_fenced
            || self.must_fence()
        {
            return;
        }
        let frozen = self.base.as_ref().and_then(|b| b.frozen).filter(|_| self.is_active());
        let answer = match frozen {
            Some(id) => Ok((id, 0)),
            None => Err(self.not_owner()),
        };
        for req in std::mem::take(&mut self.fences).into_iter().filter_map(|f| f.req) {
            out.answers.push((req, Answer::Fenced(answer.clone())));
        }
    }

    pub(super) fn advance_fence(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(request) = self.fences.first_mut() else {
            return;
        };
        request.started = true;
        let force = request.force;
        let commit = Box::new(self.transient_commit(ctx));
        self.start(Slot::Head, Task::Fence { qgroup: self.qgroup(), commit, force }, out);
    }

    /// The head is fenced, and what it holds is that commit; with `reset_to` it is to be replaced.
    pub(super) fn fenced_with(&mut self, record: &'static str, id: CommitId, reset_to: Option<Origin>, out: &mut Out) {
        self.save_base(
            record,
            |b| {
                b.frozen = Some(id);
                b.opened = None;
                b.reset_to = reset_to;
            },
            out,
        );
        self.opening = Opening::Closed;
        (self.half_fenced, self.undo_fence) = (false, false);
        self.won = None;
    }

    pub(super) fn handle_thaw(&mut self, req: ReqId, out: &mut Out) {
        if self.is_moving_fenced() || self.is_superseded() {
            let text = "authority over this Filesystem is moving or has moved: only the end of that thaws it (R2)";
            out.answers.push((req, Answer::Plain(Err(Problem::new(Reason::Busy, text)))));
        } else if self.is_resetting() {
            out.answers.push((req, Answer::Plain(Err(self.not_owner()))));
        } else if self.is_active() && self.role() == Some(Role::Owner) && !self.is_headless() && !self.is_running(Slot::Head) {
            self.thaw_for = Some(req);
            self.start(Slot::Head, Task::Thaw, out);
        } else {
            out.answers.push((req, Answer::Plain(Err(self.not_owner()))));
        }
    }

    fn not_owner(&self) -> Problem {
        if !self.is_active() {
            return self.not_here();
        }
        if self.is_headless() {
            return Problem::new(Reason::NotOwner, headless::GONE);
        }
        if self.is_resetting() {
            return Problem::new(Reason::Busy, "the head is being reset; it is there again in a moment");
        }
        if self.is_fenced() {
            return Problem::new(Reason::Busy, "the head is fenced; nothing writes it until it is thawed");
        }
        if self.role() == Some(Role::Owner) {
            return Problem::new(Reason::NotOwner, "this node owns the Filesystem but has not opened it yet (waits for the API server)");
        }
        Problem::new(Reason::NotOwner, "this copy is a replica; only the owner's can be written")
    }

    pub(super) fn write_refusal(&self) -> Problem {
        self.not_owner()
    }

    pub(super) fn on_fenced(&mut self, commit: Commit, result: Result<TaskDone, Problem>, ctx: &Ctx, out: &mut Out) {
        let started: Vec<FenceRequest> = self.fences.extract_if(.., |f| f.started).collect();
        let answer = match result {
            Ok(TaskDone::Fenced { generation }) => {
                let id = commit.id;
                out.records.push(Record::Commit("fence-commit", Box::new(commit.clone())));
                self.commits.insert(id, commit);
                self.fenced_with("frozen", id, None, out);
                Ok((id, generation))
            }
            Ok(_) => Err(Problem::new(Reason::Internal, "unexpected result of a fence")),
            Err(problem) => {
                if problem.reason != Reason::Mounted {
                    // It may have got half-way. Nobody was told of a fence: the volume is served where it was, if it may be.
                    (self.half_fenced, self.undo_fence) = (true, !self.is_superseded());
                    self.drop_fence_commit(commit.id, out);
                }
                Err(problem)
            }
        };
        if started.iter().any(FenceRequest::is_of_move) {
            self.on_move_fenced(&answer, ctx);
        }
        for req in started.into_iter().filter_map(|f| f.req) {
            out.answers.push((req, Answer::Fenced(answer.clone())));
        }
    }

    pub(super) fn on_thawed(&mut self, result: Result<TaskDone, Problem>, _ctx: &Ctx, out: &mut Out) {
        let answer = result.map(|_| ());
        if answer.is_ok() {
            // R0: an opening lasts until this agent fences; it has to be won anew.
            self.save_base("thawed", |b| b.frozen = None, out);
            (self.half_fenced, self.undo_fence) = (false, false);
            self.opening = Opening::Closed;
        } else {
            // It may have got half-way: what the fence's commit holds is no longer what the head holds.
            self.save_base("thaw-begun", |b| b.frozen = None, out);
            (self.half_fenced, self.undo_fence) = (true, true);
            self.opening = Opening::Closed;
        }
        if let Some(req) = self.thaw_for.take() {
            out.answers.push((req, Answer::Plain(answer)));
        }
    }

    /// Of a fence that nobody was told of.
    pub(super) fn drop_fence_commit(&mut self, id: CommitId, out: &mut Out) {
        self.removing.insert(id);
        out.records.push(Record::CommitRemoving(id));
    }

    /// A fence is what disk and journal say together. Only on disk: it was not ended, or its end not recorded, and no commit is
    /// proven to hold what the head holds. Only in the journal: it was thawed.
    ///
    /// With the journal whole, nobody was told of such a fence, so it is undone. With the journal lost, authority may have gone
    /// elsewhere under it: it stays until someone thaws.
    pub(super) fn reconcile_fence(&mut self, on_disk: bool, journal_lost: bool, out: &mut Out) {
        let recorded = self.base.as_ref().is_some_and(|b| b.frozen.is_some());
        if self.is_headless() {
            // It goes, fenced or not; or it has gone, and that was not recorded.
            if recorded && !self.head {
                self.save_base("head-dropped", |b| b.frozen = None, out);
            }
        } else if on_disk && !recorded {
            self.half_fenced = true;
            self.undo_fence = !journal_lost && !self.is_superseded();
            self.opening = Opening::Closed;
        } else if !on_disk && recorded && self.head && self.is_resetting() {
            self.end_reset(out); // the new head was made, and not recorded
        } else if !on_disk && recorded && self.head {
            self.save_base("thawed", |b| b.frozen = None, out);
        }
    }
}
