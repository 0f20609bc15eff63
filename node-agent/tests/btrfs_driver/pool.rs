//! Opening pools: by identity, once, never over something else (storage.md §1; failures.md rows 24, 25, 28).

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use dotgraft_agent::btrfs::{BtrfsPool, PoolError, PoolSource};
use dotgraft_agent::driver::{Driver, DriverError, MountMode, MountWhat};
use dotgraft_engine::ids::PoolId;
use dotgraft_engine::model::Origin;

use crate::support::*;

#[test]
fn a_new_pool_goes_through_a_whole_life() {
    let t = TestPool::new(2048);
    let v = t.volume(512);
    fs::write(t.head(v.fs).join("a"), b"one").unwrap();
    let c1 = v.next(None);
    t.commit(v.n, &c1).unwrap();
    assert!(!t.head_changed_since(v.fs, c1.id).unwrap());
    fs::write(t.head(v.fs).join("a"), b"two").unwrap();
    assert!(t.head_changed_since(v.fs, c1.id).unwrap());
    let c2 = v.next(Some(c1.id));
    t.commit(v.n, &c2).unwrap();

    let target = t.target("pod");
    t.mount(v.fs, MountWhat::Head, &target, MountMode::WRITE).unwrap();
    assert_eq!(fs::read(target.join("a")).unwrap(), b"two");
    t.unmount(&target).unwrap();

    let branch = t.meta(512 * MIB);
    t.prepare(&branch).unwrap();
    t.create_head(branch.fs_id, branch.qgroup, Some(Origin { fs_id: v.fs, commit: c1.id })).unwrap();
    assert_eq!(fs::read(t.head(branch.fs_id).join("a")).unwrap(), b"one");

    let found = t.inspect(v.fs).unwrap();
    assert_eq!(found.commits.iter().map(|c| c.id).collect::<Vec<_>>(), [c1.id, c2.id]);
    assert!(found.head && found.broken.is_empty());
    assert_eq!(found.meta, Some(v.meta.clone()));

    let c3 = v.next(Some(c2.id));
    t.fence(v.n, &c3).unwrap();
    assert!(t.is_fenced(v.fs).unwrap());
    assert!(fs::write(t.head(v.fs).join("a"), b"no").is_err());
    t.thaw(v.fs).unwrap();
    fs::write(t.head(v.fs).join("a"), b"three").unwrap();

    t.delete_commit(v.fs, c1.id).unwrap();
    t.destroy(v.fs, v.n).unwrap();
    assert!(!t.path(v.fs, "").exists());
    assert_eq!(t.list().unwrap(), [branch.fs_id]);
}

#[test]
fn the_second_agent_on_a_pool_is_refused() {
    let t = TestPool::new(512);
    let second = t.place.open(None);
    assert!(matches!(second, Err(PoolError::InUse(_))), "{second:?}");
    let elsewhere = BtrfsPool::open(&t.place.source(), &t.target("elsewhere"), None);
    assert!(matches!(elsewhere, Err(PoolError::InUse(_))), "{elsewhere:?}");
    assert_eq!(t.place.loops().len(), 1);
}

#[test]
fn a_restart_takes_over_the_mount_of_the_life_before() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let (id, loops) = (t.pool().id, t.place.loops());
    let before = fs::metadata(t.head(v.fs)).unwrap().dev();
    let TestPool { pool, place } = t;
    drop(pool);
    for _ in 0..3 {
        let (pool, report) = place.open(Some(id)).unwrap();
        assert!(report.reused_mount && !report.formatted, "{report:?}");
        assert_eq!(pool.list().unwrap(), [v.fs]);
        assert_eq!(place.loops(), loops);
        assert_eq!(fs::metadata(place.mount_point().join(format!("fs/{}/head", v.fs))).unwrap().dev(), before);
    }
}

