//! Volumes under real pods and a real database: what users do to them, and what happens to the nodes below.
//!
//! Every writer here notes outside its volume what was acknowledged to it; after each event nothing of that may be missing.

mod commits;
mod confined;
mod database;
mod evicted;
mod failing;
mod full;
mod holders;
mod killed;
mod upgrade;

use crate::harness::Case;

/// All cases.
pub fn cases() -> Vec<Case> {
    let all = [
        database::cases(),
        upgrade::cases(),
        killed::cases(),
        failing::cases(),
        full::cases(),
        commits::cases(),
        holders::cases(),
        evicted::cases(),
        vec![confined::case()],
    ];
    all.into_iter().flatten().collect()
}
