//! Subvolumes that a user without a privilege makes in a volume, outside of its quota group: of no group, or of another tenant's. The kernel
//! lets the caller choose (`btrfs_qgroup_inherit`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use dotgraft_agent::driver::{Driver, Stray};

use crate::support::*;

/// `SUBVOL_CREATE_V2` in a directory, or `SNAP_CREATE_V2` of it with a trailing `snapshot`, as a user without a privilege who owns it. Names
/// come on the command line: directory, name, numbers of the groups or `-`.
const MAKE: &str = r"
import ctypes, fcntl, os, struct, sys
def make(fd, name, groups, snapshot):
    groups = [int(g) | 1 << 48 for g in groups.split(',') if g != '-']
    inherit = ctypes.create_string_buffer(struct.pack('4Q5Q', 0, len(groups), 0, 0, 0, 0, 0, 0, 0) + b''.join(struct.pack('Q', g) for g in groups))
    size = 72 + 8 * len(groups)
    args = bytearray(struct.pack('qQQQQQQ', fd, 0, 1 << 2, size, ctypes.addressof(inherit), 0, 0) + name.encode().ljust(4040, b'\0'))
    fcntl.ioctl(fd, 0x50009417 if snapshot else 0x50009418, args)
dir, name, groups = sys.argv[1:4]
os.chown(dir, 1000, 1000)
fd = os.open(dir, os.O_RDONLY)
os.setgid(1000); os.setuid(1000)
if name == '*':
    for n in range(int(sys.argv[4])): make(fd, 's%d' % n, groups, n % 8 == 7)
else:
    make(fd, name, groups, sys.argv[4:] == ['snapshot'])
";

fn made(dir: &Path, name: &str, groups: &[u64], more: &[&str]) -> PathBuf {
    let groups: Vec<String> = groups.iter().map(u64::to_string).collect();
    let groups = if groups.is_empty() { "-".to_owned() } else { groups.join(",") };
    let mut args = vec![dir, Path::new(name), Path::new(&groups)];
    args.extend(more.iter().map(Path::new));
    assert!(python(MAKE, &args).0.wait().unwrap().success());
    dir.join(name)
}

fn is_full(dir: &Path) -> bool {
    let written = fs::write(dir.join("one more"), noise(9, 1 << 20));
    let full = written.as_ref().is_err_and(|e| e.raw_os_error() == Some(122));
    assert!(full || written.is_ok(), "{written:?}");
    full
}

/// What the looks of a few seconds find.
fn looked(t: &TestPool) -> Vec<Stray> {
    (0..3).flat_map(|_| t.strays().unwrap()).collect()
}

fn paths(found: &[Stray]) -> Vec<&str> {
    found.iter().map(|s| s.path.as_str()).collect()
}

#[test]
fn what_is_written_outside_of_every_group_is_counted_once_it_is_found_and_no_more_is_taken() {
    let t = TestPool::new(1024);
    let v = t.volume(64);
    let nested = made(&t.head(v.fs), "mine", &[], &[]);
    fs::write(nested.join("f"), noise(1, 300 << 20)).unwrap();
    assert!(t.used(&v) < 4 * MIB, "an escape: else this shows nothing");
    let found = looked(&t);
    assert_eq!((paths(&found), found[0].fs, found[0].charged_others), (vec!["mine"], v.fs, false));
    assert!(t.used(&v) >= 300 * MIB, "written before it was found, and counted: {}", t.used(&v));
    assert!(is_full(&nested) && is_full(&t.head(v.fs)));
    assert_eq!(t.usage(v.n).unwrap().limit, 64 * MIB);
    fs::remove_file(nested.join("f")).unwrap();
    eventually("it came back", || t.used(&v) < 4 * MIB);
    assert!(!is_full(&nested));
    assert_eq!(looked(&t), []);
    t.destroy(v.fs, v.n).unwrap();
}

#[test]
fn what_was_charged_to_another_tenant_goes_back_to_who_wrote_it() {
    let t = TestPool::new(1024);
    let (v, victim) = (t.volume(200), t.volume(64));
    let nested = made(&t.head(v.fs), "mine", &[victim.n], &[]);
    let both = made(&t.head(v.fs), "both", &[victim.n, v.n], &[]);
    fs::write(nested.join("f"), noise(1, 40 << 20)).unwrap();
    fs::write(both.join("f"), noise(2, 20 << 20)).unwrap();
    let full = fs::write(nested.join("g"), noise(4, 40 << 20)).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(122), "the group of the other tenant is full");
    fs::write(nested.join("rest"), noise(5, 3 << 20)).ok();
    assert!(is_full(&t.head(victim.fs)), "the other tenant's pod gets EDQUOT: else this shows nothing");
    let found = looked(&t);
    assert_eq!((paths(&found), found.iter().all(|s| s.charged_others && s.fs == v.fs)), (vec!["mine", "both"], true));
    assert!(t.used(&victim) < 4 * MIB && !is_full(&t.head(victim.fs)));
    assert!(t.used(&v) > 60 * MIB);
    assert_eq!(looked(&t), []);
}

