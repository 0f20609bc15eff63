//! Where a volume may be: pool groups and nodes, as Kubernetes names them in topology segments. Pure.

use std::collections::HashMap;

use dotgraft_api::common::{TOPOLOGY_NODE, TOPOLOGY_POOL};
use dotgraft_proto::csi::v1 as wire;

use super::error::CsiError;
use crate::pools::{self, PoolView};

/// Most topologies looked at in a call.
const MOST: usize = 10_000;

/// What a volume's accessible topology is: its pool group only, so that it can move in it (csi.md §1).
pub fn of_group(group: &str) -> wire::Topology {
    wire::Topology { segments: HashMap::from([(TOPOLOGY_POOL.to_owned(), group.to_owned())]) }
}

/// What the accessible topology is of what stays on one node.
pub fn of_node(pool: &PoolView) -> wire::Topology {
    let mut topology = of_group(&pool.group);
    topology.segments.insert(TOPOLOGY_NODE.to_owned(), pool.node.clone());
    topology
}

/// Whether the pool lies in a topology. A segment that we don't know lies nowhere.
pub fn matches(pool: &PoolView, topology: &wire::Topology) -> bool {
    topology.segments.iter().all(|(key, value)| match key.as_str() {
        TOPOLOGY_POOL => pool.group == *value,
        TOPOLOGY_NODE => pool.node == *value,
        _ => false,
    })
}

/// The pools that a call allows: of the group, if one is asked for, and in one of the requisite topologies, if there are any.
///
/// # Errors
///
/// `RESOURCE_EXHAUSTED` if there is none, `INVALID_ARGUMENT` for too many topologies.
pub fn allowed<'a>(
    pools: &'a [PoolView],
    group: Option<&str>,
    requirement: Option<&wire::TopologyRequirement>,
) -> Result<Vec<&'a PoolView>, CsiError> {
    let requisite = requirement.map(|r| r.requisite.as_slice()).unwrap_or_default();
    if requisite.len() > MOST || requirement.is_some_and(|r| r.preferred.len() > MOST) {
        return Err(CsiError::Invalid(format!("more than {MOST} topologies")));
    }
    let list: Vec<&PoolView> = pools
        .iter()
        .filter(|p| group.is_none_or(|g| p.group == g))
        .filter(|p| requisite.is_empty() || requisite.iter().any(|t| matches(p, t)))
        .collect();
    if list.is_empty() {
        let group = group.map(|g| format!(" of pool group `{g}`")).unwrap_or_default();
        return Err(CsiError::Exhausted(format!("there is no pool{group} in the topology that is asked for: see `kubectl get nodepools`")));
    }
    Ok(list)
}

/// Refuses a size that none of the pools could hold even if it were empty. What fits on one is made, however much others have been promised.
///
/// # Errors
///
/// `RESOURCE_EXHAUSTED` if so.
pub fn check_size<'a>(pools: impl Iterator<Item = &'a PoolView> + Clone, bytes: u64) -> Result<(), CsiError> {
    if pools.clone().any(|p| p.may_fit(bytes)) {
        return Ok(());
    }
    let largest = pools.map(|p| p.size).max().unwrap_or_default();
    Err(CsiError::Exhausted(format!("{bytes} bytes are more than a pool has where the volume may be: {largest} at most")))
}

/// Whether the call leaves one node: the scheduler has chosen it, so the pod tolerates its taints.
fn is_scheduled(requirement: Option<&wire::TopologyRequirement>) -> bool {
    requirement.is_some_and(|r| matches!(r.requisite.as_slice(), [only] if only.segments.contains_key(TOPOLOGY_NODE)))
}

