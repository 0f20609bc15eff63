//! The disk under a node: gone with the machine, seen twice, or not to be written to (failures.md rows 24, 25).

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use serde_json::{Value, json};

use crate::data::sqlite::{self, SqliteWriter};
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::eventually;
use crate::rig::{Options, ports, unmount_below};
use crate::steps::loops::loops;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("24-twice", "a pool file opened twice: one superblock", twice),
        Case::new("pool-size", "another size is asked for than the pool's file has: it keeps its own, and says so", other_size),
        Case::new("25-read-only", "a pool forced read-only: PoolFailed, reads stay", read_only),
        Case::new("24-reinstalled", "a node reinstalled under its name, with an empty pool: PoolMissing", reinstalled)
            .own(Options::default()),
    ]
}

async fn write(t: &Test, fs_id: &str, name: &str, content: &[u8]) -> Result<()> {
    let head = t.mount("n1", fs_id).await?;
    std::fs::write(head.join(name), content)?;
    t.unmount(&head).await
}

async fn pool_says(t: &Test, status: &str, reason: Option<&str>) -> Result<Value> {
    t.kube().until_condition(("NodePool", "", "n1"), ("Ready", status, reason), STEP).await
}

async fn other_size(t: Arc<Test>) -> Result<()> {
    let before = t.object("NodePool", "n1").await?["status"]["capacityBytes"].clone();
    let args = t.rig.processes.args("n1")?;
    let mut other = args.clone();
    let at = other.iter().position(|a| a == "--pool-file-size").context("the agent has no size")?;
    "7Gi".clone_into(other.get_mut(at + 1).context("a size")?);
    t.rig.processes.set_args("n1", other)?;
    t.rig.restart("n1").await?;
    let pool = t.kube().until_condition(("NodePool", "", "n1"), ("SizeDiffers", "True", None), STEP).await?;
    ensure!(conditions(&pool).contains("7Gi are asked for") && pool["status"]["capacityBytes"] == before, "{}", pool["status"]);
    t.rig.processes.set_args("n1", args)?;
    t.rig.restart("n1").await?;
    eventually("it to be over", STEP, || async {
        let pool = t.object("NodePool", "n1").await?;
        ensure!(!conditions(&pool).contains("SizeDiffers"), "{}", conditions(&pool));
        Ok(())
    })
    .await
}

// ---- 24-twice ----

async fn twice(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    let files = t.rig.node("n1")?.files.clone();
    let (superblock, before) = (std::fs::metadata(&head)?.dev(), loops(&files.pool_file)?);
    ensure!(before.len() == 1, "the pool's file is behind {before:?}");
    let database = head.join("d.db");
    let writer = SqliteWriter::start(&database, &t.dir.join("notes")).await?;
    // A second agent that shares nothing with the first but the node's name and the pool; then one that has its state directory too.
    let address = t.object("NodePool", "n1").await?["spec"]["address"].clone();
    for state in [t.dir.join("state"), files.state.clone()] {
        second_agent_refuses(&t, &state).await?;
    }
    ensure!(std::fs::metadata(&head)?.dev() == superblock, "another superblock");
    ensure!(loops(&files.pool_file)? == before, "another loop device: {:?}", loops(&files.pool_file)?);
    let now = t.object("NodePool", "n1").await?["spec"]["address"].clone();
    ensure!(now == address, "peers are sent to the second agent, {now} in place of {address}");
    let acknowledged = writer.stop()?;
    let scratch = t.dir.join("scratch");
    std::fs::create_dir_all(&scratch)?;
    sqlite::check(&database, &scratch, acknowledged)?;
    t.commit("c", "d").await?;
    t.unmount(&head).await
}

async fn second_agent_refuses(t: &Test, state: &Path) -> Result<()> {
    let processes = &t.rig.processes;
    let mut args = processes.args("n1")?;
    let other = [
        ("--state-dir", state.to_string_lossy().into_owned()),
        ("--listen", format!("127.0.0.1:{}", ports::free()?)),
        ("--http", format!("127.0.0.1:{}", ports::free()?)),
        ("--socket", t.dir.join("twin.sock").to_string_lossy().into_owned()),
    ];
    for (flag, value) in other {
        let at = args.iter().position(|a| a == flag).with_context(|| format!("no {flag}"))?;
        *args.get_mut(at + 1).context("no value")? = value;
    }
    let original = processes.args("n1")?;
    processes.set_args("n1", args)?;
    let twin = processes.start_twin("n1");
    processes.set_args("n1", original)?;
    let twin = twin?;
    eventually("the second agent to refuse", STEP, || async {
        let status = processes.exited(&twin)?.context("it runs")?;
        ensure!(!status.success(), "it ended as if all were well");
        Ok(())
    })
    .await?;
    let log = std::fs::read_to_string(processes.log(&twin))?;
    let last: String = log.rsplit("starting").next().unwrap_or_default().chars().take(2000).collect();
    ensure!(last.contains("in use by another agent"), "it ended for another reason: {last}");
    std::fs::remove_file(processes.log(&twin))?;
    processes.forget(&twin)
}

// ---- 24-reinstalled ----

