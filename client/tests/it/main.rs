//! The SDK against stand-ins for nodes, over real gRPC on loopback.

mod events;
mod failover;
mod pipe;
mod sdk;
