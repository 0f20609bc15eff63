//! Authority moves from node to node (migration.md §5, failures.md rows 1, 7, 8, 18): by `placement.node`, with real processes killed at
//! every journal record of either side.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::{tree, tree_digest};
use crate::data::sqlite::{self, SqliteWriter};
use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::kube::{condition_of, conditions};
use crate::rig::programs::http_get;
use crate::rig::wait::{eventually, throughout};
use crate::steps::cli;
use crate::steps::cli::dot;
use crate::steps::kill::{Operation, everywhere};
use crate::steps::left::{forge, left_of, on_disk};
use crate::steps::owner::{authority, filled, holds, is_owned_by, owned_by, place, says_fenced, taint};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("move-there-and-back", "a Dot moves to another node with its history, and back by the difference only", there_and_back),
        Case::new("move-waits", "a move waits for who has the head mounted, by name, and loses none of its writes", waits),
        Case::new("move-stale-writer", "a descriptor left open on the old node can't write after a move", stale_writer),
        Case::new("move-taken-back", "a move that is taken back while a pod holds the head changes nothing", taken_back),
        Case::new("1-migrate", "a Dot deleted while it moves goes, on both nodes", deleted),
        Case::new("8-diverged", "a move to a copy that has diverged is refused; the volume is served where it was, and says why", diverged),
        Case::new(
            "8-unreachable",
            "a move to a node that is gone in the middle is aborted; the volume is served where it was",
            unreachable,
        ),
        Case::new("9-migrate/exporter", "killed at every journal record of who gives authority away, the move ends the same", |t| {
            everywhere(t, Move("n1"))
        }),
        Case::new("9-migrate/importer", "killed at every journal record of who takes authority, the move ends the same", |t| {
            everywhere(t, Move("n2"))
        }),
        Case::new(
            "18-out-of-service",
            "an owner that is proven lost loses authority; back again it can't write, and keeps what it has until that is dropped",
            out_of_service,
        ),
        Case::new("move-promote", "a person promotes a copy; loss needs a word and a verb of its own; the old owner is fenced", promoted),
        Case::new("18-silent", "an owner that is merely silent keeps authority; pool, Dot and job say that its agent is away", silent),
    ]
}

/// Only the owner has a head; nobody has a handoff in hand.
async fn settled(t: &Test, fs_id: &str, owner: &str) -> Result<()> {
    eventually("the old owner's head to be gone", STEP, || async {
        for node in ["n1", "n2"] {
            let Some(names) = on_disk(t, node, fs_id)? else { continue };
            let has_head = names.iter().any(|n| n == "head" || n.starts_with("head/"));
            ensure!(has_head == (node == owner), "on {node}: {names:?}");
        }
        ensure!(authority(t, fs_id).await?.get("pending").is_none(), "a handoff is pending");
        Ok(())
    })
    .await
}

async fn there_and_back(t: Arc<Test>) -> Result<()> {
    let (fs_id, digest) = filled(&t, "d").await?;
    let commit = t.commit("c1", "d").await?;
    place(&t, "d", "n2").await?;
    let dot = owned_by(&t, "d", "n2").await?;
    ensure!(dot["status"]["epoch"] == 2, "epoch {}", dot["status"]["epoch"]);
    settled(&t, &fs_id, "n2").await?;
    holds(&t, "n2", &fs_id, &digest).await?;
    let log: Vec<&Value> = dot["status"]["recentCommits"].as_array().into_iter().flatten().map(|c| &c["id"]).collect();
    ensure!(log == [&json!(commit)], "the history went along, and nothing else: {log:?}");
    let head = t.mount("n2", &fs_id).await?;
    std::fs::write(head.join("more"), vec![7; 100_000])?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    place(&t, "d", "n1").await?;
    owned_by(&t, "d", "n1").await?;
    settled(&t, &fs_id, "n1").await?;
    holds(&t, "n1", &fs_id, &digest).await?;
    let bytes = eventually("the report of the way back", STEP, || async {
        let report = &t.object("Dot", "d").await?["status"]["migration"];
        ensure!(report["to"] == "n1" && report["phase"] == "Done", "it is {report}");
        report["bytes"].as_u64().context("no bytes in status.migration")
    })
    .await?;
    ensure!((1..400_000).contains(&bytes), "the way back sent {bytes} bytes: not the difference only");
    // A commit that an object asked for is not made a second time by the next owner.
    ensure!(text(&t.object("Commit", "c1").await?, "/status/id")? == commit);
    t.commit("c2", "d").await?;
    Ok(())
}

