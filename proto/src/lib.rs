//! The wire types of Kvasir, generated from the `.proto` files in `proto/kvasir`.
//!
//! The feature `client` adds the client stubs, `server` the traits of the server.

/// The public gRPC API.
pub mod v1 {
    #![allow(missing_docs, clippy::pedantic)] // generated from the documented .proto
    tonic::include_proto!("kvasir.v1");

    /// The encoded `FileDescriptorSet` of the public API, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The protocol between nodes.
pub mod peer {
    /// Version 1.
    pub mod v1 {
        #![allow(missing_docs, clippy::pedantic)] // generated from the documented .proto
        tonic::include_proto!("kvasir.peer.v1");
    }
}
