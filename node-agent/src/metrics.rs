//! The agent's figures, as Prometheus reads them: prefix `dotgraft_`, base units, no label per commit or Filesystem (csi.md §2).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::journal::Observation;

/// `result` of a counter: `success`, `failure` or a [`dotgraft_engine::model::Reason`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: String,
}

/// `condition` of a gauge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCondition {
    condition: String,
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
    registry: Arc<Registry>,
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
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut r = Registry::with_prefix("dotgraft");
        let r = &mut r;
        let mut made = Self {
            registry: Arc::default(),
            actors: gauge(r, "actors", "Filesystems that live on this node"),
            mailbox: gauge(r, "mailbox_depth", "Requests that wait for actors, all together"),
            recoveries: counter(r, "recoveries", "Times that an actor was rebuilt from the journal"),
            journal_seconds: seconds(r, "journal", "Time of one journal transaction until it was durable", 0.0001, 16),
            journal_requests: counter(r, "journal_requests", "Requests that journal transactions carried"),
            journal_errors: counter(r, "journal_errors", "Journal transactions that failed"),
            commits: family(r, "commits", "Commits by result"),
            commit_seconds: seconds(r, "commit", "Time of one commit until it was durable", 0.001, 16),
            sent: bytes(r, "sent", "Stream bytes sent to peers"),
            received: bytes(r, "received", "Stream bytes received from peers"),
            runs: family(r, "runs", "Replication runs by result"),
            runs_in_progress: gauge(r, "runs_in_progress", "Replication runs that are working now"),
            run_seconds: seconds(r, "run", "Time of one replication run", 0.01, 20),
            last_success: float(r, "run_last_success_timestamp", "Unix time of the last run that succeeded"),
            lag_seconds: float(r, "replication_lag_max", "Age of the oldest commit that some replica should have and lacks"),
            pool_bytes: size(r, "pool", "Size of the pool"),
            pool_available: size(r, "pool_available", "What new copies could use"),
            quota_bytes: size(r, "quota_used", "What all copies use, by their quota groups"),
            quota_limit: size(r, "quota_limit", "Sum of the limits of all copies"),
            orphans: gauge(r, "orphans", "Copies on this pool that no object asks for"),
            conditions: family_gauge(r, "condition", "Copies on which this condition is true"),
            api_age: float(r, "api_silence", "Time since the API server last proved that nothing was missed"),
            statuses_behind: gauge(r, "statuses_behind", "Replicas whose newest status the API server doesn't have yet"),
            csi_calls: calls(r, "csi_calls", "CSI calls by method and code"),
            csi_seconds: call_seconds(r, "csi_call", "Time of one CSI call by method"),
            group_changed: counter(r, "group_changed_files", "Files that were given to a pod's group (fsGroup)"),
        };
        made.registry = Arc::new(std::mem::take(r));
        made
    }

    /// The text that Prometheus scrapes (the `OpenMetrics` text format, 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
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
    /// A run starts to work.
    pub fn run_started(&self) {
        self.runs_in_progress.inc();
    }
    /// A run that started ends. `at`: Unix seconds now.
    pub fn run_ended(&self, ok: bool, took: Duration, at: f64) {
        self.runs_in_progress.dec();
        self.runs.get_or_create(&result(ok)).inc();
        self.run_seconds.observe(took.as_secs_f64());
        if ok {
            self.last_success.set(at);
        }
    }
    /// Age in seconds of the oldest commit that a replica lacks; 0 if none.
    pub fn replication_lag(&self, seconds: f64) {
        self.lag_seconds.set(seconds);
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
    /// How many copies have this condition. Only names of our own, never text from outside.
    pub fn condition(&self, name: &str, copies: usize) {
        set(&self.conditions.get_or_create(&ByCondition { condition: name.to_owned() }), copies as u64);
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
    /// How long the API server has been silent.
    pub fn api_silence(&self, age: Duration) {
        self.api_age.set(age.as_secs_f64());
    }
    /// Statuses on their way.
    pub fn statuses_behind(&self, n: usize) {
        set(&self.statuses_behind, n as u64);
    }
}

fn result(ok: bool) -> ByResult {
    ByResult { result: if ok { "success" } else { "failure" }.into() }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn gauge(r: &mut Registry, name: &str, help: &str) -> Gauge {
    let metric = Gauge::default();
    r.register(name, help, metric.clone());
    metric
}

fn size(r: &mut Registry, name: &str, help: &str) -> Gauge {
    let metric = Gauge::default();
    r.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}

fn float(r: &mut Registry, name: &str, help: &str) -> Float {
    let metric = Float::default();
    r.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn counter(r: &mut Registry, name: &str, help: &str) -> Counter {
    let metric = Counter::default();
    r.register(name, help, metric.clone());
    metric
}

fn bytes(r: &mut Registry, name: &str, help: &str) -> Counter {
    let metric = Counter::default();
    r.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}

fn family(r: &mut Registry, name: &str, help: &str) -> Family<ByResult, Counter> {
    let metric = Family::default();
    r.register(name, help, metric.clone());
    metric
}

fn calls(r: &mut Registry, name: &str, help: &str) -> Family<ByCall, Counter> {
    let metric = Family::default();
    r.register(name, help, metric.clone());
    metric
}

fn family_gauge(r: &mut Registry, name: &str, help: &str) -> Family<ByCondition, Gauge> {
    let metric = Family::default();
    r.register(name, help, metric.clone());
    metric
}

/// Doubling buckets from `first` seconds on.
fn seconds(r: &mut Registry, name: &str, help: &str, first: f64, buckets: u16) -> Histogram {
    let metric = Histogram::new(exponential_buckets(first, 2.0, buckets));
    r.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn call_seconds(r: &mut Registry, name: &str, help: &str) -> Family<ByMethod, Histogram> {
    let metric: Family<ByMethod, Histogram> = Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 18)));
    r.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
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
        metrics.condition("NoSpace", 2);
        metrics.run_started();
        metrics.run_ended(false, Duration::from_secs(1), 5.0);
        metrics.csi_call("Probe", "Ok", Duration::from_millis(1));
        metrics.journal(Observation { took: Duration::from_micros(150), requests: 3, ok: true });
        let text = metrics.clone().encode();
        for line in [
            "dotgraft_commits_total{result=\"success\"} 1",
            "dotgraft_commit_seconds_count 1",
            "dotgraft_sent_bytes_total 7",
            "dotgraft_pool_available_bytes 40",
            "dotgraft_condition{condition=\"NoSpace\"} 2",
            "dotgraft_runs_total{result=\"failure\"} 1",
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
}
