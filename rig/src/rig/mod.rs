//! The rig: a real control plane, the operator and agents with a pool each, as processes of one sandbox; where asked for,
//! each node is a machine of its own with a kubelet ([`machine`], [`cluster`]).
//!
//! [`Rig::up`] is the one entry. It must run inside a [`crate::sandbox`], which is what makes sure that nothing stays.
//! Every program gets what it would get in a real cluster: its own `ServiceAccount` token and the shipped rights.

pub mod certificates;
pub mod cluster;
pub mod command;
pub mod control_plane;
pub mod door;
pub mod helm;
pub mod images;
pub mod kube;
pub mod machine;
pub mod monitoring;
pub mod peer;
pub mod pools;
pub mod ports;
pub mod process;
pub mod programs;
pub mod prometheus;
pub mod sidecars;
pub mod tokens;
pub mod wait;
pub mod webhook;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ::kube::api::ListParams;
use ::kube::{Api, ResourceExt as _};
use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use rustix::process::Signal;

use self::control_plane::{ControlPlane, Tools};
use self::kube::Kube;
use self::machine::Machine;
use self::machine::network::Network;
use self::pools::NodeFiles;
use self::process::Processes;
use self::programs::{Age, Binaries, OPERATOR, RigNode};
use self::wait::eventually;
use crate::sandbox;

/// Whether the API server shows pods to the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodWebhook {
    /// The operator serves the webhook; pods needn't run for it.
    Served,
    /// Nobody is asked.
    #[default]
    Absent,
}

/// What a rig is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes `n1`…, each with an agent and a pool.
    pub agents: usize,
    /// Each node is a machine of its own, with kubelet and containerd; pods run.
    pub kubelets: bool,
    /// Size of each pool file, as `--pool-file-size` takes it.
    pub pool_size: String,
    /// Environment per program name, on top of the rig's own.
    pub env: BTreeMap<String, BTreeMap<String, String>>,
    /// `false`: control plane, CRDs, rights and tokens only.
    pub programs: bool,
    /// Nothing of ours is installed at all, but each node has our images: a cluster as Helm finds it.
    pub chart: bool,
    /// Whether the operator serves the pod webhook.
    pub webhook: PodWebhook,
    /// Images of the tools directory that each node with a kubelet gets besides the usual ones.
    pub images: Vec<String>,
}

impl Options {
    /// Three nodes that run pods.
    pub fn kubelets() -> Self {
        Self { agents: 3, kubelets: true, webhook: PodWebhook::Served, ..Self::default() }
    }

    /// Two nodes that run pods, have our images, and wait for `helm install`.
    pub fn chart() -> Self {
        Self { agents: 2, kubelets: true, programs: false, chart: true, ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            agents: 2,
            kubelets: false,
            pool_size: "4Gi".into(),
            env: BTreeMap::new(),
            programs: true,
            chart: false,
            webhook: PodWebhook::Absent,
            images: Vec::new(),
        }
    }
}

/// A running rig. Dropping it ends its programs, its mounts and its files.
pub struct Rig {
    /// Everything of this rig lies below.
    pub dir: PathBuf,
    /// The programs by name: `etcd`, `apiserver`, `kcm`, `operator`, `n1`, `n2`, …; with kubelets also `scheduler`,
    /// `n1-containerd`, `n1-kubelet`, ….
    pub processes: Processes,
    /// Administrator's access.
    pub kube: Kube,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The nodes, `n1` first.
    pub nodes: Vec<RigNode>,
    /// The machines, `n1` first; none without kubelets.
    pub machines: Vec<Arc<Machine>>,
    /// `ip:port` of the operator's health and metrics.
    pub operator_http: String,
    /// Seconds from nothing to ready.
    pub seconds: f64,
    tools: Tools,
    binaries: Option<Binaries>,
    /// Whether operator and agents are processes of the rig.
    has_programs: bool,
    _network: Option<Network>,
}

