//! Streams made to do harm: generated, mutated, with checksums put right, so that the applier is reached.
//!
//! Whatever arrives, the answer is a typed error or a tree, nothing beside the work directory is touched, and memory stays
//! bounded. The default is a few seconds' worth; `docs/fuzzing.md` says how to run a million.
//!
//! Needs root, loop devices and btrfs-progs, as `stream_btrfs` does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a fixture that fails is a test that fails")]

mod stream_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use dotgraft_agent::stream::parse::CommandKind as Kind;
use dotgraft_agent::stream::{Applier, Cause, ContentClass, Limits, StreamError};
use dotgraft_engine::model::Reason;
use rustix::io::Errno;
use stream_support::build::{OWN, PARENT, Stream};
use stream_support::hostile::{Generator, mutate};
use stream_support::{Pool, Random, open};

/// The stage: a pool with a work directory, a base, and things outside that must stay as they are.
struct Stage {
    pool: Pool,
    outside: BTreeMap<PathBuf, Print>,
}

/// Cases before a pool is replaced: btrfs runs out of metadata space for a while if a small one is filled and emptied
/// without pause.
const STAGE_LIFE: u64 = 50_000;

/// What changes when anything at all is done to an inode.
#[derive(Debug, PartialEq, Eq)]
struct Print {
    change: (i64, i64),
    size: u64,
    links: u64,
}

fn print(path: &Path) -> Print {
    let data = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Print { change: (data.ctime(), data.ctime_nsec()), size: data.size(), links: data.nlink() }
}

impl Stage {
    fn new() -> Self {
        let pool = Pool::new(4096, "nodev");
        let make = |name: &str, content: &[u8]| fs::write(pool.path(name), content).unwrap();
        for name in ["outside", "outside/dir", "base", "base/d", "work", "traps"] {
            fs::create_dir(pool.path(name)).unwrap();
        }
        make("outside/secret", b"secret");
        make("outside/dir/deep", b"deep");
        make("base/f", &[9; 8192]);
        make("base/d/g", &[8; 5000]);
        symlink("../outside/secret", pool.path("base/out")).unwrap();
        fs::hard_link(pool.path("outside/secret"), pool.path("outside/other")).unwrap();
        // Traps that lie in the work tree already, as in an increment: ways out, another subvolume.
        symlink("../outside", pool.path("traps/out")).unwrap();
        symlink(pool.path("outside"), pool.path("traps/abs")).unwrap();
        symlink("/", pool.path("traps/root")).unwrap();
        symlink("/proc/self/root", pool.path("traps/proc")).unwrap();
        pool.create("traps/nested");
        make("traps/nested/inner", b"inner");
        let names = [
            "",
            "outside",
            "outside/dir",
            "outside/secret",
            "outside/dir/deep",
            "base",
            "base/d",
            "base/f",
            "base/d/g",
            "base/out",
            "traps/nested",
            "traps/nested/inner",
        ];
        let outside = names.iter().map(|name| (pool.path(name), print(&pool.path(name)))).collect();
        Self { pool, outside }
    }

    fn assert_untouched(&self, case: u64) {
        for (path, before) in &self.outside {
            assert_eq!(&print(path), before, "case {case}: {} was touched", path.display());
        }
    }

    /// Empties the work directory, but for the traps, which must be there still unless a stream may remove them.
    fn reset(&self, work: &str) {
        let root = self.pool.path(work);
        unlock(&root);
        for entry in fs::read_dir(&root).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() == "nested" && work == "traps" {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                fs::remove_dir_all(entry.path()).unwrap();
            } else {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        if work == "traps" {
            for (name, target) in [("out", Path::new("../outside")), ("root", Path::new("/")), ("proc", Path::new("/proc/self/root"))] {
                symlink(target, root.join(name)).unwrap();
            }
            symlink(self.pool.path("outside"), root.join("abs")).unwrap();
        }
    }
}

/// Takes off what keeps things from being removed, as a stream may set it; not in another subvolume.
fn unlock(path: &Path) {
    let kind = fs::symlink_metadata(path).unwrap().file_type();
    if (!kind.is_dir() && !kind.is_file()) || path.ends_with("nested") {
        return;
    }
    let locks = rustix::fs::IFlags::IMMUTABLE | rustix::fs::IFlags::APPEND;
    let fd = open(path);
    let flags = rustix::fs::ioctl_getflags(&fd).unwrap();
    if flags.intersects(locks) {
        rustix::fs::ioctl_setflags(&fd, flags - locks).unwrap();
    }
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            unlock(&entry.unwrap().path());
        }
    }
}

