//! Controller of Dot and Branch, one for both kinds: gather → decide → (gather live → decide again) → apply →
//! copies → status. What it decides about data it decides on live reads only.

mod copies;
mod decide;
pub mod forsaken;
mod full;
mod gather;
pub mod limit;
pub mod origin;
pub mod own;
mod status;
pub mod triggers;
mod view;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{Branch, ClaimKind, ClaimRef, DeletionPolicy, Dot, Filesystem, FilesystemPhase, FilesystemSpec, Origin, ReclaimPolicy};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use self::decide::{Decision, Step, View, decide};
pub use self::view::{ClaimObject, ClaimView, cached};
use crate::context::Ctx;
use crate::error::Error;
use crate::names;
use crate::write;

const BLOCKED: Duration = Duration::from_secs(30);
const RESYNC: Duration = Duration::from_secs(600);
/// Steps of a creation follow each other in one go.
const ROUNDS: u32 = 6;

/// Reconciles a Dot.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile_dot(dot: Arc<Dot>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    Box::pin(reconcile(dot, None, &ctx)).await
}

/// Reconciles a Branch.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile_branch(branch: Arc<Branch>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    let copy = Branch::clone(&branch);
    Box::pin(reconcile(branch, Some(copy), &ctx)).await
}

async fn reconcile<K: ClaimObject>(object: Arc<K>, branch: Option<Branch>, ctx: &Ctx) -> Result<Action, Error> {
    let mut object = object;
    let mut view = gather::cached(object.as_ref(), branch.as_ref(), ctx);
    let mut decision = decide(&view);
    // Whatever is to be done is decided by what the API server says now; so is what is still being made.
    if decision.step.is_some() || (view.fs.is_none() && !view.claim.deleting) {
        let Some(after) = advance::<K>(object.as_ref(), ctx).await? else { return Ok(Action::await_change()) };
        (object, view, decision) = after;
    }
    if view.claim.deleting && !view.claim.held {
        return Ok(Action::await_change());
    }
    copies::keep(&view, ctx).await?;
    let now = dotgraft_api::Time(Timestamp::now());
    let blocked = status::write(object.as_ref(), &view, decision.block, &now, ctx).await?;
    let rest = if blocked { BLOCKED } else { RESYNC };
    let again = forsaken::look(object.as_ref(), &view, ctx).await?;
    Ok(Action::requeue(again.map_or(rest, |again| again.min(rest))))
}

type Advanced<K> = (Arc<K>, View, Decision);

/// Takes steps on live reads until none is left. `None`: the object is gone, or let go.
async fn advance<K: ClaimObject>(object: &K, ctx: &Ctx) -> Result<Option<Advanced<K>>, Error> {
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let mut last = None;
    for _ in 0..ROUNDS {
        let Some((live, view)) = gather::live::<K>(&name, &namespace, ctx).await? else { return Ok(None) };
        let decision = decide(&view);
        let step = decision.step.clone();
        let live = Arc::new(live);
        last = Some((live.clone(), view.clone(), decision));
        match step {
            None => break,
            Some(Step::LetGo) => {
                write::let_go(&write::namespaced(&ctx.client, live.as_ref()), live.as_ref(), names::CLAIM_FINALIZER).await?;
                return Ok(None);
            }
            Some(Step::DeleteChildren(children)) => {
                delete_branches(&children, &namespace, ctx).await?;
                break;
            }
            Some(step) => take(live.as_ref(), &view, step, ctx).await?,
        }
    }
    Ok(last)
}

async fn take<K: ClaimObject>(object: &K, view: &View, step: Step, ctx: &Ctx) -> Result<(), Error> {
    let fs = view.fs.as_ref();
    match step {
        Step::Allocate => hold(object, Some(uuid::Uuid::now_v7().to_string()), ctx).await,
        Step::Hold => hold(object, None, ctx).await,
        Step::Create(origin) => create(view, origin, ctx).await,
        Step::Start => match fs {
            Some(fs) => write::phase(&ctx.client, fs, FilesystemPhase::New, None).await,
            None => Ok(()),
        },
        Step::Bind => match fs {
            Some(fs) => bind(&view.claim, fs, ctx).await,
            None => Ok(()),
        },
        Step::Mark(phase) => match fs {
            Some(fs) => {
                let authority = fs.status.as_ref().and_then(|s| s.authority.clone());
                write::phase(&ctx.client, fs, phase, authority).await
            }
            None => Ok(()),
        },
        Step::DeleteChildren(_) | Step::LetGo => Ok(()),
    }
}

