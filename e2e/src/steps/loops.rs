//! Loop devices.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// Loop devices behind a file.
pub fn loops(file: &Path) -> Result<Vec<String>> {
    let output = Command::new("losetup").arg("-j").arg(file).output().context("running losetup")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(|l| l.split(':').next().map(str::to_owned)).collect())
}
