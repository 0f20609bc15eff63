//! Authority over a Filesystem, as the API server has it: quorum reads, and the compare-and-swap of rule R0 (migration.md §2).
//!
//! The swap sends the object back as it was read, unknown fields included, with nothing changed but
//! `status.authority.opened`. A conflict or a lost answer leads to a new read; what counts is only an answer that says yes.

use std::time::Duration;

use dotgraft_api::common::MANAGER_AGENT;
use dotgraft_api::{Filesystem, FilesystemPhase};
use dotgraft_engine::filesystem::{AuthorityView, Swap};
use dotgraft_engine::ids::{BootId, BootTime, Epoch, FsId, MigId};
use dotgraft_engine::model::{Place, Problem, Reason};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use super::{ClusterError, backoff, timed};
use crate::clock::boot_clock;

/// Reads and swaps of one `open` together at most.
const OPEN_DEADLINE: Duration = Duration::from_secs(25);

/// What is known of a Filesystem from before, in the journal: the API may have been restored to an older time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The highest epoch.
    pub epoch: Epoch,
    /// The highest resourceVersion of its object, if kept.
    pub resource_version: Option<u64>,
}

/// A Filesystem as a quorum read shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its phase.
    pub phase: FilesystemPhase,
    /// Who may write; `None`: `AuthorityUnknown`, or not given yet.
    pub authority: Option<Authority>,
    /// Version of the object; `None` if the server's isn't a number.
    pub resource_version: Option<u64>,
}

/// Authority, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The owner.
    pub owner: Place,
    /// The epoch.
    pub epoch: Epoch,
    /// The attempt.
    pub attempt: u64,
    /// Boot for which it was opened; only if that was in the current epoch.
    pub opened: Option<BootId>,
    /// Whose turn it would be, if a handoff is under way.
    pub pending: Option<Pending>,
}

/// A handoff under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its id.
    pub mig: MigId,
    /// Its attempt.
    pub attempt: u64,
    /// To whom.
    pub to: Place,
}

/// How `open` ended. Only `Opened` allows a writable head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenOutcome {
    /// The swap was won.
    Opened(Won),
    /// Somebody else owns it.
    NotOwner {
        /// Who.
        owner: Place,
        /// Since which epoch.
        epoch: Epoch,
    },
    /// A handoff is under way: stay closed (R2).
    Pending {
        /// To whom.
        to: Place,
    },
    /// It is being deleted.
    Deleting,
    /// The object says nothing of authority: `AuthorityUnknown`.
    NoAuthority,
    /// There is no such Filesystem in the API.
    Missing,
    /// The API shows an older time than this node has seen: `EpochRegression`.
    EpochRegression {
        /// What this node has seen.
        seen: Seen,
        /// What the API shows.
        api: Seen,
    },
    /// Nobody knows: no answer, a refusal, or too many conflicts.
    Failed(ClusterError),
}

/// A won opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Won {
    /// The epoch that was opened.
    pub epoch: Epoch,
    /// Attempt counter.
    pub attempt: u64,
    /// Version of the object after the swap.
    pub resource_version: Option<u64>,
    /// The Filesystem is in phase `New`: it may be created empty.
    pub new: bool,
    /// When the swap was sent, by the boot clock: for how long that counts, the engine says.
    pub sent: BootTime,
}

impl OpenOutcome {
    /// As the result of the actor's task.
    pub fn into_result(self) -> Result<Won, Problem> {
        let (reason, message) = match self {
            Self::Opened(won) => return Ok(won),
            Self::NotOwner { owner, epoch } => (
                Reason::NotOwner,
                format!("node {} (pool {}) is the owner, in epoch {epoch}: this copy stays closed", owner.node, owner.pool),
            ),
            Self::Pending { to } => {
                (Reason::Busy, format!("a handoff to node {} is under way: this copy stays closed until it ends", to.node))
            }
            Self::Deleting => (Reason::Deleting, "the Filesystem is being deleted".to_owned()),
            Self::NoAuthority => (Reason::AuthorityUnknown, "the API says nothing of an owner; `kubectl dot accept` sets one".to_owned()),
            Self::Missing => (
                Reason::AuthorityUnknown,
                "the API has no such Filesystem; the copy stays closed and is kept (`kubectl dot adopt`)".to_owned(),
            ),
            Self::EpochRegression { seen, api } => {
                let text = format!("this node has seen {seen}, the API shows {api}; was the API restored? `kubectl dot accept` goes on");
                (Reason::EpochRegression, text)
            }
            Self::Failed(e) => return Err(e.problem()),
        };
        Err(Problem::new(reason, message))
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {}", self.epoch)?;
        self.resource_version.map_or(Ok(()), |v| write!(f, " (version {v})"))
    }
}