/// Longest that a program may take to be ready once it is started.
const READY: Duration = Duration::from_secs(180);

static COUNT: AtomicU32 = AtomicU32::new(1);

impl Rig {
    /// Starts everything and waits until all is ready.
    pub async fn up(options: Options) -> Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let start = Instant::now();
        let base = sandbox::inside().context("a rig needs a sandbox: start it by `dotgraft-e2e test`, `demo` or `cluster`")?;
        let dir = base.join(format!("r{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir)?;
        let tools = Tools::find(options.kubelets)?;
        let binaries = if options.programs || options.chart { Some(Binaries::find(&dir)?) } else { None };
        let mut archives = if options.chart { images::found(&tools)? } else { Vec::new() };
        archives.extend(options.images.iter().map(|image| tools.path(image)));
        let processes = Processes::new(&dir.join("logs"))?;
        let names: Vec<String> = (1..=options.agents).map(|i| format!("n{i}")).collect();
        let (network, machines) = if options.kubelets { cluster::machines(&dir, &names, &tools, &archives)? } else { (None, Vec::new()) };
        let (control_plane, ()) = tokio::try_join!(
            ControlPlane::start(&dir, &tools, &processes, options.kubelets),
            cluster::containers(&machines, &tools, &archives, &processes)
        )?;
        let kube = Kube::new(&tools.path("kubectl"), &control_plane.admin).await?;
        let nodes = names.iter().map(|name| node(&dir, name, machines.iter().find(|m| m.name() == name))).collect::<Result<Vec<_>>>()?;
        let operator_http = format!("127.0.0.1:{}", ports::free()?);
        let (seconds, has_programs) = (0.0, options.programs);
        let mut rig = Self {
            dir,
            processes,
            kube,
            control_plane,
            nodes,
            machines,
            operator_http,
            seconds,
            tools,
            binaries,
            has_programs,
            _network: network,
        };
        if options.kubelets {
            rig.start_kubelets()?;
        }
        if options.chart {
            rig.install_snapshot_kinds().await?;
            if let Some(controller) = sidecars::snapshot_controller(&rig.tools, &rig.control_plane.admin) {
                rig.processes.start(controller)?;
            }
        } else {
            rig.install().await?;
        }
        if options.kubelets {
            rig.label_nodes().await?;
        } else {
            rig.register_nodes().await?;
        }
        if !options.chart {
            rig.write_kubeconfigs().await?;
        }
        let webhook =
            if options.webhook == PodWebhook::Served && options.programs { Some(webhook::address(options.kubelets)?) } else { None };
        if let Some(address) = &webhook {
            rig.serve_webhook(address).await?;
        }
        rig.start_programs(&options, webhook.as_deref())?;
        rig.ready(READY).await?;
        rig.seconds = start.elapsed().as_secs_f64();
        Ok(rig)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&RigNode> {
        self.nodes.iter().find(|n| n.name == name).with_context(|| format!("the rig has no node {name}"))
    }

    /// A machine by its node's name.
    pub fn machine(&self, name: &str) -> Result<&Arc<Machine>> {
        self.machines.iter().find(|m| m.name() == name).with_context(|| format!("the rig has no machine {name}"))
    }

    /// The path of kubectl.
    pub fn kubectl(&self) -> PathBuf {
        self.tools.path("kubectl")
    }

    /// Whether operator and agents are part of this rig.
    pub fn has_programs(&self) -> bool {
        self.has_programs
    }

    /// Whether this rig has our images and nothing else of ours, so that Helm installs the rest.
    pub fn awaits_chart(&self) -> bool {
        self.binaries.is_some() && !self.has_programs
    }

    /// The path of one of our programs (`kubectl-dot`, `dotgraft-agent`).
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        Ok(self.binaries.as_ref().context("this rig has no programs of ours")?.path(name))
    }

    /// The API seen with a token of an agent (its node's name) or of the operator: rights as shipped.
    pub async fn kube_as(&self, program: &str) -> Result<Kube> {
        let file = match program {
            OPERATOR => self.operator_kubeconfig(),
            sidecars::SIDECARS => self.sidecars_kubeconfig(),
            node => self.node(node)?.files.kubeconfig.clone(),
        };
        Kube::new(&self.tools.path("kubectl"), &file).await
    }

    /// `kill -9` of a program.
    pub fn kill9(&self, name: &str) -> Result<()> {
        self.processes.kill9(name)
    }

    /// SIGSTOP: it lives, holds what it holds and does nothing.
    pub fn pause(&self, name: &str) -> Result<()> {
        self.processes.signal(name, Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.processes.signal(name, Signal::CONT)
    }

    /// Starts a stopped program again. Doesn't wait; see [`Rig::ready`].
    pub fn start(&self, name: &str) -> Result<()> {
        self.processes.start_again(name)
    }

    /// `kill -9` (if it still runs), start, wait until all is ready.
    pub async fn restart(&self, name: &str) -> Result<()> {
        if self.processes.running(name) {
            self.kill9(name)?;
        }
        self.start(name)?;
        self.ready(READY).await
    }

    /// Kills an agent or the operator and starts it with a variable set, or removed by `None`; waits until it is
    /// ready unless the variable is there to kill it.
    pub async fn restart_with_env(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.processes.set_env(name, key, value)?;
        if self.processes.running(name) {
            self.kill9(name)?;
        }
        self.start(name)?;
        match value {
            None => self.ready(READY).await,
            Some(_) => Ok(()),
        }
    }

    /// Kills an agent or the operator and starts the one of another release on the same files; waits until it is ready.
    pub async fn restart_as(&self, name: &str, age: Age) -> Result<()> {
        let binaries = match age {
            Age::Older => Binaries::older(&self.dir)?,
            Age::Newer => Binaries::find(&self.dir)?,
        };
        let program = if name == OPERATOR { "dotgraft-operator" } else { "dotgraft-agent" };
        self.processes.set_program(name, &binaries.path(program))?;
        self.restart(name).await
    }

    /// Waits until the API server, and every program of ours that runs, is ready.
    pub async fn ready(&self, timeout: Duration) -> Result<()> {
        eventually("the API server", timeout, || async {
            self.still_running("apiserver")?;
            self.kube.api_ready().await
        })
        .await?;
        self.nodes_ready(timeout).await?;
        if !self.has_programs() {
            return Ok(());
        }
        let all = self.nodes.iter().map(|n| (n.name.as_str(), &n.http));
        for (name, address) in std::iter::once((OPERATOR, &self.operator_http)).chain(all) {
            if !self.processes.running(name) && self.processes.exited(name)?.is_none_or(|s| s.success()) {
                continue;
            }
            let what = format!("{name} to be ready");
            // One that has ended stays ended: no use in waiting for it.
            let ready = eventually(&what, timeout, || async {
                match self.still_running(name) {
                    Ok(()) => programs::ready(address).await.map(Ok),
                    ended => Ok(ended),
                }
            });
            ready.await.flatten().with_context(|| format!("the end of its log:\n{}", self.processes.tail(name, 30)))?;
        }
        Ok(())
    }

    /// Undoes what a test did to the programs: wakes the paused, drops twins and fail points, starts what is dead.
    pub async fn heal(&self) -> Result<()> {
        self.heal_machines().await?;
        for name in self.processes.names() {
            if name.ends_with("-twin") {
                self.processes.forget(&name)?;
                continue;
            }
            let changed = self.processes.restore(&name)?;
            if !self.processes.running(&name) {
                self.start(&name)?;
            } else if changed {
                self.kill9(&name)?;
                self.start(&name)?;
            } else {
                self.resume(&name)?;
            }
        }
        self.heal_nodes().await?;
        self.ready(READY).await
    }

    /// A Node that a case has deleted is made anew, and with it the token of its agent, which was bound to the old one. A kubelet makes its
    /// own Node.
    async fn heal_nodes(&self) -> Result<()> {
        if !self.machines.is_empty() {
            return Ok(());
        }
        eventually("the API server", READY, || self.kube.api_ready()).await?;
        let nodes: Api<Node> = Api::all(self.kube.client());
        let there = nodes.list(&ListParams::default()).await?.items;
        let lost = self.nodes.iter().filter(|n| !there.iter().any(|t| t.name_any() == n.name));
        let lost: Vec<&str> = lost.map(|n| n.name.as_str()).collect();
        if lost.is_empty() {
            return Ok(());
        }
        self.register_nodes().await?;
        self.write_kubeconfigs().await?;
        for name in lost.into_iter().filter(|name| self.processes.running(name)) {
            self.kill9(name)?;
            self.start(name)?;
        }
        Ok(())
    }

    fn still_running(&self, name: &str) -> Result<()> {
        match self.processes.exited(name)? {
            None => Ok(()),
            Some(status) => bail!("{name} has ended: {status}"),
        }
    }

    /// The operator's CSI socket.
    pub fn csi_socket(&self) -> PathBuf {
        self.dir.join("csi.sock")
    }

    fn operator_kubeconfig(&self) -> PathBuf {
        self.dir.join("operator.kubeconfig")
    }

    fn sidecars_kubeconfig(&self) -> PathBuf {
        self.dir.join("sidecars.kubeconfig")
    }

    /// Applies `crds/` and `deploy/` as shipped.
    pub async fn install(&self) -> Result<()> {
        let root = source_root();
        let mut crds = manifests(&root.join("crds"))?;
        if !self.machines.is_empty() {
            crds.extend(manifests(&self.tools.path("snapshot-crds"))?);
        }
        self.install_kinds(&crds).await?;
        let deploy = manifests(&root.join("deploy"))?;
        let has_namespace = |f: &PathBuf| fs::read_to_string(f).is_ok_and(|text| text.contains("kind: Namespace"));
        let (first, rest): (Vec<_>, Vec<_>) = deploy.into_iter().partition(has_namespace);
        for file in first.iter().chain(&rest) {
            self.kube.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()]).await?;
        }
        Ok(())
    }

