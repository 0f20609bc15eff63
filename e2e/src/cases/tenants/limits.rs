//! What a tenant may take: of a PVC's volume what the PVC says, of all together what the namespace's annotation says.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1 as csi;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::wait::{eventually, throughout};
use crate::steps::csi::refused;
use crate::steps::sidecar::{SIZE, Sidecar};
use crate::steps::tenant::Tenant;

/// How long what is refused has to happen all the same.
const SPAN: Duration = Duration::from_secs(5);
const MI: u64 = 1 << 20;

/// A volume as the provisioner makes it for the PVC `data` of b.
async fn volume_of_pvc(t: &Test, b: &Tenant) -> Result<(Sidecar, String)> {
    let sidecar = Sidecar::new(t).await?;
    let mut request = sidecar.request("data", "n1");
    request.name = format!("pvc-{}-data", b.namespace);
    request.parameters.insert("csi.storage.k8s.io/pvc/namespace".into(), b.namespace.clone());
    let made = sidecar.volume(&request).await?;
    Ok((sidecar, made.volume_id))
}

async fn may_not_patch(b: &Tenant, name: &str, patch: &Value, words: &str) -> Result<()> {
    let answer = b.kubectl(&["patch", "dot", name, "--type=merge", "-p", &patch.to_string()]).await;
    let why = answer.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(why.contains(words), "to patch Dot {name} with {patch}: {why:?}");
    Ok(())
}

/// `tenants-pvc-limits`.
pub async fn of_pvc(t: Arc<Test>) -> Result<()> {
    let b = Tenant::come(&t, "b").await?;
    limit(&t, &b, "1Gi").await?;
    let (sidecar, id) = volume_of_pvc(&t, &b).await?;
    for round in ["edit", "everything"] {
        for spec in [json!({"capacity": "1Pi"}), json!({"historyLimit": "1Pi"}), json!({"placement": {"replicas": 3}})] {
            may_not_patch(&b, "data", &json!({"spec": spec}), "follow the PVC").await?;
        }
        for name in [json!(null), json!("pvc-other")] {
            may_not_patch(&b, "data", &json!({"metadata": {"annotations": {"dotgraft.dev/csi-name": name}}}), "the verb resize").await?;
        }
        let mut forged = b.object("Dot", "forged", &json!({"capacity": "64Mi", "historyLimit": "1Pi"}));
        forged["metadata"]["annotations"] = json!({"dotgraft.dev/csi-name": "pvc-that-comes"});
        let why = b.kube.create(&b.namespace, &forged).await.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(why.contains("the verb resize"), "to make a Dot that a PVC is to find: {why:?}");
        if round == "edit" {
            b.may_do_everything(&t).await?;
        }
    }
    // Where it is, and what people call it, is the tenant's.
    let move_it = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"placement": {"node": "n2"}}}).to_string();
    b.kubectl(&["patch", "dot", "data", "--type=merge", "-p", &move_it]).await?;
    // And the PVC goes on to be resized.
    let range = csi::CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 };
    let request = csi::ControllerExpandVolumeRequest { volume_id: id.clone(), capacity_range: Some(range), ..Default::default() };
    let grow = async |request: &csi::ControllerExpandVolumeRequest| {
        sidecar.client.clone().controller_expand_volume(request.clone()).await.map(|done| done.into_inner().capacity_bytes)
    };
    let grown = eventually("the volume to grow", STEP, || async { Ok(grow(&request).await?) });
    ensure!(grown.await? == 2 * SIZE);
    // With as much for its history it has all that the namespace may take: it stays as it is, and grows once there is more.
    let range = csi::CapacityRange { required_bytes: 3 * SIZE, limit_bytes: 0 };
    let more = csi::ControllerExpandVolumeRequest { capacity_range: Some(range), ..request };
    refused(grow(&more).await, Code::ResourceExhausted, "dotgraft.dev/capacity-limit")?;
    let dot = b.kube.get("Dot", &b.namespace, "data").await?.context("no Dot")?;
    ensure!(dot["spec"]["capacity"] == "512Mi", "{}", dot["spec"]);
    limit(&t, &b, "2Gi").await?;
    let grown = eventually("the volume to grow with the limit", STEP, || async { Ok(grow(&more).await?) });
    ensure!(grown.await? == 3 * SIZE);
    sidecar.delete(&id).await?;
    b.leave(&t).await
}

