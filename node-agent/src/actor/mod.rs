//! One owner of all state of a Filesystem on this node (design §4): `FsHandle` is the way to it, `Registry` says who lives
//! here, `FsActor` is the owner, `tasks`, `send` and `receive` are the work that it starts and waits for;
//! `closed` is what it does while its rows can't be read.

pub mod api;
mod closed;
pub mod convert;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // a world of tests
mod fakes;
pub mod fs_actor;
pub mod handle;
pub mod node;
mod orders;
pub mod ports;
mod receive;
pub mod registry;
pub mod report;
mod send;
mod tasks;
pub mod translate;
pub mod words;

pub use fs_actor::start;
pub use handle::FsHandle;
pub use node::Node;
pub use orders::{Order, Orders};
pub use registry::Registry;
