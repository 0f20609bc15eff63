//! Taking a commit from a peer: admission, checkpoints, the end. One transfer at a time; the bytes never come through here.
//!
//! *receive-intent* → stream, with *receive-checkpoint*s → `snapshot -r` → *received* (the commit, and the end of the
//! receive, in one transaction) → ack. A crash in between: what is complete on disk is taken in, else the last
//! checkpoint is where it goes on.

use super::event::{Answer, Ctx, Note, Out, ReceiveOffer, ReqId, Role, Task, TaskDone};
use super::record::{CheckpointRow, PartialRow, Record};
use super::{Filesystem, Slot};
use crate::ids::{BootTime, CommitId, NodeName, OpId};
use crate::model::{Commit, FORMAT_VERSION, Problem, Reason, Versions, VersionsRole};

impl Filesystem {
    pub(super) fn handle_versions(&mut self, req: ReqId, from: &NodeName, out: &mut Out) {
        let answer = if !self.inspected || self.base.is_none() || self.life() == Some(super::Life::Creating) {
            Err(self.not_here())
        } else {
            self.checked_lister(from).map(|()| Box::new(self.versions()))
        };
        out.answers.push((req, Answer::Versions(answer)));
    }

    /// What a plan is made from.
    pub(super) fn versions(&self) -> Versions {
        let role = match (self.life(), self.role()) {
            (Some(super::Life::Deleting | super::Life::Gone), _) => VersionsRole::Deleting,
            (_, Some(Role::Owner)) => VersionsRole::Owner,
            (_, Some(Role::Replica)) => VersionsRole::Replica,
            (_, None) => VersionsRole::Absent,
        };
        let (bytes, limit) = self.usage;
        Versions {
            role,
            epoch: self.base.as_ref().map_or(crate::ids::Epoch(0), |b| b.epoch),
            commits: self.history().into_iter().cloned().collect(),
            resume: self.checkpoint.as_ref().map(|c| c.token.clone()),
            free_bytes: (limit > 0).then(|| limit.saturating_sub(bytes)),
            stream_version: self.here.stream_version,
        }
    }

    pub(super) fn handle_offer(&mut self, req: ReqId, offer: ReceiveOffer, out: &mut Out) {
        if self.commits.contains_key(&offer.target.id) && self.is_active() && self.checked_lister(&offer.from).is_ok() {
            out.answers.push((req, Answer::Receive(Ok(offer.target.id))));
            return;
        }
        if let Err(problem) = self.checked_offer(&offer, out) {
            out.answers.push((req, Answer::Receive(Err(problem))));
            return;
        }
        self.admit(req, offer, out);
    }

    fn checked_offer(&mut self, offer: &ReceiveOffer, out: &mut Out) -> Result<(), Problem> {
        if !self.is_active() {
            return Err(self.not_here());
        }
        let epoch = self.base.as_ref().map_or(crate::ids::Epoch(0), |b| b.epoch);
        if self.role() == Some(Role::Owner) {
            return Err(Problem::new(
                Reason::ReceiverIsOwner,
                format!(
                    "node {} owns this Filesystem (epoch {epoch}); an owner's data is never overwritten by a push",
                    self.here.place.node
                ),
            ));
        }
        self.checked_sender(&offer.from, offer.epoch)?;
        if offer.target.fs_id != self.id || offer.target.version > FORMAT_VERSION {
            return Err(Problem::new(Reason::Invalid, "the offered commit belongs to another Filesystem or to a newer format"));
        }
        if offer.epoch < epoch {
            return Err(Problem::new(Reason::StaleEpoch, format!("the sender's epoch {} is older than {epoch}, known here", offer.epoch)));
        }
        if self.migration.is_some() || self.present().is_some_and(|p| p.role == Role::Owner) {
            return Err(Problem::new(Reason::Busy, "authority is being given to this node; it takes no commit until that is decided"));
        }
        if self.is_running(Slot::Receive) {
            self.supersede(offer, out);
            return Err(Problem::new(Reason::Busy, "another transfer to this Filesystem runs; it goes first"));
        }
        if self.removing.contains(&offer.target.id) {
            return Err(Problem::new(Reason::Busy, "this commit is being removed here"));
        }
        if self.discard.contains(&offer.target.id) {
            return Err(Problem::new(Reason::Busy, "an older partial transfer is being cleared away"));
        }
        self.checked_base(offer)?;
        self.checked_resume(offer)
    }

