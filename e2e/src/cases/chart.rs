//! The chart on a real cluster: operator, sidecars and agents as pods of our images, by Helm and nothing else.
//!
//! One life, as each step begins where the last one ended. `first` is a pod that writes all the time: it must not notice anything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::data::digest::tree_digest;
use crate::harness::Case;
use crate::harness::test::{STEP, Test, text};
use crate::rig::Options;
use crate::rig::helm::{NAMESPACE, RELEASE};
use crate::rig::kube::KINDS;
use crate::rig::wait::eventually;
use crate::steps::cli::dot;
use crate::steps::etcd::lose_all;
use crate::steps::pod::{claim, pod, started, stop};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let title = "by Helm: upgrade from the release before, test, upgrade, rollback, uninstall, install again, lose all objects, adopt; a pod's data is there throughout";
    vec![Case::new("chart-life", title, life).own(Options::chart()).within(Duration::from_secs(1200))]
}

/// Writes the machine's uptime into a file, durably, over and over; says so if that ever fails.
const WRITE: &str =
    "while read up idle < /proc/uptime && echo $up >> /data/log && sync /data/log; do usleep 10000; done; echo failed; sleep 1000";

/// Longest that a pod may have to wait for a write while its agent is replaced. Agents aren't in the way of any write; disk and processors may be
/// busy.
const GAP: f64 = 15.0;

fn took(what: &str, seconds: f64) {
    println!("        {what}: {seconds:.1} s");
}

async fn life(t: Arc<Test>) -> Result<()> {
    let begun = install(&t).await?;
    claim(&t, "data").await?;
    pod(&t, "first", "data", "n1", WRITE).await?;
    started(&t, "first").await?;
    eventually("it to write", STEP, || last(&t)).await?;
    snapshot(&t).await?;
    upgrade(&t).await?;
    took("helm rollback", rollback(&t, begun).await?);
    uninstall(&t).await?;
    again(&t).await?;
    lost(&t).await
}

