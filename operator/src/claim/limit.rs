//! What the volumes of a namespace may take together (security.md, "Tenants"; ADR 25): the annotation `dotgraft.dev/capacity-limit` of the
//! namespace, which no role within it can write. A volume takes `capacity` and `historyLimit`, and a clone what it began with, once for each copy that
//! is there or asked for.
//!
//! Who asks for more than it has gets it if it fits beside what all others have. What somebody has already is never taken away: with a limit
//! below that nothing grows. Each grant is remembered until the caches show what came of it, so that many who ask at once share one room.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dotgraft_api::common::ANNOTATION_CAPACITY_LIMIT;
use dotgraft_api::{ClaimKind, ConditionType, DesiredState, Filesystem, Place, parse_quantity};
use kube::ResourceExt;
use tokio::time::Instant;

use super::{ClaimObject, ClaimView, cached, own};
use crate::conditions::Block;
use crate::context::{Ctx, Grant};
use crate::filesystem::spare::Marks;
use crate::filesystem::{began, jobs_of};
use crate::pools;

/// How long a claim that was granted something may be missing in the caches.
const UNSEEN: Duration = Duration::from_secs(60);

/// One volume of the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Demand {
    /// UID of the claim; id of a Filesystem whose claim is gone.
    of: String,
    /// Bytes that it asks for.
    wanted: u64,
    /// Bytes that it has.
    has: u64,
}

/// Whether the one gets what it asks for, and what all others have or get before it.
fn share(limit: u64, demands: &[Demand], of: &str) -> (bool, u64) {
    // Of those who shrink, too, until they have.
    let mut taken: u64 = demands.iter().map(|d| d.has).fold(0, u64::saturating_add);
    // Those who grow, always in the same order.
    let mut growing: Vec<&Demand> = demands.iter().filter(|d| d.wanted > d.has).collect();
    growing.sort_by(|a, b| a.of.cmp(&b.of));
    for demand in growing {
        let more = demand.wanted - demand.has;
        let fits = taken.saturating_add(more) <= limit;
        if demand.of == of {
            return (fits, taken.saturating_sub(demand.has));
        }
        // Only what is granted is remembered: who comes later in time may come before in order.
        taken = if fits { taken.saturating_add(more) } else { taken };
    }
    (true, taken)
}

/// Whether the claim may have what it asks for.
///
/// # Errors
///
/// The [`Block`] that says what the limit is, and what is asked for; or that the limit can't be read.
pub fn check(claim: &ClaimView, ctx: &Ctx) -> Result<(), Block> {
    let namespace = ctx.caches.namespaces.get(&claim.namespace);
    let Some(text) = namespace.as_ref().and_then(|n| n.annotations().get(ANNOTATION_CAPACITY_LIMIT)) else { return Ok(()) };
    let limit = parse_quantity(text).map_err(|e| {
        let why = format!("annotation {ANNOTATION_CAPACITY_LIMIT} of namespace `{}` can't be read, so nothing grows: {e}", claim.namespace);
        Block::new(ConditionType::CapacityLimit, why)
    })?;
    let mut grants = ctx.grants();
    let mut demands = demands(claim, &grants, ctx);
    demands.extend(unseen(&claim.namespace, &mut grants, &demands, ctx));
    let (granted, others) = share(limit, &demands, &claim.uid);
    let wanted = demands.iter().find(|d| d.of == claim.uid).map_or(0, |d| d.wanted);
    if granted {
        let (namespace, seen) = (claim.namespace.clone(), is_cached(claim, ctx));
        grants.insert(claim.uid.clone(), Grant { namespace, bytes: wanted, seen, at: Instant::now() });
        return Ok(());
    }
    let why = format!(
        "the volumes of namespace `{}` may take {limit} bytes (annotation {ANNOTATION_CAPACITY_LIMIT}); others have {others}, and with all copies \
         this asks for {wanted}, capacity and historyLimit together: what it has stays, no more is made",
        claim.namespace
    );
    Err(Block::new(ConditionType::CapacityLimit, why))
}

/// Bytes of one copy.
fn size(claim: &ClaimView) -> u64 {
    let bytes = |r: &Result<u64, _>| *r.as_ref().unwrap_or(&0);
    bytes(&claim.capacity).saturating_add(bytes(&claim.history_limit))
}

/// Bytes that a claim which isn't made yet may begin with, at most: what it asks for before anybody can measure it (ADR 39).
fn may_begin_with(claim: &ClaimView, ctx: &Ctx) -> u64 {
    let of_dot = || own::filesystem(&cached(ctx, ClaimKind::Dot, &claim.namespace, claim.dot.as_deref()?)?, ctx).map(|fs| fs.name_any());
    let origin = claim.origin.as_ref().map(|o| o.fs_id.clone()).or_else(of_dot);
    origin.and_then(|id| began::most(&ctx.caches.replicas.with(&id))).unwrap_or(0)
}

