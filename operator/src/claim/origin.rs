//! What a Branch, or a Dot with an origin, starts from, read from the API server: it is recorded once and for ever.

use dotgraft_api::{Branch, ClaimKind, Commit, CommitSource, ConditionType, Dot, Filesystem, FilesystemPhase, Origin, Reason, Replica};
use kube::{Api, ResourceExt};

use super::{ClaimObject, ClaimView, own};
use crate::conditions::Block;
use crate::context::Ctx;
use crate::error::Error;
use crate::names;

type Resolved = Result<Origin, Block>;

// Every caller returns it as it is: the outer Ok says that the API server answered.
#[allow(clippy::unnecessary_wraps)]
fn no(reason: impl Into<Reason>, message: impl Into<String>) -> Result<Resolved, Error> {
    Ok(Err(Block::new(reason, message)))
}

/// Filesystem and commit that a Dot is to start from: one of its own namespace (`uid`: that namespace's, now), with or without a head, or a
/// snapshot that an administrator has given to it. Whether the commit is there is for the agent to say, when it pins it.
///
/// # Errors
///
/// The API server refuses or doesn't answer. What the claim waits for is no error: [`Resolved`] says it.
pub async fn of_dot(origin: &Origin, namespace: &str, uid: Option<&str>, ctx: &Ctx) -> Result<Resolved, Error> {
    let filesystems: Api<Filesystem> = Api::all(ctx.client.clone());
    match filesystems.get_opt(&origin.fs_id).await? {
        Some(fs) if own::may_start_from(&fs, &origin.commit, (namespace, uid), ctx).await? => Ok(alive(&fs, &origin.commit)),
        // Another namespace's is not there for this one: what it has is nobody else's to know.
        _ => no(ConditionType::SourceNotFound, format!("there is no Filesystem `{}` of this namespace", origin.fs_id)),
    }
}

/// Filesystem and commit that the Branch is to start from, or what it waits for. `uid`: that of its namespace now.
///
/// # Errors
///
/// The API server refuses or doesn't answer. What the Branch waits for is no error: [`Resolved`] says it.
pub async fn resolve(branch: &Branch, uid: Option<&str>, ctx: &Ctx) -> Result<Resolved, Error> {
    let namespace = branch.namespace().unwrap_or_default();
    let dots: Api<Dot> = Api::namespaced(ctx.client.clone(), &namespace);
    let name = &branch.spec.dot;
    let Some(dot) = dots.get_opt(name).await? else {
        return no(ConditionType::SourceNotFound, format!("there is no Dot `{name}` in this namespace"));
    };
    if dot.metadata.deletion_timestamp.is_some() {
        return no(ConditionType::SourceDeleting, format!("Dot `{name}` is being deleted"));
    }
    let from = branch.spec.from.clone().unwrap_or_default();
    if let Some(source) = &from.branch {
        let branches: Api<Branch> = Api::namespaced(ctx.client.clone(), &namespace);
        let Some(source_branch) = branches.get_opt(source).await? else {
            return no(ConditionType::SourceNotFound, format!("there is no Branch `{source}` in this namespace"));
        };
        if source_branch.spec.dot != *name {
            return no(
                ConditionType::SourceNotFound,
                format!("Branch `{source}` is one of Dot `{}`, not of `{name}`", source_branch.spec.dot),
            );
        }
        if source_branch.metadata.deletion_timestamp.is_some() {
            return no(ConditionType::SourceDeleting, format!("Branch `{source}` is being deleted"));
        }
        return newest(&source_branch.view(Some(&dot)), ctx).await;
    }
    match &from.commit {
        None => newest(&dot.view(None), ctx).await,
        Some(commit) if is_uuid(commit) => match own::live_filesystem(&dot.view(None), ctx).await? {
            Some(fs) => Ok(alive(&fs, commit)),
            None => no(ConditionType::NoCommits, format!("Dot `{name}` has no commits yet")),
        },
        Some(commit) => named(commit, (&namespace, uid), name, ctx).await,
    }
}

/// Whether it is an id rather than a name.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// By the name of a Commit. Which Filesystem that is in stands in its status, so it counts only if the Filesystem says so, too.
async fn named(commit: &str, (namespace, uid): (&str, Option<&str>), dot: &str, ctx: &Ctx) -> Result<Resolved, Error> {
    let commits: Api<Commit> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(object) = commits.get_opt(commit).await? else {
        return no(ConditionType::SourceNotFound, format!("there is no Commit `{commit}` in this namespace"));
    };
    if object.metadata.deletion_timestamp.is_some() {
        return no(ConditionType::SourceDeleting, format!("Commit `{commit}` is being deleted"));
    }
    let source = &object.spec.source;
    let of_this_dot = match source.kind {
        ClaimKind::Dot => source.name == dot,
        ClaimKind::Branch => {
            let branches: Api<Branch> = Api::namespaced(ctx.client.clone(), namespace);
            branches.get_opt(&source.name).await?.is_some_and(|b| b.spec.dot == dot)
        }
    };
    if !of_this_dot {
        return no(ConditionType::SourceNotFound, format!("Commit `{commit}` is not one of Dot `{dot}` or its Branches"));
    }
    let Some(origin) = object.status.as_ref().and_then(|s| Some(Origin { fs_id: s.fs_id.clone()?, commit: s.id.clone()? })) else {
        return no(ConditionType::NoCommits, format!("Commit `{commit}` is not made yet"));
    };
    match Api::<Filesystem>::all(ctx.client.clone()).get_opt(&origin.fs_id).await? {
        Some(fs) if own::is_of_namespace(&fs, namespace, uid) && is_source(&fs, source) => Ok(alive(&fs, &origin.commit)),
        _ => no(ConditionType::SourceNotFound, format!("what Commit `{commit}` was made of is not there")),
    }
}

/// Whether the Filesystem is, or was, that of what the Commit is of.
fn is_source(fs: &Filesystem, source: &CommitSource) -> bool {
    let r = &fs.spec.claim_ref;
    r.kind == source.kind && r.name == source.name
}

fn alive(fs: &Filesystem, commit: &str) -> Resolved {
    match fs.status.as_ref().map(|s| (s.phase, s.authority.is_some())) {
        Some((FilesystemPhase::Deleting, _)) => {
            Err(Block::new(ConditionType::SourceDeleting, "the Filesystem that it starts from is being deleted"))
        }
        Some((_, true)) => Ok(Origin { fs_id: fs.name_any(), commit: commit.to_owned() }),
        _ => Err(Block::new(ConditionType::SourceNotReady, "the Filesystem that it starts from has no owner")),
    }
}

/// The newest commit as the owner reports it.
async fn newest(claim: &ClaimView, ctx: &Ctx) -> Result<Resolved, Error> {
    let what = format!("{} `{}`", claim.kind.as_str(), claim.name);
    let Some(fs) = own::live_filesystem(claim, ctx).await? else {
        return no(ConditionType::NoCommits, format!("{what} has no commits yet"));
    };
    let owner = fs.status.as_ref().and_then(|s| s.authority.as_ref()).map(|a| &a.owner);
    let Some(owner) = owner else { return no(ConditionType::SourceNotReady, format!("{what} has no owner yet")) };
    let replicas: Api<Replica> = Api::all(ctx.client.clone());
    let replica = replicas.get_opt(&names::replica_name(&fs.name_any(), &owner.pool)).await?;
    match replica.and_then(|r| r.status).and_then(|s| s.head) {
        Some(commit) => Ok(alive(&fs, &commit)),
        None => no(ConditionType::NoCommits, format!("{what} has no commits yet: make a Commit first")),
    }
}
