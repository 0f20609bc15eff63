//! What a test's body holds in its hands: the rig, a namespace and a directory of its own, and the common steps.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use serde_json::{Value, json};

use crate::local::Local;
use crate::rig::kube::{Kube, conditions};
use crate::rig::wait::eventually;
use crate::rig::{Rig, unmount_below};

/// How long a single step (a Dot ready, a small push done, an object gone) may take. Most take a second or two; it is a bound for machines that
/// do much else, so nothing is tested by it.
pub const STEP: Duration = Duration::from_secs(90);

/// One running test.
pub struct Test {
    /// The rig; shared, unless the case asked for its own.
    pub rig: Arc<Rig>,
    /// Its namespace.
    pub namespace: String,
    /// Its scratch directory, also for mounts.
    pub dir: PathBuf,
    mounts: Mutex<Vec<(String, PathBuf)>>,
}

impl Test {
    /// Makes namespace and directory for the case `id`.
    pub async fn begin(rig: Arc<Rig>, id: &str) -> Result<Self> {
        let safe: String = id.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        let short = safe.get(..safe.len().min(40)).unwrap_or_default().trim_matches('-').to_owned();
        let namespace = format!("t-{short}-{}", &uuid::Uuid::new_v4().simple().to_string()[..5]);
        let dir = rig.dir.join("tests").join(&namespace);
        std::fs::create_dir_all(&dir)?;
        let metadata = ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        Api::all(rig.kube.client()).create(&PostParams::default(), &object).await.context("creating the test's namespace")?;
        Ok(Self { rig, namespace, dir, mounts: Mutex::default() })
    }

    /// The same case in another namespace of its own, `<namespace>-<suffix>`, which is made; [`Test::leave`] deletes it.
    ///
    /// # Errors
    ///
    /// The namespace can't be made.
    pub async fn beside(&self, suffix: &str) -> Result<Self> {
        let namespace = format!("{}-{suffix}", self.namespace);
        self.kube().kubectl(&["create", "namespace", &namespace]).await?;
        Ok(Self { rig: self.rig.clone(), namespace, dir: self.dir.clone(), mounts: Mutex::default() })
    }

    /// Deletes the namespace as a user does, and waits until it is gone with all that is in it.
    ///
    /// # Errors
    ///
    /// Something in it holds it up.
    pub async fn leave(&self) -> Result<()> {
        self.drop_namespace().await?;
        let namespaces: Api<Namespace> = Api::all(self.kube().client());
        eventually(&format!("namespace {} to be gone", self.namespace), STEP * 2, || async {
            match namespaces.get_opt(&self.namespace).await? {
                None => Ok(()),
                Some(there) => bail!("it is there: {:?}", there.status.and_then(|s| s.conditions)),
            }
        })
        .await
    }

    /// The administrator's access to the API.
    pub fn kube(&self) -> &Kube {
        &self.rig.kube
    }

    /// The agent's local service of a node.
    pub fn local(&self, node: &str) -> Result<Local> {
        Ok(Local::new(&self.rig.node(node)?.files.socket))
    }

