//! What the protocol asks its caller to do.

use std::{net::SocketAddr, sync::Arc};

use crate::{MemberInfo, NodeId};

/// A change in the cluster. A process that is listed as a member has caused exactly one `Joined`, and causes exactly one
/// `Left` or `Failed` when it is no longer listed. The origin identifies a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process joined.
    Joined(NodeId),
    /// A process left and said so.
    Left(NodeId),
    /// A process was declared dead, or replaced by a later process of the same node.
    Failed(NodeId),
    /// Others declared this node dead; it took a new identity and is back.
    Renewed(NodeId),
}

/// A request to the caller.
#[derive(Debug)]
pub enum Output {
    /// Send this datagram.
    Send(SocketAddr, Vec<u8>),
    /// The cluster changed.
    Event(Event),
    /// The other members as they are now, eldest first.
    Members(Arc<Vec<MemberInfo>>),
    /// foca returned an error that should be impossible. The protocol goes on.
    Fault(foca::Error),
}
