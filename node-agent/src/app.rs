//! Puts the agent together: API server, certificate, pool, journal, actors, servers; in the order in which each needs the
//! one before. What has to wait (for the operator, for the disk) waits visibly: `/readyz` says for what.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use dotgraft_api::ConditionType;
use dotgraft_api::condition::Word;
use dotgraft_door::pages;
use dotgraft_engine::filesystem::Here;
use dotgraft_engine::ids::{NodeName, PoolId};
use dotgraft_engine::model::Place;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::actor::api::ClusterApi;
use crate::actor::{Node, Registry};
use crate::btrfs::{BtrfsPool, PoolError, PoolSource, mounts};
use crate::cluster::authority::AuthorityClient;
use crate::cluster::events::Events;
use crate::cluster::pools::{Fact, OwnPool, PoolFacts};
use crate::cluster::status::StatusWriter;
use crate::cluster::{self, crds, lease, node, pools, replicas};
use crate::csi::kubelet::Kubelet;
use crate::csi::{Csi, CsiSettings};
use crate::driver::Driver;
use crate::journal::{self, Journal};
use crate::metrics::Metrics;
use crate::peer::csr::RenewSettings;
use crate::peer::{ClientSettings, IdentityStore, PeerClient, PeerDirectory, Renewer, ServerSettings, TlsContext, local, server};
use crate::readiness::Readiness;
use crate::supervisor::Supervisor;

/// How long between two looks for a disk that is not there.
const POOL_RETRY: Duration = Duration::from_secs(5);

/// What the agent is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its node.
    pub node: NodeName,
    /// The API server and our token; `None`: the pod's own.
    pub kubeconfig: Option<PathBuf>,
    /// Journal, certificates, private mount.
    pub state_dir: PathBuf,
    /// The disk.
    pub pool: PoolSource,
    /// For peers.
    pub listen: SocketAddr,
    /// For metrics, and for probes.
    pub http: SocketAddr,
    /// For probes alone, where only this machine comes.
    pub probes: Option<SocketAddr>,
    /// For programs of this node.
    pub socket: PathBuf,
    /// The operator's namespace.
    pub namespace: String,
    /// How long a sending peer may say nothing.
    pub peer_silence: Duration,
    /// How long a kernel that sends may give no byte: ours, and a peer's of which it says so.
    pub kernel_silence: Duration,
    /// For the kubelet; `None`: no CSI here.
    pub csi: Option<CsiSettings>,
}

/// Ends on SIGTERM or SIGINT.
///
/// # Errors
/// If the handlers can't be installed.
pub async fn terminated() -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// Runs the agent until `stop`.
///
/// # Errors
/// What can't be mended by waiting: bad arguments, a pool in use by another agent, a journal of another pool.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    crate::btrfs::refuse_if_in_use(&settings.pool)?;
    make_private_dir(&settings.state_dir)?;
    let metrics = Metrics::new();
    let ready = Readiness::default();
    ready.wait("pool", "not opened yet");
    ready.wait("services", "not started yet");
    serve_pages(&settings, &ready, &metrics).await?;

    let client = cluster::client(settings.kubeconfig.as_deref()).await?;
    tokio::select! {
        () = crds::settled(&client, &ready) => {}
        () = stop.cancelled() => return Ok(()),
    }
    let directory = PeerDirectory::default();
    let identity = IdentityStore::open(&settings.state_dir.join("tls"), settings.node.clone())?;
    let renewer = Renewer::new(client.clone(), identity.clone(), settings.listen, RenewSettings::default())?;
    let (own, pools_fresh) = pools::start(client.clone(), settings.node.clone(), directory.clone());
    let (renewing, listed, listing) = (stop.clone(), own.object(), pools_fresh.clone());
    let unlisted = move || listing.trouble().is_none() && listed.borrow().is_none();
    tokio::spawn(async move { renewer.run(unlisted, renewing).await });
    let fresh = pools_fresh.clone();
    ready.check(move || pools_fresh.trouble());

    let pool = tokio::select! {
        pool = open_pool(&settings, &own, &ready) => pool?,
        () = stop.cancelled() => return Ok(()),
    };
    ready.done("pool");
    let info = pool.pool().clone();
    let here = Here {
        place: Place { node: settings.node.clone(), pool: info.id },
        boot: node::boot_id()?,
        stream_version: info.stream_version,
        kernel_release: info.kernel_release.clone(),
    };
    let observe = metrics.clone();
    let options = journal::Options { observer: Some(Arc::new(move |seen| observe.journal(seen))), ..journal::Options::default() };
    let journal = Journal::open_with(&journal_path(&settings.state_dir), info.id, options)?;
    let context = TlsContext::new(identity, directory);
    let api = ClusterApi::new(
        here.clone(),
        AuthorityClient::new(client.clone()),
        StatusWriter::start(client.clone()),
        Events::start(client.clone(), &settings.node),
    );
    let peers = PeerClient::new(context.clone(), ClientSettings { kernel_silence: settings.kernel_silence, ..ClientSettings::default() });
    let registry = Registry::default();
    let node = Arc::new(Node::new(here, Arc::new(pool), Arc::new(journal), Arc::new(peers), Arc::new(api), metrics, registry.clone()));

    let pool_dev = pool_dev(&settings)?;
    let csi = settings.csi.clone().map(|csi| Csi::new(csi, node.clone(), pool_dev.clone(), own.clone(), ready.clone(), stop.clone()));
    let kubelet = Kubelet::default();
    if let Some(dir) = settings.csi.as_ref().and_then(|csi| csi.kubelet_dir.clone()) {
        tokio::spawn(kubelet.clone().watch(dir));
    }
    let mut supervisor = Supervisor::new(node, own, kubelet);
    supervisor.wake_all().await.map_err(|e| anyhow::anyhow!("{e}"))?;
    let (events, replicas_fresh, _watch) = replicas::watch(client.clone(), &settings.node);
    let fresh = vec![fresh, replicas_fresh.clone()];
    ready.check(move || replicas_fresh.trouble());
    let listener = TcpListener::bind(settings.listen).await.with_context(|| format!("--listen {}", settings.listen))?;
    let bounds = ServerSettings::with_silence(settings.peer_silence, settings.kernel_silence);
    spawn_logged("peer service", server::serve(listener, context, registry.clone(), bounds, stop.clone()));
    spawn_logged("local socket", local::serve(&settings.socket, registry, pool_dev, stop.clone())?);
    if let Some(csi) = csi {
        spawn_logged("CSI service", csi.serve()?);
    }
    ready.done("services");
    tokio::spawn(lease::beat(client, settings.namespace.clone(), settings.node.clone()));
    info!(node = %settings.node, pool = %info.id, listen = %settings.listen, "the agent runs");
    supervisor.run(events, fresh, stop).await;
    info!("stopped; mounts stay as they are");
    Ok(())
}

