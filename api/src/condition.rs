//! The vocabulary of conditions: every type and every reason that a condition of our objects can have, each a closed set, and what is read from
//! and written into lists of conditions. No program of ours compares the words themselves.
//!
//! While something stands in an object's way, `Ready` is false with its name as the reason, and a condition of that name is true; so most reasons
//! are types too ([`Reason::type_`]). Each type has its place in docs/runbook.md.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::common::{Condition, Time};

/// A word that is none of a closed set: of a newer program, most likely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no word that this version knows")]
pub struct UnknownWord(pub String);

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $word:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$each])* $word,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$word,)*];

            /// The word as objects spell it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$word => stringify!($word),)* }
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $(stringify!($word) => Ok(Self::$word),)*
                    _ => Err(UnknownWord(word.chars().take(64).collect())),
                }
            }
        }
    };
}

words! {
    /// What a condition of an object of ours says something about.
    ConditionType {
        // Always there, of one kind or another.
        /// The object is what its spec asks for. Good when true.
        Ready,
        /// Something is being done about it. Good when true, and no trouble when false.
        Progressing,
        /// It works, with less than was asked for.
        Degraded,
        /// Two copies have commits that the other lacks.
        Diverged,
        /// `spec.suspend` of a ReplicationJob is set.
        Suspended,
        /// A commit can't be deleted, because something needs it.
        Pinned,
        /// A commit has fewer copies than were asked for.
        AtRisk,
        /// A `DotOperation` has come to its end. Good when true.
        Complete,
        /// Authority is on its way to another node.
        Migrating,

        // Of a copy, as its agent says.
        /// Authority is open for writing at this copy. Good when true.
        Opened,
        /// A move was given up, and is tried again later.
        MoveBlocked,
        /// The API has lost the move that this head is fenced for.
        PendingLost,
        /// Another node has become owner without this one.
        Superseded,
        /// The API says nothing of an owner.
        AuthorityUnknown,
        /// The API server doesn't answer in the middle of a move.
        AuthorityUnreachable,
        /// A wanted commit can't be taken now.
        CommitBlocked,
        /// The journal knows commits that the pool lacks.
        CommitsLost,
        /// The pool is there, and the Filesystem in it isn't.
        DataMissing,
        /// The pool refuses to delete.
        DeletionBlocked,
        /// The API shows an older epoch than this node has seen.
        EpochRegression,
        /// A newer program wrote a row, file or message of it, which is left alone until this one is upgraded.
        FormatNewer,
        /// The Filesystem has no writable subvolume.
        HeadMissing,
        /// The rows of its journal are damaged, or the journal can't be read.
        JournalUnreadable,
        /// A kept commit that another copy lacks can't be brought there.
        LendFailed,
        /// The commit that this one starts from is not in the pool.
        OriginMissing,
        /// What is written can't be committed for a copy that is kept close behind.
        PrecopyBlocked,
        /// A commit that is sent here can't be taken.
        ReceiveFailed,
        /// A copy is wanted in a role that it can't take.
        RoleMismatch,
        /// A head that must go can't go yet.
        StaleHead,
        /// The API wants a copy to go that is newer than what the API knows.
        StaleIntent,

        // Of a NodePool.
        /// The node's disk isn't there, or another one is.
        PoolMissing,
        /// btrfs has gone read-only, or doesn't answer.
        PoolFailed,
        /// The pool's file has another size than is asked for by now.
        SizeDiffers,
        /// By known faults of the node's kernel, a pod can turn the pool read-only.
        KernelFaulty,
        /// The node's kubelet uses another directory than its agent.
        KubeletElsewhere,

        // What stands in the way of a Dot, Branch, Commit or Filesystem.
        /// The object is on its way out.
        Deleting,
        /// Branches start from it.
        BranchesExist,
        /// A copy that is to go stays, as commits that someone wants kept are on no other.
        CopyStays,
        /// No copy holds the commit any more.
        NoCopyLeft,
        /// A copy that a person gave up stays, as authority may need it.
        CopyNeeded,
        /// The copy that has all of what was acknowledged isn't ready: authority waits for it, or for a person.
        WaitsForCopy,
        /// A `PersistentVolumeClaim` is bound to it.
        ClaimBound,
        /// The Filesystem of `spec.fsId` is another object's.
        ClaimMismatch,
        /// The pools name two owners of the same epoch.
        EqualOwners,
        /// The Filesystem of `spec.fsId` is being deleted.
        FilesystemDeleting,
        /// The API has no Filesystem of that `spec.fsId`.
        FilesystemNotFound,
        /// Nearly all that files and history may take is used.
        Full,
        /// Only commits are left of the Filesystem.
        Headless,
        /// What it asks for is more than the namespace's limit leaves.
        CapacityLimit,
        /// A size can't be read, or is out of bounds.
        InvalidCapacity,
        /// A Filesystem carries this name, and the object doesn't name it.
        NameHasData,
        /// There is no such node.
        NodeNotFound,
        /// No node with a ready pool can take it.
        NoPool,
        /// The pool or agent of its node is away.
        OwnerNotReady,
        /// Its node or pool is gone, and nobody has taken over.
        OwnerLost,
        /// It can't move to the node that is asked for.
        PlacementRefused,
        /// It can't begin on the node that is asked for.
        PlacementUnavailable,
        /// The pool of the node that is asked for isn't ready.
        PoolNotReady,
        /// What it starts from is being deleted.
        SourceDeleting,
        /// What it starts from, or brings over, doesn't exist.
        SourceNotFound,
        /// What it starts from, or brings over, isn't ready yet.
        SourceNotReady,
        /// The owner can't make the commit.
        Refused,

        // What stands in the way of a ReplicationJob.
        /// Another job brings the same there.
        TargetBusy,
        /// The target node owns the source.
        TargetIsOwner,
        /// There is no such node.
        TargetNotFound,
        /// The target is of another pool group than the source.
        TargetRefused,
        /// Its schedule can't be read.
        InvalidSchedule,
        /// The pool of the target isn't ready.
        TargetNotReady,
        /// An agent's report can't be read by this version of the operator.
        ReportUnreadable,

        // Why an agent refuses a request or gives an effect up.
        /// The mailbox is full, or another transfer runs.
        Busy,
        /// No copy is wanted there (yet).
        NotPlaced,
        /// The receiver's copy is an owner's.
        ReceiverIsOwner,
        /// The message carries an older epoch than is known there.
        StaleEpoch,
        /// The base of an increment isn't there any more.
        BaseGone,
        /// No commit in common, and the receiver isn't empty.
        NoCommonAncestor,
        /// There is nothing to send or to start from.
        NoCommits,
        /// `initial: Fail`, and the receiver is empty.
        InitialRefused,
        /// Pool, limit or metadata space is used up.
        NoSpace,
        /// A btrfs subvolume inside the volume is in the way.
        NestedSubvolume,
        /// A swap file inside the volume is in use.
        SwapFile,
        /// A stream is malformed, oversized or forbidden.
        CorruptStream,
        /// What arrived is not what was sent.
        DigestMismatch,
        /// Certificate, token or grant doesn't allow it (yet).
        Denied,
        /// The peer can't be reached, or went away.
        Unreachable,
        /// No byte and no message for too long.
        Timeout,
        /// A feature that is needed is missing.
        Unsupported,
        /// The request is malformed.
        Invalid,
        /// Someone has it mounted.
        Mounted,
        /// It isn't there.
        NotFound,
        /// A reset keeps new mounts back.
        Held,
        /// The node doesn't own it, or hasn't opened it.
        NotOwner,
        /// A checksum error of the disk.
        CorruptDisk,
        /// The operation was cancelled.
        Cancelled,
        /// Anything else.
        Internal,
    }
}

