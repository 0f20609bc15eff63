//! What a newer program wrote in the pool: the driver says so, and neither replaces nor removes it, whoever asks.

use std::fs;

use dotgraft_agent::driver::{Driver, DriverError};

use crate::support::*;

/// The file as a program of many versions ahead would have written it.
fn raise(path: &std::path::Path) -> String {
    let newer = fs::read_to_string(path).unwrap().replacen("\"version\": 1", "\"version\": 9", 1);
    fs::write(path, &newer).unwrap();
    newer
}

#[test]
fn a_newer_programs_filesystem_is_neither_changed_nor_destroyed() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    fs::write(t.head(v.fs).join("a"), b"1").unwrap();
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let path = t.path(v.fs, "fs.json");
    let newer = raise(&path);
    let results = [t.inspect(v.fs).map(drop), t.write_meta(&v.meta), t.destroy(v.fs, v.n)];
    for result in results {
        assert!(matches!(result, Err(DriverError::FormatNewer(_))), "{result:?}");
    }
    assert_eq!(fs::read_to_string(path).unwrap(), newer);
    assert_eq!(fs::read(t.head(v.fs).join("a")).unwrap(), b"1");
    assert_eq!(fs::read(t.path(v.fs, &format!("commits/{}/a", c.id))).unwrap(), b"1");
    fs::write(t.head(v.fs).join("b"), b"2").unwrap(); // nor is it frozen
}

#[test]
fn a_newer_programs_commit_is_not_taken_for_a_broken_one() {
    let t = TestPool::new(1024);
    let v = t.volume(100);
    let c = v.next(None);
    t.commit(v.n, &c).unwrap();
    let path = t.path(v.fs, &format!("commits/{}.json", c.id));
    let newer = raise(&path);
    let results = [t.inspect(v.fs).map(drop), t.write_commit_meta(&c), t.commit(v.n, &c).map(drop)];
    for result in results {
        assert!(matches!(result, Err(DriverError::FormatNewer(_))), "{result:?}");
    }
    assert_eq!(fs::read_to_string(path).unwrap(), newer);
}
