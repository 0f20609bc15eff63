//! The side that gives authority away, until it has been decided.

use super::super::event::{self, Ctx, Out, Swap, Task};
use super::super::head::For;
use super::super::record::{RequestRow, RequestState};
use super::super::tasks::Slot;
use super::super::trouble::{MovePhase, Trouble};
use super::super::{Filesystem, transfer};
use super::{Agreed, Cut, Exporting, InHand, Kept, Phase, Stall, Terms};
use crate::ids::{CommitId, MigId};
use crate::model::{Place, Problem, Reason};
use crate::run::{Initial, JobSpec, Outcome, State};
use crate::words::{JobKey, Role, WantedJob};

/// How often a head that something has mounted is tried again.
const FENCE_RETRY_MS: u64 = 1_000;
/// An importer that can't be reached for so long while the head is frozen is given up: Abort.
const STALLED_MS: u64 = 60_000;

/// Two runs: what is committed already, and the final commit.
const PRECOPY: i64 = 1;
const FINAL: i64 = 2;

impl Filesystem {
    /// The job that a handoff runs by; the outbox treats it like any other.
    pub(in crate::filesystem) fn handoff_job(&self) -> Option<(JobKey, WantedJob)> {
        let e = self.handoff.exporting().filter(|e| e.live)?;
        let (generation, trigger) = match &e.phase {
            Phase::Begun { .. } if self.has_precopy() => (PRECOPY, "precopy"),
            Phase::Pending(..) => (FINAL, "final"),
            _ => return None,
        };
        // What was begun for a copy close behind comes over before the fence, and is a base for the rest.
        let also = e.cut().map(|c| c.commit).or_else(|| self.precopied());
        // Before the fence all kept commits come over; under it only what is new, as nothing can write meanwhile.
        let initial = if generation == PRECOPY { Initial::All } else { Initial::MostRecent };
        let params = transfer(e.terms.peer.clone(), initial, also);
        let (uid, trigger) = (e.key().uid(self.id), Some(trigger.to_owned()));
        let spec = JobSpec { uid, generation, suspend: false, trigger, on_commit: true, schedule: None, params };
        Some((e.key(), WantedJob { spec, bandwidth: None }))
    }

    /// There is something to send before the fence.
    fn has_precopy(&self) -> bool {
        self.history.newest_visible().is_some() || self.precopied().is_some()
    }

    pub(in crate::filesystem) fn advance_handoff(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.standing.is_active() || self.wish.is_absence_confirmed() {
            return;
        }
        if self.must_disown() {
            let known = self.handoff.exporting().map(|e| e.terms.mig);
            return self.swap_when_ready(Swap::Disown { known }, ctx, out);
        }
        match &self.handoff.in_hand {
            None => self.advance_unmoved(ctx, out),
            // The one asks what became of it, the other whether the new owner has opened.
            Some(InHand::Importing(_) | InHand::Kept(_)) => self.swap_when_ready(Swap::Ask, ctx, out),
            Some(InHand::Exporting(_)) => self.advance_exporter(ctx, out),
        }
    }

    /// R8: something may be pending that this owner has no record of.
    fn must_disown(&self) -> bool {
        let owner = self.standing.is_owner() && !self.standing.is_superseded();
        owner && (self.handoff.is_stray() || self.standing.is_unsure() && self.wish.is_managed())
    }

    fn advance_exporter(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(e) = self.handoff.exporting().cloned() else { return };
        match &e.phase {
            Phase::Begun { fenced, .. } => self.advance_begun(&e, *fenced, ctx, out),
            Phase::Frozen(cut) => self.advance_frozen(&e, cut, ctx, out),
            Phase::Pending(cut, agreed, _) => self.advance_pending(&e, cut, agreed, ctx, out),
            Phase::Exported(cut, agreed) => self.advance_exported(&e, cut, agreed, ctx, out),
            Phase::Aborted(_, _, why) => self.advance_aborted(why.as_ref(), ctx, out),
        }
    }