#[test]
fn a_restart_in_a_new_mount_namespace_finds_the_superblock_that_pods_keep() {
    let t = TestPool::new(512);
    let v = t.volume(100);
    let pod = t.target("pod");
    t.mount(v.fs, MountWhat::Head, &pod, MountMode::WRITE).unwrap();
    let mut open = fs::File::create(pod.join("log")).unwrap();
    let (id, loops) = (t.pool().id, t.place.loops());
    let TestPool { pool, place } = t;
    drop(pool);
    // The container died and its private mount with it; the pod's bind mount keeps superblock and loop device.
    rustix::mount::unmount(place.mount_point(), rustix::mount::UnmountFlags::empty()).unwrap();
    open.write_all(b"written while no agent ran").unwrap();
    open.sync_all().unwrap();
    drop(open);

    let (pool, report) = place.open(Some(id)).unwrap();
    assert!(!report.reused_mount && !report.formatted);
    assert_eq!(place.loops(), loops, "a second loop device would be a second superblock");
    assert_eq!(fs::read(place.mount_point().join(format!("fs/{}/head/log", v.fs))).unwrap(), b"written while no agent ran");
    pool.mount(v.fs, MountWhat::Head, &pod, MountMode::WRITE).unwrap();
    pool.unmount(&pod).unwrap();
}

#[test]
fn another_pool_or_none_under_the_recorded_id_is_missing_and_nothing_is_formatted() {
    let recorded = PoolId::from_uuid(uuid::Uuid::new_v4());
    let place = Place::new(256);
    assert!(matches!(place.open(Some(recorded)), Err(PoolError::Missing { .. })));
    assert!(!place.file().exists(), "an absent pool file must not be made");

    fs::File::create(place.file()).unwrap().set_len(place.size).unwrap();
    assert!(matches!(place.open(Some(recorded)), Err(PoolError::Missing { .. })));
    let mut block = [1_u8; 4096];
    fs::File::open(place.file()).unwrap().read_exact_at(&mut block, 64 << 10).unwrap();
    assert_eq!(block, [0; 4096], "an empty file must stay empty");
    assert_eq!(fs::metadata(place.file()).unwrap().blocks(), 0, "and take no space");

    let (pool, _) = place.open(None).unwrap();
    let real = pool.pool().id;
    drop(pool);
    let error = place.open(Some(recorded)).unwrap_err();
    let PoolError::Missing { found, .. } = &error else { panic!("{error}") };
    assert!(found.contains(&real.to_string()), "{error}");
    assert!(place.open(Some(real)).is_ok());
}

#[test]
fn a_filesystem_of_somebody_else_is_never_formatted_or_used() {
    let place = Place::new(256);
    fs::File::create(place.file()).unwrap().set_len(place.size).unwrap();
    let path = place.file();
    run("mkfs.ext4", &["-q", path.to_str().unwrap()]);
    let refused = place.open(None);
    assert!(matches!(&refused, Err(PoolError::Refused(m)) if m.contains("mkfs.btrfs refused")), "{refused:?}");
    run("tune2fs", &["-l", path.to_str().unwrap()]); // still an ext4

    run("mkfs.btrfs", &["-q", "-f", "-L", "photos", path.to_str().unwrap()]);
    let refused = place.open(None);
    assert!(matches!(&refused, Err(PoolError::Refused(m)) if m.contains("photos")), "{refused:?}");

    // Only a copy of the superblock is left: a damaged pool, not an empty disk.
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0; 4096], 64 << 10).unwrap();
    let refused = place.open(None);
    assert!(matches!(&refused, Err(PoolError::Refused(m)) if m.contains("damaged")), "{refused:?}");
}

#[test]
fn two_loop_devices_on_the_pool_file_are_refused_by_name() {
    let t = TestPool::new(256);
    let TestPool { pool, place } = t;
    drop(pool);
    let second = run("losetup", &["--find", "--show", place.file().to_str().unwrap()]);
    let refused = place.open(None);
    run("losetup", &["--detach", second.trim()]);
    let Err(PoolError::TwoLoops { devices, .. }) = refused else { panic!("{refused:?}") };
    assert!(devices.contains(second.trim()), "{devices}");
    assert!(place.open(None).is_ok());
}

