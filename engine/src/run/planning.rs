//! Planning: list, plan, estimate; what `Run` does until its first step (replication.md §2).

use std::collections::BTreeSet;

use super::machine::{Out, Phase, Run, StepBytes};
use super::plan::{Plan, Refused, plan_to};
use super::{ESTIMATE_WAIT_MS, ESTIMATES_AT_ONCE, NoteReason, PROGRESS_MS, RunEffectKind};
use crate::ids::{CommitId, Now};
use crate::model::{Problem, Versions};

impl Run {
    pub(super) fn list(&mut self, now: Now, out: Out) {
        let seq = self.emit(RunEffectKind::List, out);
        self.estimates_asked.clear();
        self.problem = None;
        self.enter(Phase::Listing { seq }, Some(PROGRESS_MS), now, out);
    }

    pub(super) fn on_listed(&mut self, seq: u64, local: &Versions, peer: Result<Versions, Problem>, now: Now, out: Out) {
        if self.phase != (Phase::Listing { seq }) {
            return;
        }
        let peer = match peer {
            Ok(peer) => peer,
            Err(problem) => return self.fail_attempt(problem, false, now, out),
        };
        let spec = &self.spec;
        match plan_to(local, &peer, spec.initial, spec.intermediate, self.target, spec.also) {
            Ok(plan) => self.adopt_plan(plan, peer.free_bytes, now, out),
            Err(Refused { problem, conflict }) => {
                self.conflict = conflict.map(|c| *c);
                self.fail_attempt(problem, false, now, out);
            }
        }
    }

    pub(super) fn adopt_plan(&mut self, plan: Plan, peer_free: Option<u64>, now: Now, out: Out) {
        self.tell_plan(&plan, out);
        self.target = Some(plan.target);
        self.replicated = plan.base;
        self.conflict = None;
        self.peer_free = peer_free;
        self.pinned = plan.base.into_iter().chain(plan.steps.iter().flat_map(|s| s.from.into_iter().chain([s.to]))).collect();
        self.done_before += self.done;
        self.done = 0;
        self.sent_before = self.sent;
        self.step_actual.clear();
        self.step_bytes = StepBytes::default();
        let first = plan.steps.first().map(|s| (s.from, s.to));
        self.plan = Some(plan);
        self.ask_estimates(out);
        match first {
            Some(step) if !self.estimates.contains_key(&step) => {
                self.enter(Phase::Estimating, Some(ESTIMATE_WAIT_MS), now, out);
            }
            _ => self.begin_work(now, out),
        }
    }

    pub(super) fn tell_plan(&mut self, plan: &Plan, out: Out) {
        if let Some(gone) = self.target.filter(|t| *t != plan.target) {
            let message = format!("{gone} is not on the sender any more; the run now ends at {}", plan.target);
            self.note(NoteReason::TargetGone, message, out);
        }
        if let Some(why) = &plan.discarded {
            self.note(NoteReason::PartialDiscarded, format!("a partial receive is dropped: {why}"), out);
        }
        if self.plan.is_none() && !plan.steps.is_empty() {
            let how = plan.resolution.clone().unwrap_or_else(|| "increments from what is there".to_owned());
            let message = format!("{} step(s) to {}: {how}", plan.steps.len(), plan.target);
            self.note(NoteReason::Planned, message, out);
        }
    }

    /// Keeps [`ESTIMATES_AT_ONCE`] questions open until each step of the plan was asked about.
    pub(super) fn ask_estimates(&mut self, out: Out) {
        let Some(plan) = &self.plan else { return };
        let room = ESTIMATES_AT_ONCE.saturating_sub(self.estimates_asked.len());
        let asked: BTreeSet<usize> = self.estimates_asked.values().copied().collect();
        let wanted: Vec<(usize, Option<CommitId>, CommitId)> = plan
            .steps
            .iter()
            .enumerate()
            .skip(self.done)
            .filter(|(i, s)| !asked.contains(i) && !self.estimates.contains_key(&(s.from, s.to)))
            .map(|(i, s)| (i, s.from, s.to))
            .take(room)
            .collect();
        for (step, from, to) in wanted {
            let seq = self.emit(RunEffectKind::Estimate { step, from, to }, out);
            self.estimates_asked.insert(seq, step);
        }
    }

    pub(super) fn on_estimated(&mut self, seq: u64, step: usize, bytes: Option<u64>, now: Now, out: Out) {
        if self.estimates_asked.get(&seq) != Some(&step) {
            return;
        }
        self.estimates_asked.remove(&seq);
        let Some(at) = self.step(step).map(|s| (s.from, s.to)) else {
            return;
        };
        self.estimates.insert(at, bytes);
        self.ask_estimates(out);
        if step == 0 && self.phase == Phase::Estimating {
            self.begin_work(now, out);
        }
    }
}
