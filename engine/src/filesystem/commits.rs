//! Taking and removing commits. One at a time per Filesystem, and in turn with [`super::fence`], as they all touch the head or what hangs
//! on it.
//!
//! Commit: *commit-intent* (uid → id, so that a repeated request makes no second one) → snapshot → *committed*.
//! Removal: *commit-removing* → subvolume gone → *commit-removed*. A pinned commit is not removed; the request says by whom. One that only
//! increments need is let go: *commit-let-go*, which is the end of it for who asked, and its removal follows when they don't (ADR 11).

use super::event::{Ctx, Note, Out, Role, Task, TaskDone, WantedCommit};
use super::fence::FenceRequest;
use super::record::{Record, RequestRow, RequestState};
use super::{Filesystem, Opening, Slot};
use crate::ids::{BootTime, CommitId, RequestUid, Timestamp};
use crate::model::{Commit, FORMAT_VERSION, Problem, Reason};

/// At most so many mounts of a commit are named in a message.
const NAMED_MOUNTS: usize = 3;

impl Filesystem {
    pub(super) fn advance_head(&mut self, ctx: &Ctx, out: &mut Out) {
        if !self.is_active() || self.is_deleting() || self.is_running(Slot::Life) && self.opening == Opening::Closed {
            return;
        }
        if !self.is_ready(Slot::Head, ctx.boot) {
            return;
        }
        // A fence goes first: someone waits for it, and a commit that can't be made must not keep it.
        if self.must_fence() && self.fences.is_empty() {
            self.fences.push(FenceRequest::of_loss());
        }
        if self.may_write() || (self.half_fenced || self.must_fence()) && self.role() == Some(Role::Owner) {
            self.advance_fence(ctx, out);
        }
        if self.undo_fence && self.role() == Some(Role::Owner) && !self.is_superseded() && !self.is_running(Slot::Head) {
            self.start(Slot::Head, Task::Thaw, out);
        } else if self.may_write() && !self.is_running(Slot::Head) {
            self.advance_wanted(ctx, out);
        }
    }

    /// One at a time, each in its turn, beside commits.
    pub(super) fn advance_removals(&mut self, ctx: &Ctx, out: &mut Out) {
        self.settle_fences(out);
        if !self.is_active() {
            return;
        }
        self.settle_requests(out);
        self.expire_transients(ctx, out);
        if self.is_ready(Slot::Removal, ctx.boot)
            && let Some(id) = self.next_removal()
        {
            self.last_removal = Some(id);
            self.start(Slot::Removal, Task::DeleteCommit(id), out);
        }
    }

    fn next_removal(&self) -> Option<CommitId> {
        let after = self.last_removal.and_then(|last| self.removing.iter().find(|id| **id > last));
        after.or_else(|| self.removing.first()).copied()
    }

    fn wanted(&self) -> Vec<WantedCommit> {
        self.present().map(|p| p.commits.clone()).unwrap_or_default()
    }

    /// Starts the first wanted commit that is not there yet. A pending one of an earlier life keeps its id.
    fn advance_wanted(&mut self, ctx: &Ctx, out: &mut Out) {
        // A reset waits for pods: nothing else has to wait for it.
        let (resets, plain): (Vec<_>, Vec<_>) = self.wanted().into_iter().filter(|w| !w.remove).partition(|w| w.reset_to.is_some());
        self.blocked_resets.retain(|uid, _| resets.iter().any(|w| w.uid == *uid));
        for want in plain.into_iter().chain(resets) {
            // Nothing is recorded of one that can't begin.
            let open = self.requests.get(&want.uid).is_none_or(|r| r.state == RequestState::Pending) && want.id.is_none();
            if let Some(to) = want.reset_to.filter(|_| open && self.kept_by(want.uid).is_none())
                && !self.can_reset(want.uid, to, ctx, out)
            {
                continue;
            }
            let row = match self.requests.get(&want.uid) {
                // What a try has left on disk goes first: it has the same id.
                Some(row) if self.removing.contains(&row.id) => continue,
                Some(row) if row.state == RequestState::Pending => self.intend_again(row.clone(), ctx, out),
                Some(_) => continue,
                // Made by an earlier owner: here if it is here, else it is not made a second time.
                None if self.kept_by(want.uid).is_some() => {
                    self.take_in_request(want.uid, out);
                    continue;
                }
                None if want.id.is_some() => continue,
                None => self.intend(&want, ctx, out),
            };
            let (qgroup, commit) = (self.qgroup(), Box::new(self.commit_of(&row, &want)));
            if row.reset_to.is_some() {
                self.start(Slot::Head, Task::Fence { qgroup, commit, force: false }, out);
            } else {
                self.start(Slot::Head, Task::Commit { qgroup, commit }, out);
            }
            return;
        }
    }

