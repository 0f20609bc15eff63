//! `kubectl dot adopt` and `drop`: what to do with data in a pool that no object asks for, or with a copy that isn't the owner's. Both
//! only write a wish into `NodePool.spec.orphanActions`; the operator carries it out.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use clap::Args;
use dotgraft_api::{Authority, DesiredState, Filesystem, NodePool, Orphan, OrphanAction, OrphanActionKind, Replica};
use dotgraft_engine::authority as engine;
use dotgraft_engine::model::Place;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;

use crate::Common;
use crate::output::{self, Table, bytes, short};

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Filesystem ids; none lists the orphans.
    fs_ids: Vec<String>,
    /// All orphans of all nodes.
    #[arg(long, conflicts_with = "fs_ids")]
    all: bool,
}

#[derive(Debug, Args)]
pub struct DropArgs {
    /// The Filesystem.
    fs_id: String,
    /// Only the copy on this node; by default every copy that is an orphan. A copy of a living Dot or Branch needs it: one that was
    /// superseded, or that no job wants any more.
    #[arg(long)]
    node: Option<String>,
    /// Yes, delete the data for good.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Line {
    node: String,
    orphan: Orphan,
}

pub async fn adopt(client: &Client, common: &Common, args: &AdoptArgs) -> Result<()> {
    let pools = pools(client).await?;
    if args.fs_ids.is_empty() && !args.all {
        return list(&pools, common);
    }
    let wanted: BTreeSet<&String> = args.fs_ids.iter().collect();
    let chosen = |_: &NodePool, o: &Orphan| args.all || wanted.contains(&o.fs_id);
    let count = act(client, &pools, OrphanActionKind::Adopt, |p| orphans_of(p, chosen)).await?;
    if count == 0 {
        bail!("no such orphan; `kubectl dot adopt` lists what there is");
    }
    finish(count, "to be adopted");
    Ok(())
}

pub async fn drop(client: &Client, common: &Common, args: &DropArgs) -> Result<()> {
    let pools = pools(client).await?;
    let copies = copies(client, &args.fs_id).await?;
    let chosen = |pool: &NodePool, o: &Orphan| o.fs_id == args.fs_id && args.node.as_ref().is_none_or(|n| *n == pool.spec.node);
    let orphans = |pool: &NodePool| orphans_of(pool, chosen);
    let managed = |pool: &NodePool| -> Vec<String> {
        let here = |c: &&Copy| Some(&c.node) == args.node.as_ref() && pool.status.as_ref().and_then(|s| s.pool.as_ref()) == Some(&c.pool);
        copies.iter().filter(here).map(|_| args.fs_id.clone()).collect()
    };
    for copy in copies.iter().filter(|c| Some(&c.node) == args.node.as_ref()) {
        if let Some(why) = &copy.needed {
            bail!("the copy on node {} can't be dropped now: {why}", copy.node);
        }
    }
    let all = |pool: &NodePool| orphans(pool).into_iter().chain(managed(pool)).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    if pools.iter().all(|p| all(p).is_empty()) {
        bail!("{}", nothing_to_drop(args, &copies));
    }
    if !args.yes {
        if pools.iter().any(|p| !orphans(p).is_empty()) {
            list(&pools, common)?;
        }
        bail!("this deletes the data of {}{} for good: say so with --yes", args.fs_id, on(args.node.as_ref()));
    }
    let count = act(client, &pools, OrphanActionKind::Drop, all).await?;
    finish(count, "to be dropped");
    Ok(())
}

/// A copy of a Filesystem that has its objects.
#[derive(Debug, PartialEq, Eq)]
struct Copy {
    node: String,
    pool: String,
    /// Authority may need it: why.
    needed: Option<String>,
}

/// Those that are there, and aren't the owner's.
async fn copies(client: &Client, fs_id: &str) -> Result<Vec<Copy>> {
    let filesystem = Api::<Filesystem>::all(client.clone()).get_opt(fs_id).await?;
    let authority = filesystem.and_then(|f| f.status?.authority);
    let needed = |r: &Replica| authority.as_ref().and_then(|a| needed(a, r));
    let replicas = Api::<Replica>::all(client.clone()).list(&ListParams::default()).await?.items;
    let of_it = |r: &Replica| r.spec.fs_id == fs_id && r.spec.desired.state == DesiredState::Present;
    let copies = replicas.into_iter().filter(of_it).map(|r| Copy { needed: needed(&r), node: r.spec.node, pool: r.spec.pool });
    Ok(copies.filter(|c| authority.as_ref().is_none_or(|a| a.owner.pool != c.pool)).collect())
}

