//! The first process of a machine: gives it a root of its own, then reaps orphans until it is killed.
//!
//! `/usr` and `/etc` are the host's, read-only; `/var` is a directory of the machine that survives its reboots; `/run`,
//! `/tmp`, `/proc`, `/sys` and the control groups are new at each boot; `/dev` is the host's, as loop devices are.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount, unmount,
};

use crate::cgroups;
use crate::rig::command::run;

/// The node whose kubelet's directory is behind a symbolic link.
const LINKED: &str = "n2";
/// Kernel settings that a kubelet wants and would write for the whole host. It finds them written.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// `dotgraft-e2e machine NAME DIR SHARED…`, as process 1 of new namespaces.
pub fn main(name: &str, dir: &Path, shared: &[String]) -> Result<ExitCode> {
    rustix::system::sethostname(name.as_bytes()).context("setting the host name")?;
    let shared: Vec<&Path> = shared.iter().map(Path::new).collect();
    let hierarchies = cgroups::hierarchies()?; // /proc is still the sandbox's
    let root = build(dir, &shared, &hierarchies)?;
    enter(&root)?;
    run("ip", &["link", "set", "lo", "up"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("letting the machine route for its pods")?;
    fs::write(dir.join("ready"), b"")?;
    loop {
        if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
            std::thread::sleep(Duration::from_millis(100)); // no child at the moment
        }
    }
}

fn build(dir: &Path, shared: &[&Path], hierarchies: &[cgroups::Hierarchy]) -> Result<PathBuf> {
    let root = dir.join("root");
    make_dir(&root)?;
    new_mount("tmpfs", &root, "tmpfs", "mode=755")?;
    for entry in fs::read_dir("/")?.flatten() {
        let name = entry.file_name();
        if ["bin", "sbin", "lib", "lib32", "lib64", "libx32"].iter().any(|n| name == *n) && entry.file_type()?.is_symlink() {
            symlink(fs::read_link(entry.path())?, root.join(name))?;
        }
    }
    for top in ["/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64"] {
        if Path::new(top).is_dir() && !Path::new(top).is_symlink() {
            read_only(Path::new(top), &root)?;
        }
    }
    kubelet_dir(&dir.join("var/lib"), dir.ends_with(LINKED))?;
    for path in ["lib/containerd", "lib/cni", "lib/dotgraft", "lib/btrfs", "log/pods", "log/containers", "tmp"] {
        make_dir(&dir.join("var").join(path))?;
    }
    let target = beneath(&root, Path::new("/var"))?;
    mount_bind(dir.join("var"), &target).context("binding /var")?;
    for path in shared {
        read_only(path, &root)?;
    }
    let target = beneath(&root, dir)?;
    mount_bind(dir, &target).context("binding the machine's directory")?;
    mount_bind_recursive("/dev", &beneath(&root, Path::new("/dev"))?).context("binding /dev")?;
    system_mounts(&root, hierarchies)?;
    Ok(root)
}

/// The kubelet's directory; on one of the nodes behind a symbolic link, as where the disk for it is mounted elsewhere.
fn kubelet_dir(lib: &Path, linked: bool) -> Result<()> {
    let dir = lib.join("kubelet");
    if !linked {
        return make_dir(&dir);
    }
    make_dir(&lib.join("kubelet-disk"))?;
    if dir.is_symlink() {
        return Ok(());
    }
    symlink("kubelet-disk", &dir).context("linking the kubelet's directory")
}

fn system_mounts(root: &Path, hierarchies: &[cgroups::Hierarchy]) -> Result<()> {
    for name in ["tmp", "root", "home", "mnt", "opt", "srv"] {
        make_dir(&root.join(name))?;
    }
    new_mount("tmpfs", &beneath(root, Path::new("/run"))?, "tmpfs", "mode=755")?;
    for name in ["lock", "netns"] {
        make_dir(&root.join("run").join(name))?;
    }
    let _ = symlink("/run", root.join("var/run"));
    let proc = beneath(root, Path::new("/proc"))?;
    new_mount("proc", &proc, "proc", "")?;
    for (file, value) in TUNABLES {
        let written = root.join("run").join(file.replace('/', "-"));
        fs::write(&written, value)?;
        if proc.join("sys").join(file).exists() {
            mount_bind(&written, proc.join("sys").join(file)).with_context(|| format!("covering {file}"))?;
        }
    }
    new_mount("sysfs", &beneath(root, Path::new("/sys"))?, "sysfs", "")?;
    let groups = root.join("sys/fs/cgroup");
    if hierarchies.iter().any(|h| h.kind == "cgroup") {
        new_mount("tmpfs", &groups, "tmpfs", "mode=755")?;
    }
    for hierarchy in hierarchies {
        let point = root.join(hierarchy.point.strip_prefix("/")?);
        make_dir(&point)?;
        new_mount(&hierarchy.kind, &point, &hierarchy.kind, &hierarchy.options)?;
    }
    Ok(())
}

/// Makes `root` the root of this mount namespace; mounts made by programs may then spread to containers and back.
fn enter(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    rustix::process::pivot_root(".", ".").context("changing the root")?;
    unmount(".", UnmountFlags::DETACH).context("leaving the old root")?;
    std::env::set_current_dir("/")?;
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("sharing mounts inside the machine")
}

fn read_only(path: &Path, root: &Path) -> Result<()> {
    let target = beneath(root, path)?;
    mount_bind(path, &target).with_context(|| format!("binding {}", path.display()))?;
    mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "").with_context(|| format!("making {} read-only", path.display()))
}

fn new_mount(source: &str, target: &Path, kind: &str, options: &str) -> Result<()> {
    let data = CString::new(options)?;
    let data = if options.is_empty() { None } else { Some(data.as_c_str()) };
    mount(source, target, kind, MountFlags::empty(), data).with_context(|| format!("mounting {kind} at {}", target.display()))
}

/// The directory `path` in the new root, made if it is absent.
fn beneath(root: &Path, path: &Path) -> Result<PathBuf> {
    let inside = root.join(path.strip_prefix("/").unwrap_or(path));
    make_dir(&inside)?;
    Ok(inside)
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}
