//! Compiles the protocol files with protox, so that no protoc has to be installed.
//!
//! `agent.proto` is ours; `csi/` is the Container Storage Interface 1.12 and `registration/` the kubelet's plugin registration v1, both
//! as published, with their licence beside them. These two are spoken on sockets that only root reaches, so they need no codec of ours.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        .bytes(".dotgraft.agent.v1.ReceiveRequest.data")
        .codec_path("crate::bounded::BoundedCodec")
        .compile_fds(protox::compile(["proto/agent.proto"], ["proto"])?)?;
    tonic_prost_build::configure().compile_fds(protox::compile(["proto/csi/csi.proto"], ["proto/csi"])?)?;
    tonic_prost_build::configure().compile_fds(protox::compile(["proto/registration/api.proto"], ["proto/registration"])?)?;
    Ok(())
}
