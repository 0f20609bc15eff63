//! Each guard of authority, one test or row each: what is allowed makes exactly one change, and each near miss says why.

use super::take::{CompleteTo, Copy, CopyRole, ImportStart, Newest, accept, give_back, promote, steal};
use super::verdict::{
    ExportStanding, ImportStanding, KeptStanding, Leaving, OwnerStanding, may_be_dropped, may_go, of_export, of_import, of_kept, of_owner,
};
use super::*;
use crate::ids::Timestamp;

fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(n)
}
fn place(n: u8) -> Place {
    Place { node: format!("n{n}").parse().unwrap(), pool: crate::ids::PoolId::from_uuid(uuid(u128::from(n))) }
}
fn node(n: u8) -> NodeName {
    place(n).node
}
fn boot(n: u128) -> BootId {
    BootId::from_uuid(uuid(n))
}
fn mig(n: u128) -> MigId {
    MigId::from_uuid(uuid(n))
}
fn f() -> CommitId {
    CommitId::from_uuid(uuid(0xf))
}
fn pending() -> Pending {
    Pending { mig: mig(1), attempt: 2, to: place(2), final_commit: f() }
}
/// The pending handoff.
fn of() -> Attempt {
    Attempt { mig: mig(1), attempt: 2, epoch: Epoch(5) }
}
/// n1 owns it in epoch 5 and has opened it.
fn owned() -> Authority {
    let opened = Some(Opened { epoch: Epoch(5), boot: boot(1) });
    Authority { epoch: Epoch(5), attempt: 2, opened, ..Authority::first(place(1)) }
}
fn read(authority: Authority) -> Read {
    Read { phase: Phase::Active, authority: Some(authority), version: Some(100) }
}
fn moving() -> Read {
    read(Authority { pending: Some(pending()), ..owned() })
}
fn deleting(read: Read) -> Read {
    Read { phase: Phase::Deleting, ..read }
}
fn seen(epoch: u64, version: Option<u64>) -> Seen {
    Seen { epoch: Epoch(epoch), version }
}

// ---- the owner's and the importer's ----

#[test]
fn the_owner_opens_and_nothing_else_changes() {
    let opened = Some(Opened { epoch: Epoch(5), boot: boot(9) });
    assert_eq!(open(&read(owned()), &place(1), boot(9), seen(5, Some(100))), Ok(Authority { opened, ..owned() }));
}

#[test]
fn an_opening_of_an_earlier_epoch_counts_for_nothing() {
    let opened = |epoch| Authority { opened: Some(Opened { epoch: Epoch(epoch), boot: boot(9) }), ..owned() };
    assert!(opened(5).is_opened() && !opened(4).is_opened());
}

#[test]
fn an_opening_is_refused_with_the_reason() {
    let refused = |read: &Read, me: u8, seen| open(read, &place(me), boot(1), seen).unwrap_err();
    let nothing = Seen::default();
    assert_eq!(refused(&Read::default(), 1, nothing), Refusal::NoAuthority);
    assert_eq!(refused(&deleting(Read::default()), 1, nothing), Refusal::Deleting);
    assert_eq!(refused(&deleting(read(owned())), 1, nothing), Refusal::Deleting);
    assert_eq!(refused(&read(owned()), 2, nothing), Refusal::NotOwner { owner: place(1), epoch: Epoch(5) });
    let other_pool = Place { pool: place(7).pool, ..place(1) };
    assert!(open(&read(owned()), &other_pool, boot(1), nothing).is_err(), "another disk in the same node");
    assert_eq!(refused(&moving(), 1, nothing), Refusal::Pending { mig: mig(1), attempt: 2, to: place(2) });
    let api = seen(5, Some(100));
    for newer in [seen(6, None), seen(5, Some(101))] {
        assert_eq!(refused(&read(owned()), 1, newer), Refusal::Regressed { seen: newer, api });
        assert!(matches!(refused(&deleting(read(owned())), 1, newer), Refusal::Regressed { .. }), "a restored deletion proves nothing");
    }
    assert!(open(&read(owned()), &place(1), boot(1), seen(4, Some(101))).is_ok(), "a later epoch was accepted in an API of an older time");
    assert!(open(&Read { version: None, ..read(owned()) }, &place(1), boot(1), seen(5, Some(101))).is_ok(), "a version that is no number");
}

