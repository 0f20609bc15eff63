//! Controller of NodePool: carries out what a person decided about orphans (`kubectl dot adopt`, `drop`).
//!
//! The decision about one Filesystem is pure ([`decide`]) and looks at every pool that holds it. Objects are made
//! anew from what the pools themselves say; nothing is deleted on the way (failures.md row 20). An action is taken
//! out of `spec.orphanActions` when it is done.

mod adopt;
mod claim;
pub mod heartbeat;
pub mod triggers;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{DesiredState, Filesystem, NodePool, OrphanAction, OrphanActionKind};
use kube::api::ListParams;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use self::adopt::{Decision, Holder, View, decide};
use crate::context::Ctx;
use crate::error::Error;
use crate::note::Note;
use crate::{live, names, pools, write};

const RETRY: Duration = Duration::from_secs(10);

/// Carries out the actions of one pool, one Filesystem at a time.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile(pool: Arc<NodePool>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    if pool.spec.orphan_actions.is_empty() {
        return Ok(Action::await_change());
    }
    let api: Api<NodePool> = Api::all(ctx.client.clone());
    let pools = api.list(&ListParams::default()).await?.items;
    let mut open = false;
    for action in &pool.spec.orphan_actions {
        let done = match action.action {
            OrphanActionKind::Adopt => adopt(&pool, &pools, action, &ctx).await?,
            OrphanActionKind::Drop => drop_copy(&pool, &pools, action, &ctx).await?,
        };
        if done {
            take_off(&api, &pool.name_any(), action).await?;
        }
        open |= !done;
    }
    Ok(if open { Action::requeue(RETRY) } else { Action::await_change() })
}

/// Pools that hold a Filesystem as orphan, with what they say of it and what a person wants there.
fn holders(pools: &[NodePool], fs_id: &str) -> Vec<Holder> {
    pools
        .iter()
        .filter_map(|p| {
            let status = p.status.as_ref()?;
            let orphan = status.orphans.items.iter().find(|o| o.fs_id == fs_id)?;
            let wanted = p.spec.orphan_actions.iter().find(|a| a.fs_id == fs_id).map(|a| a.action);
            Some(Holder { node: p.spec.node.clone(), pool: status.pool.clone()?, orphan: orphan.clone(), wanted })
        })
        .collect()
}

async fn gather(pools: &[NodePool], fs_id: &str, ctx: &Ctx) -> Result<View, Error> {
    let filesystems: Api<Filesystem> = Api::all(ctx.client.clone());
    let holders = holders(pools, fs_id);
    let fs = filesystems.get_opt(fs_id).await?;
    let replicas = live::replicas(fs_id, ctx).await?;
    let known = pools::confirmed(ctx, &replicas).await?;
    let orphans = pools.iter().filter_map(|p| p.status.as_ref()).flat_map(|s| s.orphans.items.iter());
    let orphans = orphans.map(|o| (o.fs_id.clone(), o.clone())).collect();
    Ok(View { fs_id: fs_id.to_owned(), holders, fs, replicas, pools: known, orphans })
}

/// Says whether the action is done.
async fn adopt(pool: &NodePool, pools: &[NodePool], action: &OrphanAction, ctx: &Ctx) -> Result<bool, Error> {
    let view = gather(pools, &action.fs_id, ctx).await?;
    match decide(&view) {
        Decision::Nothing => Ok(true),
        Decision::Wait(block) => {
            tracing::warn!(fs = action.fs_id, reason = block.reason.as_str(), message = block.message, "can't adopt");
            note(pool, true, block.reason.as_str(), format!("{}: {}", action.fs_id, block.message), ctx).await;
            Ok(false)
        }
        Decision::Restore(restore) => {
            if let Some(block) = claim::restore(&restore, &view, ctx).await? {
                note(pool, true, block.reason.as_str(), format!("{}: {}", action.fs_id, block.message), ctx).await;
                return Ok(false);
            }
            let ahead = restore.ahead.as_ref().map_or_else(String::new, |what| format!("; {what}"));
            let made = format!("{}: objects made anew, owner {}{ahead}", action.fs_id, restore.authority.owner.node);
            note(pool, restore.ahead.is_some(), "Adopted", made, ctx).await;
            Ok(true)
        }
    }
}

/// Deletes a copy that nobody wants: a Replica with `Absent`. Where no Filesystem knows of it, one is made in phase
/// `Deleting`, so that the agent finds the recorded intent that it asks for. Says whether the action is done.
async fn drop_copy(pool: &NodePool, pools: &[NodePool], action: &OrphanAction, ctx: &Ctx) -> Result<bool, Error> {
    let view = gather(pools, &action.fs_id, ctx).await?;
    let Some(uuid) = pool.status.as_ref().and_then(|s| s.pool.clone()) else { return Ok(false) };
    let replica = view.replicas.iter().find(|r| r.spec.pool == uuid);
    match adopt::drop_decision(&view, &uuid) {
        adopt::Drop::Done => Ok(true),
        // The Filesystem's own plan sends the copy away; this waits until it is recorded.
        adopt::Drop::ByPlan => Ok(replica.is_some_and(|r| r.spec.desired.state == DesiredState::Absent)),
        adopt::Drop::Refused(block) => {
            note(pool, true, block.reason.as_str(), format!("{}: {}", action.fs_id, block.message), ctx).await;
            Ok(true)
        }
        adopt::Drop::Bury(burial) => {
            claim::bury(&burial, &view, ctx).await?;
            note(pool, false, "Dropped", format!("{}: its data here is being deleted", action.fs_id), ctx).await;
            Ok(true)
        }
    }
}

async fn note(pool: &NodePool, warning: bool, reason: &str, message: String, ctx: &Ctx) {
    let note = Note { warning, reason: reason.into(), message };
    ctx.notes(&pool.object_ref(&()), "Orphan", vec![note]).await;
}

/// Takes a finished action out of the list, against the version that is there now.
async fn take_off(api: &Api<NodePool>, name: &str, done: &OrphanAction) -> Result<(), Error> {
    let Some(pool) = api.get_opt(name).await? else { return Ok(()) };
    let left: Vec<&OrphanAction> = pool.spec.orphan_actions.iter().filter(|a| *a != done).collect();
    if left.len() == pool.spec.orphan_actions.len() {
        return Ok(());
    }
    write::guarded(api, &pool, json!({ "spec": { "orphanActions": left } })).await?;
    tracing::info!(pool = name, fs = done.fs_id, action = ?done.action, manager = names::FIELD_MANAGER, "orphan action done");
    Ok(())
}
