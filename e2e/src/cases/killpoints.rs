//! `kill -9` of the agent at every journal record of an operation, before it is durable and right after (row 5 of the table of
//! failures). Which records an operation has is not listed here: the agent's own log of an undisturbed one says it.
//!
//! One object meets several deaths in a row; objects are made until every record had both of its deaths. In the end each looks to its
//! agent and on its disk as the undisturbed one.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::same_trees;
use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::kube::condition_of;
use crate::rig::wait::eventually;
use crate::steps::kill::{Operation, everywhere, headless};
use crate::steps::left::{left_of, noise, on_disk};
use crate::steps::sidecar::Sidecar;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("5-create/owner", "killed at every journal record of an owner's creation, it ends the same", |t| everywhere(t, Owner)),
        Case::new("5-create/replica", "killed at every journal record of a replica's creation, it ends the same", |t| everywhere(t, Copy)),
        Case::new("5-branch", "killed at every journal record of a branch, it ends the same", |t| everywhere(t, Branch)),
        Case::new("5-commit/take", "killed at every journal record of a commit, it ends the same", |t| everywhere(t, Take)),
        Case::new("5-commit/remove", "killed at every journal record of a commit's removal, it ends the same", |t| everywhere(t, Remove)),
        Case::new(
            "5-commit/let-go",
            "killed at every record of the removal of what increments start from, on either side, it ends the same",
            let_go,
        ),
        Case::new("5-receive", "killed at every journal record of a receive, it ends the same", |t| everywhere(t, Receive)),
        Case::new("5-delete/owner", "killed at every journal record of an owner's deletion, nothing stays", |t| {
            everywhere(t, Delete("n1"))
        }),
        Case::new("5-delete/replica", "killed at every journal record of a replica's deletion, nothing stays", |t| {
            everywhere(t, Delete("n2"))
        }),
        Case::new("5-delete/head", "killed at every journal record of the end of a head whose snapshots are kept, it ends the same", |t| {
            everywhere(t, Head)
        }),
    ]
}

fn name(n: usize) -> String {
    format!("d{n}")
}

async fn dot_with_file(t: &Test, n: usize) -> Result<String> {
    let fs_id = t.dot_of(&name(n), &json!({"capacity": "256Mi", "placement": {"node": "n1"}})).await?;
    write(t, &fs_id, "a", b"one").await?;
    Ok(fs_id)
}

async fn write(t: &Test, fs_id: &str, file: &str, bytes: &[u8]) -> Result<()> {
    let head = t.mount("n1", fs_id).await?;
    std::fs::write(head.join(file), bytes)?;
    t.unmount(&head).await
}

async fn is_ready(t: &Test, kind: &str, name: &str) -> Result<Value> {
    let object = t.object(kind, name).await?;
    let ready = condition_of(&object, "Ready").is_some_and(|c| c["status"] == "True");
    ensure!(ready, "{kind} {name}: {}", crate::rig::kube::conditions(&object));
    Ok(object)
}

async fn fs_id_of(t: &Test, n: usize) -> Result<String> {
    text(&t.object("Dot", &name(n)).await?, "/status/fsId")
}

struct Owner;

impl Operation for Owner {
    fn node(&self) -> &'static str {
        "n1"
    }
    fn has(&self) -> &'static [&'static str] {
        &["create-intent", "auth-open", "created"]
    }
    async fn prepare(&self, _: &Test, _: usize) -> Result<()> {
        Ok(())
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.create("Dot", &name(n), &json!({"capacity": "256Mi", "placement": {"node": "n1"}})).await?;
        Ok(())
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        Ok(Some(text(&is_ready(t, "Dot", &name(n)).await?, "/status/fsId")?))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        write(t, &fs_id_of(t, n).await?, "a", b"one").await
    }
}

struct Copy;

impl Operation for Copy {
    fn node(&self) -> &'static str {
        "n2"
    }
    fn has(&self) -> &'static [&'static str] {
        &["create-intent", "created"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        dot_with_file(t, n).await?;
        Ok(())
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.push(&format!("j{n}"), &name(n), "n2").await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        let fs_id = fs_id_of(t, n).await?;
        let replica = t.replica(&fs_id, "n2").await?;
        ensure!(replica.pointer("/status/role").is_some_and(|r| *r == "Replica"), "{}", crate::rig::kube::conditions(&replica));
        Ok(Some(fs_id))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = fs_id_of(t, n).await?;
        let commit = t.commit(&format!("c{n}"), &name(n)).await?;
        t.trigger(&format!("j{n}"), "again").await?;
        t.arrived(&fs_id, &commit, "n2", STEP).await
    }
}

struct Branch;