    fn intend(&mut self, want: &WantedCommit, ctx: &Ctx, out: &mut Out) -> RequestRow {
        let row = RequestRow {
            version: FORMAT_VERSION,
            uid: want.uid,
            id: CommitId::from_uuid(ctx.fresh.uuid()),
            state: RequestState::Pending,
            parent: self.parent_of_next(),
            time: self.time_of_next(ctx.now),
            changed_bytes: None,
            problem: None,
            reset_to: want.reset_to,
        };
        self.put_request("commit-intent", row.clone(), out);
        row
    }

    /// A commit that could not be made stays what it is called; what was committed meanwhile comes before it.
    fn intend_again(&mut self, row: RequestRow, ctx: &Ctx, out: &mut Out) -> RequestRow {
        let parent = self.parent_of_next();
        if row.parent == parent && self.newest().is_none_or(|c| c.time < row.time) {
            return row;
        }
        let time = self.time_of_next(ctx.now);
        let row = RequestRow { parent, time, ..row };
        self.put_request("commit-intent", row.clone(), out);
        row
    }

    fn commit_of(&self, row: &RequestRow, want: &WantedCommit) -> Commit {
        Commit {
            version: FORMAT_VERSION,
            id: row.id,
            fs_id: self.id,
            parent: row.parent,
            time: row.time,
            epoch: self.base.as_ref().map_or(crate::ids::Epoch(0), |b| b.epoch),
            message: want.message.clone(),
            metadata: want.metadata.clone(),
            kept: Some(row.uid),
            transient: false,
        }
    }

    /// One that people don't see, and nobody keeps.
    pub(super) fn transient_commit(&self, ctx: &Ctx) -> Commit {
        Commit {
            version: FORMAT_VERSION,
            id: CommitId::from_uuid(ctx.fresh.uuid()),
            fs_id: self.id,
            parent: self.parent_of_next(),
            time: self.time_of_next(ctx.now),
            epoch: self.epoch(),
            message: String::new(),
            metadata: std::collections::BTreeMap::new(),
            kept: None,
            transient: true,
        }
    }

    fn take_in_request(&mut self, uid: RequestUid, out: &mut Out) {
        if let Some(commit) = self.kept_by(uid).and_then(|id| self.commits.get(&id)).cloned() {
            self.finish_request_of(&commit, out);
        }
    }

    fn parent_of_next(&self) -> Option<CommitId> {
        self.newest_visible().map(|c| c.id).or_else(|| self.base.as_ref().and_then(|b| b.origin).map(|o| o.commit))
    }

    /// Later than every commit there is, whatever the clock does: time orders one history.
    fn time_of_next(&self, now: Timestamp) -> Timestamp {
        self.newest().map_or(now, |c| now.max(c.time.plus_ms(1)))
    }

    pub(super) fn put_request(&mut self, name: &'static str, row: RequestRow, out: &mut Out) {
        out.records.push(Record::Request(name, Box::new(row.clone())));
        self.requests.insert(row.uid, row);
    }

