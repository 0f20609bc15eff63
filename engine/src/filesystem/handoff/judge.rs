//! What follows from authority as the API server shows it: the only place where a handoff is decided, on either side.

use super::super::Filesystem;
use super::super::event::{Ctx, Out};
use super::super::record::Life;
use super::super::tasks::Slot;
use super::super::trouble::{MovePhase, Trouble};
use super::{ASK_MS, Agreed, Exporting, InHand, Kept, LOOK_AGAIN_MS, Phase, Stall};
use crate::authority::verdict::{ExportStanding, KeptStanding, OwnerStanding, of_export, of_kept, of_owner};
use crate::authority::{Attempt, Authority, Read, Refusal};
use crate::ids::Epoch;
use crate::model::{Problem, Reason};
use crate::words::Role;

impl Filesystem {
    /// Authority was read or swapped.
    pub(in crate::filesystem) fn on_swapped(&mut self, result: Result<Box<Read>, Problem>, ctx: &Ctx, out: &mut Out) {
        match result {
            Ok(read) => {
                self.troubles.clear(Trouble::AuthorityUnreachable);
                self.judge(&read, ctx, out);
            }
            Err(problem) => self.troubles.raise(Trouble::AuthorityUnreachable, problem, out),
        }
    }

    /// What follows from authority as it stands. The only place where a handoff is decided, on either side; by which rules, stands in
    /// [`crate::authority::verdict`].
    fn judge(&mut self, read: &Read, ctx: &Ctx, out: &mut Out) {
        let Some(now) = &read.authority else {
            return self.hold(Trouble::AuthorityUnknown, Reason::AuthorityUnknown, &Refusal::NoAuthority.to_string(), ctx, out);
        };
        match self.handoff.in_hand.clone() {
            None => self.judge_unmoved(now, ctx, out),
            Some(InHand::Importing(i)) => self.judge_import(i, now, ctx, out),
            Some(InHand::Exporting(e)) => self.judge_export(&e, now, read.is_deleting(), ctx, out),
            Some(InHand::Kept(kept)) => self.judge_kept(kept, now, ctx, out),
        }
    }

    fn judge_export(&mut self, e: &Exporting, now: &Authority, deleting: bool, ctx: &Ctx, out: &mut Out) {
        // Until `pending` was seen its attempt is the one that authority has.
        let of = Attempt { mig: e.terms.mig, attempt: e.attempt().unwrap_or(now.attempt), epoch: e.terms.epoch };
        let standing = of_export(now, &self.here.place, &e.terms.peer, of);
        self.handoff.stray(standing == ExportStanding::OtherPending);
        match (standing, &e.phase) {
            // Another's handoff is disowned next.
            (_, Phase::Begun { .. } | Phase::Aborted(..)) | (ExportStanding::OtherPending, _) => {}
            (ExportStanding::Regressed, _) => self.hold_regressed(now.epoch, ctx, out),
            // A person accepted for this copy, or it was aborted.
            (ExportStanding::Reinstated | ExportStanding::Aborted, _) => self.abort_here(e, out),
            (ExportStanding::Pending(attempt), _) => self.on_pending_seen(e, attempt, ctx, out),
            (ExportStanding::Unset, Phase::Frozen(_)) if deleting || !e.live || !self.is_handoff_wanted(e) => self.abort_here(e, out),
            (ExportStanding::Unset, Phase::Frozen(_)) => self.look_again(ctx),
            (ExportStanding::Unset, _) => {
                let text = "the API has lost the handoff that this head is fenced for (was it restored?): it stays fenced until `kubectl dot accept`";
                self.hold(Trouble::PendingLost, Reason::EpochRegression, text, ctx, out);
            }
            (ExportStanding::HandedOver { opened }, Phase::Exported(..)) => self.hand_over(e, now, opened, ctx, out),
            (ExportStanding::HandedOver { .. } | ExportStanding::Elsewhere, _) => self.supersede_owner(now, ctx, out),
        }
    }

    fn on_pending_seen(&mut self, e: &Exporting, attempt: u64, ctx: &Ctx, out: &mut Out) {
        if let Phase::Frozen(cut) = &e.phase {
            let agreed = Agreed::with(&e.terms.peer.node, attempt, None);
            self.handoff.enter("mig-pending", Phase::Pending(cut.clone(), agreed, Stall::default()), out);
            self.outbox.stale();
        }
        self.handoff.looked();
        self.apply_job_specs(ctx, out);
    }

    pub(super) fn hold(&mut self, trouble: Trouble, reason: Reason, text: &str, ctx: &Ctx, out: &mut Out) {
        self.troubles.raise(trouble, Problem::new(reason, text), out);
        self.look_again(ctx);
    }

    fn look_again(&mut self, ctx: &Ctx) {
        self.tasks.sleep(Slot::Move, LOOK_AGAIN_MS, ctx);
    }

    fn hold_regressed(&mut self, epoch: Epoch, ctx: &Ctx, out: &mut Out) {
        let text = format!("the API shows epoch {epoch}, this node has seen {}: `kubectl dot accept` goes on", self.standing.epoch());
        self.hold(Trouble::EpochRegression, Reason::EpochRegression, &text, ctx, out);
    }

    fn abort_here(&mut self, e: &Exporting, out: &mut Out) {
        self.troubles.clear(Trouble::PendingLost);
        self.troubles.clear(Trouble::EpochRegression);
        if let Some(cut) = e.cut().cloned() {
            self.handoff.enter("mig-abort", Phase::Aborted(cut, e.attempt(), e.give_up().cloned()), out);
            self.outbox.stale();
        }
    }

