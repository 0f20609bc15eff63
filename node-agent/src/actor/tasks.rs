//! The work that an actor starts: each task runs outside the loop, says what it has to say, and ends with one `Done`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dotgraft_engine::filesystem::{Event, Found, Task, TaskDone};
use dotgraft_engine::ids::{CommitId, Epoch, FsId, JobUid, NodeName, OpId};
use dotgraft_engine::model::{Origin, Problem, Reason};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::convert;
use super::fs_actor::{Said, cancelled};
use super::handle::{Frame, Reply};
use super::node::Node;
use super::orders::Order;
use super::{receive, send};
use crate::driver::{Driver, DriverError, held_by_nobody};

/// Frames and replies of an accepted transfer.
pub type Transfer = (mpsc::Receiver<Frame>, mpsc::Sender<Reply>);

/// What every task has at hand.
#[derive(Clone)]
pub struct TaskCtx {
    /// Whose.
    pub fs: FsId,
    /// Which.
    pub op: OpId,
    /// The node.
    pub node: Arc<Node>,
    /// The way back to the actor.
    pub said: mpsc::Sender<Said>,
    /// Told to stop.
    pub cancel: CancellationToken,
}

impl TaskCtx {
    /// A driver call on a blocking thread.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Driver) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, Problem> {
        let driver = self.node.driver.clone();
        match tokio::task::spawn_blocking(move || call(driver.as_ref())).await {
            Ok(result) => result.map_err(|e| e.problem()),
            Err(e) => Err(Problem::new(Reason::Internal, format!("a driver call died: {e}"))),
        }
    }

    /// Tells the engine something.
    pub async fn say(&self, event: Event) {
        // The actor is gone only when the process ends.
        let _ = self.said.send(Said::Event(event)).await;
    }
}

/// Runs one task to its end.
pub async fn run(ctx: TaskCtx, task: Task, transfer: Option<Transfer>) {
    let result = carry_out(&ctx, task, transfer).await;
    if let Err(problem) = &result
        && problem.reason == Reason::Internal
    {
        tracing::warn!(op = %ctx.op, "task failed: {problem}");
    }
    ctx.say(Event::Done(ctx.op, Box::new(result))).await;
}

