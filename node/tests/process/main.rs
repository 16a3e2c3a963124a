//! The process tier: real `kvasir-node` processes on loopback, used as their
//! users do, through gRPC and HTTP. No test knows what is inside a node.

mod harness;

mod api;
mod input;
mod life;
mod observe;
mod peer_port;
mod replication;
mod sdk;