#[test]
fn a_pool_whose_twin_is_mounted_from_another_device_is_refused() {
    let place = Place::new(256);
    drop(place.open(None).unwrap());
    place.unmount_all();
    let twin = place.dir.path().join("twin.img");
    fs::copy(place.file(), &twin).unwrap();
    let at = place.dir.path().join("twin");
    fs::create_dir(&at).unwrap();
    run("mount", &["-o", "loop", twin.to_str().unwrap(), at.to_str().unwrap()]);
    let refused = place.open(None);
    assert!(matches!(&refused, Err(PoolError::Refused(m)) if m.contains("already mounted from")), "{refused:?}");
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    // Another test's mount namespace may hold a copy of that mount for a moment.
    eventually("the twin went", || place.open(None).is_ok());
}

#[test]
fn the_pool_file_has_no_holes_after_mkfs_and_after_deletions_and_gets_none_back() {
    let t = TestPool::new(512);
    let solid = |p: &Path| fs::metadata(p).unwrap().blocks() * 512 >= 512 * MIB;
    assert!(solid(&t.place.file()), "mkfs discarded");
    let v = t.volume(300);
    fs::write(t.head(v.fs).join("big"), noise(1, 100 << 20)).unwrap();
    t.used(&v);
    t.destroy(v.fs, v.n).unwrap();
    run("btrfs", &["subvolume", "sync", t.place.mount_point().to_str().unwrap()]);
    run("btrfs", &["filesystem", "sync", t.place.mount_point().to_str().unwrap()]);
    assert!(solid(&t.place.file()), "a deletion discarded");
    let TestPool { pool, place } = t;
    drop(pool);
    place.unmount_all();
    eventually("the loop device went", || place.loops().is_empty());
    run("fallocate", &["--punch-hole", "--offset", "400MiB", "--length", "50MiB", place.file().to_str().unwrap()]);
    assert!(!solid(&place.file()));
    drop(place.open(None).unwrap());
    assert!(solid(&place.file()));
}

#[test]
fn a_first_start_that_was_cut_short_goes_on() {
    let place = Place::new(256);
    fs::File::create(place.file()).unwrap().set_len(4096).unwrap(); // created, not yet allocated
    let (pool, report) = place.open(None).unwrap();
    assert!(report.formatted);
    let id = pool.pool().id;
    drop(pool);
    // Formatted, but not yet recorded anywhere.
    let (pool, report) = place.open(None).unwrap();
    assert!(!report.formatted);
    assert_eq!(pool.pool().id, id);
}

#[test]
fn a_pool_on_a_device_needs_no_loop_of_ours() {
    let place = Place::new(256);
    fs::File::create(place.file()).unwrap().set_len(place.size).unwrap();
    let device = run("losetup", &["--find", "--show", place.file().to_str().unwrap()]).trim().to_owned();
    let opened = BtrfsPool::open(&PoolSource::Device(device.clone().into()), &place.mount_point(), None);
    let second = BtrfsPool::open(&PoolSource::Device(device.clone().into()), &place.mount_point(), None);
    place.unmount_all();
    run("losetup", &["--detach", &device]);
    assert!(opened.is_ok(), "{opened:?}");
    assert!(matches!(second, Err(PoolError::InUse(_))), "{second:?}");
}

