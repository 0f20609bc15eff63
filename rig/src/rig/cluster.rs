//! A rig whose nodes are machines with kubelets: bringing them up, turning one off and on, and back to health.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};

use super::control_plane::Tools;
use super::machine::network::Network;
use super::machine::{Machine, Place, node};
use super::process::Processes;
use super::wait::eventually;
use super::{Rig, sandbox};

/// What every machine can start pods from.
const IMAGES: [&str; 2] = ["image-pause", "image-busybox"];
/// How long a node may take from boot to `Ready`.
const NODE_READY: Duration = Duration::from_secs(180);

/// Makes the network, and turns on a machine for each name, which sees the directories of `archives`.
pub fn machines(dir: &Path, names: &[String], tools: &Tools, archives: &[PathBuf]) -> Result<(Option<Network>, Vec<Arc<Machine>>)> {
    let network = Network::create(u8::try_from(names.len())?)?;
    let group = format!("{}/{}", sandbox::name()?, dir.file_name().context("the rig's directory has no name")?.to_string_lossy());
    let programs = dir.join("programs");
    std::fs::create_dir_all(&programs)?;
    let mut shared = vec![std::path::absolute(tools.dir())?, programs];
    shared.extend(archives.iter().filter_map(|archive| archive.parent()).map(Path::to_path_buf));
    shared.dedup();
    let mut machines = Vec::new();
    for (index, name) in (1u8..).zip(names) {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let place = Place { name: name.clone(), index, dir, group: format!("{group}-{name}"), shared: shared.clone() };
        let machine = Machine::new(place);
        machine.boot()?;
        machines.push(Arc::new(machine));
    }
    Ok((Some(network), machines))
}

/// Starts containerd on every machine and gives it the images that every machine has, and those of `more`.
pub async fn containers(machines: &[Arc<Machine>], tools: &Tools, more: &[PathBuf], processes: &Processes) -> Result<()> {
    for machine in machines {
        processes.start(node::containerd(machine)?.on(Some(machine)))?;
    }
    let each = machines.iter().map(|machine| {
        let archives: Vec<_> = IMAGES.iter().map(|image| tools.path(image)).chain(more.iter().cloned()).collect();
        let machine = machine.clone();
        async move {
            node::containerd_ready(&machine).await?;
            tokio::task::spawn_blocking(move || archives.iter().try_for_each(|archive| node::import(&machine, archive))).await?
        }
    });
    futures::future::try_join_all(each).await?;
    Ok(())
}

impl Rig {
    /// Starts every machine's kubelet.
    pub(super) fn start_kubelets(&self) -> Result<()> {
        let plane = &self.control_plane;
        for machine in &self.machines {
            self.processes.start(node::kubelet(machine, &self.tools, &plane.authority, &plane.server)?.on(Some(machine)))?;
        }
        Ok(())
    }

    /// What an administrator does before install: says which pool group each node belongs to.
    pub(super) async fn label_nodes(&self) -> Result<()> {
        self.nodes_ready(NODE_READY).await?;
        self.kube.kubectl(&["label", "nodes", "--all", "dotgraft.dev/pool-group=default"]).await?;
        Ok(())
    }

    /// Gives every machine an image that only some cases need, under the name `reference`, from the archive `tool` of the
    /// tools' directory. One that has it already is left alone; images survive reboots.
    pub async fn image(&self, tool: &str, reference: &str) -> Result<()> {
        let archive = self.tools.path(tool);
        if !archive.exists() {
            bail!("{tool} is missing in {}; build it once: e2e/tools.sh {0}", self.tools.dir().display());
        }
        let each =
            self.machines.iter().map(|machine| {
                let (machine, archive, reference) = (machine.clone(), archive.clone(), reference.to_owned());
                async move {
                    tokio::task::spawn_blocking(move || {
                        if node::has_image(&machine, &reference)? { Ok(()) } else { node::import(&machine, &archive) }
                    })
                    .await?
                }
            });
        futures::future::try_join_all(each).await?;
        Ok(())
    }

    /// Waits until the Node of every machine that is on is `Ready`. Fine without machines.
    pub async fn nodes_ready(&self, timeout: Duration) -> Result<()> {
        let on: Vec<&str> = self.machines.iter().filter(|m| m.is_on()).map(|m| m.name()).collect();
        if on.is_empty() {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.kube.client());
        eventually("all nodes to be Ready", timeout, || async {
            let nodes = api.list(&ListParams::default()).await?.items;
            for name in &on {
                let node = nodes.iter().find(|n| n.metadata.name.as_deref() == Some(name));
                ready(node.with_context(|| format!("{name} has not registered"))?)?;
            }
            Ok(())
        })
        .await
    }

    /// Waits until a Node isn't `Ready`.
    pub async fn node_lost(&self, name: &str, timeout: Duration) -> Result<()> {
        let api: Api<Node> = Api::all(self.kube.client());
        eventually(&format!("{name} not to be Ready"), timeout, || async {
            match ready(&api.get(name).await?) {
                Ok(()) => bail!("it is Ready"),
                Err(_) => Ok(()),
            }
        })
        .await
    }

    /// Cuts the power of a node: every process on it dies at once.
    pub fn power_off(&self, name: &str) -> Result<()> {
        let machine = self.machine(name)?;
        self.processes.kill_paused(machine);
        machine.power_off()
    }

    /// Turns a node on that was off, and starts what ran on it. Doesn't wait for the node; see [`Rig::ready`].
    pub async fn boot(&self, name: &str) -> Result<()> {
        let machine = self.machine(name)?;
        machine.boot()?;
        self.start_node(machine).await
    }

    /// Starts what should run on a machine and doesn't: containerd, when it answers the kubelet, then the agent.
    async fn start_node(&self, machine: &Machine) -> Result<()> {
        let name = machine.name();
        let known = self.processes.names();
        for program in [node::containerd_name(name), node::kubelet_name(name), name.to_owned()] {
            if known.contains(&program) && !self.processes.running(&program) {
                self.processes.start_again(&program)?;
            }
            if program == node::containerd_name(name) {
                node::containerd_ready(machine).await?;
            }
        }
        Ok(())
    }

    /// Turns on, thaws and connects every machine, and starts its programs.
    pub(super) async fn heal_machines(&self) -> Result<()> {
        for machine in &self.machines {
            if machine.is_on() {
                machine.heal()?;
            } else {
                machine.boot()?;
            }
            self.start_node(machine).await?;
        }
        Ok(())
    }
}

fn ready(node: &Node) -> Result<()> {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready").context("it has no condition Ready")?;
    if ready.status != "True" {
        bail!("{:?} is Ready={}: {}", node.metadata.name, ready.status, ready.message.as_deref().unwrap_or_default());
    }
    Ok(())
}