    /// No handoff in hand: begin one, or find out who owns it where object and journal disagree.
    fn advance_unmoved(&mut self, ctx: &Ctx, out: &mut Out) {
        let Some(role) = self.standing.role() else { return };
        let (superseded, doubt) = (self.standing.is_superseded(), self.handoff.doubt);
        let unsure = match (role, self.wish.role()) {
            (Role::Owner, Some(Role::Owner)) => superseded || doubt,
            (Role::Owner, Some(Role::Replica)) => !superseded,
            (Role::Owner, None) => doubt && !superseded,
            (Role::Replica, Some(Role::Owner)) => !self.head.is_there(),
            (Role::Replica, _) => false,
        };
        let may_begin = self.may_write() && self.tasks.is_ready(Slot::Move, ctx.boot) && self.tasks.is_ready(Slot::MoveBegin, ctx.boot);
        if unsure {
            self.swap_when_ready(Swap::Ask, ctx, out);
        } else if let Some(to) = self.wish.move_to(&self.here).filter(|_| may_begin).cloned() {
            self.begin_handoff(to, ctx, out);
        }
    }

    fn begin_handoff(&mut self, to: Place, ctx: &Ctx, out: &mut Out) {
        out.note("MoveStarted", format!("to node {}", to.node));
        let mig = MigId::from_uuid(ctx.fresh.uuid());
        self.handoff.begin(Terms { mig, epoch: self.standing.epoch(), peer: to, started: ctx.now }, out);
        self.handoff.settle_doubt();
        self.outbox.stale();
        self.apply_job_specs(ctx, out);
        self.advance_exporter(ctx, out); // without a commit to send first nothing else would call, until some event comes by
    }

    fn advance_begun(&mut self, e: &Exporting, fenced: Option<CommitId>, ctx: &Ctx, out: &mut Out) {
        if let Some(commit) = fenced {
            let cut = Cut { commit, at: Some(ctx.now), precopied: self.sent_by(e, ctx.clock()), looked: false };
            self.handoff.enter("mig-frozen", Phase::Frozen(cut), out);
            self.outbox.stale();
            return self.advance_exporter(ctx, out);
        }
        let asked = self.head.is_fence_of_handoff_wanted();
        if asked && self.is_fencing() {
            return; // first the fence ends, one way or the other: what is cancelled meanwhile, nobody would thaw
        }
        if !e.live || !self.may_write() || self.wish.move_to(&self.here) != Some(&e.terms.peer) {
            return self.end_handoff("mig-cancelled", MovePhase::Cancelled, "it is not wanted any more, or can't be had now", ctx, out);
        }
        match self.run_ended(e, PRECOPY) {
            Some(Err(problem)) => return self.cancel_for(problem, ctx, out),
            None if self.has_precopy() => return,
            _ => {}
        }
        // A commit that is intended may be on disk already, unknown: it goes first, or it would come after the final one.
        let may =
            [Slot::MoveFence, Slot::Look].iter().all(|slot| self.tasks.is_ready(*slot, ctx.boot)) && !self.tasks.is_running(Slot::Head);
        if self.owed_commit().is_none() && !asked && may {
            self.head.want_fence(For::Handoff);
        }
    }

    fn owed_commit(&self) -> Option<String> {
        let row = self.history.pending().find(|r| r.reset_to.is_none() && self.wish.wants(r.uid))?;
        let why = row.problem.as_ref().map(|p| format!(": {}", p.message)).unwrap_or_default();
        Some(format!("commit {} is made first{why}", row.id))
    }

    /// What it waits for, for people.
    pub(super) fn handoff_waits_for(&self, e: &Exporting) -> Option<String> {
        match &e.phase {
            Phase::Begun { waits: Some(holders), .. } => Some(holders.clone()),
            _ => self.owed_commit(),
        }
    }

    /// Before the fence nothing has to be undone.
    fn cancel_for(&mut self, problem: Problem, ctx: &Ctx, out: &mut Out) {
        let why = problem.message.clone();
        self.troubles.raise(Trouble::MoveBlocked, problem, out);
        self.tasks.back_off(Slot::MoveBegin, ctx);
        self.end_handoff("mig-cancelled", MovePhase::Cancelled, &why, ctx, out);
    }

    /// `pending` may be set or not: it is found out, by setting it or by asking.
    fn advance_frozen(&mut self, e: &Exporting, cut: &Cut, ctx: &Ctx, out: &mut Out) {
        let swap = if e.live && self.is_handoff_wanted(e) {
            Swap::Pend { mig: e.terms.mig, epoch: e.terms.epoch, to: e.terms.peer.clone(), final_commit: cut.commit }
        } else {
            Swap::Ask
        };
        self.swap_when_ready(swap, ctx, out);
    }

    pub(super) fn is_handoff_wanted(&self, e: &Exporting) -> bool {
        e.give_up().is_none() && self.wish.move_to(&self.here) == Some(&e.terms.peer)
    }