#[test]
fn a_filesystem_of_several_devices_is_refused_by_name_and_not_mounted() {
    let place = Place::new(256);
    let files = [place.file(), place.file().with_extension("second")];
    let devices = files.each_ref().map(|file| {
        fs::File::create(file).unwrap().set_len(place.size).unwrap();
        run("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().to_owned()
    });
    run("mkfs.btrfs", &["-q", "-f", "-L", "dotgraft-pool", "-d", "single", &devices[0], &devices[1]]);
    let opened = BtrfsPool::open(&PoolSource::Device(devices[0].clone().into()), &place.mount_point(), None);
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap().contains(place.dir.path().to_str().unwrap());
    place.unmount_all();
    for device in &devices {
        run("losetup", &["--detach", device]);
    }
    let Err(PoolError::Refused(why)) = opened else { panic!("{opened:?}") };
    assert!(why.contains("2 devices") && why.contains("LVM") && !mounted, "{why}");
}

#[test]
fn features_and_facts_are_told() {
    let t = TestPool::new(256);
    let info = t.pool();
    assert_eq!(info.stream_version, 2);
    assert!(info.features.is_sorted());
    for feature in ["simple-quotas", "send-v2", "quota-fence"] {
        assert!(info.features.iter().any(|f| f == feature), "{feature}: {:?}", info.features);
    }
    assert_eq!(info.kernel_release, fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
}

#[test]
fn space_keeps_a_reserve_and_goes_down_with_what_is_written() {
    let t = TestPool::new(1024);
    let v = t.volume(500);
    let before = t.space().unwrap();
    assert_eq!(before.total, 1024 * MIB);
    assert!(before.available <= 768 * MIB, "a quarter of a small pool is kept: {before:?}");
    assert!(before.metadata_free > before.metadata_floor() && !before.read_only, "{before:?}");
    fs::write(t.head(v.fs).join("big"), noise(2, 200 << 20)).unwrap();
    t.used(&v);
    let after = t.space().unwrap();
    let gone = before.available - after.available;
    assert!((190 * MIB..260 * MIB).contains(&gone), "{before:?} {after:?}");
}

#[test]
fn a_full_pool_says_no_space_and_deletes_still_work() {
    let t = TestPool::new(512);
    let v = t.volume(4096);
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let mut file = fs::File::create(t.head(v.fs).join("fill")).unwrap();
    let chunk = noise(3, 4 << 20);
    while file.write_all(&chunk).and_then(|()| file.sync_data()).is_ok() {}
    let mut small = 0;
    while fs::write(t.head(v.fs).join(format!("s{small}")), &chunk[..2000]).is_ok() && small < 200_000 {
        small += 1;
    }
    drop(file); // an open file would keep the deleted subvolume
    let refused = t.commit(v.n, &v.next(Some(c.id)));
    assert!(matches!(refused, Err(DriverError::NoSpace(_))), "{refused:?} {:?}", t.space());
    t.delete_commit(v.fs, c.id).unwrap();
    t.destroy(v.fs, v.n).unwrap();
    eventually("the space came back", || t.space().unwrap().available > 200 * MIB);
    t.volume(10);
}

/// Unmounts whatever happens.
struct Unmount<'a>(&'a Path);
impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_pool_that_the_kernel_forced_read_only_is_a_typed_failure_and_stays_readable() {
    // The measured case: a sparse pool file on a full disk.
    let disk = tempfile::tempdir().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=300m", "tmpfs", disk.path().to_str().unwrap()]);
    let _disk = Unmount(disk.path());
    let place = Place { dir: tempfile::tempdir_in(disk.path()).unwrap(), size: 256 * MIB };
    let (pool, _) = place.open(None).unwrap();
    let t = TestPool { pool, place };
    let v = t.volume(200);
    fs::write(t.head(v.fs).join("kept"), b"kept").unwrap();
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();

    // Everything that is zero becomes a hole, then the disk is filled up.
    let image = fs::OpenOptions::new().read(true).write(true).open(t.place.file()).unwrap();
    let mut chunk = vec![0; 64 << 10];
    for at in (0..256 * MIB).step_by(chunk.len()) {
        image.read_exact_at(&mut chunk, at).unwrap();
        if chunk.iter().all(|b| *b == 0) {
            let how = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&image, how, at, chunk.len() as u64).unwrap();
        }
    }
    let mut filler = fs::File::create(disk.path().join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    eventually("the kernel gave up", || {
        let _ = fs::write(t.head(v.fs).join(uuid::Uuid::new_v4().to_string()), noise(9, 1 << 20));
        let _ = rustix::fs::syncfs(fs::File::open(t.place.mount_point()).unwrap());
        t.space().unwrap().read_only
    });
    let refused = t.commit(v.n, &v.next(Some(c.id)));
    assert!(matches!(refused, Err(DriverError::PoolFailed(_))), "{refused:?}");
    let refused = t.prepare(&v.meta);
    assert!(matches!(refused, Err(DriverError::PoolFailed(_))), "{refused:?}");
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/kept", c.id))).unwrap(), b"kept");
    assert_eq!(t.inspect(v.fs).unwrap().commits.len(), 1);
    let pod = t.target("pod");
    t.mount(v.fs, MountWhat::Commit(c.id), &pod, MountMode::READ).unwrap();
    assert_eq!(fs::read(pod.join("kept")).unwrap(), b"kept");
    t.unmount(&pod).unwrap();
}
