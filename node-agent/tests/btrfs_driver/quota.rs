//! Quotas: one number per Filesystem, right through snapshots, promotion and deletion (storage.md §4).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use dotgraft_agent::driver::{Driver, DriverError};
use dotgraft_engine::model::{Commit, Origin};

use crate::support::*;

/// Within 3 MiB: metadata of the trees is counted too.
fn about(bytes: u64, mib: u64) -> bool {
    bytes.abs_diff(mib * MIB) < 3 * MIB
}

#[test]
fn bytes_are_counted_once_through_snapshot_overwrite_and_deletion() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    fs::write(t.head(v.fs).join("a"), noise(1, 50 << 20)).unwrap();
    assert!(about(t.used(&v), 50), "{}", t.used(&v));
    let c1 = v.next(None);
    t.commit(v.n, &c1).unwrap();
    assert!(about(t.used(&v), 50), "a snapshot costs nothing: {}", t.used(&v));
    fs::write(t.head(v.fs).join("a"), noise(2, 50 << 20)).unwrap();
    assert!(about(t.used(&v), 100), "the commit holds the old data: {}", t.used(&v));
    fs::remove_file(t.head(v.fs).join("a")).unwrap();
    eventually("the head's part came back", || about(t.used(&v), 50));
    t.delete_commit(v.fs, c1.id).unwrap();
    eventually("the commit's part came back", || about(t.used(&v), 0));
}

#[test]
fn a_received_copy_is_counted_through_promotion_and_the_end_of_its_commit() {
    let t = TestPool::new(1024);
    let meta = t.meta(500 * MIB);
    t.prepare(&meta).unwrap();
    let v = Volume { fs: meta.fs_id, n: meta.qgroup, meta };
    let commit = v.next(None);
    let incoming = t.receive_start(v.fs, v.n, commit.id, None, None).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&incoming.root));
    fs::write(format!("{path}/a"), noise(3, 60 << 20)).unwrap();
    t.receive_finish(v.n, &commit).unwrap();
    drop(incoming);
    t.receive_discard(v.fs, commit.id).unwrap();
    assert!(about(t.used(&v), 60), "{}", t.used(&v));
    // Promotion: a head from the received commit, which then goes.
    t.create_head(v.fs, v.n, Some(Origin { fs_id: v.fs, commit: commit.id })).unwrap();
    t.delete_commit(v.fs, commit.id).unwrap();
    assert!(about(t.used(&v), 60), "the head still holds it all: {}", t.used(&v));
    fs::remove_file(t.head(v.fs).join("a")).unwrap();
    eventually("it came back", || about(t.used(&v), 0));
}

#[test]
fn a_branch_pays_only_for_what_it_adds() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    let commit = v.next(None);
    fs::write(t.head(v.fs).join("a"), noise(4, 60 << 20)).unwrap();
    t.commit(v.n, &commit).unwrap();
    let branch = t.meta(500 * MIB);
    t.prepare(&branch).unwrap();
    t.create_head(branch.fs_id, branch.qgroup, Some(Origin { fs_id: v.fs, commit: commit.id })).unwrap();
    fs::write(t.head(branch.fs_id).join("b"), noise(5, 20 << 20)).unwrap();
    let branch = Volume { fs: branch.fs_id, n: branch.qgroup, meta: branch };
    assert!(about(t.used(&branch), 20), "a branch pays for what it adds: {}", t.used(&branch));
    assert!(about(t.used(&v), 60));
}

#[test]
fn a_full_volume_refuses_writes_and_grows_through_the_top_level() {
    let t = TestPool::new(1024);
    let v = t.volume(32);
    let mut file = fs::File::create(t.head(v.fs).join("fill")).unwrap();
    let chunk = noise(6, 1 << 20);
    let full = loop {
        if let Err(e) = file.write_all(&chunk).and_then(|()| file.sync_data()) {
            break e;
        }
    };
    assert_eq!(full.raw_os_error(), Some(122), "EDQUOT");
    assert!(t.used(&v) <= 32 * MIB);
    t.set_limit(v.n, 64 * MIB).unwrap();
    assert_eq!(t.usage(v.n).unwrap().limit, 64 * MIB);
    for _ in 0..16 {
        file.write_all(&chunk).unwrap();
        file.sync_data().unwrap();
    }
    t.set_limit(v.n, 0).unwrap();
    assert_eq!(t.usage(v.n).unwrap().limit, 0);
}

#[test]
fn a_full_volume_can_still_be_committed_emptied_and_destroyed() {
    let t = TestPool::new(1024);
    let v = t.volume(32);
    let mut n = 0;
    while fs::write(t.head(v.fs).join(n.to_string()), noise(n, 200_000)).is_ok() {
        rustix::fs::syncfs(fs::File::open(t.head(v.fs)).unwrap()).unwrap();
        n += 1;
    }
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    t.write_meta(&v.meta).unwrap();
    t.write_commit_meta(&c).unwrap();
    t.delete_commit(v.fs, c.id).unwrap();
    t.commit(v.n, &v.next(None)).unwrap();
    t.destroy(v.fs, v.n).unwrap();
    assert_eq!(t.list().unwrap(), []);
}

#[test]
fn a_receive_into_a_full_quota_is_no_space() {
    let t = TestPool::new(1024);
    let v = t.volume(16);
    let commit = v.next(None);
    let incoming = t.receive_start(v.fs, v.n, commit.id, None, None).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&incoming.root));
    let error = fs::write(format!("{path}/a"), noise(7, 40 << 20)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(122));
    t.receive_discard(v.fs, commit.id).unwrap();
    assert_eq!(t.inspect(v.fs).unwrap().incoming, []);
}

