//! A node that is not dead, with pods that write (failures.md row 18): cut off from the API server only, or paused as a VM is. What Kubernetes
//! does then, and what a person says wrongly, never gives a second writer in an epoch, and the new owner loses nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::{Case, Test};
use crate::rig::machine::network::CONTROL_PLANE;
use crate::rig::wait::{eventually, throughout};
use crate::steps::owner::{authority, says_fenced, taint};
use crate::steps::pod::{WRITER, filesystem, grows, lines, pod, started, written};
use crate::steps::sidecar::Sidecar;

/// Longest that one step with pods may take.
const STEP: Duration = Duration::from_secs(180);
/// The next pod: keeps what it found, and writes a log of its own.
const NEXT: &str =
    "cp -a /data /tmp/found; n=0; while n=$((n+1)); echo line $n >> /data/new && sync; do usleep 20000; done; echo failed; sleep 1000";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "18-partition",
            "cut off from the API only, a pod writes on alone; deleted by force or called dead wrongly, there is no second writer in its epoch",
            partition,
        )
        .kubelets()
        .within(STEP * 4),
        Case::new(
            "18-paused",
            "paused in a move and over a take-over: awake, the old owner is fenced, and the new one has lost nothing",
            paused,
        )
        .kubelets()
        .within(STEP * 4),
    ]
}

/// A claim of a class.
async fn claim(t: &Test, name: &str, class: &str) -> Result<()> {
    t.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  \
         storageClassName: {class}\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 256Mi}}}}\n"
    ))
    .await
}

/// A commit of it, on n2 too.
async fn copied(t: &Test, claim: &str, fs_id: &str) -> Result<()> {
    let commit = t.commit(&format!("c-{claim}"), claim).await?;
    t.push(&format!("j-{claim}"), claim, "n2").await?;
    t.arrived(fs_id, &commit, "n2", STEP).await
}

/// n1 owns it in the first epoch, alone.
async fn untaken(t: &Test, fs_id: &str) -> Result<()> {
    let a = authority(t, fs_id).await?;
    ensure!(a["epoch"] == 1 && a["owner"]["node"] == "n1", "{a}");
    Ok(())
}

/// n2 owns it in the second epoch, and nothing is pending.
async fn taken(t: &Test, fs_id: &str) -> Result<()> {
    let a = authority(t, fs_id).await?;
    ensure!(a["epoch"] == 2 && a["owner"]["node"] == "n2" && a.get("pending").is_none(), "{a}");
    Ok(())
}

/// n1's copy says that it is superseded and fenced, which is so then, and keeps `least` lines of what only it has.
async fn fenced(t: &Test, fs_id: &str, least: usize) -> Result<()> {
    says_fenced(t, fs_id, "n1").await?;
    let head = t.rig.node("n1")?.files.state.join("pool/fs").join(fs_id).join("head");
    let head = t.rig.machine("n1")?.outside(&head)?;
    let late = std::fs::write(head.join("late"), b"x").and_then(|()| std::fs::File::open(head.join("late"))?.sync_all());
    ensure!(late.is_err(), "it takes writes");
    let kept = lines(&written(t, "n1", fs_id, "log")?)?;
    ensure!(kept >= least, "of {least} lines {kept} are kept");
    Ok(())
}

async fn partition(t: Arc<Test>) -> Result<()> {
    let class = format!("{}-manual", t.namespace);
    t.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {class}}}\nprovisioner: csi.dotgraft.dev\n\
         volumeBindingMode: WaitForFirstConsumer\nparameters: {{dotgraft.dev/fencing: Manual}}\n"
    ))
    .await?;
    for (name, class) in [("proof", "dotgraft"), ("manual", class.as_str())] {
        claim(&t, name, class).await?;
        pod(&t, name, name, "n1", WRITER).await?;
    }
    for name in ["proof", "manual"] {
        started(&t, name).await?;
    }
    let (proof, manual) = (filesystem(&t, "proof").await?, filesystem(&t, "manual").await?);
    for (name, id) in [("proof", &proof), ("manual", &manual)] {
        grows(&t, "n1", id, "log").await?; // a pod runs before it has written
        copied(&t, name, id).await?;
    }
    t.rig.machine("n1")?.refuse(CONTROL_PLANE)?;
    t.rig.node_lost("n1", STEP).await?;
    by_force(&t, [&proof, &manual]).await?;
    let tails = by_false_proof(&t, &proof, &manual).await?;
    taint(&t, "n1", false).await?;
    t.rig.machine("n1")?.heal()?;
    t.rig.nodes_ready(STEP).await?;
    fenced(&t, &proof, tails.0).await?;
    taken(&t, &proof).await?;
    grows(&t, "n2", &proof, "new").await?;
    // Under Manual nothing was taken: back again, it moves as ever, with every line.
    started(&t, "next-manual").await?;
    let all = lines(&written(&t, "n2", &manual, "log")?)?;
    ensure!(all >= tails.1, "of {} lines {all} have moved", tails.1);
    taken(&t, &manual).await?;
    done(&t, &["proof", "manual"]).await?;
    t.kubectl(&["delete", "storageclass", &class]).await.map(drop)
}

/// The pods are deleted by force, others scheduled, and the volumes detached by force, as Kubernetes does after six minutes: nothing changes.
async fn by_force(t: &Test, ids: [&String; 2]) -> Result<()> {
    t.kubectl(&["delete", "pod", "proof", "manual", "--force", "--grace-period=0"]).await?;
    for name in ["proof", "manual"] {
        pod(t, &format!("next-{name}"), name, "n2", NEXT).await?;
    }
    let csi = Sidecar::new(t).await?;
    for id in ids {
        csi.unpublish(id, "n1").await?;
        // It waits, longer than we do.
        let early = tokio::time::timeout(Duration::from_secs(3), csi.publish(id, "n2", false)).await;
        ensure!(early.is_err(), "published to n2: {early:?}");
    }
    for id in ids {
        untaken(t, id).await?;
        grows(t, "n1", id, "log").await?;
    }
    Ok(())
}

