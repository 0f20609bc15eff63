//! Keeps one copy close behind while the owner's node is about to be left (csi.md §1, "Locality"): at most once a minute the owner commits
//! and sends that there, so that a move has little left to send once the pods have gone.
//!
//! The commit is a transient one, as the last of a handoff is: people don't see it, and the next one takes its place. Once nobody waits for it
//! any more it is a cache: a move back would start from it. It goes after an hour of that, by boot time.
//! When the last was made is remembered by boot time; after a restart the time counts anew from when one is first seen. It is not begun
//! before the run of the last one has ended, and gets rarer while nothing is written. A handoff brings over what was not there yet in its own
//! first run, and the final commit on top.

use super::event::{Ctx, Out, Task};
use super::tasks::Slot;
use super::trouble::Trouble;
use super::{Filesystem, transfer};
use crate::ids::{BootTime, CommitId};
use crate::model::{Commit, Problem};
use crate::run::{Initial, JobSpec};
use crate::words::{JobKey, WantedJob};

/// Shortest time from one such commit to the next.
pub const EVERY_MS: u64 = 60_000;
/// While nothing is written the time doubles, so often at most: 16 minutes.
const IDLE_MAX: u32 = 4;

/// So long one that nobody waits for is kept, as a base for the way back (migration.md §1).
const CACHED_MS: u64 = 3_600_000;

/// When such commits were made.
#[derive(Debug, Default)]
pub(super) struct Precopy {
    /// Those in which nothing was new, in a row.
    idle: u32,
    /// When the last was made, or first seen after a start.
    made: Option<BootTime>,
    /// The one that is no more than a cache, and since when.
    cached: Option<(CommitId, BootTime)>,
}

impl Precopy {
    /// When the next is due.
    fn due(&self) -> BootTime {
        self.made.map_or(BootTime(0), |at| at.plus_ms(EVERY_MS << self.idle.min(IDLE_MAX)))
    }

    /// That one is no more than a cache; `None`: none is.
    pub(super) fn cache(&mut self, commit: Option<CommitId>, now: BootTime) {
        if self.cached.map(|(id, _)| id) != commit {
            self.cached = commit.map(|id| (id, now));
        }
    }

    /// When it has been one for long enough.
    fn cache_ends(&self) -> Option<BootTime> {
        self.cached.map(|(_, since)| since.plus_ms(CACHED_MS))
    }

    /// Whether that is over.
    pub(super) fn is_stale(&self, now: BootTime) -> bool {
        self.cache_ends().is_some_and(|at| at <= now)
    }

    /// None is wanted any more.
    const fn rest(&mut self) {
        self.idle = 0;
    }

    /// One is there, of whenever.
    fn seen(&mut self, now: BootTime) {
        self.made.get_or_insert(now);
    }

    fn made(&mut self, changed_bytes: Option<u64>, now: BootTime) {
        self.made = Some(now);
        self.idle = if changed_bytes == Some(0) { self.idle.saturating_add(1) } else { 0 };
    }
}

impl Filesystem {
    /// The newest commit, if it is one of these: what a handoff should bring over first. That of a fence is its own affair.
    pub(super) fn precopied(&self) -> Option<CommitId> {
        let frozen = self.standing.frozen();
        self.history.newest().filter(|c| c.transient && !c.is_let_go() && Some(c.id) != frozen).map(|c| c.id)
    }

    /// When the cache is old enough to go.
    pub(super) fn cache_due(&self) -> Option<BootTime> {
        self.precopy.cache_ends().filter(|at| *at > self.clock.boot)
    }

    /// When the next is due, if one is wanted.
    pub(super) fn precopy_due(&self) -> Option<BootTime> {
        self.wish.precopy_to(&self.here).filter(|_| self.may_write() && !self.handoff.is_in_hand())?;
        Some(self.precopy.due())
    }

    /// Commits if it is due and nothing else wants the head.
    pub(super) fn advance_precopy(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.wish.precopy_to(&self.here).is_none() {
            self.precopy.rest();
            return self.troubles.clear(Trouble::PrecopyBlocked);
        }
        if self.history.newest_transient().is_some() {
            self.precopy.seen(ctx.boot);
        }
        let due = self.precopy_due().is_some_and(|at| at <= ctx.boot);
        if !due || self.head.is_fence_wanted() || !self.tasks.is_ready(Slot::Head, ctx.boot) || self.outbox.is_busy(JobKey::Precopy) {
            return;
        }
        let commit = Box::new(self.transient_commit(ctx));
        self.tasks.start(Slot::Head, Task::Commit { qgroup: self.standing.qgroup(), commit }, out);
    }

    /// It is there: the job gets it by its next spec.
    pub(super) fn on_precopy_made(&mut self, changed_bytes: Option<u64>, ctx: &Ctx) {
        self.troubles.clear(Trouble::PrecopyBlocked);
        self.precopy.made(changed_bytes, ctx.boot);
        self.outbox.stale();
    }

    /// It could not be made, as there is no space, most likely: nobody waits for it, and it is tried again. It may be there half-way.
    pub(super) fn on_precopy_failed(&mut self, commit: &Commit, problem: Problem, out: &mut Out) {
        self.history.sweep(commit.id, out);
        self.troubles.raise(Trouble::PrecopyBlocked, problem, out);
    }

    /// The job that sends it; suspended while a handoff sends by its own, so that what it has sent stays pinned.
    pub(super) fn precopy_job(&self) -> Option<(JobKey, WantedJob)> {
        let (peer, commit) = (self.wish.precopy_to(&self.here)?.clone(), self.history.newest_transient()?.id);
        let (key, suspend) = (JobKey::Precopy, self.handoff.is_in_hand());
        let params = transfer(peer, Initial::All, Some(commit));
        let spec = JobSpec {
            uid: key.uid(self.id),
            generation: 1,
            suspend,
            trigger: Some(commit.to_string()),
            on_commit: false,
            schedule: None,
            params,
        };
        Some((key, WantedJob { spec, bandwidth: None }))
    }
}
