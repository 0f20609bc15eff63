//! The seam to the disk: one trait, one real implementation (`btrfs`). Called only by a Filesystem's actor and its tasks.
//!
//! Every call blocks and runs on a blocking thread. Every call is idempotent: what is already there, or already gone, is
//! success, because after a crash the actor repeats what its journal does not show as done. "Durable" means: still there
//! after the power went, by the rules of storage.md §2.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use dotgraft_engine::filesystem::Began;
pub use dotgraft_engine::filesystem::{MountMode, MountWhat, Nested, Role};
use dotgraft_engine::ids::{BootId, CommitId, Epoch, FsId, PoolId};
use dotgraft_engine::model::{Claim, Commit, Origin, Problem, Reason};
use serde::{Deserialize, Serialize};

/// What a driver call can end with.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Pool, qgroup or metadata space is used up.
    #[error("no space: {0}")]
    NoSpace(String),
    /// The named thing is not in the pool.
    #[error("not found: {0}")]
    NotFound(String),
    /// What is nested in the head can't be made part of a commit.
    #[error("{0}: a commit has nested subvolumes as directories; delete this one or move it out of the volume, then it goes on by itself")]
    NestedSubvolume(String),
    /// A file in it is in use as swap.
    #[error(
        "{0}: a swap file in the volume is in use, and btrfs neither takes a snapshot of such a volume nor deletes it: `swapoff` it, then this goes on by itself"
    )]
    SwapFile(String),
    /// Someone has it mounted.
    #[error("mounted by {0}")]
    Mounted(String),
    /// The head is not frozen, or a write slipped between snapshot and check of a final commit.
    #[error("the head changed while it was being fenced: {0}")]
    FenceRaced(String),
    /// The pool is read-only, failed, or another pool than expected.
    #[error("pool failed: {0}")]
    PoolFailed(String),
    /// A checksum error: the data on disk is damaged.
    #[error("checksum error: {0}")]
    CorruptDisk(String),
    /// A file of ours in the pool was written by a newer program; it is left alone.
    #[error("{0}")]
    FormatNewer(String),
    /// A file of ours in the pool can't be understood.
    #[error("unreadable metadata: {0}")]
    BadMetadata(String),
    /// This kernel or pool can't do it.
    #[error("not supported here: {0}")]
    Unsupported(String),
    /// Any other system error, with what was being done.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl DriverError {
    /// The closed kind, for conditions, metrics and gRPC codes.
    pub fn kind(&self) -> Reason {
        match self {
            Self::NoSpace(_) => Reason::NoSpace,
            Self::NotFound(_) => Reason::NotFound,
            Self::NestedSubvolume(_) => Reason::NestedSubvolume,
            Self::SwapFile(_) => Reason::SwapFile,
            Self::Mounted(_) => Reason::Mounted,
            Self::FenceRaced(_) => Reason::Busy,
            Self::PoolFailed(_) => Reason::PoolFailed,
            Self::CorruptDisk(_) => Reason::CorruptDisk,
            Self::FormatNewer(_) => Reason::FormatNewer,
            Self::BadMetadata(_) | Self::Io { .. } => Reason::Internal,
            Self::Unsupported(_) => Reason::Unsupported,
        }
    }
    /// The error that a stream of [`Driver::send`] ended with, out of what its `Read` returned.
    pub fn of_read(error: &std::io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
    /// As the engine wants it.
    pub fn problem(&self) -> Problem {
        Problem::new(self.kind(), self.to_string())
    }
}

