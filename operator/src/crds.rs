//! Our CRDs in the cluster (csi.md §2, "CRDs only go forward"): the operator applies those that it was built with where the cluster's
//! are older or missing, and never puts an older one in the place of a newer. Until the cluster has all that this program needs,
//! it controls nothing, serves no CSI, and isn't ready: an API server drops the fields that its CRD doesn't know.
//!
//! Not only the leader does it: in a rolling upgrade the old version may lead until the new one is ready. Each write is against what
//! was read, so of two at once one meets a conflict and looks again.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::all_crds;
use dotgraft_api::crds::{Judgement, judge};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

/// The field manager of what is applied here, apart from that of our objects and of whoever installed the CRDs first.
const MANAGER: &str = "dotgraft-crds";
/// How long between two looks while something is amiss.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks after the CRDs; a cheap clone.
#[derive(Clone)]
pub struct Crds {
    api: Api<CustomResourceDefinition>,
    apply: bool,
    trouble: Arc<watch::Sender<Option<String>>>,
}

/// One CRD that stands in the way: why, and what to apply for it.
struct Amiss {
    why: String,
    lift: Option<CustomResourceDefinition>,
}

impl Crds {
    /// `apply`: whether it may apply them.
    pub fn new(client: Client, apply: bool) -> Self {
        let (trouble, _) = watch::channel(Some("the CRDs have not been looked at yet".to_owned()));
        Self { api: Api::all(client), apply, trouble: Arc::new(trouble) }
    }

    /// Why this program isn't ready; `None`: the cluster has all that it needs.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Waits until the cluster has all that this program needs.
    pub async fn ready(&self) {
        // The sender is ours, so it can't be gone.
        let _ = self.trouble.subscribe().wait_for(Option::is_none).await;
    }

    /// Looks, and applies if it may, until nothing is amiss; then waits for ever, as a CRD that was new enough stays so.
    pub async fn run(&self) {
        while let Some(trouble) = self.step().await {
            if self.trouble().as_ref() != Some(&trouble) {
                tracing::warn!("{trouble}");
            }
            self.trouble.send_replace(Some(trouble));
            tokio::time::sleep(PAUSE).await;
        }
        self.trouble.send_replace(None);
        std::future::pending::<()>().await;
    }

    /// `None`: nothing is amiss.
    async fn step(&self) -> Option<String> {
        let all = match self.amiss().await {
            Ok(all) => all,
            Err(error) => return Some(format!("the CRDs can't be read: {error}")),
        };
        let failed = if self.apply { self.lift(&all).await.err() } else { None };
        self.words(&all, failed.as_ref())
    }

    async fn lift(&self, all: &[Amiss]) -> Result<(), kube::Error> {
        for crd in all.iter().filter_map(|a| a.lift.as_ref()) {
            let name = crd.name_any();
            self.api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(crd)).await?;
            tracing::info!(name, version = dotgraft_api::crds::version(crd), "applied the CRD");
        }
        Ok(())
    }

    async fn amiss(&self) -> Result<Vec<Amiss>, kube::Error> {
        let mut all = Vec::new();
        for ours in all_crds() {
            let there = self.api.get_opt(&ours.name_any()).await?;
            all.extend(compare(ours, there.as_ref()));
        }
        Ok(all)
    }

    fn words(&self, all: &[Amiss], failed: Option<&kube::Error>) -> Option<String> {
        if all.is_empty() {
            return None;
        }
        let mut words = all.iter().map(|a| a.why.as_str()).collect::<Vec<_>>().join("; ");
        if let Some(error) = failed {
            words = format!("{words}; applying it failed: {error}");
        } else if !self.apply && all.iter().any(|a| a.lift.is_some()) {
            words += "; --apply-crds is false, so apply it: kubectl apply --server-side --force-conflicts -f crds/";
        }
        Some(words)
    }
}

/// `None`: this one is as it must be.
fn compare(mut ours: CustomResourceDefinition, there: Option<&CustomResourceDefinition>) -> Option<Amiss> {
    match judge(&ours, there) {
        Judgement::Good => None,
        Judgement::Unsettled(why) => Some(Amiss { why, lift: None }),
        Judgement::Old(old) => {
            // Against what was read: a newer one that comes between is a conflict, not overwritten.
            ours.metadata.resource_version = there.and_then(|t| t.metadata.resource_version.clone());
            Some(Amiss { why: old.to_string(), lift: Some(ours) })
        }
    }
}

#[cfg(test)]
mod tests {
    use dotgraft_api::crds::VERSION;

    use super::*;

    fn served(version: &str) -> CustomResourceDefinition {
        let mut crd = all_crds().remove(0);
        crd.metadata.annotations.get_or_insert_default().insert(VERSION.into(), version.into());
        crd.metadata.resource_version = Some("77".into());
        crd.status = serde_json::from_value(serde_json::json!({"conditions": [{"type": "Established", "status": "True"}]})).unwrap();
        crd
    }

    #[test]
    fn an_older_crd_is_lifted_against_what_was_read_and_a_newer_one_never_touched() {
        let ours = || all_crds().remove(0);
        let amiss = compare(ours(), Some(&served("0"))).unwrap();
        let lift = amiss.lift.unwrap();
        assert_eq!(lift.metadata.resource_version.as_deref(), Some("77"));
        assert!(lift.status.is_none() && dotgraft_api::crds::version(&lift) > 0);
        assert!(compare(ours(), Some(&served("999"))).is_none());
        let missing = compare(ours(), None).unwrap();
        assert!(missing.why.contains("is missing") && missing.lift.unwrap().metadata.resource_version.is_none());
    }

    #[tokio::test]
    async fn whoever_must_not_apply_says_what_to_do() {
        let (service, _handle) = tower_test::mock::pair::<http::Request<kube::client::Body>, http::Response<kube::client::Body>>();
        let client = Client::new(service, "default");
        let amiss = || vec![compare(all_crds().remove(0), None).unwrap()];
        let off = Crds::new(client.clone(), false).words(&amiss(), None).unwrap();
        assert!(off.contains("dots.dotgraft.dev is missing") && off.contains("kubectl apply --server-side"), "{off}");
        let on = Crds::new(client, true);
        let failed = kube::Error::LinesCodecMaxLineLengthExceeded;
        assert!(on.words(&amiss(), Some(&failed)).unwrap().contains("applying it failed"));
        assert!(!on.words(&amiss(), None).unwrap().contains("kubectl apply"));
        assert_eq!(on.words(&[], None), None);
    }
}
