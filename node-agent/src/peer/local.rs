//! The `Local` service on a Unix socket (agent.proto): mounts and support, for programs of this node that run as the
//! agent's user or root. The socket says who may speak: it is 0600 in a directory that nobody else can write.
//!
//! Some clients put the socket's path into HTTP/2's `:authority`; [`HostlessStream`] takes that (csi.md §1, "Hazard").

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_proto::agent::v1 as wire;
use dotgraft_proto::authority::HostlessStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use wire::local_server::{Local, LocalServer};

use super::convert;
use super::status::status_of;
use crate::actor::handle::FsHandle;
use crate::actor::registry::Registry;
use crate::btrfs::mounts;
use crate::driver::{MountMode, MountWhat};
use crate::socket::{SocketError, accept, bind};
use crate::target::MountTarget;

/// Largest request, bytes.
const MAX_REQUEST: usize = 16 << 10;

/// Listens at `path` at once; what it returns serves `Local` there until cancelled. The socket file stays, for the next agent to replace.
/// Mount tables call the pool `pool_dev`.
///
/// # Errors
/// If the socket can't be made.
pub fn serve(
    path: &Path,
    registry: Registry,
    pool_dev: String,
    cancel: CancellationToken,
) -> Result<impl Future<Output = Result<(), SocketError>> + use<>, SocketError> {
    let listener = bind(path)?;
    let path = path.to_owned();
    let incoming = ReceiverStream::new(accept(listener, cancel.clone())).map(|c| c.map(HostlessStream::new));
    let service = LocalServer::new(Service { registry, pool_dev, targets: Arc::default() }).max_decoding_message_size(MAX_REQUEST);
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(64)
        .http2_max_header_list_size(16 << 10)
        .serve_with_incoming_shutdown(service, incoming, cancel.cancelled_owned());
    Ok(async move { server.await.map_err(|source| SocketError::Transport { path, source }) })
}

struct Service {
    registry: Registry,
    /// How mount tables name the pool's superblock.
    pool_dev: String,
    /// What was mounted through this process; the mount table knows the rest.
    targets: Arc<Mutex<HashMap<MountTarget, FsId>>>,
}

impl Service {
    fn handle(&self, fs: FsId) -> Result<FsHandle, Problem> {
        self.registry.get(fs).ok_or_else(|| Problem::new(Reason::NotFound, format!("Filesystem {fs} is not on this node")))
    }

    fn targets(&self) -> std::sync::MutexGuard<'_, HashMap<MountTarget, FsId>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mount(&self, r: wire::MountRequest) -> Result<wire::MountResponse, Problem> {
        let target = MountTarget::parse(&r.target)?;
        let fs = convert::fs_id(&r.fs_id)?;
        let what = convert::commit_id(&r.commit)?.map_or(MountWhat::Head, MountWhat::Commit);
        self.handle(fs)?.mount(what, target.clone(), MountMode { read_only: r.read_only, ..MountMode::WRITE }).await?;
        self.targets().insert(target, fs);
        Ok(wire::MountResponse {})
    }

    async fn unmount(&self, r: wire::UnmountRequest) -> Result<wire::UnmountResponse, Problem> {
        let target = MountTarget::parse(&r.target)?;
        let known = self.targets().get(&target).copied();
        let fs = match known {
            Some(fs) => Some(fs),
            None => mounted_now(&self.pool_dev, target.clone()).await?,
        };
        let Some(fs) = fs else { return Ok(wire::UnmountResponse {}) };
        match self.registry.get(fs) {
            Some(handle) => handle.unmount(target.clone()).await?,
            // Gone from this node, which it can't be while it is mounted.
            None if known.is_some() => {}
            None => return Err(Problem::new(Reason::NotFound, format!("Filesystem {fs} is mounted there but has no owner on this node"))),
        }
        self.targets().remove(&target);
        Ok(wire::UnmountResponse {})
    }

    fn status(&self, r: &wire::StatusRequest) -> Result<wire::StatusResponse, Problem> {
        let json = if r.fs_id.is_empty() {
            let all: serde_json::Map<_, _> =
                self.registry.all().iter().map(|h| (h.fs_id().to_string(), h.status().as_ref().clone())).collect();
            serde_json::Value::Object(all).to_string()
        } else {
            self.handle(convert::fs_id(&r.fs_id)?)?.status().to_string()
        };
        Ok(wire::StatusResponse { json })
    }

    async fn fence(&self, r: wire::FenceRequest) -> Result<wire::FenceResponse, Problem> {
        let (snapshot, generation) = self.handle(convert::fs_id(&r.fs_id)?)?.fence(r.force).await?;
        Ok(wire::FenceResponse { snapshot: snapshot.to_string(), generation })
    }

    async fn thaw(&self, r: wire::ThawRequest) -> Result<wire::ThawResponse, Problem> {
        self.handle(convert::fs_id(&r.fs_id)?)?.thaw().await?;
        Ok(wire::ThawResponse {})
    }
}

fn answer<T>(result: Result<T, Problem>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|p| status_of(&p))
}

#[tonic::async_trait]
impl Local for Service {
    async fn mount(&self, request: Request<wire::MountRequest>) -> Result<Response<wire::MountResponse>, Status> {
        answer(self.mount(request.into_inner()).await)
    }
    async fn unmount(&self, request: Request<wire::UnmountRequest>) -> Result<Response<wire::UnmountResponse>, Status> {
        answer(self.unmount(request.into_inner()).await)
    }
    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        answer(self.status(request.get_ref()))
    }
    async fn fence(&self, request: Request<wire::FenceRequest>) -> Result<Response<wire::FenceResponse>, Status> {
        answer(self.fence(request.into_inner()).await)
    }
    async fn thaw(&self, request: Request<wire::ThawRequest>) -> Result<Response<wire::ThawResponse>, Status> {
        answer(self.thaw(request.into_inner()).await)
    }
}

/// Which Filesystem of the pool is mounted at `target`; `None` if nothing is.
async fn mounted_now(pool_dev: &str, target: MountTarget) -> Result<Option<FsId>, Problem> {
    let looked = tokio::task::spawn_blocking(move || mounts::at(target.as_path())).await;
    let there = looked.map_err(|e| Problem::new(Reason::Internal, format!("a look at the mount table died: {e}")))?;
    let Some(line) = there.map_err(|e| e.problem())? else { return Ok(None) };
    let foreign = || Problem::new(Reason::Invalid, "what is mounted there is no Filesystem of this agent");
    line.filesystem(pool_dev).ok_or_else(foreign).map(Some)
}