async fn limit(t: &Test, b: &Tenant, to: &str) -> Result<()> {
    let annotation = format!("dotgraft.dev/capacity-limit={to}");
    t.kube().kubectl(&["annotate", "namespace", &b.namespace, &annotation, "--overwrite"]).await.map(|_| ())
}

async fn is(b: &Tenant, kind: &str, name: &str, condition: &str) -> Result<()> {
    b.kube.until_condition((kind, &b.namespace, name), (condition, "True", None), STEP).await.map(|_| ())
}

/// What all copies of b may take by now, by what the agents are told.
async fn told(t: &Test, b: &Tenant) -> Result<u64> {
    let all = t.kube().list("Replica", "").await?;
    let of_b = all.iter().map(|r| &r["spec"]["desired"]).filter(|d| d["claim"]["namespace"] == *b.namespace && d["state"] == "Present");
    Ok(of_b.map(|d| d["capacity"].as_u64().unwrap_or(0) + d["historyLimit"].as_u64().unwrap_or(0)).sum())
}

/// `tenants-namespace-limit`.
pub async fn of_namespace(t: Arc<Test>) -> Result<()> {
    let b = Tenant::come(&t, "b").await?;
    limit(&t, &b, "640Mi").await?;
    let answer = b.kubectl(&["annotate", "namespace", &b.namespace, "dotgraft.dev/capacity-limit-"]).await;
    ensure!(answer.is_err(), "the tenant has taken its limit away");
    let spec = json!({"capacity": "96Mi", "historyLimit": "32Mi", "placement": {"node": "n1"}});
    // 128Mi each: of eight at once five fit.
    for n in 0..8 {
        b.create("Dot", &format!("d{n}"), &spec).await?;
    }
    let count = async |condition: &str| -> Result<usize> {
        let has = |d: &Value| {
            let all = d["status"]["conditions"].as_array().cloned().unwrap_or_default();
            all.iter().any(|c| c["type"] == condition && c["status"] == "True")
        };
        Ok(b.kube.list("Dot", &b.namespace).await?.iter().filter(|d| has(d)).count())
    };
    eventually("five to be there, three not", STEP, || async {
        let (ready, over) = (count("Ready").await?, count("CapacityLimit").await?);
        ensure!((ready, over) == (5, 3), "{ready} are ready, {over} over the limit");
        Ok(())
    })
    .await?;
    let mut names = b.kube.names("Dot", &b.namespace, |d| !d["spec"]["fsId"].is_null()).await?;
    let one = names.pop().context("none is there")?;
    // Nor is there room for a Branch, more size, more history, a replica, or a copy by a job.
    b.create("Commit", "c", &json!({"source": {"kind": "Dot", "name": one}})).await?;
    is(&b, "Commit", "c", "Ready").await?;
    b.create("Branch", "branch", &json!({"dot": one, "from": {"commit": "c"}, "capacity": "96Mi", "historyLimit": "32Mi"})).await?;
    is(&b, "Branch", "branch", "CapacityLimit").await?;
    let push = json!({"direction": "Push", "source": {"names": [names[0]]}, "target": {"node": "n2"}});
    b.create("ReplicationJob", "push", &push).await?;
    for spec in [json!({"capacity": "1Pi"}), json!({"capacity": "96Mi", "historyLimit": "1Pi"})] {
        b.kubectl(&["patch", "dot", &one, "--type=merge", "-p", &json!({"spec": spec}).to_string()]).await?;
        is(&b, "Dot", &one, "CapacityLimit").await?;
    }
    let back = json!({"spec": {"capacity": "96Mi", "historyLimit": "32Mi", "placement": {"replicas": 1}}}).to_string();
    b.kubectl(&["patch", "dot", &one, "--type=merge", "-p", &back]).await?;
    throughout("nothing to grow", SPAN, || async {
        let told = told(&t, &b).await?;
        ensure!(told <= 640 * MI, "{told} bytes are given out");
        Ok(())
    })
    .await?;
    is(&b, "Dot", &one, "CapacityLimit").await?;
    let job = b.kube.get("ReplicationJob", &b.namespace, "push").await?.context("no job")?;
    ensure!(job["status"].to_string().contains("CapacityLimit"), "the job doesn't say why: {}", job["status"]);
    // With more room all of it goes on.
    limit(&t, &b, "2Gi").await?;
    is(&b, "Branch", "branch", "Ready").await?;
    eventually("all of it", STEP, || async {
        let told = told(&t, &b).await?;
        ensure!(told == (8 + 1 + 1 + 1) * 128 * MI, "{told} bytes");
        Ok(())
    })
    .await?;
    b.leave(&t).await
}
