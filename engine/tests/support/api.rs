//! The API server: one Filesystem object with a resourceVersion, and the calls of agents to it. Reads are quorum reads. A write is a
//! compare-and-swap by the version that was read; it may arrive long after its sender has given up or died, and its answer may get lost.

pub use dotgraft_engine::authority::Phase;
use dotgraft_engine::authority::{self, Authority, Opened, Pending, Read};
use dotgraft_engine::filesystem::{Task, TaskDone};
use dotgraft_engine::ids::{BootId, CommitId, Epoch, MigId, OpId};
use dotgraft_engine::model::{Problem, Reason};

use super::hazards::Hazards;
use super::sim::{Sim, What, short};

/// A sender waits so long for one answer, and so long for all its tries together (as node-agent's `cluster` does).
const ANSWER_MS: i64 = 10_000;
const CALL_MS: i64 = 25_000;

/// `Filesystem.status`, as far as agents see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Api {
    pub phase: Phase,
    pub owner: usize,
    pub epoch: Epoch,
    pub opened: Option<(Epoch, BootId)>,
    pub attempt: u64,
    pub pending: Option<(MigId, u64, usize)>,
    /// Of what is pending.
    pub final_commit: Option<CommitId>,
    /// What the server knows besides the object.
    pub server: Server,
}

/// The server's own books. They are no part of the object: two states that differ in them alone are one.
#[derive(Debug, Clone, Default)]
pub struct Server {
    version: u64,
    /// The object when that version was given: whoever edits it directly has made a new one.
    known: Option<Box<Api>>,
    /// When each node was last answered, and last sent an opening that was won: true time.
    pub read_at: Vec<i64>,
    pub opening_sent: Vec<Option<i64>>,
    /// When `pending` was set.
    pub pended_at: i64,
}

impl PartialEq for Server {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What a read or a swap brings back.
#[derive(Debug, Clone)]
pub enum Reply {
    Read { version: u64, object: Box<Api> },
    Swapped { version: u64, object: Box<Api> },
    Conflict,
}

/// A write on its way. It belongs to nobody any more once it is sent.
#[derive(Debug, Clone)]
pub struct Write {
    from: (usize, u64, OpId, u32),
    version: u64,
    object: Box<Api>,
}

impl Api {
    pub fn new(nodes: usize) -> Self {
        let server = Server { read_at: vec![0; nodes], opening_sent: vec![None; nodes], ..Server::default() };
        Self { phase: Phase::New, owner: 0, epoch: Epoch(1), opened: None, attempt: 1, pending: None, final_commit: None, server }
    }

    /// Of the object as it stands; an edit by the operator or a person counts as a write.
    pub fn version(&mut self) -> u64 {
        let same = self.server.known.as_deref().is_some_and(|known| *known == *self);
        if !same {
            self.server.version += 1;
            self.server.known = Some(Box::new(self.clone_object()));
        }
        self.server.version
    }

    /// Without the server's books.
    pub fn clone_object(&self) -> Self {
        Self { server: Server::default(), ..self.clone() }
    }

    /// etcd was restored: the object is what it was then, and so is its version.
    pub fn restore(&mut self, backup: &Self) {
        let read_at = std::mem::take(&mut self.server.read_at);
        let opening_sent = std::mem::take(&mut self.server.opening_sent);
        *self = backup.clone();
        (self.server.read_at, self.server.opening_sent) = (read_at, opening_sent);
    }
}

impl Sim<'_> {
    pub fn api_call(&mut self, n: usize, op: OpId) {
        let life = self.nodes[n].life;
        let Some(doing) = self.nodes[n].tasks.get_mut(&op) else { return };
        doing.step += 1;
        let (no, task) = (doing.step, doing.task.clone());
        if self.is_failing(&task) {
            return self.done(n, op, Err(Problem::new(Reason::NoSpace, "simulated")));
        }
        self.later_at(self.now + ANSWER_MS, What::GiveUp(n, life, op, no));
        let lost = self.nodes[n].cut_off || self.fault(25);
        if !lost {
            let most = if self.is_slow(&task) { 8_000 } else { 30 };
            self.later(most, What::Read(n, life, op, no));
        }
    }