    /// What a cluster with snapshots has, whoever's volumes they are of.
    async fn install_snapshot_kinds(&self) -> Result<()> {
        self.install_kinds(&manifests(&self.tools.path("snapshot-crds"))?).await
    }

    async fn install_kinds(&self, crds: &[PathBuf]) -> Result<()> {
        for file in crds {
            self.kube.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()]).await?;
        }
        if !crds.is_empty() {
            self.kube.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]).await?;
        }
        Ok(())
    }

    /// Node objects as an administrator has them before install: address, and the label of the pool group.
    async fn register_nodes(&self) -> Result<()> {
        for node in &self.nodes {
            let name = &node.name;
            let yaml = format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    kubernetes.io/hostname: {name}\n    dotgraft.dev/pool-group: default\n"
            );
            self.kube.apply(&yaml).await?;
            let status = r#"{"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"},{"type":"Hostname","address":"NAME"}]}}"#;
            let status = status.replace("NAME", name);
            self.kube.kubectl(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status]).await?;
            // The API server makes every Node with a taint that a kubelet has taken away; there is none here.
            self.kube.kubectl(&["patch", "node", name, "--type=merge", "-p", r#"{"spec":{"taints":null}}"#]).await?;
        }
        Ok(())
    }

    /// Writes each program's kubeconfig anew.
    async fn write_kubeconfigs(&self) -> Result<()> {
        let client = self.kube.client();
        let plane = &self.control_plane;
        let operator = ("dotgraft-operator", None);
        tokens::kubeconfig(&client, &plane.authority, &plane.server, operator, &self.operator_kubeconfig()).await?;
        let sidecars = ("dotgraft-csi", None);
        tokens::kubeconfig(&client, &plane.authority, &plane.server, sidecars, &self.sidecars_kubeconfig()).await?;
        for node in &self.nodes {
            let agent = ("dotgraft-agent", Some(node.name.as_str()));
            tokens::kubeconfig(&client, &plane.authority, &plane.server, agent, &node.files.kubeconfig).await?;
        }
        Ok(())
    }

    fn start_programs(&self, options: &Options, webhook: Option<&str>) -> Result<()> {
        let Some(binaries) = self.binaries.as_ref().filter(|_| self.has_programs) else { return Ok(()) };
        let socket = self.csi_socket();
        let mut operator = programs::operator(binaries, &self.operator_kubeconfig(), &self.operator_http, Some(&socket));
        operator.args.extend(webhook.into_iter().flat_map(|address| ["--webhook".into(), address.to_owned()]));
        let mut specs = vec![operator];
        if options.kubelets {
            specs.extend(sidecars::specs(&self.tools, &socket, &self.sidecars_kubeconfig(), &self.control_plane.admin));
        }
        let machine = |name: &str| self.machines.iter().find(|m| m.name() == name);
        specs.extend(self.nodes.iter().map(|n| n.spec(binaries, &options.pool_size).on(machine(&n.name))));
        for mut spec in specs {
            spec.env.insert("RUST_BACKTRACE".into(), "1".into());
            if let Some(env) = options.env.get(&spec.name) {
                spec.env.extend(env.clone());
            }
            self.processes.start(spec)?;
        }
        Ok(())
    }

    /// The ends of all logs and all objects of ours: what a failed test prints.
    pub async fn diagnosis(&self, lines: usize) -> String {
        let mut parts = Vec::new();
        for name in self.processes.names() {
            let lines = if ["etcd", "apiserver", "kcm", "scheduler"].contains(&name.as_str()) { lines.min(5) } else { lines };
            let state = if self.processes.running(&name) { "running" } else { "ended" };
            parts.push(format!("---- {name} ({state})\n{}", self.processes.tail(&name, lines)));
        }
        let kinds: Vec<&str> = kube::KINDS.iter().map(|(_, plural, _)| *plural).collect();
        parts.push(match self.kube.kubectl(&["get", &kinds.join(","), "-A", "-o", "wide", "--request-timeout=5s"]).await {
            Ok(table) => format!("---- kubectl get\n{table}"),
            Err(e) => format!("---- kubectl get failed: {e:#}"),
        });
        parts.join("\n")
    }
}

