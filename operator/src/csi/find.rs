//! The objects behind a handle, read from the API server; and bounded waiting on what the watches see.

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::common::ANNOTATION_CSI_NAME;
use dotgraft_api::{
    Branch, ClaimKind, CommitState, ConditionType, CopyRole, Dot, Filesystem, FilesystemPhase, Replica, ReplicaCommitStatus, ReplicaStatus,
    condition, says,
};
use kube::{Api, Resource, ResourceExt};
use tokio::time::Instant;

use super::error::CsiError;
use super::ids::{VolumeHandle, no_volume};
use crate::claim::{ClaimObject, ClaimView, own};
use crate::context::Ctx;

/// Longest that a call waits for controllers and agents; then it answers `ABORTED` and the caller comes back. Well under the sidecars'
/// `--timeout=60s`, and long, as each `ABORTED` makes their next pause longer, and csi-sanity doesn't come back at all.
pub const PATIENCE: Duration = Duration::from_secs(25);
const POLL: Duration = Duration::from_millis(20);
/// Tries to win a compare-and-swap.
pub const TRIES: u32 = 8;

/// Waits until `look` finds something, at most `limit`. `look` reads caches only: cheap.
pub async fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A volume that can be used: its Filesystem and the Dot or Branch that holds it.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The Filesystem.
    pub fs: Filesystem,
    /// Its claim.
    pub claim: ClaimView,
    /// `Ready` is false: why.
    pub trouble: Option<String>,
}

/// The Filesystem, if it is there.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn filesystem(id: &str, ctx: &Ctx) -> Result<Option<Filesystem>, CsiError> {
    Ok(Api::<Filesystem>::all(ctx.client.clone()).get_opt(id).await?)
}

/// The volume of a handle; `NOT_FOUND` once its claim is gone or going.
///
/// # Errors
///
/// `NOT_FOUND` as said; the API server refuses or doesn't answer.
pub async fn volume(handle: &VolumeHandle, ctx: &Ctx) -> Result<Volume, CsiError> {
    let id = handle.fs().to_string();
    let Some(fs) = filesystem(&id, ctx).await? else { return Err(no_volume(&id)) };
    let c = &fs.spec.claim_ref;
    let found = match c.kind {
        ClaimKind::Dot => {
            let dot = Api::<Dot>::namespaced(ctx.client.clone(), &c.namespace).get_opt(&c.name).await?;
            dot.map(|d| (d.view(None), trouble(&d)))
        }
        ClaimKind::Branch => {
            let branch = Api::<Branch>::namespaced(ctx.client.clone(), &c.namespace).get_opt(&c.name).await?;
            branch.map(|b| (b.view(ctx.caches.dots.get_in(&c.namespace, &b.spec.dot).as_deref()), trouble(&b)))
        }
    };
    let (claim, trouble) = found.filter(|(claim, _)| is_usable(&fs, claim)).ok_or_else(|| no_volume(&id))?;
    Ok(Volume { fs, claim, trouble })
}

/// What is behind a handle that is published: the Filesystem, and its claim where that holds a head.
#[derive(Debug, Clone)]
pub struct Published {
    /// The Filesystem.
    pub fs: Filesystem,
    /// Its claim. A view does without: it needs the commit alone, which may outlive the claim (ADR 37).
    pub claim: Option<ClaimView>,
    /// `Ready` of the claim is false: why.
    pub trouble: Option<String>,
}

/// What is behind a handle. Of a view it is there as long as its Filesystem is.
///
/// # Errors
///
/// As [`volume`].
pub async fn published(handle: &VolumeHandle, ctx: &Ctx) -> Result<Published, CsiError> {
    match volume(handle, ctx).await {
        Ok(Volume { fs, claim, trouble }) => Ok(Published { fs, claim: Some(claim), trouble }),
        Err(CsiError::NotFound(_)) if handle.view().is_some() => {
            let id = handle.fs().to_string();
            let kept = |f: &Filesystem| matches!(f.status.as_ref().map(|s| s.phase), Some(phase) if phase != FilesystemPhase::Deleting);
            let fs = filesystem(&id, ctx).await?.filter(kept).ok_or_else(|| no_volume(&id))?;
            Ok(Published { fs, claim: None, trouble: None })
        }
        Err(e) => Err(e),
    }
}

/// Whether a claim holds the Filesystem's head, as the watches saw.
pub fn is_claimed(fs: &Filesystem, ctx: &Ctx) -> bool {
    own::holder(fs, ctx).is_some_and(|claim| is_usable(fs, &claim))
}

