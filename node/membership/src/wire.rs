//! The format of a datagram: a short envelope that identifies the cluster, and foca's message in
//! [postcard](https://postcard.jamesmunns.com).
//!
//! ```text
//! "KVSW"  version  hash of the cluster  message
//! 4       1        8                    up to 1155
//! ```
//!
//! The hash is that of the cluster's name. If the cluster has a UID, its last four bytes are replaced by a hash of the UID,
//! so that a node can tell a cluster of its own cluster's name from other clusters.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
};

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{MAX_NAME_BYTES, MAX_VERSION_BYTES, NodeId, Role};

/// The largest datagram that is sent or accepted. With an encrypting envelope it fits the smallest MTU in practice (1280, the
/// minimum of IPv6).
pub const MAX_DATAGRAM: usize = 1168;
/// The first bytes of a datagram.
pub const MAGIC: [u8; 4] = *b"KVSW";
/// The first bytes of an encrypted datagram.
pub const SEALED_MAGIC: [u8; 4] = *b"KVSX";
/// The protocol's version. Only tests make a node speak another one.
pub const VERSION: u8 = 1;
/// The length of the envelope in bytes.
pub const ENVELOPE: usize = MAGIC.len() + 1 + 8;
/// The space for the message.
pub(super) const MAX_MESSAGE: NonZeroUsize = NonZeroUsize::new(MAX_DATAGRAM - ENVELOPE).expect("1155 is not zero");

/// Why a datagram was dropped.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not of this protocol.
    #[error("not a kvasir membership datagram")]
    Foreign,
    /// It is encrypted.
    #[error("the datagram is encrypted, but this node uses no encryption: give all nodes the same encryption settings")]
    Encrypted,
    /// It is of another version of the protocol.
    #[error(
        "membership protocol version {theirs}, this node speaks {ours}: run nodes of neighbouring releases together"
    )]
    Version {
        /// The sender's version.
        theirs: u8,
        /// This node's version.
        ours: u8,
    },
    /// It is of another cluster.
    #[error("datagram of another cluster: check that all nodes have the same cluster name")]
    Cluster,
    /// It is of another cluster with the same name.
    #[error(
        "datagram of an earlier or later cluster of the same name: its clusterUid is not this node's. Delete what remains of the earlier cluster"
    )]
    OtherUid,
    /// It is longer than any datagram of the protocol.
    #[error("datagram longer than {MAX_DATAGRAM} bytes")]
    TooLong,
    /// Its sender claims this node's address.
    #[error("another node claims this node's address: give each node its own advertise address and peer port")]
    Impostor,
    /// Its sender claims this node's origin.
    #[error(
        "`{name}` at {address} claims this node's origin: the datagram is forged, or comes from a copy of this process"
    )]
    Origin {
        /// The sender's name, as it claims.
        name: String,
        /// The sender's address, as it claims.
        address: SocketAddr,
    },
    /// It comes from or names a node whose start is too far in this node's future.
    #[error(
        "`{name}` at {address} claims to have started {ahead_ms} ms in the future, at most {limit_ms} ms (maxClockSkew) are accepted: check the time service of both machines"
    )]
    Ahead {
        /// The node's name.
        name: String,
        /// The node's address, as it claims.
        address: SocketAddr,
        /// How far ahead the start is.
        ahead_ms: u64,
        /// How far ahead it may be.
        limit_ms: u64,
    },
    /// This node knows as many nodes as it may.
    #[error("this node knows {MAX_KNOWN} nodes, dead ones included, and accepts no more")]
    Full,
    /// It asks for an answer or a new identity of this node, and too many did so recently.
    #[error("more datagrams ask for an answer than members send: further ones get none")]
    TooMany,
    /// Its message cannot be decoded.
    #[error("malformed membership datagram: {0}")]
    Malformed(foca::Error),
}

/// How many nodes are remembered, alive or dead. Bounds what forged datagrams make this node keep. As many as can have seats
/// in a cluster; the nodes that one message names may come on top.
pub const MAX_KNOWN: usize = 2048;
/// Where the hash of the UID begins in the envelope, if the cluster has one.
const UID_AT: usize = ENVELOPE - 4;

impl Refused {
    /// The labels of all kinds of refusal in metrics.
    pub const KINDS: [&'static str; 13] = [
        "foreign",
        "encrypted",
        "version",
        "cluster",
        "cluster_uid",
        "too_long",
        "address",
        "origin",
        "clock",
        "full",
        "rate",
        "malformed",
        "unopened",
    ];

