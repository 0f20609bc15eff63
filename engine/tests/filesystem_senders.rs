//! Whose word counts for a copy: offers, handoffs and listings of nodes that are no owner's, of an owner that this node doesn't know
//! yet, and of one that lies about its epoch (security.md). The simulations forge all of them while everything fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // its helpers too are tests

mod support;

use dotgraft_engine::filesystem::{Answer, Ctx, Event, Handoff, Intent, Offer, Present, Record, ReqId, Role, Task};
use dotgraft_engine::ids::{Epoch, Fresh, MigId};
use dotgraft_engine::model::{Place, Problem, Reason};
use dotgraft_engine::step::Effect;
use support::user::present;
use support::{Sim, Two};

const ASKED: ReqId = ReqId(1_000_000);

/// A copy on n1, empty, of what n0 owns in epoch 1.
fn copy(trace: &mut Vec<String>) -> Sim<'_> {
    let mut sim = Sim::new(1, Two::WithReplica, trace);
    sim.faults = false;
    sim.want(1, Some(Intent::Present(Box::new(present(Role::Replica)))));
    sim.run_for(2_000);
    sim
}

fn place(name: &str) -> Place {
    let place = support::sim::node_at(0).place;
    Place { node: name.parse().unwrap(), ..place }
}

/// What comes of an event.
#[derive(Debug, Default)]
struct Said {
    records: Vec<&'static str>,
    tasks: Vec<Task>,
    cancels: usize,
    answers: Vec<(ReqId, Answer)>,
}

/// What the copy on n1 does about it. Nobody waits for the answer, so it comes back as it is.
fn tell(sim: &mut Sim, event: Event) -> Said {
    let ctx = Ctx { now: sim.wall(1), boot: sim.boot_time(1), fresh: Fresh::new(sim.fresh()), jitter: 0 };
    let machine = sim.nodes[1].fs.as_mut().unwrap();
    let step = machine.handle(event, &ctx);
    let mut said = Said { records: step.records().iter().map(Record::name).collect(), ..Said::default() };
    for effect in machine.settle(step, Ok(())) {
        match effect {
            Effect::Start(_, task) => said.tasks.push(task),
            Effect::Cancel(_) => said.cancels += 1,
            Effect::Stray(req, answer) => said.answers.push((req, answer)),
            Effect::Publish | Effect::Tell(_) => {}
            other => panic!("{other:?}"),
        }
    }
    said
}

fn offer(sim: &mut Sim, from: &str, epoch: u64) -> Offer {
    let mut offer = sim.forged_offer(&place(from), Epoch(epoch));
    offer.target.epoch = Epoch(1);
    offer
}

/// `None`: the transfer begins.
fn answer_to_offer(sim: &mut Sim, from: &str, epoch: u64) -> Option<Problem> {
    let offer = offer(sim, from, epoch);
    let out = tell(sim, Event::Offer(ASKED, Box::new(offer)));
    match out.answers.as_slice() {
        [] => {
            assert!(out.tasks.iter().any(|t| matches!(t, Task::Receive { .. })), "neither refused nor begun");
            None
        }
        [(ASKED, Answer::Receive(Err(problem)))] => {
            assert!(out.records.is_empty() && out.tasks.is_empty() && out.cancels == 0, "refused, and yet: {out:?}");
            Some(problem.clone())
        }
        other => panic!("{other:?}"),
    }
}

fn epoch(sim: &Sim) -> Epoch {
    sim.nodes[1].fs.as_ref().unwrap().status().epoch
}

/// The Replica object changes, and n1 hears of it.
fn object(sim: &mut Sim, change: impl FnOnce(&mut Present)) -> Said {
    let Some(Intent::Present(mut p)) = sim.nodes[1].wanted.clone() else { panic!("no Replica") };
    change(&mut p);
    sim.nodes[1].wanted = Some(Intent::Present(p.clone()));
    sim.nodes[1].generation += 1;
    let generation = sim.nodes[1].generation;
    tell(sim, Event::Desired(dotgraft_engine::filesystem::Desired { generation, intent: Intent::Present(p) }))
}

#[test]
fn a_node_that_is_no_owner_is_refused_and_changes_nothing() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    for epoch in [0, 1, 9] {
        let problem = answer_to_offer(&mut sim, "stranger", epoch).unwrap();
        assert_eq!(problem.reason, Reason::NotOwner);
        assert!(!problem.reason.is_permanent(), "it may be a new owner");
        assert!(problem.message.contains("node stranger") && problem.message.contains("node n0 owns"), "{problem}");
    }
    assert_eq!(epoch(&sim), Epoch(1));
    assert_eq!(answer_to_offer(&mut sim, "n0", 1), None, "the owner is heard");
}

