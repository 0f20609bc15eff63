//! The journal as its users meet it: scopes, all or nothing, binding to a pool, formats, concurrency, latency.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dotgraft_agent::journal::{self, Entry, Journal, JournalError, Options, Scope};
use dotgraft_engine::ids::{FsId, PoolId};
use dotgraft_engine::model::Reason;

const POOL: &str = "0198c2a5-7f00-4000-8000-0000000000aa";
const OTHER: &str = "0198c2a5-7f00-4000-8000-0000000000bb";

fn pool() -> PoolId {
    POOL.parse().unwrap()
}
fn fs(n: u64) -> FsId {
    format!("0198c2a5-7f00-7000-8000-{n:012}").parse().unwrap()
}
fn small() -> Options {
    Options { ballast: 64 << 10, observer: None }
}
fn open(dir: &Path) -> Journal {
    Journal::open_with(&dir.join("journal.db"), pool(), small()).unwrap()
}

#[tokio::test]
async fn records_survive_in_their_scope_and_in_key_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal
        .commit(Scope::Fs(fs(2)), vec![Entry::put("A", "z", *b"1"), Entry::put("A", "a", *b"2"), Entry::put("A", "a", *b"3")])
        .await
        .unwrap();
    journal.commit(Scope::Fs(fs(1)), vec![Entry::put("A", "a", *b"other")]).await.unwrap();
    journal.commit(Scope::Node, vec![Entry::put("A", "n", vec![0, 255])]).await.unwrap();
    journal.commit(Scope::Fs(fs(2)), vec![Entry::delete("A", "none"), Entry::put("A", "m", *b""), Entry::delete("A", "z")]).await.unwrap();
    drop(journal);

    let journal = open(dir.path());
    let expected = vec![("a".to_owned(), b"3".to_vec()), ("m".to_owned(), Vec::new())];
    assert_eq!(journal.load(Scope::Fs(fs(2))).await.unwrap(), expected);
    assert_eq!(journal.load(Scope::Node).await.unwrap(), [("n".to_owned(), vec![0, 255])]);
    assert_eq!(journal.load(Scope::Fs(fs(9))).await.unwrap(), []);
    assert_eq!(journal.filesystems().await.unwrap(), [fs(1), fs(2)]);
    journal.commit(Scope::Fs(fs(1)), vec![Entry::delete("A", "a")]).await.unwrap();
    assert_eq!(journal.filesystems().await.unwrap(), [fs(2)], "a Filesystem without records is gone");
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let bad = [String::new(), "k".repeat(journal::MAX_KEY + 1), "nul\0".into()];
    for key in bad {
        let e = journal.commit(Scope::Node, vec![Entry::put("A", "good", *b"v"), Entry::put("A", key, *b"v")]).await.unwrap_err();
        assert_eq!(e.kind(), Reason::Invalid);
    }
    let e = journal.commit(Scope::Node, vec![Entry::put("A", "k", vec![0; journal::MAX_VALUE + 1])]).await.unwrap_err();
    assert_eq!(e.kind(), Reason::Invalid);
    assert_eq!(journal.load(Scope::Node).await.unwrap(), []);
    journal.commit(Scope::Node, vec![Entry::put("A", "k".repeat(journal::MAX_KEY), vec![7; journal::MAX_VALUE])]).await.unwrap();
}

#[tokio::test]
async fn a_journal_belongs_to_one_pool() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    assert_eq!(journal::pool_of(&path).unwrap(), None);
    assert!(!path.exists(), "asking must not make one");
    open(dir.path()).commit(Scope::Node, vec![Entry::put("A", "k", *b"v")]).await.unwrap();
    assert_eq!(journal::pool_of(&path).unwrap(), Some(pool()));
    let e = Journal::open(&path, OTHER.parse().unwrap()).unwrap_err();
    assert_eq!(e, JournalError::OtherPool { bound: pool(), asked: OTHER.parse().unwrap() });
    assert_eq!(open(dir.path()).load(Scope::Node).await.unwrap().len(), 1, "nothing was changed");
}

#[test]
fn only_one_agent_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    assert_eq!(Journal::open_with(&dir.path().join("journal.db"), pool(), small()).unwrap_err(), JournalError::InUse);
}

