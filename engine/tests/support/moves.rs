//! Authority goes from node to node while everything fails: each write must be on top of the last one that was acknowledged.

use dotgraft_engine::filesystem::{
    Event, Intent, MountMode, MountWhat, Present, RequestState, RequestStatus, Role, WantedCommit, WantedJob,
};
use dotgraft_engine::model::Commit;

use super::api::Phase;
use super::hazards::Hazards;
use super::sim::{Asked, Sim, Two, short};
use super::user::{present, wanted};
use super::work::FOREIGN;

/// What the operator knows of a run.
#[derive(Debug, Default)]
struct World {
    /// Where it should be.
    goal: usize,
    wishes: Vec<WantedCommit>,
    /// Deleted commits: what is asked of the owner, and of the copy once the owner has said that it is done.
    deleted: Vec<(WantedCommit, bool)>,
    /// The last write that a pod was told of.
    written: u64,
    writes: u64,
    /// Authority was taken for this node: its next write is on top of what it held, not of what was written last.
    taken: Option<usize>,
    /// What that node's commits held then: by its first write, one may have been deleted.
    held: Vec<u64>,
    /// Authority may be taken from an owner that does not answer.
    steals: bool,
    /// The owner's node is cordoned.
    leaving: bool,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Did {
    pub moves: u64,
    pub aborts: u64,
    pub writes: u64,
    pub steals: u64,
    pub resets: u64,
    pub precopies: u64,
}

/// An owner on n0 and read-only copies on the others.
pub fn owner_and_copies(seed: u64, two: Two, trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = Sim::new(seed, two, trace);
    for n in 0..sim.nodes.len() {
        let role = if n == 0 { Role::Owner } else { Role::Replica };
        sim.want(n, Some(Intent::Present(Box::new(present(role)))));
    }
    sim.run_for(1_000);
    sim
}

impl Sim<'_> {
    /// The operator's turn: Replicas as authority and the goal want them.
    fn operate(&mut self, world: &World) {
        if self.api.phase == Phase::Deleting {
            return;
        }
        for n in 0..self.nodes.len() {
            let owner = self.api.owner == n;
            let deleted = |owner: bool| world.deleted.iter().filter(move |(_, by_owner)| owner || *by_owner).map(|(w, _)| w.clone());
            let wanted = Present {
                epoch: self.api.epoch,
                commits: deleted(owner).chain(if owner { self.with_ids(&world.wishes) } else { Vec::new() }).collect(),
                move_to: (owner && world.goal != n).then(|| self.nodes[world.goal].place.clone()),
                precopy_to: (owner && world.leaving).then(|| self.nodes[(n + 1) % self.nodes.len()].place.clone()),
                jobs: if owner { self.third_copy(n) } else { Vec::new() },
                ..present(if owner { Role::Owner } else { Role::Replica })
            };
            self.want(n, Some(Intent::Present(Box::new(wanted))));
        }
    }

    /// With three nodes a job keeps a copy on one of them, whoever owns it: there a replica, a move and a promotion meet.
    fn third_copy(&self, owner: usize) -> Vec<WantedJob> {
        let wanted = self.nodes.len() > 2;
        let peer = self.nodes[(owner + 2) % self.nodes.len()].place.clone();
        wanted.then(|| self.job_to(peer)).into_iter().collect()
    }

    fn with_ids(&self, wishes: &[WantedCommit]) -> Vec<WantedCommit> {
        let id = |w: &WantedCommit| self.ledger.ids.get(&w.uid).copied().filter(|id| self.ledger.made.contains(id));
        wishes.iter().map(|w| WantedCommit { id: id(w), ..w.clone() }).collect()
    }

    /// A pod on node `n` writes, if it can; then nobody else can, and nothing acknowledged before is missing.
    fn write_on(&mut self, n: usize, world: &mut World) {
        if !self.is_writable(n) {
            return;
        }
        let Some(head) = self.nodes[n].disk.head.as_mut() else { return };
        let before = head.content;
        world.writes += 1;
        head.content = world.writes;
        self.note_write(n, before, world.writes);
        if self.is_lost(n) {
            return; // written to what authority was taken from: kept aside, promised to nobody
        }
        self.note_reset(world);
        if world.taken == Some(n) {
            world.taken = None;
            let held = world.held.contains(&before) || self.nodes[n].disk.commits.values().any(|(_, content)| *content == before);
            assert!(held, "node {n} took over from something that it did not hold");
            world.written = before;
        }
        assert_eq!(before, world.written, "node {n} writes on top of {before}, but {} was acknowledged", world.written);
        world.written = world.writes;
        assert_eq!(self.api.owner, n, "node {n} writes and is not the owner");
        assert!(self.api.pending.is_none(), "node {n} writes while a handoff is pending");
    }

