//! Clocks and queue of the simulated world, and its nodes. Every random choice comes from the seed.

use std::collections::{BTreeMap, BTreeSet};

use dotgraft_engine::filesystem::{Desired, Event, Handoff, Intent, MountWhat, ReqId, Role, Task};
use dotgraft_engine::ids::{BootId, BootTime, CommitId, FsId, JobUid, OpId, PoolId, RequestUid, Timestamp};
use dotgraft_engine::model::{Place, Problem, Reason, Versions};
use dotgraft_engine::step::Machine;
use uuid::Uuid;

use super::api::{Api, Reply, Write};
use super::disk::{Disk, Journal};
use super::hazards::Hazards;
use super::rng::Rng;
use super::wire::Session;

pub const START: i64 = 1_700_000_000_000;

pub fn uuid(n: u64) -> Uuid {
    Uuid::from_u128(0x0198_c2a5_7f00_7000_8000_0000_0000_0000 + u128::from(n))
}

#[derive(Debug, Clone)]
pub enum Asked {
    Plain,
    Mount(MountWhat),
    Fence,
    Versions(Option<(usize, u64, OpId)>),
    Offer(u64),
    /// By a node without a copy, or by one that lies about its epoch.
    Forged,
    Export(usize, u64, OpId),
    /// The flag: the transfer ends after it.
    Checkpoint(u64, bool),
}

/// A task under way.
#[derive(Debug, Clone)]
pub struct Doing {
    pub task: Task,
    pub cancelled: bool,
    /// It has nothing more to do; `Done` is under way.
    pub ended: bool,
    /// How many of its steps on the disk are done, or how often the API was asked.
    pub step: u32,
    /// When it began, and when its last write to the API was sent: true time.
    pub began: i64,
    pub sent: i64,
}

impl Doing {
    pub const fn new(task: Task, now: i64) -> Self {
        Self { task, cancelled: false, ended: false, step: 0, began: now, sent: now }
    }
}

pub struct Node {
    pub place: Place,
    pub boot: BootId,
    pub disk: Disk,
    pub journal: Journal,
    /// The actor's machine; `None` while the agent is down, or once the actor has ended.
    pub fs: Option<Machine<Asked>>,
    pub up: bool,
    /// Counts lives of the actor: what was meant for an earlier one is lost.
    pub life: u64,
    /// What the supervisor last heard: `Some(None)` is "gone".
    pub order: Option<Option<Desired>>,
    /// What the Replica object says now.
    pub wanted: Option<Intent>,
    pub generation: i64,
    pub tasks: BTreeMap<OpId, Doing>,
    /// Operations of earlier lives.
    pub stale: Vec<OpId>,
    /// An `Absent` that may be obeyed was given.
    pub may_delete: bool,
    pub finished: bool,
    pub handled: u64,
    /// How far its wall clock is ahead of true time, milliseconds.
    pub wall_ahead: i64,
    /// When it was booted: true time, from which its boot clock runs.
    pub booted: i64,
    /// When the actor's sleep ends: true time. A sleep is not cut short by a clock that jumps.
    pub wake: Option<i64>,
    /// The agent's process stands still until then; kernel and pods go on.
    pub paused: i64,
    /// The API server can't be reached from here.
    pub cut_off: bool,
}

impl Node {
    /// The actor runs and has read its journal.
    pub fn is_live(&self) -> bool {
        self.fs.as_ref().is_some_and(Machine::is_live)
    }

    /// Who waits for an answer of the actor.
    pub fn waiting(&self) -> Vec<&Asked> {
        self.fs.iter().flat_map(Machine::waiters).collect()
    }
}

