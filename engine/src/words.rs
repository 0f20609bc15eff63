//! What several parts of a Filesystem say: roles, names of requests and jobs, and what is wanted of a copy. It stands below them all, so no
//! part has to know another for a word.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{CommitId, Epoch, FsId, JobUid, MigId, NodeName, RequestUid};
use crate::model::{Claim, Commit, Origin, Place, ResumeToken};
use crate::run::JobSpec;

/// Names a request of the shell, so that its answer finds the way back. Chosen by the shell, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReqId(pub u64);

/// What is wanted of this copy: `Replica.spec.desired`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// `metadata.generation` of the Replica.
    pub generation: i64,
    /// Be there, or be gone.
    pub intent: Intent,
}

/// See [`Desired`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// Hold a copy.
    Present(Box<Present>),
    /// Hold none. Obeyed by the rule of design §2: an owner, or a copy of a higher epoch, asks the API first.
    Absent {
        /// The epoch the operator knew.
        epoch: Epoch,
    },
}

/// A wanted copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Owner or replica.
    pub role: Role,
    /// The epoch the operator knew.
    pub epoch: Epoch,
    /// Who owns it, told to every other copy: only that node may send to it. `None`, of an operator that doesn't say so: any node may.
    pub owner: Option<Place>,
    /// Nodes with another copy of it.
    pub peers: BTreeSet<NodeName>,
    /// The object it belongs to.
    pub claim: Option<Claim>,
    /// What it branches from.
    pub origin: Option<Origin>,
    /// Bytes for the head.
    pub capacity: u64,
    /// Bytes for history on top.
    pub history_limit: u64,
    /// Bytes that it began with, of a clone (ADR 39); 0: not known here, or none.
    pub origin_bytes: u64,
    /// `Proof` or `Manual`.
    pub fencing: String,
    /// `Delete` or `Retain`.
    pub reclaim_policy: String,
    /// Commits that objects ask for, or ask to remove.
    pub commits: Vec<WantedCommit>,
    /// Jobs whose sender this is.
    pub jobs: Vec<WantedJob>,
    /// Who is to be owner instead, as soon as nothing has the head mounted.
    pub move_to: Option<Place>,
    /// The copy to keep close behind, as this node is about to be left.
    pub precopy_to: Option<Place>,
    /// Its claim is deleted, and only its commits are kept: the head goes.
    pub headless: bool,
    /// Kept commits that this copy takes from another one, also if it is the owner's.
    pub fetch: BTreeSet<Transfer>,
    /// Kept commits that this copy sends to another one, also if that is the owner's.
    pub lend: BTreeSet<Transfer>,
}

/// One kept commit that is brought from one copy to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transfer {
    /// Which.
    pub commit: CommitId,
    /// The other side.
    pub with: Place,
}

/// One entry of `desired.commits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCommit {
    /// UID of the Commit object.
    pub uid: RequestUid,
    /// Its message.
    pub message: String,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// Its id where one is known (to remove it).
    pub id: Option<CommitId>,
    /// The object is being deleted: remove the commit.
    pub remove: bool,
    /// It keeps what the head holds before the head is replaced by this commit (reset).
    pub reset_to: Option<Origin>,
    /// While that reset waits, nothing new mounts the head, so that whoever is made to leave doesn't come back first.
    pub hold: bool,
}

/// What a copy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// May write, once authority is opened.
    Owner,
    /// Read-only.
    Replica,
}

/// A transfer that a peer offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The commit that comes.
    pub target: Commit,
    /// Its base; `None` for a full stream.
    pub base: Option<CommitId>,
    /// The job.
    pub job: JobUid,
    /// The run of it, for logs.
    pub run_id: Uuid,
    /// The sender's epoch.
    pub epoch: Epoch,
    /// Expected bytes.
    pub expected: Option<u64>,
    /// Stream version.
    pub stream_version: u32,
    /// Sender's kernel.
    pub kernel_release: String,
    /// Where the sender can go on.
    pub resume: Option<ResumeToken>,
    /// Who sends, by its certificate; a message does not say it.
    pub from: NodeName,
}

/// Behind the path of a mount, where people read it and the operator, if a commit is mounted there and not the head.
pub const OF_COMMIT: &str = " (commit)";

