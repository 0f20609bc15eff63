//! Controller of Commit: gather → decide → apply → status.
//!
//! A Commit belongs to its source by an owner reference (no controller): when a Dot or Branch goes, the garbage
//! collector deletes its Commits, and they let go at once because their data went, or was kept, as a whole. One that CSI made has no such
//! reference: it is a snapshot, and keeps the Filesystem, without a head, until it goes itself. What a `VolumeSnapshotContent` keeps doesn't go with
//! the namespace ([`resettle`]).

mod decide;
mod resettle;
pub mod triggers;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::common::ANNOTATION_CSI_NAME;
use dotgraft_api::{Commit, ConditionType, Filesystem, Reason, Time, is_true};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use self::decide::{Step, View, decide};
use crate::cache::Cache;
use crate::caches::fs_term;
use crate::claim::{self, own};
use crate::conditions;
use crate::content;
use crate::context::Ctx;
use crate::error::Error;
use crate::handle;
use crate::live;
use crate::names::{COMMIT_FINALIZER, FS_LABEL, OPERATION_ANNOTATION, SNAPSHOT_COPIES_ANNOTATION, TRANSIENT_LABEL};
use crate::pools;
use crate::write::{self, has_finalizer};

/// When the watches will have seen what the API server says.
const SOON: Duration = Duration::from_secs(2);
const RESYNC: Duration = Duration::from_secs(600);
/// Longest that a commit is kept to clone from, in seconds: retries of a `CreateVolume` come within minutes.
const TRANSIENT_LIFE: i64 = 900;

fn gather(commit: &Arc<Commit>, ctx: &Ctx) -> View {
    let source = &commit.spec.source;
    let namespace = commit.namespace().unwrap_or_default();
    let (mut claim, mut fs) = claim::bound(ctx, source.kind, &namespace, &source.name).map_or((None, None), |(c, f)| (Some(c), f));
    // A commit that is made belongs to its Filesystem, whoever has the claim's name by now.
    if let Some(id) = recorded_in(commit) {
        claim = claim.filter(|_| fs.as_ref().is_some_and(|f| f.name_any() == id));
        fs = ctx.caches.filesystems.get(id).filter(|f| own::may_keep(f, &namespace, ctx));
        if namespace == ctx.namespace {
            claim = fs.as_ref().and_then(|f| own::holder(f, ctx));
        }
    }
    let replicas = fs.as_ref().map(|f| ctx.caches.replicas.with(&f.name_any())).unwrap_or_default();
    let withdrawn = commit.annotations().get(OPERATION_ANNOTATION).filter(|o| ctx.caches.operations.get_in(&namespace, o).is_none());
    let readers = handle::readers(commit, ctx);
    View { commit: commit.clone(), claim, fs, replicas, pools: pools::all(&ctx.caches), withdrawn: withdrawn.cloned(), readers }
}

/// The Filesystem that it was made in, once it is made.
pub fn recorded_in(commit: &Commit) -> Option<&str> {
    commit.status.as_ref()?.fs_id.as_deref()
}

/// Whether the commit's result stands in its status.
pub fn is_recorded(commit: &Commit) -> bool {
    commit.status.as_ref().is_some_and(|s| s.id.is_some())
}

fn is_csi(commit: &Commit) -> bool {
    commit.annotations().contains_key(ANNOTATION_CSI_NAME)
}

/// On how many nodes it is to be: what the class of a snapshot asks for, else one.
pub fn copies_named(commit: &Commit) -> usize {
    commit.annotations().get(SNAPSHOT_COPIES_ANNOTATION).and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// How many Commits are `AtRisk` for that reason.
pub fn say(commits: &Cache<Commit>, reason: impl Into<Reason>) -> usize {
    let reason = reason.into();
    let says = |c: &&Arc<Commit>| {
        let risk = c.status.as_ref().and_then(|s| is_true(&s.conditions, ConditionType::AtRisk));
        risk.is_some_and(|r| r.reason == reason.as_str())
    };
    commits.all().iter().filter(says).count()
}

/// Whether the Filesystem is kept for it, without a head, when its Dot goes: a snapshot that CSI made (csi.md §1).
fn outlives(commit: &Commit, fs_id: &str) -> bool {
    let kept = commit.metadata.deletion_timestamp.is_none() && !commit.labels().contains_key(TRANSIENT_LABEL);
    is_csi(commit) && kept && recorded_in(commit) == Some(fs_id)
}

/// The same of one that is being deleted, or that a user made: if a `VolumeSnapshotContent` keeps it, or somebody has a view of it.
fn is_kept(commit: &Commit, fs_id: &str, ctx: &Ctx) -> bool {
    let held = || content::may_keep(commit, ctx) || !handle::readers(commit, ctx).is_empty();
    outlives(commit, fs_id) || (recorded_in(commit) == Some(fs_id) && held())
}

/// Commits that say they were made in a Filesystem, as the watches saw: those of its namespace, as others only say so.
pub fn made_in(fs: &Filesystem, ctx: &Ctx) -> Vec<Arc<Commit>> {
    let mut list = ctx.caches.commits.with(&fs_term(&fs.name_any()));
    list.retain(|c| own::may_keep(fs, &c.namespace().unwrap_or_default(), ctx));
    list
}

/// How many snapshots of a Filesystem outlive its claim, as the watches saw.
pub fn snapshots(fs: &Filesystem, ctx: &Ctx) -> usize {
    made_in(fs, ctx).iter().filter(|c| is_kept(c, &fs.name_any(), ctx)).count()
}

/// The same, as the API server says now: what ends the data is decided by that.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_snapshots(fs: &Filesystem, ctx: &Ctx) -> Result<usize, Error> {
    let id = fs.name_any();
    let labelled = ListParams::default().labels(&format!("{FS_LABEL}={id}"));
    let mut count = 0;
    for namespace in own::live_namespaces(fs, ctx).await? {
        for commit in Api::<Commit>::namespaced(ctx.client.clone(), namespace).list(&labelled).await?.items {
            // A view is known by the watches alone: what a pod has mounted of it the agents see besides.
            let recorded = recorded_in(&commit) == Some(id.as_str());
            let held = recorded && (!handle::readers(&commit, ctx).is_empty() || content::keeps(&commit, ctx).await?);
            count += usize::from(outlives(&commit, &id) || held);
        }
    }
    Ok(count)
}

