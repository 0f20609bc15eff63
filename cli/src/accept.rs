//! `kubectl dot accept`: a person accepts that the API shows an older time than the pools (`EpochRegression`) or no owner
//! (`AuthorityUnknown`). It writes `Filesystem.spec.acceptEpoch`; the operator sets authority to the highest epoch of all
//! pools plus one.

use anyhow::{Context, Result, bail};
use clap::Args;
use dotgraft_api::{Filesystem, Replica};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};

use crate::Common;
use crate::client::source;

#[derive(Debug, Args)]
pub struct AcceptArgs {
    /// Dot or Branch (NAME, dot/NAME, branch/NAME), or a Filesystem id.
    what: String,
    /// Yes, go on with what the pools hold.
    #[arg(long)]
    yes: bool,
}

pub async fn run(client: &Client, _common: &Common, args: &AcceptArgs) -> Result<()> {
    let filesystems = Api::<Filesystem>::all(client.clone());
    let fs_id = match filesystems.get_opt(&args.what).await? {
        Some(_) => args.what.clone(),
        None => source(client, &args.what).await?.fs_id.context("it has no Filesystem yet")?,
    };
    let replicas = Api::<Replica>::all(client.clone()).list(&ListParams::default().fields(&format!("spec.fsId={fs_id}"))).await?;
    let highest = replicas.iter().filter_map(|r| r.status.as_ref()).map(|s| s.epoch).max().unwrap_or(0);
    let shown = filesystems.get(&fs_id).await?.status.and_then(|s| s.authority).map_or(0, |a| a.epoch);
    if !args.yes {
        bail!(
            "the pools have seen epoch {highest}, the API shows {shown}; commits that only an unreachable node has may be left behind: say --yes to go on"
        );
    }
    let patch = serde_json::json!({"spec": {"acceptEpoch": highest.max(shown)}});
    filesystems.patch(&fs_id, &PatchParams::default(), &Patch::Merge(patch)).await?;
    println!("accepted for Filesystem {fs_id}; its owner opens it in epoch {} or later", highest.max(shown) + 1);
    Ok(())
}
