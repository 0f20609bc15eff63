//! Directed schedules: what the dice would find some day, told step by step. The seed still decides about every delay in between.

use dotgraft_engine::filesystem::{CopyState, Event, Intent, MountMode, MountWhat, Present, RequestState, Role, Task, WantedCommit, Why};
use dotgraft_engine::ids::{CommitId, Epoch, OpId, RequestUid};
use dotgraft_engine::model::{Origin, Reason};

use super::hazards::Hazards;
use super::sim::{Asked, Sim, Two, What};
use super::user::{present, status, wanted};

pub const SECOND: i64 = 1_000;
pub const MINUTE: i64 = 60 * SECOND;
const POD: &str = "/pods/a";

/// n0 owns it and keeps a copy on n1; both have one commit. No faults but those that follow.
pub fn pair(seed: u64, hazards: Hazards, trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = Sim::new(seed, Two::WithReplica, trace);
    (sim.faults, sim.old_operator, sim.hazards) = (false, false, hazards);
    let job = sim.job_to(sim.nodes[1].place.clone());
    sim.want(0, Some(Intent::Present(Box::new(Present { jobs: vec![job], ..present(Role::Owner) }))));
    sim.want(1, Some(Intent::Present(Box::new(present(Role::Replica)))));
    sim.run_for(2 * SECOND);
    sim.wish();
    sim.run_for(10 * SECOND);
    assert!(sim.newest_on_disk(0).is_some() && sim.newest_on_disk(0) == sim.newest_on_disk(1), "both have the commit");
    sim
}

impl Sim<'_> {
    /// A pod starts on node `n`.
    pub fn start_pod(&mut self, n: usize) {
        self.ask(n, Asked::Mount(MountWhat::Head), |req| Event::Mount(req, MountWhat::Head, POD.into(), MountMode::WRITE));
    }

    pub fn stop_pod(&mut self, n: usize) {
        self.ask(n, Asked::Plain, |req| Event::Unmount(req, POD.into()));
    }

    /// What a pod on `n` is told is durable; it must be able to write.
    pub fn write(&mut self, n: usize, content: u64) {
        assert!(self.is_writable(n), "no pod on n{n} can write");
        let head = self.nodes[n].disk.head.as_mut().expect("a head");
        let before = std::mem::replace(&mut head.content, content);
        self.note_write(n, before, content);
    }

    /// Authority goes to node `to` by a person's word. The owner's own object may be slow to say so.
    pub fn promote(&mut self, to: usize, tell_all: bool) {
        self.say(format!("AUTHORITY taken for n{to}"));
        let from = self.api.owner;
        self.lost.insert(from);
        self.ledger.steals += 1;
        (self.api.owner, self.api.epoch) = (to, Epoch(self.api.epoch.0 + 1));
        self.api.attempt += 1;
        (self.api.pending, self.api.opened) = (None, None);
        let (epoch, owner) = (self.api.epoch, self.nodes[to].place.clone());
        for n in (0..self.nodes.len()).filter(|n| tell_all || *n != from) {
            let role = if n == to { Role::Owner } else { Role::Replica };
            let owner = owner.clone();
            self.edit(n, |p| {
                (p.role, p.epoch, p.owner) = (role, epoch, Some(owner));
                p.jobs.clear();
            });
        }
    }

    /// Runs, a millisecond at a time, until it is so.
    pub fn run_until(&mut self, what: &str, is_so: impl Fn(&mut Self) -> bool) {
        for _ in 0..2 * MINUTE {
            if is_so(self) {
                return;
            }
            self.run_for(1);
        }
        panic!("the schedule does not come about: {what}");
    }

    pub fn runs(&self, n: usize, which: impl Fn(&Task) -> bool) -> bool {
        self.nodes[n].tasks.values().any(|d| !d.ended && which(&d.task))
    }

    /// What is under way on the disk of `n` and is one of these stands still: a slow disk.
    pub fn hang(&mut self, n: usize, which: impl Fn(&Task) -> bool) {
        let hung = |op: &OpId| self.nodes[n].tasks.get(op).is_some_and(|d| !d.ended && which(&d.task));
        self.queue.retain(|_, what| !matches!(what, What::Step(node, _, op) if *node == n && hung(op)));
    }

    /// It goes on.
    pub fn go_on(&mut self, n: usize, which: impl Fn(&Task) -> bool) {
        let ops: Vec<_> = self.nodes[n].tasks.iter().filter(|(_, d)| !d.ended && which(&d.task)).map(|(op, _)| *op).collect();
        let life = self.nodes[n].life;
        for op in ops {
            self.later(1, What::Step(n, life, op));
        }
    }

    /// n0 is to hand over to n1.
    pub fn move_to(&mut self, to: Option<usize>) {
        let to = to.map(|n| self.nodes[n].place.clone());
        self.edit(0, |p| p.move_to = to);
    }

    /// After this, what the objects say follows authority, as the operator sees to it.
    pub fn follow_authority(&mut self) {
        let (owner, epoch) = (self.api.owner, self.api.epoch);
        for n in 0..self.nodes.len() {
            let role = if n == owner { Role::Owner } else { Role::Replica };
            self.edit(n, |p| {
                (p.role, p.epoch) = (role, epoch);
                p.move_to = None;
                if role == Role::Replica {
                    p.jobs.clear();
                }
            });
        }
    }

    fn late_writes(&self) -> Vec<(i64, u64)> {
        let late = |(key, what): (&(i64, u64), &What)| matches!(what, What::Write(_)).then_some(*key);
        self.queue.iter().filter_map(late).collect()
    }

    /// What was sent long ago arrives.
    fn land_late_writes(&mut self) {
        for key in self.late_writes() {
            let what = self.queue.remove(&key).expect("it is there");
            self.later_at(self.now, what);
        }
    }

    fn is_live_without_calls(&self, n: usize) -> bool {
        self.nodes[n].is_live() && !self.nodes[n].tasks.values().any(|d| super::api::is_call(&d.task))
    }

    pub fn is_open(&self, n: usize) -> bool {
        status(self, n).conditions.first().is_some_and(|c| c.reason == Why::State(CopyState::Open))
    }

    pub fn holds(&self, n: usize, content: u64) -> bool {
        let disk = &self.nodes[n].disk;
        disk.head.as_ref().is_some_and(|h| h.content == content) || disk.commits.values().any(|(_, c)| *c == content)
    }
}

