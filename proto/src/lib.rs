//! Generated gRPC code, and nothing else. The sources are in `proto/proto`.
#![allow(missing_docs, clippy::pedantic)] // generated

/// What agents say to each other and to programs of their node.
pub mod agent {
    /// `dotgraft.agent.v1`
    pub mod v1 {
        tonic::include_proto!("dotgraft.agent.v1");
    }
}
