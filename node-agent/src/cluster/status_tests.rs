//! The book of statuses, without a network.

use super::*;
use dotgraft_api::{CopyRole, ReplicaJobStatus};
use serde_json::Value;

fn status(role: CopyRole, bytes: u64) -> ReplicaStatus {
    ReplicaStatus { role, bytes, ..ReplicaStatus::default() }
}

fn with_report(report: Value) -> ReplicaStatus {
    let report = Some(serde_json::from_value(report).unwrap());
    let job = ReplicaJobStatus { uid: "j".into(), report, ..ReplicaJobStatus::default() };
    ReplicaStatus { jobs: vec![job], ..ReplicaStatus::default() }
}

fn fs() -> FsId {
    "0198c2a5-7f00-7000-8000-000000000001".parse().unwrap()
}

fn object(uid: &str) -> Object {
    Object { name: "r".into(), uid: uid.into() }
}

fn put(book: &mut Book, status: ReplicaStatus, now: Instant) {
    book.put(fs(), &object("u"), status, now);
}

fn observe(book: &mut Book, version: u64, status: Option<&ReplicaStatus>, now: Instant) {
    book.observe(fs(), &object("u"), Some(version), status, now);
}

fn take(book: &mut Book, now: Instant) -> Option<Write> {
    book.take(now).ok()
}

/// A book in which "r" was written at the returned time.
fn written() -> (Book, Instant) {
    let (mut book, now) = (Book::default(), Instant::now());
    put(&mut book, status(CopyRole::Owner, 1), now);
    let sent = take(&mut book, now).unwrap();
    book.done(&sent, Ok(Some(10)), now);
    assert_eq!(book.dirty.len(), 0);
    (book, now)
}

#[test]
fn the_same_status_is_not_written_twice() {
    let (mut book, now) = written();
    put(&mut book, status(CopyRole::Owner, 1), now);
    assert!(take(&mut book, now + PROGRESS_EVERY * 10).is_none());
}

#[test]
fn progress_waits_and_a_transition_does_not() {
    let (mut book, now) = written();
    put(&mut book, status(CopyRole::Owner, 2), now);
    assert!(take(&mut book, now + PROGRESS_EVERY - SPACING).is_none());
    put(&mut book, status(CopyRole::Owner, 3), now + SPACING);
    put(&mut book, status(CopyRole::Deleting, 3), now + SPACING);
    let sent = take(&mut book, now + SPACING).unwrap();
    assert_eq!(*sent.status, status(CopyRole::Deleting, 3), "the newest value goes out");
    assert!(take(&mut book, now + PROGRESS_EVERY * 2).is_none(), "one write at a time");
}

#[test]
fn what_changes_during_a_write_is_written_after_it() {
    let (mut book, now) = (Book::default(), Instant::now());
    put(&mut book, status(CopyRole::Creating, 0), now);
    let sent = take(&mut book, now).unwrap();
    put(&mut book, status(CopyRole::Owner, 0), now);
    observe(&mut book, 5, Some(&status(CopyRole::Absent, 0)), now);
    book.done(&sent, Ok(Some(10)), now);
    assert_eq!(*take(&mut book, now + SPACING).unwrap().status, status(CopyRole::Owner, 0));
}

#[test]
fn failures_back_off_without_losing_the_newest_and_a_gone_object_is_dropped() {
    let (mut book, mut now) = (Book::default(), Instant::now());
    let down = || Err(ClusterError::Unreachable { message: String::new() });
    for i in 0..20 {
        put(&mut book, status(CopyRole::Owner, i), now);
        let due = match book.take(now) {
            Err(Some(due)) => due,
            Ok(sent) => {
                book.done(&sent, down(), now);
                book.take(now).unwrap_err().unwrap()
            }
            Err(None) => panic!("forgotten"),
        };
        assert!(due - now <= Duration::from_secs(30));
        now = due;
    }
    let sent = take(&mut book, now).unwrap();
    assert_eq!(sent.status.bytes, 19);
    book.done(&sent, Err(ClusterError::Missing), now);
    assert!(book.slots.is_empty() && book.dirty.is_empty());
}

