//! The API server gone while pods write (failures.md rows 10 and 28): they write on, agents neither restart nor close what is open, and all goes
//! on after. Ten seconds in every run, as Kubernetes' own controllers pause the longer the longer it was away; five minutes as `measure-api-away`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::harness::{Case, Test};
use crate::rig::programs;
use crate::rig::wait::eventually;
use crate::steps::pod::{WRITER, claim, filesystem, grows, lines, pod, started, stop, written};

/// Longest that one step with a pod may take.
const STEP: Duration = Duration::from_secs(180);

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let title = "the API server gone while pods write: no error, no restart, the same mounts; new pods and moves after";
    vec![
        Case::new("scale-api-away", title, |t| away(t, Duration::from_secs(10))).kubelets().within(STEP * 4),
        Case::new("measure-api-away", title, |t| away(t, Duration::from_secs(300))).kubelets().within(Duration::from_secs(480)).measures(),
    ]
}

async fn away(t: Arc<Test>, gap: Duration) -> Result<()> {
    const NODES: [&str; 3] = ["n1", "n2", "n3"];
    let mut ids = BTreeMap::new();
    for node in NODES {
        claim(&t, node).await?;
        pod(&t, &format!("p-{node}"), node, node, WRITER).await?;
    }
    for node in NODES {
        started(&t, &format!("p-{node}")).await?;
        let id = filesystem(&t, node).await?;
        grows(&t, node, &id, "log").await?;
        ids.insert(node, id);
    }
    let containers = [
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[*]}{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}\n{end}",
    ];
    let (before, pids) = (t.kubectl(&containers).await?, pids(&t)?);
    t.rig.kill9("apiserver")?;
    let mut last = BTreeMap::new();
    let start = Instant::now();
    while start.elapsed() < gap {
        tokio::time::sleep(Duration::from_secs(5)).await;
        for (node, id) in &ids {
            last.insert(*node, grows(&t, node, id, "log").await?);
        }
    }
    ensure!(self::pids(&t)? == pids, "a program of ours or a sidecar was restarted or has ended");
    println!("        {:.0} s without API server", gap.as_secs_f64());
    back(&t).await?;
    ensure!(t.kubectl(&containers).await? == before, "containers were restarted");
    for (node, id) in &ids {
        grows(&t, node, id, "log").await?;
        let said = t.kubectl(&["logs", &format!("p-{node}")]).await?;
        ensure!(said.trim().is_empty(), "a write of the pod on {node} failed: {said}");
        let fs = t.object("Filesystem", id).await?;
        ensure!(fs["status"]["authority"]["epoch"] == 1 && fs["status"]["authority"]["owner"]["node"] == **node, "{}", fs["status"]);
    }
    goes_on(&t, &ids).await
}

/// The API server starts; says how long after it answers each is ready. Kubelets and controllers of Kubernetes have pauses of their own.
async fn back(t: &Test) -> Result<()> {
    t.rig.start("apiserver")?;
    eventually("the API server", STEP, || t.kube().api_ready()).await?;
    let start = Instant::now();
    let ours = async {
        eventually("operator to be ready", STEP, || programs::ready(&t.rig.operator_http)).await?;
        anyhow::Ok(start.elapsed().as_secs_f64())
    };
    let agents = async {
        for node in &t.rig.nodes {
            eventually("agents to be ready", STEP, || programs::ready(&node.http)).await?;
        }
        anyhow::Ok(start.elapsed().as_secs_f64())
    };
    let nodes = async {
        t.rig.nodes_ready(STEP * 2).await?;
        anyhow::Ok(start.elapsed().as_secs_f64())
    };
    let (ours, agents, nodes) = futures::try_join!(ours, agents, nodes)?;
    println!("        ready after it is back: agents {agents:.1} s, operator {ours:.1} s, Kubernetes' nodes {nodes:.1} s");
    ensure!(ours < 100.0 && agents < 100.0, "operator or agents took too long to see that the API server is back");
    Ok(())
}

/// New volumes are made, and one follows its pod to another node with all that it has.
async fn goes_on(t: &Test, ids: &BTreeMap<&str, String>) -> Result<()> {
    let start = Instant::now();
    claim(t, "new").await?;
    pod(t, "new", "new", "n2", "sleep 1000").await?;
    started(t, "new").await?;
    println!("        a new claim's pod started {:.1} s after it was made", start.elapsed().as_secs_f64());
    let id = ids.get("n1").context("no Filesystem on n1")?;
    stop(t, "p-n1").await?;
    let all = lines(&written(t, "n1", id, "log")?)?;
    pod(t, "moved", "n1", "n3", "sleep 1000").await?;
    started(t, "moved").await?;
    ensure!(lines(&written(t, "n3", id, "log")?)? == all, "after a move {all} lines are not all there");
    t.kubectl(&["delete", "pod,pvc", "--all", "--timeout=180s"]).await?;
    for name in ["n1", "n2", "n3", "new"] {
        t.kube().gone("Dot", &t.namespace, name, STEP).await?;
    }
    Ok(())
}

/// The processes of operator, agents and sidecars.
fn pids(t: &Test) -> Result<Vec<(String, i32)>> {
    let of_cluster =
        |name: &str| ["etcd", "apiserver", "kcm", "scheduler"].contains(&name) || name.contains("containerd") || name.contains("kubelet");
    let ours = t.rig.processes.names().into_iter().filter(|n| !of_cluster(n));
    ours.map(|name| Ok((name.clone(), t.rig.processes.pid(&name)?.as_raw_nonzero().get()))).collect()
}
