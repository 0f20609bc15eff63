//! Which pods use a volume, by their names: messages of agents name processes and paths on the node, in which a pod is its UID.

use std::cell::RefCell;
use std::time::Duration;

use dotgraft_api::DotStatus;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::client::{Source, status};

/// In a path of the kubelet, before the UID of a pod.
const PODS: &str = "/pods/";
/// How often it is looked who they are.
const EVERY: Duration = Duration::from_secs(2);

/// The pods of the namespace, and those of them that have the volume, as last seen.
#[derive(Debug, Default)]
pub struct Users(RefCell<Vec<Pod>>, RefCell<Vec<String>>);

impl Users {
    /// Keeps looking as long as it is polled. Who may not list pods reads what the agent said.
    pub async fn watch(&self, client: &Client, source: &Source) -> std::convert::Infallible {
        loop {
            let pods = Api::<Pod>::default_namespaced(client.clone()).list(&ListParams::default()).await;
            if let (Ok(pods), Ok(status)) = (pods, status(client, source).await) {
                self.see(pods.items, &status);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn see(&self, pods: Vec<Pod>, dot: &DotStatus) {
        *self.1.borrow_mut() = pods.iter().filter(|p| has(p, dot)).map(ResourceExt::name_any).collect();
        *self.0.borrow_mut() = pods;
    }

    /// Names of those that have the volume on its owner's node.
    pub fn names(&self) -> Vec<String> {
        self.1.borrow().clone()
    }

    /// The text with the names of pods in place of processes and paths of theirs.
    pub fn named(&self, text: &str) -> String {
        named(text, &self.0.borrow(), None)
    }
}

/// The pods that somebody may list, to name those that texts speak of; none where no text does, or who asks may not.
pub async fn spoken_of(api: &Api<Pod>, texts: impl Iterator<Item = &str>) -> Vec<Pod> {
    let mut texts = texts;
    if !texts.any(|text| text.contains(PODS)) {
        return Vec::new();
    }
    api.list(&ListParams::default()).await.map(|pods| pods.items).unwrap_or_default()
}

/// On the owner's node, with one of the volume's claims, and not over.
pub fn has(pod: &Pod, dot: &DotStatus) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let there = pod.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_some_and(|n| Some(n) == dot.owner.as_ref());
    there && !matches!(phase, "Succeeded" | "Failed") && claims_of(pod).any(|c| dot.claims.contains(&c))
}

/// Names of its PVCs; that of an ephemeral volume is made of the pod's and the volume's.
fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), v.name)),
        (None, None) => None,
    })
}

/// `sleep (pid 7) at /var/lib/kubelet/pods/UID/volumes/…` → `pod web-0`; `pod shop/web-0` of another namespace than `here`, which is that of the
/// object that says so.
pub fn named(text: &str, pods: &[Pod], here: Option<&str>) -> String {
    let each = |text: &str, between: &str, name: &dyn Fn(&str) -> String| {
        let mut parts: Vec<String> = text.split(between).map(name).collect();
        parts.dedup();
        parts.join(between)
    };
    let one = |part: &str| of_pod(part, pods, here).unwrap_or_else(|| part.to_owned());
    each(text, "; ", &|part| each(part, ", ", &one))
}

/// One of several holders; `None`: no path of one of these pods is in it.
fn of_pod(part: &str, pods: &[Pod], here: Option<&str>) -> Option<String> {
    let (before, after) = part.split_once(PODS)?;
    let uid = after.split('/').next()?;
    let pod = pods.iter().find(|p| p.metadata.uid.as_deref() == Some(uid))?;
    let elsewhere = pod.namespace().filter(|n| here.is_some_and(|here| here != n));
    let pod = elsewhere.map_or_else(|| pod.name_any(), |namespace| format!("{namespace}/{}", pod.name_any()));
    let said = before.rsplit_once(' ').map_or("", |(said, _)| said);
    let Some(who) = said.strip_suffix("at").map(str::trim_end) else { return Some(joined(said, &format!("pod {pod}"))) };
    Some(match who.rsplit_once(" (pid ") {
        Some((process, _)) => joined(process.rsplit_once(' ').map_or("", |(said, _)| said), &format!("pod {pod}")),
        None => joined(who, &format!("of pod {pod}")),
    })
}

fn joined(before: &str, after: &str) -> String {
    if before.is_empty() { after.to_owned() } else { format!("{before} {after}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UID: &str = "0f5e4d1c-1111-4222-8333-444455556666";

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "uid": UID}, "status": {"phase": "Running"},
            "spec": {"nodeName": "n1", "containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}))
        .unwrap()
    }

    #[test]
    fn a_process_and_a_path_of_a_pod_become_its_name() {
        let path = format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pvc/mount");
        let is = |text: &str, becomes: &str| assert_eq!(named(text, &[pod()], None), becomes, "{text}");
        is(&format!("mounted by {path} on node n1; {path} on node n1"), "mounted by pod web-0; pod web-0");
        is(&format!("postgres (pid 71) at {path}"), "pod web-0");
        is(&format!("from node `n1` to `n2`: sh (pid 7) at {path}"), "from node `n1` to `n2`: pod web-0");
        is(&format!("a mount at {path}"), "a mount of pod web-0");
        is(&format!("sh (pid 7) at {path}, sh (pid 9) at {path}, vim (pid 3) at /mnt/x"), "pod web-0, vim (pid 3) at /mnt/x");
        is("sh (pid 7) at /var/lib/kubelet/pods/of-another/mount", "sh (pid 7) at /var/lib/kubelet/pods/of-another/mount");
        is("nothing of the kind", "nothing of the kind");
    }

    #[test]
    fn a_pod_of_another_namespace_has_that_in_its_name() {
        let mut pod = pod();
        pod.metadata.namespace = Some("shop".into());
        let text = format!("sh (pid 7) at /var/lib/kubelet/pods/{UID}/volumes/x");
        assert_eq!(named(&text, std::slice::from_ref(&pod), Some("shop")), "pod web-0");
        assert_eq!(named(&text, &[pod], Some("other")), "pod shop/web-0");
    }

    #[test]
    fn those_with_the_volume_on_its_node_have_it() {
        let dot = |owner: &str| DotStatus { owner: Some(owner.into()), claims: vec!["data".into()], ..DotStatus::default() };
        assert!(has(&pod(), &dot("n1")) && !has(&pod(), &dot("n2")));
        let users = Users::default();
        users.see(vec![pod()], &dot("n1"));
        assert_eq!(users.names(), ["web-0"]);
    }
}