#[test]
fn the_owner_sets_pending_once_in_its_epoch() {
    let pend = |read: &Read, me: u8, epoch: u64, to: u8| pend(read, &place(me), (mig(1), Epoch(epoch)), &place(to), f());
    assert_eq!(pend(&read(owned()), 1, 5, 2), Ok(Authority { pending: Some(pending()), ..owned() }), "with authority's own attempt");
    assert_eq!(pend(&read(owned()), 2, 5, 3), Err(Refusal::NotOwner { owner: place(1), epoch: Epoch(5) }));
    assert_eq!(pend(&read(owned()), 1, 4, 2), Err(Refusal::OtherEpoch { epoch: Epoch(5) }));
    assert!(matches!(pend(&moving(), 1, 5, 3), Err(Refusal::Pending { .. })));
    assert_eq!(pend(&deleting(read(owned())), 1, 5, 2), Err(Refusal::Deleting));
    assert_eq!(pend(&read(owned()), 1, 5, 1), Err(Refusal::SameNode(place(1))));
}

#[test]
fn a_commit_passes_authority_and_ends_the_opening() {
    let next = Authority { owner: place(2), epoch: Epoch(6), opened: None, pending: None, ..owned() };
    assert_eq!(commit(&moving(), &place(1), of()), Ok(next));
    assert_eq!(commit(&deleting(moving()), &place(1), of()), Err(Refusal::Deleting));
    assert!(matches!(commit(&moving(), &place(2), of()), Err(Refusal::NotOwner { .. })), "only the owner commits (R6)");
}

#[test]
fn an_abort_ends_the_attempt_by_either_party_also_while_deleting() {
    let next = Authority { attempt: 3, pending: None, ..owned() };
    for read in [moving(), deleting(moving())] {
        for party in [1, 2] {
            assert_eq!(abort(&read, &place(party), of()), Ok(next.clone()));
        }
        assert_eq!(abort(&read, &place(3), of()), Err(Refusal::NoParty));
    }
}

#[test]
fn commit_and_abort_have_one_guard_and_one_of_them_wins() {
    let others = [
        Attempt { mig: mig(2), ..of() },
        Attempt { attempt: 1, ..of() },
        Attempt { epoch: Epoch(4), ..of() },
        Attempt { epoch: Epoch(6), ..of() },
    ];
    let committed = read(commit(&moving(), &place(1), of()).unwrap());
    let aborted = read(abort(&moving(), &place(1), of()).unwrap());
    for swap in [commit, abort] {
        for other in others {
            assert!(swap(&moving(), &place(1), other).is_err(), "{other:?}");
        }
        for late in [&committed, &aborted] {
            for party in [1, 2] {
                assert!(swap(late, &place(party), of()).is_err(), "a delayed swap changes nothing any more");
            }
        }
    }
}

#[test]
fn a_handoff_that_its_owner_knows_nothing_of_is_disowned() {
    let next = Authority { attempt: 3, pending: None, ..owned() };
    assert_eq!(disown(&moving(), &place(1), None), Ok(next.clone()));
    assert_eq!(disown(&moving(), &place(1), Some(mig(7))), Ok(next), "of another handoff it knows");
    assert!(matches!(disown(&moving(), &place(1), Some(mig(1))), Err(Refusal::Pending { .. })), "that one it does know");
    assert_eq!(disown(&read(owned()), &place(1), None), Err(Refusal::NothingPending { attempt: 2 }));
    assert!(matches!(disown(&moving(), &place(2), None), Err(Refusal::NotOwner { .. })));
}