/// The chart of the release before, not waited for, and this one over it: what was set stays, all else is this chart's. `None` if that release
/// isn't in this clone.
async fn over_the_older(t: &Test) -> Result<Option<(String, f64)>> {
    let Some(older) = older_chart(&t.dir)? else {
        println!("        skipped: the upgrade from the release before, whose commit (e2e/older) is not in this clone");
        return Ok(None);
    };
    let older = older.to_string_lossy();
    let ours = crate::rig::helm::chart();
    let mut settings = crate::rig::helm::VALUES.to_vec();
    settings.push("operator.resources.requests.cpu=11m");
    t.rig.helm(&["install", RELEASE, &older, "--create-namespace"], &settings).await?;
    let reused = t.rig.helm(&["upgrade", RELEASE, &ours, "--reuse-values"], &[]).await;
    ensure!(reused.is_err_and(|e| format!("{e:#}").contains("--reset-then-reuse-values")), "the defaults of the release before were taken");
    let start = Instant::now();
    let notes = t.rig.helm(&["upgrade", RELEASE, &ours, "--reset-then-reuse-values", "--wait", "--timeout=5m"], &[]).await?;
    let deployment: Value = serde_json::from_str(&in_release(t, &["get", "deployment", "dotgraft-operator", "-o", "json"]).await?)?;
    let template = deployment["spec"]["template"].to_string();
    ensure!(template.contains(r#""cpu":"11m""#), "what was set is lost: {template}");
    ensure!(!template.contains(OLD_SIDECAR), "a sidecar of the release before: {template}");
    let agent = in_release(t, &["get", "daemonset", "dotgraft-agent", "-o", "jsonpath={.spec.template.spec.containers[0].args}"]).await?;
    ensure!(agent.contains("--probes=127.0.0.1:9810"), "a new value is missing: {agent}");
    Ok(Some((notes, start.elapsed().as_secs_f64())))
}

/// A tag that no version of ours has.
const OLD_SIDECAR: &str = "csi-provisioner:v0.0.1";

/// The chart of the release before, with an older sidecar, as `git` has it.
fn older_chart(dir: &Path) -> Result<Option<PathBuf>> {
    let source = crate::rig::source_root();
    let commit = std::fs::read_to_string(source.join("e2e/older"))?;
    let to = dir.join("older");
    std::fs::create_dir_all(&to)?;
    let archive = to.join("older.tar");
    let mut git = Command::new("git");
    git.arg("-C").arg(&source).args(["archive", "-o"]).arg(&archive).arg(commit.trim()).args(["charts", "deploy", "crds"]);
    if !git.stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
        return Ok(None);
    }
    let unpacked = Command::new("tar").arg("-C").arg(&to).arg("-xf").arg(&archive).status()?;
    ensure!(unpacked.success(), "tar: {unpacked}");
    let chart = to.join("charts/dotgraft");
    let values = std::fs::read_to_string(chart.join("values.yaml"))?;
    let (before, after) = values.split_once("csi-provisioner, tag: ").context("no provisioner in the values")?;
    let after = after.split_once(',').context("a tag")?.1;
    std::fs::write(chart.join("values.yaml"), format!("{before}csi-provisioner, tag: v0.0.1,{after}"))?;
    Ok(Some(chart))
}

/// Everything is ready, as the chart says it should be, and Helm's own test passes. Answers the revision that this is.
async fn install(t: &Test) -> Result<&'static str> {
    let (revision, (notes, seconds)) = match over_the_older(t).await? {
        Some(upgraded) => ("2", upgraded),
        None => ("1", t.rig.helm_install().await?),
    };
    took("helm, until all is ready", seconds);
    ensure!(notes.contains("pod-security.kubernetes.io/enforce=privileged"), "the notes say nothing of the Pod Security label:\n{notes}");
    ensure!(notes.contains(&format!("helm test {RELEASE} -n {NAMESPACE}")), "the notes don't say how to test:\n{notes}");
    let operators = pods(t, "operator").await?;
    let nodes: BTreeSet<String> = operators.iter().map(|p| text(p, "/spec/nodeName")).collect::<Result<_>>()?;
    ensure!(operators.len() == 2 && nodes.len() == 2, "{} operators on {nodes:?}", operators.len());
    for operator in &operators {
        let tolerations = operator.pointer("/spec/tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
        let leaves = |key: &str| tolerations.iter().any(|t| t["key"] == *key && t["tolerationSeconds"] == 30);
        ensure!(leaves("node.kubernetes.io/unreachable") && leaves("node.kubernetes.io/not-ready"), "{tolerations:?}");
        ensure!(containers(operator).len() == 5, "not four sidecars: {:?}", containers(operator));
    }
    // Helm waits for pods; what they count as, controllers say a moment later.
    eventually("the PodDisruptionBudget to count both", STEP, || async {
        let budget = in_release(t, &["get", "pdb", "dotgraft-operator", "-o", "jsonpath={.status.disruptionsAllowed}"]).await?;
        ensure!(budget == "1", "it allows {budget:?}");
        Ok(())
    })
    .await?;
    ensure!(pods(t, "agent").await?.len() == t.rig.nodes.len(), "not an agent on every node");
    let typo = t.rig.helm(&["upgrade", RELEASE, &crate::rig::helm::chart(), "--reuse-values"], &["agent.portt=1"]).await;
    ensure!(typo.is_err_and(|e| format!("{e:#}").contains("portt")), "a typo in the values was taken");
    let start = Instant::now();
    t.rig.helm(&["test", RELEASE, "--timeout=5m"], &[]).await?;
    took("helm test", start.elapsed().as_secs_f64());
    Ok(revision)
}

/// By the class that the chart brings where the cluster has the kinds, and with the cluster's own controller.
async fn snapshot(t: &Test) -> Result<()> {
    t.apply(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: s, namespace: NAMESPACE}\n\
         spec: {volumeSnapshotClassName: dotgraft, source: {persistentVolumeClaimName: data}}\n",
    )
    .await?;
    t.kubectl(&["wait", "volumesnapshot/s", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s"]).await?;
    t.kubectl(&["delete", "volumesnapshot", "s", "--timeout=60s"]).await.map(drop)
}

/// Other values, from a version whose CRDs were older and fewer: agents and operators are replaced, the pod goes on writing.
async fn upgrade(t: &Test) -> Result<()> {
    let before = (uids(t).await?, mount(t).await?, last(t).await?);
    t.kube().kubectl(&["delete", "crd", "dotoperations.dotgraft.dev"]).await?;
    t.kube().kubectl(&["annotate", "crd", "dots.dotgraft.dev", "--overwrite", "dotgraft.dev/crd-version=0"]).await?;
    took("helm upgrade", t.rig.helm_upgrade(&["agent.logLevel=debug", "operator.logLevel=debug"]).await?);
    // Helm waits for the new pods, not for the end of the old ones.
    eventually("every pod to be replaced", STEP, || async {
        let now = uids(t).await?;
        ensure!(now.len() == before.0.len() && now.is_disjoint(&before.0), "{:?}, {now:?}", before.0);
        Ok(())
    })
    .await?;
    ensure!(mount(t).await? == before.1, "the pod's mount is another one");
    let version = ["get", "crd", "dots.dotgraft.dev", "-o", "jsonpath={.metadata.annotations.dotgraft\\.dev/crd-version}"];
    ensure!(t.kube().kubectl(&version).await? != "0", "the CRD was not lifted");
    t.kube().kubectl(&["get", "dotoperations", "-A"]).await.context("the new kind was not made")?;
    ensure!(log_level(t).await? == "debug", "the value is not in the agents");
    let gap = longest_gap(t, before.2).await?;
    println!("        longest pause between two writes of a pod meanwhile: {gap:.2} s");
    ensure!(gap < GAP, "the pod could not write for {gap:.1} s");
    Ok(())
}

async fn rollback(t: &Test, to: &str) -> Result<f64> {
    let start = Instant::now();
    t.rig.helm(&["rollback", RELEASE, to, "--wait", "--timeout=5m"], &[]).await?;
    let seconds = start.elapsed().as_secs_f64();
    eventually("the agents to have the value of the first revision", STEP, || async {
        let level = log_level(t).await?;
        ensure!(level == "info", "they have {level}");
        Ok(())
    })
    .await?;
    Ok(seconds)
}

/// The chart's objects go, at once; nothing of the user's does.
async fn uninstall(t: &Test) -> Result<()> {
    let before = last(t).await?;
    took("helm uninstall", t.rig.helm_uninstall().await?);
    let kinds = "deployments,daemonsets,services,clusterroles,clusterrolebindings,validatingadmissionpolicies,csidrivers,storageclasses";
    let left = t.kube().kubectl(&["get", kinds, "-A", "-l", "app.kubernetes.io/part-of=dotgraft", "-o", "name"]).await?;
    ensure!(left.trim().is_empty(), "Helm has left behind: {left}");
    for (_, plural, _) in KINDS {
        t.kube().kubectl(&["get", "crd", &format!("{plural}.dotgraft.dev")]).await.context("a CRD went with the chart")?;
    }
    t.object("Dot", "data").await?;
    ensure!(t.kubectl(&["get", "pvc", "data", "-o", "jsonpath={.status.phase}"]).await? == "Bound", "the PVC is not bound any more");
    let gap = longest_gap(t, before).await?;
    ensure!(gap < GAP, "the pod could not write for {gap:.1} s");
    Ok(())
}

/// A new install goes on with what is there: on the pod's node, and for a pod on the other one.
async fn again(t: &Test) -> Result<()> {
    took("helm install again", t.rig.helm_install().await?.1);
    t.ready("Dot", "data").await?;
    let lines = t.kubectl(&["exec", "first", "--", "sh", "-c", "head -c 4096 /data/log | sha256sum"]).await?;
    ensure!(t.kubectl(&["logs", "first"]).await?.trim().is_empty(), "a write has failed");
    stop(t, "first").await?;
    let anywhere = r#"{"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}"#;
    let ask = ["run", "any", "--image=busybox:1", "--dry-run=server", "-o", "jsonpath={.spec.affinity}", "--overrides", anywhere];
    // The leader says what to trust; Helm has taken the last one's rights before it could give its Lease back, so that takes 15 s.
    eventually("the webhook to tell a pod where its volume is", STEP, || async {
        let preferred = t.kubectl(&ask).await?;
        ensure!(preferred.contains("n1"), "{preferred:?}");
        Ok(())
    })
    .await?;
    pod(t, "second", "data", "n2", "sleep 1000").await?;
    started(t, "second").await?;
    let moved = t.kubectl(&["exec", "second", "--", "sh", "-c", "head -c 4096 /data/log | sha256sum"]).await?;
    ensure!(lines == moved, "on the other node the pod finds something else");
    Ok(())
}

/// All objects of ours and the CRDs are gone: install, adopt, and everything is as it was, also for the pod that has it mounted.
async fn lost(t: &Test) -> Result<()> {
    let fs_id = text(&t.object("Dot", "data").await?, "/status/fsId")?;
    let commit = t.commit("c", "data").await?;
    t.push("j", "data", "n1").await?;
    t.arrived(&fs_id, &commit, "n1", STEP).await?;
    let before = digests(t, &fs_id, &commit)?;
    t.rig.helm_uninstall().await?;
    lose_all(t).await?;
    took("helm install after all objects were lost", t.rig.helm_install().await?.1);
    eventually("both copies to be listed", STEP, || async {
        let list: Value = serde_json::from_str(&dot(t, &["adopt", "-o", "json"]).await?)?;
        ensure!(list.as_array().is_some_and(|l| l.len() == 2), "{list}");
        Ok(())
    })
    .await?;
    ensure!(digests(t, &fs_id, &commit)? == before, "data has changed while it belonged to nobody");
    dot(t, &["adopt", "--all"]).await?;
    t.ready("Dot", "data").await?;
    ensure!(text(&t.object("Dot", "data").await?, "/status/fsId")? == fs_id, "the Dot has another Filesystem");
    ensure!(digests(t, &fs_id, &commit)? == before, "data has changed by adoption");
    t.kubectl(&["exec", "second", "--", "sh", "-c", "echo on >> /data/log && sync /data/log"]).await?;
    stop(t, "second").await?;
    pod(t, "third", "data", "n2", "sleep 1000").await?;
    started(t, "third").await?;
    ensure!(t.kubectl(&["exec", "third", "--", "tail", "-n", "1", "/data/log"]).await?.trim() == "on", "the last line is another");
    // A PVC still takes along the volume that was made for it.
    stop(t, "third").await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    t.kube().gone("Dot", &t.namespace, "data", STEP).await
}

/// Head and commit on n2, the commit on n1.
fn digests(t: &Test, fs_id: &str, commit: &str) -> Result<Vec<String>> {
    let paths = [("n2", "head".to_owned()), ("n2", format!("commits/{commit}")), ("n1", format!("commits/{commit}"))];
    paths.iter().map(|(node, path)| tree_digest(&pool(t, node)?.join("fs").join(fs_id).join(path))).collect()
}

/// The pool as a node's agent has it mounted, in its container.
fn pool(t: &Test, node: &str) -> Result<PathBuf> {
    let machine = t.rig.machine(node)?;
    let pid = machine.run("pgrep", &["-x", "dotgraft-agent"])?;
    machine.outside(&PathBuf::from(format!("/proc/{}/root/var/lib/dotgraft/pool", pid.trim())))
}

async fn in_release(t: &Test, args: &[&str]) -> Result<String> {
    t.kube().kubectl(&[&["-n", NAMESPACE], args].concat()).await
}

async fn pods(t: &Test, component: &str) -> Result<Vec<Value>> {
    let label = format!("app.kubernetes.io/component={component}");
    let list: Value = serde_json::from_str(&in_release(t, &["get", "pods", "-l", &label, "-o", "json"]).await?)?;
    let going = |p: &Value| p.pointer("/metadata/deletionTimestamp").is_some();
    Ok(list["items"].as_array().into_iter().flatten().filter(|p| !going(p)).cloned().collect())
}

fn containers(pod: &Value) -> Vec<String> {
    let list = pod.pointer("/spec/containers").and_then(Value::as_array).cloned().unwrap_or_default();
    list.iter().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
}

async fn uids(t: &Test) -> Result<BTreeSet<String>> {
    let all = [pods(t, "operator").await?, pods(t, "agent").await?].concat();
    all.iter().map(|p| text(p, "/metadata/uid")).collect()
}

async fn log_level(t: &Test) -> Result<String> {
    let agent = pods(t, "agent").await?.first().cloned().context("no agent")?;
    let env = agent.pointer("/spec/containers/0/env").and_then(Value::as_array).cloned().unwrap_or_default();
    env.iter().find(|e| e["name"] == "RUST_LOG").map(|e| text(e, "/value")).context("no RUST_LOG")?
}

async fn mount(t: &Test) -> Result<String> {
    t.kubectl(&["exec", "first", "--", "grep", " /data ", "/proc/self/mountinfo"]).await
}

/// Lines that the pod has written.
async fn last(t: &Test) -> Result<usize> {
    let lines = t.kubectl(&["exec", "first", "--", "sh", "-c", "wc -l < /data/log"]).await?;
    lines.trim().parse().context("counting lines")
}

/// Seconds between two writes of the pod, the longest since line `from` and until now.
async fn longest_gap(t: &Test, from: usize) -> Result<f64> {
    let now: f64 = t.kubectl(&["exec", "first", "--", "cut", "-d", " ", "-f", "1", "/proc/uptime"]).await?.trim().parse()?;
    let lines = t.kubectl(&["exec", "first", "--", "tail", "-n", &format!("+{}", from.max(1)), "/data/log"]).await?;
    let mut times: Vec<f64> = lines.lines().map(|l| l.parse().with_context(|| format!("the line {l:?}"))).collect::<Result<_>>()?;
    ensure!(times.len() > 10, "the pod has written {} lines", times.len());
    times.push(times.last().copied().unwrap_or_default().max(now));
    Ok(times.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max))
}
