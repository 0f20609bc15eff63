//! Which directory the node's kubelet uses, as its process says, compared with ours (`--kubelet-dir`, the chart's `kubeletDir`).
//!
//! A kubelet that uses another one never sees our registration, and nobody would say why there is no driver on the node. It is found among
//! all processes, as the agent sees the node's (`hostPID`); one that is a part of another program (k3s, `MicroK8s`) has no process of its own, and
//! nothing is said. Directories are the same if device and inode are, so symbolic links on the way matter to nobody.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dotgraft_api::{ConditionType, Reason};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::cluster::pools::Fact;

/// Where a kubelet's files are if it isn't told otherwise.
const USUAL: &str = "/var/lib/kubelet";
/// Between two looks: a kubelet is started anew with other arguments once in years.
const LOOK: Duration = Duration::from_secs(60);

/// What the last look found. A cheap clone.
#[derive(Debug, Clone, Default)]
pub struct Kubelet(Arc<Mutex<Option<String>>>);

impl Kubelet {
    /// Looks once a minute. Ends never.
    pub async fn watch(self, ours: PathBuf) {
        loop {
            let dir = ours.clone();
            let found = tokio::task::spawn_blocking(move || elsewhere(Path::new("/proc"), &dir)).await.unwrap_or_default();
            self.note(found);
            tokio::time::sleep(LOOK).await;
        }
    }

    fn note(&self, found: Option<String>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = found.as_ref().filter(|_| last.is_none()) {
            tracing::warn!("{why}");
        }
        *last = found;
    }

    /// What the `NodePool` says of it, if there is anything to say.
    pub fn fact(&self) -> Option<Fact> {
        let message = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (kind, reason) = (ConditionType::KubeletElsewhere.to_string(), Reason::from(ConditionType::KubeletElsewhere).to_string());
        Some(Fact { kind, status: Some(true), reason, message })
    }
}

/// Why pods of this node can't use volumes; `None` if a kubelet uses `ours`, or none is seen.
fn elsewhere(proc: &Path, ours: &Path) -> Option<String> {
    let all: Vec<(String, PathBuf)> = kubelets(proc);
    let mut others = Vec::new();
    for (pid, dir) in all {
        match is_same(proc, &pid, &dir, ours) {
            Ok(true) => return None,
            Ok(false) => others.push((pid, dir)),
            // Gone meanwhile, or not to be looked into: nothing is known of it.
            Err(_) => {}
        }
    }
    let (pid, dir) = others.first()?;
    Some(format!(
        "the node's kubelet (process {pid}) uses {}, and this agent {}: pods here can't use volumes until kubeletDir of the chart says {0}",
        dir.display(),
        ours.display()
    ))
}

/// Every kubelet's process and directory.
fn kubelets(proc: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    pids.filter_map(|pid| {
        let of = proc.join(&pid);
        let name = fs::read(of.join("comm")).ok()?;
        (name.trim_ascii() == b"kubelet").then_some(())?;
        Some((pid, root_dir(&fs::read(of.join("cmdline")).ok()?)))
    })
    .collect()
}

/// `--root-dir` of a command line, in either spelling, with one dash or two; the last one counts.
fn root_dir(cmdline: &[u8]) -> PathBuf {
    let args: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
    let mut dir = None;
    for (i, arg) in args.iter().enumerate() {
        let Some(flag) = arg.strip_prefix(b"--").or_else(|| arg.strip_prefix(b"-")) else { continue };
        match flag.strip_prefix(b"root-dir") {
            Some([]) => dir = args.get(i + 1).copied(),
            Some([b'=', value @ ..]) => dir = Some(value),
            _ => {}
        }
    }
    dir.filter(|d| !d.is_empty()).map_or_else(|| USUAL.into(), |d| PathBuf::from(std::ffi::OsStr::from_bytes(d)))
}

/// Whether a directory, as that process names it, is ours.
fn is_same(proc: &Path, pid: &str, theirs: &Path, ours: &Path) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::openat(CWD, path, flags, Mode::empty());
    let root = open(&proc.join(pid).join("root"))?;
    let below = theirs.strip_prefix("/").unwrap_or(theirs);
    // Absolute links are that process's, too.
    let theirs = rustix::io::retry_on_intr(|| rustix::fs::openat2(&root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT))?;
    let which = |dir: &OwnedFd| rustix::fs::fstat(dir).map(|s| (s.st_dev, s.st_ino));
    match open(ours) {
        Ok(ours) => Ok(which(&theirs)? == which(&ours)?),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A process in a made-up `/proc`, whose root is `root`.
    fn process(proc: &Path, pid: u32, comm: &str, args: &[&str], root: &Path) {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(dir.join("cmdline"), args.join("\0") + "\0").unwrap();
        symlink(root, dir.join("root")).unwrap();
    }

    #[test]
    fn a_kubelet_that_uses_another_directory_is_named_and_links_matter_to_nobody() {
        let tmp = tempfile::tempdir().unwrap();
        let (proc, root) = (tmp.path().join("proc"), tmp.path().join("root"));
        for dir in ["var/lib/kubelet", "data/kubelet"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        let (usual, data) = (root.join("var/lib/kubelet"), root.join("data/kubelet"));
        fs::create_dir_all(&proc).unwrap();
        assert_eq!(elsewhere(&proc, &usual), None, "no kubelet is seen");
        process(&proc, 1, "systemd", &["init", "--root-dir=/other"], &root);
        process(&proc, 7, "kubelet", &["kubelet", "--v=1", "--root-dir=/data/kubelet"], &root);
        let why = elsewhere(&proc, &usual).unwrap();
        assert!(why.contains("(process 7) uses /data/kubelet") && why.ends_with("says /data/kubelet"), "{why}");
        assert!(elsewhere(&proc, &tmp.path().join("none")).is_some(), "ours isn't even there");
        assert_eq!(elsewhere(&proc, &data), None);
        // The kubelet's own link is absolute, in its own root.
        symlink("/data/kubelet", root.join("link")).unwrap();
        process(&proc, 9, "kubelet", &["kubelet", "-root-dir", "/link"], &root);
        fs::remove_dir_all(proc.join("7")).unwrap();
        assert_eq!(elsewhere(&proc, &data), None);
        assert!(elsewhere(&proc, &usual).unwrap().contains("/link"));
        // One of several is the node's; and one that ends meanwhile says nothing.
        process(&proc, 10, "kubelet", &["kubelet"], &root);
        assert_eq!(elsewhere(&proc, &usual), None);
        fs::remove_dir_all(proc.join("9")).unwrap();
        fs::remove_file(proc.join("10/root")).unwrap();
        assert_eq!(elsewhere(&proc, &data), None);
    }
}
