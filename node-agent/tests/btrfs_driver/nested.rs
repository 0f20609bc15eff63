//! Subvolumes that users make inside a volume: no way around a freeze, and plain directories in a commit (ADR 14).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use dotgraft_agent::driver::{Driver, DriverError, MountMode, MountWhat};
use dotgraft_agent::stream::treedigest::tree_digest;

use crate::support::*;

/// Writes a record, fsynced, for every line on stdin, and says `wrote <n>` or `refused <errno>`.
const WRITER: &str = r"
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
n = 0
print('ready', flush=True)
for line in sys.stdin:
    try:
        os.pwrite(fd, (b'%09d\n' % n).ljust(4096, b'.'), n * 4096); os.fsync(fd); n += 1
        print('wrote', n, flush=True)
    except OSError as e:
        print('refused', e.errno, flush=True)
";

struct Writer(Killed, BufReader<std::process::ChildStdout>);

impl Writer {
    fn new(file: &Path) -> Self {
        let mut child = python(WRITER, &[file]);
        let out = BufReader::new(child.0.stdout.take().unwrap());
        let mut writer = Self(child, out);
        assert_eq!(writer.line(), "ready");
        writer
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "the writer died");
        line.trim().to_owned()
    }
    fn write(&mut self) -> Result<(), String> {
        std::io::Write::write_all(self.0.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
        match self.line() {
            line if line.starts_with("wrote") => Ok(()),
            line => Err(line),
        }
    }
}

fn subvolume(path: &Path) -> PathBuf {
    run("btrfs", &["subvolume", "create", path.to_str().unwrap()]);
    path.to_owned()
}

fn read_only(path: &Path, yes: bool) {
    run("btrfs", &["property", "set", "-ts", path.to_str().unwrap(), "ro", if yes { "true" } else { "false" }]);
}

fn is_read_only(path: &Path) -> bool {
    run("btrfs", &["property", "get", "-ts", path.to_str().unwrap(), "ro"]).trim() == "ro=true"
}

/// Through the pool's top level: through a limited subvolume it fails.
fn limit(t: &TestPool, path: &Path, limit: &str) {
    let id = run("btrfs", &["inspect-internal", "rootid", path.to_str().unwrap()]);
    run("btrfs", &["qgroup", "limit", limit, &format!("0/{}", id.trim()), t.place.mount_point().to_str().unwrap()]);
}

fn digest(path: &Path) -> String {
    tree_digest(&fs::File::open(path).unwrap().into()).unwrap().to_string()
}

#[test]
fn a_freeze_stops_writers_in_what_is_nested_at_any_depth_and_a_thaw_lets_them_go_on() {
    let t = TestPool::new(1024);
    let v = t.volume(512);
    let outer = subvolume(&t.head(v.fs).join("outer"));
    let inner = subvolume(&outer.join("inner"));
    let kept = subvolume(&outer.join("kept"));
    read_only(&kept, true);
    let mut writers: Vec<Writer> = [t.head(v.fs), outer.clone(), inner.clone()].iter().map(|d| Writer::new(&d.join("log"))).collect();
    for w in &mut writers {
        w.write().unwrap();
    }
    for _ in 0..2 {
        t.freeze(v.fs).unwrap();
    }
    for w in &mut writers {
        assert!(w.write().is_err(), "a descriptor that was open before still writes");
    }
    let c = v.next(None);
    let done = t.final_commit(v.n, &c).unwrap();
    assert_eq!(done.folded.unwrap().first, "outer");
    for path in ["log", "outer/log", "outer/inner/log"] {
        assert_eq!(fs::metadata(t.path(v.fs, &format!("commits/{}/{path}", c.id))).unwrap().len(), 4096, "{path}");
    }
    for path in [&outer, &inner] {
        let owner = Command::new("btrfs").args(["property", "set", "-ts", path.to_str().unwrap(), "ro", "false"]).output().unwrap();
        assert!(!owner.status.success() && is_read_only(path), "its owner can make it writable again");
    }
    for _ in 0..2 {
        t.thaw(v.fs).unwrap();
    }
    for w in &mut writers {
        w.write().unwrap();
    }
    assert!(is_read_only(&kept), "what its owner had made read-only stays so");
    read_only(&kept, false);
    fs::write(kept.join("f"), b"1").unwrap();
}

