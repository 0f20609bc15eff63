//! dotgraft-operator: decides, from objects alone, what every agent is to do (design §2 and §5), and signs the
//! agents' certificates. No data passes through it; it can be away at any time without loss.
//!
//! Every controller goes the same way: **gather** all objects concerned (from watched caches; from the API server
//! where data is decided about) → validate and **plan** (pure, tested as tables) → **apply** (server-side apply, or
//! compare-and-swap for a Filesystem's status) → **status** (only when it changes, with events on transitions).
//!
//! Ground, which knows no controller (`tests/layers.rs` holds it to that): `names`, `error`, `metrics`, `note`, `conditions`, `handle`, `cache`,
//! `caches`, `context`, `write`, `live`, `pools`, `triggers`. What wakes a controller stands beside it, in `<kind>/triggers.rs`; `runtime` only
//! starts them.

pub mod ca;
pub mod cache;
pub mod caches;
pub mod claim;
pub mod commit;
pub mod conditions;
pub mod content;
pub mod context;
pub mod crds;
pub mod csi;
pub mod error;
pub mod filesystem;
pub mod handle;
pub mod http;
pub mod job;
pub mod lag;
pub mod leader;
pub mod live;
pub mod metrics;
pub mod names;
pub mod nodepool;
pub mod note;
pub mod operation;
pub mod pools;
pub mod pvc;
pub mod replica;
pub mod runtime;
pub mod signer;
#[cfg(test)]
mod testing;
pub mod triggers;
pub mod troubles;
pub mod volumes;
pub mod webhook;
pub mod write;
