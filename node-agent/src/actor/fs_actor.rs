//! `FsActor`: the one owner of a Filesystem on this node (design §4). It owns the engine's state machine and the tasks that
//! it started; nobody else reads or writes the journal rows, subvolumes, pins or mounts of this Filesystem.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dotgraft_engine::filesystem::{
    Answer, CheckpointRow, Ctx, Desired, Event, Filesystem, FilesystemStatus, Intent, MountWhat, Out, ReceiveOffer, Recovered, ReqId, Row,
};
use dotgraft_engine::ids::{Fresh, FsId, NodeName, OpId};
use dotgraft_engine::model::{Problem, Reason};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, warn};

use super::handle::{FsHandle, MAILBOX, Offer, Reply, Request};
use super::node::Node;
use super::tasks::{self, TaskCtx};
use crate::driver;
use crate::journal::{Entry, JournalError, Op, Scope};

/// What the actor hears from the supervisor.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// The Replica object as it is now.
    Desired(Desired),
    /// The Replica object is gone.
    Vanished,
    /// That node can be reached again.
    PeerBack(NodeName),
    /// A Filesystem of this node starts from a commit here.
    PinOrigin(FsId, dotgraft_engine::ids::CommitId, Answered),
    /// It is gone.
    UnpinOrigin(FsId),
    /// Stop: the agent ends. Mounts stay as they are.
    Stop,
}

/// Where an order's answer goes; compares as equal, as it says nothing about the order.
#[derive(Debug, Clone)]
pub struct Answered(pub Arc<std::sync::Mutex<Option<Plain>>>);

/// Yes, or why not.
pub type Plain = oneshot::Sender<Result<(), Problem>>;

impl PartialEq for Answered {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What a task says while it runs.
#[derive(Debug)]
pub enum Said {
    /// An event for the engine.
    Event(Event),
    /// A checkpoint is durable on disk; `ack` comes once it is in the journal.
    Checkpoint(OpId, Box<CheckpointRow>, oneshot::Sender<()>),
}

/// A request that waits for its answer, or a transfer that waits for its task.
enum Waiting {
    Plain(oneshot::Sender<Result<(), Problem>>),
    Versions(oneshot::Sender<Result<dotgraft_engine::model::Versions, Problem>>),
    Fence(oneshot::Sender<Result<(dotgraft_engine::ids::CommitId, u64), Problem>>),
    Receive(mpsc::Receiver<super::handle::Frame>, mpsc::Sender<Reply>),
    /// An accepted transfer: its frames are with the task.
    Verdict(mpsc::Sender<Reply>),
    Checkpoint(oneshot::Sender<()>),
}

/// See the module's documentation.
pub struct FsActor {
    fs: Filesystem,
    node: Arc<Node>,
    requests: mpsc::Receiver<Request>,
    orders: mpsc::UnboundedReceiver<Order>,
    said: mpsc::Receiver<Said>,
    said_tx: mpsc::Sender<Said>,
    tasks: JoinSet<()>,
    cancels: BTreeMap<OpId, CancellationToken>,
    waiting: BTreeMap<ReqId, Waiting>,
    next_req: u64,
    status: watch::Sender<Arc<FilesystemStatus>>,
    desired: Option<Order>,
    failures: u32,
}

/// How to reach a running actor.
#[derive(Debug, Clone)]
pub struct Started {
    /// For requests.
    pub handle: FsHandle,
    /// For orders of the supervisor.
    pub orders: mpsc::UnboundedSender<Order>,
}

/// Starts the owner of `id`. It ends when nothing of the Filesystem is left, or on `Order::Stop`; `on_end` is then called.
pub fn start(id: FsId, node: Arc<Node>, on_end: impl FnOnce() + Send + 'static) -> Started {
    let (request_tx, requests) = mpsc::channel(MAILBOX);
    let (order_tx, orders) = mpsc::unbounded_channel();
    let (said_tx, said) = mpsc::channel(64);
    let fs = Filesystem::recover(id, node.here.clone(), 0, Recovered::default());
    let (status, status_rx) = watch::channel(Arc::new(fs.status()));
    let handle = FsHandle::new(id, request_tx, status_rx);
    let actor = FsActor {
        fs,
        node,
        requests,
        orders,
        said,
        said_tx,
        tasks: JoinSet::new(),
        cancels: BTreeMap::new(),
        waiting: BTreeMap::new(),
        next_req: 0,
        status,
        desired: None,
        failures: 0,
    };
    let span = tracing::info_span!("filesystem", fs = %id);
    tokio::spawn(
        async move {
            actor.run().await;
            on_end();
        }
        .instrument(span),
    );
    Started { handle, orders: order_tx }
}

enum Next {
    Event(Event),
    Stop,
}

impl FsActor {
    async fn run(mut self) {
        self.recover().await;
        let mut first = Some(Event::Start);
        loop {
            let event = match first.take() {
                Some(event) => event,
                None => match self.next_event().await {
                    Next::Event(event) => event,
                    Next::Stop => break,
                },
            };
            let mut out = Out::default();
            self.fs.handle(event, &self.ctx(), &mut out); // engine: synchronous, total, no I/O
            if let Err(e) = self.save(&out).await {
                self.rebuild(&e).await;
                first = Some(Event::Start);
                continue;
            }
            self.failures = 0;
            let finished = out.finished;
            self.carry_out(out);
            if finished {
                break;
            }
        }
        self.stop_tasks().await;
    }