#[test]
fn a_subvolume_outside_its_group_is_found_at_start_and_put_in() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let stray = t.path(v.fs, "parked");
    fs::create_dir(&stray).unwrap();
    run("btrfs", &["subvolume", "snapshot", t.head(v.fs).to_str().unwrap(), stray.join("x").to_str().unwrap()]);
    fs::write(stray.join("x/data"), noise(8, 10 << 20)).unwrap();
    assert!(about(t.used(&v), 0));
    let TestPool { pool, place } = t;
    drop(pool);
    let (pool, report) = place.open(None).unwrap();
    assert_eq!(report.strays.len(), 1, "{report:?}");
    assert_eq!((report.strays[0].fs, report.strays[0].path.as_str()), (v.fs, "parked/x"));
    let t = TestPool { pool, place };
    assert!(about(t.used(&v), 10), "{}", t.used(&v));
    let TestPool { pool, place } = t;
    drop(pool);
    assert_eq!(place.open(None).unwrap().1.strays.len(), 0);
}

#[test]
fn what_a_user_nests_is_counted_too() {
    let t = TestPool::new(1024);
    let v = t.volume(20);
    let nested = t.head(v.fs).join("mine");
    run("btrfs", &["subvolume", "create", nested.to_str().unwrap()]);
    let error = fs::write(nested.join("a"), noise(9, 60 << 20)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(122), "no way around the limit");
}

#[test]
fn numbers_are_unique_among_concurrent_callers_and_against_the_pool() {
    let t = TestPool::new(512);
    let v = t.volume(10);
    let all: Vec<u64> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4).map(|_| s.spawn(|| (0..100).map(|_| t.allocate_qgroup().unwrap()).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 400);
    assert!(!all.contains(&v.n) && !all.contains(&0));
}

#[test]
fn an_unknown_group_is_not_found() {
    let t = TestPool::new(512);
    assert!(matches!(t.usage(12345), Err(DriverError::NotFound(_))));
    assert!(matches!(t.set_limit(12345, 1), Err(DriverError::NotFound(_))));
}

/// A clone of what `v` holds in a commit, with that limit for itself alone.
fn clone_of(t: &TestPool, v: &Volume, commit: &Commit, own: u64) -> Volume {
    let origin = Origin { fs_id: v.fs, commit: commit.id };
    let mut meta = t.meta(own);
    t.prepare(&meta).unwrap();
    t.create_head(meta.fs_id, meta.qgroup, Some(origin)).unwrap();
    (meta.origin_bytes, meta.shares_origin) = (t.began_with(meta.fs_id, origin).unwrap(), true);
    t.write_meta(&meta).unwrap();
    Volume { fs: meta.fs_id, n: meta.qgroup, meta }
}

#[test]
fn a_clone_knows_what_it_began_with_whatever_is_written_in_it_since() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    fs::write(t.head(v.fs).join("a"), noise(10, 60 << 20)).unwrap();
    let commit = v.next(None);
    t.commit(v.n, &commit).unwrap();
    let clone = clone_of(&t, &v, &commit, 500 * MIB);
    assert!(about(clone.meta.origin_bytes, 60), "{}", clone.meta.origin_bytes);
    fs::write(t.head(clone.fs).join("b"), noise(11, 20 << 20)).unwrap();
    rustix::fs::syncfs(fs::File::open(t.head(clone.fs)).unwrap()).unwrap();
    // Measured once more after a crash.
    let again = t.began_with(clone.fs, Origin { fs_id: v.fs, commit: commit.id }).unwrap();
    assert!(about(again, 60), "{again}");
}

#[test]
fn what_a_deleted_origin_leaves_is_counted_and_goes_with_its_last_user() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    fs::write(t.head(v.fs).join("a"), noise(12, 60 << 20)).unwrap();
    let commit = v.next(None);
    t.commit(v.n, &commit).unwrap();
    let clone = clone_of(&t, &v, &commit, 500 * MIB);
    t.destroy(v.fs, v.n).unwrap();
    eventually("60 MiB that nobody's group has", || about(t.tidy_groups().unwrap().left, 60));
    assert!(t.used(&clone) < 3 * MIB, "nor the clone's");
    assert!(groups(&t).contains(&format!("1_{}", v.n)), "its group stays");
    fs::remove_file(t.head(clone.fs).join("a")).unwrap();
    eventually("nothing left, and no group without a subvolume", || {
        rustix::fs::syncfs(fs::File::open(t.place.mount_point()).unwrap()).unwrap();
        t.tidy_groups().unwrap().left == 0 && !groups(&t).contains(&format!("1_{}", v.n)) && groups(&t).len() <= 5
    });
}

#[test]
fn the_group_of_a_volume_that_is_being_made_is_not_taken_for_one_that_is_gone() {
    let t = TestPool::new(512);
    let n = t.allocate_qgroup().unwrap();
    run("btrfs", &["qgroup", "create", &format!("1/{n}"), t.place.mount_point().to_str().unwrap()]);
    t.tidy_groups().unwrap();
    assert!(groups(&t).contains(&format!("1_{n}")));
}

/// Groups of the pool, as sysfs names them.
fn groups(t: &TestPool) -> BTreeSet<String> {
    let dir = fs::read_dir(format!("/sys/fs/btrfs/{}/qgroups", t.pool().id)).unwrap();
    let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit())).collect()
}
