//! What this copy says that it holds, as facts that others decide by: which kept commits are here, whether that is all of them, and up to
//! where the history is here ([`crate::copies`], ADR 13).

use serde::Serialize;

use super::Filesystem;
use crate::ids::CommitId;
use crate::model::{Commit, Order};

/// Most kept commits that are listed: 37 KiB of an object.
const KEPT_MAX: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holding {
    /// Commits that objects want kept and that are here, whole and durable; newest first, at most 1024.
    pub kept: Vec<CommitId>,
    /// There are no others, and the disk was looked at.
    pub complete: bool,
    /// The newest commit here, also one that the Filesystem made for itself; `None`: there is none.
    pub complete_to: Option<Order>,
}

impl Filesystem {
    pub(super) fn holding(&self) -> Holding {
        Holding::of(&self.history.in_order(), self.standing.is_inspected())
    }
}

impl Holding {
    /// `history`: oldest first.
    fn of(history: &[&Commit], is_inspected: bool) -> Self {
        let kept = || history.iter().rev().filter(|c| is_kept(c));
        Self {
            kept: kept().take(KEPT_MAX).map(|c| c.id).collect(),
            complete: is_inspected && kept().count() <= KEPT_MAX,
            complete_to: history.last().map(|c| c.order()),
        }
    }
}

/// An object wants it, and it wasn't let go.
const fn is_kept(commit: &Commit) -> bool {
    commit.kept.is_some() && !commit.transient
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::format::Kind;
    use crate::ids::{Epoch, FsId, RequestUid, Timestamp};

    fn commit(n: u64) -> Commit {
        let uuid = uuid::Uuid::from_u128(u128::from(n));
        Commit {
            version: Kind::Commit.newest(),
            id: CommitId::from_uuid(uuid),
            fs_id: FsId::from_uuid(uuid::Uuid::nil()),
            parent: None,
            time: Timestamp(0),
            epoch: Epoch(1),
            seq: n,
            message: String::new(),
            metadata: BTreeMap::new(),
            kept: Some(RequestUid::from_uuid(uuid)),
            transient: false,
            reset_to: None,
        }
    }

    #[test]
    fn what_objects_want_is_listed_and_all_of_it_only_where_that_is_known() {
        let let_go = Commit { transient: true, ..commit(2) };
        let scheduled = Commit { kept: None, ..commit(3) };
        let (first, last) = (commit(1), commit(4));
        let holding = Holding::of(&[&first, &let_go, &scheduled, &last], true);
        assert_eq!(holding.kept, [last.id, first.id]);
        assert_eq!((holding.complete, holding.complete_to), (true, Some(last.order())));
        assert!(!Holding::of(&[&first], false).complete, "the disk was not looked at");
        let many: Vec<Commit> = (0..=1024).map(commit).collect();
        let all = |n: usize| Holding::of(&many.iter().take(n).collect::<Vec<_>>(), true);
        assert!(all(1024).complete);
        assert_eq!((all(1025).complete, all(1025).kept.len()), (false, 1024), "there are more than are listed");
    }
}