/// Feeds in pieces, now and then with a checkpoint and a new applier between them.
fn apply(
    stage: &Stage,
    work: &str,
    increment: bool,
    class: ContentClass,
    bytes: &[u8],
    random: &mut Random,
) -> (u64, Result<(), StreamError>) {
    let base = || increment.then(|| open(&stage.pool.path("base")));
    let root = || open(&stage.pool.path(work));
    let mut applier = Applier::new(root(), base(), class, Limits::default()).unwrap();
    let piece = if random.one_in(2) { bytes.len() } else { 1 + random.below(bytes.len()) };
    let mut rest = bytes;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(piece.min(rest.len()));
        rest = tail;
        if let Err(error) = applier.feed(head) {
            // It stays failed.
            assert!(matches!(applier.feed(b"more").unwrap_err().cause, Cause::Failed));
            return (applier.position().offset, Err(error));
        }
        if random.one_in(4) {
            let flushed = if random.one_in(2) { applier.flush() } else { Ok(()) };
            if let Err(error) = flushed {
                return (applier.position().offset, Err(error));
            }
            let state = serde_json::from_slice(&serde_json::to_vec(&applier.state()).unwrap()).unwrap();
            let at = usize::try_from(applier.position().offset).unwrap();
            rest = &bytes[at..];
            applier = Applier::resume(root(), base(), class, Limits::default(), state).unwrap();
            // All at once now, or a piece smaller than a command would never end.
            if let Err(error) = applier.feed(rest) {
                return (applier.position().offset, Err(error));
            }
            rest = &[];
        }
    }
    let offset = applier.position().offset;
    (offset, applier.finish().map(|_| ()))
}

#[test]
fn no_stream_touches_anything_outside_or_fails_without_a_reason() {
    let setting = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let cases = setting("DOTGRAFT_FUZZ_CASES", 4000);
    let seed = setting("DOTGRAFT_FUZZ_SEED", 1);
    let mut stage = Stage::new();
    let mut previous = Stream::new(2);
    previous.begin(false);
    let (mut reached, mut whole, mut commands) = (0u64, 0u64, 0u64);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for case in seed..seed + cases {
        if (case - seed) % STAGE_LIFE == STAGE_LIFE - 1 {
            stage = Stage::new();
        }
        let mut random = Random(case.wrapping_mul(0x0005_DEEC_E66D));
        let (work, increment) = [("work", false), ("work", true), ("traps", true)][random.below(3)];
        let class = if random.one_in(4) { ContentClass::Restricted } else { ContentClass::Trusted };
        let version = if random.one_in(3) { 1 } else { 2 };
        let malice = [1000, 100, 30, 6][random.below(4)];
        let generator = Generator {
            random: &mut random,
            stream: Stream::new(version),
            files: Vec::new(),
            dirs: Vec::new(),
            others: Vec::new(),
            increment,
            outside: stage.pool.path("outside").to_str().unwrap().into(),
            malice,
        };
        let stream = generator.generate();
        let bytes = mutate(&stream, &previous, &mut random);
        let (offset, result) = apply(&stage, work, increment, class, &bytes, &mut random);
        stage.assert_untouched(case);
        let first = stream.commands.first().map_or(0, Vec::len) as u64 + 17;
        reached += u64::from(offset > first);
        commands += count_commands(&bytes, offset);
        match result {
            Ok(()) => whole += 1,
            Err(error) => {
                let kind = error.kind();
                // A compressed extent of garbage can't be read: the one thing that a trusted peer can break, for itself.
                let own_fault = matches!(kind, Reason::PoolFailed | Reason::CorruptDisk) && version == 2;
                let expected = [Reason::CorruptStream, Reason::Unsupported, Reason::Denied, Reason::NoSpace];
                assert!(own_fault || expected.contains(&kind), "case {case}: {error} is {kind:?}");
                *reasons.entry(format!("{kind:?}")).or_default() += 1;
            }
        }
        stage.reset(work);
        previous = stream;
    }
    println!("{cases} cases from seed {seed}: {reached} reached the applier, {commands} commands applied, {whole} whole, {reasons:?}");
    assert!(reached * 2 > cases, "too few cases reach the applier: {reached} of {cases}");
    assert!(whole * 50 > cases && whole < cases, "{whole} of {cases} streams were applied whole");
    assert!(peak_memory_kib() < 128 << 10, "{} KiB", peak_memory_kib());
}

