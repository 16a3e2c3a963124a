//! Why a node does not start, or ends by itself.

use std::net::SocketAddr;

use crate::api::ApiError;

/// Why a node did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A port is in use, or the address is not one of this machine.
    #[error("{setting}: cannot listen on {address}, free it or set another address")]
    Bind {
        /// The setting that contains the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The keys cannot be loaded.
    #[error("encryption: {0}")]
    Encryption(String),
    /// Certificates, tokens or rules cannot be loaded.
    #[error("{setting}: {why}")]
    Security {
        /// The setting that names the files.
        setting: &'static str,
        /// What is wrong with them.
        why: String,
    },
    /// The client port failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The admin port failed.
    #[error("serving the admin port failed: {0}")]
    Admin(std::io::Error),
    /// Another process holds the node's name.
    #[error(
        "another process has the name `{name}` in the cluster `{cluster}`: {holder}. Give this node a name of its own (--name, \
         KVASIR_NAME or `name`; the default is the host name) or, if the process is of another cluster, give this node's \
         cluster a name of its own (--cluster, KVASIR_CLUSTER or `cluster`). If the process is an earlier one of this node, \
         stop it first"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The cluster in which it is taken.
        cluster: String,
        /// The process that holds it.
        holder: String,
    },
    /// A part of the node ended unexpectedly.
    #[error("the {0} ended by itself: this is a bug")]
    Ended(&'static str),
}
