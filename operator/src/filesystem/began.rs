//! What a clone began with, and everything that follows from it on other nodes (ADR 39). Its first owner measures it where it shares it with its
//! origin; from then on it stands in the spec of each copy, and no node changes it.

use std::sync::Arc;

use dotgraft_api::{Desired, DesiredRole, DesiredState, Replica};

/// What its copies are told, bytes; 0: no clone, or not measured yet. `most`: bytes that its origin may have; a node that says more isn't believed.
pub fn origin_bytes(replicas: &[Arc<Replica>], most: u64) -> u64 {
    let told = replicas.iter().map(|r| r.spec.desired.origin_bytes).max().unwrap_or(0);
    if told > 0 {
        return told;
    }
    let owner = replicas.iter().find(|r| r.spec.desired.role == Some(DesiredRole::Owner));
    owner.and_then(|r| r.status.as_ref()).map_or(0, |s| s.origin_bytes).min(most)
}

/// Most that a copy may hold of what is its Filesystem's own, bytes: what it counts with in its namespace.
pub const fn size(desired: &Desired) -> u64 {
    desired.capacity.saturating_add(desired.history_limit).saturating_add(desired.origin_bytes)
}

/// Most that what starts from such copies can begin with, bytes.
pub fn most(of_origin: &[Arc<Replica>]) -> Option<u64> {
    let present = of_origin.iter().filter(|r| r.spec.desired.state == DesiredState::Present);
    present.map(|r| size(&r.spec.desired)).max()
}

#[cfg(test)]
mod tests {
    use dotgraft_api::{ReplicaSpec, ReplicaStatus};

    use super::*;

    fn copy(role: DesiredRole, told: u64, says: u64) -> Arc<Replica> {
        let desired = Desired { role: Some(role), capacity: 10, history_limit: 5, origin_bytes: told, ..Desired::default() };
        let mut replica = Replica::new("r", ReplicaSpec { desired, ..ReplicaSpec::default() });
        replica.status = Some(ReplicaStatus { origin_bytes: says, ..ReplicaStatus::default() });
        Arc::new(replica)
    }

    #[test]
    fn the_owner_measures_it_once_and_is_believed_no_more_than_its_origin_may_have() {
        assert_eq!(origin_bytes(&[copy(DesiredRole::Owner, 0, 0)], 50), 0, "no clone");
        assert_eq!(origin_bytes(&[copy(DesiredRole::Owner, 0, 7), copy(DesiredRole::Replica, 0, 900)], 50), 7);
        assert_eq!(origin_bytes(&[copy(DesiredRole::Owner, 0, 900)], 50), 50);
        assert_eq!(origin_bytes(&[copy(DesiredRole::Owner, 0, 900), copy(DesiredRole::Replica, 7, 7)], 50), 7, "it was said before");
    }

    #[test]
    fn a_clone_of_a_clone_may_begin_with_all_that_the_first_may_have() {
        assert_eq!(most(&[]), None);
        assert_eq!(most(&[copy(DesiredRole::Owner, 7, 0), copy(DesiredRole::Replica, 0, 0)]), Some(22));
    }
}
