//! `dotgraft-agent`: reads its arguments and runs the agent until it is told to stop. Mounts stay when it ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dotgraft_agent::app::{self, Settings};
use dotgraft_agent::btrfs::PoolSource;
use dotgraft_agent::csi::CsiSettings;
use dotgraft_agent::logging::{self, Format};
use dotgraft_api::quantity::parse_quantity;
use dotgraft_engine::ids::{FsId, NodeName};
use tokio_util::sync::CancellationToken;

/// The agent of a node: owns the Filesystems in its pool.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    instead: Option<Instead>,
    #[command(flatten)]
    agent: Option<AgentArgs>,
}

/// What it does instead of being the agent.
#[derive(Debug, Subcommand)]
enum Instead {
    /// Makes the head of a Filesystem unwritable, and what is nested in it, with nothing but ioctls; for a guard of the agent.
    #[command(hide = true)]
    Freeze {
        /// Where the pool is mounted.
        #[arg(long)]
        pool: PathBuf,
        /// The Filesystem.
        #[arg(long)]
        fs: FsId,
    },
}

#[derive(Debug, clap::Args)]
struct AgentArgs {
    /// Name of the Node object.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Kubeconfig with the agent's own token; in a pod, leave it out to use the pod's own.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Directory for journal, certificates and the private mount of the pool.
    #[arg(long)]
    state_dir: PathBuf,
    /// File that holds the pool, made with --pool-file-size if it is not there.
    #[arg(long, required_unless_present = "pool_device", conflicts_with = "pool_device")]
    pool_file: Option<PathBuf>,
    /// Size of a new pool file, as a Kubernetes quantity.
    #[arg(long, default_value = "4Gi")]
    pool_file_size: String,
    /// Block device that holds the pool.
    #[arg(long)]
    pool_device: Option<PathBuf>,
    /// Address for other agents: an IP of this node.
    #[arg(long)]
    listen: SocketAddr,
    /// Address for metrics, and for probes where there is no --probes.
    #[arg(long)]
    http: SocketAddr,
    /// Address for probes alone, which only this machine should reach: 127.0.0.1:9810.
    #[arg(long)]
    probes: Option<SocketAddr>,
    /// Unix socket for programs of this node.
    #[arg(long)]
    socket: PathBuf,
    /// Namespace of the operator, where the agent keeps its Lease.
    #[arg(long, default_value = dotgraft_api::common::SYSTEM_NAMESPACE)]
    namespace: String,
    /// Seconds without a frame after which a sending peer is cut off, 1 to 30; one that trickles is after twice as long. For tests.
    #[arg(long, hide = true, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=30))]
    peer_silence: u64,
    /// Seconds that the kernel may read without a byte to send, such as while it compares large trees, before a transfer is given up:
    /// on the node that sends, and for peers on the one that receives.
    #[arg(long, env = "DOTGRAFT_KERNEL_SILENCE", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    kernel_silence: u64,
    /// Socket of the CSI driver, for the kubelet: usually plugins/csi.dotgraft.dev/csi.sock below its directory. Without it: no CSI.
    #[arg(long)]
    csi_socket: Option<PathBuf>,
    /// The kubelet's `plugins_registry`, where the driver makes itself known.
    #[arg(long, requires = "csi_socket")]
    plugins_registry: Option<PathBuf>,
    /// The kubelet's directory: volumes are mounted below it and nowhere else.
    #[arg(long, requires = "csi_socket")]
    kubelet_dir: Option<PathBuf>,
    /// How many volumes the scheduler may place on this node.
    #[arg(long, env = "DOTGRAFT_MAX_VOLUMES_PER_NODE", default_value_t = 500, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    max_volumes_per_node: i64,
    /// json or human; by default human on a terminal.
    #[arg(long)]
    log_format: Option<Format>,
}

impl AgentArgs {
    fn settings(self) -> anyhow::Result<Settings> {
        let pool = match (self.pool_file, self.pool_device) {
            (Some(path), _) => PoolSource::File { path, size_bytes: parse_quantity(&self.pool_file_size)? },
            (None, Some(device)) => PoolSource::Device(device),
            (None, None) => anyhow::bail!("give --pool-file or --pool-device"),
        };
        Ok(Settings {
            node: self.node_name.parse::<NodeName>()?,
            kubeconfig: self.kubeconfig,
            state_dir: self.state_dir,
            pool,
            listen: self.listen,
            http: self.http,
            probes: self.probes,
            socket: self.socket,
            namespace: self.namespace,
            peer_silence: Duration::from_secs(self.peer_silence),
            kernel_silence: Duration::from_secs(self.kernel_silence),
            csi: self.csi_socket.map(|socket| CsiSettings {
                socket,
                registry: self.plugins_registry,
                kubelet_dir: self.kubelet_dir,
                max_volumes: self.max_volumes_per_node,
            }),
        })
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match (args.instead, args.agent) {
        (Some(Instead::Freeze { pool, fs }), _) => {
            let root = std::fs::File::open(&pool).with_context(|| format!("open {}", pool.display()))?;
            Ok(dotgraft_agent::btrfs::freeze(root, fs)?)
        }
        (None, Some(agent)) => be_the_agent(agent),
        (None, None) => anyhow::bail!("see --help"),
    }
}

#[tokio::main]
async fn be_the_agent(args: AgentArgs) -> anyhow::Result<()> {
    logging::init(args.log_format);
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    tokio::spawn(async move {
        let _ = dotgraft_agent::app::terminated().await;
        signalled.cancel();
    });
    app::run(args.settings()?, stop).await
}
