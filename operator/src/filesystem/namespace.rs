//! Which namespace a Filesystem of before 0.3 is of: those have only its name. Recorded once, where it is certain (ADR 24).

use dotgraft_api::{Filesystem, FilesystemPhase};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use serde_json::json;

use crate::claim::{ClaimView, own};
use crate::context::Ctx;
use crate::error::Error;
use crate::write;

/// By how many seconds the namespace must be older than the Filesystem: more than the clocks of two API servers are apart.
const OLDER: i64 = 600;

/// Whether the Filesystem is one of that very namespace.
///
/// It is while its claim lives there and the data is in use: the claim is read before the namespace, and doesn't go before the phase has
/// changed, so a write against what was read fails if the namespace is another one by then. And it is if the namespace was there before the
/// Filesystem was made: a name belongs to one namespace at a time.
fn is_certain(fs: &Filesystem, holder: Option<&ClaimView>, namespace: &Namespace) -> bool {
    let in_use = matches!(fs.status.as_ref().map(|s| s.phase), Some(FilesystemPhase::New | FilesystemPhase::Active));
    let lives = in_use && holder.is_some_and(|claim| !claim.deleting);
    let second = |time: &Option<dotgraft_api::Time>| time.as_ref().map(|t| t.0.as_second());
    let both = second(&fs.metadata.creation_timestamp).zip(second(&namespace.metadata.creation_timestamp));
    lives || both.is_some_and(|(made, began)| made - began >= OLDER)
}

/// Records it, if it is certain. Says whether it was.
///
/// # Errors
///
/// The API server refuses or doesn't answer.
pub async fn record(fs: &Filesystem, ctx: &Ctx) -> Result<bool, Error> {
    let name = &fs.spec.claim_ref.namespace;
    let holder = own::live_holder(fs, ctx).await?;
    let Some(namespace) = Api::<Namespace>::all(ctx.client.clone()).get_opt(name).await? else { return Ok(false) };
    if !is_certain(fs, holder.as_ref(), &namespace) {
        return Ok(false);
    }
    let patch = json!({ "spec": { "claimRef": { "namespaceUid": namespace.metadata.uid } } });
    write::guarded(&Api::<Filesystem>::all(ctx.client.clone()), fs, patch).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{claim, filesystem, namespace};
    use dotgraft_api::Time;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }
    fn made(at_second: i64, phase: FilesystemPhase) -> Filesystem {
        let mut fs = filesystem(Some(phase), None);
        fs.metadata.creation_timestamp = Some(at(at_second));
        fs
    }
    fn began(at_second: i64) -> Namespace {
        let mut namespace = namespace();
        namespace.metadata.creation_timestamp = Some(at(at_second));
        namespace
    }

    #[test]
    fn which_namespace_it_was_is_known_by_a_claim_that_lives_or_by_an_older_namespace() {
        use FilesystemPhase::{Active, Headless, Released};
        assert!(is_certain(&made(5, Active), Some(&claim()), &began(9)), "its claim is there");
        assert!(!is_certain(&made(5, Active), None, &began(9)));
        assert!(!is_certain(&made(5, Released), Some(&claim()), &began(9)), "a claim of what is let go may go at any moment");
        let mut going = claim();
        going.deleting = true;
        assert!(!is_certain(&made(5, Active), Some(&going), &began(9)));
        for phase in [Released, Headless] {
            assert!(is_certain(&made(10 + OLDER, phase), None, &began(10)));
            assert!(!is_certain(&made(9 + OLDER, phase), None, &began(10)), "clocks differ");
            assert!(!is_certain(&made(10, phase), None, &began(9000)), "the namespace was made anew");
        }
    }
}
