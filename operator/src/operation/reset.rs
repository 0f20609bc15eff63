//! `reset`: a plan in the status first, then the Commit that keeps what the volume holds; the owner's agent takes that one under a fence
//! and replaces the head in the same act, so the operation is done when the Commit is ready.

use dotgraft_api::{
    Commit, CommitSource, CommitSpec, ConditionType, DotOperation, DotOperationStatus, OperationPhase, Origin, Reset, ResetPlan, Time,
    condition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp, Unit};
use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::{WAIT, ended_as, finish, wait, wait_with};
use crate::caches::claim_term;
use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem::plan::View;
use crate::filesystem::wishes::is_of_operation;
use crate::names::OPERATION_ANNOTATION;
use crate::write;

/// How long new pods wait for a reset that wants it so. The owner counts as long by itself.
const HOLD: SignedDuration = SignedDuration::from_mins(5);

/// What the volume is to become; `named`: the Commit of the name that is asked for.
///
/// # Errors
/// Why it can't be that.
pub fn target(view: &View, wish: &Reset, named: Option<&Commit>) -> Result<Origin, String> {
    let (fs_id, origin) = (view.fs.name_any(), view.fs.spec.origin.clone());
    let of_origin = |to: &Origin| origin.as_ref().is_some_and(|o| o.commit == to.commit && (o.fs_id == to.fs_id || to.fs_id == fs_id));
    let to = match &wish.commit {
        None => {
            let owner = view.fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| a.owner.pool.as_str());
            let replica = view.replicas.iter().find(|r| Some(r.spec.pool.as_str()) == owner);
            // What an earlier reset has kept is nobody's wish to come back to, unless it is named.
            let kept =
                |id: &str| view.commits.iter().any(|c| is_of_operation(c) && c.status.as_ref().and_then(|s| s.id.as_deref()) == Some(id));
            let recent = replica.and_then(|r| r.status.as_ref()).map(|s| s.recent_commits.as_slice()).unwrap_or_default();
            let newest = recent.iter().find(|c| !kept(&c.id)).map(|c| Origin { fs_id: fs_id.clone(), commit: c.id.clone() });
            return newest.or(origin).ok_or_else(|| "it has no commit yet that it could become".to_owned());
        }
        Some(text) if crate::claim::origin::is_uuid(text) => Origin { fs_id: fs_id.clone(), commit: text.clone() },
        Some(name) => {
            let status = named.ok_or_else(|| format!("there is no Commit `{name}` in this namespace"))?.status.clone().unwrap_or_default();
            let made = status.id.zip(status.fs_id).ok_or_else(|| format!("Commit `{name}` is not made yet"))?;
            Origin { commit: made.0, fs_id: made.1 }
        }
    };
    match origin {
        Some(origin) if of_origin(&to) => Ok(origin),
        _ if to.fs_id == fs_id => Ok(to),
        _ => Err(format!("commit {} is of another volume: make a Branch from it instead", to.commit)),
    }
}

/// Another one of the same volume that began before.
fn ahead(operation: &DotOperation, ctx: &Ctx) -> Option<String> {
    let (t, namespace) = (&operation.spec.target, operation.namespace().unwrap_or_default());
    let turn = |o: &DotOperation| (o.creation_timestamp().map(|t| t.0.as_second()), o.name_any());
    let list = ctx.caches.operations.with(&claim_term(t.kind.as_str(), &namespace, &t.name));
    let open = |o: &DotOperation| o.spec.reset.is_some() && o.status.as_ref().is_none_or(|s| s.phase.is_none());
    list.iter().find(|o| open(o) && o.metadata.deletion_timestamp.is_none() && turn(o) < turn(operation)).map(|o| o.name_any())
}

