//! The way from the API server to the operator's pod webhook, where the operator is a process: the Service that `deploy/webhook.yaml` names,
//! with an address given by hand. The configuration itself is as shipped.

use anyhow::Result;

use super::command::run;
use super::machine::network::CONTROL_PLANE;
use super::tokens::SYSTEM;
use super::{Rig, ports};

/// The operator's address for webhooks on a rig that has no network.
const WITHOUT_NETWORK: &str = "10.90.0.1";

/// Where the operator is to serve it: the API server calls no loopback address. Without the network of `kubelets`, the sandbox's loopback
/// device gets one of another kind.
///
/// # Errors
///
/// The device takes no address, or no port is free.
pub fn address(kubelets: bool) -> Result<String> {
    let ip = if kubelets { CONTROL_PLANE } else { WITHOUT_NETWORK };
    if !kubelets {
        run("ip", &["address", "replace", &format!("{ip}/32"), "dev", "lo"])?;
    }
    Ok(format!("{ip}:{}", ports::free()?))
}

impl Rig {
    /// Makes the Service for an operator that serves there.
    pub(super) async fn serve_webhook(&self, address: &str) -> Result<()> {
        let (ip, port) = address.split_once(':').unwrap_or((address, "443"));
        let metadata = format!("namespace: {SYSTEM}, name: dotgraft-operator");
        self.kube
            .apply(&format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{{metadata}}}\nspec:\n  ports: [{{name: webhook, port: 443, targetPort: {port}}}]\n\
                 ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{{metadata}, labels: {{kubernetes.io/service-name: dotgraft-operator}}}}\naddressType: IPv4\n\
                 ports: [{{name: webhook, port: {port}, protocol: TCP}}]\nendpoints: [{{addresses: [{ip}], conditions: {{ready: true}}}}]\n"
            ))
            .await?;
        Ok(())
    }
}
