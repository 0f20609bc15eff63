//! What jobs and Commit objects ask of the owner's copy, as bounded lists in `Replica.spec.desired`: pure.
//!
//! A Commit's entry stays until its result stands in the Commit's status, and comes back with `remove` when the
//! object is deleted; a job's entry stays while the job exists. So both lists are bounded by what is under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use dotgraft_api::{Commit, CommitState, CommitWish, JobWish, Origin, Place, Replica, ReplicationJob, parse_quantity};
use kube::ResourceExt;

use crate::commit::is_recorded;
use crate::job::resolve;
use crate::names::{COMMIT_FINALIZER, OPERATION_ANNOTATION};
use crate::write::has_finalizer;

/// Most commit entries of one Replica.
pub const MAX_COMMITS: usize = 256;
/// Most bytes of them, as JSON: one may have 80 KB of metadata, and etcd takes no object of more than 1.5 MiB.
const MAX_COMMIT_BYTES: usize = 512 << 10;
/// Most job entries of one Replica.
pub const MAX_JOBS: usize = 32;

/// A reset in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetWish {
    /// What the volume is to become.
    pub to: Origin,
    /// New mounts wait for it.
    pub hold: bool,
}

/// Which copy is asked.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// The owner: it makes commits, and removes what nothing pins.
    Owner,
    /// Another copy: it removes what this owner has removed.
    AfterOwner(&'a Replica),
    /// Another copy, when the owner's pool is gone for good: it removes.
    WithoutOwner,
}

impl Asked<'_> {
    fn removes(&self, commit: &Commit) -> bool {
        let Self::AfterOwner(owner) = self else { return true };
        let (uid, status) = (commit.uid().unwrap_or_default(), owner.status.as_ref());
        status.is_some_and(|s| s.commits.iter().any(|c| c.uid == uid && c.state == CommitState::Removed))
    }
}

/// Entries for Commit objects. Only the owner makes commits; every copy removes them, the owner first. One that belongs to an operation
/// is made only as a reset in hand says.
pub fn commits(objects: &[Arc<Commit>], resets: &BTreeMap<String, ResetWish>, asked: &Asked<'_>) -> Vec<CommitWish> {
    let owner = matches!(asked, Asked::Owner);
    let mut list: Vec<&Arc<Commit>> = objects
        .iter()
        .filter(|c| has_finalizer(c.as_ref(), COMMIT_FINALIZER))
        .filter(|c| if c.metadata.deletion_timestamp.is_some() { asked.removes(c) } else { owner && !is_recorded(c) })
        .filter(|c| c.metadata.deletion_timestamp.is_some() || !is_of_operation(c) || resets.contains_key(&c.name_any()))
        .collect();
    // Removals first: they free space. Then the oldest wish; UID makes the order total.
    list.sort_by_key(|c| {
        let at = c.creation_timestamp().map(|t| t.0.as_second());
        (c.metadata.deletion_timestamp.is_none(), at, c.uid())
    });
    fitting(list.into_iter().map(|c| wish(c, resets.get(&c.name_any()).filter(|_| is_of_operation(c)))))
}

/// As many as a Replica holds. The turn of the others comes as these are answered.
fn fitting(wishes: impl Iterator<Item = CommitWish>) -> Vec<CommitWish> {
    let size = |wish: &CommitWish| serde_json::to_vec(wish).map_or(MAX_COMMIT_BYTES, |json| json.len());
    let mut left = MAX_COMMIT_BYTES;
    let fits = |wish: &CommitWish| left.checked_sub(size(wish)).map(|rest| left = rest).is_some();
    wishes.filter(fits).take(MAX_COMMITS).collect()
}

/// Whether an operation made it, to keep what it replaces.
pub fn is_of_operation(commit: &Commit) -> bool {
    commit.annotations().contains_key(OPERATION_ANNOTATION)
}

