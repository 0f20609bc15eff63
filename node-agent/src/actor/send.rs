//! The task that sends a commit: the kernel's stream, hashed, throttled and handed to the peer. Where the receiver can go
//! on, the prefix is produced again and proven to be the same before one byte is skipped (replication.md §3).
//!
//! The kernel may write nothing for minutes while it compares trees. Then receiver and engine are told that it reads, as long as that
//! is so: the reading thread waits in the pipe, which has a writer, so the ioctl runs. How long it may is bounded (`--kernel-silence`).

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dotgraft_engine::filesystem::{Event, Offer, TaskDone};
use dotgraft_engine::ids::{CommitId, Epoch, JobUid};
use dotgraft_engine::model::{Commit, Place, Problem, Reason, ResumeToken};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::fs_actor::cancelled;
use super::tasks::TaskCtx;
use crate::driver::{Driver, DriverError};
use crate::peer::convert::ALIVE_EVERY;
use crate::peer::{Bandwidth, FRAME, Opened, Transfer};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;
/// Chunks between the reading thread and the network.
const AHEAD: usize = 8;
/// A chunk that fills slowly is handed over after so long, full or not.
const HOLD: Duration = Duration::from_secs(10);
/// A chunk that was waited for longer than that was late because of the kernel, and is announced so.
const LATE: Duration = Duration::from_secs(1);
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
        let proven = Source::open(ctx, &plan).await?.prove(ctx, token).await?;
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
    let bucket = ctx.node.limits.of(plan.job, plan.bandwidth);
    let start = transfer.offset;
    let mut offset = start;
    let mut told = Instant::now();
    ctx.say(Event::Progress(ctx.op, offset, start)).await;
    while let Some(mut bytes) = next_chunk(ctx, &mut source, &mut transfer).await? {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(bucket.piece(FRAME)));
            let sent = piece.len();
            hand_over(ctx, &mut transfer, piece, &bucket).await?;
            offset += sent as u64;
            ctx.node.metrics.sent(sent);
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                ctx.say(Event::Progress(ctx.op, offset, start)).await;
            }
        }
    }
    let digest = source.digest()?;
    ctx.say(Event::Progress(ctx.op, offset, start)).await;
    ctx.say(Event::Verifying(ctx.op)).await;
    transfer.finish(offset, digest).await?;
    Ok(offset - start)
}

/// What the kernel writes next. While it writes nothing but reads, a receiver that knows the word hears so, and the engine with it:
/// one that doesn't ends the transfer by itself, and the engine must not wait for it.
async fn next_chunk(ctx: &TaskCtx, source: &mut Source, transfer: &mut Transfer) -> Result<Option<Bytes>, Problem> {
    let since = Instant::now();
    let every = transfer.alive_every();
    loop {
        tokio::select! {
            biased;
            next = source.next() => {
                if since.elapsed() >= LATE && matches!(next, Ok(Some(_))) {
                    transfer.alive().await?; // the time before these bytes was the kernel's
                }
                return next;
            }
            problem = transfer.ended() => return Err(problem),
            () = sleep(every.unwrap_or(ALIVE_EVERY).min(left_of_bound(ctx, since))) => {}
        }
        Source::within_bound(ctx, since)?;
        if source.reads() && every.is_some() {
            transfer.alive().await?;
            ctx.say(Event::Alive(ctx.op, millis(since))).await;
        }
    }
}

/// Gives the receiver a piece. While it takes none but says that it lives, the engine hears so; how long that may last is the
/// transfer's to say.
async fn hand_over(ctx: &TaskCtx, transfer: &mut Transfer, piece: Bytes, limit: &Bandwidth) -> Result<(), Problem> {
    let ears = transfer.ears();
    let mut heard = ears.last_heard();
    let sending = transfer.data_at(piece, limit);
    tokio::pin!(sending);
    loop {
        tokio::select! {
            done = &mut sending => return done,
            () = sleep(ALIVE_EVERY) => {}
        }
        if ears.last_heard() > heard {
            heard = ears.last_heard();
            ctx.say(Event::Alive(ctx.op, 0)).await;
        }
    }
}

