//! `DotOperation` reset (design §4: what replaces a head waits until nothing has it mounted): what was there is kept, replicas follow by
//! increments, and it ends the same whenever the agent dies.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::{same_trees, tree_digest};
use crate::data::tree as source;
use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::{eventually, throughout};
use crate::steps::cli::{dot, dot_as};
use crate::steps::kill::{Operation, everywhere};

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "reset-dot",
            "a Dot becomes a commit again, once nobody has it mounted; what it held is kept, and replicas follow",
            whole,
        ),
        Case::new(
            "7-commit/reset",
            "a commit that is read and being sent: a volume is reset to it meanwhile, and its deletion waits for both, by name",
            read_meanwhile,
        ),
        Case::new("reset-branch", "a Branch becomes what it began with, or is reset by kubectl dot reset", branch),
        Case::new("reset-refused", "a reset to what is not there is refused, by name, and changes nothing", refused),
        Case::new("reset-given-up", "a reset that kubectl dot has given up waiting for is taken back, and not done later", given_up),
        Case::new("reset-hold", "a reset with hold keeps new mounts of the volume back until it is done or deleted", holds),
        Case::new("reset-evict-rights", "reset --evict by who may not evict pods does nothing, and says why", rights),
        Case::new("5-reset", "killed at every journal record of a reset, it ends the same", |t| everywhere(t, Reset)),
    ]
}

async fn reset(t: &Test, name: &str, of: &Value, commit: Option<&str>) -> Result<()> {
    let reset = commit.map_or_else(|| json!({}), |c| json!({"commit": c}));
    t.create("DotOperation", name, &json!({"target": of, "reset": reset})).await?;
    Ok(())
}

async fn done(t: &Test, name: &str) -> Result<Value> {
    let object = t.object("DotOperation", name).await?;
    ensure!(object["status"]["phase"] == "Done", "{name}: {}", object["status"]);
    Ok(object)
}

/// The id of the Commit that keeps what was there.
async fn kept(t: &Test, operation: &Value) -> Result<String> {
    text(&t.object("Commit", &text(operation, "/status/reset/kept")?).await?, "/status/id")
}

async fn whole(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot_of("d", &json!({"capacity": "256Mi", "placement": {"node": "n1"}})).await?;
    let head = t.mount("n1", &fs_id).await?;
    source::copy(&source::source(400)?, &head.join("tree"), 400)?;
    let first = tree_digest(&head)?;
    t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    std::fs::remove_dir_all(head.join("tree").join(first_name(&head.join("tree"))?))?;
    std::fs::write(head.join("later"), b"written later")?;
    t.commit("c2", "d").await?;
    std::fs::write(head.join("last"), b"in no commit yet")?;
    reset(&t, "r", &json!({"name": "d"}), Some("c1")).await?;
    eventually("the reset to name who has it mounted", STEP, || async {
        let o = t.object("DotOperation", "r").await?;
        let message = o["status"]["message"].as_str().unwrap_or_default();
        ensure!(o["status"].get("phase").is_none() && message.contains("mounted"), "{}", o["status"]);
        Ok(())
    })
    .await?;
    std::fs::write(head.join("while-it-waits"), b"still writable")?;
    let last = tree_digest(&head)?;
    t.unmount(&head).await?;
    let operation = eventually("the reset", STEP, || done(&t, "r")).await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(tree_digest(&head)? == first, "the head is not what it was in c1");
    let before = t.mount_commit("n1", &fs_id, &kept(&t, &operation).await?).await?;
    ensure!(tree_digest(&before)? == last, "what was there before is not kept");
    t.unmount(&before).await?;
    std::fs::write(head.join("after"), b"goes on from there")?;
    let c3 = t.commit("c3", "d").await?;
    t.trigger("j", "again").await?;
    t.arrived(&fs_id, &c3, "n2", STEP).await?;
    let (here, there) = (t.mount_commit("n1", &fs_id, &c3).await?, t.mount_commit("n2", &fs_id, &c3).await?);
    same_trees(&here, &there)?;
    for path in [&here, &there, &head] {
        t.unmount(path).await?;
    }
    Ok(())
}