#[test]
fn a_freeze_gets_what_is_made_while_it_runs() {
    let t = TestPool::new(1024);
    for round in 0..4 {
        let v = t.volume(200);
        let head = t.head(v.fs);
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            let maker = s.spawn(|| {
                let (mut n, mut at) = (0, head.clone());
                while !over.load(Ordering::Relaxed) {
                    // One chain that goes deeper, and one that goes wide.
                    for path in [at.join("d"), head.join(format!("w{n}"))] {
                        Command::new("btrfs").args(["subvolume", "create", path.to_str().unwrap()]).output().unwrap();
                    }
                    if at.join("d").exists() && n < 30 {
                        at = at.join("d");
                    }
                    n += 1;
                }
            });
            eventually("some to be there", || head.join("w0").exists() && head.join("d").exists());
            std::thread::sleep(std::time::Duration::from_millis(25 * round));
            t.freeze(v.fs).unwrap();
            let c = v.next(None);
            // One whose making was under way is seen after the write-back; then it is frozen again.
            eventually("the final commit", || match t.final_commit(v.n, &c) {
                Ok(_) => true,
                Err(DriverError::FenceRaced(_)) => {
                    t.freeze(v.fs).unwrap();
                    false
                }
                Err(e) => panic!("{e}"),
            });
            over.store(true, Ordering::Relaxed);
            maker.join().unwrap();
        });
        let found = run("find", &[head.to_str().unwrap(), "-type", "d", "-inum", "256"]);
        assert!(found.lines().count() > 1, "nothing was made: this showed nothing");
        for path in found.lines().map(Path::new) {
            assert!(is_read_only(path) && fs::write(path.join("f"), b"1").is_err(), "{} can be written", path.display());
        }
        t.destroy(v.fs, v.n).unwrap();
    }
}

#[test]
fn a_freeze_finds_what_is_nested_deeper_than_any_path_reaches() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let program = r"
import os, subprocess, sys
os.chdir(sys.argv[1])
for _ in range(24):
    os.mkdir('n' * 250); os.chdir('n' * 250)
subprocess.check_call(['btrfs', '-q', 'subvolume', 'create', 'hidden'])
fd = os.open('hidden/f', os.O_RDWR | os.O_CREAT)
os.write(fd, b'x'); os.fsync(fd)
print('ready', flush=True)
sys.stdin.readline()
try:
    os.write(fd, b'y'); os.fsync(fd); print('WROTE', flush=True)
except OSError as e:
    print('refused', flush=True)
";
    let mut writer = python(program, &[&t.head(v.fs)]);
    let mut out = BufReader::new(writer.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready");
    t.freeze(v.fs).unwrap();
    std::io::Write::write_all(writer.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "refused");
}

