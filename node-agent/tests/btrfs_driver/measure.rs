//! Numbers, not promises: `cargo test -p dotgraft-agent --test btrfs_driver measure -- --ignored --nocapture --test-threads 1`.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dotgraft_agent::btrfs::SendOptions;
use dotgraft_agent::driver::Driver;

use crate::support::*;

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("median {:?}, p90 {:?}, p99 {:?}, max {:?} of {}", at(50), at(90), at(99), at(100), times.len())
}

#[test]
#[ignore = "measures"]
fn commit_latency_with_under_8_mib_dirty() {
    let t = TestPool::new(4096);
    let v = t.volume(2000);
    for dirty in [0_usize, 100_000, 4 << 20, 8 << 20] {
        let mut parent = None;
        let times = (0..100)
            .map(|n| {
                fs::write(t.head(v.fs).join("f"), noise(n, dirty)).unwrap();
                let c = v.next(parent);
                let started = Instant::now();
                t.commit(v.n, &c).unwrap();
                let took = started.elapsed();
                parent = Some(c.id);
                took
            })
            .collect();
        println!("commit, {dirty} bytes dirty: {}", spread(times));
        for c in t.inspect(v.fs).unwrap().commits {
            t.delete_commit(v.fs, c.id).unwrap();
        }
    }
    let times = (0..50)
        .map(|_| {
            let started = Instant::now();
            t.holders(v.fs).unwrap();
            started.elapsed()
        })
        .collect();
    println!("holders: {}", spread(times));
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let times = (0..50)
        .map(|_| {
            let started = Instant::now();
            assert!(!t.head_changed_since(v.fs, c.id).unwrap());
            started.elapsed()
        })
        .collect();
    println!("head_changed_since, unchanged: {}", spread(times));
    let times = (0..20)
        .map(|_| {
            let c = v.next(None);
            let started = Instant::now();
            t.fence(v.n, &c).unwrap();
            let took = started.elapsed();
            t.thaw(v.fs).unwrap();
            took
        })
        .collect();
    println!("fence: {}", spread(times));
}

#[test]
#[ignore = "measures"]
fn send_speed_against_btrfs_send() {
    let t = TestPool::new(6144);
    let big = t.volume(4000);
    for n in 0..8 {
        fs::write(t.head(big.fs).join(n.to_string()), noise(n, 128 << 20)).unwrap();
    }
    let small = t.volume(2000);
    for n in 0..50_000_u64 {
        let dir = t.head(small.fs).join((n / 1000).to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(n.to_string()), noise(n, 2048 + usize::try_from(n * 7 % 6144).unwrap())).unwrap();
    }
    for (name, v) in [("A: 1 GiB in 8 files", &big), ("B: 50,000 files of 2-8 KiB", &small)] {
        let c = v.next(None);
        t.commit(v.n, &c).unwrap();
        let path = t.path(v.fs, &format!("commits/{}", c.id));
        let mut best = [Duration::MAX; 3];
        for _ in 0..3 {
            for (slot, best) in best.iter_mut().enumerate() {
                drop_caches();
                let started = Instant::now();
                if slot == 0 {
                    let mut child =
                        Command::new("btrfs").args(["send", "--proto", "2", "-q"]).arg(&path).stdout(Stdio::piped()).spawn().unwrap();
                    drain(&mut child.stdout.take().unwrap());
                    assert!(child.wait().unwrap().success());
                } else {
                    drain(
                        &mut t.send_with(v.fs, None, c.id, SendOptions { version: 2, compressed: false, read_ahead: slot == 2 }).unwrap(),
                    );
                }
                *best = started.elapsed().min(*best);
            }
        }
        println!("{name}: btrfs send {:?}, ours without read-ahead {:?}, with {:?}", best[0], best[1], best[2]);
        let started = Instant::now();
        println!("{name}: estimate {:?} in {:?}", t.estimate(v.fs, None, c.id).unwrap(), started.elapsed());
    }
}

fn drain(stream: &mut impl Read) {
    let mut buf = vec![0; 256 << 10];
    while stream.read(&mut buf).unwrap() > 0 {}
}

/// What it costs to ask for the flags of each new inode, warm: beside the kernel's own stream.
#[test]
#[ignore = "measures"]
fn completing_a_stream_of_50_000_small_files() {
    let t = TestPool::new(2048);
    let v = t.volume(1500);
    for d in 0..50 {
        let dir = t.head(v.fs).join(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        for f in 0..1000 {
            fs::write(dir.join(f.to_string()), b"small").unwrap();
        }
    }
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let commit = t.path(v.fs, &format!("commits/{}", c.id));
    for _ in 0..5 {
        let started = Instant::now();
        let bytes = std::io::copy(&mut t.send(v.fs, None, c.id, 2).unwrap(), &mut std::io::sink()).unwrap();
        let completed = started.elapsed();
        let started = Instant::now();
        let mut kernel =
            Command::new("btrfs").args(["send", "-q", "--proto", "2", commit.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
        let plain = std::io::copy(&mut kernel.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        kernel.wait().unwrap();
        println!("{bytes} bytes completed in {completed:?}, {plain} as the kernel has them in {:?}", started.elapsed());
    }
}