#[test]
fn one_in_another_at_any_depth_and_a_snapshot_of_the_whole_volume_are_found_too() {
    let t = TestPool::new(1024);
    let v = t.volume(64);
    fs::create_dir(t.head(v.fs).join("a dir")).unwrap();
    let mut at = t.head(v.fs).join("a dir");
    for n in 0..40 {
        at = made(&at, &n.to_string(), &[], &[]);
    }
    made(&t.head(v.fs), "copy", &[], &["snapshot"]);
    let right = made(&at, "right", &[v.n], &[]);
    fs::write(at.join("f"), noise(3, 100 << 20)).unwrap();
    let found = looked(&t);
    assert_eq!((found.len(), found[0].path.as_str(), found[40].path.as_str()), (41, "a dir/0", "copy"));
    assert!(is_full(&right) && is_full(&t.head(v.fs).join("copy")) && t.used(&v) > 100 * MIB);
    t.destroy(v.fs, v.n).unwrap();
}

#[test]
fn one_that_was_made_while_no_agent_ran_is_found_at_the_start() {
    let t = TestPool::new(1024);
    let v = t.volume(64);
    let nested = made(&t.head(v.fs), "mine", &[], &[]);
    fs::write(nested.join("f"), noise(1, 100 << 20)).unwrap();
    let TestPool { pool, place } = t;
    drop(pool);
    let (pool, report) = place.open(None).unwrap();
    assert_eq!(paths(&report.strays), ["mine"]);
    let t = TestPool { pool, place };
    assert!(is_full(&nested) && t.used(&v) > 100 * MIB);
    assert_eq!(looked(&t), []);
}

#[test]
fn none_that_is_made_while_it_is_looked_stays_outside() {
    let t = TestPool::new(1024);
    let (v, victim) = (t.volume(200), t.volume(64));
    let over = AtomicBool::new(false);
    let mut found = std::thread::scope(|s| {
        let looks = s.spawn(|| {
            let mut found = Vec::new();
            while !over.load(Ordering::Relaxed) {
                found.extend(t.strays().unwrap());
            }
            found
        });
        let ended = std::panic::catch_unwind(|| made(&t.head(v.fs), "*", &[victim.n], &["400"]));
        over.store(true, Ordering::Relaxed);
        ended.unwrap();
        looks.join().unwrap()
    });
    found.extend(looked(&t));
    assert!(found.len() >= 400);
    for n in (7..400).step_by(8) {
        fs::write(t.head(v.fs).join(format!("s{n}/f")), noise(n, 1 << 20)).unwrap();
    }
    assert!(t.used(&victim) < MIB && t.used(&v) > 10 * MIB, "{} {}", t.used(&victim), t.used(&v));
}

/// Made, filled, emptied into the head and removed between two looks: nothing but the extents says where it was.
#[test]
fn what_a_deleted_stray_has_left_in_a_head_is_charged_to_that() {
    let t = TestPool::new(1024);
    let (v, beside) = (t.volume(64), t.volume(64));
    let nested = made(&t.head(v.fs), "mine", &[], &[]);
    fs::write(nested.join("f"), noise(1, 100 << 20)).unwrap();
    rustix::fs::syncfs(fs::File::open(&nested).unwrap()).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    run("cp", &["--reflink=always", &text(&nested.join("f")), &text(&t.head(v.fs).join("f"))]);
    run("btrfs", &["subvolume", "delete", "-c", &text(&nested)]);
    assert_eq!(looked(&t), []);
    assert!(t.used(&v) < 4 * MIB, "an escape: else this shows nothing");
    let mut found = Vec::new();
    eventually("the head that uses it to pay", || {
        rustix::fs::syncfs(fs::File::open(t.place.mount_point()).unwrap()).unwrap();
        found.extend(t.tidy_groups().unwrap().strays);
        !found.is_empty()
    });
    assert_eq!((found.len(), found[0].fs), (1, v.fs));
    assert!(t.used(&v) >= 100 * MIB && t.used(&beside) < 4 * MIB, "{}", t.used(&v));
    assert!(is_full(&t.head(v.fs)) && !is_full(&t.head(beside.fs)));
    assert_eq!(t.tidy_groups().unwrap().left, 0);
    fs::remove_file(t.head(v.fs).join("f")).unwrap();
    eventually("it came back", || t.used(&v) < 4 * MIB);
}
