//! Which Filesystems a job means and where each is to go: pure. The Filesystem's plan and the job's report agree
//! because both ask here.

use std::sync::Arc;

use dotgraft_api::{ClaimKind, ConditionType, Place, ReplicationJob};
use dotgraft_engine::schedule::{Schedule, ScheduleError};
use kube::ResourceExt;

use crate::conditions::Block;
use crate::names::JOB_FINALIZER;
use crate::pools::PoolView;
use crate::write::has_finalizer;

/// Kind of the claims that a job's names mean: Dots, or Branches for a job that belongs to one.
pub fn source_kind(job: &ReplicationJob) -> ClaimKind {
    let branch = job.owner_references().iter().any(|o| o.controller == Some(true) && o.kind == "Branch");
    if branch { ClaimKind::Branch } else { ClaimKind::Dot }
}

/// Whether the job selects a claim (of its own namespace).
pub fn selects(job: &ReplicationJob, kind: ClaimKind, name: &str, labels: &std::collections::BTreeMap<String, String>) -> bool {
    if source_kind(job) != kind {
        return false;
    }
    match &job.spec.source.selector {
        Some(s) => s.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)),
        None => job.spec.source.names.iter().any(|n| n == name),
    }
}

/// Runs on every commit.
pub fn on_commit(job: &ReplicationJob) -> bool {
    job.spec.schedule.as_ref().is_some_and(|s| s.on_commit)
}

/// The times at which it runs by itself.
///
/// # Errors
/// What the CRD can't tell: they can't be read.
pub fn schedule(job: &ReplicationJob) -> Result<Option<Schedule>, ScheduleError> {
    let Some(said) = &job.spec.schedule else { return Ok(None) };
    Schedule::of(said.cron.as_deref(), said.time_zone.as_deref(), said.interval_seconds)
}

/// It runs by itself again and again. Any other runs once, or once per value of `trigger`.
pub fn goes_on(job: &ReplicationJob) -> bool {
    job.spec.schedule.as_ref().is_some_and(|s| s.on_commit || s.cron.is_some() || s.interval_seconds.is_some())
}

/// The one run that its spec asks for has ended.
pub fn is_over(job: &ReplicationJob) -> bool {
    let Some(status) = &job.status else { return false };
    !goes_on(job) && status.finished_at.is_some() && status.observed_trigger == job.spec.trigger
}

/// It is being deleted, or we don't hold it yet: no agent may know of it.
pub fn is_live(job: &ReplicationJob) -> bool {
    job.metadata.deletion_timestamp.is_none() && has_finalizer(job, JOB_FINALIZER)
}

/// It may send now or at any time by itself.
pub fn is_active(job: &ReplicationJob) -> bool {
    is_live(job) && !job.spec.suspend && !is_over(job)
}

/// Order in which jobs to one target get their turn: the older first, then by UID.
pub fn turn(job: &ReplicationJob) -> (Option<i64>, String) {
    (job.creation_timestamp().map(|t| t.0.as_second()), job.uid().unwrap_or_default())
}

