//! What a copy keeps beyond what the kernel's streams say: inode flags, holes, and clones that can't be clones on the other side.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dotgraft_agent::btrfs::encoded::clone_range;
use dotgraft_agent::driver::{Driver, MountMode, MountWhat};
use dotgraft_agent::stream::treedigest::tree_digest;
use dotgraft_agent::stream::{Applier, ApplierState, ContentClass, Limits, StreamError};
use dotgraft_engine::ids::CommitId;
use dotgraft_engine::model::{Commit, Origin};
use rustix::fs::{FallocateFlags, IFlags, ioctl_getflags};

use crate::support::*;

/// The same seed gives the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What users may set and a copy keeps.
const KEPT: IFlags = IFlags::IMMUTABLE
    .union(IFlags::APPEND)
    .union(IFlags::NOCOW)
    .union(IFlags::NOATIME)
    .union(IFlags::NODUMP)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC)
    .union(IFlags::COMPRESSED)
    .union(IFlags::from_bits_retain(0x400)); // FS_NOCOMP_FL

/// Two nodes' copies of one Filesystem.
struct Pair {
    a: TestPool,
    b: TestPool,
    of_a: Volume,
    of_b: Volume,
}

impl Pair {
    fn new(limit_mib: u64) -> Self {
        let (a, b) = (TestPool::new(1024), TestPool::new(1024));
        let of_a = a.volume(limit_mib);
        let meta = dotgraft_agent::driver::FsMeta { fs_id: of_a.fs, ..b.meta(limit_mib * MIB) };
        b.prepare(&meta).unwrap();
        let of_b = Volume { fs: meta.fs_id, n: meta.qgroup, meta };
        Self { a, b, of_a, of_b }
    }

    /// A commit of a's head.
    fn commit_a(&self, parent: Option<CommitId>) -> Commit {
        let commit = self.of_a.next(parent);
        self.a.commit(self.of_a.n, &commit).unwrap();
        commit
    }

    /// b goes on from `commit`; its head.
    fn head_b(&self, commit: CommitId) -> PathBuf {
        self.b.create_head(self.of_b.fs, self.of_b.n, Some(Origin { fs_id: self.of_b.fs, commit })).unwrap();
        self.b.head(self.of_b.fs)
    }

    fn commit_b(&self, parent: CommitId) -> Commit {
        let commit = self.of_b.next(Some(parent));
        self.b.commit(self.of_b.n, &commit).unwrap();
        commit
    }

    fn there(&self, base: Option<&Commit>, commit: &Commit, version: u32) -> Result<u64, StreamError> {
        let bytes = carry((&self.a, &self.of_a), (&self.b, &self.of_b), base, commit, version)?;
        self.assert_same(commit);
        Ok(bytes)
    }

    fn back(&self, base: &Commit, commit: &Commit) -> Result<u64, StreamError> {
        let bytes = carry((&self.b, &self.of_b), (&self.a, &self.of_a), Some(base), commit, 2)?;
        self.assert_same(commit);
        Ok(bytes)
    }

    fn on_a(&self, commit: &Commit) -> PathBuf {
        self.a.path(self.of_a.fs, &format!("commits/{}", commit.id))
    }

    fn on_b(&self, commit: &Commit) -> PathBuf {
        self.b.path(self.of_b.fs, &format!("commits/{}", commit.id))
    }

    fn assert_same(&self, commit: &Commit) {
        let digest = |path: PathBuf| tree_digest(&File::open(path).unwrap().into()).unwrap().digest;
        assert_eq!(digest(self.on_a(commit)), digest(self.on_b(commit)), "the trees differ");
    }

    fn assert_flags(&self, commit: &Commit, names: &[&str]) {
        for name in names {
            assert_eq!(flags(&self.on_a(commit).join(name)), flags(&self.on_b(commit).join(name)), "{name}, a and b");
        }
    }
}

/// Sends a commit from one pool to the other, as two agents do; how many bytes it took.
fn carry(
    (from, of_from): (&TestPool, &Volume),
    (to, of_to): (&TestPool, &Volume),
    base: Option<&Commit>,
    commit: &Commit,
    version: u32,
) -> Result<u64, StreamError> {
    let base = base.map(|b| b.id);
    let mut stream = from.send(of_from.fs, base, commit.id, version).unwrap();
    let work = to.receive_start(of_to.fs, of_to.n, commit.id, base, None).unwrap();
    let mut applier = Applier::new(work.root, work.base, ContentClass::Trusted, Limits::default())?;
    let mut piece = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let read = stream.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        total += read as u64;
        applier.feed(&piece[..read])?;
    }
    applier.finish()?;
    to.receive_finish(of_to.n, commit).unwrap();
    to.receive_discard(of_to.fs, commit.id).unwrap();
    Ok(total)
}

