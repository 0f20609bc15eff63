//! Replacing the head by a commit (`DotOperation` reset). What the head held is kept as the commit that the wish is for.
//!
//! *commit-intent* (with the target) → fence, once nothing has the head mounted → *reset-begun* → `DropHead` → `CreateHead` →
//! *reset-done* → opened anew (R0). A crash before *reset-begun* undoes the fence and begins again; after it the reset goes through. A bind
//! mount shows the old subvolume for ever, so it waits for whoever has one (design §4); history stays one line, as replicas have it.
//!
//! With `hold` it also keeps new mounts of the head back while it waits, for five minutes at most, so that who is made to leave doesn't
//! come back before it. That is kept in memory only: after a restart the five minutes begin anew, and the operator's own count ends it.

use std::collections::BTreeMap;

use super::event::{Ctx, Out, Task};
use super::record::{RequestRow, RequestState};
use super::tasks::{Slot, desk};
use super::{Filesystem, source};
use crate::ids::{BootTime, CommitId, RequestUid};
use crate::model::{Commit, Origin, Problem, Reason};
use crate::words::{Role, WantedCommit};

/// Longest that a reset keeps new mounts back. One that can't go on must not keep pods from starting for ever.
const HOLD_MS: u64 = 300_000;

/// Resets that wait.
#[derive(Debug, Default)]
pub(super) struct Resets {
    /// Those that can't begin, and why.
    blocked: BTreeMap<RequestUid, Problem>,
    /// Those that keep new mounts of the head back, and since when.
    holds: BTreeMap<RequestUid, BootTime>,
}

impl Resets {
    /// Why it can't begin.
    pub(super) fn blocked(&self, uid: RequestUid) -> Option<&Problem> {
        self.blocked.get(&uid)
    }

    /// Those that are wanted still.
    pub(super) fn keep_blocked(&mut self, is_wanted: impl Fn(RequestUid) -> bool) {
        self.blocked.retain(|uid, _| is_wanted(*uid));
    }

    /// It keeps new mounts of the head back now.
    pub(super) fn is_holding(&self, uid: RequestUid, now: BootTime) -> bool {
        self.holds.get(&uid).is_some_and(|since| now.since_ms(*since) < HOLD_MS)
    }

    /// One that does.
    fn holding(&self, now: BootTime) -> Option<RequestUid> {
        self.holds.keys().find(|uid| self.is_holding(**uid, now)).copied()
    }

    /// Each has its time once.
    fn hold(&mut self, uids: Vec<RequestUid>, now: BootTime) {
        self.holds = uids.into_iter().map(|uid| (uid, self.holds.get(&uid).copied().unwrap_or(now))).collect();
    }

    /// When the next of them gives up.
    pub(super) fn hold_ends(&self, now: BootTime) -> Option<BootTime> {
        self.holds.values().map(|since| since.plus_ms(HOLD_MS)).filter(|at| *at > now).min()
    }
}

impl Filesystem {
    /// The target of a reset that is wanted, in hand, or done with no commit since: without it nobody could make that head anew. Once the head
    /// is to go, no commit comes any more, and none is needed.
    pub(super) fn pinned_by_reset(&self, id: CommitId) -> bool {
        let here = Some(Origin { fs_id: self.id, commit: id });
        let is_headless = self.standing.is_headless() || self.wish.is_headless();
        !is_headless && self.history.reset_to() == Some(id)
            || self.standing.reset_to() == here
            || self.history.pending().any(|r| r.reset_to == here)
    }

    /// Whether the target is on this node, for sure; else says why not, and does what may bring it.
    pub(super) fn can_reset(&mut self, uid: RequestUid, to: Origin, ctx: &Ctx, out: &mut Out) -> bool {
        if self.has_target(to) {
            self.resets.blocked.remove(&uid);
            return true;
        }
        if self.standing.origin() == Some(to) && self.tasks.is_ready(Slot::Life, ctx.boot) {
            self.tasks.start(Slot::Life, Task::PinOrigin(to), out);
        }
        let text = format!("there is no commit {} of this volume on node {}: nothing is reset", to.commit, self.here.place.node);
        self.resets.blocked.insert(uid, Problem::new(Reason::NotFound, text));
        false
    }

    fn has_target(&self, to: Origin) -> bool {
        to.fs_id == self.id && self.history.get(to.commit).is_some_and(|c| !c.transient)
            || self.standing.origin() == Some(to) && self.life.is_origin_pinned()
    }

    // ---- hold ----

