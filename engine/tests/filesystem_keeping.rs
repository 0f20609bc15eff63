//! No kept commit is lost (fault 0 of the table in docs/testing.md), as a property: pushes of the newest commit or of all, moves, promotions,
//! drains, jobs that go, copies that are dropped or collected, crashes, cuts, and nodes whose clocks are an hour apart. In the end the owner has
//! every commit that someone asked for, with what it held when it was made.
//!
//! What the operator decides it decides as it does: by [`Copies`] over what agents last reported, which may be old.
#![allow(clippy::unwrap_used, clippy::expect_used)] // its helpers too are tests

mod support;

use std::collections::{BTreeMap, BTreeSet};

use dotgraft_engine::copies::{Copies, Copy, Held, Standing};
use dotgraft_engine::filesystem::{Holding, Intent, Present, Role, Transfer, WantedCommit, WantedJob};
use dotgraft_engine::ids::{CommitId, Epoch, JobUid};
use dotgraft_engine::run::Initial;
use support::user::{present, status, wanted};
use support::{Sim, Two};

/// Seeds that found something once, in the engine or in what is asserted here.
const SAVED: &[u64] = &[];

const HOUR: i64 = 3_600_000;

/// What the operator knows.
#[derive(Default)]
struct World {
    wishes: Vec<WantedCommit>,
    /// Jobs of users, as the owner's object has them.
    jobs: Vec<WantedJob>,
    /// Nodes that are to have a copy.
    copies: BTreeSet<usize>,
    /// Those whose copy is on its way out.
    going: BTreeSet<usize>,
    /// What each agent reported last.
    reported: BTreeMap<usize, Holding>,
    /// Where it should be.
    goal: usize,
    /// What each commit held when it was made.
    contents: BTreeMap<CommitId, u64>,
    writes: u64,
    did: Did,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
struct Did {
    kept: usize,
    gone: u64,
    stayed: u64,
    brought: u64,
    promoted: u64,
}

impl World {
    /// Commits that objects want.
    fn kept(&self) -> BTreeSet<CommitId> {
        self.contents.keys().copied().collect()
    }

    fn all(&self, sim: &Sim) -> Copies<usize> {
        let standing = |n: usize| if sim.nodes[n].is_live() && !self.going.contains(&n) { Standing::Stays } else { Standing::Doubtful };
        let held = |n: usize| {
            let told = self.reported.get(&n);
            told.map_or_else(Held::default, |h| Held { commits: h.kept.iter().copied().collect(), complete: h.complete })
        };
        Copies::new(self.copies.iter().map(|n| Copy { at: *n, standing: standing(*n), held: held(*n) }).collect())
    }

    /// Some agents report; all of them, if it is certain.
    fn hear(&mut self, sim: &mut Sim, certain: bool) {
        for n in self.copies.clone() {
            if sim.nodes[n].is_live() && (certain || sim.rng.permille(600)) {
                self.reported.insert(n, status(sim, n).holding);
            }
        }
        for n in &sim.nodes {
            let of_owner = n.disk.commits.values().filter(|(c, _)| c.kept.is_some() && sim.ledger.made.contains(&c.id));
            for (commit, content) in of_owner {
                self.contents.entry(commit.id).or_insert(*content);
            }
        }
    }

