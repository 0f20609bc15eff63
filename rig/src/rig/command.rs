//! Runs a system program to its end: `ip`, `nft`, `ctr`.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Runs a program and returns its output; an error holds what it complained about.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    output(Command::new(program).args(args), &format!("{program} {}", args.join(" ")))
}

/// The same for a prepared command; `what` names it in errors.
pub fn output(command: &mut Command, what: &str) -> Result<String> {
    let output = command.stdin(std::process::Stdio::null()).output().with_context(|| format!("running {what}"))?;
    if !output.status.success() {
        bail!("{what}: {} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
