//! A rig under a real Prometheus: which alerts fire and clear, and which metrics have moved.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::harness::Test;
use crate::rig::monitoring::{self, Limit};
use crate::rig::prometheus::{Prometheus, Sample};
use crate::rig::source_root;
use crate::rig::wait::eventually;

/// What ten minutes are in the chart are five seconds here.
const HURRY: u64 = 120;
/// Limits on times that aren't durations of the rules' own.
const LIMITS: [Limit; 2] = [
    Limit { alert: "DotgraftReplicationLag", chart: "3600", copy: "15" },
    // While all is well an agent's watches may be silent for 45 s.
    Limit { alert: "DotgraftApiSilent", chart: "120", copy: "50" },
];
/// Longest that an alert may take to fire or clear: scrape, rule and `for` take some seconds, what is watched may take a minute.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What is a moment for an alert.
const MOMENT: &str = "10s";
/// Longer than a case takes: what Prometheus has seen of it.
const ALL: &str = "30m";

/// A test's rig, and the Prometheus that watches it by the chart's own monitors and rules, in a hurry.
pub struct Watched {
    /// The test.
    pub t: Arc<Test>,
    prometheus: Prometheus,
    alerts: Vec<String>,
}

/// A row of the page of metrics.
struct Family {
    name: String,
    kind: String,
}

impl Watched {
    /// Starts Prometheus and waits until it sees all programs of ours, and nothing that it has to tell people.
    ///
    /// # Errors
    ///
    /// It doesn't start, sees not all of them, or an alert fires although all is well.
    pub async fn start(t: Arc<Test>) -> Result<Self> {
        let monitoring = t.rig.monitoring().await?;
        let chart = monitoring.rules()?;
        let rules = monitoring::hurried(&chart, HURRY, &LIMITS)?;
        monitoring::only_numbers_differ(&chart, &rules)?;
        let prometheus = t.rig.start_prometheus(&t.dir.join("prometheus"), &monitoring, &rules).await?;
        let watched = Self { t, prometheus, alerts: monitoring::alerts(&chart)? };
        let programs = watched.t.rig.nodes.len() + 1;
        eventually("Prometheus to see operator and agents", PATIENCE, || async {
            let up = watched.ask("up == 1").await?;
            ensure!(up.len() == programs, "it sees {up:?}");
            Ok(())
        })
        .await?;
        watched.calm().await?;
        Ok(watched)
    }

    /// What an expression is now.
    ///
    /// # Errors
    ///
    /// Prometheus doesn't answer, or the expression is none.
    pub async fn ask(&self, expr: &str) -> Result<Vec<Sample>> {
        self.prometheus.query(expr).await
    }

    /// What fires now.
    async fn firing(&self, alerts: &str) -> Result<Vec<Sample>> {
        self.ask(&format!("ALERTS{{alertname=~\"{alerts}\",alertstate=\"firing\"}}")).await
    }

    /// Waits until an alert fires, with that label.
    ///
    /// # Errors
    ///
    /// It doesn't.
    pub async fn fires(&self, alert: &str, label: Option<(&str, &str)>) -> Result<()> {
        let start = Instant::now();
        eventually(&format!("{alert} to fire"), PATIENCE, || self.is_firing(alert, label)).await?;
        println!("        {alert} fires ({:.1} s)", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// An error unless the alert fires, or did a moment ago: some are short in a hurry.
    ///
    /// # Errors
    ///
    /// It doesn't, or Prometheus doesn't answer.
    pub async fn is_firing(&self, alert: &str, label: Option<(&str, &str)>) -> Result<()> {
        ensure!(self.alerts.iter().any(|a| a == alert), "the chart has no alert {alert}");
        let more = label.map(|(name, value)| format!(",{name}=\"{value}\"")).unwrap_or_default();
        let fired = format!("last_over_time(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"{more}}}[{MOMENT}])");
        if self.ask(&fired).await?.is_empty() {
            bail!("it doesn't with {label:?}; firing: {}", names(&self.firing(".*").await?));
        }
        Ok(())
    }