#[derive(Debug, Clone)]
pub enum What {
    /// The next step of a task on the disk.
    Step(usize, u64, OpId),
    /// An event reaches the actor of that life.
    Deliver(usize, u64, Box<Event>),
    /// The watch brings the Replica object.
    Order(usize),
    Restart(usize),
    /// The journal is read again.
    Reload(usize, u64),
    /// A request to the API server arrives there; what was read comes back; a write arrives, whoever still waits for it; its answer.
    Read(usize, u64, OpId, u32),
    Have(usize, u64, OpId, u32, Box<Reply>),
    Write(Box<Write>),
    /// Nothing has come back for so long: the sender gives this request up.
    GiveUp(usize, u64, OpId, u32),
    /// A transfer goes on.
    Tick(u64),
    /// The sender hears how it ended.
    Verdict(u64, Result<bool, Problem>),
    /// A peer is asked for its versions.
    Ask(usize, u64, OpId, usize),
    Listed(usize, u64, OpId, Box<Result<Box<Versions>, Problem>>),
    /// The last word of an exporter reaches the importer; and its answer the exporter.
    Export(usize, u64, OpId, usize, Box<Handoff>),
    Exported(usize, u64, OpId, Result<(), Problem>),
}

impl What {
    /// Whose process it needs.
    fn node(&self) -> Option<usize> {
        match self {
            Self::Step(n, ..)
            | Self::Deliver(n, ..)
            | Self::Order(n)
            | Self::Reload(n, _)
            | Self::Read(n, ..)
            | Self::Have(n, ..)
            | Self::GiveUp(n, ..)
            | Self::Ask(n, ..)
            | Self::Listed(n, ..)
            | Self::Export(n, ..)
            | Self::Exported(n, ..) => Some(*n),
            Self::Restart(_) | Self::Write(_) | Self::Tick(_) | Self::Verdict(..) => None,
        }
    }
}

/// What a simulation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Two {
    Alone,
    WithReplica,
    /// Two read-only copies.
    Three,
}

pub struct Sim<'a> {
    pub rng: Rng,
    pub now: i64,
    pub queue: BTreeMap<(i64, u64), What>,
    seq: u64,
    pub fresh: u64,
    pub id: FsId,
    pub nodes: Vec<Node>,
    pub api: Api,
    pub sessions: BTreeMap<u64, Session>,
    /// Tasks whose debug form begins like this fail, before they do anything.
    pub failing: Option<&'static str>,
    /// Tasks whose debug form begins like this take seconds.
    pub slow: Option<&'static str>,
    /// Bytes and limit of every qgroup.
    pub usage: (u64, u64),
    /// Faults happen.
    pub faults: bool,
    pub partition: bool,
    pub no_space: bool,
    /// Which of the world's meannesses are in it.
    pub hazards: Hazards,
    /// The next write to the API takes so long to arrive, and its sender doesn't hear of it.
    pub late_write: Option<i64>,
    pub next_generation: u64,
    pub trace: &'a mut Vec<String>,
    pub ledger: super::watch::Ledger,
    pub job: JobUid,
    pub origin_pinned: bool,
    /// A Filesystem of node 0 starts from a commit there.
    pub branch: bool,
    /// Nodes that authority was taken from, until their copy was dropped.
    pub lost: BTreeSet<usize>,
    /// The operator doesn't say who owns it.
    pub old_operator: bool,
    pub steps: u64,
}

pub fn node_at(n: usize) -> Node {
    let n64 = n as u64;
    Node {
        place: Place { node: format!("n{n}").parse().unwrap(), pool: PoolId::from_uuid(uuid(100 + n64)) },
        boot: BootId::from_uuid(uuid(200 + n64)),
        disk: Disk::default(),
        journal: Journal::default(),
        fs: None,
        up: true,
        life: 0,
        order: None,
        wanted: None,
        generation: 0,
        tasks: BTreeMap::new(),
        stale: Vec::new(),
        may_delete: false,
        finished: false,
        handled: 0,
        wall_ahead: 0,
        booted: START - 1_000_000 * (1 + i64::try_from(n).unwrap()),
        wake: None,
        paused: 0,
        cut_off: false,
    }
}