    /// The head was replaced: what is written next is on top of what it was reset to.
    fn note_reset(&mut self, world: &mut World) {
        if let Some(content) = self.ledger.reset_made.take() {
            world.written = content;
        }
    }

    /// A person resets the volume to a commit that the owner shows.
    fn reset(&mut self, world: &mut World) {
        let live = |uid| self.ledger.ids.contains_key(&uid) && !self.ledger.removals.contains(&uid);
        let shown = |(c, _): &&(dotgraft_engine::model::Commit, u64)| {
            c.kept.is_some_and(|uid| live(uid) && self.ledger.ids.get(&uid) == Some(&c.id))
        };
        let commits: Vec<_> = self.nodes[self.api.owner].disk.commits.values().filter(shown).map(|(c, _)| c.id).collect();
        let made: Vec<_> = commits.into_iter().filter(|id| self.ledger.made.contains(id)).collect();
        let Some(commit) = self.rng.pick(&made).copied() else { return };
        let uid = self.fresh_request();
        self.ledger.resets.insert(uid);
        let reset_to = Some(dotgraft_engine::model::Origin { fs_id: self.id, commit });
        let hold = self.rng.permille(500);
        world.wishes.push(WantedCommit { message: "before".into(), reset_to, hold, ..wanted(uid) });
    }

    /// A person deletes a commit that was made, and that no reset waits for.
    fn delete_commit(&mut self, world: &mut World) {
        let made = |w: &&WantedCommit| self.ledger.ids.get(&w.uid).is_some_and(|id| self.ledger.made.contains(id));
        let waited_for = |id| world.wishes.iter().any(|w| w.reset_to.is_some_and(|to| to.commit == id));
        let list: Vec<_> = world.wishes.iter().filter(made).filter(|w| !waited_for(self.ledger.ids[&w.uid])).cloned().collect();
        let Some(want) = self.rng.pick(&list).cloned() else { return };
        let id = self.ledger.ids.get(&want.uid).copied();
        self.ledger.removals.insert(want.uid);
        let content = id.and_then(|id| self.nodes.iter().find_map(|n| n.disk.commits.get(&id).map(|(_, c)| *c)));
        if let Some(content) = content {
            self.ledger.writes.give_up(content);
        }
        world.wishes.retain(|w| w.uid != want.uid);
        world.deleted.push((WantedCommit { id, remove: true, reset_to: None, hold: false, ..want }, false));
    }

    /// The operator reads what became of that.
    fn note_deleted(&self, world: &mut World) {
        let removed = |n: usize, uid| {
            let fs = self.nodes[n].fs.as_ref();
            fs.is_some_and(|fs| fs.status().requests.iter().any(|r| r.uid == uid && r.state == Some(RequestState::Removed)))
        };
        for (want, by_owner) in &mut world.deleted {
            *by_owner |= removed(self.api.owner, want.uid);
        }
        world.deleted.retain(|(want, _)| !(0..self.nodes.len()).all(|n| removed(n, want.uid)));
    }

    /// Authority went away without this node's doing, and it hasn't fenced its head yet.
    fn is_lost(&self, n: usize) -> bool {
        self.api.owner != n
            && self.nodes[n].journal.load().base.is_some_and(|b| b.role == Role::Owner && b.epoch <= self.api.epoch)
            && self.lost.contains(&n)
    }

    /// A person's word, or proof: authority goes to the copy that is complete to most, if it has a commit that people see.
    fn steal(&mut self, world: &mut World) {
        let fit = |n: &usize| {
            let visible = self.nodes[*n].disk.commits.values().any(|(c, _)| !c.transient);
            let replica = self.nodes[*n].journal.load().base.is_some_and(|b| b.role == Role::Replica);
            *n != self.api.owner && visible && replica
        };
        let newest = |n: &usize| self.nodes[*n].disk.commits.values().map(|(c, _)| c.order()).max();
        let best = (0..self.nodes.len()).filter(fit).max_by_key(newest);
        let Some(to) = best.filter(|_| world.steals && self.api.phase == Phase::Active) else { return };
        self.ledger.steals += 1;
        self.say(format!("AUTHORITY taken for n{to}"));
        self.lost.insert(self.api.owner);
        self.ledger.reset_made = None;
        self.api.owner = to;
        self.api.epoch = dotgraft_engine::ids::Epoch(self.api.epoch.0 + 1);
        self.api.attempt += 1;
        (self.api.pending, self.api.opened) = (None, None);
        world.taken = Some(to);
        world.held = self.nodes[to].disk.commits.values().map(|(_, content)| *content).collect();
        world.goal = to;
        self.operate(world);
    }

