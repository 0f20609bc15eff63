//! The receiver against real btrfs: what the kernel sends is applied, and the trees must be the same.
//!
//! Needs root, loop devices and btrfs-progs. `btrfs receive` is the oracle where it is right.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a fixture that fails is a test that fails")]

mod stream_support;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

use dotgraft_agent::stream::{Applier, ApplierState, ContentClass, Limits};
use dotgraft_engine::model::Reason;
use rustix::fs::{FileType, Mode, XattrFlags, ioctl_ficlone, lsetxattr, makedev, mknodat, setxattr};
use stream_support::{Pool, Random, boundaries, open, run, text};

const CAPABILITY: &str = "security.capability";
/// `cap_net_raw=ep`, revision 2.
const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A POSIX access list: owner rwx, user 1234 rw, group r, mask rwx, others none.
fn acl() -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [(1u16, 7u16, u32::MAX), (2, 6, 1234), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)] {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|errno| panic!("{name} of {}: {errno}", path.display()));
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn node(path: &Path, kind: FileType, device: (u32, u32)) {
    mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(0o640), makedev(device.0, device.1)).unwrap();
}

/// Everything that a tree can hold.
fn build(root: &Path, random: &mut Random) {
    let dir = root.join("dir");
    fs::create_dir_all(dir.join("deep/er/and/deeper")).unwrap();
    fs::write(dir.join("small"), b"small").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("big"), random.bytes(3 << 20)).unwrap();
    fs::write(root.join("text"), "the same line again and again\n".repeat(60_000)).unwrap();
    for n in 0..60 {
        fs::write(dir.join(format!("deep/f{n}")), random.bytes(n * 131)).unwrap();
    }
    fs::hard_link(dir.join("small"), root.join("link")).unwrap();
    fs::hard_link(dir.join("small"), dir.join("deep/er/link")).unwrap();
    symlink("../../../../etc/passwd", dir.join("outward")).unwrap();
    symlink("dir", root.join("to-dir")).unwrap();
    fs::hard_link(root.join("to-dir"), root.join("to-dir-too")).unwrap();
    lchown(root.join("to-dir"), Some(5), Some(6)).unwrap();
    node(&root.join("null"), FileType::CharacterDevice, (1, 3));
    node(&root.join("wide"), FileType::BlockDevice, (0xabc, 0xf_1234));
    node(&root.join("pipe"), FileType::Fifo, (0, 0));
    node(&root.join("socket"), FileType::Socket, (0, 0));
    chown(root.join("pipe"), Some(77), Some(78)).unwrap();
    mode(&root.join("socket"), 0o755);
    for name in [&[0xffu8; 255][..], b"new\nline and \xe2\x82\xac", b"...", b" ", b"\x01\x80"] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    xattr(&root.join("null"), "trusted.device", b"1");
    xattr(&root.join("to-dir"), "trusted.link", b"1");
    sparse(&root.join("sparse"));
    run("cp", &["--reflink=always", text(&root.join("big")), text(&root.join("shared"))]);
    attributes(root);
}

fn sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 5 << 20).unwrap();
    file.set_len(64 << 30).unwrap();
}

