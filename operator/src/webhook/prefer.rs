//! Which nodes a pod should rather run on, from the watched caches alone.
//!
//! Per volume: 100 for the node that owns it, or is to own it by `placement.node` or a move under way; 60 for the others with a usable
//! copy, as a move there sends only what is new. Of several volumes a node gets the mean, weighted by their bytes: what would have to be
//! copied. Nodes that can't take a pod need no care: the scheduler filters them out before it looks at preferences, and scales what is
//! left, so with a cordoned owner the best copy counts as much as the owner did.

use std::collections::BTreeMap;

use dotgraft_api::{Authority, CopyRole, DesiredState, Filesystem, FilesystemPhase, Replica};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

use super::review::{HOSTNAME, Pod, Term};
use crate::claim::{self, own};
use crate::context::Ctx;
use crate::filesystem::moving;
use crate::handle;
use crate::pools::{self, PoolView};
use crate::pvc::decide::{self, Source};

/// For the node that owns the volume.
const OWNER: u64 = 100;
/// For another with a copy.
const COPY: u64 = 60;
/// What an empty volume counts as, in bytes; a copy without commits that people see has something beyond that.
const LEAST: u64 = 1 << 20;
/// Most PVCs of a pod that are looked at.
const MAX_CLAIMS: usize = 64;
/// Most terms that are added.
const MAX_TERMS: usize = 32;

/// A volume of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Volume {
    bytes: u64,
    /// Host names with 1 to 100.
    hosts: BTreeMap<String, u64>,
}

/// The preferences for a pod, the best first; none if it has no volumes of ours that are somewhere.
pub fn terms(pod: &Pod, ctx: &Ctx) -> Vec<Term> {
    let volumes: Vec<Volume> = pod.claims.iter().take(MAX_CLAIMS).filter_map(|name| volume(&pod.namespace, name, ctx)).collect();
    combine(&volumes)
}

/// The mean of the volumes' figures, weighted by their bytes, and never less than 1 for a node that has something.
fn combine(volumes: &[Volume]) -> Vec<Term> {
    let total: u128 = volumes.iter().map(|v| u128::from(v.bytes.max(LEAST))).sum();
    let mut sums: BTreeMap<&str, u128> = BTreeMap::new();
    for volume in volumes {
        for (host, weight) in &volume.hosts {
            *sums.entry(host).or_default() += u128::from(volume.bytes.max(LEAST)) * u128::from(*weight);
        }
    }
    let weight = |sum: u128| i32::try_from((sum / total.max(1)).clamp(1, 100)).unwrap_or(1);
    let mut terms: Vec<Term> = sums.into_iter().map(|(host, sum)| Term { host: host.to_owned(), weight: weight(sum) }).collect();
    terms.sort_by(|a, b| b.weight.cmp(&a.weight).then_with(|| a.host.cmp(&b.host)));
    terms.truncate(MAX_TERMS);
    terms
}

fn volume(namespace: &str, name: &str, ctx: &Ctx) -> Option<Volume> {
    let pvc = ctx.caches.claims.get_in(namespace, name)?;
    let (id, read_only) = filesystem_of(&pvc, namespace, ctx)?;
    let fs = ctx.caches.filesystems.get(&id)?;
    // What is read may be a snapshot whose volume is gone.
    let there =
        |phase| phase == FilesystemPhase::Active || read_only && matches!(phase, FilesystemPhase::Headless | FilesystemPhase::Released);
    let status = fs.status.as_ref().filter(|s| there(s.phase))?;
    let authority = status.authority.as_ref()?;
    let replicas = ctx.caches.replicas.with(&id);
    let owner = &authority.owner;
    let best = target(&fs, authority, ctx);
    let mut hosts = BTreeMap::new();
    for replica in &replicas {
        let node = &replica.spec.node;
        // To read a commit any copy is as good as another: nothing moves.
        let weight = if read_only || *node == best { OWNER } else { COPY };
        if (replica.spec.pool == owner.pool || is_usable(replica, ctx))
            && let Some(host) = host(node, ctx)
        {
            hosts.insert(host, weight);
        }
    }
    // Also while nothing of it is there yet: that is where it will be.
    hosts.extend(host(&best, ctx).map(|h| (h, OWNER)));
    let bytes = replicas.iter().find(|r| r.spec.pool == owner.pool).and_then(|r| r.status.as_ref()).map_or(0, |s| s.bytes);
    Some(Volume { bytes, hosts })
}

/// The Filesystem that a PVC is, and whether only to read: by its volume, or by the Dot or Branch that it names and will get.
fn filesystem_of(pvc: &PersistentVolumeClaim, namespace: &str, ctx: &Ctx) -> Option<(String, bool)> {
    let spec = pvc.spec.as_ref()?;
    if let Some(name) = spec.volume_name.as_deref().filter(|n| !n.is_empty()) {
        let pv = ctx.caches.volumes.get(name)?;
        let handle = handle::handle_of(&pv)?;
        return Some((handle.fs().to_string(), handle.is_read_only()));
    }
    let Ok(Source::Claim(kind, name)) = decide::source(pvc)? else { return None };
    let (_, fs) = claim::bound(ctx, kind, namespace, &name)?;
    let read_only = decide::access(pvc).is_ok_and(|a| a.read_only);
    Some((fs?.name_any(), read_only))
}

/// Where the volume should be: `placement.node` if it can go there, else where a handoff or Kubernetes takes it, else where it is.
fn target(fs: &Filesystem, authority: &Authority, ctx: &Ctx) -> String {
    let claim = own::holder(fs, ctx);
    let placed = claim.as_ref().and_then(|c| c.placement.node.clone());
    let handed = authority.pending.as_ref().map(|p| p.to.node.clone());
    let attached = moving::wanted_node(fs, None).map(str::to_owned);
    for node in [placed, handed, attached].into_iter().flatten() {
        if node == authority.owner.node {
            return node;
        }
        let pools: Vec<PoolView> = [&node, &authority.owner.node].into_iter().filter_map(|n| pool(n, ctx)).collect();
        if matches!(moving::goal_of(Some(&node), authority, &pools), Some(Ok(_))) {
            return node;
        }
    }
    authority.owner.node.clone()
}

/// A copy that a move could begin with, in a pool that is there.
fn is_usable(replica: &Replica, ctx: &Ctx) -> bool {
    let holds = replica.status.as_ref().is_some_and(|s| {
        // A good copy receives, too, each time that there is something new.
        matches!(s.role, CopyRole::Replica | CopyRole::Receiving) && (s.commit_count > 0 || s.bytes > LEAST)
    });
    let ready = |p: &PoolView| p.ready && p.node_exists && !p.out_of_service && p.pool.as_ref() == Some(&replica.spec.pool);
    holds && replica.spec.desired.state == DesiredState::Present && pool(&replica.spec.node, ctx).as_ref().is_some_and(ready)
}

fn pool(node: &str, ctx: &Ctx) -> Option<PoolView> {
    let pool = ctx.caches.pools.get(node)?;
    Some(pools::view(&pool, ctx.caches.nodes.get(node).as_deref()))
}

fn host(node: &str, ctx: &Ctx) -> Option<String> {
    ctx.caches.nodes.get(node)?.labels().get(HOSTNAME).filter(|h| !h.is_empty()).cloned()
}

#[cfg(test)]
#[path = "prefer_tests.rs"]
mod tests;
