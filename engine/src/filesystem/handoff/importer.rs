//! The side that takes authority: `EImportStart`, the wait for what authority decides, `EImportFinish`.

use super::super::Filesystem;
use super::super::event::{self, Answer, Ctx, Out};
use super::super::record::RequestRow;
use super::super::tasks::Slot;
use super::super::trouble::Trouble;
use super::{ASK_MS, Importing};
use crate::authority::verdict::{ImportStanding, of_import};
use crate::authority::{Attempt, Authority};
use crate::ids::CommitId;
use crate::model::{Problem, Reason};
use crate::run::JobRow;
use crate::words::{ReqId, Role};

impl Filesystem {
    pub(in crate::filesystem) fn handle_export(&mut self, req: ReqId, handoff: event::Handoff, ctx: &Ctx, out: &mut Out) {
        let answer = self.checked_handoff(&handoff);
        if self.handoff.handed_over().is_some() {
            self.tasks.wake(Slot::Move); // the last handoff the other way is not over here: it is looked at now
        }
        if answer == Ok(true) {
            // Only authority says which epoch it is: a peer that is no owner must not be able to make this copy refuse the real one.
            self.handoff.import(handoff, ctx, out);
            self.handoff.settle_doubt();
            self.outbox.stale();
            self.tasks.sleep(Slot::Move, ASK_MS / 4, ctx);
        }
        out.answers.push((req, Answer::Plain(answer.map(|_| ()))));
    }

    /// `Ok(false)`: it was said before.
    fn checked_handoff(&self, handoff: &event::Handoff) -> Result<bool, Problem> {
        if !self.standing.is_active() {
            return Err(self.standing.not_here());
        }
        if self.wish.absent().is_some() {
            return Err(Problem::new(Reason::Deleting, "this copy is told to go"));
        }
        if self.standing.role() != Some(Role::Replica) {
            return Err(Problem::new(Reason::ReceiverIsOwner, "this copy is an owner's already"));
        }
        let known = self.standing.epoch();
        if handoff.epoch < known {
            return Err(Problem::new(Reason::StaleEpoch, format!("epoch {} is older than {known}, known here", handoff.epoch)));
        }
        if let Some(epoch) = self.handoff.handed_over() {
            let text = format!(
                "this copy keeps what it handed over in epoch {epoch}, as the owner of then was not seen to open: if that is given up, \
                 take what you need of it and `kubectl dot drop` it"
            );
            return Err(Problem::new(Reason::Busy, text));
        }
        if self.handoff.is_in_hand() {
            return if self.handoff.import_start() == Some((handoff.mig, handoff.attempt, handoff.final_commit)) {
                Ok(false)
            } else {
                Err(Problem::new(Reason::Busy, "an earlier handoff to this node is not decided yet"))
            };
        }
        self.checked_giver(&handoff.from.node, handoff.epoch)?;
        if !self.history.has(handoff.final_commit) {
            return Err(Problem::new(Reason::NotFound, format!("the final commit {} is not here", handoff.final_commit)));
        }
        if self.tasks.is_running(Slot::Receive) {
            return Err(Problem::new(Reason::Busy, "a transfer to this copy is not over yet"));
        }
        if self.head.is_there() {
            return Err(Problem::new(Reason::Busy, "the head of an earlier ownership is still here, as something has it mounted"));
        }
        Ok(true)
    }

    pub(super) fn judge_import(&mut self, i: Importing, now: &Authority, ctx: &Ctx, out: &mut Out) {
        let of = Attempt { mig: i.terms.mig, attempt: i.attempt, epoch: i.terms.epoch };
        match of_import(now, &self.here.place, &i.terms.peer, of) {
            ImportStanding::Undecided => self.tasks.sleep(Slot::Move, ASK_MS, ctx),
            ImportStanding::Mine => self.take_over(i.commit, now, (i.jobs, i.requests), out),
            ImportStanding::NotMine => self.handoff.end("import-abort", out),
        }
    }

    /// Authority was taken from a lost owner, for this copy. What is just being received from that owner comes first or not at all: a
    /// commit that arrived after the head was made would be newer than what the head holds.
    pub(super) fn take_over_newest(&mut self, now: &Authority, ctx: &Ctx, out: &mut Out) {
        if self.tasks.is_running(Slot::Receive) {
            self.tasks.cancel(Slot::Receive, out);
            return self.tasks.sleep(Slot::Move, ASK_MS, ctx);
        }
        match self.head_begins_with(out) {
            Some(id) => self.take_over(id, now, (Vec::new(), Vec::new()), out),
            None => self.hold(Trouble::HeadMissing, Reason::NoCommits, "this copy is to be the owner's, but holds no commit", ctx, out),
        }
    }

    /// The newest commit of the head's own line. One that only keeps what a reset took away is none: the head went on from what it was reset to
    /// (ADR 7).
    fn head_begins_with(&self, out: &mut Out) -> Option<CommitId> {
        let newest = self.history.newest()?;
        let Some(reset_to) = newest.reset_to else { return Some(newest.id) };
        if self.history.has(reset_to) {
            return Some(reset_to);
        }
        let text = format!(
            "the volume had been reset to commit {reset_to}, which is not in this copy: it begins with what it held before that, commit {}",
            newest.id
        );
        out.warn("ResetLost", text);
        Some(newest.id)
    }

    /// `EImportFinish(true)`: the owner from now on; writable once the head is made and authority opened (R4).
    pub(super) fn take_over(&mut self, from: CommitId, now: &Authority, (jobs, requests): (Vec<JobRow>, Vec<RequestRow>), out: &mut Out) {
        self.inbox.close(out);
        self.standing.take_over(from, now, out);
        for row in jobs {
            self.outbox.adopt(row, out);
        }
        for row in requests {
            self.history.adopt_request(row, out);
        }
        self.handoff.end("import-over", out);
        self.head.close();
        self.outbox.stale();
        self.tasks.wake(Slot::Life);
        out.note("TookOver", format!("this node owns it in epoch {}, from commit {from}", now.epoch));
    }
}
