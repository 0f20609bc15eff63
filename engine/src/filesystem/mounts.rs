//! Mounts on this node. Whether something is mounted is decided by the kernel's mount tables
//! (`LookForMounts`, `DropHead` and `Destroy` read them); what is kept here is only for people and for pins.

use std::collections::BTreeSet;

use super::Filesystem;
use super::event::{Answer, Ctx, Out, Task};
use super::tasks::Slot;
use crate::ids::CommitId;
use crate::model::{Problem, Reason};
use crate::words::{MountMode, MountWhat, OF_COMMIT, ReqId};

/// At most so many mount requests wait at once.
const WAITING: usize = 64;
/// At most so many mounts of a commit are named in a message.
const NAMED: usize = 3;

/// A mount that waits for its turn or for an opening.
#[derive(Debug, Clone)]
struct Waiting {
    req: ReqId,
    what: MountWhat,
    target: String,
    mode: MountMode,
}

/// What is mounted through this agent, and what waits to be.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    there: BTreeSet<(String, MountWhat)>,
    waiting: Vec<Waiting>,
    /// Made, but too late after their opening: unmounted again.
    late: BTreeSet<ReqId>,
}

fn fencing() -> Problem {
    Problem::new(Reason::Busy, "the volume is about to be handed over, reset or fenced; no new mount of it is made just now")
}

impl Mounts {
    /// `target` or `target (commit)`.
    pub(super) fn shown(&self) -> Vec<String> {
        self.there.iter().map(|(t, w)| if *w == MountWhat::Head { t.clone() } else { format!("{t}{OF_COMMIT}") }).collect()
    }

    /// Where that commit is mounted: the first few. A pod's own path sorts after the one at which the kubelet stages its volume.
    fn of_commit(&self, id: CommitId) -> Vec<&str> {
        let mounts = self.there.iter().rev().filter(|(_, what)| *what == MountWhat::Commit(id));
        mounts.take(NAMED).map(|(target, _)| target.as_str()).collect()
    }

    /// Whether it is mounted, as words for people.
    pub(super) fn holding(&self, id: CommitId) -> Option<String> {
        let targets = self.of_commit(id);
        (!targets.is_empty()).then(|| format!("a mount at {}", targets.join(", ")))
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING
    }

    fn wants_head(&self) -> bool {
        self.waiting.iter().any(|m| m.what == MountWhat::Head)
    }

    fn refuse(&mut self, which: impl Fn(&Waiting, &BTreeSet<(String, MountWhat)>) -> bool, problem: &Problem, out: &mut Out) {
        for m in std::mem::take(&mut self.waiting) {
            if which(&m, &self.there) {
                out.answers.push((m.req, Answer::Plain(Err(problem.clone()))));
            } else {
                self.waiting.push(m);
            }
        }
    }

    /// None that waits is made any more.
    pub(super) fn refuse_all(&mut self, problem: &Problem, out: &mut Out) {
        self.refuse(|_, _| true, problem, out);
    }

    /// Nothing new mounts the head now; what has it mounted already may ask again.
    fn refuse_new_heads(&mut self, problem: &Problem, out: &mut Out) {
        self.refuse(|m, there| m.what == MountWhat::Head && !there.contains(&(m.target.clone(), m.what)), problem, out);
    }

    fn refuse_heads(&mut self, problem: &Problem, out: &mut Out) {
        self.refuse(|m, _| m.what == MountWhat::Head, problem, out);
    }

    /// Those whose turn it is; the head only if it may be.
    fn take_ready(&mut self, head: bool) -> Vec<Waiting> {
        let all = std::mem::take(&mut self.waiting);
        let (wait, ready) = all.into_iter().partition(|m| m.what == MountWhat::Head && !head);
        self.waiting = wait;
        ready
    }

    /// All of it is gone from this node.
    pub(super) fn clear(&mut self) {
        self.there.clear();
    }
}