    /// Removals that objects ask for, and rows whose objects are gone; a reset that was taken back before it began is one.
    fn settle_requests(&mut self, out: &mut Out) {
        if self.desired.is_none() {
            return;
        }
        let wanted = self.wanted();
        for want in wanted.iter().filter(|w| w.remove) {
            self.settle_removal(want, out);
        }
        let gone: Vec<RequestUid> = self
            .requests
            .values()
            .filter(|r| r.state == RequestState::Removed || r.state == RequestState::Pending && r.reset_to.is_some())
            .filter(|r| !wanted.iter().any(|w| w.uid == r.uid))
            .map(|r| r.uid)
            .collect();
        for uid in gone {
            self.requests.remove(&uid);
            out.records.push(Record::RequestGone(uid));
        }
    }

    fn settle_removal(&mut self, want: &WantedCommit, out: &mut Out) {
        let known = self.requests.get(&want.uid).cloned();
        let Some(id) = want.id.or_else(|| known.as_ref().map(|r| r.id)).or_else(|| self.kept_by(want.uid)) else {
            // It was never made here.
            if known.is_none() {
                self.put_request("removed", removed_row(want.uid, None), out);
            }
            return;
        };
        let row = known.unwrap_or_else(|| removed_row(want.uid, Some(id)));
        if row.state == RequestState::Pending && self.is_running(Slot::Head) {
            return; // being taken just now: first that, then its removal
        }
        if row.state == RequestState::Pending && !self.commits.contains_key(&id) {
            // A try that failed may have left something on disk.
            self.removing.insert(id);
            out.records.push(Record::CommitRemoving(id));
            let row = RequestRow { state: RequestState::Removing, problem: None, ..row };
            return self.put_request("remove-intent", row, out);
        }
        if self.commits.contains_key(&id) {
            self.remove_known(&RequestRow { id, ..row }, out);
        } else if row.state != RequestState::Removed && self.stops_receiving(id, out) {
            // It may just have arrived.
        } else if !self.removing.contains(&id) && row.state != RequestState::Removed {
            self.put_request("removed", RequestRow { state: RequestState::Removed, problem: None, id, ..row }, out);
        } else if !self.requests.contains_key(&want.uid) {
            self.put_request("remove-intent", RequestRow { state: RequestState::Removing, problem: None, id, ..row }, out);
        }
    }

    /// Removes a commit that is here, or lets go of it, or says who needs it.
    fn remove_known(&mut self, row: &RequestRow, out: &mut Out) {
        let Some(commit) = self.commits.get(&row.id) else { return };
        let id = commit.id;
        let recorded = self.requests.contains_key(&row.uid);
        if commit.is_let_go() {
            if row.state != RequestState::Removed || !recorded {
                self.put_request("removed", RequestRow { state: RequestState::Removed, problem: None, ..row.clone() }, out);
            }
        } else if let Some(holder) = self.needed_by(id) {
            let problem = Problem::new(Reason::Pinned, format!("commit {id} is pinned by {holder}; it goes when that lets go"));
            if row.problem.as_ref() != Some(&problem) || row.state != RequestState::Removing {
                self.put_request("remove-pinned", RequestRow { state: RequestState::Removing, problem: Some(problem), ..row.clone() }, out);
            }
        } else if self.is_base(id) {
            let commit = Commit { kept: Some(row.uid), transient: true, ..commit.clone() };
            out.records.push(Record::Commit("commit-let-go", Box::new(commit.clone())));
            self.commits.insert(id, commit);
            self.put_request("removed", RequestRow { state: RequestState::Removed, problem: None, ..row.clone() }, out);
        } else {
            self.drop_commit(id, out);
            self.put_request("remove-intent", RequestRow { state: RequestState::Removing, problem: None, ..row.clone() }, out);
        }
    }

