//! Kept commits get to where they are missing (ADR 13): to who is to have all, with the next run; to who is asked to fetch one, by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // its helpers too are tests

mod support;

use std::collections::BTreeSet;

use dotgraft_engine::filesystem::{Event, Intent, Offer, Role, Task, Transfer, Trouble, WantedCommit};
use dotgraft_engine::ids::{CommitId, Epoch, RequestUid};
use dotgraft_engine::model::Commit;
use dotgraft_engine::run::{Initial, Intermediate};
use support::Sim;
use support::sim::{Asked, Two, node_at};
use support::user::{on_disk, pair, present, status, wanted};

/// An owner with three kept commits, and a copy that was sent the newest only.
fn newest_only(trace: &mut Vec<String>) -> (Sim<'_>, Vec<RequestUid>) {
    let mut sim = Sim::new(1, Two::WithReplica, trace);
    sim.faults = false;
    sim.want(0, Some(Intent::Present(Box::new(present(Role::Owner)))));
    sim.want(1, Some(Intent::Present(Box::new(present(Role::Replica)))));
    sim.run_for(2_000);
    let uids: Vec<RequestUid> = (0..3)
        .map(|_| {
            let uid = sim.wish();
            sim.run_for(5_000);
            uid
        })
        .collect();
    let mut job = sim.job();
    (job.spec.params.initial, job.spec.params.intermediate) = (Initial::MostRecent, Intermediate::All);
    sim.edit(0, |p| p.jobs = vec![job]);
    sim.run_for(10_000);
    assert_eq!(uids.iter().map(|u| on_disk(&sim, 1, *u)).collect::<Vec<_>>(), [false, false, true], "the newest, and nothing else");
    (sim, uids)
}

fn id(sim: &Sim, uid: RequestUid) -> CommitId {
    sim.ledger.ids[&uid]
}

#[test]
fn a_copy_says_which_kept_commits_it_holds_and_up_to_where_it_has_the_history() {
    let mut trace = Vec::new();
    let (sim, uids) = newest_only(&mut trace);
    let (owner, copy) = (status(&sim, 0).holding, status(&sim, 1).holding);
    assert_eq!(owner.kept, uids.iter().rev().map(|u| id(&sim, *u)).collect::<Vec<_>>(), "newest first");
    assert_eq!(copy.kept, [id(&sim, uids[2])]);
    assert!(owner.complete && copy.complete);
    assert_eq!(owner.complete_to, copy.complete_to, "the older ones don't count for that");
    assert_eq!(copy.complete_to.map(|o| (o.epoch, o.seq)), Some((Epoch(1), 3)), "numbered by the owner");
}

#[test]
fn who_is_to_have_all_gets_what_it_was_never_sent() {
    let mut trace = Vec::new();
    let (mut sim, uids) = newest_only(&mut trace);
    sim.edit(0, |p| {
        let spec = &mut p.jobs[0].spec;
        spec.params.initial = Initial::All;
        (spec.generation, spec.trigger) = (spec.generation + 1, Some("all".into()));
    });
    sim.run_for(10_000);
    assert!(uids.iter().all(|u| on_disk(&sim, 1, *u)), "{:?}", status(&sim, 1).holding);
    assert_eq!(status(&sim, 0).holding, status(&sim, 1).holding);
    let row = status(&sim, 0).jobs.remove(0).row;
    assert_eq!((row.cursor, row.consecutive_failures), (Some(id(&sim, uids[2])), 0), "the cursor stays at the newest");
}

#[test]
fn commits_are_numbered_by_their_owner() {
    let mut trace = Vec::new();
    let (sim, uids) = newest_only(&mut trace);
    let orders: Vec<_> = uids.iter().map(|u| sim.nodes[0].disk.commits[&id(&sim, *u)].0.order()).collect();
    assert_eq!(orders.iter().map(|o| (o.epoch, o.seq)).collect::<Vec<_>>(), [(Epoch(1), 1), (Epoch(1), 2), (Epoch(1), 3)]);
    assert_eq!(sim.nodes[1].disk.commits[&id(&sim, uids[2])].0.order(), orders[2], "as it was sent");
}

