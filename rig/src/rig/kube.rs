//! The tests' view of the API: a client with one identity, typed or by kind, and kubectl as a person would use it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde_json::Value;

use super::wait::eventually;

/// Our kinds: (kind, plural, namespaced). Order: the one to delete them in.
pub const KINDS: [(&str, &str, bool); 8] = [
    ("ReplicationJob", "replicationjobs", true),
    ("DotOperation", "dotoperations", true),
    ("Commit", "commits", true),
    ("Branch", "branches", true),
    ("Dot", "dots", true),
    ("Filesystem", "filesystems", false),
    ("Replica", "replicas", false),
    ("NodePool", "nodepools", false),
];

/// One identity at the API server.
#[derive(Clone)]
pub struct Kube {
    client: Client,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Kube {
    /// A client by the kubeconfig file. Doesn't connect yet.
    pub async fn new(kubectl: &Path, kubeconfig: &Path) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.connect_timeout = Some(Duration::from_secs(10));
        config.read_timeout = Some(Duration::from_secs(30));
        Ok(Self { client: Client::try_from(config)?, kubectl: kubectl.into(), kubeconfig: kubeconfig.into() })
    }

    /// The client, for typed access.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// An error unless the API server says that it is ready.
    pub async fn api_ready(&self) -> Result<()> {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        match self.client.request_text(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => {
                let failing: Vec<&str> = status.message.lines().filter(|line| line.starts_with("[-]")).collect();
                bail!("/readyz says {} {}", status.code, failing.join(", "))
            }
            Err(other) => Err(other.into()),
        }
    }

    /// The kubeconfig file of this identity.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl; an error holds its whole message.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with_input(args, "").await
    }

    /// Runs kubectl with `input` on its standard input.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        use tokio::io::AsyncWriteExt as _;
        let mut child = tokio::process::Command::new(&self.kubectl)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl apply` of YAML text, as a person would (validation warnings are errors).
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).await
    }

    /// The API of one of our kinds; `namespace` is ignored for cluster-scoped ones.
    pub fn api(&self, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
        let (kind, plural, namespaced) =
            KINDS.iter().find(|(k, _, _)| *k == kind).with_context(|| format!("{kind} is none of our kinds"))?;
        let resource = ApiResource {
            group: "dotgraft.dev".into(),
            version: "v1alpha1".into(),
            api_version: "dotgraft.dev/v1alpha1".into(),
            kind: (*kind).into(),
            plural: (*plural).into(),
        };
        Ok(match namespaced {
            true => Api::namespaced_with(self.client(), namespace, &resource),
            false => Api::all_with(self.client(), &resource),
        })
    }

    /// One object, whole, or `None`.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        Ok(match self.api(kind, namespace)?.get_opt(name).await? {
            Some(object) => Some(serde_json::to_value(object)?),
            None => None,
        })
    }

    /// All objects of a kind (in a namespace, where the kind has one).
    pub async fn list(&self, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        let list = self.api(kind, namespace)?.list(&ListParams::default()).await?;
        list.items.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    }

    /// Creates one object from JSON that names its kind; returns it as stored.
    pub async fn create(&self, namespace: &str, object: &Value) -> Result<Value> {
        let kind = object.get("kind").and_then(Value::as_str).context("the object has no kind")?;
        let object: DynamicObject = serde_json::from_value(object.clone())?;
        let stored = self.api(kind, namespace)?.create(&PostParams::default(), &object).await?;
        Ok(serde_json::to_value(stored)?)
    }

    /// Merge-patches an object (`subresource`: `""` or `"status"`).
    pub async fn patch(&self, kind: &str, namespace: &str, name: &str, subresource: &str, patch: &Value) -> Result<()> {
        let api = self.api(kind, namespace)?;
        let params = PatchParams::default();
        match subresource {
            "" => api.patch(name, &params, &Patch::Merge(patch)).await?,
            other => api.patch_subresource(other, name, &params, &Patch::Merge(patch)).await?,
        };
        Ok(())
    }

    /// Asks for deletion; an absent object is fine. Doesn't wait.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        match self.api(kind, namespace)?.delete(name, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(e) => Err(e).with_context(|| format!("deleting {kind} {name}")),
            Ok(_) => Ok(()),
        }
    }

    /// Waits until an object is gone.
    pub async fn gone(&self, kind: &str, namespace: &str, name: &str, timeout: Duration) -> Result<()> {
        eventually(&format!("{kind} {name} to be gone"), timeout, || async {
            match self.get(kind, namespace, name).await? {
                None => Ok(()),
                Some(object) => bail!("it is there, {}", conditions(&object)),
            }
        })
        .await
    }

    /// Waits until `check` finds what it wants in an object.
    pub async fn until<T>(
        &self,
        what: &str,
        (kind, namespace, name): (&str, &str, &str),
        timeout: Duration,
        check: impl Fn(&Value) -> Result<T>,
    ) -> Result<T> {
        eventually(what, timeout, || async {
            let object = self.get(kind, namespace, name).await?.with_context(|| format!("no {kind} {name}"))?;
            check(&object)
        })
        .await
    }

    /// Waits for a condition to have a status (`"True"`, `"False"`), and if given a reason; returns the object.
    pub async fn until_condition(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        (condition, status, reason): (&str, &str, Option<&str>),
        timeout: Duration,
    ) -> Result<Value> {
        let what = format!("{kind} {name} to be {condition}={status}{}", reason.map(|r| format!(" ({r})")).unwrap_or_default());
        self.until(&what, (kind, namespace, name), timeout, |object| {
            let found = condition_of(object, condition).with_context(|| format!("no such condition; {}", conditions(object)))?;
            let matches = found["status"] == *status && reason.is_none_or(|r| found["reason"] == *r);
            if !matches {
                bail!("{}", conditions(object));
            }
            Ok(object.clone())
        })
        .await
    }

    /// The names of the objects of a kind that a predicate takes.
    pub async fn names(&self, kind: &str, namespace: &str, take: impl Fn(&Value) -> bool) -> Result<Vec<String>> {
        let list = self.api(kind, namespace)?.list(&ListParams::default()).await?;
        Ok(list
            .items
            .into_iter()
            .filter(|object| serde_json::to_value(object).is_ok_and(|v| take(&v)))
            .map(|object| object.name_any())
            .collect())
    }
}

/// A condition of an object by type.
pub fn condition_of<'a>(object: &'a Value, condition: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == *condition)
}

/// All conditions of an object in one line.
pub fn conditions(object: &Value) -> String {
    let deleting = if object.pointer("/metadata/deletionTimestamp").is_some() { "deleting, " } else { "" };
    let list = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
    let list: Vec<String> =
        list.iter().map(|c| format!("{}={} {}: {}", text(c, "type"), text(c, "status"), text(c, "reason"), text(c, "message"))).collect();
    format!("{deleting}conditions [{}]", list.join("; "))
}