    /// Its subvolume goes next.
    pub(super) fn drop_commit(&mut self, id: CommitId, out: &mut Out) {
        self.commits.remove(&id);
        self.removing.insert(id);
        out.records.push(Record::CommitRemoving(id));
        out.records.push(Record::CommitGone(id));
    }

    fn kept_by(&self, uid: RequestUid) -> Option<CommitId> {
        self.commits.values().find(|c| c.kept == Some(uid)).map(|c| c.id)
    }

    /// Whether increments start from it, or it is on its way: on the owner what a job pins, on a copy the newest that it has.
    fn is_base(&self, id: CommitId) -> bool {
        self.is_between(id) || self.role() == Some(Role::Replica) && self.newest_lasting() == Some(id)
    }

    /// Nothing may remove it now.
    pub(super) fn is_pinned(&self, id: CommitId) -> bool {
        self.is_between(id) || self.needed_by(id).is_some()
    }

    /// A transfer, perhaps one that has stopped, starts from it or brings it.
    fn is_between(&self, id: CommitId) -> bool {
        self.jobs.values().any(|j| j.pins(id)) || self.partial.as_ref().is_some_and(|p| p.base == Some(id))
    }

    /// Who needs this commit, other than the increments of jobs, for a message; `None`: nobody.
    fn needed_by(&self, id: CommitId) -> Option<String> {
        if let Some(fs) = self.origin_pins.iter().find(|(_, c)| **c == id).map(|(fs, _)| fs) {
            return Some(format!("the Branch with Filesystem {fs}"));
        }
        // As it was when that began; another send of it tells the receiver that it is let go.
        if self.running.values().any(|r| matches!(&r.task, Task::Send { to, .. } if to.id == id)) {
            return Some("a replication job that is sending it".into());
        }
        // A pod's own path sorts after the one at which the kubelet stages its volume.
        let mounts = self.mounts.iter().rev().filter(|(_, what)| *what == super::MountWhat::Commit(id));
        let targets: Vec<&str> = mounts.take(NAMED_MOUNTS).map(|(target, _)| target.as_str()).collect();
        if !targets.is_empty() {
            return Some(format!("a mount at {}", targets.join(", ")));
        }
        if self.is_running(Slot::Receive) && self.partial.as_ref().is_some_and(|p| p.base == Some(id)) {
            return Some("a receive in progress (its base)".into());
        }
        if self.base.as_ref().is_some_and(|b| b.frozen == Some(id)) {
            return Some("the fence of this Filesystem".into());
        }
        if self.pinned_by_move(id) {
            return Some("a handoff of this Filesystem".into());
        }
        if self.pinned_by_reset(id) {
            return Some("a reset of this Filesystem".into());
        }
        None
    }

    // ---- results ----

    pub(super) fn on_head_done(&mut self, task: Task, result: Result<TaskDone, Problem>, ctx: &Ctx, out: &mut Out) {
        match (task, result) {
            (Task::Commit { commit, .. }, Ok(TaskDone::Committed { changed_bytes })) => self.on_committed(*commit, changed_bytes, ctx, out),
            (Task::Commit { commit, .. }, Err(problem)) if commit.transient => self.on_precopy_failed(&commit, problem, out),
            (Task::Commit { commit, .. }, Err(problem)) => self.on_commit_failed(&commit, problem, out),
            (Task::DeleteCommit(id), Ok(_)) => {
                self.removing.remove(&id);
                out.records.push(Record::CommitRemoved(id));
                self.usage_due = BootTime(0);
            }
            (Task::DeleteCommit(_), Err(problem)) => self.trouble("Degraded", problem, out),
            (Task::Fence { commit, .. }, result) if commit.kept.is_some() => self.on_reset_fenced(*commit, result.map(|_| ()), ctx, out),
            (Task::Fence { commit, .. }, result) => self.on_fenced(*commit, result, ctx, out),
            (Task::Thaw, result) => self.on_thawed(result, ctx, out),
            _ => {}
        }
    }