fn flags(path: &Path) -> IFlags {
    ioctl_getflags(File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap() & KEPT
}

fn chattr(how: &str, path: &Path) {
    run("chattr", &[how, path.to_str().unwrap()]);
}

fn overwrite(path: &Path, bytes: &[u8], at: u64) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn reflink(from: &Path, (at, len): (u64, u64), into: &Path, to: u64) {
    let (src, dst) = (File::open(from).unwrap(), File::options().write(true).open(into).unwrap());
    clone_range(&dst, &src, at, len, to).unwrap();
}

#[test]
fn a_clone_that_the_kernel_refuses_is_copied() {
    let p = Pair::new(400);
    let head = p.a.head(p.of_a.fs);
    File::create(head.join("db")).unwrap();
    chattr("+C", &head.join("db"));
    fs::write(head.join("db"), noise(1, 8 << 20)).unwrap();
    fs::write(head.join("plain"), noise(2, 8 << 20)).unwrap();
    let sparse = File::create(head.join("sparse")).unwrap();
    sparse.write_all_at(&noise(3, 1 << 20), 2 << 20).unwrap();
    sparse.set_len(6 << 20).unwrap();
    let c1 = p.commit_a(None);
    // As a sender of before: b's copy has no `+C`, so there a clone is one, and back on a it can't be.
    p.there(None, &c1, 1).unwrap();
    let head = p.head_b(c1.id);
    run("cp", &["--reflink=always", head.join("db").to_str().unwrap(), head.join("copy").to_str().unwrap()]);
    reflink(&head.join("db"), (0, 1 << 20), &head.join("plain"), 3 << 20);
    reflink(&head.join("plain"), (0, 1 << 20), &head.join("db"), 4 << 20);
    reflink(&head.join("sparse"), (1 << 20, 4 << 20), &head.join("db"), 1 << 20);
    reflink(&head.join("db"), (6 << 20, 1 << 20), &head.join("sparse"), 0);
    let c2 = p.commit_b(c1.id);
    let bytes = p.back(&c1, &c2).unwrap();
    assert!(bytes < 4 << 20, "{bytes} bytes: the kernel sent no clones, so nothing is shown");
    assert!(flags(&p.on_a(&c2).join("db")).contains(IFlags::NOCOW));
}

#[test]
fn what_is_locked_is_no_obstacle_and_is_locked_again() {
    let p = Pair::new(200);
    let head = p.a.head(p.of_a.fs);
    for dir in ["locked", "grows", "quiet"] {
        fs::create_dir(head.join(dir)).unwrap();
        fs::write(head.join(dir).join("f"), dir).unwrap();
    }
    fs::write(head.join("log"), b"1\n").unwrap();
    fs::write(head.join("fixed"), b"fixed").unwrap();
    for (how, name) in [("+i", "locked/f"), ("+i", "locked"), ("+a", "grows"), ("+a", "log"), ("+i", "fixed"), ("+i", "quiet"), ("+i", "")]
    {
        chattr(how, &head.join(name));
    }
    let c1 = p.commit_a(None);
    // As a sender of before: b has none of the flags.
    p.there(None, &c1, 1).unwrap();
    let head = p.head_b(c1.id);
    // Nothing changed at all.
    let same = p.commit_b(c1.id);
    p.back(&c1, &same).unwrap();
    assert_eq!(flags(&p.on_a(&same)), IFlags::IMMUTABLE);
    fs::write(head.join("locked/f"), b"changed").unwrap();
    fs::rename(head.join("grows/f"), head.join("grows/g")).unwrap();
    overwrite(&head.join("log"), b"2\n", 2);
    fs::write(head.join("locked/new"), b"new").unwrap();
    fs::create_dir(head.join("more")).unwrap();
    let c2 = p.commit_b(same.id);
    p.back(&same, &c2).unwrap();
    for (name, flag) in [
        ("", IFlags::IMMUTABLE),
        ("locked", IFlags::IMMUTABLE),
        ("locked/f", IFlags::IMMUTABLE),
        ("grows", IFlags::APPEND),
        ("log", IFlags::APPEND),
        ("fixed", IFlags::IMMUTABLE),
        ("quiet", IFlags::IMMUTABLE),
    ] {
        assert_eq!(flags(&p.on_a(&c2).join(name)), flag, "{name:?}");
    }
    assert_eq!(flags(&p.on_a(&c2).join("locked/new")), IFlags::empty());
}

/// The names that [`flagged`] makes.
const FLAGGED: [&str; 12] = ["", "db", "db/data", "db/sub", "db/cow", "fixed", "log", "dir", "dir/f", "odd", "small", "plain"];

fn flagged(head: &Path) {
    let file = |name: &str| File::create(head.join(name)).map(drop).unwrap();
    fs::create_dir(head.join("db")).unwrap();
    file("db/cow");
    chattr("+C", &head.join("db"));
    file("db/data");
    fs::create_dir(head.join("db/sub")).unwrap();
    fs::write(head.join("db/data"), noise(1, 1 << 20)).unwrap();
    fs::write(head.join("db/cow"), noise(2, 1 << 20)).unwrap();
    for name in ["fixed", "log", "odd", "small", "plain"] {
        fs::write(head.join(name), name).unwrap();
    }
    fs::create_dir(head.join("dir")).unwrap();
    fs::write(head.join("dir/f"), b"f").unwrap();
    chattr("+AdS", &head.join("odd"));
    chattr("+c", &head.join("small"));
    chattr("+i", &head.join("fixed"));
    chattr("+a", &head.join("log"));
    chattr("+D", &head.join("dir"));
    chattr("+i", &head.join("dir/f"));
    chattr("+a", &head.join("dir"));
    chattr("+i", head);
}

#[test]
fn inode_flags_arrive_in_full_copies_and_by_increments() {
    let p = Pair::new(200);
    let head = p.a.head(p.of_a.fs);
    flagged(&head);
    let c1 = p.commit_a(None);
    p.there(None, &c1, 2).unwrap();
    p.assert_flags(&c1, &FLAGGED);
    assert_eq!(flags(&p.on_b(&c1).join("db/data")), IFlags::NOCOW);
    assert_eq!(flags(&p.on_b(&c1).join("db/cow")), IFlags::empty());
    assert_eq!(flags(&p.on_b(&c1)), IFlags::IMMUTABLE);

    let head = p.head_b(c1.id);
    chattr("-i", &head);
    fs::write(head.join("plain"), b"changed").unwrap();
    chattr("-i", &head.join("fixed"));
    fs::rename(head.join("fixed"), head.join("free")).unwrap();
    std::io::Write::write_all(&mut File::options().append(true).open(head.join("log")).unwrap(), b"more").unwrap();
    fs::write(head.join("db/next"), noise(4, 1 << 20)).unwrap();
    fs::write(head.join("empty-then-nocow"), b"").unwrap();
    fs::write(head.join("dir/new"), b"new").unwrap();
    chattr("+i", &head.join("dir/new"));
    chattr("-a", &head.join("dir"));
    chattr("+i", &head.join("plain"));
    chattr("-A", &head.join("odd"));
    chattr("+i", &head);
    let c2 = p.commit_b(c1.id);
    p.back(&c1, &c2).unwrap();
    let names = ["", "db", "db/data", "db/sub", "db/cow", "db/next", "free", "log", "dir", "dir/f", "dir/new", "odd", "small", "plain"];
    p.assert_flags(&c2, &names);
    assert_eq!(flags(&p.on_a(&c2).join("db/next")), IFlags::NOCOW);
    assert_eq!(flags(&p.on_a(&c2).join("free")), IFlags::empty());

    // `+C` set on a file that was empty in the base and has data now.
    chattr("-i", &head);
    chattr("+c", &head); // so what is made in it at the receiver begins with that
    chattr("+C", &head.join("empty-then-nocow"));
    fs::write(head.join("empty-then-nocow"), noise(5, 1 << 20)).unwrap();
    chattr("+i", &head);
    let c3 = p.commit_b(c2.id);
    p.back(&c2, &c3).unwrap();
    p.assert_flags(&c3, &["", "empty-then-nocow"]);
    assert_eq!(flags(&p.on_a(&c3).join("empty-then-nocow")), IFlags::NOCOW);
    assert!(flags(&p.on_a(&c3)).contains(IFlags::IMMUTABLE));

    // And taken off again, for compression: the kernel tells of that first.
    chattr("-i", &head);
    File::create(head.join("empty-then-nocow")).unwrap();
    chattr("-C", &head.join("empty-then-nocow"));
    chattr("+c", &head.join("empty-then-nocow"));
    fs::write(head.join("empty-then-nocow"), noise(6, 1 << 20)).unwrap();
    let c4 = p.commit_b(c3.id);
    p.back(&c3, &c4).unwrap();
    assert!(!flags(&p.on_a(&c4).join("empty-then-nocow")).contains(IFlags::NOCOW));
}

#[test]
fn inode_flags_arrive_also_if_the_receive_is_cut_anywhere() {
    let p = Pair::new(200);
    let head = p.a.head(p.of_a.fs);
    flagged(&head);
    let c = p.commit_a(None);
    let mut stream = Vec::new();
    p.a.send(p.of_a.fs, None, c.id, 2).unwrap().read_to_end(&mut stream).unwrap();
    let (v, end) = (&p.of_b, stream.len());
    for cut in (0..=20).map(|n| end * n / 20) {
        let work = p.b.receive_start(v.fs, v.n, c.id, None, None).unwrap();
        let mut applier = Applier::new(work.root, None, ContentClass::Trusted, Limits::default()).unwrap();
        applier.feed(&stream[..cut]).unwrap();
        applier.flush().unwrap();
        let offset = applier.position().offset;
        p.b.receive_checkpoint(v.fs, v.n, c.id, offset).unwrap();
        let state = serde_json::to_string(&applier.state()).unwrap();
        drop(applier);
        let work = p.b.receive_start(v.fs, v.n, c.id, None, Some(offset)).unwrap();
        let state = ApplierState::read(&state).unwrap();
        let mut applier = Applier::resume(work.root, None, ContentClass::Trusted, Limits::default(), state).unwrap();
        applier.feed(&stream[usize::try_from(offset).unwrap()..]).unwrap();
        applier.finish().unwrap();
        p.b.receive_finish(v.n, &c).unwrap();
        p.assert_same(&c);
        p.assert_flags(&c, &FLAGGED);
        p.b.delete_commit(v.fs, c.id).unwrap();
        p.b.receive_discard(v.fs, c.id).unwrap();
    }
}

#[test]
fn what_is_made_before_its_directory_is_set_to_compress_does_not_compress() {
    let p = Pair::new(100);
    let head = p.a.head(p.of_a.fs);
    fs::create_dir_all(head.join("d/sub")).unwrap();
    fs::write(head.join("d/f"), b"f").unwrap();
    run("btrfs", &["property", "set", head.join("d").to_str().unwrap(), "compression", "zstd"]);
    fs::write(head.join("d/later"), b"later").unwrap();
    let c = p.commit_a(None);
    p.there(None, &c, 1).unwrap();
    p.assert_flags(&c, &["d", "d/sub", "d/f", "d/later"]);
    assert_eq!(flags(&p.on_b(&c).join("d/f")), IFlags::empty());
    assert_eq!(flags(&p.on_b(&c).join("d/later")), IFlags::COMPRESSED);
}

/// One random change below `root`; most fail now and then, because something is locked, not there or in the way.
fn random_change(root: &Path, random: &mut Random) {
    let name = |random: &mut Random| match random.below(3) {
        0 => root.join(format!("f{}", random.below(4))),
        _ => root.join(format!("d{}/f{}", random.below(3), random.below(4))),
    };
    let (a, b) = (name(random), name(random));
    let block = |random: &mut Random, most: usize| (random.below(most) as u64) << 12;
    let (at, to, len) = (block(random, 200), block(random, 200), block(random, 100) + 4096);
    let open = |path: &Path| File::options().read(true).write(true).create(true).truncate(false).open(path);
    let flag = |random: &mut Random| *random.pick(&["i", "a", "C", "A", "d", "S", "c", "D"]);
    let set = |how: String, path: &Path| Command::new("chattr").arg(how).arg(path).stderr(Stdio::null()).status().map(drop);
    let _ = match random.below(15) {
        0 => fs::create_dir(root.join(format!("d{}", random.below(3)))),
        1 => fs::rename(&a, &b),
        2 => fs::remove_file(&a),
        3 => fs::hard_link(&a, &b),
        4..=6 => {
            let bytes = noise(random.next(), usize::try_from(len).unwrap() - random.below(4000));
            open(&a).and_then(|file| file.write_all_at(&bytes, at))
        }
        7 => open(&a).and_then(|file| file.set_len(to + 5)),
        8 => open(&a).and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), at, len * 20)?)),
        9 => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            open(&a).and_then(|file| Ok(rustix::fs::fallocate(&file, punch, at, len)?))
        }
        10 => File::open(&a).and_then(|from| Ok(clone_range(open(&b)?, from, at, len, to)?)),
        11 => set(format!("+{}", flag(random)), &a),
        12 => set(format!("-{}", flag(random)), &a),
        13 => set(format!("+{}", flag(random)), a.parent().unwrap()),
        _ => set("-ia".to_owned(), a.parent().unwrap()),
    };
}

