//! Subvolumes that a pod makes inside its volume (failures.md row 26, ADR 14): directories in a commit and after a move, and no way around
//! the fence of an owner that has lost authority.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::io::Errno;
use serde_json::json;

use crate::data::digest::same_trees;
use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::wait::{eventually, throughout};
use crate::steps::left::noise;
use crate::steps::owner::{owned_by, place};
use crate::steps::stray::make_stray;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "26-nested",
            "nested subvolumes are directories in commits, on copies and after a move, with all that is in them",
            carried,
        ),
        Case::new(
            "move-promote-nested",
            "an owner that lost authority is fenced also where pods make subvolumes in its volume",
            no_second_writer,
        ),
        Case::new(
            "26-swap",
            "a swap file in use in the volume keeps commits and moves waiting, with a reason that says what to do; then they go on",
            swapped,
        ),
        Case::new(
            "26-stray",
            "a subvolume that a pod makes outside of its volume's quota counts in it seconds later, and people hear of it",
            counted,
        ),
    ]
}

fn btrfs(verb: &[&str], path: &Path) -> Result<()> {
    let output = Command::new("btrfs").args(verb).arg(path).output().context("running btrfs")?;
    ensure!(output.status.success(), "btrfs {verb:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A directory with a nested subvolume, one in that, and files in all of them.
fn furnish(head: &Path) -> Result<()> {
    std::fs::create_dir(head.join("var"))?;
    for path in ["var/images", "var/images/layer"] {
        btrfs(&["subvolume", "create"], &head.join(path))?;
        std::fs::write(head.join(path).join("large"), vec![7_u8; 3 << 20])?;
        std::fs::write(head.join(path).join("small"), path)?;
        std::fs::hard_link(head.join(path).join("small"), head.join(path).join("again"))?;
    }
    std::fs::write(head.join("var/images/layer/late"), b"not synced")?;
    Ok(())
}

/// A copy with plain directories, made by a program that isn't ours.
fn copy(t: &Test, head: &Path, name: &str) -> Result<PathBuf> {
    let to = t.dir.join(name);
    let output = Command::new("cp").arg("-a").args([head, &to]).output().context("running cp")?;
    ensure!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
    Ok(to)
}

/// A file in use as swap, until this goes.
struct Swap(PathBuf);

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
    }
}

impl Swap {
    /// A small one, without copy-on-write as btrfs wants it.
    fn on(file: PathBuf) -> Result<Self> {
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).arg(&file).output().with_context(|| format!("running {program}"))?;
            ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            anyhow::Ok(())
        };
        std::fs::File::create(&file)?;
        run("chattr", &["+C"])?;
        run("fallocate", &["-l", "1M"])?;
        run("chmod", &["600"])?;
        run("mkswap", &[])?;
        run("swapon", &["-p", "0"])?;
        Ok(Self(file))
    }
}

async fn swapped(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.rig.node("n1")?.files.state.join("pool/fs").join(&fs_id).join("head");
    let swap = Swap::on(head.join("swap"))?;
    t.create("Commit", "c", &json!({"source": {"kind": "Dot", "name": "d"}})).await?;
    eventually("the Commit to say why it waits", STEP, || async {
        let said = crate::rig::kube::conditions(&t.object("Commit", "c").await?);
        ensure!(said.contains("Ready=False") && said.contains("`swapoff` it"), "{said}");
        Ok(())
    })
    .await?;
    place(&t, "d", "n2").await?;
    eventually("the Dot to say why it doesn't move", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        let said = dot["status"]["migration"].to_string() + &dot["status"]["conditions"].to_string();
        ensure!(said.contains("SwapFile") && said.contains("`swapoff` it"), "{said}");
        Ok(())
    })
    .await?;
    drop(swap);
    owned_by(&t, "d", "n2").await?;
    t.ready("Commit", "c").await?;
    Ok(())
}

fn is_subvolume(path: &Path) -> Result<bool> {
    Ok(std::fs::metadata(path)?.ino() == 256)
}

async fn carried(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    furnish(&head)?;
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let (here, there) = (t.mount_commit("n1", &fs_id, &commit).await?, t.mount_commit("n2", &fs_id, &commit).await?);
    same_trees(&copy(&t, &head, "then")?, &here)?;
    same_trees(&here, &there)?;
    ensure!(is_subvolume(&head.join("var/images"))? && !is_subvolume(&here.join("var/images"))?, "the head is left as it is");
    for path in [&here, &there] {
        t.unmount(path).await?;
    }

    // What was written since goes along with a move, nested or not.
    std::fs::write(head.join("var/images/layer/small"), b"changed")?;
    let before = copy(&t, &head, "before")?;
    t.unmount(&head).await?;
    place(&t, "d", "n2").await?;
    owned_by(&t, "d", "n2").await?;
    let moved = t.mount("n2", &fs_id).await?;
    same_trees(&before, &moved)?;
    ensure!(!is_subvolume(&moved.join("var/images"))?);
    std::fs::write(moved.join("var/images/layer/new"), b"writable")?;
    t.unmount(&moved).await
}

