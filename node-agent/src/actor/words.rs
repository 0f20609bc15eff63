//! The engine's words in the API's: what stands in a copy's way, what it is ready for, how far a move is, why something failed. The engine knows no
//! API; each match here lacks an arm as soon as it has a new word.

use dotgraft_api::condition::{ConditionType, MovePhase, Reason, Word};
use dotgraft_engine::filesystem::{self, About, CopyState, Trouble, Why};
use dotgraft_engine::model;

/// What a condition of a copy is about.
pub const fn about(about: About) -> ConditionType {
    match about {
        About::Ready => ConditionType::Ready,
        About::Trouble(trouble) => trouble_type(trouble),
    }
}

const fn trouble_type(trouble: Trouble) -> ConditionType {
    match trouble {
        Trouble::AuthorityUnknown => ConditionType::AuthorityUnknown,
        Trouble::AuthorityUnreachable => ConditionType::AuthorityUnreachable,
        Trouble::CommitBlocked => ConditionType::CommitBlocked,
        Trouble::CommitsLost => ConditionType::CommitsLost,
        Trouble::DataMissing => ConditionType::DataMissing,
        Trouble::Degraded => ConditionType::Degraded,
        Trouble::DeletionBlocked => ConditionType::DeletionBlocked,
        Trouble::EpochRegression => ConditionType::EpochRegression,
        Trouble::FormatNewer => ConditionType::FormatNewer,
        Trouble::HeadMissing => ConditionType::HeadMissing,
        Trouble::JournalUnreadable => ConditionType::JournalUnreadable,
        Trouble::LendFailed => ConditionType::LendFailed,
        Trouble::Mounted => ConditionType::Mounted,
        Trouble::MoveBlocked => ConditionType::MoveBlocked,
        Trouble::Opened => ConditionType::Opened,
        Trouble::OriginMissing => ConditionType::OriginMissing,
        Trouble::PendingLost => ConditionType::PendingLost,
        Trouble::PrecopyBlocked => ConditionType::PrecopyBlocked,
        Trouble::ReceiveFailed => ConditionType::ReceiveFailed,
        Trouble::RoleMismatch => ConditionType::RoleMismatch,
        Trouble::StaleHead => ConditionType::StaleHead,
        Trouble::StaleIntent => ConditionType::StaleIntent,
        Trouble::Superseded => ConditionType::Superseded,
    }
}

/// Why a condition of a copy is as it is.
pub const fn why(why: Why) -> Reason {
    match why {
        Why::State(state) => copy_state(state),
        Why::Trouble(trouble) => Reason::Of(trouble_type(trouble)),
        Why::Problem(reason) => Reason::Of(problem(reason)),
    }
}

const fn copy_state(state: CopyState) -> Reason {
    match state {
        CopyState::Open => Reason::Word(Word::Open),
        CopyState::Closed => Reason::Word(Word::Closed),
        CopyState::Superseded => Reason::Of(ConditionType::Superseded),
        CopyState::Headless => Reason::Of(ConditionType::Headless),
        CopyState::Migrating => Reason::Of(ConditionType::Migrating),
        CopyState::Fenced => Reason::Word(Word::Fenced),
        CopyState::InSync => Reason::Word(Word::InSync),
        CopyState::Creating => Reason::Word(Word::Creating),
        CopyState::Deleting => Reason::Of(ConditionType::Deleting),
        CopyState::Deleted => Reason::Word(Word::Deleted),
        CopyState::Absent => Reason::Word(Word::Absent),
    }
}

/// How far a move is.
pub const fn move_phase(phase: filesystem::MovePhase) -> MovePhase {
    match phase {
        filesystem::MovePhase::Copying => MovePhase::Copying,
        filesystem::MovePhase::WaitingForPods => MovePhase::WaitingForPods,
        filesystem::MovePhase::Freezing => MovePhase::Freezing,
        filesystem::MovePhase::Exporting => MovePhase::Exporting,
        filesystem::MovePhase::Committing => MovePhase::Committing,
        filesystem::MovePhase::Aborting => MovePhase::Aborting,
        filesystem::MovePhase::Done => MovePhase::Done,
        filesystem::MovePhase::Cancelled => MovePhase::Cancelled,
    }
}

