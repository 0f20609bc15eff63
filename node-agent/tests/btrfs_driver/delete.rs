//! Deletion: whole, repeatable, durable, never under a mount (storage.md §2, §3, §5; failures.md rows 3, 5, 26).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dotgraft_agent::driver::{Driver, DriverError, Found, MountMode, MountWhat};
use dotgraft_engine::model::Origin;

use crate::support::*;

#[test]
fn every_call_can_be_repeated() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    t.prepare(&v.meta).unwrap();
    fs::write(t.head(v.fs).join("a"), b"1").unwrap();
    t.create_head(v.fs, v.n, None).unwrap();
    assert_eq!(fs::read(t.head(v.fs).join("a")).unwrap(), b"1", "an existing head stays");
    let mut c = v.next(None);
    t.commit(v.n, &c).unwrap();
    fs::write(t.head(v.fs).join("a"), b"2").unwrap();
    t.commit(v.n, &c).unwrap();
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/a", c.id))).unwrap(), b"1", "a commit is taken once");
    c.message = "kept now".into();
    for _ in 0..2 {
        t.write_commit_meta(&c).unwrap();
    }
    assert_eq!(t.inspect(v.fs).unwrap().commits, std::slice::from_ref(&c));
    for _ in 0..2 {
        t.delete_commit(v.fs, c.id).unwrap();
    }
    for _ in 0..3 {
        t.destroy(v.fs, v.n).unwrap();
    }
    assert_eq!(t.inspect(v.fs).unwrap(), Found::default());
    t.delete_commit(v.fs, c.id).unwrap();
    t.receive_discard(v.fs, c.id).unwrap();
    for error in [t.commit(v.n, &c).map(drop), t.create_head(v.fs, v.n, None), t.thaw(v.fs), t.write_commit_meta(&c), t.write_meta(&v.meta)]
    {
        assert!(matches!(error, Err(DriverError::NotFound(_))), "{error:?}");
    }
}

#[test]
fn a_head_from_a_commit_that_is_not_there_is_not_found_and_leaves_nothing() {
    let t = TestPool::new(512);
    let meta = t.meta(MIB);
    t.prepare(&meta).unwrap();
    let origin = Origin { fs_id: fs_id(), commit: commit_of(meta.fs_id, None).id };
    assert!(matches!(t.create_head(meta.fs_id, meta.qgroup, Some(origin)), Err(DriverError::NotFound(_))));
    assert!(!t.inspect(meta.fs_id).unwrap().head);
}

#[test]
fn what_is_nested_goes_with_a_destroy_frozen_or_not() {
    let t = TestPool::new(1024);
    for frozen in [false, true] {
        let v = t.volume(100);
        let deep = t.head(v.fs).join("srv/data base");
        fs::create_dir_all(&deep).unwrap();
        for path in ["one", "one/inner", "one/inner/innermost", "two"] {
            run("btrfs", &["subvolume", "create", deep.join(path).to_str().unwrap()]);
        }
        fs::write(deep.join("one/inner/f"), b"x").unwrap();
        run("btrfs", &["property", "set", "-ts", deep.join("one").to_str().unwrap(), "ro", "true"]);
        if frozen {
            t.fence(v.n, &v.next(None)).unwrap();
        }
        t.destroy(v.fs, v.n).unwrap();
        assert_eq!(t.list().unwrap(), []);
        let left = run("btrfs", &["subvolume", "list", t.place.mount_point().to_str().unwrap()]);
        assert_eq!(left.trim(), "", "nothing of it is left");
    }
}

#[test]
fn a_nested_subvolume_in_a_full_volume_goes_with_a_destroy() {
    let t = TestPool::new(1024);
    let v = t.volume(24);
    run("btrfs", &["subvolume", "create", t.head(v.fs).join("n").to_str().unwrap()]);
    let mut n = 0;
    while fs::write(t.head(v.fs).join(format!("n/{n}")), noise(n, 100_000)).is_ok() {
        rustix::fs::syncfs(fs::File::open(t.head(v.fs)).unwrap()).unwrap();
        n += 1;
    }
    t.destroy(v.fs, v.n).unwrap();
    assert_eq!(t.list().unwrap(), []);
}

