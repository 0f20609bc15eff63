//! Where each node keeps things: state directory, pool file, socket. The agent itself makes and formats the file.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// The paths of one node.
#[derive(Clone, Debug)]
pub struct NodeFiles {
    /// Journal, certificates, private mount point of the pool.
    pub state: PathBuf,
    /// The pool's file, on the disk below the scratch directory.
    pub pool_file: PathBuf,
    /// The agent's Unix socket.
    pub socket: PathBuf,
    /// The agent's kubeconfig: its own token only.
    pub kubeconfig: PathBuf,
}

impl NodeFiles {
    /// Makes the directories of node `name` below `dir`.
    pub fn create(dir: &Path, name: &str) -> Result<Self> {
        let node = dir.join(name);
        std::fs::create_dir_all(node.join("state"))?;
        Ok(Self {
            state: node.join("state"),
            pool_file: node.join("pool.img"),
            socket: node.join("agent.sock"),
            kubeconfig: node.join("kubeconfig"),
        })
    }
}
