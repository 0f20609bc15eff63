//! Single commands and their order, by streams made by hand: what kernel streams seldom or never do, and still may.
//!
//! Needs root, loop devices and btrfs-progs, as `stream_btrfs` does.

#![allow(clippy::unwrap_used, reason = "a fixture that fails is a test that fails")]

mod stream_support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use dotgraft_agent::stream::parse::CommandKind as Kind;
use dotgraft_agent::stream::{Applier, ContentClass, Limits, Skipped, StreamError};
use dotgraft_engine::model::Reason;
use stream_support::build::{PARENT, Stream};
use stream_support::{Pool, open, run, text};

const ZERO: [u8; 8] = [0; 8];

/// Applies commands to a new subvolume; with `base` as an increment of that.
fn apply(pool: &Pool, base: Option<&str>, build: impl FnOnce(&mut Stream)) -> Result<(PathBuf, Skipped), StreamError> {
    let work = match base {
        None => pool.create("work"),
        Some(base) => pool.snapshot(base, "work", false),
    };
    let mut stream = Stream::new(2);
    stream.begin(base.is_some());
    build(&mut stream);
    stream.push(Kind::End as u16, &[]);
    let base = base.map(|base| open(&pool.path(base)));
    let mut applier = Applier::new(open(&work), base, ContentClass::Trusted, Limits::default()).unwrap();
    applier.feed(&stream.bytes())?;
    let skipped = applier.skipped();
    applier.finish().map(|_| (work, skipped))
}

fn pool() -> Pool {
    Pool::new(128, "nodev")
}

fn make(s: &mut Stream, path: &[u8]) {
    s.push(Kind::Mkfile as u16, &[(15, path)]);
}

fn make_dir(s: &mut Stream, path: &[u8]) {
    s.push(Kind::Mkdir as u16, &[(15, path)]);
}

fn write(s: &mut Stream, path: &[u8], data: &[u8]) {
    s.push(Kind::Write as u16, &[(15, path), (18, &ZERO), (19, data)]);
}

fn rename(s: &mut Stream, from: &[u8], to: &[u8]) {
    s.push(Kind::Rename as u16, &[(15, from), (16, to)]);
}

fn time(seconds: i64) -> Vec<u8> {
    [seconds.to_le_bytes().as_slice(), &7u32.to_le_bytes()].concat()
}

fn set_times(s: &mut Stream, path: &[u8], seconds: i64) {
    s.push(Kind::Utimes as u16, &[(15, path), (10, &time(seconds)), (11, &time(seconds))]);
}

fn modified(path: &Path) -> (i64, i64) {
    let data = fs::symlink_metadata(path).unwrap();
    (data.mtime(), data.mtime_nsec())
}

#[test]
fn what_never_gets_its_real_name_keeps_the_temporary_one() {
    let pool = pool();
    let (work, _) = apply(&pool, None, |s| {
        make(s, b"o257-1-0");
        s.push(Kind::Symlink as u16, &[(15, b"l"), (17, b"somewhere")]);
        s.push(Kind::Mksock as u16, &[(15, b"s")]);
    })
    .unwrap();
    assert!(work.join("o257-1-0").is_file());
    assert_eq!(fs::read_link(work.join("l")).unwrap(), Path::new("somewhere"));
    assert!(fs::symlink_metadata(work.join("s")).unwrap().file_type().is_socket());
}

#[test]
fn the_old_path_of_a_moved_directory_means_what_is_there_now() {
    let pool = pool();
    let (work, _) = apply(&pool, None, |s| {
        make_dir(s, b"d");
        make(s, b"d/f");
        write(s, b"d/f", b"1");
        rename(s, b"d", b"e");
        make_dir(s, b"d");
        make(s, b"d/g");
        write(s, b"e/f", b"2");
    })
    .unwrap();
    assert_eq!(fs::read(work.join("e/f")).unwrap(), b"2");
    assert!(work.join("d/g").exists() && !work.join("e/g").exists());
}

#[test]
fn a_file_is_not_reached_by_the_path_it_had() {
    let pool = pool();
    let error = apply(&pool, None, |s| {
        make_dir(s, b"d");
        make(s, b"d/f");
        write(s, b"d/f", b"1");
        rename(s, b"d", b"e");
        write(s, b"d/f", b"2");
    })
    .unwrap_err();
    assert_eq!(error.kind(), Reason::CorruptStream);
    assert_eq!(fs::read(pool.path("work/e/f")).unwrap(), b"1");
}

#[test]
fn times_of_directories_hold_to_the_end_and_move_along() {
    let pool = pool();
    let (work, _) = apply(&pool, None, |s| {
        make_dir(s, b"d");
        make_dir(s, b"d/inner");
        set_times(s, b"d", 1);
        set_times(s, b"d/inner", 2);
        make(s, b"d/f");
        make(s, b"d/inner/f");
        rename(s, b"d", b"e");
        set_times(s, b"", 3);
        make_dir(s, b"gone");
        set_times(s, b"gone", 9);
        s.push(Kind::Rmdir as u16, &[(15, b"gone")]);
    })
    .unwrap();
    assert_eq!(modified(&work.join("e")), (1, 7));
    assert_eq!(modified(&work.join("e/inner")), (2, 7));
    assert_eq!(modified(&work), (3, 7));
}