/// `fs.json` of storage.md §1: what a copy knows of itself, enough to adopt it without journal and API objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FsMeta {
    /// Version of [`dotgraft_engine::format::Kind::FsFile`]; a newer one is refused.
    pub version: u32,
    /// The Filesystem.
    pub fs_id: FsId,
    /// The pool it was written in; another pool's copy is not ours.
    pub pool: PoolId,
    /// Owner or Replica.
    pub role: Role,
    /// Active or Deleting.
    pub state: FsState,
    /// The object it belongs to.
    pub claim: Option<Claim>,
    /// Bytes the head may hold.
    pub capacity: u64,
    /// Bytes that history may hold on top.
    pub history_limit: u64,
    /// Bytes that a clone began with (ADR 39); 0: not known, or no clone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub origin_bytes: u64,
    /// They are charged to its origin on this pool.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shares_origin: bool,
    /// `Proof` or `Manual`.
    pub fencing: String,
    /// `Delete` or `Retain`.
    pub reclaim_policy: String,
    /// What it was branched from.
    pub origin: Option<Origin>,
    /// Number `n` of the level-1 qgroup `1/n` that holds every subvolume of it on this pool.
    pub qgroup: u64,
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// Attempt counter of authority (migration.md §2).
    pub attempt: u64,
    /// Boot in which the owner opened `epoch`, if it did.
    pub opened: Option<BootId>,
    /// Only its commits are kept: there is no head, or soon none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
}

impl FsMeta {
    /// Bytes that all of it may take on its pool.
    pub fn limit(&self) -> u64 {
        let own = self.capacity.saturating_add(self.history_limit);
        dotgraft_engine::filesystem::limit(self.role, own, Began::of(self.origin_bytes, self.shares_origin))
    }
}

// serde's signature
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// State in `fs.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsState {
    /// In use.
    Active,
    /// A recorded intent to delete it exists.
    Deleting,
}

/// The pool as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolInfo {
    /// btrfs filesystem UUID.
    pub id: PoolId,
    /// Highest send stream version.
    pub stream_version: u32,
    /// `uname -r`.
    pub kernel_release: String,
    /// What it can do: `simple-quotas`, `send-v2`, …; sorted.
    pub features: Vec<String>,
    /// Bytes that the configuration asks for where the pool's file has another size: an existing file keeps its own.
    pub asked_size: Option<u64>,
}

/// Room in the pool, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Size of the pool.
    pub total: u64,
    /// What may still be written, the 5 % reserve (at least 1 GiB, at most a quarter of the pool) left out.
    pub available: u64,
    /// Unallocated plus free metadata space; see [`Space::metadata_floor`].
    pub metadata_free: u64,
    /// The kernel forced the pool read-only.
    pub read_only: bool,
}

impl Space {
    /// Most that a pool keeps free for metadata, bytes (storage.md §1).
    const METADATA_FLOOR: u64 = 512 << 20;

    /// Metadata space under which commits and receives are refused, bytes: 512 MiB, in pools under 8 GiB a sixteenth of the pool (there
    /// the kernel's metadata chunks are smaller too, and 512 MiB would refuse long before it is full).
    pub fn metadata_floor(&self) -> u64 {
        Self::METADATA_FLOOR.min(self.total / 16)
    }

    /// Itself, if a commit, a head or a receive may be begun in it.
    ///
    /// # Errors
    ///
    /// `PoolFailed` in a pool that the kernel has made read-only; `NoSpace` under [`Space::metadata_floor`], as a file system whose
    /// metadata is full can't even delete.
    pub fn checked(self) -> Result<Self, DriverError> {
        if self.read_only {
            let text = "the kernel has made the pool read-only; see its log, then replace the disk or restart the node";
            return Err(DriverError::PoolFailed(text.to_owned()));
        }
        let floor = self.metadata_floor();
        if self.metadata_free < floor {
            return Err(DriverError::NoSpace(format!(
                "only {} MiB are left for metadata in the pool (needs {} MiB): delete commits or Dots, or enlarge the pool",
                self.metadata_free >> 20,
                floor >> 20
            )));
        }
        Ok(self)
    }
}

/// Room of one Filesystem by its level-1 qgroup, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Used by head, commits and incoming together.
    pub bytes: u64,
    /// Their common limit; 0 = none.
    pub limit: u64,
}

/// What a look at the quota groups has done and found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tidied {
    /// Groups of Filesystems that are gone, removed now.
    pub removed: usize,
    /// Bytes charged to Filesystems that are gone, or to none: volumes that are there share them.
    pub left: u64,
    /// Deleted subvolumes of no group, charged to the head that uses their extents now.
    pub strays: Vec<Stray>,
}

