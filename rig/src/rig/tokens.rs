//! What each program may prove itself by: a `ServiceAccount` token of its own, the agents' bound to their Node.

use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Client;
use kube::api::{Api, PostParams};

use super::certificates::Authority;

/// The namespace of our programs.
pub const SYSTEM: &str = "dotgraft-system";
/// Longer than any run of tests.
const SECONDS: i64 = 24 * 3600;

/// A token of a `ServiceAccount` in [`SYSTEM`], valid for a day; bound to a Node where one is given.
pub async fn token(client: &Client, account: &str, node: Option<&str>) -> Result<String> {
    let bound = match node {
        Some(name) => Some(BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name.into()),
            uid: Api::<Node>::all(client.clone()).get(name).await?.metadata.uid,
        }),
        None => None,
    };
    let spec = TokenRequestSpec { expiration_seconds: Some(SECONDS), bound_object_ref: bound, ..Default::default() };
    let request = TokenRequest { spec, ..Default::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SYSTEM);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("a token for ServiceAccount {account}"))?;
    Ok(answer.status.context("the API server sent no token")?.token)
}

/// Writes a kubeconfig that holds nothing but such a token.
pub async fn kubeconfig(
    client: &Client,
    authority: &Authority,
    server: &str,
    (account, node): (&str, Option<&str>),
    file: &Path,
) -> Result<()> {
    let token = token(client, account, node).await?;
    std::fs::write(file, authority.token_kubeconfig(server, &token)?)?;
    Ok(())
}
