//! Acts that are kept as a `DotOperation`: makes it, and says what became of it. `kubectl dot reset` is one.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use dotgraft_api::{
    Commit, ConditionType, DotOperation, DotOperationSpec, DotOperationStatus, OperationPhase, OperationTarget, Reset, condition,
};
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::Common;
use crate::client::{Source, source};
use crate::evict::{Evictor, Which};
use crate::find;
use crate::output::{self, Table};
use crate::relocate::shown;
use crate::users::Users;
use crate::wait::{Seen, TimedOut, try_until};

/// Longest that is waited for the owner to hear that a reset was taken back.
const HEARING: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Dot or Branch: NAME, dot/NAME or branch/NAME.
    source: String,
    /// Commit that it shall be again: the name of its Commit object, or as much of its id as no other has. By default the newest that no reset made; of a Branch without commits the one
    /// that it began with.
    #[arg(long)]
    to: Option<String>,
    /// Evict the pods on the owner's node that use it, with your own rights; until it is done no new pod gets the volume, for five minutes at most.
    #[arg(long)]
    evict: bool,
}

/// Makes the operation; its name.
async fn make(client: &Client, prefix: &str, spec: DotOperationSpec) -> Result<String> {
    let api = Api::<DotOperation>::default_namespaced(client.clone());
    let metadata = ObjectMeta { generate_name: Some(prefix.to_owned()), ..ObjectMeta::default() };
    Ok(api.create(&PostParams::default(), &DotOperation { metadata, spec, status: None }).await?.name_any())
}

/// Makes the operation and waits for its end, telling each change once on standard error; `None`: nobody waits.
pub async fn perform(
    client: &Client,
    common: &Common,
    prefix: &str,
    spec: DotOperationSpec,
) -> Result<Option<(DotOperation, DotOperationStatus)>> {
    let of = Source { kind: spec.target.kind, name: spec.target.name.clone(), fs_id: None };
    let name = make(client, prefix, spec).await?;
    let Some(timeout) = common.wait() else {
        println!("dotoperation.dotgraft.dev/{name} created");
        return Ok(None);
    };
    outcome(client, &of, &name, timeout).await.map(Some)
}

/// Waits for an operation's end. What is given up waiting for, or interrupted, is taken back: it would be done at a time when nobody expects it.
async fn outcome(client: &Client, of: &Source, name: &str, timeout: Duration) -> Result<(DotOperation, DotOperationStatus)> {
    let api = Api::<DotOperation>::default_namespaced(client.clone());
    let users = Users::default();
    let given_up = tokio::select! {
        never = users.watch(client, of) => match never {},
        ended = ending(&api, name, timeout, &users) => match ended {
            Err(e) if e.is::<TimedOut>() => e.to_string(),
            ended => return ended,
        },
        _ = tokio::signal::ctrl_c() => "interrupted".to_owned(),
    };
    match take_back(&api, name).await {
        Ok(TakenBack::Ended(done)) => Ok(*done),
        Ok(TakenBack::Withdrawn { kept: None }) => bail!("{given_up}; it was taken back, and will not be done"),
        Ok(TakenBack::Withdrawn { kept: Some(kept) }) => bail!("{given_up}; {}", heard(client, &kept).await?),
        Err(e) => bail!(
            "{given_up}; it could not be taken back ({}), and may still be done: `kubectl delete dotoperation {name}`",
            output::sentence(&e)
        ),
    }
}

/// What became of an operation that nobody waits for any more.
enum TakenBack {
    /// It had ended.
    Ended(Box<(DotOperation, DotOperationStatus)>),
    /// It is deleted; an owner may be at work for the Commit of that name.
    Withdrawn { kept: Option<String> },
}