    /// A person has taken what they need of a superseded copy: it goes, and comes back as a replica.
    fn drop_superseded(&mut self, world: &World) {
        for n in 0..self.nodes.len() {
            let superseded = self.nodes[n].journal.load().base.is_some_and(|b| b.superseded);
            if !superseded || self.api.owner == n {
                continue;
            }
            let fenced = self.nodes[n].disk.head.as_ref().is_none_or(|h| h.fenced);
            assert!(fenced, "a superseded head on node {n} can still be written");
            self.give_up_copy(n);
            self.nodes[n].may_delete = true;
            let epoch = self.api.epoch;
            self.want(n, Some(Intent::Absent { epoch }));
            self.run_for(60_000);
            assert!(self.nodes[n].disk.is_empty(), "a dropped copy is still on node {n}: {:?}", self.nodes[n].disk);
            self.want(n, None);
            self.run_for(10_000);
            self.nodes[n].may_delete = false;
            self.lost.remove(&n);
        }
        self.operate(world);
    }

    fn turn(&mut self, world: &mut World) {
        if self.now % 4 == 0 {
            self.forge();
        }
        let n = usize::try_from(self.rng.below(self.nodes.len() as u64)).unwrap();
        self.note_deleted(world);
        self.be_mean(n);
        match self.rng.below(27) {
            25 => self.delete_commit(world),
            0 | 1 => world.goal = n,
            3 | 4 if world.wishes.len() < 6 => {
                let uid = self.fresh_request();
                world.wishes.push(wanted(uid));
            }
            5 | 6 => self.pod(n, true),
            2 | 7..=9 => self.pod(n, false),
            10..=13 => self.write_on(n, world),
            14 if self.nodes[n].up => self.crash(n, false),
            16 if self.rng.permille(500) && self.nodes[n].up => self.crash(n, true),
            15 => self.partition = false,
            17 => self.partition = !self.partition,
            18 if self.rng.permille(400) && self.has_served(n) => {
                self.nodes[n].disk.mounts.insert(FOREIGN.into(), MountWhat::Head);
            }
            19 => drop(self.nodes[n].disk.mounts.remove(FOREIGN)),
            20 => self.ask(n, Asked::Plain, Event::Thaw),
            22 if self.rng.permille(300) => self.steal(world),
            23 if world.wishes.len() < 9 && self.rng.permille(600) => self.reset(world),
            24 if self.rng.permille(500) => world.leaving = !world.leaving,
            21 => self.no_space = !self.no_space && self.rng.permille(500),
            _ => self.operate(world),
        }
        self.operate_sometimes(world);
    }

    /// Only of a head that was served somebody else can have made a mount.
    pub fn has_served(&self, n: usize) -> bool {
        self.nodes[n].journal.load().base.is_some_and(|b| b.opened.is_some())
    }

    /// What the hazards of this run allow.
    fn be_mean(&mut self, n: usize) {
        if self.hazards.has(Hazards::CLOCKS) && self.rng.permille(60) {
            let most: i64 = *self.rng.pick(&[5_000, 120_000, 3_700_000]).unwrap();
            let ahead = i64::try_from(self.rng.below(2 * most.unsigned_abs())).unwrap() - most;
            self.set_clock(n, ahead);
        }
        if self.hazards.has(Hazards::OLD_OPENINGS) && self.rng.permille(40) {
            let ms = i64::try_from(self.rng.below(20_000)).unwrap();
            self.pause(n, ms);
        }
        if self.hazards.has(Hazards::LOST_JOURNALS) && self.rng.permille(10) && self.nodes[n].up && self.nodes[n].disk.meta.is_some() {
            self.lose_journal(n);
        }
        if self.rng.permille(60) {
            self.nest(n);
        }
    }

    fn operate_sometimes(&mut self, world: &World) {
        if self.rng.permille(500) {
            self.operate(world);
        }
    }

    fn pod(&mut self, n: usize, starts: bool) {
        let target = "/pods/0".to_owned();
        if !starts {
            self.ask(n, Asked::Plain, |req| Event::Unmount(req, target));
        } else if !self.nodes[n].disk.mounts.contains_key(&target) {
            self.ask(n, Asked::Mount(MountWhat::Head), |req| Event::Mount(req, MountWhat::Head, target, MountMode::WRITE));
        }
    }

