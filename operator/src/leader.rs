//! Leader election by a Lease: 15 s lease, 10 s to renew it, one try every 2 s.
//!
//! The decision is pure ([`Observer::decide`]) and takes the monotonic clock; it never compares clocks of two
//! machines: a lease has expired when *we* saw it unchanged for its whole duration. It protects against double
//! work only; data is protected by compare-and-swap and epochs (csi.md §2).

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Name of the Lease.
pub const LEASE: &str = dotgraft_api::common::LEASE_OPERATOR;
/// How long others wait before they take over.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that hasn't renewed for so long steps down; less than [`DURATION`], so two never lead.
const DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// What to do about the Lease now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is ours: write a new renew time.
    Renew,
    /// Nobody's or expired: take it.
    Take,
    /// Somebody else's and alive.
    Wait,
}

/// Remembers what was seen of the Lease, and when by our own clock.
#[derive(Debug, Default)]
pub struct Observer {
    seen: Option<(LeaseSpec, Instant)>,
}

impl Observer {
    /// Looks at the Lease as read at `now`.
    pub fn decide(&mut self, spec: Option<&LeaseSpec>, me: &str, now: Instant) -> Decision {
        let Some(spec) = spec else { return Decision::Take };
        match spec.holder_identity.as_deref() {
            None | Some("") => return Decision::Take,
            Some(holder) if holder == me => return Decision::Renew,
            Some(_) => {}
        }
        let changed = self.seen.as_ref().is_none_or(|(old, _)| old != spec);
        if changed {
            self.seen = Some((spec.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, at)| *at);
        let duration = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(DURATION, Duration::from_secs);
        if now.duration_since(since) > duration { Decision::Take } else { Decision::Wait }
    }
}

fn renewed(mut lease: Lease, me: &str, decision: Decision) -> Lease {
    let now = MicroTime(Timestamp::now());
    let spec = lease.spec.get_or_insert_default();
    if decision == Decision::Take {
        let new_holder = spec.holder_identity.as_deref() != Some(me);
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(new_holder)));
        spec.acquire_time = Some(now.clone());
        spec.holder_identity = Some(me.to_owned());
    }
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    spec.renew_time = Some(now);
    lease
}

/// One election round; `Ok(true)` means that we hold the Lease as of now.
async fn round(leases: &Api<Lease>, me: &str, observer: &mut Observer) -> Result<bool, kube::Error> {
    let Some(lease) = leases.get_opt(LEASE).await? else {
        let new = Lease { metadata: ObjectMeta { name: Some(LEASE.into()), ..ObjectMeta::default() }, spec: None };
        leases.create(&PostParams::default(), &renewed(new, me, Decision::Take)).await?;
        return Ok(true);
    };
    let decision = observer.decide(lease.spec.as_ref(), me, Instant::now());
    if decision == Decision::Wait {
        return Ok(false);
    }
    // `replace` carries the resourceVersion that was read: of two that race, one loses.
    leases.replace(LEASE, &PostParams::default(), &renewed(lease, me, decision)).await?;
    Ok(true)
}

/// Runs for ever and tells by `leading` whether we lead. `identity` must differ between processes.
pub async fn run(client: Client, namespace: String, identity: String, leading: watch::Sender<bool>) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let mut observer = Observer::default();
    let mut held_since: Option<Instant> = None;
    loop {
        // Counted from before the request was sent: that is what others may have seen first.
        let sent = Instant::now();
        match timeout(RETRY, round(&leases, &identity, &mut observer)).await {
            Ok(Ok(true)) => held_since = Some(sent),
            Ok(Ok(false)) => held_since = None,
            Ok(Err(error)) => tracing::warn!(%error, "renewing the leader lease"),
            Err(_) => tracing::warn!("renewing the leader lease: no answer"),
        }
        let leads = held_since.is_some_and(|at| at.elapsed() < DEADLINE.saturating_sub(RETRY * 2));
        if !leads {
            held_since = None;
        }
        leading.send_if_modified(|now| std::mem::replace(now, leads) != leads);
        sleep(RETRY).await;
    }
}

/// Gives the Lease up at a clean exit, so that the next leader needn't wait.
pub async fn release(client: Client, namespace: &str, identity: &str) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let Ok(Ok(Some(mut lease))) = timeout(RETRY, leases.get_opt(LEASE)).await else { return };
    let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(identity)) else { return };
    spec.holder_identity = None;
    let _ = timeout(RETRY, leases.replace(LEASE, &PostParams::default(), &lease)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, renewed_s: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed_s).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_free_lease_is_taken_and_ours_renewed() {
        let now = Instant::now();
        let mut o = Observer::default();
        assert_eq!(o.decide(None, "a", now), Decision::Take);
        assert_eq!(o.decide(Some(&LeaseSpec::default()), "a", now), Decision::Take);
        assert_eq!(o.decide(Some(&held_by("a", 0)), "a", now), Decision::Renew);
    }

    #[test]
    fn anothers_lease_is_taken_only_after_we_saw_it_unchanged_for_its_duration() {
        let start = Instant::now();
        let mut o = Observer::default();
        // Its renew time is ancient by our clock: clocks differ, so that alone proves nothing.
        assert_eq!(o.decide(Some(&held_by("b", 1)), "a", start), Decision::Wait);
        assert_eq!(o.decide(Some(&held_by("b", 1)), "a", start + Duration::from_secs(15)), Decision::Wait);
        assert_eq!(o.decide(Some(&held_by("b", 2)), "a", start + Duration::from_secs(16)), Decision::Wait);
        assert_eq!(o.decide(Some(&held_by("b", 2)), "a", start + Duration::from_secs(30)), Decision::Wait);
        assert_eq!(o.decide(Some(&held_by("b", 2)), "a", start + Duration::from_secs(32)), Decision::Take);
    }

    #[test]
    fn taking_counts_a_transition_and_renewing_does_not() {
        let lease = Lease { spec: Some(held_by("b", 1)), ..Lease::default() };
        let taken = renewed(lease, "a", Decision::Take);
        assert_eq!(taken.spec.as_ref().unwrap().lease_transitions, Some(1));
        let again = renewed(taken, "a", Decision::Renew);
        assert_eq!(again.spec.unwrap().lease_transitions, Some(1));
    }
}