    fn abort(&mut self, e: &Exporting, agreed: &Agreed, ctx: &Ctx, out: &mut Out) {
        self.swap_when_ready(Swap::Abort { mig: e.terms.mig, attempt: agreed.attempt, epoch: e.terms.epoch }, ctx, out);
    }

    fn advance_pending(&mut self, e: &Exporting, cut: &Cut, agreed: &Agreed, ctx: &Ctx, out: &mut Out) {
        if !self.wish.is_known() && !self.wish.has_vanished() {
            return; // just started: whether it is still wanted is said in a moment
        }
        if !self.is_handoff_wanted(e) {
            return self.abort(e, agreed, ctx, out);
        }
        if !e.live {
            // After a restart: if the importer has recorded that it holds all of it, the handoff goes on, else it is aborted (§4, X6).
            return self.export(e, cut, agreed, ctx, out);
        }
        match self.run_ended(e, FINAL) {
            Some(Ok(())) => self.export(e, cut, agreed, ctx, out),
            Some(Err(problem)) => self.give_up(problem, ctx, out),
            None => {
                let report = self.outbox.report(e.key(), ctx.clock());
                let bytes = report.as_ref().map_or(0, |r| r.replicated_bytes);
                let waits = report.filter(|r| matches!(r.state, State::WorkingWait | State::PlanningError));
                // A target that is full doesn't get less so while the head stands frozen.
                match waits.as_ref().and_then(|r| r.problem.clone()).filter(|p| p.reason == Reason::NoSpace) {
                    Some(full) => self.give_up(full, ctx, out),
                    None => self.watch_stall(waits.is_some(), bytes, ctx, out),
                }
            }
        }
    }

    /// To be given up: only a won Abort does it.
    fn give_up(&mut self, problem: Problem, ctx: &Ctx, out: &mut Out) {
        self.mark_given_up(problem, out);
        self.advance_exporter(ctx, out);
    }

    fn mark_given_up(&mut self, problem: Problem, out: &mut Out) {
        if let Some(agreed) = self.handoff.exporting_mut().and_then(Exporting::agreed) {
            agreed.give_up = Some(problem.clone());
        }
        self.troubles.raise(Trouble::MoveBlocked, problem, out);
    }

    /// A frozen head doesn't wait for ever for an importer that is gone. Only bytes are progress: each attempt looks alive at first.
    fn watch_stall(&mut self, waits: bool, bytes: u64, ctx: &Ctx, out: &mut Out) {
        let Some(Exporting { phase: Phase::Pending(_, _, stall), .. }) = self.handoff.exporting_mut() else { return };
        if bytes != stall.brought {
            *stall = Stall { brought: bytes, since: None };
        }
        if waits && ctx.boot.since_ms(*stall.since.get_or_insert(ctx.boot)) >= STALLED_MS {
            let text = "the new owner could not be reached for a minute: the volume stays here";
            self.give_up(Problem::new(Reason::Unreachable, text), ctx, out);
        }
    }

    /// Commits that were intended and not made: they leave with authority.
    fn owed_requests(&self) -> Vec<RequestRow> {
        self.history.requests().filter(|r| r.state == RequestState::Pending).cloned().collect()
    }

    /// What this copy keeps of a handoff whose Commit was won.
    pub(super) fn kept_of(&self, e: &Exporting) -> Option<Kept> {
        let (cut, attempt) = (e.cut()?, e.attempt()?);
        let (jobs, requests) = (self.outbox.for_export(), self.owed_requests());
        Some(Kept { terms: e.terms.clone(), attempt, commit: cut.commit, at: cut.at, jobs, requests })
    }

    fn export(&mut self, e: &Exporting, cut: &Cut, agreed: &Agreed, ctx: &Ctx, out: &mut Out) {
        if !self.tasks.is_ready(Slot::Move, ctx.boot) {
            return;
        }
        let handoff = event::Handoff {
            mig: e.terms.mig,
            attempt: agreed.attempt,
            epoch: e.terms.epoch,
            from: self.here.place.clone(),
            final_commit: cut.commit,
            jobs: self.outbox.for_export(),
            requests: self.owed_requests(),
        };
        self.tasks.start(Slot::Move, Task::Export { peer: e.terms.peer.clone(), handoff: Box::new(handoff) }, out);
    }

