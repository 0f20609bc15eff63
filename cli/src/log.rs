//! `kubectl dot log`: the commits of a Dot or Branch, newest first, with the object that wants each, if one does.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use clap::Args;
use dotgraft_api::{Commit, ConditionType, Replica, is_true};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;

use crate::Common;
use crate::client::source;
use crate::output::{self, Table, age, short};

#[derive(Debug, Args)]
pub struct LogArgs {
    /// Dot or Branch: NAME, dot/NAME or branch/NAME.
    source: String,
    /// At most so many.
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    id: String,
    time: Option<jiff::Timestamp>,
    parent: Option<String>,
    message: String,
    /// The Commit object.
    object: Option<String>,
    /// Nodes that hold it.
    nodes: Vec<String>,
}

/// In place of the message of a commit whose object is gone.
const DELETED: &str = "(deleted; the next increment starts from it)";

pub async fn run(client: &Client, common: &Common, args: &LogArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let Some(fs_id) = source.fs_id else { bail!("{} has no Filesystem yet", args.source) };
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let mut holders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let replicas = Api::<Replica>::all(client.clone()).list(&ListParams::default().fields(&format!("spec.fsId={fs_id}"))).await?;
    for replica in replicas {
        let node = replica.spec.node.clone();
        let status = replica.status.unwrap_or_default();
        for id in status.kept {
            holders.entry(id).or_default().insert(node.clone());
        }
        for commit in status.recent_commits {
            holders.entry(commit.id.clone()).or_default().insert(node.clone());
            lines.entry(commit.id.clone()).or_insert(Line {
                id: commit.id,
                time: Some(commit.time.0),
                parent: commit.parent,
                message: if commit.deleted { DELETED.to_owned() } else { commit.message },
                object: None,
                nodes: Vec::new(),
            });
        }
    }
    for object in Api::<Commit>::default_namespaced(client.clone()).list(&ListParams::default()).await? {
        let status = object.status.clone().unwrap_or_default();
        let (Some(id), true) = (status.id, status.fs_id.as_ref() == Some(&fs_id)) else { continue };
        let line = lines.entry(id.clone()).or_insert(Line {
            id,
            time: status.time.map(|t| t.0),
            parent: status.parent,
            message: object.spec.message.clone(),
            object: None,
            nodes: Vec::new(),
        });
        line.object = Some(object.name_any());
        // The Replicas of disks that are gone still say what was there.
        if is_true(&status.conditions, ConditionType::NoCopyLeft).is_some() {
            holders.remove(&line.id);
        }
    }
    for (id, nodes) in holders {
        if let Some(line) = lines.get_mut(&id) {
            line.nodes = nodes.into_iter().collect();
        }
    }
    let mut lines: Vec<Line> = lines.into_values().collect();
    lines.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| b.id.cmp(&a.id)));
    lines.truncate(args.limit);
    output::print(common.output, &lines, |wide| draw(&lines, wide))
}

fn draw(lines: &[Line], wide: bool) -> String {
    let mut head = vec!["COMMIT", "AGE", "OBJECT", "NODES", "MESSAGE"];
    if wide {
        head.push("PARENT");
    }
    let mut table = Table::new(&head);
    for line in lines {
        let id = if wide { line.id.clone() } else { short(&line.id) };
        let mut row = vec![
            id,
            line.time.map(age).unwrap_or_default(),
            line.object.clone().unwrap_or_default(),
            line.nodes.join(","),
            line.message.clone(),
        ];
        if wide {
            row.push(line.parent.clone().unwrap_or_default());
        }
        table.row(row);
    }
    table.text()
}