/// Someone says that n1 is out of service, which is wrong. `Proof` believes it: n2 goes on from the last commit there, in the next epoch, and what
/// the pod on n1 writes from then on nobody reads. `Manual` doesn't. Returns how many lines each pod on n1 has.
async fn by_false_proof(t: &Test, proof: &str, manual: &str) -> Result<(usize, usize)> {
    taint(t, "n1", true).await?;
    started(t, "next-proof").await?;
    taken(t, proof).await?;
    let found = lines(&written(t, "n2", proof, "log")?)?;
    throughout("Manual staying where it was", Duration::from_secs(3), || untaken(t, manual)).await?;
    let tails = (grows(t, "n1", proof, "log").await?, grows(t, "n1", manual, "log").await?);
    grows(t, "n2", proof, "new").await?;
    ensure!(lines(&written(t, "n2", proof, "log")?)? == found, "what the old owner writes has come to n2");
    ensure!(found > 0 && found < tails.0, "n2 went on from line {found}, n1 is at {}", tails.0);
    println!("        Proof, told wrongly: n2 went on from line {found} of {}, the rest is kept on n1", tails.0);
    Ok(tails)
}

/// What the new pods wrote is there, without a failed write; then all goes.
async fn done(t: &Test, claims: &[&str]) -> Result<()> {
    for name in claims {
        let said = t.kubectl(&["logs", &format!("next-{name}")]).await?;
        ensure!(said.trim().is_empty(), "a write of next-{name} failed: {said}");
    }
    t.kubectl(&["delete", "pod,pvc", "--all", "--timeout=180s"]).await?;
    for name in claims {
        t.kube().gone("Dot", &t.namespace, name, STEP).await?;
    }
    Ok(())
}

/// Lines for the commit; 64 MiB more once it is told to.
const LATER: &str = "for n in 1 2 3; do echo line $n >> /data/log; done; sync; while [ ! -e /data/go ]; do usleep 50000; done; \
    dd if=/dev/urandom of=/data/f bs=1M count=64 2>/dev/null; echo line 4 >> /data/log; sync; touch /data/ready; sleep 1000";

async fn paused(t: Arc<Test>) -> Result<()> {
    for (name, script) in [("open", WRITER), ("moving", LATER)] {
        claim(&t, name, "dotgraft").await?;
        pod(&t, name, name, "n1", script).await?;
    }
    for name in ["open", "moving"] {
        started(&t, name).await?;
    }
    let (open, moving) = (filesystem(&t, "open").await?, filesystem(&t, "moving").await?);
    grows(&t, "n1", &open, "log").await?;
    eventually("the first lines of the other", STEP, || async {
        let now = lines(&written(&t, "n1", &moving, "log")?)?;
        ensure!(now == 3, "there are {now}");
        Ok(())
    })
    .await?;
    for (name, id) in [("open", &open), ("moving", &moving)] {
        copied(&t, name, id).await?;
    }
    into_a_move(&t, &moving).await?;
    t.rig.machine("n1")?.freeze()?;
    let tail = lines(&written(&t, "n1", &open, "log")?)?;
    t.rig.node_lost("n1", STEP).await?;
    pod(&t, "next-open", "open", "n2", NEXT).await?;
    taint(&t, "n1", true).await?;
    for (name, id) in [("open", &open), ("moving", &moving)] {
        started(&t, &format!("next-{name}")).await?;
        taken(&t, id).await?;
    }
    ensure!(lines(&written(&t, "n2", &moving, "log")?)? == 3, "it goes on from the commit that n2 had");
    let before = (grows(&t, "n2", &open, "new").await?, grows(&t, "n2", &moving, "new").await?);
    let found = lines(&written(&t, "n2", &open, "log")?)?;
    taint(&t, "n1", false).await?;
    t.rig.machine("n1")?.heal()?;
    t.rig.nodes_ready(STEP).await?;
    fenced(&t, &open, tail).await?;
    fenced(&t, &moving, 4).await?;
    for (id, before) in [(&open, before.0), (&moving, before.1)] {
        taken(&t, id).await?;
        let now = grows(&t, "n2", id, "new").await?;
        ensure!(now > before, "{now} lines of the new owner, {before} before the old one was awake");
    }
    ensure!(lines(&written(&t, "n2", &open, "log")?)? == found, "what the old owner wrote came to n2");
    done(&t, &["open", "moving"]).await
}

/// The pod goes, the next one is on n2: the handoff is pending and its last commit on the way, over a slow link.
async fn into_a_move(t: &Test, fs_id: &str) -> Result<()> {
    t.kubectl(&["exec", "moving", "--", "touch", "/data/go"]).await?;
    let ready = ["exec", "moving", "--", "ls", "/data/ready"];
    eventually("it to have written", STEP, || t.kubectl(&ready)).await?;
    t.rig.machine("n1")?.limit(Some("40mbit"))?;
    t.kubectl(&["delete", "pod", "moving", "--timeout=180s"]).await?;
    pod(t, "next-moving", "moving", "n2", NEXT).await?;
    eventually("the handoff to be pending", STEP, || async {
        let a = authority(t, fs_id).await?;
        ensure!(a.get("pending").is_some_and(|p| !p.is_null()) && a["epoch"] == 1, "{a}");
        Ok(())
    })
    .await
}
