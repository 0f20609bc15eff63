//! The table of decisions about one Filesystem.

use dotgraft_api::{Orphan, ReplicaStatus, Time};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::pools::tests::{pool, pool_id};
use crate::testing::{self, FS, claim, commit, filesystem, job, replica};

fn place(node: &str) -> Place {
    Place { node: node.into(), pool: pool_id(node) }
}
fn authority(node: &str, epoch: u64) -> Authority {
    Authority { owner: place(node), epoch, ..Authority::default() }
}
/// Two pools, a claim, no owner yet.
fn fresh() -> View {
    View {
        fs: filesystem(Some(FilesystemPhase::New), None),
        claim: Some(claim()),
        pools: vec![pool("n1", 9), pool("n2", 5)],
        ..View::default()
    }
}
/// Owned by n1, all in order.
fn settled() -> View {
    let mut view = fresh();
    view.fs = filesystem(Some(FilesystemPhase::Active), Some(authority("n1", 1)));
    converge(&mut view);
    view
}
/// Applies the plan's Replica writes to the view until nothing follows.
fn converge(view: &mut View) {
    for _ in 0..5 {
        let plan = plan(view);
        let mut wrote = false;
        for w in plan.writes {
            if let Write::Create(spec, marks) | Write::Update(spec, marks) = w {
                view.replicas.retain(|r| r.spec.pool != spec.pool);
                let role = if spec.desired.role == Some(DesiredRole::Owner) { CopyRole::Owner } else { CopyRole::Replica };
                view.replicas.push(Arc::new(replica(*spec, marks, role)));
                wrote = true;
            }
        }
        if !wrote {
            return;
        }
    }
    panic!("never settles");
}
fn blocked(view: &View) -> &'static str {
    let plan = plan(view);
    assert_eq!(plan.writes, [], "nothing is written while it is blocked");
    plan.blocked.map_or("", |b| b.reason.as_str())
}

#[test]
fn a_new_filesystem_gets_an_owner_with_epoch_one() {
    let plan = plan(&fresh());
    assert_eq!(plan.writes, [Write::Status(FilesystemPhase::New, Some(Box::new(authority("n1", 1))))]);
    assert!(plan.is_critical(&fresh()));
}

#[test]
fn no_owner_without_claim_pool_or_phase() {
    let mut v = fresh();
    v.claim = None;
    assert_eq!(plan(&v), Plan::default());
    let mut v = fresh();
    v.pools.clear();
    assert_eq!(blocked(&v), "NoPool");
    let mut v = fresh();
    v.fs.status = None;
    assert_eq!(blocked(&v), "AuthorityUnknown", "restored without status: not New");
}

#[test]
fn authority_is_never_made_up_for_what_is_not_new() {
    for phase in [FilesystemPhase::Active, FilesystemPhase::Released, FilesystemPhase::Headless] {
        let mut v = fresh();
        v.fs = filesystem(Some(phase), None);
        assert_eq!(blocked(&v), "AuthorityUnknown", "{phase:?}");
    }
}

#[test]
fn a_new_filesystem_whose_data_is_already_on_a_pool_is_not_started() {
    let mut v = fresh();
    v.pools[1].orphans.insert(FS.into());
    assert_eq!(blocked(&v), "AuthorityUnknown");
    let _ = Orphan::default();
}

#[test]
fn the_owner_is_made_first_then_active_then_copies_for_jobs() {
    let mut v = fresh();
    v.fs = filesystem(Some(FilesystemPhase::New), Some(authority("n1", 1)));
    v.jobs = vec![Arc::new(job("j", "n2", 1))];
    let first = plan(&v);
    assert!(matches!(first.writes.as_slice(), [Write::Create(s, _)] if s.node == "n1" && s.desired.role == Some(DesiredRole::Owner)));
    converge(&mut v);
    assert_eq!(plan(&v).writes, [Write::Status(FilesystemPhase::Active, Some(Box::new(authority("n1", 1))))]);
    v.fs = filesystem(Some(FilesystemPhase::Active), Some(authority("n1", 1)));
    converge(&mut v);
    assert_eq!(v.replicas.len(), 2);
    let owner = v.replicas.iter().find(|r| r.spec.node == "n1").unwrap();
    assert_eq!(owner.spec.desired.jobs.len(), 1);
    assert_eq!((&owner.spec.desired.peers, &owner.spec.desired.owner), (&vec![place("n2")], &None));
    let copy = v.replicas.iter().find(|r| r.spec.node == "n2").unwrap();
    assert_eq!(copy.spec.desired.owner, Some(place("n1")), "only n1 may send to it");
}