    /// Waits until an alert fires no more, with whatever labels.
    ///
    /// # Errors
    ///
    /// It goes on.
    pub async fn clears(&self, alert: &str) -> Result<()> {
        let start = Instant::now();
        self.silent(alert).await?;
        println!("        {alert} clears ({:.1} s)", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Waits until no alert fires.
    ///
    /// # Errors
    ///
    /// One does.
    pub async fn calm(&self) -> Result<()> {
        self.silent(".*").await
    }

    async fn silent(&self, alerts: &str) -> Result<()> {
        eventually(&format!("{alerts} not to fire"), PATIENCE, || async {
            let firing = self.firing(alerts).await?;
            ensure!(firing.is_empty(), "{}", names(&firing));
            Ok(())
        })
        .await
    }

    /// Waits until a metric is, or was at any time, as the expression says.
    ///
    /// # Errors
    ///
    /// It never was.
    pub async fn moves(&self, expr: &str) -> Result<()> {
        eventually(expr, PATIENCE, || async {
            ensure!(!self.ask(expr).await?.is_empty(), "it isn't");
            Ok(())
        })
        .await
    }

    /// An error unless each alert of the chart has fired since the start.
    ///
    /// # Errors
    ///
    /// It names those that haven't.
    pub async fn every_alert_has_fired(&self) -> Result<()> {
        let seen = self.ask(&format!("count by (alertname) (count_over_time(ALERTS{{alertstate=\"firing\"}}[{ALL}]))")).await?;
        let has = |alert: &&String| seen.iter().any(|s| s.labels.get("alertname") == Some(alert));
        let missing: Vec<_> = self.alerts.iter().filter(|a| !has(a)).collect();
        ensure!(missing.is_empty() && !self.alerts.is_empty(), "never seen firing: {missing:?}");
        println!("        {} alerts have fired and cleared", self.alerts.len());
        Ok(())
    }

    /// An error unless each family of the page of metrics, which is what the programs register, was another than in a program that
    /// has just started: a counter has counted, a gauge was not zero and has changed. `constant`: gauges that say what never changes.
    ///
    /// # Errors
    ///
    /// It names those that nothing moves, and metrics of ours that aren't on the page.
    pub async fn every_family_has_moved(&self, constant: &[&str]) -> Result<()> {
        let families = families()?;
        let mut still = Vec::new();
        for family in &families {
            let series = family.series();
            let mut wanted = format!("max_over_time({series}[{ALL}]) > 0");
            if family.kind == "gauge" && !constant.contains(&family.name.as_str()) {
                wanted = format!("({wanted}) and changes({series}[{ALL}]) > 0");
            }
            if self.ask(&wanted).await?.is_empty() {
                let seen = self.ask(&format!("last_over_time({series}[{ALL}])")).await?;
                still.push(format!("{}: {}", family.name, if seen.is_empty() { "no series" } else { "it stands still" }));
            }
        }
        ensure!(still.is_empty(), "nothing moves {still:#?}");
        let known = |metric: &String| families.iter().any(|f| f.has(metric));
        let strange: Vec<_> = self.prometheus.metrics().await?.into_iter().filter(|m| m.starts_with("dotgraft_") && !known(m)).collect();
        ensure!(strange.is_empty() && !families.is_empty(), "not on docs/metrics.md: {strange:?}");
        println!("        {} families of metrics have moved", families.len());
        Ok(())
    }

    /// An error unless each query of the chart's dashboard has shown something.
    ///
    /// # Errors
    ///
    /// It names the panels that stayed empty.
    pub async fn every_panel_shows_something(&self) -> Result<()> {
        let file = source_root().join("charts/dotgraft/files/dashboard.json");
        let board: Value = serde_json::from_slice(&std::fs::read(&file).with_context(|| file.display().to_string())?)?;
        let mut empty = Vec::new();
        let panels = board["panels"].as_array().context("a dashboard without panels")?;
        for panel in panels {
            for target in panel["targets"].as_array().context("a panel without queries")? {
                let expr = target["expr"].as_str().context("a query without an expression")?;
                if self.ask(&format!("count_over_time(({expr})[{ALL}:5s])")).await?.is_empty() {
                    empty.push(format!("{}: {expr}", panel["title"]));
                }
            }
        }
        ensure!(empty.is_empty() && !panels.is_empty(), "these panels stay empty: {empty:#?}");
        println!("        {} panels of the dashboard show something", panels.len());
        Ok(())
    }
}

/// Each alert with its labels.
fn names(alerts: &[Sample]) -> String {
    let name = |s: &Sample| {
        let mut labels = s.labels.clone();
        let name = labels.remove("alertname").unwrap_or_default();
        labels.retain(|key, _| !["__name__", "alertstate", "instance", "job", "severity"].contains(&key.as_str()));
        format!("{name} {labels:?}")
    };
    alerts.iter().map(name).collect::<Vec<_>>().join(", ")
}

impl Family {
    /// Which of its series says that it moves.
    fn series(&self) -> String {
        let suffix = match self.kind.as_str() {
            "counter" => "_total",
            "histogram" => "_count",
            _ => "",
        };
        format!("{}{suffix}", self.name)
    }

    fn has(&self, metric: &str) -> bool {
        let suffixes: &[&str] = match self.kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_count", "_sum", "_bucket"],
            _ => &[""],
        };
        metric.strip_prefix(self.name.as_str()).is_some_and(|rest| suffixes.contains(&rest))
    }
}

/// The families of docs/metrics.md, of which a unit test of each program says that they are what it registers.
fn families() -> Result<Vec<Family>> {
    let file = source_root().join("docs/metrics.md");
    let page = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let rows = page.lines().filter(|l| l.starts_with("| `dotgraft_"));
    let family = |row: &str| {
        let mut cells = row.split('|').skip(1).map(str::trim);
        Some(Family { name: cells.next()?.trim_matches('`').to_owned(), kind: cells.next()?.to_owned() })
    };
    rows.map(|row| family(row).with_context(|| row.to_owned())).collect()
}
