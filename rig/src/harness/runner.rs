//! Runs cases one after the other, prints a line for each and what explains a failure, and the closing line.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::FutureExt as _;

use super::ids::WANTED;
use super::{Case, Needs, Test};
use crate::rig::programs::has_older;
use crate::rig::{Options, Rig};

/// What to run.
pub struct Plan {
    /// Run only cases whose id starts with one of these; all if empty.
    pub filters: Vec<String>,
    /// Start no program of ours: cases that need them are reported as skipped.
    pub control_plane_only: bool,
    /// Only one part, so that all can run at once, each in a sandbox of its own.
    pub part: Option<Part>,
}

/// Parts of the cases that take about as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Those that share three nodes with kubelets, but for some.
    Pods,
    /// Those, and the ones with a rig of their own.
    Own,
    /// Those of the table of failures that share two agents, and where pods are placed.
    Failures,
    /// Others that share two agents, or need only an API server, and what waits most of its time.
    Rest,
}

/// Where the ids begin of the cases with kubelets that don't go with [`Part::Pods`], or that would take longest.
const BESIDE: [(&str, Part); 3] = [("csi-", Part::Own), ("rig-", Part::Own), ("locality-", Part::Failures)];

/// Cases with a rig of their own that wait for a clock more than they work.
const WAITING: [&str; 1] = ["watched"];

fn part_of(case: &Case) -> Part {
    let numbered = case.id.starts_with(|first: char| first.is_ascii_digit());
    match &case.needs {
        Needs::Kubelets => BESIDE.iter().find(|(begin, _)| case.id.starts_with(begin)).map_or(Part::Pods, |(_, part)| *part),
        Needs::Own(_) if WAITING.contains(&case.id.as_str()) => Part::Rest,
        Needs::Own(_) => Part::Own,
        Needs::Agents if numbered => Part::Failures,
        Needs::Api | Needs::Agents => Part::Rest,
    }
}

#[derive(Default)]
struct Counts {
    passed: usize,
    /// Each with its reason.
    failed: Vec<(String, String)>,
    skipped: Vec<String>,
    /// How long each of those took that passed.
    took: Vec<(Duration, String)>,
}

/// So many of the slowest cases are named at the end.
const SLOWEST: usize = 6;

/// Runs the cases that the plan takes. `true`: none has failed.
pub async fn run(cases: Vec<Case>, plan: &Plan) -> Result<bool> {
    check_ids(&cases)?;
    let start = Instant::now();
    let ids: BTreeSet<String> = cases.iter().map(|c| c.id.clone()).collect();
    let chosen: Vec<Case> = cases.into_iter().filter(|c| takes(&plan.filters, plan.part, c)).collect();
    if chosen.is_empty() && plan.part.is_none() {
        bail!("no case's id starts with {}", plan.filters.join(" or "));
    }
    let mut counts = Counts::default();
    let (chosen, skipped): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|c| !c.older || has_older());
    counts.skipped.extend(skipped.into_iter().map(|c| c.id));
    let (api, others): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|c| matches!(c.needs, Needs::Api));
    let (shared, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|c| matches!(c.needs, Needs::Agents));
    let (pods, own): (Vec<_>, Vec<_>) = others.into_iter().partition(|c| matches!(c.needs, Needs::Kubelets));
    on_one_rig(&api, &Options { programs: false, ..Options::default() }, &mut counts).await;
    if plan.control_plane_only {
        counts.skipped.extend(shared.iter().chain(&pods).chain(&own).map(|c| c.id.clone()));
    } else {
        on_one_rig(&shared, &Options::default(), &mut counts).await;
        on_one_rig(&pods, &Options::kubelets(), &mut counts).await;
        for case in own {
            if let Needs::Own(options) = case.needs.clone() {
                on_one_rig(&[case], &options, &mut counts).await;
            }
        }
    }
    close(&counts, plan, &ids, start.elapsed());
    Ok(counts.failed.is_empty())
}

/// Whether a case is of the part, and its id starts with one of the filters, or there are none and it is no long measurement.
pub fn takes(filters: &[String], part: Option<Part>, case: &Case) -> bool {
    let named = filters.is_empty() && !case.measures || filters.iter().any(|f| case.id.starts_with(f.as_str()));
    named && part.is_none_or(|p| p == part_of(case))
}

fn check_ids(cases: &[Case]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match cases.iter().find(|c| !seen.insert(c.id.as_str())) {
        Some(twice) => bail!("two cases are called {}", twice.id),
        None => Ok(()),
    }
}

