//! Makes the objects of an orphan anew, or those that bury it. Every step is create-if-absent, so that a crash in
//! the middle is taken up by the next try.

use dotgraft_api::common::ANNOTATION_CSI_NAME;
use dotgraft_api::{Branch, Claim, ClaimKind, ClaimRef, Dot, Filesystem, FilesystemPhase, FilesystemSpec, Replica, ReplicaSpec, Word};
use kube::api::{ObjectMeta, Patch, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::adopt::{Burial, Restore, View};
use crate::claim::own;
use crate::conditions::Block;
use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem::apply_replica;
use crate::filesystem::spare::Marks;
use crate::names;
use crate::write;

/// Claim, Filesystem with authority, Replicas: in this order, so that nothing is open before all is there.
/// Some block: a person must do something first.
///
/// # Errors
///
/// The API server refuses or doesn't answer. What needs a person is no error: the [`Block`] says it.
pub async fn restore(restore: &Restore, view: &View, ctx: &Ctx) -> Result<Option<Block>, Error> {
    let c = &restore.claim;
    let uid = match claim(restore, view, ctx).await {
        // Making an object in a namespace that isn't there, or is going, is refused in these two ways.
        Err(Error::Api(kube::Error::Api(s))) if s.is_not_found() || s.message.contains("being terminated") => {
            let what = format!("namespace `{}` of {} `{}` is missing: create it first", c.namespace, c.kind.as_str(), c.name);
            return Ok(Some(Block::new(Word::NamespaceNotFound, what)));
        }
        other => other?,
    };
    let fs = filesystem(view, &restore.claim, uid, restore.facts.origin.clone(), ctx).await?;
    let recorded = fs.status.as_ref().and_then(|s| Some((s.phase, s.authority.as_ref()?)));
    if recorded.is_none_or(|(_, authority)| *authority != restore.authority) {
        let phase = recorded.map_or(FilesystemPhase::Active, |(phase, _)| phase);
        write::phase(&ctx.client, &fs, phase, Some(restore.authority.clone())).await?;
    }
    for spec in &restore.replicas {
        make_way(spec, view, ctx).await?;
        apply_replica(spec, Marks::default(), None, ctx).await?;
    }
    Ok(None)
}

/// The Filesystem in phase `Deleting`, then the Replica with `Absent`: the agent asks for both.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn bury(burial: &Burial, view: &View, ctx: &Ctx) -> Result<(), Error> {
    let origin = burial.replica.desired.origin.clone();
    if view.fs.is_none() {
        let fs = filesystem(view, &burial.claim, None, origin, ctx).await?;
        if fs.status.is_none() {
            write::phase(&ctx.client, &fs, FilesystemPhase::Deleting, Some(burial.authority.clone())).await?;
        }
    }
    make_way(&burial.replica, view, ctx).await?;
    apply_replica(&burial.replica, Marks { unmanaged: true, ..Marks::default() }, None, ctx).await
}

/// A Replica is named by its pool and bound to its node: the object that a pool had under another node's name goes. Nobody holds that pool
/// there any more, so it is no tombstone of anything.
async fn make_way(spec: &ReplicaSpec, view: &View, ctx: &Ctx) -> Result<(), Error> {
    let api: Api<Replica> = Api::all(ctx.client.clone());
    for old in view.replicas.iter().filter(|r| r.spec.pool == spec.pool && r.spec.node != spec.node) {
        tracing::info!(replica = old.name_any(), old = old.spec.node, new = spec.node, "the pool has another node's name now");
        write::let_go(&api, old.as_ref(), names::REPLICA_FINALIZER).await?;
        write::delete(&api, old.as_ref()).await?;
    }
    Ok(())
}