/// Brings a reset on.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile(operation: &DotOperation, wish: &Reset, view: &View, ctx: &Ctx) -> Result<Action, Error> {
    let api: Api<DotOperation> = write::namespaced(&ctx.client, operation);
    let commits: Api<Commit> = Api::namespaced(ctx.client.clone(), &operation.namespace().unwrap_or_default());
    let Some(plan) = operation.status.as_ref().and_then(|s| s.reset.clone()) else {
        if let Some(name) = ahead(operation, ctx) {
            return wait(operation, &format!("after DotOperation `{name}`"), ctx).await;
        }
        let named = match &wish.commit {
            Some(name) => commits.get_opt(name).await?,
            None => None,
        };
        let to = match target(view, wish, named.as_ref()) {
            Ok(to) => to,
            Err(why) => return finish(operation, ended_as(OperationPhase::Refused, None, None, None, &why), "Reset", ctx).await,
        };
        let kept = kept_name(&operation.name_any());
        let message = format!("takes Commit `{kept}`, then the volume becomes commit {}", to.commit);
        let hold_until = wish.hold.then(|| Time(Timestamp::now() + HOLD));
        let status = DotOperationStatus {
            reset: Some(ResetPlan { to, kept, hold_until, holding: false }),
            message,
            ..DotOperationStatus::default()
        };
        write::status(&api, operation, &status).await?;
        return Ok(Action::requeue(std::time::Duration::ZERO));
    };
    let Some(commit) = commits.get_opt(&plan.kept).await? else {
        commits.create(&PostParams::default(), &keeper(operation, &plan)).await?;
        return Ok(Action::requeue(WAIT));
    };
    let plan = ResetPlan { holding: is_holding(view, &commit), ..plan };
    let keep = |status| DotOperationStatus { reset: Some(plan.clone()), ..status };
    if commit.annotations().get(OPERATION_ANNOTATION) != Some(&operation.name_any()) {
        let why = format!("there is a Commit `{}` already that is not of this operation", plan.kept);
        return finish(operation, keep(ended_as(OperationPhase::Refused, None, None, None, &why)), "Reset", ctx).await;
    }
    let status = commit.status.clone().unwrap_or_default();
    let ready = condition(&status.conditions, ConditionType::Ready);
    if status.id.is_some() {
        let why = format!("the volume is commit {} again; what it held before is Commit `{}`", plan.to.commit, plan.kept);
        return finish(operation, keep(ended_as(OperationPhase::Done, None, None, None, &why)), "Reset", ctx).await;
    }
    let text = ready.map_or_else(|| "waiting for the operator".to_owned(), |c| c.message.clone());
    let text = format!("{text}{}", hold_text(&plan, Timestamp::now()));
    wait_with(operation, keep(DotOperationStatus { message: text, ..DotOperationStatus::default() }), ctx).await
}

/// The owner says that new mounts wait for it.
fn is_holding(view: &View, commit: &Commit) -> bool {
    let owner = view.fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| a.owner.pool.as_str());
    let replica = view.replicas.iter().find(|r| Some(r.spec.pool.as_str()) == owner);
    let answers = replica.and_then(|r| r.status.as_ref()).map(|s| s.commits.as_slice()).unwrap_or_default();
    answers.iter().any(|a| a.holding && Some(&a.uid) == commit.metadata.uid.as_ref())
}

/// What is said of the hold beside what the reset waits for.
fn hold_text(plan: &ResetPlan, now: Timestamp) -> String {
    match &plan.hold_until {
        None => String::new(),
        Some(until) if until.0 <= now => "; it keeps no pods from starting any more, its time for that is over".to_owned(),
        Some(_) if !plan.holding => String::new(),
        Some(until) => format!("; until {} no new pod gets the volume", until.0.round(Unit::Second).unwrap_or(until.0)),
    }
}

/// A name for the Commit, at most 253 bytes.
fn kept_name(operation: &str) -> String {
    let stem: String = operation.chars().take(240).collect();
    format!("before-{}", stem.trim_end_matches(['.', '-']))
}

