//! Everything the agent says to the API server, and hears from it. No decision about data is made here: watches feed actors,
//! authority is read by quorum GET and changed by compare-and-swap, statuses go out through one writer.
//!
//! Objects are read as untyped JSON first (`watch.rs`, `authority.rs`): one object that a newer program wrote, or nobody should
//! have, must not hide the others, and a compare-and-swap must not drop fields that this program doesn't know.

pub mod authority;
pub mod crds;
mod error;
pub mod events;
#[cfg(test)]
pub(crate) mod fake;
pub mod lease;
pub mod node;
pub mod pools;
pub mod replicas;
pub mod status;
pub mod watch;

use std::path::Path;
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

pub use error::ClusterError;

/// A request that took this long counts as lost; a write that was lost may have happened.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A client from a kubeconfig file, or by the pod's own token without one. A token file is read again as it changes.
///
/// # Errors
/// `Refused` if the file can't be read or names no usable cluster, or if this is no pod.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClusterError> {
    let source =
        kubeconfig.map_or_else(|| "no --kubeconfig, and the pod's own token".into(), |path| format!("kubeconfig {}", path.display()));
    let refused = |e: &dyn std::fmt::Display| ClusterError::Refused { message: format!("{source}: {e}") };
    let mut config = if let Some(path) = kubeconfig {
        let file = Kubeconfig::read_from(path).map_err(|e| refused(&e))?;
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|e| refused(&e))?
    } else {
        kube::Config::incluster().map_err(|e| refused(&e))?
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    config.write_timeout = Some(REQUEST_TIMEOUT);
    // Every caller here retries by itself and needs to know of each failure; a layer below that may wait for minutes and send a
    // compare-and-swap twice is of no use.
    config.default_retry = false;
    Client::try_from(config).map_err(|e| refused(&e))
}

/// Runs a request under [`REQUEST_TIMEOUT`].
async fn timed<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ClusterError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => result.map_err(ClusterError::from),
        Err(_) => Err(ClusterError::Unreachable { message: format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()) }),
    }
}

/// Pause before the n-th retry (0 for the first): doubles from `first` up to `most`, with a quarter of jitter taken off.
fn backoff(first: Duration, most: Duration, retry: u32) -> Duration {
    let full = first.saturating_mul(1u32.checked_shl(retry.min(16)).unwrap_or(u32::MAX)).min(most);
    let [random, ..] = uuid::Uuid::new_v4().into_bytes(); // from the system's generator; no crate of its own for this
    full.saturating_sub(full.mul_f64(0.25 * f64::from(random) / 255.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let ms = Duration::from_millis;
        for (retry, most) in [(0, 100), (1, 200), (3, 800), (4, 1000), (40, 1000)] {
            let pause = backoff(ms(100), ms(1000), retry);
            assert!(pause <= ms(most) && pause >= ms(most * 3 / 4), "{retry}: {pause:?}");
        }
    }
}