    fn is_waited_for(&self, n: usize, op: OpId, no: u32) -> bool {
        self.nodes[n].tasks.get(&op).is_some_and(|d| !d.ended && d.step == no)
    }

    /// At the server.
    pub fn api_read(&mut self, n: usize, op: OpId, no: u32) {
        let version = self.api.version();
        let reply = Reply::Read { version, object: Box::new(self.api.clone_object()) };
        self.api.server.read_at[n] = self.now;
        self.api_reply(n, op, no, reply);
    }

    fn api_reply(&mut self, n: usize, op: OpId, no: u32, reply: Reply) {
        let life = self.nodes[n].life;
        if self.nodes[n].cut_off || self.fault(25) {
            return;
        }
        let most = if self.fault(30) { 8_000 } else { 30 };
        self.later(most, What::Have(n, life, op, no, Box::new(reply)));
    }

    /// At the agent.
    pub fn api_have(&mut self, n: usize, op: OpId, no: u32, reply: Reply) {
        if !self.is_waited_for(n, op, no) {
            return;
        }
        let task = self.nodes[n].tasks[&op].task.clone();
        match reply {
            Reply::Conflict => self.api_again(n, op, Reason::Busy),
            Reply::Swapped { version, object } => {
                if matches!(task, Task::Open { .. }) {
                    self.api.server.opening_sent[n] = Some(self.nodes[n].tasks[&op].sent);
                }
                let result = self.told(n, op, &task, (version, &object), true);
                self.done(n, op, result);
            }
            Reply::Read { version, object } => match self.changed(n, &task, (version, &object)) {
                Ok(Some(next)) => self.api_send(n, op, no, version, next),
                Ok(None) => {
                    let result = self.told(n, op, &task, (version, &object), false);
                    self.done(n, op, result);
                }
                Err(problem) => self.done(n, op, Err(problem)),
            },
        }
    }

    fn api_send(&mut self, n: usize, op: OpId, no: u32, version: u64, object: Api) {
        let life = self.nodes[n].life;
        if let Some(doing) = self.nodes[n].tasks.get_mut(&op) {
            doing.sent = self.now;
        }
        if object.pending.is_some() {
            self.watch_pend(n);
        }
        let write = Write { from: (n, life, op, no), version, object: Box::new(object) };
        let late = self.late_write.take().or_else(|| self.dice_late_write());
        match late {
            Some(ms) => {
                self.say(format!("n{n} {op} its write is on its way for {ms} ms"));
                self.later_at(self.now + ms, What::Write(Box::new(write)));
            }
            None if self.fault(25) => {} // lost for good
            None => self.later(30, What::Write(Box::new(write))),
        }
    }

    fn dice_late_write(&mut self) -> Option<i64> {
        let late = self.hazards.has(Hazards::LATE_WRITES) && self.fault(60);
        late.then(|| i64::try_from(1 + self.rng.below(60_000)).unwrap())
    }

    /// At the server, whoever still waits for it.
    pub fn api_write(&mut self, write: Write) {
        let (n, life, op, no) = write.from;
        let waits = self.nodes[n].life == life;
        if self.api.version() != write.version {
            if waits {
                self.api_reply(n, op, no, Reply::Conflict);
            }
            return;
        }
        let before = self.api.clone_object();
        let server = std::mem::take(&mut self.api.server);
        self.api = Api { server, ..(*write.object).clone() };
        self.api.server.version += 1; // also if nothing differs
        self.api.server.known = Some(Box::new(self.api.clone_object()));
        if before.pending != self.api.pending {
            self.api.server.pended_at = self.now;
        }
        if before != self.api {
            let text = format!("AUTHORITY n{} {} pending {}", self.api.owner, self.api.epoch, short(&self.api.pending));
            self.say(text);
        }
        if waits {
            let object = Box::new(self.api.clone_object());
            let version = self.api.server.version;
            self.api_reply(n, op, no, Reply::Swapped { version, object });
        }
    }

