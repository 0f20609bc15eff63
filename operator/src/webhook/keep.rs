//! Keeps what the webhook serves with: one Secret for all operator processes, made and renewed by the leader, and the `caBundle` of the
//! webhook's configuration.
//!
//! Order matters: the API server is told of a new CA before any process can serve with it. Every process reads the Secret once a minute.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::watch;

use super::certificate::{CertificateError, Kit};
use super::server::Served;
use crate::context::Ctx;
use crate::error::Error;
use crate::names::FIELD_MANAGER;

/// Name of the Secret.
pub const SECRET: &str = "dotgraft-webhook";
/// Name of the `MutatingWebhookConfiguration`, which is installed, not made.
pub const CONFIGURATION: &str = "dotgraft-pods";
/// Longest time until the Secret is looked at again.
const PERIOD: Duration = Duration::from_secs(60);
/// Until there is something to serve with, and after a failure.
const SOON: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Api(#[from] Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl From<kube::Error> for KeepError {
    fn from(e: kube::Error) -> Self {
        Self::Api(e.into())
    }
}

/// The name that the API server knows it by.
fn names(service: &str, namespace: &str) -> Vec<String> {
    vec![format!("{service}.{namespace}.svc")]
}

/// Looks at the Secret, and as the leader after it, for ever.
///
/// `service` is the one that the configuration names, in the operator's namespace.
pub async fn keep(service: &str, served: &Served, ctx: &Arc<Ctx>, mut leading: watch::Receiver<bool>) {
    let names = names(service, &ctx.namespace);
    loop {
        let leads = *leading.borrow_and_update();
        let wait = match look(&names, leads, ctx).await {
            Ok(kit) => {
                let wait = if kit.is_some() { PERIOD.min(ctx.certificate_life / 10) } else { SOON };
                if let Some(kit) = kit {
                    served.set(kit.certified);
                }
                wait
            }
            Err(error) => {
                // Also the loser of a race between two that believe they lead: it reads what the other wrote.
                tracing::warn!(%error, "the pod webhook's certificate");
                SOON
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = leading.changed() => if changed.is_err() { return },
        }
    }
}

async fn look(names: &[String], leads: bool, ctx: &Ctx) -> Result<Option<Kit>, KeepError> {
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &ctx.namespace);
    let secret = secrets.get_opt(SECRET).await?;
    let kit = secret.as_ref().and_then(|s| Kit::read(s.data.as_ref()?).ok());
    if !leads {
        return Ok(kit);
    }
    let now = SystemTime::now();
    let due = kit.as_ref().is_none_or(|k| k.is_due(names, now));
    let kit = match kit {
        Some(kit) if !due => kit,
        old => Kit::make(names, ctx.certificate_life, now, old.as_ref())?,
    };
    configure(&kit.bundle, ctx).await?;
    if due {
        write(&secrets, secret, &kit).await?;
        tracing::info!(?names, "made a certificate for the pod webhook");
    }
    Ok(Some(kit))
}

/// Makes the Secret, or replaces exactly the version that was read.
async fn write(secrets: &Api<Secret>, old: Option<Secret>, kit: &Kit) -> Result<(), KeepError> {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    let data = Some(kit.data().clone());
    if let Some(old) = old {
        let name = old.name_any();
        secrets.replace(&name, &params, &Secret { data, ..old }).await?;
    } else {
        let metadata = ObjectMeta { name: Some(SECRET.into()), ..ObjectMeta::default() };
        let new = Secret { metadata, data, type_: Some("Opaque".into()), ..Secret::default() };
        secrets.create(&params, &new).await?;
    }
    Ok(())
}

/// Tells the API server what to trust. A configuration that is not installed is nothing to do; all else in it is as installed.
async fn configure(bundle: &str, ctx: &Ctx) -> Result<(), KeepError> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(ctx.client.clone());
    let Some(installed) = api.get_opt(CONFIGURATION).await? else {
        tracing::debug!(CONFIGURATION, "is not installed: pods get no preference for the nodes of their volumes");
        return Ok(());
    };
    let mut changes = vec![json!({ "op": "test", "path": "/metadata/resourceVersion", "value": installed.resource_version() })];
    for (i, webhook) in installed.webhooks.iter().flatten().enumerate() {
        if webhook.client_config.ca_bundle.as_ref().is_none_or(|b| b.0 != bundle.as_bytes()) {
            let path = format!("/webhooks/{i}/clientConfig/caBundle");
            changes.push(json!({ "op": "add", "path": path, "value": STANDARD.encode(bundle) }));
        }
    }
    if changes.len() > 1 {
        let patch = serde_json::from_value(json!(changes)).map_err(Error::from)?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        api.patch(CONFIGURATION, &params, &Patch::<()>::Json(patch)).await?;
        tracing::info!(CONFIGURATION, "told the API server what to trust");
    }
    Ok(())
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
