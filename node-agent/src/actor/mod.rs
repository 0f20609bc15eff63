//! One owner of all state of a Filesystem on this node (design §4): handle, registry, actor.

pub mod handle;
pub mod registry;

pub use handle::FsHandle;
pub use registry::Registry;
