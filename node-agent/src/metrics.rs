//! The agent's figures, as Prometheus reads them: prefix `dotgraft_`, base units, no label per commit or Filesystem (csi.md §2).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dotgraft_api::ConditionType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::journal::Observation;

/// Of every name.
const PREFIX: &str = "dotgraft";

/// How a replication run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunResult {
    /// Its target is on the receiver.
    Success,
    /// It gave up, or its deadline passed.
    Failure,
    /// Somebody ended it: its job was deleted, suspended or changed, or its Filesystem moved or went.
    Cancelled,
}

impl RunResult {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
        }
    }
}

/// `result` of a counter: `success` or `failure`; of a run also `cancelled`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

/// `condition` of a gauge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCondition {
    condition: &'static str,
}

/// A CSI call: which, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCall {
    method: String,
    code: String,
}

/// A CSI call: which.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMethod {
    method: String,
}

type Float = Gauge<f64, AtomicU64>;

/// All figures of one agent. A cheap clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    families: Arc<Families>,
    actors: Gauge,
    mailbox: Gauge,
    recoveries: Counter,
    journal_seconds: Histogram,
    journal_requests: Counter,
    journal_errors: Counter,
    commits: Family<ByResult, Counter>,
    commit_seconds: Histogram,
    sent: Counter,
    received: Counter,
    runs: Family<ByResult, Counter>,
    runs_in_progress: Gauge,
    run_seconds: Histogram,
    last_success: Float,
    lag_seconds: Float,
    pool_bytes: Gauge,
    pool_available: Gauge,
    quota_bytes: Gauge,
    quota_limit: Gauge,
    orphans: Gauge,
    conditions: Family<ByCondition, Gauge>,
    api_age: Float,
    statuses_behind: Gauge,
    csi_calls: Family<ByCall, Counter>,
    csi_seconds: Family<ByMethod, Histogram>,
    group_changed: Counter,
    strays: Counter,
    left: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let r = &mut Families::default();
        let mut made = Self {
            families: Arc::default(),
            actors: r.plain("actors", "Filesystems that live on this node"),
            mailbox: r.plain("mailbox_depth", "Requests that wait for actors, all together"),
            recoveries: r.plain("recoveries", "Times that an actor was rebuilt from the journal"),
            journal_seconds: r.seconds("journal", "Time of one journal transaction until it was durable", doubling(0.0001, 16)),
            journal_requests: r.plain("journal_requests", "Requests that journal transactions carried"),
            journal_errors: r.plain("journal_errors", "Journal transactions that failed"),
            commits: r.plain("commits", "Commits by result"),
            commit_seconds: r.seconds("commit", "Time of one commit until it was durable", doubling(0.001, 16)),
            sent: r.bytes("sent", "Stream bytes sent to peers"),
            received: r.bytes("received", "Stream bytes received from peers"),
            runs: r.plain("runs", "Replication runs that ended, by result"),
            runs_in_progress: r.plain("runs_in_progress", "Replication runs that are under way"),
            run_seconds: r.seconds("run", "Time of one replication run", doubling(0.01, 20)),
            last_success: r.seconds("run_last_success_timestamp", "Unix time of the last run that succeeded", Float::default()),
            lag_seconds: r.seconds(
                "replication_lag_max",
                "Age of the oldest commit that some replica should have and lacks",
                Float::default(),
            ),
            pool_bytes: r.bytes("pool", "Size of the pool"),
            pool_available: r.bytes("pool_available", "What new copies could use"),
            quota_bytes: r.bytes("quota_used", "What all copies use, by their quota groups"),
            quota_limit: r.bytes("quota_limit", "Sum of the limits of all copies"),
            left: r.bytes("pool_left", "Charged to volumes that are gone, and shared by volumes that are there"),
            orphans: r.plain("orphans", "Copies on this pool that no object asks for"),
            conditions: r.plain("condition", "Copies on which this condition is true"),
            api_age: r.seconds("api_silence", "Time since the API server last proved that nothing was missed", Float::default()),
            statuses_behind: r.plain("statuses_behind", "Replicas whose newest status the API server doesn't have yet"),
            csi_calls: r.plain("csi_calls", "CSI calls by method and code"),
            csi_seconds: r.seconds("csi_call", "Time of one CSI call by method", Family::new_with_constructor(|| doubling(0.0005, 18))),
            group_changed: r.plain("group_changed_files", "Files that were given to a pod's group (fsGroup)"),
            strays: r.plain("strays", "Subvolumes that were made in a volume outside of its quota, and have been put in"),
        };
        made.families = Arc::new(std::mem::take(r));
        // An increase from nothing is none: what an alert counts is there from the start.
        for result in [RunResult::Success, RunResult::Failure] {
            made.runs.get_or_create(&ByResult { result: result.as_str() }).inc_by(0);
        }
        made
    }

    /// The name of every family that is registered, as a scrape shows it, without the suffixes of counters and histograms. A family without
    /// a value yet is here and not in a scrape.
    #[cfg(test)]
    fn families(&self) -> &[String] {
        &self.families.names
    }

    /// The text that Prometheus scrapes (the `OpenMetrics` text format, 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.families.registry);
        text
    }

    /// Actors that live here.
    pub fn actors(&self, n: usize) {
        set(&self.actors, n as u64);
    }
    /// Requests that wait for them.
    pub fn mailbox_depth(&self, n: usize) {
        set(&self.mailbox, n as u64);
    }
    /// An actor was (re)built from the journal.
    pub fn recovered(&self) {
        self.recoveries.inc();
    }
    /// A journal transaction ended.
    pub fn journal(&self, o: Observation) {
        self.journal_seconds.observe(o.took.as_secs_f64());
        self.journal_requests.inc_by(o.requests as u64);
        if !o.ok {
            self.journal_errors.inc();
        }
    }
    /// A commit ended.
    pub fn commit(&self, ok: bool, took: Duration) {
        self.commits.get_or_create(&result(ok)).inc();
        self.commit_seconds.observe(took.as_secs_f64());
    }
    /// Stream bytes went out.
    pub fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }
    /// Stream bytes came in.
    pub fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }
    /// A run has ended.
    pub fn run_ended(&self, result: RunResult, took: Duration) {
        self.runs.get_or_create(&ByResult { result: result.as_str() }).inc();
        self.run_seconds.observe(took.as_secs_f64());
    }
    /// Runs that are under way.
    pub fn runs_in_progress(&self, n: usize) {
        set(&self.runs_in_progress, n as u64);
    }
    /// When a run last succeeded, in Unix seconds; 0: never.
    pub fn run_last_success(&self, at: f64) {
        self.last_success.set(at);
    }
    /// Age of the oldest commit that a replica should have and lacks; zero if none.
    pub fn replication_lag(&self, age: Duration) {
        self.lag_seconds.set(age.as_secs_f64());
    }
    /// Size of the pool and what is left.
    pub fn pool(&self, capacity: u64, available: u64) {
        set(&self.pool_bytes, capacity);
        set(&self.pool_available, available);
    }
    /// What all copies use and may use.
    pub fn quota(&self, used: u64, limit: u64) {
        set(&self.quota_bytes, used);
        set(&self.quota_limit, limit);
    }
    /// Copies that nobody asks for.
    pub fn orphans(&self, n: usize) {
        set(&self.orphans, n as u64);
    }
    /// How many copies have this condition.
    pub fn condition(&self, type_: ConditionType, copies: usize) {
        set(&self.conditions.get_or_create(&ByCondition { condition: type_.as_str() }), copies as u64);
    }
    /// A CSI call ended. Only names of methods and codes, never text from outside.
    pub fn csi_call(&self, method: &str, code: &str, took: Duration) {
        self.csi_calls.get_or_create(&ByCall { method: method.to_owned(), code: code.to_owned() }).inc();
        self.csi_seconds.get_or_create(&ByMethod { method: method.to_owned() }).observe(took.as_secs_f64());
    }
    /// Files got a pod's group.
    pub fn group_changed(&self, files: u64) {
        self.group_changed.inc_by(files);
    }
    /// Subvolumes were found outside of their volume's quota.
    pub fn strays(&self, found: usize) {
        self.strays.inc_by(found as u64);
    }
    /// Bytes that are charged to volumes that are gone.
    pub fn left(&self, bytes: u64) {
        self.left.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    /// How long the API server has been silent.
    pub fn api_silence(&self, age: Duration) {
        self.api_age.set(age.as_secs_f64());
    }
    /// Statuses on their way.
    pub fn statuses_behind(&self, n: usize) {
        set(&self.statuses_behind, n as u64);
    }
}