    /// A sender that goes on from an older point of this very transfer listed versions before the last checkpoint: it has
    /// to list again, as starting anew would send all of it twice.
    fn checked_resume(&self, offer: &ReceiveOffer) -> Result<(), Problem> {
        match (&self.checkpoint, &offer.resume) {
            (Some(here), Some(asked)) if here.token != *asked && here.token.target == offer.target.id && here.token.base == offer.base => {
                Err(Problem::new(
                    Reason::BaseGone,
                    format!("this replica is at byte {} of it, not at {}; list versions and plan again", here.token.offset, asked.offset),
                ))
            }
            _ => Ok(()),
        }
    }

    /// A sender that comes again for the same target has given its old connection up: the old transfer is cancelled.
    fn supersede(&mut self, offer: &ReceiveOffer, out: &mut Out) {
        let same = self
            .running
            .values()
            .any(|r| matches!(&r.task, Task::Receive { offer: o, .. } if o.job == offer.job && o.target.id == offer.target.id));
        if same {
            self.cancel(Slot::Receive, out);
        }
    }

    fn checked_base(&self, offer: &ReceiveOffer) -> Result<(), Problem> {
        // A transient commit is no history of its own, but both sides may have it as a base.
        let newest = self.newest_visible();
        let not_older = |id| self.commits.get(&id).is_some_and(|c| c.transient && newest.is_none_or(|n| n.time <= c.time));
        if offer.base.is_some_and(not_older) {
            return Ok(());
        }
        match (offer.base, newest.map(|c| c.id)) {
            (None, None) => Ok(()), // a full copy beside transient ones loses nothing
            (None, Some(have)) => Err(Problem::new(
                Reason::BaseGone,
                format!("this replica already has commits (newest {have}); a full copy would lose them: plan again"),
            )),
            (Some(base), Some(have)) if base == have => Ok(()),
            (Some(base), _) if self.commits.contains_key(&base) => {
                Err(Problem::new(Reason::Diverged, format!("this replica has commits after {base}; list versions and plan again")))
            }
            (Some(base), _) => Err(Problem::new(Reason::BaseGone, format!("commit {base} is not here; list versions and plan again"))),
        }
    }

    fn admit(&mut self, req: ReqId, offer: ReceiveOffer, out: &mut Out) {
        let partial = PartialRow { version: FORMAT_VERSION, target: offer.target.clone(), base: offer.base };
        let here = self.checkpoint.as_ref().map(|c| &c.token);
        let goes_on = here.is_some_and(|t| offer.resume.as_ref() == Some(t) && t.target == offer.target.id && t.base == offer.base);
        let checkpoint = if goes_on { self.checkpoint.clone().map(Box::new) } else { None };
        if self.partial.as_ref() != Some(&partial) || !goes_on {
            if let Some(old) = self.partial.take()
                && old.target.id != partial.target.id
            {
                self.discard.insert(old.target.id);
            }
            self.checkpoint = None;
            out.records.push(Record::PartialGone);
            out.records.push(Record::Partial(Box::new(partial.clone())));
            self.partial = Some(partial);
        }
        // Only of an operator that doesn't say who owns it: else the object has named this epoch before.
        let epoch = offer.epoch;
        if self.base.as_ref().is_some_and(|b| b.epoch < epoch) {
            self.save_base("epoch-seen", |b| b.epoch = epoch, out);
            self.meta_dirty = true;
        }
        self.start(Slot::Receive, Task::Receive { req, qgroup: self.qgroup(), offer: Box::new(offer), checkpoint }, out);
    }

    pub(super) fn on_checkpoint(&mut self, op: OpId, req: ReqId, row: CheckpointRow, out: &mut Out) {
        let current = self.running.get(&op).is_some_and(|r| r.slot == Slot::Receive);
        if current && !self.is_deleting() {
            out.records.push(Record::Checkpoint(Box::new(row.clone())));
            self.checkpoint = Some(row);
        }
        out.answers.push((req, Answer::Checkpointed));
    }

