//! The group of a pod on its volume (storage.md §5, ADR 38): what is there gets it, whoever made it, and a pod's restart touches nothing, so that a run
//! after it has nothing to send.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1::volume_capability::access_mode::Mode;
use serde_json::json;
use tonic::Code;

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::csi::{capability, refused};
use crate::steps::mount::Pod;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "csi-fsgroup",
            "the pod's group gets every file that lacks it, also one that another pod restored; a restart changes none, and leaves a run nothing to do",
            |t| fs_group(t, 2_000),
        ),
        Case::new("measure-fsgroup", "the same with 200,000 files", |t| fs_group(t, 200_000)).within(Duration::from_secs(600)).measures(),
    ]
}

/// Path, group, mode, time of the last change.
type Attributes = (PathBuf, u32, u32, i64, i64);

/// Of a directory and everything below.
fn attributes(dir: &Path) -> Result<Vec<Attributes>> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        }
        all.push((path, meta.gid(), meta.mode(), meta.ctime(), meta.ctime_nsec()));
    }
    all.sort();
    Ok(all)
}

async fn fs_group(t: Arc<Test>, files: usize) -> Result<()> {
    let fs_id = t.dot_of("d", &json!({"capacity": "2Gi", "placement": {"node": "n1"}})).await?;
    let pod = Pod::new(&t, "n1", "p")?;
    pod.start(&fs_id).await?;
    let outside = t.dir.join("secret");
    std::fs::write(&outside, "secret")?;
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::symlink(&outside, pod.target().join("link"))?;
    for i in 0..files {
        let dir = pod.target().join(format!("d{}", i % 20));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("f{i}")), i.to_string())?;
    }
    pod.end(&fs_id).await?;

    let group = capability(Mode::SingleNodeMultiWriter, "4242");
    let start = Instant::now();
    pod.stage(&fs_id, group.clone()).await??;
    pod.publish(&fs_id, group.clone(), false).await??;
    let first_took = start.elapsed();
    let first = attributes(&pod.target())?;
    for (path, gid, mode, ..) in &first {
        let link = path.ends_with("link");
        let needs = if path.is_dir() { 0o2070 } else { 0o060 };
        ensure!(link || *gid == 4242 && mode & needs == needs, "{}: group {gid}, mode {mode:o}", path.display());
    }
    ensure!(first.len() == files + 22, "{} entries", first.len());
    let secret = std::fs::metadata(&outside)?;
    ensure!(secret.gid() == 0 && secret.mode() & 0o777 == 0o600, "a link in the volume led outside");
    let head = t.rig.node("n1")?.files.state.join("pool/fs").join(&fs_id).join("head");
    let commit = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP * 4).await?;
    let before = generation(&head)?;
    let start = Instant::now();
    for _ in 0..2 {
        pod.end(&fs_id).await?;
        pod.stage(&fs_id, group.clone()).await??;
        pod.publish(&fs_id, group.clone(), false).await??;
    }
    println!(
        "        {files} files: {:.2} s at first, {:.3} s at a restart",
        first_took.as_secs_f64(),
        start.elapsed().as_secs_f64() / 2.0
    );
    ensure!(attributes(&pod.target())? == first, "a restart of the pod changed files");
    rustix::fs::sync();
    ensure!(generation(&head)? == before, "a restart of the pod made a new generation: there would be something to replicate");
    no_steps(&t, &fs_id).await?;
    // A pod without a group puts files there that are for its own: the next one with it can read them, and nothing else is touched.
    pod.end(&fs_id).await?;
    pod.start(&fs_id).await?;
    let restored = pod.target().join("d1").join("restored");
    std::fs::write(&restored, "of a backup")?;
    std::fs::set_permissions(&restored, std::fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(&restored, Some(1001), Some(1001))?;
    pod.end(&fs_id).await?;
    pod.stage(&fs_id, group.clone()).await??;
    pod.publish(&fs_id, group.clone(), false).await??;
    let mut now = attributes(&pod.target())?;
    let at = now.iter().position(|(path, ..)| *path == restored).context("it is gone")?;
    let (_, gid, mode, ..) = now.remove(at);
    ensure!(gid == 4242 && mode & 0o777 == 0o660, "the pod can't read what was restored: group {gid}, mode {mode:o}");
    let others = |all: &[Attributes]| all.iter().filter(|(path, ..)| !path.ends_with("d1")).cloned().collect::<Vec<_>>();
    ensure!(others(&now) == others(&first), "other files were touched");
    refused(pod.publish(&fs_id, capability(Mode::SingleNodeMultiWriter, "staff"), false).await?, Code::InvalidArgument, "number")?;
    pod.end(&fs_id).await
}

/// Generation of a subvolume, which any write to it moves.
fn generation(subvolume: &Path) -> Result<String> {
    let output = std::process::Command::new("btrfs").args(["subvolume", "show"]).arg(subvolume).output().context("running btrfs")?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    shown.lines().find(|l| l.trim_start().starts_with("Generation:")).map(str::to_owned).context("no generation")
}

/// The job's next run finds nothing to do.
async fn no_steps(t: &Test, fs_id: &str) -> Result<()> {
    t.trigger("j", "again").await?;
    eventually("the next run to have ended", STEP, || async {
        let replica = t.replica(fs_id, "n1").await?;
        let job = &replica["status"]["jobs"][0];
        ensure!(job["observedTrigger"] == "again" && job["report"]["state"] == "Completed", "{job}");
        ensure!(job["report"]["stepsTotal"] == 0 && job["report"]["replicatedBytes"] == 0, "it had something to do: {job}");
        Ok(())
    })
    .await
}