    /// The only select!.
    async fn next_event(&mut self) -> Next {
        let due = self.fs.next_wake();
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => self.on_order(order),
            Some(said) = self.said.recv() => Next::Event(self.on_said(said)),
            Some(request) = self.requests.recv() => Next::Event(self.on_request(request)),
            Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => Next::Event(Event::Timer),
            () = self.node.sleep_until(due.unwrap_or_default()), if due.is_some() => Next::Event(Event::Timer),
            else => Next::Stop,
        }
    }

    fn ctx(&self) -> Ctx {
        let fresh = uuid::Uuid::now_v7();
        Ctx { now: self.node.now(), boot: self.node.boot_time(), jitter: fresh.as_u64_pair().1, fresh: Fresh::new(fresh) }
    }

    // ---- what comes in ----

    fn on_order(&mut self, order: Order) -> Next {
        if matches!(order, Order::Desired(_) | Order::Vanished) {
            self.desired = Some(order.clone());
        }
        if let Order::Desired(Desired { intent: Intent::Present(present), .. }) = &order {
            present.jobs.iter().for_each(|job| self.node.limits.set(job.spec.uid, job.bandwidth));
        }
        Next::Event(match order {
            Order::Desired(d) => Event::Desired(d),
            Order::Vanished => Event::Vanished,
            Order::PeerBack(node) => Event::PeerBack(node),
            Order::PinOrigin(by, commit, answer) => {
                let sender = answer.0.lock().ok().and_then(|mut a| a.take());
                match sender {
                    Some(sender) => Event::PinOrigin(self.wait(Waiting::Plain(sender)), by, commit),
                    None => Event::Timer,
                }
            }
            Order::UnpinOrigin(by) => Event::UnpinOrigin(by),
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
                Event::Offer(req, Box::new(engine_offer(*offer)))
            }
            Request::Mount { what, target, read_only, reply } => {
                let what = match what {
                    driver::MountWhat::Head => MountWhat::Head,
                    driver::MountWhat::Commit(id) => MountWhat::Commit(id),
                };
                let target = target.to_string_lossy().into_owned();
                Event::Mount(self.wait(Waiting::Plain(reply)), what, target, read_only)
            }
            Request::Unmount { target, reply } => {
                let target = target.to_string_lossy().into_owned();
                Event::Unmount(self.wait(Waiting::Plain(reply)), target)
            }
            Request::Fence { force, reply } => Event::Fence(self.wait(Waiting::Fence(reply)), force),
            Request::Export { handoff, reply } => Event::Export(self.wait(Waiting::Plain(reply)), handoff),
            Request::Thaw { reply } => Event::Thaw(self.wait(Waiting::Plain(reply))),
        }
    }

    fn wait(&mut self, waiting: Waiting) -> ReqId {
        self.next_req += 1;
        let req = ReqId(self.next_req);
        self.waiting.insert(req, waiting);
        req
    }

    // ---- what goes out: records first, durably ----

