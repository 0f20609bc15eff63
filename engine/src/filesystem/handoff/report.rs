//! How a handoff is ended and told of.

use super::super::Filesystem;
use super::super::event::{Ctx, Out};
use super::super::status::MigrationStatus;
use super::super::trouble::{MovePhase, Trouble};
use super::{Exporting, Phase};
use crate::ids::Now;

impl Filesystem {
    /// It is over, either way: row and job go, the report stays.
    pub(super) fn end_handoff(&mut self, record: &'static str, result: MovePhase, message: &str, ctx: &Ctx, out: &mut Out) {
        let Some(e) = self.handoff.exporting().cloned() else { return };
        let mut report = self.told(&e, ctx.clock());
        self.head.unwant_fence_of_handoff(); // one that was asked for and not begun
        report.phase = result;
        report.finished_at = Some(ctx.now);
        message.clone_into(&mut report.message);
        self.handoff.end(record, out);
        if result != MovePhase::Done {
            self.outbox.hand_on(e.key(), &self.history, out);
        }
        self.outbox.drop_job(e.key(), &mut self.tasks, out);
        let peer = &e.terms.peer.node;
        if result == MovePhase::Done {
            out.note("Moved", format!("node {peer} owns it now"));
            self.tasks.rest(super::super::tasks::Slot::MoveBegin);
            self.troubles.clear(Trouble::MoveBlocked);
        } else {
            out.warn("MoveCancelled", format!("to node {peer}: {message}"));
        }
        self.handoff.last = Some(report);
        self.outbox.stale();
    }

    /// Bytes that its present run has sent, or its last one.
    pub(super) fn sent_by(&self, e: &Exporting, now: Now) -> u64 {
        self.outbox.report(e.key(), now).map_or(0, |r| r.replicated_bytes)
    }

    /// The handoff in hand, or the last one, on the exporter.
    pub(in crate::filesystem) fn migration_status(&self) -> Option<MigrationStatus> {
        match self.handoff.exporting() {
            Some(e) => Some(self.told(e, self.clock)),
            None => self.handoff.last.clone(),
        }
    }

    fn told(&self, e: &Exporting, now: Now) -> MigrationStatus {
        let phase = match &e.phase {
            Phase::Begun { waits: Some(_), .. } => MovePhase::WaitingForPods,
            Phase::Begun { .. } if self.head.is_fence_of_handoff_wanted() => MovePhase::Freezing,
            Phase::Begun { .. } => MovePhase::Copying,
            Phase::Frozen(_) => MovePhase::Freezing,
            Phase::Pending(..) => MovePhase::Exporting,
            Phase::Exported(..) => MovePhase::Committing,
            Phase::Aborted(..) => MovePhase::Aborting,
        };
        let bytes = match &e.phase {
            Phase::Begun { .. } => self.sent_by(e, now),
            Phase::Frozen(cut) => cut.precopied,
            Phase::Pending(cut, ..) | Phase::Exported(cut, _) | Phase::Aborted(cut, ..) => {
                cut.precopied.saturating_add(self.sent_by(e, now))
            }
        };
        let problem = self.outbox.report(e.key(), now).and_then(|r| r.problem).map(|p| p.message);
        MigrationStatus {
            id: e.terms.mig,
            from: self.here.place.node.clone(),
            to: e.terms.peer.node.clone(),
            attempt: e.attempt().unwrap_or(0),
            phase,
            started_at: e.terms.started,
            finished_at: None,
            frozen_ms: e.cut().and_then(|c| c.at).map_or(0, |at| now.wall.since_ms(at)),
            bytes,
            message: self.handoff_waits_for(e).or(problem).unwrap_or_default(),
        }
    }
}
