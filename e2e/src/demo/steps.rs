//! The steps of the demo, in order. A step that doesn't find what it must find ends the demo with an error.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Demo, ENTRIES};
use crate::data::digest::{Tree, same_trees, tree};
use crate::data::sqlite::{self, SqliteWriter};
use crate::data::tree as trees;
use crate::harness::test::text;
use crate::local::Local;
use crate::rig::kube::conditions;
use crate::rig::wait::{eventually, eventually_quiet};

const NAMESPACE: &str = "demo";
const JOB: &str = "shop-to-n2";
/// For a step that copies nothing.
const SOON: Duration = Duration::from_secs(30);
/// For a push.
const LONG: Duration = Duration::from_secs(300);

/// A commit and what was acknowledged to the database's writer before it was asked for.
struct Known {
    id: String,
    acknowledged: i64,
}

impl Demo {
    /// All steps; returns what `kubectl describe` said about the job.
    pub(super) async fn steps(&mut self, keep: bool) -> Result<String> {
        self.nodes().await?;
        let fs_id = self.make_dot().await?;
        let head = self.mount("n1", &fs_id, None).await?;
        let notes = self.dir.join("acknowledged");
        let mut writer = self.fill(&head, &notes).await?;
        let first = self.commit("2-commit.yaml", "before-the-sale", &mut writer).await?;
        self.first_push(&fs_id, &first).await?;
        change(&head)?;
        self.show.say("Changed, removed, renamed and added files in it, beside the database.");
        let second = self.commit("4-commit.yaml", "after-the-sale", &mut writer).await?;
        self.second_push(&fs_id, &second).await?;
        self.compare(&fs_id, [&first, &second]).await?;
        let branch = self.branch(&fs_id, &first).await?;
        let newest = writer.stop()?;
        self.show.say(&format!("The writer has written {newest} transactions all the while."));
        self.nothing_to_do().await?;
        let describe = self.show.kubectl(&format!("describe replicationjob {JOB} -n {NAMESPACE}")).await?;
        if !keep {
            self.delete(&head, &branch).await?;
        }
        Ok(format!("This is what kubectl describe said before the deletion:\n\n{describe}"))
    }

    fn local(&self, node: &str) -> Result<Local> {
        Ok(Local::new(&self.rig.node(node)?.files.socket))
    }

    /// Mounts as the CSI node service will: by the agent's socket. `commit`: read-only.
    async fn mount(&self, node: &str, fs_id: &str, commit: Option<&str>) -> Result<PathBuf> {
        let name = commit.map_or_else(|| "head".to_owned(), |c| c.chars().rev().take(6).collect());
        let target = self.dir.join(format!("{node}-{}-{name}", fs_id.get(28..).unwrap_or_default()));
        let what = commit.map_or_else(|| "the head".to_owned(), |c| format!("commit {c}, read-only,"));
        self.show.say(&format!("Mount of {what} at {} by the socket of {node}'s agent", target.display()));
        let local = self.local(node)?;
        eventually("the mount", SOON, || local.mount(fs_id, &target, commit)).await?;
        Ok(target)
    }

    async fn nodes(&mut self) -> Result<()> {
        self.show.step("Two nodes, each with an agent and a pool of its own");
        let kube = self.rig.kube.clone();
        for node in &self.rig.nodes {
            kube.until_condition(("NodePool", "", &node.name), ("Ready", "True", None), SOON).await?;
        }
        self.show.kubectl("get nodepools").await?;
        self.show.kubectl("create namespace demo").await?;
        Ok(())
    }

    async fn make_dot(&mut self) -> Result<String> {
        self.show.step("A Dot: a versioned volume on n1");
        let start = Instant::now();
        self.show.apply("1-dot.yaml").await?;
        let dot = self.ready("Dot", "shop").await?;
        self.show.took("a Dot, from apply to ready", start);
        self.show.kubectl("get dots -n demo -o wide").await?;
        text(&dot, "/status/fsId")
    }

    async fn ready(&self, kind: &str, name: &str) -> Result<Value> {
        self.rig.kube.until_condition((kind, NAMESPACE, name), ("Ready", "True", None), SOON).await
    }

    async fn fill(&mut self, head: &Path, notes: &Path) -> Result<SqliteWriter> {
        self.show.step("Data: a database that is written to all the while, and a tree of files");
        let writer = SqliteWriter::start(&head.join("shop.db"), notes).await?;
        self.show.say("A process now writes transactions to shop.db (SQLite, WAL, synchronous=FULL).");
        let source = trees::source(ENTRIES)?;
        let to = head.join("files");
        self.show.say(&format!("$ cp -a {}/… {}", source.display(), to.display()));
        let start = Instant::now();
        let copied = tokio::task::spawn_blocking(move || trees::copy(&source, &to, ENTRIES)).await??;
        self.show.took(&format!("copying {} files, directories and links in", copied.entries), start);
        Ok(writer)
    }

