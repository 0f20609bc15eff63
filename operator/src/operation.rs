//! Controller of `DotOperation`: gather → decide → apply → status. Each is done once; its status is the record of it.

mod reset;
pub mod triggers;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{
    Authority, ConditionType, ConditionUpdate, DotOperation, DotOperationStatus, FilesystemPhase, OperationPhase, Reason, Time, Word,
    set_condition,
};
use dotgraft_engine::authority::Refusal;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};

use crate::claim;
use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem::authority::{self, Stays};
use crate::filesystem::gather_live;
use crate::filesystem::plan::View;
use crate::write;

/// Something that it waits for is looked at again after this long.
const WAIT: Duration = Duration::from_secs(5);

/// What is to be done now.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Authority as it shall be.
    Take(Box<Authority>),
    /// It can't be done.
    Refuse(String),
}

/// Decides about a promotion. Without `accept_loss` only a copy takes over that has all of what was acknowledged (R4, R5).
pub fn promote(view: &View, node: Option<&str>, accept_loss: bool) -> Step {
    let stays = match authority::promote(view, node, accept_loss) {
        Ok(next) => return Step::Take(Box::new(next)),
        Err(stays) => stays,
    };
    let what_to_do = match &stays {
        Stays::Refused(Refusal::NoCopy) => " (there, if a node is named): see the Dot's status.replicas",
        Stays::Refused(Refusal::MayLose { .. }) => {
            ": set promote.acceptLoss (needs the verb accept-loss), or move it while the owner is there"
        }
        _ => "",
    };
    Step::Refuse(format!("{stays}{what_to_do}"))
}

/// Does one operation, once.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile(operation: Arc<DotOperation>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    let ended = operation.status.as_ref().is_some_and(|s| s.phase.is_some());
    if ended || operation.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let (target, namespace) = (&operation.spec.target, operation.namespace().unwrap_or_default());
    let Some((_, Some(fs))) = claim::bound(&ctx, target.kind, &namespace, &target.name) else {
        let text = format!("there is no {} `{}` with data in this namespace (yet)", target.kind.as_str(), target.name);
        return wait(&operation, &text, &ctx).await;
    };
    // Whose it is now decides, not whose it was when the watches looked.
    let view = gather_live(&fs.name_any(), &ctx).await?.filter(|v| v.claim.is_some());
    let Some(view) = view else { return Ok(Action::requeue(WAIT)) };
    if let Some(wish) = &operation.spec.reset {
        return reset::reconcile(&operation, wish, &view, &ctx).await;
    }
    let Some(wish) = operation.spec.promote.as_ref() else {
        let why = "it asks for nothing that this operator knows: upgrade the operator";
        return finish(&operation, ended_as(OperationPhase::Refused, None, None, None, why), "Unknown", &ctx).await;
    };
    let authority = view.fs.status.as_ref().and_then(|s| s.authority.as_ref());
    let (owner, epoch) = authority.map(|a| (a.owner.node.clone(), a.epoch)).unzip();
    let intended = operation.status.as_ref().and_then(|s| Some((s.from.clone()?, s.epoch?)));
    let status = match (intended, wish) {
        // Authority has changed since it was intended: by an earlier try whose status was not written, or by somebody else. Either way
        // it is not done a second time.
        (Some((from, before)), _) if epoch.is_some_and(|now| now > before) => {
            ended_as(OperationPhase::Done, Some(from), owner, epoch, "authority has changed hands")
        }
        (intended, wish) => match promote(&view, wish.node.as_deref(), wish.accept_loss) {
            Step::Refuse(why) => ended_as(OperationPhase::Refused, owner, None, epoch, &why),
            Step::Take(_) if intended.is_none() => {
                let intent = DotOperationStatus { from: owner, epoch, message: "taking authority".into(), ..DotOperationStatus::default() };
                write::status(&write::namespaced(&ctx.client, operation.as_ref()), operation.as_ref(), &pending(intent)).await?;
                return Ok(Action::requeue(Duration::ZERO)); // with the intent recorded
            }
            Step::Take(next) => {
                let (to, epoch) = (next.owner.node.clone(), next.epoch);
                write::phase(&ctx.client, &view.fs, FilesystemPhase::Active, Some(*next)).await?;
                let text = format!("node `{to}` owns it in epoch {epoch}; if the old owner returns, what it has is fenced and kept");
                ended_as(OperationPhase::Done, owner, Some(to), Some(epoch), &text)
            }
        },
    };
    finish(&operation, status, "Promote", &ctx).await
}

