//! Signs the agents' certificates: approves or denies each request, tells the peers, then hands the leaf out.
//!
//! Order matters (security.md, "Certificates"): the fingerprint stands in `NodePool.spec` *before* the
//! certificate is published, so an agent never holds a leaf that its peers would refuse. This is also how a
//! `NodePool` comes to be: the signer is the only writer of its address and fingerprints.

pub mod check;

use std::sync::Arc;

use dotgraft_api::NodePool;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use self::check::{Approved, Denial};
use crate::ca;
use crate::context::Ctx;
use crate::error::Error;
use crate::names::{FIELD_MANAGER, LAST_CSR_ANNOTATION, POOL_GROUP_LABEL, SIGNER};

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Done,
    New,
    Approved,
}

fn stage(csr: &CertificateSigningRequest) -> Stage {
    let conditions = || csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if csr.spec.signer_name != SIGNER
        || csr.status.as_ref().is_some_and(|s| s.certificate.as_ref().is_some_and(|c| !c.0.is_empty()))
        || conditions().any(|c| c.type_ == "Denied" || c.type_ == "Failed")
    {
        return Stage::Done;
    }
    if conditions().any(|c| c.type_ == "Approved") { Stage::Approved } else { Stage::New }
}

/// Brings one certificate request to its end.
///
/// # Errors
///
/// The API server refuses or doesn't answer, or there is no CA yet: tried again with backoff.
pub async fn reconcile(csr: Arc<CertificateSigningRequest>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    if stage(&csr) == Stage::Done {
        return Ok(Action::await_change());
    }
    let api: Api<CertificateSigningRequest> = Api::all(ctx.client.clone());
    // The cache may lag behind what we did ourselves a moment ago.
    let Some(csr) = api.get_opt(&csr.name_any()).await? else { return Ok(Action::await_change()) };
    let at = stage(&csr);
    if at == Stage::Done {
        return Ok(Action::await_change());
    }
    match verdict(&csr, &ctx).await? {
        Err(denial) => {
            tracing::warn!(csr = csr.name_any(), %denial, "denied a certificate request");
            ctx.metrics.certificate("denied");
            refuse(&api, csr, at, &denial).await?;
        }
        Ok((approved, node)) => {
            let csr = if at == Stage::New { approve(&api, csr).await? } else { csr };
            issue(&api, csr, approved, &node, &ctx).await?;
            ctx.metrics.certificate("issued");
        }
    }
    Ok(Action::await_change())
}

async fn verdict(csr: &CertificateSigningRequest, ctx: &Ctx) -> Result<Result<(Approved, Node), Denial>, Error> {
    let name = match check::requester_node(csr, &ctx.namespace) {
        Ok(name) => name,
        Err(denial) => return Ok(Err(denial)),
    };
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let node = nodes.get_opt(&name).await?;
    Ok(check::check(csr, &name, node.as_ref()).map(|ok| (ok, node.unwrap_or_default())))
}

fn condition(type_: &str, reason: &str, message: String) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(k8s_openapi::jiff::Timestamp::now())),
        ..CertificateSigningRequestCondition::default()
    }
}

fn with(mut csr: CertificateSigningRequest, c: CertificateSigningRequestCondition) -> CertificateSigningRequest {
    csr.status.get_or_insert_default().conditions.get_or_insert_default().push(c);
    csr
}

async fn approve(api: &Api<CertificateSigningRequest>, csr: CertificateSigningRequest) -> Result<CertificateSigningRequest, Error> {
    let c = condition("Approved", "AgentOfThisNode", "username, node, subject and names agree".into());
    let csr = with(csr, c);
    Ok(api.replace_subresource("approval", &csr.name_any(), &PostParams::default(), &csr).await?)
}

/// Denies; a request that a person has approved against the rules fails instead (the API allows no denial then).
async fn refuse(api: &Api<CertificateSigningRequest>, csr: CertificateSigningRequest, at: Stage, denial: &Denial) -> Result<(), Error> {
    let (type_, subresource) = if at == Stage::New { ("Denied", "approval") } else { ("Failed", "status") };
    let csr = with(csr, condition(type_, "NotAnAgentOfThisNode", denial.to_string()));
    api.replace_subresource(subresource, &csr.name_any(), &PostParams::default(), &csr).await?;
    Ok(())
}

async fn issue(
    api: &Api<CertificateSigningRequest>,
    mut csr: CertificateSigningRequest,
    approved: Approved,
    node: &Node,
    ctx: &Ctx,
) -> Result<(), Error> {
    let ca = ca::ensure(&ctx.client, &ctx.namespace).await?;
    let leaf = ca.sign(&approved.key, approved.params.clone(), approved.life.min(ctx.certificate_life))?;
    write_pool(&csr, &approved, node, &leaf.fingerprint, ctx).await?;
    csr.status.get_or_insert_default().certificate = Some(ByteString(leaf.chain_pem.into_bytes()));
    api.replace_status(&csr.name_any(), &PostParams::default(), &csr).await?;
    tracing::info!(node = approved.node, fingerprint = leaf.fingerprint, "issued a certificate");
    Ok(())
}

/// Newest first, at most two: the one in use stays accepted while the agent changes over. A leaf that was
/// signed for the same request but never published (we crashed between) is replaced, not kept.
fn fingerprints(new: &str, old: &[String], same_request: bool) -> Vec<String> {
    let kept = old.iter().filter(|f| *f != new).skip(usize::from(same_request)).take(1);
    std::iter::once(new.to_owned()).chain(kept.cloned()).collect()
}

