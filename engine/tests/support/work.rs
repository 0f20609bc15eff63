//! Tasks and their effects on the model disk and API, as node-agent's `tasks` carries them out.

use dotgraft_engine::filesystem::{AuthorityView, Event, Handoff, MountWhat, Swap, Task, TaskDone};
use dotgraft_engine::ids::{Epoch, MigId, OpId};
use dotgraft_engine::model::{Problem, Reason};

use super::disk::Head;
use super::sim::{Asked, Phase, Sim, What};

fn problem(reason: Reason) -> Problem {
    Problem::new(reason, "simulated")
}

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
            _ => {
                let slow = self.slow.is_some_and(|name| format!("{task:?}").starts_with(name));
                let most = if slow || self.fault(30) { 8_000 } else { 60 };
                self.later(most, What::Finish(n, life, op));
            }
        }
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

    /// A crash comes in the middle: the effect has or has not happened.
    pub fn cut_task(&mut self, n: usize, op: OpId, task: &Task) {
        // The whole effect, half of it, or nothing.
        let luck = self.rng.below(4);
        if luck < 2 {
            let happened = self.effect(n, task).is_ok();
            self.say(format!("n{n} {op} was cut after its effect ({happened})"));
        } else if luck == 2 {
            self.half_effect(n, task);
        }
    }

    pub fn finish_task(&mut self, n: usize, op: OpId) {
        let Some(doing) = self.nodes[n].tasks.get(&op).filter(|d| !d.ended) else { return };
        let task = doing.task.clone();
        let failing = self.failing.is_some_and(|name| format!("{task:?}").starts_with(name));
        let result = if failing {
            Err(problem(Reason::NoSpace))
        } else if self.fault(100) {
            match self.rng.below(3) {
                0 => drop(self.effect(n, &task)),
                1 => self.half_effect(n, &task),
                _ => {}
            }
            let reasons = [Reason::Internal, Reason::NoSpace, Reason::Unreachable, Reason::Timeout, Reason::PoolFailed];
            Err(problem(*self.rng.pick(&reasons).unwrap()))
        } else {
            self.effect(n, &task)
        };
        if let Err(e) = &result {
            self.say(format!("n{n} {op} fails: {:?}", e.reason));
        }
        self.done(n, op, result);
    }

    /// Tasks of several steps can stop in the middle.
    fn half_effect(&mut self, n: usize, task: &Task) {
        let mounted = !self.nodes[n].disk.mounts.is_empty();
        match task {
            Task::Fence { force, .. } => {
                if let Some(head) = self.nodes[n].disk.head.as_mut().filter(|_| *force || !mounted) {
                    head.fenced = true;
                }
            }
            Task::Destroy { .. } if !mounted => {
                self.watch_destroy(n);
                self.nodes[n].disk.commits.clear();
                self.nodes[n].disk.incoming.clear();
            }
            Task::Discard(target) => drop(self.nodes[n].disk.incoming.remove(target)),
            _ => {}
        }
    }

    fn effect(&mut self, n: usize, task: &Task) -> Result<TaskDone, Problem> {
        match task {
            Task::Inspect => return Ok(TaskDone::Inspected(Box::new(self.nodes[n].disk.inspect()))),
            Task::AllocateQgroup => return Ok(TaskDone::Qgroup(1 + self.rng.below(1_000))),
            Task::Open { seen } => return self.open(n, *seen),
            Task::CheckDeleting => return Ok(TaskDone::Deleting(self.api.phase == Phase::Deleting)),
            Task::CheckHeadless => return Ok(TaskDone::Headless(self.api.phase == Phase::Headless)),
            Task::Usage { .. } => return Ok(TaskDone::Usage { bytes: self.usage.0, limit: self.usage.1 }),
            Task::Estimate { from, to, .. } => return Ok(TaskDone::Estimated(Some(super::wire::size_of(*from, *to)))),
            Task::PinOrigin(_) => self.origin_pinned = true,
            Task::UnpinOrigin(_) => self.origin_pinned = false,
            Task::Prepare(base) => self.nodes[n].disk.meta = Some((**base).clone()),
            Task::WriteMeta(base) => {
                if self.nodes[n].disk.meta.is_none() {
                    return Err(problem(Reason::NotFound));
                }
                self.nodes[n].disk.meta = Some((**base).clone());
            }
            Task::CreateHead { from, .. } => {
                let content = match from {
                    Some(origin) if origin.fs_id == self.id => self.nodes[n]
                        .disk
                        .commits
                        .get(&origin.commit)
                        .map(|(_, content)| *content)
                        .ok_or_else(|| problem(Reason::NotFound))?,
                    Some(_) => 7,
                    None => 0,
                };
                let reset = self.nodes[n].journal.load().base.is_some_and(|b| b.reset_to.is_some());
                if reset && self.api.owner == n {
                    self.ledger.reset_made = Some(content);
                }
                let disk = &mut self.nodes[n].disk;
                if disk.meta.is_none() {
                    return Err(problem(Reason::NotFound));
                }
                disk.head.get_or_insert(Head { content, fenced: false });
            }
            Task::Commit { commit, .. } => {
                let content = self.head_content(n)?;
                self.nodes[n].disk.commits.entry(commit.id).or_insert(((**commit).clone(), content));
                let others = self.nodes[n].disk.commits.values().filter(|(c, _)| c.id != commit.id);
                let before = others.max_by_key(|(c, _)| (c.time, c.id)).map(|(_, content)| *content);
                return Ok(TaskDone::Committed { changed_bytes: Some(u64::from(before != Some(content))) });
            }
            Task::DeleteCommit(id) => {
                if self.nodes[n].disk.is_mounted(MountWhat::Commit(*id)) {
                    return Err(problem(Reason::Mounted));
                }
                self.watch_delete(n, *id);
                self.nodes[n].disk.commits.remove(id);
            }
            Task::Fence { commit, force, .. } => {
                if !self.nodes[n].disk.mounts.is_empty() && !force {
                    return Err(problem(Reason::Mounted));
                }
                let content = self.head_content(n)?;
                let disk = &mut self.nodes[n].disk;
                disk.commits.insert(commit.id, ((**commit).clone(), content));
                disk.head = Some(Head { content, fenced: true });
                return Ok(TaskDone::Fenced { generation: content });
            }
            Task::Thaw => {
                self.head_content(n)?;
                if let Some(head) = &mut self.nodes[n].disk.head {
                    head.fenced = false;
                }
            }
            Task::Swap(swap) => return Ok(self.swap(n, swap)),
            Task::DropHead => {
                if !self.nodes[n].disk.mounts.is_empty() {
                    return Err(problem(Reason::Mounted));
                }
                self.watch_drop_head(n);
                self.nodes[n].disk.head = None;
            }
            Task::Destroy { .. } => {
                if !self.nodes[n].disk.mounts.is_empty() {
                    return Err(problem(Reason::Mounted));
                }
                self.watch_destroy(n);
                self.nodes[n].disk.clear();
            }
            Task::Mount(what, target, _) => {
                let there = match what {
                    MountWhat::Head => self.nodes[n].disk.head.is_some(),
                    MountWhat::Commit(id) => self.nodes[n].disk.commits.contains_key(id),
                };
                if !there {
                    return Err(problem(Reason::NotFound));
                }
                self.nodes[n].disk.mounts.insert(target.clone(), *what);
            }
            Task::Unmount(target) => drop(self.nodes[n].disk.mounts.remove(target)),
            Task::Discard(target) => {
                self.nodes[n].disk.drop_partial(*target);
                self.ledger.safe[n].take_if(|s| s.0 == *target);
            }
            Task::Receive { .. } | Task::PeerVersions { .. } | Task::Send { .. } | Task::Export { .. } => {}
        }
        Ok(TaskDone::Ok)
    }

    fn head_content(&self, n: usize) -> Result<u64, Problem> {
        self.nodes[n].disk.head.as_ref().map(|h| h.content).ok_or_else(|| problem(Reason::NotFound))
    }

    /// The compare-and-swaps of R3 and R6, with the guards of migration.md §2; then what authority says.
    fn swap(&mut self, n: usize, swap: &Swap) -> TaskDone {
        let deleting = self.api.phase == Phase::Deleting;
        let exactly = |pending: Option<(MigId, u64, usize)>, mig, attempt| pending.is_some_and(|p| (p.0, p.1) == (mig, attempt));
        match swap {
            Swap::Ask => {}
            Swap::Pend { mig, epoch, to, .. } => {
                if self.api.owner == n && self.api.epoch == *epoch && self.api.pending.is_none() && !deleting {
                    let to = self.peer_of(to);
                    self.watch_pend(n);
                    self.api.pending = Some((*mig, self.api.attempt, to));
                }
            }
            Swap::Commit { mig, attempt, epoch } => {
                if self.api.epoch == *epoch && exactly(self.api.pending, *mig, *attempt) && !deleting {
                    self.api.owner = self.api.pending.map_or(0, |p| p.2);
                    self.api.epoch = Epoch(epoch.0 + 1);
                    (self.api.pending, self.api.opened) = (None, None);
                    self.say(format!("AUTHORITY to n{} in {}", self.api.owner, self.api.epoch));
                }
            }
            Swap::Abort { mig, attempt, epoch } => {
                if self.api.epoch == *epoch && exactly(self.api.pending, *mig, *attempt) {
                    self.api.attempt += 1;
                    self.api.pending = None;
                    self.say("AUTHORITY abort".into());
                }
            }
        }
        TaskDone::Authority(Box::new(AuthorityView {
            owner: self.nodes[self.api.owner].place.clone(),
            epoch: self.api.epoch,
            attempt: self.api.attempt,
            pending: self.api.pending.map(|p| (p.0, p.1)),
            deleting,
        }))
    }

    /// The exporter's last word arrives, or is lost.
    pub fn export(&mut self, n: usize, op: OpId, peer: usize, handoff: Handoff) {
        if self.partition || self.nodes[peer].fs.is_none() || self.fault(60) {
            let gone = self.unreachable();
            return self.done(n, op, Err(gone));
        }
        let life = self.nodes[n].life;
        let req = self.req(peer, Asked::Export(n, life, op));
        self.handle(peer, Event::Export(req, Box::new(handoff)));
    }

    /// R0's compare-and-swap.
    fn open(&mut self, n: usize, seen: dotgraft_engine::ids::Epoch) -> Result<TaskDone, Problem> {
        if self.api.phase == Phase::Deleting {
            return Err(problem(Reason::Deleting));
        }
        if self.api.owner != n {
            return Err(problem(Reason::NotOwner));
        }
        if self.api.pending.is_some() {
            return Err(problem(Reason::Busy));
        }
        if self.api.epoch < seen {
            return Err(problem(Reason::StaleEpoch));
        }
        self.api.opened = Some((self.api.epoch, self.nodes[n].boot));
        Ok(TaskDone::Opened { epoch: self.api.epoch, attempt: self.api.attempt, new: self.api.phase == Phase::New })
    }
}