    /// `EExport` is durable: not thawed without the result of a swap. The importer must have answered, also after a restart.
    fn advance_exported(&mut self, e: &Exporting, cut: &Cut, agreed: &Agreed, ctx: &Ctx, out: &mut Out) {
        if agreed.give_up.is_some() {
            self.abort(e, agreed, ctx, out);
        } else if agreed.is_acknowledged(ctx.boot) {
            self.swap_when_ready(Swap::Commit { mig: e.terms.mig, attempt: agreed.attempt, epoch: e.terms.epoch }, ctx, out);
        } else if e.live || cut.looked {
            self.export(e, cut, agreed, ctx, out);
        } else {
            self.swap_when_ready(Swap::Ask, ctx, out);
        }
    }

    /// The Abort was won, or `pending` never was: the head is thawed, then it is over.
    fn advance_aborted(&mut self, why: Option<&Problem>, ctx: &Ctx, out: &mut Out) {
        if self.is_fenced() {
            return self.head.undo_fence(true); // advance_head does it, and tries again
        }
        self.head.undo_fence(false);
        self.tasks.back_off(Slot::MoveBegin, ctx);
        let why = why.map_or_else(|| "the handoff was taken back".to_owned(), |p| p.message.clone());
        self.end_handoff("mig-end", MovePhase::Cancelled, &why, ctx, out);
    }

    /// `None`: the run is under way.
    fn run_ended(&self, e: &Exporting, generation: i64) -> Option<Result<(), Problem>> {
        let job = self.outbox.row(e.key())?;
        let last = job.last.as_ref().filter(|l| l.generation == generation && !job.owed)?;
        let is_final = |id: CommitId| e.cut().is_some_and(|c| c.commit == id);
        match &last.outcome {
            Outcome::Completed { replicated, .. } if generation == PRECOPY || is_final(*replicated) => Some(Ok(())),
            Outcome::Completed { .. } => Some(Err(Problem::new(Reason::Internal, "the run ended before the final commit was over"))),
            Outcome::Failed(problem) => Some(Err(problem.clone())),
            Outcome::ContextDone(_) => None,
        }
    }

    fn swap_when_ready(&mut self, swap: Swap, ctx: &Ctx, out: &mut Out) {
        if self.tasks.is_ready(Slot::Move, ctx.boot) {
            self.tasks.start(Slot::Move, Task::Swap(swap), out);
        }
    }

    // ---- results ----

    /// A fence that the handoff asked for has ended.
    pub(in crate::filesystem) fn on_move_fenced(&mut self, result: Result<CommitId, Problem>, ctx: &Ctx) {
        if result.is_err() {
            self.tasks.sleep(Slot::MoveFence, FENCE_RETRY_MS, ctx);
        }
        if let Some(Exporting { phase: Phase::Begun { fenced, waits }, .. }) = self.handoff.exporting_mut() {
            match result {
                Ok(id) => (*fenced, *waits) = (Some(id), None),
                Err(problem) => *waits = Some(problem.message),
            }
        }
    }

    pub(in crate::filesystem) fn on_exported(&mut self, handoff: &event::Handoff, result: Result<(), Problem>, ctx: &Ctx, out: &mut Out) {
        let said = (handoff.mig, Some(handoff.attempt));
        let Some(mut e) = self.handoff.exporting().cloned().filter(|e| (e.terms.mig, e.attempt()) == said) else { return };
        let (wanted, peer) = (self.is_handoff_wanted(&e), e.terms.peer.node.clone());
        let Some(agreed) = e.agreed() else { return };
        match result {
            Ok(()) => {
                agreed.acknowledged(&peer, ctx.boot);
                let recorded = match e.phase.clone() {
                    Phase::Pending(cut, agreed, _) if wanted => {
                        self.handoff.enter("mig-export", Phase::Exported(cut, agreed), out);
                        self.outbox.stale();
                        true
                    }
                    _ => false,
                };
                if !recorded {
                    self.handoff.in_hand = Some(InHand::Exporting(e));
                }
            }
            // It is this program that stopped it, and nothing is said about the importer.
            Err(problem) if problem.reason == Reason::Cancelled => {}
            Err(problem) => {
                let since = agreed.unheard(&peer, ctx.boot);
                let resumed = !e.live && matches!(e.phase, Phase::Pending(..));
                let lost = resumed || problem.reason.is_permanent() || ctx.boot.since_ms(since) >= STALLED_MS;
                self.handoff.in_hand = Some(InHand::Exporting(e));
                if lost {
                    self.mark_given_up(problem, out);
                }
            }
        }
    }
}
