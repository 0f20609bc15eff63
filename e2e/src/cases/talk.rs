//! What the programs say to the API server, and what not: nothing while nothing happens, events that a person can use, heartbeats;
//! and that an owner's opening and a theft of its authority never both win.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dotgraft_api::Filesystem;
use dotgraft_api::common::LEASE_AGENT_PREFIX;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::tokens::SYSTEM;
use crate::rig::wait::{eventually, throughout};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("api-idle", "while nothing happens nothing is written, not even by agents that start again", idle),
        Case::new("api-events", "a first push makes events that say something, and no warning; agents' heartbeats go on", events),
        Case::new("api-theft", "an owner's opening and a theft of its authority never both win", theft),
    ]
}

/// resourceVersion of every object of ours that the agents write.
async fn versions(t: &Test) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for kind in ["Filesystem", "Replica", "NodePool"] {
        for object in t.kube().list(kind, "").await? {
            let text = |p: &str| object.pointer(p).and_then(Value::as_str).unwrap_or_default().to_owned();
            all.insert(format!("{kind} {}", text("/metadata/name")), text("/metadata/resourceVersion"));
        }
    }
    Ok(all)
}

async fn idle(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    let quiet = || async {
        let before = versions(&t).await?;
        throughout("nothing happening", Duration::from_secs(4), || async {
            let now = versions(&t).await?;
            ensure!(now == before, "written: {:?}", now.iter().filter(|(k, v)| before.get(*k) != Some(*v)).collect::<Vec<_>>());
            Ok(())
        })
        .await
    };
    eventually("all to be quiet", STEP, quiet).await?;
    // What somebody else wrote into a status is corrected, once.
    let name = crate::harness::test::text(&t.replica(&fs_id, "n2").await?, "/metadata/name")?;
    t.kube().patch("Replica", "", &name, "status", &json!({"status": {"role": "Absent"}})).await?;
    eventually("n2 to correct it", STEP, || async {
        let role = t.replica(&fs_id, "n2").await?["status"]["role"].clone();
        ensure!(role == "Replica", "it is {role}");
        Ok(())
    })
    .await?;
    // An opened authority is confirmed by a write that changes nothing.
    let opened = versions(&t).await?.remove(&format!("Filesystem {fs_id}"));
    t.rig.restart("n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    t.unmount(&head).await?;
    ensure!(versions(&t).await?.remove(&format!("Filesystem {fs_id}")) == opened, "an opening in the same boot was written again");
    eventually("all to be quiet again", STEP, quiet).await
}

async fn events(t: Arc<Test>) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(t.kube().client(), SYSTEM);
    let renewed = || async {
        let lease = leases.get(&format!("{LEASE_AGENT_PREFIX}n1")).await?;
        lease.spec.and_then(|s| s.renew_time).context("n1 has never renewed its Lease")
    };
    let first = renewed().await?;
    let fs_id = t.dot("d", "n1").await?;
    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    let api: Api<Event> = Api::all(t.kube().client());
    let ours = || async {
        let all = api.list(&ListParams::default()).await?.items;
        let about = |e: &Event| e.regarding.as_ref().and_then(|r| r.name.clone()).unwrap_or_default();
        let mine = |e: &Event| about(e).contains(&fs_id) || e.metadata.namespace.as_deref() == Some(t.namespace.as_str());
        anyhow::Ok(all.into_iter().filter(mine).collect::<Vec<_>>())
    };
    eventually("the agents and the operator to have told", STEP, || async {
        let reasons: Vec<String> = ours().await?.into_iter().filter_map(|e| e.reason).collect();
        for wanted in ["Created", "Committed", "Received", "Completed"] {
            ensure!(reasons.iter().any(|r| r == wanted), "no {wanted} in {reasons:?}");
        }
        Ok(())
    })
    .await?;
    for event in ours().await? {
        let said = format!("{:?} {:?}: {:?}", event.type_, event.reason, event.note);
        ensure!(event.type_.as_deref() == Some("Normal"), "a warning in a healthy push: {said}");
        ensure!(event.note.as_deref().is_some_and(|n| !n.trim().is_empty()), "an event that says nothing: {said}");
    }
    eventually("the next heartbeat of n1", STEP, || async {
        ensure!(renewed().await? > first, "none yet");
        Ok(())
    })
    .await
}

async fn theft(t: Arc<Test>) -> Result<()> {
    let api: Api<Filesystem> = Api::all(t.kube().client());
    t.dot("first", "n1").await?; // the pool is ready
    let (mut stolen, mut opened) = (0, 0);
    for round in 0..6 {
        let name = format!("d{round}");
        // n1 sleeps, so that the thief reads an authority that nobody has opened.
        t.rig.pause("n1")?;
        t.create("Dot", &name, &json!({"capacity": "64Mi", "placement": {"node": "n1"}})).await?;
        let read = eventually("an authority that isn't opened", STEP, || async {
            let fs_id = crate::harness::test::text(&t.object("Dot", &name).await?, "/status/fsId")?;
            let read = api.get(&fs_id).await?;
            let authority = read.status.as_ref().and_then(|s| s.authority.as_ref()).context("it has none yet")?;
            ensure!(authority.opened.is_none(), "n1 sleeps and has opened it");
            t.replica(&fs_id, "n1").await?;
            Ok(read)
        })
        .await?;
        t.rig.pause("operator")?;
        let fs_id = read.metadata.name.clone().context("no name")?;
        let mut theft = read.clone();
        let authority = theft.status.as_mut().and_then(|s| s.authority.as_mut()).context("no authority")?;
        (authority.epoch, authority.attempt) = (authority.epoch + 1, authority.attempt + 1);
        authority.owner.pool = "0198c2a5-7f00-4000-8000-0000000000aa".into();
        t.rig.resume("n1")?;
        tokio::time::sleep(Duration::from_millis(10 * round)).await;
        let won = api.replace_status(&fs_id, &PostParams::default(), &theft).await.is_ok();
        if won {
            stolen += 1;
            throughout("a stolen volume staying shut", Duration::from_millis(700), || async {
                let now = api.get(&fs_id).await?.status.and_then(|s| s.authority).context("no authority")?;
                ensure!(now.opened.is_none(), "n1 has opened what is another's: {:?}", now.opened);
                Ok(())
            })
            .await?;
            give_back(&api, &fs_id, &read).await?;
        } else {
            opened += 1;
        }
        t.rig.resume("operator")?;
        t.ready("Dot", &name).await?;
    }
    println!("        {stolen} stolen, {opened} opened");
    ensure!(stolen + opened == 6, "{stolen} + {opened}");
    Ok(())
}

/// A person undoes the theft: the old owner, in an epoch of its own.
async fn give_back(api: &Api<Filesystem>, fs_id: &str, read: &Filesystem) -> Result<()> {
    let mut now = api.get(fs_id).await?;
    let owner = read.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| a.owner.clone()).context("no owner")?;
    let authority = now.status.as_mut().and_then(|s| s.authority.as_mut()).context("no authority")?;
    (authority.owner, authority.epoch, authority.attempt) = (owner, authority.epoch + 1, authority.attempt + 1);
    api.replace_status(fs_id, &PostParams::default(), &now).await?;
    Ok(())
}
