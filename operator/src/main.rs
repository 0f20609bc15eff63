//! The program: reads flags, opens the watches, campaigns for the lease, and controls while it leads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use dotgraft_operator::context::Ctx;
use dotgraft_operator::crds::Crds;
use dotgraft_operator::http::{Health, serve};
use dotgraft_operator::metrics::Metrics;
use dotgraft_operator::{csi, leader, runtime, webhook};
use futures::FutureExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Decides what every agent is to do, and signs the agents' certificates.
#[derive(Debug, Parser)]
#[command(name = "dotgraft-operator", version)]
struct Args {
    /// Kubeconfig file; in a pod, leave it out to use the pod's own token.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the lease, the CA and the agents' `ServiceAccount`.
    #[arg(long, default_value = "dotgraft-system")]
    namespace: String,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, default_value = "127.0.0.1:9808")]
    http: SocketAddr,
    /// Name of this process in the lease; must differ between processes.
    #[arg(long)]
    identity: Option<String>,
    /// Seconds that agents' certificates are valid, 10 to 604800 (seven days); they renew at two thirds. For tests and drills: each
    /// renewal is a request to the API server, so less than an hour is no setting for production.
    #[arg(long, env = "DOTGRAFT_CERTIFICATE_LIFETIME", hide = true, default_value_t = 604_800, value_parser = clap::value_parser!(u64).range(10..=604_800))]
    certificate_lifetime: u64,
    /// Unix socket on which CSI Identity and Controller are served to the sidecars; left out, there is no CSI.
    #[arg(long)]
    csi_socket: Option<PathBuf>,
    /// Directory in which the sidecars find what they prove themselves by: `kubeconfig` and `token`, of the `ServiceAccount` dotgraft-csi.
    #[arg(long)]
    sidecar_identity: Option<PathBuf>,
    /// Only make that, and end: the sidecars start after it.
    #[arg(long, requires = "sidecar_identity")]
    begin: bool,
    /// Seconds after which a copy that was made for a move, for pods that read, or for `placement.replicas` is deleted when nothing needs it any
    /// more; 0 keeps such copies until somebody drops them.
    #[arg(long, env = "DOTGRAFT_SPARE_COPY_SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(0..=31_536_000))]
    spare_copy_seconds: u64,
    /// Most volumes that a node may have attached; the agents' `--max-volumes-per-node` should say the same.
    #[arg(long, env = "DOTGRAFT_CSI_ATTACH_LIMIT", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    csi_attach_limit: u32,
    /// Where the pod webhook is served, by TLS; left out, there is none and pods get no preference for the nodes of their volumes.
    #[arg(long)]
    webhook: Option<SocketAddr>,
    /// The Service in --namespace by which the API server reaches the webhook, as its configuration names it.
    #[arg(long, default_value = "dotgraft-operator")]
    webhook_service: String,
    /// Whether the operator applies its own CRDs where the cluster's are older or missing. Never the other way round.
    #[arg(long, env = "DOTGRAFT_APPLY_CRDS", default_value_t = true, action = clap::ArgAction::Set)]
    apply_crds: bool,
    /// Seconds in deletion after which an object counts as stuck (`dotgraft_operator_stuck_finalizers`).
    #[arg(long, env = "DOTGRAFT_STUCK_AFTER", hide = true, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    stuck_after: u32,
    /// Seconds after which a volume goes that was made for a PVC which was deleted before it had it.
    #[arg(long, env = "DOTGRAFT_FORSAKEN_AFTER", hide = true, default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    forsaken_after: u32,
    /// Most volumes with metrics of their own (`dotgraft_operator_volume_…`); 0 for none.
    #[arg(long, env = "DOTGRAFT_VOLUME_METRICS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    volume_metrics: u32,
    /// json for machines, human for a terminal.
    #[arg(long, value_enum, default_value = "json")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Human,
}

fn init_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Human => builder.init(),
    }
}

async fn config(args: &Args) -> Result<Config> {
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.context("using the kubeconfig")?
        }
        None => Config::infer().await.context("finding the API server: give --kubeconfig")?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    Ok(config)
}

fn identity(args: &Args) -> String {
    args.identity.clone().unwrap_or_else(|| {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".into());
        format!("{host}-{}", uuid::Uuid::new_v4())
    })
}

