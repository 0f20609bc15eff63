//! The bytes of every message of agent.v1, as agents of earlier releases send and take them.
//!
//! `golden/0.1.hex` is what 0.1 sent, for ever; `golden/now.hex` is what is sent now. Lines are `Name hex`. A number or type that changes
//! changes these bytes; a field that is added changes none of the old ones.
#![allow(clippy::expect_used, clippy::wildcard_imports, reason = "a test, of all messages")]

use dotgraft_proto::agent::v1::*;
use prost::Message;

const FIRST: &str = include_str!("golden/0.1.hex");
const NOW: &str = include_str!("golden/now.hex");

fn id(n: u32) -> String {
    format!("0198c2a5-7f00-7000-8000-{n:012}")
}

fn version() -> Version {
    Version {
        id: id(10),
        parent: id(9),
        time_ms: 1_700_000_000_123,
        epoch: 5,
        message: "before the upgrade".into(),
        metadata: [("author".to_owned(), "kim".to_owned())].into(),
        fs_id: id(1),
        kept: id(20),
        transient: true,
        format: 1,
        seq: 0,
        reset_to: String::new(),
    }
}

fn resume() -> Resume {
    Resume {
        target: id(10),
        base: id(9),
        offset: 50_331_648,
        prefix_digest: (0..32).collect(),
        stream_version: 2,
        kernel_release: "6.18.0-1".into(),
    }
}

fn offer() -> Offer {
    Offer {
        fs_id: id(1),
        job_uid: id(40),
        run_id: id(41),
        epoch: 5,
        base: id(9),
        target: Some(version()),
        expected_bytes: 4096,
        stream_version: 2,
        kernel_release: "6.18.0-1".into(),
        resume: Some(resume()),
    }
}

fn trouble() -> Trouble {
    Trouble { reason: "NoSpace".into(), message: "the pool is full".into() }
}

fn place(node: &str) -> Place {
    Place { node: node.into(), pool: id(2) }
}

fn report() -> Report {
    Report {
        state: "Completed".into(),
        attempt: 2,
        started_at_ms: 1_700_000_001_000,
        finished_at_ms: Some(1_700_000_002_000),
        sleep_until_ms: Some(0),
        problem: Some(trouble()),
        resolution: Some("start at the most recent commit".into()),
        steps_done: 1,
        steps_total: 2,
        current: Some(Step {
            from: id(10),
            to: id(11),
            state: "Sending".into(),
            resumed: true,
            expected: Some(4096),
            replicated: 1024,
            silent_seconds: Some(7),
        }),
        expected_bytes: Some(8192),
        replicated_bytes: 4096,
        bytes_per_second: Some(512),
        imprecise: true,
        conflict: Some(Conflict { base: id(9), sender_only: vec![id(10)], receiver_only: vec![id(12)] }),
        attempts: vec![Attempt { state: "PlanningError".into(), started_at_ms: 1, finished_at_ms: Some(2), error: Some(trouble()) }],
        replicated: id(11),
    }
}

fn job(outcome: last_run::Outcome) -> JobCursor {
    JobCursor {
        format: 1,
        uid: id(40),
        peer: Some(place("n2")),
        observed_generation: 3,
        observed_trigger: Some(String::new()),
        done_once: true,
        owed: true,
        cursor: id(10),
        sending: id(11),
        last: Some(LastRun { run_id: id(70), generation: 3, outcome: Some(outcome), report: Some(report()) }),
        last_successful_time_ms: Some(0),
        consecutive_failures: 4,
        fired: None,
    }
}

fn handoff() -> Handoff {
    Handoff {
        format: 1,
        migration: id(60),
        attempt: 6,
        epoch: 5,
        from: Some(place("n1")),
        final_commit: id(12),
        jobs: vec![
            job(last_run::Outcome::Completed(Completed { replicated: id(11), bytes: 4096, steps: 1 })),
            job(last_run::Outcome::Failed(trouble())),
            job(last_run::Outcome::Stopped("NotOwner".into())),
        ],
        requests: vec![CommitRequest {
            format: 1,
            uid: id(30),
            id: id(31),
            state: commit_request::State::Pending.into(),
            parent: id(10),
            time_ms: 1_700_000_003_000,
            changed_bytes: Some(65_536),
            problem: Some(trouble()),
            reset_to: Some(Origin { fs_id: id(1), commit: id(9) }),
        }],
    }
}

fn encoded(name: &str, message: &impl Message) -> (String, Vec<u8>) {
    (name.to_owned(), message.encode_to_vec())
}

fn receive(message: receive_request::Message) -> ReceiveRequest {
    ReceiveRequest { message: Some(message) }
}

fn answer(message: receive_response::Message) -> ReceiveResponse {
    ReceiveResponse { message: Some(message) }
}

