//! etcd, kube-apiserver and kube-controller-manager: how they are started. Tests without pods need no more of Kubernetes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::certificates::Authority;
use super::kube::Kube;
use super::ports;
use super::process::{Processes, Spec};
use super::wait::eventually;

/// The controllers the tests rely on. The others would watch a dozen kinds that no test has.
const CONTROLLERS: [&str; 8] = [
    "namespace-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "certificatesigningrequest-cleaner-controller",
    "validatingadmissionpolicy-status-controller",
];

/// Where the control plane's programs are.
pub struct Tools(PathBuf);

impl Tools {
    /// `DOTGRAFT_TOOLS_DIR`, else `bin/` of the cache directory. An error names what is missing and how to build it.
    pub fn find() -> Result<Self> {
        let dir = match std::env::var_os("DOTGRAFT_TOOLS_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => match std::env::var_os("DOTGRAFT_CACHE") {
                Some(cache) => PathBuf::from(cache).join("bin"),
                None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/dotgraft/bin"),
            },
        };
        for program in ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"] {
            if !dir.join(program).exists() {
                bail!("{program} is missing in {}; build it once: e2e/tools.sh {}", dir.display(), dir.display());
            }
        }
        Ok(Self(dir))
    }

    /// The path of one program.
    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }
}

/// A control plane on loopback, on ports of its own.
pub struct ControlPlane {
    /// `https://127.0.0.1:<port>`
    pub server: String,
    /// Signs for the control plane; agents get theirs from the operator.
    pub authority: Authority,
    /// Kubeconfig of `system:masters`, for tests and people; no program of ours gets it.
    pub admin: PathBuf,
}

impl ControlPlane {
    /// Makes certificates, starts the three programs and waits for the API server.
    pub async fn start(dir: &Path, tools: &Tools, processes: &Processes) -> Result<Self> {
        let authority = Authority::create(&dir.join("pki"))?;
        let (client, peer, api) = (ports::free()?, ports::free()?, ports::free()?);
        let server = format!("https://127.0.0.1:{api}");
        authority.issue("apiserver", "kube-apiserver", None, &["127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc"])?;
        authority.issue("admin", "admin", Some("system:masters"), &[])?;
        authority.issue("kcm", "system:kube-controller-manager", None, &[])?;
        let admin = dir.join("admin.kubeconfig");
        std::fs::write(&admin, authority.kubeconfig(&server, "admin")?)?;
        let kcm = dir.join("pki/kcm.kubeconfig");
        std::fs::write(&kcm, authority.kubeconfig(&server, "kcm")?)?;
        processes.start(Spec::new("etcd", &tools.path("etcd"), etcd(dir, client, peer)))?;
        processes.start(Spec::new("apiserver", &tools.path("kube-apiserver"), apiserver(&authority, client, api)))?;
        let kube = Kube::new(&tools.path("kubectl"), &admin).await?;
        eventually("the API server to be ready", Duration::from_secs(60), || async {
            if !processes.running("apiserver") {
                bail!("it has ended:\n{}", processes.tail("apiserver", 20));
            }
            kube.api_ready().await
        })
        .await?;
        processes.start(Spec::new("kcm", &tools.path("kube-controller-manager"), controller_manager(&authority, &kcm)?))?;
        Ok(Self { server, authority, admin })
    }
}

fn etcd(dir: &Path, client: u16, peer: u16) -> Vec<String> {
    let client = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--unsafe-no-fsync".into(), // survives kill -9 of etcd (the page cache stays); no test cuts the power under it
        "--log-level=warn".into(),
    ]
}

fn apiserver(authority: &Authority, etcd: u16, port: u16) -> Vec<String> {
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        "--endpoint-reconciler-type=none".into(), // a loopback address can't be an endpoint
        format!("--tls-cert-file={}", authority.path("apiserver.crt")),
        format!("--tls-private-key-file={}", authority.path("apiserver.key")),
        format!("--client-ca-file={}", authority.path("ca.crt")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", authority.path("sa.pub")),
        format!("--service-account-signing-key-file={}", authority.path("sa.key")),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--enable-priority-and-fairness=false".into(),
        "--profiling=false".into(),
    ]
}

fn controller_manager(authority: &Authority, kubeconfig: &Path) -> Result<Vec<String>> {
    let kubeconfig = kubeconfig.display();
    Ok(vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        format!("--service-account-private-key-file={}", authority.path("sa.key")),
        format!("--root-ca-file={}", authority.path("ca.crt")),
        format!("--controllers={}", CONTROLLERS.join(",")),
        format!("--secure-port={}", ports::free()?),
        "--bind-address=127.0.0.1".into(),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        "--profiling=false".into(),
    ])
}
