//! R0 against a server that conflicts, loses answers, and was restored from a backup.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use dotgraft_engine::ids::MigId;
use serde_json::{Value, json};

use super::super::fake::{self, Answer, Asked};
use super::*;

const POOL: &str = "0198c2a5-7f00-4000-8000-0000000000aa";
const OTHER_POOL: &str = "0198c2a5-7f00-4000-8000-0000000000bb";

fn fs() -> FsId {
    "0198c2a5-7f00-7000-8000-000000000001".parse().unwrap()
}
fn boot() -> BootId {
    "0198c2a5-7f00-4000-8000-0000000000b0".parse().unwrap()
}
fn me() -> Place {
    Place { node: "n1".parse().unwrap(), pool: POOL.parse().unwrap() }
}
fn seen(epoch: u64) -> Seen {
    Seen { epoch: Epoch(epoch), version: None }
}

/// What happens to a swap.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// It is served.
    None,
    /// Somebody touched the object just before.
    Touched,
    /// Somebody took authority away just before.
    Stolen,
    /// It never arrives.
    LostRequest,
    /// It is served, but the answer is lost.
    LostAnswer,
    /// The same, and then authority is taken away.
    LostAnswerThenStolen,
}

#[derive(Debug)]
struct Server {
    object: Value,
    version: u64,
    faults: VecDeque<Fault>,
    swaps: usize,
    /// Of the last swap that was answered with yes: was the owner me at that moment?
    won_as_owner: Option<bool>,
}

impl Server {
    fn steal(&mut self) {
        let a = self.object.pointer_mut("/status/authority").unwrap();
        a["owner"]["node"] = json!("n2");
        a["epoch"] = json!(a["epoch"].as_u64().unwrap() + 1);
        a.as_object_mut().unwrap().remove("opened");
        self.touch();
    }
    fn touch(&mut self) {
        self.version += 1;
        self.object["metadata"]["resourceVersion"] = json!(self.version.to_string());
    }
    fn swap(&mut self, body: &Value) -> Answer {
        if body["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"] {
            return Answer::error(409, "Conflict");
        }
        self.won_as_owner = Some(self.object["status"]["authority"]["owner"]["node"] == "n1");
        self.object["status"] = body["status"].clone();
        self.touch();
        Answer::Json(200, self.object.clone())
    }
    fn put(&mut self, body: &Value) -> Answer {
        self.swaps += 1;
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => {}
            Fault::Touched => self.touch(),
            Fault::Stolen => self.steal(),
            Fault::LostRequest => return Answer::Broken,
            Fault::LostAnswer => {
                self.swap(body);
                return Answer::error(504, "Timeout");
            }
            Fault::LostAnswerThenStolen => {
                self.swap(body);
                self.steal();
                return Answer::Broken;
            }
        }
        self.swap(body)
    }
}

fn object(status: &Value) -> Value {
    json!({
        "apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem",
        "metadata": {"name": fs().to_string(), "uid": "u", "resourceVersion": "100"},
        "spec": {"claimRef": {"kind": "Dot", "namespace": "ns", "name": "data", "uid": POOL}, "reclaimPolicy": "Delete"},
        "status": status,
    })
}

fn owned() -> Value {
    object(
        &json!({"phase": "Active", "authority": {"owner": {"node": "n1", "pool": POOL}, "epoch": 4, "attempt": 2, "fromTheFuture": {"x": 1}}}),
    )
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut o = owned();
    change(&mut o["status"]);
    o
}

fn serve(object: Value, faults: &[Fault]) -> (AuthorityClient, Arc<Mutex<Server>>) {
    let server = Server { object, version: 100, faults: faults.iter().copied().collect(), swaps: 0, won_as_owner: None };
    let server = Arc::new(Mutex::new(server));
    let shared = Arc::clone(&server);
    let client = fake::client(move |asked: Asked| {
        let mut server = shared.lock().unwrap();
        match asked.method.as_str() {
            "GET" => {
                assert!(!asked.query.contains("resourceVersion"), "not a quorum read: {}", asked.query);
                Answer::Json(200, server.object.clone())
            }
            "PUT" => {
                assert!(asked.path.ends_with("/status"), "{}", asked.path);
                server.put(&asked.body)
            }
            other => panic!("unexpected {other}"),
        }
    });
    let client = AuthorityClient { pause: Duration::from_millis(1), ..AuthorityClient::new(client) };
    (client, server)
}

