//! Pools that are full (failures.md row 11): what can't be taken is refused by name, nothing else is hurt, and it goes on by itself
//! once there is room.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::{Value, json};

use crate::data::digest::same_trees;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::Options;
use crate::rig::kube::conditions;
use crate::rig::wait::eventually;
use crate::steps::disk::{fill, filler};
use crate::steps::left::{noise, on_disk};

/// For a run that sleeps between two tries, and for the kernel's cleaner.
const AGAIN: Duration = Duration::from_secs(240);
/// Data of each push.
const SIZE: usize = 160 << 20;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let small = || Options { pool_size: "1Gi".into(), ..Options::default() };
    vec![
        Case::new("11-receive", "no space in the middle of a first receive: NoSpace, it goes on once there is room", |t| filled(t, false))
            .own(small()),
        Case::new("11-increment", "no space at an increment: NoSpace, the copy is whole, deletes work", |t| filled(t, true)).own(small()),
        Case::new("11-metadata", "little metadata space: commits and receives are refused, deletes work", metadata).own(small()),
        Case::new(
            "8-full",
            "a move to a full node is given up at once; the volume is served where it was, and moves once there is room",
            full_target,
        )
        .own(small()),
        Case::new("job-no-space", "a job whose target has no space: NoSpace before a byte is sent, and it goes on by itself", no_space)
            .own(small()),
    ]
}

async fn remove_filler(t: &Test, head: &Path) -> Result<()> {
    t.unmount(head).await?;
    t.kube().delete("Dot", &t.namespace, "filler").await?;
    t.kube().gone("Dot", &t.namespace, "filler", STEP).await
}

async fn write(t: &Test, node: &str, fs_id: &str, name: &str, len: usize) -> Result<()> {
    let head = t.mount(node, fs_id).await?;
    std::fs::write(head.join(name), noise(len))?;
    t.unmount(&head).await
}

fn job(to: &str, bandwidth: &str) -> Value {
    json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": to}, "limits": {"bandwidth": bandwidth}})
}

/// The job says so by a condition of its own, and as why it isn't ready.
async fn says_no_space(t: &Test) -> Result<Value> {
    t.condition("ReplicationJob", "j", "NoSpace", "True", None).await?;
    t.condition("ReplicationJob", "j", "Ready", "False", Some("NoSpace")).await
}

async fn same(t: &Test, fs_id: &str, commit: &str) -> Result<()> {
    let (here, there) = (t.mount_commit("n1", fs_id, commit).await?, t.mount_commit("n2", fs_id, commit).await?);
    same_trees(&here, &there)?;
    t.unmount(&here).await?;
    t.unmount(&there).await
}

async fn cleared_away(t: &Test, fs_id: &str) -> Result<()> {
    eventually("nothing partial to be on n2", STEP, || async {
        let found = on_disk(t, "n2", fs_id)?.unwrap_or_default();
        ensure!(!found.iter().any(|f| f.starts_with("incoming/") || f.starts_with("checkpoints/")), "{found:?}");
        Ok(())
    })
    .await
}

/// Nothing is committed, so all of it would go while the head is frozen.
async fn full_target(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot_of("d", &json!({"capacity": "512Mi", "historyLimit": "64Mi", "placement": {"node": "n1"}})).await?;
    write(&t, "n1", &fs_id, "a", SIZE).await?;
    let head = filler(&t, "n2").await?;
    fill(&head)?;
    let place = |node: &str| json!({"spec": {"placement": {"node": node}}});
    t.kube().patch("Dot", &t.namespace, "d", "", &place("n2")).await?;
    eventually("the move to be given up for want of space", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        let moved = &dot["status"]["migration"];
        let said = |c: &Value| c["type"] == "MoveBlocked" && c["reason"] == "NoSpace";
        // Who may read Dots only must see it.
        let blocked = dot["status"]["conditions"].as_array().is_some_and(|list| list.iter().any(said));
        ensure!(blocked, "{moved}; {}", conditions(&dot));
        Ok(())
    })
    .await?;
    // It may be tried again at any time; in between the volume can be used, and keeps what is written.
    let here = t.mount("n1", &fs_id).await?;
    std::fs::write(here.join("b"), b"written meanwhile")?;
    remove_filler(&t, &head).await?;
    t.unmount(&here).await?;
    eventually("it to have moved", AGAIN, || async {
        let dot = t.object("Dot", "d").await?;
        ensure!(dot["status"]["owner"] == "n2", "{}", conditions(&dot));
        Ok(())
    })
    .await?;
    let there = t.mount("n2", &fs_id).await?;
    ensure!(std::fs::read(there.join("b"))? == b"written meanwhile" && std::fs::metadata(there.join("a"))?.len() == SIZE as u64);
    t.unmount(&there).await
}