/// What a CSI call has made and nobody asks for any more: a commit to clone from whose clone was given up; a snapshot that was not made
/// before its source went, with all there was of it.
fn is_left_behind(view: &View, now: &Time) -> bool {
    let commit = view.commit.as_ref();
    let old = commit.creation_timestamp().is_some_and(|t| now.0.as_second() - t.0.as_second() > TRANSIENT_LIFE);
    let never_made = is_csi(commit) && recorded_in(commit).is_none() && view.claim.is_none();
    old && commit.metadata.deletion_timestamp.is_none() && (never_made || commit.labels().contains_key(TRANSIENT_LABEL))
}

/// The same with what the API server says now: a finalizer that goes is a decision about data.
async fn gather_live(commit: &Commit, ctx: &Ctx) -> Result<Option<View>, Error> {
    let api: Api<Commit> = write::namespaced(&ctx.client, commit);
    let Some(live) = api.get_opt(&commit.name_any()).await?.map(Arc::new) else { return Ok(None) };
    let mut view = gather(&live, ctx);
    let namespace = live.namespace().unwrap_or_default();
    let fs = match (recorded_in(&live), &view.claim) {
        (Some(id), _) => match Api::<Filesystem>::all(ctx.client.clone()).get_opt(id).await? {
            Some(fs) if own::live_may_keep(&fs, &namespace, ctx).await? => Some(fs),
            _ => None,
        },
        (None, Some(claim)) => own::live_filesystem(claim, ctx).await?,
        (None, None) => None,
    };
    if let Some(fs) = fs {
        let id = fs.name_any();
        view.fs = Some(Arc::new(fs));
        view.replicas = live::replicas(&id, ctx).await?;
        view.pools = pools::confirmed(ctx, &view.replicas).await?;
    }
    Ok(Some(view))
}

/// Brings one Commit on.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile(commit: Arc<Commit>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    let mut view = gather(&commit, &ctx);
    let api: Api<Commit> = write::namespaced(&ctx.client, commit.as_ref());
    if is_left_behind(&view, &Time(Timestamp::now())) {
        write::delete(&api, commit.as_ref()).await?;
        return Ok(Action::await_change());
    }
    if resettle::is_under_way(&commit, &ctx) {
        return Ok(Action::await_change());
    }
    // What is kept goes on elsewhere before it goes here, and no copy is asked to remove it ([`content::as_kept`]).
    let goes = commit.metadata.deletion_timestamp.is_some() && has_finalizer(commit.as_ref(), COMMIT_FINALIZER);
    if goes && content::may_keep(&commit, &ctx) {
        let Some(live) = api.get_opt(&commit.name_any()).await? else { return Ok(Action::await_change()) };
        if content::keeps(&live, &ctx).await? {
            resettle::resettle(&live, &ctx).await?;
            return Ok(Action::await_change());
        }
        return Ok(Action::requeue(SOON));
    }
    match decide(&view) {
        Step::Hold => {
            hold(&api, &view).await?;
            // The finalizer's own watch event comes back here.
            return Ok(Action::requeue(RESYNC));
        }
        Step::LetGo => {
            let Some(live) = gather_live(&commit, &ctx).await? else { return Ok(Action::await_change()) };
            if decide(&live) == Step::LetGo {
                write::let_go(&api, live.commit.as_ref(), COMMIT_FINALIZER).await?;
                return Ok(Action::await_change());
            }
            view = live;
        }
        Step::Show => {}
    }
    let now = Time(Timestamp::now());
    let old = view.commit.status.clone().unwrap_or_default();
    let mut new = decide::status(&view, &now);
    // Somebody takes its word for it: what the watches saw may be older than the wish.
    if decide::is_cancelled(&new) && !decide::is_cancelled(&old) {
        let Some(live) = gather_live(&commit, &ctx).await? else { return Ok(Action::await_change()) };
        new = decide::status(&live, &now);
    }
    if new != old {
        let notes = conditions::transitions(&old.conditions, &new.conditions);
        write::status(&api, view.commit.as_ref(), &new).await?;
        ctx.notes(&view.commit.object_ref(&()), "Commit", notes).await;
    }
    Ok(Action::requeue(RESYNC))
}

