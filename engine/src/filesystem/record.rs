//! What a Filesystem writes to its journal: rows by key, so that the journal's size follows the state, not the history.
//!
//! Bodies are JSON with the version of their kind ([`Kind`]); what is newer is refused. The name of a record (not its key) is what fail points and
//! metrics know it by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::format::{FormatError, Kind};
use crate::ids::{BootId, CommitId, Epoch, FsId, MigId, NodeName, RequestUid, Timestamp};
use crate::model::{Claim, Commit, Origin, Place, Problem, ResumeToken};
use crate::run::JobRow;

use crate::words::Role;

/// How far the life of a copy has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// Recorded, not all of it on disk yet.
    Creating,
    /// In use.
    Active,
    /// A recorded intent to delete it.
    Deleting,
    /// Deleted; the row stays as tombstone until the Replica object goes.
    Gone,
}

/// The base row: what `fs.json` says too, plus what only this node needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Four independent facts, each of its own record, not the states of a machine.
#[allow(clippy::struct_excessive_bools)]
pub struct Base {
    /// Format version.
    pub version: u32,
    /// The Filesystem.
    pub fs_id: FsId,
    /// Owner or replica.
    pub role: Role,
    /// Creating, in use, deleting, gone.
    pub life: Life,
    /// Level-1 qgroup.
    pub qgroup: u64,
    /// The object it belongs to.
    pub claim: Option<Claim>,
    /// What it was branched from.
    pub origin: Option<Origin>,
    /// Bytes for the head.
    pub capacity: u64,
    /// Bytes for history on top.
    pub history_limit: u64,
    /// Bytes that it began with, of a clone: on top of both. A row of before doesn't say so, and its clone has no more than both.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub origin_bytes: u64,
    /// It was made here from its origin, and not moved since: what it began with is charged to its origin.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shares_origin: bool,
    /// `Proof` or `Manual`.
    pub fencing: String,
    /// `Delete` or `Retain`.
    pub reclaim_policy: String,
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// Attempt counter of authority.
    pub attempt: u64,
    /// `AuthOpen`: the epoch and boot for which authority was opened.
    pub opened: Option<Opened>,
    /// The head is fenced with this final commit.
    pub frozen: Option<CommitId>,
    /// `EImportFinish(true)`: the head is to be made from this commit; absent once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_from: Option<CommitId>,
    /// *reset-begun*: the head is to be replaced by this commit; what it held is the commit in `frozen`. Absent once that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_to: Option<Origin>,
    /// The highest resourceVersion of the Filesystem object that this owner's openings have seen, in that epoch: an API that shows less was
    /// restored to an older time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_version: Option<u64>,
    /// Authority went elsewhere without this copy's doing: what it has is kept aside, fenced, until a person drops it.
    #[serde(default)]
    pub superseded: bool,
    /// The journal that knew of this owner was lost, and a handoff may be under way that only it knew: nothing is opened or thawed until
    /// authority was asked, and a `pending` that nobody owns up to aborted (R8).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsure: bool,
    /// *headless*: the claim was deleted and only commits are kept, so the head goes, or has gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
}

// serde's signature
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Base {
    /// Bytes that all of it may take on this node.
    pub fn limit(&self) -> u64 {
        limit(self.role, self.capacity.saturating_add(self.history_limit), Began::of(self.origin_bytes, self.shares_origin))
    }
}

/// What a clone began with, bytes, as it is charged on one node; 0 of what is no clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Began {
    /// To its origin, whose extents it shares.
    Shared(u64),
    /// To itself.
    Own(u64),
}

impl Began {
    /// As the base row and `fs.json` have it.
    pub const fn of(bytes: u64, shared: bool) -> Self {
        if shared { Self::Shared(bytes) } else { Self::Own(bytes) }
    }
}