/// Where a job brings one Filesystem, or why it can't.
///
/// Of several active jobs from one Filesystem to one node the oldest has its turn; the others wait with
/// `TargetBusy` until it has ended, is suspended or goes (replication.md §2: one transfer to one copy at a time,
/// and two jobs that keep one copy up to date would only fight over its cursor).
///
/// # Errors
///
/// The [`Block`] that keeps it from going there.
pub fn resolve(
    job: &ReplicationJob,
    owner: Option<&Place>,
    pools: &[PoolView],
    rivals: &[Arc<ReplicationJob>],
    has_copy: impl Fn(&Place) -> bool,
) -> Result<Place, Block> {
    let node = job.spec.target.node.as_str();
    schedule(job).map_err(|e| Block::new(ConditionType::InvalidSchedule, format!("spec.schedule: {e}")))?;
    let Some(owner) = owner else {
        return Err(Block::new(ConditionType::SourceNotReady, "the source has no owner yet"));
    };
    if owner.node == node {
        return Err(Block::new(ConditionType::TargetIsOwner, format!("node `{node}` owns the source: a copy goes to another node")));
    }
    let Some(pool) = pools.iter().find(|p| p.node == node) else {
        return Err(Block::new(
            ConditionType::TargetNotFound,
            format!("there is no NodePool `{node}`: is there such a node, and does an agent run on it?"),
        ));
    };
    if !pool.node_exists {
        return Err(Block::new(ConditionType::TargetNotFound, format!("node `{node}` is gone")));
    }
    let group = pools.iter().find(|p| p.node == owner.node).map(|p| p.group.as_str());
    if group.is_some_and(|g| g != pool.group) && !pool.place().is_some_and(|p| has_copy(&p)) {
        return Err(Block::new(
            ConditionType::TargetRefused,
            format!("node `{node}` is of pool group `{}`, the source of another: a volume has copies within its group only", pool.group),
        ));
    }
    let place = pool
        .place()
        .filter(|p| pool.ready || has_copy(p))
        .ok_or_else(|| Block::new(ConditionType::TargetNotReady, format!("the pool of node `{node}` is not ready: {}", pool.problem)))?;
    let first = rivals
        .iter()
        .filter(|r| r.spec.target.node == node && r.uid() != job.uid() && is_active(r) && is_active(job))
        .find(|r| turn(r) < turn(job));
    match first {
        Some(r) => Err(Block::new(
            ConditionType::TargetBusy,
            format!(
                "ReplicationJob `{}` brings the same source to node `{node}`; this one waits until that has ended or is suspended or deleted",
                r.name_any()
            ),
        )),
        None => Ok(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::{pool, pool_id};
    use crate::testing::job;

    fn place(node: &str) -> Place {
        Place { node: node.into(), pool: pool_id(node) }
    }
    fn reason(r: Result<Place, Block>) -> &'static str {
        r.map_or_else(|b| b.reason.as_str(), |_| "ok")
    }

    #[test]
    fn each_way_in_which_a_target_is_wrong_has_its_reason() {
        let pools = [pool("n1", 1), pool("n2", 1)];
        let owner = place("n1");
        let go = |node: &str, pools: &[PoolView]| reason(resolve(&job("j", node, 1), Some(&owner), pools, &[], |_| false));
        assert_eq!(go("n2", &pools), "ok");
        assert_eq!(go("n1", &pools), "TargetIsOwner");
        assert_eq!(go("n9", &pools), "TargetNotFound");
        let mut down = pools.clone();
        down[1].ready = false;
        assert_eq!(go("n2", &down), "TargetNotReady");
        assert_eq!(reason(resolve(&job("j", "n2", 1), Some(&owner), &down, &[], |_| true)), "ok", "an existing copy keeps its job");
        let mut apart = pools.clone();
        apart[1].group = "other".into();
        assert_eq!(go("n2", &apart), "TargetRefused");
        assert_eq!(reason(resolve(&job("j", "n2", 1), Some(&owner), &apart, &[], |_| true)), "ok", "one of before");
        down[1].node_exists = false;
        assert_eq!(go("n2", &down), "TargetNotFound");
        assert_eq!(reason(resolve(&job("j", "n2", 1), None, &pools, &[], |_| false)), "SourceNotReady");
    }

    #[test]
    fn a_schedule_that_cannot_be_read_keeps_a_job_from_running() {
        let mut nightly = job("j", "n2", 1);
        let mut with = |cron: &str, zone: Option<&str>| {
            let schedule = dotgraft_api::Schedule { cron: Some(cron.into()), time_zone: zone.map(Into::into), ..Default::default() };
            nightly.spec.schedule = Some(schedule);
            resolve(&nightly, Some(&place("n1")), &[pool("n1", 1), pool("n2", 1)], &[], |_| false)
        };
        assert_eq!(reason(with("30 2 * * *", Some("Europe/Berlin"))), "ok");
        for (cron, zone, says) in [("61 * * * *", None, "`61 * * * *`"), ("@daily", Some("Mars/Olympus"), "`Mars/Olympus`")] {
            let block = with(cron, zone).unwrap_err();
            assert_eq!(block.reason.as_str(), "InvalidSchedule");
            assert!(block.message.contains(says), "{}", block.message);
        }
    }

    #[test]
    fn of_two_jobs_to_one_target_the_older_goes_first_and_the_other_follows() {
        let (pools, owner) = ([pool("n1", 1), pool("n2", 1)], place("n1"));
        let (old, young) = (job("old", "n2", 1), job("young", "n2", 2));
        let rivals = [Arc::new(old.clone()), Arc::new(young.clone())];
        let go = |j: &ReplicationJob, rivals: &[Arc<ReplicationJob>]| reason(resolve(j, Some(&owner), &pools, rivals, |_| false));
        assert_eq!(go(&old, &rivals), "ok");
        assert_eq!(go(&young, &rivals), "TargetBusy");
        let mut done = old.clone();
        done.status.get_or_insert_default().finished_at = Some(dotgraft_api::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(go(&young, &[Arc::new(done.clone())]), "ok");
        done.spec.trigger = Some("again".into());
        assert_eq!(go(&young, &[Arc::new(done)]), "TargetBusy", "a new trigger makes it active again");
        let mut suspended = old;
        suspended.spec.suspend = true;
        assert_eq!(go(&young, &[Arc::new(suspended)]), "ok");
    }
}
