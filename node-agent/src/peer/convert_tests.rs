//! What is said to a peer is what it hears, whatever the values.

use dotgraft_engine::model::{Versions, VersionsRole};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use prost::Message;

use super::*;

use crate::peer::any_of;

fn offer() -> impl Strategy<Value = Offer> {
    let what = (any_of::commit(), proptest::option::of(any_of::id()), any_of::id(), 1..u128::MAX, any::<u64>());
    let how = (proptest::option::of(1..u64::MAX), any::<u32>(), proptest::option::of(any_of::token()));
    (what, how).prop_map(|((target, base, job, run, epoch), (expected, stream_version, resume))| Offer {
        base: base.filter(|b| *b != target.id),
        target,
        job,
        run_id: uuid::Uuid::from_u128(run),
        epoch: Epoch(epoch),
        expected,
        stream_version,
        kernel_release: "6.18.0-1".into(),
        resume,
        from: "n1".parse().unwrap(),
    })
}

fn versions() -> impl Strategy<Value = Versions> {
    let role =
        prop_oneof![Just(VersionsRole::Absent), Just(VersionsRole::Replica), Just(VersionsRole::Owner), Just(VersionsRole::Deleting)];
    let commits = proptest::collection::vec(any_of::commit(), 0..4);
    (role, any::<u64>(), commits, proptest::option::of(any_of::token()), proptest::option::of(any::<u64>()), any::<u32>(), any::<bool>())
        .prop_map(|(role, epoch, commits, resume, free_bytes, stream_version, takes_older)| Versions {
            role,
            epoch: Epoch(epoch),
            commits,
            resume,
            free_bytes,
            stream_version,
            takes_older,
        })
}

#[test]
fn a_commit_of_a_newer_format_is_refused_as_newer() {
    let fs: FsId = "0198c2a5-7f00-7000-8000-000000000001".parse().unwrap();
    let version = |format| wire::Version { id: fs.to_string(), format, ..wire::Version::default() };
    assert_eq!(commit_from_wire(fs, version(99)).unwrap_err().reason, Reason::FormatNewer);
    assert_eq!(commit_from_wire(fs, version(0)).unwrap().version, 1, "of a program that had no versions yet");
    assert!(!Reason::FormatNewer.is_permanent(), "it goes on once the agent is upgraded");
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(64)
    })]

    #[test]
    fn an_offer_arrives_as_it_was_made(offer in offer(), fs in any_of::id::<FsId>()) {
        let sent = wire::Offer::decode(offer_to_wire(fs, &offer).encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(offer_from_wire(sent, offer.from.clone()).unwrap(), (fs, offer));
    }

    #[test]
    fn a_listing_arrives_as_it_was_made(versions in versions(), fs in any_of::id::<FsId>()) {
        let sent = wire::VersionsResponse::decode(versions_to_wire(&versions).encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(versions_from_wire(fs, sent).unwrap(), versions);
    }
}
