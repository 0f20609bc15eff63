//! The journal's rows as every version wrote them, and as this one does.
//!
//! `format_golden/0.1.rows` is what 0.1 wrote, for ever: it must be read, and mean what it meant. `format_golden/now.rows` is what is
//! written now. If that file has to change, the rule of `engine/src/format.rs` says whether the kind's version has to change as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod format_support;

use dotgraft_engine::filesystem::{Record, Recovered, Row};
use dotgraft_engine::format::{FormatError, Kind};
use dotgraft_engine::model::Reason;
use format_support as any_of;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const FIRST: &str = include_str!("format_golden/0.1.rows");
const NOW: &str = include_str!("format_golden/now.rows");

/// Lines of `key json`.
fn rows_of(golden: &str) -> Vec<(String, Vec<u8>)> {
    golden.lines().filter_map(|line| line.split_once(' ')).map(|(key, body)| (key.to_owned(), body.as_bytes().to_vec())).collect()
}

fn put(record: &Record) -> Vec<(String, Vec<u8>)> {
    let put = |row| match row {
        Row::Put(key, body) => Some((key, body)),
        Row::Delete(_) | Row::DeleteAll => None,
    };
    record.rows().into_iter().filter_map(put).collect()
}

/// What was recovered, as the records that would write it again.
fn records_of(r: Recovered) -> Vec<Record> {
    let mut all: Vec<Record> = r.base.map(|b| Record::Base("base", Box::new(b))).into_iter().collect();
    all.extend(r.commits.into_iter().map(|c| Record::Commit("commit", Box::new(c))));
    all.extend(r.removing.into_iter().map(Record::CommitRemoving));
    all.extend(r.requests.into_iter().map(|r| Record::Request("request", Box::new(r))));
    all.extend(r.partial.map(|p| Record::Partial(Box::new(p))));
    all.extend(r.checkpoint.map(|c| Record::Checkpoint(Box::new(c))));
    all.extend(r.jobs.into_iter().map(|j| Record::Job(Box::new(j))));
    all.extend(r.pins.into_iter().map(|p| Record::OriginPin(Box::new(p))));
    all.extend(r.migration.map(|m| Record::Migration("migration", Box::new(m))));
    all
}

fn written(records: &[Record]) -> Vec<(String, Vec<u8>)> {
    records.iter().flat_map(put).collect()
}

fn print(rows: &[(String, Vec<u8>)]) -> String {
    rows.iter().map(|(key, body)| format!("{key} {}\n", String::from_utf8_lossy(body))).collect::<Vec<_>>().concat()
}

#[test]
fn rows_are_written_as_in_the_golden_file() {
    let read = Recovered::parse(&rows_of(NOW)).unwrap();
    assert_eq!(print(&written(&records_of(read))), NOW);
}

#[test]
fn rows_of_the_first_release_are_read_and_mean_the_same() {
    let first = Recovered::parse(&rows_of(FIRST)).unwrap();
    assert_eq!(first, Recovered::parse(&rows_of(NOW)).unwrap(), "the golden files hold the same facts");
    let kinds = |golden: &str| golden.lines().filter_map(|l| l.split([' ', '/']).next()).map(str::to_owned).collect::<Vec<_>>();
    for kind in ["base", "commit", "removing", "request", "partial", "checkpoint", "job", "pin", "migration"] {
        assert!(kinds(FIRST).iter().any(|k| k == kind), "no row of kind {kind} of 0.1 is kept");
    }
}

/// Every row, with its version raised, closes the Filesystem and is named; no other row's version matters.
#[test]
fn a_row_of_a_newer_version_is_refused_by_name() {
    for (n, (key, body)) in rows_of(NOW).into_iter().enumerate() {
        let mut rows = rows_of(NOW);
        let text = String::from_utf8(body).unwrap();
        let newer = if key.starts_with("removing/") { "99".to_owned() } else { text.replacen("\"version\":1", "\"version\":99", 1) };
        assert_ne!(newer, text, "{key}");
        rows[n].1 = newer.into_bytes();
        let error = Recovered::parse(&rows).unwrap_err();
        assert!(matches!(&error, FormatError::Newer { name, version: 99, .. } if *name == key), "{key}: {error}");
        assert_eq!(error.reason(), Reason::FormatNewer);
    }
}

/// Rows inside a row have versions of their own.
#[test]
fn a_newer_row_inside_another_is_refused_too() {
    let inner = [
        ("migration", "\"jobs\":[{\"version\":1"),
        ("migration", "\"requests\":[{\"version\":1"),
        ("partial", "\"target\":{\"version\":1"),
    ];
    for (kind, inner) in inner {
        let (key, body) = rows_of(NOW).into_iter().find(|(key, _)| key == kind).unwrap();
        let text = String::from_utf8(body).unwrap();
        let newer = text.replacen(inner, &inner.replace(":1", ":99"), 1);
        assert_ne!(newer, text, "{inner}");
        let error = Recovered::parse(&[(key, newer.into_bytes())]).unwrap_err();
        assert!(matches!(&error, FormatError::Newer { version: 99, .. }), "{inner}: {error}");
    }
}

#[test]
fn a_row_of_an_unknown_kind_is_a_newer_programs() {
    let error = Recovered::parse(&[("aside/1".to_owned(), b"{}".to_vec())]).unwrap_err();
    assert_eq!(error, FormatError::Unknown { name: "aside/1".into() });
    assert_eq!(error.reason(), Reason::FormatNewer);
}

#[test]
fn every_kind_is_listed_once() {
    let mut all = Kind::ALL.to_vec();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), Kind::ALL.len());
}

fn back(records: &[Record]) -> Vec<Record> {
    records_of(Recovered::parse(&written(records)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(64)
    })]

    #[test]
    fn whatever_a_row_says_comes_back(
        base in any_of::base(),
        commit in any_of::commit(),
        removing in any_of::id(),
        request in any_of::request(),
        partial in any_of::partial(),
        checkpoint in any_of::checkpoint(),
        job in any_of::job(),
        pin in any_of::pin(),
        migration in any_of::migration(),
    ) {
        let records = vec![
            Record::Base("base", Box::new(base)),
            Record::Commit("commit", Box::new(commit)),
            Record::CommitRemoving(removing),
            Record::Request("request", Box::new(request)),
            Record::Partial(Box::new(partial)),
            Record::Checkpoint(Box::new(checkpoint)),
            Record::Job(Box::new(job)),
            Record::OriginPin(Box::new(pin)),
            Record::Migration("migration", Box::new(migration)),
        ];
        prop_assert_eq!(back(&records), records);
    }
}