#[test]
fn agents_may_write_the_four_transitions_of_their_own_node_and_no_other() {
    let idle = read(owned());
    let with = |a: Authority| read(a);
    let opened = with(open(&idle, &place(1), boot(9), Seen::default()).unwrap());
    let pended = moving();
    let committed = with(commit(&pended, &place(1), of()).unwrap());
    let aborted = with(abort(&pended, &place(1), of()).unwrap());
    for (old, new, who) in [
        (&idle, &opened, 1),
        (&idle, &pended, 1),
        (&pended, &committed, 1),
        (&pended, &aborted, 1),
        (&pended, &aborted, 2),
        (&pended, &pended, 2),
    ] {
        assert!(may_agent_write(old, new, &node(who)), "{new:?}");
        assert!(!may_agent_write(old, new, &node(3)), "no party: {new:?}");
    }
    for (old, new, who) in [(&idle, &opened, 2), (&pended, &committed, 2), (&idle, &aborted, 1), (&idle, &committed, 1), (&idle, &idle, 2)]
    {
        assert!(!may_agent_write(old, new, &node(who)), "{new:?}");
    }
    assert!(!may_agent_write(&idle, &Read { phase: Phase::Released, ..idle.clone() }, &node(1)), "the phase is the operator's");
    assert!(!may_agent_write(&Read::default(), &idle, &node(1)), "so is the first owner");
    let fork = ForkPoint { from: place(1), from_epoch: Epoch(5), commit: None };
    assert!(!may_agent_write(&idle, &with(Authority { fork_points: vec![fork], ..owned() }), &node(1)), "and fork points");
}

// ---- the operator's ----

/// A ready replica, complete to that commit of epoch 5.
fn copy(n: u8, seq: u64) -> Copy {
    let epoch = Epoch(5);
    Copy {
        place: place(n),
        role: CopyRole::Replica,
        epoch,
        complete_to: Some(CompleteTo { epoch, seq }),
        newest: Some(Newest { id: CommitId::from_uuid(uuid(u128::from(seq) + 1)), epoch, time: Timestamp(0) }),
        import_start: None,
        handed_over: None,
        wanted: true,
        ready: true,
        lost: false,
    }
}
/// The importer of what is pending, with all of it.
fn importer() -> Copy {
    Copy { import_start: Some(ImportStart { mig: mig(1), attempt: 2, final_commit: f() }), ..copy(2, 1) }
}
fn owner_of(taken: Result<take::Taken, Refusal>) -> Result<NodeName, Refusal> {
    taken.map(|t| t.authority.owner.node)
}

#[test]
fn authority_is_taken_on_proof_only_and_in_use_only() {
    let copies = [copy(2, 1)];
    let all = |read: &Read, lost| steal(read, &copies, lost, None);
    assert_eq!(all(&read(owned()), false), Err(Refusal::NotLost(place(1))));
    let taken = all(&read(owned()), true).unwrap();
    let fork = ForkPoint { from: place(1), from_epoch: Epoch(5), commit: copies[0].newest.map(|n| n.id) };
    let next = Authority { owner: place(2), epoch: Epoch(6), attempt: 3, opened: None, pending: None, fork_points: vec![fork] };
    assert_eq!((taken.authority, taken.without_loss), (next, false));
    assert_eq!(all(&deleting(read(owned())), true), Err(Refusal::Deleting));
    for phase in [Phase::New, Phase::Released, Phase::Headless] {
        assert_eq!(all(&Read { phase, ..read(owned()) }, true), Err(Refusal::NotActive(phase)));
    }
    assert_eq!(all(&Read::default(), true), Err(Refusal::NoAuthority));
}