/// All that takes or asks for room in the namespace of `claim`, which is as given there.
fn demands(claim: &ClaimView, grants: &BTreeMap<String, Grant>, ctx: &Ctx) -> Vec<Demand> {
    let namespace = &claim.namespace;
    let granted = |uid: &str| grants.get(uid).map_or(0, |g| g.bytes);
    let mut list = Vec::new();
    let mut known = BTreeSet::new();
    let filesystems = ctx.caches.filesystems.all();
    for fs in filesystems.iter().filter(|f| f.spec.claim_ref.namespace == *namespace) {
        let (has, nodes) = held(fs, ctx);
        let holder = own::holder(fs, ctx).map(|holder| if holder.uid == claim.uid { claim.clone() } else { holder });
        let Some(holder) = holder else {
            // Kept after its claim.
            list.push(Demand { of: fs.name_any(), wanted: has, has });
            continue;
        };
        let has = has.max(granted(&holder.uid));
        let origin_bytes = ctx.caches.replicas.with(&fs.name_any()).iter().map(|r| r.spec.desired.origin_bytes).max().unwrap_or(0);
        let one = size(&holder).saturating_add(origin_bytes);
        let wanted = if holder.deleting { has } else { one.saturating_mul(copies(&holder, Some(fs), nodes, ctx)) };
        list.push(Demand { of: holder.uid.clone(), wanted, has });
        known.insert(holder.uid);
    }
    let dots = ctx.caches.dots.all();
    let branches = ctx.caches.branches.all();
    let dots = dots.iter().filter(|d| d.namespace().as_deref() == Some(namespace)).map(|d| d.view(None));
    let branches = branches.iter().filter(|b| b.namespace().as_deref() == Some(namespace));
    let branches = branches.map(|b| b.view(ctx.caches.dots.get_in(namespace, &b.spec.dot).as_deref()));
    for other in [claim.clone()].into_iter().chain(dots).chain(branches) {
        if known.insert(other.uid.clone()) {
            let asked = size(&other).saturating_add(may_begin_with(&other, ctx)).saturating_mul(copies(&other, None, BTreeSet::new(), ctx));
            // One that has its id was granted it, perhaps by an operator of before.
            let has = if other.fs_id.is_some() { asked } else { granted(&other.uid) };
            let wanted = if other.deleting { has } else { asked };
            list.push(Demand { of: other.uid, wanted, has });
        }
    }
    list
}

/// What was granted to claims that the caches don't have yet. One that they have had is gone.
fn unseen(namespace: &str, grants: &mut BTreeMap<String, Grant>, known: &[Demand], ctx: &Ctx) -> Vec<Demand> {
    let is_known = |uid: &str| known.iter().any(|d| d.of == uid);
    grants.retain(|uid, g| g.namespace != namespace || is_known(uid) || !g.seen && g.at.elapsed() < UNSEEN);
    let of_here = grants.iter_mut().filter(|(_, g)| g.namespace == namespace);
    let (known, unseen): (Vec<_>, Vec<_>) = of_here.partition(|(uid, _)| is_known(uid));
    let dots: BTreeSet<String> = ctx.caches.dots.all().iter().filter_map(|d| d.uid()).collect();
    let branches: BTreeSet<String> = ctx.caches.branches.all().iter().filter_map(|b| b.uid()).collect();
    for (uid, grant) in known {
        grant.seen |= dots.contains(uid) || branches.contains(uid);
    }
    unseen.into_iter().map(|(uid, g)| Demand { of: uid.clone(), wanted: g.bytes, has: g.bytes }).collect()
}

fn is_cached(claim: &ClaimView, ctx: &Ctx) -> bool {
    cached(ctx, claim.kind, &claim.namespace, &claim.name).is_some_and(|c| c.uid == claim.uid)
}

/// Bytes that the copies may take, and their nodes. One that nothing needs any more, and that goes by itself, doesn't count; nor does one whose
/// pool is gone.
fn held(fs: &Filesystem, ctx: &Ctx) -> (u64, BTreeSet<String>) {
    let pools = pools::all(&ctx.caches);
    let mut replicas = ctx.caches.replicas.with(&fs.name_any());
    replicas.retain(|r| {
        let place = Place { node: r.spec.node.clone(), pool: r.spec.pool.clone() };
        r.spec.desired.state == DesiredState::Present && Marks::of(r).spare_since.is_none() && !pools::is_gone(&pools, &place)
    });
    let bytes = replicas.iter().map(|r| began::size(&r.spec.desired));
    (bytes.fold(0, u64::saturating_add), replicas.iter().map(|r| r.spec.node.clone()).collect())
}

/// Copies that are there or asked for: the owner's, and those of `placement.replicas`, jobs and readers.
fn copies(claim: &ClaimView, fs: Option<&Filesystem>, mut nodes: BTreeSet<String>, ctx: &Ctx) -> u64 {
    let owner = fs.and_then(|f| f.status.as_ref()?.authority.as_ref()).map(|a| a.owner.node.clone());
    let targets = jobs_of(claim, ctx).into_iter().map(|j| j.spec.target.node.clone());
    nodes.extend(targets.filter(|node| ctx.caches.pools.get(node).is_some()));
    nodes.retain(|node| Some(node) != owner.as_ref());
    let others = u64::try_from(nodes.len()).unwrap_or(u64::MAX);
    others.max(u64::from(claim.placement.replicas)).saturating_add(1)
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
