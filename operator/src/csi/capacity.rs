//! `GetCapacity`: free bytes of the pools in a topology, as the agents report them (in steps of 1 %).

use dotgraft_proto::csi::v1 as wire;

use super::error::CsiError;
use super::params::{Parameters, SIZE_MIN};
use super::{capability, topology};
use crate::context::Ctx;
use crate::pools::{self, PoolView};

/// Answers for one topology segment, or for all pools.
///
/// # Errors
///
/// `INVALID_ARGUMENT` for parameters or capabilities that no volume of ours can have.
pub fn get(request: &wire::GetCapacityRequest, ctx: &Ctx) -> Result<wire::GetCapacityResponse, CsiError> {
    let parameters = Parameters::read(&request.parameters, &std::collections::HashMap::new())?;
    // What can't be provisioned has no capacity (CSI spec, GetCapacity).
    if request.volume_capabilities.iter().any(|c| capability::check_new(std::slice::from_ref(c)).is_err()) {
        return Ok(wire::GetCapacityResponse { available_capacity: 0, ..wire::GetCapacityResponse::default() });
    }
    Ok(answer(&pools::all(&ctx.caches), parameters.pool_group.as_deref(), request.accessible_topology.as_ref()))
}

fn answer(pools: &[PoolView], group: Option<&str>, within: Option<&wire::Topology>) -> wire::GetCapacityResponse {
    let free = pools
        .iter()
        .filter(|p| p.usable() && group.is_none_or(|g| p.group == g) && within.is_none_or(|t| topology::matches(p, t)))
        .map(|p| i64::try_from(p.available).unwrap_or(i64::MAX));
    let (sum, largest) = free.fold((0_i64, 0), |(sum, largest), n| (sum.saturating_add(n), n.max(largest)));
    wire::GetCapacityResponse {
        available_capacity: sum,
        maximum_volume_size: Some(largest),
        minimum_volume_size: i64::try_from(SIZE_MIN).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::pool;
    use dotgraft_api::common::{TOPOLOGY_NODE, TOPOLOGY_POOL};

    fn free(key: &str, value: &str, group: Option<&str>) -> (i64, Option<i64>) {
        let mut pools = vec![pool("n1", 5), pool("n2", 9), pool("n3", 20), pool("n4", 100)];
        pools[2].group = "ssd".into();
        pools[3].ready = false;
        let within = wire::Topology { segments: std::iter::once((key.to_owned(), value.to_owned())).collect() };
        let a = answer(&pools, group, (!key.is_empty()).then_some(&within));
        (a.available_capacity >> 30, a.maximum_volume_size.map(|n| n >> 30))
    }

    #[test]
    fn capacity_is_that_of_the_usable_pools_in_the_segment() {
        assert_eq!(free(TOPOLOGY_NODE, "n1", None), (5, Some(5)));
        assert_eq!(free(TOPOLOGY_POOL, "default", None), (14, Some(9)));
        assert_eq!(free("", "", None), (34, Some(20)));
        assert_eq!(free("", "", Some("ssd")), (20, Some(20)));
        assert_eq!(free(TOPOLOGY_NODE, "n1", Some("ssd")), (0, Some(0)));
        assert_eq!(free(TOPOLOGY_NODE, "n4", None), (0, Some(0)), "not ready");
    }
}