impl ConditionType {
    /// Troubles that an agent can find with a copy: those that its metric `dotgraft_condition` counts.
    pub const OF_COPIES: &'static [Self] = &[
        Self::AuthorityUnknown,
        Self::AuthorityUnreachable,
        Self::CommitBlocked,
        Self::CommitsLost,
        Self::DataMissing,
        Self::Degraded,
        Self::DeletionBlocked,
        Self::EpochRegression,
        Self::FormatNewer,
        Self::HeadMissing,
        Self::JournalUnreadable,
        Self::LendFailed,
        Self::MoveBlocked,
        Self::OriginMissing,
        Self::PendingLost,
        Self::PrecopyBlocked,
        Self::ReceiveFailed,
        Self::RoleMismatch,
        Self::StaleHead,
        Self::StaleIntent,
        Self::Superseded,
    ];

    /// Whether it is good when true: the object is well. All others name a trouble, or an interlude, while they are true.
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Ready | Self::Progressing | Self::Opened | Self::Complete)
    }

    /// Whether a condition of this type with that status says that something is wrong. `Progressing` never does.
    pub const fn is_trouble(self, status: bool) -> bool {
        self.is_good() != status && !matches!(self, Self::Progressing)
    }
}

words! {
    /// Reasons that are no types.
    Word {
        /// Nothing is wrong in this respect.
        AsExpected,
        /// An agent's heartbeats don't arrive, so nobody knows how its pool is.
        AgentSilent,
        /// Something is being done.
        Running,
        /// Nothing is being done.
        NotRunning,
        /// It has come to its end, and well.
        Completed,
        /// Each commit is where it should be.
        UpToDate,
        /// Its files use up the room of a volume.
        FilesFull,
        /// Its commits use up the room of a volume.
        HistoryFull,
        /// A target lacks commits for longer than it should.
        Behind,
        /// It waits for its turn or for an agent.
        Pending,
        /// It waits for the first time that its schedule names.
        Scheduled,
        /// A commit is durable on its owner.
        Committed,
        /// Nothing needs the commit.
        NotPinned,
        /// One copy holds a commit, and more were asked for.
        OneCopy,
        /// `spec.suspend` isn't set.
        NotSuspended,
        /// A ReplicationJob has no source.
        NoSources,
        /// Fewer copies have data than `placement.replicas` asks for.
        CopiesMissing,
        /// `placement.node` can't take it.
        NodeCantTakeIt,
        /// A node is being chosen, or is making it.
        Creating,
        /// Nothing of it is there.
        Absent,
        /// Nothing of it is left.
        Deleted,
        /// The owner may write.
        Open,
        /// The owner may not write (yet).
        Closed,
        /// The head can't be written, for a move or because authority went on without it.
        Fenced,
        /// A copy has what it is to have.
        InSync,
        /// A `DotOperation` has done what it was asked for.
        Done,
        /// No other copy has a commit that someone wants kept.
        LastCopyOfCommit,
        /// No copy of an orphan says which object it belonged to.
        ClaimUnknown,
        /// An orphan's namespace isn't there.
        NamespaceNotFound,
        /// The copy of an orphan's last owner isn't there.
        OwnerMissing,
        /// A copy isn't dropped, as it is the owner's.
        OwnerNotDropped,
        /// What is where the pool should be can't be used as one.
        PoolRefused,
        /// A pool came up under another node's name while it is still recorded for its old one.
        PoolOfAnotherNode,
        /// A `dataSourceRef` names an object of another namespace.
        OtherNamespace,
        /// A `dataSourceRef` names a kind that no volume can be made from.
        UnknownSource,
        /// What a `dataSourceRef` names is smaller than the PVC asks for.
        TooSmall,
        /// Another PVC has the volume.
        AlreadyClaimed,
        /// A volume is being made.
        Provisioning,
        /// A volume can't be made.
        ProvisioningFailed,
    }
}

