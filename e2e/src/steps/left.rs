//! What is left of a Filesystem, in objects and on disks; and what is put there.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::wait::eventually;

/// No object, no agent and no disk knows of it any more.
pub async fn nothing_left(t: &Test, fs_id: &str) -> Result<()> {
    eventually(&format!("Filesystem {fs_id} to be gone everywhere"), STEP, || left_of(t, fs_id)).await
}

/// An error that says what is left of a Filesystem.
pub async fn left_of(t: &Test, fs_id: &str) -> Result<()> {
    ensure!(t.kube().get("Filesystem", "", fs_id).await?.is_none(), "its object is there");
    let replicas = t.kube().names("Replica", "", |r| r["spec"]["fsId"] == *fs_id).await?;
    ensure!(replicas.is_empty(), "Replica {replicas:?} is there");
    for node in &t.rig.nodes {
        let status = t.local(&node.name)?.status("").await?;
        ensure!(!status.to_string().contains(fs_id), "the agent of {} still knows it", node.name);
        let disk = on_disk(t, &node.name, fs_id)?;
        ensure!(disk.is_none(), "on the disk of {}: {disk:?}", node.name);
    }
    Ok(())
}

/// What a pool holds of a Filesystem, two levels deep, with `*` for what is named by an id. `None`: nothing.
pub fn on_disk(t: &Test, node: &str, fs_id: &str) -> Result<Option<Vec<String>>> {
    let pool = t.rig.node(node)?.files.state.join("pool");
    let pool = t.rig.machine(node).map_or(Ok(pool.clone()), |machine| machine.outside(&pool))?;
    ensure!(pool.join("fs").is_dir(), "the pool of {node} is not mounted at {}", pool.display());
    let dir = pool.join("fs").join(fs_id);
    if !dir.exists() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir)? {
        let (path, name) =
            (entry.as_ref().map(std::fs::DirEntry::path), entry.as_ref().map(|e| e.file_name().to_string_lossy().into_owned()));
        let (Ok(path), Ok(name)) = (path, name) else { continue };
        if name != "head" && path.is_dir() {
            for below in std::fs::read_dir(&path)?.flatten() {
                let below = below.file_name().to_string_lossy().into_owned();
                found.push(format!("{name}/*{}", if Path::new(&below).extension().is_some_and(|e| e == "json") { ".json" } else { "" }));
            }
        }
        found.push(name);
    }
    found.sort();
    Ok(Some(found))
}

/// Bytes that don't compress.
pub fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    blake3::Hasher::new_derive_key("dotgraft e2e noise").finalize_xof().fill(&mut bytes);
    bytes
}

/// The copy on n2 gets a commit after `commit` that its owner never had.
pub async fn forge(t: &Test, fs_id: &str, commit: &str) -> Result<()> {
    t.rig.kill9("n2")?;
    let commits = t.rig.node("n2")?.files.state.join("pool/fs").join(fs_id).join("commits");
    let other = uuid::Uuid::now_v7().to_string();
    let mut meta: Value = serde_json::from_slice(&std::fs::read(commits.join(format!("{commit}.json")))?)?;
    let time = meta["time"].as_i64().context("no time in the commit's file")?;
    (meta["id"], meta["parent"], meta["time"], meta["kept"]) = (json!(other), json!(commit), json!(time + 1), Value::Null);
    std::fs::write(commits.join(format!("{other}.json")), meta.to_string())?;
    btrfs(&["snapshot".as_ref(), "-r".as_ref(), commits.join(commit).as_os_str(), commits.join(&other).as_os_str()])?;
    t.rig.restart("n2").await
}

/// Runs `btrfs subvolume`, which only a test may: the driver has ioctls of its own.
pub fn btrfs(args: &[&std::ffi::OsStr]) -> Result<()> {
    let output = std::process::Command::new("btrfs").arg("subvolume").args(args).output().context("running btrfs")?;
    ensure!(output.status.success(), "btrfs subvolume {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
