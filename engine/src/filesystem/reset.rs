//! Replacing the head by a commit (`DotOperation` reset). What the head held is kept as the commit that the wish is for.
//!
//! *commit-intent* (with the target) → fence, once nothing has the head mounted → *reset-begun* → `DropHead` → `CreateHead` →
//! *reset-done* → opened anew (R0). A crash before *reset-begun* undoes the fence and begins again; after it the reset goes through. A bind
//! mount shows the old subvolume for ever, so it waits for whoever has one (design §4); history stays one line, as replicas have it.
//!
//! With `hold` it also keeps new mounts of the head back while it waits, for five minutes at most, so that who is made to leave doesn't
//! come back before it. That is kept in memory only: after a restart the five minutes begin anew, and the operator's own count ends it.

use super::event::{Ctx, Note, Out, Role, Task, WantedCommit};
use super::record::{Record, RequestRow, RequestState};
use super::{Filesystem, Slot};
use crate::ids::{BootTime, CommitId, RequestUid};
use crate::model::{Commit, Origin, Problem, Reason};

/// Longest that a reset keeps new mounts back. One that can't go on must not keep pods from starting for ever.
pub(super) const HOLD_MS: u64 = 300_000;

impl Filesystem {
    /// Begun, and the new head is not recorded yet.
    pub(super) fn is_resetting(&self) -> bool {
        self.base.as_ref().is_some_and(|b| b.reset_to.is_some())
    }

    /// The target of a reset that is wanted or in hand.
    pub(super) fn pinned_by_reset(&self, id: CommitId) -> bool {
        let here = Some(Origin { fs_id: self.id, commit: id });
        let wanted = |r: &RequestRow| r.state == RequestState::Pending && r.reset_to == here;
        self.base.as_ref().is_some_and(|b| b.reset_to == here) || self.requests.values().any(wanted)
    }

    /// Whether the target is on this node, for sure; else says why not, and does what may bring it.
    pub(super) fn can_reset(&mut self, uid: RequestUid, to: Origin, ctx: &Ctx, out: &mut Out) -> bool {
        if self.has_target(to) {
            self.blocked_resets.remove(&uid);
            return true;
        }
        let of_origin = self.base.as_ref().is_some_and(|b| b.origin == Some(to));
        if of_origin && self.is_ready(Slot::Life, ctx.boot) {
            self.start(Slot::Life, Task::PinOrigin(to), out);
        }
        let text = format!("there is no commit {} of this volume on node {}: nothing is reset", to.commit, self.here.place.node);
        self.blocked_resets.insert(uid, Problem::new(Reason::NotFound, text));
        false
    }

    fn has_target(&self, to: Origin) -> bool {
        let of_origin = self.base.as_ref().is_some_and(|b| b.origin == Some(to));
        to.fs_id == self.id && self.commits.get(&to.commit).is_some_and(|c| !c.transient) || of_origin && self.origin_pinned
    }

    // ---- hold ----

    /// Which resets keep new mounts back: those that are wanted so and can be done. Each has its time once.
    pub(super) fn settle_holds(&mut self, ctx: &Ctx) {
        let wanted = self.present().filter(|p| p.role == Role::Owner && self.is_active()).map(|p| p.commits.as_slice()).unwrap_or_default();
        let open = |uid: RequestUid| self.requests.get(&uid).is_none_or(|r| r.state == RequestState::Pending);
        let holds =
            |w: &&WantedCommit| w.hold && !w.remove && w.id.is_none() && open(w.uid) && w.reset_to.is_some_and(|to| self.has_target(to));
        self.holds = wanted.iter().filter(holds).map(|w| (w.uid, self.holds.get(&w.uid).copied().unwrap_or(ctx.boot))).collect();
    }

    /// It keeps new mounts of the head back now.
    pub(super) fn is_holding(&self, uid: RequestUid, now: BootTime) -> bool {
        self.holds.get(&uid).is_some_and(|since| now.since_ms(*since) < HOLD_MS)
    }