/// Flags by path; but for those of compression, which the kernel decides anew while it writes.
fn all_flags(root: &Path) -> Vec<(PathBuf, IFlags)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let flags = flags(&path) - IFlags::COMPRESSED - IFlags::from_bits_retain(0x400);
        found.push((path.strip_prefix(root).unwrap().to_owned(), flags));
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Some of the way an older sender's stream, so that the two sides don't have the same flags.
#[test]
fn random_histories_go_there_and_back() {
    let setting = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let first = setting("DOTGRAFT_SEED", 1);
    for seed in first..first + setting("DOTGRAFT_HISTORIES", 3) {
        let random = &mut Random(seed);
        let older = seed % 3 == 0;
        let p = Pair::new(900);
        let mut last: Option<Commit> = None;
        for round in 0..6 {
            let what = format!("seed {seed}, round {round}");
            let (from, to, v, w) = if round % 2 == 0 { (&p.a, &p.b, &p.of_a, &p.of_b) } else { (&p.b, &p.a, &p.of_b, &p.of_a) };
            if let Some(commit) = &last {
                from.drop_head(v.fs).unwrap();
                from.create_head(v.fs, v.n, Some(Origin { fs_id: v.fs, commit: commit.id })).unwrap();
            }
            for _ in 0..random.below(80) {
                random_change(&from.head(v.fs), random);
            }
            let commit = v.next(last.as_ref().map(|c| c.id));
            from.commit(v.n, &commit).unwrap();
            let version = if older && round < 2 { 1 } else { 2 };
            carry((from, v), (to, w), last.as_ref(), &commit, version).unwrap_or_else(|e| panic!("{what}: {e}"));
            p.assert_same(&commit);
            if !older {
                assert_eq!(all_flags(&p.on_a(&commit)), all_flags(&p.on_b(&commit)), "{what}");
            }
            last = Some(commit);
        }
    }
}

