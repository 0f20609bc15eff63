//! What several cases do: no cases here.

pub mod cli;
pub mod csi;
pub mod disk;
pub mod etcd;
pub mod kill;
pub mod left;
pub mod loops;
pub mod many;
pub mod mount;
pub mod owner;
pub mod pod;
pub mod pods;
pub mod sidecar;
pub mod stray;
pub mod tenant;
pub mod watched;