/// Head or a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MountWhat {
    /// The writable head.
    Head,
    /// A commit, read-only.
    Commit(CommitId),
}

/// What may be done through a mount. The rest of what mount(8) knows makes no sense for a bind mount of a subvolume, or is the pool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // independent flags of the kernel's
pub struct MountMode {
    /// Nothing may be written.
    pub read_only: bool,
    /// Set-user-ID and set-group-ID bits and file capabilities count for nothing.
    pub nosuid: bool,
    /// Device files can't be opened.
    pub nodev: bool,
    /// Nothing may be executed.
    pub noexec: bool,
}

impl MountMode {
    /// Written and read, by what ordinary programs need: who fills a volume is nobody to be trusted by whoever mounts it.
    pub const WRITE: Self = Self { read_only: false, nosuid: true, nodev: true, noexec: false };
    /// The same, only to read.
    pub const READ: Self = Self { read_only: true, ..Self::WRITE };

    /// With the options of a volume's capability (`mountOptions` of a `StorageClass` or PV), the last one of a kind counting, as in mount(8).
    ///
    /// # Errors
    ///
    /// The first option that a volume can't have.
    pub fn with_options<S: AsRef<str>>(mut self, options: &[S]) -> Result<Self, UnknownOption> {
        for option in options {
            match option.as_ref() {
                "ro" => self.read_only = true,
                "suid" => self.nosuid = false,
                "nosuid" => self.nosuid = true,
                "dev" => self.nodev = false,
                "nodev" => self.nodev = true,
                "exec" => self.noexec = false,
                "noexec" => self.noexec = true,
                // It is written unless something says otherwise, and the pool is mounted so.
                "" | "rw" | "noatime" => {}
                other => return Err(UnknownOption(other.chars().take(64).collect())),
            }
        }
        Ok(self)
    }
}

/// An option that a volume can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount option `{0}` can't be had: a volume takes ro, nosuid, nodev, noexec, suid, dev, exec and noatime (which it is anyway)")]
pub struct UnknownOption(pub String);

/// Subvolumes that users have made inside the head; a commit has them as plain directories (ADR 14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// How many are directly in the head.
    pub count: usize,
    /// Path of one, relative to the head, lossily as text.
    pub first: String,
}

/// A job as the owner's Replica has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedJob {
    /// For the engine.
    pub spec: JobSpec,
    /// Bytes per second, shared by its steps.
    pub bandwidth: Option<u64>,
}

/// Whose job it is: that of an object, or one that the Filesystem makes for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobKey {
    /// Of the ReplicationJob with this UID.
    Object(JobUid),
    /// The transfer of this handoff.
    Handoff(MigId),
    /// The copy close behind a node that is about to be left.
    Precopy,
}

impl JobKey {
    /// The name it has in journal rows, in tasks and on the wire: there a job of the Filesystem's own borrows the UUID of what it is for, as
    /// no object has that.
    pub const fn uid(self, fs: FsId) -> JobUid {
        match self {
            Self::Object(uid) => uid,
            Self::Handoff(mig) => JobUid::from_uuid(mig.uuid()),
            Self::Precopy => JobUid::from_uuid(fs.uuid()),
        }
    }

    /// Whose row that is, where `handoff` is in hand. The row of a handoff goes together with the handoff's own.
    pub fn of_row(uid: JobUid, fs: FsId, handoff: Option<MigId>) -> Self {
        match handoff {
            _ if uid.uuid() == fs.uuid() => Self::Precopy,
            Some(mig) if uid.uuid() == mig.uuid() => Self::Handoff(mig),
            _ => Self::Object(uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_jobs_row_leads_back_to_whose_it_is() {
        let fs = FsId::from_uuid(Uuid::from_u128(1));
        let mig = MigId::from_uuid(Uuid::from_u128(2));
        for key in [JobKey::Object(JobUid::from_uuid(Uuid::from_u128(3))), JobKey::Handoff(mig), JobKey::Precopy] {
            assert_eq!(JobKey::of_row(key.uid(fs), fs, Some(mig)), key);
        }
        // Of a handoff that is over nothing is left; a row of its name would be nobody's but an object's.
        assert_eq!(JobKey::of_row(JobKey::Handoff(mig).uid(fs), fs, None), JobKey::Object(JobUid::from_uuid(mig.uuid())));
    }
}
