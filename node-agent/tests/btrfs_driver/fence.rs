//! The fence: what was acknowledged is in the snapshot, and nothing writes afterwards (storage.md §3).

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use dotgraft_agent::driver::{Driver, DriverError, Fenced, MountMode};

use crate::support::*;

/// Appends numbered records of 4096 bytes, each fsynced before it is acknowledged on stdout, until a write fails; then says `end <errno>`
/// and goes on trying for every line on stdin.
const APPEND: &str = r"
import os, sys
flags = os.O_RDWR | os.O_CREAT
if sys.argv[2] == 'direct': flags |= os.O_DIRECT
if sys.argv[2] == 'nocow':
    os.close(os.open(sys.argv[1], flags)); assert os.system('chattr +C ' + sys.argv[1]) == 0
fd = os.open(sys.argv[1], flags)
if sys.argv[2] == 'nocow':
    os.posix_fallocate(fd, 0, 8 << 20); os.pwrite(fd, b'x' * (8 << 20), 0); os.fsync(fd)
import mmap
page = mmap.mmap(-1, 4096)
n = 0
def put():
    page[:] = (b'%09d\n' % n).ljust(4096, b'.')
    assert os.pwritev(fd, [page], n * 4096) == 4096
    os.fsync(fd)
try:
    while n < 100000:
        put(); n += 1
        if n == 2000 and sys.argv[2] == 'nocow': n = 0
        print(n, flush=True)
except OSError as e:
    print('end', e.errno, flush=True)
for line in sys.stdin:
    try:
        put(); print('WROTE', flush=True)
    except OSError as e:
        print('refused', e.errno, flush=True)
";

const EROFS: i32 = 30;
const EDQUOT: i32 = 122;
/// What the kernel makes of EDQUOT for an overwrite without copy while the subvolume is being snapshotted (`btrfs_check_nocow_lock`).
const EAGAIN: i32 = 11;

fn last_acked(out: &mut impl BufRead) -> (usize, i32) {
    let mut acked = 0;
    for line in out.lines() {
        let line = line.unwrap();
        match line.strip_prefix("end ") {
            Some(errno) => return (acked, errno.parse().unwrap()),
            None => acked = line.parse().unwrap(),
        }
    }
    panic!("the writer died");
}

/// Fences under a writer of one kind; everything it was told is durable must be in the snapshot, and nothing after it anywhere.
fn fence_under_a_writer(kind: &str, through: impl Fn(&TestPool, &Volume) -> std::path::PathBuf) {
    let t = TestPool::new(1024);
    let v = t.volume(512);
    let dir = through(&t, &v);
    let mut writer = python(APPEND, &[&dir.join("log"), Path::new(kind)]);
    let mut out = BufReader::new(writer.0.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "50" {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the writer died");
    }
    let commit = v.next(None);
    let fenced = t.fence(v.n, &commit).unwrap();
    let (acked, errno) = last_acked(&mut out);
    assert!([EROFS, EDQUOT].contains(&errno) || kind == "nocow" && errno == EAGAIN, "{kind}: errno {errno}");

    let snapshot = fs::read(t.path(v.fs, &format!("commits/{}/log", commit.id))).unwrap();
    if kind != "nocow" {
        assert!(snapshot.len() >= acked * 4096, "{kind}: {acked} acknowledged, {} bytes in the snapshot", snapshot.len());
        for n in 0..acked {
            assert_eq!(&snapshot[n * 4096..n * 4096 + 9], format!("{n:09}").as_bytes());
        }
    }
    for _ in 0..3 {
        std::io::Write::write_all(writer.0.stdin.as_mut().unwrap(), b"again\n").unwrap();
        line.clear();
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with("refused"), "{kind}: {line}");
    }
    assert_eq!(fs::read(t.head(v.fs).join("log")).unwrap(), snapshot, "{kind}: the head changed after the fence");
    assert_eq!(t.fence(v.n, &commit).unwrap(), fenced, "again is success");

    t.thaw(v.fs).unwrap();
    t.thaw(v.fs).unwrap();
    assert!(!t.is_fenced(v.fs).unwrap());
    std::io::Write::write_all(writer.0.stdin.as_mut().unwrap(), b"again\n").unwrap();
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "WROTE", "{kind}: after the thaw the same descriptor writes again");
}

#[test]
fn a_fence_stops_a_writer_with_an_open_descriptor() {
    fence_under_a_writer("buffered", |t, v| t.head(v.fs));
}

#[test]
fn a_fence_stops_direct_io() {
    fence_under_a_writer("direct", |t, v| t.head(v.fs));
}

#[test]
fn a_fence_stops_overwrites_of_a_nocow_file() {
    fence_under_a_writer("nocow", |t, v| t.head(v.fs));
}

#[test]
fn a_fence_stops_a_writer_whose_mount_is_gone() {
    fence_under_a_writer("buffered", |t, v| {
        // A leaked descriptor: the directory is reached through a mount that is unmounted lazily right after the open.
        let target = t.target("gone");
        t.mount(v.fs, dotgraft_agent::driver::MountWhat::Head, &target, MountMode::WRITE).unwrap();
        let dir = fs::File::open(&target).unwrap();
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
        let fd = rustix::io::fcntl_dupfd_cloexec(&dir, 200).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&fd));
        std::mem::forget(fd); // for the life of the test process
        path.into()
    });
}

