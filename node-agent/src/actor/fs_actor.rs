//! `FsActor`: the one owner of a Filesystem on this node (design §4). It owns the engine's state machine and the tasks that
//! it started; nobody else reads or writes the journal rows, subvolumes, pins or mounts of this Filesystem.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dotgraft_engine::filesystem::{
    Answer, CheckpointRow, Ctx, Desired, Event, FilesystemStatus, Intent, Note, Record, Recovered, ReqId, Row, Task,
};
use dotgraft_engine::ids::{Fresh, FsId, OpId};
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_engine::step::{Effect, Machine};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, warn};

use super::handle::{FsHandle, MAILBOX, Reply, Request};
use super::node::Node;
use super::orders::{Order, Orders};
use super::tasks::{self, TaskCtx};
use crate::account;
use crate::journal::{Entry, Op, Scope};
use crate::stream::ApplierState;

/// Yes, or why not.
pub type Plain = oneshot::Sender<Result<(), Problem>>;

/// Yes or no, or why that can't be said.
pub type YesNo = oneshot::Sender<Result<bool, Problem>>;

/// What a task says while it runs.
#[derive(Debug)]
pub enum Said {
    /// An event for the engine.
    Event(Event),
    /// A checkpoint is durable on disk; `ack` comes once it is in the journal.
    Checkpoint(OpId, Box<CheckpointRow>, oneshot::Sender<()>),
}

/// A request that waits for its answer, or a transfer that waits for its task.
pub(super) enum Waiting {
    Plain(Plain),
    YesNo(YesNo),
    Versions(oneshot::Sender<Result<dotgraft_engine::model::Versions, Problem>>),
    Fence(oneshot::Sender<Result<(dotgraft_engine::ids::CommitId, u64), Problem>>),
    Receive(mpsc::Receiver<super::handle::Frame>, mpsc::Sender<Reply>),
    /// An accepted transfer: its frames are with the task.
    Verdict(mpsc::Sender<Reply>),
    Checkpoint(oneshot::Sender<()>),
}

/// See the module's documentation.
pub struct FsActor {
    pub(super) machine: Machine<Waiting>,
    pub(super) node: Arc<Node>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) orders: Orders,
    said: mpsc::Receiver<Said>,
    said_tx: mpsc::Sender<Said>,
    tasks: JoinSet<()>,
    cancels: BTreeMap<OpId, CancellationToken>,
    pub(super) status: watch::Sender<Arc<FilesystemStatus>>,
}

/// How to reach a running actor.
#[derive(Debug, Clone)]
pub struct Started {
    /// For requests.
    pub handle: FsHandle,
    /// For orders of the supervisor.
    pub orders: Orders,
}

/// Starts the owner of `id`, which is on the node's list before it runs. It ends when nothing of the Filesystem is left, or on `Order::Stop`;
/// `on_end` is then called.
pub fn start(id: FsId, node: Arc<Node>, on_end: impl FnOnce() + Send + 'static) -> Started {
    let (request_tx, requests) = mpsc::channel(MAILBOX);
    let orders = Orders::default();
    node.enrol(id, orders.clone());
    let (said_tx, said) = mpsc::channel(64);
    let machine = Machine::new(id, node.here.clone());
    let (status, status_rx) = watch::channel(Arc::new(machine.status()));
    let handle = FsHandle::new(id, request_tx, status_rx);
    let (tasks, cancels) = (JoinSet::new(), BTreeMap::new());
    let actor = FsActor { machine, node, requests, orders: orders.clone(), said, said_tx, tasks, cancels, status };
    let span = tracing::info_span!("filesystem", fs = %id);
    tokio::spawn(
        async move {
            actor.run().await;
            on_end();
        }
        .instrument(span),
    );
    Started { handle, orders }
}

enum Next {
    Event(Event),
    Stop,
}

impl FsActor {
    /// The loop of design §4. The machine keeps its order; here is what it needs of the world.
    async fn run(mut self) {
        let mut over = !self.recover().await;
        while !over {
            let event = match self.machine.first() {
                Some(event) => event,
                None => match self.next_event().await {
                    Next::Event(event) => event,
                    Next::Stop => break,
                },
            };
            let step = self.machine.handle(event, &self.ctx()); // engine: synchronous, total, no I/O
            let journaled = self.save(step.records()).await;
            for effect in self.machine.settle(step, journaled) {
                over |= self.carry_out(effect).await;
            }
        }
        self.orders.close();
        self.stop_tasks().await;
    }

    /// The only select!.
    async fn next_event(&mut self) -> Next {
        let due = self.machine.next_wake();
        tokio::select! {
            biased;
            order = self.orders.next() => self.on_order(order),
            Some(said) = self.said.recv() => Next::Event(self.on_said(said)),
            Some(request) = self.requests.recv() => Next::Event(self.on_request(request)),
            Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => Next::Event(Event::Timer),
            () = self.node.sleep_until(due.unwrap_or_default()), if due.is_some() => Next::Event(Event::Timer),
        }
    }

