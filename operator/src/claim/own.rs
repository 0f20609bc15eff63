//! Whose a Filesystem is: the one place that says so (security.md, "Tenants"; ADR 24).
//!
//! `spec.fsId` of a Dot or Branch is only a name that somebody wrote there, and ids are no secret. What counts is `claimRef` of the
//! Filesystem, which nobody but the operator and administrators writes. So the id of a claim is seen in this module's parent alone; everybody
//! else asks here, by [`filesystem`] and [`live_filesystem`] from the claim, and by [`holder`] and [`live_holder`] from the Filesystem.

use std::sync::Arc;

use dotgraft_api::{Branch, ClaimKind, Dot, Filesystem};
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use super::{ClaimObject, ClaimView, cached};
use crate::content;
use crate::context::Ctx;
use crate::error::Error;

/// What a Filesystem is to a Dot or Branch whose `spec.fsId` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// It is recorded as this very object's.
    Bound,
    /// It was that of an object of this kind and name in this very namespace, which is gone: this one may take its place.
    Heir,
    /// It is somebody else's. This claim gets nothing of it, and learns nothing of it.
    Foreign,
}

/// Decides. `namespace`: UID of the claim's namespace, `None` if that isn't known.
///
/// A UID is never given twice, so whoever has that of `claimRef` is in that namespace, too. Everybody else must show that the namespace is
/// the one of then; where that isn't recorded nobody can.
pub fn holding(claim: &ClaimView, fs: &Filesystem, namespace: Option<&str>) -> Holding {
    let r = &fs.spec.claim_ref;
    let named = claim.fs_id.as_deref() == Some(&fs.name_any());
    if !named || r.kind != claim.kind || r.namespace != claim.namespace || r.name != claim.name {
        return Holding::Foreign;
    }
    if r.uid.as_deref() == Some(&claim.uid) {
        return Holding::Bound;
    }
    if is_of_namespace(fs, &claim.namespace, namespace) { Holding::Heir } else { Holding::Foreign }
}

/// Whether the Filesystem is recorded as this very object's.
pub fn is_bound(claim: &ClaimView, fs: &Filesystem) -> bool {
    holding(claim, fs, None) == Holding::Bound
}

/// Whether the Filesystem is one of the namespace with that UID: what began from it, or reads it, must be, too.
pub fn is_of_namespace(fs: &Filesystem, name: &str, uid: Option<&str>) -> bool {
    let r = &fs.spec.claim_ref;
    r.namespace == name && uid.is_some() && r.namespace_uid.as_deref() == uid
}

/// Whether the Filesystem's commit is there for a namespace to start from: it is one of that very namespace, or an administrator has given it that
/// commit as a snapshot.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn may_start_from(fs: &Filesystem, commit: &str, (name, uid): (&str, Option<&str>), ctx: &Ctx) -> Result<bool, Error> {
    Ok(is_of_namespace(fs, name, uid) || content::grants(&format!("{}@{commit}", fs.name_any()), name, ctx).await?)
}

/// The namespaces in which Commits of a Filesystem lie.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_namespaces<'a>(fs: &'a Filesystem, ctx: &'a Ctx) -> Result<Vec<&'a str>, Error> {
    let own = fs.spec.claim_ref.namespace.as_str();
    let mut all = vec![ctx.namespace.as_str()];
    if own != ctx.namespace && live_may_keep(fs, own, ctx).await? {
        all.insert(0, own);
    }
    Ok(all)
}

/// Whether a Commit of that namespace may be one of the Filesystem, and so keep what it holds: the status in which a Commit names its
/// Filesystem is no proof. In doubt it may, for what is kept too long can still be let go. In the operator's own namespace lie Commits whose
/// namespace is gone ([`crate::commit`]).
pub fn may_keep(fs: &Filesystem, namespace: &str, ctx: &Ctx) -> bool {
    namespace == ctx.namespace || may_be_of(fs, namespace, namespace_uid(namespace, ctx).as_deref())
}

/// The same, by what the API server says now: a copy, or all of it, goes if nothing keeps it.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_may_keep(fs: &Filesystem, namespace: &str, ctx: &Ctx) -> Result<bool, Error> {
    if namespace == ctx.namespace {
        return Ok(true);
    }
    if !may_be_of(fs, namespace, None) {
        return Ok(false);
    }
    Ok(may_be_of(fs, namespace, live_namespace_uid(namespace, ctx).await?.as_deref()))
}

