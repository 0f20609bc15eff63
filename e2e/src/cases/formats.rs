//! Rows of a journal and files of a pool that a newer agent has written, as after an upgrade that was taken back: their Filesystem is closed on
//! that node and says so, nothing of it goes, and the others of the node go on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::data::digest::tree_digest;
use crate::data::journal;
use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::Options;
use crate::rig::kube::{condition_of, conditions};
use crate::rig::wait::{eventually, throughout};
use crate::steps::left::{nothing_left, on_disk};
use crate::steps::owner::{filled, holds, owned_by, place, says_fenced, taint};

/// The node whose agent is too old.
const NODE: &str = "n1";
/// What every format of 0.1 has, and what a program has that is far ahead.
const VERSIONS: [(&str, &str); 2] = [("\"version\":1", "\"version\":99"), ("\"version\": 1", "\"version\": 99")];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let title = "what a newer agent wrote closes its Filesystem with FormatNewer; nothing of it goes, and the others of the node go on";
    vec![Case::new("format-newer", title, newer).own(Options::default()).within(STEP * 8)]
}

/// What a newer program has written.
#[derive(Debug)]
enum Newer {
    /// This row of the Filesystem.
    Row(String),
    /// A row of a kind that this program has never heard of.
    Unknown,
    /// This file below the Filesystem's directory.
    File(String),
}

async fn newer(t: Arc<Test>) -> Result<()> {
    let (beside, beside_digest) = filled(&t, "beside").await?;
    let (fs_id, digest) = filled(&t, "ahead").await?;
    let commit = t.commit("first", "ahead").await?;
    let all = [
        Newer::Row("base".into()),
        Newer::Row(format!("commit/{commit}")),
        Newer::Unknown,
        Newer::File("fs.json".into()),
        Newer::File(format!("commits/{commit}.json")),
    ];
    for (n, what) in (0..).zip(&all) {
        let closed = async {
            write(&t, &fs_id, what, true).await?;
            says_so(&t, &fs_id).await?;
            let target = t.dir.join("refused");
            let refused = t.local(NODE)?.mount(&fs_id, &target, None).await.err().context("it was mounted")?;
            ensure!(format!("{refused:#}").contains("upgrade the agent"), "{refused:#}");
            t.commit(&format!("beside-{n}"), "beside").await?;
            holds(&t, NODE, &beside, &beside_digest).await?;
            write(&t, &fs_id, what, false).await?;
            eventually("it to open again", STEP, || holds(&t, NODE, &fs_id, &digest)).await
        };
        closed.await.with_context(|| format!("with {what:?}"))?;
    }
    let kept = t.mount_commit(NODE, &fs_id, &commit).await?;
    ensure!(tree_digest(&kept)? == digest, "the commit is not what was written");
    t.unmount(&kept).await?;
    for what in [&all[0], &all[3]] {
        a_deletion_waits(&t, what).await.with_context(|| format!("with {what:?}"))?;
    }
    taken_while_closed(&t).await
}

