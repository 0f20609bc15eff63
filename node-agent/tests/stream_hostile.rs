//! Streams made to do harm: generated, mutated, with checksums put right, so that the applier is reached.
//!
//! Whatever arrives, the answer is a typed error or a tree, nothing beside the work directory is touched, and memory stays
//! bounded. The default is a few seconds' worth; `docs/fuzzing.md` says how to run a million.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a fixture that fails is a test that fails")]

mod stream_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use dotgraft_agent::stream::parse::{CommandKind as Kind, checksum};
use dotgraft_agent::stream::{Applier, Cause, ContentClass, Limits, StreamError};
use dotgraft_engine::model::Reason;
use rustix::io::Errno;
use stream_support::{Pool, Random, open};

const OWN: [u8; 16] = [1; 16];
const PARENT: [u8; 16] = [2; 16];

/// A stream under construction: header and commands, so that mutations can work on whole commands.
#[derive(Clone)]
struct Stream {
    version: u32,
    commands: Vec<Vec<u8>>,
}

impl Stream {
    fn new(version: u32) -> Self {
        Self { version, commands: Vec::new() }
    }

    fn push(&mut self, kind: u16, attributes: &[(u16, &[u8])]) {
        let mut payload = Vec::new();
        for (number, value) in attributes {
            payload.extend(number.to_le_bytes());
            if *number != 19 || self.version == 1 {
                payload.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
            }
            payload.extend(*value);
        }
        let mut command = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
        command.extend(kind.to_le_bytes());
        command.extend([0; 4]);
        command.extend(payload);
        fix(&mut command);
        self.commands.push(command);
    }

    fn begin(&mut self, increment: bool) {
        let one = 1u64.to_le_bytes();
        if increment {
            self.push(Kind::Snapshot as u16, &[(15, b"s"), (1, &OWN), (2, &one), (20, &PARENT), (21, &one)]);
        } else {
            self.push(Kind::Subvol as u16, &[(15, b"s"), (1, &OWN), (2, &one)]);
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"btrfs-stream\0".to_vec();
        out.extend(self.version.to_le_bytes());
        for command in &self.commands {
            out.extend(command);
        }
        out
    }
}

/// Puts the checksum of a command right.
fn fix(command: &mut [u8]) {
    if command.len() >= 10 {
        let crc = checksum(command).to_le_bytes();
        command[6..10].copy_from_slice(&crc);
    }
}

/// The stage: a pool with a work directory, a base, and things outside that must stay as they are.
struct Stage {
    pool: Pool,
    outside: BTreeMap<PathBuf, Print>,
}

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
        let pool = Pool::new(512, "nodev");
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

/// Makes streams: mostly what could be, with something that should not be every now and then.
struct Generator<'a> {
    random: &'a mut Random,
    stream: Stream,
    /// Names that are there if everything went well so far.
    files: Vec<Vec<u8>>,
    dirs: Vec<Vec<u8>>,
    others: Vec<Vec<u8>>,
    increment: bool,
    outside: Vec<u8>,
    /// One command in so many is hostile.
    malice: usize,
}

