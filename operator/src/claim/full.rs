//! A volume whose room is used up: which of the two it is, files or history, and what to do. Both share one limit, and files may take the
//! history's room (ADR 32). Pure.

use dotgraft_api::quantity::human;
use dotgraft_api::{Condition, ConditionType, Replica, Word, is_true};

use crate::conditions::{Wanted, wanted};

/// Used so far, of a hundred, it is full …
const FULL: u64 = 95;
/// … until it is below that.
const FREE_AGAIN: u64 = 90;

/// The condition, by what the owner's agent says. `old`: the conditions so far.
pub fn full(owner: &Replica, old: &[Condition]) -> Option<Wanted> {
    let status = owner.status.as_ref().filter(|s| s.limit > 0)?;
    let was_full = is_true(old, ConditionType::Full).is_some();
    let used = u128::from(status.bytes) * 100 / u128::from(status.limit);
    if used < u128::from(if was_full { FREE_AGAIN } else { FULL }) {
        return None;
    }
    let (capacity, history_limit) = (owner.spec.desired.capacity, owner.spec.desired.history_limit);
    let all = format!("{} of {} are used", human(status.bytes), human(status.limit));
    // A clone's files are in part its origin's, which no walk of them can tell (ADR 39).
    let is_clone = owner.spec.desired.origin_bytes.max(status.origin_bytes) > 0;
    let Some(files) = status.file_bytes.filter(|_| !is_clone) else {
        let text = format!("{all}, by files and history together: delete files or Commits, or raise capacity or historyLimit");
        return Some(wanted(ConditionType::Full, true, ConditionType::Full, text));
    };
    let history = status.bytes.saturating_sub(files);
    let parts = format!(
        "{all}: about {} by files, of the {} that are theirs, and {} by history, of {}",
        human(files),
        human(capacity),
        human(history),
        human(history_limit)
    );
    // What is more beyond its own share.
    let (reason, what) = if files.saturating_sub(capacity) >= history.saturating_sub(history_limit) && files >= capacity / 100 * FREE_AGAIN
    {
        (Word::FilesFull, "delete files, or raise capacity (the size of the PVC)")
    } else {
        (Word::HistoryFull, "delete Commits or VolumeSnapshots, or raise historyLimit")
    };
    Some(wanted(ConditionType::Full, true, reason, format!("{parts}: {what}")))
}

#[cfg(test)]
mod tests {
    use dotgraft_api::{CopyRole, Desired, ReplicaSpec, Time};
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::conditions;
    use crate::filesystem::spare::Marks;
    use crate::testing;

    const MI: u64 = 1 << 20;

    fn owner(bytes: u64, files: Option<u64>) -> Replica {
        let desired = Desired { capacity: 900 * MI, history_limit: 900 * MI, ..Desired::default() };
        let mut r = testing::replica(ReplicaSpec { desired, ..ReplicaSpec::default() }, Marks::default(), CopyRole::Owner);
        let status = r.status.as_mut().unwrap();
        (status.bytes, status.limit, status.file_bytes) = (bytes * MI, 1800 * MI, files.map(|f| f * MI));
        r
    }
    fn told(bytes: u64, files: Option<u64>, old: &[Condition]) -> Option<(String, String)> {
        full(&owner(bytes, files), old).map(|w| (w.reason().unwrap().to_string(), w.message().to_owned()))
    }

    #[test]
    fn it_says_which_of_the_two_is_used_up() {
        let reason = |bytes, files| told(bytes, files, &[]).map(|(reason, _)| reason);
        assert_eq!(reason(1700, Some(1600)), None, "there is room");
        assert_eq!(reason(1790, Some(1600)).as_deref(), Some("FilesFull"), "files have taken the history's room");
        assert_eq!(reason(1790, Some(880)).as_deref(), Some("HistoryFull"));
        assert_eq!(reason(1790, Some(100)).as_deref(), Some("HistoryFull"));
        assert_eq!(reason(1800, Some(900)).as_deref(), Some("FilesFull"), "both are: who writes is told of files");
        assert_eq!(reason(1790, None).as_deref(), Some("Full"), "nobody could tell them apart in time");
        let mut clone = owner(1790, Some(1600));
        clone.spec.desired.origin_bytes = MI;
        assert_eq!(full(&clone, &[]).unwrap().reason().unwrap().to_string(), "Full", "what it shares isn't in its bytes");
        let (_, text) = told(1790, Some(1600), &[]).unwrap();
        assert!(text.contains("1.6Gi by files, of the 900Mi") && text.contains("raise capacity"), "{text}");
    }

    #[test]
    fn it_does_not_flicker() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let was = conditions::merge(&[], &[wanted(ConditionType::Full, true, Word::FilesFull, "m")], None, &now);
        assert!(told(1650, Some(1600), &was).is_some() && told(1650, Some(1600), &[]).is_none());
        assert!(told(1600, Some(1550), &was).is_none());
    }
}