/// Fault 1: a pod makes a subvolume in the head, and its node is superseded.
pub fn nested_and_superseded(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::NESTED, trace);
    sim.start_pod(0);
    sim.run_for(SECOND);
    sim.nest(0);
    assert!(sim.nodes[0].disk.head.as_ref().is_some_and(|h| h.nested));
    sim.promote(1, true);
    sim.run_for(2 * MINUTE);
    assert!(!sim.is_writable(0), "two minutes after n1 was promoted, a pod can still write on n0");
}

/// Fault 2: the importer has said that it has all, and is dropped before authority is its own.
pub fn importer_is_dropped(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::NONE, trace);
    sim.start_pod(0);
    sim.run_for(SECOND);
    sim.write(0, 77);
    sim.stop_pod(0);
    sim.run_for(SECOND);
    sim.move_to(Some(1));
    sim.run_until("pending is set", |sim| sim.api.pending.is_some());
    sim.nodes[0].cut_off = true; // the Commit has to wait
    sim.run_until("the importer has all", |sim| sim.nodes[1].journal.0.contains_key("migration"));
    sim.run_for(2 * SECOND);
    sim.nodes[1].may_delete = true;
    let epoch = sim.api.epoch;
    sim.want(1, Some(Intent::Absent { epoch }));
    sim.run_for(10 * SECOND);
    sim.nodes[0].cut_off = false;
    sim.run_for(3 * MINUTE);
    let owner = sim.api.owner;
    assert!(sim.holds(owner, 77), "n{owner} owns it, and what was acknowledged is not there");
}

/// Fault 3: authority is the importer's, which stands still before it opens; an hour passes, and its disk may be gone.
pub fn importer_never_opens(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::NONE, trace);
    sim.start_pod(0);
    sim.run_for(SECOND);
    sim.write(0, 77);
    sim.stop_pod(0);
    sim.run_for(SECOND);
    sim.move_to(Some(1));
    sim.run_until("authority is n1's", |sim| sim.api.owner == 1);
    sim.pause(1, 3 * 60 * MINUTE);
    sim.follow_authority();
    sim.run_for(130 * MINUTE);
    assert!(sim.api.opened.is_none(), "it has not opened");
    assert!(sim.holds(0, 77), "the last owner has let go of what it handed over, and the new one has never opened");
}

