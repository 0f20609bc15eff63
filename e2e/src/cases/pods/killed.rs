//! Agent, kubelet or node die while pods start and end (failures.md rows 16, 17), and a claim goes meanwhile: the pods come up or go, and
//! nothing stays behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::Api;

use crate::data::synced;
use crate::harness::{Case, Test};
use crate::rig::wait::eventually;
use crate::steps::pods::writer::Writer;
use crate::steps::pods::{STEP, claim, clear, fs_id, left, notes, pods, took};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "pods-cut-calls",
            "an agent killed in Stage, in Publish and in Unpublish: the pod starts and ends all the same",
            cut_calls,
        )
        .kubelets(),
        Case::new("pods-killed", "agent, kubelet and node die at random moments of a pod's start and end; a claim goes meanwhile", killed)
            .kubelets(),
    ]
}

/// Where everything happens.
const NODE: &str = "n2";
/// What the kubelet logs of a call whose agent died.
const CUT: &str = "code = Unavailable";

fn log_of_kubelet(t: &Test) -> Result<String> {
    Ok(std::fs::read_to_string(t.rig.processes.log(&format!("{NODE}-kubelet")))?)
}

/// The agent is stopped, `act` is done, and when the kubelet is in the call that it logs as `begins` the agent is killed and comes back.
async fn cut<F: Future<Output = Result<()>>>(t: &Test, what: &str, begins: &str, act: F) -> Result<()> {
    let before = log_of_kubelet(t)?;
    let count = |log: &str, words: &str| log.matches(words).count();
    t.rig.pause(NODE)?;
    act.await?;
    eventually(&format!("the kubelet to call {what}"), STEP, || async {
        ensure!(count(&log_of_kubelet(t)?, begins) > count(&before, begins), "not yet");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    t.rig.kill9(NODE)?;
    eventually("the call to end with the agent", STEP, || async {
        ensure!(count(&log_of_kubelet(t)?, CUT) > count(&before, CUT), "not yet");
        Ok(())
    })
    .await?;
    t.rig.start(NODE)?;
    t.rig.ready(STEP).await?;
    registered(t).await
}

/// The kubelet has registered the agent that was started last; until then it would call nobody.
async fn registered(t: &Test) -> Result<()> {
    eventually("the kubelet to have registered the agent", STEP, || async {
        let log = std::fs::read_to_string(t.rig.processes.log(NODE))?;
        let last = log.rsplit("the agent runs").next().unwrap_or_default();
        ensure!(last.contains("the kubelet has registered the driver"), "not yet");
        Ok(())
    })
    .await
}

async fn delete(t: &Test, pod: &str) -> Result<()> {
    t.kubectl(&["delete", "pod", pod, "--wait=false"]).await.map(|_| ())
}

async fn gone(t: &Test, pod: &str) -> Result<()> {
    eventually(&format!("{pod} to be gone"), STEP, || async {
        ensure!(pods(t).get_opt(pod).await?.is_none(), "it is there");
        Ok(())
    })
    .await
}

async fn cut_calls(t: Arc<Test>) -> Result<()> {
    claim(&t, "data", "256Mi").await?;
    let warm = Writer::start(&t, "warm", "data", NODE).await?;
    let id = fs_id(&t, "data").await?;
    delete(&t, &warm.pod).await?;
    gone(&t, &warm.pod).await?;
    left(&t, &id).await?;
    let (mounting, unmounting) = ("operationExecutor.MountVolume started", "operationExecutor.UnmountVolume started");
    let start = Instant::now();
    let (a, b) = (Writer::named("a", NODE), Writer::named("b", NODE));
    cut(&t, "Stage", mounting, a.apply(&t, "data")).await?;
    a.started(&t).await?;
    // The volume is staged already.
    cut(&t, "Publish", mounting, b.apply_at(&t, "data", "/data/other")).await?;
    b.started(&t).await?;
    cut(&t, "Unpublish", unmounting, delete(&t, "b")).await?;
    gone(&t, "b").await?;
    a.goes_on(&t, 20).await?;
    let noted = a.noted(&t)?.newest;
    cut(&t, "Unpublish of the last", unmounting, delete(&t, "a")).await?;
    gone(&t, "a").await?;
    left(&t, &id).await?;
    took("four calls cut, and done", start);
    let c = Writer::start(&t, "c", "data", NODE).await?;
    synced::check(&c.file(&t).await?, noted)?;
    clear(&t, &["data"]).await
}

/// Moments from a seed, which is printed.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let seed = std::env::var("DOTGRAFT_SEED").ok().and_then(|s| s.parse().ok());
        let now = || u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default();
        let seed = seed.unwrap_or_else(now);
        println!("        DOTGRAFT_SEED={seed}");
        Self(seed)
    }

    /// Waits for up to so many milliseconds.
    async fn within(&mut self, most: u64) {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        tokio::time::sleep(Duration::from_millis((mixed ^ (mixed >> 27)) % (most + 1))).await;
    }
}