fn may_be_of(fs: &Filesystem, namespace: &str, uid: Option<&str>) -> bool {
    let r = &fs.spec.claim_ref;
    r.namespace == namespace && r.namespace_uid.as_deref().zip(uid).is_none_or(|(recorded, now)| recorded == now)
}

/// The Filesystem that the claim is bound to, as the watches saw.
pub fn filesystem(claim: &ClaimView, ctx: &Ctx) -> Option<Arc<Filesystem>> {
    ctx.caches.filesystems.get(claim.fs_id.as_ref()?).filter(|fs| is_bound(claim, fs))
}

/// The same, as the API server says now.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_filesystem(claim: &ClaimView, ctx: &Ctx) -> Result<Option<Filesystem>, Error> {
    let Some(id) = &claim.fs_id else { return Ok(None) };
    let fs = Api::<Filesystem>::all(ctx.client.clone()).get_opt(id).await?;
    Ok(fs.filter(|fs| is_bound(claim, fs)))
}

/// The Dot or Branch that the Filesystem is bound to, as the watches saw.
pub fn holder(fs: &Filesystem, ctx: &Ctx) -> Option<ClaimView> {
    let r = &fs.spec.claim_ref;
    cached(ctx, r.kind, &r.namespace, &r.name).filter(|claim| is_bound(claim, fs))
}

/// The same, as the API server says now.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_holder(fs: &Filesystem, ctx: &Ctx) -> Result<Option<ClaimView>, Error> {
    let r = &fs.spec.claim_ref;
    Ok(live_claim(r.kind, &r.namespace, &r.name, ctx).await?.filter(|claim| is_bound(claim, fs)))
}

/// The claim of that name, as the API server says now.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_claim(kind: ClaimKind, namespace: &str, name: &str, ctx: &Ctx) -> Result<Option<ClaimView>, Error> {
    let dots: Api<Dot> = Api::namespaced(ctx.client.clone(), namespace);
    if kind == ClaimKind::Dot {
        return Ok(dots.get_opt(name).await?.map(|d| d.view(None)));
    }
    let branches: Api<Branch> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(branch) = branches.get_opt(name).await? else { return Ok(None) };
    let dot = dots.get_opt(&branch.spec.dot).await?;
    Ok(Some(branch.view(dot.as_ref())))
}

/// The Filesystem that must be looked at again when the claim changes. It decides nothing: whoever is woken asks whose it is.
pub fn named(claim: &ClaimView) -> Option<ObjectRef<Filesystem>> {
    claim.fs_id.as_ref().map(|id| ObjectRef::new(id))
}

/// UID of a namespace, as the watches saw.
pub fn namespace_uid(name: &str, ctx: &Ctx) -> Option<String> {
    ctx.caches.namespaces.get(name)?.uid()
}

