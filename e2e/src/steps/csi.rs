//! What both of our CSI services are spoken to with: a channel to a Unix socket, capabilities, refusals.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use dotgraft_proto::csi::v1::VolumeCapability;
use dotgraft_proto::csi::v1::volume_capability::access_mode::Mode;
use dotgraft_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A channel to a Unix socket.
pub async fn channel(socket: &Path) -> Result<Channel> {
    let at = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let at = at.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(at).await?)) }
    });
    let endpoint = Endpoint::from_static("http://csi.local");
    endpoint.connect_with_connector(connector).await.with_context(|| format!("connecting to {}", socket.display()))
}

/// A mount in that access mode; for that group of files if it isn't empty.
pub fn capability(mode: Mode, group: &str) -> VolumeCapability {
    let mount = MountVolume { volume_mount_group: group.into(), ..MountVolume::default() };
    VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type: Some(AccessType::Mount(mount)) }
}

/// The same for any group, with options (`mountOptions` of a `StorageClass`).
pub fn with_options(mode: Mode, options: &[&str]) -> VolumeCapability {
    let mount_flags = options.iter().map(|o| (*o).to_owned()).collect();
    let access_type = Some(AccessType::Mount(MountVolume { mount_flags, ..MountVolume::default() }));
    VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type }
}

/// A mount for one node that writes.
pub fn writer() -> VolumeCapability {
    capability(Mode::SingleNodeWriter, "")
}

/// Refused with that code, and words that help.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) -> Result<()> {
    match result {
        Err(status) if status.code() == code && status.message().contains(words) => Ok(()),
        other => bail!("expected {code:?} with {words:?}, got {other:?}"),
    }
}

/// A path as the protocol carries it.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