/// The bytes of a commit's files that are on the disk.
fn on_disk(path: &Path) -> u64 {
    let out = run("du", &["-s", "--block-size=1", path.to_str().unwrap()]);
    out.split_whitespace().next().unwrap().parse().unwrap()
}

fn holes_stay_holes(version: u32) -> (u64, u64) {
    let p = Pair::new(600);
    let head = p.a.head(p.of_a.fs);
    fs::write(head.join("grown"), noise(1, 1 << 20)).unwrap();
    fs::write(head.join("dug"), noise(2, 64 << 20)).unwrap();
    let sparse = File::create(head.join("sparse")).unwrap();
    sparse.write_all_at(&noise(3, 4096), 1 << 30).unwrap();
    sparse.set_len(3 << 30).unwrap();
    let c1 = p.commit_a(None);
    p.there(None, &c1, version).unwrap();
    let open = |name: &str| File::options().write(true).open(head.join(name)).unwrap();
    rustix::fs::fallocate(open("grown"), FallocateFlags::empty(), 0, 400 << 20).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(open("sparse"), punch, 1 << 30, 4096).unwrap();
    rustix::fs::fallocate(open("dug"), punch, (1 << 20) + 5, 62 << 20).unwrap();
    let c2 = p.commit_a(Some(c1.id));
    let before = p.b.used(&p.of_b);
    let bytes = p.there(Some(&c1), &c2, version).unwrap();
    let disk = (on_disk(&p.on_a(&c2)), on_disk(&p.on_b(&c2)));
    assert!(disk.1 <= disk.0, "{disk:?} bytes on disk, here and there");
    (bytes, p.b.used(&p.of_b) - before)
}