/// Commands among the first `offset` bytes, after the header.
fn count_commands(bytes: &[u8], offset: u64) -> u64 {
    let mut at = 17;
    let mut count = 0;
    while at < usize::try_from(offset).unwrap() {
        at += 10 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        count += 1;
    }
    count
}

fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Applies commands after SUBVOL in a fresh work directory.
fn attack(stage: &Stage, work: &str, build: impl FnOnce(&mut Stream)) -> StreamError {
    let mut stream = Stream::new(1);
    stream.begin(work == "traps");
    build(&mut stream);
    stream.push(Kind::End as u16, &[]);
    let base = (work == "traps").then(|| open(&stage.pool.path("base")));
    let mut applier = Applier::new(open(&stage.pool.path(work)), base, ContentClass::Trusted, Limits::default()).unwrap();
    let result = applier.feed(&stream.bytes()).and_then(|()| applier.finish());
    stage.assert_untouched(0);
    stage.reset(work);
    result.unwrap_err()
}

#[test]
fn symlinks_lead_nowhere() {
    let stage = Stage::new();
    let zero = 0u64.to_le_bytes();
    for trap in ["out", "abs"] {
        let secret = format!("{trap}/secret").into_bytes();
        let inside = format!("{trap}/new").into_bytes();
        let error = attack(&stage, "traps", |s| s.push(Kind::Write as u16, &[(15, &secret), (18, &zero), (19, b"owned")]));
        assert_eq!(error.kind(), Reason::CorruptStream);
        attack(&stage, "traps", |s| s.push(Kind::Mkfile as u16, &[(15, &inside)]));
        attack(&stage, "traps", |s| s.push(Kind::Unlink as u16, &[(15, &secret)]));
        attack(&stage, "traps", |s| s.push(Kind::Chmod as u16, &[(15, &secret), (5, &0o777u64.to_le_bytes())]));
        attack(&stage, "traps", |s| s.push(Kind::Link as u16, &[(15, b"mine"), (17, &secret)]));
        attack(&stage, "traps", |s| s.push(Kind::Rename as u16, &[(15, &secret), (16, b"mine")]));
        // The last component is a symlink: data and mode are for files.
        attack(&stage, "traps", |s| s.push(Kind::Write as u16, &[(15, trap.as_bytes()), (18, &zero), (19, b"owned")]));
        attack(&stage, "traps", |s| s.push(Kind::Chmod as u16, &[(15, trap.as_bytes()), (5, &0o777u64.to_le_bytes())]));
    }
}

#[test]
fn another_subvolume_is_out_of_bounds() {
    let stage = Stage::new();
    let zero = 0u64.to_le_bytes();
    let is_crossing = |error: StreamError| assert!(matches!(error.cause, Cause::Crossing { .. }), "{error}");
    is_crossing(attack(&stage, "traps", |s| s.push(Kind::Write as u16, &[(15, b"nested/inner"), (18, &zero), (19, b"x")])));
    is_crossing(attack(&stage, "traps", |s| s.push(Kind::Chmod as u16, &[(15, b"nested"), (5, &zero)])));
    is_crossing(attack(&stage, "traps", |s| s.push(Kind::Mkfile as u16, &[(15, b"nested/new")])));
    is_crossing(attack(&stage, "traps", |s| s.push(Kind::Rmdir as u16, &[(15, b"nested")])));
    is_crossing(attack(&stage, "traps", |s| s.push(Kind::Rename as u16, &[(15, b"nested"), (16, b"mine")])));
}

#[test]
fn clones_come_from_the_stream_itself_or_its_base() {
    let stage = Stage::new();
    let (zero, one, len) = (0u64.to_le_bytes(), 1u64.to_le_bytes(), 4096u64.to_le_bytes());
    let clone = |uuid: [u8; 16], source: &'static [u8]| {
        attack(&stage, "traps", |s| {
            s.push(Kind::Mkfile as u16, &[(15, b"a")]);
            s.push(Kind::Clone as u16, &[(15, b"a"), (18, &zero), (24, &len), (20, &uuid), (21, &one), (22, source), (23, &zero)]);
        })
    };
    assert!(matches!(clone([3; 16], b"f").cause, Cause::ForeignClone));
    assert!(matches!(clone(PARENT, b"../outside/secret").cause, Cause::Path(_)));
    assert_eq!(clone(PARENT, b"out").kind(), Reason::CorruptStream);
    assert_eq!(clone(PARENT, b"d").kind(), Reason::CorruptStream);
    assert_eq!(clone(OWN, b"out/secret").kind(), Reason::CorruptStream);
}

