//! Row 20: the API's objects are gone or older than the pools. Nothing is deleted or opened by that; a person says how to go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::data::digest::tree_digest;
use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::kube::{condition_of, conditions};
use crate::rig::process::ENDS;
use crate::rig::wait::{eventually, throughout};
use crate::rig::{Options, unmount_below};
use crate::steps::cli::dot;
use crate::steps::etcd::{etcd, lose_all};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("20-stale-intent", "an old Absent from a restored backup deletes nothing: StaleIntent", stale_intent),
        Case::new("20-epoch", "authority with an older epoch: EpochRegression, closed until accepted", epoch),
        Case::new("20-authority", "authority missing: AuthorityUnknown, closed until accepted", authority),
        Case::new("20-gone", "all objects and CRDs deleted: nothing is lost, adopt brings all back", gone).own(Options::default()),
    ]
}

/// Politely: it gives its Lease back, so that the next one leads at once.
fn stop_operator(t: &Test) -> Result<()> {
    t.rig.processes.end("operator", rustix::process::Signal::TERM, ENDS).map(drop)
}

async fn dot_with_file(t: &Test) -> Result<String> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"precious")?;
    t.unmount(&head).await?;
    Ok(fs_id)
}

async fn still_whole(t: &Test, fs_id: &str) -> Result<()> {
    let head = t.mount("n1", fs_id).await?;
    ensure!(std::fs::read(head.join("a"))? == b"precious", "the file is not what it was");
    std::fs::write(head.join("b"), b"and writable")?;
    t.unmount(&head).await
}

/// The Replica has a condition with status True or Ready=False for that reason.
async fn reported(t: &Test, fs_id: &str, word: &str) -> Result<()> {
    eventually(&format!("the Replica to say {word}"), STEP, || async {
        let replica = t.replica(fs_id, "n1").await?;
        ensure!(condition_of(&replica, word).is_some_and(|c| c["status"] == "True"), "{}", conditions(&replica));
        Ok(())
    })
    .await
}

async fn stale_intent(t: Arc<Test>) -> Result<()> {
    let fs_id = dot_with_file(&t).await?;
    stop_operator(&t)?;
    let name = text(&t.replica(&fs_id, "n1").await?, "/metadata/name")?;
    let absent = json!({"spec": {"desired": {"state": "Absent", "role": null, "jobs": null, "commits": null}}});
    t.kube().patch("Replica", "", &name, "", &absent).await?;
    reported(&t, &fs_id, "StaleIntent").await?;
    let dir = pool_of(&t, "n1")?.join("fs").join(&fs_id);
    throughout("the data staying", Duration::from_secs(1), || async {
        ensure!(std::fs::read(dir.join("head/a"))? == b"precious", "the head has changed");
        Ok(())
    })
    .await?;
    // The operator knows better and wants it Present again.
    t.rig.restart("operator").await?;
    t.ready("Dot", "d").await?;
    still_whole(&t, &fs_id).await
}

/// The agent's private mount of its pool.
fn pool_of(t: &Test, node: &str) -> Result<PathBuf> {
    Ok(t.rig.node(node)?.files.state.join("pool"))
}

/// A machine that boots: its mounts are gone, and `boot_id` is another. Undone when dropped.
struct Reboot(PathBuf);

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Reboot {
    /// While the agent is down.
    fn of(t: &Test, node: &str) -> Result<Self> {
        unmount_below(&pool_of(t, node)?);
        let file = t.dir.join("boot_id");
        std::fs::write(&file, format!("{}\n", uuid::Uuid::new_v4()))?;
        rustix::mount::mount_bind(&file, BOOT_ID).context("another boot_id")?;
        Ok(Self(file))
    }
}

impl Drop for Reboot {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(BOOT_ID, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.0);
    }
}

fn key(fs_id: &str) -> String {
    STANDARD.encode(format!("/registry/dotgraft.dev/filesystems/{fs_id}"))
}

/// A Filesystem as it lies in etcd.
async fn etcd_get(t: &Test, fs_id: &str) -> Result<Value> {
    let answer = etcd(t, "/v3/kv/range", &json!({"key": key(fs_id)})).await?;
    Ok(serde_json::from_slice(&STANDARD.decode(text(&answer, "/kvs/0/value")?)?)?)
}

/// What restoring a backup does: no rule of the API stands in the way.
async fn etcd_put(t: &Test, fs_id: &str, object: &Value) -> Result<()> {
    let value = STANDARD.encode(serde_json::to_vec(object)?);
    etcd(t, "/v3/kv/put", &json!({"key": key(fs_id), "value": value})).await.map(drop)
}

