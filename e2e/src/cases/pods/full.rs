//! A pool that fills up, by one volume's data, its history, its metadata, or by what is received: only the guilty one feels it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::eventually;
use crate::steps::pod as csi_pvc;
use crate::steps::pods::writer::Writer;
use crate::steps::pods::{STEP, claim, clear, fs_id, ready};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new("pods-full", "filled by data, history, metadata or a receive: the pods of other volumes write on", full).kubelets()]
}

/// A shell in a pod; what it says, also of errors.
async fn sh(t: &Test, pod: &str, script: &str) -> Result<String> {
    t.kubectl(&["exec", pod, "--", "sh", "-c", &format!("({script}) 2>&1 || true")]).await
}

async fn full(t: Arc<Test>) -> Result<()> {
    claim(&t, "guilty", "64Mi").await?;
    claim(&t, "other", "256Mi").await?;
    t.kubectl(&["get", "pvc"]).await?;
    let other = Writer::start(&t, "other", "other", "n1").await?;
    csi_pvc::pod(&t, "guilty", "guilty", "n1", "sleep 1000").await?;
    ready(&t, "guilty", "").await?;
    t.kube().patch("Dot", &t.namespace, "guilty", "", &json!({"spec": {"historyLimit": "64Mi"}})).await?;

    let said = sh(&t, "guilty", "dd if=/dev/urandom of=/data/a bs=1M count=300; sync").await?;
    ensure!(said.contains("Disk quota exceeded"), "300 MiB in a volume of 64: {said}");
    unhurt(&t, &other, "data").await?;

    let said = sh(
        &t,
        "guilty",
        "rm -f /data/a; sync; i=0; while echo $i > /data/f$i; do i=$((i+1)); [ $i -lt 20000 ] || break; done; ls /data | wc -l",
    )
    .await?;
    println!("        small files in the guilty volume: {}", said.lines().last().unwrap_or_default());
    unhurt(&t, &other, "metadata").await?;

    history(&t).await?;
    unhurt(&t, &other, "history").await?;
    received(&t, &other).await?;
    clear(&t, &["guilty", "other", "filler", "big"]).await
}

async fn unhurt(t: &Test, other: &Writer, by: &str) -> Result<()> {
    other.goes_on(t, 50).await?;
    println!("        filled by {by}: the other pod writes on, its longest block took {} ms", other.noted(t)?.longest.as_millis());
    Ok(())
}

/// Commits of a volume whose files are all others each time, until there is no room for one more.
async fn history(t: &Test) -> Result<()> {
    sh(t, "guilty", "rm -rf /data/*; sync").await?;
    for round in 0..4 {
        let said = sh(t, "guilty", "dd if=/dev/urandom of=/data/a bs=1M count=40; sync").await?;
        if said.contains("Disk quota exceeded") {
            println!("        the guilty volume was full of history after {round} commits");
            return Ok(());
        }
        let name = format!("c{round}");
        t.create("Commit", &name, &json!({"source": {"kind": "Dot", "name": "guilty"}})).await?;
        let refused = eventually("the commit to be made or refused", STEP, || async {
            let commit = t.object("Commit", &name).await?;
            let said = conditions(&commit);
            ensure!(said.contains("Ready=True") || said.contains("NoSpace"), "{said}");
            Ok(said.contains("NoSpace"))
        })
        .await?;
        if refused {
            println!("        the guilty volume's commit {name} was refused: NoSpace");
            return Ok(());
        }
    }
    anyhow::bail!("160 MiB of history in a volume of 64 with a history of 64")
}

/// Nearly all of the pool is taken by a volume that may; what another node sends finds no room, and the pods write on.
async fn received(t: &Test, other: &Writer) -> Result<()> {
    claim(t, "filler", "1Gi").await?;
    csi_pvc::pod(t, "filler", "filler", "n1", "sleep 1000").await?;
    claim(t, "big", "512Mi").await?;
    csi_pvc::pod(t, "big", "big", "n2", "sleep 1000").await?;
    ready(t, "big", "").await?;
    ready(t, "filler", "").await?;
    t.kube().patch("Dot", &t.namespace, "filler", "", &json!({"spec": {"capacity": "8Gi"}})).await?;
    eventually("the filler to have grown", STEP, || async {
        let replica = t.replica(&fs_id(t, "filler").await?, "n1").await?;
        ensure!(replica["status"]["limit"].as_u64() >= Some(8 << 30), "{}", replica["status"]);
        Ok(())
    })
    .await?;
    let said = sh(t, "filler", "i=0; while fallocate -l 64M /data/f$i; do i=$((i+1)); done; df /data | tail -n 1").await?;
    println!("        {}", said.replace('\n', " / "));
    sh(t, "filler", "rm /data/f0 /data/f1; sync").await?;
    sh(t, "big", "dd if=/dev/urandom of=/data/a bs=1M count=300; sync").await?;
    t.commit("big", "big").await?;
    t.push("j", "big", "n1").await?;
    let job = t.condition("ReplicationJob", "j", "Ready", "False", Some("NoSpace")).await?;
    println!("        {}", conditions(&job));
    ensure!(!fs_id(t, "big").await?.is_empty());
    unhurt(t, other, "receive").await?;
    t.kube().delete("ReplicationJob", &t.namespace, "j").await
}
