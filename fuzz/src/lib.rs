//! Properties of every decoder that reads from a socket or a file, for any input.
//!
//! Each target is a function that passes bytes to production code and panics if a property does not hold: not only that
//! nothing panics, but that values survive a round trip, that one part of Kvasir accepts what another part writes, and
//! that a state machine stays consistent. `make fuzz` runs the targets under libFuzzer (see `libfuzzer/`); this crate's
//! test runs them with seeds and some thousand random inputs.
//!
//! Not here, because a library decodes it and our code does not see the bytes: HTTP/2 and gRPC framing (hyper, tonic),
//! TLS (rustls), DNS answers (hickory), the objects of the API server (k8s-openapi).

mod admission;
mod announcement;
mod answers;
mod certificates;
mod chains;
mod client_port;
mod cluster;
mod input;
mod membership;
mod node_status;
mod noise;
mod peers;
mod sealed;
mod secret_files;
mod settings;
mod store;
mod text;
mod tokens;

/// A decoder and its properties.
#[derive(Debug)]
pub struct Target {
    /// The name on the command line.
    pub name: &'static str,
    /// Panics if a property does not hold.
    pub run: fn(&[u8]),
    /// Initial inputs, each of which gets far into the decoder.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest useful input, in bytes.
    pub max_len: usize,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "peers", run: peers::run, seeds: peers::seeds, max_len: 4096 },
    Target { name: "store", run: store::run, seeds: store::seeds, max_len: 4096 },
    Target { name: "frames", run: peers::run_frames, seeds: peers::frame_seeds, max_len: 4096 },
    Target { name: "membership", run: membership::run, seeds: membership::seeds, max_len: 2048 },
    Target { name: "noise", run: noise::run, seeds: noise::seeds, max_len: 1024 },
    Target { name: "sealed", run: sealed::run, seeds: sealed::seeds, max_len: 1024 },
    Target { name: "client-port", run: client_port::run, seeds: client_port::seeds, max_len: 2048 },
    Target { name: "tokens", run: tokens::run, seeds: tokens::seeds, max_len: 512 },
    Target { name: "secret-files", run: secret_files::run, seeds: secret_files::seeds, max_len: 2048 },
    Target { name: "chains", run: chains::run, seeds: chains::seeds, max_len: 4096 },
    Target { name: "answers", run: answers::run, seeds: answers::seeds, max_len: 2048 },
    Target { name: "announcement", run: announcement::run, seeds: announcement::seeds, max_len: 1100 },
    Target { name: "settings", run: settings::run, seeds: settings::seeds, max_len: 4096 },
    Target { name: "text", run: text::run, seeds: text::seeds, max_len: 64 },
    Target { name: "admission", run: admission::run, seeds: admission::seeds, max_len: 4096 },
    Target { name: "certificates", run: certificates::run, seeds: certificates::seeds, max_len: 8192 },
    Target { name: "cluster", run: cluster::run, seeds: cluster::seeds, max_len: 2048 },
    Target { name: "node-status", run: node_status::run, seeds: node_status::seeds, max_len: 2048 },
];
