//! Between the API's words and the engine's: `Replica.spec.desired` in, `Replica.status` and orphans out. Pure.

use dotgraft_api::common::{Fencing, Initial as ApiInitial, Intermediate as ApiIntermediate, ReclaimPolicy};
use dotgraft_api::condition::{ConditionUpdate, set_condition};
use dotgraft_api::node_pool::Orphan;
use dotgraft_api::replica::{
    CommitState, CommitTransfer, CommitWish, CompleteTo, CopyRole, DesiredRole, DesiredState, ImportStart, JobWish, LastRun, Migration,
    Replica, ReplicaCommit, ReplicaCommitStatus, ReplicaJobStatus, ReplicaStatus,
};
use dotgraft_engine::filesystem::{
    Desired, FilesystemStatus, Intent, JobStatus, MigrationStatus, Present, RequestState, RequestStatus, Role, RoleStatus, Transfer,
    WantedCommit, WantedJob,
};
use dotgraft_engine::ids::{Epoch, FsId, IdError, Timestamp};
use dotgraft_engine::model::{Claim, Order, Origin, Place};
use dotgraft_engine::run::{Initial, Intermediate, JobSpec, OnConflict, Outcome, Retry, RunParams};
use dotgraft_engine::schedule::Schedule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::report::cut;
use super::{report, words};

/// A Replica object that this agent can't make sense of.
#[derive(Debug, thiserror::Error)]
#[error("Replica {name}: {source}")]
pub struct BadReplica {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub source: IdError,
}

/// Which Filesystem and what is wanted of it.
///
/// # Errors
///
/// An id or a node's name in it is none. The copy goes on as it was last told to, and the agent's log says so.
pub fn desired_of(replica: &Replica) -> Result<(FsId, Desired), BadReplica> {
    let name = replica.metadata.name.clone().unwrap_or_default();
    parse(replica).map_err(|source| BadReplica { name, source })
}

fn parse(replica: &Replica) -> Result<(FsId, Desired), IdError> {
    let fs: FsId = replica.spec.fs_id.parse()?;
    let d = &replica.spec.desired;
    let generation = replica.metadata.generation.unwrap_or(0);
    let intent = match d.state {
        DesiredState::Absent => Intent::Absent { epoch: Epoch(d.epoch) },
        DesiredState::Present => Intent::Present(Box::new(Present {
            role: match d.role {
                Some(DesiredRole::Owner) => Role::Owner,
                Some(DesiredRole::Replica) | None => Role::Replica,
            },
            epoch: Epoch(d.epoch),
            owner: d.owner.as_ref().map(place).transpose()?,
            peers: d.peers.iter().map(|p| p.node.parse()).collect::<Result<_, _>>()?,
            claim: d.claim.as_ref().map(|c| Claim {
                kind: c.kind.as_str().to_owned(),
                namespace: c.namespace.clone(),
                name: c.name.clone(),
                csi_name: c.csi_name.clone(),
            }),
            origin: origin(d.origin.as_ref())?,
            capacity: d.capacity,
            history_limit: d.history_limit,
            origin_bytes: d.origin_bytes,
            fencing: fencing_text(d.fencing).to_owned(),
            reclaim_policy: reclaim_text(d.reclaim_policy).to_owned(),
            commits: d.commits.iter().map(wanted_commit).collect::<Result<_, _>>()?,
            jobs: d.jobs.iter().map(wanted_job).collect::<Result<_, _>>()?,
            move_to: d.move_to.as_ref().map(place).transpose()?,
            precopy_to: d.precopy_to.as_ref().map(place).transpose()?,
            headless: d.headless,
            fetch: d.fetch.iter().map(transfer).collect::<Result<_, _>>()?,
            lend: d.lend.iter().map(transfer).collect::<Result<_, _>>()?,
        })),
    };
    Ok((fs, Desired { generation, intent }))
}

fn place(p: &dotgraft_api::Place) -> Result<Place, IdError> {
    Ok(Place { node: p.node.parse()?, pool: p.pool.parse()? })
}

fn transfer(t: &CommitTransfer) -> Result<Transfer, IdError> {
    Ok(Transfer { commit: t.commit.parse()?, with: place(&t.with)? })
}

const fn fencing_text(f: Fencing) -> &'static str {
    match f {
        Fencing::Proof => "Proof",
        Fencing::Manual => "Manual",
    }
}

const fn reclaim_text(r: ReclaimPolicy) -> &'static str {
    match r {
        ReclaimPolicy::Delete => "Delete",
        ReclaimPolicy::Retain => "Retain",
    }
}

fn origin(o: Option<&dotgraft_api::common::Origin>) -> Result<Option<Origin>, IdError> {
    o.map(|o| Ok(Origin { fs_id: o.fs_id.parse()?, commit: o.commit.parse()? })).transpose()
}

fn wanted_commit(c: &CommitWish) -> Result<WantedCommit, IdError> {
    Ok(WantedCommit {
        uid: c.uid.parse()?,
        message: c.message.clone(),
        metadata: c.metadata.clone(),
        id: c.id.as_ref().map(|id| id.parse()).transpose()?,
        remove: c.remove,
        reset_to: origin(c.reset_to.as_ref())?,
        hold: c.hold,
    })
}

