//! The rig itself, where nodes are machines that run pods: what works there, and that its faults are what they say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::harness::Case;
use crate::harness::test::Test;
use crate::rig::control_plane::NODE_GRACE;
use crate::rig::wait::eventually;

/// Longest that one step with a pod may take.
const STEP: Duration = Duration::from_secs(180);

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("rig-nodes", "three nodes run pods that speak to each other; logs, exec and the API from inside work", nodes).kubelets(),
        Case::new("rig-cut", "a node with its cable cut is NotReady, and Ready once it is back", cut).kubelets(),
        Case::new("rig-one-way", "a node that drops what a peer sends still reaches the API, and others reach it", one_way).kubelets(),
        Case::new("rig-slow", "a node's link carries no more than its limit", slow).kubelets(),
        Case::new("rig-frozen", "a frozen node is NotReady, and goes on where it stood once thawed", frozen).kubelets(),
        Case::new("rig-reboot", "a node without power comes back and runs its pods again", reboot).kubelets(),
        Case::new("rig-killed", "kubelet and containerd killed: pods live on, and both come back", killed).kubelets(),
    ]
}

/// A pod `b-<node>` on each node that serves its own name over HTTP, and a step's seconds in the case's output.
async fn pods(t: &Test, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: b-{node}, namespace: NAMESPACE}}\nspec:\n  nodeName: {node}\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - name: b\n    image: busybox:1\n    imagePullPolicy: Never\n    \
             command: [sh, -c, 'mkdir /w; hostname > /w/index.html; echo started; exec httpd -f -p 8080 -h /w']\n"
        );
        // The controller manager makes a new namespace's ServiceAccount in its own time.
        eventually("the pod to be taken", STEP, || t.apply(&yaml)).await?;
    }
    t.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s"]).await?;
    // A pod runs before its program serves.
    for node in nodes {
        serves(t, &format!("b-{node}"), "127.0.0.1", &format!("b-{node}")).await?;
    }
    Ok(())
}

/// Waits until a pod is answered at that address by the pod `who`.
async fn serves(t: &Test, from: &str, address: &str, who: &str) -> Result<()> {
    eventually(&format!("{from} to be answered by {who} at {address}"), STEP, || async {
        let said = fetch(t, from, address).await?;
        ensure!(said.trim() == who, "{said:?} answers");
        Ok(())
    })
    .await
}

async fn pod_address(t: &Test, pod: &str) -> Result<String> {
    t.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]).await
}

async fn fetch(t: &Test, from: &str, address: &str) -> Result<String> {
    let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 5 nc {address} 8080 | tail -n 1");
    let body = t.kubectl(&["exec", from, "--", "sh", "-c", &get]).await?;
    ensure!(!body.trim().is_empty(), "no answer from {address}");
    Ok(body)
}

fn took(what: &str, since: Instant) {
    println!("        {what}: {:.1} s", since.elapsed().as_secs_f64());
}

async fn nodes(t: Arc<Test>) -> Result<()> {
    let start = Instant::now();
    pods(&t, &["n1", "n2", "n3"]).await?;
    took("three pods started", start);
    for node in ["n1", "n2", "n3"] {
        let pod = format!("b-{node}");
        eventually(&format!("the log of {pod}"), STEP, || async {
            let said = t.kubectl(&["logs", &pod]).await?;
            ensure!(said.trim() == "started", "it says {said:?}");
            Ok(())
        })
        .await?;
        ensure!(t.kubectl(&["exec", &pod, "--", "hostname"]).await?.trim() == pod, "exec in {pod}");
        for other in ["n1", "n2", "n3"] {
            let address = pod_address(&t, &format!("b-{other}")).await?;
            serves(&t, &pod, &address, &format!("b-{other}")).await?;
        }
    }
    let api = ["exec", "b-n3", "--", "sh", "-c", "echo | timeout 10 nc $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT && echo reached"];
    ensure!(t.kubectl(&api).await?.contains("reached"), "the API's service address from a pod");
    Ok(())
}

async fn cut(t: Arc<Test>) -> Result<()> {
    pods(&t, &["n1", "n2"]).await?;
    let there = pod_address(&t, "b-n2").await?;
    let machine = t.rig.machine("n2")?;
    let start = Instant::now();
    machine.cut()?;
    ensure!(fetch(&t, "b-n1", &there).await.is_err(), "a pod on a cut node was reached");
    t.rig.node_lost("n2", STEP).await?;
    took("cut to NotReady", start);
    let start = Instant::now();
    machine.join()?;
    t.rig.nodes_ready(STEP).await?;
    took("joined to Ready", start);
    eventually("the pod there to be reached", STEP, || async { fetch(&t, "b-n1", &there).await }).await?;
    Ok(())
}

