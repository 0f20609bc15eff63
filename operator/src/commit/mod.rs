//! Controller of Commit: gather → decide → apply → status.
//!
//! A Commit belongs to its source by an owner reference (no controller): when a Dot or Branch goes, the garbage
//! collector deletes its Commits, and they let go at once because their data went, or was kept, as a whole.

mod decide;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{Commit, Time};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use self::decide::{Step, View, decide};
use crate::claim;
use crate::conditions;
use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem;
use crate::names::COMMIT_FINALIZER;
use crate::pools;
use crate::write;

const RESYNC: Duration = Duration::from_secs(600);

fn gather(commit: &Arc<Commit>, ctx: &Ctx) -> View {
    let source = &commit.spec.source;
    let namespace = commit.namespace().unwrap_or_default();
    let (claim, fs) = claim::bound(ctx, source.kind, &namespace, &source.name).map_or((None, None), |(c, f)| (Some(c), f));
    let replicas = fs.as_ref().map(|f| ctx.caches.replicas.with(&f.name_any())).unwrap_or_default();
    View { commit: commit.clone(), claim, fs, replicas, pools: pools::all(&ctx.caches) }
}

/// The same with what the API server says now: a finalizer that goes is a decision about data.
async fn gather_live(commit: &Commit, ctx: &Ctx) -> Result<Option<View>, Error> {
    let api: Api<Commit> = write::namespaced(&ctx.client, commit);
    let Some(live) = api.get_opt(&commit.name_any()).await?.map(Arc::new) else { return Ok(None) };
    let mut view = gather(&live, ctx);
    if let Some(id) = view.claim.as_ref().and_then(|c| c.fs_id.clone()) {
        view.fs = Api::all(ctx.client.clone()).get_opt(&id).await?.map(Arc::new);
        view.replicas = filesystem::live_replicas(&id, ctx).await?;
        view.pools = pools::confirmed(ctx, &view.replicas).await?;
    }
    Ok(Some(view))
}

/// Brings one Commit on.
pub async fn reconcile(commit: Arc<Commit>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    let mut view = gather(&commit, &ctx);
    let api: Api<Commit> = write::namespaced(&ctx.client, commit.as_ref());
    match decide(&view) {
        Step::Hold => {
            hold(&api, &view).await?;
            // The finalizer's own watch event comes back here.
            return Ok(Action::requeue(RESYNC));
        }
        Step::LetGo => {
            let Some(live) = gather_live(&commit, &ctx).await? else { return Ok(Action::await_change()) };
            if decide(&live) == Step::LetGo {
                write::let_go(&api, live.commit.as_ref(), COMMIT_FINALIZER).await?;
                return Ok(Action::await_change());
            }
            view = live;
        }
        Step::Show => {}
    }
    let now = Time(Timestamp::now());
    let old = view.commit.status.clone().unwrap_or_default();
    let new = decide::status(&view, &now);
    if new != old {
        let notes = conditions::transitions(&old.conditions, &new.conditions);
        write::status(&api, view.commit.as_ref(), &new).await?;
        ctx.notes(&view.commit.object_ref(&()), "Commit", notes).await;
    }
    Ok(Action::requeue(RESYNC))
}

async fn hold(api: &Api<Commit>, view: &View) -> Result<(), Error> {
    let commit = view.commit.as_ref();
    let mut metadata = json!({ "finalizers": write::finalizers(commit, COMMIT_FINALIZER, true) });
    if let Some(claim) = &view.claim
        && !commit.owner_references().iter().any(|o| o.uid == claim.uid)
    {
        let mut owners = serde_json::to_value(commit.owner_references())?;
        if let Some(list) = owners.as_array_mut() {
            list.push(claim::owner_reference(claim, false));
        }
        metadata["ownerReferences"] = owners;
    }
    write::guarded(api, commit, json!({ "metadata": metadata })).await?;
    Ok(())
}