fn attributes(root: &Path) {
    let file = |name: &str, bits: u32| {
        let path = root.join(name);
        fs::write(&path, name).unwrap();
        mode(&path, bits);
        path
    };
    let setuid = file("setuid", 0o755);
    chown(&setuid, Some(1000), Some(1001)).unwrap();
    mode(&setuid, 0o6755);
    xattr(&file("capable", 0o755), CAPABILITY, &CAP_NET_RAW);
    let attributed = file("attributed", 0);
    xattr(&attributed, "user.plain", b"value");
    xattr(&attributed, "user.empty", b"");
    xattr(&attributed, "user.large", &[7; 12_000]);
    xattr(&attributed, "trusted.secret", b"\0\xff");
    xattr(&file("listed", 0o640), "system.posix_acl_access", &acl());
    let sticky = root.join("sticky");
    fs::create_dir(&sticky).unwrap();
    mode(&sticky, 0o1777);
    // What is made in these two inherits, and the stream must not care.
    let setgid = root.join("setgid");
    fs::create_dir(&setgid).unwrap();
    fs::write(setgid.join("before"), b"").unwrap();
    chown(&setgid, Some(0), Some(4321)).unwrap();
    mode(&setgid, 0o2775);
    fs::create_dir(setgid.join("inherits")).unwrap();
    fs::write(setgid.join("after"), b"").unwrap();
    chown(setgid.join("after"), Some(9), Some(9)).unwrap();
    let heir = root.join("heir");
    fs::create_dir(&heir).unwrap();
    fs::write(heir.join("unlisted"), b"").unwrap();
    fs::create_dir(heir.join("unlisted-dir")).unwrap();
    xattr(&heir, "system.posix_acl_default", &acl());
    fs::write(heir.join("inherits"), b"").unwrap();
    fs::write(heir.join("bare"), b"").unwrap();
    let _ = rustix::fs::removexattr(heir.join("bare"), "system.posix_acl_access");
    run("mkfifo", &[text(&heir.join("pipe"))]);
    fs::create_dir(heir.join("child")).unwrap();
}

/// Changes of every kind.
fn change(root: &Path, random: &mut Random) {
    fs::rename(root.join("dir/deep"), root.join("deep-now-here")).unwrap();
    fs::rename(root.join("deep-now-here/er"), root.join("er")).unwrap();
    fs::rename(root.join("dir"), root.join("er/dir")).unwrap();
    // Names swapped.
    fs::rename(root.join("big"), root.join("t")).unwrap();
    fs::rename(root.join("text"), root.join("big")).unwrap();
    fs::rename(root.join("t"), root.join("text")).unwrap();
    fs::remove_file(root.join("link")).unwrap();
    fs::remove_file(root.join("empty")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::remove_dir_all(root.join("sticky")).unwrap();
    fs::write(root.join("sticky"), b"a file now").unwrap();
    fs::hard_link(root.join("sticky"), root.join("er/sticky")).unwrap();
    fs::remove_file(root.join("null")).unwrap();
    symlink("null", root.join("null")).unwrap();
    let file = File::options().write(true).open(root.join("shared")).unwrap();
    file.write_all_at(&random.bytes(9000), 1_000_000).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE, 65_536, 131_072).unwrap();
    ioctl_ficlone(File::create(root.join("copy")).unwrap(), File::open(root.join("text")).unwrap()).unwrap();
    File::options().write(true).open(root.join("sparse")).unwrap().set_len(5_300_000).unwrap();
    let mut grown = File::options().append(true).open(root.join("deep-now-here/f7")).unwrap();
    grown.write_all(&random.bytes(100_000)).unwrap();
    for n in 20..40 {
        fs::remove_file(root.join(format!("deep-now-here/f{n}"))).unwrap();
    }
    rustix::fs::removexattr(root.join("attributed"), "user.plain").unwrap();
    xattr(&root.join("attributed"), "user.large", b"short");
    mode(&root.join("attributed"), 0o4711);
    mode(&root.join("heir"), 0o700);
    fs::write(root.join("heir/later"), b"x").unwrap();
    // A write drops the capability on the sender as well; it is set again.
    let mut capable = File::options().append(true).open(root.join("capable")).unwrap();
    capable.seek(SeekFrom::End(0)).unwrap();
    capable.write_all(b"more").unwrap();
    xattr(&root.join("capable"), CAPABILITY, &CAP_NET_RAW);
}

