//! Which commits this copy holds, which it was asked for, which are going, and which of them other Filesystems of this node started from. Every
//! change is journaled here; who may ask for one is decided in [`super::commits`].

use std::collections::{BTreeMap, BTreeSet};

use super::event::Out;
use super::record::{OriginPinRow, Record, Recovered, RequestRow, RequestState};
use crate::format::Kind;
use crate::ids::{CommitId, Epoch, FsId, RequestUid, Timestamp};
use crate::model::{Commit, Problem, Reason};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct History {
    commits: BTreeMap<CommitId, Commit>,
    removing: BTreeSet<CommitId>,
    requests: BTreeMap<RequestUid, RequestRow>,
    origin_pins: BTreeMap<FsId, CommitId>,
    /// Who has pinned since clones were asked last: their answer may be older.
    pinned_anew: BTreeSet<FsId>,
    /// The removal tried last, so that the next one gets its turn.
    last_removal: Option<CommitId>,
    /// The highest number that was given to a commit since this program started, and in which epoch: one that was removed isn't given again.
    numbered: (Epoch, u64),
}

impl History {
    pub(super) fn recovered(rows: &mut Recovered) -> Self {
        Self {
            commits: std::mem::take(&mut rows.commits).into_iter().map(|c| (c.id, c)).collect(),
            removing: std::mem::take(&mut rows.removing).into_iter().collect(),
            requests: std::mem::take(&mut rows.requests).into_iter().map(|r| (r.uid, r)).collect(),
            origin_pins: std::mem::take(&mut rows.pins).into_iter().map(|p| (p.by, p.commit)).collect(),
            pinned_anew: BTreeSet::new(),
            last_removal: None,
            numbered: (Epoch(0), 0),
        }
    }

    // ---- views: commits ----

    pub(super) fn get(&self, id: CommitId) -> Option<&Commit> {
        self.commits.get(&id)
    }

    pub(super) fn has(&self, id: CommitId) -> bool {
        self.commits.contains_key(&id)
    }

    /// It is here, and not only as the base of the next increment.
    pub(super) fn has_for_use(&self, id: CommitId) -> bool {
        self.get(id).is_some_and(|c| !c.is_let_go())
    }