#[test]
fn a_nested_subvolume_that_is_full_or_has_a_limit_of_its_own_is_frozen_too() {
    let t = TestPool::new(1024);
    let v = t.volume(24);
    let own = subvolume(&t.head(v.fs).join("own"));
    limit(&t, &own, "1M");
    let full = subvolume(&t.head(v.fs).join("full"));
    for dir in [&own, &full] {
        let mut n = 0;
        while fs::write(dir.join(n.to_string()), noise(n, 100_000)).is_ok() && n < 1000 {
            rustix::fs::syncfs(fs::File::open(dir).unwrap()).unwrap();
            n += 1;
        }
        while fs::write(dir.join(format!("small{n}")), b"x").is_ok() && n < 20_000 {
            n += 1;
        }
    }
    let c = v.next(None);
    t.fence(v.n, &c).unwrap();
    for dir in [&own, &full] {
        assert!(is_read_only(dir));
        assert!(fs::remove_file(dir.join("0")).is_err());
        let taken = t.path(v.fs, &format!("commits/{}/{}", c.id, dir.file_name().unwrap().to_str().unwrap()));
        // Not the times: those of a write that was refused are in the head's memory only.
        let files = |dir: &Path| {
            fs::read_dir(dir)
                .unwrap()
                .map(|e| e.unwrap().path())
                .map(|p| (p.file_name().unwrap().to_owned(), fs::read(p).unwrap()))
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        assert!(files(dir).len() > 5 && files(dir) == files(&taken), "{}", dir.display());
    }
    assert_eq!(t.usage(v.n).unwrap().limit, 24 * MIB, "the limit is back");
    t.thaw(v.fs).unwrap();
    fs::remove_file(full.join("0")).unwrap();
}

/// One of everything that a tree can hold.
fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::write(dir.join("a/b/large"), noise(7, 3 << 20)).unwrap();
    fs::write(dir.join("inline"), b"small").unwrap();
    fs::hard_link(dir.join("inline"), dir.join("a/again")).unwrap();
    std::os::unix::fs::symlink("a/b/large", dir.join("link")).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise(3, 9000), 5 << 20).unwrap();
    sparse.set_len(9 << 20).unwrap();
    let nocow = dir.join("nocow");
    fs::write(&nocow, b"").unwrap();
    run("chattr", &["+C", nocow.to_str().unwrap()]);
    fs::write(&nocow, noise(5, 300_000)).unwrap();
    run("mkfifo", &[dir.join("fifo").to_str().unwrap()]);
    run("mknod", &[dir.join("null").to_str().unwrap(), "c", "1", "3"]);
    run("setfattr", &["-n", "user.colour", "-v", "blue", dir.join("a").to_str().unwrap()]);
    run("chown", &["1234:5678", dir.join("a/b").to_str().unwrap()]);
    fs::set_permissions(dir.join("inline"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
    for path in ["a/b/large", "inline", "a", "."] {
        run("touch", &["-d", "2001-02-03 04:05:06.789", dir.join(path).to_str().unwrap()]);
    }
}

#[test]
fn a_commit_has_what_is_nested_as_directories_with_all_that_is_in_them() {
    let t = TestPool::new(1024);
    let v = t.volume(512);
    let head = t.head(v.fs);
    furnish(&head);
    fs::create_dir(head.join("var lib")).unwrap();
    run("btrfs", &["subvolume", "snapshot", "-r", head.to_str().unwrap(), head.join("own snapshot").to_str().unwrap()]);
    let one = subvolume(&head.join("var lib/one"));
    furnish(&one);
    let inner = subvolume(&one.join("a/inner"));
    furnish(&inner);
    subvolume(&inner.join("empty"));
    run("touch", &["-d", "2002-03-04 05:06:07.891", head.join("var lib").to_str().unwrap()]);
    let before = t.used(&v);
    let c = v.next(None);
    let done = t.commit(v.n, &c).unwrap();
    assert_eq!(done.folded.as_ref().unwrap().count, 2);
    let after = t.used(&v);
    let taken = t.path(v.fs, &format!("commits/{}", c.id));
    assert!(is_read_only(&taken));
    for dir in ["var lib/one", "var lib/one/a/inner", "var lib/one/a/inner/empty"] {
        let (there, here) = (fs::metadata(taken.join(dir)).unwrap(), fs::metadata(head.join(dir)).unwrap());
        assert_ne!(there.ino(), 256, "{dir} is a plain directory");
        assert_eq!(
            (there.mode(), there.uid(), there.mtime(), there.mtime_nsec()),
            (here.mode(), here.uid(), here.mtime(), here.mtime_nsec()),
            "{dir}"
        );
    }
    // The same as a program makes it that isn't ours: a walk through the head, which sees directories.
    let reference = t.path(v.fs, "reference");
    run("cp", &["-a", head.to_str().unwrap(), reference.to_str().unwrap()]);
    assert_eq!(digest(&taken), digest(&reference));
    assert_eq!(fs::metadata(taken.join("inline")).unwrap().nlink(), 2);
    assert!(after < before + 4 * MIB, "content is shared: {after} after {before}");
    assert!(!t.head_changed_since(v.fs, c.id).unwrap());

    // It goes where a commit goes, and begins a head.
    let received = v.next(None);
    t.receive_start(v.fs, v.n, received.id, None, None).unwrap();
    t.receive_discard(v.fs, received.id).unwrap();
    let again = t.meta(512 * MIB);
    t.prepare(&again).unwrap();
    t.create_head(again.fs_id, again.qgroup, Some(dotgraft_engine::model::Origin { fs_id: v.fs, commit: c.id })).unwrap();
    assert_eq!(digest(&t.head(again.fs_id)), digest(&taken));
    t.destroy(again.fs_id, again.qgroup).unwrap();

    // The next one, with something changed in what is nested.
    run("rm", &["-r", reference.to_str().unwrap()]);
    fs::write(inner.join("inline"), b"other").unwrap();
    assert!(t.inspect(v.fs).unwrap().broken.is_empty());
    let d = v.next(Some(c.id));
    t.commit(v.n, &d).unwrap();
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/var lib/one/a/inner/inline", d.id))).unwrap(), b"other");
    t.destroy(v.fs, v.n).unwrap();
}

#[test]
fn a_commit_while_subvolumes_come_and_go_holds_them_whole_or_says_why_not() {
    let t = TestPool::new(1024);
    let v = t.volume(512);
    let head = t.head(v.fs);
    let over = AtomicBool::new(false);
    let mut taken = 0;
    std::thread::scope(|s| {
        let maker = s.spawn(|| {
            let mut n = 0;
            while !over.load(Ordering::Relaxed) {
                let (new, old) = (head.join(format!("s{n}")), head.join(format!("kept{n}")));
                subvolume(&new);
                fs::write(new.join("f"), b"whole").unwrap();
                fs::rename(&new, &old).unwrap(); // whole under this name only
                if n >= 3 {
                    run("btrfs", &["subvolume", "delete", head.join(format!("kept{}", n - 3)).to_str().unwrap()]);
                }
                n += 1;
                std::thread::sleep(std::time::Duration::from_millis(150));
            }
        });
        let mut parent = None;
        for _ in 0..12 {
            let c = v.next(parent);
            match t.commit(v.n, &c) {
                Ok(_) => {
                    parent = Some(c.id);
                    taken += 1;
                    for entry in fs::read_dir(t.path(v.fs, &format!("commits/{}", c.id))).unwrap().map(Result::unwrap) {
                        if entry.file_name().to_str().unwrap().starts_with("kept") {
                            assert_eq!(fs::read(entry.path().join("f")).unwrap(), b"whole", "{:?}", entry.path());
                        }
                    }
                }
                Err(DriverError::NestedSubvolume(_)) => {}
                Err(e) => panic!("{e}"),
            }
        }
        over.store(true, Ordering::Relaxed);
        maker.join().unwrap();
    });
    assert!(taken > 0, "none of twelve could be taken");
    t.commit(v.n, &v.next(None)).unwrap();
}

#[test]
fn a_final_commit_of_a_head_that_is_not_frozen_is_refused() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let nested = subvolume(&t.head(v.fs).join("n"));
    let refused = || matches!(t.final_commit(v.n, &v.next(None)), Err(DriverError::FenceRaced(_)));
    assert!(refused(), "nothing is frozen");
    t.freeze(v.fs).unwrap();
    limit(&t, &nested, "none");
    assert!(refused(), "what is nested can be made writable by its owner");
    t.freeze(v.fs).unwrap();
    limit(&t, &t.head(v.fs), "none");
    assert!(refused(), "the head has no limit");
    t.freeze(v.fs).unwrap();
    t.final_commit(v.n, &v.next(None)).unwrap();
    assert_eq!(t.inspect(v.fs).unwrap().commits.len(), 1, "a refusal leaves nothing");
}

