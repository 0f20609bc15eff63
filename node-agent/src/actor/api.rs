//! What actors ask of the API server, and tell it: opening, the question whether a deletion is meant, statuses, events.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dotgraft_api::Replica;
use dotgraft_api::replica::ReplicaStatus;
use dotgraft_engine::authority::{Read, Seen};
use dotgraft_engine::filesystem::{FilesystemStatus, Here, Note, Swap, TaskDone};
use dotgraft_engine::ids::{FsId, Timestamp};
use dotgraft_engine::model::Problem;
use kube::ResourceExt;

use super::translate;
use crate::cluster::authority::AuthorityClient;
use crate::cluster::events::Events;
use crate::cluster::status::StatusWriter;

/// The API server, as actors see it.
pub struct ClusterApi {
    here: Here,
    authority: AuthorityClient,
    status: StatusWriter,
    events: Events,
    known: Mutex<BTreeMap<FsId, Known>>,
}

/// A Replica object that exists.
struct Known {
    name: String,
    uid: String,
    /// As last written or found: conditions keep their times.
    status: Option<ReplicaStatus>,
}

impl ClusterApi {
    /// For one node.
    pub fn new(here: Here, authority: AuthorityClient, status: StatusWriter, events: Events) -> Self {
        Self { here, authority, status, events, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<FsId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Replica object is there.
    pub fn attach(&self, fs: FsId, replica: &Replica) {
        self.status.observe(fs, replica);
        let uid = replica.uid().unwrap_or_default();
        let mut known = self.known();
        let entry = known.entry(fs).or_insert_with(|| Known { name: replica.name_any(), uid: String::new(), status: None });
        if entry.uid != uid {
            // A new object under the same name has no status: nothing of the old one counts as written.
            entry.status = None;
            entry.uid = uid;
        }
        if entry.status.is_none() {
            entry.status.clone_from(&replica.status);
        }
    }

    /// It is gone.
    pub fn detach(&self, fs: FsId) {
        self.known().remove(&fs);
        self.status.forget(fs);
    }

    /// R0 (migration.md §2).
    ///
    /// # Errors
    ///
    /// As [`OpenOutcome::into_result`](crate::cluster::authority::OpenOutcome::into_result).
    pub async fn open(&self, fs: FsId, seen: Seen) -> Result<TaskDone, Problem> {
        let won = self.authority.open(fs, &self.here.place, self.here.boot, seen).await.into_result()?;
        let (epoch, attempt, version) = (won.epoch, won.attempt, won.resource_version);
        Ok(TaskDone::Opened { epoch, attempt, new: won.new, sent: won.sent, version })
    }

    /// A swap of authority (migration.md R3, R6), or a read; what authority says after it.
    ///
    /// # Errors
    ///
    /// As [`AuthorityClient::swap`]. A swap that the rules forbid is no error: what authority says instead is the answer.
    pub async fn swap(&self, fs: FsId, swap: &Swap) -> Result<Read, Problem> {
        self.authority.swap(fs, &self.here.place, swap).await
    }

    /// What a quorum read shows of it; `None`: there is no such object.
    ///
    /// # Errors
    ///
    /// As [`AuthorityClient::get`].
    pub async fn look(&self, fs: FsId) -> Result<Option<Read>, Problem> {
        self.authority.get(fs).await.map_err(|e| e.problem())
    }

    /// Is only its history kept (`Headless`)? By a quorum read.
    ///
    /// # Errors
    ///
    /// As [`AuthorityClient::get`].
    pub async fn is_headless(&self, fs: FsId) -> Result<bool, Problem> {
        self.authority.is_headless(fs).await.map_err(|e| e.problem())
    }

    /// A copy's status, to its Replica object, if there is one.
    pub fn publish(&self, status: &FilesystemStatus, now: Timestamp) {
        let mut known = self.known();
        let Some(entry) = known.get_mut(&status.fs_id) else { return };
        let next = translate::status_of(status, entry.status.as_ref(), now);
        if entry.status.as_ref() != Some(&next) {
            entry.status = Some(next.clone());
            self.status.put(status.fs_id, &entry.name, &entry.uid, next);
        }
    }

    /// A copy is closed, as its rows or files can't be read. What its object said last stays, for nothing newer is known; only the
    /// conditions change, and nothing counts as observed.
    pub fn publish_closed(&self, closed: &FilesystemStatus, now: Timestamp) {
        let mut known = self.known();
        let Some(entry) = known.get_mut(&closed.fs_id) else { return };
        let mut next = entry.status.clone().unwrap_or_default();
        let said = translate::status_of(closed, entry.status.as_ref(), now);
        next.phase = said.phase;
        next.conditions = said.conditions;
        if entry.status.as_ref() != Some(&next) {
            entry.status = Some(next.clone());
            self.status.put(closed.fs_id, &entry.name, &entry.uid, next);
        }
    }

    /// An event about a copy.
    pub fn tell(&self, fs: FsId, note: &Note) {
        if let Some(entry) = self.known().get(&fs) {
            self.events.say_of(&entry.name, &entry.uid, note.warning, &note.reason, &note.message);
        }
    }

    /// Statuses that are newer than what the API server has.
    pub fn behind(&self) -> usize {
        self.status.behind()
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