fn keeper(operation: &DotOperation, plan: &ResetPlan) -> Commit {
    let t = &operation.spec.target;
    let annotations = [(OPERATION_ANNOTATION.to_owned(), operation.name_any())].into();
    let metadata = ObjectMeta {
        name: Some(plan.kept.clone()),
        namespace: operation.namespace(),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    let source = CommitSource { kind: t.kind, name: t.name.clone() };
    let message = format!("what was there before DotOperation {} reset it to {}", operation.name_any(), plan.to.commit);
    Commit { metadata, spec: CommitSpec { source, message, ..CommitSpec::default() }, status: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::filesystem::moving::tests::{copy, view};
    use crate::testing::{FS, commit, recorded};
    use dotgraft_api::CopyRole;

    const OTHER: &str = "0198c2a5-7f00-7000-8000-0000000000ff";

    fn to(view: &View, commit: Option<&str>, named: Option<&Commit>) -> Result<(String, String), String> {
        target(view, &Reset { commit: commit.map(str::to_owned), hold: false }, named).map(|o| (o.fs_id, o.commit))
    }

    #[test]
    fn without_a_name_it_is_the_newest_commit_or_where_it_began() {
        let mut v = view();
        v.replicas.clear();
        assert!(to(&v, None, None).is_err());
        v.fs.spec.origin = Some(Origin { fs_id: OTHER.into(), commit: OTHER.into() });
        assert_eq!(to(&v, None, None), Ok((OTHER.into(), OTHER.into())));
        let mut owner = (*copy("n1", CopyRole::Owner, 3)).clone();
        let at = |id: &str| dotgraft_api::ReplicaCommit {
            id: id.into(),
            parent: None,
            time: dotgraft_api::Time(Timestamp::UNIX_EPOCH),
            message: String::new(),
            epoch: 1,
            deleted: false,
        };
        owner.status.as_mut().unwrap().recent_commits = vec![at(FS), at(OTHER)];
        v.replicas = vec![Arc::new(owner)];
        assert_eq!(to(&v, None, None), Ok((v.fs.name_any(), FS.into())));
        let mut before = recorded(commit("before-r", 1));
        before.status.as_mut().unwrap().id = Some(FS.into());
        before.metadata.annotations = Some([(OPERATION_ANNOTATION.to_owned(), "r".to_owned())].into());
        v.commits = vec![Arc::new(before)];
        assert_eq!(to(&v, None, None), Ok((v.fs.name_any(), OTHER.into())), "what a reset kept is not the newest that people took");
    }

    #[test]
    fn only_a_commit_of_this_volume_or_the_one_it_began_with() {
        let mut v = view();
        assert_eq!(to(&v, Some(OTHER), None), Ok((v.fs.name_any(), OTHER.into())));
        assert!(to(&v, Some("c"), None).unwrap_err().contains("no Commit `c`"));
        assert!(to(&v, Some("c"), Some(&commit("c", 1))).unwrap_err().contains("not made yet"));
        let mut made = recorded(commit("c", 1));
        made.status.as_mut().unwrap().fs_id = Some(v.fs.name_any());
        assert_eq!(to(&v, Some("c"), Some(&made)).unwrap().0, v.fs.name_any());
        let mut foreign = made;
        foreign.status.as_mut().unwrap().fs_id = Some(OTHER.into());
        assert!(to(&v, Some("c"), Some(&foreign)).unwrap_err().contains("another volume"));
        v.fs.spec.origin = Some(Origin { fs_id: OTHER.into(), commit: foreign.status.clone().unwrap().id.unwrap() });
        assert_eq!(to(&v, Some("c"), Some(&foreign)).unwrap().0, OTHER);
    }

    #[test]
    fn it_holds_when_the_owner_says_so_of_its_commit() {
        let mut v = view();
        let before = commit("before-r", 1);
        let mut owner = (*copy("n1", CopyRole::Owner, 3)).clone();
        let uid = before.metadata.uid.clone().unwrap();
        let answer = dotgraft_api::ReplicaCommitStatus { uid, holding: true, ..Default::default() };
        owner.status.as_mut().unwrap().commits = vec![answer.clone()];
        v.replicas = vec![Arc::new(owner.clone())];
        assert!(is_holding(&v, &before) && !is_holding(&v, &commit("another", 2)));
        owner.status.as_mut().unwrap().commits = vec![dotgraft_api::ReplicaCommitStatus { holding: false, ..answer }];
        v.replicas = vec![Arc::new(owner)];
        assert!(!is_holding(&v, &before));
    }

    #[test]
    fn what_is_said_of_the_hold_has_its_end() {
        let until = Timestamp::from_second(1_000).unwrap();
        let plan = |holding| ResetPlan { hold_until: Some(Time(until)), holding, ..ResetPlan::default() };
        let said = |holding, second| hold_text(&plan(holding), Timestamp::from_second(second).unwrap());
        assert!(said(true, 999).contains("until 1970-01-01T00:16:40Z"), "{}", said(true, 999));
        assert_eq!(said(false, 999), "", "the owner doesn't know of it yet");
        assert!(said(true, 1_000).contains("over"));
        assert_eq!(hold_text(&ResetPlan::default(), until), "");
    }

    #[test]
    fn the_name_of_what_is_kept_is_bounded() {
        assert_eq!(kept_name("reset-d-x1"), "before-reset-d-x1");
        assert!(kept_name(&"x".repeat(253)).len() <= 253);
    }
}