#[test]
fn more_directory_times_than_are_held_are_right_too() {
    let pool = pool();
    let names: Vec<String> = (0..3000).map(|n| format!("directory-number-{n}")).collect();
    let (work, _) = apply(&pool, None, |s| {
        for (name, seconds) in names.iter().zip(1..) {
            make_dir(s, name.as_bytes());
            set_times(s, name.as_bytes(), seconds);
        }
    })
    .unwrap();
    for (name, seconds) in names.iter().zip(1..) {
        assert_eq!(modified(&work.join(name)), (seconds, 7), "{name}");
    }
}

#[test]
fn times_before_1970_and_after_2038_are_kept() {
    let pool = pool();
    let (work, _) = apply(&pool, None, |s| {
        make(s, b"old");
        set_times(s, b"old", -5_000_000_000);
        make(s, b"new");
        set_times(s, b"new", 1 << 33);
    })
    .unwrap();
    assert_eq!(modified(&work.join("old")), (-5_000_000_000, 7));
    assert_eq!(modified(&work.join("new")), (1 << 33, 7));
}

#[test]
fn a_mode_after_an_access_list_is_set_even_if_it_is_the_one_before() {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [(1u16, 6u16, u32::MAX), (2, 7, 1), (4, 7, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let pool = pool();
    let mode = 0o640u64.to_le_bytes();
    let (work, _) = apply(&pool, None, |s| {
        make(s, b"f");
        s.push(Kind::Chmod as u16, &[(15, b"f"), (5, &mode)]);
        s.push(Kind::SetXattr as u16, &[(15, b"f"), (13, b"system.posix_acl_access"), (14, &acl)]);
        s.push(Kind::Chmod as u16, &[(15, b"f"), (5, &mode)]);
    })
    .unwrap();
    assert_eq!(fs::metadata(work.join("f")).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn a_chown_keeps_capability_and_setuid() {
    let capability = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (uid, gid, mode) = (5u64.to_le_bytes(), 6u64.to_le_bytes(), 0o6755u64.to_le_bytes());
    let pool = pool();
    let (work, _) = apply(&pool, None, |s| {
        make(s, b"f");
        s.push(Kind::Chmod as u16, &[(15, b"f"), (5, &mode)]);
        s.push(Kind::SetXattr as u16, &[(15, b"f"), (13, b"security.capability"), (14, &capability)]);
        s.push(Kind::Chown as u16, &[(15, b"f"), (6, &uid), (7, &gid)]);
    })
    .unwrap();
    let data = fs::metadata(work.join("f")).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (5, 6, 0o6755));
    let mut value = [0u8; 64];
    let len = rustix::fs::getxattr(work.join("f"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..len], capability);
}

#[test]
fn space_is_allocated_and_punched() {
    let pool = pool();
    let (offset, len) = (4096u64.to_le_bytes(), 8192u64.to_le_bytes());
    let allocate = |s: &mut Stream, mode: u32| {
        s.push(Kind::Fallocate as u16, &[(15, b"f"), (25, &mode.to_le_bytes()), (18, &offset), (4, &len)]);
    };
    let (work, _) = apply(&pool, None, |s| {
        make(s, b"f");
        write(s, b"f", &[7; 16384]);
        allocate(s, 3);
        make(s, b"g");
        s.push(Kind::Fallocate as u16, &[(15, b"g"), (25, &[0; 4]), (18, &offset), (4, &len)]);
    })
    .unwrap();
    let content = fs::read(work.join("f")).unwrap();
    assert!(content[4096..12288].iter().all(|&byte| byte == 0) && content[12288..].iter().all(|&byte| byte == 7));
    assert_eq!(fs::metadata(work.join("g")).unwrap().size(), 12288);
    pool.delete("work");
    let error = apply(&pool, None, |s| {
        make(s, b"f");
        allocate(s, 0x20);
    })
    .unwrap_err();
    assert_eq!(error.kind(), Reason::Unsupported);
}

#[test]
fn inode_flags_stop_nothing_of_the_stream_are_there_in_the_end_and_unknown_ones_are_counted() {
    let pool = pool();
    let nodump = 1u64 << 8;
    let immutable = 1u64 << 6;
    let (work, skipped) = apply(&pool, None, |s| {
        make(s, b"f");
        s.push(Kind::Fileattr as u16, &[(15, b"f"), (26, &(nodump | immutable | 1 << 31).to_le_bytes())]);
        write(s, b"f", b"still writable");
    })
    .unwrap();
    let flags = rustix::fs::ioctl_getflags(open(&work.join("f"))).unwrap();
    assert_eq!(flags, rustix::fs::IFlags::NODUMP | rustix::fs::IFlags::IMMUTABLE);
    assert_eq!(rustix::fs::listxattr(work.join("f"), &mut [0u8; 0][..]), Ok(0), "what it was owed is not noted any more");
    assert_eq!(skipped.inode_flags, 1);
}

#[test]
fn a_clone_from_a_file_that_cannot_be_shared_is_copied() {
    let pool = pool();
    let base = pool.create("base");
    let plain = base.join("nocow");
    fs::write(&plain, b"").unwrap();
    run("chattr", &["+C", text(&plain)]);
    let content: Vec<u8> = (0..40_960u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    fs::write(&plain, &content).unwrap();
    let len = 40_960u64.to_le_bytes();
    let (work, _) = apply(&pool, Some("base"), |s| {
        make(s, b"f");
        let clone = [(15, b"f" as &[u8]), (18, &ZERO), (24, &len), (20, &PARENT), (21, &ZERO), (22, b"nocow"), (23, &ZERO)];
        s.push(Kind::Clone as u16, &clone);
    })
    .unwrap();
    assert_eq!(fs::read(work.join("f")).unwrap(), content);
}

#[test]
fn a_clone_that_is_copied_has_its_holes_and_ends_where_it_should() {
    let pool = pool();
    let base = pool.create("base");
    let sparse = fs::File::create(base.join("sparse")).unwrap();
    run("chattr", &["+C", text(&base.join("sparse"))]);
    for at in [0, 8192] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[7; 4096], at).unwrap();
    }
    fs::write(base.join("full"), vec![9; 20_480]).unwrap();
    let clone = |path: &'static [u8], to: u64, (source, from): (&'static [u8], u64), len: u64| {
        apply(&pool, Some("base"), |s| {
            let (to, from, len) = (to.to_le_bytes(), from.to_le_bytes(), len.to_le_bytes());
            s.push(Kind::Clone as u16, &[(15, path), (18, &to), (24, &len), (20, &PARENT), (21, &ZERO), (22, source), (23, &from)]);
        })
    };
    let (work, _) = clone(b"full", 4096, (b"sparse", 0), 12_288).unwrap();
    assert_eq!(fs::read(work.join("full")).unwrap(), [9, 7, 0, 7, 9].map(|byte| vec![byte; 4096]).concat());
    pool.delete("work");
    // A hole at the end of what is cloned, behind the end of what is written.
    let (work, _) = clone(b"full", 20_480, (b"sparse", 4096), 4096).unwrap();
    assert_eq!(fs::metadata(work.join("full")).unwrap().size(), 24_576);
    pool.delete("work");
    let error = clone(b"full", 0, (b"sparse", 8192), 8192).unwrap_err();
    assert_eq!(error.kind(), Reason::CorruptStream, "beyond the end of the source");
    pool.delete("work");
    let error = apply(&pool, Some("base"), |s| {
        let (to, len) = (4096_u64.to_le_bytes(), 8192_u64.to_le_bytes());
        let clone = [(15, b"full" as &[u8]), (18, &to), (24, &len), (20, &[1; 16]), (21, &ZERO), (22, b"full"), (23, &ZERO)];
        s.push(Kind::Clone as u16, &clone);
    })
    .unwrap_err();
    assert_eq!(error.kind(), Reason::CorruptStream, "onto itself");
}

#[test]
fn a_note_of_what_is_owed_is_not_taken_from_a_stream() {
    let pool = pool();
    let note = b"trusted.dotgraft.owed-flags";
    let (work, _) = apply(&pool, None, |s| {
        for name in [b"f", b"g"] {
            make(s, name);
            s.push(Kind::SetXattr as u16, &[(15, name), (13, note), (14, &0x10_u32.to_le_bytes())]);
        }
        s.push(Kind::Fileattr as u16, &[(15, b"g"), (26, &(1_u64 << 7).to_le_bytes())]);
        s.push(Kind::RemoveXattr as u16, &[(15, b"g"), (13, note)]);
    })
    .unwrap();
    let flags = |name: &str| rustix::fs::ioctl_getflags(open(&work.join(name))).unwrap();
    assert_eq!((flags("f"), flags("g")), (rustix::fs::IFlags::empty(), rustix::fs::IFlags::APPEND));
}

#[test]
fn an_xattr_that_is_gone_already_may_be_removed() {
    let pool = pool();
    apply(&pool, None, |s| {
        make(s, b"f");
        s.push(Kind::RemoveXattr as u16, &[(15, b"f"), (13, b"user.none")]);
        s.push(Kind::Symlink as u16, &[(15, b"l"), (17, b"f")]);
        s.push(Kind::RemoveXattr as u16, &[(15, b"l"), (13, b"trusted.none")]);
    })
    .unwrap();
}

#[test]
fn an_applier_can_move_between_threads() {
    fn check<T: Send>() {}
    check::<Applier>();
}
