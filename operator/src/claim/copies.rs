//! `placement.replicas`: one ReplicationJob with `onCommit` per wanted copy, owned by the claim. One mechanism:
//! what keeps a copy is always a job (design §2).

use std::collections::BTreeSet;
use std::sync::Arc;

use dotgraft_api::{DesiredState, ReplicationJob};
use kube::api::Patch;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::decide::View;
use super::{ClaimView, owner_reference};
use crate::context::Ctx;
use crate::error::Error;
use crate::names;
use crate::pools::{self, PoolView};
use crate::write;

/// Jobs to make (by target node) and to delete.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<String>,
    delete: Vec<Arc<ReplicationJob>>,
}

/// Nodes once chosen are kept; a job whose node is gone, or has become the owner, is replaced.
fn plan(claim: &ClaimView, owner: &str, pools: &[PoolView], have: &BTreeSet<String>, mut owned: Vec<Arc<ReplicationJob>>) -> Plan {
    owned.retain(|j| j.metadata.deletion_timestamp.is_none());
    owned.sort_by_key(|j| crate::job::resolve::turn(j));
    let usable = |j: &Arc<ReplicationJob>| {
        let node = &j.spec.target.node;
        node != owner && pools.iter().any(|p| p.node == *node && p.node_exists)
    };
    let (mut keep, mut delete): (Vec<_>, Vec<_>) = owned.into_iter().partition(usable);
    let wanted = usize::try_from(claim.placement.replicas).unwrap_or(0);
    if keep.len() > wanted {
        delete.extend(keep.split_off(wanted));
    }
    let taken: BTreeSet<String> = keep.iter().chain(&delete).map(|j| j.spec.target.node.clone()).collect();
    let create = pools::choose_copies(pools, owner, &claim.placement, (&taken, have), wanted - keep.len());
    Plan { create, delete }
}

/// Jobs that belong to a claim.
pub fn owned(claim: &ClaimView, ctx: &Ctx) -> Vec<Arc<ReplicationJob>> {
    let mut jobs = ctx.caches.jobs.with(&claim.namespace);
    jobs.retain(|j| j.labels().get(names::OWNED_BY_LABEL) == Some(&claim.uid));
    jobs
}

/// Makes and deletes jobs until there is one per wanted copy.
pub async fn keep(view: &View, ctx: &Ctx) -> Result<(), Error> {
    let claim = &view.claim;
    let authority = view.fs.as_ref().and_then(|f| f.status.as_ref()).and_then(|s| s.authority.as_ref());
    let Some(authority) = authority.filter(|_| !claim.deleting) else { return Ok(()) };
    let replicas = super::gather::replicas_of(claim, ctx);
    let have = replicas.iter().filter(|r| r.spec.desired.state == DesiredState::Present).map(|r| r.spec.node.clone()).collect();
    let plan = plan(claim, &authority.owner.node, &pools::all(&ctx.caches), &have, owned(claim, ctx));
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

    fn nodes(jobs: &[Arc<ReplicationJob>]) -> Vec<&str> {
        jobs.iter().map(|j| j.spec.target.node.as_str()).collect()
    }
    fn none() -> BTreeSet<String> {
        BTreeSet::new()
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
        assert_eq!(nodes(&plan(&wants(0), "n1", &pools, &none(), have).delete), ["n2"]);
    }

    #[test]
    fn a_node_that_has_a_copy_keeps_it() {
        let pools = [pool("n1", 1), pool("n2", 5), pool("n3", 9)];
        let moved_from = BTreeSet::from(["n1".to_owned()]);
        assert_eq!(plan(&wants(1), "n2", &pools, &moved_from, vec![]).create, ["n1"]);
    }

    #[test]
    fn the_youngest_goes_first_and_what_is_useless_is_replaced() {
        let pools = [pool("n1", 1), pool("n2", 5), pool("n3", 9)];
        let have = vec![Arc::new(job("b", "n3", 2)), Arc::new(job("a", "n2", 1))];
        assert_eq!(nodes(&plan(&wants(1), "n1", &pools, &none(), have.clone()).delete), ["n3"]);
        let moved = plan(&wants(2), "n2", &pools, &none(), have.clone());
        assert_eq!((nodes(&moved.delete), moved.create), (vec!["n2"], vec!["n1".to_owned()]));
        let gone = plan(&wants(2), "n1", &pools[..2], &none(), have);
        assert_eq!((nodes(&gone.delete), gone.create.len()), (vec!["n3"], 0));
    }
}
