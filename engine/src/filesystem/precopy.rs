//! Keeps one copy close behind while the owner's node is about to be left (csi.md §1, "Locality"): at most once a minute the owner commits
//! and sends that there, so that a move has little left to send once the pods have gone.
//!
//! The commit is a transient one, as the last of a handoff is: people don't see it, the next one takes its place, it goes after an hour.
//! When the last was made is remembered by boot time; after a restart the time counts anew from when one is first seen. It is not begun
//! before the run of the last one has ended, and gets rarer while nothing is written. A handoff brings over what was not there yet in its own first run, and the final commit on top.

use super::event::{Ctx, Out, Task};
use super::jobs::WantedJob;
use super::{Filesystem, Slot};
use crate::ids::{BootTime, CommitId, JobUid};
use crate::model::{Commit, Place, Problem};
use crate::run::{Initial, Intermediate, JobSpec, OnConflict, Retry, RunParams};

/// Shortest time from one such commit to the next.
pub const EVERY_MS: u64 = 60_000;
/// While nothing is written the time doubles, so often at most: 16 minutes.
const IDLE_MAX: u32 = 4;

impl Filesystem {
    fn precopy_wish(&self) -> Option<Place> {
        self.present().and_then(|p| p.precopy_to.clone()).filter(|to| to.node != self.here.place.node)
    }

    /// Of the one job that it runs by; no object has the Filesystem's own id.
    fn precopy_uid(&self) -> JobUid {
        JobUid::from_uuid(self.id.uuid())
    }

    pub(super) fn is_precopy_job(&self, uid: JobUid) -> bool {
        uid == self.precopy_uid()
    }

    fn newest_transient(&self) -> Option<&Commit> {
        self.own_transients().max_by_key(|c| (c.time, c.id))
    }

    /// The newest commit, if it is one of these: what a handoff should bring over first. That of a fence is its own affair.
    pub(super) fn precopied(&self) -> Option<CommitId> {
        let frozen = self.base.as_ref().and_then(|b| b.frozen);
        self.newest().filter(|c| c.transient && !c.is_let_go() && Some(c.id) != frozen).map(|c| c.id)
    }

    /// When the next is due, if one is wanted.
    pub(super) fn precopy_due(&self) -> Option<BootTime> {
        self.precopy_wish().filter(|_| self.may_write() && self.migration.is_none())?;
        Some(self.precopied_at.map_or(BootTime(0), |at| at.plus_ms(EVERY_MS << self.precopy_idle.min(IDLE_MAX))))
    }

    fn is_precopying(&self) -> bool {
        let job = self.jobs.get(&self.precopy_uid());
        job.is_some_and(|j| !j.is_gone() && (j.row().owed || !j.is_idle()))
    }

    /// Commits if it is due and nothing else wants the head.
    pub(super) fn advance_precopy(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.precopy_wish().is_none() {
            self.precopy_idle = 0;
            return self.clear("PrecopyBlocked");
        }
        if self.precopied_at.is_none() && self.newest_transient().is_some() {
            self.precopied_at = Some(ctx.boot);
        }
        let due = self.precopy_due().is_some_and(|at| at <= ctx.boot);
        if !due || !self.fences.is_empty() || !self.is_ready(Slot::Head, ctx.boot) || self.is_precopying() {
            return;
        }
        let commit = Box::new(self.transient_commit(ctx));
        self.start(Slot::Head, Task::Commit { qgroup: self.qgroup(), commit }, out);
    }

    /// It is there: the job gets it by its next spec.
    pub(super) fn on_precopy_made(&mut self, changed_bytes: Option<u64>, ctx: &Ctx) {
        self.precopied_at = Some(ctx.boot);
        self.clear("PrecopyBlocked");
        self.precopy_idle = if changed_bytes == Some(0) { self.precopy_idle.saturating_add(1) } else { 0 };
        self.specs_applied = false;
    }

    /// It could not be made, as there is no space, most likely: nobody waits for it, and it is tried again. It may be there half-way.
    pub(super) fn on_precopy_failed(&mut self, commit: &Commit, problem: Problem, out: &mut Out) {
        self.drop_fence_commit(commit.id, out);
        self.trouble("PrecopyBlocked", problem, out);
    }

    /// The job that sends it; suspended while a handoff sends by its own, so that what it has sent stays pinned.
    pub(super) fn precopy_job(&self) -> Option<WantedJob> {
        let (peer, commit) = (self.precopy_wish()?, self.newest_transient()?.id);
        let params = RunParams {
            peer,
            initial: Initial::All,
            intermediate: Intermediate::All,
            retry: Retry::default(),
            on_conflict: OnConflict::Fail,
            also: Some(commit),
        };
        let (uid, suspend) = (self.precopy_uid(), self.migration.is_some());
        let spec = JobSpec { uid, generation: 1, suspend, trigger: Some(commit.to_string()), on_commit: false, params };
        Some(WantedJob { spec, bandwidth: None })
    }
}