/// Why something was refused or failed.
pub const fn problem(reason: model::Reason) -> ConditionType {
    match reason {
        model::Reason::Busy => ConditionType::Busy,
        model::Reason::NotPlaced => ConditionType::NotPlaced,
        model::Reason::Deleting => ConditionType::Deleting,
        model::Reason::ReceiverIsOwner => ConditionType::ReceiverIsOwner,
        model::Reason::StaleEpoch => ConditionType::StaleEpoch,
        model::Reason::BaseGone => ConditionType::BaseGone,
        model::Reason::Diverged => ConditionType::Diverged,
        model::Reason::NoCommonAncestor => ConditionType::NoCommonAncestor,
        model::Reason::NoCommits => ConditionType::NoCommits,
        model::Reason::InitialRefused => ConditionType::InitialRefused,
        model::Reason::NoSpace => ConditionType::NoSpace,
        model::Reason::NestedSubvolume => ConditionType::NestedSubvolume,
        model::Reason::SwapFile => ConditionType::SwapFile,
        model::Reason::CorruptStream => ConditionType::CorruptStream,
        model::Reason::DigestMismatch => ConditionType::DigestMismatch,
        model::Reason::Denied => ConditionType::Denied,
        model::Reason::Unreachable => ConditionType::Unreachable,
        model::Reason::Timeout => ConditionType::Timeout,
        model::Reason::Unsupported => ConditionType::Unsupported,
        model::Reason::FormatNewer => ConditionType::FormatNewer,
        model::Reason::Invalid => ConditionType::Invalid,
        model::Reason::Mounted => ConditionType::Mounted,
        model::Reason::Pinned => ConditionType::Pinned,
        model::Reason::NotFound => ConditionType::NotFound,
        model::Reason::Held => ConditionType::Held,
        model::Reason::NotOwner => ConditionType::NotOwner,
        model::Reason::AuthorityUnknown => ConditionType::AuthorityUnknown,
        model::Reason::EpochRegression => ConditionType::EpochRegression,
        model::Reason::PoolFailed => ConditionType::PoolFailed,
        model::Reason::CorruptDisk => ConditionType::CorruptDisk,
        model::Reason::Cancelled => ConditionType::Cancelled,
        model::Reason::Internal => ConditionType::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn both_sides_spell_a_word_alike() {
        for trouble in Trouble::ALL {
            assert_eq!(about((*trouble).into()).as_str(), trouble.to_string());
            assert_eq!(why(Why::Trouble(*trouble)).as_str(), trouble.to_string());
        }
        for state in CopyState::ALL {
            assert_eq!(why(Why::State(*state)).as_str(), state.to_string());
        }
        for phase in filesystem::MovePhase::ALL {
            assert_eq!(move_phase(*phase).as_str(), phase.to_string());
        }
        assert_eq!(about(About::Ready), ConditionType::Ready);
        let mut reasons = 0;
        for word in ConditionType::ALL {
            if let Ok(reason) = serde_json::from_value::<model::Reason>(word.as_str().into()) {
                assert_eq!(why(Why::Problem(reason)), Reason::Of(*word));
                reasons += 1;
            }
        }
        assert!(reasons > 0, "no word of the engine's is one of the API's");
    }

    #[test]
    fn the_metric_counts_each_trouble_of_a_copy() {
        let found: BTreeSet<_> = Trouble::ALL.iter().map(|t| about((*t).into())).collect();
        // That authority isn't open is a trouble while `Opened` is false, and that a pod still has what is deleted is no fault of the copy.
        let uncounted = BTreeSet::from([ConditionType::Opened, ConditionType::Mounted]);
        let counted = ConditionType::OF_COPIES.iter().copied().collect();
        assert_eq!(found.difference(&uncounted).copied().collect::<BTreeSet<_>>(), counted);
    }
}
