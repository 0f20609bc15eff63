//! Streams that should not be: a generator of commands, and damage to their bytes.

use dotgraft_agent::stream::parse::CommandKind as Kind;

use super::Random;
use super::build::{OWN, PARENT, Stream, fix};

/// Makes streams: mostly what could be, with something that should not be every now and then.
pub struct Generator<'a> {
    pub random: &'a mut Random,
    pub stream: Stream,
    /// Names that are there if everything went well so far.
    pub files: Vec<Vec<u8>>,
    pub dirs: Vec<Vec<u8>>,
    pub others: Vec<Vec<u8>>,
    pub increment: bool,
    pub outside: Vec<u8>,
    /// One command in so many is hostile.
    pub malice: usize,
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

    pub fn generate(mut self) -> Stream {
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
pub fn mutate(stream: &Stream, other: &Stream, random: &mut Random) -> Vec<u8> {
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
