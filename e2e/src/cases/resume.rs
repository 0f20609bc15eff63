//! A push in whose middle a program is killed: it goes on by itself, re-sends less than 64 MiB, and the result is identical. And one whose
//! limit is changed in its middle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::same_trees;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::left::noise;

/// What is pushed.
const SIZE: u64 = 128 << 20;
/// The death comes when so much is durable: redone from the start, that would be more than may be re-sent.
const ENOUGH: u64 = 80 << 20;
/// What may be sent twice (replication.md §3).
const RESENT: u64 = 64 << 20;
/// Commands of the stream, on top of the data.
const OVERHEAD: u64 = 1 << 20;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("push-kill-sender", "the sender's agent is killed: the push goes on where it was", |t| killed(t, "n1")),
        Case::new("push-kill-receiver", "the receiver's agent is killed: the push goes on where it was", |t| killed(t, "n2")),
        Case::new("push-kill-operator", "the operator is killed: the push does not stop", |t| killed(t, "operator")),
        Case::new("push-bandwidth", "a job's limit holds for all that it sends at once, and a change reaches what is being sent", limited),
        Case::new("push-suspended", "a push that is suspended in its middle goes on when it is resumed, and ends as any other", suspended),
        Case::new("push-kill-apiserver", "the API server is killed: the push does not stop", |t| killed(t, "apiserver")),
    ]
}

async fn killed(t: Arc<Test>, victim: &'static str) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), noise(usize::try_from(SIZE)?))?;
    t.unmount(&head).await?;
    let commit = t.commit("c", "d").await?;
    let job = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "limits": {"bandwidth": "20Mi"}});
    t.create("ReplicationJob", "j", &job).await?;
    let durable = eventually("most of it to be safe on n2", STEP, || async {
        let status = t.local("n2")?.status(&fs_id).await?;
        let offset = status.pointer("/receiving/1").or_else(|| status.pointer("/0/receiving/1")).and_then(Value::as_u64).unwrap_or(0);
        ensure!(offset >= ENOUGH, "{offset} bytes are");
        Ok(offset)
    })
    .await?;
    t.rig.kill9(victim)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    t.rig.start(victim)?;
    t.rig.ready(STEP).await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let job = t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    let sent = job.pointer("/status/lastBytes").and_then(Value::as_u64).context("no lastBytes")?;
    // The sender's memory of what it has sent dies with it: what it counts then is only the rest.
    let most = match victim {
        "n1" => SIZE + OVERHEAD - durable,
        "n2" => SIZE + OVERHEAD + RESENT,
        _ => SIZE + OVERHEAD,
    };
    ensure!(sent <= most, "{sent} bytes were sent, at most {most} need be; {durable} were safe");
    let (here, there) = (t.mount_commit("n1", &fs_id, &commit).await?, t.mount_commit("n2", &fs_id, &commit).await?);
    same_trees(&here, &there)?;
    Ok(())
}

/// Bytes per second of a job whose two Dots would take four minutes.
const SLOW: u64 = 64 << 10;

async fn limited(t: Arc<Test>) -> Result<()> {
    let mut commits = Vec::new();
    for name in ["d", "e"] {
        let fs_id = t.dot(name, "n1").await?;
        let head = t.mount("n1", &fs_id).await?;
        std::fs::write(head.join("a"), noise(8 << 20))?;
        t.unmount(&head).await?;
        commits.push((t.commit(&format!("c-{name}"), name).await?, fs_id));
    }
    let job = json!({"direction": "Push", "source": {"names": ["d", "e"]}, "target": {"node": "n2"}, "limits": {"bandwidth": "64Ki"}});
    let start = Instant::now();
    t.create("ReplicationJob", "j", &job).await?;
    let sent = || async {
        let sent = t.object("ReplicationJob", "j").await?["status"]["progress"]["replicatedBytes"].as_u64().unwrap_or_default();
        let most = SLOW * (start.elapsed().as_secs() + 2);
        ensure!(sent <= most, "{sent} bytes after {:?}, over {SLOW} per second", start.elapsed());
        anyhow::Ok(sent)
    };
    let both = eventually("both to be under way", STEP, || async {
        let items = t.object("ReplicationJob", "j").await?["status"]["report"]["items"].as_array().map_or(0, Vec::len);
        let bytes = sent().await?;
        ensure!(items == 2 && bytes > 4 * SLOW, "{bytes} bytes of {items}");
        Ok(bytes)
    })
    .await?;
    println!("        {both} bytes of two Dots in {:.1} s at 64Ki", start.elapsed().as_secs_f64());
    t.kube().patch("ReplicationJob", &t.namespace, "j", "", &json!({"spec": {"limits": null}})).await?;
    for (commit, fs_id) in &commits {
        t.arrived(fs_id, commit, "n2", STEP).await?;
    }
    Ok(())
}

async fn suspended(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), noise(8 << 20))?;
    t.unmount(&head).await?;
    let commit = t.commit("c", "d").await?;
    let job = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "limits": {"bandwidth": "64Ki"}});
    t.create("ReplicationJob", "j", &job).await?;
    let status = || async { anyhow::Ok(t.object("ReplicationJob", "j").await?["status"].clone()) };
    eventually("it to be under way", STEP, || async {
        let status = status().await?;
        ensure!(status["progress"]["replicatedBytes"].as_u64() > Some(0), "{status}");
        Ok(())
    })
    .await?;
    t.kube().patch("ReplicationJob", &t.namespace, "j", "", &json!({"spec": {"suspend": true}})).await?;
    eventually("its run to be stopped, and still to be owed", STEP, || async {
        let status = status().await?;
        ensure!(status["state"] == "ContextDone" && status["finishedAt"].is_null(), "{status}");
        Ok(())
    })
    .await?;
    t.kube().patch("ReplicationJob", &t.namespace, "j", "", &json!({"spec": {"suspend": false, "limits": null}})).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await
}
