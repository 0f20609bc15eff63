//! A push that is interrupted.

use crate::harness::Case;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![]
}
