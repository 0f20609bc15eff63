//! What is known of the pools, and the choice of one for a new Filesystem or copy: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dotgraft_api::node::{is_cordoned, repelling_taint};
use dotgraft_api::{ConditionType, NodePool, Place, Placement, Replica, condition, says};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};

use crate::caches::Caches;
use crate::conditions::Block;
use crate::context::Ctx;
use crate::error::Error;

/// One agent's pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // independent facts, each of its own doc line
pub struct PoolView {
    /// Its node.
    pub node: String,
    /// The nodes among which a volume may move.
    pub group: String,
    /// UUID, while the agent has a pool.
    pub pool: Option<String>,
    /// The agent says that it is usable.
    pub ready: bool,
    /// Why not, if it isn't.
    pub problem: String,
    /// All its bytes; 0 while they aren't known.
    pub size: u64,
    /// Free bytes.
    pub available: u64,
    /// The Node object exists.
    pub node_exists: bool,
    /// New volumes may go there: the Node exists and isn't cordoned.
    pub schedulable: bool,
    /// The taint that keeps what nobody asked for off the node.
    pub taint: Option<String>,
    /// The Node has the out-of-service taint: somebody says that nothing runs there any more.
    pub out_of_service: bool,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Filesystems in the pool that no object asked for.
    pub orphans: BTreeSet<String>,
}

impl PoolView {
    /// Node and pool, if there is a pool.
    pub fn place(&self) -> Option<Place> {
        self.pool.clone().map(|pool| Place { node: self.node.clone(), pool })
    }
    /// Whether all of the pool could hold a volume of that size. Pools are thin: together, volumes may promise more than there is.
    pub fn may_fit(&self, bytes: u64) -> bool {
        self.size == 0 || bytes <= self.size
    }
    /// New volumes may go there, if somebody asks for it.
    pub fn usable(&self) -> bool {
        self.ready && self.pool.is_some() && self.schedulable
    }
    /// New volumes and copies may go there although nobody asked for that node.
    pub fn inviting(&self) -> bool {
        self.usable() && self.taint.is_none()
    }
}

/// One pool from its objects.
pub fn view(pool: &NodePool, node: Option<&Node>) -> PoolView {
    let status = pool.status.clone().unwrap_or_default();
    let ready = condition(&status.conditions, ConditionType::Ready);
    let problem = match ready {
        Some(c) if says(c) != Some(true) => format!("{}: {}", c.reason, c.message),
        Some(_) => String::new(),
        None => "its agent has not reported".into(),
    };
    PoolView {
        node: pool.spec.node.clone(),
        group: pool.spec.pool_group.clone(),
        pool: status.pool,
        ready: ready.is_some_and(|c| says(c) == Some(true)),
        problem,
        size: status.capacity_bytes,
        available: status.available_bytes,
        node_exists: node.is_some(),
        schedulable: node.is_some_and(|n| !is_cordoned(n)),
        taint: node.and_then(repelling_taint),
        out_of_service: node.is_some_and(is_out_of_service),
        labels: node.map(|n| n.labels().clone()).unwrap_or_default(),
        orphans: status.orphans.items.into_iter().map(|o| o.fs_id).collect(),
    }
}

/// <https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#non-graceful-node-shutdown>
pub fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.is_some_and(|t| t.iter().any(|t| t.key == "node.kubernetes.io/out-of-service"))
}

/// All pools, by node name.
pub fn all(caches: &Caches) -> Vec<PoolView> {
    let mut pools: Vec<_> = caches.pools.all().iter().map(|p| view(p, caches.nodes.get(&p.spec.node).as_deref())).collect();
    pools.sort_by(|a, b| a.node.cmp(&b.node));
    pools
}

/// All pools, and those that the caches call gone as the API server has them now: what doesn't wait for a pool's agent
/// decides about data, so it is never decided from a cache (failures.md row 10).
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn confirmed(ctx: &Ctx, replicas: &[Arc<Replica>]) -> Result<Vec<PoolView>, Error> {
    let mut pools = all(&ctx.caches);
    let (live_pools, live_nodes): (Api<NodePool>, Api<Node>) = (Api::all(ctx.client.clone()), Api::all(ctx.client.clone()));
    for replica in replicas {
        let place = Place { node: replica.spec.node.clone(), pool: replica.spec.pool.clone() };
        if !is_gone(&pools, &place) && !pools.iter().any(|p| p.node == place.node && p.out_of_service) {
            continue;
        }
        pools.retain(|p| p.node != place.node);
        if let Some(pool) = live_pools.get_opt(&place.node).await? {
            let node = live_nodes.get_opt(&place.node).await?;
            pools.push(view(&pool, node.as_ref()));
        }
    }
    Ok(pools)
}