/// Controls while we lead, as soon as the CRDs are new enough; stops at once when the lease is lost.
async fn lead(ctx: Arc<Ctx>, crds: Crds, mut leading: watch::Receiver<bool>) {
    loop {
        if leading.wait_for(|l| *l).await.is_err() {
            return;
        }
        tracing::info!("leading");
        ctx.metrics.leading(true);
        tokio::select! {
            () = crds.ready().then(|()| runtime::control(ctx.clone())) => {}
            _ = leading.wait_for(|l| !*l) => {}
        }
        ctx.metrics.leading(false);
        tracing::warn!("not leading any more");
    }
}

/// Serves CSI if it is asked for, as soon as the CRDs are new enough; else waits for ever.
async fn serve_csi(args: &Args, ctx: Arc<Ctx>, crds: &Crds) -> Result<()> {
    crds.ready().await;
    match &args.csi_socket {
        Some(socket) => Ok(csi::serve(socket, usize::try_from(args.csi_attach_limit)?, ctx).await?),
        None => std::future::pending().await,
    }
}

/// Keeps what the sidecars prove themselves by, if it is asked for; else waits for ever.
async fn keep_sidecars(args: &Args, server: &csi::sidecars::Server, client: &Client) {
    match &args.sidecar_identity {
        Some(dir) => csi::sidecars::keep(dir, server, client, &args.namespace).await,
        None => std::future::pending().await,
    }
}

/// Serves the pod webhook if it is asked for; else waits for ever.
async fn serve_webhook(args: &Args, ctx: Arc<Ctx>, leading: watch::Receiver<bool>) -> Result<()> {
    match args.webhook {
        Some(listen) => webhook::serve(listen, &args.webhook_service, ctx, leading).await.context("serving the pod webhook"),
        None => std::future::pending().await,
    }
}

async fn watch_health(ctx: Arc<Ctx>, crds: Crds, health: Arc<Health>) {
    loop {
        let synced = if ctx.caches.fresh() { None } else { Some("caches are not synced".to_owned()) };
        health.set_trouble(crds.trouble().or(synced));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    init_logs(args.log_format);
    // A second installation of the same provider is no error.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let identity = identity(&args);
    let config = config(&args).await?;
    let server = csi::sidecars::Server::of(&config);
    let client = Client::try_from(config).context("making the client")?;
    if let (Some(dir), true) = (&args.sidecar_identity, args.begin) {
        csi::sidecars::begin(dir, &server, &client, &args.namespace).await;
        return Ok(());
    }
    let metrics = Arc::new(Metrics::default());
    let health = Arc::new(Health::default());
    let ctx = Ctx::new(client.clone(), args.namespace.clone(), identity.clone(), metrics.clone());
    let spare = Some(args.spare_copy_seconds).filter(|s| *s > 0);
    let ctx = ctx.with_volume_metrics(usize::try_from(args.volume_metrics).unwrap_or(usize::MAX));
    let ctx = Arc::new(
        ctx.with_certificate_life(Duration::from_secs(args.certificate_lifetime))
            .with_spare_after(spare)
            .with_forsaken_after(args.forsaken_after),
    );
    let crds = Crds::new(client.clone(), args.apply_crds);
    let (tx, rx) = watch::channel(false);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!(identity, version = env!("CARGO_PKG_VERSION"), "starting");
    tokio::select! {
        served = serve(args.http, health.clone(), metrics) => served.context("serving probes")?,
        () = runtime::watch(ctx.clone()) => anyhow::bail!("the watches have ended"),
        () = crds.run() => {}
        () = watch_health(ctx.clone(), crds.clone(), health) => {}
        () = runtime::count_stuck(ctx.clone(), Duration::from_secs(args.stuck_after.into())) => {}
        () = leader::run(client.clone(), args.namespace.clone(), identity.clone(), tx) => {}
        () = keep_sidecars(&args, &server, &client) => {}
        served = serve_csi(&args, ctx.clone(), &crds) => served?,
        served = serve_webhook(&args, ctx.clone(), rx.clone()) => served?,
        () = lead(ctx, crds.clone(), rx) => {}
        _ = term.recv() => tracing::info!("SIGTERM"),
        _ = int.recv() => tracing::info!("SIGINT"),
    }
    leader::release(client, &args.namespace, &identity).await;
    Ok(())
}
