//! Compiles the protocol files with protox, so that no protoc has to be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/agent.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".dotgraft.agent.v1.ReceiveRequest.data")
        .codec_path("crate::bounded::BoundedCodec")
        .compile_fds(files)?;
    Ok(())
}