async fn reinstalled(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    write(&t, &fs_id, "a", b"precious").await?;
    t.commit("c", "d").await?;
    let files = t.rig.node("n1")?.files.clone();
    let kept = files.pool_file.with_extension("kept");
    t.rig.kill9("n1")?;
    unmount_below(&files.state);
    std::fs::remove_dir_all(&files.state)?;
    std::fs::rename(&files.pool_file, &kept)?;
    // Nothing at all; a disk that is empty; a disk that some other node's agent has formatted.
    t.rig.start("n1")?;
    missing(&t, &fs_id, "nothing").await?;
    ensure!(!files.pool_file.exists(), "a pool was made in the place of the lost one");
    let disk = File::options().read(true).write(true).create_new(true).open(&files.pool_file)?;
    disk.set_len(1 << 30)?;
    missing(&t, &fs_id, "no btrfs").await?;
    let mut magic = [0; 8];
    disk.read_exact_at(&mut magic, 0x1_0040)?;
    ensure!(magic == [0; 8], "the empty disk was formatted");
    drop(disk);
    let made = Command::new("mkfs.btrfs").args(["-q", "-f", "-L", "dotgraft-pool"]).arg(&files.pool_file).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    missing(&t, &fs_id, "has pool ").await?;
    // The old disk is found: all is as it was, without the journal.
    t.rig.kill9("n1")?;
    std::fs::rename(&kept, &files.pool_file)?;
    t.rig.restart("n1").await?;
    pool_says(&t, "True", None).await?;
    t.ready("Dot", "d").await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(std::fs::read(head.join("a"))? == b"precious", "the file is not what it was");
    t.unmount(&head).await?;
    let next = t.commit("next", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &next, "n2", STEP).await
}

/// The pool is said to be missing, `found` is there instead, and nobody gets an empty volume in its place.
async fn missing(t: &Test, fs_id: &str, found: &str) -> Result<()> {
    eventually("PoolMissing, with what is there instead", STEP, || async {
        let pool = t.object("NodePool", "n1").await?;
        let said = conditions(&pool);
        ensure!(said.contains("Ready=False PoolMissing") && said.contains(found), "{said}");
        Ok(())
    })
    .await?;
    let target = t.dir.join("nothing-to-mount");
    let mounted = match t.local("n1") {
        Ok(local) => local.mount(fs_id, &target, None).await.is_ok(),
        Err(_) => false,
    };
    ensure!(!mounted, "an empty volume was mounted in its place");
    eventually("the Dot to say that it isn't there", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        let said = conditions(&dot);
        ensure!(!said.contains("Ready=True"), "{said}");
        Ok(())
    })
    .await
}

// ---- 25-read-only ----

async fn read_only(t: Arc<Test>) -> Result<()> {
    let (fs_id, alone) = (t.dot("d", "n1").await?, t.dot("alone", "n1").await?);
    write(&t, &fs_id, "a", b"precious").await?;
    let first = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    write(&t, &alone, "a", b"only here").await?;
    let only = t.commit("only", "alone").await?;
    let head = t.mount("n1", &fs_id).await?;
    let pool: PathBuf = t.rig.node("n1")?.files.state.join("pool");
    let pid = t.rig.processes.pid("n1")?;
    eventually("the pool to be read-only", STEP, || async { Ok(mount_remount(&pool, MountFlags::RDONLY, "")?) }).await?;
    let result = while_read_only(&t, &head, (&fs_id, &first), (&alone, &only)).await;
    mount_remount(&pool, MountFlags::empty(), "").context("writable again")?;
    result?;
    ensure!(t.rig.processes.pid("n1")? == pid, "the agent was restarted");
    pool_says(&t, "True", None).await?;
    std::fs::write(head.join("b"), b"written after")?;
    t.unmount(&head).await?;
    // What was asked for meanwhile is done, and later ones too.
    t.ready("Commit", "c2").await?;
    let third = t.commit("c3", "d").await?;
    t.trigger("j", "again").await?;
    t.arrived(&fs_id, &third, "n2", STEP).await
}

async fn while_read_only(t: &Test, head: &Path, (fs_id, first): (&str, &str), (alone, only): (&str, &str)) -> Result<()> {
    let pool = pool_says(t, "False", Some("PoolFailed")).await?;
    ensure!(conditions(&pool).contains("PoolFailed=True"), "{}", conditions(&pool));
    let refused = std::fs::write(head.join("b"), b"b").err().context("a write went through")?;
    ensure!(refused.raw_os_error() == Some(Errno::ROFS.raw_os_error()), "not for that reason: {refused}");
    ensure!(std::fs::read(head.join("a"))? == b"precious", "the head can't be read");
    let commit = t.mount_commit("n1", fs_id, first).await?;
    ensure!(std::fs::read(commit.join("a"))? == b"precious", "a commit can't be read");
    t.unmount(&commit).await?;
    let copy = t.mount_commit("n2", fs_id, first).await?;
    ensure!(std::fs::read(copy.join("a"))? == b"precious", "the replica can't be read");
    t.unmount(&copy).await?;
    t.create("Commit", "c2", &json!({"source": {"kind": "Dot", "name": "d"}})).await?;
    eventually("the commit to be refused as PoolFailed", STEP, || async {
        let replica = t.replica(fs_id, "n1").await?.to_string();
        ensure!(replica.contains("PoolFailed"), "not yet");
        Ok(())
    })
    .await?;
    // What is only here can still be brought to safety.
    t.push("rescue", "alone", "n2").await?;
    t.arrived(alone, only, "n2", STEP).await
}