async fn read_meanwhile(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), crate::steps::left::noise(24 << 20))?;
    let commit = t.commit("c1", "d").await?;
    let reader = t.mount_commit("n1", &fs_id, &commit).await?;
    let first = tree_digest(&reader)?;
    std::fs::write(head.join("b"), b"in no commit yet")?;
    t.unmount(&head).await?;
    let limits = json!({"bandwidth": "1Mi"});
    let spec = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "limits": limits});
    t.create("ReplicationJob", "j", &spec).await?;
    eventually("the transfer to begin", STEP, || async {
        let sent = t.object("ReplicationJob", "j").await?["status"]["progress"]["replicatedBytes"].as_u64().unwrap_or_default();
        ensure!(sent > 0, "nothing is sent");
        Ok(())
    })
    .await?;
    reset(&t, "r", &json!({"name": "d"}), Some("c1")).await?;
    eventually("the reset", STEP, || done(&t, "r")).await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(
        tree_digest(&head)? == first && tree_digest(&reader)? == first,
        "the head is not what it was, or the reader's commit has changed"
    );

    t.kube().delete("Commit", &t.namespace, "c1").await?;
    let waits = async |words: &str| {
        eventually("the Commit to say why it stays", STEP, || async {
            let said = conditions(&t.object("Commit", "c1").await?);
            ensure!(said.contains("Pinned") && said.contains(words), "{said}");
            Ok(())
        })
        .await
    };
    waits("a replication job that is sending it").await?;
    t.kube().patch("ReplicationJob", &t.namespace, "j", "", &json!({"spec": {"limits": null}})).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    waits(&reader.to_string_lossy()).await?;
    ensure!(tree_digest(&reader)? == first, "the reader's commit has changed");
    t.unmount(&reader).await?;
    // A copy that took over now would begin with it (ADR 7).
    waits("a reset of this Filesystem").await?;
    let second = t.commit("c2", "d").await?;
    t.kube().gone("Commit", &t.namespace, "c1", STEP).await?;
    t.trigger("j", "again").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await?;
    let there = t.mount_commit("n2", &fs_id, &second).await?;
    ensure!(tree_digest(&there)? == first, "the copy is not what the head was reset to");
    Ok(())
}

fn first_name(dir: &std::path::Path) -> Result<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir)?.flatten().filter(|e| e.path().is_dir()).map(|e| e.file_name()).collect();
    names.sort();
    names.into_iter().next().context("no directory")
}

async fn branch(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"production")?;
    let origin = tree_digest(&head)?;
    t.commit("c1", "d").await?;
    t.unmount(&head).await?;
    dot(&t, &["branch", "d", "b"]).await?;
    let of_branch = text(&t.object("Branch", "b").await?, "/status/fsId")?;
    let (test, volume) = (&t, &of_branch);
    let spoil = |bytes: &'static [u8]| async move {
        let head = test.mount("n1", volume).await?;
        std::fs::write(head.join("a"), bytes)?;
        let digest = tree_digest(&head)?;
        test.unmount(&head).await?;
        anyhow::Ok(digest)
    };
    let is = |digest: String| async move {
        let head = test.mount("n1", volume).await?;
        ensure!(tree_digest(&head)? == digest, "the branch is not what it was");
        test.unmount(&head).await
    };
    spoil(b"spoilt").await?;
    let told = dot(&t, &["reset", "branch/b"]).await?;
    ensure!(told.contains("branch/b") && told.contains("commit/before-reset-b-"), "{told}");
    is(origin.clone()).await?;
    let second = spoil(b"second").await?;
    dot(&t, &["commit", "branch/b", "-m", "second"]).await?;
    spoil(b"third").await?;
    // Without a name it is the newest commit: the last one a person took, not what an earlier reset kept.
    dot(&t, &["reset", "branch/b"]).await?;
    is(second).await?;
    dot(&t, &["reset", "branch/b", "--to", "c1"]).await?;
    is(origin).await
}