/// Nodes whose copies say that they have a commit.
pub fn holders(fs_id: &str, commit: &str, ctx: &Ctx) -> Vec<String> {
    let there = |r: &Arc<Replica>| r.status.as_ref().is_some_and(|s| s.head.is_some() && holds(s, commit));
    let replicas = ctx.caches.replicas.with(fs_id);
    let mut nodes: Vec<String> = replicas.iter().filter(|r| there(r)).map(|r| r.spec.node.clone()).collect();
    nodes.sort();
    nodes
}

/// Whether the Filesystem has a head that its claim holds.
pub fn is_usable(fs: &Filesystem, claim: &ClaimView) -> bool {
    let phase = fs.status.as_ref().map(|s| s.phase);
    let in_use = matches!(phase, Some(FilesystemPhase::New | FilesystemPhase::Active));
    in_use && !claim.deleting && own::is_bound(claim, fs)
}

/// Why the claim isn't ready, if it says so.
pub fn trouble<K: ClaimObject>(claim: &K) -> Option<String> {
    let status = claim.status();
    let ready = condition(&status.conditions, ConditionType::Ready)?;
    (says(ready) != Some(true)).then(|| format!("{}: {}", ready.reason, ready.message))
}

/// The name of the CSI call that made the object.
pub fn csi_name<K: Resource>(object: &K) -> Option<&str> {
    object.annotations().get(ANNOTATION_CSI_NAME).map(String::as_str)
}

/// An amount of bytes as people write it, where that is exact.
pub fn amount(bytes: u64) -> String {
    let units = [("Ti", 40_u32), ("Gi", 30), ("Mi", 20)];
    let exact = units.iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    exact.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// Whether a copy says that it has a commit. An agent of before 0.2 lists the newest only: of one before those it is taken to be there, if there
/// are more than it lists (ids are UUIDv7, so they sort by time); no copy goes because of that ([`crate::filesystem::kept`]).
pub fn holds(copy: &ReplicaStatus, commit: &str) -> bool {
    let recent = &copy.recent_commits;
    let is_there = |c: &&ReplicaCommitStatus| matches!(c.state, CommitState::Done | CommitState::Pinned);
    let wished = copy.commits.iter().filter(is_there).any(|c| c.id.as_deref() == Some(commit));
    let is_older = !copy.kept_complete && copy.complete_to.is_none();
    let before = is_older
        && recent.last().is_some_and(|c| commit < c.id.as_str())
        && u64::try_from(recent.len()).is_ok_and(|n| n < copy.commit_count);
    matches!(copy.role, CopyRole::Owner | CopyRole::Replica)
        && (wished || before || copy.kept.iter().any(|id| id == commit) || recent.iter().any(|c| c.id == commit && !c.deleted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dotgraft_api::parse_quantity;

    #[test]
    fn an_amount_is_read_back_exactly() {
        for bytes in [1 << 20, (1 << 20) + 1, 1_000_000_000, 3 << 30, 1 << 60] {
            assert_eq!(parse_quantity(&amount(bytes)), Ok(bytes));
        }
        assert_eq!(amount(10 << 30), "10Gi");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends() {
        let begin = Instant::now();
        assert_eq!(until(PATIENCE, || None::<()>).await, None);
        assert!(begin.elapsed() < PATIENCE + Duration::from_secs(1));
        let mut looks = 0;
        let look = || {
            looks += 1;
            (looks == 3).then_some(looks)
        };
        assert_eq!(until(PATIENCE, look).await, Some(3));
    }

    #[test]
    fn a_copy_holds_what_it_lists_and_what_came_before_a_list_that_is_cut() {
        let listed = |id: &str| dotgraft_api::ReplicaCommit {
            id: id.into(),
            parent: None,
            time: dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
            message: String::new(),
            epoch: 1,
            deleted: false,
        };
        let recent_commits = vec![listed("01-c"), listed("01-b")];
        let mut s = ReplicaStatus { role: CopyRole::Replica, commit_count: 2, recent_commits, ..ReplicaStatus::default() };
        assert!(holds(&s, "01-b") && !holds(&s, "01-a") && !holds(&s, "01-d"));
        s.commit_count = 9;
        assert!(holds(&s, "01-a") && !holds(&s, "01-d"), "a newer one has not arrived");
        s.kept_complete = true;
        assert!(!holds(&s, "01-a"), "it says what it has");
        s.kept = vec!["01-a".into()];
        assert!(holds(&s, "01-a"));
        s.recent_commits[0].deleted = true;
        assert!(holds(&s, "01-b") && !holds(&s, "01-c"), "nobody can mount it any more");
        let answer = |state| vec![ReplicaCommitStatus { id: Some("01-e".into()), state, ..ReplicaCommitStatus::default() }];
        s.commits = answer(CommitState::Done);
        assert!(holds(&s, "01-e"));
        s.commits = answer(CommitState::Removed);
        assert!(!holds(&s, "01-e"));
        s.role = CopyRole::Deleting;
        assert!(!holds(&s, "01-b"));
    }
}
