//! A pod that writes blocks with fsync and notes each ([`crate::data::synced`]), and how it sees its volume from inside.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{STEP, make_notes, notes, uid};
use crate::data::synced::{self, Noted};
use crate::harness::Test;
use crate::rig::wait::eventually;
use crate::sandbox;

/// A writer in a pod. The program is this one, with the libraries of the node.
pub struct Writer {
    /// The pod's name.
    pub pod: String,
    /// Its node.
    pub node: String,
}

impl Writer {
    /// One that isn't started yet.
    pub fn named(pod: &str, node: &str) -> Self {
        Self { pod: pod.into(), node: node.into() }
    }

    /// Starts it on a node with a claim, and waits for the first block.
    pub async fn start(t: &Test, pod: &str, claim: &str, node: &str) -> Result<Self> {
        let writer = Self::named(pod, node);
        writer.apply(t, claim).await?;
        writer.started(t).await?;
        Ok(writer)
    }

    /// Makes the pod; doesn't wait.
    pub async fn apply(&self, t: &Test, claim: &str) -> Result<()> {
        self.apply_at(t, claim, "/data/blocks").await
    }

    /// Makes the pod that writes `file`; doesn't wait.
    pub async fn apply_at(&self, t: &Test, claim: &str, file: &str) -> Result<()> {
        make_notes(t)?;
        let programs = t.rig.dir.join("programs");
        if !programs.join("dotgraft-e2e").exists() {
            sandbox::copy_program(&sandbox::program()?, &programs.join("dotgraft-e2e"))?;
        }
        let manifest = manifest(self, claim, file, &programs).to_string();
        // The controller manager makes a new namespace's ServiceAccount in its own time.
        eventually("the pod to be taken", STEP, || t.apply(&manifest)).await
    }

    /// Waits until it is ready and has written a block.
    pub async fn started(&self, t: &Test) -> Result<()> {
        super::ready(t, &self.pod, "").await?;
        self.goes_on(t, 1).await
    }

    /// What it has noted; an error if a write has failed.
    pub fn noted(&self, t: &Test) -> Result<Noted> {
        let noted = self.noted_whatever(t)?;
        match noted.error {
            Some(error) => anyhow::bail!("{} has failed: {error}", self.pod),
            None => Ok(noted),
        }
    }

    /// What it has noted, where writes may fail.
    pub fn noted_whatever(&self, t: &Test) -> Result<Noted> {
        synced::read(&notes(t, &self.node, &self.pod)?)
    }

    /// Waits for so many more blocks.
    pub async fn goes_on(&self, t: &Test, blocks: u64) -> Result<()> {
        let now = self.noted(t)?.newest;
        eventually(&format!("{} to write {blocks} blocks more", self.pod), STEP, || async {
            let later = self.noted(t)?.newest;
            anyhow::ensure!(later >= now + blocks, "{later} after {now}");
            Ok(())
        })
        .await
    }

    /// The pid of the writing process, as the sandbox sees it.
    pub async fn pid(&self, t: &Test) -> Result<u32> {
        eventually(&format!("the process of {}", self.pod), STEP, || self.pid_now(t)).await
    }

    async fn pid_now(&self, t: &Test) -> Result<u32> {
        let uid = uid(t, &self.pod).await?;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            if read("cmdline").contains("synced-writer") && read("mountinfo").contains(&uid) {
                return Ok(pid);
            }
        }
        anyhow::bail!("no process of {} writes", self.pod)
    }

    /// Its file, while it runs.
    pub async fn file(&self, t: &Test) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root/data/blocks", self.pid(t).await?)))
    }

    /// The line of its mount table that is its volume: mount id, superblock, root, options.
    pub async fn mount(&self, t: &Test) -> Result<String> {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.pid(t).await?))?;
        table.lines().find(|line| line.split(' ').nth(4) == Some("/data")).map(str::to_owned).context("nothing is mounted at /data")
    }
}

fn manifest(writer: &Writer, claim: &str, file: &str, programs: &Path) -> Value {
    let Writer { pod, node } = writer;
    let mut mounts = vec![
        json!({"name": "data", "mountPath": "/data"}),
        json!({"name": "notes", "mountPath": "/notes"}),
        json!({"name": "programs", "mountPath": "/programs"}),
    ];
    let mut volumes = vec![
        json!({"name": "data", "persistentVolumeClaim": {"claimName": claim}}),
        json!({"name": "notes", "hostPath": {"path": "/var/tmp/notes"}}),
        json!({"name": "programs", "hostPath": {"path": programs}}),
    ];
    for libraries in ["lib", "lib64"].iter().filter(|dir| Path::new("/usr").join(dir).exists()) {
        mounts.push(json!({"name": libraries, "mountPath": format!("/{libraries}"), "readOnly": true}));
        volumes.push(json!({"name": libraries, "hostPath": {"path": format!("/usr/{libraries}")}}));
    }
    let notes = format!("/notes/NAMESPACE-{pod}");
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "NAMESPACE"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node}, "restartPolicy": "Always", "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "w", "image": "busybox:1", "imagePullPolicy": "Never", "volumeMounts": mounts,
                "command": ["/programs/dotgraft-e2e", "synced-writer", file, notes],
            }],
            "volumes": volumes,
        },
    })
}
