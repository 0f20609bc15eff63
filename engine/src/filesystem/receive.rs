//! What may come: who lists versions, which offer is taken, and what follows when a transfer has ended. [`super::inbox`] keeps the transfer.

use super::event::{Answer, Out, Task};
use super::record::CheckpointRow;
use super::tasks::{Slot, desk};
use super::trouble::Trouble;
use super::{Ctx, Filesystem};
use crate::format::Kind;
use crate::ids::{CommitId, NodeName, OpId};
use crate::model::{Commit, Problem, Reason, Versions, VersionsRole};
use crate::words::{Offer, ReqId, Role};

impl Filesystem {
    pub(super) fn handle_versions(&mut self, req: ReqId, from: &NodeName, out: &mut Out) {
        let creating = matches!(self.standing.life(), None | Some(super::Life::Creating));
        let answer = if !self.standing.is_inspected() || creating {
            Err(self.standing.not_here())
        } else {
            self.checked_lister(from).map(|()| Box::new(self.versions()))
        };
        out.answers.push((req, Answer::Versions(answer)));
    }

    /// What a plan is made from.
    pub(super) fn versions(&self) -> Versions {
        let role = match (self.standing.is_deleting(), self.standing.role()) {
            (true, _) => VersionsRole::Deleting,
            (_, Some(Role::Owner)) => VersionsRole::Owner,
            (_, Some(Role::Replica)) => VersionsRole::Replica,
            (_, None) => VersionsRole::Absent,
        };
        Versions {
            role,
            epoch: self.standing.epoch(),
            commits: self.history.in_order().into_iter().cloned().collect(),
            resume: self.inbox.resume(),
            free_bytes: self.usage.free(),
            stream_version: self.here.stream_version,
            takes_older: true,
        }
    }

    pub(super) fn handle_offer(&mut self, req: ReqId, offer: Offer, ctx: &Ctx, out: &mut Out) {
        if self.history.has(offer.target.id) && self.standing.is_active() && self.checked_lister(&offer.from).is_ok() {
            out.answers.push((req, Answer::Receive(Ok(offer.target.id))));
            return;
        }
        if let Err(problem) = self.checked_offer(&offer, out) {
            out.answers.push((req, Answer::Receive(Err(problem))));
            return;
        }
        // Only of an operator that doesn't say who owns it: else the object has named this epoch before. Who lends one commit names none.
        if !self.is_fetched(&offer) {
            self.standing.see_epoch(offer.epoch, out);
        }
        let qgroup = self.standing.qgroup();
        self.inbox.admit(req, offer, qgroup, &mut desk!(self, ctx, out));
    }

    fn checked_offer(&mut self, offer: &Offer, out: &mut Out) -> Result<(), Problem> {
        if !self.standing.is_active() {
            return Err(self.standing.not_here());
        }
        let epoch = self.standing.epoch();
        let fetched = self.is_fetched(offer);
        if self.standing.is_owner() && !fetched {
            return Err(Problem::new(
                Reason::ReceiverIsOwner,
                format!(
                    "node {} owns this Filesystem (epoch {epoch}); an owner's data is never overwritten by a push",
                    self.here.place.node
                ),
            ));
        }
        if !fetched {
            self.checked_sender(&offer.from, offer.epoch)?;
        }
        Kind::Commit.check("the offered commit", offer.target.version).map_err(|e| e.problem())?;
        if offer.target.fs_id != self.id {
            return Err(Problem::new(Reason::Invalid, "the offered commit belongs to another Filesystem"));
        }
        if offer.epoch < epoch && !fetched {
            return Err(Problem::new(Reason::StaleEpoch, format!("the sender's epoch {} is older than {epoch}, known here", offer.epoch)));
        }
        let to_be_owner = !self.standing.is_owner() && self.wish.role() == Some(Role::Owner);
        if self.handoff.is_undecided() || to_be_owner {
            return Err(Problem::new(Reason::Busy, "authority is being given to this node; it takes no commit until that is decided"));
        }
        if self.tasks.is_running(Slot::Receive) {
            self.supersede(offer, out);
            return Err(Problem::new(Reason::Busy, "another transfer to this Filesystem runs; it goes first"));
        }
        if self.history.is_removing(offer.target.id) {
            return Err(Problem::new(Reason::Busy, "this commit is being removed here"));
        }
        self.inbox.checked(offer)?;
        if fetched {
            self.history.checked_older(&offer.target, offer.base)?;
        } else {
            self.history.checked_base(&offer.target, offer.base)?;
        }
        self.inbox.checked_resume(offer)
    }

    /// One kept commit, from the one node that the object names for it: an owner may take that, too, as its head isn't touched, and of
    /// whoever holds it, also of a copy that was superseded and so knows an older epoch only.
    fn is_fetched(&self, offer: &Offer) -> bool {
        self.wish.present().is_some_and(|p| p.fetches(offer.target.id, &offer.from))
    }

    /// A sender that comes again for the same target has given its old connection up: the old transfer is cancelled.
    fn supersede(&mut self, offer: &Offer, out: &mut Out) {
        let is_it =
            |_: Slot, task: &Task| matches!(task, Task::Receive { offer: o, .. } if o.job == offer.job && o.target.id == offer.target.id);
        if self.tasks.runs(is_it) {
            self.tasks.cancel(Slot::Receive, out);
        }
    }

    pub(super) fn on_checkpoint(&mut self, op: OpId, req: ReqId, row: CheckpointRow, out: &mut Out) {
        if self.tasks.slot_of(op) == Some(Slot::Receive) && !self.standing.is_deleting() {
            self.inbox.on_checkpoint(row, out);
        }
        out.answers.push((req, Answer::Checkpointed));
    }

    pub(super) fn on_receive_ended(&mut self, req: ReqId, target: CommitId, result: Result<Commit, Problem>, out: &mut Out) {
        let verdict = match &result {
            Ok(_) if self.standing.is_deleting() => Err(self.standing.not_here()),
            Ok(_) => Ok(target),
            Err(problem) => Err(problem.clone()),
        };
        out.answers.push((req, Answer::Receive(verdict)));
        self.tasks.rest(Slot::Receive); // the sender decides when to come again
        if self.standing.is_deleting() {
            return;
        }
        self.usage.look();
        match result {
            Ok(commit) => {
                self.history.put("received", commit.clone(), out);
                self.history.finish_request_of(&commit, out);
                self.inbox.on_received(commit.id, out);
                self.troubles.clear(Trouble::ReceiveFailed);
                out.note("Received", format!("commit {}", commit.id));
            }
            Err(problem) => {
                self.inbox.on_failed(target, problem.reason, out);
                if !matches!(problem.reason, Reason::Cancelled | Reason::Unreachable) {
                    self.troubles.raise(Trouble::ReceiveFailed, problem, out);
                }
            }
        }
    }
}