async fn waits(t: Arc<Test>) -> Result<()> {
    let (fs_id, _) = filled(&t, "d").await?;
    let head = t.mount("n1", &fs_id).await?;
    let notes = t.dir.join("notes");
    let mut writer = SqliteWriter::start(&head.join("db"), &notes).await?;
    place(&t, "d", "n2").await?;
    eventually("the move to wait, and to name who holds it", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        let migrating = condition_of(&dot, "Migrating").context("it doesn't move")?;
        let named = migrating["message"].as_str().is_some_and(|m| m.contains("pid"));
        ensure!(migrating["status"] == "True" && migrating["reason"] == "WaitingForPods" && named, "{}", conditions(&dot));
        Ok(())
    })
    .await?;
    let before = writer.progress()?;
    eventually("the writer to go on while the move waits", STEP, || {
        let now = writer.progress();
        async move {
            ensure!(now? > before + 20, "it stands still");
            Ok(())
        }
    })
    .await?;
    let acknowledged = writer.stop()?;
    t.unmount(&head).await?;
    owned_by(&t, "d", "n2").await?;
    let head = t.mount("n2", &fs_id).await?;
    sqlite::check(&head.join("db"), &t.dir.join("scratch"), acknowledged)?;
    t.unmount(&head).await
}

async fn stale_writer(t: Arc<Test>) -> Result<()> {
    use std::io::Write as _;
    let (fs_id, _) = filled(&t, "d").await?;
    let head = t.mount("n1", &fs_id).await?;
    let mut left = std::fs::File::create(head.join("left"))?;
    left.write_all(b"before")?;
    // The mount goes, the descriptor stays: nothing in any mount table names it.
    let lazy = std::process::Command::new("umount").arg("-l").arg(&head).status()?;
    ensure!(lazy.success());
    place(&t, "d", "n2").await?;
    owned_by(&t, "d", "n2").await?;
    let late = left.write_all(b" and after").and_then(|()| left.sync_all());
    ensure!(late.is_err(), "a descriptor on the old node still writes");
    let head = t.mount("n2", &fs_id).await?;
    let text = std::fs::read_to_string(head.join("left"))?;
    ensure!(text == "before", "what was written before the fence is missing or more than that: {text:?}");
    t.unmount(&head).await
}

async fn taken_back(t: Arc<Test>) -> Result<()> {
    let (fs_id, digest) = filled(&t, "d").await?;
    let head = t.mount("n1", &fs_id).await?;
    place(&t, "d", "n2").await?;
    t.condition("Dot", "d", "Migrating", "True", Some("WaitingForPods")).await?;
    place(&t, "d", "n1").await?;
    // Its agent has heard of it, by way of the operator; else it would rightly go on once nobody holds the head.
    eventually("the move to be taken back", STEP, || async {
        let replica = t.replica(&fs_id, "n1").await?;
        let (wish, told) = (&replica["spec"]["desired"]["moveTo"], &replica["status"]["migration"]);
        ensure!(wish.is_null() && told["phase"] == "Cancelled", "wanted: {wish}, told: {told}");
        Ok(())
    })
    .await?;
    t.unmount(&head).await?;
    throughout("authority to stay", Duration::from_secs(3), || async {
        let a = authority(&t, &fs_id).await?;
        ensure!(a["epoch"] == 1 && a["owner"]["node"] == "n1", "{a}");
        Ok(())
    })
    .await?;
    holds(&t, "n1", &fs_id, &digest).await
}

async fn deleted(t: Arc<Test>) -> Result<()> {
    let mut ids = Vec::new();
    for pause in [0, 150, 300, 500, 800] {
        let name = format!("d{pause}");
        let (fs_id, _) = filled(&t, &name).await?;
        place(&t, &name, "n2").await?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        t.kube().delete("Dot", &t.namespace, &name).await?;
        ids.push(fs_id);
    }
    for fs_id in &ids {
        eventually("all of it to be gone on both nodes", STEP * 2, || left_of(&t, fs_id)).await?;
    }
    Ok(())
}

