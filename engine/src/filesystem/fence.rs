//! Fence and thaw: the head is made unwritable, with a final commit of what it holds, and writable again. A fence is what disk and journal
//! say together; half of one is undone, or made whole.
//!
//! Planned (handoff, reset): new mounts are refused → `LookForMounts`; mounted: they are admitted again → `Freeze` → `FinalCommit` →
//! *fence-commit*, *frozen*. Where authority was lost, or by force: `Freeze` at once, whatever runs or sleeps → `FinalCommit` → the same.
//! *thaw-begun* → `Thaw`, and authority is opened anew (R0).

use super::event::{Answer, Ctx, Out, Task};
use super::head::{For, Step};
use super::tasks::Slot;
use super::{Filesystem, headless};
use crate::ids::CommitId;
use crate::model::{Commit, Origin, Problem, Reason};
use crate::words::{MountWhat, ReqId};

impl Filesystem {
    /// May write: owner, opened in this boot, not fenced, not deleting.
    pub(super) fn may_write(&self) -> bool {
        self.standing.may_send() && self.head.is_open() && self.head.is_there() && !self.is_fenced()
    }

    /// The head is, or may be, read-only on disk.
    pub(super) fn is_fenced(&self) -> bool {
        self.head.is_half_fenced() || self.standing.frozen().is_some()
    }

    /// Authority is elsewhere, and the head can be written: that ends at once, whoever has it mounted.
    pub(super) fn must_fence(&self) -> bool {
        self.standing.is_superseded() && self.head.is_there() && self.standing.frozen().is_none()
    }

    pub(super) fn handle_fence(&mut self, req: ReqId, force: bool, out: &mut Out) {
        let active = self.standing.is_active();
        let answer = if self.tasks.runs(|_, task| *task == Task::Thaw) {
            Err(Problem::new(Reason::Busy, "the head is being thawed; fence it after that"))
        } else if self.standing.is_resetting() || self.standing.is_headless() {
            Err(self.not_owner())
        } else if let Some(id) = self.standing.frozen().filter(|_| active) {
            Ok((id, 0))
        } else if self.may_write() || self.head.is_half_fenced() && active && self.standing.is_owner() {
            self.tasks.rest(Slot::Look); // who asks wants to know now
            return self.head.want_fence(For::Request(req, force));
        } else {
            Err(self.not_owner())
        };
        out.answers.push((req, Answer::Fenced(answer)));
    }

    /// Whoever waits for a fence and can't get one any more is told so; who waits for one that is there has it.
    pub(super) fn settle_fences(&mut self, out: &mut Out) {
        let may_come = self.may_write() || self.head.is_half_fenced() || self.must_fence() || self.head.is_frozen_for_fence();
        let waits = self.standing.is_resetting() || self.tasks.is_running(Slot::Head) || self.runs_fence();
        if !self.head.is_fence_wanted() || waits || may_come && !self.standing.is_headless() {
            return;
        }
        let answer = match self.standing.frozen().filter(|_| self.standing.is_active()) {
            Some(id) => Ok((id, 0)),
            None => Err(self.not_owner()),
        };
        self.head.answer_all(&Answer::Fenced(answer), out);
    }

    /// Something of a fence is under way that has to end first.
    pub(super) fn is_fencing(&self) -> bool {
        self.head.is_frozen_for_fence() || self.runs_fence()
    }

    fn runs_fence(&self) -> bool {
        self.tasks.runs(|_, task| matches!(task, Task::LookForMounts | Task::Freeze | Task::FinalCommit { .. }))
    }

