//! What Prometheus sees of this program: prefix `dotgraft_operator_`, base units, no label per object.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

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

/// The program's metrics; cheap to share by `Arc`.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ControllerResult, Counter>,
    seconds: Family<Controller, Histogram>,
    certificates: Family<ResultLabel, Counter>,
    stuck: Family<Controller, Gauge>,
    watch_errors: Family<Controller, Counter>,
    leader: Gauge,
    csi_calls: Family<CsiCall, Counter>,
    csi_seconds: Family<CsiMethod, Histogram>,
    webhook_requests: Family<ResultLabel, Counter>,
    webhook_seconds: Histogram,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut m = Self {
            registry: Registry::with_prefix("dotgraft_operator"),
            reconciles: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14))),
            certificates: Family::default(),
            stuck: Family::default(),
            watch_errors: Family::default(),
            leader: Gauge::default(),
            csi_calls: Family::default(),
            csi_seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            webhook_requests: Family::default(),
            webhook_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 15)),
        };
        let r = &mut m.registry;
        r.register("reconciles", "Reconciles by controller and result", m.reconciles.clone());
        r.register("reconcile_seconds", "Seconds of a reconcile", m.seconds.clone());
        r.register("certificate_requests", "Certificate requests by result", m.certificates.clone());
        r.register("stuck_finalizers", "Objects in deletion for more than ten minutes", m.stuck.clone());
        r.register("watch_errors", "Watches of the API server that ended with an error", m.watch_errors.clone());
        r.register("leader", "1 while this process leads", m.leader.clone());
        r.register("csi_calls", "CSI calls by method and gRPC code", m.csi_calls.clone());
        r.register("csi_seconds", "Seconds of a CSI call", m.csi_seconds.clone());
        r.register("webhook_requests", "Pods looked at by the webhook, by result", m.webhook_requests.clone());
        r.register("webhook_seconds", "Seconds of a request to the pod webhook", m.webhook_seconds.clone());
        m
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
    /// Whether this process leads.
    pub fn leading(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
    /// All of it in `OpenMetrics` text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if prometheus_client::encoding::text::encode(&mut out, &self.registry).is_err() {
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
}
