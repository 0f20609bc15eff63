//! A received UUID, which whoever owns a volume's root directory may set: a stream names a commit by it, so it must not get into one.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dotgraft_agent::driver::{Driver, DriverError};
use dotgraft_agent::stream::{Applier, Cause, ContentClass, Limits};
use dotgraft_engine::ids::CommitId;
use dotgraft_engine::model::Commit;

use crate::support::*;

/// `BTRFS_IOC_SET_RECEIVED_SUBVOL` on a directory, as a user without a privilege who owns it; again and again if told so.
const SET: &str = r"
import fcntl, os, struct, sys
os.chown(sys.argv[1], 1000, 1000)
fd = os.open(sys.argv[1], os.O_RDONLY)
os.setuid(1000)
args = struct.pack('16s', b'r' * 16) + bytes(184)
while True:
    try: fcntl.ioctl(fd, 0xC0C89425, args)
    except OSError as e: print(e.errno, flush=True)
    if len(sys.argv) < 3: break
";

fn mark(head: &Path) {
    assert!(python(SET, &[head]).0.wait().unwrap().success());
}

fn received(path: &Path) -> bool {
    let shown = run("btrfs", &["subvolume", "show", path.to_str().unwrap()]);
    !shown.lines().any(|l| l.trim_start().starts_with("Received UUID:") && l.trim_end().ends_with('-'))
}

fn commit_path(t: &TestPool, c: &Commit) -> std::path::PathBuf {
    t.path(c.fs_id, &format!("commits/{}", c.id))
}

/// What the receiver makes of a stream in an empty subvolume, or one that begins as `base`.
fn apply(t: &TestPool, stream: &[u8], base: Option<&Path>, name: &str) -> Result<std::path::PathBuf, Cause> {
    let work = t.place.mount_point().join(name);
    match base {
        None => run("btrfs", &["subvolume", "create", work.to_str().unwrap()]),
        Some(base) => run("btrfs", &["subvolume", "snapshot", base.to_str().unwrap(), work.to_str().unwrap()]),
    };
    let open = |path: &Path| fs::File::open(path).unwrap().into();
    let mut applier = Applier::new(open(&work), base.map(open), ContentClass::Trusted, Limits::default()).map_err(|e| e.cause)?;
    applier.feed(stream).map_err(|e| e.cause)?;
    applier.finish().map_err(|e| e.cause)?;
    Ok(work)
}

fn bytes(t: &TestPool, v: &Volume, base: Option<CommitId>, target: CommitId) -> Vec<u8> {
    let mut all = Vec::new();
    t.send(v.fs, base, target, 1).unwrap().read_to_end(&mut all).unwrap();
    all
}

/// `f` is written, committed, cloned to `g`, and overwritten.
fn clone_and_overwrite(t: &TestPool, v: &Volume, commit: impl Fn(Option<CommitId>) -> Commit) -> (Commit, Commit) {
    let head = t.head(v.fs);
    fs::write(head.join("f"), noise(1, 256 << 10)).unwrap();
    let c1 = commit(None);
    run("cp", &["--reflink=always", head.join("f").to_str().unwrap(), head.join("g").to_str().unwrap()]);
    fs::OpenOptions::new().write(true).open(head.join("f")).unwrap().write_all_at(&noise(2, 256 << 10), 0).unwrap();
    let c2 = commit(Some(c1.id));
    (c1, c2)
}

#[test]
fn a_commit_has_none_whatever_the_volume_says_and_an_increment_is_what_it_was() {
    let t = TestPool::new(1024);
    let v = t.volume(200);
    mark(&t.head(v.fs));
    assert!(received(&t.head(v.fs)), "an owner without a privilege may set it: else this shows nothing");
    let (c1, c2) = clone_and_overwrite(&t, &v, |parent| {
        let c = v.next(parent);
        t.commit(v.n, &c).unwrap();
        c
    });
    for c in [&c1, &c2] {
        assert!(!received(&commit_path(&t, c)) && fs::write(commit_path(&t, c).join("x"), b"").is_err());
    }
    let base = apply(&t, &bytes(&t, &v, None, c1.id), None, "base").unwrap();
    let copy = apply(&t, &bytes(&t, &v, Some(c1.id), c2.id), Some(&base), "copy").unwrap();
    for (name, seed) in [("f", 2), ("g", 1)] {
        assert_eq!(fs::read(copy.join(name)).unwrap(), noise(seed, 256 << 10), "{name}");
    }
}

#[test]
fn the_final_commit_of_a_frozen_head_has_none_and_nor_have_those_of_a_volume_that_sets_it_all_the_time() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    mark(&t.head(v.fs));
    let f = v.next(None);
    t.fence(v.n, &f).unwrap();
    assert!(!received(&commit_path(&t, &f)));
    t.thaw(v.fs).unwrap();
    let mut setter = python(SET, &[&t.head(v.fs), Path::new("always")]);
    for _ in 0..20 {
        let c = v.next(Some(f.id));
        t.commit(v.n, &c).unwrap();
        assert!(!received(&commit_path(&t, &c)));
        assert!(setter.0.try_wait().unwrap().is_none());
    }
}

#[test]
fn two_commits_of_one_uuid_are_not_sent_and_such_a_stream_is_not_taken() {
    let t = TestPool::new(1024);
    let v = t.volume(200);
    mark(&t.head(v.fs));
    // As releases before this one took them.
    let (c1, c2) = clone_and_overwrite(&t, &v, |parent| {
        let c = v.next(parent);
        t.commit(v.n, &c).unwrap();
        run("btrfs", &["subvolume", "delete", commit_path(&t, &c).to_str().unwrap()]);
        run("btrfs", &["subvolume", "snapshot", "-r", t.head(v.fs).to_str().unwrap(), commit_path(&t, &c).to_str().unwrap()]);
        assert!(received(&commit_path(&t, &c)));
        c
    });
    let refused = t.send(v.fs, Some(c1.id), c2.id, 1).err().unwrap();
    assert!(matches!(&refused, DriverError::Unsupported(text) if text.contains(&c1.id.to_string())), "{refused}");
    let base = apply(&t, &bytes(&t, &v, None, c1.id), None, "base").unwrap();
    let paths = [commit_path(&t, &c1), commit_path(&t, &c2)].map(|p| p.to_str().unwrap().to_owned());
    let out = std::process::Command::new("btrfs").args(["send", "-q", "-p", &paths[0], &paths[1]]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(apply(&t, &out.stdout, Some(&base), "copy").err(), Some(Cause::OneUuid));
}