    pub(super) fn ctx(&self) -> Ctx {
        let fresh = uuid::Uuid::now_v7();
        Ctx { now: self.node.now(), boot: self.node.boot_time(), jitter: fresh.as_u64_pair().1, fresh: Fresh::new(fresh) }
    }

    // ---- what comes in ----

    fn on_order(&mut self, order: Order) -> Next {
        if let Order::Desired(Desired { intent: Intent::Present(present), .. }) = &order {
            present.jobs.iter().for_each(|job| self.node.limits.set(job.spec.uid, job.bandwidth));
        }
        Next::Event(match order {
            Order::Desired(d) => Event::Desired(d),
            Order::Vanished => Event::Vanished,
            Order::PeerBack(node) => Event::PeerBack(node),
            Order::PinOrigin(by, commit, answer) => Event::PinOrigin(self.wait(Waiting::Plain(answer)), by, commit),
            Order::UnpinOrigin(by) => Event::UnpinOrigin(by),
            Order::StartsFrom(origin, answer) => Event::StartsFrom(self.wait(Waiting::YesNo(answer)), origin),
            Order::Stop => return Next::Stop,
        })
    }

    fn on_said(&mut self, said: Said) -> Event {
        match said {
            Said::Event(event) => {
                if let Event::Done(op, _) = &event {
                    self.cancels.remove(op);
                }
                event
            }
            Said::Checkpoint(op, row, ack) => Event::Checkpoint(op, self.wait(Waiting::Checkpoint(ack)), row),
        }
    }

    fn on_request(&mut self, request: Request) -> Event {
        match request {
            Request::Versions { from, reply } => Event::Versions(self.wait(Waiting::Versions(reply)), from),
            Request::Receive { offer, frames, replies } => {
                let req = self.wait(Waiting::Receive(frames, replies));
                Event::Offer(req, offer)
            }
            Request::Mount { what, target, mode, reply } => Event::Mount(self.wait(Waiting::Plain(reply)), what, target.into_text(), mode),
            Request::Unmount { target, reply } => Event::Unmount(self.wait(Waiting::Plain(reply)), target.into_text()),
            Request::Fence { force, reply } => Event::Fence(self.wait(Waiting::Fence(reply)), force),
            Request::Export { handoff, reply } => Event::Export(self.wait(Waiting::Plain(reply)), handoff),
            Request::Thaw { reply } => Event::Thaw(self.wait(Waiting::Plain(reply))),
        }
    }

    fn wait(&mut self, waiting: Waiting) -> ReqId {
        self.machine.wait(waiting)
    }

    // ---- what goes out: records first, durably ----

    async fn save(&self, records: &[Record]) -> Result<(), Problem> {
        if records.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        for record in records {
            let name = record.name();
            entries.extend(record.rows().into_iter().map(|row| Entry {
                name,
                op: match row {
                    Row::Put(key, value) => Op::Put { key, value },
                    Row::Delete(key) => Op::Delete { key },
                    Row::DeleteAll => Op::DeleteAll,
                },
            }));
        }
        let began = std::time::Instant::now();
        self.node.journal.commit(Scope::Fs(self.machine.id()), entries).await.map_err(|e| {
            error!("journal commit failed, rebuilding from the journal: {e}");
            Problem::new(e.kind(), format!("the journal of this node can't be written: {e}"))
        })?;
        debug!(records = records.len(), ms = began.elapsed().as_millis(), "journaled");
        Ok(())
    }

    /// `true`: it is over.
    async fn carry_out(&mut self, effect: Effect<Waiting>) -> bool {
        match effect {
            Effect::Cancel(op) => {
                if let Some(token) = self.cancels.get(&op) {
                    token.cancel();
                }
            }
            Effect::Start(op, task) => self.start(op, task),
            Effect::Publish => self.publish(),
            Effect::Answer(waiting, answer) => waiting.answer(answer),
            Effect::Stray(req, answer) => error!(?req, ?answer, "an answer to nobody: a defect of ours"),
            Effect::Tell(note) => self.tell(&note),
            Effect::StopTasks => self.stop_tasks().await,
            Effect::Refuse(waiting, problem) => waiting.refuse(problem),
            Effect::Reload { after_ms } => {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                return !self.recover().await;
            }
            Effect::End => return true,
        }
        false
    }

    fn start(&mut self, op: OpId, task: Task) {
        let cancel = CancellationToken::new();
        self.cancels.insert(op, cancel.clone());
        let transfer = match &task {
            Task::Receive { req, .. } => self.machine.waiter(*req).and_then(Waiting::take_transfer),
            _ => None,
        };
        let ctx = TaskCtx { fs: self.machine.id(), op, node: self.node.clone(), said: self.said_tx.clone(), cancel };
        self.tasks.spawn(tasks::run(ctx, task, transfer).in_current_span());
    }