async fn one_way(t: Arc<Test>) -> Result<()> {
    pods(&t, &["n1", "n2", "n3"]).await?;
    let there = pod_address(&t, "b-n2").await?;
    let here = pod_address(&t, "b-n1").await?;
    let machine = t.rig.machine("n2")?;
    machine.refuse(&here)?;
    ensure!(fetch(&t, "b-n1", &there).await.is_err(), "n2 refuses the pod on n1");
    serves(&t, "b-n3", &there, "b-n2").await.context("n3 still reaches n2")?;
    tokio::time::sleep(NODE_GRACE + Duration::from_secs(2)).await;
    // A node that doesn't reach the API would be NotReady by now, and would stay so.
    t.rig.nodes_ready(STEP).await.context("n2 still reaches the API")?;
    machine.heal()?;
    serves(&t, "b-n1", &there, "b-n2").await.context("healed")
}

async fn slow(t: Arc<Test>) -> Result<()> {
    pods(&t, &["n1", "n2"]).await?;
    let there = pod_address(&t, "b-n2").await?;
    t.kubectl(&["exec", "b-n2", "--", "dd", "if=/dev/zero", "of=/w/big", "bs=1M", "count=4"]).await?;
    let get = format!("printf 'GET /big HTTP/1.0\\r\\n\\r\\n' | nc {there} 8080 >/dev/null");
    let read = ["exec", "b-n1", "--", "sh", "-c", &get];
    let fast = Instant::now();
    t.kubectl(&read).await?;
    let fast = fast.elapsed();
    t.rig.machine("n2")?.limit(Some("8mbit"))?;
    let start = Instant::now();
    t.kubectl(&read).await?;
    let slow = start.elapsed();
    took("4 MiB at 8 Mbit/s", start);
    // No upper bound: a machine that does much else takes longer, with and without.
    ensure!(slow > Duration::from_secs(3) && slow > fast, "4 MiB took {slow:?} at 8 Mbit/s, {fast:?} without");
    t.rig.machine("n2")?.limit(None)
}

async fn frozen(t: Arc<Test>) -> Result<()> {
    pods(&t, &["n2"]).await?;
    let before = t.kubectl(&["get", "pod", "b-n2", "-o", "jsonpath={.status.containerStatuses[0].containerID}"]).await?;
    let machine = t.rig.machine("n2")?;
    let start = Instant::now();
    machine.freeze()?;
    t.rig.node_lost("n2", STEP).await?;
    took("frozen to NotReady", start);
    let start = Instant::now();
    machine.thaw()?;
    t.rig.nodes_ready(STEP).await?;
    took("thawed to Ready", start);
    let after = t.kubectl(&["get", "pod", "b-n2", "-o", "jsonpath={.status.containerStatuses[0].containerID}"]).await?;
    ensure!(before == after, "the container is another one");
    Ok(())
}

async fn reboot(t: Arc<Test>) -> Result<()> {
    pods(&t, &["n1", "n3"]).await?;
    let start = Instant::now();
    t.rig.power_off("n3")?;
    took("power off", start);
    t.rig.node_lost("n3", STEP).await?;
    took("power off to NotReady", start);
    let start = Instant::now();
    t.rig.boot("n3").await?;
    t.rig.ready(STEP).await?;
    took("boot to Ready", start);
    eventually("the pod to have started again", STEP, || async {
        let starts = t.kubectl(&["get", "pod", "b-n3", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]).await?;
        ensure!(starts.trim() != "0", "it has not been started again");
        ensure!(fetch(&t, "b-n1", &pod_address(&t, "b-n3").await?).await?.trim() == "b-n3", "not reached");
        Ok(())
    })
    .await?;
    took("boot to its pod again", start);
    Ok(())
}

async fn killed(t: Arc<Test>) -> Result<()> {
    pods(&t, &["n1", "n2"]).await?;
    let id =
        ["get", "pod", "b-n2", "-o", "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}"];
    let before = t.kubectl(&id).await?;
    t.rig.kill9("n2-kubelet")?;
    t.rig.kill9("n2-containerd")?;
    let there = pod_address(&t, "b-n2").await?;
    serves(&t, "b-n1", &there, "b-n2").await.context("the pod lives on")?;
    t.rig.heal().await?;
    t.rig.nodes_ready(STEP).await?;
    eventually("exec to work again", STEP, || async { t.kubectl(&["exec", "b-n2", "--", "hostname"]).await }).await?;
    ensure!(before == t.kubectl(&id).await?, "the container is another one");
    Ok(())
}