/// Probes and metrics, from the first moment on.
async fn serve_pages(settings: &Settings, ready: &Readiness, metrics: &Metrics) -> anyhow::Result<()> {
    let (asked, shown) = (ready.clone(), metrics.clone());
    let all = pages::usual(move || asked.troubles(), move || shown.encode());
    let http = TcpListener::bind(settings.http).await.with_context(|| format!("--http {}", settings.http))?;
    if let Some(address) = settings.probes {
        let probes = TcpListener::bind(address).await.with_context(|| format!("--probes {address}"))?;
        tokio::spawn(pages::serve(probes, pages::PROBES, Arc::clone(&all)));
    }
    tokio::spawn(pages::serve(http, pages::METRICS, all));
    Ok(())
}

fn spawn_logged<E: std::fmt::Display + Send>(what: &'static str, service: impl Future<Output = Result<(), E>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(e) = service.await {
            error!("{what} ended: {e}");
            // Without it the agent looks alive and serves nobody: the supervisor of the process starts it anew.
            std::process::exit(1);
        }
    });
}

fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| format!("--state-dir {}", path.display()))
}

/// How mount tables name the pool's superblock.
fn pool_dev(settings: &Settings) -> anyhow::Result<String> {
    let at = settings.state_dir.join("pool").canonicalize().context("the pool's mount point")?;
    let line = mounts::at(&at)?.with_context(|| format!("the pool is not mounted at {}", at.display()))?;
    Ok(line.dev)
}

fn journal_path(state_dir: &Path) -> PathBuf {
    state_dir.join("journal.db")
}

/// Opens the pool that belongs to this node: the one the journal is bound to, else the one NodePool records (storage.md §1).
/// A disk that is not there is waited for; nothing is formatted in its place.
async fn open_pool(settings: &Settings, own: &OwnPool, ready: &Readiness) -> anyhow::Result<BtrfsPool> {
    let expected = match journal::pool_of(&journal_path(&settings.state_dir))? {
        Some(pool) => Some(pool),
        None => recorded_pool(own, ready).await?,
    };
    let mount_point = settings.state_dir.join("pool");
    make_private_dir(&mount_point)?;
    loop {
        let (source, at) = (settings.pool.clone(), mount_point.clone());
        let opened = tokio::task::spawn_blocking(move || BtrfsPool::open(&source, &at, expected)).await?;
        match opened {
            Ok((pool, report)) => {
                info!(?report, "pool opened");
                return Ok(pool);
            }
            Err(e @ PoolError::Missing { .. }) => {
                warn!("{e}");
                ready.wait("pool", &format!("PoolMissing: {e}"));
                own.set(unusable(expected, "PoolMissing", &[ConditionType::Ready, ConditionType::PoolMissing], &e.to_string()));
                tokio::time::sleep(POOL_RETRY).await;
            }
            // Somebody has to do something about what is there: said where people look, and tried again.
            Err(e @ (PoolError::Refused(_) | PoolError::TwoLoops { .. })) => {
                warn!("{e}");
                ready.wait("pool", &format!("PoolRefused: {e}"));
                own.set(unusable(expected, Word::PoolRefused.as_str(), &[ConditionType::Ready], &e.to_string()));
                tokio::time::sleep(POOL_RETRY).await;
            }
            Err(e) => bail!("the pool can't be opened: {e}"),
        }
    }
}

/// Without a journal only the API knows whether this node had a pool: so the agent waits for it before it formats anything.
async fn recorded_pool(own: &OwnPool, ready: &Readiness) -> anyhow::Result<Option<PoolId>> {
    ready.wait("pool", "waiting for the operator to make this node's NodePool object");
    let object = own.exists().await.context("the watch of NodePools ended")?;
    let recorded = object.status.as_ref().and_then(|s| s.pool.as_deref());
    Ok(recorded.map(str::parse).transpose()?)
}

/// Of a pool that can't be used, the first of the conditions being false for that reason, and others true.
fn unusable(expected: Option<PoolId>, reason: &str, conditions: &[ConditionType], message: &str) -> PoolFacts {
    let fact = |(n, kind): (usize, &ConditionType)| Fact {
        kind: kind.as_str().into(),
        status: Some(n > 0),
        reason: reason.into(),
        message: message.into(),
    };
    PoolFacts { pool: expected, conditions: conditions.iter().enumerate().map(fact).collect(), ..PoolFacts::default() }
}
