//! When a copy is ours, spare, and over.

use dotgraft_api::{Opened, Publication, ReplicaCommit, Time};

use super::super::moving::tests::{copy, view};
use super::super::plan::{Write, plan};
use super::*;
use crate::pools::tests::pool_id;
use crate::testing::job;

const HOUR: i64 = 3_600;

fn at<'a>(v: &'a View, node: &str) -> &'a Arc<Replica> {
    v.replicas.iter().find(|r| r.spec.node == node).unwrap()
}
fn edit(v: &mut View, node: &str, change: impl FnOnce(&mut Replica)) {
    let i = v.replicas.iter().position(|r| r.spec.node == node).unwrap();
    change(Arc::make_mut(&mut v.replicas[i]));
}
fn ours(r: &mut Replica, since: Option<i64>) {
    r.metadata.labels.get_or_insert_default().insert(names::OURS_LABEL.into(), "true".into());
    let time = since.map(|s| (names::SPARE_ANNOTATION.to_owned(), Timestamp::from_second(s).unwrap().to_string()));
    r.metadata.annotations = time.map(|t| [t].into());
}
fn told(v: &View, node: &str) -> Marks {
    let writes = plan(v).writes;
    let found = writes.iter().find_map(|w| match w {
        Write::Create(spec, marks) | Write::Update(spec, marks) if spec.node == node => Some(*marks),
        _ => None,
    });
    found.unwrap_or_else(|| Marks::of(at(v, node)))
}
fn leaves(v: &View) -> Vec<String> {
    let gone = |w: Write| match w {
        Write::Update(spec, _) if spec.desired.state == DesiredState::Absent => Some(spec.node.clone()),
        _ => None,
    };
    plan(v).writes.into_iter().filter_map(gone).collect()
}
/// Owned and opened by n1; a copy of ours on n2 that has been spare for an hour, with the commit that the owner has.
fn moved() -> View {
    let mut v = view();
    v.replicas.push(copy("n2", CopyRole::Replica, 5));
    let commits = at(&v, "n2").status.as_ref().unwrap().recent_commits.clone();
    edit(&mut v, "n1", |r| {
        let s = r.status.as_mut().unwrap();
        (s.commit_count, s.head, s.recent_commits) = (1, commits.first().map(|c| c.id.clone()), commits);
    });
    edit(&mut v, "n2", |r| ours(r, Some(1_000)));
    let a = v.fs.status.as_mut().unwrap().authority.as_mut().unwrap();
    a.opened = Some(Opened { epoch: a.epoch, boot_id: "0198c2a5-7f00-7000-8000-0000000000b0".into() });
    let epoch = a.epoch;
    edit(&mut v, "n1", |r| r.status.as_mut().unwrap().epoch = epoch);
    for node in ["n1", "n2"] {
        edit(&mut v, node, |r| r.status.as_mut().unwrap().observed_generation = r.metadata.generation);
    }
    v.now = 1_000 + HOUR;
    v.spare_after = Some(3_600);
    v
}

#[test]
fn a_copy_that_a_move_has_left_goes_after_an_hour() {
    let mut v = moved();
    assert_eq!(leaves(&v), ["n2"]);
    assert!(plan(&v).is_critical(&v), "it deletes data: planned again with live reads");
    v.now -= 1;
    assert_eq!(leaves(&v), [""; 0]);
    v.now += 1;
    v.spare_after = None;
    assert_eq!(leaves(&v), [""; 0], "an administrator keeps them");
}

#[test]
fn a_former_owner_becomes_ours_and_a_copy_that_a_user_made_never() {
    let mut v = moved();
    edit(&mut v, "n2", |r| {
        r.metadata.labels = None;
        r.metadata.annotations = None;
    });
    assert_eq!(told(&v, "n2"), Marks { unmanaged: true, ours: false, spare_since: None });
    assert_eq!(leaves(&v), [""; 0]);
    edit(&mut v, "n2", |r| r.spec.desired.role = Some(DesiredRole::Owner));
    assert_eq!(told(&v, "n2"), Marks { unmanaged: true, ours: true, spare_since: Some(v.now) });
    assert_eq!(leaves(&v), [""; 0], "its hour begins");
}

#[test]
fn a_users_job_takes_a_copy_over_for_good() {
    let mut v = moved();
    v.jobs = vec![Arc::new(job("mine", "n2", 1))];
    assert_eq!(told(&v, "n2"), Marks::default());
    let mut own = job("placement", "n2", 1);
    own.metadata.labels = Some([(names::OWNED_BY_LABEL.to_owned(), "uid".to_owned())].into());
    v.jobs = vec![Arc::new(own)];
    assert_eq!(told(&v, "n2"), Marks { ours: true, ..Marks::default() }, "needed, so its time is over");
}