fn versions() -> VersionsResponse {
    VersionsResponse {
        role: versions_response::Role::Replica.into(),
        epoch: 5,
        versions: vec![version()],
        resume: Some(resume()),
        free_bytes: Some(0),
        stream_version: 2,
        takes_older: false,
    }
}

/// Every message with every field set, as 0.1 has them.
fn of_the_first() -> Vec<(String, Vec<u8>)> {
    vec![
        encoded("VersionsRequest", &VersionsRequest { fs_id: id(1), job_uid: id(40) }),
        encoded("VersionsResponse", &versions()),
        encoded("ReceiveRequest.offer", &receive(receive_request::Message::Offer(offer()))),
        encoded("ReceiveRequest.data", &receive(receive_request::Message::Data(vec![1, 2, 3].into()))),
        encoded("ReceiveRequest.end", &receive(receive_request::Message::End(End { bytes: 3, digest: (0..32).collect() }))),
        encoded("ReceiveRequest.alive", &receive(receive_request::Message::Alive(Alive {}))),
        encoded("ReceiveResponse.accepted", &answer(receive_response::Message::Accepted(Accepted { offset: 7, alive_ms: 10_000 }))),
        encoded("ReceiveResponse.durable", &answer(receive_response::Message::Durable(Durable { offset: 7 }))),
        encoded("ReceiveResponse.stored", &answer(receive_response::Message::Stored(Stored { commit: id(10), already: true }))),
        encoded("Refusal", &Refusal { reason: "NoSpace".into(), message: "full".into(), permanent: true, epoch: 5 }),
        encoded("ExportRequest", &ExportRequest { fs_id: id(1), handoff: b"{}".to_vec(), leaves: None }),
        encoded("MountRequest", &MountRequest { fs_id: id(1), target: "/t".into(), read_only: true, commit: id(10) }),
        encoded("UnmountRequest", &UnmountRequest { target: "/t".into() }),
        encoded("StatusRequest", &StatusRequest { fs_id: id(1) }),
        encoded("StatusResponse", &StatusResponse { json: "{}".into() }),
        encoded("FenceRequest", &FenceRequest { fs_id: id(1), force: true }),
        encoded("FenceResponse", &FenceResponse { snapshot: id(10), generation: 8 }),
        encoded("ThawRequest", &ThawRequest { fs_id: id(1) }),
    ]
}

fn of_now() -> Vec<(String, Vec<u8>)> {
    let fired = JobCursor { fired: Some(Fired { by: "@hourly UTC".into(), at_ms: 3_600_000 }), ..JobCursor::default() };
    vec![
        encoded("ExportRequest.leaves", &ExportRequest { fs_id: id(1), handoff: Vec::new(), leaves: Some(handoff()) }),
        encoded("JobCursor.fired", &fired),
    ]
}

fn print(messages: &[(String, Vec<u8>)]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().concat();
    messages.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect::<Vec<_>>().concat()
}

#[test]
fn messages_of_0_1_have_the_bytes_they_had() {
    assert_eq!(print(&of_the_first()), FIRST);
}

#[test]
fn newer_messages_have_the_bytes_of_their_golden_file() {
    assert_eq!(print(&of_now()), NOW);
}

fn bytes_of(golden: &str, name: &str) -> Vec<u8> {
    let hex = golden.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).expect("the message is in the golden file");
    hex.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).expect("hex"), 16).expect("hex")).collect()
}

#[test]
fn messages_of_0_1_are_read_and_mean_the_same() {
    let listing = VersionsResponse::decode(bytes_of(FIRST, "VersionsResponse").as_slice()).expect("a listing");
    assert_eq!(listing, versions());
    let first = ReceiveRequest::decode(bytes_of(FIRST, "ReceiveRequest.offer").as_slice()).expect("an offer");
    assert_eq!(first, receive(receive_request::Message::Offer(offer())));
    let export = ExportRequest::decode(bytes_of(FIRST, "ExportRequest").as_slice()).expect("an export");
    assert_eq!((export.handoff.as_slice(), export.leaves), (&b"{}"[..], None));
    let export = ExportRequest::decode(bytes_of(NOW, "ExportRequest.leaves").as_slice()).expect("an export");
    assert_eq!(export.leaves, Some(handoff()));
}

/// What an older agent does with a newer message: it reads what it knows.
#[test]
fn a_field_that_is_not_known_is_passed_over() {
    let mut bytes = bytes_of(FIRST, "VersionsResponse");
    bytes.extend([0xfa, 0x07, 0x03, b'n', b'e', b'w']); // field 127, three bytes
    assert_eq!(VersionsResponse::decode(bytes.as_slice()).expect("a listing"), versions());
}
