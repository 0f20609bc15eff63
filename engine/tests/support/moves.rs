//! Authority goes from node to node while everything fails: each write must be on top of the last one that was acknowledged.

use std::collections::BTreeMap;

use dotgraft_engine::filesystem::{Event, Intent, MountWhat, Present, RequestState, Role, WantedCommit};
use dotgraft_engine::ids::Timestamp;

use super::sim::{Asked, Phase, Sim, Two, short};
use super::user::present;

/// What the operator knows of a run.
#[derive(Debug, Default)]
struct World {
    /// Where it should be.
    goal: usize,
    wishes: Vec<WantedCommit>,
    /// The last write that a pod was told of.
    written: u64,
    writes: u64,
    moves: u64,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Did {
    pub moves: u64,
    pub aborts: u64,
    pub writes: u64,
}

fn owner_and_replica(seed: u64, trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = Sim::new(seed, Two::WithReplica, trace);
    sim.want(0, Some(Intent::Present(Box::new(present(Role::Owner)))));
    sim.want(1, Some(Intent::Present(Box::new(present(Role::Replica)))));
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
            let wanted = Present {
                epoch: self.api.epoch,
                commits: if owner { self.with_ids(&world.wishes) } else { Vec::new() },
                move_to: (owner && world.goal != n).then(|| self.nodes[world.goal].place.clone()),
                ..present(if owner { Role::Owner } else { Role::Replica })
            };
            self.want(n, Some(Intent::Present(Box::new(wanted))));
        }
    }

    fn with_ids(&self, wishes: &[WantedCommit]) -> Vec<WantedCommit> {
        let id = |w: &WantedCommit| self.ledger.ids.get(&w.uid).copied().filter(|id| self.ledger.made.contains(id));
        wishes.iter().map(|w| WantedCommit { id: id(w), ..w.clone() }).collect()
    }

    /// A pod on node `n` writes, if it can; then nobody else can, and nothing acknowledged before is missing.
    fn write_on(&mut self, n: usize, world: &mut World) {
        let disk = &mut self.nodes[n].disk;
        let mounted = disk.is_mounted(MountWhat::Head);
        let Some(head) = disk.head.as_mut().filter(|h| mounted && !h.fenced) else { return };
        let before = head.content;
        world.writes += 1;
        head.content = world.writes;
        assert_eq!(before, world.written, "node {n} writes on top of {before}, but {} was acknowledged", world.written);
        world.written = world.writes;
        assert_eq!(self.api.owner, n, "node {n} writes and is not the owner");
        assert!(self.api.pending.is_none(), "node {n} writes while a handoff is pending");
    }

    fn turn(&mut self, world: &mut World) {
        let n = usize::try_from(self.rng.below(2)).unwrap();
        match self.rng.below(24) {
            0 | 1 => world.goal = n,
            3 | 4 if world.wishes.len() < 6 => {
                let uid = self.fresh_request();
                world.wishes.push(WantedCommit { uid, message: "m".into(), metadata: BTreeMap::new(), id: None, remove: false });
            }
            5 | 6 => self.pod(n, true),
            2 | 7..=9 => self.pod(n, false),
            10..=13 => self.write_on(n, world),
            14 if self.nodes[n].up => self.crash(n, false),
            16 if self.rng.permille(500) && self.nodes[n].up => self.crash(n, true),
            15 => self.partition = false,
            17 => self.partition = !self.partition,
            18 if self.rng.permille(400) => drop(self.nodes[n].disk.mounts.insert("/foreign".into(), MountWhat::Head)),
            19 => drop(self.nodes[n].disk.mounts.remove("/foreign")),
            20 => self.request(n, Asked::Plain, Event::Thaw),
            21 => self.no_space = !self.no_space && self.rng.permille(500),
            _ => self.operate(world),
        }
        self.operate_sometimes(world);
    }

    fn operate_sometimes(&mut self, world: &World) {
        if self.rng.permille(500) {
            self.operate(world);
        }
    }

    fn request(&mut self, n: usize, asked: Asked, event: impl FnOnce(dotgraft_engine::filesystem::ReqId) -> Event) {
        if self.nodes[n].fs.is_some() {
            let req = self.req(n, asked);
            self.handle(n, event(req));
        }
    }

    fn pod(&mut self, n: usize, starts: bool) {
        let target = "/pods/0".to_owned();
        if !starts {
            self.request(n, Asked::Plain, |req| Event::Unmount(req, target));
        } else if !self.nodes[n].disk.mounts.contains_key(&target) {
            self.request(n, Asked::Mount(MountWhat::Head), |req| Event::Mount(req, MountWhat::Head, target, false));
        }
    }

    /// Faults stop, pods end: authority gets where it should be, and the data with it.
    fn settle(&mut self, world: &World) {
        self.say("CALM".into());
        (self.faults, self.partition, self.no_space) = (false, false, false);
        for _ in 0..12 {
            self.run_for(20_000);
            for n in 0..2 {
                self.nodes[n].disk.mounts.remove("/foreign");
                self.pod(n, false);
            }
            self.operate(world);
        }
        self.run_for(120_000);
    }

    fn watch_settled(&mut self, world: &World) {
        assert_eq!(self.api.owner, world.goal, "authority did not get where it should be: {:?}", self.api);
        assert!(self.api.pending.is_none());
        for n in 0..2 {
            let status = self.nodes[n].fs.as_ref().expect("an actor").status(Timestamp(self.now));
            assert!(status.conditions.first().is_some_and(|c| c.status), "node {n} is not ready: {}", short(&status.conditions));
            assert!(self.nodes[n].waiting.is_empty(), "never answered: {:?}", self.nodes[n].waiting);
            assert!(!self.nodes[n].journal.0.contains_key("migration"), "node {n} has not ended its handoff");
            assert_eq!(self.nodes[n].disk.head.is_some(), n == self.api.owner, "who owns it has the head, and nobody else");
            if n == self.api.owner {
                let undone: Vec<_> = status.requests.iter().filter(|r| r.state != Some(RequestState::Done)).collect();
                assert!(undone.is_empty() && status.requests.len() == world.wishes.len(), "not committed: {}", short(&undone));
            }
        }
        let head = self.nodes[self.api.owner].disk.head.clone().expect("a head");
        assert!(!head.fenced);
        assert_eq!(head.content, world.written, "the owner's head is not what was acknowledged last");
        let handled = self.run_for(600_000);
        assert!(handled <= 200, "{handled} events in ten quiet minutes");
    }
}

/// Pods come and go on both nodes, and authority follows, whatever fails.
pub fn moving(seed: u64, trace: &mut Vec<String>) -> Did {
    let mut sim = owner_and_replica(seed, trace);
    let mut world = World::default();
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
    world.moves = did.moves;
    did.writes = world.writes;
    if sim.api.phase == Phase::Deleting {
        sim.calm_down();
        sim.watch_end();
    } else {
        sim.settle(&world);
        sim.watch_settled(&world);
    }
    did
}
