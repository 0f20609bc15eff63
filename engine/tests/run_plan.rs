//! The planner, row by row: replication.md §2, and §6 tests 3, 4 and 12.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod run_support;

use dotgraft_engine::ids::{CommitId, Epoch, RequestUid};
use dotgraft_engine::model::{Commit, Reason, ResumeToken, Versions, VersionsRole};
use dotgraft_engine::run::Initial::{self, All, Fail, MostRecent};
use dotgraft_engine::run::Intermediate::{self, LatestOnly};
use dotgraft_engine::run::plan::{CONFLICT_LIST_MAX, plan_to};
use dotgraft_engine::run::{Plan, plan};
use run_support::*;

const EACH: Intermediate = Intermediate::All;

fn steps(plan: &Plan) -> Vec<(Option<CommitId>, CommitId)> {
    plan.steps.iter().map(|s| (s.from, s.to)).collect()
}

fn path(pairs: &[(u64, u64)]) -> Vec<(Option<CommitId>, CommitId)> {
    pairs.iter().map(|(from, to)| ((*from > 0).then(|| id(*from)), id(*to))).collect()
}

#[test]
fn every_path_of_the_table() {
    // (what, sender, receiver, initial, intermediate, steps as (from or 0, to))
    type Row = (&'static str, &'static [u64], &'static [u64], Initial, Intermediate, &'static [(u64, u64)]);
    let table: &[Row] = &[
        ("up to date", &[1, 2], &[1, 2], Fail, EACH, &[]),
        ("up to date, sender pruned", &[2], &[1, 2], Fail, EACH, &[]),
        ("receiver ahead of nothing", &[1], &[1], MostRecent, LatestOnly, &[]),
        ("empty, most recent", &[1, 2, 3], &[], MostRecent, EACH, &[(0, 3)]),
        ("empty, most recent, latest only", &[1, 2, 3], &[], MostRecent, LatestOnly, &[(0, 3)]),
        ("empty, all", &[1, 2, 3], &[], All, EACH, &[(0, 1), (1, 2), (2, 3)]),
        ("empty, all, latest only", &[1, 2, 3], &[], All, LatestOnly, &[(0, 1), (1, 3)]),
        ("empty, all, of one", &[5], &[], All, LatestOnly, &[(0, 5)]),
        ("one increment", &[1, 2], &[1], Fail, EACH, &[(1, 2)]),
        ("increments", &[1, 2, 3, 4], &[1, 2], MostRecent, EACH, &[(2, 3), (3, 4)]),
        ("one increment over many", &[1, 2, 3, 4], &[1], All, LatestOnly, &[(1, 4)]),
        ("receiver skipped some", &[1, 2, 3, 4], &[1, 3], All, EACH, &[(3, 4)]),
        ("sender pruned its old ones", &[3, 4, 5], &[1, 2, 3], All, EACH, &[(3, 4), (4, 5)]),
        ("sender pruned between", &[1, 3, 6], &[1, 2, 3], All, EACH, &[(3, 6)]),
    ];
    for (what, local, peer, initial, intermediate, want) in table {
        let got = plan(&sender(local), &receiver(peer), *initial, *intermediate).expect(what);
        assert_eq!(steps(&got), path(want), "{what}");
        assert_eq!(Some(got.target), local.last().map(|n| id(*n)), "{what}");
        assert_eq!(got.base, peer.last().map(|n| id(*n)), "{what}");
        assert_eq!(got.discarded, None, "{what}");
    }
}