/// Finalizer, and id with the mark for whom it was allocated, in one write guarded by the version that was read.
async fn hold<K: ClaimObject>(object: &K, fs_id: Option<String>, ctx: &Ctx) -> Result<(), Error> {
    let mut patch = json!({ "metadata": { "finalizers": write::finalizers(object, names::CLAIM_FINALIZER, true) } });
    if let Some(id) = fs_id {
        patch["spec"] = json!({ "fsId": id });
        patch["metadata"]["annotations"] = json!({ names::ALLOCATED_ANNOTATION: object.uid() });
    }
    let api: Api<K> = write::namespaced(&ctx.client, object);
    write::guarded(&api, object, patch).await?;
    Ok(())
}

async fn create(view: &View, origin: Option<Origin>, ctx: &Ctx) -> Result<(), Error> {
    let claim = &view.claim;
    let Some(fs_id) = claim.fs_id.clone() else { return Ok(()) };
    let hash = names::claim_hash(claim.kind.as_str(), &claim.namespace, &claim.name);
    let fs = Filesystem {
        metadata: ObjectMeta {
            name: Some(fs_id),
            labels: Some([(names::CLAIM_LABEL.to_owned(), hash)].into()),
            finalizers: Some(vec![names::FILESYSTEM_FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        spec: FilesystemSpec {
            claim_ref: ClaimRef {
                kind: claim.kind,
                namespace: claim.namespace.clone(),
                name: claim.name.clone(),
                uid: Some(claim.uid.clone()),
                namespace_uid: view.namespace.clone(),
            },
            origin,
            reclaim_policy: reclaim_policy(claim.deletion_policy),
            accept_epoch: None,
            published_to: Vec::new(),
        },
        status: None,
    };
    let api: Api<Filesystem> = Api::all(ctx.client.clone());
    let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    match api.create(&params, &fs).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.is_already_exists() => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn reclaim_policy(policy: DeletionPolicy) -> ReclaimPolicy {
    match policy {
        DeletionPolicy::Retain => ReclaimPolicy::Retain,
        DeletionPolicy::Delete | DeletionPolicy::Cascade => ReclaimPolicy::Delete,
    }
}

async fn bind(claim: &ClaimView, fs: &Filesystem, ctx: &Ctx) -> Result<(), Error> {
    let api: Api<Filesystem> = Api::all(ctx.client.clone());
    let patch = json!({ "spec": { "claimRef": { "uid": claim.uid } } });
    let fs = write::guarded(&api, fs, patch).await?;
    match fs.status.clone() {
        Some(s) if s.phase == FilesystemPhase::Released => write::phase(&ctx.client, &fs, FilesystemPhase::Active, s.authority).await,
        _ => Ok(()),
    }
}

async fn delete_branches(names: &[String], namespace: &str, ctx: &Ctx) -> Result<(), Error> {
    let api: Api<Branch> = Api::namespaced(ctx.client.clone(), namespace);
    for name in names {
        if let Some(branch) = api.get_opt(name).await? {
            write::delete(&api, &branch).await?;
        }
    }
    Ok(())
}

/// Owner reference to a claim. `controller` for what is made for it; not for a Commit, which a user made.
pub fn owner_reference(claim: &ClaimView, controller: bool) -> serde_json::Value {
    let kind = claim.kind.as_str();
    json!({
        "apiVersion": Dot::api_version(&()), "kind": kind, "name": claim.name, "uid": claim.uid,
        "controller": controller, "blockOwnerDeletion": false,
    })
}

/// The claim of a Commit or job source, with the Filesystem that it is bound to, as the caches have them.
pub fn bound(ctx: &Ctx, kind: ClaimKind, namespace: &str, name: &str) -> Option<(ClaimView, Option<Arc<Filesystem>>)> {
    let claim = cached(ctx, kind, namespace, name)?;
    let fs = own::filesystem(&claim, ctx);
    Some((claim, fs))
}

#[cfg(test)]
mod scenario_tests;