    fn publish(&mut self) {
        let status = self.machine.status();
        let changed = **self.status.borrow() != status;
        if changed {
            let status = Arc::new(status);
            let before = self.status.send_replace(status.clone());
            account::runs_ended(&before, &status, |result, took| self.node.metrics.run_ended(result, took));
            self.node.publish(&status);
        }
    }

    fn tell(&self, note: &Note) {
        if note.warning {
            warn!(reason = note.reason, "{}", note.message);
        } else {
            info!(reason = note.reason, "{}", note.message);
        }
        self.node.tell(self.machine.id(), note);
    }

    // ---- recovery ----

    /// Reads the journal. What can't be read is waited for, closed. `false`: told to stop meanwhile.
    async fn recover(&mut self) -> bool {
        let rows = loop {
            match self.load().await {
                Ok(rows) => break rows,
                Err(problem) if self.stay_closed(&problem).await => {}
                Err(_) => return false,
            }
        };
        self.node.count_recovery();
        self.machine.recovered(self.node.next_generation(), rows);
        true
    }

    async fn load(&self) -> Result<Recovered, Problem> {
        let rows = self.node.journal.load(Scope::Fs(self.machine.id())).await.map_err(|e| e.problem())?;
        let rows = Recovered::parse(&rows).map_err(|e| e.problem())?;
        // The receiver's own state is opaque to the engine, and of a kind of its own. A damaged one costs no more than its receive.
        match rows.checkpoint.as_ref().map(|c| ApplierState::read(&c.state)) {
            Some(Err(e)) if e.reason() == Reason::FormatNewer => Err(e.problem()),
            _ => Ok(rows),
        }
    }

    /// Cancels all tasks and waits for each: no two operations ever meet half-way.
    async fn stop_tasks(&mut self) {
        for token in self.cancels.values() {
            token.cancel();
        }
        loop {
            tokio::select! {
                next = self.tasks.join_next() => if next.is_none() { break },
                // Tasks that wait for an ack or for room to speak must not wait for us.
                said = self.said.recv() => drop(said),
            }
        }
        while self.said.try_recv().is_ok() {}
        self.cancels.clear();
    }
}

impl Waiting {
    /// A transfer's frames go to its task; its last word is still owed.
    fn take_transfer(&mut self) -> Option<tasks::Transfer> {
        let Self::Receive(_, replies) = self else { return None };
        let replies = replies.clone();
        match std::mem::replace(self, Self::Verdict(replies.clone())) {
            Self::Receive(frames, _) => Some((frames, replies)),
            _ => None,
        }
    }

    /// A requester that has gone away needs no answer.
    fn answer(self, answer: Answer) {
        match (self, answer) {
            (Self::Plain(tx), Answer::Plain(result)) => drop(tx.send(result)),
            (Self::YesNo(tx), Answer::StartsFrom(result)) => drop(tx.send(result)),
            (Self::Versions(tx), Answer::Versions(result)) => drop(tx.send(result.map(|v| *v))),
            (Self::Fence(tx), Answer::Fenced(result)) => drop(tx.send(result)),
            (Self::Checkpoint(tx), Answer::Checkpointed) => drop(tx.send(())),
            (Self::Receive(_, replies), Answer::Receive(result)) => verdict(&replies, result, true),
            (Self::Verdict(replies), Answer::Receive(result)) => verdict(&replies, result, false),
            (_, answer) => error!(?answer, "an answer of the wrong kind: a defect of ours"),
        }
    }

    fn refuse(self, problem: Problem) {
        match self {
            Self::Plain(tx) => drop(tx.send(Err(problem))),
            Self::YesNo(tx) => drop(tx.send(Err(problem))),
            Self::Versions(tx) => drop(tx.send(Err(problem))),
            Self::Fence(tx) => drop(tx.send(Err(problem))),
            Self::Receive(_, replies) | Self::Verdict(replies) => verdict(&replies, Err(problem), false),
            Self::Checkpoint(_) => {}
        }
    }
}

/// The last word of a transfer. The channel has room for it: at most a few `Durable`s wait there.
fn verdict(replies: &mpsc::Sender<Reply>, result: Result<dotgraft_engine::ids::CommitId, Problem>, already: bool) {
    let reply = match result {
        Ok(commit) => Reply::Stored { commit, already },
        Err(problem) => Reply::Refused(problem),
    };
    if replies.try_send(reply).is_err() {
        debug!("the peer of a transfer has gone before its end");
    }
}

/// For a cancelled task.
pub(super) fn cancelled() -> Problem {
    Problem::new(Reason::Cancelled, "cancelled")
}

#[cfg(test)]
#[path = "fs_actor_tests.rs"]
mod tests;
