//! Whose word counts, from the certificate to the engine's decision: behind real TLS stands a copy's own state machine, which goes by
//! what its Replica says. Node a owns it, b has the copy, c was broken into (security.md).

use std::sync::{Arc, Mutex};

use dotgraft_agent::actor::handle::{Reply, Request};
use dotgraft_agent::peer::server::ServerSettings;
use dotgraft_engine::filesystem::{
    Answer, Ctx, Desired, Event, Filesystem, Handoff, Intent, Offer, Out, Present, Recovered, ReqId, Role, Task, TaskDone,
};
use dotgraft_engine::ids::{BootTime, Epoch, Fresh, FsId, MigId, NodeName, Timestamp};
use dotgraft_engine::model::{Place, Problem, Reason};

use crate::support::*;

/// A read-only copy: the engine's, with tasks that succeed at once and transfers that are accepted and stored unread.
struct Copy {
    fs: Filesystem,
    wanted: Present,
    records: usize,
    asked: u64,
}

impl Copy {
    fn new(id: FsId, at: &NodeName, owner: &str) -> Self {
        let wanted = Present {
            role: Role::Replica,
            epoch: Epoch(1),
            owner: Some(place(&node(owner))),
            peers: [node(owner)].into(),
            claim: None,
            origin: None,
            capacity: 1,
            history_limit: 1,
            origin_bytes: 0,
            fencing: "Proof".into(),
            reclaim_policy: "Delete".into(),
            commits: vec![],
            jobs: vec![],
            move_to: None,
            precopy_to: None,
            fetch: std::collections::BTreeSet::new(),
            lend: std::collections::BTreeSet::new(),
            headless: false,
        };
        let mut copy = Self { fs: Filesystem::recover(id, here(place(at)), 1, Recovered::default()), wanted, records: 0, asked: 0 };
        copy.handle(Event::Start);
        copy.object(1);
        copy
    }

    /// The Replica object, as it now is, reaches the copy.
    fn object(&mut self, generation: i64) {
        let intent = Intent::Present(Box::new(self.wanted.clone()));
        self.handle(Event::Desired(Desired { generation, intent }));
    }

    /// All that follows from an event; what a transfer waits for is left.
    fn handle(&mut self, event: Event) -> Out {
        let mut all = Out::default();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut out = Out::default();
            let ctx = Ctx { now: Timestamp(1), boot: BootTime(1), fresh: Fresh::new(uuid::Uuid::now_v7()), jitter: 0 };
            self.fs.handle(event, &ctx, &mut out);
            self.records += out.records.len();
            all.answers.extend(out.answers);
            for (op, task) in out.tasks {
                let done = match task {
                    Task::Inspect => TaskDone::Inspected(Box::default()),
                    Task::AllocateQgroup => TaskDone::Qgroup(1),
                    Task::Usage { .. } => TaskDone::Usage { bytes: 0, limit: 0, written: None, files: None },
                    Task::Receive { .. } => {
                        all.tasks.push((op, task));
                        continue;
                    }
                    _ => TaskDone::Ok,
                };
                events.push(Event::Done(op, Box::new(Ok(done))));
            }
        }
        all
    }

    fn answer(&mut self, event: impl FnOnce(ReqId) -> Event) -> (Option<Answer>, bool) {
        self.asked += 1;
        let req = ReqId(self.asked);
        let out = self.handle(event(req));
        (out.answers.into_iter().find(|(r, _)| *r == req).map(|(_, a)| a), !out.tasks.is_empty())
    }

    fn on(&mut self, request: Request) {
        match request {
            Request::Versions { from, reply } => {
                let (Some(Answer::Versions(result)), _) = self.answer(|r| Event::Versions(r, from)) else { panic!() };
                let _ = reply.send(result.map(|v| *v));
            }
            Request::Receive { offer, replies, .. } => {
                let id = offer.target.id;
                let (answer, begun) = self.answer(|r| Event::Offer(r, offer));
                let reply = match answer {
                    Some(Answer::Receive(Err(problem))) => Reply::Refused(problem),
                    None if begun => Reply::Stored { commit: id, already: false },
                    other => panic!("{other:?}"),
                };
                replies.try_send(reply).unwrap();
            }
            Request::Export { handoff, reply } => {
                let (Some(Answer::Plain(result)), _) = self.answer(|r| Event::Export(r, handoff)) else { panic!() };
                let _ = reply.send(result);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn place(node: &NodeName) -> Place {
    Place { node: node.clone(), ..here_place() }
}

/// Three nodes that know each other, and the copy at b.
async fn three() -> ([Node; 3], FsId, Arc<Mutex<Copy>>) {
    let ca = Ca::new("ca");
    let (a, b) = pair(&ca, ServerSettings::default()).await;
    let c = Node::start("c", ca.issue(&Leaf::of("c")), ServerSettings::default()).await;
    b.learn(&c);
    c.learn(&b);
    let id = FsId::from_uuid(uuid::Uuid::now_v7());
    let copy = Arc::new(Mutex::new(Copy::new(id, &b.name, "a")));
    let shared = Arc::clone(&copy);
    answered_by(&b, id, move |request| shared.lock().unwrap().on(request));
    ([a, b, c], id, copy)
}

async fn offered(from: &Node, to: &Node, fs: FsId, epoch: u64) -> Result<(), Problem> {
    // What a message says of its sender is not sent at all: the certificate says it.
    let offer = Offer { epoch: Epoch(epoch), from: node("a"), ..offer(fs, 3) };
    soon(from.client().open(&to.name, fs, offer)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_broken_into_can_not_write_what_another_owns() {
    let ([a, b, c], fs, copy) = three().await;
    let before = copy.lock().unwrap().records;
    for epoch in [1, 99] {
        let problem = offered(&c, &b, fs, epoch).await.unwrap_err();
        assert_eq!(problem.reason, Reason::NotOwner, "{problem}");
        assert!(problem.message.contains("node c may not send") && problem.message.contains("node a owns"), "{problem}");
    }
    let mut handoff = Handoff {
        mig: MigId::from_uuid(uuid::Uuid::now_v7()),
        attempt: 1,
        epoch: Epoch(99),
        from: place(&node("c")),
        final_commit: commit_id(3),
        jobs: vec![],
        requests: vec![],
    };
    assert_eq!(soon(c.client().export(&b.name, fs, &handoff)).await.unwrap_err().reason, Reason::NotOwner);
    handoff.from = place(&node("a"));
    assert_eq!(soon(c.client().export(&b.name, fs, &handoff)).await.unwrap_err().reason, Reason::Denied, "it speaks for another node");
    assert_eq!(soon(c.client().versions(&b.name, fs, job())).await.unwrap_err().reason, Reason::NotOwner);
    assert_eq!(offered(&a, &b, fs, 99).await.unwrap_err().reason, Reason::NotOwner, "the owner raises no epoch either");
    assert_eq!(copy.lock().unwrap().records, before, "a refused peer has left a record");
    soon(a.client().versions(&b.name, fs, job())).await.unwrap();
    offered(&a, &b, fs, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_is_taken_once_the_object_names_it() {
    let ([a, b, c], fs, copy) = three().await;
    assert_eq!(offered(&c, &b, fs, 2).await.unwrap_err().reason, Reason::NotOwner);
    {
        let mut copy = copy.lock().unwrap();
        (copy.wanted.owner, copy.wanted.epoch) = (Some(place(&node("c"))), Epoch(2));
        copy.object(2);
    }
    offered(&c, &b, fs, 2).await.unwrap();
    assert_eq!(offered(&a, &b, fs, 1).await.unwrap_err().reason, Reason::NotOwner);
}
