//! Conditions of our objects as one list per reconcile, and the events that follow from their transitions.
//!
//! Each kind has base conditions that are always there; what makes an object wait stands in `Ready`'s reason *and*
//! as a condition of its own type while it lasts, so that `kubectl wait --for=condition=BranchesExist` works.

use dotgraft_api::{
    Condition, ConditionType, ConditionUpdate, MovePhase, Problem, Reason, Time, Word, condition, plain, says, set_condition,
};

use crate::note::Note;

/// What stands in the way: a word and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The word.
    pub reason: Reason,
    /// What is wrong and what to do.
    pub message: String,
}

impl Block {
    /// A block with its message.
    pub fn new(reason: impl Into<Reason>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// One condition to be. Its words are ours, or another object's, which may be of a newer program: those are passed on as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    type_: String,
    status: Option<bool>,
    reason: String,
    message: String,
}

impl Wanted {
    /// What it says something about.
    pub fn type_(&self) -> &str {
        &self.type_
    }

    /// Why; `None`: in another object's word.
    pub fn reason(&self) -> Option<Reason> {
        self.reason.parse().ok()
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same with another sentence.
    #[must_use]
    pub fn saying(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }
}

/// A condition to be.
pub fn wanted(type_: ConditionType, status: impl Into<Option<bool>>, reason: impl Into<Reason>, message: impl Into<String>) -> Wanted {
    let (type_, reason) = (type_.to_string(), reason.into().to_string());
    Wanted { type_, status: status.into(), reason, message: message.into() }
}

/// A condition as an object has it.
pub fn same(c: &Condition) -> Wanted {
    Wanted { type_: c.type_.clone(), status: says(c), reason: c.reason.clone(), message: c.message.clone() }
}

/// What stands in the way of a run, as the reason of a condition; with none, as one of its own type.
pub fn of_problem(type_: Option<ConditionType>, status: bool, p: &Problem) -> Wanted {
    let type_ = type_.map_or_else(|| p.reason.clone(), |t| t.to_string());
    Wanted { type_, status: Some(status), reason: p.reason.clone(), message: p.message.clone() }
}

/// The new list: exactly `wanted`, with the times of transition kept where the status stays.
pub fn merge(old: &[Condition], wanted: &[Wanted], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let mut list: Vec<Condition> = old.iter().filter(|c| wanted.iter().any(|w| w.type_ == c.type_)).cloned().collect();
    for w in wanted {
        let update =
            ConditionUpdate { type_: &w.type_, status: w.status, reason: &w.reason, message: &w.message, observed_generation: generation };
        set_condition(&mut list, &update, now);
    }
    list
}

/// Good when true; all others, and what this version doesn't know, are bad when true.
fn good(type_: &str) -> bool {
    type_.parse().is_ok_and(ConditionType::is_good)
}

/// One note per condition whose status or reason changed; `Progressing` is too chatty for events.
pub fn transitions(old: &[Condition], new: &[Condition]) -> Vec<Note> {
    let mut notes: Vec<Note> = Vec::new();
    for c in new.iter().filter(|c| c.type_ != ConditionType::Progressing.as_str()) {
        let before = condition(old, &c.type_);
        let same = before.is_some_and(|b| b.status == c.status && b.reason == c.reason);
        // A trouble that is over is told by what is well again, if by nothing else.
        let over = !good(&c.type_) && says(c) != Some(true);
        let quiet = over && (before.is_none() || c.message == plain(&c.reason));
        if same || quiet || says(c).is_none() || notes.iter().any(|n| n.reason == c.reason) {
            continue;
        }
        let fine = (says(c) == Some(true)) == good(&c.type_);
        let was_well = before.is_some_and(|b| says(b) == Some(true));
        let starting = match c.reason.parse() {
            Ok(
                Reason::Word(Word::Creating | Word::Pending | Word::Running)
                | Reason::Of(ConditionType::Deleting | ConditionType::SourceNotReady),
            ) => true,
            // A move that goes on is what was asked for; one that is given up is not.
            Ok(Reason::Move(phase)) => !matches!(phase, MovePhase::Aborting | MovePhase::Cancelled),
            Ok(Reason::Word(Word::Absent)) => !was_well, // nothing is there yet, or nothing is there any more
            _ => false,
        };
        notes.push(Note { warning: !fine && !starting, reason: c.reason.clone(), message: c.message.clone() });
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(1_700_000_000).unwrap())
    }

    #[test]
    fn a_condition_that_is_wanted_no_more_goes() {
        let old = merge(
            &[],
            &[
                wanted(ConditionType::Ready, false, ConditionType::NameHasData, "x"),
                wanted(ConditionType::NameHasData, true, ConditionType::NameHasData, "x"),
            ],
            Some(1),
            &now(),
        );
        let new = merge(&old, &[wanted(ConditionType::Ready, true, ConditionType::Ready, "")], Some(1), &now());
        assert_eq!(new.len(), 1);
        assert_eq!(new[0].status, "True");
    }

    #[test]
    fn nothing_changes_means_equal_lists_and_no_event() {
        let w = [wanted(ConditionType::Ready, true, ConditionType::Ready, "fine")];
        let old = merge(&[], &w, Some(1), &now());
        let later = Time(k8s_openapi::jiff::Timestamp::from_second(1_800_000_000).unwrap());
        let new = merge(&old, &w, Some(1), &later);
        assert_eq!(old, new);
        assert!(transitions(&old, &new).is_empty());
    }

    #[test]
    fn a_move_that_goes_on_is_no_warning_and_one_that_is_given_up_is() {
        for (phase, warning) in
            [(MovePhase::Waiting, false), (MovePhase::Copying, false), (MovePhase::WaitingForPods, false), (MovePhase::Aborting, true)]
        {
            let moving = merge(&[], &[wanted(ConditionType::Migrating, true, phase, "from n1 to n2")], None, &now());
            assert_eq!(transitions(&[], &moving)[0].warning, warning, "{phase}");
        }
    }

    #[test]
    fn a_transition_makes_one_event_and_says_whether_it_is_bad() {
        let old = merge(&[], &[wanted(ConditionType::Ready, true, ConditionType::Ready, "")], None, &now());
        let bad = [
            wanted(ConditionType::Ready, false, ConditionType::Mounted, "by x"),
            wanted(ConditionType::Mounted, true, ConditionType::Mounted, "by x"),
        ];
        let notes = transitions(&old, &merge(&old, &bad, None, &now()));
        assert_eq!(notes, [Note { warning: true, reason: "Mounted".into(), message: "by x".into() }]);
        let absent = merge(&[], &[wanted(ConditionType::Ready, false, Word::Absent, "nothing of it is here")], None, &now());
        assert!(!transitions(&[], &absent)[0].warning, "it is only about to be made");
        assert!(transitions(&old, &absent)[0].warning, "it was there");
        let healed = [
            wanted(ConditionType::Ready, true, Word::Completed, "all is there"),
            wanted(ConditionType::Degraded, false, Word::AsExpected, ""),
        ];
        let ill = merge(
            &old,
            &[
                wanted(ConditionType::Ready, false, ConditionType::NoSpace, "x"),
                wanted(ConditionType::Degraded, true, ConditionType::NoSpace, "x"),
            ],
            None,
            &now(),
        );
        let notes = transitions(&ill, &merge(&ill, &healed, None, &now()));
        assert_eq!(notes, [Note { warning: false, reason: "Completed".into(), message: "all is there".into() }]);
        let first = transitions(&[], &merge(&[], &[wanted(ConditionType::Degraded, false, Word::AsExpected, "")], None, &now()));
        assert!(first.is_empty());
    }
}
