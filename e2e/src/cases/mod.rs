//! The tests, by subject. A new file of cases is added to [`all`].

pub mod rights;

use crate::harness::Case;

/// Every case, in the order in which they run.
pub fn all() -> Vec<Case> {
    [rights::cases()].into_iter().flatten().collect()
}