#[test]
fn the_most_complete_copy_takes_over_whatever_any_clock_says() {
    let ahead = |c: Copy| Copy { newest: c.newest.map(|n| Newest { time: Timestamp(i64::MAX), ..n }), ..c };
    let copies = [ahead(copy(2, 4)), copy(3, 7), ahead(copy(4, 6))];
    let to = |copies: &[Copy], wanted: Option<u8>| owner_of(steal(&read(owned()), copies, true, wanted.map(node).as_ref()));
    assert_eq!(to(&copies, None), Ok(node(3)));
    assert_eq!(to(&copies, Some(2)), Ok(node(3)), "a wish decides between equals only");
    assert_eq!(to(&[copy(2, 4), copy(3, 4)], Some(3)), Ok(node(3)));
    assert_eq!(to(&[copy(3, 4), copy(2, 4)], None), Ok(node(2)), "then the name");
    // Agents of release 0.1 say no more than their newest commit.
    let old = |n, epoch: u64, time: i64| Copy {
        complete_to: None,
        newest: Some(Newest { epoch: Epoch(epoch), time: Timestamp(time), ..copy(n, 0).newest.unwrap() }),
        ..copy(n, 0)
    };
    assert_eq!(to(&[old(2, 5, 1), old(3, 5, 2), old(4, 4, 9)], None), Ok(node(3)));
    // One of them among others: what its commit's number would be, nobody knows.
    let taken_at = |c: Copy, time: i64| Copy { newest: c.newest.map(|n| Newest { time: Timestamp(time), ..n }), ..c };
    assert_eq!(to(&[taken_at(copy(2, 7), 1), old(3, 5, 2), taken_at(copy(4, 9), 1)], None), Ok(node(3)));
    assert_eq!(to(&[taken_at(copy(2, 7), 1), old(3, 4, 9), copy(4, 6)], None), Ok(node(2)), "not beside one of an epoch before");
}

#[test]
fn what_can_t_own_is_no_candidate() {
    let not = |change: fn(&mut Copy)| {
        let mut c = copy(2, 9);
        change(&mut c);
        owner_of(steal(&read(owned()), &[c], true, None))
    };
    assert_eq!(not(|_| {}), Ok(node(2)));
    assert_eq!(not(|c| c.ready = false), Err(Refusal::NoCopy));
    assert_eq!(not(|c| c.wanted = false), Err(Refusal::NoCopy));
    assert_eq!(not(|c| c.lost = true), Err(Refusal::NoCopy));
    assert_eq!(not(|c| c.newest = None), Err(Refusal::NoCopy), "it holds nothing");
    assert_eq!(not(|c| c.role = CopyRole::Superseded), Err(Refusal::NoCopy));
    assert_eq!(not(|c| c.role = CopyRole::None), Err(Refusal::NoCopy));
    assert_eq!(not(|c| c.place = place(1)), Err(Refusal::NoCopy), "the owner itself");
}

#[test]
fn whoever_has_all_of_a_pending_handoff_takes_over_without_loss_and_is_waited_for() {
    let rest = copy(3, 9);
    let taken = steal(&moving(), &[importer(), rest.clone()], true, None).unwrap();
    assert_eq!((taken.authority.owner, taken.without_loss, taken.authority.fork_points.len()), (place(2), true, 0));
    let away = Copy { ready: false, ..importer() };
    assert_eq!(steal(&moving(), &[away.clone(), rest.clone()], true, None), Err(Refusal::WaitsFor(place(2))));
    assert_eq!(owner_of(promote(&moving(), &[away.clone(), rest.clone()], None, true, None)), Ok(node(3)), "a person goes on");
    let gone = Copy { lost: true, ..away };
    assert_eq!(owner_of(steal(&moving(), &[gone, rest.clone()], true, None)), Ok(node(3)), "what is lost too is not waited for");
    for stale in [
        ImportStart { attempt: 1, ..importer().import_start.unwrap() },
        ImportStart { mig: mig(9), ..importer().import_start.unwrap() },
        ImportStart { final_commit: CommitId::from_uuid(uuid(0xe)), ..importer().import_start.unwrap() },
    ] {
        let stale = Copy { import_start: Some(stale), ..importer() };
        assert_eq!(owner_of(steal(&moving(), &[stale.clone(), rest.clone()], true, None)), Ok(node(3)), "{stale:?}");
    }
    let elsewhere = Copy { place: place(4), ..importer() };
    assert!(!steal(&moving(), &[elsewhere], true, None).unwrap().without_loss, "it is not the one that is to be");
    assert!(!steal(&read(owned()), &[importer()], true, None).unwrap().without_loss, "nothing is pending");
}

