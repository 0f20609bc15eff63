//! What happens while an owner's node is cordoned: its owner keeps one existing copy close behind, so that a drain has little left to send
//! once the pods have gone (csi.md §1, "Locality"). Here it is decided which copy; the owner's agent does the rest, once a minute at most.

use std::sync::Arc;

use dotgraft_api::{Authority, CopyRole, DesiredState, FilesystemPhase, Place, Replica, ReplicaSpec, ReplicaStatus};

use super::plan::View;
use crate::note::Note;
use crate::pools::PoolView;

/// Taken out of scheduling, and working: there is time to prepare.
fn is_cordoned(pool: &PoolView) -> bool {
    pool.node_exists && !pool.schedulable && !pool.out_of_service && pool.ready
}

/// The copy to keep close behind: the one that is, while it will do, else the one with the newest commit. No copy is made for it.
pub fn precopy_to(view: &View, phase: FilesystemPhase, authority: &Authority) -> Option<Place> {
    let owner = view.pools.iter().find(|p| p.place().as_ref() == Some(&authority.owner) && is_cordoned(p))?;
    if phase != FilesystemPhase::Active || view.claim.as_ref().is_none_or(|c| c.deleting) {
        return None;
    }
    let will_do = |r: &&Arc<Replica>| {
        let place = place_of(&r.spec);
        let there = r.status.as_ref().is_some_and(|s| matches!(s.role, CopyRole::Replica | CopyRole::Receiving));
        let pool = view.pools.iter().find(|p| p.place().as_ref() == Some(&place));
        r.spec.desired.state == DesiredState::Present
            && there
            && place != authority.owner
            && !view.dropped.contains(&place.pool)
            && pool.is_some_and(|p| p.usable() && !p.out_of_service && p.group == owner.group)
    };
    let now = view.replicas.iter().find(|r| r.spec.pool == authority.owner.pool).and_then(|r| r.spec.desired.precopy_to.as_ref());
    let rank = |r: &Arc<Replica>| {
        let newest = r.status.as_ref().and_then(ReplicaStatus::reach);
        (Some(&place_of(&r.spec)) == now, newest, std::cmp::Reverse(r.spec.node.clone()))
    };
    view.replicas.iter().filter(will_do).max_by_key(|r| rank(r)).map(|r| place_of(&r.spec))
}

fn place_of(spec: &ReplicaSpec) -> Place {
    Place { node: spec.node.clone(), pool: spec.pool.clone() }
}

/// What people are told when it begins.
pub fn note(old: Option<&Replica>, new: &ReplicaSpec) -> Option<Note> {
    let to = new.desired.precopy_to.as_ref()?;
    if old.is_some_and(|o| o.spec.desired.precopy_to.as_ref() == Some(to)) {
        return None;
    }
    let message = format!(
        "node {} is cordoned: what is written is sent to the copy on {} about once a minute, so that a move there has little left to send",
        new.node, to.node
    );
    Some(Note { warning: false, reason: "CordonReplicates".into(), message })
}

#[cfg(test)]
mod tests {
    use super::super::moving::tests::{copy, view};
    use super::super::plan::{Write, plan};
    use super::*;
    use crate::pools::tests::pool_id;
    use dotgraft_api::DesiredRole;

    fn place(node: &str) -> Place {
        Place { node: node.into(), pool: pool_id(node) }
    }
    fn authority(v: &View) -> Authority {
        v.fs.status.as_ref().unwrap().authority.clone().unwrap()
    }
    fn to(v: &View) -> Option<Place> {
        precopy_to(v, FilesystemPhase::Active, &authority(v))
    }
    /// Owned by n1, which is cordoned; copies on n2 and n3, that of n3 newer.
    fn cordoned() -> View {
        let mut v = view();
        v.replicas.push(copy("n2", CopyRole::Replica, 5));
        v.replicas.push(copy("n3", CopyRole::Replica, 7));
        v.pools[0].schedulable = false;
        v
    }
    fn edit(v: &mut View, node: &str, change: impl FnOnce(&mut Replica)) {
        let at = v.replicas.iter().position(|r| r.spec.node == node).unwrap();
        let mut r = Replica::clone(&v.replicas[at]);
        change(&mut r);
        v.replicas[at] = Arc::new(r);
    }

