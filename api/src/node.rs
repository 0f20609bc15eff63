//! What a Node says of new volumes and copies: the one rule, for the operator and for `kubectl dot node drain`.
//!
//! Which pods will use a volume isn't known when its place is chosen, so a taint that keeps pods off counts for all of them, unless the node's
//! label says otherwise. Whoever names a node (`placement.node`, a job's target, a pod that was scheduled there) is asked nothing.

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::common::{LABEL_TAINTS, TAINTS_IGNORE};

/// Prefixes of the taints that Kubernetes sets and takes away by itself: not ready, unreachable, cordoned, short of disk or memory.
const OF_KUBERNETES: [&str; 2] = ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"];

/// Nobody is to be scheduled there any more, by `kubectl cordon` or as the Node is being deleted.
pub fn is_cordoned(node: &Node) -> bool {
    node.metadata.deletion_timestamp.is_some() || node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true))
}

/// The first taint that keeps new volumes and copies off, as `kubectl` writes it: `NoSchedule` or `NoExecute`, and of those that people set
/// none if the node has the label `dotgraft.dev/taints=ignore`.
pub fn repelling_taint(node: &Node) -> Option<String> {
    let ignored = node.metadata.labels.as_ref().and_then(|l| l.get(LABEL_TAINTS)).is_some_and(|v| v == TAINTS_IGNORE);
    let by_itself = |t: &Taint| OF_KUBERNETES.iter().any(|prefix| t.key.starts_with(prefix));
    let repels = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && (!ignored || by_itself(t));
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().find(repels).map(|t| match t.value.as_deref().filter(|v| !v.is_empty()) {
        Some(value) => format!("{}={value}:{}", t.key, t.effect),
        None => format!("{}:{}", t.key, t.effect),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: &serde_json::Value, labels: &serde_json::Value) -> Node {
        serde_json::from_value(serde_json::json!({"metadata": {"labels": labels}, "spec": {"taints": taints}})).unwrap()
    }

    #[test]
    fn taints_that_keep_pods_off_keep_volumes_off_unless_the_node_says_otherwise() {
        let (none, ignore) = (serde_json::json!({}), serde_json::json!({"dotgraft.dev/taints": "ignore"}));
        let of = |key: &str, effect: &str| serde_json::json!([{"key": key, "effect": effect, "value": "yes"}]);
        let repels = |t: &serde_json::Value, l: &serde_json::Value| repelling_taint(&node(t, l));
        let control_plane = serde_json::json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
        assert_eq!(repels(&control_plane, &none).as_deref(), Some("node-role.kubernetes.io/control-plane:NoSchedule"));
        assert_eq!(repels(&control_plane, &ignore), None);
        assert_eq!(repels(&of("gpu", "NoExecute"), &none).as_deref(), Some("gpu=yes:NoExecute"));
        assert_eq!(repels(&of("gpu", "PreferNoSchedule"), &none), None);
        for key in ["node.kubernetes.io/not-ready", "node.cloudprovider.kubernetes.io/shutdown"] {
            assert!(repels(&of(key, "NoSchedule"), &ignore).is_some(), "{key} is no wish of a person");
        }
        assert_eq!(repels(&serde_json::json!(null), &none), None);
        let mut cordoned = node(&serde_json::json!(null), &none);
        assert!(!is_cordoned(&cordoned));
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert!(is_cordoned(&cordoned));
    }
}
