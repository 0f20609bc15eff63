//! Making pods leave a volume: by the Eviction API, with the rights of whoever runs the command (ADR 9). A disruption budget that
//! forbids it is named, and asked again until the command's end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dotgraft_api::DotStatus;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::core::Status;
use kube::{Api, Client, ResourceExt};

use crate::Common;
use crate::client::{Source, connect_impatient, status};
use crate::users;

/// How often the pods are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often one that can't go yet is asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// Which pods are made to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that are there at the first look.
    Present,
    /// These, and later ones that have the volume mounted. New ones that only wait for it are left alone.
    AndMounting,
}

/// How one that is made to leave stands.
#[derive(Debug, Clone, Default)]
struct Asked {
    /// It was taken: the pod ends.
    evicted: bool,
    at: Option<Instant>,
    /// Why it can't go yet.
    obstacle: Option<String>,
}

/// Evicts the pods of one volume.
pub struct Evictor<'a> {
    client: &'a Client,
    impatient: Client,
    source: &'a Source,
    which: Which,
    first: RefCell<bool>,
    asked: RefCell<BTreeMap<String, (String, Asked)>>,
}

impl<'a> Evictor<'a> {
    /// Of a Dot or Branch. Asks first whether this user may evict pods at all, so that nothing is begun in vain.
    ///
    /// # Errors
    /// If not, or if the API server can't be asked.
    pub async fn new(common: &Common, client: &'a Client, source: &'a Source, which: Which) -> Result<Self> {
        let attributes = ResourceAttributes {
            namespace: Some(client.default_namespace().to_owned()),
            verb: Some("create".into()),
            resource: Some("pods".into()),
            subresource: Some("eviction".into()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
        if !answer.status.is_some_and(|s| s.allowed) {
            bail!("--evict needs the right to create pods/eviction in namespace {}; nothing was done", client.default_namespace());
        }
        let impatient = connect_impatient(common).await?;
        let me = Self { client, impatient, source, which, first: RefCell::new(true), asked: RefCell::default() };
        me.pods(&me.status().await?).await.context("--evict looks for the volume's pods; nothing was done")?;
        Ok(me)
    }

    /// Those on the owner's node: others don't have the volume mounted.
    async fn pods(&self, dot: &DotStatus) -> Result<Vec<Pod>> {
        let Some(owner) = &dot.owner else { return Ok(Vec::new()) };
        let there = ListParams::default().fields(&format!("spec.nodeName={owner}"));
        Ok(Api::<Pod>::default_namespaced(self.client.clone()).list(&there).await?.items)
    }

    /// The Dot's or Branch's status.
    ///
    /// # Errors
    /// If the API server can't be asked.
    pub async fn status(&self) -> Result<DotStatus> {
        status(self.client, self.source).await
    }

    /// Evicts as long as it is polled, whenever `now` says that it is time; ends only with an error.
    ///
    /// # Errors
    /// If the API server refuses something for good.
    pub async fn run<F: Future<Output = Result<bool>>>(&self, now: impl Fn() -> F) -> Result<std::convert::Infallible> {
        loop {
            if now().await? {
                self.turn().await?;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn turn(&self) -> Result<()> {
        let status = self.status().await?;
        let pods = self.pods(&status).await?;
        let first = self.first.replace(false);
        for pod in pods.iter().filter(|p| is_to_leave(p, &status, first, self.which)) {
            self.asked.borrow_mut().entry(pod.uid().unwrap_or_default()).or_insert_with(|| (pod.name_any(), Asked::default()));
        }
        // Who is gone is in nobody's way.
        self.asked.borrow_mut().retain(|uid, _| pods.iter().any(|p| p.metadata.uid.as_ref() == Some(uid)));
        for pod in &pods {
            let asked = self.asked.borrow().get(&pod.uid().unwrap_or_default()).map(|(_, a)| a.clone());
            let due = |a: &Asked| !a.evicted && a.at.is_none_or(|at| at.elapsed() >= AGAIN);
            if pod.metadata.deletion_timestamp.is_none() && asked.as_ref().is_some_and(due) {
                self.ask(pod).await?;
            }
        }
        Ok(())
    }

    async fn ask(&self, pod: &Pod) -> Result<()> {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        let obstacle = match evict(&self.impatient, &name, &uid).await {
            Ok(()) => None,
            Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => return Ok(()), // not that pod any more
            Err(kube::Error::Api(s)) if s.code == 403 => bail!("pod/{name}: {}", s.message),
            Err(kube::Error::Api(s)) => Some(obstacle(&s)),
            Err(e) => return Err(e.into()),
        };
        let mut all = self.asked.borrow_mut();
        let Some((_, asked)) = all.get_mut(&uid) else { return Ok(()) };
        match &obstacle {
            Some(why) if asked.obstacle.as_ref() != Some(why) => eprintln!("pod/{name} can't be evicted yet: {why}"),
            Some(_) => {}
            None => eprintln!("pod/{name} evicted; {}", successor(pod)),
        }
        *asked = Asked { evicted: obstacle.is_none(), at: Some(Instant::now()), obstacle };
        Ok(())
    }

    /// Who can't be evicted yet, with the reason; empty if there is nobody.
    pub fn obstacles(&self) -> String {
        let all = self.asked.borrow();
        let lines = all.values().filter_map(|(name, a)| Some(format!("; pod/{name} can't be evicted: {}", a.obstacle.as_ref()?)));
        lines.collect()
    }
}

/// Of this very pod, not of one that has its name by now.
async fn evict(client: &Client, name: &str, uid: &str) -> kube::Result<()> {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
    let eviction = Eviction {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        delete_options: Some(DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() }),
    };
    let pods = Api::<Pod>::default_namespaced(client.clone());
    pods.create_subresource::<_, serde_json::Value>("eviction", name, &PostParams::default(), &eviction).await.map(drop)
}

/// The API server's words; the cause names the disruption budget.
fn obstacle(status: &Status) -> String {
    let causes = status.details.iter().flat_map(|d| &d.causes).map(|c| c.message.trim().to_owned()).filter(|m| !m.is_empty());
    let mut text = vec![status.message.trim().to_owned()];
    text.extend(causes);
    text.join(" ")
}

fn successor(pod: &Pod) -> String {
    match pod.owner_references().iter().find(|o| o.controller == Some(true)) {
        Some(owner) => format!("{}/{} makes another", owner.kind, owner.name),
        None => "nothing makes another: it has no controller".to_owned(),
    }
}

/// Whether it is to be evicted, or is leaving by itself: on the owner's node, with one of the volume's claims.
fn is_to_leave(pod: &Pod, dot: &DotStatus, first: bool, which: Which) -> bool {
    (first || which == Which::AndMounting && has_started(pod)) && users::has(pod, dot)
}

/// A container of it has run, so its volumes are mounted.
fn has_started(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let lists = [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
    let runs = |c: &ContainerStatus| {
        let (now, before) = (c.state.clone().unwrap_or_default(), c.last_state.clone().unwrap_or_default());
        now.running.is_some() || now.terminated.is_some() || before.terminated.is_some()
    };
    lists.into_iter().flatten().flatten().any(|c| runs(&c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(node: &str, claim: &str, status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "status": status,
            "spec": {"nodeName": node, "containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}}))
        .expect("a pod")
    }

    fn dot() -> DotStatus {
        DotStatus { owner: Some("n1".into()), claims: vec!["data".into(), "p-scratch".into()], ..DotStatus::default() }
    }

    fn running() -> Value {
        json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "state": {"running": {}}}]})
    }

    #[test]
    fn only_pods_with_the_volume_on_its_node_leave() {
        let leaves = |p: &Pod| is_to_leave(p, &dot(), true, Which::AndMounting);
        assert!(leaves(&pod("n1", "data", &running())));
        assert!(leaves(&pod("n1", "data", &json!({"phase": "Pending"}))), "it may be about to mount it");
        assert!(!leaves(&pod("n2", "data", &running())), "it can't have it");
        assert!(!leaves(&pod("n1", "other", &running())));
        assert!(!leaves(&pod("n1", "data", &json!({"phase": "Succeeded"}))));
        let mut ephemeral = pod("n1", "x", &running());
        let volume = json!([{"name": "scratch", "ephemeral": {}}]);
        ephemeral.spec.as_mut().expect("a spec").volumes = serde_json::from_value(volume).expect("volumes");
        assert!(leaves(&ephemeral));
    }

    #[test]
    fn a_new_pod_that_only_waits_for_the_volume_is_left_alone() {
        let later = |p: &Pod, which| is_to_leave(p, &dot(), false, which);
        let waiting = pod(
            "n1",
            "data",
            &json!({"phase": "Pending", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 0,
            "image": "", "imageID": "", "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
        );
        assert!(!later(&waiting, Which::AndMounting));
        let init = pod(
            "n1",
            "data",
            &json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "ready": false, "restartCount": 0,
            "image": "", "imageID": "", "state": {"running": {}}}]}),
        );
        assert!(later(&init, Which::AndMounting), "it has the volume mounted though its phase is Pending");
        assert!(later(&pod("n1", "data", &running()), Which::AndMounting));
        assert!(!later(&pod("n1", "data", &running()), Which::Present), "after a move it is where it should be, or nowhere else");
    }

    #[test]
    fn what_forbids_an_eviction_is_named() {
        let status: Status = serde_json::from_value(json!({"message": "Cannot evict pod as it would violate the pod's disruption budget.",
            "reason": "TooManyRequests", "code": 429, "details": {"causes": [
                {"reason": "DisruptionBudget", "message": "The disruption budget shop needs 1 healthy pods and has 1 currently"}]}}))
        .expect("a status");
        let said = obstacle(&status);
        assert!(said.contains("budget. The disruption budget shop needs 1"), "{said}");
    }
}
