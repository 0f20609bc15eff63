//! A node that was broken into, with its own good key, sends what another node owns (security.md: "a compromised node can't write
//! another node's objects"; failures.md rows 13, 14).

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use dotgraft_proto::agent::v1 as wire;
use serde_json::{Value, json};

use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::peer::{Peer, stolen_from};
use crate::rig::wait::eventually;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let title = "a node that isn't the owner offers a commit, with a raised epoch too: NotOwner, nothing has changed; a new owner is heard";
    vec![Case::new("14-not-owner", title, not_owner).kubelets()]
}

struct Target {
    t: Arc<Test>,
    fs_id: String,
    job: String,
    base: String,
}

impl Target {
    /// What n2 says to the key of `node`, which offers a commit of its own on top of what is there.
    async fn refusal(&self, node: &str, epoch: u64) -> Result<String> {
        let peer = Peer::connect(&self.t.rig.node("n2")?.listen, &stolen_from(&self.t.rig, node)?).await?;
        let id = || uuid::Uuid::new_v4().to_string();
        let target = wire::Version { id: id(), parent: self.base.clone(), time_ms: 1, epoch, format: 1, ..wire::Version::default() };
        let offer = wire::Offer {
            fs_id: self.fs_id.clone(),
            job_uid: self.job.clone(),
            run_id: id(),
            epoch,
            base: self.base.clone(),
            target: Some(target),
            stream_version: 1,
            kernel_release: "6.1".into(),
            ..wire::Offer::default()
        };
        match peer.offer(offer).await {
            Ok(_) => bail!("n2 takes an offer of {node}, which owns nothing of it"),
            Err(e) => Ok(format!("{e:#}")),
        }
    }

    /// Epoch and commits of n2's copy, as its agent says.
    async fn state(&self) -> Result<Value> {
        let status = self.t.replica(&self.fs_id, "n2").await?["status"].clone();
        Ok(json!([status["epoch"], status["head"], status["recentCommits"], status["conditions"]]))
    }
}

async fn not_owner(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let first = t.commit("c1", "d").await?;
    let spec = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "schedule": {"onCommit": true}});
    t.create("ReplicationJob", "j", &spec).await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", None).await?;
    let job = text(&t.object("ReplicationJob", "j").await?, "/metadata/uid")?;
    let target = Target { t: t.clone(), fs_id: fs_id.clone(), job: job.clone(), base: first };
    let before = target.state().await?;
    for epoch in [1, 1_000] {
        let said = target.refusal("n3", epoch).await?;
        ensure!(said.contains("NotOwner") && said.contains("n3") && said.contains("n1"), "another reason: {said}");
    }
    let said = target.refusal("n1", 1_000).await?;
    ensure!(said.contains("NotOwner") && said.contains("epoch 1000"), "the owner's key raises an epoch: {said}");
    let peer = Peer::connect(&t.rig.node("n2")?.listen, &stolen_from(&t.rig, "n3")?).await?;
    let listed = peer.versions(&fs_id, &job).await.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(listed.contains("n3"), "n3, without a copy, was shown the commits, or something else: {listed:?}");
    ensure!(target.state().await? == before, "n2's copy has changed from {before} to {}", target.state().await?);
    // n3 becomes the owner: from now on it is heard, and n1 is not.
    t.kube().patch("Dot", &t.namespace, "d", "", &json!({"spec": {"placement": {"node": "n3"}}})).await?;
    eventually("n3 to own it", STEP, || async {
        let owner = text(&t.object("Filesystem", &fs_id).await?, "/status/authority/owner/node")?;
        ensure!(owner == "n3", "{owner} owns it");
        Ok(())
    })
    .await?;
    let second = t.commit("c2", "d").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await?;
    let said = target.refusal("n1", 2).await?;
    ensure!(said.contains("NotOwner") && said.contains("n3"), "another reason: {said}");
    Ok(())
}