    async fn commit(&mut self, file: &str, name: &str, writer: &mut SqliteWriter) -> Result<Known> {
        self.show.step("A commit");
        let acknowledged = writer.progress()?;
        let start = Instant::now();
        self.show.apply(file).await?;
        let commit = self.ready("Commit", name).await?;
        self.show.took(&format!("commit {name}, from apply to ready"), start);
        self.show.say(&format!("{acknowledged} transactions were acknowledged before; {} by now.", writer.progress()?));
        self.show.kubectl("get commits -n demo -o wide").await?;
        Ok(Known { id: text(&commit, "/status/id")?, acknowledged })
    }

    async fn first_push(&mut self, fs_id: &str, commit: &Known) -> Result<()> {
        self.show.step("A push to n2: the first copy, while the database is being written to");
        let start = Instant::now();
        self.show.apply("3-push.yaml").await?;
        self.completed("first").await?;
        self.show.took("push of the first copy, from apply to completed", start);
        self.arrived(fs_id, &commit.id).await
    }

    async fn second_push(&mut self, fs_id: &str, commit: &Known) -> Result<()> {
        self.show.step("A push of what has changed since");
        let start = Instant::now();
        self.trigger("second").await?;
        self.completed("second").await?;
        self.show.took("push of the increment, from trigger to completed", start);
        self.arrived(fs_id, &commit.id).await
    }

    async fn nothing_to_do(&mut self) -> Result<()> {
        self.show.step("A push with nothing to do, and what the job has to say");
        let start = Instant::now();
        self.trigger("third").await?;
        self.completed("third").await?;
        self.show.took("push with nothing to do, from trigger to completed", start);
        Ok(())
    }