impl Operation for Branch {
    fn node(&self) -> &'static str {
        "n1"
    }
    fn has(&self) -> &'static [&'static str] {
        &["create-intent", "auth-open", "origin-pin", "created"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        dot_with_file(t, n).await?;
        t.commit(&format!("c{n}"), &name(n)).await?;
        Ok(())
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.create("Branch", &format!("b{n}"), &json!({"dot": name(n), "from": {"commit": format!("c{n}")}})).await?;
        Ok(())
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        Ok(Some(text(&is_ready(t, "Branch", &format!("b{n}")).await?, "/status/fsId")?))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let branch = text(&t.object("Branch", &format!("b{n}")).await?, "/status/fsId")?;
        let commit = text(&t.object("Commit", &format!("c{n}")).await?, "/status/id")?;
        let (head, origin) = (t.mount("n1", &branch).await?, t.mount_commit("n1", &fs_id_of(t, n).await?, &commit).await?);
        same_trees(&head, &origin)?;
        t.unmount(&head).await?;
        t.unmount(&origin).await
    }
}

/// A commit.
struct Take;

impl Operation for Take {
    fn node(&self) -> &'static str {
        "n1"
    }
    fn has(&self) -> &'static [&'static str] {
        &["commit-intent", "committed", "commit-done"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        dot_with_file(t, n).await?;
        Ok(())
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.create("Commit", &format!("c{n}"), &json!({"source": {"kind": "Dot", "name": name(n)}})).await?;
        Ok(())
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        is_ready(t, "Commit", &format!("c{n}")).await?;
        Ok(Some(fs_id_of(t, n).await?))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let commit = text(&t.object("Commit", &format!("c{n}")).await?, "/status/id")?;
        let path = t.mount_commit("n1", &fs_id_of(t, n).await?, &commit).await?;
        ensure!(std::fs::read(path.join("a"))? == b"one", "the commit must hold what was written");
        t.unmount(&path).await
    }
}

/// A commit's removal.
struct Remove;

impl Operation for Remove {
    fn node(&self) -> &'static str {
        "n1"
    }
    fn has(&self) -> &'static [&'static str] {
        &["remove-intent", "commit-removing", "commit-gone", "commit-removed", "removed"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        Take.prepare(t, n).await?;
        t.commit(&format!("c{n}"), &name(n)).await?;
        Ok(())
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.kube().delete("Commit", &t.namespace, &format!("c{n}")).await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        ensure!(t.kube().get("Commit", &t.namespace, &format!("c{n}")).await?.is_none(), "the Commit is there");
        Ok(Some(fs_id_of(t, n).await?))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = fs_id_of(t, n).await?;
        eventually("no commit to be left", STEP, || async {
            let status = t.replica(&fs_id, "n1").await?;
            ensure!(status.pointer("/status/head").is_none_or(Value::is_null), "{}", status["status"]);
            Ok(())
        })
        .await
    }
}

async fn let_go(t: Arc<Test>) -> Result<()> {
    everywhere(Arc::clone(&t), LetGo("n1")).await?;
    everywhere(t, LetGo("n2")).await
}

/// The removal of the commit that owner and copy have in common; killed is the agent of that node.
struct LetGo(&'static str);

impl LetGo {
    /// Both sides have Dots of their own.
    fn nth(&self, n: usize) -> usize {
        if self.0 == "n1" { n } else { 100 + n }
    }
}

impl Operation for LetGo {
    fn node(&self) -> &'static str {
        self.0
    }
    fn has(&self) -> &'static [&'static str] {
        &["commit-let-go", "removed"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        Delete(self.0).prepare(t, self.nth(n)).await
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        Remove.begin(t, self.nth(n)).await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        Remove.ended(t, self.nth(n)).await
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let n = self.nth(n);
        Remove.check(t, n).await?;
        let fs_id = fs_id_of(t, n).await?;
        write(t, &fs_id, "b", b"two").await?;
        let commit = t.commit(&format!("e{n}"), &name(n)).await?;
        t.trigger(&format!("j{n}"), "increment").await?;
        t.arrived(&fs_id, &commit, "n2", STEP).await?;
        let job = t.condition("ReplicationJob", &format!("j{n}"), "Ready", "True", Some("Completed")).await?;
        eventually("what was let go to be gone", STEP, || async {
            for node in ["n1", "n2"] {
                let status = &t.replica(&fs_id, node).await?["status"];
                ensure!(status["commitCount"] == 1, "{node}: {}; {}", status["recentCommits"], job["status"]);
                let disk = on_disk(t, node, &fs_id)?.unwrap_or_default();
                ensure!(disk.iter().filter(|d| *d == "commits/*").count() == 1, "{node}: {disk:?}");
            }
            Ok(())
        })
        .await
    }
}

