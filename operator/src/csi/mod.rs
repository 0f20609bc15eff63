//! CSI Identity and Controller on a Unix socket (csi.md §1), for the sidecars that run beside the operator.
//!
//! Every operator serves it, leader or not: a call reads and writes API objects, and waits, boundedly, for what controllers and
//! agents make of them. Nothing of a call is remembered here, so any of several operators can answer the next one.
//!
//! Hazard (csi.md §1): clients that put the socket's path into HTTP/2's `:authority` are served too, by [`HostlessStream`].

mod capability;
mod capacity;
mod controller;
mod create;
mod delete;
mod error;
pub mod find;
mod identity;
pub mod ids;
mod list;
mod modify;
mod params;
mod publish;
#[cfg(test)]
mod scenario_tests;
pub mod sidecars;
mod snapshot;
mod topology;
mod view;

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use dotgraft_proto::authority::HostlessStream;
use dotgraft_proto::csi::v1 as wire;
use dotgraft_proto::csi::v1::controller_server::ControllerServer;
use dotgraft_proto::csi::v1::identity_server::IdentityServer;
use futures::StreamExt;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};

use self::controller::Controller;
use self::identity::Identity;
use crate::context::Ctx;

/// Largest request, in bytes: the spec bounds strings at 128 bytes and maps at 4 KiB; topologies name nodes.
const REQUEST_MAX: usize = 1 << 20;
/// Calls at a time on one connection; a sidecar uses one connection and at most 100 workers.
const STREAMS: u32 = 256;

/// Both services on one socket, told apart by the path; of any other path the Controller says `UNIMPLEMENTED`. (tonic's own router
/// would bring a web framework with it.)
#[derive(Clone)]
struct Both {
    identity: IdentityServer<Identity>,
    controller: ControllerServer<Controller>,
}

impl Service<Request<Body>> for Both {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path().starts_with("/csi.v1.Identity/") { self.identity.call(request) } else { self.controller.call(request) }
    }
}

pub use self::create::of_class as class_spec;

/// `CreateVolume` as a call of this program's own, for a PVC that it serves itself.
///
/// # Errors
///
/// As `CreateVolume` (CSI spec, "`CreateVolume` Errors").
pub async fn create_volume(request: &wire::CreateVolumeRequest, ctx: &Ctx) -> Result<wire::Volume, tonic::Status> {
    create::create(request, ctx).await.map_err(Into::into)
}

/// The parts of a request that are the same for every volume from a snapshot: written from one node, or read from many.
pub fn restore_request(snapshot_id: String, read_only: bool) -> wire::CreateVolumeRequest {
    use wire::volume_capability::access_mode::Mode;
    use wire::volume_capability::{AccessMode, AccessType, MountVolume};
    use wire::volume_content_source::{SnapshotSource, Type};
    let mode = if read_only { Mode::MultiNodeReaderOnly } else { Mode::SingleNodeWriter };
    let access_mode = Some(AccessMode { mode: mode.into() });
    let access_type = Some(AccessType::Mount(MountVolume::default()));
    wire::CreateVolumeRequest {
        volume_capabilities: vec![wire::VolumeCapability { access_mode, access_type }],
        volume_content_source: Some(wire::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id })) }),
        ..wire::CreateVolumeRequest::default()
    }
}

/// Why the socket could not be made, or its service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket file.
    #[error("--csi-socket {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The transport gave up.
    #[error("serving CSI: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Makes the socket in place of a stale one. Its directory is shared with the sidecars only; the file is for owner and group.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else than a socket"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program answers on it"));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves until the transport fails. The socket file stays, for the next process to replace.
///
/// # Errors
///
/// [`ServeError`]: the socket can't be made, or the transport fails.
pub async fn serve(path: &Path, attach_limit: usize, ctx: Arc<Ctx>) -> Result<(), ServeError> {
    let listener = bind(path).map_err(|source| ServeError::Socket { path: path.to_owned(), source })?;
    tracing::info!(socket = %path.display(), "serving CSI");
    let controller = ControllerServer::new(Controller { ctx: ctx.clone(), attach_limit });
    let both = Both {
        identity: IdentityServer::new(Identity(ctx)).max_decoding_message_size(REQUEST_MAX),
        controller: controller.max_decoding_message_size(REQUEST_MAX),
    };
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(16 << 10)
        .serve_with_incoming(both, UnixListenerStream::new(listener).map(|c| c.map(HostlessStream::new)))
        .await?;
    Ok(())
}