words! {
    /// How far a move is, as `Replica.status.migration.phase` spells it.
    MovePhase {
        /// None is in hand yet.
        Waiting,
        /// Commits go to the target; pods may write.
        Copying,
        /// Something has the head mounted.
        WaitingForPods,
        /// The head is being fenced.
        Freezing,
        /// The last commit goes over.
        Exporting,
        /// Authority is being given away.
        Committing,
        /// The move is being taken back.
        Aborting,
        /// Authority is with the target.
        Done,
        /// It was given up.
        Cancelled,
    }
}

/// Why a condition is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The trouble, or the thing that is missing, has a type of its own.
    Of(ConditionType),
    /// How far the move is.
    Move(MovePhase),
    /// Any other.
    Word(Word),
}

impl Reason {
    /// The word as objects spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Of(type_) => type_.as_str(),
            Self::Move(phase) => phase.as_str(),
            Self::Word(word) => word.as_str(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<ConditionType> for Reason {
    fn from(type_: ConditionType) -> Self {
        Self::Of(type_)
    }
}

impl From<Word> for Reason {
    fn from(word: Word) -> Self {
        Self::Word(word)
    }
}

impl From<MovePhase> for Reason {
    fn from(phase: MovePhase) -> Self {
        Self::Move(phase)
    }
}

impl FromStr for Reason {
    type Err = UnknownWord;
    /// A word that is a type is read as [`Reason::Of`].
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        let type_ = word.parse::<ConditionType>().map(Self::Of);
        type_.or_else(|_| word.parse::<Word>().map(Self::Word)).or_else(|_| word.parse::<MovePhase>().map(Self::Move))
    }
}

/// What a writer found about one aspect of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionUpdate<'a> {
    /// The aspect: a [`ConditionType`] as it is spelled.
    pub type_: &'a str,
    /// `Some(true)`, `Some(false)`, or `None` for `Unknown`.
    pub status: Option<bool>,
    /// Why: a [`Reason`] as it is spelled; must not be empty.
    pub reason: &'a str,
    /// Sentence for people; cut at 4096 characters. Where it is empty, [`plain`] says what the reason does.
    pub message: &'a str,
    /// `metadata.generation` that it was found for.
    pub observed_generation: Option<i64>,
}

