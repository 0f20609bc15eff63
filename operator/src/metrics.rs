//! What Prometheus sees of this program: prefix `dotgraft_operator_`, base units, no label per object but those of volumes, which are bounded
//! ([`crate::volumes`]).

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::volumes::Figures;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ControllerResult {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Copies {
    copies: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CsiCall {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CsiMethod {
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Volume {
    namespace: String,
    kind: &'static str,
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CopyOf {
    namespace: String,
    kind: &'static str,
    name: String,
    node: String,
}

type Float = Gauge<f64, AtomicU64>;

/// The program's metrics; cheap to share by `Arc`.
pub struct Metrics {
    families: Families,
    reconciles: Family<ControllerResult, Counter>,
    seconds: Family<Controller, Histogram>,
    certificates: Family<ResultLabel, Counter>,
    stuck: Family<Controller, Gauge>,
    at_risk: Family<Copies, Gauge>,
    watch_errors: Family<Controller, Counter>,
    leader: Gauge,
    csi_calls: Family<CsiCall, Counter>,
    csi_seconds: Family<CsiMethod, Histogram>,
    webhook_requests: Family<ResultLabel, Counter>,
    webhook_seconds: Histogram,
    volume_bytes: Family<Volume, Gauge>,
    volume_limit: Family<Volume, Gauge>,
    copy_age: Family<CopyOf, Float>,
    copy_behind: Family<CopyOf, Float>,
    copy_success: Family<CopyOf, Float>,
    left_out: Gauge,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Buckets from `first` seconds on, each twice as wide as the one before.
fn doubling(first: f64, buckets: u16) -> Histogram {
    Histogram::new(exponential_buckets(first, 2.0, buckets))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut r = Families { registry: Registry::with_prefix(PREFIX), names: Vec::new() };
        Self {
            reconciles: r.add("reconciles", "Reconciles by controller and result", Family::default()),
            seconds: r.add("reconcile_seconds", "Seconds of a reconcile", Family::new_with_constructor(|| doubling(0.001, 14))),
            certificates: r.add("certificate_requests", "Certificate requests by result", Family::default()),
            stuck: r.add("stuck_finalizers", "Objects in deletion for more than ten minutes", Family::default()),
            at_risk: r.add("commits_at_risk", "Commits with one copy, where more were asked for, or with none", Family::default()),
            watch_errors: r.add("watch_errors", "Watches of the API server that ended with an error", Family::default()),
            leader: r.add("leader", "1 while this process leads", Gauge::default()),
            csi_calls: r.add("csi_calls", "CSI calls by method and gRPC code", Family::default()),
            csi_seconds: r.add("csi_seconds", "Seconds of a CSI call", Family::new_with_constructor(|| doubling(0.001, 15))),
            webhook_requests: r.add("webhook_requests", "Pods looked at by the webhook, by result", Family::default()),
            webhook_seconds: r.add("webhook_seconds", "Seconds of a request to the pod webhook", doubling(0.000_05, 15)),
            volume_bytes: r.add("volume_bytes", "Bytes that a volume uses on its owner's node, files and history", Family::default()),
            volume_limit: r.add("volume_limit_bytes", "What they may take", Family::default()),
            copy_age: r.add("volume_copy_age_seconds", "Age of a copy's newest commit", Family::default()),
            copy_behind: r.add(
                "volume_copy_behind_seconds",
                "For how long a copy has lacked something that its owner has",
                Family::default(),
            ),
            copy_success: r.add(
                "volume_copy_last_success_timestamp_seconds",
                "Unix time at which a job last brought everything to a copy",
                Family::default(),
            ),
            left_out: r.add("volumes_left_out", "Volumes without figures of their own, as there are too many", Gauge::default()),
            families: r,
        }
    }
}

/// Of every name.
const PREFIX: &str = "dotgraft_operator";

/// The registry, and the names of what is in it: it tells nobody of a family without a value.
struct Families {
    registry: Registry,
    names: Vec<String>,
}

impl Families {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.names.push(format!("{PREFIX}_{name}"));
        self.registry.register(name, help, metric.clone());
        metric
    }
}

impl Metrics {
    /// One reconcile has ended.
    pub fn reconciled(&self, controller: &'static str, result: &'static str, took: Duration) {
        self.reconciles.get_or_create(&ControllerResult { controller, result }).inc();
        self.seconds.get_or_create(&Controller { controller }).observe(took.as_secs_f64());
    }
    /// A certificate request was answered.
    pub fn certificate(&self, result: &'static str) {
        self.certificates.get_or_create(&ResultLabel { result }).inc();
    }
    /// So many objects of a kind hang in deletion.
    pub fn stuck(&self, controller: &'static str, count: usize) {
        self.stuck.get_or_create(&Controller { controller }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    /// So many Commits have one copy, where more were asked for, and so many have none.
    pub fn at_risk(&self, one: usize, none: usize) {
        for (copies, count) in [("one", one), ("none", none)] {
            self.at_risk.get_or_create(&Copies { copies }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    /// A watch ended with an error and is opened again.
    pub fn watch_error(&self, controller: &'static str) {
        self.watch_errors.get_or_create(&Controller { controller }).inc();
    }
    /// A CSI call was answered.
    pub fn csi(&self, method: &'static str, code: &'static str, took: Duration) {
        self.csi_calls.get_or_create(&CsiCall { method, code }).inc();
        self.csi_seconds.get_or_create(&CsiMethod { method }).observe(took.as_secs_f64());
    }
    /// The webhook has looked at a pod.
    pub fn webhook(&self, result: &'static str, took: Duration) {
        self.webhook_requests.get_or_create(&ResultLabel { result }).inc();
        self.webhook_seconds.observe(took.as_secs_f64());
    }
    /// The figures of volumes, in place of those before; so many more have none.
    pub fn volumes(&self, shown: &[Figures], left_out: usize) {
        self.volume_bytes.clear();
        self.volume_limit.clear();
        [&self.copy_age, &self.copy_behind, &self.copy_success].into_iter().for_each(Family::clear);
        let integer = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for v in shown {
            let volume = || Volume { namespace: v.namespace.clone(), kind: v.kind.as_str(), name: v.name.clone() };
            v.bytes.map(|n| self.volume_bytes.get_or_create(&volume()).set(integer(n)));
            v.limit.map(|n| self.volume_limit.get_or_create(&volume()).set(integer(n)));
            for c in &v.copies {
                let Volume { namespace, kind, name } = volume();
                let of = CopyOf { namespace, kind, name, node: c.node.clone() };
                c.age.map(|s| self.copy_age.get_or_create(&of).set(s));
                self.copy_behind.get_or_create(&of).set(c.behind);
                c.last_success.map(|s| self.copy_success.get_or_create(&of).set(s));
            }
        }
        self.left_out.set(i64::try_from(left_out).unwrap_or(i64::MAX));
    }
    /// Whether this process leads. Who doesn't shows no volumes: the leader does.
    pub fn leading(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.volumes(&[], 0);
        }
    }
    /// The name of every family that is registered, as a scrape shows it, without the suffixes of counters and histograms. A family without
    /// a value yet is here and not in a scrape.
    #[cfg(test)]
    fn families(&self) -> &[String] {
        &self.families.names
    }
    /// All of it in `OpenMetrics` text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if prometheus_client::encoding::text::encode(&mut out, &self.families.registry).is_err() {
            out.clear();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let m = Metrics::default();
        m.reconciled("dot", "ok", Duration::from_millis(3));
        m.leading(true);
        let text = m.render();
        assert!(text.contains("dotgraft_operator_reconciles_total{controller=\"dot\",result=\"ok\"} 1"), "{text}");
        assert!(text.contains("dotgraft_operator_leader 1"), "{text}");
    }

    /// What is registered and not on the page would be watched by nobody.
    #[test]
    fn the_page_of_metrics_has_every_family() {
        let page = include_str!("../../docs/metrics.md");
        let told: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
        let told: Vec<&str> = told.into_iter().filter(|n| n.starts_with("dotgraft_operator_")).collect();
        assert_eq!(told, Metrics::default().families(), "docs/metrics.md, in the order of registration");
    }
}