/// Limit of a copy in bytes (ADR 39). `own`: `capacity` and `historyLimit` together. An owner may write `own` beside what it began with, wherever
/// that is charged. What an owner has always fits where it is sent to: `own` and what it began with, which may come twice, once still shared with the
/// origin and once written anew since the volume was moved.
pub fn limit(role: Role, own: u64, began: Began) -> u64 {
    match (role, began) {
        (Role::Owner, Began::Shared(_)) => own,
        (Role::Owner, Began::Own(bytes)) => own.saturating_add(bytes),
        (Role::Replica, Began::Shared(bytes) | Began::Own(bytes)) => own.saturating_add(bytes.saturating_mul(2)),
    }
}

/// `AuthOpen` of migration.md §2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Opened {
    /// For this epoch.
    pub epoch: Epoch,
    /// In this boot.
    pub boot: BootId,
    /// Something was mounted under it. A row of 0.1 doesn't say so: then it is won once more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub used: bool,
}

/// A commit that an object asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRow {
    /// Format version.
    pub version: u32,
    /// The object.
    pub uid: RequestUid,
    /// The id it got, before anything was done: so it is made only once.
    pub id: CommitId,
    /// How far.
    pub state: RequestState,
    /// Parent it got.
    pub parent: Option<CommitId>,
    /// When it was taken.
    pub time: Timestamp,
    /// What it cost, if measured.
    pub changed_bytes: Option<u64>,
    /// What stands in the way.
    pub problem: Option<Problem>,
    /// The head is to be replaced by this commit, once this one is taken under a fence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_to: Option<Origin>,
}

/// How far a wanted commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestState {
    /// Intended, maybe on disk.
    Pending,
    /// On disk.
    Done,
    /// Its removal is intended.
    Removing,
    /// Removed.
    Removed,
}

/// A receive that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartialRow {
    /// Format version.
    pub version: u32,
    /// What is being received.
    pub target: Commit,
    /// On top of what.
    pub base: Option<CommitId>,
}

/// A durable point in a receive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointRow {
    /// Format version.
    pub version: u32,
    /// What the sender must prove.
    pub token: ResumeToken,
    /// The receiver's own state there (parser and hasher), opaque here.
    pub state: String,
}

/// A Branch or clone on this node that started from a commit here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OriginPinRow {
    /// Format version.
    pub version: u32,
    /// Whose.
    pub by: FsId,
    /// Which commit.
    pub commit: CommitId,
}

/// A handoff of authority in which this copy takes part (migration.md §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationRow {
    /// Format version.
    pub version: u32,
    /// How far.
    pub phase: MigrationPhase,
    /// The migration.
    pub mig: MigId,
    /// Its attempt; 0 until `pending` is set.
    pub attempt: u64,
    /// The epoch that ends with it.
    pub epoch: Epoch,
    /// The other side.
    pub peer: Place,
    /// The commit that has all of the head, once fenced.
    pub final_commit: Option<CommitId>,
    /// When it began here.
    pub started: Timestamp,
    /// When the head was fenced.
    pub frozen: Option<Timestamp>,
    /// Cursors that came along (importer).
    #[serde(default)]
    pub jobs: Vec<JobRow>,
    /// Intended commits that came along (importer).
    #[serde(default)]
    pub requests: Vec<RequestRow>,
    /// Who takes part beside the exporter, by node, and what each has acknowledged to it. The importer keeps none; a row of 0.1 has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parties: BTreeMap<NodeName, PartyRow>,
}

/// What a party of a handoff has acknowledged to the exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartyRow {
    /// The attempt of which it has said that it holds all, durably.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<u64>,
}

/// Durable steps of a handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrationPhase {
    /// `MigBegin`: nothing is decided; a restart cancels.
    Begun,
    /// The head is fenced; `pending` may be set or not.
    Frozen,
    /// `pending` was seen set; only a won Abort thaws (R2).
    Pending,
    /// Not handed over: to be thawed.
    Aborted,
    /// `EExport`: not thawed without the result of a compare-and-swap.
    Exported,
    /// `EImportStart`, on the importer: ambiguous, read-only.
    ImportStart,
    /// `Committed`, on the exporter: a replica that keeps the final commit until the new owner has opened, as authority may have to come
    /// back (R4). `jobs` and `requests` are what left with authority.
    Committed,
}