#[test]
fn what_asks_for_too_much_stays_at_what_it_has_and_may_shrink() {
    let mut v = settled();
    let sizes = |v: &View| v.replicas.iter().map(|r| (r.spec.desired.capacity, r.spec.desired.history_limit)).collect::<Vec<_>>();
    let before = sizes(&v);
    v.limited = true;
    let claim = v.claim.as_mut().unwrap();
    (claim.capacity, claim.history_limit) = (Ok(1 << 50), Ok(1 << 20));
    v.jobs = vec![Arc::new(job("j", "n2", 1))];
    converge(&mut v);
    assert_eq!(sizes(&v), [(before[0].0, 1 << 20)], "neither larger nor on another node");
    v.limited = false;
    converge(&mut v);
    assert_eq!(sizes(&v), [(1 << 50, 1 << 20); 2]);
    v.limited = true;
    converge(&mut v);
    assert_eq!(v.replicas.len(), 2, "what is there stays, and its job goes on");
    assert!(v.replicas.iter().any(|r| r.spec.desired.jobs.len() == 1));
}

#[test]
fn in_steady_state_nothing_is_written() {
    let mut v = settled();
    v.jobs = vec![Arc::new(job("j", "n2", 1))];
    v.commits = vec![Arc::new(commit("c", 1))];
    converge(&mut v);
    assert_eq!(plan(&v), Plan::default());
    v.jobs.reverse();
    assert_eq!(plan(&v), Plan::default());
}

#[test]
fn a_copy_stays_unmanaged_when_its_job_goes() {
    let mut v = settled();
    v.jobs = vec![Arc::new(job("j", "n2", 1))];
    converge(&mut v);
    v.jobs.clear();
    let plan = plan(&v);
    assert!(!plan.is_critical(&v), "nothing is deleted");
    assert!(plan.writes.contains(&Write::Update(
        Box::new(v.replicas.iter().find(|r| r.spec.node == "n2").unwrap().spec.clone()),
        Marks { unmanaged: true, ..Marks::default() }
    )));
    converge(&mut v);
    let copy = v.replicas.iter().find(|r| r.spec.node == "n2").unwrap();
    assert!(Marks::of(copy).unmanaged && copy.spec.desired.state == DesiredState::Present);
}

#[test]
fn a_dropped_copy_goes_but_never_the_owner() {
    let mut v = settled();
    v.jobs = vec![Arc::new(job("j", "n2", 1))];
    converge(&mut v);
    v.dropped = BTreeSet::from([pool_id("n1"), pool_id("n2")]);
    converge(&mut v);
    let state = |n: &str| v.replicas.iter().find(|r| r.spec.node == n).unwrap().spec.desired.state;
    assert_eq!((state("n1"), state("n2")), (DesiredState::Present, DesiredState::Absent));
}

#[test]
fn the_name_of_the_csi_call_goes_to_the_copies_and_stays_while_the_claim_is_gone() {
    let mut v = settled();
    let told = |v: &View| v.replicas[0].spec.desired.claim.as_ref().and_then(|c| c.csi_name.clone());
    assert_eq!(told(&v), None);
    v.claim.as_mut().unwrap().csi_name = Some("pvc-1".into());
    converge(&mut v);
    assert_eq!(told(&v).as_deref(), Some("pvc-1"));
    let fs = v.fs.clone();
    v.claim = None;
    v.fs = fs;
    converge(&mut v);
    assert_eq!(told(&v).as_deref(), Some("pvc-1"));
}

#[test]
fn a_lost_claim_changes_nothing() {
    let mut v = settled();
    v.claim = None;
    assert_eq!(plan(&v), Plan::default());
}

#[test]
fn deleting_sends_every_copy_away_and_waits_for_each() {
    let mut v = settled();
    v.jobs = vec![Arc::new(job("j", "n2", 1))];
    converge(&mut v);
    v.fs = filesystem(Some(FilesystemPhase::Deleting), Some(authority("n1", 4)));
    let first = plan(&v);
    assert_eq!(first.writes.len(), 2);
    assert!(first.is_critical(&v));
    assert!(first.writes.iter().all(|w| matches!(w, Write::Update(s, _)
        if s.desired.state == DesiredState::Absent && s.desired.epoch == 4 && s.desired.jobs.is_empty() && s.desired.role.is_none())));
    converge(&mut v);
    assert_eq!(plan(&v), Plan::default(), "waits for the agents");
    v.replicas = v.replicas.iter().map(|r| Arc::new(testing::confirmed(r))).collect();
    assert_eq!(plan(&v).writes, [Write::Finish]);
}

#[test]
fn an_old_confirmation_does_not_count() {
    let mut v = settled();
    v.fs = filesystem(Some(FilesystemPhase::Deleting), Some(authority("n1", 1)));
    converge(&mut v);
    let mut r = testing::confirmed(&v.replicas[0]);
    r.metadata.generation = Some(99);
    v.replicas = vec![Arc::new(r)];
    assert_eq!(plan(&v), Plan::default());
}

#[test]
fn a_pool_that_is_gone_for_good_is_not_waited_for_but_one_that_is_down_is() {
    let mut v = settled();
    v.fs = filesystem(Some(FilesystemPhase::Deleting), Some(authority("n1", 1)));
    converge(&mut v);
    v.pools[0].ready = false;
    assert_eq!(plan(&v), Plan::default());
    v.pools[0].node_exists = false;
    assert_eq!(plan(&v).writes, [Write::Finish]);
}