    /// Each Replica as it should be.
    fn operate(&mut self, sim: &mut Sim) {
        let owner = sim.api.owner;
        self.copies.insert(owner);
        for n in self.going.clone() {
            if sim.nodes[n].disk.is_empty() && !sim.nodes[n].journal.0.keys().any(|k| k != "base") {
                self.going.remove(&n);
                self.copies.remove(&n);
                self.reported.remove(&n);
                sim.lost.remove(&n);
                sim.want(n, None);
            }
        }
        let bring = self.all(sim).to_bring(&owner, &self.kept()).into_iter().map(|(id, from)| (id, *from)).collect::<Vec<_>>();
        for n in self.copies.clone().into_iter().filter(|n| !self.going.contains(n)) {
            let is_owner = n == owner;
            let transfers = |of: usize, with: &dyn Fn(usize) -> usize| {
                let mine = bring.iter().filter(|(_, from)| of == owner || *from == of).take(16);
                mine.map(|(id, from)| Transfer { commit: *id, with: sim.nodes[with(*from)].place.clone() }).collect::<BTreeSet<_>>()
            };
            let jobs = self.jobs.iter().filter(|j| j.spec.params.peer != sim.nodes[n].place).cloned().collect();
            let goal = Some(self.goal).filter(|g| is_owner && *g != n && self.copies.contains(g) && !self.going.contains(g));
            let desired = Present {
                epoch: sim.api.epoch,
                commits: if is_owner { self.with_ids(sim) } else { Vec::new() },
                jobs: if is_owner { jobs } else { Vec::new() },
                move_to: goal.map(|g| sim.nodes[g].place.clone()),
                fetch: if is_owner { transfers(n, &|from| from) } else { BTreeSet::new() },
                lend: if is_owner { BTreeSet::new() } else { transfers(n, &|_| owner) },
                ..present(if is_owner { Role::Owner } else { Role::Replica })
            };
            self.did.brought += u64::try_from(desired.fetch.len()).unwrap();
            sim.want(n, Some(Intent::Present(Box::new(desired))));
        }
    }

    fn with_ids(&self, sim: &Sim) -> Vec<WantedCommit> {
        let id = |w: &WantedCommit| sim.ledger.ids.get(&w.uid).copied().filter(|id| sim.ledger.made.contains(id));
        self.wishes.iter().map(|w| WantedCommit { id: id(w), ..w.clone() }).collect()
    }

    /// A person drops a copy, or the collector does, if the rule lets it go.
    fn drop_copy(&mut self, sim: &mut Sim, n: usize) {
        let pending = sim.api.pending.is_some_and(|(_, _, to)| to == n);
        if n == sim.api.owner || n == self.goal || pending || !self.copies.contains(&n) || self.going.contains(&n) {
            return;
        }
        if self.all(sim).leave(&n, &self.kept()).is_err() {
            self.did.stayed += 1;
            return;
        }
        sim.say(format!("DROP n{n}"));
        self.did.gone += 1;
        self.going.insert(n);
        self.jobs.retain(|j| j.spec.params.peer != sim.nodes[n].place);
        sim.nodes[n].may_delete = true;
        let epoch = sim.api.epoch;
        sim.want(n, Some(Intent::Absent { epoch }));
    }

    /// A job of a user: a copy on that node, of the newest commit or of all.
    fn push(&mut self, sim: &mut Sim, n: usize) {
        if n == sim.api.owner || self.going.contains(&n) || self.jobs.len() > 3 {
            return;
        }
        self.copies.insert(n);
        let mut job = sim.job_to(sim.nodes[n].place.clone());
        job.spec.uid = JobUid::from_uuid(sim.fresh());
        job.spec.params.initial = *sim.rng.pick(&[Initial::MostRecent, Initial::MostRecent, Initial::All]).unwrap();
        self.jobs.push(job);
    }

    /// Authority is taken for the copy that is complete to most.
    fn promote(&mut self, sim: &mut Sim) {
        let owner = sim.api.owner;
        let can = |n: &usize| {
            let replica = sim.nodes[*n].journal.load().base.is_some_and(|b| b.role == Role::Replica);
            let visible = sim.nodes[*n].disk.commits.values().any(|(c, _)| !c.transient);
            *n != owner && replica && visible && !self.going.contains(n) && sim.nodes[*n].is_live()
        };
        let best = self.copies.iter().copied().filter(can).max_by_key(|n| self.reported.get(n).and_then(|h| h.complete_to));
        // One at a time: what is left on a node that authority was taken from goes before it is taken again.
        let Some(to) = best.filter(|_| sim.lost.is_empty()) else { return };
        self.did.promoted += 1;
        self.goal = to;
        sim.promote(to, false);
    }

    /// A pod writes a bit.
    fn write(&mut self, sim: &mut Sim) {
        let owner = sim.api.owner;
        if sim.is_writable(owner) && sim.lost.is_empty() {
            self.writes += 1;
            sim.nodes[owner].disk.head.as_mut().unwrap().content = self.writes;
        } else {
            sim.start_pod(owner);
        }
    }

