//! A node that was broken into speaks to others with its own, good key (failures.md rows 6, 13): it stops, trickles, floods, comes
//! late, and takes an owner for a replica. Whatever it does ends in bounded time and memory, by a typed error, and harms nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dotgraft_proto::agent::v1 as wire;
use serde_json::{Value, json};
use wire::receive_request::Message;

use crate::data::digest::same_trees;
use crate::data::stream;
use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::peer::{Peer, framed, request, stolen_from};
use crate::rig::wait::eventually;
use crate::steps::left::{noise, on_disk};

/// Seconds that n2 waits for a frame in these cases.
const SILENCE: u64 = 4;
/// Seconds that n2 gives the kernel of a sending peer.
const KERNEL: u64 = 10;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("6-late", "a transfer that comes late, of an older run, is refused", late),
        Case::new("13-midframe", "a peer that stops in mid-frame: a typed error, no partial data", midframe),
        Case::new("13-trickle", "a peer that trickles: ended in bounded time", trickle),
        Case::new("13-alive", "a peer that says for ever that its kernel reads: ended at the bound", alive),
        Case::new("13-bomb", "a stream that grows without bound: refused in bounded memory", bomb),
        Case::new("job-receiver-is-owner", "a job whose target has the same Filesystem as an owner: ReceiverIsOwner", receiver_is_owner),
    ]
}

/// A copy on n2 that the intruder on n1 is after.
struct Copy {
    t: Arc<Test>,
    fs_id: String,
    job: String,
    first: String,
    epoch: u64,
    /// The intruder's connection to n2.
    peer: Peer,
}

impl Copy {
    /// A small Dot whose first commit is on n2, by job `j`.
    async fn new(t: &Arc<Test>, capacity: &str) -> Result<Self> {
        let spec = json!({"capacity": capacity, "historyLimit": "16Mi", "placement": {"node": "n1"}});
        let fs_id = t.dot_of("d", &spec).await?;
        write(t, &fs_id, "a", b"precious").await?;
        let first = t.commit("c1", "d").await?;
        t.push("j", "d", "n2").await?;
        t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
        let job = text(&t.object("ReplicationJob", "j").await?, "/metadata/uid")?;
        let filesystem = t.object("Filesystem", &fs_id).await?;
        let epoch = filesystem.pointer("/status/authority/epoch").and_then(Value::as_u64).context("no epoch")?;
        let peer = Peer::connect(&t.rig.node("n2")?.listen, &stolen_from(&t.rig, "n1")?).await?;
        let listed = peer.versions(&fs_id, &job).await?;
        ensure!(listed.versions.iter().any(|v| v.id == first), "n2 lists {:?}", listed.versions);
        Ok(Self { t: t.clone(), fs_id, job, first, epoch, peer })
    }

    /// An offer of the commit `id` on top of the first one.
    fn offer(&self, id: &str) -> wire::Offer {
        let target = wire::Version {
            id: id.into(),
            parent: self.first.clone(),
            time_ms: 1_700_000_000_000,
            epoch: self.epoch,
            format: 1,
            ..wire::Version::default()
        };
        wire::Offer {
            fs_id: self.fs_id.clone(),
            job_uid: self.job.clone(),
            run_id: uuid::Uuid::new_v4().to_string(),
            epoch: self.epoch,
            base: self.first.clone(),
            target: Some(target),
            stream_version: 1,
            kernel_release: "6.1".into(),
            ..wire::Offer::default()
        }
    }

    /// n2 has what it had, serves others, and nothing of the intruder's stays.
    async fn unharmed(&self) -> Result<()> {
        let t = &self.t;
        let head = text(&t.replica(&self.fs_id, "n2").await?, "/status/head")?;
        ensure!(head == self.first, "the newest commit on n2 is {head}");
        write(t, &self.fs_id, "b", b"later").await?;
        let second = t.commit("later", "d").await?;
        t.trigger("j", "after").await?;
        t.arrived(&self.fs_id, &second, "n2", STEP).await?;
        self.same(&second).await?;
        eventually("nothing of the intruder's to be on the disk", STEP, || async {
            let found = on_disk(t, "n2", &self.fs_id)?.unwrap_or_default();
            ensure!(!found.iter().any(|f| f.starts_with("incoming/") || f.starts_with("checkpoints/")), "{found:?}");
            let commits = found.iter().filter(|f| *f == "commits/*").count();
            ensure!(commits == 2, "{commits} commits are there: {found:?}");
            Ok(())
        })
        .await
    }

    async fn same(&self, commit: &str) -> Result<()> {
        let t = &self.t;
        let (here, there) = (t.mount_commit("n1", &self.fs_id, commit).await?, t.mount_commit("n2", &self.fs_id, commit).await?);
        same_trees(&here, &there)?;
        t.unmount(&here).await?;
        t.unmount(&there).await
    }
}

async fn write(t: &Test, fs_id: &str, name: &str, content: &[u8]) -> Result<()> {
    let head = t.mount("n1", fs_id).await?;
    std::fs::write(head.join(name), content)?;
    t.unmount(&head).await
}

fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// n2 starts again with less patience, so that the case is short.
async fn impatient(t: &Test) -> Result<()> {
    let mut args = t.rig.processes.args("n2")?;
    args.extend(["--peer-silence".into(), SILENCE.to_string(), "--kernel-silence".into(), KERNEL.to_string()]);
    t.rig.processes.set_args("n2", args)?;
    t.rig.restart("n2").await
}

/// The reason with which a transfer ended.
fn refused(verdict: Result<impl std::fmt::Debug>, reason: &str) -> Result<()> {
    match verdict {
        Ok(stored) => bail!("it was taken: {stored:?}"),
        Err(e) => ensure!(format!("{e:#}").contains(reason), "another reason than {reason}: {e:#}"),
    }
    Ok(())
}

async fn midframe(t: Arc<Test>) -> Result<()> {
    impatient(&t).await?;
    let copy = Copy::new(&t, "128Mi").await?;
    let frame = framed(&request(Message::Data(noise(1 << 20).into())));
    let (tx, end) = copy.peer.offer_raw(copy.offer(&fresh_id()));
    tx.send(frame.slice(..1000)).await?;
    let start = Instant::now();
    let said = tokio::time::timeout(STEP, end).await.context("it was never ended")???;
    ensure!(said.contains("Timeout"), "another reason: {said}");
    let took = start.elapsed().as_secs_f64();
    ensure!((1.0..60.0).contains(&took), "ended after {took:.1} s");
    drop(tx);
    // One that goes away in mid-frame holds nobody up, not even for that long.
    let (tx, end) = copy.peer.offer_raw(copy.offer(&fresh_id()));
    tx.send(frame.slice(..1000)).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    end.abort();
    drop(tx);
    copy.unharmed().await
}