async fn carry_out(ctx: &TaskCtx, task: Task, transfer: Option<Transfer>) -> Result<TaskDone, Problem> {
    let fs = ctx.fs;
    match task {
        Task::Inspect => inspect(ctx).await,
        Task::AllocateQgroup => ctx.blocking(Driver::allocate_qgroup).await.map(TaskDone::Qgroup),
        Task::Open { seen } => ctx.node.api.open(fs, seen).await,
        Task::CheckDeleting => ctx.node.api.look(fs).await.map(|read| TaskDone::Looked(read.map(Box::new))),
        Task::AskEpochs(peers) => Ok(TaskDone::HighestEpoch(highest_epoch(ctx, peers).await)),
        Task::CheckHeadless => ctx.node.api.is_headless(fs).await.map(TaskDone::Headless),
        Task::PinOrigin(origin) => pin_origin(ctx, origin).await,
        Task::UnpinOrigin(origin) => {
            ctx.node.order(origin.fs_id, Order::UnpinOrigin(fs));
            Ok(TaskDone::Ok)
        }
        Task::AskClones(pins) => tokio::select! {
            unneeded = ask_clones(ctx, pins) => Ok(TaskDone::Unneeded(unneeded)),
            () = ctx.cancel.cancelled() => Err(cancelled()),
        },
        Task::Prepare(base) => {
            let meta = convert::meta_of(&base, ctx.node.here.place.pool);
            ctx.blocking(move |d| d.prepare(&meta)).await.map(|()| TaskDone::Ok)
        }
        Task::CreateHead { qgroup, from } => ctx.blocking(move |d| create_head(d, fs, qgroup, from)).await,
        Task::WriteMeta(base) => {
            let meta = convert::meta_of(&base, ctx.node.here.place.pool);
            let (qgroup, limit) = (base.qgroup, base.limit());
            ctx.blocking(move |d| {
                d.set_limit(qgroup, limit)?;
                d.write_meta(&meta)
            })
            .await
            .map(|()| TaskDone::Ok)
        }
        Task::Commit { qgroup, commit } => {
            let began = std::time::Instant::now();
            let done = ctx.blocking(move |d| d.commit(qgroup, &commit)).await;
            ctx.node.metrics.commit(done.is_ok(), began.elapsed());
            done.map(|done| TaskDone::Committed { changed_bytes: done.changed_bytes, nested: done.folded })
        }
        Task::DeleteCommit(id) => ctx.blocking(move |d| d.delete_commit(fs, id)).await.map(|()| TaskDone::Ok),
        Task::LookForMounts => ctx.blocking(move |d| look_for_mounts(d, fs)).await,
        Task::Freeze => freeze(&ctx.node, fs).await.map(|()| TaskDone::Ok),
        Task::FinalCommit { qgroup, commit } => {
            let done = ctx.blocking(move |d| d.final_commit(qgroup, &commit)).await;
            done.map(|f| TaskDone::Fenced { generation: f.generation, nested: f.folded })
        }
        Task::Thaw => ctx.blocking(move |d| d.thaw(fs)).await.map(|()| TaskDone::Ok),
        Task::Swap(swap) => ctx.node.api.swap(fs, &swap).await.map(|read| TaskDone::Authority(Box::new(read))),
        Task::Export { peer, handoff } => {
            let export = ctx.node.peers.export(&peer.node, fs, &handoff);
            tokio::select! {
                done = export => done.map(|()| TaskDone::Ok),
                () = ctx.cancel.cancelled() => Err(cancelled()),
            }
        }
        Task::DropHead => ctx.blocking(move |d| d.drop_head(fs)).await.map(|()| TaskDone::Ok),
        Task::Destroy { qgroup } => ctx.blocking(move |d| destroy(d, fs, qgroup)).await,
        Task::Usage { qgroup, newest, files } => ctx.blocking(move |d| usage(d, fs, qgroup, newest, files)).await,
        Task::Mount(what, target, mode) => ctx.blocking(move |d| d.mount(fs, what, target.as_ref(), mode)).await.map(|()| TaskDone::Ok),
        Task::Unmount(target) => ctx.blocking(move |d| d.unmount(target.as_ref())).await.map(|()| TaskDone::Ok),
        Task::Discard(target) => ctx.blocking(move |d| d.receive_discard(fs, target)).await.map(|()| TaskDone::Ok),
        Task::Receive { qgroup, offer, checkpoint, .. } => match transfer {
            Some((frames, replies)) => receive::run(ctx, qgroup, *offer, checkpoint, frames, replies).await,
            None => Err(cancelled()),
        },
        Task::PeerVersions { job, peer } => {
            let versions = ctx.node.peers.versions(&peer.node, fs, job);
            tokio::select! {
                v = versions => v.map(|v| TaskDone::Versions(Box::new(v))),
                () = ctx.cancel.cancelled() => Err(cancelled()),
            }
        }
        Task::Estimate { from, to, .. } => ctx.blocking(move |d| d.estimate(fs, from, to)).await.map(TaskDone::Estimated),
        Task::Send { run_id, peer, epoch, job, from, to, resume, expected, bandwidth } => {
            let plan = send::Plan { run_id, peer, epoch, job, from, to: *to, resume: resume.map(|r| *r), expected, bandwidth };
            send::run(ctx, plan).await
        }
    }
}

/// How long a pool with a copy is waited for that may know of a later owner.
const ASKED_FOR: std::time::Duration = std::time::Duration::from_secs(5);

/// The highest epoch that any of those nodes has seen; 0 if none answers in time.
async fn highest_epoch(ctx: &TaskCtx, peers: BTreeSet<NodeName>) -> Epoch {
    // Lists are asked for in the name of a job; for this one there is none.
    let nobody = JobUid::from_uuid(uuid::Uuid::now_v7());
    let answers = peers.iter().map(|node| tokio::time::timeout(ASKED_FOR, ctx.node.peers.versions(node, ctx.fs, nobody)));
    let known = futures::future::join_all(answers).await;
    known.into_iter().filter_map(|answer| answer.ok()?.ok()).map(|v| v.epoch).max().unwrap_or_default()
}

