//! `kubectl dot commit`: makes a Commit object and waits for its id.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use dotgraft_api::{Commit, CommitSource, CommitSpec, ConditionType, condition, says};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};

use crate::client::source;
use crate::output::{self, Table};
use crate::wait::{Seen, until};
use crate::{Common, output::bytes};

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Dot or Branch: NAME, dot/NAME or branch/NAME.
    source: String,
    /// What it is for.
    #[arg(short, long, default_value = "")]
    message: String,
    /// KEY=VALUE kept with it; may be given again.
    #[arg(long = "meta", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Name of the Commit object; by default the source's name and a random end.
    #[arg(long)]
    name: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

pub async fn run(client: &Client, common: &Common, args: CommitArgs) -> Result<()> {
    let source = source(client, &args.source).await?;
    let spec = CommitSpec {
        source: CommitSource { kind: source.kind, name: source.name.clone() },
        message: args.message,
        metadata: args.metadata.into_iter().collect::<BTreeMap<_, _>>(),
    };
    let metadata = match args.name {
        Some(name) => ObjectMeta { name: Some(name), ..ObjectMeta::default() },
        None => ObjectMeta { generate_name: Some(format!("{}-", source.name)), ..ObjectMeta::default() },
    };
    let api = Api::<Commit>::default_namespaced(client.clone());
    let made = api.create(&PostParams::default(), &Commit { metadata, spec, status: None }).await?;
    let name = made.name_any();
    let Some(timeout) = common.wait() else {
        println!("commit.dotgraft.dev/{name} created");
        return Ok(());
    };
    let done = until(&api, &name, timeout, |commit| {
        let status = commit.status.clone().unwrap_or_default();
        let ready = condition(&status.conditions, ConditionType::Ready);
        match (&status.id, ready) {
            (Some(_), Some(c)) if says(c) == Some(true) => Seen::Done(commit.clone()),
            (_, Some(c)) => Seen::NotYet(format!("{}: {}", c.reason, c.message)),
            _ => Seen::NotYet(String::new()),
        }
    })
    .await?;
    let status = done.status.clone().ok_or_else(|| anyhow!("no status"))?;
    let Some(id) = status.id.clone() else { bail!("no id") };
    output::print(common.output, &done, |_| {
        let mut table = Table::new(&["NAME", "COMMIT", "PARENT", "CHANGED"]);
        table.row(vec![name.clone(), id, status.parent.unwrap_or_default(), status.changed_bytes.map(bytes).unwrap_or_default()]);
        table.text()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_key_and_value() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("a").is_err());
    }
}