fn full_and_increments(flags: &[&str], options: &str) {
    let source = Pool::new(512, options);
    let target = Pool::new(512, "nodev");
    let mut random = Random(7);
    let root = source.create("head");
    let commits = ["c1", "c2", "c3", "c4"];
    let mut before: Option<&str> = None;
    for (n, commit) in commits.into_iter().enumerate() {
        match n {
            0 => {}
            1 => build(&root, &mut random),
            2 => change(&root, &mut random),
            _ => {
                run("find", &[text(&root), "-mindepth", "1", "-delete"]);
                build(&root, &mut random);
            }
        }
        source.snapshot("head", commit, true);
        let stream = source.send(commit, before, flags);
        let full = source.send(commit, None, flags);
        let position = target.apply(&stream, commit, before, 1 + random.below(300_000)).unwrap();
        assert_eq!(position.offset, stream.len() as u64);
        assert_eq!(position.digest, *blake3::hash(&stream).as_bytes());
        target.assert_same(commit, &source, commit, &format!("by increment, {flags:?}"));
        let whole = format!("full-{commit}");
        target.apply(&full, &whole, None, 1 << 20).unwrap();
        target.assert_same(&whole, &source, commit, &format!("in full, {flags:?}"));
        before = Some(commit);
    }
}

#[test]
fn protocol_1_arrives_whole_in_full_and_by_increments() {
    full_and_increments(&["--proto", "1"], "defaults");
}

#[test]
fn protocol_2_arrives_whole_in_full_and_by_increments() {
    full_and_increments(&["--proto", "2"], "defaults");
}

#[test]
fn compressed_extents_arrive_as_they_are() {
    full_and_increments(&["--proto", "2", "--compressed-data"], "compress-force=zstd");
    full_and_increments(&["--proto", "2", "--compressed-data"], "compress-force=lzo");
}

#[test]
fn compressed_extents_stay_compressed() {
    let (source, target) = (Pool::new(256, "compress-force=zstd"), Pool::new(256, "nodev"));
    let root = source.create("head");
    fs::write(root.join("text"), "the same line again and again\n".repeat(300_000)).unwrap();
    source.snapshot("head", "c", true);
    let stream = source.send("c", None, &["--proto", "2", "--compressed-data"]);
    assert!(stream.len() < 1 << 20, "{}", stream.len());
    target.apply(&stream, "c", None, 1 << 20).unwrap();
    target.assert_same("c", &source, "c", "");
    let output = std::process::Command::new("filefrag").arg("-v").arg(target.path("c/text")).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("encoded"));
}

/// A tree that `btrfs receive` gets right too: nothing inherits, owners change with their modes, and the root changes each
/// time (else it gets the time of the receive, because of the temporary names in it).
#[test]
fn btrfs_receive_makes_the_same_of_a_plain_tree() {
    let (source, target) = (Pool::new(256, "defaults"), Pool::new(256, "nodev"));
    let root = source.create("head");
    let mut random = Random(3);
    let mut before = None;
    for commit in ["c1", "c2", "c3"] {
        fs::write(root.join(commit), commit).unwrap();
        for n in 0..40 {
            let dir = root.join(format!("d{}", random.below(6)));
            fs::create_dir_all(&dir).unwrap();
            let path = dir.join(format!("f{}", random.below(30)));
            let len = random.below(20_000);
            fs::write(&path, random.bytes(len)).unwrap();
            if n % 5 == 0 {
                let _ = fs::rename(&path, root.join(format!("d0/r{}", random.below(9))));
            }
        }
        source.snapshot("head", commit, true);
        for protocol in ["1", "2"] {
            let stream = source.send(commit, before, &["--proto", protocol]);
            let ours = format!("{commit}-{protocol}");
            let base = before.map(|before| format!("{before}-{protocol}"));
            target.apply(&stream, &ours, base.as_deref(), 70_000).unwrap();
            target.receive(&stream, &format!("oracle{protocol}"));
            target.assert_same(&ours, &source, commit, &ours);
            target.assert_same(&format!("oracle{protocol}/{commit}"), &source, commit, "the oracle");
        }
        before = Some(commit);
    }
}

