//! The journal on a full disk (failures.md row 11): small records still get through, nothing acknowledged is lost.
//!
//! Needs root: the child mounts a small tmpfs in a mount namespace of its own, which vanishes with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dotgraft_agent::journal::{BALLAST_BYTES, Entry, Journal, JournalError, Scope};
use dotgraft_engine::ids::{FsId, PoolId};

#[test]
fn on_a_full_disk_deletes_and_small_records_still_work() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=48m none "$JOURNAL_DIR" && exec "$@""#;
    let out = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_fills_the_disk", "--ignored", "--nocapture"])
        .env("JOURNAL_DIR", dir.path())
        .output()
        .expect("needs `unshare` and root");
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "started by the test above as a child process"]
async fn child_fills_the_disk() {
    let dir = std::env::var("JOURNAL_DIR").unwrap();
    let dir = Path::new(&dir);
    let (path, ballast) = (dir.join("journal.db"), dir.join("journal.ballast"));
    let pool: PoolId = "0198c2a5-7f00-4000-8000-0000000000aa".parse().unwrap();
    let scope = Scope::Fs("0198c2a5-7f00-7000-8000-000000000001".parse::<FsId>().unwrap());
    let big = |i: u32| vec![Entry::put("Big", format!("big{i:05}"), vec![7u8; 64 << 10])];

    let journal = Journal::open(&path, pool).unwrap();
    assert_eq!(std::fs::metadata(&ballast).unwrap().len(), BALLAST_BYTES);
    assert!(!journal.low_on_space());
    let fill = fill_up(dir);

    // Big records first go through with the space of the ballast, then are refused.
    let mut stored = 0;
    let refused = loop {
        match journal.commit(scope, big(stored)).await {
            Ok(()) => stored += 1,
            Err(e) => break e,
        }
        assert!(stored < 1000, "the disk was never full");
    };
    assert_eq!(refused, JournalError::Full);
    assert!(journal.low_on_space() && !ballast.exists());
    assert_eq!(journal.load(scope).await.unwrap().len(), stored as usize, "the refused one is not there");

    // Thousands of small records, deletes among them, still go through.
    for i in 0..3000u32 {
        let entries =
            vec![Entry::put("Small", format!("s{}", i % 10), i.to_be_bytes()), Entry::delete("Small", format!("s{}", (i + 5) % 10))];
        journal.commit(scope, entries).await.unwrap_or_else(|e| panic!("small record {i}: {e}"));
    }
    // A full disk at start-up is no obstacle either.
    drop(journal);
    let journal = Journal::open(&path, pool).unwrap();
    assert!(journal.low_on_space());
    for i in 0..stored {
        journal.commit(scope, vec![Entry::delete("Big", format!("big{i:05}"))]).await.unwrap();
    }
    assert_eq!(journal.load(scope).await.unwrap().len(), 5);

    // Space is back, so is the ballast.
    std::fs::remove_file(fill).unwrap();
    for _ in 0..100 {
        if !journal.low_on_space() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!journal.low_on_space());
    assert_eq!(std::fs::metadata(&ballast).unwrap().len(), BALLAST_BYTES);
    journal.commit(scope, big(0)).await.unwrap();
}

/// Writes until the disk has no byte left.
fn fill_up(dir: &Path) -> std::path::PathBuf {
    use std::io::Write;
    let path = dir.join("fill");
    let mut file = std::fs::File::create(&path).unwrap();
    let mut block = vec![1u8; 1 << 20];
    while !block.is_empty() {
        while file.write_all(&block).is_ok() {}
        block.truncate(block.len() / 2);
    }
    path
}
