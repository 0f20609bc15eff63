//! What a user can put in the way of a deletion: subvolumes below paths that are longer than the kernel takes, chains of them, and directories
//! and roots that are locked. And what a path that long does to a commit.

use std::fs;
use std::io::Read;
use std::path::Path;

use dotgraft_agent::driver::{Driver, DriverError};

use crate::support::*;

/// Goes down directories below the first argument, made if they aren't there: as many as the second says, with names as long as the third
/// says. There it makes a subvolume, and as many more, each in the one before, as the fourth says, with names as long, and a file `f` in
/// the last; with a fourth of -1 the file alone. The fifth, `i` or `a`, is a flag for the last directory, and for each subvolume that it makes.
const DOWN: &str = r"
import fcntl, os, struct, sys
deep, long, chain, flag = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
fd = os.open(sys.argv[1], os.O_RDONLY)
def go(name):
    global fd
    new = os.open(name, os.O_RDONLY, dir_fd=fd); os.close(fd); fd = new
def lock(fd):
    if flag == '-': return
    had = bytearray(8); fcntl.ioctl(fd, 0x80086601, had)
    fcntl.ioctl(fd, 0x40086602, struct.pack('q', struct.unpack('q', had)[0] | {'i': 0x10, 'a': 0x20}[flag]))
for n in range(deep):
    try: os.mkdir('d' * long, dir_fd=fd)
    except FileExistsError: pass
    go('d' * long)
fds = [os.dup(fd)]
for n in range(chain + 1):
    args = bytearray(struct.pack('qQQQQQQ', -1, 0, 0, 0, 0, 0, 0) + (b's' * long).ljust(4040, b'\0'))
    fcntl.ioctl(fd, 0x50009418, args)
    go('s' * long)
    if n < 200: fds.append(os.dup(fd))
os.close(os.open('f', os.O_RDWR | os.O_CREAT, dir_fd=fd))
for fd in fds: lock(fd)
";

fn down(at: &Path, deep: u32, long: u32, chain: i32, flag: &str) {
    let args = [deep.to_string(), long.to_string(), chain.to_string(), flag.to_owned()];
    let mut all = vec![at];
    all.extend(args.iter().map(Path::new));
    assert!(python(DOWN, &all).0.wait().unwrap().success());
}

fn is_all_gone(t: &TestPool) -> bool {
    let left = run("btrfs", &["subvolume", "list", t.place.mount_point().to_str().unwrap()]);
    t.list().unwrap().is_empty() && left.is_empty()
}

#[test]
fn a_subvolume_below_a_path_that_is_too_long_for_the_kernel_is_deleted() {
    let t = TestPool::new(512);
    let v = t.volume(64);
    down(&t.head(v.fs), 17, 250, 0, "-");
    t.drop_head(v.fs).unwrap();
    t.create_head(v.fs, v.n, None).unwrap();
    down(&t.head(v.fs), 40, 250, 3, "-");
    t.destroy(v.fs, v.n).unwrap();
    assert!(is_all_gone(&t));
}

#[test]
fn a_chain_of_subvolumes_that_no_path_names_is_deleted() {
    let t = TestPool::new(1024);
    let v = t.volume(256);
    down(&t.head(v.fs), 0, 200, 300, "-");
    t.destroy(v.fs, v.n).unwrap();
    assert!(is_all_gone(&t));
}

#[test]
fn locked_roots_and_directories_of_nested_subvolumes_keep_nothing() {
    let t = TestPool::new(512);
    for flag in ["i", "a"] {
        let v = t.volume(64);
        down(&t.head(v.fs), 2, 10, 3, flag);
        fs::create_dir(t.head(v.fs).join("other")).unwrap();
        down(&t.head(v.fs).join("other"), 0, 10, 1, flag);
        t.drop_head(v.fs).unwrap_or_else(|e| panic!("+{flag}: {e}"));
        t.create_head(v.fs, v.n, None).unwrap();
        down(&t.head(v.fs), 0, 10, 1, flag);
        t.destroy(v.fs, v.n).unwrap_or_else(|e| panic!("+{flag}: {e}"));
        assert!(is_all_gone(&t));
    }
}

#[test]
fn a_path_that_is_too_long_to_be_sent_is_said_so_by_name() {
    let t = TestPool::new(512);
    let v = t.volume(64);
    down(&t.head(v.fs), 17, 250, -1, "-");
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let mut sent = Vec::new();
    let error = t.send(v.fs, None, c.id, 1).unwrap().read_to_end(&mut sent).unwrap_err();
    let said = DriverError::of_read(&error).unwrap().to_string();
    assert!(said.contains("4,096 bytes") && said.contains(&"d".repeat(200)), "{said}");
    t.delete_commit(v.fs, c.id).unwrap();

    let v = t.volume(64);
    down(&t.head(v.fs), 17, 250, 0, "-");
    let refused = t.commit(v.n, &v.next(None)).unwrap_err();
    assert!(matches!(refused, DriverError::NestedSubvolume(_)) && refused.to_string().contains("4,096 bytes"), "{refused}");
    t.freeze(v.fs).unwrap();
    t.thaw(v.fs).unwrap();
}
