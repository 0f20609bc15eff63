//! How a person outside reaches the API server of a kept cluster: through the sandbox's door, by a kubeconfig that names it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};

use super::{Rig, sandbox};

/// Opens the door to a rig's API server. Returns the kubeconfig to use outside, and what carries the bytes: run it.
pub fn open(rig: &Rig) -> Result<(PathBuf, impl Future<Output = Result<()>> + use<>)> {
    let door = sandbox::door()?;
    door.set_nonblocking(true)?;
    let address = door.local_addr()?;
    let door = TcpListener::from_std(door)?;
    let file = sandbox::inside().context("not inside a sandbox")?.join("kubeconfig");
    std::fs::write(&file, rig.control_plane.authority.kubeconfig(&format!("https://{address}"), "admin")?)?;
    let target = rig.control_plane.server.trim_start_matches("https://").to_owned();
    Ok((file, carry(door, target)))
}

async fn carry(door: TcpListener, target: String) -> Result<()> {
    loop {
        let (mut outside, _) = door.accept().await?;
        let target = target.clone();
        tokio::spawn(async move {
            if let Ok(mut inside) = TcpStream::connect(&target).await {
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}