#[test]
fn a_new_owner_alone_keeps_setuid_and_capability() {
    let (source, target) = (Pool::new(128, "defaults"), Pool::new(128, "nodev"));
    let root = source.create("head");
    attributes(&root);
    source.snapshot("head", "c1", true);
    chown(root.join("setuid"), Some(2000), Some(2001)).unwrap();
    mode(&root.join("setuid"), 0o6755);
    chown(root.join("capable"), Some(2000), None).unwrap();
    xattr(&root.join("capable"), CAPABILITY, &CAP_NET_RAW);
    chown(root.join("setgid"), Some(3), Some(3)).unwrap();
    mode(&root.join("setgid"), 0o2775);
    source.snapshot("head", "c2", true);
    target.apply(&source.send("c1", None, &[]), "c1", None, 4096).unwrap();
    target.apply(&source.send("c2", Some("c1"), &[]), "c2", Some("c1"), 4096).unwrap();
    target.assert_same("c2", &source, "c2", "");
}

#[test]
fn immutable_files_of_a_base_that_was_an_owners_are_no_obstacle() {
    let (source, target) = (Pool::new(128, "defaults"), Pool::new(128, "nodev"));
    let root = source.create("head");
    fs::create_dir(root.join("d")).unwrap();
    for name in ["written", "renamed", "removed", "d/inside", "owned"] {
        fs::write(root.join(name), name).unwrap();
    }
    source.snapshot("head", "c1", true);
    target.apply(&source.send("c1", None, &[]), "plain", None, 4096).unwrap();
    // The receiver's base has flags that the sender's does not know of.
    let base = target.snapshot("plain", "flagged", false);
    for name in ["written", "renamed", "removed", "d/inside", "owned", "d"] {
        run("chattr", &["+i", text(&base.join(name))]);
    }
    target.snapshot("flagged", "c1", true);
    fs::write(root.join("written"), "changed").unwrap();
    fs::rename(root.join("renamed"), root.join("d/moved")).unwrap();
    fs::remove_file(root.join("removed")).unwrap();
    fs::remove_file(root.join("d/inside")).unwrap();
    chown(root.join("owned"), Some(5), None).unwrap();
    source.snapshot("head", "c2", true);
    target.apply(&source.send("c2", Some("c1"), &[]), "c2", Some("c1"), 4096).unwrap();
    target.assert_same("c2", &source, "c2", "");
}

#[test]
fn reflinks_stay_shared_within_the_stream_and_with_the_base() {
    let (source, target) = (Pool::new(512, "defaults"), Pool::new(512, "nodev"));
    let root = source.create("head");
    let mut random = Random(11);
    fs::write(root.join("a"), random.bytes(20 << 20)).unwrap();
    run("cp", &["--reflink=always", text(&root.join("a")), text(&root.join("b"))]);
    source.snapshot("head", "c1", true);
    run("cp", &["--reflink=always", text(&root.join("a")), text(&root.join("c"))]);
    source.snapshot("head", "c2", true);
    let full = source.send("c1", None, &["--proto", "2"]);
    let increment = source.send("c2", Some("c1"), &["--proto", "2"]);
    assert!(full.len() < 22 << 20 && increment.len() < 1 << 20, "{} {}", full.len(), increment.len());
    target.apply(&full, "c1", None, 1 << 20).unwrap();
    target.apply(&increment, "c2", Some("c1"), 1 << 20).unwrap();
    target.assert_same("c2", &source, "c2", "");
    let output = std::process::Command::new("btrfs").args(["filesystem", "du", "-s", "--raw"]).arg(target.path("c2")).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let numbers: Vec<u64> = output.lines().last().unwrap().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers[0], 60 << 20, "{output}");
    assert_eq!(numbers[2], 20 << 20, "set shared: {output}");
}

