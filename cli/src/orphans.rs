//! `kubectl dot adopt` and `drop`: what to do with data in a pool that no object asks for. Both only write a wish into
//! `NodePool.spec.orphanActions`; the operator carries it out.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use clap::Args;
use dotgraft_api::{NodePool, Orphan, OrphanAction, OrphanActionKind};
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
    /// Only the copy on this node; by default every copy that is an orphan.
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
    let chosen = |o: &Orphan| args.all || wanted.contains(&o.fs_id);
    let count = act(client, &pools, OrphanActionKind::Adopt, |_, o| chosen(o)).await?;
    finish(count, "to be adopted")
}

pub async fn drop(client: &Client, common: &Common, args: &DropArgs) -> Result<()> {
    let pools = pools(client).await?;
    let chosen = |pool: &NodePool, o: &Orphan| o.fs_id == args.fs_id && args.node.as_ref().is_none_or(|n| *n == pool.spec.node);
    if !args.yes {
        list(&pools, common)?;
        bail!("this deletes the data of {} for good: say so with --yes", args.fs_id);
    }
    let count = act(client, &pools, OrphanActionKind::Drop, chosen).await?;
    finish(count, "to be dropped")
}

async fn pools(client: &Client) -> Result<Vec<NodePool>> {
    Ok(Api::<NodePool>::all(client.clone()).list(&ListParams::default()).await?.items)
}

fn orphans(pool: &NodePool) -> Vec<Orphan> {
    pool.status.as_ref().map(|s| s.orphans.items.clone()).unwrap_or_default()
}

fn finish(count: usize, what: &str) -> Result<()> {
    if count == 0 {
        bail!("no such orphan; `kubectl dot adopt` lists what there is");
    }
    println!("{count} copies marked {what}; the operator does it");
    Ok(())
}

/// Adds the action for the chosen orphans to each pool's spec, against the version that was read.
async fn act(client: &Client, pools: &[NodePool], action: OrphanActionKind, chosen: impl Fn(&NodePool, &Orphan) -> bool) -> Result<usize> {
    let api = Api::<NodePool>::all(client.clone());
    let mut count = 0;
    for pool in pools {
        let ids: Vec<String> = orphans(pool).into_iter().filter(|o| chosen(pool, o)).map(|o| o.fs_id).collect();
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