/// After a boot with an older Filesystem object: closed with `word`, until `kubectl dot accept`.
async fn closed_until_accepted(t: &Test, fs_id: &str, old: &Value, word: &str) -> Result<()> {
    t.rig.kill9("n1")?;
    let _boot = Reboot::of(t, "n1")?;
    etcd_put(t, fs_id, old).await?;
    t.rig.restart("n1").await?;
    reported(t, fs_id, word).await?;
    let target = t.dir.join("closed");
    let refused = t.local("n1")?.mount(fs_id, &target, None).await;
    ensure!(refused.is_err(), "the head could be mounted for writing while {word}");
    let without = dot(t, &["accept", "d"]).await;
    ensure!(without.is_err(), "accept must not go on without --yes");
    reported(t, fs_id, word).await?;
    dot(t, &["accept", "d", "--yes"]).await?;
    eventually("the Replica to be open again", STEP, || async {
        let replica = t.replica(fs_id, "n1").await?;
        ensure!(condition_of(&replica, word).is_none_or(|c| c["status"] != "True"), "{}", conditions(&replica));
        Ok(())
    })
    .await?;
    t.ready("Dot", "d").await?;
    still_whole(t, fs_id).await
}

async fn epoch_of(t: &Test, fs_id: &str) -> Result<u64> {
    t.object("Filesystem", fs_id).await?.pointer("/status/authority/epoch").and_then(Value::as_u64).context("no epoch")
}

async fn epoch(t: Arc<Test>) -> Result<()> {
    let fs_id = dot_with_file(&t).await?;
    let old = etcd_get(&t, &fs_id).await?;
    // Up to epoch 2 by the same way, so that there is an older one.
    dot(&t, &["accept", "d", "--yes"]).await?;
    eventually("epoch 2 to be opened", STEP, || async {
        let replica = t.replica(&fs_id, "n1").await?;
        ensure!(replica["status"]["epoch"] == 2, "the agent is at {}", replica["status"]["epoch"]);
        Ok(())
    })
    .await?;
    closed_until_accepted(&t, &fs_id, &old, "EpochRegression").await?;
    let now = epoch_of(&t, &fs_id).await?;
    ensure!(now == 3, "the epoch must be past all that a pool has seen, it is {now}");
    Ok(())
}

async fn authority(t: Arc<Test>) -> Result<()> {
    let fs_id = dot_with_file(&t).await?;
    let mut old = etcd_get(&t, &fs_id).await?;
    old.get_mut("status").and_then(Value::as_object_mut).context("no status")?.remove("authority");
    closed_until_accepted(&t, &fs_id, &old, "AuthorityUnknown").await?;
    let now = epoch_of(&t, &fs_id).await?;
    ensure!(now == 2, "the epoch must be past all that a pool has seen, it is {now}");
    Ok(())
}

fn digests(pools: &[PathBuf], paths: &[(usize, String)]) -> Result<Vec<String>> {
    paths.iter().map(|(pool, path)| digest(pools.get(*pool).context("no such pool")?, path)).collect()
}

fn digest(pool: &Path, path: &str) -> Result<String> {
    Ok(format!("{:?}", tree_digest(&pool.join("fs").join(path)).with_context(|| path.to_owned())?))
}

async fn gone(t: Arc<Test>) -> Result<()> {
    let fs_id = dot_with_file(&t).await?;
    let first = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    t.create("Branch", "b", &json!({"dot": "d", "from": {"commit": "c1"}})).await?;
    let branch = text(&t.ready("Branch", "b").await?, "/status/fsId")?;
    let pools = [pool_of(&t, "n1")?, pool_of(&t, "n2")?];
    let paths = [
        (0, format!("{fs_id}/head")),
        (0, format!("{fs_id}/commits/{first}")),
        (1, format!("{fs_id}/commits/{first}")),
        (0, format!("{branch}/head")),
    ];
    let before = digests(&pools, &paths)?;
    // The agents go on running: they see everything vanish. The operator would take a deleted Dot for a wish.
    stop_operator(&t)?;
    lose_all(&t).await?;
    throughout("no object being there", Duration::from_secs(2), || async {
        ensure!(digests(&pools, &paths)? == before, "data has changed");
        Ok(())
    })
    .await?;
    t.rig.install().await?;
    t.rig.restart("operator").await?;
    t.rig.restart("n1").await?;
    t.rig.restart("n2").await?;
    eventually("three orphans to be listed", STEP, || async {
        let list: Value = serde_json::from_str(&dot(&t, &["adopt", "-o", "json"]).await?)?;
        let count = list.as_array().map_or(0, Vec::len);
        ensure!(count == 3, "{count} are listed");
        Ok(())
    })
    .await?;
    ensure!(digests(&pools, &paths)? == before, "data has changed");
    dot(&t, &["adopt", "--all"]).await?;
    t.ready("Dot", "d").await?;
    t.ready("Branch", "b").await?;
    ensure!(text(&t.object("Dot", "d").await?, "/status/fsId")? == fs_id, "the Dot has another Filesystem");
    ensure!(digests(&pools, &paths)? == before, "data has changed");
    still_whole(&t, &fs_id).await?;
    // And life goes on: an increment onto the copy that was adopted.
    let second = t.commit("c2", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await
}