impl<'a> Sim<'a> {
    pub fn new(seed: u64, two: Two, trace: &'a mut Vec<String>) -> Self {
        let count = match two {
            Two::Alone => 1,
            Two::WithReplica => 2,
            Two::Three => 3,
        };
        let nodes: Vec<Node> = (0..count).map(node_at).collect();
        Self {
            rng: Rng::new(seed),
            now: START,
            queue: BTreeMap::new(),
            seq: 0,
            fresh: 1_000,
            id: FsId::from_uuid(uuid(1)),
            nodes,
            api: Api::new(count),
            sessions: BTreeMap::new(),
            failing: None,
            slow: None,
            usage: (1, 0),
            faults: true,
            partition: false,
            no_space: false,
            hazards: Hazards::MENDED,
            late_write: None,
            next_generation: 0,
            trace,
            ledger: super::watch::Ledger::of(count),
            job: JobUid::from_uuid(uuid(50)),
            origin_pinned: false,
            branch: false,
            lost: BTreeSet::new(),
            old_operator: seed % 8 == 7,
            steps: 0,
        }
    }

    pub fn say(&mut self, text: String) {
        self.trace.push(format!("{:>8} {text}", self.now - START));
    }

    pub fn fresh(&mut self) -> Uuid {
        self.fresh += 1;
        uuid(self.fresh)
    }

    pub fn fresh_request(&mut self) -> RequestUid {
        RequestUid::from_uuid(self.fresh())
    }

    pub fn fault(&mut self, permille: u64) -> bool {
        let hit = self.faults && self.rng.permille(permille);
        self.ledger.faulty |= hit;
        hit
    }

    pub fn later_at(&mut self, at: i64, what: What) {
        self.seq += 1;
        self.queue.insert((at, self.seq), what);
    }

    pub fn later(&mut self, most_ms: u64, what: What) {
        let at = self.now + i64::try_from(1 + self.rng.below(most_ms)).unwrap();
        self.seq += 1;
        self.queue.insert((at, self.seq), what);
    }

    /// A requester of node `n`'s actor, which must be there.
    pub fn req(&mut self, n: usize, asked: Asked) -> ReqId {
        self.nodes[n].fs.as_mut().expect("an actor").wait(asked)
    }

    // ---- clocks ----

    /// What people on that node read off the wall.
    pub fn wall(&self, n: usize) -> Timestamp {
        Timestamp(self.now + self.nodes[n].wall_ahead)
    }

    /// That node's boot clock, which nobody sets.
    pub fn boot_time(&self, n: usize) -> BootTime {
        self.boot_time_at(n, self.now)
    }

    /// What it said at that true time.
    pub fn boot_time_at(&self, n: usize, at: i64) -> BootTime {
        BootTime(u64::try_from(at - self.nodes[n].booted).unwrap_or(0))
    }

    /// Somebody sets the clock of a node.
    pub fn set_clock(&mut self, n: usize, ahead: i64) {
        self.say(format!("n{n} CLOCK {ahead:+} ms"));
        self.nodes[n].wall_ahead = ahead;
    }

    /// The agent's process stands still for so long.
    pub fn pause(&mut self, n: usize, ms: i64) {
        self.say(format!("n{n} PAUSED for {ms} ms"));
        self.nodes[n].paused = self.now + ms;
    }

    pub fn deliver_later(&mut self, n: usize, event: Event) {
        let life = self.nodes[n].life;
        self.later(20, What::Deliver(n, life, Box::new(event)));
    }

    pub fn done(&mut self, n: usize, op: OpId, result: Result<dotgraft_engine::filesystem::TaskDone, Problem>) {
        if let Some(doing) = self.nodes[n].tasks.get_mut(&op).filter(|d| !d.ended) {
            doing.ended = true;
            self.deliver_later(n, Event::Done(op, Box::new(result)));
        }
    }

    // ---- the loop ----

    /// Runs for so long; returns how many events the actors handled.
    pub fn run_for(&mut self, ms: i64) -> u64 {
        let (end, before) = (self.now + ms, self.nodes.iter().map(|n| n.handled).sum::<u64>());
        while let Some(next) = self.next_time().filter(|t| *t <= end) {
            self.now = next;
            self.step();
        }
        self.now = end;
        self.nodes.iter().map(|n| n.handled).sum::<u64>() - before
    }

    fn wake_of(&self, n: usize) -> Option<i64> {
        let node = &self.nodes[n];
        node.wake.filter(|_| node.is_live()).map(|at| at.max(node.paused))
    }

