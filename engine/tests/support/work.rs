//! Tasks and their effects on the model disk, as node-agent's `tasks` and drivers carry them out: step by step, with anything in between.

use dotgraft_engine::filesystem::{Event, Handoff, MountWhat, Task, TaskDone};
use dotgraft_engine::ids::{CommitId, OpId};
use dotgraft_engine::model::{Commit, Problem, Reason};

use super::api::is_call;
use super::disk::Head;
use super::hazards::Hazards;
use super::sim::{Asked, Doing, Sim, What};

/// A mount that none of ours made.
pub const FOREIGN: &str = "/foreign";

fn problem(reason: Reason) -> Problem {
    Problem::new(reason, "simulated")
}

/// How far a step on the disk has got.
enum Done {
    Step,
    All(TaskDone),
}

const OK: Done = Done::All(TaskDone::Ok);

impl Sim<'_> {
    pub fn start_task(&mut self, n: usize, op: OpId, task: Task) {
        let life = self.nodes[n].life;
        match task {
            Task::PeerVersions { peer, .. } => {
                let peer = self.peer_of(&peer);
                self.later(30, What::Ask(n, life, op, peer));
            }
            Task::Export { peer, handoff } => {
                let peer = self.peer_of(&peer);
                self.later(30, What::Export(n, life, op, peer, handoff));
            }
            Task::Send { .. } => self.start_send(n, op, task),
            Task::Receive { .. } => self.start_receive(n, op, task),
            task if is_call(&task) => self.api_call(n, op),
            task => self.next_step(n, op, &task),
        }
    }

    pub fn is_failing(&self, task: &Task) -> bool {
        self.failing.is_some_and(|name| format!("{task:?}").starts_with(name))
    }

    pub fn is_slow(&self, task: &Task) -> bool {
        self.slow.is_some_and(|name| format!("{task:?}").starts_with(name))
    }

    fn next_step(&mut self, n: usize, op: OpId, task: &Task) {
        let life = self.nodes[n].life;
        let most = if self.is_slow(task) || self.fault(20) { 6_000 } else { 30 };
        self.later(most, What::Step(n, life, op));
    }

    pub fn cancel_task(&mut self, n: usize, op: OpId) {
        let Some(doing) = self.nodes[n].tasks.get_mut(&op) else { return };
        doing.cancelled = true;
        match doing.task {
            Task::PeerVersions { .. } | Task::Export { .. } => self.done(n, op, Err(problem(Reason::Cancelled))),
            Task::Send { .. } | Task::Receive { .. } => self.cancel_transfer(n, op),
            _ => {} // what can't be cancelled ends by itself
        }
    }

    /// A crash comes in the middle: so many of its steps have happened still. What was sent to the API is on its way.
    pub fn cut_task(&mut self, n: usize, op: OpId, doing: &Doing) {
        let transfer = matches!(doing.task, Task::PeerVersions { .. } | Task::Export { .. } | Task::Send { .. } | Task::Receive { .. });
        if transfer || is_call(&doing.task) {
            return;
        }
        let more = self.rng.below(4);
        let mut step = doing.step;
        for _ in 0..if more == 3 { 99 } else { more } {
            match self.disk_step(n, &doing.task, step) {
                Ok(Done::Step) => step += 1,
                Ok(Done::All(_)) => {
                    self.say(format!("n{n} {op} was cut after its effect"));
                    return;
                }
                Err(_) => return,
            }
        }
        self.say(format!("n{n} {op} was cut after {step} steps"));
    }

    pub fn step_task(&mut self, n: usize, op: OpId) {
        let Some(doing) = self.nodes[n].tasks.get(&op).filter(|d| !d.ended) else { return };
        let (task, step) = (doing.task.clone(), doing.step);
        let result = if self.is_failing(&task) {
            Err(problem(Reason::NoSpace))
        } else if self.fault(60) {
            // It happens, and ends with an error all the same; or it doesn't.
            if self.rng.permille(500) {
                drop(self.disk_step(n, &task, step));
            }
            let reasons = [Reason::Internal, Reason::NoSpace, Reason::Unreachable, Reason::Timeout, Reason::PoolFailed];
            Err(problem(*self.rng.pick(&reasons).unwrap()))
        } else {
            self.disk_step(n, &task, step)
        };
        let result = match result {
            Ok(Done::Step) => {
                if let Some(doing) = self.nodes[n].tasks.get_mut(&op) {
                    doing.step += 1;
                }
                return self.next_step(n, op, &task);
            }
            Ok(Done::All(done)) => Ok(done),
            Err(e) => Err(e),
        };
        if let Err(e) = &result {
            self.say(format!("n{n} {op} fails: {:?}", e.reason));
        }
        self.done(n, op, result);
    }

    /// One step of a task. Between two of them anything may happen: what was looked at in one may have changed by the next.
    fn disk_step(&mut self, n: usize, task: &Task, step: u32) -> Result<Done, Problem> {
        match (task, step) {
            (Task::Inspect, _) => return Ok(Done::All(TaskDone::Inspected(Box::new(self.nodes[n].disk.inspect())))),
            (Task::AllocateQgroup, _) => return Ok(Done::All(TaskDone::Qgroup(1 + self.rng.below(1_000)))),
            (Task::AskEpochs(_), _) => {
                let others = self.nodes.iter().enumerate().filter(|(other, node)| *other != n && node.is_live() && !self.partition);
                let seen = others.filter_map(|(_, node)| node.journal.load().base.map(|b| b.epoch)).max();
                return Ok(Done::All(TaskDone::HighestEpoch(seen.unwrap_or_default())));
            }
            (Task::Usage { .. }, _) => {
                return Ok(Done::All(TaskDone::Usage { bytes: self.usage.0, limit: self.usage.1, written: Some(false), files: None }));
            }
            (Task::Estimate { from, to, .. }, _) => {
                return Ok(Done::All(TaskDone::Estimated(Some(super::wire::size_of(*from, *to)))));
            }
            (Task::PinOrigin(_), _) => self.origin_pinned = true,
            (Task::UnpinOrigin(_), _) => self.origin_pinned = false,
            (Task::AskClones(pins), _) => {
                let unneeded = pins.keys().copied().filter(|_| !self.branch).collect();
                return Ok(Done::All(TaskDone::Unneeded(unneeded)));
            }
            (Task::Prepare(base), _) => self.nodes[n].disk.meta = Some((**base).clone()),
            (Task::WriteMeta(base), _) => {
                if self.nodes[n].disk.meta.is_none() {
                    return Err(problem(Reason::NotFound));
                }
                self.nodes[n].disk.meta = Some((**base).clone());
            }
            (Task::CreateHead { from, .. }, _) => self.create_head(n, *from)?,
            (Task::Commit { commit, .. }, step) => return self.commit_step(n, commit, step),
            (Task::DeleteCommit(id), 0) => {
                if self.nodes[n].disk.is_mounted(MountWhat::Commit(*id)) {
                    return Err(problem(Reason::Mounted));
                }
                return Ok(Done::Step);
            }
            (Task::DeleteCommit(id), _) => {
                self.watch_delete(n, *id);
                self.nodes[n].disk.commits.remove(id);
            }
            (Task::LookForMounts, _) => {
                self.refuse_mounted(n, |what| what == MountWhat::Head)?;
                self.ledger.planned.insert(n);
            }
            (Task::Freeze, 0) => {
                self.head(n)?.read_only = true;
                return Ok(Done::Step);
            }
            (Task::Freeze, _) => self.head(n)?.fenced = true,
            (Task::FinalCommit { commit, .. }, step) => return self.final_commit_step(n, commit, step),
            (Task::Thaw, 0) => {
                self.head(n)?.fenced = false;
                return Ok(Done::Step);
            }
            (Task::Thaw, _) => self.head(n)?.read_only = false,
            (Task::DropHead, step) => return self.drop_head_step(n, step),
            (Task::Destroy { .. }, step) => return self.destroy_step(n, step),
            (Task::Mount(what, ..), 0) => {
                let there = match what {
                    MountWhat::Head => self.nodes[n].disk.head.is_some(),
                    MountWhat::Commit(id) => self.nodes[n].disk.commits.contains_key(id),
                };
                return if there { Ok(Done::Step) } else { Err(problem(Reason::NotFound)) };
            }
            (Task::Mount(what, target, _), _) => {
                self.watch_mount(n, *what)?;
                self.nodes[n].disk.mounts.insert(target.clone(), *what);
            }
            (Task::Unmount(target), _) => drop(self.nodes[n].disk.mounts.remove(target)),
            (Task::Discard(target), 0) => {
                self.nodes[n].disk.incoming.remove(target);
                return Ok(Done::Step);
            }
            (Task::Discard(target), _) => {
                self.nodes[n].disk.drop_partial(*target);
                self.ledger.safe[n].take_if(|s| s.0 == *target);
            }
            (other, _) => return Err(Problem::new(Reason::Internal, format!("not for the disk: {other:?}"))),
        }
        Ok(OK)
    }

    fn head(&mut self, n: usize) -> Result<&mut Head, Problem> {
        self.nodes[n].disk.head.as_mut().ok_or_else(|| problem(Reason::NotFound))
    }

    fn refuse_mounted(&self, n: usize, what: impl Fn(MountWhat) -> bool) -> Result<(), Problem> {
        if self.nodes[n].disk.mounts.values().any(|w| what(*w)) { Err(problem(Reason::Mounted)) } else { Ok(()) }
    }

    fn create_head(&mut self, n: usize, from: Option<dotgraft_engine::model::Origin>) -> Result<(), Problem> {
        let content = match from {
            Some(origin) if origin.fs_id == self.id => {
                let commit = self.nodes[n].disk.commits.get(&origin.commit);
                commit.map(|(_, content)| *content).ok_or_else(|| problem(Reason::NotFound))?
            }
            Some(_) => 7,
            None => 0,
        };
        let base = self.nodes[n].journal.load().base;
        if base.as_ref().is_some_and(|b| b.head_from.is_some()) {
            self.watch_begins(n, from.map(|o| o.commit));
        }
        let reset = base.is_some_and(|b| b.reset_to.is_some());
        if reset && self.api.owner == n {
            self.ledger.reset_made = Some(content);
        }
        let disk = &mut self.nodes[n].disk;
        if disk.meta.is_none() {
            return Err(problem(Reason::NotFound));
        }
        disk.head.get_or_insert(Head::holding(content));
        Ok(())
    }

    fn commit_step(&mut self, n: usize, commit: &Commit, step: u32) -> Result<Done, Problem> {
        if step == 0 {
            let content = self.head(n)?.content;
            self.nodes[n].disk.commits.entry(commit.id).or_insert((commit.clone(), content));
            return Ok(Done::Step);
        }
        let content = self.nodes[n].disk.commits.get(&commit.id).map(|(_, content)| *content);
        let others = self.nodes[n].disk.commits.values().filter(|(c, _)| c.id != commit.id);
        let before = others.max_by_key(|(c, _)| (c.time, c.id)).map(|(_, content)| *content);
        Ok(Done::All(TaskDone::Committed { changed_bytes: Some(u64::from(before != content)), nested: None }))
    }

    /// As node-agent's `commit_frozen`: only of a frozen head; snapshot, proof.
    fn final_commit_step(&mut self, n: usize, commit: &Commit, step: u32) -> Result<Done, Problem> {
        match step {
            0 if !self.head(n)?.fenced => return Err(problem(Reason::Busy)),
            0 => {}
            1 => {
                let content = self.head(n)?.content;
                self.nodes[n].disk.commits.entry(commit.id).or_insert((commit.clone(), content));
            }
            _ => {
                let content = self.head(n)?.content;
                let proven = self.nodes[n].disk.commits.get(&commit.id).is_some_and(|(_, held)| *held == content);
                if !proven {
                    return Err(problem(Reason::Busy));
                }
                self.watch_fence_end(n);
                return Ok(Done::All(TaskDone::Fenced { generation: content, nested: None }));
            }
        }
        Ok(Done::Step)
    }

    /// As `drop_head_of`: looked at, frozen, and looked at again.
    fn drop_head_step(&mut self, n: usize, step: u32) -> Result<Done, Problem> {
        let is_head = |what| what == MountWhat::Head;
        match step {
            0 => self.refuse_mounted(n, is_head)?,
            1 => {
                if let Some(head) = &mut self.nodes[n].disk.head {
                    (head.read_only, head.fenced) = (true, true);
                }
            }
            _ => {
                self.refuse_mounted(n, is_head)?;
                self.watch_drop_head(n);
                self.nodes[n].disk.head = None;
                return Ok(OK);
            }
        }
        Ok(Done::Step)
    }

    /// As `destroy_fs`: looked at, frozen, looked at again; then one thing after another.
    fn destroy_step(&mut self, n: usize, step: u32) -> Result<Done, Problem> {
        match step {
            0 => self.refuse_mounted(n, |_| true)?,
            1 => {
                if let Some(head) = &mut self.nodes[n].disk.head {
                    (head.read_only, head.fenced) = (true, true);
                }
            }
            2 => {
                self.refuse_mounted(n, |_| true)?;
                self.watch_destroy(n);
                let disk = &mut self.nodes[n].disk;
                let commits: Vec<CommitId> = disk.commits.keys().copied().collect();
                for id in commits {
                    disk.commits.remove(&id);
                }
                disk.incoming.clear();
            }
            _ => {
                self.nodes[n].disk.clear();
                return Ok(OK);
            }
        }
        Ok(Done::Step)
    }

    /// A pod that has the head mounted writes; what it has open it goes on writing after the head was set read-only, until the limit.
    pub fn is_writable(&self, n: usize) -> bool {
        let disk = &self.nodes[n].disk;
        disk.is_mounted(MountWhat::Head) && disk.head.as_ref().is_some_and(|h| !h.fenced)
    }

    /// A pod makes a subvolume in the head, if the world is so mean.
    pub fn nest(&mut self, n: usize) {
        if self.hazards.has(Hazards::NESTED)
            && self.is_writable(n)
            && let Some(head) = self.nodes[n].disk.head.as_mut().filter(|h| !h.read_only)
        {
            head.nested = true;
            self.say(format!("n{n} a pod makes a subvolume in the head"));
        }
    }

    /// The exporter's last word arrives, or is lost.
    pub fn export(&mut self, n: usize, op: OpId, peer: usize, handoff: Handoff) {
        if self.partition || !self.nodes[peer].is_live() || self.fault(60) {
            let gone = self.unreachable();
            return self.done(n, op, Err(gone));
        }
        let life = self.nodes[n].life;
        let req = self.req(peer, Asked::Export(n, life, op));
        self.handle(peer, Event::Export(req, Box::new(handoff)));
    }
}