async fn filesystem(
    view: &View,
    claim: &Claim,
    uid: Option<String>,
    origin: Option<dotgraft_api::Origin>,
    ctx: &Ctx,
) -> Result<Filesystem, Error> {
    let api: Api<Filesystem> = Api::all(ctx.client.clone());
    if let Some(fs) = &view.fs {
        return Ok(fs.clone());
    }
    let hash = names::claim_hash(claim.kind.as_str(), &claim.namespace, &claim.name);
    let fs = Filesystem {
        metadata: ObjectMeta {
            name: Some(view.fs_id.clone()),
            labels: Some([(names::CLAIM_LABEL.to_owned(), hash)].into()),
            finalizers: Some(vec![names::FILESYSTEM_FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        spec: FilesystemSpec {
            // An administrator adopts it, for whoever has that namespace now.
            claim_ref: ClaimRef {
                kind: claim.kind,
                namespace: claim.namespace.clone(),
                name: claim.name.clone(),
                uid,
                namespace_uid: own::live_namespace_uid(&claim.namespace, ctx).await?,
            },
            origin,
            ..FilesystemSpec::default()
        },
        status: None,
    };
    match api.create(&PostParams::default(), &fs).await {
        Ok(fs) => Ok(fs),
        Err(kube::Error::Api(s)) if s.is_already_exists() => Ok(api.get(&view.fs_id).await?),
        Err(e) => Err(e.into()),
    }
}

/// UID of the claim, which is made if it is missing. One of that name that holds something else is left alone: the
/// Filesystem then stays bound to a name only, and the claim says `ClaimMismatch` or `NameHasData`.
async fn claim(restore: &Restore, view: &View, ctx: &Ctx) -> Result<Option<String>, Error> {
    let c = &restore.claim;
    let mut spec = json!({ "fsId": view.fs_id });
    let facts = &restore.facts;
    let size = |bytes: u64| bytes.max(1 << 20).to_string();
    spec["capacity"] = json!(size(facts.capacity));
    spec["historyLimit"] = json!(size(facts.history_limit));
    match c.kind {
        ClaimKind::Dot => {
            let dots: Api<Dot> = Api::namespaced(ctx.client.clone(), &c.namespace);
            if let Some(dot) = dots.get_opt(&c.name).await? {
                return Ok(dot.uid().filter(|_| dot.spec.fs_id.as_ref() == Some(&view.fs_id)));
            }
            Ok(dots.patch(&c.name, &write::apply_params(), &Patch::Apply(&object(c, &spec))).await?.uid())
        }
        ClaimKind::Branch => {
            let branches: Api<Branch> = Api::namespaced(ctx.client.clone(), &c.namespace);
            if let Some(branch) = branches.get_opt(&c.name).await? {
                return Ok(branch.uid().filter(|_| branch.spec.fs_id.as_ref() == Some(&view.fs_id)));
            }
            spec["dot"] = json!(dot_of_origin(restore, view, ctx).await?);
            if let Some(origin) = &facts.origin {
                spec["from"] = json!({ "commit": origin.commit });
            }
            Ok(branches.patch(&c.name, &write::apply_params(), &Patch::Apply(&object(c, &spec))).await?.uid())
        }
    }
}

fn object(c: &Claim, spec: &serde_json::Value) -> serde_json::Value {
    let mut metadata = json!({ "name": c.name, "namespace": c.namespace });
    if let Some(name) = &c.csi_name {
        metadata["annotations"] = json!({ ANNOTATION_CSI_NAME: name });
    }
    json!({ "apiVersion": "dotgraft.dev/v1alpha1", "kind": c.kind.as_str(), "metadata": metadata, "spec": spec })
}

/// Name of the Dot that a Branch was one of: the claim at the root of its origins, as objects or orphans name it; its
/// own name if that is lost.
async fn dot_of_origin(restore: &Restore, view: &View, ctx: &Ctx) -> Result<String, Error> {
    let api: Api<Filesystem> = Api::all(ctx.client.clone());
    let mut origin = restore.facts.origin.as_ref().map(|o| o.fs_id.clone());
    // Origins form a tree; the bound only guards against damaged ones.
    for _ in 0..32 {
        let Some(id) = origin.take() else { break };
        let (claim, next) = match api.get_opt(&id).await? {
            Some(fs) => (Some(fs.spec.claim_ref.claim()), fs.spec.origin),
            None => view.orphans.get(&id).map_or((None, None), |o| (o.claim.clone(), o.origin.clone())),
        };
        if let Some(claim) = claim.filter(|c| c.kind == ClaimKind::Dot) {
            return Ok(claim.name);
        }
        origin = next.map(|o| o.fs_id);
    }
    Ok(restore.claim.name.clone())
}
