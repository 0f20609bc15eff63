//! Rows 3, 8, 17 and 24 of the table of failures with real pods: what holds a volume keeps it, a move that can't be waits, the kubelet's
//! directories are only emptied by hand, and a node without its disk starts no pod on nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::{Case, Test};
use crate::rig::kube::{condition_of, conditions};
use crate::rig::pools::NodeFiles;
use crate::rig::wait::{eventually, throughout};
use crate::steps::pod::{WRITER, claim, filesystem, grows, lines, pod, says, started, stop, written};

/// Longest that one step with a pod may take.
const STEP: Duration = Duration::from_secs(180);
/// Writes a word, once.
const WORD: &str = "[ -e /data/word ] || echo written > /data/word; sync; sleep 1000";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "3-published/pods",
            "Dot and PVC deleted under a pod wait for it, then for another mount of the volume, by name; then all goes",
            held,
        )
        .kubelets(),
        Case::new(
            "8-unreachable/pods",
            "a pod sent to a node that the owner can't reach waits, and says why; reachable again, it has all",
            unreached,
        )
        .kubelets(),
        Case::new(
            "17-rmdir/pods",
            "files where a pod's volume was mounted stay, the pod's end waits for them, and the volume keeps all",
            stray,
        )
        .kubelets(),
        Case::new(
            "24-no-disk/pods",
            "a node booted without its disk: PoolMissing, no pod on an empty volume; with it, all is there",
            no_disk,
        )
        .kubelets(),
        Case::new(
            "24-reinstalled/pods",
            "a node reinstalled under its name, with a new disk: PoolMissing, no pod on an empty volume; with the old disk, all is there",
            reinstalled,
        )
        .kubelets()
        .within(STEP * 3),
    ]
}

async fn gone(t: &Test) -> Result<()> {
    t.kubectl(&["delete", "pod,pvc", "--all", "--timeout=180s"]).await?;
    t.kube().gone("Dot", &t.namespace, "data", STEP).await
}

async fn held(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    pod(&t, "p", "data", "n2", WRITER).await?;
    started(&t, "p").await?;
    let fs_id = filesystem(&t, "data").await?;
    t.kubectl(&["delete", "dot", "data", "--wait=false"]).await?;
    t.condition("Dot", "data", "Ready", "False", Some("ClaimBound")).await?;
    t.kubectl(&["delete", "pvc", "data", "--wait=false"]).await?;
    grows(&t, "n2", &fs_id, "log").await?;
    // Someone on the node has it mounted once more. (A copy of the kubelet's own mounts, in another namespace, goes with their directories.)
    let machine = t.rig.machine("n2")?;
    machine.run("mount", &["--bind", &target(&t, "p").await?.to_string_lossy(), "/mnt"])?;
    stop(&t, "p").await?;
    eventually("the deletion to name what holds it", STEP, || async {
        let dot = t.object("Dot", "data").await?;
        ensure!(conditions(&dot).contains("at /mnt"), "{}", conditions(&dot));
        Ok(())
    })
    .await?;
    ensure!(lines(&written(&t, "n2", &fs_id, "log")?)? > 0, "it was deleted under a mount");
    machine.run("umount", &["/mnt"])?;
    gone(&t).await
}

async fn unreached(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    pod(&t, "first", "data", "n1", WRITER).await?;
    started(&t, "first").await?;
    let fs_id = filesystem(&t, "data").await?;
    grows(&t, "n1", &fs_id, "log").await?;
    t.commit("c", "data").await?;
    let (n1, n2) = (t.rig.machine("n1")?, t.rig.machine("n2")?);
    n2.refuse(&n1.address())?;
    stop(&t, "first").await?;
    let all = lines(&written(&t, "n1", &fs_id, "log")?)?;
    pod(&t, "second", "data", "n2", "sleep 1000").await?;
    eventually("the Dot to say why its volume isn't there", STEP, || async {
        let dot = t.object("Dot", "data").await?;
        let said = condition_of(&dot, "Migrating").and_then(|c| c["message"].as_str()).unwrap_or_default();
        ensure!(said.contains("did not answer"), "{}", conditions(&dot));
        Ok(())
    })
    .await?;
    let a = t.object("Filesystem", &fs_id).await?["status"]["authority"].clone();
    ensure!(a["epoch"] == 1 && a["owner"]["node"] == "n1" && a["pending"].is_null(), "it was fenced for a node that can't be reached: {a}");
    n2.heal()?;
    started(&t, "second").await?;
    ensure!(lines(&written(&t, "n2", &fs_id, "log")?)? == all, "{all} lines are not all there");
    t.kubectl(&["delete", "commits.dotgraft.dev", "c", "--wait=false"]).await?;
    gone(&t).await
}

