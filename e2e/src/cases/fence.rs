//! The fence of storage.md §3 on a running agent: what writes, however it holds the head, is stopped, and goes on after the thaw.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::same_trees;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::{eventually, throughout};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("fence-writers", "a fence stops descriptors, O_DIRECT and mappings in other mount namespaces, over a kill", writers),
        Case::new("fence-thaw", "commits wait for the thaw, and the head takes writes again", thaw),
    ]
}

/// Opens three files below its argument and, for each line on its input, writes them by descriptor, by `O_DIRECT` and by a shared mapping
/// (whose SIGBUS only a child gets).
const WRITER: &str = r#"
import errno, mmap, os, sys
dir = sys.argv[1]
def make(name, flags):
    fd = os.open(dir + "/" + name, os.O_RDWR | os.O_CREAT | flags)
    os.truncate(fd, 1 << 20)
    return fd
plain, direct, mapped = make("plain", 0), make("direct", os.O_DIRECT), make("mapped", 0)
os.pwrite(mapped, b"x" * (1 << 20), 0)
os.fsync(mapped)
page = mmap.mmap(-1, 4096)
shared = mmap.mmap(mapped, 1 << 20)
def write(fd, data):
    try:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
        return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
def store(byte):
    child = os.fork()
    if child == 0:
        shared[0:1] = byte
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return "signal" + str(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else "ok"
for line in sys.stdin:
    byte = line.strip().encode()
    page[:] = byte * 4096
    print(write(plain, byte * 4096), write(direct, page), store(byte), flush=True)
"#;

struct Writer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Writer {
    fn start(dir: &Path) -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "python3", "-c", WRITER])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting python3 in a mount namespace of its own")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output })
    }

    /// How writes of `byte` by descriptor, by `O_DIRECT` and by the mapping end.
    fn write(&mut self, byte: char) -> Result<Vec<String>> {
        writeln!(self.input, "{byte}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn writers(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let mount = t.mount("n1", &fs_id).await?;
    let mut writer = Writer::start(&mount)?;
    ensure!(writer.write('a')? == ["ok", "ok", "ok"], "the test's own setup: it can't write");
    let refused = t.local("n1")?.fence(&fs_id, false).await.err().context("a mounted head must not be fenced without force")?;
    ensure!(format!("{refused:?}").contains(&*mount.to_string_lossy()), "the refusal must name the mount: {refused:?}");
    ensure!(writer.write('b')? == ["ok", "ok", "ok"], "a refused fence must change nothing");

    let (snapshot, _) = t.local("n1")?.fence(&fs_id, true).await?;
    let commit = t.mount_commit("n1", &fs_id, &snapshot).await?;
    let head = t.rig.node("n1")?.files.state.join("pool/fs").join(&fs_id).join("head");
    same_trees(&head, &commit)?;
    ensure!(std::fs::read(commit.join("plain"))?.starts_with(b"bbbb"), "the snapshot must hold what was acknowledged");
    stopped(&mut writer, 'c')?;
    same_contents(&head, &commit)?;
    t.rig.restart("n1").await?;
    stopped(&mut writer, 'd')?;
    same_contents(&head, &commit)?;
    t.unmount(&commit).await?;

    eventually("the thaw", STEP, || async { t.local("n1")?.thaw(&fs_id).await }).await?;
    ensure!(writer.write('e')? == ["ok", "ok", "ok"], "after the thaw all must go on");
    ensure!(std::fs::read(mount.join("mapped"))?.starts_with(b"e"), "the mapping's store must be in the file");
    drop(writer);
    Ok(())
}

/// The kernel may show a refused write's time until the inode leaves its memory; the bytes must not change.
fn same_contents(head: &Path, commit: &Path) -> Result<()> {
    for name in ["plain", "direct", "mapped"] {
        ensure!(std::fs::read(head.join(name))? == std::fs::read(commit.join(name))?, "{name} has changed under the fence");
    }
    Ok(())
}

fn stopped(writer: &mut Writer, byte: char) -> Result<()> {
    let ends = writer.write(byte)?;
    let refused = |end: &String| end == "EDQUOT" || end == "EROFS";
    ensure!(ends.iter().take(2).all(refused) && ends.get(2).is_some_and(|e| e == "signal7"), "writes under the fence ended with {ends:?}");
    Ok(())
}

async fn thaw(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"one")?;
    t.unmount(&head).await?;
    let (snapshot, generation) = t.local("n1")?.fence(&fs_id, false).await?;
    let again = t.local("n1")?.fence(&fs_id, false).await?;
    ensure!(again.0 == snapshot && generation > 0, "a second fence must be the first");
    t.create("Commit", "c", &json!({"source": {"kind": "Dot", "name": "d"}})).await?;
    ensure!(t.local("n1")?.mount(&fs_id, &t.dir.join("no"), None).await.is_err(), "a fenced head must not be mounted");
    throughout("a fence", Duration::from_secs(1), || async {
        let commit = t.object("Commit", "c").await?;
        let ready = crate::rig::kube::condition_of(&commit, "Ready").is_some_and(|c| c["status"] == *"True");
        ensure!(!ready, "a commit was made under the fence");
        Ok(())
    })
    .await?;
    t.local("n1")?.thaw(&fs_id).await?;
    t.ready("Commit", "c").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"two")?;
    let status: Value = t.local("n1")?.status(&fs_id).await?;
    ensure!(status.pointer("/frozen").or_else(|| status.pointer("/0/frozen")).is_none_or(Value::is_null), "still frozen: {status}");
    Ok(())
}
