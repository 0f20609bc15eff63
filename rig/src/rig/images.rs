//! The images that the chart runs, made by `deploy/image/build.sh` from the programs at hand, once for each set of them.
//!
//! [`made`] makes what is missing, outside of a sandbox, as Debian packages may have to be fetched; [`found`] finds it again inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};

use super::control_plane::Tools;
use super::source_root;

/// What `build.sh` makes of our programs.
const OURS: [&str; 2] = ["operator", "agent"];
/// And of the tools.
const SIDECARS: [&str; 4] = ["csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter"];
/// Sets of images that are kept, the last used ones.
const KEPT: usize = 8;

/// A directory of archives, whose name says what they are made of.
struct Set {
    dir: PathBuf,
    names: &'static [&'static str],
}

impl Set {
    fn archives(&self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.dir.join(format!("{name}.tar"))).collect()
    }
}

/// The archives of all images of the chart. An error says what is missing.
pub fn found(tools: &Tools) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for set in sets(tools)? {
        if !set.dir.exists() {
            bail!("the images of {} are not there: start this by `dotgraft-e2e test` or `cluster`, which make them", set.names.join(", "));
        }
        all.extend(set.archives());
    }
    Ok(all)
}

/// Makes the archives that are missing, and returns all.
pub fn made(tools: &Tools) -> Result<Vec<PathBuf>> {
    for set in sets(tools)? {
        if set.dir.exists() {
            fs::File::open(&set.dir)?.set_modified(SystemTime::now()).context("noting that the images were used")?;
        } else {
            make(&set, tools)?;
        }
    }
    forget_old(&cache()?)?;
    found(tools)
}

/// Whole or not at all, also if two runs make the same.
fn make(set: &Set, tools: &Tools) -> Result<()> {
    let scratch = set.dir.with_extension(format!("new-{}", std::process::id()));
    let script = source_root().join("deploy/image/build.sh");
    let mut build = Command::new(&script);
    build.arg(&scratch).args(set.names).env("DOTGRAFT_TOOLS_DIR", tools.dir()).env("DOTGRAFT_BIN_DIR", programs()?);
    let status = build.status().with_context(|| format!("running {}", script.display()))?;
    if !status.success() {
        let _ = fs::remove_dir_all(&scratch);
        bail!("{} failed: {status}", script.display());
    }
    if fs::rename(&scratch, &set.dir).is_err() && set.dir.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    Ok(())
}

fn sets(tools: &Tools) -> Result<[Set; 2]> {
    let scripts = ["build.sh", "sbom.sh"].map(|name| source_root().join("deploy/image").join(name));
    let key = |what: &str, files: Vec<PathBuf>| -> Result<PathBuf> {
        let mut hash = blake3::Hasher::new();
        for file in scripts.iter().chain(&files) {
            hash.update_reader(fs::File::open(file).with_context(|| format!("reading {}", file.display()))?)?;
        }
        Ok(cache()?.join(format!("{what}-{}", &hash.finalize().to_hex()[..16])))
    };
    let programs = programs()?;
    let ours = OURS.iter().map(|name| programs.join(format!("dotgraft-{name}"))).collect();
    let sidecars = SIDECARS.iter().map(|name| tools.path(name)).collect();
    Ok([Set { dir: key("ours", ours)?, names: &OURS }, Set { dir: key("sidecars", sidecars)?, names: &SIDECARS }])
}

fn programs() -> Result<PathBuf> {
    std::env::var_os("DOTGRAFT_BIN_DIR").map(PathBuf::from).context("DOTGRAFT_BIN_DIR is not set: where are the programs?")
}

fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("DOTGRAFT_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/dotgraft"),
    };
    let dir = base.join("images");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

fn forget_old(cache: &Path) -> Result<()> {
    let mut sets: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(cache)?.flatten() {
        if let Ok(used) = entry.metadata().and_then(|m| m.modified()) {
            sets.push((used, entry.path()));
        }
    }
    sets.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    for (_, old) in sets.into_iter().skip(KEPT) {
        let _ = fs::remove_dir_all(old);
    }
    Ok(())
}