async fn open(object: Value, faults: &[Fault], seen: Seen) -> (OpenOutcome, Arc<Mutex<Server>>) {
    let (client, server) = serve(object, faults);
    (client.open(fs(), &me(), boot(), seen).await, server)
}

#[tokio::test]
async fn an_owner_opens_and_changes_nothing_else() {
    let (outcome, server) = open(owned(), &[], seen(4)).await;
    let OpenOutcome::Opened(won) = outcome else { panic!("{outcome:?}") };
    assert_eq!((won.epoch, won.attempt, won.resource_version, won.new), (Epoch(4), 2, Some(101), false));
    let mut expected = owned();
    expected["status"]["authority"]["opened"] = json!({"epoch": 4, "bootId": boot().to_string()});
    expected["metadata"]["resourceVersion"] = json!("101");
    assert_eq!(server.lock().unwrap().object, expected, "also what this program doesn't know stays");
}

#[tokio::test]
async fn an_opening_of_an_earlier_epoch_or_boot_is_replaced() {
    let old = with(|s| s["authority"]["opened"] = json!({"epoch": 3, "bootId": OTHER_POOL}));
    let (outcome, server) = open(old, &[], seen(4)).await;
    assert!(matches!(outcome, OpenOutcome::Opened(_)));
    assert_eq!(server.lock().unwrap().object["status"]["authority"]["opened"]["bootId"], boot().to_string());
}

#[tokio::test]
async fn whoever_may_not_open_does_not_even_try() {
    let other = |node: &str, pool: &str| Place { node: node.parse().unwrap(), pool: pool.parse().unwrap() };
    let regression =
        |api: u64, seen: Seen| OpenOutcome::Refused(Refusal::Regressed { seen, api: Seen { epoch: Epoch(api), version: Some(100) } });
    let newer_version = Seen { epoch: Epoch(4), version: Some(101) };
    let pending = json!({"mig": POOL, "attempt": 2, "to": {"node": "n2", "pool": OTHER_POOL}, "finalCommit": POOL});
    let cases = [
        (
            with(|s| s["authority"]["owner"]["node"] = json!("n2")),
            seen(4),
            OpenOutcome::Refused(Refusal::NotOwner { owner: other("n2", POOL), epoch: Epoch(4) }),
        ),
        (
            with(|s| s["authority"]["owner"]["pool"] = json!(OTHER_POOL)),
            seen(4),
            OpenOutcome::Refused(Refusal::NotOwner { owner: other("n1", OTHER_POOL), epoch: Epoch(4) }),
        ),
        (
            with(|s| s["authority"]["pending"] = pending),
            seen(4),
            OpenOutcome::Refused(Refusal::Pending { mig: POOL.parse().unwrap(), attempt: 2, to: other("n2", OTHER_POOL) }),
        ),
        (with(|s| s["phase"] = json!("Deleting")), seen(4), OpenOutcome::Refused(Refusal::Deleting)),
        (object(&json!({"phase": "Active"})), seen(4), OpenOutcome::Refused(Refusal::NoAuthority)),
        (object(&Value::Null), seen(4), OpenOutcome::Refused(Refusal::NoAuthority)),
        (owned(), seen(5), regression(4, seen(5))),
        (owned(), newer_version, regression(4, newer_version)),
    ];
    for (object, seen, expected) in cases {
        let (outcome, server) = open(object, &[], seen).await;
        assert_eq!(outcome, expected);
        assert_eq!(server.lock().unwrap().swaps, 0, "{expected:?}");
        assert!(outcome.into_result().is_err());
    }
}

#[tokio::test]
async fn only_an_explicit_phase_new_allows_an_empty_volume() {
    for (phase, new) in [(json!("New"), true), (json!("Active"), false), (json!("Headless"), false)] {
        let (outcome, _) = open(with(|s| s["phase"] = phase), &[], seen(0)).await;
        assert_eq!(outcome.into_result().unwrap().new, new);
    }
    let (outcome, _) = open(with(|s| drop(s.as_object_mut().unwrap().remove("phase"))), &[], seen(0)).await;
    assert!(!matches!(outcome, OpenOutcome::Opened(Won { new: true, .. })), "a missing phase is not `New`");
}

