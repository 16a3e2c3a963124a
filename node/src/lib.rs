//! The Kvasir node: a full replica of the cluster's map, with the gRPC API in front of it.
//!
//! The program `kvasir-node` is a thin layer over this library. Use the library to run a node inside another program:
//! in tests, or with a [discovery provider](discovery::Provider) of your own.
//!
//! # One node
//!
//! [`Settings`](config::Settings) are what a configuration file contains. Once they are validated,
//! [`Node::start`](node::Node::start) binds the ports and returns while the node is still joining. A member without
//! peers founds a map and is ready:
//!
//! ```
//! use kvasir_client::{Client, PutOptions};
//! use kvasir_node::config::Settings;
//! use kvasir_node::engine::Phase;
//! use kvasir_node::node::Node;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let any_port = Some("127.0.0.1:0".parse()?);
//! let settings = Settings {
//!     name: Some("node-0".to_owned()),
//!     client_address: any_port,
//!     peer_address: any_port,
//!     admin_address: any_port,
//!     ..Settings::default()
//! };
//! let node = Node::start(settings.validate()?).await?;
//! assert_eq!(node.overview().phase_other_than(Phase::Joining).await, Phase::Ready);
//!
//! let client = Client::connect(node.addresses().client.to_string()).await?;
//! client.put("greeting", "hello", PutOptions::default()).await?;
//! assert_eq!(client.get("greeting").await?.expect("it was put").value, "hello");
//!
//! // Hands over what peers lack, and leaves the cluster.
//! node.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`DevCluster`](dev::DevCluster) starts several nodes in one process, linked to each other.
//! [`Node::start_with`](node::Node::start_with) adds discovery providers; [`discovery::Provider`] has an example.
//!
//! # The parts
//!
//! From the outside in; a module uses only modules below it:
//!
//! | module | holds |
//! | --- | --- |
//! | [`node`] | the start and the shutdown of a node |
//! | [`admin`] | metrics, probes and `/status` over HTTP |
//! | [`api`] | the gRPC services of the client port |
//! | [`overview`] | what the node knows of itself and of the others |
//! | [`transport`] | the TCP links between nodes |
//! | [`encryption`], [`tls`], [`auth`] | keys, certificates, and which client may do what |
//! | [`membership`] | which nodes are alive, by SWIM over UDP |
//! | [`discovery`] | where peers may be |
//! | [`engine`] | the lock around the replica, and calls that wait |
//! | [`config`] | settings, from file, environment and flags |
//! | [`replica`], [`store`], [`clock`], [`session`] | the replication protocol as a state machine (`kvasir-replica`) |
//!
//! `docs/architecture.md` has the exact order of the modules as a figure, and follows a write and a peer's message
//! through them.

pub mod admin;
pub mod api;
pub mod auth;
pub mod config;
pub mod descriptors;
pub mod dev;
pub mod discovery;
pub mod encryption;
pub mod engine;
pub mod gate;
pub mod membership;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod overview;
pub mod refusals;
pub mod reload;
pub mod tls;
pub mod transport;
pub mod wall_clock;

pub use kvasir_replica::{clock, protocol as replica, session, store};
