//! Taking and removing commits. One at a time per Filesystem, and in turn with [`super::fence`], as they all touch the head or what hangs
//! on it. [`super::history`] keeps them.
//!
//! Commit: *commit-intent* (uid → id, so that a repeated request makes no second one) → snapshot → *committed*.
//! Removal: *commit-removing* → subvolume gone → *commit-removed*. A pinned commit is not removed; the request says by whom. One that only
//! increments need is let go: *commit-let-go*, which is the end of it for who asked, and its removal follows when they don't (ADR 11).

use super::event::{Ctx, Out, Task};
use super::head::For;
use super::record::{RequestRow, RequestState};
use super::tasks::{Slot, desk};
use super::trouble::Trouble;
use super::{Filesystem, source};
use crate::format::Kind;
use crate::ids::{CommitId, RequestUid, Timestamp};
use crate::model::{Commit, Problem, Reason};
use crate::words::{Role, WantedCommit};

impl Filesystem {
    pub(super) fn advance_head(&mut self, ctx: &Ctx, out: &mut Out) {
        self.advance_fences(ctx, out);
        let is_opening = self.tasks.is_running(Slot::Life) && !self.head.is_open();
        if !self.standing.is_active() || is_opening || !self.tasks.is_ready(Slot::Head, ctx.boot) {
            return;
        }
        // A fence goes first: someone waits for it, and a commit that can't be made must not keep it.
        if self.head.is_fence_wanted() {
            return;
        }
        let owner = self.standing.is_owner() && !self.standing.is_superseded() && !self.standing.is_headless();
        let may_thaw = owner && !self.handoff.is_in_doubt();
        if self.head.is_to_be_thawed() && may_thaw {
            self.start_thaw(out);
        } else if self.may_write() {
            self.advance_wanted(ctx, out);
        }
    }

    /// One at a time, each in its turn, beside commits.
    pub(super) fn advance_removals(&mut self, ctx: &Ctx, out: &mut Out) {
        self.settle_fences(out);
        if !self.standing.is_active() {
            return;
        }
        self.settle_requests(out);
        self.expire_transients(ctx, out);
        if self.tasks.is_ready(Slot::Removal, ctx.boot)
            && let Some(id) = self.history.next_removal()
        {
            self.tasks.start(Slot::Removal, Task::DeleteCommit(id), out);
        }
    }

    // ---- making ----

