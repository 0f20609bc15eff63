//! What the probes say, and where they and the metrics are served.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use dotgraft_door::pages;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// What the probes say.
#[derive(Debug)]
pub struct Health {
    trouble: Mutex<Option<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self { trouble: Mutex::new(Some("starting".into())) }
    }
}

impl Health {
    /// Why it isn't ready, a sentence; `None`: it is. Ready means: the CRDs are new enough, all caches have been filled at least
    /// once, and no watch is broken for long.
    pub fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
    fn troubles(&self) -> Vec<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Serves until the future is dropped.
///
/// # Errors
///
/// The address can't be bound.
pub async fn serve(address: SocketAddr, health: Arc<Health>, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(%address, "serving probes and metrics");
    pages::serve(listener, pages::METRICS, pages::usual(move || health.troubles(), move || metrics.render())).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_ready_until_nothing_stands_in_the_way_and_says_what_does() {
        let health = Health::default();
        assert_eq!(health.troubles(), ["starting"]);
        health.set_trouble(Some("the CRD dots.dotgraft.dev is missing".into()));
        assert_eq!(health.troubles(), ["the CRD dots.dotgraft.dev is missing"]);
        health.set_trouble(None);
        assert!(health.troubles().is_empty());
    }
}