/// Records the end.
async fn finish(operation: &DotOperation, status: DotOperationStatus, reason: &str, ctx: &Ctx) -> Result<Action, Error> {
    write::status(&write::namespaced(&ctx.client, operation), operation, &status).await?;
    let warning = status.phase == Some(OperationPhase::Refused);
    let note = crate::note::Note { warning, reason: reason.to_owned(), message: status.message };
    ctx.notes(&operation.object_ref(&()), "Operate", vec![note]).await;
    Ok(Action::await_change())
}

fn ended_as(phase: OperationPhase, from: Option<String>, to: Option<String>, epoch: Option<u64>, message: &str) -> DotOperationStatus {
    let now = Time(Timestamp::now());
    let mut conditions = Vec::new();
    let done = phase == OperationPhase::Done;
    let reason = if done { Reason::from(Word::Done) } else { ConditionType::Refused.into() }.as_str();
    let update =
        ConditionUpdate { type_: ConditionType::Complete.as_str(), status: Some(done), reason, message, observed_generation: None };
    set_condition(&mut conditions, &update, &now);
    DotOperationStatus { phase: Some(phase), finished_at: Some(now), from, to, epoch, reset: None, message: message.to_owned(), conditions }
}

/// The status says that it waits, so that lists show it.
fn pending(mut status: DotOperationStatus) -> DotOperationStatus {
    let update = ConditionUpdate {
        type_: ConditionType::Complete.as_str(),
        status: Some(false),
        reason: Word::Pending.as_str(),
        message: &status.message,
        observed_generation: None,
    };
    set_condition(&mut status.conditions, &update, &Time(Timestamp::now()));
    status
}

async fn wait(operation: &DotOperation, text: &str, ctx: &Ctx) -> Result<Action, Error> {
    let old = operation.status.clone().unwrap_or_default();
    wait_with(operation, DotOperationStatus { message: text.to_owned(), ..old }, ctx).await
}

/// Waits with that status.
async fn wait_with(operation: &DotOperation, status: DotOperationStatus, ctx: &Ctx) -> Result<Action, Error> {
    let status = pending(status);
    if operation.status.as_ref() != Some(&status) {
        let api: Api<DotOperation> = write::namespaced(&ctx.client, operation);
        write::status(&api, operation, &status).await?;
    }
    Ok(Action::requeue(WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::moving::tests::{copy, publish, view};
    use dotgraft_api::CopyRole;

    fn refused(step: Step) -> String {
        match step {
            Step::Refuse(why) => why,
            Step::Take(next) => panic!("taken: {next:?}"),
        }
    }

    #[test]
    fn what_may_be_lost_is_accepted_by_a_person_or_not_done() {
        let mut v = view();
        assert!(refused(promote(&v, None, true)).contains("no copy"));
        v.replicas.push(copy("n2", CopyRole::Replica, 5));
        assert!(refused(promote(&v, None, false)).contains("acceptLoss"));
        assert!(refused(promote(&v, Some("n1"), true)).contains("already"));
        assert!(refused(promote(&v, Some("n3"), true)).contains("no copy"));
        publish(&mut v, "n3", false);
        let Step::Take(next) = promote(&v, Some("n2"), true) else { panic!("refused") };
        assert_eq!((next.owner.node.as_str(), next.epoch), ("n2", 4));
        v.fs.status.as_mut().unwrap().phase = FilesystemPhase::Deleting;
        assert!(refused(promote(&v, None, true)).contains("being deleted"));
    }
}