/// Another node takes over while a newer row keeps the old owner closed: what its pods have mounted is frozen all the same, and the Replica says so.
async fn taken_while_closed(t: &Test) -> Result<()> {
    let (fs_id, digest) = filled(t, "taken").await?;
    let commit = t.commit("of-taken", "taken").await?;
    t.push("j", "taken", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let head = t.mount(NODE, &fs_id).await?;
    let write_late = || std::fs::write(head.join("late"), b"x").and_then(|()| std::fs::File::open(head.join("late"))?.sync_all());
    t.rig.kill9(NODE)?;
    let row = Newer::Row("base".into());
    change(t, &fs_id, &row, true)?;
    place(t, "taken", "n2").await?;
    taint(t, NODE, true).await?;
    owned_by(t, "taken", "n2").await?;
    write_late().context("nobody has frozen it yet")?;
    t.rig.start(NODE)?;
    t.rig.ready(STEP).await?;
    eventually("the closed owner to be frozen and to say so", STEP, || async {
        ensure!(write_late().is_err(), "a pod there still writes");
        let replica = t.replica(&fs_id, NODE).await?;
        let said = condition_of(&replica, "Superseded").filter(|c| c["status"] == "True");
        let frozen = said.is_some_and(|c| c["message"].as_str().is_some_and(|m| m.contains("frozen and kept")));
        let closed = condition_of(&replica, "FormatNewer").is_some_and(|c| c["status"] == "True");
        ensure!(frozen && closed, "{}", conditions(&replica));
        Ok(())
    })
    .await?;
    taint(t, NODE, false).await?;
    write(t, &fs_id, &row, false).await?;
    says_fenced(t, &fs_id, NODE).await?;
    t.unmount(&head).await?;
    holds(t, "n2", &fs_id, &digest).await
}

/// An order to delete what can't be read deletes nothing; it is carried out once it can be.
async fn a_deletion_waits(t: &Test, what: &Newer) -> Result<()> {
    let (fs_id, _) = filled(t, "to-go").await?;
    t.commit("of-it", "to-go").await?;
    let before = on_disk(t, NODE, &fs_id)?;
    write(t, &fs_id, what, true).await?;
    says_so(t, &fs_id).await?;
    for (kind, name) in [("Commit", "of-it"), ("Dot", "to-go")] {
        t.kube().delete(kind, &t.namespace, name).await?;
    }
    throughout("an order to delete it", Duration::from_secs(12), || async {
        ensure!(on_disk(t, NODE, &fs_id)? == before, "on disk: {:?}, not {before:?}", on_disk(t, NODE, &fs_id)?);
        ensure!(t.kube().get("Filesystem", "", &fs_id).await?.is_some(), "the operator takes it for deleted");
        Ok(())
    })
    .await?;
    write(t, &fs_id, what, false).await?;
    nothing_left(t, &fs_id).await?;
    t.kube().gone("Dot", &t.namespace, "to-go", STEP).await
}

/// Its object and its claim carry the condition.
async fn says_so(t: &Test, fs_id: &str) -> Result<()> {
    eventually("FormatNewer", STEP, || async {
        let replica = t.replica(fs_id, NODE).await?;
        let newer = condition_of(&replica, "FormatNewer").is_some_and(|c| c["status"] == "True");
        ensure!(newer && replica["status"]["role"] == "Owner", "{}: {}", replica["status"]["role"], conditions(&replica));
        Ok(())
    })
    .await
}

/// Raises the version of what a stopped agent has written, or lowers it again, and starts the agent.
async fn write(t: &Test, fs_id: &str, what: &Newer, raise: bool) -> Result<()> {
    t.rig.kill9(NODE)?;
    change(t, fs_id, what, raise)?;
    t.rig.start(NODE)?;
    t.rig.ready(STEP).await
}

/// The same while no agent runs there.
fn change(t: &Test, fs_id: &str, what: &Newer, raise: bool) -> Result<()> {
    let state = t.rig.node(NODE)?.files.state.clone();
    match what {
        Newer::Row(key) => {
            let row = journal::row(&state, fs_id, key)?.with_context(|| format!("no row {key}"))?;
            journal::set_row(&state, fs_id, key, Some(&with_version(&row, raise)?))?;
        }
        Newer::Unknown => journal::set_row(&state, fs_id, "unheard-of/1", raise.then_some("{\"version\":1}"))?,
        Newer::File(name) => {
            let path = state.join("pool/fs").join(fs_id).join(name);
            std::fs::write(&path, with_version(&std::fs::read_to_string(&path)?, raise)?)?;
        }
    }
    Ok(())
}

fn with_version(text: &str, raise: bool) -> Result<String> {
    let change = |(old, new): &(&str, &str)| if raise { text.replacen(old, new, 1) } else { text.replacen(new, old, 1) };
    VERSIONS.iter().map(change).find(|changed| *changed != text).with_context(|| format!("no version in {text}"))
}