/// Reads and opens authority. A cheap clone.
#[derive(Debug, Clone)]
pub struct AuthorityClient {
    api: Api<DynamicObject>,
    /// [`OPEN_DEADLINE`] and the first pause; shorter in tests.
    deadline: Duration,
    pause: Duration,
}

impl AuthorityClient {
    /// Over `client`.
    pub fn new(client: Client) -> Self {
        let api = Api::all_with(client, &ApiResource::erase::<Filesystem>(&()));
        Self { api, deadline: OPEN_DEADLINE, pause: Duration::from_millis(50) }
    }

    /// The Filesystem now, from a quorum; `None` if the API has no such object.
    pub async fn get(&self, fs: FsId) -> Result<Option<View>, ClusterError> {
        self.read(fs).await?.map(|object| view(&object)).transpose()
    }

    /// Whether a quorum shows it in phase `Deleting`. An absent object is not a deleting one (`StaleIntent`, design §2).
    pub async fn is_deleting(&self, fs: FsId) -> Result<bool, ClusterError> {
        Ok(self.get(fs).await?.is_some_and(|v| v.phase == FilesystemPhase::Deleting))
    }

    /// Whether a quorum shows it in phase `Headless`: the head may go.
    pub async fn is_headless(&self, fs: FsId) -> Result<bool, ClusterError> {
        Ok(self.get(fs).await?.is_some_and(|v| v.phase == FilesystemPhase::Headless))
    }

    /// Rule R0: opens `fs` for writing at `me` for this `boot`, if `me` owns it with nothing pending.
    pub async fn open(&self, fs: FsId, me: &Place, boot: BootId, seen: Seen) -> OpenOutcome {
        let deadline = Instant::now() + self.deadline;
        let mut retry = 0;
        loop {
            let last = match self.try_open(fs, me, boot, seen).await {
                // Conflict: somebody wrote in between. Unreachable: the swap may have happened, or not. Missing: the object
                // went away under the swap. Only a new read tells, and only a swap that is answered counts.
                Err(e @ (ClusterError::Conflict | ClusterError::Unreachable { .. } | ClusterError::Missing)) => e,
                Err(e) => return OpenOutcome::Failed(e),
                Ok(outcome) => return outcome,
            };
            let pause = backoff(self.pause, Duration::from_secs(2), retry);
            if Instant::now() + pause >= deadline {
                return OpenOutcome::Failed(last);
            }
            tracing::debug!(%fs, error = %last, retry, "opening again");
            tokio::time::sleep(pause).await;
            retry += 1;
        }
    }

    async fn try_open(&self, fs: FsId, me: &Place, boot: BootId, seen: Seen) -> Result<OpenOutcome, ClusterError> {
        let Some(mut object) = self.read(fs).await? else { return Ok(OpenOutcome::Missing) };
        let before = view(&object)?;
        let epoch = match may_open(&before, me, seen) {
            Ok(epoch) => epoch,
            Err(outcome) => return Ok(outcome),
        };
        let authority = object.data.pointer_mut("/status/authority").and_then(|a| a.as_object_mut());
        let authority = authority.ok_or_else(|| ClusterError::Malformed { message: "status.authority is no object".into() })?;
        authority.insert("opened".into(), json!({ "epoch": epoch.0, "bootId": boot.to_string() }));
        // Sent even if this boot has it open already: an answered swap is the proof, a read isn't.
        let params = PostParams { field_manager: Some(MANAGER_AGENT.into()), ..PostParams::default() };
        let sent = boot_clock();
        let after = view(&timed(self.api.replace_status(&fs.to_string(), &params, &object)).await?)?;
        match (may_open(&after, me, seen), after.authority) {
            (Ok(_), Some(a)) if a.epoch == epoch && a.opened == Some(boot) => Ok(OpenOutcome::Opened(Won {
                epoch,
                attempt: a.attempt,
                resource_version: after.resource_version,
                new: after.phase == FilesystemPhase::New,
                sent,
            })),
            // The server said yes but shows something else: a field was pruned or mutated. Never take that for a win.
            _ => Ok(OpenOutcome::Failed(ClusterError::Malformed {
                message: "the API server did not keep `opened`; is the CRD older than this agent?".into(),
            })),
        }
    }