#[test]
fn a_receive_resumes_at_every_command() {
    let (source, target) = (Pool::new(256, "defaults"), Pool::new(512, "nodev"));
    let root = source.create("head");
    fs::create_dir_all(root.join("d/e")).unwrap();
    for n in 0..4 {
        fs::write(root.join(format!("d/e/{n}")), [7; 300]).unwrap();
    }
    fs::hard_link(root.join("d/e/0"), root.join("hard")).unwrap();
    symlink("x", root.join("sym")).unwrap();
    source.snapshot("head", "c1", true);
    fs::rename(root.join("d/e"), root.join("e")).unwrap();
    fs::remove_dir(root.join("d")).unwrap();
    fs::write(root.join("e/1"), [8; 500]).unwrap();
    fs::create_dir(root.join("d")).unwrap();
    source.snapshot("head", "c2", true);
    let full = source.send("c1", None, &[]);
    target.apply(&full, "c1", None, 1 << 20).unwrap();
    for (stream, base, commit) in [(full, None, "c1"), (source.send("c2", Some("c1"), &[]), Some("c1"), "c2")] {
        for (n, at) in boundaries(&stream).into_iter().enumerate() {
            resume_at(&target, &stream, base, (n, at));
            target.assert_same("resumed", &source, commit, &format!("resumed at {at}"));
            target.delete("resumed");
        }
    }
}

/// Applies up to `at`, takes a checkpoint (of three kinds, by `n`), and goes on from it in a new applier.
fn resume_at(target: &Pool, stream: &[u8], base: Option<&str>, (n, at): (usize, usize)) {
    match base {
        None => target.create("partial"),
        Some(base) => target.snapshot(base, "partial", false),
    };
    let mut applier = target.applier("partial", base);
    // Half a command more than the checkpoint is lost with the connection.
    applier.feed(&stream[..at]).unwrap();
    if n % 3 != 2 {
        applier.flush().unwrap();
    }
    let state = serde_json::to_string(&applier.state()).unwrap();
    if n % 3 == 0 {
        // A crash: what came after the checkpoint is undone.
        target.snapshot("partial", "checkpoint", true);
        let _ = applier.feed(&stream[at..]);
        drop(applier);
        target.delete("partial");
        target.snapshot("checkpoint", "partial", false);
        target.delete("checkpoint");
    } else {
        // A mere disconnect, in mid-command.
        applier.feed(&stream[at..(at + 5).min(stream.len())]).unwrap();
        drop(applier);
    }
    let state: ApplierState = serde_json::from_str(&state).unwrap();
    assert_eq!(state.offset, at as u64);
    let base = base.map(|base| open(&target.path(base)));
    let root = open(&target.path("partial"));
    let mut applier = Applier::resume(root, base, ContentClass::Trusted, Limits::default(), state).unwrap();
    assert_eq!(applier.position().digest, *blake3::hash(&stream[..at]).as_bytes());
    applier.feed(&stream[at..]).unwrap();
    assert_eq!(applier.finish().unwrap().digest, *blake3::hash(stream).as_bytes());
    target.snapshot("partial", "resumed", true);
    target.delete("partial");
}

#[test]
fn a_large_receive_resumes_at_random_commands() {
    let (source, target) = (Pool::new(512, "defaults"), Pool::new(1024, "nodev"));
    let root = source.create("head");
    let mut random = Random(5);
    build(&root, &mut random);
    source.snapshot("head", "c1", true);
    change(&root, &mut random);
    source.snapshot("head", "c2", true);
    let full = source.send("c1", None, &["--proto", "2"]);
    target.apply(&full, "c1", None, 1 << 20).unwrap();
    for (stream, base, commit) in [(full, None, "c1"), (source.send("c2", Some("c1"), &["--proto", "2"]), Some("c1"), "c2")] {
        let all = boundaries(&stream);
        for n in 0..12 {
            resume_at(&target, &stream, base, (n, all[random.below(all.len())]));
            target.assert_same("resumed", &source, commit, "");
            target.delete("resumed");
        }
    }
}