    /// The index of this kind in [`KINDS`](Self::KINDS).
    pub const fn kind(&self) -> usize {
        match self {
            Self::Foreign => 0,
            Self::Encrypted => 1,
            Self::Version { .. } => 2,
            Self::Cluster => 3,
            Self::OtherUid => 4,
            Self::TooLong => 5,
            Self::Impostor => 6,
            Self::Origin { .. } => 7,
            Self::Ahead { .. } => 8,
            Self::Full => 9,
            Self::TooMany => 10,
            Self::Malformed(_) => 11,
        }
    }

    /// The index of datagrams that could not be decrypted.
    pub const UNOPENED: usize = 12;
}

/// The envelope of a cluster's datagrams in this version of the protocol. An empty UID means none.
pub fn envelope(cluster: &str, uid: &str, version: u8) -> [u8; ENVELOPE] {
    let mut envelope = [0; ENVELOPE];
    envelope[..4].copy_from_slice(&MAGIC);
    envelope[4] = version;
    envelope[5..].copy_from_slice(&xxh3_64(cluster.as_bytes()).to_le_bytes());
    if !uid.is_empty() {
        envelope[UID_AT..].copy_from_slice(&xxh3_64(uid.as_bytes()).to_le_bytes()[..4]);
    }
    envelope
}

/// Checks and removes the envelope.
pub(super) fn open<'a>(datagram: &'a [u8], envelope: &[u8; ENVELOPE]) -> Result<&'a [u8], Refused> {
    if datagram.starts_with(&SEALED_MAGIC) {
        return Err(Refused::Encrypted);
    }
    if datagram.len() > MAX_DATAGRAM {
        return Err(Refused::TooLong);
    }
    let Some((start, message)) = datagram.split_at_checked(ENVELOPE) else { return Err(Refused::Foreign) };
    if start[..4] != MAGIC {
        return Err(Refused::Foreign);
    }
    if start[4] != envelope[4] {
        return Err(Refused::Version { theirs: start[4], ours: envelope[4] });
    }
    if start == envelope {
        Ok(message)
    } else if start[..UID_AT] == envelope[..UID_AT] {
        Err(Refused::OtherUid)
    } else {
        Err(Refused::Cluster)
    }
}

/// A message, decoded before foca gets it.
pub(super) struct Parsed<'a> {
    pub(super) header: Header<NodeId>,
    header_bytes: &'a [u8],
    /// The updates about members, each with its bytes.
    pub(super) updates: Vec<(Member<NodeId>, &'a [u8])>,
    /// The bytes after the updates.
    rest: &'a [u8],
}

impl<'a> Parsed<'a> {
    /// None if the message is malformed; foca finds the same and knows the reason.
    pub(super) fn read(wire: &mut Wire, message: &'a [u8]) -> Option<Self> {
        let mut rest = message;
        let header = foca::Codec::decode_header(wire, &mut rest).ok()?;
        let header_bytes = &message[..message.len() - rest.len()];
        let mut updates = Vec::new();
        if rest.len() >= 2 && header.message != Message::Broadcast {
            for _ in 0..rest.get_u16() {
                let before = rest;
                let update = foca::Codec::decode_member(wire, &mut rest).ok()?;
                updates.push((update, &before[..before.len() - rest.len()]));
            }
        }
        Some(Self { header, header_bytes, updates, rest })
    }

    /// The third node that the message concerns, besides sender and addressee.
    pub(super) const fn third_node(&self) -> Option<&NodeId> {
        third_node(&self.header.message)
    }

    /// The message with the updates that are left in `updates`.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut message = self.header_bytes.to_vec();
        message.put_u16(u16::try_from(self.updates.len()).unwrap_or(u16::MAX));
        message.extend(self.updates.iter().flat_map(|(_, bytes)| *bytes));
        message.extend(self.rest);
        message
    }
}

/// Encodes a message from `from` to `to`, with incarnation 0 of the sender.
pub(super) fn encode(
    wire: &mut Wire,
    from: &NodeId,
    to: &NodeId,
    message: Message<NodeId>,
    updates: &[Member<NodeId>],
) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::new();
    let header = Header { src: from.clone(), src_incarnation: 0, dst: to.clone(), message };
    foca::Codec::encode_header(wire, &header, &mut bytes)?;
    if header.message == Message::Announce {
        return Ok(bytes); // nothing may follow
    }
    bytes.put_u16(u16::try_from(updates.len()).unwrap_or(u16::MAX));
    for update in updates {
        foca::Codec::encode_member(wire, update, &mut bytes)?;
    }
    Ok(bytes)
}

