//! What follows from authority as the API server shows it: the only place where a handoff is decided, on either side.

use super::super::Filesystem;
use super::super::event::{AuthorityView, Ctx, Out};
use super::super::record::Life;
use super::super::tasks::Slot;
use super::{Agreed, Exporting, InHand, LOOK_AGAIN_MS, Phase, Stall};
use crate::ids::Epoch;
use crate::model::{Problem, Reason};
use crate::words::Role;

impl Filesystem {
    /// Authority was read or swapped.
    pub(in crate::filesystem) fn on_swapped(&mut self, result: Result<Box<AuthorityView>, Problem>, ctx: &Ctx, out: &mut Out) {
        match result {
            Ok(view) => {
                self.troubles.clear("AuthorityUnreachable");
                self.judge(&view, ctx, out);
            }
            Err(problem) => self.troubles.raise("AuthorityUnreachable", problem, out),
        }
    }

    /// What follows from authority as it stands. The only place where a handoff is decided, on either side.
    fn judge(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        match self.handoff.in_hand.clone() {
            None => self.judge_unmoved(view, ctx, out),
            Some(InHand::Importing(i)) => self.judge_import(i, view, ctx, out),
            Some(InHand::Exporting(e)) => self.judge_export(&e, view, ctx, out),
        }
    }

    fn judge_export(&mut self, e: &Exporting, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let mine = view.owner == self.here.place;
        match &e.phase {
            Phase::Begun { .. } | Phase::Aborted(..) => {}
            _ if view.epoch < e.terms.epoch => self.hold_regressed(view.epoch, ctx, out),
            // A person accepted, for this copy.
            _ if mine && view.epoch > e.terms.epoch => self.abort_here(e, out),
            _ if mine => self.judge_ours(e, view, ctx, out),
            Phase::Exported(..) if view.owner == e.terms.peer => self.hand_over(view, ctx, out),
            _ => self.supersede_owner(view, ctx, out),
        }
    }

    fn judge_ours(&mut self, e: &Exporting, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        match (view.pending, &e.phase) {
            (Some((mig, attempt)), phase) if mig == e.terms.mig => {
                if let Phase::Frozen(cut) = phase {
                    let agreed = Agreed { attempt, ..Agreed::default() };
                    self.handoff.enter("mig-pending", Phase::Pending(cut.clone(), agreed, Stall::default()), out);
                    self.outbox.stale();
                }
                self.handoff.looked();
                self.apply_job_specs(ctx, out);
            }
            (Some(_), _) => self.hold("PendingLost", Reason::Internal, "another handoff of this Filesystem is pending", ctx, out),
            (None, Phase::Frozen(_)) if view.deleting || !self.is_handoff_wanted(e) => self.abort_here(e, out),
            (None, Phase::Frozen(_)) => self.look_again(ctx),
            (None, _) if e.attempt().is_some_and(|attempt| view.attempt > attempt) => self.abort_here(e, out),
            (None, _) => {
                let text = "the API has lost the handoff that this head is fenced for (was it restored?): it stays fenced until `kubectl dot accept`";
                self.hold("PendingLost", Reason::EpochRegression, text, ctx, out);
            }
        }
    }

    pub(super) fn hold(&mut self, condition: &'static str, reason: Reason, text: &str, ctx: &Ctx, out: &mut Out) {
        self.troubles.raise(condition, Problem::new(reason, text), out);
        self.look_again(ctx);
    }

    fn look_again(&mut self, ctx: &Ctx) {
        self.tasks.sleep(Slot::Move, LOOK_AGAIN_MS, ctx);
    }

    fn hold_regressed(&mut self, epoch: Epoch, ctx: &Ctx, out: &mut Out) {
        let text = format!("the API shows epoch {epoch}, this node has seen {}: `kubectl dot accept` goes on", self.standing.epoch());
        self.hold("EpochRegression", Reason::EpochRegression, &text, ctx, out);
    }

    fn abort_here(&mut self, e: &Exporting, out: &mut Out) {
        self.troubles.clear("PendingLost");
        self.troubles.clear("EpochRegression");
        if let Some(cut) = e.cut().cloned() {
            self.handoff.enter("mig-abort", Phase::Aborted(cut, e.attempt(), e.give_up().cloned()), out);
            self.outbox.stale();
        }
    }

    /// The Commit was won, by us or by whoever finished it: this copy is a replica now.
    fn hand_over(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        self.standing.hand_over(view, out);
        self.head.close();
        self.end_handoff("mig-end", "Done", "", ctx, out); // first: what was sent stands in its job
        self.forget_sending(out);
    }

    /// Jobs and wanted commits are the new owner's. A commit that was only intended here is made there.
    fn forget_sending(&mut self, out: &mut Out) {
        self.outbox.drop_all(&mut self.tasks, out);
        self.history.forget_pending(out);
    }

    /// Authority went elsewhere without us. What is here may hold what nobody else has: it is fenced and kept.
    fn supersede_owner(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let epoch = view.epoch;
        self.standing.supersede(epoch, out);
        self.head.close();
        self.head.undo_fence(false); // whatever had begun it: this head is not thawed any more
        self.handoff.settle_doubt();
        self.forget_sending(out);
        let text = format!("authority went to node {} in epoch {epoch}, without this one", view.owner.node);
        out.warn("Superseded", text);
        if self.handoff.is_in_hand() {
            self.end_handoff("mig-superseded", "Cancelled", "authority was taken by another node", ctx, out);
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

    fn judge_unmoved(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let Some(role) = self.standing.role() else { return };
        let (mine, epoch) = (view.owner == self.here.place, self.standing.epoch());
        match role {
            _ if view.epoch < epoch => self.hold_regressed(view.epoch, ctx, out),
            Role::Owner if mine => {
                self.handoff.settle_doubt();
                if self.standing.is_superseded() && view.epoch > epoch {
                    self.head.undo_fence(self.is_fenced());
                    self.standing.reinstate(out);
                } else {
                    self.look_again(ctx); // the object is behind
                }
            }
            Role::Owner if view.epoch > epoch => self.supersede_owner(view, ctx, out),
            Role::Replica if mine && self.wish.role() == Some(Role::Owner) => self.take_over_newest(view, ctx, out),
            _ => self.look_again(ctx),
        }
    }
}
