//! Many volumes at once under real pods, and the figures that go with them: times of claims and pods, what of them is ours, memory and
//! idle processor time. `scale-…` is in every run; `measure-…` is the same at full size and runs when asked for (`make measure`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::harness::figures::{self, Csi, spread};
use crate::harness::timeline::Timeline;
use crate::harness::{Case, Test};
use crate::rig::programs::OPERATOR;
use crate::rig::wait::eventually;
use crate::steps::many::{ALL, all_gone, can_schedule};

/// The calls that stand between a claim and a pod's container.
const CALLS: [&str; 4] = ["CreateVolume", "ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let at_once = "100 PVCs and their pods made at once on three nodes: all are bound and start; idle they cost next to nothing";
    vec![
        Case::new("measure-idle", "an agent that owns 100 Dots, and the operator of them, idle at nothing", idle).within(ALL).measures(),
        Case::new("scale-claims", at_once, |t| claims(t, 20, Duration::from_secs(10))).kubelets().within(ALL * 3),
        Case::new("measure-claims", at_once, |t| claims(t, 100, Duration::from_secs(30))).kubelets().within(ALL * 4).measures(),
    ]
}

/// 100 claims, spread over so many pods.
async fn claims(t: Arc<Test>, pods: usize, idle: Duration) -> Result<()> {
    const CLAIMS: usize = 100;
    can_schedule(&t).await?;
    let (before, timeline) = (Csi::now(&t).await?, Timeline::of(&t.kube().client(), &t.namespace));
    let (start, worked) = (Instant::now(), processor(&t)?);
    try_join_all((0..CLAIMS).map(|i| make_claim(&t, format!("v{i}")))).await?;
    let each = CLAIMS / pods;
    try_join_all((0..pods).map(|p| {
        let of = (p * each..(p + 1) * each).map(|i| format!("v{i}")).collect::<Vec<_>>();
        make_pod(&t, format!("p{p}"), of)
    }))
    .await?;
    eventually("all pods to have started", ALL, || async {
        let (bound, started) = (timeline.bound().len(), timeline.started().len());
        ensure!(bound == CLAIMS && started == pods, "{bound} claims are bound, {started} pods have started");
        Ok(())
    })
    .await?;
    println!("        {CLAIMS} claims, {pods} pods: all started after {:.1} s", start.elapsed().as_secs_f64());
    println!("        PVC made to bound: {}", spread(&timeline.bound()));
    println!("        pod scheduled to started: {}", spread(&timeline.started()));
    println!("        processor time: {}", since(&processor(&t)?, &worked));
    println!("        ours of it, mean per call: {}", Csi::now(&t).await?.since(&before, &CALLS));
    on_three_nodes(&timeline)?;
    rests(&t, &["operator", "n1", "n2", "n3"], idle).await?;
    all_gone(&t).await
}

fn on_three_nodes(timeline: &Timeline) -> Result<()> {
    let mut nodes: Vec<String> = timeline.pods().into_iter().filter_map(|p| p.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    ensure!(nodes.len() == 3, "the pods are on {nodes:?} only");
    Ok(())
}

/// Processor time so far of each of our programs, of the API server and of all there is.
fn processor(t: &Test) -> Result<Vec<(String, Duration)>> {
    let names = t.rig.processes.names();
    names.into_iter().map(|name| Ok((name.clone(), figures::processor(t.rig.processes.pid(&name)?)?))).collect()
}

fn since(now: &[(String, Duration)], before: &[(String, Duration)]) -> String {
    let took = now.iter().zip(before).map(|((name, now), (_, before))| (name, now.saturating_sub(*before).as_secs_f64()));
    took.filter(|(_, s)| *s >= 1.0).map(|(name, s)| format!("{name} {s:.1} s")).collect::<Vec<_>>().join(", ")
}

/// "Agents that idle at nothing": memory and processor time of operator and agents while nobody asks anything of them; what was asked before
/// may still be in hand for a while.
async fn rests(t: &Test, names: &[&str], span: Duration) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(5)).await;
    eventually("operator and agents to idle", ALL, || idles(t, names, span)).await
}

async fn idles(t: &Test, names: &[&str], span: Duration) -> Result<()> {
    let mut before = Vec::new();
    for name in names {
        before.push(figures::processor(t.rig.processes.pid(name)?)?);
    }
    tokio::time::sleep(span).await;
    for (&name, before) in names.iter().zip(before) {
        let pid = t.rig.processes.pid(name)?;
        let share = figures::processor(pid)?.saturating_sub(before).as_secs_f64() / span.as_secs_f64() * 100.0;
        let (resident, own) = figures::memory(pid)?;
        let actors = if name == OPERATOR { String::new() } else { format!("; {} Dots", actors(t, name).await?) };
        println!("        {name}: {resident:.0} MiB resident, {own:.0} of it its own; idle at {share:.1} % of a processor{actors}");
        ensure!(share < 5.0, "{name} takes {share:.1} % of a processor for nothing");
        ensure!(resident < 200.0, "{name} has {resident:.0} MiB resident");
    }
    Ok(())
}

/// All on one agent, without kubelets; the other agent has none.
async fn idle(t: Arc<Test>) -> Result<()> {
    let names: Vec<String> = (0..100).map(|i| format!("d{i}")).collect();
    let spec = json!({"capacity": "64Mi", "placement": {"node": "n1"}});
    for name in &names {
        t.create("Dot", name, &spec).await?;
    }
    for name in &names {
        t.ready("Dot", name).await?;
    }
    rests(&t, &["operator", "n1", "n2"], Duration::from_secs(30)).await
}

async fn actors(t: &Test, node: &str) -> Result<String> {
    let (_, text) = crate::rig::programs::http_get(&t.rig.node(node)?.http, "/metrics").await?;
    Ok(text.lines().find_map(|l| l.strip_prefix("dotgraft_actors ")).context("no dotgraft_actors")?.to_owned())
}

async fn make_claim(t: &Test, name: String) -> Result<()> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(t.kube().client(), &t.namespace);
    let claim = json!({
        "metadata": {"name": name},
        "spec": {"storageClassName": "dotgraft", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}},
    });
    claims.create(&PostParams::default(), &serde_json::from_value(claim)?).await?;
    Ok(())
}

/// A pod that writes a word into each of its claims, spread over the nodes.
async fn make_pod(t: &Test, name: String, claims: Vec<String>) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(t.kube().client(), &t.namespace);
    let mounts: Vec<Value> = claims.iter().map(|c| json!({"name": c, "mountPath": format!("/data/{c}")})).collect();
    let volumes: Vec<Value> = claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": "many"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "many"}},
            }],
            "containers": [{
                "name": "c", "image": "busybox:1", "imagePullPolicy": "Never",
                "command": ["sh", "-c", "for d in /data/*; do echo here > $d/word || exit 1; done; sync; sleep 100000"],
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    Ok(())
}