/// UID of a namespace, as the API server says now: whether someone gets data is decided by that.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn live_namespace_uid(name: &str, ctx: &Ctx) -> Result<Option<String>, Error> {
    Ok(Api::<Namespace>::all(ctx.client.clone()).get_opt(name).await?.and_then(|n| n.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scenario::play;
    use crate::testing::{FS, NAMESPACE_UID, claim, dot, filesystem, namespace};
    use dotgraft_api::FilesystemPhase;

    const OTHER: &str = "0198c2a5-7f00-7000-8000-0000000000ee";

    fn fs(edit: impl FnOnce(&mut Filesystem)) -> Filesystem {
        let mut fs = filesystem(Some(FilesystemPhase::Active), None);
        edit(&mut fs);
        fs
    }
    /// As the namespace is now; the claim was made anew.
    fn of_another_object(fs: &Filesystem, namespace: Option<&str>) -> Holding {
        holding(&ClaimView { uid: OTHER.into(), ..claim() }, fs, namespace)
    }

    #[test]
    fn an_id_alone_is_a_way_into_nothing() {
        let here = Some(NAMESPACE_UID);
        assert_eq!(holding(&claim(), &fs(|_| {}), here), Holding::Bound);
        let foreign = |edit: &dyn Fn(&mut ClaimView)| {
            let mut c = claim();
            edit(&mut c);
            assert_eq!(holding(&c, &fs(|_| {}), here), Holding::Foreign, "{c:?}");
            assert!(!is_bound(&c, &fs(|_| {})));
        };
        foreign(&|c| c.namespace = "other".into());
        foreign(&|c| c.name = "other".into());
        foreign(&|c| c.kind = ClaimKind::Branch);
        foreign(&|c| c.fs_id = Some(OTHER.into()));
        foreign(&|c| c.fs_id = None);
    }

    #[test]
    fn only_in_the_very_namespace_does_an_object_inherit_what_one_of_its_name_had() {
        assert_eq!(of_another_object(&fs(|_| {}), Some(NAMESPACE_UID)), Holding::Heir);
        assert_eq!(of_another_object(&fs(|_| {}), Some(OTHER)), Holding::Foreign, "the namespace was made anew");
        assert_eq!(of_another_object(&fs(|_| {}), None), Holding::Foreign, "nobody knows which namespace it is");
        assert!(!is_bound(&ClaimView { uid: OTHER.into(), ..claim() }, &fs(|_| {})), "not before it is recorded");
        let unknown = fs(|f| f.spec.claim_ref.namespace_uid = None);
        assert_eq!(of_another_object(&unknown, Some(NAMESPACE_UID)), Holding::Foreign, "nobody knows which it was");
        assert_eq!(of_another_object(&unknown, None), Holding::Foreign);
        assert_eq!(holding(&claim(), &unknown, None), Holding::Bound, "the object of then is there");
        let released = fs(|f| f.spec.claim_ref.uid = None);
        assert_eq!(of_another_object(&released, Some(NAMESPACE_UID)), Holding::Heir);
    }

    #[test]
    fn what_is_read_must_be_of_the_very_namespace_and_what_is_kept_may_be() {
        let there = |f: &Filesystem, uid| is_of_namespace(f, "team", uid);
        assert!(there(&fs(|_| {}), Some(NAMESPACE_UID)) && !there(&fs(|_| {}), Some(OTHER)) && !there(&fs(|_| {}), None));
        assert!(!is_of_namespace(&fs(|_| {}), "other", Some(NAMESPACE_UID)));
        let unknown = fs(|f| f.spec.claim_ref.namespace_uid = None);
        assert!(!there(&unknown, Some(NAMESPACE_UID)) && !there(&unknown, None));
        let may = |f: &Filesystem, uid| may_be_of(f, "team", uid);
        assert!(may(&fs(|_| {}), Some(NAMESPACE_UID)) && may(&fs(|_| {}), None) && may(&unknown, Some(OTHER)), "in doubt it is kept");
        assert!(!may(&fs(|_| {}), Some(OTHER)) && !may_be_of(&fs(|_| {}), "other", None));
    }

    #[tokio::test]
    async fn what_the_watches_saw_is_asked_in_the_same_way() {
        let theirs = |edit: &dyn Fn(&mut Filesystem)| {
            let fs = fs(|f| edit(f));
            let fill = move |ctx: &Ctx| {
                ctx.caches.dots.fill([dot()]);
                ctx.caches.namespaces.fill([namespace()]);
                ctx.caches.filesystems.fill([fs.clone()]);
            };
            play(fill, vec![], |ctx| async move {
                let fs = ctx.caches.filesystems.get(FS).unwrap();
                let (_, bound) = crate::claim::bound(&ctx, ClaimKind::Dot, "team", "db").unwrap();
                (bound.is_some(), holder(&fs, &ctx).is_some(), may_keep(&fs, "team", &ctx))
            })
        };
        assert_eq!(theirs(&|_| {}).await, (true, true, true));
        assert_eq!(theirs(&|f| f.spec.claim_ref.uid = Some(OTHER.into())).await, (false, false, true), "another object's");
        assert_eq!(theirs(&|f| f.spec.claim_ref.namespace = "other".into()).await, (false, false, false));
        let anew = |f: &mut Filesystem| {
            (f.spec.claim_ref.uid, f.spec.claim_ref.namespace_uid) = (Some(OTHER.into()), Some(OTHER.into()));
        };
        assert_eq!(theirs(&anew).await, (false, false, false), "of an earlier namespace");
    }
}
