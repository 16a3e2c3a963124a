//! What can go wrong in a call, and how an answer of the wire is sorted into it.

use std::error::Error as _;
use std::time::Duration;
use tonic::Code;

/// Why a call failed. A key that is not there is no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address given is not one. Nothing was sent.
    #[error("cannot use the address '{address}': {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or token cannot be used. Nothing was sent.
    #[error("cannot use the credentials: {0}")]
    Credentials(String),
    /// No node could be reached that was ready, and the retry budget is spent.
    #[error("the node at {address} is not available: {reason} (attempts: {attempts}, over {} ms)", .elapsed.as_millis())]
    Unavailable {
        /// Where the client looked for it.
        address: String,
        /// How the last attempt failed that was given its full time.
        reason: String,
        /// How often it was tried.
        attempts: u32,
        /// For how long it was tried.
        elapsed: Duration,
    },
    /// The node refused the input: a field breaks a limit. The message names both.
    #[error("the node refused the input: {0}")]
    Refused(String),
    /// The node holds as much as it may. Reads and deletes go on.
    #[error("{0}")]
    Full(String),
    /// The node failed to carry out the call for a reason of its own.
    #[error("the node answered {code:?}: {message}")]
    Node {
        /// The gRPC status code.
        code: Code,
        /// What the node said.
        message: String,
    },
    /// The write was made and stays, but was not known to be held by as many nodes as asked for in the time given.
    #[error(
        "the write {version} stays, but fewer nodes than asked for said in time that they hold it: {peers} others (that have not: {lacking}; members that hold it: {voters}; a majority: {majority})"
    )]
    NotHeld {
        /// The write.
        version: crate::Version,
        /// Nodes beside the answering one that said that they hold it.
        peers: u32,
        /// Members among them, and the answering node if it is one.
        voters: u32,
        /// Nodes that take part and have not said so.
        lacking: u32,
        /// How many members are a majority.
        majority: u32,
    },
    /// A write that the session saw was lost with the nodes that held it. Begin a new session.
    #[error("the session is over: {0}")]
    SessionLost(String),
    /// A value is not what the codec makes, or the codec cannot make it.
    #[error("the value of key '{key}' and its codec do not fit: {reason}")]
    Codec {
        /// The key.
        key: String,
        /// What the codec said.
        reason: String,
    },
    /// The answer lacks something that it must have: the node speaks another version of the API.
    #[error("the node's answer has no {0}; are client and node of the same release?")]
    Answer(&'static str),
}

/// One failed attempt.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// Another attempt, on another connection, may go better.
    Passing(String),
    /// Nothing came for as long as the attempt was given. Another may go better.
    NoAnswer(Duration),
    /// It will not.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        // A status with a source was made on this side of the wire, of an error of the connection.
        if let Some(mut cause) = status.source() {
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            return Self::Passing(lower_first(&cause.to_string()));
        }
        // What stands between client and node may answer with nothing but a code.
        let message = if status.message().is_empty() { status.code().description() } else { status.message() };
        let message = message.to_owned();
        match status.code() {
            // A node never answers UNKNOWN of its own: it is what is left of an answer that was cut off.
            Code::Unavailable | Code::Unknown => Self::Passing(message),
            // OUT_OF_RANGE is gRPC's own answer to a message over the receiver's limit.
            Code::InvalidArgument | Code::OutOfRange => Self::Final(Error::Refused(lower_first(&message))),
            Code::DataLoss => Self::Final(Error::SessionLost(message)),
            Code::ResourceExhausted => Self::Final(Error::Full(message)),
            code => Self::Final(Error::Node { code, message }),
        }
    }
}

/// Messages of the operating system and of gRPC begin with a capital; ours do not.
fn lower_first(message: &str) -> String {
    let mut chars = message.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::{Error, Failure};
    use std::sync::Arc;
    use tonic::{Code, Status};

    #[test]
    fn an_unavailable_node_and_a_broken_connection_pass() {
        for status in [Status::unavailable("draining"), Status::unknown("cut off"), Status::unavailable("not ready")] {
            assert!(matches!(Failure::from(status), Failure::Passing(_)));
        }
        // Whatever code a broken connection was given, it is the connection's.
        let mut status = Status::internal("h2 protocol error");
        status.set_source(Arc::new(std::io::Error::other("Connection reset by peer")));
        match Failure::from(status) {
            Failure::Passing(reason) => assert_eq!(reason, "connection reset by peer"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_is_final() {
        for (status, meant) in [
            (Status::invalid_argument("key: empty"), Error::Refused("key: empty".into())),
            (Status::out_of_range("too long"), Error::Refused("too long".into())),
            (Status::data_loss(""), Error::SessionLost(Code::DataLoss.description().into())),
            (Status::resource_exhausted("maxMemory"), Error::Full("maxMemory".into())),
            (Status::data_loss("gone"), Error::SessionLost("gone".into())),
            (Status::internal("bug"), Error::Node { code: Code::Internal, message: "bug".into() }),
            (Status::cancelled("stop"), Error::Node { code: Code::Cancelled, message: "stop".into() }),
        ] {
            match Failure::from(status) {
                Failure::Final(error) => assert_eq!(error, meant),
                other => panic!("{meant} passes: {other:?}"),
            }
        }
    }
}
