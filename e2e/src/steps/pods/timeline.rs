//! When the claims and pods of a namespace got where: made, bound, scheduled, started. Looks every 30 ms.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use tokio::task::JoinHandle;

use crate::harness::Test;

type Moments = Arc<Mutex<BTreeMap<(String, &'static str), Instant>>>;

/// Watches until it is dropped.
pub struct Timeline {
    moments: Moments,
    task: JoinHandle<()>,
}

impl Timeline {
    /// Begins to watch a test's namespace.
    pub fn start(t: &Test) -> Self {
        let moments = Moments::default();
        let (pods, claims) = (Api::namespaced(t.kube().client(), &t.namespace), Api::namespaced(t.kube().client(), &t.namespace));
        let noted = moments.clone();
        let task = tokio::spawn(async move {
            loop {
                let _ = look(&pods, &claims, &noted).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        Self { moments, task }
    }

    /// Seconds between two moments of objects: `("pvc/data", "made")`.
    pub fn between(&self, from: (&str, &'static str), to: (&str, &'static str)) -> Result<f64> {
        let moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |m: (&str, &'static str)| moments.get(&(m.0.to_owned(), m.1)).copied().with_context(|| format!("{m:?} was not seen"));
        Ok(at(to)?.saturating_duration_since(at(from)?).as_secs_f64())
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(pods: &Api<Pod>, claims: &Api<PersistentVolumeClaim>, moments: &Moments) -> Result<()> {
    let mut seen = Vec::new();
    for claim in claims.list(&ListParams::default()).await? {
        let name = format!("pvc/{}", claim.name_any());
        if claim.status.is_some_and(|s| s.phase.as_deref() == Some("Bound")) {
            seen.push((name.clone(), "bound"));
        }
        seen.push((name, "made"));
    }
    for pod in pods.list(&ListParams::default()).await? {
        let name = format!("pod/{}", pod.name_any());
        if pod.spec.is_some_and(|s| s.node_name.is_some()) {
            seen.push((name.clone(), "scheduled"));
        }
        let states = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
        if states.iter().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())) {
            seen.push((name.clone(), "started"));
        }
        seen.push((name, "made"));
    }
    let now = Instant::now();
    let mut moments = moments.lock().unwrap_or_else(PoisonError::into_inner);
    for moment in seen {
        moments.entry(moment).or_insert(now);
    }
    Ok(())
}