async fn unreachable(t: Arc<Test>) -> Result<()> {
    let (fs_id, digest) = filled(&t, "d").await?;
    t.commit("c1", "d").await?;
    // n2 dies once it has recorded that it holds everything, before anybody hears of it; and stays dead.
    t.rig.restart_with_env("n2", "DOTGRAFT_FAILPOINT", Some("before:import-start")).await?;
    place(&t, "d", "n2").await?;
    eventually("n2 to die", STEP * 2, || async {
        ensure!(t.rig.processes.exited("n2")?.is_some(), "it lives");
        Ok(())
    })
    .await?;
    let frozen = authority(&t, &fs_id).await?;
    ensure!(frozen.get("pending").is_some() && frozen["epoch"] == 1, "nothing is pending: {frozen}");
    // A person changes their mind: the pending handoff is aborted, which only a compare-and-swap does.
    place(&t, "d", "n1").await?;
    eventually("the volume to be served where it was", STEP, || async {
        is_owned_by(&t, "d", "n1").await?;
        let a = authority(&t, &fs_id).await?;
        ensure!(a.get("pending").is_none() && a["attempt"] == 1, "{a}");
        Ok(())
    })
    .await?;
    holds(&t, "n1", &fs_id, &digest).await?;
    t.rig.restart_with_env("n2", "DOTGRAFT_FAILPOINT", None).await?;
    place(&t, "d", "n2").await?;
    owned_by(&t, "d", "n2").await?;
    holds(&t, "n2", &fs_id, &digest).await
}

async fn diverged(t: Arc<Test>) -> Result<()> {
    let (fs_id, _) = filled(&t, "d").await?;
    let commit = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    forge(&t, &fs_id, &commit).await?;
    place(&t, "d", "n2").await?;
    let said = eventually("the Dot to say why it doesn't move", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        let migrating = condition_of(&dot, "Migrating").and_then(|c| c["message"].as_str()).unwrap_or_default().to_owned();
        ensure!(migrating.contains("given up"), "{}", conditions(&dot));
        Ok(migrating)
    })
    .await?;
    println!("        it says: {said}");
    eventually("its owner's copy to say so, too", STEP, || async {
        let replica = t.replica(&fs_id, "n1").await?;
        ensure!(condition_of(&replica, "MoveBlocked").is_some_and(|c| c["reason"] == "Diverged"), "{}", conditions(&replica));
        Ok(())
    })
    .await?;
    let head = t.mount("n1", &fs_id).await?;
    throughout("the volume being served where it was", Duration::from_secs(3), || async {
        std::fs::write(head.join("b"), b"written meanwhile")?;
        std::fs::File::open(head.join("b"))?.sync_all()?;
        let a = authority(&t, &fs_id).await?;
        ensure!(a["epoch"] == 1 && a["owner"]["node"] == "n1" && a.get("pending").is_none(), "{a}");
        Ok(())
    })
    .await?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    // A person gives up what only that copy has: then it moves.
    cli::dot(&t, &["drop", &fs_id, "--node", "n2", "--yes"]).await?;
    owned_by(&t, "d", "n2").await?;
    holds(&t, "n2", &fs_id, &digest).await
}