/// Fault 4: etcd is restored to before a promotion, and the old owner boots.
pub fn restored_before_a_promotion(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::RESTORES, trace);
    let backup = sim.api.clone();
    sim.nodes[0].cut_off = true;
    sim.crash(0, true);
    sim.promote(1, false);
    sim.run_until("n1 has opened", |sim| sim.is_open(1));
    sim.start_pod(1);
    sim.run_for(SECOND);
    sim.write(1, 88);
    sim.api.restore(&backup);
    sim.nodes[0].cut_off = false;
    sim.run_for(2 * MINUTE);
    sim.start_pod(0);
    sim.run_for(10 * SECOND);
    assert!(!(sim.is_writable(0) && sim.is_writable(1)), "both nodes can write");
}

/// Fault 5: the answer to an opening waits in the socket of an agent that stands still, and authority is taken meanwhile.
pub fn opening_in_the_socket(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::OLD_OPENINGS, trace);
    let version = sim.api.version();
    sim.start_pod(0);
    sim.run_until("the opening has been won", |sim| sim.api.version() > version);
    sim.pause(0, 20 * SECOND);
    sim.run_for(SECOND);
    sim.promote(1, false);
    sim.run_for(40 * SECOND);
    assert!(!sim.is_writable(0), "n0 serves what it was promoted away from");
}

/// Fault 5: an opening that nobody used counts as used after a restart of the agent.
pub fn opening_after_a_restart(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::OLD_OPENINGS, trace);
    sim.nodes[0].cut_off = true;
    sim.crash(0, false);
    sim.run_for(10 * SECOND);
    sim.promote(1, false);
    sim.run_for(20 * SECOND);
    sim.start_pod(0);
    sim.run_for(20 * SECOND);
    assert!(!sim.is_writable(0), "n0 serves what it was promoted away from");
}

/// Fault 6: the write that sets `pending` arrives after its sender has read that there is none.
pub fn pending_comes_late(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::LATE_WRITES, trace);
    sim.late_write = Some(i64::from(u32::MAX));
    sim.move_to(Some(1));
    sim.run_until("pending was sent", |sim| !sim.late_writes().is_empty());
    sim.nodes[0].cut_off = true;
    sim.move_to(None);
    sim.run_for(40 * SECOND);
    sim.nodes[0].cut_off = false;
    sim.run_until("it is being thawed", |sim| sim.runs(0, |t| matches!(t, Task::Thaw)));
    sim.land_late_writes();
    sim.run_for(5 * MINUTE);
    assert!(sim.api.pending.is_none(), "a pending that nobody owns up to stays for ever");
    assert!(sim.is_open(0), "the owner is not open again");
}

/// Fault 6: the exporter's journal is lost while `pending` is set, and its agent starts twice.
pub fn journal_lost_while_pending(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::LOST_JOURNALS, trace);
    sim.move_to(Some(1));
    sim.run_until("pending is set", |sim| sim.api.pending.is_some());
    sim.partition = true;
    sim.move_to(None);
    sim.lose_journal(0);
    sim.run_for(20 * SECOND);
    sim.crash(0, false);
    sim.run_for(20 * SECOND);
    sim.partition = false;
    sim.run_for(5 * MINUTE);
    assert!(sim.api.pending.is_none(), "a pending that nobody owns up to stays for ever");
}

/// Fault 8: a pod starts while the head is being fenced for a move.
pub fn mount_during_a_fence(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::MOUNTS_IN_FENCES, trace);
    sim.start_pod(0);
    sim.run_for(SECOND);
    sim.stop_pod(0); // its opening is used: the next mount waits for nothing
    sim.run_for(SECOND);
    sim.move_to(Some(1));
    sim.run_until("the fence begins", |sim| sim.runs(0, |t| matches!(t, Task::LookForMounts | Task::Freeze)));
    sim.start_pod(0);
    sim.run_for(5 * MINUTE);
    let stuck = sim.api.owner == 1 && sim.nodes[0].disk.head.is_some();
    assert!(!stuck, "n1 owns it, and a pod on n0 holds a frozen head");
}

/// §1.5: authority is lost while the disk takes its time with a commit.
pub fn lost_behind_a_slow_commit(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::NONE, trace);
    sim.start_pod(0);
    sim.run_for(SECOND);
    sim.wish();
    let is_commit = |t: &Task| matches!(t, Task::Commit { .. });
    sim.run_until("a commit is being taken", |sim| sim.runs(0, is_commit));
    sim.hang(0, is_commit);
    sim.promote(1, true);
    sim.run_for(10 * SECOND);
    assert!(sim.runs(0, is_commit) && !sim.is_writable(0), "ten seconds after n1 was promoted, a pod can still write on n0");
    sim.go_on(0, is_commit);
    sim.run_for(MINUTE);
    assert!(status(&sim, 0).frozen.is_some(), "what it holds is kept");
}

