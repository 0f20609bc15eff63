//! Acts that are kept as a `DotOperation`: makes it, and says what became of it. `kubectl dot reset` is one.

use anyhow::{Result, bail};
use clap::Args;
use dotgraft_api::{DotOperation, DotOperationSpec, DotOperationStatus, OperationPhase, OperationTarget, Reset};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};

use crate::Common;
use crate::client::source;
use crate::output::{self, Table};
use crate::relocate::shown;
use crate::wait::{Seen, until};

#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Dot or Branch: NAME, dot/NAME or branch/NAME.
    source: String,
    /// Commit that it shall be again: its id or the name of its Commit object. By default the newest that no reset made; of a Branch without commits the one
    /// that it began with.
    #[arg(long)]
    to: Option<String>,
}

/// Makes the operation and waits for its end, telling each change once on standard error; `None`: nobody waits.
pub async fn perform(
    client: &Client,
    common: &Common,
    prefix: &str,
    spec: DotOperationSpec,
) -> Result<Option<(DotOperation, DotOperationStatus)>> {
    let api = Api::<DotOperation>::default_namespaced(client.clone());
    let metadata = ObjectMeta { generate_name: Some(prefix.to_owned()), ..ObjectMeta::default() };
    let made = api.create(&PostParams::default(), &DotOperation { metadata, spec, status: None }).await?;
    let name = made.name_any();
    let Some(timeout) = common.wait() else {
        println!("dotoperation.dotgraft.dev/{name} created");
        return Ok(None);
    };
    let mut told = String::new();
    let done = until(&api, &name, timeout, |operation| {
        let status = operation.status.clone().unwrap_or_default();
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
    Ok(Some((done, status)))
}

/// Replaces what a volume holds by a commit; waits until nothing has it mounted.
pub async fn reset(client: &Client, common: &Common, args: ResetArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let spec = DotOperationSpec {
        target: OperationTarget { kind: source.kind, name: source.name.clone() },
        promote: None,
        reset: Some(Reset { commit: args.to }),
    };
    let Some((done, status)) = perform(client, common, &format!("reset-{}-", source.name), spec).await? else { return Ok(()) };
    let plan = status.reset.unwrap_or_default();
    output::print(common.output, &done, |_| {
        let mut table = Table::new(&["VOLUME", "IS AGAIN", "BEFORE"]);
        table.row(vec![shown(&source), plan.to.commit.clone(), format!("commit/{}", plan.kept)]);
        table.text()
    })
}