fn wish(commit: &Commit, reset: Option<&ResetWish>) -> CommitWish {
    let remove = commit.metadata.deletion_timestamp.is_some();
    let reset = reset.filter(|_| !remove);
    CommitWish {
        uid: commit.uid().unwrap_or_default(),
        name: commit.name_any(),
        message: if remove { String::new() } else { commit.spec.message.clone() },
        metadata: if remove { std::collections::BTreeMap::default() } else { commit.spec.metadata.clone() },
        id: commit.status.as_ref().and_then(|s| s.id.clone()),
        remove,
        reset_to: reset.map(|r| r.to.clone()),
        hold: reset.is_some_and(|r| r.hold),
    }
}

/// Entries for jobs with their places; active ones first, then those that ended last.
pub fn jobs(placed: &[(Arc<ReplicationJob>, Place)]) -> Vec<JobWish> {
    let mut list: Vec<&(Arc<ReplicationJob>, Place)> = placed.iter().collect();
    list.sort_by_key(|(j, _)| {
        let ended = j.status.as_ref().and_then(|s| s.finished_at.as_ref()).map(|t| t.0.as_second());
        let active = resolve::is_active(j);
        (!active, if active { None } else { ended.map(std::cmp::Reverse) }, resolve::turn(j))
    });
    list.truncate(MAX_JOBS);
    list.sort_by_key(|(j, _)| resolve::turn(j));
    list.into_iter().map(|(j, p)| job_wish(j, p)).collect()
}

