//! Mounts on this node, and origins of Branches. Whether something is mounted is decided by the kernel's mount tables
//! (the `Destroy` and `Fence` tasks read them); what is kept here is only for people and for pins.

use super::event::{Answer, Ctx, MountWhat, Out, ReqId, Task, TaskDone};
use super::record::{OriginPinRow, Record};
use super::{Filesystem, OPENING_FRESH_MS, Opening, Slot};
use crate::ids::{CommitId, FsId};
use crate::model::{FORMAT_VERSION, Problem, Reason};

/// At most so many mount requests wait at once.
const WAITING: usize = 64;

/// A mount that waits for its turn or for an opening.
#[derive(Debug, Clone)]
pub(super) struct WaitingMount {
    req: ReqId,
    what: MountWhat,
    target: String,
    read_only: bool,
}

impl Filesystem {
    pub(super) fn handle_mount(&mut self, req: ReqId, what: MountWhat, target: String, read_only: bool, out: &mut Out) {
        let refusal = match what {
            _ if !self.is_active() => Some(self.not_here()),
            MountWhat::Head if !self.may_write() => Some(self.write_refusal()),
            MountWhat::Commit(id) if !self.has_for_use(id) => {
                Some(Problem::new(Reason::NotFound, format!("commit {id} is not on this node")))
            }
            _ if self.waiting_mounts.len() >= WAITING => Some(Problem::new(Reason::Busy, "too many mounts wait; try again")),
            _ => None,
        };
        match refusal {
            Some(problem) => out.answers.push((req, Answer::Plain(Err(problem)))),
            None => self.waiting_mounts.push(WaitingMount { req, what, target, read_only }),
        }
    }

    pub(super) fn handle_unmount(&mut self, req: ReqId, target: String, out: &mut Out) {
        // Acted on in every state, before anything else that waits (design §4).
        self.start(Slot::Mount(req), Task::Unmount(target), out);
    }

    pub(super) fn advance_mounts(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.waiting_mounts.is_empty() {
            return;
        }
        if let Some(problem) = self.held_back(ctx.boot) {
            let there = self.mounts.clone();
            self.refuse_waiting(|m| m.what == MountWhat::Head && !there.contains(&(m.target.clone(), m.what)), &problem, out);
        }
        let wants_head = self.waiting_mounts.iter().any(|m| m.what == MountWhat::Head);
        if wants_head && !self.may_write() {
            let problem = self.write_refusal();
            self.refuse_waiting(|m| m.what == MountWhat::Head, &problem, out);
        } else if wants_head && !self.opening_is_fresh(ctx) {
            // R0: the first mount of an opening turns writable within 5 s of sending the CAS, or the CAS is done again.
            if self.is_ready(Slot::Life, ctx.boot) {
                let seen = self.base.as_ref().map_or(crate::ids::Epoch(0), |b| b.epoch);
                self.start(Slot::Life, Task::Open { seen }, out);
            }
        }
        let ready = self.opening_is_fresh(ctx);
        for m in std::mem::take(&mut self.waiting_mounts) {
            if m.what == MountWhat::Head && !ready {
                self.waiting_mounts.push(m);
                continue;
            }
            if m.what == MountWhat::Head
                && let Opening::Open { used, .. } = &mut self.opening
            {
                *used = true;
            }
            self.start(Slot::Mount(m.req), Task::Mount(m.what, m.target, m.read_only), out);
        }
    }

    fn opening_is_fresh(&self, ctx: &Ctx) -> bool {
        match self.opening {
            Opening::Closed => false,
            Opening::Open { used: true, .. } => true,
            Opening::Open { sent, used: false } => ctx.boot.since_ms(sent) <= OPENING_FRESH_MS,
        }
    }

    fn refuse_waiting(&mut self, which: impl Fn(&WaitingMount) -> bool, problem: &Problem, out: &mut Out) {
        for m in std::mem::take(&mut self.waiting_mounts) {
            if which(&m) {
                out.answers.push((m.req, Answer::Plain(Err(problem.clone()))));
            } else {
                self.waiting_mounts.push(m);
            }
        }
    }

    pub(super) fn answer_waiting_with_deleting(&mut self, out: &mut Out) {
        let problem = self.not_here();
        for m in std::mem::take(&mut self.waiting_mounts) {
            out.answers.push((m.req, Answer::Plain(Err(problem.clone()))));
        }
        for req in std::mem::take(&mut self.fences).into_iter().filter_map(|f| f.req()) {
            out.answers.push((req, Answer::Fenced(Err(problem.clone()))));
        }
    }

    pub(super) fn on_mount_done(&mut self, req: ReqId, task: Task, result: Result<TaskDone, Problem>, out: &mut Out) {
        self.backoff.remove(&Slot::Mount(req)); // the caller tries again, not we
        if result.is_ok() {
            match task {
                Task::Mount(what, target, _) => {
                    self.mounts.insert((target, what));
                }
                Task::Unmount(target) => {
                    self.mounts.retain(|(t, _)| *t != target);
                    // A deletion that waited for this mount goes on at once.
                    self.wake(Slot::Life);
                    self.wake(Slot::Head);
                    self.wake(Slot::MoveFence);
                }
                _ => {}
            }
        }
        out.answers.push((req, Answer::Plain(result.map(|_| ()))));
    }

    // ---- origins ----

    pub(super) fn handle_pin_origin(&mut self, req: ReqId, by: FsId, commit: CommitId, out: &mut Out) {
        let answer = if !self.is_active() {
            Err(self.not_here())
        } else if self.has_for_use(commit) {
            self.origin_pins.insert(by, commit);
            out.records.push(Record::OriginPin(Box::new(OriginPinRow { version: FORMAT_VERSION, by, commit })));
            Ok(())
        } else {
            Err(Problem::new(Reason::NotFound, format!("commit {commit} of Filesystem {} is not on this node", self.id)))
        };
        out.answers.push((req, Answer::Plain(answer)));
    }

    pub(super) fn on_unpin_origin(&mut self, by: FsId, out: &mut Out) {
        if self.origin_pins.remove(&by).is_some() {
            out.records.push(Record::OriginPinGone(by));
            self.wake(Slot::Head);
        }
    }
}