/// n2 owns it in epoch 6 by n1's Commit, and has not opened.
fn handed_over() -> Read {
    read(commit(&moving(), &place(1), of()).unwrap())
}
fn giver() -> Copy {
    Copy { handed_over: Some(Epoch(6)), epoch: Epoch(6), ..copy(1, 1) }
}

#[test]
fn authority_is_given_back_while_the_new_owner_has_not_opened() {
    let copies = [giver(), copy(3, 9)];
    let back = give_back(&handed_over(), &copies, &node(1)).unwrap();
    let next = Authority { owner: place(1), epoch: Epoch(7), attempt: 3, opened: None, pending: None, fork_points: Vec::new() };
    assert_eq!((back.authority.clone(), back.without_loss), (next, true));
    assert_eq!(steal(&handed_over(), &copies, true, None).map(|t| t.authority), Ok(back.authority), "so it is if the new owner is lost");
    let opened = read(open(&handed_over(), &place(2), boot(4), Seen::default()).unwrap());
    let refused = Refusal::AlreadyOpened { owner: place(2), epoch: Epoch(6) };
    assert_eq!(give_back(&opened, &copies, &node(1)), Err(refused));
    assert_eq!(owner_of(steal(&opened, &copies, true, None)), Ok(node(3)), "then the giver has no more than any other");
    assert_eq!(give_back(&handed_over(), &copies, &node(3)), Err(Refusal::NoCopy), "only to the one that gave");
    assert_eq!(
        give_back(&handed_over(), &[Copy { handed_over: Some(Epoch(5)), ..giver() }], &node(1)),
        Err(Refusal::NoCopy),
        "an earlier one"
    );
    assert_eq!(give_back(&handed_over(), &[Copy { ready: false, ..giver() }], &node(1)), Err(Refusal::NoCopy));
    assert_eq!(give_back(&deleting(handed_over()), &copies, &node(1)), Err(Refusal::Deleting));
}

#[test]
fn what_may_be_lost_is_accepted_by_a_person_or_not_done() {
    let copies = [copy(2, 1), copy(3, 4)];
    let promote = |at: Option<u8>, accept| owner_of(promote(&read(owned()), &copies, at.map(node).as_ref(), accept, None));
    assert_eq!(promote(None, false), Err(Refusal::MayLose { from: place(1), to: place(3) }));
    assert_eq!(promote(None, true), Ok(node(3)));
    assert_eq!(promote(Some(2), true), Ok(node(2)));
    assert_eq!(promote(Some(1), true), Err(Refusal::SameNode(place(1))));
    assert_eq!(promote(Some(9), true), Err(Refusal::NoCopy));
    assert_eq!(owner_of(super::take::promote(&moving(), &[importer()], None, false, None)), Ok(node(2)), "R5 loses nothing");
    assert_eq!(owner_of(super::take::promote(&handed_over(), &[giver()], Some(&node(1)), false, None)), Ok(node(1)), "nor does R4");
    assert!(super::take::promote(&deleting(moving()), &[importer()], None, true, None).is_err());
}

#[test]
fn fork_points_are_bounded_and_the_newest_stay() {
    let mut a = owned();
    a.fork_points = (0..70).map(|n| ForkPoint { from: place(1), from_epoch: Epoch(n), commit: None }).collect();
    let points = steal(&read(a), &[copy(2, 1)], true, None).unwrap().authority.fork_points;
    assert_eq!((points.len(), points.last().map(|f| f.from_epoch)), (FORK_POINTS, Some(Epoch(5))));
}

