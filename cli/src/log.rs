//! `kubectl dot log`: the commits of a Dot or Branch, newest first, with the object that wants each, if one does.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use clap::Args;
use dotgraft_api::{Commit, ConditionType, DotStatus, Replica, is_true};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;

use crate::Common;
use crate::client::{source, status};
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

/// What is known of each commit: its line, and the nodes that hold it.
#[derive(Debug, Default)]
struct Book {
    lines: BTreeMap<String, Line>,
    holders: BTreeMap<String, BTreeSet<String>>,
}

impl Book {
    fn holds(&mut self, node: &str, id: &str) {
        self.holders.entry(id.to_owned()).or_default().insert(node.to_owned());
    }

    fn line(&mut self, id: &str, time: Option<jiff::Timestamp>, parent: Option<String>, message: &str) -> &mut Line {
        self.lines.entry(id.to_owned()).or_insert_with(|| Line {
            id: id.to_owned(),
            time,
            parent,
            message: message.to_owned(),
            object: None,
            nodes: Vec::new(),
        })
    }

    /// What each copy says of itself.
    fn read_replicas(&mut self, replicas: impl IntoIterator<Item = Replica>) {
        for replica in replicas {
            let (node, status) = (replica.spec.node.clone(), replica.status.unwrap_or_default());
            for id in &status.kept {
                self.holds(&node, id);
            }
            for commit in status.recent_commits {
                self.holds(&node, &commit.id);
                let message = if commit.deleted { DELETED } else { &commit.message };
                self.line(&commit.id, Some(commit.time.0), commit.parent, message);
            }
        }
    }

    /// What the Dot or Branch itself says, for who may not read Replicas.
    fn read_summary(&mut self, status: DotStatus) {
        for copy in &status.replicas {
            if let Some(id) = &copy.commit {
                self.holds(&copy.node, id);
            }
        }
        for commit in status.recent_commits {
            self.line(&commit.id, Some(commit.time.0), None, &commit.message);
        }
    }

    /// The Commit objects of the Filesystem.
    fn read_objects(&mut self, objects: impl IntoIterator<Item = Commit>, fs_id: &str) {
        for object in objects {
            let (name, status) = (object.name_any(), object.status.unwrap_or_default());
            let (Some(id), true) = (status.id, status.fs_id.as_deref() == Some(fs_id)) else { continue };
            for node in &status.copies {
                self.holds(node, &id);
            }
            // The Replicas of disks that are gone still say what was there.
            if is_true(&status.conditions, ConditionType::NoCopyLeft).is_some() {
                self.holders.remove(&id);
            }
            self.line(&id, status.time.map(|t| t.0), status.parent, &object.spec.message).object = Some(name);
        }
    }

    /// The newest first.
    fn into_lines(mut self) -> Vec<Line> {
        for (id, nodes) in self.holders {
            if let Some(line) = self.lines.get_mut(&id) {
                line.nodes = nodes.into_iter().collect();
            }
        }
        let mut lines: Vec<Line> = self.lines.into_values().collect();
        lines.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| b.id.cmp(&a.id)));
        lines
    }
}

pub async fn run(client: &Client, common: &Common, args: &LogArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let Some(fs_id) = source.fs_id.clone() else { bail!("{} has no Filesystem yet", args.source) };
    let mut book = Book::default();
    let of_it = ListParams::default().fields(&format!("spec.fsId={fs_id}"));
    match Api::<Replica>::all(client.clone()).list(&of_it).await {
        Ok(replicas) => book.read_replicas(replicas),
        Err(kube::Error::Api(s)) if s.is_forbidden() => book.read_summary(status(client, &source).await?),
        Err(e) => return Err(e.into()),
    }
    book.read_objects(Api::<Commit>::default_namespaced(client.clone()).list(&ListParams::default()).await?, &fs_id);
    let mut lines = book.into_lines();
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(id: &str, copies: &[&str], lost: bool) -> Commit {
        let at = "2026-01-01T00:00:00Z";
        let gone = json!({"type": "NoCopyLeft", "status": "True", "reason": "NoCopyLeft", "message": "", "lastTransitionTime": at});
        let conditions: Vec<_> = lost.then_some(gone).into_iter().collect();
        let status = json!({"id": id, "fsId": "f", "time": at, "copies": copies, "conditions": conditions});
        let spec = json!({"source": {"name": "d"}, "message": "m"});
        serde_json::from_value(json!({"metadata": {"name": format!("c-{id}")}, "spec": spec, "status": status})).unwrap()
    }

    fn nodes(book: Book) -> Vec<(String, String)> {
        book.into_lines().into_iter().map(|l| (l.id, l.nodes.join(","))).collect()
    }

    #[test]
    fn every_commit_of_an_object_has_its_nodes_however_old_and_none_once_they_are_gone() {
        let mut book = Book::default();
        book.holds("n9", "a");
        book.read_objects([object("a", &["n1"], true), object("b", &["n1", "n2"], false)], "f");
        book.read_objects([object("other", &["n1"], false)], "another");
        assert_eq!(nodes(book), [("b".to_owned(), "n1,n2".to_owned()), ("a".to_owned(), String::new())]);
    }

    #[test]
    fn who_may_not_read_replicas_sees_what_the_dot_says() {
        let commit = json!({"id": "a", "time": "2026-01-01T00:00:00Z", "message": "m"});
        let copy = json!({"node": "n2", "state": "Replica", "commit": "a"});
        let status = serde_json::from_value(json!({"recentCommits": [commit], "replicas": [copy]})).unwrap();
        let mut book = Book::default();
        book.read_summary(status);
        assert_eq!(nodes(book), [("a".to_owned(), "n2".to_owned())]);
    }
}