    fn on_committed(&mut self, commit: Commit, changed_bytes: Option<u64>, ctx: &Ctx, out: &mut Out) {
        let id = commit.id;
        out.records.push(Record::Commit("committed", Box::new(commit.clone())));
        if let Some(row) = commit.kept.and_then(|uid| self.requests.get(&uid)).cloned() {
            self.put_request("commit-done", RequestRow { state: RequestState::Done, changed_bytes, problem: None, ..row }, out);
        }
        let transient = commit.transient;
        self.commits.insert(id, commit);
        self.usage_due = BootTime(0);
        if transient {
            return self.on_precopy_made(changed_bytes, ctx);
        }
        self.clear("CommitBlocked");
        out.notes.push(Note { warning: false, reason: "Committed".into(), message: format!("commit {id}") });
        self.on_new_commit_for_jobs(ctx, out);
    }

    fn on_commit_failed(&mut self, commit: &Commit, problem: Problem, out: &mut Out) {
        if let Some(row) = commit.kept.and_then(|uid| self.requests.get(&uid)).cloned()
            && row.problem.as_ref() != Some(&problem)
        {
            self.put_request("commit-blocked", RequestRow { problem: Some(problem.clone()), ..row }, out);
        }
        self.trouble("CommitBlocked", problem, out);
    }

    /// Journal and disk after a restart: intended commits that made it to disk are taken in, unknown ones too; what the
    /// journal has and the disk has not is reported, never forgotten in silence.
    pub(super) fn reconcile_commits(&mut self, on_disk: &[Commit], journal_lost: bool, out: &mut Out) {
        for commit in on_disk {
            if self.removing.contains(&commit.id) || self.commits.contains_key(&commit.id) {
                continue;
            }
            if commit.transient && !commit.is_let_go() && !journal_lost {
                self.drop_fence_commit(commit.id, out);
                continue;
            }
            if self.is_unproven_reset(commit) {
                self.forget_reset_commit(commit, out);
                continue;
            }
            out.records.push(Record::Commit("commit-found", Box::new(commit.clone())));
            self.commits.insert(commit.id, commit.clone());
            self.finish_request_of(commit, out);
        }
        let known: std::collections::BTreeSet<CommitId> = on_disk.iter().map(|c| c.id).collect();
        let lost: Vec<CommitId> = self.commits.keys().filter(|id| !known.contains(id)).copied().collect();
        for id in &lost {
            self.commits.remove(id);
            out.records.push(Record::CommitGone(*id));
        }
        if !lost.is_empty() {
            let ids: Vec<String> = lost.iter().take(4).map(ToString::to_string).collect();
            let text = format!("{} commits of the journal are not in the pool: {}", lost.len(), ids.join(", "));
            self.trouble("CommitsLost", Problem::new(Reason::CorruptDisk, text), out);
        }
    }

    pub(super) fn finish_request_of(&mut self, commit: &Commit, out: &mut Out) {
        let Some(uid) = commit.kept.filter(|_| !commit.is_let_go()) else { return };
        let row = self.requests.get(&uid).cloned().unwrap_or(RequestRow {
            version: FORMAT_VERSION,
            uid,
            id: commit.id,
            state: RequestState::Pending,
            parent: commit.parent,
            time: commit.time,
            changed_bytes: None,
            problem: None,
            reset_to: None,
        });
        if row.id == commit.id && row.state == RequestState::Pending {
            self.put_request("commit-done", RequestRow { state: RequestState::Done, problem: None, ..row }, out);
        }
    }
}

fn removed_row(uid: RequestUid, id: Option<CommitId>) -> RequestRow {
    RequestRow {
        version: FORMAT_VERSION,
        uid,
        id: id.unwrap_or_else(|| CommitId::from_uuid(uid.uuid())),
        state: if id.is_some() { RequestState::Removing } else { RequestState::Removed },
        parent: None,
        time: Timestamp(0),
        changed_bytes: None,
        problem: None,
        reset_to: None,
    }
}