#[tokio::test]
async fn a_malformed_or_pruned_object_never_opens() {
    let (outcome, _) = open(with(|s| s["authority"]["owner"]["node"] = json!("Not A Node")), &[], seen(0)).await;
    assert!(matches!(outcome, OpenOutcome::Failed(ClusterError::Malformed { .. })), "{outcome:?}");

    let prunes = fake::client(|_| Answer::Json(200, owned()));
    let outcome = AuthorityClient::new(prunes).open(fs(), &me(), boot(), seen(0)).await;
    assert!(matches!(outcome, OpenOutcome::Failed(ClusterError::Malformed { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_refusal_is_final_and_silence_ends_at_the_deadline() {
    let refuses = fake::client(|asked| if asked.method == "GET" { Answer::Json(200, owned()) } else { Answer::error(403, "Forbidden") });
    let outcome = AuthorityClient::new(refuses).open(fs(), &me(), boot(), seen(0)).await;
    assert_eq!(outcome.into_result().unwrap_err().reason, Reason::Denied);

    let broken = AuthorityClient { deadline: Duration::from_millis(200), ..AuthorityClient::new(fake::client(|_| Answer::Broken)) };
    let outcome = broken.open(fs(), &me(), boot(), seen(0)).await;
    assert_eq!(outcome.into_result().unwrap_err().reason, Reason::Unreachable);
}

#[tokio::test]
async fn a_missing_filesystem_is_neither_opened_nor_deleting_nor_headless() {
    let client = AuthorityClient::new(fake::client(|_| Answer::error(404, "NotFound")));
    assert_eq!(client.open(fs(), &me(), boot(), seen(0)).await, OpenOutcome::Missing);
    assert_eq!(client.get(fs()).await, Ok(None));
    assert_eq!(client.is_headless(fs()).await, Ok(false));
    let broken = AuthorityClient::new(fake::client(|_| Answer::Broken));
    assert!(broken.get(fs()).await.is_err() && broken.is_headless(fs()).await.is_err(), "no answer is not a no");
}

/// Every sequence of up to four faults: it opens only by an answered swap from an object that names us as owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_faults_opens_what_is_not_ours() {
    use Fault::{LostAnswer, LostAnswerThenStolen, LostRequest, None, Stolen, Touched};
    let all = [None, Touched, Stolen, LostRequest, LostAnswer, LostAnswerThenStolen];
    let longer =
        |short: &Vec<Vec<Fault>>| short.iter().flat_map(|s| all.iter().map(move |f| [s.as_slice(), &[*f]].concat())).collect::<Vec<_>>();
    let mut cases = vec![vec![]];
    for _ in 0..4 {
        cases = longer(&cases);
    }
    assert_eq!(cases.len(), 1296);
    let runs = cases.into_iter().map(|faults| async move {
        let (outcome, server) = open(owned(), &faults, seen(4)).await;
        let server = server.lock().unwrap();
        let lost_to = faults.iter().take(server.swaps).any(|f| matches!(f, Stolen | LostAnswerThenStolen));
        match outcome {
            OpenOutcome::Opened(won) => {
                assert!(!lost_to && server.won_as_owner == Some(true), "{faults:?}");
                assert_eq!((won.epoch, won.resource_version), (Epoch(4), Some(server.version)), "{faults:?}");
            }
            OpenOutcome::Refused(Refusal::NotOwner { epoch, .. }) => assert!(lost_to && epoch == Epoch(5), "{faults:?}"),
            other => panic!("{faults:?}: {other:?}"),
        }
    });
    futures::future::join_all(runs).await;
}

// ---- a handoff ----

const MIG: &str = "0198c2a5-7f00-7000-8000-0000000000c1";
const FINAL: &str = "0198c2a5-7f00-7000-8000-0000000000f1";

fn mig() -> MigId {
    MIG.parse().unwrap()
}
fn other() -> Place {
    Place { node: "n2".parse().unwrap(), pool: OTHER_POOL.parse().unwrap() }
}
fn pending(attempt: u64) -> Value {
    with(|o| {
        let to = json!({"node": "n2", "pool": OTHER_POOL});
        o["authority"]["pending"] = json!({"mig": MIG, "attempt": attempt, "to": to, "finalCommit": FINAL});
    })
}
async fn swap(object: Value, faults: &[Fault], swap: Swap) -> (Result<Read, Problem>, Arc<Mutex<Server>>) {
    let (client, server) = serve(object, faults);
    (client.swap(fs(), &me(), &swap).await, server)
}
fn said(read: Result<Read, Problem>) -> Authority {
    read.unwrap().authority.unwrap()
}
fn epoch_of(object: &Value) -> Epoch {
    Epoch(object["status"]["authority"]["epoch"].as_u64().unwrap())
}
fn attempt_of(object: &Value) -> u64 {
    object["status"]["authority"]["attempt"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn only_an_owner_with_nothing_pending_sets_pending() {
    let object = owned();
    let pend = |object: &Value| Swap::Pend { mig: mig(), epoch: epoch_of(object), to: other(), final_commit: FINAL.parse().unwrap() };
    let (view, server) = swap(object.clone(), &[Fault::None], pend(&object)).await;
    let set = said(view).pending.map(|p| (p.mig, p.attempt));
    assert_eq!(set, Some((mig(), attempt_of(&object))));
    assert_eq!(server.lock().unwrap().swaps, 1);
    let elsewhere = with(|o| o["authority"]["owner"]["node"] = json!("n2"));
    let deleting = with(|o| o["phase"] = json!("Deleting"));
    for object in [elsewhere, deleting, pending(attempt_of(&object))] {
        let (view, server) = swap(object.clone(), &[], pend(&object)).await;
        assert!(view.is_ok() && server.lock().unwrap().swaps == 0, "it was tried on {object}");
    }
}

#[tokio::test]
async fn commit_and_abort_have_the_same_guard_and_one_of_them_wins() {
    let object = pending(attempt_of(&owned()));
    let (epoch, attempt) = (epoch_of(&object), attempt_of(&object));
    let (view, server) = swap(object.clone(), &[Fault::None], Swap::Commit { mig: mig(), attempt, epoch }).await;
    let view = said(view);
    assert_eq!((view.owner, view.epoch, view.pending), (other(), Epoch(epoch.0 + 1), None));
    let after = server.lock().unwrap().object.clone();
    assert!(after["status"]["authority"].get("opened").is_none(), "an opening outlives its epoch");
    // Delayed swaps of either kind change nothing any more.
    for late in [Swap::Abort { mig: mig(), attempt, epoch }, Swap::Commit { mig: mig(), attempt, epoch }] {
        let (view, server) = swap(after.clone(), &[], late).await;
        assert_eq!((said(view).epoch, server.lock().unwrap().swaps), (Epoch(epoch.0 + 1), 0));
    }
    let (view, server) = swap(object, &[Fault::None], Swap::Abort { mig: mig(), attempt, epoch }).await;
    let view = said(view);
    assert_eq!((view.owner, view.epoch, view.attempt, view.pending), (me(), epoch, attempt + 1, None));
    let aborted = server.lock().unwrap().object.clone();
    let (view, server) = swap(aborted, &[], Swap::Commit { mig: mig(), attempt, epoch }).await;
    assert_eq!((said(view).owner, server.lock().unwrap().swaps), (me(), 0));
}

#[tokio::test]
async fn a_deleting_filesystem_changes_owners_no_more() {
    let mut object = pending(attempt_of(&owned()));
    object["status"]["phase"] = json!("Deleting");
    let (epoch, attempt) = (epoch_of(&object), attempt_of(&object));
    let (view, server) = swap(object, &[], Swap::Commit { mig: mig(), attempt, epoch }).await;
    assert!(view.unwrap().is_deleting() && server.lock().unwrap().swaps == 0);
}

#[tokio::test]
async fn a_lost_answer_is_found_out_by_reading_again() {
    let object = pending(attempt_of(&owned()));
    let (epoch, attempt) = (epoch_of(&object), attempt_of(&object));
    let commit = Swap::Commit { mig: mig(), attempt, epoch };
    for faults in [vec![Fault::LostAnswer], vec![Fault::LostRequest, Fault::None], vec![Fault::Touched, Fault::None]] {
        let (view, server) = swap(object.clone(), &faults, commit.clone()).await;
        assert_eq!(said(view).epoch, Epoch(epoch.0 + 1), "{faults:?}");
        assert_eq!(epoch_of(&server.lock().unwrap().object), Epoch(epoch.0 + 1), "committed twice: {faults:?}");
    }
    let (view, _) = swap(object, &[Fault::Stolen, Fault::None], commit).await;
    let view = said(view);
    assert_eq!((view.owner.node.as_str(), view.epoch), ("n2", Epoch(epoch.0 + 1)), "somebody else's change is told, not undone");
}