/// Fault 5: the first mount of an opening is made, so late that authority was taken meanwhile.
pub fn first_mount_takes_long(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::NONE, trace);
    sim.start_pod(0);
    let is_mount = |t: &Task| matches!(t, Task::Mount(MountWhat::Head, ..));
    sim.run_until("the mount is being made", |sim| sim.runs(0, is_mount));
    sim.hang(0, is_mount);
    sim.nodes[0].cut_off = true;
    sim.run_for(10 * SECOND);
    sim.promote(1, false);
    sim.go_on(0, is_mount);
    sim.run_for(10 * SECOND);
    assert!(!sim.is_writable(0), "n0 serves what it was promoted away from");
}

/// The head is written, then reset to its first commit, and all of that replicated. Returns the object that keeps what was there, and what
/// the head holds now.
fn reset(sim: &mut Sim) -> (RequestUid, CommitId, u64) {
    let (commit, kept) = sim.newest_on_disk(0).expect("a commit");
    sim.start_pod(0);
    sim.run_for(SECOND);
    sim.write(0, 99);
    sim.stop_pod(0);
    sim.run_for(SECOND);
    let uid = sim.fresh_request();
    sim.ledger.resets.insert(uid);
    let reset_to = Some(Origin { fs_id: sim.id, commit });
    sim.edit(0, |p| p.commits.push(WantedCommit { reset_to, ..wanted(uid) }));
    sim.run_for(MINUTE);
    assert_eq!(sim.nodes[0].disk.head.as_ref().map(|h| h.content), Some(kept), "it is reset");
    (uid, commit, kept)
}

fn promoted_after_reset(sim: &mut Sim, kept: u64) {
    sim.crash(0, true);
    sim.nodes[0].cut_off = true;
    sim.promote(1, false);
    sim.run_until("n1 has opened", |sim| sim.is_open(1));
    let head = sim.nodes[1].disk.head.as_ref().map(|h| h.content);
    assert_eq!(head, Some(kept), "what was reset away is back");
}

/// Fault 9: the head is reset and replicated, and the copy promoted.
pub fn reset_and_promoted(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::NONE, trace);
    let (_, _, kept) = reset(&mut sim);
    promoted_after_reset(&mut sim, kept);
}

/// Fault 9: the same, once the objects of both commits were deleted: of what the reset kept, and of what the head was reset to.
pub fn reset_deleted_and_promoted(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::NONE, trace);
    let (uid, target, kept) = reset(&mut sim);
    let owner_of = sim.nodes[0].disk.commits[&target].0.kept.expect("of an object");
    for n in 0..2 {
        for uid in [uid, owner_of] {
            sim.ledger.removals.insert(uid);
            let want = WantedCommit { id: sim.ledger.ids.get(&uid).copied(), remove: true, ..wanted(uid) };
            sim.edit(n, |p| {
                p.commits.retain(|c| c.uid != uid);
                p.commits.push(want);
            });
        }
        sim.run_for(MINUTE);
        let shown = |uid| status(&sim, n).requests.into_iter().find(|r| r.uid == uid).expect("the wish is shown");
        assert_eq!(shown(uid).state, Some(RequestState::Removed), "gone for people, on n{n}");
        let (pinned, here) =
            (shown(owner_of).problem.is_some_and(|p| p.reason == Reason::Pinned), sim.nodes[n].disk.commits.contains_key(&target));
        assert!(here && pinned == (n == 0), "without it what was reset away is back, and on a copy nobody sees it");
    }
    promoted_after_reset(&mut sim, kept);
}

/// Fault 10: the importer's clock is an hour ahead.
pub fn importer_clock_ahead(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::CLOCKS, trace);
    sim.set_clock(1, 61 * MINUTE);
    sim.move_to(Some(1));
    sim.run_for(3 * MINUTE);
    assert_eq!(sim.api.owner, 1, "no attempt of the move succeeds");
}

/// Fault 10: a clock is set back while something waits to be tried again.
pub fn clock_set_back_in_backoff(seed: u64, trace: &mut Vec<String>) {
    let mut sim = pair(seed, Hazards::CLOCKS, trace);
    sim.nodes[0].cut_off = true;
    sim.crash(0, true);
    sim.run_for(3 * MINUTE);
    sim.run_until("it waits to try again", |sim| sim.is_live_without_calls(0));
    sim.set_clock(0, -60 * MINUTE);
    sim.nodes[0].cut_off = false;
    sim.run_for(5 * MINUTE);
    assert!(sim.is_open(0), "five minutes after the API server was back, the owner still sleeps");
}
