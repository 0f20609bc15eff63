//! The agent of a node: one owner per Filesystem, and what it needs of disk, network and API.
//!
//! `actor` decides (through `engine`) and owns; `driver` and `btrfs` are the disk; `stream` applies what peers send;
//! `peer` is the network; `csi` is what the kubelet asks; `journal` is memory that survives; `cluster` is the API server.

pub mod account;
pub mod actor;
pub mod app;
pub mod btrfs;
pub mod clock;
pub mod cluster;
pub mod csi;
mod descent;
pub mod digest;
pub mod driver;
pub mod journal;
mod kernel;
pub mod logging;
pub mod metrics;
pub mod peer;
pub mod probe;
pub mod readiness;
pub mod socket;
pub mod strays;
pub mod stream;
pub mod supervisor;
pub mod target;
