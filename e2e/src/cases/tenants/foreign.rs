//! A Dot of namespace b that names a Filesystem of namespace a, and all that can be made of such a Dot.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::harness::test::STEP;
use crate::steps::left::nothing_left;
use crate::steps::owner::authority;
use crate::steps::tenant::Tenant;

/// In the message of a commit of a's.
const SECRET: &str = "what-a-alone-knows";
/// How long everything of b's has to reach something.
const SPAN: Duration = Duration::from_secs(12);

/// The Dot `payroll` of the test's namespace, mounted on n1, with a copy on n2 and a commit: its Filesystem's id, that commit's, the mount.
async fn theirs(t: &Test) -> Result<(String, String, PathBuf)> {
    let fs_id = t.dot_of("payroll", &json!({"capacity": "256Mi", "placement": {"node": "n1"}})).await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("word"), b"theirs")?;
    let commit = json!({"source": {"kind": "Dot", "name": "payroll"}, "message": SECRET});
    t.create("Commit", "c1", &commit).await?;
    let made = t.ready("Commit", "c1").await?;
    let commit = made["status"]["id"].as_str().context("no id")?.to_owned();
    t.push("j", "payroll", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    Ok((fs_id, commit, head))
}

/// It may not name another's Filesystem: neither at creation nor later, as Dot or as Branch, nor with all rights in its own namespace.
async fn names_none(t: &Test, b: &Tenant, fs_id: &str) -> Result<()> {
    let dot = json!({"capacity": "256Mi", "fsId": fs_id});
    for round in ["edit", "everything"] {
        b.may_not_create("Dot", "stolen", &dot, "the verb claim").await?;
        b.may_not_create("Branch", "stolen", &json!({"dot": "own", "fsId": fs_id}), "the verb claim").await?;
        let patch = json!({"spec": {"fsId": fs_id}}).to_string();
        let patched = b.kubectl(&["patch", "dbranch", "waiting", "--type=merge", "-p", &patch]).await;
        let why = patched.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(why.contains("the verb claim"), "to patch Branch waiting: {why:?}");
        if round == "edit" {
            b.may_do_everything(t).await?;
        }
    }
    Ok(())
}

/// All that b can ask for by a Dot that says it is `fs_id`.
async fn ask(b: &Tenant, commit: &str) -> Result<()> {
    b.claim("read", "ReadOnlyMany", "Dot", "stolen").await?;
    b.claim("write", "ReadWriteOnce", "Dot", "stolen").await?;
    let stolen = json!({"kind": "Dot", "name": "stolen"});
    b.create("Branch", "newest", &json!({"dot": "stolen"})).await?;
    b.create("Branch", "by-id", &json!({"dot": "stolen", "from": {"commit": commit}})).await?;
    b.create("Commit", "c", &json!({"source": stolen})).await?;
    b.claim("restored", "ReadWriteOnce", "Commit", "c").await?;
    b.create("DotOperation", "reset", &json!({"target": stolen, "reset": {"commit": commit}})).await?;
    b.create("DotOperation", "promote", &json!({"target": stolen, "promote": {"node": "n2", "acceptLoss": true}})).await?;
    b.create("ReplicationJob", "push", &json!({"direction": "Push", "source": {"names": ["stolen"]}, "target": {"node": "n2"}})).await?;
    let moved = json!({"spec": {"placement": {"node": "n2", "replicas": 2}, "capacity": "1Gi"}}).to_string();
    b.kubectl(&["patch", "dot", "stolen", "--type=merge", "-p", &moved]).await?;
    Ok(())
}

/// What of it has been had, in words; empty as it should be.
async fn had(t: &Test, b: &Tenant, fs_id: &str, before: &Value) -> Result<Vec<String>> {
    let mut had = Vec::new();
    let get = |kind: &'static str, name: &'static str| async move {
        let object = b.kube.get(kind, &b.namespace, name).await?.with_context(|| format!("no {kind} {name}"))?;
        anyhow::Ok(object["status"].clone())
    };
    let volumes = t.kube().kubectl(&["get", "pv", "-o", "json"]).await?;
    if volumes.contains(&format!("\"namespace\": \"{}\"", b.namespace)) {
        had.push("a PersistentVolume of a's for a PVC of b's".to_owned());
    }
    for name in ["newest", "by-id"] {
        let object = b.kube.get("Branch", &b.namespace, name).await?.context("no Branch")?;
        if !object["spec"]["fsId"].is_null() {
            had.push(format!("Branch {name}"));
        }
    }
    if !get("Commit", "c").await?["id"].is_null() {
        had.push("a Commit".to_owned());
    }
    for name in ["reset", "promote"] {
        let status = get("DotOperation", name).await?;
        if status["phase"] == "Done" || !status["reset"].is_null() || !status["from"].is_null() {
            had.push(format!("DotOperation {name}: {status}"));
        }
    }
    let status = get("Dot", "stolen").await?;
    for field in ["owner", "pool", "epoch", "head", "bytes", "limit", "replicas", "recentCommits", "migration", "claims"] {
        if !status[field].is_null() {
            had.push(format!("status.{field} {}", status[field]));
        }
    }
    let now = authority(t, fs_id).await?;
    if (&now["owner"], &now["epoch"]) != (&before["owner"], &before["epoch"]) {
        had.push(format!("authority: it was {before} and is {now}"));
    }
    let replica = t.replica(fs_id, "n1").await?;
    let jobs = replica["spec"]["desired"]["jobs"].as_array().cloned().unwrap_or_default();
    if jobs.iter().any(|j| j["namespace"] == *b.namespace) {
        had.push("a push job".to_owned());
    }
    if replica["spec"]["desired"]["capacity"] != 256 << 20 {
        had.push(format!("capacity {}", replica["spec"]["desired"]["capacity"]));
    }
    let sees = b.sees().await?;
    for word in [SECRET, &format!("\"{}\"", t.namespace), &format!("{}/", t.namespace), "payroll"] {
        if sees.contains(word) {
            had.push(format!("the words {word:?}"));
        }
    }
    Ok(had)
}

/// `tenants-foreign-id`.
pub async fn id(t: Arc<Test>) -> Result<()> {
    let (fs_id, commit, head) = theirs(&t).await?;
    let b = Tenant::come(&t, "b").await?;
    b.create("Branch", "waiting", &json!({"dot": "nothing"})).await?;
    names_none(&t, &b, &fs_id).await?;
    // One that is there all the same: from before there was a policy, or by a slip of an administrator.
    t.kube().create(&b.namespace, &b.object("Dot", "stolen", &json!({"capacity": "256Mi", "fsId": fs_id}))).await?;
    let stolen = ("Dot", b.namespace.as_str(), "stolen");
    t.kube().until_condition(stolen, ("Ready", "False", Some("ClaimMismatch")), STEP).await?;
    let before = authority(&t, &fs_id).await?;
    ask(&b, &commit).await?;
    tokio::time::sleep(SPAN).await;
    let had = had(&t, &b, &fs_id, &before).await?;
    ensure!(had.is_empty(), "b has had: {}", had.join("; "));

    // Who has the head mounted goes on. Then a's Dot goes when a wants, though all of b's is still there.
    ensure!(std::fs::read(head.join("word"))? == b"theirs", "what it had written");
    std::fs::write(head.join("word"), b"on").context("to write on")?;
    t.unmount(&head).await?;
    t.kubectl(&["delete", "dot", "payroll", "--timeout=60s"]).await?;
    nothing_left(&t, &fs_id).await?;
    b.leave(&t).await
}
