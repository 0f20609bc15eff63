//! `kubectl dot status`: what is there, whether it is safe, and what needs a person.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use clap::Args;
use dotgraft_api::{
    Branch, ClaimKind, Condition, ConditionType, Dot, DotOperation, DotStatus, ReplicaSummary, ReplicationJob, condition, is_true, says,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;

use crate::Common;
use crate::output::{self, Table, age, age_at, bytes, short};
use crate::{runbook, users};

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only these Dots, Branches (branch/NAME) and jobs.
    names: Vec<String>,
    /// Every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Show again every second until interrupted.
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    volumes: Vec<Volume>,
    jobs: Vec<Job>,
    /// Those that wait.
    operations: Vec<Operation>,
}

impl Report {
    fn waits(&self) -> impl Iterator<Item = &str> {
        self.operations.iter().map(|o| o.waits_for.as_str())
    }

    /// Names these pods where the agents name processes and paths of theirs.
    fn name(&mut self, pods: &[Pod]) {
        for v in &mut self.volumes {
            v.trouble = v.trouble.as_deref().map(|text| users::named(text, pods, Some(&v.namespace)));
        }
        for o in &mut self.operations {
            o.waits_for = users::named(&o.waits_for, pods, Some(&o.namespace));
        }
    }

    /// What was asked for.
    ///
    /// # Errors
    /// There is nothing of one of the names.
    fn of(mut self, names: &[String]) -> Result<Self> {
        if names.is_empty() {
            return Ok(self);
        }
        let is_named = |name: &str, kind: &str| names.iter().any(|n| n == name || n.strip_prefix(kind).is_some_and(|n| n == name));
        self.volumes.retain(|v| is_named(&v.name, "dot/"));
        self.jobs.retain(|j| is_named(&j.name, "job/"));
        self.operations.retain(|o| is_named(&o.target, "dot/"));
        let there = |n: &&String| {
            let of = |name: &str, kind: &str| *n == name || n.strip_prefix(kind) == Some(name);
            self.volumes.iter().any(|v| of(&v.name, "dot/")) || self.jobs.iter().any(|j| of(&j.name, "job/"))
        };
        match names.iter().find(|n| !there(n)) {
            Some(name) => bail!("there is no Dot, Branch or ReplicationJob `{name}` in this namespace"),
            None => Ok(self),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Operation {
    namespace: String,
    name: String,
    /// As [`Volume::name`].
    target: String,
    act: &'static str,
    waits_for: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    namespace: String,
    name: String,
    owner: Option<String>,
    head: Option<String>,
    bytes: u64,
    limit: u64,
    /// Whether what it holds is on another node, too.
    safe: String,
    copies: Vec<CopyOf>,
    ready: bool,
    trouble: Option<String>,
    /// Where the runbook explains it.
    runbook: Option<String>,
}

/// Where nothing is missing.
const NOTHING: &str = "nothing";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CopyOf {
    node: String,
    state: String,
    commit: Option<String>,
    /// Of that commit: the copy is as of then.
    age: Option<String>,
    missing: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    namespace: String,
    name: String,
    target: String,
    state: String,
    replicated: u64,
    expected: Option<u64>,
    /// For how long its target lacks something.
    lag: Option<String>,
    trouble: Option<String>,
    /// Where the runbook explains it.
    runbook: Option<String>,
}

pub async fn run(client: &Client, common: &Common, args: &StatusArgs) -> Result<()> {
    loop {
        let report = gather(client, args.all_namespaces).await?.of(&args.names)?;
        output::print(common.output, &report, |wide| draw(&report, wide))?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        println!();
    }
}

async fn gather(client: &Client, all: bool) -> Result<Report> {
    let list = ListParams::default();
    let (dots, branches) = (apis::<Dot>(client, all), apis::<Branch>(client, all));
    let (jobs, operations) = (apis::<ReplicationJob>(client, all), apis::<DotOperation>(client, all));
    let mut volumes: Vec<Volume> = dots
        .list(&list)
        .await?
        .into_iter()
        .map(|d| volume(&d.namespace().unwrap_or_default(), d.name_any(), d.status.unwrap_or_default()))
        .collect();
    volumes.extend(
        branches
            .list(&list)
            .await?
            .into_iter()
            .map(|b| volume(&b.namespace().unwrap_or_default(), named(ClaimKind::Branch, &b.name_any()), b.status.unwrap_or_default())),
    );
    let jobs = jobs.list(&list).await?.iter().map(job).collect();
    let operations = operations.list(&list).await?.iter().filter_map(operation).collect();
    let mut report = Report { volumes, jobs, operations };
    let pods = users::spoken_of(&apis(client, all), report.volumes.iter().filter_map(|v| v.trouble.as_deref()).chain(report.waits())).await;
    report.name(&pods);
    Ok(report)
}

fn apis<K>(client: &Client, all: bool) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    if all { Api::all(client.clone()) } else { Api::default_namespaced(client.clone()) }
}

/// Nothing if it has ended.
fn operation(o: &DotOperation) -> Option<Operation> {
    let status = o.status.clone().unwrap_or_default();
    let (target, act) = (&o.spec.target, if o.spec.reset.is_some() { "reset" } else { "promote" });
    status.phase.is_none().then(|| Operation {
        namespace: o.namespace().unwrap_or_default(),
        name: o.name_any(),
        target: named(target.kind, &target.name),
        act,
        waits_for: status.message,
    })
}

/// A Dot by its name, a Branch as `branch/NAME`.
fn named(kind: ClaimKind, name: &str) -> String {
    match kind {
        ClaimKind::Dot => name.to_owned(),
        ClaimKind::Branch => format!("branch/{name}"),
    }
}

fn volume(namespace: &str, name: String, s: DotStatus) -> Volume {
    let now = Timestamp::now();
    let (safe, copies) = (safe(&s, now), copies(&s, now));
    Volume {
        namespace: namespace.to_owned(),
        name,
        owner: s.owner,
        head: s.head,
        bytes: s.bytes.unwrap_or(0),
        limit: s.limit.unwrap_or(0),
        safe,
        copies,
        ready: is_true(&s.conditions, ConditionType::Ready).is_some(),
        trouble: trouble(&s.conditions).map(|c| format!("{}: {}", c.reason, c.message)),
        runbook: trouble(&s.conditions).map(|c| runbook::of(&c.reason)),
    }
}

/// What of a volume is on its owner's node only, in a few words.
fn safe(s: &DotStatus, now: Timestamp) -> String {
    let Some(owner) = &s.owner else { return String::new() };
    let others = || s.replicas.iter().filter(|r| r.node != *owner && r.commit.is_some());
    if others().next().is_none() {
        return format!("no: it is on {owner} only");
    }
    match others().find(|r| r.behind_since.is_none()) {
        Some(r) => format!("yes: all of it is on {}, too", r.node),
        None => others().max_by_key(|r| r.behind_since.as_ref().map(|t| t.0)).map_or_else(String::new, |r| {
            let last = r.behind_since.as_ref().map(|t| age_at(t.0, now)).unwrap_or_default();
            format!("but for the last {last}: {} has what is older", r.node)
        }),
    }
}

fn copies(s: &DotStatus, now: Timestamp) -> Vec<CopyOf> {
    let uncommitted = s.written_since.as_ref().map(|t| format!("what was written in the last {}", age_at(t.0, now)));
    let one = |r: &ReplicaSummary| {
        let is_owner = Some(&r.node) == s.owner.as_ref();
        let commits = match r.missing {
            0 => None,
            1 => Some("1 commit".to_owned()),
            n @ 2..16 => Some(format!("{n} commits")),
            _ => Some("16 commits or more".to_owned()),
        };
        // What no commit has is on the owner's node only.
        let lacks: Vec<String> = commits.into_iter().chain(uncommitted.clone()).filter(|_| !is_owner).collect();
        let owners = || uncommitted.as_ref().map_or_else(|| NOTHING.to_owned(), |u| format!("nothing; no commit has {u}"));
        let missing = if is_owner {
            owners()
        } else if lacks.is_empty() {
            NOTHING.to_owned()
        } else {
            lacks.join(", and ")
        };
        let as_of = r.commit_time.as_ref().map(|t| age_at(t.0, now));
        CopyOf { node: r.node.clone(), state: r.state.clone(), commit: r.commit.clone(), age: as_of, missing }
    };
    s.replicas.iter().map(one).collect()
}

fn trouble(conditions: &[Condition]) -> Option<&Condition> {
    let not_ready = condition(conditions, ConditionType::Ready).filter(|c| says(c) != Some(true));
    // Also what only a newer operator knows.
    let is_trouble =
        |c: &&Condition| says(c).is_some_and(|status| c.type_.parse::<ConditionType>().map_or(status, |t| t.is_trouble(status)));
    not_ready.or_else(|| conditions.iter().find(is_trouble))
}

fn job(j: &ReplicationJob) -> Job {
    let s = j.status.clone().unwrap_or_default();
    let progress = s.progress.clone().unwrap_or_default();
    Job {
        namespace: j.namespace().unwrap_or_default(),
        name: j.name_any(),
        target: j.spec.target.node.clone(),
        state: s.state.unwrap_or_else(|| "Pending".into()),
        replicated: progress.replicated_bytes,
        expected: progress.expected_bytes,
        lag: s.behind_since.as_ref().map(|t| age(t.0)).or_else(|| s.lag.map(|_| NOTHING.to_owned())),
        runbook: s.problem.as_ref().map(|p| runbook::of(&p.reason)),
        trouble: s.problem.map(|p| format!("{}: {}", p.reason, p.message)),
    }
}

fn draw(report: &Report, wide: bool) -> String {
    let mut volumes = Table::new(&["NAMESPACE", "NAME", "READY", "OWNER", "COMMIT", "USED", "LIMIT", "SAFE", "TROUBLE"]);
    for v in &report.volumes {
        let head = v.head.clone().unwrap_or_default();
        volumes.row(vec![
            v.namespace.clone(),
            v.name.clone(),
            v.ready.to_string(),
            v.owner.clone().unwrap_or_default(),
            if wide { head } else { short(&head) },
            bytes(v.bytes),
            bytes(v.limit),
            v.safe.clone(),
            v.trouble.clone().unwrap_or_default(),
        ]);
    }
    let mut copies = Table::new(&["NAMESPACE", "NAME", "COPY ON", "STATE", "COMMIT", "AGE", "MISSING"]);
    for (v, c) in report.volumes.iter().flat_map(|v| v.copies.iter().map(move |c| (v, c))) {
        let commit = c.commit.clone().unwrap_or_default();
        copies.row(vec![
            v.namespace.clone(),
            v.name.clone(),
            c.node.clone(),
            c.state.clone(),
            if wide { commit } else { short(&commit) },
            c.age.clone().unwrap_or_default(),
            c.missing.clone(),
        ]);
    }
    let mut jobs = Table::new(&["NAMESPACE", "JOB", "TARGET", "STATE", "SENT", "EXPECTED", "LAG", "TROUBLE"]);
    for j in &report.jobs {
        jobs.row(vec![
            j.namespace.clone(),
            j.name.clone(),
            j.target.clone(),
            j.state.clone(),
            bytes(j.replicated),
            j.expected.map(bytes).unwrap_or_default(),
            j.lag.clone().unwrap_or_default(),
            j.trouble.clone().unwrap_or_default(),
        ]);
    }
    let mut operations = Table::new(&["NAMESPACE", "OPERATION", "VOLUME", "ACT", "WAITS FOR"]);
    for o in &report.operations {
        operations.row(vec![o.namespace.clone(), o.name.clone(), o.target.clone(), o.act.to_owned(), o.waits_for.clone()]);
    }
    let no_copies = report.volumes.iter().all(|v| v.copies.is_empty());
    let all = [
        (report.volumes.is_empty(), volumes),
        (no_copies, copies),
        (report.jobs.is_empty(), jobs),
        (report.operations.is_empty(), operations),
    ];
    let full: Vec<String> = all.into_iter().filter(|(empty, _)| !empty).map(|(_, table)| table.text()).collect();
    let tables = if full.is_empty() { "No Dots, Branches or jobs.".to_owned() } else { full.join("\n\n") };
    let places: BTreeSet<&str> =
        report.volumes.iter().filter_map(|v| v.runbook.as_deref()).chain(report.jobs.iter().filter_map(|j| j.runbook.as_deref())).collect();
    if places.is_empty() { tables } else { format!("{tables}\n\nWhat it means, and what to do:\n{}", Vec::from_iter(places).join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(reason: Option<&str>) -> String {
        let conditions = reason.map(|r| serde_json::json!({"type": "Ready", "status": "False", "reason": r, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}));
        let status = serde_json::from_value(serde_json::json!({"conditions": Vec::from_iter(conditions)})).unwrap();
        draw(&Report { volumes: vec![volume("shop", "data".into(), status)], jobs: Vec::new(), operations: Vec::new() }, false)
    }

    #[test]
    fn what_stands_in_the_way_is_shown_with_its_place_in_the_runbook() {
        assert!(shown(Some("NoSpace")).ends_with("docs/runbook.md#nospace"));
        assert!(!shown(None).contains("runbook"));
    }

    #[test]
    fn whatever_is_stuck_is_shown_though_it_is_ready() {
        let status = |type_: &str, status: &str| serde_json::json!({"type": type_, "status": status, "reason": "NoSpace", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let told = |list: Vec<serde_json::Value>| {
            let conditions: Vec<Condition> = list.into_iter().map(|c| serde_json::from_value(c).unwrap()).collect();
            trouble(&conditions).map(|c| c.type_.clone())
        };
        let ready = || status("Ready", "True");
        assert_eq!(told(vec![ready(), status("Progressing", "True"), status("Degraded", "False")]), None);
        assert_eq!(told(vec![ready(), status("MoveBlocked", "True")]).as_deref(), Some("MoveBlocked"));
        assert_eq!(told(vec![ready(), status("Opened", "False")]).as_deref(), Some("Opened"));
        assert_eq!(told(vec![ready(), status("OfANewerOne", "True")]).as_deref(), Some("OfANewerOne"));
        assert_eq!(told(vec![status("MoveBlocked", "True"), status("Ready", "False")]).as_deref(), Some("Ready"));
    }

    #[test]
    fn names_choose_and_one_of_nothing_is_an_error() {
        let report = || {
            Report {
            volumes: ["d", "branch/d"].map(|n| volume("shop", n.into(), DotStatus::default())).into(),
            jobs: vec![job(
                &serde_json::from_value(serde_json::json!({"metadata": {"name": "j"}, "spec": {"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}}})).unwrap()
            )],
            operations: vec![Operation {
                namespace: "shop".into(),
                name: "reset-d-x".into(),
                target: "d".into(),
                act: "reset",
                waits_for: "pods".into(),
            }],
        }
        };
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            report().of(&names).map(|r| (r.volumes.len(), r.jobs.len(), r.operations.len())).ok()
        };
        assert_eq!(of(&[]), Some((2, 1, 1)));
        assert_eq!((of(&["d"]), of(&["dot/d"])), (Some((1, 0, 1)), Some((1, 0, 1))));
        assert_eq!((of(&["branch/d"]), of(&["job/j", "d"])), (Some((1, 0, 0)), Some((1, 1, 1))));
        assert_eq!((of(&["x"]), of(&["d", "x"])), (None, None));
        assert!(draw(&report(), false).contains("reset-d-x"));
    }

    #[test]
    fn it_says_what_is_on_one_node_only_and_how_old_each_copy_is() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let now = at(10_000);
        let copy = |node: &str, ago: i64, missing: u32, behind: Option<i64>| ReplicaSummary {
            node: node.into(),
            state: "Replica".into(),
            commit: Some("0198c2a5-7f00-7000-8000-000000000001".into()),
            commit_time: Some(dotgraft_api::Time(at(10_000 - ago))),
            missing,
            behind_since: behind.map(|b| dotgraft_api::Time(at(10_000 - b))),
        };
        let of = |written: Option<i64>, copies: Vec<ReplicaSummary>| DotStatus {
            owner: Some("n1".into()),
            written_since: written.map(|w| dotgraft_api::Time(at(10_000 - w))),
            replicas: [vec![copy("n1", 10, 0, None)], copies].concat(),
            ..DotStatus::default()
        };
        let told = |s: &DotStatus| (safe(s, now), super::copies(s, now).iter().map(|c| c.missing.clone()).collect::<Vec<_>>());
        assert_eq!(told(&of(None, vec![])), ("no: it is on n1 only".into(), vec!["nothing".into()]));
        let same = of(None, vec![copy("n2", 10, 0, None), copy("n3", 900, 3, Some(800))]);
        assert_eq!(told(&same), ("yes: all of it is on n2, too".into(), vec!["nothing".into(), "nothing".into(), "3 commits".into()]));
        let late = of(Some(5), vec![copy("n2", 900, 1, Some(10)), copy("n3", 900, 3, Some(800))]);
        let (sentence, missing) = told(&late);
        assert_eq!(sentence, "but for the last 10s: n2 has what is older");
        assert_eq!(missing[0], "nothing; no commit has what was written in the last 5s");
        assert_eq!(missing[1], "1 commit, and what was written in the last 5s");
        assert_eq!(super::copies(&late, now)[1].age.as_deref(), Some("15m"));
    }
}
