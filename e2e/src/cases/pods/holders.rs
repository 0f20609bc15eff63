//! Who holds on to a volume when its pod is gone (design: "nothing acknowledged before the fence is missing"): mounts in other namespaces
//! keep a move waiting and are named; a bare descriptor doesn't, and can't write any more.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use crate::data::synced;
use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::machine::Machine;
use crate::rig::wait::eventually;
use crate::steps::pods::writer::Writer;
use crate::steps::pods::{STEP, claim, clear, fs_id, node_of, pods};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "pods-holders",
        "after a pod: a leaked descriptor, a mount namespace and a hostPath copy of the kubelet's directory can't write once the volume has moved",
        holders,
    )
    .kubelets()]
}

/// Opens the file of its argument, leaves every mount that it can, and for each line on its input writes and syncs.
const LEAK: &str = r#"
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print("open", flush=True)
for line in sys.stdin:
    try:
        os.pwrite(fd, line.encode(), 0)
        os.fsync(fd)
        print("ok", flush=True)
    except OSError as e:
        print(errno.errorcode[e.errno], flush=True)
"#;

/// A process on a machine that holds a file of the volume, as a program that outlives its pod.
struct Leaked {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Leaked {
    /// In the machine's own mount namespace.
    fn start(machine: &Machine, file: &Path) -> Result<Self> {
        let mut command = machine.enter(Path::new("python3"))?;
        Self::spawn(command.args(["-c", LEAK]).arg(file))
    }

    /// In a mount namespace of its own, in which the volume at `path` is mounted at another place, too.
    fn start_apart(machine: &Machine, path: &Path) -> Result<Self> {
        let mut command = machine.enter(Path::new("unshare"))?;
        let script = "mount --bind \"$0\" /mnt && exec python3 -c \"$1\" /mnt/apart";
        Self::spawn(command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(path).arg(LEAK))
    }

    fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut leaked = Self { child, input, output };
        ensure!(leaked.line()? == "open", "it could not open its file");
        ensure!(leaked.write()? == "ok", "it could not write its file");
        Ok(leaked)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// How a write with fsync ends.
    fn write(&mut self) -> Result<String> {
        writeln!(self.input, "x")?;
        self.line()
    }
}

impl Drop for Leaked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn holders(t: Arc<Test>) -> Result<()> {
    claim(&t, "data", "256Mi").await?;
    let writer = Writer::start(&t, "w", "data", "n1").await?;
    let id = fs_id(&t, "data").await?;
    let machine = t.rig.machine("n1")?;
    let table = machine.run("cat", &["/proc/self/mounts"])?;
    let line = table.lines().find(|l| l.contains(&id) && l.contains("/pods/")).context("the pod's mount")?;
    let path = line.split(' ').nth(1).context("no path")?.to_owned();
    // As a backup agent does that mounts /var/lib/kubelet into its pod: a copy of the mounts, private to that pod.
    copy_of_kubelet(&t).await?;
    let mut bare = Leaked::start(machine, &Path::new(&path).join("bare"))?;
    let mut apart = Leaked::start_apart(machine, Path::new(&path))?;
    writer.goes_on(&t, 50).await?;
    t.kubectl(&["delete", "pod", "w", "--wait=false"]).await?;
    eventually("the agent to say who uses the pod's mount", STEP, || async {
        let log = std::fs::read_to_string(t.rig.processes.log("n1"))?;
        let said = log.lines().rev().find(|l| l.contains(&path) && l.contains("which uses")).context("nothing yet")?;
        ensure!(said.contains("python3 (pid"), "{said}");
        Ok(())
    })
    .await?;
    // Somebody takes the mount away by force; the descriptor stays.
    machine.run("umount", &["--lazy", &path])?;
    t.kubectl(&["wait", "--for=delete", "pod", "w", "--timeout=180s"]).await?;
    let acknowledged = writer.noted(&t)?.newest;
    let next = Writer::named("w2", "n3");
    next.apply(&t, "data").await?;
    named(&t, "python3").await.context("the process in a mount namespace of its own")?;
    ensure!(apart.write()? == "ok" && bare.write()? == "ok", "while the move waits, nothing is fenced");
    drop(apart);
    // A bare descriptor is no mount: the fence stops it.
    next.started(&t).await?;
    ensure!(node_of(&t, "w2").await? == "n3", "it is elsewhere");
    let end = bare.write()?;
    ensure!(["EROFS", "EDQUOT", "EIO", "ESTALE"].contains(&&*end), "after the move a write on the old node ended with {end:?}");
    let late = format!("echo late > /kubelet{}/late", path.trim_start_matches("/var/lib/kubelet"));
    ensure!(t.kubectl(&["exec", "copy", "--", "sh", "-c", &late]).await.is_err(), "the hostPath copy can still write");
    println!("        a descriptor that outlived its pod and the move: {end}");
    let found = synced::check(&next.file(&t).await?, acknowledged)?;
    ensure!(found >= acknowledged, "{found}");
    drop(bare);
    clear(&t, &["data"]).await
}

/// A pod that has the kubelet's directory of n1 by hostPath, without propagation.
async fn copy_of_kubelet(t: &Test) -> Result<()> {
    t.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: copy, namespace: NAMESPACE}\nspec:\n  nodeName: n1\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: busybox:1\n    imagePullPolicy: Never\n    \
         command: [sleep, \"1000\"]\n    volumeMounts: [{name: kubelet, mountPath: /kubelet}]\n  volumes:\n  - name: kubelet\n    \
         hostPath: {path: /var/lib/kubelet}\n",
    )
    .await?;
    crate::steps::pods::ready(t, "copy", "").await.map(|_| ())
}

/// The move waits, and says for whom; so does the pod that waits for it.
async fn named(t: &Test, command: &str) -> Result<()> {
    eventually(&format!("the move to wait for {command}"), STEP, || async {
        let dot = t.object("Dot", "data").await?;
        let said = conditions(&dot);
        ensure!(said.contains("WaitingForPods") && said.contains(&format!("{command} (pid")), "{said}");
        Ok(())
    })
    .await?;
    let pod = pods(t).get("w2").await?;
    let running = pod.status.and_then(|s| s.container_statuses).unwrap_or_default().iter().any(|c| c.ready);
    ensure!(!running, "the pod runs on the new node before the old one has let go");
    Ok(())
}
