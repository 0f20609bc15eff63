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
        let history = self.history.in_order();
        let kept = || history.iter().rev().filter(|c| is_kept(c));
        Holding {
            kept: kept().take(KEPT_MAX).map(|c| c.id).collect(),
            complete: self.standing.is_inspected() && kept().count() <= KEPT_MAX,
            complete_to: history.last().map(|c| c.order()),
        }
    }
}

/// An object wants it, and it wasn't let go.
const fn is_kept(commit: &Commit) -> bool {
    commit.kept.is_some() && !commit.transient
}