    async fn save(&self, out: &Out) -> Result<(), JournalError> {
        if out.records.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        for record in &out.records {
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
        self.node.journal.commit(Scope::Fs(self.fs.id()), entries).await?;
        debug!(records = out.records.len(), ms = began.elapsed().as_millis(), "journaled");
        Ok(())
    }

    fn carry_out(&mut self, out: Out) {
        for op in out.cancels {
            if let Some(token) = self.cancels.get(&op) {
                token.cancel();
            }
        }
        for (op, task) in out.tasks {
            let cancel = CancellationToken::new();
            self.cancels.insert(op, cancel.clone());
            let transfer = match &task {
                dotgraft_engine::filesystem::Task::Receive { req, .. } => match self.waiting.remove(req) {
                    Some(Waiting::Receive(frames, replies)) => {
                        self.waiting.insert(*req, Waiting::Verdict(replies.clone()));
                        Some((frames, replies))
                    }
                    _ => None,
                },
                _ => None,
            };
            let ctx = TaskCtx { fs: self.fs.id(), op, node: self.node.clone(), said: self.said_tx.clone(), cancel };
            self.tasks.spawn(tasks::run(ctx, task, transfer).in_current_span());
        }
        self.publish();
        for (req, answer) in out.answers {
            self.answer(req, answer);
        }
        for note in out.notes {
            if note.warning {
                warn!(reason = note.reason, "{}", note.message);
            } else {
                info!(reason = note.reason, "{}", note.message);
            }
            self.node.tell(self.fs.id(), &note);
        }
    }

    fn publish(&mut self) {
        let status = self.fs.status();
        let changed = **self.status.borrow() != status;
        if changed {
            let status = Arc::new(status);
            self.status.send_replace(status.clone());
            self.node.publish(&status);
        }
    }

    fn answer(&mut self, req: ReqId, answer: Answer) {
        // A requester that has gone away needs no answer.
        match (self.waiting.remove(&req), answer) {
            (Some(Waiting::Plain(tx)), Answer::Plain(result)) => drop(tx.send(result)),
            (Some(Waiting::Versions(tx)), Answer::Versions(result)) => drop(tx.send(result.map(|v| *v))),
            (Some(Waiting::Fence(tx)), Answer::Fenced(result)) => drop(tx.send(result)),
            (Some(Waiting::Checkpoint(tx)), Answer::Checkpointed) => drop(tx.send(())),
            (Some(Waiting::Receive(_, replies)), Answer::Receive(result)) => verdict(&replies, result, true),
            (Some(Waiting::Verdict(replies)), Answer::Receive(result)) => verdict(&replies, result, false),
            (None, _) => {}
            (Some(_), answer) => error!(?answer, "an answer of the wrong kind: a defect of ours"),
        }
    }

    // ---- recovery ----

    async fn recover(&mut self) {
        loop {
            match self.load().await {
                Ok(rows) => {
                    self.node.count_recovery();
                    self.fs = Filesystem::recover(self.fs.id(), self.node.here.clone(), self.node.next_generation(), rows);
                    return;
                }
                Err(problem) => {
                    error!("the journal of this Filesystem can't be read, it stays closed: {problem}");
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
            }
        }
    }

    async fn load(&self) -> Result<Recovered, String> {
        let rows = self.node.journal.load(Scope::Fs(self.fs.id())).await.map_err(|e| e.to_string())?;
        Recovered::parse(&rows).map_err(|e| e.to_string())
    }

    /// A failed journal commit: nothing of the batch becomes visible; memory is dropped and rebuilt (design §4).
    async fn rebuild(&mut self, e: &JournalError) {
        self.failures += 1;
        error!("journal commit failed, rebuilding from the journal: {e}");
        let problem = Problem::new(e.kind(), format!("the journal of this node can't be written: {e}"));
        self.stop_tasks().await;
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Plain(tx) => drop(tx.send(Err(problem.clone()))),
                Waiting::Versions(tx) => drop(tx.send(Err(problem.clone()))),
                Waiting::Fence(tx) => drop(tx.send(Err(problem.clone()))),
                Waiting::Receive(_, replies) | Waiting::Verdict(replies) => verdict(&replies, Err(problem.clone()), false),
                Waiting::Checkpoint(_) => {}
            }
        }
        let wait = Duration::from_millis(200u64 << self.failures.min(7));
        tokio::time::sleep(wait).await;
        self.recover().await;
        // What is wanted is known still; the engine has forgotten it with the rest. It must not be lost to a second failure.
        let wanted = match self.desired.clone() {
            Some(Order::Desired(desired)) => Event::Desired(desired),
            Some(Order::Vanished) => Event::Vanished,
            _ => return,
        };
        loop {
            let mut out = Out::default();
            self.fs.handle(wanted.clone(), &self.ctx(), &mut out);
            if self.save(&out).await.is_ok() {
                return self.carry_out(out);
            }
            tokio::time::sleep(wait).await;
            self.recover().await;
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

fn engine_offer(offer: Offer) -> ReceiveOffer {
    ReceiveOffer {
        target: offer.target,
        base: offer.base,
        job: offer.job,
        epoch: offer.epoch,
        expected: offer.expected,
        stream_version: offer.stream_version,
        kernel_release: offer.kernel_release,
        resume: offer.resume,
        from: offer.from,
    }
}

/// For a cancelled task.
pub(super) fn cancelled() -> Problem {
    Problem::new(Reason::Cancelled, "cancelled")
}