#[test]
fn what_is_needed_is_not_spare() {
    let mut v = moved();
    v.fs.spec.published_to.push(Publication { node: "n2".into(), read_only: true });
    assert_eq!((told(&v, "n2").spare_since, leaves(&v).len()), (None, 0), "a pod reads there");
    let mut v = moved();
    v.claim.as_mut().unwrap().placement.node = Some("n2".into());
    assert_eq!((told(&v, "n2").spare_since, leaves(&v).len()), (None, 0), "it is to move there");
    let mut v = moved();
    v.pools[0].schedulable = false;
    assert_eq!((told(&v, "n2").spare_since, leaves(&v).len()), (None, 0), "the owner's node is cordoned: it is kept close behind");
}

#[test]
fn nothing_goes_while_the_owner_or_the_copy_is_not_in_order() {
    let check = |why: &str, change: &dyn Fn(&mut View)| {
        let mut v = moved();
        change(&mut v);
        assert_eq!(leaves(&v), [""; 0], "{why}");
    };
    check("not opened", &|v| v.fs.status.as_mut().unwrap().authority.as_mut().unwrap().opened = None);
    check("the owner is away", &|v| v.pools[0].ready = false);
    check("the owner has not taken over yet", &|v| edit(v, "n1", |r| r.status.as_mut().unwrap().role = CopyRole::Creating));
    check("mounted", &|v| edit(v, "n2", |r| r.status.as_mut().unwrap().mounts.push("pod".into())));
    check("its agent has not seen the last wish", &|v| edit(v, "n2", |r| r.status.as_mut().unwrap().observed_generation = Some(0)));
    check("what it alone has must be seen by a person", &|v| {
        edit(v, "n2", |r| {
            let c = dotgraft_api::Condition {
                type_: "Superseded".into(),
                status: "True".into(),
                reason: "Superseded".into(),
                message: String::new(),
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
                observed_generation: None,
            };
            r.status.as_mut().unwrap().conditions.push(c);
        });
    });
    check("it has a commit that the owner hasn't", &|v| {
        edit(v, "n2", |r| {
            let s = r.status.as_mut().unwrap();
            let newest = s.recent_commits[0].clone();
            s.recent_commits.insert(0, ReplicaCommit { id: "0198c2a5-7f00-7000-8000-00000000ffff".into(), epoch: 9, ..newest });
        });
    });
    check("the claim goes", &|v| v.claim.as_mut().unwrap().deleting = true);
}

#[test]
fn the_last_copy_that_is_wanted_stays_until_another_has_it() {
    let mut v = moved();
    v.claim.as_mut().unwrap().placement.replicas = 1;
    assert_eq!(leaves(&v), [""; 0], "no other copy");
    v.jobs = vec![Arc::new(job("placement", "n3", 1))];
    v.replicas.push(copy("n3", CopyRole::Receiving, 0));
    edit(&mut v, "n3", |r| r.status.as_mut().unwrap().head = None);
    assert_eq!(leaves(&v), [""; 0], "it is on its way");
    let head = at(&v, "n1").status.as_ref().unwrap().head.clone();
    edit(&mut v, "n3", |r| {
        let s = r.status.as_mut().unwrap();
        (s.role, s.head) = (CopyRole::Replica, head);
    });
    assert_eq!(leaves(&v), ["n2"]);
}

#[test]
fn what_was_deleted_and_stays_as_a_base_keeps_no_copy() {
    let mut v = moved();
    let newest = at(&v, "n2").status.as_ref().unwrap().recent_commits[0].clone();
    let later = ReplicaCommit { id: "0198c2a5-7f00-7000-8000-00000000ffff".into(), epoch: 9, deleted: true, ..newest };
    edit(&mut v, "n2", |r| {
        let s = r.status.as_mut().unwrap();
        (s.head, s.commit_count) = (Some(later.id.clone()), s.commit_count + 1);
        s.recent_commits.insert(0, later.clone());
    });
    assert_eq!(leaves(&v), ["n2"]);
    edit(&mut v, "n2", |r| r.status.as_mut().unwrap().recent_commits[0].deleted = false);
    assert_eq!(leaves(&v), [""; 0], "the owner lacks it, and nobody has deleted it");
}

#[test]
fn it_is_looked_at_again_when_the_first_is_due() {
    let mut v = moved();
    v.now = 1_100;
    assert_eq!(due(&v), Some(Duration::from_secs(3_500)));
    v.now = 9_999;
    assert_eq!(due(&v), None, "overdue: something else is waited for");
    edit(&mut v, "n2", |r| ours(r, None));
    v.now = 1_100;
    assert_eq!(due(&v), None);
}

#[test]
fn people_are_told_once_and_not_of_their_own_drop() {
    let mut v = moved();
    let new = ReplicaSpec {
        desired: dotgraft_api::Desired { state: DesiredState::Absent, ..dotgraft_api::Desired::default() },
        ..at(&v, "n2").spec.clone()
    };
    let n = note(&v, Some(at(&v, "n2")), &new).unwrap();
    assert_eq!((n.reason.as_str(), n.message.contains("n2"), n.message.contains("60 minutes")), ("SpareCopyDeleted", true, true));
    v.dropped.insert(pool_id("n2"));
    assert!(note(&v, Some(at(&v, "n2")), &new).is_none());
    assert!(note(&moved(), Some(at(&v, "n2")), &at(&v, "n2").spec.clone()).is_none());
}
