//! Transfers between two simulated nodes: offer, bytes, checkpoints, verdict; cut at any point, acks lost.

use dotgraft_engine::filesystem::{CheckpointRow, Event, Offer, Task, TaskDone};
use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::{CommitId, OpId};
use dotgraft_engine::model::{Commit, Problem, Reason, ResumeToken};

use super::sim::{Asked, Sim, What};

/// A checkpoint at the latest after so many bytes.
pub const CHECKPOINT_EVERY: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Connect,
    Offered,
    Flow,
    Checkpoint,
    Verdict,
    Over,
}

#[derive(Debug, Clone)]
pub struct Session {
    pub from: usize,
    pub from_op: OpId,
    pub to: usize,
    pub to_op: Option<OpId>,
    pub base: Option<CommitId>,
    pub target: Commit,
    pub offer: Offer,
    /// Where the receiver went on.
    pub start: u64,
    pub at: u64,
    /// Offset of the last checkpoint.
    pub safe: u64,
    pub total: u64,
    pub stage: Stage,
    pub content: u64,
}

/// Bytes of a stream, the same each time.
pub fn size_of(from: Option<CommitId>, to: CommitId) -> u64 {
    let salt = from.map_or(11, |f| f.uuid().as_u128() & 0xff);
    let seed = u64::try_from(to.uuid().as_u128() & 0xffff).unwrap() + u64::try_from(salt).unwrap();
    1 + seed * 7 % 60
}

/// Stands for BLAKE3 of a prefix of the one stream from `base` to `target`.
fn digest(base: Option<CommitId>, target: CommitId, offset: u64) -> [u8; 32] {
    let mut d = [0; 32];
    d[..16].copy_from_slice(target.uuid().as_bytes());
    d[16..24].copy_from_slice(&offset.to_le_bytes());
    d[24..].copy_from_slice(&base.map_or([0; 8], |b| b.uuid().as_bytes()[8..].try_into().unwrap()));
    d
}

