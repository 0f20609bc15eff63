//! What a copy tells of itself in words, each a closed set: what stands in its way, what its `Ready` says, how far a move is. The API has a word for
//! each, of the same spelling; the agent's one conversion (`node-agent/src/actor/words.rs`) doesn't compile without it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use super::event::Out;
use crate::model::{Problem, Reason};

/// A set of words: a name is its spelling.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $word:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum $name { $($(#[$each])* $word,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$word,)*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

words! {
    /// What stands in a copy's way. In the order in which people are told of them.
    Trouble {
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
        /// It works, with less than was asked for.
        Degraded,
        /// The pool, or the API, keeps it from being deleted.
        DeletionBlocked,
        /// The API shows an older epoch than this node has seen.
        EpochRegression,
        /// A newer program wrote a row or file of it.
        FormatNewer,
        /// The Filesystem has no writable subvolume.
        HeadMissing,
        /// The rows of its journal can't be read. Only the agent finds this, which then has no machine to tell of it.
        JournalUnreadable,
        /// A commit that another copy lacks can't be brought there.
        LendFailed,
        /// Something has it mounted that is to be deleted.
        Mounted,
        /// A move was given up, and is tried again later.
        MoveBlocked,
        /// Authority isn't open for writing: the one condition that is good when true.
        Opened,
        /// The commit that it starts from is not in the pool.
        OriginMissing,
        /// The API has lost the move that the head is fenced for.
        PendingLost,
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
        /// Another node has become owner without this one.
        Superseded,
    }
}

words! {
    /// What the `Ready` of a copy says, beside what is a trouble.
    CopyState {
        /// The owner may write.
        Open,
        /// The owner may not write (yet).
        Closed,
        /// Authority went on without it.
        Superseded,
        /// Only commits are left.
        Headless,
        /// The head is fenced for a move.
        Migrating,
        /// The head is fenced.
        Fenced,
        /// A replica has what it is to have.
        InSync,
        /// It is being made.
        Creating,
        /// It is on its way out.
        Deleting,
        /// Nothing of it is left.
        Deleted,
        /// Nothing of it is there.
        Absent,
    }
}

words! {
    /// How far a move is.
    MovePhase {
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

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Whether the copy is what it is to be.
    Ready,
    /// A trouble.
    Trouble(Trouble),
}

/// Why a condition is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// So far is it.
    State(CopyState),
    /// A trouble keeps it from being ready.
    Trouble(Trouble),
    /// Something was refused or failed.
    Problem(Reason),
}

impl From<Trouble> for About {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("Ready"),
            Self::Trouble(trouble) => trouble.fmt(f),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => state.fmt(f),
            Self::Trouble(trouble) => trouble.fmt(f),
            Self::Problem(reason) => fmt::Debug::fmt(reason, f),
        }
    }
}

impl Serialize for About {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Why {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The troubles of a copy: at most one of each.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<Trouble, Problem>);

impl Troubles {
    /// There is one, or it is another now; people hear of it once.
    pub(super) fn raise(&mut self, trouble: Trouble, problem: Problem, out: &mut Out) {
        if self.0.get(&trouble) != Some(&problem) {
            out.warn(format!("{:?}", problem.reason), problem.message.clone());
            self.0.insert(trouble, problem);
        }
    }

    pub(super) fn clear(&mut self, trouble: Trouble) {
        self.0.remove(&trouble);
    }

    pub(super) fn clear_all(&mut self) {
        self.0.clear();
    }

    pub(super) fn get(&self, trouble: Trouble) -> Option<&Problem> {
        self.0.get(&trouble)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Trouble, &Problem)> {
        self.0.iter().map(|(trouble, p)| (*trouble, p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_told_of_by_the_alphabet() {
        // The order of declaration: who reads conditions by hand finds each where it was.
        let words: Vec<String> = Trouble::ALL.iter().map(ToString::to_string).collect();
        assert!(words.is_sorted(), "{words:?}");
        assert!(Trouble::ALL.is_sorted());
    }

    #[test]
    fn a_condition_is_serialised_by_its_words() {
        assert_eq!(serde_json::to_string(&About::from(Trouble::StaleHead)).unwrap(), "\"StaleHead\"");
        assert_eq!(serde_json::to_string(&About::Ready).unwrap(), "\"Ready\"");
        assert_eq!(serde_json::to_string(&Why::Problem(Reason::NoSpace)).unwrap(), "\"NoSpace\"");
        assert_eq!(serde_json::to_string(&Why::State(CopyState::InSync)).unwrap(), "\"InSync\"");
    }
}