async fn inspect(ctx: &TaskCtx) -> Result<TaskDone, Problem> {
    let fs = ctx.fs;
    let (found, fenced) = ctx
        .blocking(move |d| {
            let found = d.inspect(fs)?;
            let fenced = found.head && d.is_fenced(fs)?;
            Ok((found, fenced))
        })
        .await?;
    let base = match found.meta {
        Some(meta) if meta.pool != ctx.node.here.place.pool => {
            let text = format!(
                "fs.json names pool {}, this is {}: the directory was copied from another pool; it is left alone",
                meta.pool, ctx.node.here.place.pool
            );
            return Err(Problem::new(Reason::Invalid, text));
        }
        Some(meta) => Some(convert::base_of(&meta, found.head)),
        None => None,
    };
    Ok(TaskDone::Inspected(Box::new(Found {
        base,
        head: found.head,
        fenced,
        commits: found.commits,
        checkpoints: found.checkpoints,
        incoming: found.incoming,
        broken: found.broken,
    })))
}

fn look_for_mounts(d: &dyn Driver, fs: FsId) -> Result<TaskDone, DriverError> {
    held_by_nobody(&d.head_holders(fs)?).map(|()| TaskDone::Ok)
}

/// On a thread of its own: the pool of threads for what blocks may be full of what a slow disk keeps waiting.
pub(super) async fn freeze(node: &Node, fs: FsId) -> Result<(), Problem> {
    let (tx, rx) = oneshot::channel();
    let driver = node.driver.clone();
    let run = move || drop(tx.send(driver.freeze(fs).map_err(|e| e.problem())));
    let started = std::thread::Builder::new().name("freeze".to_owned()).spawn(run);
    started.map_err(|e| Problem::new(Reason::Internal, format!("start a thread: {e}")))?;
    rx.await.unwrap_or_else(|_| Err(Problem::new(Reason::Internal, "a freeze died")))
}

/// A mounted subvolume would vanish without a word to its users: looked at right before (storage.md §3).
/// How the head stands to its newest commit goes without saying where it can't be told, as just after the commit was removed.
fn usage(d: &dyn Driver, fs: FsId, qgroup: u64, newest: Option<CommitId>, files: bool) -> Result<TaskDone, DriverError> {
    let found = d.usage(qgroup)?;
    let files = if files { d.file_bytes(fs).ok().flatten() } else { None };
    let written = newest.and_then(|commit| d.head_written_since(fs, commit).ok());
    Ok(TaskDone::Usage { bytes: found.bytes, limit: found.limit, written, files })
}

fn create_head(d: &dyn Driver, fs: FsId, qgroup: u64, from: Option<Origin>) -> Result<TaskDone, DriverError> {
    d.create_head(fs, qgroup, from)?;
    match from.filter(|origin| origin.fs_id != fs) {
        Some(origin) => d.began_with(fs, origin).map(TaskDone::Cloned),
        None => Ok(TaskDone::Ok),
    }
}

fn destroy(d: &dyn Driver, fs: FsId, qgroup: u64) -> Result<TaskDone, DriverError> {
    held_by_nobody(&d.holders(fs)?)?;
    d.destroy(fs, qgroup).map(|()| TaskDone::Ok)
}

/// Those that don't start from that commit, or are not on this node. One that doesn't say needs it.
async fn ask_clones(ctx: &TaskCtx, pins: BTreeMap<FsId, CommitId>) -> Vec<FsId> {
    let mut unneeded = Vec::new();
    for (by, commit) in pins {
        let (tx, rx) = oneshot::channel();
        let asked = ctx.node.order(by, Order::StartsFrom(Origin { fs_id: ctx.fs, commit }, tx));
        let needed = if asked { !matches!(rx.await, Ok(Ok(false))) } else { !ctx.node.is_without(by) };
        if !needed {
            unneeded.push(by);
        }
    }
    unneeded
}

async fn pin_origin(ctx: &TaskCtx, origin: Origin) -> Result<TaskDone, Problem> {
    let (tx, rx) = oneshot::channel();
    if !ctx.node.order(origin.fs_id, Order::PinOrigin(ctx.fs, origin.commit, tx)) {
        return Err(Problem::new(
            Reason::NotFound,
            format!("Filesystem {} is not on this node; a Branch starts where its origin is", origin.fs_id),
        ));
    }
    match rx.await {
        Ok(result) => result.map(|()| TaskDone::Ok),
        Err(_) => Err(Problem::new(Reason::Busy, "the origin's owner restarted; trying again")),
    }
}
