//! Copies that a claim wants: `placement.replicas`, and one on each node on which pods read it (`ro/…`, csi.md §1). For each there is one
//! ReplicationJob with `onCommit`, owned by the claim. One mechanism: what keeps a copy is always a job (design §2).

use std::collections::BTreeSet;
use std::sync::Arc;

use dotgraft_api::{DesiredState, Replica, ReplicationJob};
use kube::api::Patch;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::decide::View;
use super::{ClaimView, limit, owner_reference};
use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem::jobs_of;
use crate::filesystem::spare::Marks;
use crate::names;
use crate::pools::{self, PoolView};
use crate::write;

/// Jobs to make, by target node, and to delete.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<String>,
    delete: Vec<Arc<ReplicationJob>>,
}

/// What is known of the nodes.
#[derive(Debug, Default)]
struct Nodes {
    /// With a copy.
    have: BTreeSet<String>,
    /// On which pods read it, and no copy or job of a user's serves them.
    readers: BTreeSet<String>,
}

/// Nodes once chosen are kept; a job whose node is gone, or has become the owner, is replaced. A reader's node counts as one of
/// `placement.replicas`, and is chosen first.
fn plan(claim: &ClaimView, owner: &str, pools: &[PoolView], nodes: &Nodes, mut owned: Vec<Arc<ReplicationJob>>) -> Plan {
    owned.retain(|j| j.metadata.deletion_timestamp.is_none());
    owned.sort_by_key(|j| crate::job::resolve::turn(j));
    let usable = |j: &Arc<ReplicationJob>| {
        let node = &j.spec.target.node;
        node != owner && pools.iter().any(|p| p.node == *node && p.node_exists)
    };
    let (mut keep, mut delete): (Vec<_>, Vec<_>) = owned.into_iter().partition(usable);
    let wanted = usize::try_from(claim.placement.replicas).unwrap_or(0);
    if keep.len() > wanted {
        let (read, rest): (Vec<_>, Vec<_>) = keep.split_off(wanted).into_iter().partition(|j| nodes.readers.contains(&j.spec.target.node));
        keep.extend(read);
        delete.extend(rest);
    }
    let taken: BTreeSet<String> = keep.iter().chain(&delete).map(|j| j.spec.target.node.clone()).collect();
    let first = nodes.have.union(&nodes.readers).cloned().collect();
    let mut create = pools::choose_copies(pools, owner, &claim.placement, (&taken, &first), wanted.saturating_sub(keep.len()));
    for node in nodes.readers.difference(&taken) {
        let pool = pools.iter().find(|p| p.node == *node && node != owner);
        if !create.contains(node) && pool.is_some_and(|p| p.ready && pools::may_hold(pools, p, owner, &claim.placement).is_ok()) {
            create.push(node.clone());
        }
    }
    Plan { create, delete }
}

/// What pods read, and what they read it from.
fn nodes(view: &View, replicas: &[Arc<Replica>], ctx: &Ctx) -> Nodes {
    let present = |r: &&Arc<Replica>| r.spec.desired.state == DesiredState::Present;
    let have = replicas.iter().filter(present).map(|r| r.spec.node.clone()).collect();
    let jobs = jobs_of(&view.claim, ctx);
    let others = |node: &str| {
        let job = jobs.iter().any(|j| j.spec.target.node == node && !j.labels().contains_key(names::OWNED_BY_LABEL));
        job || replicas.iter().filter(present).any(|r| r.spec.node == node && !Marks::of(r).ours)
    };
    let published = view.fs.iter().flat_map(|f| &f.spec.published_to);
    let readers = published.filter(|p| p.read_only && !others(&p.node)).map(|p| p.node.clone()).collect();
    Nodes { have, readers }
}

/// Jobs that belong to a claim.
pub fn owned(claim: &ClaimView, ctx: &Ctx) -> Vec<Arc<ReplicationJob>> {
    let mut jobs = ctx.caches.jobs.with(&claim.namespace);
    jobs.retain(|j| j.labels().get(names::OWNED_BY_LABEL) == Some(&claim.uid));
    jobs
}

