//! The connection to the API server, as kubectl would make it; and the two kinds of objects that a name can mean.

use anyhow::{Context, Result, bail};
use dotgraft_api::{Branch, ClaimKind, Dot, DotStatus};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::Common;

/// A client whose default namespace is the one that the command works in.
pub async fn connect(common: &Common) -> Result<Client> {
    Ok(Client::try_from(config(common).await?)?)
}

/// The same, but what the API server answers is told at once: usually the client itself asks again, in silence, where it says "not now".
pub async fn connect_impatient(common: &Common) -> Result<Client> {
    let mut config = config(common).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn config(common: &Common) -> Result<Config> {
    let options = KubeConfigOptions { context: common.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &common.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await?
        }
        None if common.context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await.context("no kubeconfig: set KUBECONFIG or give --kubeconfig")?,
    };
    if let Some(namespace) = &common.namespace {
        config.default_namespace.clone_from(namespace);
    }
    Ok(config)
}

/// A Dot or a Branch.
#[derive(Debug, Clone)]
pub struct Source {
    /// Which of the two.
    pub kind: ClaimKind,
    /// Its name.
    pub name: String,
    /// Its Filesystem, once it has one.
    pub fs_id: Option<String>,
}

/// `NAME`, `dot/NAME` or `branch/NAME`; a plain name is a Dot if there is one.
pub async fn source(client: &Client, text: &str) -> Result<Source> {
    let (kind, name) = match text.split_once('/') {
        Some(("dot" | "dots", name)) => (Some(ClaimKind::Dot), name),
        Some(("branch" | "branches", name)) => (Some(ClaimKind::Branch), name),
        Some((other, _)) => bail!("`{other}` is neither dot nor branch: write dot/NAME or branch/NAME"),
        None => (None, text),
    };
    if kind != Some(ClaimKind::Branch)
        && let Some(dot) = Api::<Dot>::default_namespaced(client.clone()).get_opt(name).await?
    {
        return Ok(Source { kind: ClaimKind::Dot, name: name.into(), fs_id: dot.spec.fs_id });
    }
    if kind != Some(ClaimKind::Dot)
        && let Some(branch) = Api::<Branch>::default_namespaced(client.clone()).get_opt(name).await?
    {
        return Ok(Source { kind: ClaimKind::Branch, name: name.into(), fs_id: branch.spec.fs_id });
    }
    bail!("there is no Dot or Branch `{name}` in namespace {}", client.default_namespace())
}

/// The status that a Dot or Branch has now.
pub async fn status(client: &Client, source: &Source) -> Result<DotStatus> {
    let status = match source.kind {
        ClaimKind::Dot => Api::<Dot>::default_namespaced(client.clone()).get(&source.name).await?.status,
        ClaimKind::Branch => Api::<Branch>::default_namespaced(client.clone()).get(&source.name).await?.status,
    };
    Ok(status.unwrap_or_default())
}