impl Generator<'_> {
    fn hostile_path(&mut self) -> Vec<u8> {
        let fixed: [&[u8]; 24] = [
            b"",
            b".",
            b"..",
            b"/",
            b"/etc/passwd",
            b"../outside/secret",
            b"../outside",
            b"out/secret",
            b"out",
            b"abs/secret",
            b"abs/dir",
            b"root/etc",
            b"proc/etc",
            b"nested",
            b"nested/inner",
            b"nested/new",
            b"d0/../../outside/secret",
            b"d0//x",
            b"d0/",
            b"./d0",
            b"x\0y",
            b"..\0",
            b"\xff\xfe",
            b"d0/../d0",
        ];
        match self.random.below(6) {
            0 => {
                let mut path = self.outside.clone();
                path.extend(b"/secret");
                path
            }
            1 => {
                let len = 1 + self.random.below(400);
                vec![b'n'; len]
            }
            2 => {
                let len = 1 + self.random.below(3000);
                b"d0/".repeat(len)
            }
            _ => self.random.pick(&fixed).to_vec(),
        }
    }

    fn known(&mut self, which: usize) -> Vec<u8> {
        if self.random.one_in(self.malice) {
            return self.hostile_path();
        }
        let list = match which {
            0 => &self.files,
            1 => &self.dirs,
            _ => &self.others,
        };
        if list.is_empty() {
            return b"d0".to_vec();
        }
        list[self.random.below(list.len())].clone()
    }

    fn any(&mut self) -> Vec<u8> {
        let which = self.random.below(3);
        self.known(which)
    }

    fn fresh(&mut self) -> Vec<u8> {
        if self.random.one_in(self.malice) {
            return self.hostile_path();
        }
        let mut path = if self.dirs.is_empty() || self.random.one_in(3) { Vec::new() } else { self.known(1) };
        if !path.is_empty() {
            path.push(b'/');
        }
        let n = self.random.next() % 1_000_000;
        path.extend(format!("n{n}").bytes());
        path
    }

    fn number(&mut self) -> [u8; 8] {
        let n = match self.random.below(40) {
            0 if self.random.one_in(4) => u64::MAX,
            1 if self.random.one_in(4) => i64::MAX as u64,
            2 => 1 << self.random.below(64),
            _ => self.random.next() % 20_000,
        };
        n.to_le_bytes()
    }

    fn aligned(&mut self) -> [u8; 8] {
        if self.random.one_in(20) { self.number() } else { ((self.random.next() % 2) * 4096).to_le_bytes() }
    }

    fn time(&mut self) -> Vec<u8> {
        let nanoseconds = if self.random.one_in(50) { u32::MAX } else { 5 };
        [self.number().as_slice(), &nanoseconds.to_le_bytes()].concat()
    }

    fn make(&mut self) {
        let temporary = format!("o{}-1-0", self.stream.commands.len()).into_bytes();
        let direct = self.random.one_in(3);
        let last = self.fresh();
        let first = if direct { last.clone() } else { temporary };
        match self.random.below(9) {
            0..=3 => {
                self.stream.push(Kind::Mkfile as u16, &[(15, &first)]);
                self.files.push(last.clone());
            }
            4..=5 => {
                self.stream.push(Kind::Mkdir as u16, &[(15, &first)]);
                self.dirs.push(last.clone());
            }
            6 | 7 => {
                let targets: [&[u8]; 6] = [b"../outside", b"/etc/passwd", b"d0", b"/proc/self/root", b"../outside/secret", b"x"];
                let target = self.random.pick(&targets);
                self.stream.push(Kind::Symlink as u16, &[(15, &first), (17, target)]);
                self.others.push(last.clone());
            }
            _ => {
                // Only /dev/null, zero: and the pool is mounted without devices.
                let kinds = [0o020_644u64, 0o010_644, 0o140_644, 0o060_600, 0o100_644, 0o170_000];
                let mode = kinds[self.random.mostly(4, 6, 8)];
                let (kind, rdev) = if self.random.one_in(2) { (Kind::Mknod, 0x103u64) } else { (Kind::Mkfifo, 0) };
                self.stream.push(kind as u16, &[(15, &first), (5, &mode.to_le_bytes()), (8, &rdev.to_le_bytes())]);
                self.others.push(last.clone());
            }
        }
        if !direct {
            self.stream.push(Kind::Rename as u16, &[(15, &first), (16, &last)]);
        }
    }

    fn name(&mut self) {
        let which = self.random.below(3);
        let old = self.known(which);
        let new = self.fresh();
        let forget = |list: &mut Vec<Vec<u8>>| list.retain(|path| *path != old && !path.starts_with(&[&old[..], b"/"].concat()));
        match self.random.below(4) {
            0 => {
                self.stream.push(Kind::Rename as u16, &[(15, &old), (16, &new)]);
                forget(&mut self.files);
                forget(&mut self.dirs);
                forget(&mut self.others);
                [&mut self.files, &mut self.dirs, &mut self.others][which].push(new);
            }
            1 => {
                let old = self.known(0);
                self.stream.push(Kind::Link as u16, &[(15, &new), (17, &old)]);
                self.files.push(new);
            }
            2 => {
                let old = self.known(0);
                self.stream.push(Kind::Unlink as u16, &[(15, &old)]);
                self.files.retain(|path| *path != old);
            }
            _ => {
                let empty: Option<Vec<u8>> = self.dirs.last().cloned();
                let path = empty.filter(|_| !self.random.one_in(self.malice)).unwrap_or_else(|| self.any());
                self.stream.push(Kind::Rmdir as u16, &[(15, &path)]);
                self.dirs.retain(|dir| *dir != path);
            }
        }
    }

    fn data(&mut self) {
        let path = self.known(0);
        let (offset, len) = (self.number(), self.random.below(300));
        let data = self.random.bytes(len);
        // Protocol 1 has no more than the first six.
        let kinds = if self.stream.version == 1 { 6 } else { 8 };
        match self.random.mostly(kinds, 8, 20) {
            0..=2 => self.stream.push(Kind::Write as u16, &[(15, &path), (18, &offset), (19, &data)]),
            3 => self.stream.push(Kind::Truncate as u16, &[(15, &path), (4, &offset)]),
            4 | 5 => {
                let uuid = match self.random.below(40) {
                    0 => [3; 16],
                    1..=5 => OWN,
                    _ if self.increment => PARENT,
                    _ => OWN,
                };
                let source = if uuid == PARENT && !self.random.one_in(6) {
                    let bad = self.random.one_in(20);
                    self.random.pick::<[u8]>(if bad { &[b"d", b"out", b"x"] } else { &[b"f"] }).to_vec()
                } else {
                    self.known(0)
                };
                let (to, from, len) = (self.aligned(), self.aligned(), self.aligned());
                let clone = [(18, &to[..]), (24, &len), (20, &uuid), (21, &[1, 0, 0, 0, 0, 0, 0, 0]), (22, &source), (23, &from)];
                self.stream.push(Kind::Clone as u16, &[&[(15, &path[..])], &clone[..]].concat());
            }
            6 => {
                let modes = [0u32, 1, 3, 2, 0x10, u32::MAX];
                let mode = modes[self.random.mostly(3, 6, 10)].to_le_bytes();
                let size = self.number();
                self.stream.push(Kind::Fallocate as u16, &[(15, &path), (25, &mode), (18, &offset), (4, &size)]);
            }
            _ => self.encoded(&path, &data),
        }
    }

    fn encoded(&mut self, path: &[u8], data: &[u8]) {
        let bad = self.random.one_in(6);
        let (to, len) = (self.aligned(), [4096u64, 131_072, 1, u64::MAX][self.random.below(if bad { 4 } else { 2 })].to_le_bytes());
        let offset = [0u64, 4096, u64::MAX][self.random.below(if bad { 3 } else { 1 })].to_le_bytes();
        let compression = u32::try_from(if bad { self.random.below(9) } else { 1 + self.random.below(3) }).unwrap().to_le_bytes();
        let attributes = [(15, path), (18, &to[..]), (27, &len), (28, &len), (29, &offset), (30, &compression), (31, &[0; 4]), (19, data)];
        self.stream.push(Kind::EncodedWrite as u16, &attributes);
    }

    fn attribute(&mut self) {
        let path = if self.random.one_in(6) { Vec::new() } else { self.any() };
        match self.random.below(6) {
            0 if self.others.contains(&path) => {}
            0 => {
                let mode = (self.random.next() % 0o10_010).to_le_bytes();
                self.stream.push(Kind::Chmod as u16, &[(15, &path), (5, &mode)]);
            }
            1 => {
                let owner = |random: &mut Random| if random.one_in(30) { random.next() } else { random.next() % 70_000 }.to_le_bytes();
                let (uid, gid) = (owner(self.random), owner(self.random));
                self.stream.push(Kind::Chown as u16, &[(15, &path), (6, &uid), (7, &gid)]);
            }
            2 => {
                let (atime, mtime) = (self.time(), self.time());
                self.stream.push(Kind::Utimes as u16, &[(15, &path), (11, &atime), (10, &mtime), (9, &mtime)]);
            }
            3 => {
                let names: [&[u8]; 9] = [
                    b"user.a",
                    b"trusted.b",
                    b"security.selinux",
                    b"security.capability",
                    b"system.posix_acl_access",
                    b"btrfs.compression",
                    b"",
                    b"nonsense",
                    b"user.\0",
                ];
                let name = names[self.random.mostly(3, 9, 5)];
                let len = self.random.below(100);
                let value = self.random.bytes(len);
                self.stream.push(Kind::SetXattr as u16, &[(15, &path), (13, name), (14, &value)]);
            }
            4 => self.stream.push(Kind::RemoveXattr as u16, &[(15, &path), (13, b"user.a")]),
            _ if self.stream.version == 1 => {}
            _ => {
                let flags = self.number();
                self.stream.push(Kind::Fileattr as u16, &[(15, &path), (26, &flags)]);
            }
        }
    }

    fn generate(mut self) -> Stream {
        if !self.random.one_in(40) {
            self.stream.begin(self.increment);
        }
        self.stream.push(Kind::Mkdir as u16, &[(15, b"o257-1-0")]);
        self.stream.push(Kind::Rename as u16, &[(15, b"o257-1-0"), (16, b"d0")]);
        self.dirs.push(b"d0".to_vec());
        self.stream.push(Kind::Mkfile as u16, &[(15, b"a")]);
        self.files.push(b"a".to_vec());
        for _ in 0..=self.random.below(24) {
            match self.random.below(10) {
                0..=2 => self.make(),
                3 => self.name(),
                4..=6 => self.data(),
                7..=8 => self.attribute(),
                _ if self.random.one_in(20) => {
                    let kind = u16::try_from(self.random.below(40)).unwrap();
                    let path = self.any();
                    self.stream.push(kind, &[(15, &path)]);
                }
                _ => {}
            }
        }
        if !self.random.one_in(20) {
            self.stream.push(Kind::End as u16, &[]);
        }
        self.stream
    }
}

