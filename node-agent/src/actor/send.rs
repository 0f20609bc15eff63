//! The task that sends a commit: the kernel's stream, hashed, throttled and handed to the peer. Where the receiver can go
//! on, the prefix is produced again and proven to be the same before one byte is skipped (replication.md §3).

use std::io::Read;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dotgraft_engine::filesystem::{Event, TaskDone};
use dotgraft_engine::ids::{CommitId, Epoch, JobUid};
use dotgraft_engine::model::{Commit, Place, Problem, Reason, ResumeToken};
use tokio::sync::mpsc;

use super::fs_actor::cancelled;
use super::handle::Offer;
use super::tasks::TaskCtx;
use crate::driver::{Driver, DriverError};
use crate::peer::{Bandwidth, Opened, Transfer};

/// Size of a frame (platform.md §4: transport is no limit with 1 MiB messages).
const FRAME: usize = 1 << 20;
/// Frames between the reading thread and the network.
const AHEAD: usize = 8;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What to send.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The run.
    pub run_id: uuid::Uuid,
    /// To whom.
    pub peer: Place,
    /// Our epoch.
    pub epoch: Epoch,
    /// For which job.
    pub job: JobUid,
    /// Base.
    pub from: Option<CommitId>,
    /// Target.
    pub to: Commit,
    /// Where the receiver can go on.
    pub resume: Option<ResumeToken>,
    /// Estimate.
    pub expected: Option<u64>,
    /// Bytes per second.
    pub bandwidth: Option<u64>,
}

/// Sends it.
pub async fn run(ctx: &TaskCtx, plan: Plan) -> Result<TaskDone, Problem> {
    tokio::select! {
        result = send(ctx, plan) => result,
        () = ctx.cancel.cancelled() => Err(cancelled()),
    }
}

async fn send(ctx: &TaskCtx, plan: Plan) -> Result<TaskDone, Problem> {
    let mut source = None;
    let mut resume = plan.resume.clone().filter(|r| same_maker(ctx, r));
    if let Some(token) = &resume {
        let proven = Source::open(ctx, &plan).await?.prove(token).await?;
        if proven.is_none() {
            tracing::info!("the stream differs from what the receiver has; this step starts again");
            resume = None;
        }
        source = proven;
    }
    let offered = resume.as_ref().map_or(0, |r| r.offset);
    let transfer = match ctx.node.peers.open(&plan.peer.node, ctx.fs, offer(ctx, &plan, resume)).await? {
        Opened::Stored(_) => return Ok(TaskDone::Sent { bytes: 0, already: true }),
        Opened::Accepted(transfer) => transfer,
    };
    let source = match source {
        Some(source) if transfer.offset == offered => source,
        _ if transfer.offset == 0 => Source::open(ctx, &plan).await?,
        _ => return Err(Problem::new(Reason::Internal, "the receiver goes on from where it was not asked to")),
    };
    let sent = pump(ctx, &plan, source, transfer).await?;
    Ok(TaskDone::Sent { bytes: sent, already: false })
}

/// Another kernel, or another stream version, may cut the stream differently.
fn same_maker(ctx: &TaskCtx, token: &ResumeToken) -> bool {
    token.kernel_release == ctx.node.here.kernel_release && token.stream_version == ctx.node.here.stream_version
}

fn offer(ctx: &TaskCtx, plan: &Plan, resume: Option<ResumeToken>) -> Offer {
    Offer {
        target: plan.to.clone(),
        base: plan.from,
        job: plan.job,
        run_id: plan.run_id,
        epoch: plan.epoch,
        expected: plan.expected,
        stream_version: ctx.node.here.stream_version,
        kernel_release: ctx.node.here.kernel_release.clone(),
        resume,
        from: ctx.node.here.place.node.clone(),
    }
}