async fn trickle(t: Arc<Test>) -> Result<()> {
    impatient(&t).await?;
    let copy = Copy::new(&t, "128Mi").await?;
    let mut transfer = copy.peer.offer(copy.offer(&fresh_id())).await?;
    let start = Instant::now();
    // Each byte is a whole frame of a good stream, well within the silence.
    for byte in stream::opening(true) {
        if transfer.data(&[byte]).await.is_err() || start.elapsed() > STEP {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let took = start.elapsed().as_secs_f64();
    refused(transfer.verdict().await, "Timeout")?;
    ensure!((3.0..60.0).contains(&took), "ended after {took:.1} s");
    copy.unharmed().await
}

async fn alive(t: Arc<Test>) -> Result<()> {
    impatient(&t).await?;
    let copy = Copy::new(&t, "128Mi").await?;
    let mut transfer = copy.peer.offer(copy.offer(&fresh_id())).await?;
    let start = Instant::now();
    // A byte now and then, so that it isn't all the same; more than twice as long as silence alone would be borne.
    for byte in stream::opening(true).into_iter().cycle() {
        if transfer.alive().await.is_err() || transfer.data(&[byte]).await.is_err() || start.elapsed() > STEP {
            break;
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let took = start.elapsed().as_secs_f64();
    refused(transfer.verdict().await, "Timeout: the sender says that it reads")?;
    ensure!((5.0..60.0).contains(&took), "ended after {took:.1} s");
    copy.unharmed().await
}

async fn bomb(t: Arc<Test>) -> Result<()> {
    let copy = Copy::new(&t, "64Mi").await?;
    let memory = PeakMemory::of(&t, "n2")?;
    // A message of 64 MiB where 4 are the most.
    let mut transfer = copy.peer.offer(copy.offer(&fresh_id())).await?;
    transfer.message(vec![0; 64 << 20]).await?;
    refused(transfer.verdict().await, "Invalid")?;
    // A command that says it is 3 GiB long.
    let mut transfer = offered(&copy).await?;
    let mut long = stream::opening(true);
    long.extend((3u32 << 30).to_le_bytes());
    long.extend([0; 6]);
    transfer.data(&long).await?;
    refused(transfer.verdict().await, "CorruptStream")?;
    // Good commands without end.
    let mut transfer = offered(&copy).await?;
    let sent = flood(&transfer).await?;
    refused(transfer.verdict().await, "NoSpace")?;
    ensure!(sent < 256, "{sent} MiB went into a volume of 80");
    memory.check(96)?;
    copy.unharmed().await
}

/// The place is free once the transfer before it is cleared away.
async fn offered(copy: &Copy) -> Result<crate::rig::peer::Transfer> {
    eventually("the offer to be taken", STEP, || copy.peer.offer(copy.offer(&fresh_id()))).await
}

/// Writes into one file until nobody takes more, at most 1 GiB. Returns the MiB sent.
async fn flood(transfer: &crate::rig::peer::Transfer) -> Result<u64> {
    const CHUNK: usize = 32 << 10;
    transfer.data(&stream::opening(true)).await?;
    let data = noise(CHUNK);
    for mib in 0..1024u64 {
        let writes = (0..32).map(|i| stream::write((mib << 20) + i * CHUNK as u64, &data));
        let frame: Vec<u8> = writes.flatten().collect();
        if transfer.data(&frame).await.is_err() {
            return Ok(mib);
        }
    }
    bail!("1 GiB went in")
}

/// The most memory that a program has used since.
struct PeakMemory {
    pid: i32,
    before: u64,
}

impl PeakMemory {
    fn of(t: &Test, program: &str) -> Result<Self> {
        let pid = t.rig.processes.pid(program)?.as_raw_nonzero().get();
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak")?;
        Ok(Self { pid, before: Self::read(pid, "VmRSS:")? })
    }

    /// KiB of a line of `/proc/<pid>/status`.
    fn read(pid: i32, line: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let value = status.lines().find_map(|l| l.strip_prefix(line)).with_context(|| format!("no {line}"))?;
        Ok(value.trim().trim_end_matches(" kB").parse()?)
    }

    /// An error if it grew by more than so many MiB.
    fn check(&self, mib: u64) -> Result<()> {
        let grown = Self::read(self.pid, "VmHWM:")?.saturating_sub(self.before) >> 10;
        ensure!(grown <= mib, "it grew by {grown} MiB, at most {mib} are allowed");
        Ok(())
    }
}

async fn late(t: Arc<Test>) -> Result<()> {
    let copy = Copy::new(&t, "128Mi").await?;
    write(&t, &copy.fs_id, "b", &noise(8 << 20)).await?;
    let second = t.commit("c2", "d").await?;
    let commits = t.rig.node("n1")?.files.state.join("pool/fs").join(&copy.fs_id).join("commits");
    let whole = stream::kernel(Some(&commits.join(&copy.first)), &commits.join(&second))?;
    let half = whole.len() / 2;
    // A run that hangs in the middle; its job comes again and gets through.
    let mut old = copy.peer.offer(copy.offer(&second)).await?;
    old.data(whole.get(..half).unwrap_or_default()).await?;
    t.trigger("j", "again").await?;
    t.arrived(&copy.fs_id, &second, "n2", STEP).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    let before = t.replica(&copy.fs_id, "n2").await?["status"]["recentCommits"].clone();
    // Now the rest of the old one comes.
    let _ = old.data(whole.get(half..).unwrap_or_default()).await; // where the stream is closed already, so much the better
    let _ = old.end(&whole).await;
    refused(old.verdict().await, "Cancelled")?;
    // And a run that still believes in the base of then.
    refused(copy.peer.offer(copy.offer(&fresh_id())).await.map(|_| "accepted"), "Diverged")?;
    let mut forged = copy.offer(&fresh_id());
    forged.epoch = 0;
    refused(copy.peer.offer(forged).await.map(|_| "accepted"), "StaleEpoch")?;
    let after = t.replica(&copy.fs_id, "n2").await?["status"]["recentCommits"].clone();
    ensure!(before == after, "the commits on n2 have changed from {before} to {after}");
    copy.same(&second).await
}

/// n2's pool comes back from a backup with a copy that says it is the owner's.
async fn receiver_is_owner(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    write(&t, &fs_id, "a", b"from n1").await?;
    t.commit("c", "d").await?;
    let dir = |node: &str| anyhow::Ok(t.rig.node(node)?.files.state.join("pool/fs").join(&fs_id));
    let (ours, theirs) = (dir("n1")?, dir("n2")?);
    let pool = text(&t.object("NodePool", "n2").await?, "/status/pool")?;
    let mut meta: Value = serde_json::from_slice(&std::fs::read(ours.join("fs.json"))?)?;
    meta["pool"] = json!(pool);
    t.rig.kill9("n2")?;
    std::fs::create_dir(&theirs)?;
    std::fs::write(theirs.join("fs.json"), serde_json::to_vec(&meta)?)?;
    let made = std::process::Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(theirs.join("head")).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(theirs.join("head/b"), b"of n2 alone")?;
    t.rig.restart("n2").await?;
    t.push("j", "d", "n2").await?;
    t.condition("ReplicationJob", "j", "ReceiverIsOwner", "True", None).await?;
    let job = t.condition("ReplicationJob", "j", "Ready", "False", Some("ReceiverIsOwner")).await?;
    ensure!(job["status"]["state"] == "Completed", "it should be over: {}", job["status"]["state"]);
    ensure!(std::fs::read(theirs.join("head/b"))? == b"of n2 alone", "an owner's data was overwritten");
    // To a node that the operator knows as the owner no run is started at all.
    t.push("back", "d", "n1").await?;
    t.condition("ReplicationJob", "back", "TargetIsOwner", "True", None).await?;
    // And an agent refuses by itself, whoever says that it may.
    let peer = Peer::connect(&t.rig.node("n1")?.listen, &stolen_from(&t.rig, "n2")?).await?;
    let target = wire::Version { id: fresh_id(), epoch: 9, format: 1, ..wire::Version::default() };
    let offer = wire::Offer {
        fs_id: fs_id.clone(),
        job_uid: fresh_id(),
        run_id: fresh_id(),
        epoch: 9,
        target: Some(target),
        stream_version: 1,
        ..wire::Offer::default()
    };
    refused(peer.offer(offer).await.map(|_| "accepted"), "ReceiverIsOwner")
}
