//! `kubectl dot move` and `kubectl dot promote`: another node is to own a Dot or Branch; with the present owner's help, or without.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use dotgraft_api::{Branch, ClaimKind, ConditionType, Dot, DotOperationSpec, DotStatus, OperationTarget, Promote, is_true};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::Common;
use crate::client::{Source, source};
use crate::evict::{Evictor, Which};
use crate::operation;
use crate::output::{self, Table, bytes};
use crate::users::Users;
use crate::wait::{Seen, is_of, until};

#[derive(Debug, Args)]
pub struct MoveArgs {
    /// Dot or Branch: NAME, dot/NAME or branch/NAME.
    source: String,
    /// Node that is to own it.
    #[arg(long)]
    to: String,
    /// Evict the pods on the owner's node that use it, with your own rights, once each; new ones prefer the other node.
    #[arg(long)]
    evict: bool,
}

#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Dot or Branch: NAME, dot/NAME or branch/NAME.
    source: String,
    /// Node of the copy that takes over; by default the one with the newest commit.
    #[arg(long)]
    to: Option<String>,
    /// What the present owner has beyond that copy may be lost. Needs the verb accept-loss.
    #[arg(long)]
    accept_loss: bool,
}

/// Sets `placement.node`, and shows how the move goes.
pub async fn relocate(client: &Client, common: &Common, args: &MoveArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let evictor = match (args.evict, common.wait()) {
        (true, None) => bail!("--evict waits for the pods: give a --timeout"),
        (true, Some(_)) => Some(Evictor::new(common, client, &source, Which::Present).await?),
        (false, _) => None,
    };
    let patch = Patch::Merge(json!({"spec": {"placement": {"node": args.to}}}));
    let dots = Api::<Dot>::default_namespaced(client.clone());
    let branches = Api::<Branch>::default_namespaced(client.clone());
    match source.kind {
        ClaimKind::Dot => drop(dots.patch(&source.name, &PatchParams::default(), &patch).await?),
        ClaimKind::Branch => drop(branches.patch(&source.name, &PatchParams::default(), &patch).await?),
    }
    let Some(timeout) = common.wait() else {
        println!("{} moves to {}", shown(&source), args.to);
        return Ok(());
    };
    let mut told = String::new();
    let users = Users::default();
    let moved = async {
        match source.kind {
            ClaimKind::Dot => {
                until(&dots, &source.name, timeout, |d| look(d.metadata.generation, d.status.clone(), &args.to, &users, &mut told)).await
            }
            ClaimKind::Branch => {
                until(&branches, &source.name, timeout, |b| look(b.metadata.generation, b.status.clone(), &args.to, &users, &mut told))
                    .await
            }
        }
    };
    let moved = async {
        tokio::select! {
            moved = moved => moved,
            never = users.watch(client, &source) => match never {},
        }
    };
    let status = match &evictor {
        None => moved.await?,
        Some(evictor) => tokio::select! {
            moved = moved => moved,
            Err(e) = evictor.run(|| async { Ok(evictor.status().await?.owner.is_some_and(|owner| owner != args.to)) }) => Err(e),
        }
        .map_err(|e| anyhow!("{}{}", output::sentence(&e), evictor.obstacles()))?,
    };
    output::print(common.output, &status.migration, |_| {
        let moved = status.migration.clone().unwrap_or_default();
        let mut table = Table::new(&["VOLUME", "FROM", "TO", "SENT", "FROZEN"]);
        table.row(vec![shown(&source), moved.from, args.to.clone(), bytes(moved.bytes), format!("{} ms", moved.frozen_ms)]);
        table.text()
    })
}

/// `dot/NAME` or `branch/NAME`.
pub fn shown(source: &Source) -> String {
    format!("{}/{}", source.kind.as_str().to_lowercase(), source.name)
}

/// Tells each change of the phase once, on standard error.
fn look(generation: Option<i64>, status: Option<DotStatus>, to: &str, users: &Users, told: &mut String) -> Seen<DotStatus> {
    let status = status.unwrap_or_default();
    let ready = is_true(&status.conditions, ConditionType::Ready).is_some();
    if status.owner.as_deref() == Some(to) && ready {
        return Seen::Done(status);
    }
    let refused = is_true(&status.conditions, ConditionType::PlacementRefused);
    if let Some(refused) = refused.filter(|_| is_of(generation, status.observed_generation)) {
        return Seen::Failed(refused.message.clone());
    }
    let now = match is_true(&status.conditions, ConditionType::Migrating) {
        Some(c) => users.named(&format!("{}: {}", c.reason, c.message)),
        // What Kubernetes has attached stays where it is, whatever is asked for.
        None => match (users.names().as_slice(), &status.owner) {
            ([], _) | (_, None) => "waiting for the operator".to_owned(),
            (pods, Some(node)) => {
                format!("waiting for pod {} on node {node}, which has it mounted: end it, or move with --evict", pods.join(", pod "))
            }
        },
    };
    if *told != now {
        eprintln!("{now}");
        told.clone_from(&now);
    }
    Seen::NotYet(now)
}

/// Makes a `DotOperation`, and says what became of it.
pub async fn promote(client: &Client, common: &Common, args: PromoteArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let spec = DotOperationSpec {
        target: OperationTarget { kind: source.kind, name: source.name.clone() },
        promote: Some(Promote { node: args.to, accept_loss: args.accept_loss }),
        reset: None,
    };
    let Some((done, status)) = operation::perform(client, common, &format!("promote-{}-", source.name), spec).await? else { return Ok(()) };
    output::print(common.output, &done, |_| {
        let mut table = Table::new(&["VOLUME", "FROM", "TO", "EPOCH"]);
        let epoch = status.epoch.map(|e| e.to_string()).unwrap_or_default();
        table.row(vec![shown(&source), status.from.unwrap_or_default(), status.to.unwrap_or_default(), epoch]);
        table.text()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(observed: i64) -> DotStatus {
        let conditions = json!([
            {"type": "Ready", "status": "False", "reason": "PlacementRefused", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "PlacementRefused", "status": "True", "reason": "R", "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]);
        serde_json::from_value(json!({"owner": "n1", "observedGeneration": observed, "conditions": conditions})).expect("a status")
    }

    #[test]
    fn a_refusal_of_what_was_wanted_before_is_none_of_this_move() {
        let mut told = String::new();
        let users = Users::default();
        assert!(matches!(look(Some(3), Some(refused(2)), "n2", &users, &mut told), Seen::NotYet(_)));
        assert!(matches!(look(Some(3), Some(refused(3)), "n2", &users, &mut told), Seen::Failed(why) if why == "no"));
    }
}
