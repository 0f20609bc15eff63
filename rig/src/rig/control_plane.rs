//! etcd, kube-apiserver, kube-controller-manager and, for nodes with kubelets, kube-scheduler: how they are started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::certificates::Authority;
use super::kube::Kube;
use super::machine::network::{API_PORT, CONTROL_PLANE};
use super::ports;
use super::process::{Processes, Spec};
use super::sidecars;
use super::wait::eventually;

/// After how long without a heartbeat a node with a kubelet is `NotReady`. Kubernetes' default is 40 s; tests wait for it.
pub const NODE_GRACE: Duration = Duration::from_secs(8);

/// The controllers the tests without pods rely on. The others would watch a dozen kinds that no such test has.
const CONTROLLERS: [&str; 11] = [
    "namespace-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "certificatesigningrequest-cleaner-controller",
    "validatingadmissionpolicy-status-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
];

/// Where the control plane's programs are.
pub struct Tools(PathBuf);

impl Tools {
    /// `DOTGRAFT_TOOLS_DIR`, else `bin/` of the cache directory. An error names what is missing and how to build it.
    pub fn find(kubelets: bool) -> Result<Self> {
        let dir = match std::env::var_os("DOTGRAFT_TOOLS_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => match std::env::var_os("DOTGRAFT_CACHE") {
                Some(cache) => PathBuf::from(cache).join("bin"),
                None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/dotgraft/bin"),
            },
        };
        let mut needed = vec!["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];
        if kubelets {
            needed.extend(["kube-scheduler", "kubelet", "image-pause", "image-busybox", "snapshot-crds"]);
            needed.extend(sidecars::names());
        }
        for program in needed {
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

    /// Their directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

/// A control plane of its own.
pub struct ControlPlane {
    /// `https://<address>:<port>`
    pub server: String,
    /// Signs for the control plane; agents get theirs from the operator.
    pub authority: Authority,
    /// Kubeconfig of `system:masters`, for tests and people; no program of ours gets it.
    pub admin: PathBuf,
}

impl ControlPlane {
    /// Makes certificates, starts etcd and the API server, waits for it, starts the rest. With `kubelets`: on the rig's
    /// network, with all controllers and the scheduler; else on loopback and with what tests without pods need.
    pub async fn start(dir: &Path, tools: &Tools, processes: &Processes, kubelets: bool) -> Result<Self> {
        let authority = Authority::create(&dir.join("pki"))?;
        let (address, port) = if kubelets { (CONTROL_PLANE, API_PORT) } else { ("127.0.0.1", ports::free()?) };
        let server = format!("https://{address}:{port}");
        let names = ["127.0.0.1", CONTROL_PLANE, "10.96.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        authority.issue("apiserver", "kube-apiserver", None, &names)?;
        authority.issue("admin", "admin", Some("system:masters"), &[])?;
        let admin = dir.join("admin.kubeconfig");
        std::fs::write(&admin, authority.kubeconfig(&server, "admin")?)?;
        let client = ports::free()?;
        processes.start(Spec::new("etcd", &tools.path("etcd"), etcd(dir, client, ports::free()?)))?;
        let mut args = apiserver(&authority, client, (address, port));
        if kubelets {
            authority.issue("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), &[])?;
            args.extend(reaching_kubelets(&authority));
        } else {
            args.push("--endpoint-reconciler-type=none".into()); // a loopback address can't be an endpoint
        }
        processes.start(Spec::new("apiserver", &tools.path("kube-apiserver"), args))?;
        let plane = Self { server, authority, admin };
        plane.ready(tools, processes).await?;
        let kubeconfig = plane.component(dir, "kcm", "system:kube-controller-manager")?;
        let mut args = controller_manager(&plane.authority, &kubeconfig)?;
        if kubelets {
            args.push(format!("--node-monitor-grace-period={}s", NODE_GRACE.as_secs()));
            args.push("--node-monitor-period=1s".into());
        } else {
            args.push(format!("--controllers={}", CONTROLLERS.join(",")));
        }
        processes.start(Spec::new("kcm", &tools.path("kube-controller-manager"), args))?;
        if kubelets {
            let kubeconfig = plane.component(dir, "scheduler", "system:kube-scheduler")?;
            processes.start(Spec::new("scheduler", &tools.path("kube-scheduler"), scheduler(&kubeconfig)?))?;
        }
        Ok(plane)
    }

    async fn ready(&self, tools: &Tools, processes: &Processes) -> Result<()> {
        let kube = Kube::new(&tools.path("kubectl"), &self.admin).await?;
        eventually("the API server to be ready", Duration::from_secs(180), || async {
            if !processes.running("apiserver") {
                bail!("it has ended:\n{}", processes.tail("apiserver", 20));
            }
            kube.api_ready().await
        })
        .await
    }

    /// The kubeconfig of a part of the control plane, by a certificate of its own.
    fn component(&self, dir: &Path, name: &str, user: &str) -> Result<PathBuf> {
        self.authority.issue(name, user, None, &[])?;
        let file = dir.join("pki").join(format!("{name}.kubeconfig"));
        std::fs::write(&file, self.authority.kubeconfig(&self.server, name)?)?;
        Ok(file)
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

fn apiserver(authority: &Authority, etcd: u16, (address, port): (&str, u16)) -> Vec<String> {
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        format!("--secure-port={port}"),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
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
        // Webhooks are called at the addresses of pods: nothing here serves service addresses.
        "--enable-aggregator-routing=true".into(),
    ]
}

/// Logs and exec go to kubelets by address.
fn reaching_kubelets(authority: &Authority) -> Vec<String> {
    vec![
        format!("--kubelet-certificate-authority={}", authority.path("ca.crt")),
        format!("--kubelet-client-certificate={}", authority.path("kubelet-client.crt")),
        format!("--kubelet-client-key={}", authority.path("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
    ]
}

fn scheduler(kubeconfig: &Path) -> Result<Vec<String>> {
    let kubeconfig = kubeconfig.display();
    Ok(vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        format!("--secure-port={}", ports::free()?),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--profiling=false".into(),
    ])
}

fn controller_manager(authority: &Authority, kubeconfig: &Path) -> Result<Vec<String>> {
    let kubeconfig = kubeconfig.display();
    Ok(vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        format!("--service-account-private-key-file={}", authority.path("sa.key")),
        format!("--root-ca-file={}", authority.path("ca.crt")),
        format!("--secure-port={}", ports::free()?),
        "--bind-address=127.0.0.1".into(),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        "--profiling=false".into(),
    ])
}