/// A subvolume that was outside of its Filesystem's level-1 qgroup, and has been put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The Filesystem.
    pub fs: FsId,
    /// Path below its directory; of one that a user made, below the head or the subvolume that it is nested in.
    pub path: String,
    /// Number of the qgroup it belongs in.
    pub qgroup: u64,
    /// It was in another Filesystem's qgroup: what is written in it was charged there.
    pub charged_others: bool,
}

/// What a commit cost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitDone {
    /// Data bytes in extents newer than the parent's generation, if it was measured.
    pub changed_bytes: Option<u64>,
    /// What was nested in it, if anything and if it was taken just now.
    pub folded: Option<Nested>,
}

/// Who has something mounted: a line for a condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// A process in the mount namespace that sees it.
    pub pid: i32,
    /// Its command name.
    pub command: String,
    /// The mount point there.
    pub mount_point: PathBuf,
}

/// How many holders a message names.
const NAMED_HOLDERS: usize = 3;

/// That nobody has it mounted.
///
/// # Errors
///
/// `Mounted`, with the first few of `holders`.
pub fn held_by_nobody(holders: &[Holder]) -> Result<(), DriverError> {
    if holders.is_empty() {
        return Ok(());
    }
    let name = |h: &Holder| format!("{} (pid {}) at {}", h.command, h.pid, h.mount_point.display());
    let mut text: Vec<String> = holders.iter().take(NAMED_HOLDERS).map(name).collect();
    if let Some(more @ 1..) = holders.len().checked_sub(NAMED_HOLDERS) {
        text.push(format!("and {more} more"));
    }
    Err(DriverError::Mounted(text.join(", ")))
}

/// Proof of a final commit: the snapshot holds all that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// Generation of head and snapshot, equal.
    pub generation: u64,
    /// What is nested in the head, if anything.
    pub folded: Option<Nested>,
}

/// What is on disk of one Filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// `fs.json`, if it can be read.
    pub meta: Option<FsMeta>,
    /// There is a head subvolume.
    pub head: bool,
    /// Complete commits: read-only subvolume with readable metadata; oldest first by (time, id).
    pub commits: Vec<Commit>,
    /// Names under `commits/` without a subvolume or without readable metadata.
    pub broken: Vec<String>,
    /// Targets with a partial receive.
    pub incoming: Vec<CommitId>,
    /// Checkpoints: (target, stream offset).
    pub checkpoints: Vec<(CommitId, u64)>,
}

/// A work subvolume that a stream is applied to.
#[derive(Debug)]
pub struct Incoming {
    /// Its root directory.
    pub root: OwnedFd,
    /// Root of the base commit, read-only: the clone source of an increment.
    pub base: Option<OwnedFd>,
}

