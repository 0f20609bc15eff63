//! What must hold: at every step, and at the end (design §4, §6; failures.md rows 1-6 and 20).

use std::collections::{BTreeMap, BTreeSet};

use dotgraft_engine::filesystem::{CheckpointRow, CopyState, Intent, Life, MountWhat, Offer, Present, RequestState, Role, Task, Why};
use dotgraft_engine::ids::{BootId, CommitId, Epoch, JobUid, RequestUid};
use dotgraft_engine::model::{Commit, Problem, Reason};

use super::api::Phase;
use super::hazards::Hazards;
use super::sim::{Asked, Sim};
use super::wire::CHECKPOINT_EVERY;

/// What was seen, so that it can be held against what comes.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The id that a wanted commit was shown with.
    pub ids: BTreeMap<RequestUid, CommitId>,
    /// Objects that asked for their commit's removal.
    pub removals: BTreeSet<RequestUid>,
    /// Commits that were shown as made and not asked to be removed.
    pub made: BTreeSet<CommitId>,
    /// The last journaled checkpoint, per node.
    pub safe: Vec<Option<(CommitId, Option<CommitId>, u64)>>,
    /// In which opening each node's head was last mounted.
    pub served: Vec<Option<(Epoch, BootId)>>,
    /// Nodes on which a planned fence has seen that nothing has the head mounted, and no mount was begun since.
    pub planned: std::collections::BTreeSet<usize>,
    /// Something failed on purpose.
    pub faulty: bool,
    /// What pods were told is durable.
    pub writes: super::writes::Writes,
    pub fences: u64,
    pub resumes: u64,
    pub steals: u64,
    /// Wishes that replace the head.
    pub resets: BTreeSet<RequestUid>,
    /// Heads that went with their claim.
    pub beheaded: u64,
    /// Heads that were replaced.
    pub heads_replaced: u64,
    /// What the owner's head holds since it was replaced, until somebody has taken note.
    pub reset_made: Option<u64>,
    /// Authority moves about: a commit may go that was removed by this node as the owner.
    pub moves: bool,
    /// Commits that the owner took for a copy close behind.
    pub precopies: u64,
}

impl Ledger {
    pub fn of(nodes: usize) -> Self {
        Self { safe: vec![None; nodes], served: vec![None; nodes], ..Self::default() }
    }
}

/// The first mount of an opening turns writable within so long of its swap being sent (R0).
const OPENING_FRESH_MS: i64 = 5_000;

/// Tasks that exclude each other, by name; `None`: any number.
fn slot_of(task: &Task) -> Option<(&'static str, Option<JobUid>)> {
    let name = match task {
        Task::Inspect
        | Task::AllocateQgroup
        | Task::Open { .. }
        | Task::CheckDeleting
        | Task::AskEpochs(_)
        | Task::CheckHeadless
        | Task::PinOrigin(_)
        | Task::UnpinOrigin(_)
        | Task::Prepare(_)
        | Task::CreateHead { .. }
        | Task::WriteMeta(_)
        | Task::DropHead
        | Task::Destroy { .. } => "life",
        Task::Commit { .. } | Task::FinalCommit { .. } | Task::Thaw => "head",
        Task::Freeze => "freeze",
        Task::LookForMounts => "look",
        Task::Swap(_) | Task::Export { .. } => "move",
        Task::DeleteCommit(_) => "removal",
        Task::AskClones(_) => "pins",
        Task::Receive { .. } => "receive",
        Task::Discard(_) => "discard",
        Task::Usage { .. } => "usage",
        Task::PeerVersions { job, .. } | Task::Send { job, .. } => return Some(("job", Some(*job))),
        Task::Estimate { .. } | Task::Mount(..) | Task::Unmount(_) => return None,
    };
    Some((name, None))
}

