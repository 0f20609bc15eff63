//! How a handoff is kept, ended and told of; and how long its transient commits stay.

use super::super::event::{Ctx, Note, Out, Role};
use super::super::fence::FenceRequest;
use super::super::record::{MigrationPhase, MigrationRow, Record};
use super::super::status::MigrationStatus;
use super::super::{Filesystem, JobLane, Slot};
use super::{MoveState, TRANSIENT_MS, job_of};
use crate::ids::{CommitId, Epoch, JobUid, Timestamp};
use crate::model::Commit;

impl Filesystem {
    pub(in super::super) fn epoch(&self) -> Epoch {
        self.base.as_ref().map_or(Epoch(0), |b| b.epoch)
    }

    pub(super) fn save_move(&mut self, name: &'static str, row: MigrationRow, out: &mut Out) {
        out.records.push(Record::Migration(name, Box::new(row.clone())));
        self.migration = Some(row);
        self.specs_applied = false;
    }

    /// It is over, either way: row and job go, the report stays.
    pub(super) fn end_move(&mut self, name: &'static str, result: &str, message: &str, ctx: &Ctx, out: &mut Out) {
        let Some(mut report) = self.migration_status(ctx.now) else { return };
        let Some(row) = self.migration.take() else { return };
        self.fences.retain(|f| !f.is_of_move()); // one that was asked for and not begun
        result.clone_into(&mut report.phase);
        report.finished_at = Some(ctx.now);
        message.clone_into(&mut report.message);
        out.records.push(Record::MigrationGone(name));
        self.drop_job(job_of(row.mig), out);
        let warning = result != "Done";
        let reason = if warning { "MoveCancelled" } else { "Moved" };
        let text = if warning { format!("to node {}: {message}", row.peer.node) } else { format!("node {} owns it now", row.peer.node) };
        out.notes.push(Note { warning, reason: reason.into(), message: text });
        if !warning {
            self.backoff.remove(&Slot::MoveBegin);
            self.clear("MoveBlocked");
        }
        self.moving = MoveState { last: Some(report), doubt: self.moving.doubt, ..MoveState::default() };
        self.specs_applied = false;
    }

    /// A job that leaves with all it has here.
    pub(super) fn drop_job(&mut self, uid: JobUid, out: &mut Out) {
        for lane in [JobLane::Main, JobLane::Estimate] {
            self.cancel(Slot::Job(uid, lane), out);
        }
        if self.jobs.remove(&uid).is_some() {
            out.records.push(Record::JobGone(uid));
        }
    }

    /// Transient commits go when a newer one is there, or after an hour; those that were let go when there is a newer one that
    /// is not transient, or no job that would send it. Nothing that is in use.
    pub(in super::super) fn expire_transients(&mut self, ctx: &Ctx, out: &mut Out) {
        let newest = self.own_transients().max_by_key(|c| (c.time, c.id)).map(|c| c.id);
        // Without a head nothing newer comes.
        let lasting = self.newest_lasting().filter(|_| !self.wants_no_head());
        let alone = self.role() == Some(Role::Owner) && !self.has_jobs();
        let has_had_its_time = |c: &Commit| {
            let aged = Some(c.id) != newest || ctx.now.since_ms(c.time) >= TRANSIENT_MS;
            if c.is_let_go() { alone || lasting != Some(c.id) } else { aged }
        };
        let old: Vec<CommitId> =
            self.commits.values().filter(|c| c.transient && has_had_its_time(c)).map(|c| c.id).filter(|id| !self.is_pinned(*id)).collect();
        for id in old {
            self.drop_commit(id, out);
        }
    }

    /// Those that the Filesystem made for itself.
    pub(in super::super) fn own_transients(&self) -> impl Iterator<Item = &Commit> {
        self.commits.values().filter(|c| c.transient && !c.is_let_go())
    }

    /// Someone wants it sent somewhere.
    fn has_jobs(&self) -> bool {
        self.present().is_none_or(|p| !p.jobs.is_empty())
    }

    /// When the next transient commit is old enough.
    pub(in super::super) fn transient_due(&self) -> Option<Timestamp> {
        let due = self.own_transients().map(|c| c.time.plus_ms(TRANSIENT_MS)).min();
        due.filter(|at| *at > self.clock)
    }

    /// The handoff in hand, or the last one.
    pub(in super::super) fn migration_status(&self, now: Timestamp) -> Option<MigrationStatus> {
        let Some(row) = self.migration.as_ref().filter(|r| r.phase != MigrationPhase::ImportStart) else {
            return self.moving.last.clone();
        };
        let report = self.jobs.get(&job_of(row.mig)).and_then(|j| j.report(now));
        let phase = match row.phase {
            MigrationPhase::Begun if self.moving.waits.is_some() => "WaitingForPods",
            MigrationPhase::Begun if self.fences.iter().any(FenceRequest::is_of_move) => "Freezing",
            MigrationPhase::Begun => "Copying",
            MigrationPhase::Frozen => "Freezing",
            MigrationPhase::Pending => "Exporting",
            MigrationPhase::Exported => "Committing",
            MigrationPhase::Aborted | MigrationPhase::ImportStart => "Aborting",
        };
        let problem = report.as_ref().and_then(|r| r.problem.as_ref()).map(|p| p.message.clone());
        Some(MigrationStatus {
            id: row.mig,
            from: self.here.place.node.clone(),
            to: row.peer.node.clone(),
            attempt: row.attempt,
            phase: phase.to_owned(),
            started_at: row.started,
            finished_at: None,
            frozen_ms: row.frozen.map_or(0, |at| now.since_ms(at)),
            bytes: match row.phase {
                MigrationPhase::Begun => self.move_bytes(row, now),
                MigrationPhase::Frozen => self.moving.precopied,
                _ => self.moving.precopied.saturating_add(self.move_bytes(row, now)),
            },
            message: self.moving.waits.clone().or_else(|| self.owed_commit()).or(problem).unwrap_or_default(),
        })
    }
}