#[test]
fn zeros_arrive_as_holes_and_cost_nothing_on_the_way() {
    let (bytes, grown) = holes_stay_holes(2);
    assert!(bytes < 1 << 20 && grown < 4 << 20, "{bytes} bytes were sent, {grown} more are charged");
}

#[test]
fn zeros_of_a_sender_that_writes_them_out_arrive_as_holes_too() {
    let (_, grown) = holes_stay_holes(1);
    assert!(grown < 4 << 20, "{grown} more bytes are charged");
}

#[test]
fn a_nested_subvolume_without_copy_on_write_is_shared_and_stays_so() {
    let t = TestPool::new(1024);
    let v = t.volume(200);
    let nested = t.head(v.fs).join("n");
    run("btrfs", &["subvolume", "create", nested.to_str().unwrap()]);
    chattr("+C", &nested);
    fs::write(nested.join("db"), noise(1, 32 << 20)).unwrap();
    fs::write(nested.join("fixed"), b"fixed").unwrap();
    chattr("+i", &nested.join("fixed"));
    let c = v.next(None);
    let before = t.used(&v);
    t.commit(v.n, &c).unwrap();
    let made = t.path(v.fs, &format!("commits/{}/n", c.id));
    assert_eq!(flags(&made), IFlags::NOCOW);
    assert_eq!(flags(&made.join("db")), IFlags::NOCOW);
    assert_eq!(flags(&made.join("fixed")), IFlags::IMMUTABLE | IFlags::NOCOW);
    assert_eq!(fs::read(made.join("db")).unwrap(), noise(1, 32 << 20));
    let grown = t.used(&v) - before;
    assert!(grown < 8 << 20, "{grown} bytes for what is shared");
}

