//! Looks every two seconds for subvolumes that users have made in their volumes outside of the volume's quota, has the driver put them in,
//! and tells people (storage.md §4, ADR 26). Started by the supervisor. It changes nothing but the membership of qgroups, which no actor
//! keeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotgraft_engine::filesystem::Note;
use dotgraft_engine::ids::FsId;
use tracing::warn;

use crate::actor::Node;
use crate::driver::Stray;

/// What a disk writes in this time can be outside of every quota.
const EVERY: Duration = Duration::from_secs(2);
/// Nobody waits for what deleted volumes leave; a look reads each `fs.json`.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// Looks for ever.
pub async fn watch(node: Arc<Node>) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tidied = None;
    loop {
        tick.tick().await;
        if tidied.is_none_or(|at: Instant| at.elapsed() >= TIDY_EVERY) {
            tidied = Some(Instant::now());
            tidy(&node).await;
        }
        let driver = node.driver.clone();
        match tokio::task::spawn_blocking(move || driver.strays()).await {
            Ok(Ok(found)) => tell(&node, &found),
            Ok(Err(e)) => warn!("the look for subvolumes outside of their quota: {e}"),
            Err(e) => warn!("the look for subvolumes outside of their quota: {e}"),
        }
    }
}

fn tell(node: &Node, found: &[Stray]) {
    node.metrics.strays(found.len());
    for (fs, note) in notes(found) {
        warn!(%fs, "{}", note.message);
        node.tell(fs, &note);
    }
}

/// Groups that nobody is in any more go (ADR 39).
async fn tidy(node: &Arc<Node>) {
    let driver = node.driver.clone();
    match tokio::task::spawn_blocking(move || driver.tidy_groups()).await {
        Ok(Ok(tidied)) => {
            node.metrics.left(tidied.left);
            tell(node, &tidied.strays);
        }
        Ok(Err(e)) => warn!("the look for what deleted volumes have left in the quota: {e}"),
        Err(e) => warn!("the look for what deleted volumes have left in the quota: {e}"),
    }
}

/// An event for each Filesystem. It names no other tenant.
fn notes(found: &[Stray]) -> Vec<(FsId, Note)> {
    let mut of_each: BTreeMap<FsId, Vec<&Stray>> = BTreeMap::new();
    for stray in found {
        of_each.entry(stray.fs).or_default().push(stray);
    }
    of_each.into_iter().map(|(fs, strays)| (fs, note(&strays))).collect()
}

fn note(strays: &[&Stray]) -> Note {
    let first = strays.first().map(|s| s.path.as_str()).unwrap_or_default();
    let charged = if strays.iter().any(|s| s.charged_others) { ", and was charged to another volume" } else { "" };
    let message = format!(
        "{} subvolumes, such as `{first}`, were made in this volume outside of its quota: what was written in them counted nowhere in \
         it{charged}; it counts in it from now on",
        strays.len()
    );
    Note { warning: true, reason: "QuotaEvaded".to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stray(fs: u8, path: &str, charged_others: bool) -> Stray {
        let fs = format!("0198c2a5-7f00-7000-8000-0000000000{fs:02}").parse().unwrap();
        Stray { fs, path: path.into(), qgroup: 7, charged_others }
    }

    #[test]
    fn each_volume_hears_of_its_own_once_and_of_no_other_tenant() {
        let told = notes(&[stray(1, "a/x", false), stray(2, "y", true), stray(1, "z", false)]);
        assert_eq!(told.len(), 2);
        assert!(told[0].1.message.starts_with("2 subvolumes, such as `a/x`,") && !told[0].1.message.contains("another volume"));
        assert!(told[1].1.message.starts_with("1 subvolumes, such as `y`,") && told[1].1.message.contains("another volume"));
        assert!(told.iter().all(|(_, note)| note.warning && note.reason == "QuotaEvaded" && !note.message.contains('7')));
        assert_eq!(notes(&[]), []);
    }
}
