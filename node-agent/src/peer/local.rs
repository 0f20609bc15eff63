//! The `Local` service on a Unix socket (agent.proto): mounts and support, for programs of this node that run as the
//! agent's user or root. The socket says who may speak: it is 0600 in a directory that nobody else can write.
//!
//! Hazard (csi.md §1): some clients put the socket's path into HTTP/2's `:authority`. The HTTP library here refuses a
//! request whose authority is no host, with a stream error of that request only; clients must send `localhost`, as
//! grpc-go does for `unix:` addresses and tonic for any endpoint with a custom connector. A test holds that down.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dotgraft_engine::ids::FsId;
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_proto::agent::v1 as wire;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use wire::local_server::{Local, LocalServer};

use super::convert;
use super::status::status_of;
use crate::actor::handle::FsHandle;
use crate::actor::registry::Registry;
use crate::driver::MountWhat;

/// Longest mount target, bytes (`PATH_MAX`).
const MAX_PATH: usize = 4095;
/// Largest request, bytes.
const MAX_REQUEST: usize = 16 << 10;

/// Why the socket could not be made, or its service ended.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A step with the socket file or its directory.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Someone else could put another socket there.
    #[error("{0} can be written by others: the socket's directory must be the agent's own (0700)")]
    OpenDirectory(PathBuf),
    /// Another agent answers on it.
    #[error("{0} is in use: another agent runs")]
    InUse(PathBuf),
    /// There is something else.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The transport gave up.
    #[error("serving {path}: {source}")]
    Transport {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Makes the socket: its directory 0700 if missing, the file 0600 before anyone can connect. A stale one is replaced, one
/// that answers is left alone.
pub fn bind(path: &Path) -> Result<UnixListener, LocalError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| LocalError::Io { what, path, source }
    };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("making the directory", dir))?;
    let meta = std::fs::metadata(dir).map_err(io("reading the directory", dir))?;
    if meta.mode() & 0o022 != 0 {
        return Err(LocalError::OpenDirectory(dir.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(LocalError::NotASocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => return Err(LocalError::InUse(path.to_owned())),
        _ => {}
    }
    // Bound under another name, made private, then renamed over a stale one: nobody ever sees it with other modes.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = dir.join(name);
    match std::fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("removing", &fresh)(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(io("binding", &fresh))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(io("setting the mode of", &fresh))?;
    std::fs::rename(&fresh, path).map_err(io("renaming the socket to", path))?;
    Ok(listener)
}

/// Serves `Local` at `path` until cancelled. The socket file stays, for the next agent to replace.
pub async fn serve(path: &Path, registry: Registry, cancel: CancellationToken) -> Result<(), LocalError> {
    let listener = bind(path)?;
    let incoming = ReceiverStream::new(accept(listener, cancel.clone()));
    let service = LocalServer::new(Service { registry, targets: Arc::default() }).max_decoding_message_size(MAX_REQUEST);
    tonic::transport::Server::builder()
        .max_concurrent_streams(64)
        .http2_max_header_list_size(16 << 10)
        .serve_with_incoming_shutdown(service, incoming, cancel.cancelled_owned())
        .await
        .map_err(|source| LocalError::Transport { path: path.to_owned(), source })
}

/// Connections of our own user or root; the mode of the socket says the same, this holds it if the mode is changed.
fn accept(listener: UnixListener, cancel: CancellationToken) -> mpsc::Receiver<io::Result<UnixStream>> {
    let (ready, incoming) = mpsc::channel(16);
    let us = rustix::process::geteuid().as_raw();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if stream.peer_cred().is_ok_and(|c| c.uid() == us || c.uid() == 0) => {
                    if ready.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Ok(_) => tracing::warn!("a local connection of another user was refused"),
                Err(error) => {
                    tracing::warn!(%error, "can't accept a local connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    incoming
}

struct Service {
    registry: Registry,
    /// What was mounted through this process; the mount table knows the rest.
    targets: Arc<Mutex<HashMap<PathBuf, FsId>>>,
}

impl Service {
    fn handle(&self, fs: FsId) -> Result<FsHandle, Problem> {
        self.registry.get(fs).ok_or_else(|| Problem::new(Reason::NotFound, format!("Filesystem {fs} is not on this node")))
    }

    fn targets(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, FsId>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mount(&self, r: wire::MountRequest) -> Result<wire::MountResponse, Problem> {
        let target = target(&r.target)?;
        let fs = convert::fs_id(&r.fs_id)?;
        let what = convert::commit_id(&r.commit)?.map_or(MountWhat::Head, MountWhat::Commit);
        self.handle(fs)?.mount(what, target.clone(), r.read_only).await?;
        self.targets().insert(target, fs);
        Ok(wire::MountResponse {})
    }

    async fn unmount(&self, r: wire::UnmountRequest) -> Result<wire::UnmountResponse, Problem> {
        let target = target(&r.target)?;
        let known = self.targets().get(&target).copied();
        let fs = match known {
            Some(fs) => Some(fs),
            None => mounted_now(&target).await?,
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

/// A mount target: absolute, without `.` and `..`, of a length that the kernel takes.
fn target(text: &str) -> Result<PathBuf, Problem> {
    let invalid = |why: &str| Problem::new(Reason::Invalid, format!("the mount target must be {why}"));
    if text.len() > MAX_PATH || text.contains('\0') {
        return Err(invalid("a path of at most 4095 bytes"));
    }
    let path: PathBuf = Path::new(text).components().collect();
    if !path.is_absolute() {
        return Err(invalid("absolute"));
    }
    if path.components().any(|c| c == Component::ParentDir) || path.parent().is_none() {
        return Err(invalid("a directory under `/`, written without `..`"));
    }
    Ok(path)
}

/// Which Filesystem of ours is mounted at `target` by the mount table; `None` if nothing is.
async fn mounted_now(target: &Path) -> Result<Option<FsId>, Problem> {
    let table = tokio::fs::read("/proc/self/mountinfo").await;
    let table = table.map_err(|e| Problem::new(Reason::Internal, format!("reading the mount table: {e}")))?;
    match mounted_in(&table, target) {
        Mounted::Nothing => Ok(None),
        Mounted::Ours(fs) => Ok(Some(fs)),
        Mounted::Foreign => Err(Problem::new(Reason::Invalid, "what is mounted there is no Filesystem of this agent")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Mounted {
    Nothing,
    Ours(FsId),
    Foreign,
}

/// Reads a mount table (`proc_pid_mountinfo(5)`); the last entry of a mount point is the one on top. A Filesystem of ours has
/// its id as a component of the mount's root (storage.md §1).
fn mounted_in(table: &[u8], target: &Path) -> Mounted {
    use std::os::unix::ffi::OsStrExt;
    let top = table.split(|b| *b == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|b| *b == b' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (unescape(point) == target.as_os_str().as_bytes()).then(|| unescape(root))
    });
    let Some(root) = top else { return Mounted::Nothing };
    let mut names = root.split(|b| *b == b'/').filter_map(|c| std::str::from_utf8(c).ok());
    names.find_map(|name| name.parse().ok()).map_or(Mounted::Foreign, Mounted::Ours)
}

/// Undoes the kernel's `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some([a, b, c]) = octal {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_absolute_and_has_no_way_up() {
        assert_eq!(target("/mnt/a//b/").unwrap(), Path::new("/mnt/a/b"));
        for bad in ["", "mnt", "./x", "/", "/a/../b", "/a\0b", &format!("/{}", "x".repeat(MAX_PATH))] {
            assert_eq!(target(bad).unwrap_err().reason, Reason::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn the_mount_on_top_counts_and_names_are_unescaped() {
        let id = "0198c2a5-7f00-7000-8000-000000000001";
        let table = format!(
            "20 1 0:19 / /proc rw - proc proc rw\n21 1 0:40 / /mnt/a\\040b rw - tmpfs x rw\n22 21 0:41 /fs/{id}/head /mnt/a\\040b rw shared:1 - btrfs /dev/loop0 rw\n"
        );
        assert_eq!(mounted_in(table.as_bytes(), Path::new("/mnt/a b")), Mounted::Ours(id.parse().unwrap()));
        assert_eq!(mounted_in(table.as_bytes(), Path::new("/proc")), Mounted::Foreign);
        assert_eq!(mounted_in(table.as_bytes(), Path::new("/mnt")), Mounted::Nothing);
    }

    #[tokio::test]
    async fn the_socket_is_private_and_only_a_stale_one_is_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run/agent.sock");
        let first = bind(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(matches!(bind(&path), Err(LocalError::InUse(_))));
        drop(first);
        bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_directory_of_everybody_and_a_file_in_the_way_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let open = tmp.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(bind(&open.join("s")), Err(LocalError::OpenDirectory(_))));
        let file = tmp.path().join("file");
        std::fs::write(&file, "data").unwrap();
        assert!(matches!(bind(&file), Err(LocalError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    }
}
