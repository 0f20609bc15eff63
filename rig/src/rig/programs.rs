//! Operator and agents: where their binaries are, how they are started, when they are ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::pools::NodeFiles;
use super::process::Spec;
use super::tokens::SYSTEM;
use crate::sandbox;

/// The name of the operator among the rig's programs; agents are named as their nodes.
pub const OPERATOR: &str = "operator";

/// Names the directory of agent and operator of the release before, for tests of upgrades (`e2e/older.sh` makes one).
const OLDER: &str = "DOTGRAFT_OLD_BIN_DIR";

/// Whether the programs of the release before are at hand.
pub fn has_older() -> bool {
    std::env::var_os(OLDER).is_some()
}

/// Which of two releases a program is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// The release before.
    Older,
    /// The one that is tested.
    Newer,
}

/// The built programs, linked into the rig's directory so that a later build changes nothing in a running rig.
pub struct Binaries(PathBuf);

impl Binaries {
    /// From `DOTGRAFT_BIN_DIR`, else beside this program. An error names what is missing.
    pub fn find(dir: &Path) -> Result<Self> {
        let from = match std::env::var_os("DOTGRAFT_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => bail!("DOTGRAFT_BIN_DIR is not set: where are dotgraft-agent and dotgraft-operator?"),
        };
        let to = dir.join("programs");
        std::fs::create_dir_all(&to)?;
        for program in ["dotgraft-agent", "dotgraft-operator"] {
            if !from.join(program).exists() {
                bail!("{program} is not in {}: cargo build first (make does)", from.display());
            }
            sandbox::copy_program(&from.join(program), &to.join(program))?;
        }
        if from.join("kubectl-dot").exists() {
            sandbox::copy_program(&from.join("kubectl-dot"), &to.join("kubectl-dot"))?;
        }
        Ok(Self(to))
    }

    /// The same of the release before, from `DOTGRAFT_OLD_BIN_DIR` ([`has_older`]). An error names what is missing.
    pub fn older(dir: &Path) -> Result<Self> {
        let from = std::env::var_os(OLDER).map(PathBuf::from).with_context(|| format!("{OLDER} is not set"))?;
        let to = dir.join("older-programs");
        std::fs::create_dir_all(&to)?;
        for program in ["dotgraft-agent", "dotgraft-operator"] {
            if !to.join(program).exists() {
                sandbox::copy_program(&from.join(program), &to.join(program))?;
            }
        }
        Ok(Self(to))
    }

    /// The path of one of our programs.
    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }
}

/// One node of the rig.
#[derive(Clone, Debug)]
pub struct RigNode {
    /// `n1`, `n2`, …: the Node object's name and the agent's name among the programs.
    pub name: String,
    /// Its files.
    pub files: NodeFiles,
    /// `ip:port` of the peer service.
    pub listen: String,
    /// `ip:port` of health and metrics.
    pub http: String,
    /// The kubelet's directory: on a machine where every kubelet has it, else a directory of the rig.
    pub kubelet: PathBuf,
}

impl RigNode {
    /// The kubelet's directory of this node.
    pub fn kubelet_dir(&self) -> PathBuf {
        self.kubelet.clone()
    }

    /// The socket of its CSI driver.
    pub fn csi_socket(&self) -> PathBuf {
        self.kubelet_dir().join("plugins/csi.dotgraft.dev/csi.sock")
    }

    /// How its agent is started.
    pub fn spec(&self, binaries: &Binaries, pool_size: &str) -> Spec {
        let path = |p: &Path| p.to_string_lossy().into_owned();
        let args = [
            ("--node-name", self.name.clone()),
            ("--kubeconfig", path(&self.files.kubeconfig)),
            ("--state-dir", path(&self.files.state)),
            ("--pool-file", path(&self.files.pool_file)),
            ("--pool-file-size", pool_size.to_owned()),
            ("--listen", self.listen.clone()),
            ("--http", self.http.clone()),
            ("--socket", path(&self.files.socket)),
            ("--csi-socket", path(&self.csi_socket())),
            ("--plugins-registry", path(&self.kubelet_dir().join("plugins_registry"))),
            ("--kubelet-dir", path(&self.kubelet_dir())),
            ("--log-format", "json".to_owned()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        Spec::new(&self.name, &binaries.path("dotgraft-agent"), args)
    }
}

/// How the operator is started.
pub fn operator(binaries: &Binaries, kubeconfig: &Path, http: &str, csi: Option<&Path>) -> Spec {
    let args = ["--kubeconfig", &kubeconfig.to_string_lossy(), "--namespace", SYSTEM, "--http", http, "--log-format", "json"];
    let mut args = args.map(str::to_owned).to_vec();
    if let Some(socket) = csi {
        args.extend(["--csi-socket".into(), socket.to_string_lossy().into_owned()]);
    }
    Spec::new(OPERATOR, &binaries.path("dotgraft-operator"), args)
}

/// `GET` over plain HTTP 1.0, whose answers come in one piece; (status, body). 10 s at most.
pub async fn http_get(address: &str, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await.context("no answer in 10 s")??;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).context("not an HTTP answer")?;
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// An error unless `/readyz` answers 200.
pub async fn ready(address: &str) -> Result<()> {
    match http_get(address, "/readyz").await? {
        (200, _) => Ok(()),
        (status, body) => bail!("/readyz says {status} {}", body.trim()),
    }
}
