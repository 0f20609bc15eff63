//! Clock, queue and the actor: `handle` follows `FsActor::run` of node-agent step by step. Every random choice comes from the seed.

use std::collections::{BTreeMap, BTreeSet};

use dotgraft_engine::filesystem::{Answer, Ctx, Desired, Event, Filesystem, Handoff, Here, Intent, MountWhat, Out, ReqId, Role, Task};
use dotgraft_engine::ids::{BootId, CommitId, Epoch, FsId, JobUid, MigId, OpId, PoolId, RequestUid, Timestamp};
use dotgraft_engine::model::{Place, Problem, Reason, Versions};
use uuid::Uuid;

use super::disk::{Disk, Journal};
use super::rng::Rng;
use super::wire::Session;

pub const START: i64 = 1_700_000_000_000;

pub fn uuid(n: u64) -> Uuid {
    Uuid::from_u128(0x0198_c2a5_7f00_7000_8000_0000_0000_0000 + u128::from(n))
}

/// Phase of the Filesystem object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    New,
    Active,
    Headless,
    Deleting,
}

/// `Filesystem.status`, as far as agents see it.
#[derive(Debug, Clone)]
pub struct Api {
    pub phase: Phase,
    pub owner: usize,
    pub epoch: Epoch,
    pub opened: Option<(Epoch, BootId)>,
    pub attempt: u64,
    pub pending: Option<(MigId, u64, usize)>,
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

#[derive(Debug, Clone)]
pub struct Doing {
    pub task: Task,
    pub cancelled: bool,
    /// Its effect is done, `Done` is under way.
    pub ended: bool,
}

pub struct Node {
    pub place: Place,
    pub boot: BootId,
    pub disk: Disk,
    pub journal: Journal,
    /// The actor; `None` while the agent is down, or rebuilds, or once it has ended.
    pub fs: Option<Filesystem>,
    pub up: bool,
    /// Counts lives of the actor: what was meant for an earlier one is lost.
    pub life: u64,
    /// What the supervisor last heard: `Some(None)` is "gone".
    pub order: Option<Option<Desired>>,
    /// What the Replica object says now.
    pub wanted: Option<Intent>,
    pub generation: i64,
    pub tasks: BTreeMap<OpId, Doing>,
    pub waiting: BTreeMap<ReqId, Asked>,
    /// Operations of earlier lives.
    pub stale: Vec<OpId>,
    /// An `Absent` that may be obeyed was given.
    pub may_delete: bool,
    pub finished: bool,
    pub handled: u64,
}

#[derive(Debug, Clone)]
pub enum What {
    /// A task's time has come.
    Finish(usize, u64, OpId),
    /// An event reaches the actor of that life.
    Deliver(usize, u64, Box<Event>),
    /// The watch brings the Replica object.
    Order(usize),
    Restart(usize),
    Rebuild(usize, u64),
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

/// What a simulation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Two {
    Alone,
    WithReplica,
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
    pub next_generation: u64,
    next_req: u64,
    pub trace: &'a mut Vec<String>,
    pub ledger: super::watch::Ledger,
    pub job: JobUid,
    pub origin_pinned: bool,
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
        waiting: BTreeMap::new(),
        stale: Vec::new(),
        may_delete: false,
        finished: false,
        handled: 0,
    }
}