#[test]
fn a_fence_stops_a_writer_in_another_mount_namespace_and_sees_it_as_holder() {
    let t = TestPool::new(1024);
    let v = t.volume(512);
    let private = t.target("private");
    let script = format!(
        "mount --bind {} {} && exec python3 -c \"$0\" {}/log buffered",
        t.head(v.fs).display(),
        private.display(),
        private.display()
    );
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script, APPEND])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = Killed(child);
    let mut out = BufReader::new(writer.0.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "20" {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0);
    }
    let holders = t.holders(v.fs).unwrap();
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert_eq!(holders[0].mount_point, private);
    assert_eq!(holders[0].command, "python3");
    assert_eq!(u32::try_from(holders[0].pid).unwrap(), writer.0.id());

    // Deleting refuses by name and leaves the pod alone.
    let refused = t.destroy(v.fs, v.n);
    assert!(matches!(&refused, Err(DriverError::Mounted(m)) if m.contains("python3")), "{refused:?}");
    assert!(!t.is_fenced(v.fs).unwrap());

    let commit = v.next(None);
    t.fence(v.n, &commit).unwrap();
    let (acked, _) = last_acked(&mut out);
    assert!(acked >= 20);
    assert!(fs::metadata(t.path(v.fs, &format!("commits/{}/log", commit.id))).unwrap().len() >= acked as u64 * 4096);
    drop(writer);
    eventually("the namespace went", || t.holders(v.fs).unwrap().is_empty());
    t.destroy(v.fs, v.n).unwrap();
}

#[test]
fn a_fence_kills_a_mapped_writer_with_sigbus() {
    let t = TestPool::new(1024);
    let v = t.volume(512);
    let program = r"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b'a' * (1 << 20), 0); os.fsync(fd)
m = mmap.mmap(fd, 1 << 20)
print('mapped', flush=True)
n = 0
while True:
    n += 1
    for at in range(0, 1 << 20, 4096): m[at:at + 8] = b'%08d' % (n % 100000000)
    if n == 10: print('stored', flush=True)
";
    let mut writer = python(program, &[&t.head(v.fs).join("map")]);
    let mut out = BufReader::new(writer.0.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "stored" {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0);
    }
    let commit = v.next(None);
    t.fence(v.n, &commit).unwrap();
    let status = writer.0.wait().unwrap();
    assert_eq!(status.signal(), Some(7), "{status:?}");
    let (mut head, mut snapshot) = (Vec::new(), Vec::new());
    fs::File::open(t.head(v.fs).join("map")).unwrap().read_to_end(&mut head).unwrap();
    fs::File::open(t.path(v.fs, &format!("commits/{}/map", commit.id))).unwrap().read_to_end(&mut snapshot).unwrap();
    assert!(head == snapshot, "a store after the fence is in the head");
}

#[test]
fn a_full_volume_can_be_fenced_and_thawed_and_keeps_its_limit() {
    let t = TestPool::new(1024);
    let v = t.volume(64);
    let mut n = 0;
    while fs::write(t.head(v.fs).join(n.to_string()), noise(n, 100_000)).is_ok() && n < 10_000 {
        n += 1;
        rustix::fs::syncfs(fs::File::open(t.head(v.fs)).unwrap()).unwrap();
    }
    while fs::write(t.head(v.fs).join(format!("small{n}")), b"x").is_ok() && n < 20_000 {
        n += 1;
    }
    let commit = v.next(None);
    t.fence(v.n, &commit).unwrap();
    assert_eq!(t.usage(v.n).unwrap().limit, 64 * MIB);
    t.thaw(v.fs).unwrap();
    assert_eq!(t.usage(v.n).unwrap().limit, 64 * MIB);
    assert!(!t.is_fenced(v.fs).unwrap());
    t.set_limit(v.n, 128 * MIB).unwrap();
    fs::write(t.head(v.fs).join("room"), noise(1, 1 << 20)).unwrap();
}

#[test]
fn a_write_after_the_snapshot_makes_the_fence_say_so() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    fs::write(t.head(v.fs).join("a"), b"1").unwrap();
    let commit = v.next(None);
    t.fence(v.n, &commit).unwrap();
    t.thaw(v.fs).unwrap();
    fs::write(t.head(v.fs).join("a"), b"2").unwrap();
    let raced = t.fence(v.n, &commit);
    assert!(matches!(raced, Err(DriverError::FenceRaced(_))), "{raced:?}");
    assert!(matches!(t.fence(v.n, &v.next(None)), Ok(Fenced { .. })));
}

#[test]
fn a_fence_stays_over_a_restart() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    t.fence(v.n, &v.next(None)).unwrap();
    let TestPool { pool, place } = t;
    drop(pool);
    place.unmount_all();
    let (pool, _) = place.open(None).unwrap();
    let t = TestPool { pool, place };
    assert!(t.is_fenced(v.fs).unwrap());
    assert!(fs::write(t.head(v.fs).join("a"), b"1").is_err());
    t.thaw(v.fs).unwrap();
    fs::write(t.head(v.fs).join("a"), b"1").unwrap();
}