async fn write_pool(csr: &CertificateSigningRequest, approved: &Approved, node: &Node, fingerprint: &str, ctx: &Ctx) -> Result<(), Error> {
    let pools: Api<NodePool> = Api::all(ctx.client.clone());
    let old = pools.get_opt(&approved.node).await?;
    let uid = csr.uid().unwrap_or_default();
    let same = old.as_ref().is_some_and(|p| p.annotations().get(LAST_CSR_ANNOTATION) == Some(&uid));
    let known = old.map(|p| p.spec.fingerprints).unwrap_or_default();
    let group = node.labels().get(POOL_GROUP_LABEL).map_or("default", String::as_str);
    let patch = serde_json::json!({
        "apiVersion": "dotgraft.dev/v1alpha1",
        "kind": "NodePool",
        "metadata": { "name": approved.node, "annotations": { LAST_CSR_ANNOTATION: uid } },
        "spec": {
            "node": approved.node,
            "poolGroup": group,
            "address": approved.address.to_string(),
            "fingerprints": fingerprints(fingerprint, &known, same),
        },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    pools.patch(&approved.node, &params, &Patch::Apply(&patch)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_fingerprints_at_most_newest_first() {
        let old = ["b".to_owned(), "a".to_owned()];
        assert_eq!(fingerprints("c", &old, false), ["c", "b"]);
        assert_eq!(fingerprints("c", &[], false), ["c"]);
    }

    #[test]
    fn a_leaf_that_was_never_published_does_not_push_out_the_one_in_use() {
        let old = ["unpublished".to_owned(), "in-use".to_owned()];
        assert_eq!(fingerprints("c", &old, true), ["c", "in-use"]);
        assert_eq!(fingerprints("c", &old[..1], true), ["c"]);
    }

    #[test]
    fn requests_of_other_signers_and_finished_ones_are_left_alone() {
        let mut csr = CertificateSigningRequest::default();
        csr.spec.signer_name = "kubernetes.io/kube-apiserver-client".into();
        assert_eq!(stage(&csr), Stage::Done);
        csr.spec.signer_name = SIGNER.into();
        assert_eq!(stage(&csr), Stage::New);
        let approved = with(csr.clone(), condition("Approved", "x", String::new()));
        assert_eq!(stage(&approved), Stage::Approved);
        assert_eq!(stage(&with(approved, condition("Failed", "x", String::new()))), Stage::Done);
        csr.status.get_or_insert_default().certificate = Some(ByteString(b"x".to_vec()));
        assert_eq!(stage(&csr), Stage::Done);
    }

    use super::check::tests as agent;
    use crate::testing::scenario::{Call, call, missing, play};

    fn secret() -> k8s_openapi::api::core::v1::Secret {
        k8s_openapi::api::core::v1::Secret { data: Some(ca::generate().unwrap()), ..Default::default() }
    }
    async fn run(csr: CertificateSigningRequest, script: Vec<Call>) {
        play(|_| {}, script, |ctx| reconcile(Arc::new(csr), ctx)).await.unwrap();
    }

    #[tokio::test]
    async fn the_fingerprint_is_published_before_the_certificate() {
        let csr = agent::csr(agent::request(|_| {}));
        let approved = with(csr.clone(), condition("Approved", "AgentOfThisNode", String::new()));
        let script = vec![
            call("GET", "/certificatesigningrequests/dotgraft-agent-n1-x", &csr),
            call("GET", "/api/v1/nodes/n1", agent::node()),
            call("PUT", "/dotgraft-agent-n1-x/approval", &approved).with(|b| assert_eq!(b["status"]["conditions"][0]["type"], "Approved")),
            call("GET", "/secrets/dotgraft-ca", secret()),
            missing("GET", "/nodepools/n1"),
            call("PATCH", "/nodepools/n1", NodePool::default()).with(|b| {
                assert_eq!(b["spec"]["address"], "10.0.0.1:7443");
                assert_eq!(b["spec"]["fingerprints"].as_array().unwrap().len(), 1);
            }),
            call("PUT", "/dotgraft-agent-n1-x/status", &approved)
                .with(|b| assert!(b["status"]["certificate"].as_str().unwrap().len() > 1000)),
        ];
        run(csr, script).await;
    }

    #[tokio::test]
    async fn a_request_for_another_node_is_denied_and_nothing_is_signed() {
        let mut csr = agent::csr(agent::request(|_| {}));
        csr.spec.extra.as_mut().unwrap().values_mut().for_each(|v| *v = vec!["n2".into()]);
        let mut other = agent::node();
        other.metadata.name = Some("n2".into());
        let script = vec![
            call("GET", "/certificatesigningrequests/dotgraft-agent-n1-x", &csr),
            call("GET", "/api/v1/nodes/n2", other),
            call("PUT", "/dotgraft-agent-n1-x/approval", &csr).with(|b| assert_eq!(b["status"]["conditions"][0]["type"], "Denied")),
        ];
        run(csr, script).await;
    }

    #[tokio::test]
    async fn a_request_that_a_person_approved_against_the_rules_fails_unsigned() {
        let mut csr = with(agent::csr(agent::request(|_| {})), condition("Approved", "ByHand", String::new()));
        csr.spec.username = Some("system:admin".into());
        let script = vec![
            call("GET", "/certificatesigningrequests/dotgraft-agent-n1-x", &csr),
            call("PUT", "/dotgraft-agent-n1-x/status", &csr).with(|b| {
                assert_eq!(b["status"]["conditions"][1]["type"], "Failed");
                assert!(b["status"].get("certificate").is_none());
            }),
        ];
        run(csr, script).await;
    }
}