/// Kills a program at a random moment of what was just begun, and starts it again.
async fn struck(t: &Test, program: &str, moments: &mut Moments) -> Result<()> {
    moments.within(1200).await;
    t.rig.kill9(program)?;
    moments.within(300).await;
    t.rig.start(program)
}

async fn killed(t: Arc<Test>) -> Result<()> {
    let mut moments = Moments::new();
    claim(&t, "data", "256Mi").await?;
    let before = log_of_kubelet(&t)?.matches(CUT).count();
    let kubelet = format!("{NODE}-kubelet");
    let start = Instant::now();
    let mut acknowledged = 0;
    for (round, program) in [NODE, &kubelet, NODE, NODE].into_iter().enumerate() {
        let writer = Writer::named(&format!("p{round}"), NODE);
        writer.apply(&t, "data").await?;
        struck(&t, program, &mut moments).await?;
        writer.started(&t).await?;
        synced::check(&writer.file(&t).await?, acknowledged)?;
        writer.goes_on(&t, 5).await?;
        delete(&t, &writer.pod).await?;
        struck(&t, program, &mut moments).await?;
        gone(&t, &writer.pod).await?;
        acknowledged = acknowledged.max(writer.noted(&t)?.newest);
    }
    t.rig.ready(STEP).await?;
    left(&t, &fs_id(&t, "data").await?).await?;
    took(&format!("four pods started and ended, {} calls cut", log_of_kubelet(&t)?.matches(CUT).count() - before), start);
    rebooted(&t, &mut moments, acknowledged).await?;
    deleted(&t, &mut moments).await?;
    clear(&t, &["data"]).await
}

/// The node loses its power while the pod starts.
async fn rebooted(t: &Test, moments: &mut Moments, acknowledged: u64) -> Result<()> {
    let writer = Writer::named("rebooted", NODE);
    writer.apply(t, "data").await?;
    moments.within(1200).await;
    t.rig.power_off(NODE)?;
    t.rig.node_lost(NODE, STEP).await?;
    let start = Instant::now();
    t.rig.boot(NODE).await?;
    t.rig.ready(STEP).await?;
    writer.started(t).await?;
    took("a node's boot to the pod that was starting when it lost its power", start);
    let file = writer.file(t).await?;
    synced::check(&file, acknowledged.max(writer.noted(t)?.newest))?;
    delete(t, &writer.pod).await?;
    gone(t, &writer.pod).await
}

/// A claim is deleted while its pod starts: it stays for as long as the pod does, or the pod never starts; then both go.
async fn deleted(t: &Test, moments: &mut Moments) -> Result<()> {
    let start = Instant::now();
    for round in 0..3 {
        let (name, writer) = (format!("short{round}"), Writer::named(&format!("s{round}"), NODE));
        claim(t, &name, "64Mi").await?;
        writer.apply(t, &name).await?;
        moments.within(800).await;
        t.kubectl(&["delete", "pvc", &name, "--wait=false"]).await?;
        moments.within(2000).await;
        let id = fs_id(t, &name).await.ok();
        delete(t, &writer.pod).await?;
        gone(t, &writer.pod).await?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(t.kube().client(), &t.namespace);
        eventually("the claim to be gone", STEP, || async {
            ensure!(claims.get_opt(&name).await?.is_none(), "it is there");
            Ok(())
        })
        .await?;
        t.kube().gone("Dot", &t.namespace, &name, STEP).await?;
        if let Some(id) = id {
            crate::steps::pods::nothing(t, &id).await?;
        }
        let _ = std::fs::remove_file(notes(t, NODE, &writer.pod)?);
    }
    took("three claims deleted while their pods started", start);
    Ok(())
}
