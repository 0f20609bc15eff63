//! What happens to a node while volumes are in use: its agent dies again and again, is started twice, loses the API server;
//! and what users put into their volumes (failures.md rows 10, 26, 28).

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::data::digest::same_trees;
use crate::data::sqlite::{self, SqliteWriter};
use crate::harness::Case;
use crate::harness::test::Test;
use crate::rig::wait::eventually;
use crate::rig::{Options, unmount_below};
use crate::steps::loops::loops;

/// Longest that one step may take.
const STEP: Duration = Duration::from_secs(90);

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("26-names", "names of 255 bytes of anything, and many hard links, arrive exactly", names),
        Case::new("11-live", "a full volume fails writes of its own only; a delete frees it", full),
        Case::new("11-journal", "no space for the journal: nothing of the batch is seen, and it goes on by itself", journal_full),
        Case::new("10-watch-ends", "with the API server killed and back, all goes on", |t| away(t, "apiserver")),
        Case::new("10-etcd", "with etcd killed and back, all goes on", |t| away(t, "etcd")),
        Case::new("28-twice", "an agent started twice: the second refuses, the first goes on", twice),
        Case::new("28-killed", "an agent killed 100 times under write load: one superblock, no lost byte", killed),
        Case::new("24-no-disk", "a node started without its pool: PoolMissing, never an empty volume", no_disk).own(Options::default()),
    ]
}

async fn names(t: Arc<Test>) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    for byte in [b'\n', b' ', b'\\', 0x01, 0x7f, 0x80, 0xff] {
        let name = [byte; 255];
        std::fs::write(head.join(std::ffi::OsStr::from_bytes(&name)), [byte])?;
    }
    let linked = head.join("linked");
    std::fs::write(&linked, b"once")?;
    for i in 0..2000 {
        std::fs::hard_link(&linked, head.join(format!("link{i}")))?;
    }
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let (here, there) = (t.mount_commit("n1", &fs_id, &commit).await?, t.mount_commit("n2", &fs_id, &commit).await?);
    same_trees(&here, &there)?;
    for path in [&here, &there, &head] {
        t.unmount(path).await?;
    }
    Ok(())
}

async fn away(t: Arc<Test>, program: &'static str) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    t.rig.kill9(program)?;
    std::fs::write(head.join("meanwhile"), b"pods write on")?;
    t.rig.restart(program).await?;
    t.rig.ready(STEP).await?;
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let there = t.mount_commit("n2", &fs_id, &commit).await?;
    ensure!(std::fs::read(there.join("meanwhile"))? == b"pods write on", "what was written meanwhile is not there");
    t.unmount(&there).await?;
    t.unmount(&head).await
}

async fn twice(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let twin = t.rig.processes.start_twin("n1")?;
    eventually("the second agent to refuse", STEP, || async {
        let status = t.rig.processes.exited(&twin)?.context("it runs")?;
        ensure!(!status.success(), "it ended as if all were well");
        Ok(())
    })
    .await?;
    t.rig.processes.forget(&twin)?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"a")?;
    t.unmount(&head).await?;
    t.commit("c", "d").await.map(drop)
}

async fn killed(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    let (superblock, before) = (std::fs::metadata(&head)?.dev(), loops(&t.rig.node("n1")?.files.pool_file)?);
    let (database, notes) = (head.join("d.db"), t.dir.join("notes"));
    let writer = SqliteWriter::start(&database, &notes).await?;
    for _ in 0..100 {
        t.rig.kill9("n1")?;
        t.rig.start("n1")?;
        // Some die early, while they recover, some when they are up.
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    t.rig.ready(STEP).await?;
    let acknowledged = writer.stop()?;
    ensure!(std::fs::metadata(&head)?.dev() == superblock, "another superblock");
    let after = loops(&t.rig.node("n1")?.files.pool_file)?;
    ensure!(before.len() == 1 && after == before, "the pool's loop devices were {before:?} and are {after:?}");
    let scratch = t.dir.join("scratch");
    std::fs::create_dir_all(&scratch)?;
    sqlite::check(&database, &scratch, acknowledged)?;
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let there = t.mount_commit("n2", &fs_id, &commit).await?;
    let copied = t.dir.join("copied");
    std::fs::create_dir_all(&copied)?;
    sqlite::check(&there.join("d.db"), &copied, acknowledged)?;
    t.unmount(&there).await?;
    t.unmount(&head).await
}

async fn full(t: Arc<Test>) -> Result<()> {
    let small = json!({"capacity": "64Mi", "historyLimit": "16Mi", "placement": {"node": "n1"}});
    let (guilty, other) = (t.dot_of("guilty", &small).await?, t.dot("other", "n1").await?);
    let (guilty, other) = (t.mount("n1", &guilty).await?, t.mount("n1", &other).await?);
    let fill = |name: &str| -> std::io::Result<()> {
        let file = std::fs::File::create(guilty.join(name))?;
        let noise: Vec<u8> = (0..1u32 << 18).flat_map(|i| i.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
        (0..160).try_for_each(|_| std::io::Write::write_all(&mut &file, &noise).and_then(|()| file.sync_data()))
    };
    let error = fill("big").err().context("160 MiB fit into a volume of 80")?;
    ensure!(error.raw_os_error() == Some(rustix::io::Errno::DQUOT.raw_os_error()), "not the volume's own limit: {error}");
    std::fs::write(other.join("a"), vec![7u8; 8 << 20])?;
    t.commit("c", "other").await?;
    std::fs::remove_file(guilty.join("big"))?;
    eventually("room again in the volume", STEP, || async {
        std::fs::write(guilty.join("small"), vec![1u8; 1 << 20])?;
        Ok(std::fs::File::open(guilty.join("small"))?.sync_all()?)
    })
    .await?;
    t.unmount(&guilty).await?;
    t.unmount(&other).await
}

async fn journal_full(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    // The first two commits of the journal that hold this record fail as on a full disk.
    t.rig.restart_with_env("n1", "DOTGRAFT_FAILPOINT", Some("error:committed#1,error:committed#2")).await?;
    let id = t.commit("c", "d").await?;
    let replica = t.replica(&fs_id, "n1").await?;
    let commits = replica.pointer("/status/recentCommits").cloned().unwrap_or_default();
    ensure!(commits.as_array().is_some_and(|c| c.len() == 1), "one commit was asked for: {commits}");
    ensure!(commits.to_string().contains(&id), "another commit than was told: {commits}");
    let log = std::fs::read_to_string(t.rig.processes.log("n1"))?;
    ensure!(log.contains("rebuilding from the journal"), "the journal never failed");
    Ok(())
}

async fn no_disk(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"precious")?;
    t.unmount(&head).await?;
    let files = t.rig.node("n1")?.files.clone();
    let elsewhere = files.pool_file.with_extension("away");
    t.rig.kill9("n1")?;
    unmount_below(&files.state.join("pool"));
    std::fs::rename(&files.pool_file, &elsewhere)?;
    t.rig.start("n1")?;
    let pool_says = |status: &'static str, reason: Option<&'static str>| {
        let kube = t.kube();
        async move { kube.until_condition(("NodePool", "", "n1"), ("Ready", status, reason), STEP).await }
    };
    pool_says("False", Some("PoolMissing")).await?;
    ensure!(!files.pool_file.exists(), "something was made in the pool's place");
    std::fs::rename(&elsewhere, &files.pool_file)?;
    pool_says("True", None).await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(std::fs::read(head.join("a"))? == b"precious", "the file is not what it was");
    t.unmount(&head).await
}