#[test]
fn a_restricted_stream_leaves_privileges_out_and_refuses_devices() {
    let (source, target) = (Pool::new(128, "defaults"), Pool::new(128, "nodev"));
    let root = source.create("head");
    fs::write(root.join("f"), b"f").unwrap();
    mode(&root.join("f"), 0o6755);
    xattr(&root.join("f"), CAPABILITY, &CAP_NET_RAW);
    xattr(&root.join("f"), "trusted.t", b"1");
    xattr(&root.join("f"), "user.u", b"1");
    source.snapshot("head", "c1", true);
    node(&root.join("null"), FileType::CharacterDevice, (1, 3));
    source.snapshot("head", "c2", true);
    let apply = |stream: &[u8], work: &str| {
        let root = open(&target.create(work));
        let mut applier = Applier::new(root, None, ContentClass::Restricted, Limits::default()).unwrap();
        applier.feed(stream)?;
        let skipped = applier.skipped();
        applier.finish().map(|_| skipped)
    };
    let skipped = apply(&source.send("c1", None, &[]), "w1").unwrap();
    assert_eq!(fs::metadata(target.path("w1/f")).unwrap().permissions().mode() & 0o7777, 0o755);
    let mut list = [0u8; 256];
    let len = rustix::fs::listxattr(target.path("w1/f"), &mut list[..]).unwrap();
    assert_eq!(&list[..len], b"user.u\0");
    assert!(skipped.xattrs >= 2 && skipped.set_id_bits == 1, "{skipped:?}");
    let error = apply(&source.send("c2", None, &[]), "w2").unwrap_err();
    assert_eq!(error.kind(), Reason::Denied, "{error}");
    assert!(!target.path("w2/null").exists());
}

#[test]
fn selinux_labels_are_not_replicated() {
    let (source, target) = (Pool::new(128, "defaults"), Pool::new(128, "nodev"));
    let root = source.create("head");
    fs::write(root.join("f"), b"f").unwrap();
    xattr(&root.join("f"), "security.selinux", b"system_u:object_r:etc_t:s0\0");
    source.snapshot("head", "c1", true);
    target.apply(&source.send("c1", None, &[]), "c1", None, 4096).unwrap();
    let mut none = [0u8; 0];
    assert!(rustix::fs::getxattr(target.path("c1/f"), "security.selinux", &mut none[..]).is_err());
    target.assert_same("c1", &source, "c1", "");
}

#[test]
fn a_full_pool_is_no_space_and_not_the_streams_fault() {
    let (source, target) = (Pool::new(512, "defaults"), Pool::new(128, "nodev"));
    let root = source.create("head");
    fs::write(root.join("f"), Random(1).bytes(200 << 20)).unwrap();
    source.snapshot("head", "c1", true);
    let stream = source.send("c1", None, &[]);
    let error = target.apply(&stream, "c1", None, 1 << 20).unwrap_err();
    assert_eq!(error.kind(), Reason::NoSpace, "{error}");
}

#[test]
fn a_nested_subvolume_is_not_entered_nor_removed() {
    let (source, target) = (Pool::new(128, "defaults"), Pool::new(128, "nodev"));
    let root = source.create("head");
    fs::create_dir(root.join("n")).unwrap();
    fs::write(root.join("n/f"), b"f").unwrap();
    source.snapshot("head", "c1", true);
    let stream = source.send("c1", None, &[]);
    let work = target.create("work");
    let mut applier = target.applier("work", None);
    // Up to where `n` is made; then something else takes its place.
    let mut fed = 0;
    for at in boundaries(&stream) {
        if work.join("n").exists() {
            break;
        }
        applier.feed(&stream[fed..at]).unwrap();
        applier.flush().unwrap();
        fed = at;
    }
    fs::remove_dir(work.join("n")).unwrap();
    target.create("work/n");
    let error = applier.feed(&stream[fed..]).unwrap_err();
    assert_eq!(error.kind(), Reason::CorruptStream, "{error}");
    assert!(work.join("n").exists() && !work.join("n/f").exists());
    target.delete("work/n");
}

