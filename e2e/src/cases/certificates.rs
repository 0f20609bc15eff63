//! Certificates that are no good, and how they come and go while everything runs (failures.md row 14; security.md, "Certificates").

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::data::digest::same_trees;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::Options;
use crate::rig::peer::{Identity, Impostor, Peer, let_in, stolen_from};
use crate::rig::wait::eventually;
use crate::steps::left::noise;

/// Seconds that a certificate lives in the rigs of these cases; it is renewed after about seven.
const LIFE: &str = "12";

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("14-other-node", "another node's certificate is refused", other_node),
        Case::new("14-expired", "an expired certificate is refused", expired).own(short_lived()),
        Case::new("14-renewed", "a certificate is renewed without a restart", renewed).own(short_lived()),
    ]
}

fn short_lived() -> Options {
    let env = [("DOTGRAFT_CERTIFICATE_LIFETIME".to_owned(), LIFE.to_owned())].into();
    Options { env: [("operator".to_owned(), env)].into(), ..Options::default() }
}

async fn fingerprints(t: &Test, node: &str) -> Result<Value> {
    t.kube().get("NodePool", "", node).await?.and_then(|p| p.pointer("/spec/fingerprints").cloned()).context("no fingerprints")
}

async fn list(t: &Test, node: &str, fingerprints: &Value) -> Result<()> {
    t.kube().patch("NodePool", "", node, "", &json!({"spec": {"fingerprints": fingerprints}})).await
}

/// An error unless the agent at `address` refuses that certificate by an alert that says `why`.
async fn shut_out(address: &str, identity: &Identity, why: &str) -> Result<()> {
    let said = let_in(address, identity).await.err().context("it was let in")?;
    ensure!(format!("{said:#}").to_lowercase().contains(why), "another alert: {said:#}");
    Ok(())
}

async fn other_node(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let first = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    let address = t.rig.node("n2")?.listen.clone();
    let (one, two) = (stolen_from(&t.rig, "n1")?, stolen_from(&t.rig, "n2")?);
    let_in(&address, &one).await.context("the test's own setup: a good certificate")?;
    // n1's certificate is listed, but as n2's: whose it is stands in it.
    let (ones, twos) = (fingerprints(&t, "n1").await?, fingerprints(&t, "n2").await?);
    list(&t, "n1", &twos).await?;
    list(&t, "n2", &ones).await?;
    let refused = eventually("n2 to refuse both", STEP, || async {
        shut_out(&address, &one, "revoked").await?;
        shut_out(&address, &two, "revoked").await
    })
    .await;
    list(&t, "n1", &ones).await?;
    list(&t, "n2", &twos).await?;
    refused?;
    eventually("n2 to let n1 in again", STEP, || let_in(&address, &one)).await?;
    // Who answers at n2's address by n1's certificate is not n2.
    let second = t.commit("c2", "d").await?;
    t.rig.kill9("n2")?;
    let impostor = Impostor::start(&address, &one).await?;
    t.trigger("j", "again").await?;
    eventually("the run to say so", STEP, || async {
        let job = t.object("ReplicationJob", "j").await?.to_string();
        let callers = impostor.callers();
        ensure!(job.contains("Denied") && callers.0 > 0, "not yet; callers: {callers:?}");
        Ok(())
    })
    .await?;
    let (left, spoke) = impostor.callers();
    ensure!(left > 0 && spoke == 0, "{left} callers left, {spoke} spoke to a stranger");
    impostor.stop().await;
    let double = Impostor::start(&address, &two).await?;
    eventually("n1 to take n2's own certificate for n2", STEP, || async {
        let (left, spoke) = double.callers();
        ensure!(spoke > 0, "the test's own setup: {left} callers left");
        Ok(())
    })
    .await?;
    double.stop().await;
    t.rig.restart("n2").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await
}

async fn expired(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), b"precious")?;
    let first = t.commit("c1", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &first, "n2", STEP).await?;
    // Nobody signs: what the agents have must do. n1's is new, so that there is time for what comes before its end.
    let address = t.rig.node("n2")?.listen.clone();
    let before = stolen_from(&t.rig, "n1")?;
    eventually("n1 to have a new certificate, and n2 to know it", STEP, || async {
        let now = stolen_from(&t.rig, "n1")?;
        ensure!(now != before, "it is the old one still");
        let_in(&address, &now).await
    })
    .await?;
    t.rig.pause("operator")?;
    let (listed, identity) = (fingerprints(&t, "n1").await?, stolen_from(&t.rig, "n1")?);
    let_in(&address, &identity).await.context("the test's own setup: a certificate that is good still")?;
    let job = t.object("ReplicationJob", "j").await?;
    let uid = job.pointer("/metadata/uid").and_then(Value::as_str).context("no uid")?;
    let open = Peer::connect(&address, &identity).await?;
    open.versions(&fs_id, uid).await?;
    eventually("the certificate to expire", STEP, || shut_out(&address, &identity, "expired")).await?;
    ensure!(fingerprints(&t, "n1").await? == listed, "it was revoked, not expired");
    // A connection of then is of no use either.
    let said = open.versions(&fs_id, uid).await.err().context("an old connection is served still")?;
    ensure!(format!("{said:#}").contains("expired"), "{said:#}");
    // Pods know nothing of all that.
    std::fs::write(head.join("b"), b"written meanwhile")?;
    t.unmount(&head).await?;
    let head = t.mount("n1", &fs_id).await?;
    ensure!(std::fs::read(head.join("b"))? == b"written meanwhile", "what was written is gone");
    t.rig.resume("operator")?;
    t.rig.ready(STEP).await?;
    let second = t.commit("c2", "d").await?;
    t.trigger("j", "again").await?;
    t.arrived(&fs_id, &second, "n2", STEP).await
}

async fn renewed(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), noise(32 << 20))?;
    t.unmount(&head).await?;
    let commit = t.commit("c", "d").await?;
    let before = [fingerprints(&t, "n1").await?, fingerprints(&t, "n2").await?];
    let pids = [t.rig.processes.pid("n1")?, t.rig.processes.pid("n2")?];
    // It takes longer than the certificates live with which it begins.
    let job = json!({"direction": "Push", "source": {"names": ["d"]}, "target": {"node": "n2"}, "limits": {"bandwidth": "2Mi"}});
    t.create("ReplicationJob", "j", &job).await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    t.condition("ReplicationJob", "j", "Ready", "True", Some("Completed")).await?;
    for (node, before) in ["n1", "n2"].into_iter().zip(&before) {
        let before = before.as_array().context("no list")?;
        eventually("its certificates of then to be gone", STEP, || async {
            let now = fingerprints(&t, node).await?;
            let now = now.as_array().context("no list")?;
            ensure!(!now.iter().any(|f| before.contains(f)), "{node} has one of them: {now:?}, {before:?}");
            Ok(())
        })
        .await?;
    }
    ensure!(pids == [t.rig.processes.pid("n1")?, t.rig.processes.pid("n2")?], "an agent was restarted");
    let (here, there) = (t.mount_commit("n1", &fs_id, &commit).await?, t.mount_commit("n2", &fs_id, &commit).await?);
    same_trees(&here, &there)?;
    Ok(())
}