/// One row, put or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Base row, with the record's name for this transition.
    Base(&'static str, Box<Base>),
    /// A commit exists here.
    Commit(&'static str, Box<Commit>),
    /// A commit's removal is decided; the row goes, the request row (if any) remembers.
    CommitGone(CommitId),
    /// A commit's removal is intended: swept again at start.
    CommitRemoving(CommitId),
    /// It is off the disk.
    CommitRemoved(CommitId),
    /// State of a wanted commit.
    Request(&'static str, Box<RequestRow>),
    /// The object is gone and so is its commit.
    RequestGone(RequestUid),
    /// A receive is intended.
    Partial(Box<PartialRow>),
    /// A receive has got this far.
    Checkpoint(Box<CheckpointRow>),
    /// No receive is open any more.
    PartialGone,
    /// A job's durable part.
    Job(Box<JobRow>),
    /// A job is gone.
    JobGone(crate::ids::JobUid),
    /// A Branch started from a commit here.
    OriginPin(Box<OriginPinRow>),
    /// It is gone.
    OriginPinGone(FsId),
    /// A handoff has got this far.
    Migration(&'static str, Box<MigrationRow>),
    /// It is over; the name says how.
    MigrationGone(&'static str),
    /// Every row of this Filesystem goes.
    Forget,
}

/// A row as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Key and JSON.
    Put(String, Vec<u8>),
    /// Key.
    Delete(String),
    /// All keys.
    DeleteAll,
}

fn json<T: Serialize>(row: &T) -> Vec<u8> {
    // Our own rows hold strings, numbers and maps with string keys: serialising them can't fail.
    serde_json::to_vec(row).unwrap_or_default()
}

impl Record {
    /// What fail points and metrics call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Base(name, _) | Self::Commit(name, _) | Self::Request(name, _) | Self::Migration(name, _) | Self::MigrationGone(name) => {
                name
            }
            Self::CommitGone(_) => "commit-gone",
            Self::CommitRemoving(_) => "commit-removing",
            Self::CommitRemoved(_) => "commit-removed",
            Self::RequestGone(_) => "request-gone",
            Self::Partial(_) => "receive-intent",
            Self::Checkpoint(_) => "receive-checkpoint",
            Self::PartialGone => "receive-over",
            Self::Job(_) => "job",
            Self::JobGone(_) => "job-gone",
            Self::OriginPin(_) => "origin-pin",
            Self::OriginPinGone(_) => "origin-unpin",
            Self::Forget => "forget",
        }
    }

    /// The rows it changes.
    pub fn rows(&self) -> Vec<Row> {
        match self {
            Self::Base(_, b) => vec![Row::Put("base".into(), json(b))],
            Self::Commit(_, c) => vec![Row::Put(format!("commit/{}", c.id), json(c))],
            Self::CommitGone(id) => vec![Row::Delete(format!("commit/{id}"))],
            Self::CommitRemoving(id) => {
                vec![Row::Put(format!("removing/{id}"), json(&Kind::Removing.newest()))]
            }
            Self::CommitRemoved(id) => vec![Row::Delete(format!("removing/{id}"))],
            Self::Request(_, r) => vec![Row::Put(format!("request/{}", r.uid), json(r))],
            Self::RequestGone(uid) => vec![Row::Delete(format!("request/{uid}"))],
            Self::Partial(p) => vec![Row::Put("partial".into(), json(p))],
            Self::Checkpoint(c) => vec![Row::Put("checkpoint".into(), json(c))],
            Self::PartialGone => vec![Row::Delete("partial".into()), Row::Delete("checkpoint".into())],
            Self::Job(j) => vec![Row::Put(format!("job/{}", j.uid), json(j))],
            Self::JobGone(uid) => vec![Row::Delete(format!("job/{uid}"))],
            Self::OriginPin(p) => vec![Row::Put(format!("pin/{}", p.by), json(p))],
            Self::OriginPinGone(fs) => vec![Row::Delete(format!("pin/{fs}"))],
            Self::Migration(_, m) => vec![Row::Put("migration".into(), json(m))],
            Self::MigrationGone(_) => vec![Row::Delete("migration".into())],
            Self::Forget => vec![Row::DeleteAll],
        }
    }
}