async fn refused(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"as it is")?;
    let digest = tree_digest(&head)?;
    t.unmount(&head).await?;
    let other = t.dot("other", "n1").await?;
    t.commit("foreign", "other").await?;
    for (args, why) in [
        (vec!["reset", "d"], "no commit yet"),
        (vec!["reset", "d", "--to", "nothing"], "no Commit `nothing`"),
        (vec!["reset", "d", "--to", "foreign"], "another volume"),
    ] {
        let said = dot(&t, &args).await.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(said.contains(why), "{args:?}: {said}");
    }
    // Who writes the object is told the same by it.
    reset(&t, "typo", &json!({"name": "d"}), Some("nothing")).await?;
    eventually("the operation to be refused", STEP, || async {
        let o = t.object("DotOperation", "typo").await?;
        let why = o["status"]["message"].as_str().unwrap_or_default();
        ensure!(o["status"]["phase"] == "Refused" && why.contains("no Commit `nothing`"), "{}", o["status"]);
        Ok(())
    })
    .await?;
    // An id that the owner doesn't have: it waits, and says so; the Dot can be used, and goes on when the operation is taken back.
    reset(&t, "r", &json!({"name": "d"}), Some(&other)).await?;
    eventually("the reset to say what is missing", STEP, || async {
        let o = t.object("DotOperation", "r").await?;
        ensure!(o["status"]["message"].as_str().is_some_and(|m| m.contains("there is no commit")), "{}", o["status"]);
        Ok(())
    })
    .await?;
    t.commit("c1", "d").await?;
    t.kube().delete("DotOperation", &t.namespace, "r").await?;
    t.kube().delete("Commit", &t.namespace, "before-r").await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(tree_digest(&head)? == digest, "it changed");
    t.unmount(&head).await
}

/// What a command gave up waiting for is not done later, when nobody expects it.
async fn given_up(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"one")?;
    t.commit("c1", "d").await?;
    std::fs::write(head.join("a"), b"two")?;
    // Somebody else's, made by its object: it stays, and is shown.
    reset(&t, "stays", &json!({"name": "d"}), Some("c1")).await?;
    eventually("status to say what waits", STEP, || async {
        let status = dot(&t, &["status", "d"]).await?;
        ensure!(status.contains("stays") && status.contains("mounted"), "{status}");
        Ok(())
    })
    .await?;
    let listed = t.kubectl(&["get", "dotoperations"]).await?;
    ensure!(listed.contains("Pending"), "{listed}");
    t.kube().delete("DotOperation", &t.namespace, "stays").await?;
    t.condition("Commit", "before-stays", "Ready", "False", Some("Cancelled")).await?;
    t.kube().delete("Commit", &t.namespace, "before-stays").await?;
    t.kube().gone("Commit", &t.namespace, "before-stays", STEP).await?;

    let said = dot(&t, &["reset", "d", "--timeout", "3"]).await.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(said.contains("after 3 s") && said.contains("mounted") && said.contains("taken back"), "{said}");
    let left = t.kube().names("DotOperation", &t.namespace, |_| true).await?;
    ensure!(left.is_empty(), "{left:?}");
    t.unmount(&head).await?;
    throughout("the volume to stay what it is", std::time::Duration::from_secs(3), || async {
        let head = t.mount("n1", &fs_id).await?;
        ensure!(std::fs::read(head.join("a"))? == b"two", "it was reset after all");
        t.unmount(&head).await
    })
    .await
}

async fn holds(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"one")?;
    let c1 = t.commit("c1", "d").await?;
    std::fs::write(head.join("a"), b"two")?;
    let begin = |name: &'static str| {
        let t = t.clone();
        async move {
            t.create("DotOperation", name, &json!({"target": {"name": "d"}, "reset": {"commit": "c1", "hold": true}})).await?;
            eventually("the reset to hold", STEP, || async {
                let status = t.object("DotOperation", name).await?["status"].clone();
                let message = status["message"].as_str().unwrap_or_default();
                let until = status["reset"]["holdUntil"].as_str().unwrap_or("?");
                ensure!(
                    status["reset"]["holding"] == true
                        && message.contains("mounted")
                        && until.get(..16).is_some_and(|until| message.contains(until)),
                    "{status}"
                );
                Ok(())
            })
            .await
        }
    };
    let other = t.dir.join("other");
    std::fs::create_dir_all(&other)?;
    let late = |t: &Test| t.local("n1").map(|local| (local, other.clone(), fs_id.clone()));
    let refused = |t: Arc<Test>| async move {
        let (local, path, fs_id) = late(&t)?;
        let said = local.mount(&fs_id, &path, None).await.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(said.contains("a reset keeps new mounts back"), "{said}");
        anyhow::Ok(())
    };
    begin("r1").await?;
    refused(t.clone()).await?;
    let read = t.mount_commit("n1", &fs_id, &c1).await?;
    t.unmount(&read).await?;
    t.kube().delete("DotOperation", &t.namespace, "r1").await?;
    let second = t.mount("n1", &fs_id).await?;
    ensure!(std::fs::read(second.join("a"))? == b"two", "it was reset");
    t.unmount(&second).await?;

    begin("r2").await?;
    refused(t.clone()).await?;
    t.unmount(&head).await?;
    let operation = eventually("the reset", STEP, || done(&t, "r2")).await?;
    ensure!(operation["status"]["reset"]["holding"] == false, "{}", operation["status"]);
    let head = t.mount("n1", &fs_id).await?;
    ensure!(std::fs::read(head.join("a"))? == b"one", "the head is not what it was in c1");
    t.unmount(&head).await
}