fn node(dir: &Path, name: &str, machine: Option<&Arc<Machine>>) -> Result<RigNode> {
    let files = NodeFiles::create(dir, name)?;
    let (listen, http) = match machine {
        Some(machine) => (format!("{}:7400", machine.address()), format!("{}:7401", machine.address())),
        None => (format!("127.0.0.1:{}", ports::free()?), format!("127.0.0.1:{}", ports::free()?)),
    };
    let kubelet = match machine {
        Some(_) => PathBuf::from("/var/lib/kubelet"),
        None => files.state.with_file_name("kubelet"),
    };
    Ok(RigNode { name: name.into(), files, listen, http, kubelet })
}

/// The repository: `DOTGRAFT_SOURCE_DIR`, else where this crate was built from.
pub fn source_root() -> PathBuf {
    std::env::var_os("DOTGRAFT_SOURCE_DIR").map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")), PathBuf::from)
}

fn manifests(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("listing the manifests of {} (DOTGRAFT_SOURCE_DIR names the repository)", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    Ok(files)
}

impl Drop for Rig {
    fn drop(&mut self) {
        for machine in &self.machines {
            let _ = self.power_off(machine.name());
        }
        for name in self.processes.names() {
            let _ = self.processes.signal(&name, Signal::CONT);
            let _ = self.processes.forget(&name);
        }
        unmount_below(&self.dir);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Unmounts all below `dir`, the deepest first.
pub fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    points.retain(|p| Path::new(p).starts_with(dir));
    points.sort_by_key(|p| std::cmp::Reverse(p.len()));
    for point in points {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}