/// Deletes an operation that has not ended. What has ended meanwhile stays, and is the answer.
async fn take_back(api: &Api<DotOperation>, name: &str) -> Result<TakenBack> {
    let mut kept = None;
    loop {
        let Some(operation) = api.get_opt(name).await? else { return Ok(TakenBack::Withdrawn { kept }) };
        let status = operation.status.clone().unwrap_or_default();
        match status.phase {
            Some(OperationPhase::Refused) => bail!("{}", status.message),
            Some(OperationPhase::Done) => return Ok(TakenBack::Ended(Box::new((operation, status)))),
            None => kept = status.reset.map(|r| r.kept),
        }
        let preconditions = Preconditions { uid: operation.uid(), resource_version: operation.resource_version() };
        match api.delete(name, &DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }).await {
            Ok(_) => return Ok(TakenBack::Withdrawn { kept }),
            // It has changed since it was read: look again.
            Err(kube::Error::Api(s)) if s.is_conflict() => {}
            Err(kube::Error::Api(s)) if s.is_not_found() => return Ok(TakenBack::Withdrawn { kept }),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Waits until the owner has heard that a reset was taken back, as its wish is withdrawn only after the operation; what to say.
async fn heard(client: &Client, kept: &str) -> Result<String> {
    let api = Api::<Commit>::default_namespaced(client.clone());
    let end = Instant::now() + HEARING;
    loop {
        let Some(commit) = api.get_opt(kept).await? else { return Ok("it was taken back, and will not be done".to_owned()) };
        let status = commit.status.unwrap_or_default();
        if status.id.is_some() {
            return Ok(format!("it was done before that was heard; what the volume held before is Commit `{kept}`"));
        }
        let ready = condition(&status.conditions, ConditionType::Ready);
        if ready.is_some_and(|r| r.reason == ConditionType::Cancelled.as_str()) {
            return Ok("it was taken back, and will not be done".to_owned());
        }
        if Instant::now() >= end {
            return Ok(format!(
                "it was taken back, but the owner has not heard of it after {} s and may still do it: Commit `{kept}` says `Cancelled` when it has",
                HEARING.as_secs()
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn ending(api: &Api<DotOperation>, name: &str, timeout: Duration, users: &Users) -> Result<(DotOperation, DotOperationStatus)> {
    let mut told = String::new();
    let done = try_until(api, name, timeout, |operation| {
        let mut status = operation.status.clone().unwrap_or_default();
        status.message = users.named(&status.message);
        if status.phase.is_none() && told != status.message {
            eprintln!("{}", status.message);
            told.clone_from(&status.message);
        }
        match status.phase {
            Some(OperationPhase::Done) => Seen::Done(operation.clone()),
            Some(OperationPhase::Refused) => Seen::Failed(status.message),
            None => Seen::NotYet(status.message),
        }
    })
    .await?;
    let Some(status) = done.status.clone() else { bail!("{name} has no status") };
    Ok((done, status))
}

/// A reset that makes the volume's pods leave, as soon as the owner says that none comes back before it.
async fn evicting(client: &Client, common: &Common, source: &Source, spec: DotOperationSpec) -> Result<(DotOperation, DotOperationStatus)> {
    let Some(timeout) = common.wait() else { bail!("--evict waits for the pods: give a --timeout") };
    let evictor = Evictor::new(common, client, source, Which::AndMounting).await?;
    let name = make(client, &format!("reset-{}-", source.name), spec).await?;
    let api = Api::<DotOperation>::default_namespaced(client.clone());
    let holding = || async {
        let operation = api.get_opt(&name).await?;
        Ok(operation.and_then(|o| o.status).and_then(|s| s.reset).is_some_and(|r| r.holding))
    };
    let ended = tokio::select! {
        ended = outcome(client, source, &name, timeout) => ended,
        Err(e) = evictor.run(holding) => Err(e.context(format!("DotOperation {name} goes on without evictions"))),
    };
    ended.map_err(|e| anyhow!("{}{}", output::sentence(&e), evictor.obstacles()))
}

/// Replaces what a volume holds by a commit; waits until nothing has it mounted.
pub async fn reset(client: &Client, common: &Common, args: ResetArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let commit = match &args.to {
        Some(text) => Some(find::commit(client, &source, text).await?),
        None => None,
    };
    let spec = DotOperationSpec {
        target: OperationTarget { kind: source.kind, name: source.name.clone() },
        promote: None,
        reset: Some(Reset { commit, hold: args.evict }),
    };
    let ended = if args.evict {
        Some(evicting(client, common, &source, spec).await?)
    } else {
        perform(client, common, &format!("reset-{}-", source.name), spec).await?
    };
    let Some((done, status)) = ended else { return Ok(()) };
    let plan = status.reset.unwrap_or_default();
    output::print(common.output, &done, |_| {
        let mut table = Table::new(&["VOLUME", "IS AGAIN", "BEFORE"]);
        table.row(vec![shown(&source), plan.to.commit.clone(), format!("commit/{}", plan.kept)]);
        table.text()
    })
}