    fn next_time(&self) -> Option<i64> {
        let queued = self.queue.first_key_value().map(|((t, _), _)| *t);
        (0..self.nodes.len()).filter_map(|n| self.wake_of(n)).chain(queued).min()
    }

    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < 400_000, "no end: a livelock");
        let due: Vec<usize> = (0..self.nodes.len()).filter(|n| self.wake_of(*n).is_some_and(|t| t <= self.now)).collect();
        if let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= self.now) {
            let what = entry.remove();
            self.carry_out(what);
        } else {
            for n in due {
                self.handle(n, Event::Timer);
            }
        }
    }

    fn carry_out(&mut self, what: What) {
        if let Some(until) = what.node().map(|n| self.nodes[n].paused).filter(|until| *until > self.now) {
            return self.later_at(until, what);
        }
        match what {
            What::Step(n, life, op) if self.nodes[n].life == life => self.step_task(n, op),
            What::Deliver(n, life, event) if self.nodes[n].life == life => self.handle(n, *event),
            What::Order(n) => self.order(n),
            What::Restart(n) => self.restart(n),
            What::Reload(n, life) if self.nodes[n].life == life => self.reload(n),
            What::Read(n, life, op, no) if self.nodes[n].life == life => self.api_read(n, op, no),
            What::Have(n, life, op, no, reply) if self.nodes[n].life == life => self.api_have(n, op, no, *reply),
            What::Write(write) => self.api_write(*write),
            What::GiveUp(n, life, op, no) if self.nodes[n].life == life => self.api_given_up(n, op, no),
            What::Tick(s) => self.tick(s),
            What::Verdict(s, result) => self.verdict(s, result),
            What::Ask(n, life, op, peer) if self.nodes[n].life == life => self.ask_versions(n, op, peer),
            What::Listed(n, life, op, result) if self.nodes[n].life == life => {
                self.done(n, op, result.map(dotgraft_engine::filesystem::TaskDone::Versions));
            }
            What::Export(n, life, op, peer, handoff) if self.nodes[n].life == life => self.export(n, op, peer, *handoff),
            What::Exported(n, life, op, result) if self.nodes[n].life == life => {
                self.done(n, op, result.map(|()| dotgraft_engine::filesystem::TaskDone::Ok));
            }
            _ => {}
        }
    }

    /// Changes the Replica object; the watch brings it later.
    pub fn want(&mut self, n: usize, mut wanted: Option<Intent>) {
        if let Some(Intent::Present(p)) = &mut wanted {
            let owner = self.nodes[self.api.owner].place.clone();
            p.owner = Some(owner).filter(|_| p.role == Role::Replica && !self.old_operator);
            p.peers = (0..self.nodes.len()).filter(|i| *i != n).map(|i| self.nodes[i].place.node.clone()).collect();
        }
        let node = &mut self.nodes[n];
        if node.wanted == wanted {
            return;
        }
        node.generation += 1;
        node.wanted = wanted;
        self.later(100, What::Order(n));
    }

    pub fn role_of(&self, n: usize) -> Role {
        if n == 0 { Role::Owner } else { Role::Replica }
    }

    pub fn peer_of(&self, place: &Place) -> usize {
        self.nodes.iter().position(|n| n.place == *place).unwrap()
    }

    pub fn unreachable(&self) -> Problem {
        Problem::new(Reason::Unreachable, "simulated")
    }

    pub fn newest_on_disk(&self, n: usize) -> Option<(CommitId, u64)> {
        let commits = &self.nodes[n].disk.commits;
        commits.values().filter(|(c, _)| !c.transient).max_by_key(|(c, _)| c.order()).map(|(c, content)| (c.id, *content))
    }
}

/// The first words of something's debug form.
pub fn short(what: &impl std::fmt::Debug) -> String {
    let text = format!("{what:?}").replace("0198c2a5-7f00-7000-8000-000000000", "");
    let width = std::env::var("DOTGRAFT_SIM_WIDTH").ok().and_then(|v| v.parse().ok()).unwrap_or(230);
    text.chars().take(width).collect()
}
