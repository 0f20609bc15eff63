//! Kernel sends as a `Read`: whole, typed in their end, read ahead within bounds (platform.md §4).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dotgraft_agent::btrfs::SendOptions;
use dotgraft_agent::driver::{Driver, DriverError};

use crate::support::*;

/// Every file with its type, mode, owner, size, times and contents, by a program that is not ours.
pub fn fingerprint(root: &Path) -> String {
    let script = "cd \"$0\" && find . -printf '%P %y %m %U %G %s %T@ %l\\n' | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum && getfattr -Rd -m - . 2>/dev/null | sort";
    run("sh", &["-c", script, root.to_str().unwrap()])
}

/// Applies a stream with `btrfs receive` into a directory of the pool.
fn btrfs_receive(into: &Path, mut stream: impl Read) {
    fs::create_dir_all(into).unwrap();
    let mut child = Command::new("btrfs").arg("receive").arg("-e").arg(into).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::copy(&mut stream, &mut child.stdin.take().unwrap()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn plain(read_ahead: bool) -> SendOptions {
    SendOptions { version: 2, compressed: false, read_ahead }
}

fn populate(head: &Path) {
    fs::create_dir_all(head.join("dir/sub")).unwrap();
    for n in 0..200 {
        fs::write(head.join(format!("dir/{n}")), noise(n, usize::try_from(n).unwrap() * 97)).unwrap();
    }
    fs::write(head.join("big"), noise(1, 20 << 20)).unwrap();
    let sparse = fs::File::create(head.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"x", 1 << 29).unwrap();
    std::os::unix::fs::symlink("../big", head.join("dir/link")).unwrap();
    fs::hard_link(head.join("big"), head.join("dir/sub/again")).unwrap();
}

#[test]
fn what_btrfs_receive_makes_of_it_is_the_same_tree_whole_and_as_increment() {
    let t = TestPool::new(2048);
    let v = t.volume(1000);
    populate(&t.head(v.fs));
    let c1 = v.next(None);
    t.commit(v.n, &c1).unwrap();
    fs::remove_file(t.head(v.fs).join("dir/7")).unwrap();
    fs::rename(t.head(v.fs).join("dir/8"), t.head(v.fs).join("moved")).unwrap();
    fs::OpenOptions::new().write(true).open(t.head(v.fs).join("big")).unwrap().write_all_at(&noise(5, 100_000), 3 << 20).unwrap();
    run("cp", &["--reflink=always", t.head(v.fs).join("big").to_str().unwrap(), t.head(v.fs).join("clone").to_str().unwrap()]);
    let c2 = v.next(Some(c1.id));
    let done = t.commit(v.n, &c2).unwrap();
    assert!(done.changed_bytes.is_none_or(|b| (100_000..250_000).contains(&b)), "a clone counts too: {done:?}");

    let copy = Place::new(1024);
    let (pool, _) = copy.open(None).unwrap();
    let into = copy.mount_point().join("received");
    for (base, target) in [(None, c1.id), (Some(c1.id), c2.id)] {
        let whole = t.send(v.fs, base, target, 2).unwrap();
        btrfs_receive(&into, whole);
        let sent = fingerprint(&t.path(v.fs, &format!("commits/{target}")));
        assert_eq!(fingerprint(&into.join(target.to_string())), sent);
    }
    drop(pool);
}

#[test]
fn the_same_pair_gives_the_same_bytes_with_and_without_read_ahead() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    populate(&t.head(v.fs));
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let all = |read_ahead| {
        let mut bytes = Vec::new();
        t.send_with(v.fs, None, c.id, plain(read_ahead)).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let first = all(true);
    assert!(first == all(false) && first == all(true));
    let estimate = t.estimate(v.fs, None, c.id).unwrap().unwrap();
    assert!(estimate.abs_diff(first.len() as u64) < first.len() as u64 / 10, "{estimate} estimated, {} sent", first.len());
    assert!(t.estimate(v.fs, Some(c.id), c.id).unwrap().unwrap() < 1000);
}

#[test]
fn a_missing_base_or_target_and_an_unknown_version_are_typed() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let (c, absent) = (v.next(None), v.next(None));
    t.commit(v.n, &c).unwrap();
    for (base, target) in [(Some(absent.id), c.id), (None, absent.id)] {
        assert!(matches!(t.send(v.fs, base, target, 2).map(drop), Err(DriverError::NotFound(_))));
        assert!(matches!(t.estimate(v.fs, base, target), Err(DriverError::NotFound(_))));
    }
    for version in [0, 3] {
        assert!(matches!(t.send(v.fs, None, c.id, version).map(drop), Err(DriverError::Unsupported(_))));
    }
    let mut one = Vec::new();
    t.send(v.fs, None, c.id, 1).unwrap().read_to_end(&mut one).unwrap();
    assert_eq!(one[13], 1, "protocol version in the stream header");
}

#[test]
fn a_dropped_stream_ends_the_send_and_its_commit_can_be_deleted_at_once() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    fs::write(t.head(v.fs).join("big"), noise(1, 200 << 20)).unwrap();
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    for read in [0, 1000, 3 << 20] {
        let mut stream = t.send(v.fs, None, c.id, 2).unwrap();
        let mut some = vec![0; read];
        stream.read_exact(&mut some).unwrap();
        let started = Instant::now();
        drop(stream);
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    }
    let mut stream = t.send(v.fs, None, c.id, 2).unwrap();
    stream.read_exact(&mut [0; 100]).unwrap(); // so that the kernel has begun
    assert!(matches!(t.delete_commit(v.fs, c.id), Err(DriverError::Mounted(m)) if m.contains("send")));
    drop(stream);
    t.delete_commit(v.fs, c.id).unwrap();
}