impl Sim<'_> {
    // ---- listing ----

    pub fn ask_versions(&mut self, n: usize, op: OpId, peer: usize) {
        let life = self.nodes[n].life;
        if self.partition || !self.nodes[peer].is_live() || self.fault(50) {
            let lost = Box::new(Err(self.unreachable()));
            return self.later(200, What::Listed(n, life, op, lost));
        }
        let req = self.req(peer, Asked::Versions(Some((n, life, op))));
        let from = self.nodes[n].place.node.clone();
        self.handle(peer, Event::Versions(req, from));
    }

    // ---- the sender ----

    pub fn start_send(&mut self, n: usize, op: OpId, task: Task) {
        let Task::Send { job, run_id, peer, epoch, from, to, resume, expected, .. } = task else { return };
        let peer = self.peer_of(&peer);
        // "Proving the prefix": what is not of this very stream is not offered.
        let resume = resume.map(|r| *r).filter(|r| r.prefix_digest == digest(from, to.id, r.offset) && r.target == to.id);
        let offer = Offer {
            target: (*to).clone(),
            base: from,
            job,
            run_id,
            epoch,
            expected,
            stream_version: 2,
            kernel_release: "6.18".into(),
            resume,
            from: self.nodes[n].place.node.clone(),
        };
        let id = self.fresh().as_u64_pair().1;
        let total = size_of(from, to.id);
        let session = Session {
            from: n,
            from_op: op,
            to: peer,
            to_op: None,
            base: from,
            target: *to,
            offer,
            start: 0,
            at: 0,
            safe: 0,
            total,
            stage: Stage::Connect,
            content: 0,
        };
        self.sessions.insert(id, session);
        self.later(30, What::Tick(id));
    }

    fn connect(&mut self, id: u64) {
        let s = self.sessions[&id].clone();
        let source = &self.nodes[s.from].disk.commits;
        let there = source.contains_key(&s.target.id) && s.base.is_none_or(|b| source.contains_key(&b));
        assert!(there, "a commit that is to be sent was removed: its pin did not hold");
        let content = source[&s.target.id].1;
        if self.partition || !self.nodes[s.to].is_live() || self.fault(40) {
            return self.end_session(id, Err(self.unreachable()));
        }
        let session = self.sessions.get_mut(&id).unwrap();
        session.stage = Stage::Offered;
        session.content = content;
        let req = self.req(s.to, Asked::Offer(id));
        self.handle(s.to, Event::Offer(req, Box::new(s.offer)));
    }

    /// The receiver's last word to the offer.
    pub fn offer_answered(&mut self, id: u64, result: Result<CommitId, Problem>) {
        let Some(s) = self.sessions.get(&id) else { return };
        let already = s.to_op.is_none();
        if s.stage == Stage::Over {
            return;
        }
        // The ack may be lost on its way.
        let word = if self.partition || self.fault(60) { Err(self.unreachable()) } else { result.map(|_| already) };
        self.later(30, What::Verdict(id, word));
    }

    pub fn verdict(&mut self, id: u64, word: Result<bool, Problem>) {
        let Some(s) = self.sessions.get(&id).cloned().filter(|s| s.stage != Stage::Over) else { return };
        let bytes = s.at - s.start;
        self.end_session(id, word.map(|already| TaskDone::Sent { bytes: if already { 0 } else { bytes }, already }));
    }

    fn end_session(&mut self, id: u64, result: Result<TaskDone, Problem>) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        s.stage = Stage::Over;
        let (n, op) = (s.from, s.from_op);
        self.done(n, op, result);
    }

    // ---- the receiver ----

    pub fn start_receive(&mut self, n: usize, op: OpId, task: Task) {
        let Task::Receive { req, offer, checkpoint, .. } = task else { return };
        let waiter = self.nodes[n].fs.as_mut().and_then(|m| m.waiter(req)).cloned();
        let Some(Asked::Offer(id)) = waiter else { panic!("a receive without its transfer") };
        self.watch_receive(n, &offer, checkpoint.as_deref());
        let s = self.sessions.get_mut(&id).unwrap();
        s.to_op = Some(op);
        if s.stage == Stage::Over {
            let gone = self.unreachable();
            return self.done(n, op, Err(gone)); // the sender went away meanwhile
        }
        if self.no_space || self.fault(40) {
            return self.done(n, op, Err(Problem::new(Reason::NoSpace, "simulated")));
        }
        let target = offer.target.id;
        let disk = &mut self.nodes[n].disk;
        if offer.base.is_some_and(|b| !disk.commits.contains_key(&b)) {
            return self.done(n, op, Err(Problem::new(Reason::BaseGone, "simulated")));
        }
        let at = checkpoint.map_or(0, |c| c.token.offset);
        let at = if disk.checkpoints.contains(&(target, at)) { at } else { 0 };
        if at == 0 {
            disk.drop_partial(target);
        }
        disk.incoming.insert(target);
        let s = self.sessions.get_mut(&id).unwrap();
        (s.start, s.at, s.safe, s.stage) = (at, at, at, Stage::Flow);
        let offered = s.offer.resume.as_ref().map_or(0, |r| r.offset);
        assert!(at == 0 || at == offered, "it goes on from where it was not asked to");
        let (from, from_op, start, base) = (s.from, s.from_op, s.start, s.base);
        self.watch_resumed(n, target, base, at);
        self.deliver_later(from, Event::Progress(from_op, start, start));
        self.later(20, What::Tick(id));
    }

    pub fn tick(&mut self, id: u64) {
        match self.sessions.get(&id).map(|s| s.stage) {
            Some(Stage::Connect) => self.connect(id),
            Some(Stage::Flow) => self.flow(id),
            _ => {}
        }
    }

    fn flow(&mut self, id: u64) {
        if self.partition || self.fault(25) {
            self.say(format!("session {id} is cut"));
            return self.cut(id);
        }
        let step = 1 + self.rng.below(3);
        let s = self.sessions.get_mut(&id).unwrap();
        s.at = (s.at + step).min(s.total);
        let (from, from_op, at, start, safe) = (s.from, s.from_op, s.at, s.start, s.safe);
        if s.at == s.total {
            return self.arrive(id);
        }
        self.deliver_later(from, Event::Progress(from_op, at, start));
        if at - safe >= CHECKPOINT_EVERY {
            return self.checkpoint(id, false);
        }
        self.later(20, What::Tick(id));
    }

    fn checkpoint(&mut self, id: u64, last: bool) {
        let s = self.sessions.get_mut(&id).unwrap();
        s.stage = if last { Stage::Over } else { Stage::Checkpoint };
        let s = s.clone();
        let Some(op) = s.to_op else { return };
        if s.at == s.safe {
            return self.checkpointed(id, last);
        }
        self.nodes[s.to].disk.checkpoints.insert((s.target.id, s.at));
        let token = ResumeToken {
            target: s.target.id,
            base: s.base,
            offset: s.at,
            prefix_digest: digest(s.base, s.target.id, s.at),
            stream_version: 2,
            kernel_release: "6.18".into(),
        };
        let row = CheckpointRow { version: Kind::Checkpoint.newest(), token, state: "simulated".into() };
        let req = self.req(s.to, Asked::Checkpoint(id, last));
        self.deliver_later(s.to, Event::Checkpoint(op, req, Box::new(row)));
    }

    pub fn checkpointed(&mut self, id: u64, last: bool) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        s.safe = s.at;
        let (to, op) = (s.to, s.to_op);
        let safe = (s.target.id, s.base, s.at);
        self.ledger.safe[to] = Some(safe);
        let Some(s) = self.sessions.get_mut(&id) else { return };
        if last {
            let gone = self.unreachable();
            if let Some(op) = op {
                self.done(to, op, Err(gone));
            }
        } else if s.stage == Stage::Checkpoint {
            s.stage = Stage::Flow;
            self.later(20, What::Tick(id));
        } else if s.stage == Stage::Over {
            // The sender went away while it was being journaled.
            let gone = self.unreachable();
            if let Some(op) = op {
                self.done(to, op, Err(gone));
            }
        }
    }

    fn arrive(&mut self, id: u64) {
        let s = self.sessions.get_mut(&id).unwrap();
        s.stage = Stage::Verdict;
        let s = s.clone();
        self.deliver_later(s.from, Event::Verifying(s.from_op));
        let disk = &mut self.nodes[s.to].disk;
        disk.commits.entry(s.target.id).or_insert((s.target.clone(), s.content));
        let op = s.to_op.unwrap();
        self.done(s.to, op, Ok(TaskDone::Received { commit: Box::new(s.target) }));
    }

    /// The connection ends: the sender has an error, the receiver keeps what has come as a checkpoint.
    fn cut(&mut self, id: u64) {
        self.end_session(id, Err(self.unreachable()));
        self.checkpoint(id, true);
    }

    pub fn cancel_transfer(&mut self, n: usize, op: OpId) {
        let cancelled = Problem::new(Reason::Cancelled, "simulated");
        let found = self.sessions.iter().find(|(_, s)| (s.from == n && s.from_op == op) || (s.to == n && s.to_op == Some(op)));
        let Some((id, s)) = found.map(|(id, s)| (*id, s.clone())) else { return };
        self.done(n, op, Err(cancelled));
        if s.to == n && s.to_op == Some(op) {
            self.sessions.get_mut(&id).unwrap().stage = Stage::Verdict; // the refusal is on its way
        } else {
            let flowing = s.stage == Stage::Flow;
            self.sessions.get_mut(&id).unwrap().stage = Stage::Over;
            if flowing {
                self.checkpoint(id, true);
            }
        }
    }

    /// The actor of `n` ends: the other sides of its transfers see the connection end.
    pub fn cut_sessions_of(&mut self, n: usize) {
        let mine: Vec<u64> = self.sessions.iter().filter(|(_, s)| s.from == n || s.to == n).map(|(id, _)| *id).collect();
        for id in mine {
            let s = self.sessions[&id].clone();
            if s.stage == Stage::Over {
                continue;
            }
            if s.from == n {
                self.sessions.get_mut(&id).unwrap().stage = Stage::Over;
                if s.stage == Stage::Flow {
                    self.checkpoint(id, true);
                }
            } else {
                self.end_session(id, Err(self.unreachable()));
            }
        }
        self.sessions.retain(|_, s| !(s.stage == Stage::Over && s.to == n));
    }
}