/// The pool is filled while a transfer runs.
async fn filled(t: Arc<Test>, increment: bool) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let mut first = None;
    t.create("ReplicationJob", "j", &job("n2", "32Mi")).await?;
    if increment {
        write(&t, "n1", &fs_id, "a", 8 << 20).await?;
        let commit = t.commit("c1", "d").await?;
        t.trigger("j", "first").await?;
        t.arrived(&fs_id, &commit, "n2", STEP).await?;
        first = Some(commit);
    }
    let head = filler(&t, "n2").await?;
    write(&t, "n1", &fs_id, "b", SIZE).await?;
    let commit = t.commit("c2", "d").await?;
    t.trigger("j", "second").await?;
    eventually("some of it to be safe on n2", STEP, || async {
        let status = t.local("n2")?.status(&fs_id).await?;
        let offset = status.pointer("/receiving/1").or_else(|| status.pointer("/0/receiving/1")).and_then(Value::as_u64).unwrap_or(0);
        ensure!(offset > 0, "{offset} bytes are");
        Ok(())
    })
    .await?;
    // The sender stands still meanwhile, or all might be there before the pool is full.
    t.rig.pause("n1")?;
    let full = fill(&head);
    t.rig.resume("n1")?;
    full?;
    says_no_space(&t).await?;
    let replica = t.replica(&fs_id, "n2").await?;
    let newest = replica.pointer("/status/head").and_then(Value::as_str).map(str::to_owned);
    ensure!(newest == first, "n2 has {newest:?}");
    if let Some(first) = &first {
        same(&t, &fs_id, first).await?;
    }
    // The sender's node has room and doesn't care.
    t.dot("other", "n1").await?;
    t.commit("of-other", "other").await?;
    remove_filler(&t, &head).await?;
    t.arrived(&fs_id, &commit, "n2", AGAIN).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    same(&t, &fs_id, &commit).await?;
    cleared_away(&t, &fs_id).await
}

async fn no_space(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    write(&t, "n1", &fs_id, "a", SIZE).await?;
    let commit = t.commit("c", "d").await?;
    // Room for metadata is left, and 100 MiB or so for data.
    let head = filler(&t, "n2").await?;
    fallocate(File::create(head.join("fill"))?, FallocateFlags::empty(), 0, 560 << 20)?;
    t.create("ReplicationJob", "j", &job("n2", "1Gi")).await?;
    let says = says_no_space(&t).await?;
    ensure!(conditions(&says).contains("about 160 MiB are to come"), "for another reason: {}", conditions(&says));
    let sent = says.pointer("/status/progress/replicatedBytes").and_then(Value::as_u64).unwrap_or(0);
    ensure!(sent == 0, "{sent} bytes were sent for nothing");
    ensure!(says.pointer("/status/finishedAt").is_none(), "it has given up: {}", conditions(&says));
    // A deletion meanwhile waits for nothing, and the copy that never came goes too.
    let gone = json!({"direction": "Push", "source": {"names": ["gone"]}, "target": {"node": "n2"}});
    let other = t.dot("gone", "n1").await?;
    write(&t, "n1", &other, "a", 120 << 20).await?;
    t.commit("of-gone", "gone").await?;
    t.create("ReplicationJob", "k", &gone).await?;
    t.condition("ReplicationJob", "k", "NoSpace", "True", None).await?;
    for (kind, name) in [("ReplicationJob", "k"), ("Commit", "of-gone"), ("Dot", "gone")] {
        t.kube().delete(kind, &t.namespace, name).await?;
        t.kube().gone(kind, &t.namespace, name, STEP).await?;
    }
    crate::steps::left::nothing_left(&t, &other).await?;
    remove_filler(&t, &head).await?;
    t.arrived(&fs_id, &commit, "n2", AGAIN).await?;
    let job = t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    let still = job.pointer("/status/conditions").and_then(Value::as_array).context("no conditions")?;
    ensure!(!still.iter().any(|c| c["type"] == "NoSpace" && c["status"] == "True"), "the error wasn't cleared: {}", conditions(&job));
    same(&t, &fs_id, &commit).await
}

/// A pool of 1 GiB has 51 MiB for metadata, and wants 64 to be free: with all else given to data, it is short.
async fn metadata(t: Arc<Test>) -> Result<()> {
    let owned = t.dot("owned", "n2").await?;
    write(&t, "n2", &owned, "a", 1 << 20).await?;
    t.commit("old", "owned").await?;
    let fs_id = t.dot("d", "n1").await?;
    write(&t, "n1", &fs_id, "a", 1 << 20).await?;
    let commit = t.commit("c", "d").await?;
    let head = filler(&t, "n2").await?;
    fill(&head)?;
    // Commits are refused …
    write(&t, "n2", &owned, "b", 4096).await.context("a small write into a volume")?;
    t.create("Commit", "new", &json!({"source": {"kind": "Dot", "name": "owned"}})).await?;
    eventually("the commit to be refused for metadata", STEP, || async {
        let replica = t.replica(&owned, "n2").await?.to_string();
        ensure!(replica.contains("NoSpace") && replica.contains("metadata"), "not yet");
        Ok(())
    })
    .await?;
    // … and receives …
    t.create("ReplicationJob", "j", &job("n2", "1Gi")).await?;
    says_no_space(&t).await?;
    // … deletes are not.
    t.kube().delete("Commit", &t.namespace, "old").await?;
    t.kube().gone("Commit", &t.namespace, "old", STEP).await?;
    remove_filler(&t, &head).await?;
    t.kube().until_condition(("Commit", &t.namespace, "new"), ("Ready", "True", None), AGAIN).await?;
    t.arrived(&fs_id, &commit, "n2", AGAIN).await
}