#[test]
fn a_head_goes_alone_with_what_is_nested_in_it_also_in_a_full_volume_and_never_under_a_mount() {
    let t = TestPool::new(1024);
    let v = t.volume(24);
    let c = v.next(None);
    fs::write(t.head(v.fs).join("kept"), noise(0, 1 << 20)).unwrap();
    t.commit(v.n, &c).unwrap();
    run("btrfs", &["subvolume", "create", t.head(v.fs).join("n").to_str().unwrap()]);
    let mut n = 0;
    while fs::write(t.head(v.fs).join(format!("n/{n}")), noise(n, 100_000)).is_ok() {
        rustix::fs::syncfs(fs::File::open(t.head(v.fs)).unwrap()).unwrap();
        n += 1;
    }
    let target = t.target("pod");
    t.mount(v.fs, MountWhat::Head, &target, MountMode::WRITE).unwrap();
    assert!(matches!(t.drop_head(v.fs), Err(DriverError::Mounted(_))));
    fs::remove_file(target.join("kept")).expect("a pod that has it mounted is not fenced");
    t.unmount(&target).unwrap();
    for _ in 0..2 {
        t.drop_head(v.fs).unwrap();
    }
    let found = t.inspect(v.fs).unwrap();
    assert!(!found.head && found.commits == [c.clone()]);
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/kept", c.id))).unwrap(), noise(0, 1 << 20));
    eventually("the space to come back", || t.used(&v) < 4 * MIB);
    t.destroy(v.fs, v.n).unwrap();
    assert_eq!(t.list().unwrap(), []);
}

#[test]
fn an_immutable_root_directory_does_not_stop_a_destroy() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    run("chattr", &["+i", t.head(v.fs).to_str().unwrap()]);
    t.commit(v.n, &v.next(None)).unwrap();
    t.destroy(v.fs, v.n).unwrap();
    assert_eq!(t.list().unwrap(), []);
}

#[test]
fn nothing_is_deleted_while_it_is_mounted() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    let (c1, c2) = (v.next(None), v.next(None));
    t.commit(v.n, &c1).unwrap();
    t.commit(v.n, &c2).unwrap();
    let target = t.target("reader");
    t.mount(v.fs, MountWhat::Commit(c1.id), &target, MountMode::READ).unwrap();
    let refused = t.delete_commit(v.fs, c1.id);
    assert!(matches!(&refused, Err(DriverError::Mounted(m)) if m.contains(target.to_str().unwrap())), "{refused:?}");
    t.delete_commit(v.fs, c2.id).unwrap();
    assert!(matches!(t.destroy(v.fs, v.n), Err(DriverError::Mounted(_))));
    assert_eq!(t.inspect(v.fs).unwrap().commits.len(), 1);
    t.unmount(&target).unwrap();
    t.destroy(v.fs, v.n).unwrap();
}

#[test]
fn the_group_goes_when_the_kernel_has_cleaned_up() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    fs::write(t.head(v.fs).join("a"), noise(1, 10 << 20)).unwrap();
    t.commit(v.n, &v.next(None)).unwrap();
    eventually("the group went", || {
        t.destroy(v.fs, v.n).unwrap();
        matches!(t.usage(v.n), Err(DriverError::NotFound(_)))
    });
    let groups = run("btrfs", &["qgroup", "show", t.place.mount_point().to_str().unwrap()]);
    assert!(!groups.contains("1/"), "{groups}");
}