    /// Why nothing new mounts the head now.
    pub(super) fn held_back(&self, now: BootTime) -> Option<Problem> {
        let uid = *self.holds.keys().find(|uid| self.is_holding(**uid, now))?;
        let what = self.present()?.commits.iter().find(|w| w.uid == uid).map(|w| w.message.clone()).unwrap_or_default();
        let text = format!("a reset keeps new mounts back until it is done, for {} min at most: \"{what}\"", HOLD_MS / 60_000);
        Some(Problem::new(Reason::Held, text))
    }

    /// When the next of them gives up.
    pub(super) fn hold_ends(&self) -> Option<BootTime> {
        self.holds.values().map(|since| since.plus_ms(HOLD_MS)).filter(|at| *at > self.clock.boot).min()
    }

    fn block_reset(&mut self, row: &RequestRow, problem: Problem, out: &mut Out) {
        if row.problem.as_ref() != Some(&problem) || self.requests.get(&row.uid) != Some(row) {
            self.put_request("commit-blocked", RequestRow { problem: Some(problem), ..row.clone() }, out);
        }
    }

    /// The fence that a reset asked for has ended.
    pub(super) fn on_reset_fenced(&mut self, commit: Commit, result: Result<(), Problem>, ctx: &Ctx, out: &mut Out) {
        let id = commit.id;
        let wanted = commit.kept.filter(|uid| self.present().is_some_and(|p| p.commits.iter().any(|c| c.uid == *uid && !c.remove)));
        let row = commit.kept.and_then(|uid| self.requests.get(&uid)).filter(|r| r.id == id).cloned();
        let result = match (&row, wanted) {
            (Some(_), Some(_)) => result,
            _ => result.and(Err(Problem::new(Reason::Cancelled, "the reset is not wanted any more"))),
        };
        match (result, row) {
            (Ok(()), Some(row)) => {
                out.records.push(Record::Commit("reset-commit", Box::new(commit.clone())));
                self.commits.insert(id, commit);
                self.fenced_with("reset-begun", id, row.reset_to, out);
                self.on_new_commit_for_jobs(ctx, out);
            }
            (Err(problem), Some(row)) if problem.reason == Reason::Mounted => self.block_reset(&row, problem, out),
            (result, row) => {
                // It may have got half-way: the volume is served as it was, if it may be, and the next try has an id of its own.
                (self.half_fenced, self.undo_fence) = (true, !self.is_superseded());
                self.drop_fence_commit(id, out);
                if let (Some(row), Err(problem)) = (row, result) {
                    self.block_reset(&RequestRow { id: CommitId::from_uuid(ctx.fresh.uuid()), ..row }, problem, out);
                }
            }
        }
    }

    /// The old head is fenced, the new one is not: by that they are told apart after a crash.
    pub(super) fn advance_reset(&mut self, to: Origin, qgroup: u64, out: &mut Out) {
        let task = if self.head { Task::DropHead } else { Task::CreateHead { qgroup, from: Some(to) } };
        self.start(Slot::Life, task, out);
    }

    pub(super) fn end_reset(&mut self, out: &mut Out) {
        let Some((to, kept)) = self.base.as_ref().and_then(|b| Some((b.reset_to?, b.frozen))) else { return };
        self.save_base(
            "reset-done",
            |b| {
                b.reset_to = None;
                b.frozen = None;
            },
            out,
        );
        if let Some(commit) = kept.and_then(|id| self.commits.get(&id)).cloned() {
            self.finish_request_of(&commit, out);
        }
        self.origin_let_go = false; // a clone's origin was pinned anew
        let message = format!("the head is commit {} again", to.commit);
        out.notes.push(Note { warning: false, reason: "Reset".into(), message });
    }

    /// On disk, unknown to the journal: nobody has proven that it holds what the head held.
    pub(super) fn is_unproven_reset(&self, commit: &Commit) -> bool {
        let row = commit.kept.and_then(|uid| self.requests.get(&uid));
        self.role() == Some(Role::Owner) && row.is_some_and(|r| r.reset_to.is_some() && r.state == RequestState::Pending)
    }

    pub(super) fn forget_reset_commit(&mut self, commit: &Commit, out: &mut Out) {
        self.drop_fence_commit(commit.id, out);
        if let Some(uid) = commit.kept.filter(|uid| self.requests.remove(uid).is_some()) {
            out.records.push(Record::RequestGone(uid));
        }
    }
}
