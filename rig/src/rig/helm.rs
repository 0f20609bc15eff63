//! Helm as a person uses it: the chart of this source, on the rig's cluster.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::{Rig, source_root};

/// The release's name.
pub const RELEASE: &str = "dotgraft";
/// The release's namespace: another than the one that plain manifests name, so nothing may depend on that.
pub const NAMESPACE: &str = "storage";

/// What a person sets for these nodes.
pub const VALUES: [&str; 3] = ["pool.file.size=2Gi", "imagePullPolicy=Never", "test.size=64Mi"];

impl Rig {
    /// `helm VERB RELEASE …` in the release's namespace; what it prints. `settings` go to `--set`.
    pub async fn helm(&self, verb: &[&str], settings: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(self.tools.path("helm"));
        command.args(verb).args(["--namespace", NAMESPACE, "--kubeconfig"]).arg(self.kube.kubeconfig());
        for setting in settings {
            command.args(["--set", setting]);
        }
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(home, self.dir.join("helm"));
        }
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("starting helm")?;
        if !output.status.success() {
            bail!("helm {}: {}", verb.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `helm install` of this source's chart, and waits until all of it is ready. What it printed, and seconds.
    pub async fn helm_install(&self) -> Result<(String, f64)> {
        let (chart, start) = (chart(), Instant::now());
        let said = self.helm(&["install", RELEASE, &chart, "--create-namespace", "--wait", "--timeout=5m"], &VALUES).await?;
        Ok((said, start.elapsed().as_secs_f64()))
    }

    /// `helm upgrade` with other values on top, and waits until all is ready and rolled. Seconds.
    pub async fn helm_upgrade(&self, settings: &[&str]) -> Result<f64> {
        let (chart, start) = (chart(), Instant::now());
        self.helm(&["upgrade", RELEASE, &chart, "--reuse-values", "--wait", "--timeout=5m"], settings).await?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// `helm uninstall`, and waits until its pods are gone. Seconds.
    pub async fn helm_uninstall(&self) -> Result<f64> {
        let start = Instant::now();
        self.helm(&["uninstall", RELEASE, "--wait", "--timeout=3m"], &[]).await?;
        self.kube.kubectl(&["-n", NAMESPACE, "wait", "--for=delete", "pod", "--all", "--timeout=180s"]).await?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// The chart of this source.
pub fn chart() -> String {
    source_root().join("charts/dotgraft").to_string_lossy().into_owned()
}
