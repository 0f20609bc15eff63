//! A snapshot that a `VolumeSnapshotContent` keeps outlives its namespace (ADR 31): its Commit goes on in the operator's own, where no namespace's end
//! takes it along. There it is restored from and deleted by its snapshot id like any other.

use dotgraft_api::Commit;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt};

use crate::context::Ctx;
use crate::error::Error;
use crate::names::{self, COMMIT_FINALIZER};
use crate::write;

/// On such a Commit: namespace and name of the one that it was.
const ANNOTATION: &str = "dotgraft.dev/resettled-from";

/// Whether its result is still to be written, by [`resettle`] alone: a status that is written without it would take it away again.
pub fn is_under_way(commit: &Commit, ctx: &Ctx) -> bool {
    let ours = commit.namespace().as_ref() == Some(&ctx.namespace) && commit.annotations().contains_key(ANNOTATION);
    ours && commit.metadata.deletion_timestamp.is_none() && !super::is_recorded(commit)
}

/// What the Commit says, in the operator's namespace.
fn settled(commit: &Commit, namespace: &str) -> Commit {
    let mut labels = commit.labels().clone();
    labels.extend(super::recorded_in(commit).map(|id| (names::FS_LABEL.to_owned(), id.to_owned())));
    let mut annotations = commit.annotations().clone();
    annotations.insert(ANNOTATION.into(), format!("{}/{}", commit.namespace().unwrap_or_default(), commit.name_any()));
    Commit {
        metadata: ObjectMeta {
            name: Some(names::dot_of_call(&commit.name_any(), &commit.uid().unwrap_or_default())),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            finalizers: Some(vec![COMMIT_FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        spec: commit.spec.clone(),
        status: None,
    }
}

/// Makes it, with its result; then lets go of the one that is being deleted. Each step may be repeated.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn resettle(commit: &Commit, ctx: &Ctx) -> Result<(), Error> {
    let api: Api<Commit> = Api::namespaced(ctx.client.clone(), &ctx.namespace);
    let new = settled(commit, &ctx.namespace);
    let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
    let made = match api.create(&params, &new).await {
        Ok(made) => made,
        Err(kube::Error::Api(s)) if s.is_already_exists() => api.get(&new.name_any()).await?,
        Err(e) => return Err(e.into()),
    };
    if !super::is_recorded(&made) {
        let mut status = commit.status.clone().unwrap_or_default();
        status.conditions.clear();
        write::status(&api, &made, &status).await?;
    }
    tracing::info!(
        commit = commit.name_any(),
        namespace = commit.namespace(),
        "a VolumeSnapshotContent keeps the snapshot of a Commit that goes"
    );
    write::let_go(&write::namespaced(&ctx.client, commit), commit, COMMIT_FINALIZER).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::content::tests::{content, made};
    use crate::testing::scenario::{Call, call, play};
    use crate::testing::{FS, deleted, filesystem};
    use dotgraft_api::{CommitState, Desired, FilesystemPhase, ReplicaCommitStatus, ReplicaSpec};

    fn live(commit: &Commit, policy: &str) -> Vec<Call> {
        vec![call("GET", "/namespaces/team/commits/c", commit), call("GET", "/volumesnapshotcontents/snapcontent-1", content(policy, None))]
    }
    /// One round for the Commit, which is being deleted: the watches saw that its content says `Retain`.
    async fn round(script: Vec<Call>) {
        let (gone, seen) = (deleted(made()), content("Retain", None));
        let fill = |ctx: &Ctx| {
            crate::testing::with_pools(ctx, &["n1"]);
            ctx.caches.filesystems.fill([filesystem(Some(FilesystemPhase::Headless), None)]);
            ctx.caches.contents.fill([seen]);
            let pool = crate::pools::tests::pool_id("n1");
            let spec = ReplicaSpec { fs_id: FS.into(), node: "n1".into(), pool, desired: Desired::default() };
            let mut copy = crate::testing::replica(spec, crate::filesystem::spare::Marks::default(), dotgraft_api::CopyRole::Owner);
            let uid = gone.metadata.uid.clone().unwrap_or_default();
            let answer = ReplicaCommitStatus { uid, state: CommitState::Removed, ..ReplicaCommitStatus::default() };
            copy.status.get_or_insert_default().commits = vec![answer];
            ctx.caches.replicas.fill([copy]);
        };
        let commit = gone.clone();
        play(fill, script, |ctx| crate::commit::reconcile(Arc::new(commit), ctx)).await.unwrap();
    }

    #[tokio::test]
    async fn a_commit_whose_snapshot_is_kept_goes_on_in_the_operators_namespace_before_it_goes() {
        let gone = deleted(made());
        let mut script = live(&gone, "Retain");
        script.push(call("POST", "/namespaces/dotgraft-system/commits", settled(&gone, "dotgraft-system")).with(|b| {
            assert_eq!(b["metadata"]["labels"][names::FS_LABEL], FS);
            assert_eq!(b["metadata"]["annotations"]["dotgraft.dev/csi-name"], "snapshot-1");
            assert!(b["metadata"]["deletionTimestamp"].is_null() && b["metadata"]["ownerReferences"].is_null(), "{b}");
        }));
        script.push(call("PATCH", "/namespaces/dotgraft-system/commits/c-", made()).with(|b| assert_eq!(b["status"]["id"], FS)));
        script.push(
            call("PATCH", "/namespaces/team/commits/c", made()).with(|b| assert_eq!(b["metadata"]["finalizers"], serde_json::json!([]))),
        );
        round(script).await;
    }

    #[tokio::test]
    async fn nothing_is_written_over_a_result_that_is_only_being_recorded() {
        let mut new = settled(&deleted(made()), "dotgraft-system");
        (new.metadata.uid, new.metadata.resource_version) = (Some("u9".into()), Some("1".into()));
        play(|_| {}, vec![], |ctx| crate::commit::reconcile(Arc::new(new), ctx)).await.unwrap();
    }

    #[tokio::test]
    async fn what_the_watches_saw_resettles_nothing_that_the_administrator_lets_go() {
        round(live(&deleted(made()), "Delete")).await;
    }
}
