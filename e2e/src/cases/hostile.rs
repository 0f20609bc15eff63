//! Peers and disks that can't be trusted (failures.md rows 13, 14, 25). The protocol's own attacks, frame by frame, are in the
//! agent's `tests/peer_net` and `tests/stream_hostile`; here whole programs meet them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::harness::Case;
use crate::harness::test::Test;
use crate::rig::programs::ready;
use crate::rig::wait::eventually;

const STEP: Duration = Duration::from_secs(90);

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("13-garbage", "garbage from a peer: it is cut off, and others are served", garbage),
        Case::new("13-silent", "hundreds of connections that say nothing: probes are answered, and a push arrives", silent),
        Case::new("14-revoked", "a certificate whose fingerprint is revoked is refused", revoked),
        Case::new("25-checksum", "a checksum error stops the send; it never spreads", checksum),
    ]
}

async fn garbage(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    let address = t.rig.node("n2")?.listen.clone();
    let mut open = Vec::new();
    for i in 0..32u8 {
        let mut stream = tokio::net::TcpStream::connect(&address).await?;
        let noise: Vec<u8> = (0..4096u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ i).collect();
        // Cut off in the middle is what is hoped for.
        let _ = stream.write_all(&noise).await;
        open.push(stream);
    }
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await
}

async fn silent(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    let (n1, n2) = (t.rig.node("n1")?, t.rig.node("n2")?);
    let probed = [&n1.http, &n2.http, &t.rig.operator_http];
    let mut open = Vec::new();
    for address in probed.into_iter().chain([&n1.listen, &n2.listen]) {
        for _ in 0..300 {
            open.push(tokio::net::TcpStream::connect(address).await?);
        }
    }
    for address in probed {
        let answer = tokio::time::timeout(Duration::from_secs(5), ready(address)).await;
        answer.with_context(|| format!("a probe of {address} had no answer in 5 s"))??;
    }
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await
}

async fn revoked(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    let pool = t.kube().get("NodePool", "", "n1").await?.context("no NodePool n1")?;
    let listed = pool.pointer("/spec/fingerprints").cloned().context("no fingerprints")?;
    let set = |fingerprints: serde_json::Value| {
        let patch = json!({"spec": {"fingerprints": fingerprints}});
        let kube = t.kube();
        async move { kube.patch("NodePool", "", "n1", "", &patch).await }
    };
    set(json!(["0".repeat(64)])).await?;
    t.push("j", "d", "n2").await?;
    eventually("the run to be denied", STEP, || async {
        let job = t.object("ReplicationJob", "j").await?.to_string();
        ensure!(job.contains("Denied"), "not yet");
        Ok(())
    })
    .await?;
    ensure!(t.replica(&fs_id, "n2").await?.pointer("/status/head").is_none(), "it arrived all the same");
    set(listed).await?;
    eventually("a run by the listed certificate", STEP, || async {
        t.trigger("j", &uuid::Uuid::new_v4().to_string()).await?;
        t.arrived(&fs_id, &commit, "n2", Duration::from_secs(3)).await
    })
    .await
}

async fn checksum(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    let mark: Vec<u8> = (0..512).flat_map(|_| *uuid::Uuid::new_v4().as_bytes()).collect();
    std::fs::write(head.join("a"), mark.repeat(64))?;
    t.commit("c", "d").await?;
    t.unmount(&head).await?;
    damage(&t.rig.node("n1")?.files.pool_file, &mark)?;
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    t.push("j", "d", "n2").await?;
    eventually("the run to name the damage", STEP, || async {
        let job = t.object("ReplicationJob", "j").await?.to_string();
        ensure!(job.contains("CorruptDisk"), "not yet");
        Ok(())
    })
    .await?;
    ensure!(t.replica(&fs_id, "n2").await?.pointer("/status/head").is_none(), "it spread");
    Ok(())
}

/// Flips a byte of each page below the file system's feet that begins with `mark`.
fn damage(pool: &std::path::Path, mark: &[u8]) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(pool)?;
    let (size, mut found) = (file.metadata()?.len(), 0);
    let mut chunk = vec![0u8; 4 << 20];
    for at in (0..size).step_by(chunk.len()) {
        let read = file.read_at(&mut chunk, at)?;
        for page in (0..read).step_by(4096) {
            if chunk.get(page..page + 4096) == mark.get(..4096) {
                file.write_all_at(&[mark.first().copied().unwrap_or(0) ^ 0xff], at + page as u64)?;
                found += 1;
            }
        }
    }
    file.sync_all()?;
    ensure!(found > 0, "the data is not in the pool's file");
    Ok(())
}
