//! Where authority should be, and who may take it.
#![allow(clippy::missing_panics_doc)] // tests

use std::sync::Arc;

use dotgraft_api::{Authority, Fencing, FilesystemPhase, Place, Publication, Replica, ReplicaCommit, ReplicaStatus, Time};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::filesystem::plan::{Write, plan};
use crate::filesystem::spare::Marks;
use crate::pools::tests::{pool, pool_id};
use crate::testing::{FS, claim, filesystem, replica};

/// A node's pool.
pub fn place(node: &str) -> Place {
    Place { node: node.into(), pool: pool_id(node) }
}
/// n1's, in epoch 3.
pub fn authority() -> Authority {
    Authority { owner: place("n1"), epoch: 3, attempt: 2, ..Authority::default() }
}
/// A copy with one commit of that age.
pub fn copy(node: &str, role: CopyRole, seconds: i64) -> Arc<Replica> {
    let spec = dotgraft_api::ReplicaSpec { fs_id: FS.into(), node: node.into(), pool: pool_id(node), ..Default::default() };
    let mut r = replica(spec, Marks { unmanaged: true, ..Marks::default() }, role);
    let commit = ReplicaCommit {
        id: FS.into(),
        parent: None,
        time: Time(Timestamp::from_second(seconds).unwrap()),
        message: String::new(),
        epoch: 3,
        deleted: false,
    };
    r.status =
        Some(ReplicaStatus { role, commit_count: 1, head: Some(FS.into()), recent_commits: vec![commit], ..ReplicaStatus::default() });
    Arc::new(r)
}
/// Owned by n1; three pools.
pub fn view() -> View {
    View {
        fs: filesystem(Some(FilesystemPhase::Active), Some(authority())),
        claim: Some(claim()),
        replicas: vec![copy("n1", CopyRole::Owner, 9)],
        pools: vec![pool("n1", 9), pool("n2", 9), pool("n3", 9)],
        ..View::default()
    }
}
/// Kubernetes attaches it.
pub fn publish(v: &mut View, node: &str, read_only: bool) {
    v.fs.spec.published_to.push(Publication { node: node.into(), read_only });
}
fn moves_to(v: &View) -> Option<Place> {
    plan(v).writes.iter().find_map(|w| match w {
        Write::Update(spec, _) | Write::Create(spec, _) if spec.node == "n1" => spec.desired.move_to.clone(),
        _ => None,
    })
}

#[test]
fn attachment_beats_placement_and_reading_moves_nothing() {
    let mut v = view();
    assert_eq!(goal(&v, &authority()), None);
    v.claim.as_mut().unwrap().placement.node = Some("n2".into());
    assert_eq!(goal(&v, &authority()), Some(Ok(place("n2"))));
    publish(&mut v, "n3", true);
    assert_eq!(goal(&v, &authority()), Some(Ok(place("n2"))));
    publish(&mut v, "n1", false);
    assert_eq!(goal(&v, &authority()), None);
}

#[test]
fn the_owner_is_asked_once_the_target_has_a_copy_to_receive_into() {
    let mut v = view();
    publish(&mut v, "n2", false);
    assert!(plan(&v).writes.iter().any(|w| matches!(w, Write::Create(s, _) if s.node == "n2")), "the copy is made first");
    assert_eq!(moves_to(&v), None);
    v.replicas.push(copy("n2", CopyRole::Replica, 1));
    assert_eq!(moves_to(&v), Some(place("n2")));
}

#[test]
fn a_node_without_pool_or_of_another_group_can_t_take_it() {
    let mut v = view();
    let refused = |v: &View| matches!(goal(v, &authority()), Some(Err(b)) if b.reason.as_str() == "PlacementRefused");
    publish(&mut v, "n9", false);
    assert!(refused(&v));
    v.fs.spec.published_to[0].node = "n2".into();
    v.pools[1].group = "other".into();
    assert!(refused(&v));
}

#[test]
fn it_goes_back_to_where_it_is_wanted_again_as_long_as_the_new_owner_has_not_opened() {
    let mut v = view();
    let gave = |epoch| {
        let mut r = (*copy("n2", CopyRole::Replica, 5)).clone();
        r.status.as_mut().unwrap().handed_over = Some(epoch);
        Arc::new(r)
    };
    v.replicas.push(gave(3));
    v.claim.as_mut().unwrap().fencing = Fencing::Manual;
    let stolen = |v: &View| steal(v, FilesystemPhase::Active, &authority()).ok();
    assert_eq!(stolen(&v), None, "nobody wants it there");
    publish(&mut v, "n2", false);
    let back = stolen(&v).expect("given back, also under Manual, with no proof of anything");
    assert_eq!((back.owner.clone(), back.epoch, back.fork_points.len()), (place("n2"), 4, 0), "nothing is given up");
    v.replicas[1] = gave(2);
    assert_eq!(stolen(&v), None, "of an earlier handoff it has less");
    v.replicas[1] = gave(3);
    let opened = dotgraft_api::Opened { epoch: 3, boot_id: FS.into() };
    v.fs.status.as_mut().unwrap().authority.as_mut().unwrap().opened = Some(opened);
    assert_eq!(stolen(&v), None, "what the new owner wrote may be there only");
}

#[test]
fn only_from_an_owner_that_is_proven_lost_and_only_if_it_is_needed_elsewhere() {
    let mut v = view();
    v.replicas.push(copy("n2", CopyRole::Replica, 5));
    let stolen = |v: &View| steal(v, FilesystemPhase::Active, &authority()).ok();
    publish(&mut v, "n3", false);
    assert_eq!(stolen(&v), None, "the owner is merely elsewhere");
    v.pools[0].ready = false;
    assert_eq!(stolen(&v), None, "an agent that is down proves nothing");
    v.pools[0].out_of_service = true;
    let taken = stolen(&v).expect("taken");
    assert_eq!((taken.owner.clone(), taken.epoch, taken.attempt, taken.opened.clone()), (place("n2"), 4, 3, None));
    assert_eq!(taken.fork_points.len(), 1, "what the old owner has beyond it is to be found again");
    assert_eq!(plan(&v).writes, [Write::Status(FilesystemPhase::Active, Some(Box::new(taken)))]);
    v.claim.as_mut().unwrap().fencing = Fencing::Manual;
    assert_eq!(stolen(&v), None, "under Manual a person promotes");
    v.claim.as_mut().unwrap().fencing = Fencing::Proof;
    v.fs.spec.published_to.clear();
    assert_eq!(stolen(&v), None, "nobody needs it elsewhere");
}
