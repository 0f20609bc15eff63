//! Bringing one kept commit to a copy that lacks it (ADR 13): the operator names it on both sides, as `lend` here and as `fetch` there. Which
//! of the two owns the Filesystem doesn't matter. A run's plan would end at the newest commit; this sends exactly that one.
//!
//! One at a time: list the other side → send, from the nearest commit that both have, else in full. What fails is tried again, in turn. What
//! is done is remembered until the wish goes, which is when the operator has seen it there.

use std::collections::BTreeSet;

use super::Filesystem;
use super::event::{Ctx, Out, Task};
use super::tasks::Slot;
use super::trouble::Trouble;
use crate::ids::{CommitId, JobUid, NodeName};
use crate::model::{Commit, Problem, Reason, Versions};
use crate::words::{Present, Transfer};

/// How long it is before a copy is asked again whether a commit can come to it.
const LATER_MS: u64 = 30_000;

/// How far the wishes are.
#[derive(Debug, Default)]
pub(super) struct Lending {
    /// Fulfilled; the wish still stands.
    done: BTreeSet<Transfer>,
    /// The one in hand, or the last: the next one gets its turn.
    last: Option<Transfer>,
}

/// The name under which it is sent: no ReplicationJob has a commit's id.
fn job_of(commit: CommitId) -> JobUid {
    JobUid::from_uuid(commit.uuid())
}

impl Present {
    /// Whether this copy is to take that commit from that node, whoever owns it.
    pub(super) fn fetches(&self, commit: CommitId, from: &NodeName) -> bool {
        self.fetch.iter().any(|t| t.commit == commit && t.with.node == *from)
    }
}

impl Filesystem {
    /// Whether another copy is to get it from here, or its transfer starts from it: it stays.
    pub(super) fn is_lent(&self, id: CommitId) -> bool {
        let asked = self.wish.present().is_some_and(|p| p.lend.iter().any(|t| t.commit == id));
        asked || self.tasks.runs(|slot, task| slot == Slot::Lend && matches!(task, Task::Send { from, .. } if *from == Some(id)))
    }

    /// Starts the next one that is asked for, is here, and was not brought yet.
    pub(super) fn advance_lend(&mut self, ctx: &Ctx, out: &mut Out) {
        let wishes = self.wish.present().map(|p| p.lend.clone()).unwrap_or_default();
        self.lending.done.retain(|t| wishes.contains(t));
        if self.lending.last.as_ref().is_some_and(|t| !wishes.contains(t)) && self.tasks.is_running(Slot::Lend) {
            self.tasks.cancel(Slot::Lend, out);
        }
        if wishes.is_empty() {
            self.troubles.clear(Trouble::LendFailed);
        }
        if !self.standing.is_active() || !self.tasks.is_ready(Slot::Lend, ctx.boot) {
            return;
        }
        let is_open =
            |t: &&Transfer| !self.lending.done.contains(*t) && t.with.node != self.here.place.node && self.history.has_for_use(t.commit);
        let open: Vec<&Transfer> = wishes.iter().filter(is_open).collect();
        let after = self.lending.last.as_ref().and_then(|last| open.iter().find(|t| **t > last));
        let Some(next) = after.or(open.first()).map(|t| (*t).clone()) else { return };
        self.tasks.start(Slot::Lend, Task::PeerVersions { job: job_of(next.commit), peer: next.with.clone() }, out);
        self.lending.last = Some(next);
    }

    /// It is there, or not.
    pub(super) fn on_lent(&mut self, result: Result<(), Problem>, out: &mut Out) {
        let Some(wish) = self.lending.last.clone() else { return };
        match result {
            Ok(()) => {
                out.note("Lent", format!("commit {} is on node {} now", wish.commit, wish.with.node));
                self.troubles.clear(Trouble::LendFailed);
                self.lending.done.insert(wish);
            }
            Err(problem) => self.say_not_lent(&wish, &problem, out),
        }
    }

    /// Whoever waits for that commit hears why it doesn't come.
    fn say_not_lent(&mut self, wish: &Transfer, problem: &Problem, out: &mut Out) {
        if problem.reason != Reason::Cancelled {
            let text = format!("commit {} can't be brought to node {}: {}", wish.commit, wish.with.node, problem.message);
            self.troubles.raise(Trouble::LendFailed, Problem::new(problem.reason, text), out);
        }
    }

    /// What the other side has: it is sent, unless it is there.
    pub(super) fn on_lend_listed(&mut self, theirs: Result<Box<Versions>, Problem>, ctx: &Ctx, out: &mut Out) {
        let Some(wish) = self.lending.last.clone() else { return };
        let theirs = match theirs {
            Ok(theirs) => theirs,
            Err(problem) => return self.say_not_lent(&wish, &problem, out),
        };
        let wanted = self.wish.present().is_some_and(|p| p.lend.contains(&wish));
        let Some(to) = self.history.get(wish.commit).filter(|_| wanted).cloned() else { return };
        if theirs.commits.iter().any(|c| c.id == wish.commit) {
            self.troubles.clear(Trouble::LendFailed);
            self.lending.done.insert(wish);
            return;
        }
        // It would become the newest there, and is refused: it is tried again later.
        if !theirs.commits.iter().any(|c| !c.transient && to.order() < c.order()) {
            return self.tasks.sleep(Slot::Lend, LATER_MS, ctx);
        }
        let both = |id: CommitId| self.history.has(id) && theirs.commits.iter().any(|c| c.id == id);
        let resume = theirs.resume.clone().filter(|t| t.target == wish.commit && t.base.is_none_or(both));
        let from = match &resume {
            Some(token) => token.base,
            None => self.nearest(&to, &theirs.commits),
        };
        let task = Task::Send {
            job: job_of(wish.commit),
            run_id: ctx.fresh.uuid(),
            peer: wish.with,
            epoch: self.standing.epoch(),
            from,
            to: Box::new(to),
            resume: resume.map(Box::new),
            expected: None,
            bandwidth: None,
        };
        self.tasks.start(Slot::Lend, task, out);
    }

    /// The commit that both have and that is the fewest commits away, older or newer: an increment can start from either.
    fn nearest(&self, to: &Commit, theirs: &[Commit]) -> Option<CommitId> {
        let history = self.history.in_order();
        let at = history.iter().position(|c| c.id == to.id)?;
        let common = history.iter().enumerate().filter(|(_, c)| !c.transient && theirs.iter().any(|t| t.id == c.id));
        common.min_by_key(|(i, _)| i.abs_diff(at)).map(|(_, c)| c.id)
    }
}
