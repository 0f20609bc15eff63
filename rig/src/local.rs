//! The `Local` gRPC client of a node's agent, by its Unix socket: what the CSI node service will be one day.

use std::path::Path;

use anyhow::{Context as _, Result};
use dotgraft_proto::agent::v1 as pb;
use dotgraft_proto::agent::v1::local_client::LocalClient;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Speaks to one agent. Connects anew for every call, so an agent may be restarted between them.
#[derive(Clone, Debug)]
pub struct Local {
    socket: std::path::PathBuf,
}

impl Local {
    /// A client for the agent that listens on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into() }
    }

    async fn client(&self) -> Result<LocalClient<Channel>> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        let channel = Endpoint::from_static("http://agent.local")
            .connect_with_connector(connector)
            .await
            .with_context(|| format!("connecting to {}", self.socket.display()))?;
        Ok(LocalClient::new(channel))
    }

    /// Binds the head (`commit`: `None`) or a commit, read-only, at `target`, which is made if it is absent.
    pub async fn mount(&self, fs_id: &str, target: &Path, commit: Option<&str>) -> Result<()> {
        std::fs::create_dir_all(target)?;
        let request = pb::MountRequest {
            fs_id: fs_id.into(),
            target: target.to_string_lossy().into_owned(),
            read_only: commit.is_some(),
            commit: commit.unwrap_or_default().into(),
        };
        self.client().await?.mount(request).await.with_context(|| format!("Mount of {fs_id} at {}", target.display()))?;
        Ok(())
    }

    /// Unmounts `target`.
    pub async fn unmount(&self, target: &Path) -> Result<()> {
        let request = pb::UnmountRequest { target: target.to_string_lossy().into_owned() };
        self.client().await?.unmount(request).await.with_context(|| format!("Unmount of {}", target.display()))?;
        Ok(())
    }

    /// The actor's own view of one Filesystem, or of all (`""`).
    pub async fn status(&self, fs_id: &str) -> Result<Value> {
        let answer = self.client().await?.status(pb::StatusRequest { fs_id: fs_id.into() }).await?;
        Ok(serde_json::from_str(&answer.into_inner().json)?)
    }

    /// Fences the head; returns (snapshot, generation).
    pub async fn fence(&self, fs_id: &str, force: bool) -> Result<(String, u64)> {
        let answer = self.client().await?.fence(pb::FenceRequest { fs_id: fs_id.into(), force }).await?.into_inner();
        Ok((answer.snapshot, answer.generation))
    }

    /// Undoes a fence.
    pub async fn thaw(&self, fs_id: &str) -> Result<()> {
        self.client().await?.thaw(pb::ThawRequest { fs_id: fs_id.into() }).await?;
        Ok(())
    }
}