    pub(super) fn on_receive_done(&mut self, task: Task, result: Result<TaskDone, Problem>, out: &mut Out) {
        let Task::Receive { req, offer, .. } = task else { return };
        let verdict = match &result {
            Ok(_) if self.is_deleting() => Err(self.not_here()),
            Ok(_) => Ok(offer.target.id),
            Err(problem) => Err(problem.clone()),
        };
        out.answers.push((req, Answer::Receive(verdict)));
        self.backoff.remove(&Slot::Receive); // the sender decides when to come again
        if self.is_deleting() {
            return;
        }
        match result {
            Ok(TaskDone::Received { commit }) => self.on_received(*commit, out),
            Ok(_) => {}
            Err(problem) => self.on_receive_failed(offer.target.id, problem, out),
        }
    }

    fn on_received(&mut self, commit: Commit, out: &mut Out) {
        let id = commit.id;
        out.records.push(Record::Commit("received", Box::new(commit.clone())));
        out.records.push(Record::PartialGone);
        self.finish_request_of(&commit, out);
        self.commits.insert(id, commit);
        self.partial = None;
        self.checkpoint = None;
        self.discard.insert(id);
        self.clear("ReceiveFailed");
        self.usage_due = BootTime(0);
        out.notes.push(Note { warning: false, reason: "Received".into(), message: format!("commit {id}") });
    }

    fn on_receive_failed(&mut self, target: CommitId, problem: Problem, out: &mut Out) {
        // What is wrong with the bytes can't be mended by going on from them.
        if matches!(problem.reason, Reason::CorruptStream | Reason::DigestMismatch | Reason::Unsupported) {
            self.partial = None;
            self.checkpoint = None;
            out.records.push(Record::PartialGone);
            self.discard.insert(target);
        }
        if !matches!(problem.reason, Reason::Cancelled | Reason::Unreachable) {
            self.trouble("ReceiveFailed", problem, out);
        }
        self.usage_due = BootTime(0);
    }

    /// What arrives of a commit that is to be removed is given up; true while it may still arrive.
    pub(super) fn stops_receiving(&mut self, id: CommitId, out: &mut Out) -> bool {
        if self.partial.as_ref().is_none_or(|p| p.target.id != id) {
            return false;
        }
        if self.is_running(Slot::Receive) {
            self.cancel(Slot::Receive, out);
            return true;
        }
        self.partial = None;
        self.checkpoint = None;
        self.discard.insert(id);
        out.records.push(Record::PartialGone);
        false
    }

    pub(super) fn advance_discard(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.is_deleting() || !self.inspected || !self.is_ready(Slot::Discard, ctx.boot) {
            return;
        }
        let receiving = self.partial.as_ref().map(|p| p.target.id).filter(|_| self.is_running(Slot::Receive));
        if let Some(target) = self.discard.iter().copied().find(|t| Some(*t) != receiving) {
            self.start(Slot::Discard, Task::Discard(target), out);
        }
    }

    /// After a restart: partials that the journal does not know, or whose checkpoint is not on disk, are cleared away.
    pub(super) fn reconcile_partial(&mut self, checkpoints: &[(CommitId, u64)], incoming: &[CommitId], out: &mut Out) {
        let arrived = self.partial.as_ref().is_some_and(|p| self.commits.contains_key(&p.target.id));
        let lost = self.checkpoint.as_ref().is_some_and(|c| !checkpoints.contains(&(c.token.target, c.token.offset)));
        if arrived || (self.partial.is_some() && (lost || self.checkpoint.is_none())) {
            self.partial = None;
            self.checkpoint = None;
            out.records.push(Record::PartialGone);
        }
        let keep = self.partial.as_ref().map(|p| p.target.id);
        let strays = incoming.iter().copied().chain(checkpoints.iter().map(|(t, _)| *t)).filter(|t| Some(*t) != keep);
        self.discard.extend(strays);
    }

    pub(super) fn advance_usage(&mut self, ctx: &Ctx, out: &mut Out) {
        if self.is_active() && self.usage_due <= ctx.boot && self.is_ready(Slot::Usage, ctx.boot) {
            self.start(Slot::Usage, Task::Usage { qgroup: self.qgroup() }, out);
        }
    }

    pub(super) fn on_usage_done(&mut self, result: &Result<TaskDone, Problem>, ctx: &Ctx) {
        if let Ok(TaskDone::Usage { bytes, limit }) = result {
            self.usage = (*bytes, *limit);
        }
        let (bytes, limit) = self.usage;
        let nearly_full = limit > 0 && bytes >= limit / 10 * 9;
        self.usage_due = ctx.boot.plus_ms(if nearly_full { super::USAGE_SOON_MS } else { super::USAGE_EVERY_MS });
    }
}