#[test]
fn foreign_newer_and_damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    std::fs::write(&path, [7u8; 4096]).unwrap();
    assert!(matches!(Journal::open(&path, pool()), Err(JournalError::NotAJournal { .. })));
    assert!(journal::pool_of(&path).is_err(), "unreadable is not the same as absent");
    std::fs::remove_file(&path).unwrap();

    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(Journal::open(&path, pool()), Err(JournalError::NotAJournal { .. })));
    std::fs::remove_file(&path).unwrap();

    drop(open(dir.path()));
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 2").unwrap();
    let e = Journal::open(&path, pool()).unwrap_err();
    assert_eq!(e, JournalError::TooNew { found: 2, known: 1 });
    assert_eq!(e.kind(), Reason::Unsupported);
}

#[tokio::test]
async fn a_journal_of_format_1_is_read_and_a_new_one_looks_the_same() {
    let golden = include_str!("journal_golden_v1.sql");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(golden).unwrap();
    let old = open(dir.path());
    assert_eq!(old.load(Scope::Node).await.unwrap(), [("qgroup".to_owned(), vec![1, 7])]);
    assert_eq!(old.load(Scope::Fs(fs(1))).await.unwrap(), [("authority".to_owned(), b"{}".to_vec()), ("commit/x".to_owned(), Vec::new())]);
    drop(old);

    let fresh = tempfile::tempdir().unwrap();
    drop(open(fresh.path()));
    assert_eq!(shape(&path), shape(&fresh.path().join("journal.db")));
}

/// Tables as SQLite keeps their text, and the two numbers in the header.
fn shape(path: &Path) -> (Vec<String>, i64, i64) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let mut query = conn.prepare("SELECT sql FROM sqlite_schema ORDER BY name").unwrap();
    let sql = query.query_map([], |r| r.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    let number = |name| conn.pragma_query_value(None, name, |r| r.get(0)).unwrap();
    (sql, number("application_id"), number("user_version"))
}

#[test]
fn durability_is_asked_for_and_nothing_is_mapped() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let _journal = open(dir.path());
    assert!(dir.path().join("journal.db-wal").exists());
    assert!(!dir.path().join("journal.db-shm").exists(), "a mapped index raises SIGBUS on a full disk");
    for name in ["journal.db", "journal.db-wal", "journal.ballast"] {
        assert_eq!(std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_many_actors_share_transactions_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new((0usize, 0usize)));
    let tally = Arc::clone(&seen);
    let observer: journal::Observer = Arc::new(move |o| {
        let mut t = tally.lock().unwrap();
        *t = (t.0 + 1, t.1 + o.requests);
    });
    let journal = Journal::open_with(&dir.path().join("journal.db"), pool(), Options { ballast: 0, observer: Some(observer) }).unwrap();
    let actors: Vec<_> = (0..50)
        .map(|n| {
            let journal = journal.clone();
            tokio::spawn(async move {
                for i in 0..20 {
                    let entries = vec![Entry::put("A", "last", i.to_string()), Entry::put("A", format!("k{i:02}"), *b"v")];
                    journal.commit(Scope::Fs(fs(n)), entries).await.unwrap();
                    let now: BTreeMap<_, _> = journal.load(Scope::Fs(fs(n))).await.unwrap().into_iter().collect();
                    assert_eq!(now["last"], i.to_string().into_bytes(), "an actor reads its own writes");
                }
            })
        })
        .collect();
    for actor in actors {
        actor.await.unwrap();
    }
    assert_eq!(journal.filesystems().await.unwrap().len(), 50);
    let (transactions, requests) = *seen.lock().unwrap();
    assert_eq!(requests, 1000);
    assert!(transactions < 500, "{transactions} transactions for {requests} requests: no group commit");
}

#[tokio::test]
async fn a_commit_is_fast() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let mut took: Vec<Duration> = Vec::new();
    for i in 0..500 {
        let started = Instant::now();
        journal.commit(Scope::Fs(fs(i % 20)), vec![Entry::put("A", format!("k{}", i % 7), format!("{i:0400}"))]).await.unwrap();
        took.push(started.elapsed());
    }
    took.sort();
    println!("journal commit: median {:?}, p99 {:?}, max {:?}", took[250], took[495], took[499]);
    assert!(took[250] < Duration::from_millis(200), "median {:?}: does something sync twice?", took[250]);
}
