//! What the stream tests share: pools on loop files that go away whatever happens, sending, applying, comparing.
//!
//! They need root, loop devices and `btrfs`; without those they fail, by design (style.md rule 12).

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a fixture that fails is a test that fails")]

pub mod build;
pub mod hostile;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dotgraft_agent::stream::treedigest::{TreeDigest, tree_digest};
use dotgraft_agent::stream::{Applier, ContentClass, Limits, Position, StreamError};

/// A btrfs of its own on a loop file, unmounted and removed when dropped, also by a panic.
pub struct Pool {
    root: PathBuf,
    _dir: tempfile::TempDir,
}

impl Pool {
    /// A new one of `megabytes`, mounted with `options`.
    pub fn new(megabytes: u64, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let root = dir.path().join("mnt");
        fs::create_dir(&root).unwrap();
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        run("mkfs.btrfs", &["-q", text(&image)]);
        // The kernel frees a loop device made by mount when it is unmounted.
        run("mount", &["-o", &format!("loop,{options}"), text(&image), text(&root)]);
        Self { root, _dir: dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn create(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        run("btrfs", &["subvolume", "create", text(&path)]);
        path
    }

    pub fn snapshot(&self, from: &str, to: &str, read_only: bool) -> PathBuf {
        let (from, to) = (self.path(from), self.path(to));
        let flag = if read_only { &["-r"][..] } else { &[] };
        run("btrfs", &[&["subvolume", "snapshot"], flag, &[text(&from), text(&to)]].concat());
        to
    }

    pub fn delete(&self, name: &str) {
        run("btrfs", &["subvolume", "delete", text(&self.path(name))]);
    }

    /// The stream of a read-only snapshot, as the kernel makes it.
    pub fn send(&self, name: &str, parent: Option<&str>, flags: &[&str]) -> Vec<u8> {
        let mut command = Command::new("btrfs");
        command.args(["send", "-q"]).args(flags);
        if let Some(parent) = parent {
            command.arg("-p").arg(self.path(parent));
        }
        let output = command.arg(self.path(name)).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// What `btrfs receive` makes of a stream, below the directory `into`.
    pub fn receive(&self, stream: &[u8], into: &str) {
        use std::io::Write as _;
        let into = self.path(into);
        fs::create_dir_all(&into).unwrap();
        let mut child = Command::new("btrfs").args(["receive", "-q", text(&into)]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stream).unwrap();
        assert!(child.wait().unwrap().success());
    }

    pub fn digest(&self, name: &str) -> TreeDigest {
        tree_digest(&open(&self.path(name))).unwrap()
    }

    /// Fails with the lines in which two trees differ, if their digests do.
    pub fn assert_same(&self, name: &str, other: &Self, theirs: &str, what: &str) {
        if self.digest(name) == other.digest(theirs) {
            return;
        }
        let (ours, theirs) = (listing(&self.path(name)), listing(&other.path(theirs)));
        let only = |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>().join("\n");
        panic!("{what}: digests differ.\nhere:\n{}\nthere:\n{}", only(&ours, &theirs), only(&theirs, &ours));
    }

    pub fn applier(&self, work: &str, base: Option<&str>) -> Applier {
        let base = base.map(|base| open(&self.path(base)));
        Applier::new(open(&self.path(work)), base, ContentClass::Trusted, Limits::default()).unwrap()
    }

    /// Applies a whole stream to a new subvolume `work`, in pieces, and makes it the read-only `name`.
    pub fn apply(&self, stream: &[u8], name: &str, base: Option<&str>, piece: usize) -> Result<Position, StreamError> {
        let work = format!("work-{name}");
        match base {
            None => self.create(&work),
            Some(base) => self.snapshot(base, &work, false),
        };
        let mut applier = self.applier(&work, base);
        for piece in stream.chunks(piece) {
            applier.feed(piece)?;
        }
        let position = applier.finish()?;
        self.snapshot(&work, name, true);
        self.delete(&work);
        Ok(position)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let ok = Command::new("umount").arg(&self.root).status().is_ok_and(|status| status.success());
        if !ok {
            // Something still has a file open: gone from here now, from the kernel when that closes.
            let _ = Command::new("umount").arg("-l").arg(&self.root).status();
        }
    }
}

fn listing(root: &Path) -> Vec<String> {
    let output = Command::new("find").arg(root).args(["-printf", "%P %y %m %U %G %T@ %s %n %l\n"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

pub fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A small random generator for tests: the same seed gives the same numbers.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Below `usual`, but one time in `n` below `all`.
    pub fn mostly(&mut self, usual: usize, all: usize, n: usize) -> usize {
        let end = if self.one_in(n) { all } else { usual };
        self.below(end)
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend(self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// Offsets right after the stream header and each command of a well-formed stream.
pub fn boundaries(stream: &[u8]) -> Vec<usize> {
    let mut at = 17;
    let mut all = vec![at];
    while at < stream.len() {
        at += 10 + u32::from_le_bytes(stream[at..at + 4].try_into().unwrap()) as usize;
        all.push(at);
    }
    all
}
