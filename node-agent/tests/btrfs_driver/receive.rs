//! Work subvolumes, checkpoints, and the commit that comes of them (storage.md §2).

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use dotgraft_agent::driver::{Driver, DriverError};

use crate::support::*;

fn at(dir: &OwnedFd, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())
}

fn replica(t: &TestPool) -> Volume {
    let meta = t.meta(200 * MIB);
    t.prepare(&meta).unwrap();
    Volume { fs: meta.fs_id, n: meta.qgroup, meta }
}

#[test]
fn an_increment_starts_from_its_base_and_the_base_stays_as_it_was() {
    let t = TestPool::new(512);
    let v = replica(&t);
    let (c1, c2) = (v.next(None), v.next(None));
    let w = t.receive_start(v.fs, v.n, c1.id, None, None).unwrap();
    assert!(w.base.is_none());
    fs::write(at(&w.root, "a"), b"1").unwrap();
    t.receive_finish(v.n, &c1).unwrap();
    t.receive_finish(v.n, &c1).unwrap();
    t.receive_discard(v.fs, c1.id).unwrap();
    t.receive_finish(v.n, &c1).unwrap();
    t.receive_discard(v.fs, c1.id).unwrap();

    let w = t.receive_start(v.fs, v.n, c2.id, Some(c1.id), None).unwrap();
    assert_eq!(fs::read(at(w.base.as_ref().unwrap(), "a")).unwrap(), b"1");
    assert!(fs::write(at(w.base.as_ref().unwrap(), "a"), b"x").is_err(), "the base is read-only");
    fs::write(at(&w.root, "a"), b"2").unwrap();
    t.receive_finish(v.n, &c2).unwrap();
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/a", c1.id))).unwrap(), b"1");
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/a", c2.id))).unwrap(), b"2");
    assert_eq!(t.inspect(v.fs).unwrap().incoming, [c2.id]);
    t.receive_discard(v.fs, c2.id).unwrap();
    assert_eq!(t.inspect(v.fs).unwrap().commits.len(), 2);
    t.destroy(v.fs, v.n).unwrap();
}

#[test]
fn a_receive_goes_on_from_its_checkpoint_and_not_from_what_came_after() {
    let t = TestPool::new(512);
    let v = replica(&t);
    let c = v.next(None);
    let w = t.receive_start(v.fs, v.n, c.id, None, None).unwrap();
    for (n, offset) in [(1, 100), (2, 200), (3, 300)] {
        fs::write(at(&w.root, &n.to_string()), b"x").unwrap();
        t.receive_checkpoint(v.fs, v.n, c.id, offset).unwrap();
        t.receive_checkpoint(v.fs, v.n, c.id, offset).unwrap();
    }
    fs::write(at(&w.root, "after"), b"x").unwrap();
    // The journal may name the last or the one before.
    assert_eq!(t.inspect(v.fs).unwrap().checkpoints, [(c.id, 200), (c.id, 300)]);
    drop(w);
    let w = t.receive_start(v.fs, v.n, c.id, None, Some(200)).unwrap();
    assert!(fs::exists(at(&w.root, "2")).unwrap() && !fs::exists(at(&w.root, "3")).unwrap() && !fs::exists(at(&w.root, "after")).unwrap());
    fs::write(at(&w.root, "other"), b"x").unwrap();
    t.receive_checkpoint(v.fs, v.n, c.id, 300).unwrap();
    assert!(t.path(v.fs, &format!("checkpoints/{}.300/other", c.id)).exists(), "an old checkpoint of that name is replaced");
    assert!(matches!(t.receive_start(v.fs, v.n, c.id, None, Some(400)), Err(DriverError::NotFound(_))));

    let fresh = t.receive_start(v.fs, v.n, c.id, None, None).unwrap();
    assert_eq!(fs::read_dir(at(&fresh.root, "")).unwrap().count(), 0);
    assert_eq!(t.inspect(v.fs).unwrap().checkpoints, []);
}

#[test]
fn a_receive_with_an_unknown_base_or_without_a_start_is_not_found() {
    let t = TestPool::new(512);
    let v = replica(&t);
    let (c, absent) = (v.next(None), v.next(None));
    assert!(matches!(t.receive_start(v.fs, v.n, c.id, Some(absent.id), None), Err(DriverError::NotFound(_))));
    assert!(matches!(t.receive_finish(v.n, &c), Err(DriverError::NotFound(_))));
    assert!(matches!(t.receive_checkpoint(v.fs, v.n, c.id, 1), Err(DriverError::NotFound(_))));
    assert_eq!(t.inspect(v.fs).unwrap().incoming, []);
}

#[test]
fn a_head_made_of_a_received_commit_is_unchanged_until_it_is_written() {
    let t = TestPool::new(512);
    let v = replica(&t);
    let c = v.next(None);
    let w = t.receive_start(v.fs, v.n, c.id, None, None).unwrap();
    fs::write(at(&w.root, "a"), b"1").unwrap();
    t.receive_finish(v.n, &c).unwrap();
    let origin = dotgraft_engine::model::Origin { fs_id: v.fs, commit: c.id };
    t.create_head(v.fs, v.n, Some(origin)).unwrap();
    assert!(!t.head_changed_since(v.fs, c.id).unwrap());
    // Another snapshot of the commit makes its generation newer than the head's: that must not hide a write.
    let clone = t.meta(MIB);
    t.prepare(&clone).unwrap();
    fs::write(t.head(v.fs).join("a"), b"2").unwrap();
    t.create_head(clone.fs_id, clone.qgroup, Some(origin)).unwrap();
    assert!(t.head_changed_since(v.fs, c.id).unwrap());
}

#[test]
fn a_mapped_store_is_a_change() {
    let t = TestPool::new(512);
    let v = t.volume(50);
    fs::write(t.head(v.fs).join("m"), [0; 8192]).unwrap();
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    assert!(!t.head_changed_since(v.fs, c.id).unwrap());
    let store = r"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(fd, 8192); m[0:1] = b'!'
print('stored', flush=True); sys.stdin.read()
";
    let mut child = python(store, &[&t.head(v.fs).join("m")]);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.0.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line.trim(), "stored");
    assert!(t.head_changed_since(v.fs, c.id).unwrap());
}
