//! Nodes drained under pods with volumes: all of them at once, none lost; and how long one volume of a certain size takes, by parts.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::harness::figures::{Csi, spread};
use crate::harness::timeline::{PodTimes, Timeline};
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::many::{ALL, all_gone, can_schedule};

/// First it makes a file and its sum, at its next start it says whether they are whole; and it notes each node it has been on.
const KEEPS: &str = "trap exit TERM; cd /data; if [ -e sum ]; then md5sum -c -s sum && echo whole || echo broken; \
    else dd if=/dev/urandom of=f bs=64k count=16 2>/dev/null; md5sum f > sum; fi; echo $NODE >> nodes; sync; cat nodes; sleep 100000 & wait";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let title = "pods with volumes drained from one node at once: each runs elsewhere with its data, no move is lost";
    vec![
        Case::new("scale-drain", title, |t| drain(t, 10)).kubelets().within(ALL * 3),
        Case::new("measure-drain", title, |t| drain(t, 30)).kubelets().within(ALL * 2).measures(),
        Case::new(
            "measure-move",
            "drain to running on the other node: 1 GiB of data, 50 MiB of it dirty, without and with a replica",
            sizes,
        )
        .kubelets()
        .within(ALL * 2)
        .measures(),
    ]
}

/// A `StatefulSet` whose pods run `script` on a claim each.
async fn set(t: &Test, count: usize, size: &str, class: &str, script: &str) -> Result<()> {
    t.apply(&format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: s, namespace: NAMESPACE}}\nspec:\n  replicas: {count}\n  serviceName: s\n  \
         podManagementPolicy: Parallel\n  selector: {{matchLabels: {{app: s}}}}\n  \
         persistentVolumeClaimRetentionPolicy: {{whenDeleted: Delete, whenScaled: Delete}}\n  template:\n    metadata: {{labels: {{app: s}}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 2\n      containers:\n      - name: c\n        image: busybox:1\n        \
         imagePullPolicy: Never\n        command: [sh, -c, '{script}']\n        \
         env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]\n        \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumeClaimTemplates:\n  - metadata: {{name: data}}\n    spec:\n      \
         storageClassName: {class}\n      accessModes: [ReadWriteOnce]\n      resources: {{requests: {{storage: {size}}}}}\n"
    ))
    .await
}

async fn all_started(timeline: &Timeline, count: usize, on: impl Fn(&str) -> bool) -> Result<Vec<PodTimes>> {
    eventually(&format!("{count} pods to run"), ALL, || async {
        let pods = timeline.pods().into_iter().filter(|p| p.gone.is_none() && p.ending.is_none() && p.node.as_deref().is_some_and(&on));
        let running: Vec<_> = pods.filter(|p| p.started.is_some()).collect();
        ensure!(running.len() == count, "{} do", running.len());
        Ok(running)
    })
    .await
}

async fn cordon(t: &Test, nodes: &[&str], on: bool) -> Result<()> {
    let verb = if on { "cordon" } else { "uncordon" };
    t.kubectl(&[&[verb], nodes].concat()).await.map(drop)
}

/// Starts the set on n1, and lets the others take pods again.
async fn begin(t: &Arc<Test>, timeline: &Timeline, count: usize, (size, class, script): (&str, &str, &str)) -> Result<()> {
    cordon(t, &["n2", "n3"], true).await?;
    set(t, count, size, class, script).await?;
    all_started(timeline, count, |node| node == "n1").await?;
    cordon(t, &["n2", "n3"], false).await
}

async fn drain_n1(t: &Test) -> Result<()> {
    t.kubectl(&["drain", "n1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=600s"]).await.map(drop)
}

async fn drain(t: Arc<Test>, count: usize) -> Result<()> {
    can_schedule(&t).await?;
    let timeline = Timeline::of(&t.kube().client(), &t.namespace);
    begin(&t, &timeline, count, ("64Mi", "dotgraft", KEEPS)).await?;
    let (before, start) = (Csi::now(&t).await?, Instant::now());
    drain_n1(&t).await?;
    let drained = start.elapsed().as_secs_f64();
    let running = all_started(&timeline, count, |node| node != "n1").await?;
    println!("        {count} pods drained after {drained:.1} s, all run elsewhere after {:.1} s", start.elapsed().as_secs_f64());
    let times: Vec<f64> = running.iter().filter_map(|p| Some(p.started?.duration_since(start).as_secs_f64())).collect();
    println!("        drain to running on the other node: {}", spread(&times));
    let after = Csi::now(&t).await?;
    println!(
        "        ours of it, mean per call: {}",
        after.since(&before, &["ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"])
    );
    let refused = after.of("ControllerPublishVolume").refused - before.of("ControllerPublishVolume").refused;
    ensure!(refused < 1.0, "{refused:.0} attach calls were refused: each doubles a pod's wait (ADR 6)");
    let mut frozen = Vec::new();
    for pod in &running {
        frozen.push(moved(&t, pod).await?);
    }
    println!("        nothing could write: {}", spread(&frozen));
    cordon(&t, &["n1"], false).await?;
    t.kubectl(&["delete", "statefulset", "s", "--timeout=180s"]).await?;
    all_gone(&t).await
}