#[test]
fn an_owner_can_not_raise_the_epoch_by_itself() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    let problem = answer_to_offer(&mut sim, "n0", 2).unwrap();
    assert_eq!((problem.reason, epoch(&sim)), (Reason::NotOwner, Epoch(1)));
    let out = object(&mut sim, |p| p.epoch = Epoch(2));
    assert_eq!(out.records, ["epoch-seen"]);
    assert_eq!(epoch(&sim), Epoch(2), "the object can");
    assert_eq!(answer_to_offer(&mut sim, "n0", 1).unwrap().reason, Reason::StaleEpoch);
    assert_eq!(answer_to_offer(&mut sim, "n0", 2), None);
}

#[test]
fn a_new_owner_is_heard_as_soon_as_the_object_names_it_and_the_old_one_no_more() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    assert_eq!(answer_to_offer(&mut sim, "n2", 2).unwrap().reason, Reason::NotOwner);
    object(&mut sim, |p| (p.owner, p.epoch) = (Some(place("n2")), Epoch(2)));
    assert_eq!(answer_to_offer(&mut sim, "n0", 1).unwrap().reason, Reason::NotOwner);
    assert_eq!(answer_to_offer(&mut sim, "n2", 2), None);
}

#[test]
fn a_transfer_of_the_old_owner_ends_when_the_object_names_another() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    assert_eq!(answer_to_offer(&mut sim, "n0", 1), None);
    assert!(object(&mut sim, |p| p.capacity = 200).cancels == 0, "another change ends nothing");
    let out = object(&mut sim, |p| (p.owner, p.epoch) = (Some(place("n2")), Epoch(2)));
    assert_eq!(out.cancels, 1);
}

#[test]
fn after_the_api_was_restored_to_an_earlier_time_an_owner_of_then_is_not_heard() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    object(&mut sim, |p| (p.owner, p.epoch) = (Some(place("n2")), Epoch(3)));
    object(&mut sim, |p| (p.owner, p.epoch) = (Some(place("n0")), Epoch(1)));
    assert_eq!(epoch(&sim), Epoch(3));
    assert_eq!(answer_to_offer(&mut sim, "n0", 1).unwrap().reason, Reason::StaleEpoch);
}

#[test]
fn a_copy_without_an_object_hears_nobody() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    tell(&mut sim, Event::Vanished);
    assert_eq!(answer_to_offer(&mut sim, "n0", 1).unwrap().reason, Reason::NotPlaced);
}

#[test]
fn under_an_operator_that_names_no_owner_any_node_is_heard_as_before() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    object(&mut sim, |p| p.owner = None);
    assert_eq!(answer_to_offer(&mut sim, "n2", 4), None);
    assert_eq!(epoch(&sim), Epoch(4), "and its epoch believed");
}

#[test]
fn only_the_owner_hands_over_and_to_no_copy_that_is_to_be_the_owners_anyway() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    let handoff = |sim: &mut Sim, from: &str, epoch| {
        let (mig, final_commit) = (MigId::from_uuid(sim.fresh()), offer(sim, from, 1).target.id);
        let handoff = Handoff { mig, attempt: 1, epoch: Epoch(epoch), from: place(from), final_commit, jobs: vec![], requests: vec![] };
        let out = tell(sim, Event::Export(ASKED, Box::new(handoff)));
        assert!(out.records.is_empty());
        match out.answers.as_slice() {
            [(ASKED, Answer::Plain(Err(problem)))] => problem.reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(handoff(&mut sim, "stranger", 1), Reason::NotOwner);
    assert_eq!(handoff(&mut sim, "n0", 2), Reason::NotOwner);
    assert_eq!(handoff(&mut sim, "n0", 1), Reason::NotFound, "heard; only its final commit is not here");
    object(&mut sim, |p| (p.role, p.owner, p.epoch) = (Role::Owner, None, Epoch(2)));
    for from in ["stranger", "n0"] {
        assert_eq!(handoff(&mut sim, from, 2), Reason::Busy, "{from}");
    }
}

#[test]
fn commits_are_listed_for_the_owner_and_for_nodes_with_a_copy() {
    let mut trace = Vec::new();
    let mut sim = copy(&mut trace);
    object(&mut sim, |p| p.peers = ["n3".parse().unwrap()].into());
    let listed = |sim: &mut Sim, from: &str| {
        let out = tell(sim, Event::Versions(ASKED, from.parse().unwrap()));
        matches!(out.answers.as_slice(), [(ASKED, Answer::Versions(Ok(_)))])
    };
    assert!(listed(&mut sim, "n0") && listed(&mut sim, "n3") && !listed(&mut sim, "stranger"));
    object(&mut sim, |p| (p.role, p.owner) = (Role::Owner, None));
    assert!(listed(&mut sim, "n3") && !listed(&mut sim, "stranger"), "nor of what is to be an owner's");
    object(&mut sim, |p| p.role = Role::Replica);
    assert!(listed(&mut sim, "stranger"), "an older operator names no owner");
}