async fn rights(t: Arc<Test>) -> Result<()> {
    t.dot("d", "n1").await?;
    t.kubectl(&["create", "serviceaccount", "dev"]).await?;
    let account = format!("--serviceaccount={}:dev", t.namespace);
    for (name, role) in [("dot-edit", "dotgraft-edit"), ("see", "view")] {
        t.kubectl(&["create", "rolebinding", name, &format!("--clusterrole={role}"), &account]).await?;
    }
    let mut config: Value = serde_json::from_str(&t.kubectl(&["config", "view", "--raw", "-o", "json"]).await?)?;
    let token = t.kubectl(&["create", "token", "dev"]).await?;
    for user in config["users"].as_array_mut().into_iter().flatten() {
        user["user"] = json!({"token": token.trim()});
    }
    let path = t.dir.join("dev.kubeconfig");
    std::fs::write(&path, config.to_string())?;
    let said = dot_as(&t, &path, &["reset", "d", "--evict"]).await.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(said.contains("pods/eviction") && said.contains("nothing was done"), "{said}");
    ensure!(t.kube().list("DotOperation", &t.namespace).await?.is_empty(), "an operation was made");
    Ok(())
}

/// A reset by which the file of [`Operation::prepare`] comes back.
struct Reset;

fn name(n: usize) -> String {
    format!("d{n}")
}

impl Operation for Reset {
    fn node(&self) -> &'static str {
        "n1"
    }
    fn has(&self) -> &'static [&'static str] {
        &["commit-intent", "reset-commit", "reset-begun", "reset-done", "commit-done", "auth-open"]
    }
    async fn prepare(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = t.dot_of(&name(n), &json!({"capacity": "256Mi", "placement": {"node": "n1"}})).await?;
        let head = t.mount("n1", &fs_id).await?;
        std::fs::write(head.join("a"), b"one")?;
        t.commit(&format!("c{n}"), &name(n)).await?;
        std::fs::write(head.join("a"), b"two")?;
        t.unmount(&head).await
    }
    async fn begin(&self, t: &Test, n: usize) -> Result<()> {
        reset(t, &format!("r{n}"), &json!({"name": name(n)}), Some(&format!("c{n}"))).await
    }
    async fn ended(&self, t: &Test, n: usize) -> Result<Option<String>> {
        done(t, &format!("r{n}")).await?;
        let object = t.object("Dot", &name(n)).await?;
        let ready = crate::rig::kube::condition_of(&object, "Ready").is_some_and(|c| c["status"] == "True");
        ensure!(ready, "{}", conditions(&object));
        Ok(Some(text(&object, "/status/fsId")?))
    }
    async fn check(&self, t: &Test, n: usize) -> Result<()> {
        let fs_id = text(&t.object("Dot", &name(n)).await?, "/status/fsId")?;
        let operation = t.object("DotOperation", &format!("r{n}")).await?;
        let (head, before) = (t.mount("n1", &fs_id).await?, t.mount_commit("n1", &fs_id, &kept(t, &operation).await?).await?);
        ensure!(std::fs::read(head.join("a"))? == b"one", "the head is not what it was in the commit");
        ensure!(std::fs::read(before.join("a"))? == b"two", "what was there before is not kept");
        t.unmount(&head).await?;
        t.unmount(&before).await
    }
}