    fn turn(&mut self, sim: &mut Sim) {
        let n = usize::try_from(sim.rng.below(3)).unwrap();
        match sim.rng.below(20) {
            0..=2 if self.wishes.len() < 12 => {
                let uid = sim.fresh_request();
                self.wishes.push(wanted(uid));
            }
            3 | 4 => self.push(sim, n),
            5 => {
                let uid = sim.rng.pick(&self.jobs).map(|j| j.spec.uid);
                self.jobs.retain(|j| Some(j.spec.uid) != uid);
            }
            6 | 7 => self.drop_copy(sim, n),
            8 if self.copies.contains(&n) => self.goal = n,
            9 if sim.rng.permille(300) => self.promote(sim),
            10 if sim.nodes[n].up => sim.crash(n, false),
            11 if sim.nodes[n].up && sim.rng.permille(300) => sim.crash(n, true),
            12 => sim.partition = !sim.partition,
            13..=15 => self.write(sim),
            16 => (0..3).for_each(|n| sim.stop_pod(n)),
            _ => {}
        }
        self.hear(sim, false);
        self.operate(sim);
    }
}

/// A run, and what it did.
fn keeping(seed: u64, trace: &mut Vec<String>) -> Did {
    let mut sim = Sim::new(seed, Two::Three, trace);
    sim.old_operator = false;
    (0..3).for_each(|n| sim.nodes[n].wall_ahead = [HOUR, -HOUR, 0][(n + usize::try_from(seed).unwrap()) % 3]);
    let mut world = World { copies: BTreeSet::from([0]), ..World::default() };
    world.operate(&mut sim);
    sim.run_for(2_000);
    for _ in 0..120 {
        let pause = i64::try_from(sim.rng.below(900)).unwrap();
        sim.run_for(pause);
        world.turn(&mut sim);
    }
    settle(&mut sim, &mut world);
    watch_kept(&sim, &world);
    Did { kept: world.contents.len(), ..world.did }
}

/// Faults stop and people wait; a commit more, so that what is older can come to its place.
fn settle(sim: &mut Sim, world: &mut World) {
    sim.say("CALM".into());
    (sim.faults, sim.partition) = (false, false);
    let uid = sim.fresh_request();
    for turn in 0..40 {
        sim.run_for(20_000);
        (0..3).for_each(|n| sim.stop_pod(n));
        if turn == 20 {
            world.goal = sim.api.owner;
            world.wishes.push(wanted(uid));
        }
        world.hear(sim, true);
        world.operate(sim);
    }
}

fn watch_kept(sim: &Sim, world: &World) {
    let owner = sim.api.owner;
    let held = &sim.nodes[owner].disk.commits;
    for (id, content) in &world.contents {
        let at: Vec<usize> = (0..3).filter(|n| sim.nodes[*n].disk.commits.contains_key(id)).collect();
        let there = held.get(id).map(|(_, content)| *content);
        assert_eq!(there, Some(*content), "commit {id} can't be restored on n{owner}; it is on {at:?}");
    }
    let kept: BTreeSet<CommitId> = status(sim, owner).holding.kept.into_iter().collect();
    assert!(world.kept().is_subset(&kept), "the owner doesn't say that it has {:?}", world.kept().difference(&kept));
    assert!(sim.api.epoch >= Epoch(1));
}

#[test]
fn every_kept_commit_can_be_restored_whatever_happened() {
    support::run_seeds("keeping", 60, SAVED, |seed, trace| {
        keeping(seed, trace);
    });
}

#[test]
fn the_simulation_really_drops_copies_takes_authority_and_brings_commits() {
    let all: Vec<Did> = (0..30).map(|seed| keeping(seed, &mut Vec::new())).collect();
    let sum = |of: fn(&Did) -> u64| all.iter().map(of).sum::<u64>();
    let (gone, stayed, brought, promoted) = (sum(|d| d.gone), sum(|d| d.stayed), sum(|d| d.brought), sum(|d| d.promoted));
    let kept: usize = all.iter().map(|d| d.kept).sum();
    assert!(
        kept > 100 && gone > 20 && stayed > 10 && brought > 20 && promoted > 5,
        "too tame: {kept} commits, {gone} copies gone, {stayed} stayed, {brought} brought, {promoted} promoted"
    );
}
