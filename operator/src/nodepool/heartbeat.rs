//! Heartbeats: an agent renews a Lease of its own. While it doesn't, what its `NodePool` says is old, so `Ready` becomes unknown there
//! (`AgentSilent`), and with it what Dots and jobs say of that node. Nothing about data is decided by it (csi.md §2): a pool that isn't ready
//! is waited for.
//!
//! Time is this process's own, from when *we* saw a Lease change: clocks of nodes need not agree, and a time in which we saw nothing counts
//! for nothing. The agent itself says that it is ready again: it sees its object changed, and writes what it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_api::common::{LEASE_AGENT_PREFIX, Time};
use dotgraft_api::condition::{ConditionUpdate, set_condition};
use dotgraft_api::{ConditionType, NodePool, Word, condition, says};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::{Api, Resource, ResourceExt};

use crate::context::Ctx;
use crate::error::Error;
use crate::names::FIELD_MANAGER;
use crate::note::Note;

/// Between two looks at the Leases.
const EVERY: Duration = Duration::from_secs(5);
/// Longest wait for the API server's answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two looks that follow on each other. After a longer pause all counting begins anew.
const GAP: Duration = Duration::from_secs(20);
/// How long a heartbeat counts if its Lease doesn't say.
const COUNTS_FOR: Duration = Duration::from_secs(40);
/// Bounds of what a Lease may say about that, in seconds.
const BOUNDS: (u64, u64) = (10, 600);

/// What was seen of the Leases, and when by our own clock.
#[derive(Debug, Default)]
struct Heartbeats {
    seen: BTreeMap<String, (Option<LeaseSpec>, Instant)>,
    looked: Option<Instant>,
}

impl Heartbeats {
    /// Looks at the Leases of these nodes as they are at `now`. The nodes whose agent has been silent for longer than a heartbeat counts, each
    /// with how long that is.
    fn look(&mut self, nodes: &[String], leases: &BTreeMap<String, LeaseSpec>, now: Instant) -> BTreeMap<String, Duration> {
        if self.looked.is_none_or(|at| now - at > GAP) {
            self.seen.clear();
        }
        self.looked = Some(now);
        self.seen.retain(|node, _| nodes.contains(node));
        let mut silent = BTreeMap::new();
        for node in nodes {
            let lease = leases.get(node);
            let (before, since) = self.seen.entry(node.clone()).or_insert_with(|| (lease.cloned(), now));
            if before.as_ref() != lease {
                (*before, *since) = (lease.cloned(), now);
            }
            let counts = counts_for(lease);
            if now - *since > counts {
                silent.insert(node.clone(), counts);
            }
        }
        silent
    }
}

