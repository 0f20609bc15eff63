//! Unix sockets that the agent serves: made private, replaced atomically, and made anew when somebody removes them. Serves `peer::local`
//! and `csi`.
//!
//! A socket file stays when the agent ends: without the registration's the kubelet would forget the driver (csi.md §1).

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often a kept socket is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why a socket could not be made, or its service ended.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
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
///
/// # Errors
///
/// [`SocketError`]: a live process answers there, something that is no socket is in its place, or it can't be made.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::Io { what, path, source }
    };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("making the directory", dir))?;
    let meta = std::fs::metadata(dir).map_err(io("reading the directory", dir))?;
    if meta.mode() & 0o022 != 0 {
        return Err(SocketError::OpenDirectory(dir.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => return Err(SocketError::InUse(path.to_owned())),
        _ => {}
    }
    // Bound under another name, made private, then renamed over a stale one: nobody ever sees it with other modes. The dot hides
    // the other name from the kubelet, which would take it for a plugin of its own.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
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

/// Connections of our own user or root, until cancelled; the mode of the socket says the same, this holds it if the mode is changed.
pub fn accept(listener: UnixListener, cancel: CancellationToken) -> mpsc::Receiver<io::Result<UnixStream>> {
    let (ready, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = ready.closed() => return,
                () = accept_one(&listener, &ready) => {}
            }
        }
    });
    incoming
}

async fn accept_one(listener: &UnixListener, ready: &mpsc::Sender<io::Result<UnixStream>>) {
    let us = rustix::process::geteuid().as_raw();
    // A place first: then nothing that was accepted is lost when this is cancelled.
    let Ok(place) = ready.reserve().await else { return };
    match listener.accept().await {
        Ok((stream, _)) if stream.peer_cred().is_ok_and(|c| c.uid() == us || c.uid() == 0) => place.send(Ok(stream)),
        Ok(_) => tracing::warn!("a local connection of another user was refused"),
        Err(error) => {
            tracing::warn!(%error, "can't accept a local connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// As [`accept`], at a path where the socket is made anew whenever it is gone or another's.
///
/// # Errors
/// If it can't be made the first time.
pub fn keep(path: &Path, cancel: CancellationToken) -> Result<mpsc::Receiver<io::Result<UnixStream>>, SocketError> {
    let (ready, incoming) = mpsc::channel(16);
    let mut listener = bind(path)?;
    let path = path.to_owned();
    tokio::spawn(async move {
        let mut ours = identity(&path);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = ready.closed() => return,
                () = accept_one(&listener, &ready) => {}
                _ = look.tick() => if identity(&path) != ours {
                    match bind(&path) {
                        Ok(fresh) => {
                            tracing::info!(socket = %path.display(), "the socket was gone: made anew");
                            listener = fresh;
                            ours = identity(&path);
                        }
                        Err(error) => tracing::warn!(%error, "the socket is gone and can't be made anew yet"),
                    }
                },
            }
        }
    });
    Ok(incoming)
}

/// Which file is at the path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_only_a_stale_one_is_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run/agent.sock");
        let first = bind(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
        drop(first);
        bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_directory_of_everybody_and_a_file_in_the_way_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let open = tmp.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(bind(&open.join("s")), Err(SocketError::OpenDirectory(_))));
        let file = tmp.path().join("file");
        std::fs::write(&file, "data").unwrap();
        assert!(matches!(bind(&file), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    }

    #[tokio::test]
    async fn a_kept_socket_that_somebody_removes_comes_back_and_stays_at_the_end() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        let cancel = CancellationToken::new();
        let mut incoming = keep(&path, cancel.clone()).unwrap();
        for _ in 0..2 {
            let connect = async {
                while UnixStream::connect(&path).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), connect).await.unwrap();
            assert!(incoming.recv().await.unwrap().is_ok());
            std::fs::remove_file(&path).unwrap();
        }
        tokio::time::timeout(Duration::from_secs(20), async {
            while !path.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        cancel.cancel();
        assert!(incoming.recv().await.is_none());
        assert!(path.exists(), "the kubelet would take its removal for the driver's");
    }
}
