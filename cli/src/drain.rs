//! `kubectl dot node drain`: moves what a node owns to other nodes, and lists what can't move, with the reason (failures.md row 27).
//!
//! A volume is moved by `placement.node`, as by hand; where that named no node before, it is taken back afterwards, so that nothing is bound to
//! the node that it went to. Pods are not touched: `kubectl drain` does that.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use dotgraft_api::node::{is_cordoned, repelling_taint};
use dotgraft_api::{
    Branch, ClaimKind, ConditionType, CopyRole, Dot, DotStatus, Filesystem, FilesystemPhase, NodePool, Replica, ReplicaStatus, is_true,
};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde_json::json;

use crate::Common;
use crate::output::{self, Table};
use crate::wait::is_of;

/// Moves at the same time: as many as a node takes part in (migration.md §3).
const AT_ONCE: usize = 4;
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Move what a node owns to other nodes, and list what can't move. Pods first: kubectl drain.
    Drain(DrainArgs),
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The node.
    node: String,
    /// Where to; by default each to its newest replica, else to the pool of its group with most room. By itself it takes no node that is
    /// cordoned or has a taint which keeps volumes off.
    #[arg(long)]
    to: Option<String>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(client: &Client, common: &Common, args: NodeArgs) -> Result<()> {
    match args.command {
        NodeCommand::Drain(args) => drain(client, common, &args).await,
    }
}

/// What is known of the cluster.
#[derive(Debug, Default)]
struct View {
    filesystems: Vec<Filesystem>,
    replicas: Vec<Replica>,
    pools: Vec<NodePool>,
    /// Those that may be seen: who has no right to Nodes isn't kept from draining.
    nodes: Vec<Node>,
}

/// What becomes of one volume of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    fs_id: String,
    kind: ClaimKind,
    namespace: String,
    name: String,
    /// Where it goes, or went.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// Not owned by the node any more.
    moved: bool,
    /// Why it isn't, or what is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl View {
    fn replicas_of<'a>(&'a self, fs_id: &'a str) -> impl Iterator<Item = &'a Replica> {
        self.replicas.iter().filter(move |r| r.spec.fs_id == fs_id)
    }

    /// The pool of a node, if something can go there.
    fn open_pool(&self, node: &str, group: Option<&str>) -> Option<&NodePool> {
        let pool = self.pools.iter().find(|p| p.spec.node == node)?;
        let ready = pool.status.as_ref().is_some_and(|s| is_true(&s.conditions, ConditionType::Ready).is_some());
        (ready && group.is_none_or(|g| g == pool.spec.pool_group)).then_some(pool)
    }

    /// Why nothing goes to a node unasked: cordoned, or a taint.
    fn closed(&self, node: &str) -> Option<String> {
        let node = self.nodes.iter().find(|n| n.metadata.name.as_deref() == Some(node))?;
        if is_cordoned(node) { Some("cordoned".to_owned()) } else { repelling_taint(node) }
    }

    /// The newest replica's node, else the one with most room for it.
    fn target(&self, fs_id: &str, node: &str) -> Result<String, String> {
        let group = self.pools.iter().find(|p| p.spec.node == node).map(|p| p.spec.pool_group.as_str());
        let open = |to: &str| to != node && self.open_pool(to, group).is_some();
        let copies = self.replicas_of(fs_id).filter(|r| open(&r.spec.node) && self.closed(&r.spec.node).is_none());
        let newest = |r: &&Replica| r.status.as_ref().and_then(ReplicaStatus::reach);
        let held = copies.filter(|r| r.status.as_ref().is_some_and(|s| s.role == CopyRole::Replica) && newest(r).is_some());
        if let Some(replica) = held.max_by_key(newest) {
            return Ok(replica.spec.node.clone());
        }
        let bytes = self.replicas_of(fs_id).find(|r| r.spec.node == node).and_then(|r| r.status.as_ref()).map_or(0, |s| s.bytes);
        let room = |p: &&NodePool| p.status.as_ref().map_or(0, |s| s.available_bytes);
        let roomy = || self.pools.iter().filter(|p| open(&p.spec.node) && room(p) > bytes);
        let best = roomy().filter(|p| self.closed(&p.spec.node).is_none()).max_by_key(room);
        let none = || match roomy().find_map(|p| Some((&p.spec.node, self.closed(&p.spec.node)?))) {
            Some((node, why)) => format!("{node}, where there is room, is closed ({why}): --to={node} moves it there all the same"),
            None => format!("no ready pool of group `{}` has {} free", group.unwrap_or("?"), output::bytes(bytes)),
        };
        best.map(|p| p.spec.node.clone()).ok_or_else(none)
    }

    /// What the node owns, each with its target or the reason why it stays.
    fn lines(&self, node: &str, to: Option<&str>) -> Vec<Line> {
        let owner = |f: &&Filesystem| f.status.as_ref().and_then(|s| s.authority.as_ref()).is_some_and(|a| a.owner.node == node);
        self.filesystems.iter().filter(owner).map(|fs| self.line(fs, node, to)).collect()
    }

    fn line(&self, fs: &Filesystem, node: &str, to: Option<&str>) -> Line {
        let (id, claim) = (fs.name_any(), &fs.spec.claim_ref);
        let phase = fs.status.as_ref().map(|s| s.phase);
        let attached = fs.spec.published_to.iter().any(|p| !p.read_only && p.node == node);
        let target = match phase {
            Some(FilesystemPhase::Active) if attached => Err("a pod there has it: kubectl drain first".to_owned()),
            Some(FilesystemPhase::Active) => to.map_or_else(|| self.target(&id, node), |to| Ok(to.to_owned())),
            Some(FilesystemPhase::Released) => Err("its Dot is gone and the data kept: adopt it, or delete the Filesystem".to_owned()),
            Some(FilesystemPhase::Headless) => Err("only snapshots of it are left: restore them elsewhere, or delete them".to_owned()),
            other => Err(format!("its phase is {}", other.map_or_else(|| "unknown".to_owned(), |p| format!("{p:?}")))),
        };
        let (to, message) = match target {
            Ok(to) => (Some(to), String::new()),
            Err(why) => (None, why),
        };
        Line { fs_id: id, kind: claim.kind, namespace: claim.namespace.clone(), name: claim.name.clone(), to, moved: false, message }
    }
}

