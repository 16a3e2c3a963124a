//! The SDK and `kvctl` against real gRPC servers on loopback.

mod failover;
mod kvctl;
mod sdk;
mod world;
