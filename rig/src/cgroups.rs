//! Control groups of the rig's machines: one subtree per machine in every hierarchy, all below one of the sandbox's name.
//!
//! A machine's programs join its subtree before they enter its cgroup namespace, so that to its kubelet the subtree is
//! all there is: it counts its own pods only, and a machine is frozen by one write. The directories are no process's,
//! so the guard (and the next run's sweep) removes them: [`remove`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// One mounted hierarchy: a set of version 1 controllers, or version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub point: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// The options that name it in a new mount: `cpu,cpuacct`, `none,name=systemd`, nothing.
    pub options: String,
}

/// All hierarchies that are mounted here.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let known = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let controllers: Vec<&str> = known.lines().filter_map(|l| l.split_whitespace().next()).collect();
    Ok(parse(&fs::read_to_string("/proc/self/mounts")?, &controllers))
}

fn parse(mounts: &str, controllers: &[&str]) -> Vec<Hierarchy> {
    let of_line = |line: &str| -> Option<Hierarchy> {
        let mut words = line.split(' ').skip(1);
        let (point, kind, options) = (words.next()?, words.next()?, words.next()?);
        if !["cgroup", "cgroup2"].contains(&kind) {
            return None;
        }
        let mut names: Vec<&str> = options.split(',').filter(|o| controllers.contains(o) || o.starts_with("name=")).collect();
        if names.iter().all(|o| o.starts_with("name=")) && !names.is_empty() {
            names.insert(0, "none");
        }
        let options = if kind == "cgroup2" { String::new() } else { names.join(",") };
        Some(Hierarchy { point: point.into(), kind: kind.into(), options })
    };
    mounts.lines().filter_map(of_line).collect()
}

/// Makes the group `group` (`<sandbox>/<machine>`) in every hierarchy.
pub fn create(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.point.clone();
        for part in group.split('/') {
            let parent = dir.clone();
            dir.push(part);
            if !dir.exists() {
                fs::create_dir(&dir).with_context(|| format!("creating the control group {}", dir.display()))?;
            }
            inherit(&parent, &dir)?;
        }
    }
    Ok(())
}

/// A new cpuset of version 1 has no processor and takes no process; version 2 gives a child only what its parent lists.
fn inherit(parent: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if dir.join("tasks").exists() && dir.join(file).exists() {
            fs::write(dir.join(file), fs::read(parent.join(file))?)?;
            fs::write(dir.join("cgroup.clone_children"), "1")?;
        }
    }
    if let Ok(all) = fs::read_to_string(parent.join("cgroup.controllers")) {
        for controller in all.split_whitespace() {
            fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Moves this process into a group. It must have one thread only.
pub fn join(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let procs = hierarchy.point.join(group).join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("joining {}", procs.display()))?;
    }
    Ok(())
}

/// Stops every process of a group, or lets all go on; returns when that is so.
pub fn freeze(group: &str, stop: bool) -> Result<()> {
    let (mut v1, mut v2) = (None, None);
    for h in hierarchies()? {
        match (h.kind.as_str(), h.options.split(',').any(|o| o == "freezer")) {
            ("cgroup", true) => v1 = Some(h.point.join(group)),
            ("cgroup2", _) => v2 = Some(h.point.join(group)),
            _ => {}
        }
    }
    let (file, word, state, wanted) = match (v1, v2) {
        (Some(dir), _) => {
            let word = if stop { "FROZEN" } else { "THAWED" };
            (dir.join("freezer.state"), word, dir.join("freezer.state"), word)
        }
        (None, Some(dir)) => {
            let (word, wanted) = if stop { ("1", "frozen 1") } else { ("0", "frozen 0") };
            (dir.join("cgroup.freeze"), word, dir.join("cgroup.events"), wanted)
        }
        (None, None) => bail!("no hierarchy of control groups can freeze processes here"),
    };
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        fs::write(&file, word).with_context(|| format!("writing {}", file.display()))?;
        if fs::read_to_string(&state)?.contains(wanted) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{} is not {word} after 10 s", file.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Thaws what is frozen below `name` (frozen processes can't die), waits until its processes are gone, and removes its
/// groups: 10 s at most. Fine if there are none.
pub fn remove(name: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    thaw(name)?;
    for hierarchy in hierarchies()? {
        let dir = hierarchy.point.join(name);
        while !remove_tree(&dir) {
            if Instant::now() > until {
                bail!("the control group {} still has processes", dir.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Lets everything below a group go on, whatever froze it.
fn thaw_below(dir: &Path) {
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if dir.join(file).exists() {
            let _ = fs::write(dir.join(file), word);
        }
    }
    for child in children(dir) {
        thaw_below(&child);
    }
}

/// Thaws every group of a sandbox, in all hierarchies.
pub fn thaw(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        thaw_below(&hierarchy.point.join(name));
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> bool {
    for child in children(dir) {
        if !remove_tree(&child) {
            return false;
        }
    }
    match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// The names of all sandboxes that have groups, those whose guard is dead too.
pub fn sandboxes(prefix: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for hierarchy in hierarchies()? {
        for dir in children(&hierarchy.point) {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(prefix) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_named_as_a_new_mount_needs_it() {
        let mounts = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n";
        let found: Vec<(String, String)> = parse(mounts, &["cpu", "cpuacct", "memory"]).into_iter().map(|h| (h.kind, h.options)).collect();
        let expected = [("cgroup", "cpu,cpuacct"), ("cgroup", "none,name=systemd"), ("cgroup2", "")];
        assert_eq!(found, expected.map(|(k, o)| (k.to_owned(), o.to_owned())));
    }
}
