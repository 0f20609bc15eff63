//! The fence of storage.md §3.

use crate::harness::Case;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![]
}