#[test]
fn a_commit_that_is_asked_for_is_lent_and_no_other() {
    let mut trace = Vec::new();
    let (mut sim, uids) = newest_only(&mut trace);
    let wish = |sim: &Sim, with: usize| BTreeSet::from([Transfer { commit: id(sim, uids[0]), with: sim.nodes[with].place.clone() }]);
    let (lend, fetch) = (wish(&sim, 1), wish(&sim, 0));
    sim.edit(0, |p| p.lend = lend);
    sim.edit(1, |p| p.fetch = fetch);
    sim.run_for(10_000);
    assert_eq!(uids.iter().map(|u| on_disk(&sim, 1, *u)).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(status(&sim, 1).head, Some(id(&sim, uids[2])), "its newest is what it was");
}

#[test]
fn a_commit_that_cannot_be_lent_says_why_until_it_is_there() {
    let mut trace = Vec::new();
    let (mut sim, uids) = newest_only(&mut trace);
    let wish = |sim: &Sim, with: usize| BTreeSet::from([Transfer { commit: id(sim, uids[0]), with: sim.nodes[with].place.clone() }]);
    let (lend, fetch) = (wish(&sim, 1), wish(&sim, 0));
    let says = |sim: &Sim| status(sim, 0).conditions.into_iter().find(|c| c.r#type == Trouble::LendFailed.into());
    sim.partition = true;
    sim.edit(0, |p| p.lend = lend);
    sim.edit(1, |p| p.fetch = fetch);
    sim.run_for(10_000);
    let told = says(&sim).expect("it is told");
    assert!(told.status && told.message.contains(&id(&sim, uids[0]).to_string()), "{told:?}");
    sim.partition = false;
    sim.run_for(120_000);
    assert!(on_disk(&sim, 1, uids[0]) && says(&sim).is_none(), "{:?}", says(&sim));
    // Nobody asks for one that can't come any more.
    sim.partition = true;
    let other = BTreeSet::from([Transfer { commit: id(&sim, uids[1]), with: sim.nodes[1].place.clone() }]);
    sim.edit(0, |p| p.lend = other);
    sim.run_for(10_000);
    assert!(says(&sim).is_some());
    sim.edit(0, |p| p.lend.clear());
    sim.run_for(1_000);
    assert!(says(&sim).is_none());
}

#[test]
fn what_is_to_be_lent_is_not_removed_before() {
    let mut trace = Vec::new();
    let (mut sim, uids) = newest_only(&mut trace);
    let (first, with) = (id(&sim, uids[0]), sim.nodes[1].place.clone());
    sim.ledger.removals.insert(uids[0]);
    sim.partition = true;
    sim.edit(0, |p| {
        p.lend = BTreeSet::from([Transfer { commit: first, with }]);
        p.commits.retain(|c| c.uid != uids[0]);
        p.commits.push(WantedCommit { id: Some(first), remove: true, ..wanted(uids[0]) });
    });
    sim.run_for(20_000);
    assert!(on_disk(&sim, 0, uids[0]), "it was asked for, and is gone");
    sim.edit(0, |p| p.lend.clear());
    sim.run_for(20_000);
    assert!(!on_disk(&sim, 0, uids[0]), "nobody asks for it any more");
}

#[test]
fn a_commit_comes_only_from_the_node_that_it_is_to_be_fetched_from() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(1, &mut trace);
    let with = sim.nodes[1].place.clone();
    let older = sim.forged_offer(&node_at(2).place, Epoch(1));
    let target = Commit { epoch: Epoch(0), kept: Some(uids[0]), ..older.target.clone() };
    sim.edit(0, |p| p.fetch = BTreeSet::from([Transfer { commit: target.id, with }]));
    sim.run_for(1_000);
    sim.ask(0, Asked::Forged, |req| Event::Offer(req, Box::new(Offer { target, ..older })));
    sim.run_for(50);
    assert!(!sim.runs(0, |t| matches!(t, Task::Receive { .. })), "another node sends it");
}

#[test]
fn an_owner_takes_back_from_its_copy_what_its_disk_has_lost() {
    let mut trace = Vec::new();
    let (mut sim, uids) = pair(2, &mut trace);
    let lost = id(&sim, uids[0]);
    // Its result is recorded in its object, so nobody asks for it any more.
    sim.edit(0, |p| p.commits.retain(|c| c.uid != uids[0]));
    sim.run_for(1_000);
    sim.nodes[0].disk.commits.remove(&lost);
    sim.crash(0, false);
    sim.run_for(3_000);
    assert!(!status(&sim, 0).holding.kept.contains(&lost), "it says that it has it");
    let wish = |sim: &Sim, with: usize| BTreeSet::from([Transfer { commit: lost, with: sim.nodes[with].place.clone() }]);
    let (lend, fetch) = (wish(&sim, 0), wish(&sim, 1));
    sim.edit(1, |p| p.lend = lend);
    sim.run_for(10_000);
    assert!(!on_disk(&sim, 0, uids[0]), "an owner takes a commit only as its own object says");
    sim.edit(0, |p| p.fetch = fetch);
    sim.run_for(60_000);
    assert!(on_disk(&sim, 0, uids[0]));
    assert_eq!(status(&sim, 0).holding, status(&sim, 1).holding);
    assert_eq!(status(&sim, 0).head, Some(id(&sim, uids[1])), "its newest is what it was");
}

/// Authority was taken for n1, which had the newest commit only; n0 has the others, and one of after that. Both are asked for.
fn superseded(trace: &mut Vec<String>) -> (Sim<'_>, Vec<RequestUid>) {
    let (mut sim, mut uids) = newest_only(trace);
    sim.edit(0, |p| p.jobs.clear());
    uids.push(sim.wish());
    sim.run_for(5_000);
    sim.promote(1, true);
    sim.run_for(10_000);
    let wishes = |with: usize| uids.iter().map(|u| Transfer { commit: id(&sim, *u), with: sim.nodes[with].place.clone() }).collect();
    let (lend, fetch): (BTreeSet<_>, BTreeSet<_>) = (wishes(1), wishes(0));
    sim.edit(0, |p| p.lend = lend);
    sim.edit(1, |p| p.fetch = fetch);
    sim.run_for(60_000);
    (sim, uids)
}

#[test]
fn what_a_superseded_copy_alone_has_comes_to_the_owner_and_never_as_its_newest() {
    let mut trace = Vec::new();
    let (mut sim, uids) = superseded(&mut trace);
    let last = id(&sim, uids[3]);
    for _ in 0..600 {
        sim.run_for(100);
        assert!(!sim.runs(0, |t| matches!(t, Task::Send { to, .. } if to.id == last)), "it is sent in vain");
    }
    let there = |sim: &Sim| uids.iter().map(|u| on_disk(sim, 1, *u)).collect::<Vec<_>>();
    assert_eq!(there(&sim), [true, true, true, false]);
    assert_eq!(status(&sim, 1).head, Some(id(&sim, uids[2])), "what its head started from");
    // Once it has a commit of its own, what is older by its epoch has a place before that.
    let own = sim.fresh_request();
    sim.edit(1, |p| p.commits.push(support::user::wanted(own)));
    sim.run_for(120_000);
    assert_eq!(there(&sim), [true; 4]);
    let newest = &status(&sim, 1).recent_commits[0];
    assert_eq!((newest.id, newest.parent), (id(&sim, own), Some(id(&sim, uids[2]))), "not after what the lost owner had beyond it");
    assert_eq!(status(&sim, 1).epoch, Epoch(2));
}

#[test]
fn an_owner_fetches_kept_commits_only() {
    let mut trace = Vec::new();
    let (mut sim, _) = pair(1, &mut trace);
    let forged = sim.forged_offer(&sim.nodes[1].place.clone(), Epoch(1));
    let with = sim.nodes[1].place.clone();
    sim.edit(0, |p| p.fetch = BTreeSet::from([Transfer { commit: forged.target.id, with }]));
    sim.run_for(1_000);
    sim.ask(0, Asked::Forged, |req| dotgraft_engine::filesystem::Event::Offer(req, Box::new(forged)));
    sim.run_for(10_000);
}