fn claim(n: u8, epoch: u64, seq: u64) -> Copy {
    let complete_to = Some(CompleteTo { epoch: Epoch(epoch), seq });
    Copy { role: CopyRole::Owner, epoch: Epoch(epoch), complete_to, ..copy(n, seq) }
}

#[test]
fn accept_goes_above_every_epoch_that_was_seen_to_the_highest_claim() {
    let accept = |read: &Read, accepted: u64, copies: &[Copy]| accept(read, Epoch(accepted), copies).map(|a| (a.owner, a.epoch));
    let seen_more = Copy { epoch: Epoch(9), ..copy(3, 1) };
    assert_eq!(accept(&read(owned()), 5, &[claim(1, 5, 1), seen_more]), Ok((place(1), Epoch(10))));
    // Restored to before a steal: n2 claims a later epoch than the owner on record.
    assert_eq!(accept(&read(owned()), 6, &[claim(1, 5, 9), claim(2, 6, 1)]), Ok((place(2), Epoch(7))));
    // And then the old owner moved it to n3: two of one epoch.
    let conflict = read(Authority { owner: place(3), epoch: Epoch(6), ..owned() });
    assert_eq!(accept(&conflict, 6, &[claim(2, 6, 4), claim(3, 6, 2)]), Ok((place(2), Epoch(7))), "what they hold decides");
    assert_eq!(accept(&conflict, 6, &[claim(3, 6, 2), claim(2, 6, 4)]), Ok((place(2), Epoch(7))), "in whatever order they are listed");
    assert_eq!(accept(&conflict, 6, &[claim(2, 6, 4), claim(3, 6, 4)]), Err(Refusal::EqualClaims(place(2), place(3))));
    let silent = Copy { complete_to: None, ..claim(3, 6, 2) };
    let ask = Err(Refusal::EqualClaims(place(2), place(3)));
    assert_eq!(accept(&conflict, 6, &[claim(2, 6, 4), silent.clone()]), ask, "of an agent that doesn't say, nobody knows");
    let empty = Copy { newest: None, ..silent };
    assert_eq!(accept(&conflict, 6, &[claim(2, 6, 4), empty]), Ok((place(2), Epoch(7))), "it has none, and says so");
    let dropped = Copy { wanted: false, ..claim(3, 6, 4) };
    assert_eq!(accept(&conflict, 6, &[claim(2, 6, 4), dropped]), Ok((place(2), Epoch(7))), "a person has chosen");
    // In the middle of a handoff the record is ahead of both.
    assert_eq!(accept(&handed_over(), 6, &[claim(1, 5, 9), copy(2, 9)]), Ok((place(2), Epoch(7))));
    let superseded = Copy { role: CopyRole::Superseded, ..claim(1, 6, 9) };
    assert_eq!(accept(&Read::default(), 1, &[superseded.clone(), claim(2, 5, 1)]), Ok((place(2), Epoch(7))));
    assert_eq!(accept(&Read::default(), 1, &[superseded]), Ok((place(1), Epoch(7))), "if nobody else does");
    assert_eq!(accept(&Read::default(), 1, &[copy(2, 1)]), Err(Refusal::NoAuthority));
    assert_eq!(accept(&read(owned()), 1, &[]), Err(Refusal::Accepted(Epoch(5))));
    assert_eq!(accept(&read(owned()), 8, &[]), Ok((place(1), Epoch(9))), "its pool says nothing: the record is all there is");
    let cleared = super::take::accept(&moving(), Epoch(5), &[]).unwrap();
    assert_eq!((cleared.opened, cleared.pending, cleared.attempt), (None, None, 3));
}

// ---- what follows ----

