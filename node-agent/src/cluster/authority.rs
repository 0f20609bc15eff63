//! Authority over a Filesystem, as the API server has it: quorum reads and compare-and-swap. The rules stand in
//! [`dotgraft_engine::authority`]; here is how they are carried out.
//!
//! A swap sends the object back as it was read, unknown fields included, with nothing changed but what the rule changes. A conflict or
//! a lost answer leads to a new read; what counts is only an answer that says yes.

use std::time::Duration;

use dotgraft_api::Filesystem;
use dotgraft_api::common::MANAGER_AGENT;
use dotgraft_engine::authority::{self, Authority, Phase, Read, Refusal, Seen};
use dotgraft_engine::filesystem::Swap;
use dotgraft_engine::ids::{BootId, BootTime, Epoch, FsId};
use dotgraft_engine::model::{Place, Problem, Reason};
use kube::Client;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::ApiResource;
use serde_json::Value;
use tokio::time::Instant;

use super::{ClusterError, backoff, timed};
use crate::clock::boot_clock;

/// Reads and swaps of one `open` together at most.
const OPEN_DEADLINE: Duration = Duration::from_secs(25);

/// How `open` ended. Only `Opened` allows a writable head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenOutcome {
    /// The swap was won.
    Opened(Won),
    /// The rules forbid it.
    Refused(Refusal),
    /// There is no such Filesystem in the API.
    Missing,
    /// Nobody knows: no answer, a refusal by the server, or too many conflicts.
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
    ///
    /// # Errors
    ///
    /// The rules' refusal, by its reason; `AuthorityUnknown` if the API has no such Filesystem, so that the copy stays closed until a person
    /// adopts it; what kept the API server's answer away. The engine asks again after a while.
    pub fn into_result(self) -> Result<Won, Problem> {
        match self {
            Self::Opened(won) => Ok(won),
            Self::Refused(refusal) => Err(refusal.problem()),
            Self::Missing => {
                let text = "the API has no such Filesystem; the copy stays closed and is kept (`kubectl dot adopt`)";
                Err(Problem::new(Reason::AuthorityUnknown, text))
            }
            Self::Failed(e) => Err(e.problem()),
        }
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
    ///
    /// # Errors
    ///
    /// No quorum answers, or it answers something that can't be read: then nobody knows, which is no "none".
    pub async fn get(&self, fs: FsId) -> Result<Option<Read>, ClusterError> {
        self.read(fs).await?.map(|object| read_of(&object)).transpose()
    }

    /// Whether a quorum shows it in phase `Headless`: the head may go.
    ///
    /// # Errors
    ///
    /// As [`AuthorityClient::get`].
    pub async fn is_headless(&self, fs: FsId) -> Result<bool, ClusterError> {
        Ok(self.get(fs).await?.is_some_and(|v| v.phase == Phase::Headless))
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
        let Some(object) = self.read(fs).await? else { return Ok(OpenOutcome::Missing) };
        let before = read_of(&object)?;
        let shall = match authority::open(&before, me, boot, seen) {
            Ok(shall) => shall,
            Err(refusal) => return Ok(OpenOutcome::Refused(refusal)),
        };
        // Sent even if this boot has it open already: an answered swap is the proof, a read isn't.
        let sent = boot_clock();
        let after = self.write(fs, object, &before, &shall).await?;
        if after.authority.as_ref() != Some(&shall) || after.phase != before.phase {
            // The server said yes but shows something else: a field was pruned or mutated. Never take that for a win.
            let message = "the API server did not keep `opened`; is the CRD older than this agent?".into();
            return Ok(OpenOutcome::Failed(ClusterError::Malformed { message }));
        }
        let new = after.phase == Phase::New;
        let (epoch, attempt) = (shall.epoch, shall.attempt);
        Ok(OpenOutcome::Opened(Won { epoch, attempt, resource_version: after.version, new, sent }))
    }

    /// Makes a swap if its guard holds (migration.md R3, R6), and returns what authority says then, as the API server confirmed it. An
    /// unknown outcome is found out by reading again: each swap is idempotent, as its guard holds only once.
    ///
    /// # Errors
    ///
    /// `Unreachable` if nothing was heard until the deadline, and `Busy` if others wrote all the time: in the first case the swap may have been
    /// made, and asking again finds out. `NotFound` if there is no such Filesystem; the server's refusal.
    pub async fn swap(&self, fs: FsId, me: &Place, swap: &Swap) -> Result<Read, Problem> {
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

    async fn try_swap(&self, fs: FsId, me: &Place, swap: &Swap) -> Result<Read, ClusterError> {
        let object = self.read(fs).await?.ok_or(ClusterError::Missing)?;
        let before = read_of(&object)?;
        match swap.of(&before, me) {
            Ok(Some(shall)) => self.write(fs, object, &before, &shall).await,
            Ok(None) => Ok(before),
            Err(refusal) => {
                tracing::debug!(%fs, %refusal, ?swap, "not swapped");
                Ok(before)
            }
        }
    }

    /// Sends the object back as it was read, with `shall` in place of its authority, under the version that was read.
    async fn write(&self, fs: FsId, mut object: DynamicObject, was: &Read, shall: &Authority) -> Result<Read, ClusterError> {
        let authority = object.data.pointer_mut("/status/authority").and_then(|a| a.as_object_mut());
        let authority = authority.ok_or_else(|| ClusterError::Malformed { message: "status.authority is no object".into() })?;
        put(authority, was.authority.as_ref(), shall)?;
        let params = PostParams { field_manager: Some(MANAGER_AGENT.into()), ..PostParams::default() };
        read_of(&timed(self.api.replace_status(&fs.to_string(), &params, &object)).await?)
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

/// Changes what differs, and nothing else: fields that this program doesn't know stay as they are.
fn put(object: &mut serde_json::Map<String, Value>, was: Option<&Authority>, shall: &Authority) -> Result<(), ClusterError> {
    let fields = |a: &Authority| match serde_json::to_value(dotgraft_api::Authority::from(a)) {
        Ok(Value::Object(fields)) => Ok(fields),
        other => Err(ClusterError::Malformed { message: format!("authority is no JSON object: {other:?}") }),
    };
    let (was, shall) = (was.map(fields).transpose()?.unwrap_or_default(), fields(shall)?);
    for gone in was.keys().filter(|k| !shall.contains_key(*k)) {
        object.remove(gone);
    }
    object.extend(shall.into_iter().filter(|(k, v)| was.get(k) != Some(v)));
    Ok(())
}

/// Parses what came; anything that isn't as it should be is an error, never a default.
fn read_of(object: &DynamicObject) -> Result<Read, ClusterError> {
    let malformed = |e: &dyn std::fmt::Display| ClusterError::Malformed { message: e.to_string() };
    let fs: Filesystem = object.clone().try_parse().map_err(|e| malformed(&e))?;
    let read = dotgraft_api::authority::read(&fs).map_err(|e| malformed(&e))?;
    // The type's default is `New`, which allows an empty volume: here it must have been said.
    if read.authority.is_some() && object.data.pointer("/status/phase").is_none() {
        return Err(malformed(&"there is an authority, but no phase"));
    }
    Ok(read)
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