fn close(counts: &Counts, plan: &Plan, ids: &BTreeSet<String>, took: Duration) {
    if plan.filters.is_empty() && plan.part.is_none_or(|p| p == Part::Rest) {
        let without: Vec<_> = WANTED.iter().filter(|(id, _)| !covered(ids, id)).collect();
        println!("\n{} of {} ids of the table of failures have a test; without one:", WANTED.len() - without.len(), WANTED.len());
        for (id, what) in without {
            println!("  {id:<18} {what}");
        }
    }
    for id in &counts.skipped {
        println!("skipped: {id} (needs operator and agents)");
    }
    for (id, why) in &counts.failed {
        println!("failed: {id}: {why}");
    }
    println!("\n{}", slowest(&counts.took));
    println!("{} s", took.as_secs());
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed.len(), counts.skipped.len());
}

/// Where the time went.
fn slowest(took: &[(Duration, String)]) -> String {
    let mut sorted: Vec<_> = took.iter().collect();
    sorted.sort_by(|a, b| b.cmp(a));
    let named: Vec<String> = sorted.iter().take(SLOWEST).map(|(took, id)| format!("{id} {} s", took.as_secs())).collect();
    format!("slowest: {}", named.join(", "))
}

/// An id is covered by the case of that name, and by its parts (`5-create/after-CreateBegin`).
fn covered(ids: &BTreeSet<String>, id: &str) -> bool {
    let part = format!("{id}/");
    ids.contains(id) || ids.range(part.clone()..).next().is_some_and(|next| next.starts_with(&part))
}

fn what(options: &Options) -> String {
    match (options.programs, options.kubelets) {
        (true, false) => format!("operator and {} agents", options.agents),
        (true, true) => format!("operator and {} nodes with kubelet and agent", options.agents),
        (false, true) if options.chart => format!("{} nodes with kubelets and our images", options.agents),
        (false, true) => format!("{} nodes with kubelets", options.agents),
        (false, false) => "control plane only".into(),
    }
}

async fn on_one_rig(cases: &[Case], options: &Options, counts: &mut Counts) {
    let mut rig: Option<Arc<Rig>> = None;
    for case in cases {
        if rig.is_none() {
            rig = match Rig::up(options.clone()).await {
                Ok(up) => {
                    println!("\nrig: {}, ready after {:.1} s", what(options), up.seconds);
                    Some(Arc::new(up))
                }
                Err(e) => {
                    println!("FAIL  {}: the rig did not start: {e:#}", case.id);
                    counts.failed.push((case.id.clone(), brief(&e.context("the rig did not start"))));
                    continue;
                }
            };
        }
        let Some(up) = rig.clone() else { continue };
        let start = Instant::now();
        match one(case, up.clone()).await {
            Ok(()) => {
                println!("  ok    {:<34} {:>6.1} s  {}", case.id, start.elapsed().as_secs_f64(), case.title);
                counts.took.push((start.elapsed(), case.id.clone()));
                counts.passed += 1;
            }
            Err(e) => {
                println!("  FAIL  {:<34} {:>6.1} s  {}\n        {e:#}", case.id, start.elapsed().as_secs_f64(), case.title);
                if options.programs {
                    let diagnosis = up.diagnosis(25).await;
                    println!("{}", diagnosis.lines().map(|l| format!("        | {l}")).collect::<Vec<_>>().join("\n"));
                    rig = None; // the next case starts on a fresh one
                }
                counts.failed.push((case.id.clone(), brief(&e)));
            }
        }
    }
}

/// The reason on one line, for the closing lines: who sees only the end of a long output must see why.
fn brief(e: &anyhow::Error) -> String {
    let line = format!("{e:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(600).collect()
}

async fn one(case: &Case, rig: Arc<Rig>) -> Result<()> {
    let test = Arc::new(Test::begin(rig, &case.id).await?);
    let body = std::panic::AssertUnwindSafe(case.run(test.clone())).catch_unwind();
    let late = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        println!("  ...   {:<34}           {}", case.id, case.title);
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = tokio::time::timeout(case.timeout, body) => match result {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(anyhow::anyhow!("the test panicked")),
            Err(_) => Err(anyhow::anyhow!("not done after {:.0} s", case.timeout.as_secs_f64())),
        },
        () = late => Ok(()),
    };
    match result {
        Ok(()) => {
            tokio::time::timeout(Duration::from_secs(300), test.end()).await.context("cleaning up took 5 min")?.context("left behind")
        }
        failed => failed, // what it left is evidence; the rig goes
    }
}
