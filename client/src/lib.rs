//! The Rust SDK of Kvasir, a replicated in-memory key/value store for Kubernetes.
//!
//! Every node of a Kvasir cluster holds every key, and any node takes every call. An application usually talks to the
//! sidecar in its pod; a program without a sidecar talks to the cluster's Service.
//!
//! # Connect
//!
//! [`Client::from_env`] reads `KVASIR_ADDRESS`, which the webhook sets in every pod that it gives a sidecar, and otherwise
//! uses [`DEFAULT_ADDRESS`]. [`Client::connect`] takes an address, [`Client::builder`] also timeouts, retries and
//! [`Credentials`]. A client is a cheap handle: clone it, share it between tasks, and keep it for the life of the program.
//!
//! ```no_run
//! use kvasir_client::{Client, Credentials};
//!
//! # async fn run() -> Result<(), kvasir_client::Error> {
//! let sidecar = Client::from_env()?;
//! let service = Client::connect("demo.default.svc:7070").await?;
//! let encrypted = Client::builder("https://demo.default.svc:7070")
//!     .credentials(Credentials::default().ca_file("/run/secrets/kvasir/ca.crt"))
//!     .connect()
//!     .await?;
//! # drop((sidecar, service, encrypted));
//! # Ok(())
//! # }
//! ```
//!
//! # Put and get
//!
//! A value is any bytes. [`Client::put_json`], [`Client::put_proto`] and [`Client::put_string`] store other types, and a
//! [`Codec`] adds one. A key that does not exist is `None`, not an error.
//!
//! ```no_run
//! use kvasir_client::PutOptions;
//!
//! # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
//! client.put("greeting", "hello", PutOptions::default()).await?;
//! if let Some(found) = client.get("greeting").await? {
//!     println!("{:?}, written as {}", found.value, found.version);
//! }
//! let existed = client.delete("greeting").await?;
//! # let _ = existed;
//! # Ok(())
//! # }
//! ```
//!
//! # TTL
//!
//! A key with a TTL expires on all nodes at the same moment. [`Client::touch`] sets another TTL or removes it.
//!
//! ```no_run
//! use kvasir_client::PutOptions;
//! use std::time::Duration;
//!
//! # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
//! client.put("lock/job-7", "worker-3", PutOptions::with_ttl(Duration::from_secs(30))).await?;
//! client.touch("lock/job-7", Some(Duration::from_secs(30))).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Wait for other nodes
//!
//! A put returns once the node that took it has it; other nodes get it within milliseconds. With an [`Ack`] the call
//! returns when as many nodes as you ask for hold the write, or fails with [`Error::NotHeld`].
//!
//! ```no_run
//! use kvasir_client::{AckLevel, PutOptions};
//!
//! # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
//! client.put("order/17", "paid", PutOptions::with_ack(AckLevel::Majority)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Sessions
//!
//! After a failure the client may talk to another node, which may not have a write that was made just before. A
//! [`Session`] reads its own writes, and never an older value after a newer one, on any node. Its token carries this
//! guarantee to another process.
//!
//! ```no_run
//! use kvasir_client::PutOptions;
//!
//! # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
//! let mut session = client.session();
//! session.put("cart/7", "one apple", PutOptions::default()).await?;
//! assert!(session.exists("cart/7").await?);
//! let mut elsewhere = client.resume(session.token());
//! assert!(elsewhere.exists("cart/7").await?);
//! # Ok(())
//! # }
//! ```
//!
//! # Watch
//!
//! [`Client::watch`] streams changes of keys, [`Client::events`] changes of the cluster's nodes.
//!
//! ```no_run
//! use futures::TryStreamExt as _;
//! use kvasir_client::{Event, WatchOptions};
//!
//! # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
//! let mut events = client.watch("config/", WatchOptions::default());
//! while let Some(event) = events.try_next().await? {
//!     if let Event::Put { key, value } = event {
//!         println!("{key} is {:?} now", value.value);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Many calls
//!
//! Calls from any number of tasks share one connection. A [`Pipe`] carries many small calls on one stream, which is
//! faster; batches such as [`Client::batch_get`] read or write many known keys with one call.
//!
//! ```no_run
//! use kvasir_client::PutOptions;
//!
//! # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
//! let pipe = client.pipe();
//! let puts = (0..1000).map(|n| pipe.put(format!("n/{n}"), n.to_string(), PutOptions::default()));
//! futures::future::try_join_all(puts).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # When a node goes away
//!
//! A call is tried again on a **new connection** if the node is not ready, is draining, does not answer in time, or
//! cannot be reached. The new connection matters behind a Kubernetes Service: an open connection stays with its node, and
//! only a new one reaches another. [`RetryPolicy`] limits the retries; [`Error::Unavailable`] means that its budget is
//! spent.
//!
//! A call that is tried again may be carried out twice, if the first attempt arrived and only its answer was lost:
//!
//! - A `put` then writes the same value twice. The second write has a newer version, so it overwrites a write of another
//!   client between the two, as a put that was sent a moment later would.
//! - The TTL of such a `put` counts from the attempt that was answered.
//! - A `delete` may return `false` because its own first attempt deleted the key.
//!
//! # Features
//!
//! All are on by default, so that everything on this page works. With `default-features = false` name what you need.
//!
//! | feature | adds | without it |
//! | --- | --- | --- |
//! | `json` | [`Json`], `put_json` and `get_json` | no serde |
//! | `proto` | [`Proto`], `put_proto` and `get_proto` | no prost in the API; it stays a dependency of gRPC |
//! | `tls` | `https://` addresses | no rustls and no C compiler; an `https://` address is an error that names the feature |
//!
//! The crate compiles with Rust 1.88 and later.

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
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "proto")]
pub use codec::Proto;
pub use codec::{Codec, Text};
pub use credentials::Credentials;
pub use error::Error;
pub use events::{ClusterEvent, Happened};
pub use kv::{BatchGetOptions, Entry, ListOptions, PutOptions, Value, Version};
pub use pipe::{PIPE_IN_FLIGHT, Pipe};
pub use retry::RetryPolicy;
pub use session::Session;
pub use watch::{Event, WatchOptions};

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
