//! Real data for tests and demo: trees to copy, a database that is being written, and ways to compare, none of which
//! shares code with the agents.

pub mod digest;
pub mod journal;
pub mod sqlite;
pub mod stream;
pub mod synced;
pub mod tree;