/// A power cut is one moment, and a copy of a mounted pool's file takes a while, on a busy machine longer than btrfs waits between two transactions: what
/// the first superblock points to may be overwritten by then. So the copy counts only if no transaction and no fsync ended meanwhile.
fn copy_at_one_moment(from: &Path, to: &Path) {
    let superblock = || {
        let mut block = vec![0; 4096];
        fs::File::open(from).unwrap().read_exact_at(&mut block, 64 << 10).unwrap();
        block
    };
    eventually("a copy of one moment", || {
        let before = superblock();
        fs::copy(from, to).unwrap();
        superblock() == before
    });
}

/// What a power cut would leave: the backing file as it is now (the loop device reads and writes past the page cache), opened as a pool.
fn after_power_cut(t: TestPool) -> TestPool {
    let copy = t.place.dir.path().join("cut.img");
    copy_at_one_moment(&t.place.file(), &copy);
    let TestPool { pool, place } = t;
    let id = dotgraft_agent::driver::Driver::pool(&pool).id;
    drop(pool);
    place.unmount_all();
    eventually("the loop device went", || place.loops().is_empty());
    fs::rename(&copy, place.file()).unwrap();
    let (pool, _) = place.open(Some(id)).unwrap();
    TestPool { pool, place }
}

#[test]
fn what_returned_is_there_after_a_power_cut_and_what_was_deleted_is_not() {
    let t = TestPool::new(512);
    let (kept, gone) = (t.volume(100), t.volume(100));
    fs::write(t.head(kept.fs).join("a"), noise(1, 5 << 20)).unwrap(); // never fsynced by its writer
    let (c1, c2) = (kept.next(None), kept.next(None));
    t.commit(kept.n, &c1).unwrap();
    t.commit(kept.n, &c2).unwrap();
    t.commit(gone.n, &gone.next(None)).unwrap();
    t.destroy(gone.fs, gone.n).unwrap();
    let mut meta = kept.meta.clone();
    meta.attempt = 7;
    t.write_meta(&meta).unwrap();
    t.delete_commit(kept.fs, c2.id).unwrap();

    let t = after_power_cut(t);
    assert_eq!(t.list().unwrap(), [kept.fs]);
    let found = t.inspect(kept.fs).unwrap();
    assert_eq!(found.commits, std::slice::from_ref(&c1));
    assert_eq!(found.broken, Vec::<String>::new());
    assert_eq!(found.meta, Some(meta));
    assert_eq!(fs::read(t.path(kept.fs, &format!("commits/{}/a", c1.id))).unwrap(), noise(1, 5 << 20));
}

#[test]
fn a_received_commit_is_whole_after_a_power_cut() {
    let t = TestPool::new(512);
    let v = t.volume(200);
    let c = v.next(None);
    let incoming = t.receive_start(v.fs, v.n, c.id, None, None).unwrap();
    let root = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&incoming.root));
    for n in 0..20 {
        fs::write(format!("{root}/{n}"), noise(n, 300_000)).unwrap();
    }
    t.receive_checkpoint(v.fs, v.n, c.id, 1 << 20).unwrap();
    fs::write(format!("{root}/last"), b"last").unwrap();
    t.receive_finish(v.n, &c).unwrap();
    drop(incoming);
    let t = after_power_cut(t);
    let found = t.inspect(v.fs).unwrap();
    assert_eq!(found.commits, std::slice::from_ref(&c));
    assert_eq!(found.checkpoints, [(c.id, 1 << 20)]);
    for n in 0..20 {
        assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/{n}", c.id))).unwrap(), noise(n, 300_000));
        assert_eq!(fs::read(t.path(v.fs, &format!("checkpoints/{}.{}/{n}", c.id, 1 << 20))).unwrap(), noise(n, 300_000));
    }
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/last", c.id))).unwrap(), b"last");
}