    async fn trigger(&self, value: &str) -> Result<()> {
        let patch = format!(r#"patch replicationjob {JOB} -n {NAMESPACE} --type=merge -p {{"spec":{{"trigger":"{value}"}}}}"#);
        self.show.kubectl(&patch).await?;
        Ok(())
    }

    /// Watches the job as a person would, a line whenever it changes, until the run of this trigger is completed.
    async fn completed(&self, trigger: &str) -> Result<()> {
        println!("   $ kubectl get replicationjob {JOB} -n {NAMESPACE} -o wide --watch");
        let last = std::sync::Mutex::new(String::new());
        eventually_quiet(&format!("the run of trigger {trigger}"), LONG, || async {
            let job = self.rig.kube.get("ReplicationJob", NAMESPACE, JOB).await?.context("the job is gone")?;
            self.watch_line(&job, &last).await?;
            let status = job.get("status").context("no status yet")?;
            ensure!(status["observedTrigger"] == *trigger, "the trigger is not observed yet");
            match status["state"].as_str() {
                Some("Completed") => Ok(()),
                Some(state) => bail!("{state}; {}", conditions(&job)),
                None => bail!("no state yet"),
            }
        })
        .await
    }

    async fn watch_line(&self, job: &Value, last: &std::sync::Mutex<String>) -> Result<()> {
        let seen = format!("{} {}", job["status"]["state"], job["status"]["progress"]);
        let first = {
            let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *last == seen {
                return Ok(());
            }
            std::mem::replace(&mut *last, seen).is_empty()
        };
        let table = self.rig.kube.kubectl(&["get", "replicationjob", JOB, "-n", NAMESPACE, "-o", "wide"]).await?;
        if let (true, Some(header)) = (first, table.lines().next()) {
            println!("     {header}");
        }
        let line = table.lines().nth(1).unwrap_or_default();
        let progress = &job["status"]["progress"];
        let extra = match (progress["bytesPerSecond"].as_u64(), progress["eta"].as_str()) {
            (Some(rate), eta) => format!("  {:.1} MB/s {}", megabytes(rate), eta.map(|e| format!("ETA {e}")).unwrap_or_default()),
            _ => String::new(),
        };
        println!("     {}{extra}", line.trim_end());
        Ok(())
    }

    async fn arrived(&self, fs_id: &str, commit: &str) -> Result<()> {
        let status = self.rig.kube.list("Replica", "").await?;
        let replica = status.iter().find(|r| r["spec"]["fsId"] == *fs_id && r["spec"]["node"] == "n2");
        let head = replica.and_then(|r| r.pointer("/status/head")).and_then(Value::as_str).unwrap_or_default();
        if head != commit {
            bail!("the job says Completed, but the newest commit on n2 is {head:?}, not {commit}");
        }
        Ok(())
    }

    async fn compare(&mut self, fs_id: &str, commits: [&Known; 2]) -> Result<()> {
        self.show.step("Is what arrived what was sent? Both commits, on both nodes, by a reader that shares no code with the agents");
        for (i, commit) in commits.into_iter().enumerate() {
            let here = self.mount("n1", fs_id, Some(&commit.id)).await?;
            let there = self.mount("n2", fs_id, Some(&commit.id)).await?;
            let start = Instant::now();
            let same = both(here.clone(), there.clone()).await?;
            self.show.say(&format!("{} entries, {:.0} MB: equal. BLAKE3 {}", same.count(), megabytes(same.bytes), same.digest()));
            self.show.took(&format!("reading and comparing commit {} on both nodes", i + 1), start);
            let newest = sqlite::check(&there.join("shop.db"), &self.dir.join("check"), commit.acknowledged)?;
            let acknowledged = commit.acknowledged;
            self.show.say(&format!("PRAGMA integrity_check on n2: ok; {newest} transactions, {acknowledged} were acknowledged before."));
            self.local("n1")?.unmount(&here).await?;
            self.local("n2")?.unmount(&there).await?;
        }
        Ok(())
    }

    async fn branch(&mut self, fs_id: &str, from: &Known) -> Result<PathBuf> {
        self.show.step("A branch from the first commit: another volume, at once");
        let start = Instant::now();
        self.show.apply("5-branch.yaml").await?;
        let branch = self.ready("Branch", "experiment").await?;
        self.show.took("a branch, from apply to ready", start);
        let id = text(&branch, "/status/fsId")?;
        let head = self.mount("n1", &id, None).await?;
        let commit = self.mount("n1", fs_id, Some(&from.id)).await?;
        let same = both(head.clone(), commit.clone()).await.context("the branch must start as its commit is")?;
        self.show.say(&format!("It holds what the commit holds: {} entries, equal.", same.count()));
        let before = blocking(commit.clone(), |p| tree(&p)).await?;
        change(&head)?;
        let (changed, after) = (blocking(head.clone(), |p| tree(&p)).await?, blocking(commit.clone(), |p| tree(&p)).await?);
        let differences = before.differences(&changed).len();
        ensure!(differences > 0, "the change in the branch can't be seen");
        ensure!(before == after, "the change in the branch can be seen in the commit");
        self.show.say(&format!("Changed in the branch: {differences} entries differ; the commit is as it was."));
        self.local("n1")?.unmount(&commit).await?;
        self.show.apply("6-commit-branch.yaml").await?;
        self.ready("Commit", "experiment-1").await?;
        self.show.kubectl("get branches,commits -n demo").await?;
        Ok(head)
    }

    async fn delete(&mut self, head: &Path, branch: &Path) -> Result<()> {
        self.show.step("Deletion: branch, job, commits, Dot; nothing stays on any node");
        self.local("n1")?.unmount(branch).await?;
        self.local("n1")?.unmount(head).await?;
        let start = Instant::now();
        for what in ["commit experiment-1", "branch experiment", &format!("replicationjob {JOB}"), "commits --all", "dot shop"] {
            self.show.kubectl(&format!("delete {what} -n {NAMESPACE} --timeout=60s")).await?;
        }
        let kube = &self.rig.kube;
        eventually("every Filesystem and Replica to be gone", LONG, || async {
            for kind in ["Filesystem", "Replica"] {
                let left = kube.names(kind, "", |_| true).await?;
                ensure!(left.is_empty(), "{kind} {} is still there", left.join(", "));
            }
            Ok(())
        })
        .await?;
        self.show.took("deletion of all, on both nodes", start);
        self.show.kubectl("get dots,filesystems,replicas -A").await?;
        for node in ["n1", "n2"] {
            let status = self.local(node)?.status("").await?;
            let empty = status.as_array().is_some_and(Vec::is_empty) || status.as_object().is_some_and(serde_json::Map::is_empty);
            ensure!(empty, "the agent of {node} still knows {status}");
        }
        self.show.say("Both agents answer that they hold nothing.");
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

async fn blocking<T: Send + 'static>(path: PathBuf, f: impl FnOnce(PathBuf) -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(move || f(path)).await?
}

async fn both(left: PathBuf, right: PathBuf) -> Result<Tree> {
    blocking(left, move |left| same_trees(&left, &right)).await
}

/// Changes a tree as people do: every twentieth file grows, some go, some get another name, some are new.
fn change(head: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut files = Vec::new();
    list(&head.join("files"), &mut files)?;
    files.sort();
    for (i, file) in files.iter().enumerate() {
        match i % 100 {
            20 | 40 | 60 | 80 => std::fs::File::options().append(true).open(file)?.write_all(b"changed by the demo\n")?,
            50 if i % 1000 == 50 => std::fs::remove_file(file)?,
            70 if i % 1000 == 70 => std::fs::rename(file, file.with_extension("renamed"))?,
            _ => {}
        }
    }
    let new = head.join("new");
    std::fs::create_dir_all(&new)?;
    for i in 0..100 {
        std::fs::write(new.join(format!("file {i}")), format!("new {i}\n").repeat(100))?;
    }
    Ok(())
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