    /// Starts the first wanted commit that is not there yet. A pending one of an earlier life keeps its id.
    fn advance_wanted(&mut self, ctx: &Ctx, out: &mut Out) {
        // A reset waits for pods: nothing else has to wait for it.
        let wanted: Vec<WantedCommit> = self.wish.commits().iter().filter(|w| !w.remove).cloned().collect();
        let (resets, plain): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|w| w.reset_to.is_some());
        self.resets.keep_blocked(|uid| resets.iter().any(|w| w.uid == uid));
        for want in plain.into_iter().chain(resets) {
            if want.reset_to.is_some() && !self.tasks.is_ready(Slot::Look, ctx.boot) {
                continue;
            }
            // Nothing is recorded of one that can't begin.
            let open = self.history.is_open(want.uid) && want.id.is_none();
            if let Some(to) = want.reset_to.filter(|_| open && self.history.kept_by(want.uid).is_none())
                && !self.can_reset(want.uid, to, ctx, out)
            {
                continue;
            }
            let row = match self.history.request(want.uid).cloned() {
                // What a try has left on disk goes first: it has the same id.
                Some(row) if self.history.is_removing(row.id) => continue,
                Some(row) if row.state == RequestState::Pending => self.intend_again(row, ctx, out),
                Some(_) => continue,
                None => match self.history.kept_by(want.uid).cloned() {
                    // Made by an earlier owner: here if it is here, else it is not made a second time.
                    Some(commit) => {
                        self.history.finish_request_of(&commit, out);
                        continue;
                    }
                    None if want.id.is_some() => continue,
                    None => self.intend(&want, ctx, out),
                },
            };
            let (qgroup, commit) = (self.standing.qgroup(), Box::new(self.commit_of(&row, &want)));
            if row.reset_to.is_some() {
                self.head.want_fence(For::Reset(commit));
                return self.advance_fences(ctx, out);
            }
            return self.tasks.start(Slot::Head, Task::Commit { qgroup, commit }, out);
        }
    }

    fn intend(&mut self, want: &WantedCommit, ctx: &Ctx, out: &mut Out) -> RequestRow {
        let row = RequestRow {
            version: Kind::Request.newest(),
            uid: want.uid,
            id: CommitId::from_uuid(ctx.fresh.uuid()),
            state: RequestState::Pending,
            parent: self.parent_of_next(),
            time: self.history.time_of_next(ctx.now),
            changed_bytes: None,
            problem: None,
            reset_to: want.reset_to,
        };
        self.history.put_request("commit-intent", row.clone(), out);
        row
    }

    /// A commit that could not be made stays what it is called; what was committed meanwhile comes before it.
    fn intend_again(&mut self, row: RequestRow, ctx: &Ctx, out: &mut Out) -> RequestRow {
        let parent = self.parent_of_next();
        if row.parent == parent && self.history.all().all(|c| c.time < row.time) {
            return row;
        }
        // Never an earlier one: what a try has left on disk may have the one before.
        let time = self.history.time_of_next(ctx.now).max(row.time);
        let row = RequestRow { parent, time, ..row };
        self.history.put_request("commit-intent", row.clone(), out);
        row
    }

    fn commit_of(&mut self, row: &RequestRow, want: &WantedCommit) -> Commit {
        let epoch = self.standing.epoch();
        Commit {
            version: Kind::Commit.newest(),
            id: row.id,
            fs_id: self.id,
            parent: row.parent,
            time: row.time,
            epoch,
            seq: self.history.number_next(epoch),
            message: want.message.clone(),
            metadata: want.metadata.clone(),
            kept: Some(row.uid),
            transient: false,
            reset_to: row.reset_to.map(|to| to.commit),
        }
    }

    /// It was asked for while something still wrote; what it holds is what the head holds now. Never an earlier time: what a try has left on
    /// disk may have the one before.
    pub(super) fn as_of_now(&mut self, commit: Commit, ctx: &Ctx, out: &mut Out) -> Commit {
        let time = self.history.time_of_next(ctx.now).max(commit.time);
        if let Some(row) = commit.kept.and_then(|uid| self.history.request(uid)).filter(|r| r.id == commit.id && r.time != time).cloned() {
            self.history.put_request("commit-intent", RequestRow { time, ..row }, out);
        }
        Commit { time, ..commit }
    }

    /// One that people don't see, and nobody keeps.
    pub(super) fn transient_commit(&mut self, ctx: &Ctx) -> Commit {
        let epoch = self.standing.epoch();
        Commit {
            version: Kind::Commit.newest(),
            id: CommitId::from_uuid(ctx.fresh.uuid()),
            fs_id: self.id,
            parent: self.parent_of_next(),
            time: self.history.time_of_next(ctx.now),
            epoch,
            seq: self.history.number_next(epoch),
            message: String::new(),
            metadata: std::collections::BTreeMap::new(),
            kept: None,
            transient: true,
            reset_to: None,
        }
    }

    fn parent_of_next(&self) -> Option<CommitId> {
        self.history.parent_of_next(self.standing.origin().map(|o| o.commit))
    }

    // ---- removing ----

    /// Removals that objects ask for, and rows whose objects are gone; a reset that was taken back before it began is one.
    fn settle_requests(&mut self, out: &mut Out) {
        if !self.wish.is_known() {
            return;
        }
        let wanted = self.wish.commits().to_vec();
        for want in wanted.iter().filter(|w| w.remove) {
            self.settle_removal(want, out);
        }
        // What has come along with authority is older than the wish for an owner here.
        let knows = self.wish.role() == Some(Role::Owner);
        let taken_back = |r: &RequestRow| r.state == RequestState::Pending && r.reset_to.is_some();
        let is_over = |r: &&RequestRow| r.state == RequestState::Removed || knows && taken_back(r);
        let over = self.history.requests().filter(is_over).map(|r| r.uid);
        let gone: Vec<RequestUid> = over.filter(|uid| !wanted.iter().any(|w| w.uid == *uid)).collect();
        for uid in gone {
            self.history.forget_request(uid, out);
        }
    }

    fn settle_removal(&mut self, want: &WantedCommit, out: &mut Out) {
        let known = self.history.request(want.uid).cloned();
        let Some(id) = want.id.or_else(|| known.as_ref().map(|r| r.id)).or_else(|| self.history.kept_by(want.uid).map(|c| c.id)) else {
            // It was never made here.
            return self.history.put_request("removed", removed_row(want.uid, None), out);
        };
        let is_known = known.is_some();
        let row = known.unwrap_or_else(|| removed_row(want.uid, Some(id)));
        if row.state == RequestState::Pending && self.tasks.is_running(Slot::Head) {
            return; // being taken just now: first that, then its removal
        }
        let (removing, removed) = (RequestState::Removing, RequestState::Removed);
        if row.state == RequestState::Pending && !self.history.has(id) {
            // A try that failed may have left something on disk.
            self.history.sweep(id, out);
            self.history.put_request("remove-intent", RequestRow { state: removing, problem: None, ..row }, out);
        } else if self.history.has(id) {
            self.remove_known(&RequestRow { id, ..row }, out);
        } else if row.state != removed && self.inbox.stops(id, &mut self.tasks, out) {
            // It may just have arrived.
        } else if !self.history.is_removing(id) && row.state != removed {
            self.history.put_request("removed", RequestRow { state: removed, problem: None, id, ..row }, out);
        } else if !is_known {
            self.history.put_request("remove-intent", RequestRow { state: removing, problem: None, id, ..row }, out);
        }
    }

    /// Removes a commit that is here, or lets go of it, or says who needs it.
    fn remove_known(&mut self, row: &RequestRow, out: &mut Out) {
        let Some(commit) = self.history.get(row.id) else { return };
        let (id, is_let_go) = (commit.id, commit.is_let_go());
        let recorded = self.history.request(row.uid).is_some();
        let with = |state, problem| RequestRow { state, problem, ..row.clone() };
        // On a copy it is seen no more, and so stands in no increment's way when its owner has it no longer.
        let begins_with = self.standing.role() == Some(Role::Replica) && self.pinned_by_reset(id);
        if is_let_go {
            if row.state != RequestState::Removed || !recorded {
                self.history.put_request("removed", with(RequestState::Removed, None), out);
            }
        } else if let Some(holder) = self.needed_by(id).filter(|_| !begins_with) {
            let problem = Problem::new(Reason::Pinned, format!("commit {id} is pinned by {holder}; it goes when that lets go"));
            if row.problem.as_ref() != Some(&problem) || row.state != RequestState::Removing {
                self.history.put_request("remove-pinned", with(RequestState::Removing, Some(problem)), out);
            }
        } else if begins_with || self.is_base(id) {
            self.history.let_go(id, row.uid, out);
            self.history.put_request("removed", with(RequestState::Removed, None), out);
        } else {
            self.history.drop_commit(id, out);
            self.history.put_request("remove-intent", with(RequestState::Removing, None), out);
        }
    }

    /// A transient commit lives until what it waits for is acknowledged, whatever any clock says (ADR 22): whoever waits pins it. On a copy the
    /// newest commit stays, transient or not: it is what the copy is complete to, and what the next increment starts from. On the owner
    /// one goes when a newer one is there, or once it is no more than a cache, and that for long enough. Those that were let go go when
    /// there is a newer one that is not transient, or no job that would send it. Nothing that is in use.
    fn expire_transients(&mut self, ctx: &Ctx, out: &mut Out) {
        let (owner, waits) = (self.standing.is_owner(), self.handoff.is_in_hand() || self.wish.precopy_to(&self.here).is_some());
        let cached = self.history.newest_transient().map(|c| c.id).filter(|_| owner && !waits);
        self.precopy.cache(cached, ctx.boot);
        let newest = if owner { self.history.newest_transient() } else { self.history.newest() }.map(|c| c.id);
        let stale = self.precopy.is_stale(ctx.boot);
        // Without a head nothing newer comes.
        let lasting = self.history.newest_lasting().filter(|_| !self.wish.is_headless());
        let has_jobs = self.wish.present().is_none_or(|p| !p.jobs.is_empty());
        let alone = self.standing.is_owner() && !has_jobs && !self.history.ends_with_reset();
        let has_had_its_time = |c: &Commit| {
            if c.is_let_go() { alone || lasting != Some(c.id) } else { newest != Some(c.id) || stale }
        };
        let old = self.history.all().filter(|c| c.transient && has_had_its_time(c)).map(|c| c.id);
        let old: Vec<CommitId> = old.filter(|id| !self.is_pinned(*id)).collect();
        for id in old {
            self.history.drop_commit(id, out);
        }
    }

    // ---- who needs one ----

    /// Whether increments start from it, or it is on its way: on the owner what a job pins, on a copy the newest that it has. Of a history that
    /// ends with a reset the newest says what the head began with.
    fn is_base(&self, id: CommitId) -> bool {
        let says_more = self.standing.role() == Some(Role::Replica) || self.history.ends_with_reset();
        self.is_between(id) || says_more && self.history.newest_lasting() == Some(id)
    }

    /// Nothing may remove it now.
    fn is_pinned(&self, id: CommitId) -> bool {
        self.is_between(id) || self.needed_by(id).is_some()
    }

    /// A transfer, perhaps one that has stopped, starts from it or brings it.
    fn is_between(&self, id: CommitId) -> bool {
        self.outbox.pins(id) || self.is_lent(id) || self.inbox.base() == Some(id)
    }

    /// Who needs this commit, other than the increments of jobs, for a message; `None`: nobody.
    fn needed_by(&self, id: CommitId) -> Option<String> {
        if let Some(fs) = self.history.started_from(id) {
            return Some(format!("the Branch with Filesystem {fs}"));
        }
        // As it was when that began; another send of it tells the receiver that it is let go.
        if self.tasks.runs(|_, task| matches!(task, Task::Send { to, .. } if to.id == id)) {
            return Some("a replication job that is sending it".into());
        }
        if let Some(mounts) = self.mounts.holding(id) {
            return Some(mounts);
        }
        let holder = match () {
            () if self.tasks.is_running(Slot::Receive) && self.inbox.base() == Some(id) => "a receive in progress (its base)",
            () if self.standing.frozen() == Some(id) => "the fence of this Filesystem",
            () if self.handoff.pins(id) || self.standing.head_from() == Some(id) => "a handoff of this Filesystem",
            () if self.pinned_by_reset(id) => "a reset of this Filesystem",
            () => return None,
        };
        Some(holder.into())
    }

    // ---- results ----

    pub(super) fn on_commit_ended(&mut self, commit: Commit, result: Result<Option<u64>, Problem>, ctx: &Ctx, out: &mut Out) {
        match result {
            Ok(changed_bytes) => self.on_committed(commit, changed_bytes, ctx, out),
            Err(problem) if commit.transient => self.on_precopy_failed(&commit, problem, out),
            Err(problem) => self.on_commit_failed(&commit, problem, out),
        }
    }

    fn on_committed(&mut self, commit: Commit, changed_bytes: Option<u64>, ctx: &Ctx, out: &mut Out) {
        let (id, transient, kept) = (commit.id, commit.transient, commit.kept);
        self.history.put("committed", commit, out);
        if let Some(row) = kept.and_then(|uid| self.history.request(uid)).cloned() {
            self.history.put_request("commit-done", RequestRow { state: RequestState::Done, changed_bytes, problem: None, ..row }, out);
        }
        self.usage.look();
        if transient {
            return self.on_precopy_made(changed_bytes, ctx);
        }
        self.troubles.clear(Trouble::CommitBlocked);
        out.note("Committed", format!("commit {id}"));
        self.outbox.on_new_commit(source!(self), &mut desk!(self, ctx, out));
    }

    fn on_commit_failed(&mut self, commit: &Commit, problem: Problem, out: &mut Out) {
        if let Some(row) = commit.kept.and_then(|uid| self.history.request(uid)).cloned()
            && row.problem.as_ref() != Some(&problem)
        {
            self.history.put_request("commit-blocked", RequestRow { problem: Some(problem.clone()), ..row }, out);
        }
        self.troubles.raise(Trouble::CommitBlocked, problem, out);
    }

    pub(super) fn on_removed(&mut self, id: CommitId, result: Result<(), Problem>, out: &mut Out) {
        match result {
            Ok(()) => {
                self.history.removed(id, out);
                self.usage.look();
            }
            Err(problem) => self.troubles.raise(Trouble::Degraded, problem, out),
        }
    }

    /// Journal and disk after a restart: intended commits that made it to disk are taken in, unknown ones too; what the
    /// journal has and the disk has not is reported, never forgotten in silence.
    pub(super) fn reconcile_commits(&mut self, on_disk: &[Commit], journal_lost: bool, out: &mut Out) {
        for commit in on_disk {
            if self.history.is_removing(commit.id) || self.history.has(commit.id) {
                continue;
            }
            if commit.transient && !commit.is_let_go() && !journal_lost {
                self.history.sweep(commit.id, out);
            } else if self.is_unproven_reset(commit) {
                self.forget_reset_commit(commit, out);
            } else {
                self.history.put("commit-found", commit.clone(), out);
                self.history.finish_request_of(commit, out);
            }
        }
        let lost = self.history.lose_all_but(on_disk, out);
        if !lost.is_empty() {
            let ids: Vec<String> = lost.iter().take(4).map(ToString::to_string).collect();
            let text = format!("{} commits of the journal are not in the pool: {}", lost.len(), ids.join(", "));
            self.troubles.raise(Trouble::CommitsLost, Problem::new(Reason::CorruptDisk, text), out);
        }
    }
}

fn removed_row(uid: RequestUid, id: Option<CommitId>) -> RequestRow {
    RequestRow {
        version: Kind::Request.newest(),
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