/// One random change below `root`, of whatever kind the tree allows at that moment.
fn random_change(root: &Path, random: &mut Random) {
    let name = |random: &mut Random| {
        let depth = random.below(3);
        let mut path = root.to_path_buf();
        for _ in 0..depth {
            path.push(format!("d{}", random.below(4)));
        }
        path.join(format!("{}{}", random.pick(&["d", "f"]), random.below(6)))
    };
    let (a, b) = (name(random), name(random));
    let open = |path: &Path| File::options().read(true).write(true).create(true).truncate(false).open(path);
    // Most fail now and then, because something is not there or in the way: that is part of it.
    let len = random.below(90_000);
    let at = random.below(400_000) as u64;
    let _ = match random.below(18) {
        0 => fs::create_dir_all(&a),
        1 => fs::rename(&a, &b),
        2 => rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, rustix::fs::RenameFlags::EXCHANGE).map_err(Into::into),
        3 => fs::remove_file(&a),
        4 => fs::remove_dir_all(&a),
        5 => fs::hard_link(&a, &b),
        6 => symlink(random.pick(&["x", "../f1", "/etc/passwd"]), &a),
        7 => fs::set_permissions(&a, Permissions::from_mode(u32::try_from(random.below(0o10000)).unwrap())),
        8 => lchown(&a, Some(u32::try_from(random.below(3)).unwrap()), Some(u32::try_from(random.below(3)).unwrap())),
        9 => lsetxattr(&a, random.pick(&["user.a", "trusted.b"]), &random.bytes(len % 200), XattrFlags::empty()).map_err(Into::into),
        10 => rustix::fs::lremovexattr(&a, "trusted.b").map_err(Into::into),
        11 => open(&a).and_then(|file| file.set_len(at)),
        12 => open(&a).and_then(|file| Ok(ioctl_ficlone(&file, File::open(&b)?)?)),
        13 => setxattr(&a, random.pick(&["system.posix_acl_access", "system.posix_acl_default"]), &acl(), XattrFlags::empty())
            .map_err(Into::into),
        14 => setxattr(&a, CAPABILITY, &CAP_NET_RAW, XattrFlags::empty()).map_err(Into::into),
        15 => open(&a).and_then(|file| {
            let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(file, punch, at, 1 + len as u64)?)
        }),
        _ => open(&a).and_then(|file| file.write_all_at(&random.bytes(len), at)),
    };
}

#[test]
fn random_histories_arrive_whole() {
    // More with e.g. DOTGRAFT_HISTORIES=500.
    let histories: u64 = std::env::var("DOTGRAFT_HISTORIES").map_or(4, |text| text.parse().unwrap());
    let first: u64 = std::env::var("DOTGRAFT_SEED").map_or(1, |text| text.parse().unwrap());
    let (source, target) = (Pool::new(1024, "defaults"), Pool::new(1024, "nodev"));
    for seed in first..first + histories {
        let mut random = Random(seed);
        let root = source.create("head");
        let mut made: Vec<String> = Vec::new();
        for n in 0..4 {
            for _ in 0..=random.below(60) {
                random_change(&root, &mut random);
            }
            let commit = format!("c{n}");
            source.snapshot("head", &commit, true);
            let before = made.last().map(String::as_str);
            let stream = source.send(&commit, before, &["--proto", random.pick(&["1", "2"])]);
            let what = format!("seed {seed}, {commit}");
            target.apply(&stream, &commit, before, 1 + random.below(100_000)).unwrap_or_else(|error| panic!("{what}: {error}"));
            target.assert_same(&commit, &source, &commit, &what);
            made.push(commit);
        }
        source.delete("head");
        for commit in made {
            source.delete(&commit);
            target.delete(&commit);
        }
    }
}