    /// Applies YAML in which `NAMESPACE` stands for the test's own.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        self.kube().apply(&yaml.replace("NAMESPACE", &self.namespace)).await?;
        Ok(())
    }

    /// kubectl in the test's namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kube().kubectl(&[&["-n", &self.namespace], args].concat()).await
    }

    /// Creates an object of one of our kinds in the test's namespace.
    pub async fn create(&self, kind: &str, name: &str, spec: &Value) -> Result<Value> {
        let object = json!({
            "apiVersion": "dotgraft.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        });
        self.kube().create(&self.namespace, &object).await
    }

    /// An object of one of our kinds, in the test's namespace where the kind has one.
    pub async fn object(&self, kind: &str, name: &str) -> Result<Value> {
        self.kube().get(kind, &self.namespace, name).await?.with_context(|| format!("no {kind} {name}"))
    }

    /// Waits for `Ready=True` (or another condition's status).
    pub async fn ready(&self, kind: &str, name: &str) -> Result<Value> {
        self.condition(kind, name, "Ready", "True", None).await
    }

    /// Waits for a condition.
    pub async fn condition(&self, kind: &str, name: &str, condition: &str, status: &str, reason: Option<&str>) -> Result<Value> {
        self.kube().until_condition((kind, &self.namespace, name), (condition, status, reason), STEP).await
    }

    /// Makes a Dot of 512 MiB on a node and waits until it is ready. Returns its id.
    pub async fn dot(&self, name: &str, node: &str) -> Result<String> {
        self.dot_of(name, &json!({"capacity": "512Mi", "placement": {"node": node}})).await
    }

    /// Makes a Dot and waits until it is ready. Returns its id.
    pub async fn dot_of(&self, name: &str, spec: &Value) -> Result<String> {
        self.create("Dot", name, spec).await?;
        text(&self.ready("Dot", name).await?, "/status/fsId")
    }

    /// Makes a Commit of a Dot and waits until it is there. Returns its id.
    pub async fn commit(&self, name: &str, dot: &str) -> Result<String> {
        self.commit_of(name, "Dot", dot).await
    }

    /// Makes a Commit of a Dot or Branch and waits until it is there. Returns its id.
    pub async fn commit_of(&self, name: &str, kind: &str, source: &str) -> Result<String> {
        self.create("Commit", name, &json!({"source": {"kind": kind, "name": source}, "message": name})).await?;
        text(&self.ready("Commit", name).await?, "/status/id")
    }

    /// Makes a one-shot push of a Dot to a node; doesn't wait.
    pub async fn push(&self, name: &str, dot: &str, to: &str) -> Result<()> {
        self.create("ReplicationJob", name, &json!({"direction": "Push", "source": {"names": [dot]}, "target": {"node": to}})).await?;
        Ok(())
    }

    /// Starts another run of a job by a new trigger.
    pub async fn trigger(&self, job: &str, trigger: &str) -> Result<()> {
        self.kube().patch("ReplicationJob", &self.namespace, job, "", &json!({"spec": {"trigger": trigger}})).await
    }

    /// Waits until a node holds a commit durably, as its agent's Replica says.
    pub async fn arrived(&self, fs_id: &str, commit: &str, node: &str, timeout: Duration) -> Result<()> {
        eventually(&format!("commit {commit} on {node}"), timeout, || async {
            let replica = self.replica(fs_id, node).await?;
            let head = replica.pointer("/status/head").and_then(Value::as_str).unwrap_or_default();
            let list = replica.pointer("/status/recentCommits").and_then(Value::as_array).cloned().unwrap_or_default();
            if head == commit || list.iter().any(|c| c["id"] == *commit) {
                return Ok(());
            }
            bail!("the newest there is {head:?}; {}", conditions(&replica))
        })
        .await
    }

    /// The Replica of a Filesystem on a node.
    pub async fn replica(&self, fs_id: &str, node: &str) -> Result<Value> {
        let all = self.kube().list("Replica", "").await?;
        let found = all.into_iter().find(|r| r["spec"]["fsId"] == *fs_id && r["spec"]["node"] == *node);
        found.with_context(|| format!("no Replica of {fs_id} on {node}"))
    }

    /// Mounts the head on a node (writable on the owner) and returns the path.
    pub async fn mount(&self, node: &str, fs_id: &str) -> Result<PathBuf> {
        self.mount_at(node, fs_id, None).await
    }

    /// Mounts a commit read-only on a node and returns the path.
    pub async fn mount_commit(&self, node: &str, fs_id: &str, commit: &str) -> Result<PathBuf> {
        self.mount_at(node, fs_id, Some(commit)).await
    }

    async fn mount_at(&self, node: &str, fs_id: &str, commit: Option<&str>) -> Result<PathBuf> {
        let path = {
            let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
            let free = |path: &PathBuf| !mounts.iter().any(|(_, taken)| taken == path);
            let path = (0..=mounts.len()).map(|n| self.dir.join(format!("mnt{n}"))).find(free).unwrap_or_default();
            mounts.push((node.to_owned(), path.clone()));
            path
        };
        let local = self.local(node)?;
        eventually(&format!("{node} to mount {fs_id}"), STEP, || local.mount(fs_id, &path, commit)).await?;
        Ok(path)
    }

    /// Unmounts what [`Test::mount`] returned.
    pub async fn unmount(&self, path: &Path) -> Result<()> {
        let node = {
            let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
            mounts.iter().find(|(_, p)| p == path).map(|(node, _)| node.clone())
        };
        let node = node.with_context(|| format!("{} was not mounted by this test", path.display()))?;
        self.local(&node)?.unmount(path).await?;
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, p)| p != path);
        Ok(())
    }

    /// Brings the rig back to health, deletes all this test made, and checks that nothing of it stays: no object and,
    /// on the disks, no Filesystem.
    pub async fn end(&self) -> Result<()> {
        if !self.rig.has_programs() {
            return self.drop_namespace().await;
        }
        self.rig.heal().await?;
        let mounts = std::mem::take(&mut *self.mounts.lock().unwrap_or_else(PoisonError::into_inner));
        for (node, path) in mounts {
            let _ = self.local(&node)?.unmount(&path).await;
        }
        unmount_below(&self.dir);
        self.delete_all().await?;
        self.drop_namespace().await?;
        let _ = std::fs::remove_dir_all(&self.dir);
        Ok(())
    }

    /// Asks for its deletion; the controller manager does it in its own time.
    ///
    /// # Errors
    ///
    /// The API server refuses.
    pub async fn drop_namespace(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.kube().client());
        namespaces.delete(&self.namespace, &DeleteParams::background()).await.context("deleting the test's namespace")?;
        Ok(())
    }

    async fn delete_all(&self) -> Result<()> {
        for kind in ["DotOperation", "ReplicationJob", "Commit", "Branch", "Dot"] {
            for name in self.kube().names(kind, &self.namespace, |_| true).await? {
                self.kube().delete(kind, &self.namespace, &name).await?;
            }
        }
        let claimed = |object: &Value| object.pointer("/spec/claimRef/namespace").is_some_and(|n| *n == *self.namespace);
        for name in self.kube().names("Filesystem", "", claimed).await? {
            let delete = json!({"spec": {"reclaimPolicy": "Delete"}});
            let _ = self.kube().patch("Filesystem", "", &name, "", &delete).await;
            self.kube().delete("Filesystem", "", &name).await?;
        }
        eventually("everything that the test made to be gone", STEP * 2, || async {
            for kind in ["ReplicationJob", "Commit", "Branch", "Dot"] {
                if let Some(object) = self.kube().list(kind, &self.namespace).await?.first() {
                    bail!("{kind} {} is still there: {}", object["metadata"]["name"], conditions(object));
                }
            }
            if let Some(name) = self.kube().names("Filesystem", "", claimed).await?.first() {
                bail!("Filesystem {name} is still there");
            }
            let ours = |r: &Value| r.pointer("/spec/desired/claim/namespace").is_some_and(|n| *n == *self.namespace);
            if let Some(name) = self.kube().names("Replica", "", ours).await?.first() {
                bail!("Replica {name} is still there");
            }
            Ok(())
        })
        .await
    }
}

/// A string at a JSON pointer.
pub fn text(object: &Value, pointer: &str) -> Result<String> {
    let value = object.pointer(pointer).and_then(Value::as_str);
    Ok(value.with_context(|| format!("no {pointer} in {}", object["metadata"]["name"]))?.to_owned())
}
