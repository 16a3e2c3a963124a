//! The types of the data calls, and their conversion from the wire.

use crate::Error;
use crate::ack::Ack;
use bytes::Bytes;
use kvasir_proto::v1;
use std::fmt;
use std::time::Duration;

/// Identifies one write, on every node. Of two writes of a key the larger version wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Timestamp of the hybrid logical clock: 48 bits of milliseconds since 1970, 16 bits of counter.
    pub hlc: u64,
    /// Origin of the node that took the write.
    pub origin: u64,
}

/// Written as two groups of 16 hexadecimal digits, which sort as the versions do.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.hlc, self.origin)
    }
}

/// A value with its version and TTL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The bytes as they were put; empty with `keys_only`.
    pub value: Bytes,
    /// The write that put the value.
    pub version: Version,
    /// What was left of the TTL when the node answered; `None`: the key does not expire.
    pub ttl: Option<Duration>,
}

/// One key of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value; empty with `keys_only`.
    pub value: Bytes,
    /// The write that put the value.
    pub version: Version,
    /// What was left of the TTL when the node answered; `None`: the key does not expire.
    pub ttl: Option<Duration>,
}

/// Options of a put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The time until the key expires, in whole milliseconds; `None`: it does not expire.
    pub ttl: Option<Duration>,
    /// How many nodes must hold the write before the call returns; `None`: only the node that takes it. If too few hold
    /// the write in time, the call fails with [`Error::NotHeld`], and the write stays.
    pub ack: Option<Ack>,
}

impl PutOptions {
    /// A write that other nodes must hold before the call returns.
    pub fn with_ack(ack: impl Into<Ack>) -> Self {
        Self { ack: Some(ack.into()), ..Self::default() }
    }

    /// A key that expires after `ttl`.
    pub fn with_ttl(ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..Self::default() }
    }
}

/// Options of a listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// At most this many entries; `None`: all.
    pub limit: Option<u64>,
    /// Omit the values.
    pub keys_only: bool,
}

/// Options of a batch of reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchGetOptions {
    /// Omit the values.
    pub keys_only: bool,
}

pub(crate) fn version(wire: Option<v1::Version>) -> Result<Version, Error> {
    let v1::Version { hlc, origin } = wire.ok_or(Error::Answer("version"))?;
    Ok(Version { hlc, origin })
}

pub(crate) fn put_request(key: String, value: Bytes, options: PutOptions) -> Result<v1::PutRequest, Error> {
    let (ttl, ack) = (wire_ttl(options.ttl)?, options.ack.map(Ack::wire).transpose()?);
    Ok(v1::PutRequest { key, value, ttl, ack, session: None })
}

pub(crate) fn wire_ttl(ttl: Option<Duration>) -> Result<Option<prost_types::Duration>, Error> {
    ttl.map(prost_types::Duration::try_from)
        .transpose()
        .map_err(|_| Error::Refused("ttl: longer than the protocol can carry; leave it out".to_owned()))
}

pub(crate) fn ttl(wire: Option<prost_types::Duration>) -> Result<Option<Duration>, Error> {
    duration(wire, "valid ttl")
}

pub(crate) fn duration(wire: Option<prost_types::Duration>, what: &'static str) -> Result<Option<Duration>, Error> {
    wire.map(|duration| Duration::try_from(duration).map_err(|_| Error::Answer(what))).transpose()
}

pub(crate) fn value(wire: v1::GetResponse) -> Result<Value, Error> {
    Ok(Value { version: version(wire.version)?, ttl: ttl(wire.ttl)?, value: wire.value })
}

pub(crate) fn entry(wire: v1::ListEntry) -> Result<Entry, Error> {
    Ok(Entry { version: version(wire.version)?, ttl: ttl(wire.ttl)?, key: wire.key, value: wire.value })
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_sort_as_their_text_does() {
        let small = Version { hlc: 9, origin: u64::MAX };
        let large = Version { hlc: 10, origin: 1 };
        assert!(small < large);
        assert!(small.to_string() < large.to_string());
        assert_eq!(large.to_string(), "000000000000000a-0000000000000001");
    }
}
