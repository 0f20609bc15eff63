//! What a copy lacks of what its Filesystem's owner has, and since when: the one definition of lag ([ADR 33]). Metrics, statuses and
//! columns show it; nobody computes it otherwise.
//!
//! [ADR 33]: https://github.com/dotgraft/dotgraft/blob/main/docs/adr/0033-what-lag-is.md

/// What a copy lacks. `T`: a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind<T> {
    /// Commits that the owner has and the copy lacks, as far as the list went back.
    pub commits: usize,
    /// None of the list is there: it may lack more.
    pub or_more: bool,
    /// When the oldest of what it lacks was there: the oldest such commit; if none is missing, the first write after the newest. `None`: it
    /// lacks nothing.
    pub since: Option<T>,
}

/// Compares a copy with its owner. `newest_first`: the owner's commits; `is_there`: whether the copy has it, or goes back to it in the history;
/// `written`: since when the owner's files differ from its newest commit.
pub fn behind<C, T>(
    newest_first: impl IntoIterator<Item = C>,
    is_there: impl Fn(&C) -> bool,
    time: impl Fn(&C) -> T,
    written: Option<T>,
) -> Behind<T> {
    let (mut commits, mut oldest, mut met) = (0, None, false);
    for commit in newest_first {
        if is_there(&commit) {
            met = true;
            break;
        }
        commits += 1;
        oldest = Some(time(&commit));
    }
    Behind { commits, or_more: commits > 0 && !met, since: oldest.or(written) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits of the times 5, 3 and 1.
    fn with(there: &[i32], written: Option<i32>) -> Behind<i32> {
        behind([5, 3, 1], |c| there.contains(c), |c| *c, written)
    }

    #[test]
    fn it_begins_with_the_oldest_that_is_missing() {
        assert_eq!(with(&[5], None), Behind { commits: 0, or_more: false, since: None });
        assert_eq!(with(&[3], None), Behind { commits: 1, or_more: false, since: Some(5) });
        assert_eq!(with(&[1], Some(7)), Behind { commits: 2, or_more: false, since: Some(3) });
        assert_eq!(with(&[], None), Behind { commits: 3, or_more: true, since: Some(1) });
    }

    #[test]
    fn what_was_written_since_is_missing_too() {
        assert_eq!(with(&[5], Some(7)), Behind { commits: 0, or_more: false, since: Some(7) });
    }
}
