//! The Rust SDK of Kvasir, a replicated in-memory key/value store for Kubernetes.
//!
//! Every node of a Kvasir cluster holds every key and takes every call. An application normally talks to the sidecar
//! beside it, whose address the injector leaves in `KVASIR_ADDRESS`; a program without a sidecar names the cluster's
//! Service instead.
//!
//! ```no_run
//! use kvasir_client::{Client, PutOptions};
//! use std::time::Duration;
//!
//! # async fn run() -> Result<(), kvasir_client::Error> {
//! let client = Client::from_env()?;
//! client.put("greeting", "hello", PutOptions::with_ttl(Duration::from_secs(30))).await?;
//! if let Some(found) = client.get("greeting").await? {
//!     println!("{:?}, ends in {:?}", found.value, found.ttl);
//! }
//! client.delete("greeting").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # When a node goes away
//!
//! A [`Client`] is a cheap handle: clone it, share it, keep it for the life of the program. A call that meets a node
//! which is not ready, is draining, does not answer in time or cannot be reached is tried again, on a **new
//! connection**: behind a Kubernetes Service that is what reaches another node, since a connection once made stays
//! with the node that it was made to. [`RetryPolicy`] bounds this; [`Error::Unavailable`] comes when the budget is
//! spent.
//!
//! Calls that are tried again may be carried out twice, when the first one arrived and only its answer was lost:
//!
//! - a `put` then writes the same value twice. The later one has a newer version, so a write of the same key by
//!   somebody else that fell between the two is overwritten, as it would be by a put sent a moment later;
//! - the TTL of such a `put` counts from the attempt that was answered;
//! - a `delete` may answer `false` because its own first attempt had deleted the key.
//!
//! After a failure the client may be talking to another node than before. Nodes hear of each other's writes within
//! milliseconds, but a read right after a switch can still miss a write made just before it. A [`Session`] never does;
//! and a put with an [`Ack`] is held by others before it is answered.
//!
//! # Many at once
//!
//! Calls share one connection and may be made together from any number of tasks. For many small ones a [`Pipe`] is
//! faster, which carries them on one stream; for many keys that are known beforehand there are batches
//! ([`Client::batch_get`] and its like). [`Client::watch`] tells what happens to keys, [`Client::events`] what happens to
//! the nodes.

mod ack;
mod address;
mod batch;
mod builder;
mod calls;
mod client;
mod cluster;
mod codec;
mod credentials;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod kv;
mod link;
mod list;
mod pipe;
mod retry;
mod session;
mod watch;

pub use ack::{Ack, AckLevel};
pub use address::{DEFAULT_ADDRESS, DEFAULT_PORT};
pub use builder::Builder;
pub use bytes::Bytes;
pub use client::Client;
pub use cluster::{
    DiscoveryStatus, Leader, Member, MemberState, Phase, Role, SkewedPeer, Status, UnjoinablePeer, WhoAmI,
};
pub use codec::{Codec, Json, Proto, Text};
pub use credentials::Credentials;
pub use error::Error;
pub use events::{ClusterEvent, Happened};
pub use kv::{BatchGetOptions, Entry, ListOptions, PutOptions, Value, Version};
pub use pipe::{PIPE_IN_FLIGHT, Pipe};
pub use retry::RetryPolicy;
pub use session::Session;
pub use watch::{Event, WatchOptions};

/// The program in the README, which is to compile too.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