/// The node to begin on for a volume of so many bytes: the first that is preferred, else the one with most free bytes, if the call restricts the
/// choice at all. One with a taint that keeps volumes off only if no other node is named.
///
/// # Errors
///
/// `RESOURCE_EXHAUSTED` if no pool is allowed, or none could hold it.
pub fn choose(
    pools: &[PoolView],
    group: Option<&str>,
    requirement: Option<&wire::TopologyRequirement>,
    bytes: u64,
) -> Result<Option<String>, CsiError> {
    let allowed = allowed(pools, group, requirement)?;
    check_size(allowed.iter().copied(), bytes)?;
    let scheduled = is_scheduled(requirement);
    let fits = |p: &&PoolView| if scheduled { p.usable() } else { p.inviting() } && p.may_fit(bytes);
    let usable: Vec<&PoolView> = allowed.iter().copied().filter(fits).collect();
    let most_free = |list: &mut dyn Iterator<Item = &PoolView>| {
        list.max_by(|a, b| a.available.cmp(&b.available).then_with(|| b.node.cmp(&a.node))).map(|p| p.node.clone())
    };
    for topology in requirement.map(|r| r.preferred.as_slice()).unwrap_or_default() {
        if let Some(node) = most_free(&mut usable.iter().copied().filter(|p| matches(p, topology))) {
            return Ok(Some(node));
        }
    }
    let Some(best) = most_free(&mut usable.iter().copied()) else {
        let taints = pools::repelled(allowed.into_iter());
        return Err(CsiError::Exhausted(format!("no pool that is allowed is ready and on a node that isn't cordoned{taints}")));
    };
    let free = group.is_none() && requirement.is_none_or(|r| r.requisite.is_empty());
    Ok((!free).then_some(best))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::pool;
    use wire::{Topology, TopologyRequirement};

    fn at(key: &str, value: &str) -> Topology {
        Topology { segments: HashMap::from([(key.to_owned(), value.to_owned())]) }
    }
    fn pools() -> Vec<PoolView> {
        let mut list = vec![pool("n1", 5), pool("n2", 9), pool("n3", 20)];
        list[2].group = "ssd".into();
        list
    }
    fn asks(requisite: Vec<Topology>, preferred: Vec<Topology>) -> TopologyRequirement {
        TopologyRequirement { requisite, preferred }
    }

    #[test]
    fn the_preferred_node_is_begun_on_even_if_another_has_more_room() {
        let all = || vec![at(TOPOLOGY_POOL, "default"), at(TOPOLOGY_POOL, "ssd")];
        let r = Some(asks(all(), vec![at(TOPOLOGY_NODE, "n1"), at(TOPOLOGY_NODE, "n2")]));
        assert_eq!(choose(&pools(), None, r.as_ref(), 1).unwrap().as_deref(), Some("n1"));
        let mut down = pools();
        down[0].ready = false;
        assert_eq!(choose(&down, None, r.as_ref(), 1).unwrap().as_deref(), Some("n2"));
    }

    #[test]
    fn a_node_with_a_taint_is_begun_on_only_if_a_pod_was_scheduled_there() {
        let mut pools = pools();
        pools[1].taint = Some("gpu:NoSchedule".into());
        let node = |n: &str| Topology {
            segments: HashMap::from([(TOPOLOGY_NODE.to_owned(), n.to_owned()), (TOPOLOGY_POOL.to_owned(), "default".to_owned())]),
        };
        let immediate = asks(vec![node("n1"), node("n2")], vec![node("n2"), node("n1")]);
        assert_eq!(choose(&pools, None, Some(&immediate), 1).unwrap().as_deref(), Some("n1"));
        let of_group = asks(vec![at(TOPOLOGY_POOL, "default")], vec![]);
        assert_eq!(choose(&pools, None, Some(&of_group), 1).unwrap().as_deref(), Some("n1"));
        let scheduled = asks(vec![node("n2")], vec![node("n2")]);
        assert_eq!(choose(&pools, None, Some(&scheduled), 1).unwrap().as_deref(), Some("n2"));
        pools[0].ready = false;
        let none = choose(&pools, Some("default"), None, 1).unwrap_err();
        assert!(matches!(&none, CsiError::Exhausted(m) if m.contains("n2 (gpu:NoSchedule)")), "{none}");
    }

    #[test]
    fn without_restriction_the_choice_is_left_open() {
        assert_eq!(choose(&pools(), None, None, 1).unwrap(), None);
        assert_eq!(choose(&pools(), Some("default"), None, 1).unwrap().as_deref(), Some("n2"));
    }

    #[test]
    fn where_nothing_is_allowed_or_ready_there_is_no_room() {
        let exhausted = |r: Result<Option<String>, CsiError>| matches!(r, Err(CsiError::Exhausted(_)));
        assert!(exhausted(choose(&pools(), Some("hdd"), None, 1)));
        assert!(exhausted(choose(&pools(), Some("ssd"), Some(&asks(vec![at(TOPOLOGY_NODE, "n1")], vec![])), 1)));
        assert!(exhausted(choose(&pools(), None, Some(&asks(vec![at("zone", "a")], vec![])), 1)));
        let mut down = pools();
        for p in &mut down {
            p.ready = false;
        }
        assert!(exhausted(choose(&down, None, None, 1)));
    }

    #[test]
    fn a_size_that_no_pool_could_hold_is_refused_and_what_fits_is_not_counted() {
        let mut pools = pools();
        (pools[0].size, pools[1].size, pools[2].size) = (10 << 30, 20 << 30, 40 << 30);
        let at = |bytes: u64, group| choose(&pools, group, None, bytes << 30);
        assert_eq!(at(20, Some("default")).unwrap().as_deref(), Some("n2"), "more than is free");
        let too_large = at(21, Some("default")).unwrap_err();
        assert!(matches!(&too_large, CsiError::Exhausted(m) if m.contains(&(20_u64 << 30).to_string())), "{too_large}");
        assert!(at(21, None).is_ok());
        let preferred = asks(vec![], vec![self::at(TOPOLOGY_NODE, "n1")]);
        assert_eq!(choose(&pools, None, Some(&preferred), 15 << 30).unwrap().as_deref(), None, "n1 could never hold it");
        let mut unknown = pools.clone();
        unknown[1].size = 0;
        assert!(choose(&unknown, Some("default"), None, 1 << 50).is_ok(), "nobody knows");
    }
}