const fn result(ok: bool) -> ByResult {
    ByResult { result: if ok { "success" } else { "failure" } }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Buckets from `first` seconds on, each twice as wide as the one before.
fn doubling(first: f64, buckets: u16) -> Histogram {
    Histogram::new(exponential_buckets(first, 2.0, buckets))
}

/// The registry, and the names of what is in it: it tells nobody of a family without a value.
#[derive(Debug)]
struct Families {
    registry: Registry,
    names: Vec<String>,
}

impl Default for Families {
    fn default() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), names: Vec::new() }
    }
}

impl Families {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, unit: Option<Unit>, metric: M) -> M {
        let suffix = unit.as_ref().map(|u| format!("_{}", u.as_str())).unwrap_or_default();
        self.names.push(format!("{PREFIX}_{name}{suffix}"));
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, metric.clone()),
            None => self.registry.register(name, help, metric.clone()),
        }
        metric
    }

    fn plain<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.add(name, help, None, M::default())
    }

    fn bytes<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.add(name, help, Some(Unit::Bytes), M::default())
    }

    fn seconds<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.add(name, help, Some(Unit::Seconds), metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_prefix_the_unit_and_the_total() {
        let metrics = Metrics::new();
        metrics.commit(true, Duration::from_millis(20));
        metrics.sent(7);
        metrics.pool(100, 40);
        metrics.condition(ConditionType::HeadMissing, 2);
        metrics.run_ended(RunResult::Failure, Duration::from_secs(1));
        metrics.csi_call("Probe", "Ok", Duration::from_millis(1));
        metrics.journal(Observation { took: Duration::from_micros(150), requests: 3, ok: true });
        let text = metrics.clone().encode();
        for line in [
            "dotgraft_commits_total{result=\"success\"} 1",
            "dotgraft_commit_seconds_count 1",
            "dotgraft_sent_bytes_total 7",
            "dotgraft_pool_available_bytes 40",
            "dotgraft_condition{condition=\"HeadMissing\"} 2",
            "dotgraft_runs_total{result=\"failure\"} 1",
            "dotgraft_runs_total{result=\"success\"} 0",
            "dotgraft_runs_in_progress 0",
            "dotgraft_csi_calls_total{method=\"Probe\",code=\"Ok\"} 1",
            "dotgraft_csi_call_seconds_count{method=\"Probe\"} 1",
            "dotgraft_run_last_success_timestamp_seconds 0.0",
            "dotgraft_journal_requests_total 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
    }

    /// What is registered and not on the page would be watched by nobody.
    #[test]
    fn the_page_of_metrics_has_every_family() {
        let page = include_str!("../../docs/metrics.md");
        let told: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
        let told: Vec<&str> = told.into_iter().filter(|n| !n.starts_with("dotgraft_operator_")).collect();
        assert_eq!(told, Metrics::new().families(), "docs/metrics.md, in the order of registration");
    }
}