impl Sim<'_> {
    fn journal_base(&self, n: usize) -> Option<dotgraft_engine::filesystem::Base> {
        self.nodes[n].journal.load().base
    }

    fn is_doomed(&self, n: usize, id: CommitId) -> bool {
        self.nodes[n].journal.0.contains_key(&format!("removing/{id}"))
    }

    /// After each turn of an actor.
    pub fn watch(&mut self, n: usize) {
        // An opening lasts until a fence is recorded; one that failed, and is undone, ends nothing.
        if self.journal_base(n).is_none_or(|b| b.opened.is_none()) {
            self.ledger.served[n] = None;
        }
        let Some(fs) = self.nodes[n].fs.as_ref().filter(|m| m.is_live()) else { return };
        let status = fs.status();
        let restored = self.hazards.has(Hazards::RESTORES);
        assert!(
            status.epoch <= self.api.epoch || self.old_operator || restored,
            "node {n} has seen epoch {}, which there never was",
            status.epoch
        );
        let ready = status.conditions.first().is_some_and(|c| c.reason == Why::State(CopyState::Open));
        if ready {
            self.assert_opened(n, "shows itself open");
            let shown = status.opened_epoch.expect("open in some epoch");
            assert!(
                restored || self.lost.contains(&n) || self.api.opened.is_some_and(|(e, _)| shown <= e),
                "opened in an epoch that nobody won"
            );
        }
        for r in &status.requests {
            let Some(id) = r.id else { continue };
            let known = *self.ledger.ids.entry(r.uid).or_insert(id);
            let removed = self.ledger.removals.contains(&r.uid);
            if self.lost.contains(&n) {
                continue; // not the owner any more, whether it knows it or not: nobody listens to it
            }
            // What was only intended by an owner that lost authority, the next one intends anew.
            let anew = self.ledger.steals > 0 || self.ledger.resets.contains(&r.uid);
            if known != id && anew && !self.ledger.made.contains(&known) {
                self.ledger.ids.insert(r.uid, id);
                continue;
            }
            assert!(known == id || removed, "the id of {} changed from {known} to {id}", r.uid);
            if r.state == Some(RequestState::Done) && !removed {
                assert!(self.nodes[n].disk.commits.contains_key(&id), "{id} is shown as done and is not on disk");
                assert!(self.nodes[n].journal.0.contains_key(&format!("commit/{id}")), "{id} is done and not in the journal");
                self.ledger.made.insert(id);
            }
        }
        let mut uids = BTreeSet::new();
        for (commit, _) in self.nodes[n].disk.commits.values().filter(|(c, _)| !self.is_doomed(n, c.id)) {
            assert!(commit.kept.is_none_or(|uid| uids.insert(uid)), "two commits for one object");
        }
        // The operator: a Filesystem whose owner has it on disk is past `New`.
        if n == self.api.owner && self.api.phase == Phase::New && status.role == dotgraft_engine::filesystem::RoleStatus::Owner {
            self.api.phase = Phase::Active;
        }
    }

    fn assert_opened(&self, n: usize, what: &str) {
        let boot = self.nodes[n].boot;
        let open = self.api.owner == n && self.api.opened.is_some_and(|(_, b)| b == boot);
        // What authority was taken from is not told at once.
        let restored = self.hazards.has(Hazards::RESTORES);
        assert!(open || restored || self.lost.contains(&n), "node {n} {what} without an opening in this boot");
    }

    /// Before a task starts, its records are durable.
    pub fn watch_start(&mut self, n: usize, task: &Task) {
        let mine = slot_of(task);
        let running: Vec<&Task> = self.nodes[n].tasks.values().filter(|d| !d.cancelled).map(|d| &d.task).collect();
        for other in &running {
            assert!(mine.is_none() || slot_of(other) != mine, "{task:?} beside {other:?}");
        }
        let base = self.journal_base(n);
        let life = base.as_ref().map(|b| b.life);
        match task {
            Task::Commit { commit, .. } => {
                self.assert_opened(n, "commits");
                assert!(base.as_ref().is_some_and(|b| b.frozen.is_none()), "a commit of a fenced head");
                if let Some(uid) = commit.kept {
                    assert!(self.nodes[n].journal.0.contains_key(&format!("request/{uid}")), "a commit without an intent");
                } else {
                    assert!(commit.transient, "nobody asked for it");
                    self.ledger.precopies += 1;
                }
                for (known, _) in self.nodes[n].disk.commits.values().filter(|(c, _)| c.id != commit.id && !self.is_doomed(n, c.id)) {
                    assert!(known.time < commit.time, "{} gets a time before {} that exists", commit.id, known.id);
                }
            }
            Task::Mount(MountWhat::Head, target, _) => {
                self.ledger.planned.remove(&n);
                let status = self.nodes[n].fs.as_ref().expect("an actor").status();
                // What an unmount that failed may have taken away is, as far as the owner knows, still there.
                let again = self.nodes[n].disk.mounts.contains_key(target) || status.mounts.contains(target);
                assert!(again || !status.requests.iter().any(|r| r.holding), "mounts the head while a reset holds");
                self.watch_first_mount(n);
                if self.hazards.has(Hazards::MOUNTS_IN_FENCES) {
                    let fencing = running.iter().any(|t| matches!(t, Task::LookForMounts | Task::Freeze | Task::FinalCommit { .. }));
                    assert!(again || !fencing, "a mount of the head is admitted while it is being fenced");
                }
                self.assert_opened(n, "mounts the head");
                assert!(base.as_ref().is_some_and(|b| b.frozen.is_none()), "a mount of a fenced head");
            }
            Task::CreateHead { from, .. } => {
                if let Some(to) = base.as_ref().and_then(|b| b.reset_to) {
                    assert_eq!(*from, Some(to), "the head is made from something else");
                    let head = self.nodes[n].disk.head.as_ref();
                    let target = self.nodes[n].disk.commits.get(&to.commit).map(|(_, content)| *content);
                    assert!(head.is_none_or(|h| Some(h.content) == target), "makes a head beside another");
                } else if let Some(id) = base.as_ref().and_then(|b| b.head_from) {
                    // A try whose answer was lost may have made it: nothing has written it since.
                    let (disk, content) = (&self.nodes[n].disk, self.nodes[n].disk.commits[&id].1);
                    assert!(disk.head.as_ref().is_none_or(|h| h.content == content && !h.fenced), "makes a head beside another");
                } else {
                    self.assert_opened(n, "creates a head");
                    assert!(life == Some(Life::Creating));
                }
            }
            Task::Destroy { .. } => {
                assert!(self.nodes[n].tasks.is_empty(), "destroys while tasks run");
                assert!(life == Some(Life::Deleting), "destroys without a durable intent");
                let meta = self.nodes[n].disk.meta.as_ref();
                let said = meta.is_none_or(|m| m.life == Life::Deleting);
                assert!(said || self.ledger.faulty, "destroys before fs.json says so");
            }
            Task::DeleteCommit(id) => {
                let intent = self.nodes[n].journal.0.contains_key(&format!("removing/{id}"));
                assert!(intent, "removes a commit without a durable intent");
            }
            Task::DropHead if base.as_ref().is_some_and(|b| b.headless) => {
                let uses = |t: &Task| {
                    matches!(t, Task::Mount(MountWhat::Head, ..) | Task::Freeze) || matches!(slot_of(t), Some(("head" | "move", _)))
                };
                assert!(!self.nodes[n].tasks.values().any(|d| uses(&d.task)), "the head goes beside what uses it");
                assert!(!self.nodes[n].journal.0.contains_key("migration"), "the head goes in the middle of a handoff");
            }
            Task::Thaw => {
                let fence = base.as_ref().and_then(|b| b.frozen);
                assert_eq!(fence, None, "the journal still takes the fence's commit for what the head holds");
                // A write that came after this node's last look can't be known to it; one before that can.
                let seen = self.api.pending.is_some() && self.api.owner == n && self.api.server.pended_at < self.api.server.read_at[n];
                let recorded = self.nodes[n].journal.0.contains_key("migration");
                let knows = seen && (recorded || self.hazards.has(Hazards::LOST_JOURNALS));
                assert!(!knows, "thaws while a handoff is pending");
            }
            Task::Open { .. } => assert!(base.is_none_or(|b| b.frozen.is_none() && !b.headless), "opens what it has fenced, or let go"),
            _ => {}
        }
    }

    /// R0: the first mount of an opening within five seconds of its swap; later ones at any time.
    fn watch_first_mount(&self, n: usize) {
        let opened = self.journal_base(n).and_then(|b| b.opened).map(|o| (o.epoch, o.boot));
        if !self.hazards.has(Hazards::OLD_OPENINGS) || opened.is_some() && self.ledger.served[n] == opened {
            return;
        }
        let age = self.api.server.opening_sent[n].map(|at| self.now - at);
        assert!(age.is_some_and(|ms| ms <= OPENING_FRESH_MS), "the first mount of an opening begins {age:?} ms after its swap was sent");
    }

    /// A mount appears.
    pub fn watch_mount(&mut self, n: usize, what: MountWhat) -> Result<(), Problem> {
        if what == MountWhat::Head {
            if self.nodes[n].disk.head.is_none() {
                return Err(Problem::new(Reason::NotFound, "simulated"));
            }
            self.ledger.served[n] = self.journal_base(n).and_then(|b| b.opened).map(|o| (o.epoch, o.boot));
        }
        Ok(())
    }

    /// The head is frozen and its last commit proven.
    pub fn watch_fence_end(&mut self, n: usize) {
        if self.ledger.planned.remove(&n) && self.hazards.has(Hazards::MOUNTS_IN_FENCES) {
            let pods = self.nodes[n].disk.mounts.iter().any(|(at, what)| *what == MountWhat::Head && at != super::work::FOREIGN);
            assert!(!pods, "a planned fence ends and a pod has the head mounted");
        }
    }

    /// `EImportStart` is durable before the exporter hears of it: by that word it lets authority go.
    pub fn watch_exported(&self, n: usize, ok: bool) {
        let recorded = self.nodes[n].journal.0.contains_key("migration");
        assert!(!ok || recorded, "an importer says that it has all, and has not recorded it");
    }

    fn waiters(&self, n: usize) -> Vec<&Asked> {
        self.nodes[n].waiting()
    }

    pub fn watch_destroy(&mut self, n: usize) {
        assert!(self.nodes[n].may_delete, "node {n} destroys and nobody asked for it");
        // What was handed over, or taken, and is still to be cleared away, is no owner's.
        let former = self.journal_base(n).is_some_and(|b| b.superseded || b.role == Role::Replica) && self.api.owner != n;
        let owner = self.nodes[n].disk.head.is_some() && !former;
        assert!(!owner || self.api.phase == Phase::Deleting, "an owner's data goes and the Filesystem is not Deleting");
    }

    /// `pending` is set: nothing can write here any more (R2).
    pub fn watch_pend(&mut self, n: usize) {
        assert!(self.nodes[n].disk.head.as_ref().is_some_and(|h| h.fenced), "pending is set and the head is not fenced");
        assert!(self.journal_base(n).is_some_and(|b| b.frozen.is_some()), "pending is set before the fence is recorded");
    }

    /// A head goes: all that was acknowledged is elsewhere, and this node can't write.
    pub fn watch_drop_head(&mut self, n: usize) {
        let base = self.journal_base(n).expect("a base row");
        if base.reset_to.is_some() {
            return self.watch_reset(n, base.frozen);
        }
        if base.headless {
            assert!(matches!(self.api.phase, Phase::Headless | Phase::Deleting), "the head goes and the Filesystem is not Headless");
            assert!(self.nodes[n].disk.meta.as_ref().is_some_and(|m| m.headless), "the head goes before fs.json says why");
            self.ledger.beheaded += 1;
            return;
        }
        assert!(base.role == dotgraft_engine::filesystem::Role::Replica, "an owner's head goes");
        assert!(self.api.owner != n || self.api.epoch > base.epoch, "the head of the owner goes");
        let Some(content) = self.nodes[n].disk.head.as_ref().map(|h| h.content) else { return };
        let held = |n: usize| self.nodes[n].disk.commits.values().any(|(_, c)| *c == content);
        assert!(held(n) || (0..self.nodes.len()).any(held), "what the head holds is nowhere else");
    }

    /// A new owner's head: never made from what only keeps what a reset took away, while what the head was reset to is here.
    pub fn watch_begins(&mut self, n: usize, from: Option<CommitId>) {
        let commits = &self.nodes[n].disk.commits;
        let Some((commit, _)) = from.and_then(|id| commits.get(&id)) else { return };
        let last = commits.values().all(|(c, _)| c.order() <= commit.order());
        let target = commit.reset_to.filter(|to| last && commits.contains_key(to));
        assert_eq!(target, None, "what was reset away is back on node {n}: its head is made from {}", commit.id);
    }

    /// What the head held is kept; or it was replaced already, and nothing has been written into it.
    fn watch_reset(&mut self, n: usize, kept: Option<CommitId>) {
        let disk = &self.nodes[n].disk;
        let Some(head) = disk.head.as_ref() else { return };
        let kept = &disk.commits[&kept.expect("a commit that keeps it")];
        assert!(!kept.0.transient && kept.0.kept.is_some(), "nobody asked for what is kept");
        assert!(kept.1 == head.content && head.fenced, "what the head held is not kept");
        self.ledger.heads_replaced += 1;
    }

    pub fn watch_delete(&mut self, n: usize, id: CommitId) {
        let kept = self.nodes[n].disk.commits.get(&id).and_then(|(c, _)| c.kept);
        // Of a reset's fence that nobody was told of.
        let unproven = |uid: &RequestUid| self.ledger.resets.contains(uid) && !self.ledger.made.contains(&id);
        assert!(kept.is_none_or(|uid| self.ledger.removals.contains(&uid) || unproven(&uid)), "{id} goes and nobody asked for it");
        let lasts = |c: &Commit| !c.transient || c.is_let_go();
        let beheaded = matches!(self.api.phase, Phase::Headless | Phase::Deleting); // nothing newer comes
        let replica = !self.ledger.moves && self.journal_base(n).is_some_and(|b| b.role == Role::Replica);
        if let Some(commit) = self.nodes[n].disk.commits.get(&id).map(|(c, _)| c).filter(|c| replica && lasts(c) && !beheaded) {
            let newer = |c: &Commit| lasts(c) && (c.time, c.id) > (commit.time, id) && !self.is_doomed(n, c.id);
            assert!(self.nodes[n].disk.commits.values().any(|(c, _)| newer(c)), "the newest that a copy has goes: {id}");
        }
    }

    pub fn watch_mounted(&mut self, n: usize, what: MountWhat, ok: bool) {
        if ok && what == MountWhat::Head {
            assert!(self.nodes[n].disk.head.is_some());
        }
    }

    /// A fence was answered: what it names is what the head holds, and stays so.
    pub fn watch_fenced(&mut self, n: usize, commit: Option<CommitId>) {
        let Some(id) = commit else { return };
        self.ledger.fences += 1;
        let disk = &self.nodes[n].disk;
        let head = disk.head.as_ref().expect("a head was fenced");
        assert!(head.fenced, "a fence was answered and the head is writable");
        assert!(!self.nodes[n].tasks.values().any(|d| matches!(d.task, Task::Thaw)), "a fence was answered while it is being undone");
        assert!(disk.commits.get(&id).is_some_and(|(_, content)| *content == head.content), "the final commit is not what the head holds");
    }

    pub fn watch_receive(&mut self, n: usize, offer: &Offer, checkpoint: Option<&CheckpointRow>) {
        // That authority was taken for it, it hears later; what comes until then is stopped before it takes over.
        let knows = self.journal_base(n).is_none_or(|b| b.role == Role::Owner);
        let fetched = |p: &Present| p.fetch.iter().any(|t| t.commit == offer.target.id && t.with.node == offer.from);
        let asked = matches!(&self.nodes[n].wanted, Some(Intent::Present(p)) if fetched(p));
        assert!(n != self.api.owner || !knows || asked, "an owner receives what nobody asked it to fetch");
        if let Some(c) = checkpoint {
            assert!(c.token.target == offer.target.id && c.token.base == offer.base, "it goes on from another transfer's checkpoint");
        }
        assert!(self.nodes[n].journal.0.contains_key("partial"), "a receive without an intent");
    }

    /// What an interruption costs: less than the distance of checkpoints.
    pub fn watch_resumed(&mut self, n: usize, target: CommitId, base: Option<CommitId>, at: u64) {
        if at > 0 {
            self.ledger.resumes += 1;
        }
        match self.ledger.safe[n] {
            // Of two jobs that send to one copy the second doesn't know how far the first has got.
            Some((t, b, safe)) if t == target && b == base && self.nodes.len() < 3 => {
                assert!(at + CHECKPOINT_EVERY + 3 >= safe, "goes on at {at}, {safe} bytes were safe");
            }
            _ => self.ledger.safe[n] = None,
        }
    }

    pub fn watch_finished(&self, n: usize) {
        assert!(self.nodes[n].disk.is_empty(), "the actor ends and leaves data behind");
        assert!(self.nodes[n].journal.0.is_empty(), "the actor ends and leaves rows behind: {:?}", self.nodes[n].journal.0.keys());
        assert!(self.waiters(n).is_empty(), "the actor ends and leaves requests behind: {:?}", self.waiters(n));
    }

    // ---- the end ----

    /// Nothing happens any more, and what is shown is what is wanted.
    pub fn watch_end(&mut self) {
        let handled = self.run_for(600_000);
        assert!(handled <= 100 * self.nodes.len() as u64, "{handled} events in ten quiet minutes");
        for n in 0..self.nodes.len() {
            assert!(self.waiters(n).is_empty(), "never answered: {:?}", self.waiters(n));
            match self.nodes[n].wanted.clone() {
                Some(Intent::Absent { .. }) => self.watch_gone(n),
                Some(Intent::Present(p)) => self.watch_present(n, &p),
                None => {}
            }
        }
    }

    /// The owner keeps it for its job.
    fn is_base(&self, id: CommitId) -> bool {
        let rows = self.nodes[0].journal.load();
        let let_go = rows.commits.iter().any(|c| c.id == id && c.is_let_go());
        // Or it says what the head was reset to.
        let says_more = rows.commits.iter().max_by_key(|c| c.order()).is_some_and(|c| c.id == id && c.reset_to.is_some());
        let_go && (says_more || rows.jobs.iter().any(|j| j.cursor == Some(id) || j.sending == Some(id)))
    }

    fn watch_gone(&mut self, n: usize) {
        assert!(self.nodes[n].disk.is_empty(), "something of it is left on node {n}: {:?}", self.nodes[n].disk);
        let keys: Vec<&String> = self.nodes[n].journal.0.keys().collect();
        assert_eq!(keys, ["base"], "only the tombstone stays");
        assert_eq!(self.journal_base(n).map(|b| b.life), Some(Life::Gone));
        assert!(!(n == 0 && self.origin_pinned), "the origin is still pinned");
        self.want(n, None);
        self.run_for(60_000);
        assert!(self.nodes[n].journal.0.is_empty(), "a tombstone outlives its object");
        assert!(self.nodes[n].finished, "the actor does not end");
    }

    fn watch_present(&mut self, n: usize, p: &dotgraft_engine::filesystem::Present) {
        let fs = self.nodes[n].fs.as_ref().expect("an actor");
        let status = fs.status();
        assert!(status.managed);
        assert!(status.conditions.first().is_some_and(|c| c.status), "node {n} is not ready: {:?}", status.conditions);
        let mut on_disk: Vec<CommitId> = self.nodes[n].disk.commits.keys().copied().collect();
        let mut journaled: Vec<CommitId> = self.nodes[n].journal.load().commits.iter().map(|c| c.id).collect();
        on_disk.sort_unstable();
        journaled.sort_unstable();
        assert_eq!(on_disk, journaled, "disk and journal differ");
        assert!(self.nodes[n].disk.incoming.is_empty() || self.nodes[n].journal.0.contains_key("partial"), "a stray partial");
        let meta = self.nodes[n].disk.meta.clone().expect("fs.json");
        let base = self.journal_base(n).expect("a base row");
        assert_eq!((meta.epoch, meta.capacity, meta.life), (base.epoch, base.capacity, base.life), "fs.json is behind the journal");
        if n != 0 {
            return;
        }
        if p.headless {
            let mounted = !self.nodes[n].disk.mounts.is_empty();
            assert!(mounted || self.nodes[n].disk.head.is_none(), "the head is there, and nobody has it mounted");
            assert!(mounted || status.frozen.is_none(), "a fence without a head");
        }
        let pins = self.nodes[n].journal.load().pins;
        for wish in &p.commits {
            let shown = status.requests.iter().find(|r| r.uid == wish.uid).expect("each wish is shown");
            let made = self.nodes[n].disk.commits.values().filter(|(c, _)| c.kept == Some(wish.uid)).count();
            if wish.remove {
                let pinned = shown.problem.is_some();
                assert!(shown.state == Some(RequestState::Removed) || pinned, "not removed: {shown:?}");
                let for_nobody = pins.iter().any(|p| Some(p.commit) == shown.id);
                assert!(self.branch || !pinned || !for_nobody, "a pin that nobody needs keeps it for ever: {shown:?}");
                let id = shown.id.filter(|_| made > 0 && !pinned);
                assert!(id.is_none_or(|id| self.is_base(id)), "removed and still on disk, and no increment needs it: {shown:?}");
            } else {
                let unknown = shown.problem.as_ref().is_some_and(|p| p.reason == dotgraft_engine::model::Reason::NotFound);
                let impossible = wish.reset_to.is_some() && unknown; // its target was removed before
                assert!(shown.state == Some(RequestState::Done) && made == 1 || impossible, "made {made} times: {shown:?}");
            }
        }
    }
}