#[test]
fn a_tombstone_is_still_told_to_go() {
    let mut v = settled();
    v.fs = filesystem(Some(FilesystemPhase::Deleting), Some(authority("n1", 1)));
    v.pools[0].node_exists = false;
    let plan = plan(&v);
    assert!(matches!(plan.writes.as_slice(), [Write::Update(..)]), "first the intent, then the end: {plan:?}");
}

#[test]
fn deleting_the_object_of_released_data_is_an_intent_of_claimed_data_not() {
    let mut v = settled();
    v.fs.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(plan(&v), Plan::default());
    v.fs.status = filesystem(Some(FilesystemPhase::Released), Some(authority("n1", 1))).status;
    assert!(matches!(plan(&v).writes.as_slice(), [Write::Status(FilesystemPhase::Deleting, Some(_))]));
}

#[test]
fn a_branch_starts_where_its_origin_is() {
    let mut v = fresh();
    v.fs.spec.origin = Some(dotgraft_api::Origin { fs_id: FS.into(), commit: FS.into() });
    assert_eq!(blocked(&v), "SourceNotReady");
    v.origin_owner = Some(place("n2"));
    assert!(matches!(plan(&v).writes.as_slice(), [Write::Status(_, Some(a))] if a.owner == place("n2")));
    v.claim.as_mut().unwrap().placement.node = Some("n1".into());
    assert_eq!(blocked(&v), "PlacementUnavailable");
}

fn seen(view: &mut View, node: &str, role: CopyRole, epoch: u64) {
    let mut r = Replica::clone(view.replicas.iter().find(|r| r.spec.node == node).unwrap());
    r.status = Some(ReplicaStatus { role, epoch, ..ReplicaStatus::default() });
    view.replicas.retain(|x| x.spec.node != node);
    view.replicas.push(Arc::new(r));
}

#[test]
fn accept_goes_above_every_epoch_that_was_seen_and_clears_what_was_open() {
    let mut v = settled();
    let mut a = authority("n1", 2);
    a.attempt = 3;
    a.opened = Some(dotgraft_api::Opened { epoch: 2, boot_id: FS.into() });
    v.fs.status = filesystem(Some(FilesystemPhase::Active), Some(a)).status;
    seen(&mut v, "n1", CopyRole::Owner, 7);
    v.fs.spec.accept_epoch = Some(7);
    let next = Authority { attempt: 4, ..authority("n1", 8) };
    assert_eq!(plan(&v).writes, [Write::Status(FilesystemPhase::Active, Some(Box::new(next.clone())))]);
    v.fs.status = filesystem(Some(FilesystemPhase::Active), Some(next)).status;
    assert!(!matches!(plan(&v).writes.first(), Some(Write::Status(..))), "accepted once");
}

#[test]
fn accept_without_authority_takes_the_highest_owner_and_no_tie() {
    let mut v = settled();
    v.jobs = vec![Arc::new(job("j", "n2", 1))];
    converge(&mut v);
    v.fs.status = filesystem(Some(FilesystemPhase::Active), None).status;
    v.fs.spec.accept_epoch = Some(1);
    seen(&mut v, "n1", CopyRole::Owner, 3);
    seen(&mut v, "n2", CopyRole::Owner, 3);
    assert_eq!(blocked(&v), "EqualOwners");
    seen(&mut v, "n2", CopyRole::Owner, 5);
    assert!(matches!(plan(&v).writes.as_slice(), [Write::Status(_, Some(a))] if a.owner == place("n2") && a.epoch == 6));
    seen(&mut v, "n1", CopyRole::Replica, 3);
    seen(&mut v, "n2", CopyRole::Replica, 5);
    assert_eq!(blocked(&v), "AuthorityUnknown");
}

#[test]
fn without_a_head_everything_stays_until_the_last_snapshot_goes() {
    let mut v = settled();
    v.fs = filesystem(Some(FilesystemPhase::Headless), Some(authority("n1", 1)));
    v.snapshots = 1;
    assert_eq!(plan(&v), Plan::default(), "its Dot is going");
    v.claim = None;
    let gone = plan(&v);
    assert!(matches!(gone.writes.as_slice(), [Write::Update(s, _)] if s.desired.headless), "its Dot is gone, and the head goes: {gone:?}");
    assert!(gone.is_critical(&v), "decided by what the API server says");
    converge(&mut v);
    assert_eq!(plan(&v), Plan::default());
    v.commits = vec![Arc::new(testing::deleted(testing::recorded(commit("c", 1))))];
    converge(&mut v);
    assert_eq!(v.replicas[0].spec.desired.commits.len(), 1, "snapshots go one by one");
    assert_eq!(v.replicas[0].spec.desired.state, DesiredState::Present);
    v.snapshots = 0;
    let last = plan(&v);
    assert!(matches!(last.writes.as_slice(), [Write::Status(FilesystemPhase::Deleting, Some(_))]), "{last:?}");
    assert!(last.is_critical(&v), "decided by what the API server says");
}

#[test]
fn a_new_dot_begins_on_the_node_that_was_chosen_for_it() {
    let mut v = fresh();
    v.claim.as_mut().unwrap().initial_node = Some("n2".into());
    assert!(matches!(plan(&v).writes.as_slice(), [Write::Status(_, Some(a))] if a.owner == place("n2")));
}