async fn view(client: &Client) -> Result<View> {
    let all = ListParams::default();
    Ok(View {
        filesystems: Api::all(client.clone()).list(&all).await?.items,
        replicas: Api::all(client.clone()).list(&all).await?.items,
        pools: Api::all(client.clone()).list(&all).await?.items,
        nodes: match Api::all(client.clone()).list(&all).await {
            Ok(nodes) => nodes.items,
            Err(kube::Error::Api(status)) if status.is_forbidden() => Vec::new(),
            Err(e) => return Err(e.into()),
        },
    })
}

async fn drain(client: &Client, common: &Common, args: &DrainArgs) -> Result<()> {
    let view = view(client).await?;
    let mut lines = view.lines(&args.node, args.to.as_deref());
    if lines.is_empty() && !view.pools.iter().any(|p| p.spec.node == args.node) {
        bail!("no agent has registered a pool for node `{}`", args.node);
    }
    if !args.dry_run {
        let Some(timeout) = common.wait() else { bail!("it waits for each move: give a --timeout") };
        lines = stream::iter(lines).map(|line| carry(client, line, &args.node, timeout)).buffered(AT_ONCE).collect().await;
    }
    show(common, args, &lines)?;
    let left = lines.iter().filter(|l| !l.moved).count();
    if left > 0 && !args.dry_run {
        bail!("{left} of {} volumes are still on node {}", lines.len(), args.node);
    }
    Ok(())
}

fn show(common: &Common, args: &DrainArgs, lines: &[Line]) -> Result<()> {
    output::print(common.output, &lines, |_| {
        if lines.is_empty() {
            return format!("Node {} owns nothing.", args.node);
        }
        let mut table = Table::new(&["VOLUME", "TO", "STATE"]);
        for l in lines {
            let state = match (l.moved, args.dry_run) {
                (true, _) => "moved".to_owned(),
                (false, true) if l.message.is_empty() => "would move".to_owned(),
                (false, _) => format!("stays: {}", l.message),
            };
            let volume = format!("{}/{}/{}", l.kind.as_str().to_lowercase(), l.namespace, l.name);
            table.row(vec![volume, l.to.clone().unwrap_or_default(), state]);
        }
        table.text()
    })
}