/// The pool that an object names is gone for good: no Node, no agent, or another disk under the same name.
/// A pool that is merely down is not gone.
pub fn is_gone(pools: &[PoolView], place: &Place) -> bool {
    pools.iter().find(|p| p.node == place.node).is_none_or(|p| !p.node_exists || p.pool.as_ref().is_some_and(|id| *id != place.pool))
}

fn selected(pool: &PoolView, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| pool.labels.get(k) == Some(v))
}

/// What to do about taints, for people.
pub const IF_TOLERATED: &str = "if the pods tolerate them, label the node dotgraft.dev/taints=ignore";

/// The taints that keep volumes off pools which could take them otherwise, as the end of a sentence; empty if there are none.
pub fn repelled<'a>(pools: impl Iterator<Item = &'a PoolView>) -> String {
    let repelled: Vec<String> =
        pools.filter(|p| p.usable()).filter_map(|p| p.taint.as_ref().map(|t| format!("{} ({t})", p.node))).take(3).collect();
    if repelled.is_empty() { String::new() } else { format!("; taints keep volumes off {}: {IF_TOLERATED}", repelled.join(", ")) }
}

/// Where a new Filesystem goes: the node that is asked for; else the `initial` one, if it fits there; else the one with most free
/// bytes that no taint keeps it off. In the initial node's group, if there is such: a PVC's volume is reached from there only.
///
/// # Errors
///
/// The [`Block`] that says why no pool will do.
pub fn choose(pools: &[PoolView], placement: &Placement, initial: Option<&str>, capacity: u64) -> Result<Place, Block> {
    if let Some(node) = &placement.node {
        let Some(pool) = pools.iter().find(|p| p.node == *node) else {
            return Err(Block::new(
                ConditionType::NodeNotFound,
                format!("placement.node `{node}` has no NodePool: is there such a node, and does an agent run on it?"),
            ));
        };
        if !selected(pool, &placement.node_selector) {
            return Err(Block::new(
                ConditionType::NoPool,
                format!("placement.node `{node}` doesn't have the labels of placement.nodeSelector"),
            ));
        }
        if let Some(initial) = initial.and_then(|n| pools.iter().find(|p| p.node == n)).filter(|i| i.group != pool.group) {
            let (asked, of) = (&pool.group, &initial.group);
            let why = format!("placement.node `{node}` is in pool group `{asked}`, and the volume's PVC can be used in `{of}` only");
            return Err(Block::new(ConditionType::PlacementUnavailable, why));
        }
        return pool
            .place()
            .filter(|_| pool.ready && pool.node_exists)
            .ok_or_else(|| Block::new(ConditionType::PoolNotReady, format!("the pool of node `{node}` is not ready: {}", pool.problem)));
    }
    let initial = initial.and_then(|n| pools.iter().find(|p| p.node == n));
    let fit = |p: &&PoolView| p.usable() && selected(p, &placement.node_selector);
    if let Some(place) = initial.filter(fit).filter(|p| p.available >= capacity).and_then(PoolView::place) {
        return Ok(place);
    }
    let within = |p: &&PoolView| initial.is_none_or(|i| i.group == p.group) && selected(p, &placement.node_selector);
    let best = pools
        .iter()
        .filter(within)
        .filter(|p| p.inviting())
        // Among those where it fits, if any; ties go to the first by name.
        .max_by(|a, b| {
            let rank = |p: &PoolView| (p.available >= capacity, p.may_fit(capacity), p.available);
            rank(a).cmp(&rank(b)).then_with(|| b.node.cmp(&a.node))
        });
    best.and_then(PoolView::place).ok_or_else(|| {
        let taints = repelled(pools.iter().filter(within));
        let why = "no node with a ready pool matches: see `kubectl get nodepools`, placement.nodeSelector and cordoned nodes";
        Block::new(ConditionType::NoPool, format!("{why}{taints}"))
    })
}