/// Its volume is where it runs, after one move; with all that it had. Returns how long nothing could write, in seconds.
async fn moved(t: &Test, pod: &PodTimes) -> Result<f64> {
    let node = pod.node.as_deref().unwrap_or_default();
    let dot = eventually("the move to be reported as done", ALL, || async {
        let dot = t.object("Dot", &format!("data-{}", pod.name)).await?;
        let status = &dot["status"];
        let done = status["migration"]["phase"] == "Done" && status["owner"] == *node && status["epoch"] == 2;
        ensure!(done, "{} runs on {node}, its volume: {status}", pod.name);
        Ok(dot)
    })
    .await?;
    eventually("it to have looked at its data", ALL, || async {
        let said = t.kubectl(&["logs", &pod.name]).await?;
        ensure!(said.lines().eq(["whole", "n1", node]), "{} says {said:?}", pod.name);
        Ok(())
    })
    .await?;
    Ok(dot["status"]["migration"]["frozenMs"].as_f64().context("no frozenMs")? / 1000.0)
}

/// 1 GiB, then a sum of it; 50 MiB of it written anew once `dirty` is there, and the sum again.
const BIG: &str = "trap exit TERM; cd /data; if [ -e moved ]; then md5sum -c -s sum && echo whole || echo broken; \
    else dd if=/dev/urandom of=f bs=1M count=1024 2>/dev/null; sync; touch made; while [ ! -e dirty ]; do sleep 1; done; \
    dd if=/dev/urandom of=f bs=1M count=50 seek=300 conv=notrunc 2>/dev/null; md5sum f > sum; touch moved; sync; touch ready; fi; \
    sleep 100000 & wait";

async fn sizes(t: Arc<Test>) -> Result<()> {
    can_schedule(&t).await?;
    let class = format!("{}-copies", t.namespace);
    t.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {class}}}\nprovisioner: csi.dotgraft.dev\n\
         volumeBindingMode: WaitForFirstConsumer\nparameters: {{dotgraft.dev/replicas: \"1\"}}\n"
    ))
    .await?;
    for _ in 0..3 {
        for class in ["dotgraft", &class] {
            one_size(&t, class).await?;
        }
    }
    t.kubectl(&["delete", "storageclass", &class]).await.map(drop)
}

async fn exists(t: &Test, file: &str) -> Result<()> {
    let path = format!("/data/{file}");
    let look = ["exec", "s-0", "--", "ls", path.as_str()];
    eventually(&path, ALL, || t.kubectl(&look)).await.map(drop)
}

async fn one_size(t: &Arc<Test>, class: &str) -> Result<()> {
    let timeline = Timeline::of(&t.kube().client(), &t.namespace);
    begin(t, &timeline, 1, ("2Gi", class, BIG)).await?;
    exists(t, "made").await?;
    let dot = t.ready("Dot", "data-s-0").await?;
    let fs_id = dot["status"]["fsId"].as_str().context("no fsId")?.to_owned();
    let with_replica = class != "dotgraft";
    if with_replica {
        let commit = t.commit("c", "data-s-0").await?;
        let replica = eventually("a replica with the commit", ALL, || async {
            let all = t.kube().list("Replica", "").await?;
            let has = |r: &&Value| r["spec"]["fsId"] == *fs_id && r["spec"]["node"] != "n1" && r["status"]["head"] == *commit;
            Ok(all.iter().find(has).context("there is none")?.clone())
        })
        .await?;
        let other = if replica["spec"]["node"] == "n2" { "n3" } else { "n2" };
        cordon(t, &[other], true).await?; // locality is another case's subject
    }
    t.kubectl(&["exec", "s-0", "--", "touch", "/data/dirty"]).await?;
    exists(t, "ready").await?;
    let (before, start) = (Csi::now(t).await?, Instant::now());
    drain_n1(t).await?;
    let pod = all_started(&timeline, 1, |node| node != "n1").await?.remove(0);
    parts(t, &timeline, &pod, start, with_replica).await?;
    println!(
        "          ours of it: {}",
        Csi::now(t).await?.since(&before, &["ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"])
    );
    eventually("it to have looked at its data", ALL, || async {
        let said = t.kubectl(&["logs", "s-0"]).await?;
        ensure!(said.trim() == "whole", "it says {said:?}");
        Ok(())
    })
    .await?;
    cordon(t, &["n1", "n2", "n3"], false).await?;
    t.kubectl(&["delete", "statefulset", "s", "--timeout=180s"]).await?;
    if with_replica {
        t.kubectl(&["delete", "commits.dotgraft.dev", "c", "--wait=false"]).await?;
    }
    all_gone(t).await
}

/// When what was done since the drain began, and what the move says of itself.
async fn parts(t: &Test, timeline: &Timeline, pod: &PodTimes, start: Instant, with_replica: bool) -> Result<()> {
    let node = pod.node.as_deref().unwrap_or_default();
    let old = timeline.pods().into_iter().find(|p| p.node.as_deref() == Some("n1")).context("no pod was on n1")?;
    let attachment = timeline.attachments(node).pop().context("no attachment")?;
    let at =
        |moment: Option<Instant>| moment.map_or_else(|| "?".into(), |m| format!("{:.2}", m.saturating_duration_since(start).as_secs_f64()));
    println!(
        "        {} replica: drain to running {} s (old pod gone {}, new one scheduled {}, attach asked {}, attached {})",
        if with_replica { "with" } else { "without" },
        at(pod.started),
        at(old.gone),
        at(pod.scheduled),
        at(Some(attachment.made)),
        at(attachment.attached),
    );
    let dot = eventually("the move to be reported as done", ALL, || async {
        let dot = t.object("Dot", "data-s-0").await?;
        ensure!(dot["status"]["migration"]["phase"] == "Done", "{}", dot["status"]["migration"]);
        Ok(dot)
    })
    .await?;
    let m = &dot["status"]["migration"];
    let mib = m["bytes"].as_f64().unwrap_or_default() / f64::from(1 << 20);
    println!("          the move: {} to {}, {mib:.0} MiB sent, frozen for {} ms", m["startedAt"], m["finishedAt"], m["frozenMs"]);
    Ok(())
}