/// Moves one within `timeout`, and says how it ended; on standard error at once.
async fn carry(client: &Client, line: Line, node: &str, timeout: Duration) -> Line {
    let Some(to) = line.to.clone() else { return line };
    let end = Instant::now() + timeout;
    let outcome = match line.kind {
        ClaimKind::Dot => {
            let api = Api::<Dot>::namespaced(client.clone(), &line.namespace);
            carry_claim(&api, &line.name, &to, node, end, |d| (d.spec.placement.as_ref().and_then(|p| p.node.clone()), d.status.clone()))
                .await
        }
        ClaimKind::Branch => {
            let api = Api::<Branch>::namespaced(client.clone(), &line.namespace);
            carry_claim(&api, &line.name, &to, node, end, |b| (b.spec.placement.as_ref().and_then(|p| p.node.clone()), b.status.clone()))
                .await
        }
    };
    let message = outcome.err().map(|e| output::sentence(&e));
    eprintln!("{}/{}: {}", line.namespace, line.name, message.as_deref().unwrap_or("moved"));
    Line { moved: message.is_none(), message: message.unwrap_or_default(), ..line }
}

async fn carry_claim<K>(
    api: &Api<K>,
    name: &str,
    to: &str,
    node: &str,
    end: Instant,
    facts: impl Fn(&K) -> (Option<String>, Option<DotStatus>),
) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let (before, _) = facts(&api.get(name).await?);
    let place = |node: Option<&str>| Patch::Merge(json!({"spec": {"placement": {"node": node}}}));
    api.patch(name, &PatchParams::default(), &place(Some(to))).await?;
    let moved = until_moved(api, name, to, end, &facts).await;
    // A wish for the drained node would bring it back; none before means none after.
    if before.as_deref() != Some(node) && (moved.is_ok() || before.is_none()) && before.as_deref() != Some(to) {
        api.patch(name, &PatchParams::default(), &place(before.as_deref())).await?;
    }
    moved
}

