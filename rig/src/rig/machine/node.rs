//! What makes a machine a Kubernetes node: containerd with images, kubelet, and their settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::Machine;
use super::network::{node_address, pod_range};
use crate::rig::certificates::Authority;
use crate::rig::control_plane::Tools;
use crate::rig::process::Spec;
use crate::rig::wait::eventually;

/// containerd's socket, inside.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// The image that holds a pod's namespaces; `e2e/tools.sh` makes it under this name.
const PAUSE: &str = "dotgraft.test/pause:1";

/// The name of a machine's containerd among the rig's programs.
pub fn containerd_name(node: &str) -> String {
    format!("{node}-containerd")
}

/// The name of a machine's kubelet among the rig's programs.
pub fn kubelet_name(node: &str) -> String {
    format!("{node}-kubelet")
}

/// How a machine's containerd is started. Writes its settings.
pub fn containerd(machine: &Machine) -> Result<Spec> {
    let (settings, networks) = (machine.place.dir.join("containerd.toml"), machine.place.dir.join("cni"));
    fs::create_dir_all(&networks)?;
    // restrict_oom_score_adj: nothing here may lower its OOM score, and no container would start.
    let text = format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}"
"#,
        networks.display()
    );
    fs::write(&settings, text)?;
    let network = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{
        "type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": pod_range(machine.place.index)}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }]});
    fs::write(networks.join("10-pods.conflist"), network.to_string())?;
    let args = vec!["--config".into(), settings.to_string_lossy().into_owned(), "--log-level=warn".into()];
    Ok(Spec::new(&containerd_name(machine.name()), &system_program("containerd")?, args))
}

/// How a machine's kubelet is started. Issues its certificate and writes its settings; the node may read nothing else.
pub fn kubelet(machine: &Machine, tools: &Tools, authority: &Authority, server: &str) -> Result<Spec> {
    let (name, dir, address) = (machine.name(), &machine.place.dir, node_address(machine.place.index));
    let pki = dir.join("pki");
    fs::create_dir_all(&pki)?;
    authority.issue(name, &format!("system:node:{name}"), Some("system:nodes"), &[name, &address])?;
    for (from, to) in [("ca.crt".to_owned(), "ca.crt"), (format!("{name}.crt"), "kubelet.crt"), (format!("{name}.key"), "kubelet.key")] {
        fs::copy(authority.path(&from), pki.join(to))?;
    }
    let access = dir.join("kubelet.kubeconfig");
    fs::write(&access, authority.kubeconfig(server, name)?)?;
    let settings = dir.join("kubelet.json");
    fs::write(&settings, serde_json::to_vec_pretty(&kubelet_settings(&pki, &address, machine.place.index))?)?;
    let args = vec![
        format!("--config={}", settings.display()),
        format!("--kubeconfig={}", access.display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={address}"),
        "--cert-dir=/var/lib/kubelet/pki".into(),
        "--v=2".into(),
    ];
    Ok(Spec::new(&kubelet_name(name), &tools.path("kubelet"), args))
}

/// A lost node is seen in [`super::super::control_plane::NODE_GRACE`]: leases are renewed each second for that.
fn kubelet_settings(pki: &Path, address: &str, index: u8) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.join("kubelet.crt"),
        "tlsPrivateKeyFile": pki.join("kubelet.key"),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true,
        "failCgroupV1": false,
        "failSwapOn": false,
        "localStorageCapacityIsolation": true,
        "podCIDR": pod_range(index),
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/plugins-exec",
        "makeIPTablesUtilChains": false,
        "maxPods": 250,
        "serializeImagePulls": false,
        "syncFrequency": "10s", // a PVC that grows is noticed by then; the default is a minute
        "evictionHard": {"imagefs.available": "1%", "nodefs.available": "1%", "memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
        "nodeLeaseDurationSeconds": 4,
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "1m",
        "shutdownGracePeriod": "0s",
    })
}

/// Waits until a machine's containerd answers.
pub async fn containerd_ready(machine: &Machine) -> Result<()> {
    eventually(&format!("containerd on {}", machine.name()), Duration::from_secs(120), || async {
        let socket = machine.outside(Path::new(CONTAINERD))?;
        std::os::unix::net::UnixStream::connect(&socket).context("its socket")?;
        Ok(())
    })
    .await
}

/// Gives a machine's containerd an image from a docker archive.
pub fn import(machine: &Machine, archive: &Path) -> Result<()> {
    images(machine, &["import", &archive.to_string_lossy()]).map(|_| ())
}

/// Whether a machine's containerd has an image of that name.
pub fn has_image(machine: &Machine, reference: &str) -> Result<bool> {
    Ok(images(machine, &["list", "-q"])?.lines().any(|name| name == reference))
}

fn images(machine: &Machine, args: &[&str]) -> Result<String> {
    machine.run("ctr", &[&["--address", CONTAINERD, "--namespace", "k8s.io", "images"], args].concat())
}

/// Where Debian put a program.
pub fn system_program(name: &str) -> Result<PathBuf> {
    for dir in ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"] {
        let path = Path::new(dir).join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("{name} is missing: install the Debian packages that e2e/make.sh names")
}
