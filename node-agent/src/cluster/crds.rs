//! Whether the cluster's CRDs are as new as this agent needs (csi.md §2). The operator applies them; an agent only looks, once at its
//! start. With an older one it waits, not ready: the API server would drop fields that the agent writes. Pods keep their mounts
//! meanwhile. An API server that doesn't answer keeps nothing waiting, as an agent must start without one.

use std::time::Duration;

use dotgraft_api::all_crds;
use dotgraft_api::crds::{Judgement, judge};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, ResourceExt};

use super::{ClusterError, timed};
use crate::readiness::Readiness;

/// The kinds that an agent reads and writes.
const NEEDED: [&str; 3] = ["filesystems", "nodepools", "replicas"];
/// How long between two looks.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });
/// What `/readyz` calls it.
const WHAT: &str = "CRDs";

/// Waits while the cluster has CRDs that are too old. Returns when they are new enough, or when the API server doesn't say; then
/// it goes on looking in the background, and the agent isn't ready until they are.
pub async fn settled(client: &Client, ready: &Readiness) {
    let mut said = String::new();
    loop {
        match amiss(client).await {
            Ok(None) => return ready.done(WHAT),
            Ok(Some(why)) => say(ready, &mut said, why),
            Err(e) => {
                say(ready, &mut said, unreadable(&e));
                let (client, ready) = (client.clone(), ready.clone());
                tokio::spawn(async move { in_background(client, ready, said).await });
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn in_background(client: Client, ready: Readiness, mut said: String) {
    loop {
        tokio::time::sleep(PAUSE).await;
        match amiss(&client).await {
            Ok(None) => return ready.done(WHAT),
            Ok(Some(why)) => say(&ready, &mut said, why),
            Err(e) => say(&ready, &mut said, unreadable(&e)),
        }
    }
}

fn say(ready: &Readiness, said: &mut String, why: String) {
    if *said != why {
        tracing::warn!("{why}");
    }
    ready.wait(WHAT, &why);
    *said = why;
}

fn unreadable(error: &ClusterError) -> String {
    format!("can't be read: {error}")
}

async fn amiss(client: &Client) -> Result<Option<String>, ClusterError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut all = Vec::new();
    for ours in all_crds().iter().filter(|crd| NEEDED.contains(&crd.spec.names.plural.as_str())) {
        match judge(ours, timed(api.get_opt(&ours.name_any())).await?.as_ref()) {
            Judgement::Good => {}
            Judgement::Unsettled(why) => all.push(why),
            Judgement::Old(old) => all.push(format!("{old}; the operator applies it, or: kubectl apply --server-side -f crds/")),
        }
    }
    Ok(if all.is_empty() { None } else { Some(all.join("; ")) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use dotgraft_api::crds::VERSION;
    use serde_json::{Value, json};

    use super::super::fake::{Answer, Asked, client};
    use super::*;

    /// A CRD as the API server shows it, `behind` versions older than ours.
    fn shown(asked: &Asked, behind: u32) -> Answer {
        let name = asked.path.rsplit('/').next().unwrap_or_default().to_owned();
        let crd = all_crds().into_iter().find(|c| c.name_any() == name).expect("one of ours");
        let version = dotgraft_api::crds::version(&crd).saturating_sub(behind);
        let mut object: Value = serde_json::to_value(crd).unwrap();
        object["metadata"]["annotations"][VERSION] = version.to_string().into();
        object["status"] = json!({"conditions": [{"type": "Established", "status": "True", "reason": "", "message": ""}]});
        Answer::Json(200, object)
    }

    #[tokio::test]
    async fn an_older_crd_holds_the_agent_up_until_it_is_lifted() {
        let looks = Arc::new(AtomicU32::new(0));
        let count = looks.clone();
        let server = move |asked: Asked| {
            let early = count.fetch_add(1, Ordering::SeqCst) < 9;
            let behind = u32::from(early && asked.path.ends_with("replicas.dotgraft.dev"));
            shown(&asked, behind)
        };
        let ready = Readiness::default();
        let (waiting, api) = (ready.clone(), client(server));
        let start = std::time::Instant::now();
        let wait = tokio::spawn(async move { settled(&api, &waiting).await });
        tokio::time::sleep(PAUSE / 2).await;
        let said = ready.troubles().join("\n");
        assert!(said.contains("replicas.dotgraft.dev has version") && said.contains("kubectl apply"), "{said}");
        assert!(!said.contains("filesystems"), "{said}");
        wait.await.unwrap();
        assert!(ready.troubles().is_empty() && start.elapsed() >= PAUSE * 3);
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_holds_up_nothing_but_readiness() {
        let looks = Arc::new(AtomicU32::new(0));
        let count = looks.clone();
        let server = move |asked: Asked| if count.fetch_add(1, Ordering::SeqCst) < 2 { Answer::Broken } else { shown(&asked, 0) };
        let ready = Readiness::default();
        settled(&client(server), &ready).await;
        assert!(ready.troubles().join("\n").contains("can't be read"), "{:?}", ready.troubles());
        let cleared = async {
            while !ready.troubles().is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), cleared).await.expect("ready once the API server answers");
    }
}