fn wanted_job(j: &JobWish) -> Result<WantedJob, IdError> {
    let params = RunParams {
        peer: Place { node: j.peer.node.parse()?, pool: j.peer.pool.parse()? },
        initial: match j.initial {
            ApiInitial::MostRecent => Initial::MostRecent,
            ApiInitial::All => Initial::All,
            ApiInitial::Fail => Initial::Fail,
        },
        intermediate: match j.intermediate {
            ApiIntermediate::All => Intermediate::All,
            ApiIntermediate::LatestOnly => Intermediate::LatestOnly,
        },
        retry: Retry {
            max_attempts: j.retry.max_attempts,
            deadline_ms: j.retry.deadline_seconds.map(|s| u64::from(s).saturating_mul(1000)),
        },
        on_conflict: OnConflict::Fail,
        also: None,
    };
    let schedule = j.schedule.as_ref().map_or(Ok(None), |s| Schedule::of(s.cron.as_deref(), s.time_zone.as_deref(), s.interval_seconds));
    let spec = JobSpec {
        uid: j.uid.parse()?,
        generation: j.generation,
        // The operator has read it before: a schedule that this program can't read is of a newer one.
        suspend: j.suspend || schedule.is_err(),
        trigger: j.trigger.clone(),
        on_commit: j.on_commit,
        schedule: schedule.as_ref().ok().cloned().flatten(),
        params,
    };
    Ok(WantedJob { spec, bandwidth: j.bandwidth })
}

// ---- out ----

/// Kubernetes' time of ours; out of range gives the epoch.
pub fn time(t: Timestamp) -> Time {
    Time(jiff::Timestamp::from_millisecond(t.0).unwrap_or_default())
}

/// Largest status, as JSON: etcd takes no object of more than 1.5 MiB, and spec and managedFields are in it too.
const STATUS_MAX: usize = 640 << 10;
/// Longest texts for people, in characters: the first with which it all fits.
const TEXT_MAX: [usize; 4] = [4096, 1024, 256, 64];

/// `Replica.status`. Conditions keep the transition times of `before`.
pub fn status_of(s: &FilesystemStatus, before: Option<&ReplicaStatus>, now: Timestamp) -> ReplicaStatus {
    let fits = |status: &ReplicaStatus| serde_json::to_vec(status).is_ok_and(|json| json.len() <= STATUS_MAX);
    let [first, shorter @ ..] = TEXT_MAX;
    let full = with_texts(s, before, now, first);
    shorter.into_iter().fold(full, |status, chars| if fits(&status) { status } else { with_texts(s, before, now, chars) })
}

fn with_texts(s: &FilesystemStatus, before: Option<&ReplicaStatus>, now: Timestamp, chars: usize) -> ReplicaStatus {
    ReplicaStatus {
        observed_generation: Some(s.observed_generation),
        role: copy_role(s.role),
        epoch: s.epoch.0,
        phase: phase(s),
        head: s.head.map(|h| h.to_string()),
        bytes: s.bytes,
        limit: s.limit,
        file_bytes: s.file_bytes,
        origin_bytes: s.base.as_ref().map_or(0, |b| b.origin_bytes),
        commit_count: s.commits as u64,
        recent_commits: s
            .recent_commits
            .iter()
            .map(|c| ReplicaCommit {
                id: c.id.to_string(),
                parent: c.parent.map(|p| p.to_string()),
                time: time(c.time),
                message: cut(&c.message, 256),
                epoch: c.epoch.0,
                deleted: c.let_go,
            })
            .collect(),
        kept: s.holding.kept.iter().map(ToString::to_string).collect(),
        kept_complete: s.holding.complete,
        complete_to: s.holding.complete_to.map(complete_to),
        written_since: s.written_since.map(time),
        migration: s.migration.as_ref().map(migration),
        handed_over: s.handed_over.map(|e| e.0),
        import_start: s.import_start.map(|(mig, attempt, commit)| ImportStart {
            mig: mig.to_string(),
            attempt,
            final_commit: commit.to_string(),
        }),
        opened_epoch: s.opened_epoch.map(|e| e.0),
        jobs: s.jobs.iter().take(32).map(|j| job_status(j, chars)).collect(),
        commits: s.requests.iter().take(256).map(|r| request_status(r, chars)).collect(),
        mounts: s.mounts.iter().take(16).map(|m| cut(m, 1024)).collect(),
        conditions: conditions(s, before, now, chars),
    }
}

fn migration(m: &MigrationStatus) -> Migration {
    Migration {
        id: m.id.to_string(),
        from: m.from.to_string(),
        to: m.to.to_string(),
        attempt: m.attempt,
        phase: words::move_phase(m.phase).as_str().to_owned(),
        started_at: Some(time(m.started_at)),
        finished_at: m.finished_at.map(time),
        frozen_ms: m.frozen_ms,
        bytes: m.bytes,
        message: cut(&m.message, 4096),
    }
}