/// The deletion of a volume with a snapshot.
struct Head;

impl Head {
    async fn fs_id(t: &Test, n: usize) -> Result<String> {
        let all = t.kube().list("Filesystem", "").await?;
        let found = all.iter().find(|f| f["spec"]["claimRef"]["namespace"] == t.namespace && f["spec"]["claimRef"]["name"] == name(n));
        text(found.with_context(|| format!("no Filesystem of {}", name(n)))?, "/metadata/name")
    }
}

impl Operation for Head {
    fn node(&self) -> &'static str {
        "n1"
    }
    fn has(&self) -> &'static [&'static str] {
        &["headless", "head-dropped"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        let csi = Sidecar::new(t).await?;
        let volume = csi.volume(&csi.request(&name(n), "n1")).await?.volume_id;
        write(t, &volume, "a", b"one").await?;
        csi.snapshot(&name(n), &volume).await.map(drop)
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.kube().delete("Dot", &t.namespace, &name(n)).await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        let fs_id = Self::fs_id(t, n).await?;
        headless(t, &fs_id).await?;
        Ok(Some(fs_id))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = Self::fs_id(t, n).await?;
        eventually("only the snapshot to be there", STEP, || headless(t, &fs_id)).await?;
        let commit = text(&t.replica(&fs_id, "n1").await?, "/status/recentCommits/0/id")?;
        let path = t.mount_commit("n1", &fs_id, &commit).await?;
        ensure!(std::fs::read(path.join("a"))? == b"one", "what the snapshot had");
        t.unmount(&path).await
    }
}

/// An increment that is big enough for a checkpoint.
struct Receive;

impl Operation for Receive {
    fn node(&self) -> &'static str {
        "n2"
    }
    fn has(&self) -> &'static [&'static str] {
        &["receive-intent", "receive-checkpoint", "received", "receive-over"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = dot_with_file(t, n).await?;
        let first = t.commit(&format!("c{n}"), &name(n)).await?;
        t.push(&format!("j{n}"), &name(n), "n2").await?;
        t.arrived(&fs_id, &first, "n2", STEP).await?;
        t.condition("ReplicationJob", &format!("j{n}"), "Ready", "True", Some("Completed")).await?;
        write(t, &fs_id, "big", &noise(54 << 20)).await?;
        t.commit(&format!("e{n}"), &name(n)).await?;
        Ok(())
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.trigger(&format!("j{n}"), "increment").await
    }
    async fn nudge(&self, t: &Test, n: usize, k: u64) -> Result<()> {
        t.trigger(&format!("j{n}"), &format!("nudge{k}")).await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        let commit = text(&t.object("Commit", &format!("e{n}")).await?, "/status/id")?;
        let fs_id = fs_id_of(t, n).await?;
        let head = t.replica(&fs_id, "n2").await?.pointer("/status/head").cloned().unwrap_or_default();
        ensure!(head == *commit, "the newest there is {head}");
        Ok(Some(fs_id))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let commit = text(&t.object("Commit", &format!("e{n}")).await?, "/status/id")?;
        let fs_id = fs_id_of(t, n).await?;
        let (here, there) = (t.mount_commit("n1", &fs_id, &commit).await?, t.mount_commit("n2", &fs_id, &commit).await?);
        same_trees(&here, &there)?;
        t.unmount(&here).await?;
        t.unmount(&there).await?;
        t.trigger(&format!("j{n}"), "check").await?;
        t.condition("ReplicationJob", &format!("j{n}"), "Ready", "True", Some("Completed")).await?;
        Ok(())
    }
}

/// A Dot with a copy, of which the agent of a node is killed.
struct Delete(&'static str);

impl Operation for Delete {
    fn node(&self) -> &'static str {
        self.0
    }
    fn has(&self) -> &'static [&'static str] {
        &["delete-intent", "forget", "deleted"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = dot_with_file(t, n).await?;
        let commit = t.commit(&format!("c{n}"), &name(n)).await?;
        t.push(&format!("j{n}"), &name(n), "n2").await?;
        t.arrived(&fs_id, &commit, "n2", STEP).await?;
        t.condition("ReplicationJob", &format!("j{n}"), "Ready", "True", Some("Completed")).await?;
        std::fs::write(t.dir.join(name(n)), &fs_id)?;
        Ok(())
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        t.kube().delete("Dot", &t.namespace, &name(n)).await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        ensure!(t.kube().get("Dot", &t.namespace, &name(n)).await?.is_none(), "the Dot is there");
        left_of(t, &std::fs::read_to_string(t.dir.join(name(n)))?).await?;
        Ok(None)
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        self.ended(t, n).await.map(|_| ())
    }
}
