//! Every decision of Dotgraft, as pure synchronous state machines: no tokio, kube, disk, clock or randomness.
//!
//! - [`ids`], [`handle`], [`model`], [`words`]: the words; [`format`](mod@format): the versions of all that is kept of them.
//! - [`authority`]: who may write, and every transition of that (migration.md §2).
//! - [`copies`]: which copy holds which kept commit, and whether it may go.
//! - [`filesystem`]: all state of one Filesystem on one node (design §4).
//! - [`schedule`]: when something is to be done by itself.
//! - [`run`]: one execution of a ReplicationJob for one Filesystem (replication.md).
//! - [`step`]: the order in which a shell does what they decide.

pub mod authority;
pub mod behind;
pub mod copies;
pub mod filesystem;
pub mod format;
pub mod handle;
pub mod ids;
pub mod model;
pub mod run;
pub mod schedule;
pub mod step;
pub mod words;