    /// The Commit was won, by us or by whoever finished it: this copy is a replica now. It keeps the final commit until the new owner has
    /// opened (R4).
    fn hand_over(&mut self, e: &Exporting, now: &Authority, opened: bool, ctx: &Ctx, out: &mut Out) {
        let kept = self.kept_of(e).filter(|_| !opened);
        self.standing.hand_over(now, out);
        self.head.close();
        self.end_handoff("mig-end", MovePhase::Done, "", ctx, out); // first: what was sent stands in its job
        if let Some(kept) = kept {
            self.handoff.keep(kept, out);
            self.tasks.sleep(Slot::Move, ASK_MS, ctx);
        }
        self.forget_sending(out);
    }

    /// Handed over, with the final commit kept until the new owner has opened. Authority may come back (R4): then this copy begins with what
    /// it handed over, once the old head is gone.
    fn judge_kept(&mut self, kept: Kept, now: &Authority, ctx: &Ctx, out: &mut Out) {
        match of_kept(now, &self.here.place, &kept.terms.peer, kept.made()) {
            KeptStanding::Regressed => self.hold_regressed(now.epoch, ctx, out),
            KeptStanding::Back if !self.head.is_there() => self.take_back(kept, now, ctx, out),
            KeptStanding::Over => {
                self.troubles.clear(Trouble::EpochRegression);
                self.handoff.end("mig-end", out);
            }
            KeptStanding::Back | KeptStanding::Needed => self.look_again(ctx),
        }
    }

    /// Where something newer has come from the new owner, which opened unseen, that is what it begins with, and what left with authority was
    /// that owner's to do.
    fn take_back(&mut self, kept: Kept, now: &Authority, ctx: &Ctx, out: &mut Out) {
        let is_newest = self.history.newest().is_some_and(|c| c.id == kept.commit);
        if is_newest && !self.tasks.is_running(Slot::Receive) {
            self.take_over(kept.commit, now, (kept.jobs, kept.requests), out);
        } else {
            self.take_over_newest(now, ctx, out);
        }
    }

    /// Jobs and wanted commits are the new owner's. A commit that was only intended here is made there.
    fn forget_sending(&mut self, out: &mut Out) {
        self.outbox.drop_all(&mut self.tasks, out);
        self.history.forget_pending(out);
    }

    /// Authority went elsewhere without us. What is here may hold what nobody else has: it is fenced and kept.
    fn supersede_owner(&mut self, now: &Authority, ctx: &Ctx, out: &mut Out) {
        let epoch = now.epoch;
        self.standing.supersede(epoch, out);
        self.head.close();
        self.head.undo_fence(false); // whatever had begun it: this head is not thawed any more
        self.handoff.settle_doubt();
        self.handoff.stray(false);
        self.forget_sending(out);
        let text = format!("authority went to node {} in epoch {epoch}, without this one", now.owner.node);
        out.warn("Superseded", text);
        if self.handoff.is_in_hand() {
            self.end_handoff("mig-superseded", MovePhase::Cancelled, "authority was taken by another node", ctx, out);
        }
    }

    /// What a superseded copy says, read off what is recorded: a restart doesn't silence it, and it says "fenced" once that is so.
    pub(in crate::filesystem) fn superseded(&self) -> Option<Problem> {
        let base = self.standing.base().filter(|b| b.superseded && b.life == Life::Active)?;
        let owner = match self.wish.present().and_then(|p| p.owner.as_ref()).filter(|o| **o != self.here.place) {
            Some(owner) => format!("node {} owns it now", owner.node),
            None => "another node owns it".to_owned(),
        };
        let kept =
            if self.must_fence() { "is being fenced, and kept" } else { "is fenced and kept: take what you need, then `kubectl dot drop`" };
        let text = format!("{owner}, in epoch {} or later; what this copy has beyond that {kept}", base.epoch);
        Some(Problem::new(Reason::NotOwner, text))
    }

    fn judge_unmoved(&mut self, now: &Authority, ctx: &Ctx, out: &mut Out) {
        let Some(role) = self.standing.role() else { return };
        match (role, of_owner(now, &self.here.place, self.standing.epoch())) {
            (_, OwnerStanding::Regressed) => self.hold_regressed(now.epoch, ctx, out),
            (Role::Owner, OwnerStanding::Mine) => self.judge_mine(now, ctx, out),
            // Superseded already: it stays so, whoever owns it.
            (Role::Owner, OwnerStanding::Elsewhere) if self.standing.is_superseded() => self.look_again(ctx),
            (Role::Owner, OwnerStanding::Elsewhere) => self.supersede_owner(now, ctx, out),
            (Role::Replica, OwnerStanding::Mine) if self.wish.role() == Some(Role::Owner) => self.take_over_newest(now, ctx, out),
            (Role::Replica, _) => self.look_again(ctx),
        }
    }

    /// Still, or again, the owner, with no handoff in hand.
    fn judge_mine(&mut self, now: &Authority, ctx: &Ctx, out: &mut Out) {
        self.handoff.settle_doubt();
        let asked = self.handoff.is_stray() || self.standing.is_unsure();
        self.handoff.stray(now.pending.is_some());
        if self.handoff.is_stray() {
            return; // it is disowned next
        }
        if asked {
            self.tasks.wake(Slot::Life); // it may open now
        }
        if self.standing.is_unsure() {
            // Nothing is pending: what was fenced for a handoff that only the lost journal knew is served again.
            self.standing.sure(out);
            self.head.undo_fence(self.is_fenced() && !self.standing.is_superseded());
        }
        if self.standing.is_superseded() && now.epoch > self.standing.epoch() {
            self.head.undo_fence(self.is_fenced());
            self.standing.reinstate(out);
        } else {
            self.look_again(ctx); // the object is behind
        }
    }
}