#[test]
fn what_somebody_else_changed_is_corrected_but_an_old_echo_is_ignored() {
    let (mut book, now) = written();
    observe(&mut book, 9, Some(&status(CopyRole::Absent, 0)), now);
    assert!(book.dirty.is_empty(), "older than our own write");
    observe(&mut book, 11, None, now);
    assert_eq!(take(&mut book, now + PROGRESS_EVERY).unwrap().status.role, CopyRole::Owner);
}

#[test]
fn a_write_that_was_given_up_and_arrives_after_the_next_is_corrected() {
    let (mut book, now) = written();
    put(&mut book, status(CopyRole::Receiving, 1), now + SPACING);
    let late = take(&mut book, now + SPACING).unwrap();
    book.done(&late, Err(ClusterError::Unreachable { message: String::new() }), now + SPACING);
    let now = now + PROGRESS_EVERY;
    put(&mut book, status(CopyRole::Deleting, 1), now);
    let newer = take(&mut book, now).unwrap();
    // Both arrive, the late one last, and the watch shows it before our own answer is here.
    observe(&mut book, 20, Some(&status(CopyRole::Deleting, 1)), now);
    observe(&mut book, 21, Some(&status(CopyRole::Receiving, 1)), now);
    book.done(&newer, Ok(Some(20)), now);
    assert_eq!(take(&mut book, now + PROGRESS_EVERY).expect("the API has the older status").status.role, CopyRole::Deleting);
}

/// 18-paused: the node was paused between a write and its answer, and awake the owner it had been was another's.
#[test]
fn after_a_write_that_was_given_up_and_had_arrived_the_next_is_written() {
    for seen_before_its_end in [true, false] {
        let (mut book, now) = written();
        put(&mut book, status(CopyRole::Receiving, 1), now + SPACING);
        let lost = take(&mut book, now + SPACING).unwrap();
        let now = now + Duration::from_secs(16);
        let seen = |book: &mut Book| observe(book, 20, Some(&status(CopyRole::Receiving, 1)), now);
        if seen_before_its_end {
            seen(&mut book);
        }
        book.done(&lost, Err(ClusterError::Unreachable { message: String::new() }), now);
        if !seen_before_its_end {
            seen(&mut book);
        }
        put(&mut book, status(CopyRole::Owner, 1), now);
        let next = take(&mut book, now + SPACING).expect("nothing else would ever write it");
        assert_eq!(next.status.role, CopyRole::Owner);
    }
}

#[test]
fn what_may_have_arrived_is_not_taken_for_what_was_there_before() {
    let (mut book, now) = written();
    put(&mut book, status(CopyRole::Receiving, 1), now + SPACING);
    let lost = take(&mut book, now + SPACING).unwrap();
    put(&mut book, status(CopyRole::Owner, 1), now + SPACING);
    book.done(&lost, Err(ClusterError::Unreachable { message: String::new() }), now + SPACING);
    assert_eq!(take(&mut book, now + PROGRESS_EVERY).expect("nobody knows what the API has").status.role, CopyRole::Owner);
}

#[test]
fn what_the_api_has_already_is_not_written_after_a_restart() {
    let (mut book, now) = (Book::default(), Instant::now());
    observe(&mut book, 3, Some(&status(CopyRole::Owner, 7)), now);
    put(&mut book, status(CopyRole::Owner, 7), now);
    assert!(take(&mut book, now + PROGRESS_EVERY).is_none());
}

/// A report as an agent writes it.
fn report(replicated: u64, rate: Option<u64>, to: &str, step: u64) -> Value {
    let mut report = json!({"state": "Working", "attempt": 1, "startedAt": 0, "stepsDone": 0, "stepsTotal": 2, "replicatedBytes": replicated,
        "imprecise": false, "attempts": [],
        "current": {"to": to, "state": "Sending", "resumed": false, "replicated": step}});
    if let Some(rate) = rate {
        report["bytesPerSecond"] = json!(rate);
    }
    report
}

#[test]
fn only_running_numbers_are_progress() {
    let base = with_report(report(1, None, "a", 1));
    assert!(base.jobs[0].report.as_ref().is_some_and(|r| r.known().is_some()));
    assert!(only_progress(&base, &with_report(report(2, Some(9), "a", 2))));
    assert!(!only_progress(&base, &with_report(report(2, None, "b", 0))));
    assert!(!only_progress(&base, &ReplicaStatus::default()));
}