#[test]
fn an_owner_fences_also_for_another_of_its_own_epoch() {
    let standing =
        |owner: u8, epoch: u64| of_owner(&Authority { owner: place(owner), epoch: Epoch(epoch), ..owned() }, &place(1), Epoch(5));
    assert_eq!(standing(1, 5), OwnerStanding::Mine);
    assert_eq!(standing(1, 7), OwnerStanding::Mine);
    assert_eq!(standing(2, 6), OwnerStanding::Elsewhere);
    assert_eq!(standing(2, 5), OwnerStanding::Elsewhere, "two of one epoch");
    for owner in [1, 2] {
        assert_eq!(standing(owner, 4), OwnerStanding::Regressed);
    }
}

#[test]
fn an_exporter_holds_until_authority_has_decided() {
    let standing = |a: &Authority| of_export(a, &place(1), &place(2), of());
    let moving = moving().authority.unwrap();
    assert_eq!(standing(&moving), ExportStanding::Pending(2));
    assert_eq!(standing(&Authority { pending: Some(Pending { mig: mig(9), ..pending() }), ..owned() }), ExportStanding::OtherPending);
    assert_eq!(standing(&owned()), ExportStanding::Unset);
    assert_eq!(standing(&Authority { attempt: 3, ..owned() }), ExportStanding::Aborted);
    assert_eq!(standing(&Authority { epoch: Epoch(6), ..owned() }), ExportStanding::Reinstated);
    let after = handed_over().authority.unwrap();
    assert_eq!(standing(&after), ExportStanding::HandedOver { opened: false });
    let opened = open(&handed_over(), &place(2), boot(4), Seen::default()).unwrap();
    assert_eq!(standing(&opened), ExportStanding::HandedOver { opened: true });
    assert_eq!(standing(&Authority { owner: place(3), ..after }), ExportStanding::Elsewhere);
    assert_eq!(standing(&Authority { epoch: Epoch(4), ..moving }), ExportStanding::Regressed);
}

#[test]
fn an_importer_takes_over_only_what_authority_has_given_it() {
    let standing = |a: &Authority| of_import(a, &place(2), &place(1), of());
    let moving = moving().authority.unwrap();
    assert_eq!(standing(&moving), ImportStanding::Undecided);
    assert_eq!(standing(&Authority { epoch: Epoch(4), ..owned() }), ImportStanding::Undecided, "restored");
    assert_eq!(standing(&handed_over().authority.unwrap()), ImportStanding::Mine);
    assert_eq!(standing(&owned()), ImportStanding::NotMine, "aborted, and the epoch is still the same");
    assert_eq!(standing(&Authority { pending: Some(Pending { attempt: 3, ..pending() }), ..owned() }), ImportStanding::NotMine);
    assert_eq!(standing(&Authority { pending: Some(Pending { mig: mig(9), ..pending() }), ..owned() }), ImportStanding::NotMine);
    assert_eq!(standing(&Authority { pending: Some(Pending { to: place(3), ..pending() }), ..owned() }), ImportStanding::NotMine);
    assert_eq!(standing(&Authority { owner: place(3), epoch: Epoch(6), ..owned() }), ImportStanding::NotMine);
    assert_eq!(standing(&Authority { owner: place(2), epoch: Epoch(5), ..owned() }), ImportStanding::NotMine, "not by this handoff");
}

#[test]
fn what_was_handed_over_is_kept_until_the_new_owner_has_opened_or_authority_is_back() {
    let kept = |authority: &Authority| of_kept(authority, &place(1), &place(2), Epoch(6));
    let after = handed_over().authority.unwrap();
    assert_eq!(kept(&owned()), KeptStanding::Regressed);
    assert_eq!(kept(&after), KeptStanding::Needed);
    assert_eq!(kept(&Authority { opened: Some(Opened { epoch: Epoch(5), boot: boot(1) }), ..after.clone() }), KeptStanding::Needed);
    assert_eq!(kept(&open(&handed_over(), &place(2), boot(4), Seen::default()).unwrap()), KeptStanding::Over);
    assert_eq!(kept(&after.passed_to(place(1))), KeptStanding::Back);
    assert_eq!(kept(&after.passed_to(place(3))), KeptStanding::Over, "handed on, so it was opened");
    let lost = ForkPoint { from: place(2), from_epoch: Epoch(6), commit: None };
    let forced = Authority { fork_points: vec![lost], ..after.passed_to(place(3)) };
    assert_eq!(kept(&forced), KeptStanding::Needed, "what it was given may be nowhere else");
    let later = forced.passed_to(place(1));
    assert_eq!(kept(&later), KeptStanding::Over, "others have written since");
}

