//! Generated gRPC code, the codec that bounds what it decodes, and what Unix sockets need. The sources are in `proto/proto`.

pub mod authority;
pub mod bounded;

/// What agents say to each other and to programs of their node.
pub mod agent {
    /// `dotgraft.agent.v1`
    #[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)] // generated
    pub mod v1 {
        tonic::include_proto!("dotgraft.agent.v1");
    }
}

/// The Container Storage Interface.
pub mod csi {
    /// `csi.v1`, of CSI 1.12.
    #[allow(missing_docs, deprecated, rustdoc::all, clippy::all, clippy::pedantic)] // generated
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// How a driver makes itself known to the kubelet: `pluginregistration`, v1.
#[allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic)] // generated
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