    /// Makes a swap if its guard holds (migration.md R3, R6), and returns what authority says then, as the API server confirmed it. An
    /// unknown outcome is found out by reading again: each swap is idempotent, as its guard holds only once.
    pub async fn swap(&self, fs: FsId, me: &Place, swap: &Swap) -> Result<AuthorityView, Problem> {
        let deadline = Instant::now() + self.deadline;
        let mut retry = 0;
        loop {
            let error = match self.try_swap(fs, me, swap).await {
                Ok(view) => return Ok(view),
                Err(e @ (ClusterError::Conflict | ClusterError::Unreachable { .. })) => e,
                Err(e) => return Err(e.problem()),
            };
            let pause = backoff(self.pause, Duration::from_secs(2), retry);
            if Instant::now() + pause >= deadline {
                return Err(error.problem());
            }
            tokio::time::sleep(pause).await;
            retry += 1;
        }
    }

    async fn try_swap(&self, fs: FsId, me: &Place, swap: &Swap) -> Result<AuthorityView, ClusterError> {
        let mut object = self.read(fs).await?.ok_or(ClusterError::Missing)?;
        let before = view(&object)?;
        let Some(change) = swapped(&before, me, swap) else { return seen_by_engine(&before) };
        let authority = object.data.pointer_mut("/status/authority").and_then(|a| a.as_object_mut());
        let authority = authority.ok_or_else(|| ClusterError::Malformed { message: "status.authority is no object".into() })?;
        change.apply(authority);
        let params = PostParams { field_manager: Some(MANAGER_AGENT.into()), ..PostParams::default() };
        let after = timed(self.api.replace_status(&fs.to_string(), &params, &object)).await?;
        seen_by_engine(&view(&after)?)
    }