async fn pump(ctx: &TaskCtx, plan: &Plan, mut source: Source, mut transfer: Transfer) -> Result<u64, Problem> {
    let bucket = Bandwidth::new(plan.bandwidth);
    let start = transfer.offset;
    let mut offset = start;
    let mut told = Instant::now();
    ctx.say(Event::Progress(ctx.op, offset, start)).await;
    while let Some(bytes) = source.next().await? {
        offset += bytes.len() as u64;
        ctx.node.metrics.sent(bytes.len());
        transfer.data_at(bytes, &bucket).await?;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            ctx.say(Event::Progress(ctx.op, offset, start)).await;
        }
    }
    let digest = source.digest()?;
    ctx.say(Event::Progress(ctx.op, offset, start)).await;
    ctx.say(Event::Verifying(ctx.op)).await;
    transfer.finish(offset, digest).await?;
    Ok(offset - start)
}

/// The stream, read and hashed on a blocking thread of its own.
struct Source {
    chunks: mpsc::Receiver<Result<Bytes, Problem>>,
    /// Filled by the thread when the stream has ended.
    end: tokio::sync::oneshot::Receiver<blake3::Hash>,
    digest: Option<blake3::Hash>,
    /// A proven prefix ends inside a chunk: the rest of it.
    rest: Option<Bytes>,
}

impl Source {
    async fn open(ctx: &TaskCtx, plan: &Plan) -> Result<Self, Problem> {
        let (fs, from, to, version) = (ctx.fs, plan.from, plan.to.id, ctx.node.here.stream_version);
        let stream = ctx.blocking(move |d: &dyn Driver| -> Result<_, DriverError> { d.send(fs, from, to, version) }).await?;
        let (tx, chunks) = mpsc::channel(AHEAD);
        let (end_tx, end) = tokio::sync::oneshot::channel();
        tokio::task::spawn_blocking(move || read_all(stream, &tx, end_tx));
        Ok(Self { chunks, end, digest: None, rest: None })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        if let Some(chunk) = self.chunks.recv().await {
            return chunk.map(Some);
        }
        self.digest = (&mut self.end).await.ok();
        Ok(None)
    }

    fn digest(&self) -> Result<[u8; 32], Problem> {
        let digest = self.digest.ok_or_else(|| Problem::new(Reason::Internal, "the stream has no end"))?;
        Ok(*digest.as_bytes())
    }

    /// Produces the prefix again; `None`: it is not the same.
    async fn prove(mut self, token: &ResumeToken) -> Result<Option<Self>, Problem> {
        let mut hasher = blake3::Hasher::new();
        let mut left = token.offset;
        while left > 0 {
            let Some(chunk) = self.next().await? else { return Ok(None) };
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            let mut chunk = chunk;
            let head = chunk.split_to(take);
            hasher.update(&head);
            left -= take as u64;
            if !chunk.is_empty() {
                self.rest = Some(chunk);
            }
        }
        let same = *hasher.finalize().as_bytes() == token.prefix_digest;
        Ok(same.then_some(self))
    }
}

fn read_all(mut stream: Box<dyn Read + Send>, tx: &mpsc::Sender<Result<Bytes, Problem>>, end: tokio::sync::oneshot::Sender<blake3::Hash>) {
    let mut hasher = blake3::Hasher::new();
    loop {
        let mut frame = vec![0u8; FRAME];
        let filled = match fill(stream.as_mut(), &mut frame) {
            Ok(filled) => filled,
            Err(e) => {
                let untyped =
                    || Problem::new(Reason::Internal, format!("the kernel's send ended with an error: {e}; see the node's kernel log"));
                let problem = DriverError::of_read(&e).map_or_else(untyped, DriverError::problem);
                let _ = tx.blocking_send(Err(problem));
                return;
            }
        };
        frame.truncate(filled);
        hasher.update(&frame);
        if filled > 0 && tx.blocking_send(Ok(frame.into())).is_err() {
            return; // the sender was cancelled; dropping the stream ends the kernel's send
        }
        if filled < FRAME {
            let _ = end.send(hasher.finalize());
            return;
        }
    }
}

/// Fills as much as there is: fewer bytes than asked for mean the end.
fn fill(stream: &mut dyn Read, frame: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < frame.len() {
        let Some(room) = frame.get_mut(filled..) else { break };
        match stream.read(room) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