fn job_wish(job: &ReplicationJob, peer: &Place) -> JobWish {
    let spec = &job.spec;
    JobWish {
        uid: job.uid().unwrap_or_default(),
        namespace: job.namespace().unwrap_or_default(),
        name: job.name_any(),
        generation: job.metadata.generation.unwrap_or_default(),
        peer: peer.clone(),
        initial: spec.initial,
        intermediate: spec.commits.as_ref().map(|c| c.intermediate).unwrap_or_default(),
        on_commit: resolve::on_commit(job),
        schedule: spec.schedule.clone().filter(|s| s.cron.is_some() || s.interval_seconds.is_some()),
        trigger: spec.trigger.clone(),
        suspend: spec.suspend,
        // The CRD's pattern and bounds hold; an amount that can't be read would mean "no limit", so take the lowest.
        bandwidth: spec.limits.as_ref().and_then(|l| l.bandwidth.as_deref()).map(|b| parse_quantity(b).unwrap_or(1024).max(1)),
        retry: spec.retry.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{commit, deleted, job, recorded};

    fn names(list: &[CommitWish]) -> Vec<(&str, bool)> {
        list.iter().map(|w| (w.name.as_str(), w.remove)).collect()
    }

    #[test]
    fn the_owner_makes_what_is_not_recorded_and_every_copy_removes() {
        let list = [Arc::new(commit("new", 2)), Arc::new(recorded(commit("made", 1))), Arc::new(deleted(recorded(commit("going", 3))))];
        assert_eq!(names(&commits(&list, &BTreeMap::new(), &Asked::Owner)), [("going", true), ("new", false)]);
        assert_eq!(names(&commits(&list, &BTreeMap::new(), &Asked::WithoutOwner)), [("going", true)]);
        assert!(commits(&list, &BTreeMap::new(), &Asked::WithoutOwner)[0].id.is_some());
    }

    #[test]
    fn a_copy_removes_only_what_the_owner_has_removed() {
        let going = deleted(recorded(commit("going", 3)));
        let uid = going.uid().unwrap();
        let mut owner = Replica::default();
        let list = [Arc::new(going)];
        assert!(commits(&list, &BTreeMap::new(), &Asked::AfterOwner(&owner)).is_empty());
        let answer = |state| dotgraft_api::ReplicaCommitStatus { uid: uid.clone(), state, ..Default::default() };
        owner.status = Some(dotgraft_api::ReplicaStatus { commits: vec![answer(CommitState::Pinned)], ..Default::default() });
        assert!(commits(&list, &BTreeMap::new(), &Asked::AfterOwner(&owner)).is_empty());
        owner.status = Some(dotgraft_api::ReplicaStatus { commits: vec![answer(CommitState::Removed)], ..Default::default() });
        assert_eq!(commits(&list, &BTreeMap::new(), &Asked::AfterOwner(&owner)).len(), 1);
    }

    #[test]
    fn what_an_operation_keeps_is_asked_for_only_with_its_reset() {
        let mut c = commit("before", 1);
        c.metadata.annotations = Some(BTreeMap::from([(OPERATION_ANNOTATION.to_owned(), "r".to_owned())]));
        let (list, none) = ([Arc::new(c.clone())], BTreeMap::new());
        assert!(commits(&list, &none, &Asked::Owner).is_empty(), "its operation is gone, or has ended");
        let to = Origin { fs_id: "f".into(), commit: "c".into() };
        let reset = ResetWish { to: to.clone(), hold: true };
        let resets = BTreeMap::from([("before".to_owned(), reset.clone()), ("mine".to_owned(), reset)]);
        let wish = commits(&list, &resets, &Asked::Owner).remove(0);
        assert_eq!((wish.reset_to, wish.hold), (Some(to), true));
        assert_eq!(commits(&[Arc::new(commit("mine", 2))], &resets, &Asked::Owner)[0].reset_to, None, "a Commit of a user resets nothing");
        assert_eq!(commits(&[Arc::new(deleted(c))], &none, &Asked::Owner).len(), 1, "it can be deleted");
    }

    #[test]
    fn a_commit_that_we_do_not_hold_is_not_asked_for() {
        let mut c = commit("c", 1);
        c.metadata.finalizers = None;
        assert!(commits(&[Arc::new(c)], &BTreeMap::new(), &Asked::Owner).is_empty());
    }

    #[test]
    fn the_list_of_commits_is_bounded_and_the_oldest_come_first() {
        let list: Vec<_> = (0..300).rev().map(|i| Arc::new(commit(&format!("c{i:03}"), i))).collect();
        let wishes = commits(&list, &BTreeMap::new(), &Asked::Owner);
        assert_eq!(wishes.len(), MAX_COMMITS);
        assert_eq!(wishes[0].name, "c000");
    }

    #[test]
    fn commits_with_the_largest_metadata_take_turns_and_small_ones_go_beside_them() {
        let mut list: Vec<_> = (0..20)
            .map(|i| {
                let mut c = commit(&format!("c{i:02}"), i);
                c.spec.metadata = (0..64).map(|n| (format!("{n:0>253}"), "v".repeat(1024))).collect();
                c
            })
            .collect();
        list.push(commit("small", 99));
        let asked = |list: &[Commit]| {
            let list: Vec<_> = list.iter().cloned().map(Arc::new).collect();
            commits(&list, &BTreeMap::new(), &Asked::Owner)
        };
        let first = asked(&list);
        let bytes = serde_json::to_vec(&first).unwrap().len();
        assert!(bytes < 600 << 10, "{bytes} bytes: with managedFields and status etcd would refuse the object");
        let named: Vec<_> = names(&first).into_iter().map(|(name, _)| name).collect();
        assert_eq!(named, ["c00", "c01", "c02", "c03", "c04", "c05", "small"]);
        list[..6].iter_mut().for_each(|c| *c = recorded(c.clone()));
        assert_eq!(asked(&list)[0].name, "c06", "the next in turn");
    }

    #[test]
    fn active_jobs_stay_when_there_are_too_many_and_the_order_is_stable() {
        let place = Place { node: "n2".into(), pool: crate::pools::tests::pool_id("n2") };
        let mut list: Vec<_> = (0..40)
            .map(|i| {
                let mut j = job(&format!("j{i:02}"), "n2", i);
                let at = k8s_openapi::jiff::Timestamp::from_second(i).unwrap();
                j.status.get_or_insert_default().finished_at = Some(dotgraft_api::Time(at));
                (Arc::new(j), place.clone())
            })
            .collect();
        list.push((Arc::new(job("active", "n2", 99)), place));
        let wishes = jobs(&list);
        assert_eq!(wishes.len(), MAX_JOBS);
        assert!(wishes.iter().any(|w| w.name == "active"));
        assert!(!wishes.iter().any(|w| w.name == "j00"), "the one that ended first goes first");
        list.reverse();
        assert_eq!(jobs(&list), wishes);
    }
}