/// Damages a stream. Checksums are right again afterwards in most kinds of damage.
fn mutate(stream: &Stream, other: &Stream, random: &mut Random) -> Vec<u8> {
    let mut damaged = stream.clone();
    let at = random.below(damaged.commands.len());
    match random.below(12) {
        // Nothing: the commands are bad enough.
        0..=4 => {}
        5..=6 => {
            for _ in 0..=random.below(4) {
                let command = &mut damaged.commands[at];
                let place = random.below(command.len().saturating_sub(4)) + 4;
                if let Some(byte) = command.get_mut(place) {
                    *byte ^= 1 << random.below(8);
                }
            }
            fix(&mut damaged.commands[at]);
        }
        7 => {
            // A length that is too long or short, of the command or of an attribute.
            let command = &mut damaged.commands[at];
            let place = if random.one_in(2) { 0 } else { 12 };
            if command.len() >= place + 4 {
                let wrong = [0u32, 1, 0xffff, 0x10_0000, u32::MAX, u32::try_from(random.below(200)).unwrap()];
                let wrong = wrong[random.below(wrong.len())].to_le_bytes();
                let width = if place == 0 { 4 } else { 2 };
                command[place..place + width].copy_from_slice(&wrong[..width]);
            }
            fix(command);
        }
        8 => damaged.commands.swap(at, random.below(stream.commands.len())),
        9 => {
            let from = random.below(other.commands.len());
            damaged.commands.splice(at..at, other.commands[from..].iter().cloned());
        }
        10 => {
            let mut bytes = damaged.bytes();
            bytes.truncate(random.below(bytes.len()));
            return bytes;
        }
        _ => {
            let mut bytes = damaged.bytes();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                bytes[at] = u8::try_from(random.next() & 0xff).unwrap();
            }
            return bytes;
        }
    }
    damaged.bytes()
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
    let stage = Stage::new();
    let mut previous = Stream::new(2);
    previous.begin(false);
    let (mut reached, mut whole, mut commands) = (0u64, 0u64, 0u64);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for case in seed..seed + cases {
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
        stream.push(kind as u16, &[(15, b"a")]);
        let mut applier = Applier::new(open(&stage.pool.path("work")), None, ContentClass::Trusted, Limits::default()).unwrap();
        assert_eq!(applier.feed(&stream.bytes()).unwrap_err().kind(), Reason::Unsupported);
    }
}
