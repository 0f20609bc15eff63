//! `kubectl dot`, as a case calls it.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::harness::Test;

/// Runs `kubectl dot …` in the test's namespace as administrator; its standard output, or its message as error.
pub async fn dot(t: &Test, args: &[&str]) -> Result<String> {
    dot_as(t, t.kube().kubeconfig(), args).await
}

/// The same as whom the kubeconfig is for.
pub async fn dot_as(t: &Test, kubeconfig: &Path, args: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(t.rig.program("kubectl-dot")?)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--namespace", &t.namespace])
        .args(args)
        .args(if args.contains(&"--timeout") { &[][..] } else { &["--timeout", "180"] })
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("starting kubectl-dot")?;
    if !output.status.success() {
        bail!("kubectl dot {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