fn counts_for(lease: Option<&LeaseSpec>) -> Duration {
    let said = lease.and_then(|l| l.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    said.map_or(COUNTS_FOR, |s| Duration::from_secs(s.clamp(BOUNDS.0, BOUNDS.1)))
}

/// Watches the heartbeats for ever.
pub async fn watch(ctx: Arc<Ctx>) {
    let mut heartbeats = Heartbeats::default();
    let mut told = BTreeSet::new();
    loop {
        match tokio::time::timeout(ANSWER, leases(&ctx)).await {
            Ok(Ok(leases)) => {
                let nodes: Vec<String> = ctx.caches.pools.all().iter().map(|p| p.name_any()).collect();
                let silent = heartbeats.look(&nodes, &leases, Instant::now());
                told.retain(|node| silent.contains_key(node));
                say(&silent, &mut told, &ctx).await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "listing the agents' heartbeats"),
            Err(_) => tracing::warn!("listing the agents' heartbeats: no answer"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The agents' Leases by node.
async fn leases(ctx: &Ctx) -> Result<BTreeMap<String, LeaseSpec>, kube::Error> {
    let api: Api<Lease> = Api::namespaced(ctx.client.clone(), &ctx.namespace);
    let list = api.list(&ListParams::default()).await?.items;
    let of_agent = |l: Lease| Some((l.metadata.name?.strip_prefix(LEASE_AGENT_PREFIX)?.to_owned(), l.spec.unwrap_or_default()));
    Ok(list.into_iter().filter_map(of_agent).collect())
}

/// Says it once in each silence: an agent that lives, and whose heartbeats alone don't arrive, takes it back, and that stands.
async fn say(silent: &BTreeMap<String, Duration>, told: &mut BTreeSet<String>, ctx: &Ctx) {
    for (node, counts) in silent {
        if told.contains(node) {
            continue;
        }
        match tokio::time::timeout(ANSWER, mark(node, *counts, ctx)).await {
            Ok(Ok(())) => {
                told.insert(node.clone());
            }
            Ok(Err(error)) => tracing::warn!(node, %error, "saying that an agent is silent; again in a moment"),
            Err(_) => tracing::warn!(node, "saying that an agent is silent: no answer; again in a moment"),
        }
    }
}

/// `Ready` of the node's pool becomes unknown, in the version that is read; a pool that has never said anything is left alone.
async fn mark(node: &str, counts: Duration, ctx: &Ctx) -> Result<(), Error> {
    let api: Api<NodePool> = Api::all(ctx.client.clone());
    let Some(pool) = api.get_opt(node).await? else { return Ok(()) };
    let Some(next) = silenced(&pool, counts, &Time(Timestamp::now())) else { return Ok(()) };
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    api.replace_status(node, &params, &next).await?;
    tracing::warn!(node, "its agent is silent");
    let note = Note { warning: true, reason: Word::AgentSilent.as_str().into(), message: message(node, counts) };
    ctx.notes(&pool.object_ref(&()), "Watch", vec![note]).await;
    Ok(())
}

fn message(node: &str, counts: Duration) -> String {
    format!(
        "the agent of node `{node}` has not renewed its heartbeat (Lease {LEASE_AGENT_PREFIX}{node}) for more than {} s: does its pod run, and does it reach the API server?",
        counts.as_secs()
    )
}

/// The pool with `Ready` unknown; nothing if that is not what it says of itself now, as it already says that it is not ready.
fn silenced(pool: &NodePool, counts: Duration, now: &Time) -> Option<NodePool> {
    let mut next = pool.clone();
    let status = next.status.as_mut()?;
    let ready = condition(&status.conditions, ConditionType::Ready).filter(|c| says(c) == Some(true))?;
    let update = ConditionUpdate {
        type_: ConditionType::Ready.as_str(),
        status: None,
        reason: Word::AgentSilent.as_str(),
        message: &message(&pool.name_any(), counts),
        observed_generation: ready.observed_generation,
    };
    set_condition(&mut status.conditions, &update, now).then_some(next)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;
    use crate::testing::scenario::{call, event, play};

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(renewed: i64) -> LeaseSpec {
        let renew_time = Some(MicroTime(Timestamp::from_second(renewed).unwrap()));
        LeaseSpec { lease_duration_seconds: Some(40), renew_time, ..LeaseSpec::default() }
    }
    fn of(node: &str, renewed: i64) -> BTreeMap<String, LeaseSpec> {
        [(node.to_owned(), lease(renewed))].into()
    }
    fn pool(status: Option<bool>) -> NodePool {
        let (mut pool, _) = crate::testing::node_pool("n1");
        pool.metadata.resource_version = Some("1".into());
        let update = ConditionUpdate { type_: "Ready", status, reason: "Ready", message: "", observed_generation: Some(1) };
        pool.status.get_or_insert_default().conditions.clear();
        set_condition(&mut pool.status.get_or_insert_default().conditions, &update, &Time(Timestamp::UNIX_EPOCH));
        pool
    }

    #[test]
    fn an_agent_is_silent_when_its_lease_has_not_changed_for_as_long_as_it_counts() {
        let (mut h, start, nodes) = (Heartbeats::default(), Instant::now(), ["n1".to_owned()]);
        for s in (0..=40).step_by(5) {
            assert!(h.look(&nodes, &of("n1", 1), start + SECOND * s).is_empty(), "after {s} s");
        }
        assert!(h.look(&nodes, &of("n1", 1), start + SECOND * 45).contains_key("n1"));
        // Any change counts: the node's clock may be anywhere.
        assert!(h.look(&nodes, &of("n1", -7000), start + SECOND * 50).is_empty());
        // A Lease that went away is no heartbeat, and neither is one that never was.
        for s in (55..=95).step_by(5) {
            assert!(h.look(&nodes, &BTreeMap::new(), start + SECOND * s).is_empty(), "after {s} s");
        }
        assert!(h.look(&nodes, &BTreeMap::new(), start + SECOND * 100).contains_key("n1"));
        assert!(h.look(&[], &BTreeMap::new(), start + SECOND * 105).is_empty(), "a pool that is gone");
    }

    #[test]
    fn what_was_not_looked_at_is_no_silence() {
        let (mut h, start, nodes) = (Heartbeats::default(), Instant::now(), ["n1".to_owned()]);
        h.look(&nodes, &of("n1", 1), start);
        // The API server was away for both of us.
        assert!(h.look(&nodes, &of("n1", 1), start + SECOND * 100).is_empty());
        assert!(h.look(&nodes, &of("n1", 1), start + SECOND * 115).is_empty());
        let odd = |seconds| counts_for(Some(&LeaseSpec { lease_duration_seconds: Some(seconds), ..LeaseSpec::default() }));
        assert_eq!([odd(-1), odd(0), odd(i32::MAX)], [COUNTS_FOR, SECOND * 10, SECOND * 600]);
    }

    #[test]
    fn only_a_pool_that_calls_itself_ready_is_silenced() {
        let now = Time(Timestamp::now());
        let next = silenced(&pool(Some(true)), COUNTS_FOR, &now).unwrap();
        let ready = condition(&next.status.as_ref().unwrap().conditions, ConditionType::Ready).unwrap();
        assert_eq!((says(ready), ready.reason.as_str()), (None, "AgentSilent"));
        assert!(!crate::pools::view(&next, None).ready);
        assert_eq!(silenced(&pool(Some(false)), COUNTS_FOR, &now), None, "its own reason says more");
        assert_eq!(silenced(&next, COUNTS_FOR, &now), None);
        assert_eq!(silenced(&NodePool { status: None, ..pool(None) }, COUNTS_FOR, &now), None);
    }

    #[tokio::test]
    async fn it_is_said_once_in_a_silence_in_the_version_that_was_read() {
        let script = vec![
            call("GET", "/nodepools/n1", pool(Some(true))),
            call("PUT", "/nodepools/n1/status", pool(None)).with(|body| {
                assert_eq!(body["metadata"]["resourceVersion"], "1");
                assert_eq!(body["status"]["conditions"][0]["status"], "Unknown");
            }),
            event(),
        ];
        let work = |ctx: Arc<Ctx>| async move {
            let (silent, mut told) = ([("n1".to_owned(), COUNTS_FOR)].into(), BTreeSet::new());
            say(&silent, &mut told, &ctx).await;
            say(&silent, &mut told, &ctx).await;
        };
        play(|_| {}, script, work).await;
    }
}
