//! Bind mounts and who holds them.

use std::fs;
use std::path::Path;

use dotgraft_agent::driver::{Driver, DriverError, MountMode, MountWhat};

use crate::support::*;

#[test]
fn the_same_mount_again_is_success_and_something_else_there_is_not() {
    let t = TestPool::new(512);
    let (v, other) = (t.volume(50), t.volume(50));
    let target = t.target("a");
    for _ in 0..3 {
        t.mount(v.fs, MountWhat::Head, &target, MountMode::WRITE).unwrap();
    }
    assert_eq!(t.holders(v.fs).unwrap().iter().filter(|h| h.mount_point == target).count(), 1);
    let refused = t.mount(other.fs, MountWhat::Head, &target, MountMode::WRITE);
    assert!(matches!(refused, Err(DriverError::Mounted(_))), "{refused:?}");
    fs::write(target.join("x"), b"1").unwrap();
    for _ in 0..3 {
        t.unmount(&target).unwrap();
    }
    assert!(t.holders(v.fs).unwrap().is_empty());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    t.unmount(&target.join("not/there")).unwrap();
    let absent = t.mount(v.fs, MountWhat::Head, &target.join("not/there"), MountMode::WRITE);
    assert!(matches!(absent, Err(DriverError::NotFound(_))), "{absent:?}");
}

#[test]
fn a_read_only_mount_is_read_only_and_a_half_made_one_is_finished() {
    let t = TestPool::new(512);
    let v = t.volume(50);
    let target = t.target("ro");
    t.mount(v.fs, MountWhat::Head, &target, MountMode::WRITE).unwrap(); // as after a crash between bind and remount
    t.mount(v.fs, MountWhat::Head, &target, MountMode::READ).unwrap();
    t.mount(v.fs, MountWhat::Head, &target, MountMode::READ).unwrap();
    assert_eq!(fs::write(target.join("x"), b"1").unwrap_err().raw_os_error(), Some(30));
    assert!(t.mount(v.fs, MountWhat::Head, &target, MountMode::WRITE).is_err());
    fs::write(t.head(v.fs).join("x"), b"1").unwrap();
    t.unmount(&target).unwrap();

    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    t.mount(v.fs, MountWhat::Commit(c.id), &target, MountMode::WRITE).unwrap();
    assert_eq!(fs::read(target.join("x")).unwrap(), b"1");
    assert!(fs::write(target.join("x"), b"2").is_err());
    t.unmount(&target).unwrap();
}

#[test]
fn a_mount_in_use_says_so_and_a_symlink_is_not_followed_to_unmount() {
    let t = TestPool::new(512);
    let v = t.volume(50);
    let target = t.target("used");
    t.mount(v.fs, MountWhat::Head, &target, MountMode::WRITE).unwrap();
    let file = fs::File::create(target.join("open")).unwrap();
    assert!(matches!(t.unmount(&target), Err(DriverError::Mounted(_))));
    drop(file);
    let link = t.place.dir.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    t.unmount(&link).unwrap();
    assert!(!t.holders(v.fs).unwrap().is_empty(), "only the real path unmounts");
    t.unmount(&target).unwrap();
}

#[test]
fn head_and_commits_are_held_separately_from_other_filesystems() {
    let t = TestPool::new(512);
    let (v, other) = (t.volume(50), t.volume(50));
    assert!(t.holders(v.fs).unwrap().is_empty(), "the agent's own mount is no holder");
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let (a, b) = (t.target("a"), t.target("b"));
    t.mount(v.fs, MountWhat::Head, &a, MountMode::WRITE).unwrap();
    t.mount(v.fs, MountWhat::Commit(c.id), &b, MountMode::READ).unwrap();
    let points: Vec<_> = t.holders(v.fs).unwrap().into_iter().map(|h| h.mount_point).collect();
    assert!(points.contains(&a) && points.contains(&b), "{points:?}");
    assert!(t.holders(other.fs).unwrap().is_empty());
    t.unmount(&a).unwrap();
    t.unmount(&b).unwrap();
}

/// The options of what is mounted there, as the kernel's table has them.
fn options(target: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = target.to_str().unwrap();
    let line = table.lines().rfind(|l| l.split(' ').nth(4) == Some(at)).unwrap_or_else(|| panic!("nothing is mounted at {at}"));
    line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
}

#[test]
fn who_fills_a_volume_gives_no_rights_to_who_mounts_it() {
    let t = TestPool::new(1024);
    let v = t.volume(64);
    let (a, b) = (t.target("a"), t.target("b"));
    t.mount(v.fs, MountWhat::Head, &a, MountMode::WRITE).unwrap();
    let has = |at: &Path, option: &str| options(at).iter().any(|o| o == option);
    assert!(has(&a, "rw") && has(&a, "nosuid") && has(&a, "nodev") && !has(&a, "noexec"), "{:?}", options(&a));
    // What a crash left between the mount and its flags, and what an agent of before made.
    rustix::mount::mount_remount(&a, rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::NOATIME, c"").unwrap();
    assert!(!has(&a, "nosuid"));
    t.mount(v.fs, MountWhat::Head, &a, MountMode::WRITE).unwrap();
    assert!(has(&a, "nosuid") && has(&a, "nodev"), "{:?}", options(&a));
    // A class that wants it so.
    let asked = MountMode::WRITE.with_options(&["suid", "dev", "noexec"]).unwrap();
    t.mount(v.fs, MountWhat::Head, &b, asked).unwrap();
    assert!(!has(&b, "nosuid") && !has(&b, "nodev") && has(&b, "noexec"), "{:?}", options(&b));
    assert!(has(&a, "nosuid"), "another mount of it is another");
    for at in [&a, &b] {
        t.unmount(at).unwrap();
    }
}