/// Makes and deletes jobs until there is one per wanted copy.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn keep(view: &View, ctx: &Ctx) -> Result<(), Error> {
    let claim = &view.claim;
    let authority = view.fs.as_ref().and_then(|f| f.status.as_ref()).and_then(|s| s.authority.as_ref());
    let Some(authority) = authority.filter(|_| !claim.deleting) else { return Ok(()) };
    let replicas = super::gather::replicas_of(view, ctx);
    let nodes = nodes(view, &replicas, ctx);
    let mut plan = plan(claim, &authority.owner.node, &pools::all(&ctx.caches), &nodes, owned(claim, ctx));
    if !plan.create.is_empty() && limit::check(claim, ctx).is_err() {
        plan.create.clear(); // the claim says so
    }
    let api: Api<ReplicationJob> = Api::namespaced(ctx.client.clone(), &claim.namespace);
    for node in &plan.create {
        let name = names::placement_job_name(claim.kind.as_str(), &claim.name, node);
        let job = json!({
            "apiVersion": "dotgraft.dev/v1alpha1", "kind": "ReplicationJob",
            "metadata": {
                "name": name,
                "labels": { names::OWNED_BY_LABEL: claim.uid },
                "ownerReferences": [owner_reference(claim, true)],
            },
            "spec": {
                "direction": "Push",
                "source": { "names": [claim.name] },
                "target": { "node": node },
                "schedule": { "onCommit": true },
                // Every kept commit: pods may read any by its handle, and the node may become the owner (ADR 13).
                "initial": "All",
            },
        });
        api.patch(&name, &write::apply_params(), &Patch::Apply(&job)).await?;
    }
    for job in &plan.delete {
        write::delete(&api, job.as_ref()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::pool;
    use crate::testing::{claim, job};

    fn targets(jobs: &[Arc<ReplicationJob>]) -> Vec<&str> {
        jobs.iter().map(|j| j.spec.target.node.as_str()).collect()
    }
    fn none() -> Nodes {
        Nodes::default()
    }
    fn readers(nodes: &[&str]) -> Nodes {
        Nodes { readers: nodes.iter().map(|n| (*n).to_owned()).collect(), ..Nodes::default() }
    }
    fn wants(n: u32) -> ClaimView {
        let mut c = claim();
        c.placement.replicas = n;
        c
    }

    #[test]
    fn one_job_per_copy_on_other_nodes() {
        let pools = [pool("n1", 1), pool("n2", 5), pool("n3", 9)];
        assert_eq!(plan(&wants(1), "n1", &pools, &none(), vec![]).create, ["n3"]);
        assert_eq!(plan(&wants(7), "n1", &pools, &none(), vec![]).create, ["n3", "n2"]);
        let have = vec![Arc::new(job("a", "n2", 1))];
        assert_eq!(plan(&wants(1), "n1", &pools, &none(), have.clone()), Plan::default(), "a chosen node is kept");
        assert_eq!(targets(&plan(&wants(0), "n1", &pools, &none(), have).delete), ["n2"]);
    }

    #[test]
    fn a_node_that_has_a_copy_keeps_it() {
        let pools = [pool("n1", 1), pool("n2", 5), pool("n3", 9)];
        let moved_from = Nodes { have: BTreeSet::from(["n1".to_owned()]), ..Nodes::default() };
        assert_eq!(plan(&wants(1), "n2", &pools, &moved_from, vec![]).create, ["n1"]);
    }

    #[test]
    fn the_youngest_goes_first_and_what_is_useless_is_replaced() {
        let pools = [pool("n1", 1), pool("n2", 5), pool("n3", 9)];
        let have = vec![Arc::new(job("b", "n3", 2)), Arc::new(job("a", "n2", 1))];
        assert_eq!(targets(&plan(&wants(1), "n1", &pools, &none(), have.clone()).delete), ["n3"]);
        let moved = plan(&wants(2), "n2", &pools, &none(), have.clone());
        assert_eq!((targets(&moved.delete), moved.create), (vec!["n2"], vec!["n1".to_owned()]));
        let gone = plan(&wants(2), "n1", &pools[..2], &none(), have);
        assert_eq!((targets(&gone.delete), gone.create.len()), (vec!["n3"], 0));
    }

    #[test]
    fn a_node_on_which_pods_read_has_a_copy_while_they_do() {
        let mut pools = [pool("n1", 1), pool("n2", 5), pool("n3", 9)];
        assert_eq!(plan(&wants(0), "n1", &pools, &readers(&["n2"]), vec![]).create, ["n2"]);
        assert_eq!(plan(&wants(1), "n1", &pools, &readers(&["n2"]), vec![]).create, ["n2"], "it is the one that is wanted");
        assert_eq!(plan(&wants(1), "n1", &pools, &readers(&["n2", "n3"]), vec![]).create, ["n3", "n2"]);
        assert_eq!(plan(&wants(0), "n1", &pools, &readers(&["n1"]), vec![]), Plan::default(), "the owner's node has it");
        let have = vec![Arc::new(job("a", "n2", 1)), Arc::new(job("b", "n3", 2))];
        assert_eq!(plan(&wants(1), "n1", &pools, &readers(&["n3"]), have.clone()), Plan::default());
        assert_eq!(targets(&plan(&wants(1), "n1", &pools, &none(), have).delete), ["n3"], "nobody reads there any more");
        pools[1].group = "other".into();
        assert_eq!(plan(&wants(0), "n1", &pools, &readers(&["n2"]), vec![]), Plan::default(), "another group");
        let mut picky = wants(0);
        picky.placement.node_selector.insert("disk".into(), "ssd".into());
        assert_eq!(plan(&picky, "n1", &pools, &readers(&["n3"]), vec![]), Plan::default(), "placement forbids it");
    }
}