/// Where the kubelet has a pod's volume, inside its node.
async fn target(t: &Test, pod: &str) -> Result<PathBuf> {
    let uid = t.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]).await?;
    let volume = t.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}"]).await?;
    Ok(PathBuf::from(format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount")))
}

async fn stray(t: Arc<Test>) -> Result<()> {
    claim(&t, "data").await?;
    pod(&t, "p", "data", "n3", WORD).await?;
    started(&t, "p").await?;
    says(&t, "p", "/data/word", "written").await?;
    let fs_id = filesystem(&t, "data").await?;
    let (machine, target) = (t.rig.machine("n3")?, target(&t, "p").await?);
    machine.run("umount", &[&target.to_string_lossy()])?;
    let file = machine.outside(&target)?.join("stray");
    std::fs::write(&file, "stray").with_context(|| format!("writing {}", file.display()))?;
    t.kubectl(&["delete", "pod", "p", "--wait=false"]).await?;
    let at = target.to_string_lossy().into_owned();
    eventually("its container to have ended", STEP, || async {
        let log = std::fs::read_to_string(t.rig.processes.log("n3"))?;
        ensure!(log.lines().any(|l| l.contains("left alone") && l.contains(&at)), "nobody has asked to unpublish it");
        Ok(())
    })
    .await?;
    throughout("the file being there", Duration::from_secs(2), || async {
        ensure!(std::fs::read_to_string(&file)? == "stray", "it is another");
        Ok(())
    })
    .await?;
    ensure!(written(&t, "n3", &fs_id, "word")? == "written\n", "the volume's own file");
    std::fs::remove_file(&file)?;
    t.kubectl(&["wait", "--for=delete", "pod/p", "--timeout=180s"]).await?;
    ensure!(!machine.outside(&target)?.exists(), "the directory stayed");
    pod(&t, "next", "data", "n3", "cat /data/word; sleep 1000").await?;
    started(&t, "next").await?;
    eventually("it to read what the first pod wrote", STEP, || async {
        let said = t.kubectl(&["logs", "next"]).await?;
        ensure!(said == "written\n", "it says {said:?}");
        Ok(())
    })
    .await?;
    gone(&t).await
}

async fn no_disk(t: Arc<Test>) -> Result<()> {
    lost_and_found(&t, |_| Ok(())).await
}

/// As by an installer that knows nothing of what was there: no state, and a new disk in the old one's place.
async fn reinstalled(t: Arc<Test>) -> Result<()> {
    lost_and_found(&t, |files| {
        std::fs::remove_dir_all(&files.state)?;
        std::fs::File::create_new(&files.pool_file)?.set_len(1 << 30)?;
        Ok(())
    })
    .await
}

/// n3 loses power, its disk, and what else is lost; its pod gets no empty volume. With its disk again, the pod has what it had.
async fn lost_and_found(t: &Test, lose: impl FnOnce(&NodeFiles) -> Result<()>) -> Result<()> {
    claim(t, "data").await?;
    pod(t, "p", "data", "n3", WORD).await?;
    started(t, "p").await?;
    says(t, "p", "/data/word", "written").await?;
    let files = t.rig.node("n3")?.files.clone();
    let elsewhere = files.pool_file.with_extension("away");
    t.rig.power_off("n3")?;
    std::fs::rename(&files.pool_file, &elsewhere)?;
    lose(&files)?;
    let in_its_place = std::fs::metadata(&files.pool_file).ok().map(|m| m.blocks());
    t.rig.boot("n3").await?;
    let pool = |status: &'static str, reason| t.kube().until_condition(("NodePool", "", "n3"), ("Ready", status, reason), STEP);
    pool("False", Some("PoolMissing")).await?;
    t.rig.nodes_ready(STEP).await?;
    throughout("the pod waiting for its volume", Duration::from_secs(5), || async {
        let ready = t.kubectl(&["get", "pod", "p", "-o", "jsonpath={.status.containerStatuses[0].state.running}"]).await?;
        let restarts = t.kubectl(&["get", "pod", "p", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]).await?;
        ensure!(ready.is_empty() || restarts.trim() == "0", "it was started without its volume");
        let there = std::fs::metadata(&files.pool_file).ok().map(|m| m.blocks());
        ensure!(there == in_its_place, "something was made in the pool's place");
        Ok(())
    })
    .await?;
    std::fs::rename(&elsewhere, &files.pool_file)?;
    pool("True", None).await?;
    eventually("the pod to run with what it had", STEP, || async {
        let restarts = t.kubectl(&["get", "pod", "p", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]).await?;
        ensure!(restarts.trim() != "0", "it was not started again");
        ensure!(t.kubectl(&["exec", "p", "--", "cat", "/data/word"]).await? == "written\n", "not what it had");
        Ok(())
    })
    .await?;
    gone(t).await
}