/// Whether a copy may be on that pool, wherever pods have been scheduled: in the owner's group, with the labels that placement asks for.
///
/// # Errors
/// Why not, for people.
pub fn may_hold(pools: &[PoolView], pool: &PoolView, owner: &str, placement: &Placement) -> Result<(), String> {
    let group = pools.iter().find(|p| p.node == owner).map(|p| p.group.as_str());
    if Some(pool.group.as_str()) != group {
        return Err(format!("its pool is of group `{}`, the volume's of another", pool.group));
    }
    if !selected(pool, &placement.node_selector) {
        return Err("it doesn't have the labels of placement.nodeSelector".into());
    }
    Ok(())
}

/// Nodes for `wanted` more copies: same group as the owner, ready, neither owner nor `taken`, without taints, most free bytes first.
///
/// Nodes that `have` a copy, or pods that read it, go first, whatever their taints: after a move that is where the volume came from.
pub fn choose_copies(
    pools: &[PoolView],
    owner: &str,
    placement: &Placement,
    (taken, have): (&BTreeSet<String>, &BTreeSet<String>),
    wanted: usize,
) -> Vec<String> {
    let group = pools.iter().find(|p| p.node == owner).map(|p| p.group.as_str());
    let mut fit: Vec<&PoolView> = pools
        .iter()
        .filter(|p| p.usable() && Some(p.group.as_str()) == group && p.node != owner)
        .filter(|p| p.inviting() || have.contains(&p.node))
        .filter(|p| !taken.contains(&p.node) && selected(p, &placement.node_selector))
        .collect();
    let rank = |p: &PoolView| (have.contains(&p.node), p.available);
    fit.sort_by(|a, b| rank(b).cmp(&rank(a)).then_with(|| a.node.cmp(&b.node)));
    fit.into_iter().take(wanted).map(|p| p.node.clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A ready pool with `available` GiB; its UUID ends with the node's number.
    pub fn pool(node: &str, available: u64) -> PoolView {
        PoolView {
            node: node.into(),
            group: "default".into(),
            pool: Some(pool_id(node)),
            ready: true,
            size: 1 << 40,
            available: available << 30,
            node_exists: true,
            schedulable: true,
            ..PoolView::default()
        }
    }
    /// UUID of a test pool.
    pub fn pool_id(node: &str) -> String {
        format!("00000000-0000-4000-8000-{:0>12}", node.trim_start_matches('n'))
    }

    fn node_of(r: Result<Place, Block>) -> String {
        r.map_or_else(|b| b.reason.to_string(), |p| p.node)
    }

    #[test]
    fn a_new_filesystem_goes_where_most_is_free() {
        let mut pools = vec![pool("n1", 5), pool("n2", 9), pool("n3", 20)];
        pools[2].ready = false;
        assert_eq!(node_of(choose(&pools, &Placement::default(), None, 1)), "n2");
        pools[1].schedulable = false;
        assert_eq!(node_of(choose(&pools, &Placement::default(), None, 1)), "n1");
        assert_eq!(node_of(choose(&[], &Placement::default(), None, 1)), "NoPool");
    }

    #[test]
    fn the_node_that_is_asked_for_or_none() {
        let mut pools = vec![pool("n1", 5), pool("n2", 9)];
        let ask = |n: &str| Placement { node: Some(n.into()), ..Placement::default() };
        assert_eq!(node_of(choose(&pools, &ask("n1"), None, 1)), "n1");
        assert_eq!(node_of(choose(&pools, &ask("n9"), None, 1)), "NodeNotFound");
        pools[0].pool = None;
        assert_eq!(node_of(choose(&pools, &ask("n1"), None, 1)), "PoolNotReady");
    }

    #[test]
    fn it_begins_on_the_initial_node_if_it_fits_else_elsewhere_in_its_group() {
        let mut pools = vec![pool("n1", 5), pool("n2", 9), pool("n3", 20)];
        pools[2].group = "other".into();
        let begin = |pools: &[PoolView], gib: u64| node_of(choose(pools, &Placement::default(), Some("n1"), gib << 30));
        assert_eq!(begin(&pools, 5), "n1");
        assert_eq!(begin(&pools, 6), "n2");
        pools[0].schedulable = false;
        assert_eq!(begin(&pools, 1), "n2");
        pools[1].ready = false;
        assert_eq!(begin(&pools, 1), "NoPool");
        assert_eq!(node_of(choose(&pools, &Placement::default(), Some("gone"), 1)), "n3");
    }

    #[test]
    fn a_node_with_a_taint_gets_what_is_asked_for_there_and_nothing_else() {
        let mut pools = vec![pool("n1", 5), pool("n2", 9), pool("n3", 20)];
        pools[2].taint = Some("gpu:NoSchedule".into());
        assert_eq!(node_of(choose(&pools, &Placement::default(), None, 1)), "n2");
        let ask = Placement { node: Some("n3".into()), ..Placement::default() };
        assert_eq!(node_of(choose(&pools, &ask, None, 1)), "n3");
        assert_eq!(node_of(choose(&pools, &Placement::default(), Some("n3"), 1)), "n3", "where its pod was scheduled");
        assert_eq!(node_of(choose(&pools, &Placement::default(), Some("n3"), 21 << 30)), "n2", "it doesn't fit there");
        let (none, have) = (BTreeSet::new(), BTreeSet::from(["n3".to_owned()]));
        assert_eq!(choose_copies(&pools, "n1", &Placement::default(), (&none, &none), 5), ["n2"]);
        assert_eq!(choose_copies(&pools, "n1", &Placement::default(), (&none, &have), 1), ["n3"], "the copy is there already");
        for p in &mut pools {
            p.taint = Some("gpu:NoSchedule".into());
        }
        let block = choose(&pools, &Placement::default(), None, 1).unwrap_err();
        assert!(block.message.contains("n1 (gpu:NoSchedule)") && block.message.contains(IF_TOLERATED), "{}", block.message);
    }

    #[test]
    fn a_node_that_is_asked_for_is_in_the_group_of_the_initial_one() {
        let mut pools = vec![pool("n1", 5), pool("n2", 9)];
        pools[1].group = "other".into();
        let ask = Placement { node: Some("n2".into()), ..Placement::default() };
        assert_eq!(node_of(choose(&pools, &ask, Some("n1"), 1)), "PlacementUnavailable");
        assert_eq!(node_of(choose(&pools, &ask, Some("gone"), 1)), "n2");
        assert_eq!(node_of(choose(&pools, &ask, None, 1)), "n2");
    }

    #[test]
    fn a_selector_is_obeyed() {
        let mut pools = vec![pool("n1", 5), pool("n2", 9)];
        pools[0].labels.insert("disk".into(), "ssd".into());
        let ssd = Placement { node_selector: BTreeMap::from([("disk".into(), "ssd".into())]), ..Placement::default() };
        assert_eq!(node_of(choose(&pools, &ssd, None, 1)), "n1");
    }

    #[test]
    fn copies_stay_in_the_group_and_off_the_owner() {
        let mut pools = vec![pool("n1", 5), pool("n2", 9), pool("n3", 20), pool("n4", 7)];
        pools[2].group = "other".into();
        let none = BTreeSet::new();
        assert_eq!(choose_copies(&pools, "n1", &Placement::default(), (&none, &none), 5), ["n2", "n4"]);
        let taken = BTreeSet::from(["n2".to_owned()]);
        assert_eq!(choose_copies(&pools, "n1", &Placement::default(), (&taken, &none), 1), ["n4"]);
    }

    #[test]
    fn down_is_not_gone_but_another_disk_is() {
        let mut pools = vec![pool("n1", 5)];
        let place = pools[0].place().unwrap();
        pools[0].ready = false;
        assert!(!is_gone(&pools, &place));
        pools[0].pool = None;
        assert!(!is_gone(&pools, &place), "booted without its disk: it may come back");
        pools[0].pool = Some(pool_id("n7"));
        assert!(is_gone(&pools, &place));
        pools[0].pool = Some(place.pool.clone());
        pools[0].node_exists = false;
        assert!(is_gone(&pools, &place));
        assert!(is_gone(&[], &place));
    }
}