/// A move from n1 to n2; the field says whose agent is killed.
struct Move(&'static str);

impl Move {
    fn name(n: usize) -> String {
        format!("d{n}")
    }
}

impl Operation for Move {
    fn node(&self) -> &'static str {
        self.0
    }
    fn has(&self) -> &'static [&'static str] {
        match self.0 {
            "n1" => &["mig-begin", "frozen", "mig-pending", "mig-export", "mig-committed", "head-dropped"],
            _ => &["received", "import-start", "import-finish", "head-made", "auth-open"],
        }
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = t.dot_of(&Self::name(n), &json!({"capacity": "256Mi", "placement": {"node": "n1"}})).await?;
        let head = t.mount("n1", &fs_id).await?;
        std::fs::write(head.join("a"), format!("of {n}"))?;
        t.unmount(&head).await?;
        t.commit(&format!("c{n}"), &Self::name(n)).await?;
        let head = t.mount("n1", &fs_id).await?;
        std::fs::write(head.join("b"), format!("of {n}, not committed"))?;
        t.unmount(&head).await
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        place(t, &Self::name(n), "n2").await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        let dot = is_owned_by(t, &Self::name(n), "n2").await?;
        let fs_id = text(&dot, "/status/fsId")?;
        let names = on_disk(t, "n1", &fs_id)?.unwrap_or_default();
        ensure!(!names.iter().any(|n| n == "head" || n.starts_with("head/")), "n1 still has its head");
        Ok(None)
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let dot = owned_by(t, &Self::name(n), "n2").await?;
        ensure!(dot["status"]["epoch"] == 2, "it moved {} times", dot["status"]["epoch"]);
        let fs_id = text(&dot, "/status/fsId")?;
        let head = t.mount("n2", &fs_id).await?;
        for (file, wanted) in [("a", format!("of {n}")), ("b", format!("of {n}, not committed"))] {
            let found = std::fs::read_to_string(head.join(file))?;
            ensure!(found == wanted, "{file} holds {found:?}");
        }
        ensure!(tree(&head)?.count() == 3, "more or less than the two files");
        t.unmount(&head).await
    }
}

async fn out_of_service(t: Arc<Test>) -> Result<()> {
    let (fs_id, digest) = filled(&t, "d").await?;
    let commit = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("tail"), b"never replicated")?;
    t.rig.kill9("n1")?;
    place(&t, "d", "n2").await?;
    taint(&t, "n1", true).await?;
    let result = async {
        owned_by(&t, "d", "n2").await?;
        holds(&t, "n2", &fs_id, &digest).await?;
        let a = authority(&t, &fs_id).await?;
        ensure!(a["epoch"] == 2 && a["forkPoints"][0]["from"]["node"] == "n1", "{a}");
        t.rig.start("n1")?;
        t.rig.ready(STEP).await?;
        let late = || std::fs::write(head.join("late"), b"x").and_then(|()| std::fs::File::open(head.join("late"))?.sync_all());
        eventually("the old owner to be fenced, although a pod has it mounted", STEP, || async {
            ensure!(late().is_err(), "it still writes");
            Ok(())
        })
        .await?;
        says_fenced(&t, &fs_id, "n1").await?;
        t.rig.restart("n1").await?;
        eventually("the restarted agent to count it still", STEP, || async {
            let (_, text) = http_get(&t.rig.node("n1")?.http, "/metrics").await?;
            ensure!(text.contains("dotgraft_condition{condition=\"Superseded\"} 1"), "{text}");
            Ok(())
        })
        .await?;
        says_fenced(&t, &fs_id, "n1").await?;
        ensure!(std::fs::read(head.join("tail"))? == b"never replicated", "what only it has is kept");
        t.unmount(&head).await?;
        let unnamed = dot(&t, &["drop", &fs_id, "--yes"]).await.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(unnamed.contains("--node (n1)"), "a copy of a living Dot needs its node: {unnamed}");
        ensure!(dot(&t, &["drop", &fs_id, "--node", "n2", "--yes"]).await.is_err(), "the owner's copy was dropped");
        dot(&t, &["drop", &fs_id, "--node", "n1", "--yes"]).await?;
        eventually("the superseded copy to be gone", STEP, || async {
            ensure!(on_disk(&t, "n1", &fs_id)?.is_none(), "it is still there");
            Ok(())
        })
        .await?;
        place(&t, "d", "n1").await?;
        owned_by(&t, "d", "n1").await?;
        holds(&t, "n1", &fs_id, &digest).await
    };
    let result = result.await;
    taint(&t, "n1", false).await?;
    result
}