#[test]
fn read_ahead_stays_within_its_bound_when_the_reader_stalls() {
    let t = TestPool::new(2048);
    let v = t.volume(1500);
    for n in 0..4 {
        fs::write(t.head(v.fs).join(n.to_string()), noise(n, 128 << 20)).unwrap();
    }
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    drop_caches();
    let mut stream = t.send_with(v.fs, None, c.id, plain(true)).unwrap();
    let mut first = [0; 4096];
    stream.read_exact(&mut first).unwrap();
    eventually("it read ahead", || stream.ahead() > 200 * MIB);
    std::thread::sleep(Duration::from_millis(300));
    assert!(stream.ahead() <= 256 * MIB, "{}", stream.ahead());
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
}

#[test]
fn a_checksum_error_ends_the_stream_as_corrupt_disk_and_is_never_a_short_success() {
    let t = TestPool::new(512);
    let v = t.volume(200);
    let mut data = noise(77, 4 << 20);
    data[1 << 20..(1 << 20) + 4096].copy_from_slice(&[b'Q'; 4096]);
    fs::write(t.head(v.fs).join("data"), &data).unwrap();
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    t.used(&v);
    // Damages that block on the disk itself.
    let image = fs::read(t.place.file()).unwrap();
    let at = image.chunks_exact(4096).position(|b| b.iter().all(|x| *x == b'Q')).expect("the block is on disk") as u64 * 4096;
    let mut file = fs::OpenOptions::new().write(true).open(t.place.file()).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(at)).unwrap();
    file.write_all(&[b'q'; 4096]).unwrap();
    file.sync_all().unwrap();
    for read_ahead in [false, true] {
        drop_caches();
        let mut stream = t.send_with(v.fs, None, c.id, plain(read_ahead)).unwrap();
        let error = std::io::copy(&mut stream, &mut std::io::sink()).unwrap_err();
        assert!(matches!(DriverError::of_read(&error), Some(DriverError::CorruptDisk(_))), "{error:?}");
        assert!(stream.read(&mut [0; 10]).is_err(), "and it stays an error");
    }
    assert!(!t.space().unwrap().read_only, "one bad block is not a failed pool");
}

#[test]
fn compressed_extents_travel_as_they_are_only_when_asked() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    run("btrfs", &["property", "set", t.head(v.fs).to_str().unwrap(), "compression", "zstd"]);
    fs::write(t.head(v.fs).join("text"), "all work and no play ".repeat(1 << 20)).unwrap();
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let size = |compressed| {
        let mut stream = t.send_with(v.fs, None, c.id, SendOptions { version: 2, compressed, read_ahead: true }).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    };
    let (plain, packed) = (size(false), size(true));
    assert!(plain > 20 << 20 && packed < plain / 5, "{plain} {packed}");
}