/// Everything the journal knew, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Base row.
    pub base: Option<Base>,
    /// Commits.
    pub commits: Vec<Commit>,
    /// Commits whose removal was intended.
    pub removing: Vec<CommitId>,
    /// Wanted commits.
    pub requests: Vec<RequestRow>,
    /// Open receive.
    pub partial: Option<PartialRow>,
    /// Its last checkpoint.
    pub checkpoint: Option<CheckpointRow>,
    /// Jobs.
    pub jobs: Vec<JobRow>,
    /// Branches from here.
    pub pins: Vec<OriginPinRow>,
    /// A handoff in hand.
    pub migration: Option<MigrationRow>,
}

impl Recovered {
    /// Parses rows. What a newer program wrote closes the Filesystem, also a kind of row that is not known here.
    ///
    /// # Errors
    /// Which row can't be read, and why. The rows before it say nothing then.
    pub fn parse(rows: &[(String, Vec<u8>)]) -> Result<Self, FormatError> {
        let mut all = Self::default();
        for (key, body) in rows {
            let (kind, rest) = key.split_once('/').unwrap_or((key, ""));
            match kind {
                "base" => all.base = Some(Kind::Base.read(key, body)?),
                "commit" => all.commits.push(Kind::Commit.read(key, body)?),
                "removing" => all.removing.push(removing(key, rest, body)?),
                "request" => all.requests.push(Kind::Request.read(key, body)?),
                "partial" => all.partial = Some(partial(key, body)?),
                "checkpoint" => all.checkpoint = Some(Kind::Checkpoint.read(key, body)?),
                "job" => all.jobs.push(Kind::Job.read(key, body)?),
                "pin" => all.pins.push(Kind::OriginPin.read(key, body)?),
                "migration" => all.migration = Some(migration(key, body)?),
                _ => return Err(FormatError::Unknown { name: key.clone() }),
            }
        }
        Ok(all)
    }
}

/// Its body is the bare version.
fn removing(key: &str, id: &str, body: &[u8]) -> Result<CommitId, FormatError> {
    let damaged = |why: String| FormatError::Damaged { name: key.to_owned(), why };
    Kind::Removing.check(key, serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?)?;
    id.parse().map_err(|e: crate::ids::IdError| damaged(e.to_string()))
}

/// The commit in it has a version of its own.
fn partial(key: &str, body: &[u8]) -> Result<PartialRow, FormatError> {
    let row: PartialRow = Kind::Partial.read(key, body)?;
    Kind::Commit.check(key, row.target.version)?;
    Ok(row)
}

/// The rows that a handoff brought have versions of their own. Each phase but the first has its final commit: without one nothing could be
/// decided.
fn migration(key: &str, body: &[u8]) -> Result<MigrationRow, FormatError> {
    let row: MigrationRow = Kind::Migration.read(key, body)?;
    if row.phase != MigrationPhase::Begun && row.final_commit.is_none() {
        return Err(FormatError::Damaged { name: key.to_owned(), why: format!("phase {:?} without a final commit", row.phase) });
    }
    row.jobs.iter().try_for_each(|j| Kind::Job.check(key, j.version))?;
    row.requests.iter().try_for_each(|r| Kind::Request.check(key, r.version))?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_may_write_the_same_everywhere_and_what_it_has_fits_where_it_goes() {
        let (own, began) = (128, 100);
        let (home, away) = (limit(Role::Owner, own, Began::Shared(began)), limit(Role::Owner, own, Began::Own(began)));
        assert_eq!((home, away - began), (own, own), "beside what it began with");
        for shared in [Began::Shared(began), Began::Own(began)] {
            // All that an owner may have in its own group, and all that it may still share with its origin.
            let most = limit(Role::Owner, own, shared) + began;
            assert!(limit(Role::Replica, own, shared) >= most, "{shared:?}");
        }
        assert_eq!(limit(Role::Replica, own, Began::Own(0)), own, "what is no clone has what it always had");
        assert_eq!(limit(Role::Replica, u64::MAX, Began::Own(u64::MAX)), u64::MAX);
    }
}