/// Longest message kept in a condition, in characters.
const MESSAGE_MAX: usize = 4096;

/// What a condition says whose writer had nothing to add to the reason: no message is empty.
pub fn plain(reason: &str) -> String {
    match reason.parse() {
        Ok(Reason::Word(Word::AsExpected)) => "nothing is wrong in this respect".to_owned(),
        Ok(Reason::Word(Word::NotRunning)) => "nothing is being done".to_owned(),
        Ok(Reason::Word(Word::NotSuspended)) => "spec.suspend is not set".to_owned(),
        Ok(Reason::Word(Word::NotPinned)) => "nothing needs it".to_owned(),
        _ => reason.to_owned(),
    }
}

const TRUE: &str = "True";
const FALSE: &str = "False";

/// Sets a condition; `lastTransitionTime` moves to `now` only if its status changes. Returns whether anything changed, so that a
/// caller writes no status while nothing does (design §2).
pub fn set_condition(conditions: &mut Vec<Condition>, update: &ConditionUpdate<'_>, now: &Time) -> bool {
    let status = match update.status {
        Some(true) => TRUE,
        Some(false) => FALSE,
        None => "Unknown",
    };
    let plain = plain(update.reason);
    let message = if update.message.is_empty() { plain.as_str() } else { update.message };
    let mut next = Condition {
        type_: update.type_.to_owned(),
        status: status.to_owned(),
        reason: update.reason.to_owned(),
        message: message.chars().take(MESSAGE_MAX).collect(),
        observed_generation: update.observed_generation,
        last_transition_time: now.clone(),
    };
    let Some(old) = conditions.iter_mut().find(|c| c.type_ == update.type_) else {
        conditions.push(next);
        return true;
    };
    if old.status == next.status {
        next.last_transition_time = old.last_transition_time.clone();
    }
    if *old == next {
        return false;
    }
    *old = next;
    true
}

/// The condition of that type, if there is one.
pub fn condition(conditions: &[Condition], type_: impl AsRef<str>) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == type_.as_ref())
}