    /// Takes the fence that is wanted first a step further. A freeze waits for nothing: no commit, no removal, nothing of the copy's life, no
    /// sleep but that after its own failure; only for a thaw, or that would undo it.
    pub(super) fn advance_fences(&mut self, ctx: &Ctx, out: &mut Out) {
        let goes = self.standing.is_headless() && !self.standing.is_superseded() || self.tasks.runs(|_, task| *task == Task::DropHead);
        if !self.standing.is_active() || goes {
            return;
        }
        if self.must_fence() {
            self.head.want_fence(For::Loss);
        }
        let may = self.may_write() || (self.head.is_half_fenced() || self.must_fence()) && self.standing.is_owner();
        let Some((whose, step)) = self.head.fence().filter(|_| may) else { return };
        match step {
            Step::Look => {
                let mounting = self.tasks.runs(|_, task| matches!(task, Task::Mount(MountWhat::Head, ..)));
                if !mounting && !self.tasks.is_running(Slot::Head) && self.tasks.is_ready(Slot::Look, ctx.boot) {
                    self.tasks.start(Slot::Look, Task::LookForMounts, out);
                }
            }
            Step::Freeze => {
                if self.tasks.is_ready(Slot::Freeze, ctx.boot) && !self.tasks.runs(|_, task| *task == Task::Thaw) {
                    self.tasks.start(Slot::Freeze, Task::Freeze, out);
                }
            }
            Step::Commit => {
                if self.tasks.is_ready(Slot::Head, ctx.boot) {
                    let commit = match whose {
                        For::Reset(commit) => {
                            let commit = Commit::clone(commit);
                            Box::new(self.as_of_now(commit, ctx, out))
                        }
                        For::Request(..) | For::Handoff | For::Loss => Box::new(self.transient_commit(ctx)),
                    };
                    self.head.start_final();
                    self.tasks.start(Slot::Head, Task::FinalCommit { qgroup: self.standing.qgroup(), commit }, out);
                }
            }
        }
    }

    /// The mount tables were read, for a fence that is planned. If something has the head, admission opens again.
    pub(super) fn on_looked(&mut self, result: Result<(), Problem>, ctx: &Ctx, out: &mut Out) {
        match (result, self.head.fence()) {
            (Ok(()), _) => self.head.looked(),
            (Err(problem), Some((_, Step::Look))) => self.fence_fails(problem, false, ctx, out),
            (Err(_), _) => {} // it is fenced all the same by now
        }
    }

    /// A freeze has ended. From then on nothing writes the head; what it holds is not proven yet.
    pub(super) fn on_froze(&mut self, result: Result<(), Problem>, ctx: &Ctx, out: &mut Out) {
        match result {
            Ok(()) => {
                if !self.head.froze() {
                    self.head.half_fenced(!self.standing.is_superseded());
                }
            }
            // Tried again, after a sleep of its own.
            Err(_) if self.must_fence() => {}
            Err(problem) => self.fence_fails(problem, true, ctx, out),
        }
    }

    /// The first fence can't be had now. Nobody was told of one: the volume is served where it was, if it may be.
    fn fence_fails(&mut self, problem: Problem, begun: bool, ctx: &Ctx, out: &mut Out) {
        if begun {
            self.head.half_fenced(!self.standing.is_superseded());
        }
        match self.head.drop_first() {
            Some(For::Request(req, _)) => out.answers.push((req, Answer::Fenced(Err(problem)))),
            Some(For::Handoff) => self.on_move_fenced(Err(problem), ctx),
            Some(For::Reset(commit)) if begun => self.on_reset_fenced(*commit, Err(problem), ctx, out),
            Some(For::Reset(commit)) => self.on_reset_kept_back(&commit, problem, out),
            Some(For::Loss) | None => {}
        }
    }

    /// The head is fenced, and what it holds is that commit; with `reset_to` it is to be replaced.
    pub(super) fn fenced_with(&mut self, record: &'static str, id: CommitId, reset_to: Option<Origin>, out: &mut Out) {
        self.standing.fenced(record, id, reset_to, out);
        self.head.close();
        self.head.settle();
    }

    pub(super) fn handle_thaw(&mut self, req: ReqId, out: &mut Out) {
        let standing = &self.standing;
        let refusal = if self.handoff.is_fenced() || standing.is_superseded() || standing.is_unsure() {
            let text = "authority over this Filesystem is moving or has moved: only the end of that thaws it (R2)";
            Problem::new(Reason::Busy, text)
        } else if standing.is_active()
            && standing.is_owner()
            && !standing.is_resetting()
            && !standing.is_headless()
            && !self.tasks.is_running(Slot::Head)
            && !self.head.is_fence_wanted()
        {
            self.head.thaw_for(req);
            return self.start_thaw(out);
        } else {
            self.not_owner()
        };
        out.answers.push((req, Answer::Plain(Err(refusal))));
    }