    pub(super) fn count(&self) -> usize {
        self.commits.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Commit> {
        self.commits.values()
    }

    /// Oldest first.
    pub(super) fn in_order(&self) -> Vec<&Commit> {
        let mut all: Vec<&Commit> = self.commits.values().collect();
        all.sort_by_key(|c| c.order());
        all
    }

    fn newest_of(&self, which: impl Fn(&Commit) -> bool) -> Option<&Commit> {
        self.commits.values().filter(|c| which(c)).max_by_key(|c| c.order())
    }

    pub(super) fn newest(&self) -> Option<&Commit> {
        self.newest_of(|_| true)
    }

    /// The newest that people see: transient ones are left out.
    pub(super) fn newest_visible(&self) -> Option<&Commit> {
        self.newest_of(|c| !c.transient)
    }

    /// The newest, but for those that the Filesystem made for itself.
    pub(super) fn newest_lasting(&self) -> Option<CommitId> {
        self.newest_of(|c| !c.transient || c.is_let_go()).map(|c| c.id)
    }

    /// The commit that the head was reset to, if none was made since: the newest then only keeps what the reset took away.
    pub(super) fn reset_to(&self) -> Option<CommitId> {
        self.newest_of(|c| !c.transient || c.is_let_go()).and_then(|c| c.reset_to)
    }

    /// The last that happened to it was a reset.
    pub(super) fn ends_with_reset(&self) -> bool {
        self.reset_to().is_some()
    }

    /// The newest of those.
    pub(super) fn newest_transient(&self) -> Option<&Commit> {
        self.newest_of(|c| c.transient && !c.is_let_go())
    }

    /// The commit that this object keeps.
    pub(super) fn kept_by(&self, uid: RequestUid) -> Option<&Commit> {
        self.commits.values().find(|c| c.kept == Some(uid))
    }

    /// The one that the next comes after; without any, that is what the Filesystem started from.
    pub(super) fn parent_of_next(&self, origin: Option<CommitId>) -> Option<CommitId> {
        self.newest_visible().map(|c| c.id).or(origin)
    }

    /// Later than every commit there is, whatever the clock does: people, and versions before 0.2, order a history by it.
    pub(super) fn time_of_next(&self, now: Timestamp) -> Timestamp {
        self.commits.values().map(|c| c.time.plus_ms(1)).max().map_or(now, |after| now.max(after))
    }

    /// The number of the next commit of this epoch: one more than any that is here or was given.
    pub(super) fn number_next(&mut self, epoch: Epoch) -> u64 {
        let here = self.commits.values().filter(|c| c.epoch == epoch).map(|c| c.seq).max().unwrap_or(0);
        let given = if self.numbered.0 == epoch { self.numbered.1 } else { 0 };
        let seq = here.max(given).saturating_add(1);
        self.numbered = (epoch, seq);
        seq
    }

    /// Whether `target` may come on top of `base`.
    pub(super) fn checked_base(&self, target: &Commit, base: Option<CommitId>) -> Result<(), Problem> {
        // A transient commit is no history of its own, but both sides may have it as a base.
        let newest = self.newest_visible();
        let not_older = |id| self.get(id).is_some_and(|c| c.transient && newest.is_none_or(|n| n.order() <= c.order()));
        if base.is_some_and(not_older) {
            return Ok(());
        }
        // An older kept commit that this copy was never sent: it goes to its place in the history, and nothing is overwritten.
        let is_older = target.kept.is_some() && !target.transient && newest.is_some_and(|n| target.order() < n.order());
        if is_older && base.is_some_and(|b| self.has(b)) {
            return Ok(());
        }
        match (base, newest.map(|c| c.id)) {
            (None, None) => Ok(()), // a full copy beside transient ones loses nothing
            (None, Some(have)) => Err(Problem::new(
                Reason::BaseGone,
                format!("this replica already has commits (newest {have}); a full copy would lose them: plan again"),
            )),
            (Some(base), Some(have)) if base == have => Ok(()),
            (Some(base), _) if self.has(base) => {
                Err(Problem::new(Reason::Diverged, format!("this replica has commits after {base}; list versions and plan again")))
            }
            (Some(base), _) => Err(Problem::new(Reason::BaseGone, format!("commit {base} is not here; list versions and plan again"))),
        }
    }

    /// Whether `target` may come to its place before the newest, on top of any base, or as a whole. It never becomes the newest: the next commit
    /// would be said to come after it, and a copy that takes over would start from it, though the head may have nothing of it.
    pub(super) fn checked_older(&self, target: &Commit, base: Option<CommitId>) -> Result<(), Problem> {
        if target.transient || target.kept.is_none() {
            return Err(Problem::new(Reason::Invalid, "only a kept commit is fetched"));
        }
        if self.newest_visible().is_none_or(|n| n.order() < target.order()) {
            return Err(Problem::new(Reason::Busy, format!("commit {} comes once there is a newer one here", target.id)));
        }
        match base.filter(|b| !self.has(*b)) {
            Some(base) => Err(Problem::new(Reason::BaseGone, format!("commit {base} is not here; list versions and plan again"))),
            None => Ok(()),
        }
    }

    // ---- views: what goes, what is asked for, who started from here ----

    pub(super) fn is_removing(&self, id: CommitId) -> bool {
        self.removing.contains(&id)
    }

    pub(super) fn request(&self, uid: RequestUid) -> Option<&RequestRow> {
        self.requests.get(&uid)
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = &RequestRow> {
        self.requests.values()
    }

    /// Intended, and not made for sure.
    pub(super) fn pending(&self) -> impl Iterator<Item = &RequestRow> {
        self.requests.values().filter(|r| r.state == RequestState::Pending)
    }

    /// Not begun, or not made for sure.
    pub(super) fn is_open(&self, uid: RequestUid) -> bool {
        self.request(uid).is_none_or(|r| r.state == RequestState::Pending)
    }

    /// A Filesystem of this node that started from that commit.
    pub(super) fn started_from(&self, id: CommitId) -> Option<FsId> {
        self.origin_pins.iter().find(|(_, c)| **c == id).map(|(fs, _)| *fs)
    }

    /// Who has pinned which commit.
    pub(super) fn origin_pins(&self) -> impl Iterator<Item = (FsId, CommitId)> {
        self.origin_pins.iter().map(|(by, commit)| (*by, *commit))
    }

    /// It has pinned since clones were asked last.
    pub(super) fn is_pinned_anew(&self, by: FsId) -> bool {
        self.pinned_anew.contains(&by)
    }

    // ---- commits come and go ----

    /// It is here; the record says how it came.
    pub(super) fn put(&mut self, record: &'static str, commit: Commit, out: &mut Out) {
        out.records.push(Record::Commit(record, Box::new(commit.clone())));
        self.commits.insert(commit.id, commit);
    }

    /// Its object needs it no more; increments do.
    pub(super) fn let_go(&mut self, id: CommitId, kept: RequestUid, out: &mut Out) {
        if let Some(commit) = self.get(id) {
            self.put("commit-let-go", Commit { kept: Some(kept), transient: true, ..commit.clone() }, out);
        }
    }

    /// It goes; its subvolume next.
    pub(super) fn drop_commit(&mut self, id: CommitId, out: &mut Out) {
        self.commits.remove(&id);
        self.sweep(id, out);
        out.records.push(Record::CommitGone(id));
    }

    /// What a try may have left of it on disk goes.
    pub(super) fn sweep(&mut self, id: CommitId, out: &mut Out) {
        self.removing.insert(id);
        out.records.push(Record::CommitRemoving(id));
    }

    /// It is off the disk.
    pub(super) fn removed(&mut self, id: CommitId, out: &mut Out) {
        self.removing.remove(&id);
        out.records.push(Record::CommitRemoved(id));
    }

    /// The next one to take off the disk, each in its turn.
    pub(super) fn next_removal(&mut self) -> Option<CommitId> {
        let after = self.last_removal.and_then(|last| self.removing.iter().find(|id| **id > last));
        self.last_removal = after.or_else(|| self.removing.first()).copied();
        self.last_removal
    }

    /// All of it is off the disk.
    pub(super) fn clear(&mut self) {
        *self = Self::recovered(&mut Recovered::default());
    }

    /// Commits that the journal has and the disk has not: they are no more.
    pub(super) fn lose_all_but(&mut self, on_disk: &[Commit], out: &mut Out) -> Vec<CommitId> {
        let known: BTreeSet<CommitId> = on_disk.iter().map(|c| c.id).collect();
        let lost: Vec<CommitId> = self.commits.keys().filter(|id| !known.contains(id)).copied().collect();
        for id in &lost {
            self.commits.remove(id);
            out.records.push(Record::CommitGone(*id));
        }
        lost
    }

    // ---- requests ----

    pub(super) fn put_request(&mut self, record: &'static str, row: RequestRow, out: &mut Out) {
        out.records.push(Record::Request(record, Box::new(row.clone())));
        self.requests.insert(row.uid, row);
    }

    /// Its object is gone, or it is none of ours any more.
    pub(super) fn forget_request(&mut self, uid: RequestUid, out: &mut Out) {
        if self.requests.remove(&uid).is_some() {
            out.records.push(Record::RequestGone(uid));
        }
    }

    /// Commits that were only intended here are made by the new owner.
    pub(super) fn forget_pending(&mut self, out: &mut Out) {
        for uid in self.pending().map(|r| r.uid).collect::<Vec<_>>() {
            self.forget_request(uid, out);
        }
    }

    /// Intended by the owner before, under that id.
    pub(super) fn adopt_request(&mut self, row: RequestRow, out: &mut Out) {
        if !self.requests.contains_key(&row.uid) {
            self.put_request("commit-intent", row, out);
        }
    }

    /// It is here: whoever asked for it has it.
    pub(super) fn finish_request_of(&mut self, commit: &Commit, out: &mut Out) {
        let Some(uid) = commit.kept.filter(|_| !commit.is_let_go()) else { return };
        let row = self.request(uid).cloned().unwrap_or(RequestRow {
            version: Kind::Request.newest(),
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

    // ---- origins ----

    /// A Filesystem of this node starts from it.
    pub(super) fn pin_origin(&mut self, by: FsId, commit: CommitId, out: &mut Out) {
        self.origin_pins.insert(by, commit);
        out.records.push(Record::OriginPin(Box::new(OriginPinRow { version: Kind::OriginPin.newest(), by, commit })));
        self.pinned_anew.insert(by);
    }

    /// It needs it no more.
    pub(super) fn unpin_origin(&mut self, by: FsId, out: &mut Out) {
        if self.origin_pins.remove(&by).is_some() {
            out.records.push(Record::OriginPinGone(by));
        }
    }

    /// Clones are asked now.
    pub(super) fn ask_about_pins(&mut self) {
        self.pinned_anew.clear();
    }
}