/// What a program with no user's rights but those of the file gets of it: its user, and its effective capabilities.
fn gained(dir: &Path, as_user: &str) -> (String, String) {
    let run_as = |program: &str, args: &[&str]| {
        let path = dir.join(program);
        run("setpriv", &[&["--reuid", as_user, "--clear-groups", path.to_str().unwrap()], args].concat())
    };
    let status = run_as("capable", &["/proc/self/status"]);
    let caps = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap().trim().to_owned();
    (run_as("setuid", &["-u"]).trim().to_owned(), caps)
}

#[test]
fn what_another_node_plants_arrives_and_gives_no_rights_through_any_mount() {
    let p = Pair::new(200);
    let head = p.a.head(p.of_a.fs);
    fs::copy("/usr/bin/id", head.join("setuid")).unwrap();
    fs::set_permissions(head.join("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::copy("/usr/bin/cat", head.join("capable")).unwrap();
    // cap_net_raw=ep
    let capability = [1_u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(head.join("capable"), "security.capability", &capability, rustix::fs::XattrFlags::empty()).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, head.join("null"), rustix::fs::FileType::CharacterDevice, mode, null).unwrap();
    let c = p.commit_a(None);
    p.there(None, &c, 2).unwrap();

    let opened = |at: &Path| File::open(at.join("null")).map(drop).map_err(|e| e.kind());
    let denied = Err(std::io::ErrorKind::PermissionDenied);
    let in_pool = p.on_b(&c);
    assert_eq!(opened(&in_pool), denied, "through the pool's own mount");
    let ran = Command::new(in_pool.join("setuid")).output().map(drop).map_err(|e| e.kind());
    assert_eq!(ran, denied, "through the pool's own mount");
    fs::set_permissions(p.b.place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (usual, asked) = (p.b.target("usual"), p.b.target("asked"));
    p.b.mount(p.of_b.fs, MountWhat::Commit(c.id), &usual, MountMode::READ).unwrap();
    p.b.mount(p.of_b.fs, MountWhat::Commit(c.id), &asked, MountMode::READ.with_options(&["suid", "dev"]).unwrap()).unwrap();
    assert_eq!(gained(&usual, "1000"), ("1000".to_owned(), "0".repeat(16)));
    assert_eq!(opened(&usual), denied);
    // And where the class asks for it, all of it is as it was.
    assert_eq!(gained(&asked, "1000"), ("0".to_owned(), "0000000000002000".to_owned()));
    assert_eq!(opened(&asked), Ok(()));
    for at in [&usual, &asked] {
        p.b.unmount(at).unwrap();
    }
    // What an agent of before has mounted is taken over without.
    let (id, place) = (p.b.pool.pool().id, p.b.place);
    drop(p.b.pool);
    rustix::mount::mount_remount(place.mount_point(), rustix::mount::MountFlags::BIND, c"").unwrap();
    assert_eq!(opened(&in_pool), Ok(()), "else this shows nothing");
    let again = place.open(Some(id)).unwrap();
    assert_eq!(opened(&in_pool), denied);
    drop(again);
}
