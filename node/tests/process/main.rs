//! The process tier: real `kvasir-node` processes on loopback, used only through gRPC and HTTP, as their users do.

mod dns_server;
mod harness;
mod memory_group;
mod mounted;
mod nats_server;

mod access;
mod api;
mod dev;
mod discovery;
mod encryption;
mod eviction;
mod examples;
mod forged;
mod founding;
mod full;
mod input;
mod life;
mod limits;
mod memory;
mod names;
mod nats;
mod observe;
mod peer_port;
mod replication;
mod sdk;
mod sdk_streams;
mod tls;