#[test]
fn nothing_goes_that_authority_may_need() {
    let plain = Leaving { owner: false, importing: false, handed_over: None, epoch: Epoch(5), told: Epoch(5) };
    let go = |read: &Read, me: u8, leaving| may_go(Some(read), &place(me), leaving);
    assert_eq!(go(&read(owned()), 2, plain), Ok(()));
    assert_eq!(may_go(None, &place(2), plain), Ok(()), "a tombstone outlives its Filesystem");
    for needed in [
        Leaving { owner: true, ..plain },
        Leaving { importing: true, ..plain },
        Leaving { handed_over: Some(Epoch(5)), ..plain },
        Leaving { epoch: Epoch(6), ..plain },
    ] {
        assert_eq!(may_go(None, &place(2), needed), Err(Refusal::NoAuthority), "an absent object is not a deleting one");
    }
    assert_eq!(go(&Read::default(), 2, plain), Err(Refusal::NoAuthority));
    assert!(go(&read(owned()), 1, plain).is_err(), "it is the owner, whatever it thinks");
    assert!(go(&read(owned()), 2, Leaving { owner: true, ..plain }).is_err());
    assert!(go(&read(owned()), 2, Leaving { epoch: Epoch(6), ..plain }).is_err(), "it is newer than the word");
    assert!(go(&moving(), 2, plain).is_err(), "authority is about to come here");
    assert_eq!(go(&moving(), 3, plain), Ok(()));
    assert!(go(&moving(), 3, Leaving { importing: true, ..plain }).is_err());
    let gave = Leaving { handed_over: Some(Epoch(6)), epoch: Epoch(6), told: Epoch(6), ..plain };
    assert!(go(&handed_over(), 1, gave).is_err(), "authority may have to come back");
    let opened = read(open(&handed_over(), &place(2), boot(4), Seen::default()).unwrap());
    assert_eq!(go(&opened, 1, gave), Ok(()));
    for all in [read(owned()), moving(), handed_over()] {
        for me in [1, 2, 3] {
            assert_eq!(go(&deleting(all.clone()), me, Leaving { owner: true, importing: true, ..gave }), Ok(()), "it is being deleted");
        }
    }
    assert!(may_be_dropped(&moving().authority.unwrap(), &place(2), None).is_err());
    assert!(may_be_dropped(&handed_over().authority.unwrap(), &place(1), Some(Epoch(6))).is_err());
    assert_eq!(may_be_dropped(&handed_over().authority.unwrap(), &place(1), Some(Epoch(5))), Ok(()));
}

#[test]
fn every_refusal_says_why() {
    let all = [
        Refusal::NoAuthority,
        Refusal::Regressed { seen: seen(6, Some(7)), api: seen(5, None) },
        Refusal::Deleting,
        Refusal::NotOwner { owner: place(1), epoch: Epoch(5) },
        Refusal::Pending { mig: mig(1), attempt: 2, to: place(2) },
    ];
    let reasons: Vec<_> = all.iter().map(Refusal::reason).collect();
    assert_eq!(
        reasons,
        [Reason::AuthorityUnknown, Reason::EpochRegression, Reason::Deleting, Reason::NotOwner, Reason::Busy],
        "conditions and answers are made of these"
    );
    assert!(all[1].problem().message.contains("epoch 6 (version 7)"));
}
