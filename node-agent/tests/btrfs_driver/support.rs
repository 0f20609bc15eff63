//! A btrfs pool of a test's own: a file in a temporary directory behind a loop device, unmounted and detached whatever happens.
//! Needs root and /dev/loop-control; without them the tests fail, they do not pass.
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dotgraft_agent::btrfs::{BtrfsPool, OpenReport, PoolError, PoolSource};
use dotgraft_agent::driver::{Driver, DriverError, Fenced, FsMeta, FsState, Role};
use dotgraft_engine::ids::{CommitId, Epoch, FsId, PoolId, Timestamp};
use dotgraft_engine::model::Commit;
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;

/// The temporary directory with the pool file; outlives pools opened in it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub size: u64,
}

impl Place {
    pub fn new(size_mib: u64) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), size: size_mib * MIB }
    }
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("pool.img")
    }
    pub fn source(&self) -> PoolSource {
        PoolSource::File { path: self.file(), size_bytes: self.size }
    }
    pub fn mount_point(&self) -> PathBuf {
        self.dir.path().join("pool")
    }
    /// A child that another test is just starting has this process's files, the lock of a pool that was closed too, until it runs its own
    /// program: what is in use is tried again, for two seconds at most.
    pub fn open(&self, expected: Option<PoolId>) -> Result<(BtrfsPool, OpenReport), PoolError> {
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            match BtrfsPool::open(&self.source(), &self.mount_point(), expected) {
                Err(PoolError::InUse(_)) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                done => return done,
            }
        }
    }
    /// Loop devices on the pool file, by identity.
    pub fn loops(&self) -> Vec<String> {
        let inode = fs::metadata(self.file()).unwrap().ino().to_string();
        let list = run("losetup", &["--list", "--noheadings", "-O", "NAME,BACK-INO"]);
        list.lines().filter_map(|l| l.trim().split_once(' ')).filter(|(_, i)| i.trim() == inode).map(|(n, _)| n.to_owned()).collect()
    }
    /// Unmounts everything below the directory, deepest last mounted first.
    pub fn unmount_all(&self) {
        for _ in 0..64 {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let below = table.lines().filter_map(|l| l.split(' ').nth(4)).rfind(|p| Path::new(p).starts_with(self.dir.path()));
            match below {
                Some(path) => {
                    let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
                }
                None => return,
            }
        }
    }
}
impl Drop for Place {
    fn drop(&mut self) {
        self.unmount_all();
    }
}

/// An open pool in a place of its own.
pub struct TestPool {
    pub pool: BtrfsPool,
    pub place: Place, // after the pool: unmounted when that is closed
}
impl TestPool {
    pub fn new(size_mib: u64) -> Self {
        let place = Place::new(size_mib);
        let (pool, report) = place.open(None).unwrap();
        assert!(report.formatted);
        Self { pool, place }
    }
    /// Path of something below `fs/` through the private mount, for tests to look and write.
    pub fn path(&self, fs: FsId, rest: &str) -> PathBuf {
        self.place.mount_point().join("fs").join(fs.to_string()).join(rest)
    }
    pub fn head(&self, fs: FsId) -> PathBuf {
        self.path(fs, "head")
    }
    /// A directory to mount at.
    pub fn target(&self, name: &str) -> PathBuf {
        let path = self.place.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
    /// A Filesystem with an empty head and a limit (capacity alone).
    pub fn volume(&self, limit_mib: u64) -> Volume {
        let meta = self.meta(limit_mib * MIB);
        self.pool.prepare(&meta).unwrap();
        self.pool.create_head(meta.fs_id, meta.qgroup, None).unwrap();
        Volume { fs: meta.fs_id, n: meta.qgroup, meta }
    }
    pub fn meta(&self, capacity: u64) -> FsMeta {
        FsMeta {
            version: 1,
            fs_id: fs_id(),
            pool: self.pool.pool().id,
            role: Role::Owner,
            state: FsState::Active,
            claim: None,
            capacity,
            history_limit: 0,
            origin_bytes: 0,
            shares_origin: false,
            fencing: "Proof".into(),
            reclaim_policy: "Delete".into(),
            origin: None,
            qgroup: self.pool.allocate_qgroup().unwrap(),
            epoch: Epoch(1),
            attempt: 0,
            opened: None,
            headless: false,
        }
    }
    /// The whole fence: freeze, then final commit.
    pub fn fence(&self, qgroup: u64, commit: &Commit) -> Result<Fenced, DriverError> {
        self.pool.freeze(commit.fs_id)?;
        self.pool.final_commit(qgroup, commit)
    }
    pub fn used(&self, v: &Volume) -> u64 {
        // This also sets the kernel's cleaner to work.
        run("btrfs", &["filesystem", "sync", self.place.mount_point().to_str().unwrap()]);
        self.pool.usage(v.n).unwrap().bytes
    }
}
impl Deref for TestPool {
    type Target = BtrfsPool;
    fn deref(&self) -> &BtrfsPool {
        &self.pool
    }
}

/// A prepared Filesystem.
pub struct Volume {
    pub fs: FsId,
    pub n: u64,
    pub meta: FsMeta,
}
impl Volume {
    pub fn next(&self, parent: Option<CommitId>) -> Commit {
        commit_of(self.fs, parent)
    }
}

pub fn fs_id() -> FsId {
    FsId::from_uuid(Uuid::now_v7())
}

pub fn commit_of(fs: FsId, parent: Option<CommitId>) -> Commit {
    Commit {
        version: 1,
        id: CommitId::from_uuid(Uuid::now_v7()),
        fs_id: fs,
        parent,
        time: Timestamp(1_700_000_000_000),
        epoch: Epoch(1),
        seq: 0,
        message: String::new(),
        metadata: std::collections::BTreeMap::default(),
        kept: None,
        transient: false,
        reset_to: None,
    }
}

/// Bytes that do not compress and differ by seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Runs a program to its end; its output, or a panic with what it said.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A child process that is killed and reaped with this value.
pub struct Killed(pub Child);
impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Python program in a child, with arguments; its standard input and output are pipes.
pub fn python(program: &str, args: &[&Path]) -> Killed {
    let mut command = Command::new("python3");
    command.arg("-c").arg(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Killed(command.spawn().expect("these tests need python3"))
}

/// Waits until `done`, at most 90 s: busy machines take long.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(90), "{what} did not happen in 90 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes everything back and empties the page cache of the machine.
pub fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