    pub fn api_given_up(&mut self, n: usize, op: OpId, no: u32) {
        if self.is_waited_for(n, op, no) {
            self.api_again(n, op, Reason::Unreachable);
        }
    }

    /// The outcome is unknown, or somebody was faster: only a new read tells.
    fn api_again(&mut self, n: usize, op: OpId, reason: Reason) {
        if self.now - self.nodes[n].tasks[&op].began + 2_000 < CALL_MS {
            return self.api_call(n, op);
        }
        self.say(format!("n{n} {op} gives up: {reason:?}"));
        self.done(n, op, Err(Problem::new(reason, "simulated")));
    }

    /// The object as the rules of authority read it.
    pub fn as_read(&self, version: u64, object: &Api) -> Read {
        let place = |n: usize| self.nodes[n].place.clone();
        let opened = object.opened.map(|(epoch, boot)| Opened { epoch, boot });
        let pending = object.pending.zip(object.final_commit);
        let pending = pending.map(|((mig, attempt, to), final_commit)| Pending { mig, attempt, to: place(to), final_commit });
        let (owner, epoch, attempt) = (place(object.owner), object.epoch, object.attempt);
        let authority = Authority { owner, epoch, attempt, opened, pending, fork_points: Vec::new() };
        Read { phase: object.phase, authority: Some(authority), version: Some(version) }
    }

    fn with_authority(&self, object: &Api, next: &Authority) -> Api {
        Api {
            owner: self.peer_of(&next.owner),
            epoch: next.epoch,
            attempt: next.attempt,
            opened: next.opened.map(|o| (o.epoch, o.boot)),
            pending: next.pending.as_ref().map(|p| (p.mig, p.attempt, self.peer_of(&p.to))),
            final_commit: next.pending.as_ref().map(|p| p.final_commit),
            ..object.clone()
        }
    }

    /// What a call makes of the object that it read, by the rules that agents go by; `None`: nothing.
    fn changed(&self, n: usize, task: &Task, (version, object): (u64, &Api)) -> Result<Option<Api>, Problem> {
        let (read, me) = (self.as_read(version, object), &self.nodes[n].place);
        let swapped = match task {
            Task::Open { seen } => Some(authority::open(&read, me, self.nodes[n].boot, *seen).map_err(|refusal| refusal.problem())?),
            // A guard that doesn't hold changes nothing; what authority says then is the answer.
            Task::Swap(swap) => swap.of(&read, me).ok().flatten(),
            _ => None,
        };
        Ok(swapped.map(|next| self.with_authority(object, &next)))
    }

    fn told(&self, n: usize, op: OpId, task: &Task, (version, object): (u64, &Api), swapped: bool) -> Result<TaskDone, Problem> {
        Ok(match task {
            Task::Open { .. } if swapped => TaskDone::Opened {
                epoch: object.epoch,
                attempt: object.attempt,
                new: object.phase == Phase::New,
                sent: self.boot_time_at(n, self.nodes[n].tasks[&op].sent),
                version: Some(version),
            },
            Task::CheckDeleting => TaskDone::Looked(Some(Box::new(self.as_read(version, object)))),
            Task::CheckHeadless => TaskDone::Headless(object.phase == Phase::Headless),
            Task::Swap(_) => TaskDone::Authority(Box::new(self.as_read(version, object))),
            other => return Err(Problem::new(Reason::Internal, format!("not for the API: {other:?}"))),
        })
    }
}

/// Tasks that are calls to the API server.
pub const fn is_call(task: &Task) -> bool {
    matches!(task, Task::Open { .. } | Task::Swap(_) | Task::CheckDeleting | Task::CheckHeadless)
}