/// The codec of messages. Of the addressee a message carries only the origin and the generation that the sender expects: the
/// addressee knows the rest.
pub(super) struct Wire {
    /// This node's address.
    pub(super) me: SocketAddr,
}

#[derive(Serialize)]
struct HeaderOut<'a> {
    from: &'a NodeId,
    incarnation: u16,
    to: Addressee,
    message: &'a Message<NodeId>,
}

#[derive(Deserialize)]
struct HeaderIn {
    from: NodeId,
    incarnation: u16,
    to: Addressee,
    message: Message<NodeId>,
}

#[derive(Serialize, Deserialize)]
struct Addressee {
    #[serde(with = "postcard::fixint::le")]
    origin: u64,
    generation: u32,
}

/// Why a message cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("{0}")]
    Postcard(#[from] postcard::Error),
    #[error("it names a node with an impossible {0}")]
    Identity(&'static str),
}

fn put(value: &impl Serialize, mut buf: impl BufMut) -> Result<(), WireError> {
    let mut space = [0; MAX_MESSAGE.get()];
    let written = postcard::to_slice(value, &mut space)?;
    if buf.remaining_mut() < written.len() {
        return Err(postcard::Error::SerializeBufferFull.into());
    }
    buf.put_slice(written);
    Ok(())
}

fn take<T: for<'de> Deserialize<'de>>(mut buf: impl Buf) -> Result<T, WireError> {
    let (value, rest) = postcard::take_from_bytes(buf.chunk())?;
    let taken = buf.chunk().len() - rest.len();
    buf.advance(taken);
    Ok(value)
}

/// The third node that a message concerns, besides sender and addressee.
const fn third_node(message: &Message<NodeId>) -> Option<&NodeId> {
    match message {
        Message::PingReq { target: node, .. }
        | Message::IndirectAck { target: node, .. }
        | Message::IndirectPing { origin: node, .. }
        | Message::ForwardedAck { origin: node, .. } => Some(node),
        Message::Ping(_)
        | Message::Ack(_)
        | Message::Announce
        | Message::Feed
        | Message::Gossip
        | Message::Broadcast
        | Message::TurnUndead => None,
    }
}

/// Bounds what a forged message can make this node keep and send to.
fn check(id: &NodeId) -> Result<(), WireError> {
    let reachable = match id.peer_address.ip() {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast()),
    };
    let wrong = if id.name.is_empty() || id.name.len() > MAX_NAME_BYTES {
        "name"
    } else if id.version.len() > MAX_VERSION_BYTES {
        "version"
    } else if id.origin == 0 {
        "origin"
    } else if !reachable || id.peer_address.port() == 0 {
        "address"
    } else {
        return Ok(());
    };
    Err(WireError::Identity(wrong))
}

