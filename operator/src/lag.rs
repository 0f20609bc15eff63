//! How far copies are behind their owner, from what the agents report: the one way from Replicas to [`Behind`]. Pure.

use dotgraft_api::{CopyRole, ReplicaStatus};
use dotgraft_engine::behind::{Behind, behind};
use k8s_openapi::jiff::Timestamp;

/// What a copy lacks of what its owner has; `None`: the owner's agent has said nothing yet. A copy that isn't there lacks all of it.
pub fn of(owner: Option<&ReplicaStatus>, copy: Option<&ReplicaStatus>) -> Option<Behind<Timestamp>> {
    let owner = owner.filter(|o| o.role == CopyRole::Owner)?;
    let copy = copy.filter(|c| matches!(c.role, CopyRole::Replica | CopyRole::Receiving | CopyRole::Owner));
    let reach = copy.and_then(|c| c.reach().map(|(epoch, _, time, id)| (epoch, time.0, id)));
    // A copy keeps what its owner has let go, so it is compared by order, too: ids tell apart those of one second, they begin with a time.
    let is_there = |epoch: u64, time: Timestamp, id: &str| reach.as_ref().is_some_and(|r| r.2 == id || *r >= (epoch, time, id.to_owned()));
    // The newest that people don't see: what a move, or an owner that is about to be left, has made.
    let unseen = owner.complete_to.as_ref().filter(|c| !is_there(c.epoch, c.time.0, &c.commit)).map(|c| c.time.0);
    let written = unseen.into_iter().chain(owner.written_since.as_ref().map(|t| t.0)).min();
    let head = copy.and_then(|c| c.head.as_ref());
    Some(behind(owner.recent_commits.iter(), |c| Some(&c.id) == head || is_there(c.epoch, c.time.0, &c.id), |c| c.time.0, written))
}

#[cfg(test)]
mod tests {
    use dotgraft_api::{CompleteTo, ReplicaCommit, Time};

    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).unwrap()
    }
    fn id(n: i64) -> String {
        format!("0198c2a5-7f00-7000-8000-{n:012}")
    }
    fn has(role: CopyRole, commits: &[i64]) -> ReplicaStatus {
        let commit =
            |n: &i64| ReplicaCommit { id: id(*n), parent: None, time: Time(at(*n)), message: String::new(), epoch: 1, deleted: false };
        let recent_commits: Vec<_> = commits.iter().map(commit).collect();
        let complete_to = commits.first().map(|n| CompleteTo { epoch: 1, seq: 0, time: Time(at(*n)), commit: id(*n) });
        ReplicaStatus { role, head: recent_commits.first().map(|c| c.id.clone()), recent_commits, complete_to, ..ReplicaStatus::default() }
    }
    fn lag(owner: &ReplicaStatus, copy: &ReplicaStatus) -> (usize, Option<i64>) {
        let b = of(Some(owner), Some(copy)).unwrap();
        (b.commits, b.since.map(Timestamp::as_second))
    }

    #[test]
    fn a_copy_lacks_what_is_newer_than_its_newest() {
        let owner = has(CopyRole::Owner, &[50, 30, 10]);
        assert_eq!(lag(&owner, &has(CopyRole::Replica, &[50, 10])), (0, None));
        assert_eq!(lag(&owner, &has(CopyRole::Receiving, &[10])), (2, Some(30)));
        assert_eq!(lag(&owner, &has(CopyRole::Replica, &[])), (3, Some(10)));
        assert_eq!(lag(&owner, &has(CopyRole::Deleting, &[50])), (3, Some(10)), "one that goes is no copy");
        assert_eq!(of(None, Some(&owner)), None);
        assert_eq!(of(Some(&has(CopyRole::Creating, &[])), None), None);
    }

    #[test]
    fn what_was_written_since_and_what_people_do_not_see_is_missing_too() {
        let mut owner = has(CopyRole::Owner, &[50]);
        owner.written_since = Some(Time(at(80)));
        assert_eq!(lag(&owner, &has(CopyRole::Replica, &[50])), (0, Some(80)));
        owner.complete_to = Some(CompleteTo { epoch: 1, seq: 9, time: Time(at(70)), commit: id(70) });
        let mut copy = has(CopyRole::Replica, &[50]);
        assert_eq!(lag(&owner, &copy), (0, Some(70)));
        copy.complete_to = owner.complete_to.clone();
        assert_eq!(lag(&owner, &copy), (0, Some(80)));
    }

    #[test]
    fn a_copy_that_keeps_what_the_owner_has_let_go_lacks_nothing() {
        let owner = has(CopyRole::Owner, &[30, 10]);
        assert_eq!(lag(&owner, &has(CopyRole::Replica, &[50, 10])), (0, None));
    }
}