    /// From here on the fence's commit proves nothing, and that is durable before the disk is touched: a thaw that is cut half-way leaves a
    /// head that whoever had a file of it open may write.
    pub(super) fn start_thaw(&mut self, out: &mut Out) {
        if self.standing.frozen().is_some() {
            self.standing.thawed("thaw-begun", out);
        }
        self.head.half_fenced(true);
        self.head.close();
        self.tasks.start(Slot::Head, Task::Thaw, out);
    }

    fn not_owner(&self) -> Problem {
        if !self.standing.is_active() {
            return self.standing.not_here();
        }
        if self.standing.is_headless() {
            return Problem::new(Reason::NotOwner, headless::GONE);
        }
        if self.standing.is_resetting() {
            return Problem::new(Reason::Busy, "the head is being reset; it is there again in a moment");
        }
        if self.is_fenced() {
            return Problem::new(Reason::Busy, "the head is fenced; nothing writes it until it is thawed");
        }
        if self.standing.is_owner() {
            return Problem::new(Reason::NotOwner, "this node owns the Filesystem but has not opened it yet (waits for the API server)");
        }
        Problem::new(Reason::NotOwner, "this copy is a replica; only the owner's can be written")
    }

    pub(super) fn write_refusal(&self) -> Problem {
        self.not_owner()
    }

    /// A final commit has ended: with the generation of what it proves.
    pub(super) fn on_fenced(&mut self, commit: Commit, result: Result<u64, Problem>, ctx: &Ctx, out: &mut Out) {
        let whose = self.head.take_started();
        if commit.kept.is_some() {
            return self.on_reset_fenced(commit, result.map(drop), ctx, out);
        }
        let answer = match result {
            Ok(generation) => {
                let id = commit.id;
                self.history.put("fence-commit", commit, out);
                self.fenced_with("frozen", id, None, out);
                Ok((id, generation))
            }
            Err(problem) => {
                // It is frozen still. Nobody was told of a fence: the volume is served where it was, if it may be.
                self.head.half_fenced(!self.standing.is_superseded());
                self.history.sweep(commit.id, out);
                Err(problem)
            }
        };
        match whose {
            Some(For::Request(req, _)) => out.answers.push((req, Answer::Fenced(answer))),
            Some(For::Handoff) => self.on_move_fenced(answer.map(|(id, _)| id), ctx),
            Some(For::Reset(_) | For::Loss) | None => {}
        }
    }

    pub(super) fn on_thawed(&mut self, result: Result<(), Problem>, out: &mut Out) {
        if result.is_ok() {
            self.head.settle(); // R0: an opening lasts until this agent fences; it has to be won anew
        } else {
            self.head.half_fenced(true);
        }
        self.head.answer_thaw(result, out);
    }

    /// A fence is what disk and journal say together. Only on disk: it was not ended, or its end not recorded, and no commit is
    /// proven to hold what the head holds. Only in the journal: it was thawed.
    ///
    /// With the journal whole, nobody was told of such a fence, so it is undone, once authority was asked: a closed copy is frozen without a
    /// row because another node owns it. With the journal lost, authority may have gone elsewhere under it: it stays until someone thaws.
    pub(super) fn reconcile_fence(&mut self, on_disk: bool, journal_lost: bool, out: &mut Out) {
        let recorded = self.standing.frozen().is_some();
        if self.standing.is_headless() {
            // It goes, fenced or not; or it has gone, and that was not recorded.
            if recorded && !self.head.is_there() {
                self.standing.head_dropped(out);
            }
        } else if on_disk && !recorded {
            self.head.half_fenced(!journal_lost && !self.standing.is_unsure() && !self.standing.is_superseded());
            self.head.close();
            if !self.handoff.is_in_hand() {
                self.handoff.doubt();
            }
        } else if !on_disk && recorded && self.head.is_there() && self.standing.is_resetting() {
            self.end_reset(out); // the new head was made, and not recorded
        } else if !on_disk && recorded && self.head.is_there() {
            self.standing.thawed("thawed", out);
        }
    }
}