#[test]
fn a_freeze_that_was_cut_short_is_made_whole_and_undone_whole() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let nested = subvolume(&t.head(v.fs).join("n"));
    // As a crash leaves it between the steps: told apart from what its owner had made read-only.
    limit(&t, &nested, &(1_u64 << 62).to_string());
    read_only(&nested, true);
    t.freeze(v.fs).unwrap();
    t.thaw(v.fs).unwrap();
    assert!(!is_read_only(&nested));
    // A thaw that was.
    t.freeze(v.fs).unwrap();
    limit(&t, &nested, &(1_u64 << 62).to_string());
    t.thaw(v.fs).unwrap();
    assert!(!is_read_only(&nested) && !t.is_fenced(v.fs).unwrap());
    fs::write(nested.join("f"), b"1").unwrap();
}

#[test]
fn what_an_interrupted_commit_has_left_is_no_commit_and_goes() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let c = v.next(None);
    for end in ["work", "part"] {
        let left = t.path(v.fs, &format!("commits/{}.{end}", c.id));
        run("btrfs", &["subvolume", "snapshot", t.head(v.fs).to_str().unwrap(), left.to_str().unwrap()]);
    }
    let found = t.inspect(v.fs).unwrap();
    assert_eq!((found.commits.len(), found.broken.len()), (0, 0));
    subvolume(&t.head(v.fs).join("n"));
    t.commit(v.n, &c).unwrap();
    let names = |t: &TestPool| fs::read_dir(t.path(v.fs, "commits")).unwrap().count();
    assert_eq!(names(&t), 2);
    let left = t.path(v.fs, &format!("commits/{}.work", c.id));
    run("btrfs", &["subvolume", "snapshot", t.head(v.fs).to_str().unwrap(), left.to_str().unwrap()]);
    let TestPool { pool, place } = t;
    drop(pool);
    let (pool, _) = place.open(None).unwrap();
    let t = TestPool { pool, place };
    assert_eq!(names(&t), 2, "the start sweeps");
}

#[test]
fn another_process_freezes_without_mount_tables_under_a_mount() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let nested = subvolume(&t.head(v.fs).join("n"));
    let target = t.target("pod");
    t.mount(v.fs, MountWhat::Head, &target, MountMode::WRITE).unwrap();
    let mut writers = [Writer::new(&target.join("log")), Writer::new(&nested.join("log"))];
    for w in &mut writers {
        w.write().unwrap();
    }
    let script = format!(
        "umount -l /proc && exec {} freeze --pool {} --fs {}",
        env!("CARGO_BIN_EXE_dotgraft-agent"),
        t.place.mount_point().display(),
        v.fs
    );
    run("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script]);
    for w in &mut writers {
        assert!(w.write().is_err());
    }
    assert!(t.is_fenced(v.fs).unwrap());
    t.final_commit(v.n, &v.next(None)).unwrap();
    let gone = Command::new(env!("CARGO_BIN_EXE_dotgraft-agent"))
        .args(["freeze", "--pool", t.place.mount_point().to_str().unwrap(), "--fs", &fs_id().to_string()])
        .output()
        .unwrap();
    assert!(!gone.status.success(), "there is no such Filesystem");
}