async fn promoted(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot_of("d", &json!({"capacity": "256Mi", "placement": {"node": "n1"}, "fencing": "Manual"})).await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"committed")?;
    let commit = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    std::fs::write(head.join("b"), b"not committed")?;
    let promote = |accept: bool| json!({"target": {"name": "d"}, "promote": {"node": "n2", "acceptLoss": accept}});
    t.create("DotOperation", "careful", &promote(false)).await?;
    eventually("it to be refused", STEP, || async {
        let o = t.object("DotOperation", "careful").await?;
        ensure!(o["status"]["phase"] == "Refused" && text(&o, "/status/message")?.contains("acceptLoss"), "{}", o["status"]);
        Ok(())
    })
    .await?;
    // A user with the role `edit` may make operations, and accept no loss.
    let role = format!("{}-edit", t.namespace);
    t.kube().kubectl(&["create", "rolebinding", &role, "-n", &t.namespace, "--clusterrole=edit", "--user=dev"]).await?;
    let object = json!({
        "apiVersion": "dotgraft.dev/v1alpha1", "kind": "DotOperation",
        "metadata": {"name": "forbidden", "namespace": t.namespace}, "spec": promote(true),
    });
    let file = t.dir.join("operation.json");
    std::fs::write(&file, object.to_string())?;
    let forbidden = t.kube().kubectl(&["--as=dev", "create", "-f", &file.to_string_lossy()]).await;
    let why = forbidden.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(why.contains("accept-loss"), "a user without the verb accepted a loss: {why}");
    t.create("DotOperation", "now", &promote(true)).await?;
    eventually("it to be done", STEP, || async {
        let o = t.object("DotOperation", "now").await?;
        ensure!(o["status"]["phase"] == "Done" && o["status"]["epoch"] == 2 && o["status"]["from"] == "n1", "{}", o["status"]);
        Ok(())
    })
    .await?;
    owned_by(&t, "d", "n2").await?;
    eventually("the old owner to be fenced", STEP, || async {
        ensure!(
            std::fs::write(head.join("c"), b"late").and_then(|()| std::fs::File::open(head.join("c"))?.sync_all()).is_err(),
            "it writes"
        );
        Ok(())
    })
    .await?;
    ensure!(std::fs::read(head.join("b"))? == b"not committed", "what only the old owner has is kept");
    let there = t.mount("n2", &fs_id).await?;
    ensure!(std::fs::read(there.join("a"))? == b"committed" && !there.join("b").exists());
    t.unmount(&there).await?;
    t.unmount(&head).await
}

async fn silent(t: Arc<Test>) -> Result<()> {
    let (fs_id, _) = filled(&t, "d").await?;
    let commit = t.commit("c1", "d").await?;
    let spec = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "schedule": {"onCommit": true}});
    t.create("ReplicationJob", "j", &spec).await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", None).await?;
    t.rig.pause("n1")?;
    said_to_be_silent(&t).await?;
    place(&t, "d", "n2").await?;
    let kept = throughout("authority to stay", Duration::from_secs(5), || async {
        let a = authority(&t, &fs_id).await?;
        ensure!(a["epoch"] == 1 && a["owner"]["node"] == "n1", "{a}");
        Ok(())
    });
    let kept = kept.await;
    t.rig.resume("n1")?;
    kept?;
    t.kube().until_condition(("NodePool", "", "n1"), ("Ready", "True", None), STEP).await?;
    owned_by(&t, "d", "n2").await?;
    t.ready("Dot", "d").await.map(drop)
}

/// The pool, and what depends on it, says that nobody knows how it is; by the Lease, which counts for less long here than the agent wanted.
async fn said_to_be_silent(t: &Test) -> Result<()> {
    let counts = r#"{"spec":{"leaseDurationSeconds":10}}"#;
    t.kube().kubectl(&["-n", "dotgraft-system", "patch", "lease", "dotgraft-agent-n1", "--type=merge", "-p", counts]).await?;
    t.kube().until_condition(("NodePool", "", "n1"), ("Ready", "Unknown", Some("AgentSilent")), STEP).await?;
    t.condition("Dot", "d", "Ready", "False", Some("OwnerNotReady")).await?;
    t.condition("ReplicationJob", "j", "Ready", "False", Some("OwnerNotReady")).await?;
    let status = dot(t, &["status", "d"]).await?;
    ensure!(status.contains("AgentSilent"), "status says nothing of it: {status}");
    let listed = t.kube().kubectl(&["get", "nodepools", "n1"]).await?;
    ensure!(listed.contains("Unknown"), "{listed}");
    t.kube().until_condition(("NodePool", "", "n2"), ("Ready", "True", None), STEP).await.map(drop)
}
