//! crdgen: writes the CRDs of `dotgraft-api` to a directory, or checks that they are there unchanged (`--check`). One that has
//! changed gets the next version.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use dotgraft_api::crds;

fn main() -> anyhow::Result<()> {
    let mut check = false;
    let mut dir = None;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--check" => check = true,
            other if other.starts_with('-') || dir.is_some() => {
                bail!("usage: crdgen [--check] DIR")
            }
            other => dir = Some(PathBuf::from(other)),
        }
    }
    let Some(dir) = dir else { bail!("usage: crdgen [--check] DIR") };
    if check {
        return compare(&dir, &crds::all_yaml().context("writing the CRDs as YAML")?);
    }
    let have = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    write(&dir, &crds::next_yaml(have).context("writing the CRDs as YAML")?)
}

fn write(dir: &Path, files: &[(String, String)]) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    for (file, yaml) in files {
        let path = dir.join(file);
        std::fs::write(&path, yaml).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn compare(dir: &Path, files: &[(String, String)]) -> anyhow::Result<()> {
    let mut drifted = Vec::new();
    for (file, yaml) in files {
        let have = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        if have == *yaml {
            continue;
        }
        let line = have.lines().zip(yaml.lines()).take_while(|(a, b)| a == b).count();
        drifted.push(format!(
            "{file}, line {}:\n  there:  {}\n  wanted: {}",
            line + 1,
            have.lines().nth(line).unwrap_or("(end of file)"),
            yaml.lines().nth(line).unwrap_or("(end of file)"),
        ));
    }
    if drifted.is_empty() {
        return Ok(());
    }
    bail!(
        "{} differ from the types; run `cargo run -p dotgraft-api --bin crdgen -- {}`\n{}",
        dir.display(),
        dir.display(),
        drifted.join("\n")
    )
}