async fn hold(api: &Api<Commit>, view: &View) -> Result<(), Error> {
    let commit = view.commit.as_ref();
    let mut metadata = json!({ "finalizers": write::finalizers(commit, COMMIT_FINALIZER, true) });
    if let Some(claim) = view.claim.as_ref().filter(|_| !is_csi(commit))
        && !commit.owner_references().iter().any(|o| o.uid == claim.uid)
    {
        let mut owners = serde_json::to_value(commit.owner_references())?;
        if let Some(list) = owners.as_array_mut() {
            list.push(claim::owner_reference(claim, false));
        }
        metadata["ownerReferences"] = owners;
    }
    write::guarded(api, commit, json!({ "metadata": metadata })).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, FS};
    use dotgraft_api::Word;

    fn view(commit: Commit) -> View {
        View {
            commit: Arc::new(commit),
            claim: Some(testing::claim()),
            fs: None,
            replicas: vec![],
            pools: vec![],
            withdrawn: None,
            readers: vec![],
        }
    }
    fn snapshot(recorded: bool) -> Commit {
        let mut c = testing::commit("s", 1);
        c.metadata.annotations.get_or_insert_default().insert(ANNOTATION_CSI_NAME.into(), "s".into());
        c.status.get_or_insert_default().fs_id = recorded.then(|| FS.to_owned());
        c
    }
    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn what_nobody_asks_for_any_more_goes_in_time_and_a_snapshot_never() {
        let late = at(TRANSIENT_LIFE + 2);
        let mut transient = testing::commit("c", 1);
        transient.metadata.labels.get_or_insert_default().insert(TRANSIENT_LABEL.into(), "true".into());
        assert!(is_left_behind(&view(transient.clone()), &late) && !is_left_behind(&view(transient), &at(2)));
        let orphan = |c: Commit| View { claim: None, ..view(c) };
        assert!(is_left_behind(&orphan(snapshot(false)), &late), "its source went before it was made");
        assert!(!is_left_behind(&view(snapshot(false)), &late), "it may still be made");
        assert!(!is_left_behind(&orphan(snapshot(true)), &late), "it outlives its source");
        assert!(!is_left_behind(&orphan(testing::commit("users", 1)), &late));
    }

    #[test]
    fn commits_with_too_few_copies_are_counted_by_their_reason() {
        let mut commits = ["a", "b", "c"].map(|name| {
            let mut c = testing::commit(name, 1);
            c.metadata.name = Some(name.into());
            c
        });
        for (commit, reason) in
            commits.iter_mut().zip([Reason::from(Word::OneCopy), Word::OneCopy.into(), ConditionType::NoCopyLeft.into()])
        {
            let risk = conditions::wanted(ConditionType::AtRisk, true, reason, "");
            commit.status.get_or_insert_default().conditions = conditions::merge(&[], &[risk], None, &at(1));
        }
        let all = Cache::new("commits", |_| Vec::new());
        all.fill(commits);
        assert_eq!((say(&all, dotgraft_api::Word::OneCopy), say(&all, ConditionType::NoCopyLeft)), (2, 1));
    }

    #[tokio::test]
    async fn a_commit_of_another_namespace_that_says_so_is_none_of_the_filesystem() {
        let mut forged = snapshot(true);
        forged.metadata.namespace = Some("other".into());
        for (commit, count) in [(snapshot(true), 1), (forged, 0)] {
            let fs = testing::filesystem(Some(dotgraft_api::FilesystemPhase::Active), None);
            let seen_before = fs.clone();
            let fill = move |ctx: &Ctx| {
                ctx.caches.commits.fill([commit]);
                ctx.caches.filesystems.fill([seen_before]);
            };
            let seen = |ctx: Arc<Ctx>| async move {
                let commit = ctx.caches.commits.all().remove(0);
                (made_in(&fs, &ctx).len(), snapshots(&fs, &ctx), usize::from(gather(&commit, &ctx).fs.is_some()))
            };
            assert_eq!(testing::scenario::play(fill, vec![], seen).await, (count, count, count));
        }
    }

    #[test]
    fn a_filesystem_is_kept_for_snapshots_only() {
        assert!(outlives(&snapshot(true), FS) && !outlives(&snapshot(false), FS));
        assert!(!outlives(&testing::deleted(snapshot(true)), FS));
        let mut users = snapshot(true);
        users.metadata.annotations = None;
        assert!(!outlives(&users, FS), "a user's Commit goes with its Dot");
    }
}
