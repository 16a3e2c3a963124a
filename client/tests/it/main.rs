//! The SDK and `kvctl` against real gRPC servers on loopback.

mod events;
mod failover;
mod kvctl;
mod pipe;
mod sdk;
mod world;
