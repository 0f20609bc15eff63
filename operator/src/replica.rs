//! Controller of Replica: takes a confirmed one away, and a tombstone once a person gives its pool up.
//!
//! What is desired of a Replica is decided with its Filesystem; this only ends what has ended, also after the
//! Filesystem is gone (tombstones outlive it, design §2).

pub mod triggers;

use std::sync::Arc;
use std::time::Duration;

use dotgraft_api::{DesiredState, Place, Replica};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use crate::context::Ctx;
use crate::error::Error;
use crate::filesystem::plan::is_confirmed;
use crate::names::REPLICA_FINALIZER;
use crate::pools::{self, PoolView};
use crate::write;

/// Whether the object has done its duty: nothing is left in that pool; or the pool is gone and a person deleted
/// the tombstone, which declares it gone for good.
fn is_over(replica: &Replica, pools: &[PoolView]) -> bool {
    let place = Place { node: replica.spec.node.clone(), pool: replica.spec.pool.clone() };
    let given_up = replica.metadata.deletion_timestamp.is_some()
        && replica.spec.desired.state == DesiredState::Absent
        && pools::is_gone(pools, &place);
    is_confirmed(replica) || given_up
}

/// Ends what has ended.
///
/// # Errors
///
/// The API server refuses or doesn't answer: tried again with backoff.
pub async fn reconcile(replica: Arc<Replica>, ctx: Arc<Ctx>) -> Result<Action, Error> {
    if !is_over(&replica, &pools::all(&ctx.caches)) {
        return Ok(Action::await_change());
    }
    let api: Api<Replica> = Api::all(ctx.client.clone());
    let Some(live) = api.get_opt(&replica.name_any()).await? else { return Ok(Action::await_change()) };
    let live = Arc::new(live);
    if is_over(&live, &pools::confirmed(&ctx, std::slice::from_ref(&live)).await?) {
        // Guarded by the version that was read: a wish that changed since keeps it.
        write::let_go(&api, live.as_ref(), REPLICA_FINALIZER).await?;
        write::delete(&api, live.as_ref()).await?;
        return Ok(Action::await_change());
    }
    Ok(Action::requeue(Duration::from_secs(30)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::spare::Marks;
    use crate::pools::tests::{pool, pool_id};
    use crate::testing::{self, FS};
    use dotgraft_api::{CopyRole, Desired, ReplicaSpec, Time};

    #[test]
    fn a_tombstone_goes_only_when_a_person_gives_its_pool_up() {
        let desired = Desired { state: DesiredState::Absent, ..Desired::default() };
        let spec = ReplicaSpec { fs_id: FS.into(), node: "n1".into(), pool: pool_id("n1"), desired };
        let mut r = testing::replica(spec, Marks::default(), CopyRole::Deleting);
        assert!(!is_over(&r, &[]));
        assert!(is_over(&testing::confirmed(&r), &[pool("n1", 1)]));
        r.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert!(!is_over(&r, &[pool("n1", 1)]), "the pool is there: its agent must confirm");
        assert!(is_over(&r, &[]));
        r.spec.desired.state = DesiredState::Present;
        assert!(!is_over(&r, &[]), "no intent to delete was recorded");
    }
}