#[test]
fn nothing_is_made_or_moved_over_what_is_there() {
    let stage = Stage::new();
    let four = 4u64.to_le_bytes();
    let exists = |error: StreamError| assert!(matches!(error.cause, Cause::System { errno: Errno::EXIST, .. }), "{error}");
    let two = |s: &mut Stream| {
        s.push(Kind::Mkfile as u16, &[(15, b"a")]);
        s.push(Kind::Mkfile as u16, &[(15, b"b")]);
    };
    // Held back and moved onto a name that is there; really moved onto one; linked.
    exists(attack(&stage, "work", |s| {
        two(s);
        s.push(Kind::Rename as u16, &[(15, b"b"), (16, b"a")]);
    }));
    exists(attack(&stage, "work", |s| {
        two(s);
        s.push(Kind::Truncate as u16, &[(15, b"b"), (4, &four)]);
        s.push(Kind::Rename as u16, &[(15, b"b"), (16, b"a")]);
    }));
    exists(attack(&stage, "work", |s| {
        two(s);
        s.push(Kind::Link as u16, &[(15, b"a"), (17, b"b")]);
    }));
}

#[test]
fn data_for_a_device_never_opens_it() {
    let stage = Stage::new();
    let zero = 0u64.to_le_bytes();
    let mode = 0o020_666u64.to_le_bytes();
    let error = attack(&stage, "work", |s| {
        s.push(Kind::Mknod as u16, &[(15, b"null"), (5, &mode), (8, &0x103u64.to_le_bytes())]);
        s.push(Kind::Write as u16, &[(15, b"null"), (18, &zero), (19, b"x")]);
    });
    assert!(matches!(error.cause, Cause::Sequence(_)), "{error}");
}

#[test]
fn a_second_subvolume_a_stream_of_the_wrong_kind_and_trailing_bytes_are_refused() {
    let stage = Stage::new();
    assert!(matches!(attack(&stage, "work", |s| s.begin(false)).cause, Cause::Sequence(_)));
    assert!(matches!(attack(&stage, "work", |s| s.begin(true)).cause, Cause::Sequence(_)));
    assert!(matches!(attack(&stage, "work", |s| s.push(Kind::End as u16, &[])).cause, Cause::Sequence(_)));
    let mut increment = Stream::new(1);
    increment.begin(true);
    let mut applier = Applier::new(open(&stage.pool.path("work")), None, ContentClass::Trusted, Limits::default()).unwrap();
    assert!(matches!(applier.feed(&increment.bytes()).unwrap_err().cause, Cause::Sequence(_)));
    let mut unfinished = Applier::new(open(&stage.pool.path("work")), None, ContentClass::Trusted, Limits::default()).unwrap();
    let mut full = Stream::new(1);
    full.begin(false);
    unfinished.feed(&full.bytes()).unwrap();
    assert!(matches!(unfinished.finish().unwrap_err().cause, Cause::Sequence(_)));
}

#[test]
fn a_command_that_claims_gigabytes_is_refused_at_its_header() {
    let stage = Stage::new();
    let mut stream = Stream::new(2);
    stream.begin(false);
    let mut bytes = stream.bytes();
    bytes.extend(0xffff_ff00u32.to_le_bytes());
    bytes.extend([15, 0, 0, 0, 0, 0]);
    let mut applier = Applier::new(open(&stage.pool.path("work")), None, ContentClass::Trusted, Limits::default()).unwrap();
    // Byte by byte, as a trickling peer would.
    let error = bytes.iter().find_map(|byte| applier.feed(&[*byte]).err()).unwrap();
    assert!(matches!(error.cause, Cause::TooLong { .. }), "{error}");
    assert_eq!(error.offset, stream.bytes().len() as u64);
}

#[test]
fn verity_and_streams_without_data_are_unsupported() {
    let stage = Stage::new();
    for kind in [Kind::EnableVerity, Kind::UpdateExtent] {
        let mut stream = Stream::new(2);
        stream.begin(false);
        stream.push(kind as u16, &[(15, b"a"), (18, &[0; 8]), (4, &[0; 8])]);
        let mut applier = Applier::new(open(&stage.pool.path("work")), None, ContentClass::Trusted, Limits::default()).unwrap();
        assert_eq!(applier.feed(&stream.bytes()).unwrap_err().kind(), Reason::Unsupported);
    }
}
