//! CRDs only go forward: the operator lifts older ones, leaves newer ones alone, and no program works with one that is too old.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::test::{STEP, text};
use crate::harness::{Case, Test};
use crate::rig::process::ENDS;
use crate::rig::programs::{OPERATOR, http_get};
use crate::rig::source_root;
use crate::rig::wait::{eventually, throughout};

/// Where a CRD's version stands.
const VERSION: &str = "dotgraft.dev/crd-version";
/// A field that an older CRD of Dots lacks.
const FIELD: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/placement/properties/nodeSelector";

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("crds-lifted", "older CRDs hold up operator and agents until the operator has lifted them", lifted),
        Case::new("crds-newer", "the operator leaves a newer CRD alone and works with it", newer),
        Case::new("crds-off", "an operator that must not apply CRDs says which is too old and what to do", off),
        Case::new("crds-rights", "the operator may make CRDs of ours only, and delete none", rights),
    ]
}

/// Politely: it gives its Lease back, so that the next one leads at once.
fn stop_operator(t: &Test) -> Result<()> {
    t.rig.processes.end(OPERATOR, Signal::TERM, ENDS).map(drop)
}

async fn crd(t: &Test, plural: &str) -> Result<Value> {
    Ok(serde_json::from_str(
        &t.kube().kubectl(&["get", "crd", &format!("{plural}.dotgraft.dev"), "-o", "json", "--show-managed-fields"]).await?,
    )?)
}

/// Makes a CRD what another version would have been: another number, and without a field.
async fn alter(t: &Test, plural: &str, version: &str) -> Result<()> {
    let mut patch = vec![json!({"op": "replace", "path": "/metadata/annotations/dotgraft.dev~1crd-version", "value": version})];
    if plural == "dots" {
        patch.push(json!({"op": "remove", "path": FIELD}));
    }
    let patch = Value::from(patch).to_string();
    t.kube().kubectl(&["patch", "crd", &format!("{plural}.dotgraft.dev"), "--type=json", "-p", &patch]).await?;
    Ok(())
}

async fn as_shipped(t: &Test, plural: &str, version: &str) -> Result<()> {
    let crd = crd(t, plural).await?;
    ensure!(crd["metadata"]["annotations"][VERSION] == *version, "{plural} has {}", crd["metadata"]["annotations"]);
    ensure!(plural != "dots" || crd.pointer(FIELD).is_some(), "the field is missing");
    Ok(())
}

async fn apply_shipped(t: &Test, plural: &str) -> Result<()> {
    let file = source_root().join(format!("crds/dotgraft.dev.{plural}.yaml"));
    t.kube().kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.to_string_lossy()]).await?;
    Ok(())
}

/// Waits until `/readyz` says no, with all of these words.
async fn refuses(address: &str, words: &[&str]) -> Result<()> {
    eventually(&format!("/readyz to say {}", words.join(", ")), STEP, || async {
        let (status, body) = http_get(address, "/readyz").await?;
        ensure!(status == 503 && words.iter().all(|w| body.contains(w)), "{status}: {body}");
        Ok(())
    })
    .await
}

async fn lifted(t: Arc<Test>) -> Result<()> {
    let shipped = [version_of(&t, "dots").await?, version_of(&t, "replicas").await?];
    let fs_id = t.dot("d", "n1").await?;
    stop_operator(&t)?;
    alter(&t, "dots", "0").await?;
    alter(&t, "replicas", "0").await?;
    t.rig.kill9("n1")?;
    t.rig.start("n1")?;
    refuses(&t.rig.node("n1")?.http, &["replicas.dotgraft.dev has version 0", "kubectl apply"]).await?;
    ensure!(t.local("n1")?.status(&fs_id).await.is_err(), "the agent works with a CRD that is too old");
    t.rig.start(OPERATOR)?;
    t.rig.ready(STEP).await?;
    for (plural, version) in ["dots", "replicas"].into_iter().zip(&shipped) {
        as_shipped(&t, plural, version).await?;
        let managers = crd(&t, plural).await?["metadata"]["managedFields"].to_string();
        ensure!(managers.contains("\"dotgraft-crds\""), "not by its own field manager: {managers}");
    }
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"works")?;
    Ok(())
}

async fn version_of(t: &Test, plural: &str) -> Result<String> {
    text(&crd(t, plural).await?, "/metadata/annotations/dotgraft.dev~1crd-version")
}

async fn newer(t: Arc<Test>) -> Result<()> {
    stop_operator(&t)?;
    alter(&t, "dots", "999").await?;
    t.rig.start(OPERATOR)?;
    t.rig.ready(STEP).await?;
    t.dot("d", "n1").await?;
    throughout("the newer CRD staying", Duration::from_secs(2), || async {
        let crd = crd(&t, "dots").await?;
        ensure!(crd["metadata"]["annotations"][VERSION] == "999" && crd.pointer(FIELD).is_none(), "it was changed");
        Ok(())
    })
    .await?;
    apply_shipped(&t, "dots").await
}

async fn off(t: Arc<Test>) -> Result<()> {
    let shipped = version_of(&t, "dots").await?;
    stop_operator(&t)?;
    alter(&t, "dots", "0").await?;
    let mut args = t.rig.processes.args(OPERATOR)?;
    args.push("--apply-crds=false".into());
    t.rig.processes.set_args(OPERATOR, args)?;
    t.rig.start(OPERATOR)?;
    let words = ["dots.dotgraft.dev has version 0", "--apply-crds is false", "kubectl apply --server-side"];
    refuses(&t.rig.operator_http, &words).await?;
    t.create("Dot", "d", &json!({"capacity": "64Mi", "placement": {"node": "n1"}})).await?;
    throughout("nothing being lifted or done", Duration::from_secs(2), || async {
        ensure!(as_shipped(&t, "dots", &shipped).await.is_err(), "it was lifted");
        ensure!(t.object("Dot", "d").await?.pointer("/status/conditions").is_none(), "the operator works with a CRD that is too old");
        Ok(())
    })
    .await?;
    apply_shipped(&t, "dots").await?;
    t.rig.ready(STEP).await?;
    t.ready("Dot", "d").await?;
    // Here, as the rig would kill it, and the next one wait for the Lease.
    stop_operator(&t)?;
    t.rig.processes.restore(OPERATOR)?;
    t.rig.start(OPERATOR)
}

async fn rights(t: Arc<Test>) -> Result<()> {
    let operator = t.rig.kube_as(OPERATOR).await?;
    let other = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: things.example.com}\nspec:\n  \
                 group: example.com\n  scope: Cluster\n  names: {kind: Thing, plural: things}\n  versions:\n  - {name: v1, served: true, \
                 storage: true, schema: {openAPIV3Schema: {type: object}}}\n";
    match operator.kubectl_with_input(&["create", "--validate=false", "-f", "-"], other).await {
        Err(e) if format!("{e:#}").contains("CRDs of dotgraft.dev only") => {}
        answer => bail!("a CRD of another group: {answer:?}"),
    }
    for args in [["delete", "crd", "dots.dotgraft.dev"], ["annotate", "crd/volumes.example.com", "a=b"]] {
        match operator.kubectl(&args).await {
            Err(e) if format!("{e:#}").contains("orbidden") => {}
            answer => bail!("kubectl {}: {answer:?}", args.join(" ")),
        }
    }
    Ok(())
}
