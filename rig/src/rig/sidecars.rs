//! The real CSI sidecars as processes beside the operator, on its CSI socket, with the `ServiceAccount` that they have in its pod.

use std::path::Path;

use super::control_plane::Tools;
use super::process::Spec;
use super::tokens::SYSTEM;

/// As whom [`super::Rig::kube_as`] means all of them.
pub const SIDECARS: &str = "sidecars";

/// A part of the cluster, not of ours.
const SNAPSHOT_CONTROLLER: &str = "snapshot-controller";

/// The sidecars' names among the rig's programs, and the arguments that the chart gives them.
const PROGRAMS: [(&str, &[&str]); 5] = [
    (
        "csi-provisioner",
        &[
            "--extra-create-metadata",
            "--strict-topology",
            "--enable-capacity",
            "--capacity-ownerref-level=-1", // there is no pod that could own the capacity objects
            "--capacity-poll-interval=5s",
            "--snapshot-orphan-sweep-interval=5s", // as a test has less patience than an administrator
            "--timeout=60s",
            "--retry-interval-max=30s",
            "--worker-threads=100",
            "--kube-api-qps=50",
            "--kube-api-burst=100",
        ],
    ),
    ("csi-attacher", &["--timeout=60s", "--retry-interval-max=5s", "--worker-threads=100", "--kube-api-qps=50", "--kube-api-burst=100"]),
    (
        "csi-resizer",
        &[
            "--timeout=60s",
            "--retry-interval-max=30s",
            "--workers=20",
            "--handle-volume-inuse-error=false",
            "--kube-api-qps=50",
            "--kube-api-burst=100",
        ],
    ),
    ("csi-snapshotter", &["--timeout=60s", "--extra-create-metadata", "--kube-api-qps=50", "--kube-api-burst=100"]),
    (SNAPSHOT_CONTROLLER, &["--leader-election=false", "--kube-api-qps=50", "--kube-api-burst=100"]),
];

/// The names of the programs.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().map(|(name, _)| *name)
}

/// How the snapshot controller alone is started, beside sidecars that run as pods.
pub fn snapshot_controller(tools: &Tools, admin: &Path) -> Option<Spec> {
    specs(tools, Path::new(""), admin, admin).into_iter().find(|spec| spec.name == SNAPSHOT_CONTROLLER)
}

/// How all of them are started. `ours`, `admin`: kubeconfigs; the snapshot controller is a part of the cluster, not of ours.
pub fn specs(tools: &Tools, socket: &Path, ours: &Path, admin: &Path) -> Vec<Spec> {
    let spec = |(name, args): &(&str, &[&str])| {
        let of_cluster = *name == SNAPSHOT_CONTROLLER;
        let mut all = vec![format!("--kubeconfig={}", if of_cluster { admin } else { ours }.display())];
        if !of_cluster {
            all.push(format!("--csi-address={}", socket.display()));
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let mut spec = Spec::new(name, &tools.path(name), all);
        spec.env.insert("NAMESPACE".into(), SYSTEM.into());
        spec
    };
    PROGRAMS.iter().map(spec).collect()
}