async fn until_moved<K>(
    api: &Api<K>,
    name: &str,
    to: &str,
    end: Instant,
    facts: &impl Fn(&K) -> (Option<String>, Option<DotStatus>),
) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    loop {
        let object = api.get(name).await?;
        let status = facts(&object).1.unwrap_or_default();
        let is = |type_| is_true(&status.conditions, type_);
        if status.owner.as_deref() == Some(to) && is(ConditionType::Ready).is_some() {
            return Ok(());
        }
        if let Some(refused) = is(ConditionType::PlacementRefused).filter(|_| is_of(object.meta().generation, status.observed_generation)) {
            bail!("{}", refused.message);
        }
        if Instant::now() >= end {
            bail!(
                "{}",
                is(ConditionType::Migrating)
                    .map_or_else(|| "no word from the operator yet".to_owned(), |c| format!("{}: {}", c.reason, c.message))
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    fn id(n: u8) -> String {
        format!("0198c2a5-7f00-7000-8000-0000000000{n:02x}")
    }

    fn filesystem(n: u8, phase: &str, node: &str) -> Filesystem {
        of(json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Filesystem", "metadata": {"name": id(n)},
            "spec": {"claimRef": {"kind": "Dot", "namespace": "shop", "name": format!("d{n}")}},
            "status": {"phase": phase, "authority": {"owner": {"node": node, "pool": id(200)}, "epoch": 1}}}))
    }

    fn pool(node: &str, group: &str, free: u64, ready: bool) -> NodePool {
        let status = if ready { "True" } else { "False" };
        of(json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "NodePool", "metadata": {"name": node},
            "spec": {"node": node, "poolGroup": group}, "status": {"availableBytes": free, "conditions": [
                {"type": "Ready", "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
    }

    fn replica(n: u8, node: &str, role: &str, bytes: u64, at: Option<&str>) -> Replica {
        let commits: Vec<Value> = at.iter().map(|t| json!({"id": id(100), "time": t})).collect();
        of(json!({"apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica", "metadata": {"name": format!("{}.{node}", id(n))},
            "spec": {"fsId": id(n), "node": node, "pool": id(201), "desired": {"state": "Present", "epoch": 1}},
            "status": {"role": role, "bytes": bytes, "recentCommits": commits}}))
    }

    #[test]
    fn what_has_a_replica_goes_to_the_newest_and_the_rest_where_most_is_free() {
        let view = View {
            filesystems: vec![filesystem(1, "Active", "n1"), filesystem(2, "Active", "n1"), filesystem(3, "Active", "n2")],
            replicas: vec![
                replica(1, "n1", "Owner", 10, Some("2026-01-03T00:00:00Z")),
                replica(1, "n2", "Replica", 10, Some("2026-01-01T00:00:00Z")),
                replica(1, "n3", "Replica", 10, Some("2026-01-02T00:00:00Z")),
                replica(2, "n1", "Owner", 10, None),
            ],
            pools: vec![
                pool("n1", "default", 0, true),
                pool("n2", "default", 900, true),
                pool("n3", "default", 100, true),
                pool("n4", "other", 9_000, true),
                pool("n5", "default", 9_000, false),
            ],
            ..View::default()
        };
        let to: Vec<_> = view.lines("n1", None).into_iter().map(|l| (l.name, l.to)).collect();
        assert_eq!(to, [("d1".to_owned(), Some("n3".to_owned())), ("d2".to_owned(), Some("n2".to_owned()))]);
        assert!(view.lines("n1", Some("n9")).iter().all(|l| l.to.as_deref() == Some("n9")), "a person's word goes first");
    }

    #[test]
    fn the_copy_that_is_complete_to_most_is_the_newest_whatever_the_clocks_say() {
        let complete = |node: &str, time: &str, seq: u64| {
            let mut r = replica(1, node, "Replica", 10, Some(time));
            let to = json!({"epoch": 1, "seq": seq, "time": time, "commit": id(100)});
            r.status.as_mut().expect("a status").complete_to = of(to);
            r
        };
        let view = View {
            filesystems: vec![filesystem(1, "Active", "n1")],
            replicas: vec![complete("n2", "2026-01-01T00:00:00Z", 8), complete("n3", "2026-01-01T01:00:00Z", 7)],
            pools: vec![pool("n1", "default", 0, true), pool("n2", "default", 9, true), pool("n3", "default", 9, true)],
            ..View::default()
        };
        assert_eq!(view.lines("n1", None)[0].to.as_deref(), Some("n2"));
    }

    #[test]
    fn nothing_goes_unasked_to_a_node_that_is_cordoned_or_has_a_taint() {
        let node = |name: &str, spec: Value| of::<Node>(json!({"metadata": {"name": name}, "spec": spec}));
        let mut view = View {
            filesystems: vec![filesystem(1, "Active", "n1"), filesystem(2, "Active", "n1")],
            replicas: vec![replica(1, "n3", "Replica", 10, Some("2026-01-02T00:00:00Z")), replica(2, "n1", "Owner", 10, None)],
            pools: ["n1", "n2", "n3", "n4"].map(|n| pool(n, "default", if n == "n2" { 20 } else { 900 }, true)).into(),
            nodes: vec![
                node("n3", json!({"unschedulable": true})),
                node("n4", json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]})),
            ],
        };
        let to = |view: &View| view.lines("n1", None).into_iter().map(|l| l.to.unwrap_or(l.message)).collect::<Vec<_>>();
        assert_eq!(to(&view), ["n2", "n2"]);
        view.pools.retain(|p| p.spec.node != "n2");
        assert!(to(&view).iter().all(|why| why.contains("n3, where there is room, is closed (cordoned)")), "{:?}", to(&view));
        view.pools.retain(|p| p.spec.node != "n3");
        assert!(to(&view).iter().all(|why| why.contains("gpu:NoSchedule") && why.contains("--to=n4")), "{:?}", to(&view));
    }

    #[test]
    fn what_can_t_move_says_why() {
        let mut used = filesystem(3, "Active", "n1");
        used.spec.published_to = of(json!([{"node": "n1"}]));
        let view = View {
            filesystems: vec![filesystem(1, "Released", "n1"), filesystem(2, "Headless", "n1"), used, filesystem(4, "Active", "n1")],
            replicas: vec![replica(4, "n1", "Owner", 5_000, None)],
            pools: vec![pool("n1", "default", 0, true), pool("n2", "default", 900, true)],
            ..View::default()
        };
        let why: Vec<_> = view.lines("n1", None).into_iter().map(|l| (l.to.is_none(), l.message)).collect();
        for (line, word) in why.iter().zip(["Dot is gone", "snapshots", "a pod there", "no ready pool of group `default`"]) {
            assert!(line.0 && line.1.contains(word), "{line:?}");
        }
    }
}