    /// Which resets keep new mounts back: those that are wanted so and can be done.
    pub(super) fn settle_holds(&mut self, ctx: &Ctx) {
        let may = self.wish.role() == Some(Role::Owner) && self.standing.is_active();
        let wanted = if may { self.wish.commits() } else { &[] };
        let holds = |w: &&WantedCommit| {
            w.hold && !w.remove && w.id.is_none() && self.history.is_open(w.uid) && w.reset_to.is_some_and(|to| self.has_target(to))
        };
        let uids = wanted.iter().filter(holds).map(|w| w.uid).collect();
        self.resets.hold(uids, ctx.boot);
    }

    /// Why nothing new mounts the head now.
    pub(super) fn held_back(&self, now: BootTime) -> Option<Problem> {
        let uid = self.resets.holding(now)?;
        self.wish.present()?;
        let what = self.wish.commits().iter().find(|w| w.uid == uid).map(|w| w.message.clone()).unwrap_or_default();
        let text = format!("a reset keeps new mounts back until it is done, for {} min at most: \"{what}\"", HOLD_MS / 60_000);
        Some(Problem::new(Reason::Held, text))
    }

    // ---- the reset itself ----

    fn block_reset(&mut self, row: &RequestRow, problem: Problem, out: &mut Out) {
        if row.problem.as_ref() != Some(&problem) || self.history.request(row.uid) != Some(row) {
            self.history.put_request("commit-blocked", RequestRow { problem: Some(problem), ..row.clone() }, out);
        }
    }

    /// The fence that a reset asked for could not begin.
    pub(super) fn on_reset_kept_back(&mut self, commit: &Commit, problem: Problem, out: &mut Out) {
        if let Some(row) = commit.kept.and_then(|uid| self.history.request(uid)).filter(|r| r.id == commit.id).cloned() {
            self.block_reset(&row, problem, out);
        }
    }

    /// The fence that a reset asked for has ended.
    pub(super) fn on_reset_fenced(&mut self, commit: Commit, result: Result<(), Problem>, ctx: &Ctx, out: &mut Out) {
        let id = commit.id;
        let wanted = commit.kept.is_some_and(|uid| self.wish.wants(uid));
        let row = commit.kept.and_then(|uid| self.history.request(uid)).filter(|r| r.id == id).cloned();
        let result = match &row {
            Some(_) if wanted => result,
            _ => result.and(Err(Problem::new(Reason::Cancelled, "the reset is not wanted any more"))),
        };
        match (result, row) {
            (Ok(()), Some(row)) => {
                self.history.put("reset-commit", commit, out);
                self.fenced_with("reset-begun", id, row.reset_to, out);
                self.outbox.on_new_commit(source!(self), &mut desk!(self, ctx, out));
            }
            (result, row) => {
                // It may have got half-way: the volume is served as it was, if it may be, and the next try has an id of its own.
                self.head.half_fenced(!self.standing.is_superseded());
                self.history.sweep(id, out);
                if let (Some(row), Err(problem)) = (row, result) {
                    self.block_reset(&RequestRow { id: CommitId::from_uuid(ctx.fresh.uuid()), ..row }, problem, out);
                }
            }
        }
    }

    /// The old head is fenced, the new one is not: by that they are told apart after a crash.
    pub(super) fn advance_reset(&mut self, to: Origin, qgroup: u64, out: &mut Out) {
        let task = if self.head.is_there() { Task::DropHead } else { Task::CreateHead { qgroup, from: Some(to) } };
        self.tasks.start(Slot::Life, task, out);
    }

    pub(super) fn end_reset(&mut self, out: &mut Out) {
        let Some(to) = self.standing.reset_to() else { return };
        let kept = self.standing.frozen().and_then(|id| self.history.get(id)).cloned();
        self.standing.reset_done(out);
        if let Some(commit) = kept {
            self.history.finish_request_of(&commit, out);
        }
        self.life.pin_origin_anew(); // a clone's origin was pinned anew
        out.note("Reset", format!("the head is commit {} again", to.commit));
    }

    /// On disk, unknown to the journal: nobody has proven that it holds what the head held.
    pub(super) fn is_unproven_reset(&self, commit: &Commit) -> bool {
        let row = commit.kept.and_then(|uid| self.history.request(uid));
        self.standing.is_owner() && row.is_some_and(|r| r.reset_to.is_some() && r.state == RequestState::Pending)
    }

    pub(super) fn forget_reset_commit(&mut self, commit: &Commit, out: &mut Out) {
        self.history.sweep(commit.id, out);
        if let Some(uid) = commit.kept {
            self.history.forget_request(uid, out);
        }
    }
}