/// Makes a subvolume below its argument and another in that, keeps a file in each open, and for each line on its input writes and syncs
/// both, and tries to make one more.
const WRITER: &str = r#"
import os, subprocess, sys
def make(path):
    return subprocess.run(["btrfs", "-q", "subvolume", "create", path], stderr=subprocess.DEVNULL).returncode == 0
at, fds = sys.argv[1], []
for name in ["mine", "inner"]:
    at = at + "/" + name
    assert make(at)
    fds.append(os.open(at + "/log", os.O_RDWR | os.O_CREAT))
n = 0
for line in sys.stdin:
    done = []
    for fd in fds:
        try:
            os.write(fd, b"x" * 4096); os.fsync(fd); done.append("wrote")
        except OSError: pass
    n += 1
    if make(at + "/more" + str(n)): done.append("made")
    print(" ".join(done), flush=True)
"#;

struct Writer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Writer {
    fn start(dir: &Path) -> Result<Self> {
        let mut child = Command::new("python3")
            .args(["-c", WRITER])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting python3")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output })
    }

    /// What it could do just now; empty: nothing.
    fn write(&mut self) -> Result<String> {
        writeln!(self.input)?;
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the writer died");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether what is written is refused for the quota.
fn is_full(dir: &Path) -> Result<bool> {
    match std::fs::write(dir.join("one more"), noise(1 << 20)) {
        Err(e) if e.raw_os_error() == Some(Errno::DQUOT.raw_os_error()) => Ok(true),
        other => Ok(other.map(|()| false)?),
    }
}

async fn counted(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot_of("d", &json!({"capacity": "32Mi", "historyLimit": "1Mi", "placement": {"node": "n1"}})).await?;
    let head = t.mount("n1", &fs_id).await?;
    make_stray(&head, "mine")?;
    // All of it fits where it is found later; sooner, less does. That it counted nowhere before is shown by the driver's tests.
    match std::fs::write(head.join("mine/f"), noise(80 << 20)) {
        Err(e) if e.raw_os_error() == Some(Errno::DQUOT.raw_os_error()) => {}
        written => written?,
    }
    eventually("the volume to be full", STEP, || async {
        ensure!(is_full(&head)? && is_full(&head.join("mine"))?, "it takes writes");
        Ok(())
    })
    .await?;
    let replica = text(&t.replica(&fs_id, "n1").await?, "/metadata/name")?;
    eventually("people to hear of it", STEP, || async {
        let said =
            t.kubectl(&["get", "events", "-A", "--field-selector", &format!("reason=QuotaEvaded,involvedObject.name={replica}")]).await?;
        ensure!(said.contains("`mine`"), "{said}");
        Ok(())
    })
    .await?;
    std::fs::remove_file(head.join("mine/f"))?;
    eventually("the volume to take writes again", STEP, || async {
        ensure!(!is_full(&head)?, "it is full");
        Ok(())
    })
    .await?;
    t.unmount(&head).await
}

async fn no_second_writer(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"committed")?;
    let commit = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let mut writer = Writer::start(&head)?;
    ensure!(writer.write()? == "wrote wrote made", "the test's own setup: it can't write");
    t.create("DotOperation", "now", &json!({"target": {"name": "d"}, "promote": {"node": "n2", "acceptLoss": true}})).await?;
    owned_by(&t, "d", "n2").await?;
    let there = t.mount("n2", &fs_id).await?;
    let writer = Mutex::new(writer);
    let write = || writer.lock().map_err(|_| anyhow!("poisoned"))?.write();
    eventually("the old owner to be fenced, and what is nested in it", STEP, || async {
        let did = write()?;
        ensure!(did.is_empty(), "two writers: it still {did}");
        Ok(())
    })
    .await?;
    throughout("it to stay so", std::time::Duration::from_secs(2), || async {
        let did = write()?;
        ensure!(did.is_empty(), "two writers: it still {did}");
        Ok(())
    })
    .await?;
    std::fs::write(there.join("b"), b"the one writer")?;
    let kept = head.join("mine/inner/log");
    ensure!(std::fs::metadata(&kept)?.len() >= 4096, "what only the old owner has is kept");
    drop(writer);
    t.unmount(&there).await?;
    t.unmount(&head).await
}