/// Why the copy may not go, by the engine's rule; the operator and the agents refuse it too.
fn needed(authority: &Authority, replica: &Replica) -> Option<String> {
    let place = dotgraft_api::Place { node: replica.spec.node.clone(), pool: replica.spec.pool.clone() };
    match (engine::Authority::try_from(authority), Place::try_from(&place)) {
        (Ok(authority), Ok(place)) => engine::verdict::may_be_dropped(&authority, &place, None).err().map(|why| why.to_string()),
        (Err(why), _) | (_, Err(why)) => Some(why.to_string()),
    }
}

fn on(node: Option<&String>) -> String {
    node.map(|n| format!(" on node {n}")).unwrap_or_default()
}

fn nothing_to_drop(args: &DropArgs, copies: &[Copy]) -> String {
    let nodes: Vec<&str> = copies.iter().map(|c| c.node.as_str()).collect();
    match nodes.as_slice() {
        [] => format!(
            "nothing of {} to drop{}; `kubectl dot adopt` lists orphans; an owner's copy goes with its Dot or Branch",
            args.fs_id,
            on(args.node.as_ref())
        ),
        nodes => {
            format!("{} is no orphan{}: name one of its copies with --node ({})", args.fs_id, on(args.node.as_ref()), nodes.join(", "))
        }
    }
}

async fn pools(client: &Client) -> Result<Vec<NodePool>> {
    Ok(Api::<NodePool>::all(client.clone()).list(&ListParams::default()).await?.items)
}

fn orphans(pool: &NodePool) -> Vec<Orphan> {
    pool.status.as_ref().map(|s| s.orphans.items.clone()).unwrap_or_default()
}

fn orphans_of(pool: &NodePool, chosen: impl Fn(&NodePool, &Orphan) -> bool) -> Vec<String> {
    orphans(pool).into_iter().filter(|o| chosen(pool, o)).map(|o| o.fs_id).collect()
}

fn finish(count: usize, what: &str) {
    println!("{count} {} marked {what}; the operator does it", if count == 1 { "copy" } else { "copies" });
}

/// Adds the action for the chosen Filesystems to each pool's spec, against the version that was read.
async fn act(client: &Client, pools: &[NodePool], action: OrphanActionKind, chosen: impl Fn(&NodePool) -> Vec<String>) -> Result<usize> {
    let api = Api::<NodePool>::all(client.clone());
    let mut count = 0;
    for pool in pools {
        let ids = chosen(pool);
        if ids.is_empty() {
            continue;
        }
        count += ids.len();
        let mut pool = pool.clone();
        pool.spec.orphan_actions.retain(|a| !ids.contains(&a.fs_id));
        pool.spec.orphan_actions.extend(ids.into_iter().map(|fs_id| OrphanAction { fs_id, action }));
        api.replace(&pool.name_any(), &PostParams::default(), &pool).await?;
    }
    Ok(count)
}

fn list(pools: &[NodePool], common: &Common) -> Result<()> {
    let lines: Vec<Line> =
        pools.iter().flat_map(|p| orphans(p).into_iter().map(|orphan| Line { node: p.spec.node.clone(), orphan })).collect();
    output::print(common.output, &lines, |wide| {
        if lines.is_empty() {
            return "No orphans.".into();
        }
        let mut table = Table::new(&["NODE", "FILESYSTEM", "CLAIM", "ROLE", "EPOCH", "COMMIT", "COMMITS", "USED"]);
        for Line { node, orphan: o } in &lines {
            let claim = o.claim.as_ref().map(|c| format!("{}/{}/{}", c.kind.as_str(), c.namespace, c.name)).unwrap_or_default();
            let head = o.head.clone().unwrap_or_default();
            table.row(vec![
                node.clone(),
                o.fs_id.clone(),
                claim,
                format!("{:?}", o.role),
                o.epoch.to_string(),
                if wide { head } else { short(&head) },
                o.commits.to_string(),
                bytes(o.bytes),
            ]);
        }
        table.text()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dotgraft_api::{Pending, ReplicaSpec};

    #[test]
    fn a_copy_that_authority_may_need_is_not_marked() {
        let id = "0198c2a5-7f00-7000-8000-000000000001".to_owned();
        let place = |node: &str| dotgraft_api::Place { node: node.into(), pool: id.clone() };
        let spec = ReplicaSpec { node: "n2".into(), pool: id.clone(), ..ReplicaSpec::default() };
        let copy = Replica::new("r", spec);
        let mut authority = Authority { owner: place("n1"), epoch: 3, ..Authority::default() };
        assert_eq!(needed(&authority, &copy), None);
        authority.pending = Some(Pending { mig: id.clone(), attempt: 0, to: place("n2"), final_commit: id.clone() });
        assert!(needed(&authority, &copy).unwrap().contains("about to go"));
    }
}
