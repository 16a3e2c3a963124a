//! Compiles the `.proto` files with a compiler in Rust, so that no `protoc` has to be installed.

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
    for files in [public, peer] {
        tonic_prost_build::configure()
            // `Bytes` fields share the receive buffer, so that incoming values are not copied.
            .bytes(".")
            .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
            .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
            .compile_fds(files)?;
    }
    Ok(())
}