/// What a condition says: true, false, or neither.
pub fn says(condition: &Condition) -> Option<bool> {
    match condition.status.as_str() {
        TRUE => Some(true),
        FALSE => Some(false),
        _ => None,
    }
}

/// The condition of that type, if it is true.
pub fn is_true(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    condition(conditions, type_).filter(|c| says(c) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::ConditionType::{NoSpace, Progressing, Ready};
    use super::*;

    fn at(s: &str) -> Time {
        serde_json::from_value(serde_json::json!(s)).unwrap()
    }
    fn ready(status: bool, reason: impl Into<Reason>) -> ConditionUpdate<'static> {
        let (type_, reason) = (Ready.as_str(), reason.into().as_str());
        ConditionUpdate { type_, status: Some(status), reason, message: "m", observed_generation: Some(1) }
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let (t1, t2, t3) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"), at("2026-01-03T00:00:00Z"));
        let mut list = Vec::new();
        assert!(set_condition(&mut list, &ready(false, Word::Creating), &t1));
        assert!(!set_condition(&mut list, &ready(false, Word::Creating), &t2), "nothing changed");
        assert!(set_condition(&mut list, &ready(false, NoSpace), &t2));
        assert_eq!(condition(&list, Ready).unwrap().last_transition_time, t1);
        assert_eq!(condition(&list, Ready).unwrap().reason, "NoSpace");
        assert!(set_condition(&mut list, &ready(true, Ready), &t3));
        assert_eq!(condition(&list, Ready).unwrap().last_transition_time, t3);
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn no_message_is_empty() {
        let mut list = Vec::new();
        for word in Word::ALL {
            set_condition(&mut list, &ConditionUpdate { message: "", ..ready(true, *word) }, &at("2026-01-01T00:00:00Z"));
            assert!(!list[0].message.is_empty(), "{word}");
        }
        assert_eq!(plain("AsExpected"), "nothing is wrong in this respect");
    }

    #[test]
    fn a_condition_that_nobody_could_judge_is_unknown() {
        let mut list = Vec::new();
        let update = ConditionUpdate { status: None, ..ready(true, Word::Pending) };
        assert!(set_condition(&mut list, &update, &at("2026-01-01T00:00:00Z")));
        assert_eq!(list[0].status, "Unknown");
    }

    #[test]
    fn every_word_is_read_as_what_was_written() {
        for type_ in ConditionType::ALL {
            assert_eq!(type_.as_str().parse(), Ok(*type_));
            assert_eq!(type_.as_str().parse(), Ok(Reason::Of(*type_)));
            assert_eq!(serde_json::to_value(type_).unwrap(), type_.as_str());
        }
        for word in Word::ALL {
            assert_eq!(word.as_str().parse(), Ok(Reason::Word(*word)), "a word that is a type, too, is written as the type");
        }
        assert_eq!("Copying".parse(), Ok(Reason::Move(MovePhase::Copying)));
        assert_eq!("Newer".parse::<Reason>(), Err(UnknownWord("Newer".into())));
    }

    #[test]
    fn a_good_thing_that_is_missing_and_a_bad_one_that_is_there_are_troubles() {
        let rows = [
            (Ready, true, false),
            (Ready, false, true),
            (ConditionType::Opened, false, true),
            (NoSpace, true, true),
            (NoSpace, false, false),
        ];
        for (type_, status, trouble) in rows {
            assert_eq!(type_.is_trouble(status), trouble, "{type_}={status}");
        }
        assert!(!Progressing.is_trouble(true) && !Progressing.is_trouble(false));
    }

    #[test]
    fn every_type_has_its_place_in_the_runbook() {
        let page = include_str!("../../docs/runbook.md");
        let place = |t: &ConditionType| format!("<a id=\"{}\"></a>`{t}`", t.as_str().to_lowercase());
        let missing: Vec<_> = ConditionType::ALL.iter().filter(|t| !page.contains(&place(t))).map(place).collect();
        assert!(missing.is_empty(), "docs/runbook.md has no {missing:?}");
    }
}