/// All that an actor and its tasks do to the disk.
///
/// Beside what a method names, each can end with what the kernel answers: `NoSpace`, `PoolFailed` where the pool is read-only or its disk
/// fails, `CorruptDisk`, `Unsupported`, else `Io`. The actor gives each error to the engine as its [`DriverError::kind`]; that says it in a
/// condition and calls again by and by.
pub trait Driver: Send + Sync + 'static {
    /// Facts about the pool, read once at mount.
    fn pool(&self) -> &PoolInfo;
    /// Room now. O(1).
    ///
    /// # Errors
    ///
    /// The kernel does not say what is allocated, or how much of it is used.
    fn space(&self) -> Result<Space, DriverError>;
    /// Every Filesystem that has a directory in the pool.
    ///
    /// # Errors
    ///
    /// The directory of all Filesystems can't be read.
    fn list(&self) -> Result<Vec<FsId>, DriverError>;
    /// What is there of one; nothing at all gives `Found::default()`.
    ///
    /// # Errors
    ///
    /// `BadMetadata` where `fs.json` is damaged, or of another pool or Filesystem; `FormatNewer` where it, or what stands beside a commit, is of
    /// a newer version. Data is there then, so it must not look like nothing.
    fn inspect(&self, fs: FsId) -> Result<Found, DriverError>;

    /// A number for a new Filesystem's level-1 qgroup: used by no qgroup of the pool, unique among concurrent callers, below 2^40.
    ///
    /// # Errors
    ///
    /// `NoSpace` if no free number was hit on; the quota tree can't be read.
    fn allocate_qgroup(&self) -> Result<u64, DriverError>;
    /// Makes the directories and the qgroup with its limit, then writes `fs.json`; durable.
    ///
    /// # Errors
    ///
    /// `FormatNewer` where a newer program's `fs.json` is there already, which stays. After any other a part of it may be made: calling again
    /// makes the rest.
    fn prepare(&self, meta: &FsMeta) -> Result<(), DriverError>;
    /// Replaces `fs.json`: write, fsync, rename, fsync of the parent.
    ///
    /// # Errors
    ///
    /// `NotFound` without the directory of the Filesystem; `FormatNewer` where the file is a newer program's. The file that was there then stays
    /// whole.
    fn write_meta(&self, meta: &FsMeta) -> Result<(), DriverError>;
    /// Creates the head: empty, or a writable snapshot of a commit (of this or another Filesystem). Durable. An existing head stays.
    ///
    /// # Errors
    ///
    /// `NotFound` where the commit, or the directory of the Filesystem, is not there; `BadMetadata` where something that is no subvolume is in
    /// its place; what [`Space::checked`] refuses.
    fn create_head(&self, fs: FsId, qgroup: u64, from: Option<Origin>) -> Result<(), DriverError>;
    /// Takes a commit of the head, or finds that it is there: write-back, metadata written and fsynced, `snapshot -r`. A nested subvolume
    /// is a plain directory in it, as of a moment of its own.
    ///
    /// # Errors
    ///
    /// `NotFound` without a head; `NestedSubvolume` where one can't be made again as a directory, or they come and go all the time;
    /// `FormatNewer` where a newer program has taken this commit; what [`Space::checked`] refuses. Nothing is left of the commit then but what
    /// the next call removes.
    fn commit(&self, qgroup: u64, commit: &Commit) -> Result<CommitDone, DriverError>;
    /// Replaces the metadata beside a commit (for `kept`), durably.
    ///
    /// # Errors
    ///
    /// `NotFound` without the commit; `FormatNewer` where a newer program wrote the metadata. What was there stays whole.
    fn write_commit_meta(&self, commit: &Commit) -> Result<(), DriverError>;
    /// Removes commits; durable (fsync of the parent).
    ///
    /// # Errors
    ///
    /// `Mounted` while anyone has it mounted, in any mount namespace: then it is untouched.
    fn delete_commit(&self, fs: FsId, commit: CommitId) -> Result<(), DriverError>;
    /// Removes the head and what is nested in it, commits stay; durable. With something nested the limits go until they
    /// are set again.
    ///
    /// # Errors
    ///
    /// `Mounted` while anyone has it mounted: then it is as it was, and writable if it was.
    fn drop_head(&self, fs: FsId) -> Result<(), DriverError>;
    /// Removes everything of a Filesystem, nested subvolumes depth-first, its qgroup and directory. Durable.
    ///
    /// # Errors
    ///
    /// `Mounted` while anyone has any of it mounted; `FormatNewer` where a newer program wrote its `fs.json`: then it is untouched. After any
    /// other `fs.json` is still there if anything is, so that calling again goes on.
    fn destroy(&self, fs: FsId, qgroup: u64) -> Result<(), DriverError>;

    /// Sets the limit of the level-1 qgroup, through the pool's top level.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a qgroup.
    fn set_limit(&self, qgroup: u64, bytes: u64) -> Result<(), DriverError>;
    /// Use and limit of the level-1 qgroup.
    ///
    /// # Errors
    ///
    /// `NotFound` without such a qgroup.
    fn usage(&self, qgroup: u64) -> Result<Usage, DriverError>;
    /// Puts the subvolumes that users have made in heads outside of the head's qgroup into that, and out of any other. A look at what is new
    /// in the pool; one that is made while it looks is found by the next one.
    ///
    /// # Errors
    ///
    /// The trees of the pool can't be read, or a subvolume can't be put in, and none could: the next look tries it again.
    fn strays(&self) -> Result<Vec<Stray>, DriverError>;
    /// Whether the head has changed since that commit was taken (generations; write-back is forced first). O(1).
    ///
    /// # Errors
    ///
    /// `NotFound` without the head or the commit; the pool can't be written back.
    fn head_changed_since(&self, fs: FsId, commit: CommitId) -> Result<bool, DriverError>;
    /// The same as of the pool's last transaction: nothing is written back for it, so the newest half minute may be missing.
    ///
    /// # Errors
    ///
    /// `NotFound` without the head or the commit.
    fn head_written_since(&self, fs: FsId, commit: CommitId) -> Result<bool, DriverError>;
    /// Bytes in extents of the head's files, what is cloned counted as often as it is there; `None`: a quarter of a second was not enough.
    ///
    /// # Errors
    ///
    /// `NotFound` without the head; its tree can't be read.
    fn file_bytes(&self, fs: FsId) -> Result<Option<u64>, DriverError>;

    /// Bytes of what the head of a clone began with, at most: what is in it since before it was made of `origin`, with room for metadata.
    ///
    /// # Errors
    ///
    /// `NotFound` without the head; a tree can't be read.
    fn began_with(&self, fs: FsId, origin: Origin) -> Result<u64, DriverError>;
    /// Removes the quota groups of subvolumes that are gone and of Filesystems that are, once nothing is charged to them, and has what a stray left behind
    /// charged to the head that uses it. A look through the pool's extents for that takes half a second at most; the next one goes on.
    ///
    /// # Errors
    ///
    /// A tree or an `fs.json` can't be read: then nothing is removed.
    fn tidy_groups(&self) -> Result<Tidied, DriverError>;

    /// Who has the head or any commit of it mounted, in any mount namespace, the agent's own pool mount left out.
    ///
    /// # Errors
    ///
    /// A mount table can't be read: then nobody knows.
    fn holders(&self, fs: FsId) -> Result<Vec<Holder>, DriverError>;
    /// The same of the head alone: who reads a commit writes nothing.
    ///
    /// # Errors
    ///
    /// As [`Driver::holders`].
    fn head_holders(&self, fs: FsId) -> Result<Vec<Holder>, DriverError>;
    /// Bind-mounts at an existing directory; the same again is success, something else there is an error. A mount that is there gets the flags of
    /// `mode`, as one may have been cut between its two calls.
    ///
    /// # Errors
    ///
    /// `NotFound` without the target, the head or the commit; `Mounted` where something else is mounted at the target, or this is, but
    /// read-only, and is to be writable.
    fn mount(&self, fs: FsId, what: MountWhat, target: &Path, mode: MountMode) -> Result<(), DriverError>;
    /// Unmounts; what is not mounted is success.
    ///
    /// # Errors
    ///
    /// `Mounted` while something at the target is in use, with some of those who use it.
    fn unmount(&self, target: &Path) -> Result<(), DriverError>;
    /// Afterwards nothing can write the head, nor what is nested in it (storage.md §3). Ioctls only; waits for nobody, and refuses for nobody
    /// who has it mounted.
    ///
    /// # Errors
    ///
    /// `NotFound` without a head; `FenceRaced` where subvolumes are made in it faster than they can be frozen. What could be frozen is: it is
    /// to be called again at once.
    fn freeze(&self, fs: FsId) -> Result<(), DriverError>;
    /// Write-back, then the snapshot `commits/<commit>` of the frozen head, and the proof that it holds all of it. Writes the whole pool
    /// back, so it takes as long as that does.
    ///
    /// # Errors
    ///
    /// `FenceRaced` if the head is not frozen, or the commit is of another moment: freeze again, and take a new commit.
    /// `NestedSubvolume` where a nested one can't be made again as a directory; `NotFound` without a head.
    fn final_commit(&self, qgroup: u64, commit: &Commit) -> Result<Fenced, DriverError>;
    /// Makes the head, and what a freeze has frozen in it, writable again.
    ///
    /// # Errors
    ///
    /// `NotFound` without a head. Some of what is nested may be frozen still: calling again goes on.
    fn thaw(&self, fs: FsId) -> Result<(), DriverError>;
    /// Whether the head is read-only now (fenced).
    ///
    /// # Errors
    ///
    /// `NotFound` without a head; its flags can't be read.
    fn is_fenced(&self, fs: FsId) -> Result<bool, DriverError>;

    /// A kernel send stream; dropping it ends the send. Reads ahead beside it.
    ///
    /// # Errors
    ///
    /// `NotFound` without one of the commits; `Unsupported` for a version that this kernel doesn't know. What ends the stream itself comes out
    /// of its `Read`, see [`DriverError::of_read`].
    fn send(&self, fs: FsId, base: Option<CommitId>, target: CommitId, version: u32) -> Result<Box<dyn Read + Send>, DriverError>;
    /// About how many bytes `send` would give; `None` where that would take long.
    ///
    /// # Errors
    ///
    /// `NotFound` without one of the commits; a tree can't be walked.
    fn estimate(&self, fs: FsId, base: Option<CommitId>, target: CommitId) -> Result<Option<u64>, DriverError>;

    /// The work subvolume for a receive: from the last checkpoint (`Some(offset)`), else fresh (an older partial is removed first).
    ///
    /// # Errors
    ///
    /// `NotFound` without the base or the checkpoint; what [`Space::checked`] refuses.
    fn receive_start(
        &self,
        fs: FsId,
        qgroup: u64,
        target: CommitId,
        base: Option<CommitId>,
        checkpoint: Option<u64>,
    ) -> Result<Incoming, DriverError>;
    /// `snapshot -r` of the partial as checkpoint at `offset`. The one before it stays (the journal may not name this one yet);
    /// those older than that go once this one is durable.
    ///
    /// # Errors
    ///
    /// `NotFound` without the partial. The checkpoint before stays.
    fn receive_checkpoint(&self, fs: FsId, qgroup: u64, target: CommitId, offset: u64) -> Result<(), DriverError>;
    /// Metadata, `snapshot -r incoming → commits/<id>`: atomic and durable. The partial stays until `receive_discard`.
    ///
    /// # Errors
    ///
    /// `NotFound` without the partial; `FormatNewer` where a newer program has stored this commit. The partial stays, for another try.
    fn receive_finish(&self, qgroup: u64, commit: &Commit) -> Result<(), DriverError>;
    /// Removes partial and checkpoints of a target.
    ///
    /// # Errors
    ///
    /// A part of it may be left: calling again removes the rest.
    fn receive_discard(&self, fs: FsId, target: CommitId) -> Result<(), DriverError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_metadata_floor_is_smaller_in_small_pools() {
        let floor = |total| Space { total, ..Space::default() }.metadata_floor();
        assert_eq!(floor(1 << 40), 512 << 20);
        assert_eq!(floor(8 * GIB), 512 << 20);
        assert_eq!(floor(4 * GIB), 256 << 20);
    }

    #[test]
    fn a_pool_at_its_floor_takes_commits_and_one_below_it_or_read_only_does_not() {
        let at = Space { total: 4 * GIB, available: 0, metadata_free: 256 << 20, read_only: false };
        assert_eq!(at.checked().unwrap(), at);
        let below = Space { metadata_free: at.metadata_free - 1, ..at };
        assert!(matches!(below.checked(), Err(DriverError::NoSpace(_))));
        assert!(matches!(Space { read_only: true, ..below }.checked(), Err(DriverError::PoolFailed(_))));
    }

    #[test]
    fn the_first_few_who_have_it_mounted_are_named() {
        let holder = |pid| Holder { pid, command: "db".into(), mount_point: "/data".into() };
        let said = |n: i32| held_by_nobody(&(1..=n).map(holder).collect::<Vec<_>>()).map_err(|e| e.to_string());
        assert_eq!(said(0), Ok(()));
        assert_eq!(said(1), Err("mounted by db (pid 1) at /data".to_owned()));
        assert!(said(3).unwrap_err().ends_with("db (pid 3) at /data"));
        assert!(said(5).unwrap_err().ends_with("db (pid 3) at /data, and 2 more"));
    }
}