    #[test]
    fn only_while_the_owners_node_is_cordoned_and_works() {
        assert_eq!(to(&cordoned()), Some(place("n3")), "the newest");
        let mut v = cordoned();
        v.pools[0].schedulable = true;
        assert_eq!(to(&v), None);
        let mut v = cordoned();
        v.pools[0].ready = false;
        assert_eq!(to(&v), None, "its agent is away");
        let mut v = cordoned();
        v.pools[0].out_of_service = true;
        assert_eq!(to(&v), None);
        let mut v = cordoned();
        v.claim.as_mut().unwrap().deleting = true;
        assert_eq!(to(&v), None);
        assert_eq!(precopy_to(&cordoned(), FilesystemPhase::Released, &authority(&cordoned())), None);
    }

    #[test]
    fn a_copy_that_will_not_do_is_passed_over_and_none_is_made() {
        let mut v = cordoned();
        v.pools[2].schedulable = false;
        assert_eq!(to(&v), Some(place("n2")), "n3 is cordoned, too");
        v.pools[1].ready = false;
        assert_eq!(to(&v), None);
        let mut v = cordoned();
        v.pools[2].group = "other".into();
        assert_eq!(to(&v), Some(place("n2")));
        let mut v = cordoned();
        v.dropped.insert(pool_id("n3"));
        assert_eq!(to(&v), Some(place("n2")), "given up");
        let mut v = cordoned();
        edit(&mut v, "n3", |r| r.spec.desired.state = DesiredState::Absent);
        assert_eq!(to(&v), Some(place("n2")), "on its way out");
        let mut v = cordoned();
        edit(&mut v, "n3", |r| r.status.as_mut().unwrap().role = CopyRole::Creating);
        assert_eq!(to(&v), Some(place("n2")));
        let mut v = cordoned();
        v.replicas.truncate(1);
        assert_eq!(to(&v), None);
    }

    #[test]
    fn what_a_copy_is_complete_to_decides_and_no_clock() {
        let mut v = cordoned();
        let to = |seq| dotgraft_api::CompleteTo {
            epoch: 3,
            seq,
            time: dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
            commit: crate::testing::FS.into(),
        };
        edit(&mut v, "n2", |r| r.status.as_mut().unwrap().complete_to = Some(to(8)));
        edit(&mut v, "n3", |r| r.status.as_mut().unwrap().complete_to = Some(to(7)));
        assert_eq!(super::tests::to(&v), Some(place("n2")), "n3's newest that people see was made by a clock that was ahead");
    }

    #[test]
    fn the_choice_stays_while_it_will_do() {
        let mut v = cordoned();
        edit(&mut v, "n1", |r| r.spec.desired.precopy_to = Some(place("n2")));
        assert_eq!(to(&v), Some(place("n2")));
        v.pools[1].schedulable = false;
        assert_eq!(to(&v), Some(place("n3")));
    }

    #[test]
    fn it_stands_in_the_owners_replica_alone_and_goes_with_the_cordon() {
        let mut v = cordoned();
        let wish = |v: &View| {
            let all = plan(v).writes.into_iter().filter_map(|w| match w {
                Write::Update(spec, _) | Write::Create(spec, _) => Some((spec.desired.role, spec.desired.precopy_to)),
                _ => None,
            });
            all.collect::<Vec<_>>()
        };
        let writes = wish(&v);
        for (role, to) in &writes {
            assert_eq!(to.as_ref(), (*role == Some(DesiredRole::Owner)).then_some(&place("n3")), "{writes:?}");
        }
        assert!(writes.iter().any(|(_, to)| to.is_some()));
        v.pools[0].schedulable = true;
        edit(&mut v, "n1", |r| r.spec.desired.precopy_to = Some(place("n3")));
        assert!(wish(&v).iter().all(|(_, to)| to.is_none()));
    }

    #[test]
    fn people_are_told_once() {
        let mut r = Replica::clone(&copy("n1", CopyRole::Owner, 1));
        r.spec.desired.precopy_to = Some(place("n3"));
        assert!(note(None, &r.spec).is_some_and(|n| n.reason == "CordonReplicates" && n.message.contains("n3")));
        assert!(note(Some(&r), &r.spec).is_none());
        let mut over = r.spec.clone();
        over.desired.precopy_to = None;
        assert!(note(Some(&r), &over).is_none());
    }
}
