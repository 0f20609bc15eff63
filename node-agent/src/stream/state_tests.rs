//! What a checkpoint keeps of a receive, as every version wrote it.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;
use crate::stream::frame::Time;

/// As an agent of 0.1 wrote it, 48 MiB into a stream.
const FIRST: &str = include_str!("golden/state.v1.json");

/// The same where inodes are owed flags: one of 0.1 must not finish it.
const OWING: &str = include_str!("golden/state.v2.json");

fn time(seconds: i64, nanoseconds: u32) -> Time {
    Time { seconds, nanoseconds }
}

fn json(state: &ApplierState) -> String {
    serde_json::to_string(state).unwrap() + "\n"
}

#[test]
fn the_state_is_written_as_in_its_golden_file_and_read_from_it() {
    assert_eq!(json(&ApplierState::read(FIRST).unwrap()), FIRST);
    let owing = ApplierState::read(OWING).unwrap();
    assert!(owing.owes && !ApplierState::read(FIRST).unwrap().owes);
    assert_eq!(json(&owing), OWING);
    assert_eq!([false, true].map(ApplierState::version_for), [1, 2]);
}

/// What is held back is rarely there when a checkpoint is taken.
#[test]
fn what_is_held_back_is_written_as_ever() {
    let held = |what| serde_json::to_string(&Pending { path: PathBytes(b"a/\xff".to_vec()), what }).unwrap();
    assert_eq!(held(New::File), r#"{"path":"YS//","what":"File"}"#);
    assert_eq!(held(New::Directory), r#"{"path":"YS//","what":"Directory"}"#);
    assert_eq!(held(New::Symlink(Target(b"../\xfe".to_vec()))), r#"{"path":"YS//","what":{"Symlink":"Li4v/g=="}}"#);
    assert_eq!(held(New::Node { mode: 4480, rdev: 5 }), r#"{"path":"YS//","what":{"Node":{"mode":4480,"rdev":5}}}"#);
}

#[test]
fn a_newer_state_is_newer_and_a_broken_one_damaged() {
    let newer = FIRST.replacen("\"version\":1", "\"version\":3", 1);
    assert!(matches!(ApplierState::read(&newer), Err(FormatError::Newer { version: 3, .. })));
    let broken = FIRST.replacen("\"offset\"", "\"offsets\"", 1);
    assert!(matches!(ApplierState::read(&broken), Err(FormatError::Damaged { .. })));
}

fn what() -> impl Strategy<Value = New> {
    prop_oneof![
        Just(New::File),
        Just(New::Directory),
        proptest::collection::vec(1..=u8::MAX, 1..16).prop_map(|t| New::Symlink(Target(t))),
        (any::<u32>(), any::<u32>()).prop_map(|(mode, rdev)| New::Node { mode, rdev }),
    ]
}

fn path() -> impl Strategy<Value = PathBytes> {
    proptest::collection::vec(128..=u8::MAX, 1..16).prop_map(PathBytes)
}

fn times() -> impl Strategy<Value = Times> {
    (any::<i64>(), any::<i64>(), 0..1_000_000_000_u32).prop_map(|(a, m, n)| Times { atime: time(a, n), mtime: time(m, n) })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(64)
    })]

    #[test]
    fn whatever_a_receive_had_comes_back(
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        held in proptest::option::of((path(), what())),
        root_times in times(),
        dirs in proptest::collection::vec((path(), times()), 0..4),
        ended in any::<bool>(),
        owes in any::<bool>(),
        ids in proptest::option::of((any::<[u8; 16]>(), any::<u64>(), proptest::option::of((any::<[u8; 16]>(), any::<u64>())))),
    ) {
        let mut hasher = ResumableHasher::new();
        hasher.update(&bytes);
        let before = ApplierState {
            version: ApplierState::version_for(owes),
            owes,
            offset: hasher.offset(),
            protocol: Some(Version::V1),
            ids: ids.map(|(uuid, ctransid, parent)| StreamIds { uuid, ctransid, parent }),
            ended,
            hasher,
            pending: held.map(|(path, what)| Pending { path, what }),
            root_times,
            dir_times: dirs,
        };
        let after = ApplierState::read(&json(&before)).unwrap();
        prop_assert_eq!(json(&after), json(&before));
        prop_assert_eq!(after.hasher.finalize(), *blake3::hash(&bytes).as_bytes());
    }
}