#[test]
fn fractions_of_seconds_do_not_look_like_changes() {
    let time = serde_json::from_value(json!("2026-01-02T03:04:05.678Z")).unwrap();
    let mut status = with_report(report(1, None, "a", 1));
    status.jobs[0].last_successful_time = Some(time);
    let normal = normal(status);
    let echo: ReplicaStatus = serde_json::from_str(&serde_json::to_string(&normal).unwrap()).unwrap();
    assert_eq!(normal, echo);
}

#[test]
fn a_late_answer_about_an_old_object_says_nothing_about_its_successor() {
    let (mut book, now) = (Book::default(), Instant::now());
    put(&mut book, status(CopyRole::Owner, 1), now);
    let old = take(&mut book, now).unwrap();
    book.put(fs(), &object("new"), status(CopyRole::Creating, 0), now);
    book.done(&old, Err(ClusterError::Missing), now);
    let sent = take(&mut book, now).unwrap();
    assert_eq!((sent.object.uid.as_str(), sent.status.role), ("new", CopyRole::Creating));
}

/// The API server and the way to it: writes arrive late or never, answers are lost, and the watch tells each change once, later, in order.
struct Api {
    book: Book,
    now: Instant,
    latest: Option<ReplicaStatus>,
    version: u64,
    there: Option<ReplicaStatus>,
    /// The one whose answer the book waits for, and its version once it has arrived.
    waits: Option<(Write, Option<u64>)>,
    /// Given up by the book: may arrive yet.
    late: Vec<Arc<ReplicaStatus>>,
    watch: std::collections::VecDeque<(u64, ReplicaStatus)>,
}

impl Api {
    fn arrives(&mut self, status: &ReplicaStatus) -> u64 {
        self.version += 1;
        self.there = Some(status.clone());
        self.watch.push_back((self.version, status.clone()));
        self.version
    }

    fn step(&mut self, what: u8) {
        match what {
            0 | 1 => {
                let roles = [CopyRole::Owner, CopyRole::Replica, CopyRole::Receiving];
                let next = status(roles[usize::from(what) + self.watch.len() % 2], self.version % 3);
                self.latest = Some(next.clone());
                put(&mut self.book, next, self.now);
            }
            2 => self.now += SPACING,
            3 => self.now += PROGRESS_EVERY,
            4 => {
                if let Some(write) = self.waits.is_none().then(|| take(&mut self.book, self.now)).flatten() {
                    self.waits = Some((write, None));
                }
            }
            5 => {
                if let Some((write, None)) = &self.waits {
                    let version = self.arrives(&write.status.clone());
                    self.waits.as_mut().unwrap().1 = Some(version);
                } else if let Some(late) = self.late.pop() {
                    self.arrives(&late);
                }
            }
            6 => match self.waits.take() {
                Some((write, Some(version))) => self.book.done(&write, Ok(Some(version)), self.now),
                other => self.waits = other,
            },
            7 => {
                if let Some((write, arrived)) = self.waits.take() {
                    if arrived.is_none() {
                        self.late.push(Arc::clone(&write.status));
                    }
                    self.book.done(&write, Err(ClusterError::Unreachable { message: String::new() }), self.now);
                }
            }
            _ => {
                if let Some((version, status)) = self.watch.pop_front() {
                    observe(&mut self.book, version, Some(&status), self.now);
                }
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(2_000))]
    /// Whatever gets lost or late on the way: in the end the API has the newest status.
    #[test]
    fn the_newest_status_gets_there(steps in proptest::collection::vec(0_u8..10, 0..60)) {
        let mut api = Api {
            book: Book::default(),
            now: Instant::now(),
            latest: None,
            version: 0,
            there: None,
            waits: None,
            late: Vec::new(),
            watch: std::collections::VecDeque::new(),
        };
        for step in steps {
            api.step(step);
        }
        // What is late arrives, then nothing gets lost any more.
        while !api.late.is_empty() || api.waits.is_some() {
            api.step(5);
            api.step(6);
        }
        for _ in 0..200 {
            for step in [8, 8, 3, 4, 5, 6] {
                api.step(step);
            }
        }
        proptest::prop_assert_eq!(&api.there, &api.latest);
    }
}
