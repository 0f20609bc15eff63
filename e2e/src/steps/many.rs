//! Pods and volumes by the dozen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::Api;

use super::pod::registered;
use crate::harness::Test;
use crate::rig::wait::eventually;

/// Longest that all pods of a case may take to start.
pub const ALL: Duration = Duration::from_secs(300);

/// Pods and claims are deleted at once, and every Dot goes.
pub async fn all_gone(t: &Test) -> Result<()> {
    let start = Instant::now();
    t.kubectl(&["delete", "pod,pvc", "--all", "--timeout=600s"]).await?;
    eventually("all Dots to be gone", ALL, || async {
        let left = t.kube().names("Dot", &t.namespace, |_| true).await?.len();
        ensure!(left == 0, "{left} are there");
        Ok(())
    })
    .await?;
    println!("        pods, claims and volumes deleted after {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Waits until pods with volumes can be made, and scheduled to every node: the scheduler knows of a node what its driver, its capacity
/// and its taints say, each in its own time.
pub async fn can_schedule(t: &Arc<Test>) -> Result<()> {
    registered(t.clone()).await?;
    eventually("all nodes to be free of taints", ALL, || async {
        let taints = t.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.taints[*].key}"]).await?;
        ensure!(taints.is_empty(), "{taints}");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await; // the scheduler's own watch
    let accounts: Api<ServiceAccount> = Api::namespaced(t.kube().client(), &t.namespace);
    eventually("the namespace's ServiceAccount", ALL, || async { Ok(accounts.get("default").await?) }).await.map(drop)
}