impl Filesystem {
    pub(super) fn handle_mount(&mut self, req: ReqId, what: MountWhat, target: String, mode: MountMode, out: &mut Out) {
        let refusal = match what {
            _ if !self.standing.is_active() => Some(self.standing.not_here()),
            MountWhat::Head if !self.may_write() => Some(self.write_refusal()),
            MountWhat::Commit(id) if !self.history.has_for_use(id) => {
                Some(Problem::new(Reason::NotFound, format!("commit {id} is not on this node")))
            }
            _ if self.mounts.is_full() => Some(Problem::new(Reason::Busy, "too many mounts wait; try again")),
            _ => None,
        };
        match refusal {
            Some(problem) => out.answers.push((req, Answer::Plain(Err(problem)))),
            None => self.mounts.waiting.push(Waiting { req, what, target, mode }),
        }
    }

    pub(super) fn handle_unmount(&mut self, req: ReqId, target: String, out: &mut Out) {
        // Acted on in every state, before anything else that waits (design §4).
        self.tasks.start(Slot::Mount(req), Task::Unmount(target), out);
    }

    pub(super) fn advance_mounts(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.mounts.waiting.is_empty() {
            return;
        }
        if let Some(problem) = self.held_back(ctx.boot) {
            self.mounts.refuse_new_heads(&problem, out);
        }
        // From the moment a fence is asked for: one that were admitted now would find its volume frozen under it, or keep the fence back.
        if self.head.is_fence_wanted() {
            self.mounts.refuse_heads(&fencing(), out);
        }
        let fresh = self.head.is_fresh(ctx.boot);
        if self.mounts.wants_head() && !self.may_write() {
            let problem = self.write_refusal();
            self.mounts.refuse_heads(&problem, out);
        } else if self.mounts.wants_head() && !fresh {
            // R0: the first mount of an opening turns writable within 5 s of sending the CAS, or the CAS is done again.
            if self.tasks.is_ready(Slot::Life, ctx.boot) {
                self.tasks.start(Slot::Life, Task::Open { seen: self.standing.seen() }, out);
            }
        }
        for m in self.mounts.take_ready(fresh) {
            self.tasks.start(Slot::Mount(m.req), Task::Mount(m.what, m.target, m.mode), out);
        }
    }

    pub(super) fn on_mounted(
        &mut self,
        req: ReqId,
        (what, target): (MountWhat, String),
        result: Result<(), Problem>,
        ctx: &Ctx,
        out: &mut Out,
    ) {
        self.tasks.rest(Slot::Mount(req)); // the caller tries again, not we
        if result.is_ok() && what == MountWhat::Head && !self.head.is_used() {
            // R0: made within 5 s of sending the swap, or authority may have been elsewhere when it was.
            if !self.head.is_fresh(ctx.boot) {
                self.mounts.late.insert(req);
                return self.tasks.start(Slot::Mount(req), Task::Unmount(target), out);
            }
            self.head.used();
            self.standing.used(out);
        }
        if result.is_ok() {
            self.mounts.there.insert((target, what));
        }
        out.answers.push((req, Answer::Plain(result)));
    }

    pub(super) fn on_unmounted(&mut self, req: ReqId, target: &str, result: Result<(), Problem>, out: &mut Out) {
        self.tasks.rest(Slot::Mount(req));
        if result.is_ok() {
            self.mounts.there.retain(|(t, _)| t != target);
            // A deletion that waited for this mount goes on at once.
            for slot in [Slot::Life, Slot::Head, Slot::Look, Slot::MoveFence] {
                self.tasks.wake(slot);
            }
        }
        let late = self.mounts.late.remove(&req);
        let too_late = || Err(Problem::new(Reason::Busy, "the mount took so long that authority may have moved meanwhile; try again"));
        out.answers.push((req, Answer::Plain(if late { result.and_then(|()| too_late()) } else { result })));
    }
}
