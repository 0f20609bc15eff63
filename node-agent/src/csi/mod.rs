//! CSI on this node: what the kubelet asks (csi.md). Identity and Node on one Unix socket, the driver's registration on another.
//!
//! Nothing of a volume is kept here. A mount is a fact in the kernel's mount table, and every change of one is a message to the
//! Filesystem's owner (`actor`), which refuses where this node has not opened authority.
//!
//! - `volume`: handles and capabilities, checked    - `place`: target paths, confined to the kubelet's directory
//! - `mounting`: stage, publish and their undoing   - `fsgroup`: the group of a pod, touching only what differs
//! - `figures`: stats, expansion, the node's facts  - `refusal`: the one place where a gRPC code is chosen
//! - `service`: the RPCs                            - `registration`: the kubelet's plugin registration, v1
//! - `kubelet`: whether the kubelet uses our directory

mod figures;
mod fsgroup;
mod inflight;
pub mod kubelet;
mod mounting;
mod place;
mod refusal;
mod registration;
mod service;
mod volume;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dotgraft_proto::authority::HostlessStream;
use dotgraft_proto::registration::registration_server::RegistrationServer;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::actor::Node;
use crate::cluster::pools::OwnPool;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::socket::{self, SocketError};

/// What the agent is told of CSI at its start.
#[derive(Debug, Clone)]
pub struct CsiSettings {
    /// The driver's socket, as the kubelet sees it.
    pub socket: PathBuf,
    /// The kubelet's `plugins_registry`; without it the driver is not registered.
    pub registry: Option<PathBuf>,
    /// The kubelet's directory: all targets are below. Without it they may be anywhere.
    pub kubelet_dir: Option<PathBuf>,
    /// How many volumes the node takes.
    pub max_volumes: i64,
}

/// What the services share.
pub struct Csi {
    settings: CsiSettings,
    node: Arc<Node>,
    /// `major:minor` of the pool, as mount tables show it.
    pool_dev: String,
    own: OwnPool,
    ready: Readiness,
    metrics: Metrics,
    inflight: inflight::InFlight,
    stop: CancellationToken,
    /// Targets that this process has published writable. Only to tell another request for the target from a read-only mount that a
    /// crash left half-made.
    writable: Mutex<HashSet<PathBuf>>,
}

impl Csi {
    /// For a pool that is mounted as `pool_dev` in mount tables.
    pub fn new(
        settings: CsiSettings,
        node: Arc<Node>,
        pool_dev: String,
        own: OwnPool,
        ready: Readiness,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let (metrics, inflight) = (node.metrics.clone(), inflight::InFlight::default());
        Arc::new(Self { settings, node, pool_dev, own, ready, metrics, inflight, stop, writable: Mutex::default() })
    }

    /// Listens at both sockets at once; what it returns serves them until cancelled. Their files stay.
    ///
    /// # Errors
    /// If a socket can't be made.
    pub fn serve(self: Arc<Self>) -> Result<impl Future<Output = Result<(), SocketError>> + use<>, SocketError> {
        let transport = |path: PathBuf| move |source| SocketError::Transport { path, source };
        let (path, cancel) = (self.settings.socket.clone(), self.stop.clone());
        let incoming = connections(&path, cancel.clone())?;
        let driver = server().serve_with_incoming_shutdown(service::Both::new(self.clone()), incoming, cancel.clone().cancelled_owned());
        // The driver's socket is there by now: the kubelet asks it as soon as it knows of it.
        let registration = match &self.settings.registry {
            None => None,
            Some(registry) => {
                let at = registration::socket(registry);
                let incoming = connections(&at, cancel.clone())?;
                let service = RegistrationServer::new(registration::Registration::new(path.clone(), self.ready.clone()));
                let server = server().serve_with_incoming_shutdown(service, incoming, cancel.cancelled_owned());
                Some(async move { server.await.map_err(transport(at)) })
            }
        };
        let driver = async move { driver.await.map_err(transport(path)) };
        Ok(async move {
            match registration {
                None => driver.await,
                Some(registration) => tokio::try_join!(driver, registration).map(|_| ()),
            }
        })
    }
}

fn server() -> Server {
    Server::builder().max_concurrent_streams(256).http2_max_header_list_size(64 << 10)
}

type Connection = HostlessStream<tokio::net::UnixStream>;

fn connections(
    path: &Path,
    cancel: CancellationToken,
) -> Result<impl tokio_stream::Stream<Item = std::io::Result<Connection>> + use<>, SocketError> {
    Ok(ReceiverStream::new(socket::keep(path, cancel)?).map(|c| c.map(HostlessStream::new)))
}
