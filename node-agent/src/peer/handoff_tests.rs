//! A handoff in both of its forms, between agents of any age.

use dotgraft_proto::bounded::{Bounded, MAX_STRUCTURED};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;

use crate::peer::any_of;

/// As an agent of 0.1 says it: JSON, and nothing else.
const FIRST_JSON: &str = include_str!("golden/handoff.0.1.json");

fn fs() -> FsId {
    "0198c2a5-7f00-7000-8000-000000000001".parse().unwrap()
}

fn first() -> Handoff {
    serde_json::from_str(FIRST_JSON).unwrap()
}

/// What an agent of 0.1 makes of a request: it knows one field beside the id.
fn heard_by_the_first(request: &wire::ExportRequest) -> Handoff {
    serde_json::from_slice(&request.handoff).unwrap()
}

#[test]
fn an_agent_of_0_1_hands_over_to_this_one() {
    let said = wire::ExportRequest { fs_id: fs().to_string(), handoff: FIRST_JSON.into(), leaves: None };
    let heard = of_request(said).unwrap();
    assert_eq!(heard, first());
    assert_eq!((heard.jobs.len(), heard.requests.len()), (2, 1));
}

#[test]
fn this_agent_hands_over_to_one_of_0_1() {
    let request = request_of(fs(), &first()).unwrap();
    assert_eq!(heard_by_the_first(&request), first());
    let json: serde_json::Value = serde_json::from_slice(&request.handoff).unwrap();
    let golden: serde_json::Value = serde_json::from_str(FIRST_JSON).unwrap();
    assert_eq!(json, golden, "no field is renamed or left out");
}

#[test]
fn the_message_is_believed_where_there_is_one() {
    let mut request = request_of(fs(), &first()).unwrap();
    request.handoff = b"garbage".to_vec();
    assert_eq!(of_request(request).unwrap(), first());
}

#[test]
fn a_newer_handoff_or_record_in_it_is_refused_as_newer() {
    let newer = |change: fn(&mut wire::Handoff)| {
        let mut request = request_of(fs(), &first()).unwrap();
        change(request.leaves.as_mut().unwrap());
        of_request(request).unwrap_err().reason
    };
    assert_eq!(newer(|h| h.format = 99), Reason::FormatNewer);
    assert_eq!(newer(|h| h.jobs[1].format = 99), Reason::FormatNewer);
    assert_eq!(newer(|h| h.requests[0].format = 99), Reason::FormatNewer);
    assert_eq!(newer(|h| h.format = 0), Reason::Internal);
    assert_eq!(newer(|h| h.from = None), Reason::Invalid);
    // In the old form too: there the versions stand in the rows.
    let (before, requests) = FIRST_JSON.rsplit_once("\"version\": 1").unwrap();
    let json = format!("{before}\"version\": 99{requests}");
    let old = wire::ExportRequest { fs_id: fs().to_string(), handoff: json.into_bytes(), leaves: None };
    assert_eq!(of_request(old).unwrap_err().reason, Reason::FormatNewer);
}

/// All that one Filesystem may have (32 jobs, 256 requests) must pass the receiver's bound, or it could never be moved.
#[test]
fn the_largest_handoff_passes() {
    let mut all = first();
    let (job, request) = (all.jobs[0].clone(), all.requests[0].clone());
    all.jobs = vec![job; 32];
    all.requests = vec![request; 256];
    let request = request_of(fs(), &all).unwrap();
    assert!(request.encoded_len() <= MAX_STRUCTURED, "{} bytes", request.encoded_len());
    assert_eq!(wire::ExportRequest::check(&request.encode_to_vec()), Ok(()));
    assert_eq!(of_request(request).unwrap(), all);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(64)
    })]

    #[test]
    fn whatever_leaves_arrives_in_either_form(handoff in any_of::handoff()) {
        let request = request_of(fs(), &handoff).unwrap();
        prop_assert_eq!(&heard_by_the_first(&request), &handoff);
        let sent = wire::ExportRequest::decode(request.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(of_request(sent).unwrap(), handoff);
    }
}
