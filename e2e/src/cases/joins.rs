//! How a node's agent and its kubelet find each other, and what the cluster then knows of the node (csi.md §1).

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::kube::conditions;
use crate::rig::wait::eventually;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("kubelet-dir", "a kubelet whose directory is behind a link is served; one with another directory is named", directory)
            .kubelets(),
        Case::new("csi-capacity-joins", "a node that joins after the provisioner has its capacity within a minute", joins).kubelets(),
    ]
}

async fn directory(t: Arc<Test>) -> Result<()> {
    // All cases with pods run on it: its directory is a link.
    let linked = t.rig.machine("n2")?.outside(Path::new("/var/lib/kubelet"))?;
    ensure!(linked.is_symlink(), "{} is no link", linked.display());
    let pool = t.object("NodePool", "n2").await?;
    ensure!(!conditions(&pool).contains("KubeletElsewhere"), "{}", conditions(&pool));

    let args = t.rig.processes.args("n3")?;
    let mut other = args.clone();
    let at = other.iter().position(|a| a == "--kubelet-dir").context("the agent has no --kubelet-dir")?;
    "/var/lib/other".clone_into(other.get_mut(at + 1).context("a directory")?);
    t.rig.processes.set_args("n3", other)?;
    t.rig.restart("n3").await?;
    let told = t.kube().until_condition(("NodePool", "", "n3"), ("KubeletElsewhere", "True", None), STEP).await;
    t.rig.processes.set_args("n3", args)?;
    t.rig.restart("n3").await?;
    let said = conditions(&told?);
    ensure!(said.contains("uses /var/lib/kubelet, and this agent /var/lib/other"), "{said}");
    eventually("it to be over", STEP, || async {
        let pool = t.object("NodePool", "n3").await?;
        ensure!(!conditions(&pool).contains("KubeletElsewhere"), "{}", conditions(&pool));
        Ok(())
    })
    .await
}

/// What the capacity objects say of `n3`, in our `StorageClass`; `None` if there is none.
async fn capacity(t: &Test) -> Result<Option<String>> {
    let list: Value = serde_json::from_str(&t.kube().kubectl(&["get", "csistoragecapacities", "-A", "-o", "json"]).await?)?;
    let of_n3 = |o: &&Value| o["storageClassName"] == "dotgraft" && o["nodeTopology"]["matchLabels"]["topology.dotgraft.dev/node"] == "n3";
    Ok(list["items"].as_array().into_iter().flatten().find(of_n3).map(|o| o["capacity"].as_str().unwrap_or("0").to_owned()))
}

/// For the provisioner a node joins when the driver is registered there, and it has joined before it: so the driver is taken away first.
async fn joins(t: Arc<Test>) -> Result<()> {
    eventually("a capacity of n3", STEP, || async {
        let now = capacity(&t).await?;
        ensure!(now.as_deref().is_some_and(|c| c != "0"), "{now:?}");
        Ok(())
    })
    .await?;
    t.rig.kill9("n3")?;
    let socket = Path::new("/var/lib/kubelet/plugins_registry/csi.dotgraft.dev-reg.sock");
    fs::remove_file(t.rig.machine("n3")?.outside(socket)?)?;
    eventually("its capacity to go with the driver", STEP, || async {
        let now = capacity(&t).await?;
        ensure!(now.is_none(), "{now:?}");
        Ok(())
    })
    .await?;
    let start = Instant::now();
    t.rig.start("n3")?;
    eventually("its capacity to be there", Duration::from_secs(60), || async {
        let now = capacity(&t).await?;
        ensure!(now.as_deref().is_some_and(|c| c != "0"), "{now:?}");
        Ok(())
    })
    .await?;
    println!("        from the agent's start to its capacity: {:.1} s", start.elapsed().as_secs_f64());
    t.rig.ready(STEP).await
}
