//! `kubectl dot branch`: makes a Branch object and waits until it can be mounted.

use anyhow::Result;
use clap::Args;
use dotgraft_api::{Branch, BranchFrom, BranchSpec, ClaimKind, ConditionType, DeletionPolicy, Fencing, condition, says};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};

use crate::Common;
use crate::client::source;
use crate::find;
use crate::output::{self, Table};
use crate::wait::{Seen, until};

#[derive(Debug, Args)]
pub struct BranchArgs {
    /// Dot or Branch to start from: NAME, dot/NAME or branch/NAME.
    source: String,
    /// Name of the new Branch.
    name: String,
    /// Commit to start from: the name of its Commit object, or as much of its id as no other has. By default the newest.
    #[arg(long)]
    commit: Option<String>,
}

pub async fn run(client: &Client, common: &Common, args: BranchArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let (dot, branch) = match source.kind {
        ClaimKind::Dot => (source.name.clone(), None),
        ClaimKind::Branch => {
            let parent = Api::<Branch>::default_namespaced(client.clone()).get(&source.name).await?;
            (parent.spec.dot, Some(source.name.clone()))
        }
    };
    let commit = match &args.commit {
        Some(text) => Some(find::commit(client, &source, text).await?),
        None => None,
    };
    // A Branch starts from one thing: a commit says it all.
    let from = match (commit, branch) {
        (Some(commit), _) => Some(BranchFrom { branch: None, commit: Some(commit) }),
        (None, Some(branch)) => Some(BranchFrom { branch: Some(branch), commit: None }),
        (None, None) => None,
    };
    let spec = BranchSpec {
        dot,
        from,
        capacity: None,
        history_limit: None,
        fs_id: None,
        placement: None,
        deletion_policy: DeletionPolicy::default(),
        fencing: Fencing::default(),
    };
    let metadata = ObjectMeta { name: Some(args.name.clone()), ..ObjectMeta::default() };
    let api = Api::<Branch>::default_namespaced(client.clone());
    let made = api.create(&PostParams::default(), &Branch { metadata, spec, status: None }).await?;
    let Some(timeout) = common.wait() else {
        println!("branch.dotgraft.dev/{} created", made.name_any());
        return Ok(());
    };
    let ready = until(&api, &args.name, timeout, |branch| {
        let conditions = branch.status.clone().unwrap_or_default().conditions;
        match condition(&conditions, ConditionType::Ready) {
            Some(c) if says(c) == Some(true) => Seen::Done(branch.clone()),
            Some(c) => Seen::NotYet(format!("{}: {}", c.reason, c.message)),
            None => Seen::NotYet(String::new()),
        }
    })
    .await?;
    let status = ready.status.clone().unwrap_or_default();
    output::print(common.output, &ready, |_| {
        let mut table = Table::new(&["BRANCH", "NODE", "FILESYSTEM"]);
        table.row(vec![args.name.clone(), status.owner.unwrap_or_default(), status.fs_id.unwrap_or_default()]);
        table.text()
    })
}
