//! Errors of calls, and how a gRPC status becomes one of them.

use std::error::Error as _;
use std::time::Duration;
use tonic::Code;

/// Why a call failed. A missing key is not an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be used. Nothing was sent.
    #[error("cannot use the address '{address}': {reason}")]
    Address {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or token cannot be used. Nothing was sent.
    #[error("cannot use the credentials: {0}")]
    Credentials(String),
    /// No ready node could be reached within the retry budget.
    #[error("the node at {address} is not available: {reason} (attempts: {attempts}, over {} ms)", .elapsed.as_millis())]
    Unavailable {
        /// The address of the node or Service.
        address: String,
        /// How the last attempt that had its full time failed.
        reason: String,
        /// How many attempts were made.
        attempts: u32,
        /// The time from the first attempt to the last.
        elapsed: Duration,
    },
    /// The node refused the input because a field breaks a limit. The message names both.
    #[error("the node refused the input: {0}")]
    Refused(String),
    /// The node is at `maxMemory` and refuses puts. It still serves reads and deletes.
    #[error("{0}")]
    Full(String),
    /// The node could not carry out the call for another reason.
    #[error("the node answered {code:?}: {message}")]
    Node {
        /// The gRPC status code.
        code: Code,
        /// The node's message.
        message: String,
    },
    /// The write was made and stays, but fewer nodes than asked for confirmed in time that they hold it.
    #[error(
        "the write {version} stays, but fewer nodes than asked for confirmed it in time: {peers} others did, {lacking} did \
         not; {voters} members hold it, a majority is {majority}"
    )]
    NotHeld {
        /// The write.
        version: crate::Version,
        /// Nodes that confirmed the write, not counting the answering node.
        peers: u32,
        /// Members that hold the write, including the answering node if it is a member.
        voters: u32,
        /// Nodes that take part and have not confirmed the write.
        lacking: u32,
        /// How many members are a majority.
        majority: u32,
    },
    /// A write that the session saw was lost with the only nodes that held it. Begin a new session.
    #[error("the session is over: {0}")]
    SessionLost(String),
    /// The codec cannot encode or decode a value.
    #[error("the codec cannot handle the value of key '{key}': {reason}")]
    Codec {
        /// The key.
        key: String,
        /// The codec's message.
        reason: String,
    },
    /// The answer lacks a required field: the node speaks another version of the API.
    #[error("the node's answer has no {0}: check that client and node are of the same release")]
    Answer(&'static str),
}

/// One failed attempt.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// Another attempt on another connection may succeed.
    Passing(String),
    /// No answer came in time. Another attempt may succeed.
    NoAnswer(Duration),
    /// Further attempts would fail too.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        // A status with a source was made on this side, from an error of the connection.
        if let Some(mut cause) = status.source() {
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            return Self::Passing(lower_first(&cause.to_string()));
        }
        // A proxy between client and node may answer with a code and no message.
        let message = if status.message().is_empty() { status.code().description() } else { status.message() };
        let message = message.to_owned();
        match status.code() {
            // A node never answers UNKNOWN: gRPC reports it for an answer that was cut off.
            Code::Unavailable | Code::Unknown => Self::Passing(message),
            // gRPC answers OUT_OF_RANGE to a message above the receiver's limit.
            Code::InvalidArgument | Code::OutOfRange => Self::Final(Error::Refused(lower_first(&message))),
            Code::DataLoss => Self::Final(Error::SessionLost(message)),
            Code::ResourceExhausted => Self::Final(Error::Full(message)),
            code => Self::Final(Error::Node { code, message }),
        }
    }
}

/// Messages of the operating system and of gRPC begin with a capital letter; ours do not.
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
    fn unavailable_node_and_broken_connection_pass() {
        for status in [Status::unavailable("draining"), Status::unknown("cut off"), Status::unavailable("not ready")] {
            assert!(matches!(Failure::from(status), Failure::Passing(_)));
        }
        // The code does not matter if the connection broke.
        let mut status = Status::internal("h2 protocol error");
        status.set_source(Arc::new(std::io::Error::other("Connection reset by peer")));
        match Failure::from(status) {
            Failure::Passing(reason) => assert_eq!(reason, "connection reset by peer"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn refusal_is_final() {
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
