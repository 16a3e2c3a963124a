//! Compiles the `.proto` files with a compiler in Rust, so that no system
//! `protoc` is needed.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["kvasir/v1/kv.proto", "kvasir/v1/cluster.proto", "kvasir/peer/v1/peer.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let public = protox::compile(&files[..2], ["."])?;
    let peer = protox::compile(&files[2..], ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), public.encode_to_vec())?;
    // `Bytes` fields share the receive buffer: no copy of a value on its way in.
    tonic_prost_build::configure().bytes(".").compile_fds(public)?;
    tonic_prost_build::configure().bytes(".").compile_fds(peer)?;
    Ok(())
}
