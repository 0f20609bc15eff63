//! Kubernetes' own conformance test of CSI drivers, `csi-sanity`, against a real operator and a real agent.
//!
//! Every spec must pass but those listed here by name, each with its reason; one that is neither passed nor listed fails the case, and
//! so does a listed one that passes after all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{Case, Test};
use crate::rig::Options;
use crate::steps::sidecar::Sidecar;

/// Specs in csi-test 5.6; one of them is pending upstream.
const SPECS: usize = 103;
/// Volumes that a node may have: csi-sanity makes one more than that.
const ATTACH_LIMIT: &str = "12";

/// Calls of the CSI specification after 1.12, which we build against.
const NEWER: &str = "a call of a CSI specification newer than the 1.12 that we have";
/// See csi.md §1.
const GROUPS: &str = "no VolumeGroupSnapshots: btrfs has no barrier over several subvolumes";

/// What is skipped: the end of the spec's name, and why.
const SKIPPED: &[(&str, &str)] = &[
    ("ControllerGetVolumeHealth [Controller Server] / should fail when no volume id is provided", NEWER),
    ("ControllerGetVolumeHealth [Controller Server] / should return health for a valid volume", NEWER),
    ("ControllerListVolumeHealth [Controller Server] / should return appropriate response", NEWER),
    ("CreateSnapshot [Controller Server] / should succeed when creating a snapshot with accessibility requirements", NEWER),
    ("Node Service / NodeGetStorageHealth / should return appropriate response", NEWER),
    ("Node Service / NodeGetVolumeHealth / should fail when no volume id is provided", NEWER),
    ("Node Service / NodeGetVolumeHealth / should return health for a valid volume", NEWER),
    ("GroupControllerGetCapabilities / should return appropriate capabilities", GROUPS),
    ("CreateVolumeGroupSnapshot / should fail when no name is provided", GROUPS),
    ("DeleteVolumeGroupSnapshot / should fail when no volume id is provided", GROUPS),
    ("DeleteVolumeGroupSnapshot / should succeed when an invalid volume id is used", GROUPS),
    ("GetVolumeGroupSnapshot / should fail when an invalid volume id is used", GROUPS),
    ("GetVolumeGroupSnapshot / should fail when no volume id is provided", GROUPS),
];

/// All cases.
pub fn cases() -> Vec<Case> {
    let env = |key: &str| BTreeMap::from([(key.to_owned(), ATTACH_LIMIT.to_owned())]);
    let env = [("operator", env("DOTGRAFT_CSI_ATTACH_LIMIT")), ("n1", env("DOTGRAFT_MAX_VOLUMES_PER_NODE"))];
    let env = env.into_iter().map(|(name, env)| (name.to_owned(), env)).collect();
    let options = Options { agents: 1, env, ..Options::default() };
    vec![
        Case::new("csi-sanity", "csi-sanity 5.6 passes, but for a list of skips by name", sanity)
            .own(options)
            .within(Duration::from_secs(900)),
    ]
}

fn program() -> Result<PathBuf> {
    let dir = std::env::var_os("DOTGRAFT_TOOLS_DIR").context("DOTGRAFT_TOOLS_DIR is not set: where is csi-sanity?")?;
    let program = PathBuf::from(dir).join("csi-sanity");
    ensure!(program.exists(), "csi-sanity is not in the tools' directory: e2e/tools.sh builds it");
    Ok(program)
}

async fn sanity(t: Arc<Test>) -> Result<()> {
    let node = t.rig.node("n1")?;
    Sidecar::new(&t).await?.room(None).await?;
    let (report, mutable) = (t.dir.join("report.json"), t.dir.join("mutable.yaml"));
    std::fs::write(&mutable, "dotgraft.dev/replicas: \"0\"\n")?;
    // The agent mounts below the kubelet's directory and nowhere else.
    let pods = node.kubelet_dir().join("sanity");
    std::fs::create_dir_all(&pods)?;
    let log = std::fs::File::create(t.dir.join("csi-sanity.log"))?;
    let status = Command::new(program()?)
        .arg(format!("--csi.endpoint=unix://{}", node.csi_socket().display()))
        .arg(format!("--csi.controllerendpoint=unix://{}", t.rig.csi_socket().display()))
        .arg(format!("--csi.mountdir={}", pods.join("mount").display()))
        .arg(format!("--csi.stagingdir={}", pods.join("staging").display()))
        .arg(format!("--csi.testvolumesize={}", 64 << 20))
        .arg(format!("--csi.testvolumeexpandsize={}", 128 << 20))
        .arg(format!("--csi.testvolumemutableparameters={}", mutable.display()))
        .arg("--csi.testnodevolumeattachlimit")
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .arg("--ginkgo.no-color")
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        .kill_on_drop(true)
        .status()
        .await
        .context("running csi-sanity")?;
    let text = std::fs::read_to_string(&report).with_context(|| format!("csi-sanity ended with {status} and wrote no report"))?;
    judge(&serde_json::from_str(&text)?)
}

/// Each spec by name, with its state and what went wrong.
fn specs(report: &Value) -> BTreeMap<String, (String, String)> {
    let suites = report.as_array().cloned().unwrap_or_default();
    let reports = suites.iter().flat_map(|s| s["SpecReports"].as_array().cloned().unwrap_or_default());
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    reports
        .filter(|r| r["LeafNodeType"] == "It")
        .map(|r| {
            let within = r["ContainerHierarchyTexts"].as_array().cloned().unwrap_or_default();
            let name: Vec<String> = within.iter().map(text).chain([text(&r["LeafNodeText"])]).collect();
            (name.join(" / "), (text(&r["State"]), text(&r["Failure"]["Message"])))
        })
        .collect()
}

fn judge(report: &Value) -> Result<()> {
    let specs = specs(report);
    ensure!(specs.len() == SPECS, "{} specs, not {SPECS}: another version of csi-sanity?", specs.len());
    let reason = |name: &str| SKIPPED.iter().find(|(end, _)| name.ends_with(end));
    let (mut wrong, mut skipped, mut passed) = (Vec::new(), BTreeSet::new(), 0);
    for (name, (state, message)) in &specs {
        match (state.as_str(), reason(name)) {
            ("passed", None) => passed += 1,
            ("skipped", Some((end, _))) => _ = skipped.insert(*end),
            ("pending", None) => {}
            ("passed", Some(_)) => wrong.push(format!("passed, and is listed as skipped: {name}")),
            (state, _) => {
                let message: Vec<&str> = message.split_whitespace().collect(); // its first line is only "Unexpected error:"
                wrong.push(format!("{state}: {name}: {}", message.join(" ").chars().take(1_500).collect::<String>()));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{passed} of {SPECS} specs passed\n{}", wrong.join("\n"));
    }
    for (end, why) in SKIPPED {
        ensure!(skipped.contains(end), "no spec is called {end:?}");
        println!("        skipped: {end}: {why}");
    }
    Ok(())
}