fn copy_role(role: RoleStatus) -> CopyRole {
    match role {
        RoleStatus::Absent => CopyRole::Absent,
        RoleStatus::Creating => CopyRole::Creating,
        RoleStatus::Owner => CopyRole::Owner,
        RoleStatus::Replica => CopyRole::Replica,
        RoleStatus::Receiving => CopyRole::Receiving,
        RoleStatus::Deleting => CopyRole::Deleting,
    }
}

fn phase(s: &FilesystemStatus) -> String {
    let mut text = s.conditions.first().map_or_else(String::new, |c| words::why(c.reason).to_string());
    if let Some((commit, safe)) = s.receiving {
        text = format!("receiving {commit}, {} MiB safe", safe >> 20);
    } else if let Some(trouble) = s.conditions.iter().skip(1).find(|c| c.status) {
        text = format!("{text}, {}", words::about(trouble.r#type));
    }
    cut(&text, 256)
}

fn job_status(j: &JobStatus, chars: usize) -> ReplicaJobStatus {
    let last = j.row.last.as_ref().map(|l| {
        let (success, commit) = match &l.outcome {
            Outcome::Completed { replicated, .. } => (true, Some(replicated.to_string())),
            _ => (false, l.report.replicated.map(|c| c.to_string())),
        };
        LastRun {
            finished_at: time(l.report.finished_at.unwrap_or(l.report.started_at)),
            started_at: time(l.report.started_at),
            bytes: l.report.replicated_bytes,
            commit,
            success,
        }
    });
    ReplicaJobStatus {
        uid: j.uid.to_string(),
        observed_trigger: j.row.observed_trigger.clone(),
        observed_generation: j.row.observed_generation,
        report: j.report.as_ref().map(|r| report::of(r, chars).into()),
        last,
        last_successful_time: j.row.last_successful_time.map(time),
        consecutive_failures: j.row.consecutive_failures,
        next_schedule_time: j.next_firing.map(time),
    }
}

fn request_status(r: &RequestStatus, chars: usize) -> ReplicaCommitStatus {
    let state = match (r.state, &r.problem) {
        (None, _) | (Some(RequestState::Pending | RequestState::Removing), None) => CommitState::Pending,
        (Some(RequestState::Pending), Some(_)) => CommitState::Refused,
        (Some(RequestState::Done), _) => CommitState::Done,
        (Some(RequestState::Removing), Some(_)) => CommitState::Pinned,
        (Some(RequestState::Removed), _) => CommitState::Removed,
    };
    ReplicaCommitStatus {
        uid: r.uid.to_string(),
        id: r.id.map(|id| id.to_string()),
        parent: r.parent.map(|p| p.to_string()),
        time: r.time.map(time),
        changed_bytes: r.changed_bytes,
        state,
        message: r.problem.as_ref().map(|p| cut(&p.to_string(), chars)),
        holding: r.holding,
    }
}

fn conditions(s: &FilesystemStatus, before: Option<&ReplicaStatus>, now: Timestamp, chars: usize) -> Vec<Condition> {
    let mut all: Vec<Condition> = before.map(|b| b.conditions.clone()).unwrap_or_default();
    all.retain(|old| s.conditions.iter().any(|c| words::about(c.r#type).as_str() == old.type_));
    for c in s.conditions.iter().take(16) {
        let update = ConditionUpdate {
            type_: words::about(c.r#type).as_str(),
            status: Some(c.status),
            reason: words::why(c.reason).as_str(),
            message: &cut(&c.message, chars),
            observed_generation: Some(s.observed_generation),
        };
        set_condition(&mut all, &update, &time(now));
    }
    all
}

fn complete_to(o: Order) -> CompleteTo {
    CompleteTo { epoch: o.epoch.0, seq: o.seq, time: time(o.time), commit: o.id.to_string() }
}

/// What a copy without a Replica object looks like to a person who may adopt it; `None`: nothing is there.
pub fn orphan_of(s: &FilesystemStatus) -> Option<Orphan> {
    let base = s.base.as_ref()?;
    Some(Orphan {
        fs_id: s.fs_id.to_string(),
        role: match base.role {
            Role::Owner => CopyRole::Owner,
            Role::Replica => CopyRole::Replica,
        },
        epoch: base.epoch.0,
        attempt: base.attempt,
        claim: base.claim.as_ref().and_then(api_claim),
        origin: base.origin.map(|o| dotgraft_api::common::Origin { fs_id: o.fs_id.to_string(), commit: o.commit.to_string() }),
        capacity: base.capacity,
        history_limit: base.history_limit,
        head: s.head.map(|h| h.to_string()),
        complete_to: s.holding.complete_to.map(complete_to),
        commits: s.commits as u64,
        bytes: s.bytes,
        deleting: s.role == RoleStatus::Deleting,
    })
}

fn api_claim(c: &Claim) -> Option<dotgraft_api::common::Claim> {
    use dotgraft_api::common::ClaimKind;
    let kind = match c.kind.as_str() {
        "Dot" => ClaimKind::Dot,
        "Branch" => ClaimKind::Branch,
        _ => return None,
    };
    Some(dotgraft_api::common::Claim { kind, namespace: c.namespace.clone(), name: c.name.clone(), csi_name: c.csi_name.clone() })
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