impl<'a> Sim<'a> {
    pub fn new(seed: u64, two: Two, trace: &'a mut Vec<String>) -> Self {
        let nodes = (0..if two == Two::Alone { 1 } else { 2 }).map(node_at).collect();
        Self {
            rng: Rng::new(seed),
            now: START,
            queue: BTreeMap::new(),
            seq: 0,
            fresh: 1_000,
            id: FsId::from_uuid(uuid(1)),
            nodes,
            api: Api { phase: Phase::New, owner: 0, epoch: Epoch(1), opened: None, attempt: 1, pending: None },
            sessions: BTreeMap::new(),
            failing: None,
            slow: None,
            usage: (1, 0),
            faults: true,
            partition: false,
            no_space: false,
            next_generation: 0,
            next_req: 0,
            trace,
            ledger: super::watch::Ledger::default(),
            job: JobUid::from_uuid(uuid(50)),
            origin_pinned: false,
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
        self.faults && self.rng.permille(permille)
    }

    pub fn later(&mut self, most_ms: u64, what: What) {
        let at = self.now + i64::try_from(1 + self.rng.below(most_ms)).unwrap();
        self.seq += 1;
        self.queue.insert((at, self.seq), what);
    }

    pub fn req(&mut self, n: usize, asked: Asked) -> ReqId {
        self.next_req += 1;
        let req = ReqId(self.next_req);
        self.nodes[n].waiting.insert(req, asked);
        req
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
        // The actor sleeps at least 1 ms.
        node.fs.as_ref()?.next_wake().map(|t| t.0.max(self.now + 1))
    }

    fn next_time(&self) -> Option<i64> {
        let queued = self.queue.first_key_value().map(|((t, _), _)| *t);
        (0..self.nodes.len()).filter_map(|n| self.wake_of(n)).chain(queued).min()
    }

    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < 400_000, "no end: a livelock");
        let due: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].fs.as_ref().and_then(Filesystem::next_wake).is_some_and(|t| t.0 <= self.now))
            .collect();
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
        match what {
            What::Finish(n, life, op) if self.nodes[n].life == life => self.finish_task(n, op),
            What::Deliver(n, life, event) if self.nodes[n].life == life => self.handle(n, *event),
            What::Order(n) => self.order(n),
            What::Restart(n) => self.restart(n),
            What::Rebuild(n, life) if self.nodes[n].life == life => self.start_actor(n),
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

    fn ctx(&mut self) -> Ctx {
        Ctx { now: Timestamp(self.now), fresh: self.fresh(), jitter: self.rng.word() }
    }

    /// One turn of the actor.
    pub fn handle(&mut self, n: usize, event: Event) {
        if self.nodes[n].fs.is_none() {
            return;
        }
        if let Event::Done(op, _) = &event {
            self.nodes[n].tasks.remove(op);
        }
        self.nodes[n].handled += 1;
        let ctx = self.ctx();
        let mut out = Out::default();
        if !matches!(event, Event::Timer) {
            let text = short(&event);
            self.say(format!("n{n} <- {text}"));
        }
        if let Some(fs) = self.nodes[n].fs.as_mut() {
            fs.handle(event, &ctx, &mut out);
        }
        for record in &out.records {
            let text = format!("n{n}    record {}", record.name());
            self.say(text);
        }
        if !out.records.is_empty() {
            if self.fault(6) {
                return self.crash(n, false);
            }
            if self.fault(8) {
                return self.rebuild(n);
            }
            self.nodes[n].journal.commit(&out);
            if self.fault(6) {
                return self.crash(n, false);
            }
        }
        self.effects(n, out);
        self.watch(n);
    }

    fn effects(&mut self, n: usize, out: Out) {
        for op in out.cancels {
            self.say(format!("n{n}    cancel {op}"));
            self.cancel_task(n, op);
        }
        for (op, task) in out.tasks {
            self.say(format!("n{n} -> {op} {}", short(&task)));
            self.watch_start(n, &task);
            self.nodes[n].tasks.insert(op, Doing { task: task.clone(), cancelled: false, ended: false });
            self.start_task(n, op, task);
        }
        for (req, answer) in out.answers {
            self.say(format!("n{n}    answer {req:?} {}", short(&answer)));
            self.answer(n, req, answer);
        }
        if out.finished {
            self.say(format!("n{n} actor ends"));
            self.watch_finished(n);
            self.end_actor(n);
            self.nodes[n].finished = true;
            if self.nodes[n].order.as_ref().is_some_and(Option::is_some) {
                self.start_actor(n);
            }
        }
    }

    fn answer(&mut self, n: usize, req: ReqId, answer: Answer) {
        let asked = self.nodes[n].waiting.remove(&req);
        let asked = asked.unwrap_or_else(|| panic!("{req:?} was answered twice, or never asked: {answer:?}"));
        match (asked, answer) {
            (Asked::Plain, Answer::Plain(_))
            | (Asked::Versions(None), Answer::Versions(_))
            | (Asked::Forged, Answer::Plain(Err(_)) | Answer::Versions(Err(_)) | Answer::Receive(Err(_))) => {}
            (Asked::Mount(what), Answer::Plain(result)) => self.watch_mounted(n, what, result.is_ok()),
            (Asked::Export(back, life, op), Answer::Plain(result)) => {
                let result = if self.partition || self.fault(60) { Err(self.unreachable()) } else { result };
                self.later(30, What::Exported(back, life, op, result));
            }
            (Asked::Fence, Answer::Fenced(result)) => self.watch_fenced(n, result.ok().map(|(id, _)| id)),
            (Asked::Versions(Some((back, life, op))), Answer::Versions(result)) => {
                self.later(30, What::Listed(back, life, op, Box::new(result)));
            }
            (Asked::Offer(s), Answer::Receive(result)) => self.offer_answered(s, result),
            (Asked::Checkpoint(s, last), Answer::Checkpointed) => self.checkpointed(s, last),
            (asked, answer) => panic!("{asked:?} was answered with {answer:?}"),
        }
    }

    // ---- lives ----

    /// Ends the actor: each task that is cut has or has not happened.
    fn end_actor(&mut self, n: usize) {
        let tasks = std::mem::take(&mut self.nodes[n].tasks);
        for (op, doing) in tasks {
            self.nodes[n].stale.push(op);
            if !doing.ended {
                self.cut_task(n, op, &doing.task);
            }
        }
        self.cut_sessions_of(n);
        let node = &mut self.nodes[n];
        node.fs = None;
        node.life += 1;
        // Requesters see the connection end, or an error: that is their answer.
        for asked in std::mem::take(&mut node.waiting).into_values() {
            if let Asked::Export(back, life, op) = asked {
                let gone = Err(self.unreachable());
                self.later(200, What::Exported(back, life, op, gone));
            }
        }
    }

    pub fn crash(&mut self, n: usize, reboot: bool) {
        self.say(format!("n{n} CRASH reboot={reboot}"));
        self.end_actor(n);
        self.nodes[n].up = false;
        if reboot {
            self.nodes[n].boot = BootId::from_uuid(self.fresh());
            self.nodes[n].disk.mounts.clear();
        }
        self.later(3_000, What::Restart(n));
    }

    fn rebuild(&mut self, n: usize) {
        self.say(format!("n{n} JOURNAL FAILS"));
        self.end_actor(n);
        let life = self.nodes[n].life;
        self.later(400, What::Rebuild(n, life));
    }

    fn restart(&mut self, n: usize) {
        if !self.nodes[n].up {
            self.say(format!("n{n} UP"));
            self.nodes[n].up = true;
            self.start_actor(n);
        }
    }

    /// Starts the actor if there is anything to start it for, and tells it what is wanted.
    fn start_actor(&mut self, n: usize) {
        let node = &self.nodes[n];
        let anything = !node.journal.0.is_empty() || !node.disk.is_empty() || node.order.as_ref().is_some_and(Option::is_some);
        if node.fs.is_some() || !node.up {
            return;
        }
        if !anything {
            self.nodes[n].finished = true;
            return;
        }
        self.next_generation += 1;
        let here = Here { place: node.place.clone(), boot: node.boot, stream_version: 2, kernel_release: "6.18".into() };
        let fs = Filesystem::recover(self.id, here, self.next_generation, node.journal.load());
        self.say(format!("n{n} recover, generation {}", self.next_generation));
        self.nodes[n].fs = Some(fs);
        self.nodes[n].finished = false;
        let order_first = self.rng.permille(500);
        if order_first {
            self.deliver_order(n);
        }
        self.handle(n, Event::Start);
        if !order_first {
            self.deliver_order(n);
        }
    }

    /// The supervisor hears of the Replica object.
    fn order(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(intent) = node.wanted.clone() else {
            if node.order.is_some() {
                node.order = Some(None);
                self.deliver_order(n);
            }
            return;
        };
        let generation = node.generation;
        node.order = Some(Some(Desired { generation, intent }));
        if node.fs.is_some() {
            self.deliver_order(n);
        } else if node.finished || node.life == 0 {
            self.start_actor(n);
        }
    }

    fn deliver_order(&mut self, n: usize) {
        match self.nodes[n].order.clone() {
            Some(Some(desired)) => self.handle(n, Event::Desired(desired)),
            Some(None) => self.handle(n, Event::Vanished),
            None => {}
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
        commits.values().filter(|(c, _)| !c.transient).max_by_key(|(c, _)| (c.time, c.id)).map(|(c, content)| (c.id, *content))
    }
}

/// The first words of something's debug form.
pub fn short(what: &impl std::fmt::Debug) -> String {
    let text = format!("{what:?}").replace("0198c2a5-7f00-7000-8000-000000000", "");
    text.chars().take(230).collect()
}
