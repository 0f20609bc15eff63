//! Controller of Filesystem: gather → plan → (gather live → plan again) → apply. It has no status of its own to
//! write beyond phase and authority; what people read stands on the claims.

pub mod authority;
pub mod began;
pub mod bring;
pub mod cordon;
mod gather;
pub mod kept;
pub mod moving;
mod namespace;
pub mod plan;
pub mod spare;
pub mod triggers;
pub mod wishes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{Dot, Filesystem, Replica, ReplicaSpec};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::Patch;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

pub use self::gather::{jobs_of, live as gather_live};
use self::plan::{Plan, View, Write};
use self::spare::Marks;
use crate::context::Ctx;
use crate::error::Error;
use crate::names;
use crate::note::Note;
use crate::write;

/// A Filesystem that waits looks again after this long even if no watch says anything.
const BLOCKED: Duration = Duration::from_secs(30);
const RESYNC: Duration = Duration::from_secs(600);
/// Decisions that follow from each other in one go: authority, Replica, phase, finish.
const ROUNDS: u32 = 4;

/// Brings one Filesystem closer to what its claim, jobs and commits want.
///
/// # Errors
///
/// The first read or write that fails; what was written before it stays. The controller comes again with backoff, at once after a
/// conflict.
pub async fn reconcile(fs: Arc<Filesystem>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    if fs.spec.claim_ref.namespace_uid.is_none() && namespace::record(&fs, &ctx).await? {
        return Ok(Action::await_change());
    }
    let view = gather::cached(&fs, &ctx);
    let mut plan = plan::plan(&view);
    if plan.is_critical(&view) {
        plan = decide_live(&fs.name_any(), &ctx).await?;
    } else {
        apply(&plan, &view, &ctx).await?;
    }
    let rest = if plan.blocked.is_some() || view.limited { BLOCKED } else { RESYNC };
    Ok(Action::requeue(spare::due(&view).map_or(rest, |due| due.min(rest))))
}

/// Plans and applies with what the API server says now, until nothing follows any more.
async fn decide_live(name: &str, ctx: &Ctx) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    for _ in 0..ROUNDS {
        let Some(mut view) = gather::live(name, ctx).await? else { break };
        plan = plan::plan(&view);
        if plan.takes_a_copy(&view) {
            // Also by the Commits that are wanted now.
            view.commits = gather::live_commits(&view, ctx).await?;
            plan = plan::plan(&view);
        }
        if plan.writes.is_empty() {
            break;
        }
        apply(&plan, &view, ctx).await?;
    }
    Ok(plan)
}

async fn apply(plan: &Plan, view: &View, ctx: &Ctx) -> Result<(), Error> {
    for write in &plan.writes {
        match write {
            Write::Status(phase, authority) => write::phase(&ctx.client, &view.fs, *phase, authority.as_deref().cloned()).await?,
            Write::Create(spec, marks) => apply_replica(spec, *marks, None, ctx).await?,
            Write::Update(spec, marks) => {
                let name = names::replica_name(&spec.fs_id, &spec.pool);
                let old = view.replicas.iter().find(|r| r.name_any() == name);
                apply_replica(spec, *marks, old.map(AsRef::as_ref), ctx).await?;
                tell(view, "Cordon", cordon::note(old.map(AsRef::as_ref), spec), ctx).await;
                tell(view, "Copies", spare::note(view, old.map(AsRef::as_ref), spec), ctx).await;
            }
            Write::Finish => finish(&view.fs, ctx).await?,
        }
    }
    Ok(())
}

/// Says it on the Dot or Branch, where people look.
async fn tell(view: &View, action: &str, note: Option<Note>, ctx: &Ctx) {
    let (Some(note), Some(claim)) = (note, &view.claim) else { return };
    let about = ObjectReference {
        api_version: Some(Dot::api_version(&()).into_owned()),
        kind: Some(claim.kind.as_str().to_owned()),
        namespace: Some(claim.namespace.clone()),
        name: Some(claim.name.clone()),
        uid: Some(claim.uid.clone()),
        ..ObjectReference::default()
    };
    ctx.notes(&about, action, vec![note]).await;
}

/// Creates or changes a Replica by apply. The finalizer is set at birth; later it is repeated only while it is
/// there, so that the agent can take it off.
///
/// # Errors
///
/// A conflict if the Replica is another than `old` by now; a policy or rule refuses the spec; the API server doesn't answer.
pub async fn apply_replica(spec: &ReplicaSpec, marks: Marks, old: Option<&Replica>, ctx: &Ctx) -> Result<(), Error> {
    let api: Api<Replica> = Api::all(ctx.client.clone());
    let name = names::replica_name(&spec.fs_id, &spec.pool);
    let mut labels = BTreeMap::from([(names::FS_LABEL, spec.fs_id.as_str())]);
    if spec.node.len() <= 63 {
        labels.insert(names::NODE_LABEL, &spec.node);
    }
    if marks.unmanaged {
        labels.insert(names::UNMANAGED_LABEL, "true");
    }
    if marks.ours {
        labels.insert(names::OURS_LABEL, "true");
    }
    let held = old.is_none_or(|o| write::has_finalizer(o, names::REPLICA_FINALIZER));
    let mut metadata = json!({ "name": name, "labels": labels });
    if let Some(since) = marks.spare_since.and_then(|s| Timestamp::from_second(s).ok()) {
        metadata["annotations"] = json!({ names::SPARE_ANNOTATION: since.to_string() });
    }
    if held {
        metadata["finalizers"] = json!([names::REPLICA_FINALIZER]);
    }
    if let Some(old) = old {
        // Optimistic lock: an apply to another version than the one planned with is a conflict.
        metadata["resourceVersion"] = json!(old.resource_version());
    }
    let patch = json!({ "apiVersion": "dotgraft.dev/v1alpha1", "kind": "Replica", "metadata": metadata, "spec": spec });
    api.patch(&name, &write::apply_params(), &Patch::Apply(&patch)).await?;
    Ok(())
}

async fn finish(fs: &Filesystem, ctx: &Ctx) -> Result<(), Error> {
    let api: Api<Filesystem> = Api::all(ctx.client.clone());
    write::delete(&api, fs).await?;
    let Some(fs) = api.get_opt(&fs.name_any()).await? else { return Ok(()) };
    write::let_go(&api, &fs, names::FILESYSTEM_FINALIZER).await?;
    tracing::info!(fs = fs.name_any(), "the Filesystem is gone");
    Ok(())
}

/// What a Filesystem's plan tells people: why it has no owner (yet), and which copies stay as they are the last that hold a kept commit.
pub fn told(fs: &Filesystem, ctx: &Ctx) -> (Option<crate::conditions::Block>, Vec<kept::Stay>) {
    let plan = plan::plan(&gather::cached(fs, ctx));
    (plan.blocked, plan.stays)
}

#[cfg(test)]
mod scenario_tests;