impl foca::Codec<NodeId> for Wire {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<NodeId>, buf: impl BufMut) -> Result<(), WireError> {
        let to = Addressee { origin: header.dst.origin, generation: header.dst.generation };
        put(&HeaderOut { from: &header.src, incarnation: header.src_incarnation, to, message: &header.message }, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<NodeId>, WireError> {
        let HeaderIn { from, incarnation, to, message } = take(buf)?;
        check(&from)?;
        if let Some(node) = third_node(&message) {
            check(node)?;
        }
        // A datagram that reached this socket is meant for this address, even if the sender knows another address for
        // it, by a translation on the way.
        let dst = NodeId {
            origin: to.origin,
            generation: to.generation,
            ..NodeId::new("", to.origin, Role::Member, self.me, 0)
        };
        Ok(Header { src: from, src_incarnation: incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &Member<NodeId>, buf: impl BufMut) -> Result<(), WireError> {
        put(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<NodeId>, WireError> {
        let member: Member<NodeId> = take(buf)?;
        check(member.id())?;
        Ok(member)
    }
}

#[cfg(test)]
mod tests {
    use foca::Codec;

    use super::*;

    fn largest() -> NodeId {
        let address = SocketAddr::new(IpAddr::from([0xfd; 16]), u16::MAX);
        NodeId {
            version: "v".repeat(MAX_VERSION_BYTES),
            generation: u32::MAX,
            ..NodeId::new(&"n".repeat(MAX_NAME_BYTES), u64::MAX, Role::Sidecar, address, u64::MAX)
        }
    }

    fn size(id: &NodeId) -> usize {
        let mut bytes = Vec::new();
        Wire { me: id.peer_address }.encode_member(&Member::alive(id.clone()), &mut bytes).unwrap();
        bytes.len()
    }

    #[test]
    fn wire_identity_is_small() {
        let pod = NodeId::new("demo-0", 7, Role::Member, ([10, 42, 0, 7], 7071).into(), 1_800_000_000_000);
        assert_eq!(size(&pod), 39);
        assert_eq!(size(&largest()), 144);
    }

    /// The longest header has two identities. Five more must fit behind it: a joining node hears of at least that many.
    #[test]
    fn wire_has_room_for_the_largest_identities() {
        let (id, mut bytes) = (largest(), Vec::new());
        let message = Message::PingReq { target: id.clone(), probe_number: u8::MAX };
        let header = Header { src: id.clone(), src_incarnation: u16::MAX, dst: id.clone(), message };
        Wire { me: id.peer_address }.encode_header(&header, &mut bytes).unwrap();
        assert!(bytes.len() + 2 + 5 * size(&id) <= MAX_MESSAGE.get(), "{}", bytes.len());
    }

    #[test]
    fn wire_refuses_impossible_identities() {
        let good = largest();
        let mut wire = Wire { me: good.peer_address };
        let mut decode = |id: NodeId| {
            let mut bytes = Vec::new();
            wire.encode_member(&Member::alive(id), &mut bytes).unwrap();
            wire.decode_member(&bytes[..]).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(decode(good.clone()), Ok(()));
        let refused = |part: &str| Err(format!("it names a node with an impossible {part}"));
        assert_eq!(decode(NodeId { name: "n".repeat(MAX_NAME_BYTES + 1), ..good.clone() }), refused("name"));
        assert_eq!(decode(NodeId { name: String::new(), ..good.clone() }), refused("name"));
        assert_eq!(decode(NodeId { version: "v".repeat(MAX_VERSION_BYTES + 1), ..good.clone() }), refused("version"));
        assert_eq!(decode(NodeId { origin: 0, ..good.clone() }), refused("origin"));
        for address in ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[::]:1", "[ff02::1]:1", "10.0.0.1:0"] {
            assert_eq!(decode(NodeId { peer_address: address.parse().unwrap(), ..good.clone() }), refused("address"));
        }
    }

    #[test]
    fn wire_tells_clusters_of_one_name_apart_by_uid() {
        let datagram = |uid| [&envelope("ns/demo", uid, VERSION)[..], b"hello"].concat();
        assert_eq!(open(&datagram("a"), &envelope("ns/demo", "a", VERSION)).unwrap(), b"hello");
        for (theirs, ours) in [("a", "b"), ("a", ""), ("", "b")] {
            assert!(matches!(open(&datagram(theirs), &envelope("ns/demo", ours, VERSION)), Err(Refused::OtherUid)));
        }
        assert!(matches!(open(&datagram("a"), &envelope("ns/other", "a", VERSION)), Err(Refused::Cluster)));
        assert_eq!(
            envelope("ns/demo", "", VERSION)[5..],
            xxh3_64(b"ns/demo").to_le_bytes(),
            "without a UID the format is that of releases without UIDs"
        );
    }

    #[test]
    fn wire_envelope_keeps_other_clusters_out() {
        let mine = envelope("ns/demo", "", VERSION);
        let datagram = [&mine[..], b"hello"].concat();
        assert_eq!(open(&datagram, &mine).unwrap(), b"hello");
        assert!(matches!(open(&datagram, &envelope("ns/other", "", VERSION)), Err(Refused::Cluster)));
        assert!(matches!(open(b"", &mine), Err(Refused::Foreign)));
        assert!(matches!(open(&datagram[..ENVELOPE - 1], &mine), Err(Refused::Foreign)));
        assert!(matches!(open(&[0; 64], &mine), Err(Refused::Foreign)));
        assert!(matches!(open(&vec![0; MAX_DATAGRAM + 1], &mine), Err(Refused::TooLong)));
        assert!(matches!(open(&[b"KVSX".as_slice(), &[0; 1200]].concat(), &mine), Err(Refused::Encrypted)));
        let mut later = datagram;
        later[4] = 2;
        assert!(matches!(open(&later, &mine), Err(Refused::Version { theirs: 2, ours: VERSION })));
    }
}
