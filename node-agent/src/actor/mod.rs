//! One owner of all state of a Filesystem on this node (design §4): `FsHandle` is the way to it, `Registry` says who lives
//! here, `FsActor` is the owner, `tasks`, `send` and `receive` are the work that it starts and waits for.

pub mod api;
pub mod convert;
pub mod fs_actor;
pub mod handle;
pub mod node;
mod receive;
pub mod registry;
mod send;
mod tasks;
pub mod translate;

pub use fs_actor::{Order, start};
pub use handle::FsHandle;
pub use node::Node;
pub use registry::Registry;
