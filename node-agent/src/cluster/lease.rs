//! The heartbeat: a Lease of our own, renewed while the agent lives. Nothing about data is decided by it (csi.md §2).

use std::time::Duration;

use dotgraft_api::common::{LEASE_AGENT_PREFIX, MANAGER_AGENT};
use dotgraft_engine::ids::NodeName;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};

use super::timed;

/// Time between heartbeats.
pub const EVERY: Duration = Duration::from_secs(10);
/// What the Lease says about how long one heartbeat counts.
const COUNTS_FOR_SECONDS: i32 = 40;

/// Name of the Lease of `node`'s agent.
pub fn name(node: &NodeName) -> String {
    format!("{LEASE_AGENT_PREFIX}{node}")
}

/// Renews for ever; drop the future to stop. Needs `create` and `patch` on Leases of `namespace`.
pub async fn beat(client: Client, namespace: String, node: NodeName) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let name = name(&node);
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tick.tick().await;
        let lease = heartbeat(&name, &node, Timestamp::now());
        // Apply makes the Lease if it is missing: one request either way.
        let params = PatchParams::apply(MANAGER_AGENT).force();
        match timed(leases.patch(&name, &params, &Patch::Apply(&lease))).await {
            Ok(_) if failing => {
                failing = false;
                tracing::info!("heartbeats arrive again");
            }
            Ok(_) => {}
            Err(e) if failing => tracing::debug!(error = %e, "heartbeat failed"),
            Err(e) => {
                failing = true;
                tracing::warn!(error = %e, lease = name, "heartbeat failed, trying again");
            }
        }
    }
}

fn heartbeat(name: &str, node: &NodeName, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_string()),
            lease_duration_seconds: Some(COUNTS_FOR_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_names_its_node_and_has_microseconds() {
        let lease = heartbeat("dotgraft-agent-n1", &"n1".parse().unwrap(), "2026-01-02T03:04:05.1234567Z".parse().unwrap());
        let json = serde_json::to_value(&lease).unwrap();
        assert_eq!(json["spec"]["holderIdentity"], "n1");
        assert_eq!(json["spec"]["renewTime"], "2026-01-02T03:04:05.123456Z");
    }
}
