//! The exact transitions of authority that an agent may make (migration.md, R3 and R6; security.md, "Policies"): open, pending,
//! commit and abort by the owner, abort by `pending.to`; and near misses of each, by tokens of both nodes.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{BOOT, COMMIT, MIG, OURS, POOL_1, POOL_2, Verb, World, refused, send};
use crate::harness::{Case, Test};
use crate::rig::kube::Kube;

/// What stands in the API before.
#[derive(Clone, Copy)]
enum Before {
    /// n1 owns it at epoch 1 and has opened it.
    Opened,
    /// The same, and a migration to n2 is pending.
    Pending,
    /// The same, and the Filesystem is being deleted.
    Deleting,
}

/// (id, before, whose token, merge patch of authority, whether it must be taken).
type Row = (&'static str, Before, &'static str, Value, bool);

fn rows() -> Vec<Row> {
    use Before::{Deleting, Opened, Pending};
    let to = |node: &str, pool: &str| json!({"node": node, "pool": pool});
    let n2 = to("n2", POOL_2);
    let pending = |attempt: u64, to: &Value| json!({"pending": {"mig": MIG, "attempt": attempt, "to": to, "finalCommit": COMMIT}});
    let commit = json!({"owner": n2, "epoch": 2, "opened": null, "pending": null});
    let with = |patch: &Value, more: Value| {
        let mut patch = patch.clone();
        super::merge(&mut patch, &more);
        patch
    };
    // A merge patch would drop its own nulls here, so they are put back by name.
    let commit_but = |key: &str, value: Value| {
        let mut patch = commit.clone();
        if let Value::Object(map) = &mut patch {
            map.insert(key.to_owned(), value);
        }
        patch
    };
    let abort = json!({"pending": null, "attempt": 1});
    vec![
        ("owner-opens-again", Opened, "n1", json!({"opened": {"epoch": 1, "bootId": MIG}}), true),
        ("owner-opens-another-epoch", Opened, "n1", json!({"epoch": 2, "opened": {"epoch": 2, "bootId": BOOT}}), false),
        ("owner-opens-while-pending", Pending, "n1", json!({"opened": {"epoch": 1, "bootId": MIG}}), false),
        ("owner-sets-pending", Opened, "n1", pending(0, &n2), true),
        ("owner-sets-pending-of-another-attempt", Opened, "n1", with(&pending(1, &n2), json!({"attempt": 1})), false),
        ("owner-replaces-pending", Pending, "n1", pending(0, &to("n3", POOL_2)), false),
        ("owner-commits", Pending, "n1", commit.clone(), true),
        ("owner-commits-to-another", Pending, "n1", commit_but("owner", to("n3", POOL_2)), false),
        ("owner-commits-two-epochs-on", Pending, "n1", commit_but("epoch", json!(3)), false),
        ("owner-commits-and-stays-opened", Pending, "n1", commit_but("opened", json!({"epoch": 1, "bootId": BOOT})), false),
        ("owner-commits-without-pending", Opened, "n1", commit.clone(), false),
        ("owner-commits-while-deleting", Deleting, "n1", commit.clone(), false),
        ("owner-aborts", Pending, "n1", abort.clone(), true),
        ("owner-aborts-without-attempt", Pending, "n1", json!({"pending": null}), false),
        ("owner-writes-fork-points", Opened, "n1", json!({"forkPoints": [{"from": to("n1", POOL_1), "fromEpoch": 1}]}), false),
        ("target-aborts", Pending, "n2", abort, true),
        ("target-commits", Pending, "n2", commit, false),
        ("target-opens", Pending, "n2", json!({"opened": {"epoch": 1, "bootId": MIG}}), false),
        ("target-aborts-and-takes", Pending, "n2", json!({"pending": null, "attempt": 1, "owner": n2, "epoch": 2}), false),
    ]
}

/// One case for each row.
pub fn cases() -> Vec<Case> {
    let cases = rows().into_iter().map(|(id, before, node, patch, taken)| {
        let verdict = if taken { "may" } else { "may not" };
        let title = format!("authority, with a token of {node}: {} ({verdict})", id.replace('-', " "));
        Case::new(format!("rights/authority-{id}"), title, move |t| one(t, before, node, patch.clone(), taken)).api()
    });
    let unbound = Case::new("rights/unbound-token", "an agent's token that is bound to no Node may write nothing", unbound);
    cases.chain([unbound.api()]).collect()
}

async fn prepare(t: &Test, before: Before) -> Result<World> {
    let world = World::make(t).await?;
    let opened = json!({"opened": {"epoch": 1, "bootId": BOOT}});
    let pending = json!({"opened": {"epoch": 1, "bootId": BOOT},
        "pending": {"mig": MIG, "attempt": 0, "to": {"node": "n2", "pool": POOL_2}, "finalCommit": COMMIT}});
    let (phase, authority) = match before {
        Before::Opened => ("Active", opened),
        Before::Pending => ("Active", pending),
        Before::Deleting => ("Deleting", pending),
    };
    let status = json!({"status": {"phase": phase, "authority": authority}});
    t.kube().patch("Filesystem", "", &world.fs_id, "status", &status).await?;
    Ok(world)
}

async fn one(t: Arc<Test>, before: Before, node: &'static str, patch: Value, taken: bool) -> Result<()> {
    let world = prepare(&t, before).await?;
    let client = t.rig.kube_as(node).await?.client();
    let path = format!("{OURS}/filesystems/{}/status", world.fs_id);
    let update = Verb::Update(json!({"status": {"authority": patch}}));
    let answer = send(&client, &update, &path, &t.kube().client(), false).await?;
    match (taken, answer.0 < 400) {
        (true, true) => Ok(()),
        (true, false) => bail!("it was refused, {}: {}", answer.0, answer.1),
        (false, true) => bail!("it was taken"),
        // The CRD's own rules may be quicker than the policy: a refusal either way.
        (false, false) if refused(&answer) || answer.0 == 422 => Ok(()),
        (false, false) => bail!("it was refused for another reason, {}: {}", answer.0, answer.1),
    }
}

async fn unbound(t: Arc<Test>) -> Result<()> {
    let world = prepare(&t, Before::Opened).await?;
    let admin = t.kube().client();
    let token = crate::rig::tokens::token(&admin, "dotgraft-agent", None).await?;
    let file = t.dir.join("kubeconfig");
    std::fs::write(&file, t.rig.control_plane.authority.token_kubeconfig(&t.rig.control_plane.server, &token)?)?;
    let client = Kube::new(&t.rig.kubectl(), &file).await?.client();
    let status = json!({"status": {"role": "Owner"}});
    let opened = json!({"status": {"authority": {"opened": {"epoch": 1, "bootId": MIG}}}});
    let tries = [
        (Verb::Patch(status), format!("{OURS}/replicas/{}.{POOL_1}/status", world.fs_id)),
        (Verb::Patch(json!({"status": {"capacityBytes": 7}})), format!("{OURS}/nodepools/n1/status")),
        (Verb::Update(opened), format!("{OURS}/filesystems/{}/status", world.fs_id)),
    ];
    for (verb, path) in tries {
        let answer = send(&client, &verb, &path, &admin, false).await?;
        if !refused(&answer) {
            bail!("{path} was answered {}: {}", answer.0, answer.1);
        }
    }
    Ok(())
}
