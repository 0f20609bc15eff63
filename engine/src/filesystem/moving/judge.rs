//! What follows from authority as the API server shows it: the only place where a handoff is decided, on either side.

use super::super::event::{AuthorityView, Ctx, Note, Out, Role};
use super::super::record::{Life, MigrationPhase, MigrationRow, Record, RequestState};
use super::super::{Backoff, Filesystem, Opening, Slot};
use super::LOOK_AGAIN_MS;
use crate::ids::Epoch;
use crate::model::{Problem, Reason};

impl Filesystem {
    /// What follows from authority as it stands. The only place where a handoff is decided, on either side.
    pub(super) fn judge(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let Some(row) = self.migration.clone() else { return self.judge_unmoved(view, ctx, out) };
        let mine = view.owner == self.here.place;
        match row.phase {
            MigrationPhase::Begun | MigrationPhase::Aborted => {}
            MigrationPhase::ImportStart => self.judge_import(&row, view, ctx, out),
            _ if view.epoch < row.epoch => self.hold_regressed(view.epoch, ctx, out),
            // A person accepted, for this copy.
            _ if mine && view.epoch > row.epoch => self.abort_here(row, out),
            _ if mine => self.judge_ours(row, view, ctx, out),
            MigrationPhase::Exported if view.owner == row.peer => self.hand_over(view, ctx, out),
            _ => self.supersede_owner(view, ctx, out),
        }
    }

    pub(super) fn judge_ours(&mut self, row: MigrationRow, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        match view.pending {
            Some((mig, attempt)) if mig == row.mig => {
                self.moving.looked = true;
                if row.phase == MigrationPhase::Frozen {
                    self.save_move("mig-pending", MigrationRow { phase: MigrationPhase::Pending, attempt, ..row }, out);
                    self.apply_job_specs(ctx, out);
                }
            }
            Some(_) => self.hold("PendingLost", Reason::Internal, "another handoff of this Filesystem is pending", ctx, out),
            None if row.phase == MigrationPhase::Frozen && (view.deleting || !self.is_move_wanted(&row)) => self.abort_here(row, out),
            None if row.phase == MigrationPhase::Frozen => self.look_again(ctx),
            None if view.attempt > row.attempt => self.abort_here(row, out),
            None => {
                let text = "the API has lost the handoff that this head is fenced for (was it restored?): it stays fenced until `kubectl dot accept`";
                self.hold("PendingLost", Reason::EpochRegression, text, ctx, out);
            }
        }
    }

    pub(super) fn hold(&mut self, condition: &'static str, reason: Reason, text: &str, ctx: &Ctx, out: &mut Out) {
        self.trouble(condition, Problem::new(reason, text), out);
        self.look_again(ctx);
    }

    pub(super) fn look_again(&mut self, ctx: &Ctx) {
        self.backoff.insert(Slot::Move, Backoff { failures: 0, not_before: ctx.now.plus_ms(LOOK_AGAIN_MS) });
    }

    pub(super) fn hold_regressed(&mut self, epoch: Epoch, ctx: &Ctx, out: &mut Out) {
        let text = format!("the API shows epoch {epoch}, this node has seen {}: `kubectl dot accept` goes on", self.epoch());
        self.hold("EpochRegression", Reason::EpochRegression, &text, ctx, out);
    }

    pub(super) fn abort_here(&mut self, row: MigrationRow, out: &mut Out) {
        self.clear("PendingLost");
        self.clear("EpochRegression");
        self.save_move("mig-abort", MigrationRow { phase: MigrationPhase::Aborted, ..row }, out);
    }

    /// The Commit was won, by us or by whoever finished it: this copy is a replica now.
    pub(super) fn hand_over(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let (epoch, attempt) = (view.epoch, view.attempt);
        self.save_base(
            "mig-committed",
            |b| {
                b.role = Role::Replica;
                b.epoch = b.epoch.max(epoch);
                b.attempt = attempt;
                b.opened = None;
            },
            out,
        );
        self.opening = Opening::Closed;
        self.meta_dirty = true;
        self.end_move("mig-end", "Done", "", ctx, out); // first: what was sent stands in its job
        self.forget_sending(out);
    }

    /// Jobs and wanted commits are the new owner's. A commit that was only intended here is made there.
    pub(super) fn forget_sending(&mut self, out: &mut Out) {
        for uid in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.drop_job(uid, out);
        }
        let open: Vec<_> = self.requests.values().filter(|r| r.state == RequestState::Pending).map(|r| r.uid).collect();
        for uid in open {
            self.requests.remove(&uid);
            out.records.push(Record::RequestGone(uid));
        }
    }

    /// Authority went elsewhere without us. What is here may hold what nobody else has: it is fenced and kept.
    pub(super) fn supersede_owner(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let epoch = view.epoch;
        self.save_base(
            "superseded",
            |b| {
                b.superseded = true;
                b.epoch = b.epoch.max(epoch);
                b.opened = None;
            },
            out,
        );
        self.opening = Opening::Closed;
        self.won = None;
        self.undo_fence = false; // whatever had begun it: this head is not thawed any more
        self.meta_dirty = true;
        self.moving.doubt = false;
        self.forget_sending(out);
        let text = format!("authority went to node {} in epoch {epoch}, without this one", view.owner.node);
        out.notes.push(Note { warning: true, reason: "Superseded".into(), message: text });
        if self.migration.is_some() {
            self.end_move("mig-superseded", "Cancelled", "authority was taken by another node", ctx, out);
        }
    }

    /// What a superseded copy says, read off what is recorded: a restart doesn't silence it, and it says "fenced" once that is so.
    pub(in crate::filesystem) fn superseded(&self) -> Option<Problem> {
        let base = self.base.as_ref().filter(|b| b.superseded && b.life == Life::Active)?;
        let owner = match self.present().and_then(|p| p.owner.as_ref()).filter(|o| **o != self.here.place) {
            Some(owner) => format!("node {} owns it now", owner.node),
            None => "another node owns it".to_owned(),
        };
        let kept =
            if self.must_fence() { "is being fenced, and kept" } else { "is fenced and kept: take what you need, then `kubectl dot drop`" };
        let text = format!("{owner}, in epoch {} or later; what this copy has beyond that {kept}", base.epoch);
        Some(Problem::new(Reason::NotOwner, text))
    }

    pub(super) fn judge_unmoved(&mut self, view: &AuthorityView, ctx: &Ctx, out: &mut Out) {
        let Some(base) = self.base.clone() else { return };
        let mine = view.owner == self.here.place;
        match base.role {
            _ if view.epoch < base.epoch => self.hold_regressed(view.epoch, ctx, out),
            Role::Owner if mine => {
                self.moving.doubt = false;
                if base.superseded && view.epoch > base.epoch {
                    self.undo_fence = self.is_fenced();
                    self.save_base("reinstated", |b| b.superseded = false, out);
                } else {
                    self.look_again(ctx); // the object is behind
                }
            }
            Role::Owner if view.epoch > base.epoch => self.supersede_owner(view, ctx, out),
            Role::Replica if mine && self.present().is_some_and(|p| p.role == Role::Owner) => self.take_over_newest(view, ctx, out),
            _ => self.look_again(ctx),
        }
    }
}
