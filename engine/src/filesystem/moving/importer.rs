//! The side that takes authority: `EImportStart`, the wait for what authority decides, `EImportFinish`.

use super::super::event::{Answer, AuthorityView, Ctx, Handoff, Note, Out, ReqId, Role};
use super::super::jobs::JobState;
use super::super::record::{MigrationPhase, MigrationRow, Record, RequestRow};
use super::super::{Backoff, Filesystem, Opening, Slot};
use super::{ASK_MS, MoveState};
use crate::ids::CommitId;
use crate::model::{FORMAT_VERSION, Problem, Reason};
use crate::run::JobRow;

impl Filesystem {
    pub(in super::super) fn handle_export(&mut self, req: ReqId, handoff: Handoff, ctx: &Ctx, out: &mut Out) {
        let answer = self.checked_handoff(&handoff);
        if answer == Ok(true) {
            let row = MigrationRow {
                version: FORMAT_VERSION,
                phase: MigrationPhase::ImportStart,
                mig: handoff.mig,
                attempt: handoff.attempt,
                epoch: handoff.epoch,
                peer: handoff.from,
                final_commit: Some(handoff.final_commit),
                started: ctx.now,
                frozen: None,
                jobs: handoff.jobs,
                requests: handoff.requests,
            };
            // Only authority says which epoch it is: a peer that is no owner must not be able to make this copy refuse the real one.
            self.moving = MoveState { last: self.moving.last.take(), ..MoveState::default() };
            self.save_move("import-start", row, out);
            self.backoff.insert(Slot::Move, Backoff { failures: 0, not_before: ctx.now.plus_ms(ASK_MS / 4) });
        }
        out.answers.push((req, Answer::Plain(answer.map(|_| ()))));
    }

    /// `Ok(false)`: it was said before.
    pub(super) fn checked_handoff(&self, handoff: &Handoff) -> Result<bool, Problem> {
        if !self.is_active() {
            return Err(self.not_here());
        }
        if self.role() != Some(Role::Replica) {
            return Err(Problem::new(Reason::ReceiverIsOwner, "this copy is an owner's already"));
        }
        if handoff.epoch < self.epoch() {
            let text = format!("epoch {} is older than {}, known here", handoff.epoch, self.epoch());
            return Err(Problem::new(Reason::StaleEpoch, text));
        }
        if let Some(row) = &self.migration {
            return if (row.mig, row.attempt, row.final_commit) == (handoff.mig, handoff.attempt, Some(handoff.final_commit)) {
                Ok(false)
            } else {
                Err(Problem::new(Reason::Busy, "an earlier handoff to this node is not decided yet"))
            };
        }
        self.checked_giver(&handoff.from.node, handoff.epoch)?;
        if !self.commits.contains_key(&handoff.final_commit) {
            return Err(Problem::new(Reason::NotFound, format!("the final commit {} is not here", handoff.final_commit)));
        }
        if self.is_running(Slot::Receive) {
            return Err(Problem::new(Reason::Busy, "a transfer to this copy is not over yet"));
        }
        if self.head {
            return Err(Problem::new(Reason::Busy, "the head of an earlier ownership is still here, as something has it mounted"));
        }
        Ok(true)
    }

    pub(super) fn judge_import(&mut self, row: &MigrationRow, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let Some(final_commit) = row.final_commit else { return };
        // An older epoch of the same owner: the API was restored; it says so there, and here nothing is decided. Any other owner never
        // handed over to us.
        let undecided =
            view.owner == row.peer && (view.epoch < row.epoch || view.epoch == row.epoch && view.pending == Some((row.mig, row.attempt)));
        if undecided {
            self.backoff.insert(Slot::Move, Backoff { failures: 0, not_before: ctx.now.plus_ms(ASK_MS) });
        } else if view.owner == self.here.place && view.epoch > row.epoch {
            self.take_over(final_commit, view, (row.jobs.clone(), row.requests.clone()), out);
        } else {
            out.records.push(Record::MigrationGone("import-abort"));
            self.migration = None;
        }
    }

    /// Authority was taken from a lost owner, for this copy. What is just being received from that owner comes first or not at all: a
    /// commit that arrived after the head was made would be newer than what the head holds.
    pub(super) fn take_over_newest(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        if self.is_running(Slot::Receive) {
            self.cancel(Slot::Receive, out);
            self.backoff.insert(Slot::Move, Backoff { failures: 0, not_before: ctx.now.plus_ms(ASK_MS) });
            return;
        }
        match self.newest().map(|c| c.id) {
            Some(id) => self.take_over(id, view, (Vec::new(), Vec::new()), out),
            None => self.hold("HeadMissing", Reason::NoCommits, "this copy is to be the owner's, but holds no commit", ctx, out),
        }
    }

    /// `EImportFinish(true)`: the owner from now on; writable once the head is made and authority opened (R4).
    pub(super) fn take_over(
        &mut self,
        from: CommitId,
        view: &AuthorityView,
        (jobs, requests): (Vec<JobRow>, Vec<RequestRow>),
        out: &mut Out,
    ) {
        if let Some(partial) = self.partial.take() {
            self.checkpoint = None;
            self.discard.insert(partial.target.id);
            out.records.push(Record::PartialGone);
        }
        let (epoch, attempt) = (view.epoch, view.attempt);
        self.save_base(
            "import-finish",
            |b| {
                b.role = Role::Owner;
                b.epoch = epoch;
                b.attempt = attempt;
                b.opened = None;
                b.frozen = None;
                b.head_from = Some(from);
            },
            out,
        );
        for row in jobs {
            out.records.push(Record::Job(Box::new(row.clone())));
            self.jobs.insert(row.uid, JobState::recovered(row));
        }
        for row in requests {
            if !self.requests.contains_key(&row.uid) {
                self.put_request("commit-intent", row, out);
            }
        }
        if self.migration.take().is_some() {
            out.records.push(Record::MigrationGone("import-over"));
        }
        self.opening = Opening::Closed;
        self.meta_dirty = true;
        self.specs_applied = false;
        self.wake(Slot::Life);
        let message = format!("this node owns it in epoch {epoch}, from commit {from}");
        out.notes.push(Note { warning: false, reason: "TookOver".into(), message });
    }
}