#[test]
fn every_refusal_of_the_table() {
    use VersionsRole::{Absent, Deleting, Owner, Replica};
    type Row = (&'static str, Versions, Versions, Initial, Reason, bool);
    let v = versions;
    let table: Vec<Row> = vec![
        ("no commits, receiver empty", sender(&[]), receiver(&[]), All, Reason::NoCommits, true),
        ("no commits, receiver not empty", sender(&[]), receiver(&[1]), All, Reason::NoCommits, true),
        ("first copy forbidden", sender(&[1]), receiver(&[]), Fail, Reason::InitialRefused, true),
        ("first copy forbidden, absent", sender(&[1]), v(Absent, &[]), Fail, Reason::InitialRefused, true),
        ("receiver is owner", sender(&[1, 2]), v(Owner, &[1]), All, Reason::ReceiverIsOwner, true),
        ("receiver is owner, empty", sender(&[1]), v(Owner, &[]), All, Reason::ReceiverIsOwner, true),
        ("receiver is owner, no commits here", sender(&[]), v(Owner, &[]), All, Reason::ReceiverIsOwner, true),
        ("receiver deleting", sender(&[1]), v(Deleting, &[1]), All, Reason::Deleting, true),
        ("sender deleting", v(Deleting, &[1]), receiver(&[]), All, Reason::Deleting, true),
        ("sender is a replica", v(Replica, &[1, 2]), receiver(&[1]), All, Reason::NotOwner, false),
        ("sender has nothing", v(Absent, &[]), receiver(&[1]), All, Reason::NotFound, false),
        ("no common commit", sender(&[3, 4]), receiver(&[1, 2]), All, Reason::NoCommonAncestor, true),
        ("diverged", sender(&[1, 2, 3]), receiver(&[1, 7]), All, Reason::Diverged, true),
        ("receiver is ahead", sender(&[1, 2]), receiver(&[1, 2, 3]), All, Reason::Diverged, true),
    ];
    for (what, local, peer, initial, reason, permanent) in table {
        let refused = plan(&local, &peer, initial, EACH).expect_err(what);
        assert_eq!(refused.problem.reason, reason, "{what}");
        assert_eq!(reason.is_permanent(), permanent, "{what}");
        let conflict = matches!(reason, Reason::Diverged | Reason::NoCommonAncestor);
        assert_eq!(refused.conflict.is_some(), conflict, "{what}");
    }
}

#[test]
fn a_conflict_lists_both_sides_by_id() {
    let got = plan(&sender(&[1, 2, 3, 4]), &receiver(&[1, 2, 8, 9]), All, EACH).expect_err("diverged");
    let conflict = got.conflict.expect("typed");
    assert_eq!(conflict.base, Some(id(2)));
    assert_eq!(conflict.sender_only, vec![id(3), id(4)]);
    assert_eq!(conflict.receiver_only, vec![id(8), id(9)]);

    let got = plan(&sender(&[3, 4]), &receiver(&[1]), All, EACH).expect_err("nothing in common");
    let conflict = got.conflict.expect("typed");
    assert_eq!(conflict.base, None);
    assert_eq!(conflict.sender_only, vec![id(3), id(4)]);
    assert_eq!(conflict.receiver_only, vec![id(1)]);
}

#[test]
fn a_conflict_of_thousands_is_cut_for_the_status_and_counted_in_the_message() {
    let ours: Vec<u64> = (1..2_000).collect();
    let theirs: Vec<u64> = (5_000..6_000).collect();
    let got = plan(&sender(&ours), &receiver(&theirs), All, EACH).expect_err("nothing in common");
    let conflict = got.conflict.expect("typed");
    assert_eq!(conflict.sender_only.len(), CONFLICT_LIST_MAX);
    assert_eq!(conflict.receiver_only.len(), CONFLICT_LIST_MAX);
    assert!(got.problem.message.contains("1999") && got.problem.message.contains("1000"));
}

#[test]
fn transient_commits_are_seen_by_no_job() {
    let mut local = sender(&[1, 2]);
    local.commits.push(transient(3));
    let mut peer = receiver(&[1]);
    peer.commits.push(transient(9));
    let got = plan(&local, &peer, Fail, EACH).expect("they are ignored on both sides");
    assert_eq!(steps(&got), path(&[(1, 2)]));
    assert_eq!(got.target, id(2));

    let mut only = sender(&[]);
    only.commits.push(transient(1));
    let refused = plan(&only, &receiver(&[]), All, EACH).expect_err("nothing to send");
    assert_eq!(refused.problem.reason, Reason::NoCommits);
}

#[test]
fn a_base_that_is_newer_than_all_that_is_left_is_where_the_receiver_should_be() {
    // 3 was deleted on the sender, and is kept as the base; the receiver has heard of it, or not yet.
    for theirs in [receiver(&[1, 2, 3]), Versions { commits: vec![commit(2), transient(3)], ..receiver(&[]) }] {
        let mut local = sender(&[1, 2]);
        local.commits.push(transient(3));
        let got = plan(&local, &theirs, Fail, EACH).expect("nothing to do");
        assert_eq!((got.base, got.target, got.steps.len()), (Some(id(3)), id(2), 0));
        local.commits.push(commit(4));
        assert_eq!(steps(&plan(&local, &theirs, Fail, EACH).expect("an increment")), path(&[(3, 4)]));
    }
    // The receiver was never sent what is left, and the sender may have nothing else.
    for ours in [&[1, 2][..], &[]] {
        let mut local = sender(ours);
        local.commits.push(transient(3));
        let got = plan(&local, &receiver(&[3]), Fail, EACH).expect("nothing to do");
        assert_eq!((got.base, got.target, got.steps.len()), (Some(id(3)), id(3), 0));
    }
}

#[test]
fn a_sender_that_lost_authority_is_told_so_before_anything_else() {
    for role in [VersionsRole::Replica, VersionsRole::Owner, VersionsRole::Deleting] {
        let mut peer = versions(role, &[1]);
        peer.epoch = Epoch(2);
        let refused = plan(&sender(&[1, 2]), &peer, All, EACH).expect_err("stale");
        assert_eq!(refused.problem.reason, Reason::StaleEpoch, "{role:?}");
    }
    let mut local = sender(&[1, 2]);
    local.epoch = Epoch(3);
    assert!(plan(&local, &receiver(&[1]), All, EACH).is_ok(), "a receiver may be behind");
}

#[test]
fn a_partial_receive_wins_over_every_policy() {
    // (what, sender, receiver, token, initial, intermediate, steps)
    type Row = (&'static str, &'static [u64], &'static [u64], ResumeToken, Initial, Intermediate, &'static [(u64, u64)]);
    let table: Vec<Row> = vec![
        ("full, of the newest", &[1, 2], &[], token(2, None, 5), MostRecent, EACH, &[(0, 2)]),
        ("full, newer ones came", &[1, 2, 3, 4], &[], token(2, None, 5), MostRecent, EACH, &[(0, 2), (2, 3), (3, 4)]),
        ("full, newer ones came, latest", &[1, 2, 3, 4], &[], token(2, None, 5), All, LatestOnly, &[(0, 2), (2, 4)]),
        ("full, though all were wanted", &[1, 2], &[], token(2, None, 5), All, EACH, &[(0, 2)]),
        ("full, begun under another policy", &[1], &[], token(1, None, 5), Fail, EACH, &[(0, 1)]),
        ("increment", &[1, 2, 3], &[1], token(2, Some(1), 5), All, EACH, &[(1, 2), (2, 3)]),
        ("increment over some", &[1, 2, 3, 4], &[1], token(3, Some(1), 5), All, EACH, &[(1, 3), (3, 4)]),
    ];
    for (what, local, peer, token, initial, intermediate, want) in table {
        let mut peer = receiver(peer);
        peer.resume = Some(token.clone());
        let got = plan(&sender(local), &peer, initial, intermediate).expect(what);
        assert_eq!(steps(&got), path(want), "{what}");
        assert_eq!(got.steps.first().and_then(|s| s.resume.clone()), Some(token), "{what}");
        assert!(got.steps.iter().skip(1).all(|s| s.resume.is_none()), "{what}");
        assert_eq!(got.discarded, None, "{what}");
    }
}

#[test]
fn a_partial_receive_that_is_not_ours_is_discarded_and_planned_afresh() {
    type Row = (&'static str, &'static [u64], &'static [u64], ResumeToken, &'static [(u64, u64)]);
    let table: Vec<Row> = vec![
        ("its target vanished", &[1, 3], &[1], token(2, Some(1), 5), &[(1, 3)]),
        ("its target vanished, empty", &[3], &[], token(2, None, 5), &[(0, 3)]),
        ("forged: a target of another Filesystem", &[1, 2], &[1], token(77, Some(1), 5), &[(1, 2)]),
        ("forged: a base of another Filesystem", &[1, 2], &[1], token(2, Some(77), 5), &[(1, 2)]),
        ("a base that the receiver has not", &[1, 2, 3], &[1], token(3, Some(2), 5), &[(1, 2), (2, 3)]),
        ("full, though there is a base", &[1, 2], &[1], token(2, None, 5), &[(1, 2)]),
        ("an increment, though all is empty", &[1, 2], &[], token(2, Some(1), 5), &[(0, 2)]),
        ("complete there", &[1, 2, 3], &[1, 2], token(2, Some(1), 5), &[(2, 3)]),
        ("older than what is there", &[1, 2, 3, 4], &[1, 3], token(2, Some(1), 5), &[(3, 4)]),
        ("up to date", &[1, 2], &[1, 2], token(2, Some(1), u64::MAX), &[]),
        ("forged: back to before its base", &[1, 2, 3, 4], &[1, 3], token(2, Some(3), 5), &[(3, 4)]),
    ];
    for (what, local, peer, token, want) in table {
        let mut peer = receiver(peer);
        peer.resume = Some(token);
        let got = plan(&sender(local), &peer, MostRecent, EACH).expect(what);
        assert_eq!(steps(&got), path(want), "{what}");
        assert!(got.steps.iter().all(|s| s.resume.is_none()), "{what}");
        assert!(got.discarded.is_some(), "{what}");
    }
}

#[test]
fn a_token_for_a_transient_commit_is_not_ours() {
    let mut local = sender(&[1]);
    local.commits.push(transient(2));
    let mut peer = receiver(&[]);
    peer.resume = Some(token(2, None, 9));
    let got = plan(&local, &peer, MostRecent, EACH).expect("planned afresh");
    assert_eq!(steps(&got), path(&[(0, 1)]));
    assert!(got.discarded.is_some());
}

#[test]
fn a_forged_token_does_not_get_past_a_refusal() {
    let mut peer = versions(VersionsRole::Owner, &[]);
    peer.resume = Some(token(1, None, 5));
    let refused = plan(&sender(&[1]), &peer, All, EACH).expect_err("an owner");
    assert_eq!(refused.problem.reason, Reason::ReceiverIsOwner);
    let mut peer = receiver(&[9]);
    peer.resume = Some(token(1, None, 5));
    let refused = plan(&sender(&[1]), &peer, All, EACH).expect_err("a conflict");
    assert_eq!(refused.problem.reason, Reason::NoCommonAncestor);
}

#[test]
fn a_retry_ends_at_the_first_plans_target() {
    let local = sender(&[1, 2, 3, 4]);
    let to = |n, peer: &[u64]| plan_to(&local, &receiver(peer), MostRecent, EACH, Some(id(n)), None).expect("a plan");
    assert_eq!(steps(&to(3, &[1])), path(&[(1, 2), (2, 3)]));
    assert_eq!(to(3, &[1]).target, id(3));
    assert_eq!(steps(&to(3, &[])), path(&[(0, 3)]));
    assert_eq!(steps(&to(3, &[1, 2, 3])), vec![]);
    assert_eq!(steps(&to(3, &[1, 4])), vec![], "someone else has brought a newer one");
    assert_eq!(to(99, &[1]).target, id(4), "a target that is gone counts as none");
}

#[test]
fn lists_in_a_strange_order_from_a_peer_do_no_harm() {
    let got = plan(&sender(&[1, 2, 3]), &receiver(&[3, 1]), All, EACH).expect("its newest is 1");
    assert_eq!(steps(&got), path(&[(1, 2)]), "3 is there and is not sent again");
    let got = plan(&sender(&[1, 2]), &receiver(&[1, 1, 1]), All, EACH).expect("doubles");
    assert_eq!(steps(&got), path(&[(1, 2)]));
    let mut absent = versions(VersionsRole::Absent, &[9]);
    absent.resume = None;
    assert!(plan(&sender(&[1]), &absent, All, EACH).is_ok(), "an absent copy has no commits");
}

fn kept(v: Versions) -> Versions {
    let commits = v.commits.into_iter().map(|c| Commit { kept: Some(RequestUid::from_uuid(c.id.uuid())), ..c }).collect();
    Versions { commits, ..v }
}

#[test]
fn who_wants_all_also_gets_the_kept_commits_that_it_was_never_sent() {
    // (what, sender, receiver, steps as (from or 0, to, older))
    type Row = (&'static str, &'static [u64], &'static [u64], &'static [(u64, u64, bool)]);
    let table: &[Row] = &[
        ("a first copy had brought the newest only", &[1, 2, 3, 4], &[4], &[(4, 1, true), (1, 2, true), (2, 3, true)]),
        ("what is newest comes first", &[1, 2, 3, 4], &[3], &[(3, 4, false), (3, 2, true), (2, 1, true)]),
        ("from the nearest that both have", &[1, 2, 3, 4, 5, 6], &[1, 6], &[(1, 2, true), (2, 3, true), (3, 4, true), (4, 5, true)]),
        ("nothing is missing", &[2, 3], &[1, 2, 3], &[]),
        ("the receiver has what the sender lacks", &[2, 3], &[1, 3], &[(3, 2, true)]),
    ];
    for (what, local, peer, want) in table {
        let got = plan(&kept(sender(local)), &kept(receiver(peer)), All, EACH).expect(what);
        let mut steps: Vec<_> = got.steps.iter().map(|s| (s.from, s.to, s.older)).collect();
        let mut want: Vec<_> = want.iter().map(|(from, to, older)| ((*from > 0).then(|| id(*from)), id(*to), *older)).collect();
        // Which of two missing neighbours comes first is free.
        steps.sort_by_key(|s| (s.2, s.1));
        want.sort_by_key(|s| (s.2, s.1));
        assert_eq!(steps.iter().map(|s| (s.1, s.2)).collect::<Vec<_>>(), want.iter().map(|s| (s.1, s.2)).collect::<Vec<_>>(), "{what}");
        let mut there: Vec<CommitId> = peer.iter().map(|n| id(*n)).collect();
        for step in &got.steps {
            assert!(step.from.is_some_and(|f| there.contains(&f)), "{what}: {step:?} starts from what isn't there");
            there.push(step.to);
        }
        assert_eq!(Some(got.target), local.last().map(|n| id(*n)), "{what}");
    }
}

#[test]
fn older_commits_are_not_brought_to_who_did_not_ask_or_can_t_take_them() {
    let (local, peer) = (kept(sender(&[1, 2, 3])), kept(receiver(&[3])));
    let count = |local: &Versions, peer: &Versions, initial, intermediate| plan(local, peer, initial, intermediate).unwrap().steps.len();
    assert_eq!(count(&local, &peer, All, EACH), 2);
    assert_eq!(count(&local, &peer, MostRecent, EACH), 0);
    assert_eq!(count(&local, &peer, All, LatestOnly), 0);
    let old = Versions { takes_older: false, ..peer.clone() };
    assert_eq!(count(&local, &old, All, EACH), 0, "an older program would call it diverged");
    assert_eq!(count(&sender(&[1, 2, 3]), &peer, All, EACH), 0, "nobody wants them kept");
}

#[test]
fn a_partial_of_an_older_commit_goes_on_first() {
    let local = kept(sender(&[1, 2, 3, 4]));
    let mut peer = kept(receiver(&[1, 3]));
    peer.resume = Some(token(2, Some(3), 70));
    let got = plan(&local, &peer, All, EACH).unwrap();
    assert_eq!(
        got.steps.iter().map(|s| (s.from, s.to, s.older)).collect::<Vec<_>>(),
        [(Some(id(3)), id(2), true), (Some(id(3)), id(4), false)]
    );
    assert_eq!((got.steps[0].resume.clone(), got.discarded), (peer.resume.clone(), None));
    for (target, base) in [(2, Some(9)), (2, None), (9, Some(3)), (2, Some(2))] {
        peer.resume = Some(token(target, base, 70));
        let got = plan(&local, &peer, All, EACH).unwrap();
        assert!(got.discarded.is_some() && got.steps.iter().all(|s| s.resume.is_none()), "{target} from {base:?}: not of our making");
    }
}

#[test]
fn a_history_that_ends_with_a_reset_brings_what_the_head_was_reset_to_before_its_last_commit() {
    type Row = (&'static str, u64, bool, &'static [u64], Initial, Intermediate, &'static [(u64, u64)]);
    let table: &[Row] = &[
        ("empty, most recent", 1, false, &[], MostRecent, EACH, &[(0, 1), (1, 2), (2, 3)]),
        ("empty, most recent, latest only", 1, false, &[], MostRecent, LatestOnly, &[(0, 1), (1, 3)]),
        ("empty, its object deleted", 1, true, &[], MostRecent, LatestOnly, &[(0, 1), (1, 3)]),
        ("it was skipped", 1, false, &[2], Fail, EACH, &[(2, 3), (3, 1)]),
        ("on the way, latest only", 2, false, &[1], Fail, LatestOnly, &[(1, 2), (2, 3)]),
        ("it is there", 1, false, &[1, 2], Fail, EACH, &[(2, 3)]),
        ("only that is missing", 1, false, &[2, 3], Fail, EACH, &[(3, 1)]),
        ("nothing is missing", 1, true, &[1, 2, 3], Fail, EACH, &[]),
        ("the sender has it no more", 9, false, &[], MostRecent, EACH, &[(0, 3)]),
    ];
    for (what, to, let_go, peer, initial, intermediate, want) in table {
        let mut local = sender(&[1, 2, 3]);
        local.commits[2].reset_to = Some(id(*to));
        local.commits[2].transient = *let_go;
        local.commits[2].kept = Some(RequestUid::from_uuid(id(3).uuid()));
        let peer = Versions { takes_older: true, ..receiver(peer) };
        let got = plan(&local, &peer, *initial, *intermediate).expect(what);
        assert_eq!((steps(&got), got.target), (path(want), id(3)), "{what}");
    }
}

#[test]
fn a_partial_of_what_the_head_was_reset_to_goes_on_whatever_the_policy() {
    let mut local = sender(&[1, 2, 3, 4]);
    local.commits[3].reset_to = Some(id(1));
    let peer = |takes_older| Versions { takes_older, resume: Some(token(1, Some(2), 70)), ..receiver(&[2, 3]) };
    for (initial, intermediate) in [(MostRecent, LatestOnly), (MostRecent, EACH), (All, EACH)] {
        let got = plan(&local, &peer(true), initial, intermediate).unwrap();
        let to: Vec<_> = got.steps.iter().map(|s| (s.from, s.to, s.older)).collect();
        assert_eq!(to, [(Some(id(2)), id(1), true), (Some(id(3)), id(4), false)]);
        assert_eq!((got.steps[0].resume.clone(), got.discarded), (peer(true).resume, None));
    }
    let got = plan(&local, &peer(false), MostRecent, EACH).unwrap();
    assert_eq!(steps(&got), path(&[(3, 4)]), "an older receiver takes none");
}
