//! The states of a run, of its item and of its steps, and the table of what may follow what
//! (replication.md §1). A `Run` derives all three from one phase; nothing is stored twice.

use std::fmt;

use serde::{Deserialize, Serialize};

/// State of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// Lists both sides, finds the path, estimates.
    Planning,
    /// Planning failed for now; sleeps.
    PlanningError,
    /// Takes steps.
    Working,
    /// A step failed for now; sleeps.
    WorkingWait,
    /// The end, with the target on the receiver or with a problem.
    Completed,
    /// The end: someone cancelled it, or its deadline passed.
    ContextDone,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Planning, Self::PlanningError, Self::Working, Self::WorkingWait, Self::Completed, Self::ContextDone];

    /// What may follow this state: the table of replication.md §1.
    pub const fn leaves_to(self) -> &'static [Self] {
        match self {
            Self::Planning => &[Self::Working, Self::PlanningError, Self::Completed, Self::ContextDone],
            Self::PlanningError => &[Self::Planning, Self::ContextDone],
            Self::Working => &[Self::Working, Self::WorkingWait, Self::Completed, Self::ContextDone],
            Self::WorkingWait => &[Self::Working, Self::Planning, Self::ContextDone],
            Self::Completed | Self::ContextDone => &[],
        }
    }

    /// Whether the table has this transition.
    pub fn may_become(self, next: Self) -> bool {
        self.leaves_to().contains(&next)
    }

    /// Whether nothing follows.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::ContextDone)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// State of the one Filesystem that a run is about, as the job's report lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ItemState {
    /// No plan yet.
    Planning,
    /// Planned; no step is in hand at this moment.
    Ready,
    /// A step is in hand.
    Active,
    /// Sleeps after a temporary error.
    RetryWait,
    /// Ended with a problem.
    PermanentError,
    /// Ended with the target on the receiver.
    Completed,
}

impl fmt::Display for ItemState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// State of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepState {
    /// Not begun.
    Ready,
    /// Bytes flow.
    Sending,
    /// All bytes are there; the receiver compares digests and makes it durable.
    Verifying,
    /// On the receiver; our cursor follows.
    MovingCursor,
    /// Done.
    Done,
    /// Failed for now.
    Retry,
    /// Failed for good, or given up.
    Failed,
}

impl fmt::Display for StepState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_that_is_not_the_end_can_be_cancelled() {
        for state in State::ALL {
            assert_eq!(state.may_become(State::ContextDone), !state.is_end(), "{state}");
            assert_eq!(state.leaves_to().is_empty(), state.is_end(), "{state}");
        }
    }

    #[test]
    fn a_sleep_never_ends_as_completed() {
        assert!(!State::PlanningError.may_become(State::Completed));
        assert!(!State::WorkingWait.may_become(State::Completed));
    }
}