    /// GET without resourceVersion: the newest, confirmed by a quorum of etcd.
    async fn read(&self, fs: FsId) -> Result<Option<DynamicObject>, ClusterError> {
        match timed(self.api.get(&fs.to_string())).await {
            Ok(object) => Ok(Some(object)),
            Err(ClusterError::Missing) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The guard of R0 on one state of the object.
fn may_open(view: &View, me: &Place, seen: Seen) -> Result<Epoch, OpenOutcome> {
    let Some(authority) = &view.authority else {
        // Without authority a restored API can't be told from one that never gave any; both stay closed.
        return Err(if view.phase == FilesystemPhase::Deleting { OpenOutcome::Deleting } else { OpenOutcome::NoAuthority });
    };
    let api = Seen { epoch: authority.epoch, resource_version: view.resource_version };
    let older = matches!((seen.resource_version, api.resource_version), (Some(s), Some(a)) if a < s);
    if api.epoch < seen.epoch || older {
        return Err(OpenOutcome::EpochRegression { seen, api });
    }
    if view.phase == FilesystemPhase::Deleting {
        return Err(OpenOutcome::Deleting);
    }
    if authority.owner != *me {
        return Err(OpenOutcome::NotOwner { owner: authority.owner.clone(), epoch: authority.epoch });
    }
    match &authority.pending {
        Some(pending) => Err(OpenOutcome::Pending { to: pending.to.clone() }),
        None => Ok(authority.epoch),
    }
}

/// What a swap changes in `status.authority`.
enum Change {
    /// Sets `pending`.
    Pend(serde_json::Value),
    /// owner := `pending.to`, epoch + 1.
    Commit(Place, u64),
    /// Clears `pending`, attempt + 1.
    Abort(u64),
}

impl Change {
    fn apply(self, authority: &mut serde_json::Map<String, serde_json::Value>) {
        match self {
            Self::Pend(pending) => {
                authority.insert("pending".into(), pending);
            }
            Self::Commit(owner, epoch) => {
                authority.insert("owner".into(), json!({ "node": owner.node.as_str(), "pool": owner.pool.to_string() }));
                authority.insert("epoch".into(), json!(epoch));
                authority.remove("pending");
                authority.remove("opened");
            }
            Self::Abort(attempt) => {
                authority.insert("attempt".into(), json!(attempt));
                authority.remove("pending");
            }
        }
    }
}

/// The guards of R3 on one state of the object; `None`: nothing to change.
fn swapped(view: &View, me: &Place, swap: &Swap) -> Option<Change> {
    let authority = view.authority.as_ref()?;
    let deleting = view.phase == FilesystemPhase::Deleting;
    let exactly = |mig: MigId, attempt: u64, epoch: Epoch| {
        authority.pending.as_ref().filter(|p| authority.epoch == epoch && (p.mig, p.attempt) == (mig, attempt))
    };
    match swap {
        Swap::Ask => None,
        Swap::Pend { mig, epoch, to, final_commit } => {
            let may = authority.owner == *me && authority.epoch == *epoch && authority.pending.is_none() && !deleting;
            may.then(|| {
                let to = json!({ "node": to.node.as_str(), "pool": to.pool.to_string() });
                let attempt = authority.attempt;
                Change::Pend(json!({ "mig": mig.to_string(), "attempt": attempt, "to": to, "finalCommit": final_commit.to_string() }))
            })
        }
        // A deleting Filesystem changes owners no more.
        Swap::Commit { mig, attempt, epoch } => {
            exactly(*mig, *attempt, *epoch).filter(|_| !deleting).map(|p| Change::Commit(p.to.clone(), epoch.0.saturating_add(1)))
        }
        Swap::Abort { mig, attempt, epoch } => exactly(*mig, *attempt, *epoch).map(|p| Change::Abort(p.attempt.saturating_add(1))),
    }
}

fn seen_by_engine(view: &View) -> Result<AuthorityView, ClusterError> {
    let authority = view
        .authority
        .as_ref()
        .ok_or_else(|| ClusterError::Malformed { message: "the API says nothing of an owner; `kubectl dot accept` sets one".into() })?;
    Ok(AuthorityView {
        owner: authority.owner.clone(),
        epoch: authority.epoch,
        attempt: authority.attempt,
        pending: authority.pending.as_ref().map(|p| (p.mig, p.attempt)),
        deleting: view.phase == FilesystemPhase::Deleting,
    })
}

/// Parses what came; anything that isn't as it should be is an error, never a default.
fn view(object: &DynamicObject) -> Result<View, ClusterError> {
    let malformed = |e: &dyn std::fmt::Display| ClusterError::Malformed { message: e.to_string() };
    let fs: Filesystem = object.clone().try_parse().map_err(|e| malformed(&e))?;
    let place = |p: &dotgraft_api::Place| -> Result<Place, ClusterError> {
        Ok(Place { node: p.node.parse().map_err(|e| malformed(&e))?, pool: p.pool.parse().map_err(|e| malformed(&e))? })
    };
    let status = fs.status.clone().unwrap_or_default();
    // The type's default is `New`, which allows an empty volume: here it must have been said.
    if status.authority.is_some() && object.data.pointer("/status/phase").is_none() {
        return Err(malformed(&"there is an authority, but no phase"));
    }
    let authority = match &status.authority {
        None => None,
        Some(a) => Some(Authority {
            owner: place(&a.owner)?,
            epoch: Epoch(a.epoch),
            attempt: a.attempt,
            opened: match &a.opened {
                Some(o) if o.epoch == a.epoch => Some(o.boot_id.parse().map_err(|e| malformed(&e))?),
                _ => None,
            },
            pending: match &a.pending {
                None => None,
                Some(p) => Some(Pending { mig: p.mig.parse().map_err(|e| malformed(&e))?, attempt: p.attempt, to: place(&p.to)? }),
            },
        }),
    };
    Ok(View { phase: status.phase, authority, resource_version: fs.resource_version().and_then(|v| v.parse().ok()) })
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