#[test]
fn a_half_done_commit_or_deletion_is_broken_in_inspect_and_repeating_mends_it() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let (c1, c2) = (v.next(None), v.next(None));
    t.commit(v.n, &c1).unwrap();
    t.commit(v.n, &c2).unwrap();
    fs::remove_file(t.path(v.fs, &format!("commits/{}.json", c1.id))).unwrap();
    run("btrfs", &["subvolume", "delete", t.path(v.fs, &format!("commits/{}", c2.id)).to_str().unwrap()]);
    let found = t.inspect(v.fs).unwrap();
    assert_eq!(found.commits, []);
    let mut broken = [c1.id.to_string(), c2.id.to_string()];
    broken.sort();
    let mut seen = found.broken;
    seen.sort();
    assert_eq!(seen, broken);
    t.commit(v.n, &c1).unwrap();
    t.delete_commit(v.fs, c2.id).unwrap();
    let found = t.inspect(v.fs).unwrap();
    assert_eq!((found.commits, found.broken.len()), (vec![c1], 0));
}

#[test]
fn damaged_metadata_is_an_error_and_not_an_empty_volume() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let file = t.path(v.fs, "fs.json");
    let good = fs::read_to_string(&file).unwrap();
    for bad in [String::new(), good.replace(&t.pool().id.to_string(), &v.fs.to_string())] {
        fs::write(&file, bad).unwrap();
        assert!(matches!(t.inspect(v.fs), Err(DriverError::BadMetadata(_))));
    }
    t.write_meta(&v.meta).unwrap();
    assert!(t.inspect(v.fs).is_ok());
    t.destroy(v.fs, v.n).unwrap();
}

/// No filesystem call that writes goes on in the pool, until this value is gone; reading and mounting do.
struct Stopped(std::path::PathBuf);
impl Stopped {
    fn new(t: &TestPool) -> Self {
        let path = t.place.mount_point();
        run("fsfreeze", &["--freeze", path.to_str().unwrap()]);
        Self(path)
    }
}
impl Drop for Stopped {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", self.0.to_str().unwrap()]);
    }
}

/// Limit of the own group of a head, as the kernel says it.
fn own_limit(t: &TestPool, v: &Volume) -> String {
    let groups = run("btrfs", &["qgroup", "show", "-r", "--raw", "-f", t.head(v.fs).to_str().unwrap()]);
    groups.lines().last().unwrap().split_whitespace().nth(3).unwrap_or_default().to_owned()
}

#[test]
fn a_mount_found_by_the_second_look_leaves_the_head_as_fenced_as_it_was() {
    let t = TestPool::new(512);
    let target = t.target("late");
    for (fenced, whole) in [(true, true), (true, false), (false, true), (false, false)] {
        let v = t.volume(50);
        if fenced {
            // A fence that a crash cut off between flag and limit: the next one has something to write.
            run("btrfs", &["property", "set", "-ts", t.head(v.fs).to_str().unwrap(), "ro", "true"]);
        }
        let unlimited = own_limit(&t, &v);
        let refused = std::thread::scope(|scope| {
            let stopped = Stopped::new(&t);
            let (tell, told) = std::sync::mpsc::channel();
            let (t, v) = (&t, &v);
            let deletes = scope.spawn(move || {
                tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
                if whole { t.destroy(v.fs, v.n) } else { t.drop_head(v.fs) }
            });
            // It has looked once, and sleeps in the freeze: nothing else it does waits for the pool.
            let stat = format!("/proc/self/task/{}/stat", told.recv().unwrap());
            let mut asleep = 0;
            eventually("the freeze began", || {
                let now = fs::read_to_string(&stat).unwrap();
                asleep = if now.rsplit_once(") ").unwrap().1.starts_with('D') { asleep + 1 } else { 0 };
                asleep == 10
            });
            rustix::mount::mount_bind(t.head(v.fs), &target).unwrap();
            drop(stopped);
            deletes.join().unwrap()
        });
        assert!(matches!(refused, Err(DriverError::Mounted(_))), "{refused:?}");
        assert_eq!(t.is_fenced(v.fs).unwrap(), fenced, "whole: {whole}");
        assert_eq!(own_limit(&t, &v) != unlimited, fenced, "the second look refused, under the freeze");
        t.unmount(&target).unwrap();
        t.destroy(v.fs, v.n).unwrap();
    }
}