    /// Faults stop, pods end: authority gets where it should be, and the data with it.
    fn settle(&mut self, world: &mut World) {
        self.say("CALM".into());
        (self.faults, self.partition, self.no_space, self.late_write) = (false, false, false, None);
        for node in &mut self.nodes {
            node.paused = 0;
            node.disk.head.iter_mut().for_each(|h| h.nested = false); // a person has seen the condition
        }
        for _ in 0..12 {
            self.run_for(20_000);
            for n in 0..self.nodes.len() {
                self.nodes[n].disk.mounts.remove(FOREIGN);
                self.pod(n, false);
            }
            self.note_deleted(world);
            self.operate(world);
        }
        self.run_for(120_000);
        self.watch_writes();
        self.drop_superseded(world);
        for _ in 0..12 {
            self.run_for(20_000);
            self.note_deleted(world);
            self.operate(world);
        }
    }

    fn watch_settled(&mut self, world: &mut World) {
        self.note_reset(world);
        assert_eq!(self.api.owner, world.goal, "authority did not get where it should be: {:?}", self.api);
        assert!(self.api.pending.is_none());
        for n in 0..self.nodes.len() {
            let status = self.nodes[n].fs.as_ref().expect("an actor").status();
            assert!(status.conditions.first().is_some_and(|c| c.status), "node {n} is not ready: {}", short(&status.conditions));
            assert!(self.nodes[n].waiting().is_empty(), "never answered: {:?}", self.nodes[n].waiting());
            assert!(!self.nodes[n].journal.0.contains_key("migration"), "node {n} has not ended its handoff");
            assert_eq!(self.nodes[n].disk.head.is_some(), n == self.api.owner, "who owns it has the head, and nobody else");
            if n == self.api.owner {
                let removed = |uid| world.deleted.iter().any(|(w, _)| w.uid == uid);
                let end = |uid| if removed(uid) { RequestState::Removed } else { RequestState::Done };
                // What the head was reset to stays, as no commit was made since: without it nobody could make that head anew.
                let mut commits: Vec<_> = self.nodes[n].disk.commits.values().map(|(c, _)| c).collect();
                commits.sort_by_key(|c| c.order());
                let began = Commit::set_aside_last(commits.into_iter()).and_then(|c| c.reset_to);
                let stays = |r: &RequestStatus| r.state == Some(RequestState::Removing) && r.id.is_some() && r.id == began;
                let undone: Vec<_> = status.requests.iter().filter(|r| r.state != Some(end(r.uid)) && !stays(r)).collect();
                assert!(
                    world.steals || undone.is_empty() && status.requests.len() == world.wishes.len() + world.deleted.len(),
                    "not committed: {}",
                    short(&undone)
                );
            }
        }
        let head = self.nodes[self.api.owner].disk.head.clone().expect("a head");
        assert!(!head.fenced);
        if world.taken.is_none() {
            assert_eq!(head.content, world.written, "the owner's head is not what was acknowledged last");
        }
        let handled = self.run_for(600_000);
        // Among them a firing of each job, which may have something to bring to a copy that a move has made anew.
        assert!(handled <= 600, "{handled} events in ten quiet minutes");
    }
}

/// Pods come and go on all nodes, and authority follows, whatever fails; with `steals` it is also taken, from an owner that can't be asked.
pub fn moving(seed: u64, two: Two, steals: bool, trace: &mut Vec<String>) -> Did {
    moving_among(seed, two, steals, Hazards::of_runs(), trace)
}

/// The same in a world of those hazards.
pub fn moving_among(seed: u64, two: Two, steals: bool, hazards: Hazards, trace: &mut Vec<String>) -> Did {
    let mut sim = owner_and_copies(seed, two, trace);
    sim.ledger.moves = true;
    sim.hazards = hazards;
    let mut world = World { steals, ..World::default() };
    let mut did = Did::default();
    let delete_at = sim.rng.below(500); // in most runs never
    for turn in 0..140 {
        let (owner, attempt) = (sim.api.owner, sim.api.attempt);
        let pause = i64::try_from(sim.rng.below(1_600)).unwrap();
        sim.run_for(pause);
        if turn == delete_at {
            sim.delete();
        }
        sim.turn(&mut world);
        did.moves += u64::from(sim.api.owner != owner);
        did.aborts += u64::from(sim.api.attempt != attempt);
    }
    did.writes = world.writes;
    did.steals = sim.ledger.steals;
    did.resets = sim.ledger.heads_replaced;
    did.precopies = sim.ledger.precopies;
    if sim.api.phase == Phase::Deleting {
        sim.calm_down();
        sim.watch_end();
    } else {
        world.leaving = false;
        sim.settle(&mut world);
        sim.watch_settled(&mut world);
        sim.watch_writes();
    }
    did
}