/// Until the kernel has had its time.
fn left_of_bound(ctx: &TaskCtx, since: Instant) -> Duration {
    ctx.node.peers.kernel_silence().saturating_sub(since.elapsed())
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The stream, read and hashed on a blocking thread of its own.
struct Source {
    chunks: mpsc::Receiver<Result<Bytes, Problem>>,
    /// The thread is in the stream's `read`: it waits for the kernel and for nothing else.
    reading: Arc<AtomicBool>,
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
        let reading = Arc::<AtomicBool>::default();
        let stream = Watched { stream, reading: Arc::clone(&reading) };
        tokio::task::spawn_blocking(move || read_all(stream, &tx, end_tx));
        Ok(Self { chunks, reading, end, digest: None, rest: None })
    }

    /// Whether the kernel is at work on it. False also while the thread has not begun, or does something else than to read.
    fn reads(&self) -> bool {
        self.reading.load(Ordering::Relaxed)
    }

    /// An error once the kernel has given nothing for longer than it may.
    fn within_bound(ctx: &TaskCtx, since: Instant) -> Result<(), Problem> {
        let (took, most) = (since.elapsed(), ctx.node.peers.kernel_silence());
        if took < most {
            return Ok(());
        }
        let text = format!(
            "the kernel's send gave no byte for {} s (--kernel-silence): its trees are too large to compare in that time, or its disk hangs; \
             see the node's kernel log",
            took.as_secs()
        );
        Err(Problem::new(Reason::Timeout, text))
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

    /// The next chunk of a prefix. No receiver waits for it, only the engine.
    async fn next_of_prefix(&mut self, ctx: &TaskCtx) -> Result<Option<Bytes>, Problem> {
        let since = Instant::now();
        loop {
            tokio::select! {
                biased;
                next = self.next() => return next,
                () = sleep(ALIVE_EVERY.min(left_of_bound(ctx, since))) => {}
            }
            Self::within_bound(ctx, since)?;
            if self.reads() {
                ctx.say(Event::Alive(ctx.op, millis(since))).await;
            }
        }
    }

    /// Produces the prefix again; `None`: it is not the same. The engine hears that bytes come: a long prefix takes minutes.
    async fn prove(mut self, ctx: &TaskCtx, token: &ResumeToken) -> Result<Option<Self>, Problem> {
        let mut hasher = blake3::Hasher::new();
        let mut left = token.offset;
        let mut told = Instant::now();
        while left > 0 {
            let Some(chunk) = self.next_of_prefix(ctx).await? else { return Ok(None) };
            if told.elapsed() >= ALIVE_EVERY {
                told = Instant::now();
                ctx.say(Event::Alive(ctx.op, 0)).await;
            }
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

/// A stream that says when it is read.
struct Watched {
    stream: Box<dyn Read + Send>,
    reading: Arc<AtomicBool>,
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.reading.store(true, Ordering::Relaxed);
        let read = self.stream.read(buf);
        self.reading.store(false, Ordering::Relaxed);
        read
    }
}

fn read_all(mut stream: impl Read, tx: &mpsc::Sender<Result<Bytes, Problem>>, end: tokio::sync::oneshot::Sender<blake3::Hash>) {
    let mut hasher = blake3::Hasher::new();
    loop {
        let mut chunk = vec![0u8; CHUNK];
        let (filled, over) = match fill(&mut stream, &mut chunk, HOLD) {
            Ok(filled) => filled,
            Err(e) => {
                let untyped =
                    || Problem::new(Reason::Internal, format!("the kernel's send ended with an error: {e}; see the node's kernel log"));
                let problem = DriverError::of_read(&e).map_or_else(untyped, DriverError::problem);
                let _ = tx.blocking_send(Err(problem));
                return;
            }
        };
        chunk.truncate(filled);
        hasher.update(&chunk);
        if filled > 0 && tx.blocking_send(Ok(chunk.into())).is_err() {
            return; // the sender was cancelled; dropping the stream ends the kernel's send
        }
        if over {
            let _ = end.send(hasher.finalize());
            return;
        }
    }
}

/// Fills as much as there is, at the latest until a read ends after `hold`; whether the stream is over.
fn fill(stream: &mut impl Read, frame: &mut [u8], hold: Duration) -> std::io::Result<(usize, bool)> {
    let start = Instant::now();
    let mut filled = 0;
    while filled < frame.len() && (filled == 0 || start.elapsed() < hold) {
        let Some(room) = frame.get_mut(filled..) else { break };
        match stream.read(room) {
            Ok(0) => return Ok((filled, true)),
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((filled, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte per read, after a while; says by `reading` where it is.
    struct Slow {
        pause: Duration,
        left: usize,
        seen: Arc<AtomicBool>,
        reading: Arc<AtomicBool>,
    }

    impl Read for Slow {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.seen.fetch_or(self.reading.load(Ordering::Relaxed), Ordering::Relaxed);
            std::thread::sleep(self.pause);
            let n = self.left.min(1);
            self.left -= n;
            buf[..n].fill(7);
            Ok(n)
        }
    }

    fn slow(pause: Duration, left: usize) -> Slow {
        Slow { pause, left, seen: Arc::default(), reading: Arc::default() }
    }

    #[test]
    fn a_frame_that_fills_slowly_is_not_kept_back_for_ever() {
        let mut stream = slow(Duration::from_millis(20), 100);
        let (filled, over) = fill(&mut stream, &mut [0; 100], Duration::from_millis(50)).unwrap();
        assert!((1..20).contains(&filled) && !over, "{filled} bytes, over: {over}");
        let mut quick = slow(Duration::ZERO, 150);
        let mut frame = [0; 100];
        assert_eq!(fill(&mut quick, &mut frame, HOLD).unwrap(), (100, false));
        assert_eq!(fill(&mut quick, &mut frame, HOLD).unwrap(), (50, true));
        assert_eq!(fill(&mut quick, &mut frame, HOLD).unwrap(), (0, true));
    }

    #[test]
    fn a_stream_is_read_only_while_its_thread_is_in_the_read() {
        let (seen, reading) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let stream = Slow { seen: Arc::clone(&seen), reading: Arc::clone(&reading), ..slow(Duration::ZERO, 1) };
        let mut watched = Watched { stream: Box::new(stream), reading: Arc::clone(&reading) };
        assert!(!reading.load(Ordering::Relaxed));
        assert_eq!(watched.read(&mut [0; 8]).unwrap(), 1);
        assert!(seen.load(Ordering::Relaxed) && !reading.load(Ordering::Relaxed));
    }

    /// What the sender may say of its kernel while the reader is stuck elsewhere: nothing.
    #[tokio::test]
    async fn a_reader_whose_frames_nobody_takes_is_not_said_to_read() {
        let reading = Arc::<AtomicBool>::default();
        let stream = Watched { stream: Box::new(std::io::repeat(1)), reading: Arc::clone(&reading) };
        let (tx, mut chunks) = mpsc::channel(1);
        let (end_tx, _end) = tokio::sync::oneshot::channel();
        let reader = tokio::task::spawn_blocking(move || read_all(stream, &tx, end_tx));
        let first = chunks.recv().await.unwrap().unwrap();
        assert_eq!(first.len(), CHUNK);
        sleep(Duration::from_millis(500)).await; // one chunk in the channel, one in its hands
        assert!(!reading.load(Ordering::Relaxed));
        drop(chunks);
        reader.await.unwrap();
    }
}
